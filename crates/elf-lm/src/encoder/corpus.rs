//! The texts that an encoder is pre-trained on: read and tokenised once, then given out in batches of like lengths.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Context, fail};
use elf_core::{Noise, Seeded, key_of};
use elf_data::Tokenizer;
use elf_data::source::Source;
use elf_encoder::SpanCorruption;
use tch::Device;

use crate::text::text_column::{TextColumn, open_columns};
use crate::{Host, Result};

/// Texts tokenised at a time.
const TEXTS_AT_A_TIME: usize = 8192;
/// Batches among whose texts like lengths are sought. More give less padding, fewer a better mixed order.
const POOL: usize = 32;

/// What is learned from the columns of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// One text of all columns, from which spans are taken out.
    Text,
    /// To write the second column, given the first.
    Task,
}

/// `FILE:COLUMN`; or `FILE:COLUMN+COLUMN` for texts that belong together: those of a row then become one text, with an EOS
/// between them as in the rows of conditional tasks, and in reversed order in every second row. Spans that are missing in one of them
/// can then be learned from the other, such as words from their translations. Or `FILE:COLUMN=COLUMN` for a task as in T5's own
/// mixture (section 2.4): given the first, the decoder is to write the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusText {
    /// The file, folder or id.
    input: PathBuf,
    /// At least one column; two of a task.
    columns: Vec<String>,
    form: Form,
}

impl FromStr for CorpusText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let TextColumn { input, column } = text.parse()?;
        let parts = |separator: char| column.split(separator).map(str::to_owned).collect::<Vec<_>>();
        let (form, columns) = match parts('=') {
            pair if pair.len() == 2 && !column.contains('+') => (Form::Task, pair),
            _ => (Form::Text, parts('+')),
        };
        if columns.iter().any(|name| name.is_empty() || name.contains('=')) {
            return Err("write it as FILE:COLUMN, FILE:COLUMN+COLUMN or FILE:COLUMN=COLUMN, for example \
                        data/pairs.parquet:de+en"
                .to_owned());
        }
        Ok(Self { input, columns, form })
    }
}

impl std::fmt::Display for CorpusText {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}", self.input.display(), self.columns())
    }
}

impl CorpusText {
    /// The columns as they were written.
    pub fn columns(&self) -> String {
        self.columns.join(match self.form {
            Form::Text => "+",
            Form::Task => "=",
        })
    }

    /// Whether it is a task and not a text.
    pub fn is_task(&self) -> bool {
        self.form == Form::Task
    }

    fn open(&self, host: &Host) -> Result<Source> {
        let columns: Vec<&str> = self.columns.iter().map(String::as_str).collect();
        open_columns(&self.input, &columns, host)
    }
}

/// The texts of a row as one: an EOS between any two.
fn joined(mut parts: Vec<Vec<i32>>, eos: i32, reversed: bool) -> Vec<i32> {
    if reversed {
        parts.reverse();
    }
    parts.join(&eos)
}

/// Where a text and what is to be written of it lie among the ids.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    /// Where the text ends and its target starts.
    middle: usize,
    /// Where the target ends; `middle` if spans of the text are its target.
    end: usize,
    /// The number of what it was read from.
    origin: usize,
}

/// Token ids of many texts: four bytes a token in memory.
#[derive(Debug, Default)]
pub struct Corpus {
    ids: Vec<i32>,
    places: Vec<Place>,
    /// The number of what is being read.
    origin: usize,
    /// Texts left out because they are too short to learn from.
    pub too_short: usize,
}

impl Corpus {
    /// Reads all columns; texts of more than `longest` tokens are cut into pieces, those of tasks are cut off. `told` hears how many texts there are so far.
    ///
    /// # Errors
    /// If a file or column cannot be read, or there is no text of two tokens.
    pub fn read(
        columns: &[CorpusText],
        tokenizer: &Tokenizer,
        longest: usize,
        host: &Host,
        mut told: impl FnMut(usize),
    ) -> Result<Self> {
        let mut corpus = Self::default();
        let eos = tokenizer.eos_id()?;
        for (origin, column) in columns.iter().enumerate() {
            corpus.origin = origin;
            let mut rows = column.open(host)?.rows();
            let mut reversed = false;
            loop {
                let some: Vec<Vec<String>> = rows.by_ref().take(TEXTS_AT_A_TIME).collect::<Result<_, _>>()?;
                if some.is_empty() {
                    break;
                }
                let mut ids = tokenizer.encode_batch(&some.concat())?.into_iter();
                for row in &some {
                    let parts: Vec<Vec<i32>> = ids.by_ref().take(row.len()).collect();
                    match (&column.form, parts.as_slice()) {
                        (Form::Task, [source, target]) => corpus.push_task(source, target, longest),
                        _ => corpus.push(&joined(parts, eos, reversed), longest),
                    }
                    reversed = !reversed;
                }
                told(corpus.len());
            }
        }
        if corpus.is_empty() {
            let names = columns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            fail!(request, "there is no text of at least {} tokens in {names}", SpanCorruption::SHORTEST);
        }
        Ok(corpus)
    }

    fn push(&mut self, ids: &[i32], longest: usize) {
        for piece in ids.chunks(longest) {
            if piece.len() < SpanCorruption::SHORTEST {
                self.too_short += 1;
                continue;
            }
            self.add(piece, &[]);
        }
    }

