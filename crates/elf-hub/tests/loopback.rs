//! Fetching from a hub on the loopback address that fails in all the ways a real one does.

mod served;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use elf_hub::{Error, Event, Fetcher, Reference, Settings, What};
use served::{A, B, Fault, Hub, bytes};

const N: usize = 300_000;

fn model(hub: &Hub) -> Vec<u8> {
    let weights = bytes(N, 1);
    hub.commit(
        "models/org/judge",
        A,
        &[
            ("README.md", b"read me"),
            ("config.json", b"{}"),
            ("tokenizer.json", b"{\"model\":1}"),
            ("model.safetensors", &weights),
            ("pytorch_model.bin", &bytes(5000, 2)),
            ("tf_model.h5", &bytes(5000, 3)),
        ],
    );
    weights
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path).unwrap()
}

#[test]
fn only_needed_files_come_and_only_once() {
    let hub = Hub::serve();
    let weights = model(&hub);
    let folder = hub.fetcher().fetch(&reference("org/judge"), What::Gpt2).unwrap();
    assert_eq!(hub.files_seen(), ["config.json", "tokenizer.json", "model.safetensors"]);
    assert_eq!((read(folder.join("model.safetensors")), read(folder.join("config.json"))), (weights, b"{}".to_vec()));

    assert_eq!(hub.fetcher().fetch(&reference("org/judge"), What::Gpt2).unwrap(), folder);
    assert_eq!(hub.seen().len(), 1, "a branch is looked up, and nothing else is asked");
    let pinned = reference(&format!("org/judge@{A}"));
    assert_eq!(hub.fetcher().fetch(&pinned, What::Gpt2).unwrap(), folder);
    assert_eq!(hub.fetcher().fetch(&pinned, What::Tokenizer).unwrap(), folder.join("tokenizer.json"));
    assert!(hub.seen().is_empty(), "a commit cannot move");
}

#[test]
fn the_cache_has_the_layout_of_other_programs() {
    let hub = Hub::serve();
    model(&hub);
    hub.fetcher().fetch(&reference("org/judge"), What::Gpt2).unwrap();
    let found = hf_hub::Cache::new(hub.cache()).model("org/judge".to_owned()).get("config.json").unwrap();
    assert_eq!(read(found), b"{}");
    // What others left there is found, too: no listing, only references, snapshots and blobs.
    fs::remove_dir_all(hub.cache().join("models--org--judge/listings")).unwrap();
    let offline = Fetcher::new(Settings { offline: true, ..hub.settings() }).unwrap();
    assert!(offline.fetch(&reference("org/judge"), What::Gpt2).unwrap().join("model.safetensors").is_file());
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let hub = Hub::serve();
    let weights = model(&hub);
    // More cuts than attempts: each brings something, so each gives all attempts back.
    for _ in 0..5 {
        hub.fault("model.safetensors", Fault::CutAfter(50_000));
    }
    let file = hub.fetcher().fetch(&reference("org/judge:model.safetensors"), What::File).unwrap();
    assert_eq!(read(file), weights);
    let ranges: Vec<_> = hub.seen().into_iter().filter(|s| s.path.contains("/resolve/")).map(|s| s.range).collect();
    let expected: Vec<_> = (0..6).map(|i| (i > 0).then(|| format!("bytes={}-", 50_000 * i))).collect();
    assert_eq!(ranges, expected);
}

#[test]
fn a_transfer_given_up_leaves_nothing_final_and_the_next_goes_on() {
    let hub = Hub::serve();
    let weights = model(&hub);
    hub.fault("model.safetensors", Fault::CutAfter(70_000));
    hub.fault("model.safetensors", Fault::CutAfter(0));
    hub.fault("model.safetensors", Fault::CutAfter(0));
    let error = hub.fetcher().fetch(&reference("org/judge:model.safetensors"), What::File).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert_eq!(hub.final_files(), [""; 0]);
    hub.seen();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&seen);
    let fetcher = hub.fetcher().with_listener(move |event| {
        if let Event::Progress { at, size, .. } = event {
            listener.lock().unwrap().push((*at, *size));
        }
    });
    assert_eq!(read(fetcher.fetch(&reference("org/judge:model.safetensors"), What::File).unwrap()), weights);
    assert_eq!(hub.seen()[1].range.as_deref(), Some("bytes=70000-"));
    let seen = seen.lock().unwrap();
    assert_eq!((seen[0], *seen.last().unwrap()), ((70_000, Some(N as u64)), (N as u64, Some(N as u64))));
}

