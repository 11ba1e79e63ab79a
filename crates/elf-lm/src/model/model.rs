//! A loaded model: text in, text out.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use elf_data::Tokenizer;
use elf_flow::sampler::Registry;
use elf_train::Solo;
use elsa::FrozenMap;

use super::loaded::{Guide, Loaded, Method};
use super::{DescribedModel, ModelSource};
use crate::config::{RunPlan, Sampling, SamplingOf, SamplingPatch};
use crate::error::fail;
use crate::hub::Hub;
use crate::text::baseline_writer::Decoding;
use crate::text::generated::{Generation, TextRequest};
use crate::text::text_latents::TextLatents;
use crate::text::text_loop::TextWatch;
use crate::text::text_run::{GenerateOptions, TextFiles, TextRun, Written};
use crate::{Host, Result, Silent};

/// A loaded model that generates text: an embedded language flow or a baseline.
///
/// ```
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en");
/// let model = elf_lm::Model::load(folder)?; // a folder, run, checkpoint, released file or hub id
/// let texts = model.generate(&["Ein Programm zum Zeichnen"], &model.sampling()?.steps(2))?;
/// assert_eq!(texts.len(), 1);
/// # Ok::<(), elf_lm::Error>(())
/// ```
pub struct Model {
    pub(super) loaded: Loaded,
    /// The encoder of a model that writes its texts without one, loaded at its first use.
    pub(super) encoder: OnceCell<TextLatents>,
    samplers: Registry,
    pub(super) hub: Hub,
    /// The guides loaded so far, by path.
    guides: FrozenMap<PathBuf, Box<Guide>>,
}

impl Model {
    /// Loads a model by path or Hugging Face id; see [`ModelSource::path`].
    ///
    /// # Errors
    /// If there is no such model, or a file is missing, damaged, or belongs to another model.
    pub fn load(name: impl AsRef<Path>) -> Result<Self> {
        ModelSource::new(name).open()
    }

    fn new(loaded: Loaded, host: &Host) -> Self {
        let (samplers, hub) = (host.samplers().clone(), host.hub().clone());
        Self { loaded, encoder: OnceCell::new(), samplers, hub, guides: FrozenMap::new() }
    }

    /// Sets the samplers that settings may name.
    ///
    /// ```
    /// use elf_flow::sampler::Registry;
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en");
    /// // A program's own sampler is added with `Registry::builtin().with(Entry::of::<Mine>())`.
    /// let model = elf_lm::Model::load(folder)?.with_samplers(Registry::builtin());
    /// let sampling = model.sampling_with(&elf_lm::SamplingPatch::default().with("sampler", "heun"))?;
    /// assert!(sampling.name().starts_with("heun"));
    /// # Ok::<(), elf_lm::Error>(())
    /// ```
    pub fn with_samplers(self, samplers: Registry) -> Self {
        Self { samplers, ..self }
    }

    /// The samplers that settings may name.
    pub fn samplers(&self) -> &Registry {
        &self.samplers
    }

    /// The plan that the model was trained by.
    pub fn plan(&self) -> &RunPlan {
        &self.described().plan
    }

