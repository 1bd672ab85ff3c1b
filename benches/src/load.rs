//! The two loops: closed (each caller sends when it has its answer) and open (requests are due at fixed times).
//!
//! An open loop measures from when a request was due, not from when a caller was free to send it: a server that stalls
//! is charged for every request that should have been sent meanwhile. How a request is made is a [`Caller`]'s business.
//! Everything runs on one thread, so that the server under test keeps the other cores.

use crate::Failure;
use crate::histogram::Histogram;
use crate::process::{self, Usage};
use crate::report::{Report, Server};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

/// How to load, whatever the protocol.
#[derive(clap::Args)]
pub(crate) struct Plan {
    /// Requests in flight, each on a connection of its own
    #[arg(long, default_value_t = 1)]
    pub(crate) concurrency: usize,
    /// Length of the measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Load before the measurement begins, in seconds
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Requests a second (open loop) instead of as many as possible (closed loop)
    #[arg(long)]
    rate: Option<f64>,
    /// File with the request body; may be repeated: requests have them in turn, whoever sends them
    #[arg(long)]
    body: Vec<PathBuf>,
    /// File with the only good answer's body
    #[arg(long)]
    expect: Option<PathBuf>,
    /// File to write the first good answer's body to
    #[arg(long)]
    save: Option<PathBuf>,
    /// Process of the server, to measure with its descendants
    #[arg(long)]
    pid: Option<u32>,
    /// Succeed even if some answers are bad
    #[arg(long)]
    allow_errors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Plan {
    /// Requests, which `make` makes of bodies; of an empty one where there is none.
    pub(crate) fn requests<T>(&self, make: impl Fn(&[u8]) -> T) -> Result<Turns<T>, Failure> {
        let bodies: Result<Vec<_>, _> = self.body.iter().map(|path| read(path)).collect();
        let mut made: Vec<T> = bodies?.iter().map(|body| make(body)).collect();
        if made.is_empty() {
            made.push(make(&[]));
        }
        Ok(Turns(Rc::new((made, Cell::new(0)))))
    }

    /// What is done with the bodies of answers.
    pub(crate) fn answers(&self) -> Result<Answers, Failure> {
        let expected = self.expect.as_deref().map(read).transpose()?.map(Rc::from);
        Ok(Answers { expected, save: self.save.clone() })
    }
}

/// What all callers take in turn.
pub(crate) struct Turns<T>(Rc<(Vec<T>, Cell<usize>)>);

impl<T> Clone for Turns<T> {
    fn clone(&self) -> Self {
        Turns(self.0.clone())
    }
}

impl<T: Clone> Turns<T> {
    /// Whose turn it is.
    pub(crate) fn take(&self) -> T {
        let (all, next) = &*self.0;
        let turn = next.get();
        next.set((turn + 1) % all.len());
        all[turn].clone()
    }
}

/// What is done with the bodies of answers.
#[derive(Clone)]
pub(crate) struct Answers {
    expected: Option<Rc<[u8]>>,
    save: Option<PathBuf>,
}

impl Answers {
    /// Takes the body of an answer that is good so far.
    ///
    /// # Errors
    /// It is not the expected one, or cannot be saved.
    pub(crate) fn take(&mut self, body: &[u8]) -> Result<(), String> {
        if self.expected.as_deref().is_some_and(|expected| expected != body) {
            return Err("unexpected body".into());
        }
        match self.save.take() {
            Some(path) => std::fs::write(&path, body).map_err(|error| format!("{}: {error}", path.display())),
            None => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Something that makes one request at a time.
pub(crate) trait Caller {
    /// Makes one request; what the error says is what errors are counted by.
    async fn call(&mut self) -> Result<(), String>;
}

/// What was seen.
#[derive(Default)]
struct Tally {
    latency: Histogram,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, latency: Duration, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.latency.add(latency.as_nanos() as u64),
            Err(kind) => *self.errors.entry(kind).or_default() += 1,
        }
    }
}

/// When requests count.
#[derive(Clone, Copy)]
struct Window {
    start: Instant,
    end: Instant,
}

/// After a failure, so that a server that refuses connections is not hammered.
const PAUSE: Duration = Duration::from_millis(1);

/// For answers still under way when the measurement ends.
const DRAIN: Duration = Duration::from_secs(10);

/// Requests that may be due and not sent; an open loop further behind than this stops being open.
const BACKLOG: usize = 1 << 18;

/// Runs a plan on callers and prints the report.
///
/// # Errors
/// No good answer, or a bad one where none is allowed.
pub(crate) fn run<C: Caller + 'static>(plan: &Plan, target: &str, callers: Vec<C>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let report = local.block_on(&runtime, measure(plan, target, callers));
    // The pacing thread may be asleep until its next request.
    runtime.shutdown_background();
    let report = report?;
    if plan.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    match report.errors.values().sum::<u64>() {
        _ if report.requests == 0 => Err("no good answer".into()),
        errors if errors > 0 && !plan.allow_errors => Err(format!("{errors} bad answers").into()),
        _ => Ok(()),
    }
}

async fn measure<C: Caller + 'static>(plan: &Plan, target: &str, callers: Vec<C>) -> Result<Report, Failure> {
    let begin = Instant::now();
    let start = begin + Duration::try_from_secs_f64(plan.warmup)?;
    let window = Window { start, end: start + Duration::try_from_secs_f64(plan.seconds)? };
    let tally = Rc::new(RefCell::new(Tally::default()));
    let mut tasks = JoinSet::new();
    let due = plan.rate.map(|rate| Rc::new(Mutex::new(due_times(rate, begin, window.end))));
    for caller in callers {
        match &due {
            Some(due) => tasks.spawn_local(open_loop(caller, due.clone(), window, tally.clone())),
            None => tasks.spawn_local(closed_loop(caller, window, tally.clone())),
        };
    }
    let look = |plan: &Plan| plan.pid.map(process::usage).transpose();
    tokio::time::sleep_until(window.start.into()).await;
    let (before, client_before, looked) = (look(plan)?, process::own_cpu(), Instant::now());
    tokio::time::sleep_until(window.end.into()).await;
    let (after, client_after, elapsed) = (look(plan)?, process::own_cpu(), looked.elapsed());
    let _ = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    let mut unfinished = tasks.len();
    tasks.shutdown().await;
    if let Some(due) = due {
        unfinished += due.lock().await.len();
    }
    let mut tally = std::mem::take(&mut *tally.borrow_mut());
    if unfinished > 0 {
        tally.errors.insert("unfinished".into(), unfinished as u64);
    }
    let client = client_after.saturating_sub(client_before);
    Ok(summary(plan, target, tally, Costs { elapsed, client, server: before.zip(after) }))
}

