//! When a thread that computes lets others have their turn, so that whoever answers a request for a moment does not wait
//! for it, and nobody needs a priority that a container does not give.
//!
//! Linux interrupts a thread for one that wakes up if the former has asked for longer turns ([`long`], 6.12 and later). But
//! a thread that has had a little more than its share is not chosen when the CPU is next given away, whatever its
//! priority; the one that computes is, and keeps it until the system's timer ticks: for up to 4 ms, which is what the
//! slowest of small requests waited for beside a language model. So language models ask now and then whether somebody
//! waits ([`give`]).

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Longer than what Linux gives who asks for nothing: 0.7 ms, four times that on eight CPUs and more.
const LONG: u64 = 5_000_000;
/// Between two questions whether somebody waits. Each is a system call of half a microsecond where nobody does.
const EVERY: Duration = Duration::from_micros(150);
/// Whoever is away for longer than this mostly shares the CPU with others that compute: beside them, giving up a turn may
/// cost as many as ten of its length ...
const AWAY: Duration = Duration::from_millis(5);
/// ... and asks again after so many times as long ...
const REST: u32 = 10;
/// ... but no later than that: it may have been the whole process that was stopped.
const MOST: Duration = Duration::from_millis(200);

/// This thread, and those that it starts, may be interrupted by all that do not call this. Elsewhere than on Linux 6.12
/// and later nothing changes.
pub fn long() {
    ask(LONG);
}

/// Lets others go first, if any wait; to be called often, by threads that compute for long.
pub fn give() {
    thread_local!(static NEXT: Cell<Option<Instant>> = const { Cell::new(None) });
    let now = Instant::now();
    if NEXT.get().is_none_or(|next| next <= now) {
        std::thread::yield_now();
        let back = Instant::now();
        NEXT.set(Some(back + pause(back - now)));
    }
}

/// How long a thread that was away for so long keeps its turn.
fn pause(away: Duration) -> Duration {
    if away > AWAY { away.saturating_mul(REST).min(MOST) } else { EVERY }
}

/// Nanoseconds, unless it has more already. Where the system has another idea, it stays as it is.
#[cfg(target_os = "linux")]
fn ask(slice: u64) {
    // SAFETY: plain numbers; zeros are numbers, too. The call reads and writes so many bytes of it as it says it is long.
    #[allow(unsafe_code)]
    unsafe {
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        let size = size_of::<libc::sched_attr>() as u32;
        attributes.size = size;
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) != 0
            || attributes.sched_policy != libc::SCHED_OTHER as u32
            || attributes.sched_runtime >= slice
        {
            return;
        }
        attributes.sched_runtime = slice;
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
    }
}

#[cfg(not(target_os = "linux"))]
fn ask(_: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_away_for_long_keeps_its_turn_for_longer() {
        assert_eq!(pause(Duration::ZERO), EVERY);
        assert_eq!(pause(AWAY), EVERY);
        assert_eq!(pause(2 * AWAY), 20 * AWAY);
        assert_eq!(pause(Duration::MAX), MOST);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_asks_for_long_turns_and_keeps_its_priority() {
        let (before, nice) = asked();
        long();
        let (slice, same) = asked();
        // Systems before 6.12 know no slices, and tell zeros.
        assert!(slice == before.max(LONG) || (before == 0 && slice == 0), "{slice} after {before}");
        assert_eq!(same, nice);
    }

    /// The slice that this thread has asked for, and whether it goes after others.
    #[cfg(target_os = "linux")]
    #[allow(unsafe_code)]
    fn asked() -> (u64, i32) {
        // SAFETY: as above.
        unsafe {
            let mut attributes: libc::sched_attr = std::mem::zeroed();
            let size = size_of::<libc::sched_attr>() as u32;
            assert_eq!(libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0), 0);
            (attributes.sched_runtime, attributes.sched_nice)
        }
    }
}
