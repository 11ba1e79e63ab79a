//! Positions whose clean latents are given rather than generated.

use elf_core::Error as CoreError;
use elf_core::device::upload;
use tch::{Device, Kind, Tensor};

use crate::batch::host_numbers;
use crate::{Error, Field, Prediction, Result};

/// The token id of a position without a word.
pub(crate) const NO_WORD: i64 = -1;

/// The condition of a batch: which positions are given, and their clean latents.
#[derive(Debug)]
pub struct Condition {
    /// Clean latents, `[B, S, C]`; values outside the condition positions are ignored.
    latents: Tensor,
    /// Their token ids, `[B, S]`, i64, on the latents' device; negative outside the condition positions.
    ids: Tensor,
    /// True on positions to generate, `[B, S, 1]`, bool.
    free: Tensor,
    /// Condition positions at the start of each row.
    lengths: Vec<usize>,
    /// Whether the condition is part of the text.
    in_text: bool,
    /// Tokens that no position to generate may hold.
    barred: Vec<i64>,
}

impl Condition {
    /// From clean latents `[B, S, C]`, normalised as in training, their token ids `[B, S]`, and a mask `[B, S]` on the CPU, 1 on
    /// condition positions.
    ///
    /// # Errors
    /// If the shapes do not fit together, or the mask holds anything but 0 and 1.
    pub fn new(latents: &Tensor, ids: &Tensor, mask: &Tensor) -> Result<Self> {
        let (b, s, _) = latents.size3()?;
        if ids.size() != [b, s] || ids.kind() != Kind::Int64 {
            let expected = format!("[{b}, {s}] of 64-bit integers, one for each of the condition's latents");
            return Err(CoreError::Shape { what: "condition ids".into(), found: ids.size(), expected }.into());
        }
        if mask.size() != [b, s] || mask.device() != Device::Cpu {
            let expected = format!("[{b}, {s}] on the CPU, as the condition's latents have");
            return Err(CoreError::Shape { what: "condition mask".into(), found: mask.size(), expected }.into());
        }
        let flat = host_numbers(mask)?;
        if let Some(other) = flat.iter().find(|&&m| m != 0.0 && m != 1.0) {
            return Err(Error::setting("condition mask", format!("{other} is neither 0 nor 1")));
        }
        let lengths = match s {
            0 => vec![0; b as usize],
            s => flat.chunks(s as usize).map(|row| row.iter().take_while(|&&m| m == 1.0).count()).collect(),
        };
        let free = upload(&mask.f_eq(0.0)?.f_unsqueeze(-1)?, latents.device())?;
        let ids = upload(ids, latents.device())?.f_masked_fill(&free.f_squeeze_dim(-1)?, NO_WORD)?;
        Ok(Self { latents: latents.shallow_clone(), ids, free, lengths, in_text: false, barred: Vec::new() })
    }

    /// The same condition as part of the text around it: its tokens are read as they are, nothing is cut from the decoded row, and no
    /// other position is read as one of the `barred` tokens, such as the end of a text.
    #[must_use]
    pub fn in_text(self, barred: &[i64]) -> Self {
        Self { lengths: vec![0; self.lengths.len()], in_text: true, barred: barred.to_vec(), ..self }
    }

