//! Which tensors make up a packed matrix, and whether they fit each other.

use super::grid::{Grid, IN_ORDER, Integers};
use super::{Bits, Matrix, Scales, Scheme, Zeros};
use crate::error::LoadError;
use crate::llm::weights::safetensors_header::{Described, float};
use crate::llm::weights::shards::{Shards, Source, Tensors};
use std::io;
use std::num::NonZeroUsize;

/// AWQ's order of the integers of a word.
const AWQ_ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
/// Types of scales.
const FLOATS: [&str; 3] = ["F16", "BF16", "F32"];
/// What stands beside GPTQ's and AWQ's integers, `.qweight`.
const BESIDE_WORDS: [&str; 3] = [".qzeros", ".scales", ".g_idx"];
/// What stands beside those of compressed-tensors, `.weight_packed` or `.weight`. Inputs are not rounded here, so there
/// is no use for their scales.
const BESIDE_WEIGHT: [&str; 6] =
    [".weight_scale", ZEROS, ".weight_shape", ".weight_g_idx", ".input_scale", ".input_zero_point"];

/// Zeros of compressed-tensors.
const ZEROS: &str = ".weight_zero_point";

/// What a tensor is to a scheme.
pub(in crate::llm::weights) enum Role<'a> {
    /// The integers of the matrix NAME.weight.
    Integers(&'a str),
    /// It says something of such a matrix.
    Beside,
    /// It stands for itself.
    Other,
}

impl Scheme {
    /// What the tensor of this name is.
    pub(in crate::llm::weights) fn role<'a>(self, name: &'a str, tensors: &Tensors) -> Role<'a> {
        let has = |stem: &str, end: &str| tensors.contains_key(&format!("{stem}{end}"));
        let bytes = |stem: &str| tensors.get(&format!("{stem}.weight")).is_some_and(|(found, _)| found.dtype == "I8");
        let beside =
            |ends: &[&str], fits: &dyn Fn(&str) -> bool| ends.iter().filter_map(|end| name.strip_suffix(end)).any(fits);
        match self {
            Scheme::Gptq { .. } | Scheme::Awq { .. } => match name.strip_suffix(".qweight") {
                Some(stem) => Role::Integers(stem),
                None if beside(&BESIDE_WORDS, &|stem| has(stem, ".qweight")) => Role::Beside,
                None => Role::Other,
            },
            Scheme::CompressedTensors => {
                let of_bytes = name.strip_suffix(".weight").filter(|stem| bytes(stem));
                match name.strip_suffix(".weight_packed").or(of_bytes) {
                    Some(stem) => Role::Integers(stem),
                    None if beside(&BESIDE_WEIGHT, &|stem| has(stem, ".weight_packed") || bytes(stem)) => Role::Beside,
                    None => Role::Other,
                }
            }
        }
    }

    /// The matrix whose integers are the tensor `name`, which begins with `stem`.
    pub(in crate::llm::weights) fn matrix(
        self,
        shards: &Shards,
        tensors: &Tensors,
        name: &str,
        stem: &str,
    ) -> Result<Matrix, LoadError> {
        let (integers, source) = tensors.get(name).ok_or_else(|| shards.refuse(name, "is missing"))?;
        let find = Find { shards, tensors, name, stem, integers, source: *source };
        match self {
            Scheme::Gptq { bits, group, less_one } => find.gptq(bits, group, less_one),
            Scheme::Awq { group } => find.awq(group),
            Scheme::CompressedTensors if integers.dtype == "I8" => find.bytes(),
            Scheme::CompressedTensors => find.compressed(),
        }
    }
}

/// What one matrix is made of.
struct Find<'a> {
    shards: &'a Shards,
    tensors: &'a Tensors,
    /// Of the integers.
    name: &'a str,
    stem: &'a str,
    integers: &'a Described,
    source: Source,
}

