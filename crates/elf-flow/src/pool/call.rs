//! What runs wait for, and how the same of several runs is computed at once.

use std::any::Any;
use std::ptr::from_ref;

use elf_core::{Context, Memory, Network, Result, TrunkInput};
use tch::Tensor;

use crate::decode::positions_per_chunk;

/// What a panic left.
pub(super) type Panic = Box<dyn Any + Send>;

/// The result of a call; a panic of the network goes on in the run that called it.
pub(super) type Reply = std::result::Result<Result<Tensor>, Panic>;

/// A call of a network that a run waits for.
pub(super) struct Call<'a> {
    net: &'a dyn Network,
    what: What,
}

enum What {
    Trunk(Trunk),
    Clean(Tensor),
    Logits(Tensor),
}

/// A [`TrunkInput`] without dropout.
struct Trunk {
    z: Tensor,
    x_prev: Option<Tensor>,
    t: Tensor,
    guidance: Option<Tensor>,
    decode: Option<Tensor>,
    context: Option<Prefix>,
    words: Option<Tensor>,
}

/// A [`Context`].
struct Prefix {
    latents: Tensor,
    ids: Tensor,
    blocks: Tensor,
    noisy_blocks: Tensor,
    first: i64,
    memory: Option<Memory>,
}

/// Calls of equal kinds can be computed at once.
#[derive(Clone, PartialEq)]
pub(super) struct CallKind {
    net: *const (),
    name: &'static str,
    sizes: Vec<i64>,
}

fn handle(tensor: Option<&Tensor>) -> Option<Tensor> {
    tensor.map(Tensor::shallow_clone)
}

impl Prefix {
    fn of(context: &Context) -> Self {
        Self {
            latents: context.latents.shallow_clone(),
            ids: context.ids.shallow_clone(),
            blocks: context.blocks.shallow_clone(),
            noisy_blocks: context.noisy_blocks.shallow_clone(),
            first: context.first,
            memory: context.memory.map(Memory::shallow_clone),
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            latents: &self.latents,
            ids: &self.ids,
            blocks: &self.blocks,
            noisy_blocks: &self.noisy_blocks,
            first: self.first,
            memory: self.memory.as_ref(),
        }
    }

    /// Those of several batches as that of one; `None` if the network cannot join their memories.
    fn joined(net: &dyn Network, all: &[&Self]) -> Result<Option<Self>> {
        let cat = |of: fn(&Self) -> &Tensor| cat(all.iter().map(|prefix| of(prefix)));
        let first = all[0].first;
        let noisy_blocks = cat(|prefix| &prefix.noisy_blocks)?;
        let memories: Vec<&Memory> = all.iter().filter_map(|prefix| prefix.memory.as_ref()).collect();
        if memories.is_empty() {
            let (latents, ids) = (cat(|prefix| &prefix.latents)?, cat(|prefix| &prefix.ids)?);
            let blocks = cat(|prefix| &prefix.blocks)?;
            return Ok(Some(Self { latents, ids, blocks, noisy_blocks, first, memory: None }));
        }
        let Some(memory) = net.join(&memories)? else { return Ok(None) };
        // Only the sizes of these count.
        let (rows, longest) = (noisy_blocks.size()[0], all.iter().map(|prefix| prefix.latents.size()[1]).max());
        let longest = longest.unwrap_or(0);
        let empty = |of: &Tensor, size: &[i64]| Tensor::f_zeros([1], (of.kind(), of.device()))?.f_expand(size, false);
        Ok(Some(Self {
            latents: empty(&all[0].latents, &[rows, longest, all[0].latents.size()[2]])?,
            ids: empty(&all[0].ids, &[rows, longest])?,
            blocks: empty(&all[0].blocks, &[rows, longest])?,
            noisy_blocks,
            first,
            memory: Some(memory),
        }))
    }
}

fn cat<'t>(parts: impl Iterator<Item = &'t Tensor>) -> Result<Tensor> {
    Ok(Tensor::f_cat(&parts.collect::<Vec<_>>(), 0)?)
}

impl Trunk {
    fn input(&self) -> TrunkInput<'_> {
        TrunkInput {
            x_prev: self.x_prev.as_ref(),
            guidance: self.guidance.as_ref(),
            decode: self.decode.as_ref(),
            context: self.context.as_ref().map(Prefix::context),
            words: self.words.as_ref(),
            ..TrunkInput::new(&self.z, &self.t)
        }
    }

    /// Inputs of several batches as that of one; `None` if the network cannot join their memories.
    fn joined(net: &dyn Network, all: &[&Self]) -> Result<Option<Self>> {
        let prefixes: Vec<&Prefix> = all.iter().filter_map(|trunk| trunk.context.as_ref()).collect();
        let context = match prefixes.is_empty() {
            true => None,
            false => match Prefix::joined(net, &prefixes)? {
                Some(joined) => Some(joined),
                None => return Ok(None),
            },
        };
        // A number for each row, where any of them has one.
        let numbers = |of: fn(&Self) -> &Option<Tensor>, otherwise: f64| -> Result<Option<Tensor>> {
            if all.iter().all(|trunk| of(trunk).is_none()) {
                return Ok(None);
            }
            let own = |trunk: &&Self| match of(trunk) {
                Some(own) => Ok(own.shallow_clone()),
                None => trunk.t.f_full_like(otherwise),
            };
            let own = all.iter().map(own).collect::<std::result::Result<Vec<_>, _>>()?;
            Ok(Some(Tensor::f_cat(&own, 0)?))
        };
        // Calls of one kind all have it, or none has.
        let tensors = |of: fn(&Self) -> &Option<Tensor>| {
            let own: Vec<&Tensor> = all.iter().filter_map(|trunk| of(trunk).as_ref()).collect();
            if own.is_empty() { Ok(None) } else { Tensor::f_cat(&own, 0).map(Some) }
        };
        Ok(Some(Self {
            z: cat(all.iter().map(|trunk| &trunk.z))?,
            x_prev: tensors(|trunk| &trunk.x_prev)?,
            words: tensors(|trunk| &trunk.words)?,
            t: cat(all.iter().map(|trunk| &trunk.t))?,
            guidance: numbers(|trunk| &trunk.guidance, 1.0)?,
            decode: numbers(|trunk| &trunk.decode, 0.0)?,
            context,
        }))
    }
}

