//! One stage of a reproduction: calls of `elf` that turn files into a folder, known by a hash of all that goes into it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use elf_files::Held;
use serde::{Deserialize, Serialize};

/// What a stage does, roughly, so that its time and its place on a disk can be told beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Arithmetic operations on the device.
    pub flops: f64,
    /// Time that does not depend on the device: reading, tokenising, starting programs.
    pub seconds: f64,
    /// Bytes fetched from the network.
    pub download: f64,
    /// Bytes that stay on the disk.
    pub disk: f64,
}

/// One stage.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// Its name, which is also that of its folder: `descriptions/elf`.
    pub name: String,
    /// What it does, for a reader of the progress view.
    pub title: String,
    /// Stages that must be done before, because this one reads their folders.
    pub needs: Vec<String>,
    /// Files of the repository (or the user's) that it reads.
    pub reads: Vec<PathBuf>,
    /// Calls of `elf`, in order.
    pub calls: Vec<Call>,
    /// Files that must be there afterwards, relative to the stage's folder.
    pub makes: Vec<PathBuf>,
    /// What it is expected to cost.
    pub cost: Cost,
}

/// One call of `elf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its words.
    pub words: Vec<String>,
    /// The file that it writes last, relative to the stage's folder, if the call cannot be repeated once that is there. Without,
    /// it can: it goes on from what it finds, or writes the same again.
    pub leaves: Option<PathBuf>,
}

impl Stage {
    /// A stage without calls.
    pub fn new(name: impl Into<String>, title: impl Into<String>) -> Self {
        Self { name: name.into(), title: title.into(), ..Self::default() }
    }

    /// With a stage that must be done before.
    pub fn after(mut self, stage: &str) -> Self {
        if !self.needs.iter().any(|need| need == stage) {
            self.needs.push(stage.to_owned());
        }
        self
    }

    /// With a file that it reads.
    pub fn reading(mut self, file: impl Into<PathBuf>) -> Self {
        self.reads.push(file.into());
        self
    }

    /// With a call of `elf`, its words separated by spaces.
    pub fn call(mut self, line: impl AsRef<str>) -> Self {
        self.calls.push(Call { words: line.as_ref().split_whitespace().map(str::to_owned).collect(), leaves: None });
        self
    }

    /// With a call that is not repeated once it has left a file.
    pub fn call_once(self, line: impl AsRef<str>, leaves: impl Into<PathBuf>) -> Self {
        let mut stage = self.call(line);
        if let Some(call) = stage.calls.last_mut() {
            call.leaves = Some(leaves.into());
        }
        stage
    }

    /// With a file that must be there afterwards.
    pub fn making(mut self, file: impl Into<PathBuf>) -> Self {
        self.makes.push(file.into());
        self
    }

    /// With what it is expected to cost.
    pub fn costing(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }
}

/// What is known of a stage from an earlier run; the file [`RECORD`] in its folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Hash of all that went into it, in hexadecimal.
    pub hash: String,
    /// Whether it came to its end.
    pub finished: bool,
    /// Time it has taken so far, over all interruptions.
    pub seconds: f64,
    /// When it last wrote this record, in seconds since 1970.
    pub at: u64,
    /// The revision of the program.
    pub revision: String,
    /// The machine.
    pub host: String,
    /// How many stages at most ran there beside one another: alone it would have taken less time.
    #[serde(default = "alone")]
    pub jobs: usize,
}

/// What records say that were written before stages could run beside one another.
fn alone() -> usize {
    1
}

/// The name of the file in a stage's folder.
const RECORD: &str = "stage.json";

/// What is to be done with a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// It was done with the same inputs.
    Done(Record),
    /// It was begun with the same inputs and interrupted.
    Begun(Record),
    /// Nothing is there.
    New,
    /// What is there was made from other inputs.
    Stale(Record),
}

/// The folder of a reproduction, with one folder for each stage.
#[derive(Clone, Debug)]
pub struct WorkFolder {
    root: PathBuf,
}

