//! A training run on a whole terminal: loss curves, the latest metrics, the newest generated texts.

use std::collections::BTreeMap;
use std::io::{self, Stderr};
use std::time::{Duration, Instant};

use elf_lm::{Event, Events};
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Wrap};
use ratatui::{Frame, Terminal};

use crate::printing::note;

/// Time between two drawings.
const REDRAW: Duration = Duration::from_millis(250);
/// Points of a curve that are kept; of a longer one, every second point is dropped.
const MOST_POINTS: usize = 2000;

/// Draws events on the terminal's other screen. When it is dropped, the screen is as before and the notes are printed.
pub struct TrainingView {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    state: State,
    drawn: Option<Instant>,
}

impl TrainingView {
    /// Takes the terminal over. Ctrl-C goes on to interrupt the run: keys are not read.
    ///
    /// # Errors
    /// If standard error is no terminal that can be drawn on.
    pub fn begin() -> io::Result<Self> {
        let terminal = Terminal::new(CrosstermBackend::new(io::stderr()))?;
        execute!(io::stderr(), EnterAlternateScreen, Hide)?;
        Ok(Self { terminal, state: State::default(), drawn: None })
    }
}

impl Events for TrainingView {
    fn on(&mut self, event: Event<'_>) {
        let at_once = !matches!(event, Event::Progress { .. });
        self.state.take(event);
        if at_once || self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW) {
            // A terminal that went away is no reason to stop training.
            let _ = self.terminal.draw(|frame| self.state.draw(frame));
            self.drawn = Some(Instant::now());
        }
    }
}

impl Drop for TrainingView {
    fn drop(&mut self) {
        let _ = self.terminal.backend_mut().flush();
        let _ = execute!(io::stderr(), LeaveAlternateScreen, Show);
        for line in &self.state.notes {
            note!("{line}");
        }
    }
}

/// What is shown.
#[derive(Debug, Default)]
struct State {
    done: u64,
    total: u64,
    message: String,
    training: Vec<(f64, f64)>,
    held_out: Vec<(f64, f64)>,
    latest: BTreeMap<String, f64>,
    texts: (String, Vec<String>),
    notes: Vec<String>,
}

impl State {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Note(line) => self.notes.extend(line.lines().map(str::to_owned)),
            Event::Warning(line) => self.notes.push(format!("warning: {line}")),
            Event::Started { done, total, .. } => (self.done, self.total) = (done, total),
            Event::Progress { done, message } => {
                self.done = done;
                if let Some(message) = message {
                    message.clone_into(&mut self.message);
                }
            }
            Event::Metrics { step, metrics } => {
                for (name, value) in metrics {
                    match name.as_str() {
                        "loss" => add_point(&mut self.training, step, *value),
                        "validation_loss" => add_point(&mut self.held_out, step, *value),
                        _ => {}
                    }
                    // Bins of time would fill the screen.
                    if !name.contains('@') {
                        self.latest.insert(name.clone(), *value);
                    }
                }
            }
            Event::Texts { step, setting, texts } => {
                self.texts = (format!("{setting}, step {step}"), texts.iter().map(|&text| text.to_owned()).collect());
            }
            _ => {}
        }
    }

    fn draw(&self, frame: &mut Frame) {
        let texts = (self.texts.1.len() as u16).clamp(1, 8) + 2;
        let [bar, middle, samples, notes] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(8),
            Constraint::Length(texts),
            Constraint::Length(5),
        ])
        .areas(frame.area());
        let [curves, figures] = Layout::horizontal([Constraint::Min(30), Constraint::Length(44)]).areas(middle);
        let share = if self.total == 0 { 0.0 } else { (self.done as f64 / self.total as f64).clamp(0.0, 1.0) };
        let label = format!("step {} of {}  {}", self.done, self.total, self.message);
        frame.render_widget(Gauge::default().ratio(share).label(label).gauge_style(Style::new().fg(Color::Blue)), bar);
        self.draw_curves(frame, curves);
        let lines: Vec<Line> = self.latest.iter().map(|(name, value)| format!("{name}: {value:.4}").into()).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("latest")), figures);
        let title = if self.texts.1.is_empty() { "texts: at the next evaluation" } else { self.texts.0.as_str() };
        let lines: Vec<Line> = self.texts.1.iter().map(|text| text.replace('\n', " ").into()).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), samples);
        let last: Vec<Line> = self.notes.iter().rev().take(3).rev().map(|line| line.as_str().into()).collect();
        frame.render_widget(
            Paragraph::new(last).wrap(Wrap { trim: false }).block(Block::bordered().title("notes")),
            notes,
        );
    }

    fn draw_curves(&self, frame: &mut Frame, area: Rect) {
        let all = || self.training.iter().chain(&self.held_out);
        let (last, lowest, highest) = all()
            .fold((1.0f64, f64::INFINITY, f64::NEG_INFINITY), |(x, low, high), point| {
                (x.max(point.0), low.min(point.1), high.max(point.1))
            });
        let first = all().map(|point| point.0).fold(last, f64::min);
        let (lowest, highest) = if lowest < highest { (lowest, highest) } else { (0.0, 1.0) };
        let curve = |name, points, colour| {
            let curve = Dataset::default().name(name).marker(Marker::Braille).graph_type(GraphType::Line);
            curve.style(Style::new().fg(colour)).data(points)
        };
        let curves = vec![
            curve("training", self.training.as_slice(), Color::Cyan),
            curve("held out", self.held_out.as_slice(), Color::Yellow),
        ];
        let across = Axis::default().bounds([first, last]).labels([format!("{first:.0}"), format!("{last:.0}")]);
        let up = Axis::default().bounds([lowest, highest]).labels([format!("{lowest:.3}"), format!("{highest:.3}")]);
        let chart = Chart::new(curves).x_axis(across).y_axis(up).block(Block::bordered().title("loss"));
        frame.render_widget(chart, area);
    }
}

