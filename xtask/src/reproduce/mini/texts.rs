//! Stages that sample texts and evaluate them.

use std::path::{Path, PathBuf};

use super::samplers::{
    BLOCKS, CONDITIONAL, CONDITIONAL_BLOCKS, FEW_STEPS, GAMMA, GUIDED, Kind, PAPER_SDE, SELF_GUIDANCE, Sampler,
};
use super::settings::{
    Ablation, CONDITION_GUIDANCE, DECODE_TIMES, DECODED_AT, GAMMAS, GUIDANCE, GUIDE, GUIDE_SCALE, GUIDE_SCALES, Model,
    STEPS, STUDENTS, Scale, TASKS, Task, WEIGHTS, Writer,
};
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
    /// The model's folder in that of its stage, if the stage trained several.
    student: Option<&'a str>,
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

/// A student of distillation, or its teacher at the student's steps.
pub struct Student {
    /// Steps.
    pub steps: u64,
    /// Whether it is the student.
    pub is_student: bool,
    /// The stage of its texts.
    pub texts: Stage,
}

/// The settings of samplers that are compared, one setting after another.
pub struct SamplerStudy {
    /// The ODE at different numbers of steps.
    pub ode: Vec<Studied>,
    /// The SDE at different gammas.
    pub gammas: Vec<Studied>,
    /// Self-conditioning guidance scales.
    pub scales: Vec<Studied>,
    /// Autoguidance scales.
    pub guide_scales: Vec<Studied>,
    /// Times of decoding.
    pub decode_times: Vec<Studied>,
    /// Grids of times.
    pub grids: Vec<Studied>,
    /// Condition guidance scales, of translations.
    pub condition_guidance: Vec<Studied>,
}

impl SamplerStudy {
    /// The stages that no comparison of systems has already.
    pub(super) fn stages(self) -> impl Iterator<Item = Stage> {
        let Self { ode, gammas, scales, guide_scales, decode_times, grids, condition_guidance } = self;
        let all = [ode, gammas, scales, guide_scales, decode_times, grids, condition_guidance];
        all.into_iter().flatten().filter_map(|studied| studied.made)
    }
}

/// One setting of a sampler.
pub struct Studied {
    /// Its value, for a reader.
    pub value: String,
    /// The stage of its evaluation.
    pub stage: StageName,
    /// Its steps.
    pub steps: u64,
    /// The stage itself, unless a comparison of systems has the same one.
    made: Option<Stage>,
}

