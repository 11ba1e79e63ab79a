//! Pre-training of an encoder on a corpus of one's own, from texts to a folder.

use elf_core::{ParamBuilder, Precision};
use elf_data::Tokenizer;
use elf_encoder::{
    EncoderMask, EncoderSource, LatentMoments, SpanCorruption, T5Pretraining, TextEncoder, open_encoder,
};
use elf_files::Held;
use elf_hub::What;
use tch::Tensor;

use super::card::EncoderCard;
use super::corpus::CorpusText;
use super::settings::PretrainingSettings;
use super::training::{Pretrainer, Progress, TrainingStore};
use crate::error::Context;
use crate::text::text_latents::{describe, write_stats};
use crate::{Host, Result, folder_lock};

/// Texts that the latents' statistics are measured on, at most.
const STATISTICS_TEXTS: usize = 8192;

/// Sentinels for texts of which `needed` spans are masked out: the tokenizer's own as far as it has them, then ids after its
/// vocabulary, with their number.
fn sentinels(tokenizer: &Tokenizer, needed: usize) -> (Vec<i32>, i64) {
    let vocab = tokenizer.vocab_size() as i32;
    let own = (0..needed).map(|i| tokenizer.id(&format!("<extra_id_{i}>"))).take_while(Option::is_some).flatten();
    let mut ids: Vec<i32> = own.collect();
    let extra = needed - ids.len();
    ids.extend((0..extra as i32).map(|i| vocab + i));
    (ids, extra as i64)
}

/// A pre-training whose settings are checked and whose texts are read. While it lives, no other process trains for its output.
pub struct Pretraining {
    settings: PretrainingSettings,
    tokenizer: Tokenizer,
    trainer: Pretrainer,
    store: TrainingStore,
    _held: Held,
}

impl Pretraining {
    /// Reads the texts and makes the model. A note describes what will be trained; the number of texts read is sent as progress.
    ///
    /// # Errors
    /// Names the setting that is impossible; or if a text cannot be read, the output already exists, or another process trains for
    /// it.
    pub fn prepare(settings: PretrainingSettings, host: &Host) -> Result<Self> {
        settings.check()?;
        let device = settings.device;
        let precision = Precision::native(device);
        let tokenizer = Tokenizer::load(host.locate(&settings.tokenizer, What::Tokenizer)?)?;
        let (eos, pad) = (tokenizer.eos_id()?, tokenizer.pad_id()?);
        let config = settings.sizes.config(&tokenizer);
        config.check()?;
        let rates = SpanCorruption {
            density: settings.density,
            mean_span: settings.mean_span,
            ..SpanCorruption::t5(eos, Vec::new())
        };
        let (sentinels, extra) = sentinels(&tokenizer, rates.sentinels_for(settings.max_length));
        let task = SpanCorruption { sentinels, ..rates };
        task.check(settings.max_length)?;
        let (corpus, held_out) = settings.corpora(&tokenizer, host)?;
        let builder = ParamBuilder::seeded(settings.recipe.seed, device);
        let model = T5Pretraining::new(&config, extra, settings.decoder_layers, builder, precision)?;
        host.note(format!(
            "{} texts of {} tokens{}; {} parameters, {} of them in the encoder; {} on {}",
            corpus.len(),
            corpus.tokens(),
            match corpus.too_short {
                0 => String::new(),
                n => format!(" ({n} too short)"),
            },
            model.params().numel(),
            config.parameter_count(),
            precision,
            elf_core::device::describe(device),
        ));
        let store = TrainingStore::beside(&settings.output, settings.fingerprint(&corpus, &tokenizer))?;
        let held = folder_lock::lock(store.path())?;
        // Whoever held it may have come to its end meanwhile.
        settings.refuse_taken().inspect_err(|_| store.remove_if_empty())?;
        let held_out_names = settings.validation.iter().map(CorpusText::columns).collect();
        let recipe = settings.recipe.clone();
        let tensorboard = settings.tensorboard.clone();
        let trainer = Pretrainer { recipe, task, pad, corpus, held_out, held_out_names, model, device, tensorboard };
        Ok(Self { settings, tokenizer, trainer, store, _held: held })
    }

    /// Trains to the end, from the newest checkpoint if there is one, and writes the encoder's folder. Returns false if it was stopped
    /// before that: then a checkpoint is there.
    ///
    /// # Errors
    /// If a checkpoint is of another training, the loss is no number, or a file cannot be written.
    pub fn carry_out(self, host: &Host) -> Result<bool> {
        let Some(progress) = self.trainer.train(&self.store, host)? else { return Ok(false) };
        self.write(&progress, host)?;
        self.store.remove()?;
        Ok(true)
    }

    /// Writes the folder: whole or not at all.
    fn write(&self, progress: &Progress, host: &Host) -> Result<()> {
        let Self { settings, tokenizer, trainer, .. } = self;
        let output = &settings.output;
        let cannot = || format!("cannot write {}", output.display());
        let aside = elf_files::begin_folder(output).with_context(cannot)?;
        trainer.model.save_encoder(aside.path(), settings.kind)?;
        tokenizer.save(aside.path().join("tokenizer.json"))?;
        // Of the encoder as everybody will read it, its numbers rounded.
        let encoder = open_encoder(&EncoderSource::folder(aside.path()), trainer.device, Precision::F32)?;
        let moments = self.moments(&*encoder)?;
        write_stats(aside.path(), None, &moments.per_channel()?)?;
        host.note(format!("latents over {} positions: {}", moments.positions(), describe(&moments.overall()?)));
        let parameters = encoder.params().numel();
        let card = EncoderCard {
            settings,
            parameters,
            vocabulary: encoder.vocab_size(),
            corpus: (trainer.corpus.len(), trainer.corpus.tokens()),
            progress,
            overall: moments.overall()?,
        };
        std::fs::write(aside.path().join("README.md"), card.to_markdown()).with_context(cannot)?;
        elf_files::finish_folder(aside, output).with_context(cannot)?;
        host.note(format!(
            "an encoder with {parameters} parameters; {} steps over {} tokens in {:.1} minutes; written to {}",
            progress.steps,
            progress.tokens,
            progress.minutes(),
            output.display()
        ));
        Ok(())
    }

    /// Moments of the latents of training texts, whole and closed by EOS.
    fn moments(&self, encoder: &dyn TextEncoder) -> Result<LatentMoments> {
        let Pretrainer { corpus, task, pad, device, .. } = &self.trainer;
        let mut moments = LatentMoments::new(usize::try_from(encoder.dim()).context("the encoder's width")?);
        for texts in corpus.batches(&corpus.evenly(STATISTICS_TEXTS), self.settings.recipe.batch_tokens) {
            let longest = texts.iter().map(|&i| corpus.text(i).len() + 1).max().unwrap_or(1);
            let mut ids = vec![i64::from(*pad); texts.len() * longest];
            let mut valid = vec![0f32; ids.len()];
            for (row, &i) in texts.iter().enumerate() {
                let text = corpus.text(i).iter().chain([&task.eos]);
                for (j, id) in text.enumerate() {
                    ids[row * longest + j] = i64::from(*id);
                    valid[row * longest + j] = 1.0;
                }
            }
            let shape = [texts.len() as i64, longest as i64];
            let ids = Tensor::f_from_slice(&ids)?.f_view(shape)?;
            let valid = Tensor::f_from_slice(&valid)?.f_view(shape)?.f_to_device(*device)?;
            moments.add(&encoder.encode(&ids, EncoderMask::Columns(&valid))?, &valid)?;
        }
        Ok(moments)
    }
}
