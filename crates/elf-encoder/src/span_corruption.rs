//! T5's pre-training task: spans of a text are taken out of the encoder's input, and the decoder is to write them.
//!
//! Of `the cat sat on the mat today` the encoder may see `the cat <0> the <1> today`, and the decoder is to write
//! `<0> sat on <1> mat </s>` (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4).

use elf_core::Noise;
use tch::Tensor;

use crate::{Error, Result};

/// How texts are corrupted, and with which ids.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanCorruption {
    /// Share of a text's tokens that is taken out; T5 has 0.15.
    pub density: f64,
    /// Tokens in a span, on average; T5 has 3.
    pub mean_span: f64,
    /// Closes inputs and targets.
    pub eos: i32,
    /// The ids that stand for spans: the i-th span of each text is named by the i-th of them. No text contains them.
    pub sentinels: Vec<i32>,
}

/// One corrupted text, or one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupted {
    /// What the encoder sees: the text with a sentinel for each span, closed by EOS.
    pub inputs: Vec<i32>,
    /// What the decoder is to write: each sentinel with the tokens it stands for, closed by EOS.
    pub targets: Vec<i32>,
}

impl Corrupted {
    /// A task in the same form: of this source, that target is to be written (section 2.4). Both are closed by EOS.
    pub fn task(source: &[i32], target: &[i32], eos: i32) -> Self {
        let closed = |ids: &[i32]| ids.iter().copied().chain([eos]).collect();
        Self { inputs: closed(source), targets: closed(target) }
    }
}

/// The sizes of a corruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    /// Tokens taken out.
    noise: usize,
    /// Spans they form.
    spans: usize,
}

impl SpanCorruption {
    /// Fewest tokens of a text: one to take out and one to stay.
    pub const SHORTEST: usize = 2;

    /// T5's own rates.
    pub fn t5(eos: i32, sentinels: Vec<i32>) -> Self {
        Self { density: 0.15, mean_span: 3.0, eos, sentinels }
    }

    /// How many sentinels texts of up to `length` tokens need.
    pub fn sentinels_for(&self, length: usize) -> usize {
        // The number of spans never falls with the length.
        if length < Self::SHORTEST { 0 } else { self.sizes(length).spans }
    }

    /// Checks the rates, and that there are sentinels enough for texts of up to `longest` tokens.
    ///
    /// # Errors
    /// [`Error::Corruption`], which names what does not fit.
    pub fn check(&self, longest: usize) -> Result<()> {
        if !(self.density > 0.0 && self.density < 1.0) {
            return Err(Error::Corruption(format!("the density is {}; it must lie between 0 and 1", self.density)));
        }
        if !(self.mean_span >= 1.0 && self.mean_span.is_finite()) {
            return Err(Error::Corruption(format!("the mean span is {}; it must be at least 1", self.mean_span)));
        }
        let needed = self.sentinels_for(longest);
        if self.sentinels.len() < needed {
            return Err(Error::Corruption(format!(
                "texts of {longest} tokens need {needed} sentinels, but there are {}",
                self.sentinels.len()
            )));
        }
        Ok(())
    }

    /// `length` is at least [`SpanCorruption::SHORTEST`].
    fn sizes(&self, length: usize) -> Sizes {
        let noise = ((length as f64 * self.density).round() as usize).clamp(1, length - 1);
        // Between two spans there must be a token that stays.
        let spans = ((noise as f64 / self.mean_span).round() as usize).clamp(1, noise.min(length - noise + 1));
        Sizes { noise, spans }
    }

