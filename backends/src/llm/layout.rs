//! Where a decoder's matrices lie among the tensors of its files.
//!
//! The forward pass asks for a [`Slot`] of a layer (and an expert); files hold it whole, as some rows of a packed
//! tensor, or as one sheet of a stack. The differences end here: [`load`] answers with rows in order, in the format
//! of the file.
//!
//! ```text
//! Packing    stored rows                      Query, Key, Value   [ q q q q | k k | v v ]   Phi-3
//! Whole      [ m m m m ]                      First/SecondHalf    [ g g g | u u u ]
//!                                             Even/OddRows        [ g u g u g u ]           gpt-oss
//! ```

use super::calibration;
use super::spec::{DecoderSpec, Placement, QkNorm};
use super::weights::groups::{Groups, Stored};
use super::weights::{Format, Matrix, Weights, put};
use crate::error::LoadError;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, Range};
use std::path::Path;

/// What a slot is called, and how it lies in the tensor of that name.
pub type Name = (Slot, &'static str, Packing);

/// A matrix or vector of the forward pass. Shapes are rows by columns, outputs by inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names say it
pub enum Slot {
    Embedding,
    FinalNorm,
    Head,
    AttentionNormBefore,
    AttentionNormAfter,
    MlpNormBefore,
    MlpNormAfter,
    Query,
    Key,
    Value,
    Output,
    QueryBias,
    KeyBias,
    ValueBias,
    OutputBias,
    QueryNorm,
    KeyNorm,
    Sinks,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
    Router,
    RouterBias,
    ExpertGate,
    ExpertUp,
    ExpertDown,
    ExpertGateBias,
    ExpertUpBias,
    ExpertDownBias,
}

/// How a slot lies in its tensor; see the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Packing {
    Whole,
    Query,
    Key,
    Value,
    FirstHalf,
    SecondHalf,
    EvenRows,
    OddRows,
}

/// One matrix or vector of a model: `layer` and `expert` are 0 where they mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which.
    pub slot: Slot,
    /// Of which layer.
    pub layer: usize,
    /// Of which expert.
    pub expert: usize,
}

impl Part {
    /// A part that belongs to no layer.
    pub fn global(slot: Slot) -> Self {
        Part { slot, layer: 0, expert: 0 }
    }
}

/// Where a part lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The tensor.
    pub name: String,
    /// The shape that the tensor must have.
    pub shape: Vec<usize>,
    /// Sheets of the stack; 1 where there is none.
    pub sheets: usize,
    /// Sheets of the stack before this one.
    pub sheet: usize,
    /// The first row, of the sheet.
    pub first: usize,
    /// From one row to the next.
    pub step: usize,
    /// Rows.
    pub rows: usize,
    /// Numbers in a row; 1 in a vector.
    pub columns: usize,
    /// Are rows and columns of the stored tensor exchanged?
    pub transposed: bool,
}

/// Every part of the model, layer by layer.
pub fn parts(spec: &DecoderSpec) -> Vec<Part> {
    let mut parts = vec![Part::global(Slot::Embedding), Part::global(Slot::FinalNorm)];
    if !spec.tied {
        parts.push(Part::global(Slot::Head));
    }
    for layer in 0..spec.layers.len() {
        parts.extend(layer_slots(spec, layer).into_iter().map(|slot| Part { slot, layer, expert: 0 }));
        let experts = spec.mixture.filter(|_| spec.layers[layer].mixture);
        let Some(mixture) = experts else { continue };
        let (weights, biases) = (EXPERT.iter(), EXPERT_BIAS.iter().take(if mixture.bias { 3 } else { 0 }));
        for slot in weights.chain(biases) {
            parts.extend((0..mixture.experts).map(|expert| Part { slot: *slot, layer, expert }));
        }
    }
    parts
}

const EXPERT: [Slot; 3] = [Slot::ExpertGate, Slot::ExpertUp, Slot::ExpertDown];
const EXPERT_BIAS: [Slot; 3] = [Slot::ExpertGateBias, Slot::ExpertUpBias, Slot::ExpertDownBias];

