//! Steps of a few rows, whose launches are those of `cuda/short.rs`: as near the reference as others, as graphs what they
//! are one by one, and taken where they can be.

use crate::cuda::{PLAIN, Variant, device_by, options, run, too_far};
use crate::driven::{are_whole, requests};
use crate::parity::goldens;
use backends::llm::cuda::{CudaExecutor, Options};
use backends::llm::engine::Overlap;
use backends::llm::weights::Format;
use backends::llm::weights::dummy::{Dummy, Init};
use kernels::cuda::Device;
#[cfg(feature = "emulator")]
use kernels::cuda::Units;
use kernels::cuda::pairs::PAIRS;

/// What a device has that takes short steps.
#[cfg(feature = "emulator")]
pub(super) const UNITS: Units = Units::Warpgroups { processors: 3, pairs: false };

/// A GPU where there is one, else an emulator that takes them.
pub(super) fn device() -> Box<dyn Device> {
    device_by(PAIRS, true)
}

/// The families whose layers are simple, each for what it has of its own: biases, norms of heads, scales, layers without a
/// rotation.
const SIMPLE: [&str; 11] = [
    "granite",
    "llama2",
    "llama3",
    "llama_yarn",
    "mistral",
    "phi3",
    "phi4_mini",
    "qwen2",
    "qwen3",
    "qwen3_window",
    "smollm3",
];

#[test]
fn families_are_near_the_reference() {
    let mut failed = Vec::new();
    for golden in SIMPLE.iter().map(|case| goldens(case).remove(0)) {
        let spec = golden.spec();
        let weights = golden.weights(&spec);
        let options = Options { deterministic: false, short_rows: 8, ..options(8, golden.context) };
        let mut executor = CudaExecutor::load(spec, &weights, device(), options).unwrap();
        failed.extend(too_far(&golden, &mut executor, &[5, 1]));
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// With the head as such a step has it, and padding.
#[test]
fn graphs_are_eager() {
    let spec = goldens("qwen3")[0].spec();
    let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
    let requests = requests(spec.vocab as u32);
    let plain = Variant { deterministic: false, short_rows: 8, running: 3, ..PLAIN };
    let eager = run(&spec, &weights, plain, &requests);
    assert!(are_whole(&eager, &requests, 12));
    let captured = Variant { graphs: true, ..plain };
    assert_eq!(run(&spec, &weights, captured, &requests), eager);
    assert_eq!(run(&spec, &weights, Variant { overlap: Overlap::Ahead, ..captured }, &requests), eager);
}

/// Those families, and no others; and none where bits must not depend on rows.
#[cfg(feature = "emulator")]
#[test]
fn models_of_simple_layers_take_them() {
    let mut short = std::collections::BTreeSet::new();
    for case in crate::parity::cases() {
        let golden = goldens(&case).remove(0);
        let spec = golden.spec();
        if backends::llm::cuda::lacks(&spec).is_some() {
            continue;
        }
        for deterministic in [true, false] {
            let mut emulator = kernels::cuda::Emulator::with_units(UNITS);
            let log = emulator.log();
            let options = Options { deterministic, short_rows: 8, ..options(8, golden.context) };
            let weights = golden.weights(&spec);
            let mut executor = CudaExecutor::load(spec.clone(), &weights, Box::new(emulator), options).unwrap();
            log.lock().unwrap().clear();
            crate::cuda::prompt_logprobs(&mut executor, &golden.tokens[..8], 8);
            let kernels: Vec<&str> = log.lock().unwrap().iter().map(|launch| launch.kernel()).collect();
            let some = kernels.iter().any(|name| name.starts_with("gemv"));
            assert!(!(some && deterministic), "{case}: {kernels:?}");
            if some {
                short.insert(case.clone());
            }
        }
    }
    assert_eq!(short, SIMPLE.map(str::to_owned).into());
}
