//! Progressive distillation: a teacher, and students that learn its steps in one or in all rounds.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use elf_core::device::DeviceChoice;
use elf_flow::{DistillObjective, DistillStep, Guide, TrainedFlow};
use elf_hub::What;
use elf_model::{Elf, ElfConfig};
use elf_train::{Checkpoint, Comm, Curriculum, Round, Solo};
use tch::Device;

use super::system_memory::available;
use super::teacher::{self, FoundTeacher};
use super::{Ended, Job, Rounds, TrainingInputs, WantedRounds, check_evaluations, deadline, train_flow};
use crate::config::{DistillConfig, DistillationPlan, RunPlan, StudentStart, TeacherRecord};
use crate::error::{Context, fail};
use crate::model::run_folder::{RunFolder, plan_of};
use crate::{Events, Host, Result};

/// Distils the teacher that a configuration names into students of fewer steps, or goes on where that was interrupted.
///
/// # Errors
/// Names the key that is missing or impossible, or what of the teacher does not fit.
pub fn distill(config: DistillConfig, wanted: WantedRounds, events: &mut dyn Events) -> Result<Ended> {
    let host = Host::new(events);
    let device = DeviceChoice::Auto.resolve()?;
    Distillation::prepare(config, wanted, device, 1, &host)?.carry_out(&host)
}

/// A teacher, and everything that its students need.
pub struct Distillation {
    config: DistillConfig,
    /// A round's plan, but for what differs between rounds.
    plan: RunPlan,
    inputs: TrainingInputs,
    teacher: Elf,
    record: TeacherRecord,
    root: PathBuf,
    curriculum: Curriculum,
    rounds: Rounds,
    device: Device,
    deadline: Option<Instant>,
}

impl Distillation {
    /// Loads the teacher and all that its students need, and checks everything. What will be done is told in notes.
    ///
    /// # Errors
    /// Names the key that is missing or impossible, or what of the teacher does not fit.
    pub fn prepare(
        mut config: DistillConfig,
        wanted: WantedRounds,
        device: Device,
        processes_here: u64,
        host: &Host,
    ) -> Result<Self> {
        let curriculum = Curriculum::released();
        let rounds = Rounds::of(wanted, &config, &curriculum)?;
        let (name, root) = names(&config, rounds, &curriculum)?;
        let found = FoundTeacher::find(&name, config.keys.teacher_use_ema, &root, host)?;
        if let Some(trained) = found.config(host)? {
            config.inherit(&trained)?;
        }
        without_missing_settings(&mut config, host);
        let inputs = TrainingInputs::load(&config.run, device, host)?;
        let mut plan = inputs.plan(&config.run, device, 1)?;
        let teacher = found.load(plan.precision, device)?;
        fit(&mut plan, teacher.config(), found.plan())?;
        if config.keys.pd_own_runs {
            plan.model.word_guide_dims = 0;
            // The student's estimates are guided ones.
            plan.objective.decoder_estimates.iter_mut().for_each(|own| own.guide_scale = 1.0);
        }
        let record = found.record(&teacher, &root)?;
        // The round that takes the most memory, until each puts itself in its place.
        let step = rounds.largest_step(&config, &curriculum)?;
        let start = StudentStart::Teacher;
        plan.distillation = Some(DistillationPlan { round: None, step, teacher: record.clone(), start });
        inputs.memory(&plan, device, 1).check(&plan, available(device, processes_here))?;
        check_evaluations(&plan, &inputs, host.samplers())?;
        let deadline = deadline(&config.run);
        let prepared = Self { config, plan, inputs, teacher, record, root, curriculum, rounds, device, deadline };
        host.note(prepared.describe()?);
        Ok(prepared)
    }

    fn step_of(&self, round: &Round) -> Result<DistillStep> {
        self.config.step(round.step_size(), round.teacher_steps)
    }

    fn folder_of(&self, round: &Round) -> PathBuf {
        self.root.join(round.folder_name())
    }

    /// Optimiser steps of each round's latest checkpoint; all of them for a round that ended before.
    fn steps_done(&self) -> Result<Vec<Option<u64>>> {
        let steps = |round| Ok(self.latest_of(round)?.map(|(_, steps)| steps));
        self.curriculum.rounds().iter().map(steps).collect()
    }

