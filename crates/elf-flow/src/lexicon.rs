//! Tokens that are read as whole words.

use elf_core::TokenDraw;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Words that a text may consist of, each as its tokens.
///
/// A network tells the tokens of a text apart: `p(w_1, .., w_S | z) = p_1(w_1) .. p_S(w_S)`. A word of several tokens is then put together of
/// pieces of different words as easily as of its own. A lexicon conditions that distribution on the text being a sequence of its words. The
/// likeliest such text, or one drawn exactly, is found in one sweep over the positions (dynamic programming over where words begin).
#[derive(Debug, Clone)]
pub struct Lexicon {
    /// Whether a token is a word of its own, `[V]`.
    alone: Vec<bool>,
    /// Words of several tokens, sorted.
    words: Vec<Vec<usize>>,
}

/// Log weights of what may stand from a position on.
struct Sweep {
    /// Of the texts from each position to the end, `[S + 1]`: their sum, or the largest.
    rest: Vec<f64>,
}

impl Lexicon {
    /// From the tokens of each word, ids below `vocab_size`; words may repeat.
    ///
    /// # Errors
    /// If there is no word, a word has no token, or an id is not in the vocabulary.
    pub fn new(words: impl IntoIterator<Item = Vec<i64>>, vocab_size: i64) -> Result<Self> {
        let refuse = |reason: String| Err(Error::setting("lexicon", reason));
        let mut alone = vec![false; usize::try_from(vocab_size).unwrap_or_default()];
        let mut several = Vec::new();
        for word in words {
            let Some(ids) = word.iter().map(|&id| usize::try_from(id).ok().filter(|&id| id < alone.len())).collect()
            else {
                return refuse(format!("{word:?} has a token outside of the vocabulary of {vocab_size}"));
            };
            let ids: Vec<usize> = ids;
            match ids[..] {
                [] => return refuse("a word has no tokens".to_owned()),
                [id] => alone[id] = true,
                _ => several.push(ids),
            }
        }
        several.sort_unstable();
        several.dedup();
        if several.is_empty() && !alone.contains(&true) {
            return refuse("it has no words".to_owned());
        }
        Ok(Self { alone, words: several })
    }

    /// The number of words.
    pub fn len(&self) -> usize {
        self.words.len() + self.alone.iter().filter(|&&alone| alone).count()
    }

    /// Whether there are no words; never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens for the rows of `logits` `[N S, V]`, of which each has S positions, i64 `[N S]` on their device: drawn as `how` says by `draws`
    /// `[N S]` in [0, 1), one for each word, or the likeliest without them. The first `skipped[n]` positions of row n are no part of its text
    /// and get the likeliest token.
    ///
    /// # Errors
    /// If a shape does not fit, or no text of the lexicon fits the positions.
    pub(crate) fn tokens(
        &self,
        logits: &Tensor,
        positions: usize,
        skipped: &[usize],
        drawn: Option<(&TokenDraw, &Tensor)>,
    ) -> Result<Tensor> {
        let drawn = drawn.filter(|(how, _)| !how.is_likeliest());
        let TokenDraw { temperature, top_p } = drawn.map_or_else(TokenDraw::default, |(how, _)| *how);
        let v = self.alone.len();
        let log_p = (logits.f_to_kind(Kind::Float)? / temperature).f_log_softmax(-1, Kind::Float)?;
        let host =
            |log_p: &Tensor| Ok::<_, Error>(Vec::<f32>::try_from(log_p.f_reshape([-1])?.f_to_device(Device::Cpu)?)?);
        let nucleus = if top_p < 1.0 { Some(host(&nucleus(&log_p, top_p)?)?) } else { None };
        let log_p = host(&log_p)?;
        let mut ids = Vec::<i64>::try_from(logits.f_argmax(-1, false)?)?;
        let draws = match drawn {
            Some((_, draws)) => Some(Vec::<f64>::try_from(draws.f_to_kind(Kind::Double)?.f_reshape([-1])?)?),
            None => None,
        };
        for (row, skip) in skipped.iter().enumerate() {
            let of = row * positions + skip..(row + 1) * positions;
            let draws = draws.as_ref().map(|draws| &draws[of.clone()]);
            let text = |log_p: &Vec<f32>| self.text(&log_p[of.start * v..of.end * v], draws);
            // Where no text is left among the likeliest tokens, all are drawn among.
            let Some(text) = nucleus.as_ref().and_then(text).or_else(|| text(&log_p)) else {
                return Err(Error::setting("lexicon", format!("no text of its words has {} tokens", of.len())));
            };
            ids[of].iter_mut().zip(text).for_each(|(id, token)| *id = token as i64);
        }
        Ok(Tensor::f_from_slice(&ids)?.f_to_device(logits.device())?)
    }

