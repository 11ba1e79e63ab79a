//! Uniform numbers that depend on nothing but what they are for.

/// Uniform numbers that are a function of a name and some numbers.
pub(crate) struct Coins(blake3::OutputReader);

impl Coins {
    /// Those of a name and these numbers.
    pub(crate) fn new(name: &[u8], numbers: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(name);
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        Self(hasher.finalize_xof())
    }

    /// The next number in [0, 1): 53 bits, which f64 holds exactly.
    pub(crate) fn uniform(&mut self) -> f64 {
        let mut next = [0u8; 8];
        self.0.fill(&mut next);
        (u64::from_le_bytes(next) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }
}
