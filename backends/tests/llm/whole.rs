//! Whole models on a GPU beside the executor of CPUs, which sums in 32 bits: prompts token by token, and what is generated.
//! Weights are made up. In the emulator a toy of many layers; where there is a GPU, models of the sizes that people serve
//! (`--ignored`).

use crate::cuda::{PLAIN, Variant, device_by, options, prompt_logprobs, run};
use crate::driven::{Setting, drive};
use backends::llm::cpu::{self, CpuExecutor};
use backends::llm::cuda::{CacheType, CudaExecutor, Options, SHORT_ROWS};
use backends::llm::engine::Overlap;
use backends::llm::sampling::Parameters;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::Format;
use backends::llm::weights::Weights;
use backends::llm::weights::dummy::{Dummy, Init};
use kernels::cuda::pairs::PAIRS;
use std::path::Path;
use std::sync::Arc;

/// Root of the mean squared error of log probabilities, in units of the logits' standard deviation. 28 layers of
/// a toy err by 0.005; a wrong rotation, window or norm by 0.05 and more.
const TOLERANCE: f64 = 0.02;
/// The same in eight bits: 12 layers of a toy err by 0.02 where rows are not rounded, and by 0.05 where they are.
const NARROW_TOLERANCE: f64 = 0.1;
/// What one token may err by, where the root mean square is that: of a thousand, one is three and a half times as far off.
const FARTHEST: f64 = 5.0;

/// How steps are launched.
#[derive(Clone, Copy, Debug)]
struct Way {
    short_rows: usize,
    pairs: bool,
}

/// What a server has, and what it has not: of steps of few rows, and of those of many.
const SERVED: Way = Way { short_rows: SHORT_ROWS, pairs: PAIRS };
const SHORT: Way = Way { short_rows: if SHORT_ROWS == 0 { 8 } else { 0 }, ..SERVED };
const PAIRED: Way = Way { pairs: !PAIRS, ..SERVED };

/// How weights, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    /// In sixteen bits.
    Wide,
    /// In eight; and rows of prompts are rounded to eight where units multiply these.
    Narrow,
}

impl Stored {
    fn weights(self, spec: &DecoderSpec) -> Dummy {
        let weights = Dummy::new(spec, Format::Bf16, Init::FanIn, 11).unwrap();
        if self == Stored::Narrow { weights.in_eight_bits() } else { weights }
    }

    fn cache(self) -> CacheType {
        if self == Stored::Narrow { CacheType::Fp8 } else { CacheType::Bf16 }
    }

    fn tolerance(self) -> f64 {
        if self == Stored::Narrow { NARROW_TOLERANCE } else { TOLERANCE }
    }
}

fn llama(layers: usize, [hidden, heads, kv_heads, head, inner, vocab]: [usize; 6]) -> String {
    format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": {hidden},
        "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
        "head_dim": {head}, "intermediate_size": {inner}, "vocab_size": {vocab}, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": false, "hidden_act": "silu",
        "attention_bias": false, "torch_dtype": "bfloat16"}}"#
    )
}

fn qwen3(layers: usize, [hidden, heads, kv_heads, head, inner, vocab]: [usize; 6]) -> String {
    format!(
        r#"{{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": {hidden},
        "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "num_key_value_heads": {kv_heads},
        "head_dim": {head}, "intermediate_size": {inner}, "vocab_size": {vocab}, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true, "hidden_act": "silu",
        "attention_bias": false, "torch_dtype": "bfloat16"}}"#
    )
}

/// Random tokens.
fn tokens(seed: u32, count: usize, vocab: usize) -> Vec<u32> {
    let mix = |at: u32| (seed.wrapping_mul(2_654_435_761) ^ at.wrapping_mul(40_503)).wrapping_mul(2_246_822_519) >> 3;
    (0..count as u32).map(|at| mix(at) % vocab as u32).collect()
}

fn deviation(numbers: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = numbers.clone().count() as f64;
    let mean = numbers.clone().sum::<f64>() / count;
    (numbers.map(|x| (x - mean).powi(2)).sum::<f64>() / count).sqrt()
}