    /// The text for log-probabilities `[S, V]`: drawn by `draws` `[S]`, or the likeliest.
    fn text(&self, log_p: &[f32], draws: Option<&[f64]>) -> Option<Vec<usize>> {
        let positions = log_p.len() / self.alone.len();
        let sweep = self.sweep(log_p, positions, draws.is_none());
        if sweep.rest[0] == f64::NEG_INFINITY {
            return None;
        }
        let mut text = Vec::with_capacity(positions);
        while text.len() < positions {
            let at = text.len();
            match draws {
                None => {
                    let (_, word) = self.options(log_p, at, &sweep.rest).max_by(|a, b| a.0.total_cmp(&b.0))?;
                    text.extend(word.tokens());
                }
                Some(draws) => {
                    let mut left = draws[at];
                    let mut last = None;
                    for (weight, word) in self.options(log_p, at, &sweep.rest) {
                        let share = (weight - sweep.rest[at]).exp();
                        if share > 0.0 {
                            last = Some(word);
                        }
                        left -= share;
                        if left < 0.0 {
                            break;
                        }
                    }
                    // Rounding may leave a draw beyond the last word.
                    text.extend(last?.tokens());
                }
            }
        }
        Some(text)
    }

    fn sweep(&self, log_p: &[f32], positions: usize, largest: bool) -> Sweep {
        let mut rest = vec![0.0; positions + 1];
        for at in (0..positions).rev() {
            let max = self.options(log_p, at, &rest).map(|(weight, _)| weight).fold(f64::NEG_INFINITY, f64::max);
            rest[at] = if largest || max == f64::NEG_INFINITY {
                max
            } else {
                max + self.options(log_p, at, &rest).map(|(weight, _)| (weight - max).exp()).sum::<f64>().ln()
            };
        }
        Sweep { rest }
    }

    /// The words that may stand at a position, with the log weight of each together with all that may follow it.
    fn options<'l>(&'l self, log_p: &'l [f32], at: usize, rest: &'l [f64]) -> impl Iterator<Item = (f64, Word<'l>)> {
        let (v, positions) = (self.alone.len(), rest.len() - 1);
        let of = move |offset: usize, id: usize| f64::from(log_p[(at + offset) * v + id]);
        let alone = self.alone.iter().enumerate().filter(|(_, alone)| **alone);
        let alone = alone.map(move |(id, _)| (of(0, id) + rest[at + 1], Word::Alone(id)));
        let fitting = self.words.iter().filter(move |word| at + word.len() <= positions);
        let several = fitting.map(move |word| {
            let own: f64 = word.iter().enumerate().map(|(offset, &id)| of(offset, id)).sum();
            (own + rest[at + word.len()], Word::Several(word))
        });
        alone.chain(several)
    }
}

/// Log-probabilities `[N, V]` of the likeliest tokens that together have the probability `top_p`; of all others, minus infinity.
fn nucleus(log_p: &Tensor, top_p: f64) -> Result<Tensor> {
    let (sorted, order) = log_p.f_sort(-1, true)?;
    let p = sorted.f_exp()?;
    let beyond = p.f_cumsum(-1, Kind::Double)?.f_sub(&p)?.f_ge(top_p)?;
    Ok(log_p.f_scatter(-1, &order, &sorted.f_masked_fill(&beyond, f64::NEG_INFINITY)?)?)
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

    fn lexicon(words: &[Vec<i64>]) -> Lexicon {
        Lexicon::new(words.to_vec(), V as i64).unwrap()
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
        skipped: &[usize],
        drawn: Option<(&TokenDraw, &[f64])>,
    ) -> Result<Vec<i64>> {
        let positions = logits.len() / V / skipped.len();
        let logits = Tensor::from_slice(logits).view([-1, V as i64]);
        let draws = drawn.map(|(how, draws)| (how, Tensor::from_slice(draws)));
        let draws = draws.as_ref().map(|(how, draws)| (*how, draws));
        Ok(Vec::try_from(lexicon.tokens(&logits, positions, skipped, draws)?).unwrap())
    }

    proptest! {
        #[test]
        fn the_likeliest_text_of_the_words_is_read(words in words(), logits in proptest::collection::vec(-3f32..3.0, 4 * V)) {
            let possible = texts(&words, 4);
            let found = read(&lexicon(&words), &logits, &[0], None);
            let best = possible.iter().map(|text| log_p_of(&logits, 1.0, text)).fold(f64::NEG_INFINITY, f64::max);
            match found {
                Ok(found) => {
                    prop_assert!(possible.contains(&found), "{:?}", found);
                    prop_assert!((log_p_of(&logits, 1.0, &found) - best).abs() < 1e-5);
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
            let weights: Vec<f64> = possible.iter().map(|text| log_p_of(&logits, temperature, text).exp()).collect();
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
        // Positions that only a part of a word would fit.
        let word = Lexicon::new([vec![1, 3]], V as i64).unwrap();
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
        let message = |words: &[Vec<i64>]| Lexicon::new(words.to_vec(), V as i64).unwrap_err().to_string();
        assert!(message(&[]).contains("no words"));
        assert!(message(&[vec![0], vec![]]).contains("no tokens"));
        assert!(message(&[vec![0, 6]]).contains("outside of the vocabulary"));
        assert!(message(&[vec![-1]]).contains("outside of the vocabulary"));
        assert_eq!(lexicon(&[vec![0], vec![1, 3], vec![1, 3], vec![0]]).len(), 2);
    }
}
