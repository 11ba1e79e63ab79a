//! Splits of a folder of data files, by the rules of Hugging Face's `datasets` library.
//!
//! The rules, in their order: `configs` in the README's YAML; shards named `SPLIT-00000-of-00003...`; folders whose names contain a
//! split's keyword as a word (`train`, `dev`, `test`, ...); files whose names do. A folder without any of these has one split, `train`.
//! Files and folders whose names begin with `.` or `_` are not data.

mod card;
mod pattern;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use card::{Config, Files};
use pattern::Pattern;

/// Keywords of the splits that names are searched for.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Files that describe data and are not data.
const DESCRIPTIONS: [&str; 6] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "manifest.json", "state.json"];

/// Deepest folder that is searched.
const MAX_DEPTH: usize = 8;

/// A split's name and its files, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) name: String,
    pub(crate) files: Vec<PathBuf>,
}

/// The data files that `path` stands for: those of a folder's only split, or of a split (and a configuration of the README) that is
/// named after the folder, as `FOLDER/SPLIT`, `FOLDER/CONFIG` or `FOLDER/CONFIG/SPLIT`. `None` if `path` begins with no folder, or
/// the folder holds no data files.
///
/// # Errors
/// If there are several splits or configurations and none is named, shards are missing, or a folder or README cannot be read.
pub(crate) fn files(path: &Path, is_data: &dyn Fn(&Path) -> bool) -> Result<Option<Vec<PathBuf>>> {
    let mut folder = path;
    let mut names = Vec::new();
    while !folder.is_dir() {
        match (folder.parent(), folder.file_name().and_then(|name| name.to_str())) {
            // The current folder must be named, as in `./train`: a bare name, or `org/name`, is no split.
            (Some(parent), Some(name)) if names.len() < 2 && !parent.as_os_str().is_empty() => {
                names.insert(0, name);
                folder = parent;
            }
            _ => return Ok(None),
        }
    }
    let configs = card::configs(folder)?;
    let (config, split) = match names.as_slice() {
        [] => (None, None),
        [name] if configs.iter().any(|config| config.name == *name) => (Some(*name), None),
        [split] => (None, Some(*split)),
        [config, split, ..] => (Some(*config), Some(*split)),
    };
    let config = match (config, configs.as_slice()) {
        (None, []) => None,
        (Some(_), []) => return Ok(None),
        (name, configs) => match choose_config(folder, configs, name)? {
            None => return Ok(None),
            some => some,
        },
    };
    let splits = of_folder(folder, config, is_data)?;
    let chosen = match (split, splits.as_slice()) {
        (_, []) => return Ok(None),
        (None, [only]) => only,
        (None, several) => return Err(ambiguous(folder, "splits", several.iter().map(|split| split.name.as_str()))),
        (Some(name), splits) => match splits.iter().find(|split| split.name == name || is_alias(&split.name, name)) {
            Some(found) => found,
            None => return Ok(None),
        },
    };
    complete(&chosen.files)?;
    Ok(Some(chosen.files.clone()))
}

/// Whether a path that does not exist names a split or a configuration of a local folder with data files, as `FOLDER/SPLIT`. A
/// folder that cannot be read has none.
pub fn is_split(path: &Path) -> bool {
    let is_data = |file: &Path| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
        let name = [".gz", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        [".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".txt", ".text"].iter().any(|end| name.ends_with(end))
    };
    // Several splits of a configuration, or a missing shard, are errors that the reader of the path reports.
    !path.exists() && !matches!(files(path, &is_data), Ok(None))
}

/// The configuration of a name, or the default one.
fn choose_config<'a>(folder: &Path, configs: &'a [Config], name: Option<&str>) -> Result<Option<&'a Config>> {
    match (name, configs) {
        (Some(name), configs) => Ok(configs.iter().find(|config| config.name == name)),
        (None, [only]) => Ok(Some(only)),
        (None, several) => match several.iter().find(|config| config.default) {
            Some(default) => Ok(Some(default)),
            None => Err(ambiguous(folder, "configurations", several.iter().map(|config| config.name.as_str()))),
        },
    }
}

fn ambiguous<'a>(folder: &Path, what: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let names: Vec<_> = names.map(|name| format!("`{}`", folder.join(name).display())).collect();
    Error::Config(format!(
        "`{}` holds several {what}, which must not be mixed: name one of {}",
        folder.display(),
        names.join(", ")
    ))
}

/// Whether `name` is another keyword of the split.
fn is_alias(split: &str, name: &str) -> bool {
    KEYWORDS.iter().any(|(of, keywords)| *of == split && keywords.contains(&name))
}

