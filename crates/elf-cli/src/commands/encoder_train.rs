//! `elf encoder train`: T5's span-corruption pre-training on a corpus of one's own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use elf_core::device::DeviceChoice;
use elf_core::{ParamBuilder, Precision};
use elf_data::Tokenizer;
use elf_encoder::{EncoderMask, LatentMoments, SpanCorruption, T5Encoder, T5Pretraining, TextEncoder};
use elf_hub::What;
use tch::{Kind, Tensor};

use crate::commands::encoder::EncoderSizes;
use crate::{hub, progress};
use elf_lm::Event;
use elf_lm::Fingerprint;
use elf_lm::folder_lock;
use elf_lm::text::text_latents::{describe, write_stats};
use elf_lm::train::encoder_card::EncoderCard;
use elf_lm::train::encoder_corpus::{Corpus, CorpusText};
use elf_lm::train::encoder_training::{Pretrainer, Progress, Recipe, Rule, TrainingStore};

/// Texts that the latents' statistics are measured on, at most.
const STATISTICS_TEXTS: usize = 8192;

/// The kind of the numbers in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoredAs {
    Bf16,
    F32,
}

impl StoredAs {
    /// As libtorch names it.
    pub fn kind(self) -> Kind {
        match self {
            StoredAs::Bf16 => Kind::BFloat16,
            StoredAs::F32 => Kind::Float,
        }
    }
}

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
#[derive(Debug, Clone, Args)]
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
    fn recipe(&self) -> Recipe {
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
        } = self.clone();
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
    sizes: EncoderSizes,
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
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// The folder to write config.json, model.safetensors, tokenizer.json, latent_stats.json and README.md to; it must
    /// be empty or not exist yet.
    #[arg(long)]
    output: PathBuf,
}

impl TrainArgs {
    /// What clap cannot check.
    fn check(&self) -> Result<()> {
        let positive = |name: &str, value: f64| {
            ensure!(value.is_finite() && value > 0.0, "--{name} is {value}; it must be a positive number");
            Ok(())
        };
        positive("lr", self.recipe.recipe().lr())?;
        positive("embedding-lr", self.recipe.embedding_lr)?;
        positive("other-lr", self.recipe.other_lr)?;
        positive("clip", self.recipe.clip)?;
        positive("minutes", self.recipe.minutes.unwrap_or(1.0))?;
        positive("save-minutes", self.recipe.save_minutes)?;
        ensure!(self.recipe.steps != Some(0), "--steps is 0; at least one step is needed");
        ensure!(
            (SpanCorruption::SHORTEST..=1 << 16).contains(&self.max_length),
            "--max-length is {}; it must be between {} and 65536",
            self.max_length,
            SpanCorruption::SHORTEST
        );
        ensure!(
            (self.max_length..=1 << 24).contains(&self.recipe.batch_tokens),
            "--batch-tokens is {}; it must be at least --max-length ({}) and at most {}",
            self.recipe.batch_tokens,
            self.max_length,
            1 << 24
        );
        self.refuse_taken()
    }

    /// A trained encoder is not written over.
    fn refuse_taken(&self) -> Result<()> {
        let taken = std::fs::read_dir(&self.output).is_ok_and(|mut inside| inside.next().is_some());
        if taken || self.output.is_file() {
            bail!("{} is there already; choose another --output, or remove it", self.output.display());
        }
        Ok(())
    }

