//! Settings of the preset `mini`: the scale, the tasks, the models that are compared, and the ablations.

use std::path::{Path, PathBuf};

/// Settings of a training: keys with their values.
pub type Settings = &'static [(&'static str, &'static str)];

/// The amount of training and sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Every how many of the training rows of each task are kept.
    pub every_nth: u64,
    /// Passes over the data of each model except those that write token by token, in place of [`Task::epochs`].
    pub epochs: Option<f64>,
    /// The most passes of a GPT-2, which overfits sooner: its best evaluation is kept.
    pub gpt2_epochs: f64,
    /// Flags of `elf sample` for the GPT-2s that translate training sources.
    pub translator_flags: &'static [&'static str],
    /// Passes over the data of each model that writes token by token.
    pub block_epochs: f64,
    /// Passes over the definitions in which models that write them learn to fill gaps.
    pub filling_epochs: f64,
    /// Passes over the definitions of each ablation.
    pub ablation_epochs: f64,
    /// Passes over the definitions of the judge.
    pub judge_epochs: f64,
    /// Steps of distillation.
    pub distillation_steps: u64,
    /// Rows of each step of distillation.
    pub distillation_rows: u64,
    /// Seeds of sampling.
    pub seeds: u64,
    /// Unconditional texts per seed.
    pub texts: u64,
    /// Test rows of each conditional task; none takes all.
    pub test_rows: Option<u64>,
    /// Numbers of steps at which systems are compared.
    pub steps: &'static [u64],
    /// Whether settings of the sampler are compared.
    pub sampler_study: bool,
    /// Settings of all trainings, for `elf train`.
    pub settings: Settings,
    /// Settings of distillation, for `elf distill`.
    pub distillation_settings: Settings,
}

/// Enough training for meaningful figures: most of a day on two cores, minutes on a GPU.
pub const FULL: Scale = Scale {
    every_nth: 1,
    epochs: None,
    gpt2_epochs: 6.0,
    translator_flags: &["--beam", "4"],
    block_epochs: 6.0,
    filling_epochs: 3.0,
    ablation_epochs: 1.5,
    judge_epochs: 4.0,
    distillation_steps: 560,
    distillation_rows: 64,
    seeds: 3,
    texts: 512,
    test_rows: None,
    steps: &[4, 8, 16, 32, 64],
    sampler_study: true,
    settings: &[],
    distillation_settings: &[],
};

/// Every kind of stage within a quarter of an hour on two cores, even without bf16. Its figures show that everything runs, not
/// what ELF can do.
pub const QUICK: Scale = Scale {
    every_nth: 16,
    epochs: Some(0.5),
    gpt2_epochs: 0.5,
    // Beam search of a GPT-2 that is trained this little finds empty texts.
    translator_flags: &["--temperature", "1"],
    block_epochs: 0.2,
    filling_epochs: 0.25,
    ablation_epochs: 0.25,
    judge_epochs: 0.5,
    distillation_steps: 2,
    distillation_rows: 16,
    seeds: 2,
    texts: 32,
    test_rows: Some(16),
    steps: &[4, 32],
    sampler_study: false,
    settings: &[("warmup_steps", "2"), ("ema_decay1", "0.8"), ("eval_rows", "64")],
    distillation_settings: &[("eval_rows", "16"), ("warmup_steps", "1")],
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
    /// The configuration of ELF and its baselines.
    pub config: &'static str,
    /// The file in `configs/sampling` that ELF is sampled with; none is the paper's setting for conditional tasks.
    pub sampling: Option<&'static str>,
    /// The folder of its encoder and tokenizer.
    pub encoder: &'static str,
    /// The file there with the statistics of ELF's latents.
    pub statistics: &'static str,
    /// The column to generate from, if any.
    pub condition: Option<&'static str>,
    /// The column to generate.
    pub target: &'static str,
    /// Further words for `elf data select`.
    pub select: &'static [&'static str],
    /// Further training pairs: `data/<corpus>-train.parquet`.
    pub more_corpora: &'static [&'static str],
    /// Whether models that write all words at once learn translations of the training sources by GPT-2s that have not seen them,
    /// in place of the real ones (Kim and Rush 2016, arXiv 1606.07947).
    pub learns_translations: bool,
    /// Every how many of the rows that remain are kept.
    pub every_nth: u64,
    /// Settings of the baselines.
    pub baselines: Settings,
    /// Settings of the last sixth of ELF's passes, if they differ.
    pub ending: Settings,
    /// Whether ELF that writes token by token is compared, too.
    pub blocks: bool,
    /// Whether ELF that writes all words at once begins as that one.
    pub from_blocks: bool,
    /// Passes over the data of each model except those that write token by token; a GPT-2 may make fewer.
    pub epochs: f64,
    /// Rows to train on, for estimates.
    pub rows: f64,
    /// Positions of a row.
    pub positions: f64,
}

