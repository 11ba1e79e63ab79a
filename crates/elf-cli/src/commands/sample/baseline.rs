//! The flags of `elf sample` that some kinds of models know and others do not.

use anyhow::{Result, bail};
use elf_core::TokenDraw;
use elf_flow::tokens::AncestralSampler;
use elf_gpt2::decoding::{BeamSearch, TokenSampling};
use elf_lm::config::{BaselinePlan, RunPlan};
use elf_lm::text::baseline_writer::Decoding;

use super::args::SampleArgs;

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
    fn of_elf(&self) -> [(&'static str, bool); 20] {
        [
            ("--sampling-config", self.sampling.sampling_config.is_some()),
            ("--sampler", self.sampling.sampler.is_some()),
            ("--self-cond-cfg-scale", self.sampling.self_cond_cfg_scale.is_some()),
            ("--cfg", self.sampling.cfg.is_some()),
            ("--sde-gamma", self.sampling.sde_gamma.is_some()),
            ("--uniform-grid", self.sampling.uniform_grid),
            ("--guide", self.sampling.guide.is_some()),
            ("--word-guide", self.sampling.word_guide.is_some()),
            ("--guide-scale", self.sampling.guide_scale.is_some()),
            ("--guide-until", self.sampling.guide_until.is_some()),
            ("--leap-at", self.sampling.leap_at.is_some()),
            ("--decode-at", self.sampling.decode_at.is_some()),
            ("--whole-words", self.sampling.whole_words.is_some()),
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
    pub(super) fn decoding(&self, baseline: &BaselinePlan, plan: &RunPlan) -> Result<Decoding> {
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
            (true, _) => Decoding::Sampling(TokenSampling(TokenDraw {
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
