//! Weights from their files to the device: pieces are read and put in order on all threads, into memory out of which the
//! device copies by itself while the next ones are read. Pieces of many tensors make a round, so that small ones are read
//! together.
//!
//! ```text
//! rounds of pieces --read, pack or round: all threads--> memory of the host --> device memory
//! ```

use super::arena::{Arena, Pieces};
use super::memory::Error;
use super::weights::{Kept, Visitor, Weight, kept};
use crate::error::LoadError;
use crate::llm::layout::{self, Part, Rows};
use crate::llm::spec::DecoderSpec;
use crate::llm::weights::{Format, MadeUp, Weights, blocks, put};
use kernels::cuda::packing::{Packed, Plain, pack};
use kernels::cuda::stored::{self, Layout, Matrix, TOGETHER};
use kernels::cuda::{Bf16, Device, Misuse, Number, Slice, setup};
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Bytes of device memory that one thread fills at a time.
const PIECE: usize = 1 << 20;
/// Pieces of a round for each thread: several, so that no thread waits long for the last of the others.
const PIECES: usize = 4;
/// The same for all threads, at most: their memory is taken from everybody else.
const PIECES_MAX: usize = 128;
/// Numbers of a round, but for a single piece: matrices that lie across in their file are read whole.
const NUMBERS: usize = 256 << 20;

/// Where rows go.
#[derive(Clone, Copy, Debug)]
enum Target {
    Bf16(Slice<Bf16>),
    Codes(Matrix),
}

/// Some rows that are still to be read.
struct Piece<'a> {
    source: Arc<Rows<&'a dyn Weights>>,
    rows: Range<usize>,
    /// How their codes lie, where they go there as codes.
    codes: Option<Layout>,
    /// Where they go, one stretch after the other.
    to: Vec<Slice<u8>>,
}

/// Reads what it visits.
pub(super) struct Loader<'a> {
    spec: &'a DecoderSpec,
    weights: &'a dyn Weights,
    device: &'a mut (dyn Device + 'static),
    arena: Arena,
    queue: Vec<Piece<'a>>,
}

impl Visitor for Loader<'_> {
    fn matrix(&mut self, parts: &[Part]) -> Result<Option<Slice<Bf16>>, LoadError> {
        let sizes = parts.iter().map(|part| layout::shape(self.spec, part.slot));
        let total = sizes.map(|(rows, columns)| rows * columns.unwrap_or(1)).sum();
        let all = self.arena.take::<Bf16>(total).map_err(|error| self.refuse(error))?;
        let mut at = 0;
        for part in parts {
            let (rows, columns) = layout::shape(self.spec, part.slot);
            let len = rows * columns.unwrap_or(1);
            let to = all.part(at..at + len).map_err(|error| self.refuse(error))?;
            if !self.make_up(*part, to)? {
                self.enqueue(*part, Target::Bf16(to))?;
            }
            at += len;
        }
        Ok(Some(all))
    }

    fn projection(&mut self, parts: &[Part]) -> Result<Option<Weight>, LoadError> {
        let Kept::Codes(layout) = kept(self.spec, self.weights, parts)? else {
            return Ok(self.matrix(parts)?.map(Weight::Bf16));
        };
        let outputs = parts.iter().map(|part| layout::shape(self.spec, part.slot).0).sum();
        let all = self.take(layout, outputs).map_err(|error| self.refuse(error))?;
        let mut at = 0;
        for part in parts {
            let rows = layout::shape(self.spec, part.slot).0;
            let to = some(&all, at..at + rows).map_err(|error| self.refuse(error))?;
            if !self.make_up_codes(*part, &to)? {
                self.enqueue(*part, Target::Codes(to))?;
            }
            at += rows;
        }
        Ok(Some(Weight::Codes(all)))
    }

    fn vector(&mut self, parts: &[Part]) -> Result<Option<Slice<f32>>, LoadError> {
        let mut numbers = Vec::new();
        for part in parts {
            numbers.extend(layout::load(self.spec, self.weights, *part)?.to_f32());
        }
        let to = self.arena.take::<f32>(numbers.len()).map_err(|error| self.refuse(error))?;
        let bytes = to.cast().map_err(|error| self.refuse(error))?;
        self.device.upload(bytes, bytemuck::cast_slice(&numbers)).map_err(|error| self.refuse(error))?;
        Ok(Some(to))
    }
}

