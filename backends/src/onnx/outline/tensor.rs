//! A tensor: do its dimensions, its type and its bytes fit each other, and where are those that are not here? Reads no
//! values, and opens no file.

use super::wire::{Field, Message, Width, once};
use super::{External, shown};

/// Dimensions of a tensor.
const RANK_MAX: usize = 64;
/// Bytes of the path of a file.
const LOCATION_BYTES_MAX: usize = 1024;

/// Text, which has no size that its shape tells.
const STRING: i32 = 8;

/// How the elements of a type are kept.
struct Elements {
    /// Of one, in raw bytes.
    bits: u64,
    /// The field that lists them.
    list: u32,
}

const FLOATS: u32 = 4;
const INT32S: u32 = 5;
const STRINGS: u32 = 6;
const INT64S: u32 = 7;
const DOUBLES: u32 = 10;
const UINT64S: u32 = 11;

impl Elements {
    /// Of the type that ONNX gives this number.
    fn of(data_type: i32) -> Option<Self> {
        let (bits, list) = match data_type {
            1 => (32, FLOATS),
            // uint8, int8, bool, and floats of eight bits.
            2 | 3 | 9 | 17..=20 | 24 => (8, INT32S),
            // uint16, int16, float16, bfloat16.
            4 | 5 | 10 | 16 => (16, INT32S),
            6 => (32, INT32S),
            7 => (64, INT64S),
            STRING => (0, STRINGS),
            11 => (64, DOUBLES),
            12 => (32, UINT64S),
            13 => (64, UINT64S),
            14 => (64, FLOATS),
            15 => (128, DOUBLES),
            // Whole numbers and floats of four, two and six bits.
            21..=23 => (4, INT32S),
            25 | 26 => (2, INT32S),
            27 | 28 => (6, INT32S),
            _ => return None,
        };
        Some(Elements { bits, list })
    }

    /// Raw bytes of so many.
    fn bytes(&self, count: u64) -> Option<u64> {
        count.checked_mul(self.bits).map(|bits| bits.div_ceil(8)).filter(|bytes| *bytes <= i64::MAX as u64)
    }

    /// Entries of the list for so many: a complex number takes two, those of two and four bits share one.
    fn entries(&self, count: u64) -> u64 {
        match (self.bits, self.list) {
            (64, FLOATS) | (128, DOUBLES) => count.saturating_mul(2),
            (2 | 4, _) => count.div_ceil(8 / self.bits),
            _ => count,
        }
    }
}

/// What a tensor says of itself.
#[derive(Default)]
pub(super) struct Tensor<'a> {
    pub(super) name: &'a str,
    pub(super) data_type: i32,
    /// One more than there may be, at most.
    pub(super) dims: Vec<i64>,
    /// Raw bytes.
    raw: Option<u64>,
    /// Entries by the field that lists them.
    listed: [u64; 12],
    is_external: bool,
    external: Vec<Message<'a>>,
}

impl<'a> Tensor<'a> {
    pub(super) fn read(message: Message<'a>) -> Result<Self, String> {
        let mut tensor = Tensor::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => dims(&field, &mut tensor.dims)?,
                2 => tensor.data_type = field.whole_32()?,
                FLOATS => tensor.count(&field, Width::Four)?,
                INT32S | INT64S | UINT64S => tensor.count(&field, Width::Varint)?,
                DOUBLES => tensor.count(&field, Width::Eight)?,
                STRINGS => {
                    field.message()?;
                    tensor.listed[STRINGS as usize] += 1;
                }
                8 => tensor.name = field.text()?,
                9 => tensor.raw = Some(field.message()?.len()),
                13 => tensor.external.push(field.message()?),
                14 => {
                    tensor.is_external = match field.whole_32()? {
                        0 => false,
                        1 => true,
                        place => return Err(format!("data_location is {place}; expected 0 (here) or 1 (external)")),
                    }
                }
                _ => {}
            }
        }
        Ok(tensor)
    }

    fn count(&mut self, field: &Field<'a>, width: Width) -> Result<(), String> {
        self.listed[field.number as usize] += field.count(width)?;
        Ok(())
    }

    /// Do dimensions, type and data fit each other? What lies outside the file.
    pub(super) fn check(&self) -> Result<Option<External>, String> {
        let count = elements(&self.dims)?;
        // Attributes have tensors that are left undefined.
        if self.data_type == 0 && self.dims.is_empty() && self.raw.is_none() && !self.is_external {
            return Ok(None);
        }
        let kind = Elements::of(self.data_type);
        let kind =
            kind.ok_or_else(|| format!("has data_type {}, which is unknown; expected 1 to 28", self.data_type))?;
        let bytes = kind.bytes(count).ok_or_else(|| format!("{} more bytes than can be counted", has(&self.dims)))?;
        if self.data_type == STRING && (self.is_external || self.raw.is_some()) {
            return Err("is text, but is given as bytes; text is listed in string_data".into());
        }
        if self.is_external {
            return self.external(bytes).map(Some);
        }
        if let Some(raw) = self.raw {
            let wrong = || format!("{} {bytes} bytes, but raw_data has {raw}", has(&self.dims));
            return if raw == bytes { Ok(None) } else { Err(wrong()) };
        }
        let (listed, entries) = (self.listed[kind.list as usize], kind.entries(count));
        if listed != entries {
            return Err(format!("{} {entries} values, but {listed} are listed", has(&self.dims)));
        }
        Ok(None)
    }

    fn external(&self, bytes: u64) -> Result<External, String> {
        if self.raw.is_some_and(|raw| raw > 0) {
            return Err("has raw_data and external data; one of them is right".into());
        }
        let (mut location, mut offset, mut length) = (None, None, None);
        for message in &self.external {
            let (key, value) = entry(*message)?;
            let place = match key {
                "location" => &mut location,
                "offset" => &mut offset,
                "length" => &mut length,
                "checksum" => continue,
                _ if key.starts_with("prepacked") => {
                    return Err("has prepacked weights, whose layout cannot be checked: save the model without \
                                session.save_external_prepacked_constant_initializers"
                        .into());
                }
                _ => {
                    return Err(format!(
                        "has {} in its external data; expected are location, offset, length and checksum",
                        shown(key)
                    ));
                }
            };
            if place.replace(value).is_some() {
                return Err(format!("has {} twice in its external data", shown(key)));
            }
        }
        let location = location.ok_or("has external data without a location: the name of the file is missing")?;
        plain(location)?;
        let offset = offset.map_or(Ok(0), |text| decimal("offset", text))?;
        let length = length.map(|text| decimal("length", text)).transpose()?;
        if let Some(length) = length.filter(|length| *length != bytes) {
            return Err(format!("{} {bytes} bytes, but the length of its external data is {length}", has(&self.dims)));
        }
        if offset.checked_add(bytes).is_none_or(|end| end > i64::MAX as u64) {
            return Err(format!("lies at byte {offset} of its external data, further than files reach"));
        }
        let (tensor, location) = (self.name.to_owned(), location.to_owned());
        Ok(External { tensor, location, offset, length, bytes, mapped: false })
    }
}

