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
//! process. gpt-oss's pairs of `_blocks` and `_scales` appear as one tensor of [`Format::Mxfp4`], and matrices of eight-bit
//! floats with their scales as one of [`Format::Bf16`].

use super::narrow;
use super::safetensors_header::{Described, HEADER_BYTES_MAX, float, header, tiles};
use super::{Format, Info, Weights};
use crate::error::LoadError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Files of a model; each stays open.
const SHARDS_MAX: usize = 512;

/// The tensors of a directory's safetensors files.
#[derive(Debug)]
pub struct Safetensors {
    path: PathBuf,
    files: Vec<File>,
    tensors: BTreeMap<String, Entry>,
}

/// A tensor and where its bytes are.
#[derive(Debug)]
struct Entry {
    info: Info,
    source: Source,
    /// Where its scales lie apart.
    scales: Option<(Source, Joined)>,
}

/// What two tensors are as one.
#[derive(Clone, Copy, Debug)]
enum Joined {
    /// Nibbles and exponents.
    Mxfp4,
    /// Eight-bit floats and the scales of some of them each.
    Narrow(narrow::Scales),
}

/// The first byte of a tensor.
#[derive(Clone, Copy, Debug)]
struct Source {
    file: usize,
    start: u64,
}

/// `model.safetensors.index.json`: the file of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Safetensors {
    /// Opens `model.safetensors.index.json` and its shards, or `model.safetensors`, in `directory`.
    ///
    /// # Errors
    /// Neither is there, or a header is malformed: [`LoadError`] names the file and the tensor.
    pub fn open(directory: &Path) -> Result<Self, LoadError> {
        let index = directory.join("model.safetensors.index.json");
        if index.is_file() {
            return Self::open_shards(directory, &index);
        }
        Self::open_file(&directory.join("model.safetensors"))
    }

    /// Opens a single file.
    ///
    /// # Errors
    /// The file cannot be read or its header is malformed.
    pub fn open_file(path: &Path) -> Result<Self, LoadError> {
        let mut opened = Safetensors { path: path.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        let tensors = opened.add(path)?;
        opened.finish(tensors)
    }

    fn open_shards(directory: &Path, path: &Path) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let mut text = Vec::new();
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        file.take(HEADER_BYTES_MAX + 1).read_to_end(&mut text).map_err(|e| refuse(e.to_string()))?;
        if text.len() as u64 > HEADER_BYTES_MAX {
            return Err(refuse(format!("has more than {HEADER_BYTES_MAX} bytes")));
        }
        let index: Index = serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))?;
        let mut shards: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        if shards.len() > SHARDS_MAX {
            return Err(refuse(format!("names {} files; the limit is {SHARDS_MAX}", shards.len())));
        }
        let mut opened = Safetensors { path: directory.to_path_buf(), files: Vec::new(), tensors: BTreeMap::new() };
        let mut tensors = BTreeMap::new();
        for shard in shards {
            let plain =
                Path::new(shard).file_name().is_some_and(|name| name == shard) && shard.ends_with(".safetensors");
            if !plain {
                return Err(refuse(format!("names the file '{}', which is no plain name", shard.escape_debug())));
            }
            for (name, entry) in opened.add(&directory.join(shard))? {
                if index.weight_map.get(&name).is_none_or(|file| file != shard) {
                    let name = name.escape_debug();
                    return Err(refuse(format!("does not place tensor '{name}' in {shard}, which holds it")));
                }
                tensors.insert(name, entry);
            }
        }
        if let Some((name, shard)) = index.weight_map.iter().find(|(name, _)| !tensors.contains_key(*name)) {
            return Err(refuse(format!("places tensor '{}' in {shard}, which lacks it", name.escape_debug())));
        }
        opened.finish(tensors)
    }

    /// Opens another file; its tensors.
    fn add(&mut self, path: &Path) -> Result<BTreeMap<String, (Described, Source)>, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        let metadata = file.metadata().map_err(|e| refuse(e.to_string()))?;
        if !metadata.is_file() {
            return Err(refuse("is no regular file".into()));
        }
        let (header, data) = header(&file, metadata.len()).map_err(refuse)?;
        tiles(&header, metadata.len() - data).map_err(refuse)?;
        let number = self.files.len();
        self.files.push(file);
        let place = |(name, described): (String, Described)| {
            let start = data + described.data_offsets[0];
            (name, (described, Source { file: number, start }))
        };
        Ok(header.0.into_iter().map(place).collect())
    }

    /// Gives every tensor a format, and joins numbers with their scales.
    fn finish(mut self, tensors: BTreeMap<String, (Described, Source)>) -> Result<Self, LoadError> {
        for (name, (described, source)) in &tensors {
            if let Some(stem) = name.strip_suffix("_blocks").filter(|_| described.dtype == "U8") {
                let entry = mxfp4(described, *source, tensors.get(&format!("{stem}_scales")));
                let entry = entry.ok_or_else(|| self.refuse(name, "has no `_scales` of a fitting shape"))?;
                self.tensors.insert(stem.to_owned(), entry);
                continue;
            }
            let scales = name.strip_suffix("_scales").filter(|_| described.dtype == "U8");
            if scales.is_some_and(|stem| tensors.contains_key(&format!("{stem}_blocks"))) {
                continue;
            }
            if described.dtype == narrow::DTYPE {
                let scales = narrow::SCALES.iter().find_map(|end| tensors.get(&format!("{name}{end}")));
                let entry = narrow(described, *source, scales);
                let entry = entry.ok_or_else(|| self.refuse(name, "has no `_scale` of a fitting shape"))?;
                self.tensors.insert(name.clone(), entry);
                continue;
            }
            if is_of_narrow(name, &tensors) {
                continue;
            }
            let format = float(&described.dtype).ok_or_else(|| {
                let dtype = described.dtype.escape_debug().to_string();
                self.refuse(name, &format!("is of type {dtype}; supported are F32, F16, BF16, F8_E4M3"))
            })?;
            let info = Info { format, shape: described.shape.0.clone() };
            self.tensors.insert(name.clone(), Entry { info, source: *source, scales: None });
        }
        Ok(self)
    }

    fn refuse(&self, name: &str, reason: &str) -> LoadError {
        LoadError::new(&self.path, format!("tensor '{}' {reason}", name.escape_debug()))
    }

    fn pread(&self, source: Source, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.files[source.file].read_exact_at(&mut bytes, source.start + offset)?;
        Ok(bytes)
    }
}

