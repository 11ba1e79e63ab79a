//! Which texts are generated together: batches of requests whose rows have one length.

use super::generated::TextRequest;
use crate::Result;
use crate::config::RunPlan;

/// Requests that are generated together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBatch {
    /// S, positions of each row.
    pub length: usize,
    /// The requests' places in the list of all requests.
    pub places: Vec<usize>,
}

/// Splits a list of requests into batches of at most `rows`, in the requests' order.
///
/// # Errors
/// None so far.
pub fn text_batches(plan: &RunPlan, requests: &[TextRequest], rows: usize) -> Result<Vec<TextBatch>> {
    let places: Vec<usize> = (0..requests.len()).collect();
    Ok(places
        .chunks(rows.max(1))
        .map(|places| TextBatch { length: plan.span.max_length, places: places.to_vec() })
        .collect())
}
