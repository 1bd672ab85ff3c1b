//! An engine on a thread of its own: requests in, tokens out. Bounded on both sides, and a client that leaves is
//! noticed before the next step. Text is not known here.
//!
//! ```text
//! admit ---> inbox ---> [ engine thread: take commands, step ] ---> telling ---> one channel for each sequence
//! drop  ---> cancel --^                                                          (as long as it may have tokens)
//! ```

use super::telling::{self, Size, Telling};
use super::watch::Looks;
use crate::error::Error;
use crate::metrics::{AnswerMetrics, EngineMetrics};
use crate::{process, threads};
use backends::llm::engine::{Engine, Matcher, Overlap};
use backends::llm::executor::Failure;
use backends::llm::model::BoxedExecutor;
use backends::llm::progress::Progress;
use backends::llm::request::Request;
use backends::llm::scheduler::{Counters, Rejected};
use backends::llm::sequence::{CancelReason, Event, GroupId, SequenceId};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{self, Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, oneshot};

/// What may come next, for each copy of a request; none where anything may.
pub type Matchers = Vec<Box<dyn Matcher>>;

/// Requests on their way to the engine. It takes them between two steps, so that few ever wait here.
const INBOX: usize = 1024;
/// What is said of an engine that has ended. Why is in the log: it may name files.
pub(super) const ENDED: &str = "the model's engine has ended";
/// A step that takes so long will not end, unless a longer time is stated: large prompts are cut into chunks that take
/// seconds. Nor will a call of a GPU's driver while a model is loaded.
pub const OVERDUE: Duration = Duration::from_secs(180);

/// An engine that runs. Cheap to clone; it ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Generator(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().leaving = true;
        self.0.changed.notify_one();
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    /// A step that takes so long is not over any more.
    overdue: Duration,
    inbox: Mutex<Inbox>,
    changed: Condvar,
    pub(super) telling: Telling,
}

#[derive(Default)]
struct Inbox {
    admissions: VecDeque<Admission>,
    cancellations: Vec<(SequenceId, CancelReason)>,
    leaving: bool,
    /// Every answer ends, and no request is taken any more.
    draining: bool,
    /// Why the engine has ended.
    broken: Option<String>,
    /// When the step began that runs.
    stepping: Option<Instant>,
    counters: Counters,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("counters", &self.counters).field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Inbox {
    /// Has nobody asked for anything?
    fn is_quiet(&self) -> bool {
        self.admissions.is_empty() && self.cancellations.is_empty() && !self.leaving
    }
}

struct Admission {
    /// They belong together.
    requests: Vec<(Request, Matchers)>,
    since: Instant,
    reply: oneshot::Sender<Result<Vec<Vec<Tokens>>, Rejected>>,
    /// Where whoever asks is woken.
    runtime: Runtime,
}

/// What came in between two steps.
struct Commands {
    admissions: VecDeque<Admission>,
    cancellations: Vec<(SequenceId, CancelReason)>,
    /// Does everything end?
    draining: bool,
}

/// What happens to one sequence, in order. Dropping it cancels the sequence.
#[derive(Debug)]
pub struct Tokens {
    sequence: SequenceId,
    events: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
    ended: bool,
}

impl Tokens {
    /// The next event; `None` after the last one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.events.poll_recv(cx));
        self.ended = event.as_ref().is_none_or(Event::is_last);
        Poll::Ready(event)
    }

    /// No more tokens are wanted.
    pub fn cancel(&mut self, reason: CancelReason) {
        if !std::mem::replace(&mut self.ended, true) {
            self.shared.cancel(self.sequence, reason);
        }
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.cancel(CancelReason::ClientGone);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the engine give up a sequence.
    pub(super) fn cancel(&self, sequence: SequenceId, reason: CancelReason) {
        self.lock().cancellations.push((sequence, reason));
        self.changed.notify_one();
    }

    /// The engine does not go on: everybody is told, and whoever asks later, too.
    fn end(self: &Arc<Self>, reason: &str) {
        {
            let mut inbox = self.lock();
            inbox.broken = Some(reason.into());
            inbox.admissions.clear();
        }
        telling::end(self);
    }
}

impl Generator {
    /// Starts the thread of `engine`, which metrics know as one of `model`. Where a step takes longer than `step_timeout`,
    /// its device hangs and does not come back: the process ends with [`process::HUNG`].
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(model: &str, engine: Engine<BoxedExecutor>, step_timeout: Option<Duration>) -> Result<Self, String> {
        let inbox = Inbox { counters: engine.counters(), ..Inbox::default() };
        let answers = AnswerMetrics::register(model);
        let overdue = step_timeout.map_or(OVERDUE, |longest| longest.max(OVERDUE));
        let (inbox, changed, telling) = (Mutex::new(inbox), Condvar::new(), Telling::new(answers));
        let shared = Arc::new(Shared { overdue, inbox, changed, telling });
        if let Some(longest) = step_timeout {
            let watch = Watch { shared: Arc::downgrade(&shared), progress: engine.progress(), longest };
            threads::spawn("llm-watch", move || watch.run())?;
        }
        let counted = shared.clone();
        let metrics = EngineMetrics::register(model, move || counted.lock().counters);
        let thread = Thread { _metrics: metrics, shared: shared.clone(), engine, prepares: true };
        // A thread that computes steps itself lets others go before it; one that drives a device keeps that waiting.
        let computes = thread.engine.overlap() == Overlap::InStep;
        threads::spawn("llm-engine", move || {
            if computes {
                threads::stand_back();
            }
            thread.run();
        })?;
        Ok(Generator(Arc::new(Handle(shared))))
    }