    fn push_task(&mut self, source: &[i32], target: &[i32], longest: usize) {
        if source.is_empty() || target.is_empty() {
            self.too_short += 1;
            return;
        }
        self.add(&source[..source.len().min(longest)], &target[..target.len().min(longest)]);
    }

    fn add(&mut self, text: &[i32], target: &[i32]) {
        let start = self.ids.len();
        self.ids.extend_from_slice(text);
        let middle = self.ids.len();
        self.ids.extend_from_slice(target);
        self.places.push(Place { start, middle, end: self.ids.len(), origin: self.origin });
    }

    /// Texts, or pieces of them.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Tokens in all texts.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// One text, as the encoder reads it when nothing is taken out.
    pub fn text(&self, i: usize) -> &[i32] {
        let Place { start, middle, .. } = self.places[i];
        &self.ids[start..middle]
    }

    /// What is to be written, given that text; none if it is spans of the text itself.
    pub fn target(&self, i: usize) -> Option<&[i32]> {
        let Place { middle, end, .. } = self.places[i];
        (middle < end).then(|| &self.ids[middle..end])
    }

    /// Tokens of a text and its target.
    pub fn tokens_of(&self, i: usize) -> usize {
        self.text(i).len() + self.target(i).map_or(0, <[i32]>::len)
    }

    /// The number, among what was given to [`Corpus::read`], of what a text was read from.
    pub fn origin(&self, i: usize) -> usize {
        self.places[i].origin
    }

    /// The longer one of a text and its target.
    fn length(&self, i: usize) -> usize {
        self.text(i).len().max(self.target(i).map_or(0, <[i32]>::len))
    }

    /// `count` texts, or all, evenly over the corpus.
    pub fn evenly(&self, count: usize) -> Vec<usize> {
        let count = count.min(self.len());
        (0..count).map(|i| i * self.len() / count).collect()
    }

    /// Cuts texts, given by number, into batches of up to `tokens` positions, padding included, longest texts first. A text
    /// longer than that is a batch alone, and those with targets of their own are never in one batch with those without.
    pub fn batches(&self, texts: &[usize], tokens: usize) -> Vec<Vec<usize>> {
        let mut sorted = texts.to_vec();
        sorted.sort_by_key(|&i| (self.target(i).is_some(), std::cmp::Reverse(self.length(i))));
        let mut batches: Vec<Vec<usize>> = Vec::new();
        for i in sorted {
            match batches.last_mut() {
                Some(batch)
                    if (batch.len() + 1) * self.length(batch[0]) <= tokens
                        && self.target(batch[0]).is_some() == self.target(i).is_some() =>
                {
                    batch.push(i);
                }
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
            pooled += self.length(i);
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
    fn texts_of_a_row_become_one_in_either_order() {
        let parts = || vec![vec![5, 6], vec![], vec![7]];
        assert_eq!(joined(parts(), 1, false), [5, 6, 1, 1, 7]);
        assert_eq!(joined(parts(), 1, true), [7, 1, 1, 5, 6]);
        assert_eq!(joined(vec![vec![5, 6]], 1, true), [5, 6]);
    }

    #[test]
    fn tasks_are_cut_off_and_have_batches_of_their_own() {
        let mut corpus = corpus(&[4, 6, 5], 8);
        corpus.push_task(&[1; 3], &[2; 12], 8);
        corpus.push_task(&[3; 9], &[4; 2], 8);
        corpus.push_task(&[3; 9], &[], 8);
        assert_eq!((corpus.len(), corpus.too_short), (5, 1));
        assert_eq!((corpus.text(3), corpus.target(3)), ([1; 3].as_slice(), Some([2; 8].as_slice())));
        assert_eq!((corpus.text(4), corpus.target(4)), ([3; 8].as_slice(), Some([4; 2].as_slice())));
        assert_eq!(corpus.target(0), None);
        assert_eq!(corpus.tokens(), 4 + 6 + 5 + 3 + 8 + 8 + 2);
        assert_eq!(corpus.batches(&[0, 1, 2, 3, 4], 100), [vec![1, 2, 0], vec![3, 4]]);
        assert_eq!(corpus.batches(&[3, 4], 15), [[3], [4]]);
    }

    #[test]
    fn columns_are_separated_by_plus_or_equals() {
        let pair: CorpusText = "a/b.parquet:de+en".parse().unwrap();
        assert_eq!(
            (pair.columns.as_slice(), pair.to_string().as_str()),
            (["de".to_owned(), "en".to_owned()].as_slice(), "a/b.parquet:de+en")
        );
        assert_eq!("b.jsonl:text".parse::<CorpusText>().unwrap().columns, ["text"]);
        let task: CorpusText = "a.parquet:de=en".parse().unwrap();
        assert_eq!((task.form.clone(), task.to_string().as_str()), (Form::Task, "a.parquet:de=en"));
        for bad in [
            "a.parquet:de+",
            "a.parquet:+",
            "a.parquet",
            "a.parquet:",
            "a.parquet:de=",
            "a.parquet:a=b=c",
            "a.parquet:a+b=c",
        ] {
            assert!(bad.parse::<CorpusText>().is_err(), "{bad}");
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
