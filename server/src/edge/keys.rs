//! API keys: a file with one key a line, read again when it changes. Keys are compared in constant time, and every
//! route asks for one unless it was put among the open ones.

use crate::error::Error;
use arc_swap::ArcSwap;
use http::HeaderMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use subtle::ConstantTimeEq;

/// The keys that open the server.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    keys: ArcSwap<Read>,
}

#[derive(Default)]
struct Read {
    keys: Vec<Vec<u8>>,
    changed: Option<SystemTime>,
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
        let read = read(path)?;
        Ok(Arc::new(Keys { path: path.to_owned(), keys: ArcSwap::from_pointee(read) }))
    }

    /// Reads the file again if it changed; keeps the old keys when it cannot be read.
    pub fn refresh(&self) {
        let changed = modified(&self.path);
        if changed.is_none() || changed == self.keys.load().changed {
            return;
        }
        match read(&self.path) {
            Ok(read) => {
                tracing::info!(keys = read.keys.len(), "API keys read again");
                self.keys.store(Arc::new(read));
            }
            Err(reason) => tracing::warn!(%reason, "API keys cannot be read; the old ones stay"),
        }
    }

    /// Does the request carry one of the keys: `Authorization: Bearer` or `x-api-key`?
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Error> {
        let bearer = headers.get(http::header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes())).unwrap_or_default();
        let keys = self.keys.load();
        // Every key is compared, so that the time tells nothing about which one fits.
        let fits = keys.keys.iter().fold(subtle::Choice::from(0), |fits, key| fits | key.as_slice().ct_eq(given));
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

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn read(path: &Path) -> Result<Read, String> {
    let changed = modified(path);
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<Vec<u8>> = lines.map(|line| line.as_bytes().to_vec()).collect();
    if keys.is_empty() {
        return Err(format!("{}: no key; one is expected on each line", path.display()));
    }
    Ok(Read { keys, changed })
}
