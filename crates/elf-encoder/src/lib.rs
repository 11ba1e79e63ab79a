//! Frozen text encoders and latent normalisation: token ids become the latents that a flow works on.
//!
//! * [`TextEncoder`]: what the rest of the system needs of an encoder; bring one of your own by implementing it.
//! * [`open_encoder`]: an encoder of the family that its `config.json` names.
//! * [`BertEncoder`] and [`BertConfig`]: the BERT family (BERT, MiniLM, DistilBERT), read from Hugging Face's files.
//! * [`T5Encoder`] and [`T5Config`]: the encoder half of T5, read from and written to Hugging Face's files.
//! * [`SpanCorruption`] and [`T5Pretraining`]: a T5 encoder of one's own, taught by a decoder that is thrown away.
//! * [`WordMoments`] and [`LinearReader`]: how well a word can be told from its own latent, without context.
//! * [`LatentStats`] and [`LatentMoments`]: normalising latents, and measuring what to normalise them by.
//! * [`SeenWords`] and [`LatentSample`]: which words noisy latents give away, and in how many dimensions they vary.
//!
//! It deliberately does not know flows, networks that denoise, optimisers, text or tokenisers: ids come in, latents go
//! out. A [`TextEncoder`] never carries gradients; only pre-training does.

mod bert;
mod bert_config;
mod bert_layers;
mod encoder_source;
mod error;
mod growing_rows;
mod key_values;
mod latent_stats;
mod linear_reader;
mod open;
mod pretraining;
mod relative_position;
mod seen_words;
mod span_corruption;
mod t5;
mod t5_config;
mod t5_layers;
mod text_encoder;

pub use bert::BertEncoder;
pub use bert_config::{BertConfig, BertLayout};
pub use encoder_source::EncoderSource;
pub use error::{Error, Result};
pub use latent_stats::{LatentMoments, LatentStats, PerChannel, RELEASED_MOMENTS};
pub use linear_reader::{LinearReader, WordMoments};
pub use open::{BUILTIN, Family, open_encoder, open_encoder_of};
pub use pretraining::T5Pretraining;
pub use seen_words::{LatentSample, SeenWords, Told};
pub use span_corruption::{Corrupted, DenoisingBatch, SpanCorruption};
pub use t5::T5Encoder;
pub use t5_config::{FeedForward, T5Config};
pub use text_encoder::{EncoderMask, GrowingRows, TextEncoder, check_ids};
