//! The model: causal, pre-norm, learned positions, tied embedding and head.

use std::path::Path;

use elf_core::device::{at_a_time, upload};
use elf_core::layers::{Embedding, LayerNorm};
use elf_core::tensorfile;
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Dropout, ParamBuilder, ParamSet, PrecisionPolicy, TokenNetwork, Unembedding, id_outside};
use tch::{Device, Kind, Reduction, Tensor};

use crate::block::{Block, Dropped, PREFIX, attend, dropped};
use crate::{Error, Gpt2Config, Result};

/// The name of the head, which has the embedding's weights.
const HEAD: &str = "lm_head.weight";
/// Maximum number of logits computed at a time on a CPU: 128 MiB of fp32.
const LOGITS_AT_A_TIME: i64 = 1 << 25;

/// A GPT-2.
///
/// Parameters, norms and losses are fp32; matrix products have the given precision. The residual stream is fp32 in
/// inference and has the given precision in training. Dropout is applied in training only, after [`Gpt2::set_dropout`].
/// Keep the head in fp32: the released models' logits are around -100, where bf16 has only multiples of a half.
#[derive(Debug)]
pub struct Gpt2 {
    config: Gpt2Config,
    precision: PrecisionPolicy,
    device: Device,
    params: ParamSet,
    tokens: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    dropout: f64,
}

impl Gpt2 {
    /// Makes a model whose parameters come from `builder`: random with the standard deviations of Hugging Face's
    /// initialisation, or unset, to be loaded. For gradients, call [`set_requires_grad`](ParamSet::set_requires_grad)
    /// on [`Gpt2::params`].
    ///
    /// # Errors
    /// If the settings are invalid, or libtorch fails.
    pub fn new(config: &Gpt2Config, mut builder: ParamBuilder, precision: PrecisionPolicy) -> Result<Self> {
        if precision.int8 {
            return Err(Error::Config("GPT-2 has no 8-bit products: leave int8 out".to_owned()));
        }
        config.check()?;
        let device = builder.device();
        let b = &mut builder;
        let (h, std) = (config.n_embd, config.initializer_range);
        let tokens = Embedding::new(b, &format!("{PREFIX}wte.weight"), config.vocab_size, h, std)?;
        let positions = Embedding::new(b, &format!("{PREFIX}wpe.weight"), config.n_positions, h, std)?;
        let blocks = (0..config.n_layer).map(|i| Block::new(b, i, config)).collect::<Result<_>>()?;
        let final_norm = LayerNorm::new(b, &format!("{PREFIX}ln_f"), h, config.layer_norm_epsilon)?;
        let params = builder.finish();
        Ok(Self {
            config: config.clone(),
            precision,
            device,
            params,
            tokens,
            positions,
            blocks,
            final_norm,
            dropout: 0.0,
        })
    }

    /// Sets the dropout rate in training of the embeddings and of the output of attention and feed-forward layers:
    /// GPT-2's `embd_pdrop` and `resid_pdrop`. Attention weights have no dropout.
    ///
    /// # Errors
    /// If it is not in [0, 1).
    pub fn set_dropout(&mut self, share: f64) -> Result<()> {
        if !(0.0..1.0).contains(&share) {
            return Err(Error::Config(format!("dropout {share} is not in [0, 1)")));
        }
        self.dropout = share;
        Ok(())
    }

    /// Reads `config.json` and the weights (safetensors, sharded or not, or `pytorch_model.bin`) from a folder in
    /// Hugging Face's format; names may have the prefix `transformer.`. Masks stored as buffers and the tied
    /// `lm_head.weight` are not needed.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the weights do not fit the configuration; the message lists all differences.
    pub fn load(folder: &Path, device: Device, precision: PrecisionPolicy) -> Result<Self> {
        let config_path = folder.join("config.json");
        let config = Gpt2Config::load(&config_path)?;
        let file = Weights::open(folder, ParamKind::Trained)?;
        let path = file.path().to_owned();
        if let Some(reason) = file.fall_short_of(config.parameter_count()) {
            return Err(Error::ConfigFile { path: config_path, reason });
        }
        let model = Self::new(&config, ParamBuilder::unset(device), precision)?;
        let mut tensors = Vec::new();
        let mut head = None;
        for name in file.names() {
            if name == HEAD {
                head = Some(file.get(name, Device::Cpu)?);
            } else if !name.ends_with(".attn.bias") && !name.ends_with(".attn.masked_bias") {
                let bare = name.strip_prefix(PREFIX).unwrap_or(name);
                tensors.push((format!("{PREFIX}{bare}"), file.get(name, Device::Cpu)?));
            }
        }
        model.params.load(&path.display().to_string(), tensors.iter().map(|(name, t)| (name.as_str(), t)))?;
        if let Some(head) = head {
            let tokens = tensors.iter().find(|(name, _)| name.ends_with(".wte.weight")).map(|(_, t)| t);
            if tokens.is_none_or(|t| t.size() != head.size() || t.kind() != head.kind() || !t.equal(&head)) {
                return Err(Error::UntiedHead { path });
            }
        }
        Ok(model)
    }

