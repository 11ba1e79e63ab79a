//! GPT-2's settings, in the form of Hugging Face's `config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Error, Result};

/// The sizes and constants of a GPT-2, with Hugging Face's defaults for optional keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gpt2Config {
    /// V, entries of the vocabulary.
    pub vocab_size: i64,
    /// Tokens of the longest sequence.
    pub n_positions: i64,
    /// Channels.
    pub n_embd: i64,
    /// Blocks.
    pub n_layer: i64,
    /// Attention heads.
    pub n_head: i64,
    /// Inner width of the feed-forward layers; `None` is 4 times `n_embd`.
    #[serde(default)]
    pub n_inner: Option<i64>,
    /// The number added to the variance in layer normalisation.
    #[serde(default = "default_epsilon")]
    pub layer_norm_epsilon: f64,
    /// Standard deviation of random initial weights.
    #[serde(default = "default_range")]
    pub initializer_range: f64,
    /// The token that ends a text, if the file has one.
    #[serde(default)]
    pub eos_token_id: Option<i64>,
    /// Whether the model was trained to read the end-of-text token before each text, so that it also predicts a text's
    /// first token; the released models were not. A key of our own, which Hugging Face's library ignores.
    #[serde(default, rename = "elf_texts_begin_with_eos")]
    pub texts_begin_with_eos: bool,
}

fn default_epsilon() -> f64 {
    1e-5
}
fn default_range() -> f64 {
    0.02
}

impl Gpt2Config {
    /// Settings of a new model of these sizes, with GPT-2's constants, which is trained to read the end-of-text token
    /// before each text.
    pub fn like(vocab_size: i64, n_positions: i64, n_embd: i64, n_layer: i64, n_head: i64) -> Self {
        Self {
            vocab_size,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_inner: None,
            layer_norm_epsilon: default_epsilon(),
            initializer_range: default_range(),
            eos_token_id: None,
            texts_begin_with_eos: true,
        }
    }

    /// Reads and checks Hugging Face's `config.json`. Keys that do not change what the model computes are ignored;
    /// dropout is among them.
    ///
    /// # Errors
    /// If it cannot be read, is of another family of models, lacks a size, or asks for a variant that is not supported.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(elf_core::Error::io("read", path))?;
        Self::from_json(&text).map_err(|e| match e {
            Error::Config(reason) => Error::ConfigFile { path: path.to_owned(), reason },
            other => other,
        })
    }

    /// Does the same as [`Gpt2Config::load`] from the text of the file.
    ///
    /// # Errors
    /// As [`Gpt2Config::load`].
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::Config(format!("not JSON: {e}")))?;
        // Other values of these keys change what the model computes.
        for (key, only) in [
            ("model_type", json!("gpt2")),
            ("activation_function", json!("gelu_new")),
            ("scale_attn_weights", json!(true)),
            ("scale_attn_by_inverse_layer_idx", json!(false)),
            ("add_cross_attention", json!(false)),
            ("tie_word_embeddings", json!(true)),
        ] {
            if let Some(given) = value.get(key)
                && *given != only
            {
                return Err(Error::Config(format!("{key} is {given}; only {only} is supported")));
            }
        }
        let config = Self::deserialize(&value).map_err(|e| Error::Config(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`], which names the setting.
    pub fn check(&self) -> Result<()> {
        // Far above every released model, low enough that no product of three overflows.
        for (name, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("n_positions", self.n_positions, 1 << 20),
            ("n_embd", self.n_embd, 1 << 17),
            ("n_layer", self.n_layer, 1 << 10),
            ("n_head", self.n_head, 1 << 10),
            ("n_inner", self.inner(), 1 << 19),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Error::Config(format!("{name} is {value}; it must be between 1 and {most}")));
            }
        }
        if self.n_embd % self.n_head != 0 {
            return Err(Error::Config(format!("n_embd {} is not divisible by n_head {}", self.n_embd, self.n_head)));
        }
        for (name, value) in
            [("layer_norm_epsilon", self.layer_norm_epsilon), ("initializer_range", self.initializer_range)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::Config(format!("{name} is {value}; it must be a positive number")));
            }
        }
        match self.eos_token_id {
            Some(id) if !(0..self.vocab_size).contains(&id) => {
                Err(Error::Config(format!("eos_token_id is {id}, outside the vocabulary of {}", self.vocab_size)))
            }
            _ => Ok(()),
        }
    }

    /// Inner width of the feed-forward layers.
    pub(crate) fn inner(&self) -> i64 {
        self.n_inner.unwrap_or(self.n_embd.saturating_mul(4))
    }

    /// Number of parameters; the head shares those of the embedding.
    pub fn parameter_count(&self) -> i64 {
        let (h, inner) = (self.n_embd, self.inner());
        let attention = h * 3 * h + 3 * h + h * h + h;
        let feed_forward = h * inner + inner + inner * h + h;
        (self.vocab_size + self.n_positions) * h + self.n_layer * (attention + feed_forward + 4 * h) + 2 * h
    }

    /// Writes a `config.json` that [`Gpt2Config::load`] and Hugging Face's `GPT2LMHeadModel` read.
    ///
    /// # Errors
    /// If the file cannot be written; then an older file is kept.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut value = json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": self.initializer_range,
        });
        // Hugging Face's own default is GPT-2's 50256, which need not be in this vocabulary.
        if self.texts_begin_with_eos {
            value["elf_texts_begin_with_eos"] = true.into();
        }
        value["eos_token_id"] = self.eos_token_id.into();
        value["bos_token_id"] = self.eos_token_id.into();
        Ok(elf_files::write(path, format!("{value:#}\n")).map_err(elf_core::Error::io("write", path))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of the smallest released model, shortened.
    const SMALL: &str = r#"{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "eos_token_id": 50256, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "task_specific_params": {}, "vocab_size": 50257}"#;

    #[test]
    fn the_released_form_is_read() {
        let config = Gpt2Config::from_json(SMALL).unwrap();
        assert_eq!((config.n_embd, config.inner(), config.eos_token_id), (768, 3072, Some(50256)));
        assert_eq!(config.parameter_count(), 124_439_808);
    }

    #[test]
    fn contradictions_gaps_and_other_models_are_named() {
        for (from, to, message) in [
            ("\"n_head\": 12,", "", "n_head"),
            ("\"n_head\": 12", "\"n_head\": 7", "not divisible by n_head 7"),
            ("\"n_head\": 12", "\"n_head\": 0", "n_head is 0"),
            ("\"n_layer\": 12", "\"n_layer\": -1", "n_layer is -1"),
            ("\"n_embd\": 768", "\"n_embd\": 4611686018427387904", "n_embd is"),
            ("\"n_positions\": 1024", "\"n_positions\": \"many\"", "expected i64"),
            ("\"model_type\": \"gpt2\"", "\"model_type\": \"opt\"", "only \"gpt2\""),
            ("\"gelu_new\"", "\"relu\"", "activation_function is \"relu\""),
            ("\"attn_pdrop\": 0.1", "\"scale_attn_by_inverse_layer_idx\": true", "scale_attn_by_inverse_layer_idx"),
            ("\"eos_token_id\": 50256", "\"eos_token_id\": 50257", "eos_token_id is 50257"),
            ("1e-05", "0", "layer_norm_epsilon"),
            ("{\"activation", "\"activation", "not JSON"),
        ] {
            let text = SMALL.replacen(from, to, 1);
            assert_ne!(text, SMALL);
            let found = Gpt2Config::from_json(&text).unwrap_err().to_string();
            assert!(found.contains(message), "{found} should contain {message}");
        }
    }
}
