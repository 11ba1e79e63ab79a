//! The stages of the preset `mini`: the three embedded tasks, ELF against its baselines, and the ablations, on one machine without network.

use super::mini_samplers::{
    BLOCKS, CONDITIONAL, CONDITIONAL_BLOCKS, FEW_STEPS, GAMMA, GUIDED, Kind, PAPER_SDE, SELF_GUIDANCE, Sampler,
};
use super::mini_settings::{
    Ablation, BLOCK_ELF, CONDITION_GUIDANCE, DECODE_TIMES, DECODED_AT, ENCODER_RECIPE, ENCODER_SIZE, GAMMAS, GUIDANCE,
    GUIDE, GUIDE_SCALE, GUIDE_SCALES, GUIDED_ELF, OBJECTIVES, PLAIN_ELF, PRETRAINED, SHIPPED_ENCODER, STEPS, STUDENTS,
    Scale, System, TASKS, Task, WEIGHTS, ablation_stage, system_label,
};
use super::stage::{Cost, Stage};

/// Texts that are sampled at once.
const BATCH_SIZE: u64 = 64;

/// Builds the stages of the preset.
pub struct Mini<'a> {
    /// The work folder, relative to the repository.
    pub work: &'a str,
    /// How much of everything.
    pub scale: &'a Scale,
}

