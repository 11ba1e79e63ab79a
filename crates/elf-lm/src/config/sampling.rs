//! The keys of a sampling file: a list, each entry with lists of which every combination is run.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keys::{check_keys, parse_yaml};
use super::{RunPlan, TimeScheduleName};

/// The file in a model's folder that says how it is best sampled from.
pub const SAMPLING: &str = "sampling.yml";

/// A sampler by the released code's name, or any name that the registry knows.
pub type SamplingMethod = String;

/// One entry of a sampling file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// `ode`, `sde`, or any other sampler's name.
    pub sampling_method: SamplingMethod,
    /// Step counts to run.
    pub num_sampling_steps: Vec<usize>,
    /// Condition guidance scales to run; 1 disables guidance.
    pub cfgs: Vec<f64>,
    /// Self-conditioning guidance scales to run.
    pub self_cond_cfg_scales: Vec<f64>,
    /// The distribution of the time grid.
    pub time_schedule: TimeScheduleName,
    /// How much noise the SDE adds; 0 is the ODE.
    pub sde_gamma: f64,
    /// A weaker version of the model that autoguidance steers away from: a path relative to this file or to the working
    /// directory of `elf`; in the file of a model's own folder, only a path within that folder. Not in the released
    /// code.
    pub guide: Option<PathBuf>,
    /// Autoguidance scales to run; 1 disables it. Not in the released code.
    pub guide_scales: Vec<f64>,
    /// The time at which integration ends and the text is decoded. Not in the released code, which always uses 1.
    pub decode_at: f64,
    /// Temperature by which logits are divided before each word is drawn; 0 takes the likeliest word, as the released
    /// code always does.
    pub temperature: f64,
    /// Top-p (nucleus) sampling: draw words among the likeliest that together have this probability; 1 is all. Not in
    /// the released code.
    pub top_p: f64,
    /// Candidates generated per text, of which the one the network decodes with the highest confidence is kept. Not in
    /// the released code, which always uses 1.
    pub best_of: usize,
}

/// The scale of autoguidance unless another is given.
const GUIDE_SCALE: f64 = 3.0;

impl Default for SamplingConfig {
    /// The paper's setting for unconditional text in 32 steps.
    fn default() -> Self {
        Self {
            sampling_method: "sde".into(),
            num_sampling_steps: vec![32],
            cfgs: vec![1.0],
            self_cond_cfg_scales: vec![3.0],
            time_schedule: TimeScheduleName::LogitNormal,
            sde_gamma: 1.5,
            guide: None,
            guide_scales: vec![GUIDE_SCALE],
            decode_at: 1.0,
            temperature: 0.0,
            top_p: 1.0,
            best_of: 1,
        }
    }
}

/// One combination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingSetting {
    /// The sampler's name.
    pub sampling_method: SamplingMethod,
    /// Steps.
    pub num_sampling_steps: usize,
    /// Condition guidance scale.
    pub cfg: f64,
    /// Self-conditioning guidance scale.
    pub self_cond_cfg_scale: f64,
    /// The distribution of the time grid.
    pub time_schedule: TimeScheduleName,
    /// The SDE's noise.
    pub sde_gamma: f64,
    /// The model that autoguidance steers away from.
    pub guide: Option<PathBuf>,
    /// The autoguidance scale, if there is a guide.
    pub guide_scale: f64,
    /// The time at which the text is decoded.
    pub decode_at: f64,
    /// Temperature by which logits are divided before each word is drawn.
    pub temperature: f64,
    /// The probability of the words that are drawn among.
    pub top_p: f64,
    /// Candidates generated per text.
    pub best_of: usize,
}

impl Default for SamplingSetting {
    /// The first of the default file.
    fn default() -> Self {
        SamplingConfig::default().settings().swap_remove(0)
    }
}

