//! `elf serve` under `/v1`: OpenAI's API, streams, and what a flow or a baseline cannot do.

mod server;
mod tiny_run;

use serde_json::{Value, json};
use server::Server;
use tempfile::TempDir;
use tiny_run::{FILLING, Materials, within};

/// Asserts that each request is refused in OpenAI's form: body, status, field, words of the message.
#[track_caller]
fn refuses(server: &Server, path: &str, cases: &[(Value, u16, Option<&str>, &str)]) {
    for (body, status, param, words) in cases {
        let (code, answer) = server.ask(path, Some(&body.to_string()));
        let error = &answer["error"];
        assert_eq!((code, error["param"].as_str()), (*status, *param), "{body}: {answer}");
        assert!(error["message"].as_str().unwrap().contains(words), "{body}: {answer}");
        assert_eq!(error["type"].as_str(), Some("invalid_request_error"), "{answer}");
    }
}

fn texts(answer: &Value) -> Vec<String> {
    answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn completions_and_chats_of_a_flow() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    materials.train(&model, &["max_steps=2"]).well();
    let server = Server::start(&model, &["--one-shape", "--max-texts", "6", "--max-steps", "8", "--max-input", "100"]);

    let (status, listed) = server.ask("/v1/models", None);
    assert_eq!((status, &listed["object"], &listed["data"][0]["id"]), (200, &json!("list"), &json!("run")));
    assert_eq!(server.ask("/v1/models/run", None), (200, listed["data"][0].clone()));
    let (status, answer) = server.ask("/v1/models/walk", None);
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));

    // The texts of /generate, which are those of `elf sample`.
    let (_, generated) = server.generate(&json!({"inputs": ["tree", "old dog"], "seed": 5}));
    let generated = generated["texts"].as_array().unwrap().clone();
    let body = json!({"model": "run", "prompt": ["tree", "old dog"], "seed": 5, "logprobs": 1, "user": "me", "a b": 1});
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.header("x-elf-ignored-fields"), "a?b, user");
    let answer = answer.json();
    let of_generated: Vec<&str> = generated.iter().map(|text| text["prediction"].as_str().unwrap()).collect();
    assert_eq!(texts(&answer), of_generated);
    assert_eq!((&answer["object"], &answer["seed"]), (&json!("text_completion"), &json!(5)));
    for (choice, text) in answer["choices"].as_array().unwrap().iter().zip(&generated) {
        assert_eq!((&choice["index"], &choice["confidence"]), (&text["index"], &text["confidence"]));
        let told = &choice["logprobs"];
        let pieces: Vec<&str> = told["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        assert!(text["prediction"].as_str().unwrap().starts_with(&pieces.concat()), "{told}");
        assert_eq!(pieces.len(), text["tokens"].as_array().unwrap().len());
        for (place, piece) in pieces.iter().enumerate() {
            let p = told["token_logprobs"][place].as_f64().unwrap();
            assert!(p <= 0.0 && told["top_logprobs"][place][*piece].as_f64() == Some(p), "{told}");
        }
    }
    let counted = generated.iter().map(|text| text["tokens"].as_array().unwrap().len()).sum::<usize>();
    assert_eq!(answer["usage"]["completion_tokens"], counted);
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() >= 3, "{answer}");

    // A chat's input is the last message of the user.
    let messages = json!([
        {"role": "system", "content": "Translate."}, {"role": "user", "content": "old dog"},
        {"role": "assistant", "content": "?"}, {"role": "user", "content": [{"type": "text", "text": "tree"}]},
    ]);
    let chat = server.post("/v1/chat/completions", &json!({"messages": messages, "seed": 5, "logprobs": true})).json();
    let choice = &chat["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": of_generated[0], "refusal": null}));
    assert_eq!(chat["object"], "chat.completion");
    assert!(choice["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap().is_empty(), "{chat}");

    what_ends_a_text(&server, of_generated[0]);
    what_changes_the_texts(&server);
    what_is_refused(&server);
    what_is_refused_of_chats(&server);
}

fn what_ends_a_text(server: &Server, whole: &str) {
    let ask = |more: Value| {
        let mut body = json!({"prompt": "tree", "seed": 5});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &body).json()
    };
    let cut = ask(json!({"max_tokens": 2}));
    assert_eq!(
        (&cut["usage"]["completion_tokens"], &cut["choices"][0]["finish_reason"]),
        (&json!(2), &json!("length"))
    );
    let text = texts(&cut).remove(0);
    assert!(whole.starts_with(&text) && text.len() < whole.len(), "{text:?} of {whole:?}");
    // Its second character that no earlier one equals.
    let stop = whole.chars().nth(1).unwrap().to_string();
    let stopped = ask(json!({"stop": ["no such text", stop]}));
    let text = texts(&stopped).remove(0);
    assert_eq!(
        (text.as_str(), &stopped["choices"][0]["finish_reason"]),
        (whole.split(&stop).next().unwrap(), &json!("stop"))
    );
}

