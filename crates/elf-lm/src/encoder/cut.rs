//! A smaller encoder, cut out of one of the BERT family.

use std::fs;
use std::path::{Path, PathBuf};

use elf_core::Precision;
use elf_data::{Tokenizer, WordPieceCut};
use elf_encoder::{BertEncoder, EncoderSource, TextEncoder as _};
use elf_hub::What;
use tch::{Device, Kind};

use super::folder::is_taken;
use crate::error::{Context, fail};
use crate::json_files::write;
use crate::text::text_column::TextColumn;
use crate::{Host, Result};

/// Texts that are counted together.
const CHUNK: usize = 4096;

/// What is kept of which encoder.
#[derive(Debug, Clone)]
pub struct CutSettings {
    /// An encoder of the BERT family: a folder or a Hugging Face id.
    pub source: PathBuf,
    /// Layers to keep, counted from the embeddings; `None` for all.
    pub layers: Option<usize>,
    /// Texts whose word pieces are counted; without any the vocabulary stays.
    pub count_over: Vec<TextColumn>,
    /// Occurrences from which on a piece is kept; special tokens and single characters are kept in any case.
    pub min_count: u64,
    /// The folder to write to, which must not exist yet.
    pub output: PathBuf,
    /// The kind of the numbers in the file of weights.
    pub kind: Kind,
    /// What the card says about the source and its licence.
    pub note: Option<String>,
    /// The command that the card names.
    pub command: String,
}

/// What was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutEncoder {
    /// Layers kept, and layers of the source.
    pub layers: (i64, i64),
    /// Vocabulary entries kept, and those of the source.
    pub words: (usize, usize),
    /// Numbers in the parameters.
    pub parameters: u64,
    /// Family and size in a few words.
    pub describe: String,
}

/// Writes the folder of a smaller encoder.
///
/// # Errors
/// If the output exists, the source is not of the BERT family or is damaged, a text cannot be read, or a file cannot be written.
pub fn cut(settings: &CutSettings, host: &Host) -> Result<CutEncoder> {
    let CutSettings { source, output, .. } = settings;
    if is_taken(output) {
        fail!(place(output), "{} already exists: choose another --output", output.display());
    }
    let folder = host.locate(source, What::Encoder)?;
    let load = |layer| {
        let source = EncoderSource { layer, ..EncoderSource::folder(&folder) };
        BertEncoder::load(&source, Device::Cpu, Precision::F32)
            .with_context(|| format!("the encoder {} cannot be cut", settings.source.display()))
    };
    let whole_layers = load(None)?.config().num_hidden_layers;
    let mut encoder = load(settings.layers)?;
    let mut tokenizer = Tokenizer::load(&folder)?;
    let words = tokenizer.vocab_size();
    if !settings.count_over.is_empty() {
        let smaller = counted(&tokenizer, &settings.count_over, host)?.cut(settings.min_count)?;
        let kept: Vec<i64> = smaller.kept.iter().map(|&id| i64::from(id)).collect();
        encoder = encoder.with_words(&kept)?;
        tokenizer = smaller.tokenizer;
    }
    let kept = CutEncoder {
        layers: (encoder.config().num_hidden_layers, whole_layers),
        words: (tokenizer.vocab_size(), words),
        parameters: encoder.params().numel(),
        describe: encoder.describe(),
    };
    let cannot = || format!("cannot write {}", output.display());
    let aside = elf_files::begin_folder(output).with_context(cannot)?;
    encoder.save(aside.path(), settings.kind)?;
    tokenizer.save(aside.path().join("tokenizer.json"))?;
    write(&aside.path().join("README.md"), card(settings, &kept, &folder))?;
    elf_files::finish_folder(aside, output).with_context(cannot)?;
    Ok(kept)
}

fn counted<'a>(tokenizer: &'a Tokenizer, columns: &[TextColumn], host: &Host) -> Result<WordPieceCut<'a>> {
    let mut cut = WordPieceCut::new(tokenizer)?;
    for column in columns {
        let mut texts = column.open(host)?.texts();
        loop {
            let some: Vec<String> = texts.by_ref().take(CHUNK).collect::<Result<_, _>>()?;
            if some.is_empty() {
                break;
            }
            cut.count(&some)?;
        }
    }
    Ok(cut)
}

/// The licence that the source's own card states in its first lines.
fn stated_licence(folder: &Path) -> Option<String> {
    let card = fs::read_to_string(folder.join("README.md")).ok()?;
    let front = card.strip_prefix("---")?.split("\n---").next()?.to_owned();
    front.lines().find_map(|line| line.strip_prefix("license:")).map(|licence| licence.trim().to_owned())
}

fn card(settings: &CutSettings, kept: &CutEncoder, folder: &Path) -> String {
    let licence = stated_licence(folder);
    let front = licence.as_ref().map_or(String::new(), |licence| format!("license: {licence}\n"));
    let texts = match settings.count_over.is_empty() {
        true => "all of the source".to_owned(),
        false => {
            let columns: Vec<_> = settings.count_over.iter().map(|c| format!("`{c}`")).collect();
            format!(
                "pieces seen at least {} times in {}, special tokens, single characters",
                settings.min_count,
                columns.join(", ")
            )
        }
    };
    format!(
        "---\nlibrary_name: transformers\ntags: [text-encoder]\n{front}---\n\n\
         # A smaller encoder\n\n\
         Layers and words of a pre-trained encoder, unchanged but for rounding, cut out with `elf encoder cut`. For\n\
         `encoder_model_name` of an ELF configuration, or Hugging Face's `AutoModel`. [CLS] goes before a text, [SEP] behind it.\n\n\
         | | |\n| --- | --- |\n\
         | encoder | {}, {} parameters |\n\
         | layers | the first {} of {} |\n\
         | vocabulary | {} entries of {}: {texts} (`tokenizer.json`) |\n\
         | source | {} |\n\
         | licence | {} |\n\n\
         ## Command\n\n```sh\n{}\n```\n",
        kept.describe,
        kept.parameters,
        kept.layers.0,
        kept.layers.1,
        kept.words.0,
        kept.words.1,
        settings.note.as_deref().unwrap_or("not stated"),
        licence.as_deref().unwrap_or("that of the source, which states none in its card"),
        settings.command,
    )
}
