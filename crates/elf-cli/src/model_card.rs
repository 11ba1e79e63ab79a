//! What a distilled model's folder says to whoever finds it.

use elf_train::Round;

use crate::config::{DistillationPlan, RunPlan, StudentStart};
use crate::text_generation::TextGenerator;

/// The card of a distilled model, in Markdown; its front matter holds the step count for programs.
pub fn distilled(plan: &RunPlan, distillation: &DistillationPlan) -> String {
    let DistillationPlan { round, step, teacher, start } = distillation;
    let steps = step.student_steps();
    let title = match round {
        Some(Round { number, .. }) => format!("round {number} of progressive distillation"),
        None => "one round of progressive distillation".to_owned(),
    };
    let began = match start {
        StudentStart::Teacher => "the teacher".to_owned(),
        StudentStart::Checkpoint(place) => format!("the averaged parameters of `{}`", place.display()),
        StudentStart::Random => "a network at random".to_owned(),
    };
    let setting = TextGenerator::default_setting(plan);
    let averaged = if teacher.averaged { "averaged" } else { "as trained" };
    format!(
        "---\n\
         student_steps: {steps}\n\
         step_size: {}\n\
         teacher_steps_per_step: {}\n\
         teacher_blake3: {}\n\
         ---\n\n\
         # An ELF for {steps} step{} ({title})\n\n\
         A step of this student covers {} of the time from noise to text, as {} Euler steps of its teacher do. It is made for\n\
         {steps} step{}, which is what `elf sample` takes unless told otherwise (`{}`). With fewer steps each is longer than any\n\
         it has learned.\n\n\
         | | |\n\
         | --- | --- |\n\
         | network | {} blocks of width {}, {} heads |\n\
         | text | {} positions{} |\n\
         | teacher | `{}` ({averaged}) |\n\
         | began as | {began} |\n\
         | training | {} optimiser steps of {} rows |\n",
        step.step_size,
        step.substeps,
        teacher.blake3,
        plural(steps),
        step.step_size,
        step.substeps,
        plural(steps),
        setting.name(),
        plan.model.depth,
        plan.model.hidden_size,
        plan.model.num_heads,
        plan.span.max_length,
        plan.span.max_input_length.map_or(String::new(), |n| format!(", of which up to {n} are the input")),
        teacher.name,
        plan.length.total,
        plan.batch_rows * plan.config.grad_accum_steps,
    )
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}
