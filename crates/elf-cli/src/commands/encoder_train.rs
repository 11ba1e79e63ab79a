//! `elf encoder train`: T5's span-corruption pre-training on a corpus of one's own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use elf_core::device::DeviceChoice;
use elf_core::{ParamBuilder, ParamSet, Precision, Seeded, key_of};
use elf_data::Tokenizer;
use elf_encoder::{DenoisingBatch, EncoderMask, LatentMoments, SpanCorruption, T5Encoder, T5Pretraining, TextEncoder};
use elf_hub::What;
use elf_train::clip_grad_norm;
use elf_train::optim::{AdamW, AdamWConfig, Muon, MuonConfig, Optimizer};
use tch::{Device, Kind, Tensor};

use crate::commands::encoder::EncoderSizes;
use crate::encoder_card::{EncoderCard, Point};
use crate::encoder_corpus::Corpus;
use crate::text_column::TextColumn;
use crate::text_latents::{describe, write_stats};
use crate::{hub, progress};

/// Share of the budget in which learning rates rise.
const WARM_UP: f64 = 0.03;
/// Held-out texts, at most.
const VALIDATION_TEXTS: usize = 1000;
/// Texts that the latents' statistics are measured on, at most.
const STATISTICS_TEXTS: usize = 8192;
/// How often the held-out loss is measured, over the whole budget.
const VALIDATIONS: u32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rule {
    /// Muon for the matrices of the blocks, AdamW for the rest.
    Muon,
    /// AdamW for everything.
    Adamw,
}

/// The kind of the numbers in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoredAs {
    Bf16,
    F32,
}

impl StoredAs {
    /// As libtorch names it.
    pub fn kind(self) -> Kind {
        match self {
            StoredAs::Bf16 => Kind::BFloat16,
            StoredAs::F32 => Kind::Float,
        }
    }
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A text column to learn from, once for each: a Parquet, JSONL or plain text file, a folder of them or a Hugging Face
    /// id, and behind a colon the column.
    #[arg(long, required = true, value_name = "FILE:COLUMN")]
    text: Vec<TextColumn>,
    /// A text column to measure the loss on, once for each.
    #[arg(long, value_name = "FILE:COLUMN")]
    validation: Vec<TextColumn>,
    /// The tokenizer whose ids it is to read: a tokenizer.json, or the folder that holds one, or a Hugging Face id.
    #[arg(long)]
    tokenizer: PathBuf,
    #[command(flatten)]
    sizes: EncoderSizes,
    /// Blocks of the decoder, which is thrown away at the end.
    #[arg(long, default_value_t = 2)]
    decoder_layers: i64,
    /// Longer texts are cut into pieces of so many tokens.
    #[arg(long, default_value_t = 128)]
    max_length: usize,
    /// Share of the tokens that is taken out.
    #[arg(long, default_value_t = 0.15)]
    density: f64,
    /// Tokens in a span that is taken out, on average.
    #[arg(long, default_value_t = 3.0)]
    mean_span: f64,
    /// Train for so many minutes; the learning rate falls to 0 over them.
    #[arg(long, required_unless_present = "steps")]
    minutes: Option<f64>,
    /// Train for so many steps. With --minutes, what comes first ends it.
    #[arg(long)]
    steps: Option<u64>,
    /// Tokens of text in one step.
    #[arg(long, default_value_t = 4096)]
    batch_tokens: usize,
    /// What moves the matrices of the blocks.
    #[arg(long, value_enum, default_value = "muon")]
    optimizer: Rule,
    /// Highest learning rate of the matrices of the blocks [default: 0.01 with muon, 0.002 with adamw].
    #[arg(long)]
    lr: Option<f64>,
    /// Highest learning rate of the token table, whose rows begin at a size of 1.
    #[arg(long, default_value_t = 0.1)]
    embedding_lr: f64,
    /// Highest learning rate of everything else: norms, position biases, the decoder's head.
    #[arg(long, default_value_t = 0.003)]
    other_lr: f64,
    /// Longest gradient; longer ones are shortened to it.
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// Seed of the weights, the order of the texts and the spans.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tell of the training every so many steps.
    #[arg(long, default_value_t = 50)]
    log_every: u64,
    /// Kind of the numbers in model.safetensors.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: StoredAs,
    /// What the model card is to say of the texts and their licence.
    #[arg(long)]
    data_note: Option<String>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// The folder for config.json, model.safetensors, tokenizer.json, latent_stats.json and README.md; it must not hold
    /// anything yet.
    #[arg(long)]
    output: PathBuf,
}

impl TrainArgs {
    fn lr(&self) -> f64 {
        self.lr.unwrap_or(match self.optimizer {
            Rule::Muon => 0.01,
            Rule::Adamw => 0.002,
        })
    }

