//! Conversion of this crate's checkpoints to the format of the released PyTorch code, so that a run can be continued
//! there.
//!
//! The tree of keys, kinds and shapes is what that code's `save_checkpoint` writes: `params`, `ema_params1`,
//! `opt_state`, `lr_scheduler`, `step`, `epoch`, `dropout_rng`, `grad_accum_buffers`.

use std::collections::HashMap;

use elf_core::pytorch::Value;
use elf_core::weights::{AVERAGED, TRAINED};
use elf_core::{WORD_GUIDE, key_of};
use tch::{Kind, Tensor};

use crate::checkpoint::Checkpoint;
use crate::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use crate::{Error, Result, TrainerConfig};

type Tree = Value<Tensor>;

/// The released model's only module without parameters, and the module before which PyTorch lists it.
const ROTARY: (&str, &str) = ("feat_rope", "blocks");

/// What the released format needs in addition to a checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct ReleasedForm<'a> {
    /// Names of all parameters in the order of the released model's `state_dict`. The released optimisers number them
    /// by it.
    pub order: &'a [String],
    /// The run's settings: optimiser, schedule, batches of a step, seed.
    pub config: &'a TrainerConfig,
    /// Epochs done.
    pub epoch: u64,
}

impl ReleasedForm<'_> {
    /// Converts a checkpoint. The released code counts batches instead of optimiser steps, and draws from one
    /// generator, whose state is derived from the run's seed and the step.
    ///
    /// # Errors
    /// If a file of the checkpoint is damaged, or its parameters are not those of `order`.
    pub fn of_checkpoint(&self, checkpoint: &Checkpoint) -> Result<Tree> {
        checkpoint.verify()?;
        let (config, steps) = (self.config, checkpoint.state().step);
        let params = Parameters::new(self.order, checkpoint.trained()?)?;
        let averages = Parameters::new(self.order, checkpoint.averaged()?)?;
        let (lr, base) = (config.schedule.lr_at(steps), config.schedule.lr);
        let (groups, counted, tensor_count) = match &config.optimizer {
            OptimizerConfig::Muon(muon) => (muon_groups(muon, &params, lr, base), params.as_muon_counts(), false),
            OptimizerConfig::Adamw(adamw) => {
                (vec![adamw_group(adamw, lr, base, self.order.len())], self.order.iter().collect(), true)
            }
        };
        let mut optimizer = checkpoint.optimizer_state()?;
        let mut state = Vec::with_capacity(counted.len());
        for (id, name) in counted.into_iter().enumerate() {
            let mut take = |what: &str| optimizer.remove(&format!("{what}/{name}")).map(Value::Tensor);
            let kept = match (take("momentum"), take("exp_avg"), take("exp_avg_sq")) {
                (Some(momentum), None, None) => vec![text("momentum_buffer", momentum), text("step", int(steps))],
                (None, Some(first), Some(second)) if tensor_count => {
                    // PyTorch's own optimisers count in a tensor, which comes first.
                    let count = Tensor::f_from_slice(&[steps as f32])?.f_view([0i64; 0])?;
                    vec![text("step", Value::Tensor(count)), text("exp_avg", first), text("exp_avg_sq", second)]
                }
                (None, Some(first), Some(second)) => {
                    vec![text("exp_avg", first), text("exp_avg_sq", second), text("step", int(steps))]
                }
                _ => {
                    let reason = format!("its optimiser's state for {name} is not that of Muon or AdamW");
                    return Err(Error::Checkpoint { path: checkpoint.path().to_owned(), reason });
                }
            };
            state.push((Value::Int(id as i64), Value::Dict(kept)));
        }
        let scheduler = scheduler(groups.len(), steps, lr, base);
        Ok(Value::Dict(vec![
            text(TRAINED, params.as_state_dict()),
            text(AVERAGED, Value::Dict(averages.items())),
            text("opt_state", opt_state(state, groups)),
            text("lr_scheduler", scheduler),
            text("step", int(steps * u64::from(config.accumulation.get()))),
            text("epoch", int(self.epoch)),
            text("dropout_rng", Value::Tensor(fresh_generator(key_of(&[config.seed, steps]))?)),
            text("grad_accum_buffers", Value::Dict(Vec::new())),
        ]))
    }
}

