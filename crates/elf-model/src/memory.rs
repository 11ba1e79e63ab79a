//! The memory of a training step, by formula; tests/memory.rs compares it with the memory in use.

use elf_core::{Precision, PrecisionPolicy};

use crate::ElfConfig;
use crate::attention::keeps_scores;
use crate::block::learns_side_by_side;

impl ElfConfig {
    /// Bytes that the trunk keeps between its forward and its backward pass, for `rows` rows of `text` positions.
    ///
    /// A token keeps, in each block, twelve vectors of width H (both normalisations' inputs and outputs, the joint projection,
    /// queries, keys and values by head, the mixture before and after its transposition), three of the inner width, and, where
    /// attention stores its weights on a CPU, one weight for each head and token that it sees.
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

    /// The same where blocks are recomputed: every block's input, and all of one block.
    pub fn activation_bytes_recomputed(&self, rows: u64, text: u64, policy: PrecisionPolicy, on_cpu: bool) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let inputs = rows * (size(self.prefix_len()) + text) * size(self.depth) * size(self.hidden_size);
        let whole = self.activation_bytes(rows, text, policy, on_cpu);
        inputs * bytes(policy.blocks) + whole / size(self.depth).max(1)
    }

    /// Bytes of the blocks' gradients in a CPU's backward pass over `rows` rows of `text` positions, where each of `threads` threads has
    /// its own.
    pub fn thread_gradient_bytes(&self, rows: u64, text: u64, policy: PrecisionPolicy, threads: u64) -> u64 {
        let (hidden, inner) = (self.hidden_size.max(0), self.mlp_hidden().max(0));
        let tokens = rows * (self.prefix_len().max(0) as u64 + text);
        let several = policy.blocks == Precision::F32 && threads > 1;
        match several && learns_side_by_side(tokens as i64, threads as i64, hidden) {
            true => threads * self.depth.max(0) as u64 * (hidden * (4 * hidden + 3 * inner)) as u64 * 4,
            false => 0,
        }
    }
}

fn bytes(precision: Precision) -> u64 {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}
