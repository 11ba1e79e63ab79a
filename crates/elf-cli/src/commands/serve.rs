//! `elf serve`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use elf_core::device::describe;
use elf_hub::What;
use elf_lm::Sampling;
use elf_lm::config::SAMPLING;
use elf_lm::model::{DescribedModel, ModelRef};
use elf_lm::serve::{self, ServeOptions, http};
use elf_lm::text::generated::MOST_TEXTS;

use super::model_args::ModelArgs;
use super::sampling_args::SamplingArgs;
use super::{MOST_ROWS, at_least_one, at_most};
use crate::events::Terminal;
use crate::printing::note;
use crate::{hub, progress};

/// Most requests that may wait; there is not room for any number of them.
const MOST_WAITING: usize = 1_000_000;

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,

    /// Host and port to listen on. Port 0 picks a free one. There is no access control: expose it to others only
    /// through a proxy that has it.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Texts generated at once, pooled from waiting requests.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Pad every batch to full size, so that a text depends only on its seed and input: with other shapes, rounding may
    /// change a token. A single text then costs as much as a full batch.
    #[arg(long)]
    one_shape: bool,
    /// Maximum number of texts per request.
    #[arg(long, default_value_t = 64)]
    max_texts: usize,
    /// Maximum number of waiting requests; further ones are told to retry later.
    #[arg(long, default_value_t = 256)]
    max_waiting: usize,
    /// Seconds a client may take to send a request's head, and again its body.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    read_timeout: usize,
    /// Seed for requests that give none, and for the time grid shared by all requests.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(mut args: ServeArgs) -> Result<ExitCode> {
    at_least_one(&[
        ("--batch-size", args.batch_size),
        ("--max-texts", args.max_texts),
        ("--max-waiting", args.max_waiting),
        ("--read-timeout", args.read_timeout),
    ])?;
    at_most(&[
        ("--batch-size", args.batch_size, MOST_ROWS),
        ("--max-texts", args.max_texts, MOST_TEXTS),
        ("--max-waiting", args.max_waiting, MOST_WAITING),
        ("--read-timeout", args.read_timeout, 24 * 3600),
    ])?;
    let device = args.model.device.resolve()?;
    args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
    let found =
        ModelRef::open(&args.model.path)?.elf_only("which `elf serve` does not serve: `elf sample` writes with it")?;
    let mut terminal = Terminal::default();
    let host = &hub::host(&mut terminal);
    let described = DescribedModel::of(found, args.model.source(device), host)?;
    described.check_encoder_is_used()?;
    let setting = only(args.sampling.settings(&described, host)?, &args.sampling)?;
    described.check_memory(args.batch_size)?;
    let socket = http::bind(&args.listen)?;
    let model = described.open(host)?;
    model.prepare(&setting)?;
    let options = ServeOptions {
        name: args.model.path.file_name().map(|name| name.to_string_lossy().into_owned()),
        batch_size: args.batch_size,
        one_shape: args.one_shape,
        max_texts: args.max_texts,
        max_waiting: args.max_waiting,
        read_timeout: Duration::from_secs(args.read_timeout as u64),
        seed: args.seed,
    };
    let stop = progress::stop_on_interrupt()?;
    note!(
        "serving {} on {}, {} texts at a time, at http://{}",
        args.model.path.display(),
        describe(device),
        args.batch_size,
        socket.local_addr()?
    );
    serve::serve(socket, &model, &setting, &options, stop)?;
    Ok(ExitCode::SUCCESS)
}

/// A server samples in one way.
fn only(settings: Vec<Sampling>, args: &SamplingArgs) -> Result<Sampling> {
    let [setting] = <[_; 1]>::try_from(settings).map_err(|settings| {
        let file = args.sampling_config.as_deref().unwrap_or(Path::new(SAMPLING)).display();
        anyhow!("{file} has {} settings: a server samples with one, so leave one in it", settings.len())
    })?;
    Ok(setting)
}
