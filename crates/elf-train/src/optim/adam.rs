//! AdamW, and the Nesterov-Adam that accompanies Muon.

use elf_core::ParamSet;
use elf_kernels::AdamStep;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::state::{Averages, check_decay, check_eps, gradient, param, restore_with_steps, steps_entry};
use super::{Group, Optimizer};
use crate::{Error, Result};

/// First and second moments of gradients.
#[derive(Debug)]
struct Moments {
    first: Averages,
    second: Averages,
}

impl Moments {
    fn zeros(params: &ParamSet, names: &[String]) -> Result<Self> {
        Ok(Self {
            first: Averages::zeros("exp_avg", params, names)?,
            second: Averages::zeros("exp_avg_sq", params, names)?,
        })
    }

    /// Updates the moments by a gradient, and the parameter by the moments.
    fn update(&self, params: &ParamSet, names: &[String], step: AdamStep) -> Result<()> {
        let all = names.iter().map(|name| param(params, name)).collect::<Result<Vec<_>>>()?;
        if all.iter().any(|p| elf_kernels::takes_gpu_path(p.tensor.device())) {
            let values: Vec<Tensor> = all.iter().map(|p| p.tensor.shallow_clone()).collect();
            let gradients = all.iter().map(|p| gradient(p)).collect::<Result<Vec<_>>>()?;
            return Ok(elf_kernels::lists::adam(&values, &gradients, self.first.all(), self.second.all(), step)?);
        }
        for (i, p) in all.into_iter().enumerate() {
            let (mut m, mut v) = (self.first.get(i), self.second.get(i));
            elf_kernels::adam(&mut p.tensor.shallow_clone(), &gradient(p)?, &mut m, &mut v, step)?;
        }
        Ok(())
    }

    fn named<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = (String, Tensor)> + 'a {
        self.first.named(names).chain(self.second.named(names))
    }
}

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub b1: f64,
    /// Decay of the second moment.
    pub b2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Every parameter is multiplied by `1 - lr * weight_decay` at each step.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { b1: 0.9, b2: 0.95, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Adam with decoupled weight decay, for every parameter.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    names: Vec<String>,
    groups: [Group; 1],
    moments: Moments,
    steps: i64,
}

impl AdamW {
    /// Makes an optimiser for all of `params`, with moments of 0.
    ///
    /// # Errors
    /// If a setting is out of its range or there are no parameters.
    pub fn new(config: AdamWConfig, params: &ParamSet) -> Result<Self> {
        groups(params)?;
        Self::for_share(config, params)
    }

    /// Does the same as [`AdamW::new`] for one rank's share of the parameters, which may be empty.
    pub(super) fn for_share(config: AdamWConfig, params: &ParamSet) -> Result<Self> {
        check_decay("adam_b1", config.b1)?;
        check_decay("adam_b2", config.b2)?;
        check_eps("adam_eps", config.eps)?;
        if !(config.weight_decay >= 0.0 && config.weight_decay.is_finite()) {
            return Err(Error::setting(
                "weight_decay",
                format!("{} is not a rate of decay; 0 is none", config.weight_decay),
            ));
        }
        let names = names(params);
        let moments = Moments::zeros(params, &names)?;
        Ok(Self { config, groups: [Group::new("adamw", params, &names)], names, moments, steps: 0 })
    }
}

fn names(params: &ParamSet) -> Vec<String> {
    params.iter().map(|(name, _)| name.to_owned()).collect()
}

/// All parameters of a network.
pub(super) fn groups(params: &ParamSet) -> Result<[Group; 1]> {
    match params.is_empty() {
        true => Err(Error::setting("optimizer", "the network has no parameters")),
        false => Ok([Group::new("adamw", params, &names(params))]),
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, params: &ParamSet, lr: f64) -> Result<()> {
        let AdamWConfig { b1, b2, eps, weight_decay } = self.config;
        let k = (self.steps + 1) as f64;
        let step = AdamStep {
            b1,
            b2,
            eps,
            of_first: 1.0 / (1.0 - b1.powf(k)),
            of_grad: 0.0,
            of_second: 1.0 / (1.0 - b2.powf(k)),
            lr,
            keep: 1.0 - lr * weight_decay,
        };
        tch::no_grad(|| self.moments.update(params, &self.names, step))?;
        self.steps += 1;
        params.changed();
        Ok(())
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        self.moments.named(&self.names).chain([steps_entry(self.steps)]).collect()
    }

    fn load_state(&mut self, origin: &str, state: &[(String, Tensor)]) -> Result<()> {
        self.steps = restore_with_steps(origin, self.moments.named(&self.names).collect(), state)?;
        Ok(())
    }
}

/// Settings of the Nesterov-Adam that updates the parameters that Muon does not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NesterovAdamConfig {
    /// Decay of the first moment.
    pub b1: f64,
    /// Decay of the second moment.
    pub b2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for NesterovAdamConfig {
    fn default() -> Self {
        Self { b1: 0.9, b2: 0.999, eps: 1e-8 }
    }
}

/// Adam whose first moment looks one step ahead:
/// `b1 m / (1 - b1^(k+1)) + (1 - b1) g / (1 - b1^k)`, k counting from 1.
#[derive(Debug)]
pub(super) struct NesterovAdam {
    config: NesterovAdamConfig,
    names: Vec<String>,
    moments: Moments,
}

