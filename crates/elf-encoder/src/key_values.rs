//! Keys and values of positions that were encoded before.

use tch::Tensor;

use crate::Result;

/// Of one layer: `[B, heads, capacity, D]` each.
#[derive(Debug)]
pub(crate) struct KeyValues {
    capacity: i64,
    held: Option<(Tensor, Tensor)>,
}

impl KeyValues {
    /// None yet; room for `capacity` positions.
    pub(crate) fn new(capacity: i64) -> Self {
        Self { capacity, held: None }
    }

    /// Keeps `k` and `v` `[B, heads, N, D]` of the positions from `from` on, and returns those of all `from + N`.
    pub(crate) fn put(&mut self, from: i64, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (b, heads, n, d) = k.size4()?;
        let room = |like: &Tensor| Tensor::f_zeros([b, heads, self.capacity, d], (like.kind(), like.device()));
        let (keys, values) = match self.held.take() {
            Some(held) => held,
            None => (room(k)?, room(v)?),
        };
        for (held, new) in [(&keys, k), (&values, v)] {
            held.f_narrow(2, from, n)?.f_copy_(new)?;
        }
        let all = (keys.f_narrow(2, 0, from + n)?, values.f_narrow(2, 0, from + n)?);
        self.held = Some((keys, values));
        Ok(all)
    }
}
