//! Runs that begin as another model, whose optimiser and steps are not taken over.

use elf_core::ParamSet;
use elf_data::Tokenizer;
use elf_hub::What;

use crate::config::{BaselinePlan, RunPlan};
use crate::error::{Context, fail};
use crate::model::ModelRef;
use crate::{Host, Result};

/// The key that names it.
const KEY: &str = "init_from";

/// The model that a plan names to begin as, if it names one.
///
/// # Errors
/// If there is nothing, or it is a model of another kind or with another tokenizer.
pub fn initial_model(plan: &RunPlan, tokenizer: &Tokenizer, host: &Host) -> Result<Option<ModelRef>> {
    let Some(name) = &plan.config.output.init_from else {
        return Ok(None);
    };
    if plan.config.output.resume.is_some() {
        fail!(setting(KEY), "{KEY} and resume are both set: the one begins a run, the other goes on with one");
    }
    let found = host.locate(name, What::ElfCheckpoint).and_then(|place| ModelRef::open(&place)).context(KEY)?;
    let Some(run) = found.run() else {
        if let Some(baseline) = &plan.baseline {
            fail!(
                setting(KEY),
                "{KEY}: {name} is no run of this program, and {} begins as one only",
                baseline.describe()
            );
        }
        return Ok(Some(found));
    };
    let kind = |plan: &RunPlan| plan.baseline.as_ref().map_or("elf", BaselinePlan::name);
    if kind(&run.plan) != kind(plan) {
        fail!(
            setting(KEY),
            "{KEY}: {name} was trained with objective {}, not {}: leave it out (-o {KEY}=null), or choose another",
            kind(&run.plan),
            kind(plan)
        );
    }
    if run.run.tokenizer()?.fingerprint() != tokenizer.fingerprint() {
        fail!(setting(KEY), "{KEY}: {name} was trained with another tokenizer, whose ids mean other words");
    }
    Ok(Some(found))
}

/// Reads the running averages of that model, or what a file has instead, into the parameters that training changes. What is measured
/// before training stays as this run measured it.
///
/// # Errors
/// If it is damaged, or of another network.
pub fn begin_as(initial: &ModelRef, params: &ParamSet) -> Result<()> {
    let frozen = params.subset(|name| params.get(name).is_some_and(|p| p.frozen));
    let measured = frozen.snapshot();
    // A model may lack what is measured, or bring its own.
    initial
        .verify()
        .and_then(|()| initial.load_into(&params.trained(), true).or_else(|_| initial.load_into(params, true)))
        .with_context(|| format!("{KEY}: a run can only begin as a network of its own sizes"))?;
    frozen.load("what this run measured", measured.iter().map(|(name, value)| (name.as_str(), value)))?;
    Ok(())
}
