//! A loaded model.

use std::ops::ControlFlow;
use std::path::PathBuf;

use elf_lm::text::generated::MOST_TEXTS;
use elf_lm::text::template::Template;
use elf_lm::text::text_run::GenerateOptions;
use elf_lm::{EncodedTexts, GeneratedText, NoisyLatents, TextRequest};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::latents::{Encoded, Given, PerRow};
use crate::settings::{self, Settings, texts};
use crate::tensors::{Lent, to_torch};
use crate::texts::{Told, list};
use crate::trajectory::{Trajectory, Wish};
use crate::waiting::Stop;
use crate::worker::Worker;

/// What a model says of itself.
#[derive(Debug, Clone)]
struct Facts {
    device: String,
    takes_input: bool,
    latent_dim: i64,
    max_length: usize,
    vocab_size: i64,
    block_size: Option<i64>,
    noise_scale: f64,
    time_epsilon: f64,
    sampling: Option<String>,
}

impl Facts {
    fn of(model: &elf_lm::Model) -> elf_lm::Result<Self> {
        let plan = model.plan();
        let device = match model.device() {
            tch::Device::Cuda(number) => format!("cuda:{number}"),
            _ => "cpu".to_owned(),
        };
        Ok(Self {
            device,
            takes_input: model.takes_input(),
            latent_dim: plan.model.text_encoder_dim,
            max_length: plan.span.max_length,
            vocab_size: plan.model.vocab_size,
            block_size: plan.objective.block_size,
            noise_scale: plan.objective.path.noise_scale,
            time_epsilon: plan.objective.path.t_eps,
            // A model whose sampling file has several settings has no name for one.
            sampling: model.sampling().ok().map(|sampling| model.method(&sampling).name()),
        })
    }
}

/// A loaded model, from :func:`load`.
///
/// It has a thread of its own, so that all threads may use it; calls are done in their order. As a context manager it
/// closes itself at the end.
#[pyclass(frozen, module = "elf_flows._native")]
pub struct Model {
    worker: Worker,
    path: PathBuf,
    facts: Facts,
}

/// Load a model.
///
/// Parameters
/// ----------
/// path
///     A run's or checkpoint's folder, an exported model, a file of the released code, or a Hugging Face id.
/// device
///     ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
/// precision
///     ``"fp32"`` or ``"bf16"`` for blocks and encoder; by default the device's native one.
/// averaged
///     Whether the running averages of the parameters are used instead of the parameters as trained.
/// encoder
///     The text encoder, if it is not where it was in training.
/// config, tokenizer, length
///     For a file from elsewhere: the configuration it was trained with, its tokenizer, and positions per text.
///
/// Raises
/// ------
/// PlaceError
///     If there is no such model, or a file is missing or damaged.
/// MismatchError
///     If a file belongs to another model.
#[pyfunction]
#[pyo3(signature = (path, *, device = "auto", precision = None, averaged = true, encoder = None, config = None, tokenizer = None, length = None))]
#[expect(clippy::too_many_arguments, reason = "the keywords of the Python function")]
pub fn load(
    py: Python<'_>,
    path: PathBuf,
    device: &str,
    precision: Option<&str>,
    averaged: bool,
    encoder: Option<PathBuf>,
    config: Option<PathBuf>,
    tokenizer: Option<PathBuf>,
    length: Option<usize>,
) -> PyResult<Model> {
    let source = settings::source(path.clone(), device, precision)?;
    let source = elf_lm::ModelSource { averaged, encoder, config, tokenizer, length, ..source };
    let (worker, facts) = Worker::load(py, source, Facts::of)?;
    Ok(Model { worker, path, facts })
}

impl Model {
    fn requests(&self, inputs: Option<Vec<String>>, num: Option<usize>, seed: u64) -> elf_lm::Result<Vec<TextRequest>> {
        if let Some(num) = num.filter(|&num| num > MOST_TEXTS) {
            return Err(elf_lm::Error::setting("num", format!("num is {num}: at most {MOST_TEXTS} are possible")));
        }
        match (inputs, num) {
            (Some(_), Some(_)) => {
                Err(elf_lm::Error::request("texts and num are both given: the texts say how many are generated"))
            }
            (Some(inputs), None) => Ok(TextRequest::from_inputs(seed, inputs)),
            (None, _) if self.facts.takes_input => {
                Err(elf_lm::Error::request("this model generates from an input text: give texts"))
            }
            (None, num) => Ok(TextRequest::unconditional(seed, num.unwrap_or(8))),
        }
    }