impl Mini<'_> {
    fn at(&self, stage: &str) -> String {
        format!("{}/{stage}", self.work)
    }

    fn encoder(&self, stage: &str) -> String {
        match self.scale.encoder_steps {
            None if stage == PRETRAINED => SHIPPED_ENCODER.to_owned(),
            _ => format!("{}/t5", self.at(stage)),
        }
    }

    fn tokenizer(&self) -> String {
        match self.scale.encoder_steps {
            None => SHIPPED_ENCODER.to_owned(),
            Some(_) => self.at("corpus/tokenizer"),
        }
    }

    /// All stages, each after those that it needs.
    pub fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        if let Some(steps) = self.scale.encoder_steps {
            stages.extend(self.pretraining(steps));
        }
        stages.extend(TASKS.iter().map(|task| self.data(task)));
        stages.push(self.judge());
        for (task, epochs) in TASKS.iter().zip(self.scale.epochs) {
            stages.extend(OBJECTIVES.map(|objective| self.training(task, objective, epochs)));
        }
        stages
            .extend(TASKS.iter().zip(self.scale.block_epochs).map(|(task, epochs)| self.block_training(task, epochs)));
        let ablations =
            self.other_encoders().into_iter().chain(self.scale.ablations.iter().flat_map(|a| self.ablation(a)));
        let (guide, ablations): (Vec<Stage>, Vec<Stage>) = ablations.partition(|stage| stage.name == GUIDE);
        stages.extend(guide);
        stages.push(self.data_row());
        stages.extend(self.comparison().into_iter().map(|(_, stage)| stage));
        for task in &TASKS[1..] {
            stages.extend(self.conditional(task).into_iter().map(|(_, stage)| stage));
        }
        if self.scale.sampler_study {
            stages.extend(self.sampler_study().stages());
        }
        stages.extend(ablations);
        stages.extend(self.distillation());
        stages
    }

    /// A tokenizer and an encoder from the training texts.
    fn pretraining(&self, steps: u64) -> Vec<Stage> {
        let columns = [("descriptions", "description"), ("descriptions", "synopsis"), ("de-en", "de"), ("de-en", "en")];
        let corpus = |split: &str, flag: &str| {
            columns.map(|(file, column)| format!("{flag} data/{file}-{split}.parquet:{column}")).join(" ")
        };
        let reading = |stage: Stage, split: &str| {
            ["descriptions", "de-en"]
                .iter()
                .fold(stage, |stage, corpus| stage.reading(format!("data/{corpus}-{split}.parquet")))
        };
        let tokenizer = Stage::new("corpus/tokenizer", "a tokenizer for English and German descriptions")
            .call(format!(
                "tokenizer train {} --vocab-size 8192 --output {}/tokenizer.json",
                corpus("train", "--text"),
                self.at("corpus/tokenizer")
            ))
            .making("tokenizer.json")
            .costing(Cost { seconds: 10.0, disk: 1e6, ..Cost::default() });
        let encoder = Stage::new(PRETRAINED, "an encoder by span corruption")
            .after("corpus/tokenizer")
            .call_once(
                format!(
                    "encoder train {} {} --tokenizer {} --steps {steps} {ENCODER_SIZE} {ENCODER_RECIPE} --output {}",
                    corpus("train", "--text"),
                    corpus("validation", "--validation"),
                    self.tokenizer(),
                    self.encoder(PRETRAINED)
                ),
                "t5",
            )
            .making("t5/model.safetensors")
            .making("t5/latent_stats.json")
            .costing(Cost { flops: steps as f64 * 2.5e11, seconds: 10.0, disk: 1e8, ..Cost::default() });
        vec![reading(tokenizer, "train"), reading(reading(encoder, "train"), "validation")]
    }

    fn needing_tokenizer(&self, stage: Stage) -> Stage {
        match self.scale.encoder_steps {
            None => stage.reading(format!("{SHIPPED_ENCODER}/tokenizer.json")),
            Some(_) => stage.after("corpus/tokenizer"),
        }
    }

    fn needing_encoder(&self, stage: Stage, encoder: &str) -> Stage {
        match self.scale.encoder_steps {
            None if encoder == PRETRAINED => stage.reading(format!("{SHIPPED_ENCODER}/model.safetensors")),
            _ => stage.after(encoder),
        }
    }

    /// The texts of a task and their tokens.
    fn data(&self, task: &Task) -> Stage {
        let name = format!("data/{}", task.name);
        let (at, tokenizer) = (self.at(&name), self.tokenizer());
        let columns = match task.condition {
            None => format!("--column {}=text", task.target),
            Some(condition) => format!("--column {condition} --column {}", task.target),
        };
        let shards = match task.condition {
            None => "--target-column text --eos-target".to_owned(),
            Some(condition) => {
                format!("--condition-column {condition} --target-column {} --eos-condition --eos-target", task.target)
            }
        };
        let mut stage = Stage::new(&name, format!("texts and tokens of {}", task.name));
        for split in ["train", "validation", "test"] {
            let input = format!("data/{}-{split}.parquet", task.corpus);
            // Splits are by package family, but families share texts.
            let further = match (split, task.condition) {
                ("train", _) => task.select_to_train.to_owned(),
                (_, None) => format!("--without {}={at}/train.jsonl:text", task.target),
                (_, Some(condition)) => format!("--without {condition}={at}/train.jsonl:{condition}"),
            };
            stage = stage.reading(&input).making(format!("{split}.jsonl")).call(format!(
                "data select --input {input} {columns} {} {further} --tokenizer {tokenizer} --output {at}/{split}.jsonl",
                task.select
            ));
            if split != "test" {
                stage = stage.making(format!("{split}/manifest.json")).call(format!(
                    "data prepare --input {at}/{split}.jsonl {shards} --tokenizer {tokenizer} --output {at}/{split}"
                ));
            }
        }
        self.needing_tokenizer(stage).costing(Cost { seconds: 10.0, disk: 2e7, ..Cost::default() })
    }

    /// Words of `elf train` for a task.
    fn train_call(&self, task: &Task, config: &str, run: &str, epochs: f64, settings: &str) -> String {
        let data = self.at(&format!("data/{}", task.name));
        let settings = [settings, self.scale.settings].map(as_flags).concat();
        format!(
            "train {config} -o data_path={data}/train -o eval_data_path={data}/validation -o epochs={epochs}{settings} --output {}",
            self.at(run)
        )
    }

    /// What `passes` over all positions of `epochs` cost.
    fn positions(task: &Task, epochs: f64, passes: f64) -> Cost {
        let positions = task.rows * task.positions * epochs;
        Cost { flops: positions * passes * 2.0 * WEIGHTS, seconds: 6.0, disk: 1.5e8, ..Cost::default() }
    }

    fn training(&self, task: &Task, objective: &str, epochs: f64) -> Stage {
        let name = format!("train/{}/{objective}", task.name);
        let config = format!("configs/mini-{}.yml", task.name);
        // ELF: 3 for the gradient, 1.4 for estimates without one, 0.6 for the encoder.
        let (passes, encoder) = if objective == "elf" { (5.0, Some(PRETRAINED)) } else { (3.0, None) };
        let settings = match objective {
            "elf" => format!("encoder_model_name={}", self.encoder(PRETRAINED)),
            other => format!("objective={other} tokenizer_name={}", self.tokenizer()),
        };
        let stage = Stage::new(&name, format!("{} on {}", system_label(objective), task.name))
            .after(&format!("data/{}", task.name))
            .reading(&config)
            .call(self.train_call(task, &config, &name, epochs, &settings))
            .making("plan.json")
            .making("checkpoints")
            .costing(Self::positions(task, epochs, passes));
        match encoder {
            Some(encoder) => self.needing_encoder(stage, encoder),
            None => self.needing_tokenizer(stage),
        }
    }

    /// ELF token by token, from nothing, as all that it is compared with.
    fn block_training(&self, task: &Task, epochs: f64) -> Stage {
        let (config, name) = (format!("configs/mini-{}-blocks.yml", task.name), format!("train/{}/blocks", task.name));
        let encoder = format!("encoder_model_name={}", self.encoder(PRETRAINED));
        let stage = Stage::new(&name, format!("{BLOCK_ELF}, on {}", task.name))
            .after(&format!("data/{}", task.name))
            .reading(&config)
            .call(self.train_call(task, &config, &name, epochs, &encoder))
            .making("plan.json")
            .making("checkpoints")
            // Every row is there twice, but without what fills it up.
            .costing(Self::positions(task, epochs, 4.0));
        self.needing_encoder(stage, PRETRAINED)
    }

    /// The GPT-2 that judges perplexity: larger and longer trained than the baseline, and none of them.
    fn judge(&self) -> Stage {
        let task = &TASKS[0];
        let config = "configs/mini-judge.yml";
        let settings = format!("tokenizer_name={}", self.tokenizer());
        let stage = Stage::new("judge", "the GPT-2 that judges perplexity")
            .after("data/descriptions")
            .reading(config)
            .call(self.train_call(task, config, "judge", self.scale.judge_epochs, &settings))
            .making("checkpoints")
            .costing(Self::positions(task, self.scale.judge_epochs, 6.0));
        self.needing_tokenizer(stage)
    }

    /// The test texts themselves, judged like samples.
    fn data_row(&self) -> Stage {
        let texts = self.at("data/descriptions/test.jsonl");
        let name = "eval/descriptions/data";
        Stage::new(name, "the test texts themselves, as if they were samples")
            .after("data/descriptions")
            .after("judge")
            .call(self.eval_call(&texts, name, true))
            .making("eval.json")
            .costing(Cost { seconds: 20.0, ..Cost::default() })
    }

    fn eval_call(&self, samples: &str, stage: &str, unconditional: bool) -> String {
        let against = if unconditional {
            let data = self.at("data/descriptions");
            format!(
                "--judge {} --references {data}/test.jsonl:text --training {data}/train.jsonl:text ",
                self.at("judge")
            )
        } else {
            String::new()
        };
        format!("eval --samples {samples} {against}--output {}/eval.json", self.at(stage))
    }

    /// Texts of one system and their evaluation.
    fn evaluation(&self, texts: &Texts) -> Stage {
        let Texts { task, run, student, stage, title, sampler } = texts;
        let (at, model) = (self.at(stage), format!("{}{student}", self.at(run)));
        let mut made = Stage::new(*stage, *title).after(run).after(&format!("data/{}", task.name));
        let mut sampling = sampler.to_string();
        if sampler.is_guided() {
            made = made.after(GUIDE);
            sampling = format!("{sampling} --guide {}", self.at(GUIDE));
        }
        let what = match task.condition {
            None => format!("--num {}", self.scale.texts),
            Some(condition) => {
                let limit = self.scale.test_rows.map(|rows| format!(" --limit {rows}")).unwrap_or_default();
                format!(
                    "--input {}/test.jsonl --input-column {condition} --reference-column {}{limit}",
                    self.at(&format!("data/{}", task.name)),
                    task.target
                )
            }
        };
        let seeds = if sampler.draws() { self.scale.seeds } else { 1 };
        let rows = task.condition.map_or(self.scale.texts, |_| self.scale.test_rows.unwrap_or(800));
        // Batches are filled up, so that a text does not depend on how many there are: a larger one would only cost more.
        let batch_size = rows.min(BATCH_SIZE);
        let mut files = Vec::new();
        for seed in 0..seeds {
            let file = format!("{at}/samples-{seed}.jsonl");
            made = made
                .call_once(
                    format!("sample {model} {what} --seed {seed} --batch-size {batch_size} {sampling} --output {file}"),
                    format!("samples-{seed}.jsonl"),
                )
                .making(format!("samples-{seed}.jsonl"));
            files.push(file);
        }
        if task.condition.is_none() {
            made = made.after("judge");
        }
        let number = (seeds * rows) as f64;
        made.call(self.eval_call(&files.join(" "), stage, task.condition.is_none())).making("eval.json").costing(Cost {
            flops: number * task.positions * sampler.passes() * 2.0 * WEIGHTS,
            seconds: 3.0 * (seeds + 1) as f64,
            disk: 1e6,
            ..Cost::default()
        })
    }

    /// ELF and the baselines on unconditional text, over steps.
    pub fn comparison(&self) -> Vec<(System, Stage)> {
        let task = &TASKS[0];
        let kinds = [
            ("elf", "elf", PLAIN_ELF, PAPER_SDE),
            ("elf-guided", "elf", GUIDED_ELF, GUIDED),
            ("mdlm", "mdlm", system_label("mdlm"), Kind::Masked),
        ];
        let in_steps = kinds.iter().flat_map(|(name, objective, label, kind)| {
            let of_one = move |&steps: &u64| (format!("{name}-{steps}"), *objective, *label, kind.in_steps(steps));
            self.scale.steps.iter().map(of_one)
        });
        let alone = [
            ("elf-blocks".to_owned(), "blocks", BLOCK_ELF, BLOCKS.alone()),
            ("gpt2".to_owned(), "gpt2", system_label("gpt2"), Kind::Ancestral.alone()),
        ];
        let made = |(name, objective, label, sampler): (String, &str, &str, Sampler)| {
            let stage = format!("eval/descriptions/{name}");
            let in_steps = sampler.steps.map(|n| format!(" in {n} steps")).unwrap_or_default();
            let made = self.evaluation(&Texts {
                task,
                run: &format!("train/descriptions/{objective}"),
                student: "",
                stage: &stage,
                title: &format!("descriptions by {label}{in_steps}"),
                sampler: &sampler,
            });
            (System { stage, label: label.to_owned(), steps: sampler.steps }, made)
        };
        in_steps.chain(alone).map(made).collect()
    }

    /// ELF and the baselines on a conditional task.
    pub fn conditional(&self, task: &Task) -> Vec<(System, Stage)> {
        let rows = [
            ("elf", "elf", PLAIN_ELF, CONDITIONAL.in_steps(STEPS)),
            ("elf-blocks", "blocks", BLOCK_ELF, CONDITIONAL_BLOCKS.alone()),
            ("mdlm", "mdlm", "MDLM", Kind::Masked.in_steps(STEPS)),
            ("gpt2-beam-1", "gpt2", "GPT-2, beam 1", Kind::Beam(1).alone()),
            ("gpt2-beam-4", "gpt2", "GPT-2, beam 4", Kind::Beam(4).alone()),
        ];
        rows.map(|(name, objective, label, sampler)| {
            let stage = format!("eval/{}/{name}", task.name);
            let made = self.evaluation(&Texts {
                task,
                run: &format!("train/{}/{objective}", task.name),
                student: "",
                stage: &stage,
                title: &format!("{} by {label}", task.name),
                sampler: &sampler,
            });
            (System { stage, label: label.to_owned(), steps: sampler.steps }, made)
        })
        .into()
    }

    /// ELF's samplers on the trained model of the descriptions, and condition guidance on that of the translations.
    pub fn sampler_study(&self) -> SamplerStudy {
        let sde = |gamma, scale| Kind::Sde { gamma, scale, uniform_grid: false };
        let guided = |scale, decode_at| Kind::Guided { scale, decode_at };
        let ode = |&steps: &u64| self.sampler(&format!("ode-{steps}"), Kind::Ode, steps, steps);
        let at_steps = |name: String, kind: Kind, value: f64| self.sampler(&name, kind, STEPS, value);
        let grid = |name: &str, kind| self.sampler(&format!("{name}-grid"), kind, STEPS, name);
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

    /// A sampler of the descriptions, and the value that tells it from its neighbours.
    fn sampler(&self, name: &str, kind: Kind, steps: u64, value: impl ToString) -> Studied {
        let value = value.to_string();
        let compared = [(PAPER_SDE, "elf"), (GUIDED, "elf-guided")];
        let same = compared.iter().find(|(same, _)| *same == kind && self.scale.steps.contains(&steps));
        if let Some((_, name)) = same {
            return Studied { value, stage: format!("eval/descriptions/{name}-{steps}"), steps, made: None };
        }
        let stage = format!("eval/samplers/{name}");
        let made = self.evaluation(&Texts {
            task: &TASKS[0],
            run: "train/descriptions/elf",
            student: "",
            stage: &stage,
            title: &format!("descriptions by ELF: {name}, {steps} steps"),
            sampler: &kind.in_steps(steps),
        });
        Studied { value, stage, steps, made: Some(made) }
    }

    /// Translations with a condition guidance scale.
    fn condition_guidance(&self, scale: f64) -> Studied {
        let (task, value, kind) = (&TASKS[1], scale.to_string(), Kind::Conditional { scale });
        if kind == CONDITIONAL {
            return Studied { value, stage: format!("eval/{}/elf", task.name), steps: STEPS, made: None };
        }
        let stage = format!("eval/condition-guidance/{scale}");
        // Each takes minutes, and what is looked for is larger than what seeds differ by.
        let once = Scale { seeds: 1, ..self.scale.clone() };
        let made = Mini { work: self.work, scale: &once }.evaluation(&Texts {
            task,
            run: "train/de-en/elf",
            student: "",
            stage: &stage,
            title: &format!("translations with condition guidance {scale}"),
            sampler: &kind.in_steps(STEPS),
        });
        Studied { value, stage, steps: STEPS, made: Some(made) }
    }

    /// The encoders that ablations take in place of the pre-trained one.
    fn other_encoders(&self) -> Vec<Stage> {
        let used = |name: &str| self.scale.ablations.iter().any(|ablation| ablation.encoder == name);
        let from = self.encoder(PRETRAINED);
        let tokenizer = self.tokenizer();
        let kinds = [
            (
                "encoder/token-table",
                "the token table of the pre-trained encoder",
                format!("encoder table --from {from}"),
            ),
            (
                "encoder/random",
                "an encoder with random weights",
                format!("encoder init --tokenizer {tokenizer} {ENCODER_SIZE} --seed 0"),
            ),
        ];
        let made = |(name, title, call): (&str, &str, String)| {
            let encoder = self.encoder(name);
            let stage = Stage::new(name, title)
                .after("data/descriptions")
                .call_once(format!("{call} --output {encoder}"), "t5")
                .call(format!("encoder stats {encoder} --data {}/train", self.at("data/descriptions")))
                .making("t5/latent_stats.json")
                .costing(Cost { seconds: 10.0, disk: 2e7, ..Cost::default() });
            self.needing_encoder(self.needing_tokenizer(stage), PRETRAINED)
        };
        kinds.into_iter().filter(|(name, ..)| used(name)).map(made).collect()
    }

    /// Training and evaluation of one ablation.
    fn ablation(&self, ablation: &Ablation) -> [Stage; 2] {
        let task = &TASKS[0];
        let config = "configs/mini-descriptions.yml";
        let (run, eval) = (format!("train/ablations/{}", ablation.name), ablation_stage(ablation));
        // Short trainings: averages over the whole of one would hold too much of its start.
        let settings = format!(
            "encoder_model_name={} warmup_steps=20 ema_decay1=0.98 {}",
            self.encoder(ablation.encoder),
            ablation.settings
        );
        let training = Stage::new(&run, format!("ablation: {} {}", ablation.group, ablation.label))
            .after("data/descriptions")
            .reading(config)
            .call(self.train_call(task, config, &run, self.scale.ablation_epochs, &settings))
            .making("checkpoints")
            .costing(Self::positions(task, self.scale.ablation_epochs, 5.0));
        let evaluation = self.evaluation(&Texts {
            task,
            run: &run,
            student: "",
            stage: &eval,
            title: &format!("texts of the ablation {}", ablation.name),
            sampler: &PAPER_SDE.in_steps(STEPS),
        });
        [self.needing_encoder(training, ablation.encoder), evaluation]
    }

    /// Students of the model of descriptions, and their teacher at the same steps.
    fn distillation(&self) -> Vec<Stage> {
        let run = "train/distilled";
        let settings = as_flags(self.scale.distillation_settings);
        let rounds = Stage::new(run, "students of 16, 8, 4, 2 and 1 steps")
            .after("train/descriptions/elf")
            .call(format!(
                "distill configs/mini-distill.yml --teacher {} -o epochs={}{settings} --output {}",
                self.at("train/descriptions/elf"),
                self.scale.distillation_epochs,
                self.at(run)
            ))
            .reading("configs/mini-distill.yml")
            .making(format!("{}/checkpoints", STUDENTS[4].0))
            // A round takes about 0.8 K + 3.4 passes a row, K being 4 to 64.
            .costing(Self::positions(&TASKS[0], self.scale.distillation_epochs, 116.0));
        let needs = self.needing_encoder(rounds, PRETRAINED);
        let evaluations = self.students().into_iter().map(|(_, _, stage)| stage);
        std::iter::once(needs).chain(evaluations).collect()
    }

    /// For each student: its steps, whether the stage is its own or the teacher's at these steps, and the stage.
    pub fn students(&self) -> Vec<(u64, bool, Stage)> {
        let mut stages = Vec::new();
        for (folder, steps) in STUDENTS {
            let student = format!("/{folder}");
            let kinds = [
                (true, "train/distilled", "student", student.as_str()),
                (false, "train/descriptions/elf", "teacher", ""),
            ];
            for (own, run, name, student) in kinds {
                let texts = Texts {
                    task: &TASKS[0],
                    run,
                    student,
                    stage: &format!("eval/distilled/{name}-{steps}"),
                    title: &format!("descriptions by the {name} in {steps} steps"),
                    sampler: &FEW_STEPS.in_steps(steps),
                };
                stages.push((steps, own, self.evaluation(&texts)));
            }
        }
        stages
    }
}

