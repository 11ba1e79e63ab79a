//! What differs between the kinds of models that are trained in one loop.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::Result;
use elf_data::{Batch, Cursor, Grouping, Loader, LoaderConfig, Order, OrderConfig, Share, Tokenizer};
use elf_flow::LatentBatch;
use elf_flow::sampler::Registry;
use elf_model::Elf;
use elf_train::{BatchSource, TrainingObjective};
use serde_json::{Value, json};

use super::TrainingInputs;
use super::latent_cache::LatentCache;
use crate::config::RunPlan;
use crate::error::fail;
use crate::model::loaded::{Method, guide_of};
use crate::text::flow_writer::{FlowParts, FlowWriter};
use crate::text::text_latents::{TextLatents, latent_batch};
use crate::text::text_loop::BatchWriter;

/// A kind of model: how token rows become what its loss is a function of, and how it writes texts.
pub trait ModelKind {
    /// The network.
    type Net;
    /// The loss.
    type Objective: TrainingObjective<Self::Net>;

    /// What the loss of a batch of token rows is a function of.
    ///
    /// # Errors
    /// If ids and model do not fit together, or libtorch fails.
    fn batch(&self, batch: Batch) -> Result<BatchOf<Self>>;

    /// [`ModelKind::batch`] for rows that are read rarely, of which nothing is kept in memory.
    ///
    /// # Errors
    /// As [`ModelKind::batch`].
    fn held_out_batch(&self, batch: Batch) -> Result<BatchOf<Self>> {
        self.batch(batch)
    }

    /// A writer of texts in batches of `rows`.
    ///
    /// # Errors
    /// If the method makes no sense for this model.
    fn writer<'n>(
        &'n self,
        net: &'n Self::Net,
        method: &Method,
        rows: usize,
        samplers: &Registry,
    ) -> Result<Box<dyn BatchWriter + 'n>>;
}

/// What a kind's loss is a function of.
pub type BatchOf<S> = <<S as ModelKind>::Objective as TrainingObjective<<S as ModelKind>::Net>>::Batch;

/// An embedded language flow, learned by `O`.
pub struct ElfKind<'a, O> {
    plan: &'a RunPlan,
    tokenizer: &'a Tokenizer,
    latents: &'a TextLatents,
    cache: Option<LatentCache>,
    objective: PhantomData<O>,
}

impl<'a, O> ElfKind<'a, O> {
    /// With the encoder that its latents come from.
    pub fn new(plan: &'a RunPlan, tokenizer: &'a Tokenizer, latents: &'a TextLatents) -> Self {
        Self { plan, tokenizer, latents, cache: LatentCache::of_plan(plan), objective: PhantomData }
    }
}

impl<O: TrainingObjective<Elf, Batch = LatentBatch>> ModelKind for ElfKind<'_, O> {
    type Net = Elf;
    type Objective = O;

    fn batch(&self, batch: Batch) -> Result<LatentBatch> {
        encoded(self.plan, self.latents, self.cache.as_ref(), batch)
    }

    fn held_out_batch(&self, batch: Batch) -> Result<LatentBatch> {
        encoded(self.plan, self.latents, None, batch)
    }

    fn writer<'n>(
        &'n self,
        net: &'n Elf,
        method: &Method,
        rows: usize,
        samplers: &Registry,
    ) -> Result<Box<dyn BatchWriter + 'n>> {
        let Method::Flow(sampling) = method else {
            fail!(request, "{} is no way for a flow to generate", method.name());
        };
        let Self { plan, tokenizer, latents, .. } = *self;
        let parts = FlowParts {
            net,
            plan,
            tokenizer,
            latents: Some(latents),
            guide: guide_of(sampling, net, plan, None),
            lexicon: None,
        };
        Ok(Box::new(FlowWriter::new(parts, sampling, plan.config.seed, Some(rows), samplers)?))
    }
}

/// The latents of a batch of token rows as a plan's objective takes them, from a cache if there is one.
///
/// # Errors
/// If ids and encoder do not fit together, or libtorch fails.
pub fn encoded(
    plan: &RunPlan,
    latents: &TextLatents,
    cache: Option<&LatentCache>,
    batch: Batch,
) -> Result<LatentBatch> {
    let batch = plan.without_filling(batch);
    match cache {
        Some(cache) => latent_batch(&batch, cache.latents(latents, &batch)?),
        None => latents.encode(&batch),
    }
}

/// The token rows of a plan in the order of its seed, from `from` on.
///
/// # Errors
/// If the data cannot be shared out so, or read.
pub fn loader(plan: &RunPlan, inputs: &TrainingInputs, share: Share, from: Cursor) -> Result<Loader> {
    let rows_per_step = plan.batch_rows * plan.config.optimization.grad_accum_steps;
    let rows = inputs.train.len();
    let collator = plan.collator(&inputs.tokenizer)?;
    let mut order = Order::new(OrderConfig { seed: plan.config.seed, rows, global_batch: rows_per_step }, share)?;
    if plan.config.batches.group_by_length {
        let grouping = if plan.has_rows_of_equal_length() { Grouping::Equal } else { Grouping::Similar };
        order = order.grouped_by_length(grouping, inputs.train.lengths(collator.config())?.into())?;
    }
    let config = LoaderConfig {
        label_drop_prob: plan.label_drop_prob,
        given: plan.config.given.shares(),
        ..LoaderConfig::default()
    };
    Ok(Loader::start(Arc::clone(&inputs.train), collator, order, from, config)?)
}

/// Token batches from the loader as a kind takes them.
pub struct KindBatches<'a, S> {
    loader: Loader,
    kind: &'a S,
    after: Cursor,
}

impl<'a, S: ModelKind> KindBatches<'a, S> {
    /// Begins at `from`.
    ///
    /// # Errors
    /// If the data cannot be shared out so, or read.
    pub fn start(plan: &RunPlan, inputs: &TrainingInputs, kind: &'a S, share: Share, from: Cursor) -> Result<Self> {
        Ok(Self { loader: loader(plan, inputs, share, from)?, kind, after: from })
    }
}

impl<S: ModelKind> BatchSource<BatchOf<S>> for KindBatches<'_, S> {
    fn next_batch(&mut self) -> Result<Option<BatchOf<S>>, Box<dyn std::error::Error + Send + Sync>> {
        let loaded = self.loader.next_batch()?;
        let batch = self.kind.batch(loaded.batch)?;
        self.after = loaded.after;
        Ok(Some(batch))
    }

    fn cursor(&self) -> Value {
        json!(self.after)
    }
}
