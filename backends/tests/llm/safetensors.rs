//! safetensors files as Python writes them: shards, half precision, and gpt-oss's experts in two tensors.
//! `tests/llm/make_gguf.py` wrote the files and the logits.

use crate::reference::Reference;
use backends::llm::layout;
use backends::llm::spec::{DecoderSpec, FloatType};
use backends::llm::weights::blocks::dequantise;
use backends::llm::weights::safetensors::Safetensors;
use backends::llm::weights::{Format, Weights};
use kernels::cuda::{Bf16, E4m3};
use std::fs;
use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm/shards")
}

fn spec() -> DecoderSpec {
    let file = directory().join("config.json");
    DecoderSpec::from_config(&file, &fs::read(&file).unwrap()).unwrap()
}

#[test]
fn a_published_checkpoint_of_gpt_oss_equals_transformers() {
    let (spec, weights) = (spec(), Safetensors::open(&directory()).unwrap());
    assert_eq!(spec.dtype, Some(FloatType::Bf16));
    layout::check(&spec, &weights).unwrap();
    let experts = weights.info("model.layers.0.mlp.experts.down_proj").unwrap();
    assert_eq!((experts.format, &experts.shape[..]), (Format::Mxfp4, &[4, 32, 32][..]));

    let tokens = fs::read(directory().join("gpt_oss_mxfp4.json")).unwrap();
    let tokens: Vec<u32> = serde_json::from_slice(&tokens).unwrap();
    let golden = dequantise(Format::F32, &fs::read(directory().join("gpt_oss_mxfp4.bin")).unwrap());
    let reference = Reference::new(spec, &weights, tokens.len()).unwrap();
    let logits = reference.forward(&tokens, &mut reference.cache()).unwrap().data;
    let largest = golden.iter().zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let deviation = (golden.iter().map(|x| x * x).sum::<f32>() / golden.len() as f32).sqrt();
    println!("gpt_oss_mxfp4 {:e}", largest / deviation);
    assert!(largest < 5e-5 * deviation, "{largest} of {deviation}");
}

#[test]
fn any_range_of_a_tensor_can_be_read() {
    let weights = Safetensors::open(&directory()).unwrap();
    for name in ["model.layers.0.mlp.experts.gate_up_proj", "model.norm.weight", "lm_head.weight"] {
        let info = weights.info(name).unwrap();
        let size = info.format.bytes(&info.shape).unwrap();
        let whole = weights.read(name, 0..size).unwrap();
        for range in [0..0, 0..1, 5..40, size - 1..size, 17..size] {
            assert_eq!(weights.read(name, range.clone()).unwrap(), whole[range.clone()], "{name} {range:?}");
        }
        assert!(weights.read(name, 1..size + 1).unwrap_err().reason.contains("bytes, not"));
    }
}

/// What a changed copy of the checkpoint is refused for.
fn refusal(change: impl Fn(&Path)) -> String {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(directory()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    change(copy.path());
    let opened = Safetensors::open(copy.path());
    opened.and_then(|weights| layout::check(&spec(), &weights)).unwrap_err().to_string()
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from));
    fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    let index = "model.safetensors.index.json";
    for name in ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors", "..", "config.json"] {
        let reason = refusal(|copy| edit(&copy.join(index), "model-00001-of-00002.safetensors", name));
        assert!(reason.contains("is no plain name"), "{name}: {reason}");
    }
    let reason = refusal(|copy| edit(&copy.join(index), "00002-of-00002", "00009-of-00002"));
    assert!(reason.contains("No such file"), "{reason}");
    let reason = refusal(|copy| edit(&copy.join(index), "\"lm_head.weight\"", "\"lm_head.wait\""));
    assert!(reason.contains("does not place tensor 'lm_head.weight'"), "{reason}");
    let reason = refusal(|copy| {
        edit(&copy.join(index), "\"weight_map\": {", "\"weight_map\": {\"more\": \"model-00001-of-00002.safetensors\",")
    });
    assert!(reason.contains("places tensor 'more'"), "{reason}");
}

