//! Parameters by name, which are trained, averaged, stored and loaded.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;
use tch::{Device, Kind, Tensor};

use crate::weights::Weights;
use crate::{Error, Noise, Result, Seeded, key_of};

/// Fan-in and fan-out of a matrix, independent of the order in which it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fans {
    /// Inputs that one output sums over.
    pub fan_in: i64,
    /// Outputs.
    pub fan_out: i64,
}

/// The initial value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All the same value.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in +-sqrt(6 / (fan_in + fan_out)); the parameter must have fans.
    XavierUniform,
}

/// One parameter: an fp32 master tensor.
#[derive(Debug)]
pub struct Param {
    /// The value; shares its storage with the layer that uses it.
    pub tensor: Tensor,
    /// Present if the parameter is a matrix that maps inputs to outputs.
    pub fans: Option<Fans>,
    /// Whether it keeps its value in training: it is stored and loaded like any other, and has no gradient.
    pub frozen: bool,
}

/// All parameters of a network, in the order in which they were made.
#[derive(Debug, Default)]
pub struct ParamSet {
    params: IndexMap<String, Param>,
    generation: Arc<AtomicU64>,
}

impl ParamSet {
    /// Name and parameter, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.params.iter().map(|(name, p)| (name.as_str(), p))
    }

    /// One parameter.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.params.get(name)
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// Number of elements of all parameters.
    pub fn numel(&self) -> u64 {
        self.params.values().map(|p| p.tensor.numel() as u64).sum()
    }

    /// Must be called after a parameter was changed in place, so that low-precision copies are renewed at their next use.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Switches gradients on or off for all parameters but frozen ones, which never have any.
    pub fn set_requires_grad(&self, on: bool) {
        for p in self.params.values().filter(|p| !p.frozen) {
            let _ = p.tensor.set_requires_grad(on);
        }
        self.changed();
    }

    /// Sets all gradients to 0.
    pub fn zero_grad(&self) {
        let given: Vec<Tensor> = self.params.values().map(|p| p.tensor.grad()).filter(Tensor::defined).collect();
        // Panics if a GPU fails, as tch's plain operations do.
        tch::no_grad(|| elf_kernels::lists::zero(&given)).unwrap_or_else(|e| panic!("{e:?}"));
    }

    /// The parameters whose names `keep` accepts, as a set that shares its tensors with this one.
    pub fn subset(&self, mut keep: impl FnMut(&str) -> bool) -> ParamSet {
        self.shared_where(|name, _| keep(name))
    }

    /// The parameters that training changes, all but the frozen ones, as a set that shares its tensors with this one.
    pub fn trained(&self) -> ParamSet {
        self.shared_where(|_, p| !p.frozen)
    }

    fn shared_where(&self, mut keep: impl FnMut(&str, &Param) -> bool) -> ParamSet {
        let kept = self.params.iter().filter(|(name, p)| keep(name, p));
        let share = |p: &Param| Param { tensor: p.tensor.shallow_clone(), ..*p };
        ParamSet {
            params: kept.map(|(name, p)| (name.clone(), share(p))).collect(),
            generation: Arc::clone(&self.generation),
        }
    }

    /// Copies of all values, by name.
    pub fn snapshot(&self) -> Vec<(String, Tensor)> {
        tch::no_grad(|| self.iter().map(|(name, p)| (name.to_owned(), p.tensor.detach().copy())).collect())
    }

    /// Sets every parameter from a tensor of the same name and shape. Nothing is changed unless all fit.
    ///
    /// Floating-point tensors of another kind are converted to fp32: bf16 and f16 exactly, float64 rounded.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with a table of everything that is missing, superfluous, or of another shape or kind.
    pub fn load<'t>(&self, origin: &str, tensors: impl IntoIterator<Item = (&'t str, &'t Tensor)>) -> Result<()> {
        let given: IndexMap<&str, &Tensor> = tensors.into_iter().collect();
        self.check_fit(origin, given.iter().map(|(name, t)| (*name, t.size(), t.kind())))?;
        tch::no_grad(|| {
            for (name, p) in &self.params {
                p.tensor.shallow_clone().f_copy_(given[name.as_str()])?;
            }
            Ok::<_, Error>(())
        })?;
        self.changed();
        Ok(())
    }

    /// [`ParamSet::load`] from files, one tensor at a time: no more than one is in memory in addition to the parameters.
    ///
    /// # Errors
    /// As [`ParamSet::load`], with nothing changed; or if a tensor's bytes turn out to be damaged, which leaves the
    /// parameters undefined.
    pub fn load_from(&self, weights: &Weights) -> Result<()> {
        let of = |name: &str| weights.shape(name).zip(weights.kind(name));
        let given = weights.names().filter_map(|name| of(name).map(|(shape, kind)| (name, shape, kind)));
        self.check_fit(&weights.path().display().to_string(), given)?;
        // The largest first: the copies of a large tensor are then made while few parameters occupy memory.
        let mut in_order: Vec<(&String, &Param)> = self.params.iter().collect();
        in_order.sort_by_key(|(_, p)| std::cmp::Reverse(p.tensor.numel()));
        tch::no_grad(|| {
            for (name, p) in in_order {
                p.tensor.shallow_clone().f_copy_(&weights.get(name, Device::Cpu)?)?;
            }
            Ok::<_, Error>(())
        })?;
        self.changed();
        Ok(())
    }

    /// Refuses names, shapes or kinds that differ from the parameters', with one table of all differences.
    fn check_fit<'t>(&self, origin: &str, given: impl Iterator<Item = (&'t str, Vec<i64>, Kind)>) -> Result<()> {
        let given: IndexMap<&str, (Vec<i64>, Kind)> = given.map(|(name, shape, kind)| (name, (shape, kind))).collect();
        let mut table = String::new();
        for (name, p) in &self.params {
            match given.get(name.as_str()) {
                None => _ = writeln!(table, "  {name}: the model has {:?}, the file has none", p.tensor.size()),
                Some((shape, _)) if *shape != p.tensor.size() => {
                    _ = writeln!(table, "  {name}: the model has {:?}, the file has {shape:?}", p.tensor.size());
                }
                Some((_, kind)) if !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double) => {
                    _ = writeln!(table, "  {name}: the model has floating-point numbers, the file has {kind:?}");
                }
                Some(_) => {}
            }
        }
        for (name, (shape, _)) in &given {
            if !self.params.contains_key(*name) {
                _ = writeln!(table, "  {name}: the file has {shape:?}, the model has none");
            }
        }
        match table.is_empty() {
            true => Ok(()),
            false => Err(Error::Mismatch { origin: origin.to_owned(), table }),
        }
    }
}

