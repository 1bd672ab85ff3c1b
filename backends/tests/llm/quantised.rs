//! Weights of every quantised type, made up: what is computed with them on a CPU, against the reference on the same numbers.
//! `stored.rs` does so on a GPU.

use crate::cpu::{PLAIN, Variant, options, run};
use crate::driven::{distance, prompt_logprobs, requests};
use crate::parity::goldens;
use crate::reference::Reference;
use backends::LoadError;
use backends::llm::cpu::{CacheType, CpuExecutor};
use backends::llm::engine::Overlap;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::blocks::dequantise;
use backends::llm::weights::dummy::{Dummy, Init};
use backends::llm::weights::{Format, Info, Weights};
use half::f16;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Its rows are whole blocks of every type.
pub(super) fn spec() -> DecoderSpec {
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "intermediate_size": 512, "vocab_size": 301, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 5e5, "tie_word_embeddings": false, "hidden_act": "silu", "attention_bias": false,
        "torch_dtype": "bfloat16"}"#;
    DecoderSpec::from_config(Path::new("config.json"), config.as_bytes()).unwrap()
}

/// A model nobody trained, whose projections are blocks of some type.
pub(super) struct Quantised {
    rest: Dummy,
    infos: BTreeMap<String, Info>,
    format: fn(&str) -> Format,
    /// Are they told as bf16?
    widened: bool,
}

impl Quantised {
    pub(super) fn new(spec: &DecoderSpec, format: fn(&str) -> Format, widened: bool) -> Self {
        let rest = Dummy::new(spec, Format::Bf16, Init::FanIn, 3).unwrap();
        let projections = rest.names().into_iter().filter(|name| {
            (name.contains("_proj") || name.contains("lm_head"))
                && !name.ends_with("bias")
                && format(name).block().0 > 1
        });
        let info = |name: &str| {
            let mut shape = rest.info(name).unwrap().shape.clone();
            if shape.len() == 3 {
                // Experts in blocks are stored the other way round.
                shape.swap(1, 2);
            }
            let format = if widened { Format::Bf16 } else { format(name) };
            (name.to_owned(), Info { format, shape })
        };
        let infos = projections.map(info).collect();
        Quantised { rest, infos, format, widened }
    }
}

