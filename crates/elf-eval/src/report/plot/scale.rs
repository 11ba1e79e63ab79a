//! Scales of axes: the visible range, the places of values, and the ticks.

/// An axis with a range, linear or logarithmic. Places on it are values, or their logarithms to base 10.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// Logarithmic.
    pub log: bool,
    /// The lower end, as a place.
    pub low: f64,
    /// The upper end, as a place; above the lower one.
    pub high: f64,
    /// Places of the ticks, within the range.
    pub ticks: Vec<f64>,
    /// Number of decimals of the ticks' values.
    pub decimals: usize,
}

/// Approximate number of ticks.
const WANTED: f64 = 5.0;

/// The place of a value, if it has one.
pub fn place(value: f64, log: bool) -> Option<f64> {
    let place = if log { value.log10() } else { value };
    place.is_finite().then_some(place)
}

impl Scale {
    /// A scale around places, with room at both ends; `None` without places. If there are few different values, such as
    /// numbers of steps, `own_ticks` sets the ticks at them.
    pub fn around(places: &[f64], log: bool, own_ticks: bool) -> Option<Self> {
        let (low, high) = ends(places)?;
        let room = if high > low { 0.05 * (high - low) } else { single(low, log) };
        Self { log, low: low - room, high: high + room, ticks: Vec::new(), decimals: 0 }.with_ticks(places, own_ticks)
    }

    /// A scale for bars, which begin at zero, or on a logarithmic axis somewhat below the shortest.
    pub fn of_bars(places: &[f64], log: bool) -> Option<Self> {
        let (low, high) = ends(places)?;
        let (low, high) = if log { (low - 0.3, high) } else { (low.min(0.0), high.max(0.0)) };
        let high = if high > low { high } else { low + 1.0 };
        let room = 0.04 * (high - low);
        let low = if low < 0.0 && !log { low - room } else { low };
        Self { log, low, high: high + room, ticks: Vec::new(), decimals: 0 }.with_ticks(places, false)
    }

    /// The value at a place.
    pub fn value(&self, place: f64) -> f64 {
        if self.log { 10f64.powf(place) } else { place }
    }

    fn with_ticks(mut self, places: &[f64], own_ticks: bool) -> Option<Self> {
        let own = if own_ticks { self.own(places) } else { None };
        let values = own.unwrap_or_else(|| match self.log {
            true => self.decades(),
            false => even(self.low, self.high),
        });
        self.decimals = values.iter().map(|v| needed(*v)).max().unwrap_or(0);
        self.ticks = values.into_iter().filter_map(|v| place(v, self.log)).collect();
        Some(self)
    }

    /// The values themselves, if they are few and far enough apart to be read.
    fn own(&self, places: &[f64]) -> Option<Vec<f64>> {
        let mut places = places.to_vec();
        places.sort_unstable_by(f64::total_cmp);
        places.dedup_by(|a, b| (*a - *b).abs() < 1e-9);
        let apart = |pair: &[f64]| pair[1] - pair[0] > 0.055 * (self.high - self.low);
        let values: Vec<f64> = places.iter().map(|p| round(self.value(*p))).collect();
        let plain = values.iter().all(|v| needed(*v) <= 2);
        (places.len() <= 9 && plain && places.windows(2).all(apart)).then_some(values)
    }

    /// Round values over a logarithmic range.
    fn decades(&self) -> Vec<f64> {
        let span = self.high - self.low;
        if span < 0.7 {
            let (low, high) = (self.value(self.low), self.value(self.high));
            return even(low, high).into_iter().filter(|v| *v > 0.0).collect();
        }
        let every = (span / 7.0).ceil().max(1.0) as i32;
        let steps: &[f64] = if span < 2.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let (first, last) = (self.low.floor() as i32, self.high.ceil() as i32);
        let values = (first..=last)
            .filter(|e| e.rem_euclid(every) == 0)
            .flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e)));
        values.filter(|v| (self.low..=self.high).contains(&v.log10())).collect()
    }
}

