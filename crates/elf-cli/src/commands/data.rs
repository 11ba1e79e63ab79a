//! `elf data`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use elf_data::selection::{Excluded, SelectionConfig, select};
use elf_data::shards::{EosOptions, Lengths, PrepareConfig, inspect, prepare};
use elf_data::source::{PlainText, Source, TEXT_COLUMN};
use elf_data::{Packing, Tokenizer, word_list};
use elf_hub::What;

use super::output_file;
use crate::printing::{note, out};
use crate::standard_streams::is_output;
use crate::{hub, progress};
use elf_lm::text::text_column::TextColumn;
use elf_lm::text::text_file::check_writable;

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Select texts from a corpus: first paragraphs, no duplicates, none too long. Writes JSON Lines.
    Select(SelectArgs),
    /// Convert text columns to token shards. Safe to interrupt and run again.
    Prepare(PrepareArgs),
    /// Count the words of texts: the words.txt by which `elf sample --whole-words` reads.
    Words(WordsArgs),
    /// Show what a folder of token shards contains.
    Inspect(InspectArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PackingName {
    /// One row per document.
    None,
    /// Documents joined with EOS and cut to rows of --max-length tokens.
    Concat,
}

#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Parquet, JSONL or plain text files, or folders of them; or Hugging Face ids of data sets.
    #[arg(long, required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// The column with the text to generate.
    #[arg(long, default_value = TEXT_COLUMN)]
    target_column: String,
    /// The column with the text to generate from, for conditional tasks.
    #[arg(long)]
    condition_column: Option<String>,
    /// A tokenizer.json, the folder containing one, or a Hugging Face id.
    #[arg(long)]
    tokenizer: PathBuf,
    /// Append EOS to every target.
    #[arg(long)]
    eos_target: bool,
    /// Append EOS to every condition, as in the published data.
    #[arg(long)]
    eos_condition: bool,
    /// How documents become rows.
    #[arg(long, value_enum, default_value = "none")]
    packing: PackingName,
    /// Tokens per row, for --packing concat.
    #[arg(long)]
    max_length: Option<usize>,
    /// Treat each plain text file (not each line) as one document.
    #[arg(long)]
    whole_files: bool,
    /// Refuse the texts if a larger share of their tokens, from 0 to 1, is unknown to the tokenizer.
    #[arg(long, value_name = "SHARE")]
    max_unknown: Option<f64>,
    /// Replace shards in the output folder that were made with other settings.
    #[arg(long)]
    overwrite: bool,
    /// The folder to write the shards to.
    #[arg(long)]
    output: PathBuf,
}

#[derive(Debug, Args)]
pub struct SelectArgs {
    /// Parquet, JSONL or plain text files, or folders of them; or Hugging Face ids of data sets.
    #[arg(long, required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// A column to write, optionally under a new name; may be repeated.
    #[arg(long, required = true, value_name = "COLUMN[=NAME]")]
    column: Vec<String>,
    /// Keep only this column's text up to the first line break.
    #[arg(long, value_name = "COLUMN")]
    first_paragraph: Vec<String>,
    /// Keep only this column's first sentence, and leave out rows whose text does not begin with a complete one.
    #[arg(long, value_name = "COLUMN")]
    first_sentence: Vec<String>,
    /// Leave out rows whose text in this column has more tokens than this. Needs --tokenizer.
    #[arg(long, value_name = "COLUMN=TOKENS", value_parser = column_limit, requires = "tokenizer")]
    max_tokens: Vec<(String, usize)>,
    /// Leave out rows with the same text in this column as an earlier row (in all given columns, if repeated).
    #[arg(long, value_name = "COLUMN")]
    unique: Vec<String>,
    /// Of the texts in this column that are the same but for one word, keep the first few. Texts of fewer than four words
    /// all stay.
    #[arg(long, value_name = "COLUMN=TEXTS", value_parser = column_limit)]
    near_duplicates: Vec<(String, usize)>,
    /// Leave out rows whose text in this column also occurs in that column of this file (another split, say); may be
    /// repeated.
    #[arg(long, value_name = "COLUMN=FILE:COLUMN", value_parser = excluded_column)]
    without: Vec<(String, TextColumn)>,
    /// Keep only every n-th of the remaining rows.
    #[arg(long, default_value_t = 1)]
    every_nth: usize,
    /// A tokenizer.json, the folder containing one, or a Hugging Face id.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// The JSON Lines file to write.
    #[arg(long, value_parser = output_file())]
    output: PathBuf,
}

