//! The loss of the objective of the paper.

use elf_core::device::upload;
use elf_core::{CrossEntropy, Network, Noise, TrunkInput};
use tch::{Kind, Tensor};

use super::elf_objective::ElfObjective;
use super::rows::{Prepared, RowPlan, Words, check_channels, dropout, mixed_trunk};
use super::{Loss, LossTerm, Objective, TimeBins};
use crate::batch::positions_in;
use crate::blocks::{FinishedPrefix, TeacherForcing};
use crate::{LatentBatch, Result};

/// Names of the parts of the loss.
const L2: &str = "l2";
const CE: &str = "ce";

/// The rows of a batch, and what is learned at which of their positions.
struct LossInputs {
    rows: Prepared,
    /// Token ids `[B, S]`, in the batch's own order, on the CPU.
    ids: Tensor,
    /// 1 on loss positions, `[B, S]`, in the plan's order, on the CPU.
    mask: Tensor,
}

/// Extra network inputs, computed without gradient.
struct Hints {
    /// The previous clean estimate, `[B, S, C]`.
    x_prev: Option<Tensor>,
    /// The velocity of self-conditioned rows without a previous estimate, from which guidance starts: `[u, S, C]`.
    v_u: Option<Tensor>,
}

impl ElfObjective {
    /// Corrupts the rows of a batch, and in blocks adds their prefix.
    fn inputs(&self, batch: &LatentBatch, plan: &RowPlan, noise: &mut dyn Noise) -> Result<LossInputs> {
        let t = self.time.draw(batch.sizes()?.0, noise)?;
        let rows = match batch.latents.requires_grad() {
            // Latents that are learned together with the network need a gradient.
            true => self.prepare(batch, plan, &t, noise)?,
            false => tch::no_grad(|| self.prepare(batch, plan, &t, noise))?,
        };
        let order = Tensor::f_from_slice(&plan.order)?;
        let mask = batch.loss_mask.f_index_select(0, &order)?;
        match self.block_size {
            None => Ok(LossInputs { rows, ids: batch.ids.shallow_clone(), mask }),
            Some(size) => {
                let forcing = TeacherForcing::new(batch, size, &order, &rows.x0)?;
                let (ids, mask) = (forcing.learned(&batch.ids)?, forcing.learned(&mask)?);
                Ok(LossInputs { rows: rows.with_prefix(forcing)?, ids, mask })
            }
        }
    }

    /// The previous estimates, for networks that take them.
    fn hints(&self, net: &dyn Network, plan: &RowPlan, rows: &Prepared) -> Result<Hints> {
        if !self.self_conditioned() {
            return Ok(Hints { x_prev: None, v_u: None });
        }
        let (n, u) = (plan.denoise, plan.self_cond);
        // Clean on the condition positions of denoise rows, 0 elsewhere ...
        let start = match &rows.condition {
            Some(condition) => {
                let given = (&rows.x0 * condition).f_narrow(0, 0, n)?;
                Tensor::f_cat(&[given, rows.x0.f_narrow(0, n, plan.decode)?.f_zeros_like()?], 0)?
            }
            None => rows.z.f_zeros_like()?,
        };
        // ... and on self-conditioned rows the network's estimate given that, whose velocity guidance starts from.
        let (x_prev, estimate) = rows.previous_estimate(net, &self.path, start, u)?;
        let v_u = match estimate {
            Some(x_u) => Some(tch::no_grad(|| -> Result<Tensor> {
                let t = rows.t.f_narrow(0, 0, u)?.f_view([-1, 1, 1])?;
                Ok(self.path.velocity(&x_u, &rows.z.f_narrow(0, 0, u)?, &t))
            })?),
            None => None,
        };
        Ok(Hints { x_prev: Some(x_prev), v_u })
    }

