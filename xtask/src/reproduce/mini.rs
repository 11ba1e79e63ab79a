//! The preset `mini`: the three embedded tasks, ELF against its baselines, and the ablations, on one machine without network.

use super::stage::{Cost, Stage};

/// How much of everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Minutes of encoder pre-training; none takes the encoder that comes with the repository.
    pub encoder_steps: Option<u64>,
    /// Passes over the data of each model that is compared, in the order of [`TASKS`].
    pub epochs: [f64; 3],
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
    /// Whether to distil, and to look at guidance scales, gammas and grids.
    pub sampler_study: bool,
}

/// Ends in a report worth reading: hours on two cores, minutes on a GPU.
pub const FULL: Scale = Scale {
    encoder_steps: Some(4000),
    epochs: [8.0, 6.0, 3.0],
    ablation_epochs: 2.0,
    judge_epochs: 8.0,
    distillation_epochs: 0.5,
    seeds: 3,
    texts: 256,
    test_rows: None,
    steps: &[4, 8, 16, 32, 64],
    ablations: ABLATIONS,
    sampler_study: true,
};

/// Every kind of stage within a quarter of an hour on two cores. Its figures show that it runs, not what ELF can do.
pub const QUICK: Scale = Scale {
    encoder_steps: None,
    epochs: [0.2, 0.15, 0.07],
    ablation_epochs: 0.06,
    judge_epochs: 0.3,
    distillation_epochs: 0.02,
    seeds: 2,
    texts: 32,
    test_rows: Some(32),
    steps: &[4, 32],
    ablations: ABLATIONS,
    sampler_study: false,
};

/// A task of the embedded data.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Its name in stages and files.
    pub name: &'static str,
    /// For headings.
    pub title: &'static str,
    /// The corpus: `data/<corpus>-<split>.parquet`.
    corpus: &'static str,
    /// The column to generate from, if any.
    pub condition: Option<&'static str>,
    /// The column to generate.
    pub target: &'static str,
    /// Further words for `elf data select`.
    select: &'static str,
    /// Rows to train on, for estimates.
    rows: f64,
    /// Positions of a row.
    positions: f64,
}

/// The three tasks.
pub const TASKS: [Task; 3] = [
    Task {
        name: "descriptions",
        title: "Unconditional text: package descriptions",
        corpus: "descriptions",
        condition: None,
        target: "description",
        select: "--first-paragraph description --unique description --max-tokens description=63",
        rows: 29_953.0,
        positions: 64.0,
    },
    Task {
        name: "de-en",
        title: "Translation: German to English",
        corpus: "de-en",
        condition: Some("de"),
        target: "en",
        select: "--unique de --unique en --max-tokens de=47 --max-tokens en=47",
        rows: 25_571.0,
        positions: 96.0,
    },
    Task {
        name: "summaries",
        title: "One-sentence summaries of package descriptions",
        corpus: "descriptions",
        condition: Some("description"),
        target: "synopsis",
        select: "--unique description --unique synopsis --max-tokens synopsis=23",
        rows: 56_255.0,
        positions: 96.0,
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

const PRETRAINED: &str = "encoder/pretrained";

/// The recipe itself at the ablations' budget, and one change each.
pub const ABLATIONS: &[Ablation] = &[
    Ablation { name: "recipe", group: "", label: "the recipe", settings: "", encoder: PRETRAINED },
    Ablation { name: "token-table", group: "encoder", label: "token table of the pre-trained encoder", settings: "", encoder: "encoder/token-table" },
    Ablation { name: "random", group: "encoder", label: "random weights", settings: "", encoder: "encoder/random" },
    Ablation { name: "learnable", group: "encoder", label: "token table, learned with the flow", settings: "train_encoder=true", encoder: "encoder/learnable" },
    Ablation { name: "v-prediction", group: "prediction", label: "v", settings: "prediction=v", encoder: PRETRAINED },
    Ablation { name: "decode-10", group: "decode share", label: "10%", settings: "decoder_prob=0.1", encoder: PRETRAINED },
    Ablation { name: "decode-50", group: "decode share", label: "50%", settings: "decoder_prob=0.5", encoder: PRETRAINED },
    Ablation { name: "bottleneck-32", group: "bottleneck", label: "32", settings: "bottleneck_dim=32", encoder: PRETRAINED },
    Ablation { name: "bottleneck-256", group: "bottleneck", label: "256", settings: "bottleneck_dim=256", encoder: PRETRAINED },
    Ablation { name: "adamw", group: "optimiser", label: "AdamW", settings: "optimizer=adamw lr=0.001", encoder: PRETRAINED },
];

/// What trains with `elf train`, beside one another.
pub const OBJECTIVES: [&str; 3] = ["elf", "mdlm", "gpt2"];