/// Copies of parameters in lower precision, of one generation of values.
#[derive(Debug, Default)]
struct Copies {
    generation: u64,
    /// Masters and their copies by number and kind, in the order in which they were first asked for.
    all: IndexMap<(usize, Kind), (Tensor, Option<Tensor>)>,
}

/// Parameters that are copied together on a GPU, where it takes the launches of one. Their gradients are handed on together too, so
/// they are not all of a network: ranks exchange complete gradients while others are still computed.
const COPIED_TOGETHER: usize = 32;

impl Copies {
    /// The copy of one parameter. On a GPU those that were asked for one after the other in former generations are made together.
    fn get(&mut self, number: usize, kind: Kind, master: &Tensor, generation: u64) -> Tensor {
        if self.generation != generation {
            self.generation = generation;
            self.all.values_mut().for_each(|(_, copy)| *copy = None);
        }
        let entry = self.all.entry((number, kind));
        let place = entry.index();
        if let Some(copy) = &entry.or_insert_with(|| (master.shallow_clone(), None)).1 {
            return copy.shallow_clone();
        }
        let first = place / COPIED_TOGETHER * COPIED_TOGETHER;
        let together = first..(first + COPIED_TOGETHER).min(self.all.len());
        let lacking =
            |i: &usize| self.all.get_index(*i).is_some_and(|(key, (_, copy))| key.1 == kind && copy.is_none());
        let places: Vec<usize> = match elf_kernels::takes_gpu_path(master.device()) {
            true => together.filter(lacking).collect(),
            false => vec![place],
        };
        let masters: Vec<Tensor> = places.iter().map(|&i| self.all[i].0.shallow_clone()).collect();
        // Panics if memory runs out, as tch's plain operations do.
        let copies = tch::with_grad(|| elf_kernels::lists::cast(&masters, kind)).unwrap_or_else(|e| panic!("{e:?}"));
        for (i, copy) in places.into_iter().zip(copies) {
            self.all[i].1 = Some(copy);
        }
        self.all[place].1.as_ref().map_or_else(|| master.to_kind(kind), Tensor::shallow_clone)
    }
}

