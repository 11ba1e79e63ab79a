//! The linker's options for a library that is loaded by a Python interpreter.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
