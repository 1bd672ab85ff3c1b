//! GPUs that fail while a model is loaded: whether it ends there, and what it ends.

use crate::cuda::{device, options, prompt_logprobs};
use crate::parity::goldens;
use backends::LoadError;
use backends::llm::cuda::CudaExecutor;
use backends::llm::cuda::Watched;
use backends::llm::executor::{Executor, Masks};
use backends::llm::plan::{Chunk, Fill, Input, Plan};
use backends::llm::progress::Calls;
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::sequence::{GroupId, SequenceId};
use kernels::cuda::{Device, Fault, Graph, Launch, Pending, Slice, Units};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
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
    captures: bool,
    stop: Option<Arc<Barrier>>,
}

impl Faulty {
    fn new(call: Call, good: usize, fault: &Fault) -> Box<Self> {
        let (fault, prepared, good) = (fault.clone(), BTreeSet::new(), Arc::new(good.into()));
        Box::new(Faulty { inner: device(), call, good, fault, prepared, captures: false, stop: None })
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
        assert!(!self.captures || self.prepared.contains(launch.kernel()), "{} is loaded too late", launch.kernel());
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

/// A step of decoding, whose token is chosen with this temperature.
fn decode(executor: &mut CudaExecutor, step: u64, temperature: f32) -> Option<u32> {
    let chunk = Chunk {
        sequence: SequenceId { group: GroupId(step), copy: 0 },
        slot: 0,
        fill: Some(Fill { prompt: Arc::from([5]), output: Vec::new() }),
        start: 0,
        length: 1,
        input: Input::Known(vec![5]),
        blocks: Arc::new(vec![2]),
        sample: true,
        sampling: Arc::new(Sampling::new(Parameters { temperature, ..Parameters::default() }).unwrap()),
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
