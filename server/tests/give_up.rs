//! A process that cannot do its work any more ends with the code that says why, even where something hangs.

#![allow(clippy::unwrap_used)]

use backends::LoadError;
use backends::llm::blocks::{BlockPool, PrefixKey};
use backends::llm::engine::{Engine, Overlap};
use backends::llm::executor::{Executor, Failure, Masks, Ticket};
use backends::llm::model::BoxedExecutor;
use backends::llm::plan::{Plan, Sampled};
use backends::llm::progress::Calls;
use backends::llm::request::{Draft, Limits, Request};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::scheduler::{Scheduler, Settings};
use backends::llm::scripted::Scripted;
use backends::llm::sequence::Event;
use server::error::Error;
use server::llm::generator::{Generator, Tokens};
use server::llm::watch::Loading;
use server::{process, telemetry};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Set in the child, which gives up.
const CHILD: &str = "TENSORGATE_TEST_GIVES_UP";

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs a test of this file once more, as a child.
fn child(test: &str) -> (Output, Duration) {
    let began = Instant::now();
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    (output, began.elapsed())
}

const BLOCKS: u32 = 64;
const BLOCK_LEN: u32 = 16;
const VOCABULARY: u32 = 100;

/// An engine's thread.
fn start(executor: BoxedExecutor, step_timeout: Option<Duration>) -> Generator {
    let settings = Settings {
        token_budget: 64,
        chunk_tokens: 64,
        max_running: 4,
        max_waiting: 16,
        max_waiting_tokens: 1 << 16,
        context: 512,
        watermark: 0,
        ageing: Duration::from_secs(1),
        prefix_cache: false,
        end_tokens: Vec::new().into(),
    };
    let pool = BlockPool::new(BLOCKS, BLOCK_LEN, PrefixKey::new([7; 16]));
    let engine = Engine::new(Scheduler::new(settings, pool).unwrap(), executor, Overlap::Ahead);
    Generator::start("engine", engine, step_timeout).unwrap()
}

/// A request of so many tokens.
fn request(most: u32) -> Request {
    let limits = Limits { prompt_tokens: 512, copies: 4, output_tokens: 512, vocabulary: VOCABULARY };
    let sampling = Arc::new(Sampling::new(Parameters::default()).unwrap());
    Request::new(Draft::new(vec![1, 2, 3], most, sampling), &limits).unwrap()
}

