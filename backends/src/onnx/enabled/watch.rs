//! Ends runs that nobody waits for any more: their deadline passed, or whoever asked has left.
//!
//! One thread looks at all runs a few dozen times a second, as long as there are any; a run does not pay for it but by
//! putting itself on the list.

use crate::{Call, CancelFlag};
use ort::session::{NoSelectedOutputs, RunOptions};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(20);
/// Looks at an empty list before the thread waits to be woken: requests come in rows.
const IDLE_LOOKS: u32 = 50;

/// A run.
struct Watched {
    deadline: Option<Instant>,
    cancel: CancelFlag,
    options: Arc<RunOptions<NoSelectedOutputs>>,
}

#[derive(Default)]
struct Runs {
    next: u64,
    running: BTreeMap<u64, Watched>,
    started: bool,
    /// Does the thread wait to be woken?
    asleep: bool,
}

static RUNS: Mutex<Option<Runs>> = Mutex::new(None);
static WAKE: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Option<Runs>> {
    RUNS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A run that is on the list, as long as this lives.
pub(super) struct Guard(u64);

/// Puts a run on the list.
///
/// # Errors
/// The system gives no thread.
pub(super) fn watch(call: &Call<'_>, options: &Arc<RunOptions<NoSelectedOutputs>>) -> Result<Guard, String> {
    let mut runs = lock();
    let runs = runs.get_or_insert_default();
    if !runs.started {
        let thread = std::thread::Builder::new().name("onnx-watch".into());
        thread.spawn(look).map_err(|e| format!("the system gives no thread: {e}"))?;
        runs.started = true;
    }
    let number = runs.next;
    runs.next += 1;
    let watched = Watched { deadline: call.deadline, cancel: call.cancel.clone(), options: options.clone() };
    runs.running.insert(number, watched);
    if std::mem::take(&mut runs.asleep) {
        WAKE.notify_one();
    }
    Ok(Guard(number))
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(runs) = &mut *lock() {
            runs.running.remove(&self.0);
        }
    }
}

/// What the thread does.
fn look() {
    let mut idle = 0;
    loop {
        let mut guard = lock();
        let Some(runs) = &mut *guard else { return };
        idle = if runs.running.is_empty() { idle + 1 } else { 0 };
        if idle > IDLE_LOOKS {
            runs.asleep = true;
            let awake = WAKE.wait_while(guard, |runs| runs.as_ref().is_some_and(|runs| runs.asleep));
            drop(awake);
            idle = 0;
            continue;
        }
        let now = Instant::now();
        for watched in runs.running.values() {
            if watched.cancel.is_cancelled() || watched.deadline.is_some_and(|deadline| now >= deadline) {
                // It fails where the run is over already, which is as well.
                let _ = watched.options.terminate();
            }
        }
        drop(guard);
        std::thread::sleep(PERIOD);
    }
}
