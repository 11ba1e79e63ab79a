//! Checkpoints in other formats: the released code's PyTorch checkpoints, and safetensors.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use elf_core::PrecisionPolicy;
use elf_core::pytorch::{self, PyTorchFile, TensorRef, Value};
use elf_core::tensorfile::{self, TensorFile};
use elf_core::weights::{self, ParamKind, Weights};
use elf_data::Cursor;
use elf_hub::What;
use elf_model::ElfConfig;
use elf_train::{ReleasedForm, released_form_of_parameters};
use tch::{Device, Tensor};

use super::trainer_config;
use crate::config::BaselinePlan;
use crate::error::{Context, fail};
use crate::eval::judge::trained_gpt2;
use crate::model::run_folder::RunModel;
use crate::{Host, Result};

/// What is converted, and where to.
#[derive(Debug, Clone)]
pub struct Converting {
    /// A PyTorch checkpoint, a safetensors file, an index of shards, a folder, a run of this program, or a Hugging Face id.
    pub input: PathBuf,
    /// The file to write: safetensors if it ends so, otherwise a PyTorch checkpoint that the released code loads. For a run that
    /// trained a GPT-2, a folder in Hugging Face's form, unless it ends in `.safetensors`.
    pub output: PathBuf,
    /// Whether the parameters as trained are converted, and not their running averages.
    pub raw: bool,
    /// Whether everything in a training checkpoint is converted.
    pub all: bool,
}

/// What was converted.
#[derive(Debug, Clone)]
pub struct Converted {
    /// Tensors that were written.
    pub tensors: usize,
    /// The checkpoint that they are from.
    pub from: PathBuf,
}

/// Where a safetensors file of a whole checkpoint keeps all that is no tensor.
const TREE: &str = "pytorch_tree";

/// Converts a checkpoint.
///
/// # Errors
/// If there is none, it cannot be read, or the output has no form for it.
pub fn convert(asked: &Converting, host: &Host) -> Result<Converted> {
    let to_safetensors = asked.output.extension().is_some_and(|e| e == "safetensors");
    let which = if asked.raw { ParamKind::Trained } else { ParamKind::Averaged };
    let place = host.locate(&asked.input, What::ElfCheckpoint)?;
    let run = (place.is_dir() && RunModel::is_at(&place)).then(|| RunModel::at(&place)).transpose()?;
    if let Some(run) = run.as_ref().filter(|run| run.plan.baseline.is_some() && !to_safetensors) {
        return write_gpt2(run, asked);
    }
    let input = match &run {
        Some(run) => run.checkpoint.path().join(if asked.raw { "model.safetensors" } else { "ema.safetensors" }),
        None => weights::find(&place)?,
    };
    if !input.is_file() {
        fail!(place(&input), "there is no {}: name a checkpoint, or a folder with one", input.display());
    }
    let (from, tree) = match &run {
        Some(run) if asked.all && run.plan.baseline.is_some() => {
            fail!(
                setting("all"),
                "--all is about checkpoints of the released code, which knows no {}: leave it out",
                run.plan.baseline.as_ref().map_or("", BaselinePlan::name)
            )
        }
        Some(run) if asked.all || !(asked.raw || to_safetensors) => (run.checkpoint.path(), Some(whole_run(run)?)),
        Some(_) => (input.as_path(), None),
        None => (input.as_path(), whole(&input, asked)?),
    };
    let count = match (to_safetensors, tree) {
        (true, Some(tree)) => write_whole(&asked.output, &tree)?,
        (true, None) => {
            let weights = named(&input, which)?;
            tensorfile::write(&asked.output, weights.iter().map(|(n, t)| (n.as_str(), t)), HashMap::new())?;
            weights.len()
        }
        (false, Some(tree)) => {
            pytorch::write(&asked.output, &tree)?;
            count_tensors(&tree)
        }
        (false, None) => {
            // The released code samples from the averages and fine-tunes from the parameters: both are these.
            let order = ElfConfig::of_checkpoint(&Weights::open(&input, which)?)?.released_order()?;
            let weights = named(&input, which)?;
            let count = weights.len();
            pytorch::write(&asked.output, &released_form_of_parameters(&order, weights)?)?;
            count
        }
    };
    Ok(Converted { tensors: count, from: from.to_owned() })
}

/// A run's GPT-2 as Hugging Face keeps one.
fn write_gpt2(run: &RunModel, asked: &Converting) -> Result<Converted> {
    if let Some(other @ BaselinePlan::Mdlm { .. }) = &run.plan.baseline {
        fail!(
            place(run.checkpoint.path()),
            "{} holds {}, for which the released code has no form: write to a name that ends in .safetensors",
            run.checkpoint.path().display(),
            other.describe()
        );
    }
    if asked.all {
        fail!(
            setting("all"),
            "--all has no meaning for a GPT-2, whose folder holds one set of parameters: leave it out"
        );
    }
    let model = trained_gpt2(run, !asked.raw, PrecisionPolicy::F32, Device::Cpu)?;
    let folder = &asked.output;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    model.save(folder)?;
    run.run.tokenizer()?.save(folder.join("tokenizer.json"))?;
    let count = model.params().len();
    Ok(Converted { tensors: count, from: run.checkpoint.path().to_owned() })
}

/// Everything of a run's checkpoint as the released code keeps it.
fn whole_run(run: &RunModel) -> Result<Value<Tensor>> {
    let (plan, checkpoint) = (&run.plan, &run.checkpoint);
    let cursor: Cursor = serde_json::from_value(checkpoint.state().cursor.clone())
        .context("the checkpoint's place in the data is from another version of this program")?;
    let order = plan.model.released_order()?;
    let config = trainer_config(plan, Device::Cpu)?;
    let form = ReleasedForm { order: &order, config: &config, epoch: cursor.epoch };
    Ok(form.of_checkpoint(checkpoint)?)
}

/// A whole checkpoint, if the input holds one and it is wanted: with --all, or if the output can hold nothing less.
fn whole(input: &Path, asked: &Converting) -> Result<Option<Value<Tensor>>> {
    let is_index = input.extension().is_some_and(|e| e == "json");
    if !is_index && PyTorchFile::is_zip(input)? {
        if !asked.all {
            return Ok(None);
        }
        let file = PyTorchFile::open(input)?;
        return Ok(Some(file.value().map_tensors(&mut |_: &str, t: &TensorRef| file.tensor(t, Device::Cpu))?));
    }
    let text = match is_index {
        true => None,
        false => TensorFile::open(input)?.metadata().get(TREE).cloned(),
    };
    let wanted = asked.all || (!asked.raw && asked.output.extension().is_none_or(|e| e != "safetensors"));
    match text {
        Some(text) if wanted => {
            let file = TensorFile::open(input)?;
            let tree: Value<String> = serde_json::from_str(&text)
                .with_context(|| format!("{} says wrongly what checkpoint it was", input.display()))?;
            Ok(Some(tree.map_tensors(&mut |_: &str, name: &String| file.get(name, Device::Cpu))?))
        }
        None if asked.all => {
            fail!(setting("all"), "{} holds one set of parameters and no more: leave --all out", input.display())
        }
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
            Some(_) => fail!(request, "two tensors lie under {name}: this checkpoint cannot be written as safetensors"),
        })?;
    let metadata = HashMap::from([(TREE.to_owned(), serde_json::to_string(&names)?)]);
    tensorfile::write(path, tensors.iter().map(|(n, t)| (n.as_str(), t)), metadata)?;
    Ok(tensors.len())
}