    /// What is generated for these requests.
    fn made(
        &self,
        py: Python<'_>,
        requests: Vec<TextRequest>,
        settings: Settings,
        options: GenerateOptions,
    ) -> PyResult<Py<PyAny>> {
        let told = self.worker.call(py, move |model, stop| {
            let sampling = settings.sampling(model)?;
            let made = model.generate_watched(&requests, &sampling, &options, &mut |_| go_on(stop))?;
            made.texts.into_iter().map(|text: GeneratedText| Told::finished(model, text)).collect()
        })?;
        list(py, told)
    }
}

#[pymethods]
impl Model {
    /// Generate texts, the same as ``elf sample`` with the same settings.
    ///
    /// Parameters
    /// ----------
    /// texts
    ///     One input for each text, for a model that takes inputs.
    /// num
    ///     The number of texts, for a model that takes none; 8 by default.
    /// steps
    ///     Sampling steps; by default those of the model's own setting.
    /// seed
    ///     The i-th text of a seed is the same whatever else is generated with it.
    /// sampler
    ///     The sampler, with settings of its own as ``"NAME:SETTING=VALUE,..."``.
    /// batch_size
    ///     Texts that are generated at once.
    /// **settings
    ///     Other keys of a sampling file, such as ``cfg``, ``self_cond_cfg_scale``, ``temperature``, ``top_p``,
    ///     ``best_of``, ``mbr``, ``sde_gamma`` or ``time_schedule``.
    ///
    /// Returns
    /// -------
    /// Texts
    ///     A list of :class:`~elf_flows.Text`, which are ``str`` with tokens and probabilities.
    ///
    /// Raises
    /// ------
    /// SettingError
    ///     If a setting is misspelt or out of range.
    /// RequestError
    ///     If the model takes no inputs, or needs some.
    #[pyo3(signature = (texts = None, *, num = None, steps = None, seed = 0, sampler = None, batch_size = 8, **settings))]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python function")]
    fn generate(
        &self,
        py: Python<'_>,
        texts: Option<&Bound<'_, PyAny>>,
        num: Option<usize>,
        steps: Option<usize>,
        seed: u64,
        sampler: Option<String>,
        batch_size: usize,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let inputs = texts.map(|list| self::texts("texts", list)).transpose()?;
        let requests = self.requests(inputs, num, seed).map_err(|error| crate::errors::raised(&error))?;
        self.made(py, requests, Settings::new(steps, sampler, settings)?, settings::options(seed, batch_size)?)
    }

    /// Fill the gaps of texts, the same as ``elf infill`` with the same settings, with a model that was trained for it.
    ///
    /// Parameters
    /// ----------
    /// texts
    ///     Texts with gaps: ``[...]`` is a gap of any number of tokens, ``[5]`` one of five. A backslash before a bracket makes it
    ///     one of the text.
    /// steps, seed, sampler, batch_size, **settings
    ///     As in :meth:`generate`.
    ///
    /// Returns
    /// -------
    /// Texts
    ///     Whole texts, in which every given word stands where it stood; ``filled`` of each has what is in its gaps.
    ///
    /// Raises
    /// ------
    /// RequestError
    ///     If a text has no gap or no given word, is too long, or has words that the model does not know, or if the model has
    ///     not learned to fill gaps.
    #[pyo3(signature = (texts, *, steps = None, seed = 0, sampler = None, batch_size = 8, **settings))]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python function")]
    fn infill(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        steps: Option<usize>,
        seed: u64,
        sampler: Option<String>,
        batch_size: usize,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let templates =
            self::texts("texts", texts)?.iter().map(|text| text.parse()).collect::<elf_lm::Result<Vec<Template>>>();
        let templates = templates.map_err(|error| crate::errors::raised(&error))?;
        let requests = TextRequest::from_templates(seed, templates);
        self.made(py, requests, Settings::new(steps, sampler, settings)?, settings::options(seed, batch_size)?)
    }

