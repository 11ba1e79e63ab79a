//! Evaluations against numbers computed by hand.

use std::error::Error;

use elf_eval::evaluation::{Evaluation, Evaluator, Judge, SampleSet, name};
use elf_eval::jsonl::FilledGap;
use elf_eval::perplexity::{JudgeWindows, ScoredWindow, Scorer, TokenScores};
use elf_eval::stats::Bootstrap;

/// A word's id and cost in nats is its length; texts are closed with an EOS that costs 1.
struct LengthJudge;

impl Scorer for LengthJudge {
    fn eos(&self) -> u32 {
        1000
    }

    fn score(&self, texts: &[String]) -> Result<Vec<TokenScores>, Box<dyn Error + Send + Sync>> {
        let windows = JudgeWindows::new(100, 100, self.eos())?;
        let cost = |id: &u32| if *id == 1000 { 1.0 } else { f64::from(*id) };
        Ok(texts
            .iter()
            .map(|text| {
                let ids: Vec<u32> = text.split_whitespace().map(|w| w.len() as u32).collect();
                let split = windows.split(&ids).into_iter();
                let windows = split.map(|ids| ScoredWindow { nll: ids[1..].iter().map(cost).collect(), ids }).collect();
                TokenScores { ids, windows }
            })
            .collect())
    }
}

const JUDGE: Judge = Judge { name: "length", scorer: &LengthJudge };

fn set(texts: &[&str]) -> SampleSet {
    SampleSet { name: "s".into(), texts: texts.iter().map(|t| (*t).to_owned()).collect(), ..SampleSet::default() }
}

#[test]
fn gaps_are_compared_with_what_they_hide() {
    let gap = |filled: &str, hidden: &str| FilledGap { filled: filled.into(), hidden: hidden.into() };
    let gaps = vec![gap("The red house", "a red house"), gap("small", "large old"), gap("of", "of")];
    let filled = SampleSet { gaps, ..set(&["x y"]) };
    let found = Evaluator::default().evaluate("gaps", std::slice::from_ref(&filled)).unwrap();
    // Three of six words.
    assert!((found.get(name::GAP_WORDS).unwrap().value - 0.5).abs() < 1e-12);
    let all_right = SampleSet { gaps: vec![gap("of the", "Of the")], ..set(&["x"]) };
    let right = Evaluator::default().evaluate("gaps", std::slice::from_ref(&all_right)).unwrap();
    assert_eq!([name::GAP_WORDS, name::GAP_BLEU].map(|name| right.get(name).unwrap().value.round()), [1.0, 100.0]);
    let both = Evaluator::default().evaluate("gaps", &[filled, all_right]).unwrap();
    assert_eq!(both.get(name::GAP_WORDS).unwrap().per_file, [0.5, 1.0]);
    assert!(Evaluator::default().evaluate("none", &[set(&["x"])]).unwrap().get(name::GAP_BLEU).is_none());
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| (*t).to_owned()).collect()
}

/// One reference per text.
fn references(texts: &[&str]) -> Vec<Vec<String>> {
    texts.iter().map(|t| vec![(*t).to_owned()]).collect()
}

#[track_caller]
fn is(found: &Evaluation, name: &str, expected: f64) {
    let value = found.get(name).unwrap_or_else(|| panic!("no {name}")).value;
    assert!((value - expected).abs() < 1e-9, "{name}: {value} instead of {expected}");
}

#[test]
fn words_by_hand() {
    let found = Evaluator::default().evaluate("t", &[set(&["a b a b", "", "a b c d e a b c d e", "x"])]).unwrap();
    let ln = f64::ln;
    is(&found, name::WORD_ENTROPY, (ln(2.0) + ln(5.0) + 0.0) / 3.0);
    is(&found, name::DISTINCT[0], 6.0 / 15.0); // a to e and x
    // ab ba | ab bc cd de ea
    is(&found, name::DISTINCT[1], 6.0 / 12.0);
    is(&found, name::DISTINCT[2], 7.0 / 10.0); // aba bab | abc bcd cde dea eab
    is(&found, name::DISTINCT[3], 6.0 / 8.0); // abab | abcd bcde cdea deab eabc
    is(&found, name::REPEATED_5GRAM, 0.25);
    is(&found, name::LENGTH, 15.0 / 4.0);
    is(&found, name::EMPTY, 0.25);
    // Lengths 0, 1, 4, 10, with three steps between them.
    for (name, expected) in name::LENGTH_QUANTILES.into_iter().zip([0.15, 0.75, 2.5, 5.5, 9.1]) {
        is(&found, name, expected);
    }
    for absent in [name::BLEU, name::ROUGE_L, name::EXACT_COPIES, name::GEN_PPL, name::ENTROPY] {
        assert!(found.get(absent).is_none(), "{absent}");
    }
    assert!(found.collapse().is_none());
}

