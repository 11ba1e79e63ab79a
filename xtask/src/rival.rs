//! The program's speed beside that of the paper's equations in PyTorch, eager and compiled, on one machine in one run.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::libtorch::{SetUp, setup};
use crate::steps::command_line;
use crate::wheel::with_torch;
use crate::workspace::Workspace;

/// The rival's source.
const RIVAL: &str = "tests/rival/rival.py";

/// Settings of `cargo xtask rival`.
#[derive(Debug, Args)]
pub struct Options {
    /// Rows per batch.
    #[arg(long, default_value_t = 8)]
    rows: u32,
    /// Positions per row.
    #[arg(long, default_value_t = 256)]
    seq: u32,
    /// Training steps of each run; their median counts in PyTorch, their mean in the program.
    #[arg(long, default_value_t = 5)]
    steps: u32,
    /// Steps of the SDE sampler.
    #[arg(long, default_value_t = 32)]
    sampling_steps: u32,
    /// How often all are measured, in turns; the best of each counts, since other programs can only take away.
    #[arg(long, default_value_t = 2)]
    rounds: u32,
}

/// One way to compute.
#[derive(Debug)]
struct Entry {
    name: &'static str,
    ours: bool,
    /// Whether blocks are in bf16; else all is in fp32.
    bf16: bool,
    arguments: &'static [&'static str],
    train: f64,
    sample: f64,
}

fn entries() -> Vec<Entry> {
    let entry = |name, ours, bf16, arguments| Entry { name, ours, bf16, arguments, train: 0.0, sample: 0.0 };
    vec![
        entry("PyTorch, fp32", false, false, &[] as &[_]),
        entry("PyTorch compiled, fp32", false, false, &["--compile"]),
        entry("PyTorch, bf16 autocast", false, true, &["--bf16"]),
        entry("PyTorch compiled, bf16 autocast", false, true, &["--bf16", "--compile"]),
        entry("elf, fp32", true, false, &["--f32"]),
        entry("elf, as it chooses here", true, true, &[]),
        entry("elf, 8-bit products in sampling", true, true, &["--int8"]),
    ]
}

impl Options {
    fn sizes(&self) -> [(&'static str, u32); 3] {
        [("--seq", self.seq), ("--steps", self.steps), ("--sampling-steps", self.sampling_steps)]
    }

    fn command(&self, workspace: &Workspace, elf: &Path, python: &Command, entry: &Entry) -> Command {
        let mut command = if entry.ours {
            let mut elf = Command::new(elf);
            elf.args(["bench", "--device", "cpu", "--only", "train", "--only", "sample", "--json", "-"]);
            elf.args(["--batch", &self.rows.to_string()]);
            elf
        } else {
            let mut rival = Command::new(python.get_program());
            rival.envs(python.get_envs().filter_map(|(name, value)| Some((name, value?))));
            rival.arg(workspace.root.join(RIVAL)).args(["--rows", &self.rows.to_string()]);
            rival
        };
        for (flag, value) in self.sizes() {
            command.args([flag, &value.to_string()]);
        }
        command.args(entry.arguments);
        command
    }
}

/// Positions a second of training and of sampling, from what a run printed.
fn speeds(printed: &str) -> Result<[f64; 2]> {
    let value: Value = printed
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok())
        .map_or_else(|| serde_json::from_str(printed).context("no JSON object was printed"), Ok::<_, anyhow::Error>)?;
    let speed = |name: &str| value[name].as_f64().with_context(|| format!("{name} is missing in {printed}"));
    Ok([speed("train_positions_per_s")?, speed("sample_positions_per_s")?])
}

/// The best of PyTorch in the precision of an entry, or in any.
fn best(entries: &[Entry], bf16: Option<bool>, of: impl Fn(&Entry) -> f64) -> f64 {
    entries.iter().filter(|e| !e.ours && bf16.is_none_or(|bf16| e.bf16 == bf16)).map(of).fold(0.0, f64::max)
}

fn table(entries: &[Entry]) -> String {
    let mut text = format!("{:34} {:>22} {:>22}\n", "", "training, positions/s", "sampling, positions/s");
    for entry in entries {
        _ = writeln!(text, "{:34} {:22.1} {:22.1}", entry.name, entry.train, entry.sample);
    }
    for entry in entries.iter().filter(|entry| entry.ours) {
        // What the program chooses is compared with the fastest rival of any precision.
        let precision = if entry.bf16 { None } else { Some(false) };
        let against = if entry.bf16 { "the fastest PyTorch" } else { "the fastest PyTorch in fp32" };
        let ratio = |own: f64, other: f64| if other > 0.0 { own / other } else { f64::NAN };
        _ = writeln!(
            text,
            "{} against {against}: training {:.2} times, sampling {:.2} times",
            entry.name,
            ratio(entry.train, best(entries, precision, |e| e.train)),
            ratio(entry.sample, best(entries, precision, |e| e.sample)),
        );
    }
    text
}

/// Measures all entries in turns and prints the table.
///
/// # Errors
/// If the program does not build, there is no Python that torch is for, or a run fails.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let libtorch = setup(workspace, SetUp::Once)?;
    let elf = workspace.build(&libtorch, "elf")?;
    let python = with_torch(workspace, &libtorch)?;
    let mut entries = entries();
    for round in 1..=options.rounds.max(1) {
        for entry in &mut entries {
            let mut command = options.command(workspace, &elf, &python, entry);
            eprintln!("round {round}, {} ...", entry.name);
            let output = command.stderr(Stdio::inherit()).output().with_context(|| command_line(&command))?;
            let printed = String::from_utf8_lossy(&output.stdout);
            if !output.status.success() {
                bail!("{} failed", command_line(&command));
            }
            let [train, sample] = speeds(&printed).with_context(|| command_line(&command))?;
            eprintln!("  training {train:.1}, sampling {sample:.1} positions/s");
            (entry.train, entry.sample) = (entry.train.max(train), entry.sample.max(sample));
        }
    }
    print!("{}", table(&entries));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_object_of_an_output_counts_on_one_line_or_on_many() {
        let line = r#"{"train_positions_per_s": 2.5, "sample_positions_per_s": 4}"#;
        assert_eq!(speeds(&format!("a warning\n{line}\n")).unwrap(), [2.5, 4.0]);
        let pretty = "{\n  \"train_positions_per_s\": 2.5,\n  \"sample_positions_per_s\": 4\n}\n";
        assert_eq!(speeds(pretty).unwrap(), [2.5, 4.0]);
        assert!(speeds("{}").unwrap_err().to_string().contains("train_positions_per_s"));
        assert!(speeds("nothing").is_err());
    }

    #[test]
    fn each_of_ours_is_compared_with_the_fastest_that_it_may_be() {
        let mut all = entries();
        for (entry, speed) in all.iter_mut().zip([10.0, 20.0, 40.0, 30.0, 60.0, 80.0]) {
            (entry.train, entry.sample) = (speed, 2.0 * speed);
        }
        let text = table(&all);
        assert!(
            text.contains("elf, fp32 against the fastest PyTorch in fp32: training 3.00 times, sampling 3.00 times"),
            "{text}"
        );
        assert!(text.contains("elf, as it chooses here against the fastest PyTorch: training 2.00 times"), "{text}");
    }
}
