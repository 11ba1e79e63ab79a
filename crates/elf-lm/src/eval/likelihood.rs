//! Likelihood of given texts under a trained flow, from below.

use std::collections::BTreeMap;
use std::path::PathBuf;

use elf_core::{Seeded, key_of};
use elf_data::{Batch, Collator, Dataset, Example, PadToken};
use elf_eval::stats::Spread;
use elf_flow::{BoundConfig, LikelihoodBound, TextBound, TrainedFlow};
use elf_hub::What;
use serde::Serialize;

use crate::error::{Context, fail};
use crate::model::DescribedModel;
use crate::model::loaded::Net;
use crate::text::text_latents::TextLatents;
use crate::{Event, Host, Result};

/// Texts whose likelihood is asked for.
#[derive(Debug, Clone)]
pub enum GivenTexts {
    /// Texts themselves, each of which is to end there; for unconditional models.
    Plain(Vec<String>),
    /// Token data, or its Hugging Face id.
    Shards(PathBuf),
}

/// Options of [`likelihood`].
#[derive(Debug, Clone)]
pub struct LikelihoodOptions {
    /// The texts.
    pub texts: GivenTexts,
    /// Maximum number of texts.
    pub limit: usize,
    /// The time at which words are read, and the number of steps to it.
    pub bound: BoundConfig,
    /// Draws of the noise of each text.
    pub draws: usize,
    /// Self-conditioning guidance scale given to the network.
    pub self_cond_cfg_scale: f64,
    /// Seed of the noise. The text of a row has the same noise whatever the texts of other rows are.
    pub seed: u64,
    /// Texts per batch.
    pub batch_size: usize,
}

/// The likelihood of a text, given its length and, for conditional tasks, its condition. In bits: higher is less likely.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TextLikelihood {
    /// Tokens, the end included.
    pub tokens: usize,
    /// The text takes at most this many bits, in expectation over draws.
    pub bits: f64,
    /// Standard error of `bits`, by the scatter of draws; `None` for a single draw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// The part of `bits` that says where the text's latents lie.
    pub bits_of_latents: f64,
    /// The part of `bits` that says the words, given these latents.
    pub bits_of_words: f64,
}

/// Likelihoods of texts, in machine-readable form.
#[derive(Debug, Serialize)]
pub struct Likelihoods {
    /// Number of texts.
    pub texts: usize,
    /// Number of their tokens, ends included.
    pub tokens: usize,
    /// Bits per token: all bits by all tokens.
    pub bits_per_token: f64,
    /// Standard error of `bits_per_token`, by the scatter of texts and their draws; `None` for a single text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// The part of `bits_per_token` that says where latents lie.
    pub bits_of_latents: f64,
    /// The part of `bits_per_token` that says words.
    pub bits_of_words: f64,
    /// Each text, in the order of the data.
    pub each: Vec<TextLikelihood>,
}

impl TextLikelihood {
    /// From the bounds of all draws, in nats.
    fn of(tokens: usize, draws: &[TextBound]) -> Self {
        let bits = |part: fn(&TextBound) -> f64| -> Vec<f64> {
            draws.iter().map(|bound| -part(bound) / std::f64::consts::LN_2).collect()
        };
        let mean = |part| bits(part).iter().sum::<f64>() / draws.len() as f64;
        Self {
            tokens,
            bits: mean(TextBound::total),
            error: Spread::of_sample(&bits(TextBound::total)).map(|spread| spread.standard_error),
            bits_of_latents: mean(|bound| bound.latents),
            bits_of_words: mean(|bound| bound.words),
        }
    }
}

