//! Texts with gaps.

use std::fmt;
use std::str::FromStr;

use elf_core::{Noise, Seeded, key_of};
use elf_data::Tokenizer;
use regex::Regex;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::config::LengthLaw;
use crate::error::{Context, fail};
use crate::{Error, Result};

/// Most tokens of a gap; a mistyped number must not exhaust memory.
const MOST_TOKENS: usize = 1 << 20;

/// Mean number of words of a hidden span.
const MEAN_SPAN: f64 = 3.0;

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Words that stay as they are.
    Given(String),
    /// Words to write: so many tokens, or `null` for any number, from one on.
    Gap(Option<usize>),
}

/// A text whose gaps a model fills in.
///
/// ```
/// use elf_lm::text::template::{Part, Template};
/// let template: Template = "a [...] of the [2] family".parse()?;
/// let given = |text: &str| Part::Given(text.to_owned());
/// assert_eq!(template.parts(), [given("a"), Part::Gap(None), given("of the"), Part::Gap(Some(2)), given("family")]);
/// assert_eq!(template.to_string(), "a [...] of the [2] family");
/// # Ok::<(), elf_lm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Template(Vec<Part>);

/// What the number of tokens in a gap of any length depends on.
pub(crate) struct Lengths<'a> {
    /// The lengths of texts in training.
    pub(crate) law: &'a LengthLaw,
    /// The seed of this text.
    pub(crate) seed: u64,
    /// The longest text of the model, its end included.
    pub(crate) longest: usize,
}

impl Template {
    /// From parts. Given parts without a word are left out.
    ///
    /// # Errors
    /// If there is no gap, or no given word between two gaps or at all, or a gap of no token or of absurdly many.
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Result<Self> {
        let mut kept = Vec::new();
        for part in parts {
            match part {
                Part::Given(text) if text.trim().is_empty() => {}
                Part::Given(text) => kept.push(Part::Given(text.trim().to_owned())),
                Part::Gap(Some(tokens)) if !(1..=MOST_TOKENS).contains(&tokens) => {
                    fail!(request, "a gap of {tokens} tokens cannot be filled: give 1 or more, or [...] for any number")
                }
                Part::Gap(_) if matches!(kept.last(), Some(Part::Gap(_))) => {
                    fail!(request, "two gaps stand side by side: make them one, as no word between them is given")
                }
                gap => kept.push(gap),
            }
        }
        if !kept.iter().any(|part| matches!(part, Part::Gap(_))) {
            fail!(request, "there is no gap to fill: mark one with [...] for any number of tokens, or [5] for five");
        }
        if !kept.iter().any(|part| matches!(part, Part::Given(_))) {
            fail!(request, "no word is given: `elf sample` writes whole texts");
        }
        Ok(Self(kept))
    }

    /// A text in which a word, in any case, is to be replaced wherever it stands.
    ///
    /// # Errors
    /// If the word is not in the text, or nothing else is.
    pub fn replacing(text: &str, word: &str) -> Result<Self> {
        let pattern = format!(r"(?i)(^|\W)({})($|\W)", regex::escape(word));
        let pattern = Regex::new(&pattern).map_err(|e| Error::request(e.to_string()))?;
        let mut parts = Vec::new();
        let mut at = 0;
        while let Some(found) = pattern.captures_at(text, at).and_then(|found| found.get(2)) {
            parts.extend([Part::Given(text[at..found.start()].to_owned()), Part::Gap(None)]);
            at = found.end();
        }
        if at == 0 {
            fail!(request, "the word `{word}` is not in the text `{text}`");
        }
        parts.push(Part::Given(text[at..].to_owned()));
        Self::new(parts)
    }

    /// A text of which only what matches a pattern stays.
    ///
    /// # Errors
    /// If the pattern is no regular expression, or matches nothing or everything.
    pub fn keeping(text: &str, pattern: &Regex) -> Result<Self> {
        let mut parts = Vec::new();
        let mut at = 0;
        for found in pattern.find_iter(text).filter(|found| !found.as_str().trim().is_empty()) {
            if !text[at..found.start()].trim().is_empty() {
                parts.push(Part::Gap(None));
            }
            parts.push(Part::Given(found.as_str().to_owned()));
            at = found.end();
        }
        if parts.is_empty() {
            fail!(request, "nothing in the text `{text}` matches `{pattern}`, so that no word would stay");
        }
        if !text[at..].trim().is_empty() {
            parts.push(Part::Gap(None));
        }
        Self::new(parts)
    }

