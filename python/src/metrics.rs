//! Figures of texts.

use elf_lm::bleu::Bleu;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::errors;
use crate::settings::texts;

/// The references of each prediction.
fn references(list: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<String>>> {
    if list.is_instance_of::<PyString>() {
        return Ok(vec![texts("references", list)?]);
    }
    let each = list.try_iter()?.enumerate().map(|(place, one)| {
        let one = one?;
        match one.cast::<PyString>() {
            Ok(text) => Ok(vec![text.extract()?]),
            Err(_) => texts(&format!("references[{place}]"), &one),
        }
    });
    each.collect()
}

/// BLEU of predictions against one or several references each, from 0 to 100.
///
/// The defaults are those of ELF's published numbers; with both switched off, it is sacreBLEU's default.
#[pyfunction]
#[pyo3(signature = (predictions, references, *, lowercase = true, effective_order = true))]
pub fn bleu(
    py: Python<'_>,
    predictions: &Bound<'_, PyAny>,
    references: &Bound<'_, PyAny>,
    lowercase: bool,
    effective_order: bool,
) -> PyResult<f64> {
    let predictions = texts("predictions", predictions)?;
    let references = self::references(references)?;
    let bleu = Bleu { lowercase, effective_order, ..Bleu::lowercase_effective() };
    let score = py.detach(|| bleu.corpus(&predictions, &references));
    Ok(score.map_err(|error| errors::raised(&error.into()))?.score)
}

/// ROUGE-1, ROUGE-2 and ROUGE-L (F1) of predictions, from 0 to 100, as ``rouge1``, ``rouge2`` and ``rougeL``.
#[pyfunction]
pub fn rouge<'py>(
    py: Python<'py>,
    predictions: &Bound<'py, PyAny>,
    references: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let predictions = texts("predictions", predictions)?;
    let references = self::references(references)?;
    let pairs = py.detach(|| elf_lm::rouge::score_pairs(&predictions, &references));
    let mean = elf_lm::rouge::mean(&pairs.map_err(|error| errors::raised(&error.into()))?);
    let named = PyDict::new(py);
    for (name, value) in [("rouge1", mean.rouge1), ("rouge2", mean.rouge2), ("rougeL", mean.rouge_l)] {
        named.set_item(name, value)?;
    }
    Ok(named)
}
