//! An `.onnx` file, as it is read before ONNX Runtime sees it: what it names are plain paths beneath its folder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

fuzz_target!(|bytes: &[u8]| {
    let Ok(locations) = backends::onnx::external_files(bytes) else { return };
    for location in &locations {
        let mut parts = Path::new(location).components();
        assert!(!location.is_empty() && parts.all(|part| matches!(part, Component::Normal(_))), "{location:?}");
        assert!(!location.contains(['\\', '*']), "{location:?}");
    }
});
