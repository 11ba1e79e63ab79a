//! Arguments of calls as settings of the library.

use elf_lm::{DeviceChoice, GenerateOptions, Model, ModelSource, Precision, Sampling, SamplingPatch};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyString};

use crate::errors;

/// Most rows of a batch; a mistyped number must not exhaust memory.
const MOST_ROWS: usize = 65_536;
/// Most steps of a text, for the same reason.
const MOST_STEPS: usize = 100_000;

/// How texts are sampled.
#[derive(Debug, Clone)]
pub struct Settings {
    patch: SamplingPatch,
}

impl Settings {
    /// The settings that differ from the model's.
    ///
    /// # Errors
    /// If a value is of a type that no setting has, or out of range.
    pub fn new(steps: Option<usize>, sampler: Option<String>, others: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let mut patch = SamplingPatch::default();
        if let Some(steps) = steps {
            patch = patch.with("num_sampling_steps", at_most("steps", steps, MOST_STEPS)?);
        }
        if let Some(sampler) = sampler {
            patch = patch.with("sampler", sampler);
        }
        for (name, value) in others.into_iter().flatten() {
            let name: String = name.extract()?;
            patch = if value.is_none() {
                patch
            } else if value.is_instance_of::<PyBool>() {
                patch.with(name, value.extract::<bool>()?)
            } else if value.is_instance_of::<PyInt>() {
                patch.with(name, value.extract::<i64>()?)
            } else if value.is_instance_of::<PyFloat>() {
                patch.with(name, value.extract::<f64>()?)
            } else if value.is_instance_of::<PyString>() {
                patch.with(name, value.extract::<String>()?)
            } else {
                let kind = value.get_type().name()?;
                return Err(errors::setting(format!("{name} is of type {kind}: it has to be a number or a str")));
            };
        }
        Ok(Self { patch })
    }

    /// The setting for a model.
    ///
    /// # Errors
    /// If it is invalid for the model.
    pub fn sampling(&self, model: &Model) -> elf_lm::Result<Sampling> {
        model.sampling_with(&self.patch)
    }
}

/// Batches of so many rows, as those of `elf sample`.
///
/// # Errors
/// If there are none, or too many.
pub fn options(seed: u64, batch_size: usize) -> PyResult<GenerateOptions> {
    if batch_size == 0 {
        return Err(errors::setting("batch_size is 0: it has to be at least 1"));
    }
    let batch_size = at_most("batch_size", batch_size, MOST_ROWS)?;
    Ok(GenerateOptions { batch_size, grid_seed: seed, log_probs: true, ..GenerateOptions::default() })
}

fn at_most(name: &str, value: usize, most: usize) -> PyResult<usize> {
    match value <= most {
        true => Ok(value),
        false => Err(errors::setting(format!("{name} is {value}: at most {most} are possible"))),
    }
}

/// A device by its name in torch: `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// If there is no such name.
pub fn device(name: &str) -> PyResult<DeviceChoice> {
    name.parse().map_err(|error| errors::setting(format!("device: {error}")))
}

/// Where a model is, with the device and precision to compute in.
///
/// # Errors
/// If there is no such device or precision.
pub fn source(path: std::path::PathBuf, device_name: &str, precision: Option<&str>) -> PyResult<ModelSource> {
    let device = device(device_name)?.resolve().map_err(|error| errors::setting(format!("device: {error}")))?;
    let precision = match precision {
        None => None,
        Some("fp32" | "float32") => Some(Precision::F32),
        Some("bf16" | "bfloat16") => Some(Precision::Bf16),
        Some(other) => {
            return Err(errors::setting(format!("precision is {other:?}: \"fp32\" and \"bf16\" are possible")));
        }
    };
    Ok(ModelSource { precision, ..ModelSource::new(path).device(device) })
}

/// A list of texts. A single one would be taken for a list of its characters.
///
/// # Errors
/// If it is no list, or an element is no text.
pub fn texts(name: &str, list: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    let refuse = |text: String| Err(pyo3::exceptions::PyTypeError::new_err(text));
    if list.is_instance_of::<PyString>() {
        return refuse(format!("{name} is a single str: put it into a list"));
    }
    let Ok(elements) = list.try_iter() else {
        let kind = list.get_type().name()?;
        return refuse(format!("{name} is of type {kind}: it has to be a list of str"));
    };
    let mut all = Vec::new();
    for (place, element) in elements.enumerate() {
        let element = element?;
        match element.cast::<PyString>() {
            Ok(text) => all.push(text.extract()?),
            Err(_) => {
                return refuse(format!(
                    "{name}[{place}] is of type {}: it has to be a str",
                    element.get_type().name()?
                ));
            }
        }
    }
    Ok(all)
}
