//! Text to token shards.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, bounded};
use serde::{Deserialize, Serialize};

use super::encode::{Chunk, Document, EXAMPLES, EncodedChunk, Encoder, read_chunks};
use super::manifest::{FinishedShard, Input, Manifest, Parameters};
use super::writer::ShardWriter;
use super::{EosOptions, FORMAT_VERSION, MANIFEST, ShardMetadata};
use crate::error::{Error, Result};
use crate::packing::{Packer, Packing};
use crate::source::{PlainText, Source};
use crate::tokenizer::Tokenizer;

/// Settings of a preparation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareConfig {
    /// Text files or folders; see [`source`](crate::source).
    pub inputs: Vec<PathBuf>,
    /// The folder for the shards; created if it does not exist.
    pub output: PathBuf,
    /// The text column of the targets; `text` for plain text files.
    pub target_column: String,
    /// The text column of the conditions, for conditional tasks.
    #[serde(default)]
    pub condition_column: Option<String>,
    /// The unit of a document in a plain text file.
    #[serde(default)]
    pub plain_text: PlainText,
    /// Which columns end in EOS.
    #[serde(default)]
    pub eos: EosOptions,
    /// How documents become rows.
    #[serde(default)]
    pub packing: Packing,
    /// Documents per shard. An interrupted run loses the shard that it was writing.
    #[serde(default = "default_documents_per_shard")]
    pub documents_per_shard: usize,
    /// Replace shards in `output` that were made with other parameters. Otherwise they are an error.
    #[serde(default)]
    pub overwrite: bool,
    /// Largest share of unknown tokens (`<unk>`), from 0 to 1; more is an error. `None` allows any.
    #[serde(default)]
    pub max_unknown: Option<f64>,
}

fn default_documents_per_shard() -> usize {
    50_000
}

/// Share of unknown tokens above which [`PrepareReport::unknown_warning`] warns.
const WARN_ABOVE: f64 = 0.01;

impl PrepareConfig {
    /// The settings with all defaults: no condition, no EOS, no packing.
    pub fn new(inputs: Vec<PathBuf>, output: impl Into<PathBuf>, target_column: impl Into<String>) -> Self {
        Self {
            inputs,
            output: output.into(),
            target_column: target_column.into(),
            condition_column: None,
            plain_text: PlainText::default(),
            eos: EosOptions::default(),
            packing: Packing::default(),
            documents_per_shard: default_documents_per_shard(),
            overwrite: false,
            max_unknown: None,
        }
    }

    fn check(&self) -> Result<()> {
        let refuse = |message: &str| Err(Error::Config(message.to_owned()));
        if self.documents_per_shard == 0 {
            return refuse("documents_per_shard must be at least 1");
        }
        if let Some(share) = self.max_unknown.filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(Error::Config(format!("max_unknown is {share}, but must be a share from 0 to 1")));
        }
        if matches!(self.packing, Packing::Concat { .. }) {
            if self.condition_column.is_some() {
                return refuse(
                    "packing joins the targets of several documents, so a row cannot have a condition: use packing `none` with a condition column",
                );
            }
            if !self.eos.target {
                return refuse("packing separates documents by EOS: turn EOS on for targets");
            }
        }
        if self.eos.condition && self.condition_column.is_none() {
            return refuse("EOS after conditions needs a condition column: name one, or turn that EOS off");
        }
        Packer::new(self.packing).map(drop)
    }
}

/// Progress of a preparation. Numbers include the shards of earlier, interrupted runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Rows of the source that were read, empty documents included.
    pub source_rows: u64,
    /// Documents with text.
    pub documents: u64,
    /// Rows written.
    pub rows: u64,
    /// Target ids written.
    pub tokens: u64,
    /// Condition ids written.
    pub condition_tokens: u64,
    /// Ids of the unknown token (`<unk>`) among both.
    pub unknown: u64,
    /// Finished shards.
    pub shards: usize,
}

