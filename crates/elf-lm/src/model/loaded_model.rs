//! A trained network as a user names it: a run of this program, a checkpoint of it, or a file from elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Network, Precision, PrecisionPolicy};
use elf_data::Tokenizer;
use elf_flow::Trained;
use elf_hub::What;
use elf_model::{Elf, ElfConfig};
use serde_json::{Value, json};
use tch::Device;

use crate::Reporter;
use crate::config::{Facts, Overrides, RunConfig, RunPlan, SamplingSetting, read_record, read_yaml};
use crate::hub;
use crate::model::run_folder::{FoundModel, no_run};
use crate::model::same_latents::LatentsOf;
use crate::text::text_latents::{EncoderFiles, TextLatents, encoder_folder};

/// Which model, and how it computes.
#[derive(Debug, Clone)]
pub struct ModelSource {
    /// A run's folder (its latest checkpoint is used) or a checkpoint's; or a parameter file from elsewhere: a PyTorch checkpoint of
    /// the released code, safetensors, an index of shards, or a folder with one.
    pub path: PathBuf,
    /// For a file from elsewhere: the configuration it was trained with.
    pub config: Option<PathBuf>,
    /// For a file from elsewhere: settings over the configuration's, as `key=value`.
    pub options: Vec<String>,
    /// For a file from elsewhere: the tokenizer's file or folder.
    pub tokenizer: Option<PathBuf>,
    /// The text encoder, if it is not where it was in training.
    pub encoder: Option<PathBuf>,
    /// For an exported model or a file from elsewhere: positions per text.
    pub length: Option<usize>,
    /// Whether the raw trained parameters are used instead of their running averages.
    pub no_ema: bool,
    /// Whether it computes in fp32 even where the device supports bf16.
    pub f32: bool,
    /// Whether the vocabulary head and the projections between latents and blocks compute in bf16, too.
    pub heads_bf16: bool,
}

/// What the released code calls the settings that it leaves beside its checkpoints.
const RECORD: &str = "config.yml";

impl ModelSource {
    /// The precision of the parts of a network whose blocks compute in `precision`.
    pub fn policy(&self, precision: Precision) -> PrecisionPolicy {
        if self.heads_bf16 { PrecisionPolicy::uniform(precision) } else { PrecisionPolicy::with_blocks(precision) }
    }
}

/// A trained network, ready to sample from.
pub struct LoadedModel {
    /// How it was trained.
    pub plan: RunPlan,
    /// The tokenizer it was trained with.
    pub tokenizer: Tokenizer,
    /// The network.
    pub net: Elf,
    /// The encoder, for conditional models and those that write block after block.
    pub latents: Option<TextLatents>,
    /// Where the user says that the encoder is.
    named_encoder: Option<PathBuf>,
}

/// A trained network whose numbers are not read yet: how it was trained, and where it lies.
#[derive(Debug)]
pub struct DescribedModel {
    /// How it was trained.
    pub plan: RunPlan,
    /// The tokenizer it was trained with.
    pub tokenizer: Tokenizer,
    parameters: Parameters,
    /// Where the user says that the encoder is.
    named_encoder: Option<PathBuf>,
    /// Whether `plan` says how the model was trained: of a file without settings beside it nothing is known.
    settings_known: bool,
}

#[derive(Debug)]
enum Parameters {
    OfRun(Box<FoundModel>),
    Elsewhere(Weights),
}

impl DescribedModel {
    /// Of a run that was found, or of a file from elsewhere.
    ///
    /// # Errors
    /// Says what is missing beside the file, or does not fit it.
    pub fn of(found: Option<FoundModel>, args: &ModelSource, device: Device, events: &Reporter) -> Result<Self> {
        match found {
            Some(found) => Self::of_run(found, args),
            None => Self::from_elsewhere(args, device, events),
        }
    }

    /// The guide of this model that settings name, if any does.
    ///
    /// # Errors
    /// If there are two, it cannot be found, or its latents are others than this model's.
    pub fn guide(
        &self,
        settings: &[SamplingSetting],
        args: &ModelSource,
        device: Device,
        events: &Reporter,
    ) -> Result<Option<Self>> {
        let model = &args.path;
        let mut paths = settings.iter().filter_map(|setting| setting.guide.as_ref());
        let Some(path) = paths.next() else { return Ok(None) };
        if let Some(other) = paths.find(|other| *other != path) {
            bail!("{} and {} cannot both be the guide of one call", path.display(), other.display());
        }
        let guide = || format!("the guide {}", path.display());
        // What the model is told beside its file is about the model alone.
        let args = ModelSource {
            path: hub::locate(path, What::ElfCheckpoint).with_context(guide)?,
            config: None,
            options: Vec::new(),
            tokenizer: None,
            encoder: None,
            length: None,
            ..args.clone()
        };
        let found = FoundModel::find(&args.path)?.map(|found| found.elf_only("which cannot guide a flow"));
        let found = found.transpose().with_context(guide)?;
        let described = Self::of(found, &args, device, events).with_context(guide)?;
        // A guide that does not write in the same blocks is refused for that, and has other latents for that alone.
        if described.plan.objective.block_size == self.plan.objective.block_size
            && let Some(difference) = self.latents_of().difference(&described.latents_of())
        {
            bail!(
                "the guide {} cannot guide {}: {difference}; a guide must be of the same latents",
                path.display(),
                model.display()
            );
        }
        Ok(Some(described))
    }

