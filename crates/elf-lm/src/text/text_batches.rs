//! Grouping of requests into batches with rows of equal length.

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
/// request's length is drawn from its seed, and batches have rows of equal length. Without one, all rows have
/// `max_length` positions.
///
/// # Errors
/// If libtorch fails.
pub fn text_batches(plan: &RunPlan, requests: &[TextRequest], rows: usize) -> Result<Vec<TextBatch>> {
    let longest = plan.span.max_length;
    let mut lengths = vec![longest; requests.len()];
    if let Some(law) = &plan.lengths {
        for (length, request) in lengths.iter_mut().zip(requests) {
            *length = law.draw(request.seed)?.min(longest);
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
    use tch::Device;

    fn plan(lengths: Option<LengthLaw>) -> RunPlan {
        let facts = Facts { latent_dim: 512, vocab_size: 32_100, rows: 1 << 40, condition_eos: false, ranks: 1 };
        let config = RunConfig::default().with(|c| c.data.max_length = 16);
        RunPlan { lengths, ..RunPlan::new(&config, facts, Device::Cpu).unwrap() }
    }

    #[test]
    fn batches_hold_every_request_once_and_rows_of_one_length() {
        let requests = TextRequest::unconditional(3, 50);
        let whole = text_batches(&plan(None), &requests, 8).unwrap();
        assert_eq!(whole.len(), 7);
        assert!(whole.iter().all(|batch| batch.length == 16));
        assert!(whole.iter().flat_map(|batch| &batch.places).copied().eq(0..50));

        let law = LengthLaw::of(&[4, 4, 9, 30]).unwrap();
        let batches = text_batches(&plan(Some(law.clone())), &requests, 8).unwrap();
        let mut places: Vec<usize> = batches.iter().flat_map(|batch| batch.places.clone()).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..50));
        for batch in &batches {
            assert!((1..=8).contains(&batch.places.len()));
            // Lengths above the row length are cut to it.
            assert!(batch.places.iter().all(|&p| law.draw(requests[p].seed).unwrap().min(16) == batch.length));
        }
        // A text's length does not depend on other requests.
        let alone = text_batches(&plan(Some(law)), &requests[7..8], 8).unwrap();
        let among = batches.iter().find(|batch| batch.places.contains(&7)).unwrap();
        assert_eq!(alone[0].length, among.length);
    }
}
