//! What metrics tell of language models, by the names that vLLM has: dashboards, autoscalers and schedulers of inference
//! (the Gateway API's extension) read them.

use super::series::Scope;
use crate::clock::since_1970;
use backends::llm::blocks::BLOCK;
use backends::llm::scheduler::Counters;
use metrics::{Counter, Histogram, describe_gauge, gauge};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// vLLM's buckets of a first token's time, in seconds.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// vLLM's buckets of the time between two tokens, in seconds. A card that is near its limits has less than the first of
/// them: those before it are ours.
const BETWEEN_TOKENS: [f64; 22] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];
/// vLLM's buckets of whole answers, in seconds.
const WHOLE: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// vLLM's buckets of numbers of tokens; there they end with a model's context, which may be another after the next load.
const TOKENS: [f64; 22] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6,
    1e7,
];

/// Metrics that are there without a model.
pub(super) fn describe() {
    describe_gauge!("vllm:lora_requests_info", "Unix time; which adapters are in use");
}

/// What a metric tells.
pub(super) fn help(metric: &str) -> &'static str {
    match metric {
        "vllm:num_requests_running" => "Answers that are being generated",
        "vllm:num_requests_waiting" => "Answers that wait to be generated",
        "vllm:kv_cache_usage_perc" => "Blocks of keys and values in use; 1 is all of them",
        "vllm:cache_config_info" => "1; how keys and values are laid out",
        "vllm:generation_tokens_total" => "Tokens generated",
        "vllm:num_preemptions_total" => "Answers that gave up their blocks for others",
        "vllm:prefix_cache_queries_total" => "Tokens looked for in the prefix cache",
        "vllm:prefix_cache_hits_total" => "Tokens found in the prefix cache",
        "vllm:prompt_tokens_total" => "Tokens of prompts, those in the prefix cache included",
        "vllm:request_success_total" => "Answers by why they ended",
        "vllm:time_to_first_token_seconds" => "From the queue to the first token",
        "vllm:inter_token_latency_seconds" => "From one token to the next",
        "vllm:request_time_per_output_token_seconds" => "From one token to the next, on average of an answer",
        "vllm:e2e_request_latency_seconds" => "From the queue to the last token",
        "vllm:request_queue_time_seconds" => "In the queue",
        "vllm:request_inference_time_seconds" => "From the end of the queue to the last token",
        "vllm:request_prefill_time_seconds" => "From the end of the queue to the first token",
        "vllm:request_decode_time_seconds" => "From the first token to the last",
        "vllm:request_prompt_tokens" => "Tokens of a prompt",
        "vllm:request_generation_tokens" => "Tokens of an answer",
        _ => "",
    }
}

/// Why an answer ended, as vLLM says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, or at what the request names.
    Stop,
    /// It has as many tokens as it may.
    Length,
    /// Nobody waits for it any more, or its time was over.
    Abort,
    /// It could not be computed.
    Error,
}

impl Ended {
    const ALL: [Ended; 4] = [Ended::Stop, Ended::Length, Ended::Abort, Ended::Error];

    fn name(self) -> &'static str {
        match self {
            Ended::Stop => "stop",
            Ended::Length => "length",
            Ended::Abort => "abort",
            Ended::Error => "error",
        }
    }
}

/// How an answer went that came to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Until it left the queue.
    pub queued: Duration,
    /// From then on until its first token.
    pub prefill: Duration,
    /// From then on until its last token.
    pub decode: Duration,
    /// Tokens of its prompt.
    pub prompt: u32,
    /// Its own tokens.
    pub tokens: u32,
}

/// The answers of a language model. Metrics tell of them as long as this lives.
pub struct AnswerMetrics {
    ends: [Counter; Ended::ALL.len()],
    prompt_tokens: Counter,
    first_token: Histogram,
    between_tokens: Histogram,
    on_average: Histogram,
    total: Histogram,
    queued: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt: Histogram,
    tokens: Histogram,
    _scope: Arc<Scope>,
}

