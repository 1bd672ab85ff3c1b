//! What the tests of the executors share: a prompt told token by token, and requests driven through an engine to their
//! end. No device is known here.

use backends::llm::blocks::{BlockPool, PrefixKey, Salt};
use backends::llm::engine::{Engine, Overlap};
use backends::llm::executor::{Executor, Masks};
use backends::llm::plan::{Chunk, Fill, Input, Logprobs, Plan};
use backends::llm::request::{Draft, Limits, Request};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::scheduler::{Counters, Scheduler, Settings};
use backends::llm::sequence::{Event, GroupId, SequenceId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Log probabilities of each token after the first, from chunks of so many tokens whose blocks lie in no order.
pub(super) fn prompt_logprobs(
    executor: &mut dyn Executor,
    tokens: &[u32],
    chunk: usize,
    block_len: usize,
) -> Vec<Logprobs> {
    let sampling = Parameters { prompt_logprobs: Some(3), ..Parameters::default() };
    let sampling = Arc::new(Sampling::new(sampling).unwrap());
    let blocks: Arc<Vec<u32>> = Arc::new((0..tokens.len().div_ceil(block_len) as u32).rev().collect());
    let mut told = Vec::new();
    for (step, part) in tokens.chunks(chunk).enumerate() {
        let start = step * chunk;
        let fill = (step == 0).then(|| Fill { prompt: tokens.into(), output: Vec::new() });
        let chunk = Chunk {
            sequence: SequenceId { group: GroupId(1), copy: 0 },
            slot: 3,
            fill,
            start: start as u32,
            length: part.len() as u32,
            input: Input::Known(part.to_vec()),
            blocks: blocks.clone(),
            sample: false,
            sampling: sampling.clone(),
            prompt_logprobs: (start + part.len()).min(tokens.len() - 1) as u32 - start as u32,
        };
        let plan = Plan { step: step as u64 + 1, chunks: vec![chunk], stale: Vec::new(), preempted: Vec::new() };
        let ticket = executor.launch(&plan).unwrap();
        executor.sample(&ticket, &Masks::default()).unwrap();
        told.extend(executor.collect(ticket).unwrap().remove(0).prompt_logprobs);
    }
    told
}

/// The log probability of `token` after a position with these logits.
pub(super) fn log_probability(logits: &[f32], token: u32) -> f64 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - best).exp()).sum();
    f64::from(logits[token as usize] - best) - sum.ln()
}

/// How far what was told of `tokens`, from the second on, is from the logits `wanted` of all positions: the root of the mean
/// square, in standard deviations of the logits.
pub(super) fn distance(told: &[Logprobs], tokens: &[u32], wanted: &[f32]) -> f64 {
    assert_eq!(told.len(), tokens.len() - 1);
    let mean = wanted.iter().map(|x| f64::from(*x)).sum::<f64>() / wanted.len() as f64;
    let variance = wanted.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / wanted.len() as f64;
    let next = tokens[1..].iter().zip(wanted.chunks_exact(wanted.len() / tokens.len()));
    let errors = told
        .iter()
        .zip(next)
        .map(|(told, (token, logits))| (f64::from(told.logprob) - log_probability(logits, *token)).powi(2));
    (errors.sum::<f64>() / told.len() as f64 / variance).sqrt()
}

/// How an engine is set up around an executor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) blocks: u32,
    pub(super) block_len: u32,
    pub(super) chunk: u32,
    pub(super) running: u32,
    pub(super) cache: bool,
    pub(super) overlap: Overlap,
    /// Tokens of each answer.
    pub(super) most: u32,
    pub(super) vocab: u32,
}

/// What came of a request: of its prompt, where that is told, ranks with bits of probabilities; its tokens with the same.
pub(super) type Outcome = Vec<(u32, u32)>;

