//! Arithmetic of decoder language models on the CPU.
//!
//! * [`blocks`]: the block formats of GGUF as plain bytes, and what they mean: the specification of every weight.
//! * [`activations`]: the other operand, laid out for the kernels, in int8 or f32.
//! * [`packed`]: a weight matrix with its rows interleaved, and its product with activations.
//! * [`attention`]: attention of a tile of query rows over a paged cache.
//! * [`elementwise`]: norms, rotary embedding, gated activations, softmax.
//! * [`math`]: exp and tanh that vectorise.
//!
//! One output value is always summed in the same order, whatever rows stand beside it: a request's answer does not
//! depend on its batch.

pub mod activations;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_avx2;
#[cfg(target_arch = "x86_64")]
mod attention_avx512;
pub mod blocks;
pub mod elementwise;
#[cfg(target_arch = "x86_64")]
mod float_avx2;
#[cfg(target_arch = "x86_64")]
mod float_avx512;
#[cfg(target_arch = "x86_64")]
mod formats_avx2;
#[cfg(target_arch = "x86_64")]
mod formats_avx512;
mod interleave;
#[cfg(target_arch = "x86_64")]
mod interleave_x86;
pub mod math;
#[cfg(target_arch = "x86_64")]
mod nibbles_avx2;
pub mod packed;
#[cfg(target_arch = "x86_64")]
mod q8_avx2;
#[cfg(target_arch = "x86_64")]
mod quantise_avx2;
#[cfg(target_arch = "x86_64")]
mod softmax_avx512;
#[cfg(target_arch = "x86_64")]
mod vnni_avx512;

pub use activations::{Activations, Operand};
pub use blocks::Format;
pub use packed::{Packed, Path, TILE};
