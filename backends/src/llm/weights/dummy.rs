//! Weights made up from a configuration alone, for benchmarks (`--load-format dummy`) and for tests.
//!
//! Every number is a function of seed, tensor name and index, so that a tensor may be made in any order and by any
//! program: `tests/llm/make_goldens.py` makes the same bits. A number is a sum of four 16-bit integers from a hash (its
//! distribution is near normal, and cut at 3.46 sigma), times a step in 64 bits, rounded once.

use super::groups::{Code, Groups, Stored, of_e4m3, plan};
use super::{Format, Info, MadeUp, Weights};
use crate::error::LoadError;
use crate::llm::layout::{self, Slot};
use crate::llm::spec::DecoderSpec;
use half::{bf16, f16};
use kernels::cuda::E4m3;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// How large the numbers of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// A standard deviation of `1 / sqrt(inputs)` (1 for embeddings): activations stay near 1, and a wrong step in the
    /// forward pass shows.
    FanIn,
    /// The same for all matrices and biases. At 0.02, as training begins, activations are small enough that a norm's
    /// epsilon shows.
    Sigma(f64),
}

/// A model's weights that nobody trained.
#[derive(Debug)]
pub struct Dummy {
    tensors: BTreeMap<String, (Info, Fill)>,
    seed: u64,
    eight_bits: bool,
}

/// The distribution of a tensor.
#[derive(Clone, Copy, Debug)]
struct Fill {
    mean: f64,
    sigma: f64,
    /// Is it a matrix that checkpoints of eight-bit floats have as such? Experts are none here.
    projection: bool,
}

/// What deviations are multiplied with before they are rounded to eight bits: then few are as small as these get.
const SPREAD: f64 = 64.0;

impl Dummy {
    /// Weights for `spec`, each number stored as `format`, which must be a float.
    ///
    /// # Errors
    /// The model is larger than 2^40 numbers.
    pub fn new(spec: &DecoderSpec, format: Format, init: Init, seed: u64) -> Result<Self, LoadError> {
        const MOST: u64 = 1 << 40;
        let total = layout::parameters(spec).filter(|total| *total <= MOST && format.is_float());
        if total.is_none() {
            return Err(LoadError::new("config.json", format!("makes a model of more than {MOST} parameters")));
        }
        let mut tensors = BTreeMap::new();
        for part in layout::parts(spec) {
            if let Some(place) = layout::place(spec, part, format) {
                let fill = fill(spec, part.slot, init);
                tensors.insert(place.name, (Info { format, shape: place.shape }, fill));
            }
        }
        Ok(Dummy { tensors, seed, eight_bits: false })
    }

    /// The same, with projections as e4m3, of which all numbers of a tensor have one scale.
    #[must_use]
    pub fn in_eight_bits(self) -> Self {
        Dummy { eight_bits: true, ..self }
    }

    /// Shape, deviation and hash of a projection in eight bits.
    fn narrow(&self, name: &str) -> Option<(&[usize], f64, u64)> {
        let (info, fill) = self.tensors.get(name).filter(|(_, fill)| self.eight_bits && fill.projection)?;
        Some((&info.shape, fill.sigma, key(self.seed, name)))
    }
}

/// Norm weights scatter around what leaves the activation alone, so that a norm left out or misplaced shows.
fn fill(spec: &DecoderSpec, slot: Slot, init: Init) -> Fill {
    use Slot::{Down, Gate, Key, Output, Query, Up, Value};
    let projection = matches!(slot, Query | Key | Value | Output | Gate | Up | Down);
    let around = |mean, sigma| Fill { mean, sigma, projection };
    match (slot, layout::shape(spec, slot), init) {
        (Slot::Sinks, ..) => around(0.0, 1.0),
        (slot, ..) if is_norm(slot) => around(if spec.norm.plus_one { 0.0 } else { 1.0 }, 0.1),
        (_, _, Init::Sigma(sigma)) => around(0.0, sigma),
        (_, (_, None), Init::FanIn) => around(0.0, 0.1),
        (Slot::Embedding, ..) => around(0.0, 1.0),
        (_, (_, Some(inputs)), Init::FanIn) => around(0.0, 1.0 / (inputs as f64).sqrt()),
    }
}

