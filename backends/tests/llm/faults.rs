//! GPUs that fail while a model is loaded: whether it ends there, and what it ends.

use crate::cuda::{device, options, prompt_logprobs};
use crate::parity::goldens;
use backends::LoadError;
use backends::llm::cuda::CudaExecutor;
use backends::llm::cuda::Options;
use backends::llm::cuda::Watched;
use backends::llm::executor::{Executor, Failure, Masks};
use backends::llm::plan::{Chunk, Fill, Input, Plan};
use backends::llm::progress::Calls;
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::sequence::{GroupId, SequenceId};
use kernels::cuda::{Device, Fault, Graph, Launch, Pending, Slice, Units};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::time::Duration;

/// More calls than loading takes.
const PLENTY: usize = 1 << 20;

/// What a device is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Reserve,
    Upload,
    Launch,
    Wait,
    Capture,
}

/// A device that does what another does, but for calls of one kind after the first `good`. With a barrier it stops
/// there once, until somebody has waited at it twice, and does them all.
struct Faulty {
    inner: Box<dyn Device>,
    call: Call,
    good: Arc<AtomicUsize>,
    fault: Fault,
    prepared: BTreeSet<&'static str>,
    /// From now on no kernel is loaded any more.
    ready: Arc<AtomicBool>,
    captures: bool,
    stop: Option<Arc<Barrier>>,
}

impl Faulty {
    fn new(call: Call, good: usize, fault: &Fault) -> Box<Self> {
        let (fault, prepared, good) = (fault.clone(), BTreeSet::new(), Arc::new(good.into()));
        let (ready, captures, stop) = (Arc::default(), false, None);
        Box::new(Faulty { inner: device(), call, good, fault, prepared, ready, captures, stop })
    }

    fn take(&mut self, call: Call) -> Result<(), Fault> {
        let one_less = |good: usize| good.checked_sub(1);
        if call != self.call || self.good.fetch_update(Relaxed, Relaxed, one_less).is_ok() {
            return Ok(());
        }
        let stop = self.stop.take().ok_or_else(|| self.fault.clone())?;
        self.good.store(PLENTY, Relaxed);
        stop.wait();
        stop.wait();
        Ok(())
    }
}

impl Device for Faulty {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn processors(&self) -> u32 {
        self.inner.processors()
    }
    fn matrix_units(&self) -> Units {
        self.inner.matrix_units()
    }
    fn reserve(&mut self, bytes: usize) -> Result<Slice<u8>, Fault> {
        self.take(Call::Reserve)?;
        self.inner.reserve(bytes)
    }
    fn launch(&mut self, launch: &Launch) -> Result<(), Fault> {
        let late = self.captures || self.ready.load(Relaxed);
        assert!(!late || self.prepared.contains(launch.kernel()), "{} is loaded too late", launch.kernel());
        self.prepared.insert(launch.kernel());
        self.take(Call::Launch)?;
        self.inner.launch(launch)
    }
    fn upload(&mut self, to: Slice<u8>, bytes: &[u8]) -> Result<(), Fault> {
        self.take(Call::Upload)?;
        self.inner.upload(to, bytes)
    }
    fn download(&mut self, from: Slice<u8>) -> Result<Pending, Fault> {
        self.inner.download(from)
    }
    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, Fault> {
        self.take(Call::Wait)?;
        self.inner.wait(pending)
    }
    fn prepare(&mut self, launch: &Launch) -> Result<(), Fault> {
        assert!(!self.captures, "{} is loaded too late", launch.kernel());
        self.prepared.insert(launch.kernel());
        Ok(())
    }
    fn begin_capture(&mut self) -> Result<(), Fault> {
        self.take(Call::Capture)?;
        self.captures = true;
        self.inner.begin_capture()
    }
    fn end_capture(&mut self) -> Result<Graph, Fault> {
        self.captures = false;
        self.inner.end_capture()
    }
    fn replay(&mut self, graph: Graph) -> Result<(), Fault> {
        self.inner.replay(graph)
    }
    fn seconds(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<(), Fault>) -> Result<f64, Fault> {
        self.inner.seconds(work)
    }
}

