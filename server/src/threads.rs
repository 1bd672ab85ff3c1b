//! The only spawner of threads: each has a name, and failing to start is an error rather than a panic. Also: work that
//! would keep a worker of the runtime from its other tasks.

use std::thread::{Builder, JoinHandle};

/// Starts `work` on a thread of its own.
///
/// # Errors
/// The system gives no thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    Builder::new().name(name.into()).spawn(work).map_err(|error| format!("thread {name}: {error}"))
}

/// Bytes whose decoding or packing is left to where it stands: well under a millisecond.
const LIGHT: usize = 64 << 10;

/// Does `work`, whose time grows with `bytes`. Where those are many, the other tasks of this worker go on elsewhere
/// meanwhile: a health check never waits for somebody's large request.
pub fn heavy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let workers = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    match workers {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) if bytes > LIGHT => tokio::task::block_in_place(work),
        _ => work(),
    }
}
