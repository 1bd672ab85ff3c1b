//! Messages of gRPC as they come and go: counted against the process's budget of bytes until they were taken, and ended
//! when they take too long to arrive, as REST bodies are. A stream gives its bytes back after each message, and may be
//! silent between two of them; when the server leaves it ends there, as if its client had nothing more to say.

use super::{status, timeout};
use crate::budget::{Budget, Holder, Room, Sent};
use crate::dataplane::Dataplane;
use crate::error::Error;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::Frame;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;
use tonic::Status;

/// What holds for the messages of all calls.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Bytes of all that are being answered.
    pub(super) budget: Budget,
    /// Between two pieces of a message.
    pub(super) idle: Duration,
    /// For a whole message.
    pub(super) whole: Duration,
    /// Who knows when the server leaves.
    pub(super) plane: Arc<Dataplane>,
}

/// What a call holds of the budget, and when it came.
#[derive(Clone, Debug)]
pub(super) struct Share {
    since: Instant,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    budget: Budget,
    room: Room,
    bytes: usize,
    /// Of the answer that is sent next.
    sending: Room,
}

impl Share {
    fn new(budget: Budget) -> Self {
        let held = Held { budget, room: Room::default(), bytes: 0, sending: Room::default() };
        Share { since: Instant::now(), held: Arc::new(Mutex::new(held)) }
    }

    /// The share of a message that has arrived, which is dealt with while others arrive.
    pub(super) fn apart(&self) -> Self {
        let held = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let (budget, room) = (held.budget.clone(), std::mem::take(&mut held.room));
        let apart = Held { budget, room, bytes: std::mem::take(&mut held.bytes), sending: Room::default() };
        Share { since: self.since, held: Arc::new(Mutex::new(apart)) }
    }

    /// When the head of the call was there.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    fn add(&self, bytes: usize) -> Result<(), Error> {
        let held = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.bytes += bytes;
        held.room.grow(&held.budget, held.bytes)
    }

    /// A message turned out to be so large when it was unpacked.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub(super) fn unpacked(&self, bytes: usize) -> Result<(), Error> {
        let held = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.bytes = held.bytes.max(bytes);
        held.room.grow(&held.budget, held.bytes)
    }

    /// What arrived has become tensors, or an answer, of so many bytes.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub(super) fn holds(&self, bytes: usize) -> Result<(), Error> {
        let held = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.room.hold(&held.budget, bytes)
    }

    /// What has arrived was dealt with; what became of it has its share from now on.
    pub(super) fn take(&self) -> Room {
        let held = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.bytes = 0;
        std::mem::take(&mut held.room)
    }

    /// An answer goes out.
    pub(super) fn sends(&self, room: Room) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).sending = room;
    }
}

impl Holder for Share {
    fn tie(&self, data: Bytes) -> Bytes {
        let held = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = std::mem::take(&mut held.sending);
        if room.is_empty() {
            return data;
        }
        // The tensors that it was written from are gone. Less is always to be had.
        let _ = room.hold(&held.budget, data.len().min(room.bytes()));
        room.tie(data)
    }
}

/// Calls whose clients may be silent between messages.
const STREAMS: [&str; 2] = ["/ModelStreamInfer", "/ServerReflectionInfo"];

/// Counts and times the body of a call, and counts its answer until that was taken; handlers find its [`Share`] among its
/// extensions.
pub(super) async fn count(State(rules): State<Rules>, request: Request, next: Next) -> Response {
    let share = Share::new(rules.budget);
    let (mut parts, body) = request.into_parts();
    let stream = STREAMS.iter().any(|method| parts.uri.path().ends_with(method));
    let stated = parts.headers.get("grpc-timeout").and_then(timeout).filter(|_| !stream);
    let arrival = Arrival {
        idle: rules.idle,
        whole: stated.map_or(rules.whole, |stated| stated.min(rules.whole)),
        unary: !stream,
        place: Place::default(),
        since: share.since,
        last: share.since,
        timer: None,
    };
    let leaving = stream.then(|| -> Leaving { Box::pin(async move { rules.plane.closed().await }) });
    parts.extensions.insert(share.clone());
    let body = Body::new(Counted { body, share: share.clone(), arrival, leaving, end: None, over: false });
    let response = next.run(Request::from_parts(parts, body)).await;
    response.map(|body| Body::new(Sent::new(body, share)))
}

/// Where a body is in the frames of gRPC: five bytes that end in a length, and so many bytes of a message.
#[derive(Debug, Default)]
struct Place {
    prefix: [u8; 5],
    have: usize,
    left: usize,
}

