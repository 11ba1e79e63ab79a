//! Horizontal bars.

use super::canvas::{Anchor, Axes, Canvas, Frame, INK, MUTED, WORDS, Words, colour};
use super::labels::{shortened, width};
use super::scale::{Scale, place};
use super::written;
use crate::report::model::BarChart;
use crate::report::number::{Number, decimals_for};

const WIDTH: f64 = 720.0;
const BAR: f64 = 17.0;
const BETWEEN: f64 = 12.0;

/// Draws bars, if there are any. Returns the number that cannot be drawn.
pub fn bars(chart: &BarChart) -> (Option<Canvas>, usize) {
    let log = chart.axis.log;
    let wanted = || chart.series.iter().flat_map(|s| s.values.iter().take(chart.groups.len()).flatten().copied());
    let numbers: Vec<Number> = wanted().filter(|n| place(n.value, log).is_some()).collect();
    let omitted = wanted().count() - numbers.len();
    let ends = numbers.iter().filter_map(Number::ends).flat_map(|(low, high)| [low, high]);
    let places = numbers.iter().map(|n| n.value).chain(ends).filter_map(|v| place(v, log));
    let Some(x) = Scale::of_bars(&places.collect::<Vec<_>>(), log) else { return (None, omitted) };

    let decimals = decimals_for(&numbers);
    let names: Vec<String> = chart.groups.iter().map(|g| shortened(g, 32)).collect();
    let left = names.iter().map(|n| width(n, WORDS)).fold(20.0, f64::max) + 16.0;
    let right = numbers.iter().map(|n| width(&n.written(decimals), WORDS)).fold(0.0, f64::max) + 18.0;
    let legend = chart.series.len() > 1;
    let top = if legend { 34.0 } else { 10.0 };
    let group = BAR * chart.series.len() as f64 + BETWEEN;
    let height = top + group * names.len() as f64 + 54.0;
    let y = Scale { log: false, low: 0.0, high: 1.0, ticks: Vec::new(), decimals: 0 };
    let frame = Frame { edges: [left, top, WIDTH - right, height - 50.0], x, y };
    let mut canvas = Canvas::new((WIDTH, height));
    canvas.grid(&frame, Axes::Horizontal, &written);
    let middle = Words { size: WORDS + 0.5, anchor: Anchor::Middle, ..Words::new(INK) };
    canvas.words(&chart.axis.label, ((left + WIDTH - right) / 2.0, height - 12.0), middle);

    let mut x = left;
    for (n, series) in chart.series.iter().enumerate().filter(|_| legend) {
        canvas.bar((x, 8.0), (x + 12.0, 20.0), colour(n), series.published.is_none());
        let name = shortened(&series.name, 30);
        canvas.words(&name, (x + 18.0, 14.0), Words { bold: true, ..Words::new(colour(n)) });
        x += 18.0 + width(&name, WORDS) * 1.08 + 22.0;
    }
    let start = if log { frame.x.low } else { 0.0 };
    for (g, name) in names.iter().enumerate() {
        let above = top + group * g as f64 + BETWEEN / 2.0;
        let centre = above + BAR * chart.series.len() as f64 / 2.0;
        canvas.words(name, (left - 10.0, centre), Words { anchor: Anchor::End, ..Words::new(INK) });
        for (n, series) in chart.series.iter().enumerate() {
            let (y0, y1) = (above + BAR * n as f64 + 1.0, above + BAR * (n + 1) as f64 - 1.0);
            let middle = (y0 + y1) / 2.0;
            let number = series.values.get(g).copied().flatten();
            let Some((number, end)) = number.and_then(|n| Some((n, place(n.value, log)?))) else {
                let what = number.map_or("not measured".to_owned(), |n| n.written(decimals));
                canvas.words(&what, (frame.at(start, 0.0).0 + 6.0, middle), Words::new(MUTED));
                continue;
            };
            let (from, to) = (frame.at(start, 0.0).0, frame.at(end, 0.0).0);
            canvas.bar((from.min(to), y0), (from.max(to), y1), colour(n), series.published.is_none());
            let mut reach = from.max(to);
            if let Some((low, high)) = number.ends().and_then(|(l, h)| place(l, log).zip(place(h, log))) {
                let (low, high) = (frame.at(low, 0.0).0, frame.at(high, 0.0).0);
                canvas.error_bar((low, middle), (high, middle), INK);
                reach = reach.max(high);
            }
            canvas.words(&number.written(decimals), (reach + 7.0, middle), Words::new(INK));
        }
    }
    (Some(canvas), omitted)
}