    /// Corrupts texts, one for each row of `noise` (draws `spans`). The sizes of a corruption follow from a text's length;
    /// where the spans lie is equally likely among all ways to lay them out with a token between any two.
    ///
    /// Unlike in the released code, which packs texts, a text may begin with a span and need not end with one: each text is
    /// a row of its own here, and its last tokens are to be seen too.
    ///
    /// # Errors
    /// [`Error::Corruption`] if a text is too short, or has more spans than there are sentinels; or if `noise` fails.
    pub fn corrupt(&self, texts: &[&[i32]], noise: &mut dyn Noise) -> Result<Vec<Corrupted>> {
        let mut sizes = Vec::with_capacity(texts.len());
        for text in texts {
            if text.len() < Self::SHORTEST {
                return Err(Error::Corruption(format!(
                    "a text of {} tokens cannot be corrupted; {} are the fewest",
                    text.len(),
                    Self::SHORTEST
                )));
            }
            sizes.push(self.sizes(text.len()));
        }
        self.check(texts.iter().map(|t| t.len()).max().unwrap_or(0))?;
        // One number for each border within the noise, and for each border within the rest, which forms one part more.
        let draws = sizes.iter().map(|s| 2 * s.spans - 1).max().unwrap_or(0);
        if draws == 0 {
            return Ok(Vec::new());
        }
        let drawn = noise.uniform("spans", &[texts.len() as i64, draws as i64])?;
        let drawn: Vec<f32> = Vec::try_from(drawn.f_to_device(tch::Device::Cpu)?.f_flatten(0, -1)?)?;
        Ok(texts
            .iter()
            .zip(sizes)
            .zip(drawn.chunks(draws))
            .map(|((text, sizes), drawn)| self.corrupt_one(text, sizes, drawn))
            .collect())
    }

    fn corrupt_one(&self, text: &[i32], Sizes { noise, spans }: Sizes, drawn: &[f32]) -> Corrupted {
        let (of_noise, of_rest) = drawn.split_at(spans - 1);
        let taken = parts(noise, spans, of_noise);
        // The first and the last part that stays may be empty: both are drawn one longer than they are.
        let kept = parts(text.len() - noise + 2, spans + 1, of_rest);
        let mut inputs = Vec::with_capacity(text.len() - noise + spans + 1);
        let mut targets = Vec::with_capacity(noise + spans + 1);
        let mut at = 0;
        let mut next = |n: usize| {
            at += n;
            &text[at - n..at]
        };
        for i in 0..spans {
            inputs.extend_from_slice(next(kept[i] - usize::from(i == 0)));
            inputs.push(self.sentinels[i]);
            targets.push(self.sentinels[i]);
            targets.extend_from_slice(next(taken[i]));
        }
        inputs.extend_from_slice(next(kept[spans] - 1));
        inputs.push(self.eos);
        targets.push(self.eos);
        Corrupted { inputs, targets }
    }

    /// The text of a corruption.
    ///
    /// # Errors
    /// [`Error::Corruption`] if inputs and targets do not belong together.
    pub fn restore(&self, corrupted: &Corrupted) -> Result<Vec<i32>> {
        let open = |ids: &[i32], what: &str| match ids.split_last() {
            Some((last, rest)) if *last == self.eos => Ok(rest.to_vec()),
            _ => Err(Error::Corruption(format!("{what} do not end with {}", self.eos))),
        };
        let (inputs, targets) = (open(&corrupted.inputs, "inputs")?, open(&corrupted.targets, "targets")?);
        let place = |id: &i32| self.sentinels.iter().position(|s| s == id);
        let mut spans: Vec<Vec<i32>> = Vec::new();
        for id in targets {
            let known = spans.len();
            match (place(&id), spans.last_mut()) {
                (Some(i), _) if i == known => spans.push(Vec::new()),
                (None, Some(span)) => span.push(id),
                _ => return Err(Error::Corruption(format!("the target {id} is not where it can be"))),
            }
        }
        let mut text = Vec::new();
        for id in inputs {
            match place(&id) {
                None => text.push(id),
                Some(i) => text.extend(
                    spans.get(i).ok_or_else(|| Error::Corruption(format!("no target tells of the span {id}")))?,
                ),
            }
        }
        Ok(text)
    }
}

/// Cuts `n` into `count` parts of at least 1, each way equally likely; takes `count - 1` of `drawn`, uniform in [0, 1).
/// `1 <= count <= n`.
fn parts(n: usize, count: usize, drawn: &[f32]) -> Vec<usize> {
    // Floyd's choice of `count - 1` of the `n - 1` places between two.
    let (places, cuts) = (n - 1, count - 1);
    let mut chosen: Vec<usize> = Vec::with_capacity(count);
    for (u, last) in drawn.iter().zip(places - cuts..places) {
        let place = ((f64::from(*u) * (last + 1) as f64) as usize).min(last);
        chosen.push(if chosen.contains(&place) { last } else { place });
    }
    chosen.sort_unstable();
    chosen.push(places);
    let mut start = 0;
    chosen
        .into_iter()
        .map(|place| {
            let length = place + 1 - start;
            start = place + 1;
            length
        })
        .collect()
}

