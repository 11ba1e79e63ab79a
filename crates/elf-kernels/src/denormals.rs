//! Numbers that are too small to be normal.

use crate::ffi;

/// Makes results below 1.2e-38 zero, and such inputs too, in the calling thread, in libtorch's threads and in all threads that these
/// start. Returns whether the processor can.
///
/// Processors compute with such numbers many times as slowly as with others, and a softmax over many words has a gradient full of
/// them. Call this at the beginning of a program; measurements are in `docs/performance.md`.
pub fn flush_denormals() -> bool {
    // SAFETY: sets a mode of the threads' floating-point units.
    unsafe { ffi::elf_flush_denormals() != 0 }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    fn product(x: Tensor) -> f64 {
        (&x * 1e-20).sum(Kind::Float).double_value(&[])
    }

    #[test]
    fn denormals_are_zero_in_this_thread_and_in_libtorchs() {
        let small = || Tensor::from_slice(&[1e-20f32; 64]);
        if !flush_denormals() {
            eprintln!("skipped: this processor cannot flush denormal numbers");
            return;
        }
        assert_eq!(product(small()), 0.0);
        let parts = (0..4 * tch::get_num_threads()).map(|_| small()).collect();
        assert!(crate::parallel(parts, product).unwrap().iter().all(|&x| x == 0.0));
        assert_eq!(std::thread::spawn(move || product(small())).join().unwrap(), 0.0);
    }
}
