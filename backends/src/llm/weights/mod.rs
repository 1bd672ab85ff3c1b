//! Tensors by name: from safetensors, from GGUF, or made up. What they mean is [`super::layout`]'s business.
//!
//! Every header is checked whole before anything of its size is allocated; bytes are read when they are asked for.

pub mod blocks;
pub mod cast;
pub mod dummy;
mod file;
pub mod gguf;
mod gguf_reader;
pub mod gguf_spec;
pub mod groups;
mod narrow;
pub mod packed;
pub mod safetensors;
mod safetensors_header;
mod shards;

use crate::error::LoadError;
use groups::{Groups, Stored};
use std::ops::Range;
use std::path::Path;

/// Where a model's tensors come from.
pub trait Weights: Send + Sync {
    /// The file or directory, for errors.
    fn file(&self) -> &Path;
    /// The names of all tensors, sorted.
    fn names(&self) -> Vec<&str>;
    /// Format and shape of a tensor; `None` where there is none of this name.
    fn info(&self, name: &str) -> Option<&Info>;
    /// The bytes `range` of a tensor: row-major, in its own format.
    ///
    /// # Errors
    /// There is no such tensor, it is shorter, or the file cannot be read (any more).
    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError>;
    /// The same bytes from `start` on, as many as `to` is long, where they are wanted: from a file straight into it.
    ///
    /// # Errors
    /// Those of [`Weights::read`].
    fn read_into(&self, name: &str, start: usize, to: &mut [u8]) -> Result<(), LoadError> {
        put(self.file(), &self.read(name, start..start.saturating_add(to.len()))?, to)
    }
    /// Does reading some rows of a matrix read no others? Where it does, they are better read all at once.
    fn in_order(&self, _name: &str) -> bool {
        true
    }
    /// Has the system read the bytes `range` of a tensor into its own pages, those that are not there: to read them again costs
    /// no more than to copy them then. The current rayon pool reads. `false` where the system does not keep them or does not
    /// say so, and where they are not the file's.
    fn fetch(&self, _name: &str, _range: Range<usize>) -> bool {
        false
    }
    /// To be asked once all is read: was it all of one model?
    ///
    /// # Errors
    /// A file was written to since it was opened.
    fn check_unchanged(&self) -> Result<(), LoadError> {
        Ok(())
    }
    /// How a matrix is kept as codes, where that is smaller than what [`Weights::info`] says of it or is the same.
    fn stored(&self, name: &str) -> Option<Stored> {
        let (code, group, minima) = groups::plan(self.info(name)?.format)?;
        Some(Stored { code, group, minima })
    }
    /// The codes of whole rows, counted through all sheets of a stack; `None` where [`Weights::stored`] is.
    ///
    /// # Errors
    /// There is no such tensor, it has fewer rows, or the file cannot be read (any more).
    fn read_groups(&self, name: &str, rows: Range<usize>) -> Result<Option<Groups>, LoadError> {
        let Some(info) = self.info(name).filter(|info| groups::plan(info.format).is_some()) else { return Ok(None) };
        let columns = info.shape.last().copied().unwrap_or(1);
        let Some(row) = info.format.bytes(&[columns]) else { return Ok(None) };
        let bytes = self.read(name, rows.start.saturating_mul(row)..rows.end.saturating_mul(row))?;
        Ok(groups::groups(info.format, columns, &bytes))
    }
    /// How the numbers of a tensor are made up, where they come from no file: a device can make them itself.
    fn made_up(&self, _name: &str) -> Option<MadeUp> {
        None
    }
}

impl std::fmt::Debug for dyn Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({})", self.file().display())
    }
}

/// Copies what was read of `file`, which is as much as was asked for.
pub(super) fn put(file: &Path, bytes: &[u8], to: &mut [u8]) -> Result<(), LoadError> {
    if bytes.len() != to.len() {
        return Err(LoadError::new(file, format!("{} bytes were read of it, and {} wanted", bytes.len(), to.len())));
    }
    to.copy_from_slice(bytes);
    Ok(())
}

/// How the numbers of a tensor are made up: see [`dummy`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MadeUp {
    /// The hash of seed and name.
    pub key: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub sigma: f64,
    /// Are they rounded to eight bits, as [`dummy::Dummy::in_eight_bits`] says?
    pub eight_bits: bool,
}

/// What is known of a tensor before its bytes are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// How its numbers are stored.
    pub format: Format,
    /// Rows before columns; the last dimension is contiguous.
    pub shape: Vec<usize>,
}

/// How numbers are stored: one by one, or in blocks along the last dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
    /// 32 signed bytes and a scale.
    Q8_0,
    /// 32 half bytes and a scale.
    Q4_0,
    /// 256 half bytes; scales and minima of 32 in 6 bits.
    Q4K,
    /// 256 numbers of 5 bits; scales and minima of 32 in 6 bits.
    Q5K,
    /// 256 numbers of 6 bits; scales of 16 in 8 bits.
    Q6K,
    /// 32 four-bit floats and an exponent, in ggml's order of nibbles.
    Mxfp4,
}

impl Format {
    /// Numbers in a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Format::F32 => (1, 4),
            Format::F16 | Format::Bf16 => (1, 2),
            Format::Q8_0 => (32, 34),
            Format::Q4_0 => (32, 18),
            Format::Q4K => (256, 144),
            Format::Q5K => (256, 176),
            Format::Q6K => (256, 210),
            Format::Mxfp4 => (32, 17),
        }
    }

    /// Is every number stored by itself?
    pub fn is_float(self) -> bool {
        self.block().0 == 1
    }

    /// Bytes of a tensor; `None` where blocks do not divide its rows or the product overflows.
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        let (numbers, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if row % numbers != 0 {
            return None;
        }
        let outer = shape.iter().rev().skip(1).try_fold(1usize, |product, dim| product.checked_mul(*dim))?;
        (row / numbers).checked_mul(bytes)?.checked_mul(outer)
    }
}

/// A matrix in its file's format: `rows` rows of `columns` numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// How its numbers are stored.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs; 1 in a vector.
    pub columns: usize,
    /// Row after row.
    pub bytes: Vec<u8>,
}

impl Matrix {
    /// The numbers themselves, row after row.
    pub fn to_f32(&self) -> Vec<f32> {
        blocks::dequantise(self.format, &self.bytes)
    }
}
