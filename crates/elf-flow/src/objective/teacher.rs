//! The steps of a frozen network that students learn from.

use elf_core::{Network, TrunkInput};
use tch::{Kind, Tensor};

use super::rows::pin;
use crate::{FlowPath, Guide, Result};

/// The start and the times of a teacher's steps: R rows on its device.
#[derive(Debug, Clone, Copy)]
pub struct TeacherStart<'a> {
    /// Noisy latents at the first times, `[R, S, C]`.
    pub z: &'a Tensor,
    /// The previous clean estimate for the first step, `[R, S, C]`; later steps take the one before. `None` for a network
    /// that takes z alone.
    pub x_prev: Option<&'a Tensor>,
    /// Guidance scales, `[R]`.
    pub guidance: &'a Tensor,
    /// Times, `[R, K + 1]`, ascending within each row.
    pub times: &'a Tensor,
    /// Clean latents `[R, S, C]`, and 1 on the condition positions `[R, S, 1]`, where latents stay clean in all steps.
    pub condition: Option<(&'a Tensor, &'a Tensor)>,
    /// Token ids of the condition positions, negative elsewhere, `[R, S]`.
    pub words: Option<&'a Tensor>,
}

/// The clean latents `[R, S, C]` that a student must predict at the first time for one Euler step to end where K Euler steps of
/// the teacher end: `z + (1 - t_0) / (t_K - t_0) (z_K - z)`. For K = 1 the teacher's own prediction.
///
/// K passes over the R rows, without gradient; it draws nothing.
///
/// # Errors
/// If the shapes do not fit together, or the teacher fails.
pub fn teacher_target(teacher: &dyn Network, path: &FlowPath, start: &TeacherStart) -> Result<Tensor> {
    Ok(Teacher { net: teacher, guide: None }.steps(path, start)?.target)
}

/// A frozen network, and the weaker one that its steps are led away from.
#[derive(Clone, Copy)]
pub(super) struct Teacher<'t> {
    pub(super) net: &'t dyn Network,
    pub(super) guide: Option<Guide<'t>>,
}

/// Where the teacher's steps led, `[R, S, C]` each.
pub(super) struct TeacherEnd {
    /// Latents at the last times.
    pub(super) z: Tensor,
    /// The clean estimate of the last step.
    pub(super) x: Tensor,
    /// The clean latents whose Euler step over all of the time ends in `z`.
    pub(super) target: Tensor,
}

impl Teacher<'_> {
    /// Euler steps between all times of `start`, without gradient.
    pub(super) fn steps(&self, path: &FlowPath, start: &TeacherStart) -> Result<TeacherEnd> {
        let (rows, columns) = start.times.size2()?;
        if columns < 2 || rows != start.z.size3()?.0 {
            let (found, expected) = (start.times.size(), format!("[{}, 2 or more]", start.z.size3()?.0));
            return Err(elf_core::Error::Shape { what: "teacher times".into(), found, expected }.into());
        }
        tch::no_grad(|| {
            let pinned = |x: &Tensor| match start.condition {
                Some((clean, condition)) => pin(x, clean, condition),
                None => x.shallow_clone(),
            };
            let substeps = columns - 1;
            let mut z = start.z.shallow_clone();
            let mut x_prev = start.x_prev.map(Tensor::shallow_clone);
            let mut estimate = z.shallow_clone();
            for k in 0..substeps {
                let t = start.times.f_select(1, k)?;
                estimate = self.estimate(path, start, (&z, &t), x_prev.as_ref())?;
                let t = t.f_view([-1, 1, 1])?;
                let span = start.times.f_select(1, k + 1)?.f_view([-1, 1, 1])? - &t;
                z = pinned(&(&z + path.velocity(&estimate, &z, &t) * span));
                x_prev = x_prev.map(|_| pinned(&estimate));
            }
            let target = match substeps {
                1 => estimate.shallow_clone(),
                _ => {
                    let first = start.times.f_select(1, 0)?.f_view([-1, 1, 1])?;
                    let last = start.times.f_select(1, substeps)?.f_view([-1, 1, 1])?;
                    let stretch = (1.0 - &first) / (last - &first).f_clamp_min(1e-6)?;
                    start.z + stretch * (&z - start.z)
                }
            };
            Ok(TeacherEnd { z, x: pinned(&estimate), target })
        })
    }

    /// The clean estimate at `z` `[R, S, C]` and times `t` `[R]`, guided.
    fn estimate(
        &self,
        path: &FlowPath,
        start: &TeacherStart,
        (z, t): (&Tensor, &Tensor),
        x_prev: Option<&Tensor>,
    ) -> Result<Tensor> {
        let of = |net: &dyn Network, path: &FlowPath, x_prev: Option<&Tensor>| -> Result<Tensor> {
            let input =
                TrunkInput { x_prev, guidance: Some(start.guidance), words: start.words, ..TrunkInput::new(z, t) };
            Ok(path.clean_of(net.clean(&net.trunk(&input)?)?, z, &t.f_view([-1, 1, 1])?))
        };
        let strong = of(self.net, path, x_prev)?;
        let Some(guide) = self.guide else { return Ok(strong) };
        let weak = of(guide.net, &guide.trained.path, x_prev.filter(|_| guide.trained.self_conditioned))?;
        let guided = t.f_lt(guide.until)?.f_to_kind(Kind::Float)?.f_view([-1, 1, 1])?;
        let scale = guided * (guide.scale - 1.0) + 1.0;
        Ok(&weak + scale * (strong - &weak))
    }
}
