//! Training losses as functions of a network, a batch, and explicit draws.

use elf_core::device::upload;
use elf_core::{Dropout, Network, Noise, TrunkInput};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::batch::{host_numbers, positions_in};
use crate::blocks::{TeacherForcing, WrittenPrefix};
use crate::{Error, GuidanceLaw, LatentBatch, LogitNormal, Path, Result, TimeLaw};

/// A named part of a loss, for logs.
#[derive(Debug)]
pub struct LossTerm {
    /// What it is: `l2`, `ce`, ...
    pub name: &'static str,
    /// Its sum over the positions that it counts, without gradient; a scalar on the network's device.
    pub sum: Tensor,
    /// How many positions that is.
    pub count: f64,
}

/// A loss before normalisation, so that batches, accumulation steps and ranks can be added up correctly.
#[derive(Debug)]
pub struct Loss {
    /// The sum to differentiate; a scalar.
    pub sum: Tensor,
    /// What to divide it by (over all parts of a global batch, at least 1).
    pub count: f64,
    /// Its named parts.
    pub terms: Vec<LossTerm>,
}

impl Loss {
    /// The loss of this batch alone.
    pub fn mean(&self) -> Tensor {
        &self.sum / self.count.max(1.0)
    }
}

/// A training loss. All randomness comes from `noise`, so equal draws give equal losses.
pub trait Objective {
    /// The loss of one batch.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network or the noise fails.
    fn loss(&self, net: &dyn Network, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Loss>;
}

/// The objective of the paper: each row is either a *denoise* row, whose loss is the velocity's squared error, or a *decode*
/// row, whose loss is the cross-entropy of its words.
///
/// Draws: `decoder_coin`, `self_cond_u` (host), `t_normal` or `t_uniform` `[B]`, `cfg_scale_u` `[B]`, `noise` `[B, S, C]`,
/// `decoder_lambda_normal` `[B, S]`, `decoder_noise_normal` `[B, S, C]`.
///
/// The released code runs five passes over every row and takes all logits. The same mathematics needs less: the pass
/// without self-conditioning only for denoise rows that are self-conditioned; no pass of its own for the guidance target's
/// conditioned velocity, which is the main pass without its gradient (unless that has dropout); logits only at the
/// loss positions of decode rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElfObjective {
    /// The path of denoise rows.
    pub path: Path,
    /// The law of their times.
    pub time: TimeLaw,
    /// The law of guidance scales.
    pub guidance: GuidanceLaw,
    /// Share of self-conditioned rows among denoise rows; 0 means a network that takes z alone.
    pub self_cond_prob: f64,
    /// Share of decode rows.
    pub decoder_prob: f64,
    /// Standard deviation of the noise in decode rows.
    pub decoder_noise_scale: f64,
    /// The law of each decode token's clean share.
    pub decoder: LogitNormal,
    /// Leave the condition of decode rows clean, as it is when a text is read. The released code corrupts it like everything
    /// else, so that under heavy noise its decode rows learn nothing of how a target follows from its condition.
    #[serde(default)]
    pub decoder_clean_condition: bool,
    /// Learn to write a text in blocks of so many tokens, each knowing all before it, in place of all tokens together as in the paper.
    /// Latents must then know nothing of the tokens behind them.
    #[serde(default)]
    pub block_size: Option<i64>,
}

impl Default for ElfObjective {
    /// The released recipe for unconditional text.
    fn default() -> Self {
        Self {
            path: Path::default(),
            time: TimeLaw::LogitNormal(LogitNormal::DENOISER),
            guidance: GuidanceLaw::default(),
            self_cond_prob: 0.5,
            decoder_prob: 0.2,
            decoder_noise_scale: 5.0,
            decoder: LogitNormal::DECODER,
            decoder_clean_condition: false,
            block_size: None,
        }
    }
}

/// The rows of a batch in the order in which they are computed: self-conditioned denoise rows, other denoise rows, decode rows.
pub(crate) struct RowPlan {
    /// Their places in the batch.
    pub(crate) order: Vec<i64>,
    /// How many are self-conditioned.
    pub(crate) self_cond: i64,
    /// How many are denoised, those included.
    pub(crate) denoise: i64,
    /// How many are decoded.
    pub(crate) decode: i64,
}

