//! How texts are sampled: one setting, changes to it, and files of settings with lists of which every combination is run.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use elf_flow::sampler::{Euler, Registry, SamplerChoice, Sde};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::keys::{check_known, parse_yaml};
use super::{RunPlan, TimeScheduleName};
use crate::error::{Context, fail};
use crate::{Host, Result};

/// The file in a model's folder that says how it is best sampled from.
pub const SAMPLING: &str = "sampling.yml";

/// The released code's names of keys, whose values are lists there.
const RELEASED: [(&str, &str); 4] = [
    (METHOD, SAMPLER),
    ("cfgs", "cfg"),
    ("self_cond_cfg_scales", "self_cond_cfg_scale"),
    ("guide_scales", GUIDE_SCALE),
];
const METHOD: &str = "sampling_method";
const SAMPLER: &str = "sampler";
const GUIDE: &str = "guide";
const GUIDE_SCALE: &str = "guide_scale";

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
    /// A weaker version of the model that autoguidance steers away from. In a file: a path relative to the file or to the working
    /// directory; in the file of a model's own folder, only a path within that folder. Not in the released code.
    pub guide: Option<PathBuf>,
    /// Autoguidance scale, if there is a guide; 1 is none.
    pub guide_scale: f64,
    /// The time at which integration ends and the text is decoded. The released code always uses 1.
    pub decode_at: f64,
    /// Temperature by which logits are divided before each word is drawn; 0 takes the likeliest word, as the released code does.
    pub temperature: f64,
    /// Top-p (nucleus) sampling: words are drawn among the likeliest that together have this probability; 1 is all.
    pub top_p: f64,
    /// Candidates generated per text, of which the one that is decoded with the highest confidence is kept.
    pub best_of: usize,
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
            guide_scale: 3.0,
            decode_at: 1.0,
            temperature: 0.0,
            top_p: 1.0,
            best_of: 1,
        }
    }
}

/// Changes to a [`Sampling`], by key: its own keys or those of the released code. A value may be a list of values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingPatch(Map<String, Value>);

impl SamplingPatch {
    /// All fields of `keys` that are not null.
    ///
    /// # Errors
    /// If it is no mapping.
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

    /// Whether a key is changed.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

impl Sampling {
    /// The same in another number of steps.
    pub fn steps(self, steps: usize) -> Self {
        Self { num_sampling_steps: steps, ..self }
    }

    /// The setting that suits this model when nothing else is said: the paper's; for a distilled model the steps that it was
    /// made for, and what the released distilled model is sampled with.
    pub fn default_for(plan: &RunPlan) -> Self {
        let conditional = plan.span.max_input_length.is_some();
        let guided = plan.objective.self_conditioned();
        // By the name that the released code and its files have for it.
        let euler = || SamplerChoice { name: "ode".into(), ..SamplerChoice::of(&Euler {}) };
        let setting = Self {
            sampler: if conditional { euler() } else { SamplerChoice::of(&Sde::default()) },
            num_sampling_steps: if conditional { 64 } else { 32 },
            // Only conditional tasks leave conditions out, and one that never did has not learned what to lead away from.
            cfg: if plan.label_drop_prob > 0.0 { 2.0 } else { 1.0 },
            self_cond_cfg_scale: if conditional || !guided { 1.0 } else { 3.0 },
            ..Self::default()
        };
        let Some(distilled) = &plan.distillation else { return setting };
        let num_sampling_steps = distilled.step.student_steps();
        let (w, gamma) = if num_sampling_steps <= 8 { (2.5, 1.5) } else { (2.0, 2.0) };
        Self {
            num_sampling_steps,
            self_cond_cfg_scale: if conditional || !guided { setting.self_cond_cfg_scale } else { w },
            sampler: if conditional { setting.sampler } else { SamplerChoice::of(&Sde { gamma }) },
            ..setting
        }
    }

    /// A short name for files: `sde-32-w3-cfg1-gamma1.5`, and `-uniform-guide3-at0.6-t0.8-p0.9-best4` where that is asked for.
    pub fn name(&self) -> String {
        let unless = |usual: bool, part: String| if usual { String::new() } else { part };
        [
            format!("{}-{}", self.sampler.name, self.num_sampling_steps),
            format!("-w{}-cfg{}", self.self_cond_cfg_scale, self.cfg),
            self.sampler.settings_label(),
            unless(self.time_schedule == TimeScheduleName::LogitNormal, "-uniform".to_owned()),
            unless(self.guide.is_none(), format!("-guide{}", self.guide_scale)),
            unless(self.decode_at == 1.0, format!("-at{}", self.decode_at)),
            unless(self.temperature == 0.0, format!("-t{}", self.temperature)),
            unless(self.top_p == 1.0, format!("-p{}", self.top_p)),
            unless(self.best_of == 1, format!("-best{}", self.best_of)),
        ]
        .concat()
    }

