//! BLEU, chrF, TER and ROUGE against numbers of sacreBLEU 2.6.0 and rouge_score 0.1.2: every tokeniser, one and several references.
//!
//! `fixtures/reference_metrics.py` makes the numbers.

use elf_eval::bleu::{Bleu, Tokenizer};
use elf_eval::chrf::Chrf;
use elf_eval::rouge;
use elf_eval::ter::{Ter, TerCounts};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    kind: String,
    hypotheses: Vec<String>,
    references: Vec<Vec<String>>,
    bleu: Vec<OfBleu>,
    chrf: Vec<OfChrf>,
    ter: Vec<OfTer>,
    rouge: Vec<[[f64; 3]; 3]>,
}

#[derive(Deserialize)]
struct OfBleu {
    tokenizer: Tokenizer,
    lowercase: bool,
    effective_order: bool,
    score: f64,
    counts: [u64; 4],
    totals: [u64; 4],
    sys_len: u64,
    ref_len: u64,
    signature: String,
}

#[derive(Deserialize)]
struct OfChrf {
    words: bool,
    lowercase: bool,
    score: f64,
    sentences: Vec<f64>,
    signature: String,
}

#[derive(Deserialize)]
struct OfTer {
    lowercase: bool,
    score: f64,
    edits: u64,
    reference_words: f64,
    sentences: Vec<f64>,
    signature: String,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> = serde_json::from_str(include_str!("fixtures/reference_metrics.json")).unwrap();
    assert_eq!(cases.len(), 9);
    cases
}

#[track_caller]
fn close(ours: f64, theirs: f64, what: &str) {
    assert!((ours - theirs).abs() < 1e-6, "{what}: {ours} is not {theirs}");
}

/// A signature without the version, which is this crate's own.
fn unversioned(signature: &str) -> &str {
    signature.split("|version:").next().unwrap()
}

#[test]
fn bleu_of_every_tokeniser() {
    for Case { kind, hypotheses, references, bleu, .. } in cases() {
        for theirs in bleu {
            let OfBleu { tokenizer, lowercase, effective_order, .. } = theirs;
            let bleu = Bleu { lowercase, effective_order, tokenizer };
            let ours = bleu.corpus(&hypotheses, &references).unwrap();
            let what = format!("{kind}, {}", theirs.signature);
            assert_eq!((ours.counts.matches, ours.counts.totals), (theirs.counts, theirs.totals), "{what}");
            let lengths = (ours.counts.hypothesis_len, ours.counts.reference_len);
            assert_eq!(lengths, (theirs.sys_len, theirs.ref_len), "{what}");
            close(ours.score, theirs.score, &what);
            assert_eq!(unversioned(&bleu.signature(&references)), unversioned(&theirs.signature));
        }
    }
}

#[test]
fn chrf_and_chrf_with_words() {
    for Case { kind, hypotheses, references, chrf, .. } in cases() {
        for theirs in chrf {
            let chrf = Chrf { lowercase: theirs.lowercase, words: theirs.words };
            let what = format!("{kind}, {}", theirs.signature);
            close(chrf.corpus(&hypotheses, &references).unwrap(), theirs.score, &what);
            for ((hypothesis, references), score) in hypotheses.iter().zip(&references).zip(theirs.sentences) {
                close(chrf.sentence(hypothesis, references), score, &format!("{what}: {hypothesis}"));
            }
            assert_eq!(unversioned(&chrf.signature(&references)), unversioned(&theirs.signature));
        }
    }
}

#[test]
fn ter_with_shifts() {
    for Case { kind, hypotheses, references, ter, .. } in cases() {
        for theirs in ter {
            let ter = Ter { lowercase: theirs.lowercase };
            let what = format!("{kind}, {}", theirs.signature);
            let counts: TerCounts = ter.counts_per_pair(&hypotheses, &references).unwrap().into_iter().sum();
            for ((hypothesis, references), score) in hypotheses.iter().zip(&references).zip(theirs.sentences) {
                close(ter.sentence(hypothesis, references), score, &format!("{what}: {hypothesis}"));
            }
            assert_eq!(counts.edits, theirs.edits, "{what}");
            close(counts.reference_words, theirs.reference_words, &what);
            close(ter.corpus(&hypotheses, &references).unwrap(), theirs.score, &what);
            assert_eq!(unversioned(&ter.signature(&references)), unversioned(&theirs.signature));
        }
    }
}

#[test]
fn rouge_of_the_best_reference() {
    for Case { hypotheses, references, rouge, .. } in cases() {
        let ours = rouge::score_pairs(&hypotheses, &references).unwrap();
        for ((ours, theirs), hypothesis) in ours.iter().zip(&rouge).zip(&hypotheses) {
            for (ours, theirs) in [ours.rouge1, ours.rouge2, ours.rouge_l].iter().zip(theirs) {
                for (ours, theirs) in [ours.precision, ours.recall, ours.f1].into_iter().zip(theirs) {
                    close(ours, *theirs, hypothesis);
                }
            }
        }
    }
}
