//! The words that a model's texts may consist of.

use std::fs;
use std::path::Path;

use elf_data::Tokenizer;
use elf_flow::Lexicon;

use crate::Result;
use crate::error::{Context, fail};

/// The file of a model's words in the model's folder: a line for each, with how often it occurs.
pub const WORDS: &str = "words.txt";

/// The lexicon of the model in `folder`, if there is a list of words: these, the end of a text and padding.
///
/// # Errors
/// If the file cannot be read, or the tokenizer does not tell words apart.
pub(super) fn lexicon_of(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Lexicon>> {
    let path = folder.join(WORDS);
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut words = [tokenizer.eos_id()?, tokenizer.pad_id()?].map(|id| (vec![i64::from(id)], 1)).to_vec();
    let counted = |(number, line): (usize, &str)| match line.rsplit_once(' ').map(|(word, count)| (word, count.parse()))
    {
        Some((word, Ok(count))) => Ok((word.to_owned(), count)),
        _ => fail!(
            place(&path),
            "{}, line {}: a word, a space and how often it occurs are wanted, as `elf data words` writes them",
            path.display(),
            number + 1
        ),
    };
    let lines = text.lines().enumerate().map(counted).collect::<Result<Vec<(String, u64)>>>()?;
    let (spelt, counts): (Vec<String>, Vec<u64>) = lines.into_iter().unzip();
    for (ids, count) in tokenizer.encode_batch(&spelt)?.iter().zip(counts) {
        let known = tokenizer.words(ids).with_context(|| path.display())?.into_iter();
        words.extend(known.map(|word| (word.iter().map(|&id| i64::from(id)).collect(), count)));
    }
    Ok(Some(Lexicon::new(words, tokenizer.vocab_size() as i64).with_context(|| path.display())?))
}
