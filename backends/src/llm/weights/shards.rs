//! The safetensors files of a model: one, or shards with an index. Opened, their headers checked, and read from; what
//! their tensors mean is [`super::safetensors`]'s business.

use super::file::TensorFile;
use super::safetensors_header::{Described, HEADER_BYTES_MAX, header, tiles};
use crate::error::LoadError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Files of a model; each stays open.
const SHARDS_MAX: usize = 512;
/// The file of a model that is in one.
const SINGLE: &str = "model.safetensors";

/// A model's files.
#[derive(Debug)]
pub(super) struct Shards {
    path: PathBuf,
    files: Vec<TensorFile>,
}

/// The first byte of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    file: usize,
    start: u64,
}

/// What headers say of each tensor, and where it is.
pub(super) type Tensors = BTreeMap<String, (Described, Source)>;

/// `model.safetensors.index.json`: the file of each tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(path: &Path) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let mut text = Vec::new();
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        file.take(HEADER_BYTES_MAX + 1).read_to_end(&mut text).map_err(|e| refuse(e.to_string()))?;
        if text.len() as u64 > HEADER_BYTES_MAX {
            return Err(refuse(format!("has more than {HEADER_BYTES_MAX} bytes")));
        }
        serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))
    }
}

impl Shards {
    /// Opens `model.safetensors`, or `model.safetensors.index.json` and its shards, in `directory`. Where there are both,
    /// transformers takes the former; an index that places nothing in it was left behind.
    pub(super) fn open(directory: &Path) -> Result<(Self, Tensors), LoadError> {
        let (single, path) = (directory.join(SINGLE), directory.join("model.safetensors.index.json"));
        if !path.is_file() {
            return Self::open_file(&single);
        }
        let index = Index::read(&path)?;
        if single.is_file() && !index.weight_map.values().any(|file| file == SINGLE) {
            return Self::open_file(&single);
        }
        Self::open_all(directory, &path, &index)
    }

    /// Opens a single file.
    pub(super) fn open_file(path: &Path) -> Result<(Self, Tensors), LoadError> {
        let mut opened = Shards { path: path.to_path_buf(), files: Vec::new() };
        let tensors = opened.add(path)?;
        Ok((opened, tensors))
    }

    /// Opens the shards of `index`, the content of `path`.
    fn open_all(directory: &Path, path: &Path, index: &Index) -> Result<(Self, Tensors), LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let mut shards: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        if shards.len() > SHARDS_MAX {
            return Err(refuse(format!("names {} files; the limit is {SHARDS_MAX}", shards.len())));
        }
        let mut opened = Shards { path: directory.to_path_buf(), files: Vec::new() };
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
        Ok((opened, tensors))
    }

    /// Opens another file; its tensors.
    fn add(&mut self, path: &Path) -> Result<Tensors, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let file = TensorFile::open(path)?;
        let (header, data) = header(file.file(), file.length()).map_err(refuse)?;
        tiles(&header, file.length() - data).map_err(refuse)?;
        let number = self.files.len();
        self.files.push(file);
        let place = |(name, described): (String, Described)| {
            let start = data + described.data_offsets[0];
            (name, (described, Source { file: number, start }))
        };
        Ok(header.0.into_iter().map(place).collect())
    }

    /// The file or directory, for errors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The model is refused for a tensor.
    pub(super) fn refuse(&self, name: &str, reason: impl std::fmt::Display) -> LoadError {
        LoadError::new(&self.path, format!("tensor '{}' {reason}", name.escape_debug()))
    }

    /// Bytes of a tensor, from `offset` on. Whoever asks has held them against its size.
    pub(super) fn read(&self, source: Source, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
        self.files[source.file].read(source.start + offset, length)
    }

    /// The same into memory that is there.
    pub(super) fn read_into(&self, source: Source, offset: u64, to: &mut [u8]) -> std::io::Result<()> {
        self.files[source.file].read_into(source.start + offset, to)
    }

    /// Has the system read some bytes of a tensor into its own pages. Whoever asks has held them against its size.
    pub(super) fn fetch(&self, source: Source, range: Range<usize>) -> bool {
        let place = source.start + range.start as u64..source.start + range.end as u64;
        self.files[source.file].fetch(place)
    }

    /// Is no file written to since it was opened?
    pub(super) fn check_unchanged(&self) -> Result<(), LoadError> {
        self.files.iter().try_for_each(TensorFile::check_unchanged)
    }
}