/// Prompts of these lengths on both, and what the GPU says after them as the CPU sees it.
fn compare(name: &str, config: &str, lengths: &[usize], stored: Stored, Way { short_rows, pairs }: Way) {
    let spec = DecoderSpec::from_config(Path::new("config.json"), config.as_bytes()).unwrap();
    let weights = stored.weights(&spec);
    let prompts: Vec<Vec<u32>> = (1..).zip(lengths).map(|(seed, length)| tokens(seed, *length, spec.vocab)).collect();

    let greedy = Parameters { logprobs: Some(1), ignore_eos: true, ..Parameters::default() };
    let requests: Vec<(Vec<u32>, Parameters)> = prompts.iter().map(|prompt| (prompt.clone(), greedy.clone())).collect();
    let ahead = Variant { running: 8, graphs: true, overlap: Overlap::Ahead, stored: stored.cache(), ..PLAIN };
    let variant = Variant { deterministic: false, short_rows, pairs, ..ahead };
    let answers = run(&spec, &weights, variant, &requests);

    // As a server has it: more than 64 rows go through the tensor cores' kernel.
    let served = Options { deterministic: false, cache: stored.cache(), short_rows, ..options(32, 512) };
    let mut gpu = CudaExecutor::load(spec.clone(), &weights, device_by(pairs, short_rows > 0), served).unwrap();
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().build().unwrap());
    let cache = cpu::Shape { blocks: 32, block_len: 32, storage: cpu::CacheType::F32 };
    let cpu = cpu::Options { cache, context: 512, slots: 8, pool, poison: false };
    let mut cpu = CpuExecutor::load(spec.clone(), &(Arc::new(weights) as Arc<dyn Weights>), cpu).unwrap();

    let (mut prompt_pairs, mut answer_pairs, mut regret) = (Vec::new(), Vec::new(), 0f64);
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let text: Vec<u32> = prompt.iter().copied().chain(answer.iter().map(|(token, _)| *token)).collect();
        let (ours, theirs) = (prompt_logprobs(&mut gpu, &text, 512), prompt_logprobs(&mut cpu, &text, 512));
        let pair = |(ours, theirs): (f32, f32)| (f64::from(ours), f64::from(theirs));
        prompt_pairs.extend(ours.iter().zip(&theirs).map(|(ours, theirs)| pair((ours.logprob, theirs.logprob))));
        for ((_, bits), theirs) in answer.iter().zip(&theirs[prompt.len() - 1..]) {
            answer_pairs.push(pair((f32::from_bits(*bits), theirs.logprob)));
            regret = regret.max(f64::from(theirs.top[0].1 - theirs.logprob));
        }
    }
    // Of random tokens: the deviation of their logits.
    let scale = deviation(prompt_pairs.iter().map(|(_, theirs)| *theirs));
    let error = |pairs: &[(f64, f64)]| {
        let squares: f64 = pairs.iter().map(|(ours, theirs)| (ours - theirs).powi(2)).sum();
        (squares / pairs.len() as f64).sqrt() / scale
    };
    let (prompt, answer) = (error(&prompt_pairs), error(&answer_pairs));
    println!("{name}: prompts {prompt:.4}, answers {answer:.4}, farthest from the best token {:.4}", regret / scale);
    let tolerance = stored.tolerance();
    assert!(prompt < tolerance && answer < tolerance, "{name}: {prompt} {answer}");
    assert!(regret / scale < FARTHEST * tolerance, "{name}: {}", regret / scale);
}

/// As a server has it, with more sequences than the kernels of few rows take: bit for bit, graphs answer what launches one
/// by one do, while batches grow and shrink.
fn graphs_are_eager(name: &str, config: &str, stored: Stored, (sequences, most): (usize, u32), way: Way) {
    let spec = DecoderSpec::from_config(Path::new("config.json"), config.as_bytes()).unwrap();
    let weights = stored.weights(&spec);
    let greedy = Parameters { logprobs: Some(1), ignore_eos: true, ..Parameters::default() };
    let drawn = Parameters { temperature: 1.0, top_p: 0.9, seed: 5, ..greedy.clone() };
    let request = |at: usize| (tokens(at as u32, 1 + at % 12, spec.vocab), [&greedy, &drawn][at % 2].clone());
    let requests: Vec<_> = (0..sequences).map(request).collect();
    let [eager, captured] = [false, true].map(|graphs| {
        let (blocks, block_len, running) = (256, 32, 128);
        let settings = options(blocks, 512);
        let Way { short_rows, pairs } = way;
        let settings = Options { slots: 128, cache: stored.cache(), graphs, short_rows, ..settings };
        let settings = Options { deterministic: false, ..settings };
        let executor = CudaExecutor::load(spec.clone(), &weights, device_by(pairs, short_rows > 0), settings).unwrap();
        let (chunk, cache, overlap, vocab) = (512, false, Overlap::Ahead, spec.vocab as u32);
        drive(executor, Setting { blocks, block_len, chunk, running, cache, overlap, most, vocab }, &requests).0
    });
    assert!(eager.iter().all(|answer| answer.len() == most as usize), "{name}");
    let differ = eager.iter().zip(&captured).filter(|(eager, captured)| eager != captured).count();
    println!("{name}: {differ} of {sequences} prompts are answered otherwise by graphs");
    assert_eq!(differ, 0, "{name}");
}