fn load(device: Box<dyn Device>) -> Result<CudaExecutor, LoadError> {
    let golden = goldens("qwen3").remove(0);
    let spec = golden.spec();
    CudaExecutor::load(spec.clone(), &golden.weights(&spec), device, options(8, 64))
}

/// Whoever loads models learns whether others may still be loaded.
#[test]
fn a_device_that_is_lost_while_loading_is_told_from_one_that_refuses() {
    let lost = Fault::Lost("an illegal address was read".into());
    let refused = Fault::Call("not this".into());
    for call in [Call::Reserve, Call::Upload, Call::Launch, Call::Wait, Call::Capture] {
        let whole = Faulty::new(call, PLENTY, &lost);
        let left = whole.good.clone();
        load(whole).unwrap();
        let calls = PLENTY - left.load(Relaxed);
        assert!(calls > 1, "{call:?}");
        for good in [0, calls / 2, calls - 1] {
            let error = load(Faulty::new(call, good, &lost)).expect_err("a lost device");
            let told = error.reason.contains("the device is lost: an illegal address was read");
            assert!(error.lost && told, "{call:?} {good} of {calls}: {error:?}");
            match load(Faulty::new(call, good, &refused)) {
                Err(error) => assert!(!error.lost && error.reason.contains("not this"), "{call:?} {good}: {error:?}"),
                Ok(_) => {
                    assert!(matches!(call, Call::Capture | Call::Launch), "{call:?} {good}: graphs alone may fail")
                }
            }
        }
    }
}

/// Graphs save time and nothing else.
#[test]
fn a_device_that_captures_nothing_serves() {
    let refused = Fault::Call("it has no graphs".into());
    let tokens: Vec<u32> = (1..20).collect();
    let mut plain = load(device()).unwrap();
    let wanted = prompt_logprobs(&mut plain, &tokens, 1);
    assert_eq!(plain.remark(), None);
    for good in [0, 1, 5, 12] {
        let mut executor = load(Faulty::new(Call::Capture, good, &refused)).unwrap();
        while executor.prepare().unwrap() {}
        let remark = executor.remark().unwrap_or_default();
        assert_eq!(remark.contains("it has no graphs"), good < 12, "{good}: {remark}");
        assert_eq!(prompt_logprobs(&mut executor, &tokens, 1), wanted, "{good}");
    }
}

/// With slots for more than the buckets that are captured before it is ready.
fn load_for_many(device: Box<dyn Device>, deterministic: bool) -> Result<CudaExecutor, LoadError> {
    let golden = goldens("qwen3").remove(0);
    let spec = golden.spec();
    let options = Options { slots: 16, deterministic, ..options(16, 512) };
    CudaExecutor::load(spec.clone(), &golden.weights(&spec), device, options)
}

/// A device that is lost while nothing is asked for is told of at once, not by somebody's request.
#[test]
fn a_device_that_is_lost_in_idle_times_is_told() {
    let lost = Fault::Lost("an illegal address was read".into());
    let mut executor = load_for_many(Faulty::new(Call::Capture, 12, &lost), true).unwrap();
    let failure = executor.prepare().expect_err("a lost device");
    assert_eq!(failure, Failure::Lost("an illegal address was read".into()));
}

/// A driver loads a kernel when it is first asked for: that is before a model is ready, whatever prompts come then.
#[test]
fn kernels_of_prompts_are_loaded_before_a_model_is_ready() {
    for deterministic in [true, false] {
        let device = Faulty::new(Call::Capture, PLENTY, &Fault::Call("never".into()));
        let ready = device.ready.clone();
        let mut executor = load_for_many(device, deterministic).unwrap();
        while executor.prepare().unwrap() {}
        ready.store(true, Relaxed);
        for (step, length) in [3, 12, 20, 40, 70, 140, 300, 500].into_iter().enumerate() {
            let parameters = Parameters { frequency_penalty: step as f32 / 8.0, ..Parameters::default() };
            assert!(step_of(&mut executor, step as u64 + 1, length, parameters).is_some(), "{length} tokens");
        }
    }
}

