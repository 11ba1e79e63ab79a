//! Encoders of the BERT family: BERT, MiniLM, DistilBERT.

use std::path::Path;

use elf_core::device::upload;
use elf_core::layers::{Embedding, LayerNorm};
use elf_core::tensorfile;
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Param, ParamBuilder, ParamSet, Precision};
use tch::{Device, Kind, Tensor};

use crate::bert_config::{BertConfig, BertLayout};
use crate::bert_layers::{INITIAL_STD, Layer};
use crate::encoder_source::EncoderSource;
use crate::growing_rows::Extent;
use crate::key_values::KeyValues;
use crate::text_encoder::{EncoderMask, GrowingRows, TextEncoder, check_ids};
use crate::{Error, Result};

/// The token table's name.
const WORDS: &str = "embeddings.word_embeddings.weight";

/// A frozen encoder of the BERT family.
///
/// `[CLS]` is put before every row inside, and its output is dropped, so that callers see one latent for each of their ids.
/// Every position sees `[CLS]`. `[CLS]` sees what is visible to the whole row ([`EncoderMask::Columns`], [`EncoderMask::None`]);
/// with a mask of pairs it sees itself alone, since it would otherwise carry hidden positions to those they are hidden from.
#[derive(Debug)]
pub struct BertEncoder {
    config: BertConfig,
    cls: i64,
    precision: Precision,
    device: Device,
    params: ParamSet,
    words: Embedding,
    positions: Embedding,
    /// Token types, of which the first is used; DistilBERT has none.
    types: Option<Embedding>,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl BertEncoder {
    /// An encoder whose parameters come from `builder`: seeded, with the standard deviation of Hugging Face's own start, or
    /// unset, to be loaded. `cls` is the id of `[CLS]`. `precision` is that of the layers' matrix products; residual stream, norms
    /// and softmax are fp32 always.
    ///
    /// # Errors
    /// If the settings make no model, `cls` is no id of it, or libtorch fails.
    pub fn new(config: &BertConfig, cls: i64, mut builder: ParamBuilder, precision: Precision) -> Result<Self> {
        config.check()?;
        if !(0..config.vocab_size).contains(&cls) {
            return Err(Error::Vocabulary { id: cls, vocab_size: config.vocab_size });
        }
        let b = &mut builder;
        let c = config.hidden_size;
        let mut table = |name: &str, entries| Embedding::new(b, name, entries, c, INITIAL_STD);
        let words = table(WORDS, config.vocab_size)?;
        let positions = table("embeddings.position_embeddings.weight", config.max_position_embeddings)?;
        let types = match config.type_vocab_size {
            0 => None,
            entries => Some(table("embeddings.token_type_embeddings.weight", entries)?),
        };
        let norm = LayerNorm::new(b, "embeddings.LayerNorm", c, config.layer_norm_eps)?;
        let layers = (0..config.num_hidden_layers).map(|i| Layer::new(b, config, i)).collect::<Result<_>>()?;
        let device = builder.device();
        let params = builder.finish();
        params.set_requires_grad(false);
        Ok(Self { config: config.clone(), cls, precision, device, params, words, positions, types, norm, layers })
    }

    /// Reads `config.json`, `tokenizer.json` (for the id of `[CLS]`) and the weights (safetensors, also in shards, or
    /// `pytorch_model.bin`) as Hugging Face writes them. Only the layers up to [`EncoderSource::layer`] are made; the others,
    /// heads and pooler are ignored.
    ///
    /// # Errors
    /// If a file is missing or damaged, there is no such layer, or the files do not fit together: then every difference is named.
    pub fn load(source: &EncoderSource, device: Device, precision: Precision) -> Result<Self> {
        let config_path = source.folder.join("config.json");
        let mut config = BertConfig::load(&config_path)?;
        if let Some(layer) = source.layer {
            let layers = config.num_hidden_layers;
            config.num_hidden_layers = i64::try_from(layer).ok().filter(|layer| *layer <= layers).ok_or_else(|| {
                Error::Layer(format!("{layer} is not among the encoder's layers, 0 (embeddings) to {layers}"))
            })?;
        }
        let cls = cls_of(&source.folder.join("tokenizer.json"))?;
        let file = Weights::open(source.weights(), ParamKind::Trained)?;
        if let Some(reason) = file.fall_short_of(config.parameter_count()) {
            return Err(Error::ConfigFile { path: config_path, reason });
        }
        let encoder = Self::new(&config, cls, ParamBuilder::unset(device), precision)?;
        let mut tensors = Vec::new();
        for name in file.names() {
            if let Some(ours) = own_name(&config, name) {
                tensors.push((ours, file.get(name, Device::Cpu)?));
            }
        }
        let origin = file.path().display().to_string();
        encoder.params.load(&origin, tensors.iter().map(|(name, t)| (name.as_str(), t)))?;
        Ok(encoder)
    }

    /// The encoder with a smaller token table: of the rows `kept`, in that order, which become ids 0, 1, ...
    ///
    /// # Errors
    /// If an id is not in the vocabulary, `[CLS]` is not kept, or libtorch fails.
    pub fn with_words(&self, kept: &[i64]) -> Result<Self> {
        let vocab_size = self.config.vocab_size;
        if let Some(&id) = kept.iter().find(|id| !(0..vocab_size).contains(*id)) {
            return Err(Error::Vocabulary { id, vocab_size });
        }
        let cls = kept.iter().position(|&id| id == self.cls);
        let cls = cls.ok_or_else(|| Error::Config("[CLS] must be kept in a smaller vocabulary".into()))? as i64;
        let config = BertConfig { vocab_size: kept.len() as i64, ..self.config.clone() };
        let smaller = Self::new(&config, cls, ParamBuilder::unset(self.device), self.precision)?;
        let rows = Tensor::f_from_slice(kept)?.f_to_device(self.device)?;
        let table = tch::no_grad(|| self.words.weight().master().f_index_select(0, &rows))?;
        let own = self.params.iter().map(|(name, p)| match name {
            WORDS => (name, &table),
            _ => (name, &p.tensor),
        });
        smaller.params.load("the larger encoder", own)?;
        Ok(smaller)
    }

    /// Writes `config.json` and `model.safetensors`, its numbers in `kind`, into a folder, each aside and renamed, under Hugging
    /// Face's names.
    ///
    /// # Errors
    /// If a file cannot be written. An earlier file of this name is then kept.
    pub fn save(&self, folder: &Path, kind: Kind) -> Result<()> {
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let stored = |p: &Param| tch::no_grad(|| p.tensor.f_to_kind(kind));
        let tensors = self.params.iter().map(|(name, p)| Ok((name, stored(p)?))).collect::<Result<Vec<_>>>()?;
        tensorfile::write(&folder.join("model.safetensors"), tensors.iter().map(|(name, t)| (*name, t)), metadata)?;
        self.config.save(&folder.join("config.json"))
    }

    /// The settings, with as many layers as were made.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// The mask of rows with `[CLS]` in front, `[B, 1, 1 or S + 1, S + 1]`, true where a position may be seen.
    fn visible(&self, b: i64, s: i64, mask: EncoderMask) -> Result<Option<Tensor>> {
        let ones = |shape: [i64; 3]| Tensor::f_ones(shape, (Kind::Bool, self.device));
        let Some(visible) = mask.visible(b, s, self.device)? else { return Ok(None) };
        let rows = visible.size()[1];
        let with_cls = Tensor::f_cat(&[ones([b, rows, 1])?, visible], -1)?;
        let with_cls = match mask {
            EncoderMask::Pairs(_) => {
                let hidden = Tensor::f_zeros([b, 1, s], (Kind::Bool, self.device))?;
                let cls = Tensor::f_cat(&[ones([b, 1, 1])?, hidden], -1)?;
                Tensor::f_cat(&[cls, with_cls], 1)?
            }
            _ => with_cls,
        };
        Ok(Some(with_cls.f_unsqueeze(1)?))
    }

    /// The most ids of a row: `[CLS]` takes a position, too.
    fn most_ids(&self) -> i64 {
        self.config.max_position_embeddings - 1
    }

    /// The embeddings of ids `[B, N]` at the positions from `from` on, normalised: those of `[CLS]` in front if `from` is 0.
    fn embed(&self, ids: &Tensor, from: i64) -> Result<Tensor> {
        let (b, n) = ids.size2()?;
        let (end, most) = (from + n + 1, self.most_ids());
        if from + n > most {
            return Err(Error::TooLong { tokens: from + n, most });
        }
        let mut ids = upload(ids, self.device)?;
        if from == 0 {
            let cls = Tensor::f_full([b, 1], self.cls, (Kind::Int64, self.device))?;
            ids = Tensor::f_cat(&[cls, ids], 1)?;
        }
        let length = ids.size2()?.1;
        let mut x = self.words.forward(&ids);
        if let Some(types) = &self.types {
            x = x.f_add(&types.weight().master().f_narrow(0, 0, 1)?)?;
        }
        x = x.f_add(&self.positions.weight().master().f_narrow(0, end - length, length)?)?;
        Ok(self.norm.forward(&x))
    }

    fn hidden(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        let (b, s) = check_ids(ids, self.config.vocab_size)?;
        let visible = self.visible(b, s, mask)?;
        let mut x = self.embed(ids, 0)?;
        for layer in &self.layers {
            x = layer.forward(&x, visible.as_ref(), self.precision.kind(), None)?;
        }
        Ok(x.f_narrow(1, 1, s)?.f_contiguous()?)
    }
}

impl TextEncoder for BertEncoder {
    fn dim(&self) -> i64 {
        self.config.hidden_size
    }

