//! From requests for text to text: batch after batch, whatever kind of model writes them.

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

/// Something that happens while texts are generated.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TextEvent<'a> {
    /// The batch in hand has made `done` of `steps` steps.
    Step {
        /// Steps made.
        done: usize,
        /// Steps in all.
        steps: usize,
    },
    /// The texts of the batch in hand as they would be read at time `t`.
    Frame {
        /// The time, in [0, 1]; of texts in blocks the share of the row that is written.
        t: f64,
        /// The text of each row.
        texts: &'a [String],
    },
    /// A batch is finished.
    Finished {
        /// Its texts. With several candidates per text, all of them.
        texts: &'a [GeneratedText],
        /// Requests that are finished.
        done: usize,
    },
}

/// A listener to [`TextEvent`]s, which breaks to cancel.
pub type TextWatch<'a> = dyn FnMut(TextEvent<'_>) -> ControlFlow<()> + 'a;

/// One batch for a [`BatchWriter`].
pub struct TextBatchRequest<'a> {
    /// The requests, one per row.
    pub requests: &'a [&'a TextRequest],
    /// Their conditions; `None` for models of unconditional text.
    pub conditions: Option<&'a Conditions>,
    /// S, positions of a row.
    pub length: usize,
    /// Rows to fill the batch up to.
    pub rows: usize,
    /// Times at which texts are shown as they form.
    pub trace: &'a [f64],
}

/// The text of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenRow {
    /// Its tokens, padding included.
    pub ids: Vec<i64>,
    /// How sure the model is of them, if it says.
    pub confidence: Option<f64>,
}

/// The texts of one batch.
#[derive(Debug, Default)]
pub struct WrittenBatch {
    /// Each request's text.
    pub rows: Vec<WrittenRow>,
    /// Passes through the network.
    pub passes: u64,
    /// Passes over finished blocks.
    pub context_passes: u64,
    /// Positions that were written.
    pub positions: u64,
}

/// What happens inside a batch.
pub enum BatchEvent {
    /// Steps made, and steps in all.
    Step(usize, usize),
    /// A time, and the tokens of each row as they would be read then.
    Frame(f64, Vec<Vec<i64>>),
}

/// A model that writes texts in one way.
pub trait BatchWriter {
    /// Writes one batch.
    ///
    /// # Errors
    /// If the model fails, or [`Error::Cancelled`] if `watch` breaks.
    fn write(
        &self,
        batch: &TextBatchRequest,
        watch: &mut dyn FnMut(BatchEvent) -> ControlFlow<()>,
    ) -> Result<WrittenBatch>;
}

/// How requests become batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchOptions<'a> {
    /// Rows of a batch.
    pub rows: usize,
    /// Whether the last batch is filled up, so that all have one shape and a text depends on its seed and condition alone.
    pub one_shape: bool,
    /// Candidates per text, and which of them is kept.
    pub candidates: Candidates,
    /// Times at which the texts of the first request's batch are shown as they form.
    pub trace: &'a [f64],
}

/// A writer with everything around it that turns requests into text.
pub struct TextLoop<'a> {
    /// The model.
    pub writer: &'a dyn BatchWriter,
    /// How it was trained.
    pub plan: &'a RunPlan,
    /// The tokenizer it was trained with.
    pub tokenizer: &'a Tokenizer,
    /// The processes that share the work.
    pub comm: &'a dyn Comm,
}

impl TextLoop<'_> {
    /// Generates all texts, each chosen among the candidates that `options` asks for. Finished batches go to `kept`, and none is made
    /// that is there already: between two batches this stops where `kept` says so. For one process: several do not know what the
    /// others have.
    ///
    /// Batches are dealt out to the ranks in turn. They are the batches that one process would make, so texts do not depend on
    /// how many ranks there are; every rank gets all of them.
    ///
    /// # Errors
    /// If a condition is missing or superfluous, the network fails, a batch cannot be kept, a rank is gone, or `watch` cancels.
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

    /// This rank's batches.
    fn own_batches(
        &self,
        requests: &[TextRequest],
        options: BatchOptions,
        mut kept: Option<&mut Unfinished>,
        watch: &mut TextWatch,
    ) -> Result<Generation> {
        let mut done = Generation::default();
        let batches = text_batches(self.plan, requests, options.rows)?;
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
        // The first text is the one that is shown as it forms.
        let shown = batch.places.iter().position(|&place| place == 0);
        let request = TextBatchRequest {
            requests: &own,
            conditions: conditions.as_ref(),
            length: batch.length,
            rows: if options.one_shape { options.rows.max(1) } else { own.len() },
            trace: if shown.is_some() { options.trace } else { &[] },
        };
        let mut made = Generation::default();
        let mut failed = None;
        let written = self.writer.write(&request, &mut |event| match event {
            BatchEvent::Step(done, steps) => watch(TextEvent::Step { done, steps }),
            BatchEvent::Frame(t, rows) => {
                let texts: Result<Vec<String>> = rows.iter().map(|ids| Ok(self.words(ids)?.0)).collect();
                match texts {
                    Ok(texts) => {
                        made.frames.extend(shown.map(|row| (t, texts[row].clone())));
                        watch(TextEvent::Frame { t, texts: &texts })
                    }
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let WrittenBatch { rows, passes, context_passes, positions } = written?;
        made.cost.add_batch(passes, context_passes, positions);
        for (row, (written, &index)) in rows.into_iter().zip(&batch.places).enumerate() {
            let (text, tokens) = self.words(&written.ids)?;
            made.texts.push(GeneratedText {
                index,
                seed: own[row].seed,
                input: own[row].condition.clone(),
                input_cut: conditions.as_ref().is_some_and(|conditions| conditions.is_cut(row)),
                text,
                reference: own[row].reference.clone(),
                tokens,
                confidence: written.confidence,
            });
        }
        Ok(made)
    }

    /// Words and tokens of a row.
    fn words(&self, ids: &[i64]) -> Result<(String, Vec<i64>)> {
        let pad = i64::from(self.tokenizer.pad_id()?);
        let tokens: Vec<i64> = ids.iter().copied().filter(|&id| id != pad).collect();
        let narrow: Vec<i32> = tokens.iter().map(|&id| i32::try_from(id)).collect::<Result<_, _>>()?;
        Ok((self.tokenizer.decode(&narrow)?, tokens))
    }
}
