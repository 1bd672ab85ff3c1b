//! Checkpoints of packed integers, as GPTQ, AWQ and compressed-tensors write them. `tests/llm/make_packed.py` wrote the
//! files, and the numbers that they stand for.

use crate::driven::prompt_logprobs;
use backends::llm::cpu::{CacheType, CpuExecutor, Options, Shape};
use backends::llm::layout;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::cast::Cast;
use backends::llm::weights::groups::Code;
use backends::llm::weights::packed::Scheme;
use backends::llm::weights::safetensors::Safetensors;
use backends::llm::weights::{Format, Weights};
use kernels::cuda::Bf16;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm/goldens/packed")
}

/// `quantization_config` of each case.
fn cases() -> Map<String, Value> {
    serde_json::from_slice(&fs::read(folder().join("cases.json")).unwrap()).unwrap()
}

fn llama() -> Value {
    serde_json::from_slice(&fs::read(folder().join("llama.json")).unwrap()).unwrap()
}

/// What is read of a configuration whose matrices are packed so.
fn scheme(quantisation: &Value) -> Result<Option<Scheme>, String> {
    let mut config = llama();
    config["quantization_config"] = quantisation.clone();
    let spec = DecoderSpec::from_config(Path::new("config.json"), &serde_json::to_vec(&config).unwrap());
    spec.map(|spec| spec.packed).map_err(|error| error.reason)
}

fn open(case: &str) -> Safetensors {
    let scheme = scheme(&cases()[case]).unwrap();
    Safetensors::open_file(&folder().join(format!("{case}.safetensors")), scheme).unwrap()
}

fn size(weights: &dyn Weights, name: &str) -> usize {
    let info = weights.info(name).unwrap();
    info.format.bytes(&info.shape).unwrap()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|bits| Bf16(u16::from_le_bytes([bits[0], bits[1]])).to_f32()).collect()
}

#[test]
fn every_format_stands_for_its_numbers() {
    let expected = Safetensors::open_file(&folder().join("numbers.safetensors"), None).unwrap();
    let mut seen = 0;
    for case in cases().keys() {
        let weights = open(case);
        for name in weights.names().into_iter().filter(|name| *name != "norm.weight") {
            let of_case = format!("{case}.{name}");
            let (info, wanted) = (weights.info(name).unwrap(), expected.info(&of_case).unwrap());
            assert_eq!((info.format, &info.shape), (Format::Bf16, &wanted.shape), "{of_case}");
            let wanted = expected.read(&of_case, 0..size(&expected, &of_case)).unwrap();
            assert!(weights.read(name, 0..size(&weights, name)).unwrap() == wanted, "{of_case}");
            seen += 1;
        }
        assert_eq!(weights.info("norm.weight").unwrap().shape, [3], "{case}");
        assert_eq!(numbers(&weights.read("norm.weight", 0..6).unwrap()), [1.0; 3], "{case}");
    }
    assert_eq!(seen, expected.names().len());
}

#[test]
fn any_range_of_a_packed_matrix_can_be_read() {
    for case in cases().keys() {
        let weights = open(case);
        for name in weights.names() {
            let size = size(&weights, name);
            let whole = weights.read(name, 0..size).unwrap();
            let (middle, row) = (size / 2, 2 * weights.info(name).unwrap().shape.last().unwrap());
            for range in
                [0..0, 0..1, 1..size, middle - 1..middle + 1, row..size.min(3 * row), size - 1..size, size..size]
            {
                assert_eq!(weights.read(name, range.clone()).unwrap(), whole[range.clone()], "{case} {name} {range:?}");
            }
            assert!(weights.read(name, 1..size + 1).unwrap_err().reason.contains("bytes, not"));
        }
    }
}

