//! An estimate of clean latents from each token's own noisy latent, without context.

use std::cell::RefCell;

use elf_core::device::at_a_time;
use elf_core::layers::Linear;
use elf_core::{Error, Fans, Init, ParamBuilder, Result, TokenClasses, Weight};
use tch::{Kind, Tensor};

use crate::ElfConfig;
use crate::context_table::NO_WORD;

/// The name of the tokens' mean latents; the released model has none.
pub(crate) const TOKEN_MEANS: &str = "token_posterior.means";

/// The name of the weight of the vocabulary head's logits in the clean estimate.
pub(crate) const WORDS_TRUST: &str = "token_posterior.words_trust";

/// The least variance, so that clean latents can be divided by it.
const LEAST_VARIANCE: f64 = 1e-5;

/// The noise scale from which on the mean square of noisy latents grows with the noise at almost all times.
const STRONG_NOISE: f64 = 2.0;

/// Logits held at a time on a CPU: few enough for a cache.
const LOGITS_AT_A_TIME: i64 = 1 << 21;

/// The Bayes estimate of a latent under [`TokenClasses`], a frozen model of latents without context.
///
/// At time t a latent x of token w is seen as `z = t x + (1 - t) sigma eps`, so that `p(w | z)` is a softmax of scores that
/// are linear in z, and `E[x | z]` the mean over w of `E[x | z, w]`. A network that starts from it has nothing left to learn but
/// context.
#[derive(Debug)]
pub(crate) struct TokenPosterior {
    /// `[C, C]`, axes in columns.
    axes: Weight,
    /// `[V, K]`.
    means: Weight,
    /// `[C]`.
    variances: Weight,
    /// `[V]`.
    log_shares: Weight,
    /// sigma of denoise rows and of decode rows, `[2]`.
    noise_scales: Weight,
    /// From the estimate to the input of the blocks, C to H.
    lift: Linear,
    /// The weight of the vocabulary head's logits in the clean estimate, `[1]`.
    trust: Option<Weight>,
    /// What is computed of the means once, with their generation.
    prepared: RefCell<Option<(u64, Prepared)>>,
}

/// The means and their squares as right sides of products.
#[derive(Debug)]
struct Prepared {
    /// `[K, V]`.
    means: Tensor,
    /// `[K, V]`.
    squares: Tensor,
}

/// What the noisy latents say of their tokens and of themselves, without context.
pub(crate) struct Reading {
    /// `E[x | z]` along the axes, `[B, S, C]`.
    pub(crate) estimate: Tensor,
    /// The slope of a token's score along its mean, `[B, S, K]`: with the next, scores are
    /// `evidence m_w + curvature m_w^2 + log share_w`.
    pub(crate) evidence: Tensor,
    /// `[B, S, K]`.
    pub(crate) curvature: Tensor,
}

impl Reading {
    /// The `n` positions from `start` on, where all tensors are `[N, ..]`.
    pub(crate) fn rows(&self, start: i64, n: i64) -> Result<Self> {
        let part = |x: &Tensor| x.f_narrow(0, start, n);
        Ok(Self { estimate: part(&self.estimate)?, evidence: part(&self.evidence)?, curvature: part(&self.curvature)? })
    }
}

impl TokenPosterior {
    pub(crate) fn new(b: &mut ParamBuilder, config: &ElfConfig) -> Result<Self> {
        let (c, v) = (config.text_encoder_dim, config.vocab_size);
        let zero = Init::Constant(0.0);
        let fans = Fans { fan_in: c, fan_out: config.hidden_size };
        Ok(Self {
            axes: b.frozen("token_posterior.axes", &[c, c], zero)?,
            means: b.frozen(TOKEN_MEANS, &[v, config.token_posterior_dims], zero)?,
            variances: b.frozen("token_posterior.variances", &[c], Init::Constant(1.0))?,
            log_shares: b.frozen("token_posterior.log_shares", &[v], zero)?,
            noise_scales: b.frozen("token_posterior.noise_scales", &[2], Init::Constant(1.0))?,
            lift: Linear::new(b, "token_posterior.lift", fans, Init::XavierUniform, false)?,
            trust: match config.token_posterior_words {
                true => Some(b.frozen(WORDS_TRUST, &[1], Init::Constant(1.0))?),
                false => None,
            },
            prepared: RefCell::new(None),
        })
    }