impl WorkFolder {
    /// The work folder `root`, which need not be there yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder of a stage.
    pub fn stage(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Holds the work folder, which is made if it is not there, until that is dropped or the process ends, however it ends.
    ///
    /// # Errors
    /// If another process holds it, or it cannot be made.
    pub fn lock(&self) -> Result<Held> {
        let held = Held::take(&self.root).with_context(|| format!("{} cannot be written in", self.root.display()))?;
        held.with_context(|| {
            format!(
                "another `cargo xtask reproduce` is at work in {}: wait for it or end it; `--jobs 2` does two stages at once",
                self.root.display()
            )
        })
    }

    fn superseded(&self, name: &str, hash: &str) -> PathBuf {
        self.root.join("superseded").join(format!("{}-{}", name.replace('/', "-"), short(hash)))
    }

    /// What is there of a stage whose inputs hash to `hash`.
    ///
    /// # Errors
    /// If its record cannot be read.
    pub fn state(&self, stage: &Stage, hash: &str) -> Result<State> {
        let folder = self.stage(&stage.name);
        let path = folder.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::New),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        let record: Record = serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged: delete {} to do this stage again", path.display(), folder.display())
        })?;
        if record.hash != hash {
            return Ok(State::Stale(record));
        }
        let whole = stage.makes.iter().all(|file| folder.join(file).exists());
        Ok(if record.finished && whole { State::Done(record) } else { State::Begun(record) })
    }

    /// Puts what a stage has made from other inputs aside, and brings back what it had made from these, if that was put aside
    /// before. Nothing is deleted: an hour of training is worth more than the disk.
    ///
    /// # Errors
    /// If a folder cannot be moved.
    pub fn put_aside(&self, stage: &Stage, stale: Option<&Record>, hash: &str) -> Result<bool> {
        let folder = self.stage(&stage.name);
        let moved = |from: &Path, to: &Path| -> Result<()> {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
            }
            fs::rename(from, to).with_context(|| format!("{} cannot be moved to {}", from.display(), to.display()))
        };
        if let Some(stale) = stale {
            let aside = self.superseded(&stage.name, &stale.hash);
            if aside.exists() {
                fs::remove_dir_all(&aside).with_context(|| format!("{} cannot be removed", aside.display()))?;
            }
            moved(&folder, &aside)?;
        }
        let earlier = self.superseded(&stage.name, hash);
        if earlier.exists() && !folder.exists() {
            moved(&earlier, &folder)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Writes a stage's record, aside and renamed.
    ///
    /// # Errors
    /// If the disk does not let it.
    pub fn save(&self, stage: &str, record: &Record) -> Result<()> {
        let folder = self.stage(stage);
        let path = folder.join(RECORD);
        let write = || -> Result<()> {
            fs::create_dir_all(&folder)?;
            Ok(elf_files::write(&path, serde_json::to_string_pretty(record)?)?)
        };
        write().with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// The first digits of a hash, for people.
pub fn short(hash: &str) -> &str {
    &hash[..hash.len().min(12)]
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// The hash of each stage: of its calls, of the contents of the files that it reads, and of the stages that it needs. Stages must
/// stand in an order in which each comes after those that it needs.
///
/// # Errors
/// If a file cannot be read, a name stands twice, or a need does not stand before.
pub fn hashes(stages: &[Stage], root: &Path) -> Result<BTreeMap<String, String>> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut contents: BTreeMap<&Path, blake3::Hash> = BTreeMap::new();
    for stage in stages {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for call in &stage.calls {
            part(&call.words.len().to_le_bytes());
            for word in &call.words {
                part(word.as_bytes());
            }
        }
        for file in &stage.reads {
            let hash = match contents.get(file.as_path()) {
                Some(hash) => *hash,
                None => {
                    let path = root.join(file);
                    let mut content = blake3::Hasher::new();
                    let opened = fs::File::open(&path).and_then(|file| content.update_reader(file).map(drop));
                    opened.with_context(|| format!("{} cannot be read; {} needs it", path.display(), stage.name))?;
                    let hash = content.finalize();
                    contents.insert(file, hash);
                    hash
                }
            };
            part(hash.as_bytes());
        }
        for need in &stage.needs {
            match known.get(need) {
                Some(hash) => part(hash.as_bytes()),
                None => bail!("the stage {} needs {need}, which does not stand before it", stage.name),
            }
        }
        let hash = hasher.finalize().to_hex().to_string();
        if known.insert(stage.name.clone(), hash).is_some() {
            bail!("two stages have the name {}", stage.name);
        }
    }
    Ok(known)
}

/// The stages that `wanted` names (a name, or the beginning of names up to a slash) and all that they need, in order.
///
/// # Errors
/// If a name fits no stage.
pub fn chosen<'a>(stages: &'a [Stage], wanted: &[String]) -> Result<Vec<&'a Stage>> {
    if wanted.is_empty() {
        return Ok(stages.iter().collect());
    }
    let fits = |stage: &Stage, name: &str| {
        stage.name == name || stage.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'))
    };
    for name in wanted {
        if !stages.iter().any(|stage| fits(stage, name)) {
            let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
            bail!("there is no stage `{name}`; the stages are {}", names.join(", "));
        }
    }
    let mut take: Vec<bool> = stages.iter().map(|stage| wanted.iter().any(|name| fits(stage, name))).collect();
    // What a stage needs stands before it, so one pass from the end reaches all.
    for at in (0..stages.len()).rev() {
        if take[at] {
            for need in &stages[at].needs {
                if let Some(before) = stages.iter().position(|stage| &stage.name == need) {
                    take[before] = true;
                }
            }
        }
    }
    Ok(stages.iter().zip(take).filter_map(|(stage, take)| take.then_some(stage)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Vec<Stage> {
        vec![
            Stage::new("a", "first").call("one").reading("in.txt"),
            Stage::new("b/x", "second").after("a").call("two"),
            Stage::new("b/y", "third").after("b/x").call("three"),
            Stage::new("c", "other").call("four"),
        ]
    }

    #[test]
    fn a_changed_input_changes_what_depends_on_it_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("in.txt"), "1").unwrap();
        let before = hashes(&chain(), root.path()).unwrap();
        assert_eq!(before, hashes(&chain(), root.path()).unwrap());
        fs::write(root.path().join("in.txt"), "2").unwrap();
        let after = hashes(&chain(), root.path()).unwrap();
        for (name, hash) in &before {
            assert_eq!(hash == &after[name], name == "c", "{name}");
        }

        let mut other = chain();
        other[1].calls[0].words.push("more".to_owned());
        let other = hashes(&other, root.path()).unwrap();
        assert_eq!(other["a"], after["a"]);
        assert_ne!(other["b/x"], after["b/x"]);
        assert_ne!(other["b/y"], after["b/y"]);
    }

    #[test]
    fn words_of_a_call_do_not_run_into_one_another() {
        let root = Path::new(".");
        let one = hashes(&[Stage::new("a", "").call("x yz")], root).unwrap();
        let other = hashes(&[Stage::new("a", "").call("xy z")], root).unwrap();
        let split = hashes(&[Stage::new("a", "").call("x").call("yz")], root).unwrap();
        assert_ne!(one, other);
        assert_ne!(one, split);
    }

    #[test]
    fn missing_inputs_and_needs_are_named() {
        let root = tempfile::tempdir().unwrap();
        let error = hashes(&chain(), root.path()).unwrap_err().to_string();
        assert!(error.contains("in.txt"), "{error}");
        let error = hashes(&[Stage::new("a", "").after("z")], root.path()).unwrap_err().to_string();
        assert!(error.contains("needs z"), "{error}");
        let error = hashes(&[Stage::new("a", ""), Stage::new("a", "")], root.path()).unwrap_err().to_string();
        assert!(error.contains("two stages"), "{error}");
    }

    #[test]
    fn a_chosen_stage_brings_what_it_needs() {
        let stages = chain();
        let names = |wanted: &[&str]| -> Vec<String> {
            let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
            chosen(&stages, &wanted).unwrap().iter().map(|stage| stage.name.clone()).collect()
        };
        assert_eq!(names(&["b/x"]), ["a", "b/x"]);
        assert_eq!(names(&["b"]), ["a", "b/x", "b/y"]);
        assert_eq!(names(&["c"]), ["c"]);
        assert_eq!(names(&[]).len(), 4);
        assert!(chosen(&stages, &["d".to_owned()]).unwrap_err().to_string().contains("b/x"));
    }

    #[test]
    fn what_was_made_from_other_inputs_is_kept_and_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let work = WorkFolder::new(root.path().to_owned());
        let stage = Stage::new("b/x", "").making("result");
        let record = |hash: &str, finished| Record {
            jobs: 1,
            hash: hash.repeat(16),
            finished,
            seconds: 1.0,
            at: 0,
            revision: String::new(),
            host: String::new(),
        };
        let (one, two) = (record("1", true), record("2", true));
        assert_eq!(work.state(&stage, &one.hash).unwrap(), State::New);

        work.save("b/x", &one).unwrap();
        // A record without what the stage makes is not a finished stage.
        assert_eq!(work.state(&stage, &one.hash).unwrap(), State::Begun(one.clone()));
        fs::write(work.stage("b/x").join("result"), "of one").unwrap();
        assert_eq!(work.state(&stage, &one.hash).unwrap(), State::Done(one.clone()));
        assert_eq!(work.state(&stage, &two.hash).unwrap(), State::Stale(one.clone()));

        assert!(!work.put_aside(&stage, Some(&one), &two.hash).unwrap());
        assert_eq!(work.state(&stage, &two.hash).unwrap(), State::New);
        work.save("b/x", &two).unwrap();
        assert!(work.put_aside(&stage, Some(&two), &one.hash).unwrap());
        assert_eq!(work.state(&stage, &one.hash).unwrap(), State::Done(one));
        assert_eq!(fs::read_to_string(work.stage("b/x").join("result")).unwrap(), "of one");
    }

    #[test]
    fn a_damaged_record_says_what_to_delete() {
        let root = tempfile::tempdir().unwrap();
        let work = WorkFolder::new(root.path().to_owned());
        fs::create_dir(work.stage("a")).unwrap();
        fs::write(work.stage("a").join(RECORD), "{").unwrap();
        let error = work.state(&Stage::new("a", ""), "x").unwrap_err().to_string();
        assert!(error.contains("delete"), "{error}");
    }
}
