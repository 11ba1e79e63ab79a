//! What an encoder is pre-trained with.

use std::path::PathBuf;

use elf_data::Tokenizer;
use elf_encoder::SpanCorruption;
use tch::{Device, Kind};

use super::corpus::{Corpus, CorpusText};
use super::folder::is_taken;
use super::init::EncoderSizes;
use super::recipe::Recipe;
use crate::error::fail;
use crate::{Event, Fingerprint, Host, Result};

/// Longest texts, and most tokens of a batch.
const LONGEST: usize = 1 << 16;
const MOST_TOKENS: usize = 1 << 24;

/// What an encoder learns from what.
#[derive(Debug, Clone)]
pub struct PretrainingSettings {
    /// The texts to learn from.
    pub texts: Vec<CorpusText>,
    /// The texts that the held-out loss is measured on.
    pub validation: Vec<CorpusText>,
    /// The tokenizer whose ids the encoder reads: a file, a folder or a Hugging Face id.
    pub tokenizer: PathBuf,
    /// The encoder's sizes.
    pub sizes: EncoderSizes,
    /// Blocks of the decoder, which is discarded at the end.
    pub decoder_layers: i64,
    /// Tokens of a piece that longer texts are split into.
    pub max_length: usize,
    /// Fraction of tokens to mask out.
    pub density: f64,
    /// Mean length of a masked-out span.
    pub mean_span: f64,
    /// How it is trained.
    pub recipe: Recipe,
    /// The kind of the numbers in the file of weights.
    pub kind: Kind,
    /// What the card says about the texts and their licence.
    pub data_note: Option<String>,
    /// Where it is trained.
    pub device: Device,
    /// The folder to write to, which must be empty or not exist yet.
    pub output: PathBuf,
    /// A folder for an event file, in which TensorBoard finds losses and the recipe.
    pub tensorboard: Option<PathBuf>,
    /// The command that the card names.
    pub command: String,
}

impl PretrainingSettings {
    /// Refuses what makes no training.
    pub(super) fn check(&self) -> Result<()> {
        let recipe = &self.recipe;
        for (name, value) in [
            ("lr", recipe.lr()),
            ("embedding-lr", recipe.embedding_lr),
            ("other-lr", recipe.other_lr),
            ("clip", recipe.clip),
            ("minutes", recipe.minutes.unwrap_or(1.0)),
            ("save-minutes", recipe.save_minutes),
        ] {
            if !(value.is_finite() && value > 0.0) {
                fail!(setting(name), "--{name} is {value}; it must be a positive number");
            }
        }
        if recipe.steps == Some(0) {
            fail!(setting("steps"), "--steps is 0; at least one step is needed");
        }
        let (length, tokens, shortest) = (self.max_length, recipe.batch_tokens, SpanCorruption::SHORTEST);
        if !(shortest..=LONGEST).contains(&length) {
            fail!(setting("max-length"), "--max-length is {length}; it must be between {shortest} and {LONGEST}");
        }
        if !(length..=MOST_TOKENS).contains(&tokens) {
            fail!(
                setting("batch-tokens"),
                "--batch-tokens is {tokens}; it must be at least --max-length ({length}) and at most {MOST_TOKENS}"
            );
        }
        self.refuse_taken()
    }

    /// Refuses to write over a trained encoder.
    pub(super) fn refuse_taken(&self) -> Result<()> {
        if is_taken(&self.output) {
            let output = self.output.display();
            fail!(place(&self.output), "{output} already exists; choose another --output, or remove it");
        }
        Ok(())
    }

    /// The settings that must be the same for a training to go on. Not how long it is: it may be made longer or shorter.
    pub(super) fn fingerprint(&self, corpus: &Corpus, tokenizer: &Tokenizer) -> Fingerprint {
        let (texts, recipe) = (self.texts.iter().map(ToString::to_string).collect::<Vec<_>>(), &self.recipe);
        let rates = [recipe.lr(), recipe.embedding_lr, recipe.other_lr].map(|lr| lr.to_string());
        let settings = [
            ("--text", texts.join(" ")),
            ("content of the texts", format!("{} texts of {} tokens", corpus.len(), corpus.tokens())),
            ("--tokenizer", tokenizer.fingerprint().to_owned()),
            ("size of the encoder", self.sizes.to_string()),
            ("--decoder-layers", self.decoder_layers.to_string()),
            ("--max-length", self.max_length.to_string()),
            ("--density", self.density.to_string()),
            ("--mean-span", self.mean_span.to_string()),
            ("--batch-tokens", recipe.batch_tokens.to_string()),
            ("--optimizer", recipe.optimizer.to_string()),
            ("--lr, --embedding-lr or --other-lr", rates.join(", ")),
            ("--clip", recipe.clip.to_string()),
            ("--seed", recipe.seed.to_string()),
        ];
        settings.into_iter().fold(Fingerprint::default(), |all, (name, value)| all.with(name, value))
    }

    /// The texts to learn from and those held out, which may be none.
    pub(super) fn corpora(&self, tokenizer: &Tokenizer, host: &Host) -> Result<(Corpus, Corpus)> {
        host.send(Event::Started { unit: "texts read", done: 0, total: 0 });
        let told = |texts: usize| host.send(Event::Progress { done: texts as u64, message: None });
        let read = |columns: &[CorpusText]| Corpus::read(columns, tokenizer, self.max_length, host, told);
        let corpus = read(&self.texts)?;
        let held_out = if self.validation.is_empty() { Corpus::default() } else { read(&self.validation)? };
        host.send(Event::Ended);
        Ok((corpus, held_out))
    }
}
