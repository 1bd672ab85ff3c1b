//! Sequences beside each other in a step: as many as there are graphs for; and decoding beside a prompt that is told.

use crate::cuda::{device, options, prompt_logprobs};
use crate::parity::goldens;
use backends::llm::cuda::{CudaExecutor, Options};
use backends::llm::executor::{Executor, Masks};
use backends::llm::plan::{Chunk, Fill, Input, Plan, Sampled};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::sequence::{GroupId, SequenceId};
use std::sync::Arc;

/// Sequences: fewer than the bucket of the largest graphs has rows.
const SEQUENCES: u32 = 401;
const BUCKET: usize = 512;

/// The tokens of two steps in which all sequences decode: the first from a token of their own, the second from what the
/// first has chosen.
fn tokens(executor: &mut CudaExecutor, vocab: u32) -> Vec<Option<u32>> {
    let sampled = |step: u64| {
        let chunk = |slot: u32| {
            let prompt = vec![slot * 7 % vocab];
            // Half of them draw.
            let parameters = Parameters { temperature: (slot % 2) as f32, seed: slot.into(), ..Parameters::default() };
            Chunk {
                sequence: SequenceId { group: GroupId(slot.into()), copy: 0 },
                slot,
                fill: (step == 0).then(|| Fill { prompt: prompt.clone().into(), output: Vec::new() }),
                start: step as u32,
                length: 1,
                input: if step == 0 { Input::Known(prompt) } else { Input::Last },
                blocks: Arc::new(vec![SEQUENCES - 1 - slot]),
                sample: true,
                sampling: Arc::new(Sampling::new(parameters).unwrap()),
                prompt_logprobs: 0,
            }
        };
        let chunks = (0..SEQUENCES).map(chunk).collect();
        Plan { step: step + 1, chunks, stale: Vec::new(), preempted: Vec::new() }
    };
    let mut all = Vec::new();
    for plan in [0, 1].map(sampled) {
        let ticket = executor.launch(&plan).unwrap();
        executor.sample(&ticket, &Masks::default()).unwrap();
        all.extend(executor.collect(ticket).unwrap().into_iter().map(|sampled| sampled.token));
    }
    all
}

/// Rows of padding among them change nothing, whether decode attention has all rows or tiles have.
#[test]
fn the_largest_graphs_are_what_was_launched() {
    let golden = goldens("qwen3").remove(0);
    let spec = golden.spec();
    for deterministic in [false, true] {
        let [eager, captured] = [false, true].map(|graphs| {
            let slots = BUCKET;
            let options = Options { slots, graphs, deterministic, ..options(SEQUENCES, 64) };
            let mut executor = CudaExecutor::load(spec.clone(), &golden.weights(&spec), device(), options).unwrap();
            tokens(&mut executor, spec.vocab as u32)
        });
        assert!(eager.iter().all(Option::is_some));
        assert!(eager == captured, "deterministic: {deterministic}");
    }
}

/// All rows of the bucket are launched, those of padding, too: a graph has no other size.
#[cfg(feature = "emulator")]
#[test]
fn the_largest_batch_goes_as_a_graph() {
    let golden = goldens("qwen3").remove(0);
    let spec = golden.spec();
    let mut emulator = kernels::cuda::Emulator::with_units(kernels::cuda::Units::Warps);
    let log = emulator.log();
    let options = Options { slots: BUCKET, deterministic: false, ..options(SEQUENCES, 64) };
    let weights = golden.weights(&spec);
    let mut executor = CudaExecutor::load(spec.clone(), &weights, Box::new(emulator), options).unwrap();
    log.lock().unwrap().clear();
    tokens(&mut executor, spec.vocab as u32);
    let launches = log.lock().unwrap();
    let rows = |kernel: &str, side: usize| {
        launches.iter().filter(|it| it.kernel() == kernel).map(|it| it.grid()[side] as usize).collect::<Vec<_>>()
    };
    assert_eq!((rows("embed", 0), rows("sampler_scan", 1)), (vec![BUCKET; 2], vec![BUCKET; 2]));
    assert_eq!(executor.remark(), None);
}

/// A step may have prompts that are told beside sequences that are past theirs: neither minds the other.
#[test]
fn prompts_are_told_beside_sequences_that_decode() {
    let golden = goldens("qwen3").remove(0);
    let (spec, told) = (golden.spec(), &golden.tokens);
    let load = || CudaExecutor::load(spec.clone(), &golden.weights(&spec), device(), options(16, 512)).unwrap();
    let chunk = |slot: u32, start: u32, tokens: &[u32], input: Input, sampling: Parameters| Chunk {
        sequence: SequenceId { group: GroupId(slot.into()), copy: 0 },
        slot,
        fill: (start == 0).then(|| Fill { prompt: tokens.into(), output: Vec::new() }),
        start,
        length: if start == 0 { tokens.len() as u32 } else { 1 },
        input,
        blocks: Arc::new((8 * slot..8 * slot + 8).collect()),
        sample: true,
        prompt_logprobs: sampling.prompt_logprobs.map_or(0, |_| tokens.len() as u32 - 1),
        sampling: Arc::new(Sampling::new(sampling).unwrap()),
    };
    let greedy = Parameters { temperature: 0.0, ..Parameters::default() };
    let prompt = [3, 4, 5];
    let asked = Parameters { prompt_logprobs: Some(3), ..greedy.clone() };
    let first = || chunk(0, 0, &prompt, Input::Known(prompt.to_vec()), greedy.clone());
    // The second of these stands beyond its prompt and what came after it.
    let next = |start: u32| chunk(0, start, &prompt, Input::Last, greedy.clone());
    let other = || chunk(1, 0, told, Input::Known(told.clone()), asked.clone());
    let steps = |executor: &mut CudaExecutor, steps: Vec<Vec<Chunk>>| {
        let plans = (1..).zip(steps).map(|(step, chunks)| Plan { step, chunks, stale: vec![], preempted: vec![] });
        let run = plans.map(|plan| {
            let ticket = executor.launch(&plan).unwrap();
            executor.sample(&ticket, &Masks::default()).unwrap();
            executor.collect(ticket).unwrap()
        });
        run.collect::<Vec<_>>()
    };
    let alone = steps(&mut load(), vec![vec![first()], vec![next(3)], vec![next(4)]]);
    let beside = steps(&mut load(), vec![vec![first()], vec![next(3)], vec![next(4), other()]]);
    let decoded = |steps: &[Vec<Sampled>]| steps.iter().map(|sampled| sampled[0].token).collect::<Vec<_>>();
    assert_eq!(decoded(&alone), decoded(&beside));
    assert!(decoded(&alone).iter().all(Option::is_some));
    assert_eq!(beside[2][1].prompt_logprobs, prompt_logprobs(&mut load(), told, told.len()));
    assert!(beside[2][0].prompt_logprobs.is_empty() && beside[2][1].token.is_some());
}