impl SamplingConfig {
    /// The first list without a value.
    fn empty_list(&self) -> Option<&'static str> {
        let lists = [
            ("num_sampling_steps", self.num_sampling_steps.is_empty()),
            ("cfgs", self.cfgs.is_empty()),
            ("self_cond_cfg_scales", self.self_cond_cfg_scales.is_empty()),
            ("guide_scales", self.guide_scales.is_empty()),
        ];
        lists.into_iter().find_map(|(key, empty)| empty.then_some(key))
    }

    /// Every combination of the lists.
    pub fn settings(&self) -> Vec<SamplingSetting> {
        let mut all = Vec::new();
        let guide_scales = if self.guide.is_some() { &self.guide_scales[..] } else { &[GUIDE_SCALE] };
        for &num_sampling_steps in &self.num_sampling_steps {
            for &cfg in &self.cfgs {
                for &self_cond_cfg_scale in &self.self_cond_cfg_scales {
                    all.extend(guide_scales.iter().map(|&guide_scale| SamplingSetting {
                        sampling_method: self.sampling_method.clone(),
                        num_sampling_steps,
                        cfg,
                        self_cond_cfg_scale,
                        time_schedule: self.time_schedule,
                        sde_gamma: self.sde_gamma,
                        guide: self.guide.clone(),
                        guide_scale,
                        decode_at: self.decode_at,
                        temperature: self.temperature,
                        top_p: self.top_p,
                        best_of: self.best_of,
                    }));
                }
            }
        }
        all
    }
}

impl SamplingSetting {
    /// The setting that suits this model when nothing else is said: the paper's; for a distilled model the steps that it was
    /// made for, and what the released distilled model is sampled with.
    pub fn default_for(plan: &RunPlan) -> Self {
        let conditional = plan.span.max_input_length.is_some();
        let guided = plan.objective.self_conditioned();
        let setting = Self {
            sampling_method: if conditional { "ode" } else { "sde" }.into(),
            num_sampling_steps: if conditional { 64 } else { 32 },
            // Only conditional tasks leave conditions out, and one that never did has not learned what to lead away from.
            cfg: if plan.label_drop_prob > 0.0 { 2.0 } else { 1.0 },
            self_cond_cfg_scale: if conditional || !guided { 1.0 } else { 3.0 },
            time_schedule: TimeScheduleName::LogitNormal,
            ..Self::default()
        };
        let Some(distilled) = &plan.distillation else { return setting };
        let num_sampling_steps = distilled.step.student_steps();
        let (w, sde_gamma) = if num_sampling_steps <= 8 { (2.5, 1.5) } else { (2.0, 2.0) };
        Self {
            num_sampling_steps,
            self_cond_cfg_scale: if conditional || !guided { setting.self_cond_cfg_scale } else { w },
            sde_gamma: if conditional { setting.sde_gamma } else { sde_gamma },
            ..setting
        }
    }

    /// A short name for files: `sde-32-w3-cfg1-gamma1.5`, and `-uniform-guide3-at0.6-t0.8-p0.9-best4` where that is asked for.
    pub fn name(&self) -> String {
        let gamma = if self.sampling_method == "sde" { format!("-gamma{}", self.sde_gamma) } else { String::new() };
        let grid = match self.time_schedule {
            TimeScheduleName::LogitNormal => "",
            TimeScheduleName::Uniform => "-uniform",
        };
        let guide = if self.guide.is_some() { format!("-guide{}", self.guide_scale) } else { String::new() };
        let at = if self.decode_at == 1.0 { String::new() } else { format!("-at{}", self.decode_at) };
        let heat = if self.temperature == 0.0 { String::new() } else { format!("-t{}", self.temperature) };
        let top_p = if self.top_p == 1.0 { String::new() } else { format!("-p{}", self.top_p) };
        let best = if self.best_of == 1 { String::new() } else { format!("-best{}", self.best_of) };
        format!(
            "{}-{}-w{}-cfg{}{gamma}{grid}{guide}{at}{heat}{top_p}{best}",
            self.sampling_method, self.num_sampling_steps, self.self_cond_cfg_scale, self.cfg
        )
    }

