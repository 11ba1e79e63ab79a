//! Exponential moving averages of the parameters, which models are evaluated and sampled with.

use elf_core::ParamSet;
use tch::Tensor;

use crate::{Error, Result};

/// An exponential moving average of every parameter, in fp32: `e = d e + (1 - d) p` after each optimiser step.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    shadow: Vec<(String, Tensor)>,
}

impl Ema {
    /// Averages that start at the parameters' present values.
    ///
    /// # Errors
    /// If `decay` is not in [0, 1).
    pub fn new(params: &ParamSet, decay: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&decay) {
            return Err(Error::setting("ema_decay1", format!("{decay} is not in [0, 1); 0.9999 is usual")));
        }
        Ok(Self { decay, shadow: params.snapshot() })
    }

    /// Moves the averages one step towards the parameters.
    ///
    /// # Errors
    /// If `params` is not the set that the averages were made from, or libtorch fails.
    pub fn update(&mut self, params: &ParamSet) -> Result<()> {
        let (mut averages, mut now) = (Vec::new(), Vec::new());
        self.for_each(params, |average, p| {
            averages.push(average.shallow_clone());
            now.push(p.shallow_clone());
            Ok(())
        })?;
        tch::no_grad(|| Ok(elf_kernels::lists::lerp(&averages, &now, 1.0 - self.decay)?))
    }

    /// Exchanges averages and parameters; a second call exchanges them back, bit for bit.
    ///
    /// # Errors
    /// As [`Ema::update`].
    pub fn swap(&mut self, params: &ParamSet) -> Result<()> {
        self.for_each(params, |average, p| {
            let mut kept = average.f_empty_like()?;
            kept.f_copy_(p)?;
            p.shallow_clone().f_copy_(average)?;
            average.f_copy_(&kept)?;
            Ok(())
        })?;
        params.changed();
        Ok(())
    }

    fn for_each(&mut self, params: &ParamSet, mut f: impl FnMut(&mut Tensor, &Tensor) -> Result<()>) -> Result<()> {
        if self.shadow.len() != params.len() {
            return Err(Error::setting(
                "ema",
                format!("{} averages cannot follow {} parameters", self.shadow.len(), params.len()),
            ));
        }
        tch::no_grad(|| {
            for ((name, average), (other, p)) in self.shadow.iter_mut().zip(params.iter()) {
                if name != other {
                    return Err(Error::setting("ema", format!("the average of {name} cannot follow {other}")));
                }
                f(average, &p.tensor)?;
            }
            Ok(())
        })
    }

    /// The averages by parameter name.
    pub fn averages(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.shadow.iter().map(|(name, t)| (name.as_str(), t))
    }

    /// Sets all averages, by name.
    ///
    /// # Errors
    /// If names or shapes differ; then no average is changed.
    pub fn load(&mut self, origin: &str, given: &[(String, Tensor)]) -> Result<()> {
        crate::optim::restore(origin, &self.shadow, given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::{Init, ParamBuilder};
    use tch::Device;

    fn set(value: f64) -> ParamSet {
        let mut b = ParamBuilder::seeded(0, Device::Cpu);
        b.tensor("p", &[3], Init::Constant(value)).unwrap();
        b.finish()
    }

    fn fill(set: &ParamSet, value: f64) {
        tch::no_grad(|| {
            let _ = set.get("p").unwrap().tensor.shallow_clone().fill_(value);
        });
    }

    #[test]
    fn it_follows_by_its_decay() {
        let params = set(0.0);
        let mut ema = Ema::new(&params, 0.75).unwrap();
        fill(&params, 4.0);
        ema.update(&params).unwrap();
        assert_eq!(ema.averages().next().unwrap().1.double_value(&[0]), 1.0);
        ema.update(&params).unwrap();
        assert_eq!(ema.averages().next().unwrap().1.double_value(&[0]), 1.75);
        assert!(Ema::new(&params, 1.0).unwrap_err().to_string().contains("ema_decay1"));
    }

    #[test]
    fn swapping_twice_changes_nothing() {
        let params = set(1.0 / 3.0);
        let mut ema = Ema::new(&params, 0.9).unwrap();
        fill(&params, 0.7);
        ema.update(&params).unwrap();
        let (before, average) = (params.snapshot(), ema.averages().next().unwrap().1.copy());
        ema.swap(&params).unwrap();
        assert!(params.get("p").unwrap().tensor.equal(&average));
        ema.swap(&params).unwrap();
        assert!(params.get("p").unwrap().tensor.equal(&before[0].1));
        assert!(ema.averages().next().unwrap().1.equal(&average));
    }

    #[test]
    fn other_parameters_are_refused() {
        let mut ema = Ema::new(&set(0.0), 0.9).unwrap();
        let mut b = ParamBuilder::seeded(0, Device::Cpu);
        b.tensor("q", &[3], Init::Constant(0.0)).unwrap();
        let message = ema.update(&b.finish()).unwrap_err().to_string();
        assert!(message.contains("average of p cannot follow q"), "{message}");
    }
}