/// What has no room shows before weights are read, with what would help.
#[test]
fn a_cache_without_room_is_told_with_what_helps() {
    let full = Fault::OutOfMemory { wanted: 3, free: 2 };
    let error = load(Faulty::new(Call::Reserve, 1, &full)).expect_err("no room");
    for part in ["its cache", "--kv-cache-bytes", "2 bytes of memory left, and 3 are needed"] {
        assert!(error.reason.contains(part), "{error:?}");
    }
}

/// A step of decoding, whose token is chosen with this temperature.
fn decode(executor: &mut CudaExecutor, step: u64, temperature: f32) -> Option<u32> {
    step_of(executor, step, 1, Parameters { temperature, ..Parameters::default() })
}

/// A step of a prompt of so many tokens.
fn step_of(executor: &mut CudaExecutor, step: u64, length: u32, parameters: Parameters) -> Option<u32> {
    let prompt: Vec<u32> = (0..length).map(|at| 5 + at % 50).collect();
    let chunk = Chunk {
        sequence: SequenceId { group: GroupId(step), copy: 0 },
        slot: 0,
        fill: Some(Fill { prompt: prompt.clone().into(), output: Vec::new() }),
        start: 0,
        length,
        input: Input::Known(prompt),
        blocks: Arc::new((0..length.div_ceil(32)).collect()),
        sample: true,
        sampling: Arc::new(Sampling::new(parameters).unwrap()),
        prompt_logprobs: 0,
    };
    let plan = Plan { step, chunks: vec![chunk], stale: Vec::new(), preempted: Vec::new() };
    let ticket = executor.launch(&plan).unwrap();
    executor.sample(&ticket, &Masks::default()).unwrap();
    executor.collect(ticket).unwrap()[0].token
}

/// No request waits for a capture: small batches find theirs, and the sampler's, whether they are greedy or draw.
#[test]
fn graphs_of_small_batches_are_there_before_a_model_is_ready() {
    let late = Fault::Call("it is too late for graphs".into());
    let device = Faulty::new(Call::Capture, PLENTY, &late);
    let left = device.good.clone();
    let mut executor = load(device).unwrap();
    // Of 1, 2, 4 and 8 sequences: the step, what greedy rows need of the sampler, and all of it.
    assert_eq!(PLENTY - left.load(Relaxed), 4 * 3);
    assert!(!executor.prepare().unwrap());
    left.store(0, Relaxed);
    assert!(decode(&mut executor, 1, 0.0).is_some() && decode(&mut executor, 2, 1.0).is_some());
    assert_eq!(executor.remark(), None);
}

/// Whoever looks sees that a call does not return, and none while the host reads files.
#[test]
fn calls_of_a_device_are_seen_while_a_model_is_loaded() {
    let lost = Fault::Lost("an illegal address was read".into());
    for (call, good) in [(Call::Reserve, 0), (Call::Upload, 3), (Call::Launch, 5), (Call::Wait, 1), (Call::Capture, 2)]
    {
        let (calls, stop) = (Calls::default(), Arc::new(Barrier::new(2)));
        let mut device = Faulty::new(call, good, &lost);
        device.stop = Some(stop.clone());
        let watched = Box::new(Watched::new(device, calls.clone()));
        std::thread::scope(|scope| {
            let loads = scope.spawn(|| load(watched).map(drop));
            stop.wait();
            let seen = calls.under_way();
            std::thread::sleep(Duration::from_millis(10));
            assert!(seen.is_some() && calls.under_way() == seen, "{call:?}");
            stop.wait();
            loads.join().unwrap().unwrap();
        });
        assert_eq!(calls.under_way(), None, "{call:?}");
    }
    let calls = Calls::default();
    let mut rounds = 0;
    let mut read = |_: &mut [u8]| {
        rounds += 1;
        assert_eq!(calls.under_way(), None);
        Vec::new()
    };
    Watched::new(device(), calls.clone()).upload_rounds(64, &mut read).unwrap();
    assert_eq!((rounds, calls.under_way()), (1, None));
}
