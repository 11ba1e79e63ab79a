//! The whole way from seeds to tokens.

use elf_core::{Error as CoreError, Network, Noise, Seeded, TokenDraw};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::blocks::{BlockBatch, BlockNoise, PrefixContext, Reencode};
use crate::sampler::{ConfiguredSampler, Registry, SamplerChoice, Sde, State, integrate};
use crate::trace::{Frame, Observer, steps_to_show};
use crate::{
    AutoGuidance, Condition, ConditionGuidance, Conditioned, Decoder, Error, Field, LogitNormal, NetworkField, Reading,
    Result, SelfConditioningGuidance, TimeLaw, Trained,
};

/// More than anyone wants; a mistyped number must not exhaust memory.
const MAX_STEPS: usize = 100_000;

/// How text is sampled. The defaults are the published setting for 32 steps of unconditional text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// The sampler and its settings.
    pub sampler: SamplerChoice,
    /// N, steps of a run.
    pub steps: usize,
    /// Which times they visit.
    pub grid: TimeLaw,
    /// The seed of a random grid: of the run, not of a row, since all rows of a batch visit the same times.
    pub grid_seed: u64,
    /// w, the self-conditioning guidance scale; 1 is none.
    pub self_conditioning_guidance: f64,
    /// s, the condition guidance scale; 1 is none, anything else doubles the cost of a step.
    pub condition_guidance: f64,
    /// Where a run ends and the network decodes, in (0, 1]. The paper's is 1. Decode rows of training are noisy, so that
    /// decoding earlier is something the network has learned; it helps where the last steps to clean latents have been learned
    /// less well than reading from noisy ones. The grid is cut there: fewer steps are made.
    pub decode_at: f64,
    /// How words are taken from what the network says at `decode_at`. The paper's is the likeliest. Where much of a word is still open when
    /// it is read, that writes the commonplace more often than it should be, and drawing does not. All tokens of a block are drawn apart, so that it
    /// is for blocks of one token, or for reading at 1.
    pub draw: TokenDraw,
    /// Fill every batch up to this many rows. Matrix products of another shape may round otherwise, and a rounding may tip
    /// a token: with one fixed shape a row's tokens depend on its seed and its condition, not on the other rows.
    pub pad_to: Option<usize>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            sampler: SamplerChoice::of(&Sde::default()),
            steps: 32,
            grid: TimeLaw::LogitNormal(LogitNormal::DENOISER),
            grid_seed: 0,
            self_conditioning_guidance: 3.0,
            condition_guidance: 1.0,
            decode_at: 1.0,
            draw: TokenDraw::LIKELIEST,
            pad_to: None,
        }
    }
}

impl GenerateConfig {
    /// Checks all settings for a network that was trained so, and finds the sampler. `guidance_input`: whether the network takes the
    /// self-conditioning guidance scale as an input.
    ///
    /// # Errors
    /// Names the first setting that makes no sense, alone or with such a network.
    pub fn check(&self, trained: Trained, guidance_input: bool, registry: &Registry) -> Result<ConfiguredSampler> {
        trained.path.check()?;
        let sampler = registry.config(&self.sampler)?;
        let w = self.self_conditioning_guidance;
        for (setting, scale) in [("self_conditioning_guidance", w), ("condition_guidance", self.condition_guidance)] {
            // Tensors are fp32: a larger number would not fit beside them.
            if !(scale as f32).is_finite() {
                return Err(Error::setting(setting, format!("{scale} is not a scale")));
            }
        }
        if w != 1.0 && !trained.self_conditioned && !guidance_input {
            let reason = format!("{w} is asked for, but this network was trained without self-conditioning; use 1");
            return Err(Error::setting("self_conditioning_guidance", reason));
        }
        if self.steps > MAX_STEPS {
            return Err(Error::setting(
                "steps",
                format!("{} steps are more than the {MAX_STEPS} that are allowed", self.steps),
            ));
        }
        if !(self.decode_at > 0.0 && self.decode_at <= 1.0) {
            return Err(Error::setting("decode_at", format!("{} is not a time in (0, 1]", self.decode_at)));
        }
        self.draw.check()?;
        if self.pad_to == Some(0) {
            return Err(Error::setting("pad_to", "a batch of 0 rows holds nothing"));
        }
        Ok(sampler)
    }
}

