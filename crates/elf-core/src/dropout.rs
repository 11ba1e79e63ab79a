//! Dropout with masks per row.

use tch::Tensor;

use crate::{Error, Noise, Result, Seeded, key_of};

/// The dropout of one pass. A row's masks depend on its key and the place in the network alone, not on the other rows of
/// its batch, so that training does not depend on the distribution of rows over ranks.
#[derive(Debug, Clone)]
pub struct Dropout {
    rows: Vec<u64>,
    length: i64,
}

impl Dropout {
    /// One key per row, and the number of positions of a whole row. Masks are drawn for all positions, so that a batch that
    /// uses only some of them gets the same masks.
    pub fn new(rows: Vec<u64>, length: i64) -> Self {
        Self { rows, length }
    }

    /// [`Dropout::new`] with keys of `rows` rows from [`Noise::dropout`]; `None` if the noise allows no dropout.
    ///
    /// # Errors
    /// If the noise fails.
    pub fn draw(noise: &mut dyn Noise, rows: usize, length: i64) -> Result<Option<Self>> {
        let coins = noise.dropout(rows)?;
        Ok(coins.map(|coins| Self::new(coins.iter().map(|coin| coin.to_bits()).collect(), length)))
    }

    /// The dropout of the same rows in another order, given by their present places.
    #[must_use]
    pub fn in_order(&self, order: &[i64]) -> Self {
        Self { rows: order.iter().map(|&row| self.rows[row as usize]).collect(), length: self.length }
    }

    /// Number of positions of a whole row.
    pub fn length(&self) -> i64 {
        self.length
    }

    /// `x` `[B, N, C]` with a share `share` (in [0, 1)) of its numbers set to 0 and the others scaled up. `x` holds the
    /// positions `from..until` of each pair in `held`, in this order, out of the `of` positions of a row. Masks at
    /// different `place`s of a network are independent.
    ///
    /// # Errors
    /// If the numbers of keys and rows differ, `held` does not have N positions, or libtorch fails.
    pub fn apply(&self, x: &Tensor, share: f64, place: &[u64], of: i64, held: &[[i64; 2]]) -> Result<Tensor> {
        let (b, n, c) = x.size3()?;
        let within = held.iter().all(|&[from, until]| 0 <= from && from <= until && until <= of);
        if !within || held.iter().map(|[from, until]| until - from).sum::<i64>() != n {
            let expected = format!("[B, N, C] with N positions in {held:?}, of the {of} that rows have");
            return Err(Error::Shape { what: "input of dropout".to_owned(), found: x.size(), expected });
        }
        let keys = self.rows.iter().map(|&row| key_of(&[&[row], place].concat())).collect();
        let drawn = Seeded::new(keys, x.device()).uniform("dropout", &[b, of, c])?;
        let drawn = match n == of {
            true => drawn,
            false => {
                let parts = held.iter().map(|&[from, until]| drawn.f_narrow(1, from, until - from));
                Tensor::f_cat(&parts.collect::<std::result::Result<Vec<_>, _>>()?, 1)?
            }
        };
        let keep = drawn.f_ge(share)?.f_to_kind(x.kind())?;
        Ok(x.f_mul(&keep)?.f_div_scalar(1.0 - share)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind};

    use super::*;

    fn ones(b: i64, n: i64, c: i64) -> Tensor {
        Tensor::ones([b, n, c], (Kind::Float, Device::Cpu))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Neither the rows beside it nor the positions that are left out change what a row drops.
        #[test]
        fn what_a_row_drops_is_its_own(
            keys in proptest::collection::vec(any::<u64>(), 1..5), of in 2i64..12, cut in 0.0..1.0f64, share in 0.0..0.9f64,
        ) {
            let whole = Dropout::new(keys.clone(), of);
            let b = keys.len() as i64;
            let all = whole.apply(&ones(b, of, 3), share, &[1, 2], of, &[[0, of]]).unwrap();
            let from = (cut * of as f64) as i64;
            for (i, &key) in keys.iter().enumerate() {
                let alone = Dropout::new(vec![key], of);
                let part = alone.apply(&ones(1, of - from, 3), share, &[1, 2], of, &[[from, of]]).unwrap();
                prop_assert!(part.get(0).equal(&all.get(i as i64).narrow(0, from, of - from)));
            }
            let order: Vec<i64> = (0..b).rev().collect();
            let turned = whole.in_order(&order).apply(&ones(b, of, 3), share, &[1, 2], of, &[[0, of]]).unwrap();
            prop_assert!(turned.equal(&all.flip([0])));
        }
    }

    #[test]
    fn a_share_is_dropped_and_the_mean_stays() {
        let dropout = Dropout::new(vec![3, 4], 100);
        let at = |place: &[u64]| dropout.apply(&ones(2, 100, 50), 0.3, place, 100, &[[0, 100]]).unwrap();
        let x = at(&[0]);
        let dropped = x.eq(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!((dropped - 0.3).abs() < 0.02, "{dropped}");
        assert!((x.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.03);
        assert!(!x.equal(&at(&[1])) && !x.get(0).equal(&x.get(1)));
    }

    #[test]
    fn rows_and_positions_that_do_not_fit_are_refused() {
        let dropout = Dropout::new(vec![1, 2], 4);
        let message = |x: &Tensor, held: &[[i64; 2]]| dropout.apply(x, 0.1, &[0], 4, held).unwrap_err().to_string();
        assert!(message(&ones(3, 4, 2), &[[0, 4]]).contains("2 rows have keys"));
        assert!(message(&ones(2, 3, 2), &[[0, 2]]).contains("input of dropout"));
        assert!(message(&ones(2, 2, 2), &[[3, 5]]).contains("input of dropout"));
    }
}
