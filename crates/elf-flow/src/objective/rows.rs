//! The rows of a batch as the network sees them in training, and the passes over them.

use elf_core::device::upload;
use elf_core::{Dropout, Network, Noise, TrunkInput};
use tch::{Kind, Tensor};

use super::elf_objective::ElfObjective;
use crate::batch::host_numbers;
use crate::blocks::{FinishedPrefix, TeacherForcing};
use crate::condition::NO_WORD;
use crate::{FlowPath, LatentBatch, Result};

/// The rows of a batch in the order in which they are computed: self-conditioned denoise rows, other denoise rows, decode rows of noisy
/// latents, decode rows of own estimates.
pub(super) struct RowPlan {
    /// The rows' places in the batch.
    pub(super) order: Vec<i64>,
    /// The number of self-conditioned rows.
    pub(super) self_cond: i64,
    /// The number of denoise rows, self-conditioned ones included.
    pub(super) denoise: i64,
    /// The number of decode rows, those of own estimates included.
    pub(super) decode: i64,
    /// The number of decode rows of own estimates.
    pub(super) estimated: i64,
}

impl RowPlan {
    pub(super) fn new(decode: &[bool], self_cond: &[bool], estimated: &[bool]) -> Self {
        let rows = |wanted: &dyn Fn(usize) -> bool| {
            (0..decode.len()).filter(|&i| wanted(i)).map(|i| i as i64).collect::<Vec<_>>()
        };
        let conditioned = rows(&|i| !decode[i] && self_cond[i]);
        let plain = rows(&|i| !decode[i] && !self_cond[i]);
        let noisy = rows(&|i| decode[i] && !estimated[i]);
        let read = rows(&|i| decode[i] && estimated[i]);
        let (n, e) = (conditioned.len() as i64, read.len() as i64);
        let (denoise, decode) = (n + plain.len() as i64, noisy.len() as i64 + e);
        Self { order: [conditioned, plain, noisy, read].concat(), self_cond: n, denoise, decode, estimated: e }
    }
}

/// A batch in the plan's order, on the network's device. S are its positions; in blocks, the positions that have a noisy token.
pub(super) struct Prepared {
    /// Clean latents with dropped conditions zeroed, `[B, S, C]`.
    pub(super) x0: Tensor,
    /// Noisy latents, the trunk's input, `[B, S, C]`.
    pub(super) z: Tensor,
    /// `[B]`; 1 in decode rows.
    pub(super) t: Tensor,
    /// The clean share of each token of decode rows, 0 in denoise rows, `[B, S, 1]`.
    pub(super) clean_share: Tensor,
    /// Guidance scales `[B]`.
    pub(super) w: Tensor,
    /// 1 on condition positions, `[B, S, 1]`.
    pub(super) condition: Option<Tensor>,
    /// Token ids of the condition positions as networks take them, `[B, S]`; none in blocks, where they are part of the prefix.
    pub(super) words: Option<Tensor>,
    /// In blocks: the clean rows, as the prefix of their own blocks.
    pub(super) forcing: Option<TeacherForcing>,
}

impl Prepared {
    /// Adds the teacher-forced prefix and drops positions that carry no loss.
    pub(super) fn with_prefix(self, forcing: TeacherForcing) -> Result<Self> {
        let learned = |x: &Tensor| forcing.learned(x);
        Ok(Self {
            x0: learned(&self.x0)?,
            z: learned(&self.z)?,
            clean_share: learned(&self.clean_share)?,
            condition: self.condition.as_ref().map(learned).transpose()?,
            words: None,
            forcing: Some(forcing),
            ..self
        })
    }

    /// The prefix of the first `n` rows, where texts are written in blocks.
    pub(super) fn prefix(&self, n: i64) -> Result<Option<FinishedPrefix>> {
        self.forcing.as_ref().map(|forcing| forcing.of(n)).transpose()
    }

    /// The previous estimate where there is none yet: clean on condition positions in every row, decode rows included (so in the released
    /// distillation), 0 elsewhere.
    pub(super) fn no_estimate(&self) -> Result<Tensor> {
        Ok(match &self.condition {
            Some(condition) => &self.x0 * condition,
            None => self.z.f_zeros_like()?,
        })
    }