/// The slots of one layer, experts left out.
fn layer_slots(spec: &DecoderSpec, layer: usize) -> Vec<Slot> {
    use Slot::*;
    let mut slots = vec![Query, Key, Value, Output];
    if spec.norm.placement != Placement::After {
        slots.extend([AttentionNormBefore, MlpNormBefore]);
    }
    if spec.norm.placement != Placement::Before {
        slots.extend([AttentionNormAfter, MlpNormAfter]);
    }
    if spec.attention.qkv_bias {
        slots.extend([QueryBias, KeyBias, ValueBias]);
    }
    if spec.attention.out_bias {
        slots.push(OutputBias);
    }
    if spec.attention.qk_norm != QkNorm::None {
        slots.extend([QueryNorm, KeyNorm]);
    }
    if spec.attention.sinks {
        slots.push(Sinks);
    }
    match spec.mixture.filter(|_| spec.layers[layer].mixture) {
        Some(mixture) => {
            slots.push(Router);
            slots.extend(mixture.bias.then_some(RouterBias));
        }
        None => {
            slots.extend([Gate, Up, Down]);
            slots.extend(if spec.mlp_bias { &[GateBias, UpBias, DownBias][..] } else { &[] });
        }
    }
    slots
}

/// Rows of a slot, and its columns; `None` for a vector.
pub fn shape(spec: &DecoderSpec, slot: Slot) -> (usize, Option<usize>) {
    let (hidden, attention) = (spec.hidden, &spec.attention);
    let (query, kv) = (attention.query_width(), attention.kv_width());
    let (experts, expert) = spec.mixture.map_or((0, 0), |mixture| (mixture.experts, mixture.intermediate));
    let norm = |full: usize| if attention.qk_norm == QkNorm::Full { full } else { attention.head_dim };
    match slot {
        Slot::Embedding | Slot::Head => (spec.vocab, Some(hidden)),
        Slot::FinalNorm | Slot::AttentionNormBefore | Slot::AttentionNormAfter => (hidden, None),
        Slot::MlpNormBefore | Slot::MlpNormAfter => (hidden, None),
        Slot::Query => (query, Some(hidden)),
        Slot::Key | Slot::Value => (kv, Some(hidden)),
        Slot::Output => (hidden, Some(query)),
        Slot::QueryBias => (query, None),
        Slot::KeyBias | Slot::ValueBias => (kv, None),
        Slot::OutputBias | Slot::DownBias | Slot::ExpertDownBias => (hidden, None),
        Slot::QueryNorm => (norm(query), None),
        Slot::KeyNorm => (norm(kv), None),
        Slot::Sinks => (attention.heads, None),
        Slot::Gate | Slot::Up => (spec.intermediate, Some(hidden)),
        Slot::Down => (hidden, Some(spec.intermediate)),
        Slot::GateBias | Slot::UpBias => (spec.intermediate, None),
        Slot::Router => (experts, Some(hidden)),
        Slot::RouterBias => (experts, None),
        Slot::ExpertGate | Slot::ExpertUp => (expert, Some(hidden)),
        Slot::ExpertDown => (hidden, Some(expert)),
        Slot::ExpertGateBias | Slot::ExpertUpBias => (expert, None),
    }
}

fn is_expert(slot: Slot) -> bool {
    EXPERT.contains(&slot) || EXPERT_BIAS.contains(&slot)
}

/// The row of the name tables for `slot`.
fn name(spec: &DecoderSpec, slot: Slot) -> Option<(&'static str, Packing)> {
    let mut rows = spec.names.tables.iter().flat_map(|table| table.iter());
    rows.find(|(found, _, _)| *found == slot).map(|(_, name, packing)| (*name, *packing))
}

