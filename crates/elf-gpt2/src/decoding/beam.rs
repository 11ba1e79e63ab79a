//! Beam search.

use tch::{Device, Kind, Tensor};

use super::{Ending, Incremental};
use crate::{Error, Result};

/// Beam search with length normalisation.
///
/// Each step keeps the likeliest continuations of all unfinished texts, as many as the beam's width. A text that ends
/// moves to the results and makes the beam narrower by one. A beam of 1 is greedy search; a beam as wide as the number
/// of possible texts finds the best of all. Texts that reach the maximum length are results without EOS.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSearch {
    /// Texts that are kept at a time.
    pub width: usize,
    /// Texts are ranked by their log-probability over their length (EOS included) to this power: 0 favours short texts,
    /// 1 compares means.
    pub length_penalty: f64,
}

impl Default for BeamSearch {
    /// Greedy search.
    fn default() -> Self {
        Self { width: 1, length_penalty: 1.0 }
    }
}

/// A text that the search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its tokens after the prompt, EOS included if it was reached.
    pub tokens: Vec<i64>,
    /// Its natural log-probability.
    pub log_probability: f64,
    /// The score by which it is ranked: the log-probability over the length to the power of the penalty.
    pub score: f64,
}

/// One continuation: a row, a token, a log-probability.
type Candidate = (i64, i64, f64);

/// The texts that continue one prompt.
#[derive(Debug, Default)]
struct Beam {
    /// Unfinished texts, with their log-probabilities.
    live: Vec<(Vec<i64>, f64)>,
    found: Vec<Hypothesis>,
}

impl BeamSearch {
    /// Checks the settings.
    ///
    /// # Errors
    /// If a setting is out of its range; the message names it.
    pub fn check(&self) -> Result<()> {
        if self.width == 0 {
            return Err(Error::Setting { setting: "beam", reason: "it must be at least 1".into() });
        }
        match self.length_penalty.is_finite() {
            true => Ok(()),
            false => Err(Error::Setting {
                setting: "length_penalty",
                reason: format!("{} is not a finite number", self.length_penalty),
            }),
        }
    }

    fn hypothesis(&self, tokens: Vec<i64>, log_probability: f64) -> Hypothesis {
        let score = log_probability / (tokens.len() as f64).powf(self.length_penalty);
        Hypothesis { tokens, log_probability, score }
    }

    /// All results for each prompt, the best first.
    ///
    /// # Errors
    /// If a setting is out of its range, or the model fails.
    pub fn texts(
        &self,
        model: &mut dyn Incremental,
        prompts: &[Vec<i64>],
        ending: Ending,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        self.check()?;
        ending.check()?;
        let mut beams: Vec<Beam> = prompts.iter().map(|_| Beam::default()).collect();
        for beam in &mut beams {
            beam.live.push((Vec::new(), 0.0));
        }
        let mut logits = model.begin(prompts)?;
        // Rows of the model per prompt: one at first, then as many as the beam is wide.
        let mut rows_each = 1;
        for place in 1..=ending.most {
            let candidates = tch::no_grad(|| self.candidates(&logits, &beams, rows_each))?;
            let (mut parents, mut tokens) = (Vec::new(), Vec::new());
            for (number, (beam, candidates)) in (0..).zip(beams.iter_mut().zip(candidates)) {
                let first_row = number * rows_each as i64;
                let rows = self.grow(beam, candidates, ending, place == ending.most);
                // Rows without a text stay in the batch, so that shapes do not change.
                let idle = std::iter::repeat((0, ending.eos));
                for (row, token) in rows.into_iter().chain(idle).take(self.width) {
                    parents.push(first_row + row);
                    tokens.push(token);
                }
            }
            if beams.iter().all(|beam| beam.live.is_empty()) {
                break;
            }
            logits = model.advance(&parents, &tokens)?;
            rows_each = self.width;
        }
        Ok(beams
            .into_iter()
            .map(|mut beam| {
                beam.found.sort_by(|a, b| b.score.total_cmp(&a.score));
                beam.found
            })
            .collect())
    }

    /// The likeliest continuations of each prompt's live texts, in order.
    fn candidates(&self, logits: &Tensor, beams: &[Beam], rows_each: usize) -> Result<Vec<Vec<Candidate>>> {
        let vocab = logits.size2()?.1;
        let (n, width) = (beams.len() as i64, rows_each as i64);
        let so_far: Vec<f64> = beams
            .iter()
            .flat_map(|beam| {
                let live = beam.live.iter().map(|(_, log_p)| *log_p);
                live.chain(std::iter::repeat(f64::NEG_INFINITY)).take(rows_each)
            })
            .collect();
        let so_far = Tensor::f_from_slice(&so_far)?.f_to_device(logits.device())?.f_view([-1, 1])?;
        let all = logits.f_to_kind(Kind::Double)?.f_log_softmax(-1, Kind::Double)?.f_add(&so_far)?;
        let most = (self.width as i64).min(width * vocab);
        let all = all.f_view([n, width * vocab])?;
        // Among equally likely continuations, `topk` takes any and `max` the first: a beam of 1 must be greedy in ties,
        // too.
        let (best, places) = match most {
            1 => all.f_max_dim(1, true)?,
            most => all.f_topk(most, 1, true, true)?,
        };
        let best = Vec::<f64>::try_from(best.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
        let places = Vec::<i64>::try_from(places.f_to_device(Device::Cpu)?.f_reshape([-1])?)?;
        let each: Vec<Candidate> =
            best.into_iter().zip(places).map(|(log_p, place)| (place / vocab, place % vocab, log_p)).collect();
        Ok(each.chunks(most as usize).map(<[Candidate]>::to_vec).collect())
    }

    /// Adds the best continuations to the beam and returns the row and token of each live one.
    fn grow(&self, beam: &mut Beam, candidates: Vec<Candidate>, ending: Ending, is_last: bool) -> Vec<(i64, i64)> {
        let room = self.width - beam.found.len().min(self.width);
        let before = std::mem::take(&mut beam.live);
        let mut rows = Vec::new();
        for (row, token, log_p) in candidates.into_iter().take(room) {
            // Leaves out continuations of rows without a text, and impossible ones.
            let Some((text, _)) = before.get(row as usize).filter(|_| log_p > f64::NEG_INFINITY) else { continue };
            let mut text = text.clone();
            text.push(token);
            if token == ending.eos || is_last {
                let found = self.hypothesis(text, log_p);
                beam.found.push(found);
            } else {
                beam.live.push((text, log_p));
                rows.push((row, token));
            }
        }
        rows
    }
}
