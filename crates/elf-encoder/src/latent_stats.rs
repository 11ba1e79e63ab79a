//! Normalising latents: by what, and how it is measured.

use elf_core::device::upload;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// One number for all channels, or one for each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerChannel {
    /// The same for all channels.
    All(f64),
    /// One for each of the C channels.
    Each(Vec<f64>),
}

impl PerChannel {
    fn values(&self) -> &[f64] {
        match self {
            Self::All(value) => std::slice::from_ref(value),
            Self::Each(values) => values,
        }
    }

    /// `[1]` or `[C]`, fp32.
    fn tensor(&self, device: Device) -> Result<Tensor> {
        Ok(upload(&Tensor::f_from_slice(self.values())?.f_to_kind(Kind::Float)?, device)?)
    }
}

/// Mean and standard deviation of the released recipes for T5-small: T5's last norm leaves latents of about that size.
pub const RELEASED_MOMENTS: (f64, f64) = (0.0, 0.2);

/// Mean and standard deviation by which latents are normalised: `(x - mean) / std`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stated", into = "Stated")]
pub struct LatentStats {
    mean: PerChannel,
    std: PerChannel,
}

/// [`LatentStats`] as written in a file, not yet checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    mean: PerChannel,
    std: PerChannel,
}

impl TryFrom<Stated> for LatentStats {
    type Error = Error;

    fn try_from(stated: Stated) -> Result<Self> {
        Self::new(stated.mean, stated.std)
    }
}

impl From<LatentStats> for Stated {
    fn from(stats: LatentStats) -> Self {
        Self { mean: stats.mean, std: stats.std }
    }
}

impl LatentStats {
    /// Checks and keeps them.
    ///
    /// # Errors
    /// [`Error::Stats`] if a mean is not finite, a standard deviation not finite and positive, or the two are for
    /// different numbers of channels.
    pub fn new(mean: PerChannel, std: PerChannel) -> Result<Self> {
        if let Some(bad) = mean.values().iter().find(|m| !m.is_finite()) {
            return Err(Error::Stats(format!("the mean {bad} is not a finite number")));
        }
        // Checked in fp32, in which it is used: 1e-60 would become 0 there.
        if let Some(bad) = std.values().iter().find(|s| !(s.is_finite() && **s as f32 > 0.0)) {
            return Err(Error::Stats(format!("the standard deviation {bad} is not a positive number")));
        }
        match (&mean, &std) {
            (PerChannel::Each(m), PerChannel::Each(s)) if m.len() != s.len() => Err(Error::Stats(format!(
                "there are means of {} channels and standard deviations of {}",
                m.len(),
                s.len()
            ))),
            (PerChannel::Each(v), _) | (_, PerChannel::Each(v)) if v.is_empty() => {
                Err(Error::Stats("there are no channels".into()))
            }
            _ => Ok(Self { mean, std }),
        }
    }

    /// The same two numbers for all channels.
    ///
    /// # Errors
    /// As [`LatentStats::new`].
    pub fn uniform(mean: f64, std: f64) -> Result<Self> {
        Self::new(PerChannel::All(mean), PerChannel::All(std))
    }

    /// The mean or means.
    pub fn mean(&self) -> &PerChannel {
        &self.mean
    }

    /// The standard deviation or deviations.
    pub fn std(&self) -> &PerChannel {
        &self.std
    }

    /// Checks that these fit latents of `dim` channels: once at the start rather than in the first batch.
    ///
    /// # Errors
    /// [`Error::Stats`] if they are for another number of channels.
    pub fn check_dim(&self, dim: i64) -> Result<()> {
        for each in [&self.mean, &self.std] {
            if let PerChannel::Each(values) = each
                && values.len() as i64 != dim
            {
                return Err(Error::Stats(format!("they are of {} channels, but latents have {dim}", values.len())));
            }
        }
        Ok(())
    }

    /// Encoder output `[.., C]` to latents `(x - mean) / std`, fp32.
    ///
    /// # Errors
    /// If C is not the number of channels of these statistics, or libtorch fails.
    pub fn normalise(&self, encoded: &Tensor) -> Result<Tensor> {
        self.check_dim(encoded.size().last().copied().unwrap_or(0))?;
        let device = encoded.device();
        Ok(encoded.f_to_kind(Kind::Float)?.f_sub(&self.mean.tensor(device)?)?.f_div(&self.std.tensor(device)?)?)
    }
}

/// Mean and variance of each channel over any number of batches, in f64, without keeping the batches.
///
/// Each batch's own mean and sum of squared deviations is merged into the running ones (Chan, Golub and LeVeque), so
/// that a mean far from 0 costs no digits.
#[derive(Debug, Clone)]
pub struct LatentMoments {
    count: f64,
    mean: Vec<f64>,
    /// Sums of squared deviations from the mean.
    deviation: Vec<f64>,
}

