//! What a report says, whatever is put into it.

use std::path::Path;

use elf_eval::report::*;

/// Text that would do harm if it were taken for anything but text.
const HOSTILE: &str =
    "</title><script>alert(1)</script> \"'><img src=x onerror=y> & *a* | [l](javascript:x) `c` \u{0}\u{1b}\u{202e}#";

fn hostile() -> Report {
    let words = || HOSTILE.to_owned();
    let cell = || Cell::Text(words());
    let table = Table {
        caption: words(),
        columns: vec![Column::new(HOSTILE).unit(HOSTILE), Column::higher("n").published(HOSTILE)],
        rows: vec![
            Row::new([cell(), cell()]).group(HOSTILE).footnote(0),
            Row::new([cell(), 1.0.into()]).kind(RowKind::Collapsed(words())),
            Row::new([cell(), 2.0.into()]).kind(RowKind::Published(words())),
        ],
        footnotes: vec![words()],
    };
    let series = Series::new(HOSTILE, [Point::new(1.0, 2.0).label(HOSTILE), Point::new(2.0, 3.0).collapsed(true)]);
    let chart = Chart::new(Axis::new(HOSTILE), Axis::log(HOSTILE)).series(series).guide(GuideAxis::Y, 2.5, HOSTILE);
    let bars = BarChart {
        axis: Axis::new(HOSTILE),
        groups: vec![words()],
        series: vec![BarSeries { name: words(), values: vec![Some(1.0.into())], published: Some(words()) }; 2],
    };
    let sample =
        Sample { index: 0, source: Some(words()), reference: Some(words()), outputs: vec![(words(), words())] };
    Report {
        title: words(),
        date: words(),
        summary: vec![words()],
        provenance: Provenance {
            host: words(),
            revision: words(),
            preset: words(),
            command: words(),
            configs: vec![ConfigHash { name: words(), hash: words() }],
            stages: vec![StageCost { name: words(), seconds: 1.0, note: words() }],
            facts: vec![(words(), words())],
        },
        sections: vec![
            Section::new(HOSTILE)
                .heading(HOSTILE)
                .paragraph(HOSTILE)
                .note(HOSTILE)
                .with(Block::Code(words()))
                .with(table)
                .with(Plot::new(HOSTILE, HOSTILE, PlotKind::Scatter(chart.clone())).caption(HOSTILE))
                .with(Plot::new(HOSTILE, HOSTILE, PlotKind::Lines(chart)))
                .with(Plot::new("../../up", HOSTILE, PlotKind::Bars(bars)))
                .with(SampleList { title: words(), picked: words(), samples: vec![sample] }),
        ],
    }
}

/// Tags of a page in order, after checking that every one that is opened is closed in its place.
fn tags(page: &str) -> Vec<String> {
    let void = ["meta", "!doctype", "line", "rect", "circle", "polygon", "polyline"];
    let (mut open, mut all): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut rest = page;
    while let Some((_, after)) = rest.split_once('<') {
        let (tag, after) = after.split_once('>').expect("a tag that does not end");
        rest = after;
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap_or_default().to_lowercase();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "closed before it was opened");
        } else if !void.contains(&name.as_str()) && !tag.ends_with('/') {
            open.push(name.clone());
        }
        all.push(name);
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    all
}

#[test]
fn hostile_text_stays_text() {
    let report = hostile();
    let page = report.to_html();
    let names = tags(&page);
    for forbidden in ["script", "img", "b", "iframe", "link"] {
        assert!(!names.iter().any(|n| n == forbidden), "{forbidden}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    for unfit in ['\u{0}', '\u{1b}', '\u{202e}'] {
        assert!(!page.contains(unfit));
    }
    // Nothing comes from elsewhere, and names are not taken for paths.
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("url("));
    let folder = tempfile::tempdir().unwrap();
    let written = report.write(folder.path()).unwrap();
    let names: Vec<_> = written.plots.iter().map(|p| p.strip_prefix(folder.path()).unwrap().to_owned()).collect();
    let slug = "title-script-alert-1-script-img-src-x-onerror-y-a-l-javascri";
    assert_eq!(
        names,
        [format!("plots/{slug}.svg"), format!("plots/{slug}-2.svg"), "plots/up.svg".into()]
            .map(std::path::PathBuf::from)
    );
    for path in &written.plots {
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(!tags(&svg).iter().any(|n| n == "script" || n == "img"));
        assert!(svg.contains("xmlns=\"http://www.w3.org/2000/svg\""));
    }
    let markdown = std::fs::read_to_string(&written.markdown).unwrap();
    // Outside of code, and without what is escaped, nothing is left that Markdown would act on.
    let mut outside_code: String = markdown.split("```").step_by(2).collect();
    while let Some(at) = outside_code.find('\\') {
        outside_code.replace_range(at..at + 2, "");
    }
    for raw in ["<", " *a* ", "](javascript", "`"] {
        assert!(!outside_code.contains(raw), "{raw}");
    }
}

