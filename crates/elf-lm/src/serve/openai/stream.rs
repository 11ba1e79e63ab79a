//! Answers as server-sent events: pieces of the texts, as far as they are certain.

use std::sync::Arc;

use super::answer::{Envelope, usage};
use super::finished::Ending;
use super::prompt::Input;
use crate::Result;
use crate::serve::entry::Entry;
use crate::serve::order::Progress;
use crate::serve::refusal::Refusal;
use crate::serve::served_model::ServedModel;
use crate::serve::text_events::{Events, TextEvents};
use crate::text::generated::GeneratedText;

/// A stream of pieces.
pub struct Pieces {
    /// The model.
    pub model: Arc<ServedModel>,
    /// What all pieces have in common.
    pub envelope: Envelope,
    /// The inputs.
    pub inputs: Vec<Input>,
    /// Maximum number of tokens per text.
    pub max_tokens: Option<usize>,
    /// Texts at which a text ends.
    pub stop: Vec<String>,
    /// Whether the stream ends with the number of tokens.
    pub include_usage: bool,
    /// What is sent of each text.
    pub sent: Vec<String>,
    /// The request, for its figures.
    pub entry: Arc<Entry>,
}

impl Pieces {
    /// Sends what is new in a text that begins with what is sent of it.
    fn piece(&mut self, index: usize, text: &str, events: &mut Events) {
        let new = text.strip_prefix(self.sent[index].as_str()).filter(|new| !new.is_empty());
        if let Some(new) = new.map(str::to_owned) {
            self.sent[index].push_str(&new);
            events.send(&self.envelope.piece(index, &new));
            self.entry.shows();
        }
    }

    /// Sends what is left of a finished text. A tokenizer may decode the beginning of a text differently once the text is
    /// longer; then what follows their common beginning is sent.
    fn last_piece(&mut self, index: usize, text: &str, events: &mut Events) {
        let sent = &mut self.sent[index];
        if !text.starts_with(sent.as_str()) {
            let common = sent.chars().zip(text.chars()).take_while(|(one, other)| one == other);
            let common = common.map(|(c, _)| c.len_utf8()).sum();
            sent.truncate(common);
        }
        self.piece(index, text, events);
    }

    /// Sends what is left of the finished texts.
    fn rest(&mut self, texts: Vec<GeneratedText>, events: &mut Events) -> Result<()> {
        let model = Arc::clone(&self.model);
        let mut finished = Vec::with_capacity(texts.len());
        for (index, made) in texts.into_iter().enumerate() {
            let one = Ending { max_tokens: self.max_tokens, stop: &self.stop }.of(&model, &made)?;
            self.last_piece(index, &one.text, events);
            events.send(&self.envelope.closing(index, &made, &one));
            finished.push((made, one));
        }
        if self.include_usage {
            let usage = usage(&model, &self.inputs, &finished)?;
            events.send(&self.envelope.usage(&usage));
        }
        Ok(())
    }
}

impl TextEvents for Pieces {
    fn begin(&self, events: &mut Events) {
        (0..self.sent.len()).filter_map(|index| self.envelope.opening(index)).for_each(|opening| events.send(&opening));
    }

    fn show(&mut self, progress: &Progress, events: &mut Events) {
        let model = Arc::clone(&self.model);
        for row in &progress.rows {
            let ending = Ending { max_tokens: self.max_tokens, stop: &self.stop };
            // A text that cannot be decoded yet comes at the end.
            if let (Ok((text, _)), true) = (ending.sure(&model, &row.text, &row.tokens), row.index < self.sent.len()) {
                self.piece(row.index, &text, events);
            }
        }
    }

    fn finish(&mut self, texts: Vec<GeneratedText>, events: &mut Events) -> Result<(), Refusal> {
        self.rest(texts, events).map_err(Refusal::failed)
    }
}