    /// Generate one text and show it as it forms.
    ///
    /// Parameters
    /// ----------
    /// text
    ///     The input, for a model that takes one.
    /// times
    ///     The times in [0, 1] at which it is shown; by default it is after every step. Each costs a pass.
    /// steps, seed, sampler, **settings
    ///     As in :meth:`generate`.
    ///
    /// Returns
    /// -------
    /// Trajectory
    ///     An iterator over :class:`~elf_flows.Frame`.
    #[pyo3(signature = (text = None, *, times = None, steps = None, seed = 0, sampler = None, **settings))]
    #[expect(clippy::too_many_arguments, reason = "the keywords of the Python function")]
    fn trajectory(
        &self,
        py: Python<'_>,
        text: Option<String>,
        times: Option<Vec<f64>>,
        steps: Option<usize>,
        seed: u64,
        sampler: Option<String>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        if let Some(other) = times.iter().flatten().find(|t| !(0.0..=1.0).contains(*t)) {
            return Err(crate::errors::setting(format!("times has {other}: all of them have to be from 0 to 1")));
        }
        let requests = self.requests(text.map(|text| vec![text]), None, seed);
        let request = requests.map_err(|error| crate::errors::raised(&error))?.swap_remove(0);
        let settings = Settings::new(steps, sampler, settings)?;
        let wish = Wish { request, settings, options: settings::options(seed, 1)?, times };
        let frames = Trajectory::begin(&self.worker, wish)?;
        Ok(crate::texts::class(py, "Trajectory")?.call1((frames,))?.unbind())
    }

