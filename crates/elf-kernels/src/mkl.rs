//! The code that MKL uses for fp32 products on x86-64. Measurements: `docs/performance.md`.

use std::env;
use std::sync::Once;

use tch::{Device, Kind, Tensor};

use crate::ffi;

/// MKL's code for products, as found or set by [`use_vector_code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// MKL's own choice: there is no MKL, the processor has no AVX2, or the system is not Linux.
    Own,
    /// Code for AVX2 in which a row's result does not depend on other rows.
    StrictAvx2,
    /// Code for AVX-512 in which a row's result does not depend on other rows.
    StrictAvx512,
    /// The user's choice in `MKL_CBWR`.
    Users,
}

/// Whether a row of an fp32 product on the CPU depends neither on the other rows nor on their number: MKL computes in its strict mode, by
/// [`use_vector_code`] or by the user's choice.
pub fn rows_stand_alone() -> bool {
    // SAFETY: asks MKL for its mode.
    matches!(unsafe { ffi::elf_mkl_code() }, 1 | 2)
}

/// Makes MKL use code for the processor's vector instructions, in its strict mode, in this process.
///
/// On processors of other vendors than Intel, MKL uses generic code. On Intel's processors, the last bits of a row of a
/// product depend on the row's place in the batch, so that a text depends on the other texts. With this function, all
/// processors run the code for AVX-512, or for AVX2 where they have no AVX-512, and strict mode makes a row's result a
/// function of the row. `tests/rows_in_any_order.rs` tests this with the code of the processor that runs it.
///
/// Call this at the beginning of a program, before tensors are made: MKL keeps its code after its first computation. A
/// branch that the user set in `MKL_CBWR` stays.
pub fn use_vector_code() -> Code {
    let users = env::var_os("MKL_CBWR").is_some_and(|value| !value.is_empty());
    // SAFETY: sets MKL's mode, or leaves it if MKL has computed already.
    match unsafe { ffi::elf_mkl_use_vector_code(users.into()) } {
        1 => Code::StrictAvx2,
        2 => Code::StrictAvx512,
        3 => Code::Users,
        _ => Code::Own,
    }
}

/// Makes MKL choose its code for products and for functions of vectors now, on the calling thread.
///
/// MKL chooses at its first call of each, unguarded. Where two threads made the first calls of a process at once, `tanh` was seen to be off by
/// 5e-5 in one of them, in one process of two hundred. Whoever makes parameters calls this; all calls but the first cost nothing.
pub fn settle() {
    static SETTLED: Once = Once::new();
    SETTLED.call_once(|| {
        let x = Tensor::ones([16, 16], (Kind::Float, Device::Cpu));
        _ = x.matmul(&x).tanh().exp().log().cos() + x.sin() + x.erf();
    });
}
