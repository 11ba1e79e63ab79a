//! Words that the rest of a text does not lead one to expect, and texts in which they are written anew.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};

use elf_core::{Seeded, key_of};
use elf_data::Tokenizer;
use elf_flow::{Condition, Probe, TrainedFlow};
use serde::Serialize;
use similar::{ChangeTag, TextDiff};
use tch::Tensor;

use super::Model;
use crate::config::Sampling;
use crate::error::fail;
use crate::text::conditions::Conditions;
use crate::text::generated::TextRequest;
use crate::text::template::{Part, Template, known_tokens};
use crate::text::text_run::GenerateOptions;
use crate::{Result, TextEvent};

/// Rows of a batch in which one word each is hidden.
const ROWS: usize = 64;

/// Words are replaced only if those that stay become likelier, in all, by more than this share of the doubt that words are in at least: a word
/// that is only rare leaves the others as they are.
const GAIN_SHARE: f64 = 1.0 / 3.0;

/// At most this share of the words of a text is written anew at once: the others are what they are judged by.
const MOST_FREED: f64 = 1.0 / 3.0;

/// A word of a text, and what the model expects in its place when it knows all other words and the text's length.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WordInContext {
    /// The word, or a punctuation mark that is a token of its own.
    pub word: String,
    /// Where it stands in the text, in bytes.
    pub place: Range<usize>,
    /// The natural log-probability of its tokens, a sum.
    pub log_prob: f64,
    /// The likeliest tokens in its place, as text. Tokens are read independently.
    pub likeliest: String,
    /// The natural log-probability of these.
    pub likeliest_log_prob: f64,
}

impl WordInContext {
    /// How much rather the model would read something else here: the logarithm of the likeliest tokens' odds against these; 0 if these
    /// are the likeliest.
    pub fn doubt(&self) -> f64 {
        self.likeliest_log_prob - self.log_prob
    }
}

/// How a text is corrected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorrectionOptions {
    /// Words of more [`doubt`](WordInContext::doubt) are written anew, if the words that stay become likelier by more than a third of it in
    /// all.
    pub doubt: f64,
    /// Most rounds of rewriting.
    pub rounds: usize,
    /// Texts that are written in each round for all words in doubt, and for the one most in doubt, besides those with the likeliest word in
    /// place of one. The one that makes the words that stay likeliest, each given all others, is taken if the whole text is likelier, too.
    pub candidates: usize,
    /// Seed of what is written.
    pub seed: u64,
}

impl Default for CorrectionOptions {
    fn default() -> Self {
        Self { doubt: 3.0, rounds: 4, candidates: 4, seed: 0 }
    }
}

/// A text before and after a correction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Correction {
    /// The text before.
    pub text: String,
    /// The text after.
    pub corrected: String,
    /// What is different, in order.
    pub changes: Vec<Change>,
    /// The sum of the log-probabilities of the words before, each given the others (pseudo-log-likelihood; Salazar et al. 2020,
    /// arXiv 1910.14659).
    pub log_prob: f64,
    /// The same after.
    pub corrected_log_prob: f64,
}

/// Words that a correction replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where they stood in the text before, in bytes.
    pub place: Range<usize>,
    /// The words before.
    pub from: String,
    /// The words after.
    pub to: String,
}

impl Correction {
    /// The text after, with each change as `[-before-]{+after+}`.
    pub fn marked(&self) -> String {
        let (mut marked, mut at) = (String::new(), 0);
        for Change { place, from, to } in &self.changes {
            marked.push_str(&self.text[at..place.start]);
            if !from.is_empty() {
                marked.push_str(&format!("[-{from}-]"));
            }
            if !to.is_empty() {
                marked.push_str(&format!("{{+{to}+}}"));
            }
            at = place.end;
        }
        marked + &self.text[at..]
    }
}

/// What is different in the words of two texts.
fn changes(before: &str, after: &str) -> Vec<Change> {
    let diff = TextDiff::from_words(before, after);
    let (mut changes, mut at, mut open): (Vec<Change>, usize, bool) = (Vec::new(), 0, false);
    for part in diff.iter_all_changes() {
        let text = part.value();
        if part.tag() == ChangeTag::Equal {
            (at, open) = (at + text.len(), false);
            continue;
        }
        if !std::mem::replace(&mut open, true) {
            changes.push(Change { place: at..at, from: String::new(), to: String::new() });
        }
        let Some(change) = changes.last_mut() else { continue };
        match part.tag() {
            ChangeTag::Insert => change.to.push_str(text),
            _ => {
                change.from.push_str(text);
                at += text.len();
                change.place.end = at;
            }
        }
    }
    changes
}

