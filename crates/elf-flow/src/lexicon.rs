//! Tokens that are read as whole words.

use std::collections::BTreeMap;
use std::ops::Range;

use elf_core::TokenDraw;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Words that a text may consist of, each as its tokens.
///
/// A network tells the tokens of a text apart: `p(w_1, .., w_S | z) = p_1(w_1) .. p_S(w_S)`. A word of several tokens is then put together of
/// pieces of different words as easily as of its own. A lexicon conditions that distribution on the text being a sequence of its words. The
/// likeliest such text, or one drawn exactly, is found in one sweep over the positions (dynamic programming over where words begin).
///
/// Each word also has a weight, the square root of `P(w) / (P(w_1) .. P(w_k))`: its share of the counted tokens over the shares of its own tokens.
/// By Bayes' rule the ratio itself would be right if the network predicted each token from that token's latent alone. It also uses the context,
/// which holds part of the same information, so that only the root is taken.
#[derive(Debug, Clone)]
pub struct Lexicon {
    /// The log weight of each token as a word of its own, minus infinity if it is none, `[V]`.
    alone: Vec<f64>,
    /// Words of several tokens with their log weights.
    words: Vec<(Vec<usize>, f64)>,
}

/// The power of the weights of words. 0.35, 0.5, 0.7 were about equally good, 0 and 1 worse (docs/log.md, 2026-11-30).
const WEIGHT: f64 = 0.5;

/// What a network says of the tokens of one text.
#[derive(Clone, Copy)]
struct Tokens<'t> {
    /// Log-probabilities, `[S, V]`.
    log_p: &'t [f32],
    /// What the weights of words are multiplied by, as the logits were.
    per_temperature: f64,
    /// A draw for each position, `[S]`; none for the likeliest.
    draws: Option<&'t [f64]>,
}

impl Lexicon {
    /// From the tokens of each word, ids below `vocab_size`, and how often it was counted.
    ///
    /// # Errors
    /// If there is no word, a word has no token or was counted less than once, or an id is not in the vocabulary.
    pub fn new(words: impl IntoIterator<Item = (Vec<i64>, u64)>, vocab_size: i64) -> Result<Self> {
        let refuse = |reason: String| Err(Error::setting("lexicon", reason));
        let v = usize::try_from(vocab_size).unwrap_or_default();
        let mut counts: BTreeMap<Vec<usize>, f64> = BTreeMap::new();
        for (word, count) in words {
            let ids: Option<Vec<usize>> =
                word.iter().map(|&id| usize::try_from(id).ok().filter(|&id| id < v)).collect();
            match ids {
                Some(ids) if !ids.is_empty() && count > 0 => *counts.entry(ids).or_default() += count as f64,
                Some(_) => return refuse(format!("the word {word:?} has no tokens, or was never counted")),
                None => return refuse(format!("{word:?} has a token outside of the vocabulary of {vocab_size}")),
            }
        }
        if counts.is_empty() {
            return refuse("it has no words".to_owned());
        }
        let mut of_token = vec![0.0; v];
        counts.iter().for_each(|(word, count)| word.iter().for_each(|&id| of_token[id] += count));
        let all: f64 = of_token.iter().sum();
        let weight = |word: &[usize], count: f64| {
            WEIGHT * ((count / all).ln() - word.iter().map(|&id| (of_token[id] / all).ln()).sum::<f64>())
        };
        let mut alone = vec![f64::NEG_INFINITY; v];
        let mut several = Vec::new();
        for (word, count) in counts {
            let weight = weight(&word, count);
            match word[..] {
                [id] => alone[id] = weight,
                _ => several.push((word, weight)),
            }
        }
        Ok(Self { alone, words: several })
    }

    /// The number of words.
    pub fn len(&self) -> usize {
        self.words.len() + self.alone.iter().filter(|weight| weight.is_finite()).count()
    }

