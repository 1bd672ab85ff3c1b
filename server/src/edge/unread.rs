//! Bodies that were answered before they were read, as where there is no such model. Over HTTP/1.1 the rest of one stands
//! between its answer and the next request: a small one is read and dropped, and of a connection that will not outlive its
//! answer, the answer says so. Clients that send head and body apart would find it closed at any time otherwise.

use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// Bytes that are read for nothing, and for how long.
const SMALL: u64 = 64 << 10;
const SOON: Duration = Duration::from_millis(200);

/// A body that comes back where it was not read to its end.
#[derive(Debug)]
pub(super) struct Lent {
    body: Option<Incoming>,
    back: Back,
}

/// Where it comes back to.
#[derive(Clone, Debug, Default)]
pub(super) struct Back(Arc<Mutex<Option<Incoming>>>);

impl Back {
    /// Lends `body`.
    pub(super) fn lend(&self, body: Incoming) -> Lent {
        Lent { body: Some(body), back: self.clone() }
    }

    fn take(&self) -> Option<Incoming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Reads what came back, if that is little and comes soon. Does the connection wait for nothing more of it? `asks`: the
    /// client sends it only when it is told to.
    pub(super) async fn settle(&self, asks: bool) -> bool {
        let Some(mut body) = self.take() else { return true };
        if asks || body.size_hint().lower() > SMALL {
            return false;
        }
        let read = async {
            let mut count = 0;
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                let Ok(frame) = frame else { return false };
                count += frame.data_ref().map_or(0, |data| data.len() as u64);
                if count > SMALL {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(SOON, read).await.unwrap_or(false)
    }
}

impl Body for Lent {
    type Data = <Incoming as Body>::Data;
    type Error = <Incoming as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !body.is_end_stream());
        *self.back.0.lock().unwrap_or_else(PoisonError::into_inner) = unread;
    }
}
