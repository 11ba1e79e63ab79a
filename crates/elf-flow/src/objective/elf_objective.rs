//! The settings of the objective of the paper.

use serde::{Deserialize, Serialize};

use crate::{Error, FlowPath, GuidanceLaw, LogitNormal, Result, TimeLaw};

/// The objective of the paper: each row is either a *denoise* row, whose loss is the velocity's squared error, or a *decode*
/// row, whose loss is the cross-entropy of its words.
///
/// Draws: `decoder_coin`, `self_cond_u` (host), `t_normal` or `t_uniform` `[B]`, `cfg_scale_u` `[B]`, `noise` `[B, S, C]`,
/// `decoder_lambda_normal` `[B, S]`, `decoder_noise_normal` `[B, S, C]`; with [`OwnEstimates`] also `decoder_estimate_u` (host),
/// `decoder_estimate_t` `[B]`, `decoder_estimate_noise` `[B, S, C]`.
///
/// The released code runs five passes over every row and takes all logits. The same mathematics needs less: the pass
/// without self-conditioning only for denoise rows that are self-conditioned; no pass of its own for the guidance target's
/// conditioned velocity, which is the main pass without its gradient (unless that has dropout); logits only at the
/// loss positions of decode rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElfObjective {
    /// The path of denoise rows.
    pub path: FlowPath,
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
    /// Leaves the condition of decode rows clean, as it is when a text is decoded. The released code corrupts it like everything
    /// else, so that under heavy noise its decode rows learn nothing of how a target follows from its condition.
    #[serde(default)]
    pub decoder_clean_condition: bool,
    /// Decode rows that are read from the network's own estimates; `None` for none, as in the paper.
    #[serde(default)]
    pub decoder_estimates: Option<OwnEstimates>,
    /// Tokens of a block, for a text that is written block after block, each given all tokens before it; `None` for all tokens
    /// together, as in the paper. In blocks, latents must not depend on later tokens.
    #[serde(default)]
    pub block_size: Option<i64>,
}

impl Default for ElfObjective {
    /// The released recipe for unconditional text.
    fn default() -> Self {
        Self {
            path: FlowPath::default(),
            time: TimeLaw::LogitNormal(LogitNormal::DENOISER),
            guidance: GuidanceLaw::default(),
            self_cond_prob: 0.5,
            decoder_prob: 0.2,
            decoder_noise_scale: 5.0,
            decoder: LogitNormal::DECODER,
            decoder_clean_condition: false,
            decoder_estimates: None,
            block_size: None,
        }
    }
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
            return Err(Error::setting(
                "block_size",
                format!("a block of {size} tokens is not possible; use 1 or more"),
            ));
        }
        if let Some(own) = &self.decoder_estimates {
            own.check(self.block_size)?;
        }
        self.decoder.check("decoder_p_mean, decoder_p_std")?;
        // Tensors are fp32 and cannot hold a larger number.
        if !(self.decoder_noise_scale >= 0.0 && (self.decoder_noise_scale as f32).is_finite()) {
            return Err(Error::setting("decoder_noise_scale", format!("{} is not a scale", self.decoder_noise_scale)));
        }
        Ok(())
    }

    /// Whether networks trained with this objective take a previous clean estimate as a second input.
    pub fn self_conditioned(&self) -> bool {
        self.self_cond_prob > 0.0
    }
}

/// Which decode rows hold the network's own clean estimates in place of noisy latents. Not in the paper or the released code.
///
/// A sampler's last step reads words from an estimate of the network's: a mean of all texts that are possible there, without noise, with
/// the network's own errors, and guided. Noisy latents are none of that, so that decode rows of the released kind teach little of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnEstimates {
    /// Their share of the decode rows.
    pub prob: f64,
    /// The earliest time in [0, 1] at which the estimate is made; times are even.
    pub from: f64,
    /// The latest one.
    pub to: f64,
    /// The scale by which the estimate is led away from that of the network's own guide ([`Network::guide`](elf_core::Network::guide)); 1 is none.
    pub guide_scale: f64,
}

impl OwnEstimates {
    fn check(&self, block_size: Option<i64>) -> Result<()> {
        let Self { prob, from, to, guide_scale } = *self;
        if !(0.0..=1.0).contains(&prob) {
            return Err(Error::setting("decoder_estimate_prob", format!("{prob} is not a probability")));
        }
        if !(0.0 <= from && from <= to && to <= 1.0) {
            let reason = format!("{from} and {to} are not times in [0, 1] in their order");
            return Err(Error::setting("decoder_estimate_from, decoder_estimate_to", reason));
        }
        if !(guide_scale as f32).is_finite() {
            return Err(Error::setting("decoder_estimate_guide", format!("{guide_scale} is not a scale")));
        }
        match block_size {
            None => Ok(()),
            Some(_) => Err(Error::setting(
                "decoder_estimate_prob",
                "own estimates are read where texts are written all at once: leave it out, or block_size",
            )),
        }
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
