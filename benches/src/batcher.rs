//! `batcher`: the queue before a model, over a model that does next to nothing.
//!
//! Two paths. A cheap request that finds nobody waiting runs where it stands: timed beside the bare call of the same
//! predictor. All others queue, and whoever is free takes what has gathered: throughput, waiting, and the rows that a
//! batch had, by the number of callers that each wait for their answer before they ask again.

use crate::Failure;
use crate::histogram::Histogram;
use crate::repeat::{PerCall, repeat};
use crate::trivial::{COLUMNS, INPUT, Numbers, Trivial, job};
use backends::{Call, CancelFlag, Predictor, Tensor};
use serde::Serialize;
use server::batcher::{Answer, Batcher, Options};
use server::stats::Stats;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Arguments of `batcher`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Callers at the same time; may be repeated
    #[arg(long = "callers", default_values_t = [1, 2, 4, 8, 16, 32, 64])]
    callers: Vec<usize>,
    /// How long a batch waits to fill, in microseconds
    #[arg(long, default_value_t = 0)]
    max_delay_us: u64,
    /// Time spent on each measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    /// Making the request and calling the predictor, without a batcher.
    direct: PerCall,
    /// The same through the batcher, on the caller's thread.
    inline: PerCall,
    queued: Vec<Queued>,
}

/// What so many callers got from the queue.
#[derive(Serialize)]
struct Queued {
    callers: usize,
    requests_per_second: f64,
    /// Of a batch on average; a request has one row.
    rows_per_batch: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Times both paths and prints the report.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let duration = Duration::try_from_secs_f64(args.seconds)?;
    let rows = rows()?;
    let (direct, inline) = (time_direct(&rows, duration)?, time_inline(&rows, duration)?);
    // As the server's: a worker for each core.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // No call is cheap enough to run where it stands.
    let options =
        Options { max_delay: Duration::from_micros(args.max_delay_us), inline: Duration::ZERO, ..Options::default() };
    let measure = |&callers: &usize| runtime.block_on(queued(options, callers, &rows, duration));
    let queued = args.callers.iter().map(measure).collect::<Result<Vec<_>, _>>()?;
    let report = Report { direct, inline, queued };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    for (name, time) in [("direct call", report.direct), ("inline", report.inline)] {
        println!("{name:<11}: {:>6.0} ns (median {:.0}, {} calls)", time.min_ns, time.median_ns, time.calls);
    }
    for queued in &report.queued {
        println!(
            "{:>3} callers: {:>9.0} requests/s, {:.1} rows a batch; p50 {:.1} us, p99 {:.1} us",
            queued.callers, queued.requests_per_second, queued.rows_per_batch, queued.p50_us, queued.p99_us
        );
    }
    Ok(())
}

/// Requests of one row.
fn rows() -> Result<Vec<Tensor>, Failure> {
    let mut numbers = Numbers::new();
    let row = |_| Tensor::from_vec(INPUT, vec![1, COLUMNS], numbers.take(COLUMNS));
    Ok((0..64).map(row).collect::<Result<_, _>>().map_err(|misfit| misfit.to_string())?)
}

fn time_direct(rows: &[Tensor], duration: Duration) -> Result<PerCall, Failure> {
    let (predictor, cancel) = (Trivial::new(), CancelFlag::default());
    repeat(duration, |number| {
        let job = std::hint::black_box(job(rows[number % rows.len()].clone()));
        let (inputs, outputs, parameters) = (&job.inputs[..], &job.outputs[..], &job.parameters);
        let call = Call { inputs, outputs, parameters, deadline: None, cancel: &cancel };
        std::hint::black_box(predictor.predict(&call)?);
        Ok(())
    })
}

fn time_inline(rows: &[Tensor], duration: Duration) -> Result<PerCall, Failure> {
    let batcher = Batcher::new(Box::new(Trivial::new()), Options::default(), Arc::new(Stats::default()));
    repeat(duration, |number| {
        let job = std::hint::black_box(job(rows[number % rows.len()].clone()));
        match poll_once(batcher.run(job)) {
            Poll::Ready(answer) => std::hint::black_box(answer).map(|_| ()).map_err(|error| error.message().into()),
            Poll::Pending => Err("a request queued that should have run where it stood".into()),
        }
    })
}

/// What a future has without waiting. No runtime is there to hand anything over to.
fn poll_once(future: impl Future<Output = Answer>) -> Poll<Answer> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

async fn queued(options: Options, callers: usize, rows: &[Tensor], duration: Duration) -> Result<Queued, Failure> {
    let stats = Arc::new(Stats::default());
    let batcher = Batcher::new(Box::new(Trivial::new()), options, stats.clone());
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        tasks.spawn(call_until(began + duration, batcher.clone(), rows[caller % rows.len()].clone()));
    }
    let mut waits = Histogram::default();
    while let Some(done) = tasks.join_next().await {
        waits.absorb(&done??);
    }
    let seconds = began.elapsed().as_secs_f64();
    let (batches, sum) = stats
        .batches()
        .iter()
        .map(|(rows, [(count, _), ..])| (*count, rows * count))
        .fold((0, 0), |(batches, sum), (count, rows)| (batches + count, sum + rows));
    let us = |share| waits.quantile(share) as f64 / 1e3;
    Ok(Queued {
        callers,
        requests_per_second: waits.count() as f64 / seconds,
        rows_per_batch: sum as f64 / batches.max(1) as f64,
        p50_us: us(0.5),
        p99_us: us(0.99),
    })
}

/// One caller: asks, waits, asks again.
async fn call_until(end: Instant, batcher: Batcher, row: Tensor) -> Result<Histogram, String> {
    let mut waits = Histogram::default();
    loop {
        let sent = Instant::now();
        if sent >= end {
            return Ok(waits);
        }
        batcher.run(job(row.clone())).await.map_err(|error| error.message())?;
        waits.add(sent.elapsed().as_nanos() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::{queued, rows, time_direct, time_inline};
    use server::batcher::Options;
    use std::time::Duration;

    #[test]
    fn both_paths_are_taken() {
        let (rows, duration) = (rows().unwrap(), Duration::from_millis(20));
        assert!(time_direct(&rows, duration).unwrap().min_ns > 0.0);
        assert!(time_inline(&rows, duration).unwrap().min_ns > 0.0);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = Options { inline: Duration::ZERO, ..Options::default() };
        let alone = runtime.block_on(queued(options, 1, &rows, duration)).unwrap();
        assert!(alone.requests_per_second > 0.0 && alone.rows_per_batch == 1.0);
        let many = runtime.block_on(queued(options, 32, &rows, duration)).unwrap();
        assert!((1.0..=32.0).contains(&many.rows_per_batch) && many.p99_us >= many.p50_us);
    }
}
