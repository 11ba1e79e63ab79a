//! Training a Unigram tokenizer on a corpus, with T5's text pipeline and special ids.
//!
//! The `tokenizers` crate does the estimation. Its result depends on the order of hash maps and on the number of threads that add up
//! a sum. This module therefore passes its input in a fixed order, on a fixed number of threads, and sorts ties of the result: the
//! same corpus and settings give the same file, byte for byte, on any number of cores.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, PreTokenizerWrapper,
};

use crate::error::{Error, Result};
use crate::tokenizer::{EOS, PAD, Tokenizer, UNK};

/// Normaliser (SentencePiece's `nmt_nfkc`), Metaspace pre-tokeniser, decoder and post-processor as in T5's published `tokenizer.json`.
const T5_PIPELINE: &str = include_str!("../assets/t5_pipeline.json");

/// Special tokens in the order of their ids: 0, 1, 2.
const SPECIAL: [&str; 3] = [PAD, EOS, UNK];

/// Number of texts that go through the pipeline together, on all cores.
const TEXTS_PER_GROUP: usize = 1024;

/// Longest word in characters that is used: longer ones are rarely words, and the trainer's sums overflow on very long ones.
const LONGEST_WORD: usize = 64;

/// The trainer counts characters in 32 bits.
const MOST_CHARACTERS: u64 = 1 << 31;

/// Settings of a Unigram training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnigramConfig {
    /// Entries of the vocabulary, the three special tokens included. A corpus with too few different words yields fewer.
    pub vocab_size: usize,
    /// Share of all characters, frequent ones first, that get an entry of their own; other characters become `<unk>`.
    pub character_coverage: f64,
    /// Only every n-th text is used; 1 uses all. Memory grows with the number of different words: raise this for very large corpora.
    pub every_nth: usize,
    /// Most different words that are used, frequent ones first. Time grows with this number.
    pub max_words: usize,
}

impl Default for UnigramConfig {
    fn default() -> Self {
        Self { vocab_size: 8000, character_coverage: 0.9999, every_nth: 1, max_words: 50_000 }
    }
}

impl UnigramConfig {
    fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(Error::Config(message));
        if self.vocab_size < SPECIAL.len() + 2 || self.vocab_size > 1_000_000 {
            return refuse(format!("vocab_size {} is out of range: choose 5 to 1000000", self.vocab_size));
        }
        if !(self.character_coverage > 0.0 && self.character_coverage <= 1.0) {
            return refuse(format!(
                "character_coverage {} is out of range: choose above 0, at most 1",
                self.character_coverage
            ));
        }
        if self.every_nth == 0 || self.max_words < 2 {
            return refuse("every_nth must be at least 1 and max_words at least 2".to_owned());
        }
        Ok(())
    }
}

/// A trained tokenizer and the size of its corpus.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The tokenizer; [`Tokenizer::save`] writes it.
    pub tokenizer: Tokenizer,
    /// Texts read.
    pub texts_read: u64,
    /// Texts used (every n-th of those read).
    pub texts_used: u64,
    /// Different words that the estimation used.
    pub words: usize,
}

/// Trains a Unigram tokenizer on `texts`. `progress` gets the number of texts read so far, after every 1,024 texts used.
///
/// # Errors
/// If a setting is out of range, a text cannot be read, the corpus is empty, or it has more different characters than the
/// vocabulary has room for.
pub fn train_unigram(
    config: &UnigramConfig,
    texts: impl IntoIterator<Item = Result<String>>,
    progress: &mut dyn FnMut(u64),
) -> Result<Trained> {
    config.check()?;
    let pipeline = Pipeline::t5()?;
    let mut counts: HashMap<String, u64> = HashMap::new();
    let mut group = Vec::with_capacity(TEXTS_PER_GROUP);
    let (mut texts_read, mut texts_used) = (0u64, 0u64);
    for text in texts {
        let text = text?;
        if texts_read.is_multiple_of(config.every_nth as u64) {
            group.push(text);
            texts_used += 1;
        }
        texts_read += 1;
        if group.len() == TEXTS_PER_GROUP {
            pipeline.count_words(&group, &mut counts)?;
            group.clear();
            progress(texts_read);
        }
    }
    pipeline.count_words(&group, &mut counts)?;
    progress(texts_read);

    let TrainingWords { words, number } = training_words(counts, config)?;
    let pieces = estimate(words, config)?;
    let tokenizer = Tokenizer::from_json(pipeline.tokenizer_json(&pieces)?)?;
    Ok(Trained { tokenizer, texts_read, texts_used, words: number })
}