    /// The latest checkpoint of a round, and its optimiser steps; all of them for a round that ended before.
    fn latest_of(&self, round: &Round) -> Result<Option<(Checkpoint, u64)>> {
        let checkpoints = RunFolder::new(self.folder_of(round)).checkpoints();
        let Some(latest) = checkpoints.latest()? else {
            return Ok(None);
        };
        let is_over = self.plan.config.output.early_stopping.is_some() && checkpoints.ended_early()?;
        let steps = if is_over { self.plan.length.total } else { latest.state().step };
        Ok(Some((latest, steps)))
    }

    fn describe(&self) -> Result<String> {
        let own;
        let rounds = match self.rounds {
            Rounds::All => self.curriculum.rounds(),
            Rounds::One(round) => {
                own = [round];
                &own
            }
            Rounds::Own(_) => &[],
        };
        let mut lines =
            vec![self.inputs.describe(&self.plan, self.device, 1), format!("teacher: {}", self.record.place.display())];
        let line = |name: &str, step: &DistillStep| -> Result<String> {
            let objective = self.objective(&self.plan, *step)?;
            let (passes, rows) = (objective.teacher_passes_per_row(), objective.student_rows_per_row());
            Ok(format!(
                "{name}: a student of {} step(s), for each of which the teacher takes {}; {passes:.1} passes of the teacher and {rows:.1} \
                 of the student a row, {:.3e} operations an optimiser step",
                step.student_steps(),
                step.substeps,
                operations_per_step(&self.plan, passes, rows)
            ))
        };
        for round in rounds {
            lines.push(line(&format!("round {}", round.number), &self.step_of(round)?)?);
        }
        if let Rounds::Own(step) = self.rounds {
            lines.push(line("a round of its own", &step)?);
        }
        if self.rounds == Rounds::All {
            lines.push(match self.curriculum.next(&self.steps_done()?, self.plan.length.total) {
                Some(round) => format!("goes on in round {}", round.number),
                None => "all rounds are done".to_owned(),
            });
        }
        Ok(lines.join("\n"))
    }

    /// Trains the students, each from where its latest checkpoint left off.
    ///
    /// # Errors
    /// If anything fails; what was saved before stays.
    pub fn carry_out(&self, host: &Host) -> Result<Ended> {
        teacher::write_record(&self.record, &self.root)?;
        match self.rounds {
            Rounds::All => self.all_rounds(host),
            Rounds::One(round) => self.round(&round, host),
            Rounds::Own(step) => self.train(None, step, &self.root, || self.first_start(host), host),
        }
    }

    fn all_rounds(&self, host: &Host) -> Result<Ended> {
        let total = self.plan.length.total;
        while let Some(round) = self.curriculum.next(&self.steps_done()?, total) {
            let ended = self.round(&round, host)?;
            if !ended.is_complete() {
                return Ok(ended);
            }
        }
        let last = self.curriculum.rounds().last().map_or(self.root.clone(), |round| self.folder_of(round));
        host.note(format!("all rounds are done; the last student is in {}", last.display()));
        Ok(Ended::Finished)
    }

    fn round(&self, round: &Round, host: &Host) -> Result<Ended> {
        if let Some(ended) = self.over(host) {
            host.note(format!("stopped before round {}; run the same command again to go on", round.number));
            return Ok(ended);
        }
        host.note(format!(
            "round {} of {}: a student of {} step(s)",
            round.number,
            self.curriculum.rounds().len(),
            round.student_steps
        ));
        let start = || self.start_of(round, host);
        self.train(Some(*round), self.step_of(round)?, &self.folder_of(round), start, host)
    }

