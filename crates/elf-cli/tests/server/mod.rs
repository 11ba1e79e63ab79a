//! A running `elf serve`, and ways to ask it.

#![allow(dead_code, reason = "each test binary takes what it needs")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::tiny_run::elf;

/// A server on a free port, ended with the test.
pub struct Server {
    process: Child,
    /// Where it listens, as `HOST:PORT`.
    pub address: String,
    log: Arc<Mutex<Vec<String>>>,
}

/// What a server answers.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// A header, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The data of the server-sent events; the last must be `[DONE]`, and is left out.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), "text/event-stream", "{}", self.text);
        let mut data: Vec<&str> = self.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.text);
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

impl Server {
    /// A server that takes two steps per text. Waits until it says where it listens.
    pub fn start(model: &str, more: &[&str]) -> Self {
        Self::of(&[&[model, "--steps", "2"], more].concat())
    }

    /// A server with these arguments.
    pub fn of(args: &[&str]) -> Self {
        let listen: &[&str] = if args.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let mut command = elf(&[&["serve"], listen, args].concat());
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut before = Vec::new();
        let address = lines.by_ref().find_map(|line| {
            before.push(line.clone());
            let (_, address) = line.split_once(" at http")?;
            Some(address.trim_start_matches('s').trim_start_matches("://").to_owned())
        });
        let address = address.unwrap_or_else(|| panic!("it does not say where it listens: {before:?}"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&log);
        // What else it says is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(|line| kept.lock().unwrap().push(line)));
        Self { process, address, log }
    }

    /// What it has said since it listens.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has said a line with these words.
    #[track_caller]
    pub fn says(&self, words: &str) -> String {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            if let Some(line) = self.log().into_iter().find(|line| line.contains(words)) {
                return line;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not say {words:?}: {:?}", self.log());
    }

    /// Sends a request with headers: a POST with a body, a GET without one.
    pub fn try_to_send(&self, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Result<Answer, ureq::Error> {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let url = format!("http://{}{path}", self.address);
        let mut answer = match body {
            Some(body) => {
                headers.iter().fold(agent.post(&url), |r, (name, value)| r.header(*name, *value)).send(body)?
            }
            None => headers.iter().fold(agent.get(&url), |r, (name, value)| r.header(*name, *value)).call()?,
        };
        let text_of = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), text_of(value))).collect();
        Ok(Answer { status: answer.status().as_u16(), headers, text: answer.body_mut().read_to_string()? })
    }

    /// As [`Server::try_to_send`].
    #[track_caller]
    pub fn send(&self, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
        self.try_to_send(path, headers, body).unwrap()
    }

    /// Status and body of an answer.
    #[track_caller]
    pub fn ask(&self, path: &str, body: Option<&str>) -> (u16, Value) {
        let answer = self.send(path, &[], body);
        (answer.status, answer.json())
    }

    /// The answer to a POST of JSON, which succeeds.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let answer = self.send(path, &[], Some(&body.to_string()));
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer
    }

    pub fn generate(&self, body: &Value) -> (u16, Value) {
        self.ask("/generate", Some(&body.to_string()))
    }

    /// A connection on which `text` is sent, and which waits a minute for an answer.
    pub fn connect(&self, text: &[u8]) -> TcpStream {
        let mut client = TcpStream::connect(&self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.write_all(text).unwrap();
        client
    }

    /// All that is answered to `text` until the connection ends.
    pub fn raw(&self, text: &[u8]) -> String {
        let mut answer = Vec::new();
        // A connection that is reset has been answered as well as one that is closed.
        let _ = self.connect(text).read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }

    /// Bytes that it holds in memory; none where the system does not say.
    pub fn memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
