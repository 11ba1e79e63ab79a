//! GPT-2 and generative perplexity against numbers from Hugging Face's model and the released evaluation code.

use anyhow::{Result, bail, ensure};
use elf_core::PrecisionPolicy;
use elf_eval::evaluation::{Evaluator, Judge, SampleSet, name};
use elf_eval::perplexity::{GenerativePerplexity, Scorer, score_texts};
use elf_gpt2::{Gpt2, Gpt2Scorer, ScorerSettings};
use elf_tests::{parity_json, parity_path};
use serde::Deserialize;
use tch::{Device, Tensor};

/// Relative tolerance in fp32: that of the reference between two machines.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    texts: Vec<String>,
    max_length: usize,
    context_size: usize,
    batch_size: usize,
    ppl: f64,
    /// Null for a sample without a scored token.
    per_sample_ppl: Vec<Option<f64>>,
    mean_entropy: f64,
    first_text_ids: Vec<u32>,
    first_text_logits_row0: Vec<f64>,
    first_text_logits_last: Vec<f64>,
}

fn reference() -> Reference {
    parity_json("gen_ppl.json")
}

fn near(what: &str, found: f64, expected: f64) -> Result<()> {
    let apart = (found - expected).abs() / expected.abs();
    ensure!(apart <= TOLERANCE, "{what}: {found} instead of {expected}, {apart:.1e} apart");
    Ok(())
}

fn judge(reference: &Reference) -> Result<Gpt2Scorer> {
    let settings = ScorerSettings {
        device: Device::Cpu,
        precision: PrecisionPolicy::F32,
        max_length: reference.max_length,
        context_size: Some(reference.context_size),
        batch_tokens: reference.batch_size * reference.context_size,
    };
    Ok(Gpt2Scorer::load(&parity_path("gpt2"), &settings)?)
}

#[test]
fn parity_gpt2_logits() -> Result<()> {
    let reference = reference();
    let model = Gpt2::load(&parity_path("gpt2"), Device::Cpu, PrecisionPolicy::F32)?;
    let ids: Vec<i64> = reference.first_text_ids.iter().map(|&id| id.into()).collect();
    let hidden = tch::no_grad(|| model.hidden(&Tensor::from_slice(&ids).unsqueeze(0)))?;
    for (name, position, expected) in [
        ("first", 0, &reference.first_text_logits_row0),
        ("last", ids.len() as i64 - 1, &reference.first_text_logits_last),
    ] {
        let found: Vec<f32> = model.logits(&hidden.narrow(1, position, 1).squeeze_dim(1))?.squeeze_dim(0).try_into()?;
        ensure!(found.len() == expected.len(), "{name}: {} logits instead of {}", found.len(), expected.len());
        // Relative to the size of the row: single logits may be close to 0.
        let size = expected.iter().map(|x| x * x).sum::<f64>().sqrt() / (expected.len() as f64).sqrt();
        let worst = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
        println!("{name} position: largest difference {:.1e} of a typical logit", worst / size);
        ensure!(worst <= TOLERANCE * size, "{name}: differs by {worst:e}");
    }
    Ok(())
}

#[test]
fn parity_gpt2_tokens() -> Result<()> {
    let reference = reference();
    let ids = judge(&reference)?.tokenise(&reference.texts[..1])?;
    let n = reference.first_text_ids.len();
    ensure!(ids[0].len() >= n && ids[0][..n] == reference.first_text_ids, "{:?}", ids[0]);
    Ok(())
}

#[test]
fn parity_gen_ppl() -> Result<()> {
    let reference = reference();
    let found = GenerativePerplexity::measure(&judge(&reference)?, &reference.texts)?;
    ensure!(found.samples.len() == reference.per_sample_ppl.len());
    let mut worst = 0f64;
    for (i, (sample, expected)) in found.samples.iter().zip(&reference.per_sample_ppl).enumerate() {
        match (sample.and_then(|s| s.perplexity), expected) {
            (Some(found), Some(expected)) => {
                worst = worst.max((found / expected - 1.0).abs());
                near(&format!("perplexity of sample {i}"), found, *expected)?;
            }
            (None, None) => {}
            (found, expected) => bail!("perplexity of sample {i}: {found:?} instead of {expected:?}"),
        }
    }
    println!("{} samples, largest relative difference {worst:.1e}", found.samples.len());
    let blank = reference.texts.iter().filter(|t| t.trim().is_empty()).count();
    ensure!(found.skipped == blank, "{} samples were skipped, {blank} are blank", found.skipped);
    near("perplexity", found.perplexity, reference.ppl)?;
    near("entropy", found.entropy, reference.mean_entropy)?;
    Ok(())
}

#[test]
fn parity_gen_ppl_of_an_evaluation() -> Result<()> {
    // As the program does it, with intervals and a judge that only tokenises the references.
    let reference = reference();
    let scorer = judge(&reference)?;
    let set = SampleSet { name: "texts".into(), texts: reference.texts.clone(), ..SampleSet::default() };
    let judge = Judge { name: "gpt2", scorer: &scorer };
    let evaluator = Evaluator { judge: Some(judge), data: Some(&reference.texts), ..Evaluator::default() };
    let found = evaluator.evaluate("parity", &[set])?;
    for (name, expected) in [
        (name::GEN_PPL, reference.ppl),
        (name::ENTROPY, reference.mean_entropy),
        (name::DATA_ENTROPY, reference.mean_entropy),
    ] {
        let Some(metric) = found.get(name) else { bail!("no {name}") };
        near(name, metric.value, expected)?;
    }
    ensure!(found.collapse().is_some_and(|verdict| !verdict.collapsed), "texts collapsed against themselves");
    Ok(())
}

#[test]
fn splitting_alone_gives_the_ids_that_scoring_gives() -> Result<()> {
    let reference = reference();
    let scorer = judge(&reference)?;
    let texts: Vec<String> = reference.texts.iter().filter(|t| !t.trim().is_empty()).cloned().collect();
    let scored = score_texts(&scorer, &texts)?;
    let split = scorer.tokenize(&texts).map_err(anyhow::Error::from_boxed)?;
    ensure!(split.len() == scored.len());
    for (ids, scores) in split.iter().zip(&scored) {
        ensure!(scores.as_ref().is_some_and(|s| s.ids == *ids), "{ids:?}");
    }
    Ok(())
}