impl std::fmt::Debug for AnswerMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnswerMetrics")
    }
}

impl AnswerMetrics {
    /// Registers the metrics of `model`; all of them are there from the beginning, at zero.
    pub fn register(model: &str) -> Self {
        let scope = Scope::of(model, None);
        let [name, engine] = labels(model);
        let end = |ended: Ended| {
            scope.counter("vllm:request_success_total", &[name, engine, ("finished_reason", ended.name())])
        };
        let time = |metric: &'static str, bounds: &'static [f64]| scope.times(metric, &[name, engine], bounds);
        let size = |metric: &'static str| scope.sizes(metric, &[name, engine], &TOKENS);
        AnswerMetrics {
            ends: Ended::ALL.map(end),
            prompt_tokens: scope.counter("vllm:prompt_tokens_total", &[name, engine]),
            first_token: time("vllm:time_to_first_token_seconds", &FIRST_TOKEN),
            between_tokens: time("vllm:inter_token_latency_seconds", &BETWEEN_TOKENS),
            on_average: time("vllm:request_time_per_output_token_seconds", &BETWEEN_TOKENS),
            total: time("vllm:e2e_request_latency_seconds", &WHOLE),
            queued: time("vllm:request_queue_time_seconds", &WHOLE),
            inference: time("vllm:request_inference_time_seconds", &WHOLE),
            prefill: time("vllm:request_prefill_time_seconds", &WHOLE),
            decode: time("vllm:request_decode_time_seconds", &WHOLE),
            prompt: size("vllm:request_prompt_tokens"),
            tokens: size("vllm:request_generation_tokens"),
            _scope: scope,
        }
    }

    /// A prompt of so many tokens is computed.
    pub fn prompt(&self, tokens: u32) {
        self.prompt_tokens.increment(tokens.into());
    }

    /// An answer has its first token, so long after it was asked for.
    pub fn first_token(&self, time: Duration) {
        self.first_token.record(time.as_secs_f64());
    }

    /// An answer has one more token, so long after the one before.
    pub fn next_token(&self, time: Duration) {
        self.between_tokens.record(time.as_secs_f64());
    }

    /// An answer ended.
    pub fn ended(&self, how: Ended) {
        self.ends[how as usize].increment(1);
    }

    /// It came to its end.
    pub fn went(&self, course: &Course) {
        let Course { queued, prefill, decode, prompt, tokens } = *course;
        let record = |histogram: &Histogram, time: Duration| histogram.record(time.as_secs_f64());
        record(&self.queued, queued);
        record(&self.prefill, prefill);
        record(&self.decode, decode);
        record(&self.inference, prefill + decode);
        record(&self.total, queued + prefill + decode);
        if let Some(gaps) = tokens.checked_sub(1).filter(|gaps| *gaps > 0) {
            record(&self.on_average, decode / gaps);
        }
        self.prompt.record(f64::from(prompt));
        self.tokens.record(f64::from(tokens));
    }
}

/// The engine of a language model. Metrics tell of it as long as this lives.
#[derive(Debug)]
pub struct EngineMetrics(u64);

impl EngineMetrics {
    /// Tells of an engine of `model`: `now` says where it stands, whenever somebody asks.
    pub fn register(model: &str, now: impl Fn() -> Counters + Send + 'static) -> Self {
        EngineMetrics(engines().add(model, now))
    }
}

impl Drop for EngineMetrics {
    fn drop(&mut self) {
        engines().remove(self.0);
    }
}

static ENGINES: Mutex<Engines> = Mutex::new(Engines { last: 0, all: BTreeMap::new(), blocks: BTreeMap::new() });

/// Asks all engines where they stand.
pub(super) fn refresh() {
    engines().refresh();
}

fn engines() -> MutexGuard<'static, Engines> {
    ENGINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Engines by number. Those of a model are told of together, by the names that vLLM has and the Gateway API's inference