impl Likelihoods {
    /// Of all texts together.
    fn of(each: Vec<TextLikelihood>) -> Self {
        let tokens: usize = each.iter().map(|text| text.tokens).sum();
        let per_token = |bits: fn(&TextLikelihood) -> f64| each.iter().map(bits).sum::<f64>() / tokens as f64;
        let bits_per_token = per_token(|text| text.bits);
        // Of a ratio of sums, to first order.
        let apart: Vec<f64> = each.iter().map(|text| text.bits - bits_per_token * text.tokens as f64).collect();
        let error = Spread::of_sample(&apart).map(|spread| spread.standard_error * each.len() as f64 / tokens as f64);
        Self {
            texts: each.len(),
            tokens,
            bits_per_token,
            error,
            bits_of_latents: per_token(|text| text.bits_of_latents),
            bits_of_words: per_token(|text| text.bits_of_words),
            each,
        }
    }
}

/// Bounds the likelihoods of texts; see [`LikelihoodBound`]. Texts are given their length.
///
/// # Errors
/// If the model is not a flow on an encoder's latents, generates in blocks, or has 8-bit products, which have no gradient; if the texts
/// do not fit it; or if libtorch fails.
pub fn likelihood(model: &DescribedModel, asked: &LikelihoodOptions, host: &Host) -> Result<Likelihoods> {
    let path = model.source().path.display();
    if model.plan.model.learned_latents {
        fail!(
            request,
            "{path} learned its latents itself: only texts of models of an encoder's latents have a likelihood here"
        );
    }
    if model.plan.objective.block_size.is_some() {
        fail!(
            request,
            "{path} writes block after block (block_size): only texts of models that write all tokens together have a likelihood here"
        );
    }
    if model.source().int8 {
        fail!(setting("int8"), "--int8 has no gradients, which a likelihood is made of: leave it out");
    }
    let collator = model.plan.collator(&model.tokenizer)?;
    let examples = examples(model, asked, host)?;
    let groups = groups(model, &collator, &examples, host)?;
    model.check_memory(asked.batch_size.min(examples.len()))?;
    let net = model.load_network()?;
    let Net::Flow(net) = &net else { fail!(request, "only a flow has likelihoods of this kind") };
    let trained = TrainedFlow::from(&model.plan.objective);
    let bound = LikelihoodBound::new(net.as_ref(), trained, asked.self_cond_cfg_scale, asked.bound)?;
    let latents = model.text_latents(host)?;

    let mut each = vec![None; examples.len()];
    let mut done = 0;
    host.send(Event::Started { unit: "texts", done, total: examples.len() as u64 });
    for rows in groups.iter().flat_map(|group| group.chunks(asked.batch_size)) {
        let texts: Vec<Example> = rows.iter().map(|&row| examples[row].clone()).collect();
        let batch = model.plan.without_filling(collator.collate(&texts)?);
        let of_rows = Rows { bound: &bound, latents: &latents, asked }.bounds(&batch, rows)?;
        let tokens = batch.valid_len.iter().zip(&batch.cond_len).map(|(valid, condition)| valid - condition);
        for ((&row, tokens), draws) in rows.iter().zip(tokens).zip(of_rows) {
            each[row] = Some(TextLikelihood::of(tokens, &draws));
        }
        done += rows.len() as u64;
        host.send(Event::Progress { done, message: None });
    }
    host.send(Event::Ended);
    Ok(Likelihoods::of(each.into_iter().flatten().collect()))
}

/// What the bounds of a batch depend on.
struct Rows<'a> {
    bound: &'a LikelihoodBound<'a>,
    latents: &'a TextLatents,
    asked: &'a LikelihoodOptions,
}

impl Rows<'_> {
    /// The bounds of each text of a batch, one for each draw.
    fn bounds(&self, batch: &Batch, rows: &[usize]) -> Result<Vec<Vec<TextBound>>> {
        let encoded = self.latents.encode(batch)?;
        let mut all = vec![Vec::with_capacity(self.asked.draws); rows.len()];
        for draw in 0..self.asked.draws as u64 {
            let keys = rows.iter().map(|&row| key_of(&[self.asked.seed, row as u64, draw])).collect();
            let bounds = self.bound.of(&encoded, &mut Seeded::new(keys, self.latents.device()))?;
            all.iter_mut().zip(bounds).for_each(|(draws, bound)| draws.push(bound));
        }
        Ok(all)
    }
}

