//! Several processes that train and sample together: they do what one does, and when one of them fails all end, say why and
//! leave nothing behind.
#![cfg(target_os = "linux")]

mod tiny_run;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tiny_run::{Materials, Ran, checkpoints, elf, json_lines, run, within};

/// Settings that one, two and three ranks can share.
const SHARED: [&str; 3] = ["batch_size=null", "global_batch_size=6", "max_steps=6"];
/// A run that does not end before somebody disturbs it.
const ENDLESS: [&str; 4] = ["batch_size=null", "global_batch_size=6", "max_steps=100000000", "save_freq=0.1"];

fn train_args(output: &str, options: &[&str]) -> Vec<String> {
    let mut args = vec!["train".to_owned(), Materials::unconditional().path("config.yml")];
    args.extend(["--output", output, "--device", "cpu"].map(str::to_owned));
    args.extend(options.iter().flat_map(|o| ["-o".to_owned(), (*o).to_owned()]));
    args
}

fn launch(ranks: usize, args: &[String]) -> Command {
    let ranks = ranks.to_string();
    let mut all = vec!["launch", "--nproc", &ranks, "--timeout", "30", "--"];
    all.extend(args.iter().map(String::as_str));
    elf(&all)
}

fn together(ranks: usize, output: &str, options: &[&str]) -> Ran {
    run(launch(ranks, &train_args(output, options)))
}

/// Parameters and averages of the last checkpoint, by name.
fn last_weights(output: &str) -> Vec<(String, tch::Tensor)> {
    let last = checkpoints(output).pop().unwrap();
    ["model.safetensors", "ema.safetensors"]
        .iter()
        .flat_map(|file| tch::Tensor::read_safetensors(last.join(file)).unwrap())
        .collect()
}

#[track_caller]
fn assert_same(a: &str, b: &str) {
    let (mut a, mut b) = (last_weights(a), last_weights(b));
    a.sort_by(|x, y| x.0.cmp(&y.0));
    b.sort_by(|x, y| x.0.cmp(&y.0));
    assert_eq!(a.len(), b.len());
    for ((name, x), (other, y)) in a.iter().zip(&b) {
        let difference = (x - y).abs().max().double_value(&[]);
        assert!(name == other && difference < 1e-5, "{name} differs by {difference}");
    }
}

#[test]
fn ranks_train_what_one_process_trains_and_any_number_goes_on() {
    let folder = TempDir::new().unwrap();
    let [one, two, mixed] = ["one", "two", "mixed"].map(|n| within(&folder, n));
    run(elf(&train_args(&one, &SHARED).iter().map(String::as_str).collect::<Vec<_>>())).well();
    let ran = together(2, &two, &SHARED).well();
    assert!(ran.err.contains("rank 0 of 2"), "{}", ran.err);
    assert_eq!(ran.err.matches("finished after step 6").count(), 1, "one rank speaks: {}", ran.err);
    assert_same(&one, &two);
    // Every number in the log is about all ranks.
    let (a, b) = (json_lines(&format!("{one}/metrics.jsonl")), json_lines(&format!("{two}/metrics.jsonl")));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        assert_eq!(a["step"], b["step"]);
        for key in ["loss", "l2", "ce", "grad_norm"] {
            match (a[key].as_f64(), b[key].as_f64()) {
                (Some(x), Some(y)) => assert!((x - y).abs() < 1e-4 * x.abs().max(1.0), "{key}: {x} and {y}"),
                (x, y) => assert_eq!(x, y, "{key}"),
            }
        }
    }
    // Blocks that run again in the backward pass complete their gradients within it.
    let again = within(&folder, "again");
    together(2, &again, &[&SHARED[..], &["gradient_checkpointing=true"]].concat()).well();
    assert_same(&one, &again);
    // Two ranks begin, three go on, one ends.
    for (ranks, steps) in [(2, "max_steps=2"), (3, "max_steps=4")] {
        together(ranks, &mixed, &[SHARED[0], SHARED[1], steps]).well();
    }
    run(elf(&train_args(&mixed, &SHARED).iter().map(String::as_str).collect::<Vec<_>>())).well();
    assert_same(&one, &mixed);
}

