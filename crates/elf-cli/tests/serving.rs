//! `elf serve`: the texts that `elf sample` writes, for several clients at once, and every refusal with its reason.

mod server;
mod tiny_run;

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;
use tiny_run::{Materials, elf, json_lines, run, within};

#[track_caller]
fn refuses(server: &Server, body: &str, status: u16, words: &[&str]) {
    let (code, answer) = server.ask("/generate", Some(body));
    assert_eq!(code, status, "{answer}");
    let reason = answer["error"].as_str().unwrap();
    assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
}

/// What `elf sample` makes of the same, one object a text.
fn sampled(folder: &TempDir, model: &str, more: &[&str]) -> Vec<Value> {
    let output = within(folder, "texts.jsonl");
    run(elf(&[&["sample", model, "--steps", "2", "-o", &output], more].concat())).well();
    json_lines(&output)
}

#[test]
fn unconditional_texts_for_several_clients() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    materials.train(&model, &["max_steps=2"]).well();
    let mut server = Server::start(&model, &["--one-shape", "--max-texts", "9"]);

    let (status, about) = server.ask("/", None);
    assert_eq!((status, &about["input_positions"], &about["texts_per_request"]), (200, &Value::Null, &json!(9)));
    assert_eq!(server.ask("/health", None), (200, json!({"status": "ok", "requests_waiting": 0})));

    // More than a batch, while two others wait: all get what they would get alone.
    let server_ref = &server;
    std::thread::scope(|threads| {
        let asked = [(9, 0), (1, 5), (2, 7)].map(|(num, seed)| {
            (num, seed, threads.spawn(move || server_ref.generate(&json!({"num": num, "seed": seed}))))
        });
        for (num, seed, answer) in asked {
            let (status, answer) = answer.join().unwrap();
            assert_eq!(status, 200, "{answer}");
            let alone = sampled(&folder, &model, &["--num", &num.to_string(), "--seed", &seed.to_string()]);
            let texts = answer["texts"].as_array().unwrap();
            // The times of a run are those of the server's seed, so that others share only indices and seeds.
            let compared = |text: &Value| if seed == 0 { text.clone() } else { json!([text["index"], text["seed"]]) };
            assert_eq!(texts.iter().map(compared).collect::<Vec<_>>(), alone.iter().map(compared).collect::<Vec<_>>());
        }
    });

    // As some editors and shells write JSON.
    assert_eq!(server.ask("/generate", Some("\u{feff}{\"num\": 1}\r\n")).0, 200);
    refuses(&server, "\u{feff}", 400, &["JSON such as"]);
    refuses(&server, r#"{"num": -1}"#, 400, &["num is -1", "a whole number from 0 on"]);
    refuses(&server, r#"{"seed": "x"}"#, 400, &["seed is \"x\"", "a whole number"]);
    refuses(&server, "words", 400, &["JSON such as", r#""num""#]);
    refuses(&server, r#"{"nmu": 3}"#, 400, &["unknown field `nmu`", "`num`"]);
    refuses(&server, r#"{"num": 0}"#, 400, &["0 texts", "1 to 9"]);
    refuses(&server, r#"{"num": 10}"#, 400, &["10 texts", "1 to 9"]);
    refuses(&server, r#"{"inputs": ["a"]}"#, 400, &["takes no input"]);
    // It is refused before it is read, so that the client may not come to the end of sending it.
    match server.try_to_send("/generate", &[], Some(&" ".repeat(2 << 20))) {
        Ok(answer) => assert!(answer.status == 413 && answer.text.contains("limit"), "{}", answer.text),
        Err(error) => assert!(matches!(error, ureq::Error::Io(_)), "{error}"),
    }
    let (status, answer) = server.ask("/nowhere", None);
    assert!(status == 404 && answer["error"].as_str().unwrap().contains("POST /generate"), "{answer}");
    assert_eq!(server.ask("/generate", None).0, 404, "a wrong method is told what there is, too");

    // Asked to end, it ends well.
    server.signal("-TERM");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn texts_from_inputs() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    materials.train(&model, &["max_steps=2"]).well();
    let server = Server::start(&model, &["--one-shape", "--cfg", "1"]);
    let inputs = ["tree", "dog red the meets king old a"];
    let (status, answer) = server.generate(&json!({"inputs": inputs}));
    assert_eq!(status, 200, "{answer}");
    let alone = sampled(&folder, &model, &["--cfg", "1", "--text", inputs[0], "--text", inputs[1]]);
    assert_eq!(answer["texts"].as_array().unwrap(), &alone);
    assert!(alone.iter().all(|text| text.get("input_cut").is_none()), "{alone:?}");
    // More than its ten positions.
    let long = "dog red the meets king old a dog red the meets king old a";
    let (_, answer) = server.generate(&json!({"inputs": ["tree", long]}));
    let cut = answer["texts"].as_array().unwrap().iter().map(|text| text["input_cut"].as_bool());
    assert_eq!(cut.collect::<Vec<_>>(), [None, Some(true)]);
    refuses(&server, "{}", 400, &["`inputs`"]);
    refuses(&server, r#"{"num": 2}"#, 400, &["`inputs`"]);
    refuses(&server, r#"{"inputs": ["a", " "]}"#, 400, &["inputs[1] is empty"]);
    refuses(&server, r#"{"inputs": ["a"], "num": 1}"#, 400, &["one text for each"]);
}

/// Neither while the server runs nor when it is to end.
#[test]
fn half_requests_hold_nothing_up() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    materials.train(&model, &["max_steps=1"]).well();
    let half_a_body = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
    let server = Server::start(&model, &["--read-timeout", "1"]);
    let (mut head, mut body) = (server.connect(b"POST /gen"), server.connect(half_a_body));
    let mut answer = String::new();
    body.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("too slowly"), "{answer}");
    // Whatever is said to half a head, the connection ends.
    head.read_to_string(&mut String::new()).unwrap();
    assert_eq!(server.generate(&json!({})).0, 200);

    let mut server = Server::start(&model, &["--read-timeout", "3600"]);
    let clients = [server.connect(b"POST /gen"), server.connect(half_a_body)];
    assert_eq!(server.generate(&json!({})).0, 200);
    let asked = Instant::now();
    server.signal("-TERM");
    assert_eq!(server.wait(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(60), "{:?}", asked.elapsed());
    drop(clients);
}

#[test]
fn what_cannot_be_served() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (model, settings) = (within(&folder, "run"), within(&folder, "sampling.yml"));
    materials.train(&model, &["max_steps=1", "objective=mdlm"]).well();
    let serve = |more: &[&str]| run(elf(&[&["serve", &model, "--listen", "127.0.0.1:0"], more].concat()));
    serve(&["--cfg", "2", "--uniform-grid"]).badly(&["--cfg, --uniform-grid", "masked diffusion"]);
    serve(&["--temperature", "2"]).badly(&["--temperature", "masked diffusion"]);
    serve(&[&model]).badly(&["two models are named run"]);
    serve(&["--batch-size", "0"]).badly(&["--batch-size", "at least 1"]);
    serve(&["--max-waiting", "18446744073709551615"]).badly(&["--max-waiting", "at most 1000000"]);
    let other = within(&folder, "flow");
    materials.train(&other, &["max_steps=1"]).well();
    run(elf(&["serve", &other, "--listen", "nowhere"])).badly(&["cannot listen at nowhere", "--listen"]);
    std::fs::write(&settings, "- num_sampling_steps: [2, 4]\n").unwrap();
    run(elf(&["serve", &other, "--listen", "127.0.0.1:0", "--sampling-config", &settings]))
        .badly(&["sampling.yml has 2 settings", "one"]);
}
