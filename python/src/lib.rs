//! The native part of the Python package `elf_flows`: [`elf_lm`] with Python's types, exceptions and signals.
//!
//! It deliberately has no logic of its own: arguments become those of `elf_lm`, and results become Python objects. It does
//! not link Python, and it uses the libtorch that Python's `torch` has loaded.

mod errors;
mod latents;
mod metrics;
mod model;
mod settings;
mod tensors;
mod texts;
mod training;
mod trajectory;
mod waiting;
mod worker;

use pyo3::prelude::*;

/// The native part of `elf_flows`.
#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use crate::latents::Encoded;
    #[pymodule_export]
    use crate::metrics::{bleu, rouge};
    #[pymodule_export]
    use crate::model::{Model, load};
    #[pymodule_export]
    use crate::training::train;
    #[pymodule_export]
    use crate::trajectory::Trajectory;
    #[pymodule_export]
    use crate::waiting::{panic_elsewhere, stop_all};

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        use pyo3::types::PyModuleMethods;
        // The code that the program computes with, so that the same seeds give the same texts.
        elf_lm::use_vector_code();
        elf_lm::flush_denormals();
        module.add("TRAJECTORY_SCRIPT", elf_lm::trajectory_view::SCRIPT)?;
        module.add("TRAJECTORY_STYLE", elf_lm::trajectory_view::STYLE)
    }
}
