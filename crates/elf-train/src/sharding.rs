//! The distribution of optimiser states and averages over ranks.
//!
//! Every rank holds all parameters and gradients. Optimiser states and averages, two to three times as much, exist once
//! over all ranks (ZeRO stage 1, arXiv 1910.02054). Each parameter has one owner, which updates it and its average and
//! sends the new value to all other ranks. Parameters are not split, because Muon orthogonalises whole matrices.

use elf_core::{Param, ParamSet};
use tch::{Device, Kind, Tensor};

use crate::{Comm, Error, Result};

/// Bytes of state to send at once when a checkpoint is gathered.
const GATHER_BYTES: usize = 256 << 20;

/// The owners of all parameters.
#[derive(Debug)]
pub(crate) struct Sharding {
    /// The owner of each parameter, in order.
    owners: Vec<u64>,
    /// This rank's parameters.
    owned: ParamSet,
}

impl Sharding {
    /// Distributes parameters so that updates cost about the same on all ranks ([`share_out`]). All ranks get the same
    /// result.
    pub(crate) fn new(params: &ParamSet, cost: impl Fn(&Param) -> u64, comm: &dyn Comm) -> Self {
        let owners = share_out(&params.iter().map(|(_, p)| cost(p)).collect::<Vec<_>>(), comm.world());
        let mut of = owners.iter();
        let owned = params.subset(|_| of.next() == Some(&comm.rank()));
        Self { owners, owned }
    }

    /// The parameters that this rank updates.
    pub(crate) fn owned(&self) -> &ParamSet {
        &self.owned
    }

    /// Sends the values of all parameters from their owners to every rank.
    pub(crate) fn share(&self, params: &ParamSet, comm: &dyn Comm) -> Result<()> {
        let tensors: Vec<Tensor> = params.iter().map(|(_, p)| p.tensor.shallow_clone()).collect();
        comm.share_tensors(&tensors, &self.owners)?;
        params.changed();
        Ok(())
    }

    /// The part of the state of all ranks that this rank needs: all but the state of other ranks' parameters. Names are
    /// parameter names or `AVERAGE/PARAMETER`.
    pub(crate) fn own_share(&self, params: &ParamSet, all: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
        let foreign = |name: &str| params.get(name).is_some() && self.owned.get(name).is_none();
        let of_another = |name: &str| foreign(name) || name.split_once('/').is_some_and(|(_, p)| foreign(p));
        all.into_iter().filter(|(name, _)| !of_another(name)).collect()
    }
}

/// Distributes items evenly by their `costs` over `world` owners: the most expensive first, each to the owner with the
/// least so far. Returns the owner of each item. No owner has more than the mean plus one item.
pub fn share_out(costs: &[u64], world: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(costs[i]), i));
    let mut loads = vec![0u64; usize::try_from(world).unwrap_or(0)];
    let mut owners = vec![0; costs.len()];
    for i in order {
        let Some((owner, load)) = loads.iter_mut().enumerate().min_by_key(|(rank, load)| (**load, *rank)) else {
            break;
        };
        *load = load.saturating_add(costs[i]);
        owners[i] = owner as u64;
    }
    owners
}

/// Gathers named tensors of all ranks on the CPU of rank 0; if several ranks have a name, the first rank's tensor.
/// Other ranks get an empty list. Every rank calls it.
///
/// # Errors
/// If a rank has failed.
pub(crate) fn gather_named(own: Vec<(String, Tensor)>, comm: &dyn Comm) -> Result<Vec<(String, Tensor)>> {
    let unreadable = |e: serde_json::Error| Error::Comm(format!("a rank's list of tensors cannot be read: {e}"));
    let list: Vec<(&str, Vec<i64>, bool)> =
        own.iter().map(|(name, t)| (name.as_str(), t.size(), t.kind() == Kind::Int64)).collect();
    let lists = comm.gather_bytes(&serde_json::to_vec(&list).map_err(unreadable)?)?;
    let device = own.iter().find(|(_, t)| t.kind() == Kind::Float).map_or(Device::Cpu, |(_, t)| t.device());

    let mut gathered = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let (mut names, mut tensors, mut owners, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0usize);
    let mut flush = |names: &mut Vec<String>, tensors: &mut Vec<Tensor>, owners: &mut Vec<u64>| -> Result<()> {
        comm.share_tensors(tensors, owners)?;
        for (name, t) in names.drain(..).zip(tensors.drain(..)) {
            if comm.rank() == 0 {
                gathered.push((name, t.f_to_device(Device::Cpu)?));
            }
        }
        owners.clear();
        Ok(())
    };
    for (rank, list) in lists.iter().enumerate() {
        let list: Vec<(String, Vec<i64>, bool)> = serde_json::from_slice(list).map_err(unreadable)?;
        for (name, size, integers) in list {
            if !seen.insert(name.clone()) {
                continue;
            }
            let kind = if integers { Kind::Int64 } else { Kind::Float };
            let mine = own.iter().find(|(n, _)| rank as u64 == comm.rank() && *n == name);
            let t = match mine {
                Some((_, t)) => t.shallow_clone(),
                // Counters are on the CPU, also in runs on a GPU.
                None => Tensor::f_empty(&size, (kind, if integers { Device::Cpu } else { device }))?,
            };
            bytes += t.numel() * kind.elt_size_in_bytes();
            names.push(name);
            tensors.push(t);
            owners.push(rank as u64);
            if bytes >= GATHER_BYTES {
                flush(&mut names, &mut tensors, &mut owners)?;
                bytes = 0;
            }
        }
    }
    flush(&mut names, &mut tensors, &mut owners)?;
    Ok(gathered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Solo;
    use elf_core::{Init, ParamBuilder};
    use proptest::prelude::*;

    proptest! {
        /// No rank has more than the mean plus one parameter.
        #[test]
        fn shares_are_balanced(costs in prop::collection::vec(1u64..1000, 0..60), world in 1u64..9) {
            let owners = share_out(&costs, world);
            prop_assert_eq!(owners.len(), costs.len());
            let load = |rank| owners.iter().zip(&costs).filter(|(o, _)| **o == rank).map(|(_, c)| c).sum::<u64>();
            let limit = costs.iter().sum::<u64>() / world + costs.iter().max().copied().unwrap_or(0);
            for rank in 0..world {
                prop_assert!(load(rank) <= limit);
            }
            prop_assert!(owners.iter().all(|o| *o < world));
        }
    }

    #[test]
    fn one_process_owns_everything() {
        let mut b = ParamBuilder::seeded(0, Device::Cpu);
        for name in ["a", "b"] {
            b.tensor(name, &[3], Init::Constant(1.0)).unwrap();
        }
        let params = b.finish();
        let sharding = Sharding::new(&params, |p| p.tensor.numel() as u64, &Solo);
        assert_eq!(sharding.owned().len(), 2);
        let state = || vec![("exp_avg/a".to_owned(), Tensor::from(1.0)), ("steps".to_owned(), Tensor::from(2))];
        assert_eq!(sharding.own_share(&params, state()).len(), 2);
        assert_eq!(gather_named(state(), &Solo).unwrap().len(), 2);
    }
}
