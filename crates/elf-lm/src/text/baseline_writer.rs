//! Generation with the baselines.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use elf_core::TokenDraw;
use elf_data::Tokenizer;
use elf_flow::Trim;
use elf_flow::tokens::{AncestralSampler, MaskedRequest};
use elf_gpt2::decoding::{BeamSearch, Ending, Incremental, TokenSampling, Without};
use elf_gpt2::{Gpt2, Gpt2Session};
use elf_model::MaskedTransformer;
use tch::Tensor;

use super::text_loop::{BatchEvent, BatchWriter, TextBatchRequest, WrittenBatch, WrittenRow};
use crate::config::{BaselinePlan, RunPlan, Sampling};
use crate::error::fail;
use crate::{Error, Result};

/// A decoding method of a baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decoding {
    /// Beam search with an autoregressive model.
    Beam(BeamSearch),
    /// Token by token sampling from an autoregressive model.
    Sampling(TokenSampling),
    /// Ancestral sampling from a masked diffusion model.
    Ancestral(AncestralSampler),
}

impl Decoding {
    /// The default for a model. Autoregressive: sampling for unconditional text, greedy search for conditional text.
    /// Masked diffusion: as many steps as the default for ELF.
    pub fn default_for(baseline: &BaselinePlan, plan: &RunPlan) -> Self {
        match baseline {
            BaselinePlan::Gpt2(_) if plan.span.max_input_length.is_some() => Self::Beam(BeamSearch::default()),
            BaselinePlan::Gpt2(_) => Self::Sampling(TokenSampling::default()),
            BaselinePlan::Mdlm { .. } => {
                Self::Ancestral(AncestralSampler { steps: Sampling::default_for(plan).num_sampling_steps })
            }
        }
    }

    /// The decoding method for a flow's sampling setting. Masked diffusion takes its number of steps. An autoregressive
    /// model takes its temperature and top-p if the temperature is above 0, else the default.
    pub fn of(sampling: &Sampling, baseline: &BaselinePlan, plan: &RunPlan) -> Self {
        match baseline {
            BaselinePlan::Mdlm { .. } => Self::Ancestral(AncestralSampler { steps: sampling.num_sampling_steps }),
            BaselinePlan::Gpt2(_) if sampling.temperature > 0.0 => {
                Self::Sampling(TokenSampling(TokenDraw { temperature: sampling.temperature, top_p: sampling.top_p }))
            }
            BaselinePlan::Gpt2(_) => Self::default_for(baseline, plan),
        }
    }

    /// The methods for evaluations in training: the default; for masked diffusion, the step counts of the sampling
    /// settings.
    pub fn at_evaluations(plan: &RunPlan, baseline: &BaselinePlan, settings: &[Sampling]) -> Vec<Self> {
        match baseline {
            BaselinePlan::Mdlm { .. } => {
                let mut steps: Vec<usize> = settings.iter().map(|s| s.num_sampling_steps).collect();
                steps.sort_unstable();
                steps.dedup();
                steps.into_iter().map(|steps| Self::Ancestral(AncestralSampler { steps })).collect()
            }
            BaselinePlan::Gpt2(_) => vec![Self::default_for(baseline, plan)],
        }
    }

    /// A short name for files: `mdlm-32`, `beam-4`, `sample-t1-p0.9`.
    pub fn name(&self) -> String {
        match self {
            Self::Beam(search) if search.length_penalty == 1.0 => format!("beam-{}", search.width),
            Self::Beam(search) => format!("beam-{}-a{}", search.width, search.length_penalty),
            Self::Sampling(TokenSampling(TokenDraw { temperature, top_p })) => {
                format!("sample-t{temperature}-p{top_p}")
            }
            Self::Ancestral(AncestralSampler { steps }) => format!("mdlm-{steps}"),
        }
    }
}

