//! Keys and values in blocks, of all layers: `[block, kv_head, position in the block, head_dim]` each. Which block is
//! whose, the scheduler knows.

use crate::llm::spec::DecoderSpec;
use kernels::llm::attention::{Cache as View, Storage};
use kernels::llm::elementwise::to_f16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// As they are computed.
    F32,
    /// Half of that, in IEEE half precision.
    F16,
}

impl CacheType {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            CacheType::F32 => 4,
            CacheType::F16 => 2,
        }
    }
}

/// Where the blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub blocks: u32,
    /// Positions in a block; a multiple of 4.
    pub block_len: u32,
    /// How numbers are stored.
    pub storage: CacheType,
}

#[derive(Debug)]
enum Numbers {
    F32(Vec<f32>),
    F16(Vec<u16>),
}

/// Keys and values of one layer.
#[derive(Debug)]
struct Layer {
    keys: Numbers,
    values: Numbers,
}

/// Keys and values of all layers.
#[derive(Debug)]
pub(super) struct Cache {
    layers: Vec<Layer>,
    kv_heads: usize,
    head_dim: usize,
    block_len: usize,
}

impl Cache {
    pub(super) fn new(spec: &DecoderSpec, shape: &Shape) -> Self {
        let (kv_heads, head_dim) = (spec.attention.kv_heads, spec.attention.head_dim);
        let count = shape.blocks as usize * shape.block_len as usize * kv_heads * head_dim;
        let numbers = || match shape.storage {
            CacheType::F32 => Numbers::F32(vec![0.0; count]),
            CacheType::F16 => Numbers::F16(vec![0; count]),
        };
        let layers = spec.layers.iter().map(|_| Layer { keys: numbers(), values: numbers() }).collect();
        Cache { layers, kv_heads, head_dim, block_len: shape.block_len as usize }
    }

    /// Keeps the keys and values of one position: `[kv_head, head_dim]` each.
    pub(super) fn write(&mut self, layer: usize, at: (u32, u32), key: &[f32], value: &[f32]) {
        let (block, offset) = (at.0 as usize, at.1 as usize);
        let Layer { keys, values } = &mut self.layers[layer];
        for (numbers, from) in [(keys, key), (values, value)] {
            for (head, from) in from.chunks_exact(self.head_dim).enumerate() {
                let start = ((block * self.kv_heads + head) * self.block_len + offset) * self.head_dim;
                match numbers {
                    Numbers::F32(all) => all[start..start + self.head_dim].copy_from_slice(from),
                    Numbers::F16(all) => to_f16(from, &mut all[start..start + self.head_dim]),
                }
            }
        }
    }

    /// One layer, for the attention kernel.
    pub(super) fn view(&self, layer: usize) -> View<'_> {
        let Layer { keys, values } = &self.layers[layer];
        View {
            keys: keys.view(),
            values: values.view(),
            kv_heads: self.kv_heads,
            block_len: self.block_len,
            head_dim: self.head_dim,
        }
    }

    /// Fills blocks with what is no number: whoever reads them is found out. For tests.
    pub(super) fn poison(&mut self, blocks: &[u32]) {
        let size = self.kv_heads * self.block_len * self.head_dim;
        for Layer { keys, values } in &mut self.layers {
            for numbers in [keys, values] {
                for block in blocks {
                    let range = *block as usize * size..(*block as usize + 1) * size;
                    match numbers {
                        Numbers::F32(all) => all[range].fill(f32::NAN),
                        Numbers::F16(all) => all[range].fill(0x7e00),
                    }
                }
            }
        }
    }
}

impl Numbers {
    fn view(&self) -> Storage<'_> {
        match self {
            Numbers::F32(numbers) => Storage::F32(numbers),
            Numbers::F16(numbers) => Storage::F16(numbers),
        }
    }
}
