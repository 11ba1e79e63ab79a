//! Networks that start from an estimate of each token without context.

mod tiny_run;

use tempfile::TempDir;
use tiny_run::*;

#[test]
fn a_token_posterior_is_measured_once_and_kept() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (whole, parts) = (within(&folder, "whole"), within(&folder, "parts"));
    let informed = "token_posterior_dims=4";
    materials.train(&whole, &[informed]).well();
    materials.train(&parts, &[informed, "max_steps=3"]).well();
    materials.train(&parts, &[informed]).well();
    let last = |run: &str| tensors(checkpoints(run).last().unwrap());
    assert!(last(&whole) == last(&parts), "a run in two parts is another one");

    let texts = |model: &str, name: &str| {
        let output = within(&folder, name);
        run(elf(&["sample", model, "--steps", "3", "-n", "4", "-o", &output])).well();
        json_lines(&output).iter().map(|line| line["prediction"].clone()).collect::<Vec<_>>()
    };
    let exported = within(&folder, "exported");
    run(elf(&["export", &whole, &exported, "--dtype", "f32"])).well();
    assert_eq!(texts(&exported, "exported.jsonl"), texts(&whole, "whole.jsonl"));
    let students = within(&folder, "students");
    run(elf(&["distill", "--teacher", &whole, "--output", &students, "-o", "max_steps=2"])).well();

    let refused = |options: &[&str], parts: &[&str]| _ = materials.train(&within(&folder, "no"), options).badly(parts);
    refused(&[informed, "learned_latents=true"], &["token_posterior_dims", "learned_latents"]);
    refused(&[informed, "prediction=v"], &["token_posterior_dims", "prediction: v"]);
    refused(&["token_posterior_dims=-1"], &["token_posterior_dims"]);
    refused(&["token_posterior_dims=100000"], &["token_posterior_dims", "channels"]);
    refused(&[informed, "objective=gpt2"], &["token_posterior_dims", "no latents"]);
}
