//! What a run is judged by while it is trained: losses on held-out rows, and texts.

use std::ops::ControlFlow;

use crate::error::{Context, fail};
use elf_data::{Dataset, Tokenizer};
use elf_eval::evaluation::{Evaluator, SampleSet};
use elf_flow::sampler::Registry;
use elf_train::{Comm, Metric, validation_loss_over_ranks};

use super::log::SharedEvents;
use super::training_judge::TrainingJudge;
use super::{ModelKind, TrainingInputs};
use crate::config::{BaselinePlan, RunPlan, Sampling, read_sampling};
use crate::eval::judge::Judge;
use crate::model::loaded::Method;
use crate::model::run_folder::RunFolder;
use crate::text::baseline_writer::Decoding;
use crate::text::flow_writer::check_sampling;
use crate::text::generated::{GeneratedText, MOST_TEXTS, TextRequest};
use crate::text::text_file::write_texts;
use crate::text::text_loop::{BatchOptions, TextLoop};
use crate::{Error, Event, Host, Result};

/// Texts of one batch at most: the global batch of many ranks would not fit one of them.
pub const ROWS_AT_ONCE: usize = 64;

/// Texts of each evaluation that are shown.
const TEXTS_SHOWN: usize = 16;

/// To whom wants texts from held-out inputs and names none.
const NO_INPUTS: &str = "online_eval generates from held-out inputs: set eval_data_path, or online_eval to false";

/// Judges a network by held-out data.
pub struct HeldOut<'a, 'h, S: ModelKind> {
    /// The run's plan.
    pub plan: &'a RunPlan,
    /// Its loss.
    pub objective: &'a S::Objective,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its kind of model.
    pub kind: &'a S,
    /// The held-out rows, if there are any.
    pub rows: Option<&'a Dataset>,
    /// The judge of perplexity, if there is one.
    pub judge: Option<&'a TrainingJudge>,
    /// Where texts are written.
    pub folder: &'a RunFolder,
    /// The calling program, which has the samplers and hears of the texts.
    pub host: &'a Host<'h>,
    /// TensorBoard's event file, if there is one; only on the rank that writes.
    pub events: Option<SharedEvents>,
}

/// How evaluations in training generate texts.
///
/// # Errors
/// If the file of sampling settings is missing, or a key or value in it is wrong.
fn sampling_settings(plan: &RunPlan, samplers: &Registry) -> Result<Vec<Sampling>> {
    Ok(match &plan.config.evaluation.sampling_configs_path {
        Some(path) => read_sampling(path.as_ref(), samplers).context("sampling_configs_path")?,
        None => vec![Sampling::default_for(plan)],
    })
}

/// The ways in which evaluations in training generate.
fn methods(plan: &RunPlan, samplers: &Registry) -> Result<Vec<Method>> {
    let settings = sampling_settings(plan, samplers)?;
    Ok(match &plan.baseline {
        None => settings.into_iter().map(Method::Flow).collect(),
        Some(baseline) => {
            let decodings = Decoding::at_evaluations(plan, baseline, &settings).into_iter();
            decodings.map(|decoding| Method::Baseline { decoding, mbr: 1 }).collect()
        }
    })
}

/// Refuses evaluations that could not be made, before training begins.
///
/// # Errors
/// Names the key whose value makes no sense, alone, with this model or with these held-out rows.
pub fn check_evaluations(plan: &RunPlan, inputs: &TrainingInputs, samplers: &Registry) -> Result<()> {
    let config = &plan.config;
    if config.evaluation.eval_rows == 0 {
        fail!(
            setting("eval_rows"),
            "eval_rows is 0, and must be at least 1: to do without held-out rows, set eval_data_path to null"
        );
    }
    if !config.evaluation.online_eval {
        return Ok(());
    }
    if !(1..=MOST_TEXTS).contains(&config.evaluation.num_samples) {
        fail!(
            setting("num_samples"),
            "num_samples is {}, and must be at least 1 and at most {MOST_TEXTS}: without texts at evaluations, set online_eval to false",
            config.evaluation.num_samples
        );
    }
    if plan.span.max_input_length.is_some() && inputs.held_out.as_ref().is_none_or(Dataset::is_empty) {
        fail!(request, "{}", NO_INPUTS);
    }
    let settings = sampling_settings(plan, samplers)?;
    let checked = match &plan.baseline {
        None if settings.iter().any(|setting| setting.whole_words) => {
            let reason = "whole_words reads by the list of words in a model's folder, which a training has not: leave it out for evaluations";
            Err(Error::setting("whole_words", reason))
        }
        None => settings.iter().try_for_each(|setting| check_sampling(plan, setting, samplers)),
        // Of a file of settings, masked diffusion takes the steps alone, and a GPT-2 nothing.
        Some(BaselinePlan::Mdlm { .. }) if settings.iter().any(|setting| setting.num_sampling_steps == 0) => {
            Err(Error::setting("num_sampling_steps", "num_sampling_steps is 0: at least one step is needed"))
        }
        Some(_) => Ok(()),
    };
    match plan.config.evaluation.sampling_configs_path {
        Some(_) => checked.context("sampling_configs_path"),
        None => checked,
    }
}

