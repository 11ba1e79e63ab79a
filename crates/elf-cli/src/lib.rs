//! The program `elf`: prepares text, trains embedded language flows, samples from them and judges what they write.
//!
//! It is the only place that prints, shows progress and reads the environment (but for the hub's variables, which
//! `elf_hub::Settings::from_env` reads), and the only one that turns names (of models, samplers, encoders, devices) into types.

mod bench;
mod commands;
mod events;
mod hub;
mod numbers;
mod options;
mod outputs;
mod printing;
mod progress;
mod rank_environment;
mod standard_streams;
mod step_timeline;
mod training_view;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::printing::{ReaderGone, note};

/// Embedded language flows: text is encoded into latents, a flow carries noise to latents, a last step decodes them
/// into words.
///
/// In place of a file of texts or settings, `-` is standard input; in place of a file to write, standard output.
#[derive(Debug, Parser)]
#[command(name = "elf", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare token shards from text, and inspect them.
    #[command(subcommand)]
    Data(commands::data::DataCommand),
    /// Train a tokenizer on your own corpus.
    #[command(subcommand)]
    Tokenizer(commands::tokenizer::TokenizerCommand),
    /// Create a text encoder, and measure its latents.
    #[command(subcommand)]
    Encoder(commands::encoder::EncoderCommand),
    /// Train a model, or resume training one.
    Train(commands::train::TrainArgs),
    /// Run a command in several cooperating processes on this host: `elf launch --nproc 2 -- train config.yml`.
    Launch(commands::launch::LaunchArgs),
    /// Estimate on paper what a training step costs on many GPUs: the tables of docs/scaling.md.
    Scaling(commands::scaling::ScalingArgs),
    /// Distil a many-step model into a few-step one by progressive distillation.
    Distill(Box<commands::distill::DistillArgs>),
    /// Generate text.
    Sample(Box<commands::sample::SampleArgs>),
    /// Fill the gaps of texts, with a model that was trained for it: every given word stays where it is.
    Infill(Box<commands::infill::InfillArgs>),
    /// Correct texts, with a model that was trained to fill gaps: words that do not fit the others are written anew.
    Correct(Box<commands::correct::CorrectArgs>),
    /// Serve text generation over HTTP, many requests at once.
    Serve(Box<commands::serve::ServeArgs>),
    /// Convert checkpoints between formats: the released code's PyTorch checkpoints, and safetensors.
    Convert(commands::convert::ConvertArgs),
    /// Export a run to one small folder to share: parameters, settings, tokenizer, model card.
    Export(commands::export::ExportArgs),
    /// Probe a trained flow: at each time, how close its estimates are to true texts, and how many words are decoded
    /// correctly from them.
    Probe(Box<commands::probe::ProbeArgs>),
    /// Bound the likelihood of given texts under a trained flow: at most so many bits a token.
    Likelihood(Box<commands::likelihood::LikelihoodArgs>),
    /// Evaluate generated text.
    Eval(commands::eval::EvalArgs),
    /// Measure how fast this machine trains and samples, compared with its fastest matrix product.
    Bench(commands::bench::BenchArgs),
    /// Fetch models, tokenizers and data sets from the Hugging Face hub ahead of time.
    Pull(commands::pull::PullArgs),
}

impl Command {
    /// The name of a command that does not share its work: several processes would write over one another, or get in each other's way.
    fn alone(&self) -> Option<&'static str> {
        match self {
            Command::Data(_) => Some("elf data"),
            Command::Tokenizer(_) => Some("elf tokenizer"),
            Command::Encoder(_) => Some("elf encoder"),
            Command::Serve(_) => Some("elf serve"),
            Command::Convert(_) => Some("elf convert"),
            Command::Export(_) => Some("elf export"),
            Command::Bench(_) => Some("elf bench"),
            _ => None,
        }
    }

    /// Whether it runs networks.
    fn computes(&self) -> bool {
        !matches!(
            self,
            Command::Data(_) | Command::Tokenizer(_) | Command::Pull(_) | Command::Launch(_) | Command::Scaling(_)
        )
    }
}

/// The program from its command line to its exit code.
pub fn main() -> ExitCode {
    hush_panics();
    let cli = match understood() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if cli.command.computes() {
        start_with_patient_threads();
        keep_freed_memory();
        elf_kernels::mkl::use_vector_code();
        elf_kernels::flush_denormals();
    }
    let outcome = std::panic::catch_unwind(|| carry_out(cli.command));
    standard_streams::forget();
    match outcome {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => failed(&error),
        Err(panic) => {
            let (message, code) = internal(panic.as_ref());
            note!("error: {message}");
            ExitCode::from(code)
        }
    }
}

/// The commands and options of the program.
pub fn command() -> clap::Command {
    options::in_common(Cli::command())
}

/// The command line, or the exit code after an answer to it.
fn understood() -> Result<Cli, ExitCode> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(std::env::args_os()).map_err(answer)?;
    outputs::check(&command, &matches).map_err(|error| failed(&error))?;
    Cli::from_arg_matches(&matches).map_err(answer)
}

