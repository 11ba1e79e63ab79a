//! What a pre-trained encoder's folder says to whoever finds it.

use std::fmt::Write as _;

use elf_encoder::{FeedForward, LatentStats, T5Config};
use serde::{Deserialize, Serialize};

use crate::text::text_latents::describe;
use crate::train::encoder_corpus::CorpusText;

/// One place of the loss curve.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Optimiser steps done.
    pub steps: u64,
    /// Minutes since the start.
    pub minutes: f64,
    /// Mean training loss of the latest steps, in nats for each target token.
    pub training: Option<f64>,
    /// Held-out loss, likewise.
    pub held_out: Option<f64>,
}

/// Everything that the card tells.
#[derive(Debug)]
pub struct EncoderCard<'a> {
    /// The encoder.
    pub config: &'a T5Config,
    /// What it learned from.
    pub texts: &'a [CorpusText],
    /// What its loss was measured on.
    pub validation: &'a [CorpusText],
    /// What the user says of the texts.
    pub data_note: Option<&'a str>,
    /// Texts and tokens there were.
    pub corpus: (usize, usize),
    /// Tokens learned from, passes counted.
    pub trained_tokens: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// What they took.
    pub minutes: f64,
    /// The seed.
    pub seed: u64,
    /// Where it was trained, in words.
    pub device: String,
    /// Losses.
    pub curve: &'a [Point],
    /// The command that made it, as a shell reads it.
    pub command: &'a str,
    /// Mean and deviation over all channels.
    pub overall: LatentStats,
}

impl EncoderCard<'_> {
    /// The card, in Markdown.
    pub fn to_markdown(&self) -> String {
        let config = self.config;
        let (texts, tokens) = self.corpus;
        let list = |columns: &[CorpusText]| columns.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
        let taught = match (self.texts.iter().any(|t| !t.is_task()), self.texts.iter().any(CorpusText::is_task)) {
            (true, true) => "span corruption, and tasks beside it",
            (false, true) => "tasks",
            _ => "span corruption",
        };
        let inner = match config.feed_forward_proj {
            FeedForward::Relu => "ReLU",
            FeedForward::GatedGelu => "gated GELU",
        };
        let mut card = format!(
            "---\nlibrary_name: transformers\ntags: [t5, text-encoder]\n---\n\n\
             # A T5 encoder\n\n\
             Pre-trained from scratch by {taught} (Raffel et al. 2020, arXiv 1910.10683) with `elf encoder train`; the decoder\n\
             that taught it is not kept. For `encoder_model_name` of an ELF configuration, or Hugging Face's `T5EncoderModel`.\n\n\
             | | |\n| --- | --- |\n\
             | encoder | {} blocks, width {}, {} heads of {}, feed-forward {} ({inner}), {} parameters |\n\
             | vocabulary | {} entries (`tokenizer.json`) |\n\
             | text | {}; {texts} texts of {tokens} tokens |\n\
             | licence of the text | {} |\n\
             | training | {} steps over {} tokens ({:.1} passes), {:.1} minutes on {} |\n\
             | seed | {} |\n\
             | latents | {} (each channel's own in `latent_stats.json`) |\n",
            config.num_layers,
            config.d_model,
            config.num_heads,
            config.d_kv,
            config.d_ff,
            config.parameter_count(),
            config.vocab_size,
            list(self.texts),
            self.data_note.unwrap_or("not stated; it applies to what is made from the text"),
            self.steps,
            self.trained_tokens,
            self.trained_tokens as f64 / tokens.max(1) as f64,
            self.minutes,
            self.device,
            self.seed,
            describe(&self.overall),
        );
        if !self.validation.is_empty() {
            let _ = writeln!(card, "| held-out text | {} |", list(self.validation));
        }
        let _ = write!(card, "\n## Command\n\n```sh\n{}\n```\n", self.command);
        card.push_str("\n## Losses\n\nNats for each token that the decoder is to write.\n\n");
        card.push_str("| steps | minutes | training | held out |\n| ---: | ---: | ---: | ---: |\n");
        let number = |loss: Option<f64>| loss.map_or("-".to_owned(), |l| format!("{l:.3}"));
        for point in self.curve {
            let _ = writeln!(
                card,
                "| {} | {:.1} | {} | {} |",
                point.steps,
                point.minutes,
                number(point.training),
                number(point.held_out)
            );
        }
        card
    }
}
