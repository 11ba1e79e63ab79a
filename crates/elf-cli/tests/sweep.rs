//! Every option of every command, as clap knows them, with numbers that are none and files that are none: one clear message or
//! something done, no panic, no signal. A new option joins by itself; a new command needs a line in `bases`.

mod tiny_run;

use std::any::TypeId;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::{Arg, Command};
use elf_lm::encoder::CorpusText;
use elf_lm::text::text_column::TextColumn;
use tempfile::TempDir;
use tiny_run::{FILLING, Materials, Ran, copy, elf, run, within};

/// Values of a command's options, by their ids.
type Values = BTreeMap<String, String>;

/// The place of an output that every call has for itself.
const NEW: &str = "{new}";

/// Options that name what is written.
const OUTPUTS: [&str; 2] = ["output", "json"];

/// Files that commands read.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { folder: TempDir::new().unwrap() };
        let materials = Materials::unconditional();
        for name in ["corpus.jsonl", "tokenizer", "shards", "encoder", "run", "config.yml"] {
            copy(Path::new(&materials.path(name)), Path::new(&files.at(name)));
        }
        materials.train(&files.at("filling"), &FILLING).well();
        fs::write(files.at("samples.jsonl"), "{\"text\": \"A dog\", \"reference\": \"A dog\"}\n").unwrap();
        fs::write(files.at("empty.jsonl"), "").unwrap();
        fs::write(files.at("settings.yml"), "- guide: guide\n  guide_scale: 2\n").unwrap();
        fs::create_dir(files.at("folder")).unwrap();
        files
    }

    fn at(&self, name: &str) -> String {
        within(&self.folder, name)
    }

    /// A cheap command line of each command that does what it should.
    fn bases(&self) -> Vec<(&'static str, Values)> {
        let bert = concat!(env!("CARGO_MANIFEST_DIR"), "/../elf-encoder/tests/fixtures/bert");
        let places = ["corpus.jsonl", "tokenizer", "encoder", "run"].map(|name| self.at(name));
        let [corpus, tokenizer, encoder, model] = places.each_ref().map(String::as_str);
        let column = format!("{corpus}:text");
        let table: Vec<(&'static str, Vec<(&str, &str)>)> = vec![
            ("data select", vec![("input", corpus), ("column", "text"), ("output", NEW)]),
            ("data prepare", vec![("input", corpus), ("tokenizer", tokenizer), ("output", NEW)]),
            ("data words", vec![("input", corpus), ("tokenizer", bert), ("output", NEW)]),
            ("data inspect", vec![("shards", "{shards}")]),
            ("tokenizer train", vec![("input", corpus), ("vocab_size", "60"), ("output", NEW)]),
            ("encoder init", [&SIZES[..], &[("tokenizer", tokenizer), ("output", NEW)]].concat()),
            (
                "encoder train",
                [
                    &SIZES[..],
                    &[
                        ("text", column.as_str()),
                        ("tokenizer", tokenizer),
                        ("steps", "1"),
                        ("batch_tokens", "128"),
                        ("output", NEW),
                    ],
                ]
                .concat(),
            ),
            ("encoder cut", vec![("source", bert), ("layers", "1"), ("output", NEW)]),
            ("encoder stats", vec![("encoder", encoder), ("data", "{shards}"), ("rows", "8")]),
            ("train", vec![("config", "{config.yml}"), ("output", NEW), ("plan", "")]),
            ("launch", vec![("nproc", "1"), ("command", "scaling")]),
            ("scaling", vec![]),
            ("distill", vec![("config", "{config.yml}"), ("teacher", model), ("output", NEW), ("plan", "")]),
            ("sample", vec![("path", model), ("num", "1"), ("steps", "1"), ("output", NEW)]),
            ("infill", vec![("path", "{filling}"), ("texts", "A [2] dog"), ("steps", "1"), ("output", NEW)]),
            ("correct", vec![("path", "{filling}"), ("texts", "A dog finds"), ("steps", "1"), ("output", NEW)]),
            ("serve", vec![("path", model), ("listen", "nowhere")]),
            ("convert", vec![("input", model), ("output", NEW)]),
            ("export", vec![("run", model), ("output", NEW)]),
            ("probe", vec![("path", model), ("data", "{shards}"), ("limit", "2"), ("times", "1"), ("output", NEW)]),
            (
                "likelihood",
                vec![("path", model), ("data", "{shards}"), ("limit", "2"), ("steps", "1"), ("output", NEW)],
            ),
            ("eval", vec![("samples", "{samples.jsonl}"), ("output", NEW)]),
            ("bench", BENCH.to_vec()),
            ("pull", vec![("references", "a/b"), ("kind", "tokenizer")]),
        ];
        let value = |text: &str| match text.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            Some(name) if text != NEW => self.at(name),
            _ => text.to_owned(),
        };
        let values =
            |pairs: Vec<(&str, &str)>| pairs.iter().map(|(id, text)| ((*id).to_owned(), value(text))).collect();
        table.into_iter().map(|(name, pairs)| (name, values(pairs))).collect()
    }
}