    /// A sampling file that asks for this setting alone, without a guide.
    ///
    /// # Errors
    /// If a number cannot be written.
    pub fn to_yaml(&self) -> Result<String> {
        let config = SamplingConfig {
            sampling_method: self.sampling_method.clone(),
            num_sampling_steps: vec![self.num_sampling_steps],
            cfgs: vec![self.cfg],
            self_cond_cfg_scales: vec![self.self_cond_cfg_scale],
            time_schedule: self.time_schedule,
            sde_gamma: self.sde_gamma,
            decode_at: self.decode_at,
            temperature: self.temperature,
            top_p: self.top_p,
            best_of: self.best_of,
            ..SamplingConfig::default()
        };
        let Value::Object(keys) = serde_json::to_value(&config)? else { bail!("settings are a mapping") };
        let keys = keys.iter().filter(|(key, _)| !key.starts_with("guide"));
        // Values read the same in JSON and in YAML.
        let lines =
            keys.enumerate().map(|(i, (key, value))| format!("{} {key}: {value}\n", if i == 0 { "-" } else { " " }));
        Ok(lines.collect())
    }
}

/// Refuses settings of one name: the texts of each are kept under its name, so that one would replace the other.
///
/// # Errors
/// Names the first name that two settings have.
pub fn check_names(settings: &[SamplingSetting]) -> Result<()> {
    let mut names = HashSet::new();
    match settings.iter().map(SamplingSetting::name).find(|name| !names.insert(name.clone())) {
        Some(name) => {
            bail!("two sampling settings are both {name}, and their texts would replace one another: leave one out")
        }
        None => Ok(()),
    }
}

/// All settings of a sampling file, in its order.
///
/// # Errors
/// If it cannot be read, a key or value is wrong, it has none, or two of one name.
pub fn read_sampling_settings(path: &Path) -> Result<Vec<SamplingSetting>> {
    all_settings(&read_sampling_configs(path)?, path)
}

fn all_settings(configs: &[SamplingConfig], path: &Path) -> Result<Vec<SamplingSetting>> {
    let settings: Vec<SamplingSetting> = configs.iter().flat_map(SamplingConfig::settings).collect();
    check_names(&settings).with_context(|| path.display().to_string())?;
    Ok(settings)
}

/// Reads a sampling file. A guide is looked for beside it, and otherwise from where `elf` is called or on the hub.
///
/// # Errors
/// If it cannot be read, a key or value is wrong, or it asks for nothing.
fn read_sampling_configs(path: &Path) -> Result<Vec<SamplingConfig>> {
    let mut configs = parsed(path)?;
    for config in &mut configs {
        let beside = config.guide.as_ref().map(|guide| path.with_file_name(guide));
        config.guide = beside.filter(|beside| beside.exists()).or(config.guide.take());
    }
    Ok(configs)
}

/// All settings of the sampling file in a model's own folder. A guide is looked for in that folder alone, and need not be there:
/// whoever wrote the model may have meant another place, where somebody else's model lies by now.
///
/// # Errors
/// As [`read_sampling_settings`].
pub fn read_own_sampling_settings(folder: &Path) -> Result<Vec<SamplingSetting>> {
    let path = folder.join(SAMPLING);
    let mut configs = parsed(&path)?;
    for config in &mut configs {
        config.guide = config.guide.take().map(|guide| folder.join(guide));
    }
    all_settings(&configs, &path)
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
        bail!(
            "{} names the guide {}, which is not in that folder: name a lesser version of the model with --guide, or do \
             without one with --guide-scale 1",
            folder.join(SAMPLING).display(),
            guide.display()
        );
    }
    Ok(())
}