/// All splits of a folder, by `config` or else by names.
///
/// # Errors
/// If a folder cannot be read.
pub(crate) fn of_folder(folder: &Path, config: Option<&Config>, is_data: &dyn Fn(&Path) -> bool) -> Result<Vec<Split>> {
    let base = match config {
        Some(Config { data_dir: Some(inner), .. }) => folder.join(inner),
        _ => folder.to_owned(),
    };
    let mut paths = Vec::new();
    list(&base, "", 0, is_data, &mut paths)?;
    paths.sort();
    let splits = match config.map(|config| &config.files) {
        Some(Files::Named(patterns)) => by_patterns(&paths, patterns),
        Some(Files::ByNames) | None => by_names(&paths),
    };
    let split = |(name, files): (String, Vec<&String>)| Split {
        name,
        files: files.into_iter().map(|path| base.join(path)).collect(),
    };
    Ok(splits.into_iter().map(split).collect())
}

type Named<'a> = Vec<(String, Vec<&'a String>)>;

fn by_patterns<'a>(paths: &'a [String], patterns: &[(String, Vec<Pattern>)]) -> Named<'a> {
    let of = |(split, patterns): &(String, Vec<Pattern>)| {
        let files = paths.iter().filter(|path| patterns.iter().any(|pattern| pattern.matches(path))).collect();
        (split.clone(), files)
    };
    patterns.iter().map(of).filter(|(_, files): &(_, Vec<_>)| !files.is_empty()).collect()
}

fn by_names(paths: &[String]) -> Named<'_> {
    let sharded = by_shards(paths);
    if !sharded.is_empty() {
        return sharded;
    }
    let folders = by_keywords(paths, |path, keyword| {
        path.rsplit_once('/').is_some_and(|(folders, _)| folders.split('/').any(|name| has_word(name, keyword, true)))
    });
    if !folders.is_empty() {
        return folders;
    }
    let names =
        by_keywords(paths, |path, keyword| path.rsplit('/').next().is_some_and(|name| has_word(name, keyword, false)));
    match (names.is_empty(), paths.is_empty()) {
        (false, _) => names,
        (true, true) => Vec::new(),
        (true, false) => vec![("train".to_owned(), paths.iter().collect())],
    }
}

/// Splits of any name, by shards in the folder itself or in its folder `data`.
fn by_shards(paths: &[String]) -> Named<'_> {
    let mut splits: BTreeMap<(usize, String), Vec<&String>> = BTreeMap::new();
    for path in paths {
        let name = path.strip_prefix("data/").unwrap_or(path);
        if let Some(series) = Series::of(Path::new(name)).filter(|_| !name.contains('/')) {
            let place = KEYWORDS.iter().position(|(split, _)| *split == series.name).unwrap_or(KEYWORDS.len());
            splits.entry((place, series.name)).or_default().push(path);
        }
    }
    splits.into_iter().map(|((_, name), files)| (name, files)).collect()
}

fn by_keywords(paths: &[String], has: impl Fn(&str, &str) -> bool) -> Named<'_> {
    let of = |(split, keywords): &(&str, &[&str])| {
        let files = paths.iter().filter(|path| keywords.iter().any(|keyword| has(path, keyword))).collect();
        ((*split).to_owned(), files)
    };
    KEYWORDS.iter().map(of).filter(|(_, files): &(_, Vec<_>)| !files.is_empty()).collect()
}

/// Whether `name` contains `word` between separators. A word at the end counts only if `at_end`: file names have an extension.
fn has_word(name: &str, word: &str, at_end: bool) -> bool {
    let separates = |c: char| "-._ ".contains(c) || c.is_ascii_digit();
    name.match_indices(word).any(|(at, _)| {
        let before = name[..at].chars().next_back();
        let after = name[at + word.len()..].chars().next();
        before.is_none_or(separates) && after.map_or(at_end, separates)
    })
}

/// Relative paths of the data files below `folder`, with `/`.
fn list(
    folder: &Path,
    prefix: &str,
    depth: usize,
    is_data: &dyn Fn(&Path) -> bool,
    paths: &mut Vec<String>,
) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with(['.', '_']) || DESCRIPTIONS.contains(&name) {
            continue;
        }
        if path.is_dir() {
            if depth < MAX_DEPTH {
                list(&path, &format!("{prefix}{name}/"), depth + 1, is_data, paths)?;
            }
        } else if is_data(&path) {
            paths.push(format!("{prefix}{name}"));
        }
    }
    Ok(())
}

/// The parts of a name such as `train-00003-of-00010.parquet`, or with a hash, `train-00003-of-00010-0123456789abcdef.parquet`.
#[derive(Debug, PartialEq, Eq)]
struct Series {
    name: String,
    number: u32,
    total: u32,
}

