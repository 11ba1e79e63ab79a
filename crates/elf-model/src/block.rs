//! One transformer block: attention and SwiGLU, each with a normalisation before it and a residual connection around it.

use std::sync::Arc;

use elf_core::layers::{Linear, RmsNorm};
use elf_core::{Dropout, Fans, Init, ParamBuilder, ParamSet, PrecisionPolicy, Result};
use elf_kernels::Part;
use tch::{Kind, TchError, Tensor};

use crate::attention::Attention;
use crate::config::BlockSizes;
use crate::rope::Rope;

const EPS: f64 = 1e-6;
/// What the names of all blocks' parameters begin with.
const PREFIX: &str = "blocks.";

/// The inputs that all blocks of one pass share.
pub(crate) struct Pass {
    pub(crate) rope: Rope,
    /// Additive attention mask, `[B, 1, 1, M]` or `[B, 1, N, M]`, over M tokens: the N of the pass, after K with cached keys and values.
    pub(crate) mask: Option<Tensor>,
    pub(crate) dropout: Option<Arc<PassDropout>>,
    /// Whether blocks whose input has a gradient are computed again in the backward pass.
    pub(crate) recompute: bool,
}

/// The dropout of a pass, and the places of its tokens in whole rows.
pub(crate) struct PassDropout {
    pub(crate) dropout: Dropout,
    /// Tokens of a whole row.
    pub(crate) of: i64,
    /// The tokens of the pass: from the first to before the second number of each pair.
    pub(crate) held: Vec<[i64; 2]>,
}

impl Pass {
    fn shallow_clone(&self) -> Self {
        Self {
            rope: self.rope.shallow_clone(),
            mask: self.mask.as_ref().map(Tensor::shallow_clone),
            dropout: self.dropout.clone(),
            recompute: self.recompute,
        }
    }
}

/// Tokens of a batch through all blocks, each with the keys and values of earlier tokens if there are `known` ones. A CPU's threads take rows of their own, in the
/// backward pass too, where each gets about as many. The blocks' parameters are among `params`.
pub(crate) fn all(
    blocks: &[Block],
    params: &ParamSet,
    x: Tensor,
    pass: &Pass,
    known: Option<&[[Tensor; 2]]>,
) -> Result<Tensor> {
    let shares = shares_of(&x, pass);
    if shares < 2 {
        return in_turn(blocks, x, pass, known);
    }
    let rows = x.size()[0];
    let bounds: Vec<i64> = (0..=shares).map(|i| rows * i / shares).collect();
    let parts = bounds.windows(2).map(|b| Share::new(blocks, &x, pass, known, [b[0], b[1] - b[0]]));
    let done = elf_kernels::parallel(parts.collect::<Result<Vec<_>>>()?, Share::run)?;
    let done = done.into_iter().collect::<Result<Vec<Part>>>()?;
    if x.requires_grad() {
        let own = params.iter().filter(|(name, p)| name.starts_with(PREFIX) && p.tensor.requires_grad());
        let leaves: Vec<Tensor> = own.map(|(_, p)| p.tensor.shallow_clone()).collect();
        return Ok(elf_kernels::joined(&x, &leaves, &done)?);
    }
    Ok(Tensor::f_cat(&done.iter().map(|part| &part.output).collect::<Vec<_>>(), 0)?)
}

/// The parts into which the rows of a pass fall for the threads of a CPU: 1 if these do better on one operation after another.
fn shares_of(x: &Tensor, pass: &Pass) -> i64 {
    let (size, threads) = (x.size(), i64::from(tch::get_num_threads()));
    let (rows, tokens, hidden) = (size[0], size[0] * size[1], size[2]);
    let alike = rows >= threads && 4 * rows >= 3 * threads * ((rows + threads - 1) / threads);
    // Copies of weights in bf16 are part of one graph, which several backward passes cannot share.
    let learns = !x.requires_grad()
        || (!pass.recompute && x.kind() == Kind::Float && learns_side_by_side(tokens, threads, hidden));
    let possible = learns && pass.dropout.is_none() && !elf_kernels::takes_gpu_path(x.device());
    if alike && possible { threads } else { 1 }
}

