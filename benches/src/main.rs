//! `tensorgate-benches`: loads servers, times engines, and gives both something to be compared with.
//!
//! Each subcommand is a module and prints one report, as text or (`--json`) as JSON. Which servers are compared, and
//! with what, is `run.py`'s business.

mod baseline;
mod batcher;
mod codec;
mod forest;
mod gpu;
mod grpc;
mod histogram;
mod http1;
mod load;
mod process;
mod ready;
mod repeat;
mod report;
mod simulate;
mod trivial;

use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;
use std::process::ExitCode;

/// The server's allocator: what is timed in this process is then what the server does, and bare hyper differs from the
/// server in what it does, not in how it gets its memory.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// What went wrong, for a person to read.
type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
#[command(version, about = "Load generator and yardsticks")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load an HTTP/1.1 server with one request over and over
    Load(http1::Args),
    /// Load a gRPC server with one message over and over
    GrpcLoad(grpc::Args),
    /// Serve a fixed answer with bare hyper: what a server could reach at most
    Baseline(baseline::Args),
    /// Time a server from exec to its first good answer
    Ready(ready::Args),
    /// Time the tree engine in this process, on one thread
    Forest(forest::Args),
    /// Time language models and their kernels on a GPU, in this process
    Gpu(gpu::Args),
    /// Time reading requests and writing replies in this process
    Codec(codec::Args),
    /// Time the batcher over a predictor that does next to nothing
    Batcher(batcher::Args),
    /// Simulate the scheduler of language models under many requests, for each of many settings
    Simulate(simulate::Args),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Load(args) => http1::run(&args),
        Command::GrpcLoad(args) => grpc::run(&args),
        Command::Baseline(args) => baseline::run(&args),
        Command::Ready(args) => ready::run(&args),
        Command::Forest(args) => forest::run(&args),
        Command::Gpu(args) => gpu::run(&args),
        Command::Codec(args) => codec::run(&args),
        Command::Batcher(args) => batcher::run(&args),
        Command::Simulate(args) => simulate::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tensorgate-benches: {failure}");
            ExitCode::FAILURE
        }
    }
}
