//! The whole way from seeds to tokens.

mod at_once;
mod config;
mod host_reading;
mod in_blocks;
mod request;

pub use config::GenerateConfig;
use config::until;
pub use request::{Cost, Generated, Guide, Request};

use elf_core::{Error as CoreError, Network, Noise, Seeded};
use tch::{Device, Tensor};

use crate::blocks::PrefixContext;
use crate::sampler::{ConfiguredSampler, Registry, State, integrate};
use crate::sampling_observer::SamplingObserver;
use crate::{
    AutoGuidance, Condition, ConditionGuidance, Conditioned, Decoder, Error, Field, Lexicon, NetworkField, Reading,
    Result, SelfConditioningGuidance, TrainedFlow,
};

/// A batch that is being sampled.
struct Batch<'r, 'a> {
    request: &'r Request<'a>,
    /// Rows, those that fill the batch up included.
    rows: usize,
    condition: Option<Condition>,
    /// The latents at t = 0, `[B, S, C]`.
    z0: Tensor,
}

/// Everything that a run from noise to clean latents depends on, besides the latents.
#[derive(Default)]
struct Surroundings<'a> {
    condition: Option<&'a Condition>,
    /// The finished prefix of a block, for the network.
    own: Option<&'a PrefixContext<'a>>,
    /// The same for the guide.
    weak: Option<&'a PrefixContext<'a>>,
}

