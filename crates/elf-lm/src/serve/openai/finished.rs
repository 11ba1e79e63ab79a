//! A text as a client gets it: cut where the client wants it to end.

use serde_json::{Value, json};

use super::super::served_model::ServedModel;
use crate::Result;
use crate::text::generated::GeneratedText;

/// Where a text ends, if not where the model ends it.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// Maximum number of tokens.
    pub max_tokens: Option<usize>,
    /// Texts at which it ends.
    pub stop: &'a [String],
}

/// A text as a client gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The text.
    pub text: String,
    /// Its tokens, each with the part of the text that it stands for.
    pub tokens: Vec<(i64, String)>,
    /// The log-probability with which each token was read, for flows.
    pub log_probs: Option<Vec<f32>>,
    /// Why it ends: `stop` or `length`.
    pub reason: &'static str,
}

impl Ending<'_> {
    /// A text, and why it ends before its own end; `whole` has all tokens.
    fn cut(&self, model: &ServedModel, whole: &str, tokens: &[i64]) -> Result<(String, Option<&'static str>)> {
        let (mut text, mut reason) = (whole.to_owned(), None);
        if let Some(most) = self.max_tokens.filter(|&most| most < tokens.len()) {
            text = model.tokenizer.decode(&narrow(&tokens[..most])?)?;
            reason = Some("length");
        }
        if let Some(place) = self.stop.iter().filter_map(|stop| text.find(stop)).min() {
            text.truncate(place);
            reason = Some("stop");
        }
        Ok((text, reason))
    }

    /// The part of an unfinished text that will not change if tokens are added to it, and whether it ends there.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn sure(&self, model: &ServedModel, text: &str, tokens: &[i64]) -> Result<(String, bool)> {
        let (mut text, reason) = self.cut(model, text, tokens)?;
        if reason.is_some() {
            return Ok((text, true));
        }
        // A token may hold part of a character, and the text may end with part of a stop text.
        text.truncate(text.trim_end_matches('\u{fffd}').len());
        let held = self.stop.iter().map(|stop| held(&text, stop)).max().unwrap_or(0);
        text.truncate(text.len() - held);
        Ok((text, false))
    }

    /// A finished text.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn of(&self, model: &ServedModel, made: &GeneratedText) -> Result<Finished> {
        let (text, reason) = self.cut(model, &made.text, &made.tokens)?;
        let whole = if made.tokens.len() >= model.longest_text() { "length" } else { "stop" };
        let most = self.max_tokens.unwrap_or(usize::MAX);
        let (mut tokens, mut written) = (Vec::new(), 0);
        for (&id, piece) in made.tokens.iter().zip(model.tokenizer.pieces(&narrow(&made.tokens)?)?).take(most) {
            if written >= text.len() && reason.is_some() {
                break;
            }
            written += piece.len();
            tokens.push((id, piece));
        }
        let log_probs = made.log_probs.as_ref().map(|all| all[..tokens.len().min(all.len())].to_vec());
        Ok(Finished { text, tokens, log_probs, reason: reason.unwrap_or(whole) })
    }
}

/// The length of the longest end of `text` that is a beginning of `stop`.
fn held(text: &str, stop: &str) -> usize {
    let mut ends = stop.char_indices().map(|(end, _)| end).rev();
    ends.find(|&end| text.ends_with(&stop[..end])).unwrap_or(0)
}

fn narrow(ids: &[i64]) -> Result<Vec<i32>> {
    Ok(ids.iter().map(|&id| i32::try_from(id)).collect::<Result<_, _>>()?)
}

impl Finished {
    /// The log-probabilities in the form of completions; `top` also lists them as those of the likeliest tokens.
    pub fn completion_log_probs(&self, top: bool) -> Value {
        let Some(log_probs) = &self.log_probs else { return Value::Null };
        let offsets = self.tokens.iter().scan(0, |end, (_, piece)| {
            let start = *end;
            *end += piece.chars().count();
            Some(start)
        });
        let each = self.tokens.iter().zip(log_probs);
        json!({
            "tokens": self.tokens.iter().map(|(_, piece)| piece).collect::<Vec<_>>(),
            "token_logprobs": log_probs,
            "top_logprobs": top.then(|| each.map(|((_, piece), p)| json!({ piece: p })).collect::<Vec<_>>()),
            "text_offset": offsets.collect::<Vec<_>>(),
        })
    }

    /// The log-probabilities in the form of chats.
    pub fn chat_log_probs(&self, top: bool) -> Value {
        let Some(log_probs) = &self.log_probs else { return Value::Null };
        let each = self.tokens.iter().zip(log_probs).map(|((_, piece), p)| {
            let one = json!({ "token": piece, "logprob": p, "bytes": piece.as_bytes() });
            let mut all = one.clone();
            all["top_logprobs"] = if top { json!([one]) } else { json!([]) };
            all
        });
        json!({ "content": each.collect::<Vec<_>>(), "refusal": null })
    }
}

#[cfg(test)]
mod tests {
    use super::held;
    use proptest::prelude::*;

    #[test]
    fn what_may_become_a_stop_text_is_held_back() {
        assert_eq!(held("a text\n", "\n\n"), 1);
        assert_eq!(held("a text", "\n\n"), 0);
        assert_eq!(held("xaba", "abac"), 3);
        assert_eq!(held("ä", "äö"), 2);
    }

    proptest! {
        #[test]
        fn nothing_more_is_held_than_needed(text in "[ab]{0,12}", stop in "[ab]{1,5}", more in "[ab]{0,5}") {
            let kept = &text[..text.len() - held(&text, &stop)];
            // Whatever follows, a stop text that is not in the text yet does not begin before what is held.
            if !text.contains(&stop) {
                let place = format!("{text}{more}").find(&stop);
                prop_assert!(place.is_none_or(|place| place >= kept.len()));
            }
        }
    }
}
