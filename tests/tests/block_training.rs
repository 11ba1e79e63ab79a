//! Training texts that are written in blocks: the context of each row, and which positions are computed.

use elf_core::{Network, Noise, Seeded};
use elf_flow::{ElfObjective, LatentBatch, Objective};
use elf_tests::blocks::{
    C, S, Watched, batch, condition_mask, draws, leading, loss, network, network_with_dropout, network_with_table,
    numbers, words,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

#[test]
fn a_row_is_its_own_context() {
    let net = Watched::new(network());
    for (conditional, decoder_prob) in [(false, 0.0), (true, 0.0), (true, 1.0)] {
        let objective = ElfObjective { block_size: Some(4), decoder_prob, ..ElfObjective::default() };
        let batch = batch(conditional);
        loss(&objective, &net, &batch);
        // The last pass is the one with a gradient, of all rows.
        let [latents, ids, blocks, noisy_blocks] = net.seen.take().pop().expect("a pass");
        // One row has no condition, so that every block carries loss.
        assert!(blocks.equal(&noisy_blocks));
        // Rows come in another order; their latents identify them.
        for row in 0..4 {
            let dropped = batch.dropped.get(row as usize) == Some(&true);
            let clean = batch.latents.get(row);
            let given = if conditional { [3, 0, 5, 4][row as usize] } else { 0 };
            if dropped {
                let _ = clean.narrow(0, 0, given).zero_();
            }
            let place = (0..4).find(|&i| latents.get(i).equal(&clean)).expect("each row is its own context");
            let expected: Vec<i64> = (0..S).map(|i| if i < given { -1 } else { i / 4 }).collect();
            assert_eq!(Vec::<i64>::try_from(blocks.get(place)).unwrap(), expected);
            // A dropped condition has no ids.
            let word = |i: i64| if dropped && i < given { -1 } else { batch.ids.int64_value(&[row, i]) };
            assert_eq!(Vec::<i64>::try_from(ids.get(place)).unwrap(), (0..S).map(word).collect::<Vec<_>>());
        }
    }
    let wrong = ElfObjective { block_size: Some(0), ..ElfObjective::default() };
    assert!(wrong.check().unwrap_err().to_string().contains("block_size"));
    // Without blocks there is no context.
    loss(&ElfObjective::default(), &net, &batch(false));
    assert!(net.seen.take().is_empty());
}

/// Draws that are the same for the same row and position, however long rows are.
struct ByPosition;

impl Noise for ByPosition {
    fn normal(&mut self, name: &str, shape: &[i64]) -> elf_core::Result<Tensor> {
        let mut wide = shape.to_vec();
        if shape.len() > 1 {
            wide[1] = 4 * S;
        }
        let all = draws(wide[0], name.len() as u64).normal("by position", &wide)?;
        Ok(if shape.len() > 1 { all.narrow(1, 0, shape[1]) } else { all })
    }

    fn uniform(&mut self, name: &str, shape: &[i64]) -> elf_core::Result<Tensor> {
        draws(shape[0], name.len() as u64).uniform(name, shape)
    }

    fn coins(&mut self, name: &str, rows: usize) -> elf_core::Result<Vec<f64>> {
        draws(rows as i64, name.len() as u64).coins(name, rows)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Rows are noisy from the first block with a loss to the last; the blocks that are left out change neither the loss nor its
    /// gradient.
    #[test]
    fn only_blocks_with_a_loss_are_computed(size in 1i64..5, conditions in 0i64..4, more in 0i64..6, decoder_prob in 0.0..1.0) {
        let plain = batch(false);
        let condition = condition_mask(&[conditions, conditions + 1, conditions, conditions + 2]);
        let batch = LatentBatch { loss_mask: 1.0 - &condition, condition: Some(condition), ..plain };
        // The same rows, filled up with positions that carry no loss.
        let longer = |x: &Tensor, with: f64| {
            let mut shape = x.size();
            shape[1] = more;
            Tensor::cat(&[x, &Tensor::full(&shape[..], with, (x.kind(), Device::Cpu))], 1)
        };
        let filled = LatentBatch {
            latents: longer(&batch.latents, 0.7),
            ids: longer(&batch.ids, 1.0),
            loss_mask: longer(&batch.loss_mask, 0.0),
            condition: batch.condition.as_ref().map(|mask| longer(mask, 0.0)),
            dropped: Vec::new(),
        };
        let net = Watched::new(network_with_table());
        net.params().set_requires_grad(true);
        let objective = ElfObjective { block_size: Some(size), decoder_prob, ..ElfObjective::default() };
        let learned = |batch: &LatentBatch| {
            net.params().zero_grad();
            let loss = objective.loss(&net, batch, &mut ByPosition).unwrap();
            loss.mean().backward();
            let gradients: Vec<Tensor> =
                net.params().iter().map(|(_, p)| p.tensor.grad()).filter(Tensor::defined).map(|g| g.reshape([-1])).collect();
            let [_, _, blocks, noisy_blocks] = net.seen.take().pop().expect("a pass");
            (loss.mean().double_value(&[]), Tensor::cat(&gradients, 0), blocks.size()[1], noisy_blocks.size()[1])
        };
        let (loss, gradient, clean, noisy) = learned(&batch);
        prop_assert_eq!((clean, noisy), (S, S - conditions / size * size));
        let (same_loss, same_gradient, clean, noisy) = learned(&filled);
        // A block that the filling reaches into is there as a whole.
        let end = ((S + size - 1) / size * size).min(S + more);
        prop_assert_eq!((clean, noisy), (end, end - conditions / size * size));
        if end == S {
            prop_assert!((loss - same_loss).abs() < 1e-5 * loss.abs().max(1.0), "{} {}", loss, same_loss);
            prop_assert!(gradient.allclose(&same_gradient, 1e-3, 1e-5, false));
        }
    }
}

/// A condition changes the loss at every place of the blocks, unless it is dropped.
#[test]
fn conditions_are_seen_by_all_blocks() {
    let net = network();
    let objective = ElfObjective { block_size: Some(4), decoder_prob: 0.0, ..ElfObjective::default() };
    let before = batch(true);
    for (row, counts) in [(0i64, true), (2, false)] {
        let after = batch(true);
        let _ = after.latents.narrow(0, row, 1).narrow(1, 0, 1).fill_(3.0);
        let differs = (loss(&objective, &net, &after) - loss(&objective, &net, &before)).abs() > 1e-6;
        assert_eq!(differs, counts, "row {row}");
    }
}

/// The dropout of a row depends neither on the other rows of its batch, nor on the part of the rows that their blocks need.
#[test]
fn a_training_loss_with_dropout_does_not_depend_on_batching() {
    let (net, rows) = (network_with_dropout(0.3), 12);
    let (latents, ids) = (numbers(&[rows, S, C], 3), words(rows, S));
    // Rows at even places carry a loss in their first part, the others in their last.
    let mask = leading(&[4; 12], S).to_kind(Kind::Float);
    for row in (1..rows).step_by(2) {
        mask.get(row).copy_(&mask.get(0).flip([0]));
    }
    for block_size in [None, Some(2)] {
        let objective = ElfObjective { block_size, decoder_prob: 0.4, ..ElfObjective::default() };
        let loss = |places: &[i64], dropout: bool| {
            let index = Tensor::from_slice(places);
            let batch = LatentBatch {
                latents: latents.index_select(0, &index),
                ids: ids.index_select(0, &index),
                loss_mask: mask.index_select(0, &index),
                condition: None,
                dropped: Vec::new(),
            };
            let noise = Seeded::at(&[7], places.iter().map(|&i| i as u64), Device::Cpu);
            let mut noise = if dropout { noise } else { noise.without_dropout() };
            objective.loss(&net, &batch, &mut noise).unwrap().sum.double_value(&[])
        };
        let all: Vec<i64> = (0..rows).collect();
        let together = loss(&all, true);
        assert!((together - loss(&all, false)).abs() > 1e-3 * together, "{block_size:?}: nothing is dropped");
        for world in 2..5 {
            let of = |rank: usize| loss(&all.iter().copied().skip(rank).step_by(world).collect::<Vec<_>>(), true);
            let over_ranks: f64 = (0..world).map(of).sum();
            assert!((together - over_ranks).abs() < 1e-4 * together, "{block_size:?}: {together} {over_ranks}");
        }
    }
}