/// A lesser version of a network, which autoguidance leads away from. See [`AutoGuidance`].
#[derive(Clone, Copy)]
pub struct Guide<'a> {
    /// The network, of the same latents.
    pub net: &'a dyn Network,
    /// How it was trained.
    pub trained: Trained,
    /// s; 1 is none, anything else doubles the cost of a step.
    pub scale: f64,
}

/// One batch of texts to sample.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// One seed per row.
    pub seeds: &'a [u64],
    /// S, positions of a row, condition included.
    pub length: i64,
    /// The condition, one row per seed.
    pub condition: Option<&'a Condition>,
    /// Encodes what was written, for networks that write block after block.
    pub reencoding: Option<&'a dyn Reencode>,
    /// The token that ends a text. Once all rows have it, no further blocks are written, and theirs hold it again and again.
    pub end: Option<i64>,
    /// Times in [0, 1] at which to show the text so far, before the last in its likeliest words; empty for none. Where texts are written in blocks, shares of the row's positions.
    pub trace: &'a [f64],
}

impl<'a> Request<'a> {
    /// Unconditional rows without a trace.
    pub fn new(seeds: &'a [u64], length: i64) -> Self {
        Self { seeds, length, condition: None, reencoding: None, end: None, trace: &[] }
    }
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("seeds", &self.seeds)
            .field("length", &self.length)
            .field("condition", &self.condition)
            .field("end", &self.end)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

/// A batch on its way.
struct Run<'r, 'a> {
    request: &'r Request<'a>,
    rows: usize,
    condition: Option<Condition>,
    z0: Tensor,
}

/// What a batch cost. One pass is every row of the (filled-up) batch once through the network, or through a guide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Rows of the batch, those that fill it up included.
    pub rows: u64,
    /// Passes of the sampler and the last one, which decodes: N + 1 with a sampler of one evaluation a step, 2N + 1 with
    /// condition guidance or autoguidance, 4N + 1 with both; all this for each block that is written where texts are written in blocks.
    /// A batch of 2B rows is two passes. In blocks a pass is over the positions of one block.
    pub passes: u64,
    /// Passes over what stood before a block, to remember it: 0 where texts are written all at once.
    pub context_passes: u64,
    /// Passes that only the trace needed.
    pub trace_passes: u64,
    /// Positions that were written, of all rows: those of blocks that were never begun, because all texts had ended, are none of them.
    pub positions: u64,
}

/// A sampled batch.
#[derive(Debug)]
pub struct Generated {
    /// The latents that were decoded, `[B, S, C]`, on the network's device: clean ones unless `decode_at` is below 1.
    pub z: Tensor,
    /// Token ids of each row, all S positions; [`Trim`](crate::Trim) makes texts of them.
    pub ids: Vec<Vec<i64>>,
    /// The natural log-probability of each of them: how sure the network is of what it read.
    pub log_probs: Vec<Vec<f32>>,
    /// What it cost.
    pub cost: Cost,
}

/// A network, how it was trained, and how to sample from it, checked and ready.
pub struct Generator<'a> {
    net: &'a dyn Network,
    trained: Trained,
    config: GenerateConfig,
    guide: Option<Guide<'a>>,
    sampler: ConfiguredSampler,
    times: Vec<f64>,
    device: Device,
}

impl std::fmt::Debug for Generator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Generator")
            .field("config", &self.config)
            .field("sampler", &self.sampler)
            .finish_non_exhaustive()
    }
}

