//! Where log lines wait for the one thread that writes them: a log that nobody reads must not hold up a request.
//! What does not fit into the buffer is dropped and counted.

use crate::{metrics, threads};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that may wait. As many again may be on their way out.
const BUFFER: usize = 1 << 20;
/// How long leaving waits for the last lines.
const FAREWELL: Duration = Duration::from_secs(1);

/// Takes whole lines, and never waits.
#[derive(Clone, Debug)]
pub(super) struct Writer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Is the thread busy with lines it took?
    writing: bool,
    leaving: bool,
}

impl Writer {
    /// Writes to `out` from a thread of its own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(out: impl Write + Send + 'static) -> Result<Self, String> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), dropped: AtomicU64::new(0) });
        let writer = Writer(shared.clone());
        threads::spawn("log", move || shared.write_all(out))?;
        Ok(writer)
    }

    /// Adds `text` as it is.
    pub(super) fn push(&self, text: &[u8]) {
        let mut state = self.0.lock();
        if state.waiting.len() + text.len() > BUFFER {
            drop(state);
            metrics::log_dropped(self.0.dropped.fetch_add(1, Relaxed) + 1);
            return;
        }
        state.waiting.extend_from_slice(text);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Lines that did not fit, or could not be written.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    /// Waits a moment for what was logged to be written.
    pub(super) fn finish(&self) {
        let end = Instant::now() + FAREWELL;
        let mut state = self.0.lock();
        state.leaving = true;
        self.0.changed.notify_all();
        while state.writing || !state.waiting.is_empty() {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return };
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The thread's work: swap buffers, write, again.
    fn write_all(&self, mut out: impl Write) {
        let (mut lines, mut reported) = (Vec::new(), 0);
        loop {
            let mut state = self.lock();
            state.writing = false;
            self.changed.notify_all();
            while state.waiting.is_empty() {
                if state.leaving {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            std::mem::swap(&mut state.waiting, &mut lines);
            state.writing = true;
            drop(state);
            if out.write_all(&lines).and_then(|()| out.flush()).is_err() {
                // Where the log cannot be written there is no place to say so but the metric.
                let lost = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
                metrics::log_dropped(self.dropped.fetch_add(lost, Relaxed) + lost);
                reported += lost;
            }
            lines.clear();
            let dropped = self.dropped.load(Relaxed);
            if dropped > reported {
                tracing::warn!(lines = dropped - reported, "log lines were dropped: the log is not read fast enough");
                reported = dropped;
            }
        }
    }
}

impl Write for &Writer {
    /// One event: the subscriber hands over each in one piece.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.push(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = &'a Writer;

    fn make_writer(&'a self) -> &'a Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn lines_come_out_in_order() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let writer = Writer::start(pipe).unwrap();
        for number in 0..1000 {
            writeln!(&writer, "{number}").unwrap();
        }
        writer.finish();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let expected: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_log_that_nobody_reads_loses_lines_and_no_time() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let writer = Writer::start(pipe).unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let start = Instant::now();
        for _ in 0..8 * BUFFER / line.len() {
            (&writer).write_all(&line).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(2));
        assert!(writer.dropped() > 4 * (BUFFER / line.len()) as u64);
        assert!(writer.0.lock().waiting.len() <= BUFFER);
        let start = Instant::now();
        writer.finish();
        assert!(start.elapsed() < FAREWELL + Duration::from_secs(1));
        let mut some = [0; 2048];
        reader.read_exact(&mut some).unwrap();
        assert_eq!(some[..1024], line);
    }
}
