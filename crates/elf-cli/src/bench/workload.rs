//! A model, an encoder and tokens of given sizes, with random values: speed does not depend on what they are.

use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use elf_core::{Counting, Network, Noise, ParamBuilder, PassCount, Precision, PrecisionPolicy, Seeded, Timed, device};
use elf_data::{
    CollateConfig, Collator, Cursor, Dataset, Example, Loader, LoaderConfig, Order, OrderConfig, PadToken, Share,
};
use elf_encoder::{EncoderMask, LatentStats, T5Config, T5Encoder, TextEncoder};
use elf_flow::sampler::Registry;
use elf_flow::{Cost, Decoder, ElfObjective, GenerateConfig, Generator, LatentBatch, Request, TrainedFlow};
use elf_model::{Elf, ElfConfig};
use elf_train::optim::{MuonConfig, OptimizerConfig};
use elf_train::{Schedule, Solo, StepTimes, Trainer, TrainerConfig};
use tch::{Device, Kind, Tensor};

use super::median;
use elf_lm::text::text_latents::TextLatents;

/// Standard deviation of T5-small's latents.
const LATENT_STD: f64 = 0.2;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The network.
    pub model: ElfConfig,
    /// The text encoder.
    pub encoder: T5Config,
    /// Precision of the parts of the network.
    pub policy: PrecisionPolicy,
    /// Whether sampling and decoding multiply 8-bit integers.
    pub int8: bool,
    /// Precision of Muon's iterations.
    pub muon: Precision,
    /// Whether blocks are run again in the backward pass instead of keeping activations.
    pub recompute: bool,
    /// Rows of a batch.
    pub batch: usize,
    /// Positions of a row.
    pub seq: usize,
    /// Steps that are timed.
    pub steps: usize,
    /// Sampling steps.
    pub sampling_steps: usize,
    /// Where.
    pub device: Device,
}

/// What a stage took.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Positions that went through.
    pub positions: u64,
    /// Time for all of them.
    pub elapsed: Duration,
    /// Time for one step or batch.
    pub median: Duration,
    /// Floating-point operations that they needed.
    pub flops: u64,
}

impl Measured {
    /// Positions a second.
    pub fn rate(&self) -> f64 {
        self.positions as f64 / self.elapsed.as_secs_f64()
    }

    /// Operations a position.
    pub fn flops_per_position(&self) -> f64 {
        self.flops as f64 / self.positions as f64
    }

    /// Operations a second.
    pub fn flops_per_second(&self) -> f64 {
        self.flops as f64 / self.elapsed.as_secs_f64()
    }
}

/// What training took.
#[derive(Debug)]
pub struct Training {
    /// All timed steps, encoding and optimiser included.
    pub measured: Measured,
    /// Where the time went.
    pub times: StepTimes,
    /// Waiting for tokens alone.
    pub data_wait: Duration,
}

