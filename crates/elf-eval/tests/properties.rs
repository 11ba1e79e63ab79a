//! Laws that hold for any text.

use elf_eval::bleu::Bleu;
use elf_eval::diversity::{distinct, repetition};
use elf_eval::evaluation::Collapse;
use elf_eval::novelty::CopyIndex;
use elf_eval::perplexity::{GenerativePerplexity, ScoredWindow, TokenScores, unigram_entropy};
use elf_eval::rouge;
use elf_eval::stats::Bootstrap;
use proptest::collection::vec;
use proptest::prelude::*;

/// Few words, so that texts have something in common.
fn sentence() -> impl Strategy<Value = String> {
    vec("[a-d]{1,2}|[.,]|3\\.5|Running|run", 0..12).prop_map(|words| words.join(" "))
}

fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
    vec((sentence(), sentence()), 1..8)
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    vec(0u32..6, 0..30)
}

/// The longest run that occurs in a document, by trying all.
fn longest_run_by_trial(documents: &[Vec<u32>], sample: &[u32]) -> usize {
    (1..=sample.len())
        .rev()
        .find(|n| sample.windows(*n).any(|run| documents.iter().any(|d| d.windows(*n).any(|w| w == run))))
        .unwrap_or(0)
}

fn scores(samples: &[Vec<(u32, f64)>]) -> Vec<Option<TokenScores>> {
    samples
        .iter()
        .map(|tokens| {
            let ids: Vec<u32> = tokens.iter().map(|t| t.0).collect();
            let nll = tokens.iter().skip(1).map(|t| t.1).collect();
            Some(TokenScores { ids: ids.clone(), windows: vec![ScoredWindow { ids, nll }] })
        })
        .collect()
}

