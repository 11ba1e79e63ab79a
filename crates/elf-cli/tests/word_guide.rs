//! Models that keep what each noisy latent says of its word, and texts that are led away from that.

mod tiny_run;

use tempfile::TempDir;
use tiny_run::*;

#[test]
fn a_word_guide_is_measured_once_kept_and_used() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (whole, parts, plain) = (within(&folder, "whole"), within(&folder, "parts"), within(&folder, "plain"));
    let guided = "word_guide_dims=4";
    materials.train(&whole, &[guided]).well();
    materials.train(&parts, &[guided, "max_steps=3"]).well();
    materials.train(&parts, &[guided]).well();
    let last = |run: &str| tensors(checkpoints(run).last().unwrap());
    assert!(last(&whole) == last(&parts), "a run in two parts is another one");

    let texts = |model: &str, name: &str, options: &[&str]| {
        let output = within(&folder, name);
        let words = [&["sample", model, "--steps", "3", "-n", "4", "-o", &output], options].concat();
        run(elf(&words)).well();
        json_lines(&output).iter().map(|line| line["prediction"].clone()).collect::<Vec<_>>()
    };
    // The network does not use its guide, and texts do only where they are asked to.
    materials.train(&plain, &[]).well();
    let unguided = texts(&whole, "unguided.jsonl", &[]);
    assert_eq!(unguided, texts(&plain, "plain.jsonl", &[]));
    let by_words = ["--word-guide", "--guide-scale", "9"];
    let led = texts(&whole, "led.jsonl", &by_words);
    assert_ne!(led, unguided);
    assert_eq!(texts(&whole, "by-one.jsonl", &["--word-guide", "--guide-scale", "1"]), unguided);

    // A model's own setting may ask for it, and a run that begins as a model without a guide measures its own.
    let (exported, setting) = (within(&folder, "exported"), within(&folder, "led.yml"));
    std::fs::write(&setting, "word_guide: true\nguide_scale: 9\nnum_sampling_steps: 3\n").unwrap();
    run(elf(&["export", &whole, &exported, "--dtype", "f32", "--sampling-config", &setting])).well();
    assert_eq!(texts(&exported, "exported.jsonl", &[]), led);
    assert_eq!(texts(&exported, "off.jsonl", &["--word-guide", "false"]), unguided);
    let begun = within(&folder, "begun");
    let from = format!("init_from={plain}");
    materials.train(&begun, &[guided, &from, "max_steps=1", "lr=0"]).well();
    assert_eq!(texts(&begun, "begun.jsonl", &by_words), led);
    let from = format!("init_from={whole}");
    let begun = within(&folder, "begun-again");
    materials.train(&begun, &[guided, &from, "max_steps=1", "lr=0"]).well();
    assert_eq!(texts(&begun, "begun-again.jsonl", &by_words), led);
    let students = within(&folder, "students");
    run(elf(&["distill", "--teacher", &whole, "--output", &students, "-o", "max_steps=2"])).well();

    run(elf(&["convert", &whole, &within(&folder, "checkpoint_10")])).well();

    run(elf(&["sample", &plain, "--word-guide", "-n", "1"])).badly(&["word_guide", "word_guide_dims"]);
    run(elf(&["sample", &whole, "--word-guide", "--guide", &plain, "-n", "1"])).badly(&["--word-guide", "--guide"]);
    std::fs::write(&setting, "word_guide: true\nguide: weak\n").unwrap();
    run(elf(&["sample", &whole, "--sampling-config", &setting, "-n", "1"])).badly(&["guide and word_guide"]);
    let refused = |options: &[&str], parts: &[&str]| _ = materials.train(&within(&folder, "no"), options).badly(parts);
    refused(&[guided, "learned_latents=true"], &["word_guide_dims", "learned_latents"]);
    refused(&["word_guide_dims=-1"], &["word_guide_dims"]);
    refused(&["word_guide_dims=100000"], &["word_guide_dims", "channels"]);
    let baseline = materials.train(&within(&folder, "gpt2"), &[guided, "objective=gpt2"]).well();
    assert!((baseline.out + &baseline.err).contains("no effect: word_guide_dims"));
}