    /// Every combination of the values in `patch`, over this setting. A sampler that is named again keeps its settings.
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
                fail!(setting(written), "{written} says anew what {key} says: leave one of them out");
            }
        }
        let mut all = Vec::new();
        for sampler in self.samplers(own.remove(SAMPLER), &of_sampler, samplers)? {
            all.push(Self { sampler, ..self.clone() });
        }
        let guided = own.get(GUIDE).map_or(self.guide.is_some(), |guide| !guide.is_null());
        // The keys of this type in their order, so that those that come later vary faster.
        let keys: Map<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        for key in ORDER.iter().copied() {
            debug_assert!(keys.contains_key(key));
            let Some(values) = own.remove(key).filter(|_| guided || key != GUIDE_SCALE) else { continue };
            let values = if let Value::Array(values) = values { values } else { vec![values] };
            let mut more = Vec::new();
            for setting in &all {
                for value in &values {
                    more.push(setting.with(key, value.clone())?);
                }
            }
            all = more;
        }
        Ok(all)
    }

    fn with(&self, key: &str, value: Value) -> Result<Self> {
        let mut keys: Map<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        keys.insert(key.to_owned(), value);
        serde_json::from_value(Value::Object(keys)).context("a value does not fit its key")
    }

    /// The samplers of the value of `sampler`, or this one's, with what flat keys of the released form say of them.
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

    /// A sampling file that asks for this setting alone, without a guide; in the released code's keys as far as it has them.
    ///
    /// # Errors
    /// If there is no such sampler.
    pub fn to_yaml(&self, samplers: &Registry) -> Result<String> {
        let mut keys: Map<String, Value> = serde_json::from_value(serde_json::to_value(self)?)?;
        keys.retain(|key, _| ![SAMPLER, GUIDE, GUIDE_SCALE].contains(&key.as_str()));
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
        // Values read the same in JSON and in YAML.
        lines.extend(ORDER.iter().filter_map(|key| Some(format!("{key}: {}", keys.get(*key)?))));
        let line = |(i, line): (usize, &String)| format!("{} {line}\n", if i == 0 { "-" } else { " " });
        Ok(lines.iter().enumerate().map(line).collect())
    }
}

/// The keys of a setting but for the sampler; those that come later vary faster.
const ORDER: [&str; 10] = [
    "num_sampling_steps",
    "cfg",
    "self_cond_cfg_scale",
    "time_schedule",
    GUIDE,
    GUIDE_SCALE,
    "decode_at",
    "temperature",
    "top_p",
    "best_of",
];

/// Refuses settings of one name: the texts of each are kept under its name, so that one would replace the other.
///
/// # Errors
/// Names the first name that two settings have.
pub fn check_names(settings: &[Sampling]) -> Result<()> {
    let mut names = HashSet::new();
    match settings.iter().map(Sampling::name).find(|name| !names.insert(name.clone())) {
        Some(name) => fail!(
            setting(&name),
            "two sampling settings are both {name}, and their texts would replace one another: leave one out"
        ),
        None => Ok(()),
    }
}

/// All settings of a sampling file, in its order. A guide is looked for beside the file, and otherwise in the working directory or
/// on the hub.
///
/// # Errors
/// If it cannot be read, a key or value is wrong, it has none, or two of one name.
pub fn read_sampling(path: &Path, samplers: &Registry) -> Result<Vec<Sampling>> {
    let mut settings = parsed(path, samplers)?;
    for setting in &mut settings {
        let beside = setting.guide.as_ref().map(|guide| path.with_file_name(guide));
        setting.guide = beside.filter(|beside| beside.exists()).or(setting.guide.take());
    }
    check_names(&settings).with_context(|| path.display())?;
    Ok(settings)
}

