//! Whole models through the engine: the scheduler's steps, as a server makes them, without HTTP.

use super::shapes::{self, LLAMA, QWEN, Shape};
use super::{Args, Ways, open_with};
use crate::Failure;
use backends::llm::blocks::{BLOCK, BlockPool, PrefixKey};
use backends::llm::cuda::{CacheType, CudaExecutor, Options, SHORT_ROWS};
use backends::llm::engine::{Engine, Overlap};
use backends::llm::request::{Draft, Limits, Request};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::scheduler::{Scheduler, Settings};
use backends::llm::sequence::{Event, GroupId};
use backends::llm::spec::DecoderSpec;
use kernels::cuda::pairs::PAIRS;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows of a step, as a server has them.
const STEP_ROWS: usize = 4096;
/// Steps that are not counted after all sequences have begun.
const WARM: usize = 4;
/// Sequences of the steps whose launches are compared: those of few rows with the others.
const FEW: usize = 4;
/// What a server has.
const SERVED: Way = Way { short_rows: SHORT_ROWS, pairs: PAIRS };
/// And what it has not: of steps of few rows, and of those of many.
const SHORT: Way = Way { short_rows: if SHORT_ROWS == 0 { FEW } else { 0 }, ..SERVED };
const PAIRED: Way = Way { pairs: !PAIRS, ..SERVED };
/// Prompts whose first token is timed.
const FIRSTS: usize = 9;
/// A prompt of a closed loop: shorter than a block, so that no two share one.
const LOOP_PROMPT: usize = 31;
/// Tokens of its answers: from so many on, that many lengths in turn, in steps that leave none out. Answers of one length
/// come in waves, and what a measurement of two seconds counts depends on how many of them it has.
const LOOP_TOKENS: usize = 48;
const LOOP_LENGTHS: usize = 33;
const LOOP_STEP: usize = 7;
/// How rows of closed loops begin.
const CLOSED: &str = "engine.closed.";

/// How steps are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// Those of up to so many rows go the shorter way.
    short_rows: usize,
    /// Do products of many rows go by pairs of blocks?
    pairs: bool,
}

impl Way {
    /// What the names of rows end with: nothing where a server does so.
    fn name(self) -> &'static str {
        match (self.short_rows == SERVED.short_rows, self.pairs == SERVED.pairs) {
            (true, true) => "",
            (false, _) => [".long", ".short"][usize::from(self.short_rows > 0)],
            (true, false) => [".single", ".pairs"][usize::from(self.pairs)],
        }
    }
}

/// A model that is ready.
struct Model {
    engine: Engine<CudaExecutor>,
    spec: DecoderSpec,
    limits: Limits,
    sampling: Arc<Sampling>,
    way: Way,
    /// Of made-up prompts.
    state: u64,
}

/// A measurement of decoding.
struct Decode {
    clients: usize,
    /// Tokens of each answer.
    tokens: usize,
}

/// A row of decoding.
fn name(shape: Shape, clients: usize, way: Way) -> String {
    let numbers = if shape.eight_bits { "fp8" } else { "bf16" };
    format!("decode.{}.{numbers}.b{clients}{}", shape.name, way.name())
}

/// A row of first tokens.
fn name_of_first(shape: Shape, way: Way) -> String {
    format!("ttft.{}.bf16.1k{}", shape.name, way.name())
}

