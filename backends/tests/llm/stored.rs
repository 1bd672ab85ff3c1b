//! Weights that stay codes on a GPU, or in the emulator: models of every quantised type against the reference on the same
//! weights widened, as near as the same model in bf16 comes, and smaller than it.

use crate::cuda::{PLAIN, Variant, device, options, prompt_logprobs, run};
use crate::driven::{distance, requests};
use crate::quantised::{FormatOf, Quantised, TOKENS, mixed, spec, wanted};
use backends::LoadError;
use backends::llm::cuda::{CudaExecutor, weight_bytes};
use backends::llm::engine::Overlap;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::dummy::{Dummy, Init};
use backends::llm::weights::{Format, Info, Weights};
#[cfg(feature = "emulator")]
use kernels::cuda::Units;
use std::ops::Range;
use std::path::Path;

/// In standard deviations of the logits, as the other tests of the executor have it.
const TOLERANCE: f64 = 0.02;

/// How far a prompt's probabilities are from it, and bytes of the weights.
fn measured(spec: &DecoderSpec, weights: &dyn Weights, wanted: &[f32], chunk: usize) -> f64 {
    let mut executor = CudaExecutor::load(spec.clone(), weights, device(), options(8, 64)).unwrap();
    let told = prompt_logprobs(&mut executor, &TOKENS, chunk);
    distance(&told, &TOKENS, wanted)
}

#[test]
fn every_type_is_near_the_reference_and_small() {
    let spec = spec();
    // Bits of a number, scales and minima included; a factor of 32 bits for each of 256 inputs or more besides.
    let types: [(&str, FormatOf, f64); 6] = [
        ("Q8_0", |_| Format::Q8_0, 8.5),
        ("Q4_0", |_| Format::Q4_0, 4.5),
        ("Q4_K", |_| Format::Q4K, 5.0),
        ("Q5_K", |_| Format::Q5K, 9.0),
        ("Q6_K", |_| Format::Q6K, 9.0),
        ("MXFP4", |_| Format::Mxfp4, 4.5),
    ];
    let projections = 2 * (256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 512) + 301 * 256;
    for (name, format, bits) in types {
        let (stored, wide) = (Quantised::new(&spec, format, false), Quantised::new(&spec, format, true));
        let wanted = wanted(&spec, &stored);
        let as_bf16 = measured(&spec, &wide, &wanted, 40);
        for chunk in [40, 1] {
            let error = measured(&spec, &stored, &wanted, chunk);
            println!("{name:6} chunks of {chunk:2} {error:.4}, as bf16 {as_bf16:.4}");
            assert!(error < TOLERANCE && error < 1.5 * as_bf16 + 0.001, "{name}: {error}, as bf16 {as_bf16}");
        }
        let (small, large) = (weight_bytes(&spec, &stored).unwrap(), weight_bytes(&spec, &wide).unwrap());
        let saved = (large - small) as f64 * 8.0 / f64::from(projections);
        assert!((saved - (16.0 - bits)).abs() < 0.25, "{name}: {saved} bits of each number are saved");
    }
}

/// Floats of eight bits, made up on the device and read as if from a file.
#[test]
fn eight_bit_floats_are_near_the_reference_and_small() {
    let spec = spec();
    let plain = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
    let large = weight_bytes(&spec, &plain).unwrap();
    let narrow = plain.in_eight_bits();
    let wanted = wanted(&spec, &narrow);
    let made_up = measured(&spec, &narrow, &wanted, 40);
    let read = measured(&spec, &Read(&narrow), &wanted, 40);
    println!("e4m3 {made_up:.4}");
    assert!(made_up < TOLERANCE, "{made_up}");
    assert!((made_up - read).abs() < 1e-12, "made where they are needed, or read: {read}");
    let small = weight_bytes(&spec, &narrow).unwrap();
    // The head stays as it is.
    let projections = 2 * (256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 512);
    assert!((large - small).abs_diff(projections) < projections / 20, "{large} and {small}");
}

/// Weights as if from a file.
pub(super) struct Read<'a>(pub(super) &'a Dummy);

