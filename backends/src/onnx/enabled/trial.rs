//! A first run on made up inputs: it warms the graph up, tells how long a call takes, and whether rows are apart, so that
//! requests may be stacked.

use super::predictor::{OnnxPredictor, of_memory};
use crate::{Call, CancelFlag, DataType, InferError, Parameters, Port, Predictor, Tensor};
use half::{bf16, f16};
use std::time::{Duration, Instant};

/// What a trial showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    /// The fastest call of one row; of a graph that takes no made up input, a guess.
    pub(super) single_call: Duration,
    /// Do rows together give what they give alone?
    pub(super) apart: bool,
}

impl Trial {
    /// Rows worth computing together.
    pub(super) fn rows_together(&self) -> usize {
        let rows = TOGETHER.as_nanos() / self.single_call.as_nanos().max(1);
        rows.clamp(1, ROWS_MAX) as usize
    }
}

/// Lengths that are tried for dimensions which may have any, but for the first: some graphs take no short ones.
const LENGTHS: [usize; 3] = [8, 1, 224];
/// For one run: a trial is not to hold up the start.
const TIME: Duration = Duration::from_secs(2);
/// Numbers of a made up input, at most.
const ELEMENTS_MAX: usize = 1 << 26;
/// Of a graph that shorter calls could not be timed of.
const UNKNOWN: Duration = Duration::from_millis(1);
/// A call this short is made again, since the first is never the fastest.
const QUICK: Duration = Duration::from_millis(40);
/// What calls together may take, at most. Rows of longer calls fill the processor by themselves, and the longer a batch
/// takes, the longer whoever comes next waits: those run one by one, as many at a time as there are instances.
const TOGETHER: Duration = Duration::from_millis(20);
/// Rows that are computed together, at most.
const ROWS_MAX: u128 = 256;
/// What a call of a longer text or a larger image takes at least: it does not belong on a thread that serves sockets.
const UNBOUNDED: Duration = Duration::from_micros(200);
/// Tries `predictor`; `stackable` says whether its first dimensions allow rows to be stacked.
///
/// # Errors
/// There is not enough memory for one row.
pub(super) fn trial(predictor: &OnnxPredictor, symbols: &[Vec<String>], stackable: bool) -> Result<Trial, String> {
    let unknown = Trial { single_call: UNKNOWN, apart: false };
    let Some((length, first, took)) = first_run(predictor, symbols)? else { return Ok(unknown) };
    let Some(outputs) = first.1 else { return Ok(Trial { single_call: took, apart: false }) };
    let mut single_call = took;
    for _ in 0..3 {
        if single_call > QUICK {
            break;
        }
        let start = Instant::now();
        if predict(predictor, &first.0).is_ok() {
            single_call = single_call.min(start.elapsed());
        }
    }
    let apart = stackable
        && single_call <= TOGETHER
        && rows_are_apart(predictor, symbols, length, (&first.0, &outputs)).unwrap_or(false);
    let inputs = &predictor.signature().inputs;
    let bounded = inputs.iter().all(|port| port.shape.iter().skip(usize::from(stackable)).all(|length| *length >= 0));
    Ok(Trial { single_call: if bounded { single_call } else { single_call.max(UNBOUNDED) }, apart })
}

/// Inputs, and what they gave; nothing where the run did not end in time.
type Ran = (Vec<Tensor>, Option<Vec<Tensor>>);