#[test]
fn copies_by_hand() {
    let training = strings(&["the cat sat on the mat today", "a dog"]);
    let texts = set(&["a dog", "the cat sat on a dog", "nothing at all", "the cat sat on the mat"]);
    let evaluator = Evaluator { training: Some(&training), long_run: 3, ..Evaluator::default() };
    let found = evaluator.evaluate("t", &[texts]).unwrap();
    is(&found, name::EXACT_COPIES, 0.25);
    is(&found, name::COPIED_RUN, (2.0 + 4.0 + 0.0 + 6.0) / 4.0);
    is(&found, name::COPIED_RUN_MAX, 6.0);
    is(&found, name::LONG_RUNS, 0.5);
    assert!(found.get(name::LONG_RUNS).unwrap().method.as_deref().unwrap().contains("more than 3 words"));
    assert!(found.warnings().is_empty());
    // Of more training than there is room for, the first part is searched, and the reader is told.
    let found = Evaluator { training_words: 10, ..evaluator }.evaluate("t", &[set(&["a dog", "the cat"])]).unwrap();
    is(&found, name::EXACT_COPIES, 0.0);
    is(&found, name::COPIED_RUN, 1.0);
    assert!(found.warnings()[0].contains("first 1 training texts") && found.warnings()[0].contains("10 words"));
}

#[test]
fn pairs_by_hand() {
    let mut pairs = set(&["the cat sat on the mat", "x y"]);
    pairs.references = Some(references(&["the cat sat on the mat", "y z"]));
    let found = Evaluator::default().evaluate("t", &[pairs]).unwrap();
    is(&found, name::ROUGE_1, 75.0);
    is(&found, name::ROUGE_2, 50.0);
    is(&found, name::ROUGE_L, 75.0);
    // Matches 7 of 8, 5 of 6, 4 of 4 and 3 of 3; lengths are equal.
    is(&found, name::BLEU, 100.0 * (7.0f64 / 8.0 * 5.0 / 6.0).powf(0.25));
    let signature = found.get(name::BLEU).unwrap().method.clone().unwrap();
    assert!(signature.starts_with("nrefs:1|case:lc|eff:yes|tok:13a|smooth:exp|version:"), "{signature}");
}

#[test]
fn several_files_are_seeds() {
    let sets = [set(&["a b", "a b c d"]), set(&["a"]), set(&["a b c d e f g h"])];
    let found = Evaluator::default().evaluate("t", &sets).unwrap();
    let length = found.get(name::LENGTH).unwrap();
    assert_eq!(length.per_file, [3.0, 1.0, 8.0]);
    is(&found, name::LENGTH, 4.0);
    // Squares of deviations 1, 9, 16 over 2, then over 3.
    assert!((length.standard_error.unwrap() - (13.0f64 / 3.0).sqrt()).abs() < 1e-12);
    assert_eq!((length.n, found.samples().len()), (Some(4), 3));
    let one = Evaluator::default().evaluate("t", &sets[..1]).unwrap();
    let length = one.get(name::LENGTH).unwrap();
    assert!(length.per_file.is_empty() && length.standard_error.is_none() && length.interval.is_none());
}

#[test]
fn perplexity_and_entropy_by_hand_with_a_verdict() {
    // Costs: bb 2, ccc 3, EOS 1; b 1, EOS 1.
    let samples = [set(&["a bb ccc", "a b", " "])];
    let ln = f64::ln;
    let entropy = ln(3.0) / 2.0;
    let data = strings(&["a bb ccc dddd", "a bb ccc dddd"]);
    let evaluator = Evaluator { judge: Some(JUDGE), data: Some(&data), ..Evaluator::default() };
    let found = evaluator.evaluate("t", &samples).unwrap();
    is(&found, name::GEN_PPL, (8.0f64 / 5.0).exp());
    is(&found, name::ENTROPY, entropy);
    is(&found, name::DATA_ENTROPY, ln(4.0));
    let verdict = found.collapse().unwrap();
    assert!(verdict.collapsed && verdict.data == "references", "{verdict:?}");
    assert!(found.warnings().iter().any(|w| w.contains("1 of 3 samples are blank")));
    assert!(found.warnings().iter().any(|w| w == &verdict.sentence));

    // Without texts of the data the training texts stand for it, and before them the samples' own references.
    let training = strings(&["a b", "x"]);
    let evaluator = Evaluator { judge: Some(JUDGE), training: Some(&training), ..Evaluator::default() };
    let found = evaluator.evaluate("t", &samples).unwrap();
    let verdict = found.collapse().unwrap();
    assert!(!verdict.collapsed && verdict.data == "training texts" && verdict.data_entropy == 0.0, "{verdict:?}");
    let mut paired = samples.clone();
    paired[0].references = Some(references(&["a bb", "a bb", "a bb"]));
    let found = evaluator.evaluate("t", &paired).unwrap();
    assert_eq!(found.collapse().unwrap().data, "references");
    is(&found, name::DATA_ENTROPY, ln(2.0));

    let alone = Evaluator { judge: Some(JUDGE), ..Evaluator::default() }.evaluate("t", &samples).unwrap();
    assert!(alone.collapse().is_none() && alone.get(name::DATA_ENTROPY).is_none());
    let blank = Evaluator { judge: Some(JUDGE), ..Evaluator::default() }.evaluate("t", &[set(&["", " "])]).unwrap();
    assert!(blank.get(name::GEN_PPL).is_none() && blank.warnings()[0].contains("blank"));
}

