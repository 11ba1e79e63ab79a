//! A network and a source of batches small enough for a step to take a millisecond.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::num::NonZeroU32;
use std::rc::Rc;

use elf_core::{
    Fans, Init, Network, NetworkShape, Noise, ParamBuilder, ParamSet, Result, Seeded, TrunkInput, Weight, key_of,
    layers::Linear,
};
use elf_flow::{ElfObjective, LatentBatch};
use elf_train::optim::OptimizerConfig;
use elf_train::{BatchSource, Decay, RunControl, Schedule, Solo, Trainer, TrainerConfig};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

pub const C: i64 = 3;
pub const S: i64 = 4;
pub const V: i64 = 7;
const H: i64 = 8;

/// One hidden layer over all that a trunk is given, position by position.
pub struct SmallNet {
    params: ParamSet,
    inner: Linear,
    clean: Linear,
    words: Linear,
    mode: Weight,
}

impl SmallNet {
    pub fn new(seed: u64) -> Self {
        let mut b = ParamBuilder::seeded(seed, Device::Cpu);
        let mut linear = |name: &str, fan_in, fan_out| {
            Linear::new(&mut b, name, Fans { fan_in, fan_out }, Init::XavierUniform, true).unwrap()
        };
        let (inner, clean, words) = (linear("inner", 2 * C + 2, H), linear("clean", H, C), linear("words", H, V));
        let mode = b.tensor("mode", &[1, 1, H], Init::Normal(0.02)).unwrap();
        Self { params: b.finish(), inner, clean, words, mode }
    }
}

impl Network for SmallNet {
    fn shape(&self) -> NetworkShape {
        NetworkShape { latent_dim: C, hidden_size: H, vocab_size: V, guidance_input: true, stochastic: false }
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        let (b, s, _) = input.z.size3()?;
        let column = |x: Option<&Tensor>| match x {
            Some(x) => x.view([b, 1, 1]).expand([b, s, 1], false),
            None => Tensor::zeros([b, s, 1], (Kind::Float, Device::Cpu)),
        };
        let x_prev = input.x_prev.map_or_else(|| input.z.zeros_like(), Tensor::shallow_clone);
        let all = Tensor::f_cat(&[input.z, &x_prev, &column(Some(input.t)), &column(input.guidance)], -1)?;
        let gate = column(input.decode);
        Ok((self.inner.forward(&all) + gate * self.mode.master()).tanh())
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.clean.forward(hidden))
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.words.forward(hidden))
    }
}

/// Batch number `index`, always the same.
pub fn batch(index: u64, rows: i64) -> LatentBatch {
    let mut noise = Seeded::new((0..rows as u64).map(|r| key_of(&[index, r])).collect(), Device::Cpu);
    LatentBatch {
        latents: noise.normal("latents", &[rows, S, C]).unwrap(),
        ids: (noise.uniform("ids", &[rows, S]).unwrap() * V as f64).to_kind(Kind::Int64),
        loss_mask: Tensor::ones([rows, S], (Kind::Float, Device::Cpu)),
        condition: None,
        dropped: Vec::new(),
    }
}

/// Endless or limited batches, counted.
pub struct Counted {
    pub next: u64,
    pub end: u64,
    /// The batch of this number is full of NaN.
    pub poisoned: Option<u64>,
}

impl Counted {
    pub fn from(next: u64) -> Self {
        Self { next, end: u64::MAX, poisoned: None }
    }
}

impl BatchSource for Counted {
    fn next_batch(&mut self) -> std::result::Result<Option<LatentBatch>, Box<dyn std::error::Error + Send + Sync>> {
        if self.next >= self.end {
            return Ok(None);
        }
        let mut made = batch(self.next, 4);
        if self.poisoned == Some(self.next) {
            made.latents *= f64::NAN;
        }
        self.next += 1;
        Ok(Some(made))
    }

    fn cursor(&self) -> Value {
        json!({ "next": self.next })
    }
}

pub fn config(optimizer: OptimizerConfig) -> TrainerConfig {
    TrainerConfig {
        optimizer,
        schedule: Schedule { lr: 0.02, warmup_steps: 3, decay: Decay::Cosine, min_lr: 0.001, total_steps: 30 },
        clip_norm: Some(1.0),
        ema_decay: 0.9,
        accumulation: NonZeroU32::new(2).unwrap(),
        seed: 5,
    }
}

pub fn trainer(optimizer: OptimizerConfig) -> Trainer<SmallNet, ElfObjective> {
    let objective = ElfObjective { decoder_prob: 0.3, ..ElfObjective::default() };
    Trainer::new(SmallNet::new(1), objective, config(optimizer), Rc::new(Solo)).unwrap()
}

pub fn control(total_steps: u64) -> RunControl {
    RunControl { total_steps, save_every: 0, evaluate_every: 0, keep: Default::default(), patience: 0 }
}

/// Whether two sets of named tensors are equal in every bit that matters.
pub fn equal(a: &[(String, Tensor)], b: &[(String, Tensor)]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((n, x), (m, y))| n == m && x.equal(y))
}
