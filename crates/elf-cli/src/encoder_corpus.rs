//! The texts that an encoder is pre-trained on: read and tokenised once, then given out in batches of like lengths.

use anyhow::{Context, Result, bail};
use elf_core::{Noise, Seeded, key_of};
use elf_data::Tokenizer;
use elf_encoder::SpanCorruption;
use tch::Device;

use crate::text_column::TextColumn;

/// Texts tokenised at a time.
const TEXTS_AT_A_TIME: usize = 8192;
/// Batches among whose texts like lengths are sought. More give less padding, fewer a better mixed order.
const POOL: usize = 32;

/// Token ids of many texts: four bytes a token in memory.
#[derive(Debug, Default)]
pub struct Corpus {
    ids: Vec<i32>,
    /// Where each text ends.
    ends: Vec<usize>,
    /// Texts left out because they are too short to learn from.
    pub too_short: usize,
}

impl Corpus {
    /// Reads all columns; texts of more than `longest` tokens are cut into pieces. `told` hears how many texts there are so far.
    ///
    /// # Errors
    /// If a file or column cannot be read, or there is no text of two tokens.
    pub fn read(
        columns: &[TextColumn],
        tokenizer: &Tokenizer,
        longest: usize,
        mut told: impl FnMut(usize),
    ) -> Result<Self> {
        let mut corpus = Self::default();
        for column in columns {
            let mut texts = column.open()?.texts();
            loop {
                let some: Vec<String> = texts.by_ref().take(TEXTS_AT_A_TIME).collect::<Result<_, _>>()?;
                if some.is_empty() {
                    break;
                }
                for ids in tokenizer.encode_batch(&some)? {
                    corpus.push(&ids, longest);
                }
                told(corpus.len());
            }
        }
        if corpus.len() == 0 {
            let names = columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            bail!("there is no text of at least {} tokens in {names}", SpanCorruption::SHORTEST);
        }
        Ok(corpus)
    }

    fn push(&mut self, ids: &[i32], longest: usize) {
        for piece in ids.chunks(longest) {
            if piece.len() < SpanCorruption::SHORTEST {
                self.too_short += 1;
                continue;
            }
            self.ids.extend_from_slice(piece);
            self.ends.push(self.ids.len());
        }
    }

    /// Texts, or pieces of them.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Tokens in all texts.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// One text.
    pub fn text(&self, i: usize) -> &[i32] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.ids[start..self.ends[i]]
    }

    /// `count` texts, or all, evenly over the corpus.
    pub fn evenly(&self, count: usize) -> Vec<usize> {
        let count = count.min(self.len());
        (0..count).map(|i| i * self.len() / count).collect()
    }

    /// Cuts texts, given by number, into batches of up to `tokens` positions, padding included, longest texts first. A text
    /// longer than that is a batch alone.
    pub fn batches(&self, texts: &[usize], tokens: usize) -> Vec<Vec<usize>> {
        let mut sorted = texts.to_vec();
        sorted.sort_by_key(|&i| std::cmp::Reverse(self.text(i).len()));
        let mut batches: Vec<Vec<usize>> = Vec::new();
        for i in sorted {
            match batches.last_mut() {
                Some(batch) if (batch.len() + 1) * self.text(batch[0]).len() <= tokens => batch.push(i),
                _ => batches.push(vec![i]),
            }
        }
        batches
    }

    /// All batches of one pass over the corpus, in an order that depends on seed and pass only.
    ///
    /// # Errors
    /// None in practice: the draws do not reach libtorch.
    pub fn pass(&self, seed: u64, pass: u64, tokens: usize) -> Result<Vec<Vec<usize>>> {
        let order = shuffled((0..self.len()).collect(), key_of(&[seed, pass]), "order of texts")?;
        let mut batches = Vec::new();
        let (mut pool, mut pooled) = (Vec::new(), 0);
        for i in order {
            pooled += self.text(i).len();
            pool.push(i);
            if pooled >= POOL * tokens {
                batches.extend(self.batches(&std::mem::take(&mut pool), tokens));
                pooled = 0;
            }
        }
        batches.extend(self.batches(&pool, tokens));
        shuffled(batches, key_of(&[seed, pass]), "order of batches")
    }
}

/// The items in the order of one number drawn for each.
fn shuffled<T>(items: Vec<T>, key: u64, name: &str) -> Result<Vec<T>> {
    let keys = (0..items.len() as u64).map(|i| key_of(&[key, i])).collect();
    let coins = Seeded::new(keys, Device::Cpu).coins(name, items.len()).context("the order of the texts")?;
    let mut drawn: Vec<(f64, T)> = coins.into_iter().zip(items).collect();
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(drawn.into_iter().map(|(_, item)| item).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn corpus(lengths: &[usize], longest: usize) -> Corpus {
        let mut corpus = Corpus::default();
        lengths.iter().for_each(|n| corpus.push(&vec![5; *n], longest));
        corpus
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_pass_gives_every_text_once_in_batches_that_fit(
            lengths in proptest::collection::vec(2usize..40, 1..300), seed in any::<u64>(), tokens in 40usize..200,
        ) {
            let corpus = corpus(&lengths, 64);
            let batches = corpus.pass(seed, 0, tokens).unwrap();
            let mut seen = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let longest = batch.iter().map(|&i| corpus.text(i).len()).max().unwrap();
                prop_assert!(batch.len() * longest <= tokens);
            }
            prop_assert_eq!(&batches, &corpus.pass(seed, 0, tokens).unwrap());
        }
    }

    #[test]
    fn passes_differ_in_order_and_long_texts_are_cut() {
        let corpus = corpus(&[10, 1, 25, 11], 12);
        let lengths: Vec<usize> = (0..corpus.len()).map(|i| corpus.text(i).len()).collect();
        // The last token of the third text is left over alone.
        assert_eq!((lengths, corpus.too_short, corpus.tokens()), (vec![10, 12, 12, 11], 2, 45));
        assert_eq!(corpus.evenly(2), [0, 2]);
        let many = super::tests::corpus(&[7; 200], 12);
        assert_ne!(many.pass(1, 0, 70).unwrap(), many.pass(1, 1, 70).unwrap());
        assert_ne!(many.pass(1, 0, 70).unwrap(), many.pass(2, 0, 70).unwrap());
    }
}
