//! The flow that carries noise to clean latents.
//!
//! * [`Path`]: the straight line between noise and data, and the velocity along it.
//! * [`TimeLaw`], [`GuidanceLaw`], [`TimeGrid`]: how times and guidance scales are drawn in training, and which times a
//!   sampler visits.
//! * [`Objective`]: a training loss as a function of a network, a batch of latents and explicit draws; [`ElfObjective`]
//!   is the one of the paper.
//!
//! It works on any [`elf_core::Network`] and deliberately does not know T5, text, files, the ELF transformer, or how
//! parameters are updated.

mod batch;
mod error;
mod objective;
mod path;
mod time;

pub use batch::LatentBatch;
pub use error::{Error, Result};
pub use objective::{ElfObjective, Loss, LossTerm, Objective};
pub use path::Path;
pub use time::{GuidanceLaw, LogitNormal, TimeGrid, TimeLaw};
