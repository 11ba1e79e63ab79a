//! Figures for a monitoring system, in the text form of OpenMetrics that Prometheus reads.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::text::generated::TotalCost;
use crate::train::system_memory;

/// A label of a figure.
type Label = (&'static str, String);

/// Seconds from 1 ms to about 130 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

/// The figures of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<[Label; 2], Counter>,
    latency: Family<[Label; 1], Histogram, fn() -> Histogram>,
    first_frame: Histogram,
    batch_rows: Histogram,
    texts: Counter,
    steps: Counter,
    positions: Counter,
    waiting: Gauge,
    rows: Gauge<i64, AtomicI64>,
    connections: Gauge,
    memory: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let mut made = Self {
            registry: Registry::default(),
            requests: Family::default(),
            latency: Family::new_with_constructor(seconds),
            first_frame: seconds(),
            batch_rows: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            texts: Counter::default(),
            steps: Counter::default(),
            positions: Counter::default(),
            waiting: Gauge::default(),
            rows: Gauge::default(),
            connections: Gauge::default(),
            memory: Gauge::default(),
        };
        registry.register("elf_requests", "Requests by path and status", made.requests.clone());
        registry.register(
            "elf_request_seconds",
            "Seconds from a request's head to the end of its answer",
            made.latency.clone(),
        );
        registry.register(
            "elf_first_frame_seconds",
            "Seconds from a request's head to the first part of a text in a stream",
            made.first_frame.clone(),
        );
        registry.register("elf_batch_rows", "Rows of each pass of a network", made.batch_rows.clone());
        registry.register("elf_texts", "Generated texts, candidates included", made.texts.clone());
        registry.register("elf_steps", "Passes of a network, each over all texts that wait for it", made.steps.clone());
        registry.register("elf_positions", "Generated positions", made.positions.clone());
        registry.register("elf_waiting_requests", "Requests that wait for the model", made.waiting.clone());
        registry.register("elf_running_rows", "Texts that are being generated", made.rows.clone());
        registry.register("elf_open_connections", "Open connections", made.connections.clone());
        registry.register("process_resident_memory_bytes", "Memory of the process", made.memory.clone());
        made.registry = registry;
        made
    }
}

impl Metrics {
    /// Counts an answered request. Status 503 counts the requests that were shed.
    pub fn request(&self, path: &str, status: u16, elapsed: Duration) {
        let path = ("path", path.to_owned());
        self.requests.get_or_create(&[path.clone(), ("status", status.to_string())]).inc();
        self.latency.get_or_create(&[path]).observe(elapsed.as_secs_f64());
    }

    /// Notes when a stream has told the first part of a text.
    pub fn first_frame(&self, elapsed: Duration) {
        self.first_frame.observe(elapsed.as_secs_f64());
    }

    /// Notes a pass of a network over so many rows, or a whole batch of a baseline.
    pub fn pass(&self, rows: usize) {
        self.steps.inc();
        self.batch_rows.observe(rows as f64);
    }

    /// Notes the number of texts that are being generated.
    pub fn running(&self, texts: usize) {
        self.rows.inner().store(i64::try_from(texts).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Notes finished texts and what they cost.
    pub fn made(&self, texts: usize, cost: &TotalCost) {
        self.texts.inc_by(texts as u64);
        self.positions.inc_by(cost.positions);
    }

    /// The number of open connections.
    pub fn connections(&self) -> &Gauge {
        &self.connections
    }

    /// All figures as text; `waiting` requests wait.
    pub fn text(&self, waiting: usize) -> String {
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        if let Some(bytes) = system_memory::resident_bytes() {
            self.memory.set(bytes as f64);
        }
        let mut text = String::new();
        // Writing to a text cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        metrics.request("/generate", 200, Duration::from_millis(3));
        metrics.request("/generate", 503, Duration::from_millis(1));
        metrics.running(3);
        metrics.pass(3);
        let text = metrics.text(2);
        for line in [
            r#"elf_requests_total{path="/generate",status="200"} 1"#,
            r#"elf_requests_total{path="/generate",status="503"} 1"#,
            r#"elf_request_seconds_count{path="/generate"} 2"#,
            "elf_batch_rows_sum 3",
            "elf_running_rows 3",
            "elf_steps_total 1",
            "elf_waiting_requests 2",
            "# EOF",
        ] {
            assert!(text.lines().any(|other| other.trim_end_matches(".0") == line), "{line}\n{text}");
        }
        let cost = TotalCost { positions: 48, ..TotalCost::default() };
        metrics.made(3, &cost);
        metrics.running(0);
        let text = metrics.text(0);
        assert!(text.contains("elf_positions_total 48\n") && text.contains("elf_running_rows 0\n"), "{text}");
    }
}
