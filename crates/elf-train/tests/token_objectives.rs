//! The same trainer on losses over token ids: learning, resuming, validating.

use elf_core::layers::{Embedding, Linear};
use elf_core::{Dropout, Fans, Init, ParamBuilder, ParamSet, Result, Seeded, TokenNetwork, key_of};
use elf_flow::tokens::{MaskedDiffusion, NextToken, TokenBatch, TokenObjective};
use elf_train::optim::OptimizerConfig;
use elf_train::{
    BatchSource, CheckpointFolder, Outcome, OverTokens, Run, RunControl, Solo, StepMetrics, Trainer, TrainingBatch,
    TrainingObserver, run, validation_loss,
};
use serde_json::{Value, json};
use small::{config, control, equal};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use tch::{Device, Kind, Tensor};

mod small;

const V: i64 = 6;
const S: i64 = 5;
const H: i64 = 8;

/// Says of each position what it reads there, and a running mean of what came before: causal, and enough for a toy.
struct Reader {
    params: ParamSet,
    table: Embedding,
    words: Linear,
}

impl Reader {
    fn new() -> Self {
        let mut b = ParamBuilder::seeded(3, Device::Cpu);
        let table = Embedding::new(&mut b, "table", V + 1, H, 0.5).unwrap();
        let words =
            Linear::new(&mut b, "words", Fans { fan_in: 2 * H, fan_out: V }, Init::XavierUniform, true).unwrap();
        Self { params: b.finish(), table, words }
    }
}

impl TokenNetwork for Reader {
    fn vocab_size(&self) -> i64 {
        V
    }

    fn mask_id(&self) -> Option<i64> {
        Some(V)
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn stochastic(&self) -> bool {
        true
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn hidden(&self, ids: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor> {
        let x = self.table.forward(ids);
        let count = Tensor::arange(x.size()[1], (Kind::Float, Device::Cpu)).view([-1, 1]) + 1.0;
        let x = Tensor::f_cat(&[&x, &(x.cumsum(1, Kind::Float) / count)], -1)?;
        match dropout {
            Some(dropout) => dropout.apply(&x, 0.1, &[0], dropout.length(), &[[0, x.size()[1]]]),
            None => Ok(x),
        }
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.words.forward(hidden))
    }

    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let nll = -self.logits(hidden)?.log_softmax(-1, Kind::Float).gather(1, &ids.unsqueeze(1), false).squeeze_dim(1);
        Ok(weights.map_or_else(|| nll.sum(Kind::Float), |w| (&nll * w).sum(Kind::Float)))
    }
}

/// Rows that count upwards, of which the first token is given.
fn batch(index: u64, rows: i64) -> TokenBatch {
    let first = |row: i64| (key_of(&[index, row as u64]) % V as u64) as i64;
    let ids: Vec<i64> = (0..rows).flat_map(|row| (0..S).map(move |i| (first(row) + i) % V)).collect();
    let n = rows as usize;
    TokenBatch { ids: Tensor::from_slice(&ids).view([rows, S]), starts: vec![1; n], ends: vec![S - 1; n] }
}

struct Counted(u64);

impl BatchSource<TokenBatch> for Counted {
    fn next_batch(&mut self) -> std::result::Result<Option<TokenBatch>, Box<dyn std::error::Error + Send + Sync>> {
        self.0 += 1;
        Ok(Some(batch(self.0 - 1, 4)))
    }

