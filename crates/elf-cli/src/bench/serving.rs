//! What writing texts costs: ELF in several numbers of steps, beside an autoregressive model of the same width and depth.

use std::time::{Duration, Instant};

use anyhow::Result;
use elf_core::{ParamBuilder, device};
use elf_gpt2::decoding::Incremental;
use elf_gpt2::{Gpt2, Gpt2Config, Gpt2Session};
use tch::Tensor;

use super::workload::Workload;

/// Who wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// ELF, in so many steps and a last, decoding pass.
    Elf {
        /// Steps of the sampler.
        steps: usize,
    },
    /// GPT-2, the likeliest token each time, with keys and values kept.
    Gpt2,
}

/// How long some texts took, all made together.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// Who wrote them.
    pub writer: Writer,
    /// Texts at a time.
    pub rows: usize,
    /// From the request to the last token of the last text.
    pub elapsed: Duration,
}

impl Served {
    /// Seconds until the texts are there.
    pub fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64()
    }

    /// The texts that `rows` rows make a second.
    pub fn texts_per_second(&self) -> f64 {
        self.rows as f64 / self.seconds()
    }
}

/// With how many steps ELF takes as long as GPT-2 for `rows` texts at a time: what lies on the line through its runs of fewest and
/// most steps. Negative if its last pass alone takes longer; none without two runs of ELF and one of GPT-2.
pub fn steps_as_long_as_gpt2(served: &[Served], rows: usize) -> Option<f64> {
    let of_rows = || served.iter().filter(|s| s.rows == rows);
    let gpt2 = of_rows().find(|s| s.writer == Writer::Gpt2)?.seconds();
    let elf = || {
        of_rows().filter_map(|s| match s.writer {
            Writer::Elf { steps } => Some((steps, s.seconds())),
            Writer::Gpt2 => None,
        })
    };
    let (fewest, most) = (elf().min_by_key(|run| run.0)?, elf().max_by_key(|run| run.0)?);
    if fewest.0 == most.0 {
        return None;
    }
    let each = (most.1 - fewest.1) / (most.0 - fewest.0) as f64;
    Some(fewest.0 as f64 + (gpt2 - fewest.1) / each)
}

impl Workload {
    /// Texts of full length by ELF in 1, 4, ... steps up to the most, and by GPT-2: one at a time, and a batch of them.
    pub fn serve(&self) -> Result<Vec<Served>> {
        let mut many = vec![1, self.batch];
        many.dedup();
        let (elf, gpt2) = (self.sampling_net()?, self.gpt2()?);
        let mut served = Vec::new();
        for rows in many {
            for steps in steps_up_to(self.sampling_steps) {
                let sizes = Self { batch: rows, sampling_steps: steps, ..self.clone() };
                served.push(Served { writer: Writer::Elf { steps }, rows, elapsed: sizes.sample_with(&elf)?.elapsed });
            }
            served.push(Served { writer: Writer::Gpt2, rows, elapsed: self.write_with(&gpt2, rows)? });
        }
        Ok(served)
    }

    /// GPT-2 as wide, deep and wordy as the network.
    fn gpt2(&self) -> Result<Gpt2> {
        let elf = &self.model;
        let config = Gpt2Config::like(elf.vocab_size, self.seq as i64, elf.hidden_size, elf.depth, elf.num_heads);
        Ok(Gpt2::new(&config, ParamBuilder::seeded(4, self.device), self.policy)?)
    }

    /// `seq` tokens in each of `rows` texts, after a few to warm up.
    fn write_with(&self, net: &Gpt2, rows: usize) -> Result<Duration> {
        let write = |tokens: usize| -> Result<()> {
            let mut session = Gpt2Session::new(net, 1, tokens)?;
            let own: Vec<i64> = (0..rows as i64).collect();
            let mut logits = session.begin(&vec![vec![0]; rows])?;
            for _ in 1..tokens {
                logits = session.advance(&own, &likeliest(&logits)?)?;
            }
            likeliest(&logits).map(drop)
        };
        write(self.seq.min(4))?;
        device::wait(self.device);
        let begun = Instant::now();
        write(self.seq)?;
        Ok(begun.elapsed())
    }
}

/// The likeliest token of each row of logits `[B, V]`.
fn likeliest(logits: &Tensor) -> Result<Vec<i64>> {
    Ok(Vec::try_from(logits.f_argmax(-1, false)?)?)
}

/// 1, 4, 16, ... and `most`.
fn steps_up_to(most: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = std::iter::successors(Some(1), |s| Some(s * 4)).take_while(|s| *s < most).collect();
    steps.push(most);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(writer: Writer, rows: usize, millis: u64) -> Served {
        Served { writer, rows, elapsed: Duration::from_millis(millis) }
    }

    #[test]
    fn steps_that_take_as_long() {
        let elf = |steps, rows, millis| run(Writer::Elf { steps }, rows, millis);
        // A last pass of 100 ms and 50 a step: 400 ms are 6 steps.
        let served = [elf(1, 1, 150), elf(4, 1, 300), run(Writer::Gpt2, 1, 400), run(Writer::Gpt2, 8, 50)];
        let steps = steps_as_long_as_gpt2(&served, 1).unwrap();
        assert!((steps - 6.0).abs() < 1e-9, "{steps}");
        assert!(steps_as_long_as_gpt2(&served, 8).is_none(), "no ELF there");
        let negative = [elf(1, 8, 150), elf(4, 8, 300), run(Writer::Gpt2, 8, 50)];
        assert!(steps_as_long_as_gpt2(&negative, 8).unwrap() < 0.0);
    }

    #[test]
    fn steps_grow_fourfold() {
        assert_eq!(steps_up_to(1), [1]);
        assert_eq!(steps_up_to(4), [1, 4]);
        assert_eq!(steps_up_to(32), [1, 4, 16, 32]);
    }
}
