//! How much memory a training step takes, by formula.

use elf_core::{Precision, PrecisionPolicy};

use crate::ElfConfig;
use crate::attention::keeps_scores;

impl ElfConfig {
    /// Bytes that the trunk keeps between its forward and its backward pass, for `rows` rows of `text` positions.
    ///
    /// A token keeps, in each block, twelve vectors of width H (both normalisations' inputs and outputs, the joint projection,
    /// queries, keys and values by head, the mixture before and after it is laid out), three of the inner width, and, where
    /// attention keeps its weights on a CPU, one weight for each head and token that it sees.
    pub fn activation_bytes(&self, rows: u64, text: u64, policy: PrecisionPolicy, on_cpu: bool) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let tokens = size(self.prefix_len()) + text;
        let weights = match keeps_scores(tokens as i64, policy.blocks, on_cpu) {
            true => size(self.num_heads) * tokens,
            false => 0,
        };
        let token = 12 * size(self.hidden_size) + 3 * size(self.mlp_hidden()) + weights;
        rows * tokens * size(self.depth) * token * bytes(policy.blocks)
    }

    /// As [`ElfConfig::activation_bytes`] where blocks are recomputed: every block's input, and one block as a whole.
    pub fn activation_bytes_recomputed(&self, rows: u64, text: u64, policy: PrecisionPolicy, on_cpu: bool) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let inputs = rows * (size(self.prefix_len()) + text) * size(self.depth) * size(self.hidden_size);
        let whole = self.activation_bytes(rows, text, policy, on_cpu);
        inputs * bytes(policy.blocks) + whole / size(self.depth).max(1)
    }
}

fn bytes(precision: Precision) -> u64 {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Preset;

    #[test]
    fn elf_b_keeps_a_gigabyte_for_2144_tokens_in_bf16() {
        let b = Preset::B.config(512, 32100);
        let policy = PrecisionPolicy::with_blocks(Precision::Bf16);
        let token = 12 * 768 + 3 * 2048 + 12 * 268;
        assert_eq!(b.activation_bytes(8, 256, policy, true), 8 * 268 * 12 * token * 2);
        assert!(b.activation_bytes(8, 256, policy, false) < b.activation_bytes(8, 256, policy, true));
        assert_eq!(b.activation_bytes(8, 1024, PrecisionPolicy::F32, true), 8 * 1036 * 12 * (12 * 768 + 3 * 2048) * 4);
    }
}