/// The first length that the graph takes, and its run.
fn first_run(predictor: &OnnxPredictor, symbols: &[Vec<String>]) -> Result<Option<(usize, Ran, Duration)>, String> {
    for length in LENGTHS {
        let Some(inputs) = made_up(&predictor.signature().inputs, symbols, length, 1) else { continue };
        let start = Instant::now();
        match predict(predictor, &inputs) {
            Ok(outputs) => return Ok(Some((length, (inputs, Some(outputs)), start.elapsed()))),
            Err(InferError::Deadline) => return Ok(Some((length, (inputs, None), start.elapsed()))),
            Err(error) if of_memory(&error.to_string()) => {
                return Err(format!("there is not enough memory for its first run, on one made up row: {error}"));
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

fn predict(predictor: &OnnxPredictor, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
    let (cancel, parameters) = (CancelFlag::default(), Parameters::new());
    let deadline = Some(Instant::now() + TIME);
    predictor.predict(&Call { inputs, outputs: &[], parameters: &parameters, deadline, cancel: &cancel })
}

/// Do two rows, one of them far larger than the other, give together what they give alone?
fn rows_are_apart(
    predictor: &OnnxPredictor,
    symbols: &[Vec<String>],
    length: usize,
    (first_inputs, first): (&[Tensor], &[Tensor]),
) -> Option<bool> {
    let second_inputs = made_up(&predictor.signature().inputs, symbols, length, 2)?;
    let second = predict(predictor, &second_inputs).ok()?;
    let pairs = first_inputs.iter().zip(&second_inputs);
    let together = pairs.map(|(a, b)| Tensor::stack(&[a, b]).ok()).collect::<Option<Vec<_>>>()?;
    let together = predict(predictor, &together).ok()?;
    let alone = [first, &second].into_iter().enumerate().all(|(row, alone)| {
        let pairs = alone.iter().zip(&together);
        alone.len() == together.len() && pairs.into_iter().all(|(alone, together)| is_row(row, alone, together))
    });
    Some(alone)
}

/// Is `alone` the row of this number, of two?
fn is_row(row: usize, alone: &Tensor, together: &Tensor) -> bool {
    let whole = together.shape().first() == Some(&2) && alone.shape().first() == Some(&1);
    whole && together.slice_rows(row, 1).is_ok_and(|found| alike(alone, &found))
}

/// Equal but for the rounding of another order of sums.
fn alike(a: &Tensor, b: &Tensor) -> bool {
    if a.shape() != b.shape() || a.datatype() != b.datatype() {
        return false;
    }
    let tolerance = match a.datatype() {
        DataType::Fp16 | DataType::Bf16 => 2e-2,
        DataType::Fp32 => 1e-4,
        DataType::Fp64 => 1e-6,
        DataType::Bytes => return a.strings().into_iter().flatten().eq(b.strings().into_iter().flatten()),
        _ => return a.bytes() == b.bytes(),
    };
    let (Some(a), Some(b)) = (a.to_f64(), b.to_f64()) else { return false };
    let scale = a.iter().filter(|value| value.is_finite()).fold(0f64, |scale, value| scale.max(value.abs()));
    let near = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= tolerance * scale;
    a.iter().zip(b.iter()).all(near)
}

/// Inputs of one row; dimensions of one name have one length. Whole numbers are 0 and 1, which any table of embeddings
/// has.
fn made_up(ports: &[Port], symbols: &[Vec<String>], length: usize, seed: u64) -> Option<Vec<Tensor>> {
    let needed = ports.iter().zip(symbols).filter(|(port, _)| !port.optional);
    needed.map(|(port, names)| one(port, names, length, seed)).collect()
}

fn one(port: &Port, names: &[String], length: usize, seed: u64) -> Option<Tensor> {
    let first = names.first();
    let shape = port.shape.iter().enumerate().map(|(place, &stated)| {
        let batch = place == 0 || names.get(place).is_some_and(|name| !name.is_empty() && Some(name) == first);
        usize::try_from(stated).unwrap_or(if batch { 1 } else { length })
    });
    let shape: Vec<usize> = shape.collect();
    let count = shape.iter().try_fold(1usize, |count, length| count.checked_mul(*length));
    let count = count.filter(|count| *count <= ELEMENTS_MAX)?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ port.name.len() as u64;
    // Marsaglia's xorshift.
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let name = port.name.clone();
    macro_rules! numbers {
        ($type:ty, $make:expr) => {{
            let make: fn(u64) -> $type = $make;
            Tensor::from_vec(name, shape, (0..count).map(|_| make(next())).collect::<Vec<$type>>())
        }};
    }
    // The second row is far larger than the first, and on both sides of zero: what one row's numbers do to another's
    // shows.
    let spread = move |unit: f32| if seed == 1 { unit } else { (unit - 0.5) * 100.0 };
    let unit = move |bits: u64| spread((bits >> 40) as f32 / (1 << 24) as f32);
    let tensor = match port.datatype {
        DataType::Fp32 => Tensor::from_vec(name, shape, (0..count).map(|_| unit(next())).collect::<Vec<f32>>()),
        DataType::Fp64 => {
            Tensor::from_vec(name, shape, (0..count).map(|_| f64::from(unit(next()))).collect::<Vec<f64>>())
        }
        DataType::Fp16 => {
            Tensor::from_vec(name, shape, (0..count).map(|_| f16::from_f32(unit(next()))).collect::<Vec<f16>>())
        }
        DataType::Bf16 => {
            Tensor::from_vec(name, shape, (0..count).map(|_| bf16::from_f32(unit(next()))).collect::<Vec<bf16>>())
        }
        DataType::Bool => Tensor::from_bools(name, shape, (0..count).map(|_| (next() >> 63) as u8).collect()),
        DataType::Bytes => {
            let texts = (0..count).map(|_| if next() >> 63 == 0 { "a" } else { "b" });
            Tensor::from_strings(name, shape, texts.collect::<Vec<_>>())
        }
        DataType::Uint8 => numbers!(u8, |bits| (bits >> 63) as u8),
        DataType::Uint16 => numbers!(u16, |bits| (bits >> 63) as u16),
        DataType::Uint32 => numbers!(u32, |bits| (bits >> 63) as u32),
        DataType::Uint64 => numbers!(u64, |bits| bits >> 63),
        DataType::Int8 => numbers!(i8, |bits| (bits >> 63) as i8),
        DataType::Int16 => numbers!(i16, |bits| (bits >> 63) as i16),
        DataType::Int32 => numbers!(i32, |bits| (bits >> 63) as i32),
        DataType::Int64 => numbers!(i64, |bits| (bits >> 63) as i64),
    };
    tensor.ok()
}
