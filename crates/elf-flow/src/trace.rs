//! Watching a run.

/// The text that a run would give if it jumped to its current clean estimate.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The time at which the estimate was made; 1 for the finished latents.
    pub t: f64,
    /// Decoded token ids of each row, all S positions.
    pub ids: Vec<Vec<i64>>,
}

/// Is told how a run goes. All methods do nothing by default; `()` watches nothing, a `Vec<Frame>` collects frames.
pub trait Observer {
    /// `done` of `steps` steps have been sent to the device (which may still be at work on them).
    fn step(&mut self, done: usize, steps: usize) {
        let _ = (done, steps);
    }

    /// A frame that the request asked for, in the order of time. Each costs a pass of its own and a wait for the device.
    fn frame(&mut self, frame: Frame) {
        let _ = frame;
    }

    /// Whether the run is to end here, with [`Error::Cancelled`](crate::Error::Cancelled); asked after each step.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Observer for () {}

impl Observer for Vec<Frame> {
    fn frame(&mut self, frame: Frame) {
        self.push(frame);
    }
}

/// For each step whether its estimate is to be shown: the step that starts nearest to each `wanted` time. Times nearer to 1
/// than to the start of any step stand for the finished text, which needs no step's estimate.
pub(crate) fn steps_to_show(times: &[f64], wanted: &[f64]) -> Vec<bool> {
    let mut shown = vec![false; times.len().saturating_sub(1)];
    for t in wanted {
        let nearest = times.iter().enumerate().min_by(|(_, a), (_, b)| (**a - t).abs().total_cmp(&(**b - t).abs()));
        if let Some(slot) = nearest.and_then(|(i, _)| shown.get_mut(i)) {
            *slot = true;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::steps_to_show;

    #[test]
    fn the_nearest_steps_are_shown_once() {
        let times = [0.0, 0.1, 0.5, 1.0];
        assert_eq!(steps_to_show(&times, &[0.0, 0.02, 0.45, 1.0]), [true, false, true]);
        assert_eq!(steps_to_show(&times, &[]), [false; 3]);
        assert_eq!(steps_to_show(&times, &[0.9]), [false; 3]);
    }
}
