//! The keys of a training configuration.

use std::path::Path;

use elf_core::Precision;
use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tch::Device;

use super::groups::{
    AverageConfig, BatchConfig, ComputeConfig, DataConfig, DecoderConfig, EncoderConfig, EvaluationConfig, FlowConfig,
    GivenConfig, GuidanceConfig, LengthConfig, NetworkConfig, OptimizationConfig, OutputConfig,
};
use super::names::{ObjectiveName, PadTokenName};
use crate::Result;
use crate::error::fail;

/// The configuration of a training run, in groups of keys. A file has all keys in one mapping, with the names and
/// meanings of the released code; defaults are those of the released recipes. `null` means: derived from other keys.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RunConfig {
    /// What to train: `elf`, or a baseline to compare it with, `gpt2` (autoregressive) or `mdlm` (masked diffusion).
    /// Keys about latents, noise, guidance and encoder have no effect on a baseline.
    pub objective: ObjectiveName,
    /// Training and validation data.
    #[serde(flatten)]
    pub data: DataConfig,
    /// The text encoder and the normalisation of its latents.
    #[serde(flatten)]
    pub encoder: EncoderConfig,
    /// The sizes and parts of the network.
    #[serde(flatten)]
    pub network: NetworkConfig,
    /// The path from noise to latents, and its times.
    #[serde(flatten)]
    pub flow: FlowConfig,
    /// The training of decoding, from latents to tokens.
    #[serde(flatten)]
    pub decoder: DecoderConfig,
    /// The inputs that are dropped in training, for guidance in sampling.
    #[serde(flatten)]
    pub guidance: GuidanceConfig,
    /// The tokens of texts that are given in training.
    #[serde(flatten)]
    pub given: GivenConfig,
    /// The length of a run.
    #[serde(flatten)]
    pub length: LengthConfig,
    /// The sizes of batches.
    #[serde(flatten)]
    pub batches: BatchConfig,
    /// Optimiser and learning rate.
    #[serde(flatten)]
    pub optimization: OptimizationConfig,
    /// Precision and memory use.
    #[serde(flatten)]
    pub compute: ComputeConfig,
    /// Running averages of the parameters.
    #[serde(flatten)]
    pub averages: AverageConfig,
    /// Seed of parameters, data order and noise.
    pub seed: u64,
    /// Evaluation during training.
    #[serde(flatten)]
    pub evaluation: EvaluationConfig,
    /// Output, checkpoints and initial weights of a run.
    #[serde(flatten)]
    pub output: OutputConfig,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            objective: ObjectiveName::Elf,
            data: DataConfig::default(),
            encoder: EncoderConfig::default(),
            network: NetworkConfig::default(),
            flow: FlowConfig::default(),
            decoder: DecoderConfig::default(),
            guidance: GuidanceConfig::default(),
            given: GivenConfig::default(),
            length: LengthConfig::default(),
            batches: BatchConfig::default(),
            optimization: OptimizationConfig::default(),
            compute: ComputeConfig::default(),
            averages: AverageConfig::default(),
            evaluation: EvaluationConfig::default(),
            output: OutputConfig::default(),
            seed: 42,
        }
    }
}

impl<'de> Deserialize<'de> for RunConfig {
    /// Distributes the keys over the groups, and refuses unknown ones.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut keys = Map::<String, Value>::deserialize(deserializer)?;
        let config = Self {
            objective: one(&mut keys, "objective")?.unwrap_or(ObjectiveName::Elf),
            data: group(&mut keys)?,
            encoder: group(&mut keys)?,
            network: group(&mut keys)?,
            flow: group(&mut keys)?,
            decoder: group(&mut keys)?,
            guidance: group(&mut keys)?,
            given: group(&mut keys)?,
            length: group(&mut keys)?,
            batches: group(&mut keys)?,
            optimization: group(&mut keys)?,
            compute: group(&mut keys)?,
            averages: group(&mut keys)?,
            evaluation: group(&mut keys)?,
            output: group(&mut keys)?,
            seed: one(&mut keys, "seed")?.unwrap_or(Self::default().seed),
        };
        match keys.keys().next() {
            None => Ok(config),
            Some(key) => Err(D::Error::custom(format!("unknown field `{key}`"))),
        }
    }
}

/// Takes one key's value out of a mapping.
fn one<T: DeserializeOwned, E: serde::de::Error>(keys: &mut Map<String, Value>, key: &str) -> Result<Option<T>, E> {
    keys.remove(key).map(serde_json::from_value).transpose().map_err(E::custom)
}

/// Takes the keys of a group out of a mapping.
fn group<T, E>(keys: &mut Map<String, Value>) -> Result<T, E>
where
    T: Default + Serialize + DeserializeOwned,
    E: serde::de::Error,
{
    let known: Map<String, Value> =
        serde_json::to_value(T::default()).and_then(serde_json::from_value).map_err(E::custom)?;
    let own = known.keys().filter_map(|key| Some((key.clone(), keys.remove(key)?))).collect();
    serde_json::from_value(Value::Object(own)).map_err(E::custom)
}

impl RunConfig {
    /// This configuration with changes: `RunConfig::default().with(|config| config.data.max_length = 64)`.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Refuses an output folder that the run, or a distillation with the teacher, reads from. To go on in it (`resume`) is meant.
    ///
    /// # Errors
    /// Names the setting that is the same folder.
    pub fn check_output(&self, teacher: Option<&str>) -> Result<()> {
        let Some(output) = &self.output.output_dir else { return Ok(()) };
        let read = [
            ("data_path", self.data.data_path.as_deref()),
            ("eval_data_path", self.data.eval_data_path.as_deref()),
            ("tokenizer_name", self.data.tokenizer_name.as_deref()),
            ("encoder_model_name", Some(self.encoder.encoder_model_name.as_str())),
            ("encoder_checkpoint", self.encoder.encoder_checkpoint.as_deref()),
            ("eval_ppl_model", self.evaluation.eval_ppl_model.as_deref()),
            ("init_from", self.output.init_from.as_deref()),
            ("teacher_path", teacher),
        ];
        let same = |path: &str| elf_files::is_same(Path::new(path), Path::new(output));
        match read.iter().find(|(_, path)| path.is_some_and(same)) {
            Some((key, _)) => {
                fail!(setting("output_dir"), "output_dir {output} is also {key}: name another folder for the run")
            }
            None => Ok(()),
        }
    }

    /// How rows are padded: as set, or the default for the task.
    pub fn pad_token(&self) -> PadTokenName {
        let usual = if self.data.max_input_length.is_some() { PadTokenName::Eos } else { PadTokenName::Pad };
        self.data.pad_token.unwrap_or(usual)
    }

    /// The precision of matrix products.
    pub fn precision(&self, device: Device) -> Precision {
        if self.compute.use_bf16 { Precision::native(device) } else { Precision::F32 }
    }
}
