//! Starts a child, waits for its end, and starts it again.

use super::control;
use super::remote::{Inner, Life};
use super::wire::{self, Described, Outcome};
use super::{COMMAND, Plan};
use crate::child::{Running, how};
use crate::metrics::ProcessMetrics;
use backends::LoadError;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How long the next try waits where a child could not be started again, at first and at last.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// How long a child may take to load a model once more, or ten times as long as it took the first time.
const LONGEST: Duration = Duration::from_secs(60);

/// A child that has loaded its model.
#[derive(Debug)]
pub(super) struct Worker {
    control: UnixStream,
    /// Connections without a call.
    idle: Mutex<Vec<Connection>>,
    opened: AtomicU32,
    /// Set once it has ended.
    pub(super) ended: OnceLock<Ended>,
}

/// A connection to a child.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) number: u32,
    pub(super) stream: UnixStream,
    /// Calls that went over it.
    pub(super) calls: u64,
}

/// How a child ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    /// In words, for the log.
    pub(super) how: String,
    /// Without its own last words, which may tell of the machine.
    pub(super) told: String,
    /// The signal that ended it.
    pub(super) signal: Option<i32>,
    /// Calls that it had then.
    pub(super) calls: usize,
}

impl Connection {
    /// Has the child closed its end, or said what nobody asked for?
    pub(super) fn is_closed(&self) -> bool {
        let mut byte = [0; 1];
        !matches!(recv(&self.stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT), Err(Errno::AGAIN))
    }
}

impl Worker {
    /// A connection of which nobody makes use.
    ///
    /// # Errors
    /// The child is gone, or there are no more sockets.
    pub(super) fn connection(&self) -> std::io::Result<Connection> {
        let idle = self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let stream = control::open(&self.control, number)?;
        Ok(Connection { number, stream, calls: 0 })
    }

    /// Takes a connection back.
    pub(super) fn put_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(connection);
    }

    /// Tells the child that nobody waits for this call.
    pub(super) fn cancel(&self, connection: u32, call: u64) {
        // One that is gone has cancelled it; one that does not listen is told again.
        let _ = control::cancel(&self.control, connection, call);
    }

    /// Ends the child.
    pub(super) fn end(&self) {
        let _ = self.control.shutdown(Shutdown::Both);
    }

    /// Waits until the child has ended, or closes its end of the socket.
    fn wait(&self, process: &Running) {
        let socket = PollFd::new(&self.control, PollFlags::empty());
        let mut either = vec![socket];
        // Where the system does not have them, the socket alone is waited for.
        let pid = Pid::from_raw(process.id().cast_signed());
        let handle = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        either.extend(handle.as_ref().map(|handle| PollFd::new(handle, PollFlags::IN)));
        while !matches!(poll(&mut either, None), Ok(1..)) {}
    }
}

/// A child with its process.
pub(super) struct Launched {
    pub(super) worker: Arc<Worker>,
    pub(super) described: Described,
    pub(super) process: Running,
}

/// Sees to it that a child that is about to end has ended; how.
fn end(process: &mut Running) -> Ended {
    match process.end_by_itself() {
        Ok(status) => {
            let (how, told) = (how(status, &process.complaints.words()), how(status, ""));
            Ended { how, told, signal: status.signal(), calls: 0 }
        }
        Err(error) => Ended { how: error.to_string(), told: error.to_string(), signal: None, calls: 0 },
    }
}

/// Starts a child, and has it load the model; where that takes longer than `longest`, the child is ended.
///
/// # Errors
/// There is no process to be had, it ends, or it refuses the model.
pub(super) fn launch(plan: &Plan, longest: Option<Duration>) -> Result<Launched, LoadError> {
    let refuse = |reason: String| LoadError::new(&plan.file, reason);
    let start = || {
        let (ours, theirs) = UnixStream::pair()?;
        let input = Stdio::from(OwnedFd::from(theirs));
        Running::start(COMMAND, input, Stdio::null()).map(|process| (ours, process))
    };
    let (control, mut process) = start().map_err(|e| refuse(format!("its process cannot be started: {e}")))?;
    let task = || {
        let mut stream = control::open(&control, 0)?;
        stream.set_read_timeout(longest)?;
        wire::write(&mut stream, &plan.task, &[])?;
        let outcome = wire::read::<Outcome>(&mut stream)?.map(|(outcome, _)| outcome);
        std::io::Result::Ok((outcome, stream))
    };
    match task() {
        Ok((Some(Outcome::Loaded(described)), stream)) => {
            let first = Connection { number: 0, stream, calls: 0 };
            let worker =
                Worker { control, idle: Mutex::new(vec![first]), opened: AtomicU32::new(1), ended: OnceLock::new() };
            Ok(Launched { worker: Arc::new(worker), described: *described, process })
        }
        Ok((Some(Outcome::Refused { reason, detail }), _)) => Err(refuse(reason).with_detail(detail)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(refuse(format!("its process took more than {} s to load it", longest.unwrap_or_default().as_secs())))
        }
        Ok((None, _)) | Err(_) => {
            // It says how it ended; where it has not, it is not of use.
            let ended = end(&mut process);
            Err(refuse(format!("loading it in its own process ended that with {}", ended.how)))
        }
    }
}

/// Waits for the end of a child, and starts it again, until nobody needs it.
pub(super) fn supervise(inner: &Inner, mut worker: Arc<Worker>, mut process: Running) {
    let metrics = ProcessMetrics::register(&inner.plan.model);
    loop {
        worker.wait(&process);
        // Whoever asked it sees the same, and waits for what is found out here.
        let ended = {
            let ended = end(&mut process);
            let mut state = inner.lock();
            let ended = Ended { calls: state.running, ..ended };
            let _ = worker.ended.set(ended.clone());
            state.life = Life::Starting;
            inner.changed.notify_all();
            if state.closing {
                return;
            }
            ended
        };
        let (model, how) = (&inner.plan.model, &ended.how);
        tracing::error!(model, calls = ended.calls, "the process of a model ended with {how}; it is started again");
        metrics.ended();
        let Some(launched) = again(inner) else { return };
        (worker, process) = launched;
    }
}

/// Starts a child until it can be started; nothing when nobody needs it any more.
fn again(inner: &Inner) -> Option<(Arc<Worker>, Running)> {
    let mut pause = PAUSES[0];
    loop {
        let launched = if inner.plan.stamps.hold() {
            launch(&inner.plan, Some(LONGEST.max(10 * inner.first)))
        } else {
            Err(LoadError::new(&inner.plan.file, "its files were changed since it was loaded; load it again"))
        };
        let mut state = inner.lock();
        match launched {
            Ok(Launched { worker, process, .. }) => {
                if state.closing {
                    return None;
                }
                state.life = Life::Running(worker.clone());
                inner.changed.notify_all();
                tracing::info!(model = inner.plan.model, "the process of a model was started again");
                return Some((worker, process));
            }
            Err(error) => {
                let model = &inner.plan.model;
                tracing::error!(model, reason = %error.reason, "the process of a model cannot be started again");
                state.life = Life::Failed(error.reason);
                inner.changed.notify_all();
            }
        }
        let closing = |state: &mut super::remote::State| !state.closing;
        let waited = inner.changed.wait_timeout_while(state, pause, closing);
        let (state, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.closing {
            return None;
        }
        drop(state);
        pause = (2 * pause).min(PAUSES[1]);
    }
}
