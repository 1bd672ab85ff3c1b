//! How far a step is, to be read from another thread while it runs: where one hangs, this is all that can be told of it.

use super::plan::Plan;
use std::fmt;
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
        let rows = plan.chunks.iter().map(|chunk| chunk.length as usize).sum();
        self.set(At { phase, step: plan.step, sequences: plan.chunks.len(), rows });
    }

    /// Goes on with what is no step.
    pub(super) fn rest(&self, phase: Phase) {
        self.set(At { phase, ..self.at() });
    }

    fn set(&self, at: At) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
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
