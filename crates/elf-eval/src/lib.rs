//! Metrics of generated text, from plain strings and token ids.
//!
//! * [`bleu`]: corpus BLEU as sacreBLEU computes it, with its tokenisers.
//! * [`chrf`]: corpus chrF and chrF++ as sacreBLEU computes them.
//! * [`ter`]: corpus translation edit rate as sacreBLEU computes it.
//! * [`rouge`]: ROUGE-1, ROUGE-2 and ROUGE-L as the `rouge_score` package computes them.
//! * [`perplexity`]: generative perplexity and unigram entropy, from the scores of any judge that implements
//!   [`perplexity::Scorer`].
//! * [`diversity`] and [`novelty`]: repetition, and copying from the training texts.
//! * [`minimum_risk`]: of several candidates for one text, the one that is most like the others.
//! * [`stats`]: means over seeds and bootstrap intervals over examples.
//! * [`evaluation`]: all of these at once, with their uncertainty and a verdict on collapse, as JSON and as a Markdown table.
//! * [`report`]: tables, plots and texts of many evaluations as one HTML page and as Markdown.
//! * [`jsonl`]: reading samples from JSON lines.
//!
//! BLEU, chrF, TER and ROUGE take one or several [`References`] per text.
//!
//! This crate deliberately does not know any model or tensor library, how texts were generated, or where a run keeps its files. A
//! language model enters only as a [`perplexity::Scorer`].

pub mod bleu;
pub mod chrf;
pub mod diversity;
mod error;
pub mod evaluation;
pub mod jsonl;
pub mod minimum_risk;
pub mod novelty;
pub mod perplexity;
pub mod porter;
mod references;
pub mod report;
pub mod rouge;
pub mod stats;
pub mod ter;

pub use error::{Error, Result};
pub use references::References;
