//! A safetensors file, whose matrices may be packed integers: what opens can be read, as numbers and as codes. The first
//! byte chooses the scheme; point `TMPDIR` at memory.
#![no_main]

use backends::llm::Weights;
use backends::llm::weights::packed::{Bits, Scheme};
use backends::llm::weights::safetensors::Safetensors;
use libfuzzer_sys::fuzz_target;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::LazyLock;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("tensorgate-fuzz-{}.safetensors", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    let [which, rest @ ..] = bytes else { return };
    let group = NonZeroUsize::new(32);
    let scheme = match which % 5 {
        0 => None,
        1 => Some(Scheme::Gptq { bits: Bits::Four, group, less_one: true }),
        2 => Some(Scheme::Gptq { bits: Bits::Eight, group: None, less_one: false }),
        3 => Some(Scheme::Awq { group }),
        _ => Some(Scheme::CompressedTensors),
    };
    std::fs::write(&*FILE, rest).expect("the file");
    let Ok(weights) = Safetensors::open_file(&FILE, scheme) else { return };
    for name in weights.names() {
        let info = weights.info(name).expect("a tensor that has a name");
        let size = info.format.bytes(&info.shape).expect("a size");
        assert!(size <= 4 * rest.len());
        weights.read(name, 0..size).expect("numbers");
        if let (Some(stored), [rows, _]) = (weights.stored(name), &info.shape[..])
            && size > 0
        {
            let groups = weights.read_groups(name, 0..*rows).expect("codes").expect("codes");
            assert_eq!(groups.code, stored.code);
        }
    }
});
