//! Checks of a training configuration.

use super::{DecoderConfig, ObjectiveName, PadTokenName, RunConfig};
use crate::Result;
use crate::error::fail;

/// Most positions of a row; a mistyped number must not exhaust memory.
const LONGEST: usize = 1 << 24;

impl RunConfig {
    /// Refuses invalid settings, as far as they can be recognised without data and encoder.
    ///
    /// # Errors
    /// If a setting is invalid; the message names it and the reason.
    pub fn check(&self) -> Result<()> {
        check_numbers(self)?;
        check_combinations(self)?;
        check_given(self)?;
        check_estimates(self)
    }

    /// The settings that the objective uses, and the names of those that were put back to their defaults. A baseline has no latents, so
    /// settings about latents have no effect on it; ELF uses all settings.
    pub fn of_objective(&self) -> (Self, Vec<&'static str>) {
        let mut config = self.clone();
        if config.objective == ObjectiveName::Elf {
            return (config, Vec::new());
        }
        let mut idle = Vec::new();
        macro_rules! reset {
            ($group:ident: $($key:ident),*) => {
                let usual = Self::default().$group;
                $(if config.$group.$key != usual.$key {
                    config.$group.$key = usual.$key;
                    idle.push(stringify!($key));
                })*
            };
        }
        reset!(network: learned_latents, causal_latents, block_size, context_table, vocab_head_norm, word_guide_dims);
        reset!(decoder: decoder_clean_condition, decoder_estimate_prob);
        if config.objective == ObjectiveName::Mdlm {
            reset!(given: given_prefix_prob, given_suffix_prob, given_spans_prob, given_words_prob);
        }
        reset!(compute: latent_cache_mb);
        (config, idle)
    }
}

/// Refuses numbers outside their range.
fn check_numbers(config: &RunConfig) -> Result<()> {
    if !(1..=LONGEST).contains(&config.data.max_length) {
        fail!(
            setting("max_length"),
            "max_length is {}; it must be from 1 to {LONGEST} positions",
            config.data.max_length
        );
    }
    if let Some(longest) = config.data.max_input_length.filter(|&n| n >= config.data.max_length) {
        fail!(
            setting("max_input_length"),
            "max_input_length {longest} leaves no room for a target in max_length {}: make it smaller",
            config.data.max_length
        );
    }
    for (key, value) in [
        ("blr", config.optimization.blr),
        ("epochs", config.length.epochs),
        ("save_freq", config.output.save_freq),
        ("eval_freq", config.evaluation.eval_freq),
    ] {
        if !(value > 0.0 && value.is_finite()) {
            fail!(setting(key), "{key} is {value}; it must be a number above 0");
        }
    }
    let decay = config.averages.ema_decay1;
    if !(0.0..1.0).contains(&decay) {
        fail!(setting("ema_decay1"), "ema_decay1 is {decay}; it must be from 0 to below 1");
    }
    for (key, value) in [
        ("global_batch_size", config.batches.global_batch_size),
        ("grad_accum_steps", config.optimization.grad_accum_steps),
        ("batch_size", config.batches.batch_size.unwrap_or(1)),
        ("log_freq", config.output.log_freq as usize),
        ("keep_checkpoints", config.output.keep_checkpoints),
    ] {
        if value == 0 {
            fail!(setting(key), "{key} must be at least 1");
        }
    }
    if let Some(minutes) = config.length.max_minutes.filter(|minutes| !(minutes.is_finite() && *minutes >= 0.0)) {
        fail!(
            setting("max_minutes"),
            "max_minutes {minutes} is not a duration: give a number of minutes, or null for no limit"
        );
    }
    if let Some(share) = config.guidance.label_drop_prob.filter(|share| !(0.0..=1.0).contains(share)) {
        fail!(setting("label_drop_prob"), "label_drop_prob is {share}; it must be from 0 to 1");
    }
    Ok(())
}