/// Settings, each as `elf` takes it: ` -o key=value`.
fn as_flags(settings: &str) -> String {
    settings.split_whitespace().map(|setting| format!(" -o {setting}")).collect()
}

/// What is looked at in samplers, one setting after another.
pub struct SamplerStudy {
    /// The ODE at different numbers of steps.
    pub ode: Vec<Studied>,
    /// The SDE at different gammas.
    pub gammas: Vec<Studied>,
    /// Self-conditioning guidance scales.
    pub scales: Vec<Studied>,
    /// Autoguidance scales.
    pub guide_scales: Vec<Studied>,
    /// When the text is read.
    pub decode_times: Vec<Studied>,
    /// Where the steps lie.
    pub grids: Vec<Studied>,
    /// Condition guidance scales, of translations.
    pub condition_guidance: Vec<Studied>,
}

impl SamplerStudy {
    /// The stages that no comparison has already.
    fn stages(self) -> impl Iterator<Item = Stage> {
        self.all().into_iter().filter_map(|studied| studied.made)
    }

    /// All settings.
    pub fn all(self) -> Vec<Studied> {
        let Self { ode, gammas, scales, guide_scales, decode_times, grids, condition_guidance } = self;
        [ode, gammas, scales, guide_scales, decode_times, grids, condition_guidance].into_iter().flatten().collect()
    }
}

