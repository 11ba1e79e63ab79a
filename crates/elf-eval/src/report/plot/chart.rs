//! Scatter plots and lines.

use super::canvas::{Anchor, Axes, Canvas, Colour, Frame, GRID, INK, MUTED, Mark, WORDS, Words, colour};
use super::labels::{Rect, apart, beside, shortened, width};
use super::scale::{Scale, place};
use super::written;
use crate::report::model::{Chart, GuideAxis, Point, Series};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Longest name of a line, in characters.
const NAME: usize = 30;

/// A point that can be drawn, as places.
struct Placed<'a> {
    x: f64,
    y: f64,
    ends: Option<(f64, f64)>,
    point: &'a Point,
}

/// A series and its points that can be drawn.
struct Drawable<'a> {
    series: &'a Series,
    points: Vec<Placed<'a>>,
    colour: Colour,
    number: usize,
}

impl Drawable<'_> {
    fn mark(&self, point: &Point) -> Mark {
        match (point.collapsed, &self.series.published) {
            (true, _) => Mark::Cross,
            (false, Some(_)) => Mark::Hollow(self.number),
            (false, None) => Mark::Filled(self.number),
        }
    }

    fn line(&self, canvas: &mut Canvas, points: &[(f64, f64)], width: f64) {
        match self.series.published {
            Some(_) => canvas.dashed(points, self.colour, width),
            None => canvas.line(points, self.colour, width),
        }
    }
}

/// The parts of a chart that can be drawn, and the number of points that cannot.
fn drawable(chart: &Chart) -> (Vec<Drawable<'_>>, usize) {
    let mut omitted = 0;
    let mut all = Vec::new();
    for (number, series) in chart.series.iter().enumerate() {
        let points: Vec<Placed> = series.points.iter().filter_map(|p| placed(p, chart)).collect();
        omitted += series.points.len() - points.len();
        if !points.is_empty() {
            all.push(Drawable { series, points, colour: colour(number), number });
        }
    }
    (all, omitted)
}

fn placed<'a>(point: &'a Point, chart: &Chart) -> Option<Placed<'a>> {
    let (x, y) = (place(point.x, chart.x.log)?, place(point.y.value, chart.y.log)?);
    let ends = point.y.ends().and_then(|(low, high)| place(low, chart.y.log).zip(place(high, chart.y.log)));
    Some(Placed { x, y, ends, point })
}

/// Both scales, if there is any point.
fn scales(chart: &Chart, drawn: &[Drawable]) -> Option<(Scale, Scale)> {
    let points = || drawn.iter().flat_map(|d| &d.points);
    let guides = |on: GuideAxis, log: bool| {
        chart.guides.iter().filter(move |g| g.axis == on).filter_map(move |g| place(g.value, log))
    };
    let xs: Vec<f64> = points().map(|p| p.x).collect();
    let x = match guides(GuideAxis::X, chart.x.log).next() {
        None => Scale::around(&xs, chart.x.log, true)?,
        Some(_) => Scale::around(&[xs, guides(GuideAxis::X, chart.x.log).collect()].concat(), chart.x.log, false)?,
    };
    let ys = points().flat_map(|p| [p.y].into_iter().chain(p.ends.into_iter().flat_map(|e| [e.0, e.1])));
    let y = Scale::around(&ys.chain(guides(GuideAxis::Y, chart.y.log)).collect::<Vec<_>>(), chart.y.log, false)?;
    Some((x, y))
}

/// The frame, with room for the labels of the vertical axis and for names on the right.
fn frame(x: Scale, y: Scale, right: f64) -> Frame {
    let widest = y.ticks.iter().map(|t| width(&written(y.value(*t), y.decimals), WORDS)).fold(24.0, f64::max);
    Frame { edges: [widest + 18.0, 34.0, WIDTH - right, HEIGHT - 50.0], x, y }
}

fn axes(canvas: &mut Canvas, chart: &Chart, frame: &Frame) {
    let [left, _, right, bottom] = frame.edges;
    canvas.grid(frame, Axes::Both, &written);
    let name = Words { size: WORDS + 0.5, ..Words::new(INK) };
    // The name of the vertical axis is above it, written horizontally.
    canvas.words(&chart.y.label, (8.0, 14.0), name);
    let middle = Words { anchor: Anchor::Middle, ..name };
    canvas.words(&chart.x.label, ((left + right) / 2.0, bottom + 38.0), middle);
}

