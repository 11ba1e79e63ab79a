//! The rounds of progressive distillation: their order, and the round at which an interrupted curriculum continues.

use serde::{Deserialize, Serialize};

/// A round: the step counts of its student and its teacher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// The round's number, counted from 1.
    pub number: usize,
    /// Steps of the student from noise to data.
    pub student_steps: usize,
    /// K, Euler steps of the teacher for one of the student's.
    pub teacher_steps: usize,
}

impl Round {
    /// The time that one step of the student covers.
    pub fn step_size(&self) -> f64 {
        1.0 / self.student_steps as f64
    }

    /// The name of the round's folder, as in the released code: `round1_16step`.
    pub fn folder_name(&self) -> String {
        format!("round{}_{}step", self.number, self.student_steps)
    }
}

/// Rounds in order: each student starts from the one before it, the teacher stays the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Curriculum {
    rounds: Vec<Round>,
}

impl Curriculum {
    /// The released curriculum: students of 16, 8, 4, 2 and 1 steps, always with a teacher of 64 steps in total.
    pub fn released() -> Self {
        let round = |(i, student_steps)| Round { number: i + 1, student_steps, teacher_steps: 64 / student_steps };
        Self { rounds: [16, 8, 4, 2, 1].into_iter().enumerate().map(round).collect() }
    }

    /// All rounds in order.
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    /// The round with this number, counted from 1.
    pub fn round(&self, number: usize) -> Option<Round> {
        self.rounds.iter().copied().find(|round| round.number == number)
    }

    /// The round before this one; none before the first.
    pub fn before(&self, round: &Round) -> Option<Round> {
        self.round(round.number.checked_sub(1)?)
    }

    /// The round with this step size and this number of teacher steps.
    pub fn find(&self, step_size: f64, teacher_steps: usize) -> Option<Round> {
        let is_it =
            |round: &&Round| (round.step_size() - step_size).abs() < 1e-9 && round.teacher_steps == teacher_steps;
        self.rounds.iter().find(is_it).copied()
    }

    /// The next round to train, if any is left. `steps_done` are the optimiser steps of each round's latest checkpoint,
    /// `None` for a round without one; a round has `total_steps`.
    ///
    /// Rounds before one that has begun count as done, even if they had fewer steps than rounds have now.
    pub fn next(&self, steps_done: &[Option<u64>], total_steps: u64) -> Option<Round> {
        let begun = steps_done.iter().take(self.rounds.len()).rposition(Option::is_some);
        let index = match begun {
            None => 0,
            Some(last) if steps_done[last].is_some_and(|done| done < total_steps) => last,
            Some(last) => last + 1,
        };
        self.rounds.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_released_curriculum_is_known() {
        let rounds = Curriculum::released();
        let numbers: Vec<_> = rounds.rounds().iter().map(|r| (r.number, r.student_steps, r.teacher_steps)).collect();
        assert_eq!(numbers, [(1, 16, 4), (2, 8, 8), (3, 4, 16), (4, 2, 32), (5, 1, 64)]);
        assert_eq!(rounds.rounds()[2].folder_name(), "round3_4step");
        assert_eq!(rounds.find(0.25, 16).unwrap().number, 3);
        assert_eq!(rounds.find(0.25, 8), None);
        assert_eq!(rounds.before(&rounds.rounds()[1]).unwrap().number, 1);
        assert_eq!(rounds.before(&rounds.rounds()[0]), None);
        assert_eq!((rounds.round(0), rounds.round(6)), (None, None));
    }

    proptest! {
        /// However often it is stopped, a curriculum goes through every step of every round once, in order.
        #[test]
        fn a_stopped_curriculum_goes_on_where_it_was(total in 1u64..6, stops in proptest::collection::vec(0u64..5, 0..40)) {
            let curriculum = Curriculum::released();
            let mut steps_done = vec![None; curriculum.rounds().len()];
            let mut went = Vec::new();
            let mut stops = stops.into_iter();
            while let Some(round) = curriculum.next(&steps_done, total) {
                let done = &mut steps_done[round.number - 1];
                let from = done.unwrap_or(0);
                // Killed before a checkpoint, or stopped after some steps; in the end not stopped.
                let until = stops.next().map_or(total, |more| (from + more).min(total));
                if until > from {
                    went.extend((from..until).map(|step| (round.number, step)));
                    *done = Some(until);
                }
            }
            let all = (1..=5).flat_map(|round| (0..total).map(move |step| (round, step)));
            prop_assert!(went.into_iter().eq(all));
        }
    }

    #[test]
    fn a_later_round_says_that_the_earlier_ones_are_done() {
        let curriculum = Curriculum::released();
        // Round 1 was trained when rounds had 4 steps; now they have 6.
        assert_eq!(curriculum.next(&[Some(4), Some(1), None, None, None], 6).unwrap().number, 2);
        assert_eq!(curriculum.next(&[Some(4), None, None, None, None], 6).unwrap().number, 1);
        // Only one round was trained, from a student that came from elsewhere.
        assert_eq!(curriculum.next(&[None, None, Some(6), None, None], 6).unwrap().number, 4);
        assert_eq!(curriculum.next(&[None, None, None, None, Some(6)], 6), None);
    }
}