    /// A text in which about `share` of the words are hidden, at least one and not all, in spans of geometrically distributed lengths, three
    /// words on average; then the hidden words of each gap. Gaps have as many tokens as what they hide. `None` for a text of a single word.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn hiding(text: &str, share: f64, seed: u64, tokenizer: &Tokenizer) -> Result<Option<(Self, Vec<String>)>> {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.len() < 2 {
            return Ok(None);
        }
        let hidden = ((share * words.len() as f64).round() as usize).clamp(1, words.len() - 1);
        let hides = hidden_spans(words.len(), hidden, seed)?;
        let places: Vec<usize> = (0..words.len()).collect();
        let (mut parts, mut hidden) = (Vec::new(), Vec::new());
        for run in places.chunk_by(|&one, &next| hides[one] == hides[next]) {
            let text = words[run[0]..run[0] + run.len()].join(" ");
            if hides[run[0]] {
                parts.push(Part::Gap(Some(tokenizer.encode(&text)?.len())));
                hidden.push(text);
            } else {
                parts.push(Part::Given(text));
            }
        }
        Ok(Some((Self::new(parts)?, hidden)))
    }

    /// Its parts.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The tokens of the text, its end included, and `None` for each that is to be written.
    ///
    /// # Errors
    /// If a given word is not in the vocabulary, or the text is too long for the model.
    pub(crate) fn slots(&self, tokenizer: &Tokenizer, lengths: &Lengths) -> Result<Vec<Option<i32>>> {
        let mut parts = Vec::with_capacity(self.0.len());
        for part in &self.0 {
            parts.push(match part {
                Part::Given(text) => Ok(known_tokens(text, tokenizer)?),
                Part::Gap(tokens) => Err(*tokens),
            });
        }
        let open = parts.iter().filter(|part| matches!(part, Err(None))).count();
        let sized =
            |part: &Result<Vec<i32>, Option<usize>>| part.as_ref().map_or_else(|gap| gap.unwrap_or(1), Vec::len);
        let least = parts.iter().map(sized).sum::<usize>() + 1;
        let longest = lengths.longest;
        if least > longest {
            fail!(
                request,
                "`{self}` has at least {least} tokens, its end included, and the model writes at most {longest}: shorten it"
            );
        }
        let length = if open == 0 { least } else { lengths.law.length_from(lengths.seed, least)?.min(longest) };
        let mut further = shares(length - least, open, lengths.seed)?.into_iter();
        let mut slots = Vec::with_capacity(length);
        for part in parts {
            match part {
                Ok(ids) => slots.extend(ids.into_iter().map(Some)),
                Err(gap) => slots.resize(slots.len() + gap.unwrap_or_else(|| 1 + further.next().unwrap_or(0)), None),
            }
        }
        slots.push(Some(tokenizer.eos_id()?));
        Ok(slots)
    }
}

/// The tokens of given words.
///
/// # Errors
/// If one is not in the vocabulary.
pub(crate) fn known_tokens(text: &str, tokenizer: &Tokenizer) -> Result<Vec<i32>> {
    let unknown = |ids: &[i32]| tokenizer.unk_id().is_some_and(|unk| ids.contains(&unk));
    let ids = tokenizer.encode(text)?;
    if !unknown(&ids) {
        return Ok(ids);
    }
    for word in text.split_whitespace() {
        if unknown(&tokenizer.encode(word)?) {
            fail!(
                request,
                "`{word}` is not in the model's vocabulary, so that it cannot be given: leave it out, or make it a gap"
            );
        }
    }
    fail!(request, "`{text}` has a character that is not in the model's vocabulary")
}

/// `count` numbers in [0, 1).
fn coins(name: &str, count: usize, seed: u64) -> Result<Vec<f64>> {
    let keys = (0..count as u64).map(|i| key_of(&[seed, i])).collect();
    Ok(Seeded::new(keys, Device::Cpu).coins(name, count)?)
}

