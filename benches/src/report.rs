//! What a load run found, for people and for programs.

use crate::histogram::Histogram;
use crate::process::{TICK, Usage};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A load run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What was called.
    pub(crate) target: String,
    /// Requests in flight at most.
    pub(crate) concurrency: usize,
    /// Requests a second that were intended; absent in a closed loop.
    pub(crate) rate: Option<f64>,
    /// Length of the measurement.
    pub(crate) seconds: f64,
    /// Good answers.
    pub(crate) requests: u64,
    /// Good answers a second.
    pub(crate) requests_per_second: f64,
    /// How long good answers took: from the sending in a closed loop, from when it should have been in an open one.
    pub(crate) latency: Latency,
    /// Everything that was not a good answer, by what it was.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Processor time of this load generator for each good answer: near `1e6 / requests_per_second` it, and not the
    /// server, was the limit.
    pub(crate) client_cpu_us_per_request: f64,
    /// What the server cost; absent without `--pid`.
    pub(crate) server: Option<Server>,
}

/// Microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    mean_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

impl From<&Histogram> for Latency {
    fn from(nanoseconds: &Histogram) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
        Latency {
            mean_us: us(nanoseconds.mean()),
            p50_us: us(nanoseconds.quantile(0.5)),
            p90_us: us(nanoseconds.quantile(0.9)),
            p99_us: us(nanoseconds.quantile(0.99)),
            p999_us: us(nanoseconds.quantile(0.999)),
            max_us: us(nanoseconds.max()),
        }
    }
}

/// The server's cost over the measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Server {
    /// Processor time for each good answer.
    cpu_us_per_request: f64,
    /// How far that may be off, because the kernel counts in ticks.
    cpu_us_per_request_resolution: f64,
    /// Cores kept busy.
    cpu_cores: f64,
    /// At the end of the measurement.
    #[serde(flatten)]
    usage: Usage,
}

impl Server {
    /// From two looks at the server, `elapsed` apart.
    pub(crate) fn between(before: &Usage, after: &Usage, elapsed: Duration, requests: u64) -> Self {
        let cpu = after.cpu.saturating_sub(before.cpu);
        let per_request = |time: Duration| time.as_secs_f64() * 1e6 / requests.max(1) as f64;
        Server {
            cpu_us_per_request: per_request(cpu),
            cpu_us_per_request_resolution: per_request(TICK),
            cpu_cores: cpu.as_secs_f64() / elapsed.as_secs_f64(),
            usage: *after,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate {
            Some(rate) => writeln!(f, "{}: {rate} a second over {} connections", self.target, self.concurrency)?,
            None => writeln!(f, "{}: {} at a time", self.target, self.concurrency)?,
        }
        writeln!(f, "{:.0} requests/s ({} in {:.1} s)", self.requests_per_second, self.requests, self.seconds)?;
        let l = &self.latency;
        writeln!(
            f,
            "latency us: mean {:.1}  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            l.mean_us, l.p50_us, l.p90_us, l.p99_us, l.p999_us, l.max_us
        )?;
        for (kind, count) in &self.errors {
            writeln!(f, "{count} x {kind}")?;
        }
        write!(f, "client cpu: {:.1} us/request", self.client_cpu_us_per_request)?;
        let Some(server) = &self.server else { return Ok(()) };
        write!(
            f,
            "\nserver cpu: {:.2} us/request (+-{:.2}), {:.2} cores; {:.1} MiB, at most {:.1} MiB, {} process(es)",
            server.cpu_us_per_request,
            server.cpu_us_per_request_resolution,
            server.cpu_cores,
            server.usage.resident_bytes as f64 / f64::from(1 << 20),
            server.usage.resident_peak_bytes as f64 / f64::from(1 << 20),
            server.usage.processes
        )
    }
}