fn is_norm(slot: Slot) -> bool {
    let before_after = matches!(slot, Slot::AttentionNormBefore | Slot::AttentionNormAfter);
    let mlp = matches!(slot, Slot::MlpNormBefore | Slot::MlpNormAfter);
    before_after || mlp || matches!(slot, Slot::FinalNorm | Slot::QueryNorm | Slot::KeyNorm)
}

impl Weights for Dummy {
    fn file(&self) -> &Path {
        Path::new("dummy weights")
    }

    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.tensors.get(name).map(|(info, _)| info)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let (info, fill) =
            self.tensors.get(name).ok_or_else(|| LoadError::new(self.file(), format!("lacks '{name}'")))?;
        let size = info.format.block().1;
        if info.format.bytes(&info.shape).is_none_or(|bytes| range.end > bytes) {
            return Err(LoadError::new(self.file(), format!("'{name}' ends before byte {}", range.end)));
        }
        let key = key(self.seed, name);
        let mut bytes = Vec::with_capacity(range.len());
        for index in range.start / size..range.end / size {
            let number = match self.narrow(name) {
                Some(_) => code(key, index as u64).to_f32() * (fill.sigma / SPREAD) as f32,
                None => (fill.mean + fill.sigma * scatter(key, index as u64)) as f32,
            };
            match info.format {
                Format::F16 => bytes.extend(f16::from_f32(number).to_le_bytes()),
                Format::Bf16 => bytes.extend(bf16::from_f32(number).to_le_bytes()),
                _ => bytes.extend(number.to_le_bytes()),
            }
        }
        Ok(bytes)
    }

    /// Not of half precision, to which numbers are rounded in another way.
    fn made_up(&self, name: &str) -> Option<MadeUp> {
        let (info, fill) = self.tensors.get(name)?;
        let eight_bits = self.narrow(name).is_some();
        (info.format != Format::F16 || eight_bits).then(|| {
            let key = key(self.seed, name);
            MadeUp { key, mean: fill.mean, sigma: fill.sigma, eight_bits }
        })
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        if let Some((shape, ..)) = self.narrow(name) {
            return Some(Stored { code: Code::E4m3, group: *shape.last()?, minima: false });
        }
        let (code, group, minima) = plan(self.info(name)?.format)?;
        Some(Stored { code, group, minima })
    }

    fn read_groups(&self, name: &str, rows: Range<usize>) -> Result<Option<Groups>, LoadError> {
        let Some((&[all, columns], sigma, key)) = self.narrow(name) else { return Ok(None) };
        if rows.end > all {
            return Err(LoadError::new(self.file(), format!("'{name}' ends before row {}", rows.end)));
        }
        let numbers = (rows.start * columns) as u64..(rows.end * columns) as u64;
        let codes = numbers.map(|index| code(key, index).0).collect();
        Ok(Some(of_e4m3(codes, columns, columns, rows, |_, _| (sigma / SPREAD) as f32)))
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a tensor: FNV-1a of its name, and the seed.
fn key(seed: u64, name: &str) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fold) ^ seed.wrapping_mul(GOLDEN)
}

/// Number `index` in eight bits.
fn code(key: u64, index: u64) -> E4m3 {
    E4m3::from_f32((SPREAD * scatter(key, index)) as f32)
}

/// Number `index` of a tensor, with mean 0 and deviation 1: SplitMix64 of the index, cut in four and summed.
fn scatter(key: u64, index: u64) -> f64 {
    let mut z = key.wrapping_add((index + 1).wrapping_mul(GOLDEN));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
    // Four uniform integers below 65536 have the mean 131070 and the variance (65536^2 - 1) / 3.
    (sum as f64 - 131_070.0) / (4_294_967_295.0f64 / 3.0).sqrt()
}
