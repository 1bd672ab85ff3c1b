//! Keys and values of a layer, as what writes them ([`super::rotary`]) and what reads them ([`super::attention`]) know
//! them: sixteen bits a number, or eight.

use super::elementwise::vectors;
use super::launch::{Launch, needs};
use super::memory::{Bf16, E4m3, Misuse, Number, Slice};

/// Positions of a block of the cache.
pub const PAGE: usize = 32;

/// Keys and values of one layer, each `[block, kv_heads, 32, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum CacheNumbers {
    /// As they are.
    Bf16 {
        /// Of every position, all key heads.
        keys: Slice<Bf16>,
        /// The same.
        values: Slice<Bf16>,
    },
    /// Half the bytes, and three bits of mantissa. Heads are a multiple of 16.
    E4m3 {
        /// Of every position, all key heads.
        keys: Slice<E4m3>,
        /// The same.
        values: Slice<E4m3>,
        /// What stands there times this is a key. Keys beyond 448 times this become that.
        key_scale: f32,
        /// The same of values.
        value_scale: f32,
    },
}

impl CacheNumbers {
    /// Bytes of a number.
    pub fn number_bytes(&self) -> usize {
        match self {
            CacheNumbers::Bf16 { .. } => Bf16::BYTES,
            CacheNumbers::E4m3 { .. } => E4m3::BYTES,
        }
    }

    /// Keys and values as bytes.
    ///
    /// # Errors
    /// None, for bytes are aligned anywhere.
    pub fn bytes(&self) -> Result<[Slice<u8>; 2], Misuse> {
        Ok(match self {
            CacheNumbers::Bf16 { keys, values } => [keys.cast()?, values.cast()?],
            CacheNumbers::E4m3 { keys, values, .. } => [keys.cast()?, values.cast()?],
        })
    }

    /// Blocks of so many heads.
    pub(super) fn blocks(&self, kv_heads: usize, head_dim: usize) -> usize {
        let numbers = match self {
            CacheNumbers::Bf16 { keys, .. } => keys.len(),
            CacheNumbers::E4m3 { keys, .. } => keys.len(),
        };
        numbers / (kv_heads * PAGE * head_dim)
    }

    /// Is there a block of such heads at least, and of keys as many as of values? `head_dim` is known to be a multiple of
    /// 8 already.
    pub(super) fn check(&self, kv_heads: usize, head_dim: usize) -> Result<(), Misuse> {
        let least = kv_heads * PAGE * head_dim;
        match *self {
            CacheNumbers::Bf16 { keys, values } => {
                vectors("keys", keys, least)?;
                vectors("values", values, keys.len())
            }
            CacheNumbers::E4m3 { keys, values, key_scale, value_scale } => {
                needs(head_dim.is_multiple_of(16), || format!("heads of {head_dim} numbers of eight bits"))?;
                for scale in [key_scale, value_scale] {
                    needs(scale.is_normal() && scale > 0.0, || format!("keys or values times {scale}"))?;
                }
                vectors("keys", keys, least)?;
                vectors("values", values, keys.len())
            }
        }
    }

    /// The one of two kernels that knows these numbers.
    pub(super) fn either<T>(&self, of_bf16: T, of_e4m3: T) -> T {
        match self {
            CacheNumbers::Bf16 { .. } => of_bf16,
            CacheNumbers::E4m3 { .. } => of_e4m3,
        }
    }

    /// What keys, and values, are times.
    pub(super) fn scales(&self) -> [f32; 2] {
        match *self {
            CacheNumbers::Bf16 { .. } => [1.0; 2],
            CacheNumbers::E4m3 { key_scale, value_scale, .. } => [key_scale, value_scale],
        }
    }

    /// Appends both as pointers.
    pub(super) fn operands(&self, launch: Launch) -> Launch {
        match *self {
            CacheNumbers::Bf16 { keys, values } => launch.slice(keys).slice(values),
            CacheNumbers::E4m3 { keys, values, .. } => launch.slice(keys).slice(values),
        }
    }
}