    /// Asks for an answer: one stream for each copy.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::Invalid`] for what never fits, [`Error::Unavailable`] when the engine has ended,
    /// [`Error::Internal`] outside of a runtime.
    pub async fn admit(&self, request: Request, matchers: Matchers) -> Result<Vec<Tokens>, Error> {
        let streams = self.admit_all(vec![(request, matchers)]).await?;
        Ok(streams.into_iter().flatten().collect())
    }

    /// Asks for answers to requests that belong together, all or none: for each, one stream for each copy.
    ///
    /// # Errors
    /// As for [`Generator::admit`].
    pub async fn admit_all(&self, requests: Vec<(Request, Matchers)>) -> Result<Vec<Vec<Tokens>>, Error> {
        let runtime = Runtime::try_current().map_err(|error| Error::Internal(error.to_string()))?;
        let (reply, admitted) = oneshot::channel();
        {
            let mut inbox = self.0.0.lock();
            if inbox.broken.is_some() {
                return Err(Error::Unavailable(ENDED.into()));
            }
            if inbox.draining {
                return Err(Error::Draining);
            }
            if inbox.admissions.len() >= INBOX {
                return Err(Error::Overloaded(format!("{INBOX} requests wait to enter the queue; try again later")));
            }
            inbox.admissions.push_back(Admission { requests, since: Instant::now(), reply, runtime });
        }
        self.0.0.changed.notify_one();
        match admitted.await {
            Ok(Ok(streams)) => Ok(streams),
            Ok(Err(full @ Rejected::QueueFull { .. })) => Err(Error::Overloaded(full.to_string())),
            Ok(Err(never @ Rejected::NeverFits { .. })) => Err(Error::Invalid(never.to_string())),
            Err(_) if self.0.0.lock().draining => Err(Error::Draining),
            Err(_) => Err(Error::Unavailable(ENDED.into())),
        }
    }

    /// The engine, without a hold on it.
    pub fn downgrade(&self) -> Weak {
        Weak(Arc::downgrade(&self.0.0))
    }

    /// The engine that runs.
    pub fn running(&self) -> Running {
        Running(self.0.0.clone())
    }
}

/// An engine that may run, or may not any more.
#[derive(Clone, Debug)]
pub struct Weak(sync::Weak<Shared>);

impl Weak {
    /// Does it run?
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// The engine, if it runs.
    pub fn upgrade(&self) -> Option<Running> {
        self.0.upgrade().map(Running)
    }
}

/// An engine that runs, whether or not anybody can ask it any more: it does for as long as it has answers to give.
#[derive(Debug)]
pub struct Running(Arc<Shared>);

impl Running {
    /// Ends every answer with [`Error::Draining`], those that wait included; no request is taken any more. Who listens is
    /// told at once, however long the engine's step takes. Was there any?
    pub fn end_all(&self) -> bool {
        let waited = {
            let mut inbox = self.0.lock();
            inbox.draining = true;
            let waited = !inbox.admissions.is_empty();
            inbox.admissions.clear();
            waited
        };
        telling::cancel_all(&self.0, CancelReason::Draining) || waited
    }

    /// Where the engine stands.
    pub fn counters(&self) -> Counters {
        self.0.lock().counters
    }

    /// Why the engine has ended, where it has: no request is answered any more.
    pub fn broken(&self) -> Option<String> {
        self.0.lock().broken.clone()
    }

