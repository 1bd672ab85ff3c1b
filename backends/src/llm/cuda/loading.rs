//! Weights from their files to the device: pieces are read and put in order on all threads, while those before them are
//! copied. Pieces of many tensors queue up, so that small ones are read together.
//!
//! ```text
//! queue of pieces --read, pack or round: all threads--> ready --upload: one thread--> device memory
//! ```

use super::arena::Arena;
use super::weights::{Kept, Visitor, Weight, kept};
use crate::error::LoadError;
use crate::llm::layout::{self, Part, Rows};
use crate::llm::spec::DecoderSpec;
use crate::llm::weights::{Format, MadeUp, Weights, blocks};
use kernels::cuda::packing::{Packed, Plain, pack};
use kernels::cuda::stored::{self, Layout, Matrix, TOGETHER};
use kernels::cuda::{Bf16, Device, Misuse, Number, Slice, setup};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of device memory that one thread fills at a time.
const PIECE: usize = 4 << 20;
/// Numbers that are under way at a time, but for a single piece: matrices that lie across in their file are read whole.
const NUMBERS: usize = 256 << 20;

/// Where rows go.
#[derive(Clone, Copy, Debug)]
enum Target {
    Bf16(Slice<Bf16>),
    Codes(Matrix),
}

/// Some rows that are still to be read.
struct Piece<'a> {
    source: Arc<Rows<'a>>,
    rows: Range<usize>,
    target: Target,
}

impl Piece<'_> {
    fn numbers(&self) -> usize {
        self.rows.len().saturating_mul(self.source.shape().1)
    }
}

/// Bytes and the memory they belong to.
type Ready = (Slice<u8>, Vec<u8>);

/// Reads what it visits.
pub(super) struct Loader<'a> {
    spec: &'a DecoderSpec,
    weights: &'a dyn Weights,
    device: &'a mut dyn Device,
    arena: Arena,
    queue: VecDeque<Piece<'a>>,
    ready: Vec<Ready>,
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
        Loader { spec, weights, device, arena, queue: VecDeque::new(), ready: Vec::new() }
    }

    fn refuse(&self, reason: impl Display) -> LoadError {
        LoadError::new(self.weights.file(), reason.to_string())
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
            self.queue.push_back(Piece { source: source.clone(), rows, target });
        }
        while self.queue.len() >= window() || self.queue.iter().map(Piece::numbers).sum::<usize>() >= NUMBERS {
            self.advance()?;
        }
        Ok(())
    }

    /// The next pieces of the queue: as many as threads want, and of large ones fewer.
    fn next(&mut self) -> Vec<Piece<'a>> {
        let (mut count, mut numbers) = (0, 0);
        for piece in self.queue.iter().take(window()) {
            numbers += piece.numbers();
            if count > 0 && numbers > NUMBERS {
                break;
            }
            count += 1;
        }
        self.queue.drain(..count).collect()
    }

    /// Reads the next pieces on all threads while what was read before is copied.
    fn advance(&mut self) -> Result<(), LoadError> {
        let next = self.next();
        let (ready, device, file) = (std::mem::take(&mut self.ready), &mut *self.device, self.weights.file());
        let read = || next.par_iter().map(|piece| piece.read(file)).collect::<Result<Vec<_>, _>>();
        let copy = || {
            let mut copies = ready.iter();
            copies.try_for_each(|(to, bytes)| device.upload(*to, bytes))
        };
        let (copied, read) = rayon::join(copy, read);
        copied.map_err(|fault| self.refuse(fault))?;
        self.ready = read?.into_iter().flatten().collect();
        Ok(())
    }

    /// What is still under way.
    pub(super) fn finish(mut self) -> Result<(), LoadError> {
        while !(self.queue.is_empty() && self.ready.is_empty()) {
            self.advance()?;
        }
        Ok(())
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

/// Pieces that are read at a time.
fn window() -> usize {
    2 * rayon::current_num_threads()
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
fn pieces(source: &Rows<'_>, target: &Target) -> impl Iterator<Item = Range<usize>> + use<> {
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
    fn read(&self, file: &std::path::Path) -> Result<Vec<Ready>, LoadError> {
        let refuse = |misuse: Misuse| LoadError::new(file, misuse.to_string());
        match self.target {
            Target::Bf16(to) => {
                let bytes = as_bf16(self.source.format(), self.source.read(self.rows.clone())?);
                let start = self.rows.start * self.source.shape().1;
                let to = to.part(start..start + bytes.len() / Bf16::BYTES).and_then(|to| to.cast());
                Ok(vec![(to.map_err(refuse)?, bytes)])
            }
            Target::Codes(to) => {
                let groups = self.source.read_groups(self.rows.clone())?;
                let groups = groups.ok_or_else(|| LoadError::new(file, "has no codes where it said so"))?;
                let plain = Plain { codes: &groups.codes, scales: &groups.scales, minima: &groups.minima };
                let packed = pack_all(&to.layout, &plain).map_err(refuse)?;
                let place = some(&to, self.rows.clone()).map_err(refuse)?;
                let ready = |slice: Result<Slice<u8>, Misuse>, bytes: &[u8]| -> Result<Ready, LoadError> {
                    Ok((slice.map_err(refuse)?, bytes.to_vec()))
                };
                Ok(vec![
                    (place.codes, packed.codes),
                    ready(place.scales.cast(), bytemuck::cast_slice(&packed.scales))?,
                    ready(place.factors.cast(), bytemuck::cast_slice(&packed.factors))?,
                ])
            }
        }
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
fn as_bf16(format: Format, bytes: Vec<u8>) -> Vec<u8> {
    if format == Format::Bf16 {
        return bytes;
    }
    let numbers = blocks::dequantise(format, &bytes);
    numbers.into_iter().flat_map(|number| Bf16::from_f32(number).0.to_le_bytes()).collect()
}
