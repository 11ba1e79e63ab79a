//! A drawing in SVG: colours, sizes and the few kinds of marks that plots are made of.
//!
//! Colours are attributes in the SVG, so that a plot alone looks right anywhere; style sheets may
//! exchange them by attribute, which is how pages turn dark.

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, LabelAreaPosition};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Rectangle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, IntoFont, RGBColor, ShapeStyle, TextStyle};

use super::scale::Scale;

/// Text and marks.
pub const INK: RGBColor = RGBColor(0x1F, 0x29, 0x33);
/// Words of lesser weight.
pub const MUTED: RGBColor = RGBColor(0x5B, 0x66, 0x70);
/// Lines of the grid.
pub const GRID: RGBColor = RGBColor(0xE1, 0xE5, 0xE9);
/// Colours of series, told apart also by the colour-blind (after Okabe and Ito, darkened so that names written in them can be
/// read). A ninth series is drawn in grey, as all after it.
pub const PALETTE: [RGBColor; 8] = [
    RGBColor(0x00, 0x68, 0xA8),
    RGBColor(0xC8, 0x52, 0x00),
    RGBColor(0x00, 0x7F, 0x5C),
    RGBColor(0xA8, 0x33, 0x77),
    RGBColor(0x8F, 0x6A, 0x00),
    RGBColor(0x2B, 0x8F, 0xBF),
    RGBColor(0x7A, 0x4B, 0x2A),
    RGBColor(0x55, 0x46, 0xA8),
];
/// The same colours on a dark ground: ink, muted, grid, then the palette.
pub const DARK: [(RGBColor, &str); 11] = [
    (INK, "#E8ECEF"),
    (MUTED, "#A3AEB8"),
    (GRID, "#353D45"),
    (PALETTE[0], "#5BB0E8"),
    (PALETTE[1], "#F5935A"),
    (PALETTE[2], "#3FC7A0"),
    (PALETTE[3], "#E38ABF"),
    (PALETTE[4], "#DDB740"),
    (PALETTE[5], "#8ED0F0"),
    (PALETTE[6], "#C79A75"),
    (PALETTE[7], "#A99DF0"),
];

/// Size of the words at axes and marks, in pixels.
pub const WORDS: f64 = 12.5;

/// The library counts in whole pixels. So that curves are smooth, it draws four times as large.
const FINE: f64 = 4.0;

/// The colour of the n-th series.
pub fn colour(n: usize) -> RGBColor {
    PALETTE.get(n).copied().unwrap_or(MUTED)
}

/// `#RRGGBB`, as it stands in the SVG.
pub fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

/// How a mark looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Filled, with one shape per series.
    Filled(usize),
    /// An outline only, with one shape per series.
    Hollow(usize),
    /// Crossed out.
    Cross,
}

/// Which end of a text is at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// How a text stands at its place.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// Size in pixels.
    pub size: f64,
    /// Colour.
    pub colour: RGBColor,
    /// Bold.
    pub bold: bool,
    /// Which of its points is at the place.
    pub anchor: Anchor,
}

impl Words {
    /// Plain words that start at their place.
    pub fn new(colour: RGBColor) -> Self {
        Self { size: WORDS, colour, bold: false, anchor: Anchor::Start }
    }
}

/// A frame in which values have places.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Left, upper, right and lower edge in pixels.
    pub edges: [f64; 4],
    /// The horizontal axis.
    pub x: Scale,
    /// The vertical axis.
    pub y: Scale,
}

impl Frame {
    /// Pixels of a place.
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, top, right, bottom] = self.edges;
        let share = |scale: &Scale, place: f64| (place - scale.low) / (scale.high - scale.low);
        (left + share(&self.x, x) * (right - left), bottom - share(&self.y, y) * (bottom - top))
    }
}

/// Which of a frame's axes are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axes {
    /// Both.
    Both,
    /// The horizontal one.
    Horizontal,
}