impl<'a> Generator<'a> {
    /// Checks all settings, finds the sampler in `registry` and fixes the times.
    ///
    /// # Errors
    /// Names the first setting that makes no sense, alone or with this network.
    pub fn new(net: &'a dyn Network, trained: Trained, config: GenerateConfig, registry: &Registry) -> Result<Self> {
        let sampler = config.check(trained, net.shape().guidance_input, registry)?;
        // On the CPU whatever the network's device: a run visits the same times everywhere.
        let times = config.grid.grid(config.steps, &mut Seeded::new(vec![config.grid_seed], Device::Cpu))?;
        let times = until(times, config.decode_at);
        let device = net.params().iter().next().map_or(Device::Cpu, |(_, p)| p.tensor.device());
        Ok(Self { net, trained, config, guide: None, sampler, times, device })
    }

    /// Leads away from a lesser version of the network.
    ///
    /// # Errors
    /// If its latents have other channels, its noise is of another scale or its blocks of another size, or its own scale is no number.
    pub fn with_guide(self, guide: Guide<'a>) -> Result<Self> {
        let (own, other) = (self.net.shape().latent_dim, guide.net.shape().latent_dim);
        let reason = if !(guide.scale as f32).is_finite() {
            Some(format!("{} is not a scale", guide.scale))
        } else if own != other {
            Some(format!("its latents have {other} channels, and those of the network {own}"))
        } else if guide.trained.path.noise_scale != self.trained.path.noise_scale {
            Some("it was trained with noise of another scale".to_owned())
        } else if guide.trained.block_size != self.trained.block_size {
            Some("one of the two writes block after block and the other does not, or in other blocks".to_owned())
        } else {
            None
        };
        match reason {
            Some(reason) => Err(Error::setting("guide", reason)),
            None => Ok(Self { guide: Some(guide), ..self }),
        }
    }

    /// Visits these times instead of the configured grid's, as far as `decode_at`.
    ///
    /// # Errors
    /// If they do not ascend from 0 to 1.
    pub fn with_times(self, times: Vec<f64>) -> Result<Self> {
        let ends = times.first() == Some(&0.0) && times.last() == Some(&1.0);
        if !ends || !times.iter().is_sorted() {
            return Err(Error::setting("times", format!("{times:?} do not ascend from 0 to 1")));
        }
        let times = until(times, self.config.decode_at);
        Ok(Self { times, ..self })
    }

    /// The times that a run visits, from 0 to `decode_at`.
    pub fn times(&self) -> &[f64] {
        &self.times
    }

    /// Samples one batch. Equal seeds (and conditions) give equal rows; whatever else is in the batch, if `pad_to` is set.
    ///
    /// The device is waited for once, at the end, once for each frame of a trace, and after each block where texts are written in blocks.
    ///
    /// # Errors
    /// If the request does not fit together or exceeds `pad_to`, the network fails, or the latents are not finite.
    pub fn generate(&self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let asked = request.seeds.len();
        let rows = self.config.pad_to.unwrap_or(asked);
        if rows < asked {
            let reason = format!("{asked} rows are more than {rows}; split the batch, or raise it");
            return Err(Error::setting("pad_to", reason));
        }
        let seeds = (0..rows).filter_map(|i| request.seeds.get(i).or(request.seeds.first())).copied().collect();
        self.run(request, rows, &mut Seeded::new(seeds, self.device), observer)
    }

    /// As [`Generator::generate`], with noise of the caller's own for exactly `request.seeds.len()` rows (`pad_to` and the
    /// seeds' values are not used): `z0` `[B, S, C]` once, then whatever the sampler draws, then, if words are drawn, `word` `[B, S]` twice. Where texts are
    /// written in blocks, the draws of each are named `NAME@FIRST` by its first position, and are of its width.
    ///
    /// # Errors
    /// As [`Generator::generate`], or if the noise fails.
    pub fn generate_from(
        &self,
        request: &Request,
        noise: &mut dyn Noise,
        observer: &mut dyn Observer,
    ) -> Result<Generated> {
        self.run(request, request.seeds.len(), noise, observer)
    }

