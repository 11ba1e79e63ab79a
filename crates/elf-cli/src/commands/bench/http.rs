//! `elf bench --only http`: its options, and its table.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use elf_core::Precision;
use elf_core::device::DeviceChoice;

use super::super::at_most;
use crate::bench::http_load::{Load, Plan, measure};
use crate::printing::note;
use crate::progress;

/// Most clients at a time.
const MOST_CLIENTS: usize = 1000;

/// Clients, seconds of requests and seconds of a pause where none are named.
const CLIENTS: [usize; 4] = [1, 4, 16, 64];
const SECONDS: f64 = 10.0;
const PAUSE: f64 = 1.0;

/// Longest time, in seconds.
const LONGEST: f64 = 3600.0;

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of --only http")]
pub struct HttpArgs {
    /// A model to serve, as `elf serve` takes it; may be repeated. Each has a server of its own.
    #[arg(long, value_name = "MODEL")]
    model: Vec<PathBuf>,
    /// Input texts for conditional models, one per line.
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Numbers of clients, measured one after the other [default: 1,4,16,64].
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    clients: Vec<usize>,
    /// Seconds during which clients begin requests, for each setting and number of clients [default: 10].
    #[arg(long)]
    seconds: Option<f64>,
    /// Mean seconds between an answer and the client's next request, exponentially distributed [default: 1].
    #[arg(long)]
    pause: Option<f64>,
    /// Temperature that requests to GPT-2 name. Default: as it samples without one, the likeliest token where there is
    /// an input.
    #[arg(long)]
    temperature: Option<f64>,
}

impl HttpArgs {
    /// Measures all models.
    ///
    /// # Errors
    /// If an option is invalid, or a server or an answer fails.
    pub fn measure(&self, device: DeviceChoice) -> Result<Vec<Load>> {
        let plan = Plan { stop: progress::stop_on_interrupt()?, ..self.plan(device)? };
        let mut loads = Vec::new();
        for model in &self.model {
            loads.extend(measure(model, &plan, &|what| note!("measuring {what} ..."))?);
        }
        Ok(loads)
    }

    /// Refuses options of this stage where it is not among those that are measured.
    ///
    /// # Errors
    /// Names the option.
    pub fn refuse(&self) -> Result<()> {
        let given = [
            ("--model", !self.model.is_empty()),
            ("--inputs", self.inputs.is_some()),
            ("--clients", !self.clients.is_empty()),
            ("--seconds", self.seconds.is_some()),
            ("--pause", self.pause.is_some()),
            ("--temperature", self.temperature.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                bail!("{flag} is an option of --only http, which is not asked for: add that, or leave {flag} out")
            }
            None => Ok(()),
        }
    }

    /// Refuses options that cannot be measured with.
    ///
    /// # Errors
    /// Names the option.
    pub fn plan(&self, device: DeviceChoice) -> Result<Plan> {
        ensure!(!self.model.is_empty(), "--only http measures models: name one with --model, or several");
        let clients = if self.clients.is_empty() { CLIENTS.to_vec() } else { self.clients.clone() };
        for &clients in &clients {
            at_most(&[("--clients", clients, MOST_CLIENTS)])?;
            ensure!(clients > 0, "--clients is 0; it must be at least 1");
        }
        let (seconds, pause) = (self.seconds.unwrap_or(SECONDS), self.pause.unwrap_or(PAUSE));
        for (flag, seconds) in [("--seconds", seconds), ("--pause", pause)] {
            if !(0.0..=LONGEST).contains(&seconds) {
                bail!("{flag} is {seconds}; it must be from 0 to {LONGEST}");
            }
        }
        let inputs = match &self.inputs {
            None => Vec::new(),
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
            }
        };
        Ok(Plan {
            inputs,
            clients,
            time: Duration::from_secs_f64(seconds),
            pause: Duration::from_secs_f64(pause),
            device: device.to_string(),
            weight_bytes: match Precision::native(device.resolve()?) {
                Precision::Bf16 => 2,
                Precision::F32 => 4,
            },
            temperature: self.temperature,
            stop: Arc::default(),
        })
    }
}

/// The lines of the table; none if nothing was measured.
pub fn table(loads: &[Load], copy: f64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut model = "";
    for load in loads {
        if load.model != model {
            model = &load.model;
            lines.push(String::new());
            lines.push(format!("{model}: {}, {:.1} million parameters", load.kind, load.parameters as f64 / 1e6));
            lines.push(format!(
                "{:22} {:>7} {:>9} {:>23} {:>16} {:>10} {:>11} {:>11} {:>7}",
                "",
                "clients",
                "requests",
                "seconds p50 / 95 / 99",
                "first p50 / 95",
                "requests/s",
                "positions/s",
                "tokens/text",
                "GB"
            ));
        }
        lines.push(line(load));
        if let Some(rate) = load.weight_bytes_per_s {
            let (share, rate, copy) = (100.0 * rate / copy, rate / 1e9, copy / 1e9);
            lines.push(format!(
                "    reads its weights at {rate:.1} GB/s, {share:.0}% of what a copy moves ({copy:.1} GB/s)"
            ));
        }
    }
    lines
}

fn line(load: &Load) -> String {
    let setting = match (load.steps, load.every_step) {
        (None, _) => "token by token".to_owned(),
        (Some(steps), false) => format!("{steps} steps"),
        (Some(steps), true) => format!("{steps} steps, all shown"),
    };
    let ([half, most, last], [first, late, _]) = (load.seconds, load.first_frame_seconds);
    let refused = if load.refused > 0 { format!(", {} refused", load.refused) } else { String::new() };
    format!(
        "  {setting:20} {:7} {:9} {:>23} {:>16} {:10.2} {:11.0} {:11.1} {:7.2}{refused}",
        load.clients,
        load.answered,
        format!("{half:.3} / {most:.3} / {last:.3}"),
        format!("{first:.3} / {late:.3}"),
        load.requests_per_s,
        load.positions_per_s,
        load.tokens_per_text,
        load.memory_bytes / 1e9,
    )
}