impl RowPlan {
    pub(crate) fn new(decode: &[bool], self_cond: &[bool]) -> Self {
        let rows = |wanted: &dyn Fn(usize) -> bool| {
            (0..decode.len()).filter(|&i| wanted(i)).map(|i| i as i64).collect::<Vec<_>>()
        };
        let conditioned = rows(&|i| !decode[i] && self_cond[i]);
        let plain = rows(&|i| !decode[i] && !self_cond[i]);
        let decoded = rows(&|i| decode[i]);
        let (n, d) = (conditioned.len() as i64, decoded.len() as i64);
        let denoise = n + plain.len() as i64;
        Self { order: [conditioned, plain, decoded].concat(), self_cond: n, denoise, decode: d }
    }
}

/// A batch in the plan's order, on the network's device. S are its positions, or those of them that are there as noisy tokens.
pub(crate) struct Prepared {
    /// Clean latents with dropped conditions zeroed, `[B, S, C]`.
    pub(crate) x0: Tensor,
    /// What the trunk sees, `[B, S, C]`.
    pub(crate) z: Tensor,
    /// `[B]`; 1 in decode rows.
    pub(crate) t: Tensor,
    /// Guidance scales `[B]`.
    pub(crate) w: Tensor,
    /// 1 on condition positions, `[B, S, 1]`.
    pub(crate) condition: Option<Tensor>,
    /// Where texts are written in blocks: each row beside itself, clean.
    forcing: Option<TeacherForcing>,
}

impl Prepared {
    /// As they are where texts are written in blocks: behind `forcing`, and noisy no further than they are learned from.
    fn behind(self, forcing: TeacherForcing) -> Result<Self> {
        let learned = |x: &Tensor| forcing.learned(x);
        Ok(Self {
            x0: learned(&self.x0)?,
            z: learned(&self.z)?,
            condition: self.condition.as_ref().map(learned).transpose()?,
            forcing: Some(forcing),
            ..self
        })
    }

    /// What stands before the first `n` rows.
    fn prefix(&self, n: i64) -> Result<Option<WrittenPrefix>> {
        self.forcing.as_ref().map(|forcing| forcing.of(n)).transpose()
    }

    /// What the network's head says of the first `n` rows, behind their rows of `x_prev` `[B, S, C]` and without dropout: `[n, S, C]`.
    fn head(&self, net: &dyn Network, n: i64, x_prev: Option<&Tensor>) -> Result<Tensor> {
        let first = |x: &Tensor| x.f_narrow(0, 0, n);
        let (z, t, w, x_prev) = (first(&self.z)?, first(&self.t)?, first(&self.w)?, x_prev.map(first).transpose()?);
        let prefix = self.prefix(n)?;
        let input = TrunkInput {
            x_prev: x_prev.as_ref(),
            guidance: Some(&w),
            context: prefix.as_ref().map(WrittenPrefix::context),
            ..TrunkInput::new(&z, &t)
        };
        Ok(net.clean(&net.trunk(&input)?)?)
    }

    /// The previous estimate of all rows, `[B, S, C]`, without gradient if anything was asked of the network: `start`, and in the first `n` rows what
    /// the network makes of that, held at the condition. Beside it what the network said there, `[n, S, C]`.
    pub(crate) fn previous_estimate(
        &self,
        net: &dyn Network,
        path: &Path,
        start: Tensor,
        n: i64,
    ) -> Result<(Tensor, Option<Tensor>)> {
        if n == 0 {
            return Ok((start, None));
        }
        tch::no_grad(|| {
            let first = |x: &Tensor| x.f_narrow(0, 0, n);
            let head = self.head(net, n, Some(&start))?;
            let said = path.clean_of(head, &first(&self.z)?, &first(&self.t)?.f_view([-1, 1, 1])?);
            let held = match &self.condition {
                Some(condition) => pin(&said, &first(&self.x0)?, &first(condition)?),
                None => said.shallow_clone(),
            };
            let rest = start.f_narrow(0, n, start.size3()?.0 - n)?;
            Ok((Tensor::f_cat(&[held, rest], 0)?, Some(said)))
        })
    }
}

/// What a loss is taken of: the rows, and what is learned at which of their positions.
struct Lesson {
    rows: Prepared,
    /// The batch's ids `[B, S]`, in its own order, on the CPU.
    ids: Tensor,
    /// 1 on loss positions, `[B, S]`, in the plan's order, on the CPU.
    mask: Tensor,
}

/// What the rows are given beside themselves.
struct Hints {
    /// The previous estimate, `[B, S, C]`.
    x_prev: Option<Tensor>,
    /// Of self-conditioned rows, the velocity without one, from which guidance starts: `[u, S, C]`.
    v_u: Option<Tensor>,
}