/// Converts parameters to a checkpoint of the released code at step 0, with averages equal to the parameters. That code
/// can sample from it, and fine-tune it with a fresh optimiser. `order` is as in [`ReleasedForm`].
///
/// # Errors
/// If the parameters are not those of `order`.
pub fn released_form_of_parameters(order: &[String], params: Vec<(String, Tensor)>) -> Result<Tree> {
    let params = Parameters::new(order, params.into_iter().collect())?;
    let groups = muon_groups(&MuonConfig::default(), &params, 0.0, 0.0);
    Ok(Value::Dict(vec![
        text(TRAINED, params.as_state_dict()),
        text(AVERAGED, Value::Dict(params.items())),
        text("opt_state", opt_state(Vec::new(), groups)),
        text("lr_scheduler", Value::None),
        text("step", int(0)),
        text("epoch", int(0)),
        text("dropout_rng", Value::None),
        text("grad_accum_buffers", Value::Dict(Vec::new())),
    ]))
}

/// Parameters in the released model's order, without a word guide, which the network does not use.
struct Parameters<'a>(Vec<(&'a String, Tensor)>);

impl<'a> Parameters<'a> {
    fn new(order: &'a [String], mut tensors: HashMap<String, Tensor>) -> Result<Self> {
        let alone = |name: &str| {
            Error::setting(
                "checkpoint",
                format!("it and the released model do not have the same parameters: {name} is on one side only"),
            )
        };
        tensors.retain(|name, _| !name.starts_with(WORD_GUIDE));
        let pairs = order.iter().map(|name| Ok((name, tensors.remove(name).ok_or_else(|| alone(name))?)));
        let pairs = pairs.collect::<Result<_>>()?;
        match tensors.keys().next() {
            Some(extra) => Err(alone(extra)),
            None => Ok(Self(pairs)),
        }
    }

    fn matrices(&self) -> usize {
        self.0.iter().filter(|(_, t)| t.dim() == 2).count()
    }

    /// Matrices first, which Muon updates, then the rest, each in order.
    fn as_muon_counts(&self) -> Vec<&'a String> {
        let of = |matrices: bool| self.0.iter().filter(move |(_, t)| (t.dim() == 2) == matrices).map(|(name, _)| *name);
        of(true).chain(of(false)).collect()
    }

    fn items(&self) -> Vec<(Tree, Tree)> {
        self.0.iter().map(|(name, t)| text(name, Value::Tensor(t.shallow_clone()))).collect()
    }

    /// The parameters as a module's `state_dict`, with the versions of all modules, which PyTorch stores too.
    fn as_state_dict(&self) -> Tree {
        let mut modules = vec![""];
        for (name, _) in &self.0 {
            for (dot, _) in name.match_indices('.') {
                let module = &name[..dot];
                if !modules.contains(&module) {
                    modules.extend((module == ROTARY.1).then_some(ROTARY.0));
                    modules.push(module);
                }
            }
        }
        let version = |module: &str| text(module, Value::Dict(vec![text("version", int(1))]));
        let metadata = Value::OrderedDict { items: modules.into_iter().map(version).collect(), attributes: Vec::new() };
        Value::OrderedDict { items: self.items(), attributes: vec![text("_metadata", metadata)] }
    }
}

fn opt_state(state: Vec<(Tree, Tree)>, groups: Vec<Tree>) -> Tree {
    Value::Dict(vec![text("state", Value::Dict(state)), text("param_groups", Value::List(groups))])
}

fn text(key: &str, value: Tree) -> (Tree, Tree) {
    (Value::Str(key.to_owned()), value)
}

