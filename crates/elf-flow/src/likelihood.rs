//! A lower bound on the log-probability of given token ids under a flow: change of variables along the flow, and the words that are
//! read at its end.
//!
//! The texts' law is that of sampling along the field itself: `z_0` is drawn from the noise, the flow `dz = v(z, t) dt` carries it to
//! `z_T`, a last step leads from there to the clean estimate, and each token is drawn from the network's prediction at its position.
//! For every density q over `z_T`
//!
//! `log p(ids) >= E_q [log p(z_T) + log p(ids | z_T) - log q(z_T)]`,
//!
//! here with q the training noise around the text's own latents `x`: `z_T = T x + (1 - T) sigma eps`. The density of `z_T` follows from
//! the point where the flow, followed backwards, meets the noise: `log p(z_T) = log N(z_0; 0, sigma^2) - int_0^T div v dt` (Chen et al.
//! 2018, arXiv 1806.07366), where the divergence is estimated without bias by products with random signs (Hutchinson 1989; Grathwohl et
//! al. 2018, arXiv 1810.01367). What is not exact is the integral, whose error falls with the square of the number of steps.

use elf_core::{Network, Noise};
use tch::{Kind, Tensor};

use crate::{
    Condition, Conditioned, Decoder, Error, Field, LatentBatch, NetworkField, Prediction, Result, TrainedFlow,
};

/// The part of a flow that a bound follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoundConfig {
    /// T, the time at which words are read, in (0, 1). Close to 1 the noise around the latents is small, and the flow has to tell
    /// where they lie to that precision; close to 0 words cannot be read.
    pub read_at: f64,
    /// Steps from 0 to T, of Heun's method: two evaluations of the field with their gradients each.
    pub steps: usize,
}

impl BoundConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// If there is no step, or words are to be read at a time that is not in (0, 1).
    pub fn check(&self) -> Result<()> {
        if !(self.read_at > 0.0 && self.read_at < 1.0) {
            return Err(Error::setting("read_at", format!("{} is not a time above 0 and below 1", self.read_at)));
        }
        match self.steps {
            0 => Err(Error::setting("steps", "0 steps cannot follow a flow".to_owned())),
            _ => Ok(()),
        }
    }

    /// The times from 0 to T, evenly.
    fn times(&self) -> Vec<f64> {
        (0..=self.steps).map(|i| self.read_at * i as f64 / self.steps as f64).collect()
    }
}

/// The bound of one text for one draw of its noise, in nats. Its mean over draws is the bound.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TextBound {
    /// `log p(z_T) - log q(z_T)`: what it costs to tell where the text's latents lie, as precisely as its words need.
    pub latents: f64,
    /// `log p(ids | z_T)`: what it costs to tell the words then.
    pub words: f64,
}

impl TextBound {
    /// The text's log-probability is at least the mean of this.
    pub fn total(&self) -> f64 {
        self.latents + self.words
    }
}

/// Log-densities `[B]`, fp64, of `z` `[B, S, C]` at the last of `times` (ascending from 0) under the flow of `field` from its noise at
/// t = 0; those of the positions at which `free` `[B, S, 1]` is 1, if it is given. The velocity of the others must be 0.
///
/// The field must be a function of `z` and t: its hint is always `None`. Draws `probe` `[B, S, C]` at each evaluation.
///
/// # Errors
/// If the field or the noise fails.
pub fn log_density(
    field: &dyn Field,
    z: &Tensor,
    free: Option<&Tensor>,
    times: &[f64],
    noise: &mut dyn Noise,
) -> Result<Tensor> {
    let (b, s, c) = z.size3()?;
    // Random signs, 0 where nothing is free.
    let mut probe = || -> Result<Tensor> {
        let signs = noise.normal("probe", &[b, s, c])?.f_sign()?;
        free.map_or_else(|| Ok(signs.shallow_clone()), |free| Ok(signs.f_mul(free)?))
    };
    let mut z = z.f_to_kind(Kind::Float)?;
    let mut integral = Tensor::f_zeros([b], (Kind::Double, z.device()))?;
    for pair in times.windows(2).rev() {
        let step = pair[1] - pair[0];
        let (v, divergence) = velocity_and_divergence(field, &z, pair[1], &probe()?)?;
        let (v0, divergence0) = velocity_and_divergence(field, &(&z - &v * step), pair[0], &probe()?)?;
        // Not in place: the caller's tensor may be the same.
        z = z.f_sub(&((v + v0) * (0.5 * step)))?;
        integral += (divergence + divergence0) * (0.5 * step);
    }
    let sigma = field.noise_scale();
    Ok(log_normal(&(z / sigma), free)? - numbers(&[b, s, c], free)? * sigma.ln() - integral)
}