/// What the measurement cost.
struct Costs {
    elapsed: Duration,
    client: Duration,
    server: Option<(Usage, Usage)>,
}

fn summary(plan: &Plan, target: &str, tally: Tally, costs: Costs) -> Report {
    let requests = tally.latency.count();
    Report {
        target: target.to_owned(),
        concurrency: plan.concurrency,
        rate: plan.rate,
        seconds: plan.seconds,
        requests,
        requests_per_second: requests as f64 / plan.seconds,
        latency: (&tally.latency).into(),
        errors: tally.errors,
        client_cpu_us_per_request: costs.client.as_secs_f64() * 1e6 / requests.max(1) as f64,
        server: costs.server.map(|(before, after)| Server::between(&before, &after, costs.elapsed, requests)),
    }
}

/// Sends when the last answer is there.
async fn closed_loop<C: Caller>(mut caller: C, window: Window, tally: Rc<RefCell<Tally>>) {
    loop {
        let sent = Instant::now();
        if sent >= window.end {
            return;
        }
        let outcome = caller.call().await;
        let failed = outcome.is_err();
        if sent >= window.start {
            tally.borrow_mut().add(sent.elapsed(), outcome);
        }
        if failed {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Sends what is due, oldest first.
async fn open_loop<C: Caller>(
    mut caller: C,
    queue: Rc<Mutex<mpsc::Receiver<Instant>>>,
    window: Window,
    tally: Rc<RefCell<Tally>>,
) {
    loop {
        let due = queue.lock().await.recv().await;
        let Some(due) = due else { return };
        let outcome = caller.call().await;
        if due >= window.start {
            tally.borrow_mut().add(due.elapsed(), outcome);
        }
    }
}

/// The times at which requests are due, handed out when they come. A thread sleeps until each, because the runtime's
/// own timer only knows milliseconds.
fn due_times(rate: f64, begin: Instant, end: Instant) -> mpsc::Receiver<Instant> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::task::spawn_blocking(move || {
        for request in 0u64.. {
            let due = begin + Duration::from_secs_f64(request as f64 / rate);
            if due >= end {
                return;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.blocking_send(due).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::{Caller, Plan, measure};
    use crate::report::Report;
    use clap::Parser;
    use std::time::Duration;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        plan: Plan,
    }

    /// Answers at once, but for one call that takes 300 ms.
    struct Stalling(u32);

    impl Caller for Stalling {
        async fn call(&mut self) -> Result<(), String> {
            self.0 += 1;
            if self.0 == 20 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            } else {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if self.0 == 30 { Err("bad".into()) } else { Ok(()) }
        }
    }

    fn report(arguments: &str) -> Report {
        let plan = Command::parse_from(arguments.split(' ')).plan;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, measure(&plan, "stalling", vec![Stalling(0)])).unwrap()
    }

    fn latency(report: &Report, share: &str) -> f64 {
        serde_json::to_value(&report.latency).unwrap()[share].as_f64().unwrap()
    }

    #[test]
    fn an_open_loop_charges_a_stall_to_every_request_due_meanwhile() {
        let report = report("load --rate 100 --seconds 1 --warmup 0");
        assert_eq!((report.requests, report.errors["bad"]), (99, 1));
        // Some 30 of 100 requests were due during the stall: the mean of their waits is half of it.
        assert!(latency(&report, "p90_us") > 150_000.0, "{report}");
    }

    #[test]
    fn a_closed_loop_sees_a_stall_once() {
        let report = report("load --seconds 0.6 --warmup 0");
        assert_eq!(report.errors["bad"], 1);
        assert!(latency(&report, "max_us") > 290_000.0 && latency(&report, "p90_us") < 100_000.0, "{report}");
    }
}
