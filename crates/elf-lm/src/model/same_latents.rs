//! Comparison of two models' latent spaces: a guide must have the same latents as the model that it guides.

use std::path::Path;

use elf_core::weights::{ParamKind, Weights};
use elf_encoder::{LatentStats, RELEASED_MOMENTS};
use tch::{Device, Tensor};

use crate::config::{EncoderRecord, RunConfig};
use crate::text::text_latents::stats;

/// Tensor names of an encoder's token embeddings: T5's, then those of the BERT family.
const TOKEN_EMBEDDINGS: [&str; 5] = [
    "shared.weight",
    "encoder.embed_tokens.weight",
    "embeddings.word_embeddings.weight",
    "bert.embeddings.word_embeddings.weight",
    "distilbert.embeddings.word_embeddings.weight",
];

/// What is known of a model's latent space.
#[derive(Debug, Clone, Copy)]
pub struct LatentsOf<'a> {
    /// The tokenizer's fingerprint.
    pub tokenizer: &'a str,
    /// The configuration of the model's training, if known.
    pub config: Option<&'a RunConfig>,
    /// The encoder's hash and statistics, if recorded.
    pub encoder: Option<&'a EncoderRecord>,
}

impl LatentsOf<'_> {
    /// The first known difference between two latent spaces, as a message that names both sides, or `None`. Fetches
    /// nothing: an encoder that is not stored locally is not compared.
    pub fn difference(&self, other: &LatentsOf) -> Option<String> {
        let (a, b) = (self.tokenizer, other.tokenizer);
        if a != b {
            return Some(format!("its tokenizer has the fingerprint {}, and that of the model {}", short(b), short(a)));
        }
        let encoders = self.encoder.zip(other.encoder);
        let (own, other) = (self.config?, other.config?);
        for (key, a, b) in [
            ("learned_latents", own.network.learned_latents, other.network.learned_latents),
            ("causal_latents", own.network.causal_latents, other.network.causal_latents),
        ] {
            if a != b {
                return Some(format!("its {key} is {b}, and that of the model {a}"));
            }
        }
        if own.network.learned_latents {
            return None;
        }
        if let Some((one, another)) = encoders {
            let at = |record: &EncoderRecord| record.files.folder.display().to_string();
            return if one.blake3 != another.blake3 {
                Some(format!("its encoder was that in {}, and that of the model in {}", at(another), at(one)))
            } else {
                difference_of_stats(&one.stats, &another.stats)
            };
        }
        let (a, b) = (encoder(own), encoder(other));
        let (here, there) = (Path::new(a), Path::new(b));
        let stats = |config, folder| stats(config, folder, Some(RELEASED_MOMENTS)).ok().flatten();
        let (stats_here, stats_there) = if here.exists() && there.exists() {
            if same_token_embeddings(here, there) == Some(false) {
                return Some(format!("its encoder is {b}, and that of the model {a}"));
            }
            (stats(own, here)?, stats(other, there)?)
        } else if a == b {
            // The same hub id means the same latent_stats.json, but settings may override it.
            (stats(own, here)?, stats(other, there)?)
        } else {
            return None;
        };
        difference_of_stats(&stats_here, &stats_there)
    }
}

fn difference_of_stats(own: &LatentStats, other: &LatentStats) -> Option<String> {
    let written = |stats| shorten(&serde_json::to_string(stats).unwrap_or_default());
    let message =
        || format!("its latents are normalised by {}, and those of the model by {}", written(other), written(own));
    (own != other).then(message)
}

/// The path or Hugging Face id of the encoder's weights.
fn encoder(config: &RunConfig) -> &str {
    config.encoder.encoder_checkpoint.as_ref().unwrap_or(&config.encoder.encoder_model_name)
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}

/// The first 80 characters: the statistics of all channels are too long for a message.
fn shorten(written: &str) -> String {
    match written.char_indices().nth(80) {
        Some((end, _)) => format!("{} ...", &written[..end]),
        None => written.to_owned(),
    }
}

