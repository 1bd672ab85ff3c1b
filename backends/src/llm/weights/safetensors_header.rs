//! The header of a safetensors file: bounded, parsed, and held against the file's size. Reads no tensor.

use super::{Format, narrow};
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a header.
pub(super) const HEADER_BYTES_MAX: u64 = 32 << 20;
/// Tensors of a file.
const TENSORS_MAX: usize = 200_000;
/// Dimensions of a tensor.
const DIMS_MAX: usize = 8;

/// What a header says of a tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Described {
    pub(super) dtype: String,
    pub(super) shape: Dims,
    pub(super) data_offsets: [u64; 2],
}

/// Sizes of a tensor, few by construction.
pub(super) struct Dims(pub(super) Vec<usize>);

/// The tensors of a header, each name once.
pub(super) struct Header(pub(super) BTreeMap<String, Described>);

/// The format of a type that is a float.
pub(super) fn float(dtype: &str) -> Option<Format> {
    match dtype {
        "F32" => Some(Format::F32),
        "F16" => Some(Format::F16),
        "BF16" => Some(Format::Bf16),
        _ => None,
    }
}

/// Bytes of a number; `None` of types that nothing here reads.
fn size_of(dtype: &str) -> Option<usize> {
    match dtype {
        "U8" | "I8" | narrow::DTYPE => Some(1),
        "I32" => Some(4),
        "I64" => Some(8),
        dtype => float(dtype).map(|format| format.block().1),
    }
}

/// The header of a file of `size` bytes, and where its data begins.
pub(super) fn header(file: &File, size: u64) -> Result<(Header, u64), String> {
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(|_| format!("has {size} bytes, too few for a header"))?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX || length > size.saturating_sub(8) {
        return Err(format!(
            "announces a header of {length} bytes in a file of {size}; the limit is {HEADER_BYTES_MAX}"
        ));
    }
    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, 8).map_err(|e| e.to_string())?;
    let header = serde_json::from_slice(&text).map_err(|e| format!("has a malformed header: {e}"))?;
    Ok((header, 8 + length))
}

/// Are tensors as long as their shapes say, and do they tile the `size` bytes of data?
pub(super) fn tiles(header: &Header, size: u64) -> Result<(), String> {
    let mut spans: Vec<(u64, u64, &str)> = Vec::with_capacity(header.0.len());
    for (name, described) in &header.0 {
        let [begin, end] = described.data_offsets;
        let shown = name.escape_debug();
        if begin > end || end > size {
            return Err(format!("tensor '{shown}' lies at {begin}..{end} of {size} bytes"));
        }
        let bytes = |size| described.shape.0.iter().try_fold(size, |product: usize, dim| product.checked_mul(*dim));
        let size = size_of(&described.dtype);
        if size.is_some_and(|size| bytes(size).is_none_or(|bytes| bytes as u64 != end - begin)) {
            return Err(format!("tensor '{shown}' of shape {:?} has {} bytes", described.shape.0, end - begin));
        }
        spans.push((begin, end, name));
    }
    spans.sort_unstable();
    let mut at = 0;
    for (begin, end, name) in spans {
        if begin != at {
            let fault = if begin < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(format!("tensor '{}' at {begin}..{end} {fault}", name.escape_debug()));
        }
        at = end;
    }
    if at == size { Ok(()) } else { Err(format!("{} bytes after the last tensor", size - at)) }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("tensors by name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if tensors.len() == TENSORS_MAX {
                        return Err(A::Error::custom(format!("more than {TENSORS_MAX} tensors")));
                    } else if let Some(_twice) = tensors.insert(name, map.next_value()?) {
                        return Err(A::Error::custom("a tensor is named twice"));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Dims;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "at most {DIMS_MAX} sizes")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Dims, A::Error> {
                let mut dims = Vec::with_capacity(DIMS_MAX);
                while let Some(dim) = list.next_element()? {
                    if dims.len() == DIMS_MAX {
                        return Err(A::Error::custom(format!("more than {DIMS_MAX} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Dims(dims))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}
