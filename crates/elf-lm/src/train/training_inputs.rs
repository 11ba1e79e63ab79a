//! What training needs beside settings: tokenizer, rows, encoder, judge.

use std::sync::Arc;

use crate::error::{Context, fail};
use elf_core::device::describe;
use elf_data::{Dataset, Tokenizer, evaluation};
use elf_hub::What;
use elf_train::Comm;
use serde_json::Value;
use tch::Device;

use super::memory_plan::MemoryPlan;
use super::training_judge::TrainingJudge;
use crate::config::{Facts, LengthLaw, ObjectiveName, RunConfig, RunInputs, RunPlan};
use crate::fingerprint::Fingerprint;
use crate::text::text_latents::{self, TextLatents, encoder_folder};
use crate::{Host, Result};

/// What training needs beside settings.
pub struct TrainingInputs {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The rows to train on.
    pub train: Arc<Dataset>,
    /// The encoder; none for baselines.
    latents: Option<TextLatents>,
    /// Where the network will be.
    pub device: Device,
    /// The rows to be judged by.
    pub held_out: Option<Dataset>,
    /// What judges texts at evaluations, if perplexity is wanted.
    pub judge: Option<TrainingJudge>,
}

impl TrainingInputs {
    /// Opens all that a configuration names.
    ///
    /// # Errors
    /// Names the key whose value cannot be used.
    pub fn load(config: &RunConfig, device: Device, host: &Host) -> Result<Self> {
        let Some(data_path) = &config.data.data_path else {
            fail!(setting("data_path"), "data_path is not set: which token shards should be trained on?")
        };
        let tokenizer_path = match &config.data.tokenizer_name {
            Some(name) => host.locate(name, What::Tokenizer).context("tokenizer_name")?,
            None => encoder_folder(config, host)?,
        };
        let tokenizer = Tokenizer::load(&tokenizer_path)
            .with_context(|| format!("the tokenizer {} (tokenizer_name) cannot be used", tokenizer_path.display()))?;
        let open = |path: &String, key: &str| -> Result<Dataset> {
            let place = host.locate(path, What::Dataset).with_context(|| key.to_owned())?;
            let mut dataset = Dataset::open(&[place]).with_context(|| format!("{key} {path}"))?;
            dataset.check_tokenizer(&tokenizer).with_context(|| format!("{key} {path}"))?;
            if config.data.max_input_length.is_some() && !dataset.is_conditional() {
                fail!(
                    setting(key),
                    "{key} {path} has no conditions, but max_input_length is set: prepare it with --condition-column, or set max_input_length to null"
                );
            }
            Ok(dataset)
        };
        let train = Arc::new(open(data_path, "data_path")?);
        let held_out = match &config.data.eval_data_path {
            Some(path) if evaluation::is_pairs(path.as_ref()) && config.data.max_input_length.is_some() => {
                let pairs = evaluation::read_pairs(path.as_ref())?;
                Some(Dataset::from_pairs(pairs, &tokenizer, train.eos_options(&tokenizer)?)?)
            }
            Some(path) => Some(open(path, "eval_data_path")?),
            None => None,
        };
        let latents = match config.objective {
            ObjectiveName::Elf => Some(encoder(config, &tokenizer, device, host)?),
            ObjectiveName::Gpt2 | ObjectiveName::Mdlm => None,
        };
        let judge = TrainingJudge::find(config, device, host)?;
        Ok(Self { tokenizer, train, latents, device, held_out, judge })
    }

    /// The encoder that latents come from.
    ///
    /// # Errors
    /// If they were loaded for a baseline.
    pub fn latents(&self) -> Result<&TextLatents> {
        self.latents.as_ref().context("a baseline has no text encoder: set objective to elf")
    }

    /// What the plan will take on each of so many ranks.
    pub fn memory(&self, plan: &RunPlan, device: Device, ranks: u64) -> MemoryPlan {
        let of_one =
            RunPlan { batch_rows: plan.batch_rows / usize::try_from(ranks).unwrap_or(1).max(1), ..plan.clone() };
        MemoryPlan::new(&of_one, self.latents.as_ref().map_or(0, TextLatents::parameters), device)
    }

    /// What follows from a configuration and these inputs.
    ///
    /// # Errors
    /// Names the setting that is impossible.
    pub fn plan(&self, config: &RunConfig, device: Device, ranks: usize) -> Result<RunPlan> {
        let facts = Facts {
            latent_dim: self.latents.as_ref().map_or(1, TextLatents::dim),
            vocab_size: self.tokenizer.vocab_size() as i64,
            rows: self.train.len() as u64,
            condition_eos: self.train.is_conditional() && self.train.eos_options(&self.tokenizer)?.condition,
            ranks,
        };
        if let Some(wanted) =
            config.data.condition_eos.filter(|&wanted| self.train.is_conditional() && wanted != facts.condition_eos)
        {
            fail!(
                setting("condition_eos"),
                "condition_eos is {wanted}, but the conditions of the training data {} in EOS: leave the key out, or prepare the data {}",
                if wanted { "do not end" } else { "end" },
                if wanted { "with --eos-condition" } else { "without --eos-condition" }
            );
        }
        let inputs = RunInputs {
            tokenizer: self.tokenizer.fingerprint().to_owned(),
            training_data: data_fingerprint(&self.train)?,
            encoder: self.latents.as_ref().map(TextLatents::record).transpose()?.flatten(),
        };
        let mut plan = RunPlan { inputs: Some(inputs), ..RunPlan::new(config, facts, device)? };
        // A GPT-2 ends its texts itself, unless it fills gaps.
        let ends_itself = config.objective == ObjectiveName::Gpt2 && plan.gap_mark().is_none();
        if plan.has_rows_of_equal_length() && !ends_itself {
            let lengths = self.train.lengths_of_parts(plan.collator(&self.tokenizer)?.config())?;
            let conditional = plan.span.max_input_length.is_some();
            plan.lengths = Some(LengthLaw::of(&lengths, conditional).context("group_by_length")?);
        }
        Ok(plan)
    }

