//! Figures and labels that several sections of the report show.

use elf_eval::evaluation::{Evaluation, name};
use elf_eval::report::Column;

use crate::reproduce::mini::settings::Task;
use crate::reproduce::mini::texts::System;

/// Samples of each system that are shown.
pub const SHOWN: usize = 8;

/// Figures of unconditional text, in the order of tables.
pub const UNCONDITIONAL_METRICS: [&str; 8] = [
    name::GEN_PPL,
    name::ENTROPY,
    name::DISTINCT[1],
    name::DISTINCT[3],
    name::REPEATED_5GRAM,
    name::LENGTH,
    name::COPIED_RUN,
    name::EXACT_COPIES,
];

/// The columns of a table of [`UNCONDITIONAL_METRICS`].
pub fn unconditional_columns() -> Vec<Column> {
    vec![
        Column::new("system"),
        Column::lower("Gen. PPL"),
        Column::new("entropy").decimals(2),
        Column::new("distinct-2").decimals(2),
        Column::new("distinct-4").decimals(2),
        Column::lower("repeats").decimals(2),
        Column::new("words").decimals(1),
        Column::new("copied run").decimals(1),
        Column::lower("copies").decimals(3),
    ]
}

/// The label of a system with its steps.
pub fn steps_label(system: &System) -> String {
    match system.steps {
        Some(n) => format!("{}, {}", system.writer.label(), steps(n)),
        None => system.writer.label(),
    }
}

/// A number of steps in words.
pub fn steps(n: u64) -> String {
    format!("{n} step{}", if n == 1 { "" } else { "s" })
}

/// The figures of a conditional task, and the one that decides.
pub fn conditional_metrics(task: &Task) -> ([&'static str; 5], &'static str) {
    match task.name {
        "de-en" => ([name::BLEU, name::ROUGE_1, name::ROUGE_2, name::ROUGE_L, name::LENGTH], name::BLEU),
        _ => ([name::ROUGE_1, name::ROUGE_2, name::ROUGE_L, name::BLEU, name::LENGTH], name::ROUGE_L),
    }
}

/// The value of a figure, and in words with its standard error if there is one.
pub fn figure(evaluation: &Evaluation, metric: &str) -> Option<(f64, String)> {
    let metric = evaluation.get(metric)?;
    let text = match metric.standard_error {
        Some(error) => format!("{:.1} ± {error:.1}", metric.value),
        None => format!("{:.1}", metric.value),
    };
    Some((metric.value, text))
}
