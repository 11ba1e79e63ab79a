//! `elf sample` of a baseline.

use std::process::ExitCode;

use anyhow::{Result, bail};
use elf_core::{ParamBuilder, TokenDraw};
use elf_flow::tokens::AncestralSampler;
use elf_gpt2::decoding::{BeamSearch, Sampling};
use elf_train::Comm;
use serde_json::{Value, json};
use tch::Device;

use super::{Made, SampleArgs, Writing};
use elf_lm::config::{BaselinePlan, RunPlan};
use elf_lm::gpt2::{BaselineGenerator, Decoding, Writer, gpt2, masked};
use elf_lm::model::loaded_model::precision;
use elf_lm::model::run_folder::FoundModel;
use elf_lm::text::text_generation::TextRequest;

impl SampleArgs {
    /// Flags that only an autoregressive model knows, and whether they were given.
    fn of_gpt2(&self) -> [(&'static str, bool); 2] {
        [("--beam", self.beam.is_some()), ("--length-penalty", self.length_penalty.is_some())]
    }

    /// Flags that masked diffusion does not know, though others do, and whether they were given.
    fn of_draws(&self) -> [(&'static str, bool); 2] {
        [("--temperature", self.sampling.temperature.is_some()), ("--top-p", self.sampling.top_p.is_some())]
    }

    /// Flags that only a flow knows, and whether they were given.
    fn of_elf(&self) -> [(&'static str, bool); 16] {
        [
            ("--sampling-config", self.sampling.sampling_config.is_some()),
            ("--sampler", self.sampling.sampler.is_some()),
            ("--self-cond-cfg-scale", self.sampling.self_cond_cfg_scale.is_some()),
            ("--cfg", self.sampling.cfg.is_some()),
            ("--sde-gamma", self.sampling.sde_gamma.is_some()),
            ("--uniform-grid", self.sampling.uniform_grid),
            ("--guide", self.sampling.guide.is_some()),
            ("--guide-scale", self.sampling.guide_scale.is_some()),
            ("--decode-at", self.sampling.decode_at.is_some()),
            ("--best-of", self.sampling.best_of.is_some()),
            ("--trace", self.trace),
            ("--config", self.model.config.is_some()),
            ("--option", !self.model.options.is_empty()),
            ("--tokenizer", self.model.tokenizer.is_some()),
            ("--encoder", self.model.encoder.is_some()),
            ("--length", self.model.length.is_some()),
        ]
    }

    /// Refuses flags that a flow does not know.
    pub(super) fn check_for_elf(&self) -> Result<()> {
        refuse(&self.of_gpt2(), "an embedded language flow")
    }

    /// How a baseline is to write.
    fn decoding(&self, baseline: &BaselinePlan, plan: &RunPlan) -> Result<Decoding> {
        refuse(&self.of_elf(), baseline.describe())?;
        let default = Decoding::default_for(baseline, plan);
        let BaselinePlan::Gpt2(_) = baseline else {
            refuse(&[self.of_gpt2(), self.of_draws()].concat(), baseline.describe())?;
            return Ok(self.sampling.steps.map_or(default, |steps| Decoding::Ancestral(AncestralSampler { steps })));
        };
        refuse(&[("--steps", self.sampling.steps.is_some())], baseline.describe())?;
        let drawn = self.sampling.temperature.is_some() || self.sampling.top_p.is_some();
        let searched = self.beam.is_some() || self.length_penalty.is_some();
        if drawn && searched {
            bail!(
                "--beam searches for the likeliest text, and --temperature and --top-p draw one: give one or the other"
            );
        }
        let draw = TokenDraw::default();
        let search = BeamSearch::default();
        Ok(match (drawn, searched) {
            (true, _) => Decoding::Sampling(Sampling(TokenDraw {
                temperature: self.sampling.temperature.unwrap_or(draw.temperature),
                top_p: self.sampling.top_p.unwrap_or(draw.top_p),
            })),
            (_, true) => Decoding::Beam(BeamSearch {
                width: self.beam.unwrap_or(search.width),
                length_penalty: self.length_penalty.unwrap_or(search.length_penalty),
            }),
            (false, false) => default,
        })
    }
}

/// Refuses what was given of `flags`, which do not fit `model`.
fn refuse(flags: &[(&'static str, bool)], model: &str) -> Result<()> {
    let given: Vec<&str> = flags.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    match given.is_empty() {
        true => Ok(()),
        false => bail!("{} has no meaning for this model, {model}: leave it out", given.join(", ")),
    }
}

/// A run that holds a baseline, and how it is to write.
#[derive(Debug)]
pub(super) struct Baseline {
    found: FoundModel,
    kind: BaselinePlan,
    decoding: Decoding,
}

impl Baseline {
    /// Reads how a run that holds a baseline is to write.
    pub(super) fn new(found: FoundModel, args: &SampleArgs) -> Result<Self> {
        let Some(kind) = found.plan.baseline.clone() else {
            bail!("{} holds no baseline", found.checkpoint.path().display());
        };
        let decoding = args.decoding(&kind, &found.plan)?;
        Ok(Self { found, kind, decoding })
    }

    /// How it was trained.
    pub(super) fn plan(&self) -> &RunPlan {
        &self.found.plan
    }

    /// Tells it, and how it is to write, from any other.
    pub(super) fn identity(&self) -> Result<Value> {
        let tokenizer = self.found.run.tokenizer()?;
        Ok(json!({
            "model": self.found.checkpoint.state(),
            "tokenizer": tokenizer.fingerprint(),
            "decoding": self.decoding.name(),
        }))
    }

    /// Samples from it.
    pub(super) fn write(
        self,
        args: &SampleArgs,
        requests: &[TextRequest],
        device: Device,
        comm: &dyn Comm,
    ) -> Result<ExitCode> {
        let Self { found, kind, decoding } = self;
        let plan = &found.plan;
        let tokenizer = found.run.tokenizer()?;
        let policy = args.model.source().policy(precision(args.model.f32, device));
        let builder = ParamBuilder::unset(device);
        let mut writing = Writing::new(args, plan, requests, device, comm)?;
        let net: Box<dyn Writer> = match &kind {
            BaselinePlan::Gpt2(sizes) => {
                let net = gpt2(sizes, plan, policy, builder)?;
                found.load_into(net.params(), args.model.no_ema)?;
                writing.made_by(std::iter::once(net.params()))?;
                Box::new(net)
            }
            BaselinePlan::Mdlm { network, .. } => {
                let net = masked(network, plan, policy, builder)?;
                let params = elf_core::TokenNetwork::params(&net);
                found.load_into(params, args.model.no_ema)?;
                writing.made_by(std::iter::once(params))?;
                Box::new(net)
            }
        };
        let generator = BaselineGenerator {
            net: net.as_ref(),
            plan,
            tokenizer: &tokenizer,
            batch_rows: args.batch_size,
            comm,
            one_shape: !args.ragged,
        };
        let made = writing.write(&decoding.name(), decoding.name(), args.output.clone(), &mut |kept, progress| {
            generator.generate_keeping(&decoding, requests, kept, progress)
        })?;
        match made {
            Made::All => writing.finish(),
            Made::Interrupted => Ok(ExitCode::from(130)),
        }
    }
}