    fn cursor(&self) -> Value {
        json!(self.0)
    }
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl TrainingObserver for Losses {
    fn stepped(&mut self, step: &StepMetrics) {
        self.0.push(step.loss);
    }
}

fn trainer<O: TokenObjective>(objective: O) -> Trainer<Reader, OverTokens<O>> {
    Trainer::new(Reader::new(), OverTokens(objective), config(OptimizerConfig::default()), Rc::new(Solo)).unwrap()
}

fn go<O: TokenObjective>(
    trainer: &mut Trainer<Reader, OverTokens<O>>,
    until: u64,
    from: u64,
    folder: &Path,
) -> Vec<f64> {
    let mut losses = Losses::default();
    let outcome = run(
        trainer,
        Run {
            source: &mut Counted(from),
            control: RunControl { ..control(until) },
            checkpoints: &CheckpointFolder::new(folder),
            plan: Value::Null,
            evaluator: None,
            observer: &mut losses,
            stop: &AtomicBool::new(false),
        },
    );
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    losses.0
}

fn learns_and_resumes<O: TokenObjective + Copy>(objective: O) {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut straight = trainer(objective);
    let before = validation_loss(straight.objective(), straight.net(), [Ok(batch(900, 1024))], 1).unwrap();
    go(&mut straight, 30, 0, whole.path());
    let after = validation_loss(straight.objective(), straight.net(), [Ok(batch(900, 1024))], 1).unwrap();
    assert!(after.loss < 0.9 * before.loss, "{before:?} {after:?}");
    assert_eq!((after.terms.len(), after.terms[0].name.as_str()), (1, "nll"));

    go(&mut trainer(objective), 11, 0, parts.path());
    let checkpoint = CheckpointFolder::new(parts.path()).latest().unwrap().unwrap();
    let mut resumed = trainer(objective);
    resumed.restore(&checkpoint).unwrap();
    let from = checkpoint.state().cursor.as_u64().unwrap();
    assert_eq!((resumed.steps_done(), from), (11, 22));
    go(&mut resumed, 30, from, parts.path());
    assert!(equal(&straight.params().snapshot(), &resumed.params().snapshot()));
    let averages = |t: &Trainer<Reader, OverTokens<O>>| {
        t.ema().averages().map(|(n, t)| (n.to_owned(), t.copy())).collect::<Vec<_>>()
    };
    assert!(equal(&averages(&straight), &averages(&resumed)));
}

#[test]
fn an_autoregressive_model_learns_and_goes_on_bit_for_bit() {
    learns_and_resumes(NextToken { bos: 0 });
}

#[test]
fn a_masked_model_learns_and_goes_on_bit_for_bit() {
    learns_and_resumes(MaskedDiffusion::default());
}

#[test]
fn held_out_losses_know_no_dropout() {
    let net = Reader::new();
    let objective = NextToken { bos: 0 };
    let rows = batch(1, 8);
    assert_eq!(rows.sizes().unwrap(), (8, S));
    assert_eq!(TrainingBatch::sizes(&rows).unwrap(), (8, S as u64));
    let loss = |mut noise: Seeded| objective.loss(&net, &rows, &mut noise).unwrap().mean().double_value(&[]);
    let seeded = |seed: u64| Seeded::at(&[seed], 0..8, Device::Cpu);
    assert_ne!(loss(seeded(1)), loss(seeded(2)));
    let held_out = |seed| validation_loss(&OverTokens(objective), &net, [Ok(batch(1, 8))], seed).unwrap().loss;
    assert_eq!(held_out(1), held_out(2));
    assert!((held_out(1) - loss(seeded(1).without_dropout())).abs() < 1e-6);
}

/// Some rows of a batch, and texts of different lengths.
fn part(rows: i64, places: &[i64]) -> TokenBatch {
    let whole = batch(5, rows);
    let end = |row: &i64| S - 2 + row % 3;
    TokenBatch {
        ids: whole.ids.index_select(0, &Tensor::from_slice(places)),
        starts: vec![1; places.len()],
        ends: places.iter().map(end).collect(),
    }
}

/// The distribution of rows over batches or ranks changes neither the times and masks of held-out losses nor, in training, dropout.
fn does_not_depend_on_batching<O: TokenObjective + Copy>(objective: O) {
    let net = Reader::new();
    let all: Vec<i64> = (0..12).collect();
    let pieces = [&all[..5], &all[5..6], &all[6..]];
    let held_out = |parts: &[&[i64]]| {
        validation_loss(&OverTokens(objective), &net, parts.iter().map(|places| Ok(part(12, places))), 9).unwrap()
    };
    let (whole, cut) = (held_out(&[&all]), held_out(&pieces));
    assert!((whole.loss - cut.loss).abs() < 1e-5 * whole.loss, "{whole:?} {cut:?}");
    assert!((whole.terms[0].mean - cut.terms[0].mean).abs() < 1e-5 * whole.terms[0].mean);

    let training = |places: &[i64]| {
        let mut noise = Seeded::at(&[9, 1], places.iter().map(|&i| i as u64), Device::Cpu);
        objective.loss(&net, &part(12, places), &mut noise).unwrap().sum.double_value(&[])
    };
    let (together, alone) = (training(&all), training(&[0]));
    for world in 2..5 {
        let of = |rank: usize| training(&all.iter().copied().skip(rank).step_by(world).collect::<Vec<_>>());
        let over_ranks: f64 = (0..world).map(of).sum();
        assert!((together - over_ranks).abs() < 1e-5 * together, "{together} {over_ranks}");
    }
    assert_ne!(together, alone);
}

#[test]
fn an_autoregressive_loss_does_not_depend_on_batching() {
    does_not_depend_on_batching(NextToken { bos: 0 });
}

#[test]
fn a_masked_loss_does_not_depend_on_batching() {
    does_not_depend_on_batching(MaskedDiffusion::default());
}
