//! Requests for texts, and generated texts.

use std::fmt;

use elf_core::key_of;
use elf_data::{Dataset, Example, Tokenizer};
use elf_train::Comm;
use serde::{Deserialize, Serialize};

use super::template::Template;
use crate::Result;
use crate::config::Candidates;
use crate::error::Context;

/// Maximum number of texts of one call, candidates included, so that a mistyped number does not exhaust memory.
pub const MOST_TEXTS: usize = 1_000_000;

/// One text to generate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TextRequest {
    /// The seed. The same seed and condition give the same text, regardless of other requests.
    pub seed: u64,
    /// The input text, for conditional models.
    pub condition: Option<String>,
    /// Token ids of the condition, used instead of tokenising `condition`.
    pub condition_ids: Option<Vec<i32>>,
    /// The text with gaps that is to be filled in, for models that can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// A reference answer, passed through for evaluation.
    pub reference: Option<String>,
    /// What the gaps of `template` hide of a known text, passed through for evaluation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
    /// Its number among the candidates for one text, from 0, which determines the length of an answer.
    #[serde(default, skip_serializing_if = "is_first")]
    pub candidate: usize,
}

/// Whether it is the number of the first candidate.
fn is_first(candidate: &usize) -> bool {
    *candidate == 0
}

impl TextRequest {
    /// A request to generate from an input.
    pub fn from_input(seed: u64, input: impl Into<String>) -> Self {
        Self { seed, condition: Some(input.into()), ..Self::default() }
    }

    /// One request per input under one seed; the same requests as those of `elf sample` with these inputs and this seed.
    pub fn from_inputs<T: Into<String>>(seed: u64, inputs: impl IntoIterator<Item = T>) -> Vec<Self> {
        let request = |(i, input): (usize, T)| Self::from_input(key_of(&[seed, i as u64]), input);
        inputs.into_iter().enumerate().map(request).collect()
    }

    /// One request per text with gaps, under one seed.
    pub fn from_templates(seed: u64, templates: impl IntoIterator<Item = Template>) -> Vec<Self> {
        let request =
            |(i, template)| Self { seed: key_of(&[seed, i as u64]), template: Some(template), ..Self::default() };
        templates.into_iter().enumerate().map(request).collect()
    }

    /// `count` unconditional requests under one seed.
    pub fn unconditional(seed: u64, count: usize) -> Vec<Self> {
        (0..count as u64).map(|i| Self { seed: key_of(&[seed, i]), ..Self::default() }).collect()
    }

    /// This request and `count - 1` copies with seeds derived from its own.
    pub(super) fn candidates(&self, count: usize) -> impl Iterator<Item = Self> {
        (0..count as u64).map(|i| match i {
            0 => self.clone(),
            _ => Self { seed: key_of(&[self.seed, i]), candidate: i as usize, ..self.clone() },
        })
    }

