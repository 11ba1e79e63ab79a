//! Renders a report with every kind of content, to be looked at: `cargo run -p elf-eval --example report [FOLDER]`.
//!
//! All numbers and texts in it are made up.

use std::path::PathBuf;

use elf_eval::report::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| std::env::temp_dir().join("elf-report"), PathBuf::from);
    let written = report().write(&folder)?;
    println!("{}\n{}", written.html.display(), written.markdown.display());
    Ok(())
}

fn report() -> Report {
    Report {
        title: "An example of a report: three small tasks".into(),
        date: "2026-05-31".into(),
        summary: vec![
            "All numbers and texts of this page are made up. They show what a report looks like when a run went well, when \
             a system collapsed, and when something was not measured."
                .into(),
            "ELF writes package descriptions at the data's entropy with a lower generative perplexity than masked diffusion \
             at the same number of steps. On translation it is behind the autoregressive baseline with a beam of four."
                .into(),
        ],
        provenance: Provenance {
            host: "2 cores (Intel Xeon, AMX), 16 GiB, no GPU".into(),
            revision: "0f3c2e1 (clean)".into(),
            preset: "mini".into(),
            command: "cargo xtask reproduce mini".into(),
            configs: [("definitions.yml", "9b1c0e5d7a4f"), ("de-en.yml", "17f0a9c2be33")]
                .map(|(name, hash)| ConfigHash { name: name.into(), hash: hash.into() })
                .into(),
            stages: [
                ("encoder", 5140.0, "T5 span corruption, 20 000 steps"),
                ("descriptions", 12875.0, "3 seeds, 30 epochs each"),
                ("judge", 0.4, "taken over: its inputs are as they were"),
                ("evaluation", 412.0, ""),
            ]
            .map(|(name, seconds, note)| StageCost { name: name.into(), seconds, note: note.into() })
            .into(),
            facts: vec![("threads".into(), "2".into())],
        },
        sections: vec![unconditional(), translation(), ablations()],
    }
}

fn unconditional() -> Section {
    let texts = [
        "library for reading and writing compressed archives - development files",
        "command line tool that renames many files at once",
        "small window manager with <b>tiled</b> windows & few dependencies",
        "",
    ];
    let samples = SampleList {
        title: "Samples of ELF, SDE, 32 steps".into(),
        picked: "seed 0, samples 0 to 3".into(),
        samples: (0..)
            .zip(texts)
            .map(|(index, text)| Sample { index, outputs: vec![(String::new(), text.into())], ..Sample::default() })
            .collect(),
    };
    Section::new("Descriptions")
        .paragraph("Perplexity is only comparable at equal entropy; the frontier shows both.")
        .with(systems())
        .with(Plot::new("frontier", "Perplexity against entropy.", PlotKind::Scatter(frontier())).caption(
            "Numbers at the marks are steps; bars are standard errors over three seeds. Lower is better along the dashed line at the data's entropy.",
        ))
        .with(Plot::new("loss", "Loss on held-out rows.", PlotKind::Lines(loss())).caption("One line per seed; the random encoder stays behind."))
        .with(samples)
}