/// A drawing of a size in pixels. What the library says when it fails is carried along as text.
pub struct Canvas<'a> {
    root: DrawingArea<SVGBackend<'a>, Shift>,
    size: (f64, f64),
}

type Drawn = Result<(), String>;

fn fine((x, y): (f64, f64)) -> (i32, i32) {
    // Saturates where a number is out of range, and is 0 where it is none.
    ((x * FINE).round() as i32, (y * FINE).round() as i32)
}

fn reason(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl<'a> Canvas<'a> {
    /// An empty drawing.
    pub fn new(svg: &'a mut String, (w, h): (f64, f64)) -> Self {
        let (fine_w, fine_h) = fine((w, h));
        let backend = SVGBackend::with_string(svg, (fine_w.unsigned_abs(), fine_h.unsigned_abs()));
        Self { root: backend.into_drawing_area(), size: (w, h) }
    }

    /// Ends the drawing.
    pub fn finish(self) -> Drawn {
        self.root.present().map_err(reason)
    }

    /// Grid, ticks and what is written at them.
    pub fn grid(&self, frame: &Frame, axes: Axes, write: &dyn Fn(f64, usize) -> String) -> Drawn {
        let [left, top, right, bottom] = frame.edges.map(|e| (e * FINE).round() as u32);
        let (w, h) = fine(self.size);
        let mut chart = ChartBuilder::on(&self.root)
            .margin_left(0)
            .margin_top(top)
            .margin_right(w.unsigned_abs().saturating_sub(right))
            .set_label_area_size(LabelAreaPosition::Left, left)
            .set_label_area_size(LabelAreaPosition::Bottom, h.unsigned_abs().saturating_sub(bottom))
            .build_cartesian_2d(frame.x.clone(), frame.y.clone())
            .map_err(reason)?;
        let label = font(WORDS, false).color(&MUTED);
        let written = |scale: &Scale, place: f64| write(scale.value(place), scale.decimals);
        let (x_written, y_written) = (|p: &f64| written(&frame.x, *p), |p: &f64| written(&frame.y, *p));
        let mut mesh = chart.configure_mesh();
        mesh.max_light_lines(0)
            .bold_line_style(stroke(GRID, 1.0))
            .axis_style(stroke(GRID, 1.0))
            .set_tick_mark_size(LabelAreaPosition::Left, (5.0 * FINE) as i32)
            .set_tick_mark_size(LabelAreaPosition::Bottom, (4.0 * FINE) as i32)
            .label_style(label)
            .x_label_formatter(&x_written)
            .y_label_formatter(&y_written);
        if axes == Axes::Horizontal {
            mesh.disable_y_mesh().disable_y_axis().y_labels(0);
        } else {
            mesh.disable_x_mesh();
        }
        mesh.draw().map_err(reason)
    }

    /// A line through points.
    pub fn line(&self, points: &[(f64, f64)], colour: RGBColor, width: f64) -> Drawn {
        let points: Vec<_> = points.iter().map(|p| fine(*p)).collect();
        self.root.draw(&PathElement::new(points, stroke(colour, width))).map_err(reason)
    }

    /// A dashed line through points.
    pub fn dashed(&self, points: &[(f64, f64)], colour: RGBColor, width: f64) -> Drawn {
        const DASH: f64 = 5.0;
        const SPACE: f64 = 4.0;
        let mut gone = 0.0; // how far the dashes have come, carried over corners
        for pair in points.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let length = (x1 - x0).hypot(y1 - y0);
            if length == 0.0 || !length.is_finite() {
                continue;
            }
            let at = |d: f64| (x0 + (x1 - x0) * d / length, y0 + (y1 - y0) * d / length);
            let mut start = -(gone % (DASH + SPACE));
            while start < length {
                let (from, to) = (start.max(0.0), (start + DASH).min(length));
                if to > from {
                    self.line(&[at(from), at(to)], colour, width)?;
                }
                start += DASH + SPACE;
            }
            gone += length;
        }
        Ok(())
    }

    /// A mark at a place.
    pub fn mark(&self, (x, y): (f64, f64), mark: Mark, colour: RGBColor) -> Drawn {
        const R: f64 = 4.5;
        let polygon = |corners: &[(f64, f64)]| -> Vec<(f64, f64)> {
            corners.iter().map(|(dx, dy)| (x + R * dx, y + R * dy)).collect()
        };
        let shape = match mark {
            Mark::Filled(n) | Mark::Hollow(n) => n % 5,
            Mark::Cross => {
                self.line(&polygon(&[(-1.0, -1.0), (1.0, 1.0)]), colour, 2.0)?;
                return self.line(&polygon(&[(-1.0, 1.0), (1.0, -1.0)]), colour, 2.0);
            }
        };
        let filled = matches!(mark, Mark::Filled(_));
        let corners = match shape {
            0 if filled => {
                let r = (R * FINE).round() as i32;
                return self.root.draw(&Circle::new(fine((x, y)), r, colour.filled_style())).map_err(reason);
            }
            0 => {
                let r = (R * FINE).round() as i32;
                return self.root.draw(&Circle::new(fine((x, y)), r, stroke(colour, 1.6))).map_err(reason);
            }
            1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            2 => polygon(&[(0.0, -1.15), (1.1, 0.9), (-1.1, 0.9)]),
            3 => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
            _ => polygon(&[(0.0, 1.15), (1.1, -0.9), (-1.1, -0.9)]),
        };
        if filled {
            let corners: Vec<_> = corners.into_iter().map(fine).collect();
            self.root.draw(&Polygon::new(corners, colour.filled_style())).map_err(reason)
        } else {
            let closed: Vec<_> = corners.iter().chain(corners.first()).copied().collect();
            self.line(&closed, colour, 1.6)
        }
    }

    /// A bar between two corners, filled or as an outline.
    pub fn bar(&self, from: (f64, f64), to: (f64, f64), colour: RGBColor, filled: bool) -> Drawn {
        let style = if filled { colour.filled_style() } else { stroke(colour, 1.4) };
        self.root.draw(&Rectangle::new([fine(from), fine(to)], style)).map_err(reason)
    }

    /// An upright or lying bar of uncertainty with caps.
    pub fn error_bar(&self, from: (f64, f64), to: (f64, f64), colour: RGBColor) -> Drawn {
        const CAP: f64 = 3.5;
        self.line(&[from, to], colour, 1.2)?;
        let upright = (from.0 - to.0).abs() < (from.1 - to.1).abs();
        for (x, y) in [from, to] {
            let (dx, dy) = if upright { (CAP, 0.0) } else { (0.0, CAP) };
            self.line(&[(x - dx, y - dy), (x + dx, y + dy)], colour, 1.2)?;
        }
        Ok(())
    }

    /// Words, their middle at the height of the place.
    pub fn words(&self, text: &str, at: (f64, f64), words: Words) -> Drawn {
        let style = TextStyle::from(font(words.size, words.bold)).color(&words.colour);
        let anchor = match words.anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let style = style.pos(Pos::new(anchor, VPos::Center));
        self.root.draw_text(text, &style, fine(at)).map_err(reason)
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (place - self.low) / (self.high - self.low);
        (f64::from(from) + share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Scale {
    fn format(place: &f64) -> String {
        place.to_string()
    }
}

trait Filled {
    fn filled_style(self) -> ShapeStyle;
}

impl Filled for RGBColor {
    fn filled_style(self) -> ShapeStyle {
        ShapeStyle { color: self.into(), filled: true, stroke_width: 0 }
    }
}

fn stroke(colour: RGBColor, width: f64) -> ShapeStyle {
    ShapeStyle { color: colour.into(), filled: false, stroke_width: (width * FINE).round() as u32 }
}

/// The library's sizes are 1.24 times those in the SVG.
fn font(size: f64, bold: bool) -> plotters::style::FontDesc<'static> {
    let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
    ("sans-serif", size * FINE * 1.24).into_font().style(style)
}
