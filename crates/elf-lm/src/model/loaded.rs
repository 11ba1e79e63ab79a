//! A model's network and encoder, loaded for generation.

use elf_core::{Network, ParamBuilder, ParamSet, PrecisionPolicy};
use elf_data::Tokenizer;
use elf_flow::TrainedFlow;
use elf_flow::sampler::Registry;
use elf_gpt2::{Gpt2, Gpt2Config};
use elf_model::{Elf, MaskedTransformer};
use tch::Device;

use super::described::needs_encoder;
use super::{DescribedModel, ModelRef, ModelSource};
use crate::config::{BaselinePlan, Candidates, RunPlan, Sampling};
use crate::error::{Context, fail};
use crate::text::baseline_writer::{BaselineWriter, Decoding};
use crate::text::flow_writer::{FlowParts, FlowWriter};
use crate::text::text_latents::TextLatents;
use crate::text::text_loop::BatchWriter;
use crate::{Host, Result};

/// A trained network of any kind.
pub enum Net {
    /// The network of an embedded language flow.
    Flow(Box<Elf>),
    /// An autoregressive baseline.
    Gpt2(Box<Gpt2>),
    /// A masked-diffusion baseline.
    Masked(Box<MaskedTransformer>),
}

impl Net {
    /// Loads a model's network with the running averages of the parameters, or with the parameters as trained.
    ///
    /// # Errors
    /// If a file is damaged, or belongs to another network.
    pub fn load(
        found: &ModelRef,
        tokenizer: &Tokenizer,
        averaged: bool,
        policy: PrecisionPolicy,
        device: Device,
    ) -> Result<Self> {
        let net = match found.plan().and_then(|plan| plan.baseline.as_ref()) {
            None => {
                return Ok(Self::Flow(Box::new(found.network(averaged, policy, device)?)));
            }
            Some(BaselinePlan::Gpt2(sizes)) => {
                let eos_token_id = Some(i64::from(tokenizer.eos_id()?));
                let sizes = Gpt2Config { eos_token_id, ..sizes.clone() };
                Self::Gpt2(Box::new(Gpt2::new(&sizes, ParamBuilder::unset(device), policy)?))
            }
            Some(BaselinePlan::Mdlm { network, .. }) => {
                Self::Masked(Box::new(MaskedTransformer::new(network.clone(), policy, ParamBuilder::unset(device))?))
            }
        };
        found.load_into(net.params(), averaged)?;
        Ok(net)
    }

    /// The parameters by name.
    pub fn params(&self) -> &ParamSet {
        match self {
            Self::Flow(net) => net.params(),
            Self::Gpt2(net) => net.params(),
            Self::Masked(net) => elf_core::TokenNetwork::params(net.as_ref()),
        }
    }
}

/// A weaker version of a flow, for autoguidance.
pub struct Guide {
    plan: RunPlan,
    net: Net,
}

impl Guide {
    /// The parameters by name.
    pub fn params(&self) -> &ParamSet {
        self.net.params()
    }

    /// The network and how it was trained; `None` for a baseline.
    pub(crate) fn parts(&self) -> Option<(&dyn Network, TrainedFlow)> {
        match &self.net {
            Net::Flow(net) => Some((net.as_ref(), TrainedFlow::from(&self.plan.objective))),
            Net::Gpt2(_) | Net::Masked(_) => None,
        }
    }
}

/// The guide that a setting asks for: what `net`, trained by `plan`, keeps of words, or the model that was loaded.
pub(crate) fn guide_of<'a>(
    sampling: &Sampling,
    net: &'a Elf,
    plan: &RunPlan,
    loaded: Option<&'a Guide>,
) -> Option<(&'a dyn Network, TrainedFlow)> {
    match sampling.word_guide {
        true => Some((net.word_guide()? as &dyn Network, TrainedFlow::from(&plan.objective).of_clean_estimates())),
        false => loaded.and_then(Guide::parts),
    }
}

