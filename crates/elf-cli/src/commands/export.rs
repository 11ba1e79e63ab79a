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
use crate::config::{RunConfig, RunPlan, SAMPLING, read_sampling_settings};
use crate::run_folder::FoundModel;

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run's folder (its latest checkpoint is taken), or a checkpoint's.
    run: PathBuf,
    /// The folder for model.safetensors, config.yml, tokenizer.json and README.md, which `elf sample` takes as a model; it must
    /// not be there yet.
    output: PathBuf,
    /// Where the encoder is to be looked for, from the folder itself or from where `elf` is called. As in the run unless given.
    #[arg(long, value_name = "NAME")]
    encoder: Option<String>,
    /// The parameters as trained instead of their running averages.
    #[arg(long)]
    raw: bool,
    /// Kind of the numbers in model.safetensors.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: StoredAs,
    /// What the model card is to call the model.
    #[arg(long)]
    title: Option<String>,
    /// What the model card is to say of the texts and their licence.
    #[arg(long)]
    data_note: Option<String>,
    /// An evaluation that `elf eval --output` wrote, for the model card; may be given several times.
    #[arg(long, value_name = "FILE")]
    evaluation: Vec<PathBuf>,
    /// A file of sampling settings to go with the model, which `elf sample` then takes unless told otherwise.
    #[arg(long, value_name = "FILE")]
    sampling_config: Option<PathBuf>,
    /// A lesser version of the model, a run's folder: it goes into the folder `guide`, for sampling settings with `guide: guide`.
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
    let sampling = args.sampling_config.as_ref().map(|file| sampling(file, guide.is_some())).transpose()?;
    let evaluations = args.evaluation.iter().map(|file| evaluation(file)).collect::<Result<Vec<_>>>()?;
    let parent = args.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot write {}", args.output.display());
    fs::create_dir_all(parent).with_context(cannot)?;
    let aside = tempfile::Builder::new().prefix(".writing-").tempdir_in(parent).with_context(cannot)?;

    let size = write_model(aside.path(), &found, &args)?;
    if let Some(guide) = &guide {
        let folder = aside.path().join(GUIDE);
        fs::create_dir(&folder).with_context(cannot)?;
        write_model(&folder, guide, &args)?;
    }
    if let Some(sampling) = &sampling {
        fs::write(aside.path().join(SAMPLING), sampling).with_context(cannot)?;
    }
    let text = card(&args, &found, guide.as_ref(), size.parameters, &evaluations);
    fs::write(aside.path().join("README.md"), text).with_context(cannot)?;

    // A temporary folder is its owner's alone; this one is for others too.
    #[cfg(unix)]
    fs::set_permissions(aside.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).with_context(cannot)?;
    fs::rename(aside.path(), &args.output).with_context(cannot)?;
    // It has moved: nothing is left to remove under the old name.
    let _ = aside.keep();
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
    let names_guide = read_sampling_settings(file)?.iter().any(|setting| setting.guide.is_some());
    match (guided, names_guide) {
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

/// The model card, in Markdown.
fn card(
    args: &ExportArgs,
    found: &FoundModel,
    guide: Option<&FoundModel>,
    parameters: i64,
    evaluations: &[Evaluation],
) -> String {
    let (plan, config) = (&found.plan, &found.plan.config);
    let step = found.checkpoint.state().step;
    let rows = (plan.batch_rows * config.grad_accum_steps) as u64;
    let span = &plan.span;
    let task = match span.max_input_length {
        Some(input) => format!("text from text: up to {input} tokens in, {} out", span.max_length - input),
        None => format!("text from nothing: up to {} tokens", span.max_length),
    };
    let mut card = format!(
        "---\nlibrary_name: elf\ntags: [elf, diffusion, text-generation]\n---\n\n# {}\n\n\
         An embedded language flow (Hu, Qiu, ..., He; arXiv 2605.10938), made with `elf train`.\n\n\
         | | |\n| --- | --- |\n\
         | task | {task} |\n\
         | network | {} blocks of width {}, {} heads; {} parameters{}, {} |\n\
         | encoder | `{}`, {} channels |\n\
         | data | `{}` |\n\
         | licence of the data | {} |\n\
         | training | {step} optimiser steps of {rows} rows ({:.1} passes), {:?} at {}, {:?} schedule |\n\
         | averages | decay {} |\n\
         | seed | {} |\n",
        args.title.as_deref().unwrap_or("An ELF"),
        plan.model.depth,
        plan.model.hidden_size,
        plan.model.num_heads,
        parameters,
        if args.raw { " as trained" } else { " (running averages)" },
        if args.dtype == StoredAs::Bf16 { "bf16" } else { "fp32" },
        args.encoder.as_deref().unwrap_or(&config.encoder_model_name),
        plan.model.text_encoder_dim,
        config.data_path.as_deref().unwrap_or("unknown"),
        args.data_note.as_deref().unwrap_or("not stated; it applies to what is made from the data"),
        step as f64 / plan.length.steps_per_epoch.max(1.0),
        config.optimizer,
        plan.lr,
        config.lr_schedule,
        config.ema_decay1,
        config.seed,
    );
    let metrics = fs::read_to_string(found.run.root().join("metrics.jsonl")).unwrap_or_default();
    let lines: Vec<Value> = metrics.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let until_here = |line: &&Value| line["step"].as_u64().is_some_and(|at| at <= step);
    let seconds = over_all_starts(lines.iter().filter(until_here).filter_map(|line| line["seconds"].as_f64()));
    if let Some(size) = plan.objective.block_size {
        let tokens = if size == 1 { "1 token".to_owned() } else { format!("{size} tokens") };
        let _ = writeln!(card, "| written in | blocks of {tokens}, each knowing all before it; not in the paper |");
    }
    if let Some(first) = &config.init_from {
        let _ = writeln!(card, "| begun as | `{first}` |");
    }
    if seconds > 0.0 {
        let _ = writeln!(card, "| cost | {:.0} minutes |", seconds / 60.0);
    }
    let curve: Vec<&Value> = lines.iter().filter(until_here).filter(|line| line["validation_loss"].is_f64()).collect();
    if !curve.is_empty() {
        card.push_str("\n## Held-out loss\n\n| steps | loss | L2 | cross-entropy |\n| ---: | ---: | ---: | ---: |\n");
        let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |v| format!("{v:.4}"));
        for line in curve {
            let [loss, l2, ce] = ["validation_loss", "validation_l2", "validation_ce"].map(|key| number(&line[key]));
            let _ = writeln!(card, "| {} | {loss} | {l2} | {ce} |", line["step"]);
        }
    }
    for evaluation in evaluations {
        let _ = write!(card, "\n{}", evaluation.to_markdown());
    }
    if let Some(guide) = guide {
        let _ = writeln!(
            card,
            "\n## Guide\n\n`{GUIDE}` holds a lesser version of the model, {} optimiser steps of {:?}, which sampling leads away from \
             (autoguidance; see `{SAMPLING}`).",
            guide.checkpoint.state().step,
            guide.plan.config.optimizer
        );
    }
    card
}

/// The time of a run whose clock begins anew whenever it is resumed.
fn over_all_starts(seconds: impl Iterator<Item = f64>) -> f64 {
    let (earlier, last) = seconds.fold((0.0, 0.0), |(earlier, last), now| match now < last {
        true => (earlier + last, now),
        false => (earlier, now),
    });
    earlier + last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_cost_what_all_its_parts_did() {
        assert_eq!(over_all_starts([].into_iter()), 0.0);
        assert_eq!(over_all_starts([1.0, 5.0, 9.0].into_iter()), 9.0);
        assert_eq!(over_all_starts([1.0, 5.0, 2.0, 3.0, 1.0].into_iter()), 9.0);
    }
}
