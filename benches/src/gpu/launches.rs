//! Kernels by themselves, at the sizes of an 8B model: device time of many launches that were captured as one graph, as
//! the steps of a model are. Which kernels, the files beside this one say.

use super::shapes::LLAMA;
use super::{Args, Needs, attention, between, experts, open, products, sampler, setup, stored};
use crate::Failure;
use backends::llm::spec::DecoderSpec;
use kernels::cuda::setup::{MakeUp, make_up_bf16, make_up_f32};
use kernels::cuda::{Bf16, Device, Launch, Number, Slice};

/// Matrices of each kind that take turns, so that no cache holds the next one.
pub(super) const LAYERS: usize = 4;
/// Runs, of which the fastest counts.
const RUNS: usize = 3;
/// Seconds of a graph, which has fewer launches where they take longer.
const LONGEST: f64 = 0.05;
/// Launches of a graph: as many as a step of a model has, or more where that is not a round number of those measured.
const LAUNCHES: usize = 200;

/// Sizes that differ between a measurement and a trial.
pub(super) struct Sizes {
    /// Rows of what stands between the products.
    pub(super) rows: usize,
    /// Sequences that decode, and their contexts.
    pub(super) sequences: usize,
    pub(super) context: usize,
    /// Rows of products by the kernel for few, and by that for many.
    pub(super) few: &'static [usize],
    /// And by that for one to eight.
    pub(super) vectors: &'static [usize],
    pub(super) many: &'static [usize],
    /// And of the last one of a step.
    pub(super) heads: &'static [usize],
    /// A mixture's residual stream, an expert's width, experts, and choices of a row.
    pub(super) mixture: [usize; 4],
}

const REAL: Sizes = Sizes {
    rows: 4096,
    sequences: 256,
    context: 4096,
    few: &[1, 4, 8, 16, 32, 64],
    vectors: &[1, 4, 8],
    many: &[256, 1024, 4096],
    heads: &[1, 32, 256],
    mixture: [2048, 768, 128, 8],
};
const TOY: Sizes = Sizes {
    rows: 64,
    sequences: 4,
    context: 64,
    few: &[1, 16],
    vectors: &[1, 8],
    many: &[130],
    heads: &[1, 130],
    mixture: [64, 96, 8, 2],
};

/// Measures some kernels on a device that has nothing in its memory.
type Family = fn(&mut Bench<'_>) -> Result<(), Failure>;

/// What begins the rows of each family. Those that goals were set for come first.
const FAMILIES: [(&[&str], Family); 11] = [
    (&["norm", "rope-write", "silu-mul"], between::run),
    (&["attention.decode."], attention::decode),
    (&["attention.prompt."], attention::prompt),
    (&["attention.window.", "attention.cap.", "attention.sinks."], attention::decode_by_rules),
    (&["gemm.", "gemv."], products::run),
    (&["gemm.", "widen.", "quantise-rows"], stored::run),
    (&["embed", "gelu", "clamped-swiglu", "shape-logits"], between::others),
    (&["experts."], experts::run),
    (&["sampler.", "history-begin"], sampler::run),
    (&["make-up.", "update-tables"], setup::run),
    (&["head."], products::heads),
];

/// All rows that need no engine.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    for (rows, family) in FAMILIES {
        if rows.iter().any(|row| args.wants(row)) {
            let sizes = if args.small { TOY } else { REAL };
            family(&mut Bench { args, spec: LLAMA.spec(args.small)?, sizes, device: open()? })?;
        }
    }
    Ok(())
}

/// What all families share.
pub(super) struct Bench<'a> {
    pub(super) args: &'a Args,
    pub(super) spec: DecoderSpec,
    pub(super) sizes: Sizes,
    pub(super) device: Box<dyn Device>,
}

