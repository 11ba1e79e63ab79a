//! Latents of training rows, kept in memory from one pass over the data to the next.

use std::cell::RefCell;
use std::collections::HashMap;

use elf_data::Batch;
use tch::{Kind, Tensor};

use crate::Result;
use crate::config::RunPlan;
use crate::text::text_latents::TextLatents;

/// Everything that the latents of a row depend on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct RowKey {
    /// Token ids, `[S]`.
    ids: Box<[i64]>,
    cond_len: usize,
    valid_len: usize,
    drop: bool,
}

impl RowKey {
    fn of(batch: &Batch, row: usize) -> Self {
        let s = batch.seq_len;
        Self {
            ids: batch.input_ids[row * s..(row + 1) * s].into(),
            cond_len: batch.cond_len[row],
            valid_len: batch.valid_len[row],
            drop: batch.label_drop.get(row).copied().unwrap_or(false),
        }
    }
}

/// Latents of rows that were encoded before, in half precision, up to a number of bytes.
///
/// Latents that come from the cache and latents that were just encoded are rounded alike, so that a run does not depend on where it
/// was interrupted. Half precision changes a normalised latent by less than a thousandth, far less than any noise on it.
#[derive(Debug)]
pub struct LatentCache {
    rows: RefCell<Rows>,
    most_bytes: u64,
}

#[derive(Debug, Default)]
struct Rows {
    /// Latents of a row, `[S, C]`, fp16, on the encoder's device.
    latents: HashMap<RowKey, Tensor>,
    bytes: u64,
}

impl LatentCache {
    /// An empty cache of as many bytes as a plan allows; `None` for 0, where nothing is to be kept or rounded, and where latents differ from one
    /// pass to the next, because other tokens are given.
    pub fn of_plan(plan: &RunPlan) -> Option<Self> {
        if !plan.config.given.shares().is_none() {
            return None;
        }
        let most_bytes = plan.config.compute.latent_cache_mb.saturating_mul(1 << 20);
        (most_bytes > 0).then(|| Self { rows: RefCell::default(), most_bytes })
    }

    /// The latents of a batch, `[B, S, C]`, fp32, of which only those of new rows are encoded.
    ///
    /// # Errors
    /// If an id is not in the encoder's vocabulary, or libtorch fails.
    pub fn latents(&self, encoder: &TextLatents, batch: &Batch) -> Result<Tensor> {
        let mut rows = self.rows.borrow_mut();
        let keys: Vec<RowKey> = (0..batch.rows).map(|row| RowKey::of(batch, row)).collect();
        let mut found: Vec<Option<Tensor>> =
            keys.iter().map(|key| rows.latents.get(key).map(Tensor::shallow_clone)).collect();
        let new: Vec<usize> = (0..batch.rows).filter(|&row| found[row].is_none()).collect();
        if !new.is_empty() {
            let encoded = encoder.latents(&batch.select(&new))?.f_to_kind(Kind::Half)?;
            for (&row, latents) in new.iter().zip(encoded.f_unbind(0)?) {
                found[row] = Some(latents);
            }
        }
        for (row, key) in keys.into_iter().enumerate() {
            let Some(latents) = &found[row] else { continue };
            let bytes = row_bytes(latents);
            if !rows.latents.contains_key(&key) && rows.bytes + bytes <= self.most_bytes {
                rows.bytes += bytes;
                // A copy: a view would keep the whole batch.
                rows.latents.insert(key, latents.f_detach()?.copy());
            }
        }
        let found: Vec<Tensor> = found.into_iter().flatten().collect();
        Ok(Tensor::f_stack(&found, 0)?.f_to_kind(Kind::Float)?)
    }
}

/// Bytes of a row's latents and of its key.
fn row_bytes(latents: &Tensor) -> u64 {
    let ids = latents.size().first().map_or(0, |&s| 8 * s as u64);
    2 * latents.numel() as u64 + ids + 200
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::{ParamBuilder, Precision};
    use elf_data::PadToken;
    use elf_encoder::{LatentStats, T5Config, T5Encoder};
    use tch::Device;

    fn encoder() -> TextLatents {
        let json = r#"{"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2,
            "feed_forward_proj": "relu"}"#;
        let config = T5Config::from_json(json).unwrap();
        let net = T5Encoder::new(&config, ParamBuilder::seeded(1, Device::Cpu), Precision::F32).unwrap();
        TextLatents::new(Box::new(net), LatentStats::uniform(0.0, 1.0).unwrap(), Device::Cpu).unwrap()
    }

    /// Rows of three tokens, the second with a condition of one.
    fn batch(rows: &[[i64; 3]], drop: bool) -> Batch {
        Batch {
            rows: rows.len(),
            seq_len: 3,
            input_ids: rows.concat(),
            cond_len: (0..rows.len()).map(|row| usize::from(row == 1)).collect(),
            valid_len: vec![3; rows.len()],
            given: Vec::new(),
            label_drop: (0..rows.len()).map(|row| drop && row == 1).collect(),
            pad_token: PadToken::Pad,
        }
    }

    fn cache(most_bytes: u64) -> LatentCache {
        LatentCache { rows: RefCell::default(), most_bytes }
    }

    #[test]
    fn kept_latents_are_those_of_the_encoder() {
        let encoder = encoder();
        let (first, second) = (batch(&[[3, 4, 5], [6, 7, 8]], false), batch(&[[9, 4, 5], [6, 7, 8], [3, 4, 5]], false));
        // With no memory nothing is kept, with room for one row one is, and nothing of that shows in the latents.
        for (bytes, kept) in [(0, 0), (300, 1), (1 << 20, 3)] {
            let cache = cache(bytes);
            let before = cache.latents(&encoder, &first).unwrap();
            for batch in [&second, &first, &second] {
                let exact = encoder.latents(batch).unwrap();
                let off = (cache.latents(&encoder, batch).unwrap() - &exact).abs().max().double_value(&[]);
                assert!(off < 1e-3 * exact.abs().max().double_value(&[]), "{off}");
            }
            assert!(cache.latents(&encoder, &first).unwrap().equal(&before), "with {bytes} bytes");
            assert_eq!(cache.rows.borrow().latents.len(), kept);
            assert!(cache.rows.borrow().bytes <= bytes);
        }
    }

    #[test]
    fn a_row_without_its_condition_is_another_row() {
        let (encoder, cache) = (encoder(), cache(1 << 20));
        let rows = [[3, 4, 5], [6, 7, 8]];
        let whole = cache.latents(&encoder, &batch(&rows, false)).unwrap();
        let dropped = cache.latents(&encoder, &batch(&rows, true)).unwrap();
        assert!(whole.get(0).equal(&dropped.get(0)) && !whole.get(1).equal(&dropped.get(1)));
        assert_eq!(cache.rows.borrow().latents.len(), 3);
    }
}
