//! What a connection is doing, so that one that does nothing, or only pretends to do something, can be closed.
//!
//! hyper has one timer for reading a request's head, and it runs while a kept-alive connection is idle too; here idle
//! connections and dawdling ones are told apart.

use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a connection may take over what.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its head; also from connecting to the first byte.
    pub header: Duration,
    /// Between requests.
    pub idle: Duration,
    /// While the client does not take what is written to it.
    pub stalled: Duration,
}

impl Timeouts {
    /// The same, none of them longer than `most`.
    pub fn shortened(self, most: Duration) -> Self {
        Timeouts { header: self.header.min(most), idle: self.idle.min(most), stalled: self.stalled.min(most) }
    }
}

/// What a connection is doing.
#[derive(Debug)]
pub struct Activity {
    born: Instant,
    /// Requests that are being answered.
    running: AtomicU32,
    /// Has any request come?
    used: AtomicBool,
    /// Have bytes of another request come?
    partial: AtomicBool,
    multiplexed: AtomicBool,
    /// Milliseconds from birth to the last change.
    since: AtomicU64,
    /// Milliseconds from birth to when writing got stuck, plus one; 0 while it does not.
    stuck: AtomicU64,
    /// Answers that have something to be taken.
    sending: AtomicU32,
    /// Milliseconds from birth to when a piece of an answer was last taken.
    taken: AtomicU64,
}

impl Activity {
    /// A connection that was just accepted.
    pub fn new() -> Arc<Self> {
        Arc::new(Activity {
            born: Instant::now(),
            running: AtomicU32::new(0),
            used: AtomicBool::new(false),
            partial: AtomicBool::new(false),
            multiplexed: AtomicBool::new(false),
            since: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
            sending: AtomicU32::new(0),
            taken: AtomicU64::new(0),
        })
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    /// A request's head is complete; the guard stands for its answer.
    pub fn request(self: &Arc<Self>, multiplexed: bool) -> Running {
        self.running.fetch_add(1, Relaxed);
        self.used.store(true, Relaxed);
        self.partial.store(false, Relaxed);
        self.multiplexed.store(multiplexed, Relaxed);
        Running(self.clone())
    }

    fn received(&self) {
        if self.running.load(Relaxed) > 0 {
            return;
        }
        // Between the requests of HTTP/2 there are pings and their answers: they do not make a connection less idle.
        let first = !self.partial.swap(true, Relaxed);
        if first && !self.multiplexed.load(Relaxed) {
            self.since.store(self.now(), Relaxed);
        }
    }

    /// Has any request come?
    pub fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// Does it carry several requests at a time?
    pub fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Relaxed)
    }

    /// Is a request being answered?
    pub fn is_running(&self) -> bool {
        self.running.load(Relaxed) > 0
    }

    /// What has taken longer than it may.
    pub fn overdue(&self, timeouts: &Timeouts) -> Option<Overdue> {
        let now = self.now();
        let stuck = self.stuck.load(Relaxed);
        if stuck > 0 && now.saturating_sub(stuck - 1) > timeouts.stalled.as_millis() as u64 {
            return Some(Overdue::Stalled);
        }
        let running = self.running.load(Relaxed);
        if running > 0 {
            // In HTTP/2 a client may keep a connection alive, and yet open no window for the answers to its requests.
            let waiting = self.sending.load(Relaxed) == running;
            let late = now.saturating_sub(self.taken.load(Relaxed)) > timeouts.stalled.as_millis() as u64;
            return (waiting && late).then_some(Overdue::Stalled);
        }
        let partial = self.partial.load(Relaxed) && !self.multiplexed.load(Relaxed);
        let (limit, what) = match partial || !self.used.load(Relaxed) {
            true => (timeouts.header, Overdue::Stalled),
            false => (timeouts.idle, Overdue::Idle),
        };
        (now.saturating_sub(self.since.load(Relaxed)) > limit.as_millis() as u64).then_some(what)
    }
}

/// What a connection has had no time for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Its client does not go on with what it began.
    Stalled,
    /// Nothing is asked on it.
    Idle,
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Running(Arc<Activity>);

impl Running {
    /// The request is answered; it runs until `body` is taken.
    pub fn sending<B>(self, body: B) -> Sending<B> {
        self.0.sending.fetch_add(1, Relaxed);
        self.0.taken.store(self.0.now(), Relaxed);
        Sending { body, running: self, waits: true }
    }
}

/// The body of an answer that is being sent.
#[derive(Debug)]
pub struct Sending<B> {
    body: B,
    running: Running,
    /// For the client to take something; while the model has nothing to say, it is not the client that stalls.
    waits: bool,
}

impl<B> Sending<B> {
    fn set_waiting(&mut self, waits: bool) {
        let sending = &self.running.0.sending;
        match (self.waits, waits) {
            (false, true) => sending.fetch_add(1, Relaxed),
            (true, false) => sending.fetch_sub(1, Relaxed),
            _ => 0,
        };
        self.waits = waits;
    }
}

impl<B> Drop for Sending<B> {
    fn drop(&mut self) {
        self.set_waiting(false);
    }
}

impl<B: Body + Unpin> Body for Sending<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        // Asked for a piece, there is room for one.
        self.running.0.taken.store(self.running.0.now(), Relaxed);
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.set_waiting(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Relaxed) == 1 {
            self.0.since.store(self.0.now(), Relaxed);
        }
    }
}

/// A stream that reports what passes through it.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    /// Reports to `activity`.
    pub fn new(stream: S, activity: Arc<Activity>) -> Self {
        Watched { stream, activity }
    }

    fn wrote<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_pending() {
            let now = self.activity.now() + 1;
            let _ = self.activity.stuck.compare_exchange(0, now, Relaxed, Relaxed);
        } else {
            self.activity.stuck.store(0, Relaxed);
        }
        result
    }
}

impl<S: Read + Unpin> Read for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if result.is_ready() {
            self.activity.received();
        }
        result
    }
}

impl<S: Write + Unpin> Write for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(result)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }
}