    /// How the work ended between two rounds, if it did.
    fn over(&self, host: &Host) -> Option<Ended> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Some(Ended::OutOfTime);
        }
        host.stop().load(Ordering::SeqCst).then_some(Ended::Interrupted)
    }

    fn train(
        &self,
        round: Option<Round>,
        step: DistillStep,
        folder: &Path,
        start: impl FnOnce() -> Result<StudentStart>,
        host: &Host,
    ) -> Result<Ended> {
        let mut plan = self.plan.clone();
        plan.config.output.output_dir = Some(folder.to_str().context("a path that is not Unicode")?.to_owned());
        let folder = RunFolder::new(folder);
        // On resume, the starting point is that of the checkpoint.
        let begun = folder.checkpoints().latest()?;
        let recorded = begun.as_ref().and_then(|checkpoint| plan_of(checkpoint).ok()?.distillation.map(|d| d.start));
        let start = recorded.map_or_else(start, Ok)?;
        let net = match &begun {
            Some(_) => Elf::unset(plan.model.clone(), plan.precision, self.device)?,
            None => teacher::student(&start, &plan, &self.teacher, self.device)?,
        };
        let objective = self.objective(&plan, step)?;
        plan.distillation = Some(DistillationPlan { round, step, teacher: self.record.clone(), start });
        let alone: Rc<dyn Comm> = Rc::new(Solo);
        let job = Job {
            comm: &alone,
            plan: &plan,
            inputs: &self.inputs,
            folder: &folder,
            initial: None,
            deadline: self.deadline,
            host,
        };
        train_flow(job, objective, net)
    }

    /// What students learn, for each of their steps.
    fn objective(&self, plan: &RunPlan, step: DistillStep) -> Result<DistillObjective<'_>> {
        let objective = DistillObjective::new(plan.objective, step, &self.teacher)?;
        let Some(scale) = step.own_runs.map(|runs| runs.guide_scale).filter(|scale| *scale != 1.0) else {
            return Ok(objective);
        };
        let Some(net) = self.teacher.word_guide() else {
            fail!(
                setting("pd_guide_scale"),
                "the teacher keeps nothing of words without context to be guided by: leave pd_guide_scale out, or train a teacher \
                 with word_guide_dims"
            )
        };
        let trained = TrainedFlow::from(&plan.objective).of_clean_estimates();
        Ok(objective.with_guide(Guide { net, trained, scale, until: 1.0 }))
    }

    /// The start of the first student, or of one of a single round.
    fn first_start(&self, host: &Host) -> Result<StudentStart> {
        let keys = &self.config.keys;
        Ok(match &keys.student_init_from_checkpoint {
            Some(name) => StudentStart::Checkpoint(
                host.locate(name, What::ElfCheckpoint).context("student_init_from_checkpoint")?,
            ),
            None if keys.initialize_student_from_teacher => StudentStart::Teacher,
            None => StudentStart::Random,
        })
    }

    /// The start of the student of a round: the student before it, by its averages.
    fn start_of(&self, round: &Round, host: &Host) -> Result<StudentStart> {
        let Some(before) = self.curriculum.before(round) else {
            return self.first_start(host);
        };
        if let Some((checkpoint, done)) = self.latest_of(&before)? {
            let total = self.plan.length.total;
            if done < total {
                host.warning(format!("round {} has done {done} of {total} steps only", before.number));
            }
            return Ok(StudentStart::Checkpoint(checkpoint.path().to_owned()));
        }
        if self.config.keys.student_init_from_checkpoint.is_some() {
            return self.first_start(host);
        }
        fail!(
            place(self.folder_of(&before)),
            "round {} begins as the student of round {}, and there is none in {}: run that round first, or name another student with \
             -o student_init_from_checkpoint=PATH",
            round.number,
            before.number,
            self.folder_of(&before).display()
        )
    }
}

/// The teacher's name and the folder of all rounds.
fn names(config: &DistillConfig, rounds: Rounds, curriculum: &Curriculum) -> Result<(String, PathBuf)> {
    if config.run.output.init_from.is_some() {
        fail!(
            setting("init_from"),
            "init_from is about `elf train`: what a student begins as is student_init_from_checkpoint"
        );
    }
    if config.run.output.resume.is_some() && rounds == Rounds::All {
        fail!(
            setting("resume"),
            "resume is about one round: the curriculum goes on by itself where output_dir leaves off, so leave it out"
        );
    }
    let Some(name) = config.keys.teacher_path.clone() else {
        fail!(
            setting("teacher_path"),
            "teacher_path is not set: which model should be distilled? Name one with --teacher; the released recipe takes \
             embedded-language-flows/ELF-B-owt-torch"
        )
    };
    let Some(output) = &config.run.output.output_dir else {
        fail!(setting("output_dir"), "output_dir is not set: where should the students be written?")
    };
    config.run.check_output(Some(&name))?;
    Ok((name, rounds.root(output, curriculum)))
}