/// Corrupted texts as tensors, padded on the right, on the CPU.
#[derive(Debug)]
pub struct DenoisingBatch {
    /// `[B, S]`, int64: what the encoder sees.
    pub inputs: Tensor,
    /// `[B, S]`, fp32: 0 at inputs and minus infinity at padding, to be added to attention scores; none without padding.
    pub columns: Option<Tensor>,
    /// `[B, T]`, int64: what the decoder sees, the targets one place later behind the id that starts it.
    pub decoder_inputs: Tensor,
    /// `[N]`, int64: which of the B times T positions have a target.
    pub places: Tensor,
    /// `[N]`, int64: what is to be written there.
    pub targets: Tensor,
}

impl DenoisingBatch {
    /// Lays texts side by side. `pad` fills up, and starts the decoder as in T5.
    ///
    /// # Errors
    /// If there are none, or libtorch fails.
    pub fn new(texts: &[Corrupted], pad: i32) -> Result<Self> {
        let longest = |of: fn(&Corrupted) -> usize| texts.iter().map(of).max().unwrap_or(0);
        let (b, s, t) = (texts.len(), longest(|c| c.inputs.len()), longest(|c| c.targets.len()));
        if s == 0 || t == 0 {
            return Err(Error::Corruption("there are no texts to learn from".into()));
        }
        let pad = i64::from(pad);
        let mut inputs = vec![pad; b * s];
        let mut columns = vec![0f32; b * s];
        let mut decoder_inputs = vec![pad; b * t];
        let (mut places, mut targets) = (Vec::new(), Vec::new());
        for (i, text) in texts.iter().enumerate() {
            for (j, id) in text.inputs.iter().enumerate() {
                inputs[i * s + j] = i64::from(*id);
            }
            columns[i * s + text.inputs.len()..(i + 1) * s].fill(f32::NEG_INFINITY);
            for (j, id) in text.targets.iter().enumerate() {
                places.push((i * t + j) as i64);
                targets.push(i64::from(*id));
                if j + 1 < t {
                    decoder_inputs[i * t + j + 1] = i64::from(*id);
                }
            }
        }
        let shaped = |ids: &[i64], n: usize| Tensor::f_from_slice(ids)?.f_view([b as i64, n as i64]);
        let padded = texts.iter().any(|c| c.inputs.len() < s);
        Ok(Self {
            inputs: shaped(&inputs, s)?,
            columns: padded.then(|| Tensor::f_from_slice(&columns)?.f_view([b as i64, s as i64])).transpose()?,
            decoder_inputs: shaped(&decoder_inputs, t)?,
            places: Tensor::f_from_slice(&places)?,
            targets: Tensor::f_from_slice(&targets)?,
        })
    }

