//! Batches made ahead of time.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::collate::{Batch, Collator, is_label_dropped};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::given::GivenShares;
use crate::order::{Cursor, Order};

/// Settings of a loader.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Number of batches made ahead.
    pub prefetch: usize,
    /// Probability with which a row's label is dropped; see [`Batch::label_drop`].
    pub label_drop_prob: f64,
    /// Shares of rows of which tokens are given; see [`Batch::given`].
    pub given: GivenShares,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self { prefetch: 4, label_drop_prob: 0.0, given: GivenShares::default() }
    }
}

/// A batch, and the place in the data after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The batch.
    pub batch: Batch,
    /// The cursor to store after this batch has been used.
    pub after: Cursor,
}

/// An endless stream of this rank's batches, made on a thread of its own.
///
/// The stream continues from epoch to epoch. An error appears at its place in the stream and ends it. Dropping the loader ends the
/// thread and waits for it.
#[derive(Debug)]
pub struct Loader {
    // `None` while the loader is being dropped: a closed channel ends the thread.
    receiver: Option<Receiver<Result<Loaded>>>,
    thread: Option<JoinHandle<()>>,
    waited: Duration,
    failed: bool,
}

impl Loader {
    /// Starts loading at `from`.
    ///
    /// # Errors
    /// If `order` is for another number of rows, no batch begins at `from`, or a setting is out of range.
    pub fn start(
        dataset: Arc<Dataset>,
        collator: Collator,
        mut order: Order,
        from: Cursor,
        config: LoaderConfig,
    ) -> Result<Self> {
        if order.config().rows != dataset.len() {
            return Err(Error::Config(format!(
                "the order is for {} rows, but the data has {}: was the data exchanged since the checkpoint?",
                order.config().rows,
                dataset.len()
            )));
        }
        if !(0.0..=1.0).contains(&config.label_drop_prob) {
            return Err(Error::Config(format!(
                "label_drop_prob {} is out of range: choose 0 to 1",
                config.label_drop_prob
            )));
        }
        config.given.check()?;
        if collator.config().max_input_length.is_some() && !dataset.is_conditional() {
            return Err(Error::NoCondition);
        }
        order.next(from)?;
        let (sender, receiver) = bounded(config.prefetch.max(1));
        let mut maker = Maker { dataset, collator, order, config };
        let thread = std::thread::Builder::new()
            .name("elf-data-loader".to_owned())
            .spawn(move || maker.run(from, &sender))
            .map_err(|e| Error::Config(format!("cannot start the data loader's thread: {e}")))?;
        Ok(Self { receiver: Some(receiver), thread: Some(thread), waited: Duration::ZERO, failed: false })
    }

    /// The next batch.
    ///
    /// # Errors
    /// If reading or collating failed; after that, always [`Error::LoaderGone`].
    pub fn next_batch(&mut self) -> Result<Loaded> {
        let begun = Instant::now();
        let received = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        self.waited += begun.elapsed();
        let result = received.unwrap_or(Err(Error::LoaderGone));
        self.failed |= result.is_err();
        result
    }

    /// Total time that callers waited in [`next_batch`](Self::next_batch). Its share of the running time shows whether data is the
    /// bottleneck.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Iterator for Loader {
    type Item = Result<Loaded>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.failed).then(|| self.next_batch())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        drop(self.receiver.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already reported: the stream ended with `LoaderGone`.
            let _ = thread.join();
        }
    }
}

struct Maker {
    dataset: Arc<Dataset>,
    collator: Collator,
    order: Order,
    config: LoaderConfig,
}

impl Maker {
    fn run(&mut self, from: Cursor, sender: &Sender<Result<Loaded>>) {
        let mut at = from;
        loop {
            let made = self.make(at);
            let failed = made.is_err();
            if let Ok(loaded) = &made {
                at = loaded.after;
            }
            // Sending fails when the loader has been dropped.
            if sender.send(made).is_err() || failed {
                return;
            }
        }
    }

    fn make(&mut self, at: Cursor) -> Result<Loaded> {
        let (places, after) = self.order.next(at)?;
        let rows: Vec<usize> = places.iter().map(|&(_, row)| row).collect();
        let mut batch = self.collator.collate(&self.dataset.examples(&rows)?)?;
        let seed = self.order.config().seed;
        let drops =
            places.iter().map(|&(position, _)| is_label_dropped(self.config.label_drop_prob, seed, at.epoch, position));
        batch.label_drop = drops.collect();
        self.config.given.give(&mut batch, seed, at.epoch, places.iter().map(|&(position, _)| position));
        Ok(Loaded { batch, after })
    }
}
