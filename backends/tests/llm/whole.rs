//! Whole models on a GPU beside the executor of CPUs, which sums in 32 bits: prompts token by token, and what is generated.
//! Weights are made up. In the emulator a toy of many layers; where there is a GPU, models of the sizes that people serve
//! (`--ignored`).

use crate::cuda::{PLAIN, Variant, device, options, prompt_logprobs, run};
use crate::driven::{Setting, drive};
use backends::llm::cpu::{self, CpuExecutor};
use backends::llm::cuda::{CacheType, CudaExecutor, Options};
use backends::llm::engine::Overlap;
use backends::llm::sampling::Parameters;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::Format;
use backends::llm::weights::Weights;
use backends::llm::weights::dummy::{Dummy, Init};
use std::path::Path;
use std::sync::Arc;

/// Root of the mean squared error of log probabilities, in units of the logits' standard deviation. 28 layers of
/// a toy err by 0.005; a wrong rotation, window or norm by 0.05 and more.
const TOLERANCE: f64 = 0.02;
/// The same in eight bits: 12 layers of a toy err by 0.02 where rows are not rounded, and by 0.05 where they are.
const NARROW_TOLERANCE: f64 = 0.1;
/// What one token may err by, where the root mean square is that: of a thousand, one is three and a half times as far off.
const FARTHEST: f64 = 5.0;

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
fn compare(name: &str, config: &str, lengths: &[usize], stored: Stored) {
    let spec = DecoderSpec::from_config(Path::new("config.json"), config.as_bytes()).unwrap();
    let weights = stored.weights(&spec);
    let prompts: Vec<Vec<u32>> = (1..).zip(lengths).map(|(seed, length)| tokens(seed, *length, spec.vocab)).collect();

    let greedy = Parameters { logprobs: Some(1), ignore_eos: true, ..Parameters::default() };
    let requests: Vec<(Vec<u32>, Parameters)> = prompts.iter().map(|prompt| (prompt.clone(), greedy.clone())).collect();
    let ahead = Variant { running: 8, graphs: true, overlap: Overlap::Ahead, stored: stored.cache(), ..PLAIN };
    let variant = Variant { deterministic: false, ..ahead };
    let answers = run(&spec, &weights, variant, &requests);

    // As a server has it: more than 64 rows go through the tensor cores' kernel.
    let served = Options { deterministic: false, cache: stored.cache(), ..options(32, 512) };
    let mut gpu = CudaExecutor::load(spec.clone(), &weights, device(), served).unwrap();
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().build().unwrap());
    let cache = cpu::Shape { blocks: 32, block_len: 32, storage: cpu::CacheType::F32 };
    let cpu = cpu::Options { cache, context: 512, slots: 8, end_tokens: Vec::new(), pool, poison: false };
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
fn graphs_are_eager(name: &str, config: &str, stored: Stored, (sequences, most): (usize, u32)) {
    let spec = DecoderSpec::from_config(Path::new("config.json"), config.as_bytes()).unwrap();
    let weights = stored.weights(&spec);
    let greedy = Parameters { logprobs: Some(1), ignore_eos: true, ..Parameters::default() };
    let drawn = Parameters { temperature: 1.0, top_p: 0.9, seed: 5, ..greedy.clone() };
    let request = |at: usize| (tokens(at as u32, 1 + at % 12, spec.vocab), [&greedy, &drawn][at % 2].clone());
    let requests: Vec<_> = (0..sequences).map(request).collect();
    let [eager, captured] = [false, true].map(|graphs| {
        let (blocks, block_len, running) = (256, 32, 128);
        let settings = options(blocks, 512);
        let settings = Options { slots: 128, deterministic: false, cache: stored.cache(), graphs, ..settings };
        let executor = CudaExecutor::load(spec.clone(), &weights, device(), settings).unwrap();
        let (chunk, cache, overlap, vocab) = (512, false, Overlap::Ahead, spec.vocab as u32);
        drive(executor, Setting { blocks, block_len, chunk, running, cache, overlap, most, vocab }, &requests).0
    });
    assert!(eager.iter().all(|answer| answer.len() == most as usize), "{name}");
    let differ = eager.iter().zip(&captured).filter(|(eager, captured)| eager != captured).count();
    println!("{name}: {differ} of {sequences} prompts are answered otherwise by graphs");
    assert_eq!(differ, 0, "{name}");
}

#[test]
fn many_layers() {
    compare("12 layers of Qwen3, 64 wide", &qwen3(12, [64, 4, 2, 32, 128, 500]), &[5, 70], Stored::Wide);
    compare("12 layers of Llama, 64 wide", &llama(12, [64, 4, 2, 32, 128, 500]), &[5, 70], Stored::Wide);
}

#[test]
fn many_layers_of_eight_bits() {
    compare("12 layers of Llama in eight bits", &llama(12, [128, 4, 2, 32, 256, 500]), &[5, 70], Stored::Narrow);
}

#[test]
fn many_sequences_as_graphs() {
    graphs_are_eager("a layer of Qwen3", &qwen3(1, [64, 4, 2, 32, 128, 100]), Stored::Wide, (66, 3));
    graphs_are_eager("a layer of Llama in eight bits", &llama(1, [128, 4, 2, 32, 256, 100]), Stored::Narrow, (66, 3));
}

#[test]
#[ignore = "takes a GPU"]
fn qwen3_of_600_million() {
    let config = qwen3(28, [1024, 16, 8, 128, 3072, 151_936]);
    compare("qwen3-0.6b", &config, &[1, 33, 100, 300], Stored::Wide);
    graphs_are_eager("qwen3-0.6b", &config, Stored::Wide, (100, 12));
}

/// The widths of the model with 8 billion parameters, and a quarter of its layers, for the CPU's sake.
#[test]
#[ignore = "takes a GPU"]
fn llama_of_8_billion() {
    let config = llama(8, [4096, 32, 8, 128, 14_336, 128_256]);
    compare("llama-3.1-8b, 8 layers", &config, &[1, 33, 100, 300], Stored::Wide);
    graphs_are_eager("llama-3.1-8b, 8 layers", &config, Stored::Wide, (100, 12));
}

/// Weights, keys, values and rows of prompts in eight bits, as the fastest server has them.
#[test]
#[ignore = "takes a GPU"]
fn llama_in_eight_bits() {
    let config = llama(4, [4096, 32, 8, 128, 14_336, 128_256]);
    compare("llama-3.1-8b in eight bits, 4 layers", &config, &[1, 33, 100, 300], Stored::Narrow);
    graphs_are_eager("llama-3.1-8b in eight bits, 4 layers", &config, Stored::Narrow, (100, 12));
}