impl Task {
    /// The files of its encoder, statistics and tokenizer included.
    pub fn encoder_files(&self) -> Vec<PathBuf> {
        let mut files = vec!["config.json", "latent_stats.json", "model.safetensors", "tokenizer.json"];
        files.extend((self.statistics != "latent_stats.json").then_some(self.statistics));
        files.into_iter().map(|file| Path::new(self.encoder).join(file)).collect()
    }

    /// The file of its tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        Path::new(self.encoder).join("tokenizer.json")
    }
}

/// The three tasks.
pub const TASKS: [Task; 3] = [
    Task {
        name: "definitions",
        title: "Unconditional text: definitions of a dictionary",
        corpus: "definitions",
        config: "configs/definitions.yml",
        sampling: Some("definitions"),
        encoder: "models/minilm-l3",
        statistics: "latent_stats.json",
        condition: None,
        target: "definition",
        select: &[],
        more_corpora: &[],
        learns_translations: false,
        every_nth: 1,
        // A constant rate with a fall at the end, as ELF's own.
        baselines: &[("lr_schedule", "wsd"), ("lr_decay_share", "0.15"), ("ema_decay1", "0.999")],
        ending: &[("lr_schedule", "wsd"), ("lr_decay_share", "0.12"), ("decoder_estimate_prob", "0.5")],
        blocks: false,
        from_blocks: false,
        epochs: 18.0,
        rows: 86_073.0,
        positions: 13.0,
    },
    Task {
        name: "de-en",
        title: "Translation: German to English",
        corpus: "de-en",
        config: "configs/de-en.yml",
        sampling: Some("de-en"),
        encoder: "models/mini-encoder",
        statistics: "latent_stats.layer-0.json",
        condition: Some("de"),
        target: "en",
        select: &["--unique", "de", "--unique", "en", "--max-tokens", "de=31", "--max-tokens", "en=31"],
        more_corpora: &["help-de-en"],
        learns_translations: true,
        every_nth: 1,
        baselines: &[("init_from", "null")],
        ending: &[],
        blocks: true,
        from_blocks: true,
        epochs: 30.0,
        rows: 44_868.0,
        positions: 30.0,
    },
    Task {
        name: "summaries",
        title: "One-sentence summaries of package descriptions",
        corpus: "descriptions",
        config: "configs/mini-summaries.yml",
        sampling: None,
        encoder: "models/mini-encoder",
        statistics: "latent_stats.json",
        condition: Some("description"),
        target: "synopsis",
        select: &["--unique", "description", "--unique", "synopsis", "--max-tokens", "synopsis=23"],
        more_corpora: &[],
        learns_translations: false,
        every_nth: 2,
        baselines: &[],
        ending: &[],
        blocks: true,
        from_blocks: false,
        epochs: 6.0,
        rows: 28_128.0,
        positions: 64.0,
    },
];

/// The share of the passes of [`Task::ending`].
pub const ENDING_SHARE: f64 = 1.0 / 6.0;

/// One change to the recipe of the definitions.
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
    /// The task's own.
    Own,
    /// That of the definitions, cut to this many layers; 0 keeps only its embeddings.
    Layers(u64),
    /// Random weights.
    Random,
}

/// The recipe itself at the ablations' budget, and one change each.
pub const ABLATIONS: &[Ablation] = &[
    Ablation::of("recipe", "", "the recipe", &[]),
    Ablation::of("layers-0", "encoder", "embeddings alone", &[]).with(Encoder::Layers(0)),
    Ablation::of("layers-1", "encoder", "one layer in place of three", &[]).with(Encoder::Layers(1)),
    Ablation::of("random", "encoder", "a T5 with random weights", &[]).with(Encoder::Random),
    Ablation::of("v-prediction", "prediction", "v", &[("prediction", "v")]),
    Ablation::of(
        "paper-decoding",
        "decode rows",
        "the paper's share and noise",
        &[("decoder_prob", "0.2"), ("decoder_p_mean", "0.8"), ("decoder_p_std", "0.8")],
    ),
    Ablation::of("estimates", "decode rows", "half of them own estimates", &[("decoder_estimate_prob", "0.5")]),
    Ablation::of("bottleneck-32", "bottleneck", "32", &[("bottleneck_dim", "32")]),
    Ablation::of("bottleneck-256", "bottleneck", "256", &[("bottleneck_dim", "256")]),
    Ablation::of("adamw", "optimiser", "AdamW", &[("optimizer", "adamw"), ("lr", "0.001")]),
];

