//! safetensors: one file, or shards with an index.
//!
//! ```text
//! length (8 bytes, little-endian) | header: JSON of that length | data
//! {"name": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}
//! ```
//!
//! The header is bounded before it is read, its numbers are checked against the file's size, and tensors must tile the
//! data without gap or overlap, so that nothing in it decides an allocation or a place to read. Bytes are read with
//! `pread` when they are asked for: a file that shrinks afterwards makes an error, where a mapping would kill the
//! process. gpt-oss's pairs of `_blocks` and `_scales` appear as one tensor of [`Format::Mxfp4`]; matrices of eight-bit
//! floats with their scales, and packed integers with theirs, as one of [`Format::Bf16`].

use super::groups::{Groups, Stored, groups, plan};
use super::narrow;
use super::packed::{self, Scheme};
use super::safetensors_header::{Described, float};
use super::shards::{Shards, Source, Tensors};
use super::{Format, Info, Weights, put};
use crate::error::LoadError;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// The tensors of a directory's safetensors files.
#[derive(Debug)]
pub struct Safetensors {
    shards: Shards,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor and where its bytes are.
#[derive(Debug)]
struct Entry {
    info: Info,
    content: Content,
}

/// What a tensor's numbers are made of.
#[derive(Debug)]
enum Content {
    /// They lie in the file as they are.
    Plain(Source),
    /// Nibbles, and exponents.
    Mxfp4(Source, Source),
    /// Eight-bit floats, and the scales of some of them each.
    Narrow(Source, Source, narrow::Scales),
    /// Integers of few bits, and the scales and zeros of groups of them.
    Packed(Box<packed::Matrix>),
}

impl Safetensors {
    /// Opens `model.safetensors.index.json` and its shards, or `model.safetensors`, in `directory`.
    ///
    /// # Errors
    /// Neither is there, or a header is malformed: [`LoadError`] names the file and the tensor.
    pub fn open(directory: &Path) -> Result<Self, LoadError> {
        Self::open_packed(directory, None)
    }

    /// The same of matrices that are packed as `scheme` says.
    ///
    /// # Errors
    /// Besides: what makes up a matrix is not there, or does not fit.
    pub fn open_packed(directory: &Path, scheme: Option<Scheme>) -> Result<Self, LoadError> {
        let (shards, tensors) = Shards::open(directory)?;
        Self::join(shards, &tensors, scheme)
    }

    /// Opens a single file.
    ///
    /// # Errors
    /// The file cannot be read or its header is malformed.
    pub fn open_file(path: &Path, scheme: Option<Scheme>) -> Result<Self, LoadError> {
        let (shards, tensors) = Shards::open_file(path)?;
        Self::join(shards, &tensors, scheme)
    }

    /// Gives every tensor a format, and joins numbers with their scales.
    fn join(shards: Shards, tensors: &Tensors, scheme: Option<Scheme>) -> Result<Self, LoadError> {
        let mut entries = BTreeMap::new();
        for name in tensors.keys() {
            if let Some((joined, entry)) = entry(&shards, tensors, scheme, name)?
                && entries.insert(joined.clone(), entry).is_some()
            {
                return Err(shards.refuse(name, format!("makes '{}', which is there twice", joined.escape_debug())));
            }
        }
        Ok(Safetensors { shards, tensors: entries })
    }
}

impl Safetensors {
    /// What a tensor is made of, where it has these bytes.
    fn content(&self, name: &str, range: &Range<usize>) -> Result<&Content, LoadError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.shards.refuse(name, "is missing"))?;
        let size = entry.info.format.bytes(&entry.info.shape).unwrap_or(0);
        if range.start > range.end || range.end > size {
            return Err(self.shards.refuse(name, format!("has {size} bytes, not {range:?}")));
        }
        Ok(&entry.content)
    }
}

