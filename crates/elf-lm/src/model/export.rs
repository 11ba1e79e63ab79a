//! The export of a run's model: a folder with parameters, settings, tokenizer and model card.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use elf_core::tensorfile;
use elf_core::weights::{ParamKind, Weights};
use elf_eval::evaluation::Evaluation;
use serde_json::{Map, Value};
use tch::{Device, Kind};

use super::WORDS;
use super::model_card::ExportedCard;
use super::run_folder::RunModel;
use crate::config::{LENGTHS, RunConfig, RunPlan, SAMPLING, Sampling, read_sampling};
use crate::error::{Context, fail};
use crate::{Host, Result};

/// Options of [`export`].
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// A run's folder (its latest checkpoint is used) or a checkpoint's.
    pub run: PathBuf,
    /// The folder to write, which must not exist yet.
    pub output: PathBuf,
    /// The encoder's folder or Hugging Face id to store, if not that of the run.
    pub encoder: Option<String>,
    /// Whether to export the running averages of the parameters instead of the parameters as trained.
    pub averaged: bool,
    /// The number format of the stored parameters. With `Int8`, matrices are stored as 8-bit integers with a scale for each row, and other
    /// parameters in bf16.
    pub stored_as: Kind,
    /// The model's name on the model card.
    pub title: Option<String>,
    /// The model card's line about the training texts and their licence.
    pub data_note: Option<String>,
    /// Files of evaluations for the model card.
    pub evaluations: Vec<PathBuf>,
    /// A file of sampling settings to include.
    pub sampling: Option<PathBuf>,
    /// The run of a weaker version of the model, to include as a guide for autoguidance.
    pub guide: Option<PathBuf>,
}

/// The result of [`export`].
#[derive(Debug, Clone)]
pub struct Exported {
    /// Number of tensors written.
    pub tensors: usize,
    /// The checkpoint they come from.
    pub from: PathBuf,
}

/// Settings that depend on files of the training machine or say nothing about the model.
const NOT_EXPORTED: [&str; 8] = [
    "data_path",
    "eval_data_path",
    "early_stopping",
    "output_dir",
    "resume",
    "init_from",
    "max_minutes",
    "sampling_configs_path",
];

/// The subfolder of an exported guide.
const GUIDE: &str = "guide";

/// Writes a run's model to a folder that [`Model::load`](crate::Model::load) accepts.
///
/// # Errors
/// If there is no such run, the folder exists already, or a file cannot be read or written.
pub fn export(asked: &ExportOptions, host: &Host) -> Result<Exported> {
    let elf = |run: &Path, purpose: &str| RunModel::at(run)?.elf_only(purpose);
    let found = elf(&asked.run, "which `elf convert RUN FOLDER` exports")?;
    if asked.output.exists() {
        fail!(place(&asked.output), "{} already exists; choose another folder, or remove it", asked.output.display());
    }
    let guide = asked.guide.as_ref().map(|run| elf(run, "which cannot guide a flow")).transpose()?;
    let sampling = match &asked.sampling {
        Some(file) => Some(sampling(file, guide.is_some(), &found.run.root().join(WORDS), host)?),
        // The exported settings do not mention distillation, so the number of steps goes into a sampling file.
        None if found.plan.distillation.is_some() => Some(Sampling::default_for(&found.plan).to_yaml(host.samplers())?),
        None => None,
    };
    let evaluations = asked.evaluations.iter().map(|file| evaluation(file)).collect::<Result<Vec<_>>>()?;
    let cannot = || format!("cannot write {}", asked.output.display());
    let aside = elf_files::begin_folder(&asked.output).with_context(cannot)?;

    let size = write_model(aside.path(), &found, asked)?;
    if let Some(guide) = &guide {
        let folder = aside.path().join(GUIDE);
        fs::create_dir(&folder).with_context(cannot)?;
        write_model(&folder, guide, asked)?;
    }
    if let Some(sampling) = &sampling {
        fs::write(aside.path().join(SAMPLING), sampling).with_context(cannot)?;
    }
    let card = ExportedCard {
        title: asked.title.as_deref(),
        encoder: asked.encoder.as_deref().unwrap_or(&found.plan.config.encoder.encoder_model_name),
        data_note: asked.data_note.as_deref(),
        as_trained: !asked.averaged,
        stored_as: match asked.stored_as {
            Kind::Int8 => "8-bit integers with a scale for each row of a matrix",
            Kind::BFloat16 => "bf16",
            _ => "fp32",
        },
        found: &found,
        guide: guide.as_ref().map(|guide| (GUIDE, guide)),
        parameters: size.parameters,
        evaluations: &evaluations,
    };
    fs::write(aside.path().join("README.md"), card.to_markdown()).with_context(cannot)?;

    elf_files::finish_folder(aside, &asked.output).with_context(cannot)?;
    Ok(Exported { tensors: size.tensors, from: found.checkpoint.path().to_owned() })
}