/// All rows that need an engine.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let context = if args.small { 64 } else { 1024 };
    let long = if args.small { 16 } else { 128 };
    // While 256 prompts are read, four a step, the first of them decode already.
    let (some, many) = if args.small { (2, 5) } else { (32, 256) };
    let longer = if args.small { 24 } else { 192 };
    let decodes = [(1, long), (FEW, long), (some, long), (many, longer)];
    let room = context + context / 4;
    for way in ways(args, &[SERVED, SHORT, PAIRED]) {
        if args.wants(&name(QWEN, 1, way)) {
            let mut model = Model::load(args, QWEN, (1, 2 * context), way)?;
            model.decode(args, QWEN, context, &Decode { clients: 1, tokens: long })?;
        }
    }
    for way in ways(args, &[SERVED, SHORT, PAIRED]) {
        // Longer steps are the same either way.
        let decodes = &decodes[..if way == SHORT { 2 } else { decodes.len() }];
        let rows = decodes.iter().map(|(clients, _)| name(LLAMA, *clients, way));
        let firsts = (way != SHORT).then(|| name_of_first(LLAMA, way));
        let closed = (way == SERVED).then(|| CLOSED.to_owned());
        if !rows.chain(firsts).chain(closed).any(|row| args.wants(&row)) {
            continue;
        }
        let slots = decodes.iter().map(|(clients, _)| *clients).max().unwrap_or(1);
        let mut model = Model::load(args, LLAMA, (slots, room), way)?;
        for (clients, tokens) in decodes {
            model.decode(args, LLAMA, context, &Decode { clients: *clients, tokens: *tokens })?;
        }
        if way != SHORT {
            model.first(args, LLAMA, context)?;
        }
        if way == SERVED {
            for clients in std::iter::successors(Some(1), |clients| Some(2 * clients)).take_while(|n| *n <= many) {
                model.closed(args, clients)?;
            }
        }
    }
    for way in ways(args, &[SERVED, PAIRED]) {
        let shape = LLAMA.in_eight_bits();
        if args.wants(&name(shape, many, way)) {
            let mut model = Model::load(args, shape, (many, room), way)?;
            model.decode(args, shape, context, &Decode { clients: many, tokens: longer })?;
        }
    }
    Ok(())
}

/// Those among `ways` that are asked for.
fn ways(args: &Args, ways: &[Way]) -> Vec<Way> {
    let asked = |way: &Way| match args.ways {
        Ways::Served => *way == SERVED,
        Ways::Others => *way != SERVED,
        Ways::All => true,
    };
    ways.iter().copied().filter(asked).collect()
}

impl Model {
    /// `slots` sequences of `context` tokens fit in.
    fn load(args: &Args, shape: Shape, (slots, context): (usize, usize), way: Way) -> Result<Self, Failure> {
        let spec = shape.spec(args.small)?;
        let blocks = slots as u32 * (context as u32).div_ceil(BLOCK);
        let begun = Instant::now();
        let options = Options {
            blocks,
            cache: if shape.eight_bits { CacheType::Fp8 } else { CacheType::Bf16 },
            context,
            slots,
            step_rows: STEP_ROWS,
            pool: Arc::new(rayon::ThreadPoolBuilder::new().build()?),
            graphs: true,
            deterministic: false,
            short_rows: way.short_rows,
            poison: false,
        };
        let executor = CudaExecutor::load(spec.clone(), &shape.weights(&spec)?, open_with(way.pairs)?, options)?;
        let settings = Settings {
            token_budget: STEP_ROWS as u32,
            chunk_tokens: STEP_ROWS as u32,
            max_running: slots as u32,
            max_waiting: 1024,
            max_waiting_tokens: 1 << 24,
            context: context as u32,
            watermark: 0,
            ageing: Duration::from_secs(2),
            prefix_cache: false,
            end_tokens: Vec::new().into(),
        };
        let bytes = executor.bytes();
        let scheduler = Scheduler::new(settings, BlockPool::new(blocks, BLOCK, PrefixKey::new([0; 16])))?;
        let mut engine = Engine::new(scheduler, executor, Overlap::Ahead);
        while engine.prepare() {}
        if let Some(remark) = engine.remark() {
            return Err(remark.into());
        }
        eprintln!("{}: {:.1} GB, ready after {:.2} s", shape.name, bytes as f64 / 1e9, begun.elapsed().as_secs_f64());
        let parameters = Parameters { ignore_eos: true, ..Parameters::default() };
        let (most, vocabulary) = (context as u32, spec.vocab as u32);
        let limits = Limits { prompt_tokens: most, copies: 1, output_tokens: most, vocabulary };
        Ok(Model { engine, spec, limits, sampling: Arc::new(Sampling::new(parameters)?), way, state: 1 })
    }

