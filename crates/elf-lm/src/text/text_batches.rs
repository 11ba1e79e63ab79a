//! Grouping of requests into batches with rows of equal length.

use elf_data::Tokenizer;

use super::conditions::Conditions;
use super::generated::TextRequest;
use crate::Result;
use crate::config::RunPlan;

/// Requests that are generated together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBatch {
    /// S, positions of each row.
    pub length: usize,
    /// The indices of the requests in the list of all requests.
    pub places: Vec<usize>,
}

/// Splits a list of requests into batches of at most `rows`. With a length distribution (`plan.lengths`), each
/// request's text has a length of its own, and batches have rows of equal length, conditions included. Without one, all
/// rows have `max_length` positions. A text with gaps is as long as these say.
///
/// # Errors
/// If a condition is missing or not expected, or libtorch fails.
pub fn text_batches(
    plan: &RunPlan,
    tokenizer: &Tokenizer,
    requests: &[TextRequest],
    rows: usize,
) -> Result<Vec<TextBatch>> {
    let longest = plan.span.max_length;
    let mut lengths = vec![longest; requests.len()];
    if let Some(law) = &plan.lengths {
        let conditions = Conditions::of(plan, tokenizer, &requests.iter().collect::<Vec<_>>())?;
        let given = conditions.map_or_else(|| vec![0; requests.len()], |conditions| conditions.lengths().collect());
        for ((length, request), given) in lengths.iter_mut().zip(requests).zip(given) {
            let written = || law.length(request.seed, given, request.candidate);
            *length = if request.template.is_some() { given } else { (given + written()?).min(longest) };
        }
    }
    let mut places: Vec<usize> = (0..requests.len()).collect();
    // A stable sort keeps the order of requests of equal length.
    places.sort_by_key(|&place| lengths[place]);
    let of_one_length = places.chunk_by(|&one, &other| lengths[one] == lengths[other]);
    Ok(of_one_length
        .flat_map(|places| places.chunks(rows.max(1)))
        .map(|places| TextBatch { length: lengths[places[0]], places: places.to_vec() })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, LengthLaw, RunConfig};
    use std::path::Path;
    use tch::Device;

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tokenizers/t5/tokenizer.json")).unwrap()
    }

    fn plan(max_input_length: Option<usize>, lengths: Option<LengthLaw>) -> RunPlan {
        let facts = Facts { latent_dim: 512, vocab_size: 32_100, rows: 1 << 40, condition_eos: false, ranks: 1 };
        let config = RunConfig::default().with(|c| {
            c.data.max_length = 16;
            c.data.max_input_length = max_input_length;
        });
        RunPlan { lengths, ..RunPlan::new(&config, facts, Device::Cpu).unwrap() }
    }

    #[test]
    fn batches_hold_every_request_once_and_rows_of_one_length() {
        let requests = TextRequest::unconditional(3, 50);
        let tokenizer = tokenizer();
        let whole = text_batches(&plan(None, None), &tokenizer, &requests, 8).unwrap();
        assert_eq!(whole.len(), 7);
        assert!(whole.iter().all(|batch| batch.length == 16));
        assert!(whole.iter().flat_map(|batch| &batch.places).copied().eq(0..50));

        let law = LengthLaw::of(&[4, 4, 9, 30].map(|length| [0, length]), false).unwrap();
        let batches = text_batches(&plan(None, Some(law.clone())), &tokenizer, &requests, 8).unwrap();
        let mut places: Vec<usize> = batches.iter().flat_map(|batch| batch.places.clone()).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..50));
        for batch in &batches {
            assert!((1..=8).contains(&batch.places.len()));
            // Lengths above the row length are cut to it.
            assert!(batch.places.iter().all(|&p| law.length(requests[p].seed, 0, 0).unwrap().min(16) == batch.length));
        }
        // A text's length does not depend on other requests.
        let alone = text_batches(&plan(None, Some(law)), &tokenizer, &requests[7..8], 8).unwrap();
        let among = batches.iter().find(|batch| batch.places.contains(&7)).unwrap();
        assert_eq!(alone[0].length, among.length);
    }

    #[test]
    fn rows_of_answers_are_as_long_as_both_parts() {
        let law = LengthLaw::of(&[[[3, 4]; 200], [[8, 5]; 200]].concat(), true).unwrap();
        let plan = plan(Some(8), Some(law));
        let inputs = [vec![5; 3], vec![5; 8], vec![5; 12], vec![5; 3]];
        let request = |ids: &Vec<i32>| TextRequest { condition_ids: Some(ids.clone()), ..TextRequest::default() };
        let requests: Vec<TextRequest> = inputs.iter().map(request).collect();
        let batches = text_batches(&plan, &tokenizer(), &requests, 8).unwrap();
        let expected = [(7, vec![0, 3]), (13, vec![1, 2])].map(|(length, places)| TextBatch { length, places });
        assert_eq!(batches, expected);
    }
}