/// The texts as token ids.
fn examples(model: &DescribedModel, asked: &LikelihoodOptions, host: &Host) -> Result<Vec<Example>> {
    let conditional = model.plan.span.max_input_length.is_some();
    let examples = match &asked.texts {
        GivenTexts::Plain(texts) => {
            if conditional {
                fail!(
                    request,
                    "{} writes from conditions: give texts together with these, as token data (--data)",
                    model.source().path.display()
                );
            }
            let eos = model.tokenizer.eos_id()?;
            let ids = |text: &String| -> Result<Vec<i32>> {
                Ok(model.tokenizer.encode(text)?.into_iter().chain([eos]).collect())
            };
            let example = |text| Ok(Example { input_ids: ids(text)?, condition_ids: None });
            texts.iter().take(asked.limit).map(example).collect::<Result<Vec<_>>>()?
        }
        GivenTexts::Shards(data) => {
            let mut dataset = Dataset::open(&[host.locate(data, What::Dataset)?])?;
            dataset.check_tokenizer(&model.tokenizer).with_context(|| data.display())?;
            if conditional && !dataset.is_conditional() {
                fail!(place(data), "{} has no conditions, and the model generates from conditions", data.display());
            }
            let rows: Vec<usize> = (0..dataset.len().min(asked.limit)).collect();
            dataset.examples(&rows)?
        }
    };
    if examples.is_empty() {
        fail!(request, "there are no texts whose likelihood could be told");
    }
    Ok(examples)
}

/// The texts in groups that can share a batch, by their numbers: those of equal length where a row's filling is not part of what the
/// network has learned to write.
fn groups(model: &DescribedModel, collator: &Collator, examples: &[Example], host: &Host) -> Result<Vec<Vec<usize>>> {
    let most = collator.config().max_length;
    let of_own_length = model.plan.has_rows_of_equal_length();
    let mut cut = 0;
    let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (row, example) in examples.iter().enumerate() {
        let batch = collator.collate(std::slice::from_ref(example))?;
        let (condition, tokens) = (batch.cond_len[0], batch.valid_len[0]);
        cut += usize::from(tokens - condition < example.input_ids.len());
        if !of_own_length && collator.config().pad_token == PadToken::Pad && tokens < most {
            fail!(
                request,
                "text {} has {tokens} tokens, and the model always writes {most}, of which it has not learned those that only fill rows \
                 up (pad_token: pad): only texts of this length have a likelihood here",
                row + 1
            );
        }
        let length = if of_own_length { (condition, tokens) } else { (0, most) };
        groups.entry(length).or_default().push(row);
    }
    if cut > 0 {
        host.note(format!(
            "{cut} of {} texts are cut to {most} tokens, the most that the model writes",
            examples.len()
        ));
    }
    Ok(groups.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits and errors by hand.
    #[test]
    fn texts_weigh_by_their_tokens() {
        let ln2 = std::f64::consts::LN_2;
        let bound = |latents: f64, words: f64| TextBound { latents: -latents * ln2, words: -words * ln2 };
        let first = TextLikelihood::of(2, &[bound(5.0, 1.0), bound(7.0, 3.0)]);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(first.bits, 8.0) && close(first.bits_of_latents, 6.0) && close(first.bits_of_words, 2.0));
        assert!(close(first.error.unwrap(), 2.0), "{first:?}");
        let second = TextLikelihood::of(6, &[bound(20.0, 4.0)]);
        assert!(second.error.is_none());
        let all = Likelihoods::of(vec![first, second]);
        assert_eq!((all.texts, all.tokens), (2, 8));
        assert!(close(all.bits_per_token, 4.0) && close(all.bits_of_latents + all.bits_of_words, 4.0));
        // Both have 4 bits a token.
        assert!(close(all.error.unwrap(), 0.0));
    }
}
