//! Every metric, named once: KServe's names, Triton's `nv_inference_*` names, vLLM's (`engine.rs`), and our own. Label
//! values come from what is registered, never from a request.

mod engine;
mod series;

pub use engine::{AnswerMetrics, Course, Ended, EngineMetrics};
#[cfg(test)]
pub(crate) use series::text;

use crate::error::Error;
use crate::stats::Timing;
use metrics::{Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use series::Scope;
use std::sync::Arc;
use std::time::Duration;

/// prometheus_client's default buckets, which KServe's histograms have.
const KSERVE_BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Trees answer in microseconds: our own latency starts there.
const OUR_BUCKETS: [f64; 16] =
    [25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 2.5, 10.0];

const REASONS: [&str; 4] = ["REJECTED", "CANCELED", "BACKEND", "OTHER"];

/// Starts recording.
///
/// # Errors
/// A recorder is installed already.
pub fn install() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new().install_recorder().map_err(|e| e.to_string())?;
    describe();
    Ok(handle)
}

/// Metrics that the process has from its start to its end; [`help`] has those of models.
fn describe() {
    describe_gauge!("tensorgate_tls_cert_expiry_seconds", "Unix time at which the TLS certificate expires");
    describe_counter!(
        "tensorgate_log_dropped_total",
        "Log lines that nobody read in time, or that could not be written"
    );
    describe_counter!("tensorgate_spans_dropped_total", "Spans that did not reach the collector");
    describe_counter!("tensorgate_answers_total", "Answers by protocol and status; gRPC's is that of the head");
    engine::describe();
    describe_gauge!("process_start_time_seconds", "Unix time at which the process started");
    describe_gauge!("process_virtual_memory_bytes", "Virtual memory");
    describe_gauge!("process_resident_memory_bytes", "Resident memory");
    describe_gauge!("process_open_fds", "Open files");
    describe_gauge!("process_max_fds", "Files that may be open");
    log_dropped(0);
    spans_dropped(0);
}

/// What a metric of models tells.
fn help(metric: &str) -> &'static str {
    match metric {
        "request_preprocess_seconds" => "pre-process request latency",
        "request_postprocess_seconds" => "post-process request latency",
        "request_predict_seconds" => "predict request latency",
        "request_explain_seconds" => "explain request latency",
        "nv_inference_request_success" => "Number of successful inference requests",
        "nv_inference_request_failure" => "Number of failed inference requests",
        "nv_inference_count" => "Number of inferences performed (a batch of n counts n)",
        "nv_inference_exec_count" => "Number of model executions performed",
        "nv_inference_request_duration_us" => "Cumulative inference request duration in microseconds",
        "nv_inference_queue_duration_us" => "Cumulative inference queuing duration in microseconds",
        "nv_inference_compute_input_duration_us" => "Cumulative compute input duration in microseconds",
        "nv_inference_compute_infer_duration_us" => "Cumulative compute inference duration in microseconds",
        "nv_inference_compute_output_duration_us" => "Cumulative compute output duration in microseconds",
        "nv_inference_pending_request_count" => "Instantaneous number of pending requests",
        "tensorgate_queue_requests" => "Requests that wait for a model",
        "tensorgate_model_bytes" => "Bytes a loaded model holds",
        "tensorgate_backend_device" => "1 for the device a model runs on",
        "tensorgate_request_seconds" => "End-to-end time of inference requests",
        "tensorgate_model_process_ends_total" => "Ends of processes of models that were not asked to end",
        _ => engine::help(metric),
    }
}

/// The process of a model. Metrics tell of it as long as this lives.
pub struct ProcessMetrics {
    ends: Counter,
    _scope: Arc<Scope>,
}

impl ProcessMetrics {
    /// Registers the metrics of the process of `model`, at zero.
    pub fn register(model: &str) -> Self {
        let scope = Scope::of(model, None);
        let ends = scope.counter("tensorgate_model_process_ends_total", &[("model", model)]);
        ProcessMetrics { ends, _scope: scope }
    }

