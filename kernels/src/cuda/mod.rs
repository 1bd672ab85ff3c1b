//! Arithmetic of decoder language models on NVIDIA GPUs.
//!
//! ```text
//! cuda/*.cu      the kernels. nvcc makes machine code of them (feature `cuda`), a C++ compiler an emulator for tests
//! <family>.rs    their launchers: checked arguments -> [`Launch`], plain data
//! device.rs      what runs launches in order: [`Device`]; a GPU, or the emulator
//! ```
//! Nothing here knows a model or a plan. A launcher checks the length of every slice, so a [`Launch`] can be run without
//! further thought; what it computes is said beside the kernel. One row of a result is always summed in the same order,
//! whatever rows stand beside it.

pub mod attention;
pub mod attention_wgmma;
pub mod cache;
#[cfg(feature = "cuda")]
mod context;
pub mod device;
pub mod elementwise;
#[cfg(feature = "emulator")]
mod emulator;
pub mod experts;
pub mod gemm;
pub mod gemv;
#[cfg(feature = "cuda")]
mod gpu;
pub mod launch;
pub mod memory;
#[cfg(feature = "cuda")]
mod modules;
pub mod packing;
pub mod pairs;
pub mod rotary;
pub mod rounded;
pub mod sampler;
pub mod setup;
#[cfg(feature = "cuda")]
mod staging;
pub mod stored;
pub mod stream;
#[cfg(feature = "cuda")]
mod tiles;
pub mod wgmma;

pub use cache::CacheNumbers;
pub use device::{Device, Fault, Fill, Graph, Pending, Units};
#[cfg(feature = "emulator")]
pub use emulator::{Emulator, Log};
#[cfg(feature = "cuda")]
pub use gpu::{Driver, Gpu, driver};
pub use launch::Launch;
pub use memory::{Bf16, E4m3, Misuse, Number, Slice};
