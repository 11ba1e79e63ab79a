//! `elf serve` as an operator sees it: figures, logs, keys, encryption, limits.

mod server;
mod tiny_run;

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;
use tiny_run::{Materials, elf, run, within};

fn model(folder: &TempDir) -> String {
    let model = within(folder, "run");
    Materials::unconditional().train(&model, &["max_steps=1"]).well();
    model
}

#[test]
fn figures_and_a_line_for_each_request() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(&model(&folder), &["--log-format", "json"]);
    assert_eq!(server.ask("/ready", None), (200, json!({"status": "ready", "models": ["run"]})));
    let answer = server.send("/v1/completions", &[("x-request-id", "mine-1")], Some(r#"{"n": 2}"#));
    assert_eq!((answer.status, answer.header("x-request-id")), (200, "mine-1"));
    let other = server.send("/v1/nowhere?key=secret", &[], Some("{}"));
    assert_eq!((other.status, other.header("x-request-id").len()), (404, 36));
    assert!(other.json()["error"]["message"].as_str().unwrap().contains("POST /v1/completions"));
    assert_eq!(server.post("/v1/completions", &json!({"stream": true})).events().len(), 2);

    let line: Value = serde_json::from_str(&server.says("mine-1")).unwrap();
    assert_eq!(line["event"], "request");
    let told = (&line["path"], &line["status"], &line["model"], &line["texts"]);
    assert_eq!(told, (&json!("/v1/completions"), &json!(200), &json!("run"), &json!(2)));
    assert!(line["seconds"].as_f64().unwrap() > 0.0 && line["time"].as_str().unwrap().ends_with('Z'));
    server.says("/v1/nowhere");
    assert!(!server.log().concat().contains("secret"), "{:?}", server.log());

    let answer = server.send("/metrics", &[], None);
    assert!(answer.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"));
    for line in [
        r#"elf_requests_total{path="/v1/completions",status="200"} 2"#,
        r#"elf_requests_total{path="other",status="404"} 1"#,
        r#"elf_request_seconds_count{path="/v1/completions"} 2"#,
        "elf_batch_rows_count 6",
        "elf_batch_rows_sum 9.0",
        "elf_texts_total 3",
        "elf_steps_total 6",
        "elf_positions_total 36",
        "elf_waiting_requests 0",
        "elf_running_rows 0",
        "# EOF",
    ] {
        assert!(answer.text.lines().any(|other| other == line), "{line}\n{}", answer.text);
    }
    let memory = answer.text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    assert!(memory.unwrap().parse::<f64>().unwrap() > 1e6);

    // Browsers get a page, programs JSON.
    let page = server.send("/", &[("accept", "text/html,*/*;q=0.8")], None);
    assert!(page.header("content-type").starts_with("text/html") && page.text.contains("</html>"), "{}", page.text);
    assert!(page.header("content-security-policy").starts_with("default-src 'none'; script-src 'nonce-"));
    assert_eq!(server.ask("/", None).1["models"][0]["model"], "run");
}

#[test]
fn keys_are_asked_for_and_never_told() {
    let folder = TempDir::new().unwrap();
    let keys = within(&folder, "keys");
    std::fs::write(&keys, "# two\nkey-of-ann\nkey-of-bob\n").unwrap();
    let model = model(&folder);
    let origin = "https://example.org";
    let server = Server::start(&model, &["--api-key-file", &keys, "--allow-origin", origin]);
    let asked = |key: &str| server.send("/v1/models", &[("authorization", &format!("Bearer {key}"))], None);
    assert_eq!((asked("key-of-ann").status, asked("key-of-bob").status), (200, 200));
    let refused = asked("key-of-eve");
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, "Bearer"));
    assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    for path in ["/", "/metrics", "/nowhere", "/v1/models"] {
        assert_eq!(server.send(path, &[], None).status, 401, "{path}");
    }
    assert_eq!(server.send("/generate", &[], Some("{}")).status, 401);
    for path in ["/health", "/ready"] {
        assert_eq!(server.send(path, &[], None).status, 200, "{path}");
    }
    // The page asks for the key by itself.
    assert_eq!(server.send("/", &[("accept", "text/html")], None).status, 200);
    // Pages of the origin may ask, and their browser may first ask whether they may.
    let preflight = format!(
        "OPTIONS /v1/models HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: GET\r\n\
         Access-Control-Request-Headers: authorization\r\nConnection: close\r\n\r\n"
    );
    let answer = server.raw(preflight.as_bytes()).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 200") && answer.contains(&format!("allow-origin: {origin}")), "{answer}");
    let other = server.raw(preflight.replace(origin, "https://elsewhere.org").as_bytes()).to_ascii_lowercase();
    assert!(!other.contains("allow-origin"), "{other}");

    std::fs::write(&keys, "key-of-eve\n").unwrap();
    server.signal("-HUP");
    server.says("were read again");
    assert_eq!((asked("key-of-ann").status, asked("key-of-eve").status), (401, 200));
    std::fs::write(&keys, "").unwrap();
    server.signal("-HUP");
    server.says("warning: ");
    assert_eq!(asked("key-of-eve").status, 200, "the keys stay as they were");
    assert!(!server.log().concat().contains("key-of"), "{:?}", server.log());
}

