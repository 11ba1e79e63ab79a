//! BLEU, ROUGE and the stemmer against sacreBLEU, `rouge_score` and NLTK.

use std::collections::HashMap;

use elf_eval::bleu::Bleu;
use elf_eval::evaluation::{Evaluator, SampleSet, name};
use elf_eval::rouge::{self, Rouge};
use elf_eval::stats::Spread;
use elf_tests::parity_json;
use serde::Deserialize;

/// The tolerance within which the reference implementations agree between machines.
const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct TextMetrics {
    hypotheses: Vec<String>,
    references: Vec<String>,
    bleu_lowercase_effective: CorpusBleu,
    bleu_default: f64,
    bleu_slices: Vec<Slice>,
    rouge_per_pair: Vec<[f64; 3]>,
    rouge_mean: HashMap<String, f64>,
    rouge_spread: HashMap<String, f64>,
}

#[derive(Deserialize)]
struct CorpusBleu {
    score: f64,
    precisions: [f64; 4],
    bp: f64,
    sys_len: u64,
    ref_len: u64,
    counts: [u64; 4],
    totals: [u64; 4],
}

#[derive(Deserialize)]
struct Slice {
    start: usize,
    end: usize,
    bleu: f64,
}

#[track_caller]
fn close(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() <= TOLERANCE, "{what}: {ours} instead of {theirs}");
}

#[test]
fn parity_porter_stems() {
    let stems: HashMap<String, String> = parity_json("porter_stems.json");
    assert!(!stems.is_empty());
    let wrong: Vec<_> = stems
        .iter()
        .map(|(word, stem)| (word, rouge::tokenize(word), stem)) // words of three letters stay
        .filter(|(_, ours, theirs)| ours[..] != [theirs.as_str()])
        .collect();
    assert!(wrong.is_empty(), "{} of {} differ: {wrong:?}", wrong.len(), stems.len());
}

#[test]
fn parity_bleu_of_the_corpus() {
    let m: TextMetrics = parity_json("text_metrics.json");
    let ours = Bleu::lowercase_effective().corpus(&m.hypotheses, &m.references).unwrap();
    let theirs = m.bleu_lowercase_effective;
    assert_eq!(ours.counts.matches, theirs.counts);
    assert_eq!(ours.counts.totals, theirs.totals);
    assert_eq!(ours.counts.hypothesis_len, theirs.sys_len);
    assert_eq!(ours.counts.reference_len, theirs.ref_len);
    for (n, (a, b)) in ours.precisions.iter().zip(theirs.precisions).enumerate() {
        close(*a, b, &format!("precision of order {}", n + 1));
    }
    close(ours.brevity_penalty, theirs.bp, "brevity penalty");
    close(ours.score, theirs.score, "lower-cased BLEU");
    let default = Bleu::default().corpus(&m.hypotheses, &m.references).unwrap();
    close(default.score, m.bleu_default, "BLEU with sacreBLEU's defaults");
}

#[test]
fn parity_bleu_of_slices() {
    let m: TextMetrics = parity_json("text_metrics.json");
    assert!(!m.bleu_slices.is_empty());
    for Slice { start, end, bleu } in m.bleu_slices {
        let ours = Bleu::lowercase_effective().corpus(&m.hypotheses[start..end], &m.references[start..end]).unwrap();
        close(ours.score, bleu, &format!("BLEU of pairs {start} to {end}"));
    }
}

#[test]
fn parity_rouge() {
    let m: TextMetrics = parity_json("text_metrics.json");
    let pairs = rouge::score_pairs(&m.hypotheses, &m.references).unwrap();
    assert_eq!(pairs.len(), m.rouge_per_pair.len());
    for (index, (ours, theirs)) in pairs.iter().zip(&m.rouge_per_pair).enumerate() {
        for (a, b) in [ours.rouge1.f1, ours.rouge2.f1, ours.rouge_l.f1].iter().zip(theirs) {
            close(*a, *b, &format!("ROUGE of pair {index}"));
        }
    }
    let mean = rouge::mean(&pairs);
    let f1s = |f1: fn(&Rouge) -> f64| pairs.iter().map(|p| 100.0 * f1(p)).collect::<Vec<_>>();
    for (name, mean, values) in [
        ("rouge1", mean.rouge1, f1s(|r| r.rouge1.f1)),
        ("rouge2", mean.rouge2, f1s(|r| r.rouge2.f1)),
        ("rougeL", mean.rouge_l, f1s(|r| r.rouge_l.f1)),
    ] {
        close(mean, m.rouge_mean[name], name);
        let spread = Spread::of_sample(&values).unwrap();
        // The released code divides squares by n, not by n - 1.
        let (n, released) = (values.len() as f64, |deviation: f64, n: f64| deviation * ((n - 1.0) / n).sqrt());
        close(released(spread.std, n), m.rouge_spread[&format!("{name}_std")], &format!("deviation of {name}"));
        let sem = m.rouge_spread[&format!("{name}_sem")];
        close(released(spread.standard_error, n), sem, &format!("standard error of {name}"));
    }
}

#[test]
fn parity_bleu_from_a_jsonl_file() {
    // As the program does it: pairs written to a file and read back give the same number.
    let m: TextMetrics = parity_json("text_metrics.json");
    let lines: Vec<String> = m
        .hypotheses
        .iter()
        .zip(&m.references)
        .map(|(p, r)| serde_json::json!({"prediction": p, "reference": r}).to_string())
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines.join("\n")).unwrap();
    let set = SampleSet::read(file.path()).unwrap();
    let ours = Bleu::lowercase_effective().corpus(&set.texts, &set.references.unwrap()).unwrap();
    close(ours.score, m.bleu_lowercase_effective.score, "BLEU of the file");
}

#[test]
fn parity_of_an_evaluation() {
    let m: TextMetrics = parity_json("text_metrics.json");
    let set = SampleSet {
        name: "pairs".into(),
        texts: m.hypotheses,
        references: Some(m.references.into_iter().map(|r| vec![r]).collect()),
        ..SampleSet::default()
    };
    let found = Evaluator::default().evaluate("parity", &[set]).unwrap();
    for (name, theirs) in [
        (name::BLEU, m.bleu_lowercase_effective.score),
        (name::ROUGE_1, m.rouge_mean["rouge1"]),
        (name::ROUGE_2, m.rouge_mean["rouge2"]),
        (name::ROUGE_L, m.rouge_mean["rougeL"]),
    ] {
        close(found.get(name).unwrap().value, theirs, name);
    }
}