    /// What must be the same for a training to go on. Not how long it is: it may be made longer or shorter.
    fn settings(&self, corpus: &Corpus, tokenizer: &Tokenizer) -> Fingerprint {
        let texts: Vec<String> = self.text.iter().map(ToString::to_string).collect();
        let rates =
            [self.recipe.recipe().lr(), self.recipe.embedding_lr, self.recipe.other_lr].map(|lr| lr.to_string());
        let settings = [
            ("--text", texts.join(" ")),
            ("content of the texts", format!("{} texts of {} tokens", corpus.len(), corpus.tokens())),
            ("--tokenizer", tokenizer.fingerprint().to_owned()),
            ("size of the encoder", self.sizes.to_string()),
            ("--decoder-layers", self.decoder_layers.to_string()),
            ("--max-length", self.max_length.to_string()),
            ("--density", self.density.to_string()),
            ("--mean-span", self.mean_span.to_string()),
            ("--batch-tokens", self.recipe.batch_tokens.to_string()),
            ("--optimizer", Rule::from(self.recipe.optimizer).to_string()),
            ("--lr, --embedding-lr or --other-lr", rates.join(", ")),
            ("--clip", self.recipe.clip.to_string()),
            ("--seed", self.recipe.seed.to_string()),
        ];
        settings.into_iter().fold(Fingerprint::default(), |all, (name, value)| all.with(name, value))
    }
}

/// Sentinels for texts of up to `longest` tokens: the tokenizer's own as far as it has them, then ids after its vocabulary.
fn sentinels(tokenizer: &Tokenizer, needed: usize) -> (Vec<i32>, i64) {
    let vocab = tokenizer.vocab_size() as i32;
    let own = (0..needed).map(|i| tokenizer.id(&format!("<extra_id_{i}>"))).take_while(Option::is_some).flatten();
    let mut ids: Vec<i32> = own.collect();
    let extra = needed - ids.len();
    ids.extend((0..extra as i32).map(|i| vocab + i));
    (ids, extra as i64)
}

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    args.check()?;
    let device = args.device.resolve()?;
    let precision = Precision::native(device);
    let tokenizer = Tokenizer::load(hub::locate(&args.tokenizer, What::Tokenizer)?)?;
    let (eos, pad) = (tokenizer.eos_id()?, tokenizer.pad_id()?);
    let config = args.sizes.config(&tokenizer)?;
    let rates =
        SpanCorruption { density: args.density, mean_span: args.mean_span, ..SpanCorruption::t5(eos, Vec::new()) };
    let (sentinels, extra) = sentinels(&tokenizer, rates.sentinels_for(args.max_length));
    let task = SpanCorruption { sentinels, ..rates };
    task.check(args.max_length)?;

    let mut print = print_notes;
    let host = hub::host(&mut print);
    let spinner = progress::spinner();
    let read = |columns: &[CorpusText]| {
        Corpus::read(columns, &tokenizer, args.max_length, &host, |n| spinner.set_message(format!("{n} texts read")))
    };
    let corpus = read(&args.text)?;
    let held_out = if args.validation.is_empty() { Corpus::default() } else { read(&args.validation)? };
    spinner.finish_and_clear();

    let builder = ParamBuilder::seeded(args.recipe.seed, device);
    let model = T5Pretraining::new(&config, extra, args.decoder_layers, builder, precision)?;
    println!(
        "{} texts of {} tokens{}; {} parameters, {} of them in the encoder; {} on {}",
        corpus.len(),
        corpus.tokens(),
        match corpus.too_short {
            0 => String::new(),
            n => format!(" ({n} too short)"),
        },
        model.params().numel(),
        config.parameter_count(),
        precision,
        elf_core::device::describe(device),
    );
    let store = TrainingStore::beside(&args.output, args.settings(&corpus, &tokenizer))?;
    let _held = folder_lock::lock(store.path())?;
    // Whoever held it may have come to its end meanwhile.
    args.refuse_taken().inspect_err(|_| store.remove_if_empty())?;
    let host = host.with_stop(progress::stop_on_interrupt()?);
    let held_out_names = args.validation.iter().map(CorpusText::columns).collect();
    let run = Pretrainer { recipe: args.recipe.recipe(), task, pad, corpus, held_out, held_out_names, model, device };
    let Some(progress) = run.train(&store, &host)? else {
        eprintln!(
            "interrupted; run the same command again to go on, with fewer --minutes or --steps to end it where it is"
        );
        return Ok(ExitCode::from(130));
    };
    Trained { args: &args, run, progress }.ship(&tokenizer)?;
    store.remove()?;
    Ok(ExitCode::SUCCESS)
}

fn print_notes(event: Event) {
    if let Event::Note(line) = event {
        println!("{line}");
    }
}

