//! Generative perplexity and unigram entropy of samples, from a judge's scores.
//!
//! A judge is a language model that is independent of the evaluated one (the ELF paper, arXiv 2605.10938, uses GPT-2
//! Large). Perplexity alone rewards text that repeats itself, so it is always reported together with entropy; see
//! [`crate::evaluation::CollapseWarning`].
//!
//! # How the numbers are computed
//! 1. Texts of white space only are skipped, and counted.
//! 2. The judge tokenises a text and cuts it to its maximum length. These ids give the
//!    **entropy**: natural-log unigram entropy per sample, averaged over samples.
//! 3. [`JudgeWindows`] closes shorter texts with one EOS and cuts the ids into windows of the
//!    judge's context size, scored independently. The first token of a window has no score.
//! 4. **Perplexity** of the corpus is the exponential of the mean negative log-likelihood over
//!    all counted tokens of all samples, so that long samples weigh more than short ones.
//!
//! Which tokens count matters only where the judge's EOS occurs *inside* a text. There the
//! released ELF code has a quirk: tokens between the first and the second EOS of a window count
//! twice, and a later window counts in full. [`GenerativePerplexity::as_released`] does the same
//! and gives the published numbers; [`GenerativePerplexity::up_to_first_eos`] stops at the first
//! EOS, as the method is described in words. Where no text contains EOS they agree.

use std::collections::HashMap;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A language model that scores texts.
pub trait Scorer {
    /// The id of the judge's end-of-sequence token.
    fn eos(&self) -> u32;

    /// Scores texts, none of them blank: one result per text, in order.
    ///
    /// # Errors
    /// The judge's own errors.
    fn score(
        &self,
        texts: &[String],
    ) -> std::result::Result<Vec<TokenScores>, Box<dyn std::error::Error + Send + Sync>>;

    /// Token ids of texts, none of them blank, cut to the judge's maximum length: one list per text, in order. The default
    /// scores the texts; a judge that can tokenise alone should override it.
    ///
    /// # Errors
    /// The judge's own errors.
    fn tokenize(
        &self,
        texts: &[String],
    ) -> std::result::Result<Vec<Vec<u32>>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.score(texts)?.into_iter().map(|scores| scores.ids).collect())
    }
}

/// A judge's tokens and scores of one text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// Token ids of the text, cut to the judge's maximum length, without any EOS added.
    pub ids: Vec<u32>,
    /// The windows in which these ids, possibly closed with EOS, were scored.
    pub windows: Vec<ScoredWindow>,
}

/// Tokens that were scored in one context.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ScoredWindow {
    /// Token ids, `[n]`.
    pub ids: Vec<u32>,
    /// `nll[i]` is the negative natural log-likelihood of `ids[i + 1]` given `ids[..=i]`, `[n - 1]`.
    pub nll: Vec<f64>,
}

/// Cuts a text's token ids into the windows that a judge scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JudgeWindows {
    max_length: usize,
    context_size: usize,
    eos: u32,
}

impl JudgeWindows {
    /// Windows of at most `context_size` tokens over at most `max_length` tokens.
    ///
    /// # Errors
    /// If `max_length` is 0 or `context_size` below 2, so that no token could be predicted.
    pub fn new(max_length: usize, context_size: usize, eos: u32) -> Result<Self> {
        if max_length == 0 {
            return Err(Error::Setting {
                name: "the judge's maximum length",
                value: max_length.to_string(),
                expected: "at least 1",
            });
        }
        if context_size < 2 {
            return Err(Error::Setting {
                name: "the judge's context size",
                value: context_size.to_string(),
                expected: "at least 2, because a token is predicted from the one before",
            });
        }
        Ok(Self { max_length, context_size, eos })
    }

    /// The ids that count as the text's own: those up to the maximum length.
    pub fn cut<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        &ids[..ids.len().min(self.max_length)]
    }

    /// The windows to score. A text shorter than the maximum length is closed with one EOS: the released code pads such
    /// texts with EOS and counts the first one, which scores the end of the text. Here this does not depend on the other
    /// texts of a batch. Windows of a single token, in which nothing is predicted, are left out.
    pub fn split(&self, ids: &[u32]) -> Vec<Vec<u32>> {
        let mut ids = self.cut(ids).to_vec();
        if ids.is_empty() {
            return Vec::new();
        }
        if ids.len() < self.max_length {
            ids.push(self.eos);
        }
        ids.chunks(self.context_size).filter(|w| w.len() > 1).map(<[u32]>::to_vec).collect()
    }
}

