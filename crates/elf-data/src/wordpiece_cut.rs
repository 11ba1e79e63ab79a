//! Cutting a WordPiece vocabulary down to the pieces that a corpus uses.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Counts the pieces of texts, and cuts a vocabulary by the counts.
#[derive(Debug)]
pub struct WordPieceCut<'a> {
    tokenizer: &'a Tokenizer,
    file: Value,
    /// By id.
    counts: Vec<u64>,
}

/// A tokenizer of fewer pieces.
#[derive(Debug)]
pub struct SmallerTokenizer {
    /// The tokenizer, its ids counted anew without gaps in the old order.
    pub tokenizer: Tokenizer,
    /// The old id of each new one: the rows of an embedding table that are kept.
    pub kept: Vec<i32>,
}

impl<'a> WordPieceCut<'a> {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// If the tokenizer is of another kind.
    pub fn new(tokenizer: &'a Tokenizer) -> Result<Self> {
        let refuse = |reason: String| Error::Tokenizer { origin: tokenizer.origin().to_owned(), reason };
        let file: Value = serde_json::from_slice(tokenizer.json()).map_err(|e| refuse(e.to_string()))?;
        match file["model"]["type"].as_str() {
            Some("WordPiece") => Ok(Self { tokenizer, file, counts: vec![0; tokenizer.vocab_size()] }),
            kind => Err(refuse(format!("its model is {}; only WordPiece can be cut", kind.unwrap_or("unknown")))),
        }
    }

    /// Counts the pieces of texts.
    ///
    /// # Errors
    /// If the tokenizer refuses a text.
    pub fn count<S: AsRef<str> + Sync>(&mut self, texts: &[S]) -> Result<()> {
        for ids in self.tokenizer.encode_batch(texts)? {
            ids.iter().for_each(|&id| self.counts[id as usize] += 1);
        }
        Ok(())
    }

    /// Keeps what was counted `least` times, all added tokens, and single characters, at the beginning and inside of words, that are
    /// printable ASCII or were counted in any piece: no counted text needs the unknown token.
    ///
    /// # Errors
    /// If the file's vocabulary is damaged.
    pub fn cut(&self, least: u64) -> Result<SmallerTokenizer> {
        let refuse =
            |reason: &str| Error::Tokenizer { origin: self.tokenizer.origin().to_owned(), reason: reason.into() };
        let vocab = self.file["model"]["vocab"].as_object().ok_or_else(|| refuse("its model has no vocab"))?;
        let prefix = self.file["model"]["continuing_subword_prefix"].as_str().unwrap_or("##");
        let added = self.file["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        let id_of = |value: &Value| value.as_u64().ok_or_else(|| refuse("an id is no number"));
        let added_ids = added.iter().map(|token| id_of(&token["id"])).collect::<Result<BTreeSet<_>>>()?;
        let pieces = vocab.iter().map(|(piece, id)| Ok((piece, id_of(id)?))).collect::<Result<Vec<_>>>()?;
        let counted = |id: u64| usize::try_from(id).ok().and_then(|id| self.counts.get(id)).copied().unwrap_or(0);
        let bare = |piece: &'_ str| piece.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(str::to_owned);
        let mut characters: BTreeSet<char> = ('!'..='~').collect();
        for (piece, _) in pieces.iter().filter(|(_, id)| counted(*id) > 0 && !added_ids.contains(id)) {
            characters.extend(bare(piece).as_deref().unwrap_or(piece).chars());
        }
        let is_single = |piece: &str| {
            let bare = bare(piece);
            let mut inside = bare.as_deref().unwrap_or(piece).chars();
            inside.next().is_some_and(|c| characters.contains(&c)) && inside.next().is_none()
        };
        let mut kept = added_ids.clone();
        kept.extend(pieces.iter().filter(|(piece, id)| counted(*id) >= least || is_single(piece)).map(|(_, id)| *id));
        let new: BTreeMap<u64, usize> = kept.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let vocab = pieces.iter().filter_map(|(piece, id)| Some(((*piece).clone(), json!(new.get(id)?))));
        let mut file = self.file.clone();
        file["model"]["vocab"] = Value::Object(vocab.collect());
        for token in file["added_tokens"].as_array_mut().into_iter().flatten() {
            renumber(&mut token["id"], &new);
        }
        renumber_post_processor(&mut file["post_processor"], &new);
        (file["truncation"], file["padding"]) = (Value::Null, Value::Null);
        let text = format!("{file:#}\n");
        Ok(SmallerTokenizer {
            tokenizer: Tokenizer::from_json(text)?,
            // Ids fit: the tokenizer was read.
            kept: kept.into_iter().map(|id| id as i32).collect(),
        })
    }
}

fn renumber(id: &mut Value, new: &BTreeMap<u64, usize>) {
    if let Some(found) = id.as_u64().and_then(|old| new.get(&old)) {
        *id = json!(found);
    }
}

/// The ids of special tokens in the two forms that BERT's files have.
fn renumber_post_processor(processor: &mut Value, new: &BTreeMap<u64, usize>) {
    for key in ["cls", "sep"] {
        if let Some(id) = processor.get_mut(key).and_then(|pair| pair.get_mut(1)) {
            renumber(id, new);
        }
    }
    if let Some(tokens) = processor.get_mut("special_tokens").and_then(Value::as_object_mut) {
        for token in tokens.values_mut() {
            token["ids"].as_array_mut().into_iter().flatten().for_each(|id| renumber(id, new));
        }
    }
}
