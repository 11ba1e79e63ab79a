//! Decoded tokens on the host.

use tch::{Kind, Tensor};

use crate::{Error, Reading, Result};

/// A reading on the host.
pub(super) struct HostReading {
    /// Token ids, one list of S per row.
    pub(super) ids: Vec<Vec<i64>>,
    /// Their natural log-probabilities.
    pub(super) log_probs: Vec<Vec<f32>>,
}

impl HostReading {
    /// The first `rows` rows of a reading. The device is waited for once, which also says whether the latents that were read are finite.
    pub(super) fn of(reading: &Reading, latents: &Tensor, rows: usize) -> Result<Self> {
        let s = reading.ids.size2()?.1 as usize;
        let rows = rows as i64;
        let finite = latents.f_narrow(0, 0, rows)?.f_isfinite()?.f_all()?.f_to_kind(Kind::Int64)?.f_view([1])?;
        let ids = reading.ids.f_narrow(0, 0, rows)?.f_reshape([-1])?;
        // The bits of fp32 numbers travel as integers, in one tensor with the ids.
        let bits = reading.log_probs.f_narrow(0, 0, rows)?.f_reshape([-1])?.f_view_dtype(Kind::Int)?;
        let mut flat = Vec::<i64>::try_from(Tensor::f_cat(&[ids, bits.f_to_kind(Kind::Int64)?, finite], 0)?)?;
        if flat.pop() != Some(1) {
            let reason = "the sampled latents are not finite; use smaller guidance scales, or another checkpoint if this one is damaged";
            return Err(Error::setting("sampling", reason));
        }
        let (ids, bits) = flat.split_at(flat.len() / 2);
        let log_probs: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits as u32)).collect();
        Ok(Self {
            ids: ids.chunks(s).map(<[i64]>::to_vec).collect(),
            log_probs: log_probs.chunks(s).map(<[f32]>::to_vec).collect(),
        })
    }
}