    fn vocab_size(&self) -> i64 {
        self.config.vocab_size
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn encode_flops(&self, tokens: u64) -> u64 {
        self.config.encode_flops(tokens)
    }

    fn describe(&self) -> String {
        let name = match self.config.layout {
            BertLayout::Bert => "BERT",
            BertLayout::DistilBert => "DistilBERT",
        };
        format!("{name}, {} layers of {} channels", self.config.num_hidden_layers, self.config.hidden_size)
    }

    fn longest(&self) -> Option<i64> {
        Some(self.most_ids())
    }

    fn encode(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        tch::no_grad(|| self.hidden(ids, mask))
    }

    fn growing(&self, rows: i64, capacity: i64) -> Option<Box<dyn GrowingRows + '_>> {
        // And [CLS].
        let layers = self.layers.iter().map(|_| KeyValues::new(capacity + 1)).collect();
        Some(Box::new(GrowingBert { encoder: self, layers, extent: Extent::new(rows, capacity) }))
    }
}

/// Rows that grow, `[CLS]` in front.
struct GrowingBert<'a> {
    encoder: &'a BertEncoder,
    /// Of each layer.
    layers: Vec<KeyValues>,
    extent: Extent,
}

impl GrowingRows for GrowingBert<'_> {
    fn encode(&mut self, from: i64, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let Self { encoder, layers, extent } = self;
        let n = extent.check(from, ids, mask, encoder.config.vocab_size)?;
        let (b, columns) = (ids.size()[0], from + n);
        tch::no_grad(|| {
            let mut x = encoder.embed(ids, from)?;
            let visible = match from {
                0 => encoder.visible(b, n, EncoderMask::Pairs(mask))?,
                _ => {
                    let cls = Tensor::f_ones([b, n, 1], (Kind::Bool, encoder.device))?;
                    let others = mask.f_to_device(encoder.device)?.f_ne(0)?;
                    Some(Tensor::f_cat(&[cls, others], -1)?.f_unsqueeze(1)?)
                }
            };
            let new = x.size3()?.1;
            for (layer, memory) in encoder.layers.iter().zip(layers) {
                x = layer.forward(&x, visible.as_ref(), encoder.precision.kind(), Some((memory, columns + 1 - new)))?;
            }
            Ok(x.f_narrow(1, new - n, n)?.f_contiguous()?)
        })
    }
}

