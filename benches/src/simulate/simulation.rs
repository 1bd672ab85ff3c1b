//! The run: the scheduler of `backends` between simulated clients and a simulated device. Time is a number that jumps
//! from one event to the next; no thread waits, and nothing is computed but plans.
//!
//! The order of things is that of `backends::llm::engine`: clients act, a step is planned and launched, the one before
//! it is collected and committed, its tokens are told. What was promised is checked all the while, and a run that finds
//! it broken is an error.

use super::clients::{Act, Ask, Clients, VOCABULARY};
use super::sweep::{Case, Setup};
use super::tally::{Live, Row, Tally};
use crate::Failure;
use backends::llm::blocks::{BLOCK, BlockPool, PrefixKey};
use backends::llm::engine::Overlap;
use backends::llm::plan::{Chunk, Plan, Sampled};
use backends::llm::request::{Draft, Limits, Request};
use backends::llm::sampling::Sampling;
use backends::llm::scheduler::{Rejected, Scheduler};
use backends::llm::sequence::{CancelReason, Event, GroupId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The books are checked after so many steps: looking at every block takes longer than a step.
const CHECK_STEPS: u64 = 256;

/// A step under way.
struct Flight {
    plan: Plan,
    /// When its outcome is there.
    done: u64,
}

/// A run under way.
struct Simulation<'a> {
    case: &'a Case,
    scheduler: Scheduler,
    clients: Clients,
    tally: Tally,
    /// What was taken in and has not ended.
    live: HashMap<GroupId, Live>,
    flight: Option<Flight>,
    /// Rows of a step, at most.
    budget: u32,
    limits: Limits,
    sampling: Arc<Sampling>,
    /// What stands for time 0 where the scheduler wants an instant.
    base: Instant,
    /// Nanoseconds.
    now: u64,
    /// When the device has done all that it was given.
    free_at: u64,
}

/// Simulates so many requests, and tells how they fared. `setting` names the setup in the row.
///
/// # Errors
/// Something that the scheduler promises is broken, or the case asks for what never fits.
pub(crate) fn simulate(case: &Case, setup: &Setup, setting: &str, seed: u64, requests: u64) -> Result<Row, Failure> {
    let mut simulation = Simulation::new(case, setup, seed, requests)?;
    while simulation.turn()? {}
    simulation.finish(setting, requests)
}

impl<'a> Simulation<'a> {
    fn new(case: &'a Case, setup: &Setup, seed: u64, requests: u64) -> Result<Self, Failure> {
        let key = PrefixKey::new([7; 16]);
        let settings = setup.settings();
        let budget = settings.token_budget;
        let scheduler = Scheduler::new(settings, BlockPool::new(setup.blocks, BLOCK, key))?;
        let clients = Clients::new(case, setup, seed, requests, &key);
        let tally = Tally::new(case.objective, case.streams.len(), clients.tenants());
        let limits = Limits {
            prompt_tokens: setup.context - 1,
            copies: 1,
            output_tokens: setup.context,
            vocabulary: VOCABULARY,
        };
        let (live, sampling, base) = (HashMap::new(), Arc::default(), Instant::now());
        let (flight, now, free_at) = (None, 0, 0);
        Ok(Simulation { case, scheduler, clients, tally, live, flight, budget, limits, sampling, base, now, free_at })
    }

    /// One turn of the engine's loop; `false` when all is over.
    fn turn(&mut self) -> Result<bool, Failure> {
        while let Some(act) = self.clients.act(self.now) {
            match act {
                Act::Ask(ask) => self.ask(ask)?,
                Act::Leave(group) => {
                    self.scheduler.cancel(group.copy(0), CancelReason::ClientGone);
                }
            }
        }
        let next = self.launch()?;
        let mut moved = next.is_some() || self.flight.is_some();
        self.land()?;
        self.flight = next;
        if self.case.device.overlap == Overlap::InStep {
            self.land()?;
        }
        let events = self.scheduler.take_events();
        self.hear(&events)?;
        if !moved && !self.scheduler.is_empty() {
            return Err(format!("nothing moves, and requests are there: {:?}", self.scheduler.counters()).into());
        }
        if !moved && let Some(due) = self.clients.next_due() {
            self.now = self.now.max(due);
            moved = true;
        }
        Ok(moved)
    }

    /// A client asks. The engine takes it in between two steps, which is now and not when it arrived.
    fn ask(&mut self, ask: Ask) -> Result<(), Failure> {
        self.tally.asked += 1;
        let draft = Draft {
            priority: ask.priority,
            deadline: ask.deadline.map(|deadline| self.instant(deadline)),
            salt: ask.salt,
            ..Draft::new(self.clients.prompt(&ask), ask.max_tokens, self.sampling.clone())
        };
        let (now, request) = (self.instant(self.now), Request::new(draft, &self.limits)?);
        match self.scheduler.admit(now, request) {
            Ok(group) => {
                self.clients.admitted(&ask, group);
                match self.live.insert(group, Live::new(ask)) {
                    None => Ok(()),
                    Some(other) => Err(format!("{group:?} is the name of two requests: {other:?}").into()),
                }
            }
            Err(Rejected::QueueFull { .. }) => {
                self.tally.refused += 1;
                self.tally.ended(self.now);
                Ok(())
            }
            Err(never @ Rejected::NeverFits { .. }) => Err(never.into()),
        }
    }