impl Bench<'_> {
    /// Memory whose contents mean nothing.
    pub(super) fn room<T: Number>(&mut self, numbers: usize) -> Result<Slice<T>, Failure> {
        Ok(self.device.reserve(numbers * T::BYTES)?.cast()?)
    }

    /// Random numbers, for zeros take less power, and so less time.
    pub(super) fn random(&mut self, numbers: usize) -> Result<Slice<Bf16>, Failure> {
        let slice = self.room(numbers)?;
        self.device.launch(&make_up_bf16(slice, &MakeUp { key: 1, first: 0, mean: 0.0, sigma: 1.0 })?)?;
        Ok(slice)
    }

    /// The same in 32 bits, and with such a deviation.
    pub(super) fn random_f32(&mut self, numbers: usize, sigma: f64) -> Result<Slice<f32>, Failure> {
        let slice = self.room(numbers)?;
        self.device.launch(&make_up_f32(slice, &MakeUp { key: 2, first: 0, mean: 0.0, sigma })?)?;
        Ok(slice)
    }

    /// Bytes of random numbers, which are codes, scales and factors as well.
    pub(super) fn codes<T: Number>(&mut self, numbers: usize) -> Result<Slice<T>, Failure> {
        Ok(self.random((numbers * T::BYTES).div_ceil(Bf16::BYTES))?.cast()?)
    }

    /// These numbers.
    pub(super) fn put(&mut self, numbers: &[i32]) -> Result<Slice<i32>, Failure> {
        let slice = self.room(numbers.len())?;
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.device.upload(slice.cast()?, &bytes)?;
        Ok(slice)
    }

    /// 0, 1, 2, and so on.
    pub(super) fn counted(&mut self, numbers: usize) -> Result<Slice<i32>, Failure> {
        self.put(&(0..numbers as i32).collect::<Vec<i32>>())
    }

    /// Zeros.
    pub(super) fn zeros<T: Number>(&mut self, numbers: usize) -> Result<Slice<T>, Failure> {
        let slice = self.device.reserve(numbers * T::BYTES)?;
        self.device.upload(slice, &vec![0; numbers * T::BYTES])?;
        Ok(slice.cast()?)
    }

    /// Seconds that the device takes for all of the launches, one after the other.
    fn seconds(&mut self, launches: &[Launch]) -> Result<f64, Failure> {
        let (device, least) = (self.device.as_mut(), self.args.seconds);
        // Once by themselves: a kernel is loaded when it first runs, which a capture may not allow.
        launches.iter().try_for_each(|launch| device.launch(launch))?;
        let once = device.seconds(&mut |device| launches.iter().try_for_each(|launch| device.launch(launch)))?;
        let most = (LONGEST / once.max(1e-9)) as usize;
        // A trial has no time for what it need not measure.
        let rounds = if self.args.small { 1 } else { LAUNCHES.div_ceil(launches.len()).min(most).max(1) };
        device.begin_capture()?;
        let mut all = (0..rounds).flat_map(|_| launches);
        let captured = all.try_for_each(|launch| device.launch(launch));
        // A capture that failed has to end, too.
        let graph = device.end_capture();
        captured?;
        let graph = graph?;
        let mut time = |times: usize| device.seconds(&mut |device| (0..times).try_for_each(|_| device.replay(graph)));
        time(1)?;
        let times = ((least / time(1)?.max(1e-7)) as usize).clamp(1, 100_000);
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            best = best.min(time(times)?);
        }
        Ok(best / (times * rounds) as f64)
    }

    /// A row in bytes a second.
    pub(super) fn bandwidth(&mut self, what: &str, launches: &[Launch], bytes: usize) -> Result<(), Failure> {
        if !self.args.tells(what) {
            return Ok(());
        }
        let seconds = self.seconds(launches)?;
        self.args.tell(what.into(), bytes as f64 / seconds / 1e9, "GB/s", self.args.copy_rate)
    }

    /// A row in operations a second: so many, for which a card cannot do without `needs`.
    pub(super) fn rate(
        &mut self,
        what: &str,
        launches: &[Launch],
        operations: usize,
        needs: Needs,
    ) -> Result<(), Failure> {
        if !self.args.tells(what) {
            return Ok(());
        }
        let (seconds, operations) = (self.seconds(launches)?, operations as f64 / 1e12);
        let limit = self.args.limit(needs).map(|least| operations / least);
        self.args.tell(what.into(), operations / seconds, "TFLOP/s", limit)
    }
}
