//! The figures of a run's `metrics.jsonl`, condensed to a line each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// Words in the names of the figures that the summary shows; those of single bins of time (`l2@0.3`) are for plots.
const SHOWN: [&str; 7] = ["loss", "validation", "entropy", "distinct", "perplexity", "ppl", "accuracy"];

/// The course of one figure over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Course {
    first: f64,
    last: f64,
    lowest: f64,
    count: usize,
}

/// All files named `metrics.jsonl` in a folder and those below it, in the order of their paths.
///
/// # Errors
/// If a folder cannot be read.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let unreadable = || format!("the folder {} cannot be read", folder.display());
        for entry in fs::read_dir(&folder).with_context(unreadable)? {
            let entry = entry.with_context(unreadable)?;
            // Of the entry itself: a link that points upwards must not lead us in circles.
            if entry.file_type().with_context(unreadable)?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() == "metrics.jsonl" {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The figures of one file by name, those of nested objects with a dot. An incomplete last line, from an interrupted run, is
/// skipped.
///
/// # Errors
/// If the file cannot be read.
pub fn courses(file: &Path) -> Result<BTreeMap<String, Course>> {
    let text = fs::read_to_string(file).with_context(|| format!("the metrics in {} cannot be read", file.display()))?;
    let mut courses = BTreeMap::new();
    for line in text.lines() {
        if let Ok(value) = serde_json::from_str(line) {
            collect(&value, String::new(), &mut courses);
        }
    }
    Ok(courses)
}

fn collect(value: &Value, name: String, courses: &mut BTreeMap<String, Course>) {
    if let Value::Object(fields) = value {
        for (key, value) in fields {
            let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            collect(value, name, courses);
        }
    } else if let Some(number) = value.as_f64()
        && SHOWN.iter().any(|word| name.contains(word))
        && !name.contains('@')
    {
        let start = Course { first: number, last: number, lowest: number, count: 0 };
        let course = courses.entry(name).or_insert(start);
        course.last = number;
        course.lowest = course.lowest.min(number);
        course.count += 1;
    }
}

/// One line for each figure: where it started, its lowest value, where it ended.
pub fn table(courses: &BTreeMap<String, Course>) -> String {
    let width = courses.keys().map(|name| name.chars().count()).max().unwrap_or(0).max(6);
    let mut table = format!("{:width$}  {:>9} {:>9} {:>9} {:>7}\n", "figure", "first", "lowest", "last", "values");
    for (name, course) in courses {
        let Course { first, last, lowest, count } = course;
        let _ = writeln!(table, "{name:width$}  {first:>9.4} {lowest:>9.4} {last:>9.4} {count:>7}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn courses_are_followed_through_nested_and_broken_lines() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("run/deeper");
        fs::create_dir_all(&deep).unwrap();
        fs::write(
            deep.join("metrics.jsonl"),
            "{\"step\":1,\"loss\":3.0,\"validation\":{\"loss_decode\":5.5}}\n\
             {\"step\":2,\"loss\":1.0,\"note\":\"x\",\"loss@0.3\":4}\n{\"step\":3,\"loss\":2.0}\n{\"step\":4,\"lo",
        )
        .unwrap();
        fs::write(folder.path().join("other.jsonl"), "{\"loss\":9}\n").unwrap();

        let files = files(folder.path()).unwrap();
        assert_eq!(files, [deep.join("metrics.jsonl")]);
        let courses = courses(&files[0]).unwrap();
        let names: Vec<_> = courses.keys().map(String::as_str).collect();
        assert_eq!(names, ["loss", "validation.loss_decode"]);
        assert_eq!(courses["loss"], Course { first: 3.0, last: 2.0, lowest: 1.0, count: 3 });

        let table = table(&courses);
        let row = table.lines().find(|row| row.starts_with("loss")).unwrap();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(cells, ["loss", "3.0000", "1.0000", "2.0000", "3"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = files(Path::new("/no/such/runs")).unwrap_err();
        assert!(error.to_string().contains("/no/such/runs"));
    }
}
