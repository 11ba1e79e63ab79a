//! From requests for text to text, with a baseline.

use anyhow::{Result, bail};
use elf_core::TokenDraw;
use elf_data::Tokenizer;
use elf_flow::Trim;
use elf_flow::tokens::{AncestralSampler, MaskedRequest};
use elf_gpt2::decoding::{BeamSearch, Ending, Sampling};
use elf_gpt2::{Gpt2, Gpt2Session};
use elf_model::MaskedTransformer;
use elf_train::Comm;
use tch::Tensor;

use crate::config::{BaselinePlan, RunPlan, SamplingSetting};
use crate::text::text_batches::{TextBatch, text_batches};
use crate::text::text_file::Unfinished;
use crate::text::text_generation::{
    GeneratedText, Generation, TAKES_NO_INPUT, TextRequest, collate, is_cut, tokenised, words,
};
use crate::train::sampling_settings;

/// How a baseline writes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decoding {
    /// An autoregressive model: the likeliest text, searched for.
    Beam(BeamSearch),
    /// An autoregressive model: a text drawn token by token.
    Sampling(Sampling),
    /// A masked model.
    Ancestral(AncestralSampler),
}

impl Decoding {
    /// What suits a model when nothing else is said: unconditional texts are drawn from the model's own distribution, conditional
    /// ones searched for greedily; a masked model takes as many steps as ELF would.
    pub fn default_for(baseline: &BaselinePlan, plan: &RunPlan) -> Self {
        match baseline {
            BaselinePlan::Gpt2(_) if plan.span.max_input_length.is_some() => Self::Beam(BeamSearch::default()),
            BaselinePlan::Gpt2(_) => Self::Sampling(Sampling::default()),
            BaselinePlan::Mdlm { .. } => {
                Self::Ancestral(AncestralSampler { steps: SamplingSetting::default_for(plan).num_sampling_steps })
            }
        }
    }

    /// What evaluations in training use: the default, or of a masked model the step counts in the file of sampling settings.
    ///
    /// # Errors
    /// If that file is missing or wrong.
    pub fn at_evaluations(plan: &RunPlan) -> Result<Vec<Self>> {
        Ok(match &plan.baseline {
            None => Vec::new(),
            Some(BaselinePlan::Mdlm { .. }) => {
                let mut steps: Vec<usize> = sampling_settings(plan)?.iter().map(|s| s.num_sampling_steps).collect();
                steps.sort_unstable();
                steps.dedup();
                steps.into_iter().map(|steps| Self::Ancestral(AncestralSampler { steps })).collect()
            }
            Some(baseline) => vec![Self::default_for(baseline, plan)],
        })
    }

    /// A short name for files: `mdlm-32`, `beam-4`, `sample-t1-p0.9`.
    pub fn name(&self) -> String {
        match self {
            Self::Beam(search) if search.length_penalty == 1.0 => format!("beam-{}", search.width),
            Self::Beam(search) => format!("beam-{}-a{}", search.width, search.length_penalty),
            Self::Sampling(Sampling(TokenDraw { temperature, top_p })) => format!("sample-t{temperature}-p{top_p}"),
            Self::Ancestral(AncestralSampler { steps }) => format!("mdlm-{steps}"),
        }
    }
}

/// One batch of texts to write.
pub struct Prompts<'a> {
    /// A seed a row.
    seeds: &'a [u64],
    /// Ids `[B, S]`, of which only the conditions matter.
    ids: &'a Tensor,
    /// How long each row's condition is, `[B]`.
    starts: &'a [i64],
    /// The longest condition that there can be.
    longest: usize,
    /// The token that ends a text.
    eos: i64,
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Each row's text, with or without what comes after its EOS.
    texts: Vec<Vec<i64>>,
    /// Passes through the network.
    passes: u64,
    /// Positions in them.
    positions: u64,
}

/// A network that writes texts.
pub trait Writer {
    /// Writes one batch.
    ///
    /// # Errors
    /// If it cannot write in this way, or fails.
    fn write(&self, decoding: &Decoding, prompts: &Prompts) -> Result<Written>;
}

impl Writer for MaskedTransformer {
    fn write(&self, decoding: &Decoding, prompts: &Prompts) -> Result<Written> {
        let Decoding::Ancestral(sampler) = decoding else {
            bail!("a masked diffusion model is sampled in steps, not token by token");
        };
        let Prompts { seeds, ids, starts, .. } = *prompts;
        let (b, s) = ids.size2()?;
        let sample = sampler.sample(self, &MaskedRequest { seeds, ids, starts })?;
        let rows = Vec::<i64>::try_from(sample.ids.f_reshape([-1])?)?;
        let texts = rows.chunks(s as usize).zip(starts).map(|(row, &start)| row[start as usize..].to_vec()).collect();
        Ok(Written { texts, passes: sample.passes, positions: sample.passes * (b * s) as u64 })
    }
}

