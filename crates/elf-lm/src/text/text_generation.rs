//! From requests for text to text: conditions are tokenised and encoded, rows are sampled in batches of one shape, ids are
//! cut and turned into words.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use elf_core::{Network, PrecisionPolicy, TokenDraw, key_of};
use elf_data::{Batch, Dataset, Example, Tokenizer};
use elf_flow::sampler::{Registry, SamplerChoice};
use elf_flow::{Condition, Cost, Frame, GenerateConfig, Generator, Guide, Observer, Reencode, Request, Trained, Trim};
use elf_model::{Elf, ElfConfig};
use elf_train::Comm;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::config::{RunPlan, SamplingSetting};
use crate::text::text_batches::{TextBatch, text_batches};
use crate::text::text_file::Unfinished;
use crate::text::text_latents::{TextLatents, TextSoFar};

/// More than anyone wants; a mistyped number must not exhaust memory.
const MAX_CANDIDATES: usize = 1000;

/// Most texts of one call, those counted of which only the surest are kept.
pub const MOST_TEXTS: usize = 1_000_000;

/// One text to generate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TextRequest {
    /// Its seed: the same seed gives the same text, whatever else is asked for beside it.
    pub seed: u64,
    /// What to generate from, for conditional models.
    pub condition: Option<String>,
    /// The same as the data has it in ids, which are then taken as they are.
    pub condition_ids: Option<Vec<i32>>,
    /// What a good answer would be; carried along for evaluation.
    pub reference: Option<String>,
}

impl TextRequest {
    /// `count` unconditional requests under one seed.
    pub fn unconditional(seed: u64, count: usize) -> Vec<Self> {
        (0..count as u64).map(|i| Self { seed: key_of(&[seed, i]), ..Self::default() }).collect()
    }

    /// This request and `count - 1` like it under seeds of their own.
    fn candidates(&self, count: usize) -> impl Iterator<Item = Self> {
        (0..count as u64).map(|i| match i {
            0 => self.clone(),
            _ => Self { seed: key_of(&[self.seed, i]), ..self.clone() },
        })
    }

    /// Requests from the conditions of the first `count` rows of token data, and what was expected of them.
    ///
    /// # Errors
    /// If the data has no conditions, or cannot be read.
    pub fn of_rows(seed: u64, dataset: &Dataset, count: usize, tokenizer: &Tokenizer) -> Result<Vec<Self>> {
        let mut requests = Self::unconditional(seed, count.min(dataset.len()));
        let carried = dataset.carried(0..requests.len())?;
        for (i, (request, carried)) in requests.iter_mut().zip(carried).enumerate() {
            let Example { input_ids, condition_ids } = dataset.example(i)?;
            let condition_ids = condition_ids.context("the data has no conditions to generate from")?;
            // The texts themselves where the data has them: decoded ids may be cut, and differ in spaces.
            let text = |carried: Option<String>, ids: &[i32]| carried.map_or_else(|| tokenizer.decode(ids), Ok);
            request.condition = Some(text(carried.input, &condition_ids)?);
            request.reference = Some(text(carried.target, &input_ids)?);
            request.condition_ids = Some(condition_ids);
        }
        Ok(requests)
    }
}

/// One generated text, as it is written to a JSONL file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GeneratedText {
    /// Its place among the requests.
    pub index: usize,
    /// Its seed.
    pub seed: u64,
    /// What it was generated from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Whether that was longer than the model reads, and its end was left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub input_cut: bool,
    /// The generated text.
    #[serde(rename = "prediction")]
    pub text: String,
    /// The reference, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The generated tokens, without padding.
    pub tokens: Vec<i64>,
    /// How sure a flow's network is of having read them rightly: the mean natural log-probability of the tokens and of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// What generation cost, on all ranks together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalCost {
    /// Batches.
    pub batches: u64,
    /// Passes through the network, decoding included, over all batches.
    pub passes: u64,
    /// Passes over what stood before a block, to remember it.
    pub context_passes: u64,
    /// Positions that were written, in rows that fill up a batch too.
    pub positions: u64,
}

impl TotalCost {
    fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.passes += other.passes;
        self.context_passes += other.context_passes;
        self.positions += other.positions;
    }

    /// Adds what one more batch cost.
    pub fn add_batch(&mut self, passes: u64, context_passes: u64, positions: u64) {
        self.add(&Self { batches: 1, passes, context_passes, positions });
    }
}

