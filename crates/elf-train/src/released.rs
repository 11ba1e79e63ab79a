//! Training checkpoints of the released PyTorch code, to continue such a run.
//!
//! Such a file holds `params`, `ema_params1`, `opt_state` (the `state_dict` of their optimiser), `lr_scheduler`, `step`
//! and `epoch`. The state of `lr_scheduler` is not needed: the learning rate is a function of the run's settings and of
//! the optimiser's count of steps, which is also in `opt_state`. Optimiser state is stored under numbers; the
//! optimiser's groups list them, in the order of `params`.

use std::path::Path;
use std::sync::Arc;

use elf_core::pytorch::{PyTorchFile, TensorRef, Value};
use elf_core::weights::{self, ParamKind, TRAINED, Weights, unwrapped};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// A training checkpoint of the released code.
#[derive(Debug)]
pub struct ReleasedCheckpoint {
    file: Arc<PyTorchFile>,
}

type Tree = Value<TensorRef>;

impl ReleasedCheckpoint {
    /// Opens a checkpoint, or the latest `checkpoint_N` in a folder.
    ///
    /// # Errors
    /// If there is none, or it is damaged or refused.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: Arc::new(PyTorchFile::open(weights::find(path)?)?) })
    }

    /// The checkpoint's file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::Checkpoint { path: self.path().to_owned(), reason: reason.into() }
    }

    fn count(&self, key: &str) -> Result<u64> {
        let value = self.file.value().get(key).and_then(Value::as_int).and_then(|i| u64::try_from(i).ok());
        value.ok_or_else(|| {
            self.bad(format!("it has no count `{key}`: it is not a training checkpoint of the released code"))
        })
    }

    /// Number of batches done. The released code counts these, even if an optimiser step consists of several batches.
    ///
    /// # Errors
    /// If the file has no such count.
    pub fn step(&self) -> Result<u64> {
        self.count("step")
    }

    /// Number of optimiser steps done, counted by the optimiser itself.
    ///
    /// # Errors
    /// As [`ReleasedCheckpoint::optimizer_state`].
    pub fn optimizer_steps(&self) -> Result<u64> {
        let first = self.file.value().get("opt_state").and_then(|opt| opt.get("state")).and_then(Value::items);
        let count = first.and_then(<[_]>::first).and_then(|(_, entry)| entry.get("step"));
        let count = count.ok_or_else(|| self.bad("its optimiser has no count of steps"))?;
        Ok(self.number(count)?.unsigned_abs())
    }

    /// Epochs done.
    ///
    /// # Errors
    /// If the file has no such count.
    pub fn epoch(&self) -> Result<u64> {
        self.count("epoch")
    }

    /// Whether it was saved between the micro-batches of one step. The gradients accumulated by then are not read.
    pub fn is_amid_a_step(&self) -> bool {
        self.file.value().get("grad_accum_buffers").and_then(Value::items).is_some_and(|items| !items.is_empty())
    }

    /// The averaged or the trained parameters.
    ///
    /// # Errors
    /// If there are none.
    pub fn weights(&self, which: ParamKind) -> Result<Weights> {
        Ok(Weights::of_pytorch(Arc::clone(&self.file), which)?)
    }

    /// The averages, by name, in fp32.
    pub(crate) fn averages(&self) -> Result<Vec<(String, Tensor)>> {
        let weights = self.weights(ParamKind::Averaged)?;
        let copy = |name: &str| Ok((name.to_owned(), weights.get(name, Device::Cpu)?.f_to_kind(Kind::Float)?));
        weights.names().map(copy).collect()
    }

    /// The optimiser's state under this crate's names: `momentum/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`, `steps`.
    ///
    /// # Errors
    /// If the file has no such state, or one that is not of Muon or AdamW as the released code runs them.
    pub fn optimizer_state(&self) -> Result<Vec<(String, Tensor)>> {
        let missing = || self.bad("it has no `opt_state` to continue from: it can be sampled from, but not trained on");
        let opt = self.file.value().get("opt_state").ok_or_else(missing)?;
        let (state, groups) =
            opt.get("state").zip(opt.get("param_groups").and_then(Value::members)).ok_or_else(missing)?;
        if state.items().is_some_and(<[_]>::is_empty) {
            return Err(self
                .bad("its optimiser has done no step yet: it can be sampled from, but there is nothing to continue"));
        }
        let (mut named, mut steps) = (Vec::new(), None);
        for group in groups {
            let names = self.names_of(group, groups.len())?;
            let ids = group.get("params").and_then(Value::members).unwrap_or_default();
            if ids.len() != names.len() {
                return Err(self.bad(format!(
                    "a group of its optimiser counts {} parameters where the model has {}",
                    ids.len(),
                    names.len()
                )));
            }
            for (id, name) in ids.iter().zip(names) {
                let entry = id.as_int().and_then(|id| state.at(id));
                let entry = entry.ok_or_else(|| self.bad(format!("its optimiser has no state for {name}")))?;
                for (key, value) in entry.items().unwrap_or_default() {
                    let what = match key.as_str() {
                        Some("momentum_buffer") => "momentum",
                        Some("exp_avg") => "exp_avg",
                        Some("exp_avg_sq") => "exp_avg_sq",
                        Some("step") => {
                            let step = self.number(value)?;
                            if *steps.get_or_insert(step) != step {
                                return Err(self.bad(format!(
                                    "its optimiser did {step} steps on {name}, but another number on others"
                                )));
                            }
                            continue;
                        }
                        _ => return Err(self.bad(format!("its optimiser has state of an unknown kind for {name}"))),
                    };
                    let tensor =
                        value.as_tensor().ok_or_else(|| self.bad(format!("{what} of {name} is not a tensor")))?;
                    let tensor = self.file.tensor(tensor, Device::Cpu)?.f_to_kind(Kind::Float)?;
                    named.push((format!("{what}/{name}"), tensor));
                }
            }
        }
        let steps = steps.ok_or_else(|| self.bad("its optimiser has done no step yet"))?;
        named.push(("steps".to_owned(), Tensor::from_slice(&[steps])));
        Ok(named)
    }

    /// The parameters of a group of the optimiser: matrices or the rest with Muon, all with AdamW.
    fn names_of(&self, group: &Tree, groups: usize) -> Result<Vec<&str>> {
        let matrices = match (group.get("use_muon"), groups) {
            (Some(Value::Bool(muon)), _) => Some(*muon),
            (_, 1) => None,
            _ => return Err(self.bad("its optimiser has groups that are neither Muon's nor AdamW's")),
        };
        let params = self.file.value().get(TRAINED).and_then(Value::items).unwrap_or_default();
        let of_group = params.iter().filter_map(|(name, value)| {
            let is_matrix = value.as_tensor()?.shape().len() == 2;
            matrices.is_none_or(|wanted| wanted == is_matrix).then(|| name.as_str().map(unwrapped)).flatten()
        });
        Ok(of_group.collect())
    }

    /// A count of steps, which PyTorch's own optimisers keep as a tensor.
    fn number(&self, value: &Tree) -> Result<i64> {
        let number = match value {
            Value::Tensor(t) if t.numel() == 1 => {
                self.file.tensor(t, Device::Cpu)?.f_view([1])?.f_double_value(&[0])?
            }
            other => other.as_float().unwrap_or(-1.0),
        };
        match number >= 0.0 && number.fract() == 0.0 && number < 2f64.powi(53) {
            true => Ok(number as i64),
            false => Err(self.bad("its optimiser's count of steps is not a whole number")),
        }
    }
}
