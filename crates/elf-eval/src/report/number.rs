//! Numbers with their uncertainty, and their written form.

use serde::{Deserialize, Serialize};

use crate::evaluation::Metric;
use crate::stats::Spread;

/// A number with its uncertainty. It need not be finite: what is not a number is shown as "n/a",
/// infinity as "∞", and neither is ever the best.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Number {
    /// The number.
    #[serde(with = "any")]
    pub value: f64,
    /// Its uncertainty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertainty: Option<Uncertainty>,
    /// A footnote of its table, by index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footnote: Option<usize>,
}

/// The uncertainty of a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Uncertainty {
    /// Standard error of the mean over seeds; written as ± after the number.
    StandardError(#[serde(with = "any")] f64),
    /// An interval, such as 95% of a bootstrap over examples; written in brackets.
    Interval {
        /// Lower end.
        #[serde(with = "any")]
        low: f64,
        /// Upper end.
        #[serde(with = "any")]
        high: f64,
    },
}

impl Number {
    /// A bare number.
    pub fn new(value: f64) -> Self {
        Self { value, ..Self::default() }
    }

    /// With a standard error.
    pub fn error(self, standard_error: f64) -> Self {
        Self { uncertainty: Some(Uncertainty::StandardError(standard_error)), ..self }
    }

    /// With an interval.
    pub fn interval(self, low: f64, high: f64) -> Self {
        Self { uncertainty: Some(Uncertainty::Interval { low, high }), ..self }
    }

    /// With a footnote, by index.
    pub fn footnote(self, index: usize) -> Self {
        Self { footnote: Some(index), ..self }
    }

    /// Mean and standard error of one number measured with several seeds. A single value has no error; without values
    /// the number is not a number.
    pub fn over_seeds(values: &[f64]) -> Self {
        match (Spread::of_sample(values), values) {
            (Some(spread), _) => Self::new(spread.mean).error(spread.standard_error),
            (None, [one]) => Self::new(*one),
            _ => Self::new(f64::NAN),
        }
    }

    /// The ends of its uncertainty, where they are finite.
    pub fn ends(&self) -> Option<(f64, f64)> {
        let (low, high) = match self.uncertainty? {
            Uncertainty::StandardError(error) => (self.value - error, self.value + error),
            Uncertainty::Interval { low, high } => (low, high),
        };
        (low.is_finite() && high.is_finite()).then_some((low, high))
    }

    /// Its written form with this number of decimals and its uncertainty.
    pub fn written(&self, decimals: usize) -> String {
        let value = written(self.value, decimals);
        match self.uncertainty_written(decimals) {
            Some(uncertainty) => format!("{value} {uncertainty}"),
            None => value,
        }
    }

    /// The written form of its uncertainty, if it has a finite one.
    pub fn uncertainty_written(&self, decimals: usize) -> Option<String> {
        self.ends().filter(|_| self.value.is_finite())?;
        Some(match self.uncertainty? {
            Uncertainty::StandardError(error) => format!("± {}", written(error, decimals)),
            Uncertainty::Interval { low, high } => format!("[{}, {}]", written(low, decimals), written(high, decimals)),
        })
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::new(value)
    }
}

impl From<&Metric> for Number {
    /// The standard error over seeds if there are several, else the interval over examples.
    fn from(metric: &Metric) -> Self {
        match (metric.standard_error, metric.interval) {
            (Some(error), _) => Self::new(metric.value).error(error),
            (None, Some(interval)) => Self::new(metric.value).interval(interval.low, interval.high),
            (None, None) => Self::new(metric.value),
        }
    }
}