    fn latents_of(&self) -> LatentsOf<'_> {
        let config = self.settings_known.then_some(&self.plan.config);
        LatentsOf { tokenizer: self.tokenizer.fingerprint(), config, encoder: self.plan.encoder() }
    }

    /// Reads its numbers; without the encoder.
    ///
    /// # Errors
    /// If they are damaged, or those of another network.
    pub fn load(self, args: &ModelSource, device: Device, precision: Precision) -> Result<LoadedModel> {
        let Self { plan, tokenizer, parameters, named_encoder, .. } = self;
        let policy = args.policy(precision);
        let net = match parameters {
            Parameters::OfRun(found) => {
                let net = Elf::unset(plan.model.clone(), policy, device)?;
                found.load_into(net.params(), args.no_ema)?;
                net
            }
            Parameters::Elsewhere(weights) => Elf::of_weights(&weights, policy, device)?,
        };
        Ok(LoadedModel { plan, tokenizer, net, latents: None, named_encoder })
    }

    /// Reads the numbers of the model, its encoder if it needs one, and its guide.
    ///
    /// # Errors
    /// If one of them is damaged, or another than the model was trained with.
    pub fn load_with_guide(
        self,
        guide: Option<Self>,
        args: &ModelSource,
        device: Device,
        precision: Precision,
    ) -> Result<(LoadedModel, Option<LoadedModel>)> {
        let model = self.load(args, device, precision)?.with_encoder(device, precision)?;
        let guide = guide.map(|guide| guide.load(args, device, precision)).transpose().context("the guide")?;
        Ok((model, guide))
    }

    /// Tells it, and the encoder that it needs, from any other by their contents, wherever they lie.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self) -> Result<Value> {
        let parameters = match &self.parameters {
            // It holds the hashes of the files beside it.
            Parameters::OfRun(found) => json!(found.checkpoint.state()),
            Parameters::Elsewhere(weights) => json!(hash_of_weights(weights.path())?),
        };
        // A run that knows its encoder by content takes no other.
        let known = self.plan.encoder().is_some();
        let encoder = (needs_encoder(&self.plan) && !known).then(|| self.hash_of_encoder()).transpose()?;
        Ok(json!({
            "plan": self.plan, "tokenizer": self.tokenizer.fingerprint(), "parameters": parameters, "encoder": encoder,
        }))
    }

    fn hash_of_encoder(&self) -> Result<Vec<String>> {
        let files = match &self.named_encoder {
            Some(name) => {
                EncoderFiles { folder: hub::locate(name, What::Encoder).context("--encoder")?, weights: None }
            }
            None => EncoderFiles::find(&self.plan.config)?,
        };
        let hash = |path: &PathBuf| match path.is_dir() {
            true => hash_of_folder(path, |_| true),
            false => hash_of_weights(path),
        };
        [files.folder].iter().chain(&files.weights).map(hash).collect()
    }

    fn of_run(found: FoundModel, args: &ModelSource) -> Result<Self> {
        if args.config.is_some() || args.tokenizer.is_some() || args.length.is_some() || !args.options.is_empty() {
            bail!(
                "{} is a run of this program, which knows its own settings: leave --config, --option, --tokenizer and --length out",
                args.path.display()
            );
        }
        let (plan, tokenizer) = (found.plan.clone(), found.run.tokenizer()?);
        let parameters = Parameters::OfRun(Box::new(found));
        Ok(Self { plan, tokenizer, parameters, named_encoder: args.encoder.clone(), settings_known: true })
    }

    fn from_elsewhere(args: &ModelSource, device: Device, events: &Reporter) -> Result<Self> {
        let which = if args.no_ema { ParamKind::Trained } else { ParamKind::Averaged };
        let weights = Weights::open(&args.path, which).with_context(|| no_run(&args.path))?;
        let model = ElfConfig::of_checkpoint(&weights)?;
        let mut options = args.options.clone();
        if let Some(path) = &args.tokenizer {
            options
                .push(format!("tokenizer_name={}", serde_json::to_string(path).context("a path that is not Unicode")?));
        }
        options.extend(args.length.map(|n| format!("max_length={n}")));
        let warn = |line: String| events.warning(line);
        let options = Overrides(options);
        let beside = weights.path().with_file_name(RECORD);
        let settings_known = args.config.is_some() || beside.is_file();
        let mut config: RunConfig = match &args.config {
            None if beside.is_file() => {
                events.note(format!("settings: {}", beside.display()));
                read_record(&beside, &options, warn)?
            }
            path => read_yaml(path.as_deref(), &options, warn)?,
        };
        // A model that was exported beside its encoder is found together with it from anywhere, whatever lies there.
        let encoder = weights.path().parent().unwrap_or(Path::new(".")).join(&config.encoder_model_name);
        if let Some(named) = &args.encoder {
            config.encoder_model_name = named.to_str().context("a path that is not Unicode")?.to_owned();
        } else if encoder.join("config.json").is_file() {
            config.encoder_model_name = encoder.to_string_lossy().into_owned();
        }

        let own = weights.path().with_file_name("tokenizer.json");
        let path = match &config.tokenizer_name {
            Some(name) => hub::locate(name, What::Tokenizer)?,
            None if own.is_file() => own,
            None => encoder_folder(&config)?,
        };
        let tokenizer = Tokenizer::load(&path).with_context(|| {
            format!(
                "the tokenizer {} cannot be used; {} brings none, so name one with --tokenizer",
                path.display(),
                args.path.display()
            )
        })?;
        let entries = tokenizer.vocab_size() as i64;
        if entries != model.vocab_size {
            bail!(
                "the tokenizer {} has {entries} entries, but the model in {} chooses among {}: name the tokenizer that it was trained with",
                path.display(),
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
        let mut plan = RunPlan::new(&config, facts, device)?;
        plan.model = model;
        let parameters = Parameters::Elsewhere(weights);
        Ok(Self { plan, tokenizer, parameters, named_encoder: None, settings_known })
    }
}

impl LoadedModel {
    /// Of a run that was found, or of a file from elsewhere; without the encoder.
    ///
    /// # Errors
    /// Says what is missing beside the file, or does not fit it.
    pub fn load(
        found: Option<FoundModel>,
        args: &ModelSource,
        device: Device,
        precision: Precision,
        events: &Reporter,
    ) -> Result<Self> {
        DescribedModel::of(found, args, device, events)?.load(args, device, precision)
    }

    /// As a guide of another.
    pub fn as_guide(&self) -> (&dyn Network, Trained) {
        (&self.net, Trained::from(&self.plan.objective))
    }

    /// With the encoder that conditions go through, or what was written, if either does.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn with_encoder(mut self, device: Device, precision: Precision) -> Result<Self> {
        if needs_encoder(&self.plan) {
            self.latents = Some(self.text_latents(device, precision)?);
        }
        Ok(self)
    }

    /// The encoder that it was trained with.
    ///
    /// # Errors
    /// If it cannot be loaded, or is another one.
    pub fn text_latents(&self, device: Device, precision: Precision) -> Result<TextLatents> {
        TextLatents::of_run(&self.plan, self.named_encoder.as_deref(), device, precision)
    }
}