fn systems() -> Table {
    let systems = Table::new(
        "Descriptions without a condition: 1,000 samples of 64 tokens for each of three seeds.",
        [
            Column::new("system"),
            Column::new("steps"),
            Column::lower("Gen. PPL"),
            Column::new("entropy").unit("nats"),
            Column::higher("distinct-2"),
            Column::lower("exact copies").unit("%"),
            Column::lower("Gen. PPL").published("a made-up paper, Table 1: another task, for orientation only"),
        ],
    );
    let row =
        |name: &str, steps: f64, ppl: [f64; 3], entropy: [f64; 3], distinct: f64, copies: f64, theirs: Option<f64>| {
            Row::new([
                name.into(),
                steps.into(),
                Number::over_seeds(&ppl).into(),
                Number::over_seeds(&entropy).into(),
                Number::new(distinct).interval(distinct - 0.011, distinct + 0.012).into(),
                copies.into(),
                theirs.into(),
            ])
        };
    let mut systems = systems
        .row(Row::new(["test split".into(), Cell::Empty, 31.2.into(), 3.412.into(), 0.712.into(), 0.4.into()]).kind(RowKind::Reference))
        .row(row("ELF, SDE", 32.0, [44.1, 45.0, 43.2], [3.39, 3.40, 3.37], 0.684, 0.6, Some(24.1)).group("Embedded flows"))
        .row(row("ELF, ODE", 32.0, [51.8, 50.3, 52.9], [3.43, 3.41, 3.44], 0.701, 0.4, None))
        .row(row("MDLM", 32.0, [71.0, 68.2, 74.9], [3.45, 3.46, 3.42], 0.723, 0.3, Some(43.5)).group("Baselines"))
        .row(row("Autoregressive", 64.0, [39.9, 40.8, 40.1], [3.36, 3.38, 3.37], 0.661, 1.1, None))
        .row(
            row("ELF, SDE, guidance 5", 32.0, [12.4, 11.8, 12.9], [2.61, 2.55, 2.70], 0.302, 0.2, None)
                .group("Settings that went wrong")
                .kind(RowKind::Collapsed("Collapsed: entropy 2.620 nats, 23.2% under the 3.412 of the references. Gen. PPL 12.4 at less entropy than the data has counts as no win.".into())),
        )
        .row(row("ELF, diverged", 32.0, [f64::NAN; 3], [f64::NAN; 3], f64::NAN, f64::NAN, None));
    let note = systems.add_footnote("Training stopped at step 3,100: the loss was no number.");
    if let Some(last) = systems.rows.last_mut() {
        last.footnote = Some(note);
    }
    systems
}

fn frontier() -> Chart {
    let at = |ppl: f64, error: f64, entropy: f64, steps: &str| {
        Point::new(entropy, Number::new(ppl).error(error)).label(steps)
    };
    Chart::new(Axis::new("entropy (nats)"), Axis::log("Gen. PPL"))
        .series(Series::new(
            "ELF, SDE",
            [
                at(118.0, 5.0, 3.52, "4"),
                at(74.0, 3.0, 3.46, "8"),
                at(53.0, 1.4, 3.42, "16"),
                at(44.0, 0.6, 3.39, "32"),
                at(40.0, 0.7, 3.33, "64"),
            ],
        ))
        .series(Series::new(
            "ELF, ODE",
            [
                at(150.0, 6.0, 3.56, "4"),
                at(88.0, 2.5, 3.49, "8"),
                at(61.0, 1.6, 3.45, "16"),
                at(51.7, 0.8, 3.43, "32"),
                at(50.0, 0.7, 3.43, "64"),
            ],
        ))
        .series(Series::new(
            "MDLM",
            [
                at(240.0, 9.0, 3.60, "8"),
                at(120.0, 4.0, 3.51, "16"),
                at(71.0, 2.0, 3.44, "32"),
                at(62.0, 2.0, 3.43, "64"),
            ],
        ))
        .series(Series::new("ELF, guidance 5", [at(12.4, 0.4, 2.95, "32").collapsed(true)]))
        .guide(GuideAxis::X, 3.412, "the data")
        .guide(GuideAxis::X, 0.95 * 3.412, "5% under")
}

fn loss() -> Chart {
    let curve = |end: f64, speed: f64, noise: f64| {
        (1..=400).map(move |i| {
            let step = f64::from(i) * 75.0;
            let wobble = noise * ((f64::from(i) * 12.9898).sin() * 43758.547).fract();
            (step, end + 4.2 * (-speed * step / 9000.0).exp() + wobble)
        })
    };
    Chart::new(Axis::new("optimiser steps"), Axis::new("validation cross-entropy (nats)"))
        .series(Series::of("seed 0", curve(2.10, 1.3, 0.05)))
        .series(Series::of("seed 1", curve(2.12, 1.2, 0.05)))
        .series(Series::of("random encoder", curve(2.9, 0.8, 0.06)))
        .series(Series::of("diverged", curve(2.0, 1.3, 0.3).take(42)))
}

