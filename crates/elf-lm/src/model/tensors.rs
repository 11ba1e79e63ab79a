//! A model's tensors: latents of texts, the network's estimate of clean latents, and texts read from latents.

use elf_core::{Context, Network, TrunkInput};
use elf_data::Example;
use elf_flow::{Condition, Decoder, FinishedPrefix, PrefixContext, TrainedFlow, Trim};
use tch::{Device, Kind, Tensor};

use super::Model;
use super::loaded::Net;
use crate::error::fail;
use crate::text::conditions::TAKES_NO_INPUT;
use crate::text::flow_writer::written;
use crate::text::text_latents::TextLatents;
use crate::text::text_loop::Decoded;
use crate::{Error, Host, Result, Silent};

/// The latents of texts, as the model's encoder makes them.
#[derive(Debug)]
pub struct EncodedTexts {
    /// Clean latents, `[B, S, C]`, fp32, on the model's device. Each row is the input, then the text, then filling.
    pub latents: Tensor,
    /// Token ids, `[B, S]`, i64, on the same device.
    pub ids: Tensor,
    /// Tokens of each row's input.
    pub input_lengths: Vec<usize>,
    /// Tokens of each row without filling, its input included.
    pub lengths: Vec<usize>,
}

/// A point of the flow.
#[derive(Debug, Clone, Copy)]
pub struct NoisyLatents<'a> {
    /// Noisy latents, `[B, S, C]`, fp32, on the model's device: whole rows of a model that writes all tokens at once, and
    /// what follows `given` of a model that writes block by block.
    pub z: &'a Tensor,
    /// The time of each row in [0, 1], `[B]`, fp32: 0 is noise, 1 is data.
    pub t: &'a Tensor,
    /// The previous estimate of the clean latents, `[B, S, C]`, fp32; `None` for none yet.
    pub x_prev: Option<&'a Tensor>,
    /// The scale of self-conditioning guidance of each row, `[B]`, fp32; `None` is 1.
    pub guidance: Option<&'a Tensor>,
    /// What is known: the inputs of a model that writes all tokens at once, whose latents take their places in `z`; the
    /// inputs and all finished tokens of a model that writes block by block.
    pub given: Option<&'a EncodedTexts>,
}

/// A text read from latents.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadText {
    /// The text.
    pub text: String,
    /// Its tokens, without padding.
    pub tokens: Vec<i64>,
    /// The natural log-probability of each.
    pub log_probs: Vec<f32>,
}

/// The other inputs of a pass, beside its noisy latents.
enum Given {
    Nothing,
    Inputs(Condition),
    Prefix(FinishedPrefix),
}

impl Model {
    /// The device that the model computes on.
    pub fn device(&self) -> Device {
        self.described().source().device
    }

    /// Encodes texts, with one input each if the model generates from inputs. All rows have the model's full length, or in
    /// blocks that of the longest, which may be 0. Texts of a model that writes all tokens at once are ended with EOS, as in
    /// its training; those of a model that writes block by block are beginnings, and are not.
    ///
    /// ```
    /// use elf_lm::NoisyLatents;
    /// use tch::{Device, Kind, Tensor};
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en");
    /// let model = elf_lm::Model::load(folder)?;
    /// // This model writes token by token: the latents of the next token, given an input.
    /// let given = model.encode(&[""], Some(&["Ein Programm zum Zeichnen"]))?;
    /// let z = Tensor::randn([1, 1, given.latents.size()[2]], (Kind::Float, Device::Cpu));
    /// let t = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    /// let x = model.denoise(&NoisyLatents { z: &z, t: &t, x_prev: None, guidance: None, given: Some(&given) })?;
    /// assert_eq!(model.read(&x, Some(&given))?.len(), 1);
    /// # Ok::<(), elf_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there are no texts, an input is missing or not expected, the model is a baseline, or its encoder is not found.
    pub fn encode<T: AsRef<str>>(&self, texts: &[T], inputs: Option<&[T]>) -> Result<EncodedTexts> {
        let (plan, tokenizer) = (self.plan(), self.tokenizer());
        self.flow_net()?;
        if texts.is_empty() {
            fail!(request, "there is nothing to encode: give at least one text");
        }
        match inputs {
            None if self.takes_input() => {
                fail!(request, "this model writes from input texts: give one for each text, as `inputs`")
            }
            Some(_) if !self.takes_input() => fail!(request, "{TAKES_NO_INPUT}"),
            Some(inputs) if inputs.len() != texts.len() => {
                fail!(request, "{} inputs are given for {} texts: give one for each", inputs.len(), texts.len())
            }
            _ => {}
        }
        let end_of_text = plan.objective.block_size.is_none().then(|| tokenizer.eos_id()).transpose()?;
        let end = plan.condition_eos.then(|| tokenizer.eos_id()).transpose()?;
        let example = |(i, text): (usize, &T)| -> Result<Example> {
            let condition = |input: &T| -> Result<Vec<i32>> {
                Ok(tokenizer.encode(input.as_ref())?.into_iter().chain(end).collect())
            };
            let condition_ids = inputs.map(|inputs| condition(&inputs[i])).transpose()?;
            let input_ids = tokenizer.encode(text.as_ref())?.into_iter().chain(end_of_text).collect();
            Ok(Example { input_ids, condition_ids })
        };
        let examples = texts.iter().enumerate().map(example).collect::<Result<Vec<_>>>()?;
        let batch = plan.without_filling(plan.collator(tokenizer)?.collate(&examples)?);
        let device = self.device();
        let shape = [batch.rows as i64, batch.seq_len as i64];
        Ok(EncodedTexts {
            latents: tch::no_grad(|| self.encoder()?.latents(&batch))?,
            ids: Tensor::f_from_slice(&batch.input_ids)?.f_view(shape)?.f_to_device(device)?,
            input_lengths: batch.cond_len,
            lengths: batch.valid_len,
        })
    }

