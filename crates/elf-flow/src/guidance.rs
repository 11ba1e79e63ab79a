//! Fields that strengthen the effect of a hint, of a condition or of more training on another field.
//!
//! All are linear in the inner field, so they may be nested in any order. [`Generator`](crate::Generator) nests them as
//! self-conditioning guidance of a conditioned field of condition guidance of autoguidance of a network.

use tch::Tensor;

use crate::{Condition, Field, Prediction, Result};

/// `without + scale (with - without)`.
fn extrapolate(without: &Tensor, with: &Tensor, scale: f64) -> Result<Tensor> {
    Ok(without.f_lerp(with, scale)?)
}

/// A prediction extrapolated from `without` through `with` by `scale`. At scales 1 and 0 only one of them is evaluated.
fn guided(
    scale: f64,
    without: impl FnOnce() -> Result<Prediction>,
    with: impl FnOnce() -> Result<Prediction>,
) -> Result<Prediction> {
    if scale == 1.0 {
        return with();
    }
    let without = without()?;
    if scale == 0.0 {
        return Ok(without);
    }
    let with = with()?;
    Ok(Prediction { v: extrapolate(&without.v, &with.v, scale)?, x: extrapolate(&without.x, &with.x, scale)? })
}

/// Self-conditioning guidance for networks that do not take its scale as an input: `v_u + w (v_c - v_u)`, likewise for the
/// clean estimate, where `v_c` is evaluated with the hint and `v_u` without.
///
/// Two evaluations; one where the two cannot differ (no hint yet) or only one counts (w = 1 or w = 0).
#[derive(Debug)]
pub struct SelfConditioningGuidance<F> {
    inner: F,
    scale: f64,
}

impl<F: Field> SelfConditioningGuidance<F> {
    /// Guides `inner` with scale w.
    pub fn new(inner: F, scale: f64) -> Self {
        Self { inner, scale }
    }
}

impl<F: Field> Field for SelfConditioningGuidance<F> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        let without = || self.inner.eval(z, t, None);
        match hint {
            None => without(),
            Some(_) => guided(self.scale, without, || self.inner.eval(z, t, hint)),
        }
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        self.inner.pin(z)
    }

    fn noise_scale(&self) -> f64 {
        self.inner.noise_scale()
    }
}

/// Condition guidance (classifier-free guidance): `v_u + s (v_c - v_u)`, likewise for the clean estimate, where `v_u` is
/// evaluated with the condition's latents zeroed in both z and hint.
///
/// Both are evaluated as one batch of 2B rows. The inner field must therefore take any number of rows; put the condition in
/// place around this field, not inside it.
#[derive(Debug)]
pub struct ConditionGuidance<'a, F> {
    inner: F,
    condition: &'a Condition,
    scale: f64,
}

impl<'a, F: Field> ConditionGuidance<'a, F> {
    /// Guides `inner` towards `condition` with scale s.
    pub fn new(inner: F, condition: &'a Condition, scale: f64) -> Self {
        Self { inner, condition, scale }
    }
}

impl<F: Field> Field for ConditionGuidance<'_, F> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        let (b, ..) = z.size3()?;
        let doubled = |x: &Tensor| -> Result<Tensor> { Ok(Tensor::f_cat(&[x, &self.condition.remove(x)?], 0)?) };
        let hint = hint.map(doubled).transpose()?;
        let Prediction { v, x } = self.inner.eval(&doubled(z)?, t, hint.as_ref())?;
        let guided = |both: &Tensor| extrapolate(&both.f_narrow(0, b, b)?, &both.f_narrow(0, 0, b)?, self.scale);
        Ok(Prediction { v: guided(&v)?, x: guided(&x)? })
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        self.inner.pin(z)
    }

    fn noise_scale(&self) -> f64 {
        self.inner.noise_scale()
    }
}

/// Autoguidance (Karras et al. 2024, arXiv 2406.02507; not in ELF's paper): `v_weak + s (v_strong - v_weak)`, likewise for the
/// clean estimate, where the weak field is a lesser version of the same model: trained for a shorter time, smaller, or both.
///
/// Both tend to err in the same direction, the weak one more. Going on from it through the strong one leads away from what
/// neither has learned and, unlike a lower temperature, costs little variety. Two evaluations; one where only one counts
/// (s = 1 or s = 0, and from [`AutoGuidance::until`] on).
#[derive(Debug)]
pub struct AutoGuidance<F, G> {
    strong: F,
    weak: G,
    scale: f64,
    until: f64,
}

impl<F: Field, G: Field> AutoGuidance<F, G> {
    /// Guides `strong` away from `weak` with scale s. Both take the same latents, of the same noise scale.
    pub fn new(strong: F, weak: G, scale: f64) -> Self {
        Self { strong, weak, scale, until: f64::INFINITY }
    }

    /// Guides at times before `until` only (Kynkäänniemi et al. 2024, arXiv 2404.07724, who bound it on both sides).
    #[must_use]
    pub fn until(self, until: f64) -> Self {
        Self { until, ..self }
    }
}

impl<F: Field, G: Field> Field for AutoGuidance<F, G> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        let scale = if t < self.until { self.scale } else { 1.0 };
        guided(scale, || self.weak.eval(z, t, hint), || self.strong.eval(z, t, hint))
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        self.strong.pin(z)
    }

    fn noise_scale(&self) -> f64 {
        self.strong.noise_scale()
    }
}
