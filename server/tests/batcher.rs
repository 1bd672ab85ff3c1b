//! The batcher over a predictor whose answers are known: batching changes nothing but the number of calls, and what
//! goes wrong goes wrong for one.

use backends::{Call, DataType, InferError, Parameters, Port, Predictor, Profile, Signature, Tensor};
use proptest::prelude::*;
use server::batcher::{Batcher, Job, Options};
use server::error::Error;
use server::stats::Stats;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Doubles numbers. A negative one is a bad request, 666 a panic.
#[derive(Debug)]
struct Doubler {
    signature: Signature,
    single_call: Duration,
    work: Duration,
    calls: Arc<AtomicUsize>,
    order: Arc<Mutex<Vec<f32>>>,
}

impl Predictor for Doubler {
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn profile(&self) -> Profile {
        Profile {
            batchable: true,
            instances: 1,
            single_call: self.single_call,
            steady: true,
            computes: false,
            preferred_batch: 64,
            device: "cpu".into(),
            notes: Vec::new(),
            bytes: 0,
        }
    }
    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.work);
        let values = call.inputs[0].values::<f32>().expect("32-bit floats");
        self.order.lock().expect("not poisoned").extend_from_slice(values);
        assert!(!values.contains(&666.0), "the number of the beast");
        if let Some(bad) = values.iter().find(|v| **v < 0.0) {
            return Err(InferError::invalid(format!("{bad} is negative")));
        }
        let doubled: Vec<f32> = values.iter().map(|v| v * 2.0).collect();
        Ok(vec![Tensor::from_vec("output-0", call.inputs[0].shape().to_vec(), doubled).expect("fits")])
    }
}

struct Bench {
    batcher: Batcher,
    calls: Arc<AtomicUsize>,
    order: Arc<Mutex<Vec<f32>>>,
}

fn signature(inputs: Vec<Port>) -> Signature {
    Signature { inputs, outputs: vec![], strict: false, feature_names: vec![], platform: backends::Platform::Xgboost }
}

fn bench(single_call: Duration, work: Duration, options: Options) -> Bench {
    bench_of(signature(vec![]), single_call, work, options)
}

fn bench_of(signature: Signature, single_call: Duration, work: Duration, options: Options) -> Bench {
    let (calls, order) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<f32>>>::default());
    let doubler = Doubler { signature, single_call, work, calls: calls.clone(), order: order.clone() };
    Bench { batcher: Batcher::new(Box::new(doubler), options, Arc::new(Stats::default())), calls, order }
}

fn job(values: &[f32]) -> Job {
    Job {
        inputs: vec![Tensor::from_vec("x", vec![values.len(), 1], values.to_vec()).expect("fits")],
        outputs: vec![],
        parameters: Parameters::new(),
        deadline: None,
        priority: 1,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

type Doubled = Result<Vec<f32>, Error>;

async fn doubled(batcher: Batcher, job: Job) -> Doubled {
    batcher.run(job).await.map(|(outputs, _)| outputs[0].values::<f32>().expect("32-bit floats").to_vec())
}

/// All at once; answers in the order of the requests.
async fn all(batcher: &Batcher, requests: &[Vec<f32>]) -> Vec<Doubled> {
    let tasks: Vec<_> = requests.iter().map(|values| tokio::spawn(doubled(batcher.clone(), job(values)))).collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("no panic reaches a request"));
    }
    answers
}

/// Long enough that nothing runs on the caller's thread.
const SLOW: Duration = Duration::from_millis(1);

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_batch_answers_as_its_requests_would_alone(
        requests in prop::collection::vec(prop::collection::vec(-3i32..40, 0..9), 1..30),
        max_rows in 1usize..40,
    ) {
        let requests: Vec<Vec<f32>> =
            requests.into_iter().map(|values| values.into_iter().map(|v| v as f32).collect()).collect();
        let options = Options { max_rows, ..Options::default() };
        let bench = bench(SLOW, Duration::from_micros(200), options);
        let answers = runtime().block_on(all(&bench.batcher, &requests));
        for (request, answer) in requests.iter().zip(answers) {
            match request.iter().find(|v| **v < 0.0) {
                Some(bad) => prop_assert_eq!(answer, Err(Error::Refused(format!("{bad} is negative")))),
                None => prop_assert_eq!(answer, Ok(request.iter().map(|v| v * 2.0).collect())),
            }
        }
    }
}