/// Where `part` lies; `None` where the names have no such slot. `format` is the stored tensor's, since gpt-oss lays
/// out its experts by it.
pub fn place(spec: &DecoderSpec, part: Part, format: Format) -> Option<Place> {
    let (template, packing) = name(spec, part.slot)?;
    let (rows, columns) = shape(spec, part.slot);
    let (query, kv) = (spec.attention.query_width(), spec.attention.kv_width());
    let (stored_rows, first, step) = match packing {
        Packing::Whole => (rows, 0, 1),
        Packing::Query => (query + 2 * kv, 0, 1),
        Packing::Key => (query + 2 * kv, query, 1),
        Packing::Value => (query + 2 * kv, query + kv, 1),
        Packing::FirstHalf => (2 * rows, 0, 1),
        Packing::SecondHalf => (2 * rows, rows, 1),
        Packing::EvenRows => (2 * rows, 0, 2),
        Packing::OddRows => (2 * rows, 1, 2),
    };
    let stacked = is_expert(part.slot) && !template.contains("{e}");
    // gpt-oss saved unquantised has its experts' matrices inputs by outputs, unlike everything else.
    let transposed = stacked && columns.is_some() && format.is_float() && spec.names.transposed;
    let (sheets, sheet) = match spec.mixture {
        Some(mixture) if stacked => (mixture.experts, part.expert),
        _ => (1, 0),
    };
    let mut shape = Vec::with_capacity(3);
    shape.extend(stacked.then_some(sheets));
    match (columns, transposed) {
        (None, _) => shape.push(stored_rows),
        (Some(columns), false) => shape.extend([stored_rows, columns]),
        (Some(columns), true) => shape.extend([columns, stored_rows]),
    }
    let name = template.replace("{l}", &part.layer.to_string()).replace("{e}", &part.expert.to_string());
    Some(Place { name, shape, sheets, sheet, first, step, rows, columns: columns.unwrap_or(1), transposed })
}

/// Tensors named in an error before "and others".
const NAMED: usize = 8;

/// Has `weights` every tensor that the model needs, of the right shape, and no other?
///
/// For files of which all is known. Those that are served may have other parts besides, such as an encoder of pictures:
/// [`check_served`].
///
/// # Errors
/// Missing and unexpected tensors by name; for a wrong shape, both.
pub fn check(spec: &DecoderSpec, weights: &dyn Weights) -> Result<(), LoadError> {
    check_all(spec, weights, |_| true)
}

/// Has `weights` every tensor that the model needs, of the right shape, and in its layers no vector besides? That would be
/// a bias or a norm that the forward pass leaves out.
///
/// # Errors
/// As [`check`].
pub fn check_served(spec: &DecoderSpec, weights: &dyn Weights) -> Result<(), LoadError> {
    let query = name(spec, Slot::Query).and_then(|(query, _)| query.split_once("{l}"));
    let in_layers = |found: &str| {
        let layer = query.and_then(|(before, _)| found.strip_prefix(before)?.split('.').next()?.parse::<usize>().ok());
        layer.is_some_and(|layer| layer < spec.layers.len())
    };
    let is_vector = |name: &str| weights.info(name).is_some_and(|info| matches!(*info.shape, [size] if size > 1));
    check_all(spec, weights, |name| in_layers(name) && is_vector(name))
}

/// `counts`: is an unexpected tensor of this name an error?
fn check_all(spec: &DecoderSpec, weights: &dyn Weights, counts: impl Fn(&str) -> bool) -> Result<(), LoadError> {
    let refuse = |reason: String| LoadError::new(weights.file(), reason);
    let mut missing = BTreeSet::new();
    let mut expected = BTreeSet::new();
    for part in parts(spec) {
        let named = place(spec, part, Format::F32).ok_or_else(|| refuse(format!("has no name for {part:?}")))?;
        let Some(info) = weights.info(&named.name) else {
            missing.insert(named.name);
            continue;
        };
        let place = place(spec, part, info.format).unwrap_or(named);
        if info.shape != place.shape {
            let (name, found, wanted) = (place.name, &info.shape, place.shape);
            return Err(refuse(format!("tensor '{name}' has shape {found:?}; the configuration makes it {wanted:?}")));
        }
        expected.insert(place.name);
    }
    expected.extend(calibration::all_names(spec));
    let unexpected: Vec<_> = weights
        .names()
        .into_iter()
        .filter(|name| !expected.contains(*name) && !is_ignored(spec, name) && counts(name))
        .filter(|name| !adds_nothing(spec, weights, name))
        .map(|name| name.escape_debug().to_string())
        .collect();
    let list = |what: &str, names: Vec<String>| match names.len() {
        0 => String::new(),
        count if count > NAMED => format!("{what} {count} tensors: {}, and others; ", names[..NAMED].join(", ")),
        count => format!("{what} {count} tensors: {}; ", names.join(", ")),
    };
    let reason = list("lacks", missing.into_iter().collect()) + &list("has unexpected", unexpected);
    if reason.is_empty() { Ok(()) } else { Err(refuse(reason.trim_end_matches("; ").to_owned())) }
}

