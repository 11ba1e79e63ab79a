//! Sampling settings, and changes to them. A change may list several values, of which every combination is used.

use std::path::PathBuf;

use elf_flow::sampler::{Euler, Registry, SamplerChoice, Sde};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::fitting::what_fits;
use super::{Candidates, RunPlan, TimeScheduleName};
use crate::error::fail;
use crate::{Error, Result};

/// The file of sampling settings in a model's folder.
pub const SAMPLING: &str = "sampling.yml";

/// Key names of the released code, where values are lists, and the names here.
pub(super) const RELEASED: [(&str, &str); 4] = [
    (METHOD, SAMPLER),
    ("cfgs", "cfg"),
    ("self_cond_cfg_scales", "self_cond_cfg_scale"),
    ("guide_scales", GUIDE_SCALE),
];
pub(super) const METHOD: &str = "sampling_method";
pub(super) const SAMPLER: &str = "sampler";
pub(super) const GUIDE: &str = "guide";
pub(super) const WORD_GUIDE: &str = "word_guide";
pub(super) const GUIDE_SCALE: &str = "guide_scale";
pub(super) const GUIDE_UNTIL: &str = "guide_until";

/// One way to sample. The defaults are the paper's setting for unconditional text in 32 steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// The sampler and its settings.
    pub sampler: SamplerChoice,
    /// Steps of a flow or of masked diffusion.
    pub num_sampling_steps: usize,
    /// Condition guidance scale; 1 is none, anything else doubles the cost.
    pub cfg: f64,
    /// Self-conditioning guidance scale; 1 is none.
    pub self_cond_cfg_scale: f64,
    /// The distribution of the time grid.
    pub time_schedule: TimeScheduleName,
    /// A weaker version of the model that autoguidance steers away from. In a file: a path relative to the file or to
    /// the working directory; in the file of a model's own folder, only a path within that folder. Not in the released
    /// code.
    pub guide: Option<PathBuf>,
    /// Whether autoguidance steers away from what the model keeps of words without context, in place of from another model. Not in the
    /// released code.
    pub word_guide: bool,
    /// Autoguidance scale, if there is a guide; 1 is none.
    pub guide_scale: f64,
    /// The time from which on the guide does not guide; 1 is the whole way.
    pub guide_until: f64,
    /// The time from which the last step leads to the end, all others lying before it; 1 for the grid's own times. Not in the released
    /// code.
    pub leap_at: f64,
    /// The time at which integration ends and the text is decoded. The released code always uses 1.
    pub decode_at: f64,
    /// Temperature by which logits are divided before each token is drawn; 0 takes the likeliest, as the released code
    /// does.
    pub temperature: f64,
    /// Top-p (nucleus) sampling: tokens are drawn among the likeliest that together have this probability; 1 is all.
    pub top_p: f64,
    /// Whether texts are read as sequences of the words in the model's list of words, in place of tokens by themselves. Not in the released
    /// code.
    pub whole_words: bool,
    /// Candidates generated per text, of which the one decoded with the highest confidence is kept.
    pub best_of: usize,
    /// Candidates generated per text, of which the one of minimum Bayes risk is kept: the one with the highest mean BLEU against
    /// the others. Not in the released code.
    pub mbr: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            sampler: SamplerChoice::of(&Sde::default()),
            num_sampling_steps: 32,
            cfg: 1.0,
            self_cond_cfg_scale: 3.0,
            time_schedule: TimeScheduleName::LogitNormal,
            guide: None,
            word_guide: false,
            guide_scale: 3.0,
            guide_until: 1.0,
            leap_at: 1.0,
            decode_at: 1.0,
            temperature: 0.0,
            top_p: 1.0,
            whole_words: false,
            best_of: 1,
            mbr: 1,
        }
    }
}

/// Changes to a [`Sampling`], by key: its own keys or those of the released code. A value may be a list of values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingPatch(pub(super) Map<String, Value>);

impl SamplingPatch {
    /// A change for every field of `keys` that is not null.
    ///
    /// # Errors
    /// If `keys` is not a mapping.
    pub fn of(keys: &impl Serialize) -> Result<Self> {
        let mut keys: Map<String, Value> = serde_json::from_value(serde_json::to_value(keys)?)?;
        keys.retain(|_, value| !value.is_null());
        Ok(Self(keys))
    }

    /// Adds one change.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }

    /// The keys that are changed.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether a key is changed.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

impl Sampling {
    /// Whether there is a guide of either kind.
    pub fn guided(&self) -> bool {
        self.guide.is_some() || self.word_guide
    }

    /// This setting with another number of steps.
    pub fn steps(self, steps: usize) -> Self {
        Self { num_sampling_steps: steps, ..self }
    }

