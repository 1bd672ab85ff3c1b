//! `simulate`: the scheduler of language models under a hundred thousand requests, for each of many settings.
//!
//! Discrete events: real plans, on a device that is a formula, for clients that are random numbers. It tells how
//! settings compare, and not how fast a device is. It ends with an error where the scheduler breaks a promise: every
//! request ends exactly once, with all its tokens if nobody ended it, and all blocks come back.
//!
//! | file | what |
//! |---|---|
//! | `workload` | who asks for what |
//! | `clients` | who asks when, with which tokens, who leaves |
//! | `device` | what a step takes |
//! | `simulation` | the run |
//! | `tally` `table` | what is counted, and how it is told |
//! | `sweep` | which settings are compared |
//! | `random` | chance that is the same in every run |

mod clients;
mod device;
mod random;
mod simulation;
mod sweep;
mod table;
mod tally;
#[cfg(test)]
mod tests;
mod workload;

use crate::Failure;
use serde::Serialize;
use simulation::simulate;
use sweep::{CASES, Case, Objective};
use tally::Row;

/// Arguments of `simulate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Requests for each setting
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,
    /// What chance depends on: equal seeds, equal reports
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this workload
    #[arg(long, value_parser = ["chat", "documents", "mixed"])]
    workload: Option<String>,
    /// Only this device
    #[arg(long, value_parser = ["gpu", "cpu"])]
    device: Option<String>,
    /// Times as many requests a second
    #[arg(long, default_value_t = 1.0)]
    load: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    workload: &'static str,
    device: &'static str,
    requests: u64,
    seed: u64,
    /// Requests a second, if nobody is turned away or leaves.
    rate: f64,
    objective: Objective,
    /// What the slowdowns of a row are of.
    streams: Vec<&'static str>,
    rows: Vec<Row>,
}

impl Args {
    fn takes(&self, case: &Case) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
        is(&self.workload, case.workload) && is(&self.device, case.device.name)
    }
}

/// Simulates all cases that are asked for, and prints the report.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // A rate of zero would never come to an end.
    if !args.load.is_finite() || args.load <= 0.0 {
        return Err(format!("--load is {}; expected a number above 0", args.load).into());
    }
    let mut reports = Vec::new();
    for case in CASES.iter().filter(|case| args.takes(case)) {
        let rows = sweep(case, args)?;
        reports.push(Report {
            workload: case.workload,
            device: case.device.name,
            requests: args.requests,
            seed: args.seed,
            rate: case.rate * args.load,
            objective: case.objective,
            streams: case.streams.iter().map(|stream| stream.name).collect(),
            rows,
        });
    }
    if reports.is_empty() {
        return Err("this workload is not simulated on this device".into());
    }
    if args.json {
        println!("{}", serde_json::to_string(&reports)?);
    }
    Ok(())
}

/// All settings of a case. Each is printed when it is done: all of them take minutes.
fn sweep(case: &Case, args: &Args) -> Result<Vec<Row>, Failure> {
    if !args.json {
        println!("{}", table::head(case, args.requests, args.load));
    }
    let mut rows = Vec::new();
    for &(name, change) in case.variants {
        let mut setup = case.setup;
        change(&mut setup);
        setup.load *= args.load;
        let row = simulate(case, &setup, name, args.seed, args.requests)
            .map_err(|failure| format!("{} on {}, {name}: {failure}", case.workload, case.device.name))?;
        if !args.json {
            println!("{}", table::row(&row));
        }
        rows.push(row);
    }
    if !args.json {
        println!();
    }
    Ok(rows)
}
