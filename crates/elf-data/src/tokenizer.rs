//! Text to token ids and back.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use crate::error::{Error, Result};

/// The padding token, as T5 writes it.
pub const PAD: &str = "<pad>";
/// The end-of-sequence token, as T5 writes it.
pub const EOS: &str = "</s>";
/// The unknown token, as T5 writes it.
pub const UNK: &str = "<unk>";
/// The same three, as BERT writes them.
const OF_BERT: [&str; 3] = ["[PAD]", "[SEP]", "[UNK]"];

/// A tokenizer read from a `tokenizer.json`.
///
/// Ids are `i32`, the type of the token shards. Nothing is added to a text (no EOS, no BOS): special tokens are a matter of data
/// preparation and are recorded there. Truncation and padding settings in the file are ignored for the same reason.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    fingerprint: String,
    origin: String,
    vocab_size: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("origin", &self.origin)
            .field("vocab_size", &self.vocab_size)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `path`, a `tokenizer.json` or a folder that holds one.
    ///
    /// # Errors
    /// If the file is missing, unreadable or not a tokenizer.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file: PathBuf = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let bytes = fs::read(&file).map_err(Error::io("read the tokenizer", &file))?;
        Self::parse(bytes, file.display().to_string())
    }

    /// Builds a tokenizer from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// If the bytes are not a tokenizer.
    pub fn from_json(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        Self::parse(bytes.into(), "in memory".to_owned())
    }

    fn parse(json: Vec<u8>, origin: String) -> Result<Self> {
        let refuse = |reason: String| Error::Tokenizer { origin: origin.clone(), reason };
        let value: Value = serde_json::from_slice(&json).map_err(|e| refuse(e.to_string()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&json).map_err(|e| refuse(e.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| refuse(e.to_string()))?;
        // The size is one more than the highest id, so that it bounds ids even where a vocabulary has holes.
        let highest = inner.get_vocab(true).into_values().max();
        let vocab_size = highest.map_or(0, |id| id as usize + 1);
        if vocab_size == 0 || vocab_size > i32::MAX as usize {
            return Err(refuse(format!("its vocabulary has {vocab_size} entries")));
        }
        Ok(Self { inner, fingerprint: fingerprint(&value), json, origin, vocab_size })
    }

    /// Writes the `tokenizer.json` this tokenizer was read from or trained as, byte for byte: to a path that ends in `.json` or is a
    /// file, or else into the folder of that path, which is created if it does not exist.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let is_file = path.is_file() || path.extension().is_some_and(|extension| extension == "json");
        let file = if is_file { path.to_owned() } else { path.join("tokenizer.json") };
        elf_files::write(&file, &self.json).map_err(Error::io("write", &file))
    }

    /// The library's model, which splits words into tokens.
    pub(crate) fn model(&self) -> &tokenizers::ModelWrapper {
        self.inner.get_model()
    }

    /// The bytes of the file.
    pub(crate) fn json(&self) -> &[u8] {
        &self.json
    }

    /// Number of ids, added and special tokens included; every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of the padding token: `<pad>` or `[PAD]`.
    ///
    /// # Errors
    /// If the vocabulary lacks it.
    pub fn pad_id(&self) -> Result<i32> {
        self.special([PAD, OF_BERT[0]])
    }

    /// The id of the token that ends a text: `</s>` or `[SEP]`.
    ///
    /// # Errors
    /// If the vocabulary lacks it.
    pub fn eos_id(&self) -> Result<i32> {
        self.special([EOS, OF_BERT[1]])
    }

    /// The id of the unknown token, `<unk>` or `[UNK]`, if the vocabulary has it.
    pub fn unk_id(&self) -> Option<i32> {
        self.special([UNK, OF_BERT[2]]).ok()
    }

    fn special(&self, names: [&'static str; 2]) -> Result<i32> {
        let id = names.iter().find_map(|name| self.id(name));
        id.ok_or_else(|| Error::MissingToken { origin: self.origin.clone(), names })
    }

    /// The token that an id stands for.
    pub fn token(&self, id: i32) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id))
    }

    /// The id of a token, if the vocabulary has it.
    pub fn id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).and_then(|id| i32::try_from(id).ok())
    }

    /// The ids of `text`, without any special token added.
    ///
    /// # Errors
    /// If the tokenizer's model refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::Tokenize { action: "encode a text", reason: e.to_string() })?;
        // Ids are below `vocab_size`, which was checked to fit when the tokenizer was read.
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// Encodes many texts on all cores; results come in the order of the texts.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<i32>>> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    /// The text of `ids`, special tokens left out. Ids outside the vocabulary are left out too; [`show`](Self::show) shows them.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.inner.decode(&ids, true).map_err(|e| Error::Tokenize { action: "decode ids", reason: e.to_string() })
    }

    /// The part of the text of `ids` that each id stands for. Together they are the beginning of the text that
    /// [`decode`](Self::decode) gives; a character of several ids is with the last of them.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn pieces(&self, ids: &[i32]) -> Result<Vec<String>> {
        let mut stream = self.inner.decode_stream(true);
        let piece = |&id: &i32| match u32::try_from(id) {
            Ok(id) => stream.step(id).map(Option::unwrap_or_default),
            Err(_) => Ok(String::new()),
        };
        let pieces = ids.iter().map(piece).collect::<Result<_, _>>();
        pieces.map_err(|e| Error::Tokenize { action: "decode ids", reason: e.to_string() })
    }

    /// As [`decode`](Self::decode), for a person: an id outside the vocabulary is shown as `<id 99999>`.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn show(&self, ids: &[i32]) -> Result<String> {
        let is_known = |id: i32| self.token(id).is_some();
        let parts = ids.chunk_by(|&one, &other| is_known(one) == is_known(other)).map(|part| match is_known(part[0]) {
            true => self.decode(part),
            false => Ok(part.iter().map(|id| format!("<id {id}>")).collect()),
        });
        Ok(parts.collect::<Result<Vec<String>>>()?.join(" "))
    }

    /// A hash (BLAKE3, 64 hex digits) of everything that decides which ids a text gets.
    ///
    /// It is taken over the values of the file, not its bytes: formatting, key order, and the settings that are ignored here
    /// (truncation, padding, post-processor) do not change it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Where the tokenizer came from, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }
}

