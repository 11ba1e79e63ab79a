//! What a pre-trained encoder's folder says to whoever finds it.

use std::fmt::Write as _;

use elf_encoder::{FeedForward, LatentStats};

use super::corpus::CorpusText;
use super::settings::PretrainingSettings;
use super::training::{Point, Progress};
use crate::text::text_latents::describe;

/// Everything that the card tells.
pub(super) struct EncoderCard<'a> {
    pub(super) settings: &'a PretrainingSettings,
    /// Numbers in the encoder's parameters.
    pub(super) parameters: u64,
    /// Entries of its vocabulary.
    pub(super) vocabulary: i64,
    /// Texts and tokens there were.
    pub(super) corpus: (usize, usize),
    pub(super) progress: &'a Progress,
    /// Mean and deviation over all channels.
    pub(super) overall: LatentStats,
}

impl EncoderCard<'_> {
    /// The card, in Markdown.
    pub(super) fn to_markdown(&self) -> String {
        let Self { settings, progress, .. } = self;
        let sizes = &settings.sizes;
        let (texts, tokens) = self.corpus;
        let list = |columns: &[CorpusText]| columns.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
        let is_taught = |task: bool| settings.texts.iter().any(|text| text.is_task() == task);
        let taught = match (is_taught(false), is_taught(true)) {
            (true, true) => "span corruption, and tasks beside it",
            (false, true) => "tasks",
            _ => "span corruption",
        };
        let inner = match sizes.feed_forward {
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
            sizes.num_layers,
            sizes.d_model,
            sizes.num_heads,
            sizes.d_kv,
            sizes.d_ff,
            self.parameters,
            self.vocabulary,
            list(&settings.texts),
            settings.data_note.as_deref().unwrap_or("not stated; it applies to what is made from the text"),
            progress.steps,
            progress.tokens,
            progress.tokens as f64 / tokens.max(1) as f64,
            progress.minutes(),
            elf_core::device::describe(settings.device),
            settings.recipe.seed,
            describe(&self.overall),
        );
        if !settings.validation.is_empty() {
            let _ = writeln!(card, "| held-out text | {} |", list(&settings.validation));
        }
        let _ = write!(card, "\n## Command\n\n```sh\n{}\n```\n", settings.command);
        losses(&mut card, &progress.curve);
        card
    }
}

/// Appends the table of losses.
fn losses(card: &mut String, curve: &[Point]) {
    card.push_str("\n## Losses\n\nNats for each token that the decoder is to write.\n\n");
    card.push_str("| steps | minutes | training | held out |\n| ---: | ---: | ---: | ---: |\n");
    let number = |loss: Option<f64>| loss.map_or("-".to_owned(), |l| format!("{l:.3}"));
    for point in curve {
        let _ = writeln!(
            card,
            "| {} | {:.1} | {} | {} |",
            point.steps,
            point.minutes,
            number(point.training),
            number(point.held_out)
        );
    }
}
