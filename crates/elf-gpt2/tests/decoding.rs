//! Texts token by token: the kept keys and values, drawing, and searching.

use elf_core::{Dropout, ParamBuilder, PrecisionPolicy, TokenDraw, TokenNetwork, key_of};
use elf_gpt2::decoding::{BeamSearch, Ending, Incremental, TokenSampling, Without};
use elf_gpt2::{Gpt2, Gpt2Config, Gpt2Session, Result};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const V: i64 = 11;

fn model(seed: u64) -> Gpt2 {
    let config = Gpt2Config {
        vocab_size: V,
        n_positions: 16,
        n_embd: 24,
        n_layer: 2,
        n_head: 3,
        n_inner: None,
        layer_norm_epsilon: 1e-5,
        // Large, so that tokens matter and an error shows.
        initializer_range: 0.3,
        eos_token_id: Some(0),
        texts_begin_with_eos: true,
    };
    Gpt2::new(&config, ParamBuilder::seeded(seed, Device::Cpu), PrecisionPolicy::F32).unwrap()
}

/// What comes next by a whole pass.
fn next_by_whole_pass(model: &Gpt2, text: &[i64]) -> Tensor {
    let ids = Tensor::from_slice(text).view([1, -1]);
    let hidden = model.hidden(&ids).unwrap();
    model.logits(&hidden.get(0).narrow(0, text.len() as i64 - 1, 1)).unwrap().squeeze_dim(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Prompts of unlike lengths, texts that multiply and change places: each row's next token is that of a whole pass.
    #[test]
    fn what_is_kept_says_what_a_whole_pass_says(
        prompts in proptest::collection::vec(proptest::collection::vec(0..V, 1..6), 1..4),
        moves in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..8),
        widen in 1usize..4,
    ) {
        let model = model(5);
        let mut session = Gpt2Session::new(&model, 6, 9).unwrap();
        let mut texts = prompts.clone();
        let mut logits = session.begin(&prompts).unwrap();
        let check = |texts: &[Vec<i64>], logits: &Tensor| {
            for (row, text) in texts.iter().enumerate() {
                let off = (logits.get(row as i64) - next_by_whole_pass(&model, text)).abs().max().double_value(&[]);
                assert!(off < 1e-4, "{text:?} is off by {off}");
            }
        };
        check(&texts, &logits);
        for (a, b) in moves {
            let rows = prompts.len() * widen;
            let parents: Vec<i64> = (0..rows as u64).map(|i| (key_of(&[a, i]) % texts.len() as u64) as i64).collect();
            let tokens: Vec<i64> = (0..rows as u64).map(|i| (key_of(&[b, i]) % V as u64) as i64).collect();
            texts = parents.iter().zip(&tokens).map(|(&p, &t)| [&texts[p as usize][..], &[t]].concat()).collect();
            logits = session.advance(&parents, &tokens).unwrap();
            check(&texts, &logits);
        }
        prop_assert!(session.passes() > 1 && session.positions() > session.passes());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model(5);
    assert!(Gpt2Session::new(&model, 8, 10).unwrap_err().to_string().contains("16 positions"));
    let mut session = Gpt2Session::new(&model, 3, 2).unwrap();
    assert!(session.begin(&[vec![1; 4]]).unwrap_err().to_string().contains("4 tokens"));
    let _ = session.begin(&[vec![1; 3]]).unwrap();
    assert!(session.advance(&[1], &[2]).unwrap_err().to_string().contains("no row 1"));
    assert!(session.advance(&[0], &[V]).unwrap_err().to_string().contains("vocabulary"));
    let _ = session.advance(&[0], &[2]).unwrap();
    // The second of two new tokens is chosen, not read.
    assert!(session.advance(&[0], &[2]).is_err());
}

#[test]
fn a_drawn_text_depends_on_its_seed_and_prompt_alone() {
    let model = model(7);
    let ending = Ending { eos: 0, most: 10 };
    let draw = |prompts: &[Vec<i64>], seeds: &[u64]| {
        let mut session = Gpt2Session::new(&model, 4, 10).unwrap();
        TokenSampling::default().texts(&mut session, prompts, seeds, ending).unwrap()
    };
    let prompts = [vec![0, 3], vec![0], vec![0, 3, 5, 1]];
    let together = draw(&prompts, &[1, 2, 3]);
    assert_eq!(together, draw(&prompts, &[1, 2, 3]));
    let turned = draw(&[prompts[2].clone(), prompts[0].clone(), prompts[1].clone()], &[3, 1, 2]);
    assert_eq!(turned, [together[2].clone(), together[0].clone(), together[1].clone()]);
    assert_ne!(together, draw(&prompts, &[4, 5, 6]));
}

/// A model that is a table: the next token's log-probabilities are a function of the last two tokens.
struct Table {
    texts: Vec<Vec<i64>>,
    vocab: i64,
    seed: u64,
}

impl Table {
    fn new(vocab: i64, seed: u64) -> Self {
        Self { texts: Vec::new(), vocab, seed }
    }

    fn next(&self, text: &[i64]) -> Vec<f64> {
        let last: Vec<u64> = text.iter().rev().take(2).map(|&t| t as u64).collect();
        let weight = |token: i64| {
            let key = key_of(&[&[self.seed, token as u64], &last[..]].concat());
            ((key % 1000) as f64 / 1000.0 * 4.0).exp()
        };
        let weights: Vec<f64> = (0..self.vocab).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| (w / sum).ln()).collect()
    }

    fn logits(&self) -> Tensor {
        let all: Vec<f64> = self.texts.iter().flat_map(|text| self.next(text)).collect();
        // A constant more or less is the same distribution.
        (Tensor::from_slice(&all) + 3.0).view([-1, self.vocab]).to_kind(Kind::Float)
    }

    /// Each text of at most `most` tokens that ends with 0 or has no more room, with its log-probability.
    fn all(&self, prompt: &[i64], most: usize) -> Vec<(Vec<i64>, f64)> {
        let (mut open, mut done) = (vec![(Vec::<i64>::new(), 0.0)], Vec::new());
        while let Some((text, log_p)) = open.pop() {
            let next = self.next(&[prompt, &text].concat());
            for (token, p) in (0..).zip(next) {
                let longer = ([&text[..], &[token]].concat(), log_p + p);
                if token == 0 || longer.0.len() == most { done.push(longer) } else { open.push(longer) }
            }
        }
        done
    }
}

