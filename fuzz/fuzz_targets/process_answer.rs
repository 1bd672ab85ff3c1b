//! What a model's own process sends: native code in it may have been taken over by a file of strangers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some(answer)) = server::worker::answer(&mut rest) {
        let held = answer.iter().flatten().map(|tensor| tensor.bytes().len()).sum::<usize>();
        assert!(held <= bytes.len());
    }
});