#[test]
fn an_empty_report_is_a_page_all_the_same() {
    let empty = Report { sections: vec![Section::new("Nothing")], ..Report::default() };
    let page = empty.to_html();
    let names = tags(&page);
    assert!(names.contains(&"h1".to_owned()) && page.contains("Nothing was measured here."));
    assert!(page.contains("Not stated."));
    let folder = tempfile::tempdir().unwrap();
    let written = empty.write(&folder.path().join("new/folder")).unwrap();
    assert!(written.plots.is_empty());
    assert!(std::fs::read_to_string(written.markdown).unwrap().contains("## Nothing"));
}

fn lines(series: impl IntoIterator<Item = Series>) -> Chart {
    Chart { series: series.into_iter().collect(), ..Chart::new(Axis::new("x"), Axis::log("y")) }
}

fn page_of(kind: PlotKind) -> String {
    let report =
        Report { sections: vec![Section::new("s").with(Plot::new("p", "A plot.", kind))], ..Report::default() };
    report.to_html()
}

#[test]
fn plots_of_little_or_of_what_cannot_be_drawn() {
    let kinds: [fn(Chart) -> PlotKind; 2] = [PlotKind::Scatter, PlotKind::Lines];
    for kind in kinds {
        for nothing in
            [lines([]), lines([Series::of("a", [])]), lines([Series::of("a", [(1.0, f64::NAN), (2.0, -1.0)])])]
        {
            let page = page_of(kind(nothing));
            assert!(page.contains("Nothing to draw") && !page.contains("<svg"), "{page}");
        }
        let one = page_of(kind(lines([Series::of("only", [(3.0, 7.0)])])));
        assert!(one.contains("<svg") && one.contains("<circle") && !one.contains("not drawn") && !one.contains("NaN"));
        let most = [(1.0, 2.0), (f64::INFINITY, 2.0), (2.0, 0.0), (3.0, 4.0)];
        let page = page_of(kind(lines([Series::of("most", most)])));
        assert!(page.contains("2 points are not drawn"), "{page}");
    }
    let values = |values: &[Option<f64>]| values.iter().map(|v| v.map(Number::new)).collect();
    let bars = |v: &[Option<f64>]| {
        let series = BarSeries { name: "s".into(), values: values(v), published: None };
        PlotKind::Bars(BarChart { axis: Axis::new("x"), groups: vec!["a".into(), "b".into()], series: vec![series] })
    };
    assert!(page_of(bars(&[None, Some(f64::NAN)])).contains("Nothing to draw"));
    let page = page_of(bars(&[None, Some(-3.0), Some(9.0)]));
    assert!(page.contains("not measured") && page.contains("\u{2212}3"), "{page}");
}

#[test]
fn hundreds_of_series_of_any_size_are_drawn() {
    let many = (0..40).map(|s| {
        Series::of(format!("series {s}"), (0..30).map(|i| (f64::from(i) * 1e300, f64::from(s) * 1e-300 + 1e-308)))
    });
    let page = page_of(PlotKind::Lines(lines(many)));
    assert!(page.contains("series 39") && !page.contains("NaN"));
}

#[test]
fn numbers_that_are_none_are_shown_as_such_and_never_win() {
    let table = Table::new("t", [Column::new("system"), Column::lower("PPL")])
        .row(Row::new(["broken".into(), f64::NAN.into()]))
        .row(Row::new(["fallen".into(), Cell::Number(Number::new(f64::NEG_INFINITY).error(f64::NAN))]))
        .row(Row::new(["good".into(), Number::new(12.0).error(0.5).into()]))
        .row(Row::new(["worse".into(), Number::new(13.0).error(0.5).into()]));
    let report = Report { sections: vec![Section::new("s").with(table)], ..Report::default() };
    let page = report.to_html();
    assert!(page.contains("n/a") && page.contains("\u{2212}∞"));
    assert_eq!(page.matches("<td class=\"number\"><strong>").count(), 1);
    assert!(
        page.contains("<td class=\"number\"><strong>12.0</strong><span class=\"uncertainty\">± 0.5</span></td>"),
        "{page}"
    );
    assert!(report.to_markdown().contains("| good | **12.0** ± 0.5 |"));
}

#[test]
fn the_page_has_what_readers_aloud_need() {
    let page = hostile().to_html();
    assert_eq!(page.matches("<h1>").count(), 1);
    assert!(page.contains("<html lang=\"en\">"));
    // Every drawing has a name and a description that are there, and ids are unique.
    let ids: Vec<&str> = page.split(" id=\"").skip(1).map(|s| s.split('"').next().unwrap()).collect();
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "{ids:?}");
    let mut drawings = 0;
    for part in page.split("<svg ").skip(1) {
        for name in ["aria-labelledby", "aria-describedby"] {
            let id = part.split_once(&format!("{name}=\"")).unwrap().1.split('"').next().unwrap();
            assert!(ids.contains(&id), "{id}");
        }
        drawings += 1;
    }
    assert_eq!(drawings, 3);
    assert_eq!(page.matches("scope=\"row\"").count() > 0, page.contains("<table"));
    // Dark and paper are provided for.
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("@page"));
}