/// T5's text pipeline, as parts to run and as JSON to write.
struct Pipeline {
    json: Value,
    normalizer: NormalizerWrapper,
    pre_tokenizer: PreTokenizerWrapper,
}

impl Pipeline {
    fn t5() -> Result<Self> {
        let parse = |e: serde_json::Error| Error::Training(format!("the built-in text pipeline is damaged: {e}"));
        let json: Value = serde_json::from_str(T5_PIPELINE).map_err(parse)?;
        Ok(Self {
            normalizer: NormalizerWrapper::deserialize(&json["normalizer"]).map_err(parse)?,
            pre_tokenizer: PreTokenizerWrapper::deserialize(&json["pre_tokenizer"]).map_err(parse)?,
            json,
        })
    }

    fn words(&self, text: &str) -> Result<Vec<String>> {
        let refuse = |e: tokenizers::Error| Error::Training(format!("a text cannot be split into words: {e}"));
        let mut text = NormalizedString::from(text);
        self.normalizer.normalize(&mut text).map_err(refuse)?;
        let mut text = PreTokenizedString::from(text);
        self.pre_tokenizer.pre_tokenize(&mut text).map_err(refuse)?;
        let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(splits.into_iter().map(|(word, _, _)| word.to_owned()).collect())
    }

    fn count_words(&self, texts: &[String], counts: &mut HashMap<String, u64>) -> Result<()> {
        // Adding integers gives the same total in any order, so this part may run on all cores.
        let of_group = texts
            .par_iter()
            .try_fold(HashMap::new, |mut counts: HashMap<String, u64>, text| {
                for word in self.words(text)? {
                    *counts.entry(word).or_default() += 1;
                }
                Ok::<_, Error>(counts)
            })
            .try_reduce(HashMap::new, |a, b| {
                let (mut large, small) = if a.len() >= b.len() { (a, b) } else { (b, a) };
                small.into_iter().for_each(|(word, count)| *large.entry(word).or_default() += count);
                Ok(large)
            })?;
        of_group.into_iter().for_each(|(word, count)| *counts.entry(word).or_default() += count);
        Ok(())
    }