    /// Latents `[.., C]` along the axes. A network that computes with these learns faster: their channels are not correlated.
    pub(crate) fn along(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.f_to_kind(Kind::Float)?.f_matmul(self.axes.master())?)
    }

    /// Latents from what they are along the axes.
    pub(crate) fn back(&self, along: &Tensor) -> Result<Tensor> {
        Ok(along.f_matmul(&self.axes.master().f_tr()?)?)
    }

    /// Sets the classes, and the standard deviations of the noise of denoise rows and of decode rows at t = 0.
    pub(crate) fn start(&self, classes: &TokenClasses, noise_scales: [f64; 2]) -> Result<()> {
        let given = [
            ("the classes' axes", &self.axes, &classes.axes),
            ("the classes' means", &self.means, &classes.means),
            ("the classes' variances", &self.variances, &classes.variances),
            ("the classes' shares", &self.log_shares, &classes.log_shares),
        ];
        for (what, own, given) in &given {
            let expected = own.master().size();
            if given.size() != expected {
                let expected = format!("{expected:?}");
                return Err(Error::Shape { what: (*what).to_owned(), found: given.size(), expected });
            }
        }
        tch::no_grad(|| {
            for (_, own, given) in given {
                own.master().shallow_clone().f_copy_(given)?;
            }
            let noise_scales = Tensor::f_from_slice(&noise_scales)?;
            self.noise_scales.master().shallow_clone().f_copy_(&noise_scales)?;
            Ok(())
        })
    }

    /// Reads `z` `[B, S, C]`, given along the axes, at times `t` `[B]`, without gradient and in fp32. In rows where `decode` `[B]` is 1 each token has a noise of
    /// its own, which its mean square tells.
    pub(crate) fn read(&self, z: &Tensor, t: &Tensor, decode: Option<&Tensor>) -> Result<Reading> {
        tch::no_grad(|| {
            let (b, s, c) = z.size3()?;
            let (v, k) = self.means.master().size2()?;
            let z = z.f_to_kind(Kind::Float)?;
            let (share, noise) = self.noise(&z, t, decode)?;
            let variances = self.variances.master().f_clamp_min(LEAST_VARIANCE)?;
            let precision = &share / (share.square() * &variances + noise.square());
            let first = |x: &Tensor| x.f_narrow(-1, 0, k);
            let evidence = first(&(&z * &precision))?;
            let curvature = first(&(&precision * &share))? * -0.5;
            let mut means = Vec::new();
            let step = (at_a_time(z.device(), LOGITS_AT_A_TIME) / (s * v).max(1)).max(1);
            for start in (0..b).step_by(step as usize) {
                let rows = |x: &Tensor| x.f_narrow(0, start, step.min(b - start));
                let scores = self.scores(&rows(&evidence)?, &rows(&curvature)?)?;
                means.push(scores.f_softmax(-1, Kind::Float)?.f_matmul(self.means.master())?);
            }
            // Given the token, E[x | z, w] = m + kept (z / t - m), where `gain` is kept / t.
            let gain = precision * variances;
            let kept = first(&(&gain * share))?;
            let estimate = z * gain;
            if !means.is_empty() {
                let mean = Tensor::f_cat(&means, 0)?;
                let _ = first(&estimate)?.f_add_(&(&mean - kept * &mean))?;
            }
            debug_assert_eq!(estimate.size(), [b, s, c]);
            let curvature = curvature.f_expand([b, s, k], false)?;
            Ok(Reading { estimate, evidence, curvature })
        })
    }

    /// The clean share and the standard deviation of the noise of each row `[B, 1, 1]` or, if some are in decode mode, of each
    /// token `[B, S, 1]`.
    fn noise(&self, z: &Tensor, t: &Tensor, decode: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let by_row = |x: &Tensor| x.f_to_kind(Kind::Float)?.f_view([-1, 1, 1]);
        let sigma = |mode: i64| self.noise_scales.master().f_narrow(0, mode, 1);
        let share = by_row(t)?;
        let noise = (1.0 - &share) * sigma(0)?;
        let Some(decode) = decode else { return Ok((share, noise)) };
        // Latents have mean square 1, so that this is `share^2 + (1 - share)^2 sigma^2`. Of the two solutions the smaller is meant if the
        // noise is strong (the larger is then nearly 1), else the larger.
        let square = z.square().f_mean_dim([-1i64].as_slice(), true, Kind::Float)?;
        let variance = sigma(1)?.square();
        let sum = &variance + 1.0;
        let root = (square * &sum - &variance).f_clamp_min(0.0)?.f_sqrt()?;
        let side = sigma(1)?.f_lt(STRONG_NOISE)?.f_to_kind(Kind::Float)? * 2.0 - 1.0;
        let told = ((variance + root * side) / sum).f_clamp(0.0, 1.0)?;
        let told_noise = (1.0 - &told) * sigma(1)?;
        let decode = by_row(decode)?;
        let mixed = |denoise: Tensor, decoded: &Tensor| denoise.f_expand_as(decoded)?.f_lerp_tensor(decoded, &decode);
        Ok((mixed(share, &told)?, mixed(noise, &told_noise)?))
    }

    /// The estimate of a reading, `[.., C]`, with `logits` of its words, `[N, V]` for N positions in all, added to its own scores, if the
    /// network is one that does so.
    pub(crate) fn estimate(&self, reading: &Reading, logits: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let Some(trust) = &self.trust else { return Ok(reading.estimate.shallow_clone()) };
        let (c, k) = (self.axes.master().size2()?.0, self.means.master().size2()?.1);
        let flat = |x: &Tensor, channels: i64| x.f_reshape([-1, channels]);
        let (evidence, curvature) = (flat(&reading.evidence, k)?, flat(&reading.curvature, k)?);
        let estimate = flat(&reading.estimate, c)?;
        let own = Reading { estimate: estimate.shallow_clone(), evidence, curvature };
        let scores = logits()? * trust.master() + self.word_scores(&own)?;
        let mean = scores.f_softmax(-1, Kind::Float)?.f_matmul(self.means.master())?;
        // Given the token, E[x | z, w] = gain z + (1 - kept) m, as in `read`.
        let variances = self.variances.master().f_clamp_min(LEAST_VARIANCE)?.f_narrow(0, 0, k)?;
        let kept = own.curvature * &variances * -2.0;
        let first = own.evidence * variances + (1.0 - kept) * mean;
        let all = Tensor::f_cat(&[first, estimate.f_narrow(-1, k, c - k)?], -1)?;
        Ok(all.f_view_as(&reading.estimate)?)
    }

    /// The scores of a reading of N positions, `[N, V]`, without gradient.
    pub(crate) fn word_scores(&self, reading: &Reading) -> Result<Tensor> {
        let column = |x: &Tensor| x.f_detach()?.f_unsqueeze(1);
        Ok(self.scores(&column(&reading.evidence)?, &column(&reading.curvature)?)?.f_squeeze_dim(1)?)
    }

    /// Log probabilities of all tokens up to a constant, `[N, S, V]`, from evidence `[N, S, K]` and curvature `[N, S, K]` or `[N, 1, K]`.
    fn scores(&self, evidence: &Tensor, curvature: &Tensor) -> Result<Tensor> {
        let now = self.means.generation();
        let mut kept = self.prepared.borrow_mut();
        let prepared = match &mut *kept {
            Some((of, prepared)) if *of == now => prepared,
            kept => {
                let means = self.means.master().f_detach()?;
                let prepared =
                    Prepared { means: means.f_tr()?.f_contiguous()?, squares: means.square().f_tr()?.f_contiguous()? };
                &kept.insert((now, prepared)).1
            }
        };
        let (n, rows, k) = curvature.size3()?;
        let shift = self.log_shares.master().f_addmm(&curvature.f_reshape([-1, k])?, &prepared.squares)?;
        let mut scores = evidence.f_reshape([-1, k])?.f_matmul(&prepared.means)?;
        scores = scores.f_view([n, -1, prepared.means.size2()?.1])?;
        let _ = scores.f_add_(&shift.f_view([n, rows, -1])?)?;
        Ok(scores)
    }

    /// The blocks' input `[B, S, H]` with an estimate `[B, S, C]` added, but for positions of a condition, those of `words` `[B, S]` that
    /// are not -1: their latents are clean at all times, and nothing is to be estimated of them.
    pub(crate) fn added_to(&self, text: &Tensor, estimate: &Tensor, words: Option<&Tensor>) -> Result<Tensor> {
        let lifted = self.lift.forward(&estimate.f_to_kind(text.kind())?);
        let lifted = match words {
            Some(words) => lifted * words.f_eq(NO_WORD)?.f_unsqueeze(-1)?.f_to_kind(text.kind())?,
            None => lifted,
        };
        Ok(text + lifted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Preset;
    use tch::Device;

    const NOISE_SCALES: [f64; 2] = [2.0, 5.0];

    fn wave(shape: &[i64], step: f64) -> Tensor {
        (Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)) * step).sin().view(shape)
    }

    /// A posterior of `v` tokens over latents of `c` channels along `k` axes.
    fn posterior(v: i64, c: i64, k: i64) -> (TokenPosterior, TokenClasses) {
        let config =
            crate::ElfConfig { token_posterior_dims: k, hidden_size: 8, num_heads: 2, ..Preset::B.config(c, v) };
        let posterior = TokenPosterior::new(&mut ParamBuilder::seeded(1, Device::Cpu), &config).unwrap();
        let classes = TokenClasses {
            axes: Tensor::linalg_qr(&wave(&[c, c], 0.9), "reduced").0,
            means: wave(&[v, k], 1.7) * 1.5,
            variances: wave(&[c], 2.3).square() + 0.1,
            log_shares: wave(&[v], 0.8).log_softmax(0, Kind::Double),
        };
        posterior.start(&classes, NOISE_SCALES).unwrap();
        (posterior, classes)
    }

    /// `E[x | z]` of one token by Bayes' rule over Gaussian densities, with z and the result along the axes.
    fn by_densities(classes: &TokenClasses, z: &Tensor, share: f64, noise: f64) -> Vec<f64> {
        let (v, k) = classes.means.size2().unwrap();
        let at = |x: &Tensor, place: &[i64]| x.double_value(place);
        let mean = |w: i64, i: i64| if i < k { at(&classes.means, &[w, i]) } else { 0.0 };
        let spread = |i: i64| share * share * at(&classes.variances, &[i]) + noise * noise;
        let density = |w: i64| {
            let of_axis = |i: i64| -0.5 * (at(z, &[i]) - share * mean(w, i)).powi(2) / spread(i);
            at(&classes.log_shares, &[w]) + (0..k).map(of_axis).sum::<f64>()
        };
        let largest = (0..v).map(density).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = (0..v).map(|w| (density(w) - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let given = |w: i64, i: i64| {
            mean(w, i) + share * at(&classes.variances, &[i]) / spread(i) * (at(z, &[i]) - share * mean(w, i))
        };
        let of_axis = |i: i64| (0..v).map(|w| weights[w as usize] / total * given(w, i)).sum();
        (0..z.size1().unwrap()).map(of_axis).collect()
    }

    #[test]
    fn the_estimate_is_that_of_bayes() {
        let (posterior, classes) = posterior(5, 4, 2);
        let z = wave(&[3, 2, 4], 1.3) * 2.0;
        let times = [0.0, 0.4, 1.0];
        let t = Tensor::from_slice(&times).to_kind(Kind::Float);
        let found = posterior.read(&z.to_kind(Kind::Float), &t, None).unwrap().estimate;
        for (row, time) in times.into_iter().enumerate() {
            for position in 0..2 {
                let z = z.get(row as i64).get(position);
                let expected = by_densities(&classes, &z, time, (1.0 - time) * NOISE_SCALES[0]);
                for (axis, expected) in expected.into_iter().enumerate() {
                    let found = found.double_value(&[row as i64, position, axis as i64]);
                    assert!((found - expected).abs() < 1e-4, "t {time}, axis {axis}: {found}, expected {expected}");
                }
            }
        }
        // Scores are log probabilities up to a constant: at t = 0 those of the shares, whatever z is.
        let start = posterior.read(&z.to_kind(Kind::Float), &t.zeros_like(), None).unwrap();
        let scores = posterior.scores(&start.evidence, &start.curvature).unwrap().log_softmax(-1, Kind::Double);
        assert!((scores - &classes.log_shares).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn the_noise_of_a_decoded_token_is_told_by_its_size() {
        let (posterior, _) = posterior(5, 512, 2);
        let drawn = |step: f64| {
            let x = wave(&[1, 4, 512], step);
            &x * x.square().mean_dim([-1i64].as_slice(), true, Kind::Double).rsqrt()
        };
        let shares = Tensor::from_slice(&[0.1, 0.4, 0.7, 0.9]).view([1, 4, 1]);
        let left: Tensor = 1.0 - &shares;
        let z = &shares * drawn(0.73) + left * drawn(1.91) * NOISE_SCALES[1];
        let one = Tensor::ones([1], (Kind::Float, Device::Cpu));
        let (told, noise) = posterior.noise(&z.to_kind(Kind::Float), &one, Some(&one)).unwrap();
        assert!((&told - &shares).abs().max().double_value(&[]) < 0.05, "{told}");
        let left: Tensor = 1.0 - told;
        assert!((noise - left * NOISE_SCALES[1]).abs().max().double_value(&[]) < 1e-5);
        // A row in the other mode has its time's.
        let (told, noise) = posterior.noise(&z.to_kind(Kind::Float), &(&one * 0.25), Some(&(&one * 0.0))).unwrap();
        assert_eq!((told.double_value(&[0, 3, 0]), noise.double_value(&[0, 3, 0])), (0.25, 1.5));
    }

    #[test]
    fn classes_of_other_shapes_are_refused() {
        let (own, mut classes) = posterior(5, 4, 2);
        classes.means = classes.means.narrow(0, 0, 4);
        let message = own.start(&classes, NOISE_SCALES).unwrap_err().to_string();
        assert!(message.contains("means") && message.contains("[5, 2]"), "{message}");
    }
}
