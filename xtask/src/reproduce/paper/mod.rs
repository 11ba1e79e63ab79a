//! The paper's own settings: OpenWebText at three sizes, WMT14 German to English, XSum, and progressive distillation, with the
//! authors' data and, if wished, their checkpoints, by their ids on the Hugging Face hub.

pub mod report;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::preset::Preset;
use super::stage::{Call, Cost, Stage, StageName};

/// Numbers that the authors have published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Published {
    /// Perplexity of unconditional text.
    pub ppl: Option<f64>,
    /// Entropy in nats.
    pub entropy: Option<f64>,
    /// BLEU of translations.
    pub bleu: Option<f64>,
    /// ROUGE-1, -2 and -L of summaries.
    pub rouge: Option<[f64; 3]>,
}

const NOTHING: Published = Published { ppl: None, entropy: None, bleu: None, rouge: None };

/// Their source.
pub const SOURCE: &str = "Hu et al., ELF: Embedded Language Flows, arXiv 2605.10938";
/// The source of those of distilled models.
pub const DISTILLATION_SOURCE: &str = "the authors' note on progressive distillation";

/// One setting of sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The stage of its evaluation.
    pub stage: StageName,
    /// Its name in the report.
    pub label: String,
    /// Steps.
    pub steps: u64,
    /// Words for `elf sample`.
    sampling: Vec<String>,
    /// The published numbers.
    pub published: Published,
}

/// Builds the stages of one of the paper's presets.
pub struct Paper<'a> {
    /// The preset.
    pub preset: Preset,
    /// The work folder, relative to the repository.
    pub work: &'a Path,
    /// Take the authors' checkpoint in place of a training.
    pub from_released: bool,
}

/// Settings in which presets differ.
struct Experiment {
    config: &'static str,
    checkpoint: &'static str,
    train_data: &'static str,
    test_data: Option<&'static str>,
    /// Parameters, each used once for a position.
    weights: f64,
    /// Positions of a training run.
    positions: f64,
    /// Positions of a generated text.
    length: f64,
    batch: u64,
}

const HUB: &str = "embedded-language-flows";
/// Tokens of OpenWebText in the authors' form, each stored in four bytes of an Arrow column; the texts are stored as well.
const OWT_BYTES: f64 = 9.04e9 * 4.0;
const GPT2_LARGE_BYTES: f64 = 3.2e9;

