//! A value that is read from files, and read again when they change. What cannot be used is told once, and the value
//! before it stays. How files are read, and what is told in which words, is for those who hold the value.

use crate::stamp::Stamps;
use crate::threads::blocking;
use arc_swap::{ArcSwap, Guard};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// What was last read from files.
#[derive(Debug)]
pub(super) struct Followed<T> {
    files: Vec<PathBuf>,
    current: ArcSwap<T>,
    seen: Mutex<Seen>,
}

/// Files as they were when they were looked at, behind all symbolic links: Kubernetes changes a mounted secret by
/// swapping the link `..data`.
#[derive(Debug)]
struct Seen {
    /// Those that the current value was read from.
    taken: Stamps,
    /// The last that could not be used: they are told once, and tried at every look in case they were read while they
    /// were being written.
    refused: Option<Stamps>,
}

impl<T> Followed<T> {
    /// What `read` makes of the files.
    ///
    /// # Errors
    /// Those of `read`: there is no value before this one.
    pub(super) fn open(files: Vec<PathBuf>, read: impl FnOnce() -> Result<T, String>) -> Result<Self, String> {
        // Looked at before they are read: whoever writes to them in the meantime makes them differ at the next look.
        let taken = Stamps::of(files.iter().cloned());
        let current = ArcSwap::from_pointee(read()?);
        Ok(Followed { files, current, seen: Mutex::new(Seen { taken, refused: None }) })
    }

    /// The value. Who keeps it keeps it as it is.
    pub(super) fn current(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// Reads the files again if they changed, and says what is worth telling: the value that counts from now on, or why
    /// there is no other. `None`: they are as they were, or refused as before.
    pub(super) fn look(&self, read: impl FnOnce() -> Result<T, String>) -> Option<Result<Arc<T>, String>> {
        // Held while files are read: of two looks at a time, the one that comes last sees what is there last.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Stamps::of(self.files.iter().cloned());
        if now == seen.taken {
            // What was refused is gone; should it come again, that is news.
            seen.refused = None;
            return None;
        }
        match read() {
            Ok(value) => {
                let value = Arc::new(value);
                self.current.store(value.clone());
                *seen = Seen { taken: now, refused: None };
                Some(Ok(value))
            }
            Err(_) if seen.refused.as_ref() == Some(&now) => None,
            Err(reason) => {
                seen.refused = Some(now);
                Some(Err(reason))
            }
        }
    }
}

/// Has `holder` look at its files every second, forever.
pub(super) async fn watch<H: Send + Sync + 'static>(holder: Arc<H>, look: fn(&H)) {
    loop {
        tokio::time::sleep(LOOK).await;
        let holder = holder.clone();
        // A network file system may hang; the runtime must not. A panic is in the log, and the next look may go well.
        let _ = blocking(move || look(&holder)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// As Kubernetes mounts a secret: files stay as they are, and a link leads to one or another.
    #[test]
    fn what_cannot_be_used_is_told_once_and_again_after_a_restoration() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("number"), folder.path().join("link"));
        for (name, text) in [("one", "1"), ("two", "2"), ("bad", "none")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let lead_to = |name: &str| {
            symlink(name, &link).unwrap();
            fs::rename(&link, &path).unwrap();
        };
        let read = || {
            let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            text.parse::<u32>().map_err(|error| format!("{text}: {error}"))
        };
        assert!(Followed::open(vec![path.clone()], read).is_err(), "there is no file yet");
        lead_to("one");
        let followed = Followed::open(vec![path.clone()], read).unwrap();
        let look = || followed.look(read).map(|told| told.map(|value| *value));
        let is_refused = || matches!(look(), Some(Err(reason)) if reason.starts_with("none"));
        assert_eq!((look(), **followed.current()), (None, 1), "nothing changed");
        lead_to("two");
        assert_eq!((look(), **followed.current()), (Some(Ok(2)), 2));
        assert_eq!(look(), None);

        lead_to("bad");
        assert!(is_refused());
        assert_eq!((look(), look(), **followed.current()), (None, None, 2), "told once, and the old value stays");
        lead_to("two");
        assert_eq!((look(), **followed.current()), (None, 2), "restored");
        lead_to("bad");
        assert!(is_refused(), "the same bad file is news again");
        assert_eq!(look(), None);
        fs::write(folder.path().join("bad"), "none either").unwrap();
        assert!(is_refused(), "another bad file is news, too");
        lead_to("one");
        assert_eq!((look(), **followed.current()), (Some(Ok(1)), 1));
    }
}