#[test]
fn requests_that_wait_run_together() {
    let bench = bench(SLOW, Duration::from_millis(30), Options::default());
    let requests: Vec<Vec<f32>> = (0..40).map(|i| vec![i as f32]).collect();
    let answers = runtime().block_on(all(&bench.batcher, &requests));
    assert!(answers.iter().all(Result::is_ok));
    let calls = bench.calls.load(Ordering::Relaxed);
    assert!(calls < 10, "{calls} calls for 40 requests");
}

#[test]
fn a_cheap_request_runs_where_it_stands() {
    let bench = bench(Duration::from_micros(1), Duration::ZERO, Options::default());
    // No runtime at all: nothing may be handed to another thread.
    let answer = futures_lite_block_on(doubled(bench.batcher.clone(), job(&[2.0])));
    assert_eq!(answer, Ok(vec![4.0]));
}

/// Polls a future that never waits.
fn futures_lite_block_on<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("it waited"),
    }
}

#[test]
fn a_panic_fails_its_batch_and_nothing_else() {
    let bench = bench(SLOW, Duration::ZERO, Options::default());
    runtime().block_on(async {
        let answer = doubled(bench.batcher.clone(), job(&[666.0])).await;
        assert!(matches!(&answer, Err(Error::Internal(what)) if what.contains("the beast")), "{answer:?}");
        assert_eq!(doubled(bench.batcher.clone(), job(&[1.0])).await, Ok(vec![2.0]));
    });
}

#[test]
fn a_full_queue_refuses_at_once() {
    let options = Options { queue: 3, max_rows: 1, ..Options::default() };
    let bench = bench(SLOW, Duration::from_millis(50), options);
    let requests: Vec<Vec<f32>> = (0..20).map(|i| vec![i as f32]).collect();
    let answers = runtime().block_on(all(&bench.batcher, &requests));
    let refused = answers.iter().filter(|answer| matches!(answer, Err(Error::Overloaded(_)))).count();
    let answered = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(refused + answered, 20);
    assert!((3..=5).contains(&answered), "{answered} answered: three that waited, and those that ran meanwhile");
}

#[test]
fn a_request_past_its_deadline_is_not_computed() {
    let options = Options { max_rows: 1, ..Options::default() };
    let bench = bench(SLOW, Duration::from_millis(400), options);
    runtime().block_on(async {
        let first = tokio::spawn(doubled(bench.batcher.clone(), job(&[1.0])));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let late = Job { deadline: Some(Instant::now() + Duration::from_millis(5)), ..job(&[2.0]) };
        assert_eq!(doubled(bench.batcher.clone(), late).await, Err(Error::Deadline));
        assert_eq!(first.await.expect("no panic"), Ok(vec![2.0]));
    });
    assert_eq!(*bench.order.lock().expect("not poisoned"), [1.0]);
}

#[test]
fn whoever_leaves_is_not_computed() {
    let options = Options { max_rows: 1, ..Options::default() };
    let bench = bench(SLOW, Duration::from_millis(400), options);
    runtime().block_on(async {
        let first = tokio::spawn(doubled(bench.batcher.clone(), job(&[1.0])));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let gone = tokio::spawn(doubled(bench.batcher.clone(), job(&[2.0])));
        tokio::time::sleep(Duration::from_millis(10)).await;
        gone.abort();
        let last = doubled(bench.batcher.clone(), job(&[3.0])).await;
        assert_eq!(last, Ok(vec![6.0]));
        assert!(first.await.is_ok());
    });
    assert_eq!(*bench.order.lock().expect("not poisoned"), [1.0, 3.0]);
}