impl Progress {
    /// Share of the unknown token among all ids, 0 to 1.
    pub fn unknown_share(&self) -> f64 {
        self.unknown as f64 / (self.tokens + self.condition_tokens).max(1) as f64
    }
}

/// The result of a preparation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrepareReport {
    /// The totals.
    pub total: Progress,
    /// Documents left out because their target has no text.
    pub empty_documents: u64,
    /// Finished shards of an earlier run that were kept.
    pub kept_shards: usize,
    /// Up to three texts with unknown tokens, cut to 60 characters. Texts of kept shards are not among them.
    pub unknown_examples: Vec<String>,
}

impl PrepareReport {
    /// A warning if more than 1% of the tokens are unknown: the tokenizer does not know the texts' language or script.
    pub fn unknown_warning(&self) -> Option<String> {
        let share = self.total.unknown_share();
        (share > WARN_ABOVE).then(|| describe_unknown(share, &self.unknown_examples))
    }
}

/// A share of unknown tokens in words.
fn describe_unknown(share: f64, examples: &[String]) -> String {
    let shown: Vec<String> = examples.iter().map(|text| format!("`{text}`")).collect();
    let shown = if shown.is_empty() { String::new() } else { format!(", for example in {}", shown.join(", ")) };
    format!(
        "{:.1}% of the tokens are unknown to the tokenizer (`<unk>`){shown}: use a tokenizer that was trained on such texts",
        100.0 * share
    )
}

/// Turns text into token shards, on all cores and in constant memory.
///
/// The result depends on the inputs and settings only: rows keep the order of the texts, and a run that was interrupted and
/// started again writes the same bytes as an uninterrupted one. `progress` is called after every chunk; if it returns
/// [`ControlFlow::Break`], the run stops and keeps its finished shards. Only one process at a time may prepare into a folder.
///
/// # Errors
/// [`Error::Interrupted`] after a break; [`Error::OtherParameters`] if the folder holds shards made with other parameters; and
/// errors of settings, texts and the disk. Finished shards survive every error.
pub fn prepare(
    config: &PrepareConfig,
    tokenizer: &Tokenizer,
    progress: &mut (dyn FnMut(&Progress) -> ControlFlow<()> + Send),
) -> Result<PrepareReport> {
    config.check()?;
    let eos_id = if config.eos.target || config.eos.condition { Some(tokenizer.eos_id()?) } else { None };
    let mut columns = vec![config.target_column.as_str()];
    columns.extend(config.condition_column.as_deref());
    let source = Source::open(&config.inputs, &columns, config.plain_text)?;
    let manifest = begin_or_continue(config, parameters(config, tokenizer, &source)?)?;
    let kept_shards = manifest.shards.len();
    let mut sink = Sink::new(config, tokenizer, manifest);

    if !sink.manifest.complete {
        let skip = sink.progress.source_rows;
        let encoder = Encoder {
            tokenizer,
            target_eos: eos_id.filter(|_| config.eos.target),
            condition_eos: eos_id.filter(|_| config.eos.condition),
            unknown: tokenizer.unk_id(),
        };
        std::thread::scope(|threads| {
            // Reading runs ahead on its own thread, which ends when the receiver is dropped.
            let (sender, receiver) = bounded(2);
            let per_shard = config.documents_per_shard;
            threads.spawn(move || read_chunks(source.rows(), skip, per_shard, &sender));
            run(&encoder, &mut sink, &receiver, progress)
        })?;
        if sink.progress.rows == 0 {
            return Err(Error::Config(format!(
                "no document of the input holds any text in `{}`",
                config.target_column
            )));
        }
    }
    let total = sink.progress;
    if let Some(limit) = config.max_unknown.filter(|&limit| total.unknown_share() > limit) {
        let found = describe_unknown(total.unknown_share(), &sink.unknown_examples);
        return Err(Error::Config(format!("{found}, or raise max_unknown, which is {limit}")));
    }
    if !sink.manifest.complete {
        sink.manifest.complete = true;
        sink.manifest.save(&config.output)?;
    }
    let empty_documents = total.source_rows - total.documents;
    Ok(PrepareReport { total, empty_documents, kept_shards, unknown_examples: sink.unknown_examples })
}

