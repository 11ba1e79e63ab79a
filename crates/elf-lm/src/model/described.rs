//! A model's location, plan and tokenizer, read before its parameters.

use std::fs;
use std::path::{Path, PathBuf};

use elf_core::weights::Weights;
use elf_data::Tokenizer;
use elf_flow::Lexicon;
use elf_hub::What;
use elf_model::ElfConfig;
use serde_json::{Value, json};

use super::content_hash::hash_of_folder;
use super::model_ref::hash_of_weights;
use super::same_latents::LatentsOf;
use super::word_list::lexicon_of;
use super::{ModelRef, ModelSource};
use crate::config::{
    EncoderFiles, Facts, LENGTHS, LengthLaw, Overrides, RunConfig, RunPlan, Sampling, read_record, read_yaml,
};
use crate::error::{Context, fail};
use crate::text::text_latents::{TextLatents, encoder_folder};
use crate::{Host, Result, Silent};

/// The configuration file that the released code writes beside its checkpoints.
const CONFIG_FILE: &str = "config.yml";

/// A model's location, plan and tokenizer; its parameters are not read yet.
#[derive(Debug)]
pub struct DescribedModel {
    /// The plan that the model was trained by.
    pub plan: RunPlan,
    /// The tokenizer that the model was trained with.
    pub tokenizer: Tokenizer,
    /// The words that its texts may consist of, if the model's folder has a list of them ([`WORDS`](super::WORDS)).
    pub lexicon: Option<Lexicon>,
    source: ModelSource,
    found: ModelRef,
    /// Whether `plan` is that of the training; for an external file without a configuration it consists of defaults.
    settings_known: bool,
}

impl DescribedModel {
    /// Reads a model's plan and tokenizer. For an external file, `source` provides what is not stored beside it.
    ///
    /// # Errors
    /// If a file is missing or does not fit the model.
    pub fn of(found: ModelRef, source: ModelSource, host: &Host) -> Result<Self> {
        let described = Self::without_words(found, source, host)?;
        let lexicon = lexicon_of(described.folder(), &described.tokenizer)?;
        Ok(Self { lexicon, ..described })
    }

    fn without_words(found: ModelRef, source: ModelSource, host: &Host) -> Result<Self> {
        let Some(run) = found.run() else {
            return Self::of_external(found, source, host);
        };
        let (mut plan, tokenizer) = (run.plan.clone(), run.run.tokenizer()?);
        let another_length = source.length.is_some() && plan.lengths.is_none();
        if source.config.is_some() || source.tokenizer.is_some() || another_length || !source.options.is_empty() {
            fail!(
                place(&source.path),
                "{} is a run of this program, which knows its own settings: leave --config, --option, --tokenizer and --length out",
                source.path.display()
            );
        }
        let lengths = plan.lengths.take();
        set_lengths(&mut plan, lengths, source.length)?;
        Ok(Self { plan, tokenizer, lexicon: None, source, found, settings_known: true })
    }

    fn of_external(found: ModelRef, source: ModelSource, host: &Host) -> Result<Self> {
        let weights = found.weights(source.averaged)?;
        weights.notes().iter().for_each(|note| host.note(note));
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
        // The number of training rows has no effect on sampling.
        let facts = Facts {
            latent_dim: model.text_encoder_dim,
            vocab_size: model.vocab_size,
            rows: 1 << 40,
            // The released conditional models were trained on conditions that end in EOS.
            condition_eos: true,
            ranks: 1,
        };
        let mut plan = RunPlan::new(&config, facts, source.device)?;
        plan.model = model;
        let lengths = weights.path().with_file_name(LENGTHS);
        if plan.has_rows_of_equal_length() && lengths.is_file() {
            let text = fs::read_to_string(&lengths).with_context(|| lengths.display())?;
            let law = serde_json::from_str(&text).with_context(|| lengths.display())?;
            set_lengths(&mut plan, Some(law), source.length)?;
        }
        Ok(Self { plan, tokenizer, lexicon: None, source, found, settings_known })
    }

    /// The options that the model is read with.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// The model's location.
    pub fn found(&self) -> &ModelRef {
        &self.found
    }

    /// The folder of the model's sampling file: for every checkpoint of a run, the run's folder; for a parameter file, its folder.
    pub fn folder(&self) -> &Path {
        let named = self.source.path.as_path();
        let own = if named.is_file() { elf_files::folder_of(named) } else { named };
        self.found.run().map_or(own, |run| run.run.root())
    }