/// All requests through one engine; and what it has counted.
pub(super) fn drive(
    executor: impl Executor,
    setting: Setting,
    requests: &[(Vec<u32>, Parameters)],
) -> (Vec<Outcome>, Counters) {
    let settings = Settings {
        token_budget: setting.chunk.max(8),
        chunk_tokens: setting.chunk,
        max_running: setting.running,
        max_waiting: 256,
        max_waiting_tokens: 1 << 20,
        context: 512,
        watermark: 0,
        ageing: Duration::from_secs(1),
        prefix_cache: setting.cache,
        end_tokens: Vec::new().into(),
    };
    let pool = BlockPool::new(setting.blocks, setting.block_len, PrefixKey::new([7; 16]));
    let mut engine = Engine::new(Scheduler::new(settings, pool).unwrap(), executor, setting.overlap);
    let limits = Limits { prompt_tokens: 512, copies: 4, output_tokens: 512, vocabulary: setting.vocab };
    let (now, mut groups, mut outcomes) = (Instant::now(), Vec::new(), BTreeMap::<GroupId, Outcome>::new());
    for (prompt, parameters) in requests {
        let sampling = Arc::new(Sampling::new(parameters.clone()).unwrap());
        let draft = Draft::new(prompt.clone(), setting.most, sampling);
        let draft = Draft { cache: setting.cache, salt: Salt::default(), ..draft };
        groups.push(engine.admit(now, Request::new(draft, &limits).unwrap()).unwrap());
    }
    while !engine.idle() {
        for event in engine.step(now) {
            match event {
                Event::Token { sequence, token, logprobs } => {
                    let bits = logprobs.map_or(0, |told| told.logprob.to_bits());
                    outcomes.entry(sequence.group).or_default().push((token, bits));
                }
                Event::PromptLogprobs { sequence, logprobs, .. } => {
                    let told = logprobs.iter().map(|told| (told.rank, told.logprob.to_bits()));
                    outcomes.entry(sequence.group).or_default().extend(told);
                }
                Event::Failed { reason, .. } => panic!("{setting:?}: {reason}"),
                _ => {}
            }
        }
    }
    // Where steps cannot be captured they are launched as ever, and all comparisons would be of the same with itself.
    assert_eq!(engine.remark(), None, "{setting:?}");
    let outcomes = groups.iter().map(|group| outcomes.remove(group).unwrap_or_default()).collect();
    (outcomes, engine.counters())
}

/// Has every request all of its answer, of so many tokens, and what it asked to be told of its prompt?
pub(super) fn are_whole(outcomes: &[Outcome], requests: &[(Vec<u32>, Parameters)], most: usize) -> bool {
    let len = |(prompt, parameters): &(Vec<u32>, Parameters)| {
        most + parameters.prompt_logprobs.map_or(0, |_| prompt.len() - 1)
    };
    outcomes.len() == requests.len() && outcomes.iter().zip(requests).all(|(got, asked)| got.len() == len(asked))
}

/// Prompts that share beginnings, some greedy and some drawn.
pub(super) fn requests(vocab: u32) -> Vec<(Vec<u32>, Parameters)> {
    let token =
        |seed: u32, at: u32| (seed.wrapping_mul(2_654_435_761) ^ at.wrapping_mul(40_503)).wrapping_mul(97) % vocab;
    let prompt = |seed: u32, shared: u32, own: u32| {
        (0..shared).map(|at| token(1, at)).chain((0..own).map(|at| token(seed, at))).collect::<Vec<u32>>()
    };
    let greedy = Parameters { logprobs: Some(2), ..Parameters::default() };
    let drawn = Parameters { temperature: 1.0, top_p: 0.9, seed: 5, frequency_penalty: 0.5, ..greedy.clone() };
    let told = Parameters { prompt_logprobs: Some(2), ..greedy.clone() };
    let typical = Parameters { temperature: 0.8, typical_p: 0.9, top_k: 40, seed: 6, ..greedy.clone() };
    vec![
        (prompt(2, 70, 3), greedy.clone()),
        (prompt(3, 70, 40), drawn.clone()),
        (prompt(4, 0, 5), greedy.clone()),
        (prompt(5, 64, 0), drawn),
        (prompt(6, 35, 9), typical),
        (prompt(7, 35, 60), told),
        (prompt(8, 35, 2), greedy),
    ]
}
