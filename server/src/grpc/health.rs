//! `grpc.health.v1`, asked of the data plane at the moment of the question: nothing is kept that could be out of date, and
//! nobody looks while nobody watches.

use crate::dataplane::Dataplane;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::codegen::tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// The services whose health is told: all of them together, and inference.
const SERVICES: [&str; 2] = ["", "inference.GRPCInferenceService"];
/// Between two looks of one who watches. Anybody may, and as many as there is room for: each look must be seldom.
const LOOK: Duration = Duration::from_millis(250);

/// Answers for a server.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Arc<Dataplane>);

/// The status of a service, now.
fn status(plane: &Dataplane) -> ServingStatus {
    if plane.ready() && !plane.is_closing() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn message(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = Watch;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.get_ref().service.as_str();
        if !SERVICES.contains(&service) {
            return Err(Status::not_found(format!("no service '{}' is known", service.escape_debug())));
        }
        Ok(Response::new(message(status(&self.0))))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Watch>, Status> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let known = SERVICES.contains(&request.get_ref().service.as_str());
        Ok(Response::new(Watch { plane: self.0.clone(), known, told: None, looks }))
    }
}

/// Each change of a status, from what it is at first. Ends when connections close: it would hold its own open for ever.
#[derive(Debug)]
pub(super) struct Watch {
    plane: Arc<Dataplane>,
    /// One that is not, the protocol says, is watched as well.
    known: bool,
    told: Option<ServingStatus>,
    looks: Interval,
}

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let closing = self.plane.is_closing();
            let now = if self.known { status(&self.plane) } else { ServingStatus::ServiceUnknown };
            if self.told.replace(now) != Some(now) {
                return Poll::Ready(Some(Ok(message(now))));
            }
            if closing {
                return Poll::Ready(None);
            }
            ready!(self.looks.poll_tick(cx));
        }
    }
}
