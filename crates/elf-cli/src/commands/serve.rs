//! `elf serve`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use elf_core::device::describe;
use elf_hub::What;
use elf_train::Solo;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::model_args::ModelArgs;
use super::sampling_args::{SamplingArgs, notes};
use super::{MOST_ROWS, at_least_one, at_most};
use crate::events::Terminal;
use crate::{hub, progress};
use elf_lm::Reporter;
use elf_lm::config::{SAMPLING, SamplingSetting};
use elf_lm::model::loaded_model::{DescribedModel, LoadedModel, precision};
use elf_lm::model::run_folder::FoundModel;
use elf_lm::serve::http::{self, Service};
use elf_lm::serve::queue;
use elf_lm::text::text_generation::{MOST_TEXTS, TextGenerator};

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
    let socket = http::bind(&args.listen)?;
    args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
    let found = FoundModel::find(&args.model.path)?
        .map(|found| found.elf_only("which `elf serve` does not serve: `elf sample` writes with it"));
    let precision = precision(args.model.f32, device);
    let (source, mut terminal) = (args.model.source(), Terminal::default());
    let events = &Reporter::new(&mut terminal);
    let described = DescribedModel::of(found.transpose()?, &source, device, events)?;
    let setting = only(args.sampling.settings(&args.model.path, &described.plan)?, &args.sampling)?;
    notes(&described.plan, std::slice::from_ref(&setting)).for_each(|note| eprintln!("{note}"));
    let guide = described.guide(std::slice::from_ref(&setting), &source, device, events)?;
    let (model, guide) = described.load_with_guide(guide, &source, device, precision)?;
    let generator = TextGenerator {
        net: &model.net,
        plan: &model.plan,
        guide: guide.as_ref().map(LoadedModel::as_guide),
        tokenizer: &model.tokenizer,
        latents: model.latents.as_ref(),
        grid_seed: args.seed,
        batch_rows: args.batch_size,
        comm: &Solo,
        one_shape: args.one_shape,
    };

    let (jobs, waiting) = mpsc::channel(args.max_waiting);
    let service = Service {
        jobs,
        about: Arc::new(about(&args, &model, &setting)),
        conditional: model.plan.span.max_input_length.is_some(),
        most_texts: args.max_texts,
        seed: args.seed,
        read_timeout: Duration::from_secs(args.read_timeout as u64),
        waiting: Arc::default(),
    };
    let stop = progress::stop_on_interrupt()?;
    eprintln!(
        "serving {} on {}, {} texts at a time, at http://{}",
        args.model.path.display(),
        describe(device),
        args.batch_size,
        socket.local_addr()?
    );
    let connections = std::thread::spawn(move || http::serve(socket, service, stop));
    // Ends when the last connection does.
    queue::work(waiting, args.batch_size, &mut |requests| {
        Ok(generator.generate(&setting, requests, &[], &mut |_| {})?.texts)
    });
    connections.join().map_err(|_| anyhow!("the thread of the connections is gone"))??;
    Ok(ExitCode::SUCCESS)
}

/// A server samples in one way.
fn only(settings: Vec<SamplingSetting>, args: &SamplingArgs) -> Result<SamplingSetting> {
    let [setting] = <[_; 1]>::try_from(settings).map_err(|settings| {
        let file = args.sampling_config.as_deref().unwrap_or(Path::new(SAMPLING)).display();
        anyhow!("{file} has {} settings: a server samples with one, so leave one in it", settings.len())
    })?;
    Ok(setting)
}

/// What clients are told of the model.
fn about(args: &ServeArgs, model: &LoadedModel, setting: &SamplingSetting) -> Value {
    json!({
        "model": args.model.path.file_name().map(|name| name.to_string_lossy()),
        "parameters": model.plan.model.parameter_count(),
        "positions": model.plan.span.max_length,
        "input_positions": model.plan.span.max_input_length,
        "sampling": setting.name(),
        "texts_at_once": args.batch_size,
        "texts_per_request": args.max_texts,
    })
}