fn check_estimates(config: &RunConfig) -> Result<()> {
    let DecoderConfig { decoder_estimate_prob: read, decoder_estimate_guide: scale, .. } = config.decoder;
    if read != 0.0 && scale != 1.0 && config.network.word_guide_dims == 0 {
        fail!(
            setting("decoder_estimate_guide"),
            "decoder_estimate_guide leads away from what the model keeps of words without context: set word_guide_dims, or leave it out"
        );
    }
    Ok(())
}

/// Refuses given tokens where the model could not take them.
fn check_given(config: &RunConfig) -> Result<()> {
    let shares = config.given.shares();
    shares.check()?;
    if shares.is_none() {
        return Ok(());
    }
    let in_the_way = [
        ("max_input_length", config.data.max_input_length.is_some(), "whose conditions are texts of their own"),
        ("block_size", config.network.block_size.is_some(), "which knows nothing of what follows a block"),
        ("learned_latents", config.network.learned_latents, "since given tokens are encoded by a frozen encoder"),
        ("causal_latents", config.network.causal_latents, "by which a token knows nothing of what follows it"),
    ];
    match in_the_way.iter().find(|(_, set, _)| *set) {
        Some((key, _, why)) => fail!(
            setting("given_spans_prob"),
            "tokens anywhere in a text can be given (given_prefix_prob, given_suffix_prob, given_spans_prob, given_words_prob) without {key} \
             only, {why}: leave one of them out"
        ),
        None if config.objective == ObjectiveName::Gpt2 && !config.batches.group_by_length => fail!(
            setting("group_by_length"),
            "a GPT-2 learns to fill gaps (given_prefix_prob, given_suffix_prob, given_spans_prob, given_words_prob) in rows without filling: \
             set group_by_length: true"
        ),
        None if config.objective == ObjectiveName::Elf && !config.decoder.decoder_clean_condition => fail!(
            setting("decoder_clean_condition"),
            "given tokens stay clean where words are read (given_prefix_prob, given_suffix_prob, given_spans_prob, given_words_prob): set \
             decoder_clean_condition: true"
        ),
        None => Ok(()),
    }
}

/// Refuses settings that conflict with each other.
fn check_combinations(config: &RunConfig) -> Result<()> {
    let conditional = config.data.max_input_length.is_some();
    match config.output.early_stopping {
        Some(0) => fail!(
            setting("early_stopping"),
            "early_stopping 0 would stop at once: give a number of evaluations, or null for never"
        ),
        Some(_) if config.data.eval_data_path.is_none() => {
            fail!(
                setting("early_stopping"),
                "early_stopping needs a validation loss: set eval_data_path, or early_stopping to null"
            )
        }
        _ => {}
    }
    if let Some(share) = config.guidance.label_drop_prob.filter(|&share| share > 0.0 && !conditional) {
        fail!(
            setting("label_drop_prob"),
            "label_drop_prob {share} needs a conditional task: set max_input_length, or label_drop_prob to 0"
        );
    }
    if config.network.learned_latents && conditional {
        fail!(
            setting("learned_latents"),
            "learned_latents is for unconditional text: conditions are encoded by a frozen encoder. Set it to false, or max_input_length to null"
        );
    }
    if config.network.word_guide_dims != 0 && config.network.learned_latents {
        fail!(
            setting("word_guide_dims"),
            "word_guide_dims is measured before the first step, and learned_latents changes latents all the time: leave one of them out"
        );
    }
    if config.network.learned_latents && config.network.causal_latents {
        fail!(
            setting("causal_latents"),
            "causal_latents applies to an encoder's latents, and learned_latents uses none: leave one of them out"
        );
    }
    if config.network.block_size.is_some() && !config.network.causal_latents {
        fail!(
            setting("block_size"),
            "block_size needs causal_latents: true, since other latents of a block contain information about later blocks"
        );
    }
    if config.network.context_table && config.network.block_size.is_none() && !conditional {
        fail!(
            setting("context_table"),
            "context_table applies to conditions and to the tokens before a block: set max_input_length or block_size, or leave it out"
        );
    }
    if config.batches.group_by_length && config.pad_token() == PadTokenName::Eos {
        fail!(
            setting("group_by_length"),
            "group_by_length needs pad_token: pad, since padding that is learned cannot be cut off"
        );
    }
    Ok(())
}