fn what_changes_the_texts(server: &Server) {
    let ask = |more: Value| {
        let mut body = json!({"prompt": "tree", "n": 3, "seed": 7});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &body).json()
    };
    let usual = ask(json!({}));
    assert_eq!(texts(&usual).len(), 3);
    assert_eq!(usual["choices"], ask(json!({"seed": 7})).get("choices").cloned().unwrap());
    for (more, name) in [
        (json!({"steps": 4}), "-4-"),
        (json!({"sampler": {"name": "sde", "gamma": 1.25}}), "gamma1.25"),
        (json!({"sampler": "heun"}), "heun-2"),
        (json!({"guidance": 3}), "cfg3"),
        (json!({"temperature": 0.5, "top_p": 0.9}), "t0.5-p0.9"),
        (json!({"best_of": 2, "n": 2}), "best2"),
    ] {
        let answer = ask(more.clone());
        assert!(answer["system_fingerprint"].as_str().unwrap().contains(name), "{more}: {answer}");
    }
    // Without a seed each request has its own, which gives the same texts again.
    let [one, other] = [0, 1].map(|_| server.post("/v1/completions", &json!({"prompt": "tree"})).json());
    assert_ne!(one["seed"], other["seed"]);
    let again = server.post("/v1/completions", &json!({"prompt": "tree", "seed": one["seed"]})).json();
    assert_eq!(texts(&one), texts(&again));
    // Token ids are used as they are.
    let of_ids = server.post("/v1/completions", &json!({"prompt": [[5, 6], [7]], "seed": 1})).json();
    assert_eq!((texts(&of_ids).len(), &of_ids["usage"]["prompt_tokens"]), (2, &json!(3)));
}

fn what_is_refused(server: &Server) {
    let with = |name: &str, value: Value| json!({"prompt": "tree", name: value});
    let mut cases = vec![
        (json!({"model": "other", "prompt": "tree"}), 404, Some("model"), "but run"),
        (json!({}), 400, Some("prompt"), "empty"),
        (with("prompt", json!(" \n")), 400, Some("prompt"), "empty"),
        (with("prompt", json!(["tree", ""])), 400, Some("prompt"), "empty"),
        (with("prompt", json!([])), 400, Some("prompt"), "a list of texts"),
        (with("prompt", json!({"a": 1})), 400, Some("prompt"), "a list of texts"),
        (with("prompt", json!([1, 100_000])), 400, Some("prompt"), "100000"),
        (with("prompt", json!([-1])), 400, Some("prompt"), "-1"),
        (with("prompt", json!("a".repeat(101))), 400, Some("prompt"), "at most 100"),
        (with("n", json!(1_000_000_000)), 400, Some("n"), "from 1 to 6"),
        (with("n", json!(0)), 400, Some("n"), "from 1 to 6"),
        (with("n", json!(1.5)), 400, Some("n"), "1.5"),
        (json!({"prompt": ["a", "b", "c"], "n": 3}), 400, Some("n"), "9 texts"),
        (json!({"prompt": ["a", "b"], "best_of": 4}), 400, Some("prompt"), "4 candidates"),
        (with("seed", json!("x")), 400, Some("seed"), "64 bits"),
        (with("stream", json!("yes")), 400, Some("stream"), "true or false"),
        (with("stop", json!(["a", ""])), 400, Some("stop"), "empty"),
        (with("stop", json!(["a", "b", "c", "d", "e"])), 400, Some("stop"), "at most 4"),
        (with("max_tokens", json!(0)), 400, Some("max_tokens"), "from 1"),
        (with("steps", json!(9)), 400, Some("steps"), "from 1 to 8"),
        (with("sampler", json!("ladder")), 400, Some("sampler"), "ladder"),
        (with("sampler", json!(["euler", "heun"])), 400, Some("sampler"), "a name such as"),
        (with("sampler", json!({"name": "sde", "gama": 1})), 400, Some("sampler"), "gama"),
        (with("sampler", json!({"name": "sde", "gamma": [1, 2]})), 400, Some("sampler"), "not a list"),
        (with("temperature", json!(-1)), 400, Some("temperature"), "-1"),
        (with("top_p", json!(0.5)), 400, Some("top_p"), "temperature 0"),
        (with("logprobs", json!(2)), 400, Some("logprobs"), "chosen token"),
        (with("stream_options", json!({"include_usage": true})), 400, Some("stream_options"), "`stream`"),
    ];
    for (name, value) in [
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("required")),
        ("functions", json!([{}])),
        ("logit_bias", json!({"50256": -100})),
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(-1)),
        ("echo", json!(true)),
        ("suffix", json!("end")),
        ("response_format", json!({"type": "json_object"})),
    ] {
        cases.push((with(name, value), 400, Some(name), "is not supported"));
    }
    refuses(server, "/v1/completions", &cases);
    // What changes nothing is taken, as clients send it.
    let neutral = json!({
        "prompt": "tree", "n": null, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "echo": false,
        "suffix": null, "top_p": 1, "tools": [], "stop": null, "best_of": 1, "stream": false,
    });
    assert_eq!(server.post("/v1/completions", &neutral).header("x-elf-ignored-fields"), "");
}

