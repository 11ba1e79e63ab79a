//! The library's errors as Python exceptions, with the same texts.

use elf_lm::{Error, ErrorKind};
use pyo3::PyErr;

/// The exceptions, which the Python part of the package defines.
mod python {
    pyo3::import_exception!(elf_flows.errors, ElfError);
    pyo3::import_exception!(elf_flows.errors, ClosedError);
    pyo3::import_exception!(elf_flows.errors, InternalError);
    pyo3::import_exception!(elf_flows.errors, MismatchError);
    pyo3::import_exception!(elf_flows.errors, PlaceError);
    pyo3::import_exception!(elf_flows.errors, RequestError);
    pyo3::import_exception!(elf_flows.errors, SettingError);
    pyo3::import_exception!(elf_flows.errors, TensorError);
}

/// The exception for an error of the library.
pub fn raised(error: &Error) -> PyErr {
    let text = error.report();
    match error.kind() {
        ErrorKind::Setting => python::SettingError::new_err(text),
        ErrorKind::Place => python::PlaceError::new_err(text),
        ErrorKind::Mismatch => python::MismatchError::new_err(text),
        ErrorKind::Request => python::RequestError::new_err(text),
        _ => python::ElfError::new_err(text),
    }
}

/// An argument that is out of range.
pub fn setting(text: impl Into<String>) -> PyErr {
    python::SettingError::new_err(text.into())
}

/// A tensor that cannot be used.
pub fn tensor(text: impl Into<String>) -> PyErr {
    python::TensorError::new_err(text.into())
}

/// A use of a closed model.
pub fn closed() -> PyErr {
    python::ClosedError::new_err("the model is closed: load it again with `elf_flows.load`")
}

/// A use of a model in a process that was forked from the one that loaded it.
pub fn forked() -> PyErr {
    python::ClosedError::new_err(
        "the model was loaded before this process was forked: load it here, or start processes with \"spawn\"",
    )
}

/// A panic, caught.
pub fn internal(panic: &(dyn std::any::Any + Send)) -> PyErr {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown".to_owned());
    python::InternalError::new_err(format!("a mistake in elf-flows or libtorch, which should be reported: {text}"))
}