/// Block `index` of a tensor: any codes, and scales that give its numbers about the deviation `sigma` and the mean 0.
fn block(format: Format, name: &str, index: usize, sigma: f32) -> Vec<u8> {
    let mut state =
        name.bytes().fold(index as u64 + 1, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let mut bytes: Vec<u8> = (0..format.block().1).map(|_| next()).collect();
    let mut put = |at: usize, number: f32| bytes[at..at + 2].copy_from_slice(&f16::from_f32(number).to_le_bytes());
    match format {
        Format::Q8_0 => put(0, sigma / 74.0),
        Format::Q4_0 => put(0, sigma / 4.6),
        Format::Q6K => put(208, sigma / 18.5 / 74.0),
        Format::Q4K | Format::Q5K => {
            let (deviation, mean) = if format == Format::Q4K { (4.6, 7.5) } else { (9.2, 15.5) };
            put(0, sigma / deviation / 36.0);
            put(2, sigma / deviation / 36.0 * mean);
            // Minima of as many units as scales.
            bytes.copy_within(4..8, 8);
            bytes[12..16].iter_mut().for_each(|both| *both = (*both & 15) | *both << 4);
        }
        Format::Mxfp4 => bytes[0] = (127.0 + (sigma / 3.0).log2()) as u8 - (index % 2) as u8,
        Format::F32 | Format::F16 | Format::Bf16 => unreachable!("not of blocks"),
    }
    bytes
}

impl Weights for Quantised {
    fn file(&self) -> &Path {
        self.rest.file()
    }

    fn names(&self) -> Vec<&str> {
        self.rest.names()
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.infos.get(name).or_else(|| self.rest.info(name))
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let Some(info) = self.infos.get(name) else { return self.rest.read(name, range) };
        let format = (self.format)(name);
        let (numbers, size) = format.block();
        let unit = if self.widened { 2 * numbers } else { size };
        let sigma = 1.0 / (*info.shape.last().unwrap() as f32).sqrt();
        let blocks = range.start / unit..range.end.div_ceil(unit);
        let bytes: Vec<u8> = blocks.clone().flat_map(|index| block(format, name, index, sigma)).collect();
        let bytes = match self.widened {
            true => {
                let wide = dequantise(format, &bytes).into_iter();
                wide.flat_map(|number| half::bf16::from_f32(number).to_le_bytes()).collect()
            }
            false => bytes,
        };
        let before = range.start - blocks.start * unit;
        Ok(bytes[before..before + range.len()].to_vec())
    }
}

pub(super) const TOKENS: [u32; 40] = [
    5, 299, 17, 4, 250, 33, 71, 8, 8, 190, 45, 2, 121, 300, 64, 77, 9, 210, 154, 31, 6, 88, 270, 19, 140, 3, 55, 201,
    16, 92, 11, 233, 178, 29, 61, 100, 47, 285, 130, 7,
];

/// Of a model's own.
fn tokens(spec: &DecoderSpec) -> Vec<u32> {
    TOKENS.iter().map(|token| token % spec.vocab as u32).collect()
}

/// What the reference makes of the weights.
pub(super) fn wanted(spec: &DecoderSpec, weights: &dyn Weights) -> Vec<f32> {
    let reference = Reference::new(spec.clone(), weights, TOKENS.len()).unwrap();
    let tokens = tokens(spec);
    reference.forward(&tokens, &mut reference.cache()).unwrap().data
}

/// The format of a tensor by its name.
pub(super) type FormatOf = fn(&str) -> Format;

/// Files mix types, as llama.cpp's do: values and down projections have more bits than the rest.
pub(super) fn mixed(name: &str) -> Format {
    if name.contains("v_proj") || name.contains("down_proj") { Format::Q6K } else { Format::Q4K }
}

/// Of what is computed with as it is.
const TYPES: [(&str, FormatOf); 6] = [
    ("Q8_0", |_| Format::Q8_0),
    ("Q4_0", |_| Format::Q4_0),
    ("Q4_K", |_| Format::Q4K),
    ("Q5_K", |_| Format::Q5K),
    ("Q6_K", |_| Format::Q6K),
    ("Q4_K and Q6_K", mixed),
];

/// In standard deviations of the logits: rows are rounded to eight bits, of which each is off by 0.3 % of its block's
/// greatest number.
const TOLERANCE: f64 = 0.03;

/// How far a prompt's probabilities are from the reference's, in standard deviations of the logits.
fn error(executor: &mut CpuExecutor, spec: &DecoderSpec, wanted: &[f32], chunk: usize) -> f64 {
    let tokens = tokens(spec);
    distance(&prompt_logprobs(executor, &tokens, chunk, 16), &tokens, wanted)
}

#[test]
fn every_type_is_near_the_reference() {
    let spec = spec();
    for (name, format) in TYPES {
        let weights: Arc<dyn Weights> = Arc::new(Quantised::new(&spec, format, false));
        let wanted = wanted(&spec, &*weights);
        for storage in [CacheType::F32, CacheType::F16] {
            let mut options = options(8, 16, 64);
            options.cache.storage = storage;
            let mut executor = CpuExecutor::load(spec.clone(), &weights, options).unwrap();
            for chunk in [TOKENS.len(), 7, 1] {
                let error = error(&mut executor, &spec, &wanted, chunk);
                println!("{name:13} {storage:?} chunks of {chunk:2} {error:.4}");
                assert!(error < TOLERANCE, "{name} {storage:?} {chunk}: {error}");
            }
        }
    }
}

/// Bit for bit, whatever the type, with a cache of 16 bits as it is served.
#[test]
fn answers_do_not_depend_on_how_steps_were_made() {
    let spec = spec();
    let requests = requests(spec.vocab as u32);
    let plain = Variant { storage: CacheType::F16, ..PLAIN };
    for (name, format) in TYPES {
        let weights: Arc<dyn Weights> = Arc::new(Quantised::new(&spec, format, false));
        let (alone, _) = run(&spec, &weights, plain, &requests);
        let variants = [
            ("batched, ahead", Variant { running: 5, overlap: Overlap::Ahead, ..plain }),
            ("in chunks, blocks of 16", Variant { running: 3, chunk: 8, block_len: 16, blocks: 128, ..plain }),
            ("preempted", Variant { running: 5, blocks: 11, block_len: 16, cache: true, ..plain }),
        ];
        for (how, variant) in variants {
            let (outcomes, counters) = run(&spec, &weights, variant, &requests);
            assert!(outcomes == alone, "{name} {how}: {outcomes:?} is not {alone:?}");
            assert_eq!(counters.preemptions > 0, how == "preempted", "{how}: {counters:?}");
        }
    }
}

/// Experts in four-bit floats are computed with as bf16, which has all of their numbers.
#[test]
fn four_bit_floats_lose_nothing() {
    let spec = goldens("gpt_oss")[0].spec();
    let format: FormatOf = |name| if name.contains("experts") { Format::Mxfp4 } else { Format::Bf16 };
    let weights: Arc<dyn Weights> = Arc::new(Quantised::new(&spec, format, false));
    let wanted = wanted(&spec, &*weights);
    let mut executor = CpuExecutor::load(spec.clone(), &weights, options(8, 16, 64)).unwrap();
    let error = error(&mut executor, &spec, &wanted, 7);
    assert!(error < 1e-4, "{error}");
}