/// All settings of the sampling file in a model's own folder. A guide is looked for in that folder alone, and need not be there:
/// whoever wrote the model may have meant another place, where somebody else's model lies by now.
///
/// # Errors
/// As [`read_sampling`].
pub fn read_own_sampling(folder: &Path, samplers: &Registry) -> Result<Vec<Sampling>> {
    let path = folder.join(SAMPLING);
    let mut settings = parsed(&path, samplers)?;
    for setting in &mut settings {
        setting.guide = setting.guide.take().map(|guide| folder.join(guide));
    }
    check_names(&settings).with_context(|| path.display())?;
    Ok(settings)
}

/// Checks that a guide which a model's own sampling file names is in the model's folder.
///
/// # Errors
/// If it is elsewhere, or nowhere.
pub fn check_own_guide(folder: &Path, guide: &Path) -> Result<()> {
    let inside = guide.strip_prefix(folder).is_ok_and(|path| {
        path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
    });
    if !inside || !guide.exists() {
        fail!(
            place(guide),
            "{} names the guide {}, which is not in that folder: name a lesser version of the model with --guide, or do \
             without one with --guide-scale 1",
            folder.join(SAMPLING).display(),
            guide.display()
        );
    }
    Ok(())
}

/// The settings of a sampling file, with guides as they are written.
fn parsed(path: &Path, samplers: &Registry) -> Result<Vec<Sampling>> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the sampling settings {origin}"))?;
    let entries = match parse_yaml(&text).with_context(|| format!("{origin} is no YAML"))? {
        Value::Array(entries) => entries,
        single @ Value::Object(_) => vec![single],
        _ => fail!(place(path), "{origin} must be a list of sampling settings"),
    };
    if entries.is_empty() {
        fail!(place(path), "{origin} holds no sampling setting: nothing would be sampled");
    }
    let known = ORDER.iter().copied().chain([SAMPLER]).chain(RELEASED.iter().map(|(released, _)| *released));
    let known: Vec<&str> = known.chain(samplers.released_keys().map(|(key, _)| key)).collect();
    let mut settings = Vec::new();
    for (i, entry) in entries.into_iter().enumerate() {
        let origin = format!("{origin}, entry {}", i + 1);
        let Value::Object(map) = entry else { fail!(place(path), "{origin} must be a mapping of keys to values") };
        check_known(&map, &known, &origin)?;
        settings.extend(Sampling::default().merged(&SamplingPatch(map), samplers).context(origin)?);
    }
    Ok(settings)
}

/// What a model can be sampled with, and where that may be written.
#[derive(Debug, Clone, Copy)]
pub struct SamplingOf<'a> {
    /// The model's folder, whose own file counts if no other is named.
    pub folder: &'a Path,
    /// How the model was trained.
    pub plan: &'a RunPlan,
    /// The samplers that there are.
    pub samplers: &'a Registry,
}

