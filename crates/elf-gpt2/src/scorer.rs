//! GPT-2 with its tokeniser as a judge of texts.

use std::path::Path;

use elf_core::device::upload;
use elf_core::{Precision, PrecisionPolicy};
use elf_eval::perplexity::{JudgeWindows, ScoredWindow, Scorer, TokenScores};
use tch::{Device, Kind, Tensor};
use tokenizers::Tokenizer;

use crate::{Error, Gpt2, Result};

/// The text of GPT-2's end-of-text token.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Settings of a judge of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScorerSettings {
    /// The device of the model.
    pub device: Device,
    /// The precision of the model's matrix products.
    pub precision: PrecisionPolicy,
    /// Texts are cut to this many tokens; the published figures use 1,024.
    pub max_length: usize,
    /// Tokens scored in one context, at most the model's positions. `None`: the model's positions, or `max_length` if
    /// that is less.
    pub context_size: Option<usize>,
    /// Tokens per batch, padding included; limits memory and does not affect results.
    pub batch_tokens: usize,
}

impl ScorerSettings {
    /// The published evaluation's lengths, with blocks in the precision that is native to `device` and the head in
    /// fp32.
    pub fn new(device: Device) -> Self {
        let precision = PrecisionPolicy::with_blocks(Precision::native(device));
        // Large enough to use all units of a GPU; small enough for the caches of a CPU.
        let batch_tokens = if device.is_cuda() { 16 * 1024 } else { 4 * 1024 };
        Self { device, precision, max_length: 1024, context_size: None, batch_tokens }
    }
}

/// A GPT-2 that scores texts token by token.
#[derive(Debug)]
pub struct Gpt2Scorer {
    model: Gpt2,
    tokenizer: Tokenizer,
    windows: JudgeWindows,
    eos: u32,
    batch_tokens: usize,
}

impl Gpt2Scorer {
    /// Reads `config.json`, `model.safetensors` and `tokenizer.json` from a folder.
    ///
    /// # Errors
    /// If a file is missing or damaged, tokeniser and model do not belong together, or a setting is out of its range.
    pub fn load(folder: &Path, settings: &ScorerSettings) -> Result<Self> {
        let model = Gpt2::load(folder, settings.device, settings.precision)?;
        Self::new(model, &folder.join("tokenizer.json"), settings)
    }

