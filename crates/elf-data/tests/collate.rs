//! Laws of collation.

mod support;

use elf_data::{Batch, CollateConfig, Collator, Dataset, Error, Example, PadToken, is_label_dropped};
use proptest::prelude::*;
use support::t5;

fn collator(max_length: usize, max_input_length: Option<usize>, pad_token: PadToken) -> Result<Collator, Error> {
    Collator::new(CollateConfig { max_length, max_input_length, pad_token }, t5())
}

fn examples() -> impl Strategy<Value = Vec<Example>> {
    let ids = || prop::collection::vec(0..100i32, 0..20);
    prop::collection::vec((ids(), ids()), 0..6).prop_map(|rows| {
        rows.into_iter().map(|(input_ids, condition)| Example { input_ids, condition_ids: Some(condition) }).collect()
    })
}

fn ones(mask: &[f32]) -> usize {
    mask.iter().filter(|&&x| x == 1.0).count()
}

proptest! {
    #[test]
    fn rows_are_condition_target_filling(
        examples in examples(), max_length in 2..24usize, input in prop::option::of(1..23usize), eos in any::<bool>()
    ) {
        let pad_token = if eos { PadToken::Eos } else { PadToken::Pad };
        let input = input.filter(|&n| n < max_length);
        let collator = collator(max_length, input, pad_token).unwrap();
        let batch = collator.collate(&examples).unwrap();
        prop_assert_eq!((batch.rows, batch.seq_len), (examples.len(), max_length));
        prop_assert_eq!(collator.fill_id(), i64::from(eos));
        for (row, example) in examples.iter().enumerate() {
            let condition: Vec<i32> = example.condition_ids.iter().flatten().copied().take(input.unwrap_or(0)).collect();
            let mut expected: Vec<i64> = condition.iter().chain(&example.input_ids).map(|&id| i64::from(id)).take(max_length).collect();
            prop_assert_eq!(batch.cond_len[row], condition.len());
            prop_assert_eq!(batch.valid_len[row], expected.len());
            expected.resize(max_length, collator.fill_id());
            prop_assert_eq!(&batch.input_ids[row * max_length..][..max_length], expected);
        }
        check_masks(&batch)?;
    }

    #[test]
    fn trimming_loses_nothing_but_filling(examples in examples(), input in prop::option::of(1..10usize), eos in any::<bool>()) {
        let pad_token = if eos { PadToken::Eos } else { PadToken::Pad };
        let collator = collator(16, input, pad_token).unwrap();
        let mut batch = collator.collate(&examples).unwrap();
        batch.given = (0..batch.rows * 16).map(|place| place % 3 == 0 && place % 16 < batch.valid_len[place / 16]).collect();
        let lengths: Vec<u32> = batch.valid_len.iter().map(|&n| n as u32).collect();
        if !examples.is_empty() {
            prop_assert_eq!(&Dataset::from_examples(&examples).unwrap().lengths(collator.config()).unwrap(), &lengths);
        }
        let trimmed = batch.clone().trimmed();
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1) as usize;
        prop_assert_eq!(trimmed.seq_len, if eos { 16 } else { longest });
        prop_assert_eq!(ones(&trimmed.loss_mask()), ones(&batch.loss_mask()));
        prop_assert_eq!(ones(&trimmed.is_cond()), ones(&batch.is_cond()));
        let last: Vec<usize> = (0..batch.rows).rev().collect();
        prop_assert_eq!(trimmed.select(&last).select(&last), trimmed.clone());
        prop_assert_eq!(trimmed.tokens(), batch.tokens());
        for (short, long) in trimmed.input_ids.chunks(trimmed.seq_len).zip(batch.input_ids.chunks(16)) {
            prop_assert_eq!(short, &long[..trimmed.seq_len]);
        }
    }
}

fn check_masks(batch: &Batch) -> Result<(), TestCaseError> {
    let (is_valid, is_cond, loss) = (batch.is_valid(), batch.is_cond(), batch.loss_mask());
    prop_assert_eq!(ones(&is_valid), batch.tokens());
    prop_assert!(!batch.label_drop.contains(&true), "no row is dropped by default");
    for q in 0..batch.rows * batch.seq_len {
        prop_assert!(is_cond[q] <= is_valid[q]);
        prop_assert_eq!(loss[q] == 1.0, is_cond[q] == 0.0 && (is_valid[q] == 1.0 || batch.pad_token == PadToken::Eos));
    }
    Ok(())
}

#[test]
fn contradictory_lengths_are_refused() {
    for input in [8, 9] {
        let error = collator(8, Some(input), PadToken::Pad).unwrap_err().to_string();
        assert!(error.contains("max_input_length") && error.contains("must be below max_length (8)"), "{error}");
    }
    assert!(collator(0, None, PadToken::Pad).is_err());
    assert!(collator(8, Some(0), PadToken::Pad).is_err());
    assert!(collator(8, Some(7), PadToken::Pad).is_ok());
}

#[test]
fn a_missing_condition_is_an_error() {
    let example = Example { input_ids: vec![5], condition_ids: None };
    let error = collator(8, Some(4), PadToken::Pad).unwrap().collate(std::slice::from_ref(&example)).unwrap_err();
    assert!(matches!(error, Error::NoCondition), "{error}");
    assert!(collator(8, None, PadToken::Pad).unwrap().collate(&[example]).is_ok());
}

#[test]
fn settings_are_read_as_the_configuration_writes_them() {
    let read = |json: &str| serde_json::from_str::<CollateConfig>(json);
    let config = read(r#"{"max_length": 128, "max_input_length": 64, "pad_token": "eos"}"#).unwrap();
    assert_eq!(config, CollateConfig { max_length: 128, max_input_length: Some(64), pad_token: PadToken::Eos });
    assert_eq!(
        read(r#"{"max_length": 128}"#).unwrap(),
        CollateConfig { max_length: 128, max_input_length: None, pad_token: PadToken::Pad }
    );
    assert!(read(r#"{"max_length": 128, "max_lenght": 3}"#).is_err());
}

#[test]
fn label_drop_is_a_fair_coin_per_position() {
    let dropped = |seed, epoch| (0..10_000).filter(|&p| is_label_dropped(0.1, seed, epoch, p)).collect::<Vec<u64>>();
    let first = dropped(1, 0);
    // 1000 expected, standard deviation 30.
    assert!((850..1150).contains(&first.len()), "{}", first.len());
    assert_eq!(first, dropped(1, 0));
    assert_ne!(first, dropped(2, 0));
    assert_ne!(first, dropped(1, 1));
    assert!((0..100).all(|p| !is_label_dropped(0.0, 1, 0, p) && is_label_dropped(1.0, 1, 0, p)));
}

#[test]
fn what_fills_gaps_follows_the_row() {
    let example = |ids: &[i32]| Example { input_ids: ids.to_vec(), condition_ids: None };
    let mut batch =
        collator(4, None, PadToken::Pad).unwrap().collate(&[example(&[5, 6, 7, 1]), example(&[8, 1])]).unwrap();
    batch.given = vec![true, false, true, false, false, true, false, false];
    let last = batch.with_gaps_last(99);
    assert_eq!((last.rows, last.seq_len, &last.cond_len[..], &last.valid_len[..]), (2, 8, &[4, 2][..], &[6, 3][..]));
    assert_eq!(last.input_ids, [5, 99, 7, 99, 6, 1, 99, 99, 99, 1, 8, 99, 99, 99, 99, 99]);
    batch.given.clear();
    assert_eq!(batch.with_gaps_last(99).input_ids[..8], [99, 99, 99, 99, 5, 6, 7, 1]);
}
