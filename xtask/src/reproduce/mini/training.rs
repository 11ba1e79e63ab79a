//! Stages that train: the models that are compared, ablations and the student of few steps.

use super::settings::{
    ABLATIONS, Ablation, COMPARED, ENCODER_SIZE, ENDING_SHARE, Encoder, Model, Settings, TASKS, Task, WEIGHTS,
};
use super::{Mini, names};
use crate::reproduce::stage::{Call, Cost, Stage, StageName};

/// A training with `elf train`.
pub(super) struct Training<'a> {
    pub(super) task: &'a Task,
    pub(super) name: StageName,
    pub(super) title: String,
    pub(super) config: String,
    /// The stage that made the training data.
    pub(super) data: StageName,
    /// The folder of token shards in that of this stage.
    pub(super) shards: String,
    pub(super) epochs: f64,
    /// Passes through the network for each position of the data.
    pub(super) passes: f64,
    /// Settings, as words for `elf train`; those of the scale come after them.
    pub(super) settings: Call,
    /// Settings of the last [`ENDING_SHARE`] of the passes, which a second call goes on with.
    pub(super) ending: Settings,
}

impl<'a> Training<'a> {
    /// A baseline's training on the texts of a task, of no passes and without settings as yet.
    pub(super) fn on(task: &'a Task, name: StageName) -> Self {
        Self {
            task,
            title: String::new(),
            config: task.config.to_owned(),
            data: names::data(task),
            shards: "train".to_owned(),
            epochs: 0.0,
            passes: 3.0,
            settings: Call::default(),
            ending: &[],
            name,
        }
    }

    /// That of a model that is compared.
    fn of(task: &'a Task, model: Model) -> Self {
        Self {
            title: format!("{} on {}", model.label(), task.name),
            data: names::training_data(task, model),
            ..Self::on(task, names::training(task, model))
        }
    }

    /// The stage.
    pub(super) fn stage(self, mini: &Mini) -> Stage {
        let Self { task, name, title, config, data, shards, epochs, passes, settings, ending } = self;
        let call = |epochs: f64, ending: Settings| {
            Call::new(["train", &config])
                .setting("data_path", mini.at(&data).join(&shards))
                .setting("eval_data_path", mini.at(&names::data(task)).join("validation"))
                .setting("epochs", epochs.to_string())
                .words(settings.words.clone())
                .settings(ending)
                .settings(mini.scale.settings)
                .flag("--output", mini.at(&name))
        };
        let mut stage = Stage::new(name.clone(), title).after(names::data(task)).after(data.clone()).reading(&config);
        stage.reads.extend(task.encoder_files());
        if !ending.is_empty() {
            stage = stage.call(call(epochs * (1.0 - ENDING_SHARE), &[]));
        }
        stage
            .call(call(epochs, ending))
            .making("plan.json")
            .making("checkpoints")
            .costing(mini.cost(task, epochs, passes))
    }
}

