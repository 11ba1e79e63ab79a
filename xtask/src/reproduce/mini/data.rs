//! Stages that prepare texts and tokens, and the translations that models learn in place of the real ones.

use std::ffi::OsString;
use std::path::Path;

use super::settings::{FOLDS, Model, Task};
use super::training::Training;
use super::{Mini, names};
use crate::reproduce::stage::{Call, Cost, Stage, StageName, column_of};

/// A column without the texts of another file's column, as `elf data select --without` takes it.
fn without(column: &str, file: &Path, other: &str) -> OsString {
    let mut word = OsString::from(format!("{column}="));
    word.push(column_of(file, other));
    word
}

impl Mini<'_> {
    /// The texts of a task and their tokens.
    pub(super) fn data(&self, task: &Task) -> Stage {
        let name = names::data(task);
        let at = self.at(&name);
        let mut stage = Stage::new(name, format!("texts and tokens of {}", task.name));
        for split in ["train", "validation", "test"] {
            let corpora = std::iter::once(&task.corpus).chain(task.more_corpora.iter().filter(|_| split == "train"));
            let texts = at.join(split).with_extension("jsonl");
            let mut call = Call::new(["data", "select"]);
            for corpus in corpora {
                let input = format!("data/{corpus}-{split}.parquet");
                call = call.flag("--input", &input);
                stage = stage.reading(input);
            }
            call = match task.condition {
                None => call.flag("--column", format!("{}=text", task.target)),
                Some(condition) => call.flag("--column", condition).flag("--column", task.target),
            };
            call = call.words(task.select.iter().copied());
            let mut every_nth = task.every_nth;
            if split == "train" {
                every_nth *= self.scale.every_nth;
            } else {
                // Splits are by package family, but families share texts.
                let (column, selected) = task.condition.map_or((task.target, "text"), |name| (name, name));
                call = call.flag("--without", without(column, &at.join("train.jsonl"), selected));
            }
            call = call
                .flag("--every-nth", every_nth.to_string())
                .flag("--tokenizer", task.encoder)
                .flag("--output", &texts);
            stage = stage.making(format!("{split}.jsonl")).call(call);
            if split != "test" {
                stage = stage.making(format!("{split}/manifest.json")).call(tokens(task, &texts, &at.join(split)));
            }
        }
        stage.reading(task.tokenizer()).costing(Cost { seconds: 10.0, disk: 2e7, ..Cost::default() })
    }

    /// The folds of the training pairs; a GPT-2 for each that learns the others; and its translations of this one: what models that
    /// write all words at once learn in place of the real ones.
    pub(super) fn translations(&self, task: &Task) -> Vec<Stage> {
        let Some(condition) = task.condition else { return Vec::new() };
        let mut stages = vec![self.folds(task, condition)];
        let folds = names::folds(task);
        let name = names::translations(task);
        let at = self.at(&name);
        let mut stage = Stage::new(name, format!("translations to learn, of {}", task.name)).after(folds.clone());
        let mut joined = Call::new(["data", "select"])
            .flag("--column", format!("input={condition}"))
            .flag("--column", format!("prediction={}", task.target));
        for fold in 0..FOLDS {
            let translator = names::translator(task, fold);
            stages.push(self.translator(task, fold, translator.clone()));
            let texts = format!("{fold}.jsonl");
            let call = Call::new(["sample"])
                .word(self.at(&translator))
                .flag("--input", self.at(&folds).join(format!("fold-{fold}.jsonl")))
                .flag("--input-column", condition)
                .words(self.scale.translator_flags.iter().copied())
                .flag("--batch-size", "64")
                .flag("--output", at.join(&texts));
            joined = joined.flag("--input", at.join(&texts));
            stage = stage.after(translator).call(call.leaving(&texts)).making(texts);
        }
        let train = at.join("train.jsonl");
        let stage = stage
            .call(joined.flag("--output", &train))
            .call(tokens(task, &train, &at.join("train")))
            .making("train/manifest.json")
            .reading(task.tokenizer())
            .costing(self.cost(task, 1.0, 4.0));
        stages.push(stage);
        stages
    }

    /// The folds of the training pairs, each of every n-th of the pairs that are left, and the tokens of all pairs outside of each.
    fn folds(&self, task: &Task, condition: &str) -> Stage {
        let name = names::folds(task);
        let (at, data) = (self.at(&name), names::data(task));
        let train = self.at(&data).join("train.jsonl");
        let select = |input: &Path, output: &Path| {
            Call::new(["data", "select"])
                .flag("--input", input)
                .flag("--column", condition)
                .flag("--column", task.target)
                .flag("--output", output)
        };
        let mut stage = Stage::new(name, format!("folds of {}", task.name)).after(data).reading(task.tokenizer());
        let mut left = train.clone();
        for fold in 0..FOLDS {
            let file = at.join(format!("fold-{fold}.jsonl"));
            let known = without(condition, &file, condition);
            stage = stage.call(select(&left, &file).flag("--every-nth", (FOLDS - fold).to_string()));
            if fold + 1 < FOLDS {
                let rest = at.join(format!("left-{fold}.jsonl"));
                stage = stage.call(select(&left, &rest).flag("--without", &known));
                left = rest;
            }
            let others = at.join(format!("without-{fold}.jsonl"));
            stage = stage.call(select(&train, &others).flag("--without", &known));
            stage = stage
                .call(tokens(task, &others, &others.with_extension("")))
                .making(format!("without-{fold}/manifest.json"));
        }
        stage.costing(Cost { seconds: 15.0, disk: 6e7, ..Cost::default() })
    }

    fn translator(&self, task: &Task, fold: usize, name: StageName) -> Stage {
        let baseline = self.baseline(task, Model::Gpt2);
        let training = Training {
            name,
            title: format!("GPT-2 on all folds of {} but one", task.name),
            data: names::folds(task),
            shards: format!("without-{fold}"),
            ..baseline
        };
        let share = 1.0 - 1.0 / FOLDS as f64;
        let epochs = training.epochs;
        training.stage(self).costing(self.cost(task, epochs * share, 3.0))
    }
}

/// The call that turns texts into tokens.
fn tokens(task: &Task, texts: &Path, to: &Path) -> Call {
    let call = Call::new(["data", "prepare"]).flag("--input", texts);
    let (call, target) = match task.condition {
        None => (call, "text"),
        Some(condition) => (call.flag("--condition-column", condition).word("--eos-condition"), task.target),
    };
    call.flag("--target-column", target).word("--eos-target").flag("--tokenizer", task.encoder).flag("--output", to)
}
