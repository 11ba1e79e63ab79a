//! Texts with gaps.

mod tiny_run;

use std::fs;

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{FILLING, Materials, copy, elf, json_lines, run, within};

/// What `elf infill` writes for these words of its command line.
fn filled(words: &[&str]) -> Vec<Value> {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "texts.jsonl");
    run(elf(&[&["infill"], words, &["-o", &output]].concat())).well();
    json_lines(&output)
}

fn text<'t>(line: &'t Value, field: &str) -> &'t str {
    line[field].as_str().unwrap()
}

fn list(line: &Value, field: &str) -> Vec<String> {
    line[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// Every given word stands where it stood, for all kinds of models that fill gaps, whatever they have learned.
#[test]
fn given_words_stay_where_they_are() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let [flow, masked, gpt2] = ["flow", "masked", "gpt2"].map(|name| within(&folder, name));
    materials.train(&flow, &FILLING).well();
    materials.train(&masked, &["objective=mdlm", "pad_token=pad", "group_by_length=true"]).well();
    materials.train(&gpt2, &[&FILLING[..], &["objective=gpt2"]].concat()).well();
    let templates = ["A red [...] finds the [2]", "[3] the old dog", "A [...] dog [1] the [...] house"];
    for model in [&flow, &masked, &gpt2] {
        let steps = if *model == gpt2 { &[][..] } else { &["--steps", "3"] };
        let filled = |words: &[&str]| filled(&[&[model.as_str()], words, steps].concat());
        let lines = filled(&templates);
        let texts: Vec<&str> = lines.iter().map(|line| text(line, "prediction")).collect();
        assert_eq!(lines.iter().map(|line| text(line, "input")).collect::<Vec<_>>(), templates);
        assert!(texts[0].starts_with("A red") && texts[0].contains("finds the"), "{texts:?}");
        assert!(texts[1].ends_with("the old dog"), "{texts:?}");
        assert!(texts[2].starts_with('A') && texts[2].ends_with("house"), "{texts:?}");
        let gaps: Vec<usize> = lines.iter().map(|line| list(line, "filled").len()).collect();
        assert_eq!(gaps, [2, 1, 3]);
        // As many tokens as asked for, and none of them the end of the text.
        let given = filled(&["A red dog finds the [2]"]);
        let tokens = given[0]["tokens"].as_array().unwrap();
        let alone = filled(&["A red dog finds the [4]"]);
        assert_eq!(alone[0]["tokens"].as_array().unwrap().len(), tokens.len() + 2);
        // A text depends on its own gaps alone.
        let first = filled(&[templates[0]]);
        assert_eq!(first[0], lines[0]);
        let other = filled(&[templates[0], "--seed", "5"]);
        assert_ne!(other[0]["seed"], lines[0]["seed"]);
    }
    // Stored as 8-bit integers.
    let small = within(&folder, "small");
    run(elf(&["export", &flow, &small, "--dtype", "int8", "--encoder", &materials.path("encoder")])).well();
    let size = |model: &str| fs::metadata(format!("{model}/model.safetensors")).unwrap().len();
    let exported = within(&folder, "exported");
    run(elf(&["export", &flow, &exported])).well();
    assert!(size(&small) < 4 * size(&exported) / 5);
    let lines = filled(&[&small, templates[0], "--steps", "3"]);
    assert!(text(&lines[0], "prediction").starts_with("A red"));
    // A GPT-2 also writes whole texts, and learned to end them.
    run(elf(&["sample", &gpt2, "-n", "3"])).well();
    run(elf(&["infill", &flow, "A [...] dog", "--steps", "2", "--trace"])).well();
    let best = filled(&[&flow, "A [...] dog", "--steps", "2", "--best-of", "3"]);
    assert!(text(&best[0], "prediction").ends_with("dog"));
}

/// A model of whole words writes these around given ones that it does not know as words.
#[test]
fn gaps_are_filled_with_whole_words() {
    let folder = TempDir::new().unwrap();
    let definitions = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/definitions");
    let model = within(&folder, "definitions");
    copy(definitions.as_ref(), model.as_ref());
    // The same network with the claim that it has learned it.
    let config = fs::read_to_string(within(&folder, "definitions/config.yml")).unwrap();
    let claim = "given_spans_prob: 0.5\ndecoder_clean_condition: true\n";
    fs::write(within(&folder, "definitions/config.yml"), config + claim).unwrap();
    let words = fs::read_to_string(within(&folder, "definitions/words.txt")).unwrap();
    let known: std::collections::BTreeSet<&str> =
        words.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let encoder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/minilm-l3");
    let lines = filled(&[&model, "--encoder", encoder, "the xqzw of [3] in a [...] houseboatish", "--steps", "4"]);
    let prediction = text(&lines[0], "prediction");
    assert!(prediction.starts_with("the xqzw of ") && prediction.ends_with(" houseboatish"), "{prediction}");
    for word in list(&lines[0], "filled").iter().flat_map(|gap| gap.split_whitespace()) {
        let plain: String = word.chars().filter(|c| c.is_alphanumeric()).collect();
        assert!(plain.is_empty() || known.contains(plain.as_str()) || known.contains(word), "{word}");
    }
}

/// Hidden words are compared with what stands in their place.
#[test]
fn what_was_hidden_can_be_evaluated() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let [model, output] = ["model", "texts.jsonl"].map(|name| within(&folder, name));
    materials.train(&model, &FILLING).well();
    let corpus = materials.path("corpus.jsonl");
    let hiding = ["infill", &model, "--input", &corpus, "--limit", "12", "--hide", "0.4", "--steps", "2"];
    run(elf(&[&hiding[..], &["-o", &output]].concat())).well();
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 12);
    for line in &lines {
        let (filled, hidden) = (list(line, "filled"), list(line, "hidden"));
        assert_eq!(filled.len(), hidden.len());
        // Three of seven words.
        assert_eq!(hidden.iter().map(|gap| gap.split_whitespace().count()).sum::<usize>(), 3, "{line}");
        let marks = text(line, "input").matches('[').count();
        assert_eq!(marks, hidden.len(), "{line}");
    }
    let found = run(elf(&["eval", "--samples", &output])).well().out;
    assert!(found.contains("BLEU in gaps") && found.contains("Words right in gaps"), "{found}");
}

