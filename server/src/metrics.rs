//! Every metric, named once: KServe's names, Triton's `nv_inference_*` names, and our own. Label values come from what
//! is registered, never from a request.

use crate::error::Error;
use crate::stats::Timing;
use backends::llm::scheduler::Counters;
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Counts an end of the process of a model that was not asked to end.
pub fn process_ended(model: &str) {
    counter!("tensorgate_model_process_ends_total", "model" => model.to_owned()).increment(1);
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
    describe_counter!("tensorgate_model_process_ends_total", "Ends of processes of models that were not asked to end");
    describe_counter!("tensorgate_answers_total", "Answers by protocol and status; gRPC's is that of the head");
    describe_gauge!("vllm:num_requests_running", "Answers that are being generated");
    describe_gauge!("vllm:num_requests_waiting", "Answers that wait to be generated");
    describe_gauge!("vllm:kv_cache_usage_perc", "Blocks of keys and values in use; 1 is all of them");
    describe_gauge!("vllm:cache_config_info", "1; how keys and values are laid out");
    describe_gauge!("vllm:lora_requests_info", "Unix time; which adapters are in use");
    describe_counter!("vllm:generation_tokens_total", "Tokens generated");
    describe_counter!("vllm:num_preemptions_total", "Answers that gave up their blocks for others");
    describe_counter!("vllm:prefix_cache_queries_total", "Tokens looked for in the prefix cache");
    describe_counter!("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache");
    describe_counter!("process_cpu_seconds_total", "User and system CPU time");
    describe_gauge!("process_start_time_seconds", "Unix time at which the process started");
    describe_gauge!("process_virtual_memory_bytes", "Virtual memory");
    describe_gauge!("process_resident_memory_bytes", "Resident memory");
    describe_gauge!("process_open_fds", "Open files");
    describe_gauge!("process_max_fds", "Files that may be open");
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
    device: Gauge,
}

impl std::fmt::Debug for ModelMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelMetrics")
    }
}

impl ModelMetrics {
    /// Registers the metrics of a version; all of them are there from the beginning, at zero.
    pub fn register(name: &str, version: u64, device: &str) -> Self {
        let (model, version) = (name.to_owned(), version.to_string());
        let count = |metric: &'static str| counter!(metric, "model" => model.clone(), "version" => version.clone());
        let time = |metric: &'static str| histogram!(metric, "model_name" => model.clone());
        let level = |metric: &'static str| gauge!(metric, "model" => model.clone(), "version" => version.clone());
        let device = gauge!("tensorgate_backend_device", "model" => model.clone(), "device" => device.to_owned());
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
            device,
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

    /// Counts executions.
    pub fn executions(&self) -> Counter {
        self.executions.clone()
    }

    /// What is only read when somebody asks.
    pub fn refresh(&self, queued: usize, bytes: usize) {
        self.queued.set(queued as f64);
        self.pending.set(queued as f64);
        self.bytes.set(bytes as f64);
        self.device.set(1.0);
    }

    /// The model is gone. Where another version of it serves, its own [`ModelMetrics::refresh`] comes later.
    pub fn retire(&self) {
        for level in [&self.queued, &self.pending, &self.bytes, &self.device] {
            level.set(0.0);
        }
    }
}

/// Where the engine of a language model stands, by the names that vLLM has and the Gateway API's inference extension
/// reads.
pub fn refresh_language(name: &str, counters: &Counters) {
    // vLLM numbers the engines of a process; here a model has one.
    let label = || [("model_name", name.to_owned()), ("engine", ENGINE.to_owned())];
    let level = |metric: &'static str, value: f64| gauge!(metric, &label()).set(value);
    let count = |metric: &'static str, value: u64| counter!(metric, &label()).absolute(value);
    level("vllm:num_requests_running", counters.running.into());
    level("vllm:num_requests_waiting", counters.waiting.into());
    level("vllm:kv_cache_usage_perc", f64::from(counters.blocks_used) / f64::from(counters.blocks_total.max(1)));
    count("vllm:generation_tokens_total", counters.tokens);
    count("vllm:num_preemptions_total", counters.preemptions);
    count("vllm:prefix_cache_queries_total", counters.prefix_queries);
    count("vllm:prefix_cache_hits_total", counters.prefix_hits);
    let blocks = counters.blocks_total.to_string();
    gauge!("vllm:cache_config_info",
        "model_name" => name.to_owned(), "engine" => ENGINE, "block_size" => BLOCK_SIZE, "num_gpu_blocks" => blocks)
    .set(1.0);
    // No adapter is served. Of several such series a scheduler takes the one with the latest time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    gauge!("vllm:lora_requests_info",
        "max_lora" => "0", "running_lora_adapters" => "", "waiting_lora_adapters" => "")
    .set(now.as_secs_f64());
}

/// The engine of a model, as vLLM calls its first.
const ENGINE: &str = "0";

/// Tokens of a block of keys and values: `BLOCK` of `backends/src/llm/model.rs`.
const BLOCK_SIZE: &str = "32";

/// Statuses that REST answers with; any other is counted as the last of them.
const HTTP_STATUSES: [u16; 18] =
    [200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 431, 499, 500, 501, 503, 504, 505, 0];
/// Codes of gRPC.
const GRPC_CODES: usize = 17;

/// Answers by status, whatever became of the request before it reached a model.
#[derive(Clone)]
pub struct Answers {
    rest: std::sync::Arc<[Counter]>,
    grpc: std::sync::Arc<[Counter]>,
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

/// What Prometheus' own clients tell about their process, read now: KServe's Python servers have these.
pub fn refresh_process() {
    let Some(process) = crate::process::Process::read() else { return };
    counter!("process_cpu_seconds_total").absolute(process.cpu.as_secs());
    gauge!("process_start_time_seconds").set(process.started);
    gauge!("process_virtual_memory_bytes").set(process.virtual_bytes as f64);
    gauge!("process_resident_memory_bytes").set(process.resident_bytes as f64);
    gauge!("process_open_fds").set(process.open_files as f64);
    gauge!("process_max_fds").set(process.max_files as f64);
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
