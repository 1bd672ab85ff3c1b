//! A predictor behind a bounded queue.
//!
//! A request that finds nothing waiting and is cheap runs where it stands. All others queue: whoever gets the right to
//! run takes what has gathered, stacks it, predicts once, and hands every request its rows. A batch that fails is run
//! again one by one, so that one bad request fails alone; a panic fails its batch and nothing else.
//!
//! No thread waits for work: a drain runs on the blocking pool only while there is something queued.

use crate::batch::{Batch, Bounds, Joining, Place, Waiting, by_urgency};
use crate::error::Error;
use crate::stats::{Stats, Timing};
use crate::threads;
use backends::{Call, CancelFlag, InferError, Parameter, Parameters, Predictor, Tensor};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{self, Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How a batcher gathers.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Requests that may wait.
    pub queue: usize,
    /// Rows of a batch.
    pub max_rows: usize,
    /// How long a batch waits to fill.
    pub max_delay: Duration,
    /// With so many rows it waits for no more.
    pub enough: usize,
    /// Calls up to this long run on the caller's thread.
    pub inline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            queue: 512,
            max_rows: 256,
            max_delay: Duration::ZERO,
            enough: usize::MAX,
            inline: Duration::from_micros(100),
        }
    }
}

/// One request for the predictor.
#[derive(Debug)]
pub struct Job {
    /// Inputs, checked against the signature.
    pub inputs: Vec<Tensor>,
    /// Wanted outputs; empty means all.
    pub outputs: Vec<String>,
    /// Its parameters.
    pub parameters: Parameters,
    /// When it is of no use any more.
    pub deadline: Option<Instant>,
    /// Smaller goes first.
    pub priority: u64,
}

/// Outputs, and how long they took.
pub type Answer = Result<(Vec<Tensor>, Timing), Error>;

/// Stands for somebody who waits; tells the call when they leave.
struct Present(CancelFlag);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[derive(Default)]
struct Queue {
    waiting: BTreeMap<Place, Waiting>,
    arrivals: u64,
    running: usize,
}

struct Inner {
    predictor: Box<dyn Predictor>,
    options: Options,
    instances: usize,
    bounds: Bounds,
    /// Does a row always take as long?
    steady: bool,
    /// Does a call compute on the thread that makes it, and for long?
    computes: bool,
    /// Names of inputs that may be left out.
    optional: Vec<String>,
    queue: Mutex<Queue>,
    arrived: Condvar,
    stats: Arc<Stats>,
    /// Until when the batches that run may take; by an arbitrary number.
    until: Mutex<BTreeMap<u64, Instant>>,
}

/// A predictor behind a bounded queue. Cheap to clone.
#[derive(Clone)]
pub struct Batcher(Arc<Inner>);

/// A queue that may be there, or may not any more. It is for as long as anybody waits for it, or anything runs.
#[derive(Clone)]
pub struct Weak(sync::Weak<Inner>);

impl Weak {
    /// Is it there?
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// The queue, if it is there.
    pub fn upgrade(&self) -> Option<Batcher> {
        self.0.upgrade().map(Batcher)
    }
}

impl std::fmt::Debug for Weak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Weak")
    }
}

impl std::fmt::Debug for Batcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batcher").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Batcher {
    /// Puts `predictor` behind a queue.
    pub fn new(predictor: Box<dyn Predictor>, options: Options, stats: Arc<Stats>) -> Self {
        let profile = predictor.profile();
        let bounds = Bounds {
            max_rows: options.max_rows,
            max_delay: options.max_delay,
            enough: options.enough,
            row: profile.single_call,
            batchable: profile.batchable,
        };
        let optional = predictor.signature().inputs.iter().filter(|port| port.optional);
        let optional = optional.map(|port| port.name.clone()).collect();
        Batcher(Arc::new(Inner {
            predictor,
            options,
            instances: profile.instances.max(1),
            bounds,
            steady: profile.steady,
            computes: profile.computes,
            optional,
            queue: Mutex::default(),
            arrived: Condvar::new(),
            stats,
            until: Mutex::default(),
        }))
    }

    /// The queue, without a hold on it.
    pub fn downgrade(&self) -> Weak {
        Weak(Arc::downgrade(&self.0))
    }

    /// The predictor behind the queue.
    pub fn predictor(&self) -> &dyn Predictor {
        &*self.0.predictor
    }

    /// Requests that wait.
    pub fn queued(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Does a batch run at `now` that should long have ended, [`OVERDUE`] after the last of its deadlines?
    pub fn is_stuck(&self, now: Instant) -> bool {
        let until = self.0.until.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        until.values().any(|until| *until + OVERDUE < now)
    }

    /// Answers one request.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when the queue is full; whatever the predictor says.
    pub async fn run(&self, job: Job) -> Answer {
        let inner = &self.0;
        if inner.cheap(&job) && inner.lock().waiting.is_empty() {
            return inner.run_one(&job, Duration::ZERO, &CancelFlag::default());
        }
        let present = Present(CancelFlag::default());
        let deadline = job.deadline;
        let answer = self.enqueue(job, present.0.clone())?;
        let answer = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer).await.map_err(|_| Error::Deadline)?,
            None => answer.await,
        };
        // The sender is dropped without a word only where its batch was given up.
        answer.unwrap_or_else(|_| Err(Error::Internal("a batch was given up".into())))
    }

    fn enqueue(&self, job: Job, cancel: CancelFlag) -> Result<oneshot::Receiver<Answer>, Error> {
        let (reply, answer) = oneshot::channel();
        let alone = self.0.is_alone(&job);
        let mut queue = self.0.lock();
        // Whoever left, or ran out of time and so was told, makes room for others.
        if queue.waiting.len() >= self.0.options.queue {
            queue.waiting.retain(|_, waiting| !waiting.reply.is_closed());
        }
        if queue.waiting.len() >= self.0.options.queue {
            return Err(Error::Overloaded(format!(
                "{} requests wait for this model already (--queue-size); try again later",
                queue.waiting.len()
            )));
        }
        queue.arrivals += 1;
        let place = (job.priority, queue.arrivals);
        queue.waiting.insert(place, Waiting { job, since: Instant::now(), reply, cancel, alone });
        if queue.running < self.0.instances {
            queue.running += 1;
            let inner = self.0.clone();
            match self.0.computes {
                true => threads::compute(move || inner.drain()),
                false => drop(tokio::task::spawn_blocking(move || inner.drain())),
            }
        }
        self.0.arrived.notify_all();
        Ok(answer)
    }
}