/// The entries of a sampling file, as they are written.
fn parsed(path: &Path) -> Result<Vec<SamplingConfig>> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the sampling file {origin}"))?;
    let value = parse_yaml(&text).with_context(|| format!("{origin} is no YAML"))?;
    // The released files are lists; some wrap the list in a mapping of one key.
    let entries = match value {
        Value::Array(entries) => entries,
        Value::Object(map) if map.len() == 1 && map.values().all(Value::is_array) => {
            map.into_iter().flat_map(|(_, v)| v.as_array().cloned().unwrap_or_default()).collect()
        }
        single @ Value::Object(_) => vec![single],
        _ => bail!("{origin} must be a list of sampling settings"),
    };
    if entries.is_empty() {
        bail!("{origin} holds no sampling setting: nothing would be sampled");
    }
    entries
        .into_iter()
        .enumerate()
        .map(|(i, entry)| {
            let origin = format!("{origin}, entry {}", i + 1);
            let Value::Object(map) = entry else { bail!("{origin} must be a mapping of keys to values") };
            check_keys::<SamplingConfig>(&map, &origin)?;
            let config: SamplingConfig = serde_json::from_value(Value::Object(map))
                .with_context(|| format!("{origin}: a value does not fit its key"))?;
            if let Some(key) = config.empty_list() {
                bail!("{origin}: {key} is an empty list, so that nothing would be sampled: give it a value, or leave it out");
            }
            Ok(config)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.yml");
        std::fs::write(&path, "- sampling_method: sde\n  num_sampling_steps: [8, 16]\n  self_cond_cfg_scales: [1, 3.0]\n  cfgs: [1]\n  sde_gamma: 2\n- sampling_method: ode\n").unwrap();
        let configs = read_sampling_configs(&path).unwrap();
        let names: Vec<_> = configs[0].settings().iter().map(SamplingSetting::name).collect();
        assert_eq!(
            names,
            ["sde-8-w1-cfg1-gamma2", "sde-8-w3-cfg1-gamma2", "sde-16-w1-cfg1-gamma2", "sde-16-w3-cfg1-gamma2"]
        );
        assert_eq!(configs[1].settings().len(), 1);
        // A guide is looked for beside the file, and then from here.
        std::fs::create_dir(folder.path().join("weak")).unwrap();
        std::fs::write(
            &path,
            "- guide: weak\n  guide_scales: [2, 3]\n  decode_at: 0.6\n  temperature: 0.8\n  top_p: 0.9\n  best_of: 4\n- guide: elsewhere\n",
        )
        .unwrap();
        let configs = read_sampling_configs(&path).unwrap();
        let names: Vec<_> = configs[0].settings().iter().map(SamplingSetting::name).collect();
        assert_eq!(names, [2, 3].map(|scale| format!("sde-32-w3-cfg1-gamma1.5-guide{scale}-at0.6-t0.8-p0.9-best4")));
        assert_eq!(configs[0].guide, Some(folder.path().join("weak")));
        assert_eq!(configs[1].settings()[0].guide, Some("elsewhere".into()));
        // What is written for a model is read again.
        let setting =
            SamplingSetting { num_sampling_steps: 8, sde_gamma: 2.0, decode_at: 0.9, ..SamplingSetting::default() };
        std::fs::write(&path, setting.to_yaml().unwrap()).unwrap();
        assert_eq!(read_sampling_settings(&path).unwrap(), [setting]);
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", read_sampling_settings(&path).unwrap_err())
        };
        // Settings that differ in the grid alone have names of their own; those that cannot be told apart are refused.
        std::fs::write(&path, "- time_schedule: uniform\n- time_schedule: logit_normal\n").unwrap();
        let names: Vec<_> = read_sampling_settings(&path).unwrap().iter().map(SamplingSetting::name).collect();
        assert_eq!(names, ["sde-32-w3-cfg1-gamma1.5-uniform", "sde-32-w3-cfg1-gamma1.5"]);
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
        // One that a model brings along is in the model's folder, or it is refused.
        let own = |guide: &str| {
            std::fs::write(folder.path().join(SAMPLING), format!("guide: {guide}\n")).unwrap();
            let guide = read_own_sampling_settings(folder.path()).unwrap()[0].guide.clone().unwrap();
            check_own_guide(folder.path(), &guide)
        };
        own("weak").unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        for elsewhere in ["stronger", ".", "..", "model/../weak", "/", "/tmp", "crates"] {
            let message = own(elsewhere).unwrap_err().to_string();
            assert!(message.contains("--guide-scale 1") && message.contains(SAMPLING), "{message}");
        }
        std::fs::write(&path, "- sampling_metod: sde\n").unwrap();
        let message = read_sampling_configs(&path).unwrap_err().to_string();
        assert!(message.contains("`sampling_metod`") && message.contains("`sampling_method`"), "{message}");
    }
}
