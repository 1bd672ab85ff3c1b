//! API keys: a file with one key a line, read again when it changes. Keys are compared in constant time, and every
//! route asks for one unless it was put among the open ones.

use super::followed::{self, Followed};
use crate::error::Error;
use http::{HeaderMap, HeaderValue};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};

/// The keys that open the server.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    read: Followed<Read>,
}

/// What a file holds.
struct Read {
    keys: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.keys.len())
    }
}

impl Keys {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or has no key.
    pub fn open(path: &Path) -> Result<Arc<Self>, String> {
        let read = Followed::open(vec![path.to_owned()], || read(path))?;
        Ok(Arc::new(Keys { path: path.to_owned(), read }))
    }

    /// Looks at the file every second, forever.
    pub async fn watch(self: Arc<Self>) {
        followed::watch(self, Self::refresh).await;
    }

    /// Reads the file again if it changed; keeps the old keys when it cannot be used.
    fn refresh(&self) {
        let old = self.read.current();
        match self.read.look(|| read(&self.path)) {
            Some(Ok(new)) if new.keys != old.keys => tracing::info!(keys = new.keys.len(), "API keys read again"),
            Some(Err(reason)) => tracing::warn!(%reason, "API keys cannot be read; the old ones stay"),
            // Nothing is new, or the file and not what it holds.
            Some(Ok(_)) | None => {}
        }
    }

    /// Does the request carry one of the keys: `Authorization: Bearer` or `x-api-key`?
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Error> {
        let bearer = headers.get(http::header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let plain = headers.get("x-api-key").map(HeaderValue::as_bytes);
        // No key is empty.
        let given = [bearer, plain].map(Option::unwrap_or_default);
        let read = self.read.current();
        // Every key is compared with both, so that the time tells nothing about which one fits.
        let fits = read.keys.iter().fold(Choice::from(0), |fits, key| {
            given.iter().fold(fits, |fits, given| fits | key.as_slice().ct_eq(given))
        });
        if fits.into() { Ok(()) } else { Err(Error::Unauthorized) }
    }
}

/// What stands behind the scheme, which has no case, and one space or more (RFC 9110, 11.4).
fn bearer(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = credentials.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then(|| key.trim_ascii_start())
}

/// How the one scheme begins.
const SCHEME: &[u8] = b"Bearer ";

/// What a file may begin with that is none of its text.
const BYTE_ORDER_MARK: char = '\u{feff}';

fn read(path: &Path) -> Result<Read, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    // Some editors put a mark of their encoding before the first line.
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<Vec<u8>> = lines.map(|line| line.as_bytes().to_vec()).collect();
    if keys.is_empty() {
        return Err(format!("{}: no key; one is expected on each line", path.display()));
    }
    Ok(Read { keys })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn opens(keys: &Keys, said: &[(&'static str, &str)]) -> bool {
        let headers = said.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        keys.check(&headers.collect::<HeaderMap>()).is_ok()
    }

    #[test]
    fn either_header_opens_whatever_the_other_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, "one\ntwo\n").unwrap();
        let keys = Keys::open(&path).unwrap();
        let both = |bearer, plain| opens(&keys, &[("authorization", bearer), ("x-api-key", plain)]);
        assert!(both("Bearer one", "wrong") && both("Bearer wrong", "two") && both("Bearer one", "two"));
        assert!(!both("Bearer wrong", "wrong") && !both("Bearer ", "") && !both("one", "Bearer two"));
        assert!(opens(&keys, &[("x-api-key", "one")]) && !opens(&keys, &[]));
    }

    #[test]
    fn a_mark_before_the_first_key_is_none_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, "\u{feff}one\r\ntwo\r\n").unwrap();
        let keys = Keys::open(&path).unwrap();
        assert!(opens(&keys, &[("x-api-key", "one")]) && opens(&keys, &[("x-api-key", "two")]));
        fs::write(&path, "\u{feff}# nothing\n").unwrap();
        assert!(Keys::open(&path).unwrap_err().ends_with("no key; one is expected on each line"));
    }

    #[test]
    fn a_file_as_long_and_as_old_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("keys"), folder.path().join("other"));
        for (path, key) in [(&path, "old"), (&other, "new")] {
            fs::write(path, key).unwrap();
            fs::File::options().write(true).open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        }
        let keys = Keys::open(&path).unwrap();
        let opens = |key| opens(&keys, &[("x-api-key", key)]);
        keys.refresh();
        assert!(opens("old") && !opens("new"));
        fs::rename(&other, &path).unwrap();
        keys.refresh();
        assert!(opens("new") && !opens("old"));
    }
}
