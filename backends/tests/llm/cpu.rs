//! The CPU executor: every family against the goldens of the reference, and what must not depend on how requests were
//! put into steps.

use crate::parity::{cases, goldens};
use backends::llm::blocks::{BlockPool, PrefixKey, Salt};
use backends::llm::cpu::{CacheType, CpuExecutor, Options, Shape};
use backends::llm::engine::{Engine, Overlap};
use backends::llm::executor::{Executor, Masks};
use backends::llm::plan::{Chunk, Fill, Input, Logprobs, Plan};
use backends::llm::request::{Draft, Limits, Request};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::scheduler::{Scheduler, Settings};
use backends::llm::sequence::{Event, GroupId, SequenceId};
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::dummy::{Dummy, Init};
use backends::llm::weights::{Format, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// In units of the logits' standard deviation. The reference is held to 5e-5; kernels add up in another order.
const TOLERANCE: f64 = 1e-4;

fn options(blocks: u32, block_len: u32, context: usize) -> Options {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let cache = Shape { blocks, block_len, storage: CacheType::F32 };
    Options { cache, context, slots: 8, end_tokens: Vec::new(), pool, poison: true }
}

/// Log probabilities of each token after the first, from chunks of so many tokens whose blocks lie in no order.
fn prompt_logprobs(executor: &mut CpuExecutor, tokens: &[u32], chunk: usize, block_len: u32) -> Vec<Logprobs> {
    let sampling = Parameters { prompt_logprobs: Some(3), ..Parameters::default() };
    let sampling = Arc::new(Sampling::new(sampling).unwrap());
    let blocks: Arc<Vec<u32>> = Arc::new((0..tokens.len().div_ceil(block_len as usize) as u32).rev().collect());
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
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - best).exp()).sum();
    f64::from(logits[token as usize] - best) - sum.ln()
}

