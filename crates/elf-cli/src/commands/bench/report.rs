//! What `elf bench` found, as a table and as JSON.

use elf_core::Precision;
use elf_core::device::describe;
use elf_tests::comparisons::Comparison;
use serde_json::{Value, json};

use super::http;
use crate::bench::checked::Checked;
use crate::bench::count::Counted;
use crate::bench::http_load::Load;
use crate::bench::operations::Speed;
use crate::bench::serving::{Served, Writer, steps_as_long_as_gpt2};
use crate::bench::workload::{Measured, Training, Workload};

/// Operations that a table of launches or bytes names.
const MOST_NAMED: usize = 30;

/// What is known so far; a stage that was not asked for is missing, and ceilings that no stage needs are 0.
#[derive(Default)]
pub struct Results {
    pub matmul_bf16: f64,
    pub matmul_f32: f64,
    pub copy: f64,
    pub train: Option<(Training, Option<u64>)>,
    pub profile: Vec<(&'static str, f64)>,
    pub sample: Option<Measured>,
    pub decode: Option<Measured>,
    pub encode: Option<Measured>,
    pub load: Option<Measured>,
    /// Launches and bytes of steps.
    pub counted: Vec<Counted>,
    pub served: Vec<Served>,
    pub http: Vec<Load>,
    pub checked: Vec<Checked>,
    pub speeds: Vec<Speed>,
    /// What the GPU's processes hold at the end, which is the most that this one held.
    pub gpu_memory: Option<u64>,
}

impl Results {
    /// The ceiling of the precision that the blocks run in.
    pub fn peak(&self, precision: Precision) -> f64 {
        match precision {
            Precision::Bf16 => self.matmul_bf16,
            Precision::F32 => self.matmul_f32,
        }
    }