impl Ablation {
    const fn of(name: &'static str, group: &'static str, label: &'static str, settings: Settings) -> Self {
        Self { name, group, label, settings, encoder: Encoder::Own }
    }

    const fn with(self, encoder: Encoder) -> Self {
        Self { encoder, ..self }
    }
}

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

/// The models that are compared at equal size.
pub const COMPARED: [Model; 3] = [Model::Elf, Model::Mdlm, Model::Gpt2];

/// A system of the report: a model with its sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A model with its usual sampler.
    Plain(Model),
    /// ELF with the paper's sampler, where its usual one is another.
    PaperSampler,
    /// The one of [`CANDIDATES`] that is most like the others, by a model with its usual sampler.
    Candidates(Model),
    /// GPT-2 with beam search of this width.
    Beam(u64),
}

impl Writer {
    /// The model that it samples.
    pub fn model(self) -> Model {
        match self {
            Self::Plain(model) | Self::Candidates(model) => model,
            Self::PaperSampler => Model::Elf,
            Self::Beam(_) => Model::Gpt2,
        }
    }

    /// Its name in stages.
    pub fn name(self) -> String {
        match self {
            Self::Plain(Model::Blocks) => "elf-blocks".to_owned(),
            Self::Plain(model) => model.name().to_owned(),
            Self::PaperSampler => "elf-paper-sampler".to_owned(),
            Self::Candidates(model) => format!("{}-of-{CANDIDATES}", model.name()),
            Self::Beam(width) => format!("gpt2-beam-{width}"),
        }
    }

    /// Its name in the report.
    pub fn label(self) -> String {
        match self {
            Self::Plain(model) => model.label().to_owned(),
            Self::PaperSampler => "ELF, the paper's sampler".to_owned(),
            Self::Candidates(model) => format!("{}, best of {CANDIDATES} by minimum Bayes risk", model.label()),
            Self::Beam(width) => format!("GPT-2, beam {width}"),
        }
    }
}

/// What fills gaps: a model and how it is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filler {
    /// ELF.
    Elf,
    /// Masked diffusion.
    Mdlm,
    /// GPT-2, which reads the text with marks for hidden tokens and writes these behind it, each drawn.
    Gpt2,
    /// The same, each token the likeliest.
    Gpt2Likeliest,
}

impl Filler {
    /// All, in the order of tables.
    pub const ALL: [Self; 4] = [Self::Elf, Self::Mdlm, Self::Gpt2, Self::Gpt2Likeliest];

    /// Its name in stages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2Likeliest => "gpt2-likeliest",
            other => other.model().name(),
        }
    }

    /// Its name in the report.
    pub fn label(self) -> String {
        match self {
            Self::Elf => format!("ELF, {STEPS} steps"),
            Self::Mdlm => format!("MDLM, {STEPS} steps"),
            Self::Gpt2 => "GPT-2, fill in the middle".to_owned(),
            Self::Gpt2Likeliest => "GPT-2, the likeliest tokens".to_owned(),
        }
    }

    /// The model that it samples.
    pub fn model(self) -> Model {
        match self {
            Self::Elf => Model::Elf,
            Self::Mdlm => Model::Mdlm,
            Self::Gpt2 | Self::Gpt2Likeliest => Model::Gpt2,
        }
    }
}

/// The number of steps of every stage that does not compare numbers of steps.
pub const STEPS: u64 = 32;

/// Folds of training pairs, each translated by a GPT-2 that learned the others. Those of half of the pairs translate worse (docs/log.md,
/// 2026-11-30).
pub const FOLDS: usize = 4;

/// Shares of the words of test definitions that are hidden, to be filled in.
pub const HIDDEN: [f64; 4] = [0.15, 0.3, 0.5, 0.8];

/// Candidates of minimum Bayes risk.
pub const CANDIDATES: u64 = 10;

/// The steps of the student as it is sampled; its distillation is for the second of them.
pub const STUDENT_STEPS: [u64; 3] = [2, 4, 8];

/// Weights of blocks and heads of the networks of the preset, each used once for a position; for estimates.
pub const WEIGHTS: f64 = 5.5e6;

/// The size of encoders with random weights.
pub const ENCODER_SIZE: [(&str, &str); 6] = [
    ("--d-model", "256"),
    ("--d-kv", "64"),
    ("--num-heads", "4"),
    ("--d-ff", "512"),
    ("--num-layers", "4"),
    ("--feed-forward", "gated-gelu"),
];