/// A call that runs so long after its deadline will not come back: calls look at their deadlines many times a second.
pub const OVERDUE: Duration = Duration::from_secs(30);

/// Rows of a request: the length of its inputs' first dimension. Of several inputs, those that may be left out are last.
pub fn rows(inputs: &[Tensor]) -> usize {
    inputs.first().map_or(1, Tensor::rows)
}

/// A batch that runs, as long as it does.
struct Running<'a> {
    until: &'a Mutex<BTreeMap<u64, Instant>>,
    number: u64,
}

impl<'a> Running<'a> {
    fn begin(until: &'a Mutex<BTreeMap<u64, Instant>>, end: Instant) -> Self {
        let mut running = until.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let number = running.last_key_value().map_or(0, |(last, _)| last + 1);
        running.insert(number, end);
        Running { until, number }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.until.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&self.number);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Must it be a call of its own? What is given in place of the model's own value holds for one request, and rows of
    /// different numbers are the model's to bring together.
    fn is_alone(&self, job: &Job) -> bool {
        let rows = rows(&job.inputs);
        let given = |input: &Tensor| self.optional.iter().any(|name| name == input.name());
        job.inputs.iter().any(|input| input.rows() != rows || given(input))
    }

    /// Would this request take less time than handing it over?
    fn cheap(&self, job: &Job) -> bool {
        let rows = rows(&job.inputs).min(1 << 20) as u32;
        // Of inputs with different numbers of rows the first says little.
        self.steady && self.bounds.row * rows <= self.options.inline && !self.is_alone(job)
    }

    /// Runs batches until nothing waits.
    fn drain(&self) {
        // Whatever becomes of a batch, who runs it goes on: what waits behind it would wait for ever.
        while std::panic::catch_unwind(AssertUnwindSafe(|| self.pass())).unwrap_or(true) {}
    }

    /// Runs a batch of what waits; was there any?
    fn pass(&self) -> bool {
        let Some(batch) = self.gather() else { return false };
        let now = Instant::now();
        let until = batch.iter().map(|waiting| waiting.job.deadline.unwrap_or(now + OVERDUE)).max().unwrap_or(now);
        let _running = Running::begin(&self.until, until);
        self.run_batch(batch);
        true
    }

    /// Takes what is waiting, up to the largest batch; gives up the right to run when there is nothing.
    fn gather(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.lock();
        let mut batch = Batch::default();
        loop {
            let now = Instant::now();
            while let Some((place, next)) = queue.waiting.pop_first() {
                let Some(next) = next.unless_over(now) else { continue };
                match batch.joining(&next, now, &self.bounds) {
                    Joining::With => batch.add(place, next),
                    Joining::After => {
                        queue.waiting.insert(place, next);
                        return Some(batch.requests());
                    }
                    Joining::Before => {
                        queue.waiting.extend(batch.waiting);
                        return Some(vec![next]);
                    }
                }
            }
            let Some(until) = batch.until(&self.bounds).filter(|until| now < *until) else { break };
            queue = match self.arrived.wait_timeout(queue, until - now) {
                Ok((queue, _)) => queue,
                Err(poisoned) => poisoned.into_inner().0,
            };
            batch = batch.of_those_who_wait(Instant::now());
        }
        if batch.is_empty() {
            queue.running -= 1;
            return None;
        }
        Some(batch.requests())
    }