/// A word with its tokens.
struct Word {
    place: Range<usize>,
    ids: Vec<i32>,
}

/// The words of a text, punctuation apart where it has tokens of its own.
fn words(text: &str, tokenizer: &Tokenizer) -> Result<Vec<Word>> {
    let mut words = Vec::new();
    for run in text.split_whitespace() {
        // A part of `text`, so that this is where it begins there.
        let start = run.as_ptr() as usize - text.as_ptr() as usize;
        let whole = known_tokens(run, tokenizer)?;
        let mut parts = Vec::new();
        for part in letters_apart(run) {
            let ids = tokenizer.encode(&run[part.clone()])?;
            parts.push(Word { place: start + part.start..start + part.end, ids });
        }
        match parts.iter().flat_map(|part| &part.ids).eq(&whole) {
            true => words.extend(parts),
            false => words.push(Word { place: start..start + run.len(), ids: whole }),
        }
    }
    words.retain(|word| !word.ids.is_empty());
    Ok(words)
}

/// Runs of letters and digits, and every other character by itself.
fn letters_apart(run: &str) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut in_word = false;
    for (at, c) in run.char_indices() {
        let end = at + c.len_utf8();
        match parts.last_mut() {
            Some(last) if in_word && c.is_alphanumeric() => last.end = end,
            _ => parts.push(at..end),
        }
        in_word = c.is_alphanumeric();
    }
    parts
}

impl Model {
    /// What the model expects in the place of each word of a text, given all others and the text's length: for models that fill gaps
    /// (`models/infill`). One row of a batch for each word, two passes and two readings.
    ///
    /// # Errors
    /// If the model is no flow that fills gaps, the text has a single word, more tokens than the model's texts, or words that are not in
    /// its vocabulary, or libtorch fails.
    pub fn words_in_context(&self, text: &str, seed: u64) -> Result<Vec<WordInContext>> {
        let (net, plan, tokenizer) = (self.flow_net()?, self.plan(), self.tokenizer());
        let words = words(text, tokenizer)?;
        let mut ids: Vec<i32> = words.iter().flat_map(|word| word.ids.iter().copied()).collect();
        ids.push(tokenizer.eos_id()?);
        let starts = words.iter().scan(0, |at, word| Some(std::mem::replace(at, *at + word.ids.len())));
        let places: Vec<Range<usize>> = starts.zip(&words).map(|(start, word)| start..start + word.ids.len()).collect();
        // Also where there is no word to ask about.
        Conditions::hiding(plan, tokenizer, &ids, &[])?;
        if words.len() < 2 {
            fail!(request, "`{text}` has fewer than two words: there are no others to judge a word by");
        }
        let probe = Probe::new(net, TrainedFlow::from(&plan.objective), 1.0);
        let barred = [i64::from(tokenizer.eos_id()?), i64::from(tokenizer.pad_id()?)];
        let wide: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let mut found = Vec::with_capacity(words.len());
        for (first, places) in (0..).step_by(ROWS).zip(places.chunks(ROWS)) {
            let rows = places.len();
            let batch = Conditions::hiding(plan, tokenizer, &ids, places)?.collate(plan, tokenizer, rows, ids.len())?;
            let truth = Tensor::f_from_slice(&wide)?.f_unsqueeze(0)?.f_repeat([rows as i64, 1])?;
            let keys = (first..first + rows as u64).map(|row| key_of(&[seed, row])).collect();
            let foretold = tch::no_grad(|| -> Result<_> {
                let encoded = self.encoder()?.encode(&batch)?;
                let Some(mask) = encoded.condition else { fail!(request, "no word of `{text}` is given") };
                let condition = Condition::new(&encoded.latents, &encoded.ids, &mask)?.in_text(&barred);
                Ok(probe.foretold(&condition, &truth, &mut Seeded::new(keys, self.device()))?)
            })?;
            let log_probs = Vec::<f32>::try_from(foretold.log_probs.f_reshape([-1])?)?;
            let likeliest = Vec::<i64>::try_from(foretold.likeliest.ids.f_reshape([-1])?)?;
            let best = Vec::<f32>::try_from(foretold.likeliest.log_probs.f_reshape([-1])?)?;
            for (row, place) in places.iter().enumerate() {
                let at = row * ids.len() + place.start..row * ids.len() + place.end;
                let sum = |values: &[f32]| values[at.clone()].iter().map(|&p| f64::from(p)).sum();
                let tokens =
                    likeliest[at.clone()].iter().map(|&id| i32::try_from(id)).collect::<Result<Vec<_>, _>>()?;
                let place = words[first as usize + row].place.clone();
                found.push(WordInContext {
                    word: text[place.clone()].to_owned(),
                    place,
                    log_prob: sum(&log_probs),
                    likeliest: tokenizer.decode(&tokens)?,
                    likeliest_log_prob: sum(&best),
                });
            }
        }
        Ok(found)
    }

