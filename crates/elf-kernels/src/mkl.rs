//! Which code MKL takes for fp32 products on x86-64. What it is worth: `docs/performance.md`.

use std::env;

use crate::ffi;

/// MKL's code for products, as [`use_vector_code`] found or set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// MKL decides; there is no MKL, or this is no processor with AVX2, or this is not Linux.
    Own,
    /// Code for AVX2 in which a row's result does not depend on the rows beside it.
    StrictAvx2,
    /// Code for AVX-512 in which a row's result does not depend on the rows beside it.
    StrictAvx512,
    /// What the user has asked for in `MKL_CBWR`.
    Users,
}

/// Has MKL take code for the vector instructions that the processor has, in its strict mode, for this process.
///
/// MKL asks whether the processor is Intel's. If it is not, MKL takes generic code whatever the processor can do; if it is, the last
/// bits of a row of a product depend on the row's place in the batch, so that a text depends on the texts beside it. With this
/// function AMD's processors run the code for AVX2, and on either strict mode makes a row's result a function of that row. That was
/// tried with the code for AVX2 (`tests/rows_in_any_order.rs`). Strict code for AVX-512 is taken on Intel's processors alone, and has
/// been tried on none.
///
/// To be called at the beginning of a program, before tensors are made: once MKL has computed anything it stays with its code. A
/// branch that the user has set in `MKL_CBWR` stays.
pub fn use_vector_code() -> Code {
    let users = env::var_os("MKL_CBWR").is_some_and(|value| !value.is_empty());
    // SAFETY: sets MKL's mode, or leaves it if MKL is at work already.
    match unsafe { ffi::elf_mkl_use_vector_code(users.into()) } {
        1 => Code::StrictAvx2,
        2 => Code::StrictAvx512,
        3 => Code::Users,
        _ => Code::Own,
    }
}
