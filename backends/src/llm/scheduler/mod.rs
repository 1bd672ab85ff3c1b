//! Decides which sequences each step computes, and keeps account of what came of it.
//!
//! A pure function of its state: no clock (time is an argument), no thread, no device. There are no phases: every
//! running sequence has positions that are yet to be computed, one for those that decode, many for those that read
//! their prompt, and each step gives out its rows among them.
//!
//! | file | what |
//! |---|---|
//! | `settings` | bounds, refusals, counters |
//! | `planning` | what the next step computes; preemption |
//! | `commit` | what came of a step |
//! | `check` | is all in order? for tests |
//!
//! **Why it never hangs.** The running sequence of the first rank is never preempted and may preempt all others; the
//! whole pool is enough for it (or it was refused); so every step advances it, and it ends. Ranks do not change, and
//! what arrives late enough gets a later rank, however urgent it is, so that every sequence is the first some day.

mod check;
mod commit;
mod planning;
mod settings;

pub(super) use commit::fitting;
pub use settings::{Counters, Rejected, Settings, SettingsError};

use super::blocks::{BlockPool, Salt};
use super::request::Request;
use super::sequence::{CancelReason, Event, FinishReason, GroupId, Rank, Sequence, SequenceId, State, Unanswered};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// The copies of one request.
#[derive(Debug)]
struct Group {
    /// Bit `i`: copy `i` has not ended.
    alive: u16,
    /// Is the whole prompt computed, so that the other copies find it?
    ready: bool,
    /// Probabilities of the prompt that were told.
    logged: u32,
    /// Where its blocks are found; `None` where nobody may find them.
    salt: Option<Salt>,
}

impl Group {
    /// The copy that computes the prompt; the others wait for it.
    fn leader(&self) -> u16 {
        self.alive.trailing_zeros() as u16
    }
}

/// Decides what runs. See the module.
#[derive(Debug)]
pub struct Scheduler {
    settings: Settings,
    pool: BlockPool,
    sequences: HashMap<SequenceId, Sequence>,
    groups: HashMap<GroupId, Group>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    deadlines: BTreeSet<(Instant, SequenceId)>,
    free_slots: Vec<u32>,
    /// What arrivals are measured from: the first.
    epoch: Option<Instant>,
    next_group: u64,
    next_step: u64,
    events: Vec<Event>,
    waiting_tokens: u64,
    preemptions: u64,
    rows: u64,
    tokens: u64,
}

impl Scheduler {
    /// A scheduler without requests.
    ///
    /// # Errors
    /// The settings contradict each other, or the pool.
    pub fn new(settings: Settings, pool: BlockPool) -> Result<Self, SettingsError> {
        settings.check(pool.total())?;
        // The lowest slot is taken first: executors compute up to the highest.
        let free_slots = (0..settings.max_running).rev().collect();
        Ok(Scheduler {
            settings,
            pool,
            sequences: HashMap::new(),
            groups: HashMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            free_slots,
            epoch: None,
            next_group: 0,
            next_step: 1,
            events: Vec::new(),
            waiting_tokens: 0,
            preemptions: 0,
            rows: 0,
            tokens: 0,
        })
    }

    /// Takes a request into the queue, all copies or none.
    ///
    /// # Errors
    /// [`Rejected`]: it can never run, or too much waits already.
    pub fn admit(&mut self, now: Instant, request: Request) -> Result<GroupId, Rejected> {
        self.check_room(std::slice::from_ref(&request))?;
        Ok(self.enter(now, request))
    }

    /// Takes requests into the queue that belong together, all or none: none of them finds the others waiting.
    ///
    /// # Errors
    /// As for [`Scheduler::admit`].
    pub fn admit_all(&mut self, now: Instant, requests: Vec<Request>) -> Result<Vec<GroupId>, Rejected> {
        self.check_room(&requests)?;
        Ok(requests.into_iter().map(|request| self.enter(now, request)).collect())
    }