/// A sparse tensor: its values, and the indices of these.
pub(super) fn sparse(message: Message<'_>) -> Result<[Message<'_>; 2], String> {
    let (mut values, mut indices, mut sizes) = (None, None, Vec::new());
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => once(&mut values, &field)?,
            2 => once(&mut indices, &field)?,
            3 => dims(&field, &mut sizes)?,
            _ => {}
        }
    }
    let count = elements(&sizes)?;
    let values = values.ok_or("is sparse and has no values")?;
    let indices = indices.ok_or("is sparse and has no indices")?;
    // The library makes it a dense one.
    let kind = Elements::of(Tensor::read(values)?.data_type);
    match kind {
        Some(kind) if kind.bytes(count).is_none() => Err(format!("{} more bytes than can be counted", has(&sizes))),
        _ => Ok([values, indices]),
    }
}

/// Adds the dimensions of a field; once there are too many, no more.
fn dims(field: &Field<'_>, dims: &mut Vec<i64>) -> Result<(), String> {
    field.wholes(|dim| {
        if dims.len() <= RANK_MAX {
            dims.push(dim);
        }
    })
}

/// The elements of a shape; as many as can be counted.
fn elements(dims: &[i64]) -> Result<u64, String> {
    if dims.len() > RANK_MAX {
        return Err(format!("has more than {RANK_MAX} dimensions"));
    }
    if dims.iter().any(|dim| *dim < 0) {
        return Err(format!("has the dimensions {dims:?}; each must be 0 or more"));
    }
    // Zero dimensions are left out first, lest the order decides what is too large.
    let mut counted = dims.iter().filter(|dim| **dim != 0);
    let product = counted.try_fold(1u64, |product, dim| product.checked_mul(*dim as u64));
    let product = product.filter(|product| *product <= i64::MAX as u64);
    let product = product.ok_or_else(|| format!("{} more elements than can be counted", has(dims)))?;
    Ok(if dims.contains(&0) { 0 } else { product })
}

fn has(dims: &[i64]) -> String {
    format!("has the dimensions {dims:?}, which take")
}

/// A key and its value; either may be missing.
fn entry(message: Message<'_>) -> Result<(&str, &str), String> {
    let (mut key, mut value) = ("", "");
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => key = field.text()?,
            2 => value = field.text()?,
            _ => {}
        }
    }
    Ok((key, value))
}

/// Is this the path of a file beneath a folder, whatever system reads it?
fn plain(location: &str) -> Result<(), String> {
    let faults = [
        (location.is_empty(), "is empty"),
        (location.len() > LOCATION_BYTES_MAX, "is too long"),
        (location.starts_with('/'), "is absolute"),
        (location.contains('\\'), "has a backslash"),
        (location.contains(char::is_control), "has a control character"),
        (location.as_bytes().get(1) == Some(&b':'), "begins with a drive"),
        // ONNX Runtime takes "*/_ORT_MEM_ADDR_/*" and its like for addresses in memory.
        (location.contains('*'), "has a '*'"),
        (location.split('/').any(|part| matches!(part, "" | "." | "..")), "has an empty part, '.' or '..'"),
        (location.to_ascii_lowercase().ends_with(".onnx"), "is an .onnx file"),
    ];
    let Some((_, fault)) = faults.iter().find(|(found, _)| *found) else { return Ok(()) };
    Err(format!(
        "has its data in {}, which {fault}; expected is the plain path of a data file beneath the model's folder",
        shown(location)
    ))
}

/// A number of bytes.
fn decimal(key: &str, text: &str) -> Result<u64, String> {
    // Parsing lets a sign stand before it.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse::<u64>().ok().filter(|number| digits && *number <= i64::MAX as u64);
    number.ok_or_else(|| format!("has the {key} {} in its external data; expected is a number of bytes", shown(text)))
}