fn what_is_refused_of_chats(server: &Server) {
    let message = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    refuses(
        server,
        "/v1/chat/completions",
        &[
            (json!({}), 400, Some("messages"), "is missing"),
            (json!({"messages": "tree"}), 400, Some("messages"), "a list such as"),
            (json!({"messages": [{"role": "system", "content": "a"}]}), 400, Some("messages"), "role `user`"),
            (message(json!([{"type": "image_url"}])), 400, Some("messages"), "neither a text"),
            (message(json!("")), 400, Some("messages"), "empty"),
        ],
    );
}

#[test]
fn baselines_are_served_with_what_they_have() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let train = |name: &str, options: &[&str]| {
        let model = within(&folder, name);
        materials.train(&model, options).well();
        model
    };
    let models = [
        train("flow", &["max_steps=2"]),
        train("gpt2", &["max_steps=2", "objective=gpt2"]),
        train("mdlm", &["max_steps=2", "objective=mdlm"]),
    ];
    let server = Server::of(&[&models[0], &models[1], &models[2]]);
    let (_, listed) = server.ask("/v1/models", None);
    let ids: Vec<&Value> = listed["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["flow", "gpt2", "mdlm"]);
    assert_eq!(server.ask("/ready", None).1["models"], json!(["flow", "gpt2", "mdlm"]));
    let ask = |model: &str, more: Value| {
        let mut body = json!({"model": model, "prompt": "tree", "seed": 3});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &body).json()
    };
    for (model, more, name) in [
        ("flow", json!({"steps": 3}), "-3-"),
        ("gpt2", json!({}), "beam-1"),
        ("gpt2", json!({"temperature": 0.7, "top_p": 0.9}), "sample-t0.7-p0.9"),
        ("gpt2", json!({"temperature": 0, "top_p": 0.9}), "sample-t0-p1"),
        ("mdlm", json!({"steps": 3, "temperature": 1, "top_p": 1}), "mdlm-3"),
    ] {
        let answer = ask(model, more);
        assert_eq!((&answer["model"], texts(&answer).len()), (&json!(model), 1));
        assert!(answer["system_fingerprint"].as_str().unwrap().contains(name), "{answer}");
    }
    // The likeliest tokens, drawn or searched for.
    assert_eq!(texts(&ask("gpt2", json!({"temperature": 0}))), texts(&ask("gpt2", json!({}))));
    let (_, generated) = server.generate(&json!({"inputs": ["tree"], "model": "mdlm", "seed": 3}));
    assert_eq!(generated["texts"][0]["prediction"], texts(&ask("mdlm", json!({})))[0].as_str());

    let of = |model: &str, name: &str, value: Value| json!({"model": model, "prompt": "tree", name: value});
    refuses(
        &server,
        "/v1/completions",
        &[
            (json!({"prompt": "tree"}), 400, Some("model"), "flow, gpt2, mdlm"),
            (of("gpt2", "steps", json!(4)), 400, Some("steps"), "autoregressive"),
            (of("gpt2", "guidance", json!(2)), 400, Some("guidance"), "autoregressive"),
            (of("gpt2", "sampler", json!("euler")), 400, Some("sampler"), "autoregressive"),
            (of("gpt2", "top_p", json!(2)), 400, Some("top_p"), "top_p"),
            (of("gpt2", "logprobs", json!(0)), 400, Some("logprobs"), "baseline"),
            (of("mdlm", "temperature", json!(0.5)), 400, Some("temperature"), "masked diffusion"),
            (of("mdlm", "top_p", json!(0.5)), 400, Some("top_p"), "masked diffusion"),
        ],
    );
    refuses(&server, "/v1/trajectories", &[(of("gpt2", "seed", json!(1)), 400, Some("model"), "for flows")]);
    // A stream of a model that writes all at once has one piece.
    let body = json!({"model": "gpt2", "prompt": "tree", "seed": 3, "stream": true});
    let events = server.post("/v1/completions", &body).events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(events[0]["choices"][0]["text"].as_str(), Some(texts(&ask("gpt2", json!({})))[0].as_str()));
}

