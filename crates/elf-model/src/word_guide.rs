//! A guide that knows words and no context.

use std::cell::RefCell;

use elf_core::device::at_a_time;
use elf_core::{
    Error, Init, Network, NetworkShape, ParamBuilder, ParamSet, PrecisionPolicy, Result, TokenClasses, TrunkInput,
    Weight,
};
use tch::{Device, Kind, Tensor};

use crate::ElfConfig;

/// The name of the words' mean latents; the released model has none.
pub(crate) const WORD_MEANS: &str = "word_guide.means";

/// The least variance, so that clean latents can be divided by it.
const LEAST_VARIANCE: f64 = 1e-5;

/// Scores held at a time on a CPU: few enough for a cache.
const SCORES_AT_A_TIME: i64 = 1 << 21;

/// The Bayes estimate of each latent from its own noisy latent alone, under [`TokenClasses`]: a frozen model of latents without context,
/// for autoguidance.
///
/// At time t a latent x of word w is seen as `z = t x + (1 - t) sigma eps`, so that `p(w | z)` is a softmax of scores that are linear in
/// z, and `E[x | z]` the mean over w of `E[x | z, w]`. Sampling that is led away from this estimate is led towards what context says.
///
/// As a [`Network`] it has no hidden states: its trunk gives the estimate, which [`Network::clean`] returns as it is. Its parameters
/// are among those of the network that it belongs to.
#[derive(Debug)]
pub struct WordGuide {
    shape: NetworkShape,
    policy: PrecisionPolicy,
    /// Empty: the parameters are those of the network that this belongs to.
    params: ParamSet,
    /// `[C, C]`, axes in columns.
    axes: Weight,
    /// `[V, K]`.
    means: Weight,
    /// `[C]`.
    variances: Weight,
    /// `[V]`.
    log_shares: Weight,
    /// sigma, `[1]`.
    noise_scale: Weight,
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

impl WordGuide {
    pub(crate) fn new(b: &mut ParamBuilder, config: &ElfConfig, policy: PrecisionPolicy) -> Result<Self> {
        let (c, v) = (config.text_encoder_dim, config.vocab_size);
        let zero = Init::Constant(0.0);
        Ok(Self {
            shape: NetworkShape { hidden_size: c, guidance_input: false, stochastic: false, ..config.network_shape() },
            policy,
            params: ParamSet::default(),
            axes: b.frozen("word_guide.axes", &[c, c], zero)?,
            means: b.frozen(WORD_MEANS, &[v, config.word_guide_dims], zero)?,
            variances: b.frozen("word_guide.variances", &[c], Init::Constant(1.0))?,
            log_shares: b.frozen("word_guide.log_shares", &[v], zero)?,
            noise_scale: b.frozen("word_guide.noise_scale", &[1], Init::Constant(1.0))?,
            prepared: RefCell::new(None),
        })
    }

    /// Sets the classes, and the standard deviation of the noise at t = 0.
    pub(crate) fn start(&self, classes: &TokenClasses, noise_scale: f64) -> Result<()> {
        let noise_scale = Tensor::f_from_slice(&[noise_scale])?;
        let given = [
            ("the classes' axes", &self.axes, &classes.axes),
            ("the classes' means", &self.means, &classes.means),
            ("the classes' variances", &self.variances, &classes.variances),
            ("the classes' shares", &self.log_shares, &classes.log_shares),
            ("the noise scale", &self.noise_scale, &noise_scale),
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
            Ok(())
        })
    }

    /// `E[x | z]` of `z` `[B, S, C]` at times `t` `[B]`, in fp32 and without gradient.
    ///
    /// # Errors
    /// If a shape does not fit, or libtorch fails.
    pub fn estimate(&self, z: &Tensor, t: &Tensor) -> Result<Tensor> {
        let (b, s, _) = z.size3()?;
        let k = self.means.master().size2()?.1;
        tch::no_grad(|| {
            let z = z.f_to_kind(Kind::Float)?.f_matmul(self.axes.master())?;
            let share = t.f_to_kind(Kind::Float)?.f_view([b, 1, 1])?;
            let left: Tensor = 1.0 - &share;
            let noise = left * self.noise_scale.master();
            let variances = self.variances.master().f_clamp_min(LEAST_VARIANCE)?;
            let precision = &share / (share.square() * &variances + noise.square());
            let first = |x: &Tensor| x.f_narrow(-1, 0, k);
            let evidence = first(&(&z * &precision))?;
            let curvature = first(&(&precision * &share))? * -0.5;
            // Given the word, E[x | z, w] = m + kept (z / t - m), where `gain` is kept / t.
            let gain = precision * variances;
            let kept = first(&(&gain * share))?;
            let estimate = z * gain;
            let step = (at_a_time(estimate.device(), SCORES_AT_A_TIME) / (s * self.shape.vocab_size).max(1)).max(1);
            for start in (0..b).step_by(step as usize) {
                let rows = |x: &Tensor| x.f_narrow(0, start, step.min(b - start));
                let scores = self.scores(&rows(&evidence)?, &rows(&curvature)?)?;
                let mean = scores.f_softmax(-1, Kind::Float)?.f_matmul(self.means.master())?;
                let _ = first(&rows(&estimate)?)?.f_add_(&(&mean - rows(&kept)? * &mean))?;
            }
            Ok(estimate.f_matmul(&self.axes.master().f_tr()?)?)
        })
    }

