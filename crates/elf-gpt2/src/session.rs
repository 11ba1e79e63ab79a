//! The model one token at a time, with cached keys and values of earlier tokens, so that a new token costs one
//! position.

use elf_core::device::upload;
use tch::{Kind, Tensor};

use crate::decoding::Incremental;
use crate::{Error, Gpt2, Result};

/// The number of cached positions that attention reads is rounded up to a multiple of this, so that few shapes occur.
const REACH: i64 = 32;

/// A batch of unfinished texts, all of which grow by one token at a time.
///
/// All shapes follow from the settings and the number of texts, not from their tokens, so that a text does not depend
/// on the others in its batch.
#[derive(Debug)]
pub struct Gpt2Session<'a> {
    model: &'a Gpt2,
    prompt: i64,
    capacity: i64,
    /// Tokens that each row has read.
    lengths: Vec<i64>,
    /// Tokens read after the prompts.
    grown: i64,
    passes: u64,
    positions: u64,
    /// Cached keys and values of each block, `[rows * heads, capacity, head_dim]`.
    kept: Vec<(Tensor, Tensor)>,
}

impl<'a> Gpt2Session<'a> {
    /// A session whose prompts have at most `prompt` tokens, each to be followed by at most `new` more.
    ///
    /// # Errors
    /// If that is more than the model has positions.
    pub fn new(model: &'a Gpt2, prompt: usize, new: usize) -> Result<Self> {
        let (prompt, positions) = (prompt.max(1) as i64, model.config().n_positions);
        // The last token is not read.
        let capacity = prompt.saturating_add(new as i64).saturating_sub(1);
        if capacity > positions {
            return Err(Error::TooLong { length: capacity, positions });
        }
        Ok(Self { model, prompt, capacity, lengths: Vec::new(), grown: 0, passes: 0, positions: 0, kept: Vec::new() })
    }

    /// Passes through the model so far.
    pub fn passes(&self) -> u64 {
        self.passes
    }

    /// Positions over all passes so far.
    pub fn positions(&self) -> u64 {
        self.positions
    }

    fn head_dim(&self) -> i64 {
        self.model.config().n_embd / self.model.config().n_head
    }