/// The pieces of each choice of a stream, joined.
fn joined(events: &[Value], choices: usize, text: fn(&Value) -> &Value) -> Vec<String> {
    let mut all = vec![String::new(); choices];
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        all[choice["index"].as_u64().unwrap() as usize].push_str(text(choice).as_str().unwrap_or_default());
    }
    all
}

#[test]
fn blocks_are_streamed_as_they_are_written() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    materials.train(&model, &["block_size=3", "causal_latents=true", "max_steps=2"]).well();
    let server = Server::start(&model, &["--one-shape"]);
    let mut body = json!({"n": 2, "seed": 4});
    let whole = server.post("/v1/completions", &body).json();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let events = server.post("/v1/completions", &body).events();
    assert_eq!(joined(&events, 2, |choice| &choice["text"]), texts(&whole));
    assert!(events.len() > 2 * 2 + 1, "no more than one piece each: {events:?}");
    assert_eq!(events.last().unwrap()["usage"], whole["usage"]);
    let reasons = |events: &[Value]| {
        let reasons = events.iter().filter_map(|event| event["choices"].get(0)?["finish_reason"].as_str());
        reasons.map(str::to_owned).collect::<Vec<_>>()
    };
    let of_whole = whole["choices"].as_array().unwrap().iter().map(|c| c["finish_reason"].as_str().unwrap().to_owned());
    assert_eq!(reasons(&events), of_whole.collect::<Vec<_>>());

    let chat = json!({"messages": [{"role": "user", "content": ""}], "seed": 4, "stream": true});
    let events = server.post("/v1/chat/completions", &chat).events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(joined(&events, 1, |choice| &choice["delta"]["content"])[0], texts(&whole)[0]);
    assert_eq!(reasons(&events).len(), 1);

    // A text is cut in the same places, whether in pieces or not.
    let stop = texts(&whole)[0].chars().rev().nth(2).unwrap().to_string();
    for more in [json!({"stop": stop}), json!({"max_tokens": 4})] {
        let mut body = json!({"seed": 4});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = server.post("/v1/completions", &body).json();
        body["stream"] = json!(true);
        let events = server.post("/v1/completions", &body).events();
        assert_eq!(joined(&events, 1, |choice| &choice["text"]), texts(&whole), "{more}");
    }
}

