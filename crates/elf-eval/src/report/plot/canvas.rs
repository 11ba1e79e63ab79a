//! An SVG drawing: colours, sizes and marks.
//!
//! Colours are attributes in the SVG, so that a plot alone looks right anywhere; style sheets may
//! replace them by attribute for dark pages.

use std::fmt::Write as _;

use super::scale::Scale;

/// A colour: red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(u8, u8, u8);

/// Text and marks.
pub const INK: Colour = Colour(0x1F, 0x29, 0x33);
/// Secondary text.
pub const MUTED: Colour = Colour(0x5B, 0x66, 0x70);
/// Lines of the grid.
pub const GRID: Colour = Colour(0xE1, 0xE5, 0xE9);
/// Colours of series that colour-blind readers can distinguish (after Okabe and Ito, darkened so that text in them is
/// readable). The ninth and later series are grey.
pub const PALETTE: [Colour; 8] = [
    Colour(0x00, 0x68, 0xA8),
    Colour(0xC8, 0x52, 0x00),
    Colour(0x00, 0x7F, 0x5C),
    Colour(0xA8, 0x33, 0x77),
    Colour(0x8F, 0x6A, 0x00),
    Colour(0x2B, 0x8F, 0xBF),
    Colour(0x7A, 0x4B, 0x2A),
    Colour(0x55, 0x46, 0xA8),
];
/// The same colours on a dark ground: ink, muted, grid, then the palette.
pub const DARK: [(Colour, &str); 11] = [
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

/// Size of text at axes and marks, in pixels.
pub const WORDS: f64 = 12.5;

/// The colour of the n-th series.
pub fn colour(n: usize) -> Colour {
    PALETTE.get(n).copied().unwrap_or(MUTED)
}

/// `#RRGGBB`, as in the SVG.
pub fn hex(colour: Colour) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

/// The look of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Filled, with one shape per series.
    Filled(usize),
    /// An outline only, with one shape per series.
    Hollow(usize),
    /// Crossed out.
    Cross,
}

/// The point of a text that is at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// The style of a text.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// Size in pixels.
    pub size: f64,
    /// Colour.
    pub colour: Colour,
    /// Bold.
    pub bold: bool,
    /// The point that is at the place.
    pub anchor: Anchor,
}

impl Words {
    /// Plain text that starts at its place.
    pub fn new(colour: Colour) -> Self {
        Self { size: WORDS, colour, bold: false, anchor: Anchor::Start }
    }
}

/// A frame that maps values to pixels.
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

/// The axes of a frame that are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axes {
    /// Both.
    Both,
    /// The horizontal one.
    Horizontal,
}

/// A drawing of a size in pixels.
pub struct Canvas {
    svg: String,
    size: (f64, f64),
}

