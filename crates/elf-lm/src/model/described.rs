//! A model whose parameters are not read yet: how it was trained, and where it lies.

use std::path::{Path, PathBuf};

use elf_core::weights::Weights;
use elf_data::Tokenizer;
use elf_hub::What;
use elf_model::ElfConfig;
use serde_json::{Value, json};

use super::content_hash::hash_of_folder;
use super::model_ref::hash_of_weights;
use super::same_latents::LatentsOf;
use super::{ModelRef, ModelSource};
use crate::config::{EncoderFiles, Facts, Overrides, RunConfig, RunPlan, Sampling, read_record, read_yaml};
use crate::error::{Context, fail};
use crate::text::text_latents::{TextLatents, encoder_folder};
use crate::{Host, Result, Silent};

/// The name of the settings that the released code leaves beside its checkpoints.
const RECORD: &str = "config.yml";

/// A model whose parameters are not read yet.
#[derive(Debug)]
pub struct DescribedModel {
    /// How it was trained.
    pub plan: RunPlan,
    /// The tokenizer it was trained with.
    pub tokenizer: Tokenizer,
    source: ModelSource,
    found: ModelRef,
    /// Whether `plan` says how the model was trained: of a file without settings beside it nothing is known.
    settings_known: bool,
}

impl DescribedModel {
    /// Reads how a model was trained; `source` says of files from elsewhere what lies not beside them.
    ///
    /// # Errors
    /// Says what is missing beside the file, or does not fit it.
    pub fn of(found: ModelRef, source: ModelSource, host: &Host) -> Result<Self> {
        let Some(run) = found.run() else {
            return Self::from_elsewhere(found, source, host);
        };
        if source.config.is_some()
            || source.tokenizer.is_some()
            || source.length.is_some()
            || !source.options.is_empty()
        {
            fail!(
                place(&source.path),
                "{} is a run of this program, which knows its own settings: leave --config, --option, --tokenizer and --length out",
                source.path.display()
            );
        }
        let (plan, tokenizer) = (run.plan.clone(), run.run.tokenizer()?);
        Ok(Self { plan, tokenizer, source, found, settings_known: true })
    }

    fn from_elsewhere(found: ModelRef, source: ModelSource, host: &Host) -> Result<Self> {
        let weights = found.weights(source.averaged)?;
        let model = ElfConfig::of_checkpoint(&weights)?;
        let (config, settings_known) = config_of(&weights, &source, host)?;
        let tokenizer = tokenizer_of(&weights, &config, &source, host)?;
        let entries = tokenizer.vocab_size() as i64;
        if entries != model.vocab_size {
            fail!(
                mismatch("the tokenizer"),
                "the tokenizer {} has {entries} entries, but the model in {} chooses among {}: name the tokenizer that it was trained with",
                tokenizer_path(&weights, &config, host)?.display(),
                weights.path().display(),
                model.vocab_size
            );
        }
        // How many rows it was trained on makes no difference to sampling.
        let facts = Facts {
            latent_dim: model.text_encoder_dim,
            vocab_size: model.vocab_size,
            rows: 1 << 40,
            // The released conditional models were trained on ids that end so.
            condition_eos: true,
            ranks: 1,
        };
        let mut plan = RunPlan::new(&config, facts, source.device)?;
        plan.model = model;
        Ok(Self { plan, tokenizer, source, found, settings_known })
    }

    /// Which model it is, and how it computes.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// Where it lies.
    pub fn found(&self) -> &ModelRef {
        &self.found
    }

    /// The folder of the sampling file that comes with the model: a run's, whichever of its checkpoints is named.
    pub fn folder(&self) -> &Path {
        self.found.run().map_or(self.source.path.as_path(), |run| run.run.root())
    }

    /// The guide of this model that settings name, if any does.
    ///
    /// # Errors
    /// If there are two, it cannot be found, or its latents are others than this model's.
    pub fn guide(&self, settings: &[Sampling], host: &Host) -> Result<Option<Self>> {
        let mut paths = settings.iter().filter_map(|setting| setting.guide.as_ref());
        let Some(path) = paths.next() else {
            return Ok(None);
        };
        if let Some(other) = paths.find(|other| *other != path) {
            fail!(setting("guide"), "{} and {} cannot both be the guide of one call", path.display(), other.display());
        }
        let guide = || format!("the guide {}", path.display());
        // Settings that describe the model say nothing of its guide.
        let source = ModelSource {
            path: host.locate(path, What::ElfCheckpoint).with_context(guide)?,
            config: None,
            options: Vec::new(),
            tokenizer: None,
            encoder: None,
            length: None,
            ..self.source.clone()
        };
        let found = ModelRef::open(&source.path).and_then(|found| found.elf_only("which cannot guide a flow"));
        let described = found.and_then(|found| Self::of(found, source, host)).with_context(guide)?;
        // A guide that does not write in the same blocks is refused for that, and has other latents for that alone.
        if described.plan.objective.block_size == self.plan.objective.block_size
            && let Some(difference) = self.latents_of().difference(&described.latents_of())
        {
            fail!(
                mismatch("the guide"),
                "the guide {} cannot guide {}: {difference}; a guide must be of the same latents",
                path.display(),
                self.source.path.display()
            );
        }
        Ok(Some(described))
    }

