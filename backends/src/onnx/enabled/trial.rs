//! A first run on made up inputs: it warms the graph up, tells how long a call takes, and whether rows are apart, so that
//! requests may be stacked.

use super::predictor::OnnxPredictor;
use crate::{Call, CancelFlag, DataType, InferError, Parameters, Port, Predictor, Signature, Tensor};
use half::{bf16, f16};
use std::time::{Duration, Instant};

/// What a trial showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Trial {
    /// The fastest call of one row; of a graph that takes no made up input, a guess.
    pub(super) single_call: Duration,
    /// Do rows together give what they give alone? `None` where that was not tried.
    pub(super) apart: Option<bool>,
    /// How many dimensions outputs have; none where there are none.
    pub(super) ranks: Vec<usize>,
    /// Why it failed, if it did.
    pub(super) failure: Option<String>,
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
/// Tries `predictor`; `stackable` says whether its first dimensions allow rows to be stacked, `stated` whether somebody
/// wants them to be, however long they take.
///
/// # Errors
/// There is not enough memory for one row.
pub(super) fn trial(
    predictor: &OnnxPredictor,
    symbols: &[Vec<String>],
    stackable: bool,
    stated: bool,
) -> Result<Trial, String> {
    let mut failure = None;
    let Some((length, first, took)) = first_run(predictor, symbols, &mut failure)? else {
        return Ok(Trial { single_call: UNKNOWN, failure, ..Trial::default() });
    };
    let Some(outputs) = first.1 else { return Ok(Trial { single_call: took, ..Trial::default() }) };
    let ranks = outputs.iter().map(|output| output.shape().len()).collect();
    // Each has a session of its own, and memory on its device.
    for group in 1..predictor.groups() {
        enough_memory(&run(predictor, &first.0, group))?;
    }
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
    let tried = stackable && (stated || single_call <= TOGETHER);
    let apart = tried.then(|| rows_are_apart(predictor, symbols, length, (&first.0, &outputs))).flatten();
    Ok(Trial { single_call, apart, ranks, failure: None })
}

/// Inputs, and what they gave; nothing where the run did not end in time.
type Ran = (Vec<Tensor>, Option<Vec<Tensor>>);

/// Of outputs whose shape the graph does not state, says at least how many dimensions they have: as many as in the trial,
/// where those of the inputs are stated.
pub(super) fn state_ranks(signature: &mut Signature, trial: &Trial) {
    if signature.inputs.iter().any(|port| port.any_shape) {
        return;
    }
    for (port, &rank) in signature.outputs.iter_mut().zip(&trial.ranks) {
        // A sequence of tensors of which nothing is known has the dimension of a sequence.
        if port.shape.len() < rank && matches!(port.shape[..], [] | [-1]) {
            port.shape = vec![-1; rank];
        }
    }
}

/// The first length that the graph takes, and its run; where there is none, why the last one was not taken.
fn first_run(
    predictor: &OnnxPredictor,
    symbols: &[Vec<String>],
    failure: &mut Option<String>,
) -> Result<Option<(usize, Ran, Duration)>, String> {
    for length in LENGTHS {
        let Some(inputs) = made_up(&predictor.signature().inputs, symbols, length, 1) else { continue };
        let start = Instant::now();
        let outcome = predict(predictor, &inputs);
        enough_memory(&outcome)?;
        match outcome {
            Ok(outputs) => return Ok(Some((length, (inputs, Some(outputs)), start.elapsed()))),
            Err(InferError::Deadline) => return Ok(Some((length, (inputs, None), start.elapsed()))),
            Err(error) => *failure = Some(error.to_string()),
        }
    }
    Ok(None)
}

/// An error where a run failed for want of memory; what else it failed of is no reason not to serve.
fn enough_memory(outcome: &Result<Vec<Tensor>, InferError>) -> Result<(), String> {
    match outcome {
        Err(InferError::Memory(what)) => {
            Err(format!("there is not enough memory for its first run, on one made up row: {what}"))
        }
        _ => Ok(()),
    }
}