    /// The network's estimate of the clean latents, `[B, S, C]`, fp32, without gradients, in one pass.
    ///
    /// # Errors
    /// If a tensor has another shape, type or device, the model is a baseline, or libtorch fails.
    pub fn denoise(&self, point: &NoisyLatents) -> Result<Tensor> {
        let net = self.flow_net()?;
        let trained = TrainedFlow::from(&self.plan().objective);
        let NoisyLatents { z, t, x_prev, guidance, given } = *point;
        let (b, s, c) = self.check_latents("z", z)?;
        if let Some(x) = x_prev {
            self.check_tensor("x_prev", x, Kind::Float, &[b, s, c])?;
        }
        for (what, rows) in [("t", Some(t)), ("guidance", guidance)] {
            rows.map(|rows| self.check_tensor(what, rows, Kind::Float, &[b])).transpose()?;
        }
        tch::no_grad(|| {
            let given = self.given(given, [b, s])?;
            let (z, x_prev) = match &given {
                Given::Inputs(inputs) => {
                    let x_prev = x_prev.map_or_else(|| z.f_zeros_like(), |x| Ok(x.shallow_clone()))?;
                    (inputs.pin(z)?, Some(inputs.pin(&x_prev)?))
                }
                _ => (z.shallow_clone(), x_prev.map(Tensor::shallow_clone)),
            };
            let x_prev = match (trained.self_conditioned, x_prev) {
                (false, _) => None,
                (true, Some(x)) => Some(x),
                (true, None) => Some(z.f_zeros_like()?),
            };
            let context: Option<Context> = match &given {
                Given::Prefix(prefix) => Some(prefix.context()),
                _ => None,
            };
            let words = match &given {
                Given::Inputs(inputs) => Some(inputs.words(b)?),
                _ => None,
            };
            let words = words.as_ref();
            let input = TrunkInput { x_prev: x_prev.as_ref(), guidance, context, words, ..TrunkInput::new(&z, t) };
            let head = net.clean(&net.trunk(&input)?)?;
            let x = trained.path.clean_of(head, &z, &t.f_view([b, 1, 1])?);
            Ok(match &given {
                Given::Inputs(inputs) => inputs.pin(&x)?,
                _ => x,
            })
        })
    }

    /// Reads the likeliest texts from latents `z` `[B, S, C]`, fp32, on the model's device: whole rows of a model that writes
    /// all tokens at once, and what follows `given` of a model that writes block by block. See [`NoisyLatents::given`].
    ///
    /// # Errors
    /// As [`Model::denoise`].
    pub fn read(&self, z: &Tensor, given: Option<&EncodedTexts>) -> Result<Vec<ReadText>> {
        let (net, plan, tokenizer) = (self.flow_net()?, self.plan(), self.tokenizer());
        let (b, s, _) = self.check_latents("z", z)?;
        let given = self.given(given, [b, s])?;
        let decoder = Decoder::new(net, TrainedFlow::from(&plan.objective), 1.0);
        let reading = tch::no_grad(|| match &given {
            Given::Nothing => decoder.read(z, None),
            Given::Inputs(inputs) => decoder.read(z, Some(inputs)),
            Given::Prefix(prefix) => decoder.with_prefix(Some(&PrefixContext::of(prefix))).read(z, None),
        })?;
        let (input_lengths, longest) = match &given {
            Given::Inputs(inputs) => (inputs.lengths().to_vec(), plan.reserved_positions()),
            _ => (vec![0; b as usize], 0),
        };
        let trim = Trim {
            eos: i64::from(tokenizer.eos_id()?),
            pad: i64::from(tokenizer.pad_id()?),
            max_input_length: longest,
        };
        let ids = Vec::<i64>::try_from(reading.ids.f_reshape([-1])?)?;
        let log_probs = Vec::<f32>::try_from(reading.log_probs.f_reshape([-1])?)?;
        let rows = ids.chunks(s as usize).zip(log_probs.chunks(s as usize)).zip(input_lengths);
        rows.map(|((ids, log_probs), input)| {
            let Decoded { text, tokens, log_probs } = written(ids, log_probs, input, trim).decode(tokenizer)?;
            Ok(ReadText { text, tokens, log_probs: log_probs.unwrap_or_default() })
        })
        .collect()
    }