    /// Does a step run at `now` that should long be over?
    pub fn hangs(&self, now: Instant) -> bool {
        let stepping = self.0.lock().stepping;
        stepping.is_some_and(|since| now.saturating_duration_since(since) > self.0.overdue)
    }
}

/// Looks after an engine.
struct Watch {
    shared: sync::Weak<Shared>,
    progress: Progress,
    longest: Duration,
}

impl Watch {
    /// Until the engine is gone, or hangs.
    fn run(self) {
        let mut looks = Looks::new(self.longest);
        loop {
            looks.pause();
            let Some(shared) = self.shared.upgrade() else { return };
            let stepping = match &*shared.lock() {
                Inbox { broken: Some(_), .. } => return,
                Inbox { stepping, .. } => *stepping,
            };
            if looks.hangs(stepping) {
                let reason = format!("a step takes longer than {:?}: {}", self.longest, self.progress.at());
                shared.end(&reason);
                process::give_up(process::HUNG, &format!("the device of a language model hangs: {reason}"));
                return;
            }
        }
    }
}

/// The thread's own.
struct Thread {
    /// Dropped first: what the engine did is told before its memory is given back.
    _metrics: EngineMetrics,
    shared: Arc<Shared>,
    engine: Engine<BoxedExecutor>,
    /// Has the executor something left to do in idle times?
    prepares: bool,
}

impl Thread {
    fn run(mut self) {
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(None) => {}
            Ok(Some(reason)) => self.broken(&reason),
            Err(_) => self.broken("it panicked"),
        }
    }

    /// Until all is over; or why the engine cannot go on.
    fn serve(&mut self) -> Option<String> {
        while let Some(Commands { admissions, mut cancellations, draining }) = self.commands() {
            admissions.into_iter().for_each(|admission| self.admit(admission));
            if draining {
                let scheduler = self.engine.scheduler();
                let open = scheduler.running().chain(scheduler.waiting());
                cancellations.extend(open.map(|sequence| (sequence, CancelReason::Draining)));
            }
            for (sequence, reason) in cancellations {
                self.engine.cancel(sequence, reason);
            }
            self.step();
            if let Some(remark) = self.engine.remark() {
                tracing::warn!("{remark}");
            }
            if let Some(failure) = self.engine.lost() {
                if let Failure::Lost(what) = failure {
                    // A device does not come back to a process that has lost it: whoever started this one starts another.
                    process::give_up(process::LOST, &format!("the device of a language model is lost: {what}"));
                }
                return Some(failure.to_string());
            }
        }
        None
    }

    /// What came in since the last step; waits where there is nothing else to do. `None` when all is over.
    fn commands(&mut self) -> Option<Commands> {
        let mut inbox = self.shared.lock();
        inbox.stepping = None;
        inbox.counters = self.engine.counters();
        let idle = self.engine.idle();
        // Piece by piece, so that a request never waits for more than one.
        while idle && inbox.is_quiet() && self.prepares {
            inbox.stepping = Some(Instant::now());
            drop(inbox);
            self.prepares = self.engine.prepare();
            inbox = self.shared.lock();
            inbox.stepping = None;
        }
        let lost = self.engine.lost().is_some();
        while idle && !lost && inbox.admissions.is_empty() && inbox.cancellations.is_empty() {
            if inbox.leaving {
                return None;
            }
            inbox = self.shared.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
        inbox.stepping = Some(Instant::now());
        let (admissions, cancellations) =
            (std::mem::take(&mut inbox.admissions), std::mem::take(&mut inbox.cancellations));
        Some(Commands { admissions, cancellations, draining: inbox.draining })
    }

    fn admit(&mut self, admission: Admission) {
        let Admission { requests, since, reply, runtime } = admission;
        self.shared.telling.wake_on(runtime);
        if reply.is_closed() {
            return;
        }
        let (requests, matchers): (Vec<Request>, Vec<Matchers>) = requests.into_iter().unzip();
        let sizes: Vec<Size> = requests.iter().map(|request| Size::of(request, since)).collect();
        let admitted = self.engine.admit_all(Instant::now(), requests).map(|groups| {
            let groups = groups.into_iter().zip(sizes).zip(matchers);
            groups.map(|((group, size), matchers)| self.listen(group, size, matchers)).collect()
        });
        // Whoever asked and left meanwhile cancels by dropping them.
        let _ = reply.send(admitted);
    }

    /// Streams for the copies of a request.
    fn listen(&mut self, group: GroupId, size: Size, matchers: Matchers) -> Vec<Tokens> {
        let mut matchers = matchers.into_iter();
        let mut streams = Vec::with_capacity(size.copies.into());
        for sequence in (0..size.copies).map(|copy| group.copy(copy)) {
            let events = self.shared.telling.listen(sequence, size);
            if let Some(matcher) = matchers.next() {
                self.engine.constrain(sequence, matcher);
            }
            streams.push(Tokens { sequence, events, shared: self.shared.clone(), ended: false });
        }
        streams
    }

    fn step(&mut self) {
        let began = Instant::now();
        let events = self.engine.step(began);
        telling::tell(&self.shared, events, began);
    }

    fn broken(self, reason: &str) {
        tracing::error!(reason, "the engine of a language model has ended");
        self.shared.end(reason);
        // Nothing runs any more that could hang.
        self.shared.lock().stepping = None;
    }
}

#[cfg(test)]
#[path = "generator_tests.rs"]
mod tests;
