//! Metrics of what comes and goes: models, and versions of them. A series is told of for as long as its scope is there, and a
//! scope is there for as long as anybody has it: what was unloaded leaves nothing behind, and what is loaded again while it
//! serves counts on. Which metrics there are is said by those who ask for them.

use metrics::atomics::AtomicU64;
use metrics::{Counter, Gauge, Histogram, HistogramFn};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A model, or a version of it.
type Key = (String, Option<u64>);
/// Names and values.
type Labels<'a> = [(&'a str, &'a str)];

static SCOPES: Mutex<BTreeMap<Key, Weak<Scope>>> = Mutex::new(BTreeMap::new());

fn scopes() -> MutexGuard<'static, BTreeMap<Key, Weak<Scope>>> {
    SCOPES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The series of a version, or those that all versions of a model share. Whoever counts in one of them after it is gone does
/// so without effect.
pub(super) struct Scope {
    key: Key,
    /// By the names of their metrics, and their labels as text.
    series: Mutex<BTreeMap<(&'static str, String), Value>>,
}

impl Scope {
    /// The scope of a model, or of a version of it: the same for all who ask while somebody has it.
    pub(super) fn of(model: &str, version: Option<u64>) -> Arc<Self> {
        let key = (model.to_owned(), version);
        let mut all = scopes();
        if let Some(scope) = all.get(&key).and_then(Weak::upgrade) {
            return scope;
        }
        let scope = Arc::new(Scope { key: key.clone(), series: Mutex::default() });
        all.insert(key, Arc::downgrade(&scope));
        scope
    }

    /// A counter; at zero, if it is new.
    pub(super) fn counter(&self, metric: &'static str, labels: &Labels<'_>) -> Counter {
        match self.series(metric, labels, || Value::Counter(Arc::default())) {
            Value::Counter(count) => Counter::from_arc(count),
            Value::Gauge(_) | Value::Histogram(_) => Counter::noop(),
        }
    }

    /// A gauge; at zero, if it is new.
    pub(super) fn gauge(&self, metric: &'static str, labels: &Labels<'_>) -> Gauge {
        match self.series(metric, labels, || Value::Gauge(Arc::default())) {
            Value::Gauge(level) => Gauge::from_arc(level),
            Value::Counter(_) | Value::Histogram(_) => Gauge::noop(),
        }
    }

    /// A histogram of seconds, whose buckets end at `bounds`.
    pub(super) fn times(&self, metric: &'static str, labels: &Labels<'_>, bounds: &'static [f64]) -> Histogram {
        self.histogram(metric, labels, || Buckets::new(bounds, 1e9))
    }

    /// A histogram of whole numbers, whose buckets end at `bounds`.
    pub(super) fn sizes(&self, metric: &'static str, labels: &Labels<'_>, bounds: &'static [f64]) -> Histogram {
        self.histogram(metric, labels, || Buckets::new(bounds, 1.0))
    }

    fn histogram(&self, metric: &'static str, labels: &Labels<'_>, new: impl Fn() -> Buckets) -> Histogram {
        match self.series(metric, labels, || Value::Histogram(Arc::new(new()))) {
            Value::Histogram(buckets) => Histogram::from_arc(buckets),
            Value::Counter(_) | Value::Gauge(_) => Histogram::noop(),
        }
    }

    /// Tells of this series no more.
    pub(super) fn forget(&self, metric: &'static str, labels: &Labels<'_>) {
        self.lock().remove(&(metric, written(labels)));
    }

    fn series(&self, metric: &'static str, labels: &Labels<'_>, new: impl FnOnce() -> Value) -> Value {
        self.lock().entry((metric, written(labels))).or_insert_with(new).clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(&'static str, String), Value>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let mut all = scopes();
        // Another may have taken its place already.
        if all.get(&self.key).is_some_and(|scope| scope.strong_count() == 0) {
            all.remove(&self.key);
        }
    }
}

/// What a series holds.
#[derive(Clone)]
enum Value {
    Counter(Arc<AtomicU64>),
    /// The bits of a number.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(_) => "histogram",
        }
    }

    /// Its lines of text.
    fn lines(&self, metric: &str, labels: &str) -> String {
        match self {
            Value::Counter(count) => format!("{metric}{{{labels}}} {}\n", count.load(Ordering::Relaxed)),
            Value::Gauge(bits) => {
                format!("{metric}{{{labels}}} {}\n", f64::from_bits(bits.load(Ordering::Relaxed)))
            }
            Value::Histogram(buckets) => buckets.lines(metric, labels),
        }
    }
}

/// How often something was how much.
struct Buckets {
    /// The most of each bucket; what is more is in one bucket more.
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    /// All of them together, in parts of one.
    sum: AtomicU64,
    /// So many parts.
    parts: f64,
}

