//! What the folders of distilled and of exported models say to whoever finds them.

use std::fmt::Write as _;
use std::fs;

use elf_eval::evaluation::Evaluation;
use elf_train::Round;
use serde_json::Value;

use crate::config::{DistillationPlan, RunPlan, SAMPLING, Sampling, StudentStart};
use crate::model::run_folder::RunModel;

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
        StudentStart::Checkpoint(place) => {
            format!("the averaged parameters of `{}`", place.display())
        }
        StudentStart::Random => "a network at random".to_owned(),
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
        plan.batch_rows * plan.config.optimization.grad_accum_steps,
    )
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// What an exported model's folder says to whoever finds it.
pub struct ExportedCard<'a> {
    /// What to call the model.
    pub title: Option<&'a str>,
    /// Where its encoder is looked for.
    pub encoder: &'a str,
    /// What is said of the texts and their licence.
    pub data_note: Option<&'a str>,
    /// Whether the parameters are those as trained, and not their running averages.
    pub as_trained: bool,
    /// The kind of the numbers.
    pub stored_as: &'static str,
    /// The run.
    pub found: &'a RunModel,
    /// A lesser version that goes with it, and its folder.
    pub guide: Option<(&'static str, &'a RunModel)>,
    /// Numbers in the network.
    pub parameters: i64,
    /// What it was judged by.
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
            Some(input) => format!("text from text: up to {input} tokens in, {} out", span.max_length - input),
            None => format!("text from nothing: up to {} tokens", span.max_length),
        };
        // For programs, as in the folder of the run.
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
        let seconds = over_all_starts(lines.iter().filter(until_here).filter_map(|line| line["seconds"].as_f64()));
        if let Some(size) = plan.objective.block_size {
            let tokens = if size == 1 { "1 token".to_owned() } else { format!("{size} tokens") };
            let _ = writeln!(card, "| written in | blocks of {tokens}, each knowing all before it; not in the paper |");
        }
        if let Some(first) = &config.output.init_from {
            let _ = writeln!(card, "| begun as | `{first}` |");
        }
        if let Some(DistillationPlan { step, teacher, .. }) = &plan.distillation {
            let (steps, setting) = (step.student_steps(), Sampling::default_for(plan));
            let _ = writeln!(
                card,
                "| distilled | for {steps} step{}, each as long as {} of its teacher `{}`; made to be sampled as `{}` |",
                plural(steps),
                step.substeps,
                teacher.name,
                setting.name()
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
                "\n## Guide\n\n`{folder}` holds a lesser version of the model, {} optimiser steps of {:?}, which sampling leads away from \
             (autoguidance; see `{SAMPLING}`).",
                guide.checkpoint.state().step,
                guide.plan.config.optimization.optimizer
            );
        }
        card
    }
}

/// The time of a run whose clock begins anew whenever it is resumed.
fn over_all_starts(seconds: impl Iterator<Item = f64>) -> f64 {
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
        assert_eq!(over_all_starts([].into_iter()), 0.0);
        assert_eq!(over_all_starts([1.0, 5.0, 9.0].into_iter()), 9.0);
        assert_eq!(over_all_starts([1.0, 5.0, 2.0, 3.0, 1.0].into_iter()), 9.0);
    }
}