#[test]
fn intervals_hold_the_number_and_do_not_change_from_run_to_run() {
    let texts: Vec<String> = (0..60).map(|i| "word ".repeat(1 + i % 7)).collect();
    let references: Vec<Vec<String>> = (0..60).map(|i| vec!["word ".repeat(1 + i % 5)]).collect();
    let set = SampleSet { name: "s".into(), texts, references: Some(references), ..SampleSet::default() };
    let training = strings(&["word word word"]);
    let evaluator = Evaluator {
        judge: Some(JUDGE),
        training: Some(&training),
        bootstrap: Some(Bootstrap { resamples: 200, ..Bootstrap::default() }),
        ..Evaluator::default()
    };
    let found = evaluator.evaluate("t", &[set.clone(), set.clone()]).unwrap();
    assert_eq!(found, evaluator.evaluate("t", &[set.clone(), set]).unwrap());
    let with_intervals = [
        name::BLEU,
        name::ROUGE_1,
        name::ROUGE_2,
        name::ROUGE_L,
        name::WORD_ENTROPY,
        name::REPEATED_5GRAM,
        name::LENGTH,
        name::EMPTY,
        name::EXACT_COPIES,
        name::COPIED_RUN,
        name::LONG_RUNS,
        name::GEN_PPL,
        name::ENTROPY,
    ];
    for name in with_intervals {
        let metric = found.get(name).unwrap_or_else(|| panic!("{name}"));
        let interval = metric.interval.unwrap_or_else(|| panic!("{name}"));
        assert!(interval.low <= metric.value && metric.value <= interval.high, "{metric:?}");
        assert_eq!(metric.standard_error, Some(0.0)); // both seeds are the same
    }
    let json = found.to_json().unwrap();
    assert_eq!(Evaluation::from_json(&json).unwrap(), found);
}

#[test]
fn what_does_not_fit_is_refused() {
    let evaluator = Evaluator::default();
    let refused = |sets: &[SampleSet]| evaluator.evaluate("t", sets).unwrap_err().to_string();
    assert!(refused(&[]).contains("no texts"));
    assert!(refused(&[set(&[])]).contains("no texts"));
    let mut paired = set(&["a"]);
    paired.references = Some(references(&["a"]));
    assert!(refused(&[paired.clone(), set(&["b"])]).contains("1 of 2 sample files have references"));
    paired.references = Some(references(&["a", "b"]));
    assert!(refused(&[paired]).contains("1 hypotheses but 2 references"));
}

#[test]
fn the_documented_json_is_an_evaluation() {
    let page = include_str!("../../../docs/evaluation.md");
    let json = page.split_once("```json\n").unwrap().1.split_once("```").unwrap().0;
    let found = Evaluation::from_json(json).unwrap();
    assert_eq!(found.get(name::GEN_PPL).unwrap().per_file.len(), found.samples().len());
    assert!(!found.collapse().unwrap().collapsed);
    // Every metric has its line in the page's table, and another version is refused.
    let table = page.split_once("## What is measured").unwrap().1.split_once("\n## ").unwrap().0;
    for name in [name::BLEU, name::GEN_PPL, name::ENTROPY, name::DATA_ENTROPY, name::WORD_ENTROPY, name::REPEATED_5GRAM]
        .into_iter()
        .chain([name::LENGTH, name::EMPTY, name::EXACT_COPIES, name::COPIED_RUN, name::LONG_RUNS])
    {
        assert!(table.contains(&format!("| {name} |")), "{name}");
    }
    let error = Evaluation::from_json(&json.replace("\"schema\": 1", "\"schema\": 2")).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
    assert!(
        Evaluation::from_json("{\"title\": \"old\", \"metrics\": []}").unwrap_err().to_string().contains("version 0")
    );
}
