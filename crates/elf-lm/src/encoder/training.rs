//! The training loop of an encoder, with checkpoints: what is interrupted or killed goes on where it was.
//!
//! It is not the loop of `elf_train`, whose runs are counted in steps: here the budget is in minutes, by the clock, and decides on
//! learning rates and on when the held-out loss is measured; three groups of parameters have learning rates of their own; and
//! there are no averages. Optimisers, clipping and checkpoints are those of `elf_train`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use elf_core::{ParamSet, Seeded, key_of};
use elf_encoder::{Corrupted, DenoisingBatch, SpanCorruption, T5Pretraining};
use elf_train::{Checkpoint, CheckpointFolder, CheckpointState, KeepPolicy, clip_grad_norm};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::corpus::Corpus;
use super::optimizers::Optimizers;
use super::recipe::Recipe;
use crate::error::{Context, fail};
use crate::fingerprint::{Difference, Fingerprint};
use crate::tensorboard::EventFile;
use crate::{Host, Result};

/// Share of the budget in which learning rates rise.
const WARM_UP: f64 = 0.03;
/// Held-out texts, at most.
const VALIDATION_TEXTS: usize = 1000;
/// How often the held-out loss is measured, over the whole budget.
const VALIDATIONS: u32 = 10;

/// One place of the loss curve.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Optimiser steps done.
    pub steps: u64,
    /// Minutes since the start.
    pub minutes: f64,
    /// Mean training loss of the latest steps, in nats for each target token.
    pub training: Option<f64>,
    /// Held-out loss, likewise.
    pub held_out: Option<f64>,
}

/// Where a training is, beside parameters and the optimisers' state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimiser steps done.
    pub steps: u64,
    /// Tokens learned from, passes counted.
    pub tokens: u64,
    /// What they took, over all interruptions.
    pub seconds: f64,
    /// Losses so far.
    pub curve: Vec<Point>,
    /// Passes over the corpus that are done.
    pass: u64,
    /// Batches done of the next one.
    batch: usize,
    /// The number of the next measurement of the held-out loss.
    next_validation: u32,
}

impl Progress {
    /// Minutes of training so far.
    pub fn minutes(&self) -> f64 {
        self.seconds / 60.0
    }

    /// The share of a recipe's budget that is used up.
    fn share_of(&self, recipe: &Recipe) -> f64 {
        let by_time = recipe.minutes.map_or(0.0, |minutes| self.minutes() / minutes);
        let by_steps = recipe.steps.map_or(0.0, |steps| self.steps as f64 / steps as f64);
        by_time.max(by_steps).min(1.0)
    }
}

/// The checkpoints of a training, beside the encoder that it is to become.
#[derive(Debug)]
pub struct TrainingStore {
    folder: CheckpointFolder,
    /// What may not differ when the training goes on, by the names of flags.
    settings: Fingerprint,
}

impl TrainingStore {
    /// Those of the encoder `output`: its checkpoints lie in a folder of that name with `.training` behind it.
    ///
    /// # Errors
    /// If `output` has no name.
    pub fn beside(output: &Path, settings: Fingerprint) -> Result<Self> {
        let name = output.file_name().with_context(|| format!("--output {} names no folder", output.display()))?;
        let mut name = name.to_owned();
        name.push(".training");
        Ok(Self { folder: CheckpointFolder::new(output.with_file_name(name)), settings })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        self.folder.root()
    }

    /// The newest checkpoint, if it is one of the same training.
    fn latest(&self) -> Result<Option<Checkpoint>> {
        let Some(checkpoint) = self.folder.latest()? else {
            return Ok(None);
        };
        let before: Fingerprint = serde_json::from_value(checkpoint.state().plan.clone())
            .with_context(|| format!("{} is not of an encoder's training", checkpoint.path().display()))?;
        if let Some(Difference { name, own, other }) = self.settings.first_difference(&before) {
            let [then, now] = [other, own].map(|value| value.unwrap_or_else(|| "none".to_owned()));
            fail!(
                place(self.path()),
                "{} was begun with another {name} ({then}, now {now}): set it back, or remove that folder to begin anew",
                self.path().display()
            );
        }
        Ok(Some(checkpoint))
    }

