//! Some texts of a corpus, by rules that can be told: the first paragraph or sentence only, no text twice, few that differ in one word,
//! none that is too long.
//!
//! The result is a JSON Lines file, with the source's column names unless others are given. Token shards, references of metrics and the training texts
//! that novelty is held against can then all be made from one and the same file.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use unicode_segmentation::UnicodeSegmentation;

use crate::error::{Error, Result};
use crate::source::{Source, TextRow};
use crate::tokenizer::Tokenizer;

/// Rows are looked at in groups of this many, on all cores.
const ROWS_PER_GROUP: usize = 4096;

/// Texts of fewer words have too little in common with others that differ in one word.
const LEAST_WORDS_OF_A_FAMILY: usize = 4;

/// Which rows of a source are taken, and what of them. All columns named here must be columns of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectionConfig {
    /// Columns of which only the text up to the first line break is kept.
    pub first_paragraph: BTreeSet<String>,
    /// Columns of which only the first sentence is kept, as Unicode Standard Annex 29 tells sentences. A row is left out if its
    /// text, or the first line of it, ends before a sentence does: headings, beginnings of lists.
    pub first_sentence: BTreeSet<String>,
    /// The most tokens that a column's text may have; longer texts are left out with their rows, not cut.
    pub max_tokens: BTreeMap<String, usize>,
    /// A row is left out if an earlier one has the same text in all these columns. Empty: rows may repeat.
    pub unique: BTreeSet<String>,
    /// The most texts of a column that are the same but for one word, in the same place; later ones are left out with their rows. Texts
    /// of fewer than four words always stay. Takes some 50 bytes of memory for each word of the texts that stay.
    pub near_duplicates: BTreeMap<String, usize>,
    /// Of the rows that are left, only every n-th is taken. 0 and 1 take all.
    pub every_nth: usize,
    /// New names of columns; the others keep theirs.
    pub renamed: BTreeMap<String, String>,
}

/// Texts that a column must not have: those of another split, so that nothing is tested on that was learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excluded {
    texts: BTreeMap<String, HashSet<blake3::Hash>>,
}

impl Excluded {
    /// Excludes `texts` from `column`.
    ///
    /// # Errors
    /// Those of reading them.
    pub fn add(&mut self, column: &str, texts: impl IntoIterator<Item = Result<String>>) -> Result<()> {
        let set = self.texts.entry(column.to_owned()).or_default();
        for text in texts {
            set.insert(blake3::hash(text?.trim().as_bytes()));
        }
        Ok(())
    }

    fn has(&self, row: &TextRow, columns: &[String]) -> bool {
        row.iter().zip(columns).any(|(text, column)| {
            self.texts.get(column).is_some_and(|known| known.contains(&blake3::hash(text.as_bytes())))
        })
    }
}

/// What a selection took and left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SelectionReport {
    /// Rows of the source.
    pub read: u64,
    /// Rows left out because a column was empty.
    pub empty: u64,
    /// Rows left out because a text does not begin with a whole sentence.
    pub no_sentence: u64,
    /// Rows left out because a text was too long.
    pub too_long: u64,
    /// Rows left out because an earlier one was the same.
    pub repeated: u64,
    /// Rows left out because as many earlier texts as are allowed are the same but for one word.
    pub near_duplicates: u64,
    /// Rows left out because another split has a text of theirs.
    pub excluded: u64,
    /// Rows written.
    pub written: u64,
}

impl SelectionConfig {
    fn check(&self, source: &Source, excluded: &Excluded, tokenizer: Option<&Tokenizer>) -> Result<()> {
        let named = self.first_paragraph.iter().chain(&self.first_sentence).chain(self.max_tokens.keys());
        let named = named.chain(&self.unique).chain(self.near_duplicates.keys());
        let named = named.chain(self.renamed.keys()).chain(excluded.texts.keys());
        for column in named {
            if !source.columns().contains(column) {
                return Err(Error::Config(format!(
                    "a rule is given for the column `{column}`, but only {} {} read",
                    source.columns().join(", "),
                    if source.columns().len() == 1 { "is" } else { "are" }
                )));
            }
        }
        if let Some((column, _)) = self.near_duplicates.iter().find(|(_, most)| **most == 0) {
            return Err(Error::Config(format!("of the near duplicates in `{column}` at least 1 has to stay")));
        }
        if !self.max_tokens.is_empty() && tokenizer.is_none() {
            return Err(Error::Config("a limit in tokens needs a tokenizer".to_owned()));
        }
        Ok(())
    }

