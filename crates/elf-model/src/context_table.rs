//! The table through which tokens that are given enter: those of a condition, and the clean ones before a block.

use elf_core::layers::Embedding;
use elf_core::{ParamBuilder, Result};
use tch::{Kind, Tensor};

/// The name of the table; the released model has none.
pub(crate) const CONTEXT_TABLE: &str = "context_table.weight";

/// The word of a position that belongs to no condition.
pub(crate) const NO_WORD: i64 = -1;

/// Its standard deviation at the start, that of GPT-2.
const STD: f64 = 0.02;

/// The factor by which latents of given tokens are scaled down in networks with a table. Muon's updates have a fixed size, so a
/// table is learned quickly only if it starts small and is not dominated by the latents: with unscaled latents it had no effect.
const LATENTS_BESIDE_TABLE: f64 = 0.02;

/// A learned vector of width H for each token.
#[derive(Debug)]
pub(crate) struct ContextTable(Embedding);

impl ContextTable {
    pub(crate) fn new(b: &mut ParamBuilder, vocab: i64, hidden: i64) -> Result<Self> {
        Ok(Self(Embedding::new(b, CONTEXT_TABLE, vocab, hidden, STD)?))
    }

    /// Lifted latents `[B, N, H]`, whose first K tokens are clean, with the vectors of those tokens, `ids` `[B, K]`, added.
    pub(crate) fn on_clean(&self, lifted: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (k, n) = (ids.size2()?.1, lifted.size3()?.1);
        let clean = lifted.f_narrow(1, 0, k)? * LATENTS_BESIDE_TABLE + self.vectors(ids, lifted.kind())?;
        Ok(Tensor::f_cat(&[clean, lifted.f_narrow(1, k, n - k)?], 1)?)
    }

    /// Lifted latents `[B, S, H]` with the vectors of the condition's tokens, `words` `[B, S]`, added.
    pub(crate) fn on_condition(&self, lifted: &Tensor, words: &Tensor) -> Result<Tensor> {
        let others = words.f_eq(NO_WORD)?.f_unsqueeze(-1)?.f_to_kind(lifted.kind())?;
        let scales = others * (1.0 - LATENTS_BESIDE_TABLE) + LATENTS_BESIDE_TABLE;
        Ok(lifted * scales + self.vectors(words, lifted.kind())?)
    }

    /// The vectors of `ids` `[B, N]`, in `kind`; 0 where an id is negative: `[B, N, H]`.
    fn vectors(&self, ids: &Tensor, kind: Kind) -> Result<Tensor> {
        let known = ids.f_ge(0)?.f_unsqueeze(-1)?.f_to_kind(kind)?;
        Ok(self.0.forward(&ids.f_clamp_min(0)?).f_to_kind(kind)? * known)
    }
}
