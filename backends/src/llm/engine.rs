//! The loop around scheduler and executor: plan, launch, sample, collect, commit. It owns no thread and no clock; whoever
//! does calls [`Engine::step`] while it is not idle.
//!
//! ```text
//! in step     plan 1  launch 1  sample 1  collect 1  commit 1 | plan 2  launch 2 ...
//! one ahead   plan 1  launch 1  sample 1 | plan 2  launch 2  collect 1  commit 1  sample 2 | plan 3  launch 3 ...
//!                                          the device is at work on 1 ........  and on 2 ............
//! ```
//! One ahead, the host's work is done while the device computes. `sample 2` comes after `commit 1`, because a grammar's
//! mask for the second token needs to know the first.

use super::executor::{Executor, Failure, Mask, Masks, Ticket};
use super::plan::Plan;
use super::progress::{Phase, Progress};
use super::request::Request;
use super::scheduler::{Counters, Rejected, Scheduler, fitting};
use super::sequence::{CancelReason, Event, GroupId, SequenceId, Unanswered};
use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

/// When a step's outcome is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// After the next step was launched.
    Ahead,
    /// At once.
    InStep,
}

/// What may come next in one sequence: a grammar and a place in it.
pub trait Matcher: Send {
    /// Goes on by the token that was chosen.
    ///
    /// # Errors
    /// The token is not allowed here; the sequence fails, and no other.
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// The tokens that may come next.
    ///
    /// # Errors
    /// There are none, or finding them takes too much; the sequence fails, and no other.
    fn mask(&mut self) -> Result<Mask, String>;
}

/// A step under way.
#[derive(Debug)]
struct Flight {
    plan: Plan,
    ticket: Ticket,
}

/// A scheduler, and the executor that it plans for.
pub struct Engine<E> {
    scheduler: Scheduler,
    executor: E,
    overlap: Overlap,
    flight: Option<Flight>,
    progress: Progress,
    matchers: HashMap<SequenceId, Box<dyn Matcher>>,
    /// Why no step will succeed any more.
    lost: Option<Failure>,
    /// Steps that have failed one after the other.
    failures: u32,
}

/// So many steps that fail one after the other are not bad luck any more: the device is taken for lost. Failures of the
/// contract count, too: what the executor and the scheduler know of each other does not fit any more, and nothing that a
/// step does mends that.
const FAILURES_MAX: u32 = 5;

impl<E: fmt::Debug> fmt::Debug for Engine<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Engine { scheduler, executor, overlap, flight, .. } = self;
        let fields = (scheduler, executor, overlap, flight);
        f.debug_tuple("Engine").field(&fields).finish()
    }
}