    /// Logits `[R, V]` of the residual stream `[R, H]`.
    fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.model.logits(&self.model.final_norm().forward(x))
    }

    fn read_prompts(&mut self, prompts: &[Vec<i64>]) -> Result<Tensor> {
        let (rows, heads, dim) = (prompts.len() as i64, self.model.config().n_head, self.head_dim());
        let mut ids = Vec::new();
        for prompt in prompts {
            if prompt.is_empty() || prompt.len() as i64 > self.prompt {
                return Err(Error::TooLong { length: prompt.len() as i64, positions: self.prompt });
            }
            ids.extend_from_slice(prompt);
            // Padding is on the right, where no position sees it before it is overwritten.
            ids.resize(ids.len() + (self.prompt as usize - prompt.len()), prompt[0]);
        }
        let ids = Tensor::f_from_slice(&ids)?.f_view([rows, self.prompt])?;
        self.model.check_ids(&ids)?;
        let device = self.model.device();
        let kind = self.model.precision().blocks.kind();
        let mut x = self.model.embedded(&ids, &Tensor::f_arange(self.prompt, (Kind::Int64, device))?)?;
        self.kept.clear();
        for block in self.model.blocks() {
            let (q, k, v) = block.project(&x, kind)?;
            let keep = |new: &Tensor| -> Result<Tensor> {
                let all = Tensor::f_zeros([rows * heads, self.capacity, dim], (kind, device))?;
                let new = new.f_reshape([rows * heads, self.prompt, dim])?;
                all.f_narrow(1, 0, self.prompt)?.f_copy_(&new)?;
                Ok(all)
            };
            self.kept.push((keep(&k)?, keep(&v)?));
            x = block.close_without_dropout(&x, &crate::block::attend(&q, &k, &v)?)?;
        }
        self.lengths = prompts.iter().map(|p| p.len() as i64).collect();
        self.grown = 0;
        self.passes += 1;
        self.positions += (rows * self.prompt) as u64;
        let last: Vec<i64> = (0..).zip(&self.lengths).map(|(row, len)| row * self.prompt + len - 1).collect();
        self.finish(&x.f_flatten(0, 1)?.f_index_select(0, &upload(&Tensor::f_from_slice(&last)?, device)?)?)
    }

    /// Replaces row i by row `parents[i]`.
    fn rearrange(&mut self, parents: &[i64]) -> Result<()> {
        let rows = self.lengths.len() as i64;
        if let Some(wrong) = parents.iter().find(|p| !(0..rows).contains(*p)) {
            return Err(Error::Setting { setting: "parents", reason: format!("there is no row {wrong} of {rows}") });
        }
        if parents.iter().copied().eq(0..rows) {
            return Ok(());
        }
        let heads = self.model.config().n_head;
        let places: Vec<i64> = parents.iter().flat_map(|p| (0..heads).map(move |h| p * heads + h)).collect();
        let places = upload(&Tensor::f_from_slice(&places)?, self.model.device())?;
        for (k, v) in &mut self.kept {
            (*k, *v) = (k.f_index_select(0, &places)?, v.f_index_select(0, &places)?);
        }
        self.lengths = parents.iter().map(|&p| self.lengths[p as usize]).collect();
        Ok(())
    }

    fn read_tokens(&mut self, tokens: &[i64]) -> Result<Tensor> {
        let (rows, heads, dim) = (tokens.len() as i64, self.model.config().n_head, self.head_dim());
        if tokens.len() != self.lengths.len() {
            return Err(Error::Setting {
                setting: "tokens",
                reason: format!("there are {} rows and {rows} parents; give one for each row", self.lengths.len()),
            });
        }
        if self.prompt + self.grown >= self.capacity {
            return Err(Error::TooLong { length: self.prompt + self.grown + 1, positions: self.capacity });
        }
        let device = self.model.device();
        let kind = self.model.precision().blocks.kind();
        let ids = Tensor::f_from_slice(tokens)?.f_view([rows, 1])?;
        self.model.check_ids(&ids)?;
        let on_device = |x: &[i64]| -> Result<Tensor> { Ok(upload(&Tensor::f_from_slice(x)?, device)?) };
        let at = on_device(&self.lengths)?.f_view([rows, 1])?;
        // The largest length of a row, rounded up, so that few shapes occur.
        let reach = ((self.prompt + self.grown + 1 + REACH - 1) / REACH * REACH).min(self.capacity);
        let columns = Tensor::f_arange(reach, (Kind::Int64, device))?;
        let unseen = columns.f_unsqueeze(0)?.f_gt_tensor(&at)?;
        let mask = Tensor::f_zeros([rows, reach], (Kind::Float, device))?.f_masked_fill(&unseen, f64::NEG_INFINITY)?;
        // The index of each head's new key among all keys of a block.
        let capacity = self.capacity;
        let places: Vec<i64> = (0..)
            .zip(&self.lengths)
            .flat_map(|(row, len)| (0..heads).map(move |h| (row * heads + h) * capacity + len))
            .collect();
        let places = on_device(&places)?;
        let mut x = self.model.embedded(&ids, &at)?;
        for (block, (keys, values)) in self.model.blocks().iter().zip(&self.kept) {
            let (q, k, v) = block.project(&x, kind)?;
            for (all, new) in [(keys, k), (values, v)] {
                let flat = all.f_view([rows * heads * self.capacity, dim])?;
                let _ = flat.shallow_clone().f_index_copy_(0, &places, &new.f_reshape([rows * heads, dim])?)?;
            }
            let q = q.f_reshape([rows * heads, 1, dim])?.f_mul_scalar(1.0 / (dim as f64).sqrt())?;
            let scores = q.f_bmm(&keys.f_narrow(1, 0, reach)?.f_transpose(1, 2)?)?;
            let mixed = elf_kernels::softmax(&scores, Some(&mask))?.f_bmm(&values.f_narrow(1, 0, reach)?)?;
            x = block.close_without_dropout(&x, &mixed.f_view([rows, heads, 1, dim])?)?;
        }
        self.lengths.iter_mut().for_each(|len| *len += 1);
        self.grown += 1;
        self.passes += 1;
        self.positions += rows as u64;
        self.finish(&x.f_squeeze_dim(1)?)
    }
}

impl Incremental for Gpt2Session<'_> {
    fn begin(&mut self, prompts: &[Vec<i64>]) -> Result<Tensor> {
        tch::no_grad(|| self.read_prompts(prompts))
    }

    fn advance(&mut self, parents: &[i64], tokens: &[i64]) -> Result<Tensor> {
        tch::no_grad(|| {
            self.rearrange(parents)?;
            self.read_tokens(tokens)
        })
    }
}