    fn save(&self, progress: &Progress, seed: u64, params: &ParamSet, optimizers: &Optimizers) -> Result<PathBuf> {
        let plan = serde_json::to_value(&self.settings)?;
        let state = CheckpointState::new(progress.steps, seed, serde_json::to_value(progress)?, plan);
        let params: Vec<(&str, &Tensor)> = params.iter().map(|(name, p)| (name, &p.tensor)).collect();
        // No averages: what is shipped is what was trained.
        let saved = self.folder.save(state, &params, &[], &optimizers.state())?;
        self.folder.prune(&KeepPolicy::default())?;
        Ok(saved.path().to_owned())
    }

    /// Removes the folder if nothing but its lock is in it.
    pub fn remove_if_empty(&self) {
        // Where a checkpoint is, the folder stays.
        let _ = std::fs::remove_file(self.path().join(".lock"));
        let _ = std::fs::remove_dir(self.path());
    }

    /// Removes them all: the encoder is there.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn remove(self) -> Result<()> {
        match std::fs::remove_dir_all(self.path()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.path().display()))
            }
            _ => Ok(()),
        }
    }
}

/// The share of the highest learning rate after this share of the budget: a linear rise, then half a cosine down to 0.
fn rate_at(done: f64) -> f64 {
    if done < WARM_UP {
        // Not 0 at the very start: the first step is to move something.
        return ((done / WARM_UP) + 1e-2).min(1.0);
    }
    0.5 * (1.0 + (std::f64::consts::PI * ((done - WARM_UP) / (1.0 - WARM_UP)).min(1.0)).cos())
}

/// A training run.
pub struct Pretrainer {
    /// How to train.
    pub recipe: Recipe,
    /// What is learned.
    pub task: SpanCorruption,
    /// The id that fills short rows.
    pub pad: i32,
    /// The texts.
    pub corpus: Corpus,
    /// Texts that the loss is measured on.
    pub held_out: Corpus,
    /// The columns that these are from.
    pub held_out_names: Vec<String>,
    /// What learns.
    pub model: T5Pretraining,
    /// Where.
    pub device: Device,
    /// The folder of TensorBoard's event file, if there is to be one.
    pub tensorboard: Option<PathBuf>,
}

impl Pretrainer {
    /// Trains to the end of the budget, from the newest checkpoint if there is one; `None` if `stop` was set before that, and
    /// then a checkpoint is there.
    ///
    /// # Errors
    /// If the checkpoint is damaged or of another training, one cannot be written, the loss is no number, or libtorch fails.
    pub fn train(&self, store: &TrainingStore, host: &Host) -> Result<Option<Progress>> {
        let recipe = &self.recipe;
        let mut optimizers = Optimizers::new(recipe, self.model.params(), self.device)?;
        let mut progress = self.resume(store, &mut optimizers, host)?;
        let mut events = self.event_file(progress.steps)?;
        let (before, start) = (progress.seconds, Instant::now());
        let mut saved = Instant::now();
        let mut window = LossWindow::new();
        let mut batches = self.corpus.pass(recipe.seed, progress.pass, recipe.batch_tokens)?;
        loop {
            progress.seconds = before + start.elapsed().as_secs_f64();
            let done = progress.share_of(recipe);
            let over = done >= 1.0 && progress.steps > 0;
            if over || done * f64::from(VALIDATIONS) >= f64::from(progress.next_validation) {
                progress.next_validation = (done * f64::from(VALIDATIONS)) as u32 + 1;
                let held_out = self.note_losses(&mut progress, window.recent(), host)?;
                if let (Some(loss), Some(events)) = (held_out, &mut events) {
                    events.scalars(progress.steps, [("held_out/loss".to_owned(), loss)])?;
                }
            }
            if over {
                return Ok(Some(progress));
            }
            let stopped = host.stop().load(Ordering::SeqCst);
            if stopped || saved.elapsed().as_secs_f64() >= recipe.save_minutes * 60.0 {
                let path = store.save(&progress, recipe.seed, self.model.params(), &optimizers)?;
                saved = Instant::now();
                if stopped {
                    host.note(format!("saved {}", path.display()));
                    return Ok(None);
                }
            }
            let Some(texts) = batches.get(progress.batch) else {
                (progress.pass, progress.batch) = (progress.pass + 1, 0);
                batches = self.corpus.pass(recipe.seed, progress.pass, recipe.batch_tokens)?;
                continue;
            };
            let rate = rate_at(done);
            let (loss, norm) = self.step(texts, &progress, rate, &mut optimizers)?;
            let in_batch = texts.iter().map(|&i| self.corpus.tokens_of(i) as u64).sum::<u64>();
            progress.steps += 1;
            progress.batch += 1;
            progress.tokens += in_batch;
            window.add(loss, norm, in_batch);
            if progress.steps.is_multiple_of(recipe.log_every.max(1)) {
                let scalars = window.tell(progress.steps, progress.pass, rate * recipe.lr(), host);
                if let Some(events) = &mut events {
                    events.scalars(progress.steps, scalars.map(|(name, value)| (format!("train/{name}"), value)))?;
                }
            }
        }
    }

