//! Stages that sample texts and evaluate them.

use std::path::{Path, PathBuf};

use super::samplers::Sampler;
use super::settings::{Ablation, Model, STEPS, STUDENT_STEPS, TASKS, Task, WEIGHTS, Writer};
use super::{Mini, names};
use crate::reproduce::stage::{Call, Cost, Stage, StageName, column_of};

/// Texts that are sampled at once.
const BATCH_SIZE: u64 = 64;

/// Test rows of the conditional tasks, for estimates.
const TEST_ROWS: u64 = 800;

/// Texts to be generated and evaluated.
struct Texts<'a> {
    task: &'a Task,
    /// The stage that trained the model.
    run: StageName,
    /// The stage to be made.
    stage: StageName,
    title: String,
    sampler: Sampler,
}

/// A system of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct System {
    /// Its model and sampler.
    pub writer: Writer,
    /// Steps, if it is sampled in a number of steps.
    pub steps: Option<u64>,
    /// The stage of its evaluation.
    pub stage: StageName,
}

/// One change to the setting in which ELF is sampled.
pub struct Studied {
    /// The heading that it is listed under.
    pub group: &'static str,
    /// Its value, for a reader.
    pub value: String,
    /// The stage of its evaluation.
    pub stage: StageName,
    /// The stage itself, unless a comparison of systems has the same one.
    pub(super) made: Option<Stage>,
}