    /// Corrects a text: the words that the model doubts most are freed and written anew by `sampling`, and so on while the words that stay
    /// become likelier. Words keep their number of tokens. What is not changed stays as it is written, in its case and spaces.
    ///
    /// # Errors
    /// As [`Model::words_in_context`], or if the setting is invalid for the model.
    pub fn correct(&self, text: &str, sampling: &Sampling, options: &CorrectionOptions) -> Result<Correction> {
        let mut current = self.judged(text.to_owned(), options.seed)?;
        let log_prob = current.log_prob;
        for round in 0..options.rounds as u64 {
            let freed = current.doubted(options.doubt);
            let Some(most) = freed.first().copied() else { break };
            // All that are in doubt, and the one that is most.
            let sets = BTreeSet::from([freed.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::from([most])]);
            let mut candidates = self.rewritten(&current, &sets, (sampling, options), round)?;
            for word in freed {
                candidates.extend(current.with_likeliest(word, self.tokenizer())?);
            }
            let (mut better, mut to_beat) = (None, GAIN_SHARE * options.doubt);
            for rewritten in candidates {
                let candidate = self.judged(rewritten, options.seed)?;
                let gain = current.gain_of_the_kept(&candidate);
                if candidate.log_prob > current.log_prob && gain > to_beat {
                    (better, to_beat) = (Some(candidate), gain);
                }
            }
            let Some(better) = better else { break };
            current = better;
        }
        let changes = changes(text, &current.text);
        let (corrected, corrected_log_prob) = (current.text, current.log_prob);
        Ok(Correction { text: text.to_owned(), corrected, changes, log_prob, corrected_log_prob })
    }

    fn judged(&self, text: String, seed: u64) -> Result<Judged> {
        let words = self.words_in_context(&text, seed)?;
        let log_prob = words.iter().map(|word| word.log_prob).sum();
        Ok(Judged { text, words, log_prob })
    }

    /// Texts in which words of each of these sets are written anew, without repetition.
    fn rewritten(
        &self,
        judged: &Judged,
        sets: &BTreeSet<BTreeSet<usize>>,
        (sampling, options): (&Sampling, &CorrectionOptions),
        round: u64,
    ) -> Result<BTreeSet<String>> {
        let (mut requests, mut gaps) = (Vec::new(), Vec::new());
        for (number, freed) in sets.iter().enumerate() {
            let (template, places) = judged.without(freed, self.tokenizer())?;
            for candidate in 0..options.candidates as u64 {
                let seed = key_of(&[options.seed, round, number as u64, candidate]);
                requests.push(TextRequest { seed, template: Some(template.clone()), ..TextRequest::default() });
                gaps.push(places.clone());
            }
        }
        let ignore = &mut |_: TextEvent<'_>| ControlFlow::Continue(());
        let made = self.generate_watched(&requests, sampling, &GenerateOptions::default(), ignore)?;
        let texts = made.texts.iter().map(|made| {
            let mut text = judged.text.clone();
            // From behind, so that places before stay where they are.
            for (place, filled) in gaps[made.index].iter().zip(&made.filled).rev() {
                text.replace_range(place.clone(), filled);
            }
            text
        });
        Ok(texts.filter(|text| *text != judged.text).collect())
    }
}

/// A text with the model's opinion of it.
struct Judged {
    text: String,
    words: Vec<WordInContext>,
    log_prob: f64,
}