/// Tensors that say nothing new: saved tables of angles, rotation factors that the spec has taken over, and the copy
/// of a tied head.
fn is_ignored(spec: &DecoderSpec, name: &str) -> bool {
    let angles = name.ends_with(".rotary_emb.inv_freq") || name.starts_with("rope_");
    angles || (spec.tied && (name == "lm_head.weight" || name == "output.weight"))
}

/// Is it a bias of zeros, as old writers of GPTQ give to every matrix?
fn adds_nothing(spec: &DecoderSpec, weights: &dyn Weights, name: &str) -> bool {
    let Some(info) = weights.info(name).filter(|_| spec.packed.is_some() && name.ends_with(".bias")) else {
        return false;
    };
    let size = info.format.bytes(&info.shape).unwrap_or(0);
    info.shape.len() == 1 && weights.read(name, 0..size).is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0))
}

/// Numbers of all tensors together; `None` where they do not fit 64 bits.
pub fn parameters(spec: &DecoderSpec) -> Option<u64> {
    let mut tensors = BTreeMap::new();
    for part in parts(spec) {
        let place = place(spec, part, Format::F32)?;
        tensors.insert(place.name, place.shape);
    }
    tensors.values().try_fold(0u64, |sum, shape| {
        let product = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64))?;
        sum.checked_add(product)
    })
}

/// Reads `part` in its file's format, rows in order.
///
/// # Errors
/// The tensor is missing, has another shape than the configuration makes it, or cannot be read.
pub fn load(spec: &DecoderSpec, weights: &dyn Weights, part: Part) -> Result<Matrix, LoadError> {
    rows(spec, weights, part)?.matrix()
}

/// The rows of a part, which may be read a few at a time; `W` points to the weights.
pub struct Rows<W> {
    weights: W,
    place: Place,
    format: Format,
    /// Where its sheet begins in the tensor, in bytes.
    start: usize,
    /// Bytes of its sheet.
    sheet_bytes: usize,
    /// Bytes of a row.
    row: usize,
}

/// Finds the rows of `part`; nothing is read yet.
///
/// # Errors
/// The tensor is missing or has another shape than the configuration makes it.
pub fn rows<W: Deref<Target: Weights>>(spec: &DecoderSpec, weights: W, part: Part) -> Result<Rows<W>, LoadError> {
    let refuse = |reason: String| LoadError::new(weights.file(), reason);
    let named = place(spec, part, Format::F32).ok_or_else(|| refuse(format!("has no name for {part:?}")))?;
    let info = weights.info(&named.name).ok_or_else(|| refuse(format!("lacks tensor '{}'", named.name)))?;
    let place = place(spec, part, info.format).unwrap_or(named);
    if info.shape != place.shape {
        return Err(refuse(format!("tensor '{}' has shape {:?}; expected {:?}", place.name, info.shape, place.shape)));
    }
    let odd = || refuse(format!("tensor '{}' cannot be cut into rows", place.name));
    let format = info.format;
    let sheet_bytes = format.bytes(&place.shape).ok_or_else(odd)? / place.sheets;
    let row = format.bytes(&[place.columns]).ok_or_else(odd)?;
    Ok(Rows { weights, format, start: place.sheet * sheet_bytes, sheet_bytes, row, place })
}