    /// The squared error of the velocities of denoise rows, from their hidden states `[n, S, H]`; `dropout` says whether the pass that
    /// made those had dropout.
    fn denoise_term(
        &self,
        net: &dyn Network,
        inputs: &LossInputs,
        hints: &Hints,
        hidden: &Tensor,
        dropout: bool,
    ) -> Result<(Tensor, LossTerm, TimeBins)> {
        let rows = &inputs.rows;
        let n = hidden.size3()?.0;
        let first = |x: &Tensor| x.f_narrow(0, 0, n);
        let (z, t, x0) = (first(&rows.z)?, first(&rows.t)?.f_view([-1, 1, 1])?, first(&rows.x0)?);
        let v_hat = self.path.velocity_of(net.clean(hidden)?, &z, &t);
        let target = self.path.velocity(&x0, &z, &t);
        if let Some(v_u) = &hints.v_u {
            let u = v_u.size3()?.0;
            let first = |x: &Tensor| x.f_narrow(0, 0, u);
            let v_c = match dropout {
                false => first(&v_hat)?.f_detach()?,
                // The main pass's dropout would be noise in the target.
                true => tch::no_grad(|| -> Result<Tensor> {
                    let head = rows.head(net, u, hints.x_prev.as_ref())?;
                    Ok(self.path.velocity_of(head, &first(&z)?, &first(&t)?))
                })?,
            };
            let strength = 1.0 - first(&rows.w)?.f_reciprocal()?.f_view([-1, 1, 1])?;
            let _ = first(&target)?.f_add_(&(strength * (v_c - v_u)))?;
        }
        let mask = first(&inputs.mask)?;
        let counted = upload(&mask, hidden.device())?;
        let per_position = (v_hat - target).square().f_mean_dim(-1, false, Kind::Float)? * &counted;
        let l2 = per_position.f_sum(Kind::Float)?;
        let term = LossTerm { name: L2, sum: l2.f_detach()?, count: positions_in(&mask)? };
        let per_row = |x: &Tensor| x.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        let bins = TimeBins::of(L2, &first(&rows.t)?, &per_row(&per_position)?, &per_row(&counted)?)?;
        Ok((l2, term, bins))
    }

    /// The cross-entropy of the words of decode rows, from their hidden states `[d, S, H]`; a word's time is its clean share.
    fn decode_term(
        net: &dyn Network,
        plan: &RowPlan,
        inputs: &LossInputs,
        hidden: &Tensor,
    ) -> Result<(Tensor, LossTerm, TimeBins)> {
        let times = inputs.rows.clean_share.f_narrow(0, plan.denoise, plan.decode)?;
        let order = &plan.order[plan.denoise as usize..];
        let mask = inputs.mask.f_narrow(0, plan.denoise, plan.decode)?;
        let words = Words::of(hidden, &inputs.ids, order, &mask)?;
        let times = times.f_expand([-1, mask.size2()?.1, -1], false)?;
        let CrossEntropy { sum, each } = net.cross_entropy(&words.hidden, &words.ids, None)?;
        let term = LossTerm { name: CE, sum: sum.f_detach()?, count: words.places.size1()? as f64 };
        let times = times.f_reshape([-1])?.f_index_select(0, &upload(&words.places, each.device())?)?;
        let bins = TimeBins::of(CE, &times, &each, &each.f_ones_like()?)?;
        Ok((sum, term, bins))
    }
}

impl Objective for ElfObjective {
    fn loss(&self, net: &dyn Network, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Loss> {
        let (b, s, c) = batch.sizes()?;
        check_channels(net, (b, s, c))?;
        let plan = self.plan_rows(b, noise)?;
        let mut inputs = self.inputs(batch, &plan, noise)?;
        self.put_estimates(net, &mut inputs.rows, &plan, noise)?;
        let rows = &inputs.rows;
        let hints = self.hints(net, &plan, rows)?;

        let (prefix, dropout) = (rows.prefix(b)?, dropout(net, &plan, (b, s), noise)?);
        let input = TrunkInput {
            x_prev: hints.x_prev.as_ref(),
            guidance: Some(&rows.w),
            context: prefix.as_ref().map(FinishedPrefix::context),
            words: rows.words.as_ref(),
            dropout: dropout.as_ref(),
            ..TrunkInput::new(&rows.z, &rows.t)
        };
        let hidden = mixed_trunk(net, &plan, input)?;

        let (n, d) = (plan.denoise, plan.decode);
        let mut sum = Tensor::f_zeros([], (Kind::Float, batch.latents.device()))?;
        let (mut terms, mut by_time) = (Vec::new(), Vec::new());
        if n > 0 {
            let (l2, term, bins) =
                self.denoise_term(net, &inputs, &hints, &hidden.f_narrow(0, 0, n)?, dropout.is_some())?;
            sum = &sum + l2;
            terms.push(term);
            by_time.push(bins);
        }
        if d > 0 {
            let (ce, term, bins) = Self::decode_term(net, &plan, &inputs, &hidden.f_narrow(0, n, d)?)?;
            sum = &sum + ce;
            terms.push(term);
            by_time.push(bins);
        }
        Ok(Loss { sum, count: batch.loss_positions()?, terms, by_time })
    }
}
