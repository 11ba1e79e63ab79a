//! The ancestral sampler of masked diffusion.

use elf_core::device::{at_a_time, upload};
use elf_core::{Noise, Seeded, TokenDraw, TokenNetwork};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::masked_diffusion::mask_id;
use crate::{Error, Result};

/// The largest number of logits that exist at a time on a CPU.
const LOGITS_AT_A_TIME: i64 = 1 << 24;

/// The ancestral sampler of masked diffusion (Sahoo et al. 2024) with the schedule `alpha_t = 1 - t`: from t = 1, where everything
/// but the condition is hidden, in equal steps to t = 0. Between t and s a hidden position is disclosed with probability
/// `(t - s) / t`, with a token drawn from the network's prediction; a disclosed token stays.
///
/// So the time at which a position is disclosed is uniform in (0, 1] for any prediction. Here it is drawn first, so that steps which
/// disclose nothing in the whole batch need no pass (the authors' cache), and logits are computed only where they are needed.
///
/// Draws, by row: `disclose` `[B, S]`; `token` `[B, S]` twice, for numbers fine enough for the tails of a large vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AncestralSampler {
    /// Steps from t = 1 to t = 0.
    pub steps: usize,
}

/// One batch to sample.
#[derive(Debug)]
pub struct MaskedRequest<'a> {
    /// One seed per row: equal seeds and conditions give equal rows in all batches of one shape.
    pub seeds: &'a [u64],
    /// Ids `[B, S]`, int64, on the CPU; only the conditions and given tokens matter.
    pub ids: &'a Tensor,
    /// The position at which each row's text begins, `[B]`.
    pub starts: &'a [i64],
    /// Which tokens of the texts are given, `[B, S]`; empty if none is.
    pub given: &'a [bool],
    /// Tokens that no position may hold unless it is given.
    pub barred: &'a [i64],
}

/// Sampled rows.
#[derive(Debug)]
pub struct MaskedSample {
    /// Ids `[B, S]`, int64, on the CPU, conditions included.
    pub ids: Tensor,
    /// Passes through the network, at most one per step.
    pub passes: u64,
}

impl AncestralSampler {
    /// Samples one batch.
    ///
    /// # Errors
    /// If there are no steps, shapes do not fit, or the network fails.
    pub fn sample(&self, net: &dyn TokenNetwork, request: &MaskedRequest) -> Result<MaskedSample> {
        let (b, s) = request.ids.size2()?;
        if self.steps == 0 {
            return Err(Error::setting("steps", "at least one is needed"));
        }
        if request.seeds.len() as i64 != b || request.starts.len() as i64 != b {
            return Err(Error::setting("seeds and starts", format!("{b} rows need one of each per row")));
        }
        if !request.given.is_empty() && request.given.len() as i64 != b * s {
            return Err(Error::setting("given", format!("{b} rows of {s} positions need one for each position")));
        }
        let mut noise = Seeded::new(request.seeds.to_vec(), Device::Cpu);
        tch::no_grad(|| self.sample_with_noise(net, request, (b, s), &mut noise))
    }

    fn sample_with_noise(
        &self,
        net: &dyn TokenNetwork,
        request: &MaskedRequest,
        (b, s): (i64, i64),
        noise: &mut dyn Noise,
    ) -> Result<MaskedSample> {
        let flat = |x: Tensor| -> Result<Vec<f64>> { Ok(Vec::try_from(x.f_to_kind(Kind::Double)?.f_reshape([-1])?)?) };
        // u is uniform in [0, 1), and 1 - u the time of disclosure, which lies in step floor(u N).
        let disclose = flat(noise.uniform("disclose", &[b, s])?)?;
        let token = flat(noise.fine_uniform("token", &[b, s])?)?;
        let mut by_step: Vec<Vec<i64>> = vec![Vec::new(); self.steps];
        let mut ids = Vec::<i64>::try_from(request.ids.f_to_kind(Kind::Int64)?.f_reshape([-1])?)?;
        let mask = mask_id(net)?;
        for (row, &start) in (0..).zip(request.starts) {
            let text = row * s + start.clamp(0, s)..(row + 1) * s;
            for place in text.filter(|&place| !request.given.get(place as usize).is_some_and(|&given| given)) {
                let step = (disclose[place as usize] * self.steps as f64) as usize;
                by_step[step.min(self.steps - 1)].push(place);
                ids[place as usize] = mask;
            }
        }
        let mut passes = 0;
        for places in by_step.iter().filter(|places| !places.is_empty()) {
            let hidden = net.hidden(&Tensor::f_from_slice(&ids)?.f_view([b, s])?, None)?.f_flatten(0, 1)?;
            passes += 1;
            let most = (at_a_time(hidden.device(), LOGITS_AT_A_TIME) / net.vocab_size()).max(1);
            for some in places.chunks(most as usize) {
                let at = upload(&Tensor::f_from_slice(some)?, hidden.device())?;
                let logits = net.logits(&hidden.f_index_select(0, &at)?)?;
                let barred = upload(&Tensor::f_from_slice(request.barred)?, logits.device())?;
                let logits = logits.f_index_fill(-1, &barred, f64::NEG_INFINITY)?;
                let draws: Vec<f64> = some.iter().map(|&i| token[i as usize]).collect();
                let draws = upload(&Tensor::f_from_slice(&draws)?, logits.device())?;
                let tokens = TokenDraw::default().tokens(&logits, &draws)?.f_to_device(Device::Cpu)?;
                for (&place, token) in some.iter().zip(Vec::<i64>::try_from(tokens)?) {
                    ids[place as usize] = token;
                }
            }
        }
        Ok(MaskedSample { ids: Tensor::f_from_slice(&ids)?.f_view([b, s])?, passes })
    }
}
