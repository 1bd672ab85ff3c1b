//! An engine over the scripted executor, with its plans recorded and a clock that stands still until told.

// Each test file uses a part of it.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use backends::llm::blocks::{BlockPool, PrefixKey};
use backends::llm::engine::{Engine, Overlap};
use backends::llm::executor::{Executor, Failure, Masks, Ticket};
use backends::llm::plan::{Chunk, Plan, Sampled};
use backends::llm::request::{Draft, Limits, Request};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::scheduler::{Scheduler, Settings};
use backends::llm::scripted::{Next, Phase, Scripted, next_token};
use backends::llm::sequence::{Event, FinishReason, SequenceId};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const VOCABULARY: u32 = 1000;

/// The scripted executor, which a test keeps a hold of.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Debug)]
struct Recorded {
    scripted: Scripted,
    plans: Vec<Plan>,
    ends: Vec<Arc<[u32]>>,
}

impl Recorder {
    pub fn fail(&self, phase: Phase) {
        self.0.lock().unwrap().scripted.fail(phase);
    }

    /// The plans since the last call.
    pub fn plans(&self) -> Vec<Plan> {
        std::mem::take(&mut self.0.lock().unwrap().plans)
    }

    /// What it was told of tokens that end texts, step by step.
    pub fn ends(&self) -> Vec<Arc<[u32]>> {
        self.0.lock().unwrap().ends.clone()
    }
}

impl Executor for Recorder {
    fn launch(&mut self, plan: &Plan) -> Result<Ticket, Failure> {
        let mut inner = self.0.lock().unwrap();
        inner.plans.push(plan.clone());
        inner.scripted.launch(plan)
    }
    fn sample(&mut self, ticket: &Ticket, masks: &Masks) -> Result<(), Failure> {
        let mut inner = self.0.lock().unwrap();
        inner.ends.push(masks.ends.clone());
        inner.scripted.sample(ticket, masks)
    }
    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>, Failure> {
        self.0.lock().unwrap().scripted.collect(ticket)
    }
}

/// What an engine is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub blocks: u32,
    pub block_size: u32,
    pub overlap: Overlap,
    pub settings: Settings,
}

impl Default for Setup {
    fn default() -> Self {
        let settings = Settings {
            token_budget: 64,
            chunk_tokens: 64,
            max_running: 4,
            max_waiting: 64,
            max_waiting_tokens: 100_000,
            context: 4096,
            watermark: 0,
            ageing: Duration::from_secs(1),
            prefix_cache: true,
            end_tokens: Arc::from([]),
        };
        Setup { blocks: 32, block_size: 16, overlap: Overlap::Ahead, settings }
    }
}

impl Setup {
    pub fn scheduler(&self) -> Scheduler {
        let pool = BlockPool::new(self.blocks, self.block_size, PrefixKey::new([7; 16]));
        Scheduler::new(self.settings.clone(), pool).unwrap()
    }

    pub fn world(&self) -> World {
        self.world_with(Box::new(|sequence, history| next_token(sequence.copy, history, VOCABULARY)))
    }

    pub fn world_with(&self, next: Next) -> World {
        let scripted = Scripted::new(self.blocks, self.block_size, VOCABULARY).with_next(next);
        let recorder = Recorder(Arc::new(Mutex::new(Recorded { scripted, plans: Vec::new(), ends: Vec::new() })));
        let engine = Engine::new(self.scheduler(), recorder.clone(), self.overlap);
        World { engine, recorder, now: Instant::now() }
    }
}

/// An engine under test.
pub struct World {
    pub engine: Engine<Recorder>,
    pub recorder: Recorder,
    pub now: Instant,
}

impl World {
    /// One step, after which all has to be in order.
    pub fn step(&mut self) -> Vec<Event> {
        let events = self.engine.step(self.now);
        self.engine.scheduler().check().unwrap();
        events
    }