/// Whether two encoders have the same token embeddings up to rounding, as one may be stored in 16 bits. `None` if they
/// cannot be compared.
fn same_token_embeddings(a: &Path, b: &Path) -> Option<bool> {
    if a.canonicalize().ok()? == b.canonicalize().ok()? {
        return Some(true);
    }
    let embeddings = |path: &Path| -> Option<Tensor> {
        let weights = Weights::open(path, ParamKind::Trained).ok()?;
        let name = TOKEN_EMBEDDINGS.into_iter().find(|name| weights.shape(name).is_some())?;
        weights.get(name, Device::Cpu).ok()?.f_to_kind(tch::Kind::Float).ok()
    };
    let (a, b) = (embeddings(a)?, embeddings(b)?);
    if a.size() != b.size() {
        return Some(false);
    }
    a.f_allclose(&b, 1e-2, 1e-5, false).ok()
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// Writes an encoder's folder with token embeddings of the given number format.
    fn encoder(folder: &Path, name: &str, shift: f64, kind: Kind, stats: &str) -> RunConfig {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).unwrap();
        let words = (Tensor::arange(12, (Kind::Float, Device::Cpu)) * 0.37 + shift).sin().view([4, 3]).to_kind(kind);
        let file = path.join("model.safetensors");
        elf_core::tensorfile::write(&file, [("shared.weight", &words)], Default::default()).unwrap();
        std::fs::write(path.join(crate::text::text_latents::STATS_FILE), stats).unwrap();
        RunConfig::default().with(|c| c.encoder.encoder_model_name = path.to_str().unwrap().to_owned())
    }

    #[test]
    fn latents_are_the_same_wherever_the_encoder_lies_and_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let plain = r#"{"mean": 0.0, "std": 0.2}"#;
        let of = |name, shift, kind, stats| encoder(folder.path(), name, shift, kind, stats);
        let own = of("own", 0.0, Kind::Float, plain);
        fn known(config: Option<&RunConfig>) -> LatentsOf<'_> {
            LatentsOf { tokenizer: "0123456789abcdef", config, encoder: None }
        }
        let difference = |guide: &RunConfig| known(Some(&own)).difference(&known(Some(guide)));

        // A copy in full or half precision, the same statistics as settings, an encoder that is not stored locally.
        assert_eq!(difference(&of("copy", 0.0, Kind::Float, plain)), None);
        assert_eq!(difference(&of("half", 0.0, Kind::Half, plain)), None);
        assert_eq!(
            difference(&own.clone().with(|c| {
                c.encoder.latent_mean = Some(0.0);
                c.encoder.latent_std = Some(0.2);
            })),
            None
        );
        let elsewhere = own.clone().with(|c| c.encoder.encoder_model_name = "someone/encoder".into());
        assert_eq!(difference(&elsewhere), None);
        // Without a configuration, only the tokenizer is known.
        assert_eq!(known(Some(&own)).difference(&known(None)), None);

        let other = of("other", 0.5, Kind::Float, plain);
        let message = difference(&other).unwrap();
        assert!(
            message.contains(&own.encoder.encoder_model_name) && message.contains(&other.encoder.encoder_model_name),
            "{message}"
        );
        let wide = difference(&of("wide", 0.0, Kind::Float, r#"{"mean": 0.0, "std": 0.3}"#)).unwrap();
        assert!(wide.contains("0.3") && wide.contains("0.2"), "{wide}");
        let causal = difference(&own.clone().with(|c| c.network.causal_latents = true)).unwrap();
        assert!(causal.contains("causal_latents is true") && causal.contains("false"), "{causal}");
        let words =
            known(None).difference(&LatentsOf { tokenizer: "fedcba9876543210", config: None, encoder: None }).unwrap();
        assert!(words.contains("fedcba987654") && words.contains("0123456789ab"), "{words}");
        // The same hub id with other settings.
        let remote = |std| {
            own.clone().with(|c| {
                c.encoder.encoder_model_name = "t5-small".into();
                c.encoder.latent_std = Some(std);
            })
        };
        let (a, b) = (remote(0.2), remote(0.4));
        assert!(known(Some(&a)).difference(&known(Some(&b))).unwrap().contains("0.4"));
    }
}