impl<W: Deref<Target: Weights>> Rows<W> {
    /// How its numbers are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.place.rows, self.place.columns)
    }

    /// Does reading some rows read no others? Where it does not, they are better read all at once.
    pub fn in_order(&self) -> bool {
        !self.place.transposed && self.weights.in_order(&self.place.name)
    }

    /// Has the system read them into its own pages, as [`Weights::fetch`] says.
    pub fn fetch(&self) -> bool {
        self.weights.fetch(&self.place.name, self.start..self.start + self.sheet_bytes)
    }

    /// The file or directory, for errors.
    pub fn file(&self) -> &Path {
        self.weights.file()
    }

    /// All of them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn matrix(&self) -> Result<Matrix, LoadError> {
        let bytes = self.read(0..self.place.rows)?;
        Ok(Matrix { format: self.format, rows: self.place.rows, columns: self.place.columns, bytes })
    }

    /// Some of them, which must be there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, rows: Range<usize>) -> Result<Vec<u8>, LoadError> {
        let Place { name, first, step, .. } = &self.place;
        if self.place.transposed {
            let sheet = self.weights.read(name, self.start..self.start + self.sheet_bytes)?;
            return Ok(gather_transposed(&self.place, rows, &sheet, self.format));
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let begin = self.start + (first + rows.start * step) * self.row;
        // The last row ends its stretch: of interleaved rows, those between are read and dropped.
        let stretch = ((rows.len() - 1) * step + 1) * self.row;
        let bytes = self.weights.read(name, begin..begin + stretch)?;
        Ok(if *step == 1 { bytes } else { bytes.chunks(self.row).step_by(*step).flatten().copied().collect() })
    }
}

impl<W: Deref<Target: Weights>> Rows<W> {
    /// The same as [`Rows::read`] where they are wanted; `to` is as long as they are.
    ///
    /// # Errors
    /// The file cannot be read, or `to` is not so long.
    pub fn read_into(&self, rows: Range<usize>, to: &mut [u8]) -> Result<(), LoadError> {
        let Place { name, first, step, .. } = &self.place;
        if self.place.transposed || *step != 1 || to.len() != rows.len() * self.row {
            return put(self.weights.file(), &self.read(rows)?, to);
        }
        self.weights.read_into(name, self.start + (first + rows.start) * self.row, to)
    }
}

/// The same rows as codes.
impl<W: Deref<Target: Weights>> Rows<W> {
    /// How they are kept as codes, where they are.
    pub fn stored(&self) -> Option<Stored> {
        self.weights.stored(&self.place.name).filter(|_| !self.place.transposed)
    }

    /// Codes of some of them, which must be there; `None` where there are no codes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_groups(&self, rows: Range<usize>) -> Result<Option<Groups>, LoadError> {
        let Place { name, first, step, sheet, shape, .. } = &self.place;
        if rows.is_empty() || self.place.transposed {
            return Ok(None);
        }
        let of_sheet = shape.iter().rev().nth(1).copied().unwrap_or(1);
        let begin = sheet * of_sheet + first + rows.start * step;
        // As in `read`: the last row ends its stretch.
        let groups = self.weights.read_groups(name, begin..begin + (rows.len() - 1) * step + 1)?;
        Ok(groups.map(|groups| groups.every(*step)))
    }
}

/// Rows of a sheet that is stored inputs by outputs.
fn gather_transposed(place: &Place, rows: Range<usize>, sheet: &[u8], format: Format) -> Vec<u8> {
    let size = format.block().1;
    let stored = place.shape[place.shape.len() - 1];
    let mut bytes = Vec::with_capacity(rows.len() * place.columns * size);
    for row in rows.map(|row| place.first + row * place.step) {
        for column in 0..place.columns {
            let at = (column * stored + row) * size;
            bytes.extend_from_slice(&sheet[at..at + size]);
        }
    }
    bytes
}
