//! Objectives and the sampler over token ids, compared with cases that can be computed by hand or by counting.

use std::cell::RefCell;

use elf_core::{Dropout, Init, Noise, ParamBuilder, ParamSet, Replay, Result, Seeded, TokenNetwork, key_of};
use elf_flow::tokens::{AncestralSampler, MaskedDiffusion, MaskedRequest, NextToken, TokenBatch, TokenObjective};
use elf_flow::{Loss, LossTerm};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

/// A network that knows the distribution of its texts: at each position it predicts exactly, given the visible tokens. Its hidden
/// states are the logits themselves.
struct Exact {
    /// Probability of each text of `length` tokens, the first token being the most significant digit to the base of the vocabulary.
    texts: Vec<f64>,
    vocab: i64,
    length: usize,
    params: ParamSet,
    /// What it was given, for those who want to know.
    seen: RefCell<Vec<Vec<i64>>>,
}

impl Exact {
    fn new(vocab: i64, length: usize, seed: u64) -> Self {
        let size = (vocab as usize).pow(length as u32);
        let weights: Vec<f64> =
            (0..size as u64).map(|i| ((key_of(&[seed, i]) % 1000) as f64 / 1000.0 * 3.0).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let texts = weights.iter().map(|w| w / sum).collect();
        Self { texts, vocab, length, params: ParamSet::default(), seen: RefCell::default() }
    }

    fn uniform(vocab: i64, length: usize) -> Self {
        let size = (vocab as usize).pow(length as u32);
        Self { texts: vec![1.0 / size as f64; size], ..Self::new(vocab, length, 0) }
    }

    fn digits(&self, text: usize) -> Vec<i64> {
        let place = |i: usize| (self.vocab as usize).pow((self.length - 1 - i) as u32);
        (0..self.length).map(|i| (text / place(i)) as i64 % self.vocab).collect()
    }

    fn number(&self, ids: &[i64]) -> usize {
        ids.iter().fold(0, |n, &id| n * self.vocab as usize + id as usize)
    }

    /// Log-probabilities of the token at `place`, given the others where they are seen.
    fn log_p(&self, seen: &[i64], place: usize) -> Vec<f64> {
        let mut p = vec![0.0; self.vocab as usize];
        for (text, weight) in self.texts.iter().enumerate() {
            let digits = self.digits(text);
            let fits = (0..self.length).all(|i| i == place || seen[i] == self.vocab || seen[i] == digits[i]);
            if fits {
                p[digits[place] as usize] += weight;
            }
        }
        let sum: f64 = p.iter().sum();
        p.iter().map(|p| (p / sum).ln()).collect()
    }
}

impl TokenNetwork for Exact {
    fn vocab_size(&self) -> i64 {
        self.vocab
    }

