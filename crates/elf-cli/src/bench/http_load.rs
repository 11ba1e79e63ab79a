//! What texts cost over HTTP: `elf serve` in a process of its own, asked by clients that arrive at random.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The prefix of a line with the data of a server-sent event.
const DATA: &str = "data: ";

/// How clients ask.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Inputs for conditional models; clients take them in turn.
    pub inputs: Vec<String>,
    /// Numbers of clients, measured one after the other.
    pub clients: Vec<usize>,
    /// For how long requests are begun; those that have begun are waited for.
    pub time: Duration,
    /// Mean of the exponentially distributed time between an answer and the client's next request.
    pub pause: Duration,
    /// The device, as `elf serve --device` takes it.
    pub device: String,
    /// Bytes of a weight.
    pub weight_bytes: u64,
    /// The temperature that requests to models without steps name.
    pub temperature: Option<f64>,
    /// Set when the program is to end.
    pub stop: Arc<AtomicBool>,
}

/// What a number of clients got from a model with one setting.
#[derive(Debug, Clone, Serialize)]
pub struct Load {
    /// The model.
    pub model: String,
    /// Its kind.
    pub kind: String,
    /// Its number of parameters.
    pub parameters: u64,
    /// Steps of a flow or of masked diffusion.
    pub steps: Option<usize>,
    /// Whether every step was shown (`/v1/trajectories`), or the text in the pieces in which it is written
    /// (`/v1/completions`).
    pub every_step: bool,
    /// Clients.
    pub clients: usize,
    /// Answered requests, of one text each.
    pub answered: usize,
    /// Requests that were refused because too many waited.
    pub refused: usize,
    /// Seconds from a request to the end of its text: median, 95th and 99th percentile.
    pub seconds: [f64; 3],
    /// Seconds from a request to the first words or the first frame, likewise.
    pub first_frame_seconds: [f64; 3],
    /// Answers a second, from the first request to the last answer.
    pub requests_per_s: f64,
    /// Positions of texts a second, padding included, likewise.
    pub positions_per_s: f64,
    /// Mean tokens of a text.
    pub tokens_per_text: f64,
    /// Memory of the server afterwards.
    pub memory_bytes: f64,
    /// Of a model that writes token by token, and a single client: the bytes of its weights that it reads a second, as
    /// each token needs all of them.
    pub weight_bytes_per_s: Option<f64>,
}

/// An answered request.
struct Answered {
    first_frame: Duration,
    end: Duration,
    tokens: usize,
}

/// One model with all settings and numbers of clients.
///
/// # Errors
/// If the server cannot be started, or an answer is none.
pub fn measure(model: &Path, plan: &Plan, note: &dyn Fn(&str)) -> Result<Vec<Load>> {
    let server = Server::start(model, plan)?;
    let connection = Connection::new(&server.address);
    let about: Value = serde_json::from_str(&connection.get("/v1/models")?)?;
    let about = &about["data"][0];
    let inputs = if about["input_positions"].is_null() { vec![String::new()] } else { plan.inputs.clone() };
    ensure!(!inputs.is_empty(), "{} writes from inputs: give some, with --inputs FILE", model.display());
    let mut loads = Vec::new();
    for (steps, every_step) in settings(about) {
        let temperature = plan.temperature.filter(|_| steps.is_none());
        let how = How { connection: connection.clone(), inputs: inputs.clone(), steps, every_step, temperature };
        // The first answer pays for what is set up once.
        how.ask(0)?;
        for &clients in &plan.clients {
            let words = steps.map_or(String::new(), |steps| format!(", {steps} steps"));
            note(&format!("{}{words}, {clients} client(s)", model.display()));
            loads.push(load(&how, about, clients, plan)?);
        }
    }
    Ok(loads)
}

/// The settings to measure: a quarter, half and all of the model's own steps, and all of them shown.
fn settings(about: &Value) -> Vec<(Option<usize>, bool)> {
    let Some(own) = about["settings"]["steps"].as_u64().and_then(|steps| usize::try_from(steps).ok()) else {
        return vec![(None, false)];
    };
    let mut steps: Vec<usize> = [own / 4, own / 2, own].into_iter().filter(|&steps| steps > 0).collect();
    steps.dedup();
    let shown = about["trajectories"] == json!(true);
    steps.into_iter().map(|steps| (Some(steps), false)).chain(shown.then_some((Some(own), true))).collect()
}