/// The size of a written model.
struct Size {
    tensors: usize,
    parameters: i64,
}

/// Writes parameters, settings and tokenizer of one model.
fn write_model(folder: &Path, found: &RunModel, asked: &ExportOptions) -> Result<Size> {
    let (file, which) = match asked.averaged {
        true => ("ema.safetensors", ParamKind::Averaged),
        false => ("model.safetensors", ParamKind::Trained),
    };
    let weights = Weights::open(&found.checkpoint.path().join(file), which)?;
    let mut tensors = Vec::new();
    for name in weights.names() {
        let tensor = weights.get(name, Device::Cpu)?;
        match asked.stored_as {
            Kind::Int8 if tensor.dim() == 2 => {
                let (rounded, scale) = tensorfile::rounded_to_int8(&tensor)?;
                tensors.extend([(name.to_owned(), rounded), (tensorfile::scale_name(name), scale)]);
            }
            Kind::Int8 => tensors.push((name.to_owned(), tensor.f_to_kind(Kind::BFloat16)?)),
            kind => tensors.push((name.to_owned(), tensor.f_to_kind(kind)?)),
        }
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    tensorfile::write(&folder.join("model.safetensors"), named, metadata)?;
    fs::write(folder.join("config.yml"), settings(&found.plan, asked.encoder.as_deref())?)
        .with_context(|| format!("cannot write {}", folder.display()))?;
    if let Some(lengths) = &found.plan.lengths {
        fs::write(folder.join(LENGTHS), serde_json::to_vec(lengths)?)
            .with_context(|| format!("cannot write {}", folder.display()))?;
    }
    let words = found.run.root().join(WORDS);
    if words.is_file() {
        fs::copy(&words, folder.join(WORDS)).with_context(|| format!("cannot write {}", folder.display()))?;
    }
    found.run.tokenizer()?.save(folder.join("tokenizer.json"))?;
    Ok(Size { tensors: weights.names().count(), parameters: weights.numel() })
}

/// The text of a sampling file, after a check of its settings, of whether it names a guide, and of whether it reads whole words, which takes a
/// list of `words`.
fn sampling(file: &Path, guided: bool, words: &Path, host: &Host) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let settings = read_sampling(file, host.samplers())?;
    if settings.iter().any(|setting| setting.whole_words) && !words.is_file() {
        fail!(
            place(words),
            "{} reads whole words, and {} is missing: make it of the training texts with `elf data words`",
            file.display(),
            words.display()
        );
    }
    let mut guides = settings.iter().filter_map(|setting| setting.guide.as_ref());
    let names_guide = guides.clone().next().is_some();
    // `read_sampling` resolves the name to a path if the folder exists beside the file.
    let elsewhere = guides.find(|guide| **guide != Path::new(GUIDE) && **guide != file.with_file_name(GUIDE));
    match (guided, names_guide) {
        (true, true) if elsewhere.is_some() => {
            fail!(
                place(file),
                "{} names a guide by another path than its folder in the model: write `guide: {GUIDE}`",
                file.display()
            )
        }
        (true, false) => fail!(place(file), "{} asks for no guide: write `guide: {GUIDE}` into it", file.display()),
        (false, true) => fail!(place(file), "{} asks for a guide: name a run for it with --guide", file.display()),
        _ => Ok(text),
    }
}

fn evaluation(file: &Path) -> Result<Evaluation> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Evaluation::from_json(&text)
        .with_context(|| format!("{} is not an evaluation written by `elf eval --output`", file.display()))
}

/// The settings that differ from the defaults, as YAML.
fn settings(plan: &RunPlan, encoder: Option<&str>) -> Result<String> {
    let map = |config: &RunConfig| -> Result<Map<String, Value>> {
        match serde_json::to_value(config)? {
            Value::Object(map) => Ok(map),
            _ => fail!(request, "settings are a mapping"),
        }
    };
    let (mut own, defaults) = (map(&plan.config)?, map(&RunConfig::default())?);
    if let Some(encoder) = encoder {
        own.insert("encoder_model_name".to_owned(), encoder.into());
    }
    if plan.span.max_input_length.is_some() {
        // The run took this from its data.
        own.insert("condition_eos".to_owned(), plan.condition_eos.into());
    }
    // A student of guided runs has no guide, whatever it took over from its teacher's settings.
    own.insert("word_guide_dims".to_owned(), plan.model.word_guide_dims.into());
    if let Some(estimates) = &plan.objective.decoder_estimates {
        own.insert("decoder_estimate_guide".to_owned(), estimates.guide_scale.into());
    }
    own.retain(|key, value| !NOT_EXPORTED.contains(&key.as_str()) && defaults.get(key) != Some(value));
    // The tokenizer is in the same folder.
    own.remove("tokenizer_name");
    // JSON scalars are valid YAML.
    Ok(own.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = writeln!(text, "{key}: {value}");
        text
    }))
}
