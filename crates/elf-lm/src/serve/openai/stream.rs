//! Answers as server-sent events: pieces of the texts, as far as they are certain.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::Event;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::answer::{Envelope, usage};
use super::finished::Ending;
use super::prompt::Input;
use crate::Result;
use crate::serve::entry::Entry;
use crate::serve::order::{Outcome, Progress};
use crate::serve::refusal::Refusal;
use crate::serve::served_model::ServedModel;
use crate::serve::service::{texts_of, too_late};
use crate::text::generated::GeneratedText;

/// A stream of pieces.
pub struct Pieces {
    /// How long the texts may take.
    pub limit: Duration,
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
    /// The texts as they form.
    pub progress: mpsc::Receiver<Progress>,
    /// The finished texts; taken when they are there.
    pub answered: Option<oneshot::Receiver<Outcome>>,
    /// When the texts must be there.
    pub deadline: Instant,
    /// The request, for its figures.
    pub entry: Arc<Entry>,
    /// Events that are ready to be sent.
    pub ready: VecDeque<Event>,
}

impl Pieces {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() && self.answered.is_some() {
            match timeout_at(self.deadline, self.progress.recv()).await {
                Ok(Some(progress)) => self.pieces(&progress),
                Ok(None) => {
                    let answered = self.answered.take()?;
                    let outcome = timeout_at(self.deadline, answered).await;
                    let limit = self.limit;
                    self.end(outcome.map_or_else(|_| Err(too_late(limit)), texts_of));
                }
                Err(_) => {
                    self.answered = None;
                    self.end(Err(too_late(self.limit)));
                }
            }
        }
        self.ready.pop_front()
    }

    fn send(&mut self, value: &Value) {
        self.ready.push_back(Event::default().data(value.to_string()));
    }

    fn pieces(&mut self, progress: &Progress) {
        let model = Arc::clone(&self.model);
        for row in &progress.rows {
            let ending = Ending { max_tokens: self.max_tokens, stop: &self.stop };
            // A text that cannot be decoded yet comes at the end.
            if let (Ok((text, _)), true) = (ending.sure(&model, &row.text, &row.tokens), row.index < self.sent.len()) {
                self.piece(row.index, &text);
            }
        }
    }

    /// Sends what is new in a text that begins with what is sent of it.
    fn piece(&mut self, index: usize, text: &str) {
        let new = text.strip_prefix(self.sent[index].as_str()).filter(|new| !new.is_empty());
        if let Some(new) = new.map(str::to_owned) {
            self.sent[index].push_str(&new);
            let piece = self.envelope.piece(index, &new);
            self.send(&piece);
            self.entry.shows();
        }
    }

    /// Sends what is left of a finished text. A tokenizer may decode the beginning of a text differently once the text is
    /// longer; then what follows their common beginning is sent.
    fn last_piece(&mut self, index: usize, text: &str) {
        let sent = &mut self.sent[index];
        if !text.starts_with(sent.as_str()) {
            let common = sent.chars().zip(text.chars()).take_while(|(one, other)| one == other);
            let common = common.map(|(c, _)| c.len_utf8()).sum();
            sent.truncate(common);
        }
        self.piece(index, text);
    }

    fn end(&mut self, outcome: Result<Vec<GeneratedText>, Refusal>) {
        let ended = outcome.and_then(|texts| self.rest(texts).map_err(Refusal::failed));
        if let Err(refusal) = ended {
            self.send(&refusal.openai_body());
        }
        self.ready.push_back(Event::default().data("[DONE]"));
    }

    /// Sends what is left of the finished texts.
    fn rest(&mut self, texts: Vec<GeneratedText>) -> Result<()> {
        let model = Arc::clone(&self.model);
        let mut finished = Vec::with_capacity(texts.len());
        for (index, made) in texts.into_iter().enumerate() {
            let one = Ending { max_tokens: self.max_tokens, stop: &self.stop }.of(&model, &made)?;
            self.last_piece(index, &one.text);
            let closing = self.envelope.closing(index, &made, &one);
            self.send(&closing);
            finished.push((made, one));
        }
        if self.include_usage {
            let usage = usage(&model, &self.inputs, &finished)?;
            let chunk = self.envelope.usage(&usage);
            self.send(&chunk);
        }
        Ok(())
    }
}
