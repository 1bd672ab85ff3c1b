//! `gpu`: language models on a GPU, in this process: steps through the engine without HTTP, and kernels by themselves.
//!
//! ```text
//! shapes.rs      the models: their sizes, made-up weights, and what a step has to move
//! engine.rs      tokens a second, and the time to the first one
//! launches.rs    kernels: bytes or operations a second of device time; which, the others say:
//! between.rs     what stands between the products      attention.rs   attention
//! products.rs    products with weights of sixteen bits stored.rs      the same with codes
//! experts.rs     mixtures of experts                   sampler.rs     choosing tokens
//! setup.rs       what is done once
//! ```
//! A row is printed as one line of JSON as soon as it is known, so that what was measured stays when time runs out. Its
//! limit is what the sizes make of the rates that the caller measured on the same card. Without a GPU, and with feature
//! `emulator`, the same code runs on the host: with `--small`, to see that it works.

mod attention;
mod between;
mod engine;
mod experts;
mod launches;
mod products;
mod sampler;
mod setup;
mod shapes;
mod stored;

use crate::Failure;
use kernels::cuda::Device;
use kernels::cuda::pairs::PAIRS;
use serde::Serialize;

/// Arguments of `gpu`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only rows whose names begin so; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// Of models: rows of how a server launches steps, of how it does not, or both
    #[arg(long, value_enum, default_value_t)]
    ways: Ways,
    /// Bytes a second that a copy within the card's memory moves, read and written, in GB
    #[arg(long)]
    copy_rate: Option<f64>,
    /// Operations a second of a large bf16 product, in TFLOP
    #[arg(long)]
    matrix_rate: Option<f64>,
    /// Device time spent on each kernel
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
    /// Toy sizes, whose figures mean nothing
    #[arg(long)]
    small: bool,
}

/// Which ways of launching a model's steps are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Ways {
    /// What a server has.
    Served,
    /// What it has not: a fault there costs none of what it has.
    Others,
    /// Both.
    #[default]
    All,
}

/// Something measured.
#[derive(Serialize)]
struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    /// What the card allows; none where its rates were not given.
    limit: Option<f64>,
}

/// What a step, or a launch, cannot do without.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    /// Bytes that may be moved while operations are done.
    bytes: usize,
    /// Operations on bf16 matrices.
    operations: usize,
    /// Bytes that are moved before or after.
    alone: usize,
}

impl Args {
    /// Is any of the rows wanted whose names begin so?
    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|begin| what.starts_with(begin) || begin.starts_with(what))
    }

    /// Is this row wanted?
    fn tells(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|begin| what.starts_with(begin))
    }

    /// Prints a row.
    fn tell(&self, what: String, value: f64, unit: &'static str, limit: Option<f64>) -> Result<(), Failure> {
        if self.tells(&what) {
            println!("{}", serde_json::to_string(&Row { what, value, unit, limit })?);
        }
        Ok(())
    }

    /// Seconds that the card takes at least.
    fn limit(&self, needs: Needs) -> Option<f64> {
        Some(needs.seconds(self.copy_rate?, self.matrix_rate?))
    }
}

impl Needs {
    /// How long a card takes that moves so many GB and does so many TFLOP in a second.
    fn seconds(self, copy: f64, matrix: f64) -> f64 {
        let (bytes, operations) = (self.bytes as f64 / (copy * 1e9), self.operations as f64 / (matrix * 1e12));
        bytes.max(operations) + self.alone as f64 / (copy * 1e9)
    }
}

/// Measures, and prints what it finds.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    eprintln!("on {}", open()?.name());
    launches::run(args)?;
    engine::run(args)
}

/// The first GPU, or the emulator. Memory goes back when it is dropped.
fn open() -> Result<Box<dyn Device>, Failure> {
    open_with(PAIRS)
}

/// The same, with products of many rows by pairs of blocks, or without.
#[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(unused_variables, reason = "nothing is opened"))]
fn open_with(pairs: bool) -> Result<Box<dyn Device>, Failure> {
    #[cfg(feature = "cuda")]
    if let kernels::cuda::Driver::Gpus(names) = kernels::cuda::driver()
        && !names.is_empty()
    {
        let mut gpu = kernels::cuda::Gpu::open(0)?;
        gpu.multiply_by_pairs(pairs);
        return Ok(Box::new(gpu));
    }
    // With all units, so that all kernels run.
    #[cfg(feature = "emulator")]
    return Ok(Box::new(kernels::cuda::Emulator::with_units(kernels::cuda::Units::Warpgroups {
        processors: 132,
        pairs,
    })));
    #[cfg(not(feature = "emulator"))]
    Err(match cfg!(feature = "cuda") {
        true => "there is no GPU here".into(),
        false => "this binary has no kernels for GPUs; `make gpu` builds one that has".into(),
    })
}