/// extension reads: its versions, and one that was replaced until its last answer. So counters never go back.
#[derive(Default)]
struct Engines {
    last: u64,
    all: BTreeMap<u64, Engine>,
    /// The blocks of each model that `vllm:cache_config_info` tells of.
    blocks: BTreeMap<String, u64>,
}

struct Engine {
    model: String,
    scope: Arc<Scope>,
    now: Box<dyn Fn() -> Counters + Send>,
    /// Where it stood when that was last asked.
    told: Counters,
}

impl Engine {
    /// Asks where it stands, and counts what it has done since it was last asked.
    fn count(&mut self) {
        let now = (self.now)();
        let more = |metric: &'static str, part: fn(&Counters) -> u64| {
            let counter = self.scope.counter(metric, &labels(&self.model));
            counter.increment(part(&now).saturating_sub(part(&self.told)));
        };
        more("vllm:generation_tokens_total", |counters| counters.tokens);
        more("vllm:num_preemptions_total", |counters| counters.preemptions);
        more("vllm:prefix_cache_queries_total", |counters| counters.prefix_queries);
        more("vllm:prefix_cache_hits_total", |counters| counters.prefix_hits);
        self.told = now;
    }
}

impl Engines {
    fn add(&mut self, model: &str, now: impl Fn() -> Counters + Send + 'static) -> u64 {
        self.last += 1;
        let (scope, now) = (Scope::of(model, None), Box::new(now));
        self.all.insert(self.last, Engine { model: model.into(), scope, now, told: Counters::default() });
        self.last
    }

    fn remove(&mut self, number: u64) {
        let Some(mut ended) = self.all.remove(&number) else { return };
        ended.count();
        self.all.values_mut().filter(|engine| engine.model == ended.model).for_each(Engine::count);
        self.show(&ended.model, &ended.scope);
        if self.all.is_empty() {
            adapters(Duration::ZERO);
        }
    }

    fn refresh(&mut self) {
        self.all.values_mut().for_each(Engine::count);
        let models = self.all.values().map(|engine| (engine.model.clone(), engine.scope.clone()));
        let models: BTreeMap<String, Arc<Scope>> = models.collect();
        models.iter().for_each(|(model, scope)| self.show(model, scope));
        if !models.is_empty() {
            adapters(since_1970());
        }
    }

    /// What the engines of a model add up to; after the last of them nothing.
    fn show(&mut self, model: &str, scope: &Scope) {
        let sum = |part: fn(&Counters) -> u32| -> u64 {
            let engines = self.all.values().filter(|engine| engine.model == model);
            engines.map(|engine| u64::from(part(&engine.told))).sum()
        };
        let level = |metric: &'static str, value: f64| scope.gauge(metric, &labels(model)).set(value);
        let (used, blocks) = (sum(|counters| counters.blocks_used), sum(|counters| counters.blocks_total));
        level("vllm:num_requests_running", sum(|counters| counters.running) as f64);
        level("vllm:num_requests_waiting", sum(|counters| counters.waiting) as f64);
        level("vllm:kv_cache_usage_perc", used as f64 / blocks.max(1) as f64);
        let cache = |blocks: u64, is_told: bool| {
            let metric = "vllm:cache_config_info";
            let (size, number) = (BLOCK.to_string(), blocks.to_string());
            let [name, engine] = labels(model);
            let labels = [name, engine, ("block_size", size.as_str()), ("num_gpu_blocks", number.as_str())];
            if is_told { scope.gauge(metric, &labels).set(1.0) } else { scope.forget(metric, &labels) }
        };
        let before = self.blocks.remove(model).unwrap_or(0);
        if before != blocks {
            cache(before, false);
        }
        if blocks > 0 {
            cache(blocks, true);
            self.blocks.insert(model.to_owned(), blocks);
        }
    }
}