impl Paper<'_> {
    fn experiment(&self) -> Experiment {
        let owt = |config, checkpoint, weights, epochs: f64| Experiment {
            config,
            checkpoint,
            train_data: "openwebtext-t5",
            test_data: None,
            weights,
            positions: epochs * 19_017.0 * 512.0 * 1024.0,
            length: 1024.0,
            batch: 64,
        };
        match self.preset {
            Preset::OwtM => owt("configs/owt-elf-m.yml", "ELF-M-owt-torch", 3.25e8, 4.0),
            Preset::OwtL => owt("configs/owt-elf-l.yml", "ELF-L-owt-torch", 6.35e8, 3.0),
            Preset::DeEn => Experiment {
                config: "configs/wmt14-de-en.yml",
                checkpoint: "ELF-B-de-en-torch",
                train_data: "wmt14_de-en_train_t5",
                test_data: Some("wmt14_de-en_validation_t5"),
                weights: 8.8e7,
                positions: 880_600.0 * 512.0 * 128.0,
                length: 128.0,
                batch: 64,
            },
            Preset::Xsum => Experiment {
                config: "configs/xsum.yml",
                checkpoint: "ELF-B-xsum-torch",
                train_data: "xsum_train_t5",
                test_data: Some("xsum_validation_t5"),
                weights: 8.8e7,
                positions: 39_800.0 * 512.0 * 1088.0,
                length: 1088.0,
                batch: 16,
            },
            Preset::Pd => Experiment {
                // Five rounds of one epoch; the teacher's passes come on top.
                positions: 5.0 * 19_017.0 * 512.0 * 1024.0,
                ..owt("configs/distill-owt-elf-b.yml", "ELF-B-PD-owt-torch", 8.8e7, 5.0)
            },
            Preset::OwtB | Preset::Mini => owt("configs/owt-elf-b.yml", "ELF-B-owt-torch", 8.8e7, 5.0),
        }
    }

    fn at(&self, stage: &StageName) -> PathBuf {
        self.work.join(stage)
    }

    /// All stages, each after those that it needs.
    pub fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        if !self.from_released {
            stages.push(self.training());
        }
        stages.extend(self.settings().iter().map(|setting| self.evaluation(setting)));
        stages
    }

    fn training(&self) -> Stage {
        let Experiment { config, train_data, test_data, weights, positions, .. } = self.experiment();
        let eval = test_data.map_or_else(|| "null".to_owned(), |data| format!("{HUB}/{data}"));
        let (program, title, passes) = match self.preset {
            // A fifth of the rows are decoded; the others cost the teacher K + 0.5 passes, K being 24.8 on average of the rounds.
            Preset::Pd => ("distill", "progressive distillation in five rounds", 3.0 + 0.8 * 25.3),
            _ => ("train", "training with the released recipe", 5.0),
        };
        let download = if train_data == "openwebtext-t5" { OWT_BYTES } else { 2e9 };
        Stage::new(training(), title)
            .reading(config)
            .call(
                Call::new([program, config])
                    .setting("data_path", format!("{HUB}/{train_data}"))
                    .setting("eval_data_path", eval)
                    .flag("--output", self.at(&training())),
            )
            .making(if self.preset == Preset::Pd { "round5_1step/checkpoints" } else { "checkpoints" })
            .costing(Cost {
                flops: positions * passes * 2.0 * weights,
                seconds: 600.0,
                download: download + 2.5e8,
                disk: download + 30.0 * weights,
            })
    }

    /// The published settings of sampling, one evaluation each.
    pub fn settings(&self) -> Vec<Setting> {
        let unconditional = |steps: u64, w: f64, gamma: f64, published: Published| Setting {
            stage: texts(steps),
            label: format!("SDE, {steps} steps, w {w}, gamma {gamma}"),
            steps,
            sampling: words([
                ("sampler", "sde"),
                ("steps", &steps.to_string()),
                ("self-cond-cfg-scale", &w.to_string()),
                ("sde-gamma", &gamma.to_string()),
            ]),
            published,
        };
        let ppl = |ppl: f64| Published { ppl: Some(ppl), ..NOTHING };
        let with_entropy = |value: f64, entropy: f64| Published { entropy: Some(entropy), ..ppl(value) };
        let owt = |published: [Published; 4]| {
            let settings = [(8, 2.0), (16, 2.0), (32, 1.5), (64, 1.0)];
            settings.into_iter().zip(published).map(|((n, gamma), p)| unconditional(n, 3.0, gamma, p)).collect()
        };
        let conditional = |published| {
            vec![Setting {
                stage: texts(64),
                label: "ODE, 64 steps, condition guidance 2".to_owned(),
                steps: 64,
                sampling: words([("sampler", "ode"), ("steps", "64"), ("cfg", "2"), ("self-cond-cfg-scale", "1")]),
                published,
            }]
        };
        match self.preset {
            Preset::OwtM => owt([NOTHING, NOTHING, NOTHING, ppl(21.7)]),
            Preset::OwtL => owt([NOTHING, NOTHING, NOTHING, ppl(23.3)]),
            Preset::DeEn => conditional(Published { bleu: Some(26.4), ..NOTHING }),
            Preset::Xsum => conditional(Published { rouge: Some([36.0, 12.2, 27.8]), ..NOTHING }),
            Preset::Pd => {
                let few =
                    [(1, 136.1), (2, 68.3), (4, 34.3), (8, 23.2)].map(|(n, p)| unconditional(n, 2.5, 1.5, ppl(p)));
                let many = [(16, 22.1), (32, 21.3)].map(|(n, p)| unconditional(n, 2.0, 2.0, ppl(p)));
                few.into_iter().chain(many).collect()
            }
            Preset::OwtB | Preset::Mini => {
                owt([with_entropy(67.3, 5.14), with_entropy(33.7, 5.16), with_entropy(24.1, 5.15), ppl(19.7)])
            }
        }
    }

    fn evaluation(&self, setting: &Setting) -> Stage {
        let Experiment { config, checkpoint, test_data, weights, length, batch, .. } = self.experiment();
        // Distilled models are sampled with the configuration that their teacher was trained with.
        let config = if self.preset == Preset::Pd { "configs/owt-elf-b.yml" } else { config };
        let mut stage = Stage::new(setting.stage.clone(), format!("samples and their evaluation: {}", setting.label));
        let model = if self.from_released {
            stage = stage.reading(config);
            vec![format!("{HUB}/{checkpoint}").into(), "--config".into(), config.into()]
        } else {
            stage = stage.after(training());
            vec![OsString::from(self.at(&training()))]
        };
        let (what, texts) = match test_data {
            Some(data) => (["--data".to_owned(), format!("{HUB}/{data}")], 3000.0),
            None => (["--num".to_owned(), "1000".to_owned()], 1000.0),
        };
        let at = self.at(&setting.stage);
        let samples = at.join("samples-0.jsonl");
        let sample = Call::new(["sample"])
            .words(model)
            .words(what)
            .flag("--seed", "0")
            .flag("--batch-size", batch.to_string())
            .words(&setting.sampling)
            .flag("--output", &samples)
            .leaving("samples-0.jsonl");
        let mut eval = Call::new(["eval"]).flag("--samples", samples);
        if test_data.is_none() {
            eval = eval.flag("--judge", "gpt2-large");
        }
        let doubled = if test_data.is_none() { 1.0 } else { 2.0 };
        stage
            // The judge is fetched after sampling: if it cannot be fetched, hours of sampling are not done again.
            .call(sample)
            .call(eval.flag("--output", at.join("eval.json")))
            .making("samples-0.jsonl")
            .making("eval.json")
            .costing(Cost {
                flops: texts * length * (doubled * setting.steps as f64 + 1.0) * 2.0 * weights
                    + if test_data.is_none() { texts * length * 2.0 * 7.74e8 } else { 0.0 },
                seconds: 60.0,
                // Once: later stages find it in the cache.
                download: if self.settings().first().is_some_and(|first| first.stage == setting.stage) {
                    let judge = if test_data.is_none() { GPT2_LARGE_BYTES } else { 5e7 };
                    judge + if self.from_released { 14.0 * weights } else { 0.0 }
                } else {
                    0.0
                },
                disk: 1e7,
            })
    }
}