impl<'a> Call<'a> {
    pub(super) fn trunk(net: &'a dyn Network, input: &TrunkInput) -> Self {
        let trunk = Trunk {
            z: input.z.shallow_clone(),
            x_prev: handle(input.x_prev),
            t: input.t.shallow_clone(),
            guidance: handle(input.guidance),
            decode: handle(input.decode),
            context: input.context.as_ref().map(Prefix::of),
            words: handle(input.words),
        };
        Self { net, what: What::Trunk(trunk) }
    }

    pub(super) fn clean(net: &'a dyn Network, hidden: &Tensor) -> Self {
        Self { net, what: What::Clean(hidden.shallow_clone()) }
    }

    pub(super) fn logits(net: &'a dyn Network, hidden: &Tensor) -> Self {
        Self { net, what: What::Logits(hidden.shallow_clone()) }
    }

    /// Whether it is a pass of the whole network, which other runs wait for, so that they are in it.
    pub(super) fn is_trunk(&self) -> bool {
        matches!(self.what, What::Trunk(_))
    }

    /// Its rows; of logits, its positions.
    pub(super) fn rows(&self) -> i64 {
        match &self.what {
            What::Trunk(trunk) => trunk.z.size()[0],
            What::Clean(hidden) | What::Logits(hidden) => hidden.size()[0],
        }
    }

    /// The most rows that are computed at once.
    pub(super) fn room(&self) -> i64 {
        match &self.what {
            What::Logits(_) => positions_per_chunk(self.net),
            _ => i64::MAX,
        }
    }

    /// Its kind. With `exact`, calls of a kind have equal shapes.
    pub(super) fn kind(&self, exact: bool) -> CallKind {
        let (name, mut sizes) = match &self.what {
            What::Trunk(Trunk { z, x_prev, context, words, .. }) => {
                let mut sizes = [&z.size()[1..], &[i64::from(x_prev.is_some()), i64::from(words.is_some())]].concat();
                if let Some(context) = context {
                    let remembered = context.memory.is_some();
                    sizes.push(i64::from(remembered));
                    if exact || !remembered {
                        sizes.extend([context.first, context.latents.size()[1]]);
                    }
                }
                ("trunk", sizes)
            }
            What::Clean(hidden) => ("clean", hidden.size()[1..].to_vec()),
            What::Logits(hidden) => ("logits", hidden.size()[1..].to_vec()),
        };
        if exact {
            sizes.push(self.rows());
        }
        CallKind { net: from_ref(self.net).cast(), name, sizes }
    }

    /// The results of calls of one kind, computed at once.
    ///
    /// # Errors
    /// If the network fails.
    pub(super) fn compute(calls: &[&Self]) -> Result<Vec<Tensor>> {
        let Some(Self { net, what }) = calls.first() else { return Ok(Vec::new()) };
        let hidden = || cat(calls.iter().filter_map(|call| call.what.hidden()));
        let all = match what {
            What::Clean(_) => net.clean(&hidden()?)?,
            What::Logits(_) => net.logits(&hidden()?)?,
            What::Trunk(one) if calls.len() == 1 => return Ok(vec![net.trunk(&one.input())?]),
            What::Trunk(_) => {
                let trunks: Vec<&Trunk> = calls.iter().filter_map(|call| call.what.input()).collect();
                match Trunk::joined(*net, &trunks)? {
                    Some(joined) => net.trunk(&joined.input())?,
                    None => return trunks.iter().map(|one| net.trunk(&one.input())).collect(),
                }
            }
        };
        let mut from = 0;
        let part = |call: &&Self| {
            let part = all.f_narrow(0, from, call.rows())?;
            from += call.rows();
            Ok(part)
        };
        calls.iter().map(part).collect()
    }
}

impl What {
    fn input(&self) -> Option<&Trunk> {
        match self {
            Self::Trunk(input) => Some(input),
            Self::Clean(_) | Self::Logits(_) => None,
        }
    }

    fn hidden(&self) -> Option<&Tensor> {
        match self {
            Self::Trunk(_) => None,
            Self::Clean(hidden) | Self::Logits(hidden) => Some(hidden),
        }
    }
}