#[test]
fn what_cannot_be_filled_is_told() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let [model, other] = ["model", "other"].map(|name| within(&folder, name));
    materials.train(&model, &FILLING).well();
    let refused = |words: &[&str], told: &[&str]| {
        run(elf(&[&["infill", &model, "--steps", "1"], words].concat())).badly(told);
    };
    refused(&[], &["no text to fill in", "--input"]);
    refused(&["A dog"], &["text 1", "no gap"]);
    refused(&["A [2] dog", "[...]"], &["text 2", "no word is given"]);
    refused(&["A [two] dog"], &["[two]"]);
    refused(&["A [2 dog"], &["does not end"]);
    refused(&["A [0] dog"], &["0 tokens"]);
    refused(&["A [40] dog"], &["at least", "at most 12"]);
    refused(&["A dog", "--replace", "cat"], &["`cat`"]);
    refused(&["A dog", "--keep", "("], &["--keep"]);
    refused(&["A dog", "--keep", "cat"], &["cat"]);
    refused(&["A dog", "--hide", "1"], &["--hide"]);
    refused(&["A [2] dog", "--replace", "dog", "--hide", "0.5"], &["cannot be used with"]);
    refused(&["dog", "--hide", "0.5"], &["single word"]);
    // Models that have not learned it.
    run(elf(&["infill", &materials.path("run"), "A [...] dog"])).badly(&["cannot fill gaps", "given_spans_prob"]);
    let translation = Materials::translation();
    run(elf(&["infill", &translation.path("run"), "A [...] dog"])).badly(&["cannot fill gaps", "input text"]);
    materials.train(&other, &["objective=gpt2", "pad_token=pad", "max_steps=1"]).well();
    run(elf(&["infill", &other, "A [...] dog"])).badly(&["cannot fill gaps"]);
    // Settings that contradict one another.
    let other = within(&folder, "another");
    materials.train(&other, &["given_spans_prob=0.5"]).badly(&["decoder_clean_condition"]);
    let sure = "decoder_clean_condition=true";
    materials.train(&other, &["given_spans_prob=1.5", sure]).badly(&["given_spans_prob", "0 to 1"]);
    materials.train(&other, &["given_spans_prob=0.7", "given_words_prob=0.7", sure]).badly(&["together"]);
    materials.train(&other, &["given_spans_prob=0.5", "learned_latents=true", sure]).badly(&["learned_latents"]);
    translation.train(&other, &["given_spans_prob=0.5", sure]).badly(&["max_input_length"]);
}