proptest! {
    #[test]
    fn bleu_of_identical_texts_is_100(texts in vec(sentence(), 1..8)) {
        let score = Bleu::lowercase_effective().corpus(&texts, &texts).unwrap();
        let expected = if score.counts.hypothesis_len == 0 { 0.0 } else { 100.0 };
        prop_assert!((score.score - expected).abs() < 1e-9, "{score:?}");
    }

    #[test]
    fn bleu_is_bounded_and_does_not_depend_on_the_order_of_pairs(pairs in pairs(), turn in 0usize..8) {
        let corpus = |pairs: &[(String, String)]| {
            let (h, r): (Vec<_>, Vec<_>) = pairs.iter().cloned().unzip();
            Bleu::lowercase_effective().corpus(&h, &r).unwrap()
        };
        let score = corpus(&pairs);
        prop_assert!((0.0..=100.0 + 1e-9).contains(&score.score));
        for n in 0..4 {
            prop_assert!(score.counts.matches[n] <= score.counts.totals[n]);
        }
        let mut turned = pairs.clone();
        turned.rotate_left(turn % pairs.len());
        prop_assert_eq!(corpus(&turned), score);
    }

    #[test]
    fn rouge_is_symmetric_in_f1_and_swaps_precision_and_recall(a in sentence(), b in sentence()) {
        let (there, back) = (rouge::score(&a, &b), rouge::score(&b, &a));
        for (x, y) in [(there.rouge1, back.rouge1), (there.rouge2, back.rouge2), (there.rouge_l, back.rouge_l)] {
            prop_assert!((x.f1 - y.f1).abs() < 1e-12);
            prop_assert_eq!((x.precision, x.recall), (y.recall, y.precision));
            prop_assert!((0.0..=1.0).contains(&x.f1));
            prop_assert!(x.f1 <= x.precision.max(x.recall) + 1e-12);
        }
        prop_assert!(there.rouge_l.f1 <= there.rouge1.f1 + 1e-12); // a subsequence is shared words
    }

    #[test]
    fn mean_rouge_lies_between_0_and_100(pairs in pairs()) {
        let (p, r): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let mean = rouge::mean(&rouge::score_pairs(&p, &r).unwrap());
        for value in [mean.rouge1, mean.rouge2, mean.rouge_l] {
            prop_assert!((0.0..=100.0 + 1e-9).contains(&value));
        }
        let same = rouge::score_pairs(&p, &p).unwrap();
        for (text, score) in p.iter().zip(same) {
            let expected = if rouge::tokenize(text).is_empty() { 0.0 } else { 1.0 };
            prop_assert_eq!(score.rouge1.f1, expected);
            prop_assert_eq!(score.rouge_l.f1, expected);
        }
    }

    #[test]
    fn entropy_is_bounded_and_does_not_depend_on_order(ids in ids()) {
        let entropy = unigram_entropy(&ids);
        prop_assert_eq!(entropy.is_none(), ids.is_empty());
        if let Some(entropy) = entropy {
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            prop_assert_eq!(unigram_entropy(&sorted), Some(entropy));
            sorted.dedup();
            prop_assert!(entropy >= 0.0 && entropy <= (sorted.len() as f64).ln() + 1e-12);
        }
    }

    #[test]
    fn perplexity_lies_between_the_extremes_and_both_rules_agree_without_eos(
        samples in vec(vec((1u32..5, 0.0..9.0f64), 2..10), 1..6)
    ) {
        let scores = scores(&samples);
        let result = GenerativePerplexity::as_released(&scores, 0).unwrap();
        let each: Vec<f64> = result.samples.iter().map(|s| s.unwrap().perplexity.unwrap()).collect();
        let (low, high) = each.iter().fold((f64::MAX, 0.0f64), |(l, h), p| (l.min(*p), h.max(*p)));
        prop_assert!(low * (1.0 - 1e-12) <= result.perplexity && result.perplexity <= high * (1.0 + 1e-12));
        prop_assert_eq!(GenerativePerplexity::up_to_first_eos(&scores, 0).unwrap(), result);
    }

    #[test]
    fn distinct_and_repetition_are_shares(samples in vec(ids(), 1..6), n in 1usize..6) {
        if let Some(share) = distinct(&samples, n) {
            prop_assert!(share > 0.0 && share <= 1.0);
            let mut doubled = samples.clone();
            doubled.extend(samples.iter().cloned());
            prop_assert!((distinct(&doubled, n).unwrap() - share / 2.0).abs() < 1e-12);
        }
        let repeated = repetition(&samples, n).unwrap();
        prop_assert!((0.0..=1.0).contains(&repeated));
        prop_assert!(repeated >= repetition(&samples, n + 1).unwrap()); // a repeated (n+1)-gram repeats an n-gram
    }

    #[test]
    fn the_copy_index_finds_what_trying_all_runs_finds(documents in vec(ids(), 0..6), sample in ids()) {
        let index = CopyIndex::new(documents.clone(), 10_000);
        prop_assert_eq!(index.longest_run(&sample), longest_run_by_trial(&documents, &sample));
        prop_assert_eq!(index.is_copy(&sample), documents.contains(&sample));
        for document in &documents {
            prop_assert!(index.is_copy(document));
        }
    }

    #[test]
    fn the_interval_of_symmetric_values_holds_their_mean_and_shrinks_with_their_number(
        half in vec(0.1..9.0f64, 4..12), centre in -5.0..5.0f64, seed in any::<u64>()
    ) {
        let values: Vec<f64> = half.iter().flat_map(|v| [centre - v, centre + v]).collect();
        let bootstrap = Bootstrap { resamples: 400, seed, ..Bootstrap::default() };
        let few = bootstrap.mean(&values).unwrap();
        prop_assert!(few.low < centre && centre < few.high, "{few:?} without {centre}");
        // Sixteen times as many of the same: a quarter of the width.
        let many = bootstrap.mean(&values.repeat(16)).unwrap();
        let shrunk = (many.high - many.low) / (few.high - few.low);
        prop_assert!((0.15..0.4).contains(&shrunk), "{shrunk}");
        let surer = Bootstrap { confidence: 0.99, ..bootstrap }.mean(&values).unwrap();
        prop_assert!(surer.low <= few.low && few.high <= surer.high);
    }

    #[test]
    fn one_file_is_the_mean_over_one_file_and_equal_files_change_nothing(
        values in vec(-9.0..9.0f64, 1..20), other in vec(-9.0..9.0f64, 1..20), seed in any::<u64>()
    ) {
        let bootstrap = Bootstrap { resamples: 50, seed, ..Bootstrap::default() };
        let mean = |drawn: &[&f64]| drawn.iter().copied().sum::<f64>() / drawn.len() as f64;
        let one = bootstrap.mean(&values).unwrap();
        let thrice = bootstrap.mean_over_files(&[&values, &values, &values], mean).unwrap();
        prop_assert!((one.low - thrice.low).abs() < 1e-9 && (one.high - thrice.high).abs() < 1e-9);
        let both = bootstrap.mean_over_files(&[&values, &other], mean).unwrap();
        prop_assert!(both.low <= both.high && both.low >= -9.0 && both.high <= 9.0);
    }

    #[test]
    fn collapse_depends_on_the_ratio_of_entropies_alone(
        data in 0.01..9.0f64, ratio in 0.0..1.5f64, perplexity in 1.0..1e4f64
    ) {
        prop_assume!((ratio - 0.95).abs() > 1e-9);
        let verdict = Collapse::judge(ratio * data, perplexity, data, "references").unwrap();
        prop_assert_eq!(verdict.collapsed, ratio < 0.95);
        prop_assert_eq!(verdict.sentence.starts_with("Collapsed"), verdict.collapsed);
    }
}
