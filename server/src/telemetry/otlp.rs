//! Spans on their way to a collector: a bounded queue, and one thread that empties it in batches. Requests only ever
//! try the queue; a collector that is slow, down or silent costs them nothing but their spans, which are counted.

use super::sink::{Refusal, Sink};
use crate::args::Environment;
use crate::{metrics, threads};
use bytes::Bytes;
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor};
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

/// Variables of OpenTelemetry's own.
const DISABLED: &str = "OTEL_SDK_DISABLED";
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const RATIO: &str = "OTEL_TRACES_SAMPLER_ARG";
const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
/// The samplers that are known.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

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
    /// Starts sending to `sink`; what the provider's tracers record goes there. What of it, and as whose, `variables`
    /// say; what in them means nothing is told in `notes`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(
        sink: Sink,
        variables: &Environment,
        notes: &mut Vec<String>,
    ) -> Result<(SdkTracerProvider, Self), String> {
        // Its own runtime: what the collector does to it, requests do not notice, and it outlives theirs.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("trace exporter: {error}"))?;
        let (entrance, spans) = mpsc::channel(QUEUE);
        let (leaving, left) = watch::channel(false);
        let (finished, done) = sync_channel(1);
        let resource = resource(variables, notes);
        let batches = Batches { sink, resource: (&resource).into(), failing: false };
        threads::spawn("traces", move || {
            runtime.block_on(batches.run(spans, left));
            drop(finished);
        })?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(sampler(variables, notes))
            .with_span_processor(Entrance(entrance))
            .build();
        Ok((provider, Exporter { leaving, done }))
    }

    /// Sends what waits, as far as that is possible in three seconds.
    pub(super) fn finish(&self) {
        let _ = self.leaving.send(true);
        let _ = self.done.recv_timeout(FAREWELL + Duration::from_millis(500));
    }
}

/// The variable that says that nothing is to be traced, and what it holds; `None` where none does.
pub(super) fn switched_off(variables: &Environment, notes: &mut Vec<String>) -> Option<&'static str> {
    let said = |name: &str| variables.get(name).map(|value| value.trim().to_ascii_lowercase());
    match said(DISABLED).as_deref() {
        Some("true") => return Some("OTEL_SDK_DISABLED is true"),
        Some("false") | None => {}
        Some(other) => notes.push(format!("{DISABLED}: `{other}` is not true or false; it is not read")),
    }
    let exporters = said(EXPORTER)?;
    for exporter in exporters.split(',').map(str::trim) {
        match exporter {
            "none" => return Some("OTEL_TRACES_EXPORTER is none"),
            "otlp" | "" => {}
            other => notes.push(format!("{EXPORTER}: `{other}` is not otlp or none; traces are sent by OTLP")),
        }
    }
    None
}

/// Which requests are traced. Where nothing is said that can be understood: those whose caller is, and all that have
/// none.
fn sampler(variables: &Environment, notes: &mut Vec<String>) -> Sampler {
    let said = variables.get(SAMPLER).map(|name| name.trim().to_ascii_lowercase());
    let name = said.as_deref().unwrap_or("parentbased_always_on");
    let (of_callers, rest) = name.strip_prefix("parentbased_").map_or((false, name), |rest| (true, rest));
    let sampler = match rest {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => Sampler::TraceIdRatioBased(ratio(variables, notes)),
        _ => {
            let known = SAMPLERS.join(", ");
            notes.push(format!("{SAMPLER}: `{name}` is not one of {known}; parentbased_always_on is taken"));
            return Sampler::ParentBased(Box::new(Sampler::AlwaysOn));
        }
    };
    if of_callers { Sampler::ParentBased(Box::new(sampler)) } else { sampler }
}

/// How many of all traces are sampled, from 0 to 1.
fn ratio(variables: &Environment, notes: &mut Vec<String>) -> f64 {
    let Some(said) = variables.get(RATIO) else { return 1.0 };
    match said.trim().parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
        _ => {
            notes.push(format!("{RATIO}: `{said}` is not a number from 0 to 1; 1 is taken"));
            1.0
        }
    }
}

/// Who sends: the program, where nobody names it otherwise.
fn resource(variables: &Environment, notes: &mut Vec<String>) -> Resource {
    let mut attributes = Vec::new();
    let said = variables.get(ATTRIBUTES).map_or("", String::as_str);
    for pair in said.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        match attribute(pair) {
            Some(attribute) => attributes.push(attribute),
            None => notes.push(format!(
                "{ATTRIBUTES}: `{pair}` is not a key, = and a value, with % and two hexadecimal digits for what may not \
                 stand in them; it is left out"
            )),
        }
    }
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attributes(attributes);
    match variables.get(SERVICE_NAME) {
        Some(name) => resource.with_service_name(name.clone()).build(),
        None => resource.build(),
    }
}