#[test]
fn a_server_that_cannot_resume_starts_anew() {
    let hub = Hub::serve();
    let weights = model(&hub);
    hub.fault("model.safetensors", Fault::CutAfter(70_000));
    hub.fault("model.safetensors", Fault::IgnoreRange);
    assert_eq!(read(hub.fetcher().fetch(&reference("org/judge:model.safetensors"), What::File).unwrap()), weights);
}

#[test]
fn wrong_lengths_are_named_and_leave_nothing() {
    for (fault, times, got) in
        [(Fault::Length(-10), 1, N - 10), (Fault::Length(10), 1, N + 10), (Fault::EndAfter(0), 3, 0)]
    {
        let hub = Hub::serve();
        let weights = model(&hub);
        for _ in 0..times {
            hub.fault("model.safetensors", fault.clone());
        }
        let error = hub.fetcher().fetch(&reference("org/judge:model.safetensors"), What::File).unwrap_err();
        assert!(
            matches!(error, Error::WrongLength { expected, got: g, .. } if expected == N as u64 && g == got as u64),
            "{fault:?}: {error}"
        );
        assert_eq!(hub.final_files(), [""; 0]);
        assert_eq!(read(hub.fetcher().fetch(&reference("org/judge:model.safetensors"), What::File).unwrap()), weights);
    }
    // An early end without a length is gone on from like a cut.
    let hub = Hub::serve();
    let weights = model(&hub);
    hub.fault("model.safetensors", Fault::EndAfter(1000));
    assert_eq!(read(hub.fetcher().fetch(&reference("org/judge:model.safetensors"), What::File).unwrap()), weights);
}

#[test]
fn damaged_contents_are_refused_and_do_not_poison_the_next_attempt() {
    for file in ["model.safetensors", "config.json"] {
        let hub = Hub::serve();
        model(&hub);
        hub.fault(file, Fault::Garbage);
        let name = reference(&format!("org/judge:{file}"));
        let error = hub.fetcher().fetch(&name, What::File).unwrap_err();
        assert!(matches!(error, Error::WrongContent { .. }), "{error}");
        assert_eq!(hub.final_files(), [""; 0]);
        hub.fetcher().fetch(&name, What::File).unwrap();
    }
    // A damaged beginning that an earlier program left: thrown away, and all is fetched again.
    let hub = Hub::serve();
    let weights = model(&hub);
    hub.fault("model.safetensors", Fault::CutAfter(70_000));
    hub.fault("model.safetensors", Fault::Status(404, None));
    let name = reference("org/judge:model.safetensors");
    hub.fetcher().fetch(&name, What::File).unwrap_err();
    let blobs = hub.cache().join("models--org--judge/blobs");
    let partial = fs::read_dir(&blobs).unwrap().next().unwrap().unwrap().path();
    fs::write(&partial, vec![0; 70_000]).unwrap();
    assert_eq!(read(hub.fetcher().fetch(&name, What::File).unwrap()), weights);
}

#[test]
fn a_server_that_asks_for_patience_gets_it_within_reason() {
    let hub = Hub::serve();
    model(&hub);
    hub.fault("/api/", Fault::Status(429, Some(1)));
    hub.fault("config.json", Fault::Status(503, None));
    let waits = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&waits);
    let fetcher = hub.fetcher().with_listener(move |event| {
        if let Event::Waiting { why, wait } = event {
            assert!(why.contains("HTTP 429") || why.contains("HTTP 503"), "{why}");
            listener.lock().unwrap().push(*wait);
        }
    });
    let started = Instant::now();
    fetcher.fetch(&reference("org/judge:config.json"), What::File).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(*waits.lock().unwrap(), [Duration::from_secs(1), Duration::from_millis(5)]);

    hub.fault("/api/", Fault::Status(429, Some(3600)));
    let error = hub.fetcher().fetch(&reference("org/judge:tokenizer.json"), What::File).unwrap_err();
    assert!(matches!(&error, Error::RateLimited { .. }) && error.to_string().contains("3600 s"), "{error}");
}