fn add_point(curve: &mut Vec<(f64, f64)>, step: u64, value: f64) {
    if !value.is_finite() {
        return;
    }
    curve.push((step as f64, value));
    if curve.len() > MOST_POINTS {
        let mut keep = false;
        curve.retain(|_| {
            keep = !keep;
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::backend::TestBackend;

    fn screen(state: &State) -> String {
        let mut terminal = Terminal::new(TestBackend::new(110, 30)).unwrap();
        terminal.draw(|frame| state.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn it_shows_curves_figures_and_texts() {
        let mut state = State::default();
        assert!(screen(&state).contains("texts: at the next evaluation"), "{}", screen(&state));
        state.take(Event::Started { unit: "steps", done: 0, total: 40 });
        for step in 1..=20 {
            let metrics = [("loss".to_owned(), 8.0 / step as f64), ("l2@0.3".to_owned(), 1.0)];
            state.take(Event::Metrics { step, metrics: &metrics });
        }
        state.take(Event::Metrics { step: 20, metrics: &[("validation_loss".to_owned(), 0.75)] });
        state.take(Event::Texts { step: 20, setting: "sde-32", texts: &["a round plate", "two\nlines"] });
        state.take(Event::Progress { done: 20, message: Some("loss 0.400") });
        state.take(Event::Note("saved somewhere"));
        let shown = screen(&state);
        for part in
            ["step 20 of 40  loss 0.400", "loss: 0.4000", "validation_loss: 0.7500", "sde-32, step 20", "two lines"]
        {
            assert!(shown.contains(part), "{part}:\n{shown}");
        }
        assert!(shown.contains("8.000") && shown.contains("saved somewhere") && !shown.contains('@'), "{shown}");
        assert!(shown.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)), "no curve is drawn:\n{shown}");
    }

    #[test]
    fn a_long_curve_keeps_its_shape_in_bounded_memory() {
        let mut curve = Vec::new();
        (0..10 * MOST_POINTS as u64).for_each(|step| add_point(&mut curve, step, 1.0));
        add_point(&mut curve, 0, f64::NAN);
        assert!(curve.len() <= MOST_POINTS && curve[0].0 == 0.0 && curve.is_sorted());
    }
}
