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
    refused(&[guided, "objective=gpt2"], &["word_guide_dims", "no latents"]);
}
