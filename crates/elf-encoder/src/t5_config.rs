//! The settings of a T5 encoder, as Hugging Face's `config.json` states them.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use crate::relative_position::RelativeBuckets;
use crate::{Error, Result};

/// The feed-forward layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum FeedForward {
    /// `wo(relu(wi(x)))`: T5 as first released (t5-small and its siblings).
    #[serde(rename = "relu")]
    Relu,
    /// `wo(gelu_tanh(wi_0(x)) * wi_1(x))`: T5 v1.1, FLAN-T5, mT5.
    #[serde(rename = "gated-gelu")]
    GatedGelu,
}

impl FeedForward {
    /// As Hugging Face's files name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::GatedGelu => "gated-gelu",
        }
    }

    /// The matrices between `d_model` and `d_ff`.
    fn matrices(self) -> i64 {
        match self {
            Self::Relu => 2,
            Self::GatedGelu => 3,
        }
    }
}

/// The sizes and constants of a T5 encoder; the decoder's are not kept.
///
/// Settings that Hugging Face's files may leave out have its defaults. Dropout is not among them: the encoder is frozen.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct T5Config {
    /// Entries of the vocabulary.
    pub vocab_size: i64,
    /// C, channels of the residual stream and so of a latent.
    pub d_model: i64,
    /// Channels of one head; heads times this need not be `d_model`.
    pub d_kv: i64,
    /// Inner width of the feed-forward layers.
    pub d_ff: i64,
    /// Blocks.
    pub num_layers: i64,
    /// Attention heads.
    pub num_heads: i64,
    /// Buckets of relative positions, both directions together.
    #[serde(default = "default_buckets")]
    pub relative_attention_num_buckets: i64,
    /// Distances from here on share the last bucket.
    #[serde(default = "default_max_distance")]
    pub relative_attention_max_distance: i64,
    /// Added to the mean square before its root is taken.
    #[serde(default = "default_epsilon")]
    pub layer_norm_epsilon: f64,
    /// The kind of feed-forward layer.
    #[serde(default = "default_feed_forward")]
    pub feed_forward_proj: FeedForward,
    /// Scales all standard deviations of a random start.
    #[serde(default = "default_factor")]
    pub initializer_factor: f64,
}

fn default_buckets() -> i64 {
    32
}
fn default_max_distance() -> i64 {
    128
}
fn default_epsilon() -> f64 {
    1e-6
}
fn default_feed_forward() -> FeedForward {
    FeedForward::Relu
}
fn default_factor() -> f64 {
    1.0
}

