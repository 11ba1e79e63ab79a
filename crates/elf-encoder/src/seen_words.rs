//! Which words a linear reader tells from noisy latents without any context, and in how many dimensions latents vary.
//!
//! A flow's point at time t is `z = t x + (1 - t) sigma eps`. Up to its size that is `x + q eps` with the noise ratio
//! `q = sigma (1 - t) / t`, and nothing else of time and noise matters to what can be told.

use elf_core::{Noise, Seeded, key_of};
use tch::{Device, Kind, Tensor};

use crate::{Error, LatentStats, Result, WordMoments};

/// Rows that are classified at once: their scores for all words are in memory together.
const CHUNK: i64 = 512;

/// Latents of single tokens, gathered to be analysed.
#[derive(Debug, Default)]
pub struct LatentSample {
    latents: Vec<Tensor>,
    ids: Vec<Tensor>,
    tokens: i64,
}

impl LatentSample {
    /// Adds latents `[B, S, C]` of `ids` `[B, S]` at the positions where `valid` `[B, S]` is not 0.
    ///
    /// # Errors
    /// If the shapes do not fit, or libtorch fails.
    pub fn add(&mut self, latents: &Tensor, ids: &Tensor, valid: &Tensor) -> Result<()> {
        let (b, s, _) = latents.size3()?;
        for (what, tensor) in [("the ids", ids), ("the validity mask", valid)] {
            if tensor.size() != [b, s] {
                return Err(Error::shape(what, tensor, format!("[{b}, {s}]")));
            }
        }
        let valid = valid.f_to_device(Device::Cpu)?.f_ne(0)?;
        let chosen = |t: &Tensor| t.f_detach()?.f_to_device(Device::Cpu)?.f_index(&[Some(valid.shallow_clone())]);
        let ids = chosen(ids)?;
        self.tokens += ids.size1()?;
        self.latents.push(chosen(latents)?.f_to_kind(Kind::Float)?);
        self.ids.push(ids);
        Ok(())
    }

    /// Tokens so far.
    pub fn tokens(&self) -> i64 {
        self.tokens
    }

    /// The same tokens with latents as `stats` normalises them.
    ///
    /// # Errors
    /// If the statistics are for another number of channels, or libtorch fails.
    pub fn normalised(&self, stats: &LatentStats) -> Result<Self> {
        let latents = self.latents.iter().map(|x| stats.normalise(x)).collect::<Result<_>>()?;
        Ok(Self { latents, ids: self.ids.iter().map(Tensor::shallow_clone).collect(), tokens: self.tokens })
    }

    /// `[N, C]` in f64, and `[N]`.
    fn whole(&self) -> Result<(Tensor, Tensor)> {
        if self.tokens == 0 {
            return Err(Error::Stats("nothing was measured: there was no valid position".into()));
        }
        Ok((Tensor::f_cat(&self.latents, 0)?.f_to_kind(Kind::Double)?, Tensor::f_cat(&self.ids, 0)?))
    }

    /// The participation ratio of the covariance, `(sum of eigenvalues)^2 / sum of their squares`: C for latents that vary
    /// equally in all directions, 1 for those that vary along a line.
    ///
    /// # Errors
    /// If there are fewer than two tokens, or libtorch fails.
    pub fn effective_dimensions(&self) -> Result<f64> {
        let (x, _) = self.whole()?;
        let x = x.f_sub(&x.f_mean_dim(0, true, Kind::Double)?)?;
        let covariance = x.f_tr()?.f_matmul(&x)?;
        // The sum of the eigenvalues is the trace; that of their squares is the sum of all squared entries.
        let (trace, squares) =
            (covariance.f_trace()?.f_double_value(&[])?, covariance.f_square()?.f_sum(Kind::Double)?);
        match squares.f_double_value(&[])? {
            squares if squares > 0.0 => Ok(trace * trace / squares),
            _ => Err(Error::Stats("all latents are the same".into())),
        }
    }
}

