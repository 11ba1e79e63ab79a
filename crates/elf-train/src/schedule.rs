//! Learning rates by step.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// The peak rate at all steps.
    #[default]
    Constant,
    /// Half a cosine from the peak rate to `min_lr` at the last step.
    Cosine,
    /// Warmup-stable-decay (Hu et al. 2024, arXiv 2404.06395): the peak rate, and in the last steps a straight line to `min_lr`. A run's end
    /// may be chosen while it goes on.
    Wsd {
        /// The number of these last steps.
        fall: u64,
    },
}

/// A linear warm-up from 0, then a [`Decay`].
///
/// Steps count from 0, so with a warm-up the first update has learning rate 0, as in the released code: it fills the
/// optimiser's averages and changes no parameter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The peak learning rate.
    pub lr: f64,
    /// Optimiser steps of warm-up; 0 for none.
    pub warmup_steps: u64,
    /// The rate after the warm-up.
    pub decay: Decay,
    /// The rate at the end; a constant schedule ignores it.
    pub min_lr: f64,
    /// Optimiser steps in all, warm-up included. A constant schedule ignores it.
    pub total_steps: u64,
}

impl Schedule {
    /// A constant rate after a warm-up.
    pub fn constant(lr: f64, warmup_steps: u64) -> Self {
        Self { lr, warmup_steps, decay: Decay::Constant, min_lr: 0.0, total_steps: 0 }
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// If a setting is out of its range; the message names the first one.
    pub fn check(&self) -> Result<()> {
        if !(self.lr >= 0.0 && self.lr.is_finite()) {
            return Err(Error::setting(
                "lr",
                format!("{} is not a learning rate; give 0 or a positive number", self.lr),
            ));
        }
        if !(self.min_lr >= 0.0 && self.min_lr <= self.lr) && self.decay != Decay::Constant {
            return Err(Error::setting("min_lr", format!("{} is not between 0 and lr, {}", self.min_lr, self.lr)));
        }
        let (what, needed) = match self.decay {
            Decay::Constant => return Ok(()),
            Decay::Cosine => ("warm-up", self.warmup_steps),
            Decay::Wsd { fall } => ("warm-up and fall", self.warmup_steps.saturating_add(fall)),
        };
        match self.total_steps < needed {
            true => {
                let reason = format!("{needed} steps of {what} do not fit into {} steps in all", self.total_steps);
                Err(Error::setting("warmup_steps", reason))
            }
            false => Ok(()),
        }
    }

    /// The learning rate of the optimiser step after `steps_done` others.
    pub fn lr_at(&self, steps_done: u64) -> f64 {
        if steps_done < self.warmup_steps {
            return self.lr * steps_done as f64 / self.warmup_steps as f64;
        }
        match self.decay {
            Decay::Constant => self.lr,
            Decay::Cosine => {
                let (after, length) =
                    (steps_done - self.warmup_steps, self.total_steps.saturating_sub(self.warmup_steps));
                let progress = (after as f64 / length.max(1) as f64).min(1.0);
                self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            Decay::Wsd { fall } => {
                let left = self.total_steps.saturating_sub(steps_done) as f64 / fall.max(1) as f64;
                self.min_lr + (self.lr - self.min_lr) * left.min(1.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_rate_of_a_warm_up_is_zero() {
        let s = Schedule::constant(2.0, 4);
        assert_eq!([0, 1, 2, 3, 4, 5, 1000].map(|i| s.lr_at(i)), [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
        assert_eq!(Schedule::constant(2.0, 0).lr_at(0), 2.0);
    }

    #[test]
    fn impossible_settings_are_named() {
        let cosine = Schedule { decay: Decay::Cosine, total_steps: 10, ..Schedule::constant(1.0, 2) };
        assert!(cosine.check().is_ok());
        for (wrong, name) in [
            (Schedule { lr: f64::NAN, ..cosine }, "lr"),
            (Schedule { lr: -1.0, ..cosine }, "lr"),
            (Schedule { min_lr: 2.0, ..cosine }, "min_lr"),
            (Schedule { warmup_steps: 11, ..cosine }, "warmup_steps"),
        ] {
            assert!(wrong.check().unwrap_err().to_string().starts_with(name));
        }
    }

    #[test]
    fn a_fall_at_the_end_is_a_straight_line() {
        let wsd =
            Schedule { decay: Decay::Wsd { fall: 4 }, total_steps: 10, min_lr: 0.2, ..Schedule::constant(1.0, 2) };
        wsd.check().unwrap();
        let rates = [0, 1, 2, 5, 6, 7, 8, 9, 10, 11].map(|step| (wsd.lr_at(step) * 10.0).round());
        assert_eq!(rates, [0.0, 5.0, 10.0, 10.0, 10.0, 8.0, 6.0, 4.0, 2.0, 2.0]);
        let wrong = Schedule { decay: Decay::Wsd { fall: 9 }, ..wsd };
        assert!(wrong.check().unwrap_err().to_string().contains("warmup_steps"));
    }

    proptest! {
        #[test]
        fn rates_rise_then_fall_within_their_bounds(warmup in 0u64..50, rest in 1u64..200, min in 0.0f64..1.0, step in 0u64..300) {
            let s = Schedule { lr: 1.0, warmup_steps: warmup, decay: Decay::Cosine, min_lr: min, total_steps: warmup + rest };
            let (now, next) = (s.lr_at(step), s.lr_at(step + 1));
            prop_assert!((0.0..=1.0 + 1e-12).contains(&now));
            if step < warmup { prop_assert!(next > now) } else { prop_assert!(next <= now && now >= min - 1e-12) }
            prop_assert!((s.lr_at(warmup + rest) - min).abs() < 1e-12);
        }
    }
}