/// A bench of a moment.
const BENCH: [(&str, &str); 7] = [
    ("preset", "mini"),
    ("batch", "1"),
    ("seq", "8"),
    ("steps", "1"),
    ("sampling_steps", "1"),
    ("only", "load"),
    ("json", NEW),
];

/// The sizes of a small encoder.
const SIZES: [(&str, &str); 5] =
    [("d_model", "8"), ("d_kv", "4"), ("d_ff", "8"), ("num_layers", "1"), ("num_heads", "2")];

/// The words of a command line.
fn words(name: &str, command: &Command, values: &Values) -> Vec<String> {
    let mut words: Vec<String> = name.split(' ').map(str::to_owned).collect();
    let mut last = Vec::new();
    for arg in command.get_arguments() {
        let Some(value) = values.get(arg.get_id().as_str()) else { continue };
        match arg.get_long() {
            Some(long) if !arg.get_action().takes_values() => words.push(format!("--{long}")),
            Some(long) => words.extend([format!("--{long}"), value.clone()]),
            None if arg.is_last_set() => last.extend(["--".to_owned(), value.clone()]),
            None => words.push(value.clone()),
        }
    }
    words.extend(last);
    words
}

/// Options that need another one, and a file for that.
const NEEDED: &[(&str, &str, &str)] = &[
    ("training_words", "training", "corpus.jsonl"),
    ("long_run", "training", "corpus.jsonl"),
    ("judge_max_length", "judge", "run"),
    ("max_tokens", "tokenizer", "tokenizer"),
    ("num", "run", "run"),
    ("seeds", "run", "run"),
    ("samples_folder", "run", "run"),
    ("guide", "sampling_config", "settings.yml"),
    ("guide_scale", "guide", "run"),
    ("guide_until", "guide", "run"),
];

/// Options that exclude one of the bases.
const EXCLUDED: &[(&[&str], &str)] =
    &[(&["text", "data", "input"], "num"), (&["run", "num", "seeds", "samples_folder"], "samples")];

/// Options with which nothing is done in bases that only plan: what they name is read at the start of the work.
const AFTER_THE_PLAN: [&str; 3] = ["output", "resume", "init_from"];

/// One call of the sweep.
struct Case {
    name: &'static str,
    /// The option, as it is typed.
    option: String,
    value: String,
    line: Vec<String>,
    /// Whether the value can be meant.
    may_succeed: bool,
    /// Whether the option is that of several commands: of a model or of sampling.
    shared: bool,
}

/// All commands that do something, with their names.
fn leaves(command: &Command, name: &str, all: &mut Vec<(String, Command)>) {
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        let name = format!("{name} {}", inner.get_name()).trim().to_owned();
        match inner.has_subcommands() {
            true => leaves(inner, &name, all),
            false => all.push((name, inner.clone())),
        }
    }
}

/// The values that an option is tried with, given the base of its command, and whether they can be meant.
type Choice<'a> = dyn Fn(&Arg, &Values) -> Vec<(String, bool)> + 'a;

