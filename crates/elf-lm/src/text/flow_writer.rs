//! Generation with an embedded language flow.

use std::ops::ControlFlow;

use elf_core::{Network, TokenDraw};
use elf_data::{Batch, Tokenizer};
use elf_flow::sampler::Registry;
use elf_flow::{
    Condition, Cost, Frame, GenerateConfig, Generator, Guide, Lexicon, Next, Reencode, Request, SamplingObserver, Step,
    TrainedFlow, Trim,
};

use super::conditions::Conditions;
use super::text_latents::TextLatents;
use super::text_loop::{BatchEvent, BatchWriter, TextBatchRequest, WrittenBatch, WrittenRow};
use super::text_so_far::TextSoFar;
use crate::config::{RunPlan, Sampling};
use crate::error::fail;
use crate::model::WORDS;
use crate::{Error, Result};

/// The parts of a flow that generation needs.
#[derive(Clone, Copy)]
pub struct FlowParts<'a> {
    /// The network.
    pub net: &'a dyn Network,
    /// The plan that it was trained by.
    pub plan: &'a RunPlan,
    /// The tokenizer that it was trained with.
    pub tokenizer: &'a Tokenizer,
    /// The encoder, needed for conditions and for generation in blocks.
    pub latents: Option<&'a TextLatents>,
    /// The guide and how it was trained, for settings with one.
    pub guide: Option<(&'a dyn Network, TrainedFlow)>,
    /// The words that texts may consist of, for settings that read whole words.
    pub lexicon: Option<&'a Lexicon>,
}

/// A flow with a sampling setting.
pub struct FlowWriter<'a> {
    parts: FlowParts<'a>,
    generator: Generator<'a>,
    trim: Trim,
}

/// The settings of the flow's generator.
fn generate_config(sampling: &Sampling, grid_seed: u64, plan: &RunPlan) -> GenerateConfig {
    GenerateConfig {
        sampler: sampling.sampler.clone(),
        steps: sampling.num_sampling_steps,
        grid: plan.config.flow.law(sampling.time_schedule),
        grid_seed,
        self_conditioning_guidance: sampling.self_cond_cfg_scale,
        condition_guidance: sampling.cfg,
        leap_at: sampling.leap_at,
        decode_at: sampling.decode_at,
        draw: TokenDraw { temperature: sampling.temperature, top_p: sampling.top_p },
        ..GenerateConfig::default()
    }
}

/// The error message for a setting with a guide where there is none.
fn no_guide(sampling: &Sampling) -> String {
    match &sampling.guide {
        Some(path) => {
            format!("the guide {} works with `elf sample` only: remove it from the sampling file", path.display())
        }
        None => {
            "this model keeps nothing of words without context to be guided by: turn word_guide off, or train with \
                 word_guide_dims"
                .to_owned()
        }
    }
}

/// Checks a setting for models of this plan, without a network.
///
/// # Errors
/// If the setting is invalid; the message names it.
pub fn check_sampling(plan: &RunPlan, sampling: &Sampling, samplers: &Registry) -> Result<()> {
    sampling.candidates()?;
    if sampling.guide.is_some() || sampling.word_guide && plan.model.word_guide_dims == 0 {
        fail!(setting("guide"), "{}", no_guide(sampling));
    }
    let config = generate_config(sampling, 0, plan);
    Ok(config.check(&plan.model.network_shape(), &TrainedFlow::from(&plan.objective), samplers)?)
}

impl<'a> FlowWriter<'a> {
    /// Checks the setting and draws the time grid. All texts of a run share the grid of `grid_seed`; batches are padded
    /// to `pad_to` rows.
    ///
    /// # Errors
    /// If the setting is invalid for the model; the message names it.
    pub fn new(
        parts: FlowParts<'a>,
        sampling: &Sampling,
        grid_seed: u64,
        pad_to: Option<usize>,
        samplers: &Registry,
    ) -> Result<Self> {
        let FlowParts { net, plan, tokenizer, .. } = parts;
        let config = GenerateConfig { pad_to, ..generate_config(sampling, grid_seed, plan) };
        let mut generator = Generator::new(net, TrainedFlow::from(&plan.objective), config, samplers)?;
        if sampling.guided() {
            let Some((net, trained)) = parts.guide else {
                fail!(setting("guide"), "{}", no_guide(sampling));
            };
            let Sampling { guide_scale: scale, guide_until: until, .. } = *sampling;
            generator = generator.with_guide(Guide { net, trained, scale, until })?;
        }
        if sampling.whole_words {
            let Some(lexicon) = parts.lexicon else {
                fail!(
                    setting("whole_words"),
                    "whole_words needs a list of words in the model's folder, {WORDS}: make it of the training texts with `elf data words`, \
                     or turn whole_words off"
                );
            };
            generator = generator.with_lexicon(lexicon)?;
        }
        let trim = Trim {
            eos: i64::from(tokenizer.eos_id()?),
            pad: i64::from(tokenizer.pad_id()?),
            max_input_length: plan.reserved_positions(),
        };
        Ok(Self { parts, generator, trim })
    }

