//! Uncertainty: spread over seeds, and bootstrap intervals over examples.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Mean and spread of a number that was measured several times, for example with several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Number of values.
    pub n: usize,
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Standard error of the mean, `std / sqrt(n)`.
    pub standard_error: f64,
}

impl Spread {
    /// Spread of a sample of values, such as runs with a few seeds: squares are divided by n - 1.
    /// `None` for fewer than two values.
    pub fn of_sample(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n < 2 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let std = (squares / (n - 1) as f64).sqrt();
        Some(Self { n, mean, std, standard_error: std / (n as f64).sqrt() })
    }
}

/// An interval around a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Confidence, 0 to 1.
    pub confidence: f64,
}

/// Percentile bootstrap over examples: the statistic is computed on many sets of examples drawn
/// with replacement, and the middle part of the results is the interval. The same seed gives the same interval on any
/// number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bootstrap {
    /// Number of sets drawn (default 1000).
    pub resamples: usize,
    /// Confidence of the interval (default 0.95).
    pub confidence: f64,
    /// Seed of the draws (default 0).
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 1000, confidence: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// Interval of the mean of per-example values.
    ///
    /// # Errors
    /// If there are no values, or a setting is out of its range.
    pub fn mean(&self, values: &[f64]) -> Result<Interval> {
        self.statistic(values, |drawn| drawn.iter().map(|v| **v).sum::<f64>() / drawn.len() as f64)
    }

    /// Interval of any statistic of examples, e.g. corpus BLEU of
    /// [`crate::bleu::Bleu::counts_per_pair`].
    ///
    /// # Errors
    /// If there are no examples, or a setting is out of its range.
    pub fn statistic<T: Sync>(&self, examples: &[T], statistic: impl Fn(&[&T]) -> f64 + Sync) -> Result<Interval> {
        self.mean_over_files(&[examples], statistic)
    }

    /// Interval of the mean over files of a statistic of each file's examples. Files of equal length are assumed to belong
    /// to the same inputs, as those of several seeds: the same places are drawn from all of them. Other files are drawn
    /// from independently.
    ///
    /// # Errors
    /// If there are no files or one has no examples, or a setting is out of its range.
    pub fn mean_over_files<T: Sync, S: AsRef<[T]> + Sync>(
        &self,
        files: &[S],
        statistic: impl Fn(&[&T]) -> f64 + Sync,
    ) -> Result<Interval> {
        if files.is_empty() || files.iter().any(|file| file.as_ref().is_empty()) {
            return Err(Error::Nothing { what: "examples" });
        }
        if self.resamples == 0 {
            return Err(Error::Setting {
                name: "the number of bootstrap resamples",
                value: self.resamples.to_string(),
                expected: "at least 1",
            });
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Error::Setting {
                name: "the confidence of an interval",
                value: self.confidence.to_string(),
                expected: "between 0 and 1, such as 0.95",
            });
        }
        let mut results: Vec<f64> = (0..self.resamples as u64)
            .into_par_iter()
            .map(|resample| {
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
                rng.set_stream(resample);
                let mut places: Vec<usize> = Vec::new();
                let mut sum = 0.0;
                for examples in files.iter().map(AsRef::as_ref) {
                    if places.len() != examples.len() {
                        places = examples.iter().map(|_| rng.random_range(0..examples.len())).collect();
                    }
                    sum += statistic(&places.iter().map(|&place| &examples[place]).collect::<Vec<_>>());
                }
                sum / files.len() as f64
            })
            .collect();
        results.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - self.confidence) / 2.0;
        Ok(Interval {
            low: quantile(&results, tail),
            high: quantile(&results, 1.0 - tail),
            confidence: self.confidence,
        })
    }
}

/// Quantile of sorted values, at least one, interpolated linearly.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bleu::{Bleu, BleuCounts};

    #[test]
    fn spread_by_hand() {
        let values = [2.0, 4.0, 4.0, 6.0];
        let sample = Spread::of_sample(&values).unwrap();
        assert_eq!((sample.n, sample.mean), (4, 4.0));
        assert!((sample.std - (8.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((sample.standard_error - sample.std / 2.0).abs() < 1e-12);
        assert_eq!(Spread::of_sample(&[3.0]), None);
    }

    #[test]
    fn quantiles_by_hand() {
        let sorted = [1.0, 2.0, 3.0, 5.0];
        assert_eq!(quantile(&sorted, 0.0), 1.0);
        assert_eq!(quantile(&sorted, 0.5), 2.5);
        assert_eq!(quantile(&sorted, 1.0), 5.0);
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }

    #[test]
    fn the_interval_of_a_mean_is_about_two_standard_errors() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
        let spread = Spread::of_sample(&values).unwrap();
        let interval = Bootstrap::default().mean(&values).unwrap();
        let expected = 1.96 * spread.standard_error;
        for half in [spread.mean - interval.low, interval.high - spread.mean] {
            assert!((half / expected - 1.0).abs() < 0.15, "{half} against {expected}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_interval_on_any_number_of_threads() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i).sin()).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Bootstrap { seed: 3, ..Default::default() }.mean(&values).unwrap())
        };
        assert_eq!(on(1), on(3));
        let other = Bootstrap { seed: 4, ..Default::default() }.mean(&values).unwrap();
        assert_ne!(on(1), other);
    }

    #[test]
    fn bleu_has_an_interval_around_its_score() {
        let hypotheses = ["a b c d e", "f g h i j", "a b x d e", "k l m n y"];
        let references = ["a b c d e", "f g h x j", "a b c d e", "k l m n o"];
        let bleu = Bleu::default();
        let counts = bleu.counts_per_pair(&hypotheses, &references).unwrap();
        let interval = Bootstrap::default()
            .statistic(&counts, |drawn| bleu.score(&drawn.iter().map(|c| **c).sum::<BleuCounts>()).score)
            .unwrap();
        let score = bleu.corpus(&hypotheses, &references).unwrap().score;
        assert!(interval.low < score && score < interval.high && interval.high <= 100.0);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for bootstrap in [
            Bootstrap { resamples: 0, ..Default::default() },
            Bootstrap { confidence: 1.0, ..Default::default() },
            Bootstrap { confidence: f64::NAN, ..Default::default() },
        ] {
            assert!(bootstrap.mean(&[1.0]).is_err(), "{bootstrap:?}");
        }
        assert!(Bootstrap::default().mean(&[]).is_err());
    }
}