    fn enter(&mut self, now: Instant, request: Request) -> GroupId {
        let group = GroupId(self.next_group);
        self.next_group += 1;
        let copies = request.copies();
        let shared = request.salt().filter(|_| self.settings.prefix_cache);
        // Where nobody else may find them, its own copies may.
        let own = (copies > 1).then(|| self.pool.key().private(group.0));
        let alive = (1_u32 << copies).wrapping_sub(1) as u16;
        self.groups.insert(group, Group { alive, ready: false, logged: 0, salt: shared.or(own) });
        let arrival = now.saturating_duration_since(*self.epoch.get_or_insert(now)).as_nanos() as i128;
        let due = arrival + i128::from(request.priority()) * self.settings.ageing.as_nanos() as i128;
        let request = Arc::new(request);
        for copy in 0..copies {
            let sequence = group.copy(copy);
            self.sequences.insert(sequence, Sequence::new(Rank { due, sequence }, request.clone()));
            self.deadlines.extend(request.deadline().map(|deadline| (deadline, sequence)));
            self.enqueue(sequence, if copy == 0 { request.prompt_tokens() } else { 1 });
        }
        group
    }

    /// Ends a sequence. `false` where it had ended before. Its blocks are free at once.
    pub fn cancel(&mut self, id: SequenceId, reason: CancelReason) -> bool {
        self.end(id, Event::Cancelled { sequence: id, reason })
    }

    /// Ends a sequence that cannot be continued, for a reason that lies outside of the steps. `false` where it had ended.
    pub fn fail(&mut self, id: SequenceId, reason: Unanswered) -> bool {
        self.end(id, Event::Failed { sequence: id, reason })
    }

    /// A sequence that keeps to a form has chosen `token`. A form allows an end of the text only where it is complete, and
    /// then allows nothing else: such a sequence ends, though it may have fewer tokens than it was to have. `false` where
    /// it goes on, or had ended.
    pub fn complete(&mut self, id: SequenceId, token: u32) -> bool {
        let ignores = self.sequences.get(&id).is_none_or(|sequence| sequence.request.sampling().ignore_eos);
        if ignores || !self.settings.end_tokens.contains(&token) {
            return false;
        }
        self.end(id, Event::Finished { sequence: id, reason: FinishReason::Stop(token) })
    }

    /// What happened since the last call of this or of `commit`.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Is there something to take?
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Does it wait or run?
    pub fn is_alive(&self, id: SequenceId) -> bool {
        self.sequences.get(&id).is_some_and(|sequence| sequence.state != State::Ended)
    }

    /// Does nothing wait, run, or end?
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The model's own tokens for the end of a text.
    pub(super) fn end_tokens(&self) -> &Arc<[u32]> {
        &self.settings.end_tokens
    }

    /// The running sequences, the most urgent first.
    pub fn running(&self) -> impl Iterator<Item = SequenceId> {
        self.running.iter().map(|rank| rank.sequence)
    }

    /// The waiting sequences, the most urgent first.
    pub fn waiting(&self) -> impl Iterator<Item = SequenceId> {
        self.waiting.iter().map(|rank| rank.sequence)
    }

    /// Where it stands.
    pub fn counters(&self) -> Counters {
        let prefixes = self.pool.statistics();
        Counters {
            waiting: self.waiting.len() as u32,
            waiting_tokens: self.waiting_tokens,
            running: self.running.len() as u32,
            blocks_used: self.pool.total() - self.pool.free(),
            blocks_total: self.pool.total(),
            preemptions: self.preemptions,
            rows: self.rows,
            tokens: self.tokens,
            prefix_queries: prefixes.queries,
            prefix_hits: prefixes.hits,
            evictions: prefixes.evictions,
        }
    }

    /// Tokens of prompt and output together. The last of them needs no place in a block.
    fn tokens_max(&self) -> u64 {
        let places = u64::from(self.pool.total()) * u64::from(self.pool.block_size());
        u64::from(self.settings.context).min(places + 1)
    }

