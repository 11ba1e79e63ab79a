//! Stages that prepare texts and tokens, and the translations that models learn in place of the real ones.

use std::ffi::OsString;
use std::path::Path;

use super::settings::{Model, Task};
use super::training::Training;
use super::{Mini, names};
use crate::reproduce::stage::{Call, Cost, Stage, StageName, column_of};

/// The column of generated texts.
fn text_column(task: &Task) -> &'static str {
    if task.condition.is_some() { task.target } else { "text" }
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
                let mut without = OsString::from(format!("{column}="));
                without.push(column_of(&at.join("train.jsonl"), selected));
                call = call.flag("--without", without);
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

    /// Two GPT-2s, each of one half of the training pairs, and the translations of the other half that each makes: what models
    /// that write all words at once learn in place of the real ones.
    pub(super) fn translations(&self, task: &Task) -> Vec<Stage> {
        let Some(condition) = task.condition else { return Vec::new() };
        let mut stages = vec![self.halves(task, condition)];
        let halves = names::halves(task);
        let name = names::translations(task);
        let at = self.at(&name);
        let mut stage = Stage::new(name, format!("translations to learn, of {}", task.name)).after(halves.clone());
        let mut joined = Call::new(["data", "select"])
            .flag("--column", format!("input={condition}"))
            .flag("--column", format!("prediction={}", task.target));
        for half in 0..2 {
            let translator = names::translator(task, half);
            stages.push(self.translator(task, half, translator.clone()));
            let (unseen, texts) = (1 - half, format!("{half}.jsonl"));
            let call = Call::new(["sample"])
                .word(self.at(&translator))
                .flag("--input", self.at(&halves).join(unseen.to_string()).with_extension("jsonl"))
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

    /// The halves of the training pairs, every second row each.
    fn halves(&self, task: &Task, condition: &str) -> Stage {
        let name = names::halves(task);
        let (at, data) = (self.at(&name), names::data(task));
        let call = || {
            Call::new(["data", "select"])
                .flag("--input", self.at(&data).join("train.jsonl"))
                .flag("--column", condition)
                .flag("--column", task.target)
        };
        let file = |half: usize| at.join(half.to_string()).with_extension("jsonl");
        let mut known = OsString::from(format!("{condition}="));
        known.push(column_of(&file(0), condition));
        Stage::new(name, format!("halves of {}", task.name))
            .after(data.clone())
            .call(call().flag("--every-nth", "2").flag("--output", file(0)))
            .call(call().flag("--without", known).flag("--output", file(1)))
            .call(tokens(task, &file(0), &at.join("0")))
            .call(tokens(task, &file(1), &at.join("1")))
            .making("1/manifest.json")
            .reading(task.tokenizer())
            .costing(Cost { seconds: 5.0, disk: 2e7, ..Cost::default() })
    }

    fn translator(&self, task: &Task, half: usize, name: StageName) -> Stage {
        let baseline = self.baseline(task, Model::Gpt2);
        let training = Training {
            name,
            title: format!("GPT-2 on one half of {}", task.name),
            data: names::halves(task),
            shards: half.to_string(),
            ..baseline
        };
        let epochs = training.epochs;
        training.stage(self).costing(self.cost(task, epochs / 2.0, 3.0))
    }
}

/// The call that turns texts into tokens.
fn tokens(task: &Task, texts: &Path, to: &Path) -> Call {
    let call = Call::new(["data", "prepare"]).flag("--input", texts);
    let call = match task.condition {
        None => call,
        Some(condition) => call.flag("--condition-column", condition).word("--eos-condition"),
    };
    call.flag("--target-column", text_column(task))
        .word("--eos-target")
        .flag("--tokenizer", task.encoder)
        .flag("--output", to)
}