    /// Steps until nothing is left to do.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..100_000 {
            if self.engine.idle() {
                return events;
            }
            events.extend(self.step());
        }
        panic!("still not idle: {:?}", self.engine.counters());
    }

    pub fn admit(&mut self, draft: Draft) -> SequenceId {
        self.engine.admit(self.now, request(draft)).unwrap().copy(0)
    }
}

pub fn limits() -> Limits {
    Limits { prompt_tokens: 100_000, copies: 16, output_tokens: 1_000_000, vocabulary: VOCABULARY }
}

pub fn request(draft: Draft) -> Request {
    Request::new(draft, &limits()).unwrap()
}

pub fn sampling(parameters: Parameters) -> Arc<Sampling> {
    Arc::new(Sampling::new(parameters).unwrap())
}

/// A request for `max` tokens after a prompt of so many; prompts of equal seeds have equal beginnings.
pub fn draft(seed: u32, prompt: u32, max: u32) -> Draft {
    Draft::new(prompt_of(seed, prompt), max, Arc::default())
}

/// With seed 0 all blocks hold the same tokens: only what came before tells them apart.
pub fn prompt_of(seed: u32, length: u32) -> Arc<[u32]> {
    if seed == 0 {
        return vec![5; length as usize].into();
    }
    (0..length).map(|i| (seed * 7919 + i * 31 + i * i) % VOCABULARY).collect()
}

/// The tokens that were told of a sequence.
pub fn tokens_of(events: &[Event], id: SequenceId) -> Vec<u32> {
    let told = events.iter().filter_map(|event| match event {
        Event::Token { sequence, token, .. } if *sequence == id => Some(*token),
        _ => None,
    });
    told.collect()
}

/// The tokens that there have to be, from the definition alone: no engine, no blocks, no batch.
pub fn expected(copy: u16, prompt: &[u32], max: u32, stops: &[u32]) -> Vec<u32> {
    let mut history = prompt.to_vec();
    while history.len() < prompt.len() + max as usize {
        let token = next_token(copy, &history, VOCABULARY);
        history.push(token);
        if stops.contains(&token) {
            break;
        }
    }
    history.split_off(prompt.len())
}

/// Tokens count up from the length of the sequence: easy to stop at.
pub fn counting(setup: &Setup) -> World {
    setup.world_with(Box::new(|_, history| history.len() as u32))
}

pub fn stopping_at(mut draft: Draft, token: u32) -> Draft {
    draft.sampling = sampling(Parameters { stop_tokens: vec![token], ..Parameters::default() });
    draft
}

/// A step that may have nothing to compute.
pub fn any_step(world: &mut World) -> (Vec<Event>, Option<Plan>) {
    drop(world.recorder.plans());
    let events = world.step();
    (events, world.recorder.plans().pop())
}

pub fn one_step(world: &mut World) -> (Vec<Event>, Plan) {
    let (events, plan) = any_step(world);
    (events, plan.unwrap())
}

pub fn until_preempted(world: &mut World) -> Vec<Event> {
    let mut events = Vec::new();
    while world.engine.counters().preemptions == 0 {
        assert!(!world.engine.idle());
        events.extend(world.step());
    }
    events
}

pub fn is_planned(plan: &Plan, id: SequenceId) -> bool {
    plan.chunks.iter().any(|chunk| chunk.sequence == id)
}

pub fn stopped(id: SequenceId, token: u32) -> Event {
    Event::Finished { sequence: id, reason: FinishReason::Stop(token) }
}

/// Answers a plan as an executor would, with token 5 wherever one is asked for.
pub fn answers(plan: &Plan) -> Vec<Sampled> {
    let answer = |chunk: &Chunk| Sampled {
        sequence: chunk.sequence,
        token: chunk.sample.then_some(5),
        logprobs: None,
        prompt_logprobs: Vec::new(),
        failed: None,
    };
    plan.chunks.iter().map(answer).collect()
}
