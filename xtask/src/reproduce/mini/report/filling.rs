//! The section on gaps that models fill in.

use anyhow::Result;
use elf_eval::evaluation::name;
use elf_eval::report::{Axis, Chart, Column, Plot, PlotKind, Point, Row, Section, Series, Table};

use super::figures::{SHOWN, figure};
use crate::reproduce::mini::samplers::Sampler;
use crate::reproduce::mini::settings::{Filler, HIDDEN};
use crate::reproduce::mini::{Mini, names};
use crate::reproduce::results::Results;

/// Figures of filled texts, in the order of the table.
pub const FILLING_METRICS: [&str; 4] = [name::GAP_BLEU, name::GAP_WORDS, name::GEN_PPL, name::ENTROPY];

/// Makes the section.
pub fn filling(mini: &Mini, results: &Results) -> Result<Section> {
    let mut table = Table::new(
        "Test definitions of which a share of the words was hidden, in spans of three words on average, each with the number of tokens that it \
         hides. BLEU: of what is filled in against what was hidden; words right: share of hidden words that are filled in where they stood; \
         Gen. PPL and entropy: of whole texts, by the judge. ± is the standard error over seeds, which hide different words.",
        vec![
            Column::new("system"),
            Column::higher("BLEU in gaps"),
            Column::higher("words right").decimals(3),
            Column::lower("Gen. PPL"),
            Column::new("entropy").decimals(2),
        ],
    );
    for share in HIDDEN {
        for (place, filler) in Filler::ALL.into_iter().enumerate() {
            let evaluation = results.evaluation(&names::filled(filler, share))?;
            let row = Row::of_evaluation(filler.label(), &evaluation, &FILLING_METRICS);
            table.rows.push(if place == 0 { row.group(format!("{:.0}% hidden", 100.0 * share)) } else { row });
        }
    }
    let mut chart = Chart::new(Axis::new("hidden words (%)"), Axis::new("BLEU in gaps"));
    for filler in Filler::ALL {
        let mut points = Vec::new();
        for share in HIDDEN {
            let bleu = results.evaluation(&names::filled(filler, share))?.get(name::GAP_BLEU).cloned();
            points.extend(bleu.map(|bleu| Point::new(100.0 * share, &bleu)));
        }
        chart = chart.series(Series::new(filler.label(), points));
    }
    const READ: f64 = 0.3;
    let shown = Filler::ALL.map(|filler| (names::filled(filler, READ), filler.label()));
    Ok(Section::new("Filling gaps: definitions with hidden words")
        .paragraph(format!(
            "ELF and MDLM go on from the models of definitions above for {} passes, ELF with given tokens in nine of ten rows; a GPT-2 \
             learns it from the start, in as many passes as they took in all, with its best evaluation kept: it reads the text with a mark for each \
             hidden token and then writes these. ELF is sampled with {}; MDLM and GPT-2 at temperature 1, the latter also with the likeliest token each.",
            mini.scale.filling_epochs,
            Sampler::filling(),
        ))
        .with(results.samples("What they fill in (30% hidden)", &shown, SHOWN)?)
        .with(table)
        .with(Plot::new("filling", "BLEU of what is filled in", PlotKind::Lines(chart)).caption("Higher is better.")))
}

/// ELF beside masked diffusion, share by share, in a sentence.
pub fn finding(results: &Results) -> Result<Option<String>> {
    let mut parts = Vec::new();
    for share in HIDDEN {
        let bleu = |filler| {
            Ok::<_, anyhow::Error>(figure(&results.evaluation(&names::filled(filler, share))?, name::GAP_BLEU))
        };
        if let (Some((_, elf)), Some((_, mdlm))) = (bleu(Filler::Elf)?, bleu(Filler::Mdlm)?) {
            parts.push(format!("{elf} and {mdlm} at {:.0}%", 100.0 * share));
        }
    }
    Ok((!parts.is_empty())
        .then(|| format!("Gaps: BLEU of what ELF and MDLM fill in for hidden words: {}.", parts.join("; "))))
}
