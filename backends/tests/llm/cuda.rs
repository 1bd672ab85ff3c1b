//! The executor of GPUs, on a GPU where there is one, else in the emulator: every family against the goldens of the
//! reference, as near as 16 bits come; and what must not depend on how requests were put into steps.

use crate::driven::{self, Outcome, Setting, are_whole, drive, log_probability, requests};
use crate::parity::{Golden, cases, goldens};
use crate::stored::Read;
use backends::llm::cuda::{CacheType, CudaExecutor, Options, lacks};
use backends::llm::engine::Overlap;
use backends::llm::executor::{Executor, Failure, Masks};
use backends::llm::plan::{Chunk, Fill, Input, Logprobs, Plan};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::scheduler::Counters;
use backends::llm::sequence::{GroupId, SequenceId};
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::dummy::{Dummy, Init};
use backends::llm::weights::{Format, Weights};
use kernels::cuda::Device;
use kernels::cuda::pairs::PAIRS;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Root of the mean squared error, in units of the logits' standard deviation. The reference implementations' own bf16
/// errs by 0.007 to 0.016; a wrong rotation, window or norm by 0.05 and more.
const TOLERANCE: f64 = 0.02;
/// Of a mixture of experts one token in so many may be off by more. Where two logits of a router are nearly equal, 16
/// bits choose another expert than 32 do, and that token's probabilities are far off: of gpt_oss's 120 choices, those
/// with margins of 0.001, 0.005 and 0.008 (half of all have more than 0.4) err by 0.07 to 0.15. What is wrong shows
/// everywhere.
const FLIPPED: usize = 10;
/// The same with keys and values of eight bits.
const EIGHT_BITS: f64 = 0.05;
const BLOCK: usize = backends::llm::blocks::BLOCK as usize;

pub(super) fn device() -> Box<dyn Device> {
    device_by(PAIRS, false)
}

/// The same, with products by pairs of blocks or without. An emulator has what Hopper has for these, and where `hopper`.
#[cfg_attr(not(feature = "emulator"), expect(unused_variables, reason = "a GPU is what it is"))]
pub(super) fn device_by(pairs: bool, hopper: bool) -> Box<dyn Device> {
    #[cfg(feature = "cuda")]
    if let kernels::cuda::Driver::Gpus(names) = kernels::cuda::driver()
        && !names.is_empty()
    {
        // One that is never let go: what the driver had to do for the first one it need not do again.
        static HELD: std::sync::OnceLock<()> = std::sync::OnceLock::new();
        HELD.get_or_init(|| std::mem::forget(kernels::cuda::Gpu::open(0).unwrap()));
        let mut gpu = kernels::cuda::Gpu::open(0).unwrap();
        gpu.multiply_by_pairs(pairs);
        return Box::new(gpu);
    }
    #[cfg(feature = "emulator")]
    return Box::new(match pairs || hopper {
        true => kernels::cuda::Emulator::with_units(kernels::cuda::Units::Warpgroups { processors: 3, pairs }),
        false => kernels::cuda::Emulator::new(),
    });
    #[cfg(not(feature = "emulator"))]
    panic!("there is no GPU, and the emulator is not built in");
}

pub(super) fn options(blocks: u32, context: usize) -> Options {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let (graphs, deterministic, poison) = (true, true, true);
    let cache = CacheType::Bf16;
    let (slots, step_rows, short_rows) = (8, 512, 0);
    Options { blocks, cache, context, slots, step_rows, pool, graphs, deterministic, short_rows, poison }
}

/// Log probabilities of each token after the first: see [`driven::prompt_logprobs`].
pub(super) fn prompt_logprobs(executor: &mut dyn Executor, tokens: &[u32], chunk: usize) -> Vec<Logprobs> {
    driven::prompt_logprobs(executor, tokens, chunk, BLOCK)
}