/// How many held-out tokens were recognised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Told {
    /// Share of recognised tokens, among those of words that have been seen.
    pub share: f64,
    /// Share of the tokens whose words have not been seen, and that nothing is said about.
    pub unseen: f64,
}

/// The words of a sample, to be told from the latents of another one.
#[derive(Debug)]
pub struct SeenWords {
    /// Ids, sorted `[K]`.
    words: Tensor,
    /// Of the words by their place among these.
    moments: WordMoments,
}

impl SeenWords {
    /// Measures the words of a sample.
    ///
    /// # Errors
    /// If no word occurs twice, or libtorch fails.
    pub fn of(sample: &LatentSample) -> Result<Self> {
        let (x, ids) = sample.whole()?;
        let (n, c) = x.size2()?;
        let (words, word_of, _) = ids.f_internal_unique2(true, true, false)?;
        let k = words.size1()?;
        if k == n {
            return Err(Error::Stats("no word occurs twice, so that none can be told apart: measure more rows".into()));
        }
        let mut moments = WordMoments::new(k, c)?;
        let all = Tensor::f_ones([1, n], (Kind::Bool, Device::Cpu))?;
        moments.add(&x.f_unsqueeze(0)?, &word_of.f_unsqueeze(0)?, &all)?;
        Ok(Self { words, moments })
    }

    /// The share of tokens that are recognised in `x + q eps`, with draws of `seed`. The reader knows how strong the noise is.
    ///
    /// # Errors
    /// If the tokens have other channels, there is none that the sample of words has, or libtorch fails.
    pub fn told(&self, held_out: &LatentSample, noise_ratio: f64, seed: u64) -> Result<Told> {
        let (x, ids) = held_out.whole()?;
        let (n, c) = x.size2()?;
        let noise = Seeded::new(vec![key_of(&[seed])], Device::Cpu).normal("noise", &[1, n, c])?.f_squeeze_dim(0)?;
        let z = x.f_add(&noise.f_to_kind(Kind::Double)?.f_mul_scalar(noise_ratio)?)?;
        let reader = self.moments.reader(noise_ratio)?;
        let mut right = 0;
        for start in (0..n).step_by(CHUNK as usize) {
            let length = CHUNK.min(n - start);
            let found = self.words.f_index_select(0, &reader.read(&z.f_narrow(0, start, length)?)?)?;
            right += found.f_eq_tensor(&ids.f_narrow(0, start, length)?)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        }
        let seen = Tensor::f_isin(&ids, &self.words, false, false)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        if seen == 0 {
            return Err(Error::Stats("none of the words to be told was seen in the fit: measure more rows".into()));
        }
        Ok(Told { share: right as f64 / seen as f64, unseen: 1.0 - seen as f64 / n as f64 })
    }