/// Prints what clap answers to a command line: help and version on standard output, mistakes on standard error.
fn answer(answer: clap::Error) -> ExitCode {
    let printed = answer.print().and_then(|()| std::io::stdout().flush());
    if answer.use_stderr() {
        return ExitCode::from(2);
    }
    match printing::checked(printed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Reports an error. A reader of standard output that has seen enough is none.
fn failed(error: &anyhow::Error) -> ExitCode {
    if error.is::<ReaderGone>() {
        return ExitCode::SUCCESS;
    }
    let message = plain(error);
    if message.contains("/dev/stdout") && message.contains("Broken pipe") {
        return ExitCode::SUCCESS;
    }
    note!("error: {message}");
    ExitCode::FAILURE
}

fn carry_out(command: Command) -> anyhow::Result<ExitCode> {
    if let Some(name) = command.alone() {
        rank_environment::refuse_several(name)?;
    }
    match command {
        Command::Data(command) => commands::data::run(command),
        Command::Tokenizer(command) => commands::tokenizer::run(command),
        Command::Encoder(command) => commands::encoder::run(command),
        Command::Train(args) => commands::train::run(args),
        Command::Launch(args) => commands::launch::run(args),
        Command::Scaling(args) => commands::scaling::run(args),
        Command::Distill(args) => commands::distill::run(*args),
        Command::Sample(args) => commands::sample::run(*args),
        Command::Infill(args) => commands::infill::run(*args),
        Command::Correct(args) => commands::correct::run(*args),
        Command::Serve(args) => commands::serve::run(*args),
        Command::Convert(args) => commands::convert::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Probe(args) => commands::probe::run(*args),
        Command::Likelihood(args) => commands::likelihood::run(*args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Pull(args) => commands::pull::run(args),
    }
}

/// libtorch's threads spin while they wait for one another, for a long time by default: right on an idle machine, ruinous
/// on a busy one, where training on two cores was measured at a tenth of its speed. A short spin loses nothing on a busy machine, and on an idle one less than threads that sleep at once.
/// OpenMP reads its setting once, when it is loaded, so the program re-executes itself with the variable set; a value the user
/// has set is kept.
fn start_with_patient_threads() {
    #[cfg(unix)]
    if std::env::var_os("OMP_WAIT_POLICY").is_none() && std::env::var_os("GOMP_SPINCOUNT").is_none() {
        use std::os::unix::process::CommandExt;
        if let (Ok(program), Ok(input)) = (std::env::current_exe(), standard_streams::again()) {
            // Comes back only if it failed, and then the setting is not worth an error.
            let _ = std::process::Command::new(program)
                .args(std::env::args_os().skip(1))
                .stdin(input)
                .env("GOMP_SPINCOUNT", "10000")
                .exec();
        }
    }
}

/// glibc gives every large block back to the system as soon as it is freed, and gets it anew, page by page and zeroed, for the
/// next tensor: a third of a training step of 32 x 256 positions was spent on that. Here freed memory stays for the next step.
/// Whoever has set glibc's own variables is left alone.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let theirs = ["GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"];
        if theirs.iter().any(|name| std::env::var_os(name).is_some()) {
            return;
        }
        const PAD: libc::c_int = 64 << 20;
        // SAFETY: mallopt takes two numbers; no other thread is running yet. A refusal changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            libc::mallopt(libc::M_TOP_PAD, PAD);
        }
    }
}

/// Plain tensor operations panic where memory runs out or shapes clash; a user gets one line, a developer who sets
/// RUST_BACKTRACE the whole story.
fn hush_panics() {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
}

/// An error and its causes in one line. A cause that is already told is not told twice: many messages quote their cause.
fn plain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    // libtorch's messages carry a C++ stack behind the reason.
    let is_stack = |line: &&str| line.starts_with("Exception raised from") || line.starts_with("frame #");
    let reason = text.lines().take_while(|line| !is_stack(line)).collect::<Vec<_>>().join("\n");
    let reason = reason.trim_end();
    if memory_is_short(&text) { out_of_memory(reason) } else { reason.to_owned() }
}

fn memory_is_short(message: &str) -> bool {
    message.contains("out of memory") || message.contains("DefaultCPUAllocator")
}

fn out_of_memory(reason: &str) -> String {
    format!("out of memory: use a smaller batch, shorter sequences or a smaller model ({reason})")
}

/// The message and exit code of a panic: memory that ran out is the user's business, anything else a defect (70, as
/// sysexits has it).
fn internal(panic: &(dyn std::any::Any + Send)) -> (String, u8) {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("");
    // libtorch's messages carry a C++ stack behind the first line; in a panic its line ends are escaped.
    let first = text.lines().next().and_then(|line| line.split("\\n").next()).unwrap_or("no message");
    let first = first.split_once("Torch(\"").map_or(first, |(_, reason)| reason);
    if memory_is_short(text) {
        (out_of_memory(first), 1)
    } else {
        (format!("this is a defect of elf; set RUST_BACKTRACE=1 and report it with what is printed then ({first})"), 70)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of a command line as a shell splits them, as far as the documentation goes: quotes, and comments at the end.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        for c in line.split(" # ").next().unwrap_or(line).chars() {
            match c {
                '"' => quoted = !quoted,
                ' ' if !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
                c => word.push(c),
            }
        }
        words.extend((!word.is_empty()).then_some(word));
        words
    }

    #[test]
    fn command_lines_in_the_documentation_are_understood() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");
        let mut understood = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "md") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            // Inside fences, which are every second part.
            for block in text.split("```").skip(1).step_by(2).filter(|block| block.starts_with("sh\n")) {
                for line in block.lines().filter(|line| line.starts_with("elf ")) {
                    if let Err(error) = Cli::try_parse_from(words(line)) {
                        panic!("{}: {line}\n{error}", path.display());
                    }
                    understood += 1;
                }
            }
        }
        assert!(understood > 20, "{understood}");
    }
}
