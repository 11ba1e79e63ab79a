//! The texts that the flags of `elf sample` ask for.

use anyhow::{Context, Result, bail};
use elf_core::key_of;
use elf_data::source::{PlainText, Source};
use elf_data::{Dataset, Tokenizer};
use elf_hub::What;
use elf_lm::config::RunPlan;
use elf_lm::text::conditions::TAKES_NO_INPUT;
use elf_lm::{Host, TextRequest};

use super::args::SampleArgs;
use crate::hub;

/// One request per text, in the order of the input.
///
/// # Errors
/// If the input cannot be read, or the model takes none or needs one.
pub fn requests(args: &SampleArgs, plan: &RunPlan, tokenizer: &Tokenizer, host: &Host) -> Result<Vec<TextRequest>> {
    if args.limit.is_some() && args.input.is_none() && args.data.is_none() {
        bail!("--limit is about --input and --data: without them, --num says how many texts are generated");
    }
    if let Some(path) = &args.data {
        let mut dataset = Dataset::open(&[hub::locate(path, What::Dataset)?])?;
        dataset.check_tokenizer(tokenizer).with_context(|| path.display().to_string())?;
        if dataset.is_conditional() && dataset.eos_options(tokenizer)?.condition != plan.condition_eos {
            let (own, remedy) = if plan.condition_eos { ("do not end", "with") } else { ("end", "without") };
            host.warning(format!(
                "the conditions of {} {own} in EOS, unlike those that the model was trained on: prepare the data {remedy} --eos-condition",
                path.display()
            ));
        }
        return Ok(TextRequest::of_rows(args.seed, &dataset, args.limit.unwrap_or(usize::MAX), tokenizer)?);
    }
    let with_seeds = |texts: Vec<(String, Option<String>)>| {
        let request = |(i, (condition, reference))| TextRequest {
            reference,
            ..TextRequest::from_input(key_of(&[args.seed, i as u64]), condition)
        };
        texts.into_iter().enumerate().map(request).collect::<Vec<TextRequest>>()
    };
    let requests = match (&args.input, plan.span.max_input_length) {
        (Some(_), None) => bail!(TAKES_NO_INPUT),
        (Some(path), Some(_)) => {
            let mut columns = vec![args.input_column.as_str()];
            columns.extend(args.reference_column.as_deref());
            let source = Source::open(&[hub::locate(path, What::Dataset)?], &columns, PlainText::EveryLine)
                .context("--input (its columns are named by --input-column and --reference-column)")?;
            let rows = source.rows().take(args.limit.unwrap_or(usize::MAX));
            let texts = rows.map(|row| {
                let mut row = row?.into_iter();
                Ok((row.next().unwrap_or_default(), row.next()))
            });
            with_seeds(texts.collect::<Result<_>>()?)
        }
        (None, _) if !args.text.is_empty() => with_seeds(args.text.iter().map(|t| (t.clone(), None)).collect()),
        (None, Some(_)) => {
            bail!(
                "this model generates from an input text: give one with --text, a file with --input, or token data with --data"
            )
        }
        (None, None) => TextRequest::unconditional(args.seed, args.num),
    };
    if requests.is_empty() {
        bail!("there is nothing to generate: --num, --limit or --input asks for no text");
    }
    Ok(requests)
}