impl ElfObjective {
    /// Checks all settings.
    ///
    /// # Errors
    /// Names the first setting that is out of its range.
    pub fn check(&self) -> Result<()> {
        self.path.check()?;
        self.time.check()?;
        self.guidance.check()?;
        for (setting, p) in [("self_cond_prob", self.self_cond_prob), ("decoder_prob", self.decoder_prob)] {
            if !(0.0..=1.0).contains(&p) {
                return Err(Error::setting(setting, format!("{p} is not a probability")));
            }
        }
        if let Some(size) = self.block_size.filter(|&size| size < 1) {
            return Err(Error::setting("block_size", format!("{size} tokens are no block")));
        }
        self.decoder.check("decoder_p_mean, decoder_p_std")?;
        // Tensors are fp32: a larger number would not fit beside them.
        if !(self.decoder_noise_scale >= 0.0 && (self.decoder_noise_scale as f32).is_finite()) {
            return Err(Error::setting("decoder_noise_scale", format!("{} is not a scale", self.decoder_noise_scale)));
        }
        Ok(())
    }

    /// Whether networks trained with this objective take a previous estimate beside z.
    pub fn self_conditioned(&self) -> bool {
        self.self_cond_prob > 0.0
    }

    /// Draws which rows are decoded and which are self-conditioned.
    pub(crate) fn plan_rows(&self, rows: i64, noise: &mut dyn Noise) -> Result<RowPlan> {
        let below = |coins: Vec<f64>, p: f64| coins.into_iter().map(|u| u < p).collect::<Vec<bool>>();
        let decode = below(noise.coins("decoder_coin", rows as usize)?, self.decoder_prob);
        let self_cond = match self.self_conditioned() {
            true => below(noise.coins("self_cond_u", rows as usize)?, self.self_cond_prob),
            false => vec![false; rows as usize],
        };
        Ok(RowPlan::new(&decode, &self_cond))
    }

    /// The batch as the network sees it, its denoise rows at the times `t` `[B]` (in the batch's own order).
    pub(crate) fn prepare(
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
        let mut x0 = batch.latents.f_index_select(0, &rows)?;
        if let (Some(condition), true) = (&condition, batch.dropped.contains(&true)) {
            let keep: Vec<f32> = plan.order.iter().map(|&i| f32::from(!batch.dropped[i as usize])).collect();
            let keep = upload(&Tensor::f_from_slice(&keep)?, device)?.f_view([b, 1, 1])?;
            // A dropped row keeps its target positions and loses its condition positions.
            x0 = &x0 * (1.0 - condition * (1.0 - keep));
        }

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

        // Each token of a decode row is corrupted by an amount of its own, condition positions too unless told otherwise.
        let share = self.decoder.transform(&noise.normal("decoder_lambda_normal", &[b, s])?);
        let share = share.f_index_select(0, &decode_rows)?.f_unsqueeze(-1)?;
        let eps = noise.normal("decoder_noise_normal", &[b, s, c])?.f_index_select(0, &decode_rows)?;
        let clean = x0.f_narrow(0, plan.denoise, plan.decode)?;
        let mut corrupted = &share * &clean + (1.0 - &share) * eps * self.decoder_noise_scale;
        if let (Some(condition), true) = (&condition, self.decoder_clean_condition) {
            corrupted = pin(&corrupted, &clean, &condition.f_narrow(0, plan.denoise, plan.decode)?);
        }

        let ones = Tensor::f_ones([plan.decode], (Kind::Float, device))?;
        Ok(Prepared {
            z: Tensor::f_cat(&[noisy, corrupted], 0)?,
            t: Tensor::f_cat(&[times, ones], 0)?,
            x0,
            w,
            condition,
            forcing: None,
        })
    }
}

/// `clean` on condition positions, `x` elsewhere.
pub(crate) fn pin(x: &Tensor, clean: &Tensor, condition: &Tensor) -> Tensor {
    x * (1.0 - condition) + clean * condition
}

/// What decode rows are to write: their loss positions, N in all.
pub(crate) struct Words {
    /// `[N, H]`.
    pub(crate) hidden: Tensor,
    /// `[N]`, beside `hidden`.
    pub(crate) ids: Tensor,
    /// Which of the decode rows' positions they are, `[N]`, on the CPU.
    pub(crate) places: Tensor,
}