impl Incremental for Table {
    fn begin(&mut self, prompts: &[Vec<i64>]) -> Result<Tensor> {
        self.texts = prompts.to_vec();
        Ok(self.logits())
    }

    fn advance(&mut self, parents: &[i64], tokens: &[i64]) -> Result<Tensor> {
        self.texts = parents.iter().zip(tokens).map(|(&p, &t)| [&self.texts[p as usize][..], &[t]].concat()).collect();
        Ok(self.logits())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// As wide as there are texts, the search leaves nothing out: the best by its own measure comes first, and its
    /// probability is right.
    #[test]
    fn a_wide_beam_finds_the_best_of_all_texts(seed in any::<u64>(), length_penalty in 0.0f64..1.5) {
        let (vocab, most) = (3, 5);
        let prompts = [vec![1], vec![2, 2]];
        let search = BeamSearch { width: 250, length_penalty };
        let found = search.texts(&mut Table::new(vocab, seed), &prompts, Ending { eos: 0, most }).unwrap();
        for (prompt, found) in prompts.iter().zip(found) {
            let mut all = Table::new(vocab, seed).all(prompt, most);
            prop_assert_eq!(found.len(), all.len());
            let score = |(text, log_p): &(Vec<i64>, f64)| log_p / (text.len() as f64).powf(length_penalty);
            all.sort_by(|a, b| score(b).total_cmp(&score(a)));
            // Two texts of the same pairs of tokens are equally likely: it is one of the best.
            let mut best = all.iter().take_while(|text| score(&all[0]) - score(text) < 1e-5);
            prop_assert!(best.any(|(text, _)| *text == found[0].tokens));
            for (found, expected) in found.iter().zip(&all) {
                prop_assert!((found.score - score(expected)).abs() < 1e-5);
                prop_assert!((found.log_probability / (found.tokens.len() as f64).powf(length_penalty) - found.score).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_beam_of_one_is_greedy(seed in any::<u64>(), length_penalty in 0.0f64..1.5) {
        let prompts = [vec![1], vec![2, 2], vec![3]];
        let ending = Ending { eos: 0, most: 9 };
        let search = BeamSearch { width: 1, length_penalty };
        let searched = search.texts(&mut Table::new(5, seed), &prompts, ending).unwrap();
        let likeliest = TokenSampling(TokenDraw::LIKELIEST);
        let drawn = likeliest.texts(&mut Table::new(5, seed), &prompts, &[0; 3], ending).unwrap();
        for ((prompt, found), drawn) in prompts.iter().zip(searched).zip(drawn) {
            let mut greedy = Vec::new();
            while greedy.last() != Some(&0) && greedy.len() < 9 {
                let next = Table::new(5, seed).next(&[&prompt[..], &greedy].concat());
                // Of equally likely tokens the first, as everywhere.
                greedy.push((0..5).rev().max_by(|&a, &b| next[a as usize].total_cmp(&next[b as usize])).unwrap());
            }
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&found[0].tokens, &greedy);
            prop_assert_eq!(drawn, greedy);
        }
    }

    #[test]
    fn barred_tokens_are_never_written(seed in any::<u64>(), width in 1usize..8) {
        let (barred, ending) = ([0, 3], Ending { eos: 0, most: 6 });
        let prompts = [vec![1], vec![3, 0]];
        let mut table = Table::new(5, seed);
        let drawn = TokenSampling(TokenDraw::default())
            .texts(&mut Without { model: &mut table, barred: &barred }, &prompts, &[seed, 1], ending)
            .unwrap();
        let search = BeamSearch { width, length_penalty: 1.0 };
        let found = search.texts(&mut Without { model: &mut table, barred: &barred }, &prompts, ending).unwrap();
        for text in drawn.iter().chain(found.iter().flatten().map(|found| &found.tokens)) {
            prop_assert_eq!(text.len(), 6);
            prop_assert!(text.iter().all(|token| !barred.contains(token)));
        }
    }

    /// Results of a search of any width have their true probability.
    #[test]
    fn what_a_beam_finds_has_its_true_probability(seed in any::<u64>(), width in 1usize..6) {
        let ending = Ending { eos: 0, most: 6 };
        let search = BeamSearch { width, length_penalty: 1.0 };
        let found = search.texts(&mut Table::new(4, seed), &[vec![1]], ending).unwrap().remove(0);
        prop_assert!(!found.is_empty() && found.len() <= width);
        let all = Table::new(4, seed).all(&[1], 6);
        for hypothesis in found {
            let (_, log_p) = all.iter().find(|(text, _)| *text == hypothesis.tokens).unwrap();
            prop_assert!((log_p - hypothesis.log_probability).abs() < 1e-5);
        }
    }
}

#[test]
fn draws_follow_the_distribution_and_its_settings() {
    let rows = 6000;
    let (prompts, seeds) = (vec![vec![1i64, 2]; rows], (0..rows as u64).collect::<Vec<_>>());
    let expected: Vec<f64> = Table::new(5, 3).next(&[1, 2]).iter().map(|p| p.exp()).collect();
    let shares = |sampling: TokenSampling| {
        let texts = sampling.texts(&mut Table::new(5, 3), &prompts, &seeds, Ending { eos: 0, most: 1 }).unwrap();
        let mut counts = [0.0; 5];
        texts.iter().for_each(|text| counts[text[0] as usize] += 1.0 / rows as f64);
        counts
    };
    let near = |found: [f64; 5], wanted: &[f64]| {
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() < 0.03, "{found} instead of {wanted}");
        }
    };
    let normalised = |p: Vec<f64>| p.iter().map(|x| x / p.iter().sum::<f64>()).collect::<Vec<_>>();
    near(shares(TokenSampling::default()), &expected);
    let half = TokenSampling(TokenDraw { temperature: 0.5, top_p: 1.0 });
    near(shares(half), &normalised(expected.iter().map(|p| p * p).collect()));
    // The likeliest alone has no 0.6 here, so the two likeliest stay.
    let mut order: Vec<usize> = (0..5).collect();
    order.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]));
    let top_p = expected[order[0]] + 0.5 * expected[order[1]];
    let kept = (0..5).map(|i| if order[..2].contains(&i) { expected[i] } else { 0.0 }).collect();
    let found = shares(TokenSampling(TokenDraw { temperature: 1.0, top_p }));
    near(found, &normalised(kept));
    assert!(order[2..].iter().all(|&i| found[i] == 0.0), "{found:?}");
}