/// The stage of the training.
fn training() -> StageName {
    "train".into()
}

/// The stage of the texts in a number of steps.
fn texts(steps: u64) -> StageName {
    format!("eval/{steps}-steps").into()
}

/// Flags, without their dashes, and values as words.
fn words(flags: [(&str, &str); 4]) -> Vec<String> {
    flags.into_iter().flat_map(|(flag, value)| [format!("--{flag}"), value.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::stage::hashes;

    const ALL: [Preset; 6] = [Preset::OwtB, Preset::OwtM, Preset::OwtL, Preset::DeEn, Preset::Xsum, Preset::Pd];

    #[test]
    fn stages_are_in_order_and_their_configurations_are_in_the_repository() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for preset in ALL {
            for from_released in [false, true] {
                let stages = Paper { preset, work: Path::new("w"), from_released }.stages();
                assert_eq!(hashes(&stages, root).unwrap().len(), stages.len());
                let trains = stages.iter().any(|stage| stage.name == training());
                assert_eq!(trains, !from_released);
            }
        }
    }

    /// The authors say that an epoch of OpenWebText takes about four hours on eight H200.
    #[test]
    fn the_estimate_of_a_training_is_near_what_the_released_code_takes() {
        let stage = Paper { preset: Preset::OwtB, work: Path::new("w"), from_released: false }.training();
        let published_hours = 5.0 * 4.0 * 8.0;
        // That code runs at about a tenth of such a chip's 990 TFLOP/s.
        let hours = stage.cost.flops / 9.9e13 / 3600.0;
        assert!((0.5..2.0).contains(&(hours / published_hours)), "{hours}");
    }
}