/// Decode rows of own estimates: another training, the same in two parts, and switched on where a run goes on.
#[test]
fn words_are_learned_from_own_estimates() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let [whole, parts, plain] = ["whole", "parts", "plain"].map(|name| within(&folder, name));
    let guided = "word_guide_dims=4";
    let read = ["decoder_estimate_prob=0.7", "decoder_estimate_guide=2", "decoder_prob=0.5"];
    let options = |more: &[&'static str]| [&[guided][..], &read, more].concat();
    materials.train(&whole, &options(&[])).well();
    materials.train(&parts, &options(&["max_steps=3"])).well();
    materials.train(&parts, &options(&[])).well();
    let last = |run: &str| tensors(checkpoints(run).last().unwrap());
    assert!(last(&whole) == last(&parts), "a run in two parts is another one");
    materials.train(&plain, &[guided, read[2]]).well();
    assert!(last(&whole) != last(&plain), "estimates are learned from");
    materials.train(&plain, &options(&["max_steps=8"])).well();
    let losses = json_lines(&format!("{plain}/metrics.jsonl"));
    assert_eq!(losses.last().unwrap()["step"], 8, "{losses:?}");

    let refused = |options: &[&str], parts: &[&str]| _ = materials.train(&within(&folder, "no"), options).badly(parts);
    refused(&read, &["decoder_estimate_guide", "word_guide_dims"]);
    refused(&[read[0], "decoder_estimate_from=0.8"], &["decoder_estimate_from"]);
    refused(&["decoder_estimate_prob=2"], &["decoder_estimate_prob"]);
    refused(&[read[0], "block_size=1", "causal_latents=true"], &["decoder_estimate_prob", "block_size"]);
}

#[test]
fn a_student_of_guided_runs_needs_no_guide() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (guided, plain, student) = (within(&folder, "guided"), within(&folder, "plain"), within(&folder, "student"));
    materials.train(&guided, &["word_guide_dims=4"]).well();
    materials.train(&plain, &[]).well();
    let distil = |teacher: &str, output: &str, options: &[&str]| {
        let usual = ["max_steps=2", "lr=0", "pd_step_size=0.25", "pd_teacher_steps=2"];
        let options = usual.iter().chain(options).flat_map(|option| ["-o", option]);
        run(elf(&["distill", "--teacher", teacher, "--output", output].into_iter().chain(options).collect::<Vec<_>>()))
    };
    let runs = ["pd_own_runs=true", "pd_leap_at=0.4", "pd_guide_scale=3"];
    distil(&guided, &student, &runs).well();
    let metrics = json_lines(&format!("{student}/metrics.jsonl"));
    assert!(metrics.iter().any(|line| line["l2"].as_f64().is_some_and(|l2| l2 > 0.0)), "{metrics:?}");

    // It has learned nothing, so that it writes as its teacher does without guide, by the steps that it was to learn.
    let texts = |model: &str, name: &str, options: &[&str]| {
        let output = within(&folder, name);
        run(elf(&[&["sample", model, "-n", "4", "-o", &output], options].concat())).well();
        json_lines(&output).iter().map(|line| line["prediction"].clone()).collect::<Vec<_>>()
    };
    let steps =
        ["--sampler", "euler", "--steps", "4", "--uniform-grid", "--leap-at", "0.4", "--self-cond-cfg-scale", "1"];
    assert_eq!(texts(&student, "student.jsonl", &[]), texts(&guided, "teacher.jsonl", &steps));
    run(elf(&["sample", &student, "--word-guide", "-n", "1"])).badly(&["word_guide", "word_guide_dims"]);
    let card = std::fs::read_to_string(format!("{student}/README.md")).unwrap();
    assert!(card.contains("in 4 steps, the last of which leads from t = 0.4") && card.contains("scale 3"), "{card}");
    let (exported, again) = (within(&folder, "exported"), within(&folder, "again"));
    run(elf(&["export", &student, &exported, "--dtype", "f32"])).well();
    assert_eq!(texts(&exported, "exported.jsonl", &[]), texts(&student, "student.jsonl", &[]));
    // A teacher may be a parameter file with its settings beside it.
    distil(&exported, &again, &[format!("data_path={}", materials.path("shards")).as_str(), runs[0], runs[1]]).well();

    let refused = |teacher: &str, options: &[&str], parts: &[&str]| {
        _ = distil(teacher, &within(&folder, "no"), options).badly(parts);
    };
    refused(&plain, &runs, &["pd_guide_scale", "word_guide_dims"]);
    refused(&guided, &["pd_leap_at=0.4"], &["pd_leap_at", "pd_own_runs"]);
    refused(&guided, &["pd_own_runs=true", "pd_leap_at=0"], &["pd_leap_at"]);
}