/// Draws guides and their names. Returns the places of the names.
fn guides(canvas: &mut Canvas, chart: &Chart, frame: &Frame) -> Vec<Rect> {
    let [left, top, right, bottom] = frame.edges;
    let mut taken = Vec::new();
    for guide in &chart.guides {
        let log = if guide.axis == GuideAxis::X { chart.x.log } else { chart.y.log };
        let Some(place) = place(guide.value, log) else { continue };
        let name = shortened(&guide.label, 40);
        let w = width(&name, WORDS);
        let (line, at, anchor) = match guide.axis {
            GuideAxis::X => {
                let (x, _) = frame.at(place, frame.y.low);
                let leaves = x + 6.0 + w < right;
                let (at, anchor) = if leaves { (x + 6.0, Anchor::Start) } else { (x - 6.0, Anchor::End) };
                ([(x, top), (x, bottom)], (at, top + 9.0), anchor)
            }
            GuideAxis::Y => {
                let (_, y) = frame.at(frame.x.low, place);
                ([(left, y), (right, y)], (right - 4.0, y - 9.0), Anchor::End)
            }
        };
        canvas.dashed(&line, MUTED, 1.2);
        canvas.words(&name, at, Words { anchor, ..Words::new(MUTED) });
        let x = if anchor == Anchor::Start { at.0 } else { at.0 - w };
        taken.push(Rect { x, y: at.1 - 8.0, w, h: 16.0 });
        taken.push(Rect {
            x: line[0].0 - 1.0,
            y: line[0].1 - 1.0,
            w: line[1].0 - line[0].0 + 2.0,
            h: line[1].1 - line[0].1 + 2.0,
        });
    }
    taken
}

fn errors(canvas: &mut Canvas, frame: &Frame, drawn: &Drawable) {
    for point in &drawn.points {
        if let Some((low, high)) = point.ends {
            canvas.error_bar(frame.at(point.x, low), frame.at(point.x, high), drawn.colour);
        }
    }
}

/// Draws a scatter plot, if there is any point. Returns the number of points that cannot be drawn.
pub fn scatter(chart: &Chart) -> (Option<Canvas>, usize) {
    let (drawn, omitted) = drawable(chart);
    let Some((x, y)) = scales(chart, &drawn) else { return (None, omitted) };
    let frame = frame(x, y, 24.0);
    let mut canvas = Canvas::new((WIDTH, HEIGHT));
    axes(&mut canvas, chart, &frame);
    let mut taken = guides(&mut canvas, chart, &frame);
    for series in &drawn {
        let points: Vec<_> = series.points.iter().map(|p| frame.at(p.x, p.y)).collect();
        series.line(&mut canvas, &points, 1.4);
        errors(&mut canvas, &frame, series);
        for (at, point) in points.iter().zip(&series.points) {
            canvas.mark(*at, series.mark(point.point), series.colour);
            taken.push(Rect { x: at.0 - 6.0, y: at.1 - 6.0, w: 12.0, h: 12.0 });
        }
        // Points on lines count as occupied, so that labels avoid lines.
        for pair in points.windows(2) {
            for i in 1..8 {
                let t = f64::from(i) / 8.0;
                let (x, y) = (pair[0].0 + t * (pair[1].0 - pair[0].0), pair[0].1 + t * (pair[1].1 - pair[0].1));
                taken.push(Rect { x: x - 3.0, y: y - 3.0, w: 6.0, h: 6.0 });
            }
        }
    }
    let [left, top, right, bottom] = frame.edges;
    let inside = Rect { x: left, y: top, w: right - left + 20.0, h: bottom - top };
    for series in &drawn {
        let points: Vec<_> = series.points.iter().map(|p| frame.at(p.x, p.y)).collect();
        let name = shortened(&series.series.name, NAME);
        let words = Words { size: WORDS + 1.0, bold: true, ..Words::new(series.colour) };
        let size = (width(&name, words.size) * 1.08, words.size + 4.0);
        // The ends of a line are preferred.
        let mut ends: Vec<_> = [points.last(), points.first()].into_iter().flatten().copied().collect();
        ends.extend(&points);
        if let Some(place) = beside(&ends, size, &taken, &inside).filter(|_| !name.is_empty()) {
            canvas.words(&name, (place.x, place.y + place.h / 2.0), words);
            taken.push(place);
        }
    }
    for series in &drawn {
        for point in &series.points {
            let label = match (&point.point.label, point.point.collapsed) {
                (Some(label), false) => label.clone(),
                (Some(label), true) => format!("{label} (collapsed)"),
                (None, true) => "collapsed".to_owned(),
                (None, false) => continue,
            };
            let label = shortened(&label, NAME);
            let size = (width(&label, WORDS), WORDS + 3.0);
            if let Some(place) = beside(&[frame.at(point.x, point.y)], size, &taken, &inside) {
                canvas.words(&label, (place.x, place.y + place.h / 2.0), Words::new(series.colour));
                taken.push(place);
            }
        }
    }
    (Some(canvas), omitted)
}

