//! Facts about a tensor between nodes, and those that its values tell where the file has them.

use super::growth::FREE;
use super::node::Node;
use super::tensor::Tensor;
use super::wire::Message;

/// Values of a constant that are looked at.
const VALUES_MAX: usize = 64;
/// Where an exporter says "to the end".
const FAR: i64 = i32::MAX as i64;
/// Bits of numbers that no sum or product of them wraps: one fewer than INT64 has for them.
const BITS_MAX: u8 = 62;
/// Bits of the length of a dimension, at most: a tensor that is longer and not empty takes gigabytes.
pub(super) const DIMENSION: u8 = 31;

/// What is known of a tensor.
#[derive(Clone, Debug, Default)]
pub(super) struct Fact {
    /// It has an element, unless an input of the model has none.
    pub(super) full: bool,
    /// Whatever elements it has are 1 or more, and have at most so many bits, unless an input of the model has no element;
    /// 0 where that is not known.
    pub(super) counts: u8,
    /// Its numbers are INT32, if whole.
    pub(super) short: bool,
    /// It has one dimension.
    pub(super) vector: bool,
    /// Nothing but the shapes of inputs has a part in it.
    pub(super) fixed: bool,
    /// It is in the file and has an element, or is computed of such alone by what keeps it so.
    pub(super) held: bool,
    /// Its numbers are whole ones, or truth values.
    pub(super) whole: bool,
    /// Its first dimension is one that the graph put before that of rows.
    pub(super) raised: bool,
    /// What its numbers are free of: what comes from outside and could make them as large as somebody likes (`growth`).
    pub(super) free: u64,
    /// Whole numbers of a short constant.
    pub(super) values: Option<Vec<i64>>,
}

impl Fact {
    /// What is so of both.
    pub(super) fn meet(&self, other: &Fact) -> Fact {
        let same = self.values == other.values;
        Fact {
            full: self.full && other.full,
            counts: if self.counts.min(other.counts) == 0 { 0 } else { self.counts.max(other.counts) },
            short: self.short || other.short,
            vector: self.vector && other.vector,
            fixed: self.fixed && other.fixed,
            held: self.held && other.held,
            whole: self.whole && other.whole,
            raised: self.raised && other.raised,
            free: self.free & other.free,
            values: self.values.clone().filter(|_| same),
        }
    }

    /// Of a constant with these values.
    fn of(full: bool, short: bool, values: Option<Vec<i64>>) -> Fact {
        let counting = values.as_ref().filter(|values| values.iter().all(|value| *value >= 1));
        let bits = |value: i64| (64 - value.leading_zeros()) as u8;
        let counts = counting.map_or(0, |values| bounded(bits(values.iter().copied().max().unwrap_or(1)), false));
        let whole = values.is_some();
        Fact { full, counts, short, fixed: true, held: full, whole, free: FREE, values, ..Fact::default() }
    }
}

/// So many bits, where that is not too many to say; of INT32, where it holds them.
pub(super) fn bounded(bits: u8, short: bool) -> u8 {
    let most = if short { DIMENSION } else { BITS_MAX };
    if bits <= most { bits } else { 0 }
}

/// Inputs of a node; `None` where one is left out.
#[derive(Clone, Copy)]
pub(super) struct Given<'b>(pub(super) &'b [Option<Fact>]);

