//! The largest batches of decoding: as many sequences as there are graphs for.

use crate::cuda::{device, options};
use crate::parity::goldens;
use backends::llm::cuda::{CudaExecutor, Options};
use backends::llm::executor::{Executor, Masks};
use backends::llm::plan::{Chunk, Fill, Input, Plan};
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