/// Encodes each chunk while the previous one is written.
fn run(
    encoder: &Encoder<'_>,
    sink: &mut Sink<'_>,
    receiver: &Receiver<Result<Chunk>>,
    progress: &mut (dyn FnMut(&Progress) -> ControlFlow<()> + Send),
) -> Result<()> {
    let mut encoded: Option<EncodedChunk> = None;
    loop {
        let chunk = receiver.recv().ok().transpose()?;
        let done = chunk.is_none();
        let before = encoded.take();
        let (next, written) = rayon::join(
            || chunk.map(|chunk| encoder.encode(&chunk)).transpose(),
            || before.map(|c| sink.take(c)).transpose(),
        );
        if written?.is_some() && progress(&sink.progress).is_break() {
            return Err(Error::Interrupted { path: sink.config.output.clone(), shards: sink.manifest.shards.len() });
        }
        encoded = next?;
        if done {
            return Ok(());
        }
    }
}

/// Writes encoded documents to shards, in order.
struct Sink<'a> {
    config: &'a PrepareConfig,
    tokenizer: &'a Tokenizer,
    manifest: Manifest,
    progress: Progress,
    unknown_examples: Vec<String>,
    open: Option<OpenShard>,
}

struct OpenShard {
    file: String,
    writer: ShardWriter,
    packer: Packer,
    source_rows: u64,
    documents: u64,
    unknown: u64,
}

impl<'a> Sink<'a> {
    fn new(config: &'a PrepareConfig, tokenizer: &'a Tokenizer, manifest: Manifest) -> Self {
        let mut progress = Progress::default();
        for shard in &manifest.shards {
            progress.source_rows += shard.source_rows;
            progress.documents += shard.documents;
            progress.rows += shard.rows;
            progress.tokens += shard.tokens;
            progress.condition_tokens += shard.condition_tokens;
            progress.unknown += shard.unknown;
            progress.shards += 1;
        }
        Self { config, tokenizer, manifest, progress, unknown_examples: Vec::new(), open: None }
    }

    fn take(&mut self, chunk: EncodedChunk) -> Result<()> {
        let free = EXAMPLES - self.unknown_examples.len();
        self.unknown_examples.extend(chunk.unknown_examples.into_iter().take(free));
        for document in chunk.documents {
            let shard = match &mut self.open {
                Some(shard) => shard,
                None => self.open.insert(OpenShard::create(self.config, self.manifest.shards.len())?),
            };
            let (rows, tokens, condition_tokens) =
                (shard.writer.rows, shard.writer.tokens, shard.writer.condition_tokens);
            shard.source_rows += 1;
            self.progress.source_rows += 1;
            if let Some(Document { target, condition, unknown }) = document {
                shard.documents += 1;
                shard.unknown += unknown;
                self.progress.documents += 1;
                self.progress.unknown += unknown;
                let OpenShard { packer, writer, .. } = shard;
                packer.push(target, |row| writer.push(row, &condition))?;
            }
            self.progress.rows += shard.writer.rows - rows;
            self.progress.tokens += shard.writer.tokens - tokens;
            self.progress.condition_tokens += shard.writer.condition_tokens - condition_tokens;
        }
        match self.open.take_if(|_| chunk.ends_shard) {
            Some(shard) => self.finish(shard),
            None => Ok(()),
        }
    }