fn ends(places: &[f64]) -> Option<(f64, f64)> {
    let low = places.iter().copied().filter(|p| p.is_finite()).min_by(f64::total_cmp)?;
    let high = places.iter().copied().filter(|p| p.is_finite()).max_by(f64::total_cmp)?;
    Some((low, high))
}

/// Room around a single value.
fn single(place: f64, log: bool) -> f64 {
    if log { 0.2 } else { (place.abs() * 0.1).max(0.5) }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn even(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / WANTED;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(10.0 * power);
    // Multiples instead of sums, so that zero is exact; bounded for every range.
    let (first, last) = ((low / step).ceil(), (high / step).floor());
    (0..=((last - first).clamp(0.0, 50.0) as i32)).map(|i| round((first + f64::from(i)) * step)).collect()
}

/// Rounded to twelve significant digits, which removes rounding errors of products and powers.
fn round(value: f64) -> f64 {
    format!("{value:.11e}").parse().unwrap_or(value)
}

/// Number of decimals that a value needs, at most six.
fn needed(value: f64) -> usize {
    (0..6).find(|d| (value * 10f64.powi(*d)).fract().abs() < 1e-6).unwrap_or(6) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(scale: &Scale) -> Vec<f64> {
        scale.ticks.iter().map(|t| round(scale.value(*t))).collect()
    }

    #[test]
    fn ticks_by_hand() {
        let linear = Scale::around(&[0.0, 10.0], false, false).unwrap();
        assert_eq!((values(&linear), linear.decimals), (vec![0.0, 5.0, 10.0], 0));
        let small = Scale::around(&[4.2, 4.6], false, false).unwrap();
        assert_eq!((values(&small), small.decimals), (vec![4.2, 4.3, 4.4, 4.5, 4.6], 1));
        let log = Scale::around(&[1.0, 2.0], true, false).unwrap(); // 10 to 100
        assert_eq!(values(&log), [10.0, 20.0, 50.0, 100.0]);
        let wide = Scale::around(&[0.0, 5.0], true, false).unwrap();
        assert_eq!(values(&wide), [1.0, 10.0, 100.0, 1e3, 1e4, 1e5]);
        let steps: Vec<f64> = [4.0f64, 8.0, 16.0, 32.0, 64.0].iter().map(|v| v.log10()).collect();
        assert_eq!(values(&Scale::around(&steps, true, true).unwrap()), [4.0, 8.0, 16.0, 32.0, 64.0]);
        let bars = Scale::of_bars(&[3.0, 4.0], false).unwrap();
        assert_eq!((bars.low, values(&bars)), (0.0, vec![0.0, 1.0, 2.0, 3.0, 4.0]));
        assert_eq!(Scale::around(&[], false, false), None);
        assert_eq!((place(0.0, true), place(f64::NAN, false), place(100.0, true)), (None, None, Some(2.0)));
    }

    proptest! {
        #[test]
        fn any_places_are_inside_and_have_ticks_to_read_them_by(
            places in prop::collection::vec(-1e9..1e9f64, 1..20), own in any::<bool>()
        ) {
            let scale = Scale::around(&places, false, own).unwrap();
            prop_assert!(scale.low < scale.high);
            prop_assert!(places.iter().all(|p| (scale.low..=scale.high).contains(p)));
            prop_assert!((1..=12).contains(&scale.ticks.len()), "{:?}", scale);
            let room = 1e-9 * (scale.high - scale.low);
            prop_assert!(scale.ticks.iter().all(|t| (scale.low - room..=scale.high + room).contains(t)), "{scale:?}");
        }

        #[test]
        fn logarithms_have_ticks_too(places in prop::collection::vec(-8.0..8.0f64, 1..20)) {
            let scale = Scale::around(&places, true, false).unwrap();
            prop_assert!((1..=12).contains(&scale.ticks.len()), "{:?}", scale);
        }
    }
}
