//! Keeps the pool's threads awake for as long as a step takes. One token is some two hundred short products, one after the
//! other, and a thread that has gone to sleep between two of them takes longer to wake than its share of the next.

use rayon::Yield;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A thread that has had nothing to do for so long may sleep: this is no time between two products.
const PATIENCE: Duration = Duration::from_micros(300);

/// Does `work`, on a thread of the current pool; the others look for their share of it without a break, and for whatever
/// else the pool is asked for.
pub(super) fn awake<R>(work: impl FnOnce() -> R) -> R {
    let over = AtomicBool::new(false);
    let own = rayon::current_thread_index();
    rayon::in_place_scope(|scope| {
        scope.spawn_broadcast(|_, thread| {
            if Some(thread.index()) != own {
                look_for_work(&over);
            }
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        result
    })
}

fn look_for_work(over: &AtomicBool) {
    let mut since = Instant::now();
    while !over.load(Ordering::Relaxed) && since.elapsed() < PATIENCE {
        match rayon::yield_now() {
            Some(Yield::Executed) => since = Instant::now(),
            _ => std::hint::spin_loop(),
        }
    }
}
