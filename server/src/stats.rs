//! What happened to a model's requests, counted without locks: Triton's statistics extension reads it back.

use crate::clock::since_1970;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How often, and how long in all.
#[derive(Debug, Default)]
pub struct Durations {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Durations {
    fn add(&self, duration: Duration) {
        self.count.fetch_add(1, Relaxed);
        self.ns.fetch_add(duration.as_nanos() as u64, Relaxed);
    }
    /// (count, nanoseconds)
    pub fn read(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.ns.load(Relaxed))
    }
}

/// How long the parts of one execution took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Waiting for its turn.
    pub queue: Duration,
    /// Gathering inputs.
    pub input: Duration,
    /// Computing.
    pub infer: Duration,
    /// Handing out outputs.
    pub output: Duration,
}

/// Executions of one batch size: (count, nanoseconds) of input, infer and output.
pub type BatchCounts = [(u64, u64); 3];

/// Counters of one version of a model.
#[derive(Default)]
pub struct Stats {
    /// Milliseconds since 1970 of the last request.
    pub last_inference: AtomicU64,
    /// Rows.
    pub inferences: AtomicU64,
    /// Executions; fewer than requests when they were batched.
    pub executions: AtomicU64,
    /// Answered requests, end to end.
    pub success: Durations,
    /// Failed requests, end to end.
    pub fail: Durations,
    /// Waiting.
    pub queue: Durations,
    /// Gathering inputs.
    pub input: Durations,
    /// Computing.
    pub infer: Durations,
    /// Handing out outputs.
    pub output: Durations,
    batches: Mutex<BTreeMap<u64, BatchCounts>>,
    single: [Durations; 3],
    /// The metric that counts executions of all versions that were loaded under one name and number.
    metric: Option<metrics::Counter>,
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stats").field("inferences", &self.inferences).finish_non_exhaustive()
    }
}

impl Stats {
    /// Counters whose executions `metric` counts too.
    pub fn counting(metric: metrics::Counter) -> Self {
        Stats { metric: Some(metric), ..Stats::default() }
    }

    /// One request was answered.
    pub fn answered(&self, rows: usize, total: Duration, timing: &Timing) {
        self.inferences.fetch_add(rows as u64, Relaxed);
        self.success.add(total);
        self.queue.add(timing.queue);
        self.input.add(timing.input);
        self.infer.add(timing.infer);
        self.output.add(timing.output);
        self.touch();
    }

    /// One request failed.
    pub fn failed(&self, total: Duration) {
        self.fail.add(total);
        self.touch();
    }

    /// One execution over `rows` rows ran.
    pub fn executed(&self, rows: usize, timing: &Timing) {
        self.executions.fetch_add(1, Relaxed);
        if let Some(metric) = &self.metric {
            metric.increment(1);
        }
        let parts = [timing.input, timing.infer, timing.output];
        // Nearly every execution of an unloaded server has one row: that count takes no lock.
        if rows == 1 {
            self.single.iter().zip(parts).for_each(|(sum, part)| sum.add(part));
            return;
        }
        let mut batches = self.batches.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (sum, part) in batches.entry(rows as u64).or_default().iter_mut().zip(parts) {
            sum.0 += 1;
            sum.1 += part.as_nanos() as u64;
        }
    }

    /// Executions by batch size.
    pub fn batches(&self) -> BTreeMap<u64, BatchCounts> {
        let mut batches = self.batches.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let single = [self.single[0].read(), self.single[1].read(), self.single[2].read()];
        if single[0].0 > 0 {
            batches.insert(1, single);
        }
        batches
    }

    fn touch(&self) {
        self.last_inference.store(since_1970().as_millis() as u64, Relaxed);
    }
}
