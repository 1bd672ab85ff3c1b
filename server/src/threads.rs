//! The only spawner of threads: each has a name, and failing to start is an error rather than a panic.

use std::thread::{Builder, JoinHandle};

/// Starts `work` on a thread of its own.
///
/// # Errors
/// The system gives no thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    Builder::new().name(name.into()).spawn(work).map_err(|error| format!("thread {name}: {error}"))
}
