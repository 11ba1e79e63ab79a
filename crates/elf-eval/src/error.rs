//! Errors of evaluations.

use std::path::PathBuf;

/// Result of this crate's fallible functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of an evaluation, with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two lists that go in pairs differ in length.
    #[error("{left} {left_name} but {right} {right_name}: they are compared in pairs, so give one of each per example")]
    UnequalLengths {
        /// What the first list holds.
        left_name: &'static str,
        /// Length of the first list.
        left: usize,
        /// What the second list holds.
        right_name: &'static str,
        /// Length of the second list.
        right: usize,
    },

    /// There is nothing to compute a metric from.
    #[error("no {what} to evaluate: give at least one")]
    Nothing {
        /// What is missing.
        what: &'static str,
    },

    /// A hypothesis without any reference.
    #[error("row {row} has no reference: give every row at least one")]
    NoReference {
        /// The row, from 1.
        row: usize,
    },

    /// References for some files of samples only.
    #[error("{with} of {files} sample files have references: give all of them references, or evaluate them apart")]
    SomeReferences {
        /// Number of files with references.
        with: usize,
        /// Number of files.
        files: usize,
    },

    /// The judge failed.
    #[error("the judge could not score the texts: {source}")]
    Judge {
        /// The judge's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The judge returned another number of results than it got texts.
    #[error("the judge returned {got} results for {expected} texts: a Scorer must return one per text, in order")]
    JudgeCount {
        /// Number of texts given to the judge.
        expected: usize,
        /// Number of results returned.
        got: usize,
    },

    /// A window's ids and scores do not fit together.
    #[error(
        "window {window} of sample {sample} has {ids} token ids and {nll} scores: every token but the first must have one score"
    )]
    JudgeWindow {
        /// Index of the sample, from 0.
        sample: usize,
        /// Index of the window in the sample, from 0.
        window: usize,
        /// Number of token ids in it.
        ids: usize,
        /// Number of scores in it.
        nll: usize,
    },

    /// A judge's score is not a finite number.
    #[error(
        "the judge's score of token {token} in window {window} of sample {sample} is {value}: the judge's weights or precision are broken, run it in fp32 to find out which"
    )]
    JudgeNotFinite {
        /// Index of the sample, from 0.
        sample: usize,
        /// Index of the window in the sample, from 0.
        window: usize,
        /// Index of the token in the window, from 0.
        token: usize,
        /// The score.
        value: f64,
    },

    /// No token was left to average over.
    #[error(
        "none of the {samples} samples has a token that the judge could score ({empty} are empty): perplexity is undefined, look at the samples themselves"
    )]
    NothingScored {
        /// Number of samples.
        samples: usize,
        /// Number of empty ones among them.
        empty: usize,
    },

    /// A setting lies outside its range.
    #[error("{name} is {value}, but must be {expected}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value, as text.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },

    /// A metric's value cannot be written down.
    #[error("metric '{name}' is {value}, which is not a finite number: leave it out of the report")]
    MetricNotFinite {
        /// Name of the metric.
        name: String,
        /// Its value.
        value: f64,
    },

    /// A report that cannot be read from JSON, or written as JSON.
    #[error("cannot turn JSON into a report or a report into JSON: {source}")]
    ReportJson {
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },

    /// An evaluation of another version.
    #[error(
        "this evaluation is of version {found} (0 is one without a version), but version {known} is understood: evaluate the samples again"
    )]
    Schema {
        /// Its version.
        found: u32,
        /// The version that is understood.
        known: u32,
    },

    /// A report could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },

    /// A file of lines could not be read.
    #[error(transparent)]
    Lines(#[from] elf_files::lines::LineError),

    /// A line lacks a field, or the field is no string.
    #[error("{path}, line {line}: no string field {wanted} (the fields are: {found})")]
    LineField {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// The field or fields looked for.
        wanted: &'static str,
        /// Names of the fields that are there.
        found: String,
    },

    /// A file without a single text.
    #[error("{path} holds no texts: it has no line that is not blank")]
    NoLines {
        /// The file.
        path: PathBuf,
    },
}
