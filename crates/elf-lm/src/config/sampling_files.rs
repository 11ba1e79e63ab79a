//! Files of sampling settings, and the choice of settings for a model.

use std::collections::HashSet;
use std::path::{Component, Path};

use elf_flow::sampler::Registry;
use serde_json::Value;

use super::RunPlan;
use super::keys::{check_known, parse_yaml};
use super::sampling::{GUIDE, GUIDE_SCALE, GUIDE_UNTIL, ORDER, RELEASED, SAMPLER, SAMPLING, Sampling, SamplingPatch};
use crate::error::{Context, fail};
use crate::{Host, Result};

/// Refuses settings with the same name: each one's texts are stored under its name.
///
/// # Errors
/// If two settings have the same name; the message has the first such name.
pub fn check_names(settings: &[Sampling]) -> Result<()> {
    let mut names = HashSet::new();
    match settings.iter().map(Sampling::name).find(|name| !names.insert(name.clone())) {
        Some(name) => fail!(
            setting(&name),
            "two sampling settings have the name {name}, and their texts would overwrite one another: leave one out"
        ),
        None => Ok(()),
    }
}

/// All settings of a sampling file, in order. A guide's path counts from the file's folder if it exists there;
/// otherwise it is a path from the working directory or a Hugging Face id.
///
/// # Errors
/// If the file cannot be read, a key or value is invalid, there is no setting, or two settings have the same name.
pub fn read_sampling(path: &Path, samplers: &Registry) -> Result<Vec<Sampling>> {
    let mut settings = parsed(path, samplers)?;
    for setting in &mut settings {
        let beside = setting.guide.as_ref().map(|guide| path.with_file_name(guide));
        setting.guide = beside.filter(|beside| beside.exists()).or(setting.guide.take());
    }
    check_names(&settings).with_context(|| path.display())?;
    Ok(settings)
}

/// All settings of the sampling file in a model's own folder. A guide's path counts from that folder only: in the
/// working directory, the same name may belong to an unrelated model. The guide need not exist.
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
/// If it is outside the folder, or does not exist.
pub fn check_own_guide(folder: &Path, guide: &Path) -> Result<()> {
    let inside = guide.strip_prefix(folder).is_ok_and(|path| {
        path.components().next().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)))
    });
    if !inside || !guide.exists() {
        fail!(
            place(guide),
            "{} names the guide {}, which is not in that folder: name a weaker version of the model with --guide, or do \
             without one with --guide-scale 1",
            folder.join(SAMPLING).display(),
            guide.display()
        );
    }
    Ok(())
}

/// The settings of a sampling file, with the paths of guides as written.
fn parsed(path: &Path, samplers: &Registry) -> Result<Vec<Sampling>> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the sampling settings {origin}"))?;
    let entries = match parse_yaml(&text).with_context(|| format!("{origin} is not YAML"))? {
        Value::Array(entries) => entries,
        single @ Value::Object(_) => vec![single],
        _ => fail!(place(path), "{origin} must be a list of sampling settings"),
    };
    if entries.is_empty() {
        fail!(place(path), "{origin} holds no sampling setting: nothing would be sampled");
    }
    let known = known_keys(samplers);
    let mut settings = Vec::new();
    for (i, entry) in entries.into_iter().enumerate() {
        let origin = format!("{origin}, entry {}", i + 1);
        let Value::Object(map) = entry else { fail!(place(path), "{origin} must be a mapping of keys to values") };
        check_known(&map, &known, &origin)?;
        settings.extend(Sampling::default().merged(&SamplingPatch(map), samplers).context(origin)?);
    }
    Ok(settings)
}

/// All keys that a setting may have: its own and those of the released code.
fn known_keys(samplers: &Registry) -> Vec<&str> {
    let own = ORDER.iter().copied().chain([SAMPLER]).chain(RELEASED.iter().map(|(released, _)| *released));
    own.chain(samplers.released_keys().map(|(key, _)| key)).collect()
}

