//! Files that are broken, or made to harm: each is read or refused, never a panic, and never takes memory out of
//! proportion to the file.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod allocator;

use backends::LoadError;
use backends::llm::layout;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::gguf::Gguf;
use backends::llm::weights::packed::{Bits, Scheme};
use backends::llm::weights::safetensors::Safetensors;
use backends::llm::weights::{Weights, gguf_spec};
use proptest::prelude::*;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

thread_local! {
    static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm").join(path)
}

/// Opens a file of these bytes within the bound on memory, and reads every tensor that it has.
fn open(bytes: &[u8], open: impl Fn(&Path) -> Result<Box<dyn Weights>, LoadError>) -> Result<(), String> {
    let file = FOLDER.with(|folder| folder.path().join("model"));
    fs::write(&file, bytes).unwrap();
    let (opened, peak) = allocator::peak(|| open(&file));
    let allowed = 64 * bytes.len() + (64 << 10);
    assert!(peak <= allowed, "{peak} bytes were held for a file of {}", bytes.len());
    let weights = opened.map_err(|e| e.to_string())?;
    for name in weights.names() {
        let info = weights.info(name).unwrap();
        let size = info.format.bytes(&info.shape).unwrap();
        // Integers of four bits become floats of sixteen.
        assert!(size <= 4 * bytes.len());
        weights.read(name, 0..size).unwrap();
        if let Some((stored, rows)) =
            weights.stored(name).zip(info.shape.first()).filter(|_| info.shape.len() == 2 && size > 0)
        {
            let groups = weights.read_groups(name, 0..*rows).unwrap().unwrap();
            assert_eq!((groups.rows(), groups.code), (*rows, stored.code));
        }
        assert!(weights.read(name, 0..size + 1).is_err());
    }
    Ok(())
}

fn safetensors(bytes: &[u8]) -> Result<(), String> {
    open(bytes, |file| Ok(Box::new(Safetensors::open_file(file, None)?)))
}

/// The same, as if its matrices were packed.
fn packed(bytes: &[u8], scheme: Scheme) -> Result<(), String> {
    open(bytes, |file| Ok(Box::new(Safetensors::open_file(file, Some(scheme))?)))
}

const GROUP: Option<NonZeroUsize> = NonZeroUsize::new(32);
const SCHEMES: [Scheme; 5] = [
    Scheme::Gptq { bits: Bits::Four, group: GROUP, less_one: true },
    Scheme::Gptq { bits: Bits::Eight, group: GROUP, less_one: false },
    Scheme::Awq { group: GROUP },
    Scheme::Awq { group: None },
    Scheme::CompressedTensors,
];

fn gguf(bytes: &[u8]) -> Result<(), String> {
    open(bytes, |file| {
        let gguf = Gguf::open(file)?;
        if let Ok(spec) = gguf_spec::spec(&gguf) {
            let _ = layout::check(&spec, &gguf);
        }
        Ok(Box::new(gguf))
    })
}

fn refused(result: Result<(), String>, why: &str) {
    let reason = result.expect_err(why);
    assert!(reason.contains(why), "expected '{why}' in: {reason}");
}

/// A safetensors file with this header.
fn tensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn broken_safetensors_headers_are_refused() {
    let one =
        |shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    assert_eq!(safetensors(&tensors(&one("[2,2]", "[0,16]"), 16)), Ok(()));
    refused(safetensors(b""), "too few for a header");
    refused(safetensors(&u64::MAX.to_le_bytes()), "announces a header");
    refused(safetensors(&[&(1u64 << 40).to_le_bytes()[..], b"{}"].concat()), "announces a header");
    refused(safetensors(&tensors("{", 0)), "malformed header");
    refused(safetensors(&tensors(&one("[2,2]", "[0,16]"), 15)), "lies at 0..16 of 15 bytes");
    refused(safetensors(&tensors(&one("[2,2]", "[0,16]"), 17)), "1 bytes after the last tensor");
    refused(safetensors(&tensors(&one("[2,2]", "[16,0]"), 16)), "lies at 16..0");
    refused(safetensors(&tensors(&one("[2,3]", "[0,16]"), 16)), "of shape [2, 3] has 16 bytes");
    refused(safetensors(&tensors(&one("[4294967296,4294967296]", "[0,16]"), 16)), "has 16 bytes");
    refused(safetensors(&tensors(&one("[2,-2]", "[0,16]"), 16)), "malformed header");
    refused(safetensors(&tensors(&one("[1,1,1,1,1,1,1,1,4]", "[0,16]"), 16)), "more than 8 dimensions");
    refused(safetensors(&tensors(&one(&format!("[{}1]", "1,".repeat(100_000)), "[0,4]"), 4)), "more than 8 dimensions");
    refused(safetensors(&tensors(&one("[2,2]", "[0,16,32]"), 16)), "malformed header");
    refused(safetensors(&tensors(&one("[2,2]", "[0,16]").replace("F32", "F8_E5M2"), 16)), "is of type F8_E5M2");
    let two = |b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
        )
    };
    refused(safetensors(&tensors(&two("[4,12]"), 12)), "overlaps the tensor before it");
    refused(safetensors(&tensors(&two("[12,20]"), 20)), "leaves a gap before it");
    refused(safetensors(&tensors(&two("[8,16]").replace("\"b\"", "\"a\""), 16)), "named twice");
    refused(safetensors(&tensors(&format!("{{\"a\":{}", "[".repeat(1 << 20)), 0)), "malformed header");
}