    /// What clap cannot check.
    fn check(&self) -> Result<()> {
        let positive = |name: &str, value: f64| {
            ensure!(value.is_finite() && value > 0.0, "--{name} is {value}; it must be a positive number");
            Ok(())
        };
        positive("lr", self.lr())?;
        positive("embedding-lr", self.embedding_lr)?;
        positive("other-lr", self.other_lr)?;
        positive("clip", self.clip)?;
        positive("minutes", self.minutes.unwrap_or(1.0))?;
        ensure!(self.steps != Some(0), "--steps is 0; at least one step is needed");
        ensure!(
            (SpanCorruption::SHORTEST..=1 << 16).contains(&self.max_length),
            "--max-length is {}; it must be between {} and 65536",
            self.max_length,
            SpanCorruption::SHORTEST
        );
        ensure!(
            (self.max_length..=1 << 24).contains(&self.batch_tokens),
            "--batch-tokens is {}; it must be at least --max-length ({}) and at most {}",
            self.batch_tokens,
            self.max_length,
            1 << 24
        );
        let taken = std::fs::read_dir(&self.output).is_ok_and(|mut inside| inside.next().is_some());
        if taken || self.output.is_file() {
            bail!("{} is there already; choose another --output, or remove it", self.output.display());
        }
        Ok(())
    }
}

/// Sentinels for texts of up to `longest` tokens: the tokenizer's own as far as it has them, then ids after its vocabulary.
fn sentinels(tokenizer: &Tokenizer, needed: usize) -> (Vec<i32>, i64) {
    let vocab = tokenizer.vocab_size() as i32;
    let own = (0..needed).map(|i| tokenizer.id(&format!("<extra_id_{i}>"))).take_while(Option::is_some).flatten();
    let mut ids: Vec<i32> = own.collect();
    let extra = needed - ids.len();
    ids.extend((0..extra as i32).map(|i| vocab + i));
    (ids, extra as i64)
}

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    args.check()?;
    let device = args.device.resolve()?;
    let precision = Precision::native(device);
    let tokenizer = Tokenizer::load(hub::locate(&args.tokenizer, What::Tokenizer)?)?;
    let (eos, pad) = (tokenizer.eos_id()?, tokenizer.pad_id()?);
    let config = args.sizes.config(&tokenizer)?;
    let rates =
        SpanCorruption { density: args.density, mean_span: args.mean_span, ..SpanCorruption::t5(eos, Vec::new()) };
    let (sentinels, extra) = sentinels(&tokenizer, rates.sentinels_for(args.max_length));
    let task = SpanCorruption { sentinels, ..rates };
    task.check(args.max_length)?;

    let spinner = progress::spinner();
    let read = |columns: &[TextColumn]| {
        Corpus::read(columns, &tokenizer, args.max_length, |n| spinner.set_message(format!("{n} texts read")))
    };
    let corpus = read(&args.text)?;
    let held_out = if args.validation.is_empty() { Corpus::default() } else { read(&args.validation)? };
    spinner.finish_and_clear();

    let builder = ParamBuilder::seeded(args.seed, device);
    let model = T5Pretraining::new(&config, extra, args.decoder_layers, builder, precision)?;
    println!(
        "{} texts of {} tokens{}; {} parameters, {} of them in the encoder; {} on {}",
        corpus.len(),
        corpus.tokens(),
        match corpus.too_short {
            0 => String::new(),
            n => format!(" ({n} too short)"),
        },
        model.params().numel(),
        config.parameter_count(),
        precision,
        elf_core::device::describe(device),
    );
    let stop = progress::stop_on_interrupt()?;
    let trained = Pretrainer { args: &args, task, pad, corpus, held_out, model, device }.train(&stop)?;
    trained.ship(&tokenizer)?;
    Ok(ExitCode::SUCCESS)
}

/// Optimisers with the parameters that each moves and its highest learning rate.
struct Movers(Vec<(ParamSet, Box<dyn Optimizer>, f64)>);

impl Movers {
    fn new(args: &TrainArgs, params: &ParamSet, device: Device) -> Result<Self> {
        let is_table = |name: &str| name == "shared.weight";
        let is_matrix = |name: &str| params.get(name).is_some_and(|p| p.fans.is_some()) && name != "lm_head.weight";
        let matrices = params.subset(is_matrix);
        let by_rule: Box<dyn Optimizer> = match args.optimizer {
            Rule::Muon => Box::new(Muon::new(
                MuonConfig { precision: Precision::native(device), ..MuonConfig::default() },
                &matrices,
            )?),
            Rule::Adamw => Box::new(AdamW::new(AdamWConfig::default(), &matrices)?),
        };
        let adamw = |set: &ParamSet| AdamW::new(AdamWConfig::default(), set).map(|a| Box::new(a) as Box<dyn Optimizer>);
        let table = params.subset(is_table);
        let others = params.subset(|name| !is_table(name) && !is_matrix(name));
        let (for_table, for_others) = (adamw(&table)?, adamw(&others)?);
        Ok(Self(vec![
            (matrices, by_rule, args.lr()),
            (table, for_table, args.embedding_lr),
            (others, for_others, args.other_lr),
        ]))
    }

