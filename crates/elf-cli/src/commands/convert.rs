//! `elf convert`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::pytorch::{self, PyTorchFile, TensorRef, Value};
use elf_core::tensorfile::{self, TensorFile};
use elf_core::weights::{self, AVERAGED, ParamKind, TRAINED, Weights};
use tch::{Device, Tensor};

use crate::run_folder::FoundModel;

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A PyTorch checkpoint, a safetensors file, an index of shards, or a folder (its latest checkpoint is taken).
    input: PathBuf,
    /// The file to write: safetensors if it ends in .safetensors, otherwise a PyTorch checkpoint.
    output: PathBuf,
    /// The parameters as trained instead of their running averages.
    #[arg(long, conflicts_with = "all")]
    raw: bool,
    /// Everything that a training checkpoint holds: both sets of parameters, optimiser, schedule, counts.
    #[arg(long)]
    all: bool,
}

/// Where a safetensors file of a whole checkpoint keeps all that is no tensor.
const TREE: &str = "pytorch_tree";

pub fn run(args: ConvertArgs) -> Result<ExitCode> {
    let to_safetensors = args.output.extension().is_some_and(|e| e == "safetensors");
    let which = if args.raw { ParamKind::Trained } else { ParamKind::Averaged };
    let input = source(&args, which)?;
    let count = match (to_safetensors, whole(&input, &args)?) {
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
            let weights = named(&input, which)?;
            let items =
                || weights.iter().map(|(n, t)| (Value::Str(n.clone()), Value::Tensor(t.shallow_clone()))).collect();
            // The released code samples from the averages and fine-tunes from the parameters: both are these.
            let params = Value::OrderedDict { items: items(), attributes: Vec::new() };
            let top = vec![(Value::Str(TRAINED.into()), params), (Value::Str(AVERAGED.into()), Value::Dict(items()))];
            pytorch::write(&args.output, &Value::Dict(top))?;
            weights.len()
        }
    };
    eprintln!("{} tensors of {} written to {}", count, input.display(), args.output.display());
    Ok(ExitCode::SUCCESS)
}

/// The file to read: of a run of this program the file with the parameters that are wanted.
fn source(args: &ConvertArgs, which: ParamKind) -> Result<PathBuf> {
    if FoundModel::is_at(&args.input) && args.input.is_dir() {
        if args.all {
            bail!(
                "--all converts training checkpoints of the released code; of a run of this program take the averages, or --raw"
            );
        }
        let checkpoint = FoundModel::at(&args.input)?.checkpoint;
        let name = if which == ParamKind::Trained { "model.safetensors" } else { "ema.safetensors" };
        return Ok(checkpoint.path().join(name));
    }
    let path = weights::find(&args.input)?;
    if !path.is_file() {
        bail!("there is no {}: name a checkpoint, or a folder with one", path.display());
    }
    Ok(path)
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
