//! A bidirectional transformer over token ids with the blocks of the ELF transformer: the backbone of masked diffusion.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use elf_core::device::upload;
use elf_core::layers::{Embedding, RmsNorm};
use elf_core::weights::Weights;
use elf_core::{
    Dropout, Error, Init, ParamBuilder, ParamSet, PrecisionPolicy, Result, TokenNetwork, Unembedding, Weight,
    id_outside,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::ElfConfig;
use crate::block::{Block, Pass, PassDropout};
use crate::config::{BlockSizes, check_sizes};
use crate::rope::Rope;

/// Standard deviation of the embedding's initial values.
const TABLE_STD: f64 = 0.02;

/// The sizes of a [`MaskedTransformer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskedConfig {
    /// V, entries of the vocabulary, without the mask symbol.
    pub vocab_size: i64,
    /// H, width of the blocks.
    pub hidden_size: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Attention heads; H must be an even multiple of it.
    pub num_heads: i64,
    /// Inner width of the feed-forward layers as a multiple of H, of which SwiGLU takes two thirds.
    pub mlp_ratio: f64,
    /// Dropout on attention's output and inside the feed-forward layer, in the middle half of the depth.
    pub proj_dropout: f64,
}

impl MaskedConfig {
    /// The sizes of an ELF transformer's blocks, with words as input instead of latents.
    pub fn with_blocks_of(elf: &ElfConfig) -> Self {
        Self {
            vocab_size: elf.vocab_size,
            hidden_size: elf.hidden_size,
            depth: elf.depth,
            num_heads: elf.num_heads,
            mlp_ratio: elf.mlp_ratio,
            proj_dropout: elf.proj_dropout,
        }
    }

    fn blocks(&self) -> BlockSizes {
        BlockSizes {
            hidden_size: self.hidden_size,
            depth: self.depth,
            num_heads: self.num_heads,
            mlp_ratio: self.mlp_ratio,
            proj_dropout: self.proj_dropout,
        }
    }

    /// Checks that a network of these sizes is possible.
    ///
    /// # Errors
    /// Names the first size that is out of its range.
    pub fn check(&self) -> Result<()> {
        check_sizes([("vocab_size", self.vocab_size)])?;
        self.blocks().check()
    }

    /// The number of numbers in all parameters, by formula.
    pub fn parameter_count(&self) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let (h, v) = (size(self.hidden_size), size(self.vocab_size));
        (v + 1) * h + self.blocks().parameter_count() + h + v
    }
}

/// A transformer from token ids to logits with full attention. It has no time input, since masked diffusion needs none.
///
/// Embedding and head share one table, which has one row more than there are words: the mask symbol (id V), which the head does not
/// predict.
#[derive(Debug)]
pub struct MaskedTransformer {
    config: MaskedConfig,
    policy: PrecisionPolicy,
    params: ParamSet,
    tokens: Embedding,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
    bias: Weight,
    device: Device,
    recompute: bool,
    /// Rotary angles of the last sequence length.
    rope: RefCell<Option<Rope>>,
}

impl MaskedTransformer {
    /// A network whose parameters come from `builder`: seeded, or unset, to be loaded.
    ///
    /// # Errors
    /// If no network is possible with the configuration, or libtorch fails.
    pub fn new(config: MaskedConfig, policy: PrecisionPolicy, mut builder: ParamBuilder) -> Result<Self> {
        policy.settle(builder.device())?;
        config.check()?;
        let device = builder.device();
        let (b, blocks) = (&mut builder, config.blocks());
        let tokens = Embedding::new(b, "tokens.weight", config.vocab_size + 1, config.hidden_size, TABLE_STD)?;
        let blocks = crate::block::make(b, &blocks, config.depth, policy)?;
        let final_norm = RmsNorm::new(b, "norm_final", config.hidden_size, 1e-6)?;
        let bias = b.tensor("unembed_bias", &[config.vocab_size], Init::Constant(0.0))?;
        let params = builder.finish();
        let rope = RefCell::new(None);
        Ok(Self { config, policy, params, tokens, blocks, final_norm, bias, device, recompute: false, rope })
    }

    /// Reads the parameters of a network of these sizes.
    ///
    /// # Errors
    /// If the file is damaged or of another network; every parameter that does not fit is named.
    pub fn load(config: MaskedConfig, path: &Path, policy: PrecisionPolicy, device: Device) -> Result<Self> {
        let net = Self::new(config, policy, ParamBuilder::unset(device))?;
        net.params.load_from(&Weights::open(path, elf_core::weights::ParamKind::Averaged)?)?;
        Ok(net)
    }

    /// The network's sizes.
    pub fn config(&self) -> &MaskedConfig {
        &self.config
    }

    /// Switches gradient checkpointing on or off, as [`Elf::set_recompute`](crate::Elf::set_recompute).
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    fn rope(&self, length: i64) -> Result<Rope> {
        let mut kept = self.rope.borrow_mut();
        match &*kept {
            Some(rope) if rope.len() == length => Ok(rope.shallow_clone()),
            _ => {
                let head_dim = self.config.blocks().head_dim();
                let rope = tch::no_grad(|| Rope::new(0, length, head_dim, self.device))?;
                *kept = Some(rope.shallow_clone());
                Ok(rope)
            }
        }
    }

    /// The head. Products for gradients run in the precision of the blocks, since their rounding is small compared with the noise of a
    /// batch; products for reported numbers or sampling run in the policy's precision of heads.
    fn head(&self, for_gradients: bool) -> Result<Unembedding> {
        let precision = if for_gradients { self.policy.blocks } else { self.policy.vocab_head };
        Unembedding::of_rows(self.tokens.weight(), self.bias.master(), precision)
    }

    fn features(&self, hidden: &Tensor) -> Tensor {
        self.final_norm.forward_to(hidden, Kind::Float)
    }
}

impl TokenNetwork for MaskedTransformer {
    fn vocab_size(&self) -> i64 {
        self.config.vocab_size
    }

    fn mask_id(&self) -> Option<i64> {
        Some(self.config.vocab_size)
    }

    fn device(&self) -> Device {
        self.device
    }

    fn stochastic(&self) -> bool {
        self.config.proj_dropout > 0.0
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn hidden(&self, ids: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
        let (_, s) = ids.size2()?;
        let largest = self.config.vocab_size;
        if let Some(id) = id_outside(ids, largest + 1)? {
            return Err(Error::Config(format!(
                "token id {id} is outside of this model's vocabulary of {largest}: the ids come from another tokenizer"
            )));
        }
        let kind = self.policy.blocks.kind();
        let dropout = dropout.map(|dropout| {
            Arc::new(PassDropout { dropout: dropout.clone(), of: dropout.length(), held: vec![[0, s]] })
        });
        let pass = Pass { rope: self.rope(s)?, mask: None, dropout, recompute: self.recompute };
        let x = self.tokens.forward(&upload(ids, self.device)?).f_to_kind(kind)?;
        crate::block::all(&self.blocks, &self.params, x, &pass, None)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head(false)?.logits(&self.features(hidden))
    }

    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let features = self.features(hidden);
        Ok(self.head(features.requires_grad())?.cross_entropy(&features, ids, weights)?.sum)
    }
}
