//! The C functions of `cpp`.

use std::ffi::{CStr, c_char, c_double, c_int, c_void};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

pub(crate) type Text = *mut c_char;

unsafe extern "C" {
    fn elf_kernels_free(text: Text);
    fn elf_kernels_isa() -> *const c_char;
    pub(crate) fn elf_set_up_gpus();
    pub(crate) fn elf_mkl_code() -> c_int;
    pub(crate) fn elf_mkl_use_vector_code(keep: c_int) -> c_int;
    pub(crate) fn elf_flush_denormals() -> c_int;
    pub(crate) fn elf_observe_begin(
        state: *mut c_void,
        told: unsafe extern "C" fn(*mut c_void, *const c_char, u64, u64),
    ) -> u64;
    pub(crate) fn elf_observe_end(handle: u64);
    pub(crate) fn elf_rms_norm(
        x: *const C_tensor,
        w: *const C_tensor,
        eps: c_double,
        to_bf16: c_int,
        out: *mut *mut C_tensor,
    ) -> Text;
    fn elf_kernels_text(bytes: *const c_char, length: usize) -> Text;
    pub(crate) fn elf_joined(
        x: *const C_tensor,
        inputs: *const *mut C_tensor,
        outputs: *const *mut C_tensor,
        n: usize,
        leaves: *const *mut C_tensor,
        n_leaves: usize,
        out: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_recompute(
        x: *const C_tensor,
        state: *mut c_void,
        call: unsafe extern "C" fn(*mut c_void, *const C_tensor, *mut *mut C_tensor) -> Text,
        drop: unsafe extern "C" fn(*mut c_void),
        out: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_swiglu(h: *const C_tensor, out: *mut *mut C_tensor) -> Text;
    pub(crate) fn elf_heads(
        qkv: *const C_tensor,
        q_weight: *const C_tensor,
        k_weight: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        eps: c_double,
        q_scale: c_double,
        q: *mut *mut C_tensor,
        k: *mut *mut C_tensor,
        v: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_plain_swiglu(h: *const C_tensor, out: *mut *mut C_tensor) -> Text;
    pub(crate) fn elf_plain_heads(
        qkv: *const C_tensor,
        q_weight: *const C_tensor,
        k_weight: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        eps: c_double,
        q_scale: c_double,
        q: *mut *mut C_tensor,
        k: *mut *mut C_tensor,
        v: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_gpu_swiglu(h: *const C_tensor, out: *mut *mut C_tensor) -> Text;
    pub(crate) fn elf_gpu_heads(
        qkv: *const C_tensor,
        q_weight: *const C_tensor,
        k_weight: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        eps: c_double,
        q_scale: c_double,
        q: *mut *mut C_tensor,
        k: *mut *mut C_tensor,
        v: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_gpu_norm_size(n: i64) -> c_int;
    pub(crate) fn elf_gpu_norms(x: *const C_tensor, w: *const C_tensor) -> c_int;
    pub(crate) fn elf_gpu_rms_norm(
        x: *const C_tensor,
        branch: *const C_tensor,
        w: *const C_tensor,
        eps: c_double,
        to_bf16: c_int,
        sum: *mut *mut C_tensor,
        out: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_gpu_scores(
        logits: *const C_tensor,
        bias: *const C_tensor,
        ids: *const C_tensor,
        weights: *const C_tensor,
    ) -> c_int;
    pub(crate) fn elf_gpu_cross_entropy(
        logits: *mut C_tensor,
        bias: *const C_tensor,
        ids: *const C_tensor,
        weights: *const C_tensor,
        with_slope: c_int,
        losses: *mut *mut C_tensor,
        bias_slope: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_draw(
        keys: *const C_tensor,
        n: i64,
        normal: c_int,
        counted: c_int,
        out: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_has_kernels(cuda_index: c_int) -> c_int;
    pub(crate) fn elf_compile_kernels(architecture: *const c_char, reason: *mut Text) -> usize;
    pub(crate) fn elf_softmax(x: *const C_tensor, mask: *const C_tensor, out: *mut *mut C_tensor) -> Text;
    pub(crate) fn elf_attend(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        mask: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_cross_entropy(
        logits: *mut C_tensor,
        bias: *const C_tensor,
        ids: *const C_tensor,
        weights: *const C_tensor,
        with_slope: c_int,
        losses: *mut *mut C_tensor,
        bias_slope: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_momentum(
        m: *mut C_tensor,
        g: *const C_tensor,
        u: *mut C_tensor,
        decay: c_double,
        ahead: c_double,
        now: c_double,
        sum_of_squares: *mut c_double,
    ) -> Text;
    pub(crate) fn elf_add_scaled(p: *mut C_tensor, d: *const C_tensor, a: c_double) -> Text;
    pub(crate) fn elf_adam(
        p: *mut C_tensor,
        g: *const C_tensor,
        m: *mut C_tensor,
        v: *mut C_tensor,
        step: *const c_double,
    ) -> Text;
    pub(crate) fn elf_list_to_bf16(p: *const *mut C_tensor, n: usize, out: *mut *mut C_tensor) -> Text;
    pub(crate) fn elf_list_adam(
        p: *const *mut C_tensor,
        g: *const *mut C_tensor,
        m: *const *mut C_tensor,
        v: *const *mut C_tensor,
        n: usize,
        step: *const c_double,
    ) -> Text;
    pub(crate) fn elf_list_momentum(
        m: *const *mut C_tensor,
        g: *const *mut C_tensor,
        n: usize,
        decay: c_double,
        ahead: c_double,
        now: c_double,
        out: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_list_lerp(p: *const *mut C_tensor, q: *const *mut C_tensor, n: usize, weight: c_double) -> Text;
    pub(crate) fn elf_list_add(p: *const *mut C_tensor, d: *const *mut C_tensor, n: usize, a: c_double) -> Text;
    pub(crate) fn elf_list_scale(p: *const *mut C_tensor, n: usize, factor: *const C_tensor) -> Text;
    pub(crate) fn elf_list_zero(p: *const *mut C_tensor, n: usize) -> Text;
    pub(crate) fn elf_list_without_grad(p: *const *mut C_tensor, n: usize) -> Text;
    pub(crate) fn elf_list_norms(p: *const *mut C_tensor, n: usize, out: *mut *mut C_tensor) -> Text;
    pub(crate) fn elf_parallel(n: i64, work: *mut c_void, run: unsafe extern "C" fn(*mut c_void, i64)) -> Text;
    pub(crate) fn elf_int8_pack(w: *const C_tensor, packed: *mut *mut C_tensor, scales: *mut *mut C_tensor) -> Text;
    pub(crate) fn elf_int8_linear(
        x: *const C_tensor,
        packed: *const C_tensor,
        scales: *const C_tensor,
        bias: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> Text;
    pub(crate) fn elf_allow_tf32(allow: c_int);
}

/// The text of an error; `None` without one.
pub(crate) fn check(text: Text) -> Result<(), TchError> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: the functions above return null or an own string that ends in 0, which is freed only here.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    unsafe { elf_kernels_free(text) };
    Err(TchError::Torch(message))
}

/// A message that C++ reads and frees.
pub(crate) fn text(message: &str) -> Text {
    // SAFETY: the bytes live through the call, which copies them.
    unsafe { elf_kernels_text(message.as_ptr().cast(), message.len()) }
}

/// A tensor that a function above made.
pub(crate) fn taken(made: *mut C_tensor) -> Tensor {
    // SAFETY: it was made by `new at::Tensor`, as tch's own tensors are, and has no other owner.
    unsafe { Tensor::from_ptr(made) }
}

pub(crate) fn isa() -> &'static str {
    // SAFETY: a string literal.
    unsafe { CStr::from_ptr(elf_kernels_isa()) }.to_str().unwrap_or("base")
}
