//! What differs between the kinds of models that are trained in one loop.

use std::marker::PhantomData;
use std::sync::Arc;

use anyhow::Result;
use elf_data::{Batch, Cursor, Grouping, Loader, LoaderConfig, Order, OrderConfig, Share, Tokenizer};
use elf_flow::LatentBatch;
use elf_model::Elf;
use elf_train::{BatchSource, Comm, TrainingObjective};
use serde_json::{Value, json};

use super::held_out::ROWS_AT_ONCE;
use super::{Materials, sampling_settings};
use crate::config::{RunPlan, SamplingSetting};
use crate::text::text_generation::{GeneratedText, TextGenerator, TextRequest};
use crate::text::text_latents::TextLatents;

/// A kind of model: how token rows become what its loss is a function of, and how it writes texts.
pub trait Subject {
    /// The network.
    type Net;
    /// The loss.
    type Objective: TrainingObjective<Self::Net>;

    /// What the loss of a batch of token rows is a function of.
    ///
    /// # Errors
    /// If ids and model do not fit together, or libtorch fails.
    fn batch(&self, batch: Batch) -> Result<BatchOf<Self>>;

    /// Texts at an evaluation, under the name of each setting that they were made with. The ranks share the work, and all get the same.
    ///
    /// # Errors
    /// If a setting makes no sense for this model, the network fails, or a rank is gone.
    fn texts(
        &self,
        net: &Self::Net,
        comm: &dyn Comm,
        requests: &[TextRequest],
    ) -> Result<Vec<(String, Vec<GeneratedText>)>>;
}

/// What a subject's loss is a function of.
pub type BatchOf<S> = <<S as Subject>::Objective as TrainingObjective<<S as Subject>::Net>>::Batch;

/// An embedded language flow, learned by `O`.
pub struct ElfSubject<'a, O> {
    plan: &'a RunPlan,
    tokenizer: &'a Tokenizer,
    latents: &'a TextLatents,
    objective: PhantomData<O>,
}

impl<'a, O> ElfSubject<'a, O> {
    /// With the encoder that its latents come from.
    pub fn new(plan: &'a RunPlan, tokenizer: &'a Tokenizer, latents: &'a TextLatents) -> Self {
        Self { plan, tokenizer, latents, objective: PhantomData }
    }
}

impl<O: TrainingObjective<Elf, Batch = LatentBatch>> Subject for ElfSubject<'_, O> {
    type Net = Elf;
    type Objective = O;

    fn batch(&self, batch: Batch) -> Result<LatentBatch> {
        // In blocks, no token sees the filling of a row; in batches of equal length there is none.
        match self.plan.objective.block_size.is_some() || self.plan.has_rows_of_equal_length() {
            true => self.latents.encode(&batch.trimmed()),
            false => self.latents.encode(&batch),
        }
    }

    fn texts(&self, net: &Elf, comm: &dyn Comm, requests: &[TextRequest]) -> Result<Vec<(String, Vec<GeneratedText>)>> {
        let generator = TextGenerator {
            net,
            plan: self.plan,
            guide: None,
            tokenizer: self.tokenizer,
            latents: Some(self.latents),
            grid_seed: self.plan.config.seed,
            batch_rows: rows_at_once(self.plan, requests),
            comm,
            one_shape: true,
        };
        let written = |setting: &SamplingSetting| {
            Ok((setting.name(), generator.generate(setting, requests, &[], &mut |_| {})?.texts))
        };
        sampling_settings(self.plan)?.iter().map(written).collect()
    }
}

/// How many texts an evaluation makes at once.
pub fn rows_at_once(plan: &RunPlan, requests: &[TextRequest]) -> usize {
    plan.batch_rows.min(requests.len()).clamp(1, ROWS_AT_ONCE)
}

/// Token batches from the loader as a subject takes them.
pub struct SubjectBatches<'a, S> {
    loader: Loader,
    subject: &'a S,
    after: Cursor,
}

impl<'a, S: Subject> SubjectBatches<'a, S> {
    /// Begins at `from`.
    ///
    /// # Errors
    /// If the data cannot be shared out so, or read.
    pub fn start(plan: &RunPlan, materials: &Materials, subject: &'a S, share: Share, from: Cursor) -> Result<Self> {
        let rows_per_step = plan.batch_rows * plan.config.grad_accum_steps;
        let rows = materials.train.len();
        let collator = plan.collator(&materials.tokenizer)?;
        let mut order = Order::new(OrderConfig { seed: plan.config.seed, rows, global_batch: rows_per_step }, share)?;
        if plan.config.group_by_length {
            let grouping = if plan.has_rows_of_equal_length() { Grouping::Equal } else { Grouping::Similar };
            order = order.grouped_by_length(grouping, materials.train.lengths(collator.config())?.into())?;
        }
        let loader = Loader::start(
            Arc::clone(&materials.train),
            collator,
            order,
            from,
            LoaderConfig { label_drop_prob: plan.label_drop_prob, ..LoaderConfig::default() },
        )?;
        Ok(Self { loader, subject, after: from })
    }
}

impl<S: Subject> BatchSource<BatchOf<S>> for SubjectBatches<'_, S> {
    fn next_batch(&mut self) -> Result<Option<BatchOf<S>>, Box<dyn std::error::Error + Send + Sync>> {
        let loaded = self.loader.next_batch()?;
        let batch = self.subject.batch(loaded.batch)?;
        self.after = loaded.after;
        Ok(Some(batch))
    }

    fn cursor(&self) -> Value {
        json!(self.after)
    }
}