impl Find<'_> {
    fn refuse(&self, reason: impl std::fmt::Display) -> LoadError {
        self.shards.refuse(self.name, reason)
    }

    /// Words, or bytes, of two dimensions of which none is 0.
    fn shape(&self, dtype: &str) -> Result<[usize; 2], LoadError> {
        match self.integers.shape.0[..] {
            [first, second] if first > 0 && second > 0 && self.integers.dtype == dtype => Ok([first, second]),
            ref shape => {
                let found = self.integers.dtype.escape_debug();
                Err(self.refuse(format!("is {found} of shape {shape:?}; expected {dtype} of two dimensions above 0")))
            }
        }
    }

    /// The tensor `stem` + `end`, where it is there, which has one of these types and shapes.
    fn part(&self, end: &str, dtypes: &[&str], shapes: &[&[usize]]) -> Result<Option<(&Described, Source)>, LoadError> {
        let name = format!("{}{end}", self.stem);
        let Some((found, source)) = self.tensors.get(&name) else { return Ok(None) };
        if dtypes.contains(&found.dtype.as_str()) && shapes.contains(&&found.shape.0[..]) {
            return Ok(Some((found, *source)));
        }
        let (dtype, shape) = (found.dtype.escape_debug(), &found.shape.0);
        let shapes: Vec<_> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
        let (dtypes, shapes) = (dtypes.join(" or "), shapes.join(" or "));
        let (integers, of) = (self.name.escape_debug(), &self.integers.shape.0);
        let reason = format!(
            "is {dtype} of shape {shape:?}; beside '{integers}' of shape {of:?} it has to be {dtypes} of shape {shapes}"
        );
        Err(self.shards.refuse(&name, reason))
    }

    /// The same, which must be there.
    fn needed(&self, end: &str, dtypes: &[&str], shapes: &[&[usize]]) -> Result<(&Described, Source), LoadError> {
        let missing = || self.refuse(format!("has no '{}{end}' beside it", self.stem.escape_debug()));
        self.part(end, dtypes, shapes)?.ok_or_else(missing)
    }

    fn gptq(&self, bits: Bits, group: Option<NonZeroUsize>, less_one: bool) -> Result<Matrix, LoadError> {
        let [lines, rows] = self.shape("I32")?;
        let (bits, order) = (bits.count(), bits.order());
        let columns = lines.checked_mul(order.len()).ok_or_else(|| self.refuse("has too many rows"))?;
        let group = group.map_or(columns, |group| group.get().min(columns));
        let groups = columns.div_ceil(group);
        let (scales, zeros) = self.beside_words(rows, groups, order.len())?;
        let grid = Grid { source: self.source, cell: 4, lines, width: rows, beside: true, together: 1 };
        // One subtraction of words took 1 from all their zeros, and a zero of 0 borrowed from the next; adding carries.
        let plus = if less_one { u32::MAX / ((1 << bits) - 1) } else { 0 };
        let zeros = Integers { grid: zeros, bits, order, plus, columns: groups };
        Ok(Matrix {
            rows,
            columns,
            codes: Integers { grid, bits, order, plus: 0, columns },
            signed: false,
            scales,
            zeros: self.plain(zeros, rows)?,
            group,
            groups,
            order: self.order(".g_idx", columns, groups, group)?,
        })
    }

    fn awq(&self, group: Option<NonZeroUsize>) -> Result<Matrix, LoadError> {
        let [columns, width] = self.shape("I32")?;
        let rows = width.checked_mul(8).ok_or_else(|| self.refuse("has too many columns"))?;
        let group = group.map_or(columns, |group| group.get().min(columns));
        let groups = columns.div_ceil(group);
        let (scales, zeros) = self.beside_words(rows, groups, 8)?;
        let grid = Grid { source: self.source, cell: 4, lines: columns, width, beside: true, together: 8 };
        let integers = |grid, columns| Integers { grid, bits: 4, order: &AWQ_ORDER, plus: 0, columns };
        Ok(Matrix {
            rows,
            columns,
            codes: integers(grid, columns),
            signed: false,
            scales,
            zeros: self.plain(integers(zeros, groups), rows)?,
            group,
            groups,
            order: None,
        })
    }

    /// Scales and zeros of GPTQ and AWQ, `each` of the zeros to a word.
    fn beside_words(&self, rows: usize, groups: usize, each: usize) -> Result<(Scales, Grid), LoadError> {
        let (found, source) = self.needed(".scales", &FLOATS, &[&[groups, rows]])?;
        let format = float(&found.dtype).ok_or_else(|| self.refuse("has no scales"))?;
        let grid = Grid { source, cell: format.block().1, lines: groups, width: rows, beside: true, together: 1 };
        let width = rows.div_ceil(each);
        let (_, source) = self.needed(".qzeros", &["I32"], &[&[groups, width]])?;
        let zeros = Grid { source, cell: 4, lines: groups, width, beside: true, together: each };
        Ok((Scales { grid, format, shared: false }, zeros))
    }

    /// Zeros, of which it is seen whether all are in the middle.
    fn plain(&self, integers: Integers, rows: usize) -> Result<Zeros, LoadError> {
        let middle = 1 << (integers.bits - 1);
        let failed = |e: io::Error| self.refuse(format!("has zeros that cannot be read: {e}"));
        let zeros = integers.read(self.shards, &(0..rows)).map_err(failed)?;
        let all = zeros.unpack(&(0..rows)).iter().all(|zero| *zero == middle);
        Ok(if all { Zeros::Same(middle) } else { Zeros::Table { integers, signed: false, plus: 0, shared: false } })
    }

    /// Integers packed along inputs, output after output.
    fn compressed(&self) -> Result<Matrix, LoadError> {
        let [rows, width] = self.shape("I32")?;
        let columns = self.columns(rows)?;
        let (four, eight) = (columns.div_ceil(8), columns.div_ceil(4));
        let bits = match (width == four, width == eight) {
            (true, false) => Bits::Four,
            (false, true) => Bits::Eight,
            _ => {
                let shape = &self.integers.shape.0;
                let reason = format!("{columns} inputs take {four} words of 4 bits each, or {eight} of 8");
                return Err(self.refuse(format!("has shape {shape:?}; {reason}, which are read")));
            }
        };
        let (scales, groups) = self.scales_of_rows(rows, columns)?;
        let zeros = self.tensors.get(&format!("{}{ZEROS}", self.stem));
        let zeros = if zeros.is_some_and(|(found, _)| found.dtype == "I32") {
            self.zeros_of_words(bits, rows, groups)?
        } else {
            let middle = 1 << (bits.count() - 1);
            self.zeros_of_bytes([rows, groups], scales.shared, middle)?.unwrap_or(Zeros::Same(middle))
        };
        let (bits, order) = (bits.count(), bits.order());
        let grid = Grid { source: self.source, cell: 4, lines: rows, width, beside: false, together: 1 };
        let group = columns.div_ceil(groups);
        Ok(Matrix {
            rows,
            columns,
            codes: Integers { grid, bits, order, plus: 0, columns },
            signed: false,
            scales,
            zeros,
            group,
            groups,
            order: self.order(".weight_g_idx", columns, groups, group)?,
        })
    }

    /// Integers of a byte each.
    fn bytes(&self) -> Result<Matrix, LoadError> {
        let [rows, columns] = self.shape("I8")?;
        let (scales, groups) = self.scales_of_rows(rows, columns)?;
        let zeros = self.zeros_of_bytes([rows, groups], scales.shared, 0)?.unwrap_or(Zeros::Same(0));
        Ok(Matrix {
            rows,
            columns,
            codes: bytes(self.source, rows, columns),
            signed: true,
            scales,
            zeros,
            group: columns.div_ceil(groups),
            groups,
            order: None,
        })
    }

    /// Zeros of compressed-tensors, packed along outputs.
    fn zeros_of_words(&self, bits: Bits, rows: usize, groups: usize) -> Result<Zeros, LoadError> {
        let (bits, order) = (bits.count(), bits.order());
        let (lines, together) = (rows.div_ceil(order.len()), order.len());
        let (_, source) = self.needed(ZEROS, &["I32"], &[&[lines, groups]])?;
        let grid = Grid { source, cell: 4, lines, width: groups, beside: false, together };
        let integers = Integers { grid, bits, order, plus: 0, columns: groups };
        Ok(Zeros::Table { integers, signed: false, plus: 0, shared: false })
    }

    /// The same of a byte each, where there are any: around 0, where integers are around `middle`.
    fn zeros_of_bytes(&self, shape: [usize; 2], shared: bool, middle: u8) -> Result<Option<Zeros>, LoadError> {
        let [rows, groups] = shape;
        let one: &[&[usize]] = &[&[], &[1], &[1, 1]];
        let each: &[&[usize]] = &[&shape, &[rows]];
        let shapes = if shared {
            one
        } else if groups == 1 {
            each
        } else {
            &each[..1]
        };
        let found = self.part(ZEROS, &["I8"], shapes)?;
        Ok(found.map(|(_, source)| {
            let integers = bytes(source, if shared { 1 } else { rows }, groups);
            Zeros::Table { integers, signed: true, plus: middle, shared }
        }))
    }

    /// Inputs of a matrix of compressed-tensors: a word may have room for more of them than there are.
    fn columns(&self, rows: usize) -> Result<usize, LoadError> {
        let (found, source) = self.needed(".weight_shape", &["I64", "I32"], &[&[2]])?;
        let size = if found.dtype == "I64" { 8 } else { 4 };
        let failed = |e: io::Error| self.refuse(format!("has a shape that cannot be read: {e}"));
        let bytes = self.shards.read(source, 0, 2 * size).map_err(failed)?;
        let mut numbers = bytes.chunks_exact(size).map(|bytes| {
            let mut number = [0; 8];
            number[..size].copy_from_slice(bytes);
            u64::from_le_bytes(number)
        });
        match (numbers.next(), numbers.next()) {
            (Some(outputs), Some(inputs)) if outputs == rows as u64 && inputs > 0 && inputs <= u64::from(u32::MAX) => {
                Ok(inputs as usize)
            }
            (outputs, inputs) => {
                let (outputs, inputs) = (outputs.unwrap_or(0), inputs.unwrap_or(0));
                Err(self.refuse(format!(
                    "has {rows} rows, and '{}.weight_shape' says {outputs} by {inputs}",
                    self.stem.escape_debug()
                )))
            }
        }
    }

    /// Scales of compressed-tensors, and how many of an output: one for all, one of each, or one of each and group.
    fn scales_of_rows(&self, rows: usize, columns: usize) -> Result<(Scales, usize), LoadError> {
        let name = format!("{}.weight_scale", self.stem);
        let groups = match self.tensors.get(&name).map(|(found, _)| &found.shape.0[..]) {
            Some([first, groups]) if *first == rows && (1..=columns).contains(groups) => *groups,
            _ => 1,
        };
        if !columns.is_multiple_of(groups) {
            return Err(
                self.refuse(format!("has {columns} inputs, which {groups} scales of each output do not divide"))
            );
        }
        let shapes: &[&[usize]] = &[&[rows, groups], &[rows], &[], &[1], &[1, 1]];
        let (found, source) = self.needed(".weight_scale", &FLOATS, shapes)?;
        let format = float(&found.dtype).ok_or_else(|| self.refuse("has no scales"))?;
        let shared = found.shape.0.iter().all(|dim| *dim == 1);
        let lines = if shared { 1 } else { rows };
        let grid = Grid { source, cell: format.block().1, lines, width: groups, beside: false, together: 1 };
        Ok((Scales { grid, format, shared }, groups))
    }

    /// The group of each input; `None` where each group is the next stretch of them.
    fn order(&self, end: &str, columns: usize, groups: usize, group: usize) -> Result<Option<Vec<u32>>, LoadError> {
        let Some((_, source)) = self.part(end, &["I32"], &[&[columns]])? else { return Ok(None) };
        let name = format!("{}{end}", self.stem);
        let failed = |e: io::Error| self.shards.refuse(&name, format!("cannot be read: {e}"));
        let bytes = self.shards.read(source, 0, 4 * columns).map_err(failed)?;
        let order: Vec<u32> =
            bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
        // Who sets the group of no input leaves 0 or -1 everywhere.
        let unset = [0, u32::MAX].iter().any(|value| order.iter().all(|index| index == value));
        if unset || order.iter().enumerate().all(|(column, index)| *index as usize == column / group) {
            return Ok(None);
        }
        match order.iter().position(|index| *index as usize >= groups) {
            None => Ok(Some(order)),
            Some(column) => {
                let index = order[column] as i32;
                Err(self
                    .shards
                    .refuse(&name, format!("says that input {column} is of group {index}; there are {groups}")))
            }
        }
    }
}

/// Integers of a byte each, line after line.
fn bytes(source: Source, lines: usize, width: usize) -> Integers {
    let grid = Grid { source, cell: 1, lines, width, beside: false, together: 1 };
    Integers { grid, bits: 8, order: &IN_ORDER[..1], plus: 0, columns: width }
}
