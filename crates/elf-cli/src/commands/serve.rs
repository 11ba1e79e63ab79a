//! `elf serve`.

mod access;
mod request_log;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use elf_core::device::describe;
use elf_hub::What;
use elf_lm::config::{BaselinePlan, SAMPLING};
use elf_lm::model::{DescribedModel, ModelRef, check_memory_together};
use elf_lm::serve::{Limits, ServeOptions, Server, Serving, Signals, connections};
use elf_lm::text::generated::MOST_TEXTS;
use elf_lm::{Host, Sampling, SamplingPatch};
use tch::Device;

use self::access::{AccessArgs, reread_on_hangup};
use self::request_log::{LogFormat, listener};
use super::model_args::ModelArgs;
use super::sampling_args::SamplingArgs;
use super::{MOST_ROWS, at_least_one, at_most};
use crate::events::Terminal;
use crate::printing::note;
use crate::{hub, progress};

/// Most requests that may wait; there is not room for any number of them.
const MOST_WAITING: usize = 1_000_000;

/// Most connections; a process has no more files.
const MOST_CONNECTIONS: usize = 65_536;

/// Most steps of one text.
const MOST_STEPS: usize = 100_000;

/// Largest body, in bytes.
const LARGEST_BODY: usize = 1 << 30;

/// Longest limit of time, in seconds.
const A_DAY: usize = 24 * 3600;

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Further models. A request names one by the last part of its path. Options apply to all models.
    #[arg(value_name = "MODEL")]
    more: Vec<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,

    /// Host and port to listen on. Port 0 picks a free one. An address that other machines reach needs --api-key-file or
    /// --no-auth.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: String,
    #[command(flatten)]
    access: AccessArgs,
    /// Texts generated at once, pooled from waiting requests.
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Pad every batch to full size, so that a text depends only on its seed and input: with other shapes, rounding may
    /// change a token. A single text then costs as much as a full batch.
    #[arg(long)]
    one_shape: bool,
    /// Maximum number of texts per request, candidates included.
    #[arg(long, default_value_t = 64)]
    max_texts: usize,
    /// Maximum number of steps per text that a request may ask for.
    #[arg(long, default_value_t = 1024)]
    max_steps: usize,
    /// Maximum length of an input text, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 10)]
    max_input: usize,
    /// Maximum size of a request's body, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    max_body: usize,
    /// Maximum number of waiting requests; further ones are told to retry later.
    #[arg(long, default_value_t = 256)]
    max_waiting: usize,
    /// Maximum number of open connections; further ones wait to be accepted.
    #[arg(long, default_value_t = 1024)]
    max_connections: usize,
    /// Seconds a client may take to send a request's head, again its body, and to read each part of an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    read_timeout: usize,
    /// Seconds from a complete request to its texts; a request that takes longer is refused with 504.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: usize,
    /// How requests are logged, one line each on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Seed for requests to /generate that give none, and for the time grid shared by all requests. Requests to /v1 that
    /// give none get a random one.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl ServeArgs {
    fn check(&self) -> Result<()> {
        let counts = [
            ("--batch-size", self.batch_size, MOST_ROWS),
            ("--max-texts", self.max_texts, MOST_TEXTS),
            ("--max-steps", self.max_steps, MOST_STEPS),
            ("--max-input", self.max_input, LARGEST_BODY),
            ("--max-body", self.max_body, LARGEST_BODY),
            ("--max-waiting", self.max_waiting, MOST_WAITING),
            ("--max-connections", self.max_connections, MOST_CONNECTIONS),
            ("--read-timeout", self.read_timeout, A_DAY),
            ("--timeout", self.timeout, A_DAY),
        ];
        at_least_one(&counts.map(|(flag, count, _)| (flag, count)))?;
        at_most(&counts)
    }

    fn options(&self) -> ServeOptions {
        let limits = Limits {
            texts: self.max_texts,
            steps: self.max_steps,
            input: self.max_input,
            body: self.max_body,
            waiting: self.max_waiting,
            connections: self.max_connections,
            read_timeout: Duration::from_secs(self.read_timeout as u64),
            timeout: Duration::from_secs(self.timeout as u64),
        };
        ServeOptions { batch_size: self.batch_size, one_shape: self.one_shape, seed: self.seed, limits }
    }

    /// A model of the command line, and how it samples.
    fn described(&self, path: &Path, device: Device, host: &Host) -> Result<(DescribedModel, Sampling)> {
        let path = hub::locate(path, What::ElfCheckpoint)?;
        let args = ModelArgs { path: path.clone(), ..self.model.clone() };
        let described = DescribedModel::of(ModelRef::open(&path)?, args.source(device), host)?;
        described.check_encoder_is_used()?;
        if let Some(baseline) = &described.plan.baseline {
            check_for_baseline(&self.sampling, baseline)?;
        }
        let setting = only(self.sampling.settings(&described, host)?, &self.sampling)?;
        Ok((described, setting))
    }
}