fn load(how: &How, about: &Value, clients: usize, plan: &Plan) -> Result<Load> {
    let before = how.connection.figures()?;
    let begun = Instant::now();
    let ended: Vec<Result<_>> = std::thread::scope(|scope| {
        let run = |number| scope.spawn(move || client(how, number, begun + plan.time, plan));
        let running: Vec<_> = (0..clients as u64).map(run).collect();
        let panicked = |_| Err(anyhow!("a client has panicked"));
        running.into_iter().map(|client| client.join().unwrap_or_else(panicked)).collect()
    });
    let elapsed = begun.elapsed().as_secs_f64();
    let (mut answers, mut refused) = (Vec::new(), 0);
    for client in ended {
        let (got, not) = client?;
        answers.extend(got);
        refused += not;
    }
    ensure!(!plan.stop.load(Ordering::SeqCst), "interrupted");
    let after = how.connection.figures()?;
    ensure!(!answers.is_empty(), "no text was finished: give more --seconds");
    let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
    let text = |name: &str| about[name].as_str().unwrap_or_default().to_owned();
    let tokens_per_text = tokens as f64 / answers.len() as f64;
    let seconds = percentiles(answers.iter().map(|answer| answer.end));
    let parameters = about["parameters"].as_u64().unwrap_or_default();
    // The end of a text is written, too.
    let read = (tokens_per_text + 1.0) * (parameters * plan.weight_bytes) as f64 / seconds[0];
    Ok(Load {
        model: text("id"),
        kind: text("kind"),
        parameters,
        steps: how.steps,
        every_step: how.every_step,
        clients,
        answered: answers.len(),
        refused,
        seconds,
        first_frame_seconds: percentiles(answers.iter().map(|answer| answer.first_frame)),
        requests_per_s: answers.len() as f64 / elapsed,
        positions_per_s: (after.positions - before.positions) / elapsed,
        tokens_per_text,
        memory_bytes: after.memory,
        weight_bytes_per_s: (how.steps.is_none() && clients == 1).then_some(read),
    })
}

/// Asks, pauses, and asks again, until the time is over: the answers, and the number of refusals.
fn client(how: &How, number: u64, until: Instant, plan: &Plan) -> Result<(Vec<Answered>, usize)> {
    let mut random = ChaCha8Rng::seed_from_u64(number);
    let (mut answers, mut refused) = (Vec::new(), 0);
    loop {
        let uniform: f64 = random.random();
        std::thread::sleep(plan.pause.mul_f64(-(1.0 - uniform).ln()));
        if Instant::now() >= until || plan.stop.load(Ordering::SeqCst) {
            return Ok((answers, refused));
        }
        match how.ask(random.random())? {
            Some(answer) => answers.push(answer),
            None => refused += 1,
        }
    }
}

/// The median, the 95th and the 99th percentile: each the least value that so many are not above.
fn percentiles(times: impl Iterator<Item = Duration>) -> [f64; 3] {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    [0.5, 0.95, 0.99].map(|share| {
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.max(1) - 1).map_or(f64::NAN, Duration::as_secs_f64)
    })
}

/// How a text is asked for.
struct How {
    connection: Connection,
    inputs: Vec<String>,
    steps: Option<usize>,
    every_step: bool,
    temperature: Option<f64>,
}

impl How {
    /// Asks for a text; none if too many requests wait.
    fn ask(&self, seed: u32) -> Result<Option<Answered>> {
        let mut body = Map::new();
        body.insert("prompt".into(), json!(self.inputs[seed as usize % self.inputs.len()]));
        body.insert("seed".into(), json!(seed));
        if let Some(steps) = self.steps {
            body.insert("steps".into(), json!(steps));
        }
        if let Some(temperature) = self.temperature {
            body.insert("temperature".into(), json!(temperature));
        }
        let path = if self.every_step { "/v1/trajectories" } else { "/v1/completions" };
        if !self.every_step {
            body.insert("stream".into(), json!(true));
            body.insert("stream_options".into(), json!({ "include_usage": true }));
        }
        let begun = Instant::now();
        let answer = self.connection.agent.post(self.connection.url(path)).send(Value::Object(body).to_string())?;
        let status = answer.status();
        let mut reader = answer.into_body().into_reader();
        let (mut text, mut part, mut first_frame) = (Vec::new(), [0; 8192], None);
        while let n @ 1.. = reader.read(&mut part)? {
            text.extend_from_slice(&part[..n]);
            // Comments keep a connection alive meanwhile.
            if first_frame.is_none() && text.windows(DATA.len()).any(|window| window == DATA.as_bytes()) {
                first_frame = Some(begun.elapsed());
            }
        }
        let end = begun.elapsed();
        let text = String::from_utf8(text)?;
        if status == 503 {
            return Ok(None);
        }
        ensure!(status == 200, "the server refuses a request to {path}: {text}");
        let tokens = tokens(&text).with_context(|| format!("an answer of {path} without tokens: {text}"))?;
        Ok(Some(Answered { first_frame: first_frame.unwrap_or(end), end, tokens }))
    }
}

