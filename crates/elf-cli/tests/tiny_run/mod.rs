//! A corpus, tokenizer, encoder and model so small that the program goes through them in a second, and ways to run it.
//!
//! What is slow to make is made once for a test binary and only read afterwards; whoever changes files copies them.

#![allow(dead_code, reason = "each test binary takes what it needs")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// What a finished program left behind.
pub struct Ran {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// What a process left.
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts success.
    #[track_caller]
    pub fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.err);
        self
    }

    /// Asserts a failure of which several processes tell, each in one line with all of `words`.
    #[track_caller]
    pub fn badly_many(self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.err);
        let messages: Vec<&str> = self.err.lines().filter(|l| l.starts_with("error:")).collect();
        assert!(!messages.is_empty(), "{}", self.err);
        assert!(messages.iter().any(|m| words.iter().all(|w| m.contains(w))), "{}", self.err);
    }

    /// Asserts a failure that a user understands: an exit code, one line of error with all of `words`, and nothing that
    /// only a developer reads.
    #[track_caller]
    pub fn badly(self, words: &[&str]) -> Self {
        assert!(matches!(self.code, Some(1 | 2)), "exit code {:?}: {}", self.code, self.err);
        let messages: Vec<&str> = self.err.lines().filter(|l| l.starts_with("error:")).collect();
        assert_eq!(messages.len(), 1, "one message is wanted: {}", self.err);
        for word in words {
            assert!(messages[0].contains(word), "`{word}` is not named: {}", messages[0]);
        }
        // What comes after the message, if anything, is the usage hint of the command line.
        let after = self.err.lines().skip_while(|l| !l.starts_with("error:")).skip(1);
        assert!(after.clone().all(|l| l.is_empty() || l.contains("--help") || l.contains("Usage")), "{}", self.err);
        for noise in ["panicked", "RUST_BACKTRACE", "Exception raised", "frame #"] {
            assert!(!self.err.contains(noise), "{}", self.err);
        }
        let says_it_twice = messages[0].split(": ").collect::<Vec<_>>().windows(2).any(|pair| pair[0] == pair[1]);
        assert!(!says_it_twice && messages[0].len() < 600, "{}", messages[0]);
        self
    }
}

/// The program with these arguments; one thread, on the CPU, whatever this machine has.
pub fn elf(args: &[&str]) -> Command {
    prepared(Command::new(env!("CARGO_BIN_EXE_elf")), args)
}

/// The program in a shell that lets no file grow beyond `kib`: writing more fails, as on a full disk.
pub fn elf_with_file_limit(kib: usize, args: &[&str]) -> Command {
    // POSIX counts in blocks of 512 bytes. Without the trap the signal would end the program.
    elf_with_limits(&format!("trap '' XFSZ; ulimit -f {}", 2 * kib), args)
}

/// The program in a shell that has run `limits` before.
pub fn elf_with_limits(limits: &str, args: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limits}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_elf")]);
    prepared(shell, args)
}

fn prepared(mut command: Command, args: &[&str]) -> Command {
    command.args(args).env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "PASSIVE").env_remove("RUST_BACKTRACE");
    if args.first().is_some_and(|a| matches!(*a, "train" | "distill" | "sample" | "eval"))
        && !args.contains(&"--device")
    {
        command.args(["--device", "cpu"]);
    }
    command
}

/// Runs a command to its end.
pub fn run(mut command: Command) -> Ran {
    Ran::of(command.output().expect("the program starts"))
}

/// The kind of text that a model is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Text from nothing.
    Unconditional,
    /// English from German.
    Translation,
}

/// A folder for what a test binary makes once and keeps in a static, which nothing drops at the end: the next one that
/// makes such a folder removes those whose process is gone.
pub struct LastingFolder {
    path: PathBuf,
    /// Locked for as long as the process lives.
    _in_use: File,
}

impl LastingFolder {
    /// A new and empty one, under the build's own folder for temporary files.
    pub fn new() -> Self {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lasting");
        fs::create_dir_all(&home).expect("a folder for lasting folders");
        for entry in fs::read_dir(&home).expect("a folder").filter_map(Result::ok) {
            let lock = entry.path();
            // Another process may be removing the same: whoever comes second finds nothing, which is as well.
            if lock.extension().is_some_and(|e| e == "lock") && File::open(&lock).is_ok_and(|f| f.try_lock().is_ok()) {
                let _ = fs::remove_dir_all(lock.with_extension(""));
                let _ = fs::remove_file(&lock);
            }
        }
        // The lock comes before the folder, so that no folder is ever seen without its process.
        let lock = tempfile::Builder::new().suffix(".lock").tempfile_in(&home).expect("a lock file");
        let (in_use, lock) = lock.keep().expect("a lock file");
        in_use.lock().expect("a lock");
        let path = lock.with_extension("");
        fs::create_dir(&path).expect("a folder");
        Self { path, _in_use: in_use }
    }

    /// A path in the folder, as text.
    pub fn path(&self, name: &str) -> String {
        text(&self.path.join(name))
    }
}

/// Everything that training needs, and a run of six steps.
pub struct Materials {
    folder: LastingFolder,
}

impl Materials {
    /// A path in the folder, as text.
    pub fn path(&self, name: &str) -> String {
        self.folder.path(name)
    }

