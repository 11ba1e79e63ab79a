//! Stages that train models to fill gaps in definitions, and have them do it.

use super::samplers::Sampler;
use super::settings::{COMPARED, Filler, HIDDEN, Model, STEPS, Settings, TASKS, WEIGHTS};
use super::training::Training;
use super::{Mini, names};
use crate::reproduce::stage::{Call, Cost, Stage, column_of};

/// The configuration of all models that fill gaps.
const CONFIG: &str = "configs/infill.yml";

/// How it is sampled.
fn sampler(filler: Filler) -> Sampler {
    match filler {
        Filler::Elf => Sampler::filling().in_steps(STEPS),
        Filler::Mdlm => Sampler::masked().in_steps(STEPS),
        Filler::Gpt2 => Sampler::ancestral(),
        Filler::Gpt2Likeliest => Sampler::beam(1),
    }
}

impl Mini<'_> {
    /// ELF and masked diffusion go on as they are; a GPT-2 learns it from the start, in as many passes as the others took in all.
    pub(super) fn fillers(&self) -> Vec<Stage> {
        COMPARED.map(|model| self.filler(model)).into()
    }

    fn filler(&self, model: Model) -> Stage {
        let task = &TASKS[0];
        let begins = (model != Model::Gpt2).then(|| names::training(task, model));
        let mut settings = match model {
            Model::Gpt2 => {
                const OWN_RATE: Settings = &[("batch_size", "64"), ("lr_schedule", "cosine"), ("early_stopping", "4")];
                Call::default().settings(OWN_RATE).setting("init_from", "null")
            }
            _ => Call::default(),
        };
        if let Some(run) = &begins {
            settings = settings.setting("init_from", self.at(run));
        }
        settings = match model {
            Model::Elf => settings.setting("encoder_model_name", task.encoder),
            _ => settings.setting("objective", model.name()).setting("tokenizer_name", task.encoder),
        };
        let training = Training {
            title: format!("{} that fills gaps in {}", model.label(), task.name),
            config: CONFIG.to_owned(),
            epochs: self.scale.filling_epochs + if begins.is_some() { 0.0 } else { self.epochs(task) },
            passes: 5.0,
            settings,
            ..Training::on(task, names::filling(model))
        };
        let mut stage = training.stage(self);
        stage.needs.extend(begins);
        match model {
            Model::Elf => self.with_words(stage, task),
            _ => stage,
        }
    }

    /// Test definitions with hidden words, filled in by each model.
    pub(super) fn filled(&self) -> Vec<Stage> {
        HIDDEN.iter().flat_map(|&share| Filler::ALL.map(|filler| self.filled_by(filler, share))).collect()
    }

    fn filled_by(&self, filler: Filler, share: f64) -> Stage {
        let (task, name, run) = (&TASKS[0], names::filled(filler, share), names::filling(filler.model()));
        let (data, sampler) = (self.at(&names::data(task)), sampler(filler));
        let title = format!("{:.0}% of the words of {}, filled in by {}", 100.0 * share, task.name, filler.label());
        let mut stage =
            Stage::new(name.clone(), title).after(run.clone()).after(names::data(task)).after(names::judge());
        stage.reads.extend(sampler.config.iter().map(Into::into));
        let mut files = Vec::new();
        // Another seed hides other words.
        for seed in 0..self.scale.seeds {
            let file = format!("samples-{seed}.jsonl");
            let call = Call::new(["infill"])
                .word(self.at(&run))
                .flag("--input", data.join("test.jsonl"))
                .flag("--limit", self.scale.texts.to_string())
                .flag("--hide", share.to_string())
                .flag("--seed", seed.to_string())
                .flag("--batch-size", "64")
                .words(sampler.words())
                .flag("--output", self.at(&name).join(&file));
            stage = stage.call(call.leaving(&file)).making(&file);
            files.push(self.at(&name).join(&file));
        }
        let evaluation = Call::new(["eval", "--samples"])
            .words(files)
            .flag("--judge", self.at(&names::judge()))
            .flag("--training", column_of(&data.join("train.jsonl"), "text"))
            .flag("--output", self.at(&name).join("eval.json"));
        let texts = (self.scale.seeds * self.scale.texts) as f64;
        stage.call(evaluation).making("eval.json").costing(Cost {
            flops: texts * task.positions * sampler.passes() * 2.0 * WEIGHTS,
            seconds: 3.0 * (self.scale.seeds + 1) as f64,
            disk: 1e6,
            ..Cost::default()
        })
    }
}