    fn finish(&mut self, shard: OpenShard) -> Result<()> {
        let OpenShard { file, mut writer, packer, source_rows, documents, unknown } = shard;
        if let Some(rest) = packer.finish() {
            writer.push(&rest, &[])?;
            self.progress.rows += 1;
            self.progress.tokens += rest.len() as u64;
        }
        let (rows, tokens, condition_tokens) = (writer.rows, writer.tokens, writer.condition_tokens);
        let bytes = writer.finish(&ShardMetadata {
            format_version: FORMAT_VERSION,
            tokenizer: self.tokenizer.fingerprint().to_owned(),
            vocab_size: self.tokenizer.vocab_size(),
            eos: self.config.eos,
            packing: self.config.packing,
            source: self.manifest.parameters.inputs.iter().map(|input| input.name.clone()).collect(),
            target_column: self.config.target_column.clone(),
            condition_column: self.config.condition_column.clone(),
            documents,
            rows,
            tokens,
            condition_tokens,
        })?;
        self.manifest.shards.push(FinishedShard {
            file,
            bytes,
            source_rows,
            documents,
            rows,
            tokens,
            condition_tokens,
            unknown,
        });
        self.progress.shards += 1;
        self.manifest.save(&self.config.output)
    }
}

impl OpenShard {
    fn create(config: &PrepareConfig, number: usize) -> Result<Self> {
        let file = format!("shard-{number:05}.parquet");
        let writer = ShardWriter::create(&config.output.join(&file), config.condition_column.is_some())?;
        Ok(Self { file, writer, packer: Packer::new(config.packing)?, source_rows: 0, documents: 0, unknown: 0 })
    }
}

fn parameters(config: &PrepareConfig, tokenizer: &Tokenizer, source: &Source) -> Result<Parameters> {
    let inputs = source.files().iter().map(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Input { name, bytes: fs::metadata(file).map_err(Error::io("open", file))?.len() })
    });
    Ok(Parameters {
        format_version: FORMAT_VERSION,
        tokenizer: tokenizer.fingerprint().to_owned(),
        inputs: inputs.collect::<Result<_>>()?,
        plain_text: config.plain_text,
        target_column: config.target_column.clone(),
        condition_column: config.condition_column.clone(),
        eos: config.eos,
        packing: config.packing,
        documents_per_shard: config.documents_per_shard,
    })
}

/// The manifest to continue from: that of an earlier run with the same parameters, or an empty one.
fn begin_or_continue(config: &PrepareConfig, parameters: Parameters) -> Result<Manifest> {
    let folder = &config.output;
    fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
    elf_files::sweep(folder).map_err(Error::io("remove unfinished files in", folder))?;
    let found = match Manifest::load(folder) {
        Err(Error::Damaged { .. }) if config.overwrite => None,
        other => other?,
    };
    if let Some(mut manifest) = found {
        match manifest.parameters.difference(&parameters) {
            None => {
                manifest.forget_lost_shards(folder);
                return Ok(manifest);
            }
            Some(difference) if !config.overwrite => {
                return Err(Error::OtherParameters { path: folder.clone(), difference });
            }
            Some(_) => {}
        }
    } else if !config.overwrite && holds_parquet(folder)? {
        let difference = format!("it has Parquet files, but no {MANIFEST} that says how they were made");
        return Err(Error::OtherParameters { path: folder.clone(), difference });
    }
    remove_shards(folder)?;
    let manifest = Manifest { parameters, complete: false, shards: Vec::new() };
    manifest.save(folder)?;
    Ok(manifest)
}

fn holds_parquet(folder: &Path) -> Result<bool> {
    Ok(files_of(folder)?.iter().any(|path| path.extension().is_some_and(|e| e == "parquet")))
}

/// Removes the shards of a preparation, recognised by their names. Other files of the folder stay.
fn remove_shards(folder: &Path) -> Result<()> {
    for path in files_of(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("shard-").and_then(|rest| rest.strip_suffix(".parquet"));
        if number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || Error::io("list", folder);
    fs::read_dir(folder).map_err(list())?.map(|entry| entry.map(|e| e.path()).map_err(list())).collect()
}
