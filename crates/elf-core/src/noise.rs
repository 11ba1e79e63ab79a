//! The only source of random tensors.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use elf_kernels::kernels::{self, Law};
use tch::{Device, Kind, TchError, Tensor};

use crate::{Error, Result};

/// Random draws by name.
///
/// The first dimension of every draw is the row. A draw's name states its purpose (`"noise"`, `"t_normal"`, ...), so that
/// recorded draws can be replayed and an additional draw does not shift the others.
pub trait Noise {
    /// Standard normal numbers, fp32, of shape `[rows, ..]`.
    ///
    /// # Errors
    /// If libtorch fails, or a replay has no such draw.
    fn normal(&mut self, name: &str, shape: &[i64]) -> Result<Tensor>;

    /// Uniform numbers in [0, 1), fp32, of shape `[rows, ..]`.
    ///
    /// # Errors
    /// As [`Noise::normal`].
    fn uniform(&mut self, name: &str, shape: &[i64]) -> Result<Tensor>;

    /// Uniform numbers in [0, 1), f64 with 48 random bits, of shape `[rows, ..]`: fine enough for the tails of a large
    /// vocabulary, which the 24 bits of [`Noise::uniform`] cut off. Makes two draws of that name.
    ///
    /// # Errors
    /// As [`Noise::normal`].
    fn fine_uniform(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let coarse = self.uniform(name, shape)?.f_to_kind(Kind::Double)?;
        let fine = self.uniform(name, shape)?.f_to_kind(Kind::Double)?;
        Ok(coarse.f_add(&fine.f_div_scalar(f64::from(1 << 24))?)?)
    }

    /// One uniform number in [0, 1) per row, on the host, for decisions that must not wait for a device.
    ///
    /// # Errors
    /// As [`Noise::normal`].
    fn coins(&mut self, name: &str, rows: usize) -> Result<Vec<f64>>;

    /// [`Noise::coins`] with less variance of means over rows: each number is uniform in [0, 1), and the numbers of
    /// neighbouring rows of a larger whole, such as the global batch, are evenly spaced, if this noise knows the whole. A
    /// row's number depends on its place in the whole, not on its batch. The default equals `coins`.
    ///
    /// # Errors
    /// As [`Noise::normal`].
    fn spread(&mut self, name: &str, rows: usize) -> Result<Vec<f64>> {
        self.coins(name, rows)
    }

    /// One coin named `dropout` per row for a pass with dropout; `None` outside of training.
    ///
    /// # Errors
    /// As [`Noise::normal`].
    fn dropout(&mut self, rows: usize) -> Result<Option<Vec<f64>>> {
        self.coins("dropout", rows).map(Some)
    }
}

