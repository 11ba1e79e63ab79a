//! Baselines as the training loop takes them.

use std::marker::PhantomData;

use crate::Result;
use elf_core::{ParamBuilder, PrecisionPolicy, TokenNetwork};
use elf_data::{Batch, PadToken, Tokenizer};
use elf_flow::sampler::Registry;
use elf_flow::tokens::{TokenBatch, TokenObjective};
use elf_gpt2::{Gpt2, Gpt2Config};
use elf_model::{MaskedConfig, MaskedTransformer};
use elf_train::OverTokens;
use tch::Tensor;

use super::ModelKind;
use crate::config::RunPlan;
use crate::error::fail;
use crate::model::loaded::Method;
use crate::text::baseline_writer::{BaselineWriter, Writer};
use crate::text::text_loop::BatchWriter;

/// A model of type `N` that is learned by `O`.
pub struct BaselineKind<'a, N, O> {
    plan: &'a RunPlan,
    tokenizer: &'a Tokenizer,
    eos: i64,
    of: PhantomData<(N, O)>,
}

impl<'a, N, O> BaselineKind<'a, N, O> {
    /// On rows of this tokenizer's ids.
    ///
    /// # Errors
    /// If the tokenizer has no EOS.
    pub fn new(plan: &'a RunPlan, tokenizer: &'a Tokenizer) -> Result<Self> {
        Ok(Self { plan, tokenizer, eos: i64::from(tokenizer.eos_id()?), of: PhantomData })
    }
}

impl<N: TokenNetwork + Writer, O: TokenObjective> ModelKind for BaselineKind<'_, N, O> {
    type Net = N;
    type Objective = OverTokens<O>;

    fn batch(&self, batch: Batch) -> Result<TokenBatch> {
        let batch = self.plan.without_filling(batch);
        match self.plan.gap_mark() {
            Some(mark) => token_batch(&batch.with_gaps_last(mark), self.eos),
            None => token_batch(&batch, self.eos),
        }
    }

    fn writer<'n>(
        &'n self,
        net: &'n N,
        method: &Method,
        _rows: usize,
        _samplers: &Registry,
    ) -> Result<Box<dyn BatchWriter + 'n>> {
        let Method::Baseline { decoding, .. } = method else {
            fail!(request, "{} is no way for a baseline to generate", method.name());
        };
        let Self { plan, tokenizer, .. } = *self;
        Ok(Box::new(BaselineWriter { net, decoding: *decoding, plan, tokenizer }))
    }
}

/// Rows with the ends of their texts: where EOS is the filling, the first EOS after the condition ends a text; otherwise the
/// filling says where it ends, and an EOS before may be one of several texts in a row.
fn token_batch(batch: &Batch, eos: i64) -> Result<TokenBatch> {
    let s = batch.seq_len;
    let end = |row: usize| {
        let (start, ids) = (batch.cond_len[row], &batch.input_ids[row * s..(row + 1) * s]);
        match batch.pad_token {
            PadToken::Pad => batch.valid_len[row],
            PadToken::Eos => ids[start..].iter().position(|&id| id == eos).map_or(s, |i| start + i + 1),
        }
    };
    Ok(TokenBatch {
        ids: Tensor::f_from_slice(&batch.input_ids)?.f_view([batch.rows as i64, s as i64])?,
        starts: batch.cond_len.iter().map(|&n| n as i64).collect(),
        ends: (0..batch.rows).map(|row| end(row) as i64).collect(),
    })
}

/// A GPT-2 as a plan has it.
///
/// # Errors
/// If the sizes make no model, or libtorch fails.
pub fn gpt2(sizes: &Gpt2Config, plan: &RunPlan, policy: PrecisionPolicy, builder: ParamBuilder) -> Result<Gpt2> {
    let mut net = Gpt2::new(sizes, builder, policy)?;
    net.set_dropout(plan.config.network.proj_dropout)?;
    Ok(net)
}

/// A masked transformer as a plan has it.
///
/// # Errors
/// If the sizes make no network, or libtorch fails.
pub fn masked(
    sizes: &MaskedConfig,
    plan: &RunPlan,
    policy: PrecisionPolicy,
    builder: ParamBuilder,
) -> Result<MaskedTransformer> {
    let mut net = MaskedTransformer::new(sizes.clone(), policy, builder)?;
    net.set_recompute(plan.config.compute.gradient_checkpointing);
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_data::{CollateConfig, Collator, Example};

    #[test]
    fn texts_end_with_their_first_eos_or_where_the_filling_begins() {
        let example = |c: &[i32], t: &[i32]| Example { input_ids: t.to_vec(), condition_ids: Some(c.to_vec()) };
        let rows = [example(&[5, 1], &[7, 8, 1]), example(&[5], &[7, 8]), example(&[5], &[7; 9]), example(&[], &[])];
        let ends = |pad_token| {
            let config = CollateConfig { max_length: 8, max_input_length: Some(3), pad_token };
            let fill = if pad_token == PadToken::Eos { 1 } else { 0 };
            let batch = Collator::with_fill_id(config, fill).unwrap().collate(&rows).unwrap();
            token_batch(&batch, 1).unwrap()
        };
        let filled_with_eos = ends(PadToken::Eos);
        // The filling's first EOS is the one that a text without an EOS of its own ends with.
        assert_eq!((filled_with_eos.starts, filled_with_eos.ends), (vec![2, 1, 1, 0], vec![5, 4, 8, 1]));
        assert_eq!(ends(PadToken::Pad).ends, [5, 3, 8, 0]);
    }
}