/// What transformers takes where there are both.
#[test]
fn a_single_file_wins_over_an_index_that_does_not_name_it() {
    let (first, single) = ("model-00001-of-00002.safetensors", "model.safetensors");
    let second = "model-00002-of-00002.safetensors";
    let copy = tempfile::tempdir().unwrap();
    let index = copy.path().join("model.safetensors.index.json");
    fs::copy(directory().join("model.safetensors.index.json"), &index).unwrap();
    fs::copy(directory().join(first), copy.path().join(single)).unwrap();
    let alone = Safetensors::open(copy.path()).unwrap();
    assert!(!alone.names().is_empty());
    assert!(alone.names().len() < Safetensors::open(&directory()).unwrap().names().len());
    // One of several shards may be called that.
    edit(&index, first, single);
    let reason = Safetensors::open(copy.path()).unwrap_err().to_string();
    assert!(reason.contains(second), "{reason}");
    fs::copy(directory().join(second), copy.path().join(second)).unwrap();
    layout::check(&spec(), &Safetensors::open(copy.path()).unwrap()).unwrap();
}

#[test]
fn missing_and_unexpected_tensors_are_named() {
    let first = "model-00001-of-00002.safetensors";
    let rename = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        refusal(move |copy| {
            for file in
                [copy.join("model.safetensors.index.json"), copy.join(first), copy.join(first.replace("1-", "2-"))]
            {
                let mut bytes = fs::read(&file).unwrap();
                while let Some(at) = bytes.windows(from.len()).position(|window| window == from.as_bytes()) {
                    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
                }
                fs::write(&file, bytes).unwrap();
            }
        })
    };
    let reason = rename("model.norm.weight", "model.morn.weight");
    assert!(
        reason.contains("lacks 1 tensors: model.norm.weight; has unexpected 1 tensors: model.morn.weight"),
        "{reason}"
    );
    let reason = rename("down_proj_scales", "down_proj_scaled");
    assert!(reason.contains("has no `_scales`"), "{reason}");
}

/// A file that shrinks after it was opened makes an error, not a signal.
#[test]
fn a_file_cut_after_opening_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = br#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header, &[0; 16]].concat()).unwrap();
    let weights = Safetensors::open(folder.path()).unwrap();
    assert_eq!(weights.read("a", 0..16).unwrap(), [0; 16]);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(20).unwrap();
    assert!(weights.read("a", 0..16).unwrap_err().reason.contains("cannot be read"));
}

