//! Words of a text, and the tokens of each.

use std::collections::BTreeMap;

use tokenizers::ModelWrapper;

use crate::error::{Error, Result};
use crate::source::Source;
use crate::tokenizer::Tokenizer;

/// Texts tokenized at a time.
const TEXTS_AT_A_TIME: usize = 4096;

impl Tokenizer {
    /// `ids` split into words: the first token of each word, and those that continue it.
    ///
    /// # Errors
    /// If the tokenizer is not a WordPiece one: other kinds do not mark which tokens continue a word.
    pub fn words<'i>(&self, ids: &'i [i32]) -> Result<Vec<&'i [i32]>> {
        let prefix = self.continuing()?;
        let continues = |&id: &i32| self.token(id).is_some_and(|token| token.starts_with(prefix));
        Ok(ids.chunk_by(|_, next| continues(next)).collect())
    }

    /// The prefix of tokens that continue a word, such as `##`.
    fn continuing(&self) -> Result<&str> {
        match self.model() {
            ModelWrapper::WordPiece(model) if !model.continuing_subword_prefix.is_empty() => {
                Ok(&model.continuing_subword_prefix)
            }
            _ => Err(Error::Tokenizer {
                origin: self.origin().to_owned(),
                reason: "its model is not WordPiece, the only kind that marks the tokens inside of a word".to_owned(),
            }),
        }
    }
}

/// All words of the texts of a source with one column, as the tokenizer spells them, and how often each occurs.
///
/// # Errors
/// If a text cannot be read or tokenized, or the tokenizer is not a WordPiece one.
pub fn word_list(source: &Source, tokenizer: &Tokenizer) -> Result<BTreeMap<String, u64>> {
    let prefix = tokenizer.continuing()?;
    let mut counts: BTreeMap<Vec<i32>, u64> = BTreeMap::new();
    let mut texts = source.texts();
    loop {
        let part = texts.by_ref().take(TEXTS_AT_A_TIME).collect::<Result<Vec<String>>>()?;
        if part.is_empty() {
            break;
        }
        for ids in tokenizer.encode_batch(&part)? {
            tokenizer.words(&ids)?.into_iter().for_each(|word| *counts.entry(word.to_vec()).or_default() += 1);
        }
    }
    let spelt = |&id: &i32| {
        let token = tokenizer.token(id).unwrap_or_default();
        token.strip_prefix(prefix).map_or(token.clone(), str::to_owned)
    };
    Ok(counts.iter().map(|(word, count)| (word.iter().map(spelt).collect(), *count)).collect())
}
