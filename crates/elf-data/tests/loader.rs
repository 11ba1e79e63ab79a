//! The prefetching loader.

mod support;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use elf_data::shards::PrepareConfig;
use elf_data::{
    CollateConfig, Collator, Cursor, Dataset, Error, GivenShares, Loaded, Loader, LoaderConfig, OpenOptions, Order,
    OrderConfig, PadToken, Share,
};
use support::{documents, prepare_all, t5};

struct Corpus {
    // Removed when the corpus is dropped.
    _folder: tempfile::TempDir,
    config: PrepareConfig,
}

impl Corpus {
    fn prepare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text.txt");
        fs::write(&text, documents(70).join("\n")).unwrap();
        let config = PrepareConfig::new(vec![text], folder.path().join("shards"), "text");
        prepare_all(&config).unwrap();
        Self { _folder: folder, config }
    }

    fn dataset(&self, memory_limit: u64) -> Arc<Dataset> {
        Arc::new(Dataset::open_with(&[&self.config.output], OpenOptions { memory_limit, cache: 0 }).unwrap())
    }

    fn order(&self, rank: usize, world: usize) -> Order {
        let config = OrderConfig { seed: 9, rows: self.dataset(0).len(), global_batch: 8 };
        Order::new(config, Share { rank, world, micro_batch: 2 }).unwrap()
    }

    fn loader(&self, from: Cursor) -> Loader {
        let given = GivenShares { spans: 0.5, words: 0.3, ..GivenShares::default() };
        let config = LoaderConfig { prefetch: 2, label_drop_prob: 0.3, given };
        Loader::start(self.dataset(u64::MAX), collator(), self.order(1, 2), from, config).unwrap()
    }
}

fn collator() -> Collator {
    Collator::new(CollateConfig { max_length: 12, max_input_length: None, pad_token: PadToken::Pad }, t5()).unwrap()
}

fn take(loader: &mut Loader, n: usize) -> Vec<Loaded> {
    (0..n).map(|_| loader.next_batch().unwrap()).collect()
}

#[test]
fn lengths_are_the_same_from_disk_and_from_memory() {
    let corpus = Corpus::prepare();
    let lengths = |memory_limit| corpus.dataset(memory_limit).lengths(collator().config()).unwrap();
    assert_eq!(lengths(0), lengths(u64::MAX));
    assert_eq!(lengths(0).len(), corpus.dataset(0).len());
    let conditional = CollateConfig { max_input_length: Some(4), ..collator().config() };
    assert!(matches!(corpus.dataset(0).lengths(conditional), Err(Error::NoCondition)));
}

#[test]
fn batches_are_those_of_the_order_over_epochs() {
    let corpus = Corpus::prepare();
    let (dataset, mut order, mut at) = (corpus.dataset(0), corpus.order(1, 2), Cursor::default());
    let loaded = take(&mut corpus.loader(at), 40);
    for Loaded { batch, after } in &loaded {
        let (places, next) = order.next(at).unwrap();
        let rows: Vec<usize> = places.iter().map(|&(_, row)| row).collect();
        let expected = collator().collate(&dataset.examples(&rows).unwrap()).unwrap();
        assert_eq!(batch.input_ids, expected.input_ids);
        assert_eq!(*after, next);
        at = next;
    }
    assert!(at.epoch >= 2, "the loader goes from epoch to epoch");
    assert!(loaded.iter().any(|l| l.batch.label_drop.contains(&true)));
    assert!(loaded.iter().any(|l| l.batch.label_drop.contains(&false)));
}

#[test]
fn resuming_from_any_cursor_equals_going_on() {
    let corpus = Corpus::prepare();
    let all = take(&mut corpus.loader(Cursor::default()), 40);
    for done in [1, 7, 13, 30] {
        let rest = take(&mut corpus.loader(all[done - 1].after), 40 - done);
        assert!(rest == all[done..], "after {done} batches");
    }
}

#[test]
fn errors_come_through_the_channel_and_end_the_stream() {
    let corpus = Corpus::prepare();
    let (dataset, order) = (corpus.dataset(0), corpus.order(0, 1));
    // After the footers were read, so that the thread meets the loss.
    fs::remove_file(dataset.files().next().unwrap()).unwrap();
    let mut loader = Loader::start(dataset, collator(), order, Cursor::default(), LoaderConfig::default()).unwrap();
    let error = loader.next_batch().unwrap_err();
    assert!(error.to_string().contains("shard-00000.parquet"), "{error}");
    assert!(loader.next().is_none());
    assert!(matches!(loader.next_batch(), Err(Error::LoaderGone)));
}

#[test]
fn dropping_ends_the_thread_even_while_it_waits_to_send() {
    let corpus = Corpus::prepare();
    let (dataset, order) = (corpus.dataset(0), corpus.order(0, 1));
    let held_by_thread = Arc::downgrade(&dataset);
    let mut loader = Loader::start(dataset, collator(), order, Cursor::default(), LoaderConfig::default()).unwrap();
    take(&mut loader, 1);
    // Time to fill the channel, so that the thread waits to send.
    std::thread::sleep(Duration::from_millis(20));
    assert!(held_by_thread.upgrade().is_some());
    drop(loader);
    assert!(held_by_thread.upgrade().is_none(), "the thread has ended and let go of the data");
}

#[test]
fn waiting_is_counted() {
    let corpus = Corpus::prepare();
    let mut loader = corpus.loader(Cursor::default());
    assert_eq!(loader.waited(), Duration::ZERO);
    take(&mut loader, 1);
    let once = loader.waited();
    assert!(once > Duration::ZERO);
    take(&mut loader, 5);
    assert!(loader.waited() > once);
}

#[test]
fn what_does_not_fit_is_refused_at_the_start() {
    let corpus = Corpus::prepare();
    let dataset = corpus.dataset(u64::MAX);
    let start = |order: Order, from: Cursor, collator: Collator, label_drop_prob: f64| {
        let config = LoaderConfig { label_drop_prob, ..Default::default() };
        Loader::start(dataset.clone(), collator, order, from, config).unwrap_err().to_string()
    };
    let share = Share::alone(2);
    let other = Order::new(OrderConfig { seed: 9, rows: 1000, global_batch: 8 }, share).unwrap();
    assert!(start(other, Cursor::default(), collator(), 0.0).contains("1000 rows"));
    assert!(start(corpus.order(0, 1), Cursor { epoch: 0, position: 3 }, collator(), 0.0).contains("position 3"));
    assert!(start(corpus.order(0, 1), Cursor::default(), collator(), 1.5).contains("label_drop_prob"));
    let conditional = CollateConfig { max_length: 12, max_input_length: Some(4), pad_token: PadToken::Pad };
    let conditional = Collator::new(conditional, t5()).unwrap();
    assert!(start(corpus.order(0, 1), Cursor::default(), conditional, 0.0).contains("condition"));
}