impl Series {
    fn of(file: &Path) -> Option<Self> {
        let file = file.file_name()?.to_str()?;
        let (rest, last) = file.rsplit_once("-of-")?;
        let (name, number) = rest.rsplit_once('-')?;
        let (total, end) = last.split_at_checked(5)?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        let fits = digits(number) && digits(total) && end.starts_with(['.', '-']) && !name.is_empty();
        fits.then(|| Some(Self { name: name.to_owned(), number: number.parse().ok()?, total: total.parse().ok()? }))?
    }
}

/// Refuses files of a series, such as `train-00003-of-00010.parquet`, if others of it are missing.
///
/// # Errors
/// An error that names the first missing file.
pub(crate) fn complete(files: &[PathBuf]) -> Result<()> {
    let mut found: BTreeMap<(PathBuf, String, u32), (&Path, BTreeSet<u32>)> = BTreeMap::new();
    for file in files {
        if let Some(Series { name, number, total }) = Series::of(file) {
            let folder = file.parent().unwrap_or(Path::new("")).to_owned();
            found.entry((folder, name, total)).or_insert_with(|| (file, BTreeSet::new())).1.insert(number);
        }
    }
    for ((_, name, total), (file, numbers)) in found {
        if let Some(lost) = (0..total).find(|n| !numbers.contains(n)) {
            let extension = file.extension().unwrap_or_default().to_string_lossy();
            return Err(Error::NothingFound {
                what: "shard of that name",
                path: file.with_file_name(format!("{name}-{lost:05}-of-{total:05}.{extension}")),
                remedy: format!(
                    "the names of the other shards say that there are {total}; copy or download the missing one"
                ),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The splits of a folder with these files, each as `name: files`.
    fn splits(files: &[&str], readme: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        if !readme.is_empty() {
            fs::write(folder.path().join("README.md"), readme).unwrap();
        }
        let is_data = |path: &Path| path.extension().is_some_and(|e| e == "csv" || e == "parquet");
        let configs = card::configs(folder.path()).unwrap();
        let found = of_folder(folder.path(), configs.first(), &is_data).unwrap();
        let shown = |split: &Split| {
            let files =
                split.files.iter().map(|f| f.strip_prefix(folder.path()).unwrap().to_string_lossy().into_owned());
            format!("{}: {}", split.name, files.collect::<Vec<_>>().join(" "))
        };
        found.iter().map(shown).collect()
    }

    /// The layouts that the documentation of `datasets` shows ("Structure your repository", "Manual configuration").
    #[test]
    fn the_documented_layouts_are_found() {
        let hash = "data/train-00000-of-00001-0123456789abcdef.parquet";
        for (files, expected) in [
            // One file; several files without a split in their names.
            (&["data.csv"][..], &["train: data.csv"][..]),
            (&["a.csv", "b/c.csv"], &["train: a.csv b/c.csv"]),
            // Splits in file names.
            (&["train.csv", "test.csv"], &["train: train.csv", "test: test.csv"]),
            (
                &["train.csv", "validation.csv", "test.csv"],
                &["train: train.csv", "validation: validation.csv", "test: test.csv"],
            ),
            (&["data/train.csv", "data/dev.csv"], &["train: data/train.csv", "validation: data/dev.csv"]),
            // Keywords of every split, words between separators.
            (
                &["my_train_file_0.csv", "my-valid.csv", "x.eval.csv"],
                &["train: my_train_file_0.csv", "validation: my-valid.csv", "test: x.eval.csv"],
            ),
            (
                &["training1.csv", "val 1.csv", "testing.csv"],
                &["train: training1.csv", "validation: val 1.csv", "test: testing.csv"],
            ),
            // Splits in folder names, several files each.
            (&["train/a.csv", "train/b.csv", "test/a.csv"], &["train: train/a.csv train/b.csv", "test: test/a.csv"]),
            (
                &["data/train/a.csv", "data/validation/b.csv"],
                &["train: data/train/a.csv", "validation: data/validation/b.csv"],
            ),
            // Shards with custom names, with and without a hash.
            (
                &["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/random-00000-of-00001.csv"],
                &[
                    "train: data/train-00000-of-00002.csv data/train-00001-of-00002.csv",
                    "random: data/random-00000-of-00001.csv",
                ],
            ),
            (
                &[hash, "data/test-00000-of-00001-fedcba9876543210.parquet"],
                &[
                    "train: data/train-00000-of-00001-0123456789abcdef.parquet",
                    "test: data/test-00000-of-00001-fedcba9876543210.parquet",
                ],
            ),
            // Parts of words are no keywords; hidden files and folders are no data.
            (&["trainer.csv", "contest.csv"], &["train: contest.csv trainer.csv"]),
            (&["a.csv", ".b.csv", "_c.csv", ".git/d.csv", "_old/e.csv", "dataset_info.json"], &["train: a.csv"]),
        ] {
            assert_eq!(splits(files, ""), expected, "{files:?}");
        }
    }

    #[test]
    fn the_readme_decides_before_names() {
        let files = ["data.csv", "holdout.csv", "more/x.csv", "more/y.csv"];
        for (files_of, expected) in [
            ("data_files: data.csv", &["train: data.csv"][..]),
            ("data_files: ['data.csv', 'more/*.csv']", &["train: data.csv more/x.csv more/y.csv"]),
            (
                "data_files:\n  - split: train\n    path: data.csv\n  - split: test\n    path: holdout.csv",
                &["train: data.csv", "test: holdout.csv"],
            ),
            (
                "data_files:\n  - split: odd\n    path: [\"holdout.csv\", \"**/y.csv\"]",
                &["odd: holdout.csv more/y.csv"],
            ),
            // A mapping has no order of its own.
            ("data_files: {train: 'more/?.csv', test: data.csv}", &["test: data.csv", "train: more/x.csv more/y.csv"]),
            ("data_dir: more", &["train: more/x.csv more/y.csv"]),
        ] {
            let readme = format!("---\nlicense: mit\nconfigs:\n- config_name: default\n  {files_of}\n---\n# Title\n");
            let readme = readme.replace("\n  - split", "\n    - split").replace("\n    path", "\n      path");
            assert_eq!(splits(&files, &readme), expected, "{files_of}");
        }
        assert_eq!(splits(&["train.csv", "test.csv"], "# no front matter").len(), 2);
    }

    #[test]
    fn several_splits_or_configurations_must_be_named() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["train.csv", "dev.csv", "c/x.csv", "c/y-test.csv"] {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), "").unwrap();
        }
        let is_csv = |path: &Path| path.extension().is_some_and(|e| e == "csv");
        let of = |path: &str| files(&at(path), &is_csv);
        let message = of("").unwrap_err().to_string();
        for part in ["several splits", "/train`", "/validation`", "/test`"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(of("train").unwrap().unwrap(), [at("train.csv")]);
        for name in ["dev", "validation", "val"] {
            assert_eq!(of(name).unwrap().unwrap(), [at("dev.csv")]);
        }
        assert_eq!(of("holdout").unwrap(), None);
        assert_eq!(of("nowhere/at/all").unwrap(), None);
        let config = |name: &str, file: &str| format!("- config_name: {name}\n  data_files: {file}\n");
        let readme = format!("---\nconfigs:\n{}{}---\n", config("one", "train.csv"), config("two", "c/*.csv"));
        fs::write(at("README.md"), &readme).unwrap();
        let message = of("").unwrap_err().to_string();
        assert!(message.contains("several configurations") && message.contains("/one`"), "{message}");
        assert_eq!(of("one").unwrap().unwrap(), [at("train.csv")]);
        assert_eq!(of("two/train").unwrap().unwrap(), [at("c/x.csv"), at("c/y-test.csv")]);
        fs::write(at("README.md"), readme.replace("config_name: two", "config_name: two\n  default: true")).unwrap();
        assert_eq!(of("").unwrap().unwrap().len(), 2);
        fs::write(at("README.md"), "---\nconfigs: 7\n---\n").unwrap();
        assert!(of("").unwrap_err().to_string().contains("README.md"));
    }

    #[test]
    fn paths_of_splits_are_recognised() {
        let root = tempfile::tempdir().unwrap();
        for name in ["train.jsonl", "test.jsonl.gz"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        for (path, expected) in
            [("train", true), ("test", true), ("dev", false), ("x/y/train", false), ("train.jsonl", false)]
        {
            assert_eq!(is_split(&root.path().join(path)), expected, "{path}");
        }
        assert!(!is_split(Path::new("org/name")) && !is_split(Path::new("")));
    }

    #[test]
    fn a_missing_shard_is_named_with_and_without_hashes() {
        for (present, missing) in [
            ("train-00001-of-00002.csv", "train-00000-of-00002.csv"),
            ("train-00000-of-00003-0123456789abcdef.parquet", "train-00001-of-00003.parquet"),
        ] {
            let message = complete(&[PathBuf::from("x").join(present)]).unwrap_err().to_string();
            assert!(message.contains(missing), "{message}");
        }
        complete(&["a.csv", "b-1-of-2.csv", "c-00000-of-00001.csv"].map(PathBuf::from)).unwrap();
    }
}