/// Part of a step and its time, in the order of their course.
pub type Profile = Vec<(&'static str, Duration)>;

impl Workload {
    /// The network.
    pub fn net(&self) -> Result<Elf> {
        let mut net = Elf::new(self.model.clone(), self.policy, 1, self.device)?;
        net.set_recompute(self.recompute);
        Ok(net)
    }

    /// The network as it samples.
    pub fn sampling_net(&self) -> Result<Elf> {
        let policy = PrecisionPolicy { int8: self.int8, ..self.policy };
        Ok(Elf::new(self.model.clone(), policy, 1, self.device)?)
    }

    fn encoder(&self) -> Result<Box<dyn TextEncoder>> {
        Ok(Box::new(T5Encoder::new(&self.encoder, ParamBuilder::seeded(2, self.device), self.policy.blocks)?))
    }

    fn latents(&self) -> Result<TextLatents> {
        Ok(TextLatents::new(self.encoder()?, LatentStats::uniform(0.0, LATENT_STD)?, self.device)?)
    }

    /// Encoded batches.
    pub fn batches(&self) -> Result<Batches> {
        Ok(Batches { loader: self.loader()?, latents: self.latents()? })
    }

    fn objective() -> ElfObjective {
        ElfObjective::default()
    }

    fn seeds(&self) -> Vec<u64> {
        (0..self.batch as u64).collect()
    }

    /// Random token ids, all rows of full length: `[rows, S]`.
    fn ids(&self, rows: usize) -> Result<Tensor> {
        let uniform =
            Seeded::new((0..rows as u64).collect(), Device::Cpu).uniform("ids", &[rows as i64, self.seq as i64])?;
        Ok((uniform * (self.model.vocab_size - 1) as f64).f_floor()?.f_to_kind(Kind::Int64)?)
    }

    /// As much in-memory token data as a few batches.
    fn loader(&self) -> Result<Loader> {
        let rows = self.batch * 16;
        let ids = self.ids(rows)?.f_to_kind(Kind::Int)?;
        let examples = (0..rows as i64)
            .map(|row| Ok(Example { input_ids: Vec::try_from(ids.f_get(row)?)?, condition_ids: None }))
            .collect::<Result<Vec<_>>>()?;
        let collate = CollateConfig { max_length: self.seq, max_input_length: None, pad_token: PadToken::Pad };
        let order = OrderConfig { seed: 0, rows, global_batch: self.batch };
        Ok(Loader::start(
            Arc::new(Dataset::from_examples(&examples)?),
            Collator::with_fill_id(collate, 0)?,
            Order::new(order, Share::alone(self.batch))?,
            Cursor::default(),
            LoaderConfig::default(),
        )?)
    }

    pub fn trainer<N: Network>(&self, net: N) -> Result<Trainer<N, ElfObjective>> {
        let muon = MuonConfig { precision: self.muon, ..MuonConfig::default() };
        let config = TrainerConfig {
            optimizer: OptimizerConfig::Muon(muon),
            schedule: Schedule::constant(1e-3, 0),
            clip_norm: Some(1.0),
            ema_decay: 0.9999,
            accumulation: NonZeroU32::MIN,
            seed: 3,
        };
        Ok(Trainer::new(net, Self::objective(), config, Rc::new(Solo))?)
    }

    /// Training steps as `elf train` takes them: tokens from a loader, encoder, loss, gradients, Muon, averages.
    pub fn train(&self) -> Result<Training> {
        let mut trainer = self.trainer(Counting::new(self.net()?))?;
        let mut batches = self.batches()?;
        let step = |trainer: &mut Trainer<_, _>, batches: &mut Batches| -> Result<StepTimes> {
            let report = trainer.step(std::iter::once_with(|| batches.next()))?.context("the data has no end")?;
            Ok(report.times)
        };
        // The first steps make what later ones reuse; on a GPU each has rows in other numbers.
        for _ in 0..self.on_gpu(3) {
            step(&mut trainer, &mut batches)?;
        }
        device::wait(self.device);
        trainer.net().reset();
        let waited = batches.loader.waited();
        let mut times = StepTimes::default();
        let begun = Instant::now();
        let mut laps = Vec::new();
        for _ in 0..self.steps {
            let at = Instant::now();
            let of_step = step(&mut trainer, &mut batches)?;
            times.batches += of_step.batches;
            times.gradients += of_step.gradients;
            times.update += of_step.update;
            laps.push(at.elapsed());
        }
        device::wait(self.device);
        let (elapsed, flops) = (begun.elapsed(), self.train_flops(trainer.net().count()));
        let data_wait = batches.loader.waited() - waited;
        if self.device != Device::Cpu {
            // Above they were queued; for their own times each is waited for.
            laps.clear();
            for _ in 0..self.steps {
                let at = Instant::now();
                step(&mut trainer, &mut batches)?;
                device::wait(self.device);
                laps.push(at.elapsed());
            }
        }
        let positions = (self.steps * self.batch * self.seq) as u64;
        Ok(Training { measured: Measured { positions, elapsed, median: median(&laps), flops }, times, data_wait })
    }

    /// What the timed steps needed: the encoder; rows with gradients three times (forward, and twice that backward), rows
    /// without once. The optimiser is not counted: its time is, so that it lowers the utilisation.
    fn train_flops(&self, count: PassCount) -> u64 {
        let s = self.seq as u64;
        let rows = (self.steps * self.batch) as u64;
        let decode_rows = count.logit_positions / s;
        let (with, without) = (count.rows_with_grad, count.rows - count.rows_with_grad);
        rows * self.encoder.encode_flops(s)
            + (3 * with + without) * self.model.trunk_flops(s)
            + (3 * (with - decode_rows) + without) * self.model.clean_flops(s)
            + 3 * self.model.logits_flops(count.logit_positions)
    }

    /// The parts of a training step, each waited for: mean times over the steps.
    pub fn profile(&self) -> Result<Profile> {
        let mut trainer = self.trainer(Timed::new(self.net()?))?;
        trainer.wait_between_parts(true);
        let (mut loader, latents) = (self.loader()?, self.latents()?);
        let mut profile: Profile = Vec::new();
        let mut add = |part, time: Duration| match profile.iter_mut().find(|(name, _)| *name == part) {
            Some((_, sum)) => *sum += time,
            None => profile.push((part, time)),
        };
        for step in 0..=self.steps {
            let begun = Instant::now();
            let tokens = loader.next_batch()?;
            let loaded = begun.elapsed();
            let batch = latents.encode(&tokens.batch)?;
            device::wait(self.device);
            let encoded = begun.elapsed() - loaded;
            let report = trainer.step([Ok(batch)])?.context("one batch makes a step")?;
            let parts = trainer.net().take();
            // The first step makes what later ones reuse.
            if step == 0 {
                continue;
            }
            add("waiting for tokens", loaded);
            add("encoder", encoded);
            let forward: Duration = parts.iter().map(|(_, time)| *time).sum();
            parts.into_iter().for_each(|(part, time)| add(part, time));
            add("backward, and draws", report.times.gradients.saturating_sub(forward));
            add("clip, optimiser, averages", report.times.update);
        }
        profile.iter_mut().for_each(|(_, time)| *time /= self.steps as u32);
        Ok(profile)
    }

    /// One batch from noise to tokens, as `elf sample` makes it, after one to warm up.
    pub fn sample(&self) -> Result<Measured> {
        self.sample_with(&self.sampling_net()?)
    }

    /// The same, with a network that is there.
    pub fn sample_with(&self, net: &Elf) -> Result<Measured> {
        let config = GenerateConfig { steps: self.sampling_steps, ..GenerateConfig::default() };
        let generator = Generator::new(net, TrainedFlow::from(&Self::objective()), config, &Registry::builtin())?;
        let seeds = self.seeds();
        let request = Request::new(&seeds, self.seq as i64);
        let warm = GenerateConfig { steps: 1, ..GenerateConfig::default() };
        Generator::new(net, TrainedFlow::from(&Self::objective()), warm, &Registry::builtin())?
            .generate(&request, &mut ())?;
        device::wait(self.device);
        let mut laps = Vec::new();
        let mut run = || -> Result<Cost> {
            let begun = Instant::now();
            let generated = generator.generate(&request, &mut ())?;
            laps.push(begun.elapsed());
            Ok(generated.cost)
        };
        let cost = run()?;
        for _ in 1..self.on_gpu(3) {
            run()?;
        }
        let (rows, s) = (laps.len() as u64 * cost.rows, self.seq as u64);
        let denoise = rows * (cost.passes - 1);
        let flops = denoise * (self.model.trunk_flops(s) + self.model.clean_flops(s))
            + rows * self.model.trunk_flops(s)
            + self.model.logits_flops(rows * s);
        Ok(Measured { positions: rows * s, elapsed: laps.iter().sum(), median: median(&laps), flops })
    }

    /// The last pass alone: latents to tokens.
    pub fn decode(&self) -> Result<Measured> {
        let net = self.sampling_net()?;
        let decoder = Decoder::new(&net, TrainedFlow::from(&Self::objective()), 1.0);
        let (rows, s) = (self.batch as u64, self.seq as u64);
        let shape = [self.batch as i64, self.seq as i64, self.model.text_encoder_dim];
        let z = Seeded::new(self.seeds(), self.device).normal("z", &shape)?;
        let flops = rows * self.model.trunk_flops(s) + self.model.logits_flops(rows * s);
        self.repeat(flops, || tch::no_grad(|| Ok(decoder.ids(&z, None)?)))
    }

    /// Token ids to latents.
    pub fn encode(&self) -> Result<Measured> {
        let encoder = self.encoder()?;
        let ids = self.ids(self.batch)?;
        let flops = self.batch as u64 * self.encoder.encode_flops(self.seq as u64);
        self.repeat(flops, || Ok(encoder.encode(&ids, EncoderMask::None)?))
    }

    /// Collated batches of tokens, with nothing else to do.
    pub fn load(&self) -> Result<Measured> {
        let mut loader = self.loader()?;
        self.repeat(0, || Ok(loader.next_batch()?))
    }

    /// Runs `f`, which treats one batch, at least three times and for at least half a second.
    fn repeat<R>(&self, flops: u64, mut f: impl FnMut() -> Result<R>) -> Result<Measured> {
        f()?;
        device::wait(self.device);
        let mut laps = Vec::new();
        while laps.len() < 3 || laps.iter().sum::<Duration>() < Duration::from_millis(500) {
            let at = Instant::now();
            f()?;
            device::wait(self.device);
            laps.push(at.elapsed());
        }
        let runs = laps.len() as u64;
        let positions = runs * (self.batch * self.seq) as u64;
        Ok(Measured { positions, elapsed: laps.iter().sum(), median: median(&laps), flops: flops * runs })
    }

    /// So many times where time is short, once on a CPU.
    fn on_gpu(&self, times: usize) -> usize {
        if self.device == Device::Cpu { 1 } else { times }
    }
}

/// Encoded batches without end.
pub struct Batches {
    loader: Loader,
    latents: TextLatents,
}

impl Batches {
    /// The next one.
    ///
    /// # Errors
    /// If tokens cannot be encoded.
    pub fn next(&mut self) -> elf_train::Result<LatentBatch> {
        let mut next = || -> Result<LatentBatch> {
            let tokens = self.loader.next_batch()?;
            Ok(self.latents.encode(&tokens.batch)?)
        };
        next().map_err(|error| elf_train::Error::Source(error.into()))
    }
}