impl<S: ModelKind> HeldOut<'_, '_, S> {
    /// Losses on held-out rows and, if the configuration wants them, metrics of generated texts, which are written to the
    /// run's folder. The ranks share the work, and all get the same.
    ///
    /// # Errors
    /// If data, network or disk fail, or a rank is gone.
    pub fn judge(&self, net: &S::Net, comm: &dyn Comm, step: u64) -> Result<Vec<Metric>> {
        let mut metrics = self.losses(net, comm)?;
        if self.plan.config.evaluation.online_eval {
            let requests = self.requests()?;
            for method in methods(self.plan, self.host.samplers())? {
                let texts = self.texts(net, comm, &requests, &method)?;
                metrics.extend(self.judge_texts(&method.name(), texts, comm, step)?);
            }
        }
        Ok(metrics)
    }

    /// Texts that are made in one way. The ranks share the work, and all get the same.
    fn texts(
        &self,
        net: &S::Net,
        comm: &dyn Comm,
        requests: &[TextRequest],
        method: &Method,
    ) -> Result<Vec<GeneratedText>> {
        let rows = self.plan.batch_rows.min(requests.len()).clamp(1, ROWS_AT_ONCE);
        let writer = self.kind.writer(net, method, rows, self.host.samplers())?;
        let options =
            BatchOptions { rows, one_shape: true, candidates: method.candidates()?, ..BatchOptions::default() };
        let texts = TextLoop { writer: &*writer, plan: self.plan, tokenizer: self.tokenizer, comm };
        Ok(texts.generate(requests, options, None, &mut |_| ControlFlow::Continue(()))?.texts)
    }

    fn losses(&self, net: &S::Net, comm: &dyn Comm) -> Result<Vec<Metric>> {
        let Some(dataset) = self.rows else {
            return Ok(Vec::new());
        };
        let collator = self.plan.collator(self.tokenizer)?;
        let mut rows: Vec<usize> = (0..dataset.len().min(self.plan.config.evaluation.eval_rows)).collect();
        let (rank, world) = (comm.rank() as usize, comm.world() as usize);
        let size = (self.plan.batch_rows / world).max(1);
        let lengths = match self.plan.has_rows_of_equal_length() {
            true => dataset.lengths(collator.config())?,
            false => vec![0; dataset.len()],
        };
        // A stable sort: without lengths, rows keep their order.
        rows.sort_by_key(|&row| lengths[row]);
        let of_one_length = rows.chunk_by(|&one, &other| lengths[one] == lengths[other]);
        let mut first = 0;
        let all: Vec<(u64, &[usize])> = of_one_length
            .flat_map(|rows| rows.chunks(size))
            .map(|rows| {
                first += rows.len() as u64;
                (first - rows.len() as u64, rows)
            })
            .collect();
        let batches = all.into_iter().skip(rank).step_by(world).map(|(first, rows)| {
            let examples = dataset.examples(rows).map_err(elf_train::Error::source)?;
            let mut batch = collator.collate(&examples).map_err(elf_train::Error::source)?;
            let config = &self.plan.config;
            config.given.shares().give(&mut batch, config.seed, 0, rows.iter().map(|&row| row as u64));
            Ok((first, self.kind.held_out_batch(batch).map_err(elf_train::Error::source)?))
        });
        let result = validation_loss_over_ranks(self.objective, net, batches, self.plan.config.seed, comm)?;
        let named = |name: &str, value: f64| Metric { name: format!("validation_{name}"), value };
        let mut metrics = vec![named("loss", result.loss)];
        metrics.extend(result.terms.iter().chain(&result.by_time).map(|t| named(&t.name, t.mean)));
        Ok(metrics)
    }

    fn judge_texts(&self, name: &str, texts: Vec<GeneratedText>, comm: &dyn Comm, step: u64) -> Result<Vec<Metric>> {
        if comm.rank() == 0 {
            write_texts(&self.folder.samples().join(format!("step-{step:08}-{name}.jsonl")), &texts)?;
        }
        let shown: Vec<&str> = texts.iter().take(TEXTS_SHOWN).map(|text| text.text.as_str()).collect();
        if comm.rank() == 0 {
            self.host.send(Event::Texts { step, setting: name, texts: &shown });
        }
        if let Some(events) = &self.events {
            events.borrow_mut().texts(step, &format!("{name}/texts"), &shown)?;
        }
        let (words, references): (Vec<_>, Vec<_>) = texts.into_iter().map(|t| (t.text, t.reference)).unzip();
        let references = references.into_iter().map(|reference| reference.map(|text| vec![text])).collect();
        // A young model may write nothing yet, which is no reason to stop.
        let scored = self.judge.filter(|_| words.iter().any(|text| !text.trim().is_empty()));
        let evaluator = Evaluator {
            judge: scored.map(TrainingJudge::judge).transpose()?.map(Judge::named),
            ..Evaluator::default()
        };
        let found = evaluator
            .evaluate(name, &[SampleSet { name: name.to_owned(), texts: words, references, ..SampleSet::default() }])?;
        Ok(found.metrics().iter().map(|m| Metric { name: format!("{name}/{}", m.name), value: m.value }).collect())
    }

    /// What to generate: as many texts as the configuration says, conditional ones from held-out rows.
    fn requests(&self) -> Result<Vec<TextRequest>> {
        let (count, seed) = (self.plan.config.evaluation.num_samples, self.plan.config.seed);
        if self.plan.span.max_input_length.is_none() {
            return Ok(TextRequest::unconditional(seed, count));
        }
        let Some(dataset) = self.rows else {
            fail!(request, "{}", NO_INPUTS);
        };
        TextRequest::of_rows(seed, dataset, count, self.tokenizer)
    }
}
