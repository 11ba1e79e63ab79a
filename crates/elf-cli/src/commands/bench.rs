//! `elf bench`.

mod http;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use elf_core::device::{DeviceChoice, describe};
use elf_core::{Precision, PrecisionPolicy};
use elf_encoder::T5Config;
use elf_model::{ElfConfig, Preset};
use tch::{Device, Kind};

use self::http::HttpArgs;
use self::report::{Results, as_json, table};
use super::{MOST_ROWS, at_least_one, at_most, output_file};
use crate::bench::workload::Workload;
use crate::bench::{ceiling, checked, gpu_memory, operations};
use crate::printing::{note, out};
use crate::standard_streams::is_output;
use elf_lm::json_files::write_json;
use elf_lm::text::text_file::check_writable;
use elf_lm::train::system_memory;

/// Everything is generated at random on the spot: no files, no downloads. `--only http` alone serves models that exist.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The size of the network.
    #[arg(long, value_enum, default_value_t = BenchPreset::ElfB)]
    preset: BenchPreset,
    /// Rows per batch.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Positions per row.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Training steps to time, after one untimed step.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Steps of the SDE sampler.
    #[arg(long, default_value_t = 32)]
    sampling_steps: usize,
    /// Compute in fp32 even where the device supports bf16.
    #[arg(long)]
    f32: bool,
    /// Run Muon's Newton-Schulz iterations in fp32, as with `muon_bf16: false`, even where the device supports bf16.
    #[arg(long)]
    muon_f32: bool,
    /// Compute the vocabulary head and the projections between latents and blocks in fp32, as with `heads_bf16: false`,
    /// even where the device supports bf16.
    #[arg(long)]
    heads_f32: bool,
    /// Sample and decode with 8-bit products in the blocks, as `elf sample --int8` does. The ceiling stays that of the activations'
    /// precision.
    #[arg(long)]
    int8: bool,
    /// Use gradient checkpointing, as with `gradient_checkpointing: true`. The recomputation of a block does not count
    /// towards the operations that the step needs.
    #[arg(long)]
    recompute: bool,
    /// Run only these stages. Default: `train`, `sample`, `decode`, `encode` and `load`.
    #[arg(long, value_enum)]
    only: Vec<Stage>,
    /// Profile where the time of a training step goes. The device is synchronised after each part, which costs a GPU
    /// some speed.
    #[arg(long)]
    profile: bool,
    /// Write the results as one JSON object.
    #[arg(long, value_name = "FILE", value_parser = output_file())]
    json: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    #[command(flatten)]
    http: HttpArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchPreset {
    /// 2 blocks of width 256 and a small vocabulary, for a quick look.
    Mini,
    /// ELF-B with T5-small.
    ElfB,
    /// ELF-M with T5-small.
    ElfM,
    /// ELF-L with T5-small.
    ElfL,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Training steps.
    Train,
    /// Sampling, including the final decoding step.
    Sample,
    /// Latents to tokens.
    Decode,
    /// Token ids to latents.
    Encode,
    /// Collated batches of tokens.
    Load,
    /// Kernels that a training step and sampling launch on a GPU, and the bytes that these move for each position, counted on a CPU
    /// that takes its way: the mean of --steps steps, made with --batch rows and with twice as many.
    Count,
    /// Latency and throughput of generated texts: by ELF with several step counts and by a GPT-2 of the same width and
    /// depth with a KV cache, one at a time and a batch at a time.
    Serve,
    /// What clients of `elf serve` get: latency, time to the first words, requests and positions per second, memory.
    Http,
    /// The machine's ceilings alone; most other stages measure them, too.
    Ceilings,
    /// Values and gradients of each operation of the network and the optimisers on the device, in fp32 and bf16, against
    /// its plain form in fp32 on the CPU. Fails if any is beyond its tolerance.
    Operations,
    /// Time and bytes per second of these operations.
    Speeds,
    /// Passes, rollouts and training steps on the device in fp32 against the reference numbers in the folder that the
    /// variable ELF_PARITY_DIR names. Fails if any is beyond its tolerance.
    Parity,
}

impl Stage {
    /// Whether it is made unless others are asked for.
    fn by_default(self) -> bool {
        matches!(self, Self::Train | Self::Sample | Self::Decode | Self::Encode | Self::Load)
    }

    /// Whether its results are compared with the ceilings.
    fn needs_ceilings(self) -> bool {
        self.by_default() || matches!(self, Self::Serve | Self::Http | Self::Ceilings)
    }
}

impl BenchPreset {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// The network and its encoder.
    fn sizes(self) -> (ElfConfig, T5Config) {
        let small = T5Config::small();
        match self {
            Self::Mini => {
                let sizes = ElfConfig { hidden_size: 256, depth: 2, num_heads: 4, ..Preset::B.config(128, 4096) };
                let encoder =
                    T5Config { vocab_size: 4096, d_model: 128, d_ff: 512, num_layers: 2, num_heads: 2, ..small };
                (sizes, encoder)
            }
            Self::ElfB => (Preset::B.config(512, 32100), small),
            Self::ElfM => (Preset::M.config(512, 32100), small),
            Self::ElfL => (Preset::L.config(512, 32100), small),
        }
    }
}

