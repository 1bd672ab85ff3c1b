//! Spans on their way to a collector: a bounded queue, and one thread that empties it in batches. Requests only ever
//! try the queue; a collector that is slow, down or silent costs them nothing but their spans, which are counted.

use super::sink::{Refusal, Sink};
use crate::{metrics, threads};
use bytes::Bytes;
use opentelemetry::{Context, Key};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
use prost::Message;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// Spans that may wait: about 4 MB of them.
const QUEUE: usize = 4096;
/// Spans sent at a time.
const BATCH: usize = 512;
/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take over a batch.
const ANSWER: Duration = Duration::from_secs(5);
/// Before each try at a batch. After the last it is given up.
const TRIES: [Duration; 4] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How long leaving may take, over all.
const FAREWELL: Duration = Duration::from_millis(2500);

/// The end of the queue that spans enter.
#[derive(Debug)]
struct Entrance(mpsc::Sender<SpanData>);

impl SpanProcessor for Entrance {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.0.try_send(span).is_err() {
            metrics::spans_dropped(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// Leaving is [`Exporter::finish`].
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The thread that sends.
#[derive(Debug)]
pub(super) struct Exporter {
    leaving: watch::Sender<bool>,
    /// Closed when the thread is done.
    done: Receiver<()>,
}

impl Exporter {
    /// Starts sending to `sink`; what the provider's tracers record goes there.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(sink: Sink) -> Result<(SdkTracerProvider, Self), String> {
        // Its own runtime: what the collector does to it, requests do not notice, and it outlives theirs.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("trace exporter: {error}"))?;
        let (entrance, spans) = mpsc::channel(QUEUE);
        let (leaving, left) = watch::channel(false);
        let (finished, done) = sync_channel(1);
        let resource = resource();
        let batches = Batches { sink, resource: (&resource).into(), failing: false };
        threads::spawn("traces", move || {
            runtime.block_on(batches.run(spans, left));
            drop(finished);
        })?;
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_span_processor(Entrance(entrance)).build();
        Ok((provider, Exporter { leaving, done }))
    }

    /// Sends what waits, as far as that is possible in three seconds.
    pub(super) fn finish(&self) {
        let _ = self.leaving.send(true);
        let _ = self.done.recv_timeout(FAREWELL + Duration::from_millis(500));
    }
}

/// Who sends. The SDK reads `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`; the program's name is for want of both.
fn resource() -> Resource {
    let told = Resource::builder().build();
    let name = told.get(&Key::from_static_str("service.name"));
    if name.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return told;
    }
    Resource::builder().with_service_name(env!("CARGO_PKG_NAME")).build()
}

/// A batch as it is sent, and the number of spans in it.
type Encoded = (Bytes, usize);

struct Batches {
    sink: Sink,
    resource: ResourceAttributesWithSchema,
    /// Did the last batch fail? Only a change is worth a line in the log.
    failing: bool,
}

impl Batches {
    async fn run(mut self, mut spans: mpsc::Receiver<SpanData>, mut leaving: watch::Receiver<bool>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut unsent = None;
        loop {
            tokio::select! {
                () = gather(&mut spans, &mut batch) => {}
                _ = leaving.wait_for(|leaving| *leaving) => break,
            }
            let encoded = self.encode(&mut batch);
            tokio::select! {
                () = self.deliver(&encoded) => {}
                _ = leaving.wait_for(|leaving| *leaving) => { unsent = Some(encoded); break }
            }
        }
        spans.close();
        while let Ok(span) = spans.try_recv() {
            batch.push(span);
        }
        let rest = if batch.is_empty() { None } else { Some(self.encode(&mut batch)) };
        self.farewell(unsent.into_iter().chain(rest).collect()).await;
    }

    fn encode(&self, batch: &mut Vec<SpanData>) -> Encoded {
        let count = batch.len();
        let spans = std::mem::replace(batch, Vec::with_capacity(BATCH));
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        (ExportTraceServiceRequest { resource_spans }.encode_to_vec().into(), count)
    }

    /// Sends a batch, several times if that may help.
    async fn deliver(&mut self, (message, count): &Encoded) {
        let mut reason = String::new();
        for delay in TRIES {
            sleep(delay).await;
            match self.send(message).await {
                Ok(()) => return self.report(None, *count),
                Err(Refusal::Final(why)) => return self.report(Some(why), *count),
                Err(Refusal::Passing(why)) => reason = why,
            }
        }
        self.report(Some(reason), *count);
    }

    /// One try at each batch that is left.
    async fn farewell(&mut self, batches: Vec<Encoded>) {
        let mut left: usize = batches.iter().map(|(_, count)| count).sum();
        let all = async {
            for (message, count) in &batches {
                let failed = self.send(message).await.err();
                self.report(failed.map(|refusal| refusal.to_string()), *count);
                left -= count;
            }
        };
        if timeout(FAREWELL, all).await.is_err() {
            metrics::spans_dropped(left as u64);
        }
    }

    async fn send(&mut self, message: &Bytes) -> Result<(), Refusal> {
        match timeout(ANSWER, self.sink.send(message.clone())).await {
            Ok(result) => result,
            Err(_) => {
                self.sink.disconnect();
                Err(Refusal::Passing("no answer in time".into()))
            }
        }
    }

    fn report(&mut self, failed: Option<String>, spans: usize) {
        match (&failed, self.failing) {
            (Some(reason), false) => tracing::warn!(%reason, "traces cannot be sent; they are dropped"),
            (None, true) => tracing::info!("traces are sent again"),
            _ => {}
        }
        self.failing = failed.is_some();
        if self.failing {
            metrics::spans_dropped(spans as u64);
        }
    }
}

/// Waits for a span, and then a moment for more.
async fn gather(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if spans.recv_many(batch, BATCH).await == 0 {
        // The subscriber is gone, and only leaving is left.
        return std::future::pending().await;
    }
    let more = async { while batch.len() < BATCH && spans.recv_many(batch, BATCH - batch.len()).await > 0 {} };
    let _ = timeout(GATHER, more).await;
}
