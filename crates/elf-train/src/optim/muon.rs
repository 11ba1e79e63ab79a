//! Muon: momentum with orthogonalised matrices as updates.

use std::collections::BTreeMap;

use elf_core::{Fans, Param, ParamSet, Precision};
use elf_kernels::MomentumStep;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::adam::{NesterovAdam, NesterovAdamConfig};
use super::newton_schulz::{orthogonalise, orthogonalise_normalised};
use super::state::{Averages, check_decay, gradient, param, restore_with_steps, steps_entry};
use super::{Group, Optimizer};
use crate::{Error, Result};

/// Maximum number of elements in a stack of matrices. Small matrices of equal shape are orthogonalised together, which
/// is two to three times faster; a large matrix uses the whole processor by itself, and stacking would only take
/// memory.
const STACK: i64 = 1 << 20;

/// Settings of [`Muon`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MuonConfig {
    /// Decay of the momentum.
    pub momentum: f64,
    /// Newton-Schulz iterations.
    pub iterations: usize,
    /// The precision of the iterations. The reference numbers are for f32. With bf16 the updates' directions differ by
    /// less than a thousandth (one minus the cosine) and a step costs several times less on a CPU with bf16 matrix
    /// units; momenta, updates and parameters are fp32 either way.
    pub precision: Precision,
    /// Settings for parameters that are not matrices.
    pub adam: NesterovAdamConfig,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self { momentum: 0.95, iterations: 5, precision: Precision::F32, adam: NesterovAdamConfig::default() }
    }
}

/// Muon for every two-dimensional parameter, Nesterov-Adam for the rest; no weight decay.
///
/// With momentum `m <- d m + (1 - d) g` a matrix changes by `lr sqrt(max(1, fan_out / fan_in))` times the
/// orthogonalised `d m / (1 - d^(k+1)) + (1 - d) g / (1 - d^k)`, k counting from 1.
#[derive(Debug)]
pub struct Muon {
    config: MuonConfig,
    names: Vec<String>,
    /// Indices into `names` of the matrices that are orthogonalised together.
    stacks: Vec<Vec<usize>>,
    momentum: Averages,
    rest: NesterovAdam,
    groups: [Group; 2],
    steps: i64,
}

impl Muon {
    /// Makes an optimiser for all of `params`, with averages of 0.
    ///
    /// # Errors
    /// If a setting is out of its range, or there is no matrix among the parameters.
    pub fn new(config: MuonConfig, params: &ParamSet) -> Result<Self> {
        groups(params)?;
        Self::for_share(config, params)
    }

    /// Does the same as [`Muon::new`] for one rank's share of the parameters, which may have no matrix.
    pub(super) fn for_share(config: MuonConfig, params: &ParamSet) -> Result<Self> {
        check_decay("momentum", config.momentum)?;
        if config.iterations == 0 {
            return Err(Error::setting("iterations", "at least 1 Newton-Schulz iteration is needed; 5 is usual"));
        }
        let (names, others) = by_rule(params);
        let groups = groups_of(params, &names, &others);
        let momentum = Averages::zeros("momentum", params, &names)?;
        let rest = NesterovAdam::new(config.adam, params, others)?;
        let stacks = stacks(params, &names)?;
        Ok(Self { config, names, stacks, momentum, rest, groups, steps: 0 })
    }

    /// The momentum's part of step `k`, counted from 1.
    fn momentum_step(&self, k: i64) -> MomentumStep {
        let decay = self.config.momentum;
        MomentumStep {
            decay,
            ahead: decay / (1.0 - decay.powf((k + 1) as f64)),
            now: (1.0 - decay) / (1.0 - decay.powf(k as f64)),
        }
    }

    /// Updates all matrices, on a GPU: those of one shape and scale in one stack, whatever its size, since launches are what costs.
    fn update_by_shape(&self, params: &ParamSet, k: i64, lr: f64) -> Result<()> {
        let matrices = self.names.iter().map(|name| param(params, name)).collect::<Result<Vec<_>>>()?;
        let gradients = matrices.iter().map(|p| gradient(p)).collect::<Result<Vec<_>>>()?;
        let updates = elf_kernels::lists::momentum(self.momentum.all(), &gradients, self.momentum_step(k))?;
        let mut stacks: BTreeMap<(Vec<i64>, u64), Vec<usize>> = BTreeMap::new();
        for (i, p) in matrices.iter().enumerate() {
            stacks.entry((p.tensor.size(), scale(p).to_bits())).or_default().push(i);
        }
        for ((_, bits), stack) in stacks {
            let of_stack: Vec<&Tensor> = stack.iter().map(|&i| &updates[i]).collect();
            let stacked = Tensor::f_stack(&of_stack, 0)?;
            let directions = orthogonalise(&stacked, self.config.iterations, self.config.precision)?;
            let values: Vec<Tensor> = stack.iter().map(|&i| matrices[i].tensor.shallow_clone()).collect();
            let directions = directions.f_contiguous()?.f_unbind(0)?;
            elf_kernels::lists::add_scaled(&values, &directions, -lr * f64::from_bits(bits))?;
        }
        Ok(())
    }