fn translation() -> Section {
    let table = Table::new(
        "German to English: BLEU on the test split.",
        [
            Column::new("system"),
            Column::higher("BLEU"),
            Column::higher("ROUGE-L"),
            Column::higher("BLEU").published("a made-up paper, Table 6"),
        ],
    );
    let row = |name: &str, bleu: f64, rouge: f64, theirs: Option<f64>| {
        let around = |v: f64| Number::new(v).interval(v - 1.2, v + 1.3);
        Row::new([name.into(), around(bleu).into(), around(rouge).into(), theirs.into()])
    };
    let table = table
        .row(row("ELF", 21.7, 48.3, Some(26.4)))
        .row(row("Autoregressive, beam 1", 20.9, 47.7, Some(26.8)))
        .row(row("Autoregressive, beam 4", 22.4, 48.3, None))
        .row(row("MDLM", 14.2, 39.0, Some(18.4)))
        .row(
            Row::new(["somebody else's".into(), Cell::Empty, Cell::Empty, 24.8.into()])
                .kind(RowKind::Published("another made-up paper".into())),
        );
    let series = |name: &str, values: [f64; 5]| {
        let steps = [4.0, 8.0, 16.0, 32.0, 64.0];
        Series::new(name, steps.into_iter().zip(values).map(|(x, y)| Point::new(x, Number::new(y).error(0.4))))
    };
    let steps = Chart::new(Axis::log("steps"), Axis::new("BLEU"))
        .series(series("ELF, SDE", [17.0, 19.8, 21.2, 21.7, 21.8]))
        .series(series("ELF, ODE", [18.1, 20.2, 21.0, 21.3, 21.3]))
        .series(series("MDLM", [6.0, 10.1, 12.9, 14.2, 14.9]))
        .series(series("a paper", [22.0, 24.9, 26.0, 26.4, 26.4]).published("a made-up paper"));
    let sample = Sample {
        index: 0,
        source: Some("Eine kleine Bibliothek zum Lesen von Archiven, die größer als der Arbeitsspeicher sind".into()),
        reference: Some("a small library for reading archives larger than memory".into()),
        outputs: vec![
            ("ELF".into(), "small library for reading archives that are larger than memory".into()),
            ("Autoregressive, beam 4".into(), "a small library to read archives which are larger".into()),
        ],
    };
    Section::new("Translation")
        .note("The autoregressive baseline with a beam of four is better by 0.7 BLEU; the intervals overlap.")
        .with(table)
        .with(
            Plot::new("steps", "Quality against steps.", PlotKind::Lines(steps))
                .caption("Dashed and hollow: published, on another data set."),
        )
        .with(SampleList {
            title: "Translations".into(),
            picked: "test split, rows 0 and 1".into(),
            samples: vec![sample.clone(), Sample { index: 1, ..sample }],
        })
}

fn ablations() -> Section {
    let names = [
        "pre-trained encoder",
        "learnable embeddings",
        "token table",
        "random encoder",
        "v-prediction",
        "a name so long that nobody could want it in a plot",
    ];
    let values = |values: [Option<f64>; 6]| values.map(|v| v.map(|v| Number::new(v).error(0.05 * v))).to_vec();
    let bars = BarChart {
        axis: Axis::new("Gen. PPL (lower is better)"),
        groups: names.map(str::to_owned).to_vec(),
        series: vec![
            BarSeries {
                name: "8 steps".into(),
                values: values([Some(74.0), Some(99.0), Some(120.0), Some(310.0), Some(140.0), None]),
                published: None,
            },
            BarSeries {
                name: "32 steps".into(),
                values: values([Some(44.0), Some(61.0), Some(70.0), Some(240.0), Some(92.0), Some(50.0)]),
                published: None,
            },
        ],
    };
    let one = Chart::new(Axis::log("batch size"), Axis::new("texts per second"))
        .series(Series::of("one point only", [(32.0, 18.5)]));
    let nothing = Chart::new(Axis::new("gamma"), Axis::new("Gen. PPL")).series(Series::of("ELF", [(1.0, f64::NAN)]));
    Section::new("Ablations")
        .with(
            Plot::new("ablations", "What matters.", PlotKind::Bars(bars))
                .caption("Bars of uncertainty are standard errors over three seeds."),
        )
        .heading("When little was measured")
        .with(Plot::new("one", "A single point.", PlotKind::Lines(one)))
        .with(Plot::new("nothing", "No point at all.", PlotKind::Scatter(nothing)))
        .with(Table::new("A table that is empty.", [Column::new("system"), Column::higher("BLEU")]))
        .with(Block::Code("elf eval --samples samples.jsonl --judge judge/ --bootstrap 1000 -o evaluation.json".into()))
}
