//! The settings of an encoder of the BERT family, as Hugging Face's `config.json` states them.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, Result};

/// The layout of names and settings in a model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BertLayout {
    /// `model_type: bert`: BERT, MiniLM and most sentence encoders of that size.
    Bert,
    /// `model_type: distilbert`: the same layers under other names, without token types.
    DistilBert,
}

/// Sizes and options of an encoder of the BERT family.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Names of settings and parameters.
    pub layout: BertLayout,
    /// Entries of the token table (V).
    pub vocab_size: i64,
    /// Channels of a latent (C).
    pub hidden_size: i64,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Attention heads of a layer.
    pub num_attention_heads: i64,
    /// Longest row, `[CLS]` included.
    pub max_position_embeddings: i64,
    /// Entries of the table of token types, of which the first is used; 0 in DistilBERT, which has no such table.
    pub type_vocab_size: i64,
    /// Added to the variance before its root is taken.
    pub layer_norm_eps: f64,
}

/// The keys of both layouts.
#[derive(Deserialize)]
struct Stated {
    vocab_size: i64,
    #[serde(alias = "dim")]
    hidden_size: i64,
    #[serde(alias = "hidden_dim")]
    intermediate_size: i64,
    #[serde(alias = "n_layers")]
    num_hidden_layers: i64,
    #[serde(alias = "n_heads")]
    num_attention_heads: i64,
    #[serde(default = "default_positions")]
    max_position_embeddings: i64,
    #[serde(default = "default_types")]
    type_vocab_size: i64,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(alias = "activation", default = "default_activation")]
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn default_positions() -> i64 {
    512
}
fn default_types() -> i64 {
    2
}
fn default_eps() -> f64 {
    1e-12
}
fn default_activation() -> String {
    "gelu".into()
}

impl BertConfig {
    /// Reads and checks Hugging Face's `config.json`. Keys that do not concern the encoder are ignored.
    ///
    /// # Errors
    /// If it cannot be read, is of another family of models, lacks a size, or has an option that is not supported.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(elf_core::Error::io("read", path))?;
        Self::from_json(&text).map_err(|e| e.in_file(path))
    }

    /// As [`BertConfig::load`], from the text of the file.
    ///
    /// # Errors
    /// As [`BertConfig::load`].
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::Config(format!("not JSON: {e}")))?;
        let layout = match value.get("model_type").and_then(Value::as_str) {
            Some("bert") => BertLayout::Bert,
            Some("distilbert") => BertLayout::DistilBert,
            other => {
                let found = other.unwrap_or("missing");
                return Err(Error::Config(format!("its model_type is `{found}`; `bert` or `distilbert` is needed")));
            }
        };
        let stated = Stated::deserialize(&value).map_err(|e| Error::Config(e.to_string()))?;
        if stated.hidden_act != "gelu" {
            return Err(Error::Config(format!("its activation is `{}`; only `gelu` is supported", stated.hidden_act)));
        }
        if let Some(kind) = stated.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(Error::Config(format!("position_embedding_type is `{kind}`; only `absolute` is supported")));
        }
        if stated.is_decoder {
            return Err(Error::Config("is_decoder is true; only encoders are supported".into()));
        }
        let config = Self {
            layout,
            vocab_size: stated.vocab_size,
            hidden_size: stated.hidden_size,
            intermediate_size: stated.intermediate_size,
            num_hidden_layers: stated.num_hidden_layers,
            num_attention_heads: stated.num_attention_heads,
            max_position_embeddings: stated.max_position_embeddings,
            type_vocab_size: if layout == BertLayout::Bert { stated.type_vocab_size } else { 0 },
            layer_norm_eps: if layout == BertLayout::Bert { stated.layer_norm_eps } else { default_eps() },
        };
        config.check()?;
        Ok(config)
    }

    /// Checks that these settings make a model of a size that can exist.
    ///
    /// # Errors
    /// [`Error::Config`], which names the setting.
    pub fn check(&self) -> Result<()> {
        // Far above every released model, low enough that no product of three overflows.
        for (name, value, least, most) in [
            ("vocab_size", self.vocab_size, 1, 1 << 24),
            ("hidden_size", self.hidden_size, 1, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1, 1 << 19),
            ("num_hidden_layers", self.num_hidden_layers, 0, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1, 1 << 10),
            ("max_position_embeddings", self.max_position_embeddings, 2, 1 << 24),
            ("type_vocab_size", self.type_vocab_size, 0, 1 << 16),
        ] {
            if !(least..=most).contains(&value) {
                return Err(Error::Config(format!("{name} is {value}; it must be between {least} and {most}")));
            }
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            return Err(Error::Config(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0) {
            return Err(Error::Config(format!(
                "layer_norm_eps is {}; it must be a positive number",
                self.layer_norm_eps
            )));
        }
        Ok(())
    }

    /// Numbers in all of the encoder's parameters.
    pub fn parameter_count(&self) -> i64 {
        let (c, f) = (self.hidden_size, self.intermediate_size);
        let layer = 4 * (c * c + c) + 2 * c * f + f + c + 4 * c;
        let tables = self.vocab_size + self.max_position_embeddings + self.type_vocab_size;
        tables * c + 2 * c + self.num_hidden_layers * layer
    }

    /// Floating-point operations of encoding one row of `tokens` ids: matrix products alone, a multiplication and an addition
    /// counting as two, `[CLS]` included. A layer takes `2 (4 C C + 2 C F) + 4 S C` a position.
    pub fn encode_flops(&self, tokens: u64) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let (c, f, positions) = (size(self.hidden_size), size(self.intermediate_size), tokens + 1);
        size(self.num_hidden_layers) * positions * (2 * (4 * c * c + 2 * c * f) + 4 * positions * c)
    }

    /// Writes a `config.json` that [`BertConfig::load`] and Hugging Face's `BertModel` or `DistilBertModel` read.
    ///
    /// # Errors
    /// If the file cannot be written. An earlier file of this name is then kept.
    pub fn save(&self, path: &Path) -> Result<()> {
        let value = match self.layout {
            BertLayout::Bert => json!({
                "architectures": ["BertModel"],
                "model_type": "bert",
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "intermediate_size": self.intermediate_size,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": self.num_attention_heads,
                "max_position_embeddings": self.max_position_embeddings,
                "type_vocab_size": self.type_vocab_size,
                "layer_norm_eps": self.layer_norm_eps,
                "hidden_act": "gelu",
                "position_embedding_type": "absolute",
                "pad_token_id": 0,
            }),
            BertLayout::DistilBert => json!({
                "architectures": ["DistilBertModel"],
                "model_type": "distilbert",
                "vocab_size": self.vocab_size,
                "dim": self.hidden_size,
                "hidden_dim": self.intermediate_size,
                "n_layers": self.num_hidden_layers,
                "n_heads": self.num_attention_heads,
                "max_position_embeddings": self.max_position_embeddings,
                "activation": "gelu",
                "sinusoidal_pos_embds": false,
                "pad_token_id": 0,
            }),
        };
        Ok(elf_files::write(path, format!("{value:#}\n")).map_err(elf_core::Error::io("write", path))?)
    }
}