impl Buckets {
    fn new(bounds: &'static [f64], parts: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Buckets { bounds, counts, sum: AtomicU64::new(0), parts }
    }

    fn lines(&self, metric: &str, labels: &str) -> String {
        let (mut lines, mut count) = (String::new(), 0u64);
        let bounds = self.bounds.iter().map(|bound| bound.to_string()).chain(["+Inf".to_owned()]);
        for (bound, number) in bounds.zip(&self.counts) {
            count += number.load(Ordering::Relaxed);
            lines += &format!("{metric}_bucket{{{labels},le=\"{bound}\"}} {count}\n");
        }
        let sum = self.sum.load(Ordering::Relaxed) as f64 / self.parts;
        lines + &format!("{metric}_sum{{{labels}}} {sum}\n{metric}_count{{{labels}}} {count}\n")
    }
}

impl HistogramFn for Buckets {
    fn record(&self, amount: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < amount);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((amount * self.parts).round() as u64, Ordering::Relaxed);
    }
}

/// Labels as they stand in the text.
fn written(labels: &Labels<'_>) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let each = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    each.collect::<Vec<_>>().join(",")
}

/// All series as text, metric by metric; `help` says what a metric tells.
pub(crate) fn text(help: impl Fn(&str) -> &'static str) -> String {
    // Held until nothing is locked any more: the last who has one locks them all.
    let living: Vec<Arc<Scope>> = scopes().values().filter_map(Weak::upgrade).collect();
    let mut metrics: BTreeMap<&'static str, (&'static str, String)> = BTreeMap::new();
    for scope in &living {
        for ((metric, labels), value) in scope.lock().iter() {
            let (_, lines) = metrics.entry(*metric).or_insert_with(|| (value.kind(), String::new()));
            *lines += &value.lines(metric, labels);
        }
    }
    let mut text = String::new();
    for (metric, (kind, lines)) in &metrics {
        text += &format!("# HELP {metric} {}\n# TYPE {metric} {kind}\n{lines}\n", help(metric));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a model that only this test has.
    fn told(model: &str) -> Vec<String> {
        let all = text(|_| "what it is");
        all.lines().filter(|line| line.contains(&format!("model=\"{model}\""))).map(str::to_owned).collect()
    }

    #[test]
    fn series_are_there_for_as_long_as_anybody_has_their_scope() {
        let labels = [("model", "comes and goes")];
        let (first, second) = (Scope::of("comes and goes", None), Scope::of("comes and goes", None));
        let counter = first.counter("a_count", &labels);
        counter.increment(2);
        second.counter("a_count", &labels).increment(1);
        let version = Scope::of("comes and goes", Some(1));
        version.gauge("a_level", &[("model", "comes and goes"), ("version", "1")]).set(0.5);
        let both = ["a_count{model=\"comes and goes\"} 3", "a_level{model=\"comes and goes\",version=\"1\"} 0.5"];
        assert_eq!(told("comes and goes"), both);
        drop((first, version));
        assert_eq!(told("comes and goes"), both[..1]);
        drop(second);
        counter.increment(1);
        assert_eq!(told("comes and goes"), Vec::<String>::new());
        assert!(!scopes().contains_key(&("comes and goes".to_owned(), None)));
        let again = Scope::of("comes and goes", None);
        again.counter("a_count", &labels).increment(1);
        assert_eq!(told("comes and goes"), ["a_count{model=\"comes and goes\"} 1"]);
        again.forget("a_count", &labels);
        assert_eq!(told("comes and goes"), Vec::<String>::new());
    }

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let scope = Scope::of("odd \"\\\n", None);
        let times = scope.times("some_seconds", &[("model", "odd \"\\\n")], &[0.1, 0.25]);
        for seconds in [0.1, 0.2, 0.25, 7.0] {
            times.record(seconds);
        }
        let all = text(|metric| if metric == "some_seconds" { "how long" } else { "" });
        let (_, part) = all.split_once("# HELP some_seconds how long\n# TYPE some_seconds histogram\n").unwrap();
        let (part, _) = part.split_once("\n\n").unwrap();
        let lines: Vec<&str> = part.lines().collect();
        let label = "model=\"odd \\\"\\\\\\n\"";
        let bucket = |bound: &str, count: u64| format!("some_seconds_bucket{{{label},le=\"{bound}\"}} {count}");
        let sums = [format!("some_seconds_sum{{{label}}} 7.55"), format!("some_seconds_count{{{label}}} 4")];
        assert_eq!(lines, [&[bucket("0.1", 1), bucket("0.25", 3), bucket("+Inf", 4)][..], &sums[..]].concat());
    }
}
