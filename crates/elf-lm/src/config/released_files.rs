//! Files in the form of the released ones, and all that this repository ships, load and make a plan.

use std::path::{Path, PathBuf};

use elf_flow::sampler::Registry;
use elf_train::Curriculum;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Device;

use super::{DistillConfig, Facts, Overrides, RunConfig, RunPlan, read_sampling, read_yaml};

/// Every key that the released code knows.
const EVERY_KEY: &str = r#"
data_path: some/openwebtext
eval_data_path: null
max_length: 128
max_input_length: 64
pad_token: eos
tokenizer_name: t5-small
encoder_model_name: t5-small
encoder_checkpoint: null
latent_mean: 0.0
latent_std: 0.2
model: ELF-B
bottleneck_dim: 128
num_time_tokens: 4
num_self_cond_cfg_tokens: 4
num_model_mode_tokens: 4
attn_dropout: 0.0
proj_dropout: 0.0
denoiser_p_mean: -1.5
denoiser_p_std: 0.8
denoiser_noise_scale: 2.0
t_eps: 0.05
time_schedule: logit_normal
decoder_prob: 0.2
decoder_noise_scale: 1.0
decoder_p_mean: 0.8
decoder_p_std: 0.8
label_drop_prob: 0.1
self_cond_prob: 0.5
self_cond_cfg_min: 0.5
self_cond_cfg_max: 5.0
epochs: 5
warmup_epochs: 0.5
warmup_steps: -1
batch_size: null
global_batch_size: 512
lr: null
blr: 1e-3
min_lr: 0
lr_schedule: constant
weight_decay: 0
optimizer: muon
adam_b1: 0.9
adam_b2: 0.95
grad_accum_steps: 1
use_bf16: true
use_compile: true
gradient_checkpointing: false
ema_decay1: 0.9999
seed: 42
num_workers: 8
sampling_configs_path: sampling.yml
num_samples: 1000
online_eval: true
eval_ppl_model: gpt2-large
eval_ppl_batch_size: 64
eval_ppl_max_length: 1024
eval_freq: 10
output_dir: out
save_freq: 0.25
log_freq: 100
resume: null
hf_repo_id: null
use_wandb: true
wandb_project: elf
wandb_entity: null
wandb_name: a-run
"#;

const SAMPLING: &str = "
- sampling_method: ode
  num_sampling_steps: [32, 64]
  cfgs: [1, 2.0]
  self_cond_cfg_scales: [1.0, 2, 3]
  time_schedule: logit_normal
- sampling_method: sde
  num_sampling_steps: [50]
  cfgs: [1]
  self_cond_cfg_scales: [3.0]
  time_schedule: uniform
  sde_gamma: 1.5
";

fn plan(config: &RunConfig) -> RunPlan {
    let facts = Facts { latent_dim: 512, vocab_size: 32100, rows: 51_200, condition_eos: false, ranks: 1 };
    RunPlan::new(config, facts, Device::Cpu).unwrap()
}

fn load<T: Default + Serialize + DeserializeOwned>(path: &Path) -> (T, Vec<String>) {
    let mut warnings = Vec::new();
    let config = read_yaml(Some(path), &Overrides::default(), |line| warnings.push(line));
    (config.unwrap_or_else(|e| panic!("{}: {}", path.display(), e.report())), warnings)
}

#[test]
fn every_key_of_the_released_code_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.yml");
    std::fs::write(&path, EVERY_KEY).unwrap();
    let (config, warnings): (RunConfig, _) = load(&path);
    assert_eq!(warnings.len(), 1, "one line names what has no meaning: {warnings:?}");
    for key in ["use_wandb", "wandb_project", "wandb_entity", "wandb_name", "hf_repo_id", "num_workers", "use_compile"]
    {
        assert!(warnings[0].contains(key), "{key} is not in: {}", warnings[0]);
    }
    let plan = plan(&config);
    // 100 steps an epoch: half an epoch of warm-up, and a checkpoint every quarter.
    assert_eq!((plan.length.total, plan.length.warmup, plan.length.save_every), (500, 50, 25));
    assert_eq!(plan.lr, 1e-3 * 512.0 / 256.0);

    std::fs::write(&path, format!("{EVERY_KEY}\nwarmup_step: 3\n")).unwrap();
    let error = read_yaml::<RunConfig>(Some(&path), &Overrides::default(), |_| {}).unwrap_err();
    assert!(error.report().contains("warmup_steps"), "{}", error.report());
}

#[test]
fn sampling_lists_give_every_combination() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sampling.yml");
    std::fs::write(&path, SAMPLING).unwrap();
    assert_eq!(read_sampling(&path, &Registry::builtin()).unwrap().len(), 2 * 2 * 3 + 1);
}

#[test]
fn every_shipped_configuration_makes_a_plan() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = |folder: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|e| e == "yml" || e == "yaml")).collect()
    };
    let (runs, sampling) = (files("configs"), files("configs/sampling"));
    let is_distillation = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().contains("distill"));
    let (distillations, runs): (Vec<_>, Vec<_>) = runs.into_iter().partition(is_distillation);
    assert!(!runs.is_empty() && !distillations.is_empty() && !sampling.is_empty());
    let mut configs: Vec<(PathBuf, RunConfig)> = Vec::new();
    for path in runs {
        let (config, warnings) = load(&path);
        assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
        configs.push((path, config));
    }
    for path in distillations {
        let (config, warnings): (DistillConfig, _) = load(&path);
        // Whom to learn from may be left to the command line.
        assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
        for round in Curriculum::released().rounds() {
            config.step(round.step_size(), round.teacher_steps).unwrap();
        }
        configs.push((path, config.run));
    }
    for (path, config) in configs {
        plan(&config);
        if let Some(sampling) = &config.evaluation.sampling_configs_path {
            assert!(root.join(sampling).is_file(), "{} names {sampling}", path.display());
        }
    }
    for path in sampling {
        assert!(!read_sampling(&path, &Registry::builtin()).unwrap().is_empty(), "{}", path.display());
    }
}
