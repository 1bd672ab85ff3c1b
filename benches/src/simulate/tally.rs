//! What is counted in a run, and the row of the report that is made of it.

use super::clients::Ask;
use super::sweep::Objective;
use crate::histogram::Histogram;
use backends::llm::scheduler::Counters;
use serde::Serialize;

/// A request that was taken in and has not ended.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) ask: Ask,
    /// Tokens that it has.
    pub(crate) tokens: u32,
    /// When it had the first of them, and the last. Nanoseconds, as all times here.
    first: u64,
    last: u64,
}

impl Live {
    pub(crate) fn new(ask: Ask) -> Live {
        Live { ask, tokens: 0, first: 0, last: 0 }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// The counts of a run.
#[derive(Debug)]
pub(crate) struct Tally {
    objective: Objective,
    pub(crate) asked: u64,
    pub(crate) refused: u64,
    /// Whose client left.
    pub(crate) left: u64,
    /// Whose deadline passed.
    pub(crate) late: u64,
    pub(crate) answered: u64,
    /// Those among them that keep the objective.
    good: u64,
    pub(crate) tokens: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    first: Histogram,
    between: Histogram,
    /// How many times as long as alone a request took.
    by_tenant: Vec<Mean>,
    by_stream: Vec<Mean>,
    pub(crate) steps: u64,
    chunks: u64,
    /// The device computed for so long.
    busy: u64,
    /// When the last request ended.
    ended: u64,
}

/// What came of a setting. Times are milliseconds.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) setting: String,
    /// Requests a second.
    pub(crate) asked_per_second: f64,
    /// Requests a second that were answered within the objective, and their share of all.
    pub(crate) good_per_second: f64,
    pub(crate) good_share: f64,
    pub(crate) tokens_per_second: f64,
    /// From asking to the first token: p50, p95, p99.
    pub(crate) first_ms: [f64; 3],
    /// From each token to the next: p50, p99.
    pub(crate) between_ms: [f64; 2],
    pub(crate) refused: u64,
    pub(crate) left: u64,
    pub(crate) late: u64,
    pub(crate) preemptions: u64,
    /// Tokens of prompts that were found in the cache, of all tokens of prompts that were started.
    pub(crate) cached_share: f64,
    /// Jain's index over the tenants' mean slowdowns: 1 where all are equal.
    pub(crate) jain: Option<f64>,
    /// The largest of these over the smallest.
    pub(crate) worst: Option<f64>,
    /// Mean slowdown of each stream: the time that a request took over the time that it would have taken alone.
    pub(crate) slowdowns: Vec<Option<f64>>,
    /// Sequences of a step on average.
    pub(crate) batch: f64,
    /// The share of the time in which the device computed.
    pub(crate) busy_share: f64,
    pub(crate) steps: u64,
    /// That were simulated.
    pub(crate) seconds: f64,
}

impl Tally {
    pub(crate) fn new(objective: Objective, streams: usize, tenants: usize) -> Tally {
        Tally {
            objective,
            asked: 0,
            refused: 0,
            left: 0,
            late: 0,
            answered: 0,
            good: 0,
            tokens: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            first: Histogram::default(),
            between: Histogram::default(),
            by_tenant: vec![Mean::default(); tenants],
            by_stream: vec![Mean::default(); streams],
            steps: 0,
            chunks: 0,
            busy: 0,
            ended: 0,
        }
    }

    /// A step of so many chunks, which takes so long.
    pub(crate) fn step(&mut self, chunks: usize, takes: u64) {
        self.steps += 1;
        self.chunks += chunks as u64;
        self.busy += takes;
    }

    /// A request left the queue.
    pub(crate) fn started(&mut self, ask: &Ask, cached_tokens: u32) {
        self.prompt_tokens += u64::from(ask.prompt);
        self.cached_tokens += u64::from(cached_tokens);
    }

    /// A request has one more token.
    pub(crate) fn token(&mut self, live: &mut Live, now: u64) {
        if live.tokens == 0 {
            live.first = now;
            self.first.add(now - live.ask.arrived);
        } else {
            self.between.add(now - live.last);
        }
        live.last = now;
        live.tokens += 1;
        self.tokens += 1;
    }

    /// A request has its whole answer, for which it would have needed so many nanoseconds alone.
    pub(crate) fn answered(&mut self, live: &Live, alone: f64) {
        let Live { ask, tokens, first, last } = live;
        self.answered += 1;
        let slowdown = (last - ask.arrived) as f64 / alone;
        self.by_tenant[ask.tenant].add(slowdown);
        self.by_stream[ask.stream].add(slowdown);
        let to_first = (first - ask.arrived) as f64 / 1e9;
        let between = (last - first) as f64 / 1e9 / f64::from(tokens.saturating_sub(1).max(1));
        self.good += u64::from(to_first <= self.objective.first && between <= self.objective.between);
    }

    /// A request is over, for whatever reason.
    pub(crate) fn ended(&mut self, now: u64) {
        self.ended = self.ended.max(now);
    }

    /// The report of a run.
    pub(crate) fn row(&self, setting: &str, counters: &Counters) -> Row {
        let seconds = (self.ended as f64 / 1e9).max(f64::MIN_POSITIVE);
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let ms = |times: &Histogram, quantile| times.quantile(quantile) as f64 / 1e6;
        let tenants: Vec<f64> = self.by_tenant.iter().filter_map(|mean| mean.value()).collect();
        let (least, most) = tenants.iter().fold((f64::MAX, 0.0_f64), |(a, b), &value| (a.min(value), b.max(value)));
        Row {
            setting: setting.into(),
            asked_per_second: self.asked as f64 / seconds,
            good_per_second: self.good as f64 / seconds,
            good_share: share(self.good, self.asked),
            tokens_per_second: self.tokens as f64 / seconds,
            first_ms: [0.5, 0.95, 0.99].map(|quantile| ms(&self.first, quantile)),
            between_ms: [0.5, 0.99].map(|quantile| ms(&self.between, quantile)),
            refused: self.refused,
            left: self.left,
            late: self.late,
            preemptions: counters.preemptions,
            cached_share: share(self.cached_tokens, self.prompt_tokens),
            jain: jain(&tenants),
            worst: (!tenants.is_empty()).then(|| most / least),
            slowdowns: self.by_stream.iter().map(|mean| mean.value()).collect(),
            batch: share(self.chunks, self.steps),
            busy_share: self.busy as f64 / 1e9 / seconds,
            steps: self.steps,
            seconds,
        }
    }
}

/// Jain's index of fairness: 1 where all have the same, `1 / n` where one of `n` has everything.
fn jain(values: &[f64]) -> Option<f64> {
    let (sum, squares) =
        values.iter().fold((0.0_f64, 0.0_f64), |(sum, squares), value| (sum + value, squares + value * value));
    (squares > 0.0).then(|| sum * sum / (values.len() as f64 * squares))
}

#[cfg(test)]
mod tests {
    use super::jain;

    #[test]
    fn the_index_is_1_where_all_are_equal_and_small_where_one_has_it_all() {
        let near = |values: &[f64], index: f64| assert!((jain(values).unwrap() - index).abs() < 1e-12, "{values:?}");
        near(&[2.0, 2.0, 2.0], 1.0);
        near(&[0.0, 0.0, 5.0, 0.0], 0.25);
        near(&[1.0, 3.0], 0.8);
        assert_eq!(jain(&[]), None);
    }
}