    /// Updates the matrices of one stack; `k` counts from 1.
    fn update_stack(&self, params: &ParamSet, stack: &[usize], k: i64, lr: f64) -> Result<()> {
        let step = self.momentum_step(k);
        let kind = self.config.precision.kind();
        let mut updates = Vec::with_capacity(stack.len());
        for &i in stack {
            let grad = gradient(param(params, &self.names[i])?)?;
            let (mut update, sum_of_squares) = elf_kernels::momentum(&mut self.momentum.get(i), &grad, step, kind)?;
            let _ = update.f_mul_(&(sum_of_squares.f_sqrt()? + 1e-8).f_reciprocal()?)?;
            updates.push(if is_tall(&update) { update.f_transpose(0, 1)? } else { update });
        }
        // libtorch multiplies one pair of matrices faster than a batch of one.
        let directions = match updates.len() {
            1 => vec![orthogonalise_normalised(updates.remove(0), self.config.iterations)?],
            _ => orthogonalise_normalised(Tensor::f_stack(&updates, 0)?, self.config.iterations)?.f_unbind(0)?,
        };
        drop(updates);
        for (&i, direction) in stack.iter().zip(directions) {
            let p = param(params, &self.names[i])?;
            let mut value = p.tensor.shallow_clone();
            let direction = if is_tall(&value) { direction.f_transpose(0, 1)? } else { direction };
            elf_kernels::add_scaled(&mut value, &direction, -lr * scale(p))?;
        }
        Ok(())
    }
}

/// The groups of the matrices and of all other parameters.
fn by_rule(params: &ParamSet) -> (Vec<String>, Vec<String>) {
    let names_of = |matrices: bool| {
        params.iter().filter(|(_, p)| is_matrix(p) == matrices).map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    (names_of(true), names_of(false))
}

fn groups_of(params: &ParamSet, matrices: &[String], others: &[String]) -> [Group; 2] {
    [Group::new("muon", params, matrices), Group::new("nesterov-adam", params, others)]
}

/// The parameters of a whole network that are orthogonalised.
pub(super) fn groups(params: &ParamSet) -> Result<[Group; 2]> {
    let (matrices, others) = by_rule(params);
    if matrices.is_empty() {
        return Err(Error::setting("optimizer", "muon updates matrices, and the network has none; use adamw"));
    }
    Ok(groups_of(params, &matrices, &others))
}

fn is_matrix(p: &Param) -> bool {
    p.tensor.dim() == 2
}

fn is_tall(matrix: &Tensor) -> bool {
    matches!(matrix.size()[..], [rows, columns] if rows > columns)
}

/// `sqrt(max(1, fan_out / fan_in))`; a matrix without fans is taken as stored (out, in).
fn scale(p: &Param) -> f64 {
    let size = p.tensor.size();
    let Fans { fan_in, fan_out } = p.fans.unwrap_or(Fans { fan_in: size[1], fan_out: size[0] });
    (fan_out as f64 / fan_in as f64).max(1.0).sqrt()
}

/// Matrices of equal shape (transposed or not), in stacks of bounded size.
fn stacks(params: &ParamSet, names: &[String]) -> Result<Vec<Vec<usize>>> {
    let mut stacks: Vec<(Vec<i64>, Vec<usize>)> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let mut shape = param(params, name)?.tensor.size();
        shape.sort_unstable();
        let numel: i64 = shape.iter().product();
        let room = |members: &Vec<usize>| (members.len() as i64 + 1).saturating_mul(numel) <= STACK;
        match stacks.iter_mut().find(|(s, members)| *s == shape && room(members)) {
            Some((_, members)) => members.push(i),
            None => stacks.push((shape, vec![i])),
        }
    }
    Ok(stacks.into_iter().map(|(_, members)| members).collect())
}

impl Optimizer for Muon {
    fn step(&mut self, params: &ParamSet, lr: f64) -> Result<()> {
        let k = self.steps + 1;
        tch::no_grad(|| -> Result<()> {
            if params.iter().any(|(_, p)| elf_kernels::takes_gpu_path(p.tensor.device())) {
                self.update_by_shape(params, k, lr)?;
            } else {
                for stack in &self.stacks {
                    self.update_stack(params, stack, k, lr)?;
                }
            }
            self.rest.step(params, k, lr)
        })?;
        self.steps = k;
        params.changed();
        Ok(())
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        self.momentum.named(&self.names).chain(self.rest.named()).chain([steps_entry(self.steps)]).collect()
    }

