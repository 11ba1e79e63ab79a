//! Which matrix products MKL takes on processors that are not Intel's.

use std::ffi::c_int;

/// MKL, which libtorch's fp32 products come from, asks this function of its own whether the processor is Intel's. If it is not, MKL takes
/// generic code whatever the processor can do; if it is, it goes by what the processor says of itself. A program's own function
/// of that name stands before a library's, so here the answer is always yes, and AMD's processors run the code for AVX2 and AVX-512 too.
/// What that is worth: `docs/performance.md`.
#[unsafe(no_mangle)]
extern "C" fn mkl_serv_intel_cpu_true() -> c_int {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The function that libtorch calls is the one that a look-up by name finds first.
    #[test]
    #[cfg(target_os = "linux")]
    fn mkl_finds_our_answer_before_its_own() {
        if !tch::utils::has_mkl() {
            return;
        }
        let program = libloading::os::unix::Library::this();
        // SAFETY: the name is looked up, and called only if it is the function above.
        let found = unsafe { program.get::<extern "C" fn() -> c_int>(b"mkl_serv_intel_cpu_true\0") };
        let found = *found.expect("the program exports it, since libtorch_cpu refers to it");
        assert!(std::ptr::fn_addr_eq(found, mkl_serv_intel_cpu_true as extern "C" fn() -> c_int));
    }
}