/// Small files of packed matrices.
static PACKED: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let files = ["gptq_4", "gptq_8", "awq", "packed_4", "packed_4_zeros", "packed_8", "bytes", "floats"];
    files.map(|case| fs::read(fixture(&format!("goldens/packed/{case}.safetensors"))).unwrap()).to_vec()
});

#[test]
fn packed_matrices_are_read_or_refused() {
    let each = |scheme: Scheme| PACKED.iter().filter(move |bytes| packed(bytes, scheme).is_ok()).count();
    let read: Vec<usize> = SCHEMES.into_iter().map(each).collect();
    // Floats of eight bits are no packed integers: any scheme lets them be.
    assert_eq!(read, [2, 2, 2, 1, 5]);
}

/// A GGUF file: numbers and texts one after the other.
fn file(parts: &[&[u8]]) -> Vec<u8> {
    [&[b"GGUF" as &[u8], &3u32.to_le_bytes()], parts].concat().concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The head of a file with this many tensors and entries.
fn counts(tensors: u64, entries: u64) -> Vec<u8> {
    [tensors.to_le_bytes(), entries.to_le_bytes()].concat()
}

/// A tensor's description.
fn described(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let sizes: Vec<u8> = shape.iter().flat_map(|size| size.to_le_bytes()).collect();
    [
        text(name),
        (shape.len() as u32).to_le_bytes().to_vec(),
        sizes,
        kind.to_le_bytes().to_vec(),
        offset.to_le_bytes().to_vec(),
    ]
    .concat()
}

#[test]
fn broken_gguf_headers_are_refused() {
    let pad = &[0u8; 256][..];
    refused(gguf(b"GG"), "4 bytes are announced, 2 remain");
    refused(gguf(b"GGML____________"), "is no GGUF file");
    refused(gguf(b"GGUF\0\0\0\x03____________________"), "big-endian");
    refused(gguf(b"GGUF\x01\0\0\0____________________"), "version 1; supported are 2 and 3");
    refused(gguf(&file(&[&counts(u64::MAX, 0)])), "tensors are announced");
    refused(gguf(&file(&[&counts(0, u64::MAX), pad])), "metadata entries are announced");
    let entry = |kind: u32, value: &[u8]| file(&[&counts(0, 1), &text("k"), &kind.to_le_bytes(), value, pad]);
    assert_eq!(gguf(&entry(4, &[1, 0, 0, 0])), Ok(()));
    refused(gguf(&entry(8, &u64::MAX.to_le_bytes())), "a string of 18446744073709551615 bytes");
    refused(gguf(&entry(8, &1000u64.to_le_bytes())), "1000 bytes are announced");
    refused(gguf(&entry(8, &[&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat())), "not UTF-8");
    refused(gguf(&entry(13, &[])), "type 13 is unknown");
    refused(gguf(&entry(9, &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat())), "a list of type 9");
    refused(
        gguf(&entry(9, &[&8u32.to_le_bytes()[..], &(u64::MAX / 8).to_le_bytes()].concat())),
        "elements are announced",
    );
    refused(
        gguf(&entry(9, &[&0u32.to_le_bytes()[..], &(1u64 << 40).to_le_bytes()].concat())),
        "elements are announced",
    );
    for alignment in [0u32, 3, 1 << 31] {
        let aligned = file(&[&counts(0, 1), &text("general.alignment"), &4u32.to_le_bytes(), &alignment.to_le_bytes()]);
        refused(gguf(&aligned), "expected a power of two");
    }
    let tensor = |described: &[u8]| file(&[&counts(1, 0), described, pad]);
    refused(gguf(&tensor(&described("a", &[], 0, 0))), "has 0 dimensions");
    refused(gguf(&tensor(&described("a", &[1, 1, 1, 1, 1], 0, 0))), "has 5 dimensions");
    refused(gguf(&tensor(&described("a", &[4], 99, 0))), "is of type 99; supported are F32");
    refused(gguf(&tensor(&described("a", &[0], 0, 0))), "impossible");
    refused(gguf(&tensor(&described("a", &[33], 8, 0))), "impossible");
    refused(gguf(&tensor(&described("a", &[1 << 40, 1 << 40], 0, 0))), "impossible");
    refused(gguf(&tensor(&described("a", &[4], 0, 7))), "not a multiple of 32");
    refused(gguf(&tensor(&described("a", &[1 << 20], 0, 0))), "bytes long, in data of");
    refused(gguf(&tensor(&described("a", &[4], 0, u64::MAX - 31))), "bytes long, in data of");
    let both = |b: &[u8]| file(&[&counts(2, 0), &described("a", &[16], 0, 0), b, pad]);
    assert_eq!(gguf(&both(&described("b", &[16], 0, 64))), Ok(()));
    refused(gguf(&both(&described("b", &[16], 0, 32))), "overlaps another");
    refused(gguf(&both(&described("a", &[16], 0, 64))), "appears twice");
}

/// Small files that are good.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let shard = fs::read(fixture("shards/model-00001-of-00002.safetensors")).unwrap();
    let small = tensors(
        r#"{"__metadata__":{"format":"pt"},"a_blocks":{"dtype":"U8","shape":[1,2,1,16],"data_offsets":[0,32]},"a_scales":{"dtype":"U8","shape":[1,2,1],"data_offsets":[32,34]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[34,40]}}"#,
        40,
    );
    let files = ["llama", "gemma2", "phi3", "gpt_oss_mxfp4"]
        .map(|case| fs::read(fixture(&format!("gguf/{case}.gguf"))).unwrap());
    [vec![shard, small], files.to_vec()].concat()
});

