//! Laws of the epoch order.

use elf_data::{Cursor, Error, Grouping, Order, OrderConfig, Share};
use proptest::prelude::*;

/// Rows, ranks, micro-batch and micro-batches per step that fit together.
fn settings() -> impl Strategy<Value = (u64, usize, usize, usize, usize)> {
    (any::<u64>(), 1..5usize, 1..5usize, 1..4usize, 1..6usize, 0..20usize).prop_map(
        |(seed, world, micro, accumulate, steps, more)| {
            let global = world * micro * accumulate;
            (seed, global * steps + more % global.max(1), world, micro, global)
        },
    )
}

fn order((seed, rows, global_batch): (u64, usize, usize), rank: usize, world: usize, micro_batch: usize) -> Order {
    Order::new(OrderConfig { seed, rows, global_batch }, Share { rank, world, micro_batch }).unwrap()
}

/// Positions and rows of `count` micro-batches from `from`.
fn take(order: &mut Order, mut from: Cursor, count: usize) -> (Vec<(u64, usize)>, Cursor) {
    let mut taken = Vec::new();
    for _ in 0..count {
        let (rows, after) = order.next(from).unwrap();
        assert_eq!(rows.len(), order.share().micro_batch);
        taken.extend(rows);
        from = after;
    }
    (taken, from)
}