/// The name under which a tensor of a file is a parameter here; `None` if it is of no layer that is made.
fn own_name(config: &BertConfig, name: &str) -> Option<String> {
    let name = name.strip_prefix("bert.").or_else(|| name.strip_prefix("distilbert.")).unwrap_or(name);
    let of_layer = name.strip_prefix("encoder.layer.").or_else(|| name.strip_prefix("transformer.layer."));
    let made = match of_layer.and_then(|rest| rest.split_once('.')) {
        Some((i, _)) => i.parse::<i64>().is_ok_and(|i| i < config.num_hidden_layers),
        // Buffers that count positions and types; no parameters.
        None => name.starts_with("embeddings.") && !name.ends_with("_ids"),
    };
    // The names that the first released files have for a norm's weight and bias.
    let renamed = || name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    made.then(renamed)
}

/// The id of `[CLS]` in a `tokenizer.json`.
fn cls_of(path: &Path) -> Result<i64> {
    let bad = |reason: String| Error::TokenizerFile { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|e| bad(format!("it cannot be read ({e})")))?;
    let file: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("it is not JSON ({e})")))?;
    let added = file["added_tokens"].as_array().into_iter().flatten().find(|token| token["content"] == "[CLS]");
    let id = added.map(|token| &token["id"]).unwrap_or(&file["model"]["vocab"]["[CLS]"]);
    id.as_i64().ok_or_else(|| bad("it has no token [CLS]".into()))
}