/// A 64-bit key of a list of numbers and their order (splitmix64's finaliser, chained).
pub fn key_of(parts: &[u64]) -> u64 {
    parts.iter().fold(GOLDEN, |key, part| {
        let mut x = (key ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    })
}

fn key_of_name(name: &str) -> u64 {
    // FNV-1a.
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Noise as a pure function of a row's key, the draw's name and the number of former draws of that name.
///
/// The same key gives the same numbers on the same kind of device in every batch: a CPU draws row after row with libtorch's own
/// generator, a GPU draws all rows in the launches of one, number i of a row being a function of the row's key and i. A training row's key is made of the run's seed,
/// the step and the row's place in the global batch; a sampled row's key is made of the request's seed.
#[derive(Debug, Clone)]
pub struct Seeded {
    rows: Vec<u64>,
    /// The whole's key and the rows' places in it.
    places: Option<(u64, Vec<u64>)>,
    drawn: HashMap<String, u64>,
    device: Device,
    dropout: bool,
}

/// The golden ratio as a fraction of 2^64: its multiples are evenly spaced for every number of multiples.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The upper 53 bits make every double in [0, 1) of that spacing equally likely.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The lock on libtorch's generator. libtorch has one generator per device, which is seeded and drawn from under this lock:
/// a draw by another thread in between would change the numbers, so no code of this project draws without it.
fn generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seeded {
    /// One key per row.
    pub fn new(rows: Vec<u64>, device: Device) -> Self {
        Self { rows, places: None, drawn: HashMap::new(), device, dropout: true }
    }

    /// The rows at `places` of a larger whole that `key` stands for, such as a step's global batch: the key of each is made of both.
    pub fn at(key: &[u64], places: impl IntoIterator<Item = u64>, device: Device) -> Self {
        let places: Vec<u64> = places.into_iter().collect();
        let rows = places.iter().map(|&place| key_of(&[key, &[place]].concat())).collect();
        Self { places: Some((key_of(key), places)), ..Self::new(rows, device) }
    }

    /// The same draws for a network as it is used, not trained: nothing is dropped.
    #[must_use]
    pub fn without_dropout(self) -> Self {
        Self { dropout: false, ..self }
    }

    /// The key of the next draw of this name, after checking that there is one row key for each of its rows.
    fn next_stream(&mut self, name: &str, shape: &[i64]) -> Result<u64> {
        if shape.first() != Some(&(self.rows.len() as i64)) {
            let reason = format!("{} rows have keys, but a draw of shape {shape:?} was asked for", self.rows.len());
            return Err(Error::Noise { name: name.to_owned(), reason });
        }
        let count = self.drawn.entry(name.to_owned()).or_insert(0);
        let stream = key_of(&[key_of_name(name), *count]);
        *count += 1;
        Ok(stream)
    }

    fn draw(&mut self, name: &str, shape: &[i64], law: Law) -> Result<Tensor> {
        let stream = self.next_stream(name, shape)?;
        if elf_kernels::takes_gpu_path(self.device) {
            let keys: Vec<u64> = self.rows.iter().map(|row| key_of(&[*row, stream])).collect();
            // A few numbers are drawn sooner on the host, for a row of any batch, so that its numbers are the same to the last bit.
            let few = shape[1..].iter().product::<i64>() <= FEW;
            let device = if few { Device::Cpu } else { self.device };
            return tch::no_grad(|| crate::device::upload(&by_counter(law, &keys, shape, device, few)?, self.device));
        }
        let _alone = generator();
        tch::no_grad(|| {
            let drawn = Tensor::f_empty(shape, (Kind::Float, self.device))?;
            for (i, row) in (0..).zip(&self.rows) {
                tch::manual_seed(key_of(&[*row, stream]) as i64);
                fill(law, &mut drawn.f_get(i)?)?;
            }
            Ok(drawn)
        })
    }
}

/// Numbers of a row that take longer to launch on a GPU than to make on the host.
const FEW: i64 = 64;

/// The bits of a word that a uniform number is made of: as many as fp32 holds.
const UNIFORM_BITS: i64 = 24;

/// One row by libtorch's generator.
fn fill(law: Law, row: &mut Tensor) -> std::result::Result<(), TchError> {
    match law {
        Law::Normal => row.f_normal_(0.0, 1.0).map(drop),
        Law::Uniform => row.f_uniform_(0.0, 1.0).map(drop),
    }
}

/// All rows at once, `[rows, ..]`: splitmix64 of key and place, element by element, and for normal numbers Box and Muller's
/// transform, of which each word makes two. A kernel of our own makes it one launch. `few` says that a GPU's draw is made here.
fn by_counter(law: Law, keys: &[u64], shape: &[i64], device: Device, few: bool) -> Result<Tensor> {
    let n: i64 = shape[1..].iter().product();
    let keys: Vec<i64> = keys.iter().map(|&key| key as i64).collect();
    let keys = crate::device::upload(&Tensor::f_from_slice(&keys)?, device)?;
    let drawn = match kernels::available(device) {
        true => kernels::draw(&keys, n, law, !few)?,
        false => by_operations(law, &keys, n)?,
    };
    Ok(drawn.f_reshape(shape)?)
}

/// [`by_counter`] by libtorch's operations: `[rows, n]` of `keys` `[rows]`.
fn by_operations(law: Law, keys: &Tensor, n: i64) -> Result<Tensor> {
    let words = match law {
        Law::Normal => (n + 1) / 2,
        Law::Uniform => n,
    };
    let places = Tensor::f_arange_start(1, words + 1, (Kind::Int64, keys.device()))?.f_mul_scalar_(GOLDEN as i64)?;
    let bits = scrambled(keys.f_unsqueeze(-1)?.f_add(&places)?)?;
    let unit = 1.0 / (1i64 << UNIFORM_BITS) as f64;
    // The top bits and the ones at the end, which share none.
    let top = |bits: &Tensor| Ok::<_, crate::Error>(shifted(bits, 64 - UNIFORM_BITS)?.f_to_kind(Kind::Float)?);
    match law {
        Law::Uniform => Ok(top(&bits)?.f_mul_scalar_(unit)?),
        Law::Normal => {
            // In (0, 1): the logarithm of 0 is none.
            let radius =
                top(&bits)?.f_add_scalar_(0.5)?.f_mul_scalar_(unit)?.f_log_()?.f_mul_scalar_(-2.0)?.f_sqrt_()?;
            let last = bits.f_bitwise_and((1i64 << UNIFORM_BITS) - 1)?.f_to_kind(Kind::Float)?;
            let angle = last.f_mul_scalar(unit * std::f64::consts::TAU)?;
            let (cos, sin) = (angle.f_cos()?.f_mul_(&radius)?, angle.f_sin()?.f_mul_(&radius)?);
            Ok(Tensor::f_cat(&[cos, sin], 1)?.f_narrow(1, 0, n)?)
        }
    }
}

/// Words shifted right, zeros coming in: libtorch's own shift keeps the sign.
fn shifted(words: &Tensor, by: i64) -> Result<Tensor> {
    Ok(words.f_bitwise_right_shift_tensor_scalar(by)?.f_bitwise_and_((1i64 << (64 - by)) - 1)?)
}

/// Splitmix64's finaliser, as in [`key_of`], of each word, in place.
fn scrambled(mut x: Tensor) -> Result<Tensor> {
    for (by, factor) in [(30, 0xbf58_476d_1ce4_e5b9u64), (27, 0x94d0_49bb_1331_11eb)] {
        x = x.f_bitwise_xor_tensor_(&shifted(&x, by)?)?.f_mul_scalar_(factor as i64)?;
    }
    Ok(x.f_bitwise_xor_tensor_(&shifted(&x, 31)?)?)
}

impl Noise for Seeded {
    fn normal(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.draw(name, shape, Law::Normal)
    }

    fn uniform(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.draw(name, shape, Law::Uniform)
    }

    fn coins(&mut self, name: &str, rows: usize) -> Result<Vec<f64>> {
        let stream = self.next_stream(name, &[rows as i64])?;
        Ok(self.rows.iter().map(|row| unit(key_of(&[*row, stream]))).collect())
    }

    fn spread(&mut self, name: &str, rows: usize) -> Result<Vec<f64>> {
        let Some((whole, places)) = self.places.clone() else { return self.coins(name, rows) };
        let start = key_of(&[whole, self.next_stream(name, &[rows as i64])?]);
        Ok(places.iter().map(|place| unit(place.wrapping_mul(GOLDEN).wrapping_add(start))).collect())
    }

    fn dropout(&mut self, rows: usize) -> Result<Option<Vec<f64>>> {
        match self.dropout {
            true => self.coins("dropout", rows).map(Some),
            false => Ok(None),
        }
    }
}

/// Gives back recorded draws, by name, in the order in which they were recorded. Without any recorded, it is for code that must not draw
/// at all: every draw is an error that names it.
#[derive(Debug)]
pub struct Replay {
    draws: HashMap<String, std::collections::VecDeque<Tensor>>,
    device: Device,
}

impl Default for Replay {
    fn default() -> Self {
        Self::new()
    }
}

impl Replay {
    /// No draws yet, for a computation on the CPU.
    pub fn new() -> Self {
        Self { draws: HashMap::new(), device: Device::Cpu }
    }

    /// The same draws for a computation on `device`, wherever they were recorded.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Adds one draw of `name` after those already there.
    pub fn push(&mut self, name: impl Into<String>, value: &Tensor) -> &mut Self {
        self.draws.entry(name.into()).or_default().push_back(value.shallow_clone());
        self
    }

    fn next(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let bad = |reason: String| Error::Noise { name: name.to_owned(), reason };
        let value = self.draws.get_mut(name).and_then(|q| q.pop_front()).ok_or_else(|| bad("none left".into()))?;
        if value.numel() as i64 != shape.iter().product::<i64>() {
            return Err(bad(format!("recorded with shape {:?}, asked for {shape:?}", value.size())));
        }
        Ok(value.f_view(shape)?.f_to_device(self.device)?)
    }
}

impl Noise for Replay {
    fn normal(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.next(name, shape)
    }

    fn uniform(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.next(name, shape)
    }

    fn coins(&mut self, name: &str, rows: usize) -> Result<Vec<f64>> {
        Ok(Vec::<f64>::try_from(self.next(name, &[rows as i64])?.to_kind(Kind::Double))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows_of(t: &Tensor) -> Vec<Vec<f32>> {
        (0..t.size()[0]).map(|i| Vec::<f32>::try_from(t.get(i).reshape([-1])).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_row_does_not_depend_on_its_batch(keys in proptest::collection::vec(any::<u64>(), 1..6), n in 1i64..40) {
            let together = Seeded::new(keys.clone(), Device::Cpu).normal("noise", &[keys.len() as i64, n]).unwrap();
            for (key, row) in keys.iter().zip(rows_of(&together)) {
                let alone = Seeded::new(vec![*key], Device::Cpu).normal("noise", &[1, n]).unwrap();
                prop_assert_eq!(&rows_of(&alone)[0], &row);
            }
        }
    }

    /// What recorded runs drew, they draw again: each row is what libtorch draws from the row's own seed.
    #[test]
    fn a_draw_is_libtorchs_own() {
        let stream = key_of(&[key_of_name("n"), 0]);
        for n in [3i64, 17, 100] {
            let [normal, uniform] = [false, true].map(|uniform| {
                let mut noise = Seeded::new(vec![8, 9], Device::Cpu);
                let of = if uniform { Seeded::uniform } else { Seeded::normal };
                of(&mut noise, "n", &[2, n, 5]).unwrap()
            });
            let (row, shape) = (key_of(&[9, stream]) as i64, [n, 5]);
            let _alone = generator();
            let fresh = |draw: &dyn Fn() -> Tensor| {
                tch::manual_seed(row);
                draw()
            };
            let options = (Kind::Float, Device::Cpu);
            assert!(fresh(&|| Tensor::randn(shape, options)).equal(&normal.get(1)), "{n}");
            assert!(fresh(&|| Tensor::rand(shape, options)).equal(&uniform.get(1)), "{n}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However a whole is cut into batches, each row's number is its own, and together they lie evenly.
        #[test]
        fn rows_of_a_whole_are_spread_whatever_the_batch(key in any::<u64>(), n in 2u64..200, world in 1u64..5) {
            let mut whole = Seeded::at(&[key, 1], 0..n, Device::Cpu).spread("t", n as usize).unwrap();
            for rank in 0..world.min(n) {
                let places: Vec<u64> = (rank..n).step_by(world as usize).collect();
                let part = Seeded::at(&[key, 1], places.clone(), Device::Cpu).spread("t", places.len()).unwrap();
                prop_assert_eq!(part, places.iter().map(|&i| whole[i as usize]).collect::<Vec<_>>());
            }
            prop_assert_ne!(Seeded::at(&[key, 2], 0..n, Device::Cpu).spread("t", n as usize).unwrap(), whole.clone());
            whole.sort_by(f64::total_cmp);
            let round = whole[0] + 1.0 - whole[n as usize - 1];
            let widest = whole.windows(2).map(|two| two[1] - two[0]).fold(round, f64::max);
            prop_assert!(widest * (n as f64) < 2.7, "{widest} of {n}");
        }
    }

    #[test]
    fn places_make_keys_and_nothing_is_dropped_where_nothing_is_learned() {
        let at = || Seeded::at(&[5, 6], [3, 1], Device::Cpu);
        let keyed = || Seeded::new([3, 1].map(|place| key_of(&[5, 6, place])).to_vec(), Device::Cpu);
        assert_eq!(at().coins("c", 2).unwrap(), keyed().coins("c", 2).unwrap());
        assert_eq!(at().without_dropout().coins("c", 2).unwrap(), keyed().coins("c", 2).unwrap());
        assert_eq!(at().dropout(2).unwrap(), Some(keyed().coins("dropout", 2).unwrap()));
        assert_eq!(at().without_dropout().dropout(2).unwrap(), None);
        // Without places there is nothing to spread over.
        assert_eq!(keyed().spread("c", 2).unwrap(), keyed().coins("c", 2).unwrap());
    }

    /// The draws of GPUs, made on a CPU: rows of their own, moments and tails of the law, and the words of splitmix64.
    #[test]
    fn draws_by_counter_are_of_their_law_and_of_their_row() {
        let keys = [3u64, u64::MAX, 4];
        let draw = |keys: &[u64], law: Law, shape: &[i64]| by_counter(law, keys, shape, Device::Cpu, true).unwrap();
        for law in [Law::Normal, Law::Uniform] {
            for n in [1i64, 2, 7, 384] {
                let together = rows_of(&draw(&keys, law, &[3, n]));
                for (key, row) in keys.iter().zip(&together) {
                    assert_eq!(&rows_of(&draw(&[*key], law, &[1, n]))[0], row);
                }
                assert!(n == 1 || together[0] != together[2]);
            }
        }
        let x = draw(&[5, 6], Law::Normal, &[2, 500, 401]);
        let moment = |p: f64| x.pow_tensor_scalar(p).mean(Kind::Double).double_value(&[]);
        for (p, expected, within) in [(1.0, 0.0, 0.01), (2.0, 1.0, 0.01), (3.0, 0.0, 0.03), (4.0, 3.0, 0.06)] {
            assert!((moment(p) - expected).abs() < within, "moment {p}: {}", moment(p));
        }
        let beyond = x.abs().gt(3.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!((beyond - 0.0027).abs() < 0.0004, "{beyond}");
        // Both halves of a word's pair, and neighbouring rows, are unrelated.
        let half =
            (&x.view([2, -1]).narrow(1, 0, 100_000) * &x.view([2, -1]).narrow(1, 100_250, 100_000)).mean(Kind::Double);
        assert!(half.double_value(&[]).abs() < 0.01);
        assert!((x.get(0) * x.get(1)).mean(Kind::Double).double_value(&[]).abs() < 0.01);
        let u = draw(&[9], Law::Uniform, &[1, 100_000]);
        assert!((u.mean(Kind::Double).double_value(&[]) - 0.5).abs() < 0.005);
        assert!(u.min().double_value(&[]) >= 0.0 && u.max().double_value(&[]) < 1.0);
        let word = |key: u64, i: u64| {
            let mut x = key.wrapping_add(i.wrapping_mul(GOLDEN));
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        let first = draw(&[u64::MAX], Law::Uniform, &[1, 3]);
        for i in 0..3 {
            let expected = (word(u64::MAX, i + 1) >> 40) as f64 / (1u64 << 24) as f64;
            assert_eq!(first.double_value(&[0, i as i64]), expected);
        }
    }

    #[test]
    fn the_kernel_draws_the_numbers_of_the_operations() {
        let keys = [3u64, u64::MAX, 1 << 63];
        for law in [Law::Normal, Law::Uniform] {
            for n in [1i64, 2, 7, 40_001] {
                let by_kernel = by_counter(law, &keys, &[3, n], Device::Cpu, true).unwrap();
                let by_operations = by_operations(law, &Tensor::from_slice(&keys.map(|key| key as i64)), n).unwrap();
                let far = (by_kernel - by_operations).abs().max().double_value(&[]);
                assert!(far <= 1e-6, "{law:?}, {n}: {far:e}");
            }
        }
    }

    #[test]
    fn names_and_counts_separate_streams() {
        let mut noise = Seeded::new(vec![7], Device::Cpu);
        let draws: Vec<_> =
            ["a", "b", "a"].iter().map(|n| rows_of(&noise.normal(n, &[1, 8]).unwrap())[0].clone()).collect();
        assert_ne!(draws[0], draws[1]);
        assert_ne!(draws[0], draws[2]);
        assert_eq!(draws[0], rows_of(&Seeded::new(vec![7], Device::Cpu).normal("a", &[1, 8]).unwrap())[0]);
    }

    #[test]
    fn a_normal_draw_is_standard() {
        let x = Seeded::new(vec![3, 4], Device::Cpu).normal("n", &[2, 50_000]).unwrap();
        assert!(x.mean(Kind::Float).double_value(&[]).abs() < 0.02);
        assert!((x.std(true).double_value(&[]) - 1.0).abs() < 0.02);
        let u = Seeded::new(vec![3], Device::Cpu).uniform("u", &[1, 50_000]).unwrap();
        let coins = Seeded::new((0..50_000).collect(), Device::Cpu).coins("c", 50_000).unwrap();
        assert!((coins.iter().sum::<f64>() / 50_000.0 - 0.5).abs() < 0.01);
        assert!(coins.iter().all(|c| (0.0..1.0).contains(c)));
        assert!((u.mean(Kind::Float).double_value(&[]) - 0.5).abs() < 0.01);
    }

    #[test]
    fn replay_names_what_is_missing() {
        let mut replay = Replay::new();
        replay.push("t", &Tensor::from_slice(&[1f32, 2.0]));
        assert_eq!(replay.normal("t", &[2, 1]).unwrap().size(), [2, 1]);
        assert!(replay.normal("t", &[2]).unwrap_err().to_string().contains("`t`: none left"));
        assert!(Replay::new().uniform("u", &[1]).is_err());
    }
}
