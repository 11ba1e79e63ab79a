//! Estimates of the cost of stages.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::preset::Preset;
use super::runner::Runner;
use super::stage::{Stage, hashes};
use super::work_folder::State;
use crate::steps::{self, clock};
use crate::workspace::Workspace;

/// The speed of a machine in training.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    /// Operations per second of a training step, the optimiser's time included.
    pub flops: f64,
    /// Its source, for a reader.
    pub source: String,
}

impl Speed {
    /// A guess for two cores, from which the progress view starts.
    pub fn assumed() -> Self {
        Self { flops: 3e11, source: "a guess".to_owned() }
    }

    /// The speed that `elf bench` measures here for the preset's size of network.
    ///
    /// # Errors
    /// If the measurement fails.
    pub fn measure(elf: &Path, workspace: &Workspace, preset: Preset) -> Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder can be made")?;
        let file = folder.path().join("bench.json");
        let size = match preset {
            Preset::Mini => ["--preset", "mini", "--batch", "64", "--seq", "64"],
            Preset::OwtM => ["--preset", "elf-m", "--batch", "2", "--seq", "256"],
            Preset::OwtL => ["--preset", "elf-l", "--batch", "2", "--seq", "256"],
            _ => ["--preset", "elf-b", "--batch", "8", "--seq", "256"],
        };
        println!("measuring this machine's speed ...");
        let mut command = Command::new(elf);
        command.arg("bench").args(size).args(["--steps", "3", "--only", "train", "--json"]).arg(&file);
        command.current_dir(&workspace.root).stdout(std::process::Stdio::null());
        steps::run(&mut command)?;
        Self::read(&file).map(|speed| Self { source: "elf bench on this machine".to_owned(), ..speed })
    }

    /// From a file that `elf bench --json` wrote.
    ///
    /// # Errors
    /// If the file is of another form.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let value: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
        let number = |key: &str| value.get(key).and_then(Value::as_f64).filter(|number| *number > 0.0);
        match (number("train_positions_per_s"), number("train_flops_per_position")) {
            (Some(positions), Some(each)) => Ok(Self { flops: positions * each, source: file.display().to_string() }),
            _ => bail!("{} has no training speed in it: make it with `elf bench --json {0}`", file.display()),
        }
    }

    fn time(&self, stage: &Stage) -> Duration {
        Duration::from_secs_f64(stage.cost.seconds + stage.cost.flops / self.flops)
    }
}

/// The table of `--dry-run`.
///
/// # Errors
/// If a stage's inputs or record cannot be read.
pub fn table(runner: &Runner, all: &[Stage], chosen: &[&Stage], speed: &Speed) -> Result<String> {
    let hashes = hashes(all, &runner.root)?;
    let mut rows = vec![["stage", "state", "download", "disk", "time"].map(str::to_owned)];
    let (mut time, mut download, mut disk) = (Duration::ZERO, 0.0, 0.0);
    for stage in chosen {
        let state = match runner.work.state(stage, &hashes[&stage.name])? {
            State::Done(_) => "done",
            State::Begun(_) => "begun",
            State::New => "to do",
            State::Stale(_) => "to do again",
        };
        let takes = speed.time(stage);
        if state != "done" {
            time += takes;
            download += stage.cost.download;
            disk += stage.cost.disk;
        }
        let takes = if state == "done" { String::new() } else { long_clock(takes) };
        rows.push([
            stage.name.to_string(),
            state.to_owned(),
            bytes(stage.cost.download),
            bytes(stage.cost.disk),
            takes,
        ]);
    }
    rows.push(["left to do".to_owned(), String::new(), bytes(download), bytes(disk), long_clock(time)]);
    let widths: Vec<usize> = (0..5).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in &rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:w0$}  {:w1$}  {:>w2$}  {:>w3$}  {:>w4$}",
            row[0],
            row[1],
            row[2],
            row[3],
            row[4],
            w0 = widths[0],
            w1 = widths[1],
            w2 = widths[2],
            w3 = widths[3],
            w4 = widths[4]
        );
    }
    let _ = write!(
        out,
        "\nTimes are estimates from {:.2} TFLOP/s in training ({}), on one device.",
        speed.flops / 1e12,
        speed.source
    );
    Ok(out)
}

/// A time in minutes, hours or days.
fn long_clock(time: Duration) -> String {
    let hours = time.as_secs_f64() / 3600.0;
    if hours < 2.0 {
        clock(time)
    } else if hours < 72.0 {
        format!("{hours:.1} h")
    } else {
        format!("{:.0} days", hours / 24.0)
    }
}

fn bytes(count: f64) -> String {
    match count {
        0.0 => String::new(),
        c if c < 1e9 => format!("{:.0} MB", (c / 1e6).max(1.0)),
        c => format!("{:.1} GB", c / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::Cost;
    use super::super::work_folder::WorkFolder;
    use super::*;

    #[test]
    fn speeds_come_from_bench_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.json");
        fs::write(&file, r#"{"train_positions_per_s": 500.0, "train_flops_per_position": 2e9}"#).unwrap();
        assert_eq!(Speed::read(&file).unwrap().flops, 1e12);
        fs::write(&file, r#"{"train_positions_per_s": 0}"#).unwrap();
        assert!(Speed::read(&file).unwrap_err().to_string().contains("elf bench"));
    }

    #[test]
    fn the_table_adds_up_what_is_left() {
        let root = tempfile::tempdir().unwrap();
        let runner = Runner {
            elf: "elf".into(),
            root: root.path().to_owned(),
            work: WorkFolder::new(root.path().to_owned()),
            revision: String::new(),
            host: String::new(),
            jobs: 1,
        };
        let cost = Cost { flops: 1e15, seconds: 10.0, download: 2e9, disk: 5e5 };
        let stages = [Stage::new("a", "").costing(cost), Stage::new("b", "").costing(cost)];
        let chosen: Vec<&Stage> = stages.iter().collect();
        let table = table(&runner, &stages, &chosen, &Speed { flops: 1e12, source: "here".to_owned() }).unwrap();
        let last = table.lines().find(|line| line.starts_with("left")).unwrap();
        assert!(last.contains("4.0 GB") && last.contains("1 MB") && last.contains("33 m 40 s"), "{table}");
        assert_eq!(long_clock(Duration::from_secs(3 * 3600)), "3.0 h");
        assert_eq!(long_clock(Duration::from_secs(96 * 3600)), "4 days");
    }
}