/// What a tensor is to all others, and called; `None` where it says something of another one alone.
fn entry(
    shards: &Shards,
    tensors: &Tensors,
    scheme: Option<Scheme>,
    name: &str,
) -> Result<Option<(String, Entry)>, LoadError> {
    let Some((described, source)) = tensors.get(name) else { return Ok(None) };
    match scheme.map(|scheme| (scheme, scheme.role(name, tensors))) {
        Some((scheme, packed::Role::Integers(stem))) => {
            let matrix = scheme.matrix(shards, tensors, name, stem)?;
            let info = Info { format: Format::Bf16, shape: vec![matrix.rows, matrix.columns] };
            return Ok(Some((format!("{stem}.weight"), Entry { info, content: Content::Packed(Box::new(matrix)) })));
        }
        Some((_, packed::Role::Beside)) => return Ok(None),
        Some((_, packed::Role::Other)) | None => {}
    }
    if let Some(stem) = name.strip_suffix("_blocks").filter(|_| described.dtype == "U8") {
        let entry = mxfp4(described, *source, tensors.get(&format!("{stem}_scales")));
        let entry = entry.ok_or_else(|| shards.refuse(name, "has no `_scales` of a fitting shape"))?;
        return Ok(Some((stem.to_owned(), entry)));
    }
    let scales = name.strip_suffix("_scales").filter(|_| described.dtype == "U8");
    if scales.is_some_and(|stem| tensors.contains_key(&format!("{stem}_blocks"))) {
        return Ok(None);
    }
    if described.dtype == narrow::DTYPE {
        let scales = narrow::SCALES.iter().find_map(|end| tensors.get(&format!("{name}{end}")));
        let entry = narrow(described, *source, scales);
        let entry = entry.ok_or_else(|| shards.refuse(name, "has no `_scale` of a fitting shape"))?;
        return Ok(Some((name.to_owned(), entry)));
    }
    if is_of_narrow(name, tensors) {
        return Ok(None);
    }
    let format = float(&described.dtype).ok_or_else(|| {
        let (dtype, packed) = (described.dtype.escape_debug(), matches!(described.dtype.as_str(), "I32" | "I8"));
        let hint = if packed { "; `quantization_config` does not say that it is packed" } else { "" };
        shards.refuse(name, format!("is of type {dtype}; supported are F32, F16, BF16, F8_E4M3{hint}"))
    })?;
    let info = Info { format, shape: described.shape.0.clone() };
    Ok(Some((name.to_owned(), Entry { info, content: Content::Plain(*source) })))
}

impl Weights for Safetensors {
    fn file(&self) -> &Path {
        self.shards.path()
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name).map(|entry| &entry.info)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let content = self.content(name, &range)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = content.read(&self.shards, range);
        bytes.map_err(|e| self.shards.refuse(name, format!("cannot be read: {e}")))
    }

    fn read_into(&self, name: &str, start: usize, to: &mut [u8]) -> Result<(), LoadError> {
        let range = start..start.saturating_add(to.len());
        let Content::Plain(source) = self.content(name, &range)? else {
            return put(self.file(), &self.read(name, range)?, to);
        };
        let read = self.shards.read_into(*source, start as u64, to);
        read.map_err(|e| self.shards.refuse(name, format!("cannot be read: {e}")))
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        let entry = self.tensors.get(name)?;
        match &entry.content {
            Content::Narrow(_, _, layout) => return Some(layout.stored()),
            Content::Packed(matrix) => return matrix.stored(),
            Content::Plain(_) | Content::Mxfp4(..) => {}
        }
        let (code, group, minima) = plan(entry.info.format)?;
        Some(Stored { code, group, minima })
    }

    fn read_groups(&self, name: &str, rows: Range<usize>) -> Result<Option<Groups>, LoadError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.shards.refuse(name, "is missing"))?;
        let columns = entry.info.shape.last().copied().unwrap_or(1);
        if matches!(entry.content, Content::Plain(_) | Content::Mxfp4(..)) {
            let Some(row) = entry.info.format.bytes(&[columns]) else { return Ok(None) };
            let bytes = self.read(name, rows.start.saturating_mul(row)..rows.end.saturating_mul(row))?;
            return Ok(groups(entry.info.format, columns, &bytes));
        }
        let all = entry.info.shape.first().copied().unwrap_or(0);
        if rows.is_empty() || rows.end > all {
            return Err(self.shards.refuse(name, format!("has {all} rows, not {rows:?}")));
        }
        let groups = entry.content.groups(&self.shards, &rows, columns);
        groups.map_err(|e| self.shards.refuse(name, format!("cannot be read: {e}")))
    }

    fn in_order(&self, name: &str) -> bool {
        match self.tensors.get(name).map(|entry| &entry.content) {
            Some(Content::Packed(matrix)) => matrix.in_order(),
            _ => true,
        }
    }

    fn fetch(&self, name: &str, range: Range<usize>) -> bool {
        let Ok(Content::Plain(source)) = self.content(name, &range) else { return false };
        self.shards.fetch(*source, range)
    }

    fn check_unchanged(&self) -> Result<(), LoadError> {
        self.shards.check_unchanged()
    }
}