/// How far what was told of a prompt is from the reference: see [`TOLERANCE`].
fn distance(golden: &Golden, told: &[Logprobs], vocab: usize) -> f64 {
    assert_eq!(told.len(), golden.tokens.len() - 1);
    let count = golden.logits.len() as f64;
    let mean = golden.logits.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let deviation = (golden.logits.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count).sqrt();
    let next = golden.tokens[1..].iter().zip(golden.logits.chunks_exact(vocab));
    let mut squares: Vec<f64> = told
        .iter()
        .zip(next)
        .map(|(told, (token, logits))| (f64::from(told.logprob) - log_probability(logits, *token)).powi(2))
        .collect();
    // The largest first, and what is no number last: it is left in.
    squares.sort_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(b.total_cmp(a)));
    let flipped = if golden.spec().mixture.is_some() { squares.len() / FLIPPED } else { 0 };
    let counted = &squares[flipped..];
    (counted.iter().sum::<f64>() / counted.len() as f64).sqrt() / deviation
}

/// Of a prompt in chunks of these lengths, those that are not near the reference: name, chunk and distance.
pub(super) fn too_far(golden: &Golden, executor: &mut dyn Executor, chunks: &[usize]) -> Vec<(String, usize, f64)> {
    let mut failed = Vec::new();
    for &chunk in chunks {
        let told = prompt_logprobs(executor, &golden.tokens, chunk);
        let error = distance(golden, &told, golden.spec().vocab);
        println!("{:24} chunks of {chunk:3} {error:.4}", golden.name);
        if error.is_nan() || error >= TOLERANCE {
            failed.push((golden.name.clone(), chunk, error));
        }
    }
    failed
}

#[test]
fn every_family_is_near_the_reference() {
    let (mut failed, mut refused) = (Vec::new(), BTreeSet::new());
    for golden in cases().iter().flat_map(|case| goldens(case)) {
        let spec = golden.spec();
        let weights = golden.weights(&spec);
        if let Some(reason) = lacks(&spec) {
            let error = CudaExecutor::load(spec, &weights, device(), options(8, golden.context)).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
            refused.insert(golden.name.split(' ').next().unwrap().to_owned());
            continue;
        }
        // Chunks of one token take the kernel of decoding.
        let options = Options { deterministic: false, ..options(8, golden.context) };
        let mut executor = CudaExecutor::load(spec, &weights, device(), options).unwrap();
        failed.extend(too_far(&golden, &mut executor, &[golden.tokens.len(), 7, 1]));
    }
    assert!(failed.is_empty(), "{failed:?}");
    // A toy whose heads have 24 numbers; those of published models are multiples of 16.
    assert_eq!(refused, BTreeSet::from(["llama_linear".to_owned()]));
}

/// Keys and values of eight bits take half the memory, and are some three bits less accurate. They are what a prompt's
/// own rows read, too, so it may be cut as ever.
#[test]
fn a_cache_of_eight_bits_is_near_the_reference() {
    for case in ["llama3", "qwen3", "gemma3"] {
        let golden = goldens(case).remove(0);
        let (spec, context) = (golden.spec(), golden.context);
        let weights = golden.weights(&spec);
        let load = |cache| {
            let options = Options { cache, ..options(64, context) };
            CudaExecutor::load(spec.clone(), &weights, device(), options).unwrap()
        };
        let (mut narrow, wide) = (load(CacheType::Fp8), load(CacheType::Bf16));
        let cache = 2 * spec.layers.len() * 64 * BLOCK * spec.attention.kv_width();
        assert_eq!(wide.bytes() - narrow.bytes(), cache, "{case}");
        let whole = prompt_logprobs(&mut narrow, &golden.tokens, golden.tokens.len());
        let error = distance(&golden, &whole, spec.vocab);
        println!("{:24} {error:.4}", golden.name);
        assert!((TOLERANCE / 10.0..EIGHT_BITS).contains(&error), "{case}: {error}");
        for chunk in [6, 1] {
            assert_eq!(prompt_logprobs(&mut narrow, &golden.tokens, chunk), whole, "{case} in chunks of {chunk}");
        }
    }
}

/// How an engine is set up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    pub(super) running: u32,
    pub(super) overlap: Overlap,
    pub(super) graphs: bool,
    pub(super) chunk: u32,
    pub(super) cache: bool,
    pub(super) stored: CacheType,
    pub(super) deterministic: bool,
    pub(super) short_rows: usize,
    /// Are products by pairs of blocks?
    pub(super) pairs: bool,
    pub(super) blocks: u32,
    /// Tokens of each answer.
    pub(super) most: u32,
}