/// A method of generation.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Sampling from a flow.
    Flow(Sampling),
    /// Decoding with a baseline.
    Baseline {
        /// How each text is decoded.
        decoding: Decoding,
        /// Candidates per text, of which the one of minimum Bayes risk is kept; 1 for a single text.
        mbr: usize,
    },
}

impl Method {
    /// A short name for files.
    pub fn name(&self) -> String {
        match self {
            Self::Flow(sampling) => sampling.name(),
            Self::Baseline { decoding, mbr: 1 } => decoding.name(),
            Self::Baseline { decoding, mbr } => format!("{}-mbr{mbr}", decoding.name()),
        }
    }

    /// Candidates per text, and which of them is kept.
    ///
    /// # Errors
    /// If their number is 0 or very large, or two rules are to choose.
    pub fn candidates(&self) -> Result<Candidates> {
        match self {
            Self::Flow(sampling) => sampling.candidates(),
            Self::Baseline { mbr, .. } => Candidates::new(1, *mbr),
        }
    }
}

impl DescribedModel {
    /// Loads the network, without the encoder.
    ///
    /// # Errors
    /// If a file is damaged, or belongs to another network.
    pub fn load_network(&self) -> Result<Net> {
        let ModelSource { averaged, device, .. } = *self.source();
        Net::load(self.found(), &self.tokenizer, averaged, self.source().policy(), device)
    }

    /// Loads the network, and the encoder if generation needs one.
    ///
    /// # Errors
    /// If a file is damaged, or the encoder is not the one that the model was trained with.
    pub fn load(self, host: &Host) -> Result<Loaded> {
        let net = self.load_network()?;
        let latents = if needs_encoder(&self.plan) { Some(self.text_latents(host)?) } else { None };
        Ok(Loaded { described: self, net, latents })
    }

    /// Loads the network as a guide.
    ///
    /// # Errors
    /// If a file is damaged.
    pub fn load_guide(self) -> Result<Guide> {
        let net = self.load_network().context("the guide")?;
        Ok(Guide { plan: self.plan, net })
    }
}

/// A model loaded for generation.
pub struct Loaded {
    /// The model's location, plan and tokenizer.
    pub described: DescribedModel,
    /// The network.
    pub net: Net,
    /// The encoder, for conditional flows and for flows in blocks.
    pub latents: Option<TextLatents>,
}

impl Loaded {
    /// A writer for one method of generation. All texts share the time grid of `grid_seed`; a flow pads its batches to
    /// `pad_to` rows.
    ///
    /// # Errors
    /// If the method is invalid for the model.
    pub fn writer<'a>(
        &'a self,
        method: &Method,
        guide: Option<&'a Guide>,
        grid_seed: u64,
        pad_to: Option<usize>,
        samplers: &Registry,
    ) -> Result<Box<dyn BatchWriter + 'a>> {
        let DescribedModel { plan, tokenizer, lexicon, .. } = &self.described;
        Ok(match (&self.net, method) {
            (Net::Flow(net), Method::Flow(sampling)) => {
                let guide = guide_of(sampling, net, plan, guide);
                let parts = FlowParts {
                    net: net.as_ref(),
                    plan,
                    tokenizer,
                    latents: self.latents.as_ref(),
                    guide,
                    lexicon: lexicon.as_ref(),
                };
                Box::new(FlowWriter::new(parts, sampling, grid_seed, pad_to, samplers)?)
            }
            (Net::Gpt2(net), Method::Baseline { decoding, .. }) => {
                Box::new(BaselineWriter { net: net.as_ref(), decoding: *decoding, plan, tokenizer })
            }
            (Net::Masked(net), Method::Baseline { decoding, .. }) => {
                Box::new(BaselineWriter { net: net.as_ref(), decoding: *decoding, plan, tokenizer })
            }
            (_, method) => {
                fail!(request, "this model cannot generate by the method {}", method.name())
            }
        })
    }
}