#[test]
fn refusals_say_what_helps() {
    let hub = Hub::serve();
    model(&hub);
    let message = |settings: Settings, fault: Option<Fault>, name: &str| {
        if let Some(fault) = fault {
            hub.fault("/api/", fault);
        }
        Fetcher::new(settings).unwrap().fetch(&reference(name), What::Gpt2).unwrap_err().to_string()
    };
    let without = message(hub.settings(), Some(Fault::Status(401, None)), "org/judge");
    assert!(without.contains("401") && without.contains("set HF_TOKEN"), "{without}");
    let token = Settings { token: Some("secret-token".to_owned()), ..hub.settings() };
    let with = message(token, Some(Fault::Status(403, None)), "org/judge");
    assert!(with.contains("403") && with.contains("accept its terms") && !with.contains("secret-token"), "{with}");
    let missing = message(hub.settings(), None, "org/nothing");
    assert!(missing.contains("404") && missing.contains("org/nothing"), "{missing}");
    let revision = message(hub.settings(), None, "org/judge@v9");
    assert!(revision.contains("404") && revision.contains("org/judge@v9"), "{revision}");
    let page = message(hub.settings(), Some(Fault::Page), "org/judge");
    assert!(page.contains("HF_ENDPOINT"), "{page}");
    assert_eq!(hub.final_files(), [""; 0]);
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let hub = Hub::serve();
    model(&hub);
    // Contents lie elsewhere: the same server by another name.
    let elsewhere = format!("http://localhost:{}/org/judge/resolve/{A}/config.json", hub.port());
    hub.fault("config.json", Fault::Redirect(elsewhere));
    let settings = Settings { token: Some("t".to_owned()), ..hub.settings() };
    Fetcher::new(settings).unwrap().fetch(&reference("org/judge:config.json"), What::File).unwrap();
    let seen = hub.seen();
    assert_eq!(seen.len(), 3);
    for request in seen {
        let expected = (!request.host.starts_with("localhost")).then_some("Bearer t");
        assert_eq!(request.authorization.as_deref(), expected, "{request:?}");
    }
}

#[test]
fn renamed_repositories_are_followed() {
    let hub = Hub::serve();
    model(&hub);
    hub.fault("/api/models/old-name", Fault::Redirect("/api/models/org/judge/revision/main?blobs=true".to_owned()));
    hub.fault("/old-name/resolve/", Fault::Redirect(format!("/org/judge/resolve/{A}/tokenizer.json")));
    assert_eq!(read(hub.fetcher().locate("old-name", What::Tokenizer).unwrap()), b"{\"model\":1}");
}

#[test]
fn a_branch_that_moves_in_between_does_not_mix_two_states() {
    let hub = Hub::serve();
    model(&hub);
    hub.commit(
        "models/org/judge",
        B,
        &[("config.json", b"{\"new\":1}"), ("tokenizer.json", b"{\"model\":2}"), ("model.safetensors", &bytes(N, 9))],
    );
    let weights = model(&hub);
    hub.fault("config.json", Fault::MoveTo("models/org/judge", B));
    let old = hub.fetcher().fetch(&reference("org/judge"), What::Gpt2).unwrap();
    assert!(old.ends_with(A));
    assert_eq!((read(old.join("config.json")), read(old.join("model.safetensors"))), (b"{}".to_vec(), weights));

    // The move is seen next time; cut off halfway, the former state stays usable offline.
    hub.fault("model.safetensors", Fault::Status(404, None));
    hub.fetcher().fetch(&reference("org/judge"), What::Gpt2).unwrap_err();
    let offline = Fetcher::new(Settings { offline: true, ..hub.settings() }).unwrap();
    assert_eq!(offline.fetch(&reference("org/judge"), What::Gpt2).unwrap(), old);
    let new = hub.fetcher().fetch(&reference("org/judge"), What::Gpt2).unwrap();
    assert!(new.ends_with(B));
    assert_eq!(
        (read(new.join("config.json")), read(new.join("model.safetensors"))),
        (b"{\"new\":1}".to_vec(), bytes(N, 9))
    );
    assert_eq!(read(old.join("config.json")), b"{}");
}