    /// It ended, and was not asked to.
    pub fn ended(&self) {
        self.ends.increment(1);
    }
}

/// The metrics of one version of a model: told of until the last of these is dropped. Another that was registered under the
/// same name and number before that counts on.
#[derive(Clone)]
pub struct ModelMetrics {
    success: Counter,
    failures: [Counter; REASONS.len()],
    inferences: Counter,
    executions: Counter,
    request_us: Counter,
    queue_us: Counter,
    input_us: Counter,
    infer_us: Counter,
    output_us: Counter,
    pending: Gauge,
    queued: Gauge,
    bytes: Gauge,
    preprocess: Histogram,
    predict: Histogram,
    postprocess: Histogram,
    total: Histogram,
    device: Gauge,
    _scopes: [Arc<Scope>; 2],
}

impl std::fmt::Debug for ModelMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelMetrics")
    }
}

impl ModelMetrics {
    /// Registers the metrics of a version; all of them are there from the beginning, at zero.
    pub fn register(name: &str, version: u64, device: &str) -> Self {
        let (model, versioned, number) = (Scope::of(name, None), Scope::of(name, Some(version)), version.to_string());
        let labels = [("model", name), ("version", number.as_str())];
        let count = |metric: &'static str| versioned.counter(metric, &labels);
        let level = |metric: &'static str| versioned.gauge(metric, &labels);
        let time = |metric: &'static str| model.times(metric, &[("model_name", name)], &KSERVE_BUCKETS);
        let failure = |reason: &'static str| {
            let labels = [("model", name), ("version", number.as_str()), ("reason", reason)];
            versioned.counter("nv_inference_request_failure", &labels)
        };
        // KServe tells of explanations whether or not there are any, and here there are none.
        let _ = time("request_explain_seconds");
        ModelMetrics {
            success: count("nv_inference_request_success"),
            failures: REASONS.map(failure),
            inferences: count("nv_inference_count"),
            executions: count("nv_inference_exec_count"),
            request_us: count("nv_inference_request_duration_us"),
            queue_us: count("nv_inference_queue_duration_us"),
            input_us: count("nv_inference_compute_input_duration_us"),
            infer_us: count("nv_inference_compute_infer_duration_us"),
            output_us: count("nv_inference_compute_output_duration_us"),
            pending: level("nv_inference_pending_request_count"),
            queued: level("tensorgate_queue_requests"),
            bytes: level("tensorgate_model_bytes"),
            preprocess: time("request_preprocess_seconds"),
            predict: time("request_predict_seconds"),
            postprocess: time("request_postprocess_seconds"),
            total: model.times("tensorgate_request_seconds", &[("model", name)], &OUR_BUCKETS),
            device: model.gauge("tensorgate_backend_device", &[("model", name), ("device", device)]),
            _scopes: [model.clone(), versioned.clone()],
        }
    }

    /// A request was answered.
    pub fn answered(&self, rows: usize, total: Duration, timing: &Timing) {
        let us = |duration: Duration| duration.as_micros() as u64;
        self.success.increment(1);
        self.inferences.increment(rows as u64);
        self.request_us.increment(us(total));
        self.queue_us.increment(us(timing.queue));
        self.input_us.increment(us(timing.input));
        self.infer_us.increment(us(timing.infer));
        self.output_us.increment(us(timing.output));
        self.predict.record(timing.infer.as_secs_f64());
        self.total.record(total.as_secs_f64());
    }

    /// A request failed.
    pub fn failed(&self, error: &Error) {
        let reason = error.reason();
        let index = REASONS.iter().position(|known| *known == reason).unwrap_or(REASONS.len() - 1);
        self.failures[index].increment(1);
    }

    /// Reading a request, and writing its reply, took this long.
    pub fn framed(&self, decode: Duration, encode: Duration) {
        self.preprocess.record(decode.as_secs_f64());
        self.postprocess.record(encode.as_secs_f64());
    }

    /// Counts executions.
    pub fn executions(&self) -> Counter {
        self.executions.clone()
    }

    /// So many requests wait for it.
    pub fn queued(&self, requests: usize) {
        self.queued.set(requests as f64);
        self.pending.set(requests as f64);
    }

    /// It is on its device, and holds so many bytes.
    pub fn loaded(&self, bytes: usize) {
        self.bytes.set(bytes as f64);
        self.device.set(1.0);
    }

    /// The model is gone from its device. Where another version of it runs there, its own [`ModelMetrics::loaded`] comes
    /// later.
    pub fn retire(&self) {
        self.device.set(0.0);
    }
}

