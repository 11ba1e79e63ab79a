//! Batches of latents for a network or a loop of one's own.

use elf_core::device::DeviceChoice;
use elf_data::{Cursor, Loader, Share};
use elf_flow::LatentBatch;
use elf_train::BatchSource;
use serde_json::{Value, json};
use tch::Device;

use super::TrainingInputs;
use super::latent_cache::LatentCache;
use super::model_kind::{encoded, loader};
use crate::config::{RunConfig, RunPlan};
use crate::text::text_latents::TextLatents;
use crate::{Host, Result, Silent};

/// The training data of a configuration and the encoder that makes latents of it.
///
/// ```
/// use elf_data::Cursor;
/// use elf_lm::{LatentData, RunConfig};
/// # let here = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
/// # let folder = tempfile::tempdir()?;
/// # let tokenizer = elf_data::Tokenizer::load(here.join("models/mini-encoder"))?;
/// # let texts = folder.path().join("texts.txt");
/// # std::fs::write(&texts, "a red house\nthe green tree\na small dog\nold books\n".repeat(2))?;
/// # let data = folder.path().join("data");
/// # let prepared = elf_data::shards::PrepareConfig::new(vec![texts], &data, "text");
/// # elf_data::shards::prepare(&prepared, &tokenizer, &mut |_| std::ops::ControlFlow::Continue(()))?;
/// # let (encoder, data) = (here.join("models/mini-encoder").display().to_string(), data.display().to_string());
/// let config = RunConfig::default().with(|config| {
///     config.encoder.encoder_model_name = encoder;
///     config.data.data_path = Some(data);
///     config.data.max_length = 8;
///     config.batches.batch_size = Some(4);
/// });
/// let data = LatentData::open(&config)?;
/// let batch = data.batches(Cursor::default())?.next_batch()?;
/// assert_eq!(batch.latents.size()[..2], [4, 8]); // [B, S, C]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LatentData {
    plan: RunPlan,
    inputs: TrainingInputs,
}

impl LatentData {
    /// Opens data, tokenizer and encoder, on a GPU if there is one.
    ///
    /// # Errors
    /// Names the key that is missing or impossible.
    pub fn open(config: &RunConfig) -> Result<Self> {
        Self::open_on(config, DeviceChoice::Auto.resolve()?, &Host::new(&mut Silent))
    }

    /// [`LatentData::open`], on a device of choice and with what `host` offers.
    ///
    /// # Errors
    /// As [`LatentData::open`].
    pub fn open_on(config: &RunConfig, device: Device, host: &Host) -> Result<Self> {
        let inputs = TrainingInputs::load(config, device, host)?;
        let plan = inputs.plan(config, device, 1)?;
        inputs.latents()?;
        Ok(Self { plan, inputs })
    }

    /// The sizes and settings that follow from configuration and data.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// The encoder and its normalisation.
    ///
    /// # Errors
    /// If the configuration is that of a baseline.
    pub fn latents(&self) -> Result<&TextLatents> {
        self.inputs.latents()
    }

    /// Batches in the order of the configuration's seed, without end; epoch after epoch, each in an order of its own.
    ///
    /// # Errors
    /// If the data cannot be read.
    pub fn batches(&self, from: Cursor) -> Result<LatentBatches<'_>> {
        let share = Share { rank: 0, world: 1, micro_batch: self.plan.batch_rows };
        let loader = loader(&self.plan, &self.inputs, share, from)?;
        let cache = LatentCache::of_plan(&self.plan);
        Ok(LatentBatches { plan: &self.plan, latents: self.latents()?, cache, loader, after: from })
    }
}

/// Batches of latents; also as a [`BatchSource`] for [`elf_train::run()`].
pub struct LatentBatches<'a> {
    plan: &'a RunPlan,
    latents: &'a TextLatents,
    cache: Option<LatentCache>,
    loader: Loader,
    after: Cursor,
}

impl LatentBatches<'_> {
    /// The next batch.
    ///
    /// # Errors
    /// If rows cannot be read, ids and encoder do not fit together, or libtorch fails.
    pub fn next_batch(&mut self) -> Result<LatentBatch> {
        let loaded = self.loader.next_batch()?;
        let batch = encoded(self.plan, self.latents, self.cache.as_ref(), loaded.batch)?;
        self.after = loaded.after;
        Ok(batch)
    }

    /// Where the batches continue.
    pub fn cursor(&self) -> Cursor {
        self.after
    }
}

impl BatchSource for LatentBatches<'_> {
    fn next_batch(&mut self) -> Result<Option<LatentBatch>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Some(LatentBatches::next_batch(self)?))
    }

    fn cursor(&self) -> Value {
        json!(self.after)
    }
}