impl Place {
    /// Between two messages?
    fn is_between(&self) -> bool {
        self.have == 0
    }

    fn advance(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.have < self.prefix.len() {
                let count = data.len().min(self.prefix.len() - self.have);
                self.prefix[self.have..self.have + count].copy_from_slice(&data[..count]);
                self.have += count;
                data = &data[count..];
                let [_, a, b, c, d] = self.prefix;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            } else {
                let count = data.len().min(self.left);
                self.left -= count;
                data = &data[count..];
            }
            if self.have == self.prefix.len() && self.left == 0 {
                self.have = 0;
            }
        }
    }
}

/// How long what arrives may take.
struct Arrival {
    idle: Duration,
    whole: Duration,
    /// Is the body one message, and over with it?
    unary: bool,
    place: Place,
    /// When the message began.
    since: Instant,
    /// When its last piece came.
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Arrival {
    fn received(&mut self, data: &[u8]) {
        let fresh = self.place.is_between() && !self.unary;
        self.place.advance(data);
        self.last = Instant::now();
        if fresh {
            self.since = self.last;
        }
        self.timer = None;
    }

    /// Has it taken too long? Asked while there is nothing to read.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if !self.unary && self.place.is_between() {
            return Poll::Pending;
        }
        let (idle, whole) = (self.last + self.idle, self.since + self.whole);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(idle.min(whole).into())));
        std::task::ready!(timer.as_mut().poll(cx));
        Poll::Ready(if whole <= idle {
            status(&Error::Deadline)
        } else {
            status(&Error::Invalid("the message stopped arriving".into()))
        })
    }
}

/// Ready when the server leaves.
type Leaving = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Counted {
    body: Body,
    share: Share,
    arrival: Arrival,
    /// Of streams: a call of one message is answered, however late it is.
    leaving: Option<Leaving>,
    /// Of a call of one message, the piece that ends it. It is kept until nothing follows: what reads messages unpacks and
    /// decodes one as soon as it has it, and would hold that, which nobody has counted yet, until the call's own end.
    end: Option<Bytes>,
    /// Nothing more is taken.
    over: bool,
}

