//! Laws of every text encoder, and what their tests share.

use elf_encoder::{EncoderMask, TextEncoder};
use tch::{Device, Kind, Tensor};

/// Ids `[b, s]` below 50, spread without a generator: primes, so that rows differ.
pub fn ids(seed: i64, b: i64, s: i64) -> Tensor {
    ((Tensor::arange(b * s, (Kind::Int64, Device::Cpu)) + seed.rem_euclid(1009)) * 7919).remainder(50).view([b, s])
}

/// The largest difference of two tensors of one shape.
pub fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// Columns that a mask hides change nothing in the visible rows, whatever they hold, and a padded row is the row alone.
pub fn hidden_columns_do_not_reach_visible_rows(encoder: &dyn TextEncoder, seed: u8, s: i64, keep: i64, other: i64) {
    let keep = keep.min(s - 1);
    let before = ids(seed.into(), 2, s);
    let after = before.copy();
    let _ = after.narrow(1, keep, s - keep).fill_(other);
    let columns = Tensor::arange(s, (Kind::Int64, Device::Cpu)).lt(keep).to_kind(Kind::Int64).expand([2, s], false);
    let pairs = columns.unsqueeze(1).expand([2, s, s], false);
    for mask in [EncoderMask::Columns(&columns), EncoderMask::Pairs(&pairs)] {
        let (a, b) = (encoder.encode(&before, mask).unwrap(), encoder.encode(&after, mask).unwrap());
        assert!(a.narrow(1, 0, keep).equal(&b.narrow(1, 0, keep)));
    }
    let short = encoder.encode(&before.narrow(1, 0, keep), EncoderMask::None).unwrap();
    let long = encoder.encode(&before, EncoderMask::Columns(&columns)).unwrap();
    assert!(apart(&short, &long.narrow(1, 0, keep)) < 1e-5);
}