impl Content {
    /// The bytes `range` of the tensor, which are in it and are some.
    fn read(&self, shards: &Shards, range: Range<usize>) -> std::io::Result<Vec<u8>> {
        match self {
            Content::Plain(source) => shards.read(*source, range.start as u64, range.len()),
            Content::Narrow(source, scales, layout) => {
                let numbers = range.start / 2..range.end.div_ceil(2);
                let place = layout.bytes(&numbers);
                let scales = shards.read(*scales, place.start as u64, place.len())?;
                let stored = shards.read(*source, numbers.start as u64, numbers.len())?;
                let bytes = layout.widen(numbers.start, &stored, &scales);
                Ok(bytes[range.start % 2..][..range.len()].to_vec())
            }
            Content::Packed(matrix) => matrix.read(shards, &range),
            Content::Mxfp4(blocks, scales) => {
                let (first, last) = (range.start / MXFP4_BYTES, range.end.div_ceil(MXFP4_BYTES));
                let nibbles = shards.read(*blocks, 16 * first as u64, 16 * (last - first))?;
                let scales = shards.read(*scales, first as u64, last - first)?;
                let bytes = join_mxfp4(&nibbles, &scales);
                Ok(bytes[range.start - first * MXFP4_BYTES..][..range.len()].to_vec())
            }
        }
    }
}

/// Codes of what is no format by itself.
impl Content {
    /// Those of whole rows, which are there and are some.
    fn groups(&self, shards: &Shards, rows: &Range<usize>, columns: usize) -> std::io::Result<Option<Groups>> {
        match self {
            Content::Plain(_) | Content::Mxfp4(..) => Ok(None),
            Content::Packed(matrix) => matrix.groups(shards, rows),
            Content::Narrow(source, scales, layout) => {
                let numbers = rows.start * columns..rows.end * columns;
                let place = layout.bytes(&numbers);
                let scales = shards.read(*scales, place.start as u64, place.len())?;
                let codes = shards.read(*source, numbers.start as u64, numbers.len())?;
                Ok(Some(layout.groups(rows.start, codes, &scales)))
            }
        }
    }
}

const MXFP4_BYTES: usize = 17;

/// The one tensor of `blocks` `[experts, rows, groups, 16]` and `scales` `[experts, rows, groups]`.
fn mxfp4(blocks: &Described, source: Source, scales: Option<&(Described, Source)>) -> Option<Entry> {
    let (scales, scales_source) = scales?;
    let (last, groups) = blocks.shape.0.split_last()?;
    if *last != 16 || scales.shape.0 != groups || scales.dtype != "U8" {
        return None;
    }
    let mut shape = groups.to_vec();
    let columns = shape.last_mut()?;
    *columns = columns.checked_mul(32)?;
    Some(Entry { info: Info { format: Format::Mxfp4, shape }, content: Content::Mxfp4(source, *scales_source) })
}

/// The one tensor of a matrix of eight-bit floats and its scales.
fn narrow(matrix: &Described, source: Source, scales: Option<&(Described, Source)>) -> Option<Entry> {
    let (scales, scales_source) = scales?;
    let layout = narrow::Scales::of(&matrix.shape.0, scales)?;
    let info = Info { format: Format::Bf16, shape: matrix.shape.0.clone() };
    Some(Entry { info, content: Content::Narrow(source, *scales_source, layout) })
}

/// Does a tensor say something of a matrix of eight-bit floats alone?
fn is_of_narrow(name: &str, tensors: &Tensors) -> bool {
    let is_narrow = |name: &str| tensors.get(name).is_some_and(|(found, _)| found.dtype == narrow::DTYPE);
    let scales = narrow::SCALES.iter().filter_map(|end| name.strip_suffix(end));
    let of_inputs = narrow::OF_INPUTS.iter().filter_map(|end| name.strip_suffix(end));
    scales.into_iter().any(is_narrow) || of_inputs.into_iter().any(|stem| is_narrow(&format!("{stem}weight")))
}

/// Hugging Face has neighbours in a byte, ggml numbers 16 apart; the latter is the order of [`Format::Mxfp4`].
fn join_mxfp4(nibbles: &[u8], scales: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(scales.len() * MXFP4_BYTES);
    for (block, scale) in nibbles.chunks_exact(16).zip(scales) {
        let number = |index: usize| (block[index / 2] >> (4 * (index % 2))) & 15;
        bytes.push(*scale);
        bytes.extend((0..16).map(|index| number(index) | (number(index + 16) << 4)));
    }
    bytes
}
