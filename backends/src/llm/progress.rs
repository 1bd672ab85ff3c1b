//! How far a step is, or the loading of a model, to be read from another thread meanwhile: where one hangs, this is all
//! that can be told of it.

use super::plan::Plan;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What an engine is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It makes a plan, or has nothing to do.
    #[default]
    Planning,
    /// Its executor is given a step.
    Launching,
    /// Its executor is told how tokens are chosen.
    Sampling,
    /// It waits for the tokens.
    Collecting,
    /// Its executor prepares for later steps.
    Preparing,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// What it does.
    pub phase: Phase,
    /// In which step; 0 before the first.
    pub step: u64,
    /// Sequences of that step.
    pub sequences: usize,
    /// Rows of that step.
    pub rows: usize,
}

/// Shared by an engine and whoever looks.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<At>>);

impl Progress {
    /// How far it is now.
    pub fn at(&self) -> At {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with a step.
    pub(super) fn step(&self, phase: Phase, plan: &Plan) {
        self.set(At { phase, step: plan.step, sequences: plan.chunks.len(), rows: plan.rows() as usize });
    }

    /// Goes on with what is no step.
    pub(super) fn rest(&self, phase: Phase) {
        self.set(At { phase, ..self.at() });
    }

    fn set(&self, at: At) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

/// Calls of a device's driver, one after the other: shared by whoever makes them and whoever looks.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Goes on when a call begins and when it ends: odd while one is under way.
    turns: Arc<AtomicU64>,
}

impl Calls {
    /// Makes a call.
    pub fn during<T>(&self, call: impl FnOnce() -> T) -> T {
        self.turns.fetch_add(1, Ordering::Relaxed);
        let result = call();
        self.turns.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Does, amid a call, what is no part of it.
    pub fn between<T>(&self, work: impl FnOnce() -> T) -> T {
        // The turns are the same, the other way round.
        self.during(work)
    }

    /// What tells the call that is under way from others; `None` where none is.
    pub fn under_way(&self) -> Option<u64> {
        Some(self.turns.load(Ordering::Relaxed)).filter(|turns| turns % 2 == 1)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let At { phase, step, sequences, rows } = self;
        let doing = match phase {
            Phase::Planning => return write!(f, "planning, after step {step}"),
            Phase::Preparing => return write!(f, "preparing for later steps, after step {step}"),
            Phase::Launching => "launching",
            Phase::Sampling => "sampling",
            Phase::Collecting => "waiting for the tokens of",
        };
        write!(f, "{doing} step {step}: {rows} rows of {sequences} sequences")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_another_and_what_stands_between_is_none() {
        let calls = Calls::default();
        assert_eq!(calls.under_way(), None);
        let first = calls.during(|| calls.under_way());
        let (second, amid, third) =
            calls.during(|| (calls.under_way(), calls.between(|| calls.under_way()), calls.under_way()));
        assert_eq!((amid, calls.under_way()), (None, None));
        let distinct: std::collections::BTreeSet<u64> = [first, second, third].into_iter().flatten().collect();
        assert_eq!(distinct.len(), 3);
    }
}