    /// The row as it would be written, or the reason why it is left out.
    fn judge(&self, row: TextRow, columns: &[String], tokenizer: Option<&Tokenizer>) -> Result<Judged> {
        let mut kept = Candidate { texts: Vec::with_capacity(row.len()), families: Vec::new() };
        for (text, column) in row.into_iter().zip(columns) {
            let text = match text.split_once('\n') {
                Some((first, _)) if self.first_paragraph.contains(column) => first.trim().to_owned(),
                _ => text.trim().to_owned(),
            };
            if text.is_empty() {
                return Ok(Judged::Empty);
            }
            let text = if self.first_sentence.contains(column) {
                let Some(sentence) = first_sentence(&text) else { return Ok(Judged::NoSentence) };
                sentence.to_owned()
            } else {
                text
            };
            if let (Some(&most), Some(tokenizer)) = (self.max_tokens.get(column), tokenizer)
                && tokenizer.encode(&text)?.len() > most
            {
                return Ok(Judged::TooLong);
            }
            if let Some(&most) = self.near_duplicates.get(column) {
                kept.families.push(Family { forms: forms(column, &text), most });
            }
            kept.texts.push(text);
        }
        Ok(Judged::Kept(kept))
    }
}

/// The sentence that `text` begins with; none if it has no end mark.
fn first_sentence(text: &str) -> Option<&str> {
    let sentence = text.split_sentence_bounds().next()?.trim_end();
    // What may close a quotation or a bracket may stand behind the mark.
    sentence
        .trim_end_matches(['"', '\'', ')', ']', '”', '’', '»'])
        .ends_with(['.', '!', '?', '…', '。'])
        .then_some(sentence)
}

enum Judged {
    Empty,
    NoSentence,
    TooLong,
    Kept(Candidate),
}

/// A row that no rule about itself leaves out.
struct Candidate {
    texts: TextRow,
    /// One for each column in which near duplicates are limited.
    families: Vec<Family>,
}

/// What a text may be a near duplicate of.
struct Family {
    forms: Vec<blake3::Hash>,
    /// The most texts of a form that stay.
    most: usize,
}

/// Writes the selected rows of `source` to `output` as JSON Lines, in the source's order.
///
/// # Errors
/// If a rule names a column that is not read, a limit is given without a tokenizer, a text cannot be read or encoded, nothing is
/// left, or the file cannot be written. An unfinished file is never left under the name of `output`.
pub fn select(
    source: &Source,
    config: &SelectionConfig,
    excluded: &Excluded,
    tokenizer: Option<&Tokenizer>,
    output: &Path,
) -> Result<SelectionReport> {
    config.check(source, excluded, tokenizer)?;
    let columns = source.columns();
    let names: Vec<&String> = columns.iter().map(|column| config.renamed.get(column).unwrap_or(column)).collect();
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        return Err(Error::Config("two columns would have the same name".to_owned()));
    }
    let mut report = SelectionReport::default();
    let mut seen: HashSet<blake3::Hash> = HashSet::new();
    let mut families = Families::default();
    let mut left = 0u64;
    let mut file = elf_files::begin(output).map_err(Error::io("write", output))?;
    {
        let mut writer = BufWriter::new(file.as_file_mut());
        let mut rows = source.rows();
        loop {
            let group = rows.by_ref().take(ROWS_PER_GROUP).collect::<Result<Vec<_>>>()?;
            if group.is_empty() {
                break;
            }
            report.read += group.len() as u64;
            let judged: Vec<Judged> =
                group.into_par_iter().map(|row| config.judge(row, columns, tokenizer)).collect::<Result<_>>()?;
            for judged in judged {
                let Candidate { texts: row, families: its_families } = match judged {
                    Judged::Empty => {
                        report.empty += 1;
                        continue;
                    }
                    Judged::NoSentence => {
                        report.no_sentence += 1;
                        continue;
                    }
                    Judged::TooLong => {
                        report.too_long += 1;
                        continue;
                    }
                    Judged::Kept(candidate) => candidate,
                };
                if excluded.has(&row, columns) {
                    report.excluded += 1;
                    continue;
                }
                if !config.unique.is_empty() && !seen.insert(fingerprint(&row, columns, &config.unique)) {
                    report.repeated += 1;
                    continue;
                }
                if !families.take(its_families) {
                    report.near_duplicates += 1;
                    continue;
                }
                left += 1;
                if (left - 1).is_multiple_of(config.every_nth.max(1) as u64) {
                    let line: Map<String, Value> =
                        names.iter().map(|&name| name.clone()).zip(row.into_iter().map(Value::from)).collect();
                    writeln!(writer, "{}", Value::Object(line)).map_err(Error::io("write", output))?;
                    report.written += 1;
                }
            }
        }
        writer.flush().map_err(Error::io("write", output))?;
    }
    if report.written == 0 {
        return Err(Error::Config(format!(
            "nothing is left of {} rows: {} were empty, {} without a whole sentence, {} too long, {} repeated, {} near duplicates, \
             {} in another split",
            report.read,
            report.empty,
            report.no_sentence,
            report.too_long,
            report.repeated,
            report.near_duplicates,
            report.excluded
        )));
    }
    elf_files::finish(file, output).map_err(Error::io("write", output))?;
    Ok(report)
}