/// Draws lines, if there is any point. Returns the number of points that cannot be drawn.
pub fn lines(chart: &Chart) -> (Option<Canvas>, usize) {
    let (drawn, omitted) = drawable(chart);
    let Some((x, y)) = scales(chart, &drawn) else { return (None, omitted) };
    let names: Vec<String> = drawn.iter().map(|d| shortened(&d.series.name, NAME)).collect();
    let widest = names.iter().map(|n| width(n, WORDS) * 1.08).fold(0.0, f64::max);
    let frame = frame(x, y, if widest > 0.0 { widest + 34.0 } else { 24.0 });
    let mut canvas = Canvas::new((WIDTH, HEIGHT));
    axes(&mut canvas, chart, &frame);
    guides(&mut canvas, chart, &frame);
    for series in &drawn {
        let points: Vec<_> = series.points.iter().map(|p| frame.at(p.x, p.y)).collect();
        series.line(&mut canvas, &points, 1.9);
        errors(&mut canvas, &frame, series);
        // A curve of many points needs no marks; crosses are always drawn.
        let few = points.len() <= 16;
        for (at, point) in points.iter().zip(&series.points).filter(|(_, p)| few || p.point.collapsed) {
            canvas.mark(*at, series.mark(point.point), series.colour);
            if let Some(label) = &point.point.label {
                let above = Words { anchor: Anchor::Middle, ..Words::new(MUTED) };
                canvas.words(&shortened(label, NAME), (at.0, at.1 - 13.0), above);
            }
        }
    }
    let [left, top, right, bottom] = frame.edges;
    let end = |d: &Drawable| d.points.last().map_or((right, bottom), |p| frame.at(p.x, p.y));
    // A line that reaches the right edge has its name there, another one at its end.
    let (early, late): (Vec<_>, Vec<_>) =
        drawn.iter().zip(&names).filter(|(_, name)| !name.is_empty()).partition(|(d, _)| end(d).0 < right - 60.0);
    let bold = |colour| Words { bold: true, ..Words::new(colour) };
    let heights: Vec<f64> = late.iter().map(|(d, _)| end(d).1).collect();
    for ((series, name), y) in late.iter().zip(apart(&heights, WORDS + 4.0, top, bottom)) {
        let (x, height) = end(series);
        if (height - y).abs() > 3.0 {
            canvas.line(&[(x + 8.0, height), (right + 6.0, y)], GRID, 1.0);
        }
        canvas.words(name, (right + 10.0, y), bold(series.colour));
    }
    let all = drawn.iter().flat_map(|d| &d.points).map(|p| frame.at(p.x, p.y));
    let mut taken: Vec<Rect> = all.map(|(x, y)| Rect { x: x - 3.0, y: y - 3.0, w: 6.0, h: 6.0 }).collect();
    let inside = Rect { x: left, y: top, w: WIDTH - left, h: bottom - top };
    for (series, name) in early {
        let size = (width(name, WORDS) * 1.08, WORDS + 4.0);
        if let Some(place) = beside(&[end(series)], size, &taken, &inside) {
            canvas.words(name, (place.x, place.y + place.h / 2.0), bold(series.colour));
            taken.push(place);
        }
    }
    (Some(canvas), omitted)
}
