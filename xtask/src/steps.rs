//! Child processes run one after another: shown, timed, stopped at the first failure.

use std::env;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The number of interrupts: Ctrl-C, or a request to terminate.
static INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

/// How long a child may take to save its work after an interrupt.
const GRACE: Duration = Duration::from_secs(60);

/// Keeps this program running at Ctrl-C until its children have ended. Ctrl-C reaches them as well, since they share our process
/// group; waiting lets them save and print everything before the prompt returns.
///
/// # Errors
/// If no handler can be installed.
pub fn outlive_children_on_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        // Children check this number before they start; a second interrupt ends the running one.
        INTERRUPTS.fetch_add(1, Ordering::SeqCst);
    })
    .context("no handler for Ctrl-C can be installed")
}

/// Steps with their titles and the time that each took.
#[derive(Default)]
pub struct Steps {
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// Shows the title, runs the work, keeps its time.
    ///
    /// # Errors
    /// Those of the work.
    pub fn time<T>(&mut self, title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n==> {title}");
        let start = Instant::now();
        let result = work();
        self.done.push((title.to_owned(), start.elapsed()));
        result.with_context(|| format!("stopped at \"{title}\""))
    }

    /// Runs one child process as a step; its output goes straight to the terminal.
    ///
    /// # Errors
    /// If it cannot be started or fails; the message has the command line that repeats it.
    pub fn run(&mut self, title: &str, command: &mut Command) -> Result<()> {
        self.time(title, || {
            println!("    {}", command_line(command));
            run(command)
        })
    }

    /// One line for each step and one for their sum.
    pub fn table(&self) -> String {
        let total = self.done.iter().map(|(_, time)| *time).sum();
        let rows = self.done.iter().map(|(title, time)| (title.as_str(), *time));
        let rows: Vec<_> = rows.chain([("total", total)]).collect();
        let width = rows.iter().map(|(title, _)| title.chars().count()).max().unwrap_or(0);
        rows.iter().fold(String::new(), |mut table, (title, time)| {
            let _ = writeln!(table, "{title:width$}  {:>8}", clock(*time));
            table
        })
    }
}

/// Runs a child process to its end.
///
/// # Errors
/// If it cannot be started, fails or is interrupted; the message has the command line to repeat it.
pub fn run(command: &mut Command) -> Result<()> {
    if INTERRUPTS.load(Ordering::SeqCst) > 0 {
        bail!("interrupted");
    }
    let line = command_line(command);
    let child = command.spawn().with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    let status = wait(child)?;
    if INTERRUPTS.load(Ordering::SeqCst) > 0 {
        bail!("interrupted; to go on from here by hand:\n    {line}");
    }
    if !status.success() {
        bail!("the command failed ({status}); to repeat it:\n    {line}");
    }
    Ok(())
}

fn wait(mut child: Child) -> Result<ExitStatus> {
    let mut interrupted = None;
    loop {
        if let Some(status) = child.try_wait().context("a child process cannot be awaited")? {
            return Ok(status);
        }
        let count = INTERRUPTS.load(Ordering::SeqCst);
        if count > 0 {
            let since = *interrupted.get_or_insert_with(Instant::now);
            if count > 1 || since.elapsed() > GRACE {
                child.kill().context("a child process cannot be ended")?;
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Variables that a command line typed by hand does not need: cargo's configuration has them.
const CONFIGURED: [&str; 2] = ["LIBTORCH", "CARGO_ENCODED_RUSTFLAGS"];

/// The command in the form for a shell, with the folder and variables that were set.
pub fn command_line(command: &Command) -> String {
    let mut words = Vec::new();
    let here = env::current_dir().unwrap_or_default();
    if let Some(folder) = command.get_current_dir()
        && folder != here
    {
        words.push(format!("cd {} &&", quoted(&folder.to_string_lossy())));
    }
    for (name, value) in command.get_envs() {
        let name = name.to_string_lossy();
        if let Some(value) = value
            && !CONFIGURED.contains(&name.as_ref())
        {
            words.push(format!("{name}={}", quoted(&value.to_string_lossy())));
        }
    }
    let program = Path::new(command.get_program());
    // The paths of cargo and of the programs that it builds are full ones; a person types the short form.
    let program = match program.file_name() {
        Some(name) if name == "cargo" => Path::new("cargo"),
        _ => program.strip_prefix(&here).unwrap_or(program),
    };
    words.push(quoted(&program.to_string_lossy()));
    words.extend(command.get_args().map(|word| quoted(&word.to_string_lossy())));
    words.join(" ")
}

/// A word for a POSIX shell, quoted only where it has to be.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A time as a person reads it: `4.2 s`, `3 m 07 s`.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds.round() as u64;
        format!("{} m {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_typed_again() {
        let mut command = Command::new("elf");
        command.args(["train", "it's.yml", "-o", "a=b", ""]).env("X", "1 2");
        command.current_dir("/a b");
        assert_eq!(command_line(&command), r"cd '/a b' && X='1 2' elf train 'it'\''s.yml' -o a=b ''");

        let mut command = Command::new("/toolchain/bin/cargo");
        command.arg("test").env("LIBTORCH", "/torch").current_dir(env::current_dir().unwrap());
        assert_eq!(command_line(&command), "cargo test");

        let built = env::current_dir().unwrap().join("target/release/elf");
        assert_eq!(command_line(&Command::new(built)), "target/release/elf");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(clock(Duration::from_millis(4_240)), "4.2 s");
        assert_eq!(clock(Duration::from_millis(59_990)), "1 m 00 s");
        assert_eq!(clock(Duration::from_secs(187)), "3 m 07 s");
    }

    #[test]
    fn steps_stop_at_a_failure_and_say_how_to_repeat_it() {
        let mut steps = Steps::default();
        steps.run("fine", Command::new("sh").args(["-c", "exit 0"])).unwrap();
        let error = steps.run("broken", Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("stopped at \"broken\""), "{message}");
        assert!(message.contains("exit status: 3"), "{message}");
        assert!(message.contains("sh -c 'exit 3'"), "{message}");

        let table = steps.table();
        let titles: Vec<_> = table.lines().filter_map(|row| row.split("  ").next()).collect();
        assert_eq!(titles, ["fine", "broken", "total"]);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-program-here"));
    }
}
