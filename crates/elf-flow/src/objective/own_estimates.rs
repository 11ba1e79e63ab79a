//! Decode rows that are read from what the network itself estimates, as the last step of sampling does.

use elf_core::{Network, Noise, TrunkInput};
use tch::{Kind, Tensor};

use super::elf_objective::{ElfObjective, OwnEstimates};
use super::rows::{Prepared, RowPlan, pin};
use crate::{Error, Result};

impl ElfObjective {
    /// Puts the network's own estimates in the place of the latents of the plan's last decode rows, without gradient: made twice where
    /// the network takes an earlier estimate, as in sampling, and with a clean condition. Draws `decoder_estimate_t` `[B]` and
    /// `decoder_estimate_noise` `[B, S, C]`.
    pub(super) fn put_estimates(
        &self,
        net: &dyn Network,
        rows: &mut Prepared,
        plan: &RowPlan,
        noise: &mut dyn Noise,
    ) -> Result<()> {
        let Some(own) = &self.decoder_estimates else { return Ok(()) };
        let ((b, s, c), h) = (rows.z.size3()?, plan.estimated);
        let device = rows.z.device();
        tch::no_grad(|| {
            let order = Tensor::f_from_slice(&plan.order[(b - h) as usize..])?.f_to_device(device)?;
            let t = noise.uniform("decoder_estimate_t", &[b])? * (own.to - own.from) + own.from;
            let t = t.f_index_select(0, &order)?;
            let eps = noise.normal("decoder_estimate_noise", &[b, s, c])?.f_index_select(0, &order)?;
            if h == 0 {
                return Ok(());
            }
            let last = |x: &Tensor| x.f_narrow(0, b - h, h);
            let (x0, condition) = (last(&rows.x0)?, rows.condition.as_ref().map(last).transpose()?);
            let pinned = |x: Tensor| condition.as_ref().map_or(x.shallow_clone(), |given| pin(&x, &x0, given));
            let share = t.f_view([-1, 1, 1])?;
            let part = Prepared {
                z: pinned(self.path.interpolate(&x0, &eps, &share)),
                t,
                clean_share: share.f_expand([h, s, 1], false)?,
                w: last(&rows.w)?,
                words: rows.words.as_ref().map(last).transpose()?,
                x0: x0.shallow_clone(),
                condition: condition.as_ref().map(Tensor::shallow_clone),
                forcing: None,
            };
            let weak = own.weak_estimate(net, &part)?;
            let mut x = pinned(x0.f_zeros_like()?);
            for _ in 0..if self.self_conditioned() { 2 } else { 1 } {
                let head = part.head(net, h, self.self_conditioned().then_some(&x))?;
                let strong = self.path.clean_of(head, &part.z, &share);
                x = pinned(match &weak {
                    Some(weak) => weak.f_lerp(&strong, own.guide_scale)?,
                    None => strong,
                });
            }
            let replaced = |all: &Tensor, part: &Tensor| Tensor::f_cat(&[&all.f_narrow(0, 0, b - h)?, part], 0);
            rows.z = replaced(&rows.z, &x)?;
            rows.clean_share = replaced(&rows.clean_share, &part.clean_share)?;
            Ok(())
        })
    }
}

impl OwnEstimates {
    /// The estimate of the network's guide for the rows of `part`, `[h, S, C]`, if estimates are led away from it.
    fn weak_estimate(&self, net: &dyn Network, part: &Prepared) -> Result<Option<Tensor>> {
        if self.guide_scale == 1.0 {
            return Ok(None);
        }
        let Some(guide) = net.guide() else {
            let reason = format!("{} is asked for, and the network has no guide: use 1", self.guide_scale);
            return Err(Error::setting("decoder_estimate_guide", reason));
        };
        Ok(Some(guide.clean(&guide.trunk(&TrunkInput::new(&part.z, &part.t))?)?.f_to_kind(Kind::Float)?))
    }
}
