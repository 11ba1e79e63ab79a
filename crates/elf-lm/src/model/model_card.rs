//! Model cards of distilled and exported models.

use std::fmt::Write as _;
use std::fs;

use elf_eval::evaluation::Evaluation;
use elf_flow::{DistillStep, OwnRuns};
use elf_train::Round;
use serde_json::Value;

use crate::config::{DistillationPlan, RunPlan, SAMPLING, Sampling, StudentStart};
use crate::model::run_folder::RunModel;

/// The card of a distilled model, in Markdown. Its front matter has the step count in machine-readable form.
pub fn distilled(plan: &RunPlan, distillation: &DistillationPlan) -> String {
    let DistillationPlan { round, step, teacher, start } = distillation;
    let steps = step.student_steps();
    let title = match round {
        Some(Round { number, .. }) => format!("round {number} of progressive distillation"),
        None => "one round of progressive distillation".to_owned(),
    };
    let began = match start {
        StudentStart::Teacher => "the teacher".to_owned(),
        StudentStart::Checkpoint(place) => {
            format!("the averaged parameters of `{}`", place.display())
        }
        StudentStart::Random => "random parameters".to_owned(),
    };
    let setting = Sampling::default_for(plan);
    let averaged = if teacher.averaged { "averaged" } else { "as trained" };
    format!(
        "---\n\
         student_steps: {steps}\n\
         step_size: {}\n\
         teacher_steps_per_step: {}\n\
         teacher_blake3: {}\n\
         ---\n\n\
         # An ELF for {steps} step{} ({title})\n\n\
         {} It is trained for {steps} step{}, the default of `elf sample` (`{}`). With fewer steps, each step is longer than any it\n\
         was trained on.\n\n\
         | | |\n\
         | --- | --- |\n\
         | network | {} blocks of width {}, {} heads |\n\
         | text | {} positions{} |\n\
         | teacher | `{}` ({averaged}) |\n\
         | initialised from | {began} |\n\
         | training | {} optimiser steps of {} rows |\n",
        step.step_size,
        step.substeps,
        teacher.blake3,
        plural(steps),
        what_is_learned(step),
        plural(steps),
        setting.name(),
        plan.model.depth,
        plan.model.hidden_size,
        plan.model.num_heads,
        plan.span.max_length,
        plan.span.max_input_length.map_or(String::new(), |n| format!(", of which up to {n} are the input")),
        teacher.name,
        plan.length.total,
        plan.batch_rows * plan.config.optimization.grad_accum_steps,
    )
}

/// One sentence on what a student's step does.
fn what_is_learned(step: &DistillStep) -> String {
    let (size, substeps) = (step.step_size, step.substeps);
    let Some(OwnRuns { leap_at, guide_scale }) = step.own_runs else {
        return format!(
            "One step of this student covers {size} of the time from noise to text, as {substeps} Euler steps of its teacher do."
        );
    };
    let leap =
        if leap_at < 1.0 { format!(", the last of which leads from t = {leap_at} to the end") } else { String::new() };
    let guide = if guide_scale == 1.0 { String::new() } else { format!(", guided at scale {guide_scale}") };
    format!(
        "This student makes the runs of its teacher{guide} in {} step{}{leap}; its teacher takes {substeps} Euler steps for each other one.",
        step.student_steps(),
        plural(step.student_steps())
    )
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// The card of an exported model.
pub struct ExportedCard<'a> {
    /// The model's name.
    pub title: Option<&'a str>,
    /// The encoder's path or Hugging Face id.
    pub encoder: &'a str,
    /// The line about the training texts and their licence.
    pub data_note: Option<&'a str>,
    /// Whether the parameters are those as trained instead of their running averages.
    pub as_trained: bool,
    /// The number format of the stored parameters.
    pub stored_as: &'static str,
    /// The exported run.
    pub found: &'a RunModel,
    /// The guide's subfolder and run, if one is included.
    pub guide: Option<(&'static str, &'a RunModel)>,
    /// Number of the network's parameters.
    pub parameters: i64,
    /// Evaluations of the model.
    pub evaluations: &'a [Evaluation],
}

