//! `elf serve` under bad input and load: every request is answered or its connection closed, and the server goes on.

mod server;
mod tiny_run;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;
use tiny_run::{Materials, within};

fn model(folder: &TempDir) -> String {
    let model = within(folder, "run");
    Materials::unconditional().train(&model, &["max_steps=1"]).well();
    model
}

const PATHS: [&str; 5] = ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/trajectories", "/v1/infill"];

#[test]
fn bodies_that_are_no_requests() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(&model(&folder), &[]);
    let deep = "[".repeat(100_000);
    for body in ["", "{", "null", "[]", "1", "{\"n\": NaN}", "{\"temperature\": NaN}", "{\"n\": 1e999}", "\"a\"", &deep]
    {
        for path in PATHS {
            let answer = server.send(path, &[], Some(body));
            let told = &answer.json()["error"];
            assert_eq!(answer.status, 400, "{path} {body:.20}: {told}");
            let reason = if path == "/generate" { told.as_str() } else { told["message"].as_str() };
            assert!(reason.unwrap().contains("JSON"), "{path} {body:.20}: {told}");
        }
    }
    // Neither bytes that are no text nor a body of 10 MB.
    let head = |length: usize| {
        format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
    };
    let invalid = [head(14).as_bytes(), b"{\"prompt\": \"\xff\""].concat();
    assert!(server.raw(&invalid).starts_with("HTTP/1.1 400"));
    let large = server.raw(head(10 << 20).as_bytes());
    assert!(large.starts_with("HTTP/1.1 413") && large.contains("invalid_request_error"), "{large}");
    for head in ["GET / HTTP/3.7\r\n\r\n", "\0\0\0\0", "GET /\u{e4} HTTP/1.1\r\n\r\n", &"a".repeat(1 << 20)] {
        assert!(!server.raw(head.as_bytes()).starts_with("HTTP/1.1 2"), "{head:.20}");
    }
    assert!(server.raw(b"GET /health HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
    // Several requests at once on one connection are answered in turn.
    let one = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = "GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answers = server.raw([one, one, last].concat().as_bytes());
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
    assert!(answers.contains("ready"));
}

/// Any JSON for the fields of a request.
fn any_request() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-2i64..4).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("run")),
        Just(json!("user")),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("role|content|type|text|name|gamma|include_usage|[a-z]{1,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    const FIELDS: &str = "model|prompt|messages|n|num|inputs|seed|max_tokens|stop|stream|stream_options|logprobs|\
                          top_logprobs|temperature|top_p|best_of|steps|sampler|guidance|times|tools|logit_bias|echo|x";
    proptest::collection::hash_map(FIELDS, value, 0..5).prop_map(|map| Value::Object(map.into_iter().collect()))
}