    fn mask_id(&self) -> Option<i64> {
        Some(self.vocab)
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn stochastic(&self) -> bool {
        false
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn hidden(&self, ids: &Tensor, _: Option<&Dropout>) -> Result<Tensor> {
        let (b, s) = ids.size2()?;
        let rows = Vec::<i64>::try_from(ids.reshape([-1]))?;
        let rows: Vec<Vec<i64>> = rows.chunks(s as usize).map(<[i64]>::to_vec).collect();
        let logits: Vec<f64> = rows.iter().flat_map(|row| (0..self.length).flat_map(|i| self.log_p(row, i))).collect();
        self.seen.borrow_mut().extend(rows);
        Ok(Tensor::from_slice(&logits).view([b, s, self.vocab]).to_kind(Kind::Float))
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.shallow_clone())
    }

    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let nll = -hidden.log_softmax(-1, Kind::Float).gather(1, &ids.unsqueeze(1), false).squeeze_dim(1);
        Ok(weights.map_or_else(|| nll.sum(Kind::Float), |w| (&nll * w).sum(Kind::Float)))
    }
}

/// One row's ids, repeated, without a condition and without filling.
fn repeated(ids: &[i64], rows: i64) -> TokenBatch {
    let ids = Tensor::from_slice(ids).view([1, -1]).repeat([rows, 1]);
    let s = ids.size()[1];
    TokenBatch { ids, starts: vec![0; rows as usize], ends: vec![s; rows as usize] }
}

fn seeded(rows: i64, seed: u64) -> Seeded {
    Seeded::at(&[seed], 0..rows as u64, Device::Cpu)
}

fn mean(loss: &Loss) -> f64 {
    loss.mean().double_value(&[])
}

fn nll(loss: &Loss) -> f64 {
    let term: &LossTerm = loss.terms.iter().find(|t| t.name == "nll").unwrap();
    term.sum.double_value(&[]) / term.count
}

#[test]
fn the_bound_is_a_cross_entropy_over_t() {
    let net = Exact::new(3, 4, 9);
    let ids = [[2i64, 0, 1, 1], [1, 1, 2, 0]];
    let batch = TokenBatch { ids: Tensor::from_slice2(&ids), starts: vec![1, 0], ends: vec![3, 4] };
    let mut noise = Replay::new();
    noise.push("mask_time", &Tensor::from_slice(&[0.25f64, 0.5]));
    let draws = [[0.0f32, 0.2, 0.9, 0.1], [0.49, 0.51, 0.7, 0.3]];
    noise.push("mask", &Tensor::from_slice2(&draws));
    let objective = MaskedDiffusion { t_min: 0.01 };
    let loss = objective.loss(&net, &batch, &mut noise).unwrap();
    let t = [0.01 + 0.99 * 0.25, 0.01 + 0.99 * 0.5];
    // Positions with a draw below t are hidden, but never a condition (the first token of the first row).
    let seen = [vec![2i64, 3, 1, 3], vec![3, 1, 2, 3]];
    assert_eq!(*net.seen.borrow(), seen);
    let mut expected = 0.0;
    for (row, seen) in seen.iter().enumerate() {
        for place in (0..4).filter(|&i| seen[i] == 3) {
            expected -= net.log_p(seen, place)[ids[row][place] as usize] / t[row];
        }
    }
    assert!((loss.sum.double_value(&[]) - expected).abs() < 1e-4);
    // Three positions of the first row are learned and four of the second; two and four belong to the texts.
    assert_eq!(loss.count, 7.0);
    assert!((nll(&loss) - expected / 6.0).abs() < 1e-5);
}

#[test]
fn a_uniform_model_costs_the_logarithm_of_its_vocabulary() {
    let (rows, net) = (4096, Exact::uniform(4, 5));
    let loss = MaskedDiffusion::default().loss(&net, &repeated(&[3, 0, 2, 1, 1], rows), &mut seeded(rows, 1));
    assert!((mean(&loss.unwrap()) - 4f64.ln()).abs() < 0.05);
}

/// For a network that knows its texts, the bound is tight: on average over times and places it is the text's own cost.
#[test]
fn the_bound_of_an_exact_model_is_the_texts_own_cost() {
    let net = Exact::new(3, 3, 4);
    for ids in [[0i64, 2, 1], [1, 1, 1], [2, 0, 0]] {
        let rows = 4096;
        let loss = MaskedDiffusion::default().loss(&net, &repeated(&ids, rows), &mut seeded(rows, 3)).unwrap();
        let cost = -net.texts[net.number(&ids)].ln() / 3.0;
        assert!((nll(&loss) - cost).abs() < 0.06 * cost, "{} instead of {cost}", nll(&loss));
    }
}

/// Draws of a global batch, with one number for all masks: a token is hidden if its row's time is above it.
struct HiddenAbove(f64, Seeded);

impl Noise for HiddenAbove {
    fn normal(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.1.normal(name, shape)
    }

    fn uniform(&mut self, _: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(Tensor::full(shape, self.0, (Kind::Float, Device::Cpu)))
    }

