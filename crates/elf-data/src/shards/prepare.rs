//! Text to token shards.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::manifest::{FinishedShard, Input, Manifest, Parameters};
use super::writer::ShardWriter;
use super::{EosOptions, FORMAT_VERSION, MANIFEST, ShardMetadata};
use crate::error::{Error, Result};
use crate::packing::{Packer, Packing};
use crate::source::{PlainText, Source, TextRow};
use crate::tokenizer::Tokenizer;

/// Documents are tokenised in chunks of at most this many rows or bytes: enough to keep all cores busy, little enough to hold.
const ROWS_PER_CHUNK: usize = 1024;
const BYTES_PER_CHUNK: usize = 8 << 20;

/// What to prepare, from where, to where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareConfig {
    /// Text files or folders; see [`source`](crate::source).
    pub inputs: Vec<PathBuf>,
    /// The folder for the shards; made if need be.
    pub output: PathBuf,
    /// The text column of the targets; `text` for plain text files.
    pub target_column: String,
    /// The text column of the conditions, for conditional tasks.
    #[serde(default)]
    pub condition_column: Option<String>,
    /// What a document is in a plain text file.
    #[serde(default)]
    pub plain_text: PlainText,
    /// Which columns end in EOS.
    #[serde(default)]
    pub eos: EosOptions,
    /// How documents become rows.
    #[serde(default)]
    pub packing: Packing,
    /// Documents to a shard. What is interrupted is lost up to the last finished shard.
    #[serde(default = "default_documents_per_shard")]
    pub documents_per_shard: usize,
    /// Replace shards in `output` that were made with other parameters, instead of refusing.
    #[serde(default)]
    pub overwrite: bool,
}

fn default_documents_per_shard() -> usize {
    50_000
}

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
        }
    }

    fn check(&self) -> Result<()> {
        let refuse = |message: &str| Err(Error::Config(message.to_owned()));
        if self.documents_per_shard == 0 {
            return refuse("documents_per_shard must be at least 1");
        }
        if matches!(self.packing, Packing::Concat { .. }) {
            if self.condition_column.is_some() {
                return refuse(
                    "packing joins targets across documents, which leaves no place for conditions: use packing `none` with a condition column",
                );
            }
            if !self.eos.target {
                return refuse("packing separates documents by EOS: turn EOS on for targets");
            }
        }
        if self.eos.condition && self.condition_column.is_none() {
            return refuse("EOS after conditions is asked for, but no condition column is named");
        }
        Packer::new(self.packing).map(drop)
    }
}

/// How far a preparation is. Numbers include the shards of earlier, interrupted runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Rows of the source that are done, empty documents included.
    pub source_rows: u64,
    /// Documents that held text.
    pub documents: u64,
    /// Rows written.
    pub rows: u64,
    /// Target ids written.
    pub tokens: u64,
    /// Condition ids written.
    pub condition_tokens: u64,
    /// Finished shards.
    pub shards: usize,
}

/// A finished preparation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PrepareReport {
    /// The totals.
    pub total: Progress,
    /// Documents that were left out because their target holds no text.
    pub empty_documents: u64,
    /// Shards that an earlier run had finished and this one kept.
    pub kept_shards: usize,
}

