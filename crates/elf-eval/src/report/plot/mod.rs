//! Plots as SVG.

mod bars;
mod canvas;
mod chart;
mod labels;
mod scale;

use std::fmt::Write as _;

use super::model::{Plot, PlotKind};
use super::text::clean;

/// A plot that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawing {
    /// The elements of the SVG.
    body: String,
    /// Width and height in pixels.
    size: (f64, f64),
    title: String,
    caption: String,
    /// Number of points that could not be drawn.
    pub omitted: usize,
}

/// Draws a plot; `None` if no part of it can be drawn.
pub fn draw(plot: &Plot) -> Option<Drawing> {
    let plot = cleaned(plot);
    let (canvas, omitted) = match &plot.kind {
        PlotKind::Scatter(chart) => chart::scatter(chart),
        PlotKind::Lines(chart) => chart::lines(chart),
        PlotKind::Bars(chart) => bars::bars(chart),
    };
    let (body, size) = canvas?.finish();
    Some(Drawing { body, size, title: plot.title, caption: plot.caption, omitted })
}

/// All texts of the drawing, without characters that XML forbids.
fn cleaned(plot: &Plot) -> Plot {
    let mut plot = plot.clone();
    let tidy = |text: &mut String| *text = clean(text).split_whitespace().collect::<Vec<_>>().join(" ");
    tidy(&mut plot.title);
    tidy(&mut plot.caption);
    match &mut plot.kind {
        PlotKind::Scatter(chart) | PlotKind::Lines(chart) => {
            tidy(&mut chart.x.label);
            tidy(&mut chart.y.label);
            chart.guides.iter_mut().for_each(|g| tidy(&mut g.label));
            for series in &mut chart.series {
                tidy(&mut series.name);
                series.points.iter_mut().filter_map(|p| p.label.as_mut()).for_each(tidy);
            }
        }
        PlotKind::Bars(chart) => {
            tidy(&mut chart.axis.label);
            chart.groups.iter_mut().for_each(tidy);
            chart.series.iter_mut().for_each(|s| tidy(&mut s.name));
        }
    }
    plot
}

impl Drawing {
    /// The SVG as part of a page. Title and description are named after `id`, which must be unique in the page.
    pub fn inline(&self, id: &str) -> String {
        let head = format!("role=\"img\" aria-labelledby=\"{id}-title\" aria-describedby=\"{id}-text\"");
        self.svg(&head, &format!("<title id=\"{id}-title\">"), &format!("<desc id=\"{id}-text\">"), "")
    }

    /// The SVG as a file, which adapts to dark mode.
    pub fn file(&self) -> String {
        let (w, h) = self.size;
        let head = format!("xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" role=\"img\"");
        let style = format!("<style>@media screen and (prefers-color-scheme:dark){{{}}}</style>\n", dark_rules(""));
        self.svg(&head, "<title>", "<desc>", &style)
    }

    fn svg(&self, head: &str, title: &str, desc: &str, style: &str) -> String {
        let text = |text: &str| maud::html! { (text) }.into_string();
        let (w, h) = self.size;
        format!(
            "<svg {head} viewBox=\"0 0 {w} {h}\">\n{title}{}</title>\n{desc}{}</desc>\n{style}{}</svg>\n",
            text(&self.title),
            text(&self.caption),
            self.body,
        )
    }
}

/// Style rules that replace the colours of plots below a selector by those for a dark background.
pub fn dark_rules(selector: &str) -> String {
    let mut rules = String::new();
    for (light, dark) in canvas::DARK {
        let light = canvas::hex(light);
        for property in ["fill", "stroke"] {
            // Writing to a String cannot fail.
            let _ = write!(rules, "{selector}[{property}=\"{light}\"]{{{property}:{dark}}}");
        }
    }
    rules
}

/// A number at an axis.
fn written(value: f64, decimals: usize) -> String {
    if value != 0.0 && (value.abs() >= 1e6 || value.abs() < 1e-3) {
        return format!("{value:.0e}").replace('-', "\u{2212}");
    }
    super::number::written(value, decimals)
}
