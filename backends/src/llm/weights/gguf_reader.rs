//! The header of a GGUF file, read within its bounds: nothing is allocated that the file cannot hold.

use super::{Format, Info};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};

/// Bytes before the data. Tokens and merges of the largest vocabularies take about ten million.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a string: chat templates are the longest.
const STRING_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a key or a tensor's name.
const NAME_BYTES_MAX: u64 = 1 << 10;
/// Metadata entries.
const ENTRIES_MAX: u64 = 1 << 16;
/// Tensors.
const TENSORS_MAX: u64 = 200_000;
/// Elements of an array.
const ARRAY_MAX: u64 = 1 << 22;

/// Bytes that are read at a time.
const BUFFER: u64 = 128 << 10;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number of any width.
    Whole(i128),
    /// A number of either precision.
    Real(f64),
    /// True or false.
    Flag(bool),
    /// Text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers or flags. 32 bits hold those that there are: scores, kinds and ids of tokens, per-layer sizes.
    Numbers(Vec<f32>),
}

/// A tensor before its place is known to be good.
pub(super) struct Described {
    pub(super) name: String,
    pub(super) info: Info,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Metadata and tensors of a header.
pub(super) fn header(reader: &mut Reader<'_>) -> Result<(BTreeMap<String, Value>, Vec<Described>), String> {
    if reader.bytes(4)? != b"GGUF" {
        return Err("is no GGUF file".into());
    }
    let version = reader.u32()?;
    if version.swap_bytes() < 16 && version >= 16 {
        return Err("is a big-endian GGUF file, not supported".into());
    }
    if !(2..=3).contains(&version) {
        return Err(format!("is of GGUF version {version}; supported are 2 and 3"));
    }
    // A tensor takes at least 33 bytes, an entry 13.
    let tensors = reader.count("tensors", TENSORS_MAX, 33)?;
    let entries = reader.count("metadata entries", ENTRIES_MAX, 13)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = reader.string(NAME_BYTES_MAX)?;
        let kind = reader.u32()?;
        let value = reader.value(kind).map_err(|e| format!("metadata '{}': {e}", key.escape_debug()))?;
        if metadata.contains_key(&key) {
            return Err(format!("metadata '{}' appears twice", key.escape_debug()));
        }
        metadata.insert(key, value);
    }
    let described = (0..tensors).map(|_| reader.tensor()).collect::<Result<_, _>>()?;
    Ok((metadata, described))
}

/// The formats that are supported, by ggml's number.
fn format(number: u32) -> Option<Format> {
    Some(match number {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        8 => Format::Q8_0,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        30 => Format::Bf16,
        39 => Format::Mxfp4,
        _ => return None,
    })
}

/// Reads the header, and knows how much of it can be left.
pub(super) struct Reader<'a> {
    input: BufReader<&'a File>,
    pub(super) at: u64,
    /// The file's end, or the most that a header may have.
    end: u64,
}

impl<'a> Reader<'a> {
    /// The header of a file of `size` bytes.
    pub(super) fn new(file: &'a File, size: u64) -> Self {
        let end = size.min(HEADER_BYTES_MAX);
        Reader { input: BufReader::with_capacity(BUFFER.min(end) as usize, file), at: 0, end }
    }
}

impl Reader<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        if bytes.len() as u64 > self.end - self.at {
            return Err("the file (or the most that a header may have) ends here".into());
        }
        self.input.read_exact(bytes).map_err(|e| e.to_string())?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Allocates only what is known to be there.
    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, String> {
        if length > self.end - self.at {
            return Err(format!("{length} bytes are announced, {} remain", self.end - self.at));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, most: u64, least: u64) -> Result<u64, String> {
        let count = self.u64()?;
        let remain = (self.end - self.at) / least;
        if count > most.min(remain) {
            return Err(format!("{count} {what} are announced; at most {} fit", most.min(remain)));
        }
        Ok(count)
    }

    fn string(&mut self, most: u64) -> Result<String, String> {
        let length = self.u64()?;
        if length > most {
            return Err(format!("a string of {length} bytes is announced; the limit is {most}"));
        }
        String::from_utf8(self.bytes(length)?).map_err(|_| "a string is not UTF-8".into())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        match kind {
            8 => self.string(STRING_BYTES_MAX).map(Value::Text),
            9 => self.list(),
            7 => self.scalar(kind).map(|flag| Value::Flag(flag != Value::Whole(0))),
            _ => self.scalar(kind),
        }
    }

    /// A number; a flag as 0 or 1.
    fn scalar(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 | 7 => Value::Whole(self.array::<1>()?[0].into()),
            1 => Value::Whole(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Whole(self.u32()?.into()),
            5 => Value::Whole(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Real(f32::from_le_bytes(self.array()?).into()),
            10 => Value::Whole(self.u64()?.into()),
            11 => Value::Whole(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Real(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("type {kind} is unknown")),
        })
    }

    fn list(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => return Err(format!("a list of type {kind} is not supported")),
        };
        let count = self.count("elements", ARRAY_MAX, least)?;
        if kind == 8 {
            let mut texts = Vec::with_capacity(count as usize);
            for _ in 0..count {
                texts.push(self.string(STRING_BYTES_MAX)?);
            }
            return Ok(Value::Texts(texts));
        }
        let bytes = self.bytes(count * least)?;
        let numbers = match kind {
            0 | 7 => numbers(&bytes, |[byte]| byte.into()),
            1 => numbers(&bytes, |bytes| i8::from_le_bytes(bytes).into()),
            2 => numbers(&bytes, |bytes| u16::from_le_bytes(bytes).into()),
            3 => numbers(&bytes, |bytes| i16::from_le_bytes(bytes).into()),
            4 => numbers(&bytes, |bytes| u32::from_le_bytes(bytes) as f32),
            5 => numbers(&bytes, |bytes| i32::from_le_bytes(bytes) as f32),
            6 => numbers(&bytes, f32::from_le_bytes),
            10 => numbers(&bytes, |bytes| u64::from_le_bytes(bytes) as f32),
            11 => numbers(&bytes, |bytes| i64::from_le_bytes(bytes) as f32),
            _ => numbers(&bytes, |bytes| f64::from_le_bytes(bytes) as f32),
        };
        Ok(Value::Numbers(numbers))
    }

    fn tensor(&mut self) -> Result<Described, String> {
        let name = self.string(NAME_BYTES_MAX)?;
        let refuse = |fault: String| format!("tensor '{}' {fault}", name.escape_debug());
        let dims = self.u32()?;
        if !(1..=4).contains(&dims) {
            return Err(refuse(format!("has {dims} dimensions; expected 1 to 4")));
        }
        let mut shape = Vec::with_capacity(4);
        for _ in 0..dims {
            let size = self.u64()?;
            shape.push(usize::try_from(size).map_err(|_| refuse(format!("has a dimension of {size}")))?);
        }
        shape.reverse();
        let number = self.u32()?;
        let supported = "supported are F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K, MXFP4";
        let format = format(number).ok_or_else(|| refuse(format!("is of type {number}; {supported}")))?;
        let offset = self.u64()?;
        let bytes = format.bytes(&shape).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| refuse(format!("has the shape {shape:?}, impossible as {format:?}")))? as u64;
        Ok(Described { name, info: Info { format, shape }, offset, bytes })
    }
}

/// Numbers of `N` bytes each.
fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}
