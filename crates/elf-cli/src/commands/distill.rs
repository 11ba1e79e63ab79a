//! `elf distill`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::device::DeviceChoice;
use elf_flow::{DistillObjective, DistillStep};
use elf_hub::What;
use elf_model::{Elf, ElfConfig};
use elf_train::{Checkpoint, Comm, Curriculum, Round, Solo};
use tch::Device;

use crate::events::Terminal;
use crate::{hub, progress, rank_environment};
use elf_lm::Reporter;
use elf_lm::config::{DistillConfig, DistillationPlan, Overrides, RunPlan, StudentStart, TeacherRecord, read_yaml};
use elf_lm::model::run_folder::{RunFolder, plan_of};
use elf_lm::train::teacher::{self, FoundTeacher};
use elf_lm::train::{Ended, Job, Materials, check_evaluations, deadline, train};

#[derive(Debug, Args)]
pub struct DistillArgs {
    /// A YAML file of settings, with the key names of the released code. Keys it omits about data, encoder and network
    /// are taken from the teacher's run, if that was trained by this program.
    config: Option<PathBuf>,
    /// Override one setting: key=value. May be repeated; later values win.
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// The teacher: a run's folder, a checkpoint, a parameter file from elsewhere, or a Hugging Face id; same as -o
    /// teacher_path=NAME.
    #[arg(long)]
    teacher: Option<String>,
    /// The folder of all rounds; same as -o output_dir=FOLDER.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Run only this round of the curriculum, 1 to 5: students of 16, 8, 4, 2 and 1 steps.
    #[arg(long, conflicts_with = "single")]
    round: Option<usize>,
    /// Run a single round with the configuration's pd_teacher_steps and pd_step_size, in output_dir itself.
    #[arg(long)]
    single: bool,
    /// Stop and save after this many minutes; same as -o max_minutes=N.
    #[arg(long)]
    minutes: Option<f64>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Print what would be done, and exit.
    #[arg(long)]
    plan: bool,
}

/// Keys of a round of its own.
const OF_A_ROUND: [&str; 2] = ["pd_teacher_steps", "pd_step_size"];

impl DistillArgs {
    fn overrides(&self) -> Result<Overrides> {
        let mut all = self.options.clone();
        if let Some(name) = &self.teacher {
            all.push(format!("teacher_path={}", serde_json::to_string(name)?));
        }
        if let Some(path) = &self.output {
            let path = serde_json::to_string(path).context("a path that is not Unicode")?;
            all.push(format!("output_dir={path}"));
        }
        if let Some(minutes) = self.minutes {
            all.push(format!("max_minutes={minutes}"));
        }
        Ok(Overrides(all))
    }