#[test]
fn offline_asks_nobody_and_knows_a_part_from_the_whole() {
    let hub = Hub::serve();
    model(&hub);
    let offline = Fetcher::new(Settings { offline: true, ..hub.settings() }).unwrap();
    let error = offline.fetch(&reference("org/judge"), What::Gpt2).unwrap_err();
    assert!(matches!(error, Error::Offline { .. }) && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    hub.fetcher().fetch(&reference("org/judge"), What::Tokenizer).unwrap();
    hub.seen();
    offline.fetch(&reference("org/judge"), What::Tokenizer).unwrap();
    let error = offline.fetch(&reference("org/judge"), What::Gpt2).unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    assert!(hub.seen().is_empty());
}

#[test]
fn without_a_server_the_cache_serves_and_otherwise_the_way_is_blamed() {
    let hub = Hub::serve();
    model(&hub);
    hub.fetcher().fetch(&reference("org/judge"), What::Gpt2).unwrap();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = Settings { endpoint: Some(format!("http://127.0.0.1:{port}")), ..hub.settings() };
    let heard = Arc::new(Mutex::new(0));
    let listener = Arc::clone(&heard);
    let fetcher = Fetcher::new(settings).unwrap().with_listener(move |event| {
        *listener.lock().unwrap() += usize::from(matches!(event, Event::FromCache { .. }));
    });
    let started = Instant::now();
    assert!(fetcher.fetch(&reference("org/judge"), What::Gpt2).unwrap().ends_with(A));
    assert_eq!(*heard.lock().unwrap(), 1);
    let error = fetcher.fetch(&reference("org/other"), What::Gpt2).unwrap_err();
    assert!(matches!(error, Error::Network { .. }) && error.to_string().contains("check the network"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_silent_server_is_not_waited_for_without_end() {
    let hub = Hub::serve();
    model(&hub);
    hub.fault("config.json", Fault::Silence(Duration::from_secs(3)));
    let settings = Settings { patience: Duration::from_millis(300), ..hub.settings() };
    let started = Instant::now();
    Fetcher::new(settings).unwrap().fetch(&reference("org/judge:config.json"), What::File).unwrap();
    assert!(started.elapsed() < Duration::from_millis(2500), "the second attempt answers at once");
}

#[test]
fn shards_come_by_their_index() {
    let hub = Hub::serve();
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    hub.commit(
        "models/org/large",
        A,
        &[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index),
            ("m-1.safetensors", &bytes(2000, 1)),
            ("m-2.safetensors", &bytes(2000, 2)),
            ("m-3.safetensors", &bytes(2000, 3)),
            ("onnx/model.onnx", &bytes(9000, 4)),
        ],
    );
    let folder = hub.fetcher().fetch(&reference("org/large"), What::Encoder).unwrap();
    assert_eq!(hub.files_seen(), ["model.safetensors.index.json", "config.json", "m-1.safetensors", "m-2.safetensors"]);
    assert_eq!(read(folder.join("m-2.safetensors")), bytes(2000, 2));
}

#[test]
fn data_sets_are_another_kind_with_folders_and_odd_names() {
    let hub = Hub::serve();
    hub.commit(
        "datasets/org/texts",
        A,
        &[
            ("README.md", b"x"),
            ("data/train 1 #a.parquet", &bytes(3000, 1)),
            ("data/test.parquet", &bytes(3000, 2)),
            ("bare.jsonl", b"{}\n"),
        ],
    );
    let folder = hub.fetcher().locate("org/texts", What::Dataset).unwrap();
    assert_eq!(read(folder.join("data/train 1 #a.parquet")), bytes(3000, 1));
    // The card may say which files are which split.
    assert!(folder.join("README.md").exists() && !folder.join("bare.jsonl").exists());
    assert_eq!(hub.fetcher().locate("org/texts:data", What::Dataset).unwrap(), folder.join("data"));
    // A mirror that tells neither size nor hash.
    hub.fault("bare.jsonl", Fault::CutAfter(1));
    let file = hub.fetcher().locate("org/texts:bare.jsonl", What::Dataset).unwrap();
    assert_eq!(read(file), b"{}\n");
    let error = hub.fetcher().locate("org/texts", What::Gpt2).unwrap_err();
    assert!(error.to_string().contains("no local file or folder `org/texts`"), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("404") && source.contains("model repository"), "{source}");
}

#[test]
fn local_paths_win_and_nonsense_is_told_without_asking() {
    let hub = Hub::serve();
    let here = tempfile::tempdir().unwrap();
    let path = here.path().to_str().unwrap();
    assert_eq!(hub.fetcher().locate(path, What::Encoder).unwrap(), here.path());
    for text in ["./no/such/folder", "/no/such", "a/b/c", "x y"] {
        let error = hub.fetcher().locate(text, What::Encoder).unwrap_err();
        assert!(error.to_string().contains(text) && matches!(error, Error::NeitherPathNorId { .. }), "{error}");
    }
    assert!(hub.seen().is_empty());
}

#[test]
fn two_at_once_fetch_once() {
    let hub = Hub::serve();
    let weights = model(&hub);
    std::thread::scope(|scope| {
        let fetch = || hub.fetcher().fetch(&reference("org/judge:model.safetensors"), What::File).unwrap();
        let both = [scope.spawn(fetch), scope.spawn(fetch)];
        for thread in both {
            assert_eq!(read(thread.join().unwrap()), weights);
        }
    });
    assert_eq!(hub.files_seen(), ["model.safetensors"]);
}

/// What the ELF authors' repositories hold, names and kinds of files as published.
#[test]
fn the_published_layouts_give_the_one_file_that_is_wanted() {
    let hub = Hub::serve();
    let checkpoint = bytes(N, 9);
    hub.commit(
        "models/embedded-language-flows/ELF-B-owt-torch",
        A,
        &[
            (".gitattributes", b"*"),
            ("README.md", b"card"),
            ("checkpoint_95085", &checkpoint),
            ("config.yml", b"max_length: 1024"),
        ],
    );
    let id = "embedded-language-flows/ELF-B-owt-torch";
    for name in [id.to_owned(), format!("{id}@{A}"), format!("{id}:checkpoint_95085")] {
        let found = hub.fetcher().fetch(&reference(&name), What::ElfCheckpoint).unwrap();
        assert!(found.ends_with("checkpoint_95085"), "{}", found.display());
        assert_eq!(read(&found), checkpoint);
        assert_eq!(read(found.with_file_name("config.yml")), b"max_length: 1024");
    }
    assert_eq!(hub.files_seen(), ["config.yml", "checkpoint_95085"], "no file twice, and none that is not needed");

    // The same model for JAX: many files, of which none is fetched.
    hub.commit(
        "models/embedded-language-flows/ELF-B-owt",
        B,
        &[
            ("README.md", b"card"),
            ("checkpoint_95085/_METADATA", b"{}"),
            ("checkpoint_95085/manifest.ocdbt", b"x"),
            ("checkpoint_95085/d/0a1b", b"x"),
            ("checkpoint_95085/ocdbt.process_0/d/2c3d", b"x"),
        ],
    );
    let found = hub.fetcher().fetch(&reference("embedded-language-flows/ELF-B-owt"), What::ElfCheckpoint).unwrap();
    assert!(found.ends_with("checkpoint_95085") && found.display().to_string().contains("ELF-B-owt-torch"));
    assert_eq!(hub.files_seen(), [""; 0]);

    let rows = bytes(5000, 4);
    hub.commit(
        "datasets/embedded-language-flows/wmt14_de-en_validation_t5",
        A,
        &[
            (".gitattributes", b"*"),
            ("data-00000-of-00001.arrow", &rows),
            ("dataset_info.json", b"{}"),
            ("state.json", b"{}"),
        ],
    );
    let folder =
        hub.fetcher().fetch(&reference("embedded-language-flows/wmt14_de-en_validation_t5"), What::Dataset).unwrap();
    assert_eq!(read(folder.join("data-00000-of-00001.arrow")), rows);
    assert!(folder.join("state.json").is_file());
}

#[test]
fn an_exported_model_is_whole_with_its_guide_and_encoder() {
    let hub = Hub::serve();
    let (weights, guide, encoder) = (bytes(N, 1), bytes(5000, 2), bytes(5000, 3));
    hub.commit(
        "models/org/guided",
        A,
        &[
            ("README.md", b"card"),
            ("config.yml", b"encoder_model_name: encoder\n"),
            ("encoder/config.json", b"{}"),
            ("encoder/model.safetensors", &encoder),
            ("guide/config.yml", b"encoder_model_name: encoder\n"),
            ("guide/model.safetensors", &guide),
            ("guide/tokenizer.json", b"{}"),
            ("model.safetensors", &weights),
            ("sampling.yml", b"guide: guide\n"),
            ("tokenizer.json", b"{}"),
        ],
    );
    let folder = hub.fetcher().fetch(&reference("org/guided"), What::ElfCheckpoint).unwrap();
    assert_eq!(read(folder.join("model.safetensors")), weights);
    assert_eq!(read(folder.join("guide/model.safetensors")), guide);
    assert_eq!(read(folder.join("encoder/model.safetensors")), encoder);
    assert!(folder.join("guide/tokenizer.json").is_file() && !folder.join("README.md").exists());
    hub.files_seen();
    // It is whole in the cache, too; without its guide it is not.
    let offline = || Fetcher::new(Settings { offline: true, ..hub.settings() }).unwrap();
    assert_eq!(offline().fetch(&reference("org/guided"), What::ElfCheckpoint).unwrap(), folder);
    fs::remove_file(folder.join("guide/model.safetensors")).unwrap();
    assert!(offline().fetch(&reference("org/guided"), What::ElfCheckpoint).is_err());
    hub.fetcher().fetch(&reference("org/guided"), What::ElfCheckpoint).unwrap();
    assert_eq!(read(folder.join("guide/model.safetensors")), guide);
}
