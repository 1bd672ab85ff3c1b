//! GGUF, versions 2 and 3: metadata and tensors of one file.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | entries u64
//! entry    key: string | type u32 | value          string: length u64, bytes
//! tensor   name: string | dims u32 | sizes u64 each, contiguous one first | type u32 | offset u64
//! padding to general.alignment | data: each tensor at its offset
//! ```
//!
//! Every count is held against the bytes that remain before anything is allocated for it, tensors must lie within the
//! file and apart from each other, and types that are not supported are refused by tensor. What metadata mean for the
//! model is [`super::gguf_spec`]'s business. Tensor bytes are read with `pread` when they are asked for.

use super::file::TensorFile;
pub use super::gguf_reader::Value;
use super::gguf_reader::{Described, Reader, header};
use super::{Info, Weights};
use crate::error::LoadError;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A GGUF file.
#[derive(Debug)]
pub struct Gguf {
    file: TensorFile,
    metadata: Arc<BTreeMap<String, Value>>,
    tensors: BTreeMap<String, (Info, u64)>,
}

impl Gguf {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// The file cannot be read, or its header is malformed: [`LoadError`] says where.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let file = TensorFile::open(path)?;
        let size = file.length();
        let mut reader = Reader::new(file.file(), size);
        let (metadata, described) = header(&mut reader).map_err(|e| refuse(format!("{e}, at byte {}", reader.at)))?;
        let alignment = alignment(&metadata).map_err(refuse)?;
        let data = reader.at.next_multiple_of(alignment);
        let tensors = place(described, data, size, alignment).map_err(refuse)?;
        Ok(Gguf { file, metadata: Arc::new(metadata), tensors })
    }

    /// The metadata value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All metadata.
    pub fn metadata(&self) -> &Arc<BTreeMap<String, Value>> {
        &self.metadata
    }
}

impl Weights for Gguf {
    fn file(&self) -> &Path {
        self.file.path()
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let place = self.place(name, &range)?;
        self.file.read(place.start, range.len()).map_err(|e| self.refuse(name, format!("cannot be read: {e}")))
    }

    fn read_into(&self, name: &str, start: usize, to: &mut [u8]) -> Result<(), LoadError> {
        let place = self.place(name, &(start..start.saturating_add(to.len())))?;
        self.file.read_into(place.start, to).map_err(|e| self.refuse(name, format!("cannot be read: {e}")))
    }

    fn fetch(&self, name: &str, range: Range<usize>) -> bool {
        self.place(name, &range).is_ok_and(|place| self.file.fetch(place))
    }

    fn check_unchanged(&self) -> Result<(), LoadError> {
        self.file.check_unchanged()
    }
}

impl Gguf {
    fn refuse(&self, name: &str, reason: String) -> LoadError {
        LoadError::new(self.file.path(), format!("tensor '{}' {reason}", name.escape_debug()))
    }

    /// Where a tensor lies in the file.
    fn whole(&self, name: &str) -> Option<Range<u64>> {
        let (info, start) = self.tensors.get(name)?;
        Some(*start..start + info.format.bytes(&info.shape).unwrap_or(0) as u64)
    }

    /// Where the bytes `range` of a tensor lie, which has them.
    fn place(&self, name: &str, range: &Range<usize>) -> Result<Range<u64>, LoadError> {
        let whole = self.whole(name).ok_or_else(|| self.refuse(name, "is missing".into()))?;
        let size = whole.end - whole.start;
        if range.start > range.end || range.end as u64 > size {
            return Err(self.refuse(name, format!("has {size} bytes, not {range:?}")));
        }
        Ok(whole.start + range.start as u64..whole.start + range.end as u64)
    }
}

/// `general.alignment`: a power of two, so that no rounding with it can overflow or divide by zero.
fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, String> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Whole(number)) if (1..=1 << 16).contains(number) && number.count_ones() == 1 => Ok(*number as u64),
        Some(other) => Err(format!("`general.alignment` is {other:?}; expected a power of two up to 65536")),
    }
}

/// Checks that tensors lie in the file's data, aligned and apart; their places from the file's beginning.
fn place(
    mut described: Vec<Described>,
    data: u64,
    size: u64,
    alignment: u64,
) -> Result<BTreeMap<String, (Info, u64)>, String> {
    let available = size.saturating_sub(data);
    described.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut end = 0;
    let mut tensors = BTreeMap::new();
    for tensor in described {
        let Described { name, info, offset, bytes } = tensor;
        let refuse = |fault: String| Err(format!("tensor '{}' {fault}", name.escape_debug()));
        if offset % alignment != 0 {
            return refuse(format!("begins at {offset}, not a multiple of {alignment}"));
        }
        if offset < end {
            return refuse("overlaps another".into());
        }
        end = match offset.checked_add(bytes) {
            Some(end) if end <= available => end,
            _ => return refuse(format!("lies at {offset}, {bytes} bytes long, in data of {available} bytes")),
        };
        if tensors.contains_key(&name) {
            return refuse("appears twice".into());
        }
        tensors.insert(name, (info, data + offset));
    }
    Ok(tensors)
}