/// A layer's handle on one parameter: the fp32 master and, on request, a copy in lower precision, which is made once after each
/// change and shared by all passes until the next one.
#[derive(Debug)]
pub struct Weight {
    master: Tensor,
    number: usize,
    generation: Arc<AtomicU64>,
    copies: Arc<Mutex<Copies>>,
}

impl Weight {
    /// The parameter in `kind`. The copy carries gradients back to the master, even if it was first requested inside a pass without
    /// gradients.
    pub fn get(&self, kind: Kind) -> Tensor {
        if self.master.kind() == kind {
            return self.master.shallow_clone();
        }
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.get(self.number, kind, &self.master, self.generation())
    }

    /// Another handle on the same parameter, and on its copy in lower precision if there is one.
    pub fn shallow_clone(&self) -> Self {
        Self {
            master: self.master.shallow_clone(),
            number: self.number,
            generation: Arc::clone(&self.generation),
            copies: Arc::clone(&self.copies),
        }
    }

    /// A number that is another after each [`ParamSet::changed`], for what is computed from parameters once.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// The fp32 master.
    pub fn master(&self) -> &Tensor {
        &self.master
    }
}

/// A builder of parameters: name, shape, initial value and fans in one place.
#[derive(Debug)]
pub struct ParamBuilder {
    set: ParamSet,
    copies: Arc<Mutex<Copies>>,
    device: Device,
    /// `None` leaves values undefined, for models that are loaded immediately afterwards.
    seed: Option<u64>,
}

impl ParamBuilder {
    /// Parameters drawn from `seed`; each depends on the seed and its own name only.
    pub fn seeded(seed: u64, device: Device) -> Self {
        Self::new(device, Some(seed))
    }

    /// Parameters without defined values; the caller loads all of them before use.
    pub fn unset(device: Device) -> Self {
        Self::new(device, None)
    }

    fn new(device: Device, seed: Option<u64>) -> Self {
        elf_kernels::mkl::settle();
        Self { set: ParamSet::default(), copies: Arc::default(), device, seed }
    }