pub(super) const PLAIN: Variant = Variant {
    running: 1,
    overlap: Overlap::InStep,
    graphs: false,
    chunk: 512,
    cache: false,
    stored: CacheType::Bf16,
    deterministic: true,
    short_rows: 0,
    pairs: PAIRS,
    blocks: 64,
    most: 12,
};

/// All requests through one engine.
pub(super) fn run(
    spec: &DecoderSpec,
    weights: &dyn Weights,
    variant: Variant,
    requests: &[(Vec<u32>, Parameters)],
) -> Vec<Outcome> {
    counted(spec, weights, variant, requests).0
}

/// The same, and what the engine has counted.
fn counted(
    spec: &DecoderSpec,
    weights: &dyn Weights,
    variant: Variant,
    requests: &[(Vec<u32>, Parameters)],
) -> (Vec<Outcome>, Counters) {
    let Variant { running, overlap, graphs, chunk, cache, stored, deterministic, short_rows, pairs, blocks, most } =
        variant;
    let options = Options { graphs, cache: stored, deterministic, short_rows, ..options(blocks, 512) };
    let device = device_by(pairs, short_rows > 0);
    let executor = CudaExecutor::load(spec.clone(), weights, device, options).unwrap();
    let (block_len, vocab) = (BLOCK as u32, spec.vocab as u32);
    drive(executor, Setting { blocks, block_len, chunk, running, cache, overlap, most, vocab }, requests)
}

/// Bit for bit: batched is alone, ahead is in step, graphs are what was captured.
#[test]
fn answers_do_not_depend_on_how_steps_were_made() {
    let cases = [("qwen3", CacheType::Bf16), ("gemma3", CacheType::Bf16), ("qwen3", CacheType::Fp8)];
    for (case, stored) in cases.into_iter().chain([("qwen3_moe", CacheType::Bf16)]) {
        let plain = Variant { stored, ..PLAIN };
        let spec = goldens(case)[0].spec();
        let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
        let requests = requests(spec.vocab as u32);
        let alone = run(&spec, &weights, plain, &requests);
        assert!(are_whole(&alone, &requests, 12), "{case}");
        let variants = [
            ("batched", Variant { running: 5, ..plain }),
            ("as graphs", Variant { running: 5, graphs: true, ..plain }),
            ("one step ahead", Variant { running: 5, graphs: true, overlap: Overlap::Ahead, ..plain }),
            ("with a prefix cache", Variant { running: 2, graphs: true, cache: true, ..plain }),
        ];
        for (name, variant) in variants {
            let outcomes = run(&spec, &weights, variant, &requests);
            assert!(outcomes == alone, "{case} {name}: {outcomes:?} is not {alone:?}");
        }
    }
}

/// Prompts come in pieces of what other sequences leave of a step, down to one token.
#[test]
fn answers_do_not_depend_on_how_prompts_are_cut() {
    for case in ["qwen3", "gemma3"] {
        let spec = goldens(case)[0].spec();
        let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
        let requests = requests(spec.vocab as u32);
        let plain = Variant { most: 5, ..PLAIN };
        let alone = run(&spec, &weights, plain, &requests[..4]);
        for (running, chunk) in [(2, 7), (4, 1)] {
            let cut = Variant { running, chunk, graphs: true, ..plain };
            let outcomes = run(&spec, &weights, cut, &requests[..4]);
            assert!(outcomes == alone, "{case} in chunks of {chunk}: {outcomes:?} is not {alone:?}");
        }
    }
}

/// What was generated is computed once more, as if it were a prompt, after its sequence gave up its blocks.
#[test]
fn answers_do_not_depend_on_preemption() {
    for case in ["qwen3", "gemma3"] {
        let spec = goldens(case)[0].spec();
        let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
        let requests = requests(spec.vocab as u32);
        // So many that a longer answer needs another block, and a shorter one has some to compute again.
        let plain = Variant { most: 30, ..PLAIN };
        let alone = run(&spec, &weights, plain, &requests);
        for cache in [false, true] {
            let tight = Variant { running: 5, graphs: true, blocks: 9, cache, ..plain };
            let (outcomes, counters) = counted(&spec, &weights, tight, &requests);
            assert!(counters.preemptions > 0, "{case}: {counters:?}");
            assert!(outcomes == alone, "{case}, cache {cache}: {outcomes:?} is not {alone:?}");
        }
    }
}