/// Turns text into token shards, on all cores and in constant memory.
///
/// The result depends on the inputs and settings only: rows keep the order of the texts, and a run that was interrupted and
/// started again writes the same bytes as one that was not. `progress` is called after every chunk; when it returns
/// [`ControlFlow::Break`], the run stops and keeps its finished shards. Two processes must not prepare into one folder at a time.
///
/// # Errors
/// [`Error::Interrupted`] after a break; [`Error::OtherParameters`] if the folder holds shards made otherwise; and whatever can be
/// wrong with settings, texts and the disk. Finished shards survive every error.
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
    let manifest = begin_or_go_on(config, parameters(config, tokenizer, &source)?)?;
    let kept_shards = manifest.shards.len();
    let mut sink = Sink::new(config, tokenizer, manifest);

    if !sink.manifest.complete {
        let skip = sink.progress.source_rows;
        let encoder = Encoder {
            tokenizer,
            target_eos: eos_id.filter(|_| config.eos.target),
            condition_eos: eos_id.filter(|_| config.eos.condition),
        };
        std::thread::scope(|threads| {
            // Reading runs ahead on a thread of its own; it ends when the receiver goes, however this closure is left.
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
        sink.manifest.complete = true;
        sink.manifest.save(&config.output)?;
    }
    let total = sink.progress;
    Ok(PrepareReport { total, empty_documents: total.source_rows - total.documents, kept_shards })
}

/// Encodes one chunk while the one before is being written.
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

struct Chunk {
    rows: Vec<TextRow>,
    ends_shard: bool,
}

fn read_chunks(
    rows: impl Iterator<Item = Result<TextRow>>,
    skip: u64,
    per_shard: usize,
    sender: &Sender<Result<Chunk>>,
) {
    let mut chunk = Chunk { rows: Vec::new(), ends_shard: false };
    let (mut bytes, mut in_shard) = (0usize, 0usize);
    for (i, row) in rows.enumerate() {
        let row = match row {
            Ok(_) if (i as u64) < skip => continue,
            Ok(row) => row,
            Err(e) => {
                // If nobody listens any more, there is nobody to tell.
                let _ = sender.send(Err(e));
                return;
            }
        };
        bytes += row.iter().map(String::len).sum::<usize>();
        in_shard += 1;
        chunk.rows.push(row);
        chunk.ends_shard = in_shard == per_shard;
        if chunk.ends_shard || chunk.rows.len() >= ROWS_PER_CHUNK || bytes >= BYTES_PER_CHUNK {
            in_shard %= per_shard;
            bytes = 0;
            let full = std::mem::replace(&mut chunk, Chunk { rows: Vec::new(), ends_shard: false });
            if sender.send(Ok(full)).is_err() {
                return;
            }
        }
    }
    // An empty last chunk still closes an open shard; the sink ignores it where none is open.
    chunk.ends_shard = true;
    let _ = sender.send(Ok(chunk));
}

struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    target_eos: Option<i32>,
    condition_eos: Option<i32>,
}

struct EncodedChunk {
    /// Target and condition of each row; `None` where the target holds no text.
    rows: Vec<Option<(Vec<i32>, Vec<i32>)>>,
    ends_shard: bool,
}

impl Encoder<'_> {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        let encode = |row: &TextRow| {
            let mut target = self.tokenizer.encode(row.first().map_or("", String::as_str))?;
            if target.is_empty() {
                return Ok(None);
            }
            target.extend(self.target_eos);
            let mut condition = self.tokenizer.encode(row.get(1).map_or("", String::as_str))?;
            condition.extend(self.condition_eos);
            Ok(Some((target, condition)))
        };
        Ok(EncodedChunk {
            rows: chunk.rows.par_iter().map(encode).collect::<Result<_>>()?,
            ends_shard: chunk.ends_shard,
        })
    }
}

/// Takes encoded documents in order and makes shards of them.
struct Sink<'a> {
    config: &'a PrepareConfig,
    tokenizer: &'a Tokenizer,
    manifest: Manifest,
    progress: Progress,
    open: Option<OpenShard>,
}

struct OpenShard {
    file: String,
    writer: ShardWriter,
    packer: Packer,
    source_rows: u64,
    documents: u64,
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
            progress.shards += 1;
        }
        Self { config, tokenizer, manifest, progress, open: None }
    }

    fn take(&mut self, chunk: EncodedChunk) -> Result<()> {
        for document in chunk.rows {
            let shard = match &mut self.open {
                Some(shard) => shard,
                None => self.open.insert(OpenShard::create(self.config, self.manifest.shards.len())?),
            };
            let (rows, tokens, condition_tokens) =
                (shard.writer.rows, shard.writer.tokens, shard.writer.condition_tokens);
            shard.source_rows += 1;
            self.progress.source_rows += 1;
            if let Some((target, condition)) = document {
                shard.documents += 1;
                self.progress.documents += 1;
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
        let OpenShard { file, mut writer, packer, source_rows, documents } = shard;
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
        });
        self.progress.shards += 1;
        self.manifest.save(&self.config.output)
    }
}

impl OpenShard {
    fn create(config: &PrepareConfig, number: usize) -> Result<Self> {
        let file = format!("shard-{number:05}.parquet");
        let writer = ShardWriter::create(&config.output.join(&file), config.condition_column.is_some())?;
        Ok(Self { file, writer, packer: Packer::new(config.packing)?, source_rows: 0, documents: 0 })
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

/// The manifest to go on from: that of an earlier run with the same parameters, or an empty one.
fn begin_or_go_on(config: &PrepareConfig, parameters: Parameters) -> Result<Manifest> {
    let folder = &config.output;
    fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
    elf_files::sweep(folder).map_err(Error::io("remove what is unfinished in", folder))?;
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

/// Removes the shards that a preparation wrote, by their names; other files in the folder are not ours to remove.
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