#[test]
fn the_urgent_go_first() {
    let options = Options { max_rows: 1, ..Options::default() };
    let bench = bench(SLOW, Duration::from_millis(400), options);
    runtime().block_on(async {
        let mut tasks = vec![tokio::spawn(doubled(bench.batcher.clone(), job(&[1.0])))];
        tokio::time::sleep(Duration::from_millis(20)).await;
        for (value, priority) in [(2.0, 9), (3.0, 5), (4.0, 1), (5.0, 5)] {
            tasks.push(tokio::spawn(doubled(bench.batcher.clone(), Job { priority, ..job(&[value]) })));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        for task in tasks {
            assert!(task.await.expect("no panic").is_ok());
        }
    });
    assert_eq!(*bench.order.lock().expect("not poisoned"), [1.0, 4.0, 3.0, 5.0, 2.0]);
}

#[test]
fn what_has_a_value_for_what_may_be_left_out_is_computed_alone() {
    let port = Port {
        name: "scale".into(),
        datatype: DataType::Fp32,
        also: vec![],
        shape: vec![2],
        any_shape: false,
        optional: true,
        labels: vec![],
    };
    let bench = bench_of(signature(vec![port]), SLOW, Duration::from_millis(200), Options::default());
    let scaled = |value: f32| {
        let mut job = job(&[value]);
        job.inputs.push(Tensor::from_vec("scale", vec![2], vec![1f32, 1.0]).expect("fits"));
        job
    };
    runtime().block_on(async {
        let mut tasks = vec![tokio::spawn(doubled(bench.batcher.clone(), job(&[1.0])))];
        tokio::time::sleep(Duration::from_millis(20)).await;
        for job in [job(&[2.0]), job(&[3.0]), scaled(4.0), job(&[5.0]), job(&[6.0])] {
            tasks.push(tokio::spawn(doubled(bench.batcher.clone(), job)));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        for task in tasks {
            assert!(task.await.expect("no panic").is_ok());
        }
    });
    assert_eq!(*bench.order.lock().expect("not poisoned"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(bench.calls.load(Ordering::Relaxed), 4, "the first, two, the one that is alone, two");
}

/// Computes as long as somebody waits, and says how many rows it has.
#[derive(Debug)]
struct Patient {
    signature: Signature,
    rows: Arc<AtomicUsize>,
}

impl Predictor for Patient {
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn profile(&self) -> Profile {
        Profile {
            batchable: true,
            instances: 1,
            single_call: SLOW,
            steady: true,
            computes: false,
            preferred_batch: 64,
            device: "cpu".into(),
            notes: Vec::new(),
            bytes: 0,
        }
    }
    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        loop {
            self.rows.store(call.inputs[0].rows(), Ordering::Relaxed);
            if let Err(over) = call.check() {
                self.rows.store(0, Ordering::Relaxed);
                return Err(over);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_batch_goes_on_until_the_last_has_left() {
    let rows = Arc::<AtomicUsize>::default();
    let patient = Patient { signature: signature(vec![]), rows: rows.clone() };
    let batcher = Batcher::new(Box::new(patient), Options::default(), Arc::new(Stats::default()));
    let running = async |wanted: usize| {
        let start = Instant::now();
        while rows.load(Ordering::Relaxed) != wanted {
            assert!(start.elapsed() < Duration::from_secs(20), "{wanted} rows");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    runtime().block_on(async {
        let ask = |values: &[f32]| tokio::spawn(doubled(batcher.clone(), job(values)));
        let alone = ask(&[1.0]);
        running(1).await;
        let (first, last) = (ask(&[1.0; 2]), ask(&[1.0; 3]));
        tokio::time::sleep(Duration::from_millis(20)).await;
        alone.abort();
        running(5).await;
        first.abort();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(rows.load(Ordering::Relaxed), 5, "the other one waits");
        last.abort();
        running(0).await;
    });
}
