//! Settings of the preset `mini`: the scale, the tasks, the models that are compared, and the ablations.

/// Settings of a training: keys with their values.
pub type Settings = &'static [(&'static str, &'static str)];

/// The amount of training and sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Steps of encoder pre-training; none takes the encoder of the repository.
    pub encoder_steps: Option<u64>,
    /// Passes over the data of each model except those that write token by token, in the order of [`TASKS`].
    pub epochs: [f64; 3],
    /// Passes over the data of each model that writes token by token, in the order of [`TASKS`].
    pub block_epochs: [f64; 3],
    /// Passes over the descriptions of each ablation.
    pub ablation_epochs: f64,
    /// Passes over the descriptions of the judge.
    pub judge_epochs: f64,
    /// Passes over the descriptions of each round of distillation.
    pub distillation_epochs: f64,
    /// Seeds of sampling.
    pub seeds: u64,
    /// Unconditional texts per seed.
    pub texts: u64,
    /// Test rows of each conditional task; none takes all.
    pub test_rows: Option<u64>,
    /// Numbers of steps at which systems are compared.
    pub steps: &'static [u64],
    /// Ablations that need a training of their own.
    pub ablations: &'static [Ablation],
    /// Whether guidance scales, gammas and grids are compared.
    pub sampler_study: bool,
    /// Settings of all trainings, for `elf train`.
    pub settings: Settings,
    /// Settings of distillation, for `elf distill`.
    pub distillation_settings: Settings,
}

/// Enough training for meaningful figures: hours on two cores, minutes on a GPU.
pub const FULL: Scale = Scale {
    encoder_steps: Some(1500),
    epochs: [16.0, 8.0, 6.0],
    block_epochs: [4.0, 6.0, 6.0],
    ablation_epochs: 0.75,
    judge_epochs: 8.0,
    distillation_epochs: 0.15,
    seeds: 3,
    texts: 128,
    test_rows: None,
    steps: &[4, 8, 16, 32, 64],
    ablations: ABLATIONS,
    sampler_study: true,
    settings: &[],
    distillation_settings: &[],
};

/// Every kind of stage within a quarter of an hour on two cores, even without bf16. Its figures show that everything runs, not
/// what ELF can do.
pub const QUICK: Scale = Scale {
    encoder_steps: None,
    epochs: [0.05, 0.04, 0.02],
    block_epochs: [0.02, 0.012, 0.01],
    ablation_epochs: 0.013,
    judge_epochs: 0.06,
    distillation_epochs: 0.003,
    seeds: 2,
    texts: 32,
    test_rows: Some(16),
    steps: &[4, 32],
    ablations: ABLATIONS,
    sampler_study: false,
    settings: &[("warmup_steps", "4"), ("ema_decay1", "0.8"), ("eval_rows", "64")],
    distillation_settings: &[("batch_size", "16"), ("eval_rows", "64")],
};

/// A task of the embedded data.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Its name in stages and files.
    pub name: &'static str,
    /// For headings.
    pub title: &'static str,
    /// The corpus: `data/<corpus>-<split>.parquet`.
    pub corpus: &'static str,
    /// The column to generate from, if any.
    pub condition: Option<&'static str>,
    /// The column to generate.
    pub target: &'static str,
    /// Further words for `elf data select`.
    pub select: &'static [&'static str],
    /// Further words for the training split alone.
    pub select_to_train: &'static [&'static str],
    /// Rows to train on, for estimates.
    pub rows: f64,
    /// Positions of a row.
    pub positions: f64,
}