/// One setting of a sampler.
pub struct Studied {
    /// Its value, for a reader.
    pub value: String,
    /// The stage that holds its evaluation.
    pub stage: String,
    /// Its steps.
    pub steps: u64,
    /// The stage itself, unless a comparison is made with this very setting.
    made: Option<Stage>,
}

/// Texts to be generated and evaluated.
struct Texts<'a> {
    task: &'a Task,
    /// The stage that trained the model.
    run: &'a str,
    /// What follows its folder in the model's path, if it holds several.
    student: &'a str,
    /// The stage to be made.
    stage: &'a str,
    title: &'a str,
    /// How they are drawn.
    sampler: &'a Sampler,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::reproduce::mini_settings::{FULL, QUICK};
    use crate::reproduce::stage::hashes;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    #[test]
    fn stages_stand_in_order_and_read_what_is_in_the_repository() {
        for scale in [&FULL, &QUICK] {
            let stages = Mini { work: "w", scale }.stages();
            let hashes = hashes(&stages, root()).unwrap();
            let different: BTreeSet<&String> = hashes.values().collect();
            assert_eq!(different.len(), stages.len(), "two stages do the same");
        }
    }

    /// A path below the work folder that a call names belongs to the stage itself or to one that it needs: otherwise a change
    /// there would not be noticed.
    #[test]
    fn what_a_stage_reads_of_another_it_needs() {
        for scale in [&FULL, &QUICK] {
            let stages = Mini { work: "w", scale }.stages();
            let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
            for stage in &stages {
                for word in stage.calls.iter().flat_map(|call| &call.words) {
                    let path = word.rsplit('=').next().and_then(|path| path.strip_prefix("w/"));
                    let Some(path) = path else { continue };
                    let owner = names
                        .iter()
                        .filter(|name| path.strip_prefix(**name).is_some_and(|r| r.is_empty() || r.starts_with('/')))
                        .max_by_key(|name| name.len());
                    let owner = owner.unwrap_or_else(|| panic!("{path} belongs to no stage"));
                    assert!(
                        *owner == stage.name || stage.needs.iter().any(|need| need == owner),
                        "{} names {path} of {owner} and does not need it",
                        stage.name
                    );
                }
            }
        }
    }

    #[test]
    fn the_quick_one_has_every_kind_of_stage() {
        let kinds = |scale| -> BTreeSet<String> {
            let stages = Mini { work: "w", scale }.stages();
            stages.iter().filter_map(|stage| stage.name.split('/').next().map(str::to_owned)).collect()
        };
        let (full, quick) = (kinds(&FULL), kinds(&QUICK));
        assert!(quick.is_subset(&full));
        assert_eq!(full.difference(&quick).collect::<Vec<_>>(), ["corpus"]);
    }

    #[test]
    fn no_folder_of_a_stage_lies_in_that_of_another() {
        let stages = Mini { work: "w", scale: &FULL }.stages();
        for a in &stages {
            for b in &stages {
                assert!(!b.name.starts_with(&format!("{}/", a.name)), "{} lies in {}", b.name, a.name);
            }
        }
    }
}
