//! What the server tells about itself besides metrics: a log on standard error, and traces for a collector. Neither
//! may hold up a request, whatever becomes of the reader at the other end; what is lost is counted.

mod context;
mod otlp;
mod request;
mod sink;
mod text;
mod writer;

pub use request::{Answer, Exchange, SPANS, named, spans_wanted};
pub use text::escaped;

use crate::args::Environment;
use crate::config::telemetry_environment;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use otlp::Exporter;
use sink::Sink;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use writer::Writer;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One object to a line.
    Json,
}

/// What is told, and to whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// The least important message that is logged.
    pub level: LevelFilter,
    /// How log lines look.
    pub format: Format,
    /// URL of an OpenTelemetry collector. A path, or port 4318, stands for OTLP over HTTP, anything else for gRPC.
    pub otlp_endpoint: Option<String>,
    /// A variable says the endpoint that is not ours, as OpenTelemetry's. Such are set for whole clusters: a wrong one stops
    /// nobody.
    pub endpoint_of_cluster: bool,
}

/// Crates whose messages follow the level; from others only warnings are of interest.
const OURS: [&str; 5] = ["tensorgate", "server", "backends", "kernels", "protocol"];

/// The variable that others set for the endpoint.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where [`say`] writes, and whether that is meant for people.
static VOICE: OnceLock<(Writer, bool)> = OnceLock::new();

/// Telemetry that runs. Dropping it hands over what waits: a second for the log, three for traces.
#[derive(Debug)]
#[must_use = "telemetry ends when it is dropped"]
pub struct Guard {
    writer: Writer,
    for_people: bool,
    exporter: Option<Exporter>,
}

impl Guard {
    /// Log lines that were dropped because nobody read the log.
    pub fn dropped(&self) -> u64 {
        self.writer.dropped()
    }
}

impl Guard {
    /// What waits is not wanted any more: leaving takes no time.
    pub fn abandon(mut self) {
        self.exporter = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(exporter) = &self.exporter {
            exporter.finish();
        }
        self.writer.finish();
    }
}

/// Starts telemetry for the process: log on standard error, panics in it too. OpenTelemetry's variables are heard.
///
/// # Errors
/// It was started before, or the endpoint is none.
pub fn init(options: &Options) -> Result<Guard, String> {
    let terminal = std::io::stderr().is_terminal();
    let (dispatch, guard) = build(options, &telemetry_environment(), std::io::stderr(), terminal)?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|error| error.to_string())?;
    let _ = VOICE.set((guard.writer.clone(), guard.for_people));
    // The standard hook writes to standard error itself, and would wait there for a reader.
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let what = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then_some(backtrace);
        tracing::error!(
            thread = std::thread::current().name().unwrap_or_default(),
            place = panic.location().map(tracing::field::display),
            panic = what.unwrap_or("unknown"),
            backtrace = backtrace.as_ref().map(tracing::field::display),
            "panic"
        );
    }));
    Ok(guard)
}

/// The same, with the log on `out`, for whomever uses the dispatcher, and with these variables of OpenTelemetry's.
///
/// # Errors
/// The endpoint is none.
pub fn build(
    options: &Options,
    variables: &Environment,
    out: impl Write + Send + 'static,
    terminal: bool,
) -> Result<(Dispatch, Guard), String> {
    let for_people = match options.format {
        Format::Auto => terminal,
        Format::Text => true,
        Format::Json => false,
    };
    let mut notes = Vec::new();
    let endpoint = options.otlp_endpoint.as_deref();
    let exporter = endpoint
        .map(|endpoint| exporter(endpoint, options.endpoint_of_cluster, variables, &mut notes))
        .transpose()?
        .flatten();
    let traced = exporter.is_some();
    let ansi = for_people && terminal;
    let writer = Writer::start(out)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer.clone()).with_ansi(ansi).log_internal_errors(false);
    let lines = if for_people {
        lines.fmt_fields(debug_fn(text::field).delimited(" ")).boxed()
    } else {
        lines.json().flatten_event(true).with_span_list(false).boxed()
    };
    let lines = lines.with_filter(targets(options.level, traced));
    let (provider, exporter) = exporter.unzip();
    let spans = provider.map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_target(SPANS, LevelFilter::INFO))
    });
    let dispatch = match spans {
        // An absent layer is not free: each event would ask it.
        None => Dispatch::new(Registry::default().with(lines)),
        Some(spans) => Dispatch::new(Registry::default().with(lines).with(spans)),
    };
    tracing::dispatcher::with_default(&dispatch, || notes.iter().for_each(|note| tracing::warn!("{note}")));
    Ok((dispatch, Guard { writer, for_people, exporter }))
}

/// What sends traces to `endpoint`; `None` where they are switched off, or where the endpoint was set for a whole
/// cluster and cannot be used: that is no reason to stay away. `notes` say so.
fn exporter(
    endpoint: &str,
    of_cluster: bool,
    variables: &Environment,
    notes: &mut Vec<String>,
) -> Result<Option<(SdkTracerProvider, Exporter)>, String> {
    if let Some(why) = otlp::switched_off(variables, notes) {
        if !of_cluster {
            notes.push(format!("{why}: no traces are sent, though an endpoint is given for them"));
        }
        return Ok(None);
    }
    match Sink::new(endpoint, variables) {
        Ok(sink) => Exporter::start(sink, variables, notes).map(Some),
        Err(why) if of_cluster => {
            notes.push(format!("{ENDPOINT}: {why}; no traces are sent"));
            Ok(None)
        }
        Err(why) => Err(why),
    }
}

/// What the log shows. Spans of requests cost something with each request: they are there from level debug on, or when
/// they are traced anyway, so that whatever is logged carries their ids.
fn targets(level: LevelFilter, traced: bool) -> Targets {
    let spans = if level >= LevelFilter::DEBUG || traced { LevelFilter::INFO } else { LevelFilter::OFF };
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_targets(OURS.map(|target| (target, level)))
        .with_target(SPANS, spans)
}

/// Says something that is no event, to people: where the log is for machines it is left out.
pub fn say(text: &str) {
    match VOICE.get() {
        Some((writer, true)) => writer.push(text.as_bytes()),
        Some((_, false)) => {}
        None => eprint!("{text}"),
    }
}

#[cfg(test)]
mod tests;
