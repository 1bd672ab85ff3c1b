//! The CPU executor: every family against the goldens of the reference, and what must not depend on how requests were
//! put into steps.

use crate::driven::{Outcome, Setting, drive, log_probability, prompt_logprobs, requests};
use crate::parity::{cases, goldens};
use backends::llm::cpu::{CacheType, CpuExecutor, Options, Shape};
use backends::llm::engine::Overlap;
use backends::llm::sampling::Parameters;
use backends::llm::scheduler::Counters;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::dummy::{Dummy, Init};
use backends::llm::weights::{Format, Weights};
use std::sync::Arc;

/// In units of the logits' standard deviation. The reference is held to 5e-5; kernels add up in another order.
const TOLERANCE: f64 = 1e-4;

fn options(blocks: u32, block_len: u32, context: usize) -> Options {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let cache = Shape { blocks, block_len, storage: CacheType::F32 };
    Options { cache, context, slots: 8, end_tokens: Vec::new(), pool, poison: true }
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

/// All requests through one engine.
fn run(
    spec: &DecoderSpec,
    weights: &dyn Weights,
    variant: Variant,
    requests: &[(Vec<u32>, Parameters)],
) -> (Vec<Outcome>, Counters) {
    let Variant { blocks, block_len, chunk, running, cache, overlap } = variant;
    let executor = CpuExecutor::load(spec.clone(), weights, options(blocks, block_len, 512)).unwrap();
    let setting = Setting { blocks, block_len, chunk, running, cache, overlap, most: 24, vocab: spec.vocab as u32 };
    drive(executor, setting, requests)
}

#[test]
fn answers_do_not_depend_on_how_steps_were_made() {
    for case in ["qwen3", "gemma3", "gpt_oss"] {
        let spec = goldens(case)[0].spec();
        for format in [Format::F32, Format::Bf16] {
            let weights = Dummy::new(&spec, format, Init::FanIn, 3).unwrap();
            let requests = requests(spec.vocab as u32);
            let (alone, _) = run(&spec, &weights, PLAIN, &requests);
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
                let (outcomes, counters) = run(&spec, &weights, variant, &requests);
                assert!(outcomes == alone, "{case} {format:?} {name}: {outcomes:?} is not {alone:?}");
                assert_eq!(counters.prefix_hits > 0, variant.cache, "{name}: {counters:?}");
                assert_eq!(counters.preemptions > 0, name == "preempted", "{name}: {counters:?}");
            }
        }
    }
}
