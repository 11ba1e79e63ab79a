//! Watching and cancelling a run.

use crate::{Error, Result};

/// A step that was made. In a text that is written all at once there is one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Steps made so far, this one included, over all blocks.
    pub done: usize,
    /// Steps of the whole run. Fewer are made where all texts end before their last block.
    pub steps: usize,
    /// The time that the block's latents are at now.
    pub t: f64,
    /// The number of the block, from 0.
    pub block: usize,
    /// Blocks of the whole run.
    pub blocks: usize,
    /// Rows whose text had ended before this block.
    pub finished_rows: usize,
}

/// What a run does after a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Next {
    /// Goes on.
    #[default]
    Continue,
    /// Shows the text as it is now ([`SamplingObserver::frame`]), then goes on. A frame costs one pass and a wait for the device; after the
    /// last step of a block it costs the wait only.
    Frame,
    /// Stops: [`Generator::generate`](crate::Generator::generate) returns [`Error::Cancelled`](crate::Error::Cancelled). No part of
    /// a text is returned, so that it cannot be mistaken for a whole one; frames and finished rows have been shown by then.
    Cancel,
}

impl Next {
    /// Whether a frame is wanted after `step`.
    ///
    /// # Errors
    /// If the run is cancelled.
    pub(crate) fn shows_frame(self, step: &Step) -> Result<bool> {
        match self {
            Self::Continue => Ok(false),
            Self::Frame => Ok(true),
            Self::Cancel => Err(Error::Cancelled { done: step.done, steps: step.steps }),
        }
    }
}

/// The text that a run would give if it jumped to its current clean estimate.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The time at which the estimate was made; `decode_at` for the finished latents. Where texts are written in blocks, the share of
    /// the row's positions that is written, the time within the current block counted as a share of the block.
    pub t: f64,
    /// Decoded token ids of each row, all S positions. Positions of blocks that were not begun hold the token that ends a text.
    pub ids: Vec<Vec<i64>>,
    /// Natural log-probability with which each token was read, in the form of `ids`; 0 at positions of blocks that were not begun.
    pub log_probs: Vec<Vec<f32>>,
}

/// Watches a run. All methods do nothing by default; `()` watches nothing, a `Vec<Frame>` collects frames.
pub trait SamplingObserver {
    /// A step has been sent to the device, which may still be at work on it. Decides how the run goes on.
    fn step(&mut self, step: &Step) -> Next {
        let _ = step;
        Next::Continue
    }

    /// A frame that [`Request::trace`](crate::Request::trace) or [`SamplingObserver::step`] asked for, in the order of time.
    fn frame(&mut self, frame: Frame) {
        let _ = frame;
    }

    /// The text of a row is final: it has ended in the block that was just written, or the run is over. `ids` are its S positions;
    /// what follows the token that ends a text is none of the text. Called once per row.
    fn finished(&mut self, row: usize, ids: &[i64]) {
        let _ = (row, ids);
    }
}

impl SamplingObserver for () {}

impl SamplingObserver for Vec<Frame> {
    fn frame(&mut self, frame: Frame) {
        self.push(frame);
    }
}

/// For each step whether its estimate is shown: the step that starts nearest to each `wanted` time. Times nearer to 1 than to the
/// start of any step mean the finished text, which needs no step's estimate.
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
