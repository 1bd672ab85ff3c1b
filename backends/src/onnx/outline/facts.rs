//! Facts about a tensor between nodes, and those that its values tell where the file has them.

use super::tensor::Tensor;
use super::walk::Node;
use super::wire::Message;

/// Values of a constant that are looked at.
const VALUES_MAX: usize = 64;
/// Where an exporter says "to the end".
const FAR: i64 = i32::MAX as i64;

/// What is known of a tensor.
#[derive(Clone, Debug, Default)]
pub(super) struct Fact {
    /// It has an element, unless an input of the model has none.
    pub(super) full: bool,
    /// Whatever elements it has are 1 or more, unless an input of the model has none.
    pub(super) counts: bool,
    /// Nothing but the shapes of inputs has a part in it.
    pub(super) fixed: bool,
    /// It is in the file and has an element, or is computed of such alone.
    pub(super) held: bool,
    /// Whole numbers of a short constant.
    pub(super) values: Option<Vec<i64>>,
}

impl Fact {
    /// What is so of both.
    pub(super) fn meet(&self, other: &Fact) -> Fact {
        let same = self.values == other.values;
        Fact {
            full: self.full && other.full,
            counts: self.counts && other.counts,
            fixed: self.fixed && other.fixed,
            held: self.held && other.held,
            values: self.values.clone().filter(|_| same),
        }
    }

    /// Of a constant with these values.
    fn of(full: bool, values: Option<Vec<i64>>) -> Fact {
        let counts = values.as_ref().is_some_and(|values| values.iter().all(|value| *value >= 1));
        Fact { full, counts, fixed: true, held: full, values }
    }
}

/// Inputs of a node; `None` where one is left out.
#[derive(Clone, Copy)]
pub(super) struct Given<'b>(pub(super) &'b [Option<Fact>]);

impl Given<'_> {
    fn at(&self, place: usize) -> Option<&Fact> {
        self.0.get(place)?.as_ref()
    }

    pub(super) fn is_there(&self, place: usize) -> bool {
        self.at(place).is_some()
    }

    pub(super) fn full(&self, place: usize) -> bool {
        self.at(place).is_some_and(|fact| fact.full)
    }

    pub(super) fn counts(&self, place: usize) -> bool {
        self.at(place).is_some_and(|fact| fact.counts)
    }

    pub(super) fn fixed(&self, place: usize) -> bool {
        self.at(place).is_some_and(|fact| fact.fixed)
    }

    pub(super) fn values(&self, place: usize) -> Option<&[i64]> {
        self.at(place)?.values.as_deref()
    }

    pub(super) fn all_full(&self) -> bool {
        self.0.iter().flatten().all(|fact| fact.full)
    }

    pub(super) fn all_counts(&self) -> bool {
        self.0.iter().flatten().all(|fact| fact.counts)
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
        let forwards = !self.is_there(4) || self.counts(4);
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
    list: Vec<i64>,
    pub(super) tensor: Option<Fact>,
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
        return Ok(Fact::of(true, Some(vec![found.number])));
    }
    if let Some(found) = attribute(node, "value_ints")? {
        let short = found.list.len() <= VALUES_MAX;
        return Ok(Fact::of(!found.list.is_empty(), Some(found.list).filter(|_| short)));
    }
    let scalar = attribute(node, "value_float")?.is_some() || attribute(node, "value_string")?.is_some();
    Ok(Fact::of(scalar, None))
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
    Ok((read.name, Fact::of(full, values)))
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
