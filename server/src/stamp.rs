//! Whether files are those that were looked at: by what the file system keeps of each, not by what is in them. A file that
//! is written, replaced or put back differs in one of these, whatever its owner makes of its times; one that is only read
//! does not.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files as they were when they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamps(BTreeMap<PathBuf, Option<Stamp>>);

/// What the file system keeps of a file; links are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    /// Where it lies: its number, or its path behind all links.
    place: Place,
    bytes: u64,
    /// Who may read it, and the like: one that could not be read, and now can, has as many bytes of the same time.
    mode: u32,
    /// Of its contents; seconds and nanoseconds.
    written: (i64, i64),
    /// Of anything about it, if that counts. No program can set this time.
    changed: Option<(i64, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Number(u64, u64),
    Path(Option<PathBuf>),
}

impl Stamp {
    /// `None` where there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Stamp {
            place: Place::Number(found.dev(), found.ino()),
            bytes: found.size(),
            mode: found.mode(),
            written: (found.mtime(), found.mtime_nsec()),
            changed: Some((found.ctime(), found.ctime_nsec())),
        })
    }

    fn by_path(self, path: &Path) -> Self {
        Stamp { place: Place::Path(path.canonicalize().ok()), changed: None, ..self }
    }
}

impl Stamps {
    /// Files as they are now.
    pub(crate) fn of(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut stamps = Stamps::default();
        paths.into_iter().for_each(|path| stamps.add(path));
        stamps
    }

    /// The same by where links lead to, length, date and permissions, as what is done for a difference is costly: file
    /// systems that are made of requests (gcsfuse, Mountpoint for S3) may number a file anew whenever they look at it, and
    /// owners are set again and again.
    pub(crate) fn by_path(self) -> Self {
        let loose = |(path, stamp): (PathBuf, Option<Stamp>)| {
            let stamp = stamp.map(|stamp| stamp.by_path(&path));
            (path, stamp)
        };
        Stamps(self.0.into_iter().map(loose).collect())
    }

    /// Adds a file as it is now; one that is not there, too, since it may come.
    pub(crate) fn add(&mut self, path: PathBuf) {
        let stamp = Stamp::of(&path);
        self.0.insert(path, stamp);
    }

    /// Are all of them as they were?
    pub(crate) fn hold(&self) -> bool {
        self.0.iter().all(|(path, stamp)| {
            let loose = stamp.as_ref().is_some_and(|stamp| stamp.changed.is_none());
            let now = Stamp::of(path);
            if loose { now.map(|now| now.by_path(path)) == *stamp } else { now == *stamp }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    #[test]
    fn what_is_written_replaced_or_removed_is_not_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        let stamps = || {
            let mut stamps = Stamps::default();
            stamps.add(path.clone());
            stamps.add(folder.path().join("none"));
            stamps
        };
        fs::write(&path, "first").unwrap();
        let first = stamps();
        assert!(first.hold());
        fs::read(&path).unwrap();
        assert!(first.hold(), "reading changes nothing");
        // As long, and with the time of the first; but later, as far as the system's clock tells.
        std::thread::sleep(Duration::from_millis(50));
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "other").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert!(!first.hold());
        let second = stamps();
        fs::write(&other, "other").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!second.hold());
        let third = stamps();
        fs::write(folder.path().join("none"), "").unwrap();
        assert!(!third.hold(), "what was not there has come");
        let fourth = stamps();
        fs::remove_file(&path).unwrap();
        assert!(!fourth.hold());
    }

    /// As long, and with the same time.
    #[test]
    fn a_link_to_another_folder_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("1", "first"), ("2", "other")] {
            fs::create_dir(folder.path().join(name)).unwrap();
            let file = folder.path().join(name).join("a");
            fs::write(&file, text).unwrap();
            fs::File::options().write(true).open(file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let link = folder.path().join("data");
        symlink("1", &link).unwrap();
        let stamps = Stamps::of([link.join("a")]);
        assert!(stamps.hold());
        fs::remove_file(&link).unwrap();
        symlink("2", &link).unwrap();
        assert!(!stamps.hold());
    }

    #[test]
    fn one_that_may_be_read_now_is_not_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "1").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let loose = Stamps::of([path.clone()]).by_path();
        assert!(loose.hold());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!loose.hold());
    }

    #[test]
    fn owners_may_change_where_that_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "1").unwrap();
        let (strict, loose) = (Stamps::of([path.clone()]), Stamps::of([path.clone()]).by_path());
        std::thread::sleep(Duration::from_millis(20));
        let link = folder.path().join("b");
        fs::hard_link(&path, &link).unwrap();
        assert_eq!((strict.hold(), loose.hold()), (false, true));
        fs::write(&path, "12").unwrap();
        assert!(!loose.hold());
        fs::remove_file(&path).unwrap();
        assert!(!loose.hold());
    }
}