impl Mini<'_> {
    /// The test texts of the definitions, evaluated like samples.
    pub(super) fn test_texts(&self) -> Stage {
        let (data, name) = (names::data(&TASKS[0]), names::test_texts());
        let texts = self.at(&data).join("test.jsonl");
        Stage::new(name.clone(), "the test texts, evaluated like samples")
            .after(data)
            .after(names::judge())
            .call(self.eval_call(&TASKS[0], &[texts], &name))
            .making("eval.json")
            .costing(Cost { seconds: 20.0, ..Cost::default() })
    }

    fn eval_call(&self, task: &Task, samples: &[PathBuf], stage: &StageName) -> Call {
        let mut call = Call::new(["eval", "--samples"]).words(samples);
        if task.condition.is_none() {
            let data = self.at(&names::data(task));
            call = call
                .flag("--judge", self.at(&names::judge()))
                .flag("--references", column_of(&data.join("test.jsonl"), "text"))
                .flag("--training", column_of(&data.join("train.jsonl"), "text"));
        }
        call.flag("--output", self.at(stage).join("eval.json"))
    }

    /// Texts of one system and their evaluation.
    fn evaluation(&self, texts: Texts) -> Stage {
        let Texts { task, run, stage: name, title, sampler, .. } = &texts;
        let mut stage = Stage::new(name.clone(), title.clone()).after(run.clone()).after(names::data(task));
        stage.reads.extend(sampler.config.iter().map(PathBuf::from));
        if task.condition.is_none() {
            stage = stage.after(names::judge());
        }
        let seeds = if sampler.draws() { self.scale.seeds } else { 1 };
        let rows = task.condition.map_or(self.scale.texts, |_| self.scale.test_rows.unwrap_or(TEST_ROWS));
        let mut files = Vec::new();
        for seed in 0..seeds {
            let file = format!("samples-{seed}.jsonl");
            let path = self.at(name).join(&file);
            stage = stage.call(self.sample_call(&texts, seed, rows, &path).leaving(&file)).making(file);
            files.push(path);
        }
        let number = (seeds * rows) as f64;
        stage.call(self.eval_call(task, &files, name)).making("eval.json").costing(Cost {
            flops: number * task.positions * sampler.passes() * 2.0 * WEIGHTS,
            seconds: 3.0 * (seeds + 1) as f64,
            disk: 1e6,
            ..Cost::default()
        })
    }

    fn sample_call(&self, texts: &Texts, seed: u64, rows: u64, output: &Path) -> Call {
        let Texts { task, run, sampler, .. } = texts;
        let mut call = Call::new(["sample"]).word(self.at(run));
        match task.condition {
            None => call = call.flag("--num", self.scale.texts.to_string()),
            Some(condition) => {
                call = call
                    .flag("--input", self.at(&names::data(task)).join("test.jsonl"))
                    .flag("--input-column", condition)
                    .flag("--reference-column", task.target);
                if let Some(rows) = self.scale.test_rows {
                    call = call.flag("--limit", rows.to_string());
                }
            }
        }
        // Batches are filled up, so that a text does not depend on the number of texts: a larger one would only cost more.
        call.flag("--seed", seed.to_string())
            .flag("--batch-size", rows.min(BATCH_SIZE).to_string())
            .words(sampler.words())
            .flag("--output", output)
    }

    /// ELF and the baselines on a task: for unconditional text at all numbers of steps of the scale, for conditional text at
    /// [`STEPS`].
    pub(super) fn systems(&self, task: &Task) -> Vec<(System, Stage)> {
        let mut samplers: Vec<(Writer, Sampler)> = Vec::new();
        if task.condition.is_none() {
            for (writer, sampler) in
                [(Writer::Plain(Model::Elf), Sampler::of(task)), (Writer::Plain(Model::Mdlm), Sampler::masked())]
            {
                samplers.extend(self.scale.steps.iter().map(|&steps| (writer, sampler.clone().in_steps(steps))));
            }
            samplers.push((Writer::PaperSampler, Sampler::paper_sde().in_steps(STEPS)));
            samplers.push((Writer::Plain(Model::Gpt2), Sampler::ancestral()));
        } else {
            for (model, sampler) in [(Model::Elf, Sampler::of(task)), (Model::Mdlm, Sampler::masked())] {
                let sampler = sampler.in_steps(STEPS);
                samplers.push((Writer::Plain(model), sampler.clone()));
                if task.learns_translations {
                    samplers.push((Writer::Candidates(model), sampler.of_candidates()));
                }
            }
            if task.blocks {
                samplers.push((Writer::Plain(Model::Blocks), Sampler::blocks(task)));
            }
            samplers.extend([1, 4].map(|width| (Writer::Beam(width), Sampler::beam(width))));
        }
        samplers.into_iter().map(|(writer, sampler)| self.system(task, writer, sampler)).collect()
    }

    fn system(&self, task: &Task, writer: Writer, sampler: Sampler) -> (System, Stage) {
        let (steps, stage) = (sampler.steps, names::texts(task, writer, sampler.steps));
        let shown = steps.filter(|_| task.condition.is_none());
        let in_steps = shown.map(|steps| format!(" in {steps} steps")).unwrap_or_default();
        let texts = Texts {
            task,
            run: names::training(task, writer.model()),
            stage: stage.clone(),
            title: format!("{} by {}{in_steps}", task.name, writer.label()),
            sampler,
        };
        (System { writer, steps, stage }, self.evaluation(texts))
    }

    /// The setting in which the model of definitions is sampled, with one change each.
    pub(super) fn sampler_study(&self) -> Vec<Studied> {
        let usual = || Sampler::of(&TASKS[0]);
        let flag = |group, flag: &str, value: f64| (group, value.to_string(), usual().with(flag, value));
        let mut settings = vec![("", "the usual setting".to_owned(), usual())];
        settings.extend([1.0, 1.5, 3.0].map(|scale| flag("word guide", "--guide-scale", scale)));
        settings.extend([0.25, 0.5, 0.7, 1.0].map(|time| flag("leap from", "--leap-at", time)));
        settings.extend([0.0, 0.5, 1.0].map(|temperature| flag("temperature", "--temperature", temperature)));
        settings.push(("reading", "tokens by themselves".to_owned(), usual().with("--whole-words", false)));
        settings.push(("paper's samplers", "SDE, gamma 1.5".to_owned(), Sampler::paper_sde()));
        settings
            .extend([0.5, 1.0].map(|gamma| ("paper's samplers", format!("SDE, gamma {gamma}"), Sampler::sde(gamma))));
        settings.push(("paper's samplers", "ODE".to_owned(), Sampler::paper_ode()));
        settings
            .into_iter()
            .map(|(group, value, sampler)| self.studied(group, value, sampler.in_steps(STEPS)))
            .collect()
    }

    fn studied(&self, group: &'static str, value: String, sampler: Sampler) -> Studied {
        let task = &TASKS[0];
        let compared = [
            (Sampler::of(task).in_steps(STEPS), Writer::Plain(Model::Elf)),
            (Sampler::paper_sde().in_steps(STEPS), Writer::PaperSampler),
        ];
        if let Some((_, writer)) = compared.into_iter().find(|(same, _)| *same == sampler) {
            return Studied { group, value, stage: names::texts(task, writer, Some(STEPS)), made: None };
        }
        let stage = names::sampler_texts(&format!("{group} {value}").replace([' ', ',', '\''], "-"));
        let made = self.evaluation(Texts {
            task,
            run: names::training(task, Model::Elf),
            stage: stage.clone(),
            title: format!("{} by ELF: {group} {value}", task.name),
            sampler,
        });
        Studied { group, value, stage, made: Some(made) }
    }

    /// Texts of an ablation.
    pub(super) fn ablation_texts(&self, ablation: &Ablation) -> Stage {
        self.evaluation(Texts {
            task: &TASKS[0],
            run: names::ablation(ablation),
            stage: names::ablation_texts(ablation),
            title: format!("texts of the ablation {}", ablation.name),
            sampler: Sampler::of(&TASKS[0]).in_steps(STEPS),
        })
    }

    /// The student's texts in each number of steps.
    pub(super) fn students(&self) -> Vec<(u64, Stage)> {
        let texts = |steps| {
            self.evaluation(Texts {
                task: &TASKS[0],
                run: names::distillation(),
                stage: names::student_texts(steps),
                title: format!("{} by the student in {steps} steps", TASKS[0].name),
                sampler: Sampler::few_steps().in_steps(steps),
            })
        };
        STUDENT_STEPS.map(|steps| (steps, texts(steps))).into()
    }
}
