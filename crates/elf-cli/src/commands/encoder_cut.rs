//! `elf encoder cut`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::Precision;
use elf_data::{Tokenizer, WordPieceCut};
use elf_encoder::{BertEncoder, EncoderSource, TextEncoder as _};
use elf_hub::What;
use tch::Device;

use super::encoder_train::{StoredAs, command_line};
use crate::hub;
use elf_lm::json_files::write;
use elf_lm::text::text_column::TextColumn;

/// Texts that are counted together.
const CHUNK: usize = 4096;

#[derive(Debug, Args)]
pub struct CutArgs {
    /// An encoder of the BERT family: a folder or a Hugging Face id.
    source: PathBuf,
    /// Keep this many layers, counted from the embeddings; the output of the last of them becomes the latents. All by
    /// default.
    #[arg(long)]
    layers: Option<usize>,
    /// Texts whose word pieces are counted, FILE:COLUMN; the vocabulary is cut by the counts. Without it the vocabulary
    /// stays.
    #[arg(long, value_name = "FILE:COLUMN", num_args = 1..)]
    count_over: Vec<TextColumn>,
    /// Keep the pieces that were counted this many times; special tokens and single characters are kept in any case.
    #[arg(long, default_value_t = 2)]
    min_count: u64,
    /// The folder to write to, which must not exist yet.
    #[arg(long)]
    output: PathBuf,
    /// Number format of model.safetensors.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: StoredAs,
    /// What the model card should say about the source and its licence.
    #[arg(long)]
    note: Option<String>,
}

/// What was kept, for the card.
struct Kept {
    layers: (i64, i64),
    words: (usize, usize),
    parameters: u64,
    describe: String,
}

pub fn run(args: &CutArgs) -> Result<ExitCode> {
    if fs::read_dir(&args.output).map_or_else(|_| args.output.exists(), |mut inside| inside.next().is_some()) {
        bail!("{} is there already: choose another --output", args.output.display());
    }
    let folder = hub::locate(&args.source, What::Encoder)?;
    let unusable = || format!("the encoder {} cannot be cut", args.source.display());
    let whole =
        BertEncoder::load(&EncoderSource::folder(&folder), Device::Cpu, Precision::F32).with_context(unusable)?;
    let source = EncoderSource { layer: args.layers, ..EncoderSource::folder(&folder) };
    let mut encoder = BertEncoder::load(&source, Device::Cpu, Precision::F32).with_context(unusable)?;
    let mut tokenizer = Tokenizer::load(&folder)?;
    let words = tokenizer.vocab_size();
    if !args.count_over.is_empty() {
        let smaller = counted(&tokenizer, &args.count_over)?.cut(args.min_count)?;
        let kept: Vec<i64> = smaller.kept.iter().map(|&id| i64::from(id)).collect();
        encoder = encoder.with_words(&kept)?;
        tokenizer = smaller.tokenizer;
    }
    let kept = Kept {
        layers: (encoder.config().num_hidden_layers, whole.config().num_hidden_layers),
        words: (tokenizer.vocab_size(), words),
        parameters: encoder.params().numel(),
        describe: encoder.describe(),
    };
    let cannot = || format!("cannot write {}", args.output.display());
    let aside = elf_files::begin_folder(&args.output).with_context(cannot)?;
    encoder.save(aside.path(), args.dtype.kind())?;
    tokenizer.save(aside.path().join("tokenizer.json"))?;
    write(&aside.path().join("README.md"), card(args, &kept, &folder))?;
    elf_files::finish_folder(aside, &args.output).with_context(cannot)?;
    println!(
        "{}, {} words of {words}, {} parameters; written to {}",
        kept.describe,
        kept.words.0,
        kept.parameters,
        args.output.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn counted<'a>(tokenizer: &'a Tokenizer, columns: &[TextColumn]) -> Result<WordPieceCut<'a>> {
    let mut cut = WordPieceCut::new(tokenizer)?;
    let mut silent = elf_lm::Silent;
    let host = hub::host(&mut silent);
    for column in columns {
        let mut texts = column.open(&host)?.texts();
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

fn card(args: &CutArgs, kept: &Kept, folder: &Path) -> String {
    let licence = stated_licence(folder);
    let front = licence.as_ref().map_or(String::new(), |licence| format!("license: {licence}\n"));
    let texts = match args.count_over.is_empty() {
        true => "all of the source".to_owned(),
        false => {
            let columns: Vec<_> = args.count_over.iter().map(|c| format!("`{c}`")).collect();
            format!(
                "pieces seen at least {} times in {}, special tokens, single characters",
                args.min_count,
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
        args.note.as_deref().unwrap_or("not stated"),
        licence.as_deref().unwrap_or("that of the source, which states none in its card"),
        command_line(std::env::args().skip(1)),
    )
}
