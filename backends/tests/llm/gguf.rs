//! GGUF files made by llama.cpp's own converter, against the logits of the models they were made from, and block formats
//! against gguf-py's reader. `tests/llm/make_gguf.py` wrote the files.

use crate::reference::Reference;
use backends::llm::layout;
use backends::llm::rope::Scaling;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::blocks::dequantise;
use backends::llm::weights::gguf::Gguf;
use backends::llm::weights::{Format, Weights, gguf_spec};
use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm/gguf")
}

fn numbers(path: &Path) -> Vec<f32> {
    dequantise(Format::F32, &std::fs::read(path).unwrap())
}

/// The largest difference between the logits of a file and the golden ones, in standard deviations of the latter.
fn error(case: &str, change: impl Fn(&mut DecoderSpec)) -> f64 {
    let tokens = std::fs::read(directory().join(format!("{case}.json"))).unwrap();
    let tokens: Vec<u32> = serde_json::from_slice(&tokens).unwrap();
    let golden = numbers(&directory().join(format!("{case}.bin")));
    let gguf = Gguf::open(&directory().join(format!("{case}.gguf"))).unwrap();
    let mut spec = gguf_spec::spec(&gguf).unwrap();
    layout::check(&spec, &gguf).unwrap();
    change(&mut spec);
    let reference = Reference::new(spec, &gguf, tokens.len()).unwrap();
    let logits = reference.forward(&tokens, &mut reference.cache()).unwrap().data;
    assert_eq!(golden.len(), logits.len());
    let count = golden.len() as f64;
    let mean = golden.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let variance = golden.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
    let difference = golden.iter().zip(&logits).map(|(a, b)| f64::from((a - b).abs()));
    difference.fold(0.0, f64::max) / variance.sqrt()
}

const TOLERANCE: f64 = 5e-5;

#[test]
fn converted_models_equal_their_originals() {
    let cases = [
        "llama",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3",
        "smollm3",
        "olmo2",
        "granite",
        "qwen3moe",
        "mixtral",
        "gpt_oss",
        "gpt_oss_mxfp4",
    ];
    let errors: Vec<_> = cases.iter().map(|case| (case, error(case, |_| ()))).collect();
    errors.iter().for_each(|(case, error)| println!("{case:10} {error:.1e}"));
    assert!(errors.iter().all(|(_, error)| *error < TOLERANCE), "{errors:?}");
}

/// The same comparison must fail where what converters do is not put right.
#[test]
fn what_converters_change_matters() {
    for case in ["llama", "granite", "smollm3"] {
        assert!(error(case, |spec| spec.rope.interleaved = false) > 2.0 * TOLERANCE, "{case}");
    }
    assert!(error("gemma3", |spec| spec.norm.plus_one = true) > 2.0 * TOLERANCE);
    assert!(error("llama", |spec| spec.rope.scaling = Scaling::None) > 2.0 * TOLERANCE);
}

/// Metadata: a key, the type of its value, and its bytes.
type Entry<'a> = (&'a str, (u32, Vec<u8>));