    /// A judge from a model and the file of its tokeniser.
    ///
    /// A model that was trained to read the end-of-text token before a text gets one before each window, and no more
    /// tokens of a text than it has positions: it would read later ones as another text.
    ///
    /// # Errors
    /// If the file is missing or damaged, tokeniser and model do not belong together, or a setting is out of its range.
    pub fn new(model: Gpt2, path: &Path, settings: &ScorerSettings) -> Result<Self> {
        let config = model.config();
        let unusable = |source| Error::Tokenizer { path: path.to_owned(), source };
        let foreign = |reason| Error::ForeignTokenizer { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(elf_core::Error::io("read", path))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(unusable)?;
        // `JudgeWindows` cuts and pads.
        tokenizer.with_truncation(None).map_err(unusable)?.with_padding(None);
        let greatest = tokenizer.get_vocab(true).into_values().max();
        if greatest.is_none_or(|id| i64::from(id) >= config.vocab_size) {
            return Err(foreign(format!(
                "its ids reach {}, the model's vocabulary has {}",
                greatest.unwrap_or(0),
                config.vocab_size
            )));
        }
        let stated = config.eos_token_id.and_then(|id| u32::try_from(id).ok());
        let eos = match (tokenizer.token_to_id(END_OF_TEXT), stated) {
            (Some(id), Some(stated)) if id != stated => {
                return Err(foreign(format!("{END_OF_TEXT} is {id} there, and {stated} in the model's config.json")));
            }
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => {
                return Err(foreign(format!("it has no {END_OF_TEXT}, and the model's config.json no eos_token_id")));
            }
        };
        let positions = usize::try_from(config.n_positions).unwrap_or(usize::MAX);
        let max_length =
            if config.texts_begin_with_eos { settings.max_length.min(positions) } else { settings.max_length };
        let context = settings.context_size.unwrap_or(positions.min(max_length));
        if context > positions {
            return Err(Error::TooLong { length: context as i64, positions: config.n_positions });
        }
        let windows = JudgeWindows::new(max_length, context, eos)?;
        Ok(Self { model, tokenizer, windows, eos, batch_tokens: settings.batch_tokens })
    }

    /// The model.
    pub fn model(&self) -> &Gpt2 {
        &self.model
    }

    /// Token ids of texts, uncut.
    ///
    /// # Errors
    /// If the tokeniser fails.
    pub fn tokenise(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let texts = texts.iter().map(String::as_str).collect();
        // No special tokens: tokenisers of models trained here would add EOS, which windows add themselves.
        let with_special = !self.model.config().texts_begin_with_eos;
        let encodings = self.tokenizer.encode_batch(texts, with_special).map_err(Error::Tokenise)?;
        Ok(encodings.iter().map(|e| e.get_ids().to_vec()).collect())
    }

    /// Scores of windows of at least two ids each, in order.
    fn score_windows(&self, windows: &[Vec<u32>]) -> Result<Vec<Vec<f64>>> {
        // Batches of windows of similar length need little padding. The longest come first, so that a lack of memory
        // shows at once.
        let mut order: Vec<usize> = (0..windows.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(windows[i].len()));
        let mut scores = vec![Vec::new(); windows.len()];
        let mut rest = order.as_slice();
        while let Some(&longest) = rest.first() {
            let rows = (self.batch_tokens / windows[longest].len()).clamp(1, rest.len());
            let (batch, later) = rest.split_at(rows);
            let chosen: Vec<&[u32]> = batch.iter().map(|&i| windows[i].as_slice()).collect();
            for (&i, nll) in batch.iter().zip(self.score_batch(&chosen)?) {
                scores[i] = nll;
            }
            rest = later;
        }
        Ok(scores)
    }

    /// Scores of one batch, its longest window first.
    fn score_batch(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f64>>> {
        let (b, s) = (windows.len(), windows[0].len());
        // With EOS first, each token is one position later, and the last one need not be read.
        let shift = usize::from(self.model.config().texts_begin_with_eos);
        let mut ids = vec![i64::from(self.eos); b * s];
        // The numbers of the positions that have a next token, and those tokens.
        let (mut at, mut targets) = (Vec::new(), Vec::new());
        for (row, window) in windows.iter().enumerate() {
            for (column, &id) in window.iter().enumerate() {
                if column + shift < s {
                    ids[row * s + column + shift] = id.into();
                }
                if column > 0 {
                    at.push((row * s + column + shift - 1) as i64);
                    targets.push(i64::from(id));
                }
            }
        }
        let nll: Vec<f32> = tch::no_grad(|| {
            // Padding is on the right, where no counted position sees it.
            let hidden = self.model.hidden(&Tensor::f_from_slice(&ids)?.f_view([b as i64, s as i64])?)?;
            let device = hidden.device();
            let hidden = hidden.f_flatten(0, 1)?.f_index_select(0, &upload(&Tensor::f_from_slice(&at)?, device)?)?;
            let nll = self.model.nll(&hidden, &upload(&Tensor::f_from_slice(&targets)?, device)?)?;
            Ok::<_, Error>(Vec::try_from(nll.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?)?)
        })?;
        let mut nll = nll.into_iter().map(f64::from);
        Ok(windows.iter().map(|w| nll.by_ref().take(w.len() - 1).collect()).collect())
    }
}

impl Scorer for Gpt2Scorer {
    fn eos(&self) -> u32 {
        self.eos
    }

    fn score(&self, texts: &[String]) -> Result<Vec<TokenScores>, Box<dyn std::error::Error + Send + Sync>> {
        let ids = self.tokenise(texts)?;
        let windows: Vec<Vec<Vec<u32>>> = ids.iter().map(|ids| self.windows.split(ids)).collect();
        let flat: Vec<Vec<u32>> = windows.iter().flatten().cloned().collect();
        let mut scores = self.score_windows(&flat)?.into_iter();
        Ok(ids
            .iter()
            .zip(windows)
            .map(|(ids, windows)| TokenScores {
                ids: self.windows.cut(ids).to_vec(),
                // `zip` advances the windows first, so that no score of the next text is taken.
                windows: windows.into_iter().zip(scores.by_ref()).map(|(ids, nll)| ScoredWindow { ids, nll }).collect(),
            })
            .collect())
    }

    fn tokenize(&self, texts: &[String]) -> Result<Vec<Vec<u32>>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.tokenise(texts)?.iter().map(|ids| self.windows.cut(ids).to_vec()).collect())
    }
}