/// The same for two rows exactly if all columns in `of` are.
fn fingerprint(row: &TextRow, columns: &[String], of: &BTreeSet<String>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (text, _) in row.iter().zip(columns).filter(|(_, column)| of.contains(*column)) {
        add(&mut hasher, text);
    }
    hasher.finalize()
}

/// Adds a text so that it does not run into the next one.
fn add(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
}

/// How many texts of a column there were of each form, which is a text with one word left open.
#[derive(Default)]
struct Families(HashMap<blake3::Hash, usize>);

impl Families {
    /// Whether a row's texts are among the first so many of all their forms; if they are, they count.
    fn take(&mut self, row: Vec<Family>) -> bool {
        let full =
            |family: &Family| family.forms.iter().any(|form| self.0.get(form).is_some_and(|&n| n >= family.most));
        if row.iter().any(full) {
            return false;
        }
        row.into_iter().flat_map(|family| family.forms).for_each(|form| *self.0.entry(form).or_default() += 1);
        true
    }
}

/// One for each word of a text that has enough of them: the same for two texts of a column exactly if they have the same words
/// everywhere but there.
fn forms(column: &str, text: &str) -> Vec<blake3::Hash> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.len() < LEAST_WORDS_OF_A_FAMILY {
        return Vec::new();
    }
    let before = what_is_before(words.iter());
    let behind = what_is_before(words.iter().rev());
    let form = |(before, behind): (&blake3::Hash, &blake3::Hash)| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(before.as_bytes()).update(behind.as_bytes()).update(column.as_bytes());
        hasher.finalize()
    };
    before.iter().zip(behind.iter().rev()).map(form).collect()
}

