//! Random traces of requests, cancellations, deadlines and failures, on engines of random sizes.
//!
//! What has to hold after every step is `Scheduler::check`; the scripted executor finds a plan that reads or writes what
//! it must not. The tokens of every sequence have to be those of the definition (`llm_common::expected`), which knows no
//! engine: so they depend neither on chunks, cache, preemption, block size, overlap, nor on who else is in the batch.

use crate::common::{Setup, World, expected, limits, prompt_of, sampling, tokens_of};
use backends::llm::blocks::Salt;
use backends::llm::engine::Overlap;
use backends::llm::request::{Draft, Request};
use backends::llm::sampling::Parameters;
use backends::llm::scheduler::Rejected;
use backends::llm::scripted::Phase;
use backends::llm::sequence::{CancelReason, Event, FinishReason, SequenceId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, Debug)]
struct Ask {
    family: u32,
    prompt: u32,
    max: u32,
    copies: u16,
    priority: i32,
    deadline_ms: Option<u64>,
    stops: bool,
    cache: bool,
    tenant: bool,
    logs_prompt: bool,
}

#[derive(Clone, Debug)]
enum Action {
    /// Together, all or none.
    Admit(Vec<Ask>),
    Step(u32),
    Cancel(usize),
    Fail(Phase),
}