    /// One step of all, at this share of their highest rates.
    fn step(&mut self, share: f64) -> Result<()> {
        for (params, optimizer, lr) in &mut self.0 {
            optimizer.step(params, *lr * share)?;
        }
        Ok(())
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
struct Pretrainer<'a> {
    args: &'a TrainArgs,
    task: SpanCorruption,
    pad: i32,
    corpus: Corpus,
    held_out: Corpus,
    model: T5Pretraining,
    device: Device,
}

impl<'a> Pretrainer<'a> {
    /// A batch of texts, corrupted with the numbers of `key`.
    fn batch(&self, corpus: &Corpus, texts: &[usize], key: u64) -> Result<DenoisingBatch> {
        let keys = texts.iter().map(|&i| key_of(&[key, i as u64])).collect();
        let texts: Vec<&[i32]> = texts.iter().map(|&i| corpus.text(i)).collect();
        let corrupted = self.task.corrupt(&texts, &mut Seeded::new(keys, Device::Cpu))?;
        Ok(DenoisingBatch::new(&corrupted, self.pad)?)
    }

    /// The mean cross-entropy over held-out targets, the same texts and spans each time.
    fn validate(&self) -> Result<Option<f64>> {
        if self.held_out.len() == 0 {
            return Ok(None);
        }
        let texts = self.held_out.evenly(VALIDATION_TEXTS);
        let (mut sum, mut count) = (0.0, 0.0);
        for texts in self.held_out.batches(&texts, self.args.batch_tokens) {
            let batch = self.batch(&self.held_out, &texts, key_of(&[0x5eed]))?;
            let targets = batch.targets.numel() as f64;
            sum += tch::no_grad(|| self.model.loss(&batch))?.f_double_value(&[])? * targets;
            count += targets;
        }
        Ok(Some(sum / count))
    }

    fn train(self, stop: &AtomicBool) -> Result<Trained<'a>> {
        let args = self.args;
        let mut movers = Movers::new(args, self.model.params(), self.device)?;
        let start = Instant::now();
        let mut told = Told::new();
        let mut curve = Vec::new();
        let mut next_validation = 0u32;
        let (mut steps, mut tokens, mut pass) = (0u64, 0u64, 0u64);
        let mut batches = self.corpus.pass(args.seed, pass, args.batch_tokens)?.into_iter();
        loop {
            let minutes = start.elapsed().as_secs_f64() / 60.0;
            let by_time = args.minutes.map_or(0.0, |m| minutes / m);
            let by_steps = args.steps.map_or(0.0, |n| steps as f64 / n as f64);
            let done = by_time.max(by_steps).min(1.0);
            let over = done >= 1.0 || stop.load(Ordering::SeqCst);
            if over || done * f64::from(VALIDATIONS) >= f64::from(next_validation) {
                next_validation = (done * f64::from(VALIDATIONS)) as u32 + 1;
                let held_out = self.validate()?;
                if let Some(loss) = held_out {
                    println!("step {steps}: held-out loss {loss:.4} after {minutes:.1} minutes");
                }
                curve.push(Point { steps, minutes, training: told.recent(), held_out });
            }
            if over {
                ensure!(steps > 0, "interrupted before the first step; nothing is written");
                break;
            }
            let Some(texts) = batches.next() else {
                pass += 1;
                batches = self.corpus.pass(args.seed, pass, args.batch_tokens)?.into_iter();
                continue;
            };
            let batch = self.batch(&self.corpus, &texts, key_of(&[args.seed, 1, pass]))?;
            let loss = self.model.loss(&batch)?;
            self.model.params().zero_grad();
            loss.f_backward()?;
            let norm = clip_grad_norm(self.model.params(), args.clip)?;
            let (loss, norm) = (loss.f_double_value(&[])?, norm.f_double_value(&[])?);
            ensure!(
                loss.is_finite() && norm.is_finite(),
                "the loss is {loss} and the gradient's norm {norm} at step {steps}: train with lower learning rates"
            );
            let rate = rate_at(done);
            movers.step(rate)?;
            steps += 1;
            let in_batch = texts.iter().map(|&i| self.corpus.text(i).len() as u64).sum::<u64>();
            tokens += in_batch;
            told.add(loss, norm, in_batch);
            if steps.is_multiple_of(args.log_every.max(1)) {
                told.tell(steps, pass, rate * args.lr());
            }
        }
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        let interrupted = stop.load(Ordering::SeqCst);
        Ok(Trained { run: self, curve, steps, tokens, minutes, interrupted })
    }
}

