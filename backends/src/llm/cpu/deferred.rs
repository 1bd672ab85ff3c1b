//! A matrix whose packing can wait: a server that has its files in memory answers before it has laid them out anew.
//!
//! A tile that is not packed yet is read and packed for each product, into memory that stays in a core's cache, and
//! forgotten. Kernels see no difference, so a product has the same bits at any time. Reading is a copy out of the system's
//! own pages; what takes long at a start is memory that nobody has touched yet, and that is for [`Deferred::pack`] to fill
//! once the first answers are out.

use crate::error::LoadError;
use crate::llm::layout::Rows;
use crate::llm::weights::Weights;
use kernels::llm::activations::{Activations, Operand};
use kernels::llm::blocks::Format;
use kernels::llm::packed::{Packed, TILE};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a file that are read and packed at a time: they fit a core's own cache.
const BYTES_AT_A_TIME: usize = 128 << 10;

/// Where a matrix comes from.
type Source = Rows<Arc<dyn Weights>>;

/// A weight matrix, `[rows, cols]`, the first tiles of which are packed.
pub(super) struct Deferred {
    packed: Packed,
    /// Tiles that are packed.
    ready: usize,
    /// Bytes of a row in its file.
    row: usize,
    /// Of the rest; gone once there is none.
    source: Option<Box<Source>>,
}

impl std::fmt::Debug for Deferred {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Deferred({:?}, {} tiles packed)", self.packed, self.ready)
    }
}

impl Deferred {
    /// A matrix that is packed.
    pub(super) fn packed(packed: Packed) -> Self {
        Deferred { ready: packed.tiles(), packed, row: 0, source: None }
    }

    /// A matrix of which nothing is packed. `source` has its rows in order, in `format`.
    ///
    /// # Errors
    /// As [`Packed::vacant`].
    pub(super) fn new(format: Format, source: Source) -> Result<Self, String> {
        let (rows, cols) = source.shape();
        let packed = Packed::vacant(format, rows, cols)?;
        let row = format.row_bytes(cols).ok_or("its rows are too long")?;
        Ok(Deferred { packed, ready: 0, row, source: Some(Box::new(source)) })
    }

    /// Is something left to be packed?
    pub(super) fn is_vacant(&self) -> bool {
        self.source.is_some()
    }

    /// Packs about `most` bytes more, on all threads of the current pool; how many it were.
    ///
    /// # Errors
    /// The file cannot be read; then nothing is packed.
    pub(super) fn pack(&mut self, most: usize) -> Result<usize, LoadError> {
        let Some(source) = &self.source else { return Ok(0) };
        let (row, together) = (self.row, self.together());
        let count = (most / (TILE * row)).clamp(1, self.packed.tiles() - self.ready);
        let tiles: Vec<_> = self.packed.tiles_mut().skip(self.ready).take(count).collect();
        tiles.into_par_iter().chunks(together).try_for_each(|tiles| {
            let start = tiles.first().map_or(0, |tile| tile.rows.start);
            let end = tiles.last().map_or(0, |tile| tile.rows.end);
            let bytes = source.read(start..end)?;
            for tile in tiles {
                let range = (tile.rows.start - start) * row..(tile.rows.end - start) * row;
                tile.pack(&bytes[range]);
            }
            Ok::<_, LoadError>(())
        })?;
        self.ready += count;
        if self.ready == self.packed.tiles() {
            self.source = None;
        }
        Ok(count * TILE * row)
    }

    /// The product with `a`, for the rows of `tiles`: [`Packed::multiply`].
    ///
    /// # Errors
    /// The file cannot be read; what `out` holds then is nothing.
    pub(super) fn multiply(
        &self,
        tiles: Range<usize>,
        a: &Activations,
        out: &mut [&mut [f32]],
    ) -> Result<(), LoadError> {
        let Some(source) = self.source.as_ref().filter(|_| tiles.end > self.ready) else {
            self.packed.multiply(tiles, a, out);
            return Ok(());
        };
        let first = tiles.start * TILE;
        let there = tiles.start..self.ready.max(tiles.start);
        if !there.is_empty() {
            self.packed.multiply(there.clone(), a, &mut part(out, 0..there.len() * TILE));
        }
        let mut strip = Strip::default();
        for start in (there.end..tiles.end).step_by(self.together()) {
            let end = (start + self.together()).min(tiles.end);
            let rows = start * TILE..(end * TILE).min(self.rows());
            let packed = strip.read(source, self.packed.format(), self.row, rows.clone())?;
            packed.multiply(0..packed.tiles(), a, &mut part(out, rows.start - first..rows.end - first));
        }
        Ok(())
    }

    /// The weights of one row, dequantised: [`Packed::row`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) -> Result<(), LoadError> {
        match self.source.as_ref().filter(|_| row / TILE >= self.ready) {
            Some(source) => self.packed.format().dequantise(&source.read(row..row + 1)?, out),
            None => self.packed.row(row, out),
        }
        Ok(())
    }

    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.packed.rows()
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.packed.tiles()
    }

    /// Bytes that it takes when it is packed.
    pub(super) fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// The activations that it multiplies.
    pub(super) fn operand(&self) -> Operand {
        self.packed.operand()
    }

    /// Tiles that are read at a time.
    fn together(&self) -> usize {
        (BYTES_AT_A_TIME / (TILE * self.row.max(1))).max(1)
    }
}