    /// The conditions of a batch, as token ids and encoded.
    fn condition(&self, conditions: &Conditions, rows: usize, length: usize) -> Result<(Batch, Condition)> {
        let FlowParts { plan, tokenizer, latents, .. } = self.parts;
        let Some(latents) = latents else {
            fail!(request, "this model generates from an input text, for which its text encoder is needed");
        };
        let batch = conditions.collate(plan, tokenizer, rows, length)?;
        let encoded = latents.encode(&batch)?;
        let Some(mask) = encoded.condition else { fail!(request, "the input text is empty") };
        let condition = Condition::new(&encoded.latents, &encoded.ids, &mask)?;
        match batch.given.is_empty() {
            true => Ok((batch, condition)),
            // What stands behind a gap would be lost with an end or filling in it.
            false => Ok((batch, condition.in_text(&[self.trim.eos, self.trim.pad]))),
        }
    }
}

/// Passes steps and frames of a batch on to a listener.
struct Watching<'w> {
    watch: &'w mut dyn FnMut(BatchEvent) -> ControlFlow<()>,
    trim: Trim,
    /// Length of each row's condition.
    given: Vec<usize>,
    /// Whether every step is followed by a frame.
    every_step: bool,
    /// Whether the listener returned `Break`; after a frame this takes effect at the next step.
    cancelled: bool,
}

impl Watching<'_> {
    fn send(&mut self, event: BatchEvent) {
        self.cancelled |= (self.watch)(event).is_break();
    }
}

impl SamplingObserver for Watching<'_> {
    fn step(&mut self, step: &Step) -> Next {
        self.send(BatchEvent::Step(step.done, step.steps));
        match self.cancelled {
            true => Next::Cancel,
            false if self.every_step => Next::Frame,
            false => Next::Continue,
        }
    }

    fn frame(&mut self, frame: Frame) {
        let rows = frame.ids.iter().zip(&frame.log_probs).zip(&self.given);
        let rows = rows.map(|((ids, log_probs), &given)| written(ids, log_probs, given, self.trim)).collect();
        self.send(BatchEvent::Frame(frame.t, rows));
    }
}

impl BatchWriter for FlowWriter<'_> {
    fn write(
        &self,
        batch: &TextBatchRequest,
        watch: &mut dyn FnMut(BatchEvent) -> ControlFlow<()>,
    ) -> Result<WrittenBatch> {
        let asked = batch.requests.len();
        let encoded = |conditions: &Conditions| self.condition(conditions, asked, batch.length);
        let conditions = batch.conditions.map(encoded).transpose()?;
        let condition = conditions.as_ref().map(|(_, condition)| condition);
        let seeds: Vec<u64> = batch.requests.iter().map(|request| request.seed).collect();
        let ids = conditions.as_ref().map(|(ids, _)| ids);
        let in_text = |row: usize| batch.conditions.and_then(|conditions| conditions.given(row));
        let so_far = self.parts.latents.map(|latents| TextSoFar::new(latents, ids, self.trim.eos));
        let request = Request {
            condition,
            reencoding: so_far.as_ref().map(|so_far| so_far as &dyn Reencode),
            end: Some(self.trim.eos),
            trace: batch.trace,
            ..Request::new(&seeds, batch.length as i64)
        };
        let given = condition.map_or_else(|| vec![0; asked], |condition| condition.lengths().to_vec());
        let every_step = batch.every_step;
        let mut watching = Watching { watch, trim: self.trim, given: given.clone(), every_step, cancelled: false };
        let generated = match self.generator.generate(&request, &mut watching) {
            Err(elf_flow::Error::Cancelled { .. }) => return Err(Error::Cancelled),
            generated => generated?,
        };
        let Cost { passes, context_passes, positions, .. } = generated.cost;
        let rows = generated.ids.iter().zip(&generated.log_probs).zip(&given).enumerate();
        let rows = rows.map(|(row, ((ids, log_probs), &given))| {
            let written = written(ids, log_probs, given, self.trim);
            match in_text(row) {
                Some(given) => WrittenRow { confidence: Some(confidence_in_gaps(log_probs, given)), ..written },
                None => written,
            }
        });
        let rows = rows.collect();
        Ok(WrittenBatch { rows, passes, context_passes, positions })
    }
}

/// The text of a row of S decoded positions, the first `given` of which are its condition.
pub(crate) fn written(ids: &[i64], log_probs: &[f32], given: usize, trim: Trim) -> WrittenRow {
    let ids = trim.row(ids, given);
    let tokens = ids.iter().filter(|&&id| id != trim.pad).count();
    let confidence = Some(confidence(log_probs, given, tokens));
    let mut log_probs = log_probs.get(given..).unwrap_or_default().to_vec();
    log_probs.resize(ids.len(), 0.0);
    WrittenRow { ids, log_probs: Some(log_probs), confidence }
}

/// The mean log-probability of the tokens of a text that are not given.
fn confidence_in_gaps(log_probs: &[f32], given: &[bool]) -> f64 {
    let read: Vec<f64> =
        log_probs.iter().zip(given).filter(|(_, given)| !**given).map(|(&log_p, _)| f64::from(log_p)).collect();
    read.iter().sum::<f64>() / read.len().max(1) as f64
}

/// The mean log-probability of a row's `tokens` tokens and its final EOS, if it has one, after `given` positions of
/// condition.
fn confidence(log_probs: &[f32], given: usize, tokens: usize) -> f64 {
    let read = log_probs.get(given..).unwrap_or_default();
    let read = &read[..read.len().min(tokens + 1)];
    read.iter().map(|&p| f64::from(p)).sum::<f64>() / read.len().max(1) as f64
}
