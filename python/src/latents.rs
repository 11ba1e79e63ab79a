//! Latents on their way from and to Python.

use elf_lm::EncodedTexts;
use pyo3::prelude::*;
use tch::{Kind, Tensor};

use crate::tensors::Lent;

/// Texts as latents, from :meth:`Model.encode`.
#[pyclass(frozen, get_all, module = "elf_flows._native")]
pub struct Encoded {
    /// Clean latents, ``[B, S, C]``, float32.
    pub latents: Py<PyAny>,
    /// Token ids, ``[B, S]``, int64.
    pub ids: Py<PyAny>,
    /// Tokens of each row's input.
    pub input_lengths: Vec<usize>,
    /// Tokens of each row without filling, its input included.
    pub lengths: Vec<usize>,
}

/// [`Encoded`] on its way to the model.
pub struct Given {
    latents: Lent,
    ids: Lent,
    input_lengths: Vec<usize>,
    lengths: Vec<usize>,
}

impl Given {
    /// The tensors of an [`Encoded`], lent.
    ///
    /// # Errors
    /// If one is no tensor, or cannot be shared.
    pub fn of(py: Python<'_>, encoded: &Encoded) -> PyResult<Self> {
        Ok(Self {
            latents: Lent::new("given.latents", encoded.latents.bind(py))?,
            ids: Lent::new("given.ids", encoded.ids.bind(py))?,
            input_lengths: encoded.input_lengths.clone(),
            lengths: encoded.lengths.clone(),
        })
    }

    /// The same as the library takes it.
    pub fn texts(&self) -> EncodedTexts {
        EncodedTexts {
            latents: self.latents.tensor().shallow_clone(),
            ids: self.ids.tensor().shallow_clone(),
            input_lengths: self.input_lengths.clone(),
            lengths: self.lengths.clone(),
        }
    }
}

/// One number for all rows, or one for each.
pub enum PerRow {
    /// One for all.
    All(f64),
    /// One for each.
    Each(Lent),
}

impl PerRow {
    /// From a number or a tensor.
    ///
    /// # Errors
    /// If it is neither.
    pub fn new(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        match value.hasattr("__dlpack__")? {
            true => Ok(Self::Each(Lent::new(name, value)?)),
            false => Ok(Self::All(value.extract()?)),
        }
    }

    /// One number for each of the rows of `z` `[B, S, C]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn rows(&self, z: &Tensor) -> elf_lm::Result<Tensor> {
        let rows = z.size().first().copied().unwrap_or(0);
        Ok(match self {
            Self::All(value) => Tensor::f_full([rows], *value, (Kind::Float, z.device()))?,
            Self::Each(lent) if lent.tensor().dim() == 0 => lent.tensor().f_expand([rows], false)?,
            Self::Each(lent) => lent.tensor().shallow_clone(),
        })
    }
}
