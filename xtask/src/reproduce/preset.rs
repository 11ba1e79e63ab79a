//! The presets by name.

use clap::ValueEnum;

/// A set of experiments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// The three embedded tasks, ELF against its baselines, and the ablations. No network.
    Mini,
    /// ELF-B on OpenWebText.
    OwtB,
    /// ELF-M on OpenWebText.
    OwtM,
    /// ELF-L on OpenWebText.
    OwtL,
    /// ELF-B on WMT14, German to English.
    DeEn,
    /// ELF-B on XSum.
    Xsum,
    /// Progressive distillation of ELF-B on OpenWebText.
    Pd,
}

impl Preset {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Work folders have these names.
    #[test]
    fn presets_have_the_names_of_the_command_line() {
        let names: Vec<String> = Preset::value_variants().iter().map(|preset| preset.name()).collect();
        assert_eq!(names, ["mini", "owt-b", "owt-m", "owt-l", "de-en", "xsum", "pd"]);
    }
}
