//! The texts of one call, from the first batch to the terminal or their file.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Result, bail};
use elf_core::ParamSet;
use elf_train::Comm;
use serde::Serialize;

use super::SampleArgs;
use crate::printing::{note, out};
use crate::progress;
use crate::standard_streams::is_output;
use elf_lm::Fingerprint;
use elf_lm::model::DescribedModel;
use elf_lm::text::text_file::{Unfinished, write_texts};
use elf_lm::{GeneratedText, Generation, TextEvent, TextRequest, TextWatch};

/// How a call came to the end of one of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// All texts are there.
    All,
    /// It was asked to stop, and the same call goes on.
    Interrupted,
}

/// Makes texts: with what there is to keep them in, and whom to tell of their number.
pub type Make<'a> = dyn FnMut(Option<&mut Unfinished>, &mut TextWatch) -> elf_lm::Result<Generation> + 'a;

/// Shows texts or writes them, and keeps them while they are made.
pub struct Writing<'a> {
    args: &'a SampleArgs,
    comm: &'a dyn Comm,
    texts: usize,
    origin: Fingerprint,
    /// Set by Ctrl-C; none where nothing is kept.
    stop: Option<Arc<AtomicBool>>,
    /// Of files that are written: they stay until all are, so that no texts are made anew after an interruption.
    written: Vec<Unfinished>,
    /// Whether the preview of written texts could be printed; files are written whether or not it could.
    shown: Result<()>,
}

impl<'a> Writing<'a> {
    /// For the texts of `requests` from this model.
    ///
    /// # Errors
    /// If the system does not let it listen for Ctrl-C.
    pub fn new(
        args: &'a SampleArgs,
        model: &DescribedModel,
        requests: &[TextRequest],
        comm: &'a dyn Comm,
    ) -> Result<Self> {
        let keeps = args.output.is_some() && comm.world() == 1;
        let origin = [
            ("the version of this program", env!("CARGO_PKG_VERSION").to_owned()),
            ("the model's plan", hash(&model.plan)?),
            // Before the requests, which hold seeds that follow from it.
            ("--seed", args.seed.to_string()),
            ("what is to be generated (--num, --text, --input, --data)", hash(requests)?),
            ("--batch-size", args.batch_size.to_string()),
            ("--ragged", args.ragged.to_string()),
            ("--trace", args.trace.to_string()),
            ("--heads-bf16", args.model.heads_bf16.to_string()),
            ("device or precision", format!("{:?} in {}", model.source().device, model.source().block_precision())),
        ];
        Ok(Self {
            args,
            comm,
            texts: requests.len(),
            origin: origin.into_iter().fold(Fingerprint::default(), |all, (name, value)| all.with(name, value)),
            stop: keeps.then(progress::stop_on_interrupt).transpose()?,
            written: Vec::new(),
            shown: Ok(()),
        })
    }

    /// Notes which parameters the texts are made with.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn made_by<'p>(&mut self, networks: impl Iterator<Item = &'p ParamSet>) -> Result<()> {
        if self.stop.is_none() {
            return Ok(());
        }
        let parameters = networks.map(elf_train::fingerprint).collect::<elf_train::Result<Vec<_>>>()?;
        self.origin = self.origin.clone().with("the model's parameters", parameters.join(" "));
        Ok(())
    }

    /// Has the texts of one setting made, and shows them, or writes them to `output`.
    ///
    /// # Errors
    /// If they cannot be made or written.
    pub fn write(&mut self, name: &str, output: Option<PathBuf>, make: &mut Make) -> Result<Made> {
        let mut kept = match (&output, &self.stop) {
            (Some(path), Some(stop)) => {
                let origin = self.origin.clone().with("the sampling setting", name);
                Unfinished::beside(path, origin, Arc::clone(stop))?
            }
            _ => None,
        };
        let before = kept.as_ref().map_or(0, Unfinished::positions_before);
        if let Some(kept) = kept.as_ref().filter(|_| before > 0) {
            note!("going on with {}", kept.path().display());
        }
        // Rank 0 shows its own part, which is about that of everyone.
        let bar = progress::bar(self.texts as u64 / self.comm.world(), "texts");
        let started = Instant::now();
        let generation = make(kept.as_mut(), &mut |event| {
            if let TextEvent::Finished { done, .. } = event {
                bar.set_position(done as u64);
            }
            ControlFlow::Continue(())
        })?;
        bar.finish_and_clear();
        if let Some(kept) = kept.as_ref().filter(|kept| kept.was_interrupted()) {
            let told =
                format!("interrupted; finished texts are in {}: the same command goes on", kept.path().display());
            if self.args.silent {
                // Whoever called has no use for half of the texts.
                bail!("{told}");
            }
            note!("{told}");
            return Ok(Made::Interrupted);
        }
        if self.comm.rank() > 0 {
            return Ok(Made::All);
        }
        note!("{}", summary(name, &generation, before, started.elapsed().as_secs_f64()));
        let texts = &generation.texts;
        let Some(path) = output else {
            print(&generation, texts)?;
            return Ok(Made::All);
        };
        write_texts(&path, texts)?;
        self.written.extend(kept);
        note!("written to {}", path.display());
        let preview = if self.args.trace || self.args.silent || is_output(&path) { 0 } else { texts.len().min(3) };
        if self.shown.is_ok() && !is_output(&path) {
            self.shown = print(&generation, &texts[..preview]);
        }
        Ok(Made::All)
    }

    /// Removes what was kept of texts that are now all written.
    ///
    /// # Errors
    /// If it cannot be removed, or the texts' preview could not be printed.
    pub fn finish(self) -> Result<ExitCode> {
        self.written.into_iter().try_for_each(Unfinished::remove)?;
        self.shown.map(|()| ExitCode::SUCCESS)
    }
}

/// What a value is known by.
fn hash(value: &(impl Serialize + ?Sized)) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    serde_json::to_writer(&mut hasher, value)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// One line that says what was run and what it cost: passes stand next to every time. Of `before` positions was the cost paid earlier.
fn summary(setting: &str, generation: &Generation, before: u64, seconds: f64) -> String {
    let Generation { texts, cost, .. } = generation;
    let mut line = format!("{setting}: {} texts in {seconds:.1} s", texts.len());
    if before > 0 {
        line.push_str(" and an earlier call");
    }
    let _ = write!(line, "; {cost}, {:.0} positions/s", (cost.positions - before) as f64 / seconds);
    line
}

/// The frames of a trace, then each text, and below it what it was made from and what a good one would be, if there is such a thing.
fn print(generation: &Generation, texts: &[GeneratedText]) -> Result<()> {
    for (t, text) in &generation.frames {
        out!("t = {t:.2}  {text}")?;
    }
    for text in texts {
        out!("[{}] {}", text.index, text.text)?;
        for (what, beside) in [("from", &text.input), ("reference", &text.reference)] {
            if let Some(beside) = beside {
                out!("      {what}: {}", on_one_line(beside))?;
            }
        }
    }
    Ok(())
}

/// The beginning of a text that may be a page long.
fn on_one_line(text: &str) -> String {
    const SHOWN: usize = 200;
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &words[..end]),
        None => words,
    }
}