    fn run(
        &self,
        request: &Request,
        rows: usize,
        noise: &mut dyn Noise,
        observer: &mut dyn Observer,
    ) -> Result<Generated> {
        self.check(request)?;
        tch::no_grad(|| {
            let condition = request.condition.map(|c| c.fitted(rows as i64, self.device)).transpose()?;
            let z0 = noise.normal("z0", &[rows as i64, request.length, self.net.shape().latent_dim])?;
            let run = Run { request, rows, condition, z0: z0 * self.trained.path.noise_scale };
            match self.trained.block_size {
                None => self.run_whole(run, noise, observer),
                Some(size) => self.run_blocks(run, size, noise, observer),
            }
        })
    }

    /// All tokens together.
    fn run_whole(&self, run: Run, noise: &mut dyn Noise, observer: &mut dyn Observer) -> Result<Generated> {
        let Run { request, rows, condition, z0 } = run;
        let asked = request.seeds.len();
        let decoder = Decoder::new(self.net, self.trained, self.config.self_conditioning_guidance);
        let shown = steps_to_show(&self.times, request.trace);
        let steps = shown.len();
        let mut trace_passes = 0;
        let (end, passes) = self.carry(z0, condition.as_ref(), (None, None), noise, |step, state| {
            observer.step(step + 1, steps);
            if let (true, Some(x)) = (shown[step], &state.x) {
                let ids = RowsRead::of(&decoder.read(x, condition.as_ref())?, x, asked)?.ids;
                trace_passes += 1;
                observer.frame(Frame { t: self.times[step], ids });
            }
            unless_cancelled(observer)
        })?;
        let read = RowsRead::of(&self.words(&decoder, &end, condition.as_ref(), noise)?, &end, asked)?;
        let RowsRead { ids, log_probs } = read;
        if !request.trace.is_empty() {
            observer.frame(Frame { t: self.config.decode_at, ids: ids.clone() });
        }
        let positions = rows as u64 * request.length as u64;
        let cost = Cost { rows: rows as u64, passes: passes + 1, context_passes: 0, trace_passes, positions };
        Ok(Generated { z: end.f_narrow(0, 0, asked as i64)?, ids, log_probs, cost })
    }

