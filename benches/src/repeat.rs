//! Calls that are shorter than a look at the clock is exact: timed in runs of many.
//!
//! The fastest run is what the code can do; the median is what the machine let it do meanwhile. What takes milliseconds
//! is timed call by call in `forest`.

use crate::Failure;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How long one call takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PerCall {
    /// In the fastest run.
    pub(crate) min_ns: f64,
    /// In the median run.
    pub(crate) median_ns: f64,
    pub(crate) calls: usize,
}

/// Long beside the two looks at the clock around a run, short beside the time slices of other jobs.
const RUN: Duration = Duration::from_micros(100);

/// Calls for some time, with the number of each call so that it can take other data than the one before.
///
/// # Errors
/// A call's.
pub(crate) fn repeat(
    duration: Duration,
    mut call: impl FnMut(usize) -> Result<(), Failure>,
) -> Result<PerCall, Failure> {
    let mut calls = 0;
    let mut run = |length: usize| -> Result<Duration, Failure> {
        let began = Instant::now();
        for number in calls..calls + length {
            call(number)?;
        }
        calls += length;
        Ok(began.elapsed())
    };
    let mut length = 1;
    while run(length)? < RUN {
        length *= 2;
    }
    let mut runs = Vec::new();
    let began = Instant::now();
    // Three runs at least, or the median is no better than the fastest.
    while runs.len() < 3 || began.elapsed() < duration {
        runs.push(run(length)?.as_nanos() as f64 / length as f64);
    }
    runs.sort_by(f64::total_cmp);
    Ok(PerCall { min_ns: runs[0], median_ns: runs[runs.len() / 2], calls: runs.len() * length })
}

#[cfg(test)]
mod tests {
    use super::repeat;
    use std::time::Duration;

    #[test]
    fn a_call_is_timed_whatever_its_length() {
        for pause in [0, 50, 2_000].map(Duration::from_micros) {
            let mut numbers = Vec::new();
            let per_call = repeat(Duration::from_millis(5), |number| {
                numbers.push(number);
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
                Ok(())
            });
            let per_call = per_call.unwrap();
            assert!(numbers.iter().copied().eq(0..numbers.len()), "every call has its own number");
            assert!(per_call.min_ns >= pause.as_nanos() as f64 && per_call.median_ns >= per_call.min_ns);
            assert!(per_call.calls >= 3 && per_call.calls < numbers.len());
        }
    }

    #[test]
    fn a_failure_ends_it() {
        assert!(repeat(Duration::from_secs(60), |number| if number < 9 { Ok(()) } else { Err("no".into()) }).is_err());
    }
}
