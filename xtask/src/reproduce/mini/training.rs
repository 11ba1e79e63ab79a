//! Stages that prepare data and train: encoders, the models that are compared, ablations and students.

use std::ffi::OsString;
use std::path::Path;

use super::settings::{
    Ablation, COMPARED, ENCODER_RECIPE, ENCODER_SIZE, Encoder, Model, STUDENTS, Settings, TASKS, Task, WEIGHTS,
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
            .flag("--output", self.tokenizer().join("tokenizer.json"));
        let tokenizer = Stage::new(names::tokenizer(), "a tokenizer for English and German descriptions")
            .call(call)
            .making("tokenizer.json")
            .costing(Cost { seconds: 10.0, disk: 1e6, ..Cost::default() });
        let call = corpus(Call::new(["encoder", "train"]), "--text", "train");
        let call = corpus(call, "--validation", "validation")
            .flag("--tokenizer", self.tokenizer())
            .flag("--steps", steps.to_string())
            .flags(&ENCODER_SIZE)
            .flags(&ENCODER_RECIPE)
            .flag("--output", self.encoder(Encoder::Pretrained))
            .leaving("t5");
        let encoder = Stage::new(names::encoder(Encoder::Pretrained), "an encoder by span corruption")
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
        let (at, tokenizer) = (self.at(&name), self.tokenizer());
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
                call = call.words(task.select_to_train.iter().copied());
            } else {
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
        self.needing_tokenizer(stage).costing(Cost { seconds: 10.0, disk: 2e7, ..Cost::default() })
    }

    /// All models that are compared: those with the same number of passes over the data, and ELF that writes token by token.
    pub(super) fn trainings(&self) -> Vec<Stage> {
        let compared = TASKS.iter().zip(self.scale.epochs);
        let compared = compared.flat_map(|(task, epochs)| COMPARED.map(|model| self.training(task, model, epochs)));
        let blocks = TASKS.iter().zip(self.scale.block_epochs);
        compared.chain(blocks.map(|(task, epochs)| self.training(task, Model::Blocks, epochs))).collect()
    }

    fn training(&self, task: &Task, model: Model, epochs: f64) -> Stage {
        let name = names::training(task, model);
        let suffix = if model == Model::Blocks { "-blocks" } else { "" };
        let config = format!("configs/mini-{}{suffix}.yml", task.name);
        let (call, passes) = match model {
            // 3 for the gradient, 1.4 for estimates without one, 0.6 for the encoder.
            Model::Elf => (Call::default().setting("encoder_model_name", self.encoder(Encoder::Pretrained)), 5.0),
            // Every row is there twice, but without its padding.
            Model::Blocks => (Call::default().setting("encoder_model_name", self.encoder(Encoder::Pretrained)), 4.0),
            baseline => {
                let objective = Call::default().setting("objective", baseline.name());
                (objective.setting("tokenizer_name", self.tokenizer()), 3.0)
            }
        };
        let separator = if model == Model::Blocks { "," } else { "" };
        let stage = Stage::new(name.clone(), format!("{}{separator} on {}", model.label(), task.name))
            .after(names::data(task))
            .reading(&config)
            .call(self.train_call(task, &config, epochs, call).flag("--output", self.at(&name)))
            .making("plan.json")
            .making("checkpoints")
            .costing(Self::cost(task, epochs, passes));
        match model {
            Model::Elf | Model::Blocks => self.needing_encoder(stage, Encoder::Pretrained),
            Model::Mdlm | Model::Gpt2 => self.needing_tokenizer(stage),
        }
    }

    /// The GPT-2 that judges perplexity: larger and longer trained than the baseline, and used for nothing else.
    pub(super) fn judge(&self) -> Stage {
        let (task, name, config) = (&TASKS[0], names::judge(), "configs/mini-judge.yml");
        let epochs = self.scale.judge_epochs;
        let settings = Call::default().setting("tokenizer_name", self.tokenizer());
        let stage = Stage::new(name.clone(), "the GPT-2 that judges perplexity")
            .after(names::data(task))
            .reading(config)
            .call(self.train_call(task, config, epochs, settings).flag("--output", self.at(&name)))
            .making("checkpoints")
            .costing(Self::cost(task, epochs, 6.0));
        self.needing_tokenizer(stage)
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
    pub(super) fn cost(task: &Task, epochs: f64, passes: f64) -> Cost {
        let positions = task.rows * task.positions * epochs;
        Cost { flops: positions * passes * 2.0 * WEIGHTS, seconds: 6.0, disk: 1.5e8, ..Cost::default() }
    }

    /// The encoders that ablations take in place of the pre-trained one.
    pub(super) fn other_encoders(&self) -> Vec<Stage> {
        let used = |encoder: Encoder| self.scale.ablations.iter().any(|ablation| ablation.encoder == encoder);
        let kinds = [
            (
                Encoder::TokenTable,
                "the token table of the pre-trained encoder",
                Call::new(["encoder", "table"]).flag("--from", self.encoder(Encoder::Pretrained)),
            ),
            (
                Encoder::Random,
                "an encoder with random weights",
                Call::new(["encoder", "init"])
                    .flag("--tokenizer", self.tokenizer())
                    .flags(&ENCODER_SIZE)
                    .flag("--seed", "0"),
            ),
        ];
        let made = |(kind, title, call): (Encoder, &str, Call)| {
            let (data, encoder) = (names::data(&TASKS[0]), self.encoder(kind));
            let statistics =
                Call::new(["encoder", "stats"]).word(&encoder).flag("--data", self.at(&data).join("train"));
            let stage = Stage::new(names::encoder(kind), title)
                .after(data)
                .call(call.flag("--output", encoder).leaving("t5"))
                .call(statistics)
                .making("t5/latent_stats.json")
                .costing(Cost { seconds: 10.0, disk: 2e7, ..Cost::default() });
            self.needing_encoder(self.needing_tokenizer(stage), Encoder::Pretrained)
        };
        kinds.into_iter().filter(|(kind, ..)| used(*kind)).map(made).collect()
    }

    /// Training and evaluation of one ablation.
    pub(super) fn ablation(&self, ablation: &Ablation) -> [Stage; 2] {
        // Short trainings: averages over all steps would hold too much of the first ones.
        const SHORT: Settings = &[("warmup_steps", "20"), ("ema_decay1", "0.98")];
        let (task, config) = (&TASKS[0], "configs/mini-descriptions.yml");
        let (name, epochs) = (names::ablation(ablation), self.scale.ablation_epochs);
        let settings = Call::default()
            .setting("encoder_model_name", self.encoder(ablation.encoder))
            .settings(SHORT)
            .settings(ablation.settings);
        let training = Stage::new(name.clone(), format!("ablation: {} {}", ablation.group, ablation.label))
            .after(names::data(task))
            .reading(config)
            .call(self.train_call(task, config, epochs, settings).flag("--output", self.at(&name)))
            .making("checkpoints")
            .costing(Self::cost(task, epochs, 5.0));
        [self.needing_encoder(training, ablation.encoder), self.ablation_texts(ablation)]
    }

    /// Students of the model of descriptions.
    pub(super) fn distillation(&self) -> Stage {
        let (task, config) = (&TASKS[0], "configs/mini-distill.yml");
        let (name, teacher): (StageName, StageName) = (names::distillation(), names::training(task, Model::Elf));
        let epochs = self.scale.distillation_epochs;
        let call = Call::new(["distill", config])
            .flag("--teacher", self.at(&teacher))
            .setting("epochs", epochs.to_string())
            .settings(self.scale.distillation_settings)
            .flag("--output", self.at(&name));
        let rounds = Stage::new(name, "students of 16, 8, 4, 2 and 1 steps")
            .after(teacher)
            .call(call)
            .reading(config)
            .making(Path::new(STUDENTS[4].0).join("checkpoints"))
            // A round takes about 0.8 K + 3.4 passes for each row, K being 4 to 64.
            .costing(Self::cost(task, epochs, 116.0));
        self.needing_encoder(rounds, Encoder::Pretrained)
    }
}