fn int(n: u64) -> Tree {
    // Counts of steps and epochs are far below 2^63.
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn ids(range: std::ops::Range<usize>) -> (Tree, Tree) {
    text("params", Value::List(range.map(|id| Value::Int(id as i64)).collect()))
}

/// The groups of the released Muon: matrices, and the rest.
fn muon_groups(config: &MuonConfig, params: &Parameters, lr: f64, base: f64) -> Vec<Tree> {
    let (matrices, all, adam) = (params.matrices(), params.0.len(), config.adam);
    let matrices_group = vec![
        text("lr", Value::Float(lr)),
        text("momentum", Value::Float(config.momentum)),
        text("weight_decay", Value::Float(0.0)),
        text("use_muon", Value::Bool(true)),
        text("initial_lr", Value::Float(base)),
        ids(0..matrices),
    ];
    let rest_group = vec![
        text("lr", Value::Float(lr)),
        text("betas", Value::Tuple(vec![Value::Float(adam.b1), Value::Float(adam.b2)])),
        text("eps", Value::Float(adam.eps)),
        text("weight_decay", Value::Float(0.0)),
        text("use_muon", Value::Bool(false)),
        text("initial_lr", Value::Float(base)),
        ids(matrices..all),
    ];
    vec![Value::Dict(matrices_group), Value::Dict(rest_group)]
}

/// The group of `torch.optim.AdamW`.
fn adamw_group(config: &AdamWConfig, lr: f64, base: f64, count: usize) -> Tree {
    Value::Dict(vec![
        text("lr", Value::Float(lr)),
        text("betas", Value::Tuple(vec![Value::Float(config.b1), Value::Float(config.b2)])),
        text("eps", Value::Float(config.eps)),
        text("weight_decay", Value::Float(config.weight_decay)),
        text("amsgrad", Value::Bool(false)),
        text("maximize", Value::Bool(false)),
        text("foreach", Value::None),
        text("capturable", Value::Bool(false)),
        text("differentiable", Value::Bool(false)),
        text("fused", Value::None),
        text("decoupled_weight_decay", Value::Bool(true)),
        text("initial_lr", Value::Float(base)),
        ids(0..count),
    ])
}

/// The state of `torch.optim.lr_scheduler.LambdaLR`.
fn scheduler(groups: usize, steps: u64, lr: f64, base: f64) -> Tree {
    let each = |value: fn(f64) -> Tree, x: f64| Value::List((0..groups).map(|_| value(x)).collect());
    Value::Dict(vec![
        text("base_lrs", each(Value::Float, base)),
        text("last_epoch", int(steps)),
        text("_step_count", int(steps + 1)),
        text("_is_initial", Value::Bool(false)),
        text("_get_lr_called_within_step", Value::Bool(false)),
        text("_last_lr", each(Value::Float, lr)),
        text("lr_lambdas", each(|_| Value::None, 0.0)),
    ])
}

/// The result of `torch.Generator().manual_seed(seed).get_state()` on a CPU: a Mersenne twister before its first
/// number.
fn fresh_generator(seed: u64) -> Result<Tensor> {
    const WORDS: usize = 624;
    // The form is older than the twister's: counters, 624 words of 64 bits, and room for a spare normal draw.
    const BYTES: usize = 5056;
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.extend_from_slice(&seed.to_le_bytes());
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(&0u64.to_le_bytes());
    let mut word = seed as u32;
    for i in 1..=WORDS as u32 {
        bytes.extend_from_slice(&u64::from(word).to_le_bytes());
        word = 1_812_433_253u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(i);
    }
    bytes.resize(BYTES, 0);
    Ok(Tensor::f_from_slice(&bytes)?.f_to_kind(Kind::Uint8)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_pytorchs() {
        // torch.Generator().manual_seed(0x100000007).get_state() of PyTorch 2.11.
        let state = Vec::<u8>::try_from(fresh_generator(0x1_0000_0007).unwrap()).unwrap();
        assert_eq!(state.len(), 5056);
        assert_eq!(state[..24], [7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let word = |i: usize| u64::from_le_bytes(state[24 + 8 * i..32 + 8 * i].try_into().unwrap());
        assert_eq!([word(0), word(1), word(2)], [7, 4_097_098_180, 3_572_822_661]);
        assert!(state[5016..].iter().all(|&b| b == 0));
    }
}