    /// Log probabilities of all words up to a constant, `[B, S, V]`, from the slopes of their scores along their means, evidence `[B, S, K]`,
    /// and along the squares of these, curvature `[B, 1, K]`.
    fn scores(&self, evidence: &Tensor, curvature: &Tensor) -> Result<Tensor> {
        let now = self.means.generation();
        let mut kept = self.prepared.borrow_mut();
        let prepared = match &mut *kept {
            Some((of, prepared)) if *of == now => prepared,
            kept => {
                let means = self.means.master();
                let prepared =
                    Prepared { means: means.f_tr()?.f_contiguous()?, squares: means.square().f_tr()?.f_contiguous()? };
                &kept.insert((now, prepared)).1
            }
        };
        let (b, rows, k) = curvature.size3()?;
        let shift = self.log_shares.master().f_addmm(&curvature.f_reshape([-1, k])?, &prepared.squares)?;
        let mut scores = evidence.f_reshape([-1, k])?.f_matmul(&prepared.means)?;
        scores = scores.f_view([b, -1, prepared.means.size2()?.1])?;
        let _ = scores.f_add_(&shift.f_view([b, rows, -1])?)?;
        Ok(scores)
    }
}

impl Network for WordGuide {
    fn shape(&self) -> NetworkShape {
        self.shape
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn rows_stand_alone(&self) -> bool {
        self.means.master().device() == Device::Cpu && self.policy.rows_stand_alone()
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        self.estimate(input.z, input.t)
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.shallow_clone())
    }

    fn logits(&self, _hidden: &Tensor) -> Result<Tensor> {
        Err(Error::Config("a guide that knows words estimates latents, and has no vocabulary head".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Preset;

    const NOISE_SCALE: f64 = 2.0;

    fn wave(shape: &[i64], step: f64) -> Tensor {
        (Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu)) * step).sin().view(shape)
    }

    /// A guide of `v` words over latents of `c` channels along `k` axes.
    fn guide(v: i64, c: i64, k: i64) -> (WordGuide, TokenClasses) {
        let config = ElfConfig { word_guide_dims: k, hidden_size: 8, num_heads: 2, ..Preset::B.config(c, v) };
        let mut builder = ParamBuilder::seeded(1, Device::Cpu);
        let guide = WordGuide::new(&mut builder, &config, PrecisionPolicy::F32).unwrap();
        let classes = TokenClasses {
            axes: Tensor::linalg_qr(&wave(&[c, c], 0.9), "reduced").0,
            means: wave(&[v, k], 1.7) * 1.5,
            variances: wave(&[c], 2.3).square() + 0.1,
            log_shares: wave(&[v], 0.8).log_softmax(0, Kind::Double),
        };
        guide.start(&classes, NOISE_SCALE).unwrap();
        (guide, classes)
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
        let (guide, classes) = guide(5, 4, 2);
        let z = wave(&[3, 2, 4], 1.3) * 2.0;
        let times = [0.0, 0.4, 1.0];
        let t = Tensor::from_slice(&times).to_kind(Kind::Float);
        let hidden = guide.trunk(&TrunkInput::new(&z.to_kind(Kind::Float), &t)).unwrap();
        let found = guide.clean(&hidden).unwrap().to_kind(Kind::Double).matmul(&classes.axes);
        let along = z.matmul(&classes.axes);
        for (row, time) in times.into_iter().enumerate() {
            for position in 0..2 {
                let z = along.get(row as i64).get(position);
                let expected = by_densities(&classes, &z, time, (1.0 - time) * NOISE_SCALE);
                for (axis, expected) in expected.into_iter().enumerate() {
                    let found = found.double_value(&[row as i64, position, axis as i64]);
                    assert!((found - expected).abs() < 1e-4, "t {time}, axis {axis}: {found}, expected {expected}");
                }
            }
        }
        assert!(guide.logits(&hidden).unwrap_err().to_string().contains("no vocabulary head"));
    }

    #[test]
    fn classes_of_other_shapes_are_refused() {
        let (own, mut classes) = guide(5, 4, 2);
        classes.means = classes.means.narrow(0, 0, 4);
        let message = own.start(&classes, NOISE_SCALE).unwrap_err().to_string();
        assert!(message.contains("means") && message.contains("[5, 2]"), "{message}");
    }
}