impl<'b> Given<'b> {
    /// Without the first, so many of them.
    pub(super) fn after(&self, count: usize) -> Given<'b> {
        Given(self.0.get(count..).unwrap_or_default())
    }

    fn at(&self, place: usize) -> Option<&Fact> {
        self.0.get(place)?.as_ref()
    }

    pub(super) fn is_there(&self, place: usize) -> bool {
        self.at(place).is_some()
    }

    pub(super) fn full(&self, place: usize) -> bool {
        self.at(place).is_some_and(|fact| fact.full)
    }

    pub(super) fn counts(&self, place: usize) -> u8 {
        self.at(place).map_or(0, |fact| fact.counts)
    }

    pub(super) fn vector(&self, place: usize) -> bool {
        self.at(place).is_some_and(|fact| fact.vector)
    }

    pub(super) fn fixed(&self, place: usize) -> bool {
        self.at(place).is_some_and(|fact| fact.fixed)
    }

    pub(super) fn whole(&self, place: usize) -> bool {
        self.at(place).is_some_and(|fact| fact.whole)
    }

    pub(super) fn any_whole(&self) -> bool {
        self.0.iter().flatten().any(|fact| fact.whole)
    }

    pub(super) fn raised(&self, place: usize) -> bool {
        self.at(place).is_some_and(|fact| fact.raised)
    }

    /// Is one of them, and each other one of no request?
    pub(super) fn all_raised(&self) -> bool {
        let facts = || self.0.iter().flatten();
        facts().any(|fact| fact.raised) && facts().all(|fact| fact.raised || fact.fixed)
    }

    pub(super) fn values(&self, place: usize) -> Option<&[i64]> {
        self.at(place)?.values.as_deref()
    }

    /// Of one that is left out, all.
    pub(super) fn free(&self, place: usize) -> u64 {
        self.at(place).map_or(FREE, |fact| fact.free)
    }

    /// Of so many from this place on.
    pub(super) fn all_free(&self, first: usize, count: usize) -> u64 {
        self.0.iter().skip(first).take(count).flatten().fold(FREE, |all, fact| all & fact.free)
    }

    pub(super) fn all_full(&self) -> bool {
        self.0.iter().flatten().all(|fact| fact.full)
    }

    /// Of the longest, where all count.
    pub(super) fn all_count(&self) -> u8 {
        self.counting().map_or(0, |bits| bits.max().unwrap_or(0))
    }

    /// Of their sum.
    pub(super) fn sum_counts(&self) -> u8 {
        let sum = |most: u8, bits: u8| most.max(bits).saturating_add(1);
        self.counting().map_or(0, |bits| bounded(bits.fold(0, sum), self.short()))
    }

    /// Of their product.
    pub(super) fn product_counts(&self) -> u8 {
        self.counting().map_or(0, |bits| bounded(bits.fold(0, u8::saturating_add), self.short()))
    }

    /// Is one of them INT32?
    pub(super) fn short(&self) -> bool {
        self.0.iter().flatten().any(|fact| fact.short)
    }

    /// The bits of each, where all count.
    fn counting(&self) -> Option<impl Iterator<Item = u8> + '_> {
        let facts = || self.0.iter().flatten();
        facts().all(|fact| fact.counts > 0).then(|| facts().map(|fact| fact.counts))
    }

    pub(super) fn all_fixed(&self) -> bool {
        self.0.iter().flatten().all(|fact| fact.fixed)
    }

    /// Are those from this place on in the file?
    pub(super) fn held_from(&self, place: usize) -> bool {
        self.0.iter().skip(place).flatten().all(|fact| fact.held)
    }

    /// Does a Slice with these inputs leave something of every length but 0? From the front, or up to the end.
    pub(super) fn slice_keeps(&self) -> bool {
        let (Some(starts), Some(ends)) = (self.values(1), self.values(2)) else { return false };
        let forwards = !self.is_there(4) || self.counts(4) > 0;
        let keeps = |(start, end): (&i64, &i64)| *start == 0 && *end >= 1 || *start < 0 && *end >= FAR;
        forwards && starts.len() == ends.len() && starts.iter().zip(ends).all(keeps)
    }
}

/// An attribute of a node.
#[derive(Default)]
pub(super) struct Attribute {
    /// Its whole number, or 0.
    pub(super) number: i64,
    /// Is each of its whole numbers, if it lists some, 1 or more?
    pub(super) counts: bool,
    /// Its whole numbers, if it lists some; the first of too many.
    pub(super) list: Vec<i64>,
    pub(super) tensor: Option<Fact>,
    text: Vec<u8>,
}