impl LatentMoments {
    /// Nothing measured yet, for latents of `dim` channels.
    pub fn new(dim: usize) -> Self {
        Self { count: 0.0, mean: vec![0.0; dim], deviation: vec![0.0; dim] }
    }

    /// Adds encoder output `[B, S, C]` at the positions where `valid` `[B, S]` is not 0.
    ///
    /// # Errors
    /// If the shapes do not fit, a counted number is not finite, or libtorch fails.
    pub fn add(&mut self, encoded: &Tensor, valid: &Tensor) -> Result<()> {
        let dim = self.mean.len() as i64;
        match encoded.size()[..] {
            [b, s, c] if c == dim && valid.size() == [b, s] => {}
            [_, _, c] if c == dim => {
                return Err(Error::shape(
                    "the validity mask",
                    valid,
                    format!("[B, S] of latents {:?}", encoded.size()),
                ));
            }
            _ => return Err(Error::shape("encoded text", encoded, format!("[B, S, {dim}]"))),
        }
        let chosen = valid.f_ne(0)?.f_to_device(encoded.device())?;
        let rows = encoded.f_detach()?.f_index(&[Some(chosen)])?.f_to_kind(Kind::Double)?;
        let added = rows.size()[0] as f64;
        if added == 0.0 {
            return Ok(());
        }
        let batch_mean = rows.f_mean_dim(0, true, Kind::Double)?;
        let batch_deviation: Vec<f64> =
            Vec::try_from((&rows - &batch_mean).f_square()?.f_sum_dim_intlist(0, false, Kind::Double)?)?;
        let batch_mean: Vec<f64> = Vec::try_from(batch_mean.f_flatten(0, -1)?)?;
        if batch_deviation.iter().chain(&batch_mean).any(|x| !x.is_finite()) {
            return Err(Error::Stats(
                "encoded text holds numbers that are not finite; the encoder's weights are damaged or overflow".into(),
            ));
        }
        let total = self.count + added;
        for channel in 0..self.mean.len() {
            let apart = batch_mean[channel] - self.mean[channel];
            self.mean[channel] += apart * added / total;
            self.deviation[channel] += batch_deviation[channel] + apart * apart * self.count * added / total;
        }
        self.count = total;
        Ok(())
    }

    /// Positions counted so far.
    pub fn positions(&self) -> u64 {
        self.count as u64
    }

    /// Mean and (population) standard deviation of each channel.
    ///
    /// # Errors
    /// If nothing was counted, or a channel never varied: there is nothing to normalise it by.
    pub fn per_channel(&self) -> Result<LatentStats> {
        self.check()?;
        let std: Vec<f64> = self.deviation.iter().map(|d| (d / self.count).sqrt()).collect();
        if let Some(channel) = std.iter().position(|s| *s as f32 <= 0.0) {
            return Err(Error::Stats(format!(
                "channel {channel} is the same at all {} positions; measure over more text",
                self.positions()
            )));
        }
        LatentStats::new(PerChannel::Each(self.mean.clone()), PerChannel::Each(std))
    }

    /// One mean and one (population) standard deviation over all channels together.
    ///
    /// # Errors
    /// If nothing was counted, or no number differs from another.
    pub fn overall(&self) -> Result<LatentStats> {
        self.check()?;
        let channels = self.mean.len() as f64;
        let mean = self.mean.iter().sum::<f64>() / channels;
        let between = self.mean.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / channels;
        let within = self.deviation.iter().sum::<f64>() / (channels * self.count);
        LatentStats::uniform(mean, (within + between).sqrt())
    }

