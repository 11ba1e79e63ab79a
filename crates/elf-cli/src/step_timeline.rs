//! A training step on many ranks, as a timeline: when each gradient is there, when it has travelled, and what of that the
//! computation does not hide. Times in seconds, sizes in bytes; a model to plan with, held against measurements in
//! docs/scaling.md.

/// Bytes of a flat bucket of gradients, as training sends them.
const BUCKET_BYTES: f64 = elf_train::PACK_BYTES as f64;

/// What moves bytes between ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bytes a second that one rank sends, and at the same time receives.
    pub bytes_per_second: f64,
    /// Fixed time of one message between two neighbours.
    pub latency: f64,
}

impl Link {
    /// An all-reduce, by whichever of two ways is faster, as NCCL chooses: around a ring, where each rank sends
    /// `2 (W - 1) / W` of the bytes in `2 (W - 1)` messages one after the other; or up and down a pair of binary trees, where it
    /// sends them twice, in `2 log2 W` messages.
    pub fn all_reduce(&self, bytes: f64, world: u64) -> f64 {
        let others = (world - 1) as f64;
        let ring = 2.0 * others * (bytes / world as f64 / self.bytes_per_second + self.latency);
        let tree = 2.0 * (bytes / self.bytes_per_second + levels(world) * self.latency);
        ring.min(tree)
    }

    /// Giving all ranks what each owner has: all bytes but the rank's own arrive once; messages go along a binary tree.
    pub fn share(&self, bytes: f64, messages: f64, world: u64) -> f64 {
        let others = (world - 1) as f64;
        bytes * others / world as f64 / self.bytes_per_second + messages * levels(world) * self.latency
    }
}

/// Of a binary tree over all ranks.
fn levels(world: u64) -> f64 {
    (world as f64).log2().ceil()
}

/// What one rank computes in a step, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compute {
    /// Before the last backward pass: encoding, forward passes, all of it for the micro-batches before the last.
    pub before: f64,
    /// The last backward pass.
    pub backward: f64,
    /// Clipping, optimiser and averages, of the rank with the most to do.
    pub update: f64,
}

/// When what of a step happens, in seconds from its beginning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timeline {
    /// The backward pass is over.
    pub backward_ends: f64,
    /// The last gradient is the sum of all ranks'.
    pub gradients_arrive: f64,
    /// This rank's parameters are moved.
    pub update_ends: f64,
    /// Every rank has all parameters: the step is over.
    pub ends: f64,
}

impl Timeline {
    /// Seconds in which nothing is computed because something travels.
    pub fn exposed(&self) -> f64 {
        self.gradients_arrive - self.backward_ends + self.ends - self.update_ends
    }

    /// The share of the step that is computation.
    pub fn efficiency(&self) -> f64 {
        1.0 - self.exposed() / self.ends
    }
}

/// Plays one step through: buckets of gradients become complete at equal intervals in the backward pass and travel one after
/// the other, beside it; then the update; then parameters travel from their owners.
///
/// `owners` of the ranks have parameters of their own: at most as many as there are tensors.
pub fn simulate(compute: Compute, parameter_bytes: f64, world: u64, owners: u64, link: Link) -> Timeline {
    let buckets = (parameter_bytes / BUCKET_BYTES).ceil().max(1.0);
    let of_bucket = link.all_reduce(parameter_bytes / buckets, world);
    let mut free = 0.0f64;
    for bucket in 1..=buckets as u64 {
        let complete = compute.before + compute.backward * bucket as f64 / buckets;
        free = free.max(complete) + of_bucket;
    }
    let backward_ends = compute.before + compute.backward;
    // Owners' parameters do not line up with full packs: each owner has at least one.
    let messages = buckets.max(owners as f64);
    let gradients_arrive = free.max(backward_ends);
    let update_ends = gradients_arrive + compute.update;
    let ends = update_ends + link.share(parameter_bytes, messages, world);
    Timeline { backward_ends, gradients_arrive, update_ends, ends }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPUTE: Compute = Compute { before: 1.0, backward: 2.0, update: 0.5 };
    const FAST: Link = Link { bytes_per_second: 50e9, latency: 5e-6 };

    #[test]
    fn one_rank_waits_for_nobody() {
        let alone = simulate(COMPUTE, 4e8, 1, 1, FAST);
        assert_eq!(alone, Timeline { backward_ends: 3.0, gradients_arrive: 3.0, update_ends: 3.5, ends: 3.5 });
        assert_eq!((alone.exposed(), alone.efficiency()), (0.0, 1.0));
    }

    #[test]
    fn a_fast_link_exposes_only_the_last_bucket_and_the_parameters() {
        let bytes = 10.0 * BUCKET_BYTES;
        let step = simulate(COMPUTE, bytes, 8, 8, FAST);
        let last = FAST.all_reduce(BUCKET_BYTES, 8);
        assert!((step.gradients_arrive - step.backward_ends - last).abs() < 1e-9);
        assert!((step.ends - step.update_ends - FAST.share(bytes, 10.0, 8)).abs() < 1e-9);
    }

    #[test]
    fn a_slow_link_is_busy_from_the_first_bucket_to_the_last() {
        let slow = Link { bytes_per_second: 1e8, latency: 0.0 };
        let bytes = 10.0 * BUCKET_BYTES;
        let step = simulate(COMPUTE, bytes, 2, 2, slow);
        let busy = step.gradients_arrive - (COMPUTE.before + COMPUTE.backward / 10.0);
        assert!((busy - slow.all_reduce(bytes, 2)).abs() < 1e-9);
        let waited = slow.all_reduce(bytes, 2) - 1.8 + slow.share(bytes, 10.0, 2);
        assert!((step.exposed() - waited).abs() < 1e-9 && step.efficiency() < 0.7);
    }

    #[test]
    fn more_ranks_never_make_a_step_shorter() {
        let mut before = 0.0;
        for world in [1, 2, 4, 8, 64, 1024] {
            let step = simulate(COMPUTE, 4.2e8, world, world.min(60), FAST);
            assert!(step.ends >= before, "{world}");
            before = step.ends;
        }
    }
}
