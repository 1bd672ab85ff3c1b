//! Keeps the pool's threads awake for as long as a layer takes. One is some ten small pieces of work, one after the other,
//! and a thread that has gone to sleep between two of them takes longer to wake than its share of the next.

use kernels::turns;
use rayon::Yield;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A thread that has had nothing to do for so long may sleep: this is no time between two products.
const PATIENCE: Duration = Duration::from_micros(300);
/// And so may one that has been awake for so long: it may have other work to go back to.
const LONGEST: Duration = Duration::from_millis(50);

/// Says that the work is over when it is dropped, whichever way that comes.
struct Work(Arc<AtomicBool>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work`, on a thread of the current pool; the others look for their share of it without a break, and for whatever
/// else the pool is asked for. It waits for none of them: one that is busy with something else comes too late, and finds
/// that it is over.
pub(super) fn awake<R>(work: impl FnOnce() -> R) -> R {
    let until = Work(Arc::default());
    let (over, own) = (until.0.clone(), rayon::current_thread_index());
    rayon::spawn_broadcast(move |thread| {
        if Some(thread.index()) != own {
            look_for_work(&over);
        }
    });
    work()
}

fn look_for_work(over: &AtomicBool) {
    let begun = Instant::now();
    let mut last = begun;
    while !over.load(Ordering::Relaxed) {
        let executed = matches!(rayon::yield_now(), Some(Yield::Executed));
        let now = Instant::now();
        if executed {
            last = now;
        } else if now - last > PATIENCE || now - begun > LONGEST {
            return;
        }
        // Whoever looks for work in vain is the first that others need not wait for.
        turns::give();
        std::hint::spin_loop();
    }
}
