//! Averages by parameter name, and strict loading of named tensors.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use elf_core::{Error as CoreError, Param, ParamSet};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// One average for each parameter of a set.
#[derive(Debug)]
pub(super) struct Averages {
    what: &'static str,
    tensors: Vec<Tensor>,
}

impl Averages {
    pub(super) fn zeros(what: &'static str, params: &ParamSet, names: &[String]) -> Result<Self> {
        let tensors = names.iter().map(|name| Ok(param(params, name)?.tensor.f_detach()?.f_zeros_like()?));
        Ok(Self { what, tensors: tensors.collect::<Result<_>>()? })
    }

    /// The average of the `index`-th parameter; it shares storage with this set.
    pub(super) fn get(&self, index: usize) -> Tensor {
        self.tensors[index].shallow_clone()
    }

    /// All averages, in the order of the names.
    pub(super) fn all(&self) -> &[Tensor] {
        &self.tensors
    }

    pub(super) fn named<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = (String, Tensor)> + 'a {
        names.iter().zip(&self.tensors).map(|(name, t)| (format!("{}/{name}", self.what), t.shallow_clone()))
    }
}

/// The optimiser's count of steps, as a tensor of its state.
pub(super) fn steps_entry(steps: i64) -> (String, Tensor) {
    ("steps".to_owned(), Tensor::from_slice(&[steps]))
}

/// Loads averages (which share storage with the optimiser) and returns the count of steps.
pub(super) fn restore_with_steps(
    origin: &str,
    mut expected: Vec<(String, Tensor)>,
    given: &[(String, Tensor)],
) -> Result<i64> {
    let entry = steps_entry(0);
    let steps = entry.1.shallow_clone();
    expected.push(entry);
    restore(origin, &expected, given)?;
    let steps = steps.int64_value(&[0]);
    if steps < 0 {
        return Err(Error::setting("steps", format!("{origin} says that {steps} steps were done; fetch it again")));
    }
    Ok(steps)
}

/// Copies `given` into the tensors of `expected`, by name, if all names, shapes and kinds are equal; else changes
/// nothing.
pub(crate) fn restore(origin: &str, expected: &[(String, Tensor)], given: &[(String, Tensor)]) -> Result<()> {
    let found: BTreeMap<&str, &Tensor> = given.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let mut table = String::new();
    for (name, t) in expected {
        match found.get(name.as_str()) {
            None => _ = writeln!(table, "  {name}: this run has {:?}, the file has none", t.size()),
            Some(f) if f.size() != t.size() => {
                _ = writeln!(table, "  {name}: this run has {:?}, the file has {:?}", t.size(), f.size());
            }
            Some(f) if f.kind() != t.kind() => {
                _ = writeln!(table, "  {name}: this run has {:?} numbers, the file has {:?}", t.kind(), f.kind());
            }
            Some(_) => {}
        }
    }
    for (name, t) in given {
        if !expected.iter().any(|(n, _)| n == name) {
            _ = writeln!(table, "  {name}: the file has {:?}, this run has none", t.size());
        }
    }
    if !table.is_empty() {
        return Err(CoreError::Mismatch { origin: origin.to_owned(), table }.into());
    }
    tch::no_grad(|| {
        for (name, t) in expected {
            t.shallow_clone().f_copy_(found[name.as_str()])?;
        }
        Ok(())
    })
}

/// The parameter of a name.
pub(super) fn param<'a>(params: &'a ParamSet, name: &str) -> Result<&'a Param> {
    params
        .get(name)
        .ok_or_else(|| Error::setting("optimizer", format!("it was made for another network, which has a {name}")))
}

/// The gradient of a parameter; 0 if it has none.
pub(super) fn gradient(p: &Param) -> Result<Tensor> {
    let grad = p.tensor.f_grad()?;
    match grad.defined() {
        true if grad.kind() == Kind::Float => Ok(grad),
        true => Ok(grad.f_to_kind(Kind::Float)?),
        false => Ok(p.tensor.f_detach()?.f_zeros_like()?),
    }
}

/// Checks that the decay of an average is in [0, 1).
pub(super) fn check_decay(setting: &str, value: f64) -> Result<()> {
    match (0.0..1.0).contains(&value) {
        true => Ok(()),
        false => Err(Error::setting(setting, format!("{value} is not in [0, 1)"))),
    }
}

/// Checks that the term that prevents division by zero is positive.
pub(super) fn check_eps(setting: &str, value: f64) -> Result<()> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::setting(setting, format!("{value} is not a small positive number"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loading_is_all_or_nothing_and_names_every_difference() {
        let named = |pairs: &[(&str, i64)]| {
            pairs
                .iter()
                .map(|(n, size)| ((*n).to_owned(), Tensor::ones([*size], (Kind::Float, tch::Device::Cpu))))
                .collect::<Vec<_>>()
        };
        let mine: Vec<_> = named(&[("a", 2), ("b", 3), ("c", 1)]).into_iter().map(|(n, t)| (n, t * 0.0)).collect();
        let mut given = named(&[("a", 2), ("b", 4), ("extra", 1)]);
        let message = restore("o.safetensors", &mine, &given).unwrap_err().to_string();
        for part in [
            "o.safetensors",
            "b: this run has [3], the file has [4]",
            "c: this run has [1], the file has none",
            "extra",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(mine[0].1.double_value(&[0]), 0.0);
        given = named(&[("c", 1), ("b", 3), ("a", 2)]);
        given[0].1 = given[0].1.to_kind(Kind::Double);
        assert!(restore("o", &mine, &given).unwrap_err().to_string().contains("Double"));
        given[0].1 = given[0].1.to_kind(Kind::Float);
        restore("o", &mine, &given).unwrap();
        assert!(mine.iter().all(|(_, t)| t.double_value(&[0]) == 1.0));
    }
}