impl Mini<'_> {
    /// The test texts of the descriptions, evaluated like samples.
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
        if sampler.is_guided() {
            stage = stage.after(names::ablation(GUIDE));
        }
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
        let Texts { task, run, student, sampler, .. } = texts;
        let run = self.at(run);
        let mut call = Call::new(["sample"]).word(student.map_or(run.clone(), |student| run.join(student)));
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
        call = call
            .flag("--seed", seed.to_string())
            .flag("--batch-size", rows.min(BATCH_SIZE).to_string())
            .words(sampler.words());
        if sampler.is_guided() {
            call = call.flag("--guide", self.at(&names::ablation(GUIDE)));
        }
        call.flag("--output", output)
    }

    /// ELF and the baselines on a task: for unconditional text at all numbers of steps of the scale, for conditional text at
    /// [`STEPS`].
    pub(super) fn systems(&self, task: &Task) -> Vec<(System, Stage)> {
        let mut samplers: Vec<(Writer, Sampler)> = Vec::new();
        if task.condition.is_none() {
            for (writer, kind) in [
                (Writer::Plain(Model::Elf), PAPER_SDE),
                (Writer::Guided, GUIDED),
                (Writer::Plain(Model::Mdlm), Kind::Masked),
            ] {
                samplers.extend(self.scale.steps.iter().map(|&steps| (writer, kind.in_steps(steps))));
            }
            samplers.push((Writer::Plain(Model::Blocks), BLOCKS.alone()));
            samplers.push((Writer::Plain(Model::Gpt2), Kind::Ancestral.alone()));
        } else {
            samplers.extend([
                (Writer::Plain(Model::Elf), CONDITIONAL.in_steps(STEPS)),
                (Writer::Plain(Model::Blocks), CONDITIONAL_BLOCKS.alone()),
                (Writer::Plain(Model::Mdlm), Kind::Masked.in_steps(STEPS)),
                (Writer::Beam(1), Kind::Beam(1).alone()),
                (Writer::Beam(4), Kind::Beam(4).alone()),
            ]);
        }
        samplers.into_iter().map(|(writer, sampler)| self.system(task, writer, sampler)).collect()
    }

    fn system(&self, task: &Task, writer: Writer, sampler: Sampler) -> (System, Stage) {
        let stage = names::texts(task, writer, sampler.steps);
        let shown = sampler.steps.filter(|_| task.condition.is_none());
        let in_steps = shown.map(|steps| format!(" in {steps} steps")).unwrap_or_default();
        let texts = Texts {
            task,
            run: names::training(task, writer.model()),
            student: None,
            stage: stage.clone(),
            title: format!("{} by {}{in_steps}", task.name, writer.label()),
            sampler,
        };
        (System { writer, steps: sampler.steps, stage }, self.evaluation(texts))
    }

    /// ELF's samplers on the trained model of the descriptions, and condition guidance on that of the translations.
    pub(super) fn sampler_study(&self) -> SamplerStudy {
        let sde = |gamma, scale| Kind::Sde { gamma, scale, uniform_grid: false };
        let guided = |scale, decode_at| Kind::Guided { scale, decode_at };
        let ode = |&steps: &u64| self.sampler(&format!("ode-{steps}"), Kind::Ode.in_steps(steps), steps);
        let at_steps = |name: String, kind: Kind, value: f64| self.sampler(&name, kind.in_steps(STEPS), value);
        let grid = |name: &str, kind: Kind| self.sampler(&format!("{name}-grid"), kind.in_steps(STEPS), name);
        let uniform = Kind::Sde { gamma: GAMMA, scale: SELF_GUIDANCE, uniform_grid: true };
        SamplerStudy {
            ode: self.scale.steps.iter().map(ode).collect(),
            gammas: GAMMAS.map(|gamma| at_steps(format!("gamma-{gamma}"), sde(gamma, SELF_GUIDANCE), gamma)).into(),
            scales: GUIDANCE.map(|scale| at_steps(format!("guidance-{scale}"), sde(GAMMA, scale), scale)).into(),
            guide_scales: GUIDE_SCALES
                .map(|scale| at_steps(format!("guide-{scale}"), guided(scale, DECODED_AT), scale))
                .into(),
            decode_times: DECODE_TIMES
                .map(|at| at_steps(format!("decode-at-{at}"), guided(GUIDE_SCALE, at), at))
                .into(),
            grids: vec![grid("logit-normal", PAPER_SDE), grid("uniform", uniform)],
            condition_guidance: CONDITION_GUIDANCE.map(|scale| self.condition_guidance(scale)).into(),
        }
    }

    /// A sampler of the descriptions; `value` is the setting in which it differs from the others.
    fn sampler(&self, name: &str, sampler: Sampler, value: impl ToString) -> Studied {
        let (task, value, steps) = (&TASKS[0], value.to_string(), sampler.steps.unwrap_or(STEPS));
        let compared = [(PAPER_SDE, Writer::Plain(Model::Elf)), (GUIDED, Writer::Guided)];
        let same = compared.into_iter().find(|(same, _)| *same == sampler.kind && self.scale.steps.contains(&steps));
        if let Some((_, writer)) = same {
            return Studied { value, stage: names::texts(task, writer, Some(steps)), steps, made: None };
        }
        let stage = names::sampler_texts(name);
        let made = self.evaluation(Texts {
            task,
            run: names::training(task, Model::Elf),
            student: None,
            stage: stage.clone(),
            title: format!("descriptions by ELF: {name}, {steps} steps"),
            sampler,
        });
        Studied { value, stage, steps, made: Some(made) }
    }

    /// Translations with a condition guidance scale.
    fn condition_guidance(&self, scale: f64) -> Studied {
        let (task, value, kind) = (&TASKS[1], scale.to_string(), Kind::Conditional { scale });
        if kind == CONDITIONAL {
            let stage = names::texts(task, Writer::Plain(Model::Elf), Some(STEPS));
            return Studied { value, stage, steps: STEPS, made: None };
        }
        let stage = names::condition_guidance(scale);
        // Each takes minutes, and seeds differ by less than these scales do.
        let once = Scale { seeds: 1, ..self.scale.clone() };
        let made = Mini { work: self.work, scale: &once }.evaluation(Texts {
            task,
            run: names::training(task, Model::Elf),
            student: None,
            stage: stage.clone(),
            title: format!("translations with condition guidance {scale}"),
            sampler: kind.in_steps(STEPS),
        });
        Studied { value, stage, steps: STEPS, made: Some(made) }
    }

    /// Texts of an ablation.
    pub(super) fn ablation_texts(&self, ablation: &Ablation) -> Stage {
        self.evaluation(Texts {
            task: &TASKS[0],
            run: names::ablation(ablation),
            student: None,
            stage: names::ablation_texts(ablation),
            title: format!("texts of the ablation {}", ablation.name),
            sampler: PAPER_SDE.in_steps(STEPS),
        })
    }

    /// Each student, followed by its teacher at the student's steps.
    pub(super) fn students(&self) -> Vec<Student> {
        let task = &TASKS[0];
        let of_round = |(folder, steps): (&'static str, u64)| {
            let kinds = [
                (true, names::distillation(), "student", Some(folder)),
                (false, names::training(task, Model::Elf), "teacher", None),
            ];
            kinds.map(|(is_student, run, name, student)| {
                let stage = names::distilled_texts(is_student, steps);
                let title = format!("descriptions by the {name} in {steps} steps");
                let texts = Texts { task, run, student, stage, title, sampler: FEW_STEPS.in_steps(steps) };
                Student { steps, is_student, texts: self.evaluation(texts) }
            })
        };
        STUDENTS.into_iter().flat_map(of_round).collect()
    }
}
