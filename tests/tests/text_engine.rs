//! Texts of an engine: each is what it is alone, whoever runs beside it and whenever it joins.

use std::ops::ControlFlow;
use std::path::Path;

use elf_lm::text::text_loop::Frames;
use elf_lm::{
    GenerateOptions, GeneratedText, Model, ModelSource, Sampling, TextEngine, TextEvent, TextId, TextRequest,
};
use tch::Device;

fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name);
    ModelSource::new(folder).device(Device::Cpu).precision(elf_core::Precision::F32).open().unwrap()
}

const INPUTS: [&str; 4] = ["Ein Programm zum Zeichnen", "Bibliothek", "Werkzeug zum Konvertieren von Dateien", "Spiel"];

/// A text that is asked for: the step at which it joins, its request and its setting.
type Asked = (usize, TextRequest, Sampling);

fn options() -> GenerateOptions {
    GenerateOptions { batch_size: 1, one_shape: false, log_probs: true, ..GenerateOptions::default() }
}

fn ignore(_: TextEvent<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// All texts by one engine, in their order.
fn together(engine: &mut TextEngine<'_>, texts: &[(usize, TextId)]) -> Vec<(usize, GeneratedText)> {
    let mut made = Vec::new();
    while engine.rows() > 0 {
        for (id, text) in engine.step().finished {
            let (place, _) = texts.iter().find(|(_, own)| *own == id).unwrap();
            made.push((*place, text.unwrap().texts.remove(0)));
        }
    }
    made.sort_by_key(|(place, _)| *place);
    made
}

fn joining(model: &Model, asked: &[Asked], one_shape: bool) -> Vec<GeneratedText> {
    let mut engine = TextEngine::new(if one_shape { 2 } else { 4 }, one_shape);
    let (mut ids, mut made) = (Vec::new(), Vec::new());
    for step in 0..=asked.iter().map(|(begins, ..)| *begins).max().unwrap() {
        for (place, (begins, request, sampling)) in asked.iter().enumerate() {
            if *begins == step {
                let id = engine.admit(model, request, sampling, &options(), Box::new(ignore)).unwrap();
                ids.push((place, id));
            }
        }
        for (id, text) in engine.step().finished {
            let (place, _) = ids.iter().find(|(_, own)| *own == id).unwrap();
            made.push((*place, text.unwrap().texts.remove(0)));
        }
    }
    made.extend(together(&mut engine, &ids));
    made.sort_by_key(|(place, _)| *place);
    made.into_iter().map(|(_, text)| text).collect()
}

/// The same up to rounding.
fn compare(made: &GeneratedText, alone: &GeneratedText, name: &str) {
    assert_eq!((&made.tokens, &made.text, made.seed), (&alone.tokens, &alone.text, alone.seed), "{name}");
    let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-2;
    let (made, alone) = (made.log_probs.as_ref().unwrap(), alone.log_probs.as_ref().unwrap());
    assert!(made.iter().zip(alone).all(near), "{name}: {made:?} {alone:?}");
}

#[test]
fn a_text_is_the_same_whoever_runs_beside_it_and_whenever_it_joins() {
    for (name, steps) in
        [("mini-de-en", [8, 8, 12, 8]), ("mini-descriptions-blocks", [8, 8, 4, 8]), ("definitions", [6, 6, 4, 9])]
    {
        let model = model(name);
        let asked: Vec<Asked> = (0..4)
            .map(|i| {
                let condition = model.takes_input().then(|| INPUTS[i].to_owned());
                let request = TextRequest { seed: 40 + i as u64, condition, ..TextRequest::default() };
                (3 * i, request, model.sampling().unwrap().steps(steps[i]))
            })
            .collect();
        let alone: Vec<GeneratedText> = asked
            .iter()
            .map(|(_, request, sampling)| {
                let request = std::slice::from_ref(request);
                model.generate_watched(request, sampling, &options(), &mut ignore).unwrap().texts.remove(0)
            })
            .collect();
        let among = joining(&model, &asked, false);
        assert_eq!(among.len(), 4);
        among.iter().zip(&alone).for_each(|(made, alone)| compare(made, alone, name));

        // To the bit, where all passes have one shape.
        let [first, .., last] = &asked[..] else { panic!("four texts") };
        let two = joining(&model, &[first.clone(), last.clone()], true);
        let one = joining(&model, &[(0, last.1.clone(), last.2.clone())], true);
        assert_eq!((&two[1].tokens, &two[1].log_probs), (&one[0].tokens, &one[0].log_probs), "{name}");
    }
}

#[test]
fn candidates_are_rows_of_their_own_and_one_of_them_is_kept() {
    let model = model("definitions");
    let sampling = Sampling { best_of: 3, ..model.sampling().unwrap().steps(4) };
    let request = TextRequest { seed: 3, ..TextRequest::default() };
    let alone = model.generate_watched(std::slice::from_ref(&request), &sampling, &options(), &mut ignore).unwrap();
    let mut engine = TextEngine::new(4, false);
    let id = engine.admit(&model, &request, &sampling, &options(), Box::new(ignore)).unwrap();
    // Candidates of one length share passes.
    assert_eq!(engine.rows(), 3);
    assert!((1..=3).contains(&engine.step().rows));
    let made = together(&mut engine, &[(0, id)]);
    compare(&made[0].1, &alone.texts[0], "best of three");
    // All of them leave with it.
    let id = engine.admit(&model, &request, &sampling, &options(), Box::new(ignore)).unwrap();
    engine.step();
    engine.cancel(id);
    assert_eq!((engine.rows(), engine.step().rows), (0, 0));
}

#[test]
fn a_text_that_fails_or_is_cancelled_leaves_alone_and_frames_are_those_of_its_own() {
    let model = model("mini-de-en");
    let sampling = model.sampling().unwrap().steps(2);
    let request = |text: &str| TextRequest::from_input(7, text);
    let alone = model.generate_watched(&[request(INPUTS[2])], &sampling, &options(), &mut ignore).unwrap();
    let mut engine = TextEngine::new(4, false);
    let shown = GenerateOptions { frames: Frames::EveryStep, ..options() };
    let (sender, frames) = std::sync::mpsc::channel();
    let watch = Box::new(move |event: TextEvent<'_>| {
        if let TextEvent::Frame { rows, .. } = event {
            sender.send(rows.to_vec()).unwrap();
        }
        ControlFlow::Continue(())
    });
    let well = engine.admit(&model, &request(INPUTS[2]), &sampling, &shown, watch).unwrap();
    let empty = engine.admit(&model, &TextRequest::default(), &sampling, &options(), Box::new(ignore)).unwrap();
    let stopped = Box::new(|_: TextEvent<'_>| ControlFlow::Break(()));
    let stopped = engine.admit(&model, &request(INPUTS[1]), &sampling, &options(), stopped).unwrap();
    let mut ended = Vec::new();
    while engine.rows() > 0 {
        ended.extend(engine.step().finished);
    }
    let of = |id: TextId| &ended.iter().find(|(own, _)| *own == id).unwrap().1;
    compare(&of(well).as_ref().unwrap().texts[0], &alone.texts[0], "beside others that end");
    assert!(of(empty).as_ref().unwrap_err().to_string().contains("from an input text"));
    assert!(matches!(of(stopped), Err(elf_lm::Error::Cancelled)));
    let frames: Vec<_> = frames.try_iter().collect();
    assert!(frames.len() > 3 && frames.iter().all(|rows| rows.len() == 1), "{}", frames.len());
    assert_eq!(frames.last().unwrap()[0].text, alone.texts[0].text);
}