/// Sums since the last line about the training.
struct Told {
    since: Instant,
    loss: f64,
    norm: f64,
    steps: u64,
    tokens: u64,
    last: Option<f64>,
}

impl Told {
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

    fn tell(&mut self, steps: u64, pass: u64, lr: f64) {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let n = self.steps.max(1) as f64;
        let (loss, norm) = (self.loss / n, self.norm / n);
        println!(
            "step {steps}: loss {loss:.4}, gradient {norm:.2}, learning rate {lr:.2e}, pass {}, {:.0} tokens/s",
            pass + 1,
            self.tokens as f64 / seconds
        );
        *self = Self { last: Some(loss), ..Self::new() };
    }
}

/// A finished run.
struct Trained<'a> {
    run: Pretrainer<'a>,
    curve: Vec<Point>,
    steps: u64,
    tokens: u64,
    minutes: f64,
    interrupted: bool,
}

impl Trained<'_> {
    /// Writes the folder: whole or not at all.
    fn ship(&self, tokenizer: &Tokenizer) -> Result<()> {
        let args = self.run.args;
        let kind = args.dtype.kind();
        let parent = args.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let cannot = || format!("cannot write {}", args.output.display());
        std::fs::create_dir_all(parent).with_context(cannot)?;
        let aside = tempfile::Builder::new().prefix(".writing-").tempdir_in(parent).with_context(cannot)?;
        self.run.model.save_encoder(aside.path(), kind)?;
        tokenizer.save(aside.path().join("tokenizer.json"))?;
        // Of the encoder as everybody will read it, its numbers rounded.
        let encoder = T5Encoder::load(aside.path(), self.run.device, Precision::F32)?;
        let moments = self.moments(&encoder)?;
        let stats = moments.per_channel()?;
        write_stats(aside.path(), &stats)?;
        println!("latents over {} positions: {}", moments.positions(), describe(&moments.overall()?));
        let card = EncoderCard {
            config: encoder.config(),
            texts: &args.text,
            validation: &args.validation,
            data_note: args.data_note.as_deref(),
            corpus: (self.run.corpus.len(), self.run.corpus.tokens()),
            trained_tokens: self.tokens,
            steps: self.steps,
            minutes: self.minutes,
            seed: args.seed,
            device: elf_core::device::describe(self.run.device),
            curve: &self.curve,
            interrupted: self.interrupted,
            overall: moments.overall()?,
        };
        std::fs::write(aside.path().join("README.md"), card.to_markdown()).with_context(cannot)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(aside.path(), std::fs::Permissions::from_mode(0o755)).with_context(cannot)?;
        }
        std::fs::rename(aside.path(), &args.output).with_context(cannot)?;
        // Nothing is left to be removed under the old name.
        let _ = aside.keep();
        println!(
            "an encoder with {} parameters; {} steps over {} tokens in {:.1} minutes; written to {}",
            encoder.params().numel(),
            self.steps,
            self.tokens,
            self.minutes,
            args.output.display()
        );
        Ok(())
    }

    /// Moments of the latents of training texts, whole and closed by EOS.
    fn moments(&self, encoder: &T5Encoder) -> Result<LatentMoments> {
        let corpus = &self.run.corpus;
        let mut moments = LatentMoments::new(usize::try_from(encoder.dim()).context("the encoder's width")?);
        for texts in corpus.batches(&corpus.evenly(STATISTICS_TEXTS), self.run.args.batch_tokens) {
            let longest = texts.iter().map(|&i| corpus.text(i).len() + 1).max().unwrap_or(1);
            let mut ids = vec![i64::from(self.run.pad); texts.len() * longest];
            let mut valid = vec![0f32; ids.len()];
            for (row, &i) in texts.iter().enumerate() {
                let text = corpus.text(i).iter().chain([&self.run.task.eos]);
                for (j, id) in text.enumerate() {
                    ids[row * longest + j] = i64::from(*id);
                    valid[row * longest + j] = 1.0;
                }
            }
            let shape = [texts.len() as i64, longest as i64];
            let ids = Tensor::f_from_slice(&ids)?.f_view(shape)?;
            let valid = Tensor::f_from_slice(&valid)?.f_view(shape)?.f_to_device(self.run.device)?;
            moments.add(&encoder.encode(&ids, EncoderMask::Columns(&valid))?, &valid)?;
        }
        Ok(moments)
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