proptest! {
    #[test]
    fn an_epoch_is_a_permutation_shared_out_without_overlap((seed, rows, world, micro, global) in settings(), epoch in 0..5u64) {
        let mut whole: Vec<u32> = order((seed, rows, global), 0, world, micro).epoch_order(epoch).to_vec();
        let used = whole[..rows / global * global].to_vec();
        whole.sort_unstable();
        prop_assert!(whole.iter().copied().eq(0..rows as u32));

        let mut seen = Vec::new();
        for rank in 0..world {
            let mut of_rank = order((seed, rows, global), rank, world, micro);
            let batches = of_rank.micro_batches_per_step() * of_rank.steps_per_epoch() as usize;
            let (taken, after) = take(&mut of_rank, Cursor { epoch, position: 0 }, batches);
            prop_assert_eq!(taken.len(), used.len() / world);
            prop_assert_eq!(after, Cursor { epoch: epoch + 1, position: 0 });
            for (position, row) in taken {
                prop_assert_eq!(used[position as usize] as usize, row);
                seen.push(row as u32);
            }
        }
        seen.sort_unstable();
        let mut used = used;
        used.sort_unstable();
        prop_assert_eq!(seen, used);
    }

    #[test]
    fn every_step_sees_the_same_rows_with_any_number_of_ranks((seed, rows, world, micro, global) in settings()) {
        let mut alone = order((seed, rows, global), 0, 1, global);
        for step in 0..2 * alone.steps_per_epoch() {
            let from = alone.cursor_at_step(step);
            let (mut expected, after) = alone.next(from).unwrap();
            expected.sort_unstable();
            let mut seen = Vec::new();
            for rank in 0..world {
                let mut of_rank = order((seed, rows, global), rank, world, micro);
                let count = of_rank.micro_batches_per_step();
                let (taken, to) = take(&mut of_rank, from, count);
                prop_assert_eq!(to, after);
                seen.extend(taken);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(after, alone.cursor_at_step(step + 1));
        }
    }

    #[test]
    fn resuming_equals_going_on((seed, rows, world, micro, global) in settings(), before in 0..20usize) {
        let mut uninterrupted = order((seed, rows, global), world - 1, world, micro);
        let (all, _) = take(&mut uninterrupted, Cursor::default(), before + 20);
        let (_, cursor) = take(&mut order((seed, rows, global), world - 1, world, micro), Cursor::default(), before);
        let stored = serde_json::to_string(&cursor).unwrap();
        let cursor: Cursor = serde_json::from_str(&stored).unwrap();
        let (rest, _) = take(&mut order((seed, rows, global), world - 1, world, micro), cursor, 20);
        prop_assert_eq!(&all[before * micro..], rest);
    }
}

proptest! {
    /// The same rows in each epoch, in batches whose rows differ in length no more than the sorting lets them.
    #[test]
    fn grouping_by_length_keeps_the_rows((seed, rows, world, micro, global) in settings(), epoch in 0..3u64, kinds in 1..50u32, equal: bool) {
        let grouping = if equal { Grouping::Equal } else { Grouping::Similar };
        let lengths: Vec<u32> = (0..rows as u32).map(|row| row * 7 % kinds).collect();
        let mut plain = order((seed, rows, global), 0, world, micro);
        let mut grouped = plain.clone().grouped_by_length(grouping, lengths.clone().into()).unwrap();
        let used = rows / global * global;
        let (plain, grouped) = (plain.epoch_order(epoch), grouped.epoch_order(epoch));
        let sorted = |rows: &[u32]| {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            rows
        };
        prop_assert_eq!(sorted(&plain[..used]), sorted(&grouped[..used]));
        prop_assert_eq!(&plain[used..], &grouped[used..]);
        // With fewer than 64 batches they are all sorted together, so their ranges of lengths do not overlap.
        let mut ranges: Vec<(u32, u32)> = grouped[..used]
            .chunks(global)
            .map(|batch| {
                let of = batch.iter().map(|&row| lengths[row as usize]);
                (of.clone().min().unwrap(), of.max().unwrap())
            })
            .collect();
        ranges.sort_unstable();
        prop_assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }
}

#[test]
fn grouped_batches_come_in_no_order_of_length() {
    let lengths: Vec<u32> = (0..1000).collect();
    let mut grouped = order((1, 1000, 10), 0, 1, 10).grouped_by_length(Grouping::Similar, lengths.into()).unwrap();
    let first_rows = |order: &[u32]| order.chunks(10).map(|batch| batch[0]).collect::<Vec<_>>();
    let (epoch_0, epoch_1) = (first_rows(&grouped.epoch_order(0)), first_rows(&grouped.epoch_order(1)));
    assert!(!epoch_0.is_sorted() && epoch_0 != epoch_1);
    let later = |rows: &[u32]| rows.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((30..70).contains(&later(&epoch_0)), "as often longer as shorter than the one before");
    let error =
        order((1, 20, 5), 0, 1, 5).grouped_by_length(Grouping::Equal, vec![1; 19].into()).unwrap_err().to_string();
    assert!(error.contains("19 lengths for the 20 rows"), "{error}");
}

#[test]
fn epochs_and_seeds_differ_and_never_change() {
    let mut first = order((1, 20, 5), 0, 1, 5);
    let (epoch_0, epoch_1) = (first.epoch_order(0), first.epoch_order(1));
    assert_ne!(epoch_0, epoch_1);
    assert_ne!(epoch_0, order((2, 20, 5), 0, 1, 5).epoch_order(0));
    // Written down, so that no update of a library changes how a stored run goes on.
    let expected: [u32; 20] = EPOCH_0_OF_SEED_1;
    assert_eq!(*epoch_0, expected);
}

const EPOCH_0_OF_SEED_1: [u32; 20] = [19, 6, 0, 11, 3, 9, 12, 17, 1, 8, 18, 4, 16, 10, 2, 13, 15, 14, 5, 7];

#[test]
fn rows_come_first_equally_often() {
    let mut counts = [0u32; 10];
    let mut order = order((3, 10, 1), 0, 1, 1);
    for epoch in 0..10_000 {
        counts[order.epoch_order(epoch)[0] as usize] += 1;
    }
    // 1000 each, standard deviation 30.
    assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
}

#[test]
fn impossible_orders_and_cursors_are_refused() {
    let refuse = |rows, global_batch, rank, world, micro_batch| {
        Order::new(OrderConfig { seed: 0, rows, global_batch }, Share { rank, world, micro_batch })
            .unwrap_err()
            .to_string()
    };
    assert!(refuse(10, 0, 0, 1, 1).contains("at least 1"));
    assert!(refuse(10, 4, 2, 2, 1).contains("rank 2 does not exist"));
    assert!(refuse(3, 4, 0, 1, 4).contains("do not fill a global batch"));
    assert!(refuse(10, 4, 0, 3, 1).contains("cannot be shared evenly"));
    assert!(refuse(usize::MAX, 4, 0, 1, 4).contains("too many"));
    let mut order = order((0, 10, 4), 0, 2, 2);
    for position in [1, 2, 8, 100] {
        let error = order.next(Cursor { epoch: 0, position }).unwrap_err();
        assert!(matches!(error, Error::BadCursor { .. }), "{error}");
    }
    assert!(serde_json::from_str::<Cursor>(r#"{"epoch":0,"position":0,"rank":1}"#).is_err());
}

/// Equal lengths: however many batches there are, at most one of them for each change of length mixes two lengths.
#[test]
fn batches_of_equal_length_mix_lengths_only_where_one_ends() {
    let lengths: Vec<u32> = (0..20_000u32).map(|row| 3 + row * 7919 % 13).collect();
    let mut grouped =
        order((5, 20_000, 10), 0, 1, 10).grouped_by_length(Grouping::Equal, lengths.clone().into()).unwrap();
    for epoch in 0..2 {
        let order = grouped.epoch_order(epoch);
        let mixed = order
            .chunks(10)
            .filter(|batch| batch.iter().any(|&row| lengths[row as usize] != lengths[batch[0] as usize]));
        assert!(mixed.count() <= 12);
        let mut rows = order.to_vec();
        rows.sort_unstable();
        assert!(rows.into_iter().eq(0..20_000));
    }
}