#[test]
// Long because the expected file is written out.
fn the_markdown_is_this() {
    let table = Table::new(
        "Results.",
        [Column::new("system"), Column::higher("BLEU").decimals(1), Column::new("BLEU").published("a paper")],
    )
    .row(Row::new(["ELF".into(), Number::new(26.44).error(0.21).into(), 26.4.into()]))
    .row(Row::new(["AR".into(), 25.0.into(), Cell::Empty]).footnote(0))
    .row(Row::new(["bad".into(), 30.0.into(), Cell::Empty]).kind(RowKind::Collapsed("Collapsed: x.".into())));
    let mut table = table;
    assert_eq!(table.add_footnote("Beam 4."), 0);
    let samples = SampleList {
        title: "Texts".into(),
        picked: "seed 0, sample 0".into(),
        samples: vec![Sample {
            index: 0,
            source: Some("ein\nTest".into()),
            reference: None,
            outputs: vec![("ELF".into(), "a_test".into())],
        }],
    };
    let report = Report {
        title: "T".into(),
        date: "2026-05-31".into(),
        summary: vec!["Short.".into()],
        provenance: Provenance {
            host: "a machine".into(),
            stages: vec![StageCost { name: "train".into(), seconds: 7200.0, note: String::new() }],
            ..Provenance::default()
        },
        sections: vec![Section::new("S").with(table).with(samples)],
    };
    let expected = "\
# T

2026-05-31

Short.

## S

**Results.**

| system | BLEU ↑ | *published:* BLEU \\[2\\] |
| --- | ---: | ---: |
| ELF | **26.4** ± 0.2 | *26.4* |
| AR \\[1\\] | 25.0 |  |
| bad \\[3\\] *(collapsed)* | 30.0 |  |

Bold: the best of the systems compared, collapsed ones left out. ±: standard error.

1. Beam 4.
2. Published: a paper
3. Collapsed: x.

### Texts

*Picked by rule: seed 0, sample 0*

**0**

> *source:* ein\\
> Test
>
> **ELF:** a\\_test

## Where the numbers come from

* host: a machine
* time of all stages: 2.0 h

**Cost of each stage.**

| stage | time | note |
| --- | --- | --- |
| train | 2.0 h |  |
";
    assert_eq!(report.to_markdown(), expected);
}

#[test]
fn a_report_comes_back_from_json_and_misspelt_fields_are_refused() {
    let mut report = hostile();
    report.sections[0].blocks.push(Table::new("t", []).row(Row::new([f64::INFINITY.into()])).into());
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    assert!(serde_json::from_str::<Report>(r#"{"titel": "x"}"#).is_err());
    assert_eq!(serde_json::from_str::<Report>("{}").unwrap(), Report::default());
}

#[test]
fn what_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = Report::default().write(&file).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("file"), "{error}");
}

#[test]
fn samples_of_several_systems_stand_together() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let a = file("a", "{\"prediction\": \"a0\"}\n{\"prediction\": \"a1\"}\n{\"prediction\": \"a2\"}\n");
    let b = file(
        "b",
        &(0..4)
            .map(|i| format!("{{\"prediction\": \"b{i}\", \"input\": \"i{i}\", \"reference\": \"r{i}\"}}\n"))
            .collect::<String>(),
    );
    let systems: [(&str, &Path); 2] = [("A", &a), ("B", &b)];
    let list = SampleList::read("T", "seed 0", &systems, 1..9).unwrap();
    assert_eq!(list.picked, "seed 0, samples 1 to 2");
    let outputs = |i: &str| vec![("A".to_owned(), format!("a{i}")), ("B".to_owned(), format!("b{i}"))];
    let sample = |i: u64| Sample {
        index: i,
        source: Some(format!("i{i}")),
        reference: Some(format!("r{i}")),
        outputs: outputs(&i.to_string()),
    };
    assert_eq!(list.samples[..2], [sample(1), sample(2)]);
    let alone = SampleList::read("T", "seed 0", &systems[..1], 0..1).unwrap();
    assert_eq!((&alone.samples[0].source, &alone.samples[0].reference), (&None, &None));
    assert_eq!(list.samples.len(), 2);
    assert!(SampleList::read("T", "r", &systems, 7..9).unwrap().samples.is_empty());
    assert!(SampleList::read("T", "r", &[("A", Path::new("/none"))], 0..1).is_err());
}
