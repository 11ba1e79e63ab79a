//! The progress of a run: the statuses of its stages and the time that is left.

use super::stage::{Stage, StageName};
use super::work_folder::Record;

/// The status of a stage in this run.
#[derive(Debug)]
pub enum StageStatus {
    /// Not begun in this run.
    Open,
    /// Being worked on.
    Running,
    /// Finished, now or in an earlier run.
    Done(Record),
}

/// The progress of a run, which its workers share.
pub struct Progress {
    /// The statuses of the chosen stages, in their order.
    pub statuses: Vec<StageStatus>,
    /// Whether a stage has failed.
    pub failed: bool,
    /// Expected times.
    pub estimate: TimeEstimate,
    /// Expected seconds of the stages that were not done at the start.
    pub waiting: f64,
    /// Expected seconds of the stages that are not done yet.
    pub left: f64,
}

impl Progress {
    /// Of so many stages, none of which is known to be done.
    pub fn new(stages: usize, estimate: TimeEstimate) -> Self {
        let statuses = (0..stages).map(|_| StageStatus::Open).collect();
        Self { statuses, failed: false, estimate, waiting: 0.0, left: 0.0 }
    }

    /// The first stage that can begin. A stage that is needed but was not chosen counts as done.
    pub fn next(&self, chosen: &[&Stage]) -> Option<usize> {
        let done = |need: &StageName| {
            chosen
                .iter()
                .zip(&self.statuses)
                .all(|(stage, status)| stage.name != *need || matches!(status, StageStatus::Done(_)))
        };
        let ready = |&number: &usize| {
            matches!(self.statuses[number], StageStatus::Open) && chosen[number].needs.iter().all(done)
        };
        (0..chosen.len()).find(ready)
    }
}

/// Expected times, corrected by those that were measured.
pub struct TimeEstimate {
    /// Operations per second that were expected.
    speed: f64,
    expected: f64,
    measured: f64,
}

impl TimeEstimate {
    /// From the operations per second that are expected.
    pub fn new(speed: f64) -> Self {
        Self { speed, expected: 0.0, measured: 0.0 }
    }

    /// Seconds that a stage is expected to take before any correction.
    pub fn expected(&self, stage: &Stage) -> f64 {
        stage.cost.seconds + stage.cost.flops / self.speed
    }

    /// Takes the seconds that a stage has taken into account.
    pub fn took(&mut self, stage: &Stage, seconds: f64) {
        self.expected += self.expected(stage);
        self.measured += seconds;
    }

    /// The seconds that an expected second takes. The first stages are short and count for little.
    pub fn factor(&self) -> f64 {
        const TRUST_AFTER: f64 = 30.0;
        (self.measured + TRUST_AFTER) / (self.expected + TRUST_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::stage::Cost;

    #[test]
    fn the_estimate_follows_what_was_measured() {
        let mut estimate = TimeEstimate::new(1e9);
        let stage = Stage::new("a", "").costing(Cost { flops: 1e11, seconds: 20.0, ..Cost::default() });
        assert_eq!(estimate.expected(&stage), 120.0);
        assert_eq!(estimate.factor(), 1.0);
        estimate.took(&stage, 240.0);
        assert!((estimate.factor() - 270.0 / 150.0).abs() < 1e-12);
    }
}