impl Writer for Gpt2 {
    fn write(&self, decoding: &Decoding, prompts: &Prompts) -> Result<Written> {
        let Prompts { seeds, ids, starts, longest, eos } = *prompts;
        let (_, s) = ids.size2()?;
        let ids = Vec::<i64>::try_from(ids.f_reshape([-1])?)?;
        // As in training: what ended the text before begins this one.
        let with_bos = |(row, &start): (&[i64], &i64)| [&[eos], &row[..start as usize]].concat();
        let begun: Vec<Vec<i64>> = ids.chunks(s as usize).zip(starts).map(with_bos).collect();
        let most = s as usize - longest;
        let ending = Ending { eos, most };
        let mut session = Gpt2Session::new(self, 1 + longest, most)?;
        let texts = match decoding {
            Decoding::Sampling(sampling) => sampling.texts(&mut session, &begun, seeds, ending)?,
            Decoding::Beam(search) => {
                let found = search.texts(&mut session, &begun, ending)?;
                found.into_iter().map(|best| best.into_iter().next().map_or(Vec::new(), |h| h.tokens)).collect()
            }
            Decoding::Ancestral(_) => bail!("an autoregressive model writes token by token, not in steps"),
        };
        Ok(Written { texts, passes: session.passes(), positions: session.positions() })
    }
}

/// A baseline with everything around it that turns requests into text.
pub struct BaselineGenerator<'a> {
    /// The network.
    pub net: &'a dyn Writer,
    /// How it was trained.
    pub plan: &'a RunPlan,
    /// The tokenizer it was trained with.
    pub tokenizer: &'a Tokenizer,
    /// Rows of a batch.
    pub batch_rows: usize,
    /// Who shares in the work.
    pub comm: &'a dyn Comm,
    /// Fill the last batch up, so that all have one shape and a text depends on its seed and condition alone.
    pub one_shape: bool,
}

impl BaselineGenerator<'_> {
    /// Generates all texts; `progress` is told of finished ones. Batches are dealt out to the ranks in turn, and every rank gets
    /// all texts.
    ///
    /// # Errors
    /// If the model cannot write so, a condition is missing or superfluous, the network fails, or a rank is gone.
    pub fn generate(
        &self,
        decoding: &Decoding,
        requests: &[TextRequest],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Generation> {
        self.generate_keeping(decoding, requests, None, progress)
    }

    /// [`BaselineGenerator::generate`], which keeps finished batches, makes none that was kept before, and stops between two of them when it is
    /// asked to. For one process: several do not know what the others have.
    ///
    /// # Errors
    /// As there, or if a batch cannot be kept.
    pub fn generate_keeping(
        &self,
        decoding: &Decoding,
        requests: &[TextRequest],
        mut kept: Option<&mut Unfinished>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Generation> {
        let (rank, world) = (self.comm.rank() as usize, self.comm.world() as usize);
        let rows = self.batch_rows.max(1);
        let mut done = Generation::default();
        let before = kept.as_deref_mut().map(Unfinished::take_before).unwrap_or_default();
        let batches = text_batches(self.plan, requests, rows)?;
        let own = batches.iter().skip(rank).step_by(world).skip(before.len());
        before.into_iter().for_each(|batch| done.add(batch));
        progress(done.texts.len());
        for TextBatch { length, places } in own {
            if kept.as_deref_mut().is_some_and(|kept| !kept.go_on()) {
                break;
            }
            let filled = places.iter().map(|&place| requests[place].clone()).collect();
            let mut filled = tokenised(self.plan, self.tokenizer, filled)?;
            if let (true, Some(last)) = (self.one_shape, filled.last().cloned()) {
                filled.resize(rows, last);
            }
            let written = self.write(decoding, &filled, *length)?;
            let mut batch = Generation::default();
            batch.cost.add_batch(written.passes, 0, written.positions);
            for ((&place, request), text) in places.iter().zip(&filled).zip(&written.texts) {
                batch.texts.push(self.finish(place, request, text)?);
            }
            if let Some(kept) = kept.as_deref_mut() {
                kept.keep(&batch)?;
            }
            done.add(batch);
            progress(done.texts.len());
        }
        done.over_ranks(self.comm)
    }

    /// Writes the texts of one batch in rows of `s` positions.
    fn write(&self, decoding: &Decoding, requests: &[TextRequest], s: usize) -> Result<Written> {
        let b = requests.len();
        let longest = self.plan.span.max_input_length;
        let (ids, starts) = match longest {
            Some(_) => {
                let batch = collate(self.plan, self.tokenizer, requests)?;
                (batch.input_ids, batch.cond_len.iter().map(|&n| n as i64).collect())
            }
            None if requests.iter().any(|r| r.condition.is_some()) => {
                bail!(TAKES_NO_INPUT)
            }
            None => (vec![0; b * s], vec![0; b]),
        };
        let ids = Tensor::f_from_slice(&ids)?.f_view([b as i64, s as i64])?;
        let seeds: Vec<u64> = requests.iter().map(|r| r.seed).collect();
        let eos = i64::from(self.tokenizer.eos_id()?);
        let prompts = Prompts { seeds: &seeds, ids: &ids, starts: &starts, longest: longest.unwrap_or(0), eos };
        self.net.write(decoding, &prompts)
    }

    /// Cuts a text as ELF's are cut, and turns it into words.
    fn finish(&self, index: usize, request: &TextRequest, text: &[i64]) -> Result<GeneratedText> {
        let trim = Trim {
            eos: i64::from(self.tokenizer.eos_id()?),
            pad: i64::from(self.tokenizer.pad_id()?),
            max_input_length: 0,
        };
        let longest = self.plan.span.max_length - self.plan.span.max_input_length.unwrap_or(0);
        let cut = trim.row(&text[..text.len().min(longest)], 0);
        let (text, tokens) = words(self.tokenizer, &cut, trim.pad)?;
        Ok(GeneratedText {
            index,
            seed: request.seed,
            input: request.condition.clone(),
            input_cut: is_cut(self.plan, self.tokenizer, request)?,
            text,
            reference: request.reference.clone(),
            tokens,
            confidence: None,
        })
    }
}
