//! Accuracy of a trained flow at each time: the error of its clean estimates, and the share of tokens decoded
//! correctly.

use std::path::PathBuf;

use elf_core::{Seeded, key_of};
use elf_data::Dataset;
use elf_flow::{EstimateErrors, LatentBatch, Probe, TrainedFlow};
use elf_hub::What;
use serde::Serialize;
use tch::Tensor;

use crate::error::{Context, fail};
use crate::model::DescribedModel;
use crate::model::loaded::Net;
use crate::{Event, Host, Result};

/// Default times; denser where the released recipe trains and samples most.
const TIMES: [f64; 12] = [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Options of [`probe`].
#[derive(Debug, Clone)]
pub struct ProbeOptions {
    /// Token data to compare with, or its Hugging Face id.
    pub data: PathBuf,
    /// Maximum number of texts.
    pub limit: usize,
    /// Times in [0, 1]; empty for 12 of them.
    pub times: Vec<f64>,
    /// Self-conditioning guidance scale given to the network.
    pub self_cond_cfg_scale: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Texts per batch.
    pub batch_size: usize,
}

/// The result of [`probe`], in machine-readable form.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// Number of texts.
    pub texts: usize,
    /// Number of their tokens, without conditions, EOS and padding.
    pub words: f64,
    /// Share of tokens decoded correctly from the true clean latents.
    pub accuracy_of_clean_latents: f64,
    /// At each time, ascending.
    pub times: Vec<AtTime>,
}

/// Accuracy at one time.
#[derive(Debug, Serialize)]
pub struct AtTime {
    /// The time.
    pub t: f64,
    /// Accuracy with all inputs.
    #[serde(flatten)]
    pub known: Shares,
    /// Accuracy without the condition; `None` for unconditional models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_condition: Option<Shares>,
}

/// [`EstimateErrors`] as averages.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Shares {
    /// Mean squared error of the clean estimate, per channel.
    pub error: f64,
    /// Share of tokens decoded correctly from it.
    pub accuracy: f64,
}

impl From<EstimateErrors> for Shares {
    fn from(known: EstimateErrors) -> Self {
        Self { error: known.error(), accuracy: known.accuracy() }
    }
}

/// Measures the accuracy of a flow's clean estimates at each time.
///
/// # Errors
/// If the model is not a flow on an encoder's latents, or generates in blocks; if the data does not fit it; or if
/// libtorch fails.
pub fn probe(model: &DescribedModel, asked: &ProbeOptions, host: &Host) -> Result<Findings> {
    let mut times = if asked.times.is_empty() { TIMES.to_vec() } else { asked.times.clone() };
    if let Some(t) = times.iter().find(|t| !(0.0..=1.0).contains(*t)) {
        fail!(setting("times"), "--times: {t} is not a time in [0, 1]");
    }
    times.sort_by(f64::total_cmp);
    let path = model.source().path.display();
    if model.plan.model.learned_latents {
        fail!(request, "{path} learned its latents itself: only models of an encoder's latents can be looked into");
    }
    if model.plan.objective.block_size.is_some() {
        fail!(
            request,
            "{path} writes block after block (block_size): only models that write all tokens together can be looked into"
        );
    }
    findings(model, asked, &times, host)
}

fn findings(model: &DescribedModel, asked: &ProbeOptions, times: &[f64], host: &Host) -> Result<Findings> {
    let device = model.source().device;
    model.check_memory(asked.batch_size.min(asked.limit))?;
    let net = model.load_network()?;
    let Net::Flow(net) = &net else { fail!(request, "only a flow can be looked into") };
    let latents = model.text_latents(host)?;
    let mut dataset = Dataset::open(&[host.locate(&asked.data, What::Dataset)?])?;
    dataset.check_tokenizer(&model.tokenizer).with_context(|| asked.data.display())?;
    let conditional = model.plan.span.max_input_length.is_some();
    if conditional && !dataset.is_conditional() {
        fail!(
            place(&asked.data),
            "{} has no conditions, and the model generates from conditions",
            asked.data.display()
        );
    }
    let collator = model.plan.collator(&model.tokenizer)?;
    let eos = i64::from(model.tokenizer.eos_id()?);
    let probe = Probe::new(net.as_ref(), TrainedFlow::from(&model.plan.objective), asked.self_cond_cfg_scale);
    let texts: Vec<usize> = (0..dataset.len().min(asked.limit)).collect();

    let mut clean = EstimateErrors::default();
    let mut known = vec![(EstimateErrors::default(), EstimateErrors::default()); times.len()];
    host.send(Event::Started { unit: "texts", done: 0, total: texts.len() as u64 });
    let mut done = 0;
    for rows in texts.chunks(asked.batch_size) {
        let batch = latents.encode(&collator.collate(&dataset.examples(rows)?)?)?;
        let counted = words_of(&batch, eos)?;
        // The same noise at all times, so that differences come from the network.
        let noise = || Seeded::new(rows.iter().map(|&row| key_of(&[asked.seed, row as u64])).collect(), device);
        clean += probe.of_clean_latents(&batch, &counted)?;
        for (&t, (with, without)) in times.iter().zip(&mut known) {
            *with += probe.at(&batch, &counted, t, true, &mut noise())?;
            if conditional {
                *without += probe.at(&batch, &counted, t, false, &mut noise())?;
            }
        }
        done += rows.len() as u64;
        host.send(Event::Progress { done, message: None });
    }
    host.send(Event::Ended);
    if clean.positions == 0.0 {
        fail!(place(&asked.data), "{} has no tokens to evaluate", asked.data.display());
    }
    let at_time = |(&t, (with, without)): (&f64, &(EstimateErrors, EstimateErrors))| AtTime {
        t,
        known: (*with).into(),
        without_condition: conditional.then(|| (*without).into()),
    };
    Ok(Findings {
        texts: texts.len(),
        words: clean.positions,
        accuracy_of_clean_latents: clean.accuracy(),
        times: times.iter().zip(&known).map(at_time).collect(),
    })
}

/// A mask `[B, S]` with 1 at the tokens of the texts: the loss mask without EOS.
fn words_of(batch: &LatentBatch, eos: i64) -> Result<Tensor> {
    Ok(batch.loss_mask.f_mul(&batch.ids.f_ne(eos)?.f_to_kind(batch.loss_mask.kind())?)?)
}
