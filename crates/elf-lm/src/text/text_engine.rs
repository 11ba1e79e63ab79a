//! Texts that share the passes of their networks, each from when it is admitted until it is finished.

use std::ops::ControlFlow;

use elf_core::Network;
use elf_flow::{PoolStep, RunId, RunPool, Shared};
use elf_train::Solo;

use super::flow_writer::{FlowParts, FlowWriter};
use super::generated::{Generation, TextRequest};
use super::text_loop::{BatchOptions, TextEvent, TextLoop};
use super::text_run::GenerateOptions;
use crate::config::{Candidates, Sampling};
use crate::error::fail;
use crate::model::loaded::{Guide, Loaded, Net, guide_of};
use crate::{Error, Model, Result};

/// A listener to the events of one text of an engine, which returns `Break` to cancel it.
pub type EngineWatch<'a> = Box<dyn FnMut(TextEvent<'_>) -> ControlFlow<()> + 'a>;

/// The number of a text within its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TextId(pub(crate) u64);

/// What a step of an engine brought.
#[derive(Debug)]
pub struct EngineStep {
    /// The texts that have ended: each with its cost and frames, or with the reason why there is none.
    pub finished: Vec<(TextId, Result<Generation>)>,
    /// Rows of the step's pass through a network; 0 if there was none.
    pub rows: usize,
}

/// Generation for many callers at once: a text is admitted at any time, joins the others at the next step, and leaves when it is
/// finished. Texts of one model share each pass through its network, whatever their times and settings; texts of several models
/// take turns. A text is a function of its request and its setting, up to rounding.
///
/// ```
/// use std::ops::ControlFlow;
/// use elf_lm::{GenerateOptions, TextEngine, TextRequest};
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en");
/// let model = elf_lm::Model::load(folder)?;
/// let (sampling, options) = (model.sampling()?.steps(2), GenerateOptions::default());
/// let mut engine = TextEngine::new(8, false);
/// let first = TextRequest::from_input(7, "Ein Programm zum Zeichnen");
/// let first = engine.admit(&model, &first, &sampling, &options, Box::new(|_| ControlFlow::Continue(())))?;
/// engine.step();
/// let second = TextRequest::from_input(8, "Eine Bibliothek");
/// let second = engine.admit(&model, &second, &sampling, &options, Box::new(|_| ControlFlow::Continue(())))?;
/// let mut texts = Vec::new();
/// while engine.rows() > 0 {
///     for (id, made) in engine.step().finished {
///         texts.push((id, made?.texts.remove(0).text));
///     }
/// }
/// assert!(texts.len() == 2 && texts.iter().any(|(id, _)| *id == first) && texts.iter().any(|(id, _)| *id == second));
/// # Ok::<(), elf_lm::Error>(())
/// ```
pub struct TextEngine<'a> {
    pool: RunPool<'a, Result<Generation>>,
    texts: Vec<Text>,
    /// Rows for which memory was found to suffice.
    most: usize,
    /// The models for which it was.
    checked: Vec<&'a Model>,
    admitted: u64,
}

/// A text that is being generated: a run for each of its candidates.
struct Text {
    id: TextId,
    candidates: Candidates,
    /// The runs that have not ended, each with the number of its candidate.
    runs: Vec<(RunId, usize)>,
    made: Generation,
}

impl<'a> TextEngine<'a> {
    /// An engine for at most `rows` texts at once, candidates included. With `one_shape` every pass is filled up to that many, and
    /// a text does not depend on others even in rounding.
    pub fn new(rows: usize, one_shape: bool) -> Self {
        let pool = RunPool::new(one_shape.then_some(rows));
        Self { pool, texts: Vec::new(), most: rows, checked: Vec::new(), admitted: 0 }
    }

    /// The number of texts that are being generated, candidates included.
    pub fn rows(&self) -> usize {
        self.pool.len()
    }