/// A coordinate or length with at most two decimals.
fn px(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn points(points: &[(f64, f64)]) -> String {
    points.iter().map(|(x, y)| format!("{},{}", px(*x), px(*y))).collect::<Vec<_>>().join(" ")
}

/// Attributes of a filled shape.
fn fill(colour: Colour) -> String {
    format!("fill=\"{}\"", hex(colour))
}

/// Attributes of a line or an outline.
fn stroke(colour: Colour, width: f64) -> String {
    format!("fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"", hex(colour), px(width))
}

impl Canvas {
    /// An empty drawing.
    pub fn new(size: (f64, f64)) -> Self {
        Self { svg: String::new(), size }
    }

    /// The elements of the SVG, and its width and height.
    pub fn finish(self) -> (String, (f64, f64)) {
        (self.svg, self.size)
    }

    fn add(&mut self, element: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.svg, "{element}");
    }

    /// Grid, ticks and their labels.
    pub fn grid(&mut self, frame: &Frame, axes: Axes, write: &dyn Fn(f64, usize) -> String) {
        const TICK: f64 = 4.5;
        let [left, top, right, bottom] = frame.edges;
        let label = |scale: &Scale, place: f64| write(scale.value(place), scale.decimals);
        if axes == Axes::Both {
            for &place in &frame.y.ticks {
                let (_, y) = frame.at(frame.x.low, place);
                self.line(&[(left - TICK, y), (right, y)], GRID, 1.0);
                let end = Words { anchor: Anchor::End, ..Words::new(MUTED) };
                self.words(&label(&frame.y, place), (left - TICK - 4.0, y), end);
            }
            self.line(&[(left, top), (left, bottom)], GRID, 1.0);
        }
        for &place in &frame.x.ticks {
            let (x, _) = frame.at(place, frame.y.low);
            let from = if axes == Axes::Horizontal { top } else { bottom };
            self.line(&[(x, from), (x, bottom + TICK)], GRID, 1.0);
            let middle = Words { anchor: Anchor::Middle, ..Words::new(MUTED) };
            self.words(&label(&frame.x, place), (x, bottom + TICK + 10.0), middle);
        }
        self.line(&[(left, bottom), (right, bottom)], GRID, 1.0);
    }

    /// A line through points.
    pub fn line(&mut self, line: &[(f64, f64)], colour: Colour, width: f64) {
        self.add(format_args!("<polyline {} points=\"{}\"/>", stroke(colour, width), points(line)));
    }

    /// A dashed line through points.
    pub fn dashed(&mut self, line: &[(f64, f64)], colour: Colour, width: f64) {
        let stroke = stroke(colour, width);
        self.add(format_args!("<polyline {stroke} stroke-dasharray=\"5 4\" points=\"{}\"/>", points(line)));
    }

    /// A mark at a place.
    pub fn mark(&mut self, (x, y): (f64, f64), mark: Mark, colour: Colour) {
        const R: f64 = 4.5;
        let polygon = |corners: &[(f64, f64)]| -> Vec<(f64, f64)> {
            corners.iter().map(|(dx, dy)| (x + R * dx, y + R * dy)).collect()
        };
        let (shape, style) = match mark {
            Mark::Filled(n) => (n % 5, fill(colour)),
            Mark::Hollow(n) => (n % 5, stroke(colour, 1.6)),
            Mark::Cross => {
                self.line(&polygon(&[(-1.0, -1.0), (1.0, 1.0)]), colour, 2.0);
                return self.line(&polygon(&[(-1.0, 1.0), (1.0, -1.0)]), colour, 2.0);
            }
        };
        let corners = match shape {
            0 => return self.add(format_args!("<circle {style} cx=\"{}\" cy=\"{}\" r=\"{}\"/>", px(x), px(y), px(R))),
            1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            2 => polygon(&[(0.0, -1.15), (1.1, 0.9), (-1.1, 0.9)]),
            3 => polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
            _ => polygon(&[(0.0, 1.15), (1.1, -0.9), (-1.1, -0.9)]),
        };
        self.add(format_args!("<polygon {style} points=\"{}\"/>", points(&corners)));
    }

    /// A bar between its upper left and lower right corners, filled or as an outline.
    pub fn bar(&mut self, (x, y): (f64, f64), (right, bottom): (f64, f64), colour: Colour, filled: bool) {
        let style = if filled { fill(colour) } else { stroke(colour, 1.4) };
        let (w, h) = (px(right - x), px(bottom - y));
        self.add(format_args!("<rect {style} x=\"{}\" y=\"{}\" width=\"{w}\" height=\"{h}\"/>", px(x), px(y)));
    }

    /// A vertical or horizontal error bar with caps.
    pub fn error_bar(&mut self, from: (f64, f64), to: (f64, f64), colour: Colour) {
        const CAP: f64 = 3.5;
        self.line(&[from, to], colour, 1.2);
        let upright = (from.0 - to.0).abs() < (from.1 - to.1).abs();
        for (x, y) in [from, to] {
            let (dx, dy) = if upright { (CAP, 0.0) } else { (0.0, CAP) };
            self.line(&[(x - dx, y - dy), (x + dx, y + dy)], colour, 1.2);
        }
    }

    /// Text, vertically centred at the place.
    pub fn words(&mut self, text: &str, (x, y): (f64, f64), words: Words) {
        let anchor = match words.anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if words.bold { " font-weight=\"bold\"" } else { "" };
        let text = maud::html! { (text) }.into_string();
        self.add(format_args!(
            "<text {} x=\"{}\" y=\"{}\" dy=\"0.35em\" text-anchor=\"{anchor}\" font-family=\"sans-serif\" \
             font-size=\"{}\"{weight}>{text}</text>",
            fill(words.colour),
            px(x),
            px(y),
            px(words.size),
        ));
    }
}