pub fn run(args: ServeArgs) -> Result<ExitCode> {
    args.check()?;
    let device = args.model.device.resolve()?;
    let mut terminal = Terminal::default();
    let host = &hub::host(&mut terminal);
    let paths: Vec<&PathBuf> = std::iter::once(&args.model.path).chain(&args.more).collect();
    let names = paths.iter().map(|path| name(path, &paths)).collect::<Result<Vec<_>>>()?;
    let described = paths.iter().map(|path| args.described(path, device, host)).collect::<Result<Vec<_>>>()?;
    check_memory_together(&described.iter().map(|(model, _)| model).collect::<Vec<_>>(), args.batch_size)?;
    let access = args.access.read()?;
    let scheme = if access.tls.is_some() { "https" } else { "http" };
    let socket = connections::bind(&args.listen)?;
    let address = socket.local_addr()?;
    args.access.check_exposure(address)?;
    let signals = Signals { stop: progress::stop_on_interrupt()?, reread: reread_on_hangup(&access) };
    let server = Server::start(socket, args.options(), access, signals, listener(args.log_format))?;
    let (mut models, mut settings) = (Vec::new(), Vec::new());
    for (model, setting) in described {
        models.push(model.open(host)?);
        settings.push(setting);
    }
    let serving = names.iter().zip(&models).zip(settings);
    let serving: Vec<Serving> =
        serving.map(|((name, model), sampling)| Serving { name: name.clone(), model, sampling }).collect();
    let server = server.with_models(&serving)?;
    note!(
        "serving {} on {}, {} texts at a time, at {scheme}://{address}",
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
        describe(device),
        args.batch_size,
    );
    server.run()?;
    Ok(ExitCode::SUCCESS)
}

/// The name of a model for clients: the last part of its path, in which it must differ from the others.
fn name(path: &Path, all: &[&PathBuf]) -> Result<String> {
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let Some(name) = last(path).or_else(|| last(&path.canonicalize().ok()?)) else {
        bail!("{} has no last part by which clients could name the model: give another path to it", path.display());
    };
    match all.iter().filter(|other| last(other).as_ref() == Some(&name)).count() {
        0 | 1 => Ok(name),
        _ => bail!(
            "two models are named {name}, by which clients choose one: give one of them another name, such as by a symbolic link to it"
        ),
    }
}

/// Refuses sampling options that a baseline does not have.
fn check_for_baseline(args: &SamplingArgs, baseline: &BaselinePlan) -> Result<()> {
    let known: &[&str] = match baseline {
        BaselinePlan::Gpt2(_) => &["temperature", "top_p", "mbr"],
        BaselinePlan::Mdlm { .. } => &["num_sampling_steps", "mbr"],
    };
    let patch = SamplingPatch::of(args)?;
    let mut others: Vec<String> = patch.keys().filter(|key| !known.contains(key)).map(flag).collect();
    others.extend(args.sampling_config.is_some().then(|| "--sampling-config".to_owned()));
    others.extend(args.uniform_grid.then(|| "--uniform-grid".to_owned()));
    match others.is_empty() {
        true => Ok(()),
        false => bail!("{} has no meaning for {}: leave it out", others.join(", "), baseline.describe()),
    }
}

/// The option that sets a key.
fn flag(key: &str) -> String {
    match key {
        "num_sampling_steps" => "--steps".to_owned(),
        key => format!("--{}", key.replace('_', "-")),
    }
}

/// A server samples in one way, unless a request changes it.
fn only(settings: Vec<Sampling>, args: &SamplingArgs) -> Result<Sampling> {
    let [setting] = <[_; 1]>::try_from(settings).map_err(|settings| {
        let file = args.sampling_config.as_deref().unwrap_or(Path::new(SAMPLING)).display();
        anyhow!("{file} has {} settings: a server samples with one, so leave one in it", settings.len())
    })?;
    Ok(setting)
}
