//! What the preset `mini` consists of: how much of everything, the tasks, the ablations, the samplers.

/// How much of everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Steps of encoder pre-training; none takes the encoder that comes with the repository.
    pub encoder_steps: Option<u64>,
    /// Passes over the data of each model that is compared, in the order of [`TASKS`].
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
    /// Test rows of the conditional tasks; none takes all.
    pub test_rows: Option<u64>,
    /// Steps that samplers are compared at.
    pub steps: &'static [u64],
    /// Ablations that need a training of their own.
    pub ablations: &'static [Ablation],
    /// Whether to look at guidance scales, gammas and grids.
    pub sampler_study: bool,
    /// Settings of all trainings, for `elf train`.
    pub settings: &'static str,
    /// Settings of distillation, for `elf distill`.
    pub distillation_settings: &'static str,
}

/// Ends in a report worth reading: hours on two cores, minutes on a GPU.
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
    settings: "",
    distillation_settings: "",
};

/// Every kind of stage within a quarter of an hour on two cores, even without bf16. Its figures show that it runs, not what
/// ELF can do.
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
    settings: "warmup_steps=4 ema_decay1=0.8 eval_rows=64",
    distillation_settings: "batch_size=16 eval_rows=64",
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
    pub select: &'static str,
    /// Further ones for the training split alone.
    pub select_to_train: &'static str,
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
        select: "--first-sentence description --unique description --max-tokens description=31",
        select_to_train: "--near-duplicates description=3",
        rows: 23_820.0,
        positions: 32.0,
    },
    Task {
        name: "de-en",
        title: "Translation: German to English",
        corpus: "de-en",
        condition: Some("de"),
        target: "en",
        select: "--unique de --unique en --max-tokens de=31 --max-tokens en=31",
        select_to_train: "",
        rows: 21_711.0,
        positions: 64.0,
    },
    Task {
        name: "summaries",
        title: "One-sentence summaries of package descriptions",
        corpus: "descriptions",
        condition: Some("description"),
        target: "synopsis",
        select: "--unique description --unique synopsis --max-tokens synopsis=23 --every-nth 2",
        select_to_train: "",
        rows: 28_128.0,
        positions: 64.0,
    },
];

/// One change to the recipe of the descriptions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ablation {
    /// Its name in stages.
    pub name: &'static str,
    /// The group that it stands in.
    pub group: &'static str,
    /// What a reader calls it.
    pub label: &'static str,
    /// Settings for `elf train`, each behind `-o`.
    pub settings: &'static str,
    /// The stage of the encoder that it uses.
    pub encoder: &'static str,
}

pub const PRETRAINED: &str = "encoder/pretrained";

/// The recipe itself at the ablations' budget, and one change each.
pub const ABLATIONS: &[Ablation] = &[
    Ablation { name: "recipe", group: "", label: "the recipe", settings: "", encoder: PRETRAINED },
    Ablation {
        name: "token-table",
        group: "encoder",
        label: "token table of the pre-trained encoder",
        settings: "",
        encoder: "encoder/token-table",
    },
    Ablation { name: "random", group: "encoder", label: "random weights", settings: "", encoder: "encoder/random" },
    Ablation {
        name: "learned",
        group: "encoder",
        label: "none: latents learned with the network",
        settings: "learned_latents=true",
        encoder: "encoder/token-table",
    },
    Ablation { name: "v-prediction", group: "prediction", label: "v", settings: "prediction=v", encoder: PRETRAINED },
    Ablation {
        name: "decode-10",
        group: "decode share",
        label: "10%",
        settings: "decoder_prob=0.1",
        encoder: PRETRAINED,
    },
    Ablation {
        name: "decode-50",
        group: "decode share",
        label: "50%",
        settings: "decoder_prob=0.5",
        encoder: PRETRAINED,
    },
    Ablation {
        name: "bottleneck-32",
        group: "bottleneck",
        label: "32",
        settings: "bottleneck_dim=32",
        encoder: PRETRAINED,
    },
    Ablation {
        name: "bottleneck-256",
        group: "bottleneck",
        label: "256",
        settings: "bottleneck_dim=256",
        encoder: PRETRAINED,
    },
    Ablation {
        name: "adamw",
        group: "optimiser",
        label: "AdamW",
        settings: "optimizer=adamw lr=0.001",
        encoder: PRETRAINED,
    },
];

