//! Reports from plain data: `report.html` and `report.md`.
//!
//! Fill a [`Report`] and [`Report::write`] it. `report.html` is one file that needs no network and no
//! scripts, and suits paper, dark screens and screen readers. `report.md` has the same content, with plots as SVG files in
//! a folder. All text is escaped; numbers need not be finite, series and tables may be empty.
//!
//! The report enforces fair comparisons: rows of collapsed samples, of the data itself and of published numbers are never
//! marked as the best, published columns are set apart with their source, and points that cannot be drawn are counted.
//!
//! ```
//! use elf_eval::report::*;
//!
//! let table = Table::new("Translation.", [Column::new("system"), Column::higher("BLEU")])
//!     .row(Row::new(["ELF".into(), Number::over_seeds(&[26.1, 26.6, 26.4]).into()]))
//!     .row(Row::new(["baseline".into(), Number::new(25.0).interval(24.2, 25.9).into()]));
//! let loss = Chart::new(Axis::new("steps"), Axis::log("loss")).series(Series::of("ELF", [(1.0, 3.0), (2.0, 2.5)]));
//! let report = Report {
//!     title: "Three small tasks".into(),
//!     date: "2026-05-31".into(),
//!     sections: vec![Section::new("Results").with(table).with(Plot::new("loss", "Loss.", PlotKind::Lines(loss)))],
//!     ..Report::default()
//! };
//! let folder = tempfile::tempdir()?;
//! let written = report.write(folder.path())?;
//! assert!(std::fs::read_to_string(written.html)?.contains("Three small tasks"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
mod html;
mod markdown;
mod model;
mod number;
mod plot;
mod table;
mod text;

use std::path::{Path, PathBuf};

pub use model::*;
pub use number::{Number, Uncertainty};

use crate::{Error, Result};
use text::Names;

/// The folder of the plots that `report.md` links to.
const PLOTS: &str = "plots";

/// The files of a written report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The page.
    pub html: PathBuf,
    /// The Markdown.
    pub markdown: PathBuf,
    /// The plots that the Markdown links to.
    pub plots: Vec<PathBuf>,
}

/// A report with its plots drawn and its parts named.
struct Laid<'a> {
    report: &'a Report,
    /// Names of sections, for links.
    sections: Vec<String>,
    plots: Vec<LaidPlot<'a>>,
}

/// A plot, the name of its file, and its drawing if there was anything to draw.
struct LaidPlot<'a> {
    plot: &'a Plot,
    name: String,
    drawing: Option<plot::Drawing>,
}

impl<'a> Laid<'a> {
    fn out(report: &'a Report) -> Self {
        // The name of the last section.
        let mut names = Names::default();
        names.unique("provenance");
        let sections = report.sections.iter().map(|s| names.unique(&s.title)).collect();
        let mut names = Names::default();
        let plots = report.sections.iter().flat_map(|s| &s.blocks).filter_map(|block| match block {
            Block::Plot(plot) => Some(plot),
            _ => None,
        });
        let plots =
            plots.map(|plot| LaidPlot { plot, name: names.unique(&plot.name), drawing: plot::draw(plot) }).collect();
        Self { report, sections, plots }
    }

    /// A plot of this report, by identity: two may be equal.
    fn plot(&self, plot: &Plot) -> Option<&LaidPlot<'a>> {
        self.plots.iter().find(|laid| std::ptr::eq(laid.plot, plot))
    }
}

impl Report {
    /// The self-contained page.
    pub fn to_html(&self) -> String {
        html::page(&Laid::out(self))
    }

    /// The Markdown. Plots are linked as `plots/NAME.svg`.
    pub fn to_markdown(&self) -> String {
        markdown::text(&Laid::out(self), PLOTS)
    }

    /// Writes `report.html`, `report.md` and `plots/NAME.svg` into a folder, which is created if it does not exist. Each
    /// file is written under a temporary name and renamed; existing files are replaced.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<Written> {
        let laid = Laid::out(self);
        let plots_folder = folder.join(PLOTS);
        let drawn: Vec<_> = laid.plots.iter().filter_map(|p| Some((p, p.drawing.as_ref()?))).collect();
        let needed = if drawn.is_empty() { folder } else { &plots_folder };
        std::fs::create_dir_all(needed).map_err(|source| Error::Write { path: needed.into(), source })?;
        let mut plots = Vec::new();
        for (plot, drawing) in drawn {
            let path = plots_folder.join(format!("{}.svg", plot.name));
            write(&path, &drawing.file())?;
            plots.push(path);
        }
        let (html, markdown) = (folder.join("report.html"), folder.join("report.md"));
        write(&markdown, &markdown::text(&laid, PLOTS))?;
        write(&html, &html::page(&laid))?;
        Ok(Written { html, markdown, plots })
    }
}

fn write(path: &Path, content: &str) -> Result<()> {
    elf_files::write(path, content).map_err(|source| Error::Write { path: path.into(), source })
}

/// Facts about the run, name and value.
fn facts(of: &Provenance) -> Vec<(String, String)> {
    let named = [("preset", &of.preset), ("revision", &of.revision), ("host", &of.host)];
    let named = named.into_iter().filter(|(_, value)| !value.is_empty());
    let mut facts: Vec<_> = named.map(|(name, value)| (name.to_owned(), value.clone())).collect();
    facts.extend(of.facts.iter().cloned());
    if !of.stages.is_empty() {
        let total = of.stages.iter().map(|s| s.seconds).filter(|s| s.is_finite()).sum();
        facts.push(("time of all stages".into(), html::duration(total)));
    }
    facts
}

/// Costs as a table.
fn costs(stages: &[StageCost]) -> Table {
    let columns = [Column::new("stage"), Column::new("time"), Column::new("note")];
    let rows = stages
        .iter()
        .map(|s| Row::new([s.name.as_str().into(), html::duration(s.seconds).into(), s.note.as_str().into()]));
    Table { rows: rows.collect(), ..Table::new("Cost of each stage.", columns) }
}

/// Configurations as a table.
fn config_table(configs: &[ConfigHash]) -> Table {
    let rows = configs.iter().map(|c| Row::new([c.name.as_str().into(), c.hash.as_str().into()]));
    Table {
        rows: rows.collect(),
        ..Table::new("Configurations by content.", ["configuration", "hash"].map(Column::new))
    }
}
