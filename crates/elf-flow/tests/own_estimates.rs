//! Decode rows of own estimates: what they hold is what a sampler's last step reads, and no row depends on another.

mod batches;
mod toy;

use std::cell::RefCell;

use batches::{S, batch};
use elf_core::{Network, NetworkShape, Noise, ParamSet, Result, Seeded, TrunkInput};
use elf_flow::{
    AutoGuidance, Condition, Conditioned, ElfObjective, Field, GuidanceLaw, LatentBatch, NetworkField, Objective,
    OwnEstimates, TrainedFlow,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use toy::{C, Toy};

/// The self-conditioning guidance scale of all rows.
const W: f64 = 1.7;

/// A network with a guide, that records its decode rows.
struct Watched {
    inner: Toy,
    guide: Toy,
    /// z and x_prev of the decode rows of each pass that has any.
    decoded: RefCell<Vec<[Tensor; 2]>>,
}

impl Watched {
    fn new() -> Self {
        Self { inner: Toy::new(true), guide: Toy::new(false), decoded: RefCell::default() }
    }
}

impl Network for Watched {
    fn shape(&self) -> NetworkShape {
        self.inner.shape()
    }

    fn params(&self) -> &ParamSet {
        self.inner.params()
    }

    fn guide(&self) -> Option<&dyn Network> {
        Some(&self.guide)
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        if let Some(gate) = input.decode {
            let rows = gate.nonzero().squeeze_dim(1);
            assert_eq!(input.t.index_select(0, &rows).min().double_value(&[]), 1.0, "decode rows are at t = 1");
            let of = |x: &Tensor| x.index_select(0, &rows);
            let x_prev = input.x_prev.map_or_else(|| of(input.z).zeros_like(), of);
            self.decoded.borrow_mut().push([of(input.z), x_prev]);
        }
        self.inner.trunk(input)
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        self.inner.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.inner.logits(hidden)
    }
}

fn seeds(first: u64, rows: i64) -> Vec<u64> {
    (first..).take(rows as usize).collect()
}

fn objective(own: OwnEstimates, decoder_prob: f64, self_cond_prob: f64) -> ElfObjective {
    let guidance = GuidanceLaw { min: W, max: W };
    ElfObjective { decoder_prob, self_cond_prob, guidance, decoder_estimates: Some(own), ..ElfObjective::default() }
}

fn own(prob: f64, t: f64, guide_scale: f64) -> OwnEstimates {
    OwnEstimates { prob, from: t, to: t, guide_scale }
}

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_read_is_the_fields_estimate(
        t in 0.0f64..0.9, scale in prop::sample::select(vec![1.0, 2.0]), conditional: bool, hinted: bool, seed in 0u64..100
    ) {
        let rows = 4;
        let (net, batch) = (Watched::new(), batch(rows, conditional));
        let objective = objective(own(1.0, t, scale), 1.0, if hinted { 0.5 } else { 0.0 });
        let noise = || Seeded::new(seeds(seed * 10, rows), Device::Cpu);
        objective.loss(&net, &batch, &mut noise()).unwrap();

        let trained = TrainedFlow::from(&objective);
        let condition = batch.condition.as_ref().map(|mask| Condition::new(&batch.latents, &batch.ids, mask).unwrap());
        let pin = |z: Tensor| condition.as_ref().map_or(z.shallow_clone(), |c| c.pin(&z).unwrap());
        let eps = noise().normal("decoder_estimate_noise", &[rows, S, C]).unwrap();
        let z = pin(objective.path.interpolate(&batch.latents, &eps, &Tensor::from(t).to_kind(Kind::Float)));
        let words = condition.as_ref().map(|c| c.words(rows).unwrap());
        let field = ToField { net: &net.inner, trained, words };
        let guided = AutoGuidance::new(field, NetworkField::new(&net.guide, trained.of_clean_estimates(), W), scale);
        let field: Box<dyn Field> = match &condition {
            Some(condition) => Box::new(Conditioned::new(guided, condition)),
            None => Box::new(guided),
        };
        // Without a hint a conditioned network has the clean condition in its place.
        let none = pin(z.zeros_like());
        let mut x = field.eval(&z, t, hinted.then_some(&none)).unwrap().x;
        if hinted {
            x = field.eval(&z, t, Some(&x)).unwrap().x;
        }
        let decoded = net.decoded.borrow();
        let [[read, x_prev]] = &decoded[..] else { panic!("one pass has decode rows") };
        let off = largest(&(read - pin(x)));
        prop_assert!(off < 1e-3, "{}", off);
        prop_assert_eq!(largest(x_prev), 0.0);
    }

    /// However rows are put together: their coins are their own.
    #[test]
    fn the_loss_of_a_batch_is_the_sum_of_its_rows(seed in 0u64..1000, conditional: bool) {
        let rows = 6;
        let (net, whole) = (Watched::new(), batch(rows, conditional));
        let objective = objective(own(0.5, 0.3, 2.0), 0.6, 0.5);
        let sum = |batch: &LatentBatch, seeds: Vec<u64>| {
            objective.loss(&net, batch, &mut Seeded::new(seeds, Device::Cpu)).unwrap().sum.double_value(&[])
        };
        let together = sum(&whole, seeds(seed * 10, rows));
        let alone: f64 = (0..rows).map(|i| {
            let row = |x: &Tensor| x.narrow(0, i, 1);
            let one = LatentBatch {
                latents: row(&whole.latents),
                ids: row(&whole.ids),
                loss_mask: row(&whole.loss_mask),
                condition: whole.condition.as_ref().map(row),
                dropped: Vec::new(),
            };
            sum(&one, vec![seed * 10 + i as u64])
        }).sum();
        prop_assert!((together - alone).abs() < 1e-3 * alone.abs().max(1.0), "{} and {}", together, alone);
    }
}

