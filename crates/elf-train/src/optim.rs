//! Optimisers as tensor code: their state has names, so it can be saved, checked and loaded.
//!
//! All of them treat a parameter without a gradient as one whose gradient is 0: its averages decay and it may still move.
//! (A batch without decode rows gives the vocabulary head no gradient here; the released code runs every head on every
//! row, and its gradient is 0 there.)

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
    /// Names of its parameters, in the network's order.
    pub params: Vec<String>,
    /// Numbers in them.
    pub numel: u64,
}

impl Group {
    fn new(rule: &'static str, params: &ParamSet, names: &[String]) -> Self {
        let numel = names.iter().filter_map(|n| params.get(n)).map(|p| p.tensor.numel() as u64).sum();
        Self { rule, params: names.to_vec(), numel }
    }
}

/// Moves parameters along their gradients.
pub trait Optimizer {
    /// One update, in place, from the gradients that the parameters hold. Afterwards the parameters are marked as changed.
    ///
    /// # Errors
    /// If `params` is not the set that the optimiser was made for, or libtorch fails.
    fn step(&mut self, params: &ParamSet, lr: f64) -> Result<()>;

    /// Which rule moves which parameter; each parameter is in exactly one group.
    fn groups(&self) -> &[Group];

    /// Everything that the next step depends on, as `AVERAGE/PARAMETER` and `steps`. The tensors share their storage with
    /// the optimiser.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Takes over what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// If a name is missing or unknown, or a shape differs: then nothing is changed. `origin` names the file in the message.
    fn load_state(&mut self, origin: &str, state: &[(String, Tensor)]) -> Result<()>;
}

/// Which optimiser, and its settings.
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
    /// An optimiser for these parameters, its averages 0.
    ///
    /// # Errors
    /// If a setting is out of its range, or a rule would have no parameters.
    pub fn build(&self, params: &ParamSet) -> Result<Box<dyn Optimizer>> {
        Ok(match self {
            Self::Muon(config) => Box::new(Muon::new(*config, params)?),
            Self::Adamw(config) => Box::new(AdamW::new(*config, params)?),
        })
    }
}