impl Judged {
    /// The words of more than `doubt`, the most doubted first.
    fn doubted(&self, doubt: f64) -> Vec<usize> {
        let mut doubted: Vec<usize> = (0..self.words.len()).filter(|&i| self.words[i].doubt() > doubt).collect();
        doubted.sort_by(|&a, &b| self.words[b].doubt().total_cmp(&self.words[a].doubt()));
        doubted.truncate(((self.words.len() as f64 * MOST_FREED) as usize).max(1));
        doubted
    }

    /// How much likelier the words are that another text has kept of this one.
    fn gain_of_the_kept(&self, other: &Self) -> f64 {
        let (mut before, mut after, mut shift) = (Vec::new(), Vec::new(), 0isize);
        for Change { place, from, to } in changes(&self.text, &other.text) {
            let start = place.start.saturating_add_signed(shift);
            shift += to.len() as isize - from.len() as isize;
            after.push(start..start + to.len());
            before.push(place);
        }
        other.log_prob_outside(&after) - self.log_prob_outside(&before)
    }

    fn log_prob_outside(&self, places: &[Range<usize>]) -> f64 {
        let inside = |word: &WordInContext| places.iter().any(|place| place.contains(&word.place.start));
        self.words.iter().filter(|word| !inside(word)).map(|word| word.log_prob).sum()
    }

    /// The text with what the model would rather read in place of a word, if that is a word.
    fn with_likeliest(&self, place: usize, tokenizer: &Tokenizer) -> Result<Option<String>> {
        let word = &self.words[place];
        // Pieces of words, or words that would be tokens of another number.
        if tokenizer.encode(&word.likeliest)?.len() != tokenizer.encode(&word.word)?.len() {
            return Ok(None);
        }
        let mut text = self.text.clone();
        text.replace_range(word.place.clone(), &word.likeliest);
        Ok(Some(text).filter(|text| *text != self.text))
    }

    /// The text with gaps in place of these words, and the place of each gap. Words side by side share one.
    fn without(&self, freed: &BTreeSet<usize>, tokenizer: &Tokenizer) -> Result<(Template, Vec<Range<usize>>)> {
        let freed: Vec<usize> = freed.iter().copied().collect();
        let (mut parts, mut places, mut at) = (Vec::new(), Vec::new(), 0);
        for run in freed.chunk_by(|one, next| one + 1 == *next) {
            let words = &self.words[run[0]..run[0] + run.len()];
            let mut tokens = 0;
            for word in words {
                tokens += tokenizer.encode(&word.word)?.len();
            }
            let place = words[0].place.start..words[words.len() - 1].place.end;
            parts.extend([Part::Given(self.text[at..place.start].to_owned()), Part::Gap(Some(tokens))]);
            at = place.end;
            places.push(place);
        }
        parts.push(Part::Given(self.text[at..].to_owned()));
        Ok((Template::new(parts)?, places))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn words_stand_where_they_stood() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let text = "  A word, (another) re-do's\u{00e9}. ";
        for tokenizer in ["models/minilm-l3", "data/tokenizers/t5"] {
            let tokenizer = Tokenizer::load(folder.join(tokenizer)).unwrap();
            let words = words(text, &tokenizer).unwrap();
            let ids: Vec<i32> = words.iter().flat_map(|word| word.ids.clone()).collect();
            assert_eq!(ids, tokenizer.encode(text.trim()).unwrap());
            let all: String = words.iter().map(|word| &text[word.place.clone()]).collect();
            assert_eq!(all, text.split_whitespace().collect::<String>());
        }
    }

    #[test]
    fn changes_lead_from_one_text_to_the_other() {
        let (before, after) = ("a official who walkss , slowly", "an official who walks quite slowly");
        let changes = changes(before, after);
        let correction = Correction {
            text: before.to_owned(),
            corrected: after.to_owned(),
            changes: changes.clone(),
            log_prob: 0.0,
            corrected_log_prob: 0.0,
        };
        assert_eq!(correction.marked(), "[-a-]{+an+} official who [-walkss-]{+walks+} [-,-]{+quite+} slowly");
        let mut text = before.to_owned();
        for Change { place, from, to } in changes.iter().rev() {
            assert_eq!(&text[place.clone()], from);
            text.replace_range(place.clone(), to);
        }
        assert_eq!(text, after);
    }
}