#[test]
fn texts_do_not_depend_on_the_number_of_ranks() {
    let folder = TempDir::new().unwrap();
    let model = Materials::unconditional().path("run");
    let written = |ranks: Option<usize>| {
        let output = within(&folder, &format!("{ranks:?}.jsonl"));
        let args =
            ["sample", &model, "--num", "7", "--batch-size", "2", "--steps", "4", "--device", "cpu", "-o", &output];
        let command = match ranks {
            None => elf(&args),
            Some(n) => launch(n, &args.map(str::to_owned)),
        };
        let ran = run(command).well();
        assert_eq!(ran.out.lines().count(), 3, "one rank shows them: {}", ran.out);
        fs::read(&output).unwrap()
    };
    let alone = written(None);
    assert_eq!(alone.iter().filter(|b| **b == b'\n').count(), 7);
    assert!(written(Some(2)) == alone && written(Some(3)) == alone);
}

/// A launched run that is to be disturbed.
struct Launched {
    child: Child,
    ranks: Vec<u32>,
    port: u16,
    output: String,
    _folder: TempDir,
}

impl Launched {
    /// Starts it and waits for its first checkpoint.
    fn start(ranks: usize, timeout: &str) -> Self {
        let (folder, count) = (TempDir::new().unwrap(), &ranks.to_string());
        let output = within(&folder, "run");
        let mut args = vec!["launch", "--nproc", count, "--timeout", timeout, "--"];
        let train = train_args(&output, &ENDLESS);
        args.extend(train.iter().map(String::as_str));
        let mut command = elf(&args);
        command.stdout(Stdio::null()).stderr(fs::File::create(folder.path().join("log")).unwrap());
        let mut child = command.spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(120);
        while checkpoints(&output).is_empty() {
            assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "no checkpoint came");
            std::thread::sleep(Duration::from_millis(5));
        }
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        let mut pids: Vec<u32> = children.split_whitespace().map(|p| p.parse().unwrap()).collect();
        let rank = |pid: &u32| variable(*pid, "RANK").parse::<usize>().unwrap();
        pids.sort_by_key(rank);
        assert_eq!(pids.len(), ranks);
        let port = variable(pids[0], "MASTER_PORT").parse().unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        Self { child, ranks: pids, port, output, _folder: folder }
    }

    fn signal(&self, signal: &str, pid: u32) {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    }

    /// Waits for the end: its exit code and what it said. Nothing is left: no process, no port, no broken checkpoint.
    fn end(mut self) -> (Option<i32>, String) {
        // Counts looks, not time: a machine under load may stand still for long.
        let mut looks = 6000;
        let mut look = |what: &str| {
            looks -= 1;
            assert!(looks > 0, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        };
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            look("it does not end");
        };
        // The kernel ends what the launcher could not (it may itself have been killed).
        while self.ranks.iter().any(|pid| is_alive(*pid)) {
            look("a rank is left");
        }
        assert!(TcpStream::connect(("127.0.0.1", self.port)).is_err(), "the port is still open");
        drop(TcpListener::bind(("127.0.0.1", self.port)).unwrap());
        for path in checkpoints(&self.output) {
            elf_train::Checkpoint::open(&path).unwrap().verify().unwrap();
        }
        (status.code(), fs::read_to_string(self._folder.path().join("log")).unwrap())
    }
}

fn variable(pid: u32, name: &str) -> String {
    let text = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.split('\0').find_map(|v| v.strip_prefix(&format!("{name}="))).unwrap().to_owned()
}

fn is_alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

fn errors(log: &str) -> Vec<&str> {
    log.lines().filter(|l| l.starts_with("error:")).collect()
}

#[test]
fn a_killed_rank_ends_all_and_is_named() {
    let run = Launched::start(3, "30");
    run.signal("-KILL", run.ranks[1]);
    let (code, log) = run.end();
    assert_eq!(code, Some(1), "{log}");
    // Rank 0, which shares our standard error, and the launcher.
    let errors = errors(&log);
    assert!(errors.len() == 2 && errors.iter().all(|e| e.contains("rank 1") && e.contains("signal 9")), "{log}");
}

#[test]
fn a_stopped_rank_ends_all_after_the_timeout_and_is_named() {
    let run = Launched::start(2, "3");
    run.signal("-STOP", run.ranks[1]);
    let (code, log) = run.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(errors(&log).iter().any(|e| e.contains("rank 1 gives no sign of life")), "{log}");
}

