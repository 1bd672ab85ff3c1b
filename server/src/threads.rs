//! The only spawner of threads: each has a name, and failing to start is an error rather than a panic. Also: work that
//! would keep a worker of the runtime from its other tasks.

use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Starts `work` on a thread of its own.
///
/// # Errors
/// The system gives no thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    start(Builder::new(), name, work)
}

/// The same with a stack of so many bytes, for work that recurses. They are addresses, and memory only once they are used.
///
/// # Errors
/// The system gives no thread.
pub fn spawn_deep(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    start(Builder::new().stack_size(stack), name, work)
}

fn start(builder: Builder, name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    builder.name(name.into()).spawn(work).map_err(|error| format!("thread {name}: {error}"))
}

/// Does `work`, which waits for a file system, where nobody waits with it.
///
/// # Errors
/// It panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// What a panic said.
pub fn said(panic: Box<dyn std::any::Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(said) => *said,
        Err(panic) => panic.downcast::<&str>().map(|said| (*said).to_owned()).unwrap_or_default(),
    }
}

/// By how much threads that compute stand back.
const NICE: i32 = 10;

/// Lets other threads of this process go before this one: it computes for long, and whoever answers a request for a
/// moment should not have to wait for its turn. Nothing changes for other processes in their own control groups.
pub fn stand_back() {
    kernels::turns::long();
    // On Linux it is a thread, and not its process, that has a priority. Where it cannot be set, nothing is lost but time.
    if cfg!(target_os = "linux") {
        let _ = rustix::process::nice(NICE);
    }
}

/// Does `work`, which computes on the thread that makes its calls, on one of those that stand back. Threads come as they
/// are needed, and go when they have long had nothing to do.
pub fn compute(work: impl FnOnce() + Send + 'static) {
    static THREADS: OnceLock<Option<Runtime>> = OnceLock::new();
    let threads = THREADS.get_or_init(|| {
        tokio::runtime::Builder::new_current_thread().thread_name("call").on_thread_start(stand_back).build().ok()
    });
    match threads {
        Some(threads) => drop(threads.spawn_blocking(work)),
        // It computes as well where it does not stand back.
        None => drop(tokio::task::spawn_blocking(work)),
    }
}

/// Bytes whose decoding or packing is left to where it stands: well under a millisecond.
const LIGHT: usize = 64 << 10;

/// Bytes from which on what they are read or written to may be large for a while, which nothing counts.
const LARGE: usize = 1 << 20;

/// A turn to read or write so many bytes: of large ones there are as many at a time as there are processors. More would end
/// no sooner, and each takes a multiple of its bytes meanwhile.
pub async fn turn(bytes: usize) -> Option<SemaphorePermit<'static>> {
    static TURNS: OnceLock<Semaphore> = OnceLock::new();
    if bytes <= LARGE {
        return None;
    }
    let at_once = || std::thread::available_parallelism().map_or(1, usize::from);
    TURNS.get_or_init(|| Semaphore::new(at_once())).acquire().await.ok()
}

/// Does `work`, whose time grows with `bytes`. Where those are many, the other tasks of this worker go on elsewhere
/// meanwhile: a health check never waits for somebody's large request.
pub fn heavy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let workers = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    match workers {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) if bytes > LIGHT => tokio::task::block_in_place(work),
        _ => work(),
    }
}
