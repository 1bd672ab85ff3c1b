//! An exchange of tensors over REST: the bytes of a body become a request, its answer becomes bytes. Each of them has its share
//! of the budget for as long as it is held, and of large ones as many at a time are read or written as there are processors.

use super::Rest;
use super::body::Held;
use super::reply::{self, Answer};
use crate::codec::generate;
use crate::dataplane::{Infer, Inferred, Servable};
use crate::error::Error;
use crate::threads::{heavy, turn};
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a protocol makes of the two.
pub(super) trait Skin {
    /// How the answer to a request is to be written.
    type Form;

    /// Bytes at the front of a body of so many that are read; those behind them are kept as they came.
    fn read_bytes(&self, body: usize) -> usize {
        body
    }

    /// Reads a body.
    fn decode(&self, body: &Bytes, servable: &Servable) -> Result<(Infer, Self::Form), Error>;

    /// Bytes that the answer's tensors may take once more when it is written.
    fn bytes_to_write(&self, inferred: &Inferred, form: &Self::Form) -> usize;

    /// Writes an answer.
    fn encode(&self, inferred: &Inferred, form: Self::Form) -> Result<Written, Error>;
}

/// A written answer.
pub(super) struct Written {
    pub(super) body: Vec<u8>,
    /// Its media type.
    pub(super) kind: &'static str,
    /// Further headers.
    pub(super) headers: HeaderMap,
}

/// Answers the request in `held`, whose headers say how the answer may be packed.
pub(super) async fn exchange<S: Skin>(
    (rest, headers): (&Rest, &HeaderMap),
    servable: Arc<Servable>,
    held: Held,
    deadline: Instant,
    skin: S,
) -> Result<Response, Error> {
    let size = held.bytes.len();
    let read = skin.read_bytes(size);
    let reading = turn(read).await;
    let start = Instant::now();
    let (mut request, form) = heavy(size, || skin.decode(&held.bytes, &servable))?;
    // Tensors that are parts of the body keep all of it.
    let kept = if read < size { read } else { 0 };
    let mut room = held.decoded(&rest.budget, request.bytes() + kept)?;
    drop(reading);
    request.deadline = Some(deadline);
    let decoding = start.elapsed();
    let inferred = generate::infer(&rest.plane, servable, request).await?;
    let size = skin.bytes_to_write(&inferred, &form);
    room.hold(&rest.budget, inferred.bytes() + size)?;
    let _writing = turn(size).await;
    let encoding = Instant::now();
    let response = heavy(inferred.bytes(), || {
        let Written { body, kind, headers: further } = skin.encode(&inferred, form)?;
        let mut response = reply::answer(headers, Answer { body, kind, room, budget: &rest.budget })?;
        response.headers_mut().extend(further);
        Ok(response)
    });
    inferred.servable.metrics.framed(decoding, encoding.elapsed());
    response
}

/// When the answer is of no use any more: from the head of the request on, whatever its body takes.
pub(super) fn deadline(rest: &Rest, headers: &HeaderMap) -> Result<Instant, Error> {
    deadline_within(rest.plane.longest(), headers)
}

/// The same, where requests may take so long.
pub(super) fn deadline_within(longest: Duration, headers: &HeaderMap) -> Result<Instant, Error> {
    let Some(value) = headers.get("x-request-timeout-ms") else { return Ok(Instant::now() + longest) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(|ms| Instant::now() + longest.min(Duration::from_millis(ms))).ok_or_else(|| {
        Error::Invalid(format!("header x-request-timeout-ms is {value:?}, which is no number of milliseconds"))
    })
}