#[test]
fn what_is_not_let_out_by_mistake() {
    let folder = TempDir::new().unwrap();
    let model = model(&folder);
    let serve = |more: &[&str]| run(elf(&[&["serve", &model, "--listen", "0.0.0.0:0"], more].concat()));
    serve(&[]).badly(&["0.0.0.0", "--api-key-file", "--no-auth"]);
    let keys = within(&folder, "keys");
    serve(&["--api-key-file", &keys]).badly(&["cannot read the keys", "keys"]);
    std::fs::write(&keys, "# none yet\n").unwrap();
    serve(&["--api-key-file", &keys]).badly(&["has no key"]);
    serve(&["--api-key-file", &keys, "--no-auth"]).badly(&["--no-auth"]);
    serve(&["--no-auth", "--allow-origin", "example.org"]).badly(&["example.org", "no origin"]);
    serve(&["--no-auth", "--tls-cert", &keys, "--tls-key", &keys]).badly(&["keys", "certificate"]);
    serve(&["--no-auth", "--tls-key", &keys]).badly(&["--tls-key", "--tls-cert"]);
    let server = Server::of(&[&model, "--listen", "0.0.0.0:0", "--no-auth", "--steps", "1"]);
    assert!(server.address.starts_with("0.0.0.0:"));
}

/// Asked with `curl`, if it is installed: our own client has no certificate of the test's.
#[test]
fn connections_are_encrypted_with_a_certificate() {
    let folder = TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (within(&folder, "cert.pem"), within(&folder, "key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let model = model(&folder);
    let server = Server::start(&model, &["--tls-cert", &certificate, "--tls-key", &key]);
    // A client without TLS gets no answer, and the server goes on.
    assert!(!server.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").contains("HTTP/1.1 200"));
    let port = server.address.rsplit(':').next().unwrap();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--cacert", &certificate, "--resolve", &format!("localhost:{port}:127.0.0.1")]);
    curl.args(["-d", r#"{"n": 1, "seed": 2}"#, &format!("https://localhost:{port}/v1/completions")]);
    match curl.output() {
        Ok(output) => {
            let answer: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
            assert_eq!(answer["object"], "text_completion");
        }
        Err(error) => eprintln!("skipped: curl is not installed ({error})"),
    }
}

#[test]
fn a_text_that_takes_too_long_is_refused() {
    let folder = TempDir::new().unwrap();
    let server = Server::of(&[&model(&folder), "--timeout", "1", "--max-steps", "100000"]);
    let body = json!({"steps": 100_000, "n": 8});
    let answer = server.send("/v1/completions", &[], Some(&body.to_string()));
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (504, &json!("timeout")));
    // Its batch was given up, so that others do not wait for it.
    assert_eq!(server.send("/v1/completions", &[], Some(r#"{"steps": 1}"#)).status, 200);
    let mut stream = body;
    stream["stream"] = json!(true);
    let events = server.post("/v1/completions", &stream).events();
    assert_eq!(events.last().unwrap()["error"]["code"], "timeout");
}

#[test]
fn a_client_that_goes_away_frees_the_model() {
    let folder = TempDir::new().unwrap();
    let server = Server::of(&[&model(&folder), "--max-steps", "100000"]);
    let body = r#"{"steps": 100000, "n": 8}"#;
    for path in ["/v1/completions", "/v1/trajectories"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut client = server.connect(head.as_bytes());
        if path == "/v1/trajectories" {
            client.read_exact(&mut [0; 64]).unwrap();
        } else {
            std::thread::sleep(Duration::from_millis(300));
        }
        drop(client);
        assert_eq!(server.send("/v1/completions", &[], Some(r#"{"steps": 1}"#)).status, 200);
        server.says(&format!("POST {path}"));
    }
}

/// With `curl`, if it is installed, as a reader of the documentation does it.
#[test]
fn curl_completes_and_streams() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: curl is not installed");
        return;
    }
    let folder = TempDir::new().unwrap();
    let server = Server::start(&model(&folder), &[]);
    let curl = |args: &[&str], path: &str| {
        let mut curl = Command::new("curl");
        let output = curl.args(["-sS", "--noproxy", "*"]).args(args).arg(format!("http://{}{path}", server.address));
        let output = output.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let answer: Value = serde_json::from_str(&curl(&["-d", r#"{"seed": 1}"#], "/v1/completions")).unwrap();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 1);
    let stream = curl(&["-N", "-d", r#"{"seed": 1, "stream": true}"#], "/v1/completions");
    assert!(stream.starts_with("data: {") && stream.ends_with("data: [DONE]\n\n"), "{stream}");
    assert!(curl(&[], "/metrics").contains("elf_requests_total"));
    assert!(curl(&["--http1.0"], "/health").contains("ok"));
}