/// Calls of every command with one option changed to each of `values`, which may depend on the option.
fn cases(files: &Files, values: &Choice) -> Vec<Case> {
    let mut commands = Vec::new();
    leaves(&elf_cli::command(), "", &mut commands);
    let mut bases: BTreeMap<&str, Values> = files.bases().into_iter().collect();
    let mut all = Vec::new();
    for (name, command) in &commands {
        let (name, base) =
            bases.remove_entry(name.as_str()).unwrap_or_else(|| panic!("`{name}` needs a line in `bases`"));
        for arg in command.get_arguments() {
            let id = arg.get_id().as_str();
            for (value, may_succeed) in values(arg, &base) {
                let mut changed = base.clone();
                changed.insert(id.to_owned(), value.clone());
                for (of, needed, place) in NEEDED {
                    if *of == id {
                        changed.insert((*needed).to_owned(), files.at(place));
                    }
                }
                if let Some((_, excluded)) = EXCLUDED.iter().find(|(of, _)| of.contains(&id)) {
                    changed.remove(*excluded);
                }
                let option = arg.get_long().map_or(id.to_owned(), |long| format!("--{long}"));
                let line = words(name, command, &changed);
                let same = |(_, other): &&(String, Command)| other.get_arguments().any(|o| is_shared(o, arg));
                let shared = commands.iter().filter(same).count() > 1;
                all.push(Case { name, option, value, line, may_succeed, shared });
            }
        }
    }
    assert!(bases.is_empty(), "no such commands: {bases:?}");
    all
}

/// Leaves out the calls of options that a command shares with an earlier one, by what is said of them: they are the same code.
fn without_shared(cases: Vec<Case>) -> Vec<Case> {
    let mut seen = BTreeSet::new();
    cases.into_iter().filter(|case| !case.shared || seen.insert((case.option.clone(), case.value.clone()))).collect()
}

/// Carries out all calls, several at a time, and says what was wrong with them.
fn carry_out(cases: &[Case], folder: &TempDir) -> Vec<String> {
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((number, case)) =
            Some(next.fetch_add(1, Ordering::SeqCst)).and_then(|i| Some((i, cases.get(i)?)))
        {
            let new = within(folder, &format!("new-{number}"));
            let line: Vec<String> = case.line.iter().map(|word| word.replace(NEW, &new)).collect();
            if let Err(fault) = case.judged(&line, &new) {
                wrong.lock().unwrap().push(format!("elf {}: {fault}", line.join(" ")));
            }
        }
    };
    std::thread::scope(|threads| (0..4).for_each(|_| _ = threads.spawn(work)));
    wrong.into_inner().unwrap()
}

impl Case {
    /// Carries a call out, and says what is wrong with its end.
    fn judged(&self, line: &[String], new: &str) -> Result<(), String> {
        // What clap refuses needs no process.
        if let Err(refusal) = elf_cli::command().try_get_matches_from([&["elf".to_owned()][..], line].concat()) {
            return self.refused(&refusal.to_string());
        }
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut command = elf(&words);
        command.env("HF_ENDPOINT", "http://127.0.0.1:1").env("HF_HUB_CACHE", new.to_owned() + "-cache");
        let Ran { code, out, err } = run(command);
        let is_wrong = ["panicked", "defect of elf", "RUST_BACKTRACE", "Exception raised", "frame #"];
        if let Some(word) = is_wrong.iter().find(|word| err.contains(**word)) {
            return Err(format!("{word}: {err}"));
        }
        match code {
            Some(0) if !self.may_succeed => Err(format!("succeeds: {out}{err}")),
            Some(0) => {
                let done = !out.is_empty() || Path::new(new).exists() || line.contains(&"--plan".to_owned());
                if done { Ok(()) } else { Err(format!("succeeds, and nothing was done: {err}")) }
            }
            Some(1 | 2) if err.contains("cannot listen at nowhere") => Ok(()),
            Some(1 | 2) => self.refused(&err),
            code => Err(format!("ends with {code:?}: {err}")),
        }
    }

