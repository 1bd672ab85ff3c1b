//! Attention of stretches of prompts by the matrix units of compute capability 9.0, which four warps use together. See
//! `cuda/attention_wgmma.cu`. [`super::attention::prompt_on`] chooses between it and the kernel for all other devices.

use super::attention::{Kernel, Prompt, prompt_by, tile_rows};
use super::launch::Launch;
use super::memory::{Bf16, Misuse, Number};

/// Up to so many numbers of a head the units would multiply more zeros than numbers.
const SMALL: usize = 32;
/// What operands need before them, to begin where they must.
const ALIGNMENT: usize = 1024;

/// Does the kernel know such heads?
pub fn suits(head_dim: usize) -> bool {
    head_dim > SMALL
}

/// Attention of stretches of prompts. A row's result is close to that of [`super::attention::prompt`], not the same.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn prompt(job: &Prompt) -> Result<Launch, Misuse> {
    let (dim, numbers) = (job.cache.head_dim, &job.cache.numbers);
    let (size, name) = match dim {
        0..=64 => (64, numbers.either("attention_wgmma_64", "attention_wgmma_64_e4m3")),
        65..=128 => (128, numbers.either("attention_wgmma_128", "attention_wgmma_128_e4m3")),
        _ => (256, numbers.either("attention_wgmma_256", "attention_wgmma_256_e4m3")),
    };
    // Tiles of keys and of values lie there twice, and once more in eight bits where that is how they are stored.
    let keys = if size == 128 { 128 } else { 64 };
    let narrow = if numbers.number_bytes() == Bf16::BYTES { 0 } else { 2 * keys * size };
    let shared = ALIGNMENT + (tile_rows(size) + 4 * keys) * size * Bf16::BYTES + narrow;
    // Four warps have 64 rows.
    prompt_by(job, &Kernel { name, threads: 2 * tile_rows(size) as u32, shared })
}
