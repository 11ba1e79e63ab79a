//! Exchange of gradients during the backward pass.

use std::sync::{Arc, Mutex, PoisonError};

use elf_c10d::{GradientHooks, Group, Pending};
use tch::Tensor;

use super::GradientSum;
use super::lifeline::Lifeline;
use super::packing::{packed, packs, unpack};
use crate::{Error, Result};

/// Gradients in flat buckets, each summed over the ranks as soon as all its gradients are complete.
///
/// Buckets are filled in the reverse order of the parameters, which is about the order in which a backward pass
/// completes them. They are sent in that order on every rank, even if a rank's own pass completes them in another
/// order: a complete bucket waits for those before it, and one that the pass did not reach (its gradient stays as it
/// was) is sent at the end.
pub(super) struct GradientBuckets {
    shared: Arc<Mutex<Shared>>,
    lifeline: Arc<Lifeline>,
    _hooks: GradientHooks,
}

struct Shared {
    group: Arc<Group>,
    lifeline: Arc<Lifeline>,
    leaves: Vec<Tensor>,
    buckets: Vec<Bucket>,
    /// The bucket of each leaf.
    bucket_of: Vec<usize>,
    /// Whether this pass has completed the gradient of each leaf.
    complete: Vec<bool>,
    /// Whether to send complete gradients in this pass.
    armed: bool,
    /// The first bucket that has not been sent.
    next: usize,
    failed: Option<Error>,
}

struct Bucket {
    leaves: Vec<usize>,
    missing: usize,
    under_way: Option<(Tensor, Pending)>,
}

impl GradientBuckets {
    pub(super) fn new(group: Arc<Group>, lifeline: Arc<Lifeline>, mut leaves: Vec<Tensor>) -> Result<Self> {
        leaves.reverse();
        let same_owner = vec![0; leaves.len()];
        let mut bucket_of = vec![0; leaves.len()];
        let buckets: Vec<Bucket> = packs(&leaves, &same_owner)
            .into_iter()
            .enumerate()
            .map(|(b, members)| {
                members.iter().for_each(|&i| bucket_of[i] = b);
                Bucket { missing: members.len(), leaves: members, under_way: None }
            })
            .collect();
        let watched: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
        let shared = Arc::new(Mutex::new(Shared {
            group,
            lifeline: Arc::clone(&lifeline),
            leaves,
            buckets,
            complete: vec![false; bucket_of.len()],
            bucket_of,
            armed: false,
            next: 0,
            failed: None,
        }));
        let of_hooks = Arc::clone(&shared);
        let hooks = GradientHooks::new(&watched, move |leaf| lock(&of_hooks).complete(leaf))
            .map_err(|e| Error::Comm(e.to_string()))?;
        Ok(Self { shared, lifeline, _hooks: hooks })
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn complete(&mut self, leaf: usize) {
        if !self.armed || self.failed.is_some() {
            return;
        }
        if std::mem::replace(&mut self.complete[leaf], true) {
            // The bucket may have been sent already, without this part of the gradient. None of our networks does this.
            let reason =
                "a backward pass added to the gradient of a parameter twice, which ranks cannot sum as they go";
            self.failed = Some(Error::Comm(reason.to_owned()));
            return;
        }
        let bucket = &mut self.buckets[self.bucket_of[leaf]];
        bucket.missing = bucket.missing.saturating_sub(1);
        while self.buckets.get(self.next).is_some_and(|b| b.missing == 0) {
            if let Err(error) = self.send(self.next) {
                self.failed = Some(error);
                return;
            }
            self.next += 1;
        }
    }

    fn gradients(&self) -> Result<Vec<Tensor>> {
        self.leaves.iter().map(|leaf| Ok(leaf.f_grad()?)).collect()
    }

    fn send(&mut self, bucket: usize) -> Result<()> {
        let gradients = self.gradients()?;
        let flat = tch::no_grad(|| packed(&gradients, &self.buckets[bucket].leaves))?;
        self.lifeline.count_operation();
        let pending = self.group.all_reduce_sum(&flat).map_err(|e| self.lifeline.lost(&e))?;
        self.buckets[bucket].under_way = Some((flat, pending));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.armed = false;
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        for bucket in std::mem::replace(&mut self.next, 0)..self.buckets.len() {
            self.send(bucket)?;
        }
        let gradients = self.gradients()?;
        for bucket in &mut self.buckets {
            bucket.missing = bucket.leaves.len();
            if let Some((flat, pending)) = bucket.under_way.take() {
                pending.wait().map_err(|e| self.lifeline.lost(&e))?;
                tch::no_grad(|| unpack(&flat, &gradients, &bucket.leaves))?;
            }
        }
        Ok(())
    }
}

impl GradientSum for GradientBuckets {
    fn begin(&self) {
        let mut shared = lock(&self.shared);
        shared.armed = true;
        shared.next = 0;
        shared.complete.fill(false);
        shared.buckets.iter_mut().for_each(|b| b.missing = b.leaves.len());
    }

    fn finish(&self) -> Result<()> {
        self.lifeline.check()?;
        lock(&self.shared).finish()
    }
}
