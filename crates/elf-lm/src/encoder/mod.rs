//! Text encoders of one's own: made, pre-trained, cut out of larger ones, and measured.

mod card;
mod corpus;
mod cut;
mod folder;
mod init;
mod measure;
mod optimizers;
mod pretrain;
mod recipe;
mod settings;
mod training;

pub use corpus::CorpusText;
pub use cut::{CutEncoder, CutSettings, cut};
pub use elf_encoder::FeedForward;
pub use folder::Destination;
pub use init::{EncoderSizes, init};
pub use measure::{
    LatentMeasurement, MeasureSettings, NoiseProposal, WordsTold, check_configuration, measure,
    write_into_configuration,
};
pub use pretrain::Pretraining;
pub use recipe::{Recipe, Rule};
pub use settings::PretrainingSettings;