/// The number of tokens that the events of a stream tell.
fn tokens(stream: &str) -> Option<usize> {
    let events = stream.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix(DATA)?).ok());
    events.into_iter().find_map(|event| match event["final"].as_bool() {
        Some(true) => event["tokens"].as_array().map(Vec::len),
        _ => usize::try_from(event["usage"]["completion_tokens"].as_u64()?).ok(),
    })
}

/// Connections to a server.
#[derive(Clone)]
struct Connection {
    agent: ureq::Agent,
    address: String,
}

/// What a server tells of itself.
struct Figures {
    positions: f64,
    memory: f64,
}

impl Connection {
    fn new(address: &str) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        let agent = config.max_idle_connections_per_host(1000).max_idle_connections(1000).build().into();
        Self { agent, address: address.to_owned() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn get(&self, path: &str) -> Result<String> {
        Ok(self.agent.get(self.url(path)).call()?.body_mut().read_to_string()?)
    }

    fn figures(&self) -> Result<Figures> {
        let text = self.get("/metrics")?;
        let figure = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.with_context(|| format!("the server does not tell {name}"))?.parse()?)
        };
        Ok(Figures { positions: figure("elf_positions_total")?, memory: figure("process_resident_memory_bytes")? })
    }
}

/// A server in a process of its own, which ends with this value.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(model: &Path, plan: &Plan) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg(model);
        command.args(["--listen", "127.0.0.1:0", "--log-format", "off", "--device", &plan.device]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut server = Self { process, address: String::new() };
        let errors = server.process.stderr.take().context("the server has no standard error")?;
        let mut lines = BufReader::new(errors).lines().map_while(Result::ok);
        let mut told = Vec::new();
        for line in lines.by_ref() {
            if let Some((_, address)) = line.split_once(" at http://") {
                address.clone_into(&mut server.address);
                // What else it says is read, so that it never waits for a reader.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(server);
            }
            told.push(line);
        }
        bail!("`elf serve {}` does not start: {}", model.display(), told.join("; "))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_times() {
        let times = |n: u64| percentiles((1..=n).rev().map(Duration::from_secs));
        assert_eq!(times(100), [50.0, 95.0, 99.0]);
        assert_eq!(times(1), [1.0; 3]);
        assert_eq!(times(4), [2.0, 4.0, 4.0]);
    }

    #[test]
    fn tokens_are_told_by_both_streams() {
        let usage = "data: {\"choices\":[{\"text\":\"a b\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"completion_tokens\":7}}\n\ndata: [DONE]\n";
        assert_eq!(tokens(usage), Some(7));
        let frames = "data: {\"tokens\":[1]}\n\ndata: {\"final\":true,\"tokens\":[1,2]}\n\ndata: [DONE]\n";
        assert_eq!(tokens(frames), Some(2));
        assert_eq!(tokens("data: {\"error\":{}}\n\ndata: [DONE]\n"), None);
    }

    #[test]
    fn settings_of_flows_and_baselines() {
        let own = |steps: u64| settings(&json!({ "settings": { "steps": steps }, "trajectories": true }));
        assert_eq!(own(8), [(Some(2), false), (Some(4), false), (Some(8), false), (Some(8), true)]);
        assert_eq!(own(1), [(Some(1), false), (Some(1), true)]);
        assert_eq!(settings(&json!({ "settings": {}, "trajectories": false })), [(None, false)]);
    }
}
