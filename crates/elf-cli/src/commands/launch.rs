//! `elf launch`: several processes of one host that work together.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_c10d::Store;

use super::at_most;
use crate::rank_environment::prefix;

/// How long the other ranks have to end by themselves, and say why, after one has failed.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at the processes.
const POLL: Duration = Duration::from_millis(30);

/// Most processes on one host.
const MOST_RANKS: usize = 4096;
/// Longest that an operation may wait, in seconds: a year.
const LONGEST_TIMEOUT: usize = 365 * 24 * 3600;

#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// Number of processes.
    #[arg(long, value_name = "N")]
    nproc: usize,
    /// Seconds an operation waits for the other ranks before the run is aborted; must exceed the time to write a
    /// checkpoint. Default: 600, unless ELF_TIMEOUT is set.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The command that each process runs: a command of this program with its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub fn run(args: LaunchArgs) -> Result<ExitCode> {
    if args.nproc == 0 {
        bail!("--nproc must be at least 1");
    }
    if args.timeout == Some(0) {
        bail!("--timeout must be at least 1");
    }
    let timeout = args.timeout.map_or(1, |seconds| usize::try_from(seconds).unwrap_or(usize::MAX));
    at_most(&[("--nproc", args.nproc, MOST_RANKS), ("--timeout", timeout, LONGEST_TIMEOUT)])?;
    if args.command.first().is_some_and(|c| c == "launch") {
        bail!("a launched process cannot launch others: give `elf launch` another command, such as train");
    }
    elf_c10d::hush_libtorch();
    // Kept here, so that it outlives any rank: whoever loses contact can still ask what has happened.
    let store = Store::serve_this_host(Duration::from_secs(60))?;
    let interrupts = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&interrupts);
    ctrlc::set_handler(move || _ = seen.fetch_add(1, Ordering::SeqCst)).context("cannot listen for Ctrl-C")?;
    let mut ranks = Ranks::start(&args, &store)?;
    ranks.watch(&interrupts, &store)
}

/// All ranks; none is left when it is dropped.
struct Ranks {
    ranks: Vec<Rank>,
}

struct Rank {
    child: Child,
    ended: Option<ExitStatus>,
    /// Reads its standard error to the end and gives back its last words.
    errors: Option<JoinHandle<String>>,
}

impl Ranks {
    fn start(args: &LaunchArgs, store: &Store) -> Result<Self> {
        let program = std::env::current_exe().context("this program cannot be found again to start the ranks")?;
        let port = store.port().unwrap_or_default().to_string();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / args.nproc).max(1).to_string();
        let mut ranks = Self { ranks: Vec::with_capacity(args.nproc) };
        for rank in 0..args.nproc {
            let mut command = Command::new(&program);
            command
                .args(&args.command)
                .env("RANK", rank.to_string())
                .env("LOCAL_RANK", rank.to_string())
                .env("WORLD_SIZE", args.nproc.to_string())
                .env("LOCAL_WORLD_SIZE", args.nproc.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", &port)
                .env("TORCHELASTIC_USE_AGENT_STORE", "True")
                .env("TORCHELASTIC_RESTART_COUNT", "0");
            if std::env::var_os("OMP_NUM_THREADS").is_none() {
                command.env("OMP_NUM_THREADS", &threads);
            }
            if let Some(seconds) = args.timeout {
                command.env("ELF_TIMEOUT", seconds.to_string());
            }
            // Rank 0 speaks for all: the others would only say the same, until one of them fails.
            if rank > 0 {
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            }
            end_with_us(&mut command);
            let mut child = command.spawn().with_context(|| format!("rank {rank} cannot be started"))?;
            let errors = child.stderr.take().map(|pipe| std::thread::spawn(move || last_words(pipe)));
            ranks.ranks.push(Rank { child, ended: None, errors });
        }
        Ok(ranks)
    }

