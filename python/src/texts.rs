//! Generated texts as Python objects.

use elf_lm::text::text_loop::TextFrame;
use elf_lm::{GeneratedText, Model, ReadText};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// A text with its tokens, on its way to Python.
pub struct Told {
    text: String,
    pieces: Vec<String>,
    ids: Vec<i64>,
    probabilities: Option<Vec<f64>>,
    confidence: Option<f64>,
    input_cut: bool,
    filled: Option<Vec<String>>,
}

impl Told {
    fn new(model: &Model, text: String, ids: Vec<i64>, log_probs: Option<&[f32]>) -> elf_lm::Result<Self> {
        let narrow = ids.iter().map(|&id| i32::try_from(id)).collect::<Result<Vec<_>, _>>()?;
        let pieces = model.tokenizer().pieces(&narrow)?;
        let probabilities = log_probs.map(|all| all.iter().map(|&p| f64::from(p).exp()).collect());
        Ok(Self { text, pieces, ids, probabilities, confidence: None, input_cut: false, filled: None })
    }

    /// A finished text.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn finished(model: &Model, made: GeneratedText) -> elf_lm::Result<Self> {
        let told = Self::new(model, made.text, made.tokens, made.log_probs.as_deref())?;
        let filled = (!made.filled.is_empty()).then_some(made.filled);
        Ok(Self { confidence: made.confidence, input_cut: made.input_cut, filled, ..told })
    }

    /// A text that forms.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn forming(model: &Model, frame: &TextFrame) -> elf_lm::Result<Self> {
        Self::new(model, frame.text.clone(), frame.tokens.clone(), frame.log_probs.as_deref())
    }

    /// A text that was read from latents.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn read(model: &Model, read: ReadText) -> elf_lm::Result<Self> {
        Self::new(model, read.text, read.tokens, Some(&read.log_probs))
    }

    /// An `elf_flows.Text`.
    ///
    /// # Errors
    /// If Python has no memory.
    pub fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        let given = PyDict::new(py);
        given.set_item("tokens", self.pieces)?;
        given.set_item("token_ids", self.ids)?;
        given.set_item("probabilities", self.probabilities)?;
        given.set_item("confidence", self.confidence)?;
        given.set_item("input_cut", self.input_cut)?;
        given.set_item("filled", self.filled)?;
        class(py, "Text")?.call((self.text,), Some(&given))
    }
}

/// An `elf_flows.Texts`.
///
/// # Errors
/// If Python has no memory.
pub fn list(py: Python<'_>, all: Vec<Told>) -> PyResult<Py<PyAny>> {
    let texts = all.into_iter().map(|told| told.into_python(py)).collect::<PyResult<Vec<_>>>()?;
    Ok(class(py, "Texts")?.call1((texts,))?.unbind())
}

/// A class of the Python part of the package.
///
/// # Errors
/// If it has none of this name.
pub fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("elf_flows.texts")?.getattr(name)
}
