//! Messages of gRPC counted against the process's budget of request bytes, as REST bodies are. Bytes are counted as
//! they arrive, and given back when the call is answered; a stream gives them back after each of its messages.

use super::status;
use crate::budget::{Budget, Room};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::Frame;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tonic::Status;

/// What a call holds of the budget.
#[derive(Clone, Debug)]
pub(super) struct Share(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    budget: Budget,
    room: Room,
    bytes: usize,
}

impl Share {
    fn new(budget: Budget) -> Self {
        Share(Arc::new(Mutex::new(Held { budget, room: Room::default(), bytes: 0 })))
    }

    fn add(&self, bytes: usize) -> Result<(), Status> {
        let held = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.bytes += bytes;
        held.room.grow(&held.budget, held.bytes).map_err(|error| status(&error))
    }

    /// What has arrived was dealt with.
    pub(super) fn clear(&self) {
        let held = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.room.clear();
        held.bytes = 0;
    }
}

/// Counts the body of a call until its answer is there; streams find their [`Share`] among the call's extensions.
pub(super) async fn count(State(budget): State<Budget>, request: Request, next: Next) -> Response {
    let share = Share::new(budget);
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(share.clone());
    let body = Body::new(Counted { body, share: share.clone() });
    let response = next.run(Request::from_parts(parts, body)).await;
    drop(share);
    response
}

struct Counted {
    body: Body,
    share: Share,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        if let Some(data) = frame.data_ref()
            && let Err(status) = self.share.add(data.len())
        {
            return Poll::Ready(Some(Err(status.into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_body_beyond_the_budget_is_refused_and_gives_back_what_it_held() {
        let budget = Budget::new(3 * 4096);
        let share = Share::new(budget.clone());
        let mut small = Counted { body: Body::from(vec![0; 8000]), share: share.clone() };
        assert!(small.frame().await.is_some_and(|frame| frame.is_ok()));
        let mut large = Counted { body: Body::from(vec![0; 8000]), share: Share::new(budget.clone()) };
        let refused = large.frame().await.and_then(Result::err).map(|error| Status::from_error(error).code());
        assert_eq!(refused, Some(tonic::Code::ResourceExhausted));
        share.clear();
        let mut again = Counted { body: Body::from(vec![0; 8000]), share: Share::new(budget) };
        assert!(again.frame().await.is_some_and(|frame| frame.is_ok()));
    }
}
