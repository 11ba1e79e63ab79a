//! Reading words from latents by linear discriminant analysis: each word's mean latent and one covariance around the means.
//!
//! Its accuracy says how well a word can be told from its own latent alone, without any context; as Gaussian classes the same
//! means are what a network can be given to start from.

use elf_core::TokenClasses;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Sums over latents from which word means and covariances follow, in f64, without keeping the latents.
#[derive(Debug)]
pub struct WordMoments {
    /// How often each word was seen, `[V]`.
    counts: Tensor,
    /// Sums of each word's latents, `[V, C]`.
    sums: Tensor,
    /// Sum of outer products of all latents, `[C, C]`.
    products: Tensor,
}

impl WordMoments {
    /// Nothing measured yet, for a vocabulary of `words` and latents of `dim` channels.
    ///
    /// # Errors
    /// If libtorch fails (out of memory).
    pub fn new(words: i64, dim: i64) -> Result<Self> {
        let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Double, Device::Cpu));
        Ok(Self { counts: zeros(&[words])?, sums: zeros(&[words, dim])?, products: zeros(&[dim, dim])? })
    }

    /// Adds the latents `[B, S, C]` of tokens `ids` `[B, S]` at the positions where `counted` `[B, S]` is not 0.
    ///
    /// # Errors
    /// If the shapes do not fit, an id is outside the vocabulary, a counted latent is not finite, or libtorch fails.
    pub fn add(&mut self, latents: &Tensor, ids: &Tensor, counted: &Tensor) -> Result<()> {
        let (words, dim) = self.sums.size2()?;
        let (b, s) = ids.size2()?;
        if latents.size() != [b, s, dim] {
            return Err(Error::shape("latents", latents, format!("[{b}, {s}, {dim}]")));
        }
        if counted.size() != [b, s] {
            return Err(Error::shape("the mask of counted positions", counted, format!("[{b}, {s}]")));
        }
        let chosen = counted.f_ne(0)?.f_to_device(Device::Cpu)?;
        let ids = ids.f_to_device(Device::Cpu)?.f_masked_select(&chosen)?;
        if ids.numel() == 0 {
            return Ok(());
        }
        for id in [i64::try_from(ids.f_max()?)?, i64::try_from(ids.f_min()?)?] {
            if !(0..words).contains(&id) {
                return Err(Error::Vocabulary { id, vocab_size: words });
            }
        }
        let rows = latents.f_detach()?.f_to_device(Device::Cpu)?.f_index(&[Some(chosen)])?.f_to_kind(Kind::Double)?;
        if !bool::try_from(rows.f_isfinite()?.f_all()?)? {
            return Err(Error::Stats("latents hold numbers that are not finite".into()));
        }
        let ones = rows.f_new_ones([ids.numel() as i64], (Kind::Double, Device::Cpu))?;
        // In place: the sums of all words are larger than a batch.
        let _ = self.counts.f_index_add_(0, &ids, &ones)?;
        let _ = self.sums.f_index_add_(0, &ids, &rows)?;
        self.products += rows.tr().f_matmul(&rows)?;
        Ok(())
    }

    /// Positions counted so far.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn positions(&self) -> Result<f64> {
        Ok(f64::try_from(self.counts.f_sum(Kind::Double)?)?)
    }

    /// Means of the words, log shares, the common mean, and the part of the sums of products that means do not explain.
    ///
    /// A mean is that of the word's latents and of one latent at the common mean, so that words seen once or never are not taken
    /// for certain; half an occurrence is added to each word's share.
    fn summary(&self) -> Result<Summary> {
        let total = self.positions()?;
        if total < 2.0 {
            return Err(Error::Stats("no latents were counted to read words from".into()));
        }
        let words = self.sums.size2()?.0 as f64;
        let counts = self.counts.f_unsqueeze(-1)?;
        let common = self.sums.f_sum_dim_intlist(0, true, Kind::Double)? / total;
        let own = &self.sums / counts.f_clamp_min(1.0)?;
        let unexplained = &self.products - own.tr().f_matmul(&(&own * &counts))?;
        let means = (&self.sums + &common) / (&counts + 1.0);
        let log_shares = ((&self.counts + 0.5) / (total + 0.5 * words)).f_log()?;
        Ok(Summary { total, common, means, log_shares, unexplained: (&unexplained + unexplained.tr()) * 0.5 })
    }

    /// One Gaussian class for each word. Words have means of their own along the first `dims` principal axes of the latents, and a common
    /// mean of 0 along the others.
    ///
    /// # Errors
    /// If nothing was counted, there are not that many axes, or libtorch fails.
    pub fn classes(&self, dims: i64) -> Result<TokenClasses> {
        let Summary { total, common, means, log_shares, unexplained } = self.summary()?;
        let dim = self.sums.size2()?.1;
        if !(1..=dim).contains(&dims) {
            return Err(Error::Stats(format!("latents of {dim} channels do not have {dims} axes")));
        }
        let of_all = &self.products / total - common.tr().f_matmul(&common)?;
        let axes = ((&of_all + of_all.tr()) * 0.5).f_linalg_eigh("L")?.1.f_flip([1])?;
        // A word that is seen once lies on its own mean and says nothing of the variance around it.
        let seen = f64::try_from(self.counts.f_gt(0.0)?.f_sum(Kind::Double)?)?;
        let within = unexplained / (total - seen).max(1.0);
        let along = |covariance: &Tensor, from: i64, n: i64| -> Result<Tensor> {
            let axes = axes.f_narrow(1, from, n)?;
            Ok((covariance.f_matmul(&axes)? * axes).f_sum_dim_intlist(0, false, Kind::Double)?)
        };
        let variances = Tensor::f_cat(&[along(&within, 0, dims)?, along(&of_all, dims, dim - dims)?], 0)?;
        Ok(TokenClasses { means: means.f_matmul(&axes.f_narrow(1, 0, dims)?)?, axes, variances, log_shares })
    }

    /// The reader for latents under additional Gaussian noise of standard deviation `noise`.
    ///
    /// # Errors
    /// If nothing was counted, `noise` is no number at least 0, the covariance has no inverse, or libtorch fails.
    pub fn reader(&self, noise: f64) -> Result<LinearReader> {
        let Summary { total, means, log_shares, unexplained, .. } = self.summary()?;
        if !(noise.is_finite() && noise >= 0.0) {
            return Err(Error::Stats(format!("{noise} is not the standard deviation of a noise")));
        }
        let dim = self.sums.size2()?.1;
        let within = unexplained / total + Tensor::f_eye(dim, (Kind::Double, Device::Cpu))? * (noise * noise + 1e-6);
        let weight = means.f_matmul(&Tensor::f_linalg_inv(&within)?)?;
        let squared_distance = (&weight * &means).f_sum_dim_intlist(-1, false, Kind::Double)?;
        Ok(LinearReader { weight, bias: log_shares - squared_distance * 0.5 })
    }
}

