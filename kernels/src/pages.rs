//! Memory for what is read from end to end again and again: in large pages, where the system has them. They spare most
//! of the faults while it is filled, and most of the look-ups of addresses while it is read.

/// The large pages of x86-64 and, over pages of 4 KiB, of arm64.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;
/// What is smaller lies among other things.
#[cfg(target_os = "linux")]
const LEAST: usize = 256 << 10;

/// So many zeros, none of which has been touched.
pub(crate) fn zeros(bytes: usize) -> Vec<u8> {
    let zeros = vec![0; bytes];
    #[cfg(target_os = "linux")]
    if bytes >= LEAST {
        advise(&zeros);
    }
    zeros
}

/// Asks for large pages: of the neighbourhood, too, since several pieces may share one. The system may say no.
#[cfg(target_os = "linux")]
fn advise(memory: &[u8]) {
    use rustix::mm::{Advice, madvise};
    let start = memory.as_ptr().addr() / LARGE * LARGE;
    let end = (memory.as_ptr().addr() + memory.len()).next_multiple_of(LARGE);
    // SAFETY: this advice changes neither what memory holds nor whether it is there, whoever it belongs to.
    #[allow(unsafe_code)]
    let _ = unsafe { madvise(memory.as_ptr().with_addr(start).cast_mut().cast(), end - start, Advice::LinuxHugepage) };
}

#[cfg(test)]
mod tests {
    use super::zeros;

    #[test]
    fn zeros_of_every_size() {
        for bytes in [0, 1, (256 << 10) - 1, 256 << 10, (5 << 20) + 3] {
            let zeros = zeros(bytes);
            assert!(zeros.len() == bytes && zeros.iter().all(|byte| *byte == 0));
        }
    }
}