#[test]
fn an_interrupted_launch_saves_and_a_killed_one_leaves_nothing() {
    let run = Launched::start(2, "30");
    run.signal("-INT", run.child.id());
    let (code, log) = run.end();
    assert_eq!(code, Some(130), "{log}");
    assert!(log.contains("interrupted; run the same command again") && errors(&log).is_empty(), "{log}");

    // A batch system signals every process of a job, beside what the launcher passes on.
    let run = Launched::start(2, "30");
    for process in [run.ranks[0], run.ranks[1], run.child.id()] {
        run.signal("-TERM", process);
    }
    let (code, log) = run.end();
    assert_eq!(code, Some(130), "{log}");
    assert!(log.contains("interrupted; run the same command again") && errors(&log).is_empty(), "{log}");

    let run = Launched::start(2, "30");
    run.signal("-KILL", run.child.id());
    let (code, _) = run.end();
    assert_eq!(code, None);
}

/// Ranks that somebody starts by hand, as torchrun does, each with arguments of its own.
fn by_hand(args: [Vec<String>; 2]) -> Vec<Ran> {
    by_hand_in([Path::new("."); 2], args)
}

/// The same, each in a folder of its own.
fn by_hand_in(folders: [&Path; 2], args: [Vec<String>; 2]) -> Vec<Ran> {
    // Freed again before rank 0 takes it.
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let children: Vec<Child> = (0..2)
        .map(|rank| {
            let mut command = elf(&args[rank].iter().map(String::as_str).collect::<Vec<_>>());
            command.current_dir(folders[rank]);
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("LOCAL_RANK", rank.to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string()).env("ELF_TIMEOUT", "30");
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    children.into_iter().map(|child| Ran::of(child.wait_with_output().unwrap())).collect()
}

#[test]
fn ranks_that_were_started_differently_refuse_to_start() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "run");
    let with = |option| train_args(&output, &[&SHARED[..], &[option]].concat());
    for ran in by_hand([with("lr=0.01"), with("lr=0.02")]) {
        ran.badly(&["do not agree on lr", "rank 0 has 0.01", "rank 1 has 0.02"]);
    }
    assert!(checkpoints(&output).is_empty());
    // The same by hand, and well.
    for ran in by_hand([with("lr=0.01"), with("lr=0.01")]) {
        ran.well();
    }
    // Other data under the same name cannot be told from the configuration: one rank has the rows backwards.
    let materials = Materials::unconditional();
    let places = ["here", "there"].map(|name| folder.path().join(name));
    places.iter().for_each(|place| fs::create_dir(place).unwrap());
    let corpus = fs::read_to_string(materials.path("corpus.jsonl")).unwrap();
    let backwards: Vec<&str> = corpus.lines().rev().collect();
    for (place, lines) in places.iter().zip([corpus.clone(), backwards.join("\n")]) {
        fs::write(place.join("corpus.jsonl"), lines).unwrap();
        let tokenizer = materials.path("tokenizer");
        let prepare = ["data", "prepare", "--input", "corpus.jsonl", "--target-column", "text", "--eos-target"];
        let mut command = elf(&[&prepare[..], &["--tokenizer", &tokenizer, "--output", "shards"]].concat());
        command.current_dir(place);
        run(command).well();
    }
    let ran = by_hand_in([&places[0], &places[1]], [with("data_path=shards"), with("data_path=shards")]);
    for ran in ran {
        ran.badly(&["do not agree on the training data", "rank 0 has 320 rows", "rank 1 has 320 rows"]);
    }
}

#[test]
fn a_rank_that_fails_is_quoted_and_bad_arguments_are_named() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "run");
    together(3, &output, &["batch_size=null", "global_batch_size=8"]).badly_many(&["3 ranks cannot share"]);
    run(elf(&["launch", "--nproc", "0", "--", "train"])).badly(&["--nproc"]);
    run(elf(&["launch", "--nproc", "18446744073709551615", "--", "train"])).badly(&["--nproc", "at most 4096"]);
    run(elf(&["launch", "--nproc", "2", "--", "launch"])).badly(&["cannot launch others"]);
    let mut half = elf(&["sample", &Materials::unconditional().path("run")]);
    half.env("RANK", "0");
    run(half).badly(&["WORLD_SIZE"]);
}