/// One sample's figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplePerplexity {
    /// Perplexity; `None` if no token of the sample counts.
    pub perplexity: Option<f64>,
    /// Unigram entropy in nats; `None` if the sample has no token.
    pub entropy: Option<f64>,
    /// Number of the sample's own tokens after cutting.
    pub tokens: usize,
    /// Sum of the negative log-likelihoods of the tokens that count, in nats.
    pub nll: f64,
    /// Number of counted tokens; a token that counts twice adds 2.
    pub weight: f64,
}

/// Generative perplexity and entropy of a set of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerativePerplexity {
    /// Perplexity over all counted tokens of all samples.
    pub perplexity: f64,
    /// Mean over samples of the unigram entropy in nats.
    pub entropy: f64,
    /// Mean number of judge tokens per sample that has any.
    pub mean_tokens: f64,
    /// Number of blank samples, which were skipped.
    pub skipped: usize,
    /// Figures per sample, in order; `None` for skipped samples.
    pub samples: Vec<Option<SamplePerplexity>>,
}

impl GenerativePerplexity {
    /// Lets a judge score the texts and aggregates as the released code does.
    ///
    /// # Errors
    /// If the judge fails, its results do not fit the texts, or no token can be scored.
    pub fn measure(judge: &dyn Scorer, texts: &[String]) -> Result<Self> {
        Self::as_released(&score_texts(judge, texts)?, judge.eos())
    }

    /// Aggregates scores as the released code does (see the module's description). `None` stands
    /// for a skipped sample.
    ///
    /// # Errors
    /// If scores are missing or not finite, or no token counts.
    pub fn as_released(scores: &[Option<TokenScores>], eos: u32) -> Result<Self> {
        aggregate(scores, |windows| windows.iter().map(|w| released_weights(&w.ids, eos)).collect())
    }

    /// Aggregates scores over tokens before and including the first EOS of a sample.
    ///
    /// # Errors
    /// If scores are missing or not finite, or no token counts.
    pub fn up_to_first_eos(scores: &[Option<TokenScores>], eos: u32) -> Result<Self> {
        aggregate(scores, |windows| {
            let mut ended = false;
            let mut weights = Vec::with_capacity(windows.len());
            for window in windows {
                let mut of_window = Vec::with_capacity(window.ids.len());
                for id in &window.ids {
                    of_window.push(u32::from(!ended));
                    ended |= *id == eos;
                }
                weights.push(of_window);
            }
            weights
        })
    }
}

/// Lets a judge score all texts that are not blank; `None` marks the blank ones.
///
/// # Errors
/// If there are no texts, the judge fails, or it returns another number of results.
pub fn score_texts(judge: &dyn Scorer, texts: &[String]) -> Result<Vec<Option<TokenScores>>> {
    if texts.is_empty() {
        return Err(Error::Nothing { what: "texts" });
    }
    let blank = |text: &String| text.trim().is_empty();
    let given: Vec<String> = texts.iter().filter(|t| !blank(t)).cloned().collect();
    let scored =
        if given.is_empty() { Vec::new() } else { judge.score(&given).map_err(|source| Error::Judge { source })? };
    if scored.len() != given.len() {
        return Err(Error::JudgeCount { expected: given.len(), got: scored.len() });
    }
    let mut scored = scored.into_iter();
    Ok(texts.iter().map(|t| if blank(t) { None } else { scored.next() }).collect())
}

/// Unigram entropy of a sequence in nats: 0 if one token makes up everything, `ln(n)` if all n
/// differ. None for an empty sequence.
pub fn unigram_entropy<T: Eq + Hash>(tokens: &[T]) -> Option<f64> {
    if tokens.is_empty() {
        return None;
    }
    let mut counts: HashMap<&T, usize> = HashMap::new();
    for token in tokens {
        *counts.entry(token).or_default() += 1;
    }
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable(); // sums must not depend on the map's order
    let n = tokens.len() as f64;
    let entropy: f64 = counts.into_iter().map(|c| c as f64 / n).map(|p| -p * p.ln()).sum();
    Some(entropy.max(0.0))
}