/// Models of real widths, and a part of their layers, for the CPU's sake.
const QWEN: [usize; 6] = [1024, 16, 8, 128, 3072, 151_936];
const LLAMA: [usize; 6] = [4096, 32, 8, 128, 14_336, 128_256];
/// Prompts of theirs, and the sequences and answers whose graphs are compared.
const LENGTHS: [usize; 4] = [1, 33, 100, 300];
const BATCH: (usize, u32) = (100, 12);

fn many_layers_by(way: Way) {
    compare("12 layers of Qwen3, 64 wide", &qwen3(12, [64, 4, 2, 32, 128, 500]), &[5, 70], Stored::Wide, way);
    compare("12 layers of Llama, 64 wide", &llama(12, [64, 4, 2, 32, 128, 500]), &[5, 70], Stored::Wide, way);
}

fn narrow_layers_by(way: Way) {
    let config = llama(12, [128, 4, 2, 32, 256, 500]);
    compare("12 layers of Llama in eight bits", &config, &[5, 70], Stored::Narrow, way);
}

fn qwen3_by(way: Way) {
    let config = qwen3(28, QWEN);
    compare("qwen3-0.6b", &config, &LENGTHS, Stored::Wide, way);
    graphs_are_eager("qwen3-0.6b", &config, Stored::Wide, BATCH, way);
}

fn llama_by(way: Way) {
    let config = llama(8, LLAMA);
    compare("llama-3.1-8b, 8 layers", &config, &LENGTHS, Stored::Wide, way);
    graphs_are_eager("llama-3.1-8b, 8 layers", &config, Stored::Wide, BATCH, way);
}

/// Weights, keys, values and rows of prompts in eight bits, as the fastest server has them.
fn eight_bits_by(way: Way) {
    let config = llama(4, LLAMA);
    compare("llama-3.1-8b in eight bits, 4 layers", &config, &LENGTHS, Stored::Narrow, way);
    graphs_are_eager("llama-3.1-8b in eight bits, 4 layers", &config, Stored::Narrow, BATCH, way);
}

#[test]
fn many_layers() {
    many_layers_by(SERVED);
}

#[test]
fn many_layers_by_pairs() {
    many_layers_by(PAIRED);
}

#[test]
fn many_layers_in_short_steps() {
    many_layers_by(SHORT);
}

#[test]
fn many_layers_of_eight_bits() {
    narrow_layers_by(SERVED);
}

#[test]
fn many_layers_of_eight_bits_by_pairs() {
    narrow_layers_by(PAIRED);
}

#[test]
fn many_sequences_as_graphs() {
    let (qwen3, llama) = (qwen3(1, [64, 4, 2, 32, 128, 100]), llama(1, [128, 4, 2, 32, 256, 100]));
    graphs_are_eager("a layer of Qwen3", &qwen3, Stored::Wide, (66, 3), SERVED);
    graphs_are_eager("a layer of Llama in eight bits", &llama, Stored::Narrow, (66, 3), SERVED);
}

#[test]
#[ignore = "takes a GPU"]
fn qwen3_of_600_million() {
    qwen3_by(SERVED);
}

#[test]
#[ignore = "takes a GPU"]
fn qwen3_of_600_million_in_short_steps() {
    qwen3_by(SHORT);
}

#[test]
#[ignore = "takes a GPU"]
fn llama_of_8_billion() {
    llama_by(SERVED);
}

#[test]
#[ignore = "takes a GPU"]
fn llama_of_8_billion_by_pairs() {
    llama_by(PAIRED);
}

#[test]
#[ignore = "takes a GPU"]
fn llama_of_8_billion_in_short_steps() {
    llama_by(SHORT);
}

#[test]
#[ignore = "takes a GPU"]
fn llama_in_eight_bits() {
    eight_bits_by(SERVED);
}

#[test]
#[ignore = "takes a GPU"]
fn llama_in_eight_bits_by_pairs() {
    eight_bits_by(PAIRED);
}
