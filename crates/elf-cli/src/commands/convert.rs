//! `elf convert`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::PrecisionPolicy;
use elf_core::pytorch::{self, PyTorchFile, TensorRef, Value};
use elf_core::tensorfile::{self, TensorFile};
use elf_core::weights::{self, ParamKind, Weights};
use elf_data::Cursor;
use elf_hub::What;
use elf_model::ElfConfig;
use elf_train::{ReleasedForm, released_form_of_parameters};
use tch::{Device, Tensor};

use crate::hub;
use elf_lm::config::BaselinePlan;
use elf_lm::eval::judge::trained_gpt2;
use elf_lm::model::run_folder::FoundModel;
use elf_lm::train::trainer_config;

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A PyTorch checkpoint, a safetensors file, an index of shards, a folder (its latest checkpoint is used), a run of
    /// this program, or a Hugging Face id.
    input: PathBuf,
    /// The file to write: safetensors if it ends in .safetensors, otherwise a PyTorch checkpoint that the released code
    /// loads. For a run that trained a GPT-2, a folder in Hugging Face format, tokenizer included, unless it ends in
    /// .safetensors.
    output: PathBuf,
    /// Convert the raw trained parameters instead of their running averages (EMA).
    #[arg(long, conflicts_with = "all")]
    raw: bool,
    /// Convert everything in a training checkpoint: both sets of parameters, optimiser, schedule, counts. This is the
    /// default when converting a run of this program to a PyTorch checkpoint, unless --raw is given.
    #[arg(long)]
    all: bool,
}

/// Where a safetensors file of a whole checkpoint keeps all that is no tensor.
const TREE: &str = "pytorch_tree";

pub fn run(args: ConvertArgs) -> Result<ExitCode> {
    let to_safetensors = args.output.extension().is_some_and(|e| e == "safetensors");
    let which = if args.raw { ParamKind::Trained } else { ParamKind::Averaged };
    let place = hub::locate(&args.input, What::ElfCheckpoint)?;
    let run = (place.is_dir() && FoundModel::is_at(&place)).then(|| FoundModel::at(&place)).transpose()?;
    if let Some(run) = run.as_ref().filter(|run| run.plan.baseline.is_some() && !to_safetensors) {
        return write_gpt2(run, &args);
    }
    let input = match &run {
        Some(run) => run.checkpoint.path().join(if args.raw { "model.safetensors" } else { "ema.safetensors" }),
        None => weights::find(&place)?,
    };
    if !input.is_file() {
        bail!("there is no {}: name a checkpoint, or a folder with one", input.display());
    }
    let (from, tree) = match &run {
        Some(run) if args.all && run.plan.baseline.is_some() => {
            bail!(
                "--all is about checkpoints of the released code, which knows no {}: leave it out",
                run.plan.baseline.as_ref().map_or("", BaselinePlan::name)
            )
        }
        Some(run) if args.all || !(args.raw || to_safetensors) => (run.checkpoint.path(), Some(whole_run(run)?)),
        Some(_) => (input.as_path(), None),
        None => (input.as_path(), whole(&input, &args)?),
    };
    let count = match (to_safetensors, tree) {
        (true, Some(tree)) => write_whole(&args.output, &tree)?,
        (true, None) => {
            let weights = named(&input, which)?;
            tensorfile::write(&args.output, weights.iter().map(|(n, t)| (n.as_str(), t)), HashMap::new())?;
            weights.len()
        }
        (false, Some(tree)) => {
            pytorch::write(&args.output, &tree)?;
            count_tensors(&tree)
        }
        (false, None) => {
            // The released code samples from the averages and fine-tunes from the parameters: both are these.
            let order = ElfConfig::of_checkpoint(&Weights::open(&input, which)?)?.released_order()?;
            let weights = named(&input, which)?;
            let count = weights.len();
            pytorch::write(&args.output, &released_form_of_parameters(&order, weights)?)?;
            count
        }
    };
    eprintln!("{} tensors of {} written to {}", count, from.display(), args.output.display());
    Ok(ExitCode::SUCCESS)
}