    /// The output of the network's clean head for the first `n` rows, given their rows of `x_prev` `[B, S, C]`, without dropout:
    /// `[n, S, C]`.
    pub(super) fn head(&self, net: &dyn Network, n: i64, x_prev: Option<&Tensor>) -> Result<Tensor> {
        let first = |x: &Tensor| x.f_narrow(0, 0, n);
        let (z, t, w, x_prev) = (first(&self.z)?, first(&self.t)?, first(&self.w)?, x_prev.map(first).transpose()?);
        let (prefix, words) = (self.prefix(n)?, self.words.as_ref().map(first).transpose()?);
        let input = TrunkInput {
            x_prev: x_prev.as_ref(),
            guidance: Some(&w),
            words: words.as_ref(),
            context: prefix.as_ref().map(FinishedPrefix::context),
            ..TrunkInput::new(&z, &t)
        };
        Ok(net.clean(&net.trunk(&input)?)?)
    }

    /// The previous clean estimate of all rows, `[B, S, C]`: `start`, and in the first `n` rows the network's estimate given `start`,
    /// with the condition put in its positions. Then that estimate as the network gave it, `[n, S, C]`, if n is not 0. Without gradient.
    pub(super) fn previous_estimate(
        &self,
        net: &dyn Network,
        path: &FlowPath,
        start: Tensor,
        n: i64,
    ) -> Result<(Tensor, Option<Tensor>)> {
        if n == 0 {
            return Ok((start, None));
        }
        tch::no_grad(|| {
            let first = |x: &Tensor| x.f_narrow(0, 0, n);
            let head = self.head(net, n, Some(&start))?;
            let estimate = path.clean_of(head, &first(&self.z)?, &first(&self.t)?.f_view([-1, 1, 1])?);
            let pinned = match &self.condition {
                Some(condition) => pin(&estimate, &first(&self.x0)?, &first(condition)?),
                None => estimate.shallow_clone(),
            };
            let rest = start.f_narrow(0, n, start.size3()?.0 - n)?;
            Ok((Tensor::f_cat(&[pinned, rest], 0)?, Some(estimate)))
        })
    }
}

impl ElfObjective {
    /// Draws which rows are decoded, which are self-conditioned, and which hold own estimates.
    pub(super) fn plan_rows(&self, rows: i64, noise: &mut dyn Noise) -> Result<RowPlan> {
        let below = |coins: Vec<f64>, p: f64| coins.into_iter().map(|u| u < p).collect::<Vec<bool>>();
        let decode = below(noise.coins("decoder_coin", rows as usize)?, self.decoder_prob);
        let self_cond = match self.self_conditioned() {
            true => below(noise.coins("self_cond_u", rows as usize)?, self.self_cond_prob),
            false => vec![false; rows as usize],
        };
        let estimated = match &self.decoder_estimates {
            Some(own) => below(noise.coins("decoder_estimate_u", rows as usize)?, own.prob),
            None => vec![false; rows as usize],
        };
        Ok(RowPlan::new(&decode, &self_cond, &estimated))
    }