#[test]
fn trajectories_show_every_step() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    materials.train(&model, &["max_steps=2"]).well();
    let server = Server::of(&[&model, "--one-shape", "--sampler", "euler", "--batch-size", "2"]);
    // Three texts are two batches.
    let body = json!({"prompt": ["tree", "old dog", "king"], "seed": 5, "steps": 4, "nonsense": 1});
    let answer = server.post("/v1/trajectories", &body);
    assert_eq!(answer.header("x-elf-ignored-fields"), "nonsense");
    let events = answer.events();
    let whole = server.post("/v1/completions", &body).json();
    for index in 0..3 {
        let own: Vec<&Value> = events.iter().filter(|event| event["index"] == index).collect();
        let (last, frames) = own.split_last().unwrap();
        assert_eq!(last["final"], true);
        assert_eq!(last["text"].as_str(), Some(texts(&whole)[index].as_str()));
        let steps: Vec<u64> = frames.iter().map(|frame| frame["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert!(frames.is_sorted_by(|a, b| a["t"].as_f64() < b["t"].as_f64()), "{frames:?}");
        assert_eq!(frames[3]["text"], last["text"]);
        for frame in frames {
            let tokens = frame["tokens"].as_array().unwrap();
            let pieces: Vec<&str> = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
            assert!(frame["text"].as_str().unwrap().starts_with(&pieces.concat()), "{frame}");
            let p = |token: &Value| token["probability"].as_f64().unwrap();
            assert!(tokens.iter().all(|token| (0.0..=1.0).contains(&p(token)) && token["id"].is_i64()), "{frame}");
        }
    }
    let timed = server.post("/v1/trajectories", &json!({"prompt": "tree", "steps": 8, "times": [0, 1]})).events();
    assert_eq!(timed.len(), 3, "two frames and the text: {timed:?}");
    let with = |name: &str, value: Value| json!({"prompt": "tree", name: value});
    refuses(
        &server,
        "/v1/trajectories",
        &[
            (with("times", json!([2])), 400, Some("times"), "from 0 to 1"),
            (with("times", json!("x")), 400, Some("times"), "from 0 to 1"),
            (with("stop", json!("a")), 400, None, "leave them out"),
        ],
    );
}

#[test]
fn gaps_are_filled() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    materials.train(&model, &FILLING).well();
    let server = Server::of(&[&model, "--one-shape", "--max-texts", "6", "--steps", "3"]);
    let body = json!({"text": ["A red [2] finds the dog", "[...] the old dog"], "n": 2, "seed": 4, "user": "me"});
    let answer = server.post("/v1/infill", &body);
    assert_eq!(answer.header("x-elf-ignored-fields"), "user");
    let answer = answer.json();
    assert_eq!((&answer["object"], &answer["model"], &answer["seed"]), (&json!("infill"), &json!("run"), &json!(4)));
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 4);
    for (index, text) in data.iter().enumerate() {
        let words = text["text"].as_str().unwrap();
        assert!(if index < 2 { words.starts_with("A red") } else { words.ends_with("the old dog") }, "{text}");
        assert_eq!((text["index"].as_u64(), text["filled"].as_array().unwrap().len()), (Some(index as u64), 1));
        assert!(text["confidence"].as_f64().unwrap() < 0.0);
    }
    assert_eq!(server.post("/v1/infill", &body).json(), answer);
    // The same texts as they form.
    let body = json!({"text": "A red [2] finds the dog", "n": 2, "seed": 4, "times": [0.5]});
    let frames = server.post("/v1/trajectories", &body).events();
    let last: Vec<&Value> = frames.iter().filter(|frame| frame["final"] == json!(true)).collect();
    assert!(frames.len() >= 4 && last.len() == 2, "{frames:?}");
    assert!(frames.iter().all(|frame| frame["text"].as_str().unwrap().starts_with("A red")), "{frames:?}");
    assert!(last.iter().zip(data).all(|(frame, text)| frame["text"] == text["text"]), "{last:?}");
    refuses(&server, "/v1/trajectories", &[(json!({"text": "A dog"}), 400, Some("text"), "no gap")]);
    assert_eq!(server.ask("/v1/models", None).1["data"][0]["fills_gaps"], json!(true));
    let with = |text: &str| json!({ "text": text });
    refuses(
        &server,
        "/v1/infill",
        &[
            (json!({}), 400, Some("text"), "is missing"),
            (json!({"text": 3}), 400, Some("text"), "a list of at most"),
            (with("A dog"), 400, Some("text"), "no gap"),
            (with("[...]"), 400, Some("text"), "no word is given"),
            (with("A [x] dog"), 400, Some("text"), "[x]"),
            (with("A [90] dog"), 400, Some("text"), "at most 12"),
            (json!({"text": "A [1] dog", "stream": true}), 400, None, "neither cut nor streamed"),
            (json!({"text": "A [1] dog", "n": 7}), 400, Some("n"), "1 to 6"),
        ],
    );
    let plain = Server::start(&materials.path("run"), &[]);
    refuses(&plain, "/v1/infill", &[(with("A [2] dog"), 400, Some("text"), "cannot fill gaps")]);
    refuses(&plain, "/v1/completions", &[(json!({"prompt": "", "suffix": "a"}), 400, Some("suffix"), "/v1/infill")]);
}
