//! The loop from requests to texts, batch by batch, for every kind of model.

use std::ops::ControlFlow;

use elf_data::Tokenizer;
use elf_train::Comm;

use super::conditions::Conditions;
use super::generated::{GeneratedText, Generation, MOST_TEXTS, TextRequest};
use super::text_batches::{TextBatch, text_batches};
use super::text_file::Unfinished;
use crate::config::{Candidates, RunPlan};
use crate::error::fail;
use crate::{Error, Result};

/// An event during generation.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TextEvent<'a> {
    /// A finished step of the current batch.
    Step {
        /// Number of finished steps.
        done: usize,
        /// Total number of steps.
        steps: usize,
    },
    /// The texts of the current batch, decoded at time `t`.
    Frame {
        /// The time, in [0, 1]; for models with blocks, the fraction of the row that is generated.
        t: f64,
        /// The text of each row.
        rows: &'a [TextFrame],
    },
    /// A finished batch.
    Finished {
        /// Its texts. With several candidates per text, all of them.
        texts: &'a [GeneratedText],
        /// Number of finished requests.
        done: usize,
    },
}

/// A text that forms.
#[derive(Debug, Clone, PartialEq)]
pub struct TextFrame {
    /// The index of its request. With several candidates per text, of the candidate.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Its tokens, without padding.
    pub tokens: Vec<i64>,
    /// The natural log-probability with which each token was read.
    pub log_probs: Option<Vec<f32>>,
}

/// The texts that are decoded while they form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Frames {
    /// Those of the first request's batch, at the times of the trace.
    #[default]
    First,
    /// Those of all batches, at the times of the trace.
    All,
    /// Those of all batches, after every step.
    EveryStep,
}

/// A listener to [`TextEvent`]s, which returns `Break` to cancel.
pub type TextWatch<'a> = dyn FnMut(TextEvent<'_>) -> ControlFlow<()> + 'a;

/// One batch for a [`BatchWriter`].
pub struct TextBatchRequest<'a> {
    /// The requests, one per row.
    pub requests: &'a [&'a TextRequest],
    /// Their conditions; `None` for unconditional models.
    pub conditions: Option<&'a Conditions>,
    /// S, positions per row.
    pub length: usize,
    /// Number of rows to pad the batch to.
    pub rows: usize,
    /// Times at which to decode the texts while they form.
    pub trace: &'a [f64],
    /// Whether the texts are also decoded after every step.
    pub every_step: bool,
}

/// The text of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenRow {
    /// Its token ids, padding included.
    pub ids: Vec<i64>,
    /// The natural log-probability with which each was read, if the model has one.
    pub log_probs: Option<Vec<f32>>,
    /// The decoder's confidence, if the model has one.
    pub confidence: Option<f64>,
}

/// The texts of one batch.
#[derive(Debug, Default)]
pub struct WrittenBatch {
    /// Each request's text.
    pub rows: Vec<WrittenRow>,
    /// Passes through the network.
    pub passes: u64,
    /// Passes over finished prefixes.
    pub context_passes: u64,
    /// Positions generated.
    pub positions: u64,
}

/// An event within a batch.
pub enum BatchEvent {
    /// Number of finished steps, and total number of steps.
    Step(usize, usize),
    /// A time, and each row decoded at that time.
    Frame(f64, Vec<WrittenRow>),
}

/// A model with a method of generation.
pub trait BatchWriter {
    /// Generates one batch.
    ///
    /// # Errors
    /// If the model fails, or [`Error::Cancelled`] if `watch` breaks.
    fn write(
        &self,
        batch: &TextBatchRequest,
        watch: &mut dyn FnMut(BatchEvent) -> ControlFlow<()>,
    ) -> Result<WrittenBatch>;
}

