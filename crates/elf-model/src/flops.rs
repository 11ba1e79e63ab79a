//! Floating-point operations of a forward pass, counted by formula.

use crate::ElfConfig;
use crate::embed::FEATURES;

/// Operations of matrix products, a multiplication and an addition counting as two. Everything else (normalisations,
/// activations, softmax, sums) is not counted, as is usual, since matrix units do not compute it.
///
/// A backward pass costs twice its forward pass: one product for the inputs' gradients, one for the weights'.
impl ElfConfig {
    /// The trunk for one row of `text` positions, self-conditioned.
    ///
    /// With N = prefix + text: embedding a position of the text takes `2 (2 C C + C b + b H)`, a token in a block
    /// `2 (4 H H + 3 H I)` and `4 N H` in attention (scores and mixture), the prefix's embedders take `2 (256 H + H H)` each. An estimate
    /// of each token from its own noisy latent along K axes takes `2 (2 C C + 2 V K + C H)` more.
    pub fn trunk_flops(&self, text: u64) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let (c, b, h) = (size(self.text_encoder_dim), size(self.bottleneck_dim), size(self.hidden_size));
        let (inner, n) = (size(self.mlp_hidden()), size(self.prefix_len()) + text);
        let entry = text * 2 * (2 * c * c + c * b + b * h);
        let embedders = if self.num_self_cond_cfg_tokens > 0 { 2 } else { 1 };
        let scalars = embedders * 2 * (FEATURES as u64 * h + h * h);
        let block = n * (2 * (4 * h * h + 3 * h * inner) + 4 * n * h);
        entry + scalars + size(self.depth) * block
    }

    /// The head for clean latents: `2 H C` per position.
    pub fn clean_flops(&self, positions: u64) -> u64 {
        positions * 2 * (self.hidden_size * self.text_encoder_dim).max(0) as u64
    }

    /// The vocabulary head: `2 (H C + C V)` per position.
    pub fn logits_flops(&self, positions: u64) -> u64 {
        let (c, h, v) = (self.text_encoder_dim, self.hidden_size, self.vocab_size);
        positions * 2 * (h * c + c * v).max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use crate::Preset;

    /// Counted by hand: C 4, bottleneck 3, H 8, 2 heads, inner 21, 1 + 1 + 1 prefix tokens, 2 text positions, 2 blocks, V 10.
    #[test]
    fn a_small_network_counted_by_hand() {
        let config = crate::ElfConfig {
            text_encoder_dim: 4,
            hidden_size: 8,
            depth: 2,
            num_heads: 2,
            bottleneck_dim: 3,
            num_time_tokens: 1,
            num_self_cond_cfg_tokens: 1,
            num_model_mode_tokens: 1,
            vocab_size: 10,
            mlp_ratio: 4.0,
            proj_dropout: 0.0,
            learned_latents: false,
            context_table: false,
            vocab_head_norm: false,
            word_guide_dims: 0,
        };
        assert_eq!(config.mlp_hidden(), 21);
        // A text position: 8 -> 4 is 64, 4 -> 3 is 24, 3 -> 8 is 48.
        let entry = 2 * (64 + 24 + 48);
        // Each of two scalars: 256 -> 8 is 4096, 8 -> 8 is 128.
        let scalars = 2 * (4096 + 128);
        // Five tokens: qkv 8 -> 24 is 384, proj 128, w12 8 -> 42 is 672, w3 21 -> 8 is 336; scores 5 * 5 * 8 * 2 = 400, mixture 400.
        let block = 5 * (384 + 128 + 672 + 336) + 400 + 400;
        assert_eq!(config.trunk_flops(2), entry + scalars + 2 * block);
        assert_eq!(config.clean_flops(3), 3 * 64);
        assert_eq!(config.logits_flops(3), 3 * (64 + 80));
    }

    #[test]
    fn elf_b_takes_about_two_operations_a_block_parameter() {
        let config = Preset::B.config(512, 32100);
        let blocks = 12 * (4 * 768 * 768 + 3 * 768 * 2048);
        let ratio = config.trunk_flops(1024) as f64 / (2.0 * 1036.0 * f64::from(blocks));
        assert!((1.0..1.3).contains(&ratio), "{ratio}: attention and embedding are more");
    }
}