#[test]
fn every_family_equals_the_reference() {
    let mut failed = Vec::new();
    for golden in cases().iter().flat_map(|case| goldens(case)) {
        let spec = golden.spec();
        let vocab = spec.vocab;
        let weights = golden.weights(&spec);
        let mut executor = CpuExecutor::load(spec, &weights, options(8, 16, golden.context)).unwrap();
        let count = golden.logits.len() as f64;
        let mean = golden.logits.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let deviation = (golden.logits.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count).sqrt();
        for chunk in [golden.tokens.len(), 7, 1] {
            let told = prompt_logprobs(&mut executor, &golden.tokens, chunk, 16);
            assert_eq!(told.len(), golden.tokens.len() - 1);
            let next = golden.tokens[1..].iter().zip(golden.logits.chunks_exact(vocab));
            let error = told
                .iter()
                .zip(next)
                .map(|(told, (token, logits))| (f64::from(told.logprob) - log_probability(logits, *token)).abs())
                .fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x) });
            println!("{:24} chunks of {chunk:3} {:.1e}", golden.name, error / deviation);
            if error / deviation >= TOLERANCE {
                failed.push((golden.name.clone(), chunk, error / deviation));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// How an engine is set up.
#[derive(Clone, Copy, Debug)]
struct Variant {
    blocks: u32,
    block_len: u32,
    chunk: u32,
    running: u32,
    cache: bool,
    overlap: Overlap,
}

const PLAIN: Variant =
    Variant { blocks: 64, block_len: 32, chunk: 512, running: 1, cache: false, overlap: Overlap::InStep };

/// What came of a request: its tokens, with bits of their probabilities.
type Outcome = Vec<(u32, u32)>;

/// All requests through one engine.
fn run(
    spec: &DecoderSpec,
    weights: &dyn Weights,
    variant: Variant,
    requests: &[(Vec<u32>, Parameters)],
) -> Vec<Outcome> {
    let executor = CpuExecutor::load(spec.clone(), weights, options(variant.blocks, variant.block_len, 512)).unwrap();
    let settings = Settings {
        token_budget: variant.chunk.max(8),
        chunk_tokens: variant.chunk,
        max_running: variant.running,
        max_waiting: 64,
        max_waiting_tokens: 1 << 20,
        context: 512,
        watermark: 0,
        ageing: Duration::from_secs(1),
        prefix_cache: variant.cache,
        end_tokens: Vec::new().into(),
    };
    let pool = BlockPool::new(variant.blocks, variant.block_len, PrefixKey::new([7; 16]));
    let mut engine = Engine::new(Scheduler::new(settings, pool).unwrap(), executor, variant.overlap);
    let limits = Limits { prompt_tokens: 512, copies: 4, output_tokens: 512, vocabulary: spec.vocab as u32 };
    let (now, mut groups, mut outcomes) = (Instant::now(), Vec::new(), BTreeMap::<GroupId, Outcome>::new());
    for (prompt, parameters) in requests {
        let sampling = Arc::new(Sampling::new(parameters.clone()).unwrap());
        let draft = Draft { cache: variant.cache, salt: Salt::default(), ..Draft::new(prompt.clone(), 24, sampling) };
        groups.push(engine.admit(now, Request::new(draft, &limits).unwrap()).unwrap());
    }
    while !engine.idle() {
        for event in engine.step(now) {
            match event {
                Event::Token { sequence, token, logprobs } => {
                    let bits = logprobs.map_or(0, |told| told.logprob.to_bits());
                    outcomes.entry(sequence.group).or_default().push((token, bits));
                }
                Event::Failed { reason, .. } => panic!("{variant:?}: {reason}"),
                _ => {}
            }
        }
    }
    groups.iter().map(|group| outcomes.remove(group).unwrap_or_default()).collect()
}

/// Prompts that share beginnings, some greedy and some drawn.
fn requests(vocab: u32) -> Vec<(Vec<u32>, Parameters)> {
    let token =
        |seed: u32, at: u32| (seed.wrapping_mul(2_654_435_761) ^ at.wrapping_mul(40_503)).wrapping_mul(97) % vocab;
    let prompt = |seed: u32, shared: u32, own: u32| {
        (0..shared).map(|at| token(1, at)).chain((0..own).map(|at| token(seed, at))).collect::<Vec<u32>>()
    };
    let greedy = Parameters { logprobs: Some(2), ..Parameters::default() };
    let drawn = Parameters { temperature: 1.0, top_p: 0.9, seed: 5, frequency_penalty: 0.5, ..greedy.clone() };
    vec![
        (prompt(2, 70, 3), greedy.clone()),
        (prompt(3, 70, 40), drawn.clone()),
        (prompt(4, 0, 5), greedy.clone()),
        (prompt(5, 64, 0), drawn),
        (prompt(6, 35, 90), greedy),
    ]
}

#[test]
fn answers_do_not_depend_on_how_steps_were_made() {
    for case in ["qwen3", "gemma3", "gpt_oss"] {
        let spec = goldens(case)[0].spec();
        for format in [Format::F32, Format::Bf16] {
            let weights = Dummy::new(&spec, format, Init::FanIn, 3).unwrap();
            let requests = requests(spec.vocab as u32);
            let alone = run(&spec, &weights, PLAIN, &requests);
            assert!(alone.iter().all(|outcome| outcome.len() == 24), "{case}");
            let variants = [
                ("batched", Variant { running: 5, ..PLAIN }),
                ("one step ahead", Variant { running: 5, overlap: Overlap::Ahead, ..PLAIN }),
                ("in chunks", Variant { running: 3, chunk: 8, ..PLAIN }),
                ("with a prefix cache", Variant { running: 2, cache: true, ..PLAIN }),
                ("blocks of 16", Variant { running: 5, block_len: 16, blocks: 128, ..PLAIN }),
                ("blocks of 64", Variant { running: 5, block_len: 64, ..PLAIN }),
                ("preempted", Variant { running: 5, blocks: 11, block_len: 16, cache: true, ..PLAIN }),
            ];
            for (name, variant) in variants {
                let outcomes = run(&spec, &weights, variant, &requests);
                assert!(outcomes == alone, "{case} {format:?} {name}: {outcomes:?} is not {alone:?}");
            }
        }
    }
}
