//! What is simulated: workloads on devices, how much is asked of them and what is good enough, and the settings that
//! are compared. One row of the report for each.
//!
//! The settings at which a sweep begins are derived as `LanguageModel` derives them; each row changes one of them.

use super::clients::END;
use super::device::{CPU, Device, GPU};
use super::workload::{CHAT, DOCUMENTS, MIXED, Stream};
use backends::llm::request::COPIES_MAX;
use backends::llm::scheduler::Settings;
use serde::Serialize;
use std::time::Duration;

/// The settings of a run, and how much is asked of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Rows of a step.
    pub(crate) step: u32,
    /// Sequences that run.
    pub(crate) running: u32,
    /// Sequences that wait.
    pub(crate) waiting: u32,
    /// Tokens that wait; `None` for as many as the sequences can have.
    pub(crate) waiting_tokens: Option<u64>,
    pub(crate) blocks: u32,
    pub(crate) context: u32,
    /// Seconds of waiting that are worth a step of priority.
    pub(crate) ageing: f64,
    /// Are prefixes shared?
    pub(crate) cache: bool,
    /// Times the rate of the case.
    pub(crate) load: f64,
}

impl Setup {
    pub(crate) fn settings(&self) -> Settings {
        let most = u64::from(self.waiting).max(COPIES_MAX.into()) * u64::from(self.context);
        Settings {
            token_budget: self.step.max(self.running),
            chunk_tokens: self.step,
            max_running: self.running,
            max_waiting: self.waiting.max(COPIES_MAX.into()),
            max_waiting_tokens: self.waiting_tokens.unwrap_or(most),
            context: self.context,
            watermark: (self.blocks / 100).min(self.running),
            ageing: Duration::from_secs_f64(self.ageing),
            prefix_cache: self.cache,
            end_tokens: [END].into(),
        }
    }
}

/// What an answer has to keep for its request to count as well served. Seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Objective {
    /// From asking to the first token, at most.
    pub(crate) first: f64,
    /// From each token to the next, at most, on average over the answer.
    pub(crate) between: f64,
}

/// A setting and its name in the report.
type Variant = (&'static str, fn(&mut Setup));

/// A workload on a device.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) workload: &'static str,
    pub(crate) streams: &'static [Stream],
    pub(crate) device: Device,
    /// Requests a second, if nobody is turned away or leaves: some 70% of what the device can do, by mean lengths.
    pub(crate) rate: f64,
    pub(crate) objective: Objective,
    /// Where the sweep begins.
    pub(crate) setup: Setup,
    pub(crate) variants: &'static [Variant],
}

/// 50 GiB for keys and values of 128 KiB a position.
const GPU_SETUP: Setup = Setup {
    step: 2048,
    running: 256,
    waiting: 512,
    waiting_tokens: None,
    blocks: 12_288,
    context: 16_384,
    ageing: 2.0,
    cache: true,
    load: 1.0,
};

/// The server's defaults: 4 GiB for keys and values of 112 KiB a position.
const CPU_SETUP: Setup = Setup { step: 256, running: 64, blocks: 1170, context: 4096, ..GPU_SETUP };

const CHAT_GPU: &[Variant] = &[
    ("as it is", |_| ()),
    ("`token_budget` 512", |setup| setup.step = 512),
    ("`token_budget` 8192", |setup| setup.step = 8192),
    ("`max_running` 64", |setup| setup.running = 64),
    ("`max_running` 512", |setup| setup.running = 512),
    ("blocks / 4", |setup| setup.blocks /= 4),
    ("blocks x 2", |setup| setup.blocks *= 2),
    ("no prefix cache", |setup| setup.cache = false),
    ("load x 2", |setup| setup.load = 2.0),
    ("load x 2, `max_waiting` 32", |setup| (setup.load, setup.waiting) = (2.0, 32)),
    ("load x 2, `max_waiting` 4096", |setup| (setup.load, setup.waiting) = (2.0, 4096)),
];

const DOCUMENTS_GPU: &[Variant] = &[
    ("as it is", |_| ()),
    ("`token_budget` 512", |setup| setup.step = 512),
    ("`token_budget` 8192", |setup| setup.step = 8192),
    ("blocks / 4", |setup| setup.blocks /= 4),
    ("blocks x 2", |setup| setup.blocks *= 2),
    ("no prefix cache", |setup| setup.cache = false),
    ("`max_waiting` 32", |setup| setup.waiting = 32),
    ("`max_waiting_tokens` 200,000", |setup| setup.waiting_tokens = Some(200_000)),
];

const MIXED_GPU: &[Variant] = &[
    ("as it is", |_| ()),
    ("`ageing` 0: first come, first served", |setup| setup.ageing = 0.0),
    ("`ageing` 60 s", |setup| setup.ageing = 60.0),
    ("`token_budget` 512", |setup| setup.step = 512),
    ("`max_running` 32", |setup| setup.running = 32),
    ("blocks / 4", |setup| setup.blocks /= 4),
    ("no prefix cache", |setup| setup.cache = false),
    ("`max_waiting` 64", |setup| setup.waiting = 64),
    ("`max_waiting` 4096", |setup| setup.waiting = 4096),
];

const CHAT_CPU: &[Variant] = &[
    ("as it is", |_| ()),
    ("`token_budget` 64", |setup| setup.step = 64),
    ("`token_budget` 1024", |setup| setup.step = 1024),
    ("`max_running` 8", |setup| setup.running = 8),
    ("no prefix cache", |setup| setup.cache = false),
];

/// Everything, in the order of the report.
pub(crate) static CASES: [Case; 4] = [
    Case {
        workload: "chat",
        streams: CHAT,
        device: GPU,
        rate: 45.0,
        objective: Objective { first: 0.5, between: 0.05 },
        setup: GPU_SETUP,
        variants: CHAT_GPU,
    },
    Case {
        workload: "documents",
        streams: DOCUMENTS,
        device: GPU,
        rate: 3.6,
        objective: Objective { first: 5.0, between: 0.15 },
        setup: GPU_SETUP,
        variants: DOCUMENTS_GPU,
    },
    Case {
        workload: "mixed",
        streams: MIXED,
        device: GPU,
        rate: 16.0,
        objective: Objective { first: 2.0, between: 0.1 },
        setup: GPU_SETUP,
        variants: MIXED_GPU,
    },
    Case {
        workload: "chat",
        streams: CHAT,
        device: CPU,
        rate: 0.35,
        objective: Objective { first: 5.0, between: 0.3 },
        setup: CPU_SETUP,
        variants: CHAT_CPU,
    },
];
