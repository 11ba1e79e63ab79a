//! The names of the preset's stages. The stages and the report both take them from here.

use super::settings::{Ablation, Encoder, Filler, Model, Task, Writer};
use crate::reproduce::stage::StageName;

/// An encoder that an ablation has in place of its task's own.
pub fn other_encoder(encoder: Encoder) -> Option<StageName> {
    match encoder {
        Encoder::Own => None,
        Encoder::Layers(layers) => Some(format!("encoder/layers-{layers}").into()),
        Encoder::Random => Some("encoder/random".into()),
    }
}

/// The texts and tokens of a task.
pub fn data(task: &Task) -> StageName {
    format!("data/{}", task.name).into()
}

/// The folds of a task's training data.
pub fn folds(task: &Task) -> StageName {
    format!("data/{}-folds", task.name).into()
}

/// The training of a GPT-2 on all folds but one.
pub fn translator(task: &Task, fold: usize) -> StageName {
    format!("train/{}-translators/{fold}", task.name).into()
}

/// The pairs of training sources and what those make of them.
pub fn translations(task: &Task) -> StageName {
    format!("data/{}-translations", task.name).into()
}

/// The stage whose texts or pairs a model is trained on.
pub fn training_data(task: &Task, model: Model) -> StageName {
    match model {
        Model::Elf | Model::Mdlm if task.learns_translations => translations(task),
        _ => data(task),
    }
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

/// The student of few steps.
pub fn distillation() -> StageName {
    "train/distilled".into()
}

/// The texts of the student in a number of steps.
pub fn student_texts(steps: u64) -> StageName {
    format!("eval/distilled/student-{steps}").into()
}

/// The evaluation of the test texts of the definitions.
pub fn test_texts() -> StageName {
    "eval/definitions/data".into()
}

/// The texts of a system. Unconditional ones are compared at several numbers of steps, which their names then hold.
pub fn texts(task: &Task, writer: Writer, steps: Option<u64>) -> StageName {
    let steps = steps.filter(|_| task.condition.is_none()).map(|steps| format!("-{steps}"));
    format!("eval/{}/{}{}", task.name, writer.name(), steps.unwrap_or_default()).into()
}

/// The training of a model that fills gaps.
pub fn filling(model: Model) -> StageName {
    format!("train/filling/{}", model.name()).into()
}

/// The test definitions of which `share` of the words were hidden, filled in.
pub fn filled(filler: Filler, share: f64) -> StageName {
    format!("eval/filling/{}-{}", filler.name(), (100.0 * share).round()).into()
}

/// The texts of a sampler of the sampler study.
pub fn sampler_texts(sampler: &str) -> StageName {
    format!("eval/samplers/{sampler}").into()
}