#[test]
fn codes_mean_the_same_numbers() {
    let mut kept = Vec::new();
    for case in cases().keys() {
        let weights = open(case);
        for name in weights.names() {
            let (rows, columns) = match weights.info(name).unwrap().shape[..] {
                [rows, columns] => (rows, columns),
                _ => continue,
            };
            let Some(stored) = weights.stored(name) else {
                assert_eq!(weights.read_groups(name, 0..rows).unwrap(), None);
                kept.push((format!("{case} {name}"), None));
                continue;
            };
            kept.push((format!("{case} {name}"), Some((stored.code, stored.minima))));
            for some in [0..rows, 1..rows, rows - 1..rows, 2..5] {
                let groups = weights.read_groups(name, some.clone()).unwrap().unwrap();
                assert_eq!((groups.code, groups.group), (stored.code, stored.group));
                assert_eq!((groups.rows(), groups.columns), (some.len(), columns));
                assert_eq!(groups.scales.len(), some.len() * groups.across());
                assert_eq!(groups.minima.len(), if stored.minima { groups.scales.len() } else { 0 });
                let wanted = numbers(&weights.read(name, 2 * some.start * columns..2 * some.end * columns).unwrap());
                for (wanted, found) in wanted.iter().zip(groups.to_f32()) {
                    assert!((wanted - found).abs() <= 0.004 * wanted.abs() + 1e-6, "{case} {name}: {wanted} {found}");
                }
            }
            assert!(weights.read_groups(name, 0..rows + 1).is_err());
        }
    }
    let code = |of: &str| kept.iter().find(|(name, _)| name == of).unwrap().1;
    assert_eq!(code("gptq_4 a.q.weight"), Some((Code::Int4, false)));
    assert_eq!(code("gptq_4 a.uneven.weight"), Some((Code::Uint4, true)));
    assert_eq!(code("gptq_4_ordered a.q.weight"), None);
    assert_eq!(code("gptq_8 a.uneven.weight"), Some((Code::Uint8, true)));
    assert_eq!(code("awq a.q.weight"), Some((Code::Uint4, true)));
    assert_eq!(code("packed_8 a.q.weight"), Some((Code::Int8, false)));
    assert_eq!(code("bytes a.zeros.weight"), Some((Code::Int8, true)));
    assert_eq!(code("floats a.q.weight"), Some((Code::E4m3, false)));
}

/// Log probabilities of a prompt's tokens, as bits.
fn told(spec: &DecoderSpec, weights: impl Weights + 'static) -> Vec<(u32, u32)> {
    let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
    let cache = Shape { blocks: 8, block_len: 16, storage: CacheType::F32 };
    let options = Options { cache, context: 64, slots: 8, pool, poison: true };
    let mut executor = CpuExecutor::load(spec.clone(), &(Arc::new(weights) as Arc<dyn Weights>), options).unwrap();
    let tokens: Vec<u32> = (0..40).map(|at| at * 17 % spec.vocab as u32).collect();
    let told = prompt_logprobs(&mut executor, &tokens, 7, 16);
    told.iter().map(|told| (told.rank, told.logprob.to_bits())).collect()
}

#[test]
fn a_packed_llama_answers_as_the_same_model_in_bf16() {
    let file = folder().join("llama.json");
    let spec = DecoderSpec::from_config(&file, &fs::read(&file).unwrap()).unwrap();
    let packed = || Safetensors::open_file(&folder().join("llama_gptq.safetensors"), spec.packed).unwrap();
    let plain = || Safetensors::open_file(&folder().join("llama_bf16.safetensors"), None).unwrap();
    layout::check(&spec, &packed()).unwrap();
    let expected = told(&spec, plain());
    assert!(expected.windows(2).any(|pair| pair[0].1 != pair[1].1));
    assert_eq!(told(&spec, packed()), expected);
    // In another float format, too.
    let plain = told(&spec, Cast::new(Box::new(plain()), Format::F32));
    assert_eq!(told(&spec, Cast::new(Box::new(packed()), Format::F32)), plain);
}

