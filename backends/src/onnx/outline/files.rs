//! The files that hold external data: plain ones beneath the folder of the model, and long enough. They are looked at, and read
//! later by the same paths. Whoever can write to the folder in between is not kept out.
//!
//! ONNX Runtime would map them into memory: a file that is cut off or overwritten while the model serves would end the process,
//! or change its answers. So they are read here, and what it is given is bytes.

use super::{BYTES_MAX, External, Outline, shown};
use crate::artifact::check_link;
use crate::error::LoadError;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Looks at every file that external data lies in, beneath `directory`, where the `.onnx` file lies.
///
/// # Errors
/// A file is missing, is no plain file of its own, lies elsewhere, or is too short; names the file.
pub(in crate::onnx) fn check_external(outline: &Outline, directory: &Path) -> Result<(), LoadError> {
    // What a bare name lies in.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for external in &outline.external {
        let size = match sizes.get(external.location.as_str()) {
            Some(size) => *size,
            None => {
                let size = size(external, directory)?;
                sizes.insert(&external.location, size);
                size
            }
        };
        let end = external.offset.saturating_add(external.bytes);
        if end > size {
            let (tensor, start) = (shown(&external.tensor), external.offset);
            let reason = format!("has {size} bytes, but tensor {tensor} lies at bytes {start} to {end} of it");
            return Err(LoadError::new(directory.join(&external.location), reason));
        }
    }
    Ok(())
}

/// Files in memory: the path that tensors name them by, and their bytes.
pub(in crate::onnx) type Files = Vec<(CString, Vec<u8>)>;

/// The first tensor whose file ONNX Runtime maps all the same. It takes no tensor of more bytes than protobuf can count, and where
/// there is one of those none at all.
pub(super) fn mapped(outline: &Outline) -> Option<&External> {
    outline.external.iter().find(|external| external.mapped || external.bytes > BYTES_MAX as u64)
}

/// Reads the files that ONNX Runtime takes from memory, each as far as tensors lie in it.
///
/// # Errors
/// One cannot be read, is longer than `limit`, or there is not enough memory; names the file.
pub(in crate::onnx) fn read_external(outline: &Outline, directory: &Path, limit: u64) -> Result<Files, LoadError> {
    let given = || outline.external.iter().filter(|external| !external.mapped);
    if given().any(|external| external.bytes > BYTES_MAX as u64) {
        return Ok(Vec::new());
    }
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    for external in given() {
        let end = ends.entry(&external.location).or_default();
        *end = (*end).max(external.offset.saturating_add(external.bytes));
    }
    let read = |(location, end): (&str, u64)| {
        let path = directory.join(location);
        let refuse = |reason: String| LoadError::new(&path, reason);
        if end > limit {
            return Err(refuse(format!("tensors lie in its first {end} bytes; the limit is {limit}")));
        }
        let name = CString::new(location).map_err(|e| refuse(e.to_string()))?;
        Ok((name, beginning(&path, end).map_err(refuse)?))
    };
    ends.into_iter().map(read).collect()
}

/// So many bytes from the beginning of a file.
fn beginning(path: &Path, length: u64) -> Result<Vec<u8>, String> {
    let memory = || format!("there is not enough memory for its external data, {length} bytes");
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX)).map_err(|_| memory())?;
    let read = File::open(path).and_then(|file| file.take(length).read_to_end(&mut bytes));
    match read {
        Ok(read) if read as u64 == length => Ok(bytes),
        Ok(read) => Err(format!("was cut off while it was read: it has {read} bytes of {length}")),
        Err(e) if e.kind() == ErrorKind::OutOfMemory => Err(memory()),
        Err(e) => Err(format!("its external data cannot be read: {e}")),
    }
}

