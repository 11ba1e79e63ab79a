//! Runs stages: skips those that are done, resumes those that were interrupted, and shows the progress.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::progress::{Progress, StageStatus, TimeEstimate};
use super::stage::{Call, Stage, StageName, hashes};
use super::work_folder::{Record, State, WorkFolder, now, short};
use crate::steps::{self, clock};

/// While a stage runs, its record is written this often, so that a killed run loses no more of the time it has taken.
const KEEP_TIME: Duration = Duration::from_secs(10);

/// A finished stage, for the report.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its record.
    pub record: Record,
    /// Its folder.
    pub folder: PathBuf,
}

/// Everything that all stages share.
pub struct Runner {
    /// The program `elf`.
    pub elf: PathBuf,
    /// The repository.
    pub root: PathBuf,
    /// The folder of the stages' folders.
    pub work: WorkFolder,
    /// The revision of the repository, for the records.
    pub revision: String,
    /// The machine, for the records.
    pub host: String,
    /// Stages that may run at once.
    pub jobs: usize,
}

impl Runner {
    /// Runs all stages of `chosen` that are not done; `all` are the stages that they were chosen from. Outcomes are in the order of
    /// `chosen`.
    ///
    /// # Errors
    /// If a stage fails, with the command that repeats it. Then no further stage is begun, and finished stages stay finished.
    pub fn run(&self, all: &[Stage], chosen: &[&Stage], speed: f64) -> Result<Vec<(StageName, Outcome)>> {
        let _held = self.work.lock()?;
        let hashes = hashes(all, &self.root)?;
        let mut progress = Progress::new(chosen.len(), TimeEstimate::new(speed));
        for (number, stage) in chosen.iter().enumerate() {
            if let State::Done(record) = self.work.state(stage, &hashes[&stage.name])? {
                let took = clock(Duration::from_secs_f64(record.seconds));
                println!("[{}/{}] {}: done before ({took})", number + 1, chosen.len(), stage.name);
                // Each of several stages at once takes longer by their number.
                progress.estimate.took(stage, record.seconds * self.jobs as f64 / record.jobs.max(1) as f64);
                progress.statuses[number] = StageStatus::Done(record);
            } else {
                progress.waiting += progress.estimate.expected(stage);
            }
        }
        progress.left = progress.waiting;
        let (progress, changed) = (Mutex::new(progress), Condvar::new());
        let results = thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs)
                .map(|_| scope.spawn(|| self.work_through(chosen, &hashes, &progress, &changed)))
                .collect();
            workers.into_iter().map(|worker| worker.join().map_err(|_| anyhow!("a worker died"))?).collect::<Vec<_>>()
        });
        results.into_iter().collect::<Result<()>>()?;
        let progress = progress.into_inner().map_err(|_| anyhow!("a worker died"))?;
        let outcome = |(stage, status): (&&Stage, StageStatus)| match status {
            StageStatus::Done(record) => {
                Ok((stage.name.clone(), Outcome { record, folder: self.root.join(self.work.stage(&stage.name)) }))
            }
            StageStatus::Open | StageStatus::Running => Err(anyhow!("the stage {} needs itself", stage.name)),
        };
        chosen.iter().zip(progress.statuses).map(outcome).collect()
    }

    /// Works on one stage after the other, each as soon as all that it needs is done.
    fn work_through(
        &self,
        chosen: &[&Stage],
        hashes: &BTreeMap<StageName, String>,
        progress: &Mutex<Progress>,
        changed: &Condvar,
    ) -> Result<()> {
        let lock = || progress.lock().map_err(|_| anyhow!("another worker died"));
        let mut now = lock()?;
        while !now.failed {
            let Some(number) = now.next(chosen) else {
                if !now.statuses.iter().any(|status| matches!(status, StageStatus::Running)) {
                    break;
                }
                now = changed.wait(now).map_err(|_| anyhow!("another worker died"))?;
                continue;
            };
            let stage = chosen[number];
            now.statuses[number] = StageStatus::Running;
            let together =
                |seconds: f64| clock(Duration::from_secs_f64(seconds * now.estimate.factor() / self.jobs as f64));
            let at_once = if self.jobs > 1 { format!(", with {} stages at a time", self.jobs) } else { String::new() };
            println!(
                "\n==> [{}/{}] {}: {}\n    about {} of {} left{at_once}",
                number + 1,
                chosen.len(),
                stage.name,
                stage.title,
                together(now.left),
                together(now.waiting),
            );
            drop(now);
            let hash = &hashes[&stage.name];
            let result = self.work.state(stage, hash).and_then(|state| self.work_on(stage, hash, state));
            now = lock()?;
            match result {
                Ok(record) => {
                    if self.jobs > 1 {
                        let took = clock(Duration::from_secs_f64(record.seconds));
                        println!("\n[{}/{}] {}: done ({took})", number + 1, chosen.len(), stage.name);
                    }
                    now.estimate.took(stage, record.seconds);
                    now.left -= now.estimate.expected(stage);
                    now.statuses[number] = StageStatus::Done(record);
                    changed.notify_all();
                }
                Err(error) => {
                    now.failed = true;
                    changed.notify_all();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn work_on(&self, stage: &Stage, hash: &str, state: State) -> Result<Record> {
        let mut record = Record {
            hash: hash.to_owned(),
            finished: false,
            seconds: 0.0,
            at: now(),
            revision: self.revision.clone(),
            host: self.host.clone(),
            jobs: self.jobs,
        };
        if let State::Begun(begun) = state {
            record.jobs = record.jobs.max(begun.jobs);
            println!("    going on after {}", clock(Duration::from_secs_f64(begun.seconds)));
            record.seconds = begun.seconds;
        } else {
            let stale = if let State::Stale(stale) = &state { Some(stale) } else { None };
            if let Some(stale) = stale {
                println!(
                    "    its inputs have changed; the results of the earlier ones ({}) are put aside",
                    short(&stale.hash)
                );
            }
            if self.work.put_aside(stage, stale, hash)? {
                println!("    these inputs were used before: their results are taken back");
                if let State::Done(record) = self.work.state(stage, hash)? {
                    return Ok(record);
                }
            }
        }
        self.work.save(&stage.name, &record)?;
        let (before, start) = (record.seconds, Instant::now());
        let result = self.calls(stage, &record);
        record.seconds = before + start.elapsed().as_secs_f64();
        record.at = now();
        record.finished = result.is_ok();
        self.work.save(&stage.name, &record)?;
        result.with_context(|| format!("stopped at the stage {}; the same command goes on from here", stage.name))?;
        let folder = self.root.join(self.work.stage(&stage.name));
        for file in &stage.makes {
            let path = folder.join(file);
            fs::metadata(&path)
                .with_context(|| format!("the stage {} ended without {}", stage.name, path.display()))?;
        }
        Ok(record)
    }

    /// Makes all calls of a stage; meanwhile its record is kept up to date with the time taken.
    fn calls(&self, stage: &Stage, record: &Record) -> Result<()> {
        let (start, finished) = (Instant::now(), AtomicBool::new(false));
        thread::scope(|scope| {
            let keeper = scope.spawn(|| {
                let mut kept = Instant::now();
                while !finished.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(100));
                    if kept.elapsed() > KEEP_TIME {
                        kept = Instant::now();
                        let seconds = record.seconds + start.elapsed().as_secs_f64();
                        // The stage itself reports a full disk; the time taken so far is not worth stopping for.
                        let _ = self.work.save(&stage.name, &Record { seconds, ..record.clone() });
                    }
                }
            });
            let result = stage.calls.iter().try_for_each(|call| self.call(stage, call));
            finished.store(true, Ordering::Relaxed);
            // The keeper only sleeps and writes; a panic in it would not change the stage's result.
            let _ = keeper.join();
            result
        })
    }

    fn call(&self, stage: &Stage, call: &Call) -> Result<()> {
        if call.leaves.as_ref().is_some_and(|file| self.work.stage(&stage.name).join(file).exists()) {
            return Ok(());
        }
        let mut command = Command::new(&self.elf);
        command.args(&call.words).current_dir(&self.root);
        println!("    {}", steps::command_line(&command));
        if self.jobs == 1 {
            return steps::run(&mut command);
        }
        let threads = (thread::available_parallelism().map_or(1, NonZeroUsize::get) / self.jobs).max(1).to_string();
        command.env("OMP_NUM_THREADS", &threads).env("RAYON_NUM_THREADS", &threads);
        let path = self.root.join(self.work.stage(&stage.name)).join("log.txt");
        let open = || fs::File::options().create(true).append(true).open(&path);
        let log = open().with_context(|| format!("{} cannot be opened", path.display()))?;
        let errors = log.try_clone().with_context(|| format!("{} cannot be opened", path.display()))?;
        command.stdout(log).stderr(errors);
        steps::run(&mut command).with_context(|| format!("its output is in {}", path.display()))
    }
}

/// The revision of the repository at `root`, with a mark if the tree has changes; "unknown" without git.
pub fn revision(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(root).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "--short=12", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(head), Some(changes)) if changes.is_empty() => head,
        (Some(head), _) => format!("{head} with changes"),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A script in place of `elf`: appends its words to a file, and fails if one of them is `fail` and no file `mended` is there.
    fn runner(root: &Path) -> Runner {
        let elf = root.join("elf.sh");
        fs::write(
            &elf,
            "#!/bin/sh\necho \"$@\" >> calls.txt\nfor w in \"$@\"; do [ \"$w\" = fail ] && [ ! -e mended ] && exit 3; done\n\
             mkdir -p \"work/$1\"; touch \"work/$1/made\"\n",
        )
        .unwrap();
        fs::set_permissions(&elf, fs::Permissions::from_mode(0o755)).unwrap();
        Runner {
            elf,
            root: root.to_owned(),
            work: WorkFolder::new(root.join("work")),
            revision: "r".to_owned(),
            host: "h".to_owned(),
            jobs: 1,
        }
    }

    /// A call from words without spaces in them.
    fn line(words: &str) -> Call {
        Call::new(words.split(' '))
    }

    fn stages(second: &str) -> Vec<Stage> {
        vec![
            Stage::new("a", "").call(line("a 1")).making("made"),
            Stage::new("b", "").after("a").call(line(second)).making("made"),
            Stage::new("c", "").after("b").call(line("c 3")).making("made"),
        ]
    }

    fn calls(root: &Path) -> Vec<String> {
        fs::read_to_string(root.join("calls.txt")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_rerun_does_only_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let runner = runner(folder.path());
        let all = stages("b fail");
        let chosen: Vec<&Stage> = all.iter().collect();
        let error = format!("{:#}", runner.run(&all, &chosen, 1.0).unwrap_err());
        assert!(error.contains("stage b") && error.contains("elf.sh b fail"), "{error}");
        assert_eq!(calls(folder.path()), ["a 1", "b fail"]);

        fs::write(folder.path().join("mended"), "").unwrap();
        let outcomes = runner.run(&all, &chosen, 1.0).unwrap();
        assert_eq!(calls(folder.path()), ["a 1", "b fail", "b fail", "c 3"]);
        assert!(outcomes.iter().all(|(_, outcome)| outcome.record.finished));

        runner.run(&all, &chosen, 1.0).unwrap();
        assert_eq!(calls(folder.path()).len(), 4);

        let all = stages("b 2");
        let chosen: Vec<&Stage> = all.iter().collect();
        runner.run(&all, &chosen, 1.0).unwrap();
        assert_eq!(calls(folder.path())[4..], ["b 2", "c 3"]);

        // Back to the first inputs: nothing is done again.
        let all = stages("b fail");
        let chosen: Vec<&Stage> = all.iter().collect();
        runner.run(&all, &chosen, 1.0).unwrap();
        assert_eq!(calls(folder.path()).len(), 6);
    }

    #[test]
    fn what_a_call_has_left_is_not_made_again_when_a_later_call_fails() {
        let folder = tempfile::tempdir().unwrap();
        let runner = runner(folder.path());
        let stage =
            |first: fn(Stage, &str) -> Stage| first(Stage::new("s", ""), "s 1").call(line("s fail")).making("made");
        let once = stage(|stage, words| stage.call(line(words).leaving("made")));
        let again = stage(|stage, words| stage.call(line(words)));
        // It is the same stage: the file that a call leaves is not part of the hash.
        assert_eq!(
            hashes(std::slice::from_ref(&once), folder.path()).unwrap(),
            hashes(&[again], folder.path()).unwrap()
        );
        let all = [once];
        runner.run(&all, &[&all[0]], 1.0).unwrap_err();
        runner.run(&all, &[&all[0]], 1.0).unwrap_err();
        fs::write(folder.path().join("mended"), "").unwrap();
        runner.run(&all, &[&all[0]], 1.0).unwrap();
        assert_eq!(calls(folder.path()), ["s 1", "s fail", "s fail", "s fail"]);
    }

    #[test]
    fn two_at_once_do_not_write_into_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let runner = runner(folder.path());
        let held = runner.work.lock().unwrap();
        let all = stages("b 2");
        let error = runner.run(&all, &[&all[0]], 1.0).unwrap_err().to_string();
        assert!(error.contains("another `cargo xtask reproduce`") && calls(folder.path()).is_empty(), "{error}");
        drop(held);
        runner.run(&all, &[&all[0]], 1.0).unwrap();
    }

    #[test]
    fn stages_side_by_side_keep_to_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let runner = Runner { jobs: 3, ..runner(folder.path()) };
        let stage = |name: &str| Stage::new(name, "").call(Call::new([name, "x"])).making("made");
        let all = [stage("a"), stage("b").after("a"), stage("c"), stage("d").after("b").after("c"), stage("e")];
        let chosen: Vec<&Stage> = all.iter().collect();
        let outcomes = runner.run(&all, &chosen, 1.0).unwrap();
        let names: Vec<&str> = outcomes.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e"]);
        assert!(outcomes.iter().all(|(_, outcome)| outcome.record.finished && outcome.record.jobs == 3));
        let calls = calls(folder.path());
        let at = |name: &str| calls.iter().position(|call| call.starts_with(name)).unwrap();
        assert!(calls.len() == 5 && at("a") < at("b") && at("b") < at("d") && at("c") < at("d"), "{calls:?}");

        // A stage that fails stops the rest; the error names the file with its output.
        let all = [stage("f"), Stage::new("g", "").call(line("g fail")).making("made"), stage("h").after("g")];
        let chosen: Vec<&Stage> = all.iter().collect();
        let error = format!("{:#}", runner.run(&all, &chosen, 1.0).unwrap_err());
        assert!(error.contains("stage g") && error.contains("log.txt"), "{error}");
        assert!(!folder.path().join("work/h").exists());
    }

    #[test]
    fn a_stage_that_does_not_make_what_it_promised_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let runner = runner(folder.path());
        let all = [Stage::new("a", "").call(line("elsewhere")).making("made")];
        let error = runner.run(&all, &[&all[0]], 1.0).unwrap_err().to_string();
        assert!(error.contains("ended without"), "{error}");
    }
}