/// A batch of prompts.
pub struct Prompts<'a> {
    /// One seed per row.
    seeds: &'a [u64],
    /// Ids `[B, S]`, of which only the conditions are read.
    ids: &'a Tensor,
    /// Length of each row's condition, `[B]`.
    starts: &'a [i64],
    /// Which tokens of the texts are given, `[B, S]`; empty if none is.
    given: &'a [bool],
    /// For a GPT-2 that fills gaps: what stands for a token to write.
    mark: Option<i64>,
    /// Maximum length of a condition.
    longest: usize,
    /// The token that ends a text.
    eos: i64,
    /// The token that fills a row up.
    pad: i64,
}

/// The texts of a batch.
#[derive(Debug, Default)]
pub struct Written {
    /// The token ids of each row's text; what follows EOS is ignored.
    texts: Vec<Vec<i64>>,
    /// Passes through the network.
    passes: u64,
    /// Positions in these passes.
    positions: u64,
}

/// A network that generates token ids directly.
pub trait Writer {
    /// Generates the texts of one batch.
    ///
    /// # Errors
    /// If the decoding method is for another kind of network, or the network fails.
    fn write(&self, decoding: &Decoding, prompts: &Prompts) -> Result<Written>;
}

impl Writer for MaskedTransformer {
    fn write(&self, decoding: &Decoding, prompts: &Prompts) -> Result<Written> {
        let Decoding::Ancestral(sampler) = decoding else {
            fail!(request, "a masked diffusion model is sampled in steps, not token by token");
        };
        let Prompts { seeds, ids, starts, given, eos, pad, .. } = *prompts;
        let (b, s) = ids.size2()?;
        // What stands behind a gap would be lost with an end or filling in it.
        let barred = if given.is_empty() { &[][..] } else { &[eos, pad] };
        let sample = sampler.sample(self, &MaskedRequest { seeds, ids, starts, given, barred })?;
        let rows = Vec::<i64>::try_from(sample.ids.f_reshape([-1])?)?;
        let texts = rows.chunks(s as usize).zip(starts).map(|(row, &start)| row[start as usize..].to_vec()).collect();
        Ok(Written { texts, passes: sample.passes, positions: sample.passes * (b * s) as u64 })
    }
}

/// The texts that follow these prompts.
fn continued(
    model: &mut dyn Incremental,
    decoding: &Decoding,
    begun: &[Vec<i64>],
    seeds: &[u64],
    ending: Ending,
) -> Result<Vec<Vec<i64>>> {
    match decoding {
        Decoding::Sampling(sampling) => Ok(sampling.texts(model, begun, seeds, ending)?),
        Decoding::Beam(search) => {
            let found = search.texts(model, begun, ending)?;
            Ok(found.into_iter().map(|best| best.into_iter().next().map_or(Vec::new(), |h| h.tokens)).collect())
        }
        Decoding::Ancestral(_) => fail!(request, "an autoregressive model writes token by token, not in steps"),
    }
}

/// Texts of which some tokens are given, by a model that reads them with marks for the others and writes those in their order.
fn filled(net: &Gpt2, decoding: &Decoding, prompts: &Prompts, mark: i64) -> Result<Written> {
    let Prompts { seeds, ids, given, eos, pad, .. } = *prompts;
    let (b, s) = ids.size2()?;
    let (b, s) = (b as usize, s as usize);
    let mut texts: Vec<Vec<i64>> = Vec::<i64>::try_from(ids.f_reshape([-1])?)?.chunks(s).map(<[i64]>::to_vec).collect();
    // What stands behind a gap would be lost with an end or filling in it.
    let barred = if given.is_empty() { &[mark][..] } else { &[mark, eos, pad] };
    let mut rows_of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let open: Vec<Vec<usize>> =
        (0..b).map(|row| (0..s).filter(|place| given.get(row * s + place) != Some(&true)).collect()).collect();
    for (row, open) in open.iter().enumerate().filter(|(_, open)| !open.is_empty()) {
        rows_of.entry(open.len()).or_default().push(row);
        for &place in open {
            texts[row][place] = mark;
        }
    }
    let mut written = Written::default();
    for (most, rows) in rows_of {
        let begun: Vec<Vec<i64>> = rows.iter().map(|&row| [&[eos], &texts[row][..]].concat()).collect();
        let seeds: Vec<u64> = rows.iter().map(|&row| seeds[row]).collect();
        let mut session = Gpt2Session::new(net, 1 + s, most)?;
        let mut model = Without { model: &mut session, barred };
        let found = continued(&mut model, decoding, &begun, &seeds, Ending { eos, most })?;
        for (&row, tokens) in rows.iter().zip(found) {
            for (&place, token) in open[row].iter().zip(tokens.into_iter().chain(std::iter::repeat(eos))) {
                texts[row][place] = token;
            }
        }
        written.passes += session.passes();
        written.positions += session.positions();
    }
    Ok(Written { texts, ..written })
}