fn ask() -> impl Strategy<Value = Ask> {
    let prompt = prop_oneof![2 => 1..30_u32, 1 => 1..150_u32];
    let sizes = (0..3_u32, prompt, 1..120_u32, prop_oneof![4 => Just(1), 1 => 2..5_u16]);
    let flags = (prop::bool::weighted(0.3), prop::bool::weighted(0.8), any::<bool>(), prop::bool::weighted(0.1));
    let urgency = (-2..3, prop::option::weighted(0.1, 1..200_u64));
    (sizes, flags, urgency).prop_map(
        |((family, prompt, max, copies), (stops, cache, tenant, logs_prompt), (priority, deadline_ms))| Ask {
            family,
            prompt,
            max,
            copies,
            priority,
            deadline_ms,
            stops,
            cache,
            tenant,
            logs_prompt,
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        9 => ask().prop_map(|ask| Action::Admit(vec![ask])),
        1 => vec(ask(), 2..8).prop_map(Action::Admit),
        6 => (1..8_u32).prop_map(Action::Step),
        2 => any::<usize>().prop_map(Action::Cancel),
        1 => select(vec![Phase::Launch, Phase::Sample, Phase::Collect]).prop_map(Action::Fail),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let sizes = (select(vec![16_u32, 32, 64]), 268..600_u32, 1..13_u32, 0..100_u32, 1..80_u32);
    let habits = (0..3_u32, any::<bool>(), any::<bool>(), 0..100_u64, 16..24_u32);
    (sizes, habits).prop_map(
        |((block_size, places, running, spare, chunk), (watermark, cache, ahead, ageing, waiting))| {
            let mut setup = Setup { block_size, blocks: places.div_ceil(block_size), ..Setup::default() };
            setup.overlap = if ahead { Overlap::Ahead } else { Overlap::InStep };
            setup.settings.max_running = running;
            setup.settings.token_budget = running + spare;
            setup.settings.chunk_tokens = chunk;
            setup.settings.watermark = watermark;
            setup.settings.prefix_cache = cache;
            setup.settings.max_waiting = waiting;
            setup.settings.ageing = Duration::from_millis(ageing);
            setup
        },
    )
}

const STOPS: std::ops::Range<u32> = 0..30;

impl Ask {
    fn stops(&self) -> Vec<u32> {
        if self.stops { STOPS.collect() } else { Vec::new() }
    }

    fn request(&self, world: &World) -> Request {
        let prompt_logprobs = self.logs_prompt.then_some(0);
        let sampling = sampling(Parameters { stop_tokens: self.stops(), prompt_logprobs, ..Parameters::default() });
        let draft = Draft {
            copies: self.copies,
            priority: self.priority,
            deadline: self.deadline_ms.map(|ms| world.now + Duration::from_millis(ms)),
            salt: Salt(self.tenant.into()),
            cache: self.cache,
            ..Draft::new(prompt_of(self.family, self.prompt), self.max, sampling)
        };
        Request::new(draft, &limits()).unwrap()
    }
}

/// A trace under way.
struct Trace {
    world: World,
    setup: Setup,
    asked: BTreeMap<SequenceId, Ask>,
    events: Vec<Event>,
    cancelled: BTreeSet<SequenceId>,
    /// Steps that may fail.
    faults: usize,
}

impl Trace {
    fn new(setup: &Setup) -> Self {
        let (asked, events, cancelled) = Default::default();
        Trace { world: setup.world(), setup: setup.clone(), asked, events, cancelled, faults: 0 }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Admit(asks) => self.admit(asks),
            Action::Step(times) => (0..*times).for_each(|_| self.step()),
            Action::Cancel(which) if !self.asked.is_empty() => {
                let id = *self.asked.keys().nth(which % self.asked.len()).unwrap();
                if self.world.engine.cancel(id, CancelReason::ClientGone) {
                    self.cancelled.insert(id);
                }
                self.world.engine.scheduler().check().unwrap();
            }
            Action::Cancel(_) => {}
            Action::Fail(phase) => {
                self.faults += 1;
                self.world.recorder.fail(*phase);
            }
        }
    }

    fn admit(&mut self, asks: &[Ask]) {
        let places = u64::from(self.setup.blocks * self.setup.block_size);
        let fits = |ask: &Ask| u64::from(ask.prompt + ask.max) <= places + 1;
        let waiting = self.world.engine.counters().waiting;
        let requests = asks.iter().map(|ask| ask.request(&self.world)).collect();
        match self.world.engine.admit_all(self.world.now, requests) {
            Ok(groups) => {
                assert_eq!(groups.len(), asks.len());
                for (group, ask) in groups.into_iter().zip(asks) {
                    self.asked.extend((0..ask.copies).map(|copy| (group.copy(copy), ask.clone())));
                }
                return;
            }
            Err(Rejected::NeverFits { .. }) => assert!(!asks.iter().all(fits)),
            Err(Rejected::QueueFull { sequences, sequences_max, .. }) => {
                let copies: u32 = asks.iter().map(|ask| u32::from(ask.copies)).sum();
                assert!(sequences > 0 && sequences + copies > sequences_max);
            }
        }
        assert_eq!(self.world.engine.counters().waiting, waiting, "none of those that are refused together waits");
        self.world.engine.scheduler().check().unwrap();
    }

    fn step(&mut self) {
        let first = self.world.engine.scheduler().running().next();
        let events = self.world.step();
        self.world.now += Duration::from_millis(1);
        let plans = self.world.recorder.plans();
        assert!(plans.len() <= 1);
        for plan in &plans {
            let of = |what: fn(&backends::llm::plan::Chunk) -> u32| plan.chunks.iter().map(what).collect::<Vec<_>>();
            assert!(plan.rows() <= self.setup.settings.token_budget);
            assert!(plan.chunks.is_sorted_by_key(|chunk| chunk.length > 1), "one row goes first");
            assert!(of(|chunk| chunk.length).iter().all(|&length| length <= self.setup.settings.chunk_tokens));
            assert_eq!(of(|chunk| chunk.slot).iter().collect::<BTreeSet<_>>().len(), plan.chunks.len());
        }
        // The first of those that run advances with every step, and is not preempted.
        if let Some(first) = first {
            let planned = plans.iter().flat_map(|plan| &plan.chunks).any(|chunk| chunk.sequence == first);
            let ended = events.iter().any(|event| event.is_last() && event.sequence() == first);
            assert!(planned || ended, "{first} stands still");
            assert!(plans.iter().all(|plan| !plan.preempted.contains(&first)), "{first} is preempted");
        }
        self.events.extend(events);
    }

    /// Everything ends, after about as many steps as there are positions.
    fn drain(&mut self) {
        let positions: u32 = self.asked.values().map(|ask| ask.prompt + ask.max).sum();
        let mut left = 4 * positions + 100;
        while !self.world.engine.idle() {
            self.step();
            left = left.checked_sub(1).expect("it does not come to an end");
        }
        let counters = self.world.engine.counters();
        assert_eq!((counters.waiting, counters.running, counters.blocks_used, counters.waiting_tokens), (0, 0, 0, 0));
    }

    /// Every sequence that was admitted ended once, for a reason that there was, with the right tokens.
    fn judge(&self) {
        let failures = self.events.iter().filter_map(|event| match event {
            Event::Failed { reason, .. } => Some(reason),
            _ => None,
        });
        for reason in failures {
            assert!(self.faults > 0 && reason.to_string().contains("was to fail"), "{reason}");
        }
        for (&id, ask) in &self.asked {
            let mine: Vec<&Event> = self.events.iter().filter(|event| event.sequence() == id).collect();
            assert_eq!(mine.iter().filter(|event| event.is_last()).count(), 1, "{id}: {mine:?}");
            let got = tokens_of(&self.events, id);
            let whole = expected(id.copy, &prompt_of(ask.family, ask.prompt), ask.max, &ask.stops());
            match mine.last().unwrap() {
                Event::Finished { reason: FinishReason::Stop(token), .. } => {
                    assert_eq!((got.last(), &got), (Some(token), &whole));
                }
                Event::Finished { reason: FinishReason::Length, .. } => {
                    assert_eq!((got.len() as u32, &got), (ask.max, &whole));
                }
                Event::Cancelled { reason, .. } => {
                    assert!(whole.starts_with(&got));
                    let passed = *reason == CancelReason::DeadlinePassed && ask.deadline_ms.is_some();
                    assert!(passed || self.cancelled.contains(&id));
                }
                Event::Failed { .. } => assert!(whole.starts_with(&got)),
                other => panic!("the last of {id} is {other:?}"),
            }
        }
    }
}

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig { cases: count, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn any_trace_keeps_the_books_and_tells_the_right_tokens(setup in setup(), actions in vec(action(), 1..60)) {
        let mut trace = Trace::new(&setup);
        for action in &actions {
            trace.act(action);
        }
        trace.drain();
        trace.judge();
    }

    /// The same requests on two engines of different sizes, each request alone, and the definition: all the same.
    #[test]
    fn tokens_do_not_depend_on_the_engine(setups in [setup(), setup()], asks in vec(ask(), 1..10)) {
        let asks: Vec<Ask> = asks.into_iter().map(|ask| Ask { deadline_ms: None, ..ask }).collect();
        let mut alone = Vec::new();
        for ask in &asks {
            let mut trace = Trace::new(&setups[0]);
            trace.admit(std::slice::from_ref(ask));
            trace.drain();
            alone.extend(trace.asked.keys().map(|&id| tokens_of(&trace.events, id)));
        }
        for mut setup in setups {
            setup.settings.max_waiting = 64;
            let mut trace = Trace::new(&setup);
            asks.iter().for_each(|ask| trace.admit(std::slice::from_ref(ask)));
            prop_assert_eq!(trace.asked.len(), alone.len());
            trace.drain();
            trace.judge();
            let together: Vec<_> = trace.asked.keys().map(|&id| tokens_of(&trace.events, id)).collect();
            prop_assert_eq!(&together, &alone);
        }
    }
}

/// Random traces prove little unless the rare things happen in them.
#[test]
fn the_traces_meet_what_they_are_meant_to() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut preemptions, mut hits, mut evictions, mut stops, mut queue_full) = (0, 0, 0, 0, 0);
    for _ in 0..60 {
        let (setup, actions) = (setup(), vec(action(), 1..60)).new_tree(&mut runner).unwrap().current();
        let mut trace = Trace::new(&setup);
        let admits = |action: &Action| if let Action::Admit(asks) = action { asks.len() } else { 0 };
        let admits: usize = actions.iter().map(admits).sum();
        actions.iter().for_each(|action| trace.act(action));
        trace.drain();
        let counters = trace.world.engine.counters();
        preemptions += counters.preemptions;
        hits += counters.prefix_hits;
        evictions += counters.evictions;
        let stop = |event: &&Event| matches!(event, Event::Finished { reason: FinishReason::Stop(_), .. });
        stops += trace.events.iter().filter(stop).count();
        let groups: BTreeSet<_> = trace.asked.keys().map(|id| id.group).collect();
        queue_full += admits - groups.len();
    }
    let met = (preemptions, hits, evictions, stops, queue_full);
    assert!(preemptions > 50 && hits > 1000 && evictions > 50 && stops > 50 && queue_full > 0, "{met:?}");
}
