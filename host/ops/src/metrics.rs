//! Numbers for dashboards: counters, gauges and histograms, rendered as Prometheus text. Handles
//! are made when a pipeline is built; on the hot path there are only atomic additions, spread over
//! shards so that cores do not fight for a cache line.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

/// Buckets of `gen_ai.server.request.duration`, in seconds (OpenTelemetry GenAI).
pub const DURATION_BUCKETS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
/// Buckets of `gen_ai.server.time_to_first_token`, in seconds.
pub const FIRST_TOKEN_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// Buckets of `gen_ai.server.time_per_output_token`, in seconds.
pub const PER_TOKEN_BUCKETS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
/// Buckets of `gen_ai.client.token.usage`, in tokens.
pub const TOKEN_BUCKETS: &[f64] = &[
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0,
    16777216.0, 67108864.0,
];
/// Buckets of a stage's time, in seconds: microseconds are what matters there.
pub const STAGE_BUCKETS: &[f64] = &[
    5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.25, 1.0,
];

const SHARDS: usize = 8;

/// One cache line, so that two shards never share one.
#[repr(align(64))]
#[derive(Default)]
struct Cell(AtomicU64);

/// The shard of this thread.
fn shard() -> usize {
    use std::cell::Cell as ThreadCell;
    use std::sync::atomic::AtomicUsize;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static MINE: ThreadCell<usize> = ThreadCell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS));
    MINE.with(ThreadCell::get)
}

/// A number that only grows.
#[derive(Clone, Default)]
pub struct Counter(Arc<[Cell; SHARDS]>);

impl Counter {
    /// Adds.
    pub fn add(&self, number: u64) {
        if let Some(cell) = self.0.get(shard()) {
            cell.0.fetch_add(number, Ordering::Relaxed);
        }
    }

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0
            .iter()
            .map(|cell| cell.0.load(Ordering::Relaxed))
            .sum()
    }
}

/// A number that goes up and down.
#[derive(Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// What it is.
    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// How values spread over buckets.
#[derive(Clone)]
pub struct Histogram(Arc<HistogramInner>);

struct HistogramInner {
    bounds: &'static [f64],
    shards: Vec<HistogramShard>,
}

#[repr(align(64))]
struct HistogramShard {
    /// One for each bound and one beyond the last.
    counts: Vec<AtomicU64>,
    /// In millionths, so that it can be added to in one instruction.
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let shard = || HistogramShard {
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        };
        Self(Arc::new(HistogramInner {
            bounds,
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }))
    }

    /// Adds a value (not negative).
    pub fn observe(&self, value: f64) {
        let Some(shard) = self.0.shards.get(shard()) else {
            return;
        };
        let bucket = self.0.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = shard.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        shard.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    /// Adds a length of time, in seconds.
    pub fn observe_time(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    fn render(&self, name: &str, labels: &str, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (index, bound) in self.0.bounds.iter().enumerate() {
            total += self.count(index);
            let _ = writeln!(
                out,
                "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}"
            );
        }
        total += self.count(self.0.bounds.len());
        let sum: u64 = self
            .0
            .shards
            .iter()
            .map(|shard| shard.sum.load(Ordering::Relaxed))
            .sum();
        let braces = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum{braces} {}", sum as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{braces} {total}");
    }

    fn count(&self, bucket: usize) -> u64 {
        let counts = self
            .0
            .shards
            .iter()
            .filter_map(|shard| shard.counts.get(bucket));
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// One time series, by its labels.
#[derive(Clone)]
enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

struct Family {
    help: &'static str,
    kind: &'static str,
    series: BTreeMap<String, Series>,
}

/// All numbers of the process. A clone is the same registry.
#[derive(Clone, Default)]
pub struct Metrics {
    families: Arc<Mutex<BTreeMap<&'static str, Family>>>,
}

impl Metrics {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter of this name and these labels, made at the first call.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
    ) -> Counter {
        match self.series(name, help, "counter", labels, || {
            Series::Counter(Counter::default())
        }) {
            Series::Counter(counter) => counter,
            _ => Counter::default(),
        }
    }

    /// The gauge of this name and these labels, made at the first call.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        match self.series(name, help, "gauge", labels, || {
            Series::Gauge(Gauge::default())
        }) {
            Series::Gauge(gauge) => gauge,
            _ => Gauge::default(),
        }
    }

    /// The histogram of this name and these labels, made at the first call.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        bounds: &'static [f64],
    ) -> Histogram {
        match self.series(name, help, "histogram", labels, || {
            Series::Histogram(Histogram::new(bounds))
        }) {
            Series::Histogram(histogram) => histogram,
            _ => Histogram::new(bounds),
        }
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        labels: &[(&str, &str)],
        make: impl FnOnce() -> Series,
    ) -> Series {
        let mut families = self.families.lock();
        let family = families.entry(name).or_insert_with(|| Family {
            help,
            kind,
            series: BTreeMap::new(),
        });
        debug_assert_eq!(family.kind, kind, "`{name}` has two kinds");
        family
            .series
            .entry(render_labels(labels))
            .or_insert_with(make)
            .clone()
    }

    /// Everything, in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 << 10);
        for (name, family) in self.families.lock().iter() {
            let _ = writeln!(
                out,
                "# HELP {name} {}\n# TYPE {name} {}",
                family.help, family.kind
            );
            for (labels, series) in &family.series {
                let braces = if labels.is_empty() {
                    String::new()
                } else {
                    format!("{{{labels}}}")
                };
                let _ = match series {
                    Series::Counter(counter) => writeln!(out, "{name}{braces} {}", counter.get()),
                    Series::Gauge(gauge) => writeln!(out, "{name}{braces} {}", gauge.get()),
                    Series::Histogram(histogram) => {
                        histogram.render(name, labels, &mut out);
                        Ok(())
                    }
                };
            }
        }
        out
    }
}

fn render_labels(labels: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        let comma = if out.is_empty() { "" } else { "," };
        let value = value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_and_labels_are_the_same_series() {
        let metrics = Metrics::new();
        metrics.counter("a_total", "A.", &[("x", "1")]).add(2);
        metrics.counter("a_total", "A.", &[("x", "1")]).add(3);
        metrics.gauge("g", "G.", &[]).set(1.5);
        let text = metrics.render();
        assert!(
            text.contains("# TYPE a_total counter\na_total{x=\"1\"} 5\n"),
            "{text}"
        );
        assert!(text.contains("\ng 1.5\n"), "{text}");
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let metrics = Metrics::new();
        let histogram = metrics.histogram("h", "H.", &[("m", "a\"b")], &[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 9.0] {
            histogram.observe(value);
        }
        let text = metrics.render();
        for line in [
            "h_bucket{m=\"a\\\"b\",le=\"1\"} 2",
            "h_bucket{m=\"a\\\"b\",le=\"2\"} 3",
            "h_bucket{m=\"a\\\"b\",le=\"+Inf\"} 4",
            "h_sum{m=\"a\\\"b\"} 12",
            "h_count{m=\"a\\\"b\"} 4",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