fn column_limit(text: &str) -> Result<(String, usize), String> {
    let parsed = text.rsplit_once('=').and_then(|(column, most)| Some((column.to_owned(), most.parse().ok()?)));
    parsed
        .filter(|(_, most)| *most > 0)
        .ok_or_else(|| "write it as COLUMN=NUMBER with a number from 1 on, for example description=63".to_owned())
}

fn excluded_column(text: &str) -> Result<(String, TextColumn), String> {
    let (column, other) =
        text.split_once('=').ok_or("write it as COLUMN=FILE:COLUMN, for example text=train.jsonl:text")?;
    Ok((column.to_owned(), other.parse()?))
}

#[derive(Debug, Args)]
pub struct WordsArgs {
    /// Parquet, JSONL or plain text files, or folders of them; or Hugging Face ids of data sets.
    #[arg(long, required = true, num_args = 1..)]
    input: Vec<PathBuf>,
    /// The column with the texts.
    #[arg(long, default_value = TEXT_COLUMN)]
    column: String,
    /// The model's tokenizer, which must be a WordPiece one: a tokenizer.json, the folder containing one, or a Hugging Face id.
    #[arg(long)]
    tokenizer: PathBuf,
    /// The file to write: words.txt in a model's folder.
    #[arg(long, value_parser = output_file())]
    output: PathBuf,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A folder of token shards, or single shards; or Hugging Face ids of data sets.
    #[arg(required = true)]
    shards: Vec<PathBuf>,
    /// Number of rows to show.
    #[arg(long, default_value_t = 3)]
    rows: usize,
    /// Also show rows as text, with this tokenizer.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

pub fn run(command: DataCommand) -> Result<ExitCode> {
    match command {
        DataCommand::Select(args) => run_select(args),
        DataCommand::Prepare(args) => run_prepare(args),
        DataCommand::Words(args) => run_words(&args),
        DataCommand::Inspect(args) => run_inspect(args),
    }
}

fn run_select(args: SelectArgs) -> Result<ExitCode> {
    let (mut columns, mut renamed) = (Vec::new(), BTreeMap::new());
    for column in &args.column {
        let (column, name) = column.split_once('=').unwrap_or((column, column));
        columns.push(column);
        if name != column {
            renamed.insert(column.to_owned(), name.to_owned());
        }
    }
    check_writable(&args.output)?;
    let source = Source::open(&hub::locate_all(&args.input, What::Dataset)?, &columns, PlainText::Lines)?;
    let tokenizer = match &args.tokenizer {
        Some(name) => Some(Tokenizer::load(hub::locate(name, What::Tokenizer)?)?),
        None => None,
    };
    let config = SelectionConfig {
        first_paragraph: args.first_paragraph.into_iter().collect(),
        first_sentence: args.first_sentence.into_iter().collect(),
        max_tokens: args.max_tokens.into_iter().collect(),
        unique: args.unique.into_iter().collect(),
        near_duplicates: args.near_duplicates.into_iter().collect(),
        every_nth: args.every_nth,
        renamed,
    };
    let mut excluded = Excluded::default();
    let mut silent = elf_lm::Silent;
    let host = hub::host(&mut silent);
    for (column, other) in &args.without {
        let texts = other.open(&host)?;
        if texts.texts().next().is_none() {
            bail!("--without: {} holds no texts", other.input.display());
        }
        excluded.add(column, texts.texts())?;
    }
    let report = select(&source, &config, &excluded, tokenizer.as_ref(), &args.output)
        .with_context(|| format!("selecting from {}", args.input[0].display()))?;
    let told = format!(
        "{} of {} rows written to {} (left out: {} empty, {} without a whole sentence, {} too long, {} repeated, {} near duplicates, {} in another split)",
        report.written,
        report.read,
        args.output.display(),
        report.empty,
        report.no_sentence,
        report.too_long,
        report.repeated,
        report.near_duplicates,
        report.excluded
    );
    tell(&args.output, &told)?;
    Ok(ExitCode::SUCCESS)
}

/// Says what was written to `output`: on standard output, unless that is what was written.
fn tell(output: &Path, told: &str) -> Result<()> {
    if is_output(output) {
        note!("{told}");
    } else {
        out!("{told}")?;
    }
    Ok(())
}

fn run_words(args: &WordsArgs) -> Result<ExitCode> {
    check_writable(&args.output)?;
    let inputs = hub::locate_all(&args.input, What::Dataset)?;
    let source = Source::open(&inputs, &[args.column.as_str()], PlainText::Lines)?;
    let words = word_list(&source, &Tokenizer::load(hub::locate(&args.tokenizer, What::Tokenizer)?)?)?;
    let lines: String = words.iter().map(|(word, count)| format!("{word} {count}\n")).collect();
    elf_files::write(&args.output, lines).with_context(|| format!("cannot write {}", args.output.display()))?;
    let told = format!("{} words written to {}", words.len(), args.output.display());
    tell(&args.output, &told)?;
    Ok(ExitCode::SUCCESS)
}

fn run_prepare(args: PrepareArgs) -> Result<ExitCode> {
    let packing = match (args.packing, args.max_length) {
        (PackingName::None, None) => Packing::None,
        (PackingName::Concat, Some(max_length)) => Packing::Concat { max_length },
        (PackingName::None, Some(_)) => {
            bail!("--max-length belongs to --packing concat; without packing, rows are cut in training")
        }
        (PackingName::Concat, None) => bail!("--packing concat needs --max-length"),
    };
    let tokenizer = Tokenizer::load(hub::locate(&args.tokenizer, What::Tokenizer)?)?;
    let config = PrepareConfig {
        condition_column: args.condition_column,
        plain_text: if args.whole_files { PlainText::WholeFile } else { PlainText::Lines },
        eos: EosOptions { target: args.eos_target, condition: args.eos_condition },
        packing,
        overwrite: args.overwrite,
        max_unknown: args.max_unknown,
        ..PrepareConfig::new(hub::locate_all(&args.input, What::Dataset)?, args.output, args.target_column)
    };
    let stop = progress::stop_on_interrupt()?;
    let spinner = progress::spinner();
    let report = prepare(&config, &tokenizer, &mut |done| {
        spinner.set_message(format!("{} documents, {} tokens, {} shards", done.documents, done.tokens, done.shards));
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    spinner.finish_and_clear();
    let report = report?;
    let total = report.total;
    out!(
        "{} documents ({} empty ones left out) became {} rows, {} tokens{} in {} shard(s); written to {}",
        total.documents,
        report.empty_documents,
        total.rows,
        total.tokens,
        if total.condition_tokens > 0 {
            format!(" and {} condition tokens", total.condition_tokens)
        } else {
            String::new()
        },
        total.shards,
        config.output.display()
    )?;
    if report.kept_shards > 0 {
        out!("{} shard(s) were there already and were kept", report.kept_shards)?;
    }
    if let Some(warning) = report.unknown_warning() {
        note!("warning: {warning}");
    }
    Ok(ExitCode::SUCCESS)
}

fn run_inspect(args: InspectArgs) -> Result<ExitCode> {
    let tokenizer = match &args.tokenizer {
        Some(name) => Some(Tokenizer::load(hub::locate(name, What::Tokenizer)?)?),
        None => None,
    };
    let summary = inspect(&hub::locate_all(&args.shards, What::Dataset)?, args.rows)?;
    out!("{} rows in {} shard(s); {} tokens", summary.rows, summary.shards.len(), summary.tokens)?;
    let lengths = |what: &str, l: &Lengths| -> Result<()> {
        out!(
            "{what}: {} to {} tokens, mean {:.1}; percentiles 10/50/90/99: {}/{}/{}/{}",
            l.min,
            l.max,
            l.mean,
            l.p10,
            l.p50,
            l.p90,
            l.p99
        )
    };
    lengths("targets", &summary.target_lengths)?;
    if let Some(conditions) = &summary.condition_lengths {
        lengths("conditions", conditions)?;
    }
    match &summary.metadata {
        Some(m) => out!(
            "tokenizer {} ({} entries); packing {}; EOS after targets: {}, after conditions: {}; from {}",
            &m.tokenizer[..12.min(m.tokenizer.len())],
            m.vocab_size,
            serde_json::to_string(&m.packing)?,
            m.eos.target,
            m.eos.condition,
            m.source.join(", ")
        )?,
        None => out!("the shards do not say how they were made (another program wrote them)")?,
    }
    for (i, row) in summary.first.iter().enumerate() {
        let show = |ids: &[i32]| -> Result<String> {
            Ok(match &tokenizer {
                Some(tokenizer) => tokenizer.show(ids)?,
                None => format!("{ids:?}"),
            })
        };
        if let Some(condition) = &row.condition_ids {
            out!("row {i}, condition: {}", show(condition)?)?;
        }
        out!("row {i}: {}", show(&row.input_ids)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
