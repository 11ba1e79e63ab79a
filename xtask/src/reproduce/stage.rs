//! A stage of a reproduction: calls of `elf` that turn files into a folder, identified by a hash of everything that goes into
//! it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The name of a stage, which is also the path of its folder in the work folder: `train/definitions/elf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StageName(String);

impl StageName {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `group` is the name or its beginning up to a slash.
    pub fn is_in(&self, group: &str) -> bool {
        self.0.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl From<&str> for StageName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl From<String> for StageName {
    fn from(name: String) -> Self {
        Self(name)
    }
}

impl AsRef<Path> for StageName {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The rough cost of a stage, from which its time and its space on a disk are estimated.
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
    /// Its name.
    pub name: StageName,
    /// Its purpose, for a reader of the progress view.
    pub title: String,
    /// Stages that must be done before, because this one reads their folders.
    pub needs: Vec<StageName>,
    /// Files of the repository (or the user's) that it reads.
    pub reads: Vec<PathBuf>,
    /// Calls of `elf`, in order.
    pub calls: Vec<Call>,
    /// Files that must be there afterwards, relative to the stage's folder.
    pub makes: Vec<PathBuf>,
    /// Its estimated cost.
    pub cost: Cost,
}

/// One call of `elf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its words.
    pub words: Vec<OsString>,
    /// The file that it writes last, relative to the stage's folder, if the call cannot be repeated once that file is there.
    /// Without one, the call can be repeated: it resumes from the files that it finds, or writes the same ones again.
    pub leaves: Option<PathBuf>,
}

impl Call {
    /// A call that begins with these words.
    pub fn new<T: Into<OsString>>(words: impl IntoIterator<Item = T>) -> Self {
        Self::default().words(words)
    }

    /// With one more word.
    pub fn word(mut self, word: impl Into<OsString>) -> Self {
        self.words.push(word.into());
        self
    }

    /// With more words.
    pub fn words<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// With a flag and its value.
    pub fn flag(self, flag: &str, value: impl Into<OsString>) -> Self {
        self.word(flag).word(value)
    }

    /// With several flags and their values.
    pub fn flags(self, flags: &[(&str, &str)]) -> Self {
        flags.iter().fold(self, |call, (flag, value)| call.flag(flag, value))
    }

    /// With a setting of the configuration, as `elf` takes it: `-o key=value`.
    pub fn setting(self, key: &str, value: impl AsRef<OsStr>) -> Self {
        let mut word = OsString::from(key);
        word.push("=");
        word.push(value);
        self.flag("-o", word)
    }

    /// With several settings of the configuration.
    pub fn settings(self, settings: &[(&str, &str)]) -> Self {
        settings.iter().fold(self, |call, (key, value)| call.setting(key, value))
    }

    /// Not to be repeated once it has left `file`.
    pub fn leaving(self, file: impl Into<PathBuf>) -> Self {
        Self { leaves: Some(file.into()), ..self }
    }
}

/// A column of a file, as `elf` takes it: `path:column`.
pub fn column_of(file: &Path, column: &str) -> OsString {
    let mut word = file.as_os_str().to_owned();
    word.push(":");
    word.push(column);
    word
}

impl Stage {
    /// A stage without calls.
    pub fn new(name: impl Into<StageName>, title: impl Into<String>) -> Self {
        Self { name: name.into(), title: title.into(), ..Self::default() }
    }

    /// With a stage that must be done before.
    pub fn after(mut self, stage: impl Into<StageName>) -> Self {
        let stage = stage.into();
        if !self.needs.contains(&stage) {
            self.needs.push(stage);
        }
        self
    }

    /// With a file that it reads.
    pub fn reading(mut self, file: impl Into<PathBuf>) -> Self {
        self.reads.push(file.into());
        self
    }

    /// With a call of `elf`.
    pub fn call(mut self, call: Call) -> Self {
        self.calls.push(call);
        self
    }

    /// With a file that must be there afterwards.
    pub fn making(mut self, file: impl Into<PathBuf>) -> Self {
        self.makes.push(file.into());
        self
    }

    /// With its estimated cost.
    pub fn costing(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }
}

/// The hash of each stage: of its calls, of the contents of the files that it reads, and of the stages that it needs. Each stage
/// must come after those that it needs.
///
/// # Errors
/// If a file cannot be read, two stages have one name, or a stage that is needed does not come before.
pub fn hashes(stages: &[Stage], root: &Path) -> Result<BTreeMap<StageName, String>> {
    let mut known: BTreeMap<StageName, String> = BTreeMap::new();
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
                part(word.as_encoded_bytes());
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
                None => bail!("the stage {} needs {need}, which does not come before it", stage.name),
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
    for name in wanted {
        if !stages.iter().any(|stage| stage.name.is_in(name)) {
            let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
            bail!("there is no stage `{name}`; the stages are {}", names.join(", "));
        }
    }
    let mut take: Vec<bool> = stages.iter().map(|stage| wanted.iter().any(|name| stage.name.is_in(name))).collect();
    // What a stage needs comes before it, so one pass from the end reaches all.
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
            Stage::new("a", "first").call(Call::new(["one"])).reading("in.txt"),
            Stage::new("b/x", "second").after("a").call(Call::new(["two"])),
            Stage::new("b/y", "third").after("b/x").call(Call::new(["three"])),
            Stage::new("c", "other").call(Call::new(["four"])),
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
            assert_eq!(hash == &after[name], name.as_str() == "c", "{name}");
        }

        let mut other = chain();
        other[1].calls[0].words.push("more".into());
        let other = hashes(&other, root.path()).unwrap();
        assert_eq!(other[&"a".into()], after[&"a".into()]);
        assert_ne!(other[&"b/x".into()], after[&"b/x".into()]);
        assert_ne!(other[&"b/y".into()], after[&"b/y".into()]);
    }

    #[test]
    fn words_of_a_call_do_not_run_into_one_another() {
        let root = Path::new(".");
        let one = hashes(&[Stage::new("a", "").call(Call::new(["x", "yz"]))], root).unwrap();
        let other = hashes(&[Stage::new("a", "").call(Call::new(["xy", "z"]))], root).unwrap();
        let split = hashes(&[Stage::new("a", "").call(Call::new(["x"])).call(Call::new(["yz"]))], root).unwrap();
        assert_ne!(one, other);
        assert_ne!(one, split);
    }

    #[test]
    fn paths_with_spaces_stay_one_word() {
        let call =
            Call::new(["eval"]).setting("data_path", Path::new("a b/c")).word(column_of(Path::new("d e"), "text"));
        assert_eq!(call.words, ["eval", "-o", "data_path=a b/c", "d e:text"]);
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
            chosen(&stages, &wanted).unwrap().iter().map(|stage| stage.name.to_string()).collect()
        };
        assert_eq!(names(&["b/x"]), ["a", "b/x"]);
        assert_eq!(names(&["b"]), ["a", "b/x", "b/y"]);
        assert_eq!(names(&["c"]), ["c"]);
        assert_eq!(names(&[]).len(), 4);
        assert!(chosen(&stages, &["d".to_owned()]).unwrap_err().to_string().contains("b/x"));
    }
}