/// The three tasks.
pub const TASKS: [Task; 3] = [
    Task {
        name: "descriptions",
        title: "Unconditional text: first sentences of package descriptions",
        corpus: "descriptions",
        condition: None,
        target: "description",
        select: &["--first-sentence", "description", "--unique", "description", "--max-tokens", "description=31"],
        select_to_train: &["--near-duplicates", "description=3"],
        rows: 23_820.0,
        positions: 32.0,
    },
    Task {
        name: "de-en",
        title: "Translation: German to English",
        corpus: "de-en",
        condition: Some("de"),
        target: "en",
        select: &["--unique", "de", "--unique", "en", "--max-tokens", "de=31", "--max-tokens", "en=31"],
        select_to_train: &[],
        rows: 21_711.0,
        positions: 64.0,
    },
    Task {
        name: "summaries",
        title: "One-sentence summaries of package descriptions",
        corpus: "descriptions",
        condition: Some("description"),
        target: "synopsis",
        select: &["--unique", "description", "--unique", "synopsis", "--max-tokens", "synopsis=23", "--every-nth", "2"],
        select_to_train: &[],
        rows: 28_128.0,
        positions: 64.0,
    },
];

/// One change to the recipe of the descriptions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ablation {
    /// Its name in stages.
    pub name: &'static str,
    /// The heading that it is listed under.
    pub group: &'static str,
    /// Its name in the report.
    pub label: &'static str,
    /// Settings for `elf train`.
    pub settings: Settings,
    /// The encoder that it uses.
    pub encoder: Encoder,
}

/// A frozen encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// Pre-trained here, or the one of the repository.
    Pretrained,
    /// The token table of the pre-trained one alone.
    TokenTable,
    /// Random weights.
    Random,
}

/// The recipe itself at the ablations' budget, and one change each.
pub const ABLATIONS: &[Ablation] = &[
    Ablation { name: "recipe", group: "", label: "the recipe", settings: &[], encoder: Encoder::Pretrained },
    Ablation {
        name: "token-table",
        group: "encoder",
        label: "token table of the pre-trained encoder",
        settings: &[],
        encoder: Encoder::TokenTable,
    },
    Ablation { name: "random", group: "encoder", label: "random weights", settings: &[], encoder: Encoder::Random },
    Ablation {
        name: "learned",
        group: "encoder",
        label: "none: latents learned with the network",
        settings: &[("learned_latents", "true")],
        encoder: Encoder::TokenTable,
    },
    Ablation {
        name: "v-prediction",
        group: "prediction",
        label: "v",
        settings: &[("prediction", "v")],
        encoder: Encoder::Pretrained,
    },
    Ablation {
        name: "decode-10",
        group: "decode share",
        label: "10%",
        settings: &[("decoder_prob", "0.1")],
        encoder: Encoder::Pretrained,
    },
    Ablation {
        name: "decode-50",
        group: "decode share",
        label: "50%",
        settings: &[("decoder_prob", "0.5")],
        encoder: Encoder::Pretrained,
    },
    Ablation {
        name: "bottleneck-32",
        group: "bottleneck",
        label: "32",
        settings: &[("bottleneck_dim", "32")],
        encoder: Encoder::Pretrained,
    },
    Ablation {
        name: "bottleneck-256",
        group: "bottleneck",
        label: "256",
        settings: &[("bottleneck_dim", "256")],
        encoder: Encoder::Pretrained,
    },
    Ablation {
        name: "adamw",
        group: "optimiser",
        label: "AdamW",
        settings: &[("optimizer", "adamw"), ("lr", "0.001")],
        encoder: Encoder::Pretrained,
    },
];

/// The first of [`ABLATIONS`], the recipe after few passes, which guides the fully trained model.
pub const GUIDE: &Ablation = &ABLATIONS[0];

/// A kind of model that `elf train` trains on a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// ELF that writes a whole text at once.
    Elf,
    /// ELF that writes token by token.
    Blocks,
    /// Masked diffusion.
    Mdlm,
    /// The autoregressive baseline.
    Gpt2,
}

impl Model {
    /// Its name in stages; for the baselines also the value of `objective`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Elf => "elf",
            Self::Blocks => "blocks",
            Self::Mdlm => "mdlm",
            Self::Gpt2 => "gpt2",
        }
    }

    /// Its name in the report.
    pub fn label(self) -> &'static str {
        match self {
            Self::Elf => "ELF",
            Self::Blocks => "ELF, token by token",
            Self::Mdlm => "MDLM",
            Self::Gpt2 => "GPT-2",
        }
    }
}