    /// Waits for all to end; when one fails, sees to it that the others do.
    fn watch(&mut self, interrupts: &AtomicUsize, store: &Store) -> Result<ExitCode> {
        let mut failed: Option<(usize, ExitStatus)> = None;
        let mut forwarded = 0;
        let mut until: Option<Instant> = None;
        loop {
            for (number, rank) in self.ranks.iter_mut().enumerate().filter(|(_, r)| r.ended.is_none()) {
                rank.ended = rank.child.try_wait().context("a rank cannot be waited for")?;
                if let Some(status) = rank.ended
                    && !status.success()
                    && failed.is_none()
                {
                    failed = Some((number, status));
                    until = Some(Instant::now() + GRACE);
                    if let Some(how) = by_signal(status) {
                        // It could not leave word itself.
                        if let Ok(words) = store.within(&format!("{}words", prefix("0"))) {
                            let _ = words.set_once("fault", format!("rank {number} was ended by {how}").as_bytes());
                        }
                    }
                }
            }
            if self.ranks.iter().all(|r| r.ended.is_some()) {
                break;
            }
            let asked = interrupts.load(Ordering::SeqCst);
            if asked > forwarded {
                forwarded = asked;
                self.interrupt();
            }
            if until.is_some_and(|t| Instant::now() >= t) {
                self.kill();
            }
            std::thread::sleep(POLL);
        }
        self.verdict(failed)
    }

    /// Passes an interruption on.
    fn interrupt(&mut self) {
        for rank in self.ranks.iter_mut().filter(|r| r.ended.is_none()) {
            send_interrupt(&mut rank.child);
        }
    }

    fn kill(&mut self) {
        for rank in self.ranks.iter_mut().filter(|r| r.ended.is_none()) {
            let _ = rank.child.kill();
        }
    }

    fn verdict(&mut self, failed: Option<(usize, ExitStatus)>) -> Result<ExitCode> {
        let Some((number, status)) = failed else { return Ok(ExitCode::SUCCESS) };
        // All of them were interrupted and have saved.
        let interrupted = |status: ExitStatus| status.code() == Some(130);
        if self.ranks.iter().all(|r| r.ended.is_some_and(interrupted)) {
            return Ok(ExitCode::from(130));
        }
        let words = self.ranks[number].errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let how = match by_signal(status) {
            Some(signal) => format!("was ended by {signal}"),
            None => format!("ended with exit code {}", status.code().unwrap_or(-1)),
        };
        match (number, words.is_empty()) {
            (_, false) => bail!("rank {number} {how}: {words}"),
            (0, true) if by_signal(status).is_none() => bail!("rank 0 {how}, for the reason it gave above"),
            _ => bail!("rank {number} {how}"),
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            if rank.ended.is_none() {
                let _ = rank.child.kill();
                let _ = rank.child.wait();
            }
        }
    }
}

/// The last error that a rank reports, else its last lines.
fn last_words(pipe: impl Read) -> String {
    let (mut error, mut last) = (None, VecDeque::new());
    let mut lines = BufReader::new(pipe);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        if let Some(message) = text.strip_prefix("error: ") {
            error = Some(message.to_owned());
        }
        if !text.is_empty() {
            last.push_back(text);
        }
        if last.len() > 5 {
            last.pop_front();
        }
    }
    error.unwrap_or_else(|| last.into_iter().collect::<Vec<_>>().join(" | "))
}

/// Sees to it that a child ends when this process does, however that ends, and is not interrupted by the terminal beside us:
/// we pass that on.
fn end_with_us(command: &mut Command) {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        command.process_group(0);
        #[cfg(target_os = "linux")]
        {
            let us = std::process::id();
            // SAFETY: both calls are safe between fork and exec: they allocate nothing and take no lock.
            unsafe {
                command.pre_exec(move || {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    // We may have ended before the line above.
                    match u32::try_from(libc::getppid()) == Ok(us) {
                        true => Ok(()),
                        false => Err(std::io::ErrorKind::Interrupted.into()),
                    }
                });
            }
        }
    }
    let _ = command;
}

#[cfg(unix)]
fn send_interrupt(child: &mut Child) {
    if let Ok(process) = libc::pid_t::try_from(child.id()) {
        // SAFETY: the child has not been waited for, so the number is still its own.
        unsafe { libc::kill(process, libc::SIGINT) };
    }
}

#[cfg(not(unix))]
fn send_interrupt(child: &mut Child) {
    let _ = child.kill();
}

/// The signal that ended a process, if one did.
fn by_signal(status: ExitStatus) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        status.signal().map(|n| format!("signal {n}"))
    }
    #[cfg(not(unix))]
    {
        let _ = status;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_error_or_the_last_lines() {
        assert_eq!(last_words(&b"model: x\nerror: the disk is full\nmore\n"[..]), "the disk is full");
        assert_eq!(last_words(&b"1\n2\n3\n\n4\n5\n6\n"[..]), "2 | 3 | 4 | 5 | 6");
        assert_eq!(last_words(&b"no end \xff"[..]), "no end \u{fffd}");
        assert_eq!(last_words(&b""[..]), "");
    }
}
