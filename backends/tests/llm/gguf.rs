//! GGUF files made by llama.cpp's own converter, against the logits of the models they were made from, and block formats
//! against gguf-py's reader. `tests/llm/make_gguf.py` wrote the files.

use crate::reference::Reference;
use backends::llm::layout;
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
    assert!(error("llama", |spec| spec.rope.scaling = backends::llm::rope::Scaling::None) > 2.0 * TOLERANCE);
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
