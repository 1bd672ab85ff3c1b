//! Language models: what is read, against the libraries that wrote it; the scheduler, against its definition.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod batches;
mod blocks;
mod calibration;
mod common;
mod config;
mod cpu;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod cuda;
mod driven;
#[cfg(feature = "emulator")]
mod faults;
mod gguf;
mod gguf_tokenizers;
mod hazards;
mod packed;
mod parity;
mod properties;
mod quantised;
mod reference;
mod request;
mod rules;
mod safetensors;
mod sampler;
mod scripts;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod short;
mod stops;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod stored;
mod templates;
mod tokenizers;
#[cfg(any(feature = "cuda", feature = "emulator"))]
mod whole;