/// A system that texts are generated with.
#[derive(Clone, Debug, PartialEq)]
pub struct System {
    /// The evaluation's stage.
    pub stage: String,
    /// What a reader calls it.
    pub label: String,
    /// Steps, of those that have any.
    pub steps: Option<u64>,
}

/// What a reader calls the two ways in which ELF's unconditional texts are sampled.
pub const PLAIN_ELF: &str = "ELF";
pub const GUIDED_ELF: &str = "ELF, guided";
/// And ELF that writes token by token.
pub const BLOCK_ELF: &str = "ELF, token by token";

/// What trains with `elf train`, beside one another.
pub const OBJECTIVES: [&str; 3] = ["elf", "mdlm", "gpt2"];

/// The encoder that comes with the repository.
pub const SHIPPED_ENCODER: &str = "models/mini-encoder";

/// The lesser version of ELF that guides it: the same recipe, after the ablations' few passes.
pub const GUIDE: &str = "train/ablations/recipe";

/// The scale of guided texts, and when they are read.
pub const GUIDE_SCALE: f64 = 3.5;
pub const DECODED_AT: f64 = 0.5;

/// Steps of each block where texts are written in blocks.
pub const BLOCK_STEPS: u64 = 8;

/// When a block is read whose words are drawn from what the network says, and at which temperature; and when one whose likeliest words are wanted.
pub const DRAWN_AT: f64 = 0.5;
pub const DRAWN_TEMPERATURE: f64 = 0.6;
pub const LIKELIEST_AT: f64 = 0.1;

/// Guide scales and times of decoding that are looked at.
pub const GUIDE_SCALES: [f64; 4] = [1.5, 2.5, 3.5, 5.0];
pub const DECODE_TIMES: [f64; 4] = [0.35, 0.5, 0.7, 1.0];

/// Steps that systems are compared at.
pub const STEPS: u64 = 32;

/// Gammas, guidance scales and condition guidance scales that are looked at.
pub const GAMMAS: [f64; 5] = [0.5, 1.0, 1.5, 2.0, 3.0];
/// Self-conditioning guidance scales that are looked at.
pub const GUIDANCE: [f64; 4] = [1.0, 2.0, 3.0, 4.0];
/// Condition guidance scales that are looked at.
pub const CONDITION_GUIDANCE: [f64; 4] = [1.0, 1.5, 2.0, 3.0];

/// The rounds of distillation: folder of the student, and its steps.
pub const STUDENTS: [(&str, u64); 5] =
    [("round1_16step", 16), ("round2_8step", 8), ("round3_4step", 4), ("round4_2step", 2), ("round5_1step", 1)];

/// Weights of the networks of `configs/mini-*.yml` that a position goes through (blocks and heads), for estimates.
pub const WEIGHTS: f64 = 5.5e6;

/// The size of encoders.
pub const ENCODER_SIZE: &str =
    "--d-model 256 --d-kv 64 --num-heads 4 --d-ff 512 --num-layers 4 --feed-forward gated-gelu";

/// How the encoder is pre-trained.
pub const ENCODER_RECIPE: &str = "--decoder-layers 2 --lr 0.012 --embedding-lr 0.1 --seed 0";

/// The stage of an ablation's evaluation.
pub fn ablation_stage(ablation: &Ablation) -> String {
    format!("eval/ablations/{}", ablation.name)
}

/// What a reader calls what trains with an objective.
pub fn system_label(objective: &str) -> &'static str {
    match objective {
        "elf" => "ELF",
        "mdlm" => "MDLM",
        _ => "GPT-2",
    }
}