pub fn run(args: BenchArgs) -> Result<ExitCode> {
    at_least_one(&[
        ("--batch", args.batch),
        ("--seq", args.seq),
        ("--steps", args.steps),
        ("--sampling-steps", args.sampling_steps),
    ])?;
    at_most(&[("--batch", args.batch, MOST_ROWS), ("--seq", args.seq, 1 << 24)])?;
    args.json.as_deref().map_or(Ok(()), check_writable)?;
    let device = args.device.resolve()?;
    if args.only.contains(&Stage::Http) {
        args.http.plan(args.device)?;
    } else {
        args.http.refuse()?;
    }
    let native = if args.f32 { Precision::F32 } else { Precision::native(device) };
    let unless = |f32: bool| if f32 { Precision::F32 } else { native };
    let (model, encoder) = args.preset.sizes();
    let workload = Workload {
        model,
        encoder,
        policy: PrecisionPolicy { blocks: native, ..PrecisionPolicy::uniform(unless(args.heads_f32)) },
        int8: args.int8,
        muon: unless(args.muon_f32),
        recompute: args.recompute,
        batch: args.batch,
        seq: args.seq,
        steps: args.steps,
        sampling_steps: args.sampling_steps,
        device,
    };
    check_memory(&args, &workload)?;
    note!(
        "{}: {} parameters, {} x {} positions; {}; blocks {}, heads {}, Muon {}",
        args.preset.name(),
        workload.model.parameter_count(),
        args.batch,
        args.seq,
        describe(device),
        workload.policy.blocks,
        workload.policy.vocab_head,
        workload.muon,
    );
    let results = measure(&args, &workload)?;
    let peak = results.peak(native);
    if let Some(path) = &args.json {
        write_json(path, &as_json(&args.preset.name(), &workload, &results, peak))?;
        note!("written to {}", path.display());
    }
    if !args.json.as_deref().is_some_and(is_output) {
        out!("{}", table(&results, peak))?;
    }
    Ok(if results.checked.iter().all(checked::Checked::holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Refuses sizes of which a training step does not fit into memory.
fn check_memory(args: &BenchArgs, workload: &Workload) -> Result<()> {
    let (rows, positions) = (workload.batch as u64, workload.seq as u64);
    // Steps are counted with twice the rows, too.
    let most = if args.only.contains(&Stage::Count) { 2 * rows } else { rows };
    let activations = workload.model.activation_bytes(most, positions, workload.policy, true);
    let needed = activations.saturating_add(20 * workload.model.parameter_count());
    let available = system_memory::available(workload.device, 1);
    Ok(system_memory::check("a training step", needed, available, |_| {
        format!("lower --batch (now {rows}) or --seq (now {positions})")
    })?)
}

fn measure(args: &BenchArgs, workload: &Workload) -> Result<Results> {
    let device = workload.device;
    let wanted = |stage: Stage| if args.only.is_empty() { stage.by_default() } else { args.only.contains(&stage) };
    let stage = |name: &str| note!("measuring {name} ...");
    let with_ceilings = args.only.is_empty() || args.only.iter().any(|stage| stage.needs_ceilings());
    let mut results = Results::default();
    if with_ceilings {
        stage("the machine's ceilings");
        add_ceilings(&mut results, device)?;
        results.copy = ceiling::copy_bytes(device)?;
    }
    if wanted(Stage::Train) {
        stage("training");
        system_memory::reset_peak();
        let training = workload.train()?;
        // A GPU's memory is not the process's.
        let peak = system_memory::peak_bytes().filter(|_| device == Device::Cpu);
        results.train = Some((training, peak));
        if args.profile {
            stage("the parts of a training step");
            let parts = workload.profile()?;
            results.profile = parts.into_iter().map(|(part, time)| (part, time.as_secs_f64())).collect();
        }
    }
    if wanted(Stage::Sample) {
        stage("sampling");
        results.sample = Some(workload.sample()?);
    }
    if wanted(Stage::Decode) {
        stage("decoding");
        results.decode = Some(workload.decode()?);
    }
    if wanted(Stage::Encode) {
        stage("encoding");
        results.encode = Some(workload.encode()?);
    }
    if wanted(Stage::Load) {
        stage("data loading");
        results.load = Some(workload.load()?);
    }
    measure_more(args, workload, &mut results)?;
    if with_ceilings && !elf_kernels::takes_gpu_path(device) {
        // Once more: the better of before and after, since other programs can only take away.
        add_ceilings(&mut results, device)?;
    }
    results.gpu_memory = gpu_memory::in_use(device);
    Ok(results)
}

/// The stages that are made when asked for.
fn measure_more(args: &BenchArgs, workload: &Workload, results: &mut Results) -> Result<()> {
    let wanted = |stage: Stage| args.only.contains(&stage);
    let stage = |name: &str| note!("measuring {name} ...");
    if wanted(Stage::Count) {
        stage("launches");
        results.counted = vec![workload.count_training()?, workload.count_sampling()?];
    }
    if wanted(Stage::Serve) {
        stage("the writing of texts");
        results.served = workload.serve()?;
    }
    if wanted(Stage::Http) {
        results.http = args.http.measure(args.device)?;
    }
    if wanted(Stage::Operations) {
        note!("comparing operations ...");
        results.checked.extend(checked::operations(workload));
    }
    if wanted(Stage::Parity) {
        note!("comparing with the reference numbers ...");
        results.checked.extend(checked::parity(workload.device)?);
    }
    if wanted(Stage::Speeds) {
        stage("operations");
        results.speeds = operations::speeds(workload)?;
    }
    Ok(())
}

fn add_ceilings(results: &mut Results, device: Device) -> Result<()> {
    results.matmul_bf16 = results.matmul_bf16.max(ceiling::matmul_flops(Kind::BFloat16, device)?);
    results.matmul_f32 = results.matmul_f32.max(ceiling::matmul_flops(Kind::Float, device)?);
    Ok(())
}
