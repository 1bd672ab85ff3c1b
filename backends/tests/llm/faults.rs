//! GPUs that fail while a model is loaded: whether it ends there, and what it ends.

use crate::cuda::{device, options, prompt_logprobs};
use crate::parity::goldens;
use backends::LoadError;
use backends::llm::cuda::CudaExecutor;
use backends::llm::executor::Executor;
use kernels::cuda::{Device, Fault, Graph, Launch, Pending, Slice, Units};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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

/// A device that does what another does, but for calls of one kind after the first `good`.
struct Faulty {
    inner: Box<dyn Device>,
    call: Call,
    good: Arc<AtomicUsize>,
    fault: Fault,
    prepared: BTreeSet<&'static str>,
    captures: bool,
}

impl Faulty {
    fn new(call: Call, good: usize, fault: &Fault) -> Box<Self> {
        let (fault, prepared, good) = (fault.clone(), BTreeSet::new(), Arc::new(good.into()));
        Box::new(Faulty { inner: device(), call, good, fault, prepared, captures: false })
    }

    fn take(&mut self, call: Call) -> Result<(), Fault> {
        let one_less = |good: usize| good.checked_sub(1);
        match call == self.call && self.good.fetch_update(Relaxed, Relaxed, one_less).is_err() {
            true => Err(self.fault.clone()),
            false => Ok(()),
        }
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
    for good in [0, 1, 5] {
        let mut executor = load(Faulty::new(Call::Capture, good, &refused)).unwrap();
        while executor.prepare() {}
        let remark = executor.remark().unwrap_or_default();
        assert_eq!(remark.contains("it has no graphs"), good < 4, "{good}: {remark}");
        assert_eq!(prompt_logprobs(&mut executor, &tokens, 1), wanted, "{good}");
    }
}
