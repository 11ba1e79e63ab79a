//! The latents of texts that are being written, for models that write block after block.

use std::cell::RefCell;

use elf_data::{Batch, PadToken};
use elf_encoder::GrowingRows;
use elf_flow::Reencode;
use tch::{Kind, Tensor};

use super::text_latents::TextLatents;
use crate::Result;

/// The latents of a batch's texts as far as they have been written.
///
/// A causal encoder that can ([`elf_encoder::TextEncoder::growing`]) keeps keys and values of the finished prefix, so that a block
/// costs what is new in it. Others encode all texts anew after each block.
pub struct TextSoFar<'a> {
    latents: &'a TextLatents,
    conditions: Option<&'a Batch>,
    eos: i64,
    prefix: RefCell<Option<Prefix<'a>>>,
}

/// What is kept of the finished prefix.
struct Prefix<'a> {
    encoder: Box<dyn GrowingRows + 'a>,
    /// `[B, S, C]`, of which the first `known` positions are set.
    latents: Tensor,
    known: usize,
}

impl<'a> TextSoFar<'a> {
    /// Of texts behind these conditions, if there are any, that end with `eos`. For one batch: its texts only grow.
    pub fn new(latents: &'a TextLatents, conditions: Option<&'a Batch>, eos: i64) -> Self {
        Self { latents, conditions, eos, prefix: RefCell::default() }
    }

    /// The rows of ids `[B, S]` up to position `known`, or to the end of the longest condition if that comes later, each with its
    /// condition in place.
    fn batch(&self, ids: &Tensor, known: usize) -> Result<Batch> {
        let (rows, _) = ids.size2()?;
        let rows = rows as usize;
        // Rows that fill the batch up are the first one again.
        let given = |row: usize| {
            self.conditions.map_or(&[][..], |conditions| {
                let from = if row < conditions.rows { row } else { 0 };
                &conditions.input_ids[from * conditions.seq_len..][..conditions.cond_len[from]]
            })
        };
        let cond_len: Vec<usize> = (0..rows).map(|row| given(row).len()).collect();
        let seq_len = cond_len.iter().copied().fold(known, usize::max);
        let mut input_ids = Vec::try_from(ids.f_narrow(1, 0, seq_len as i64)?.f_reshape([-1])?)?;
        let mut valid_len = Vec::with_capacity(rows);
        for (row, ids) in input_ids.chunks_mut(seq_len.max(1)).enumerate() {
            let given = given(row);
            ids[..given.len()].copy_from_slice(given);
            let text = &ids[given.len()..known.max(given.len())];
            let end = text.iter().position(|&id| id == self.eos).map_or(text.len(), |place| place + 1);
            valid_len.push(given.len() + end);
        }
        let (given, label_drop, pad_token) = (Vec::new(), Vec::new(), PadToken::Eos);
        Ok(Batch { rows, seq_len, input_ids, cond_len, valid_len, given, label_drop, pad_token })
    }

    /// An empty prefix of rows that will have `s` positions; none if the encoder keeps nothing.
    fn begin(&self, (b, s): (i64, i64)) -> Result<Option<Prefix<'a>>> {
        let Some(encoder) = self.latents.growing(b, s) else { return Ok(None) };
        let latents = Tensor::f_zeros([b, s, self.latents.dim()], (Kind::Float, self.latents.device()))?;
        Ok(Some(Prefix { encoder, latents, known: 0 }))
    }

    /// Latents of at least the first `known` positions.
    fn encode(&self, ids: &Tensor, known: usize) -> Result<Tensor> {
        let batch = self.batch(ids, known)?;
        let mut prefix = self.prefix.borrow_mut();
        if prefix.is_none() {
            *prefix = self.begin(ids.size2()?)?;
        }
        let Some(Prefix { encoder, latents, known: before }) = &mut *prefix else {
            return self.latents.latents(&batch);
        };
        // The positions of a condition see one another, so that they are encoded together, again as long as they reach beyond the text.
        let new = self.latents.encode_from(&mut **encoder, *before, &batch)?;
        latents.f_narrow(1, *before as i64, new.size()[1])?.f_copy_(&new)?;
        *before = known;
        Ok(latents.shallow_clone())
    }
}

impl Reencode for TextSoFar<'_> {
    fn latents(&self, ids: &Tensor, known: usize) -> elf_flow::Result<Tensor> {
        self.encode(ids, known).map_err(elf_flow::Error::reencode)
    }

    fn are_final(&self) -> bool {
        self.prefix.borrow().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::{ParamBuilder, Precision};
    use elf_data::{CollateConfig, Collator, Example};
    use elf_encoder::{BertConfig, BertEncoder, LatentStats, T5Config, T5Encoder, TextEncoder};
    use tch::Device;

    const EOS: i64 = 1;
    const S: i64 = 12;

    fn encoders() -> [Box<dyn TextEncoder>; 2] {
        let seeded = || ParamBuilder::seeded(3, Device::Cpu);
        let t5 = r#"{"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}"#;
        let t5 = T5Encoder::new(&T5Config::from_json(t5).unwrap(), seeded(), Precision::F32).unwrap();
        let bert = r#"{"model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32, "type_vocab_size": 2}"#;
        let bert = BertEncoder::new(&BertConfig::from_json(bert).unwrap(), 2, seeded(), Precision::F32).unwrap();
        [Box::new(t5), Box::new(bert)]
    }

    /// Texts of four rows, the second of which ends early, and the last of which fills the batch up.
    fn texts() -> Tensor {
        let ids = Tensor::arange(4 * S, (Kind::Int64, Device::Cpu)).remainder(30).view([4, S]) + 5;
        let _ = ids.get(1).get(6).fill_(EOS);
        ids.get(3).copy_(&ids.get(0));
        ids
    }

    fn conditions() -> Batch {
        let config = CollateConfig { max_length: S as usize, max_input_length: Some(6), pad_token: PadToken::Eos };
        let example = |c: &[i32]| Example { input_ids: vec![], condition_ids: Some(c.to_vec()) };
        let examples = [example(&[5, 6]), example(&[7, 8, 9, 10, 11]), example(&[4])];
        Collator::with_fill_id(config, 1).unwrap().collate(&examples).unwrap()
    }

    #[test]
    fn a_prefix_that_grows_has_the_latents_of_whole_texts() {
        let conditions = conditions();
        for encoder in encoders() {
            let name = encoder.describe();
            let mut latents = TextLatents::new(encoder, LatentStats::uniform(0.1, 0.7).unwrap(), Device::Cpu).unwrap();
            latents.causal = true;
            for conditions in [None, Some(&conditions)] {
                let growing = TextSoFar::new(&latents, conditions, EOS);
                for known in [2, 4, 5, 9] {
                    let found = growing.latents(&texts(), known).unwrap();
                    assert_eq!(found.size(), [4, S, 16]);
                    let batch = growing.batch(&texts(), known).unwrap();
                    let whole = latents.latents(&batch).unwrap();
                    for (row, &valid) in batch.valid_len.iter().enumerate() {
                        // Of positions behind the end nothing is said.
                        let set = |latents: &Tensor| latents.get(row as i64).narrow(0, 0, valid.min(known) as i64);
                        let apart = (set(&found) - set(&whole)).abs().max().double_value(&[]);
                        assert!(apart < 1e-5, "{name}, row {row} up to {known}: {apart}");
                    }
                }
                let prefix = growing.prefix.borrow();
                assert_eq!(prefix.as_ref().map(|prefix| prefix.known), Some(9), "{name} keeps its prefix");
            }
        }
    }
}