impl ExportedCard<'_> {
    /// The card, in Markdown.
    pub fn to_markdown(&self) -> String {
        let Self { found, parameters, .. } = *self;
        let (plan, config) = (&found.plan, &found.plan.config);
        let step = found.checkpoint.state().step;
        let rows = (plan.batch_rows * config.optimization.grad_accum_steps) as u64;
        let span = &plan.span;
        let task = match span.max_input_length {
            Some(input) => format!("conditional text: up to {input} tokens in, {} out", span.max_length - input),
            None => format!("unconditional text: up to {} tokens", span.max_length),
        };
        // Machine-readable, as in the run's own card.
        let front = plan.distillation.as_ref().map(|d| format!("student_steps: {}\n", d.step.student_steps()));
        let front = front.unwrap_or_default();
        let mut card = format!(
            "---\nlibrary_name: elf\ntags: [elf, diffusion, text-generation]\n{front}---\n\n# {}\n\n\
         An embedded language flow (Hu, Qiu, ..., He; arXiv 2605.10938), made with `elf train`.\n\n\
         | | |\n| --- | --- |\n\
         | task | {task} |\n\
         | network | {} blocks of width {}, {} heads; {} parameters{}, {} |\n\
         | encoder | `{}`, {} channels |\n\
         | data | `{}` |\n\
         | licence of the data | {} |\n\
         | training | {step} optimiser steps of {rows} rows ({:.1} passes), {:?} at {}, {:?} schedule |\n\
         | averages | decay {} |\n\
         | seed | {} |\n",
            self.title.unwrap_or("An ELF"),
            plan.model.depth,
            plan.model.hidden_size,
            plan.model.num_heads,
            parameters,
            if self.as_trained { " as trained" } else { " (running averages)" },
            self.stored_as,
            self.encoder,
            plan.model.text_encoder_dim,
            config.data.data_path.as_deref().unwrap_or("unknown"),
            self.data_note.unwrap_or("not stated; it applies to what is made from the data"),
            step as f64 / plan.length.steps_per_epoch.max(1.0),
            config.optimization.optimizer,
            plan.lr,
            config.optimization.lr_schedule,
            config.averages.ema_decay1,
            config.seed,
        );
        let metrics = fs::read_to_string(found.run.root().join("metrics.jsonl")).unwrap_or_default();
        let lines: Vec<Value> = metrics.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let until_here = |line: &&Value| line["step"].as_u64().is_some_and(|at| at <= step);
        let seconds = total_seconds(lines.iter().filter(until_here).filter_map(|line| line["seconds"].as_f64()));
        if let Some(size) = plan.objective.block_size {
            let tokens = if size == 1 { "1 token".to_owned() } else { format!("{size} tokens") };
            let _ = writeln!(card, "| blocks | {tokens} each, conditioned on all tokens before; not in the paper |");
        }
        if let Some(first) = &config.output.init_from {
            let _ = writeln!(card, "| initialised from | `{first}` |");
        }
        if let Some(DistillationPlan { step, teacher, .. }) = &plan.distillation {
            let (steps, setting) = (step.student_steps(), Sampling::default_for(plan));
            let _ = writeln!(
                card,
                "| distilled | for {steps} step{} from `{}`; made to be sampled as `{}`. {} |",
                plural(steps),
                teacher.name,
                setting.name(),
                what_is_learned(step)
            );
        }
        if seconds > 0.0 {
            let _ = writeln!(card, "| cost | {:.0} minutes |", seconds / 60.0);
        }
        let curve: Vec<&Value> =
            lines.iter().filter(until_here).filter(|line| line["validation_loss"].is_f64()).collect();
        if !curve.is_empty() {
            card.push_str(
                "\n## Held-out loss\n\n| steps | loss | L2 | cross-entropy |\n| ---: | ---: | ---: | ---: |\n",
            );
            let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |v| format!("{v:.4}"));
            for line in curve {
                let [loss, l2, ce] =
                    ["validation_loss", "validation_l2", "validation_ce"].map(|key| number(&line[key]));
                let _ = writeln!(card, "| {} | {loss} | {l2} | {ce} |", line["step"]);
            }
        }
        for evaluation in self.evaluations {
            let _ = write!(card, "\n{}", evaluation.to_markdown());
        }
        if let Some((folder, guide)) = self.guide {
            let _ = writeln!(
                card,
                "\n## Guide\n\n`{folder}` holds a weaker version of the model, {} optimiser steps of {:?}, which sampling is guided away from \
             (autoguidance; see `{SAMPLING}`).",
                guide.checkpoint.state().step,
                guide.plan.config.optimization.optimizer
            );
        }
        card
    }
}

/// The total time of a run whose clock restarts at each resumption.
fn total_seconds(seconds: impl Iterator<Item = f64>) -> f64 {
    let (earlier, last) = seconds.fold((0.0, 0.0), |(earlier, last), now| match now < last {
        true => (earlier + last, now),
        false => (earlier, now),
    });
    earlier + last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_cost_what_all_its_parts_did() {
        assert_eq!(total_seconds([].into_iter()), 0.0);
        assert_eq!(total_seconds([1.0, 5.0, 9.0].into_iter()), 9.0);
        assert_eq!(total_seconds([1.0, 5.0, 2.0, 3.0, 1.0].into_iter()), 9.0);
    }
}