    /// What is to be done. A file of the released code describes its first round and is used for all of them; on the command
    /// line the same keys mean that one round.
    fn scope(&self, config: &DistillConfig, curriculum: &Curriculum) -> Result<Scope> {
        if let Some(number) = self.round {
            let last = curriculum.rounds().len();
            let round = curriculum.round(number);
            return round.map(Scope::One).with_context(|| format!("there is no round {number}: they are 1 to {last}"));
        }
        let named = |option: &String| OF_A_ROUND.iter().any(|key| option.trim_start().starts_with(&format!("{key}=")));
        let own = match (config.keys.pd_step_size, config.keys.pd_teacher_steps) {
            (Some(step_size), Some(substeps)) => Some(config.step(step_size, substeps)?),
            (None, None) if !self.single => None,
            _ => bail!("a round of its own needs both pd_teacher_steps and pd_step_size"),
        };
        match own {
            Some(step) if self.single || self.options.iter().any(named) => Ok(Scope::Own(step)),
            Some(DistillStep { step_size, substeps, .. }) if curriculum.find(step_size, substeps).is_none() => bail!(
                "pd_teacher_steps {substeps} and pd_step_size {step_size} are those of no round in the curriculum: run that one round \
                 alone with --single, or leave both out"
            ),
            _ => Ok(Scope::All),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scope {
    /// The whole curriculum.
    All,
    /// One of its rounds.
    One(Round),
    /// A round of its own.
    Own(DistillStep),
}

impl Scope {
    /// The folder of all rounds. The released configuration names that of the first round, whose parent is meant.
    fn root(&self, output: &str, curriculum: &Curriculum) -> PathBuf {
        let output = Path::new(output);
        let of_a_round = |round: &Round| output.file_name().is_some_and(|name| name == round.folder_name().as_str());
        match output.parent() {
            Some(parent) if !matches!(self, Scope::Own(_)) && curriculum.rounds().iter().any(of_a_round) => {
                if parent.as_os_str().is_empty() { Path::new(".") } else { parent }.to_owned()
            }
            _ => output.to_owned(),
        }
    }
}

pub fn run(args: DistillArgs) -> Result<ExitCode> {
    let mut config: DistillConfig =
        read_yaml(args.config.as_deref(), &args.overrides()?, |line| eprintln!("warning: {line}"))?;
    let curriculum = Curriculum::released();
    let scope = args.scope(&config, &curriculum)?;
    if config.run.init_from.is_some() {
        bail!("init_from is about `elf train`: what a student begins as is student_init_from_checkpoint");
    }
    if config.run.resume.is_some() && scope == Scope::All {
        bail!(
            "resume is about one round: the curriculum goes on by itself where output_dir leaves off, so leave it out"
        );
    }
    let Some(name) = config.keys.teacher_path.clone() else {
        bail!(
            "teacher_path is not set: which model should be distilled? Name one with --teacher; the released recipe takes \
             embedded-language-flows/ELF-B-owt-torch"
        )
    };
    let Some(output) = &config.run.output_dir else {
        bail!("output_dir is not set: where should the students be written?")
    };
    let root = scope.root(output, &curriculum);
    let found = FoundTeacher::find(&name, config.keys.teacher_use_ema, &root)?;
    if let Some(plan) = found.plan() {
        config.inherit(&plan.config)?;
    }
    without_missing_settings(&mut config);

    rank_environment::refuse_several("elf distill")?;
    let device = args.device.resolve()?;
    let materials = Materials::load(&config.run, device)?;
    let mut plan = materials.plan(&config.run, device, 1)?;
    let teacher = found.load(plan.precision, device)?;
    fit(&mut plan, teacher.config(), found.plan())?;
    materials.memory(&plan, device, 1).check(&plan, device, rank_environment::processes_here())?;
    check_evaluations(&plan, &materials)?;
    let record = found.record(&teacher, &root)?;
    let distillation = Distillation { config, plan, materials, teacher, record, root, curriculum, device };
    eprintln!("{}", distillation.describe(scope)?);
    if args.plan {
        return Ok(ExitCode::SUCCESS);
    }
    teacher::write_record(&distillation.record, &distillation.root)?;
    distillation.carry_out(scope)
}

/// A sampling file that is not there must not end a run at its first evaluation: the released configuration names one of its
/// own code.
fn without_missing_settings(config: &mut DistillConfig) {
    if let Some(path) = config.run.sampling_configs_path.take_if(|path| !Path::new(path).exists()) {
        eprintln!(
            "warning: there is no {path} (sampling_configs_path): evaluations sample with each student's own steps"
        );
    }
}

/// Gives the student the teacher's sizes, and refuses what the teacher was not trained for.
fn fit(plan: &mut RunPlan, teacher: &ElfConfig, trained: Option<&RunPlan>) -> Result<()> {
    for (what, ours, its) in [
        ("channels of a latent", plan.model.text_encoder_dim, teacher.text_encoder_dim),
        ("words", plan.model.vocab_size, teacher.vocab_size),
    ] {
        if ours != its {
            bail!(
                "the teacher knows {its} {what}, but encoder and tokenizer have {ours}: name those that it was trained with"
            );
        }
    }
    if let Some(trained) = trained {
        let (ours, its) = (&plan.objective, &trained.objective);
        if let Some(what) = plan.other_encoder(trained) {
            bail!("the teacher was trained with another {what}: leave it out to take the teacher's");
        }
        for (what, same) in [
            ("denoiser_noise_scale or t_eps", ours.path == its.path),
            ("self_cond_prob (0 or above)", ours.self_conditioned() == its.self_conditioned()),
            (
                "max_input_length (null or not)",
                plan.span.max_input_length.is_some() == trained.span.max_input_length.is_some(),
            ),
        ] {
            if !same {
                bail!("the teacher was trained with another {what}: leave it out to take the teacher's");
            }
        }
    }
    if teacher.learned_latents {
        bail!(
            "the teacher learned its own latents (learned_latents), but distillation takes an encoder's: choose another teacher"
        );
    }
    if plan.objective.block_size.or(trained.and_then(|run| run.objective.block_size)).is_some() {
        bail!(
            "models that write block after block (block_size) cannot be distilled: choose a teacher without, or train one"
        );
    }
    plan.model = ElfConfig { proj_dropout: plan.config.proj_dropout, ..teacher.clone() };
    Ok(())
}

/// Floating-point operations of an optimiser step, counted by formula: a row's passes of the teacher, and the student's one,
/// whose gradient takes twice as much again.
fn operations_per_step(plan: &RunPlan, teacher_passes: f64) -> f64 {
    let positions = plan.span.max_length as u64;
    let [trunk, clean, logits] =
        [plan.model.trunk_flops(positions), plan.model.clean_flops(positions), plan.model.logits_flops(positions)]
            .map(|operations| operations as f64);
    let decode = plan.objective.decoder_prob;
    let row = teacher_passes * (trunk + clean) + 3.0 * (trunk + (1.0 - decode) * clean + decode * logits);
    row * (plan.batch_rows * plan.config.grad_accum_steps) as f64
}

/// A teacher, and everything that its students need.
struct Distillation {
    config: DistillConfig,
    /// A round's plan, but for what differs between rounds.
    plan: RunPlan,
    materials: Materials,
    teacher: Elf,
    record: TeacherRecord,
    root: PathBuf,
    curriculum: Curriculum,
    device: Device,
}

impl Distillation {
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
        let Some(latest) = checkpoints.latest()? else { return Ok(None) };
        let is_over = self.plan.config.early_stopping.is_some() && checkpoints.ended_early()?;
        let steps = if is_over { self.plan.length.total } else { latest.state().step };
        Ok(Some((latest, steps)))
    }

    fn describe(&self, scope: Scope) -> Result<String> {
        let own;
        let rounds = match scope {
            Scope::All => self.curriculum.rounds(),
            Scope::One(round) => {
                own = [round];
                &own
            }
            Scope::Own(_) => &[],
        };
        let mut lines = vec![
            self.materials.describe(&self.plan, self.device, 1),
            format!("teacher: {}", self.record.place.display()),
        ];
        let line = |name: &str, step: &DistillStep| -> Result<String> {
            let passes = DistillObjective::new(self.plan.objective, *step, &self.teacher)?.teacher_passes_per_row();
            Ok(format!(
                "{name}: a student of {} step(s), for each of which the teacher takes {}; {passes:.1} passes of the teacher a row, \
                 {:.3e} operations an optimiser step",
                step.student_steps(),
                step.substeps,
                operations_per_step(&self.plan, passes)
            ))
        };
        for round in rounds {
            lines.push(line(&format!("round {}", round.number), &self.step_of(round)?)?);
        }
        if let Scope::Own(step) = scope {
            lines.push(line("a round of its own", &step)?);
        }
        if scope == Scope::All {
            lines.push(match self.curriculum.next(&self.steps_done()?, self.plan.length.total) {
                Some(round) => format!("goes on in round {}", round.number),
                None => "all rounds are done".to_owned(),
            });
        }
        Ok(lines.join("\n"))
    }

    fn carry_out(&self, scope: Scope) -> Result<ExitCode> {
        let watch = Watch { stop: progress::stop_on_interrupt()?, deadline: deadline(&self.plan.config) };
        let ended = match scope {
            Scope::All => self.all_rounds(&watch)?,
            Scope::One(round) => self.round(&round, &watch)?,
            Scope::Own(step) => self.train(None, step, &self.root, || self.first_start(), &watch)?,
        };
        Ok(if ended == Ended::Interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
    }

    fn all_rounds(&self, watch: &Watch) -> Result<Ended> {
        let total = self.plan.length.total;
        while let Some(round) = self.curriculum.next(&self.steps_done()?, total) {
            let ended = self.round(&round, watch)?;
            if !ended.is_complete() {
                return Ok(ended);
            }
        }
        let last = self.curriculum.rounds().last().map_or(self.root.clone(), |round| self.folder_of(round));
        eprintln!("all rounds are done; the last student is in {}", last.display());
        Ok(Ended::Finished)
    }

    fn round(&self, round: &Round, watch: &Watch) -> Result<Ended> {
        if let Some(ended) = watch.over() {
            eprintln!("stopped before round {}; run the same command again to go on", round.number);
            return Ok(ended);
        }
        eprintln!(
            "round {} of {}: a student of {} step(s)",
            round.number,
            self.curriculum.rounds().len(),
            round.student_steps
        );
        let start = || self.start_of(round);
        self.train(Some(*round), self.step_of(round)?, &self.folder_of(round), start, watch)
    }

    fn train(
        &self,
        round: Option<Round>,
        step: DistillStep,
        folder: &Path,
        start: impl FnOnce() -> Result<StudentStart>,
        watch: &Watch,
    ) -> Result<Ended> {
        let mut plan = self.plan.clone();
        plan.config.output_dir = Some(folder.to_str().context("a path that is not Unicode")?.to_owned());
        let folder = RunFolder::new(folder);
        // What a student began as is told by the student that has begun.
        let begun = folder.checkpoints().latest()?;
        let recorded = begun.as_ref().and_then(|checkpoint| plan_of(checkpoint).ok()?.distillation.map(|d| d.start));
        let start = recorded.map_or_else(start, Ok)?;
        let net = match &begun {
            Some(_) => Elf::unset(plan.model.clone(), plan.precision, self.device)?,
            None => teacher::student(&start, &plan, &self.teacher, self.device)?,
        };
        let objective = DistillObjective::new(plan.objective, step, &self.teacher)?;
        plan.distillation = Some(DistillationPlan { round, step, teacher: self.record.clone(), start });
        let alone: Rc<dyn Comm> = Rc::new(Solo);
        let mut terminal = Terminal::default();
        let job = Job {
            comm: &alone,
            plan: &plan,
            materials: &self.materials,
            folder: &folder,
            initial: None,
            stop: Arc::clone(&watch.stop),
            deadline: watch.deadline,
            events: &Reporter::new(&mut terminal),
        };
        train(job, objective, net)
    }

    /// What the first student begins as, or one of a round of its own.
    fn first_start(&self) -> Result<StudentStart> {
        let keys = &self.config.keys;
        Ok(match &keys.student_init_from_checkpoint {
            Some(name) => StudentStart::Checkpoint(
                hub::locate(name, What::ElfCheckpoint).context("student_init_from_checkpoint")?,
            ),
            None if keys.initialize_student_from_teacher => StudentStart::Teacher,
            None => StudentStart::Random,
        })
    }

    /// What the student of a round begins as: the one before, by its averages.
    fn start_of(&self, round: &Round) -> Result<StudentStart> {
        let Some(before) = self.curriculum.before(round) else { return self.first_start() };
        if let Some((checkpoint, done)) = self.latest_of(&before)? {
            let total = self.plan.length.total;
            if done < total {
                eprintln!("warning: round {} has done {done} of {total} steps only", before.number);
            }
            return Ok(StudentStart::Checkpoint(checkpoint.path().to_owned()));
        }
        if self.config.keys.student_init_from_checkpoint.is_some() {
            return self.first_start();
        }
        bail!(
            "round {} begins as the student of round {}, and there is none in {}: run that round first, or name another student with \
             -o student_init_from_checkpoint=PATH",
            round.number,
            before.number,
            self.folder_of(&before).display()
        )
    }
}

/// What ends the work before its end.
struct Watch {
    stop: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Watch {
    /// Whether it has, between two rounds.
    fn over(&self) -> Option<Ended> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Some(Ended::OutOfTime);
        }
        self.stop.load(Ordering::SeqCst).then_some(Ended::Interrupted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use elf_lm::config::Facts;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: DistillArgs,
    }

    fn scope(file: &str, arguments: &[&str]) -> Result<Scope> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("distill.yml");
        std::fs::write(&path, file).unwrap();
        let args = Cli::parse_from([&["elf", path.to_str().unwrap()], arguments].concat()).args;
        let config = read_yaml(args.config.as_deref(), &args.overrides()?, |_| {})?;
        args.scope(&config, &Curriculum::released())
    }

    const FIRST: &str = "pd_teacher_steps: 4\npd_step_size: 0.0625\n";

    #[test]
    fn a_configuration_is_run_as_a_curriculum_or_as_one_round() {
        let step = |size, substeps| DistillConfig::default().step(size, substeps).unwrap();
        assert_eq!(scope("", &[]).unwrap(), Scope::All);
        assert_eq!(scope(FIRST, &[]).unwrap(), Scope::All, "the released file");
        assert_eq!(scope(FIRST, &["--single"]).unwrap(), Scope::Own(step(0.0625, 4)));
        assert_eq!(scope(FIRST, &["-o", "pd_step_size=0.125"]).unwrap(), Scope::Own(step(0.125, 4)));
        assert_eq!(scope(FIRST, &["--round", "3"]).unwrap(), Scope::One(Curriculum::released().rounds()[2]));
        let message = |file, arguments: &[&str]| scope(file, arguments).unwrap_err().to_string();
        assert!(message("pd_teacher_steps: 5\npd_step_size: 0.5\n", &[]).contains("--single"));
        assert!(message("pd_step_size: 0.5\n", &[]).contains("both"));
        assert!(message("", &["--single"]).contains("both"));
        assert!(message("", &["--round", "6"]).contains("1 to 5"));
        assert!(message(FIRST, &["-o", "pd_step_size=7"]).contains("pd_step_size"));
    }

    /// What docs/distillation.md says of the released recipe.
    #[test]
    fn operations_are_as_documented() {
        let facts = Facts { latent_dim: 512, vocab_size: 32100, rows: 51_200, condition_eos: false, ranks: 1 };
        let plan = RunPlan::new(&DistillConfig::default().run, facts, Device::Cpu).unwrap();
        for (passes, documented) in [(0.4, 0.39), (3.6, 0.75), (6.8, 1.10), (13.2, 1.82), (26.0, 3.24), (51.6, 6.10)] {
            let petaflop = operations_per_step(&plan, passes) / 1e15;
            assert!((petaflop - documented).abs() < 0.006, "{passes} passes: {petaflop}");
        }
    }

    #[test]
    fn the_folder_of_a_round_means_the_one_above() {
        let curriculum = Curriculum::released();
        let own = Scope::Own(DistillConfig::default().step(0.5, 2).unwrap());
        for (scope, output, root) in [
            (Scope::All, "out/round1_16step", "out"),
            (Scope::All, "round1_16step", "."),
            (Scope::One(curriculum.rounds()[1]), "out/round2_8step/", "out"),
            (Scope::All, "out/round1", "out/round1"),
            (own, "out/round1_16step", "out/round1_16step"),
        ] {
            assert_eq!(scope.root(output, &curriculum), Path::new(root), "{output}");
        }
    }
}