    /// Block after block, each read before the next is written.
    fn run_blocks(&self, run: Run, size: i64, noise: &mut dyn Noise, observer: &mut dyn Observer) -> Result<Generated> {
        let Run { request, rows, condition, z0 } = run;
        let Some(reencoding) = request.reencoding else {
            let reason = "what was written is encoded before the next block is, and there is no text encoder";
            return Err(Error::setting("block_size", reason));
        };
        let (asked, s, w) = (request.seeds.len(), request.length, self.config.self_conditioning_guidance);
        let fill = request.end.unwrap_or(0);
        let ids = Tensor::f_full([rows as i64, s], fill, (Kind::Int64, self.device))?;
        let log_probs = Tensor::f_zeros([rows as i64, s], (Kind::Float, self.device))?;
        let z = z0.f_zeros_like()?;
        let mut ended = Tensor::f_zeros([rows as i64], (Kind::Bool, Device::Cpu))?;
        let mut batch = BlockBatch::new([rows as i64, s, z0.size3()?.2], size, condition.as_ref(), self.device)?;
        let spans = batch.spans(s).collect::<Vec<_>>();
        let mut cost = Cost { rows: rows as u64, passes: 0, context_passes: 0, trace_passes: 0, positions: 0 };
        for (number, &(first, width)) in spans.iter().enumerate() {
            let prefix = batch.prefix(first, width)?;
            let (own, weak) = (PrefixContext::new(&prefix), PrefixContext::new(&prefix));
            let part = condition.as_ref().map(|condition| condition.span(first, width)).transpose()?;
            let mut noise = BlockNoise { inner: &mut *noise, first };
            let start = z0.f_narrow(1, first, width)?;
            let (end, made) = self.carry(start, part.as_ref(), (Some(&own), Some(&weak)), &mut noise, |_, _| Ok(()))?;
            let decoder = Decoder::new(self.net, self.trained, w).behind(Some(&own));
            let Reading { ids: words, log_probs: sure } = self.words(&decoder, &end, part.as_ref(), &mut noise)?;
            cost.passes += made + 1;
            cost.context_passes += own.passes() + weak.passes();
            cost.positions += rows as u64 * width as u64;
            for (all, part) in [(&ids, &words), (&log_probs, &sure), (&z, &end)] {
                all.f_narrow(1, first, width)?.f_copy_(part)?;
            }
            observer.step(number + 1, spans.len());
            unless_cancelled(observer)?;
            let reached = |t: &f64| ((t * s as f64).ceil() as i64).clamp(1, s);
            if request.trace.iter().any(|t| (first + 1..=first + width).contains(&reached(t))) {
                let so_far = Reading { ids: ids.shallow_clone(), log_probs: log_probs.shallow_clone() };
                let ids = RowsRead::of(&so_far, &z, asked)?.ids;
                observer.frame(Frame { t: (first + width) as f64 / s as f64, ids });
            }
            let known = ids.f_to_device(Device::Cpu)?;
            if let Some(end) = request.end {
                // The positions of a condition may hold anything.
                let new = known.f_narrow(1, first, width)?.f_eq(end)?;
                let own = batch.written(first, width)?;
                ended = ended.f_logical_or(&new.f_logical_and(&own)?.f_any_dim(1, false)?)?;
            }
            if number + 1 == spans.len() || bool::try_from(ended.f_all()?)? {
                break;
            }
            let latents = reencoding.latents(&known, (first + width) as usize)?;
            batch.write(&ids, &latents, first + width, condition.as_ref())?;
        }
        let RowsRead { ids, log_probs } = RowsRead::of(&Reading { ids, log_probs }, &z, asked)?;
        let z = match &condition {
            Some(condition) => condition.pin(&z)?,
            None => z,
        };
        Ok(Generated { z: z.f_narrow(0, 0, asked as i64)?, ids, log_probs, cost })
    }

    /// The words of latents `z` `[B, S, C]` at the end of a run.
    fn words(
        &self,
        decoder: &Decoder,
        z: &Tensor,
        condition: Option<&Condition>,
        noise: &mut dyn Noise,
    ) -> Result<Reading> {
        if self.config.draw.is_likeliest() {
            return decoder.read(z, condition);
        }
        let (b, s, _) = z.size3()?;
        decoder.drawn(z, condition, &self.config.draw, &noise.fine_uniform("word", &[b, s])?)
    }

