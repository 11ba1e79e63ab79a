//! The encoder family: everything about it is in this file.

use std::path::Path;

use elf_core::device::upload;
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Init, ParamBuilder, ParamSet, Precision, Weight, tensorfile};
use elf_encoder::{EncoderMask, EncoderSource, Error, Family, Result, TextEncoder, check_ids};
use tch::{Device, Tensor};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
/// The names of the parameters.
const TABLE: &str = "table";
const SHARE: &str = "share";

/// The line for the list of families: what `model_type` in `config.json` says, and how such a folder is opened.
pub const FAMILY: Family = Family { model_types: &["neighbours"], open };

fn open(source: &EncoderSource, device: Device, _: Precision) -> Result<Box<dyn TextEncoder>> {
    Ok(Box::new(Neighbours::load(source, device)?))
}

/// An encoder whose context is one token: each latent is the token's own vector plus a fraction of the previous token's vector.
#[derive(Debug)]
pub struct Neighbours {
    params: ParamSet,
    /// `[V, C]`.
    table: Weight,
    /// `[1]`. A parameter, and no setting in `config.json`, since a run knows its encoder by a hash of the parameters.
    share: Weight,
}

impl Neighbours {
    /// An encoder of the vectors `table` `[V, C]`.
    ///
    /// # Errors
    /// If it is no matrix, or libtorch fails.
    pub fn new(table: &Tensor, share: f64) -> Result<Self> {
        let encoder = Self::unset(&table.size(), Device::Cpu)?;
        encoder.params.load("the table", [(TABLE, table), (SHARE, &Tensor::from_slice(&[share as f32]))])?;
        Ok(encoder)
    }

    /// Parameters to be loaded, for a table of this shape.
    fn unset(shape: &[i64], device: Device) -> Result<Self> {
        let [_, _] = shape else {
            return Err(Error::Config(format!("a table of shape {shape:?}, which is no matrix")));
        };
        let mut builder = ParamBuilder::unset(device);
        let table = builder.tensor(TABLE, shape, Init::Constant(0.0))?;
        let share = builder.tensor(SHARE, &[1], Init::Constant(0.0))?;
        Ok(Self { params: builder.finish(), table, share })
    }

    /// Reads an encoder's folder.
    ///
    /// # Errors
    /// If a file is missing or damaged, or an inner layer is asked for.
    pub fn load(source: &EncoderSource, device: Device) -> Result<Self> {
        if let Some(layer) = source.layer {
            return Err(Error::Layer(format!("{layer} cannot be taken of a table, which has no layers")));
        }
        let weights = Weights::open(source.weights(), ParamKind::Trained)?;
        let encoder = Self::unset(&weights.shape(TABLE).unwrap_or_default(), device)?;
        encoder.params.load_from(&weights)?;
        Ok(encoder)
    }

    /// Writes an encoder's folder, which must exist.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let tensors = self.params.iter().map(|(name, p)| (name, &p.tensor));
        tensorfile::write(&folder.join(WEIGHTS), tensors, Default::default())?;
        let path = folder.join(CONFIG);
        Ok(std::fs::write(&path, r#"{"model_type": "neighbours"}"#).map_err(elf_core::Error::io("write", &path))?)
    }
}

impl TextEncoder for Neighbours {
    fn dim(&self) -> i64 {
        self.table.master().size()[1]
    }

    fn vocab_size(&self) -> i64 {
        self.table.master().size()[0]
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn encode_flops(&self, _tokens: u64) -> u64 {
        0
    }

    fn describe(&self) -> String {
        format!("a table of {} vectors of {} channels", self.vocab_size(), self.dim())
    }

    fn encode(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        // Checks ids where they are: on the host, so that a GPU is not waited for.
        let (_, s) = check_ids(ids, self.vocab_size())?;
        tch::no_grad(|| {
            let table = self.table.master();
            let own = Tensor::f_embedding(table, &upload(ids, table.device())?, -1, false, false)?;
            let mut left = own.f_narrow(1, 0, s - 1)?.f_mul(self.share.master())?;
            // A position takes in the one before it only where the mask lets it: a condition, for one, must not see its target.
            let seen = match mask {
                EncoderMask::None => None,
                EncoderMask::Columns(columns) => Some(columns.f_narrow(1, 0, s - 1)?),
                EncoderMask::Pairs(pairs) => Some(pairs.f_diagonal(-1, 1, 2)?),
            };
            if let Some(seen) = seen {
                left = left.f_mul(&seen.f_to_device(table.device())?.f_ne(0)?.f_unsqueeze(-1)?)?;
            }
            let _ = own.f_narrow(1, 1, s - 1)?.f_add_(&left)?;
            Ok(own)
        })
    }
}