impl Words {
    /// From the decode rows' hidden states `[d, S, H]`, the batch's `ids` `[B, S]` and what is not 0 in a mask `[B, S]` in the plan's order.
    pub(crate) fn of(hidden: &Tensor, ids: &Tensor, plan: &RowPlan, mask: &Tensor) -> Result<Self> {
        let (d, s, _) = hidden.size3()?;
        let device = hidden.device();
        let mask = host_numbers(&mask.f_narrow(0, plan.denoise, d)?)?;
        let places: Vec<i64> = mask.iter().zip(0..).filter(|(counts, _)| **counts != 0.0).map(|(_, at)| at).collect();
        let places = Tensor::f_from_slice(&places)?;
        let rows = Tensor::f_from_slice(&plan.order[plan.denoise as usize..])?;
        let ids = ids.f_index_select(0, &rows)?.f_reshape([-1])?.f_index_select(0, &places)?;
        let hidden = hidden.f_reshape([d * s, -1])?.f_index_select(0, &upload(&places, device)?)?;
        Ok(Self { hidden, ids: upload(&ids, device)?, places })
    }
}

/// Latents of another number of channels than the network's, refused.
pub(crate) fn check_channels(net: &dyn Network, (b, s, c): (i64, i64, i64)) -> Result<()> {
    let wanted = net.shape().latent_dim;
    if c == wanted {
        return Ok(());
    }
    let expected = format!("[B, S, {wanted}], as the network's latents have");
    Err(elf_core::Error::Shape { what: "latents".into(), found: vec![b, s, c], expected }.into())
}

/// Dropout for one pass over the rows of a plan, in its order, whole rows being so many positions long; if the network uses any.
pub(crate) fn dropout(
    net: &dyn Network,
    plan: &RowPlan,
    length: i64,
    noise: &mut dyn Noise,
) -> Result<Option<Dropout>> {
    let drawn = match net.shape().stochastic {
        true => Dropout::draw(noise, plan.order.len(), length)?,
        false => None,
    };
    Ok(drawn.map(|dropout| dropout.in_order(&plan.order)))
}

/// The one pass with gradients for all rows of a plan, those of decode rows in decode mode.
pub(crate) fn mixed_trunk(net: &dyn Network, plan: &RowPlan, input: TrunkInput) -> Result<Tensor> {
    let rows = plan.denoise + plan.decode;
    let gate: Vec<f32> = (0..rows).map(|i| f32::from(i >= plan.denoise)).collect();
    let gate = upload(&Tensor::f_from_slice(&gate)?, input.z.device())?;
    let decode = (plan.decode > 0).then_some(&gate);
    Ok(net.trunk(&TrunkInput { decode, ..input })?)
}

impl ElfObjective {
    /// The rows of a batch, as far as they are learned from.
    fn lesson(&self, batch: &LatentBatch, plan: &RowPlan, noise: &mut dyn Noise) -> Result<Lesson> {
        let t = self.time.draw(batch.sizes()?.0, noise)?;
        let rows = match batch.latents.requires_grad() {
            // Latents that are learned with the network.
            true => self.prepare(batch, plan, &t, noise)?,
            false => tch::no_grad(|| self.prepare(batch, plan, &t, noise))?,
        };
        let order = Tensor::f_from_slice(&plan.order)?;
        let mask = batch.loss_mask.f_index_select(0, &order)?;
        match self.block_size {
            None => Ok(Lesson { rows, ids: batch.ids.shallow_clone(), mask }),
            Some(size) => {
                let forcing = TeacherForcing::new(batch, size, &order, &rows.x0)?;
                let (ids, mask) = (forcing.learned(&batch.ids)?, forcing.learned(&mask)?);
                Ok(Lesson { rows: rows.behind(forcing)?, ids, mask })
            }
        }
    }