/// A file of tensors: name, type, shape, bytes.
fn file(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Result<Safetensors, String> {
    let folder = tempfile::tempdir().unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let place = [data.len(), data.len() + bytes.len()];
        let told = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": place});
        header.insert((*name).to_owned(), told);
        data.extend(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
    Safetensors::open(folder.path()).map_err(|error| error.to_string())
}

/// A matrix of eight-bit floats, and what its scales are made of.
fn narrow(outputs: usize, inputs: usize) -> Vec<u8> {
    (0..outputs * inputs)
        .map(|at| (at * 37 % 251) as u8)
        .filter(|bits| bits & 0x7f != 0x7f)
        .cycle()
        .take(outputs * inputs)
        .collect()
}

fn scale(at: usize) -> f32 {
    0.01 + 0.003 * at as f32
}

#[test]
fn matrices_of_eight_bits_and_their_scales_are_one() {
    let (outputs, inputs) = (150, 300);
    let stored = narrow(outputs, inputs);
    let floats = |count: usize| (0..count).flat_map(|at| scale(at).to_le_bytes()).collect::<Vec<u8>>();
    let halves =
        |count: usize| (0..count).flat_map(|at| Bf16::from_f32(scale(at)).0.to_le_bytes()).collect::<Vec<u8>>();
    type Case<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>, fn(usize, usize) -> usize);
    let cases: [Case<'_>; 6] = [
        ("a.weight_scale_inv", "F32", &[2, 3], floats(6), |row, column| row / 128 * 3 + column / 128),
        ("a.weight_scale_inv", "BF16", &[2, 3], halves(6), |row, column| row / 128 * 3 + column / 128),
        ("a.weight_scale", "F32", &[150, 1], floats(150), |row, _| row),
        ("a.weight_scale", "F32", &[150], floats(150), |row, _| row),
        ("a.weight_scale", "F32", &[], floats(1), |_, _| 0),
        ("a.weight_scale", "BF16", &[1], halves(1), |_, _| 0),
    ];
    for (name, dtype, shape, scales, which) in cases {
        let of_inputs = ("a.input_scale", "F32", &[][..], vec![0; 4]);
        let matrix = ("a.weight", "F8_E4M3", &[outputs, inputs][..], stored.clone());
        let weights = file(&[of_inputs, matrix, (name, dtype, shape, scales)]).unwrap();
        assert_eq!(weights.names(), ["a.weight"]);
        let info = weights.info("a.weight").unwrap();
        assert_eq!((info.format, &info.shape[..]), (Format::Bf16, &[outputs, inputs][..]));
        let size = 2 * outputs * inputs;
        let whole = weights.read("a.weight", 0..size).unwrap();
        for (at, (bytes, bits)) in whole.chunks_exact(2).zip(&stored).enumerate() {
            let scale = scale(which(at / inputs, at % inputs));
            let scale = if dtype == "BF16" { Bf16::from_f32(scale).to_f32() } else { scale };
            let want = Bf16::from_f32(E4m3(*bits).to_f32() * scale);
            assert_eq!(bytes, want.0.to_le_bytes(), "{name} {dtype} {shape:?}: number {at}");
        }
        // The same as codes, but that these are not rounded.
        let told = weights.stored("a.weight").unwrap();
        for rows in [0..outputs, 0..1, 127..129, outputs - 1..outputs] {
            let groups = weights.read_groups("a.weight", rows.clone()).unwrap().unwrap();
            assert_eq!((groups.code, groups.group, groups.minima.is_empty()), (told.code, told.group, !told.minima));
            let numbers = groups.to_f32().into_iter().flat_map(|number| Bf16::from_f32(number).0.to_le_bytes());
            let here = 2 * rows.start * inputs..2 * rows.end * inputs;
            assert_eq!(numbers.collect::<Vec<u8>>(), whole[here], "{name} rows {rows:?}");
        }
        assert!(weights.read_groups("a.weight", 0..outputs + 1).is_err());
        for range in [0..0, 0..1, 255..257, 599..78_001, 76_799..76_803, size - 1..size, size..size] {
            assert_eq!(weights.read("a.weight", range.clone()).unwrap(), whole[range.clone()], "{name} {range:?}");
        }
    }
}

#[test]
fn matrices_of_eight_bits_without_their_scales_are_refused() {
    let refused = |shape: &'static [usize], scales: &'static [usize], dtype: &str| {
        let count: usize = scales.iter().product();
        let matrix = ("a.weight", "F8_E4M3", shape, narrow(shape.iter().product(), 1));
        let scales = ("a.weight_scale", dtype, scales, vec![0; count * if dtype == "F32" { 4 } else { 1 }]);
        file(&[matrix, scales]).unwrap_err()
    };
    for (shape, scales, dtype) in [
        (&[150, 300][..], &[3, 2][..], "F32"),
        (&[150, 300], &[300], "F32"),
        (&[150, 300], &[1, 150], "F32"),
        (&[150, 300], &[150], "U8"),
        (&[2, 150, 300], &[1], "F32"),
        (&[150], &[150], "F32"),
        (&[0, 300], &[1], "F32"),
    ] {
        let reason = refused(shape, scales, dtype);
        assert!(reason.contains("tensor 'a.weight' has no `_scale` of a fitting shape"), "{reason}");
    }
    let alone = file(&[("a.weight", "F8_E4M3", &[2, 2], vec![0; 4])]).unwrap_err();
    assert!(alone.contains("has no `_scale`"), "{alone}");
    let short = file(&[("a.weight", "F8_E4M3", &[2, 3], vec![0; 4])]).unwrap_err();
    assert!(short.contains("of shape [2, 3] has 4 bytes"), "{short}");
    let other = file(&[("a.weight", "F8_E5M2", &[2, 2], vec![0; 4])]).unwrap_err();
    assert!(other.contains("is of type F8_E5M2; supported are F32, F16, BF16, F8_E4M3"), "{other}");
}