/// The models that get the same number of passes over the data.
pub const COMPARED: [Model; 3] = [Model::Elf, Model::Mdlm, Model::Gpt2];

/// A system of the report: a model with its sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A model with its usual sampler.
    Plain(Model),
    /// ELF guided by [`GUIDE`].
    Guided,
    /// GPT-2 with beam search of this width.
    Beam(u64),
}

impl Writer {
    /// The model that it samples.
    pub fn model(self) -> Model {
        match self {
            Self::Plain(model) => model,
            Self::Guided => Model::Elf,
            Self::Beam(_) => Model::Gpt2,
        }
    }

    /// Its name in stages.
    pub fn name(self) -> String {
        match self {
            Self::Plain(Model::Blocks) => "elf-blocks".to_owned(),
            Self::Plain(model) => model.name().to_owned(),
            Self::Guided => "elf-guided".to_owned(),
            Self::Beam(width) => format!("gpt2-beam-{width}"),
        }
    }

    /// Its name in the report.
    pub fn label(self) -> String {
        match self {
            Self::Plain(model) => model.label().to_owned(),
            Self::Guided => "ELF, guided".to_owned(),
            Self::Beam(width) => format!("GPT-2, beam {width}"),
        }
    }
}

/// The encoder of the repository.
pub const SHIPPED_ENCODER: &str = "models/mini-encoder";

/// Autoguidance scale of guided texts.
pub const GUIDE_SCALE: f64 = 3.5;
/// The time at which they are decoded.
pub const DECODED_AT: f64 = 0.5;

/// Steps of each block of models that write token by token.
pub const BLOCK_STEPS: u64 = 8;

/// The time at which a block is decoded whose tokens are drawn from the network's distribution.
pub const DRAWN_AT: f64 = 0.5;
/// The temperature of that distribution.
pub const DRAWN_TEMPERATURE: f64 = 0.6;
/// The time at which a block is decoded whose likeliest tokens are taken.
pub const LIKELIEST_AT: f64 = 0.1;

/// Autoguidance scales of the sampler study.
pub const GUIDE_SCALES: [f64; 4] = [1.5, 2.5, 3.5, 5.0];
/// Times of decoding of the sampler study.
pub const DECODE_TIMES: [f64; 4] = [0.35, 0.5, 0.7, 1.0];

/// The number of steps of every stage that does not compare numbers of steps.
pub const STEPS: u64 = 32;

/// Gammas of the sampler study.
pub const GAMMAS: [f64; 5] = [0.5, 1.0, 1.5, 2.0, 3.0];
/// Self-conditioning guidance scales of the sampler study.
pub const GUIDANCE: [f64; 4] = [1.0, 2.0, 3.0, 4.0];
/// Condition guidance scales of the sampler study.
pub const CONDITION_GUIDANCE: [f64; 4] = [1.0, 1.5, 2.0, 3.0];

/// The rounds of distillation: folder of the student, and its steps.
pub const STUDENTS: [(&str, u64); 5] =
    [("round1_16step", 16), ("round2_8step", 8), ("round3_4step", 4), ("round4_2step", 2), ("round5_1step", 1)];

/// Weights of blocks and heads of the networks of `configs/mini-*.yml`, each used once for a position; for estimates.
pub const WEIGHTS: f64 = 5.5e6;

/// The size of encoders.
pub const ENCODER_SIZE: [(&str, &str); 6] = [
    ("--d-model", "256"),
    ("--d-kv", "64"),
    ("--num-heads", "4"),
    ("--d-ff", "512"),
    ("--num-layers", "4"),
    ("--feed-forward", "gated-gelu"),
];

/// The recipe of the encoder's pre-training.
pub const ENCODER_RECIPE: [(&str, &str); 4] =
    [("--decoder-layers", "2"), ("--lr", "0.012"), ("--embedding-lr", "0.1"), ("--seed", "0")];