/// One change of a file: bytes overwritten, cut out or put in, mostly in the header.
#[derive(Clone, Debug)]
struct Change {
    at: prop::sample::Index,
    within: usize,
    cut: usize,
    put: Vec<u8>,
}

fn change() -> impl Strategy<Value = Change> {
    let extreme = prop::sample::select(vec![
        0u64,
        1,
        0xff,
        0x7fff_ffff,
        0xffff_ffff,
        1 << 32,
        1 << 62,
        i64::MAX as u64,
        u64::MAX,
    ]);
    let put = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..9),
        extreme.clone().prop_map(|number| number.to_le_bytes().to_vec()),
        extreme.prop_map(|number| number.to_string().into_bytes()),
        prop::sample::select(vec![&b"["[..], b"]", b"{", b"}", b"\"", b",", b"-", b"e9", b"null"])
            .prop_map(<[u8]>::to_vec),
    ];
    let within = prop::sample::select(vec![32usize, 256, 2048, usize::MAX]);
    (any::<prop::sample::Index>(), within, 0..10usize, put).prop_map(|(at, within, cut, put)| Change {
        at,
        within,
        cut,
        put,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_files_neither_panic_nor_swell(
        seed in 0..6usize,
        changes in prop::collection::vec(change(), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = SEEDS[seed].clone();
        for Change { at, within, cut, put } in changes {
            let at = at.index(bytes.len().min(within).max(1)).min(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, put);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        let _ = safetensors(&bytes);
        let _ = gguf(&bytes);
    }

    #[test]
    fn changed_packed_matrices_neither_panic_nor_swell(
        seed in 0..8usize,
        scheme in 0..5usize,
        changes in prop::collection::vec(change(), 1..3),
    ) {
        let mut bytes = PACKED[seed].clone();
        for Change { at, within, put, .. } in changes {
            // Nothing moves, so that most headers stay whole: types, shapes and numbers change.
            let at = at.index(bytes.len().min(within));
            bytes.iter_mut().skip(at).zip(put).for_each(|(byte, new)| *byte = new);
        }
        let _ = packed(&bytes, SCHEMES[scheme]);
    }

    /// A configuration with any field replaced by anything: a spec or an error, and a spec's sizes multiply.
    #[test]
    fn changed_configurations_do_not_panic(
        case in 0..6usize,
        field in any::<prop::sample::Index>(),
        number in prop::sample::select(vec!["0", "1", "2", "-1", "0.5", "1e300", "4096", "1048576", "18446744073709551615", "null", "true", "\"x\"", "[]", "{}", "[1]"]),
    ) {
        let case = ["qwen3", "gemma3", "phi4_mini", "qwen3_moe", "gpt_oss", "llama_yarn"][case];
        let file: serde_json::Value = serde_json::from_slice(&fs::read(fixture(&format!("goldens/{case}.json"))).unwrap()).unwrap();
        for run in file["runs"].as_array().unwrap() {
            let mut config = run["config"].as_object().unwrap().clone();
            let key = config.keys().nth(field.index(config.len())).unwrap().clone();
            config.insert(key, serde_json::from_str(number).unwrap());
            let text = serde_json::to_vec(&config).unwrap();
            let (spec, peak) = allocator::peak(|| DecoderSpec::from_config(Path::new("config.json"), &text));
            assert!(peak < 1 << 20, "{peak} bytes");
            if let Ok(spec) = spec {
                assert!(spec.attention.scale.is_finite() && spec.rope.attention_factor().is_finite());
                assert!(spec.rope.frequencies(40).iter().all(|frequency| frequency.is_finite()));
            }
        }
    }
}