    /// Is there room for these requests together? Where nothing waits there is for any that fit one by one.
    fn check_room(&self, requests: &[Request]) -> Result<(), Rejected> {
        let largest = requests.iter().map(|request| request.positions_max() + 1).max();
        let (tokens, tokens_max) = (largest.unwrap_or_default(), self.tokens_max());
        if tokens > tokens_max {
            return Err(Rejected::NeverFits { tokens, tokens_max });
        }
        let Settings { max_waiting, max_waiting_tokens, max_running, .. } = self.settings;
        let copies: u32 = requests.iter().map(|request| u32::from(request.copies())).sum();
        let prompts: u64 = requests.iter().map(|request| u64::from(request.prompt_tokens())).sum();
        let sequences = self.waiting.len() as u32;
        let added = prompts + u64::from(copies) - requests.len() as u64;
        // Those that the next step takes in do not wait.
        let seats = max_running.saturating_sub(self.running.len() as u32);
        let too_many = sequences + copies > max_waiting.saturating_add(seats);
        if sequences > 0 && (too_many || self.waiting_tokens + added > max_waiting_tokens) {
            return Err(Rejected::QueueFull {
                sequences,
                sequences_max: max_waiting,
                tokens: self.waiting_tokens,
                tokens_max: max_waiting_tokens,
            });
        }
        Ok(())
    }

