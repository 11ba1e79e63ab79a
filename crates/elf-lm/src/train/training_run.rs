//! One training run, from a configuration to its end.

use std::path::PathBuf;
use std::rc::Rc;

use elf_core::ParamBuilder;
use elf_core::device::DeviceChoice;
use elf_flow::tokens::NextToken;
use elf_model::Elf;
use elf_train::{Comm, EndToEnd, OverTokens, Solo};
use tch::Device;

use super::baseline_kind::{self, BaselineKind};
use super::system_memory::available;
use super::{Ended, Job, TrainingInputs, agree, check_evaluations, deadline, initial_model, train_flow, train_kind};
use crate::config::{BaselinePlan, RunConfig, RunPlan};
use crate::error::fail;
use crate::model::ModelRef;
use crate::model::run_folder::RunFolder;
use crate::{Events, Host, Result};

/// The processes that share a run, and the device of this one.
#[derive(Clone)]
pub struct Ranks {
    /// The device of this process.
    pub device: Device,
    /// The connection to the others.
    pub comm: Rc<dyn Comm>,
    /// Processes of the run that share the memory of this machine.
    pub processes_here: u64,
}

impl Ranks {
    /// This process alone.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn alone(device: DeviceChoice) -> Result<Self> {
        Ok(Self { device: device.resolve()?, comm: Rc::new(Solo), processes_here: 1 })
    }

    fn are_led_by_this(&self) -> bool {
        self.comm.rank() == 0
    }
}

/// Trains what a configuration describes to the end, or resumes it from the latest checkpoint in its `output_dir`.
///
/// ```
/// use elf_lm::{Event, RunConfig};
/// # let here = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
/// # let folder = tempfile::tempdir()?;
/// # let tokenizer = elf_data::Tokenizer::load(here.join("models/mini-encoder"))?;
/// # let texts = folder.path().join("texts.txt");
/// # std::fs::write(&texts, "a red house\nthe green tree\na small dog\nold books\n".repeat(4))?;
/// # let data = folder.path().join("data");
/// # let prepared = elf_data::shards::PrepareConfig::new(vec![texts], &data, "text");
/// # elf_data::shards::prepare(&prepared, &tokenizer, &mut |_| std::ops::ControlFlow::Continue(()))?;
/// # let encoder = here.join("models/mini-encoder").display().to_string();
/// # let (data, output) = (data.display().to_string(), folder.path().join("run").display().to_string());
/// let mut config = RunConfig::default();
/// config.encoder.encoder_model_name = encoder; // a folder with a text encoder and its tokenizer
/// config.data.data_path = Some(data); // token shards
/// config.output.output_dir = Some(output.clone());
/// (config.network.hidden_size, config.network.depth, config.network.num_heads) = (Some(32), Some(1), Some(2));
/// (config.data.max_length, config.batches.batch_size, config.length.max_steps) = (8, Some(4), Some(2));
/// config.evaluation.online_eval = false;
/// let ended = elf_lm::train(config, &mut |event: Event| println!("{event:?}"))?;
/// assert!(ended.is_complete());
/// let model = elf_lm::Model::load(output)?;
/// assert_eq!(model.generate_freely(2, 0, &model.sampling()?.steps(2))?.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Names the key that is missing or impossible; or if anything fails, and then what was saved before stays.
pub fn train(config: RunConfig, events: &mut dyn Events) -> Result<Ended> {
    let host = Host::new(events);
    TrainingRun::prepare(&config, Ranks::alone(DeviceChoice::Auto)?, &host)?.carry_out(&host)
}

/// A run whose configuration is checked and whose data and encoder are loaded.
pub struct TrainingRun {
    plan: RunPlan,
    inputs: TrainingInputs,
    folder: RunFolder,
    initial: Option<ModelRef>,
    ranks: Ranks,
}

impl TrainingRun {
    /// Loads all that a configuration names, and checks that the run can be carried out. What will be done is told in notes.
    ///
    /// # Errors
    /// Names the key that is missing or impossible.
    pub fn prepare(config: &RunConfig, ranks: Ranks, host: &Host) -> Result<Self> {
        let (device, world) = (ranks.device, ranks.comm.world());
        // The first rank speaks for all.
        let note = |line: String| {
            if ranks.are_led_by_this() {
                host.note(line);
            }
        };
        let (config, idle) = config.of_objective();
        let config = &config;
        if !idle.is_empty() {
            note(format!("no effect: {}, since this objective has no latents", idle.join(", ")));
        }
        config.check_output(None)?;
        let inputs = TrainingInputs::load(config, device, host)?;
        let plan = inputs.plan(config, device, world as usize)?;
        agree(&plan, &inputs, ranks.comm.as_ref())?;
        let Some(output) = &config.output.output_dir else {
            fail!(setting("output_dir"), "output_dir is not set: where should the run be written?")
        };
        let folder = RunFolder::new(PathBuf::from(output));
        note(inputs.describe(&plan, device, world));
        let initial = initial_model(&plan, &inputs.tokenizer, host)?;
        if let Some(initial) = &initial {
            note(format!("start:   {}", initial.path().display()));
        }
        inputs.memory(&plan, device, world).check(&plan, available(device, ranks.processes_here))?;
        // What evaluations cannot do should be known now and not after the first epoch.
        check_evaluations(&plan, &inputs, host.samplers())?;
        if config.evaluation.online_eval {
            let judge = match &inputs.judge {
                Some(judge) => format!("perplexity is judged by {}", judge.name()),
                None if config.data.max_input_length.is_some() => "texts are held against references".to_owned(),
                None => "eval_ppl_model is not set, so no perplexity is measured (gpt2-large in the released code)"
                    .to_owned(),
            };
            note(format!("note:    evaluations write texts to {}/samples; {judge}", folder.root().display()));
        }
        Ok(Self { plan, inputs, folder, initial, ranks })
    }

    /// The plan.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// The folder that the run is written to.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Trains to the end, from the latest checkpoint if there is one.
    ///
    /// # Errors
    /// If anything fails; what was saved before stays.
    pub fn carry_out(&self, host: &Host) -> Result<Ended> {
        let Self { plan, inputs, folder, initial, ranks } = self;
        let (device, initial) = (ranks.device, initial.as_ref());
        let builder = ParamBuilder::seeded(plan.config.seed, device);
        let job = Job { plan, inputs, folder, initial, comm: &ranks.comm, deadline: deadline(&plan.config), host };
        match &plan.baseline {
            None => {
                let net = Elf::new(plan.model.clone(), plan.precision, plan.config.seed, device)?;
                match plan.model.learned_latents {
                    true => train_flow(job, EndToEnd(plan.objective), net),
                    false => train_flow(job, plan.objective, net),
                }
            }
            Some(BaselinePlan::Gpt2(sizes)) => {
                let net = baseline_kind::gpt2(sizes, plan, plan.precision, builder)?;
                let objective = OverTokens(NextToken { bos: i64::from(inputs.tokenizer.eos_id()?) });
                let kind = BaselineKind::<_, NextToken>::new(plan, &inputs.tokenizer)?;
                train_kind(job, &kind, objective, net)
            }
            Some(BaselinePlan::Mdlm { network, objective }) => {
                let net = baseline_kind::masked(network, plan, plan.precision, builder)?;
                let kind = BaselineKind::new(plan, &inputs.tokenizer)?;
                train_kind(job, &kind, OverTokens(*objective), net)
            }
        }
    }
}
