//! Stages that prepare data and train: encoders, the models that are compared, ablations and students.

use std::ffi::OsString;
use std::path::Path;

use super::settings::{
    ABLATIONS, Ablation, COMPARED, ENCODER_RECIPE, ENCODER_SIZE, ENDING_SHARE, Encoder, Model, Settings, TASKS, Task,
    WEIGHTS,
};
use super::{Mini, names};
use crate::reproduce::stage::{Call, Cost, Stage, StageName, column_of};

/// The files and columns of the texts that tokenizer and encoder are trained on.
const CORPUS: [(&str, &str); 4] =
    [("descriptions", "description"), ("descriptions", "synopsis"), ("de-en", "de"), ("de-en", "en")];

impl Mini<'_> {
    /// A tokenizer and an encoder from the training texts.
    pub(super) fn pretraining(&self, steps: u64) -> [Stage; 2] {
        let corpus = |call: Call, flag: &str, split: &str| {
            CORPUS.iter().fold(call, |call, (corpus, column)| {
                call.flag(flag, column_of(Path::new(&format!("data/{corpus}-{split}.parquet")), column))
            })
        };
        let reading = |stage: Stage, split: &str| {
            ["descriptions", "de-en"]
                .iter()
                .fold(stage, |stage, corpus| stage.reading(format!("data/{corpus}-{split}.parquet")))
        };
        let call = corpus(Call::new(["tokenizer", "train"]), "--text", "train")
            .flag("--vocab-size", "8192")
            .flag("--output", self.at(&names::tokenizer()).join("tokenizer.json"));
        let tokenizer = Stage::new(names::tokenizer(), "a tokenizer for English and German descriptions")
            .call(call)
            .making("tokenizer.json")
            .costing(Cost { seconds: 10.0, disk: 1e6, ..Cost::default() });
        let call = corpus(Call::new(["encoder", "train"]), "--text", "train");
        let call = corpus(call, "--validation", "validation")
            .flag("--tokenizer", self.at(&names::tokenizer()))
            .flag("--steps", steps.to_string())
            .flags(&ENCODER_SIZE)
            .flags(&ENCODER_RECIPE)
            .flag("--output", self.at(&names::pretrained()).join("t5"))
            .leaving("t5");
        let encoder = Stage::new(names::pretrained(), "an encoder by span corruption")
            .after(names::tokenizer())
            .call(call)
            .making("t5/model.safetensors")
            .making("t5/latent_stats.json")
            .costing(Cost { flops: steps as f64 * 2.5e11, seconds: 10.0, disk: 1e8, ..Cost::default() });
        [reading(tokenizer, "train"), reading(reading(encoder, "train"), "validation")]
    }

    /// The texts of a task and their tokens.
    pub(super) fn data(&self, task: &Task) -> Stage {
        let name = names::data(task);
        let (at, tokenizer) = (self.at(&name), self.tokenizer(task));
        let (columns, shards) = match task.condition {
            None => (
                Call::default().flag("--column", format!("{}=text", task.target)),
                Call::default().flag("--target-column", "text").word("--eos-target"),
            ),
            Some(condition) => (
                Call::default().flag("--column", condition).flag("--column", task.target),
                Call::default()
                    .flag("--condition-column", condition)
                    .flag("--target-column", task.target)
                    .words(["--eos-condition", "--eos-target"]),
            ),
        };
        let mut stage = Stage::new(name, format!("texts and tokens of {}", task.name));
        for split in ["train", "validation", "test"] {
            let input = format!("data/{}-{split}.parquet", task.corpus);
            let texts = at.join(split).with_extension("jsonl");
            let mut call = Call::new(["data", "select"])
                .flag("--input", &input)
                .words(columns.words.clone())
                .words(task.select.iter().copied());
            if split == "train" {
                call = call.flag("--every-nth", (task.every_nth * self.scale.every_nth).to_string());
            } else {
                call = call.flag("--every-nth", task.every_nth.to_string());
                // Splits are by package family, but families share texts.
                let (column, selected) = task.condition.map_or((task.target, "text"), |name| (name, name));
                let mut without = OsString::from(format!("{column}="));
                without.push(column_of(&at.join("train.jsonl"), selected));
                call = call.flag("--without", without);
            }
            call = call.flag("--tokenizer", &tokenizer).flag("--output", &texts);
            stage = stage.reading(&input).making(format!("{split}.jsonl")).call(call);
            if split != "test" {
                let call = Call::new(["data", "prepare"])
                    .flag("--input", texts)
                    .words(shards.words.clone())
                    .flag("--tokenizer", &tokenizer)
                    .flag("--output", at.join(split));
                stage = stage.making(format!("{split}/manifest.json")).call(call);
            }
        }
        self.needing_tokenizer(stage, task).costing(Cost { seconds: 10.0, disk: 2e7, ..Cost::default() })
    }

    /// All models that are compared: those of equal size on equal data, and ELF that writes token by token.
    pub(super) fn trainings(&self) -> Vec<Stage> {
        let compared = TASKS.iter().zip(self.scale.epochs).flat_map(|(task, epochs)| {
            COMPARED.map(|model| match model {
                Model::Elf | Model::Blocks => self.elf(task, epochs),
                baseline => self.baseline(task, baseline, epochs),
            })
        });
        compared.chain(TASKS.iter().filter(|task| task.blocks).map(|task| self.blocks(task))).collect()
    }

    /// ELF that writes a whole text at once. Where its last passes have settings of their own, a second call goes on from the first.
    fn elf(&self, task: &Task, epochs: f64) -> Stage {
        let name = names::training(task, Model::Elf);
        let call = |epochs: f64, ending: Settings| {
            let settings = Call::default().setting("encoder_model_name", self.encoder(task)).settings(ending);
            self.train_call(task, task.config, epochs, settings).flag("--output", self.at(&name))
        };
        let mut stage = Stage::new(name.clone(), format!("{} on {}", Model::Elf.label(), task.name))
            .after(names::data(task))
            .reading(task.config);
        if !task.ending.is_empty() {
            stage = stage.call(call(epochs * (1.0 - ENDING_SHARE), &[]));
        }
        stage = stage.call(call(epochs, task.ending)).making("plan.json").making("checkpoints");
        if let Some(words) = self.words(task, &name) {
            stage = stage.call(words).making("words.txt");
        }
        // 3 for the gradient, 1.4 for estimates without one, 0.6 for the encoder.
        self.needing_encoder(stage, task).costing(self.cost(task, epochs, 5.0))
    }

    /// The list of whole words that texts from nothing are read by.
    fn words(&self, task: &Task, stage: &StageName) -> Option<Call> {
        task.condition.is_none().then(|| {
            Call::new(["data", "words"])
                .flag("--input", self.at(&names::data(task)).join("train.jsonl"))
                .flag("--column", "text")
                .flag("--tokenizer", self.tokenizer(task))
                .flag("--output", self.at(stage).join("words.txt"))
        })
    }

    fn baseline(&self, task: &Task, model: Model, epochs: f64) -> Stage {
        let name = names::training(task, model);
        let settings = Call::default()
            .setting("objective", model.name())
            .setting("tokenizer_name", self.tokenizer(task))
            .settings(task.baselines);
        let (epochs, settings) = match model {
            Model::Gpt2 => (epochs.min(self.scale.gpt2_epochs), settings.setting("early_stopping", "4")),
            _ => (epochs, settings),
        };
        let stage = Stage::new(name.clone(), format!("{} on {}", model.label(), task.name))
            .after(names::data(task))
            .reading(task.config)
            .call(self.train_call(task, task.config, epochs, settings).flag("--output", self.at(&name)))
            .making("plan.json")
            .making("checkpoints")
            .costing(self.cost(task, epochs, 3.0));
        self.needing_tokenizer(stage, task)
    }

    /// ELF that writes token by token.
    fn blocks(&self, task: &Task) -> Stage {
        let (name, epochs) = (names::training(task, Model::Blocks), self.scale.block_epochs);
        let config = format!("configs/mini-{}-blocks.yml", task.name);
        let settings = Call::default().setting("encoder_model_name", self.encoder(task));
        let stage = Stage::new(name.clone(), format!("{}, on {}", Model::Blocks.label(), task.name))
            .after(names::data(task))
            .reading(&config)
            .call(self.train_call(task, &config, epochs, settings).flag("--output", self.at(&name)))
            .making("plan.json")
            .making("checkpoints")
            // Every row is there twice, but without its padding.
            .costing(self.cost(task, epochs, 4.0));
        self.needing_encoder(stage, task)
    }

    /// The GPT-2 that judges perplexity: used for nothing else.
    pub(super) fn judge(&self) -> Stage {
        let (task, name, config) = (&TASKS[0], names::judge(), "configs/definitions-judge.yml");
        let epochs = self.scale.judge_epochs;
        let settings = Call::default().setting("tokenizer_name", self.tokenizer(task));
        let stage = Stage::new(name.clone(), "the GPT-2 that judges perplexity")
            .after(names::data(task))
            .reading(config)
            .call(self.train_call(task, config, epochs, settings).flag("--output", self.at(&name)))
            .making("checkpoints")
            .costing(self.cost(task, epochs, 3.0));
        self.needing_tokenizer(stage, task)
    }

    /// The call of `elf train` for a task, without its output; `settings` come before those of the scale.
    fn train_call(&self, task: &Task, config: &str, epochs: f64, settings: Call) -> Call {
        let data = self.at(&names::data(task));
        Call::new(["train", config])
            .setting("data_path", data.join("train"))
            .setting("eval_data_path", data.join("validation"))
            .setting("epochs", epochs.to_string())
            .words(settings.words)
            .settings(self.scale.settings)
    }

    /// The cost of `passes` through the network for each position of `epochs`.
    pub(super) fn cost(&self, task: &Task, epochs: f64, passes: f64) -> Cost {
        let positions = task.rows / self.scale.every_nth as f64 * task.positions * epochs;
        Cost { flops: positions * passes * 2.0 * WEIGHTS, seconds: 6.0, disk: 1.5e8, ..Cost::default() }
    }

    /// The encoders that ablations take in place of that of the definitions.
    pub(super) fn other_encoders(&self) -> Vec<Stage> {
        let task = &TASKS[0];
        let made = |ablation: &Ablation| {
            let name = names::other_encoder(ablation.encoder)?;
            let call = match ablation.encoder {
                Encoder::Own => return None,
                Encoder::Layers(layers) => {
                    Call::new(["encoder", "cut"]).word(self.encoder(task)).flag("--layers", layers.to_string())
                }
                Encoder::Random => Call::new(["encoder", "init"])
                    .flag("--tokenizer", self.tokenizer(task))
                    .flags(&ENCODER_SIZE)
                    .flag("--seed", "0"),
            };
            let encoder = self.at(&name).join("encoder");
            let statistics = Call::new(["encoder", "stats"])
                .word(&encoder)
                .flag("--data", self.at(&names::data(task)).join("train"));
            let stage = Stage::new(name, format!("an encoder for the ablation: {}", ablation.label))
                .after(names::data(task))
                .call(call.flag("--output", encoder).leaving("encoder"))
                .call(statistics)
                .making("encoder/latent_stats.json")
                .costing(Cost { seconds: 10.0, disk: 2e7, ..Cost::default() });
            Some(self.needing_encoder(self.needing_tokenizer(stage, task), task))
        };
        ABLATIONS.iter().filter_map(made).collect()
    }

    /// Training and evaluation of one ablation.
    pub(super) fn ablation(&self, ablation: &Ablation) -> [Stage; 2] {
        // Short trainings: averages over all steps would hold too much of the first ones.
        const SHORT: Settings =
            &[("warmup_steps", "20"), ("ema_decay1", "0.98"), ("lr_schedule", "wsd"), ("lr_decay_share", "0.3")];
        let task = &TASKS[0];
        let (name, epochs) = (names::ablation(ablation), self.scale.ablation_epochs);
        let other = names::other_encoder(ablation.encoder);
        let encoder = other.as_ref().map_or_else(|| self.encoder(task), |stage| self.at(stage).join("encoder"));
        let settings =
            Call::default().setting("encoder_model_name", encoder).settings(SHORT).settings(ablation.settings);
        let mut training = Stage::new(name.clone(), format!("ablation: {} {}", ablation.group, ablation.label))
            .after(names::data(task))
            .reading(task.config)
            .call(self.train_call(task, task.config, epochs, settings).flag("--output", self.at(&name)))
            .making("checkpoints")
            .costing(self.cost(task, epochs, 5.0));
        training.calls.extend(self.words(task, &name));
        training = match other {
            Some(stage) => training.after(stage),
            None => self.needing_encoder(training, task),
        };
        [training, self.ablation_texts(ablation)]
    }

    /// A student of the model of definitions, for few steps.
    pub(super) fn distillation(&self) -> Stage {
        let (task, config) = (&TASKS[0], "configs/distill-definitions.yml");
        let (name, teacher) = (names::distillation(), names::training(task, Model::Elf));
        let (data, steps) = (self.at(&names::data(task)), self.scale.distillation_steps);
        let call = Call::new(["distill", config, "--single"])
            .flag("--teacher", self.at(&teacher))
            .setting("data_path", data.join("train"))
            .setting("eval_data_path", data.join("validation"))
            .setting("encoder_model_name", self.encoder(task))
            .setting("max_steps", steps.to_string())
            .settings(self.scale.distillation_settings)
            .flag("--output", self.at(&name));
        let stage = Stage::new(name.clone(), "a student of 4 steps")
            .after(teacher)
            .after(names::data(task))
            .call(call)
            .reading(config)
            .making("checkpoints");
        let stage = self.words(task, &name).into_iter().fold(stage, Stage::call).making("words.txt");
        // Half of a step's 64 rows are runs of 31 steps with a guide, each then learned at four times.
        let passes = 32.0 * (62.0 + 4.0 * 3.0);
        let flops = steps as f64 * passes * task.positions * 2.0 * WEIGHTS;
        self.needing_encoder(stage, task).costing(Cost { flops, seconds: 6.0, disk: 1.5e8, ..Cost::default() })
    }
}