/// The velocity `[B, S, C]` and an estimate of its divergence `[B]`, fp64, from `probe` `[B, S, C]` of random signs.
fn velocity_and_divergence(field: &dyn Field, z: &Tensor, t: f64, probe: &Tensor) -> Result<(Tensor, Tensor)> {
    tch::with_grad(|| {
        let z = z.f_detach()?.f_set_requires_grad(true)?;
        let v = field.eval(&z, t, None)?.v;
        let along = v.f_mul(probe)?.f_sum(Kind::Float)?;
        let gradient = Tensor::f_run_backward(&[&along], &[&z], false, false)?.swap_remove(0);
        Ok((v.f_detach()?, row_sums(&gradient.f_mul(probe)?)?))
    })
}

/// Sums over positions and channels, `[B]`, fp64.
fn row_sums(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_sum_dim_intlist([-2, -1].as_slice(), false, Kind::Double)?)
}

/// Log-densities `[B]` of `eps` `[B, S, C]` under the standard normal law, of the positions that are free.
fn log_normal(eps: &Tensor, free: Option<&Tensor>) -> Result<Tensor> {
    let squares = eps.f_square()?;
    let squares = free.map_or_else(|| Ok(squares.shallow_clone()), |free| squares.f_mul(free))?;
    let constant = numbers(&eps.size(), free)? * (0.5 * std::f64::consts::TAU.ln());
    Ok(row_sums(&squares)? * -0.5 - constant)
}

/// The free numbers of each row, `[B]` or a single one, fp64.
fn numbers(sizes: &[i64], free: Option<&Tensor>) -> Result<Tensor> {
    let [_, s, c] = sizes else { return Err(Error::setting("latents", "are not [B, S, C]")) };
    match free {
        None => Ok(Tensor::from((s * c) as f64)),
        Some(free) => Ok(row_sums(free)? * *c as f64),
    }
}

/// A field over coordinates `[B, S, R]` in an orthonormal basis `[C, R]` of all directions in which the inner field looks at z: of the
/// inner flow's law, that of these coordinates.
struct InDirections<'a> {
    inner: &'a dyn Field,
    basis: &'a Tensor,
}

impl Field for InDirections<'_> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        let whole = |coordinates: &Tensor| coordinates.f_matmul(&self.basis.f_tr()?);
        let Prediction { v, x } = self.inner.eval(&whole(z)?, t, hint.map(whole).transpose()?.as_ref())?;
        Ok(Prediction { v: v.f_matmul(self.basis)?, x: x.f_matmul(self.basis)? })
    }

    fn noise_scale(&self) -> f64 {
        self.inner.noise_scale()
    }
}

/// A field whose hint is its own estimate at the same place, so that it is a function of z and t alone.
struct OwnHint<F>(F);

impl<F: Field> Field for OwnHint<F> {
    fn eval(&self, z: &Tensor, t: f64, _hint: Option<&Tensor>) -> Result<Prediction> {
        let x = self.0.eval(z, t, None)?.x;
        self.0.eval(z, t, Some(&x))
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        self.0.pin(z)
    }

    fn noise_scale(&self) -> f64 {
        self.0.noise_scale()
    }
}