fn labels(model: &str) -> [(&'static str, &str); 2] {
    [("model_name", model), ("engine", ENGINE)]
}

/// No adapter is served. Of several such series a scheduler takes the one with the latest time.
fn adapters(now: Duration) {
    gauge!("vllm:lora_requests_info",
        "max_lora" => "0", "running_lora_adapters" => "", "waiting_lora_adapters" => "")
    .set(now.as_secs_f64());
}

/// The engines of a model, as vLLM calls the first of a process.
const ENGINE: &str = "0";

#[cfg(test)]
mod tests {
    use super::super::series;
    use super::super::tests::told;
    use super::*;

    fn standing(running: u32, tokens: u64) -> Counters {
        Counters { running, tokens, blocks_used: running, blocks_total: 8, ..Counters::default() }
    }

    #[test]
    fn an_answer_is_told_of_by_vllms_names() {
        const MODEL: &str = "answers of a model";
        let metrics = AnswerMetrics::register(MODEL);
        let ms = Duration::from_millis;
        metrics.prompt(7);
        metrics.first_token(ms(30));
        metrics.next_token(ms(4));
        metrics.ended(Ended::Length);
        let course = Course { queued: ms(10), prefill: ms(20), decode: ms(4), prompt: 7, tokens: 2 };
        metrics.went(&course);
        metrics.went(&Course { decode: ms(0), tokens: 1, ..course });
        let sum = |metric: &str| told(&format!("vllm:{metric}_sum{{"), MODEL);
        let count = |metric: &str| told(&format!("vllm:{metric}_count{{"), MODEL);
        assert_eq!(told("vllm:prompt_tokens_total{", MODEL), 7.0);
        let ends = |label: &str| {
            told("vllm:request_success_total{", &format!("{MODEL}\",engine=\"0\",finished_reason=\"{label}\""))
        };
        assert_eq!(Ended::ALL.map(|ended| ends(ended.name())), [0.0, 1.0, 0.0, 0.0]);
        for (metric, number, seconds) in [
            ("time_to_first_token_seconds", 1.0, 0.03),
            ("inter_token_latency_seconds", 1.0, 0.004),
            ("request_time_per_output_token_seconds", 1.0, 0.004),
            ("e2e_request_latency_seconds", 2.0, 0.064),
            ("request_queue_time_seconds", 2.0, 0.02),
            ("request_inference_time_seconds", 2.0, 0.044),
            ("request_prefill_time_seconds", 2.0, 0.04),
            ("request_decode_time_seconds", 2.0, 0.004),
            ("request_prompt_tokens", 2.0, 14.0),
            ("request_generation_tokens", 2.0, 3.0),
        ] {
            assert_eq!((count(metric), sum(metric)), (number, seconds), "{metric}");
        }
        let text = series::text(help);
        assert!(text.contains(&format!(
            "vllm:request_prompt_tokens_bucket{{model_name=\"{MODEL}\",engine=\"0\",le=\"100\"}} 2"
        )));
    }

    #[test]
    fn engines_of_a_model_are_told_of_together() {
        const MODEL: &str = "of several engines";
        let levels = || {
            let names = ["num_requests_running", "kv_cache_usage_perc", "cache_config_info", "generation_tokens_total"];
            names.map(|name| told(&format!("vllm:{name}{{"), MODEL))
        };
        let mut engines = Engines::default();
        let shared = Arc::new(Mutex::new(standing(2, 10)));
        let now = shared.clone();
        let first = engines.add(MODEL, move || *now.lock().unwrap());
        let second = engines.add(MODEL, || standing(1, 5));
        engines.refresh();
        assert_eq!(levels(), [3.0, 3.0 / 16.0, 1.0, 15.0]);
        *shared.lock().unwrap() = standing(1, 40);
        engines.remove(first);
        assert_eq!(levels(), [1.0, 1.0 / 8.0, 1.0, 45.0], "what nobody had asked for is counted");
        let third = engines.add(MODEL, || standing(0, 7));
        engines.remove(second);
        assert_eq!(levels(), [0.0, 0.0, 1.0, 52.0], "another begins to count where these left off");
        engines.remove(third);
        engines.refresh();
        assert!(!series::text(help).contains(MODEL), "nothing is told of what is gone");
        assert!(engines.blocks.is_empty());
    }
}