    fn tokenizer_json(&self, pieces: &[(String, f64)]) -> Result<Vec<u8>> {
        let added: Vec<Value> = SPECIAL
            .iter()
            .enumerate()
            .map(|(id, content)| {
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": self.json["normalizer"],
            "pre_tokenizer": self.json["pre_tokenizer"],
            "post_processor": self.json["post_processor"],
            "decoder": self.json["decoder"],
            "model": {"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false},
        });
        serde_json::to_vec(&file).map_err(|e| Error::Training(format!("the result cannot be written as JSON: {e}")))
    }
}

/// The words to estimate from, in a fixed order: rare characters cut out, rare words left out, counts scaled to the trainer's range.
fn training_words(counts: HashMap<String, u64>, config: &UnigramConfig) -> Result<TrainingWords> {
    let mut of_character: HashMap<char, u64> = HashMap::new();
    for (word, count) in &counts {
        word.chars().for_each(|c| *of_character.entry(c).or_default() += count);
    }
    let characters: u64 = of_character.values().sum();
    if characters == 0 {
        return Err(Error::Training("the corpus holds no text: check the files and the column".to_owned()));
    }
    let mut by_count: Vec<(char, u64)> = of_character.into_iter().collect();
    by_count.sort_by_key(|&(c, count)| (std::cmp::Reverse(count), c));
    let mut covered: HashSet<char> = HashSet::new();
    let mut seen = 0u64;
    for (c, count) in by_count {
        if seen as f64 >= config.character_coverage * characters as f64 {
            break;
        }
        seen += count;
        // A NUL separates words inside the trainer, so it can be no piece of one.
        if c != '\0' {
            covered.insert(c);
        }
    }
    if covered.len() + SPECIAL.len() >= config.vocab_size {
        return Err(Error::Training(format!(
            "the corpus has {} different characters, too many for a vocabulary of {}: raise vocab_size above {}, or lower character_coverage",
            covered.len(),
            config.vocab_size,
            covered.len() + SPECIAL.len(),
        )));
    }

    let mut parts: HashMap<String, u64> = HashMap::new();
    for (word, count) in counts {
        for part in word.split(|c| !covered.contains(&c)).filter(|part| !part.is_empty()) {
            if part.chars().count() <= LONGEST_WORD {
                *parts.entry(part.to_owned()).or_default() += count;
            }
        }
    }
    let mut words: Vec<(String, u64)> = parts.into_iter().collect();
    words.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
    words.truncate(config.max_words);
    let number = words.len();
    if number < 2 {
        return Err(Error::Training("the corpus has fewer than two different words".to_owned()));
    }
    let scale = (MOST_CHARACTERS as f64 / characters as f64).min(1.0);
    let mut words: Vec<(String, u32)> =
        words.into_iter().map(|(word, count)| (word, ((count as f64 * scale) as u32).max(1))).collect();
    let longer = make_words_branch(&words, config);
    words.extend(longer);
    // An even number makes two equal shares for two threads; see `estimate`.
    words.truncate(words.len() - words.len() % 2);
    Ok(TrainingWords { words, number })
}

/// Further words that let frequent words become pieces.
///
/// The trainer considers only pieces with different continuations. A word that ends wherever it occurs is never considered as a
/// whole, however frequent it is. Each frequent word is therefore added once more with a letter appended and a count of zero: this
/// makes it a candidate and has no weight in the estimation.
fn make_words_branch(words: &[(String, u32)], config: &UnigramConfig) -> Vec<(String, u32)> {
    // Words are sorted by falling count, so this letter occurs in the middle or at the end of a frequent one.
    let Some(letter) = words.iter().find_map(|(word, _)| word.chars().nth(1)) else { return Vec::new() };
    let frequent = words.iter().take(2 * config.vocab_size).filter(|(word, _)| word.chars().count() > 1);
    frequent.map(|(word, _)| (format!("{word}{letter}"), 0)).collect()
}

/// The trainer's input.
struct TrainingWords {
    words: Vec<(String, u32)>,
    /// Number of words of the corpus among them.
    number: usize,
}

/// Runs the trainer; returns all pieces with their scores in the order of their ids, special tokens first.
fn estimate(words: Vec<(String, u32)>, config: &UnigramConfig) -> Result<Vec<(String, f64)>> {
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(config.vocab_size as u32)
        .special_tokens(SPECIAL.iter().map(|token| AddedToken::from(*token, true)).collect())
        .unk_token(Some(UNK.to_owned()))
        .build()
        .map_err(|e| Error::Training(e.to_string()))?;
    // The trainer cuts its work into one share per thread and adds up the shares in the order in which they finish. The sum of two
    // floating-point numbers does not depend on their order, that of three does: hence two threads and an even number of words.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().map_err(|e| Error::Training(e.to_string()))?;
    let mut model = Unigram::default();
    // The trainer panics if its sums degenerate; the panic becomes an error.
    let outcome = catch_unwind(AssertUnwindSafe(|| pool.install(|| trainer.do_train(words, &mut model))));
    match outcome {
        Ok(Ok(_)) => Ok(in_order(model.iter().cloned().collect())),
        Ok(Err(e)) => Err(Error::Training(e.to_string())),
        Err(_) => Err(Error::Training(
            "the estimation broke down on this corpus; more text, or another vocab_size, usually helps".to_owned(),
        )),
    }
}

/// Puts the trainer's result in an order that does not depend on its hash maps.
///
/// Characters that lost their own entry during estimation are given back at the end, each a step of 0.0001 above the lowest score,
/// in the random order of a hash set: the set of these scores is fixed, which character got which is not. Here they are given
/// out again in the order of the characters, and equal scores are ordered by text.
fn in_order(mut pieces: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let mut learned = pieces.split_off(SPECIAL.len().min(pieces.len()));
    let lowest = learned.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let mut given_back = Vec::new();
    let mut penalty = 0.0;
    loop {
        let score = lowest + penalty;
        let of_score =
            |(_, (piece, s)): &(usize, &(String, f64))| s.to_bits() == score.to_bits() && piece.chars().count() == 1;
        let found: Vec<usize> = learned.iter().enumerate().filter(of_score).map(|(i, _)| i).collect();
        if found.is_empty() {
            break;
        }
        given_back.extend(found);
        penalty += 0.0001;
    }
    let mut characters: Vec<String> = given_back.iter().map(|&i| learned[i].0.clone()).collect();
    let mut scores: Vec<f64> = given_back.iter().map(|&i| learned[i].1).collect();
    characters.sort();
    scores.sort_by(|a, b| b.total_cmp(a));
    for ((slot, character), score) in given_back.into_iter().zip(characters).zip(scores) {
        learned[slot] = (character, score);
    }
    learned.sort_by(|(a, m), (b, n)| n.total_cmp(m).then_with(|| a.cmp(b)));
    pieces.extend(learned);
    pieces
}
