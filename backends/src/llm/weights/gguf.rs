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

pub use super::gguf_reader::Value;
use super::gguf_reader::{Described, Reader, header};
use super::{Info, Weights};
use crate::error::LoadError;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
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
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        let metadata = file.metadata().map_err(|e| refuse(e.to_string()))?;
        if !metadata.is_file() {
            return Err(refuse("is no regular file".into()));
        }
        let size = metadata.len();
        let mut reader = Reader::new(&file, size);
        let (metadata, described) = header(&mut reader).map_err(|e| refuse(format!("{e}, at byte {}", reader.at)))?;
        let alignment = alignment(&metadata).map_err(refuse)?;
        let data = reader.at.next_multiple_of(alignment);
        let tensors = place(described, data, size, alignment).map_err(refuse)?;
        Ok(Gguf { path: path.to_path_buf(), file, metadata: Arc::new(metadata), tensors })
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
        &self.path
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let refuse = |reason: String| LoadError::new(&self.path, format!("tensor '{}' {reason}", name.escape_debug()));
        let (info, start) = self.tensors.get(name).ok_or_else(|| refuse("is missing".into()))?;
        let size = info.format.bytes(&info.shape).unwrap_or(0);
        if range.start > range.end || range.end > size {
            return Err(refuse(format!("has {size} bytes, not {range:?}")));
        }
        let mut bytes = vec![0; range.len()];
        let read = self.file.read_exact_at(&mut bytes, start + range.start as u64);
        read.map_err(|e| refuse(format!("cannot be read: {e}")))?;
        Ok(bytes)
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
