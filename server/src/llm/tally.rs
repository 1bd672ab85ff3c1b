//! Counts a request for text once, when the last of its answers has ended, however it came and however it ended.

use crate::error::Error;
use crate::metrics::ModelMetrics;
use crate::servable::Servable;
use crate::stats::{Stats, Timing};
use std::sync::Arc;
use std::time::Instant;

/// A request under way. It is counted when this is dropped.
#[derive(Debug)]
pub struct Tally {
    model: String,
    stats: Arc<Stats>,
    metrics: ModelMetrics,
    since: Instant,
    prompts: usize,
    done: bool,
    failed: Option<Error>,
}

impl Tally {
    /// Begins a request with so many prompts.
    pub fn begin(servable: &Servable, prompts: usize) -> Self {
        let Servable { name, stats, metrics, .. } = servable;
        let (model, stats, metrics) = (name.clone(), stats.clone(), metrics.clone());
        Tally { model, stats, metrics, since: Instant::now(), prompts, done: false, failed: None }
    }

    /// All of it was answered. Where neither this nor a failure is said its client has left, wherever it was by then.
    pub fn done(&mut self) {
        self.done = true;
    }

    /// It failed; the first reason counts.
    pub fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| error.clone());
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let total = self.since.elapsed();
        let left = (!self.done).then_some(Error::Cancelled);
        let Some(error) = self.failed.take().or(left) else {
            // Waiting and computing go on side by side here: all of it counts as computing.
            let timing = Timing { infer: total, ..Timing::default() };
            self.stats.answered(self.prompts, total, &timing);
            self.stats.executed(self.prompts, &timing);
            return self.metrics.answered(self.prompts, total, &timing);
        };
        if let Error::Internal(what) | Error::Memory(what) = &error {
            tracing::error!(model = self.model, %what, "a request failed");
        }
        self.stats.failed(total);
        self.metrics.failed(&error);
    }
}