    /// What will be trained on what, in lines for a user.
    pub fn describe(&self, plan: &RunPlan, device: Device, ranks: u64) -> String {
        let (model, length) = (&plan.model, &plan.length);
        let rows = plan.batch_rows * plan.config.optimization.grad_accum_steps;
        let kind = match &plan.baseline {
            None => format!("latents of {} channels", model.text_encoder_dim),
            Some(baseline) => format!("{} of {} parameters", baseline.describe(), baseline.parameter_count()),
        };
        let latents = match &self.latents {
            Some(_) if model.learned_latents => "learned with the network".to_owned(),
            Some(latents) => text_latents::describe(latents.stats()),
            None => "none".to_owned(),
        };
        format!(
            "model:   {} blocks of width {}, {} heads, {kind}, {} words\n\
             data:    {} rows to train on, {} held out; {} positions a row\n\
             latents: {latents}\n\
             length:  {} optimiser steps of {rows} rows ({:.2} epochs), {} of them warm-up; learning rate {}{}\n\
             memory:  about {}\n\
             device:  {}, rank 0 of {}; blocks in {}",
            model.depth,
            model.hidden_size,
            model.num_heads,
            model.vocab_size,
            self.train.len(),
            self.held_out.as_ref().map_or(0, Dataset::len),
            plan.span.max_length,
            length.total,
            length.total as f64 / length.steps_per_epoch,
            length.warmup,
            plan.lr,
            plan.config.length.max_minutes.map_or(String::new(), |m| format!("; at most {m} minutes")),
            self.memory(plan, device, ranks),
            describe(device),
            ranks,
            plan.precision.blocks,
        )
    }
}

/// The encoder that a configuration names, for ids of this tokenizer.
fn encoder(config: &RunConfig, tokenizer: &Tokenizer, device: Device, host: &Host) -> Result<TextLatents> {
    let latents = TextLatents::load(config, device, config.precision(device), host)?;
    if latents.vocab_size() < tokenizer.vocab_size() as i64 {
        fail!(
            mismatch("the tokenizer"),
            "the encoder knows {} token ids, but the tokenizer has {}: they do not belong together",
            latents.vocab_size(),
            tokenizer.vocab_size()
        );
    }
    Ok(latents)
}

/// Refuses to start unless all ranks run the same program on the same configuration and the same data.
pub fn agree(plan: &RunPlan, inputs: &TrainingInputs, comm: &dyn Comm) -> Result<()> {
    let records = plan.inputs.clone();
    // What it is known by is compared below, as places may differ.
    let Value::Object(plan) = serde_json::to_value(RunPlan { inputs: None, ..plan.clone() })? else {
        fail!(request, "a plan is no object")
    };
    let Some(Value::Object(config)) = plan.get("config") else { fail!(request, "a plan has no configuration") };
    let mut facts = Fingerprint::default().with("the program", program_fingerprint()?);
    for (key, value) in config.iter().chain(plan.iter().filter(|(key, _)| *key != "config")) {
        facts = facts.with(key, value);
    }
    if let Some(RunInputs { tokenizer, training_data, encoder }) = records {
        facts = facts.with("the tokenizer", tokenizer).with("the training data", training_data);
        if let Some(encoder) = encoder {
            let stats = serde_json::to_string(&encoder.stats)?;
            facts =
                facts.with("the text encoder's weights", encoder.blake3).with("the normalisation of latents", stats);
        }
    }
    let held_out = inputs.held_out.as_ref().map(data_fingerprint).transpose()?;
    facts = facts.with("the held-out data", held_out.unwrap_or_else(|| "none".into()));
    let facts: Vec<(&str, String)> = facts.iter().map(|(name, value)| (name, value.to_owned())).collect();
    Ok(comm.agree(&facts)?)
}

/// The version of this program, to the byte.
fn program_fingerprint() -> Result<String> {
    let path = std::env::current_exe().context("this program cannot be found again")?;
    let mut hasher = blake3::Hasher::new();
    let read = std::fs::File::open(&path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    read.with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(format!("{} ({})", env!("CARGO_PKG_VERSION"), &hasher.finalize().to_hex()[..12]))
}

/// Number and content of the rows, the latter from the first, the last, and some between.
fn data_fingerprint(data: &Dataset) -> Result<String> {
    const LOOKED_AT: usize = 64;
    let (rows, mut hasher) = (data.len(), blake3::Hasher::new());
    for i in 0..LOOKED_AT.min(rows) {
        let example = data.example(i * rows.saturating_sub(1) / LOOKED_AT.min(rows).saturating_sub(1).max(1))?;
        for ids in example.condition_ids.iter().chain([&example.input_ids]) {
            hasher.update(&(ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
        }
    }
    Ok(format!("{rows} rows ({})", &hasher.finalize().to_hex()[..12]))
}