/// Bounds the log-probabilities of texts under a network's flow.
pub struct LikelihoodBound<'a> {
    net: &'a dyn Network,
    trained: TrainedFlow,
    guidance: f64,
    config: BoundConfig,
}

impl std::fmt::Debug for LikelihoodBound<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("LikelihoodBound")
            .field("trained", &self.trained)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<'a> LikelihoodBound<'a> {
    /// Makes bounds for a network; `guidance` is the self-conditioning guidance scale w, for networks with such an input.
    ///
    /// # Errors
    /// If a setting makes no sense, or the network writes in blocks.
    pub fn new(net: &'a dyn Network, trained: TrainedFlow, guidance: f64, config: BoundConfig) -> Result<Self> {
        config.check()?;
        if trained.block_size.is_some() {
            let reason = "the likelihood of texts that are written block after block is not known";
            return Err(Error::setting("block_size", reason));
        }
        Ok(Self { net, trained, guidance, config })
    }

    /// The bounds of a batch of texts, one for each row, for one draw of their noise; conditions are given, and everything else is
    /// part of the text, so that rows of a batch must not be filled up, unless the network has learned the filling.
    ///
    /// Self-conditioned networks are given their own estimate of the same place as the earlier one. Words depend on the R directions of
    /// the latents that the network sees ([`Network::seen_directions`]) alone, so that only these are followed: the same law of texts, and
    /// a tighter bound. Draws `noise` `[B, S, R]`, then `probe` of the same shape at each evaluation.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network or the noise fails.
    pub fn of(&self, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Vec<TextBound>> {
        tch::no_grad(|| {
            let (b, s, c) = batch.sizes()?;
            let condition = batch.condition.as_ref();
            let condition = condition.map(|mask| Condition::new(&batch.latents, &batch.ids, mask)).transpose()?;
            let condition = condition.as_ref();
            let network = NetworkField::new(self.net, self.trained, self.guidance).with_condition(condition);
            let network: Box<dyn Field + '_> = match self.trained.self_conditioned {
                true => Box::new(OwnHint(network)),
                false => Box::new(network),
            };
            let field: Box<dyn Field + '_> = match condition {
                Some(condition) => Box::new(Conditioned::new(network, condition)),
                None => network,
            };
            let free = condition.map(Condition::free_positions).transpose()?;
            // What the network does not see of its latents changes no word.
            let basis = self.net.seen_directions(self.trained.self_conditioned)?;
            let basis = basis.map_or_else(|| Tensor::f_eye(c, (Kind::Float, batch.latents.device())), Ok)?;
            let seen = InDirections { inner: &*field, basis: &basis };
            let eps = noise.normal("noise", &[b, s, basis.size2()?.1])?;
            let t = self.config.read_at;
            let spread = (1.0 - t) * self.trained.path.noise_scale;
            let z = batch.latents.f_matmul(&basis)? * t + &eps * spread;
            let known = log_normal(&eps, free.as_ref())? - numbers(&eps.size(), free.as_ref())? * spread.ln();
            let latents = log_density(&seen, &z, free.as_ref(), &self.config.times(), noise)? - known;

            let x = field.eval(&z.f_matmul(&basis.f_tr()?)?, t, None)?.x;
            let words = Decoder::new(self.net, self.trained, self.guidance).log_probs(&x, condition, &batch.ids)?;
            let words = words.f_to_kind(Kind::Double)?;
            let words = free.map_or_else(|| Ok(words.shallow_clone()), |free| words.f_mul(&free.f_squeeze_dim(-1)?))?;
            let words = words.f_sum_dim_intlist([-1].as_slice(), false, Kind::Double)?;
            let host = |t: Tensor| -> Result<Vec<f64>> { Ok(Vec::try_from(t)?) };
            let bounds = host(latents)?.into_iter().zip(host(words)?);
            Ok(bounds.map(|(latents, words)| TextBound { latents, words }).collect())
        })
    }
}