/// Statuses that REST answers with; any other is counted as the last of them.
const HTTP_STATUSES: [u16; 18] =
    [200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 431, 499, 500, 501, 503, 504, 505, 0];
/// Codes of gRPC.
const GRPC_CODES: usize = 17;

/// Answers by status, whatever became of the request before it reached a model.
#[derive(Clone)]
pub struct Answers {
    rest: Arc<[Counter]>,
    grpc: Arc<[Counter]>,
}

impl Answers {
    /// All of them, at zero.
    pub fn register() -> Self {
        let count = |protocol: &'static str, code: String| {
            let counter = counter!("tensorgate_answers_total", "protocol" => protocol, "code" => code);
            counter.increment(0);
            counter
        };
        let rest = HTTP_STATUSES.map(|status| match status {
            0 => count("rest", "other".into()),
            status => count("rest", status.to_string()),
        });
        let grpc: Vec<Counter> = (0..GRPC_CODES).map(|code| count("grpc", code.to_string())).collect();
        Answers { rest: rest.to_vec().into(), grpc: grpc.into() }
    }

    /// REST answers.
    pub fn rest(&self, status: u16) {
        let index = HTTP_STATUSES.iter().position(|known| *known == status).unwrap_or(HTTP_STATUSES.len() - 1);
        self.rest[index].increment(1);
    }

    /// gRPC answers.
    pub fn grpc(&self, code: usize) {
        self.grpc[code.min(GRPC_CODES - 1)].increment(1);
    }
}

/// All metrics as text, those included that are only looked at when somebody asks.
pub fn render(recorded: &PrometheusHandle) -> String {
    engine::refresh();
    let cpu = refresh_process();
    let mut text = recorded.render() + &series::text(help);
    if let Some(seconds) = cpu.map(|time| time.as_secs_f64()) {
        // Counters that are recorded are whole numbers; a server that idles needs less than one of these in a minute.
        let name = "process_cpu_seconds_total";
        text += &format!("# HELP {name} User and system CPU time\n# TYPE {name} counter\n{name} {seconds}\n");
    }
    text
}

/// What Prometheus' own clients tell about their process, read now: KServe's Python servers have these. Returns its CPU
/// time.
fn refresh_process() -> Option<Duration> {
    let process = crate::process::Process::read()?;
    gauge!("process_start_time_seconds").set(process.started);
    gauge!("process_virtual_memory_bytes").set(process.virtual_bytes as f64);
    gauge!("process_resident_memory_bytes").set(process.resident_bytes as f64);
    gauge!("process_open_fds").set(process.open_files as f64);
    gauge!("process_max_fds").set(process.max_files as f64);
    Some(process.cpu)
}

/// Seconds since 1970 at which the certificate of the listeners expires.
pub fn certificate_expires(seconds: Option<u64>) {
    if let Some(seconds) = seconds {
        gauge!("tensorgate_tls_cert_expiry_seconds").set(seconds as f64);
    }
}

/// So many log lines were dropped in all.
pub fn log_dropped(lines: u64) {
    counter!("tensorgate_log_dropped_total").absolute(lines);
}

/// So many more spans did not reach the collector.
pub fn spans_dropped(spans: u64) {
    counter!("tensorgate_spans_dropped_total").increment(spans);
}

#[cfg(test)]
mod tests;