    /// Whether there are no words; never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens for the rows of `logits` `[N S, V]`, of which each has S positions, i64 `[N S]` on their device: drawn as `how` says by `draws`
    /// `[N S]` in [0, 1), one for each word, or the likeliest without them. Positions that are `skipped` `[N S]` get the likeliest token, and
    /// each run of others is a text of its own.
    ///
    /// # Errors
    /// If a shape does not fit, or no text of the lexicon fits the positions.
    pub(crate) fn tokens(
        &self,
        logits: &Tensor,
        positions: usize,
        skipped: &[bool],
        drawn: Option<(&TokenDraw, &Tensor)>,
    ) -> Result<Tensor> {
        let drawn = drawn.filter(|(how, _)| !how.is_likeliest());
        let how = drawn.map_or_else(TokenDraw::default, |(how, _)| *how);
        let temperature = how.temperature;
        let v = self.alone.len();
        let log_p = (logits.f_to_kind(Kind::Float)? / temperature).f_log_softmax(-1, Kind::Float)?;
        let host =
            |log_p: &Tensor| Ok::<_, Error>(Vec::<f32>::try_from(log_p.f_reshape([-1])?.f_to_device(Device::Cpu)?)?);
        let nucleus = if how.top_p < 1.0 { Some(host(&nucleus(&log_p, &how)?)?) } else { None };
        let log_p = host(&log_p)?;
        let mut ids = Vec::<i64>::try_from(logits.f_argmax(-1, false)?)?;
        let draws = match drawn {
            Some((_, draws)) => Some(Vec::<f64>::try_from(draws.f_to_kind(Kind::Double)?.f_reshape([-1])?)?),
            None => None,
        };
        for of in runs(skipped, positions) {
            let draws = draws.as_ref().map(|draws| &draws[of.clone()]);
            let text = |log_p: &Vec<f32>| {
                let log_p = &log_p[of.start * v..of.end * v];
                self.text(Tokens { log_p, per_temperature: temperature.recip(), draws })
            };
            // Where no text is left among the likeliest tokens, all are drawn among.
            let Some(text) = nucleus.as_ref().and_then(text).or_else(|| text(&log_p)) else {
                return Err(Error::setting("lexicon", format!("no text of its words has {} tokens", of.len())));
            };
            ids[of].iter_mut().zip(text).for_each(|(id, token)| *id = token as i64);
        }
        Ok(Tensor::f_from_slice(&ids)?.f_to_device(logits.device())?)
    }

    /// The text that is drawn, or the likeliest.
    fn text(&self, tokens: Tokens) -> Option<Vec<usize>> {
        let rest = self.rest(tokens);
        let positions = rest.len() - 1;
        if rest[0] == f64::NEG_INFINITY {
            return None;
        }
        let mut text = Vec::with_capacity(positions);
        while text.len() < positions {
            let at = text.len();
            let mut options = self.options(tokens, at, &rest);
            let word = match tokens.draws {
                None => options.max_by(|a, b| a.0.total_cmp(&b.0))?.1,
                Some(draws) => {
                    let mut left = draws[at];
                    let mut last = None;
                    // Rounding may leave a draw beyond the last word.
                    let within = options.find_map(|(weight, word)| {
                        let share = (weight - rest[at]).exp();
                        last = if share > 0.0 { Some(word) } else { last };
                        left -= share;
                        (left < 0.0).then_some(word)
                    });
                    within.or(last)?
                }
            };
            text.extend(word.tokens());
        }
        Some(text)
    }

    /// Log weights of the texts from each position to the end, `[S + 1]`: their sum if one is drawn, else the largest.
    fn rest(&self, tokens: Tokens) -> Vec<f64> {
        let positions = tokens.log_p.len() / self.alone.len();
        let mut rest = vec![0.0; positions + 1];
        for at in (0..positions).rev() {
            let weights: Vec<f64> = self.options(tokens, at, &rest).map(|(weight, _)| weight).collect();
            let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let drawn = tokens.draws.is_some() && max.is_finite();
            let sum = || weights.iter().map(|weight| (weight - max).exp()).sum::<f64>();
            rest[at] = if drawn { max + sum().ln() } else { max };
        }
        rest
    }

    /// The words that may stand at a position, with the log weight of each together with all that may follow it.
    fn options<'l>(&'l self, tokens: Tokens<'l>, at: usize, rest: &'l [f64]) -> impl Iterator<Item = (f64, Word<'l>)> {
        let (v, positions) = (self.alone.len(), rest.len() - 1);
        let Tokens { log_p, per_temperature, .. } = tokens;
        let of = move |offset: usize, id: usize| f64::from(log_p[(at + offset) * v + id]);
        let alone = self.alone.iter().enumerate().filter(|(_, weight)| weight.is_finite());
        let alone =
            alone.map(move |(id, weight)| (of(0, id) + weight * per_temperature + rest[at + 1], Word::Alone(id)));
        let fitting = self.words.iter().filter(move |(word, _)| at + word.len() <= positions);
        let several = fitting.map(move |(word, weight)| {
            let own: f64 = word.iter().enumerate().map(|(offset, &id)| of(offset, id)).sum();
            (own + weight * per_temperature + rest[at + word.len()], Word::Several(word))
        });
        alone.chain(several)
    }
}

/// The runs of positions that are not skipped, each within one row of `positions`.
fn runs(skipped: &[bool], positions: usize) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    for (row, skipped) in skipped.chunks(positions.max(1)).enumerate() {
        let mut at = row * positions;
        for run in skipped.chunk_by(|one, next| one == next) {
            if !run[0] {
                runs.push(at..at + run.len());
            }
            at += run.len();
        }
    }
    runs
}

