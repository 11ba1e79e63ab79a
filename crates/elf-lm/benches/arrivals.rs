//! Clients that ask for one text after another, with pauses of random length: whole batches against texts that join at the next step.
//!
//! `cargo bench --bench arrivals -- [MODEL] [ROWS] [SECONDS] [CLIENTS,..]`: for each number of clients the latency of a text from its
//! arrival (p50, p95) and the texts per second, with at most ROWS texts at once. The same arrivals for both, one after the other.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use elf_core::{Seeded, key_of};
use elf_lm::{GenerateOptions, Model, Result, Sampling, TextEngine, TextId, TextRequest};
use tch::Device;

/// Mean pause between an answer and a client's next request, in seconds.
const PAUSE: f64 = 1.0;

/// Inputs for models that take one, of different lengths.
const INPUTS: [&str; 8] = [
    "Ein Programm zum Zeichnen",
    "Werkzeug zum Konvertieren von Dateien",
    "Bibliothek",
    "Entwicklungsdateien für eine Bibliothek zum Lesen und Schreiben von Bildern",
    "Python-Modul für den Zugriff auf Datenbanken",
    "Spiel, in dem man Steine anordnet",
    "grafische Oberfläche zum Verwalten von Paketen, Benutzern und Diensten eines Systems",
    "Dokumentation für Emacs",
];

/// A server as it was, or as it is.
trait Server {
    fn submit(&mut self, client: usize, request: TextRequest) -> Result<()>;
    /// Works for a while. Returns the clients whose texts are finished.
    fn advance(&mut self) -> Result<Vec<usize>>;
    fn is_idle(&self) -> bool;
}

struct Whole<'a> {
    model: &'a Model,
    sampling: Sampling,
    rows: usize,
    waiting: Vec<(usize, TextRequest)>,
}

impl Server for Whole<'_> {
    fn submit(&mut self, client: usize, request: TextRequest) -> Result<()> {
        self.waiting.push((client, request));
        Ok(())
    }

    fn advance(&mut self) -> Result<Vec<usize>> {
        let count = self.waiting.len().min(self.rows);
        let (clients, requests): (Vec<usize>, Vec<TextRequest>) = self.waiting.drain(..count).unzip();
        let options = options(self.rows);
        self.model.generate_watched(&requests, &self.sampling, &options, &mut |_| ControlFlow::Continue(()))?;
        Ok(clients)
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

struct Steps<'a> {
    model: &'a Model,
    sampling: Sampling,
    rows: usize,
    waiting: Vec<(usize, TextRequest)>,
    running: Vec<(TextId, usize)>,
    engine: TextEngine<'a>,
}

impl Server for Steps<'_> {
    fn submit(&mut self, client: usize, request: TextRequest) -> Result<()> {
        self.waiting.push((client, request));
        Ok(())
    }

    fn advance(&mut self) -> Result<Vec<usize>> {
        let room = self.rows - self.engine.rows();
        for (client, request) in self.waiting.drain(..room.min(self.waiting.len())) {
            let watch = Box::new(|_: elf_lm::TextEvent<'_>| ControlFlow::Continue(()));
            let id = self.engine.admit(self.model, &request, &self.sampling, &options(self.rows), watch)?;
            self.running.push((id, client));
        }
        let mut clients = Vec::new();
        for (id, made) in self.engine.step().finished {
            made?;
            if let Some(place) = self.running.iter().position(|(own, _)| *own == id) {
                clients.push(self.running.swap_remove(place).1);
            }
        }
        Ok(clients)
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }
}

fn options(rows: usize) -> GenerateOptions {
    GenerateOptions { batch_size: rows, one_shape: false, ..GenerateOptions::default() }
}

/// Seconds of a client's pause before its request of this number: exponentially distributed.
fn pause(client: usize, number: u64) -> f64 {
    let draw =
        elf_core::Noise::coins(&mut Seeded::new(vec![key_of(&[client as u64, number])], Device::Cpu), "pause", 1);
    -PAUSE * (1.0 - draw.expect("one coin")[0]).ln()
}

/// Latencies of all texts that were asked for within `seconds`, and texts per second.
fn measure(server: &mut dyn Server, conditional: bool, clients: usize, seconds: f64) -> Result<(Vec<f64>, f64)> {
    let begun = Instant::now();
    let now = || begun.elapsed().as_secs_f64();
    // When each client asks next, and whether it waits for an answer.
    let mut due: Vec<(f64, bool, u64)> = (0..clients).map(|client| (pause(client, 0), false, 0)).collect();
    let mut latencies = Vec::new();
    loop {
        for (client, (at, waits, number)) in due.iter_mut().enumerate() {
            if !*waits && *at <= now() && *at < seconds {
                *waits = true;
                let seed = key_of(&[client as u64, *number]);
                let input = INPUTS[(seed % INPUTS.len() as u64) as usize];
                let request = match conditional {
                    true => TextRequest::from_input(seed, input),
                    false => TextRequest { seed, ..TextRequest::default() },
                };
                server.submit(client, request)?;
            }
        }
        if server.is_idle() {
            let next = due.iter().map(|(at, ..)| *at).fold(f64::INFINITY, f64::min);
            if next >= seconds {
                return Ok((latencies.clone(), latencies.len() as f64 / now()));
            }
            std::thread::sleep(Duration::from_secs_f64((next - now()).max(0.0)));
            continue;
        }
        for client in server.advance()? {
            let (at, waits, number) = &mut due[client];
            latencies.push(now() - *at);
            *number += 1;
            (*at, *waits) = (now() + pause(client, *number), false);
        }
    }
}

fn quantile(latencies: &mut [f64], share: f64) -> f64 {
    latencies.sort_by(f64::total_cmp);
    latencies
        .get(((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let argument = |place: usize, otherwise: &str| given.get(place).cloned().unwrap_or_else(|| otherwise.to_owned());
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let model = Model::load(std::path::Path::new(root).join(argument(0, "models/mini-de-en")))?;
    let number = |place: usize, otherwise: &str| argument(place, otherwise).parse::<usize>().expect("a number");
    let (rows, seconds) = (number(1, "8"), number(2, "20") as f64);
    let clients = argument(3, "1,4,16,64");
    let sampling = model.sampling()?;
    println!("clients  server   texts    p50 s    p95 s  texts/s");
    for clients in clients.split(',').map(|clients| clients.parse::<usize>().expect("numbers of clients")) {
        for name in ["batches", "steps"] {
            let (model, sampling, waiting) = (&model, sampling.clone(), Vec::new());
            let mut server: Box<dyn Server> = match name {
                "batches" => Box::new(Whole { model, sampling, rows, waiting }),
                _ => {
                    let (running, engine) = (Vec::new(), TextEngine::new(rows, false));
                    Box::new(Steps { model, sampling, rows, waiting, running, engine })
                }
            };
            let (mut latencies, rate) = measure(&mut *server, model.takes_input(), clients, seconds)?;
            let (p50, p95) = (quantile(&mut latencies, 0.5), quantile(&mut latencies, 0.95));
            println!("{clients:7}  {name:7}  {:5}  {p50:7.2}  {p95:7.2}  {rate:7.2}", latencies.len());
        }
    }
    Ok(())
}