    /// The default setting for a model: the paper's; for a distilled model, the number of steps that it was trained for
    /// and the guidance and noise of the released distilled model, or those of the teacher's runs that it learned.
    pub fn default_for(plan: &RunPlan) -> Self {
        let conditional = plan.span.max_input_length.is_some();
        let guided = plan.objective.self_conditioned();
        // The name in the released code.
        let euler = || SamplerChoice { name: "ode".into(), ..SamplerChoice::of(&Euler {}) };
        let setting = Self {
            sampler: if conditional { euler() } else { SamplerChoice::of(&Sde::default()) },
            num_sampling_steps: if conditional { 64 } else { 32 },
            // Condition guidance needs a model that was also trained without conditions.
            cfg: if plan.label_drop_prob > 0.0 { 2.0 } else { 1.0 },
            self_cond_cfg_scale: if conditional || !guided { 1.0 } else { 3.0 },
            ..Self::default()
        };
        let Some(distilled) = &plan.distillation else {
            return setting;
        };
        let num_sampling_steps = distilled.step.student_steps();
        if let Some(runs) = &distilled.step.own_runs {
            // As its teacher's runs went, whose guide it has learned.
            return Self {
                sampler: euler(),
                num_sampling_steps,
                self_cond_cfg_scale: 1.0,
                time_schedule: TimeScheduleName::Uniform,
                leap_at: runs.leap_at,
                ..setting
            };
        }
        let (w, gamma) = if num_sampling_steps <= 8 { (2.5, 1.5) } else { (2.0, 2.0) };
        Self {
            num_sampling_steps,
            self_cond_cfg_scale: if conditional || !guided { setting.self_cond_cfg_scale } else { w },
            sampler: if conditional { setting.sampler } else { SamplerChoice::of(&Sde { gamma }) },
            ..setting
        }
    }

    /// Candidates per text, and the rule by which one is kept.
    ///
    /// # Errors
    /// If their number is 0 or too large, or two rules are given.
    pub fn candidates(&self) -> Result<Candidates> {
        Candidates::new(self.best_of, self.mbr)
    }

    /// A short name for files: `sde-32-w3-cfg1-gamma1.5`, with `-uniform-guide3-at0.6-t0.8-p0.9-best4` and others where
    /// not the default.
    pub fn name(&self) -> String {
        let unless = |usual: bool, part: String| if usual { String::new() } else { part };
        [
            format!("{}-{}", self.sampler.name, self.num_sampling_steps),
            format!("-w{}-cfg{}", self.self_cond_cfg_scale, self.cfg),
            self.sampler.settings_label(),
            unless(self.time_schedule == TimeScheduleName::LogitNormal, "-uniform".to_owned()),
            unless(self.guide.is_none(), format!("-guide{}", self.guide_scale)),
            unless(!self.word_guide, format!("-words{}", self.guide_scale)),
            unless(!self.guided() || self.guide_until == 1.0, format!("-until{}", self.guide_until)),
            unless(self.leap_at == 1.0, format!("-leap{}", self.leap_at)),
            unless(self.decode_at == 1.0, format!("-at{}", self.decode_at)),
            unless(self.temperature == 0.0, format!("-t{}", self.temperature)),
            unless(self.top_p == 1.0, format!("-p{}", self.top_p)),
            unless(!self.whole_words, "-whole".to_owned()),
            unless(self.best_of == 1, format!("-best{}", self.best_of)),
            unless(self.mbr == 1, format!("-mbr{}", self.mbr)),
        ]
        .concat()
    }