    /// Takes a prompt of so many random tokens.
    fn admit(&mut self, prompt: usize, tokens: usize) -> Result<GroupId, Failure> {
        let vocab = self.spec.vocab as u64;
        let mut token = || {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.state >> 33) % vocab) as u32
        };
        let prompt: Vec<u32> = (0..prompt).map(|_| token()).collect();
        let draft = Draft { cache: false, ..Draft::new(prompt, tokens as u32, self.sampling.clone()) };
        Ok(self.engine.admit(Instant::now(), Request::new(draft, &self.limits)?)?)
    }

    /// One step: the sequences that have one more token, and how many have ended.
    fn step(&mut self) -> Result<(Vec<GroupId>, usize), Failure> {
        let (mut told, mut ended) = (Vec::new(), 0);
        for event in self.engine.step(Instant::now()) {
            match event {
                Event::Token { sequence, .. } => told.push(sequence.group),
                Event::Failed { reason, .. } => return Err(reason.into()),
                event if event.is_last() => ended += 1,
                _ => {}
            }
        }
        match self.engine.lost() {
            Some(why) => Err(why.to_string().into()),
            None => Ok((told, ended)),
        }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        while !self.engine.idle() {
            self.step()?;
        }
        Ok(())
    }

    /// Tokens a second while all sequences decode, at contexts around `context`.
    fn decode(&mut self, args: &Args, shape: Shape, context: usize, job: &Decode) -> Result<(), Failure> {
        let what = name(shape, job.clients, self.way);
        if !args.wants(&what) {
            return Ok(());
        }
        for _ in 0..job.clients {
            self.admit(context - job.tokens / 2, job.tokens)?;
        }
        let (mut begun, mut steps) = (HashSet::<GroupId>::new(), 0);
        let (mut counted, mut first, mut last) = (0, None, None);
        while !self.engine.idle() {
            let (told, ended) = self.step()?;
            if ended > 0 {
                break;
            }
            let now = Instant::now();
            if first.is_some() {
                (counted, last) = (counted + told.len(), Some(now));
            }
            begun.extend(told);
            if begun.len() == job.clients {
                steps += 1;
                first = first.or((steps > WARM).then_some(now));
            }
        }
        self.finish()?;
        let (Some(first), Some(last)) = (first, last) else { return Err(format!("{what}: too few steps").into()) };
        let rate = f64::from(counted as u32) / last.duration_since(first).as_secs_f64();
        let limit = args.limit(shape.decode(&self.spec, job.clients, context));
        args.tell(what, rate, "tokens/s", limit.map(|seconds| job.clients as f64 / seconds))
    }

    /// Milliseconds from a prompt to its first token: the median.
    fn first(&mut self, args: &Args, shape: Shape, tokens: usize) -> Result<(), Failure> {
        let what = name_of_first(shape, self.way);
        if !args.wants(&what) {
            return Ok(());
        }
        let mut times = Vec::new();
        for _ in 0..FIRSTS {
            let begun = Instant::now();
            self.admit(tokens, 1)?;
            while self.step()?.0.is_empty() {}
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            self.finish()?;
        }
        times.sort_by(f64::total_cmp);
        let limit = args.limit(shapes::prompt(&self.spec, tokens));
        args.tell(what, times[FIRSTS / 2], "ms", limit.map(|seconds| seconds * 1e3))
    }

    /// Tokens a second of so many clients, each of whom asks again as soon as it is answered: what a server is held to.
    fn closed(&mut self, args: &Args, clients: usize) -> Result<(), Failure> {
        let what = format!("{CLOSED}{clients}");
        if !args.wants(&what) {
            return Ok(());
        }
        let (warm, measured) = if args.small { (0.01, 0.05) } else { (1.0, 2.0) };
        let mut lengths = (0..).map(|ask| match args.small {
            true => 8,
            false => LOOP_TOKENS + LOOP_STEP * ask % LOOP_LENGTHS,
        });
        let mut ask = |model: &mut Self| model.admit(LOOP_PROMPT, lengths.next().unwrap_or(LOOP_TOKENS));
        for _ in 0..clients {
            ask(self)?;
        }
        let (begun, mut counted, mut from) = (Instant::now(), 0, None);
        let rate = loop {
            let (told, ended) = self.step()?;
            for _ in 0..ended {
                ask(self)?;
            }
            match from {
                None if begun.elapsed().as_secs_f64() >= warm => from = Some(Instant::now()),
                None => {}
                Some(from) => {
                    counted += told.len();
                    let seconds = from.elapsed().as_secs_f64();
                    if seconds >= measured {
                        break f64::from(counted as u32) / seconds;
                    }
                }
            }
        };
        self.finish()?;
        args.tell(what, rate, "tokens/s", None)
    }
}