impl<E: Executor> Engine<E> {
    /// An engine without requests. The scheduler's pool is the executor's blocks.
    pub fn new(scheduler: Scheduler, executor: E, overlap: Overlap) -> Self {
        let (progress, matchers) = (Progress::default(), HashMap::new());
        Engine { scheduler, executor, overlap, flight: None, progress, matchers, lost: None, failures: 0 }
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// As [`Scheduler::admit`].
    pub fn admit(&mut self, now: Instant, request: Request) -> Result<GroupId, Rejected> {
        self.scheduler.admit(now, request)
    }

    /// Takes requests that belong together into the queue, all or none.
    ///
    /// # Errors
    /// As [`Scheduler::admit`].
    pub fn admit_all(&mut self, now: Instant, requests: Vec<Request>) -> Result<Vec<GroupId>, Rejected> {
        self.scheduler.admit_all(now, requests)
    }

    /// Binds a sequence to a grammar; to be called before the step after its admission.
    pub fn constrain(&mut self, sequence: SequenceId, matcher: Box<dyn Matcher>) {
        self.matchers.insert(sequence, matcher);
    }

    /// Ends a sequence; its event comes with the next step's. `false` where it had ended before.
    pub fn cancel(&mut self, sequence: SequenceId, reason: CancelReason) -> bool {
        self.scheduler.cancel(sequence, reason)
    }

    /// Goes on by one step, and tells what happened.
    pub fn step(&mut self, now: Instant) -> Vec<Event> {
        self.progress.rest(Phase::Planning);
        let next = self.scheduler.plan(now).map(|plan| {
            self.progress.step(Phase::Launching, &plan);
            (self.executor.launch(&plan), plan)
        });
        let mut events = self.land();
        if let Some((launched, plan)) = next {
            events.extend(self.sample(launched, plan));
        }
        if self.overlap == Overlap::InStep {
            events.extend(self.land());
        }
        events.extend(self.scheduler.take_events());
        for event in events.iter().filter(|event| event.is_last()) {
            self.matchers.remove(&event.sequence());
        }
        events
    }

    /// Is there nothing to step for?
    pub fn idle(&self) -> bool {
        self.flight.is_none() && self.scheduler.is_empty() && !self.scheduler.has_events()
    }

    /// Lets the executor do what is better done before it is needed; `false` once nothing is left. For idle times.
    pub fn prepare(&mut self) -> bool {
        self.progress.rest(Phase::Preparing);
        let more = self.executor.prepare();
        more.unwrap_or_else(|failure| {
            self.note(&failure);
            self.lost.is_none()
        })
    }

    /// What the executor has to say that is worth a line in the log.
    pub fn remark(&mut self) -> Option<String> {
        self.executor.remark()
    }

    /// How far its step is, to be looked at from other threads.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// When a step's outcome is waited for.
    pub fn overlap(&self) -> Overlap {
        self.overlap
    }

    /// Why no step will succeed any more: [`Failure::Lost`] or [`Failure::Weights`].
    pub fn lost(&self) -> Option<&Failure> {
        self.lost.as_ref()
    }

    /// Where it stands.
    pub fn counters(&self) -> Counters {
        self.scheduler.counters()
    }

    /// The scheduler, to look at.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Has the tokens chosen of a step whose forward pass was launched. By now those of the step before are known.
    fn sample(&mut self, launched: Result<Ticket, Failure>, plan: Plan) -> Vec<Event> {
        self.progress.step(Phase::Sampling, &plan);
        let sampled = launched.and_then(|ticket| {
            let masks = self.masks(&plan);
            self.executor.sample(&ticket, &masks).map(|()| ticket)
        });
        match sampled {
            Ok(ticket) => {
                self.flight = Some(Flight { plan, ticket });
                Vec::new()
            }
            Err(failure) => {
                self.note(&failure);
                self.scheduler.commit(&plan, Err(failure))
            }
        }
    }

    fn note(&mut self, failure: &Failure) {
        let lost = match failure {
            Failure::Lost(_) | Failure::Weights(_) => Some(failure.clone()),
            Failure::Device(_) | Failure::Contract(_) => {
                self.failures += 1;
                let last = || format!("{FAILURES_MAX} steps have failed, the last: {failure}");
                (self.failures >= FAILURES_MAX).then(|| Failure::Lost(last()))
            }
        };
        self.lost = self.lost.take().or(lost);
    }

    /// Waits for the step under way, if there is one.
    fn land(&mut self) -> Vec<Event> {
        let Some(Flight { plan, ticket }) = self.flight.take() else { return Vec::new() };
        self.progress.step(Phase::Collecting, &plan);
        let outcome = self.executor.collect(ticket).and_then(|sampled| fitting(&plan, sampled));
        match &outcome {
            Ok(_) => self.failures = 0,
            Err(failure) => self.note(failure),
        }
        let events = self.scheduler.commit(&plan, outcome);
        for event in &events {
            let Event::Token { sequence, token, .. } = event else { continue };
            let Some(matcher) = self.matchers.get_mut(sequence) else { continue };
            match matcher.accept(*token) {
                Ok(()) => self.scheduler.complete(*sequence, *token),
                Err(reason) => self.scheduler.fail(*sequence, Unanswered::Request(reason)),
            };
        }
        events
    }

    /// What may come as the tokens of this plan.
    fn masks(&mut self, plan: &Plan) -> Masks {
        let ends = self.scheduler.end_tokens().clone();
        if self.matchers.is_empty() {
            return Masks { chunks: Vec::new(), ends };
        }
        let mut masks = Masks { chunks: vec![None; plan.chunks.len()], ends };
        for (chunk, mask) in plan.chunks.iter().zip(&mut masks.chunks) {
            // One that has ended since has a surplus row here, and no place in its grammar to go on from.
            if !chunk.sample || !self.scheduler.is_alive(chunk.sequence) {
                continue;
            }
            match self.matchers.get_mut(&chunk.sequence).map(|matcher| matcher.mask()) {
                Some(Ok(allowed)) => *mask = Some(allowed),
                Some(Err(reason)) => drop(self.scheduler.fail(chunk.sequence, Unanswered::Request(reason))),
                None => {}
            }
        }
        masks
    }
}