impl NesterovAdam {
    pub(super) fn new(config: NesterovAdamConfig, params: &ParamSet, names: Vec<String>) -> Result<Self> {
        check_decay("adam.b1", config.b1)?;
        check_decay("adam.b2", config.b2)?;
        check_eps("adam.eps", config.eps)?;
        let moments = Moments::zeros(params, &names)?;
        Ok(Self { config, names, moments })
    }

    /// The `k`-th step, counted from 1.
    pub(super) fn step(&self, params: &ParamSet, k: i64, lr: f64) -> Result<()> {
        let NesterovAdamConfig { b1, b2, eps } = self.config;
        let k = k as f64;
        let step = AdamStep {
            b1,
            b2,
            eps,
            of_first: b1 / (1.0 - b1.powf(k + 1.0)),
            of_grad: (1.0 - b1) / (1.0 - b1.powf(k)),
            of_second: 1.0 / (1.0 - b2.powf(k)),
            lr,
            keep: 1.0,
        };
        self.moments.update(params, &self.names, step)
    }

    pub(super) fn named(&self) -> impl Iterator<Item = (String, Tensor)> + '_ {
        self.moments.named(&self.names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::{Init, ParamBuilder};
    use tch::{Device, Kind};

    fn one_number(start: f64) -> ParamSet {
        let mut b = ParamBuilder::seeded(0, Device::Cpu);
        b.tensor("x", &[1], Init::Constant(start)).unwrap();
        let set = b.finish();
        set.set_requires_grad(true);
        set
    }

    fn x(set: &ParamSet) -> &Tensor {
        &set.get("x").unwrap().tensor
    }

    fn give_gradient(set: &ParamSet, grad: f64) {
        set.zero_grad();
        (x(set) * grad).sum(Kind::Float).backward();
    }

    /// The scalar recursion of the literature, in f64.
    #[test]
    fn adamw_follows_the_textbook() {
        let set = one_number(1.0);
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config, &set).unwrap();
        let (mut p, mut m, mut v) = (1.0f64, 0.0, 0.0);
        for (k, g) in [0.3, -0.2, 0.0, 2.0].into_iter().enumerate() {
            give_gradient(&set, g);
            optimizer.step(&set, 0.01).unwrap();
            m = 0.9 * m + 0.1 * g;
            v = 0.95 * v + 0.05 * g * g;
            let k = k as i32 + 1;
            p *= 1.0 - 0.01 * 0.1;
            p -= 0.01 * (m / (1.0 - 0.9f64.powi(k))) / ((v / (1.0 - 0.95f64.powi(k))).sqrt() + 1e-8);
            assert!((x(&set).double_value(&[0]) - p).abs() < 1e-6, "step {k}");
        }
    }

    #[test]
    fn a_missing_gradient_counts_as_zero() {
        let (with, without) = (one_number(1.0), one_number(1.0));
        let mut moved = Vec::new();
        for set in [&with, &without] {
            let mut optimizer = AdamW::new(AdamWConfig::default(), set).unwrap();
            give_gradient(set, 1.0);
            optimizer.step(set, 0.1).unwrap();
            moved.push((x(set).double_value(&[0]), optimizer));
        }
        assert_eq!(moved[0].0, moved[1].0);
        // The momentum goes on in both.
        let fresh = one_number(moved[0].0);
        give_gradient(&with, 0.0);
        moved[0].1.step(&with, 0.1).unwrap();
        moved[1].1.step(&fresh, 0.1).unwrap();
        assert!(!x(&fresh).grad().defined());
        assert_eq!(x(&with).double_value(&[0]), x(&fresh).double_value(&[0]));
        assert!(x(&with).double_value(&[0]) < moved[0].0);
    }

    #[test]
    fn a_saved_state_continues_and_an_unfit_one_is_refused() {
        let (a, b) = (one_number(1.0), one_number(1.0));
        let mut one = AdamW::new(AdamWConfig::default(), &a).unwrap();
        give_gradient(&a, 0.5);
        one.step(&a, 0.1).unwrap();
        b.load("a", [("x", x(&a))]).unwrap();
        let mut two = AdamW::new(AdamWConfig::default(), &b).unwrap();
        let state: Vec<_> = one.state().into_iter().map(|(n, t)| (n, t.copy())).collect();
        two.load_state("optimizer.safetensors", &state).unwrap();
        for (set, optimizer) in [(&a, &mut one), (&b, &mut two)] {
            give_gradient(set, -0.25);
            optimizer.step(set, 0.1).unwrap();
        }
        assert!(x(&a).equal(x(&b)));
        let message = two.load_state("optimizer.safetensors", &state[1..]).unwrap_err().to_string();
        assert!(message.contains("exp_avg/x"), "{message}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let set = one_number(0.0);
        for (config, name) in [
            (AdamWConfig { b1: 1.0, ..AdamWConfig::default() }, "adam_b1"),
            (AdamWConfig { b2: -0.1, ..AdamWConfig::default() }, "adam_b2"),
            (AdamWConfig { eps: 0.0, ..AdamWConfig::default() }, "adam_eps"),
            (AdamWConfig { weight_decay: f64::NAN, ..AdamWConfig::default() }, "weight_decay"),
        ] {
            assert!(AdamW::new(config, &set).unwrap_err().to_string().starts_with(name));
        }
    }
}