/// Options for batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BatchOptions<'a> {
    /// Rows per batch.
    pub rows: usize,
    /// Whether to pad the last batch, so that all have one shape and a text depends on its seed and condition alone.
    pub one_shape: bool,
    /// Candidates per text, and the rule by which one is kept.
    pub candidates: Candidates,
    /// Times at which to decode texts while they form.
    pub trace: &'a [f64],
    /// The texts that are decoded then.
    pub frames: Frames,
    /// Whether texts have the log-probabilities of their tokens.
    pub log_probs: bool,
}

/// The loop from requests to texts.
pub struct TextLoop<'a> {
    /// The model.
    pub writer: &'a dyn BatchWriter,
    /// The plan that it was trained by.
    pub plan: &'a RunPlan,
    /// The tokenizer that it was trained with.
    pub tokenizer: &'a Tokenizer,
    /// The processes that share the work.
    pub comm: &'a dyn Comm,
}

impl TextLoop<'_> {
    /// Generates all texts, each chosen among its candidates. With `kept`, generation can be resumed: finished batches
    /// are saved, saved ones are skipped, and the loop ends early when `kept` says so. Only a single process may use
    /// `kept`.
    ///
    /// Batches are distributed over the ranks in turn. They do not depend on the number of ranks, and neither do the
    /// texts. Every rank returns all texts.
    ///
    /// # Errors
    /// If a condition is missing or not expected, the network fails, a batch cannot be saved, a rank has ended, or
    /// `watch` cancels.
    pub fn generate(
        &self,
        requests: &[TextRequest],
        options: BatchOptions,
        kept: Option<&mut Unfinished>,
        watch: &mut TextWatch,
    ) -> Result<Generation> {
        let (candidates, setting) = (options.candidates, options.candidates.setting());
        let count = candidates.count();
        if requests.len() > MOST_TEXTS / count {
            fail!(
                setting(setting),
                "{} texts with {setting} {count} are more than the {MOST_TEXTS} that one call makes: ask for fewer",
                requests.len()
            );
        }
        let wanted: Vec<TextRequest> = requests.iter().flat_map(|request| request.candidates(count)).collect();
        let made = self.own_batches(&wanted, options, kept, watch)?.over_ranks(self.comm)?;
        Ok(made.chosen(candidates))
    }

    /// Generates this rank's batches.
    fn own_batches(
        &self,
        requests: &[TextRequest],
        options: BatchOptions,
        mut kept: Option<&mut Unfinished>,
        watch: &mut TextWatch,
    ) -> Result<Generation> {
        let mut done = Generation::default();
        let batches = text_batches(self.plan, self.tokenizer, requests, options.rows)?;
        let before = kept.as_deref_mut().map(Unfinished::take_before).unwrap_or_default();
        let own = batches.iter().skip(self.comm.rank() as usize).step_by(self.comm.world() as usize).skip(before.len());
        before.into_iter().for_each(|batch| done.add(batch));
        let finished =
            |texts: &[GeneratedText], done: &Generation, watch: &mut TextWatch| match watch(TextEvent::Finished {
                texts,
                done: done.texts.len() / options.candidates.count(),
            }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Cancelled),
            };
        finished(&[], &done, watch)?;
        for batch in own {
            if kept.as_deref_mut().is_some_and(|kept| !kept.go_on()) {
                break;
            }
            let made = self.batch(requests, batch, options, watch)?;
            if let Some(kept) = kept.as_deref_mut() {
                kept.keep(&made)?;
            }
            let first = done.texts.len();
            done.add(made);
            finished(&done.texts[first..], &done, watch)?;
        }
        Ok(done)
    }

    fn batch(
        &self,
        requests: &[TextRequest],
        batch: &TextBatch,
        options: BatchOptions,
        watch: &mut TextWatch,
    ) -> Result<Generation> {
        let own: Vec<&TextRequest> = batch.places.iter().map(|&place| &requests[place]).collect();
        let conditions = Conditions::of(self.plan, self.tokenizer, &own)?;
        // Frames are kept of the first request only.
        let shown = batch.places.iter().position(|&place| place == 0);
        let all = options.frames != Frames::First;
        let request = TextBatchRequest {
            requests: &own,
            conditions: conditions.as_ref(),
            length: batch.length,
            rows: if options.one_shape { options.rows.max(1) } else { own.len() },
            trace: if all || shown.is_some() { options.trace } else { &[] },
            every_step: options.frames == Frames::EveryStep,
        };
        let mut made = Generation::default();
        let mut failed = None;
        let written = self.writer.write(&request, &mut |event| match event {
            BatchEvent::Step(done, steps) => watch(TextEvent::Step { done, steps }),
            BatchEvent::Frame(t, rows) => match self.frames(&rows, &batch.places) {
                Ok(rows) => {
                    made.frames.extend(shown.map(|row| (t, rows[row].text.clone())));
                    watch(TextEvent::Frame { t, rows: &rows })
                }
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            },
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let WrittenBatch { rows, passes, context_passes, positions } = written?;
        made.cost.add_batch(passes, context_passes, positions);
        for (row, (written, &index)) in rows.into_iter().zip(&batch.places).enumerate() {
            let Decoded { text, tokens, log_probs } = written.decode(self.tokenizer)?;
            made.texts.push(GeneratedText {
                index,
                seed: own[row].seed,
                input: own[row].condition.clone().or_else(|| own[row].template.as_ref().map(ToString::to_string)),
                input_cut: conditions.as_ref().is_some_and(|conditions| conditions.is_cut(row)),
                filled: filled(&tokens, conditions.as_ref().and_then(|all| all.given(row)), self.tokenizer)?,
                text,
                reference: own[row].reference.clone(),
                hidden: own[row].hidden.clone(),
                tokens,
                log_probs: log_probs.filter(|_| options.log_probs),
                confidence: written.confidence,
            });
        }
        Ok(made)
    }

    /// The texts of rows, whose requests have these indices.
    fn frames(&self, rows: &[WrittenRow], indices: &[usize]) -> Result<Vec<TextFrame>> {
        let frames = rows.iter().zip(indices).map(|(row, &index)| {
            let Decoded { text, tokens, log_probs } = row.decode(self.tokenizer)?;
            Ok(TextFrame { index, text, tokens, log_probs })
        });
        frames.collect()
    }
}

/// The text of each run of tokens that are not `given`.
fn filled(tokens: &[i64], given: Option<&[bool]>, tokenizer: &Tokenizer) -> Result<Vec<String>> {
    let Some(given) = given else { return Ok(Vec::new()) };
    let places: Vec<usize> = (0..tokens.len().min(given.len())).collect();
    let runs = places.chunk_by(|&one, &next| given[one] == given[next]).filter(|run| !given[run[0]]);
    let ids = |run: &[usize]| run.iter().map(|&place| i32::try_from(tokens[place])).collect::<Result<Vec<_>, _>>();
    runs.map(|run| Ok(tokenizer.decode(&ids(run)?)?)).collect()
}

impl WrittenRow {
    /// The row without padding, and its text.
    ///
    /// # Errors
    /// If the tokenizer has no padding token, or an id is not in its vocabulary.
    pub(crate) fn decode(&self, tokenizer: &Tokenizer) -> Result<Decoded> {
        let pad = i64::from(tokenizer.pad_id()?);
        let places: Vec<usize> = (0..self.ids.len()).filter(|&place| self.ids[place] != pad).collect();
        let tokens: Vec<i64> = places.iter().map(|&place| self.ids[place]).collect();
        let narrow: Vec<i32> = tokens.iter().map(|&id| i32::try_from(id)).collect::<Result<_, _>>()?;
        let log_probs = self.log_probs.as_ref().map(|all| places.iter().map(|&place| all[place]).collect());
        Ok(Decoded { text: tokenizer.decode(&narrow)?, tokens, log_probs })
    }
}

/// A row without padding.
pub(crate) struct Decoded {
    pub(crate) text: String,
    pub(crate) tokens: Vec<i64>,
    pub(crate) log_probs: Option<Vec<f32>>,
}
