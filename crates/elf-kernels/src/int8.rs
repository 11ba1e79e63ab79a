//! Linear layers of 8-bit integers.

use std::ptr::{null, null_mut};

use tch::{TchError, Tensor};

use crate::ffi;

/// A linear layer's weight as 8-bit integers with a scale for each output, in the order in which the processor multiplies them.
///
/// Activations are rounded to 8 bits as they come, each token by its own scale; products are summed in 32 bits and are exact.
#[derive(Debug)]
pub struct Int8Matrix {
    packed: Tensor,
    /// `[out]`, fp32.
    scales: Tensor,
}

impl Int8Matrix {
    /// Rounds a weight `[out, in]` on the CPU.
    ///
    /// # Errors
    /// If it is not a matrix on the CPU, or libtorch was built without oneDNN.
    pub fn new(weight: &Tensor) -> Result<Self, TchError> {
        let (mut packed, mut scales) = (null_mut(), null_mut());
        // SAFETY: the tensor lives through the call; both results are set if there is no error.
        ffi::check(unsafe { ffi::elf_int8_pack(weight.as_ptr(), &mut packed, &mut scales) })?;
        Ok(Self { packed: ffi::taken(packed), scales: ffi::taken(scales) })
    }

    /// Another handle on the same numbers.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { packed: self.packed.shallow_clone(), scales: self.scales.shallow_clone() }
    }

    /// `x` `[.., in]`, fp32 or bf16, to `[.., out]` in the same kind, with a bias `[out]`. No gradient is recorded.
    ///
    /// # Errors
    /// If shapes or kinds do not fit.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let mut out = null_mut();
        let bias = bias.map_or(null(), Tensor::as_ptr);
        // SAFETY: all tensors live through the call; `out` is set if there is no error.
        ffi::check(unsafe {
            ffi::elf_int8_linear(x.as_ptr(), self.packed.as_ptr(), self.scales.as_ptr(), bias, &mut out)
        })?;
        Ok(ffi::taken(out))
    }
}