    /// Puts a sequence into the queue, where it counts for so many tokens.
    fn enqueue(&mut self, id: SequenceId, tokens: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.state = State::Waiting;
            sequence.queued_tokens = tokens;
            self.waiting.insert(sequence.rank);
            self.waiting_tokens += u64::from(tokens);
        }
    }

    /// Takes it out again.
    fn dequeue(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && self.waiting.remove(&sequence.rank)
        {
            self.waiting_tokens -= u64::from(std::mem::take(&mut sequence.queued_tokens));
        }
    }

    /// Ends a sequence and tells so; `false` where it had ended. Its blocks are free at once, since steps take effect in
    /// order; its name and slot once no step in flight uses them.
    fn end(&mut self, id: SequenceId, last: Event) -> bool {
        self.dequeue(id);
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        if sequence.state == State::Ended {
            return false;
        }
        sequence.state = State::Ended;
        self.running.remove(&sequence.rank);
        self.pool.release(&sequence.rewind());
        if let Some(deadline) = sequence.request.deadline() {
            self.deadlines.remove(&(deadline, id));
        }
        if let Some(group) = self.groups.get_mut(&id.group) {
            group.alive &= !(1 << id.copy);
            if group.alive == 0 {
                self.groups.remove(&id.group);
            }
        }
        self.events.push(last);
        self.settle(id);
        true
    }

    /// Frees the slot of a sequence that does not run, and forgets one that has ended, once no step in flight names it.
    fn settle(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        if sequence.pending > 0 || sequence.state == State::Running {
            return;
        }
        self.free_slots.extend(sequence.slot.take());
        if sequence.state == State::Ended {
            self.sequences.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::blocks::PrefixKey;
    use crate::llm::plan::Sampled;
    use crate::llm::request::{Draft, Limits};
    use std::time::Duration;

    /// Two run, three wait, and so do 48 tokens.
    fn settings() -> Settings {
        Settings {
            token_budget: 8,
            chunk_tokens: 8,
            max_running: 2,
            max_waiting: 3,
            max_waiting_tokens: 48,
            context: 32,
            watermark: 0,
            ageing: Duration::from_secs(1),
            prefix_cache: false,
            end_tokens: Arc::from([]),
        }
    }

    fn scheduler() -> Scheduler {
        Scheduler::new(settings(), BlockPool::new(16, 8, PrefixKey::new([7; 16]))).unwrap()
    }

    /// Requests of ten tokens that are answered by one.
    fn requests(count: usize, copies: u16) -> Vec<Request> {
        let limits = Limits { prompt_tokens: 32, copies: 4, output_tokens: 32, vocabulary: 100 };
        let draft = Draft { copies, ..Draft::new(vec![1; 10], 1, Arc::default()) };
        (0..count).map(|_| Request::new(draft.clone(), &limits).unwrap()).collect()
    }

    fn waiting(scheduler: &Scheduler) -> (u32, u64) {
        let Counters { waiting, waiting_tokens, .. } = scheduler.counters();
        (waiting, waiting_tokens)
    }

    #[test]
    fn what_belongs_together_enters_as_a_whole() {
        let (mut scheduler, now) = (scheduler(), Instant::now());
        let groups = scheduler.admit_all(now, requests(20, 2)).unwrap();
        assert_eq!((groups.len(), waiting(&scheduler)), (20, (40, 220)));
        assert_eq!(groups.iter().collect::<BTreeSet<_>>().len(), 20);
        assert!(matches!(scheduler.admit_all(now, requests(1, 1)), Err(Rejected::QueueFull { sequences: 40, .. })));
        scheduler.check().unwrap();
    }

    #[test]
    fn what_belongs_together_finds_room_as_a_whole_or_none() {
        let (mut scheduler, now) = (scheduler(), Instant::now());
        scheduler.admit_all(now, requests(1, 1)).unwrap();
        // Too many sequences, too many tokens, and one that never fits.
        for count in [5, 4] {
            assert!(matches!(scheduler.admit_all(now, requests(count, 1)), Err(Rejected::QueueFull { .. })));
        }
        let limits = Limits { prompt_tokens: 64, copies: 4, output_tokens: 32, vocabulary: 100 };
        let long = Request::new(Draft::new(vec![1; 40], 1, Arc::default()), &limits).unwrap();
        let mixed = requests(1, 1).into_iter().chain([long]).collect();
        assert_eq!(scheduler.admit_all(now, mixed), Err(Rejected::NeverFits { tokens: 41, tokens_max: 32 }));
        assert_eq!(waiting(&scheduler), (1, 10));
        assert!(scheduler.admit_all(now, requests(3, 1)).is_ok());
        scheduler.check().unwrap();
    }

    /// A request of `count` times one token, answered by so many.
    fn request(token: u32, count: usize, max_tokens: u32) -> Request {
        let limits = Limits { prompt_tokens: 32, copies: 1, output_tokens: 32, vocabulary: 100 };
        Request::new(Draft::new(vec![token; count], max_tokens, Arc::default()), &limits).unwrap()
    }

    /// Steps until nothing is left to do.
    fn run(scheduler: &mut Scheduler, now: Instant) {
        while let Some(plan) = scheduler.plan(now) {
            let sampled = plan.chunks.iter().map(|chunk| Sampled {
                sequence: chunk.sequence,
                token: chunk.sample.then_some(1),
                logprobs: None,
                prompt_logprobs: Vec::new(),
                failed: None,
            });
            let sampled = sampled.collect();
            scheduler.commit(&plan, Ok(sampled));
        }
    }

    #[test]
    fn what_is_taken_up_again_is_not_looked_for_again() {
        let settings = Settings {
            token_budget: 64,
            chunk_tokens: 64,
            max_waiting_tokens: 96,
            context: 64,
            prefix_cache: true,
            ..settings()
        };
        let mut scheduler = Scheduler::new(settings, BlockPool::new(4, 16, PrefixKey::new([7; 16]))).unwrap();
        let counts = |scheduler: &Scheduler| {
            let Counters { preemptions, rows, prefix_queries, prefix_hits, .. } = scheduler.counters();
            (preemptions, rows, prefix_queries, prefix_hits)
        };
        // The second gives its blocks up, and finds one of them again: 16 of its positions are not computed twice.
        let now = Instant::now();
        scheduler.admit(now, request(2, 30, 5)).unwrap();
        scheduler.admit(now, request(3, 17, 8)).unwrap();
        run(&mut scheduler, now);
        assert_eq!(counts(&scheduler), (1, 61, 47, 0));
        // Somebody else does.
        scheduler.admit(now, request(3, 17, 1)).unwrap();
        run(&mut scheduler, now);
        assert_eq!(counts(&scheduler), (1, 62, 64, 16));
    }
}