/// A model for which to choose sampling settings.
#[derive(Debug, Clone, Copy)]
pub struct SamplingOf<'a> {
    /// The model's folder, whose own sampling file is used if no other is named.
    pub folder: &'a Path,
    /// The plan that the model was trained by.
    pub plan: &'a RunPlan,
    /// The registered samplers.
    pub samplers: &'a Registry,
}

impl SamplingOf<'_> {
    /// The settings in `file`, or those in the model's own sampling file, or the default for the model; with the
    /// changes of `patch`.
    ///
    /// # Errors
    /// If the file is invalid, or a change has no effect.
    pub fn settings(&self, file: Option<&Path>, patch: &SamplingPatch, host: &Host) -> Result<Vec<Sampling>> {
        check_known(&patch.0, &known_keys(self.samplers), "the sampling setting")?;
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
                        "note: evaluations in this model's training used {path}; --sampling-config {path} uses the same settings"
                    ));
                }
                vec![Sampling::default_for(self.plan)]
            }
        };
        // A change that replaces a file's list makes several settings equal.
        let mut different: Vec<Sampling> = Vec::new();
        for setting in settings {
            for mut setting in setting.merged(patch, self.samplers)? {
                self.check_effect(&setting, patch)?;
                if setting.guide_scale == 1.0 {
                    (setting.guide, setting.word_guide) = (None, false);
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
        [self.note_on_few_steps(&different), self.note_on_condition_guidance(&different)]
            .into_iter()
            .flatten()
            .for_each(|note| host.note(note));
        Ok(different)
    }

    /// A note if a distilled model is to take fewer, longer steps than it was trained for.
    fn note_on_few_steps(&self, settings: &[Sampling]) -> Option<String> {
        let learned = self.plan.distillation.as_ref()?.step.student_steps();
        let fewest = settings.iter().map(|s| s.num_sampling_steps).min().filter(|&steps| steps < learned)?;
        Some(format!(
            "note: this model was distilled for {learned} steps; with {fewest} its steps are longer than any it was trained on"
        ))
    }

    /// A note if condition guidance is on and the model was never trained without a condition.
    fn note_on_condition_guidance(&self, settings: &[Sampling]) -> Option<String> {
        let unlearned = self.plan.span.max_input_length.is_some() && self.plan.label_drop_prob == 0.0;
        let scale = settings.iter().map(|s| s.cfg).find(|&scale| unlearned && scale != 1.0)?;
        Some(format!(
            "note: this model was never trained without a condition (label_drop_prob 0), so condition guidance of {scale} relies on \
             estimates that it has not learned; --cfg 1 turns guidance off"
        ))
    }

    /// Refuses changes that have no effect on this setting.
    fn check_effect(&self, setting: &Sampling, patch: &SamplingPatch) -> Result<()> {
        for (key, option) in [(GUIDE_SCALE, "--guide-scale"), (GUIDE_UNTIL, "--guide-until")] {
            if patch.has(key) && !setting.guided() {
                fail!(
                    setting(key),
                    "{option} has no effect without a guide: name a weaker version of the model with --guide, or take its --word-guide"
                );
            }
        }
        let accepted = self.samplers.entry(&setting.sampler.name)?.released_keys();
        for entry in self.samplers.entries() {
            if let Some((key, _)) = entry.released_keys().iter().find(|key| patch.has(key.0) && !accepted.contains(key))
            {
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
    use std::path::PathBuf;

    use elf_flow::sampler::{Euler, SamplerChoice, Sde};

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
        let text = "- guide: weak\n  guide_scales: [2, 3]\n  guide_until: 0.3\n  decode_at: 0.6\n  temperature: 0.8\n  top_p: 0.9\n  best_of: 4\n- guide: elsewhere\n";
        let (folder, path) = written(text);
        std::fs::create_dir(folder.path().join("weak")).unwrap();
        let settings = read_sampling(&path, &Registry::builtin()).unwrap();
        let expected =
            [2, 3].map(|scale| format!("sde-32-w3-cfg1-gamma1.5-guide{scale}-until0.3-at0.6-t0.8-p0.9-best4"));
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
        assert_eq!(merged(patch()), std::slice::from_ref(&own));
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
        assert!(refused("- cfgs: many\n").contains("cfg must be a number"));
    }
}