#[test]
fn methods_and_formats_that_are_not_read_are_refused() {
    let refused = |config: Value, reason: &str| {
        let found = scheme(&config).unwrap_err();
        assert!(found.starts_with("`quantization_config` ") && found.contains(reason), "{found}");
    };
    for method in ["bitsandbytes", "aqlm", "quip", "hqq"] {
        let reason =
            format!("is of method '{method}', not supported; supported are gptq, awq, compressed-tensors, fp8");
        refused(json!({"quant_method": method, "bits": 4}), &reason);
    }
    let gptq = |field: &str, value: Value| {
        let mut config = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
        config[field] = value;
        config
    };
    refused(gptq("bits", json!(3)), "of method 'gptq' has 3 bits; read are 4 and 8");
    refused(gptq("checkpoint_format", json!("marlin")), "has checkpoint_format 'marlin'; read are gptq and gptq_v2");
    refused(gptq("is_marlin_format", json!(true)), "has `is_marlin_format`");
    refused(gptq("pack_dtype", json!("int64")), "another pack_dtype than int32");
    refused(gptq("dynamic", json!({"+:.*down.*": {"bits": 8}})), "another `bits` for some modules");
    scheme(&gptq("dynamic", json!({"-:.*down.*": {}, "+:.*up.*": {"bits": 4, "desc_act": true}}))).unwrap();
    let awq = |field: &str, value: Value| {
        let mut config = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "version": "GEMM"});
        config[field] = value;
        config
    };
    scheme(&awq("zero_point", json!(true))).unwrap();
    refused(awq("version", json!("gemv")), "of method 'awq' has version 'gemv'; read is gemm");
    refused(awq("w_bit", json!(8)), "of method 'awq' has 8 bits; read are 4");
    let tensors = |field: &str, value: Value| {
        let mut config = cases()["packed_4"].clone();
        config[field] = value;
        config
    };
    refused(tensors("format", json!("nvfp4-pack-quantized")), "has format 'nvfp4-pack-quantized'; read are pack-");
    refused(tensors("sparsity_config", json!({"format": "sparse-24-bitmask"})), "are sparse: 'sparse-24-bitmask'");
    refused(tensors("transform_config", json!({"config_groups": {"u": {}}})), "has a `transform_config`");
    for (kind, bits) in [("int", 3), ("float", 4), ("int", 16)] {
        let group = json!({"g": {"weights": {"type": kind, "num_bits": bits}}});
        let reason = format!("has weights of {bits} bits of type '{kind}'; read are int of 4 and 8 bits, float of 8");
        refused(tensors("config_groups", group), &reason);
    }
    let missing = scheme(&json!({"quant_method": "gptq", "bits": 4})).unwrap_err();
    assert!(missing.contains("`group_size` is missing"), "{missing}");
}

/// Old writers of GPTQ give a bias to every matrix, of zeros where the model has none.
#[test]
fn biases_of_zeros_are_left_out() {
    let file = folder().join("llama.json");
    let spec = DecoderSpec::from_config(&file, &fs::read(&file).unwrap()).unwrap();
    let checked = |byte: u8| {
        let mut tensors = tensors("llama_gptq");
        tensors.push(("model.layers.0.mlp.up_proj.bias".into(), "F16".into(), vec![64], vec![byte; 128]));
        let folder = written(&tensors);
        let weights = Safetensors::open_packed(folder.path(), spec.packed).unwrap();
        layout::check(&spec, &weights).map_err(|error| error.reason)
    };
    assert_eq!(checked(0), Ok(()));
    assert_eq!(checked(1), Err("has unexpected 1 tensors: model.layers.0.mlp.up_proj.bias".into()));
}

/// A file's tensors.
type Tensors = Vec<(String, String, Vec<usize>, Vec<u8>)>;

fn tensors(case: &str) -> Tensors {
    let bytes = fs::read(folder().join(format!("{case}.safetensors"))).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let tensor = |(name, told): (String, Value)| {
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let shape = told["shape"].as_array().unwrap().iter().map(number).collect();
        let place = number(&told["data_offsets"][0])..number(&told["data_offsets"][1]);
        (name, told["dtype"].as_str().unwrap().to_owned(), shape, bytes[8 + length..][place].to_vec())
    };
    header.into_iter().map(tensor).collect()
}