    fn check(&self) -> Result<()> {
        if self.count == 0.0 || self.mean.is_empty() {
            return Err(Error::Stats("nothing was measured: there was no valid position".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::{Noise, Seeded};
    use proptest::prelude::*;

    fn latents(seed: u64, b: i64, s: i64, c: i64) -> Tensor {
        Seeded::new((0..b as u64).map(|i| seed ^ (i << 32)).collect(), Device::Cpu).normal("x", &[b, s, c]).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn normalising_and_back_is_the_identity(seed in any::<u64>(), mean in -3.0..3.0, std in 0.01..10.0) {
            let x = latents(seed, 2, 3, 4);
            for stats in [
                LatentStats::uniform(mean, std).unwrap(),
                LatentStats::new(PerChannel::Each(vec![mean, 0.0, 1.0, -mean]), PerChannel::Each(vec![std, 1.0, 0.5, 2.0])).unwrap(),
                LatentStats::new(PerChannel::All(mean), PerChannel::Each(vec![std; 4])).unwrap(),
            ] {
                let back = stats.normalise(&x).unwrap() * stats.std.tensor(Device::Cpu).unwrap();
                let back = back + stats.mean.tensor(Device::Cpu).unwrap();
                prop_assert!((back - &x).abs().max().double_value(&[]) < 1e-5);
                let text = serde_json::to_string(&stats).unwrap();
                prop_assert_eq!(serde_json::from_str::<LatentStats>(&text).unwrap(), stats);
            }
        }

        #[test]
        fn batches_measure_the_same_as_the_whole(seed in any::<u64>(), cuts in proptest::collection::vec(0i64..12, 0..4), shift in -1e4..1e4) {
            // A mean far from 0 would cost naive sums their digits.
            let x = latents(seed, 12, 5, 3) + shift;
            let valid = latents(seed ^ 1, 12, 5, 1).squeeze_dim(-1).gt(-0.5);
            let mut whole = LatentMoments::new(3);
            whole.add(&x, &valid).unwrap();
            let mut cuts = [vec![0, 12], cuts].concat();
            cuts.sort_unstable();
            let mut parts = LatentMoments::new(3);
            for pair in cuts.windows(2) {
                parts.add(&x.narrow(0, pair[0], pair[1] - pair[0]), &valid.narrow(0, pair[0], pair[1] - pair[0])).unwrap();
            }
            prop_assert_eq!(whole.positions(), parts.positions());
            for (a, b) in [(whole.per_channel().unwrap(), parts.per_channel().unwrap()), (whole.overall().unwrap(), parts.overall().unwrap())] {
                for (a, b) in a.mean().values().iter().chain(a.std().values()).zip(b.mean().values().iter().chain(b.std().values())) {
                    prop_assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{a} {b}");
                }
            }
            let rows = x.index(&[Some(valid)]).to_kind(Kind::Double);
            let stats = whole.per_channel().unwrap();
            let expected: Vec<f64> = rows.std_dim(0, false, false).try_into().unwrap();
            for (a, b) in stats.std().values().iter().zip(expected) {
                prop_assert!((a - b).abs() < 1e-9);
            }
            let all = whole.overall().unwrap();
            prop_assert!((all.std().values()[0] - rows.std(false).double_value(&[])).abs() < 1e-9);
        }
    }

    #[test]
    fn measured_statistics_normalise_to_mean_0_and_std_1() {
        let x = latents(5, 20, 50, 4) * Tensor::from_slice(&[0.1f32, 1.0, 5.0, 30.0]) + 2.0;
        let mut moments = LatentMoments::new(4);
        moments.add(&x, &Tensor::ones([20, 50], (Kind::Bool, Device::Cpu))).unwrap();
        let y = moments.per_channel().unwrap().normalise(&x).unwrap().view([-1, 4]);
        assert!(y.mean_dim(0, false, Kind::Float).abs().max().double_value(&[]) < 1e-4);
        assert!((y.std_dim(0, false, false) - 1.0).abs().max().double_value(&[]) < 1e-4);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let each = |v: &[f64]| PerChannel::Each(v.to_vec());
        for (mean, std, message) in [
            (PerChannel::All(f64::NAN), PerChannel::All(1.0), "mean NaN"),
            (PerChannel::All(0.0), PerChannel::All(0.0), "deviation 0"),
            (PerChannel::All(0.0), each(&[1.0, -1.0]), "deviation -1"),
            (PerChannel::All(0.0), PerChannel::All(1e-60), "deviation"),
            (each(&[0.0]), each(&[1.0, 1.0]), "1 channels"),
            (each(&[]), PerChannel::All(1.0), "no channels"),
        ] {
            let found = LatentStats::new(mean, std).unwrap_err().to_string();
            assert!(found.contains(message), "{found}");
        }
        assert!(serde_json::from_str::<LatentStats>(r#"{"mean": 0, "std": -1}"#).is_err());
        assert!(serde_json::from_str::<LatentStats>(r#"{"mean": 0, "std": 1, "sdt": 1}"#).is_err());
        let two = LatentStats::new(each(&[0.0, 0.0]), PerChannel::All(1.0)).unwrap();
        assert!(
            two.normalise(&latents(0, 1, 1, 3)).unwrap_err().to_string().contains("2 channels, but latents have 3")
        );

        let mut moments = LatentMoments::new(3);
        assert!(moments.per_channel().is_err());
        let nan = Tensor::full([1, 1, 3], f64::NAN, (Kind::Float, Device::Cpu));
        let valid = Tensor::ones([1, 1], (Kind::Int64, Device::Cpu));
        assert!(moments.add(&nan, &valid).unwrap_err().to_string().contains("not finite"));
        assert!(moments.add(&latents(0, 1, 2, 3), &valid).is_err());
        assert!(moments.add(&latents(0, 1, 1, 2), &valid).is_err());
        moments.add(&Tensor::ones([1, 1, 3], (Kind::Float, Device::Cpu)), &valid).unwrap();
        assert!(moments.per_channel().unwrap_err().to_string().contains("channel 0"));
    }
}