    /// The parameters' device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// A parameter that is not a matrix from inputs to outputs, such as a vector.
    ///
    /// # Errors
    /// If the name is taken or libtorch fails.
    pub fn tensor(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Weight> {
        self.add(name, shape, init, None, false)
    }

    /// A frozen parameter, whose value something else than training determines.
    ///
    /// # Errors
    /// If the name is taken or libtorch fails.
    pub fn frozen(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Weight> {
        self.add(name, shape, init, None, true)
    }

    /// A matrix from inputs to outputs. `fans` says which dimension is which.
    ///
    /// # Errors
    /// If the name is taken or libtorch fails.
    pub fn matrix(&mut self, name: &str, shape: [i64; 2], init: Init, fans: Fans) -> Result<Weight> {
        self.add(name, &shape, init, Some(fans), false)
    }

    fn add(&mut self, name: &str, shape: &[i64], init: Init, fans: Option<Fans>, frozen: bool) -> Result<Weight> {
        if self.set.params.contains_key(name) {
            return Err(Error::Config(format!("the parameter {name} was made twice")));
        }
        let tensor = tch::no_grad(|| self.start(name, shape, init, fans))?;
        self.set.params.insert(name.to_owned(), Param { tensor: tensor.shallow_clone(), fans, frozen });
        Ok(Weight {
            master: tensor,
            number: self.set.params.len(),
            generation: Arc::clone(&self.set.generation),
            copies: Arc::clone(&self.copies),
        })
    }

    fn start(&self, name: &str, shape: &[i64], init: Init, fans: Option<Fans>) -> Result<Tensor> {
        let options = (Kind::Float, self.device);
        let Some(seed) = self.seed else {
            return Ok(Tensor::f_empty(shape, options)?);
        };
        let row: Vec<i64> = std::iter::once(1).chain(shape.iter().copied()).collect();
        // Drawn on the CPU, so that a seed means the same model on every device.
        let mut noise = Seeded::new(vec![key_of(&[seed])], Device::Cpu);
        let value = match (init, fans) {
            (Init::Constant(value), _) => return Ok(Tensor::f_full(shape, value, options)?),
            (Init::Normal(std), _) => noise.normal(name, &row)? * std,
            (Init::XavierUniform, Some(Fans { fan_in, fan_out })) => {
                let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
                (noise.uniform(name, &row)? * 2.0 - 1.0) * bound
            }
            (Init::XavierUniform, None) => {
                return Err(Error::Config(format!("{name}: a Xavier start needs fan-in and fan-out")));
            }
        };
        Ok(value.f_reshape(shape)?.f_to_device(self.device)?)
    }

    /// The finished set.
    pub fn finish(self) -> ParamSet {
        self.set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (ParamSet, Weight) {
        let mut b = ParamBuilder::seeded(1, Device::Cpu);
        let w = b.matrix("w", [3, 2], Init::XavierUniform, Fans { fan_in: 2, fan_out: 3 }).unwrap();
        b.tensor("b", &[3], Init::Constant(0.5)).unwrap();
        assert!(b.tensor("b", &[3], Init::Constant(0.0)).unwrap_err().to_string().contains("made twice"));
        (b.finish(), w)
    }

    #[test]
    fn load_is_all_or_nothing_and_names_every_difference() {
        let (set, w) = two();
        let before = w.master().copy();
        let wrong = Tensor::zeros([3, 3], (Kind::Float, Device::Cpu));
        let message = set.load("x.safetensors", [("w", &wrong), ("extra", &wrong)]).unwrap_err().to_string();
        for part in [
            "x.safetensors",
            "w: the model has [3, 2], the file has [3, 3]",
            "b: the model has [3], the file has none",
            "extra",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert!(w.master().equal(&before));
    }

    #[test]
    fn the_low_precision_copy_follows_the_master_and_carries_gradients() {
        let (set, w) = two();
        set.set_requires_grad(true);
        let first = tch::no_grad(|| w.get(Kind::BFloat16));
        assert!(first.requires_grad());
        w.get(Kind::BFloat16).to_kind(Kind::Float).sum(Kind::Float).backward();
        assert!(w.master().grad().equal(&Tensor::ones([3, 2], (Kind::Float, Device::Cpu))));
        tch::no_grad(|| {
            let _ = w.master().shallow_clone().fill_(2.0);
        });
        set.changed();
        assert_eq!(w.get(Kind::BFloat16).double_value(&[0, 0]), 2.0);
    }

    #[test]
    fn a_subset_shares_its_parameters_with_the_whole() {
        let (set, w) = two();
        let part = set.subset(|name| name == "w");
        assert_eq!(part.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["w"]);
        let _ = w.get(Kind::BFloat16);
        tch::no_grad(|| {
            let _ = part.get("w").unwrap().tensor.shallow_clone().fill_(3.0);
        });
        part.changed();
        assert_eq!(w.get(Kind::BFloat16).double_value(&[0, 0]), 3.0);
    }

    #[test]
    fn a_frozen_parameter_has_no_gradient_and_is_not_trained() {
        let mut b = ParamBuilder::seeded(1, Device::Cpu);
        let kept = b.frozen("kept", &[2], Init::Constant(1.0)).unwrap();
        let moved = b.tensor("moved", &[2], Init::Constant(1.0)).unwrap();
        let set = b.finish();
        set.set_requires_grad(true);
        assert!(!kept.master().requires_grad() && moved.master().requires_grad());
        assert_eq!(set.trained().iter().map(|(name, _)| name).collect::<Vec<_>>(), ["moved"]);
        assert_eq!(set.len(), 2);
    }

    #[test]
    fn a_start_depends_on_seed_and_name_only() {
        let (a, _) = two();
        let mut b = ParamBuilder::seeded(1, Device::Cpu);
        b.tensor("first", &[4], Init::Normal(1.0)).unwrap();
        b.matrix("w", [3, 2], Init::XavierUniform, Fans { fan_in: 2, fan_out: 3 }).unwrap();
        assert!(a.get("w").unwrap().tensor.equal(&b.finish().get("w").unwrap().tensor));
    }
}