/// An engine on a device that takes `step` for each step, and the answer to a request of so many tokens, asked for in
/// `runtime`.
fn generate(runtime: &Runtime, step: Duration, step_timeout: Option<Duration>, most: u32) -> (Generator, Tokens) {
    let executor = Scripted::new(BLOCKS, BLOCK_LEN, VOCABULARY).with_next(Box::new(move |_, history| {
        std::thread::sleep(step);
        history.len() as u32 % VOCABULARY
    }));
    let generator = start(Box::new(executor), step_timeout);
    let mut streams = runtime.block_on(generator.admit(request(most), Vec::new())).unwrap();
    (generator, streams.remove(0))
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// All that comes; how many tokens there were.
fn tokens(runtime: &Runtime, mut stream: Tokens) -> usize {
    let mut count = 0;
    while let Some(event) = runtime.block_on(std::future::poll_fn(|cx| stream.poll_next(cx))) {
        count += usize::from(matches!(event, Event::Token { .. }));
    }
    count
}

/// One with a defect: in a step, or in what it does in idle times.
struct Defect {
    idle: bool,
}

impl Executor for Defect {
    fn launch(&mut self, _plan: &Plan) -> Result<Ticket, Failure> {
        panic!("a defect")
    }
    fn sample(&mut self, _ticket: &Ticket, _masks: &Masks) -> Result<(), Failure> {
        unreachable!("nothing was launched")
    }
    fn collect(&mut self, _ticket: Ticket) -> Result<Vec<Sampled>, Failure> {
        unreachable!("nothing was launched")
    }
    fn prepare(&mut self) -> Result<bool, Failure> {
        if self.idle { panic!("a defect") } else { Ok(false) }
    }
}

/// Nobody waits for an engine that has ended, and whoever asks whether it serves is told the truth.
#[test]
fn an_engine_with_a_defect_ends_and_says_so() {
    for idle in [false, true] {
        let (runtime, generator) = (runtime(), start(Box::new(Defect { idle }), None));
        match runtime.block_on(generator.admit(request(5), Vec::new())) {
            // It came before anything was wrong.
            Ok(mut streams) => assert_eq!(tokens(&runtime, streams.remove(0)), 0),
            Err(error) => assert!(format!("{error:?}").contains("engine has ended"), "{error:?}"),
        }
        let ended = std::iter::repeat_with(|| {
            std::thread::sleep(Duration::from_millis(5));
            generator.running().broken()
        });
        assert_eq!(ended.take(2000).flatten().next().as_deref(), Some("it panicked"), "idle: {idle}");
        assert!(generator.running().broken().is_some());
        let error = runtime.block_on(generator.admit(request(5), Vec::new())).unwrap_err();
        assert_eq!(error, Error::Unavailable("the model's engine has ended".into()));
    }
}

#[test]
fn a_process_that_gives_up_ends_within_seconds() {
    if is_child() {
        process::give_up(process::LOST, "the device of a language model is lost");
        process::give_up(process::HUNG, "what is said later does not count");
        assert_eq!(process::giving_up(), Some(process::LOST));
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    assert_eq!(process::giving_up(), None);
    let (output, took) = child("a_process_that_gives_up_ends_within_seconds");
    assert_eq!(output.status.code(), Some(process::LOST.into()));
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_device_that_is_lost_while_a_model_is_loaded_ends_the_process() {
    let error = LoadError::new("model.safetensors", "the device is lost: an illegal address was read");
    if is_child() {
        process::give_up_if_lost("some", &error);
        assert_eq!(process::giving_up(), None, "one that cannot be loaded is no reason");
        process::give_up_if_lost("some", &error.with_lost(true));
        assert_eq!(process::giving_up(), Some(process::LOST));
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let (output, _) = child("a_device_that_is_lost_while_a_model_is_loaded_ends_the_process");
    assert_eq!(output.status.code(), Some(process::LOST.into()));
}

#[test]
fn a_step_that_hangs_ends_the_process_and_the_log_says_which() {
    if is_child() {
        let level = "info".parse().unwrap();
        let options = telemetry::Options {
            level,
            format: telemetry::Format::Text,
            otlp_endpoint: None,
            endpoint_of_cluster: false,
        };
        let _telemetry = telemetry::init(&options).unwrap();
        let runtime = runtime();
        let (generator, mut stream) = generate(&runtime, Duration::from_secs(60), Some(Duration::from_millis(300)), 5);
        // Whoever has an answer under way is told; the parent looks for the line, since the process ends in any case.
        let mut last = None;
        while let Some(event) = runtime.block_on(std::future::poll_fn(|cx| stream.poll_next(cx))) {
            last = Some(event);
        }
        eprintln!("the answer ended as such: {}", last.is_some_and(|last: Event| last.is_last()));
        let asked = runtime.block_on(generator.admit(request(5), Vec::new())).unwrap_err();
        assert_eq!(asked, Error::Unavailable("the model's engine has ended".into()));
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(process::giving_up(), Some(process::HUNG));
        assert!(generator.running().broken().is_some(), "and whoever asks for liveness hears no");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let (output, took) = child("a_step_that_hangs_ends_the_process_and_the_log_says_which");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(process::HUNG.into()), "{told}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(told.contains("300ms") && told.contains("sampling step 1: 3 rows of 1 sequences"), "{told}");
    assert!(told.lines().any(|line| line == "the answer ended as such: false"), "{told}");
}

#[test]
fn a_device_that_hangs_while_a_model_is_loaded_ends_the_process() {
    if is_child() {
        let level = "info".parse().unwrap();
        let options = telemetry::Options {
            level,
            format: telemetry::Format::Text,
            otlp_endpoint: None,
            endpoint_of_cluster: false,
        };
        let _telemetry = telemetry::init(&options).unwrap();
        let calls = Calls::default();
        let _watch =
            Loading::watch("while model 'some' was loaded".into(), &calls, Duration::from_millis(300)).unwrap();
        calls.during(|| std::thread::sleep(Duration::from_secs(60)));
        return;
    }
    let (output, took) = child("a_device_that_hangs_while_a_model_is_loaded_ends_the_process");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(process::HUNG.into()), "{told}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(told.contains("300ms") && told.contains("model 'some' was loaded"), "{told}");
}

#[test]
fn a_model_that_is_long_in_loading_hangs_in_nothing() {
    let (calls, longest) = (Calls::default(), Duration::from_secs(1));
    let watch = Loading::watch("while model 'some' was loaded".into(), &calls, longest).unwrap();
    // Calls that return, and what is read between them, however long it takes.
    (0..20).for_each(|_| calls.during(|| std::thread::sleep(longest / 10)));
    calls.during(|| calls.between(|| std::thread::sleep(2 * longest)));
    drop(watch);
    // Nobody looks any more.
    calls.during(|| std::thread::sleep(2 * longest));
    assert_eq!(process::giving_up(), None);
}

#[test]
fn steps_that_are_slow_together_hang_in_nothing() {
    let runtime = runtime();
    let (_generator, stream) = generate(&runtime, Duration::from_millis(100), Some(Duration::from_secs(1)), 20);
    assert_eq!(tokens(&runtime, stream), 20);
    assert_eq!(process::giving_up(), None);
}

#[test]
fn where_no_time_is_stated_a_step_may_take_any() {
    let runtime = runtime();
    let (_generator, stream) = generate(&runtime, Duration::from_millis(500), None, 1);
    assert_eq!(tokens(&runtime, stream), 1);
    assert_eq!(process::giving_up(), None);
}
