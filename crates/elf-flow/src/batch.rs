//! Batches of clean latents with their masks, the input of an objective.

use elf_core::Error as CoreError;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// A batch of encoded text, ready for an objective.
///
/// The masks stay on the CPU while the latents are on their device, so that the host can decide which rows and positions need which
/// work without waiting for the device.
#[derive(Debug)]
pub struct LatentBatch {
    /// Normalised clean latents, `[B, S, C]`, fp32, on the network's device.
    pub latents: Tensor,
    /// Token ids, `[B, S]`, i64, on the CPU.
    pub ids: Tensor,
    /// 1 where the loss counts, `[B, S]`, fp32, on the CPU: never on condition positions, and not on padding unless padding
    /// is learned.
    pub loss_mask: Tensor,
    /// 1 on condition positions, `[B, S]`, fp32, on the CPU; `None` for unconditional batches.
    pub condition: Option<Tensor>,
    /// Rows whose condition is dropped, `[B]`; empty if none can be.
    pub dropped: Vec<bool>,
}

impl LatentBatch {
    /// `(B, S, C)`.
    ///
    /// # Errors
    /// If the parts' shapes do not fit together.
    pub fn sizes(&self) -> Result<(i64, i64, i64)> {
        let (b, s, c) = self.latents.size3()?;
        let check = |what: &str, t: &Tensor| {
            if t.size() == [b, s] && t.device() == Device::Cpu {
                return Ok(());
            }
            Err(CoreError::Shape { what: what.to_owned(), found: t.size(), expected: format!("[{b}, {s}] on the CPU") })
        };
        check("ids", &self.ids)?;
        check("loss_mask", &self.loss_mask)?;
        if let Some(condition) = &self.condition {
            check("condition", condition)?;
        }
        if !self.dropped.is_empty() && self.dropped.len() as i64 != b {
            return Err(CoreError::Shape {
                what: "dropped".into(),
                found: vec![self.dropped.len() as i64],
                expected: format!("[{b}]"),
            }
            .into());
        }
        Ok((b, s, c))
    }

    /// Positions that the loss counts.
    ///
    /// # Errors
    /// If the loss mask is not on the CPU.
    pub fn loss_positions(&self) -> Result<f64> {
        positions_in(&self.loss_mask)
    }
}

/// Positions that a mask counts.
pub(crate) fn positions_in(mask: &Tensor) -> Result<f64> {
    Ok(host_numbers(mask)?.into_iter().map(f64::from).sum())
}

/// The numbers of a mask on the CPU, read without waiting for any device.
pub(crate) fn host_numbers(mask: &Tensor) -> Result<Vec<f32>> {
    if mask.device() != Device::Cpu {
        let expected = format!("{:?} on the CPU", mask.size());
        return Err(CoreError::Shape { what: "mask".into(), found: mask.size(), expected }.into());
    }
    Ok(Vec::try_from(mask.f_to_kind(Kind::Float)?.f_reshape([-1])?)?)
}