    /// The other inputs of a pass over noisy latents of `B` rows and `S` positions.
    fn given(&self, given: Option<&EncodedTexts>, [b, s]: [i64; 2]) -> Result<Given> {
        let block_size = self.plan().objective.block_size;
        let c = self.plan().model.text_encoder_dim;
        let Some(EncodedTexts { latents, ids, input_lengths, lengths }) = given else {
            let Some(size) = block_size else { return Ok(Given::Nothing) };
            let none = |shape: &[i64], kind| Tensor::f_zeros(shape, (kind, self.device()));
            let (latents, ids) = (none(&[b, 0, c], Kind::Float)?, none(&[b, 0], Kind::Int64)?);
            let zeros = vec![0; b as usize];
            return Ok(Given::Prefix(FinishedPrefix::new(&latents, &ids, [&zeros, &zeros], size, s)?));
        };
        let rows = latents.size().first().copied().unwrap_or(0);
        if rows != b {
            fail!(mismatch("given"), "`given` has {rows} rows and the latents have {b}: encode one text for each row");
        }
        if let Some(size) = block_size {
            return Ok(Given::Prefix(FinishedPrefix::new(latents, ids, [input_lengths, lengths], size, s)?));
        }
        self.check_tensor("the latents of `given`", latents, Kind::Float, &[b, s, c])?;
        let is_input = |&length: &usize| (0..s as usize).map(move |place| f32::from(place < length));
        let mask: Vec<f32> = input_lengths.iter().flat_map(is_input).collect();
        Ok(Given::Inputs(Condition::new(latents, ids, &Tensor::f_from_slice(&mask)?.f_view([b, s])?)?))
    }

    /// `(B, S, C)` of latents that the network takes.
    fn check_latents(&self, what: &str, z: &Tensor) -> Result<(i64, i64, i64)> {
        let c = self.plan().model.text_encoder_dim;
        match z.size()[..] {
            [b, s, channels] if b > 0 && s > 0 && channels == c => {
                self.check_tensor(what, z, Kind::Float, &[b, s, c])?;
                Ok((b, s, c))
            }
            ref other => {
                fail!(mismatch(what), "{what} has the shape {other:?}: it has to be [B, S, {c}], for this model")
            }
        }
    }

    fn check_tensor(&self, what: &str, tensor: &Tensor, kind: Kind, shape: &[i64]) -> Result<()> {
        if tensor.size() != shape {
            let found = tensor.size();
            fail!(mismatch(what), "{what} has the shape {found:?}: it has to be {shape:?}, to fit the others");
        }
        if tensor.kind() != kind {
            fail!(
                mismatch(what),
                "{what} has elements of type {:?}: they have to be {kind:?} (32-bit floating point)",
                tensor.kind()
            );
        }
        if tensor.device() != self.device() {
            fail!(
                mismatch(what),
                "{what} is on {:?} and the model on {:?}: move it there",
                tensor.device(),
                self.device()
            );
        }
        Ok(())
    }

    /// The network of a flow.
    pub(super) fn flow_net(&self) -> Result<&dyn Network> {
        match &self.loaded.net {
            Net::Flow(net) => Ok(net.as_ref()),
            Net::Gpt2(_) | Net::Masked(_) => fail!(request, "this model is a baseline and has no latents: load an ELF"),
        }
    }

    /// The encoder that the model was trained with.
    pub(super) fn encoder(&self) -> Result<&TextLatents> {
        if let Some(latents) = self.loaded.latents.as_ref().or(self.encoder.get()) {
            return Ok(latents);
        }
        let mut silent = Silent;
        let found = self.described().text_latents(&Host::new(&mut silent).with_hub(self.hub.clone()))?;
        Ok::<_, Error>(self.encoder.get_or_init(|| found))
    }
}