    /// Whether a refusal is one message that names the option or the value.
    fn refused(&self, told: &str) -> Result<(), String> {
        println!("elf {} {} {}: {told}", self.name, self.option, self.value);
        let messages: Vec<&str> = told.lines().filter(|line| line.starts_with("error: ")).collect();
        let [message] = messages[..] else { return Err(format!("not one message: {told}")) };
        let key = self.option.trim_start_matches("--");
        let file = Path::new(&self.value).file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        let file = file.split(':').next().unwrap_or_default();
        let names =
            [key.to_owned(), key.replace('-', "_"), key.replace('-', " "), self.option.to_uppercase(), file.to_owned()];
        if !names.iter().any(|name| !name.is_empty() && message.to_lowercase().contains(&name.to_lowercase())) {
            return Err(format!("neither {} nor {} is named: {message}", self.option, self.value));
        }
        if told.contains("'-- -1'") {
            return Err(format!("advice that cannot work: {told}"));
        }
        Ok(())
    }
}

/// Whether two commands have an option from the same struct.
fn is_shared(one: &Arg, other: &Arg) -> bool {
    let said = |arg: &Arg| arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
    one.get_id() == other.get_id() && one.get_long().is_some() && said(one).is_some() && said(one) == said(other)
}

fn is_of(arg: &Arg, kinds: &[TypeId]) -> bool {
    let kind = arg.get_value_parser().type_id();
    kinds.iter().any(|of| kind == *of)
}

#[test]
fn numbers_that_are_none_are_refused() {
    let files = Files::new();
    let numbers = [TypeId::of::<f64>(), TypeId::of::<usize>(), TypeId::of::<u64>(), TypeId::of::<i64>()];
    let found = Cell::new(0);
    let cases = cases(&files, &|arg, _| {
        let before = match (is_of(arg, &numbers), is_of(arg, &[TypeId::of::<(String, usize)>()])) {
            (true, _) => "",
            (_, true) => "text=",
            _ => return Vec::new(),
        };
        found.set(found.get() + 1);
        let value = |(text, may_succeed): (&str, bool)| (format!("{before}{text}"), may_succeed);
        [("0", true), ("-1", true), ("NaN", false), ("1e400", false), ("many", false)].map(value).to_vec()
    });
    assert!(found.get() > 80, "the walk finds the options");
    let cases = without_shared(cases);
    let wrong = carry_out(&cases, &files.folder);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn files_that_are_none_are_refused() {
    let files = Files::new();
    let of_files = [
        TypeId::of::<PathBuf>(),
        TypeId::of::<TextColumn>(),
        TypeId::of::<CorpusText>(),
        TypeId::of::<(String, TextColumn)>(),
    ];
    let cases = cases(&files, &|arg, base| {
        let id = arg.get_id().as_str();
        if !is_of(arg, &of_files) {
            return Vec::new();
        }
        let form = |path: &str| match (is_of(arg, &of_files[..1]), is_of(arg, &of_files[3..])) {
            (true, _) => path.to_owned(),
            (_, true) => format!("text={path}:text"),
            _ => format!("{path}:text"),
        };
        let (folder, empty) = (files.at("folder"), files.at("empty.jsonl"));
        let only_planned = base.contains_key("plan") && AFTER_THE_PLAN.contains(&id);
        if OUTPUTS.contains(&id) {
            // Beside what cannot be written, every input as the output.
            let inputs = base.iter().filter(|(key, value)| *key != id && Path::new(value).exists());
            let inputs = inputs.filter(|(key, _)| *key != "tokenizer").map(|(_, value)| (value.clone(), false));
            return inputs.chain([("/proc/none/here".to_owned(), only_planned)]).collect();
        }
        // A new folder for samples or events is made, an empty list of words to count is one, and a configuration may be empty.
        let made = ["samples_folder", "tensorboard"].contains(&id);
        let may_be_empty = ["count_over", "write_into", "config"].contains(&id);
        let (missing, new) = ("/none/here.jsonl", files.at("made/here"));
        let mut values = vec![(if made { &*new } else { missing }, made), (&*folder, made)];
        values.extend((!may_be_empty).then_some((empty.as_str(), false)));
        values.into_iter().map(|(path, may_succeed)| (form(path), may_succeed || only_planned)).collect()
    });
    let cases = without_shared(cases);
    let wrong = carry_out(&cases, &files.folder);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
