//! The words that a model's texts may consist of.

use std::fs;
use std::path::Path;

use elf_data::Tokenizer;
use elf_flow::Lexicon;

use crate::Result;
use crate::error::Context;

/// The file of a model's words, one a line, in the model's folder.
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
    let mut words = vec![vec![i64::from(tokenizer.eos_id()?)], vec![i64::from(tokenizer.pad_id()?)]];
    for ids in tokenizer.encode_batch(&text.lines().collect::<Vec<_>>())? {
        let known = tokenizer.words(&ids).with_context(|| path.display())?.into_iter();
        words.extend(known.map(|word| word.iter().map(|&id| i64::from(id)).collect()));
    }
    Ok(Some(Lexicon::new(words, tokenizer.vocab_size() as i64).with_context(|| path.display())?))
}