    pub fn stages(&self) -> Vec<(&'static str, Measured)> {
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

pub fn table(results: &Results, peak: f64) -> String {
    let mut lines = rates_table(results, peak);
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
    lines.extend(counts_table(&results.counted));
    if let Some(bytes) = results.gpu_memory {
        lines.push(format!("GPU memory in use at the end: {:.2} GB", bytes as f64 / 1e9));
    }
    lines.extend(checks_table(&results.checked));
    lines.extend(speeds_table(&results.speeds));
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

/// Launches and bytes of steps.
fn counts_table(counted: &[Counted]) -> Vec<String> {
    let mut lines = Vec::new();
    for step in counted {
        let (all, products) = step.all_bytes();
        lines.push(String::new());
        lines.push(format!("{} launches about {:.0} kernels on a GPU", step.what, step.all_launches()));
        lines.extend(step.launches.iter().take(MOST_NAMED).map(|(name, n)| format!("  {name:44} {n:7.1}")));
        let mega = 1e6;
        lines.push(format!(
            "and moves {:.3} MB for each position, {:.3} MB of them in matrix products",
            all / mega,
            products / mega
        ));
        lines.extend(step.bytes.iter().take(MOST_NAMED).map(|(name, n)| format!("  {name:44} {:7.3}", n / mega)));
    }
    lines
}

/// Ceilings, and what was made of them.
fn rates_table(results: &Results, peak: f64) -> Vec<String> {
    let tera = 1e12;
    let mut lines = Vec::new();
    if results.copy > 0.0 {
        lines.push(format!(
            "ceilings: matrix product bf16 {:.3} TFLOP/s, fp32 {:.3} TFLOP/s; copy {:.1} GB/s",
            results.matmul_bf16 / tera,
            results.matmul_f32 / tera,
            results.copy / 1e9
        ));
    }
    if !results.stages().is_empty() {
        lines.push(String::new());
        let (rate, work) = ("positions/s", "MFLOP/position");
        lines.push(format!(
            "{:14} {rate:>13} {work:>16} {:>10} {:>12} {:>12}",
            "", "TFLOP/s", "of ceiling", "median, ms"
        ));
    }
    for (name, m) in results.stages() {
        let median = 1e3 * m.median.as_secs_f64();
        lines.push(match m.flops {
            0 => format!("{name:14} {:13.0} {:>16} {:>10} {:>12} {median:12.2}", m.rate(), "-", "-", "-"),
            _ => format!(
                "{name:14} {:13.0} {:16.1} {:10.3} {:11.1}% {median:12.2}",
                m.rate(),
                m.flops_per_position() / 1e6,
                m.flops_per_second() / tera,
                100.0 * m.flops_per_second() / peak
            ),
        });
    }
    lines
}

/// A line for each check, and one for each comparison beyond its limit; nothing without checks.
fn checks_table(checked: &[Checked]) -> Vec<String> {
    let mut lines = Vec::new();
    if checked.is_empty() {
        return lines;
    }
    let one = |c: &Comparison| format!("{}: {:.1e} of {:.0e} allowed", c.what, c.difference, c.allowed);
    for check in checked {
        let state = if check.holds() { "ok" } else { "FAILED" };
        let worst = check.error.clone().or_else(|| check.worst.as_ref().map(one)).unwrap_or_default();
        lines.push(format!("{state:6} {:32} {:5} compared; {worst}", check.name, check.compared));
        lines.extend(check.beyond.iter().map(|c| format!("       {}", one(c))));
    }
    let holding = checked.iter().filter(|check| check.holds()).count();
    let compared: usize = checked.iter().map(|check| check.compared).sum();
    lines.push(format!("checks: {holding} of {} hold, {compared} tensors and numbers compared", checked.len()));
    lines
}

/// A line for each pass of each form of an operation.
fn speeds_table(speeds: &[Speed]) -> Vec<String> {
    let line = |s: &Speed| {
        let pass = if s.backward { "backward" } else { "forward" };
        let rate = s.bytes as f64 / s.seconds / 1e9;
        format!("{:28} {:6} {pass:8} {:11.1} us {rate:9.1} GB/s", s.operation, s.form, 1e6 * s.seconds)
    };
    speeds.iter().map(line).collect()
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

pub fn as_json(preset: &str, workload: &Workload, results: &Results, peak: f64) -> Value {
    let rate = |m: &Option<Measured>| m.map(|m| m.rate());
    let train = results.train.as_ref().map(|(t, _)| t);
    let measured = train.map(|t| t.measured);
    let median = |m: Option<Measured>| m.map(|m| m.median.as_secs_f64());
    let utilisation = |m: Option<Measured>| m.map(|m| m.flops_per_second() / peak);
    json!({
        "preset": preset,
        "batch": workload.batch,
        "seq": workload.seq,
        "sampling_steps": workload.sampling_steps,
        "parameters": workload.model.parameter_count(),
        "device": describe(workload.device),
        "threads": tch::get_num_threads(),
        "precision": workload.policy.blocks,
        "heads_precision": workload.policy.vocab_head,
        "muon_precision": workload.muon,
        "int8": workload.int8,
        "gradient_checkpointing": workload.recompute,
        "matmul_peak_flops": Some(peak).filter(|peak| *peak > 0.0),
        "matmul_bf16_flops": results.matmul_bf16,
        "matmul_f32_flops": results.matmul_f32,
        "copy_bytes_per_s": results.copy,
        "train_positions_per_s": measured.map(|m| m.rate()),
        "train_flops_per_position": measured.map(|m| m.flops_per_position()),
        "train_utilisation": utilisation(measured),
        "train_median_seconds": median(measured),
        "optimizer_share": train.map(|t| t.share(t.times.update)),
        "data_wait_share": train.map(|t| t.share(t.data_wait)),
        "peak_memory_bytes": results.train.as_ref().and_then(|(_, bytes)| *bytes),
        "sample_positions_per_s": rate(&results.sample),
        "sample_flops_per_position": results.sample.map(|m| m.flops_per_position()),
        "sample_utilisation": utilisation(results.sample),
        "sample_median_seconds": median(results.sample),
        "gpu_memory_bytes": results.gpu_memory,
        "counted": results.counted.iter().map(|c| json!({
            "what": c.what,
            "launches": c.all_launches(),
            "bytes_per_position": c.all_bytes().0,
            "product_bytes_per_position": c.all_bytes().1,
        })).collect::<Vec<_>>(),
        "checked": results.checked,
        "speeds": results.speeds,
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