/// Whether so many tokens are enough for gradients of each thread's own: of all blocks' parameters, they are no larger then than what is
/// kept for the backward pass.
pub(crate) fn learns_side_by_side(tokens: i64, threads: i64, hidden: i64) -> bool {
    tokens >= threads.saturating_mul(hidden)
}

/// Some rows of a pass, with handles of its own on all that it needs.
struct Share {
    blocks: Vec<Block>,
    x: Tensor,
    pass: Pass,
    known: Option<Vec<[Tensor; 2]>>,
}

impl Share {
    /// The rows `[first, number]`.
    fn new(
        blocks: &[Block],
        x: &Tensor,
        pass: &Pass,
        known: Option<&[[Tensor; 2]]>,
        [first, n]: [i64; 2],
    ) -> Result<Self> {
        let rows = x.size()[0];
        // What has several entries for each row, and what is the same for all.
        let of_rows = |x: &Tensor| match x.size()[0] {
            all if all % rows == 0 && all > 1 => x.f_narrow(0, all / rows * first, all / rows * n),
            _ => Ok(x.shallow_clone()),
        };
        let own_angles = pass.rope.len() != x.size()[1];
        let mask = pass.mask.as_ref().map(of_rows).transpose()?;
        let of_layer = |[keys, values]: &[Tensor; 2]| Ok([of_rows(keys)?, of_rows(values)?]);
        Ok(Self {
            blocks: blocks.iter().map(Block::shallow_clone).collect(),
            x: if x.requires_grad() { Part::input(x, first, n)? } else { x.f_narrow(0, first, n)? },
            pass: Pass {
                rope: if own_angles { pass.rope.of_some(rows, first, n)? } else { pass.rope.shallow_clone() },
                mask,
                dropout: None,
                recompute: false,
            },
            known: known.map(|known| known.iter().map(of_layer).collect::<Result<_>>()).transpose()?,
        })
    }

    fn run(self) -> Result<Part> {
        let input = self.x.shallow_clone();
        let run = || in_turn(&self.blocks, self.x, &self.pass, self.known.as_deref());
        let output = if input.requires_grad() { run()? } else { tch::no_grad(run)? };
        Ok(Part { input, output })
    }
}

/// The blocks one after another.
fn in_turn(blocks: &[Block], mut x: Tensor, pass: &Pass, known: Option<&[[Tensor; 2]]>) -> Result<Tensor> {
    let closed = |x: &Tensor, branch: Option<Tensor>| branch.map_or_else(|| x.shallow_clone(), |branch| x + branch);
    // What the last block has not added yet.
    let mut branch = None;
    for (i, block) in blocks.iter().enumerate() {
        if known.is_none() && pass.recompute && x.requires_grad() {
            x = block.forward_recomputed(&closed(&x, branch.take()), pass)?;
            continue;
        }
        let (sum, open, _) = block.forward_open(&x, branch.as_ref(), pass, known.and_then(|known| known.get(i)))?;
        (x, branch) = (sum, Some(open));
    }
    Ok(closed(&x, branch))
}

/// The blocks of a network.
pub(crate) fn make(
    b: &mut ParamBuilder,
    sizes: &BlockSizes,
    depth: i64,
    policy: PrecisionPolicy,
) -> Result<Vec<Block>> {
    (0..depth).map(|i| Block::new(b, i, sizes, policy)).collect()
}

#[derive(Debug)]
pub(crate) struct Block {
    norm1: RmsNorm,
    attn: Attention,
    norm2: RmsNorm,
    w12: Linear,
    w3: Linear,
    index: u64,
    dropout: f64,
}