/// The length of the file of a tensor's data, which is a plain one.
fn size(external: &External, directory: &Path) -> Result<u64, LoadError> {
    let mut path = directory.to_path_buf();
    let failed = |path: &PathBuf, e: std::io::Error| {
        LoadError::new(path, format!("is asked for by the data of tensor {}: {e}", shown(&external.tensor)))
    };
    for part in external.location.split('/') {
        path.push(part);
        fs::symlink_metadata(&path).map_err(|e| failed(&path, e))?;
        check_link(&path)?;
    }
    let metadata = fs::metadata(&path).map_err(|e| failed(&path, e))?;
    if !metadata.is_file() {
        return Err(LoadError::new(&path, "is no regular file; external data lies in one"));
    }
    if metadata.nlink() > 1 {
        let reason = format!(
            "has {} names (hard links), and may be a file from elsewhere; copy the file into the model directory",
            metadata.nlink()
        );
        return Err(LoadError::new(&path, reason));
    }
    // A folder `..data` that somebody made may be a link to anywhere.
    let root = fs::canonicalize(directory).map_err(|e| failed(&path, e))?;
    let real = fs::canonicalize(&path).map_err(|e| failed(&path, e))?;
    if !real.starts_with(root) {
        return Err(LoadError::new(&path, "lies outside the model directory; copy the file into it"));
    }
    Ok(metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Eight bytes of `location`, from `offset`.
    fn external(location: &str, offset: u64) -> External {
        External { tensor: "w".into(), location: location.into(), offset, length: None, bytes: 8, mapped: false }
    }

    fn check(directory: &Path, external: &[External]) -> Result<(), LoadError> {
        check_external(&Outline { external: external.to_vec(), ..Outline::default() }, directory)
    }

    /// Why this is refused; the error names the file.
    fn refused(directory: &Path, external: External) -> String {
        let error = check(directory, std::slice::from_ref(&external)).unwrap_err();
        assert!(directory.join(&external.location).starts_with(&error.file), "{error}");
        error.reason
    }

    #[test]
    fn plain_files_that_are_long_enough_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("a.bin"), [0u8; 16]).unwrap();
        fs::create_dir_all(folder.join("weights/more")).unwrap();
        fs::write(folder.join("weights/more/b"), [0u8; 8]).unwrap();
        let good = [external("a.bin", 0), external("a.bin", 8), external("weights/more/b", 0)];
        assert_eq!(check(folder, &good), Ok(()));
        assert_eq!(check(Path::new(""), &[]), Ok(()));
    }

    #[test]
    fn files_that_are_too_short_or_missing_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("a.bin"), [0u8; 16]).unwrap();
        let reason = refused(folder, external("a.bin", 9));
        assert_eq!(reason, "has 16 bytes, but tensor 'w' lies at bytes 9 to 17 of it");
        assert!(refused(folder, external("a.bin", u64::MAX)).contains("has 16 bytes"));
        // The second look at a file is as sharp as the first.
        let error = check(folder, &[external("a.bin", 0), external("a.bin", 100)]).unwrap_err();
        assert!(error.reason.contains("bytes 100 to 108"), "{error}");
        let reason = refused(folder, external("b.bin", 0));
        assert!(reason.starts_with("is asked for by the data of tensor 'w': "), "{reason}");
        assert!(refused(folder, external("a.bin/b", 0)).contains("tensor 'w'"));
        fs::create_dir(folder.join("c")).unwrap();
        assert!(refused(folder, external("c", 0)).contains("no regular file"));
    }

    #[test]
    fn files_are_read_as_far_as_tensors_lie_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::create_dir(folder.join("b")).unwrap();
        fs::write(folder.join("a.bin"), (0..32).collect::<Vec<u8>>()).unwrap();
        fs::write(folder.join("b/c.bin"), [7u8; 8]).unwrap();
        let read = |external: &[External], limit| {
            read_external(&Outline { external: external.to_vec(), ..Outline::default() }, folder, limit)
        };
        let inner = External { mapped: true, ..external("none.bin", 0) };
        let all = [external("a.bin", 16), external("b/c.bin", 0), external("a.bin", 0), inner];
        let files = read(&all, 24).unwrap();
        let told: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.to_str().unwrap(), &bytes[..])).collect();
        assert_eq!(told, [("a.bin", &(0..24).collect::<Vec<u8>>()[..]), ("b/c.bin", &[7u8; 8][..])]);
        assert_eq!(read(&all, 23).unwrap_err().reason, "tensors lie in its first 24 bytes; the limit is 23");
        let error = read(&[external("a.bin", 25)], 99).unwrap_err();
        assert_eq!(error.reason, "was cut off while it was read: it has 32 bytes of 33");
        assert_eq!(error.file, folder.join("a.bin"));
        let error = read(&[external("none.bin", 0)], 99).unwrap_err();
        assert!(error.reason.starts_with("its external data cannot be read: "), "{error}");
        // Of one that is too large to be given, none is.
        let large = External { bytes: 1 << 31, ..external("none.bin", 0) };
        assert_eq!(read(&[external("a.bin", 0), large], 99), Ok(Vec::new()));
    }

    #[test]
    fn what_is_mapped_is_told() {
        let told = |external: External| {
            let outline = Outline { external: vec![external], ..Outline::default() };
            outline.risks()
        };
        assert_eq!(told(external("a.bin", 0)), Vec::<String>::new());
        let inner = External { mapped: true, ..external("a.bin", 0) };
        for external in [inner, External { bytes: 1 << 31, ..external("a.bin", 0) }] {
            let risks = told(external);
            let told = "tensor 'w' lies in the file 'a.bin', which";
            assert!(risks.len() == 1 && risks[0].starts_with(told), "{risks:?}");
        }
    }

    #[test]
    fn hard_links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("secret"), [0u8; 16]).unwrap();
        fs::hard_link(folder.join("secret"), folder.join("a.bin")).unwrap();
        let reason = refused(folder, external("a.bin", 0));
        assert!(reason.contains("2 names (hard links)") && reason.contains("copy the file"), "{reason}");
    }

    #[test]
    fn links_are_refused_but_for_those_of_mounts() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("a.bin"), [0u8; 16]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        symlink(outside.path().join("a.bin"), folder.join("file")).unwrap();
        symlink(outside.path(), folder.join("directory")).unwrap();
        for location in ["file", "directory/a.bin"] {
            let reason = refused(folder, external(location, 0));
            assert!(reason.contains("symbolic link"), "{location}: {reason}");
        }
        // As Kubernetes mounts files: through a folder that is replaced as a whole.
        fs::create_dir(folder.join("..2026_01_01")).unwrap();
        fs::write(folder.join("..2026_01_01/a.bin"), [0u8; 16]).unwrap();
        symlink("..2026_01_01", folder.join("..data")).unwrap();
        symlink("..data/a.bin", folder.join("a.bin")).unwrap();
        assert_eq!(check(folder, &[external("a.bin", 0)]), Ok(()));
        assert!(refused(folder, external("..data/a.bin", 0)).contains("symbolic link"));
        // The same, made to lead elsewhere.
        fs::remove_file(folder.join("..data")).unwrap();
        symlink(outside.path(), folder.join("..data")).unwrap();
        assert!(refused(folder, external("a.bin", 0)).contains("lies outside the model directory"));
    }
}