impl<'a> Loader<'a> {
    pub(super) fn new(
        spec: &'a DecoderSpec,
        weights: &'a dyn Weights,
        device: &'a mut (dyn Device + 'static),
        arena: Arena,
    ) -> Self {
        Loader { spec, weights, device, arena, queue: Vec::new() }
    }

    /// Where it loads to.
    pub(super) fn device(&mut self) -> &mut (dyn Device + 'static) {
        self.device
    }

    fn refuse(&self, error: impl Into<Error>) -> LoadError {
        error.into().refusal(self.weights.file(), "")
    }

    /// The next memory for a matrix of codes.
    fn take(&mut self, layout: Layout, outputs: usize) -> Result<Matrix, Misuse> {
        let codes = self.arena.take(layout.codes_len(outputs))?;
        let scales = self.arena.take(layout.scales_len(outputs))?;
        let factors = self.arena.take(layout.factors_len(outputs))?;
        Ok(Matrix { layout, outputs, codes, scales, factors })
    }

    fn enqueue(&mut self, part: Part, target: Target) -> Result<(), LoadError> {
        let source = Arc::new(layout::rows(self.spec, self.weights, part)?);
        for rows in pieces(&source, &target) {
            let (codes, to) = match target {
                Target::Bf16(to) => (None, stretch(to, &rows, source.shape().1)),
                Target::Codes(to) => (Some(to.layout), stretches(&to, &rows)),
            };
            let to = to.map_err(|error| self.refuse(error))?;
            self.queue.push(Piece { source: source.clone(), rows, codes, to });
        }
        Ok(())
    }

    /// Reads all that was visited.
    pub(super) fn finish(self) -> Result<(), LoadError> {
        let (file, mut read) = (self.weights.file(), Ok(()));
        let rounds = rounds(self.queue);
        let room = rounds.iter().map(|round| round.iter().map(Piece::bytes).sum()).max().unwrap_or(0);
        let mut rounds = rounds.into_iter();
        let copied = self.device.upload_rounds(room, &mut |bytes| {
            let round = rounds.next().unwrap_or_default();
            read = read_round(&round, bytes, file);
            // Where one could not be read, none is copied any more.
            if read.is_ok() { round.into_iter().flat_map(|piece| piece.to).collect() } else { Vec::new() }
        });
        read?;
        copied.map_err(|fault| Error::from(fault).refusal(file, ""))
    }

    /// How a part is made up where it is needed, and the index of its first number; `None` where it comes from files.
    fn made_up(&self, part: Part) -> Option<(MadeUp, u64)> {
        let place = layout::place(self.spec, part, Format::F32)?;
        let made = self.weights.made_up(&place.name)?;
        let sheet = place.sheet * place.shape.iter().product::<usize>() / place.sheets.max(1);
        let first = (sheet + place.first * place.columns) as u64;
        (place.step == 1 && !place.transposed).then_some((made, first))
    }

    /// Made-up numbers are made on the device. `false` where they come from files.
    fn make_up(&mut self, part: Part, to: Slice<Bf16>) -> Result<bool, LoadError> {
        let Some((made, first)) = self.made_up(part).filter(|(made, _)| !made.eight_bits) else { return Ok(false) };
        let numbers = setup::MakeUp { key: made.key, first, mean: made.mean, sigma: made.sigma };
        let launch = setup::make_up_bf16(to, &numbers).map_err(|error| self.refuse(error))?;
        self.device.launch(&launch).map_err(|error| self.refuse(error))?;
        Ok(true)
    }

    /// The same of codes.
    fn make_up_codes(&mut self, part: Part, to: &Matrix) -> Result<bool, LoadError> {
        let Some((made, first)) = self.made_up(part).filter(|(made, _)| made.eight_bits) else { return Ok(false) };
        let numbers = setup::MakeUp { key: made.key, first, mean: made.mean, sigma: made.sigma };
        let launch = stored::make_up(to, &numbers).map_err(|error| self.refuse(error))?;
        self.device.launch(&launch).map_err(|error| self.refuse(error))?;
        Ok(true)
    }
}

