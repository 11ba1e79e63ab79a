//! The conditions of a batch as token ids.

use std::ops::Range;

use elf_data::{Batch, Example, Tokenizer};

use super::generated::TextRequest;
use super::template::Lengths;
use crate::Result;
use crate::config::{BaselinePlan, LengthLaw, RunPlan};
use crate::error::{Context, fail};

/// The error message for an input text given to an unconditional model.
pub const TAKES_NO_INPUT: &str = "this model was trained on unconditional text and takes no input text";

/// What is given of the texts of some requests, as token ids: conditions before them, or tokens in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    ids: Vec<Vec<i32>>,
    /// Of texts with gaps: which of `ids` are given.
    given: Option<Vec<Vec<bool>>>,
    longest: usize,
}

impl Conditions {
    /// Tokenises the conditions of requests, with a final EOS if the model was trained with one, or their texts with gaps; `None` for
    /// whole texts of unconditional models. Either all requests have gaps, or none.
    ///
    /// # Errors
    /// If a condition is missing or empty, an unconditional model is given one, a model cannot fill gaps, or the tokenizer fails.
    pub fn of(plan: &RunPlan, tokenizer: &Tokenizer, requests: &[&TextRequest]) -> Result<Option<Self>> {
        if requests.iter().any(|request| request.template.is_some()) {
            return Self::with_gaps(plan, tokenizer, requests).map(Some);
        }
        let Some(longest) = plan.span.max_input_length else {
            if requests.iter().any(|request| request.condition.is_some()) {
                fail!(request, "{TAKES_NO_INPUT}");
            }
            return Ok(None);
        };
        let eos = plan.condition_eos.then(|| tokenizer.eos_id()).transpose()?;
        let mut ids = Vec::with_capacity(requests.len());
        for request in requests {
            let own: Vec<i32> = match (&request.condition_ids, &request.condition) {
                (Some(ids), _) => ids.clone(),
                (None, Some(text)) => tokenizer.encode(text)?.into_iter().chain(eos).collect(),
                (None, None) => {
                    fail!(request, "this model generates from an input text: give one with --text or --input")
                }
            };
            if own.is_empty() {
                fail!(request, "an input text is empty");
            }
            ids.push(own);
        }
        Ok(Some(Self { ids, given: None, longest }))
    }

    fn with_gaps(plan: &RunPlan, tokenizer: &Tokenizer, requests: &[&TextRequest]) -> Result<Self> {
        let law = check_fills_gaps(plan)?;
        let pad = tokenizer.pad_id()?;
        let (mut ids, mut given) = (Vec::with_capacity(requests.len()), Vec::with_capacity(requests.len()));
        for request in requests {
            let template = request.template.as_ref().context("texts with gaps are written apart from others")?;
            let lengths = Lengths { law, seed: request.seed, longest: plan.span.max_length };
            let slots = template.slots(tokenizer, &lengths)?;
            given.push(slots.iter().map(Option::is_some).collect());
            ids.push(slots.into_iter().map(|slot| slot.unwrap_or(pad)).collect());
        }
        Ok(Self { ids, given: Some(given), longest: plan.span.max_length })
    }

    /// The text of `ids`, its end included, once for each of `hidden`, whose positions are not given in that row.
    ///
    /// # Errors
    /// If the model cannot fill gaps, or the text is too long for it.
    pub fn hiding(plan: &RunPlan, tokenizer: &Tokenizer, ids: &[i32], hidden: &[Range<usize>]) -> Result<Self> {
        check_fills_gaps(plan)?;
        let (pad, longest) = (tokenizer.pad_id()?, plan.span.max_length);
        if ids.len() > longest {
            fail!(
                request,
                "the text has {} tokens, its end included, and the model knows texts of at most {longest}: shorten it",
                ids.len()
            );
        }
        let given = hidden.iter().map(|hidden| (0..ids.len()).map(|place| !hidden.contains(&place)).collect());
        let given: Vec<Vec<bool>> = given.collect();
        let known =
            |given: &Vec<bool>| ids.iter().zip(given).map(|(&id, &given)| if given { id } else { pad }).collect();
        Ok(Self { ids: given.iter().map(known).collect(), given: Some(given), longest })
    }

    /// Which tokens of a row's text are given, if it is one with gaps.
    pub fn given(&self, row: usize) -> Option<&[bool]> {
        self.given.as_ref().and_then(|given| given.get(row)).map(Vec::as_slice)
    }

    /// Whether the condition of a row is cut to the model's maximum length.
    pub fn is_cut(&self, row: usize) -> bool {
        self.ids[row].len() > self.longest
    }