/// A network of one guidance scale as a field that knows the words of a condition.
struct ToField<'a> {
    net: &'a Toy,
    trained: TrainedFlow,
    words: Option<Tensor>,
}

impl Field for ToField<'_> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> elf_flow::Result<elf_flow::Prediction> {
        let options = (Kind::Float, Device::Cpu);
        let (times, w) = (Tensor::full([z.size()[0]], t, options), Tensor::full([z.size()[0]], W, options));
        let input = TrunkInput {
            x_prev: hint.filter(|_| self.trained.self_conditioned),
            guidance: Some(&w),
            words: self.words.as_ref(),
            ..TrunkInput::new(z, &times)
        };
        let x = self.net.clean(&self.net.trunk(&input)?)?;
        Ok(elf_flow::Prediction { v: self.trained.path.velocity_at(&x, z, t), x })
    }

    fn noise_scale(&self) -> f64 {
        self.trained.path.noise_scale
    }
}

/// Words learn to be read: the loss has a gradient, and the guide has none.
#[test]
fn the_estimate_is_not_learned_through() {
    let net = Watched::new();
    net.params().set_requires_grad(true);
    net.guide.params().set_requires_grad(true);
    let objective = objective(own(1.0, 0.3, 2.0), 1.0, 0.5);
    let loss = objective.loss(&net, &batch(4, false), &mut Seeded::new(seeds(1, 4), Device::Cpu)).unwrap();
    loss.mean().backward();
    let trained = |params: &ParamSet| params.iter().any(|(_, p)| p.tensor.grad().defined());
    assert!(trained(net.params()) && !trained(net.guide.params()));
}

#[test]
fn impossible_estimates_are_named() {
    let message =
        |own, block_size| ElfObjective { block_size, ..objective(own, 0.5, 0.5) }.check().unwrap_err().to_string();
    assert!(message(own(1.5, 0.3, 1.0), None).contains("decoder_estimate_prob"));
    assert!(message(own(0.5, f64::NAN, 1.0), None).contains("decoder_estimate_from"));
    assert!(message(OwnEstimates { from: 0.5, ..own(0.5, 0.3, 1.0) }, None).contains("decoder_estimate_from"));
    assert!(message(own(0.5, 0.3, f64::INFINITY), None).contains("decoder_estimate_guide"));
    assert!(message(own(0.5, 0.3, 1.0), Some(2)).contains("block_size"));
    let objective = objective(own(1.0, 0.3, 2.0), 1.0, 0.5);
    let draws = &mut Seeded::new(seeds(1, 4), Device::Cpu);
    let message = objective.loss(&Toy::new(true), &batch(4, false), draws).unwrap_err().to_string();
    assert!(message.contains("decoder_estimate_guide") && message.contains("no guide"), "{message}");
}
