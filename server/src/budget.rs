//! The process's budget of bytes that requests hold: what arrives of them, their tensors, and their answers until a
//! client has taken them. REST and gRPC draw on the same one. Not a limit of a single request; those are the skins' and
//! `backends::Limits`.

use crate::error::Error;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of requests and answers that the process holds at a time.
#[derive(Clone, Debug)]
pub struct Budget {
    pages: Arc<Semaphore>,
    most: usize,
}

/// The budget is counted in pages, so that small requests cost one operation.
pub const PAGE: usize = 4096;

impl Budget {
    /// At most `bytes` at a time.
    pub fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes / PAGE as u64).unwrap_or(usize::MAX);
        // As many as can be taken at once.
        let most = pages.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Budget { pages: Arc::new(Semaphore::new(most)), most }
    }

    /// The most that one answer takes ahead for what may never come; what it comes to have beyond that it takes then.
    pub fn ahead(&self) -> usize {
        self.most.saturating_mul(PAGE) / 64
    }

    fn take(&self, pages: usize) -> Result<OwnedSemaphorePermit, Error> {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.pages.clone().try_acquire_many_owned(pages).map_err(|_| {
            Error::Overloaded(
                "the server holds as many bytes of requests and answers as it may (--inflight-bytes); try again later"
                    .into(),
            )
        })
    }
}

/// A share of the budget, which goes with a request from its first bytes to the last of its answer.
#[derive(Debug, Default)]
pub struct Room {
    pages: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Makes it room for `bytes` in all. What is larger than the whole budget takes all of it: alone it is let through.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub fn grow(&mut self, budget: &Budget, bytes: usize) -> Result<(), Error> {
        let pages = bytes.div_ceil(PAGE).min(budget.most);
        if pages > self.pages {
            let more = budget.take(pages - self.pages)?;
            self.pages = pages;
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                None => self.permit = Some(more),
            }
        }
        Ok(())
    }

    /// Makes it room for `bytes`, and no more. As with [`Room::grow`], what is larger than all takes all: nobody can know how
    /// large an answer will be before asking.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub fn hold(&mut self, budget: &Budget, bytes: usize) -> Result<(), Error> {
        let pages = bytes.div_ceil(PAGE).min(budget.most);
        if pages > self.pages {
            return self.grow(budget, pages * PAGE);
        }
        if let Some(permit) = &mut self.permit {
            drop(permit.split(self.pages - pages));
        }
        self.pages = pages;
        Ok(())
    }

    /// Bytes that have this share for as long as any of them is held.
    pub fn tie(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Tied { bytes, _room: self })
    }

    /// For so many bytes it is room, in whole pages.
    pub fn bytes(&self) -> usize {
        self.pages.saturating_mul(PAGE)
    }

    /// Is it room for nothing?
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }
}

/// The share of an answer that is made piece by piece: what it will take is counted before it is asked for, as far as that
/// is known, and what it takes beyond that as it comes.
#[derive(Debug)]
pub struct Reserved {
    budget: Budget,
    room: Room,
    /// Counted so far.
    made: usize,
}

impl Reserved {
    /// Room for what is `certain`, and for what may come besides. It is a page at least: an answer that was let in is not
    /// refused in the end for its few bytes.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub fn new(budget: &Budget, certain: usize, besides: usize) -> Result<Self, Error> {
        let mut room = Room::default();
        room.grow(budget, certain.saturating_add(besides).max(1))?;
        Ok(Reserved { budget: budget.clone(), room, made: certain })
    }

    /// So many bytes more have come.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub fn add(&mut self, bytes: usize) -> Result<(), Error> {
        self.made = self.made.saturating_add(bytes);
        if self.made > self.room.bytes() {
            self.room.grow(&self.budget, self.made)?;
        }
        Ok(())
    }

    /// So many bytes have come, or are certain to.
    pub fn bytes(&self) -> usize {
        self.made
    }

    /// The answer once it is whole: it has its share until it was taken. What its vector has allocated beyond it was never
    /// written to, and is not counted.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub fn tie(mut self, answer: impl AsRef<[u8]> + Send + 'static) -> Result<Bytes, Error> {
        self.room.hold(&self.budget, answer.as_ref().len())?;
        Ok(self.room.tie(answer))
    }
}

