//! Selecting rows of a corpus by explicit rules: the first paragraph or sentence only, no repeated texts, few near duplicates, no
//! long texts.
//!
//! The result is a file of JSON lines with the source's column names, unless new names are given. Token shards, the references of
//! metrics, and the training texts that novelty is measured against can then all be made from the same file.

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

/// Number of rows that are judged together, on all cores.
const ROWS_PER_GROUP: usize = 4096;

/// Fewest words of a text that can be a near duplicate: two shorter texts that differ in one word have little in common.
const LEAST_WORDS_OF_A_FAMILY: usize = 4;

/// Which rows of a source are kept, and which part of their texts. All columns named here must be columns of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelectionConfig {
    /// Columns of which only the text up to the first line break is kept.
    pub first_paragraph: BTreeSet<String>,
    /// Columns of which only the first sentence is kept (sentences by Unicode Standard Annex 29). A row is left out if its text, or
    /// the first line of it, ends without an end mark: headings, beginnings of lists.
    pub first_sentence: BTreeSet<String>,
    /// Most tokens of a column's text; rows with longer texts are left out, not cut.
    pub max_tokens: BTreeMap<String, usize>,
    /// A row is left out if an earlier row has the same text in all these columns. Empty: rows may repeat.
    pub unique: BTreeSet<String>,
    /// Most texts of a column that are equal except for one word at the same place; rows with further such texts are left out. Texts
    /// of fewer than four words always stay. Needs about 50 bytes of memory per word of the texts that stay.
    pub near_duplicates: BTreeMap<String, usize>,
    /// Only every n-th of the remaining rows is kept; 0 and 1 keep all.
    pub every_nth: usize,
    /// New names of columns; columns without one keep theirs.
    pub renamed: BTreeMap<String, String>,
}

/// Texts that must not appear in a column: those of another split, so that test texts are never trained on.
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

/// Numbers of rows that a selection kept and left out.
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
    /// Rows left out because an earlier row was equal.
    pub repeated: u64,
    /// Rows left out because enough earlier texts were equal except for one word.
    pub near_duplicates: u64,
    /// Rows left out because another split has one of their texts.
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
            return Err(Error::Config(format!("the limit of near duplicates in `{column}` is 0: choose at least 1")));
        }
        if !self.max_tokens.is_empty() && tokenizer.is_none() {
            return Err(Error::Config("a limit in tokens needs a tokenizer".to_owned()));
        }
        Ok(())
    }

    /// Applies the rules that concern the row alone: the row as it would be written, or the reason why it is left out.
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

/// The first sentence of `text`; `None` if it has no end mark.
fn first_sentence(text: &str) -> Option<&str> {
    let sentence = text.split_sentence_bounds().next()?.trim_end();
    // Quotation marks and brackets may follow the end mark.
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

/// The forms of a text: see [`Families`].
struct Family {
    forms: Vec<blake3::Hash>,
    /// Most texts of one form that stay.
    most: usize,
}

/// Writes the selected rows of `source` to `output` as JSON lines, in the source's order.
///
/// # Errors
/// If a rule names a column that is not read, a limit is given without a tokenizer, a text cannot be read or encoded, no row is
/// left, or the file cannot be written. An unfinished file never gets the name `output`.
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
    let mut filter = Filter::new(config, columns, excluded);
    let mut file = elf_files::begin(output).map_err(Error::io("write", output))?;
    let mut writer = BufWriter::new(file.as_file_mut());
    let mut rows = source.rows();
    loop {
        let group = rows.by_ref().take(ROWS_PER_GROUP).collect::<Result<Vec<_>>>()?;
        if group.is_empty() {
            break;
        }
        let judged: Vec<Judged> =
            group.into_par_iter().map(|row| config.judge(row, columns, tokenizer)).collect::<Result<_>>()?;
        for row in judged.into_iter().filter_map(|judged| filter.take(judged)) {
            let line: Map<String, Value> =
                names.iter().map(|&name| name.clone()).zip(row.into_iter().map(Value::from)).collect();
            writeln!(writer, "{}", Value::Object(line)).map_err(Error::io("write", output))?;
        }
    }
    writer.flush().map_err(Error::io("write", output))?;
    drop(writer);
    let report = filter.report;
    if report.written == 0 {
        return Err(nothing_left(&report));
    }
    elf_files::finish(file, output).map_err(Error::io("write", output))?;
    Ok(report)
}

