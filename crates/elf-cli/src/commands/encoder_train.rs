//! `elf encoder train`: T5's span-corruption pre-training on a corpus of one's own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use elf_core::device::DeviceChoice;
use elf_lm::encoder::{CorpusText, Pretraining, PretrainingSettings, Recipe, Rule};

use super::encoder_args::{SizeArgs, StoredAs, this_command};
use crate::events::Terminal;
use crate::printing::note;
use crate::{hub, progress};

/// Optimiser for the weight matrices of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuleArg {
    /// Muon for the matrices of the blocks, AdamW for the rest.
    Muon,
    /// AdamW for everything.
    Adamw,
}

impl From<RuleArg> for Rule {
    fn from(rule: RuleArg) -> Self {
        match rule {
            RuleArg::Muon => Self::Muon,
            RuleArg::Adamw => Self::Adamw,
        }
    }
}

/// How an encoder is trained.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    /// Train for this many minutes in total, across interruptions; the learning rate decays to 0 over them.
    #[arg(long, required_unless_present = "steps")]
    minutes: Option<f64>,
    /// Train for this many steps. With --minutes, whichever comes first ends training.
    #[arg(long)]
    steps: Option<u64>,
    /// Tokens of text per step.
    #[arg(long, default_value_t = 4096)]
    batch_tokens: usize,
    /// Optimiser for the weight matrices of the blocks.
    #[arg(long, value_enum, default_value = "muon")]
    optimizer: RuleArg,
    /// Peak learning rate of the blocks' weight matrices [default: 0.01 with muon, 0.002 with adamw].
    #[arg(long)]
    lr: Option<f64>,
    /// Peak learning rate of the token embedding table, whose rows are initialised at scale 1.
    #[arg(long, default_value_t = 0.1)]
    embedding_lr: f64,
    /// Peak learning rate of everything else: norms, position biases, the decoder's head.
    #[arg(long, default_value_t = 0.003)]
    other_lr: f64,
    /// Maximum gradient norm; larger gradients are clipped to it.
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// Seed of the weights, the text order and the spans.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Report progress every this many steps.
    #[arg(long, default_value_t = 50)]
    log_every: u64,
    /// Every this many minutes, save a checkpoint in OUTPUT.training from which interrupted or killed training resumes.
    #[arg(long, default_value_t = 5.0)]
    save_minutes: f64,
}

impl RecipeArgs {
    fn recipe(self) -> Recipe {
        let Self {
            minutes,
            steps,
            batch_tokens,
            optimizer,
            lr,
            embedding_lr,
            other_lr,
            clip,
            seed,
            log_every,
            save_minutes,
        } = self;
        Recipe {
            minutes,
            steps,
            batch_tokens,
            optimizer: optimizer.into(),
            lr,
            embedding_lr,
            other_lr,
            clip,
            seed,
            log_every,
            save_minutes,
        }
    }
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A text column to train on; may be repeated. A Parquet, JSONL or plain text file, a folder of them or a Hugging
    /// Face id, then a colon and the column. Two columns joined by a plus, FILE:de+en, are read as one text: for pairs
    /// such as translations, which an encoder for conditional tasks should have seen together. With an equals sign,
    /// FILE:de=en, the decoder learns to generate the second column from the first, as T5 itself learned its tasks. A
    /// column given twice is read twice as often.
    #[arg(long, required = true, value_name = "FILE:COLUMN")]
    text: Vec<CorpusText>,
    /// A text column to measure the held-out loss on; may be repeated.
    #[arg(long, value_name = "FILE:COLUMN")]
    validation: Vec<CorpusText>,
    /// The tokenizer whose ids the encoder reads: a tokenizer.json, the folder containing one, or a Hugging Face id.
    #[arg(long)]
    tokenizer: PathBuf,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Number of decoder blocks; the decoder is discarded at the end.
    #[arg(long, default_value_t = 2)]
    decoder_layers: i64,
    /// Split longer texts into pieces of this many tokens.
    #[arg(long, default_value_t = 128)]
    max_length: usize,
    /// Fraction of tokens to mask out.
    #[arg(long, default_value_t = 0.15)]
    density: f64,
    /// Mean length of a masked-out span, in tokens.
    #[arg(long, default_value_t = 3.0)]
    mean_span: f64,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Number format of model.safetensors.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: StoredAs,
    /// What the model card should say about the texts and their licence.
    #[arg(long)]
    data_note: Option<String>,
    /// A folder to write event files to, in which TensorBoard finds the losses and the recipe.
    #[arg(long, value_name = "FOLDER")]
    tensorboard: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// The folder to write config.json, model.safetensors, tokenizer.json, latent_stats.json and README.md to; it must
    /// be empty or not exist yet.
    #[arg(long)]
    output: PathBuf,
}

impl TrainArgs {
    fn settings(self) -> Result<PretrainingSettings> {
        Ok(PretrainingSettings {
            texts: self.text,
            validation: self.validation,
            tokenizer: self.tokenizer,
            sizes: self.sizes.sizes(),
            decoder_layers: self.decoder_layers,
            max_length: self.max_length,
            density: self.density,
            mean_span: self.mean_span,
            recipe: self.recipe.recipe(),
            kind: self.dtype.kind(),
            data_note: self.data_note,
            device: self.device.resolve()?,
            output: self.output,
            tensorboard: self.tensorboard,
            command: this_command(),
        })
    }
}

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let mut events = Terminal::on_standard_output();
    let host = hub::host(&mut events);
    let training = Pretraining::prepare(args.settings()?, &host)?;
    let host = host.with_stop(progress::stop_on_interrupt()?);
    if !training.carry_out(&host)? {
        note!(
            "interrupted; run the same command again to go on, with fewer --minutes or --steps to end it where it is"
        );
        return Ok(ExitCode::from(130));
    }
    Ok(ExitCode::SUCCESS)
}