/// A run's GPT-2 as Hugging Face keeps one.
fn write_gpt2(run: &FoundModel, args: &ConvertArgs) -> Result<ExitCode> {
    if let Some(other @ BaselinePlan::Mdlm { .. }) = &run.plan.baseline {
        bail!(
            "{} holds {}, for which the released code has no form: write to a name that ends in .safetensors",
            run.checkpoint.path().display(),
            other.describe()
        );
    }
    if args.all {
        bail!("--all has no meaning for a GPT-2, whose folder holds one set of parameters: leave it out");
    }
    let model = trained_gpt2(run, args.raw, PrecisionPolicy::F32, Device::Cpu)?;
    let folder = &args.output;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    model.save(folder)?;
    run.run.tokenizer()?.save(folder.join("tokenizer.json"))?;
    let count = model.params().len();
    eprintln!("{count} tensors of {} written to {}", run.checkpoint.path().display(), folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Everything of a run's checkpoint as the released code keeps it.
fn whole_run(run: &FoundModel) -> Result<Value<Tensor>> {
    let (plan, checkpoint) = (&run.plan, &run.checkpoint);
    let cursor: Cursor = serde_json::from_value(checkpoint.state().cursor.clone())
        .context("the checkpoint's place in the data is from another version of this program")?;
    let order = plan.model.released_order()?;
    let config = trainer_config(plan, Device::Cpu)?;
    let form = ReleasedForm { order: &order, config: &config, epoch: cursor.epoch };
    Ok(form.of_checkpoint(checkpoint)?)
}

/// A whole checkpoint, if the input holds one and it is wanted: with --all, or if the output can hold nothing less.
fn whole(input: &Path, args: &ConvertArgs) -> Result<Option<Value<Tensor>>> {
    let is_index = input.extension().is_some_and(|e| e == "json");
    if !is_index && PyTorchFile::is_zip(input)? {
        if !args.all {
            return Ok(None);
        }
        let file = PyTorchFile::open(input)?;
        return Ok(Some(file.value().map_tensors(&mut |_: &str, t: &TensorRef| file.tensor(t, Device::Cpu))?));
    }
    let text = match is_index {
        true => None,
        false => TensorFile::open(input)?.metadata().get(TREE).cloned(),
    };
    let wanted = args.all || (!args.raw && args.output.extension().is_none_or(|e| e != "safetensors"));
    match text {
        Some(text) if wanted => {
            let file = TensorFile::open(input)?;
            let tree: Value<String> = serde_json::from_str(&text)
                .with_context(|| format!("{} says wrongly what checkpoint it was", input.display()))?;
            Ok(Some(tree.map_tensors(&mut |_: &str, name: &String| file.get(name, Device::Cpu))?))
        }
        None if args.all => bail!("{} holds one set of parameters and no more: leave --all out", input.display()),
        _ => Ok(None),
    }
}

fn named(input: &Path, which: ParamKind) -> Result<Vec<(String, Tensor)>> {
    let weights = Weights::open(input, which)?;
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    names.into_iter().map(|name| Ok((name.clone(), weights.get(&name, Device::Cpu)?))).collect()
}

fn count_tensors(tree: &Value<Tensor>) -> usize {
    let mut count = 0;
    let _ = tree.map_tensors(&mut |_: &str, _: &Tensor| {
        count += 1;
        Ok::<_, std::convert::Infallible>(())
    });
    count
}

/// Tensors under the keys that lead to them, and the tree without them as JSON.
fn write_whole(path: &Path, tree: &Value<Tensor>) -> Result<usize> {
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    let names =
        tree.map_tensors(&mut |name: &str, t: &Tensor| match tensors.insert(name.to_owned(), t.shallow_clone()) {
            None => Ok(name.to_owned()),
            Some(_) => bail!("two tensors lie under {name}: this checkpoint cannot be written as safetensors"),
        })?;
    let metadata = HashMap::from([(TREE.to_owned(), serde_json::to_string(&names)?)]);
    tensorfile::write(path, tensors.iter().map(|(n, t)| (n.as_str(), t)), metadata)?;
    Ok(tensors.len())
}