    /// Writes `config.json` and `model.safetensors` to a folder, with Hugging Face's parameter names. Each file is
    /// written to a temporary file that is then renamed.
    ///
    /// # Errors
    /// If a file cannot be written; then an older one is kept.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        tensorfile::write(
            &folder.join("model.safetensors"),
            self.params.iter().map(|(name, p)| (name, &p.tensor)),
            metadata,
        )?;
        self.config.save(&folder.join("config.json"))
    }

    /// The settings.
    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// The parameters by Hugging Face's names.
    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    /// Hidden states `[B, S, H]`, fp32 and normalised, of token ids `[B, S]` (int64, any device). Position i depends on
    /// ids `0..=i` only, so that sequences padded on the right need no mask.
    ///
    /// # Errors
    /// If an id is not in the vocabulary, a sequence is longer than the model has positions, or libtorch fails.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        self.pass(ids, None)
    }

    fn pass(&self, ids: &Tensor, dropout: Dropped) -> Result<Tensor> {
        let length = self.check_ids(ids)?;
        let positions = Tensor::f_arange(length, (Kind::Int64, self.device))?;
        let mut x = dropped(self.embedded(ids, &positions)?, dropout, [0, 0])?;
        if x.requires_grad() {
            // As in ELF's blocks: halves the memory traffic, and the rounding is small compared with the noise of a
            // batch.
            x = x.f_to_kind(self.precision.blocks.kind())?;
        }
        for (number, block) in (1..).zip(&self.blocks) {
            let (q, k, v) = block.project(&x, self.precision.blocks.kind())?;
            x = block.close(&x, &attend(&q, &k, &v)?, number, dropout)?;
        }
        Ok(self.final_norm.forward(&x).f_to_kind(Kind::Float)?)
    }

    /// The first residual stream, `[B, S, H]`, of ids `[B, S]` at `positions` `[S]` or `[B, S]`.
    pub(crate) fn embedded(&self, ids: &Tensor, positions: &Tensor) -> Result<Tensor> {
        Ok(self.tokens.forward(&upload(ids, self.device)?).f_add(&self.positions.forward(positions))?)
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(crate) fn final_norm(&self) -> &LayerNorm {
        &self.final_norm
    }

    pub(crate) fn precision(&self) -> PrecisionPolicy {
        self.precision
    }

    /// The device of the parameters.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Vocabulary logits: hidden states `[N, H]` to `[N, V]`, fp32. Memory grows with N times V.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let kind = self.precision.vocab_head.kind();
        Ok(hidden
            .f_to_kind(kind)?
            .f_linear(&self.tokens.weight().get(kind), None::<&Tensor>)?
            .f_to_kind(Kind::Float)?)
    }

    /// Negative natural log-likelihoods `[N]`, fp32, of `targets` `[N]` after hidden states `[N, H]`.
    ///
    /// Logits are computed for a limited number of rows at a time: without gradients, `[N, V]` never exists as a whole.
    /// With gradients, libtorch keeps the results of each part that the backward pass needs.
    ///
    /// # Errors
    /// If the shapes do not fit or libtorch fails.
    pub fn nll(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        self.nll_by(hidden, targets, (at_a_time(self.device, LOGITS_AT_A_TIME) / self.config.vocab_size).max(1))
    }

    fn nll_by(&self, hidden: &Tensor, targets: &Tensor, rows: i64) -> Result<Tensor> {
        let n = match hidden.size()[..] {
            [n, h] if h == self.config.n_embd => n,
            _ => return Err(Error::shape("hidden states", hidden, format!("[N, {}]", self.config.n_embd))),
        };
        if targets.size() != [n] {
            return Err(Error::shape("targets", targets, format!("[{n}]")));
        }
        let mut parts = Vec::new();
        for from in (0..n).step_by(rows as usize) {
            let rows = rows.min(n - from);
            let logits = self.logits(&hidden.f_narrow(0, from, rows)?)?;
            parts.push(logits.f_cross_entropy_loss(
                &targets.f_narrow(0, from, rows)?,
                None::<&Tensor>,
                Reduction::None,
                -100,
                0.0,
            )?);
        }
        if parts.is_empty() {
            return Ok(Tensor::f_zeros([0], (Kind::Float, hidden.device()))?);
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    /// Checks the ids of a batch and returns S.
    pub(crate) fn check_ids(&self, ids: &Tensor) -> Result<i64> {
        let length = match ids.size()[..] {
            [b, s] if b > 0 && s > 0 && ids.kind() == Kind::Int64 => s,
            _ => {
                return Err(Error::shape(
                    &format!("ids (of kind {:?})", ids.kind()),
                    ids,
                    "[B, S] of int64, at least one of each",
                ));
            }
        };
        if length > self.config.n_positions {
            return Err(Error::TooLong { length, positions: self.config.n_positions });
        }
        let vocab_size = self.config.vocab_size;
        match id_outside(ids, vocab_size)? {
            Some(id) => Err(Error::Vocabulary { id, vocab_size }),
            None => Ok(length),
        }
    }
}

impl TokenNetwork for Gpt2 {
    fn vocab_size(&self) -> i64 {
        self.config.vocab_size
    }

    fn device(&self) -> Device {
        self.device
    }

    fn stochastic(&self) -> bool {
        self.dropout > 0.0
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn hidden(&self, ids: &Tensor, dropout: Option<&Dropout>) -> elf_core::Result<Tensor> {
        let dropout = dropout.filter(|_| self.dropout > 0.0).map(|dropout| (dropout, self.dropout));
        Ok(self.pass(ids, dropout)?)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        Ok(Gpt2::logits(self, hidden)?)
    }

    /// With gradients, in the precision of the blocks, since the rounding is small compared with the noise of a batch;
    /// without, in the precision of the vocabulary head.
    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> elf_core::Result<Tensor> {
        let precision = if hidden.requires_grad() { self.precision.blocks } else { self.precision.vocab_head };
        let no_bias = Tensor::f_zeros([self.config.vocab_size], (Kind::Float, self.device))?;
        Ok(Unembedding::of_rows(self.tokens.weight(), &no_bias, precision)?.cross_entropy(hidden, ids, weights)?.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nll_in_parts_is_the_whole() {
        let config = Gpt2Config {
            vocab_size: 30,
            n_positions: 16,
            n_embd: 16,
            n_layer: 1,
            n_head: 2,
            n_inner: None,
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.3,
            eos_token_id: None,
            texts_begin_with_eos: false,
        };
        let model = Gpt2::new(&config, ParamBuilder::seeded(0, Device::Cpu), PrecisionPolicy::F32).unwrap();
        let ids = (Tensor::arange(32, (Kind::Int64, Device::Cpu)) * 7).remainder(30);
        let hidden = model.hidden(&ids.view([2, 16])).unwrap().view([32, 16]);
        let whole = -model
            .logits(&hidden)
            .unwrap()
            .log_softmax(-1, Kind::Float)
            .gather(1, &ids.unsqueeze(1), false)
            .squeeze_dim(1);
        for rows in [1, 5, 32, 100] {
            let parts = model.nll_by(&hidden, &ids, rows).unwrap();
            assert!((parts - &whole).abs().max().double_value(&[]) < 1e-5);
        }
        assert_eq!(model.nll(&hidden.narrow(0, 0, 0), &ids.narrow(0, 0, 0)).unwrap().size(), [0]);
        assert!(model.nll(&hidden, &ids.narrow(0, 0, 3)).unwrap_err().to_string().contains("[32]"));
        assert!(model.nll(&ids, &ids).unwrap_err().to_string().contains("[N, 16]"));
    }
}