    fn run_batch(&self, batch: Vec<Waiting>) {
        let now = Instant::now();
        let (live, gone): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .filter(|waiting| !waiting.reply.is_closed())
            .partition(|waiting| waiting.job.deadline.is_none_or(|deadline| deadline > now));
        for waiting in gone {
            let _ = waiting.reply.send(Err(Error::Deadline));
        }
        let mut groups: Vec<Vec<Waiting>> = Vec::new();
        for waiting in live {
            match groups.iter_mut().find(|group| stackable(&group[0].job, &waiting.job)) {
                Some(group) => group.push(waiting),
                None => groups.push(vec![waiting]),
            }
        }
        by_urgency(&mut groups, now, &self.bounds);
        groups.into_iter().for_each(|group| self.run_group(group));
    }

    /// Requests that may be one call.
    fn run_group(&self, group: Vec<Waiting>) {
        if group.len() > 1 {
            match self.run_stacked(&group) {
                Ok(answers) => {
                    for (waiting, answer) in group.into_iter().zip(answers) {
                        let _ = waiting.reply.send(Ok(answer));
                    }
                    return;
                }
                Err(error @ InferError::Panicked(_)) => {
                    for waiting in group {
                        let _ = waiting.reply.send(Err(error.clone().into()));
                    }
                    return;
                }
                // Somebody's input may be at fault: whose, running one by one will tell.
                Err(_) => {}
            }
        }
        for waiting in group {
            let answer = self.run_one(&waiting.job, waiting.since.elapsed(), &waiting.cancel);
            let _ = waiting.reply.send(answer);
        }
    }

    fn run_one(&self, job: &Job, queue: Duration, cancel: &CancelFlag) -> Answer {
        let call = Call {
            inputs: &job.inputs,
            outputs: &job.outputs,
            parameters: &job.parameters,
            deadline: job.deadline,
            cancel,
        };
        let start = Instant::now();
        let outputs = self.predict(&call)?;
        let timing = Timing { queue, infer: start.elapsed(), ..Timing::default() };
        self.stats.executed(rows(&job.inputs), &timing);
        Ok((outputs, timing))
    }

    fn run_stacked(&self, group: &[Waiting]) -> Result<Vec<(Vec<Tensor>, Timing)>, InferError> {
        let start = Instant::now();
        let first = &group[0].job;
        let stacked: Result<Vec<Tensor>, _> = (0..first.inputs.len())
            .map(|i| Tensor::stack(&group.iter().map(|waiting| &waiting.job.inputs[i]).collect::<Vec<_>>()))
            .collect();
        let inputs = stacked.map_err(|misfit| InferError::Invalid(misfit.to_string()))?;
        // The last of the deadlines: each request's own was checked when it was taken.
        let deadline = group.iter().map(|w| w.job.deadline).max_by_key(|d| (d.is_none(), *d)).flatten();
        // It goes on as long as one of them waits.
        let cancel = CancelFlag::of_all(group.iter().map(|waiting| waiting.cancel.clone()));
        let call =
            Call { inputs: &inputs, outputs: &first.outputs, parameters: &first.parameters, deadline, cancel: &cancel };
        let computing = Instant::now();
        let outputs = self.predict(&call)?;
        let splitting = Instant::now();
        let total = rows(&inputs);
        if outputs.iter().any(|output| output.shape().first() != Some(&total)) {
            return Err(InferError::Invalid("an output is not split by rows".into()));
        }
        let (mut answers, mut at) = (Vec::with_capacity(group.len()), 0);
        for waiting in group {
            let count = rows(&waiting.job.inputs);
            let split: Result<Vec<Tensor>, _> = outputs.iter().map(|output| output.slice_rows(at, count)).collect();
            let timing = Timing {
                queue: start.duration_since(waiting.since),
                input: computing - start,
                infer: splitting - computing,
                output: splitting.elapsed(),
            };
            answers.push((split.map_err(|misfit| InferError::Internal(misfit.to_string()))?, timing));
            at += count;
        }
        let timing = Timing {
            queue: Duration::ZERO,
            input: computing - start,
            infer: splitting - computing,
            output: splitting.elapsed(),
        };
        self.stats.executed(total, &timing);
        Ok(answers)
    }

    /// One call of the predictor; a panic becomes an error.
    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        std::panic::catch_unwind(AssertUnwindSafe(|| self.predictor.predict(call))).unwrap_or_else(|panic| {
            let what = threads::said(panic);
            tracing::error!(panic = %what, "a model panicked; its requests fail, it serves on");
            Err(InferError::Panicked(what))
        })
    }
}

/// May two requests be one call: the same inputs but for rows, the same wishes?
fn stackable(a: &Job, b: &Job) -> bool {
    let input = |a: &Tensor, b: &Tensor| {
        a.name() == b.name()
            && a.datatype() == b.datatype()
            && a.shape().len() == b.shape().len()
            && !a.shape().is_empty()
            && a.shape()[1..] == b.shape()[1..]
    };
    let content = |job: &Job| job.parameters.get("content_type").cloned().unwrap_or(Parameter::Bool(false));
    a.inputs.len() == b.inputs.len()
        && a.outputs == b.outputs
        && content(a) == content(b)
        && a.inputs.iter().zip(&b.inputs).all(|(a, b)| input(a, b))
        && [a, b].iter().all(|job| job.inputs.iter().all(|t| t.rows() == rows(&job.inputs)))
}