/// A member of W3C's baggage, without properties.
fn attribute(pair: &str) -> Option<KeyValue> {
    let (key, value) = pair.split_once('=')?;
    let (key, value) = (unescaped(key.trim())?, unescaped(value.trim())?);
    (!key.is_empty()).then(|| KeyValue::new(key, value))
}

/// Text with its escapes replaced; `None` where one is cut short, or what comes of them is not UTF-8.
fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        // A sign is a part of a number elsewhere.
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::Key;

    fn environment(said: &[(&str, &str)]) -> Environment {
        said.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn samplers() {
        let sampled = |said: &[(&str, &str)]| {
            let mut notes = Vec::new();
            let sampler = format!("{:?}", sampler(&environment(said), &mut notes));
            (sampler, notes.join("; "))
        };
        let understood = |said: &[(&str, &str)]| {
            let (sampler, notes) = sampled(said);
            assert_eq!(notes, "", "{said:?}");
            sampler
        };
        assert_eq!(understood(&[]), "ParentBased(AlwaysOn)");
        assert_eq!(understood(&[(SAMPLER, "always_off")]), "AlwaysOff");
        assert_eq!(understood(&[(SAMPLER, " Always_On ")]), "AlwaysOn");
        assert_eq!(understood(&[(SAMPLER, "parentbased_always_off")]), "ParentBased(AlwaysOff)");
        assert_eq!(understood(&[(SAMPLER, "traceidratio")]), "TraceIdRatioBased(1.0)");
        let quarter = |name| understood(&[(SAMPLER, name), (RATIO, "0.25")]);
        assert_eq!(quarter("traceidratio"), "TraceIdRatioBased(0.25)");
        assert_eq!(quarter("parentbased_traceidratio"), "ParentBased(TraceIdRatioBased(0.25))");
        for unknown in ["xray", "sometimes", "parentbased_"] {
            let (sampler, notes) = sampled(&[(SAMPLER, unknown)]);
            assert_eq!(sampler, "ParentBased(AlwaysOn)");
            assert!(notes.starts_with(&format!("{SAMPLER}: `{unknown}` is not one of always_on, ")), "{notes}");
        }
        for wrong in ["1.5", "-0.5", "NaN", "half"] {
            let (sampler, notes) = sampled(&[(SAMPLER, "traceidratio"), (RATIO, wrong)]);
            assert_eq!(sampler, "TraceIdRatioBased(1.0)");
            assert!(notes.starts_with(&format!("{RATIO}: `{wrong}` is not a number from 0 to 1")), "{notes}");
        }
    }

    #[test]
    fn resources() {
        let told = |said: &[(&str, &str)], key: &'static str| {
            let resource = resource(&environment(said), &mut Vec::new());
            resource.get(&Key::from_static_str(key)).map(|value| value.as_str().into_owned())
        };
        let name = |said: &[(&str, &str)]| told(said, "service.name").unwrap();
        assert_eq!(name(&[]), "tensorgate");
        assert_eq!(name(&[(ATTRIBUTES, "service.name=a%20b")]), "a b");
        assert_eq!(name(&[(ATTRIBUTES, "service.name=a"), (SERVICE_NAME, "b%20")]), "b%20");
        assert_eq!(told(&[], "telemetry.sdk.language").as_deref(), Some("rust"));
        let said = [(ATTRIBUTES, " k%2C1 = v%3D%C3%A4%2c , base64=SGk9PQ==,empty=,")];
        assert_eq!(told(&said, "k,1").as_deref(), Some("v=\u{e4},"));
        assert_eq!(told(&said, "base64").as_deref(), Some("SGk9PQ=="));
        assert_eq!(told(&said, "empty").as_deref(), Some(""));
        for wrong in ["a", "=a", "a=%", "a=%4", "a=%+1", "a=%\u{e4}b", "a=%ff", "%zz=a"] {
            let (said, mut notes) = (format!("b=c,{wrong}"), Vec::new());
            let resource = resource(&environment(&[(ATTRIBUTES, said.as_str())]), &mut notes);
            assert_eq!(resource.get(&Key::from_static_str("b")).unwrap().as_str(), "c");
            assert_eq!(resource.get(&Key::from_static_str("a")), None);
            assert!(notes[0].starts_with(&format!("{ATTRIBUTES}: `{wrong}` is not ")), "{notes:?}");
        }
    }

    #[test]
    fn who_wants_no_traces() {
        let off = |said: &[(&str, &str)]| {
            let mut notes = Vec::new();
            (switched_off(&environment(said), &mut notes).is_some(), notes.len())
        };
        assert_eq!(off(&[]), (false, 0));
        assert_eq!(off(&[(DISABLED, "TRUE")]), (true, 0));
        assert_eq!(off(&[(DISABLED, "false"), (EXPORTER, "otlp")]), (false, 0));
        assert_eq!(off(&[(EXPORTER, "none")]), (true, 0));
        assert_eq!(off(&[(DISABLED, "1")]), (false, 1));
        assert_eq!(off(&[(EXPORTER, "zipkin, otlp")]), (false, 1));
    }
}