#[test]
fn impossible_settings_are_named() {
    let ending = Ending { eos: 0, most: 3 };
    let drawn = |temperature, top_p| {
        let sampling = TokenSampling(TokenDraw { temperature, top_p });
        sampling.texts(&mut Table::new(4, 1), &[vec![1]], &[0], ending).unwrap_err().to_string()
    };
    assert!(drawn(-1.0, 1.0).contains("temperature"));
    assert!(drawn(f64::NAN, 1.0).contains("temperature"));
    assert!(drawn(1.0, 0.0).contains("top_p"));
    let searched =
        |search: BeamSearch, ending| search.texts(&mut Table::new(4, 1), &[vec![1]], ending).unwrap_err().to_string();
    assert!(searched(BeamSearch { width: 0, length_penalty: 1.0 }, ending).contains("beam"));
    assert!(searched(BeamSearch::default(), Ending { eos: 0, most: 0 }).contains("at least one token"));
}

#[test]
fn dropout_acts_with_a_seed_and_in_training_alone() {
    let mut model = model(3);
    let ids = (Tensor::arange(24, (Kind::Int64, Device::Cpu)) * 5).remainder(V).view([2, 12]);
    let pass = |model: &Gpt2, seed: Option<u64>| {
        let dropout = seed.map(|seed| Dropout::new(vec![seed, seed + 10], 12));
        TokenNetwork::hidden(model, &ids, dropout.as_ref()).unwrap()
    };
    let plain = model.hidden(&ids).unwrap();
    assert!(!model.stochastic() && pass(&model, Some(1)).equal(&plain));
    model.set_dropout(0.3).unwrap();
    assert!(model.stochastic() && pass(&model, None).equal(&plain));
    assert!(pass(&model, Some(1)).equal(&pass(&model, Some(1))));
    assert!(!pass(&model, Some(1)).equal(&plain) && !pass(&model, Some(1)).equal(&pass(&model, Some(2))));
    assert!(model.set_dropout(1.0).unwrap_err().to_string().contains("dropout 1"));
}

#[test]
fn the_fused_loss_is_the_sum_of_nlls() {
    let model = model(3);
    let ids = (Tensor::arange(24, (Kind::Int64, Device::Cpu)) * 5).remainder(V).view([2, 12]);
    let hidden = model.hidden(&ids).unwrap().flatten(0, 1);
    let targets = ids.view([24]);
    let weights = Tensor::linspace(0.0, 2.0, 24, (Kind::Float, Device::Cpu));
    let fused = model.cross_entropy_sum(&hidden, &targets, Some(&weights)).unwrap();
    let plain = (model.nll(&hidden, &targets).unwrap() * weights).sum(Kind::Float);
    assert!((fused - &plain).abs().double_value(&[]) < 1e-3 * plain.double_value(&[]));
}