    /// The batch as the network sees it, its denoise rows at the times `t` `[B]` (in the batch's own order).
    pub(super) fn prepare(
        &self,
        batch: &LatentBatch,
        plan: &RowPlan,
        t: &Tensor,
        noise: &mut dyn Noise,
    ) -> Result<Prepared> {
        let (b, s, c) = batch.sizes()?;
        let device = batch.latents.device();
        let order = Tensor::f_from_slice(&plan.order)?;
        let rows = upload(&order, device)?;
        let condition = match &batch.condition {
            Some(mask) => Some(upload(&mask.f_index_select(0, &order)?.f_unsqueeze(-1)?, device)?),
            None => None,
        };
        let x0 = without_dropped(batch.latents.f_index_select(0, &rows)?, batch, &plan.order, condition.as_ref())?;

        let words = words_of(batch)?.map(|words| upload(&words.f_index_select(0, &order)?, device)).transpose()?;

        let t = t.f_index_select(0, &rows)?;
        let w = self.guidance.transform(&noise.uniform("cfg_scale_u", &[b])?).f_index_select(0, &rows)?;
        let denoise_rows = rows.f_narrow(0, 0, plan.denoise)?;
        let decode_rows = rows.f_narrow(0, plan.denoise, plan.decode)?;

        let eps = noise.normal("noise", &[b, s, c])?.f_index_select(0, &denoise_rows)?;
        let times = t.f_narrow(0, 0, plan.denoise)?;
        let clean = x0.f_narrow(0, 0, plan.denoise)?;
        let mut noisy = self.path.interpolate(&clean, &eps, &times.f_view([-1, 1, 1])?);
        if let Some(condition) = &condition {
            noisy = pin(&noisy, &clean, &condition.f_narrow(0, 0, plan.denoise)?);
        }

        // Each token of a decode row is corrupted by an amount of its own, condition positions too unless they are to stay clean.
        let share = self.decoder.transform(&noise.normal("decoder_lambda_normal", &[b, s])?);
        let share = share.f_index_select(0, &decode_rows)?.f_unsqueeze(-1)?;
        let eps = noise.normal("decoder_noise_normal", &[b, s, c])?.f_index_select(0, &decode_rows)?;
        let clean = x0.f_narrow(0, plan.denoise, plan.decode)?;
        let mut corrupted = &share * &clean + (1.0 - &share) * eps * self.decoder_noise_scale;
        if let (Some(condition), true) = (&condition, self.decoder_clean_condition) {
            corrupted = pin(&corrupted, &clean, &condition.f_narrow(0, plan.denoise, plan.decode)?);
        }

        let ones = Tensor::f_ones([plan.decode], (Kind::Float, device))?;
        let none = Tensor::f_zeros([plan.denoise, s, 1], (Kind::Float, device))?;
        Ok(Prepared {
            z: Tensor::f_cat(&[noisy, corrupted], 0)?,
            t: Tensor::f_cat(&[times, ones], 0)?,
            clean_share: Tensor::f_cat(&[none, share], 0)?,
            x0,
            w,
            condition,
            words,
            forcing: None,
        })
    }
}

/// The latents `x0` `[B, S, C]` of a batch's rows in this order; a row whose condition is dropped keeps its target positions and loses its
/// `condition` positions, `[B, S, 1]`.
fn without_dropped(x0: Tensor, batch: &LatentBatch, order: &[i64], condition: Option<&Tensor>) -> Result<Tensor> {
    let Some(condition) = condition.filter(|_| batch.dropped.contains(&true)) else { return Ok(x0) };
    let keep: Vec<f32> = order.iter().map(|&i| f32::from(!batch.dropped[i as usize])).collect();
    let keep = upload(&Tensor::f_from_slice(&keep)?, x0.device())?.f_view([-1, 1, 1])?;
    Ok(x0 * (1.0 - condition * (1.0 - keep)))
}

/// Token ids of a batch's condition positions, [`NO_WORD`] elsewhere and in rows whose condition is dropped: `[B, S]`, on the CPU.
pub(super) fn words_of(batch: &LatentBatch) -> Result<Option<Tensor>> {
    let Some(condition) = &batch.condition else { return Ok(None) };
    let words = batch.ids.f_masked_fill(&condition.f_eq(0.0)?, NO_WORD)?;
    if !batch.dropped.contains(&true) {
        return Ok(Some(words));
    }
    Ok(Some(words.f_masked_fill(&Tensor::f_from_slice(&batch.dropped)?.f_unsqueeze(-1)?, NO_WORD)?))
}

/// `clean` on condition positions, `x` elsewhere.
pub(super) fn pin(x: &Tensor, clean: &Tensor, condition: &Tensor) -> Tensor {
    x * (1.0 - condition) + clean * condition
}