/// A finished run.
struct Trained<'a> {
    args: &'a TrainArgs,
    run: Pretrainer,
    progress: Progress,
}

impl Trained<'_> {
    /// Writes the folder: whole or not at all.
    fn ship(&self, tokenizer: &Tokenizer) -> Result<()> {
        let (args, progress) = (self.args, &self.progress);
        let minutes = progress.seconds / 60.0;
        let kind = args.dtype.kind();
        let cannot = || format!("cannot write {}", args.output.display());
        let aside = elf_files::begin_folder(&args.output).with_context(cannot)?;
        self.run.model.save_encoder(aside.path(), kind)?;
        tokenizer.save(aside.path().join("tokenizer.json"))?;
        // Of the encoder as everybody will read it, its numbers rounded.
        let encoder = T5Encoder::load(aside.path(), self.run.device, Precision::F32)?;
        let moments = self.moments(&encoder)?;
        let stats = moments.per_channel()?;
        write_stats(aside.path(), None, &stats)?;
        println!("latents over {} positions: {}", moments.positions(), describe(&moments.overall()?));
        let card = EncoderCard {
            config: encoder.config(),
            texts: &args.text,
            validation: &args.validation,
            data_note: args.data_note.as_deref(),
            corpus: (self.run.corpus.len(), self.run.corpus.tokens()),
            trained_tokens: progress.tokens,
            steps: progress.steps,
            minutes,
            seed: args.recipe.seed,
            device: elf_core::device::describe(self.run.device),
            curve: &progress.curve,
            command: &command_line(std::env::args().skip(1)),
            overall: moments.overall()?,
        };
        std::fs::write(aside.path().join("README.md"), card.to_markdown()).with_context(cannot)?;
        elf_files::finish_folder(aside, &args.output).with_context(cannot)?;
        println!(
            "an encoder with {} parameters; {} steps over {} tokens in {minutes:.1} minutes; written to {}",
            encoder.params().numel(),
            progress.steps,
            progress.tokens,
            args.output.display()
        );
        Ok(())
    }

    /// Moments of the latents of training texts, whole and closed by EOS.
    fn moments(&self, encoder: &T5Encoder) -> Result<LatentMoments> {
        let corpus = &self.run.corpus;
        let mut moments = LatentMoments::new(usize::try_from(encoder.dim()).context("the encoder's width")?);
        for texts in corpus.batches(&corpus.evenly(STATISTICS_TEXTS), self.args.recipe.batch_tokens) {
            let longest = texts.iter().map(|&i| corpus.text(i).len() + 1).max().unwrap_or(1);
            let mut ids = vec![i64::from(self.run.pad); texts.len() * longest];
            let mut valid = vec![0f32; ids.len()];
            for (row, &i) in texts.iter().enumerate() {
                let text = corpus.text(i).iter().chain([&self.run.task.eos]);
                for (j, id) in text.enumerate() {
                    ids[row * longest + j] = i64::from(*id);
                    valid[row * longest + j] = 1.0;
                }
            }
            let shape = [texts.len() as i64, longest as i64];
            let ids = Tensor::f_from_slice(&ids)?.f_view(shape)?;
            let valid = Tensor::f_from_slice(&valid)?.f_view(shape)?.f_to_device(self.run.device)?;
            moments.add(&encoder.encode(&ids, EncoderMask::Columns(&valid))?, &valid)?;
        }
        Ok(moments)
    }
}

/// The command as a shell reads it.
pub fn command_line(args: impl Iterator<Item = String>) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@+%".contains(c);
    let words = args.map(|arg| match !arg.is_empty() && arg.chars().all(plain) {
        true => arg,
        false => format!("'{}'", arg.replace('\'', r"'\''")),
    });
    std::iter::once("elf".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_can_be_pasted() {
        let args = ["encoder", "train", "--data-note", "Debian's, see there", "--text", "a.parquet:de"];
        let line = command_line(args.iter().map(ToString::to_string));
        assert_eq!(line, r"elf encoder train --data-note 'Debian'\''s, see there' --text a.parquet:de");
    }
}