/// Whether conditions go through an encoder, or what was written does.
fn needs_encoder(plan: &RunPlan) -> bool {
    plan.span.max_input_length.is_some() || plan.objective.block_size.is_some()
}

/// The hash of a file of parameters; of an index, with all shards that lie beside it.
fn hash_of_weights(path: &Path) -> Result<String> {
    if path.extension().is_none_or(|ending| ending != "json") {
        let mut hasher = blake3::Hasher::new();
        hash_file(&mut hasher, path)?;
        return Ok(hasher.finalize().to_hex().to_string());
    }
    hash_of_folder(path.parent().unwrap_or(path), |name| {
        [".json", ".safetensors", ".bin"].iter().any(|ending| name.ends_with(ending))
    })
}

/// The hash of the files that lie in a folder under names that are `wanted`.
fn hash_of_folder(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let cannot = || format!("cannot read {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Files in the hub's cache are links.
        if wanted(&name) && entry.path().is_file() {
            files.push((name, entry.path()));
        }
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, path) in files {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hash_file(&mut hasher, &path)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn hash_file(hasher: &mut blake3::Hasher, path: &Path) -> Result<()> {
    let mut content = blake3::Hasher::new();
    let read = std::fs::File::open(path).and_then(|file| content.update_reader(file).map(drop));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    hasher.update(content.finalize().as_bytes());
    Ok(())
}

/// The device's precision, or fp32 if asked for.
pub fn precision(f32: bool, device: Device) -> Precision {
    if f32 { Precision::F32 } else { Precision::native(device) }
}
