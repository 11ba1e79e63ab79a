//! `elf sample`.

mod args;
mod baseline;
mod requests;
mod shown;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use elf_data::Tokenizer;
use elf_hub::What;
use elf_lm::config::RunPlan;
use elf_lm::model::loaded::Method;
use elf_lm::model::{DescribedModel, ModelRef};
use elf_lm::text::text_file::check_writable;
use elf_lm::text::text_run::{TextFiles, TextJob};
use elf_lm::{Host, TextRequest, Written};
use elf_train::Comm;
use tch::Device;

pub use self::args::SampleArgs;
use self::requests::requests;
use crate::events::Terminal;
use crate::printing::note;
use crate::standard_streams::is_output;
use crate::{hub, progress, rank_environment};

/// Texts of a file that are also printed.
const PREVIEW: usize = 3;

/// What makes the requests of a job, given the model.
pub type Asked<'a> = &'a dyn Fn(&SampleArgs, &RunPlan, &Tokenizer, &Host) -> Result<Vec<TextRequest>>;

pub fn run(args: SampleArgs) -> Result<ExitCode> {
    run_for(args, &requests)
}

/// Generates the texts that are `asked` for, and prints or writes them.
pub fn run_for(args: SampleArgs, asked: Asked) -> Result<ExitCode> {
    let (device, comm) = rank_environment::meet(args.model.device)?;
    sample(args, asked, device, comm.as_ref()).inspect_err(|error| comm.stopping_for(&format!("{error:#}")))
}

fn sample(args: SampleArgs, asked: Asked, device: Device, comm: &dyn Comm) -> Result<ExitCode> {
    if let Some(path) = args.output.as_ref().filter(|_| comm.rank() == 0) {
        check_writable(path)?;
    }
    let mut terminal = Terminal::default();
    let mut host = hub::host(&mut terminal);
    let (args, job) = job_for(args, asked, device, &host)?;
    if args.output.is_some() && comm.world() == 1 {
        host = host.with_stop(progress::stop_on_interrupt()?);
    }
    let job = job.load(&host)?;
    let run = job.run(comm, &host);
    let mut files = TextFiles::new(run);
    // Files are written whether or not their texts can be printed.
    let mut printed = Ok(());
    for method in job.methods() {
        let started = Instant::now();
        let output = args.output_of(method, job.methods().len())?;
        let (generation, earlier) = match output.as_deref().map(|path| files.write(method, path, &host)).transpose()? {
            None => (run.generate(method, &host)?, 0),
            Some(Written::All { generation, earlier_positions }) => (generation, earlier_positions),
            Some(Written::Interrupted(kept)) => {
                note!("{}", interrupted(&kept));
                return Ok(ExitCode::from(130));
            }
        };
        if comm.rank() > 0 {
            continue;
        }
        note!("{}", shown::summary(&method.name(), &generation, earlier, started.elapsed().as_secs_f64()));
        let Some(path) = output else {
            shown::print(&generation, &generation.texts)?;
            continue;
        };
        note!("written to {}", path.display());
        if printed.is_ok() && !is_output(&path) {
            let preview = if args.trace { 0 } else { generation.texts.len().min(PREVIEW) };
            printed = shown::print(&generation, &generation.texts[..preview]);
        }
    }
    files.finish()?;
    printed.map(|()| ExitCode::SUCCESS)
}

/// Generates the texts of a job with one method into a file, and prints none of them.
///
/// # Errors
/// If the texts cannot be generated or written, or Ctrl-C interrupts.
pub fn write_silently(job: TextJob, path: &Path, comm: &dyn Comm) -> Result<()> {
    let mut terminal = Terminal::default();
    let host = hub::host(&mut terminal).with_stop(progress::stop_on_interrupt()?);
    let job = job.load(&host)?;
    let mut files = TextFiles::new(job.run(comm, &host));
    for method in job.methods() {
        if let Written::Interrupted(kept) = files.write(method, path, &host)? {
            bail!("{}", interrupted(&kept));
        }
    }
    Ok(files.finish()?)
}

fn interrupted(kept: &Path) -> String {
    format!("interrupted; finished texts are in {}: the same command goes on", kept.display())
}

/// Reads model, settings and requests; no parameters are loaded.
///
/// # Errors
/// If there is no such model, or it cannot do what is asked for.
pub fn job(args: SampleArgs, device: Device, host: &Host) -> Result<(SampleArgs, TextJob)> {
    job_for(args, &requests, device, host)
}

fn job_for(mut args: SampleArgs, asked: Asked, device: Device, host: &Host) -> Result<(SampleArgs, TextJob)> {
    args.check()?;
    args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
    let found = ModelRef::open(&args.model.path)?;
    let source = args.model.source(device);
    let options = args.options();
    if let Some((plan, baseline)) = found.plan().and_then(|plan| Some((plan, plan.baseline.as_ref()?))) {
        let methods =
            vec![Method::Baseline { decoding: args.decoding(baseline, plan)?, mbr: args.sampling.mbr.unwrap_or(1) }];
        let model = DescribedModel::of(found, source, host)?;
        let requests = asked(&args, &model.plan, &model.tokenizer, host)?;
        return Ok((args, TextJob { requests, model, guide: None, methods, options }));
    }
    args.check_for_elf()?;
    let model = DescribedModel::of(found, source, host)?;
    model.check_encoder_is_used()?;
    let requests = asked(&args, &model.plan, &model.tokenizer, host)?;
    let settings = args.sampling.settings(&model, host)?;
    let guide = model.guide(&settings, host)?;
    let methods = settings.into_iter().map(Method::Flow).collect();
    Ok((args, TextJob { requests, model, guide, methods, options }))
}
