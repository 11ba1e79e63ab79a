//! Optimisers with named state, which can be saved, checked and loaded.
//!
//! A parameter without a gradient is treated as one whose gradient is 0: its averages decay and its value may still
//! change. (A batch without decode rows gives the vocabulary head no gradient. The released code runs every head on
//! every row, so the gradient is 0 there.)

mod adam;
mod muon;
mod newton_schulz;
mod state;

use elf_core::ParamSet;
use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use adam::{AdamW, AdamWConfig, NesterovAdamConfig};
pub use muon::{Muon, MuonConfig};
pub use newton_schulz::orthogonalise;
pub(crate) use state::restore;

use crate::Result;

/// Parameters that are updated by the same rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The rule: `muon`, `nesterov-adam`, `adamw`.
    pub rule: &'static str,
    /// Names of the group's parameters, in the network's order.
    pub params: Vec<String>,
    /// Number of scalars in them.
    pub numel: u64,
}

impl Group {
    fn new(rule: &'static str, params: &ParamSet, names: &[String]) -> Self {
        let numel = names.iter().filter_map(|n| params.get(n)).map(|p| p.tensor.numel() as u64).sum();
        Self { rule, params: names.to_vec(), numel }
    }
}

/// Updates parameters from their gradients.
pub trait Optimizer {
    /// Makes one update, in place, from the parameters' gradients, and marks the parameters as changed.
    ///
    /// # Errors
    /// If `params` is not the set that the optimiser was made for, or libtorch fails.
    fn step(&mut self, params: &ParamSet, lr: f64) -> Result<()>;

    /// The groups of parameters; each parameter is in exactly one.
    fn groups(&self) -> &[Group];

    /// The complete state, as `AVERAGE/PARAMETER` and `steps`. The tensors share their storage with the optimiser.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Sets the state to one that [`Optimizer::state`] returned.
    ///
    /// # Errors
    /// If a name is missing or unknown, or a shape differs; the state is then unchanged. `origin` names the file in the
    /// message.
    fn load_state(&mut self, origin: &str, state: &[(String, Tensor)]) -> Result<()>;
}

/// An optimiser and its settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Muon for matrices, Nesterov-Adam for the rest.
    Muon(MuonConfig),
    /// AdamW for everything.
    Adamw(AdamWConfig),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Muon(MuonConfig::default())
    }
}

impl OptimizerConfig {
    /// Makes an optimiser for these parameters, with averages of 0.
    ///
    /// # Errors
    /// If a setting is out of its range, or a rule would have no parameters.
    pub fn build(&self, params: &ParamSet) -> Result<Box<dyn Optimizer>> {
        Ok(match self {
            Self::Muon(config) => Box::new(Muon::new(*config, params)?),
            Self::Adamw(config) => Box::new(AdamW::new(*config, params)?),
        })
    }

    /// Does the same as [`OptimizerConfig::build`] for one rank's share of a network's parameters, in which a rule may
    /// have none.
    pub(crate) fn build_share(&self, params: &ParamSet) -> Result<Box<dyn Optimizer>> {
        Ok(match self {
            Self::Muon(config) => Box::new(Muon::for_share(*config, params)?),
            Self::Adamw(config) => Box::new(AdamW::for_share(*config, params)?),
        })
    }

    /// The groups of a whole network's parameters.
    ///
    /// # Errors
    /// If a rule would have no parameters.
    pub(crate) fn groups(&self, params: &ParamSet) -> Result<Vec<Group>> {
        Ok(match self {
            Self::Muon(_) => muon::groups(params)?.into(),
            Self::Adamw(_) => adam::groups(params)?.into(),
        })
    }

    /// Floating-point operations of matrix products in the update of a parameter of this shape: for a matrix that Muon
    /// updates, `X X^T`, its square and a product with X in each iteration.
    pub fn update_flops(&self, shape: &[i64]) -> u64 {
        let (Self::Muon(config), &[rows, columns]) = (self, shape) else { return 0 };
        let (short, long) = (rows.min(columns).max(0) as u64, rows.max(columns).max(0) as u64);
        config.iterations as u64 * (4 * short * short * long + 2 * short * short * short)
    }

    /// The approximate cost of the update of a parameter of this shape in operations, memory access included. Ranks'
    /// shares are balanced by it.
    pub fn update_cost(&self, shape: &[i64]) -> u64 {
        // Reading and writing a number of the state takes as long as many operations of a matrix product.
        const ELEMENT: u64 = 100;
        let elements: u64 = shape.iter().map(|n| (*n).max(0) as u64).product();
        ELEMENT * elements + self.update_flops(shape)
    }
}