#[test]
fn any_json_is_answered() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(&model(&folder), &["--max-texts", "2", "--max-steps", "4"]);
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    let requests = (any_request(), proptest::sample::select(&PATHS[..]));
    let outcome = runner.run(&requests, |(body, path)| {
        let answer = server.send(path, &[], Some(&body.to_string()));
        prop_assert!(matches!(answer.status, 200 | 400 | 404), "{path} {body}: {} {}", answer.status, answer.text);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn slow_and_many_clients_hold_nothing_up() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(&model(&folder), &["--read-timeout", "2", "--max-connections", "40"]);
    server.post("/v1/completions", &json!({}));
    let before = server.memory();
    // Clients that send a byte now and then, and others that send nothing: all more than there is room for.
    let mut clients: Vec<TcpStream> = (0..200).filter_map(|_| TcpStream::connect(&server.address).ok()).collect();
    assert!(clients.len() > 100, "{}", clients.len());
    let begun = Instant::now();
    for byte in "POST /v1/".bytes() {
        for client in clients.iter_mut().take(20) {
            let _ = client.write_all(&[byte]);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // They are turned out in their time, and others let in.
    assert_eq!(server.send("/health", &[], None).status, 200);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    drop(clients);
    // One that does not read its answer does not keep others from theirs.
    let body = r#"{"steps": 400, "n": 8}"#;
    let head = format!("POST /v1/trajectories HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let deaf = server.connect(head.as_bytes());
    assert_eq!(server.send("/v1/completions", &[], Some("{}")).status, 200);
    drop(deaf);
    if let (Some(before), Some(after)) = (before, server.memory()) {
        assert!(after < before + (64 << 20), "{before} bytes before, {after} after");
    }
}

#[test]
fn what_was_accepted_is_answered_at_the_end() {
    let folder = TempDir::new().unwrap();
    let mut server = Server::of(&[&model(&folder), "--batch-size", "2", "--max-waiting", "4"]);
    // More requests than the queue holds: each is answered with texts or with 503.
    let server_ref = &server;
    let statuses: Vec<u16> = std::thread::scope(|threads| {
        let ask = || server_ref.send("/v1/completions", &[], Some(r#"{"steps": 200, "n": 2}"#)).status;
        let asked: Vec<_> = (0..24).map(|_| threads.spawn(ask)).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    // Requests that wait when the termination signal arrives are answered.
    let body = r#"{"steps": 200, "n": 2}"#;
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let clients: Vec<TcpStream> = (0..4).map(|_| server.connect(head.as_bytes())).collect();
    std::thread::sleep(Duration::from_millis(300));
    server.signal("-TERM");
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("text_completion"), "{answer}");
    }
    assert_eq!(server.wait(), Some(0));
}

/// One of several kinds of requests, some of them bad, some given up in the middle.
fn one_of_many(server: &Server, number: usize) {
    let post = |path: &str, body: &str| {
        let answer = server.send(path, &[], Some(body));
        assert!(matches!(answer.status, 200 | 400 | 503), "{path} {body}: {} {}", answer.status, answer.text);
    };
    let head = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    match number % 9 {
        0 => post("/generate", r#"{"num": 3}"#),
        1 => post("/v1/completions", &format!(r#"{{"n": 2, "steps": {}}}"#, 1 + number % 4)),
        2 => post("/v1/completions", r#"{"n": 0, "prompt": {}}"#),
        3 => post("/v1/chat/completions", r#"{"messages": [{"role": "user", "content": ""}], "stream": true}"#),
        4 => post("/v1/trajectories", r#"{"steps": 3}"#),
        5 => drop(server.connect(head("/v1/trajectories", r#"{"steps": 64, "n": 4}"#).as_bytes())),
        6 => drop(server.connect(&head("/v1/completions", r#"{"steps": 64}"#).as_bytes()[..70])),
        7 => assert_eq!(server.send("/metrics", &[], None).status, 200),
        _ => drop(server.try_to_send("/v1/completions", &[], Some(&"x".repeat(2 << 20)))),
    }
}

/// `ELF_LOAD_SECONDS` makes it longer.
#[test]
fn mixed_load_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(&model(&folder), &["--max-waiting", "6", "--read-timeout", "2"]);
    (0..18).for_each(|number| one_of_many(&server, number));
    let before = server.memory();
    let seconds = std::env::var("ELF_LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let end = Instant::now() + Duration::from_secs(seconds);
    let sent: usize = std::thread::scope(|threads| {
        let client = |first: usize| {
            let server = &server;
            move || {
                let mut number = first;
                while Instant::now() < end {
                    one_of_many(server, number);
                    number += 7;
                }
                (number - first) / 7
            }
        };
        let clients: Vec<_> = (0..12).map(|first| threads.spawn(client(first))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(sent > 100, "{sent} requests");
    // Those that were given up leave the queue when the model comes to them.
    let begun = Instant::now();
    let idle = |text: &str| ["elf_waiting_requests 0", "elf_running_rows 0"].iter().all(|line| text.contains(line));
    while !idle(&server.send("/metrics", &[], None).text) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", server.send("/metrics", &[], None).text);
        std::thread::sleep(Duration::from_millis(50));
    }
    if let (Some(before), Some(after)) = (before, server.memory()) {
        eprintln!("{sent} requests; {before} bytes before, {after} after");
        assert!(after < before + (64 << 20), "{before} bytes before, {after} after {sent} requests");
    }
}