/// A chat's next turn finds the answer before it in the cache, where its tokens were computed one by one.
#[test]
fn a_turn_that_finds_an_answer_in_the_cache_has_the_bits_of_one_that_does_not() {
    let spec = goldens("qwen3")[0].spec();
    let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
    let plain = Variant { most: 30, ..PLAIN };
    let parameters = Parameters { logprobs: Some(2), ..Parameters::default() };
    let prompt: Vec<u32> = (0..40).map(|at| at * 7 % spec.vocab as u32).collect();
    let first = (prompt.clone(), parameters.clone());
    let answer = run(&spec, &weights, plain, std::slice::from_ref(&first)).remove(0);
    let next = prompt.into_iter().chain(answer.iter().map(|(token, _)| *token)).chain([1, 2, 3]).collect();
    let turns = [first, (next, parameters)];
    let cold = run(&spec, &weights, plain, &turns);
    let cached = Variant { cache: true, graphs: true, ..plain };
    let (warm, counters) = counted(&spec, &weights, cached, &turns);
    // Two blocks: of the second all tokens but eight are the answer's.
    assert_eq!(counters.prefix_hits, 2 * BLOCK as u64, "{counters:?}");
    assert!(warm == cold, "{warm:?} is not {cold:?}");
}

/// Matrices that are read in pieces, over several rounds, are those that the device makes up itself.
#[test]
fn weights_of_many_pieces_arrive_whole() {
    let mut spec = goldens("qwen3")[0].spec();
    (spec.vocab, spec.tied) = (40_000, false);
    let pieces = (spec.vocab * spec.hidden * 2) >> 20;
    assert!(pieces > 3, "the embedding and the head are of {pieces} pieces each");
    let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
    let tokens = [0, 1, 20_000, 39_999, 12_345, 31_000, 8_191, 8_192, 16_384];
    let told = |weights: &dyn Weights| {
        let mut executor = CudaExecutor::load(spec.clone(), weights, device(), options(8, 64)).unwrap();
        prompt_logprobs(&mut executor, &tokens, tokens.len())
    };
    assert_eq!(told(&Read(&weights)), told(&weights));
}

/// The probabilities of a prompt are the same however it is cut.
#[test]
fn chunks_equal_the_whole() {
    for case in ["qwen3", "qwen3_moe", "gpt_oss"] {
        let golden = goldens(case).remove(0);
        let spec = golden.spec();
        let mut executor = CudaExecutor::load(spec.clone(), &golden.weights(&spec), device(), options(8, 512)).unwrap();
        let whole = prompt_logprobs(&mut executor, &golden.tokens, golden.tokens.len());
        for chunk in [6, 5, 1] {
            assert_eq!(prompt_logprobs(&mut executor, &golden.tokens, chunk), whole, "{case} in chunks of {chunk}");
        }
    }
}

/// Models that share a device do not see each other, and one that leaves takes nothing of the other's with it.
#[test]
fn models_share_a_device() {
    let [one, other] = ["qwen3", "gpt_oss"].map(|case| goldens(case).remove(0));
    let load = |golden: &Golden| {
        let spec = golden.spec();
        CudaExecutor::load(spec.clone(), &golden.weights(&spec), device(), options(8, 512)).unwrap()
    };
    let told = |executor: &mut CudaExecutor, golden: &Golden| prompt_logprobs(executor, &golden.tokens, 5);
    let alone = [&one, &other].map(|golden| told(&mut load(golden), golden));
    let [mut first, mut second] = [&one, &other].map(load);
    for _ in 0..2 {
        assert_eq!([told(&mut first, &one), told(&mut second, &other)], alone);
    }
    drop(first);
    assert_eq!(told(&mut second, &other), alone[1]);
    assert_eq!(told(&mut load(&one), &one), alone[0]);
    assert_eq!(told(&mut second, &other), alone[1]);
}