/// A network, how it was trained, and how to sample from it, checked and ready.
pub struct Generator<'a> {
    net: &'a dyn Network,
    trained: TrainedFlow,
    config: GenerateConfig,
    guide: Option<Guide<'a>>,
    lexicon: Option<&'a Lexicon>,
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
    /// Names the first setting that makes no sense, alone or with this network; see [`GenerateConfig::check`].
    pub fn new(
        net: &'a dyn Network,
        trained: TrainedFlow,
        config: GenerateConfig,
        registry: &Registry,
    ) -> Result<Self> {
        config.check(&net.shape(), &trained, registry)?;
        let sampler = registry.config(&config.sampler)?;
        // Drawn on the CPU, so that a run visits the same times on every device.
        let times = config.times(&mut Seeded::new(vec![config.grid_seed], Device::Cpu))?;
        let device = net.params().iter().next().map_or(Device::Cpu, |(_, p)| p.tensor.device());
        Ok(Self { net, trained, config, guide: None, lexicon: None, sampler, times, device })
    }

    /// Leads away from a weaker version of the network.
    ///
    /// # Errors
    /// If its latents have other channels, its noise is of another scale or its blocks of another size, or `scale` is no number.
    pub fn with_guide(self, guide: Guide<'a>) -> Result<Self> {
        let (own, other) = (self.net.shape().latent_dim, guide.net.shape().latent_dim);
        let reason = if !(guide.scale as f32).is_finite() {
            Some(format!("{} is not a scale", guide.scale))
        } else if !(guide.until > 0.0 && guide.until <= 1.0) {
            Some(format!("guide_until is {}, and must be a time above 0 and at most 1", guide.until))
        } else if own != other {
            Some(format!("its latents have {other} channels, and those of the network {own}"))
        } else if guide.trained.path.noise_scale != self.trained.path.noise_scale {
            Some("it was trained with noise of another scale".to_owned())
        } else if guide.trained.block_size != self.trained.block_size {
            Some("one of the two writes in blocks and the other does not, or their blocks differ in size".to_owned())
        } else {
            None
        };
        match reason {
            Some(reason) => Err(Error::setting("guide", reason)),
            None => Ok(Self { guide: Some(guide), ..self }),
        }
    }

    /// Reads texts as sequences of a lexicon's words.
    ///
    /// # Errors
    /// If texts are written in blocks, whose ends may lie within words.
    pub fn with_lexicon(self, lexicon: &'a Lexicon) -> Result<Self> {
        match self.trained.block_size {
            None => Ok(Self { lexicon: Some(lexicon), ..self }),
            Some(_) => {
                let reason = "words are read as wholes where all tokens of a text are generated together, and this model writes in blocks";
                Err(Error::setting("lexicon", reason))
            }
        }
    }

    /// Visits these times, up to `decode_at`, in place of the configured grid's.
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

    /// Samples one batch. Equal seeds and conditions give equal rows; if `pad_to` is set, in batches with any other rows.
    ///
    /// The device is waited for once at the end, once for each frame, and after each block where texts are written in blocks.
    ///
    /// # Errors
    /// If the request does not fit together or exceeds `pad_to`, the network fails, the latents are not finite, or `observer` cancels.
    pub fn generate(&self, request: &Request, observer: &mut dyn SamplingObserver) -> Result<Generated> {
        let asked = request.seeds.len();
        let mut rows = self.config.pad_to.unwrap_or(asked);
        if rows < asked {
            let reason = format!("{asked} rows are more than {rows}; split the batch, or raise it");
            return Err(Error::setting("pad_to", reason));
        }
        if self.net.rows_stand_alone() && self.guide.as_ref().is_none_or(|guide| guide.net.rows_stand_alone()) {
            rows = asked;
        }
        let seeds = (0..rows).filter_map(|i| request.seeds.get(i).or(request.seeds.first())).copied().collect();
        self.run(request, rows, &mut Seeded::new(seeds, self.device), observer)
    }

    /// Does the same as [`Generator::generate`] with the caller's own noise for exactly `request.seeds.len()` rows (`pad_to` and the
    /// seeds' values are not used): `z0` `[B, S, C]` once, then the sampler's draws, then, if words are drawn, `word` `[B, S]` twice.
    /// Where texts are written in blocks, the draws of each are named `NAME@FIRST` by its first position, and are of its width.
    ///
    /// # Errors
    /// As [`Generator::generate`], or if the noise fails.
    pub fn generate_from(
        &self,
        request: &Request,
        noise: &mut dyn Noise,
        observer: &mut dyn SamplingObserver,
    ) -> Result<Generated> {
        self.run(request, request.seeds.len(), noise, observer)
    }

    fn run(
        &self,
        request: &Request,
        rows: usize,
        noise: &mut dyn Noise,
        observer: &mut dyn SamplingObserver,
    ) -> Result<Generated> {
        self.check_request(request)?;
        tch::no_grad(|| {
            let condition = request.condition.map(|c| c.fitted(rows as i64, self.device)).transpose()?;
            let z0 = noise.normal("z0", &[rows as i64, request.length, self.net.shape().latent_dim])?;
            let batch = Batch { request, rows, condition, z0: z0 * self.trained.path.noise_scale };
            match self.trained.block_size {
                None => self.run_at_once(batch, noise, observer),
                Some(size) => self.run_in_blocks(batch, size, noise, observer),
            }
        })
    }

    /// Reads words from latents; `prefix` is the finished prefix of a block.
    fn decoder<'p>(&'p self, prefix: Option<&'p PrefixContext<'p>>) -> Decoder<'p> {
        Decoder::new(self.net, self.trained, self.config.self_conditioning_guidance)
            .with_prefix(prefix)
            .with_lexicon(self.lexicon)
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

    /// Carries latents over all times. Returns the latents at the end and the number of passes; `after` is called after each step.
    fn carry(
        &self,
        start: Tensor,
        surroundings: &Surroundings,
        noise: &mut dyn Noise,
        after: impl FnMut(usize, &State) -> Result<()>,
    ) -> Result<(Tensor, u64)> {
        let &Surroundings { condition, own, weak } = surroundings;
        let rows = start.size3()?.0 as u64;
        let w = self.config.self_conditioning_guidance;
        let network = NetworkField::new(self.net, self.trained, w).with_prefix(own).with_condition(condition);
        let weak = self.guide.map(|guide| {
            let field = NetworkField::new(guide.net, guide.trained, w);
            (field.with_prefix(weak).with_condition(condition), guide)
        });
        let guided: Box<dyn Field + '_> = match &weak {
            Some((weak, guide)) => Box::new(AutoGuidance::new(&network, weak, guide.scale).until(guide.until)),
            None => Box::new(&network),
        };
        let field = self.field(guided, condition);
        let end = integrate(&*field, &mut *self.sampler.build(), State::start(start), &self.times, noise, after)?;
        let evaluated = network.rows() + weak.as_ref().map_or(0, |(weak, _)| weak.rows());
        Ok((field.pin(end.z)?, evaluated / rows))
    }

    fn check_request(&self, request: &Request) -> Result<()> {
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

    /// Wraps the network's field in the guidance that is asked for.
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