    /// Requests from the conditions and targets of the first `count` rows of token data.
    ///
    /// # Errors
    /// If the data has no conditions, or cannot be read.
    pub fn of_rows(seed: u64, dataset: &Dataset, count: usize, tokenizer: &Tokenizer) -> Result<Vec<Self>> {
        let mut requests = Self::unconditional(seed, count.min(dataset.len()));
        let carried = dataset.carried(0..requests.len())?;
        for (i, (request, carried)) in requests.iter_mut().zip(carried).enumerate() {
            let Example { input_ids, condition_ids } = dataset.example(i)?;
            let condition_ids = condition_ids.context("the data has no conditions to generate from")?;
            // The original texts where the data has them: decoded ids may be cut, and differ in spaces.
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
    /// The index of its request.
    pub index: usize,
    /// Its seed.
    pub seed: u64,
    /// The input text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Whether the input was cut to the model's maximum length.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub input_cut: bool,
    /// The generated text.
    #[serde(rename = "prediction")]
    pub text: String,
    /// The reference, if one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What was written into each gap of a text with gaps, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filled: Vec<String>,
    /// What the gaps hide of a known text, if that was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
    /// The generated tokens, without padding.
    pub tokens: Vec<i64>,
    /// The natural log-probability with which each token was read, if it was asked for and the model is a flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_probs: Option<Vec<f32>>,
    /// The decoder's confidence, for flows: the mean natural log-probability of the tokens and the final EOS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// The cost of generation, over all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalCost {
    /// Number of batches.
    pub batches: u64,
    /// Passes through the network over all batches, decoding included.
    pub passes: u64,
    /// Passes over finished prefixes, which compute their cached keys and values.
    pub context_passes: u64,
    /// Positions generated, padding rows included.
    pub positions: u64,
}

impl TotalCost {
    fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.passes += other.passes;
        self.context_passes += other.context_passes;
        self.positions += other.positions;
    }

    /// Adds the cost of one batch.
    pub fn add_batch(&mut self, passes: u64, context_passes: u64, positions: u64) {
        self.add(&Self { batches: 1, passes, context_passes, positions });
    }
}

/// Passes per batch: an average, as batches of blocks end with their longest text.
impl fmt::Display for TotalCost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let each = |passes: u64| {
            let batches = self.batches.max(1);
            let decimals = if passes.is_multiple_of(batches) { 0 } else { 1 };
            format!("{:.decimals$}", passes as f64 / batches as f64)
        };
        write!(f, "{} passes", each(self.passes))?;
        if self.context_passes > 0 {
            write!(f, " and {} over prefixes", each(self.context_passes))?;
        }
        write!(f, " for each of {} batch(es)", self.batches)
    }
}

/// The result of a list of requests.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Generation {
    /// The texts, in the order of the requests.
    pub texts: Vec<GeneratedText>,
    /// The first text as it formed: time and decoded text.
    pub frames: Vec<(f64, String)>,
    /// The cost.
    pub cost: TotalCost,
}

impl Generation {
    /// Gathers the results of all ranks; every rank gets all of them.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn over_ranks(self, comm: &dyn Comm) -> Result<Self> {
        let mut all = Self::default();
        for bytes in comm.gather_bytes(&serde_json::to_vec(&self)?)? {
            all.add(serde_json::from_slice(&bytes)?);
        }
        all.texts.sort_by_key(|text| text.index);
        Ok(all)
    }

    /// Adds the result of further requests.
    pub fn add(&mut self, Self { texts, frames, cost }: Self) {
        self.texts.extend(texts);
        self.frames.extend(frames);
        self.cost.add(&cost);
    }

    /// Keeps one text of every group of candidates, in the order of the requests.
    pub(super) fn chosen(self, candidates: Candidates) -> Self {
        let mut kept = Vec::with_capacity(self.texts.len() / candidates.count());
        let mut texts = self.texts.into_iter().peekable();
        while let Some(first) = texts.next() {
            let index = first.index / candidates.count();
            let mut all = vec![first];
            while let Some(next) = texts.next_if(|text| text.index / candidates.count() == index) {
                all.push(next);
            }
            let views: Vec<_> = all.iter().map(|text| (text.text.as_str(), text.confidence)).collect();
            let place = candidates.choose(&views);
            kept.push(GeneratedText { index, ..all.swap_remove(place) });
        }
        Self { texts: kept, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_averages_over_batches() {
        let mut cost = TotalCost::default();
        cost.add_batch(33, 0, 1024);
        cost.add_batch(33, 0, 1024);
        assert_eq!((cost.to_string().as_str(), cost.positions), ("33 passes for each of 2 batch(es)", 2048));
        // Batches differ in their number of blocks.
        let mut of_blocks = TotalCost::default();
        of_blocks.add_batch(18, 2, 24);
        let mut other_rank = TotalCost::default();
        other_rank.add_batch(6, 0, 8);
        other_rank.add_batch(12, 1, 16);
        of_blocks.add(&other_rank);
        assert_eq!(of_blocks.to_string(), "12 passes and 1 over prefixes for each of 3 batch(es)");
        of_blocks.add_batch(6, 0, 8);
        assert_eq!(of_blocks.to_string(), "10.5 passes and 0.8 over prefixes for each of 4 batch(es)");
        assert_eq!(of_blocks.positions, 56);
    }
}
