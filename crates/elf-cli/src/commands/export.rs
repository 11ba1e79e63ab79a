//! `elf export`: what somebody else needs of a run, in one small folder.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::tensorfile;
use elf_core::weights::{ParamKind, Weights};
use elf_eval::evaluation::Evaluation;
use serde_json::{Map, Value};
use tch::Device;

use super::encoder_train::StoredAs;
use elf_lm::config::{RunConfig, RunPlan, SAMPLING, SamplingSetting, read_sampling_settings};
use elf_lm::model::model_card::ExportedCard;
use elf_lm::model::run_folder::FoundModel;

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run's folder (its latest checkpoint is used) or a checkpoint's.
    run: PathBuf,
    /// The folder to write model.safetensors, config.yml, tokenizer.json and README.md to, which `elf sample` accepts
    /// as a model; it must not exist yet.
    output: PathBuf,
    /// Where to look for the encoder, relative to the exported folder or to the working directory of `elf`. Default: as
    /// in the run.
    #[arg(long, value_name = "NAME")]
    encoder: Option<String>,
    /// Export the raw trained parameters instead of their running averages (EMA).
    #[arg(long)]
    raw: bool,
    /// Number format of model.safetensors.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: StoredAs,
    /// The model's name on the model card.
    #[arg(long)]
    title: Option<String>,
    /// What the model card should say about the texts and their licence.
    #[arg(long)]
    data_note: Option<String>,
    /// An evaluation written by `elf eval --output`, for the model card; may be repeated.
    #[arg(long, value_name = "FILE")]
    evaluation: Vec<PathBuf>,
    /// A file of sampling settings to ship with the model, which `elf sample` then uses by default. Without one, a
    /// distilled model gets the number of steps it was distilled for.
    #[arg(long, value_name = "FILE")]
    sampling_config: Option<PathBuf>,
    /// A weaker version of the model for autoguidance, a run's folder: it is exported to the folder `guide`, for
    /// sampling settings with `guide: guide`.
    #[arg(long, value_name = "RUN", requires = "sampling_config")]
    guide: Option<PathBuf>,
}

/// Settings that are about the place where a run was made, or need what lay there, and not about the model.
const OF_THE_PLACE: [&str; 8] = [
    "data_path",
    "eval_data_path",
    "early_stopping",
    "output_dir",
    "resume",
    "init_from",
    "max_minutes",
    "sampling_configs_path",
];

/// The folder of a guide in that of its model.
const GUIDE: &str = "guide";

pub fn run(args: ExportArgs) -> Result<ExitCode> {
    let found = FoundModel::at(&args.run)?.elf_only("of which `elf convert RUN FOLDER` makes a folder for others")?;
    if args.output.exists() {
        bail!("{} is there already; choose another folder, or remove it", args.output.display());
    }
    let guide =
        args.guide.as_ref().map(|run| FoundModel::at(run)?.elf_only("which cannot guide a flow")).transpose()?;
    let sampling = match &args.sampling_config {
        Some(file) => Some(sampling(file, guide.is_some())?),
        // Settings do not say that a model was distilled, so that its steps would be forgotten.
        None if found.plan.distillation.is_some() => Some(SamplingSetting::default_for(&found.plan).to_yaml()?),
        None => None,
    };
    let evaluations = args.evaluation.iter().map(|file| evaluation(file)).collect::<Result<Vec<_>>>()?;
    let cannot = || format!("cannot write {}", args.output.display());
    let aside = elf_files::begin_folder(&args.output).with_context(cannot)?;

    let size = write_model(aside.path(), &found, &args)?;
    if let Some(guide) = &guide {
        let folder = aside.path().join(GUIDE);
        fs::create_dir(&folder).with_context(cannot)?;
        write_model(&folder, guide, &args)?;
    }
    if let Some(sampling) = &sampling {
        fs::write(aside.path().join(SAMPLING), sampling).with_context(cannot)?;
    }
    let card = ExportedCard {
        title: args.title.as_deref(),
        encoder: args.encoder.as_deref().unwrap_or(&found.plan.config.encoder_model_name),
        data_note: args.data_note.as_deref(),
        as_trained: args.raw,
        stored_as: if args.dtype == StoredAs::Bf16 { "bf16" } else { "fp32" },
        found: &found,
        guide: guide.as_ref().map(|guide| (GUIDE, guide)),
        parameters: size.parameters,
        evaluations: &evaluations,
    };
    fs::write(aside.path().join("README.md"), card.to_markdown()).with_context(cannot)?;

    elf_files::finish_folder(aside, &args.output).with_context(cannot)?;
    eprintln!("{} tensors of {} written to {}", size.tensors, found.checkpoint.path().display(), args.output.display());
    Ok(ExitCode::SUCCESS)
}