/// Log-probabilities `[N, V]` of the tokens that are drawn among; of all others, minus infinity.
fn nucleus(log_p: &Tensor, how: &TokenDraw) -> Result<Tensor> {
    let (p, tokens) = how.nucleus(&log_p.f_exp()?)?;
    Ok(log_p.f_scatter(-1, &tokens, &p.f_log()?)?)
}

/// A word of a lexicon.
#[derive(Clone, Copy)]
enum Word<'l> {
    Alone(usize),
    Several(&'l [usize]),
}

impl<'l> Word<'l> {
    fn tokens(self) -> impl Iterator<Item = usize> + use<'l> {
        let (first, others) = match self {
            Word::Alone(id) => (id, &[][..]),
            Word::Several(word) => (word[0], &word[1..]),
        };
        std::iter::once(first).chain(others.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V: usize = 6;

    /// All texts of `positions` tokens that are sequences of the words.
    fn texts(words: &[Vec<i64>], positions: usize) -> Vec<Vec<i64>> {
        if positions == 0 {
            return vec![Vec::new()];
        }
        let fitting = words.iter().filter(|word| word.len() <= positions);
        let mut all: Vec<Vec<i64>> = fitting
            .flat_map(|word| texts(words, positions - word.len()).into_iter().map(|rest| [&word[..], &rest].concat()))
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// The words, the first counted once, the second twice and so on.
    fn lexicon(words: &[Vec<i64>]) -> Lexicon {
        Lexicon::new(words.iter().cloned().zip(1..), V as i64).unwrap()
    }

    /// The log weight of the words that a text consists of.
    fn weight_of(words: &[Vec<i64>], text: &[i64]) -> f64 {
        let of_token = |id: i64| -> f64 {
            words
                .iter()
                .zip(1..)
                .map(|(word, n)| f64::from(n) * word.iter().filter(|&&own| own == id).count() as f64)
                .sum()
        };
        let all: f64 = (0..V as i64).map(of_token).sum();
        let parts = text.chunk_by(|_, next| *next >= 3);
        parts
            .map(|part| {
                let count = words.iter().position(|word| word == part).unwrap() as f64 + 1.0;
                let apart: f64 = part.iter().map(|&id| (of_token(id) / all).ln()).sum();
                0.5 * ((count / all).ln() - apart)
            })
            .sum()
    }

    /// Words that do not begin as others do: a text is then a sequence of words in one way only.
    fn words() -> impl Strategy<Value = Vec<Vec<i64>>> {
        let tail = proptest::collection::vec(3i64..6, 0..3);
        proptest::collection::btree_set((0i64..3, tail), 1..8)
            .prop_map(|words| words.into_iter().map(|(first, tail)| [vec![first], tail].concat()).collect())
    }

    fn log_p_of(logits: &[f32], temperature: f64, text: &[i64]) -> f64 {
        let rows = logits.chunks(V).zip(text);
        rows.map(|(row, &id)| {
            let scaled: Vec<f64> = row.iter().map(|x| f64::from(*x) / temperature).collect();
            scaled[id as usize] - scaled.iter().map(|x| x.exp()).sum::<f64>().ln()
        })
        .sum()
    }

    fn read(
        lexicon: &Lexicon,
        logits: &[f32],
        before: &[usize],
        drawn: Option<(&TokenDraw, &[f64])>,
    ) -> Result<Vec<i64>> {
        let positions = logits.len() / V / before.len();
        let skipped: Vec<bool> = before.iter().flat_map(|&n| (0..positions).map(move |place| place < n)).collect();
        let logits = Tensor::from_slice(logits).view([-1, V as i64]);
        let draws = drawn.map(|(how, draws)| (how, Tensor::from_slice(draws)));
        let draws = draws.as_ref().map(|(how, draws)| (*how, draws));
        Ok(Vec::try_from(lexicon.tokens(&logits, positions, &skipped, draws)?).unwrap())
    }

    proptest! {
        #[test]
        fn the_likeliest_text_of_the_words_is_read(words in words(), logits in proptest::collection::vec(-3f32..3.0, 4 * V)) {
            let possible = texts(&words, 4);
            let found = read(&lexicon(&words), &logits, &[0], None);
            let of = |text: &Vec<i64>| log_p_of(&logits, 1.0, text) + weight_of(&words, text);
            let best = possible.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
            match found {
                Ok(found) => {
                    prop_assert!(possible.contains(&found), "{:?}", found);
                    prop_assert!((of(&found) - best).abs() < 1e-5);
                }
                Err(error) => prop_assert!(possible.is_empty() && error.to_string().contains("4 tokens")),
            }
        }

        /// Over even draws, each text comes as often as it is likely among all texts of the words.
        #[test]
        fn texts_are_drawn_from_what_the_words_leave_possible(
            words in words(), logits in proptest::collection::vec(-1.5f32..1.5, 2 * V), temperature in 0.5f64..2.0,
        ) {
            let possible = texts(&words, 2);
            prop_assume!(!possible.is_empty());
            let (lexicon, how) = (lexicon(&words), TokenDraw { temperature, top_p: 1.0 });
            const N: usize = 40;
            let mut counts = vec![0usize; possible.len()];
            for (i, j) in (0..N).flat_map(|i| (0..N).map(move |j| (i, j))) {
                let draws = [i, j].map(|place| (place as f64 + 0.5) / N as f64);
                let found = read(&lexicon, &logits, &[0], Some((&how, &draws))).unwrap();
                counts[possible.iter().position(|text| *text == found).unwrap()] += 1;
            }
            let weight = |text: &Vec<i64>| (log_p_of(&logits, temperature, text) + weight_of(&words, text) / temperature).exp();
            let weights: Vec<f64> = possible.iter().map(weight).collect();
            let all: f64 = weights.iter().sum();
            for (weight, count) in weights.iter().zip(counts) {
                let (expected, found) = (weight / all, count as f64 / (N * N) as f64);
                prop_assert!((expected - found).abs() < 2.5 / N as f64, "{}: {}", expected, found);
            }
        }
    }

    #[test]
    fn rows_are_read_by_themselves_and_after_their_condition() {
        let lexicon = lexicon(&[vec![0], vec![1, 3]]);
        // The likeliest tokens are 2 and 5, which no word has.
        let row = |one: f32, three: f32| [0.0, one, 9.0, three, 0.0, 10.0];
        let logits =
            [row(0.0, 0.0), row(5.0, 0.0), row(0.0, 5.0), row(-1.0, 0.0), row(-5.0, 0.0), row(0.0, -5.0)].concat();
        assert_eq!(read(&lexicon, &logits, &[1, 0], None).unwrap(), [5, 1, 3, 0, 0, 0]);
        assert_eq!(read(&lexicon, &logits, &[3, 3], None).unwrap(), [5; 6]);
        // Around a position that is given.
        let tensor = Tensor::from_slice(&logits).view([-1, V as i64]);
        let skipped = [false, true, false, false, true, true];
        assert_eq!(
            Vec::<i64>::try_from(lexicon.tokens(&tensor, 6, &skipped, None).unwrap()).unwrap(),
            [0, 5, 1, 3, 5, 5]
        );
        assert_eq!(runs(&skipped, 6), [0..1, 2..4]);
        assert_eq!(runs(&[false; 4], 2), [0..2, 2..4]);
        // Positions that only a part of a word would fit.
        let word = Lexicon::new([(vec![1, 3], 1)], V as i64).unwrap();
        assert!(read(&word, &logits, &[0, 0], None).unwrap_err().to_string().contains("3 tokens"));
    }

    /// The likeliest tokens are drawn among if they leave a text, and all if they do not.
    #[test]
    fn a_nucleus_holds_as_far_as_words_allow() {
        let (words, logits) = (lexicon(&[vec![0], vec![1], vec![2]]), [2.0f32, 1.9, 0.0, 0.0, 0.0, 0.0]);
        let drawn = |words: &Lexicon, logits: &[f32], top_p: f64| -> std::collections::BTreeSet<i64> {
            let how = TokenDraw { temperature: 1.0, top_p };
            (0..50).map(|i| read(words, logits, &[0], Some((&how, &[f64::from(i) / 50.0]))).unwrap()[0]).collect()
        };
        assert_eq!(drawn(&words, &logits, 0.5), [0, 1].into());
        assert_eq!(drawn(&words, &logits, 1.0), [0, 1, 2].into());
        assert_eq!(drawn(&words, &[0.0, 0.0, 0.0, 9.0, 0.0, 0.0], 0.5), [0, 1, 2].into());
    }

    #[test]
    fn what_is_no_lexicon_is_refused() {
        let counted =
            |words: &[Vec<i64>], count| Lexicon::new(words.iter().map(|word| (word.clone(), count)), V as i64);
        let message = |words: &[Vec<i64>]| counted(words, 1).unwrap_err().to_string();
        assert!(message(&[]).contains("no words"));
        assert!(message(&[vec![0], vec![]]).contains("no tokens"));
        assert!(message(&[vec![0, 6]]).contains("outside of the vocabulary"));
        assert!(message(&[vec![-1]]).contains("outside of the vocabulary"));
        assert!(counted(&[vec![0]], 0).unwrap_err().to_string().contains("never counted"));
        assert_eq!(lexicon(&[vec![0], vec![1, 3], vec![1, 3], vec![0]]).len(), 2);
    }
}