    /// `(B, S, C)`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn sizes(&self) -> Result<(i64, i64, i64)> {
        Ok(self.latents.size3()?)
    }

    /// The number of condition positions at the start of each row, which are cut from its decoded text; 0 where they are part of it.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// `z` `[B, S, C]` with the clean condition in its positions, bit for bit.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn pin(&self, z: &Tensor) -> Result<Tensor> {
        Ok(z.f_where_self(&self.free, &self.latents)?)
    }

    /// `ids` `[B, S]` with the condition's in its positions.
    pub(crate) fn pin_ids(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(ids.f_where_self(&self.free.f_squeeze_dim(-1)?, &self.ids)?)
    }

    /// Token ids of the condition, negative elsewhere, for a pass of `rows` rows: `[B, S]`, or `[2B, S]` with a second half that has
    /// no condition.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn words(&self, rows: i64) -> Result<Tensor> {
        match rows == self.lengths.len() as i64 {
            true => Ok(self.ids.shallow_clone()),
            false => Ok(Tensor::f_cat(&[&self.ids, &self.ids.f_full_like(NO_WORD)?], 0)?),
        }
    }

    /// `z` `[B, S, C]` with 0 in the condition's positions.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn remove(&self, z: &Tensor) -> Result<Tensor> {
        Ok(z.f_where_scalarother(&self.free, 0.0)?)
    }

    /// Logits `[positions, V]`, fp32, of the positions from `first` on among the `B * S`, so that only what the condition allows can be
    /// read from them; unchanged if the condition is no part of the text.
    pub(crate) fn allowed(&self, logits: &Tensor, first: i64) -> Result<Tensor> {
        if !self.in_text {
            return Ok(logits.shallow_clone());
        }
        let positions = logits.size2()?.0;
        let part =
            |x: &Tensor| -> Result<Tensor> { Ok(x.f_reshape([-1])?.f_narrow(0, first, positions)?.f_unsqueeze(-1)?) };
        let (free, ids) = (part(&self.free)?, part(&self.ids)?);
        let barred = upload(&Tensor::f_from_slice(&self.barred)?, logits.device())?;
        let others = logits.f_index_fill(-1, &barred, f64::NEG_INFINITY)?;
        let only = logits.f_full_like(f64::NEG_INFINITY)?.f_scatter_value(-1, &ids.f_clamp_min(0)?, 0.0)?;
        Ok(others.f_where_self(&free, &only)?)
    }

    /// Whether each of the `B * S` positions is skipped where words are put together: those that are given.
    pub(crate) fn skipped(&self) -> Result<Vec<bool>> {
        let (b, s, _) = self.sizes()?;
        if self.in_text {
            return Ok(Vec::try_from(self.given()?.f_reshape([-1])?.f_to_device(Device::Cpu)?)?);
        }
        let before = |row: usize| (0..s as usize).map(move |place| (row, place));
        Ok((0..b as usize).flat_map(before).map(|(row, place)| place < self.lengths[row]).collect())
    }

    /// 1 on positions to generate, `[B, S, 1]`, fp32.
    pub(crate) fn free_positions(&self) -> Result<Tensor> {
        Ok(self.free.f_to_kind(Kind::Float)?)
    }

    /// True on condition positions, `[B, S]`, bool.
    pub(crate) fn given(&self) -> Result<Tensor> {
        Ok(self.free.f_squeeze_dim(-1)?.f_logical_not()?)
    }

    /// The condition of the `width` positions from `first` on.
    pub(crate) fn span(&self, first: i64, width: i64) -> Result<Self> {
        Ok(Self {
            latents: self.latents.f_narrow(1, first, width)?,
            ids: self.ids.f_narrow(1, first, width)?,
            free: self.free.f_narrow(1, first, width)?,
            lengths: self.lengths.iter().map(|&n| n.saturating_sub(first as usize).min(width as usize)).collect(),
            in_text: self.in_text,
            barred: self.barred.clone(),
        })
    }

    /// The condition on `device`, with its first row repeated until there are `rows` rows.
    pub(crate) fn fitted(&self, rows: i64, device: Device) -> Result<Self> {
        let have = self.lengths.len() as i64;
        let index: Vec<i64> = (0..rows).map(|i| if i < have { i } else { 0 }).collect();
        let index = upload(&Tensor::f_from_slice(&index)?, self.latents.device())?;
        Ok(Self {
            latents: self.latents.f_index_select(0, &index)?.f_to_device(device)?,
            ids: self.ids.f_index_select(0, &index)?.f_to_device(device)?,
            free: self.free.f_index_select(0, &index)?.f_to_device(device)?,
            lengths: (0..rows as usize).map(|i| self.lengths[if i < have as usize { i } else { 0 }]).collect(),
            in_text: self.in_text,
            barred: self.barred.clone(),
        })
    }
}

/// A field whose condition positions are clean throughout: in the inner field's inputs z and hint and in its estimate. Their velocity
/// is 0.
#[derive(Debug)]
pub struct Conditioned<'a, F> {
    inner: F,
    condition: &'a Condition,
}

impl<'a, F: Field> Conditioned<'a, F> {
    /// Pins `condition` in `inner`.
    pub fn new(inner: F, condition: &'a Condition) -> Self {
        Self { inner, condition }
    }
}

impl<F: Field> Field for Conditioned<'_, F> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        let z = self.condition.pin(z)?;
        // No estimate is 0 where text is to be generated; the condition's estimate is always known.
        let hint = match hint {
            Some(hint) => self.condition.pin(hint)?,
            None => self.condition.pin(&z.f_zeros_like()?)?,
        };
        let Prediction { v, x } = self.inner.eval(&z, t, Some(&hint))?;
        Ok(Prediction { v: self.condition.remove(&v)?, x: self.condition.pin(&x)? })
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        self.condition.pin(&self.inner.pin(z)?)
    }

    fn noise_scale(&self) -> f64 {
        self.inner.noise_scale()
    }
}