    /// The largest noise ratio at which at least `share` of the tokens are recognised, by bisection within 2%; 0 if even clean latents
    /// fall short of it.
    ///
    /// # Errors
    /// As [`SeenWords::told`].
    pub fn noise_ratio_of(&self, held_out: &LatentSample, share: f64, seed: u64) -> Result<f64> {
        if self.told(held_out, 0.0, seed)?.share < share {
            return Ok(0.0);
        }
        let (mut low, mut high) = (1e-3f64, 1e3f64);
        while high / low > 1.02 {
            let middle = (low * high).sqrt();
            match self.told(held_out, middle, seed)?.share >= share {
                true => low = middle,
                false => high = middle,
            }
        }
        Ok(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The normal distribution, by its series.
    fn below(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    /// Tokens of two words, 5 and 9, equally often, around `+-middle` with deviations `around`.
    fn two_words(seed: u64, rows: i64, middle: [f32; 3], around: [f32; 3]) -> LatentSample {
        let noise = Seeded::new(vec![seed], Device::Cpu).normal("x", &[1, rows * 2, 3]).unwrap().view([rows, 2, 3]);
        let sides = Tensor::from_slice(&[1f32, -1.0]).view([1, 2, 1]);
        let x = noise * Tensor::from_slice(&around) + sides * Tensor::from_slice(&middle);
        let ids = Tensor::from_slice(&[5i64, 9]).view([1, 2]).expand([rows, 2], false);
        let mut sample = LatentSample::default();
        sample.add(&x, &ids, &Tensor::ones([rows, 2], (Kind::Bool, Device::Cpu))).unwrap();
        sample
    }

    #[test]
    fn two_gaussian_words_are_told_as_often_as_theory_says() {
        let (middle, around) = ([0.5, 0.3, 0.0], [0.4, 1.0, 0.2]);
        let fit = SeenWords::of(&two_words(1, 20_000, middle, around)).unwrap();
        let held_out = two_words(2, 20_000, middle, around);
        let expected = |q: f64| {
            let distance = middle.iter().zip(around).map(|(m, s)| f64::from(m * m) / (f64::from(s * s) + q * q));
            below(distance.sum::<f64>().sqrt())
        };
        for q in [0.0, 0.3, 1.0, 4.0] {
            let told = fit.told(&held_out, q, 7).unwrap();
            // Three standard deviations of a share of 40,000.
            assert!((told.share - expected(q)).abs() < 0.008, "{told:?} instead of {} at {q}", expected(q));
            assert_eq!(told.unseen, 0.0);
        }
        let q = fit.noise_ratio_of(&held_out, 0.75, 7).unwrap();
        assert!((expected(q) - 0.75).abs() < 0.01, "{q}");
        assert_eq!(fit.noise_ratio_of(&held_out, 0.999, 7).unwrap(), 0.0, "not even without noise");
    }

    #[test]
    fn words_that_were_not_seen_are_counted_apart() {
        let fit = SeenWords::of(&two_words(1, 500, [5.0, 0.0, 0.0], [0.1; 3])).unwrap();
        let mut held_out = two_words(2, 30, [5.0, 0.0, 0.0], [0.1; 3]);
        let other = Tensor::from_slice(&[6i64, 7]).view([1, 2]);
        let x = Tensor::zeros([1, 2, 3], (Kind::Float, Device::Cpu));
        held_out.add(&x, &other, &Tensor::from_slice(&[true, true]).view([1, 2])).unwrap();
        let told = fit.told(&held_out, 0.1, 0).unwrap();
        assert_eq!((told.share, held_out.tokens()), (1.0, 62));
        assert!((told.unseen - 2.0 / 62.0).abs() < 1e-12);
        let mut strangers = LatentSample::default();
        strangers.add(&x, &other, &Tensor::from_slice(&[false, true]).view([1, 2])).unwrap();
        assert_eq!(strangers.tokens(), 1, "only valid positions count");
        assert!(fit.told(&strangers, 0.1, 0).unwrap_err().to_string().contains("more rows"));
        assert!(SeenWords::of(&strangers).unwrap_err().to_string().contains("occurs twice"));
        assert!(SeenWords::of(&LatentSample::default()).is_err());
    }

    #[test]
    fn effective_dimensions_are_those_of_the_spectrum() {
        // One word, deviations 0.4, 1 and 0.2: (0.16 + 1 + 0.04)^2 / (0.16^2 + 1 + 0.04^2).
        let found = two_words(3, 40_000, [0.0; 3], [0.4, 1.0, 0.2]).effective_dimensions().unwrap();
        assert!((found - 1.44 / 1.0272).abs() < 0.02, "{found}");
        assert!((two_words(3, 40_000, [0.0; 3], [0.7; 3]).effective_dimensions().unwrap() - 3.0).abs() < 0.01);
        let mut same = LatentSample::default();
        let valid = Tensor::ones([1, 4], (Kind::Bool, Device::Cpu));
        same.add(&Tensor::ones([1, 4, 3], (Kind::Float, Device::Cpu)), &valid.to_kind(Kind::Int64), &valid).unwrap();
        assert!(same.effective_dimensions().is_err());
    }
}