/// A number in a table or at an axis: separated thousands, a minus sign, powers of ten for long numbers.
pub fn written(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        return "n/a".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞".into() } else { "\u{2212}∞".into() };
    }
    if value.abs() >= 1e9 {
        return format!("{value:.2e}").replace('-', "\u{2212}");
    }
    let digits = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    let mut text = String::new();
    if value < 0.0 && digits.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        text.push('\u{2212}');
    }
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) && whole.len() > 4 {
            text.push('\u{202f}'); // a narrow space that does not break
        }
        text.push(digit);
    }
    if !fraction.is_empty() {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

/// The number of decimals that suits all of these numbers: up to the first digit of their median uncertainty, or the second
/// if it begins with 1 or 2; without uncertainties three significant digits of the largest number, and none for integers.
pub fn decimals_for(numbers: &[Number]) -> usize {
    let places = |size: f64, digits: i32| (digits - 1 - size.log10().floor() as i32).clamp(0, 4) as usize;
    let finite = || numbers.iter().filter(|n| n.value.is_finite());
    let half_width = |n: &Number| n.ends().map(|(low, high)| (high - low) / 2.0).filter(|w| *w > 0.0);
    let mut half_widths: Vec<f64> = finite().filter_map(half_width).collect();
    half_widths.sort_unstable_by(f64::total_cmp);
    if let Some(&middle) = half_widths.get(half_widths.len() / 2) {
        let begins = middle / 10f64.powf(middle.log10().floor());
        return places(middle, if begins < 3.0 { 2 } else { 1 });
    }
    if finite().all(|n| n.value.fract() == 0.0) {
        return 0;
    }
    finite().map(|n| n.value.abs()).max_by(f64::total_cmp).filter(|v| *v > 0.0).map_or(0, |v| places(v, 3))
}

/// Floats in JSON, where those that are not finite are the strings "NaN", "inf" and "-inf".
pub(super) mod any {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Finite(f64),
        Other(Other),
    }

    #[derive(Deserialize)]
    enum Other {
        #[serde(rename = "NaN")]
        NotANumber,
        #[serde(rename = "inf")]
        Infinite,
        #[serde(rename = "-inf")]
        MinusInfinite,
    }

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        match *value {
            v if v.is_finite() => serializer.serialize_f64(v),
            v if v.is_nan() => serializer.serialize_str("NaN"),
            v if v > 0.0 => serializer.serialize_str("inf"),
            _ => serializer.serialize_str("-inf"),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Finite(value) => value,
            Written::Other(Other::NotANumber) => f64::NAN,
            Written::Other(Other::Infinite) => f64::INFINITY,
            Written::Other(Other::MinusInfinite) => f64::NEG_INFINITY,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_readers() {
        for (value, decimals, text) in [
            (0.0, 2, "0.00"),
            (-0.001, 2, "0.00"),
            (-3.456, 1, "\u{2212}3.5"),
            (1234.5, 1, "1234.5"),
            (12345.0, 0, "12\u{202f}345"),
            (1234567.0, 0, "1\u{202f}234\u{202f}567"),
            (3e12, 0, "3.00e12"),
            (f64::NAN, 2, "n/a"),
            (f64::INFINITY, 2, "∞"),
            (f64::NEG_INFINITY, 2, "\u{2212}∞"),
        ] {
            assert_eq!(written(value, decimals), text);
        }
        assert_eq!(Number::new(26.42).error(0.31).written(1), "26.4 ± 0.3");
        assert_eq!(Number::new(26.42).interval(25.9, 27.0).written(1), "26.4 [25.9, 27.0]");
        assert_eq!(Number::new(26.42).error(f64::NAN).written(1), "26.4");
        assert_eq!(Number::new(f64::NAN).error(0.5).written(1), "n/a");
    }

    #[test]
    fn digits_follow_from_uncertainty_and_size() {
        for (numbers, decimals) in [
            (vec![Number::new(26.42).error(0.31), Number::new(20.0).error(0.9), Number::new(20.0).error(0.4)], 1),
            (vec![Number::new(26.42).error(0.17)], 2),
            (vec![Number::new(26.42).error(3.1)], 0),
            (vec![Number::new(3.387).interval(3.380, 3.396)], 3),
            (vec![Number::new(26.42)], 1),
            (vec![Number::new(0.5124)], 3),
            (vec![Number::new(4812.7)], 0),
            (vec![Number::new(3.0), Number::new(8.0)], 0),
            (vec![Number::new(f64::NAN)], 0),
            (vec![Number::new(1e-9).error(1e-12)], 4),
            (vec![Number::new(0.0).error(0.0)], 0),
            (vec![], 0),
        ] {
            assert_eq!(decimals_for(&numbers), decimals, "{numbers:?}");
        }
    }

    #[test]
    fn seeds_become_a_mean_with_its_error() {
        let number = Number::over_seeds(&[1.0, 2.0, 3.0]);
        assert_eq!(number, Number::new(2.0).error(1.0 / 3.0_f64.sqrt()));
        assert_eq!(Number::over_seeds(&[4.0]), Number::new(4.0));
        assert!(Number::over_seeds(&[]).value.is_nan());
    }

    #[test]
    fn any_number_survives_json() {
        for value in [1.0 / 3.0, f64::INFINITY, f64::NEG_INFINITY] {
            let number = Number::new(value).error(f64::INFINITY);
            let json = serde_json::to_string(&number).unwrap();
            assert_eq!(serde_json::from_str::<Number>(&json).unwrap(), number, "{json}");
        }
        let json = serde_json::to_string(&Number::new(f64::NAN)).unwrap();
        assert!(serde_json::from_str::<Number>(&json).unwrap().value.is_nan(), "{json}");
        assert!(serde_json::from_str::<Number>(r#"{"value": "many"}"#).is_err());
    }
}
