//! Plots as SVG.

mod bars;
mod canvas;
mod chart;
mod labels;
mod scale;

use std::fmt::Write as _;

use super::model::{Plot, PlotKind};
use super::text::clean;
use crate::{Error, Result};

/// A plot that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawing {
    /// The SVG without its first tag, which differs between a page and a file.
    body: String,
    /// Width and height in the SVG's own units.
    size: (u32, u32),
    title: String,
    caption: String,
    /// How many points could not be drawn.
    pub omitted: usize,
}

/// Draws a plot. None if it has nothing that could be drawn.
///
/// # Errors
/// If the drawing library fails.
pub fn draw(plot: &Plot) -> Result<Option<Drawing>> {
    let plot = cleaned(plot);
    let mut svg = String::new();
    let (drawn, omitted) = match &plot.kind {
        PlotKind::Scatter(chart) => chart::scatter(&mut svg, chart),
        PlotKind::Lines(chart) => chart::lines(&mut svg, chart),
        PlotKind::Bars(chart) => bars::bars(&mut svg, chart),
    }
    .map_err(|reason| Error::Plot { name: plot.name.clone(), reason })?;
    if !drawn {
        return Ok(None);
    }
    let broken = || Error::Plot { name: plot.name.clone(), reason: "it wrote no SVG".into() };
    let (head, body) = svg.split_once('>').ok_or_else(broken)?;
    let number = |name: &str| {
        let (_, rest) = head.split_once(&format!("{name}=\""))?;
        rest.split_once('"')?.0.parse().ok()
    };
    let size = number("width").zip(number("height")).ok_or_else(broken)?;
    Ok(Some(Drawing { body: body.to_owned(), size, title: plot.title, caption: plot.caption, omitted }))
}

/// All words that get into the drawing, without characters that XML refuses.
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
    /// As part of a page. Title and description are named after `id`, which must be unique in the page.
    pub fn inline(&self, id: &str) -> String {
        let head = format!("role=\"img\" aria-labelledby=\"{id}-title\" aria-describedby=\"{id}-text\"");
        self.svg(&head, &format!("<title id=\"{id}-title\">"), &format!("<desc id=\"{id}-text\">"), "")
    }

    /// As a file of its own, which turns dark by itself.
    pub fn file(&self) -> String {
        let (w, h) = (self.size.0 / 4, self.size.1 / 4);
        let head = format!("xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" role=\"img\"");
        let style = format!("<style>@media screen and (prefers-color-scheme:dark){{{}}}</style>\n", dark_rules(""));
        self.svg(&head, "<title>", "<desc>", &style)
    }

    fn svg(&self, head: &str, title: &str, desc: &str, style: &str) -> String {
        let text = |text: &str| maud::html! { (text) }.into_string();
        let (w, h) = self.size;
        format!(
            "<svg {head} viewBox=\"0 0 {w} {h}\">\n{title}{}</title>\n{desc}{}</desc>\n{style}{}",
            text(&self.title),
            text(&self.caption),
            self.body.trim_start(),
        )
    }
}

/// Style rules that exchange the colours of plots below a selector for those on a dark ground.
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