/// Passes for each batch, on average where their number differs: batches of blocks end when their texts do.
impl fmt::Display for TotalCost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let each = |passes: u64| {
            let batches = self.batches.max(1);
            let decimals = if passes.is_multiple_of(batches) { 0 } else { 1 };
            format!("{:.decimals$}", passes as f64 / batches as f64)
        };
        write!(f, "{} passes", each(self.passes))?;
        if self.context_passes > 0 {
            write!(f, " and {} over what stood before", each(self.context_passes))?;
        }
        write!(f, " for each of {} batch(es)", self.batches)
    }
}

/// What came of a list of requests.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Generation {
    /// The texts, in the order of the requests.
    pub texts: Vec<GeneratedText>,
    /// The first text as it formed: time and words.
    pub frames: Vec<(f64, String)>,
    /// What it cost.
    pub cost: TotalCost,
}

impl Generation {
    /// What came of the list on all ranks, the same on each.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn over_ranks(self, comm: &dyn Comm) -> Result<Self> {
        let mut all = Self::default();
        for bytes in comm.gather_bytes(&serde_json::to_vec(&self)?)? {
            all.add(serde_json::from_slice(&bytes)?);
        }
        all.texts.sort_by_key(|text| text.index);
        Ok(all)
    }

    /// Adds what came of further requests.
    pub fn add(&mut self, Self { texts, frames, cost }: Self) {
        self.texts.extend(texts);
        self.frames.extend(frames);
        self.cost.add(&cost);
    }

    /// The surest text of every `candidates` that follow one another; the first of equals.
    fn best_of(self, candidates: usize) -> Self {
        let mut best: Vec<GeneratedText> = Vec::with_capacity(self.texts.len() / candidates);
        for text in self.texts {
            let index = text.index / candidates;
            match best.last_mut().filter(|kept| kept.index == index) {
                Some(kept) if text.confidence <= kept.confidence => {}
                Some(kept) => *kept = GeneratedText { index, ..text },
                None => best.push(GeneratedText { index, ..text }),
            }
        }
        Self { texts: best, ..self }
    }
}

/// The mean over a text's tokens and its end, if it has one, of what a row was read with, after `given` positions of condition.
fn confidence(log_probs: &[f32], given: usize, tokens: usize) -> f64 {
    let read = log_probs.get(given..).unwrap_or_default();
    let read = &read[..read.len().min(tokens + 1)];
    read.iter().map(|&p| f64::from(p)).sum::<f64>() / read.len().max(1) as f64
}

/// Words and tokens of a cut row.
///
/// # Errors
/// If an id is none of the tokenizer's.
pub fn words(tokenizer: &Tokenizer, ids: &[i64], pad: i64) -> Result<(String, Vec<i64>)> {
    let tokens: Vec<i64> = ids.iter().copied().filter(|&id| id != pad).collect();
    let narrow: Vec<i32> = tokens.iter().map(|&id| i32::try_from(id)).collect::<Result<_, _>>()?;
    Ok((tokenizer.decode(&narrow)?, tokens))
}

/// A network with everything around it that turns requests into text.
pub struct TextGenerator<'a> {
    /// The network.
    pub net: &'a dyn Network,
    /// How it was trained.
    pub plan: &'a RunPlan,
    /// A lesser version of it and how that was trained, for settings that name a guide.
    pub guide: Option<(&'a dyn Network, Trained)>,
    /// The tokenizer it was trained with.
    pub tokenizer: &'a Tokenizer,
    /// The encoder, needed for conditions and for writing block after block.
    pub latents: Option<&'a TextLatents>,
    /// Seed of a random grid, which all texts of a run share.
    pub grid_seed: u64,
    /// Rows of a batch.
    pub batch_rows: usize,
    /// Who shares in the work.
    pub comm: &'a dyn Comm,
    /// Fill the last batch up, so that all have one shape and a text depends on its seed and condition alone.
    pub one_shape: bool,
}

/// The sampler's settings for a generator.
fn generate_config(setting: &SamplingSetting, pad_to: Option<usize>, plan: &RunPlan) -> GenerateConfig {
    let mut sampler = SamplerChoice::named(setting.sampling_method.clone());
    if setting.sampling_method == "sde" {
        sampler = sampler.with("gamma", setting.sde_gamma);
    }
    GenerateConfig {
        sampler,
        steps: setting.num_sampling_steps,
        grid: setting.time_schedule.law(&plan.config),
        self_conditioning_guidance: setting.self_cond_cfg_scale,
        condition_guidance: setting.cfg,
        decode_at: setting.decode_at,
        draw: TokenDraw { temperature: setting.temperature, top_p: setting.top_p },
        pad_to,
        ..GenerateConfig::default()
    }
}

