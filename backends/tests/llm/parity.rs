//! The reference executor against transformers, for every family and two initialisations; and the same comparison with
//! something broken on purpose, which must fail: a test that passes whatever the code does proves nothing.
//!
//! `tests/llm/make_goldens.py` wrote the goldens. The tolerance is 5e-5 of the logits' standard deviation at every
//! position; 32-bit noise is about a tenth of it.

use crate::reference::{Logits, Reference};
use backends::LoadError;
use backends::llm::rope::Rope;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::dummy::{Dummy, Init};
use backends::llm::weights::{Format, Info, Weights};
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};

const TOLERANCE: f64 = 5e-5;

/// One run of a golden file.
pub(super) struct Golden {
    pub(super) name: String,
    config: Vec<u8>,
    init: Init,
    seed: u64,
    pub(super) context: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) logits: Vec<f32>,
}

fn directory() -> PathBuf {
    // Where the tests were carried to another machine, that says where the repository lies there.
    let root = std::env::var_os("TENSORGATE_SOURCE").map(|root| PathBuf::from(root).join("backends"));
    root.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).join("tests/llm/goldens")
}

/// Both runs of a case.
pub(super) fn goldens(case: &str) -> Vec<Golden> {
    let text = std::fs::read(directory().join(format!("{case}.json"))).unwrap();
    let file: Value = serde_json::from_slice(&text).unwrap();
    let bytes = std::fs::read(directory().join(format!("{case}.bin"))).unwrap();
    let numbers: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let runs = file["runs"].as_array().unwrap();
    let tokens: Vec<u32> = file["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
    let each = numbers.len() / runs.len();
    let run = |(index, run): (usize, &Value)| Golden {
        name: format!("{case} {}", run["init"].as_str().unwrap()),
        config: serde_json::to_vec(&run["config"]).unwrap(),
        init: if run["init"] == "sigma" { Init::Sigma(0.02) } else { Init::FanIn },
        seed: file["seed"].as_u64().unwrap(),
        context: file["context"].as_u64().unwrap() as usize,
        tokens: tokens.clone(),
        logits: numbers[index * each..(index + 1) * each].to_vec(),
    };
    runs.iter().enumerate().map(run).collect()
}

impl Golden {
    pub(super) fn spec(&self) -> DecoderSpec {
        DecoderSpec::from_config(Path::new("config.json"), &self.config).unwrap()
    }

    pub(super) fn weights(&self, spec: &DecoderSpec) -> Dummy {
        Dummy::new(spec, Format::F32, self.init, self.seed).unwrap()
    }

    /// The largest difference in units of the golden logits' standard deviation.
    fn error(&self, logits: &Logits) -> f64 {
        assert_eq!(self.logits.len(), logits.data.len(), "{}", self.name);
        let count = self.logits.len() as f64;
        let mean = self.logits.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = self.logits.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        let pairs = self.logits.iter().zip(&logits.data);
        let largest = pairs
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
            .fold(0.0, |most: f64, x| if x.is_nan() { f64::INFINITY } else { most.max(x) });
        largest / variance.sqrt()
    }

    /// The error of the forward pass of `spec`, in chunks of at most `chunk` tokens.
    fn run(&self, spec: &DecoderSpec, weights: &dyn Weights, chunk: usize) -> f64 {
        let reference = Reference::new(spec.clone(), weights, self.context).unwrap();
        let mut cache = reference.cache();
        let mut logits = Logits { vocab: spec.vocab, data: Vec::new() };
        for tokens in self.tokens.chunks(chunk) {
            logits.data.extend(reference.forward(tokens, &mut cache).unwrap().data);
        }
        assert_eq!(cache.len(), self.tokens.len());
        self.error(&logits)
    }
}

/// Every golden case of this directory.
pub(super) fn cases() -> Vec<String> {
    let names = std::fs::read_dir(directory()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<_> = names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect();
    cases.sort();
    cases
}

#[test]
fn every_family_equals_transformers() {
    let cases = cases();
    assert!(cases.len() >= 19, "goldens are missing");
    let mut failed = Vec::new();
    for golden in cases.iter().flat_map(|case| goldens(case)) {
        let spec = golden.spec();
        let weights = golden.weights(&spec);
        backends::llm::layout::check(&spec, &weights).unwrap();
        let error = golden.run(&spec, &weights, usize::MAX);
        println!("{:24} {error:.1e}", golden.name);
        if error >= TOLERANCE {
            failed.push((golden.name, error));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn chunks_equal_the_whole() {
    for golden in cases().iter().flat_map(|case| goldens(case)) {
        let spec = golden.spec();
        let weights = golden.weights(&spec);
        for chunk in [1, 7] {
            let error = golden.run(&spec, &weights, chunk);
            assert!(error < TOLERANCE, "{} in chunks of {chunk}: {error:e}", golden.name);
        }
    }
}

/// The goldens hold both spellings of `config.json`: they must mean the same.
#[test]
fn both_spellings_make_the_same_spec() {
    for case in cases() {
        let specs: Vec<String> = goldens(&case).iter().map(|golden| format!("{:?}", golden.spec())).collect();
        assert_eq!(specs[0], specs[1], "{case}");
    }
}

/// Changes a spec; the goldens must then be missed by far.
fn must_fail(what: &str, case: &str, init: &str, change: impl Fn(&mut DecoderSpec)) {
    let name = format!("{case} {init}");
    let golden = goldens(case).into_iter().find(|golden| golden.name == name).unwrap();
    let mut spec = golden.spec();
    let weights = golden.weights(&spec);
    change(&mut spec);
    let error = golden.run(&spec, &weights, usize::MAX);
    println!("{what:32} {name:20} {error:.1e}");
    assert!(error > 2.0 * TOLERANCE, "{what}, {name}: broken, and yet within {error:e}");
}

fn both(what: &str, case: &str, change: impl Fn(&mut DecoderSpec)) {
    must_fail(what, case, "fan_in", &change);
    must_fail(what, case, "sigma", &change);
}

#[test]
fn a_wrong_rotation_is_caught() {
    both("interleaved pairs", "qwen3", |spec| spec.rope.interleaved = true);
    both("theta 5 % off", "qwen3", |spec| spec.rope.theta *= 1.05);
    both("halved rotation", "qwen3", |spec| spec.rope.dims /= 2);
    let unscaled =
        |spec: &mut DecoderSpec| spec.rope = Rope { scaling: backends::llm::rope::Scaling::None, ..spec.rope.clone() };
    for case in ["llama3", "llama_linear", "llama_yarn", "phi3", "phi4_mini", "gemma3", "gpt_oss"] {
        both("no scaling", case, unscaled);
    }
    both("one theta for all layers", "gemma3", |spec| spec.rope_local = Some(spec.rope.clone()));
    both("rotation in every layer", "smollm3", |spec| {
        spec.layers.iter_mut().for_each(|layer| layer.rotation = backends::llm::spec::Rotation::Global);
    });
}

#[test]
fn a_wrong_norm_is_caught() {
    use backends::llm::spec::{Placement, QkNorm};
    // With activations near 1 an epsilon does not show: that is what the small initialisation is for.
    must_fail("epsilon 1e-6 to 1e-5", "qwen3", "sigma", |spec| spec.norm.eps = 1e-5);
    must_fail("epsilon 1e-5 to 1e-6", "llama3", "sigma", |spec| spec.norm.eps = 1e-6);
    both("no norm of queries and keys", "qwen3", |spec| spec.attention.qk_norm = QkNorm::None);
    both("norm weights without the one", "gemma2", |spec| spec.norm.plus_one = false);
    both("only the norms before", "gemma2", |spec| spec.norm.placement = Placement::Before);
}

#[test]
fn a_wrong_attention_is_caught() {
    both("no window", "mistral", |spec| spec.layers.iter_mut().for_each(|layer| layer.window = None));
    both("window one longer", "mistral", |spec| spec.layers.iter_mut().for_each(|layer| layer.window = Some(9)));
    both("windows in the wrong layers", "gemma2", |spec| spec.layers.rotate_left(1));
    both("scale 2 % off", "qwen3", |spec| spec.attention.scale *= 1.02);
    must_fail("no cap on scores", "gemma2", "fan_in", |spec| spec.attention.softcap = None);
    both("no sinks", "gpt_oss", |spec| spec.attention.sinks = false);
    both("no bias", "qwen2", |spec| spec.attention.qkv_bias = false);
}

#[test]
fn a_wrong_block_is_caught() {
    use backends::llm::spec::{Activation, Routing};
    // Caps and the two formulas of gelu agree near 0, where the small initialisation stays.
    must_fail("gelu by its other formula", "llama_yarn", "fan_in", |spec| spec.activation = Activation::GeluTanh);
    both("weights not renormalised", "mixtral", |spec| {
        spec.mixture = spec.mixture.map(|m| backends::llm::spec::Mixture { routing: Routing::Softmax, ..m });
    });
    both("one expert too many", "qwen3_moe", |spec| {
        spec.mixture = spec.mixture.map(|m| backends::llm::spec::Mixture { top_k: m.top_k + 1, ..m });
    });
    both("no scale on embeddings", "granite", |spec| spec.scales.embedding = 1.0);
    both("no scale on residuals", "granite", |spec| spec.scales.residual = 1.0);
    must_fail("no cap on logits", "gemma2", "fan_in", |spec| spec.scales.logit_softcap = None);
}

/// Weights whose key and value heads are exchanged.
struct Exchanged<'a>(&'a Dummy);

impl Weights for Exchanged<'_> {
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
        let mut bytes = self.0.read(name, range)?;
        if name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight") {
            let half = bytes.len() / 2;
            bytes.rotate_left(half);
        }
        Ok(bytes)
    }
}

#[test]
fn exchanged_key_heads_are_caught() {
    for golden in goldens("qwen3") {
        let spec = golden.spec();
        let error = golden.run(&spec, &Exchanged(&golden.weights(&spec)), usize::MAX);
        assert!(error > 2.0 * TOLERANCE, "{}: {error:e}", golden.name);
    }
}

#[test]
fn a_refused_call_leaves_the_cache_alone() {
    let golden = goldens("qwen3").remove(0);
    let spec = golden.spec();
    let reference = Reference::new(spec.clone(), &golden.weights(&spec), 8).unwrap();
    let mut cache = reference.cache();
    reference.forward(&golden.tokens[..5], &mut cache).unwrap();
    let refused = |tokens: &[u32], cache: &mut _| reference.forward(tokens, cache).unwrap_err().to_string();
    assert_eq!(refused(&[], &mut cache), "no tokens");
    assert_eq!(refused(&[1, 257], &mut cache), "token 257 is not below 257");
    assert_eq!(refused(&[1; 4], &mut cache), "9 positions; the context is 8");
    assert_eq!(cache.len(), 5);
    assert_eq!(reference.forward(&[1; 3], &mut cache).unwrap().data.len(), 3 * 257);
}

/// LongRoPE's divisors go by the context that is to be served, so a longer one must change the result.
#[test]
fn the_served_context_chooses_the_divisors() {
    let mut golden = goldens("phi3").remove(0);
    let spec = golden.spec();
    let weights = golden.weights(&spec);
    assert!(golden.run(&spec, &weights, usize::MAX) < TOLERANCE);
    golden.context = 65;
    assert!(golden.run(&spec, &weights, usize::MAX) > 2.0 * TOLERANCE);
}