    /// This setting with every combination of the values in `patch`. If a patch names the same sampler again, the
    /// sampler keeps its settings.
    ///
    /// # Errors
    /// If there is no such sampler, a value does not fit its key, or a list is empty.
    pub fn merged(&self, patch: &SamplingPatch, samplers: &Registry) -> Result<Vec<Self>> {
        let (mut own, mut of_sampler) = (Map::new(), Map::new());
        for (written, value) in &patch.0 {
            if value.as_array().is_some_and(Vec::is_empty) {
                fail!(
                    setting(written),
                    "{written} is an empty list, so that nothing would be sampled: give it a value, or leave it out"
                );
            }
            let key =
                RELEASED.iter().find(|(released, _)| released == written).map_or(written.as_str(), |(_, key)| key);
            let into = if samplers.released_keys().any(|(known, _)| known == key) { &mut of_sampler } else { &mut own };
            if into.insert(key.to_owned(), value.clone()).is_some() {
                fail!(setting(written), "{written} and another key both set {key}: leave one of them out");
            }
        }
        let mut all = Vec::new();
        for sampler in self.samplers(own.remove(SAMPLER), &of_sampler, samplers)? {
            all.push(Self { sampler, ..self.clone() });
        }
        let named = own.get(GUIDE).map(|guide| !guide.is_null());
        let words = own.get(WORD_GUIDE).map(|words| *words != Value::Bool(false));
        for setting in &mut all {
            // A change from one kind of guide to the other.
            setting.word_guide &= named != Some(true);
            setting.guide = setting.guide.take().filter(|_| words != Some(true));
        }
        let guided = named.unwrap_or(false) || words.unwrap_or(false) || all.iter().any(Self::guided);
        // In this order, later keys vary faster.
        let keys: Map<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        for key in ORDER.iter().copied() {
            debug_assert!(keys.contains_key(key));
            let Some(values) = own.remove(key).filter(|_| guided || ![GUIDE_SCALE, GUIDE_UNTIL].contains(&key)) else {
                continue;
            };
            let values = if let Value::Array(values) = values { values } else { vec![values] };
            let mut more = Vec::new();
            for setting in &all {
                for value in &values {
                    more.push(setting.with(key, value.clone())?);
                }
            }
            all = more;
        }
        if all.iter().any(|setting| setting.guide.is_some() && setting.word_guide) {
            fail!(
                setting(GUIDE),
                "{GUIDE} and {WORD_GUIDE} are both set, and a text has one guide: leave one of them out"
            );
        }
        Ok(all)
    }

    fn with(&self, key: &str, value: Value) -> Result<Self> {
        let mut keys: Map<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        keys.insert(key.to_owned(), value.clone());
        let fits = |e| Error::setting(key, format!("{key} is {value}; {}", what_fits(key, &e)));
        serde_json::from_value(Value::Object(keys)).map_err(fits)
    }

    /// The samplers in the value `named` of the key `sampler`, by default the present one, each with the flat keys of
    /// the released code, such as `sde_gamma`, that apply to it.
    fn samplers(
        &self,
        named: Option<Value>,
        flat: &Map<String, Value>,
        samplers: &Registry,
    ) -> Result<Vec<SamplerChoice>> {
        let named = match named {
            None => vec![self.sampler.clone()],
            Some(Value::Array(all)) => all.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?,
            Some(one) => vec![serde_json::from_value(one)?],
        };
        let mut all = Vec::new();
        for mut choice in named {
            for (key, value) in samplers.released(&choice.name, flat)?.settings {
                choice.settings.insert(key, value);
            }
            if choice.name == self.sampler.name {
                let before = self.sampler.settings.iter();
                before.for_each(|(key, value)| _ = choice.settings.entry(key).or_insert_with(|| value.clone()));
            }
            all.extend(samplers.combinations(&choice)?);
        }
        Ok(all)
    }

    /// A sampling file with this setting alone, without a guide, in the released code's keys where they exist.
    ///
    /// # Errors
    /// If the sampler is not registered.
    pub fn to_yaml(&self, samplers: &Registry) -> Result<String> {
        let mut keys: Map<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        keys.retain(|key, _| ![SAMPLER, GUIDE, WORD_GUIDE, GUIDE_SCALE, GUIDE_UNTIL].contains(&key.as_str()));
        let released = samplers.entry(&self.sampler.name)?.released_keys();
        let key_of = |setting: &String| released.iter().find(|(_, known)| known == setting).map(|(key, _)| *key);
        let mut lines = Vec::new();
        let flat: Option<Vec<(&str, &Value)>> =
            self.sampler.settings.iter().map(|(setting, value)| Some((key_of(setting)?, value))).collect();
        match flat {
            Some(flat) => {
                lines.push(format!("{METHOD}: {}", self.sampler.name));
                lines.extend(flat.into_iter().map(|(key, value)| format!("{key}: {value}")));
            }
            None => lines.push(format!("{SAMPLER}: {}", serde_json::to_value(&self.sampler)?)),
        }
        // JSON values are valid YAML.
        lines.extend(ORDER.iter().filter_map(|key| Some(format!("{key}: {}", keys.get(*key)?))));
        let line = |(i, line): (usize, &String)| format!("{} {line}\n", if i == 0 { "-" } else { " " });
        Ok(lines.iter().enumerate().map(line).collect())
    }
}

/// The keys of a setting except the sampler. In combinations, later keys vary faster.
pub(super) const ORDER: [&str; 15] = [
    "num_sampling_steps",
    "cfg",
    "self_cond_cfg_scale",
    "time_schedule",
    GUIDE,
    WORD_GUIDE,
    GUIDE_SCALE,
    GUIDE_UNTIL,
    "leap_at",
    "decode_at",
    "temperature",
    "top_p",
    "whole_words",
    "best_of",
    "mbr",
];