/// The keys of a `tokenizer.json` that have no influence on [`Tokenizer::encode`] and [`Tokenizer::decode`].
const IGNORED: [&str; 4] = ["version", "truncation", "padding", "post_processor"];

fn fingerprint(file: &Value) -> String {
    let mut hasher = blake3::Hasher::new();
    match file {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().filter(|key| !IGNORED.contains(&key.as_str())).collect();
            keys.sort();
            for key in keys {
                hash_text(key, &mut hasher);
                hash_value(&map[key], &mut hasher);
            }
        }
        other => hash_value(other, &mut hasher),
    }
    hasher.finalize().to_hex().to_string()
}

/// Feeds a value in a form that does not depend on key order or on how numbers were written. Each part begins with a tag and,
/// where needed, a length, so that different values never give the same stream.
fn hash_value(value: &Value, hasher: &mut blake3::Hasher) {
    match value {
        Value::Null => {
            hasher.update(b"n");
        }
        Value::Bool(b) => {
            hasher.update(if *b { b"t" } else { b"f" });
        }
        Value::Number(n) => {
            hasher.update(b"#");
            hasher.update(&n.as_f64().unwrap_or(f64::NAN).to_bits().to_le_bytes());
        }
        Value::String(s) => hash_text(s, hasher),
        Value::Array(items) => {
            hasher.update(b"[");
            hasher.update(&(items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| hash_value(item, hasher));
        }
        Value::Object(map) => {
            hasher.update(b"{");
            hasher.update(&(map.len() as u64).to_le_bytes());
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            for key in keys {
                hash_text(key, hasher);
                hash_value(&map[key], hasher);
            }
        }
    }
}

fn hash_text(text: &str, hasher: &mut blake3::Hasher) {
    hasher.update(b"\"");
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
}