    /// The tokenizer that the model was trained with.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.described().tokenizer
    }

    /// The model's location, plan and tokenizer.
    pub fn described(&self) -> &DescribedModel {
        &self.loaded.described
    }

    /// Whether the model generates from an input text.
    pub fn takes_input(&self) -> bool {
        self.plan().span.max_input_length.is_some()
    }

    /// The setting in the model's sampling file, or the default for the model.
    ///
    /// # Errors
    /// If the model's sampling file is invalid or has several settings.
    pub fn sampling(&self) -> Result<Sampling> {
        self.sampling_with(&SamplingPatch::default())
    }

    /// [`Model::sampling`] with changes.
    ///
    /// # Errors
    /// As [`Model::sampling`], or if a change is invalid or has no effect.
    pub fn sampling_with(&self, patch: &SamplingPatch) -> Result<Sampling> {
        let (folder, plan) = (self.described().folder(), self.plan());
        let mut silent = Silent;
        let host = Host::new(&mut silent);
        let mut settings = SamplingOf { folder, plan, samplers: &self.samplers }.settings(None, patch, &host)?;
        match (settings.pop(), settings.len()) {
            (Some(setting), 0) => Ok(setting),
            (_, others) => fail!(
                place(folder),
                "the model in {} has {} sampling settings: read them with `read_sampling` and choose one",
                folder.display(),
                others + 1
            ),
        }
    }

    /// Checks a setting and loads its guide, before the first generation.
    ///
    /// # Errors
    /// If the setting is invalid for the model, or its guide cannot be used.
    pub fn prepare(&self, sampling: &Sampling) -> Result<()> {
        let guide = self.guide(sampling)?;
        self.loaded.writer(&self.method(sampling), guide, 0, None, &self.samplers).map(drop)
    }

    /// The method of generation that a setting stands for.
    pub fn method(&self, sampling: &Sampling) -> Method {
        match &self.plan().baseline {
            None => Method::Flow(sampling.clone()),
            Some(baseline) => {
                Method::Baseline { decoding: Decoding::of(sampling, baseline, self.plan()), mbr: sampling.mbr }
            }
        }
    }

    /// Generates a text from each input. A text depends on its input and its index alone.
    ///
    /// # Errors
    /// If the model is unconditional, an input is empty, the setting is invalid for the model, or libtorch fails.
    pub fn generate<T: AsRef<str>>(&self, inputs: &[T], sampling: &Sampling) -> Result<Vec<String>> {
        self.texts(&TextRequest::from_inputs(0, inputs.iter().map(AsRef::as_ref)), sampling)
    }

    /// Generates `count` unconditional texts. The same seed gives the same texts.
    ///
    /// # Errors
    /// If the model is conditional, the setting is invalid for it, or libtorch fails.
    pub fn generate_freely(&self, count: usize, seed: u64, sampling: &Sampling) -> Result<Vec<String>> {
        self.texts(&TextRequest::unconditional(seed, count), sampling)
    }

    fn texts(&self, requests: &[TextRequest], sampling: &Sampling) -> Result<Vec<String>> {
        let ignore = &mut |_: crate::TextEvent<'_>| ControlFlow::Continue(());
        let made = self.generate_watched(requests, sampling, &GenerateOptions::default(), ignore)?;
        Ok(made.texts.into_iter().map(|text| text.text).collect())
    }

    /// Generates texts, and calls `watch` for every step, for the texts as they form, and for each finished batch;
    /// `watch` returns `Break` to cancel.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use elf_lm::{GenerateOptions, TextEvent, TextRequest};
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en");
    /// let model = elf_lm::Model::load(folder)?;
    /// let requests = [TextRequest::from_input(7, "Ein Programm zum Zeichnen")];
    /// // With blocks, a time is a fraction of the row, which begins with the input. A text may end early.
    /// let trace = (0..=100).map(|i| f64::from(i) / 100.0).collect();
    /// let options = GenerateOptions { batch_size: 1, trace, ..GenerateOptions::default() };
    /// let mut steps = 0;
    /// let made = model.generate_watched(&requests, &model.sampling()?.steps(2), &options, &mut |event| {
    ///     if let TextEvent::Step { .. } = event {
    ///         steps += 1;
    ///     }
    ///     ControlFlow::Continue(())
    /// })?;
    /// assert!(steps > 0 && made.texts.len() == 1 && !made.frames.is_empty());
    ///
    /// let stop = &mut |_: TextEvent| ControlFlow::Break(());
    /// let cancelled = model.generate_watched(&requests, &model.sampling()?, &options, stop);
    /// assert!(matches!(cancelled, Err(elf_lm::Error::Cancelled)));
    /// # Ok::<(), elf_lm::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a request or the setting is invalid for the model, libtorch fails, or `watch` cancels
    /// ([`Error::Cancelled`](crate::Error::Cancelled)).
    pub fn generate_watched(
        &self,
        requests: &[TextRequest],
        sampling: &Sampling,
        options: &GenerateOptions,
        watch: &mut TextWatch,
    ) -> Result<Generation> {
        self.generate_by(requests, &self.method(sampling), options, watch)
    }

    /// [`Model::generate_watched`] by any method, which may be one that no [`Sampling`] names.
    ///
    /// # Errors
    /// As [`Model::generate_watched`].
    pub fn generate_by(
        &self,
        requests: &[TextRequest],
        method: &Method,
        options: &GenerateOptions,
        watch: &mut TextWatch,
    ) -> Result<Generation> {
        let guide = match method {
            Method::Flow(sampling) => self.guide(sampling)?,
            Method::Baseline { .. } => None,
        };
        self.run(requests, options, guide)?.watched(method, watch)
    }

    /// Generates texts into a JSONL file, one object per line ([`GeneratedText`](crate::GeneratedText)). It can be
    /// interrupted by the flag to stop of `host`, and by the end of the process: the same call continues after the last
    /// finished batch, with the same texts as without the interruption. Progress goes to `host`.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::AtomicBool};
    /// use elf_lm::{GenerateOptions, Host, Silent, TextRequest, Written};
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en");
    /// let model = elf_lm::Model::load(folder)?;
    /// let sampling = model.sampling()?.steps(2);
    /// let requests = [TextRequest::from_input(7, "Ein Programm zum Zeichnen")];
    /// let options = GenerateOptions { batch_size: 1, ..GenerateOptions::default() };
    /// let folder = tempfile::tempdir()?;
    /// let file = folder.path().join("texts.jsonl");
    ///
    /// // A program sets this flag on Ctrl-C. Here it is set from the beginning.
    /// let mut silent = Silent;
    /// let stopping = Host::new(&mut silent).with_stop(Arc::new(AtomicBool::new(true)));
    /// let written = model.generate_into(&file, &requests, &sampling, &options, &stopping)?;
    /// assert!(matches!(written, Written::Interrupted(_)) && !file.exists());
    ///
    /// let mut silent = Silent;
    /// let written = model.generate_into(&file, &requests, &sampling, &options, &Host::new(&mut silent))?;
    /// assert!(matches!(written, Written::All { .. }) && file.exists());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If a request or the setting is invalid for the model, libtorch fails, the file cannot be written, or unfinished
    /// texts of other inputs lie beside it.
    pub fn generate_into(
        &self,
        path: impl AsRef<Path>,
        requests: &[TextRequest],
        sampling: &Sampling,
        options: &GenerateOptions,
        host: &Host,
    ) -> Result<Written> {
        let guide = self.guide(sampling)?;
        let mut files = TextFiles::new(self.run(requests, options, guide)?);
        let written = files.write(&self.method(sampling), path.as_ref(), host)?;
        files.finish()?;
        Ok(written)
    }

    fn run<'a>(
        &'a self,
        requests: &'a [TextRequest],
        options: &'a GenerateOptions,
        guide: Option<&'a Guide>,
    ) -> Result<TextRun<'a>> {
        self.described().check_memory(options.rows(requests.len()))?;
        Ok(TextRun { model: &self.loaded, guide, requests, options, samplers: &self.samplers, comm: &Solo })
    }

    /// The network and its encoder.
    pub(crate) fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The guide that a setting names, loaded at its first use.
    ///
    /// # Errors
    /// If there is none, or it cannot guide this model.
    pub(crate) fn guide(&self, sampling: &Sampling) -> Result<Option<&Guide>> {
        let Some(path) = &sampling.guide else {
            return Ok(None);
        };
        if let Some(guide) = self.guides.get(path) {
            return Ok(Some(guide));
        }
        let mut silent = Silent;
        let host = Host::new(&mut silent).with_hub(self.hub.clone());
        let described = self.described().guide(std::slice::from_ref(sampling), &host)?;
        let guide = described.map(DescribedModel::load_guide).transpose()?;
        Ok(guide.map(|guide| self.guides.insert(path.clone(), Box::new(guide))))
    }
}

impl ModelSource {
    /// Loads the model.
    ///
    /// # Errors
    /// If there is no such model, or a file is missing, damaged, or belongs to another model.
    pub fn open(&self) -> Result<Model> {
        self.open_for(&Host::new(&mut Silent))
    }

    /// [`ModelSource::open`] with the samplers and encoders of `host`, and notes to it.
    ///
    /// # Errors
    /// As [`ModelSource::open`].
    pub fn open_for(&self, host: &Host) -> Result<Model> {
        self.describe_for(host)?.open(host)
    }
}

impl DescribedModel {
    /// Loads the model.
    ///
    /// # Errors
    /// If a file is damaged, or belongs to another model.
    pub fn open(self, host: &Host) -> Result<Model> {
        let loaded = self.load(host)?;
        Ok(Model::new(loaded, host))
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Model").field("described", self.described()).finish_non_exhaustive()
    }
}