struct Tied<T> {
    bytes: T,
    _room: Room,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Tied<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Who has the shares of an answer.
pub trait Holder: Unpin {
    /// Ties the next piece of the answer to its share.
    fn tie(&self, data: Bytes) -> Bytes;
}

/// Of an answer that has its share already.
impl Holder for () {
    fn tie(&self, data: Bytes) -> Bytes {
        data
    }
}

/// Of an answer that is sent while it is made: its share is that of the body.
impl Holder for Reserved {
    fn tie(&self, data: Bytes) -> Bytes {
        data
    }
}

/// The body of an answer of which each piece has its share. Large ones are cut: whoever sends them has what it was given in
/// buffers of its own, and takes it out of them when the client has room.
#[derive(Debug)]
pub struct Sent<B, H> {
    body: B,
    rest: Bytes,
    holder: H,
}

/// Bytes that are given away at a time.
const PIECE: usize = 128 << 10;

impl<B, H> Sent<B, H> {
    /// `holder` is dropped when the body is, and shares when the last of what they are tied to is.
    pub fn new(body: B, holder: H) -> Self {
        Sent { body, rest: Bytes::new(), holder }
    }
}

impl<B: Body<Data = Bytes> + Unpin, H: Holder> Body for Sent<B, H> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => self.rest = self.holder.tie(data),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let length = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (of_body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full};

    #[test]
    fn a_share_follows_what_is_held() {
        let budget = Budget::new(4 * PAGE as u64);
        let (mut one, mut other) = (Room::default(), Room::default());
        one.grow(&budget, 3 * PAGE).unwrap();
        other.hold(&budget, PAGE).unwrap();
        assert!(matches!(other.hold(&budget, PAGE + 1), Err(Error::Overloaded(_))));
        one.hold(&budget, PAGE + 1).unwrap();
        other.hold(&budget, 2 * PAGE).unwrap();
        assert_eq!(budget.pages.available_permits(), 0);
        drop(other);
        // Larger than all: it takes all, and is refused where anybody else holds something.
        one.hold(&budget, 100 * PAGE).unwrap();
        assert_eq!(budget.pages.available_permits(), 0);
        assert!(Room::default().hold(&budget, 1).is_err());
        one.hold(&budget, 1).unwrap();
        assert!(Room::default().hold(&budget, 100 * PAGE).is_err());
        drop(one);
        assert_eq!(budget.pages.available_permits(), 4);
    }

    #[test]
    fn what_an_answer_takes_is_counted_ahead_and_as_it_comes() {
        let budget = Budget::new(8 * PAGE as u64);
        let left = || budget.pages.available_permits();
        let mut one = Reserved::new(&budget, PAGE, 2 * PAGE).unwrap();
        assert_eq!(left(), 5);
        one.add(2 * PAGE).unwrap();
        assert_eq!(left(), 5, "it was counted ahead");
        one.add(1).unwrap();
        assert_eq!((left(), one.bytes()), (4, 3 * PAGE + 1));
        assert!(matches!(Reserved::new(&budget, 2 * PAGE, 3 * PAGE), Err(Error::Overloaded(_))));
        let mut other = Reserved::new(&budget, 0, 0).unwrap();
        assert_eq!(left(), 3, "a page at least");
        assert!(matches!(other.add(4 * PAGE + 1), Err(Error::Overloaded(_))));
        drop(other);
        let bytes = one.tie(vec![0u8; 100]).unwrap();
        assert_eq!(left(), 7);
        drop(bytes);
        // Larger than all: alone it is let in, and goes on.
        let mut all = Reserved::new(&budget, usize::MAX, usize::MAX).unwrap();
        all.add(100 * PAGE).unwrap();
        assert!(Reserved::new(&budget, 0, 0).is_err());
        drop(all);
        assert_eq!(left(), 8);
    }

    #[tokio::test]
    async fn an_answer_has_its_share_until_its_last_piece_is_dropped() {
        let budget = Budget::new(1 << 20);
        let mut room = Room::default();
        let whole: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        room.hold(&budget, whole.len()).unwrap();
        let all = budget.most;
        let mut body = Sent::new(Full::new(room.tie(whole.clone())), ());
        let (mut got, mut last) = (Vec::new(), Bytes::new());
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), Some((whole.len() - got.len()) as u64));
            last = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(last.len() <= PIECE);
            got.extend_from_slice(&last);
        }
        assert_eq!(got, whole);
        drop(body);
        // Its allocation is that of the whole answer.
        assert!(budget.pages.available_permits() < all);
        drop(last);
        assert_eq!(budget.pages.available_permits(), all);
    }
}