/// What is told of a prompt's positions is what is told where a token is chosen there: the likeliest, with the bits that
/// they have then, and the prompt's own token among them or below.
#[test]
fn prompts_are_told_what_choices_are() {
    let golden = goldens("qwen3").remove(0);
    let (spec, tokens) = (golden.spec(), &golden.tokens);
    let mut executor = CudaExecutor::load(spec.clone(), &golden.weights(&spec), device(), options(8, 512)).unwrap();
    let told = prompt_logprobs(&mut executor, tokens, tokens.len());
    assert!(tokens.len() > 8, "more rows than have logits at a time");
    let sampling = Parameters { logprobs: Some(3), temperature: 0.0, ..Parameters::default() };
    let sampling = Arc::new(Sampling::new(sampling).unwrap());
    for (before, told) in (1..tokens.len()).zip(&told) {
        let prompt = &tokens[..before];
        let chunk = Chunk {
            sequence: SequenceId { group: GroupId(2), copy: 0 },
            slot: 1,
            fill: Some(Fill { prompt: prompt.into(), output: Vec::new() }),
            start: 0,
            length: before as u32,
            input: Input::Known(prompt.to_vec()),
            blocks: Arc::new((0..before.div_ceil(BLOCK) as u32).collect()),
            sample: true,
            sampling: sampling.clone(),
            prompt_logprobs: 0,
        };
        let plan = Plan { step: before as u64, chunks: vec![chunk], stale: Vec::new(), preempted: Vec::new() };
        let ticket = executor.launch(&plan).unwrap();
        executor.sample(&ticket, &Masks::default()).unwrap();
        let chosen = executor.collect(ticket).unwrap().remove(0).logprobs.unwrap();
        assert_eq!((told.top.len(), &told.top), (3, &chosen.top), "after {before} tokens");
        match told.top.iter().position(|(token, _)| *token == tokens[before]) {
            Some(at) => assert_eq!((told.logprob, told.rank as usize), (told.top[at].1, at + 1)),
            None => assert!(told.logprob <= told.top[2].1 && told.rank > 3, "{told:?}"),
        }
    }
}

/// Decoding takes what the design says, and no launch more: for each layer two norms, four products, the rotation,
/// attention and the activation; with experts besides the product of the router, its choice, and the sum of what was
/// chosen.
#[cfg(feature = "emulator")]
#[test]
fn a_step_of_decoding_is_nine_launches_for_each_layer_and_twelve_with_experts() {
    let (plain, fixed, short) = ((false, 0), (true, 0), (false, 1));
    for (case, how) in
        [("qwen3", plain), ("qwen3", fixed), ("qwen3_moe", plain), ("qwen3", short), ("qwen3_moe", short)]
    {
        let (deterministic, short_rows) = how;
        let spec = goldens(case)[0].spec();
        let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
        let units = if short_rows > 0 { crate::short::UNITS } else { kernels::cuda::Units::Warps };
        let mut emulator = kernels::cuda::Emulator::with_units(units);
        let log = emulator.log();
        let options = Options { graphs: false, deterministic, short_rows, ..options(8, 64) };
        let mut executor = CudaExecutor::load(spec.clone(), &weights, Box::new(emulator), options).unwrap();
        let chunk = Chunk {
            sequence: SequenceId { group: GroupId(1), copy: 0 },
            slot: 0,
            fill: Some(Fill { prompt: Arc::from([5]), output: Vec::new() }),
            start: 0,
            length: 1,
            input: Input::Known(vec![5]),
            blocks: Arc::new(vec![2]),
            sample: true,
            sampling: Arc::default(),
            prompt_logprobs: 0,
        };
        log.lock().unwrap().clear();
        let plan = Plan { step: 1, chunks: vec![chunk], stale: Vec::new(), preempted: Vec::new() };
        let ticket = executor.launch(&plan).unwrap();
        let names: Vec<&str> = log.lock().unwrap().iter().map(|launch| launch.kernel()).collect();
        let mixtures = spec.layers.iter().filter(|layer| layer.mixture).count();
        assert_eq!(mixtures > 0, case == "qwen3_moe");
        // A short step has neither norms nor activations of their own.
        let short = short_rows > 0 && mixtures == 0;
        let wanted =
            if short { 2 + 6 * spec.layers.len() + 1 } else { 2 + 9 * spec.layers.len() + 3 * mixtures + 1 + 2 };
        assert_eq!(names.len(), wanted, "{names:?}");
        executor.sample(&ticket, &Masks::default()).unwrap();
        assert!(executor.collect(ticket).unwrap()[0].token.is_some());
        // Where bits must not depend on steps, decoding has the attention of prompts.
        assert_eq!(names.iter().any(|name| name.starts_with("attention_prompt")), deterministic, "{names:?}");
        assert_eq!(names.iter().any(|name| name.starts_with("attention_decode")), !deterministic, "{names:?}");
    }
}