/// Refuses what no sampler can be told.
fn check(setting: &SamplingSetting) -> Result<()> {
    if !setting.sde_gamma.is_finite() {
        bail!("sde_gamma is {}; it must be a number", setting.sde_gamma);
    }
    let candidates = setting.best_of;
    if !(1..=MAX_CANDIDATES).contains(&candidates) {
        bail!("best_of is {candidates}: from 1 to {MAX_CANDIDATES} texts can be made for each one wanted");
    }
    Ok(())
}

/// To whom names a guide where none is loaded.
fn no_guide(path: &Path) -> String {
    format!("the guide {} is for `elf sample`: take it out of the sampling file here", path.display())
}

/// Of a model of unconditional text, to whom gives it one to generate from.
pub const TAKES_NO_INPUT: &str = "this model was trained on unconditional text and takes no input text";

impl TextGenerator<'_> {
    /// Refuses a setting with which a model of this plan could not write, before there is one.
    ///
    /// # Errors
    /// As [`TextGenerator::generate`] would.
    pub fn check_setting(plan: &RunPlan, setting: &SamplingSetting) -> Result<()> {
        check(setting)?;
        if let Some(path) = &setting.guide {
            bail!(no_guide(path));
        }
        // Of the network only its inputs matter: one block and a word stand for it.
        let small = ElfConfig { depth: 1, vocab_size: 1, ..plan.model.clone() };
        let net = Elf::unset(small, PrecisionPolicy::F32, Device::Cpu)?;
        let trained = Trained::from(&plan.objective);
        Generator::new(&net, trained, generate_config(setting, None, plan), &Registry::builtin())?;
        Ok(())
    }

    /// Generates all texts, each the surest of as many as the setting says. `trace` are times at which the first text is shown
    /// as it forms; `progress` is told of finished texts.
    ///
    /// Batches are dealt out to the ranks in turn. They are the batches that one process would make, so texts do not depend on
    /// how many ranks there are; every rank gets all of them.
    ///
    /// # Errors
    /// If a setting makes no sense for this model, a condition is missing or superfluous, the network fails, or a rank is gone.
    pub fn generate(
        &self,
        setting: &SamplingSetting,
        requests: &[TextRequest],
        trace: &[f64],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Generation> {
        self.generate_keeping(setting, requests, trace, None, progress)
    }

    /// [`TextGenerator::generate`], which keeps finished batches, makes none that was kept before, and stops between two of them when it is asked
    /// to. For one process: several do not know what the others have.
    ///
    /// # Errors
    /// As there, or if a batch cannot be kept.
    pub fn generate_keeping(
        &self,
        setting: &SamplingSetting,
        requests: &[TextRequest],
        trace: &[f64],
        kept: Option<&mut Unfinished>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Generation> {
        let candidates = setting.best_of;
        check(setting)?;
        if requests.len() > MOST_TEXTS / candidates {
            bail!(
                "{} texts with best_of {candidates} are more than the {MOST_TEXTS} that one call makes: ask for fewer",
                requests.len()
            );
        }
        let wanted: Vec<TextRequest> = requests.iter().flat_map(|request| request.candidates(candidates)).collect();
        let made = self.generate_own(setting, &wanted, trace, kept, &mut |n| progress(n / candidates))?;
        Ok(made.over_ranks(self.comm)?.best_of(candidates))
    }

    /// This rank's batches.
    fn generate_own(
        &self,
        setting: &SamplingSetting,
        requests: &[TextRequest],
        trace: &[f64],
        mut kept: Option<&mut Unfinished>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Generation> {
        let pad_to = self.one_shape.then_some(self.batch_rows);
        let config = GenerateConfig { grid_seed: self.grid_seed, ..generate_config(setting, pad_to, self.plan) };
        let mut generator =
            Generator::new(self.net, Trained::from(&self.plan.objective), config, &Registry::builtin())?;
        if let Some(path) = &setting.guide {
            let Some((net, trained)) = self.guide else {
                bail!(no_guide(path));
            };
            generator = generator.with_guide(Guide { net, trained, scale: setting.guide_scale })?;
        }
        let trim = Trim {
            eos: i64::from(self.tokenizer.eos_id()?),
            pad: i64::from(self.tokenizer.pad_id()?),
            max_input_length: self.plan.span.max_input_length.unwrap_or(0),
        };
        let mut done = Generation::default();
        let batches = text_batches(self.plan, requests, self.batch_rows)?;
        let before = kept.as_deref_mut().map(Unfinished::take_before).unwrap_or_default();
        let own = (self.comm.rank() as usize..).step_by(self.comm.world() as usize).skip(before.len());
        before.into_iter().for_each(|batch| done.add(batch));
        progress(done.texts.len());
        for TextBatch { length, places } in own.map_while(|number| batches.get(number)) {
            if kept.as_deref_mut().is_some_and(|kept| !kept.go_on()) {
                break;
            }
            let mut batch = Generation::default();
            let chunk: Vec<TextRequest> = places.iter().map(|&place| requests[place].clone()).collect();
            let chunk = tokenised(self.plan, self.tokenizer, chunk)?;
            let conditions = self.conditions(&chunk)?;
            let condition = conditions.as_ref().map(|(_, condition)| condition);
            let seeds: Vec<u64> = chunk.iter().map(|r| r.seed).collect();
            // The first text is the one that is shown as it forms.
            let shown = places.iter().position(|&place| place == 0);
            let so_far =
                self.latents.map(|latents| TextSoFar::new(latents, conditions.as_ref().map(|(ids, _)| ids), trim.eos));
            let request = Request {
                condition,
                reencoding: so_far.as_ref().map(|so_far| so_far as &dyn Reencode),
                end: Some(trim.eos),
                trace: if shown.is_some() { trace } else { &[] },
                ..Request::new(&seeds, *length as i64)
            };
            let mut seen: Vec<Frame> = Vec::new();
            let generated = generator.generate(&request, &mut seen as &mut dyn Observer)?;
            let lengths = condition.map(|c| c.lengths().to_vec()).unwrap_or_else(|| vec![0; seeds.len()]);
            for (frame, row) in seen.iter().filter_map(|frame| Some((frame, shown?))) {
                let text = words(self.tokenizer, &trim.row(&frame.ids[row], lengths[row]), trim.pad)?.0;
                batch.frames.push((frame.t, text));
            }
            let Cost { passes, context_passes, positions, .. } = generated.cost;
            batch.cost.add_batch(passes, context_passes, positions);
            let rows_read = generated.ids.iter().zip(&generated.log_probs);
            let of_requests = places.iter().zip(&chunk);
            for (((row, log_probs), (&place, request)), &given) in rows_read.zip(of_requests).zip(&lengths) {
                let (text, tokens) = words(self.tokenizer, &trim.row(row, given), trim.pad)?;
                let confidence = confidence(log_probs, given, tokens.len());
                batch.texts.push(GeneratedText {
                    index: place,
                    seed: request.seed,
                    input: request.condition.clone(),
                    input_cut: is_cut(self.plan, self.tokenizer, request)?,
                    text,
                    reference: request.reference.clone(),
                    tokens,
                    confidence: Some(confidence),
                });
            }
            if let Some(kept) = kept.as_deref_mut() {
                kept.keep(&batch)?;
            }
            done.add(batch);
            progress(done.texts.len());
        }
        Ok(done)
    }

    /// The conditions of a batch in ids and encoded; none for unconditional models.
    fn conditions(&self, requests: &[TextRequest]) -> Result<Option<(Batch, Condition)>> {
        if self.plan.span.max_input_length.is_none() {
            if requests.iter().any(|r| r.condition.is_some()) {
                bail!(TAKES_NO_INPUT);
            }
            return Ok(None);
        }
        let Some(latents) = self.latents else {
            bail!("this model generates from an input text, for which its text encoder is needed");
        };
        let batch = collate(self.plan, self.tokenizer, requests)?;
        let encoded = latents.encode(&batch)?;
        match encoded.condition {
            Some(mask) => Ok(Some((batch, Condition::new(&encoded.latents, &encoded.ids, &mask)?))),
            None => bail!("the input text is empty"),
        }
    }
}

/// The requests with their conditions as ids, so that each condition is tokenised once.
///
/// # Errors
/// If the model reads conditions, and a request has none or it cannot be tokenised.
pub fn tokenised(plan: &RunPlan, tokenizer: &Tokenizer, mut requests: Vec<TextRequest>) -> Result<Vec<TextRequest>> {
    if plan.span.max_input_length.is_some() {
        for request in &mut requests {
            request.condition_ids = Some(condition_ids(plan, tokenizer, request)?);
        }
    }
    Ok(requests)
}

/// A condition in ids, with EOS as the model saw it in training.
fn condition_ids(plan: &RunPlan, tokenizer: &Tokenizer, request: &TextRequest) -> Result<Vec<i32>> {
    let eos = plan.condition_eos.then(|| tokenizer.eos_id()).transpose()?;
    Ok(match (&request.condition_ids, &request.condition) {
        (Some(ids), _) => ids.clone(),
        (None, Some(text)) => tokenizer.encode(text)?.into_iter().chain(eos).collect(),
        (None, None) => bail!("this model generates from an input text: give one with --text or --input"),
    })
}

/// Whether a request's condition is longer than the model reads.
///
/// # Errors
/// If the model reads conditions, and there is none or it cannot be made ids.
pub fn is_cut(plan: &RunPlan, tokenizer: &Tokenizer, request: &TextRequest) -> Result<bool> {
    match plan.span.max_input_length {
        Some(most) => Ok(condition_ids(plan, tokenizer, request)?.len() > most),
        None => Ok(false),
    }
}

/// The conditions of a batch in ids, with EOS as the model saw them in training, without targets.
///
/// # Errors
/// If a request has no condition, or an empty one.
pub fn collate(plan: &RunPlan, tokenizer: &Tokenizer, requests: &[TextRequest]) -> Result<Batch> {
    let examples = requests.iter().map(|request| {
        let ids = condition_ids(plan, tokenizer, request)?;
        if ids.is_empty() {
            bail!("an input text is empty");
        }
        Ok(Example { input_ids: Vec::new(), condition_ids: Some(ids) })
    });
    Ok(plan.collator(tokenizer)?.collate(&examples.collect::<Result<Vec<_>>>()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, RunConfig};

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tokenizers/t5/tokenizer.json")).unwrap()
    }

    fn plan(set: Option<bool>, found: bool) -> RunPlan {
        let config =
            RunConfig { condition_eos: set, max_length: 16, max_input_length: Some(8), ..RunConfig::default() };
        let facts = Facts { latent_dim: 512, vocab_size: 32_100, rows: 1 << 40, condition_eos: found, ranks: 1 };
        RunPlan::new(&config, facts, Device::Cpu).unwrap()
    }

    #[test]
    fn costs_are_averages_over_batches() {
        let mut cost = TotalCost::default();
        cost.add_batch(33, 0, 1024);
        cost.add_batch(33, 0, 1024);
        assert_eq!((cost.to_string().as_str(), cost.positions), ("33 passes for each of 2 batch(es)", 2048));
        // Of blocks, one batch writes more of them than the other.
        let mut of_blocks = TotalCost::default();
        of_blocks.add_batch(18, 2, 24);
        let mut other_rank = TotalCost::default();
        other_rank.add_batch(6, 0, 8);
        other_rank.add_batch(12, 1, 16);
        of_blocks.add(&other_rank);
        assert_eq!(of_blocks.to_string(), "12 passes and 1 over what stood before for each of 3 batch(es)");
        of_blocks.add_batch(6, 0, 8);
        assert_eq!(of_blocks.to_string(), "10.5 passes and 0.8 over what stood before for each of 4 batch(es)");
        assert_eq!(of_blocks.positions, 56);
    }

    #[test]
    fn conditions_end_as_those_of_the_training_data() {
        let tokenizer = tokenizer();
        let request = TextRequest { condition: Some("ein Haus".into()), ..TextRequest::default() };
        let plain = tokenizer.encode("ein Haus").unwrap();
        let eos = tokenizer.eos_id().unwrap();
        for (set, found, ends) in
            [(None, false, false), (None, true, true), (Some(true), false, true), (Some(false), true, false)]
        {
            let batch = collate(&plan(set, found), &tokenizer, std::slice::from_ref(&request)).unwrap();
            let mut expected: Vec<i64> = plain.iter().map(|&id| i64::from(id)).collect();
            expected.extend(ends.then_some(i64::from(eos)));
            assert_eq!(batch.cond_len, [expected.len()]);
            assert_eq!(batch.input_ids[..expected.len()], expected);
        }
        // A text without a token is one of EOS alone, if conditions end so.
        let empty = TextRequest { condition: Some(String::new()), ..TextRequest::default() };
        assert_eq!(collate(&plan(None, true), &tokenizer, std::slice::from_ref(&empty)).unwrap().cond_len, [1]);
        assert!(collate(&plan(None, false), &tokenizer, &[empty]).unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn ids_of_data_are_taken_as_they_are() {
        let tokenizer = tokenizer();
        let ids = vec![42, 7, 13];
        let request =
            TextRequest { condition: Some("x".into()), condition_ids: Some(ids.clone()), ..TextRequest::default() };
        for found in [false, true] {
            let batch = collate(&plan(None, found), &tokenizer, std::slice::from_ref(&request)).unwrap();
            assert_eq!((batch.cond_len.as_slice(), &batch.input_ids[..3]), (&[3][..], &[42, 7, 13][..]));
        }
    }
}