/// The words that some rows of a pass learn: the N loss positions of those rows.
pub(super) struct Words {
    /// Hidden states, `[N, H]`.
    pub(super) hidden: Tensor,
    /// Token ids, `[N]`, on the device of `hidden`.
    pub(super) ids: Tensor,
    /// The positions' numbers among the `n * S` of those rows, `[N]`, on the CPU.
    pub(super) places: Tensor,
}

impl Words {
    /// From the rows' hidden states `[n, S, H]`, the batch's `ids` `[B, S]`, the rows' numbers in the batch, and their `mask` `[n, S]`,
    /// which is not 0 at loss positions.
    pub(super) fn of(hidden: &Tensor, ids: &Tensor, rows: &[i64], mask: &Tensor) -> Result<Self> {
        let (n, s, _) = hidden.size3()?;
        let device = hidden.device();
        let mask = host_numbers(mask)?;
        let places: Vec<i64> = mask.iter().zip(0..).filter(|(counts, _)| **counts != 0.0).map(|(_, at)| at).collect();
        let places = Tensor::f_from_slice(&places)?;
        let rows = Tensor::f_from_slice(rows)?;
        let ids = ids.f_index_select(0, &rows)?.f_reshape([-1])?.f_index_select(0, &places)?;
        let hidden = hidden.f_reshape([n * s, -1])?.f_index_select(0, &upload(&places, device)?)?;
        Ok(Self { hidden, ids: upload(&ids, device)?, places })
    }
}

/// Refuses latents whose number of channels is not the network's.
pub(super) fn check_channels(net: &dyn Network, (b, s, c): (i64, i64, i64)) -> Result<()> {
    let wanted = net.shape().latent_dim;
    if c == wanted {
        return Ok(());
    }
    let expected = format!("[B, S, {wanted}], as the network's latents have");
    Err(elf_core::Error::Shape { what: "latents".into(), found: vec![b, s, c], expected }.into())
}

/// Dropout for one pass over the rows of a plan, in its order, if the network uses any, for a batch of `rows` rows of `length` positions.
pub(super) fn dropout(
    net: &dyn Network,
    plan: &RowPlan,
    (rows, length): (i64, i64),
    noise: &mut dyn Noise,
) -> Result<Option<Dropout>> {
    let drawn = match net.shape().stochastic {
        true => Dropout::draw(noise, rows as usize, length)?,
        false => None,
    };
    Ok(drawn.map(|dropout| dropout.in_order(&plan.order)))
}

/// The pass with gradients over all rows of a plan, with decode rows in decode mode.
pub(super) fn mixed_trunk(net: &dyn Network, plan: &RowPlan, input: TrunkInput) -> Result<Tensor> {
    let rows = plan.denoise + plan.decode;
    let gate: Vec<f32> = (0..rows).map(|i| f32::from(i >= plan.denoise)).collect();
    let gate = upload(&Tensor::f_from_slice(&gate)?, input.z.device())?;
    let decode = (plan.decode > 0).then_some(&gate);
    Ok(net.trunk(&TrunkInput { decode, ..input })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn words_are_those_of_conditions_that_are_not_dropped() {
        let ids = Tensor::from_slice(&[7i64, 8, 9, 10, 11, 12]).view([2, 3]);
        let batch = |condition: Option<[f32; 6]>, dropped: &[bool]| LatentBatch {
            latents: Tensor::zeros([2, 3, 1], (Kind::Float, Device::Cpu)),
            ids: ids.shallow_clone(),
            loss_mask: Tensor::ones([2, 3], (Kind::Float, Device::Cpu)),
            condition: condition.map(|mask| Tensor::from_slice(&mask).view([2, 3])),
            dropped: dropped.to_vec(),
        };
        assert!(words_of(&batch(None, &[])).unwrap().is_none());
        let given = Some([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        for (dropped, expected) in [(&[][..], [7i64, -1, -1, 10, 11, -1]), (&[false, true], [7, -1, -1, -1, -1, -1])] {
            let words = words_of(&batch(given, dropped)).unwrap().unwrap();
            assert!(words.equal(&Tensor::from_slice(&expected).view([2, 3])), "{words}");
        }
    }
}