fn text(value: &str) -> (u32, Vec<u8>) {
    (8, [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat())
}

fn real(value: f32) -> (u32, Vec<u8>) {
    (6, value.to_le_bytes().to_vec())
}

fn whole(value: u32) -> (u32, Vec<u8>) {
    (4, value.to_le_bytes().to_vec())
}

/// What is read of a small Llama without tensors, and with these metadata besides.
fn llama(more: &[Entry<'_>]) -> Result<DecoderSpec, String> {
    let sizes = [
        ("vocab_size", 300),
        ("context_length", 128),
        ("embedding_length", 64),
        ("block_count", 2),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
    ];
    let mut entries: Vec<Entry<'_>> = sizes.map(|(key, size)| (key, whole(size))).into();
    entries.extend_from_slice(more);
    let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes()[..], &0u64.to_le_bytes()[..]].concat();
    bytes.extend((entries.len() as u64 + 1).to_le_bytes());
    let mut put = |key: &str, (kind, value): &(u32, Vec<u8>)| {
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend_from_slice(value);
    };
    put("general.architecture", &text("llama"));
    entries.iter().for_each(|(key, value)| put(&format!("llama.{key}"), value));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    gguf_spec::spec(&Gguf::open(file.path()).unwrap()).map_err(|error| error.reason)
}

#[test]
fn a_scaling_is_what_llama_cpp_makes_of_it() {
    let scaling = |more: &[_]| llama(more).unwrap().rope.scaling;
    let kind = |kind: &str| ("rope.scaling.type", text(kind));
    let factor = || ("rope.scaling.factor", real(4.0));
    let linear = |factor| Scaling::Linear { factor };
    assert_eq!(scaling(&[]), Scaling::None);
    assert_eq!(scaling(&[factor()]), linear(4.0), "a factor alone");
    assert_eq!(scaling(&[kind("linear"), factor()]), linear(4.0));
    assert_eq!(scaling(&[("rope.scale_linear", real(2.0))]), linear(2.0), "the older name");
    assert_eq!(scaling(&[("rope.scale_linear", real(2.0)), factor()]), linear(4.0), "the newer one first");
    assert_eq!(scaling(&[kind("none"), factor()]), Scaling::None);
    assert_eq!(scaling(&[("rope.scaling.factor", real(0.0))]), Scaling::None);
    let reason = llama(&[kind("twisted"), factor()]).unwrap_err();
    assert!(reason.contains("`rope_type` is 'twisted'; supported are"), "{reason}");
}

#[test]
fn factors_of_yarn_are_read() {
    let yarn = |more: &[Entry<'static>]| {
        let mut entries = vec![("rope.scaling.type", text("yarn")), ("rope.scaling.factor", real(4.0))];
        entries.extend_from_slice(more);
        llama(&entries)
    };
    let attention = |more: &[_]| match yarn(more).unwrap().rope.scaling {
        Scaling::Yarn { attention, beta_fast, beta_slow, .. } => (attention, beta_fast, beta_slow),
        other => panic!("{other:?}"),
    };
    assert_eq!(attention(&[]), (0.1 * 4f64.ln() + 1.0, 32.0, 1.0));
    let own = || ("rope.scaling.yarn_attn_factor", real(1.5));
    assert_eq!(attention(&[own()]).0, 1.5);
    assert_eq!(attention(&[("rope.scaling.attn_factor", real(1.25)), own()]).0, 1.25);
    let betas = [("rope.scaling.yarn_beta_fast", real(16.0)), ("rope.scaling.yarn_beta_slow", real(2.0))];
    assert_eq!(attention(&betas), (0.1 * 4f64.ln() + 1.0, 16.0, 2.0));
    for neutral in [1.0, -1.0] {
        yarn(&[("rope.scaling.yarn_ext_factor", real(neutral))]).unwrap();
    }
    let reason = yarn(&[("rope.scaling.yarn_ext_factor", real(0.5))]).unwrap_err();
    assert_eq!(reason, "`llama.rope.scaling.yarn_ext_factor` is 0.5; with scaling of type 'yarn' only 1 is supported");
}

#[test]
fn tokens_that_see_those_after_them_are_refused() {
    let reason = llama(&[("attention.causal", (7, vec![0]))]).unwrap_err();
    assert!(reason.starts_with("`llama.attention.causal` is false; supported are"), "{reason}");
    llama(&[("attention.causal", (7, vec![1]))]).unwrap();
}

#[test]
fn blocks_equal_the_reader_of_gguf_py() {
    let gguf = Gguf::open(&directory().join("quantised.gguf")).unwrap();
    let golden = numbers(&directory().join("quantised.bin"));
    let names = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4"];
    for (name, golden) in names.iter().zip(golden.chunks_exact(3 * 512)) {
        let info = gguf.info(name).unwrap();
        assert_eq!(info.shape, [3, 512]);
        let bytes = gguf.read(name, 0..info.format.bytes(&info.shape).unwrap()).unwrap();
        let found = dequantise(info.format, &bytes);
        let largest = golden.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        // gguf-py multiplies scales in another order: the last bit may differ.
        for (index, (golden, found)) in golden.iter().zip(&found).enumerate() {
            assert!((golden - found).abs() <= 2e-7 * largest, "{name} number {index}: {found}, not {golden}");
        }
    }
}