/// `all` dealt out among `gaps`, all ways of doing so about equally likely.
fn shares(all: usize, gaps: usize, seed: u64) -> Result<Vec<usize>> {
    if gaps == 0 {
        return Ok(Vec::new());
    }
    let coins = coins("dividers", gaps - 1, seed)?;
    // Dividers between the gaps, in a row of all tokens.
    let mut dividers: Vec<usize> = coins.into_iter().map(|u| (u * (all + 1) as f64) as usize).collect();
    dividers.sort_unstable();
    dividers.push(all);
    let mut before = 0;
    Ok(dividers.into_iter().map(|divider| divider - std::mem::replace(&mut before, divider)).collect())
}

/// Which of `words` are among the `hidden` ones, that lie in spans.
fn hidden_spans(words: usize, hidden: usize, seed: u64) -> Result<Vec<bool>> {
    // Two draws for each span, of which there are at most as many as hidden words.
    let coins = coins("spans", 2 * hidden, seed)?;
    let (mut hides, mut left) = (vec![false; words], hidden);
    for draws in coins.chunks(2) {
        let shown: Vec<usize> = (0..words).filter(|&place| !hides[place]).collect();
        let from = shown[((draws[0] * shown.len() as f64) as usize).min(shown.len() - 1)];
        // Geometric from 1, by inversion.
        let span = 1 + ((1.0 - draws[1]).ln() / (1.0 - MEAN_SPAN.recip()).ln()) as usize;
        for hides in &mut hides[from..words.min(from + span.min(left))] {
            left -= usize::from(!std::mem::replace(hides, true));
        }
        if left == 0 {
            break;
        }
    }
    Ok(hides)
}

impl FromStr for Template {
    type Err = Error;