    fn latents_of(&self) -> LatentsOf<'_> {
        let config = self.settings_known.then_some(&self.plan.config);
        LatentsOf { tokenizer: self.tokenizer.fingerprint(), config, encoder: self.plan.encoder() }
    }

    /// The encoder that it was trained with.
    ///
    /// # Errors
    /// If it cannot be loaded, or is another one.
    pub fn text_latents(&self, host: &Host) -> Result<TextLatents> {
        let ModelSource { device, .. } = self.source;
        TextLatents::of_run(&self.plan, self.named_encoder(), device, self.source.block_precision(), host)
    }

    /// The encoder that the caller names. Of a file from elsewhere the configuration has it already.
    fn named_encoder(&self) -> Option<&Path> {
        self.source.encoder.as_deref().filter(|_| self.found.run().is_some())
    }

    /// Tells it, and the encoder that it needs, from any other by their contents, wherever they lie.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self, host: &Host) -> Result<Value> {
        // A run that knows its encoder by content takes no other.
        let known = self.plan.encoder().is_some();
        let encoder = (needs_encoder(&self.plan) && !known).then(|| self.hash_of_encoder(host)).transpose()?;
        Ok(json!({
            "plan": self.plan,
            "tokenizer": self.tokenizer.fingerprint(),
            "parameters": self.found.identity()?,
            "encoder": encoder,
        }))
    }

    fn hash_of_encoder(&self, host: &Host) -> Result<Vec<String>> {
        let files = match self.named_encoder() {
            Some(name) => {
                EncoderFiles { folder: host.locate(name, What::Encoder).context("--encoder")?, weights: None }
            }
            None => EncoderFiles::find(&self.plan.config, host)?,
        };
        let hash = |path: &PathBuf| match path.is_dir() {
            true => hash_of_folder(path, |_| true),
            false => hash_of_weights(path),
        };
        [files.folder].iter().chain(&files.weights).map(hash).collect()
    }
}

impl ModelSource {
    /// Finds the model and reads how it was trained and its tokenizer, but no parameters.
    ///
    /// # Errors
    /// If there is no such model, or something is missing beside it.
    pub fn describe(&self) -> Result<DescribedModel> {
        self.describe_for(&Host::new(&mut Silent))
    }

    /// [`ModelSource::describe`], with notes to `host`.
    ///
    /// # Errors
    /// As [`ModelSource::describe`].
    pub fn describe_for(&self, host: &Host) -> Result<DescribedModel> {
        let path = host.locate(&self.path, What::ElfCheckpoint)?;
        DescribedModel::of(ModelRef::open(&path)?, Self { path, ..self.clone() }, host)
    }
}

/// Whether conditions go through an encoder, or finished blocks do.
pub(super) fn needs_encoder(plan: &RunPlan) -> bool {
    plan.baseline.is_none() && (plan.span.max_input_length.is_some() || plan.objective.block_size.is_some())
}

/// The configuration of a model from elsewhere, and whether there is one that says how it was trained.
fn config_of(weights: &Weights, source: &ModelSource, host: &Host) -> Result<(RunConfig, bool)> {
    let warn = |line: String| host.warning(line);
    let options = Overrides::parse(&source.options)?;
    let beside = weights.path().with_file_name(RECORD);
    let mut config: RunConfig = match &source.config {
        None if beside.is_file() => {
            host.note(format!("settings: {}", beside.display()));
            read_record(&beside, &options, warn)?
        }
        path => read_yaml(path.as_deref(), &options, warn)?,
    };
    let text = |path: &PathBuf| path.to_str().context("a path that is not Unicode").map(str::to_owned);
    if let Some(path) = &source.tokenizer {
        config.data.tokenizer_name = Some(text(path)?);
    }
    config.data.max_length = source.length.unwrap_or(config.data.max_length);
    // A model that was exported beside its encoder is found together with it from anywhere, whatever lies there.
    let encoder = weights.path().parent().unwrap_or(Path::new(".")).join(&config.encoder.encoder_model_name);
    if let Some(named) = &source.encoder {
        config.encoder.encoder_model_name = text(named)?;
    } else if encoder.join("config.json").is_file() {
        config.encoder.encoder_model_name = encoder.to_string_lossy().into_owned();
    }
    Ok((config, source.config.is_some() || beside.is_file()))
}

fn tokenizer_path(weights: &Weights, config: &RunConfig, host: &Host) -> Result<PathBuf> {
    let own = weights.path().with_file_name("tokenizer.json");
    match &config.data.tokenizer_name {
        Some(name) => host.locate(name, What::Tokenizer),
        None if own.is_file() => Ok(own),
        None => encoder_folder(config, host),
    }
}

fn tokenizer_of(weights: &Weights, config: &RunConfig, source: &ModelSource, host: &Host) -> Result<Tokenizer> {
    let path = tokenizer_path(weights, config, host)?;
    Tokenizer::load(&path).with_context(|| {
        format!(
            "the tokenizer {} cannot be used; {} brings none, so name one with --tokenizer",
            path.display(),
            source.path.display()
        )
    })
}
