//! A trained network as a user names it: a run of this program, a checkpoint of it, or a file from elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::device::DeviceChoice;
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Network, Precision, PrecisionPolicy};
use elf_data::Tokenizer;
use elf_flow::Trained;
use elf_hub::What;
use elf_model::{Elf, ElfConfig};
use tch::Device;

use crate::config::{Facts, Overrides, RunConfig, RunPlan, SamplingSetting, read_record, read_yaml};
use crate::hub;
use crate::run_folder::{FoundModel, no_run};
use crate::same_latents::LatentsOf;
use crate::text_latents::{TextLatents, encoder_folder};

/// Which model, and how it computes.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// A run's folder (its latest checkpoint is taken), or a checkpoint's; or a file of parameters from elsewhere: a PyTorch
    /// checkpoint of the released code, safetensors, an index of shards, or a folder with one; or a Hugging Face id.
    #[arg(value_name = "MODEL")]
    pub path: PathBuf,
    /// For a file from elsewhere: the configuration it was trained with. Without one, the config.yml beside it, as the released
    /// code leaves it there; without that, the released recipe for unconditional text. The network's sizes always come from the file.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// For a file from elsewhere: change one setting of --config, as key=value. May be given several times.
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,
    /// For a file from elsewhere: the tokenizer's file or folder; as --option tokenizer_name=PATH.
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// The text encoder, if it is not where it was in training or as config.yml says: its folder, or a Hugging Face id.
    #[arg(long, value_name = "ENCODER")]
    pub encoder: Option<PathBuf>,
    /// For an exported model or a file from elsewhere: positions of a text (as its config.yml or --config says; 1024 without one); as --option max_length=N.
    #[arg(long)]
    pub length: Option<usize>,
    /// Take the parameters as trained instead of their running averages.
    #[arg(long)]
    pub no_ema: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Compute in fp32 also where the device has bf16.
    #[arg(long)]
    pub f32: bool,
    /// The vocabulary head and the maps between latents and blocks in bf16 too, where the device has it: some percent faster.
    #[arg(long, conflicts_with = "f32")]
    pub heads_bf16: bool,
}

/// What the released code calls the settings that it leaves beside its checkpoints.
const RECORD: &str = "config.yml";

impl ModelArgs {
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
    /// Whether `plan` says how the model was trained: of a file without settings beside it nothing is known.
    settings_known: bool,
}

impl LoadedModel {
    /// Of a run that was found, or of a file from elsewhere; without the encoder.
    ///
    /// # Errors
    /// Says what is missing beside the file, or does not fit it.
    pub fn load(found: Option<FoundModel>, args: &ModelArgs, device: Device, precision: Precision) -> Result<Self> {
        match found {
            Some(found) => Self::of_run(found, args, device, precision),
            None => Self::from_elsewhere(args, device, precision),
        }
    }

    /// The guide of this model that settings name, if any does.
    ///
    /// # Errors
    /// If there are two, it cannot be loaded, or its latents are others than this model's.
    pub fn guide(
        &self,
        settings: &[SamplingSetting],
        args: &ModelArgs,
        device: Device,
        precision: Precision,
    ) -> Result<Option<Self>> {
        let model = &args.path;
        let mut paths = settings.iter().filter_map(|setting| setting.guide.as_ref());
        let Some(path) = paths.next() else { return Ok(None) };
        if let Some(other) = paths.find(|other| *other != path) {
            bail!("{} and {} cannot both be the guide of one call", path.display(), other.display());
        }
        let guide = || format!("the guide {}", path.display());
        // What the model is told beside its file is about the model alone.
        let args = ModelArgs {
            path: hub::locate(path, What::ElfCheckpoint).with_context(guide)?,
            config: None,
            options: Vec::new(),
            tokenizer: None,
            encoder: None,
            length: None,
            ..args.clone()
        };
        let found = found(&args.path)?.map(|found| found.elf_only("which cannot guide a flow"));
        let found = found.transpose().with_context(guide)?;
        let guide_of = Self::load(found, &args, device, precision).with_context(guide)?;
        // A guide that does not write in the same blocks is refused for that, and has other latents for that alone.
        if guide_of.plan.objective.block_size == self.plan.objective.block_size
            && let Some(difference) = self.latents_of().difference(&guide_of.latents_of())
        {
            bail!(
                "the guide {} cannot guide {}: {difference}; a guide must be of the same latents",
                path.display(),
                model.display()
            );
        }
        Ok(Some(guide_of))
    }

    fn latents_of(&self) -> LatentsOf<'_> {
        let config = self.settings_known.then_some(&self.plan.config);
        LatentsOf { tokenizer: self.tokenizer.fingerprint(), config }
    }

    /// As a guide of another.
    pub fn as_guide(&self) -> (&dyn Network, Trained) {
        (&self.net, Trained::from(&self.plan.objective))
    }

    fn of_run(found: FoundModel, args: &ModelArgs, device: Device, precision: Precision) -> Result<Self> {
        if args.config.is_some() || args.tokenizer.is_some() || args.length.is_some() || !args.options.is_empty() {
            bail!(
                "{} is a run of this program, which knows its own settings: leave --config, --option, --tokenizer and --length out",
                args.path.display()
            );
        }
        let net = Elf::unset(found.plan.model.clone(), args.policy(precision), device)?;
        found.load_into(net.params(), args.no_ema)?;
        let FoundModel { run, plan, .. } = found;
        Ok(Self {
            latents: None,
            named_encoder: args.encoder.clone(),
            tokenizer: run.tokenizer()?,
            plan,
            net,
            settings_known: true,
        })
    }

    fn from_elsewhere(args: &ModelArgs, device: Device, precision: Precision) -> Result<Self> {
        let which = if args.no_ema { ParamKind::Trained } else { ParamKind::Averaged };
        let weights = Weights::open(&args.path, which).with_context(|| no_run(&args.path))?;
        let model = ElfConfig::of_checkpoint(&weights)?;
        let mut options = args.options.clone();
        if let Some(path) = &args.tokenizer {
            options
                .push(format!("tokenizer_name={}", serde_json::to_string(path).context("a path that is not Unicode")?));
        }
        options.extend(args.length.map(|n| format!("max_length={n}")));
        let warn = |line| eprintln!("warning: {line}");
        let options = Overrides(options);
        let beside = weights.path().with_file_name(RECORD);
        let settings_known = args.config.is_some() || beside.is_file();
        let mut config: RunConfig = match &args.config {
            None if beside.is_file() => {
                eprintln!("settings: {}", beside.display());
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
        let net = Elf::of_weights(&weights, args.policy(precision), device)?;
        Ok(Self { plan, tokenizer, net, latents: None, named_encoder: None, settings_known })
    }

    /// With the encoder that conditions go through, or what was written, if either does.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn with_encoder(mut self, device: Device, precision: Precision) -> Result<Self> {
        if self.plan.span.max_input_length.is_some() || self.plan.objective.block_size.is_some() {
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

/// The run of this program that a path names, if it does.
///
/// # Errors
/// If nothing is there.
pub fn found(path: &Path) -> Result<Option<FoundModel>> {
    (FoundModel::is_at(path) || !path.exists()).then(|| FoundModel::at(path)).transpose()
}

/// The device's precision, or fp32 if asked for.
pub fn precision(f32: bool, device: Device) -> Precision {
    if f32 { Precision::F32 } else { Precision::native(device) }
}