    /// `[...]` is a gap of any number of tokens, `[5]` one of five; `\[` is a bracket.
    fn from_str(text: &str) -> Result<Self> {
        let (mut parts, mut given) = (Vec::new(), String::new());
        let mut rest = text;
        while let Some(at) = rest.find(['[', '\\']) {
            given.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(bracket) = rest.strip_prefix('\\') {
                let kept = if bracket.starts_with('[') { "[" } else { "\\" };
                given.push_str(kept);
                rest = bracket.strip_prefix('[').unwrap_or(bracket);
                continue;
            }
            let close = rest.find(']').with_context(|| {
                format!("a gap begins in `{text}` and does not end: write [...] or [5], and \\[ for a bracket")
            })?;
            let mark = rest[1..close].trim();
            let gap = match mark {
                "..." | "\u{2026}" => None,
                number => Some(number.parse::<usize>().ok().with_context(|| {
                    format!(
                        "[{mark}] is no gap: write [...] for any number of tokens, [5] for five, and \\[ for a bracket"
                    )
                })?),
            };
            parts.extend([Part::Given(std::mem::take(&mut given)), Part::Gap(gap)]);
            rest = &rest[close + 1..];
        }
        given.push_str(rest);
        parts.push(Part::Given(given));
        Self::new(parts)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (place, part) in self.0.iter().enumerate() {
            let space = if place == 0 { "" } else { " " };
            match part {
                Part::Given(text) => write!(f, "{space}{}", text.replace('[', "\\["))?,
                Part::Gap(None) => write!(f, "{space}[...]")?,
                Part::Gap(Some(tokens)) => write!(f, "{space}[{tokens}]")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/minilm-l3")).unwrap()
    }

    fn slots(template: &str, seed: u64, longest: usize) -> Result<Vec<Option<i32>>> {
        let law = LengthLaw::of(&[4, 6, 9, 12, 20].map(|length| [0, length]), false).unwrap();
        template.parse::<Template>()?.slots(&tokenizer(), &Lengths { law: &law, seed, longest })
    }

    #[test]
    fn what_is_no_template_is_named() {
        let message = |text: &str| text.parse::<Template>().unwrap_err().to_string();
        assert!(message("a house").contains("no gap"));
        assert!(message("[...]").contains("no word is given"));
        assert!(message("a [two] house").contains("[two]"));
        assert!(message("a [0] house").contains("0 tokens"));
        assert!(message("a [99999999999999999999999] house").contains("no gap: write"));
        assert!(message("a [... house").contains("does not end"));
        assert!(message("a [2] [...] house").contains("side by side"));
        let brackets: Template = r"a \[b] [2]".parse().unwrap();
        assert_eq!(brackets.parts(), [Part::Given("a [b]".into()), Part::Gap(Some(2))]);
        assert_eq!(brackets.to_string().parse::<Template>().unwrap(), brackets);
        let backslash: Template = r"a \ b [2]".parse().unwrap();
        assert_eq!(backslash.parts()[0], Part::Given(r"a \ b".into()));
    }

    #[test]
    fn words_are_replaced_and_kept() {
        let replaced = Template::replacing("Red is a red colour, not reddish; red", "red").unwrap();
        assert_eq!(replaced.to_string(), "[...] is a [...] colour, not reddish; [...]");
        assert!(Template::replacing("a house", "red").unwrap_err().to_string().contains("`red`"));
        let pattern = Regex::new("[A-Z]\\w+|of").unwrap();
        let kept = Template::keeping("the city of Paris, in France", &pattern).unwrap();
        assert_eq!(kept.to_string(), "[...] of Paris [...] France");
        assert!(Template::keeping("a house", &pattern).unwrap_err().to_string().contains("no word would stay"));
        assert!(Template::keeping("Paris", &pattern).unwrap_err().to_string().contains("no gap"));
    }

    #[test]
    fn given_words_stand_in_their_order_and_gaps_have_their_lengths() {
        let tokenizer = tokenizer();
        let ids = |text: &str| tokenizer.encode(text).unwrap().into_iter().map(Some).collect::<Vec<_>>();
        let end = vec![Some(tokenizer.eos_id().unwrap())];
        let expected = [ids("a large"), vec![None; 3], ids("house"), end.clone()].concat();
        assert_eq!(slots("a large [3] house", 0, 24).unwrap(), expected);
        // Of any length: as long as texts are that are long enough.
        let lengths: std::collections::BTreeSet<usize> =
            (0..60).map(|seed| slots("a large [...] house [...]", seed, 24).unwrap().len()).collect();
        assert_eq!(lengths, [6, 9, 12, 20].into());
        let capped = slots("a large [...] house [12]", 1, 17).unwrap();
        assert_eq!((capped.len(), &capped[..2]), (17, &ids("a large")[..]));
        assert!(slots("a large [30] house", 0, 24).unwrap_err().to_string().contains("at least 34 tokens"));
        assert!(slots("a \u{4e00}\u{4e01} [3] house", 0, 24).unwrap_err().to_string().contains("vocabulary"));
    }

    proptest! {
        #[test]
        fn marks_survive_writing(words in proptest::collection::vec("[a-z\\[]{1,4}", 1..5), gaps in proptest::collection::vec(proptest::option::of(1usize..9), 1..5)) {
            let parts = words.into_iter().map(Part::Given).zip(gaps.into_iter().map(Part::Gap)).flat_map(|(a, b)| [a, b]);
            let template = Template::new(parts).unwrap();
            prop_assert_eq!(template.to_string().parse::<Template>().unwrap(), template);
        }

        #[test]
        fn all_tokens_are_dealt_out(all in 0usize..50, gaps in 1usize..6, seed: u64) {
            let shares = shares(all, gaps, seed).unwrap();
            prop_assert_eq!((shares.len(), shares.iter().sum::<usize>()), (gaps, all));
        }

        #[test]
        fn as_many_words_are_hidden_as_asked_for(words in 2usize..30, share in 0.0..1.0f64, seed: u64) {
            let text = vec!["house"; words].join(" ");
            let (template, hidden) = Template::hiding(&text, share, seed, &tokenizer()).unwrap().unwrap();
            let expected = ((share * words as f64).round() as usize).clamp(1, words - 1);
            prop_assert_eq!(hidden.iter().map(|text| text.split(' ').count()).sum::<usize>(), expected);
            let gaps = template.parts().iter().filter(|part| matches!(part, Part::Gap(_))).count();
            prop_assert_eq!(gaps, hidden.len());
        }
    }
}