impl Weights for Read<'_> {
    fn file(&self) -> &Path {
        self.0.file()
    }
    fn names(&self) -> Vec<&str> {
        self.0.names()
    }
    fn info(&self, name: &str) -> Option<&Info> {
        self.0.info(name)
    }
    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        self.0.read(name, range)
    }
    fn stored(&self, name: &str) -> Option<backends::llm::weights::groups::Stored> {
        self.0.stored(name)
    }
    fn read_groups(
        &self,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Option<backends::llm::weights::groups::Groups>, LoadError> {
        self.0.read_groups(name, rows)
    }
}

/// Parts of one matrix that differ are widened, all others are not.
#[test]
fn mixed_types_are_served() {
    let spec = spec();
    let (stored, wide) = (Quantised::new(&spec, mixed, false), Quantised::new(&spec, mixed, true));
    let wanted = wanted(&spec, &stored);
    let (error, as_bf16) = (measured(&spec, &stored, &wanted, 40), measured(&spec, &wide, &wanted, 40));
    assert!(error < 1.5 * as_bf16 + 0.001, "{error}, as bf16 {as_bf16}");
    let (small, large) = (weight_bytes(&spec, &stored).unwrap(), weight_bytes(&spec, &wide).unwrap());
    assert!(small < large * 3 / 4, "{small} of {large}");
}

/// Bit for bit: batched is alone, and graphs are what was captured.
#[test]
fn answers_do_not_depend_on_how_steps_were_made() {
    let spec = spec();
    let weights = Quantised::new(&spec, mixed, false);
    let requests = requests(spec.vocab as u32);
    let alone = run(&spec, &weights, PLAIN, &requests);
    let ahead = Variant { running: 5, graphs: true, overlap: Overlap::Ahead, ..PLAIN };
    assert!(run(&spec, &weights, ahead, &requests) == alone);
}

/// Weights in eight bits meet inputs in eight bits there, in steps of more than 64 rows, whatever room the longest step has.
#[cfg(feature = "emulator")]
#[test]
fn eight_bits_meet_eight_bits_where_units_can() {
    let spec = spec();
    let weights = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap().in_eight_bits();
    let tokens: Vec<u32> = (0..100).map(|at| at * 7 % spec.vocab as u32).collect();
    for step_rows in [512, 128] {
        let by_four = |pairs| Units::Warpgroups { processors: 3, pairs };
        let ways = [(Units::Warps, ""), (by_four(false), "gemm_wgmma_e4m3"), (by_four(true), "gemm_pairs_e4m3")];
        let [one, others @ ..] = ways.map(|(units, product)| {
            let mut emulator = kernels::cuda::Emulator::with_units(units);
            let log = emulator.log();
            let options = backends::llm::cuda::Options { deterministic: false, step_rows, ..options(8, 512) };
            let mut executor = CudaExecutor::load(spec.clone(), &weights, Box::new(emulator), options).unwrap();
            let told = prompt_logprobs(&mut executor, &tokens, tokens.len());
            for kernel in ["gemm_wgmma_e4m3", "gemm_pairs_e4m3", "attention_wgmma_64"] {
                let some = log.lock().unwrap().iter().any(|launch| launch.kernel().starts_with(kernel));
                let wanted = units != Units::Warps && (kernel == product || kernel.starts_with("attention"));
                assert_eq!(some, wanted, "{kernel} in steps of {step_rows} with {units:?}");
            }
            // Norms and activations write codes themselves: of four products, the rows of one are rounded by a kernel.
            let count = |begin: &str| log.lock().unwrap().iter().filter(|it| it.kernel().starts_with(begin)).count();
            let products = if product.is_empty() { 0 } else { count(product) };
            assert_eq!(4 * count("round_rows"), products, "in steps of {step_rows} with {units:?}");
            told
        });
        for four in others {
            let squares = one.iter().zip(&four).map(|(one, four)| f64::from(one.logprob - four.logprob).powi(2));
            let error = (squares.sum::<f64>() / one.len() as f64).sqrt();
            assert!(error < 0.1, "steps of {step_rows}: {error}");
        }
    }
}