    /// TensorBoard's event file, if there is to be one, with the recipe.
    fn event_file(&self, steps_done: u64) -> Result<Option<EventFile>> {
        let Some(folder) = &self.tensorboard else { return Ok(None) };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let mut events = EventFile::begin(folder, steps_done)?;
        events.settings(&serde_json::to_value(&self.recipe)?)?;
        Ok(Some(events))
    }

    /// Measures the held-out loss, adds a point to the curve of losses, and returns it.
    fn note_losses(&self, progress: &mut Progress, training: Option<f64>, host: &Host) -> Result<Option<f64>> {
        let (steps, minutes) = (progress.steps, progress.minutes());
        let held_out = self.validate()?;
        if let Some((loss, of_each)) = &held_out {
            host.note(format!("step {steps}: held-out loss {loss:.4}{of_each} after {minutes:.1} minutes"));
        }
        let held_out = held_out.map(|(loss, _)| loss);
        progress.curve.push(Point { steps, minutes, training, held_out });
        Ok(held_out)
    }

    /// Takes over what the newest checkpoint has; without one, a start.
    fn resume(&self, store: &TrainingStore, optimizers: &mut Optimizers, host: &Host) -> Result<Progress> {
        let Some(checkpoint) = store.latest()? else {
            return Ok(Progress::default());
        };
        checkpoint.verify()?;
        let (origin, state) = checkpoint.optimizer()?;
        optimizers.load_state(&origin, &state)?;
        checkpoint.load_params(self.model.params())?;
        let progress: Progress = serde_json::from_value(checkpoint.state().cursor.clone())
            .with_context(|| format!("{} is from another version of this program", checkpoint.path().display()))?;
        host.note(format!("resuming from {}", checkpoint.path().display()));
        Ok(progress)
    }

    /// One step; the loss and the length of its gradient.
    ///
    /// # Errors
    /// If either is no number; then nothing has moved.
    fn step(&self, texts: &[usize], progress: &Progress, rate: f64, optimizers: &mut Optimizers) -> Result<(f64, f64)> {
        let batch = self.batch(&self.corpus, texts, key_of(&[self.recipe.seed, 1, progress.pass]))?;
        let loss = self.model.loss(&batch)?;
        self.model.params().zero_grad();
        loss.f_backward()?;
        let norm = clip_grad_norm(self.model.params(), self.recipe.clip)?;
        let (loss, norm) = (loss.f_double_value(&[])?, norm.f_double_value(&[])?);
        if !(loss.is_finite() && norm.is_finite()) {
            fail!(
                request,
                "the loss is {loss} and the gradient's norm {norm} at step {}: train with lower learning rates",
                progress.steps
            );
        }
        optimizers.step(rate)?;
        Ok((loss, norm))
    }