/// Weight of each token of a window in the released code: 1 for every token that is not EOS, plus
/// 1 for everything from the first EOS to before the second. So the first EOS counts once, what
/// follows it twice, and further EOS (padding) not at all.
fn released_weights(ids: &[u32], eos: u32) -> Vec<u32> {
    let mut seen = 0;
    ids.iter()
        .map(|id| {
            let is_eos = *id == eos;
            seen += usize::from(is_eos);
            u32::from(!is_eos) + u32::from(seen == 1)
        })
        .collect()
}

/// `weights` gives for each window the weight of each token.
fn aggregate(
    scores: &[Option<TokenScores>],
    weights: impl Fn(&[ScoredWindow]) -> Vec<Vec<u32>>,
) -> Result<GenerativePerplexity> {
    let (mut nll, mut weight) = (0.0, 0.0);
    let (mut entropy, mut tokens, mut with_tokens) = (0.0, 0, 0);
    let mut samples = Vec::with_capacity(scores.len());
    for (index, score) in scores.iter().enumerate() {
        let Some(score) = score else {
            samples.push(None);
            continue;
        };
        check(index, score)?;
        let (mut sample_nll, mut sample_weight) = (0.0, 0.0);
        for (window, weights) in score.windows.iter().zip(weights(&score.windows)) {
            for (value, weight) in window.nll.iter().zip(weights.iter().skip(1)) {
                sample_nll += value * f64::from(*weight);
                sample_weight += f64::from(*weight);
            }
        }
        nll += sample_nll;
        weight += sample_weight;
        let sample = SamplePerplexity {
            perplexity: (sample_weight > 0.0).then(|| (sample_nll / sample_weight).exp()),
            entropy: unigram_entropy(&score.ids),
            tokens: score.ids.len(),
            nll: sample_nll,
            weight: sample_weight,
        };
        if let Some(value) = sample.entropy {
            entropy += value;
            tokens += sample.tokens;
            with_tokens += 1;
        }
        samples.push(Some(sample));
    }
    let skipped = samples.iter().filter(|s| s.is_none()).count();
    if weight == 0.0 || with_tokens == 0 {
        return Err(Error::NothingScored { samples: samples.len(), empty: skipped });
    }
    Ok(GenerativePerplexity {
        perplexity: (nll / weight).exp(),
        entropy: entropy / f64::from(with_tokens),
        mean_tokens: tokens as f64 / f64::from(with_tokens),
        skipped,
        samples,
    })
}

