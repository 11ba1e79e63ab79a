//! `elf bench`.

mod http;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use elf_core::device::{DeviceChoice, describe};
use elf_core::{Precision, PrecisionPolicy};
use elf_encoder::T5Config;
use elf_model::{ElfConfig, Preset};
use serde_json::{Value, json};
use tch::{Device, Kind};

use self::http::HttpArgs;
use super::{MOST_ROWS, at_least_one, at_most, output_file};
use crate::bench::ceiling;
use crate::bench::http_load::Load;
use crate::bench::serving::{Served, Writer, steps_as_long_as_gpt2};
use crate::bench::workload::{Measured, Training, Workload};
use crate::printing::{note, out};
use crate::standard_streams::is_output;
use elf_kernels::observe::Operations;
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
    /// Use gradient checkpointing, as with `gradient_checkpointing: true`. The recomputation of a block does not count
    /// towards the operations that the step needs.
    #[arg(long)]
    recompute: bool,
    /// Run only these stages. Default: all but `serve` and `http`.
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
    /// Kernels that a training step and sampling launch on a GPU, counted on a CPU that takes its way; independent of widths.
    Count,
    /// Latency and throughput of generated texts: by ELF with several step counts and by a GPT-2 of the same width and
    /// depth with a KV cache, one at a time and a batch at a time.
    Serve,
    /// What clients of `elf serve` get: latency, time to the first words, requests and positions per second, memory.
    Http,
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

/// Operations that a table of launches names.
const MOST_LAUNCHED: usize = 30;