    /// The length of each condition, or text with gaps, cut to the model's maximum.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.ids.iter().map(|ids| ids.len().min(self.longest))
    }

    /// A batch of rows of `length` positions with conditions and no targets, or with the given tokens of texts. The last row is repeated up
    /// to `rows`.
    ///
    /// # Errors
    /// If the tokenizer has no padding token.
    pub fn collate(&self, plan: &RunPlan, tokenizer: &Tokenizer, rows: usize, length: usize) -> Result<Batch> {
        let example = |ids: &Vec<i32>| match self.given {
            None => Example { input_ids: Vec::new(), condition_ids: Some(ids.clone()) },
            Some(_) => Example { input_ids: ids.clone(), condition_ids: None },
        };
        let mut examples: Vec<Example> = self.ids.iter().map(example).collect();
        if let Some(last) = self.ids.last().filter(|_| rows > examples.len()) {
            examples.resize_with(rows, || example(last));
        }
        let mut batch = plan.collator(tokenizer)?.collate(&examples)?.cut_to(length);
        if let Some(given) = &self.given {
            batch.given = vec![false; batch.rows * batch.seq_len];
            let of_rows = given.iter().chain(given.last().into_iter().cycle());
            for (row, given) in batch.given.chunks_mut(length).zip(of_rows) {
                row[..given.len()].copy_from_slice(given);
            }
        }
        Ok(batch)
    }
}

/// Whether a model can fill gaps in its texts.
pub fn fills_gaps(plan: &RunPlan) -> bool {
    check_fills_gaps(plan).is_ok()
}

/// The lengths of a model's texts, if it can fill gaps in them.
///
/// # Errors
/// If it cannot; the message says what it can.
fn check_fills_gaps(plan: &RunPlan) -> Result<&LengthLaw> {
    let refuse = |can: &str| -> Result<&LengthLaw> {
        fail!(
            request,
            "this model cannot fill gaps: it {can}. A flow or a GPT-2 learns it with given_spans_prob and its like (configs/infill.yml), and \
             masked diffusion can by itself (objective: mdlm)"
        )
    };
    if plan.span.max_input_length.is_some() {
        return refuse("writes what follows from an input text");
    }
    let learned = match &plan.baseline {
        None | Some(BaselinePlan::Gpt2(_)) => !plan.config.given.shares().is_none(),
        Some(BaselinePlan::Mdlm { .. }) => true,
    };
    match (&plan.lengths, learned) {
        (Some(law), true) => Ok(law),
        (None, true) => refuse("fills all its texts up to one length (group_by_length: false)"),
        (_, false) => refuse("was trained to write whole texts"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, RunConfig};
    use std::path::Path;
    use tch::Device;

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tokenizers/t5/tokenizer.json")).unwrap()
    }

    fn plan(set: Option<bool>, found: bool) -> RunPlan {
        let config = RunConfig::default().with(|c| {
            c.data.condition_eos = set;
            c.data.max_length = 16;
            c.data.max_input_length = Some(8);
        });
        let facts = Facts { latent_dim: 512, vocab_size: 32_100, rows: 1 << 40, condition_eos: found, ranks: 1 };
        RunPlan::new(&config, facts, Device::Cpu).unwrap()
    }

    fn collate(plan: &RunPlan, tokenizer: &Tokenizer, request: &TextRequest) -> Result<Batch> {
        Conditions::of(plan, tokenizer, &[request])?.unwrap().collate(plan, tokenizer, 1, 16)
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
            let batch = collate(&plan(set, found), &tokenizer, &request).unwrap();
            let mut expected: Vec<i64> = plain.iter().map(|&id| i64::from(id)).collect();
            expected.extend(ends.then_some(i64::from(eos)));
            assert_eq!(batch.cond_len, [expected.len()]);
            assert_eq!(batch.input_ids[..expected.len()], expected);
        }
        // An empty text becomes a single EOS, if conditions end in EOS.
        let empty = TextRequest { condition: Some(String::new()), ..TextRequest::default() };
        assert_eq!(collate(&plan(None, true), &tokenizer, &empty).unwrap().cond_len, [1]);
        assert!(collate(&plan(None, false), &tokenizer, &empty).unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn ids_of_data_are_taken_as_they_are() {
        let tokenizer = tokenizer();
        let ids = vec![42, 7, 13];
        let request =
            TextRequest { condition: Some("x".into()), condition_ids: Some(ids.clone()), ..TextRequest::default() };
        for found in [false, true] {
            let batch = collate(&plan(None, found), &tokenizer, &request).unwrap();
            assert_eq!((batch.cond_len.as_slice(), &batch.input_ids[..3]), (&[3][..], &[42, 7, 13][..]));
        }
    }
}
