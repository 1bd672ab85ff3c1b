//! A file of tensors, open for as long as something of it is to be read. By `pread`, never mapped: a file that is cut short
//! makes an error, where a mapping would kill the process.

use crate::error::LoadError;
use rayon::prelude::*;
use rustix::io::{ReadWriteFlags, preadv2};
use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes that are fetched at a time, unless the first and the last of them are in memory: the system reads ahead by about half
/// as much, so that what lies between them is there as well.
const PIECE: usize = 256 << 10;

/// An open file, and what it was when it was opened.
#[derive(Debug)]
pub(super) struct TensorFile {
    path: PathBuf,
    file: File,
    written: Written,
}

/// What changes when somebody writes to a file: length, and time of the last change in seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written(u64, i64, i64);

impl Written {
    fn of(metadata: &Metadata) -> Self {
        Written(metadata.len(), metadata.mtime(), metadata.mtime_nsec())
    }
}

impl TensorFile {
    /// Opens a regular file.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        let metadata = file.metadata().map_err(|e| refuse(e.to_string()))?;
        if !metadata.is_file() {
            return Err(refuse("is no regular file".into()));
        }
        Ok(TensorFile { path: path.to_path_buf(), file, written: Written::of(&metadata) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes, when it was opened.
    pub(super) fn length(&self) -> u64 {
        self.written.0
    }

    /// For headers, which are read from the beginning.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// So many bytes from `at` on.
    pub(super) fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_into(at, &mut bytes)?;
        Ok(bytes)
    }

    /// The same into memory that is there.
    pub(super) fn read_into(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, at)
    }

    /// Has the system read these bytes into its own pages, those that are not there; the current rayon pool reads. `false`
    /// where it does not keep them, or does not say.
    pub(super) fn fetch(&self, range: Range<u64>) -> bool {
        let pieces: Vec<u64> = range.clone().step_by(PIECE).collect();
        pieces.into_par_iter().all(|at| {
            let end = range.end.min(at + PIECE as u64);
            let there = || self.is_there(at) && self.is_there(end - 1);
            there() || (self.read(at, (end - at) as usize).is_ok() && there())
        })
    }

    /// Is the page of this byte in memory?
    fn is_there(&self, at: u64) -> bool {
        let read = preadv2(&self.file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT);
        matches!(read, Ok(1))
    }

    /// Is it still what it was when it was opened?
    ///
    /// # Errors
    /// It was written to meanwhile, so that what was read of it may be of two models.
    pub(super) fn check_unchanged(&self) -> Result<(), LoadError> {
        let refuse = |reason: String| LoadError::new(&self.path, reason);
        let metadata = self.file.metadata().map_err(|e| refuse(e.to_string()))?;
        if Written::of(&metadata) == self.written {
            return Ok(());
        }
        Err(refuse(
            "was written to while it was read; write a new file beside it, and give it this name at the end".into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_not_in_the_file_is_not_fetched() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 3 * PIECE]).unwrap();
        let opened = TensorFile::open(file.path()).unwrap();
        assert!(opened.fetch(0..0) && !opened.fetch(0..4 * PIECE as u64));
        assert_eq!(opened.read(PIECE as u64, 2).unwrap(), [7, 7]);
    }

    #[test]
    fn writing_and_cutting_are_noticed() {
        for change in [|file: &mut File| file.write_all(b"x"), |file: &mut File| file.set_len(4)] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(b"eight of").unwrap();
            let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
            file.as_file().set_modified(long_ago).unwrap();
            let opened = TensorFile::open(file.path()).unwrap();
            assert!(opened.check_unchanged().is_ok() && opened.length() == 8);
            change(file.as_file_mut()).unwrap();
            let error = opened.check_unchanged().unwrap_err();
            assert!(error.to_string().contains("was written to while it was read"), "{error}");
        }
    }
}