    fn launch(&mut self) -> Result<Option<Flight>, Failure> {
        let now = self.instant(self.now);
        let Some(plan) = self.scheduler.plan(now) else { return Ok(None) };
        if plan.rows() > self.budget {
            return Err(format!("step {} has {} rows of {}", plan.step, plan.rows(), self.budget).into());
        }
        let takes = self.case.device.step(&plan.chunks);
        self.tally.step(plan.chunks.len(), takes);
        self.free_at = self.free_at.max(self.now) + takes;
        Ok(Some(Flight { plan, done: self.free_at }))
    }

    /// Waits for the step under way, if there is one.
    fn land(&mut self) -> Result<(), Failure> {
        let Some(Flight { plan, done }) = self.flight.take() else { return Ok(()) };
        self.now = self.now.max(done);
        let sampled: Vec<Sampled> = plan.chunks.iter().map(|chunk| self.sample(chunk)).collect();
        let events = self.scheduler.commit(&plan, Ok(sampled));
        self.hear(&events)?;
        if plan.step.is_multiple_of(CHECK_STEPS) {
            self.scheduler.check()?;
        }
        Ok(())
    }

    /// What the device says of a chunk. A request that has ended since still has its row; what it says is dropped.
    fn sample(&self, chunk: &Chunk) -> Sampled {
        let position = chunk.start + chunk.length;
        let choose = |live: &Live| self.clients.token(&live.ask, position);
        let token = chunk.sample.then(|| self.live.get(&chunk.sequence.group).map_or(1, choose));
        Sampled { sequence: chunk.sequence, token, logprobs: None, prompt_logprobs: Vec::new(), failed: None }
    }

    fn hear(&mut self, events: &[Event]) -> Result<(), Failure> {
        for event in events {
            let group = event.sequence().group;
            let Some(live) = self.live.get_mut(&group) else {
                return Err(format!("told of a request that is not there, or has ended: {event:?}").into());
            };
            match event {
                Event::Started { cached_tokens, .. } => self.tally.started(&live.ask, *cached_tokens),
                Event::Token { .. } => self.tally.token(live, self.now),
                Event::Finished { .. } | Event::Cancelled { .. } => self.end(group, event)?,
                Event::PromptLogprobs { .. } | Event::Failed { .. } => return Err(format!("told: {event:?}").into()),
            }
        }
        Ok(())
    }

    fn end(&mut self, group: GroupId, last: &Event) -> Result<(), Failure> {
        let Some(live) = self.live.remove(&group) else { return Ok(()) };
        self.tally.ended(self.now);
        let Live { ask, tokens, .. } = &live;
        match last {
            Event::Finished { .. } if *tokens == ask.answer => {
                let alone = self.case.device.alone(ask.prompt, ask.answer, self.case.setup.step);
                self.tally.answered(&live, alone);
                self.clients.answered(ask, self.now);
                Ok(())
            }
            Event::Cancelled { reason: CancelReason::ClientGone, .. } => {
                self.tally.left += 1;
                Ok(())
            }
            Event::Cancelled { reason: CancelReason::DeadlinePassed, .. }
                if ask.deadline.is_some_and(|deadline| deadline <= self.now) =>
            {
                self.tally.late += 1;
                Ok(())
            }
            other => Err(format!("{other:?}, with {tokens} tokens: {ask:?}").into()),
        }
    }

    /// Nothing is left, and everybody is accounted for.
    fn finish(self, setting: &str, requests: u64) -> Result<Row, Failure> {
        self.scheduler.check()?;
        let (tally, counters) = (&self.tally, self.scheduler.counters());
        let over = [counters.waiting, counters.running, counters.blocks_used] == [0; 3] && counters.waiting_tokens == 0;
        if !over || !self.live.is_empty() {
            return Err(format!("{} requests never ended: {counters:?}", self.live.len()).into());
        }
        let ends = tally.refused + tally.left + tally.late + tally.answered;
        if [tally.asked, ends] != [requests; 2] {
            return Err(format!("of {requests} requests {} were asked, and {ends} ended", tally.asked).into());
        }
        if counters.tokens != tally.tokens {
            return Err(format!("{} tokens count as told; it is {}", counters.tokens, tally.tokens).into());
        }
        Ok(tally.row(setting, &counters))
    }

    fn instant(&self, nanoseconds: u64) -> Instant {
        self.base + Duration::from_nanos(nanoseconds)
    }
}
