//! The CPU executor: every family against the goldens of the reference, and what must not depend on how requests were
//! put into steps.

use crate::driven::{Outcome, Setting, are_whole, drive, log_probability, prompt_logprobs, requests};
use crate::parity::{cases, goldens};
use backends::error::LoadError;
use backends::llm::cpu::{CacheType, CpuExecutor, Options, Shape};
use backends::llm::engine::Overlap;
use backends::llm::executor::{Executor, Failure};
use backends::llm::plan::{Chunk, Fill, Input, Plan};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::scheduler::Counters;
use backends::llm::sequence::{GroupId, SequenceId};
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::dummy::{Dummy, Init};
use backends::llm::weights::{Format, Info, Weights};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// In units of the logits' standard deviation. The reference is held to 5e-5; kernels add up in another order.
const TOLERANCE: f64 = 1e-4;

pub(super) fn options(blocks: u32, block_len: u32, context: usize) -> Options {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let cache = Shape { blocks, block_len, storage: CacheType::F32 };
    Options { cache, context, slots: 8, pool, poison: true }
}

#[test]
fn every_family_equals_the_reference() {
    let mut failed = Vec::new();
    for golden in cases().iter().flat_map(|case| goldens(case)) {
        let spec = golden.spec();
        let vocab = spec.vocab;
        let weights: Arc<dyn Weights> = Arc::new(golden.weights(&spec));
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
pub(super) struct Variant {
    pub(super) blocks: u32,
    pub(super) block_len: u32,
    pub(super) chunk: u32,
    pub(super) running: u32,
    pub(super) cache: bool,
    pub(super) overlap: Overlap,
    pub(super) storage: CacheType,
}

pub(super) const PLAIN: Variant = Variant {
    blocks: 64,
    block_len: 32,
    chunk: 512,
    running: 1,
    cache: false,
    overlap: Overlap::InStep,
    storage: CacheType::F32,
};

/// All requests through one engine.
pub(super) fn run(
    spec: &DecoderSpec,
    weights: &Arc<dyn Weights>,
    variant: Variant,
    requests: &[(Vec<u32>, Parameters)],
) -> (Vec<Outcome>, Counters) {
    let Variant { blocks, block_len, chunk, running, cache, overlap, storage } = variant;
    let mut options = options(blocks, block_len, 512);
    options.cache.storage = storage;
    let executor = CpuExecutor::load(spec.clone(), weights, options).unwrap();
    let setting = Setting { blocks, block_len, chunk, running, cache, overlap, most: 24, vocab: spec.vocab as u32 };
    drive(executor, setting, requests)
}

#[test]
fn answers_do_not_depend_on_how_steps_were_made() {
    for case in ["qwen3", "gemma3", "gpt_oss"] {
        let spec = goldens(case)[0].spec();
        // With 16 bits as they are served.
        for (format, storage) in [(Format::F32, CacheType::F32), (Format::Bf16, CacheType::F16)] {
            let weights: Arc<dyn Weights> = Arc::new(Dummy::new(&spec, format, Init::FanIn, 3).unwrap());
            let requests = requests(spec.vocab as u32);
            let plain = Variant { storage, ..PLAIN };
            let (alone, _) = run(&spec, &weights, plain, &requests);
            assert!(are_whole(&alone, &requests, 24), "{case}");
            let variants = [
                ("batched", Variant { running: 5, ..plain }),
                ("one step ahead", Variant { running: 5, overlap: Overlap::Ahead, ..plain }),
                ("in chunks", Variant { running: 3, chunk: 8, ..plain }),
                ("with a prefix cache", Variant { running: 2, cache: true, ..plain }),
                ("blocks of 16", Variant { running: 5, block_len: 16, blocks: 128, ..plain }),
                ("blocks of 64", Variant { running: 5, block_len: 64, ..plain }),
                ("preempted", Variant { running: 5, blocks: 11, block_len: 16, cache: true, ..plain }),
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

/// Weights that the system keeps in memory, for as long as they are there.
struct InMemory {
    weights: Dummy,
    gone: AtomicBool,
    rewritten: AtomicBool,
}

impl InMemory {
    fn new(weights: Dummy) -> Arc<Self> {
        Arc::new(InMemory { weights, gone: AtomicBool::new(false), rewritten: AtomicBool::new(false) })
    }

    fn refuse(&self, reason: &str) -> LoadError {
        LoadError::new(self.file(), reason)
    }
}

impl Weights for InMemory {
    fn file(&self) -> &Path {
        self.weights.file()
    }
    fn names(&self) -> Vec<&str> {
        self.weights.names()
    }
    fn info(&self, name: &str) -> Option<&Info> {
        self.weights.info(name)
    }
    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        match self.gone.load(Ordering::Relaxed) {
            true => Err(self.refuse("was cut short")),
            false => self.weights.read(name, range),
        }
    }
    fn fetch(&self, _name: &str, _range: Range<usize>) -> bool {
        true
    }
    fn check_unchanged(&self) -> Result<(), LoadError> {
        match self.rewritten.load(Ordering::Relaxed) {
            true => Err(self.refuse("was written to")),
            false => Ok(()),
        }
    }
}

/// Before weights are packed, while they are, and after that: the same bits.
#[test]
fn answers_do_not_depend_on_when_weights_are_packed() {
    for case in ["qwen3", "gemma3", "gpt_oss"] {
        let spec = goldens(case)[0].spec();
        let tokens: Vec<u32> = (0..40).map(|at| at * 17 % spec.vocab as u32).collect();
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let dummy = || Dummy::new(&spec, format, Init::FanIn, 3).unwrap();
            let load =
                |weights: Arc<dyn Weights>| CpuExecutor::load(spec.clone(), &weights, options(8, 16, 64)).unwrap();
            let told = |executor: &mut CpuExecutor, chunk| {
                let told = prompt_logprobs(executor, &tokens, chunk, 16);
                told.iter().map(|told| (told.rank, told.logprob.to_bits())).collect::<Vec<_>>()
            };
            let expected = told(&mut load(Arc::new(dummy())), 7);
            for chunk in [1, 7, tokens.len()] {
                // The first step of the first of them finds nothing packed, the others find all.
                assert_eq!(told(&mut load(InMemory::new(dummy())), chunk), expected, "{case} {format:?} {chunk}");
            }
            let weights = InMemory::new(dummy());
            let mut executor = load(weights.clone());
            while executor.prepare().unwrap() {}
            weights.gone.store(true, Ordering::Relaxed);
            assert_eq!(told(&mut executor, 7), expected, "{case} {format:?}");
            assert_eq!(Arc::strong_count(&weights), 1, "{case}: what is packed holds no file");
        }
    }
}

#[test]
fn weights_that_go_or_change_before_they_are_packed_end_their_model() {
    let spec = goldens("qwen3")[0].spec();
    let fresh = || {
        let weights = InMemory::new(Dummy::new(&spec, Format::F32, Init::FanIn, 3).unwrap());
        let executor = CpuExecutor::load(spec.clone(), &(weights.clone() as Arc<dyn Weights>), options(8, 16, 64));
        (weights, executor.unwrap())
    };
    let chunk = Chunk {
        sequence: SequenceId { group: GroupId(1), copy: 0 },
        slot: 0,
        fill: Some(Fill { prompt: [1, 2].into(), output: Vec::new() }),
        start: 0,
        length: 2,
        input: Input::Known(vec![1, 2]),
        blocks: Arc::new(vec![0]),
        sample: true,
        sampling: Arc::new(Sampling::new(Parameters::default()).unwrap()),
        prompt_logprobs: 0,
    };
    let plan = Plan { step: 1, chunks: vec![chunk], stale: Vec::new(), preempted: Vec::new() };

    let (weights, mut executor) = fresh();
    weights.gone.store(true, Ordering::Relaxed);
    for failure in [executor.launch(&plan).unwrap_err(), executor.prepare().unwrap_err()] {
        assert!(matches!(&failure, Failure::Weights(what) if what.contains("was cut short")), "{failure}");
    }

    let (weights, mut executor) = fresh();
    weights.rewritten.store(true, Ordering::Relaxed);
    let failure = executor.prepare().unwrap_err();
    assert!(matches!(&failure, Failure::Weights(what) if what.contains("was written to")), "{failure}");
    assert!(matches!(executor.launch(&plan), Err(Failure::Weights(_))), "what was packed of two models");

    let loaded = CpuExecutor::load(spec.clone(), &(weights as Arc<dyn Weights>), options(8, 16, 64));
    assert!(loaded.unwrap_err().to_string().contains("was written to"));
}