/// A directory with a file of these tensors.
fn written(tensors: &Tensors) -> tempfile::TempDir {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let place = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": place}));
        data.extend(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
    folder
}

/// Why the tensors of a case are refused after a change of them.
fn refusal(case: &str, change: impl Fn(&mut Tensors)) -> String {
    let mut tensors = tensors(case);
    change(&mut tensors);
    let folder = written(&tensors);
    Safetensors::open_packed(folder.path(), scheme(&cases()[case]).unwrap()).unwrap_err().reason
}

/// Why it is refused when the tensor `name` has another type, shape and size.
fn replaced(case: &str, name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>) -> String {
    refusal(case, |tensors| {
        let found = tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap();
        *found = (name.into(), dtype.into(), shape.to_vec(), bytes.clone());
    })
}

#[test]
fn what_does_not_fit_is_named() {
    let without = |case: &str, name: &str| refusal(case, |tensors| tensors.retain(|tensor| tensor.0 != name));
    let says = |found: String, wanted: &str| assert!(found.contains(wanted), "{found}");
    says(without("gptq_4", "a.q.scales"), "tensor 'a.q.qweight' has no 'a.q.scales' beside it");
    says(without("gptq_4", "a.q.qzeros"), "tensor 'a.q.qweight' has no 'a.q.qzeros' beside it");
    says(without("awq", "a.q.scales"), "tensor 'a.q.qweight' has no 'a.q.scales' beside it");
    says(without("packed_4", "a.q.weight_scale"), "has no 'a.q.weight_scale' beside it");
    says(without("packed_4", "a.q.weight_shape"), "has no 'a.q.weight_shape' beside it");
    says(without("bytes", "a.q.weight_scale"), "tensor 'a.q.weight' has no 'a.q.weight_scale' beside it");
    says(without("floats", "a.q.weight_scale"), "tensor 'a.q.weight' has no `_scale` of a fitting shape");

    let scales = replaced("gptq_4", "a.q.scales", "F16", &[3, 24], vec![0; 144]);
    says(scales, "tensor 'a.q.scales' is F16 of shape [3, 24]; beside 'a.q.qweight' of shape [8, 24] it has to be F16");
    let zeros = replaced("gptq_4", "a.q.qzeros", "I32", &[2, 6], vec![0; 48]);
    says(zeros, "of shape [2, 6]; beside 'a.q.qweight' of shape [8, 24] it has to be I32 of shape [2, 3]");
    let order = replaced("gptq_4", "a.q.g_idx", "I32", &[63], vec![0; 252]);
    says(order, "tensor 'a.q.g_idx' is I32 of shape [63]");
    let far: Vec<u8> = (0..64i32).flat_map(|at| (at / 16).to_le_bytes()).collect();
    let order = replaced("gptq_4", "a.q.g_idx", "I32", &[64], far);
    says(order, "tensor 'a.q.g_idx' says that input 32 is of group 2; there are 2");
    let words = replaced("gptq_4", "a.q.qweight", "I64", &[8, 12], vec![0; 768]);
    says(words, "tensor 'a.q.qweight' is I64 of shape [8, 12]; expected I32 of two dimensions");
    says(replaced("awq", "a.q.qweight", "I32", &[192], vec![0; 768]), "expected I32 of two dimensions");
    says(replaced("awq", "a.q.qweight", "I32", &[0, 3], vec![]), "expected I32 of two dimensions above 0");
    let scales = replaced("awq", "a.q.scales", "U8", &[2, 24], vec![0; 48]);
    says(scales, "tensor 'a.q.scales' is U8 of shape [2, 24]");

    let shape = |outputs: i64, inputs: i64| {
        let bytes = [outputs.to_le_bytes(), inputs.to_le_bytes()].concat();
        replaced("packed_4", "a.q.weight_shape", "I64", &[2], bytes)
    };
    says(shape(21, 64), "tensor 'a.q.weight_packed' has 20 rows, and 'a.q.weight_shape' says 21 by 64");
    says(shape(20, -1), "has 20 rows, and 'a.q.weight_shape' says 20 by");
    says(shape(20, 96), "96 inputs take 12 words of 4 bits each, or 24 of 8");
    says(shape(20, i64::from(u32::MAX)), "has shape [20, 8]; 4294967295 inputs take");
    says(shape(20, 63), "has 63 inputs, which 2 scales of each output do not divide");
    let scales = replaced("packed_4", "a.q.weight_scale", "BF16", &[19, 2], vec![0; 76]);
    says(scales, "tensor 'a.q.weight_scale' is BF16 of shape [19, 2]; beside 'a.q.weight_packed' of shape [20, 8]");
    let zeros = replaced("packed_4_zeros", "a.q.weight_zero_point", "I32", &[20, 3], vec![0; 240]);
    says(zeros, "it has to be I32 of shape [3, 3]");
    let zeros = replaced("packed_4_zeros", "a.bytes.weight_zero_point", "I8", &[9], vec![0; 9]);
    says(zeros, "it has to be I8 of shape [9, 3]");
    let twice = refusal("gptq_4", |tensors| tensors.push(("a.q.weight".into(), "BF16".into(), vec![1], vec![0; 2])));
    says(twice, "makes 'a.q.weight', which is there twice");
}

#[test]
fn packed_tensors_that_no_configuration_speaks_of_are_refused() {
    let opened = Safetensors::open_file(&folder().join("gptq_4.safetensors"), None).unwrap_err();
    assert!(opened.reason.contains("tensor 'a.bare.qweight' is of type I32; supported are F32"), "{opened}");
    assert!(opened.reason.contains("`quantization_config` does not say that it is packed"), "{opened}");
}