    /// Carries latents over all times, behind what stands for the network and for its guide: where they end, and in how many passes.
    fn carry(
        &self,
        start: Tensor,
        condition: Option<&Condition>,
        (own, weak): (Option<&PrefixContext>, Option<&PrefixContext>),
        noise: &mut dyn Noise,
        after: impl FnMut(usize, &State) -> Result<()>,
    ) -> Result<(Tensor, u64)> {
        let rows = start.size3()?.0 as u64;
        let w = self.config.self_conditioning_guidance;
        let network = NetworkField::new(self.net, self.trained, w).behind(own);
        let weak = self.guide.map(|guide| (NetworkField::new(guide.net, guide.trained, w).behind(weak), guide.scale));
        let guided: Box<dyn Field + '_> = match &weak {
            Some((weak, scale)) => Box::new(AutoGuidance::new(&network, weak, *scale)),
            None => Box::new(&network),
        };
        let field = self.field(guided, condition);
        let end = integrate(&*field, &mut *self.sampler.build(), State::start(start), &self.times, noise, after)?;
        let evaluated = network.rows() + weak.as_ref().map_or(0, |(weak, _)| weak.rows());
        Ok((field.pin(end.z)?, evaluated / rows))
    }

    fn check(&self, request: &Request) -> Result<()> {
        let (asked, c) = (request.seeds.len() as i64, self.net.shape().latent_dim);
        if asked == 0 || request.length <= 0 {
            let reason = format!("{asked} rows of {} positions are nothing to sample", request.length);
            return Err(Error::setting("seeds, length", reason));
        }
        if let Some(t) = request.trace.iter().find(|t| !(0.0..=1.0).contains(*t)) {
            return Err(Error::setting("trace", format!("{t} is not a time in [0, 1]")));
        }
        let Some(condition) = request.condition else {
            let s = self.config.condition_guidance;
            return match s == 1.0 {
                true => Ok(()),
                false => {
                    Err(Error::setting("condition_guidance", format!("{s} is asked for without a condition; use 1")))
                }
            };
        };
        let found = condition.sizes()?;
        if found != (asked, request.length, c) {
            let found = vec![found.0, found.1, found.2];
            let expected = format!("[{asked}, {}, {c}]: seeds, length, the network's channels", request.length);
            return Err(CoreError::Shape { what: "condition latents".into(), found, expected }.into());
        }
        Ok(())
    }

    /// Guidance around the network, as far as there is any.
    fn field<'f>(&self, network: Box<dyn Field + 'f>, condition: Option<&'f Condition>) -> Box<dyn Field + 'f> {
        let mut field = network;
        if let Some(condition) = condition {
            let s = self.config.condition_guidance;
            if s != 1.0 {
                field = Box::new(ConditionGuidance::new(field, condition, s));
            }
            field = Box::new(Conditioned::new(field, condition));
        }
        let w = self.config.self_conditioning_guidance;
        if self.trained.self_conditioned && !self.net.shape().guidance_input && w != 1.0 {
            field = Box::new(SelfConditioningGuidance::new(field, w));
        }
        field
    }
}

/// [`Error::Cancelled`] if the observer says so.
fn unless_cancelled(observer: &dyn Observer) -> Result<()> {
    if observer.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

/// The times up to `end`, and `end` itself.
fn until(mut times: Vec<f64>, end: f64) -> Vec<f64> {
    if end < 1.0 {
        times.retain(|&t| t < end);
        times.push(end);
    }
    times
}

/// A reading on the host.
struct RowsRead {
    ids: Vec<Vec<i64>>,
    log_probs: Vec<Vec<f32>>,
}

impl RowsRead {
    /// The first `rows` rows of a reading, in one read that also says whether the latents that they stand for are finite.
    fn of(reading: &Reading, latents: &Tensor, rows: usize) -> Result<Self> {
        let s = reading.ids.size2()?.1 as usize;
        let rows = rows as i64;
        let finite = latents.f_narrow(0, 0, rows)?.f_isfinite()?.f_all()?.f_to_kind(Kind::Int64)?.f_view([1])?;
        let ids = reading.ids.f_narrow(0, 0, rows)?.f_reshape([-1])?;
        // Bits of fp32 travel as whole numbers, beside the ids.
        let bits = reading.log_probs.f_narrow(0, 0, rows)?.f_reshape([-1])?.f_view_dtype(Kind::Int)?;
        let mut flat = Vec::<i64>::try_from(Tensor::f_cat(&[ids, bits.f_to_kind(Kind::Int64)?, finite], 0)?)?;
        if flat.pop() != Some(1) {
            let reason = "the sampled latents are not finite; use smaller guidance scales, or another checkpoint if this one is damaged";
            return Err(Error::setting("sampling", reason));
        }
        let (ids, bits) = flat.split_at(flat.len() / 2);
        let log_probs: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits as u32)).collect();
        Ok(Self {
            ids: ids.chunks(s).map(<[i64]>::to_vec).collect(),
            log_probs: log_probs.chunks(s).map(<[f32]>::to_vec).collect(),
        })
    }
}
