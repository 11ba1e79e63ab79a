//! The names of the preset's stages. The stages and the report both take them from here.

use super::settings::{Ablation, Encoder, Model, Task, Writer};
use crate::reproduce::stage::StageName;

/// The tokenizer for English and German.
pub fn tokenizer() -> StageName {
    "corpus/tokenizer".into()
}

/// A frozen encoder.
pub fn encoder(encoder: Encoder) -> StageName {
    match encoder {
        Encoder::Pretrained => "encoder/pretrained",
        Encoder::TokenTable => "encoder/token-table",
        Encoder::Random => "encoder/random",
    }
    .into()
}

/// The texts and tokens of a task.
pub fn data(task: &Task) -> StageName {
    format!("data/{}", task.name).into()
}

/// The GPT-2 that judges perplexity.
pub fn judge() -> StageName {
    "judge".into()
}

/// The training of a model on a task.
pub fn training(task: &Task, model: Model) -> StageName {
    format!("train/{}/{}", task.name, model.name()).into()
}

/// The training of an ablation.
pub fn ablation(ablation: &Ablation) -> StageName {
    format!("train/ablations/{}", ablation.name).into()
}

/// The texts of an ablation.
pub fn ablation_texts(ablation: &Ablation) -> StageName {
    format!("eval/ablations/{}", ablation.name).into()
}

/// The rounds of distillation.
pub fn distillation() -> StageName {
    "train/distilled".into()
}

/// The texts of a student, or of its teacher, in a number of steps.
pub fn distilled_texts(student: bool, steps: u64) -> StageName {
    format!("eval/distilled/{}-{steps}", if student { "student" } else { "teacher" }).into()
}

/// The evaluation of the test texts of the descriptions.
pub fn test_texts() -> StageName {
    "eval/descriptions/data".into()
}

/// The texts of a system. Unconditional ones are compared at several numbers of steps, which their names then hold.
pub fn texts(task: &Task, writer: Writer, steps: Option<u64>) -> StageName {
    let steps = steps.filter(|_| task.condition.is_none()).map(|steps| format!("-{steps}"));
    format!("eval/{}/{}{}", task.name, writer.name(), steps.unwrap_or_default()).into()
}

/// The texts of a sampler of the sampler study.
pub fn sampler_texts(sampler: &str) -> StageName {
    format!("eval/samplers/{sampler}").into()
}

/// Translations with a condition guidance scale.
pub fn condition_guidance(scale: f64) -> StageName {
    format!("eval/condition-guidance/{scale}").into()
}