impl Block {
    fn new(b: &mut ParamBuilder, index: i64, sizes: &BlockSizes, policy: PrecisionPolicy) -> Result<Self> {
        let name = format!("{PREFIX}{index}");
        let (h, inner) = (sizes.hidden_size, sizes.mlp_hidden());
        Ok(Self {
            norm1: RmsNorm::new(b, &format!("{name}.norm1"), h, EPS)?,
            attn: Attention::new(b, &format!("{name}.attn"), sizes, policy)?,
            norm2: RmsNorm::new(b, &format!("{name}.norm2"), h, EPS)?,
            w12: Linear::new(
                b,
                &format!("{name}.mlp.w12"),
                Fans { fan_in: h, fan_out: 2 * inner },
                Init::XavierUniform,
                true,
            )?
            .with_int8(policy.int8),
            w3: Linear::new(
                b,
                &format!("{name}.mlp.w3"),
                Fans { fan_in: inner, fan_out: h },
                Init::XavierUniform,
                true,
            )?
            .with_int8(policy.int8),
            index: index as u64,
            dropout: sizes.dropout_in(index),
        })
    }

    fn shallow_clone(&self) -> Self {
        Self {
            norm1: self.norm1.shallow_clone(),
            attn: self.attn.shallow_clone(),
            norm2: self.norm2.shallow_clone(),
            w12: self.w12.shallow_clone(),
            w3: self.w3.shallow_clone(),
            index: self.index,
            dropout: self.dropout,
        }
    }

    /// Does the same as [`Block::forward`] but keeps only `x` for the backward pass, which computes the block again.
    pub(crate) fn forward_recomputed(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (block, pass) = (self.shallow_clone(), pass.shallow_clone());
        let run = move |x: &Tensor| block.forward(x, &pass).map_err(|e| TchError::Torch(e.to_string()));
        Ok(elf_kernels::recompute(x, run)?)
    }

    /// `[B, N, H]` to the same shape.
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        Ok(self.forward_with(x, pass, None)?.0)
    }

    /// Does the same as [`Block::forward`] after tokens whose keys and values in this block are `known`. Also returns the keys and values
    /// of `x`.
    pub(crate) fn forward_with(
        &self,
        x: &Tensor,
        pass: &Pass,
        known: Option<&[Tensor; 2]>,
    ) -> Result<(Tensor, [Tensor; 2])> {
        let (x, branch, own) = self.forward_open(x, None, pass, known)?;
        Ok((x + branch, own))
    }

    /// Does the same as [`Block::forward_with`] with the last sum of the block before, `x + branch`, and without its own, which are its
    /// first two results: a GPU makes one launch of a sum and the normalisation after it.
    pub(crate) fn forward_open(
        &self,
        x: &Tensor,
        branch: Option<&Tensor>,
        pass: &Pass,
        known: Option<&[Tensor; 2]>,
    ) -> Result<(Tensor, Tensor, [Tensor; 2])> {
        let (x, normed) = match branch {
            Some(branch) => self.norm1.add_forward(x, branch)?,
            None => (x.shallow_clone(), self.norm1.forward(x)),
        };
        let (attended, own) = self.attn.forward(&normed, &pass.rope, known, pass.mask.as_ref())?;
        let (x, normed) = self.norm2.add_forward(&x, &self.drop(attended, pass, 0)?)?;
        let gated = elf_kernels::swiglu(&self.w12.forward(&normed))?;
        let gated = self.drop(gated, pass, 1)?;
        Ok((x, self.w3.forward(&gated), own))
    }

    /// Applies the dropout of this place in the block.
    fn drop(&self, x: Tensor, pass: &Pass, place: u64) -> Result<Tensor> {
        match pass.dropout.as_deref().filter(|_| self.dropout > 0.0) {
            Some(PassDropout { dropout, of, held }) => dropout.apply(&x, self.dropout, &[self.index, place], *of, held),
            None => Ok(x),
        }
    }
}