/// The columns `range` of all rows.
fn part<'a>(out: &'a mut [&mut [f32]], range: Range<usize>) -> Vec<&'a mut [f32]> {
    out.iter_mut().map(|row| &mut row[range.clone()]).collect()
}

/// A few tiles that are packed for one product, in memory that the next ones of the same task take over.
#[derive(Default)]
struct Strip {
    bytes: Vec<u8>,
    packed: Option<Packed>,
}

impl Strip {
    fn read(&mut self, source: &Source, format: Format, row: usize, rows: Range<usize>) -> Result<&Packed, LoadError> {
        self.bytes.resize(rows.len() * row, 0);
        source.read_into(rows.clone(), &mut self.bytes)?;
        let refuse = |reason: String| LoadError::new(source.file(), reason);
        let kept = self.packed.take().filter(|packed| packed.rows() == rows.len());
        let mut packed =
            kept.map_or_else(|| Packed::vacant(format, rows.len(), source.shape().1), Ok).map_err(refuse)?;
        for tile in packed.tiles_mut() {
            let range = tile.rows.start * row..tile.rows.end * row;
            tile.pack(&self.bytes[range]);
        }
        Ok(self.packed.insert(packed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::layout::{Part, Slot, rows};
    use crate::llm::spec::DecoderSpec;
    use crate::llm::weights::{self, Info};
    use std::path::Path;

    const ROWS: usize = 600;
    const COLS: usize = 256;

    /// One matrix, whatever it is called.
    struct One(Info, Vec<u8>);

    impl Weights for One {
        fn file(&self) -> &Path {
            Path::new("one")
        }
        fn names(&self) -> Vec<&str> {
            Vec::new()
        }
        fn info(&self, _name: &str) -> Option<&Info> {
            Some(&self.0)
        }
        fn read(&self, _name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
            Ok(self.1[range].to_vec())
        }
    }

    fn source(format: weights::Format) -> (Vec<u8>, Source) {
        let config = format!(
            r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": {COLS}, "vocab_size": {ROWS},
            "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu"}}"#
        );
        let spec = DecoderSpec::from_config(Path::new("config.json"), config.as_bytes()).unwrap();
        let info = Info { format, shape: vec![ROWS, COLS] };
        // Bits of finite numbers in every format.
        let bytes: Vec<u8> = (0..format.bytes(&info.shape).unwrap() as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3b)
            .collect();
        let weights: Arc<dyn Weights> = Arc::new(One(info, bytes.clone()));
        (bytes, rows(&spec, weights, Part::global(Slot::Embedding)).unwrap())
    }

    /// The product of `tiles`, as bits.
    fn product(matrix: &Deferred, tiles: Range<usize>, a: &Activations) -> Vec<u32> {
        let width = (tiles.end * TILE).min(ROWS) - tiles.start * TILE;
        let mut out = vec![0.0f32; a.rows() * width];
        matrix.multiply(tiles, a, &mut out.chunks_exact_mut(width).collect::<Vec<_>>()).unwrap();
        out.iter().map(|x| x.to_bits()).collect()
    }

    fn row(matrix: &Deferred, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; COLS];
        matrix.row(row, &mut out).unwrap();
        out
    }

    #[test]
    fn products_and_rows_are_the_same_at_every_stage_of_packing() {
        use weights::Format as F;
        let formats = [F::F32, F::F16, F::Bf16, F::Q8_0, F::Q4_0, F::Q4K, F::Q5K, F::Q6K];
        for (from, format) in formats.into_iter().zip(Format::ALL) {
            let (bytes, source) = source(from);
            let packed = Deferred::packed(Packed::new(format, ROWS, COLS, &bytes).unwrap());
            let x: Vec<f32> = (0..3 * COLS).map(|i| (i as f32 * 0.37).sin()).collect();
            let a = Activations::new(packed.operand(), &x, COLS);
            let mut waiting = Deferred::new(format, source).unwrap();
            assert!(waiting.is_vacant() && waiting.bytes() == packed.bytes());
            let tiles = packed.tiles();
            let ranges = [0..tiles, 2..11, tiles - 1..tiles];
            let expected = ranges.clone().map(|tiles| product(&packed, tiles, &a));
            assert!(
                expected[0].iter().any(|bits| *bits != expected[0][0]) && !expected[0].contains(&f32::NAN.to_bits())
            );
            for stage in 0.. {
                for (tiles, expected) in ranges.iter().zip(&expected) {
                    assert_eq!(product(&waiting, tiles.clone(), &a), *expected, "{format:?}, {tiles:?}, stage {stage}");
                }
                for at in [0, 77, ROWS - 1] {
                    assert_eq!(row(&waiting, at), row(&packed, at), "{format:?}, row {at}, stage {stage}");
                }
                if !waiting.is_vacant() {
                    assert_eq!(stage, tiles.div_ceil(3));
                    break;
                }
                waiting.pack(3 * TILE * bytes.len() / ROWS).unwrap();
            }
        }
    }
}
