//! A predictor whose model is computed in a process of its own.

use super::supervisor::{Connection, Ended, Worker, launch, supervise};
use super::wire::{self, Asked};
use super::{APART, Plan};
use crate::threads;
use backends::{Call, InferError, LoadError, Predictor, Profile, Signature, Tensor};
use rustix::process::Signal;
use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Between two looks whether somebody still waits.
const LOOK: Duration = Duration::from_millis(20);
/// How long a call that nobody waits for any more may go on. A node that is in the midst of its work does not hear that it
/// is to end; one that never ends is ended with its process.
const GRACE: Duration = Duration::from_secs(5);
/// How long the reason of a process's end is waited for.
const REASON: Duration = Duration::from_secs(10);

/// What all of this is about.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) plan: Arc<Plan>,
    /// How long it took to start it first.
    pub(super) first: Duration,
    state: Mutex<State>,
    pub(super) changed: Condvar,
}

/// What changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) life: Life,
    /// Calls that were begun and are not done.
    pub(super) running: usize,
    /// Is one of them to be the only one?
    alone: bool,
    /// Those that wait to be the only one: others begin after them.
    apart: usize,
    /// Does nobody need it any more?
    pub(super) closing: bool,
}

/// Where the process is in its life.
#[derive(Debug)]
pub(super) enum Life {
    Running(Arc<Worker>),
    Starting,
    /// It cannot be started; why.
    Failed(String),
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A model in a process of its own, which ends with it.
#[derive(Debug)]
pub(super) struct Remote {
    inner: Arc<Inner>,
    signature: Signature,
    profile: Profile,
    spreads: bool,
}

impl Remote {
    /// Starts the process, and waits until the model is loaded.
    ///
    /// # Errors
    /// There is no process to be had, it ends, or it refuses the model.
    pub(super) fn start(plan: Arc<Plan>) -> Result<Self, LoadError> {
        let start = Instant::now();
        let launched = launch(&plan, None)?;
        let first = start.elapsed();
        let spreads = launched.described.spreads;
        let refuse = |reason: String| LoadError::new(&plan.file, reason);
        let (worker, process) = (launched.worker, launched.process);
        let (signature, mut profile) = launched.described.taken().map_err(|error| refuse(error.to_string()))?;
        profile.notes.insert(0, APART.into());
        let state = State { life: Life::Running(worker.clone()), running: 0, alone: false, apart: 0, closing: false };
        let inner = Arc::new(Inner { plan: plan.clone(), first, state: Mutex::new(state), changed: Condvar::new() });
        let watched = inner.clone();
        drop(threads::spawn("worker", move || supervise(&watched, worker, process)).map_err(refuse)?);
        Ok(Remote { inner, signature, profile, spreads })
    }

    /// Begins a call, once the process runs; where it is to be alone, once all others are done.
    fn begin(&self, call: &Call<'_>, alone: bool) -> Result<Turn<'_>, InferError> {
        let mut state = self.inner.lock();
        state.apart += usize::from(alone);
        let begun = loop {
            if let Err(error) = call.check() {
                break Err(error);
            }
            let free = !state.alone && if alone { state.running == 0 } else { state.apart == 0 };
            match &state.life {
                Life::Running(worker) if free => break Ok(worker.clone()),
                Life::Failed(why) => {
                    break Err(InferError::Unavailable(format!("the model's process cannot be started: {why}")));
                }
                _ => {}
            }
            let waited = self.inner.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        };
        state.apart -= usize::from(alone);
        self.inner.changed.notify_all();
        let worker = begun?;
        state.running += 1;
        state.alone = alone;
        Ok(Turn { inner: &self.inner, worker, alone })
    }

    /// Makes a call. Where its process ends, that may have been another's doing: then it is made once more, alone.
    fn attempt(&self, call: &Call<'_>, alone: bool) -> Result<Vec<Tensor>, InferError> {
        let turn = self.begin(call, alone)?;
        let lost = match turn.ask(call, &self.signature) {
            Ok(answer) => return answer,
            Err(lost) => lost,
        };
        drop(turn);
        // Nobody waits for one that was ended because it went on after its deadline.
        call.check()?;
        // What somebody ended, the request did not bring about; and a process that was ended is not gone at once.
        let others = lost.before || lost.ended.calls > 1 || !is_fault(lost.ended.signal);
        if others && !alone { self.attempt(call, true) } else { Err(verdict(&lost.ended)) }
    }
}

/// Is it a signal that a process brings on itself?
fn is_fault(signal: Option<i32>) -> bool {
    let faults = [Signal::ILL, Signal::ABORT, Signal::BUS, Signal::FPE, Signal::SEGV].map(Signal::as_raw);
    signal.is_some_and(|signal| faults.contains(&signal))
}

/// A call without an answer, since its process has ended.
struct Lost {
    ended: Ended,
    /// Had it ended before the call?
    before: bool,
}

/// Whose fault the end of a process is that had this call alone. What a request brings about by what is in it, it would
/// bring about again.
fn verdict(ended: &Ended) -> InferError {
    let how = &ended.told;
    match ended.signal {
        signal if is_fault(signal) => InferError::Invalid(format!(
            "ONNX Runtime ended the model's process with {how} over this request; it is started again"
        )),
        Some(signal) if signal == Signal::KILL.as_raw() => InferError::Memory(format!(
            "the model's process was ended with {how}, as it is where memory runs out; it is started again"
        )),
        _ => InferError::Unavailable(format!("the model's process ended with {how}; it is started again")),
    }
}

/// A call that was begun.
struct Turn<'a> {
    inner: &'a Inner,
    worker: Arc<Worker>,
    alone: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        state.running -= 1;
        state.alone &= !self.alone;
        self.inner.changed.notify_all();
    }
}