    /// The guide that the settings name, or `None`.
    ///
    /// # Errors
    /// If the settings name several guides, the guide cannot be read, or its latents differ from this model's.
    pub fn guide(&self, settings: &[Sampling], host: &Host) -> Result<Option<Self>> {
        let mut paths = settings.iter().filter_map(|setting| setting.guide.as_ref());
        let Some(path) = paths.next() else {
            return Ok(None);
        };
        if let Some(other) = paths.find(|other| *other != path) {
            fail!(setting("guide"), "{} and {} cannot both be the guide of one call", path.display(), other.display());
        }
        let guide = || format!("the guide {}", path.display());
        // The options that describe this model do not apply to its guide.
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
        // A guide with another block size is refused for that later, and may have other latents for that reason only.
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

    /// Refuses an encoder that is named for a run whose texts are written without one.
    ///
    /// # Errors
    /// If there is such an encoder.
    pub fn check_encoder_is_used(&self) -> Result<()> {
        match (&self.source.encoder, self.found.run()) {
            (Some(name), Some(_)) if !needs_encoder(&self.plan) => fail!(
                setting("encoder"),
                "the encoder {} has no effect: this model writes its texts without one. Leave --encoder out",
                name.display()
            ),
            _ => Ok(()),
        }
    }

    /// Loads the encoder that the model was trained with.
    ///
    /// # Errors
    /// If it cannot be loaded, or is another encoder.
    pub fn text_latents(&self, host: &Host) -> Result<TextLatents> {
        let ModelSource { device, .. } = self.source;
        TextLatents::of_run(&self.plan, self.named_encoder(), device, self.source.block_precision(), host)
    }

    /// The encoder that the caller names for a run; for an external file, the configuration already has it.
    fn named_encoder(&self) -> Option<&Path> {
        self.source.encoder.as_deref().filter(|_| self.found.run().is_some())
    }

    /// An identifier of the model and the encoder that it needs, which depends on their content, not their location.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self, host: &Host) -> Result<Value> {
        // A run that recorded its encoder's hash accepts no other encoder.
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
    /// Locates the model and reads its plan and tokenizer, but not its parameters.
    ///
    /// # Errors
    /// If there is no such model, or a file is missing.
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

/// Whether generation needs the encoder: for conditions, for given tokens or for finished blocks.
pub(super) fn needs_encoder(plan: &RunPlan) -> bool {
    let given = plan.span.max_input_length.is_some() || !plan.config.given.shares().is_none();
    plan.baseline.is_none() && (given || plan.objective.block_size.is_some())
}

/// Gives a plan the distribution of its texts' lengths, if there is one, or the single length that is `wanted`.
fn set_lengths(plan: &mut RunPlan, lengths: Option<LengthLaw>, wanted: Option<usize>) -> Result<()> {
    let Some(wanted) = wanted.filter(|_| lengths.is_some()) else {
        plan.lengths = lengths;
        return Ok(());
    };
    let most = plan.span.max_length - plan.span.max_input_length.unwrap_or(0);
    if !(1..=most).contains(&wanted) {
        fail!(setting("length"), "--length {wanted}: texts of this model have from 1 to {most} tokens");
    }
    plan.lengths = Some(LengthLaw::only(wanted));
    Ok(())
}

/// The configuration of an external model, and whether it is that of the training rather than the defaults.
fn config_of(weights: &Weights, source: &ModelSource, host: &Host) -> Result<(RunConfig, bool)> {
    let warn = |line: String| host.warning(line);
    let options = Overrides::parse(&source.options)?;
    let beside = match &source.config {
        None => config_beside(weights.path(), &options, host)?,
        Some(_) => None,
    };
    let settings_known = source.config.is_some() || beside.is_some();
    let mut config = match beside {
        Some(config) => config,
        None => read_yaml(source.config.as_deref(), &options, warn)?,
    };
    let text = |path: &PathBuf| path.to_str().context("a path that is not Unicode").map(str::to_owned);
    if let Some(path) = &source.tokenizer {
        config.data.tokenizer_name = Some(text(path)?);
    }
    // Of a model that knows the lengths of its texts, rows stay as they are.
    if !weights.path().with_file_name(LENGTHS).is_file() {
        config.data.max_length = source.length.unwrap_or(config.data.max_length);
    }
    match &source.encoder {
        Some(named) => config.encoder.encoder_model_name = text(named)?,
        None => find_encoder(&mut config, weights.path()),
    }
    Ok((config, settings_known))
}

/// The configuration beside the parameter file `weights`, if there is one.
///
/// # Errors
/// If it cannot be read.
pub fn config_beside(weights: &Path, options: &Overrides, host: &Host) -> Result<Option<RunConfig>> {
    let beside = weights.with_file_name(CONFIG_FILE);
    if !beside.is_file() {
        return Ok(None);
    }
    host.note(format!("settings: {}", beside.display()));
    let mut config = read_record(&beside, options, |line| host.warning(line))?;
    find_encoder(&mut config, weights);
    Ok(Some(config))
}

/// Counts a relative encoder path from the folder of `weights` first, so that both can be moved together.
fn find_encoder(config: &mut RunConfig, weights: &Path) {
    let encoder = elf_files::folder_of(weights).join(&config.encoder.encoder_model_name);
    if encoder.join("config.json").is_file() {
        config.encoder.encoder_model_name = encoder.to_string_lossy().into_owned();
    }
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
            "the tokenizer {} cannot be used; {} has none of its own: name one with --tokenizer",
            path.display(),
            source.path.display()
        )
    })
}