    /// Those of unconditional text.
    pub fn unconditional() -> &'static Self {
        static MADE: OnceLock<Materials> = OnceLock::new();
        MADE.get_or_init(|| Self::make(Task::Unconditional))
    }

    /// Those of translation.
    pub fn translation() -> &'static Self {
        static MADE: OnceLock<Materials> = OnceLock::new();
        MADE.get_or_init(|| Self::make(Task::Translation))
    }

    /// Goes the whole way from text to a run with the program itself.
    fn make(task: Task) -> Self {
        let materials = Self { folder: LastingFolder::new() };
        let [corpus, tokenizer, shards, encoder, config] =
            ["corpus.jsonl", "tokenizer", "shards", "encoder", "config.yml"].map(|name| materials.path(name));
        fs::write(&corpus, lines(task)).expect("the corpus is written");
        let column = if task == Task::Translation { "en" } else { "text" };
        run(elf(&[
            "tokenizer",
            "train",
            "--input",
            &corpus,
            "--column",
            column,
            "--vocab-size",
            "110",
            "--output",
            &tokenizer,
        ]))
        .well();
        let mut prepare = vec!["data", "prepare", "--input", &corpus, "--target-column", column, "--eos-target"];
        if task == Task::Translation {
            prepare.extend(["--condition-column", "de", "--eos-condition"]);
        }
        prepare.extend(["--tokenizer", &tokenizer, "--output", &shards]);
        run(elf(&prepare)).well();
        let sizes = ["--d-model", "16", "--d-kv", "8", "--d-ff", "32", "--num-layers", "1", "--num-heads", "2"];
        run(elf(&[&["encoder", "init", "--tokenizer", &tokenizer, "--output", &encoder][..], &sizes].concat())).well();
        run(elf(&["encoder", "stats", &encoder, "--data", &shards])).well();
        fs::write(&config, materials.config(task)).expect("the configuration is written");
        materials.train(&materials.path("run"), &[]).well();
        materials
    }

    fn config(&self, task: Task) -> String {
        let lengths = match task {
            Task::Unconditional => "max_length: 12\npad_token: eos\n",
            Task::Translation => "max_length: 22\nmax_input_length: 10\n",
        };
        // 320 rows are 40 batches, and save_freq counts epochs: a checkpoint every 2 steps.
        format!(
            "data_path: {}\nencoder_model_name: {}\n{lengths}hidden_size: 32\ndepth: 2\nnum_heads: 2\nbottleneck_dim: 16\n\
             batch_size: 8\nmax_steps: 6\nwarmup_steps: 2\nlr: 0.01\nema_decay1: 0.9\nlog_freq: 1\neval_freq: 100\n\
             save_freq: 0.05\nuse_bf16: false\nonline_eval: false\n",
            self.path("shards"),
            self.path("encoder")
        )
    }

    /// `elf train` into `output`, with settings changed.
    pub fn train_command(&self, output: &str, options: &[&str]) -> Command {
        let config = self.path("config.yml");
        let mut args = vec!["train", &config, "--output", output];
        for option in options {
            args.extend(["-o", option]);
        }
        elf(&args)
    }

    /// The same, run to its end.
    pub fn train(&self, output: &str, options: &[&str]) -> Ran {
        run(self.train_command(output, options))
    }

    /// A copy of a file or folder that may be spoilt.
    pub fn copy(&self, name: &str, folder: &TempDir) -> String {
        let to = folder.path().join(name);
        copy(Path::new(&self.path(name)), &to);
        text(&to)
    }
}

/// Settings of a model that fills gaps.
pub const FILLING: [&str; 5] = [
    "pad_token=pad",
    "group_by_length=true",
    "given_spans_prob=0.5",
    "given_words_prob=0.3",
    "decoder_clean_condition=true",
];

/// 320 sentences out of few words; the German side is the English one backwards.
fn lines(task: Task) -> String {
    const ADJECTIVES: [&str; 8] = ["old", "young", "happy", "sad", "tall", "red", "green", "quick"];
    const NOUNS: [&str; 10] = ["dog", "cat", "king", "girl", "boat", "river", "house", "tree", "doctor", "soldier"];
    const VERBS: [&str; 7] = ["finds", "loses", "meets", "helps", "chases", "saves", "follows"];
    let mut lines = String::new();
    for i in 0..320 {
        let (a, n, v) = (ADJECTIVES[i % 8], NOUNS[(i / 3) % 10], VERBS[(i * 5 + i / 7) % 7]);
        let (b, m) = (ADJECTIVES[(i / 8 + 3) % 8], NOUNS[(i * 7 + 1) % 10]);
        let words = ["A", a, n, v, "the", b, m];
        let english = words.join(" ");
        let row = match task {
            Task::Unconditional => serde_json::json!({ "text": english }),
            Task::Translation => {
                let backwards: Vec<&str> = words.iter().rev().copied().collect();
                serde_json::json!({ "de": backwards.join(" "), "en": english })
            }
        };
        lines += &format!("{row}\n");
    }
    lines
}

/// A path as text.
pub fn text(path: &Path) -> String {
    path.to_str().expect("temporary paths are Unicode").to_owned()
}

/// A path in a temporary folder, as text.
pub fn within(folder: &TempDir, name: &str) -> String {
    text(&folder.path().join(name))
}

/// Copies a file or a folder.
pub fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry").path();
            copy(&entry, &to.join(entry.file_name().expect("a name")));
        }
    } else {
        fs::copy(from, to).expect("a copy");
    }
}

/// The lines of a JSONL file.
pub fn json_lines(path: &str) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a file of JSON lines");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Checkpoints of a run, ascending.
pub fn checkpoints(run: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(Path::new(run).join("checkpoints")) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    found.retain(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("step-")));
    found.sort();
    found
}

/// Bytes of all tensors of a checkpoint: parameters, averages, the optimiser's state.
pub fn tensors(checkpoint: &Path) -> [Vec<u8>; 3] {
    ["model", "ema", "optimizer"].map(|name| fs::read(checkpoint.join(format!("{name}.safetensors"))).expect("tensors"))
}