/// How large a model is.
struct Size {
    tensors: usize,
    parameters: i64,
}

/// Parameters, settings and tokenizer of one model.
fn write_model(folder: &Path, found: &FoundModel, args: &ExportArgs) -> Result<Size> {
    let (file, which) = match args.raw {
        true => ("model.safetensors", ParamKind::Trained),
        false => ("ema.safetensors", ParamKind::Averaged),
    };
    let weights = Weights::open(&found.checkpoint.path().join(file), which)?;
    let kind = args.dtype.kind();
    let mut tensors = Vec::new();
    for name in weights.names() {
        tensors.push((name.to_owned(), weights.get(name, Device::Cpu)?.f_to_kind(kind)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    tensorfile::write(&folder.join("model.safetensors"), named, metadata)?;
    fs::write(folder.join("config.yml"), settings(&found.plan, args.encoder.as_deref())?)
        .with_context(|| format!("cannot write {}", folder.display()))?;
    found.run.tokenizer()?.save(folder.join("tokenizer.json"))?;
    Ok(Size { tensors: tensors.len(), parameters: weights.numel() })
}

/// A file of sampling settings, if they can be read.
fn sampling(file: &Path, guided: bool) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let settings = read_sampling_settings(file)?;
    let mut guides = settings.iter().filter_map(|setting| setting.guide.as_ref());
    let names_guide = guides.clone().next().is_some();
    // Beside the file there may be one of that name, too.
    let elsewhere = guides.find(|guide| **guide != Path::new(GUIDE) && **guide != file.with_file_name(GUIDE));
    match (guided, names_guide) {
        (true, true) if elsewhere.is_some() => {
            bail!(
                "{} names a guide by another path than its folder in the model: write `guide: {GUIDE}`",
                file.display()
            )
        }
        (true, false) => bail!("{} asks for no guide: write `guide: {GUIDE}` into it", file.display()),
        (false, true) => bail!("{} asks for a guide: name a run for it with --guide", file.display()),
        _ => Ok(text),
    }
}

fn evaluation(file: &Path) -> Result<Evaluation> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Evaluation::from_json(&text).with_context(|| format!("{} is no evaluation of `elf eval --output`", file.display()))
}

/// The settings that differ from the defaults, as YAML.
fn settings(plan: &RunPlan, encoder: Option<&str>) -> Result<String> {
    let map = |config: &RunConfig| -> Result<Map<String, Value>> {
        match serde_json::to_value(config)? {
            Value::Object(map) => Ok(map),
            _ => bail!("settings are a mapping"),
        }
    };
    let (mut own, defaults) = (map(&plan.config)?, map(&RunConfig::default())?);
    if let Some(encoder) = encoder {
        own.insert("encoder_model_name".to_owned(), encoder.into());
    }
    if plan.span.max_input_length.is_some() {
        // What the run knew from its data.
        own.insert("condition_eos".to_owned(), plan.condition_eos.into());
    }
    own.retain(|key, value| !OF_THE_PLACE.contains(&key.as_str()) && defaults.get(key) != Some(value));
    // The tokenizer lies beside.
    own.remove("tokenizer_name");
    // Scalars read the same in JSON and in YAML.
    Ok(own.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = writeln!(text, "{key}: {value}");
        text
    }))
}