impl Writer for Gpt2 {
    fn write(&self, decoding: &Decoding, prompts: &Prompts) -> Result<Written> {
        let Prompts { seeds, ids, starts, longest, eos, mark, .. } = *prompts;
        if let Some(mark) = mark {
            return filled(self, decoding, prompts, mark);
        }
        let (_, s) = ids.size2()?;
        let ids = Vec::<i64>::try_from(ids.f_reshape([-1])?)?;
        // As in training, a row begins with the EOS of the row before it.
        let with_bos = |(row, &start): (&[i64], &i64)| [&[eos], &row[..start as usize]].concat();
        let begun: Vec<Vec<i64>> = ids.chunks(s as usize).zip(starts).map(with_bos).collect();
        let most = s as usize - longest;
        let mut session = Gpt2Session::new(self, 1 + longest, most)?;
        let texts = continued(&mut session, decoding, &begun, seeds, Ending { eos, most })?;
        Ok(Written { texts, passes: session.passes(), positions: session.positions() })
    }
}

/// A baseline with a decoding method.
pub struct BaselineWriter<'a> {
    /// The network.
    pub net: &'a dyn Writer,
    /// The decoding method.
    pub decoding: Decoding,
    /// The plan that it was trained by.
    pub plan: &'a RunPlan,
    /// The tokenizer that it was trained with.
    pub tokenizer: &'a Tokenizer,
}

impl BatchWriter for BaselineWriter<'_> {
    fn write(
        &self,
        batch: &TextBatchRequest,
        watch: &mut dyn FnMut(BatchEvent) -> ControlFlow<()>,
    ) -> Result<WrittenBatch> {
        let (asked, b, s) = (batch.requests.len(), batch.rows.max(batch.requests.len()), batch.length);
        let longest = self.plan.span.max_input_length;
        let (ids, starts, given) = match batch.conditions {
            Some(conditions) => {
                let batch = conditions.collate(self.plan, self.tokenizer, b, s)?;
                (batch.input_ids, batch.cond_len.iter().map(|&n| n as i64).collect(), batch.given)
            }
            None => (vec![0; b * s], vec![0; b], Vec::new()),
        };
        let ids = Tensor::f_from_slice(&ids)?.f_view([b as i64, s as i64])?;
        let mut seeds: Vec<u64> = batch.requests.iter().map(|request| request.seed).collect();
        seeds.resize(b, seeds.last().copied().unwrap_or_default());
        let trim = Trim {
            eos: i64::from(self.tokenizer.eos_id()?),
            pad: i64::from(self.tokenizer.pad_id()?),
            max_input_length: 0,
        };
        let longest_input = longest.unwrap_or(0);
        let (eos, pad) = (trim.eos, trim.pad);
        let mark = self.plan.gap_mark();
        let (seeds, ids, starts, given) = (&seeds[..], &ids, &starts[..], &given[..]);
        let prompts = Prompts { seeds, ids, starts, given, mark, longest: longest_input, eos, pad };
        let Written { mut texts, passes, positions } = self.net.write(&self.decoding, &prompts)?;
        if watch(BatchEvent::Step(1, 1)).is_break() {
            return Err(Error::Cancelled);
        }
        texts.truncate(asked);
        // The same maximum length as for a flow.
        let longest = self.plan.span.max_length - longest_input;
        let ids = |text: Vec<i64>| trim.row(&text[..text.len().min(longest)], 0);
        let row = |text| WrittenRow { ids: ids(text), log_probs: None, confidence: None };
        Ok(WrittenBatch { rows: texts.into_iter().map(row).collect(), passes, context_passes: 0, positions })
    }
}