    /// What the rows are given beside themselves, if networks take it.
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
        // ... and on self-conditioned rows what the network says without one, whose velocity guidance starts from.
        let (x_prev, said) = rows.previous_estimate(net, &self.path, start, u)?;
        let v_u = match said {
            Some(x_u) => Some(tch::no_grad(|| -> Result<Tensor> {
                let t = rows.t.f_narrow(0, 0, u)?.f_view([-1, 1, 1])?;
                Ok(self.path.velocity(&x_u, &rows.z.f_narrow(0, 0, u)?, &t))
            })?),
            None => None,
        };
        Ok(Hints { x_prev: Some(x_prev), v_u })
    }

    /// The velocities' squared errors of denoise rows, from their hidden states `[n, S, H]`, which came with dropout or without.
    fn denoise_term(
        &self,
        net: &dyn Network,
        lesson: &Lesson,
        hints: &Hints,
        hidden: &Tensor,
        dropout: bool,
    ) -> Result<(Tensor, LossTerm)> {
        let rows = &lesson.rows;
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
                // What the main pass drops would be noise in the target.
                true => tch::no_grad(|| -> Result<Tensor> {
                    let head = rows.head(net, u, hints.x_prev.as_ref())?;
                    Ok(self.path.velocity_of(head, &first(&z)?, &first(&t)?))
                })?,
            };
            let strength = 1.0 - first(&rows.w)?.f_reciprocal()?.f_view([-1, 1, 1])?;
            let _ = first(&target)?.f_add_(&(strength * (v_c - v_u)))?;
        }
        let mask = first(&lesson.mask)?;
        let per_position = (v_hat - target).square().f_mean_dim(-1, false, Kind::Float)?;
        let l2 = (per_position * upload(&mask, hidden.device())?).f_sum(Kind::Float)?;
        let count = positions_in(&mask)?;
        let term = LossTerm { name: "l2", sum: l2.f_detach()?, count };
        Ok((l2, term))
    }

    /// The words' cross-entropy of decode rows, from their hidden states `[d, S, H]`.
    fn decode_term(net: &dyn Network, plan: &RowPlan, lesson: &Lesson, hidden: &Tensor) -> Result<(Tensor, LossTerm)> {
        let Words { hidden, ids, places } = Words::of(hidden, &lesson.ids, plan, &lesson.mask)?;
        let ce = net.cross_entropy_sum(&hidden, &ids, None)?;
        let term = LossTerm { name: "ce", sum: ce.f_detach()?, count: places.size1()? as f64 };
        Ok((ce, term))
    }
}

impl Objective for ElfObjective {
    fn loss(&self, net: &dyn Network, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Loss> {
        let (b, s, c) = batch.sizes()?;
        check_channels(net, (b, s, c))?;
        let plan = self.plan_rows(b, noise)?;
        let lesson = self.lesson(batch, &plan, noise)?;
        let rows = &lesson.rows;
        let hints = self.hints(net, &plan, rows)?;

        let (prefix, dropout) = (rows.prefix(b)?, dropout(net, &plan, s, noise)?);
        let input = TrunkInput {
            x_prev: hints.x_prev.as_ref(),
            guidance: Some(&rows.w),
            context: prefix.as_ref().map(WrittenPrefix::context),
            dropout: dropout.as_ref(),
            ..TrunkInput::new(&rows.z, &rows.t)
        };
        let hidden = mixed_trunk(net, &plan, input)?;

        let (n, d) = (plan.denoise, plan.decode);
        let mut sum = Tensor::f_zeros([], (Kind::Float, batch.latents.device()))?;
        let mut terms = Vec::new();
        if n > 0 {
            let (l2, term) = self.denoise_term(net, &lesson, &hints, &hidden.f_narrow(0, 0, n)?, dropout.is_some())?;
            sum = &sum + l2;
            terms.push(term);
        }
        if d > 0 {
            let (ce, term) = Self::decode_term(net, &plan, &lesson, &hidden.f_narrow(0, n, d)?)?;
            sum = &sum + ce;
            terms.push(term);
        }
        Ok(Loss { sum, count: batch.loss_positions()?, terms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_their_range_are_named() {
        ElfObjective::default().check().unwrap();
        let decoder = |mean, std| ElfObjective { decoder: LogitNormal { mean, std }, ..ElfObjective::default() };
        let scale = |scale| ElfObjective { decoder_noise_scale: scale, ..ElfObjective::default() };
        let widest = |max| ElfObjective { guidance: GuidanceLaw { min: 0.5, max }, ..ElfObjective::default() };
        for (objective, setting) in [
            (decoder(f64::NAN, 0.8), "decoder_p_mean"),
            (decoder(1e300, 0.8), "decoder_p_mean"),
            (decoder(0.8, -0.1), "decoder_p_std"),
            (decoder(0.8, f64::INFINITY), "decoder_p_std"),
            (scale(1e300), "decoder_noise_scale"),
            (scale(-1.0), "decoder_noise_scale"),
            (scale(f64::NAN), "decoder_noise_scale"),
            (widest(1e300), "self_cond_cfg_max"),
        ] {
            let message = objective.check().unwrap_err().to_string();
            assert!(message.contains(setting), "{message}");
        }
        decoder(0.8, 0.0).check().unwrap();
        scale(0.0).check().unwrap();
    }
}
