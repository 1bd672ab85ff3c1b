//! How long a thread computes before others have their turn: what Linux calls its slice, from 6.12 on. Elsewhere, and
//! before, nothing changes.
//!
//! A thread that computes is not interrupted for one that wakes up before its turn is over, unless the other asks for
//! shorter ones. So whoever answers requests asks for the shortest: otherwise each of the few times that a request wakes
//! somebody up costs a millisecond or more while all CPUs compute.

/// This thread, and those that it starts, have turns as short as the system gives: a tenth of a millisecond.
pub fn short() {
    ask(100_000);
}

/// This thread has turns as long as any.
pub fn usual() {
    ask(0);
}

/// Nanoseconds; 0 is what the system finds right. Where the system has another idea, it stays as it is.
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
        {
            return;
        }
        attributes.sched_runtime = slice;
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
    }
}

#[cfg(not(target_os = "linux"))]
fn ask(_: u64) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    /// The slice that this thread has asked for, and whether it goes after others.
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

    #[test]
    fn a_thread_asks_for_short_turns_and_gives_them_back() {
        let (before, nice) = asked();
        super::short();
        let (slice, same) = asked();
        // Systems before 6.12 know no slices, and tell zeros.
        assert_eq!(slice, if before == 0 { 0 } else { 100_000 });
        assert_eq!(same, nice);
        super::usual();
        assert_eq!(asked().0, before);
    }
}