impl Weights for Safetensors {
    fn file(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name).map(|entry| &entry.info)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.refuse(name, "is missing"))?;
        let size = entry.info.format.bytes(&entry.info.shape).unwrap_or(0);
        if range.start > range.end || range.end > size {
            return Err(self.refuse(name, &format!("has {size} bytes, not {range:?}")));
        }
        let failed = |e: std::io::Error| self.refuse(name, &format!("cannot be read: {e}"));
        let (scales, joined) = match entry.scales {
            Some(scales) if !range.is_empty() => scales,
            _ => return self.pread(entry.source, range.start as u64, range.len()).map_err(failed),
        };
        if let Joined::Narrow(layout) = joined {
            let numbers = range.start / 2..range.end.div_ceil(2);
            let place = layout.bytes(&numbers);
            let scales = self.pread(scales, place.start as u64, place.len()).map_err(failed)?;
            let stored = self.pread(entry.source, numbers.start as u64, numbers.len()).map_err(failed)?;
            let bytes = layout.widen(numbers.start, &stored, &scales);
            return Ok(bytes[range.start % 2..][..range.len()].to_vec());
        }
        let (first, last) = (range.start / MXFP4_BYTES, range.end.div_ceil(MXFP4_BYTES));
        let nibbles = self.pread(entry.source, 16 * first as u64, 16 * (last - first)).map_err(failed)?;
        let scales = self.pread(scales, first as u64, last - first).map_err(failed)?;
        let bytes = join_mxfp4(&nibbles, &scales);
        Ok(bytes[range.start - first * MXFP4_BYTES..][..range.len()].to_vec())
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
    Some(Entry { info: Info { format: Format::Mxfp4, shape }, source, scales: Some((*scales_source, Joined::Mxfp4)) })
}

/// The one tensor of a matrix of eight-bit floats and its scales.
fn narrow(matrix: &Described, source: Source, scales: Option<&(Described, Source)>) -> Option<Entry> {
    let (scales, scales_source) = scales?;
    let layout = narrow::Scales::of(&matrix.shape.0, scales)?;
    let info = Info { format: Format::Bf16, shape: matrix.shape.0.clone() };
    Some(Entry { info, source, scales: Some((*scales_source, Joined::Narrow(layout))) })
}

/// Does a tensor say something of a matrix of eight-bit floats alone?
fn is_of_narrow(name: &str, tensors: &BTreeMap<String, (Described, Source)>) -> bool {
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