/// Drops a sampling file that is not there: it must not end a run at its first evaluation, and the released configuration names one
/// of its own code.
fn without_missing_settings(config: &mut DistillConfig, host: &Host) {
    if let Some(path) = config.run.evaluation.sampling_configs_path.take_if(|path| !Path::new(path).exists()) {
        host.warning(format!(
            "there is no {path} (sampling_configs_path): evaluations sample with each student's own steps"
        ));
    }
}

/// Gives the student the teacher's sizes, and refuses what the teacher was not trained for.
fn fit(plan: &mut RunPlan, teacher: &ElfConfig, trained: Option<&RunPlan>) -> Result<()> {
    for (what, ours, its) in [
        ("channels of a latent", plan.model.text_encoder_dim, teacher.text_encoder_dim),
        ("words", plan.model.vocab_size, teacher.vocab_size),
    ] {
        if ours != its {
            fail!(
                mismatch("the teacher"),
                "the teacher knows {its} {what}, but encoder and tokenizer have {ours}: name those that it was trained with"
            );
        }
    }
    if let Some(trained) = trained {
        let (ours, its) = (&plan.objective, &trained.objective);
        let encoder = plan.other_encoder(trained);
        let differences = [
            (encoder.unwrap_or_default(), encoder.is_none()),
            ("denoiser_noise_scale or t_eps", ours.path == its.path),
            ("self_cond_prob (0 or above)", ours.self_conditioned() == its.self_conditioned()),
            (
                "max_input_length (null or not)",
                plan.span.max_input_length.is_some() == trained.span.max_input_length.is_some(),
            ),
        ];
        if let Some((what, _)) = differences.into_iter().find(|(_, same)| !same) {
            fail!(
                mismatch("the teacher"),
                "the teacher was trained with another {what}: leave it out to take the teacher's"
            );
        }
    }
    if teacher.learned_latents {
        fail!(
            mismatch("the teacher"),
            "the teacher learned its own latents (learned_latents), but distillation takes an encoder's: choose another teacher"
        );
    }
    if plan.objective.block_size.or(trained.and_then(|run| run.objective.block_size)).is_some() {
        fail!(
            mismatch("the teacher"),
            "models that write block after block (block_size) cannot be distilled: choose a teacher without, or train one"
        );
    }
    plan.model = ElfConfig { proj_dropout: plan.config.network.proj_dropout, ..teacher.clone() };
    Ok(())
}

/// Floating-point operations of an optimiser step, counted by formula: a row's passes of the teacher, and the student's over the
/// `student_rows` that come of it, whose gradient takes twice as much again.
fn operations_per_step(plan: &RunPlan, teacher_passes: f64, student_rows: f64) -> f64 {
    let positions = plan.span.max_length as u64;
    let [trunk, clean, logits] =
        [plan.model.trunk_flops(positions), plan.model.clean_flops(positions), plan.model.logits_flops(positions)]
            .map(|operations| operations as f64);
    let decode = plan.objective.decoder_prob;
    let student = student_rows * trunk + (student_rows - decode) * clean + decode * logits;
    let row = teacher_passes * (trunk + clean) + 3.0 * student;
    row * (plan.batch_rows * plan.config.optimization.grad_accum_steps) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Facts;

    /// What docs/distillation.md says of the released recipe.
    #[test]
    fn operations_are_as_documented() {
        let facts = Facts { latent_dim: 512, vocab_size: 32100, rows: 51_200, condition_eos: false, ranks: 1 };
        let plan = RunPlan::new(&DistillConfig::default().run, facts, Device::Cpu).unwrap();
        for (passes, documented) in [(0.4, 0.39), (3.6, 0.75), (6.8, 1.10), (13.2, 1.82), (26.0, 3.24), (51.6, 6.10)] {
            let petaflop = operations_per_step(&plan, passes, 1.0) / 1e15;
            assert!((petaflop - documented).abs() < 0.006, "{passes} passes: {petaflop}");
        }
    }
}