impl Turn<'_> {
    /// Asks the process; the error is its end.
    fn ask(&self, call: &Call<'_>, signature: &Signature) -> Result<Result<Vec<Tensor>, InferError>, Lost> {
        let mut connection = match self.worker.connection() {
            Ok(connection) if connection.is_closed() => {
                return Err(Lost { ended: self.ended(&ErrorKind::BrokenPipe.into()), before: true });
            }
            Ok(connection) => connection,
            Err(error) if is_end(error.kind()) => return Err(Lost { ended: self.ended(&error), before: true }),
            Err(error) => {
                return Ok(Err(InferError::Unavailable(format!("the model's process cannot be reached: {error}"))));
            }
        };
        match self.exchange(&mut connection, call, signature) {
            Ok(answer) => {
                self.worker.put_back(connection);
                Ok(answer)
            }
            // What is no answer is not waited for either.
            Err(error) => Err(Lost { ended: self.ended(&error), before: false }),
        }
    }

    /// How the process ended, which it has, or does now.
    fn ended(&self, error: &std::io::Error) -> Ended {
        self.worker.end();
        let state = self.inner.lock();
        let lives = |_: &mut State| self.worker.ended.get().is_none();
        let waited = self.inner.changed.wait_timeout_while(state, REASON, lives);
        drop(waited);
        let unknown = || Ended { how: error.to_string(), told: error.to_string(), signal: None, calls: 1 };
        self.worker.ended.get().cloned().unwrap_or_else(unknown)
    }

    fn exchange(
        &self,
        connection: &mut Connection,
        call: &Call<'_>,
        signature: &Signature,
    ) -> std::io::Result<Result<Vec<Tensor>, InferError>> {
        connection.calls += 1;
        let (number, calls) = (connection.number, connection.calls);
        connection.stream.set_read_timeout(Some(LOOK))?;
        connection.stream.set_write_timeout(Some(LOOK))?;
        let given_up = Cell::new(None);
        let look = || {
            if call.check().is_ok() {
                return;
            }
            let since: Instant = given_up.get().unwrap_or_else(Instant::now);
            given_up.set(Some(since));
            if since.elapsed() > GRACE {
                self.worker.end();
            } else {
                self.worker.cancel(number, calls);
            }
        };
        let mut patient = Patient { stream: &connection.stream, look: &look, last: Instant::now() };
        let left = call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_micros());
        let asked = Asked {
            number: calls,
            left: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX)),
            outputs: call.outputs.to_vec(),
            inputs: wire::shapes(call.inputs),
        };
        wire::write(&mut patient, &asked, call.inputs)?;
        let answer = wire::answer(&mut patient)?.ok_or(ErrorKind::UnexpectedEof)?;
        answer.as_ref().map_or(Ok(()), |outputs| check(outputs, call, signature))?;
        Ok(answer)
    }
}

/// Is this what was asked for?
fn check(outputs: &[Tensor], call: &Call<'_>, signature: &Signature) -> std::io::Result<()> {
    let wanted = signature.outputs.iter().filter(|port| call.outputs.is_empty() || call.outputs.contains(&port.name));
    let given = outputs.iter().map(|tensor| (tensor.name(), tensor.datatype()));
    if wanted.map(|port| (port.name.as_str(), port.datatype)).eq(given) {
        return Ok(());
    }
    Err(wire::broken("its outputs are not those of the model"))
}

/// Is the other end gone?
fn is_end(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected)
}

/// A socket that is looked after while it is waited for.
struct Patient<'a> {
    stream: &'a UnixStream,
    look: &'a dyn Fn(),
    last: Instant,
}

impl Patient<'_> {
    fn wait<T>(&mut self, mut work: impl FnMut(&mut &UnixStream) -> std::io::Result<T>) -> std::io::Result<T> {
        loop {
            let done = work(&mut self.stream);
            // Whoever sends byte after byte is looked after, too.
            if self.last.elapsed() >= LOOK {
                (self.look)();
                self.last = Instant::now();
            }
            match done {
                // A socket with a timeout is interrupted whenever the process was stopped for a while.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                done => return done,
            }
        }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.wait(|stream| stream.read(into))
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.wait(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        state.closing = true;
        if let Life::Running(worker) = &state.life {
            worker.end();
        }
        self.inner.changed.notify_all();
    }
}

impl Predictor for Remote {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn profile(&self) -> Profile {
        self.profile.clone()
    }

    fn spreads_rows(&self) -> bool {
        self.spreads
    }

    fn is_ready(&self) -> bool {
        // Whoever asks while it is started again waits.
        !matches!(self.inner.lock().life, Life::Failed(_))
    }

    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        self.attempt(call, false)
    }
}