impl SamplingOf<'_> {
    /// The settings of `file`, or of the file that comes with the model, or what suits the model; with the changes of `patch`.
    ///
    /// # Errors
    /// If the file cannot be used, or a change has no effect.
    pub fn settings(&self, file: Option<&Path>, patch: &SamplingPatch, host: &Host) -> Result<Vec<Sampling>> {
        let own = Some(self.folder.join(SAMPLING)).filter(|path| file.is_none() && path.is_file());
        if let Some(path) = file.or(own.as_deref()) {
            host.note(format!("sampling settings: {}", path.display()));
        }
        let settings = match (file, &own) {
            (Some(path), _) => read_sampling(path, self.samplers)?,
            (None, Some(_)) => read_own_sampling(self.folder, self.samplers)?,
            (None, None) => {
                if let Some(path) = &self.plan.config.evaluation.sampling_configs_path {
                    host.note(format!(
                        "note: the training of this model names {path} for its evaluations; --sampling-config {path} samples so, too"
                    ));
                }
                vec![Sampling::default_for(self.plan)]
            }
        };
        // Where a change takes the place of a file's list, what was several is one.
        let mut different: Vec<Sampling> = Vec::new();
        for setting in settings {
            for mut setting in setting.merged(patch, self.samplers)? {
                self.check_effect(&setting, patch)?;
                if setting.guide_scale == 1.0 {
                    setting.guide = None;
                }
                if let (Some(guide), Some(_), false) = (&setting.guide, &own, patch.has(GUIDE)) {
                    check_own_guide(self.folder, guide)?;
                }
                if !different.contains(&setting) {
                    different.push(setting);
                }
            }
        }
        check_names(&different)?;
        [self.fewer_steps_than_learned(&different), self.guided_by_what_is_not_learned(&different)]
            .into_iter()
            .flatten()
            .for_each(|note| host.note(note));
        Ok(different)
    }

    /// A note to someone who asks a distilled model for longer steps than it has learned.
    fn fewer_steps_than_learned(&self, settings: &[Sampling]) -> Option<String> {
        let learned = self.plan.distillation.as_ref()?.step.student_steps();
        let fewest = settings.iter().map(|s| s.num_sampling_steps).min().filter(|&steps| steps < learned)?;
        Some(format!(
            "note: this model was distilled for {learned} steps; with {fewest} its steps are longer than any that it has learned"
        ))
    }

    /// A note to someone who asks for guidance by a condition that was never left out in training.
    fn guided_by_what_is_not_learned(&self, settings: &[Sampling]) -> Option<String> {
        let unlearned = self.plan.span.max_input_length.is_some() && self.plan.label_drop_prob == 0.0;
        let scale = settings.iter().map(|s| s.cfg).find(|&scale| unlearned && scale != 1.0)?;
        Some(format!(
            "note: this model never wrote without a condition in training (label_drop_prob 0), so condition guidance of {scale} leads away \
             from texts that it has not learned; --cfg 1 does without"
        ))
    }

    /// Refuses changes that have no effect on this setting.
    fn check_effect(&self, setting: &Sampling, patch: &SamplingPatch) -> Result<()> {
        if patch.has(GUIDE_SCALE) && setting.guide.is_none() {
            fail!(
                setting(GUIDE_SCALE),
                "--guide-scale has no effect without a guide: name a lesser version of the model with --guide"
            );
        }
        let accepted = self.samplers.entry(&setting.sampler.name)?.released_keys();
        for entry in self.samplers.entries() {
            for (key, _) in entry.released_keys().iter().filter(|key| patch.has(key.0) && !accepted.contains(key)) {
                fail!(
                    setting(*key),
                    "--{} has no effect on the sampler `{}`: leave it out, or take --sampler {}",
                    key.replace('_', "-"),
                    setting.sampler.name,
                    entry.name()
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(settings: &[Sampling]) -> Vec<String> {
        settings.iter().map(Sampling::name).collect()
    }

    /// A folder with a file of settings.
    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.yml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn read(text: &str) -> Result<Vec<Sampling>> {
        read_sampling(&written(text).1, &Registry::builtin())
    }

    fn refused(text: &str) -> String {
        let (_folder, path) = written(text);
        read_sampling(&path, &Registry::builtin()).unwrap_err().report()
    }

    #[test]
    fn every_combination_of_lists_is_run() {
        let (_folder, path) = written(
            "- sampling_method: sde\n  num_sampling_steps: [8, 16]\n  self_cond_cfg_scales: [1, 3.0]\n  cfgs: [1]\n  sde_gamma: 2\n- sampling_method: ode\n",
        );
        let settings = read_sampling(&path, &Registry::builtin()).unwrap();
        assert_eq!(
            names(&settings),
            [
                "sde-8-w1-cfg1-gamma2",
                "sde-8-w3-cfg1-gamma2",
                "sde-16-w1-cfg1-gamma2",
                "sde-16-w3-cfg1-gamma2",
                "ode-32-w3-cfg1"
            ]
        );
    }

    #[test]
    fn samplers_are_written_with_their_settings_in_either_form() {
        let (_folder, path) = written(
            "- sampler: {name: sde, gamma: [1, 1.5]}\n- sampler: heun\n- sampling_method: sde\n  sde_gamma: 2.0\n- sampling_method: ode\n  sde_gamma: 0\n",
        );
        let settings = read_sampling(&path, &Registry::builtin()).unwrap();
        let expected = [
            "sde-32-w3-cfg1-gamma1",
            "sde-32-w3-cfg1-gamma1.5",
            "heun-32-w3-cfg1",
            "sde-32-w3-cfg1-gamma2",
            "ode-32-w3-cfg1",
        ];
        assert_eq!(names(&settings), expected);
        // What is left out has its default.
        assert_eq!(read("sampling_method: sde\n").unwrap(), [Sampling::default()]);
        assert!(refused("sampler: {name: sde, gama: 1}\n").contains("`gama`"));
        assert!(refused("sampler: sde\nsampling_method: ode\n").contains("leave one of them out"));
    }

    #[test]
    fn guides_are_looked_for_beside_the_file() {
        let text = "- guide: weak\n  guide_scales: [2, 3]\n  decode_at: 0.6\n  temperature: 0.8\n  top_p: 0.9\n  best_of: 4\n- guide: elsewhere\n";
        let (folder, path) = written(text);
        std::fs::create_dir(folder.path().join("weak")).unwrap();
        let settings = read_sampling(&path, &Registry::builtin()).unwrap();
        let expected = [2, 3].map(|scale| format!("sde-32-w3-cfg1-gamma1.5-guide{scale}-at0.6-t0.8-p0.9-best4"));
        assert_eq!(names(&settings)[..2], expected);
        assert_eq!(settings[0].guide, Some(folder.path().join("weak")));
        assert_eq!(settings[2].guide, Some("elsewhere".into()));
        // One that a model brings along is in the model's folder, or it is refused.
        let own = |guide: &str| {
            std::fs::write(folder.path().join(SAMPLING), format!("guide: {guide}\n")).unwrap();
            let settings = read_own_sampling(folder.path(), &Registry::builtin()).unwrap();
            check_own_guide(folder.path(), settings[0].guide.as_ref().unwrap())
        };
        own("weak").unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        for elsewhere in ["stronger", ".", "..", "model/../weak", "/", "/tmp", "crates"] {
            let message = own(elsewhere).unwrap_err().to_string();
            assert!(message.contains("--guide-scale 1") && message.contains(SAMPLING), "{message}");
        }
    }

    #[test]
    fn a_setting_that_is_written_is_read_again() {
        let samplers = Registry::builtin();
        for sampler in [SamplerChoice::of(&Sde { gamma: 2.0 }), SamplerChoice::of(&Euler {})] {
            let setting = Sampling { num_sampling_steps: 8, sampler, decode_at: 0.9, ..Sampling::default() };
            let text = setting.to_yaml(&samplers).unwrap();
            assert!(text.contains("sampling_method"), "{text}");
            assert_eq!(read(&text).unwrap(), [setting]);
        }
        // A sampler without a form in the released code.
        for entry in samplers.entries().filter(|entry| !entry.defaults().unwrap().is_empty()) {
            let choice = SamplerChoice { name: entry.name().into(), settings: entry.defaults().unwrap() };
            let setting = Sampling { sampler: choice, ..Sampling::default() };
            assert_eq!(read(&setting.to_yaml(&samplers).unwrap()).unwrap(), [setting]);
        }
    }

    #[test]
    fn changes_replace_what_a_file_says_and_keep_the_rest() {
        let samplers = Registry::builtin();
        let own = Sampling { sampler: SamplerChoice::of(&Sde { gamma: 2.0 }), ..Sampling::default() };
        let merged = |patch: SamplingPatch| own.merged(&patch, &samplers).unwrap();
        let patch = SamplingPatch::default;
        assert_eq!(merged(patch()), [own.clone()]);
        assert_eq!(names(&merged(patch().with("sampler", "sde"))), ["sde-32-w3-cfg1-gamma2"]);
        assert_eq!(names(&merged(patch().with("sampler", "heun").with("cfg", 2.0))), ["heun-32-w3-cfg2"]);
        assert_eq!(names(&merged(patch().with("sde_gamma", 1.0))), ["sde-32-w3-cfg1-gamma1"]);
        assert_eq!(merged(patch().with("num_sampling_steps", vec![1, 2])).len(), 2);
    }

    #[test]
    fn mistakes_are_named() {
        // Settings that differ in the grid alone have names of their own; those that cannot be told apart are refused.
        let settings = read("- time_schedule: uniform\n- time_schedule: logit_normal\n").unwrap();
        assert_eq!(names(&settings), ["sde-32-w3-cfg1-gamma1.5-uniform", "sde-32-w3-cfg1-gamma1.5"]);
        let message = refused("- num_sampling_steps: [8, 16, 8]\n");
        assert!(message.contains("s.yml") && message.contains("sde-8-w3-cfg1-gamma1.5"), "{message}");
        for key in ["num_sampling_steps", "cfgs", "self_cond_cfg_scales", "guide_scales"] {
            let message = refused(&format!("- {key}: []\n"));
            assert!(
                message.contains("entry 1") && message.contains(key) && message.contains("empty list"),
                "{message}"
            );
        }
        assert!(refused("[]\n").contains("holds no sampling setting"));
        let message = refused("- sampling_metod: sde\n");
        assert!(message.contains("`sampling_metod`") && message.contains("`sampling_method`"), "{message}");
        assert!(refused("- cfgs: many\n").contains("does not fit its key"));
    }
}