    /// Begins a text of a flow. `watch` hears of its steps and frames, with several candidates of those of the first. Of
    /// `options`, `batch_size` and `one_shape` have no effect.
    ///
    /// # Errors
    /// If the model is a baseline, its guide cannot be used, or memory does not suffice. What else is wrong is the text's result.
    pub fn admit(
        &mut self,
        model: &'a Model,
        request: &TextRequest,
        sampling: &Sampling,
        options: &GenerateOptions,
        watch: EngineWatch<'a>,
    ) -> Result<TextId> {
        if !self.checked.iter().any(|checked| std::ptr::eq(*checked, model)) {
            model.described().check_memory(self.most)?;
            self.checked.push(model);
        }
        let (guide, candidates) = (model.guide(sampling)?, sampling.candidates()?);
        let id = TextId(self.admitted);
        self.admitted += 1;
        let mut text = Text { id, candidates, runs: Vec::new(), made: Generation::default() };
        let mut watch = Some(watch);
        for (number, request) in request.candidates(candidates.count()).enumerate() {
            let watch = watch.take().unwrap_or_else(|| Box::new(|_| ControlFlow::Continue(())));
            let run = TextOfRun { model, guide, request, sampling: sampling.clone(), options: options.clone(), watch };
            text.runs.push((self.pool.add(run.checked()?)?, number));
        }
        self.texts.push(text);
        Ok(id)
    }

    /// Makes one pass of a network with all texts that wait for it.
    pub fn step(&mut self) -> EngineStep {
        let PoolStep { finished, rows } = self.pool.step();
        let ended = finished.into_iter().filter_map(|(run, made)| {
            // Plain tensor operations panic.
            self.ended(run, made.unwrap_or_else(|_| Err(Error::defect())))
        });
        EngineStep { finished: ended.collect(), rows }
    }

    /// Takes over the result of a run. Returns the text if that was its last candidate.
    fn ended(&mut self, run: RunId, made: Result<Generation>) -> Option<(TextId, Result<Generation>)> {
        let place = self.texts.iter().position(|text| text.runs.iter().any(|(own, _)| *own == run))?;
        let text = &mut self.texts[place];
        match made {
            Ok(mut made) => {
                let (_, number) = text.runs.swap_remove(text.runs.iter().position(|(own, _)| *own == run)?);
                made.texts.iter_mut().for_each(|text| text.index = number);
                text.made.add(made);
                if !text.runs.is_empty() {
                    return None;
                }
                let Text { id, candidates, mut made, .. } = self.texts.swap_remove(place);
                made.texts.sort_by_key(|text| text.index);
                Some((id, Ok(made.chosen(candidates))))
            }
            Err(error) => {
                let id = text.id;
                self.cancel(id);
                Some((id, Err(error)))
            }
        }
    }

    /// Ends a text, if it is being generated, without a result.
    pub fn cancel(&mut self, id: TextId) {
        if let Some(place) = self.texts.iter().position(|text| text.id == id) {
            let text = self.texts.swap_remove(place);
            text.runs.into_iter().for_each(|(run, _)| self.pool.cancel(run));
        }
    }
}

/// All that the run of one text needs.
struct TextOfRun<'a> {
    model: &'a Model,
    guide: Option<&'a Guide>,
    request: TextRequest,
    sampling: Sampling,
    options: GenerateOptions,
    watch: EngineWatch<'a>,
}

impl<'a> TextOfRun<'a> {
    /// The run.
    fn checked(self) -> Result<impl FnOnce(&Shared<'_, 'a>) -> Result<Generation> + 'a> {
        let Self { model, guide, request, sampling, options, mut watch } = self;
        let Loaded { described, net: Net::Flow(net), latents } = model.loaded() else {
            fail!(request, "texts of baselines are generated in whole batches");
        };
        let (plan, tokenizer, net) = (&described.plan, &described.tokenizer, net.as_ref());
        let guide = guide_of(&sampling, net, plan, guide);
        Ok(move |shared: &Shared<'_, 'a>| {
            let net = shared.network(net);
            let guide = guide.map(|(net, trained)| (shared.network(net), trained));
            let guide = guide.as_ref().map(|(net, trained)| (net as &dyn Network, *trained));
            let parts = FlowParts {
                net: &net,
                plan,
                tokenizer,
                latents: latents.as_ref(),
                guide,
                lexicon: described.lexicon.as_ref(),
            };
            let writer = FlowWriter::new(parts, &sampling, options.grid_seed, None, model.samplers())?;
            let GenerateOptions { ref trace, frames, log_probs, .. } = options;
            let batch =
                BatchOptions { rows: 1, one_shape: false, candidates: Candidates::ONE, trace, frames, log_probs };
            TextLoop { writer: &writer, plan, tokenizer, comm: &Solo }.generate(&[request], batch, None, &mut *watch)
        })
    }
}