/// What readers and classes are made of, f64.
struct Summary {
    /// Positions counted.
    total: f64,
    /// The mean of all latents, `[1, C]`.
    common: Tensor,
    /// Each word's mean, `[V, C]`.
    means: Tensor,
    /// Log shares of the words, `[V]`.
    log_shares: Tensor,
    /// Sums of products around the words' own means, `[C, C]`.
    unexplained: Tensor,
}

/// A linear classifier of latents into words: `logits = latents weight^T + bias`.
#[derive(Debug)]
pub struct LinearReader {
    /// `[V, C]`, f64.
    weight: Tensor,
    /// `[V]`, f64.
    bias: Tensor,
}

impl LinearReader {
    /// The likeliest word of each latent `[.., C]`: ids `[..]`.
    ///
    /// # Errors
    /// If the channels do not fit, or libtorch fails.
    pub fn read(&self, latents: &Tensor) -> Result<Tensor> {
        let logits = latents.f_to_kind(Kind::Double)?.f_matmul(&self.weight.tr())?.f_add(&self.bias)?;
        Ok(logits.f_argmax(-1, false)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two words on a line, normal with deviation 1 around -d and d: the best reader errs with probability Phi(-d / sqrt(1 + noise^2)).
    #[test]
    fn accuracy_is_that_of_the_best_reader_of_gaussian_words() {
        tch::manual_seed(5);
        let (rows, distance) = (40_000i64, 1.2);
        let ids = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(2).view([rows, 1]);
        let sign = (&ids * 2 - 1).to_kind(Kind::Float);
        let draw = |noise: f64| {
            let error = Tensor::randn([rows, 1, 3], (Kind::Float, Device::Cpu)) * (1.0 + noise * noise).sqrt();
            error + sign.unsqueeze(-1) * Tensor::from_slice(&[distance as f32, 0.0, 0.0])
        };
        let mut moments = WordMoments::new(3, 3).unwrap();
        let all = Tensor::ones([rows, 1], (Kind::Float, Device::Cpu));
        moments.add(&draw(0.0), &ids, &all).unwrap();
        assert_eq!(moments.positions().unwrap(), rows as f64);
        // Phi(1.2) and Phi(1.2 / sqrt(5)).
        for (noise, expected) in [(0.0, 0.8849), (2.0, 0.7043)] {
            let read = moments.reader(noise).unwrap().read(&draw(noise)).unwrap();
            let right = f64::try_from(read.eq_tensor(&ids).to_kind(Kind::Double).mean(Kind::Double)).unwrap();
            assert!((right - expected).abs() < 0.01, "noise {noise}: {right}, expected {expected}");
        }
        // The optimal weight is the mean over the variance: here d / 1 on the first channel.
        let weight = moments.reader(0.0).unwrap().weight.double_value(&[1, 0]);
        assert!((weight - distance).abs() < 0.05, "{weight}");
        // As classes along the only axis on which anything differs much: half of the distance each, and variance 1 around it.
        let classes = moments.classes(1).unwrap();
        let means = classes.means.matmul(&classes.axes.narrow(1, 0, 1).tr());
        let far = |found: f64, expected: f64| (found - expected).abs();
        assert!(far(means.double_value(&[1, 0]), distance) < 0.05, "{means}");
        assert!(
            far(means.double_value(&[0, 0]), -means.double_value(&[1, 0])) < 0.05
                && means.double_value(&[2, 0]).abs() < 0.05
        );
        for axis in 0..3 {
            assert!(far(classes.variances.double_value(&[axis]), 1.0) < 0.05, "{}", classes.variances);
        }
        let identity = classes.axes.tr().matmul(&classes.axes);
        assert!((identity - Tensor::eye(3, (Kind::Double, Device::Cpu))).abs().max().double_value(&[]) < 1e-9);
        let shares: Vec<f64> = classes.log_shares.exp().try_into().unwrap();
        assert!(far(shares[0], 0.5) < 1e-3 && shares[2] < 1e-4, "{shares:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut moments = WordMoments::new(4, 2).unwrap();
        let latents = Tensor::zeros([1, 2, 2], (Kind::Float, Device::Cpu));
        let mask = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let ids = |values: &[i64]| Tensor::from_slice(values).view([1, -1]);
        assert!(moments.add(&latents, &ids(&[0, 4]), &mask).unwrap_err().to_string().contains("token id 4"));
        assert!(moments.add(&latents, &ids(&[0, 1, 2]), &mask).is_err());
        assert!(moments.add(&(&latents / 0.0), &ids(&[0, 1]), &mask).is_err());
        assert!(moments.reader(1.0).unwrap_err().to_string().contains("no latents"));
        moments.add(&latents, &ids(&[0, 1]), &mask).unwrap();
        assert!(moments.reader(f64::NAN).is_err());
        assert!(moments.classes(3).unwrap_err().to_string().contains("3 axes"));
    }
}