/// Rounds of pieces: of as many as threads want, and of large ones fewer.
fn rounds(queue: Vec<Piece<'_>>) -> Vec<Vec<Piece<'_>>> {
    let most = (PIECES * rayon::current_num_threads()).min(PIECES_MAX);
    let (mut rounds, mut numbers): (Vec<Vec<_>>, _) = (Vec::new(), 0);
    for piece in queue {
        numbers += piece.numbers();
        match rounds.last_mut() {
            Some(round) if round.len() < most && numbers <= NUMBERS => round.push(piece),
            _ => {
                numbers = piece.numbers();
                rounds.push(vec![piece]);
            }
        }
    }
    rounds
}

/// Reads pieces on all threads, one behind the other into `bytes`, which is as long as they are.
fn read_round(round: &[Piece<'_>], bytes: &mut [u8], file: &Path) -> Result<(), LoadError> {
    let (mut rest, mut work) = (bytes, Vec::with_capacity(round.len()));
    for piece in round {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(piece.bytes());
        work.push((piece, own));
        rest = others;
    }
    work.into_par_iter().try_for_each(|(piece, own)| piece.read(own, file))
}

/// Where rows of numbers go.
fn stretch(to: Slice<Bf16>, rows: &Range<usize>, columns: usize) -> Result<Vec<Slice<u8>>, Misuse> {
    Ok(vec![to.part(rows.start * columns..rows.end * columns)?.cast()?])
}

/// Where rows of codes go: they, their scales and their factors.
fn stretches(to: &Matrix, rows: &Range<usize>) -> Result<Vec<Slice<u8>>, Misuse> {
    let place = some(to, rows.clone())?;
    Ok(vec![place.codes, place.scales.cast()?, place.factors.cast()?])
}

/// Some rows of a matrix of codes: they begin where rows that lie together do.
fn some(all: &Matrix, rows: Range<usize>) -> Result<Matrix, Misuse> {
    fn part<T: Number>(slice: Slice<T>, from: usize, len: usize) -> Result<Slice<T>, Misuse> {
        slice.part(from..from + len)
    }
    let (layout, first, outputs) = (all.layout, rows.start, rows.len());
    if !first.is_multiple_of(TOGETHER) {
        return Err(Misuse(format!("row {first} lies among others")));
    }
    Ok(Matrix {
        layout,
        outputs,
        codes: part(all.codes, layout.codes_len(first), layout.codes_len(outputs))?,
        scales: part(all.scales, layout.scales_len(first), layout.scales_len(outputs))?,
        factors: part(all.factors, layout.factors_len(first), layout.factors_len(outputs))?,
    })
}

/// Which rows are read at a time.
fn pieces(source: &Rows<&dyn Weights>, target: &Target) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, columns) = source.shape();
    let together = match target {
        _ if !source.in_order() => rows.max(1),
        Target::Bf16(_) => (PIECE / (columns * Bf16::BYTES).max(1)).max(1),
        Target::Codes(matrix) => {
            let row = columns * matrix.layout.kind.bits() / 8;
            (PIECE / row.max(1)).next_multiple_of(TOGETHER).max(TOGETHER)
        }
    };
    (0..rows).step_by(together).map(move |first| first..(first + together).min(rows))
}

impl Piece<'_> {
    fn numbers(&self) -> usize {
        self.rows.len().saturating_mul(self.source.shape().1)
    }

    fn bytes(&self) -> usize {
        self.to.iter().map(Slice::len).sum()
    }

    /// Reads its rows into `bytes`, as the device is to have them.
    fn read(&self, bytes: &mut [u8], file: &Path) -> Result<(), LoadError> {
        let (rows, format) = (self.rows.clone(), self.source.format());
        let Some(layout) = &self.codes else {
            return match format {
                Format::Bf16 => self.source.read_into(rows, bytes),
                _ => put(file, &as_bf16(format, &self.source.read(rows)?), bytes),
            };
        };
        let groups = self.source.read_groups(rows)?;
        let groups = groups.ok_or_else(|| LoadError::new(file, "has no codes where it said so"))?;
        let plain = Plain { codes: &groups.codes, scales: &groups.scales, minima: &groups.minima };
        let packed = pack_all(layout, &plain).map_err(|misuse| LoadError::new(file, misuse.to_string()))?;
        let mut rest = bytes;
        for part in [&packed.codes, bytemuck::cast_slice(&packed.scales), bytemuck::cast_slice(&packed.factors)] {
            let length = part.len().min(rest.len());
            let (own, others) = std::mem::take(&mut rest).split_at_mut(length);
            put(file, part, own)?;
            rest = others;
        }
        Ok(())
    }
}

/// Packs on all threads, where there are many rows: a matrix that is read whole would keep one of them for long.
fn pack_all(layout: &Layout, plain: &Plain<'_>) -> Result<Packed, Misuse> {
    let (inputs, groups) = (layout.inputs.max(1), layout.groups());
    let together = TOGETHER * (PIECE / (TOGETHER * inputs)).max(1);
    let rows = plain.codes.len() / inputs;
    if rows <= together || plain.scales.len() != rows * groups {
        return pack(layout, plain);
    }
    let stretch = |(index, codes): (usize, &[u8])| {
        let of_rows = index * together * groups..(index * together + codes.len() / inputs) * groups;
        let minima = plain.minima.get(of_rows.clone()).unwrap_or_default();
        pack(layout, &Plain { codes, scales: &plain.scales[of_rows], minima })
    };
    let parts = plain.codes.par_chunks(together * inputs).enumerate().map(stretch).collect::<Result<Vec<_>, _>>()?;
    let mut all = Packed { codes: Vec::new(), scales: Vec::new(), factors: Vec::new() };
    for mut part in parts {
        all.codes.append(&mut part.codes);
        all.scales.append(&mut part.scales);
        all.factors.append(&mut part.factors);
    }
    Ok(all)
}

/// Numbers of any format, rounded to bf16.
fn as_bf16(format: Format, bytes: &[u8]) -> Vec<u8> {
    let numbers = blocks::dequantise(format, bytes);
    numbers.into_iter().flat_map(|number| Bf16::from_f32(number).0.to_le_bytes()).collect()
}