    fn load_state(&mut self, origin: &str, state: &[(String, Tensor)]) -> Result<()> {
        let expected = self.momentum.named(&self.names).chain(self.rest.named()).collect();
        self.steps = restore_with_steps(origin, expected, state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::newton_schulz::orthogonalise;
    use super::*;
    use elf_core::{Init, ParamBuilder};
    use tch::{Device, Kind};

    /// A wide, a tall and a square matrix, one stored (in, out), a vector and learned tokens.
    fn network() -> ParamSet {
        let mut b = ParamBuilder::seeded(5, Device::Cpu);
        let start = Init::Normal(0.5);
        b.matrix("wide", [4, 6], start, Fans { fan_in: 6, fan_out: 4 }).unwrap();
        b.tensor("bias", &[4], start).unwrap();
        b.matrix("tall", [6, 4], start, Fans { fan_in: 4, fan_out: 6 }).unwrap();
        b.matrix("kernel", [4, 16], start, Fans { fan_in: 4, fan_out: 16 }).unwrap();
        b.matrix("square", [4, 4], start, Fans { fan_in: 4, fan_out: 4 }).unwrap();
        b.tensor("tokens", &[1, 2, 4], start).unwrap();
        let set = b.finish();
        set.set_requires_grad(true);
        set
    }

    /// Half the sum of squares: every gradient is the parameter itself.
    fn backward(set: &ParamSet) {
        set.zero_grad();
        let loss: Tensor = set.iter().map(|(_, p)| p.tensor.square().sum(Kind::Float)).sum();
        (loss * 0.5).backward();
    }

    #[test]
    fn every_parameter_is_in_exactly_one_group() {
        let set = network();
        let muon = Muon::new(MuonConfig::default(), &set).unwrap();
        let names = |i: usize| muon.groups()[i].params.join(" ");
        assert_eq!((names(0).as_str(), names(1).as_str()), ("wide tall kernel square", "bias tokens"));
        assert_eq!(muon.groups().iter().map(|g| g.numel).sum::<u64>(), set.numel());
        assert_eq!(muon.stacks, [vec![0, 1], vec![2], vec![3]], "a wide and a tall matrix share a stack");

        let mut b = ParamBuilder::seeded(0, Device::Cpu);
        b.tensor("bias", &[4], Init::Constant(0.0)).unwrap();
        assert!(Muon::new(MuonConfig::default(), &b.finish()).unwrap_err().to_string().contains("use adamw"));
    }

    #[test]
    fn the_first_step_moves_each_matrix_by_its_own_scale() {
        let set = network();
        let before = set.snapshot();
        let mut muon = Muon::new(MuonConfig::default(), &set).unwrap();
        backward(&set);
        muon.step(&set, 0.01).unwrap();
        for (name, scale) in [("wide", 1.0), ("tall", 1.5f64.sqrt()), ("kernel", 2.0), ("square", 1.0)] {
            let old = &before.iter().find(|(n, _)| n == name).unwrap().1;
            let direction = orthogonalise(&old.unsqueeze(0), 5, Precision::F32).unwrap().squeeze_dim(0);
            let expected = old - direction * 0.01 * scale;
            let difference = (&set.get(name).unwrap().tensor - expected).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{name}: {difference}");
        }
        // Adam's first step: its two estimates of the gradient differ from it by the look-ahead only.
        let old = before.iter().find(|(n, _)| n == "bias").unwrap().1.double_value(&[0]);
        let ahead = 0.9 * 0.1 / (1.0 - 0.81) + 1.0;
        let moved = set.get("bias").unwrap().tensor.double_value(&[0]) - old;
        assert!((moved + 0.01 * ahead * old.signum()).abs() < 1e-6, "{moved}");
    }

    /// The way of GPUs moves every parameter as that of CPUs does, in fp32 to rounding.
    #[test]
    fn by_shape_is_the_same_step() {
        let (a, b) = (network(), network());
        let mut one = Muon::new(MuonConfig::default(), &a).unwrap();
        let mut two = Muon::new(MuonConfig::default(), &b).unwrap();
        for _ in 0..3 {
            backward(&a);
            one.step(&a, 0.02).unwrap();
            elf_kernels::on_gpu_path(|| {
                backward(&b);
                two.step(&b, 0.02).unwrap();
            });
        }
        for ((name, x), (_, y)) in a.snapshot().iter().zip(b.snapshot()) {
            let far = (x - y).abs().max().double_value(&[]);
            assert!(far < 1e-6, "{name}: {far}");
        }
    }

    #[test]
    fn it_descends_and_its_state_continues_bit_for_bit() {
        let (a, b) = (network(), network());
        let mut one = Muon::new(MuonConfig::default(), &a).unwrap();
        let norm = |set: &ParamSet| {
            set.snapshot().iter().map(|(_, t)| t.square().sum(Kind::Double).double_value(&[])).sum::<f64>()
        };
        let start = norm(&a);
        for _ in 0..10 {
            backward(&a);
            one.step(&a, 0.02).unwrap();
        }
        assert!(norm(&a) < 0.8 * start);
        let snapshot = a.snapshot();
        b.load("a", snapshot.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        let mut two = Muon::new(MuonConfig::default(), &b).unwrap();
        two.load_state("a", &one.state()).unwrap();
        for (set, muon) in [(&a, &mut one), (&b, &mut two)] {
            backward(set);
            muon.step(set, 0.02).unwrap();
        }
        assert!(a.snapshot().iter().zip(b.snapshot()).all(|((_, x), (_, y))| x.equal(&y)));
    }
}