fn check(sample: usize, score: &TokenScores) -> Result<()> {
    for (window, scored) in score.windows.iter().enumerate() {
        if scored.nll.len() + 1 != scored.ids.len() {
            return Err(Error::JudgeWindow { sample, window, ids: scored.ids.len(), nll: scored.nll.len() });
        }
        if let Some(at) = scored.nll.iter().position(|v| !v.is_finite()) {
            let (token, value) = (at + 1, scored.nll[at]);
            return Err(Error::JudgeNotFinite { sample, window, token, value });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOS: u32 = 0;

    /// Splits at spaces; a word's id is its length, EOS is written `.`; a token costs as many
    /// nats as its id, EOS costs 10.
    struct LengthJudge {
        windows: JudgeWindows,
    }

    impl LengthJudge {
        fn new(max_length: usize, context_size: usize) -> Self {
            Self { windows: JudgeWindows::new(max_length, context_size, EOS).unwrap() }
        }
    }

    impl Scorer for LengthJudge {
        fn eos(&self) -> u32 {
            EOS
        }

        fn score(
            &self,
            texts: &[String],
        ) -> std::result::Result<Vec<TokenScores>, Box<dyn std::error::Error + Send + Sync>> {
            let cost = |id: &u32| if *id == EOS { 10.0 } else { f64::from(*id) };
            Ok(texts
                .iter()
                .map(|text| {
                    let ids: Vec<u32> =
                        text.split_whitespace().map(|w| if w == "." { EOS } else { w.len() as u32 }).collect();
                    let windows = self
                        .windows
                        .split(&ids)
                        .into_iter()
                        .map(|ids| ScoredWindow { nll: ids[1..].iter().map(cost).collect(), ids })
                        .collect();
                    TokenScores { ids: self.windows.cut(&ids).to_vec(), windows }
                })
                .collect())
        }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn short_texts_are_closed_and_long_ones_cut() {
        let windows = JudgeWindows::new(5, 3, EOS).unwrap();
        assert_eq!(windows.split(&[1, 2]), [vec![1, 2, EOS]]);
        assert_eq!(windows.split(&[1, 2, 3]), [vec![1, 2, 3]]); // EOS alone in its window
        assert_eq!(windows.split(&[1, 2, 3, 4]), [vec![1, 2, 3], vec![4, EOS]]);
        assert_eq!(windows.split(&[1, 2, 3, 4, 5, 6]), [vec![1, 2, 3], vec![4, 5]]);
        assert!(windows.split(&[]).is_empty());
        assert!(JudgeWindows::new(0, 3, EOS).is_err());
        assert!(JudgeWindows::new(5, 1, EOS).is_err());
    }

    #[test]
    fn the_mean_is_over_tokens_not_over_samples() {
        let judge = LengthJudge::new(3, 3);
        let result = GenerativePerplexity::measure(&judge, &texts(&["a bb ccc", " \n", "a"])).unwrap();
        // First sample: 2 and 3 nats; third: the closing EOS, 10 nats.
        close(result.perplexity, 5.0_f64.exp());
        close(result.samples[0].unwrap().perplexity.unwrap(), 2.5_f64.exp());
        close(result.samples[2].unwrap().perplexity.unwrap(), 10.0_f64.exp());
        assert_eq!(result.skipped, 1);
        assert_eq!(result.samples[1], None);
        close(result.entropy, 3.0_f64.ln() / 2.0); // three different tokens; one token
        close(result.mean_tokens, 2.0);
    }

    #[test]
    fn an_eos_inside_a_text() {
        let judge = LengthJudge::new(6, 4);
        let texts = texts(&["a bb . cc ddd eeee"]);
        let scores = score_texts(&judge, &texts).unwrap();
        // Windows: a bb EOS cc | ddd eeee. Counted: bb (2), EOS (10), cc twice, eeee (4).
        let released = GenerativePerplexity::as_released(&scores, EOS).unwrap();
        close(released.perplexity, (20.0_f64 / 5.0).exp());
        let strict = GenerativePerplexity::up_to_first_eos(&scores, EOS).unwrap();
        close(strict.perplexity, (12.0_f64 / 2.0).exp());
        // Entropy is over all six tokens either way: 1, 2 (twice), 0, 3, 4.
        let entropy = -(4.0 / 6.0 * (1.0_f64 / 6.0).ln() + 2.0 / 6.0 * (2.0_f64 / 6.0).ln());
        close(released.entropy, entropy);
        close(strict.entropy, entropy);
    }

    #[test]
    fn padding_eos_counts_once() {
        assert_eq!(released_weights(&[5, 0, 0, 0], EOS), [1, 1, 0, 0]);
        assert_eq!(released_weights(&[5, 0, 7, 7, 0, 7], EOS), [1, 1, 2, 2, 0, 1]);
    }

    #[test]
    fn a_judge_that_misbehaves_is_named() {
        struct Broken(Vec<TokenScores>);
        impl Scorer for Broken {
            fn eos(&self) -> u32 {
                EOS
            }
            fn score(
                &self,
                _: &[String],
            ) -> std::result::Result<Vec<TokenScores>, Box<dyn std::error::Error + Send + Sync>> {
                if self.0.is_empty() { Err("out of memory".into()) } else { Ok(self.0.clone()) }
            }
        }
        let with =
            |nll: Vec<f64>| TokenScores { ids: vec![1, 2], windows: vec![ScoredWindow { ids: vec![1, 2], nll }] };
        for (scores, message) in [
            (vec![], "out of memory"),
            (vec![with(vec![1.0]); 2], "returned 2 results for 1 texts"),
            (vec![with(vec![])], "2 token ids and 0 scores"),
            (vec![with(vec![f64::NAN])], "token 1 in window 0 of sample 0 is NaN"),
        ] {
            let error = GenerativePerplexity::measure(&Broken(scores), &texts(&["x"])).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn blank_samples_alone_have_no_perplexity() {
        let judge = LengthJudge::new(3, 3);
        let error = GenerativePerplexity::measure(&judge, &texts(&["", " "])).unwrap_err();
        assert!(error.to_string().contains("none of the 2 samples"), "{error}");
        assert!(GenerativePerplexity::measure(&judge, &[]).is_err());
    }
}