    /// Encode texts into the latents that the model learned.
    ///
    /// Parameters
    /// ----------
    /// texts
    ///     The texts; empty ones by default. Those of a model that writes all tokens at once are ended as in training; those
    ///     of a model that writes block by block are beginnings.
    /// inputs
    ///     One input for each, for a model that takes inputs.
    ///
    /// Returns
    /// -------
    /// Encoded
    ///     Rows of the model's full length, or of the longest text for a model that writes block by block.
    #[pyo3(signature = (texts = None, *, inputs = None))]
    fn encode(
        &self,
        py: Python<'_>,
        texts: Option<&Bound<'_, PyAny>>,
        inputs: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Encoded> {
        let inputs = inputs.map(|list| self::texts("inputs", list)).transpose()?;
        let texts = match texts {
            Some(list) => self::texts("texts", list)?,
            None => vec![String::new(); inputs.as_ref().map_or(0, Vec::len)],
        };
        let encoded = self.worker.call(py, move |model, _| model.encode(&texts, inputs.as_deref()))?;
        let EncodedTexts { latents, ids, input_lengths, lengths } = encoded;
        Ok(Encoded { latents: to_torch(py, latents)?, ids: to_torch(py, ids)?, input_lengths, lengths })
    }

    /// The network's estimate of the clean latents, in one pass without gradients.
    ///
    /// No tensor is copied. The velocity of the flow is ``(x - z) / max(1 - t, model.time_epsilon)``.
    ///
    /// Parameters
    /// ----------
    /// z
    ///     Noisy latents, ``[B, S, C]``, float32, on the model's device. At t = 0 they are noise of standard deviation
    ///     ``model.noise_scale``.
    /// t
    ///     The time in [0, 1], or one for each row, ``[B]``.
    /// x_prev
    ///     The estimate before, ``[B, S, C]``; none at first.
    /// guidance
    ///     The scale of self-conditioning guidance, or one for each row; 1 by default.
    /// given
    ///     Inputs whose latents stand in their places in ``z``; for a model that writes block by block, the inputs and all
    ///     tokens before ``z``.
    ///
    /// Raises
    /// ------
    /// MismatchError
    ///     If a tensor has another shape, element type or device.
    /// TensorError
    ///     If an argument is no tensor, or cannot be shared.
    #[pyo3(signature = (z, t, x_prev = None, *, guidance = None, given = None))]
    fn denoise(
        &self,
        py: Python<'_>,
        z: &Bound<'_, PyAny>,
        t: &Bound<'_, PyAny>,
        x_prev: Option<&Bound<'_, PyAny>>,
        guidance: Option<&Bound<'_, PyAny>>,
        given: Option<&Bound<'_, Encoded>>,
    ) -> PyResult<Py<PyAny>> {
        let (z, t) = (Lent::new("z", z)?, PerRow::new("t", t)?);
        let x_prev = x_prev.map(|x| Lent::new("x_prev", x)).transpose()?;
        let guidance = guidance.map(|scale| PerRow::new("guidance", scale)).transpose()?;
        let given = given.map(|given| Given::of(py, given.get())).transpose()?;
        let x = self.worker.call(py, move |model, _| {
            let (z, given) = (z.tensor(), given.as_ref().map(Given::texts));
            let (t, guidance) = (t.rows(z)?, guidance.as_ref().map(|scale| scale.rows(z)).transpose()?);
            let x_prev = x_prev.as_ref().map(Lent::tensor);
            model.denoise(&NoisyLatents { z, t: &t, x_prev, guidance: guidance.as_ref(), given: given.as_ref() })
        })?;
        to_torch(py, x)
    }

    /// Read the likeliest texts from latents ``[B, S, C]``. ``given`` is that of :meth:`denoise`.
    #[pyo3(signature = (z, *, given = None))]
    fn decode(&self, py: Python<'_>, z: &Bound<'_, PyAny>, given: Option<&Bound<'_, Encoded>>) -> PyResult<Py<PyAny>> {
        let z = Lent::new("z", z)?;
        let given = given.map(|given| Given::of(py, given.get())).transpose()?;
        let told = self.worker.call(py, move |model, _| {
            let given = given.as_ref().map(Given::texts);
            let texts = model.read(z.tensor(), given.as_ref())?;
            texts.into_iter().map(|text| Told::read(model, text)).collect()
        })?;
        list(py, told)
    }

    /// Free the model. Using it afterwards raises :class:`~elf_flows.ClosedError`.
    fn close(&self, py: Python<'_>) {
        self.worker.close(py);
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.worker.close(py);
    }

    fn __repr__(&self) -> String {
        let Facts { device, max_length, latent_dim, block_size, .. } = &self.facts;
        let blocks = block_size.map_or(String::new(), |size| format!(", block_size={size}"));
        let closed = if self.worker.is_closed() { ", closed" } else { "" };
        let path = self.path.display();
        format!(
            "<elf_flows.Model {path} on {device}: max_length={max_length}, latent_dim={latent_dim}{blocks}{closed}>"
        )
    }

    /// The path or id that it was loaded by.
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.worker.is_closed()
    }

    /// The device that it computes on, ``"cpu"`` or ``"cuda:N"``.
    #[getter]
    fn device(&self) -> &str {
        &self.facts.device
    }

    /// Whether it generates from an input text.
    #[getter]
    fn takes_input(&self) -> bool {
        self.facts.takes_input
    }

    /// C, channels of a latent.
    #[getter]
    fn latent_dim(&self) -> i64 {
        self.facts.latent_dim
    }

    /// S, positions of a row.
    #[getter]
    fn max_length(&self) -> usize {
        self.facts.max_length
    }

    /// Entries of the vocabulary.
    #[getter]
    fn vocab_size(&self) -> i64 {
        self.facts.vocab_size
    }

    /// Tokens of a block; None for a model that writes all tokens at once.
    #[getter]
    fn block_size(&self) -> Option<i64> {
        self.facts.block_size
    }

    /// The standard deviation of the latents at t = 0.
    #[getter]
    fn noise_scale(&self) -> f64 {
        self.facts.noise_scale
    }

    /// The smallest remaining time that a velocity is divided by.
    #[getter]
    fn time_epsilon(&self) -> f64 {
        self.facts.time_epsilon
    }

    /// The name of its own sampling setting, if it has a single one.
    #[getter]
    fn sampling(&self) -> Option<&str> {
        self.facts.sampling.as_deref()
    }
}

/// Whether a generation goes on.
fn go_on(stop: &Stop) -> ControlFlow<()> {
    match stop.is_asked() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}
