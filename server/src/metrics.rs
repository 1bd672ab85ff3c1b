//! Every metric, named once: KServe's names, Triton's `nv_inference_*` names, and our own. Label values come from what
//! is registered, never from a request.

use crate::error::Error;
use crate::stats::Timing;
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
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
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Prefix("request_".into()), &KSERVE_BUCKETS)
        .and_then(|b| b.set_buckets_for_metric(Matcher::Prefix("tensorgate_".into()), &OUR_BUCKETS))
        .map_err(|e| e.to_string())?;
    let handle = builder.install_recorder().map_err(|e| e.to_string())?;
    describe();
    Ok(handle)
}

fn describe() {
    describe_histogram!("request_preprocess_seconds", "pre-process request latency");
    describe_histogram!("request_postprocess_seconds", "post-process request latency");
    describe_histogram!("request_predict_seconds", "predict request latency");
    describe_histogram!("request_explain_seconds", "explain request latency");
    describe_counter!("nv_inference_request_success", "Number of successful inference requests");
    describe_counter!("nv_inference_request_failure", "Number of failed inference requests");
    describe_counter!("nv_inference_count", "Number of inferences performed (a batch of n counts n)");
    describe_counter!("nv_inference_exec_count", "Number of model executions performed");
    describe_counter!("nv_inference_request_duration_us", "Cumulative inference request duration in microseconds");
    describe_counter!("nv_inference_queue_duration_us", "Cumulative inference queuing duration in microseconds");
    describe_counter!("nv_inference_compute_input_duration_us", "Cumulative compute input duration in microseconds");
    describe_counter!(
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration in microseconds"
    );
    describe_counter!("nv_inference_compute_output_duration_us", "Cumulative compute output duration in microseconds");
    describe_gauge!("nv_inference_pending_request_count", "Instantaneous number of pending requests");
    describe_gauge!("tensorgate_queue_requests", "Requests that wait for a model");
    describe_gauge!("tensorgate_model_bytes", "Bytes a loaded model holds");
    describe_gauge!("tensorgate_backend_device", "1 for the device a model runs on");
    describe_histogram!("tensorgate_request_seconds", "End-to-end time of inference requests");
    describe_gauge!("tensorgate_tls_cert_expiry_seconds", "Unix time at which the TLS certificate expires");
    describe_counter!("tensorgate_log_dropped_total", "Log lines that nobody read in time");
    describe_counter!("tensorgate_spans_dropped_total", "Spans that did not reach the collector");
    log_dropped(0);
    spans_dropped(0);
}

/// The metrics of one version of a model.
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
    explain: Histogram,
    total: Histogram,
}

impl std::fmt::Debug for ModelMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelMetrics")
    }
}

impl ModelMetrics {
    /// Registers the metrics of a version; all of them are there from the beginning, at zero.
    pub fn register(name: &str, version: u64, device: &'static str) -> Self {
        let (model, version) = (name.to_owned(), version.to_string());
        let count = |metric: &'static str| counter!(metric, "model" => model.clone(), "version" => version.clone());
        let time = |metric: &'static str| histogram!(metric, "model_name" => model.clone());
        let level = |metric: &'static str| gauge!(metric, "model" => model.clone(), "version" => version.clone());
        gauge!("tensorgate_backend_device", "model" => model.clone(), "device" => device).set(1.0);
        let metrics = ModelMetrics {
            success: count("nv_inference_request_success"),
            failures: REASONS.map(|reason| {
                counter!("nv_inference_request_failure",
                    "model" => model.clone(), "version" => version.clone(), "reason" => reason)
            }),
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
            explain: time("request_explain_seconds"),
            total: histogram!("tensorgate_request_seconds", "model" => model.clone()),
        };
        metrics.success.increment(0);
        metrics.failures.iter().for_each(|failure| failure.increment(0));
        metrics
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

    /// An explanation took this long.
    pub fn explained(&self, time: Duration) {
        self.explain.record(time.as_secs_f64());
    }

    /// What is only read when somebody asks.
    pub fn refresh(&self, queued: usize, bytes: usize, executions: u64) {
        self.queued.set(queued as f64);
        self.pending.set(queued as f64);
        self.bytes.set(bytes as f64);
        self.executions.absolute(executions);
    }
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