impl T5Config {
    /// T5-small, whose encoder the paper's models take.
    pub fn small() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: default_buckets(),
            relative_attention_max_distance: default_max_distance(),
            layer_norm_epsilon: default_epsilon(),
            feed_forward_proj: default_feed_forward(),
            initializer_factor: default_factor(),
        }
    }

    /// Reads and checks Hugging Face's `config.json`. Keys that do not concern the encoder are ignored.
    ///
    /// # Errors
    /// If it cannot be read, is of another family of models, lacks a size, or contradicts itself.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(elf_core::Error::io("read", path))?;
        Self::from_json(&text).map_err(|e| e.in_file(path))
    }

    /// As [`T5Config::load`], from the text of the file.
    ///
    /// # Errors
    /// As [`T5Config::load`].
    pub fn from_json(text: &str) -> Result<Self> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|e| Error::Config(format!("not JSON: {e}")))?;
        // mT5 is T5 v1.1 with another vocabulary; UMT5 has position weights in every block and is another model.
        match value.get("model_type").map(|m| m.as_str().unwrap_or_default()) {
            None | Some("t5" | "mt5") => {}
            Some(other) => return Err(Error::Config(format!("its model_type is `{other}`; `t5` is needed"))),
        }
        let config: Self = Self::deserialize(&value)
            .map_err(|e| Error::Config(format!("{e} (feed_forward_proj may be relu or gated-gelu)")))?;
        let gated = config.feed_forward_proj == FeedForward::GatedGelu;
        if value.get("is_gated_act").and_then(|g| g.as_bool()).is_some_and(|g| g != gated) {
            return Err(Error::Config(format!(
                "is_gated_act contradicts feed_forward_proj `{}`",
                config.feed_forward_proj.name()
            )));
        }
        let activation = if gated { ["gelu_new", "gelu"] } else { ["relu", "relu"] };
        if let Some(given) = value.get("dense_act_fn").and_then(|a| a.as_str())
            && !activation.contains(&given)
        {
            let kind = config.feed_forward_proj.name();
            return Err(Error::Config(format!("dense_act_fn `{given}` contradicts feed_forward_proj `{kind}`")));
        }
        config.check()?;
        Ok(config)
    }

    /// Checks that these settings make a model of a size that can exist.
    ///
    /// # Errors
    /// [`Error::Config`], which names the setting.
    pub fn check(&self) -> Result<()> {
        // Far above every released model, low enough that no product of three overflows.
        for (name, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("d_model", self.d_model, 1 << 17),
            ("d_kv", self.d_kv, 1 << 14),
            ("d_ff", self.d_ff, 1 << 19),
            ("num_layers", self.num_layers, 1 << 10),
            ("num_heads", self.num_heads, 1 << 10),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets, 1 << 16),
            ("relative_attention_max_distance", self.relative_attention_max_distance, 1 << 24),
        ] {
            // Without blocks the encoder is a token table.
            let least = i64::from(name != "num_layers");
            if !(least..=most).contains(&value) {
                return Err(Error::Config(format!("{name} is {value}; it must be between {least} and {most}")));
            }
        }
        for (name, value) in
            [("layer_norm_epsilon", self.layer_norm_epsilon), ("initializer_factor", self.initializer_factor)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::Config(format!("{name} is {value}; it must be a positive number")));
            }
        }
        self.buckets().map(|_| ())
    }

    pub(crate) fn buckets(&self) -> Result<RelativeBuckets> {
        RelativeBuckets::new(self.relative_attention_num_buckets, self.relative_attention_max_distance)
    }

    /// Channels of all heads together.
    pub(crate) fn inner_dim(&self) -> i64 {
        self.num_heads * self.d_kv
    }

    /// Numbers in all of the encoder's parameters.
    pub fn parameter_count(&self) -> i64 {
        let attention = 4 * self.d_model * self.inner_dim();
        let feed_forward = self.feed_forward_proj.matrices() * self.d_model * self.d_ff;
        let block = attention + feed_forward + 2 * self.d_model;
        let positions = if self.num_layers > 0 { self.relative_attention_num_buckets * self.num_heads } else { 0 };
        self.num_layers * block + positions + self.d_model + self.vocab_size * self.d_model
    }

    /// Floating-point operations of encoding one row of `positions` ids: matrix products alone, a multiplication and an
    /// addition counting as two. A block takes `2 (4 C A + m C F)` a position, with A channels in all heads together, F the inner
    /// width and m 2 or 3 matrices, and `4 S A` in attention.
    pub fn encode_flops(&self, positions: u64) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let (c, a, f) = (size(self.d_model), size(self.inner_dim()), size(self.d_ff));
        let position = 2 * (4 * c * a + size(self.feed_forward_proj.matrices()) * c * f) + 4 * positions * a;
        size(self.num_layers) * positions * position
    }

    /// Writes a `config.json` that [`T5Config::load`] and Hugging Face's `T5EncoderModel` read.
    ///
    /// # Errors
    /// If the file cannot be written. An earlier file of this name is then kept.
    pub fn save(&self, path: &Path) -> Result<()> {
        let gated = self.feed_forward_proj == FeedForward::GatedGelu;
        let value = json!({
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "d_ff": self.d_ff,
            "num_layers": self.num_layers,
            "num_decoder_layers": self.num_layers,
            "num_heads": self.num_heads,
            "relative_attention_num_buckets": self.relative_attention_num_buckets,
            "relative_attention_max_distance": self.relative_attention_max_distance,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "feed_forward_proj": self.feed_forward_proj.name(),
            "is_gated_act": gated,
            "dense_act_fn": if gated { "gelu_new" } else { "relu" },
            "initializer_factor": self.initializer_factor,
            "dropout_rate": 0.0,
            "is_encoder_decoder": true,
            "pad_token_id": 0,
            "eos_token_id": 1,
        });
        Ok(elf_files::write(path, format!("{value:#}\n")).map_err(elf_core::Error::io("write", path))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What t5-small's file says, shortened: it has neither feed_forward_proj nor relative_attention_max_distance.
    const SMALL: &str = r#"{"model_type": "t5", "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
        "dropout_rate": 0.1, "initializer_factor": 1.0, "layer_norm_epsilon": 1e-06, "num_heads": 8, "num_layers": 6,
        "relative_attention_num_buckets": 32, "task_specific_params": {"summarization": {"num_beams": 4}}, "vocab_size": 32128}"#;

    #[test]
    fn the_first_released_form_is_read() {
        let config = T5Config::from_json(SMALL).unwrap();
        assert_eq!(config.feed_forward_proj, FeedForward::Relu);
        assert_eq!((config.d_model, config.relative_attention_max_distance), (512, 128));
        assert_eq!(config.parameter_count(), 35_330_816);
        // A position of one block: q, k, v, o 4 * 512 * 512, two matrices of 512 * 2048; scores and mixture over 10 positions.
        assert_eq!(config.encode_flops(10), 6 * 10 * (2 * (4 * 512 * 512 + 2 * 512 * 2048) + 2 * 2 * 10 * 512));
    }

    #[test]
    fn contradictions_gaps_and_other_models_are_named() {
        for (from, to, message) in [
            ("\"d_kv\": 64,", "", "d_kv"),
            ("\"d_kv\": 64", "\"d_kv\": 0", "d_kv is 0"),
            ("\"d_kv\": 64", "\"d_kv\": \"64\"", "expected i64"),
            ("\"d_ff\": 2048", "\"d_ff\": 4611686018427387904", "d_ff is"),
            ("\"model_type\": \"t5\"", "\"model_type\": \"bert\"", "`bert`"),
            ("\"model_type\": \"t5\"", "\"feed_forward_proj\": \"gated-silu\"", "relu or gated-gelu"),
            ("\"dropout_rate\": 0.1", "\"is_gated_act\": true", "is_gated_act"),
            ("\"dropout_rate\": 0.1", "\"dense_act_fn\": \"gelu_new\"", "dense_act_fn"),
            ("1e-06", "-1", "layer_norm_epsilon"),
            ("_buckets\": 32", "_buckets\": 31", "relative_attention_num_buckets"),
            ("{\"model_type\"", "{{", "not JSON"),
        ] {
            let text = SMALL.replacen(from, to, 1);
            assert_ne!(text, SMALL);
            let found = T5Config::from_json(&text).unwrap_err().to_string();
            assert!(found.contains(message), "{found} should contain {message}");
        }
    }
}
