//! What the rest of the system needs of a text encoder.

use elf_core::{ParamSet, id_outside};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Which columns (keys) each row (query) of a sequence may attend to; 1 (anything but 0) is attend.
#[derive(Debug, Clone, Copy)]
pub enum EncoderMask<'a> {
    /// Every position sees every position.
    None,
    /// `[B, S]`: the same visible columns for all rows of a sequence, such as its valid positions.
    Columns(&'a Tensor),
    /// `[B, S, S]`: visible columns for each row of its own, such as "a condition sees only the condition".
    Pairs(&'a Tensor),
}

impl EncoderMask<'_> {
    /// The mask on `device`, true where a position may be seen: `[B, 1, S]` of columns, `[B, S, S]` of pairs, none where
    /// everything is visible.
    ///
    /// # Errors
    /// If it is not of `b` rows of `s` positions, or libtorch fails.
    pub(crate) fn visible(self, b: i64, s: i64, device: Device) -> Result<Option<Tensor>> {
        let mask = match self {
            Self::None => return Ok(None),
            Self::Columns(m) if m.size() == [b, s] => m.f_unsqueeze(1)?,
            Self::Pairs(m) if m.size() == [b, s, s] => m.shallow_clone(),
            Self::Columns(m) => return Err(Error::shape("the encoder's mask", m, format!("[{b}, {s}]"))),
            Self::Pairs(m) => return Err(Error::shape("the encoder's mask", m, format!("[{b}, {s}, {s}]"))),
        };
        Ok(Some(mask.f_to_device(device)?.f_ne(0)?))
    }
}

/// A frozen map from token ids to latents.
///
/// `Send`, so that a batch can be encoded on a prefetch thread while the previous one is trained on.
pub trait TextEncoder: Send {
    /// C, the channels of a latent.
    fn dim(&self) -> i64;

    /// How many token ids there are.
    fn vocab_size(&self) -> i64;

    /// Everything that decides which latents an id gets, frozen: a run is bound to its encoder by a hash of these.
    fn params(&self) -> &ParamSet;

    /// Floating-point operations of encoding one row of `tokens` ids: matrix products alone, a multiplication and an addition
    /// counting as two.
    fn encode_flops(&self, tokens: u64) -> u64;

    /// Family and size in a few words, for messages, such as `BERT, 3 layers of 384 channels`.
    fn describe(&self) -> String;

    /// The most ids of a row, if there is a limit.
    fn longest(&self) -> Option<i64> {
        None
    }

    /// Mean and standard deviation for latents that nobody has measured, if some do for all encoders of the family.
    fn usual_moments(&self) -> Option<(f64, f64)> {
        None
    }

    /// Latents `[B, S, C]`, fp32, on the encoder's device and without gradients, of `ids` `[B, S]` (int64, any device).
    ///
    /// # Errors
    /// [`Error::Vocabulary`] if an id is negative or not below [`TextEncoder::vocab_size`]; a shape error if ids or mask
    /// do not fit; libtorch's own errors.
    fn encode(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor>;

    /// Encodes `rows` rows of at most `capacity` positions piece by piece, without encoding again what was encoded before;
    /// `None` if this encoder cannot.
    fn growing(&self, _rows: i64, _capacity: i64) -> Option<Box<dyn GrowingRows + '_>> {
        None
    }
}

impl<E: TextEncoder + ?Sized> TextEncoder for Box<E> {
    fn dim(&self) -> i64 {
        (**self).dim()
    }

    fn vocab_size(&self) -> i64 {
        (**self).vocab_size()
    }

    fn params(&self) -> &ParamSet {
        (**self).params()
    }

    fn encode_flops(&self, tokens: u64) -> u64 {
        (**self).encode_flops(tokens)
    }

    fn describe(&self) -> String {
        (**self).describe()
    }

    fn longest(&self) -> Option<i64> {
        (**self).longest()
    }

    fn usual_moments(&self) -> Option<(f64, f64)> {
        (**self).usual_moments()
    }

    fn encode(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        (**self).encode(ids, mask)
    }

    fn growing(&self, rows: i64, capacity: i64) -> Option<Box<dyn GrowingRows + '_>> {
        (**self).growing(rows, capacity)
    }
}

/// Rows of ids that grow at their end: what was encoded before is kept as keys and values, so that a piece costs what is new in it.
///
/// It gives the latents of [`TextEncoder::encode`] with a mask of pairs, as long as no position sees one that is
/// encoded later: with causal masks, or where what sees one another is encoded together.
pub trait GrowingRows {
    /// Latents `[B, N, C]`, fp32, of the positions `from..from + N`. `ids` `[B, N]` (int64) are theirs alone; `mask`
    /// `[B, N, from + N]` says which columns each of them sees. Positions from `from` on that were encoded before are
    /// replaced.
    ///
    /// # Errors
    /// If positions between those before and `from` were left out, the rows become too long, shapes do not fit, an id is not
    /// in the vocabulary, or libtorch fails.
    fn encode(&mut self, from: i64, ids: &Tensor, mask: &Tensor) -> Result<Tensor>;
}

/// Checks that `ids` is an int64 `[B, S]` with every id in `0..vocab_size`, and returns `(B, S)`. For implementors.
///
/// Pass ids from the CPU: see [`id_outside`].
///
/// # Errors
/// If one of these does not hold, or there are no ids at all.
pub fn check_ids(ids: &Tensor, vocab_size: i64) -> Result<(i64, i64)> {
    let (b, s) = match ids.size()[..] {
        [b, s] if b > 0 && s > 0 && ids.kind() == Kind::Int64 => (b, s),
        _ => {
            return Err(Error::shape(
                &format!("ids (of kind {:?})", ids.kind()),
                ids,
                "[B, S] of int64, at least one of each",
            ));
        }
    };
    match id_outside(ids, vocab_size)? {
        Some(id) => Err(Error::Vocabulary { id, vocab_size }),
        None => Ok((b, s)),
    }
}
