//! Collation against the numbers of the released code: ids and masks must be equal, not close.

use elf_data::{Batch, CollateConfig, Collator, Example, PadToken};
use elf_lm::text::text_latents::encoder_mask;
use elf_tests::parity_json;
use serde_json::Value;
use tch::{Device, Kind};

fn fixture() -> Value {
    parity_json("collate.json")
}

fn length(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| i32::try_from(id.as_i64().unwrap()).unwrap()).collect()
}

/// All numbers of nested lists, row-major.
fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn collate(fixture: &Value, max_input_length: Option<usize>, pad_token: PadToken) -> Batch {
    let examples: Vec<Example> = fixture["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| Example {
            input_ids: ids(&item["input_ids"]),
            condition_ids: item.get("condition_input_ids").map(ids),
        })
        .collect();
    let config = CollateConfig { max_length: length(&fixture["max_length"]), max_input_length, pad_token };
    let fill_id = i32::try_from(fixture["pad_token_id"].as_i64().unwrap()).unwrap();
    Collator::with_fill_id(config, fill_id).unwrap().collate(&examples).unwrap()
}

fn check(batch: &Batch, expected: &Value) {
    let same = |name: &str, ours: Vec<f64>| {
        let theirs = flat(&expected[name]);
        assert!(!theirs.is_empty(), "the fixture has no {name}");
        assert_eq!(ours, theirs, "{name}");
    };
    let wide = |mask: Vec<f32>| mask.into_iter().map(f64::from).collect();
    same("input_ids", batch.input_ids.iter().map(|&id| id as f64).collect());
    same("attention_mask", wide(batch.is_valid()));
    same("cond_seq_mask", wide(batch.is_cond()));
    let mask = encoder_mask(batch, false, Device::Cpu).unwrap();
    let mask = mask.map(|pairs| Vec::<f32>::try_from(pairs.to_kind(Kind::Float).reshape([-1])).unwrap());
    // Without conditions every position sees all valid ones.
    let columns = || batch.is_valid().chunks(batch.seq_len).flat_map(|row| row.repeat(batch.seq_len)).collect();
    same("encoder_attention_mask", wide(mask.unwrap_or_else(columns)));
}

#[test]
fn collate_conditional_parity() {
    let fixture = fixture();
    let max_input_length = length(&fixture["max_input_length"]);
    for pad_token in [PadToken::Pad, PadToken::Eos] {
        check(&collate(&fixture, Some(max_input_length), pad_token), &fixture["cond"]);
    }
}

#[test]
fn collate_unconditional_parity() {
    let fixture = fixture();
    for pad_token in [PadToken::Pad, PadToken::Eos] {
        check(&collate(&fixture, None, pad_token), &fixture["uncond"]);
    }
}
