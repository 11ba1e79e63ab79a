//! T5's relative positions: distances in buckets that grow wider with the distance.

use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// How distances between two positions fall into buckets, as the T5 encoder does it: half of the buckets for columns at
/// or before the row, half for columns after it; in each half, the first half for exact distances and the rest for
/// logarithmically growing ranges up to a greatest distance, beyond which all are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelativeBuckets {
    count: i64,
    max_distance: i64,
}

impl RelativeBuckets {
    /// `count` buckets over both directions; distances from `max_distance` on share the last one.
    ///
    /// # Errors
    /// If `count` is not an even number of at least 4, or no distance is left for the logarithmic buckets.
    pub(crate) fn new(count: i64, max_distance: i64) -> Result<Self> {
        if count < 4 || count % 2 != 0 {
            return Err(Error::Config(format!(
                "relative_attention_num_buckets is {count}; it must be even and at least 4"
            )));
        }
        let exact = count / 4;
        if max_distance <= exact {
            return Err(Error::Config(format!(
                "relative_attention_max_distance is {max_distance}; with {count} buckets it must be above {exact}"
            )));
        }
        Ok(Self { count, max_distance })
    }

    /// Buckets, in `0..count`, of columns that lie `offsets` (int64, any shape) positions after their rows.
    ///
    /// The logarithm is libtorch's in fp32, in the order of operations of the released encoders: at the borders of
    /// buckets (64 of 128, say) the rounding decides, and they were trained with this one.
    fn of(self, offsets: &Tensor) -> Result<Tensor> {
        let half = self.count / 2;
        let within_half = self.of_distances(&offsets.f_abs()?, half)?;
        Ok(within_half.f_add(&offsets.f_gt(0)?.f_to_kind(Kind::Int64)?.f_mul_scalar(half)?)?)
    }

    /// Buckets, in `0..count`, of distances (int64, any shape, none negative): the first half of them exact.
    fn of_distances(self, distance: &Tensor, count: i64) -> Result<Tensor> {
        let exact = count / 2;
        let ratio = distance.f_to_kind(Kind::Float)?.f_div_scalar(exact as f64)?.f_log()?;
        let ratio = ratio.f_div_scalar((self.max_distance as f64 / exact as f64).ln())?.f_mul_scalar(count - exact)?;
        // Distance 0 gives -inf here; it is not taken, but must be a number before it becomes an integer.
        let far = ratio.f_clamp_min(0)?.f_to_kind(Kind::Int64)?.f_add_scalar(exact)?.f_clamp_max(count - 1)?;
        Ok(distance.f_where_self(&distance.f_lt(exact)?, &far)?)
    }

    /// Buckets of all pairs of `0..length` in the decoder, `[length, length]`, rows by columns, on the CPU: all buckets are
    /// for columns at or before the row, and later columns share bucket 0 with the row itself.
    ///
    /// # Errors
    /// If no distance is left for the logarithmic half of the buckets, of which there are twice as many as to either side in
    /// the encoder.
    pub(crate) fn causal_square(self, length: i64) -> Result<Tensor> {
        if self.max_distance <= self.count / 2 {
            return Err(Error::Config(format!(
                "relative_attention_max_distance is {}; for a decoder with {} buckets it must be above {}",
                self.max_distance,
                self.count,
                self.count / 2
            )));
        }
        let positions = Tensor::f_arange(length, (Kind::Int64, Device::Cpu))?;
        let by_distance = self.of_distances(&positions, self.count)?;
        let index = positions.f_unsqueeze(1)?.f_sub(&positions.f_unsqueeze(0)?)?.f_clamp_min(0)?;
        Ok(by_distance.f_take(&index)?)
    }

    /// Buckets of all pairs of `0..length`: `[length, length]`, rows by columns, on the CPU.
    pub(crate) fn square(self, length: i64) -> Result<Tensor> {
        let positions = Tensor::f_arange(length, (Kind::Int64, Device::Cpu))?;
        // A bucket depends on the difference only: 2 * length - 1 logarithms instead of the square.
        let by_offset = self.of(&Tensor::f_arange_start(1 - length, length, (Kind::Int64, Device::Cpu))?)?;
        let index = positions.f_unsqueeze(0)?.f_sub(&positions.f_unsqueeze(1)?)?.f_add_scalar(length - 1)?;
        Ok(by_offset.f_take(&index)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buckets_of(buckets: RelativeBuckets, offsets: &[i64]) -> Vec<i64> {
        buckets.of(&Tensor::from_slice(offsets)).unwrap().try_into().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn buckets_grow_with_distance_and_mirror(half in 2i64..40, extra in 1i64..400) {
            let (count, exact) = (half * 2, half / 2);
            let buckets = RelativeBuckets::new(count, exact + extra).unwrap();
            let distances: Vec<i64> = (0..600).collect();
            let before = buckets_of(buckets, &distances.iter().map(|d| -d).collect::<Vec<_>>());
            let after = buckets_of(buckets, &distances);
            prop_assert!(before.is_sorted(), "buckets are monotone in the distance");
            for d in distances {
                let (b, a) = (before[d as usize], after[d as usize]);
                prop_assert!((0..half).contains(&b));
                prop_assert_eq!(a, if d > 0 { b + half } else { b }, "both directions mirror each other");
                if d < exact {
                    prop_assert_eq!(b, d, "short distances are exact");
                }
                if d > exact + extra {
                    prop_assert_eq!(b, half - 1, "long distances share the last bucket");
                }
            }
        }
    }

    #[test]
    fn borders_of_the_released_encoders() {
        // 32 buckets up to 128: exact below 8, then borders at 8 * 16^(k/8), rounded up.
        let buckets = RelativeBuckets::new(32, 128).unwrap();
        for (bucket, first) in [(8, 8), (9, 12), (10, 16), (11, 23), (12, 32), (13, 46), (14, 64), (15, 91)] {
            assert_eq!(buckets_of(buckets, &[1 - first, -first, first]), [bucket - 1, bucket, bucket + 16], "{first}");
        }
        assert_eq!(buckets_of(buckets, &[-128, -4000, 4000]), [15, 15, 31]);
    }

    #[test]
    fn the_square_is_the_bucket_of_each_pair() {
        let buckets = RelativeBuckets::new(8, 9).unwrap();
        let square = buckets.square(7).unwrap();
        for row in 0..7 {
            for column in 0..7 {
                assert_eq!(vec![square.int64_value(&[row, column])], buckets_of(buckets, &[column - row]));
            }
        }
    }

    #[test]
    fn impossible_buckets_are_refused() {
        for (count, distance) in [(0, 128), (2, 128), (7, 128), (32, 8)] {
            assert!(RelativeBuckets::new(count, distance).is_err());
        }
    }
}