fn nothing_left(report: &SelectionReport) -> Error {
    Error::Config(format!(
        "nothing is left of {} rows: {} were empty, {} without a whole sentence, {} too long, {} repeated, {} near duplicates, \
         {} in another split",
        report.read,
        report.empty,
        report.no_sentence,
        report.too_long,
        report.repeated,
        report.near_duplicates,
        report.excluded
    ))
}

/// The rules that compare a row with other rows, applied in the source's order.
struct Filter<'a> {
    config: &'a SelectionConfig,
    columns: &'a [String],
    excluded: &'a Excluded,
    seen: HashSet<blake3::Hash>,
    families: Families,
    /// Rows that passed all rules, before `every_nth` is applied.
    passed: u64,
    report: SelectionReport,
}

impl<'a> Filter<'a> {
    fn new(config: &'a SelectionConfig, columns: &'a [String], excluded: &'a Excluded) -> Self {
        let (seen, families) = (HashSet::new(), Families::default());
        Self { config, columns, excluded, seen, families, passed: 0, report: SelectionReport::default() }
    }

    /// The row's texts if it is to be written. Counts the row in the report.
    fn take(&mut self, judged: Judged) -> Option<TextRow> {
        self.report.read += 1;
        let Candidate { texts, families } = match judged {
            Judged::Kept(candidate) => candidate,
            Judged::Empty => return leave_out(&mut self.report.empty),
            Judged::NoSentence => return leave_out(&mut self.report.no_sentence),
            Judged::TooLong => return leave_out(&mut self.report.too_long),
        };
        if self.excluded.has(&texts, self.columns) {
            return leave_out(&mut self.report.excluded);
        }
        let unique = &self.config.unique;
        if !unique.is_empty() && !self.seen.insert(fingerprint(&texts, self.columns, unique)) {
            return leave_out(&mut self.report.repeated);
        }
        if !self.families.take(families) {
            return leave_out(&mut self.report.near_duplicates);
        }
        self.passed += 1;
        let wanted = (self.passed - 1).is_multiple_of(self.config.every_nth.max(1) as u64);
        self.report.written += u64::from(wanted);
        wanted.then_some(texts)
    }
}

/// Counts a row that is left out.
fn leave_out(count: &mut u64) -> Option<TextRow> {
    *count += 1;
    None
}

/// A hash of the columns in `of`: equal for two rows exactly if all these columns are.
fn fingerprint(row: &TextRow, columns: &[String], of: &BTreeSet<String>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (text, _) in row.iter().zip(columns).filter(|(_, column)| of.contains(*column)) {
        add(&mut hasher, text);
    }
    hasher.finalize()
}

/// Hashes a text with its length, so that texts hashed one after another stay distinct.
fn add(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
}

/// Number of texts seen of each form. A form is a text with one word left open; near duplicates share a form.
#[derive(Default)]
struct Families(HashMap<blake3::Hash, usize>);

impl Families {
    /// Whether none of the row's forms has reached its limit. If so, the row's texts are counted.
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

/// One hash per word of a text with enough words: equal for two texts of a column exactly if all other words are equal.
fn forms(column: &str, text: &str) -> Vec<blake3::Hash> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.len() < LEAST_WORDS_OF_A_FAMILY {
        return Vec::new();
    }
    let before = prefix_hashes(words.iter());
    let after = prefix_hashes(words.iter().rev());
    let form = |(before, after): (&blake3::Hash, &blake3::Hash)| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(before.as_bytes()).update(after.as_bytes()).update(column.as_bytes());
        hasher.finalize()
    };
    before.iter().zip(after.iter().rev()).map(form).collect()
}

/// For each word, a hash of the words before it.
fn prefix_hashes<'a>(words: impl Iterator<Item = &'a &'a str>) -> Vec<blake3::Hash> {
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
    fn texts_of_another_split_are_left_out_with_all_that_follows_them() {
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