#[cfg(feature = "emulator")]
#[test]
fn a_device_without_the_memory_says_what_is_missing() {
    let spec = goldens("qwen3")[0].spec();
    let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
    let load = |bytes: usize| {
        let emulator = Box::new(kernels::cuda::Emulator::with_memory(bytes));
        CudaExecutor::load(spec.clone(), &weights, emulator, options(8, 64)).map(|executor| executor.bytes())
    };
    let error = load(1000).unwrap_err().to_string();
    assert!(error.contains("its weights: the device has 1000 bytes of memory left, and"), "{error}");
    let needed = load(1 << 30).unwrap();
    let error = load(needed - 1).unwrap_err().to_string();
    assert!(error.contains("its cache and its activations: the device has"), "{error}");
    assert_eq!(load(needed).unwrap(), needed);
}

#[test]
fn plans_that_break_the_contract_fail_and_the_next_one_does_not() {
    let spec = goldens("qwen3")[0].spec();
    let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
    let mut executor = CudaExecutor::load(spec, &weights, device(), options(8, 64)).unwrap();
    let chunk = |slot: u32, tokens: &[u32]| Chunk {
        sequence: SequenceId { group: GroupId(1), copy: 0 },
        slot,
        fill: Some(Fill { prompt: tokens.into(), output: Vec::new() }),
        start: 0,
        length: tokens.len() as u32,
        input: Input::Known(tokens.to_vec()),
        blocks: Arc::new(vec![2]),
        sample: true,
        sampling: Arc::default(),
        prompt_logprobs: 0,
    };
    let plan = |step: u64, chunk: Chunk| Plan { step, chunks: vec![chunk], stale: Vec::new(), preempted: Vec::new() };
    for (step, bad) in [(1, chunk(8, &[1])), (2, chunk(0, &[1_000_000]))] {
        assert!(matches!(executor.launch(&plan(step, bad)), Err(Failure::Contract(_))));
    }
    let ticket = executor.launch(&plan(3, chunk(0, &[1, 2, 3]))).unwrap();
    executor.sample(&ticket, &Masks::default()).unwrap();
    assert!(executor.collect(ticket).unwrap()[0].token.is_some());
}

/// What four warps multiply together is as near, by single blocks and by pairs: prompts of more than 128 tokens.
#[cfg(feature = "emulator")]
#[test]
fn units_of_four_warps_are_as_near() {
    use kernels::cuda::Units;
    let golden = goldens("qwen3").remove(0);
    let (spec, tokens) = (golden.spec(), golden.tokens.iter().copied().cycle().take(150).collect::<Vec<u32>>());
    let by_four = |pairs| Units::Warpgroups { processors: 132, pairs };
    let ways = [(Units::Warps, ""), (by_four(false), "gemm_wgmma"), (by_four(true), "gemm_pairs")];
    let [by_one, others @ ..] = ways.map(|(units, kernel)| {
        let mut emulator = kernels::cuda::Emulator::with_units(units);
        let log = emulator.log();
        let options = Options { deterministic: false, ..options(8, 512) };
        let mut executor =
            CudaExecutor::load(spec.clone(), &golden.weights(&spec), Box::new(emulator), options).unwrap();
        let told = prompt_logprobs(&mut executor, &tokens, tokens.len());
        for other in ["gemm_wgmma", "gemm_pairs"] {
            let some = log.lock().unwrap().iter().any(|launch| launch.kernel().starts_with(other));
            assert_eq!(some, other == kernel, "{other} with {units:?}");
        }
        told
    });
    for four in others {
        let squares = by_one.iter().zip(&four).map(|(one, four)| f64::from(one.logprob - four.logprob).powi(2));
        let error = (squares.sum::<f64>() / by_one.len() as f64).sqrt();
        assert!(error < TOLERANCE, "{error}");
    }
}
