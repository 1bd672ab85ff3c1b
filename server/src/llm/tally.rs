//! Counts a request for text once, when the last of its answers has ended, however it came and however it ended.

use crate::error::Error;
use crate::metrics::ModelMetrics;
use crate::stats::{Stats, Timing};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A request under way. The last clone that is dropped counts it.
#[derive(Clone)]
pub struct Tally(Arc<Open>);

struct Open {
    stats: Arc<Stats>,
    metrics: ModelMetrics,
    since: Instant,
    prompts: usize,
    failed: Mutex<Option<Error>>,
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tally").field("prompts", &self.0.prompts).finish_non_exhaustive()
    }
}

impl Tally {
    /// Begins a request with so many prompts.
    pub fn begin(stats: Arc<Stats>, metrics: ModelMetrics, prompts: usize) -> Self {
        let (since, failed) = (Instant::now(), Mutex::new(None));
        Tally(Arc::new(Open { stats, metrics, since, prompts, failed }))
    }

    /// It failed; the first reason counts.
    pub fn fail(&self, error: &Error) {
        self.0.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let total = self.since.elapsed();
        let failed = self.failed.get_mut().unwrap_or_else(PoisonError::into_inner);
        match failed {
            Some(error) => {
                self.stats.failed(total);
                self.metrics.failed(error);
            }
            None => {
                // Waiting and computing go on side by side here: all of it counts as computing.
                let timing = Timing { infer: total, ..Timing::default() };
                self.stats.answered(self.prompts, total, &timing);
                self.stats.executed(self.prompts, &timing);
                self.metrics.answered(self.prompts, total, &timing);
            }
        }
    }
}