/// What is corrected becomes likelier, and what is not in doubt stays as it was written.
#[test]
fn texts_are_corrected_where_they_are_in_doubt() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let [model, output] = ["model", "texts.jsonl"].map(|name| within(&folder, name));
    materials.train(&model, &FILLING).well();
    let texts = ["A red dog finds the old house", "A  cat finds a dog"];
    let corrected = |words: &[&str]| {
        run(elf(&[&["correct", &model, "--steps", "2", "-o", &output], words].concat())).well();
        json_lines(&output)
    };
    let eager = ["--doubt", "0", "--candidates", "4", "--rounds", "2"];
    let lines = corrected(&[&texts[..], &eager].concat());
    for (line, before) in lines.iter().zip(texts) {
        let changes = line["changes"].as_array().unwrap();
        let [log_prob, after] = ["log_prob", "corrected_log_prob"].map(|field| line[field].as_f64().unwrap());
        assert!(if changes.is_empty() { after == log_prob } else { after > log_prob }, "{line}");
        let mut remade = before.to_owned();
        for change in changes.iter().rev() {
            let end = |name: &str| usize::try_from(change["place"][name].as_u64().unwrap()).unwrap();
            let place = end("start")..end("end");
            assert_eq!(&before[place.clone()], text(change, "from"));
            remade.replace_range(place, text(change, "to"));
        }
        assert_eq!(remade, text(line, "corrected"));
    }
    // A network of a moment doubts much.
    assert!(lines.iter().any(|line| !line["changes"].as_array().unwrap().is_empty()));
    assert_eq!(corrected(&[&texts[..1], &eager].concat())[0], lines[0]);
    let sure = corrected(&[&texts[..], &["--doubt", "1000"]].concat());
    assert!(sure.iter().zip(texts).all(|(line, before)| text(line, "corrected") == before));
    let judged = corrected(&[&texts[..], &["--words"]].concat());
    for (line, before) in judged.iter().zip(texts) {
        let words = line["words"].as_array().unwrap();
        let all: String = words.iter().map(|word| text(word, "word")).collect();
        assert_eq!(all, before.split_whitespace().collect::<String>());
        assert!(words.iter().all(|word| {
            let [own, best] = ["log_prob", "likeliest_log_prob"].map(|field| word[field].as_f64().unwrap());
            own <= best && best <= 0.0
        }));
    }
    for (words, told) in [
        (&[][..], &["no text to correct", "--input"][..]),
        (&["dog"], &["text 1", "fewer than two words"]),
        (&["A dog", "a a a a a a a a a a a a a"], &["text 2", "at most 12"]),
        (&["A dog", "--doubt", "nan"], &["--doubt"]),
        (&["A dog", "--rounds", "0"], &["--rounds"]),
    ] {
        run(elf(&[&["correct", &model, "--steps", "1"], words].concat())).badly(told);
    }
    run(elf(&["correct", &materials.path("run"), "A red dog"])).badly(&["cannot fill gaps", "given_spans_prob"]);
    let other = within(&folder, "other");
    materials.train(&other, &["objective=mdlm", "pad_token=pad", "max_steps=1"]).well();
    run(elf(&["correct", &other, "A red dog"])).badly(&["does not correct texts"]);
}