/// Is an attribute of it what its function is called with?
pub(super) fn refers(node: &Node<'_>) -> Result<bool, String> {
    for message in &node.attributes {
        for field in message.fields() {
            if field?.number == 21 {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Is the attribute there, and does it say something else than these?
pub(super) fn says_other(node: &Node<'_>, name: &str, these: &[&str]) -> Result<bool, String> {
    let said = attribute(node, name)?;
    Ok(said.is_some_and(|said| !these.iter().any(|word| said.text == word.as_bytes())))
}

/// The attribute of this name.
pub(super) fn attribute(node: &Node<'_>, name: &str) -> Result<Option<Attribute>, String> {
    for message in &node.attributes {
        if !is_named(*message, name)? {
            continue;
        }
        let mut found = Attribute::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                3 => found.number = field.whole()?,
                4 => found.text = field.message()?.bytes().to_vec(),
                5 => found.tensor = Some(tensor(field.message()?)?.1),
                8 => field.wholes(|number| {
                    if found.list.len() <= VALUES_MAX {
                        found.list.push(number);
                    }
                })?,
                _ => {}
            }
        }
        found.counts = found.list.len() <= VALUES_MAX && found.list.iter().all(|number| *number >= 1);
        return Ok(Some(found));
    }
    Ok(None)
}

fn is_named(attribute: Message<'_>, name: &str) -> Result<bool, String> {
    for field in attribute.fields() {
        let field = field?;
        if field.number == 1 {
            return Ok(field.text()? == name);
        }
    }
    Ok(false)
}

/// What a Constant node makes.
pub(super) fn constant(node: &Node<'_>) -> Result<Fact, String> {
    if let Some(fact) = attribute(node, "value")?.and_then(|found| found.tensor) {
        return Ok(fact);
    }
    if let Some(found) = attribute(node, "value_int")? {
        return Ok(Fact::of(true, false, Some(vec![found.number])));
    }
    if let Some(found) = attribute(node, "value_ints")? {
        let short = found.list.len() <= VALUES_MAX;
        return Ok(Fact::of(!found.list.is_empty(), false, Some(found.list).filter(|_| short)));
    }
    let scalar = attribute(node, "value_float")?.is_some() || attribute(node, "value_string")?.is_some();
    Ok(Fact::of(scalar, false, None))
}

/// The name of a tensor in the file, and what is known of it.
pub(super) fn tensor(message: Message<'_>) -> Result<(&str, Fact), String> {
    let read = Tensor::read(message)?;
    let full = !read.dims.contains(&0);
    let count = read.dims.iter().fold(1i64, |count, dim| count.saturating_mul(*dim));
    let values = match read.data_type {
        6 | 7 if count <= VALUES_MAX as i64 => whole_numbers(message, read.data_type)?,
        _ => None,
    };
    Ok((read.name, Fact::of(full, read.data_type == 6, values)))
}

/// Of a tensor of INT32 or INT64, if they are few and in the file.
fn whole_numbers(message: Message<'_>, data_type: i32) -> Result<Option<Vec<i64>>, String> {
    let (mut raw, mut listed) = (None, Vec::new());
    let mut take = |number| {
        if listed.len() <= VALUES_MAX {
            listed.push(number);
        }
    };
    for field in message.fields() {
        let field = field?;
        match field.number {
            // Where numbers of this type are listed.
            5 if data_type == 6 => field.wholes(&mut take)?,
            7 if data_type == 7 => field.wholes(&mut take)?,
            9 => raw = Some(field.message()?.bytes()),
            14 if field.whole_32()? != 0 => return Ok(None),
            _ => {}
        }
    }
    let numbers = match raw {
        Some(bytes) if data_type == 6 => {
            bytes.as_chunks::<4>().0.iter().map(|number| i64::from(i32::from_le_bytes(*number))).collect()
        }
        Some(bytes) => bytes.as_chunks::<8>().0.iter().map(|number| i64::from_le_bytes(*number)).collect(),
        None => listed,
    };
    Ok(Some(numbers).filter(|numbers: &Vec<i64>| numbers.len() <= VALUES_MAX))
}

/// Does a pool leave something of every length but 0? Where its window is longer than what there is, division rounds to
/// no output at a stride that the excess reaches.
pub(super) fn pool_keeps(node: &Node<'_>) -> Result<bool, String> {
    if says_other(node, "auto_pad", &["NOTSET"])? {
        // With padding to the same size there is an output for each step that has begun.
        return Ok(
            !says_other(node, "auto_pad", &["SAME_UPPER", "SAME_LOWER"])? && attribute(node, "dilations")?.is_none()
        );
    }
    let list = |name: &str| attribute(node, name).map(|found| found.map(|found| found.list).unwrap_or_default());
    let (window, strides, pads, spread) = (list("kernel_shape")?, list("strides")?, list("pads")?, list("dilations")?);
    let at = |numbers: &[i64], place: usize, otherwise: i64| numbers.get(place).copied().unwrap_or(otherwise);
    Ok(!window.is_empty()
        && window.iter().enumerate().all(|(axis, length)| {
            let reach = length.saturating_sub(1).saturating_mul(at(&spread, axis, 1));
            let added = at(&pads, axis, 0).saturating_add(at(&pads, axis + window.len(), 0));
            reach.saturating_sub(added) < at(&strides, axis, 1)
        }))
}