    fn coins(&mut self, name: &str, rows: usize) -> Result<Vec<f64>> {
        self.1.coins(name, rows)
    }

    fn spread(&mut self, name: &str, rows: usize) -> Result<Vec<f64>> {
        self.1.spread(name, rows)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Of all rows nearly the share whose time should be above a threshold is, and which they are does not depend on the ranks.
    #[test]
    fn times_are_spread_evenly_over_all_ranks(seed in any::<u64>(), above in 0.1..0.9f64, world in 1usize..5) {
        let rows = 64;
        // What each row shows the network; nothing at all if all of a rank's rows are seen.
        let shown = |places: Vec<u64>| {
            let net = Exact::uniform(2, 2);
            let batch = repeated(&[0, 1], places.len() as i64);
            let mut noise = HiddenAbove(above, Seeded::at(&[seed], places.iter().copied(), Device::Cpu));
            MaskedDiffusion::default().loss(&net, &batch, &mut noise).unwrap();
            let seen = net.seen.take();
            if seen.is_empty() { vec![vec![0, 1]; places.len()] } else { seen }
        };
        let alone = shown((0..rows).collect());
        let hidden = alone.iter().filter(|row| row[0] == 2).count() as f64;
        prop_assert!((hidden - rows as f64 * (1.0 - above)).abs() < 3.0, "{hidden} above {above}");
        for rank in 0..world {
            let own: Vec<_> = alone.iter().skip(rank).step_by(world).cloned().collect();
            prop_assert_eq!(shown((rank as u64..rows).step_by(world).collect()), own);
        }
    }
}

/// Shares of each text among samples.
fn sampled(net: &Exact, steps: usize, rows: i64) -> Vec<f64> {
    let ids = Tensor::zeros([rows, net.length as i64], (Kind::Int64, Device::Cpu));
    let seeds: Vec<u64> = (0..rows as u64).collect();
    let starts = vec![0; rows as usize];
    let sample = AncestralSampler { steps }
        .sample(net, &MaskedRequest { seeds: &seeds, ids: &ids, starts: &starts, given: &[], barred: &[] })
        .unwrap();
    let ids = Vec::<i64>::try_from(sample.ids.reshape([-1])).unwrap();
    let mut shares = vec![0.0; net.texts.len()];
    ids.chunks(net.length).for_each(|text| shares[net.number(text)] += 1.0 / rows as f64);
    shares
}

#[test]
fn many_steps_of_an_exact_model_give_its_texts() {
    let net = Exact::new(2, 3, 11);
    let found = sampled(&net, 200, 6000);
    for (found, p) in found.iter().zip(&net.texts) {
        assert!((found - p).abs() < 0.025, "{found} instead of {p}");
    }
}

#[test]
fn one_step_gives_each_token_by_itself() {
    let net = Exact::new(2, 3, 11);
    let nothing = vec![2; 3];
    let alone: Vec<Vec<f64>> = (0..3).map(|i| net.log_p(&nothing, i).iter().map(|p| p.exp()).collect()).collect();
    let mut apart = 0.0f64;
    for (text, found) in sampled(&net, 1, 6000).iter().enumerate() {
        let product: f64 = net.digits(text).iter().zip(&alone).map(|(&d, p)| p[d as usize]).product();
        assert!((found - product).abs() < 0.025, "{found} instead of {product}");
        apart = apart.max((product - net.texts[text]).abs());
    }
    assert!(apart > 0.05, "this toy cannot tell one step from many");
}

#[test]
fn given_tokens_are_never_hidden_and_barred_ones_never_drawn() {
    let net = Exact::new(3, 4, 2);
    let ids = Tensor::from_slice2(&[[2i64, 1, 0, 2], [0, 0, 1, 1]]);
    let given = [true, false, false, true, false, true, false, false];
    for seed in 0..40 {
        let seeds = [key_of(&[seed, 0]), key_of(&[seed, 1])];
        let request = MaskedRequest { seeds: &seeds, ids: &ids, starts: &[0, 0], given: &given, barred: &[1] };
        let sample = AncestralSampler { steps: 3 }.sample(&net, &request).unwrap();
        let done = Vec::<i64>::try_from(sample.ids.reshape([-1])).unwrap();
        let before = Vec::<i64>::try_from(ids.reshape([-1])).unwrap();
        for place in 0..8 {
            assert!(
                if given[place] { done[place] == before[place] } else { [0, 2].contains(&done[place]) },
                "{done:?}"
            );
        }
    }
    assert!(net.seen.borrow().chunks(2).all(|rows| rows[0][0] == 2 && rows[0][3] == 2 && rows[1][1] == 0));
    let short = MaskedRequest { seeds: &[1, 2], ids: &ids, starts: &[0, 0], given: &given[..3], barred: &[] };
    let error = AncestralSampler { steps: 3 }.sample(&net, &short).unwrap_err().to_string();
    assert!(error.contains("given"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// What was disclosed stays, conditions were never hidden, no pass is made for nothing, and a row depends on its seed and its
    /// condition alone.
    #[test]
    fn disclosed_tokens_stay(seed in any::<u64>(), steps in 1usize..40, starts in proptest::collection::vec(0i64..4, 3)) {
        let net = Exact::new(3, 4, 2);
        let given = Tensor::from_slice2(&[[2i64, 1, 0, 2], [0, 0, 1, 1], [1, 2, 2, 0]]);
        let seeds: Vec<u64> = (0..3).map(|row| key_of(&[seed, row])).collect();
        let sampler = AncestralSampler { steps };
        let sample = sampler.sample(&net, &MaskedRequest { seeds: &seeds, ids: &given, starts: &starts, given: &[], barred: &[] }).unwrap();
        let rows = |ids: &Tensor| {
            Vec::<i64>::try_from(ids.reshape([-1])).unwrap().chunks(4).map(<[i64]>::to_vec).collect::<Vec<_>>()
        };
        let (done, given_rows) = (rows(&sample.ids), rows(&given));
        let passes = net.seen.borrow().clone();
        prop_assert_eq!(passes.len(), 3 * sample.passes as usize);
        let hidden: i64 = starts.iter().map(|start| 4 - start).sum();
        prop_assert!(sample.passes as usize <= steps.min(hidden as usize));
        let mut left = usize::MAX;
        for pass in passes.chunks(3) {
            let mut still = 0;
            for (row, seen) in pass.iter().enumerate() {
                let start = starts[row] as usize;
                prop_assert_eq!(&seen[..start], &given_rows[row][..start]);
                for (id, end) in seen.iter().zip(&done[row]) {
                    prop_assert!(*id == 3 || id == end);
                }
                still += seen.iter().filter(|&&id| id == 3).count();
            }
            prop_assert!(still < left, "a pass without anything new");
            left = still;
        }
        prop_assert!(done.iter().flatten().all(|id| (0..3).contains(id)));
        // The same rows in another order.
        let order = Tensor::from_slice(&[2i64, 0, 1]);
        let turned = sampler.sample(&net, &MaskedRequest {
            seeds: &[seeds[2], seeds[0], seeds[1]],
            ids: &given.index_select(0, &order),
            starts: &[starts[2], starts[0], starts[1]],
            given: &[],
            barred: &[],
        }).unwrap();
        prop_assert!(turned.ids.equal(&sample.ids.index_select(0, &order)));
    }
}

#[test]
fn impossible_requests_are_named() {
    let net = Exact::new(2, 3, 1);
    let ids = Tensor::zeros([2, 3], (Kind::Int64, Device::Cpu));
    let sample = |steps, seeds: &[u64], starts: &[i64]| {
        let request = MaskedRequest { seeds, ids: &ids, starts, given: &[], barred: &[] };
        AncestralSampler { steps }.sample(&net, &request).unwrap_err().to_string()
    };
    assert!(sample(0, &[1, 2], &[0, 0]).contains("steps"));
    assert!(sample(4, &[1], &[0, 0]).contains("2 rows"));
    let mut batch = repeated(&[0, 1, 1], 2);
    batch.ends[1] = 4;
    let loss = MaskedDiffusion::default().loss(&net, &batch, &mut seeded(2, 0));
    assert!(loss.unwrap_err().to_string().contains("start <= end <= 3"));
    assert!(MaskedDiffusion { t_min: 0.0 }.check().unwrap_err().to_string().contains("t_min"));
}

/// A causal network: the next token's logits are a row of a table by the token before.
struct Pairs {
    table: elf_core::Weight,
    params: ParamSet,
    vocab: i64,
}

impl Pairs {
    fn new(vocab: i64) -> Self {
        let mut b = ParamBuilder::seeded(4, Device::Cpu);
        let table = b.tensor("table", &[vocab, vocab], Init::Normal(1.0)).unwrap();
        Self { table, params: b.finish(), vocab }
    }

    fn nll(&self, before: i64, after: i64) -> f64 {
        -self.table.master().log_softmax(-1, Kind::Double).double_value(&[before, after])
    }
}

impl TokenNetwork for Pairs {
    fn vocab_size(&self) -> i64 {
        self.vocab
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn stochastic(&self) -> bool {
        false
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn hidden(&self, ids: &Tensor, _: Option<&Dropout>) -> Result<Tensor> {
        Ok(Tensor::embedding(self.table.master(), ids, -1, false, false))
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.shallow_clone())
    }

    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        Ok(-hidden.log_softmax(-1, Kind::Float).gather(1, &ids.unsqueeze(1), false).sum(Kind::Float))
    }
}

#[test]
fn the_next_token_costs_from_the_condition_to_the_first_eos() {
    let (net, eos) = (Pairs::new(6), 1);
    let objective = NextToken { bos: eos };
    let loss = |rows: &[[i64; 5]]| {
        let batch = TokenBatch { ids: Tensor::from_slice2(rows), starts: vec![0, 2], ends: vec![3, 4] };
        objective.loss(&net, &batch, &mut Replay::new()).unwrap()
    };
    // `4 5 EOS` after nothing, and `3 EOS` after the condition `2 2`.
    let found = loss(&[[4, 5, 1, 1, 1], [2, 2, 3, 1, 1]]);
    let expected = net.nll(1, 4) + net.nll(4, 5) + net.nll(5, 1) + net.nll(2, 3) + net.nll(3, 1);
    assert_eq!(found.count, 5.0);
    assert!((found.sum.double_value(&[]) - expected).abs() < 1e-5);
    assert!((nll(&found) - expected / 5.0).abs() < 1e-6);
    // The filling makes no difference.
    let other = loss(&[[4, 5, 1, 0, 3], [2, 2, 3, 1, 5]]);
    assert_eq!(found.sum.double_value(&[]), other.sum.double_value(&[]));
    // Masked diffusion wants another network.
    let batch = repeated(&[1, 2], 2);
    let refused = MaskedDiffusion::default().loss(&net, &batch, &mut seeded(2, 0)).unwrap_err();
    assert!(refused.to_string().contains("hides a word"));
}

#[test]
fn a_batch_without_texts_costs_nothing() {
    let net = Pairs::new(6);
    let batch = TokenBatch { ids: Tensor::from_slice2(&[[4i64, 5]]), starts: vec![2], ends: vec![2] };
    let loss = NextToken { bos: 1 }.loss(&net, &batch, &mut Replay::new()).unwrap();
    assert_eq!((loss.count, mean(&loss)), (0.0, 0.0));
    let exact = Exact::new(6, 2, 0);
    let loss = MaskedDiffusion::default().loss(&exact, &batch, &mut seeded(1, 0)).unwrap();
    assert_eq!((loss.count, mean(&loss)), (0.0, 0.0));
}