    /// A batch of tasks, or of texts corrupted with the numbers of `key`.
    fn batch(&self, corpus: &Corpus, texts: &[usize], key: u64) -> Result<DenoisingBatch> {
        let tasks: Option<Vec<Corrupted>> = texts
            .iter()
            .map(|&i| corpus.target(i).map(|target| Corrupted::task(corpus.text(i), target, self.task.eos)))
            .collect();
        let lessons = match tasks {
            Some(tasks) => tasks,
            None => {
                let keys = texts.iter().map(|&i| key_of(&[key, i as u64])).collect();
                let texts: Vec<&[i32]> = texts.iter().map(|&i| corpus.text(i)).collect();
                self.task.corrupt(&texts, &mut Seeded::new(keys, Device::Cpu))?
            }
        };
        Ok(DenoisingBatch::new(&lessons, self.pad)?)
    }

    /// The mean cross-entropy over held-out targets, the same texts and spans each time; with several columns also that of each,
    /// in words.
    fn validate(&self) -> Result<Option<(f64, String)>> {
        let texts = self.held_out.evenly(VALIDATION_TEXTS);
        let mut of_each: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
        for &i in &texts {
            of_each.entry(self.held_out.origin(i)).or_default();
        }
        for (&origin, (sum, count)) in &mut of_each {
            let own: Vec<usize> = texts.iter().copied().filter(|&i| self.held_out.origin(i) == origin).collect();
            for texts in self.held_out.batches(&own, self.recipe.batch_tokens) {
                let batch = self.batch(&self.held_out, &texts, key_of(&[0x5eed]))?;
                let targets = batch.targets.numel() as f64;
                *sum += tch::no_grad(|| self.model.loss(&batch))?.f_double_value(&[])? * targets;
                *count += targets;
            }
        }
        let (sum, count) = of_each.values().fold((0.0, 0.0), |all, one| (all.0 + one.0, all.1 + one.1));
        let each: Vec<String> = of_each
            .iter()
            .map(|(&origin, (sum, count))| format!("{} {:.3}", self.held_out_names[origin], sum / count))
            .collect();
        let in_words = if each.len() > 1 { format!(" ({})", each.join(", ")) } else { String::new() };
        Ok((count > 0.0).then(|| (sum / count, in_words)))
    }
}

/// Sums since the last line about the training.
struct LossWindow {
    since: Instant,
    loss: f64,
    norm: f64,
    steps: u64,
    tokens: u64,
    last: Option<f64>,
}

impl LossWindow {
    fn new() -> Self {
        Self { since: Instant::now(), loss: 0.0, norm: 0.0, steps: 0, tokens: 0, last: None }
    }

    fn add(&mut self, loss: f64, norm: f64, tokens: u64) {
        self.loss += loss;
        self.norm += norm;
        self.steps += 1;
        self.tokens += tokens;
    }

    /// The mean loss of the latest steps; none before the first.
    fn recent(&self) -> Option<f64> {
        if self.steps > 0 { Some(self.loss / self.steps as f64) } else { self.last }
    }

    /// Notes the means, and returns them by name.
    fn tell(&mut self, steps: u64, pass: u64, lr: f64, host: &Host) -> [(&'static str, f64); 4] {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let n = self.steps.max(1) as f64;
        let (loss, norm, rate) = (self.loss / n, self.norm / n, self.tokens as f64 / seconds);
        host.note(format!(
            "step {steps}: loss {loss:.4}, gradient {norm:.2}, learning rate {lr:.2e}, pass {}, {:.0} tokens/s",
            pass + 1,
            rate
        ));
        *self = Self { last: Some(loss), ..Self::new() };
        [("loss", loss), ("grad_norm", norm), ("lr", lr), ("tokens_per_s", rate)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall_to_nothing() {
        let rates: Vec<f64> = (0..=1000).map(|i| rate_at(f64::from(i) / 1000.0)).collect();
        assert!(rates[0] > 0.0 && rates[0] < 0.05);
        let top = (WARM_UP * 1000.0) as usize;
        assert!(rates[..top].windows(2).all(|w| w[1] >= w[0]) && rates[top..].windows(2).all(|w| w[1] <= w[0]));
        assert!((rates[top] - 1.0).abs() < 1e-3 && rates[1000] < 1e-9);
    }
}