    /// Positions that are computed: of the encoder and of the decoder, padding included.
    pub fn positions(&self) -> usize {
        self.inputs.numel() + self.decoder_inputs.numel()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::Seeded;
    use proptest::prelude::*;
    use tch::Device;

    fn task() -> SpanCorruption {
        SpanCorruption::t5(1, (1000..1100).collect())
    }

    fn noise(rows: usize, seed: u64) -> Seeded {
        Seeded::new((0..rows as u64).map(|i| elf_core::key_of(&[seed, i])).collect(), Device::Cpu)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn inputs_and_targets_together_are_the_text(
            lengths in proptest::collection::vec(2usize..200, 1..6), seed in any::<u64>(),
            density in 0.01f64..0.99, mean_span in 1.0f64..8.0,
        ) {
            let task = SpanCorruption { density, mean_span, sentinels: (1000..1200).collect(), ..task() };
            let texts: Vec<Vec<i32>> =
                lengths.iter().map(|n| (0..*n as i32).map(|i| 2 + (i * 7) % 990).collect()).collect();
            let texts: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
            let corrupted = task.corrupt(&texts, &mut noise(texts.len(), seed)).unwrap();
            for (text, one) in texts.iter().zip(&corrupted) {
                prop_assert_eq!(&task.restore(one).unwrap(), text);
                let sizes = task.sizes(text.len());
                prop_assert_eq!(one.inputs.len(), text.len() - sizes.noise + sizes.spans + 1);
                prop_assert_eq!(one.targets.len(), sizes.noise + sizes.spans + 1);
                // Spans have a token between them, or two would be one.
                prop_assert!(one.inputs.windows(2).all(|w| w[0] < 1000 || w[1] < 1000));
            }
            let batch = DenoisingBatch::new(&corrupted, 0).unwrap();
            let targets: usize = corrupted.iter().map(|c| c.targets.len()).sum();
            prop_assert_eq!(batch.targets.size(), [targets as i64]);
        }

        #[test]
        fn parts_add_up(n in 1usize..60, seed in any::<u64>(), share in 0.0f64..1.0) {
            let count = 1 + ((n - 1) as f64 * share) as usize;
            let drawn: Vec<f32> = (0..count as u64).map(|i| (elf_core::key_of(&[seed, i]) >> 40) as f32 / (1u64 << 24) as f32).collect();
            let parts = parts(n, count, &drawn[1..]);
            prop_assert_eq!(parts.len(), count);
            prop_assert_eq!(parts.iter().sum::<usize>(), n);
            prop_assert!(parts.iter().all(|p| *p > 0));
        }
    }

    #[test]
    fn every_token_is_taken_out_about_equally_often() {
        let text: Vec<i32> = (2..22).collect();
        let rows = 4000;
        let corrupted = task().corrupt(&vec![text.as_slice(); rows], &mut noise(rows, 3)).unwrap();
        let mut taken = [0usize; 20];
        for id in corrupted.iter().flat_map(|c| &c.targets).filter(|id| (2..22).contains(*id)) {
            taken[(*id - 2) as usize] += 1;
        }
        assert_eq!(taken.iter().sum::<usize>(), rows * 3, "15% of 20");
        // One span of 3 has 18 places: the ends are in fewer of them than the middle.
        let share = |i: usize| taken[i] as f64 / rows as f64;
        for (i, expected) in [(0, 1.0 / 18.0), (1, 2.0 / 18.0), (10, 3.0 / 18.0), (19, 1.0 / 18.0)] {
            assert!((share(i) - expected).abs() < 0.02, "{i}: {} instead of {expected}", share(i));
        }
    }

    #[test]
    fn what_the_decoder_sees_is_one_place_behind_what_it_writes() {
        let texts = [
            Corrupted { inputs: vec![5, 1000, 6, 1], targets: vec![1000, 7, 8, 1] },
            Corrupted { inputs: vec![1000, 6, 1], targets: vec![1000, 9, 1] },
        ];
        let batch = DenoisingBatch::new(&texts, 0).unwrap();
        let ids = |t: &Tensor| Vec::<i64>::try_from(t.flatten(0, -1)).unwrap();
        assert_eq!(ids(&batch.inputs), [5, 1000, 6, 1, 1000, 6, 1, 0]);
        assert_eq!(ids(&batch.decoder_inputs), [0, 1000, 7, 8, 0, 1000, 9, 1]);
        assert_eq!(ids(&batch.places), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(ids(&batch.targets), [1000, 7, 8, 1, 1000, 9, 1]);
        let columns = Vec::<f32>::try_from(batch.columns.as_ref().unwrap().flatten(0, -1)).unwrap();
        assert_eq!(columns, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY]);
        assert!(DenoisingBatch::new(&texts[..1], 0).unwrap().columns.is_none());
        assert!(DenoisingBatch::new(&[], 0).is_err());
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let few = SpanCorruption { sentinels: vec![1000], ..task() };
        let long: Vec<i32> = (2..80).collect();
        let refusal =
            |task: &SpanCorruption, text: &[i32]| task.corrupt(&[text], &mut noise(1, 0)).unwrap_err().to_string();
        assert!(refusal(&few, &long).contains("need 4 sentinels, but there are 1"), "{}", refusal(&few, &long));
        assert!(refusal(&task(), &[5]).contains("a text of 1 tokens"));
        assert!(refusal(&SpanCorruption { density: 1.5, ..task() }, &long).contains("density is 1.5"));
        assert!(refusal(&SpanCorruption { mean_span: 0.0, ..task() }, &long).contains("mean span is 0"));
        for (inputs, targets) in [(vec![5, 1000, 1], vec![7, 1]), (vec![5, 1001, 1], vec![1000, 1]), (vec![5], vec![1])]
        {
            assert!(task().restore(&Corrupted { inputs, targets }).is_err());
        }
        assert_eq!(task().corrupt(&[], &mut noise(0, 0)).unwrap(), []);
    }
}