/// For each word, a hash of those before it.
fn what_is_before<'a>(words: impl Iterator<Item = &'a &'a str>) -> Vec<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let words = words.map(|word| {
        let before = hasher.finalize();
        add(&mut hasher, word);
        before
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::PlainText;
    use std::fs;

    fn selected(rows: &[(&str, &str)], config: &SelectionConfig) -> Result<(SelectionReport, Vec<(String, String)>)> {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
        let lines: Vec<String> = rows.iter().map(|(a, b)| serde_json::json!({"a": a, "b": b}).to_string()).collect();
        fs::write(&input, lines.join("\n")).unwrap();
        let source = Source::open(&[&input], &["a", "b"], PlainText::Lines).unwrap();
        let report = select(&source, config, &Excluded::default(), None, &output)?;
        let again = Source::open(&[&output], &["a", "b"], PlainText::Lines).unwrap();
        let rows = again.rows().map(|row| row.map(|r| (r[0].clone(), r[1].clone()))).collect::<Result<_>>()?;
        Ok((report, rows))
    }

    #[test]
    fn first_paragraphs_are_compared_after_they_were_cut() {
        let config = SelectionConfig {
            first_paragraph: ["a".to_owned()].into(),
            unique: ["a".to_owned()].into(),
            ..SelectionConfig::default()
        };
        let (report, rows) =
            selected(&[("one\nmore", "x"), ("one\nelse", "y"), ("two", "y\nz"), (" \nthree", "w")], &config).unwrap();
        let wanted = [("one", "x"), ("two", "y\nz")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(rows, wanted);
        assert_eq!(report, SelectionReport { read: 4, empty: 1, repeated: 1, written: 2, ..Default::default() });
    }

    #[test]
    fn first_sentences_are_whole_or_left_out() {
        let config = SelectionConfig { first_sentence: ["a".to_owned()].into(), ..SelectionConfig::default() };
        let rows = [
            ("A parser for XML 1.0 files, e.g. of Node.js. It is fast.", "x"),
            ("(It says \"stop!\") And goes on.", "y"),
            ("Features:\n - one. two.", "z"),
            ("Really? Yes.\nMore.", "w"),
        ];
        let (report, rows) = selected(&rows, &config).unwrap();
        let firsts: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
        assert_eq!(firsts, ["A parser for XML 1.0 files, e.g. of Node.js.", "(It says \"stop!\")", "Really?"]);
        assert_eq!((report.no_sentence, report.written), (1, 3));
    }

    #[test]
    fn texts_of_two_columns_do_not_run_into_one_another() {
        let config = SelectionConfig { unique: ["a".to_owned(), "b".to_owned()].into(), ..SelectionConfig::default() };
        let (report, _) = selected(&[("ab", "c"), ("a", "bc"), ("a", "bc")], &config).unwrap();
        assert_eq!((report.repeated, report.written), (1, 2));
    }

    #[test]
    fn of_texts_that_differ_in_one_word_a_few_stay() {
        let texts = |config: &SelectionConfig, rows: &[&str]| {
            let rows: Vec<(&str, &str)> = rows.iter().map(|text| (*text, "x")).collect();
            let (report, rows) = selected(&rows, config).unwrap();
            (report.near_duplicates, rows.into_iter().map(|row| row.0).collect::<Vec<_>>())
        };
        let most = |n| SelectionConfig { near_duplicates: [("a".to_owned(), n)].into(), ..SelectionConfig::default() };
        let family =
            ["Bindings of C for Go.", "Bindings of C for  Rust.", "Bindings of D for Go.", "A tool of D for Go."];
        assert_eq!(texts(&most(1), &family).1, [family[0], family[3]]);
        // The third shares no form with the second, and two may be of one form.
        assert_eq!(texts(&most(2), &family), (0, family.map(str::to_owned).to_vec()));
        let (left_out, stay) = texts(&most(2), &["a b c 1", "a b c 2", "a b c 3", "a b 4 3", "a b c 2 d", "a b d c"]);
        assert_eq!(
            (left_out, stay),
            (1, ["a b c 1", "a b c 2", "a b 4 3", "a b c 2 d", "a b d c"].map(str::to_owned).to_vec())
        );
        // What is left out does not count, and short texts are always left in.
        assert_eq!(texts(&most(1), &["a b c 1", "a b c 2", "x b c 2"]).0, 1);
        assert_eq!(texts(&most(1), &["a b 1", "a b 2", "1", "2"]).0, 0);
        assert!(selected(&[("1", "x")], &most(0)).unwrap_err().to_string().contains("at least 1"));
    }

    #[test]
    fn what_another_split_has_is_left_out_whatever_stands_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
        fs::write(&input, "{\"a\": \"one\\nmore\"}\n{\"a\": \"two\"}").unwrap();
        let source = Source::open(&[&input], &["a"], PlainText::Lines).unwrap();
        let config = SelectionConfig { first_paragraph: ["a".to_owned()].into(), ..SelectionConfig::default() };
        let mut excluded = Excluded::default();
        excluded.add("a", [Ok("one ".to_owned())]).unwrap();
        let report = select(&source, &config, &excluded, None, &output).unwrap();
        assert_eq!((report.excluded, report.written), (1, 1));
        assert_eq!(fs::read_to_string(&output).unwrap(), "{\"a\":\"two\"}\n");
        excluded.add("b", []).unwrap();
        assert!(select(&source, &config, &excluded, None, &output).is_err());
    }

    #[test]
    fn every_second_of_those_left() {
        let config = SelectionConfig { unique: ["a".to_owned()].into(), every_nth: 2, ..SelectionConfig::default() };
        let (_, rows) = selected(&[("1", "x"), ("1", "x"), ("2", "x"), ("3", "x")], &config).unwrap();
        assert_eq!(rows.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(), ["1", "3"]);
    }

    #[test]
    fn columns_get_new_names_but_not_the_same() {
        let config =
            SelectionConfig { renamed: [("a".to_owned(), "text".to_owned())].into(), ..SelectionConfig::default() };
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
        fs::write(&input, r#"{"a": "1", "b": "2"}"#).unwrap();
        let source = Source::open(&[&input], &["a", "b"], PlainText::Lines).unwrap();
        select(&source, &config, &Excluded::default(), None, &output).unwrap();
        assert_eq!(fs::read_to_string(&output).unwrap(), "{\"b\":\"2\",\"text\":\"1\"}\n");
        let config =
            SelectionConfig { renamed: [("a".to_owned(), "b".to_owned())].into(), ..SelectionConfig::default() };
        assert!(select(&source, &config, &Excluded::default(), None, &output).is_err());
    }

    #[test]
    fn rules_that_cannot_apply_are_refused() {
        let rows = [("1", "x")];
        let config = SelectionConfig { unique: ["c".to_owned()].into(), ..SelectionConfig::default() };
        assert!(selected(&rows, &config).unwrap_err().to_string().contains("`c`"));
        let config = SelectionConfig { max_tokens: [("a".to_owned(), 3)].into(), ..SelectionConfig::default() };
        assert!(selected(&rows, &config).unwrap_err().to_string().contains("tokenizer"));
        assert!(selected(&[("", "x")], &SelectionConfig::default()).unwrap_err().to_string().contains("1 were empty"));
    }
}
