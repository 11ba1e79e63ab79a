//! `elf probe`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use elf_hub::What;
use elf_lm::eval::probe::{AtTime, Findings, ProbeOptions, Shares, probe};
use elf_lm::json_files::write_json;
use elf_lm::model::{DescribedModel, ModelRef};
use elf_lm::text::text_file::check_writable;

use super::model_args::ModelArgs;
use super::{MOST_ROWS, at_least_one, at_most, output_file};
use crate::events::Terminal;
use crate::printing::{note, out};
use crate::standard_streams::is_output;
use crate::{hub, rank_environment};

#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token data with true texts, as used in training, or its Hugging Face id; preferably the held-out split.
    #[arg(long)]
    data: PathBuf,
    /// Probe only the first N texts.
    #[arg(long, default_value_t = 256)]
    limit: usize,
    /// Comma-separated times in [0, 1] to probe at [default: 12 of them].
    #[arg(long, value_delimiter = ',')]
    times: Vec<f64>,
    /// Self-conditioning guidance scale w given to the network.
    #[arg(long, default_value_t = 1.0)]
    self_cond_cfg_scale: f64,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Texts per batch.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// The JSON file to write.
    #[arg(long, short, value_parser = output_file())]
    output: Option<PathBuf>,
}

pub fn run(mut args: ProbeArgs) -> Result<ExitCode> {
    rank_environment::refuse_several("elf probe")?;
    args.output.as_deref().map_or(Ok(()), check_writable)?;
    at_least_one(&[("--batch-size", args.batch_size), ("--limit", args.limit)])?;
    at_most(&[("--batch-size", args.batch_size, MOST_ROWS)])?;
    let device = args.model.device.resolve()?;
    args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
    let found = ModelRef::open(&args.model.path)?.elf_only("which has no flow to look into")?;
    let mut terminal = Terminal::default();
    let host = &hub::host(&mut terminal);
    let model = DescribedModel::of(found, args.model.source(device), host)?;
    let asked = ProbeOptions {
        data: args.data,
        limit: args.limit,
        times: args.times,
        self_cond_cfg_scale: args.self_cond_cfg_scale,
        seed: args.seed,
        batch_size: args.batch_size,
    };
    let findings = probe(&model, &asked, host)?;
    if let Some(path) = &args.output {
        write(path, &findings)?;
    }
    if !args.output.as_deref().is_some_and(is_output) {
        print(&findings)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, findings: &Findings) -> Result<()> {
    write_json(path, findings).with_context(|| format!("the findings could not be written to {}", path.display()))?;
    note!("written to {}", path.display());
    Ok(())
}

fn print(findings: &Findings) -> Result<()> {
    let Findings { texts, words, accuracy_of_clean_latents, times } = findings;
    out!(
        "{words} words of {texts} texts; {:.1}% are read from their clean latents\n",
        100.0 * accuracy_of_clean_latents
    )?;
    let conditional = times.iter().any(|at| at.without_condition.is_some());
    out!("   t   error  words read{}", if conditional { "   without condition: error  words read" } else { "" })?;
    let cells = |shares: Shares| format!("{:.3}      {:5.1}%", shares.error, 100.0 * shares.accuracy);
    for AtTime { t, known, without_condition } in times {
        let without = without_condition.map_or(String::new(), |shares| format!("{:27}{}", "", cells(shares)));
        out!("{t:.2}   {}{without}", cells(*known))?;
    }
    out!(
        "\nerror: mean squared error of the clean estimate, a channel; about 1 for an estimate that is always the mean"
    )
}
