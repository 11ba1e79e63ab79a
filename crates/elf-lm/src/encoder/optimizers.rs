//! The optimisers of an encoder's training.

use elf_core::{ParamSet, Precision};
use elf_train::optim::{AdamW, AdamWConfig, Muon, MuonConfig, Optimizer};
use tch::{Device, Tensor};

use super::recipe::{Recipe, Rule};
use crate::Result;

/// Optimisers with the parameters that each moves and its highest learning rate.
pub(super) struct Optimizers(Vec<OptimizerOf>);

struct OptimizerOf {
    /// Tells its state from that of the others in a file.
    name: &'static str,
    params: ParamSet,
    optimizer: Box<dyn Optimizer>,
    lr: f64,
}

impl Optimizers {
    pub(super) fn new(recipe: &Recipe, params: &ParamSet, device: Device) -> Result<Self> {
        let is_table = |name: &str| name == "shared.weight";
        let is_matrix = |name: &str| params.get(name).is_some_and(|p| p.fans.is_some()) && name != "lm_head.weight";
        let adamw = |set: &ParamSet| AdamW::new(AdamWConfig::default(), set).map(|a| Box::new(a) as Box<dyn Optimizer>);
        let matrices = params.subset(is_matrix);
        let by_rule = match recipe.optimizer {
            Rule::Adamw => adamw(&matrices)?,
            Rule::Muon => {
                let config = MuonConfig { precision: Precision::native(device), ..MuonConfig::default() };
                Box::new(Muon::new(config, &matrices)?)
            }
        };
        let table = params.subset(is_table);
        let others = params.subset(|name| !is_table(name) && !is_matrix(name));
        let (for_table, for_others) = (adamw(&table)?, adamw(&others)?);
        let of = |name, params, optimizer, lr| OptimizerOf { name, params, optimizer, lr };
        Ok(Self(vec![
            of("matrices", matrices, by_rule, recipe.lr()),
            of("table", table, for_table, recipe.embedding_lr),
            of("others", others, for_others, recipe.other_lr),
        ]))
    }

    /// One step of all, at this share of their highest rates.
    pub(super) fn step(&mut self, share: f64) -> Result<()> {
        for OptimizerOf { params, optimizer, lr, .. } in &mut self.0 {
            optimizer.step(params, *lr * share)?;
        }
        Ok(())
    }

    /// The state of all, by names that say whose it is.
    pub(super) fn state(&self) -> Vec<(String, Tensor)> {
        let of_one = |one: &OptimizerOf| {
            let state = one.optimizer.state().into_iter();
            state.map(|(name, tensor)| (format!("{}:{name}", one.name), tensor)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of_one).collect()
    }

    pub(super) fn load_state(&mut self, origin: &str, state: &[(String, Tensor)]) -> Result<()> {
        for one in &mut self.0 {
            let own = state.iter().filter_map(|(name, tensor)| {
                let name = name.strip_prefix(one.name)?.strip_prefix(':')?;
                Some((name.to_owned(), tensor.shallow_clone()))
            });
            one.optimizer.load_state(origin, &own.collect::<Vec<_>>())?;
        }
        Ok(())
    }
}