impl Mini<'_> {
    /// All models that are compared, and before them what some of them begin as or learn from.
    pub(super) fn trainings(&self) -> Vec<Stage> {
        let blocks = TASKS.iter().filter(|task| task.blocks).map(|task| self.blocks(task));
        let translations =
            TASKS.iter().filter(|task| task.learns_translations).flat_map(|task| self.translations(task));
        let compared = TASKS.iter().flat_map(|task| {
            COMPARED.map(|model| match model {
                Model::Elf => self.elf(task),
                Model::Blocks => self.blocks(task),
                Model::Mdlm | Model::Gpt2 => self.baseline(task, model).stage(self),
            })
        });
        blocks.chain(translations).chain(compared).collect()
    }

    /// Passes over the data of a task.
    pub(super) fn epochs(&self, task: &Task) -> f64 {
        self.scale.epochs.unwrap_or(task.epochs)
    }

    /// ELF that writes a whole text at once.
    fn elf(&self, task: &Task) -> Stage {
        let begins = task.from_blocks.then(|| names::training(task, Model::Blocks));
        let mut settings = Call::default().setting("encoder_model_name", task.encoder);
        if let Some(run) = &begins {
            settings = settings.setting("init_from", self.at(run));
        }
        let training = Training {
            epochs: self.epochs(task),
            // 3 for the gradient, 1.4 for estimates without one, 0.6 for the encoder.
            passes: 5.0,
            settings,
            ending: task.ending,
            ..Training::of(task, Model::Elf)
        };
        let mut stage = training.stage(self);
        stage.needs.extend(begins);
        self.with_words(stage, task)
    }

    /// With the list of whole words that texts from nothing are read by.
    pub(super) fn with_words(&self, stage: Stage, task: &Task) -> Stage {
        if task.condition.is_some() {
            return stage;
        }
        let call = Call::new(["data", "words"])
            .flag("--input", self.at(&names::data(task)).join("train.jsonl"))
            .flag("--column", "text")
            .flag("--tokenizer", task.encoder)
            .flag("--output", self.at(&stage.name).join("words.txt"));
        stage.call(call).making("words.txt")
    }

    /// Masked diffusion or GPT-2.
    pub(super) fn baseline<'a>(&self, task: &'a Task, model: Model) -> Training<'a> {
        let settings = Call::default()
            .setting("objective", model.name())
            .setting("tokenizer_name", task.encoder)
            .settings(task.baselines);
        let epochs = self.epochs(task);
        let (epochs, settings) = match model {
            Model::Gpt2 => {
                // It learns fast and overfits: a higher rate that falls, and its best evaluation.
                const OWN_RATE: Settings = &[
                    ("batch_size", "64"),
                    ("lr", "0.01"),
                    ("lr_schedule", "cosine"),
                    ("ema_decay1", "0.998"),
                    ("early_stopping", "4"),
                    ("eval_freq", "0.5"),
                ];
                (epochs.min(self.scale.gpt2_epochs), settings.settings(OWN_RATE))
            }
            _ => (epochs, settings),
        };
        Training { epochs, settings, ..Training::of(task, model) }
    }

    /// ELF that writes token by token.
    fn blocks(&self, task: &Task) -> Stage {
        let model = Model::Blocks;
        let training = Training {
            title: format!("{}, on {}", model.label(), task.name),
            config: format!("configs/mini-{}-blocks.yml", task.name),
            epochs: self.scale.block_epochs,
            // Every row is there twice, but without its padding.
            passes: 4.0,
            settings: Call::default().setting("encoder_model_name", task.encoder),
            ..Training::of(task, model)
        };
        training.stage(self)
    }

    /// The GPT-2 that judges perplexity: used for nothing else.
    pub(super) fn judge(&self) -> Stage {
        let task = &TASKS[0];
        let training = Training {
            title: "the GPT-2 that judges perplexity".to_owned(),
            config: "configs/definitions-judge.yml".to_owned(),
            epochs: self.scale.judge_epochs,
            settings: Call::default().setting("tokenizer_name", task.encoder),
            ..Training::on(task, names::judge())
        };
        training.stage(self)
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
                    Call::new(["encoder", "cut"]).word(task.encoder).flag("--layers", layers.to_string())
                }
                Encoder::Random => Call::new(["encoder", "init"])
                    .flag("--tokenizer", task.encoder)
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
            Some(task.encoder_files().into_iter().fold(stage, Stage::reading))
        };
        ABLATIONS.iter().filter_map(made).collect()
    }

    /// Training and evaluation of one ablation.
    pub(super) fn ablation(&self, ablation: &Ablation) -> [Stage; 2] {
        // Short trainings: averages over all steps would hold too much of the first ones.
        const SHORT: Settings =
            &[("warmup_steps", "20"), ("ema_decay1", "0.98"), ("lr_schedule", "wsd"), ("lr_decay_share", "0.3")];
        let task = &TASKS[0];
        let other = names::other_encoder(ablation.encoder);
        let encoder = other.as_ref().map_or_else(|| task.encoder.into(), |stage| self.at(stage).join("encoder"));
        let settings = Call::default().setting("encoder_model_name", encoder);
        let training = Training {
            title: format!("ablation: {} {}", ablation.group, ablation.label),
            epochs: self.scale.ablation_epochs,
            passes: 5.0,
            settings: settings.settings(SHORT).settings(ablation.settings),
            ..Training::on(task, names::ablation(ablation))
        };
        let mut stage = training.stage(self);
        stage.needs.extend(other);
        [self.with_words(stage, task), self.ablation_texts(ablation)]
    }

    /// A student of the model of definitions, for few steps.
    pub(super) fn distillation(&self) -> Stage {
        let (task, config) = (&TASKS[0], "configs/distill-definitions.yml");
        let (name, teacher) = (names::distillation(), names::training(task, Model::Elf));
        let (steps, rows) = (self.scale.distillation_steps, self.scale.distillation_rows);
        let data = self.at(&names::data(task));
        let call = Call::new(["distill", config, "--single"])
            .flag("--teacher", self.at(&teacher))
            .setting("data_path", data.join("train"))
            .setting("eval_data_path", data.join("validation"))
            .setting("encoder_model_name", task.encoder)
            .setting("max_steps", steps.to_string())
            .setting("batch_size", rows.to_string())
            .settings(self.scale.distillation_settings)
            .flag("--output", self.at(&name));
        let stage = Stage::new(name, "a student of 4 steps")
            .after(teacher)
            .after(names::data(task))
            .call(call)
            .reading(config)
            .making("checkpoints");
        // Half of a step's rows are runs of 31 steps with a guide, each then learned at four times; the others are decode rows.
        let passes = rows as f64 / 2.0 * (62.0 + 4.0 * 3.0 + 4.0);
        let flops = steps as f64 * passes * task.positions * 2.0 * WEIGHTS;
        let stage = task.encoder_files().into_iter().fold(stage, Stage::reading);
        self.with_words(stage, task).costing(Cost { flops, seconds: 6.0, disk: 1.5e8, ..Cost::default() })
    }
}