impl Counted {
    /// Does the server leave, and has all that arrived been read, to the end of a message?
    fn poll_leaving(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.leaving {
            Some(leaving) if self.arrival.place.is_between() => leaving.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if self.over {
                return Poll::Ready(self.end.take().map(|end| Ok(Frame::data(end))));
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending if self.poll_leaving(cx).is_ready() => None,
                Poll::Pending => return self.arrival.poll_late(cx).map(|late| Some(Err(late.into()))),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
                Poll::Ready(None) => None,
            };
            // Clients of gRPC send no trailers.
            let Some(data) = frame else {
                self.over = true;
                continue;
            };
            // As clients end a call of which they did not know that nothing follows.
            if data.is_empty() && self.arrival.unary {
                self.over = self.body.is_end_stream();
                continue;
            }
            self.arrival.received(&data);
            if let Err(error) = self.share.add(data.len()) {
                return Poll::Ready(Some(Err(status(&error).into())));
            }
            if self.end.is_some() {
                let error = Error::Invalid("a call of one message has more than one".into());
                return Poll::Ready(Some(Err(status(&error).into())));
            }
            if !self.arrival.unary || !self.arrival.place.is_between() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            self.end = Some(data);
            self.over = self.body.is_end_stream();
        }
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() && (self.over || self.body.is_end_stream())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn counted(body: Body, share: Share) -> Counted {
        let long = Duration::from_secs(600);
        let (since, place) = (share.since, Place::default());
        let arrival = Arrival { idle: long, whole: long, unary: true, place, since, last: since, timer: None };
        Counted { body, share, arrival, leaving: None, end: None, over: false }
    }

    #[tokio::test]
    async fn a_body_beyond_the_budget_is_refused_and_gives_back_what_it_held() {
        let budget = Budget::new(3 * 4096);
        let share = Share::new(budget.clone());
        let mut small = counted(Body::from(vec![0; 8000]), share.clone());
        assert!(small.frame().await.is_some_and(|frame| frame.is_ok()));
        let mut large = counted(Body::from(vec![0; 8000]), Share::new(budget.clone()));
        let refused = large.frame().await.and_then(Result::err).map(|error| Status::from_error(error).code());
        assert_eq!(refused, Some(tonic::Code::ResourceExhausted));
        drop(share.take());
        let mut again = counted(Body::from(vec![0; 8000]), Share::new(budget));
        assert!(again.frame().await.is_some_and(|frame| frame.is_ok()));
    }

    #[test]
    fn messages_that_are_dealt_with_at_once_have_their_shares() {
        let budget = Budget::new(4 * 4096);
        let share = Share::new(budget.clone());
        let [first, second] = [1, 2].map(|pages| {
            share.add(pages * 4096).unwrap();
            share.apart()
        });
        assert!(Share::new(budget.clone()).add(2 * 4096).is_err(), "three of four pages are held");
        first.holds(0).unwrap();
        assert!(Share::new(budget.clone()).add(2 * 4096).is_ok());
        assert!(Share::new(budget.clone()).add(3 * 4096).is_err(), "what the other holds is its own");
        drop(second.take());
        assert!(Share::new(budget).add(4 * 4096).is_ok());
    }

    /// Whoever reads it would unpack and decode it at once, and hold that for as long as the client likes.
    #[tokio::test]
    async fn the_end_of_a_message_is_kept_until_nothing_follows() {
        let message = Bytes::from_static(&[0, 0, 0, 0, 3, 1, 2, 3]);
        for cut in 1..=message.len() {
            for ends in [true, false] {
                let pieces =
                    [message.slice(..cut), message.slice(cut..)].map(|piece| Ok::<_, Status>(Frame::data(piece)));
                let pieces = tokio_stream::iter(pieces);
                let body = match ends {
                    true => Body::new(http_body_util::StreamBody::new(pieces)),
                    false => {
                        let pieces = tokio_stream::StreamExt::chain(pieces, tokio_stream::pending());
                        Body::new(http_body_util::StreamBody::new(pieces))
                    }
                };
                let mut body = counted(body, Share::new(Budget::new(1 << 20)));
                let mut got = Vec::new();
                let reading = async {
                    while let Some(frame) = body.frame().await {
                        got.extend(frame.ok().and_then(|frame| frame.into_data().ok()).unwrap_or_default());
                    }
                };
                let over = tokio::time::timeout(Duration::from_millis(20), reading).await.is_ok();
                assert_eq!((over, got.len()), if ends { (true, 8) } else { (false, cut % 8) }, "{cut}");
            }
        }
    }

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let bytes = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 9]].concat();
        for cut in 1..bytes.len() {
            let mut place = Place::default();
            for piece in bytes.chunks(cut) {
                place.advance(piece);
            }
            assert!(place.is_between(), "in pieces of {cut}");
            place.advance(&bytes[..6]);
            assert!(!place.is_between());
        }
    }

    #[tokio::test]
    async fn a_stream_ends_between_messages_when_the_server_leaves() {
        let message = Bytes::from_static(&[0, 0, 0, 0, 1, 9]);
        for (bytes, ends) in [(message.clone(), true), (message.slice(..5), false), (Bytes::new(), true)] {
            let pieces = tokio_stream::iter([Ok::<_, Status>(Frame::data(bytes.clone()))]);
            let pieces = tokio_stream::StreamExt::chain(pieces, tokio_stream::pending());
            let body = Body::new(http_body_util::StreamBody::new(pieces));
            let mut stream = counted(body, Share::new(Budget::new(1 << 20)));
            stream.arrival.unary = false;
            stream.leaving = Some(Box::pin(std::future::ready(())));
            let first = stream.frame().await.and_then(Result::ok).and_then(|frame| frame.into_data().ok());
            assert_eq!(first, Some(bytes), "what has arrived is read");
            let next = tokio::time::timeout(Duration::from_millis(50), stream.frame()).await;
            assert_eq!(next.is_ok_and(|next| next.is_none()), ends);
        }
    }

    #[tokio::test]
    async fn a_message_that_stops_or_never_ends_is_ended() {
        // Pieces that come now and then, and then no more.
        let body = || {
            let pieces = tokio_stream::iter([Ok::<_, Status>(Frame::data(Bytes::from_static(&[0, 0, 255, 255, 255])))]);
            let pieces = tokio_stream::StreamExt::chain(pieces, tokio_stream::pending());
            counted(Body::new(http_body_util::StreamBody::new(pieces)), Share::new(Budget::new(1 << 20)))
        };
        let soon = Duration::from_millis(20);
        for (idle, code) in [(true, tonic::Code::InvalidArgument), (false, tonic::Code::DeadlineExceeded)] {
            let mut body = body();
            *(if idle { &mut body.arrival.idle } else { &mut body.arrival.whole }) = soon;
            assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
            let end = body.frame().await.and_then(Result::err).map(|error| Status::from_error(error).code());
            assert_eq!(end, Some(code));
        }
    }
}