/// A run of the first group: what is tried and timed is one and the same.
fn predict(predictor: &OnnxPredictor, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
    run(predictor, inputs, 0)
}

fn run(predictor: &OnnxPredictor, inputs: &[Tensor], group: usize) -> Result<Vec<Tensor>, InferError> {
    let (cancel, parameters) = (CancelFlag::default(), Parameters::new());
    let deadline = Some(Instant::now() + TIME);
    let call = Call { inputs, outputs: &[], parameters: &parameters, deadline, cancel: &cancel };
    predictor.run(&call, Some(group))
}

/// Do rows give together what they give alone, whichever comes first? The second is far larger than the first and differs
/// from it everywhere, the third is of its size. `None` where the second cannot be computed alone; of the third, whose
/// whole numbers may be more than a table has, that is no sign of anything.
fn rows_are_apart(
    predictor: &OnnxPredictor,
    symbols: &[Vec<String>],
    length: usize,
    first: (&[Tensor], &[Tensor]),
) -> Option<bool> {
    let mut apart = true;
    for seed in [2, 3] {
        let inputs = made_up(&predictor.signature().inputs, symbols, length, seed)?;
        let Ok(outputs) = predict(predictor, &inputs) else {
            if seed == 2 {
                return None;
            }
            continue;
        };
        let other = (&inputs[..], &outputs[..]);
        apart = apart && pair_is_apart(predictor, first, other) && pair_is_apart(predictor, other, first);
    }
    Some(apart)
}

/// Do two rows, inputs with what they gave alone, give the same together?
fn pair_is_apart(predictor: &OnnxPredictor, a: (&[Tensor], &[Tensor]), b: (&[Tensor], &[Tensor])) -> bool {
    let pairs = a.0.iter().zip(b.0);
    let stacked = pairs.map(|(a, b)| Tensor::stack(&[a, b]).ok()).collect::<Option<Vec<_>>>();
    let Some(Ok(together)) = stacked.map(|inputs| predict(predictor, &inputs)) else { return false };
    [a.1, b.1].into_iter().enumerate().all(|(row, alone)| {
        alone.len() == together.len()
            && alone.iter().zip(&together).all(|(alone, together)| is_row(row, alone, together))
    })
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
    // The second row is made of the same numbers as the first, so that it can differ from it everywhere.
    let stream = if seed == 3 { 3u64 } else { 1 };
    let mut state = stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ port.name.len() as u64;
    // Marsaglia's xorshift.
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let name = port.name.clone();
    // Far larger than the first, and on both sides of zero: what one row's numbers do to another's shows.
    let spread = move |unit: f32| if seed == 2 { (unit - 0.5) * 100.0 } else { unit };
    // 0 or 1, the other one of them, or up to 5.
    let whole = move |bits: u64| match seed {
        1 => bits >> 63,
        2 => 1 - (bits >> 63),
        _ => 2 + (bits >> 62),
    };
    let unit = move |bits: u64| spread((bits >> 40) as f32 / (1 << 24) as f32);
    macro_rules! numbers {
        ($type:ty) => {
            Tensor::from_vec(name, shape, (0..count).map(|_| whole(next()) as $type).collect::<Vec<$type>>())
        };
    }
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
        DataType::Bool => Tensor::from_bools(name, shape, (0..count).map(|_| whole(next()) as u8 & 1).collect()),
        DataType::Bytes => {
            let words = [["a", "b"], ["c d e", "f g"], ["h", "i j"]][seed as usize - 1];
            let texts = (0..count).map(|_| words[(next() >> 63) as usize]);
            Tensor::from_strings(name, shape, texts.collect::<Vec<_>>())
        }
        DataType::Uint8 => numbers!(u8),
        DataType::Uint16 => numbers!(u16),
        DataType::Uint32 => numbers!(u32),
        DataType::Uint64 => numbers!(u64),
        DataType::Int8 => numbers!(i8),
        DataType::Int16 => numbers!(i16),
        DataType::Int32 => numbers!(i32),
        DataType::Int64 => numbers!(i64),
    };
    tensor.ok()
}