/// What is known so far; a stage that was not asked for is missing.
#[derive(Default)]
struct Results {
    matmul_bf16: f64,
    matmul_f32: f64,
    copy: f64,
    train: Option<(Training, Option<u64>)>,
    profile: Vec<(&'static str, f64)>,
    sample: Option<Measured>,
    decode: Option<Measured>,
    encode: Option<Measured>,
    load: Option<Measured>,
    /// What was counted, and by how much it is to be divided.
    launches: Vec<(&'static str, Operations, u64)>,
    served: Vec<Served>,
    http: Vec<Load>,
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
        muon: unless(args.muon_f32),
        recompute: args.recompute,
        batch: args.batch,
        seq: args.seq,
        steps: args.steps,
        sampling_steps: args.sampling_steps,
        device,
    };
    check_memory(&workload)?;
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
        write_json(path, &as_json(&args, &workload, &results, peak))?;
        note!("written to {}", path.display());
    }
    if !args.json.as_deref().is_some_and(is_output) {
        out!("{}", table(&results, peak))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses sizes of which a training step does not fit into memory.
fn check_memory(workload: &Workload) -> Result<()> {
    let (rows, positions) = (workload.batch as u64, workload.seq as u64);
    let activations = workload.model.activation_bytes(rows, positions, workload.policy, true);
    let needed = activations.saturating_add(20 * workload.model.parameter_count());
    let available = system_memory::available(workload.device, 1);
    Ok(system_memory::check("a training step", needed, available, |_| {
        format!("lower --batch (now {rows}) or --seq (now {positions})")
    })?)
}

fn measure(args: &BenchArgs, workload: &Workload) -> Result<Results> {
    let device = workload.device;
    let wanted = |stage: Stage| match args.only.as_slice() {
        [] => !matches!(stage, Stage::Count | Stage::Serve | Stage::Http),
        only => only.contains(&stage),
    };
    let stage = |name: &str| note!("measuring {name} ...");
    stage("the machine's ceilings");
    let mut results = Results {
        matmul_bf16: ceiling::matmul_flops(Kind::BFloat16, device)?,
        matmul_f32: ceiling::matmul_flops(Kind::Float, device)?,
        copy: ceiling::copy_bytes(device)?,
        ..Results::default()
    };
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
    if wanted(Stage::Count) {
        stage("launches");
        results.launches = vec![("a training step", workload.train_operations()?, 1)];
        let passes = workload.sampling_steps as u64 + 1;
        results.launches.push(("a sampling step", workload.sample_operations()?, passes));
    }
    if wanted(Stage::Serve) {
        stage("the writing of texts");
        results.served = workload.serve()?;
    }
    if wanted(Stage::Http) {
        results.http = args.http.measure(args.device)?;
    }
    // The ceiling once more: the better of before and after, since other programs can only take away.
    results.matmul_bf16 = results.matmul_bf16.max(ceiling::matmul_flops(Kind::BFloat16, device)?);
    results.matmul_f32 = results.matmul_f32.max(ceiling::matmul_flops(Kind::Float, device)?);
    Ok(results)
}

impl Results {
    /// The ceiling of the precision that the blocks run in.
    fn peak(&self, precision: Precision) -> f64 {
        match precision {
            Precision::Bf16 => self.matmul_bf16,
            Precision::F32 => self.matmul_f32,
        }
    }

    fn stages(&self) -> Vec<(&'static str, Measured)> {
        let train = self.train.as_ref().map(|(t, _)| t.measured);
        let all = [
            ("training", train),
            ("sampling", self.sample),
            ("decoding", self.decode),
            ("encoding", self.encode),
            ("data loading", self.load),
        ];
        all.into_iter().filter_map(|(name, m)| Some((name, m?))).collect()
    }
}

impl Training {
    fn share(&self, part: std::time::Duration) -> f64 {
        part.as_secs_f64() / self.measured.elapsed.as_secs_f64()
    }
}

fn table(results: &Results, peak: f64) -> String {
    let tera = 1e12;
    let mut lines = vec![format!(
        "ceilings: matrix product bf16 {:.3} TFLOP/s, fp32 {:.3} TFLOP/s; copy {:.1} GB/s",
        results.matmul_bf16 / tera,
        results.matmul_f32 / tera,
        results.copy / 1e9
    )];
    if !results.stages().is_empty() {
        lines.push(String::new());
        let (rate, work) = ("positions/s", "MFLOP/position");
        lines.push(format!("{:14} {rate:>13} {work:>16} {:>10} {:>12}", "", "TFLOP/s", "of ceiling"));
    }
    for (name, m) in results.stages() {
        lines.push(match m.flops {
            0 => format!("{name:14} {:13.0} {:>16} {:>10} {:>12}", m.rate(), "-", "-", "-"),
            _ => format!(
                "{name:14} {:13.0} {:16.1} {:10.3} {:11.1}%",
                m.rate(),
                m.flops_per_position() / 1e6,
                m.flops_per_second() / tera,
                100.0 * m.flops_per_second() / peak
            ),
        });
    }
    if let Some((train, peak_memory)) = &results.train {
        lines.push(String::new());
        let memory = peak_memory.map_or("not known".to_owned(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9));
        lines.push(format!(
            "of a training step: optimiser and averages {:.1}%, encoding {:.1}%, waiting for tokens {:.2}%; peak memory {memory}",
            100.0 * train.share(train.times.update),
            100.0 * train.share(train.times.batches.saturating_sub(train.data_wait)),
            100.0 * train.share(train.data_wait),
        ));
    }
    for (what, operations, times) in &results.launches {
        lines.push(String::new());
        lines.push(format!("{what} launches about {} kernels on a GPU", operations.launches() / times));
        for (name, launches) in operations.launches_by_operation().into_iter().take(MOST_LAUNCHED) {
            lines.push(format!("  {name:44} {:7.1}", launches as f64 / *times as f64));
        }
    }
    lines.extend(serving_table(&results.served));
    lines.extend(http::table(&results.http, results.copy));
    if !results.profile.is_empty() {
        let whole: f64 = results.profile.iter().map(|(_, seconds)| seconds).sum();
        lines.push(String::new());
        lines.push(format!("a training step of {:.0} ms, by part", 1e3 * whole));
        for (part, seconds) in &results.profile {
            lines.push(format!("  {part:28} {:9.1} ms {:6.1}%", 1e3 * seconds, 100.0 * seconds / whole));
        }
    }
    lines.join("\n")
}

/// What texts cost, for each number of texts at a time; nothing if it was not measured.
fn serving_table(served: &[Served]) -> Vec<String> {
    let mut lines = Vec::new();
    for rows in numbers_of_texts(served) {
        let title = if rows == 1 { "one text at a time".to_owned() } else { format!("{rows} texts at a time") };
        lines.push(String::new());
        lines.push(format!("{title:24} {:>9} {:>12}", "seconds", "texts/s"));
        for one in served.iter().filter(|s| s.rows == rows) {
            lines.push(format!("  {:22} {:9.2} {:12.3}", label(one.writer), one.seconds(), one.texts_per_second()));
        }
        if let Some(steps) = steps_as_long_as_gpt2(served, rows) {
            lines.push(if steps < 0.0 {
                "  GPT-2 is there before ELF's last pass alone would be".to_owned()
            } else {
                format!("  as long as GPT-2 take {steps:.1} steps of ELF")
            });
        }
    }
    lines
}

/// In the order in which they were measured.
fn numbers_of_texts(served: &[Served]) -> Vec<usize> {
    let mut rows: Vec<usize> = served.iter().map(|s| s.rows).collect();
    rows.dedup();
    rows
}

fn label(writer: Writer) -> String {
    match writer {
        Writer::Elf { steps: 1 } => "ELF, 1 step".to_owned(),
        Writer::Elf { steps } => format!("ELF, {steps} steps"),
        Writer::Gpt2 => "GPT-2".to_owned(),
    }
}

fn as_json(args: &BenchArgs, workload: &Workload, results: &Results, peak: f64) -> Value {
    let rate = |m: &Option<Measured>| m.map(|m| m.rate());
    let train = results.train.as_ref().map(|(t, _)| t);
    let measured = train.map(|t| t.measured);
    let utilisation = |m: Option<Measured>| m.map(|m| m.flops_per_second() / peak);
    json!({
        "preset": args.preset.name(),
        "batch": args.batch,
        "seq": args.seq,
        "sampling_steps": args.sampling_steps,
        "parameters": workload.model.parameter_count(),
        "device": describe(workload.device),
        "threads": tch::get_num_threads(),
        "precision": workload.policy.blocks,
        "heads_precision": workload.policy.vocab_head,
        "muon_precision": workload.muon,
        "gradient_checkpointing": workload.recompute,
        "matmul_peak_flops": peak,
        "matmul_bf16_flops": results.matmul_bf16,
        "matmul_f32_flops": results.matmul_f32,
        "copy_bytes_per_s": results.copy,
        "train_positions_per_s": measured.map(|m| m.rate()),
        "train_flops_per_position": measured.map(|m| m.flops_per_position()),
        "train_utilisation": utilisation(measured),
        "optimizer_share": train.map(|t| t.share(t.times.update)),
        "data_wait_share": train.map(|t| t.share(t.data_wait)),
        "peak_memory_bytes": results.train.as_ref().and_then(|(_, bytes)| *bytes),
        "sample_positions_per_s": rate(&results.sample),
        "sample_flops_per_position": results.sample.map(|m| m.flops_per_position()),
        "sample_utilisation": utilisation(results.sample),
        "decode_positions_per_s": rate(&results.decode),
        "encode_positions_per_s": rate(&results.encode),
        "load_positions_per_s": rate(&results.load),
        "serving": results.served.iter().map(|s| json!({
            "writer": label(s.writer),
            "texts_at_a_time": s.rows,
            "seconds": s.seconds(),
            "texts_per_s": s.texts_per_second(),
        })).collect::<Vec<_>>(),
        "elf_steps_as_long_as_gpt2": numbers_of_texts(&results.served).into_iter().map(|rows| json!({
            "texts_at_a_time": rows,
            "steps": steps_as_long_as_gpt2(&results.served, rows),
        })).collect::<Vec<_>>(),
        "http": results.http,
        "profile_seconds": results.profile.iter().map(|(part, s)| json!({"part": part, "seconds": s})).collect::<Vec<_>>(),
    })
}
