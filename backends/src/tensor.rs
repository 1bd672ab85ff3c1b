//! Tensors: a shape and bytes that fit each other from birth on.
//!
//! Data is a typed view over [`bytes::Bytes`]: a tensor out of a binary body is not copied when the body is aligned for
//! its type, and copied once when it is not. Text is kept as offsets into one buffer.

use bytes::Bytes;
use half::{bf16, f16};
use std::borrow::Cow;
use std::fmt;

/// Bounds of requests and files, enforced where tensors and models are made, whatever protocol they came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tensors in a request.
    pub tensors: usize,
    /// Dimensions of a tensor.
    pub dimensions: usize,
    /// Bytes of a tensor.
    pub tensor_bytes: usize,
    /// Bytes of a model file.
    pub model_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { tensors: 256, dimensions: 8, tensor_bytes: 1 << 30, model_bytes: 64 << 30 }
    }
}

macro_rules! datatypes {
    ($($variant:ident $name:literal $size:literal $doc:literal;)*) => {
        /// Element types of the Open Inference Protocol, and BF16 as Triton has it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DataType {
            $(#[doc = $doc] $variant,)*
        }
        impl DataType {
            /// All of them.
            pub const ALL: &'static [DataType] = &[$(DataType::$variant),*];
            /// As the protocol spells it.
            pub fn name(self) -> &'static str {
                match self { $(DataType::$variant => $name,)* }
            }
            /// Bytes of an element; 0 for text, whose elements differ.
            pub fn size(self) -> usize {
                match self { $(DataType::$variant => $size,)* }
            }
            /// Reads the protocol's spelling.
            pub fn parse(name: &str) -> Option<DataType> {
                match name { $($name => Some(DataType::$variant),)* _ => None }
            }
        }
    };
}
datatypes! {
    Bool "BOOL" 1 "True or false, one byte.";
    Uint8 "UINT8" 1 "8-bit unsigned.";
    Uint16 "UINT16" 2 "16-bit unsigned.";
    Uint32 "UINT32" 4 "32-bit unsigned.";
    Uint64 "UINT64" 8 "64-bit unsigned.";
    Int8 "INT8" 1 "8-bit signed.";
    Int16 "INT16" 2 "16-bit signed.";
    Int32 "INT32" 4 "32-bit signed.";
    Int64 "INT64" 8 "64-bit signed.";
    Fp16 "FP16" 2 "IEEE half.";
    Bf16 "BF16" 2 "The upper half of a 32-bit float.";
    Fp32 "FP32" 4 "32-bit float.";
    Fp64 "FP64" 8 "64-bit float.";
    Bytes "BYTES" 0 "Text or bytes of any length.";
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that a tensor's elements can be.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The element type it stands for.
    const DATATYPE: DataType;
}
macro_rules! elements {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DATATYPE: DataType = DataType::$d; })* };
}
elements!(u8 => Uint8, u16 => Uint16, u32 => Uint32, u64 => Uint64, i8 => Int8, i16 => Int16, i32 => Int32,
          i64 => Int64, f16 => Fp16, bf16 => Bf16, f32 => Fp32, f64 => Fp64);

/// A missing value among texts: a byte that no text in UTF-8 has. Trees take it for one.
pub const MISSING_TEXT: &[u8] = b"\xff";

#[derive(Clone)]
enum Data {
    Fixed(Bytes),
    /// Element `i` is `text[ends[i-1]..ends[i]]`.
    Text {
        ends: std::sync::Arc<[u32]>,
        text: Bytes,
    },
}

/// A named array.
#[derive(Clone)]
pub struct Tensor {
    name: String,
    datatype: DataType,
    shape: Vec<usize>,
    data: Data,
}

/// Why shape and data do not make a tensor.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Misfit(pub String);

/// Keeps a vector alive as the bytes of a tensor.
struct Owner<T>(Vec<T>);
impl<T: Element> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Number of elements of `shape`.
///
/// # Errors
/// Too many dimensions, or a product beyond the limits.
pub fn elements(shape: &[usize], datatype: DataType, limits: &Limits) -> Result<usize, Misfit> {
    if shape.len() > limits.dimensions {
        return Err(Misfit(format!("shape has {} dimensions; at most {} are allowed", shape.len(), limits.dimensions)));
    }
    // One without elements has lengths all the same, which a graph may make a tensor of.
    let count = shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length.max(1)));
    let bytes = count.and_then(|count| count.checked_mul(datatype.size().max(4)));
    match (count, bytes) {
        (Some(count), Some(bytes)) if bytes <= limits.tensor_bytes => Ok(if shape.contains(&0) { 0 } else { count }),
        _ => Err(Misfit(format!("shape {shape:?} of {datatype} exceeds the limit of {} bytes", limits.tensor_bytes))),
    }
}

/// Elements of a row of `shape`. Where there are no rows, they may have more than can be counted.
pub fn row_elements(shape: &[usize]) -> usize {
    shape.iter().skip(1).fold(1, |product, &length| product.saturating_mul(length))
}

impl Tensor {
    /// From typed values in row-major order.
    ///
    /// # Errors
    /// [`Misfit`] when their number is not that of `shape`.
    pub fn from_vec<T: Element>(name: impl Into<String>, shape: Vec<usize>, values: Vec<T>) -> Result<Self, Misfit> {
        let tensor = Tensor {
            name: name.into(),
            datatype: T::DATATYPE,
            shape,
            data: Data::Fixed(Bytes::from_owner(Owner(values))),
        };
        tensor.checked()
    }

    /// From little-endian bytes in row-major order; copied only when they are not aligned for their type.
    ///
    /// # Errors
    /// [`Misfit`] when their number is not that of `shape`, or `datatype` is [`DataType::Bytes`].
    pub fn from_bytes(
        name: impl Into<String>,
        datatype: DataType,
        shape: Vec<usize>,
        bytes: Bytes,
    ) -> Result<Self, Misfit> {
        let size = datatype.size();
        let aligned = size <= 1 || (bytes.as_ptr() as usize).is_multiple_of(size);
        let bytes = if aligned { bytes } else { realigned(&bytes) };
        Tensor { name: name.into(), datatype, shape, data: Data::Fixed(bytes) }.checked()
    }

    /// True-or-false values, one byte each.
    ///
    /// # Errors
    /// [`Misfit`] when their number is not that of `shape`.
    pub fn from_bools(name: impl Into<String>, shape: Vec<usize>, values: Vec<u8>) -> Result<Self, Misfit> {
        Self::from_bytes(name, DataType::Bool, shape, Bytes::from(values))
    }

    /// Text: element `i` is `text[ends[i-1]..ends[i]]`.
    ///
    /// # Errors
    /// [`Misfit`] when the number of ends is not that of `shape`, or they do not rise within `text`.
    pub fn from_text(
        name: impl Into<String>,
        shape: Vec<usize>,
        ends: Vec<u32>,
        text: impl Into<Bytes>,
    ) -> Result<Self, Misfit> {
        let text = text.into();
        let rising = ends.windows(2).all(|pair| pair[0] <= pair[1]);
        if !rising || ends.last().copied().unwrap_or(0) as usize != text.len() {
            return Err(Misfit("text offsets do not rise to the end of the text".into()));
        }
        Tensor { name: name.into(), datatype: DataType::Bytes, shape, data: Data::Text { ends: ends.into(), text } }
            .checked()
    }

    /// Text from anything that is text.
    ///
    /// # Errors
    /// [`Misfit`] when their number is not that of `shape`, or they exceed 4 GiB.
    pub fn from_strings<S: AsRef<[u8]>>(
        name: impl Into<String>,
        shape: Vec<usize>,
        strings: impl IntoIterator<Item = S>,
    ) -> Result<Self, Misfit> {
        let (mut ends, mut text) = (Vec::new(), Vec::new());
        for string in strings {
            text.extend_from_slice(string.as_ref());
            ends.push(u32::try_from(text.len()).map_err(|_| Misfit("more than 4 GiB of text".into()))?);
        }
        Self::from_text(name, shape, ends, text)
    }

    fn checked(self) -> Result<Self, Misfit> {
        let Some(count) = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) else {
            return Err(Misfit(format!("shape {:?} has too many elements", self.shape)));
        };
        let (got, wanted, unit) = match &self.data {
            Data::Text { ends, .. } => (ends.len(), Some(count), "elements"),
            Data::Fixed(bytes) if self.datatype == DataType::Bytes => (bytes.len(), None, "text elements"),
            Data::Fixed(bytes) => (bytes.len(), count.checked_mul(self.datatype.size()), "bytes"),
        };
        match wanted {
            Some(wanted) if wanted == got => Ok(self),
            _ => Err(Misfit(format!(
                "shape {:?} of {} needs {} {unit}, got {got}",
                self.shape,
                self.datatype,
                wanted.unwrap_or(count)
            ))),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The same data under another name.
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
    /// Element type.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }
    /// Lengths of its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Length of the first dimension; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }
    /// Little-endian bytes of a fixed-size type; the text of [`DataType::Bytes`] without lengths.
    pub fn bytes(&self) -> &Bytes {
        match &self.data {
            Data::Fixed(bytes) => bytes,
            Data::Text { text, .. } => text,
        }
    }
    /// Bytes that it holds: of text also where each element ends.
    pub fn byte_size(&self) -> usize {
        match &self.data {
            Data::Fixed(bytes) => bytes.len(),
            Data::Text { ends, text } => text.len() + size_of_val::<[u32]>(ends),
        }
    }
    /// Its elements, if they are of type `T`.
    pub fn values<T: Element>(&self) -> Option<&[T]> {
        match &self.data {
            Data::Fixed(bytes) if self.datatype == T::DATATYPE => bytemuck::try_cast_slice(bytes).ok(),
            _ => None,
        }
    }
    /// Its elements, if they are true or false.
    pub fn bools(&self) -> Option<&[u8]> {
        (self.datatype == DataType::Bool).then(|| self.bytes().as_ref())
    }
    /// Its elements, if they are text.
    pub fn strings(&self) -> Option<impl ExactSizeIterator<Item = &[u8]> + '_> {
        let Data::Text { ends, text } = &self.data else { return None };
        Some((0..ends.len()).map(move |i| {
            let start = if i == 0 { 0 } else { ends[i - 1] as usize };
            &text[start..ends[i] as usize]
        }))
    }

    /// Element `index` of a text tensor; empty where there is none.
    pub fn text(&self, index: usize) -> &[u8] {
        let Data::Text { ends, text } = &self.data else { return &[] };
        let start = if index == 0 { 0 } else { ends.get(index - 1).copied().unwrap_or_default() };
        ends.get(index).and_then(|end| text.get(start as usize..*end as usize)).unwrap_or_default()
    }

    /// Its numbers as 32-bit floats, converted as numpy's `astype` would; `None` for text.
    pub fn to_f32(&self) -> Option<Cow<'_, [f32]>> {
        if let Some(values) = self.values::<f32>() {
            return Some(Cow::Borrowed(values));
        }
        self.convert(|v| v as f32, |v| v as f32, |v| v as f32).map(Cow::Owned)
    }

    /// Its numbers as 64-bit floats, converted as numpy's `astype` would; `None` for text.
    pub fn to_f64(&self) -> Option<Cow<'_, [f64]>> {
        if let Some(values) = self.values::<f64>() {
            return Some(Cow::Borrowed(values));
        }
        self.convert(|v| v, |v| v as f64, |v| v as f64).map(Cow::Owned)
    }

    fn convert<T>(&self, float: fn(f64) -> T, signed: fn(i64) -> T, unsigned: fn(u64) -> T) -> Option<Vec<T>> {
        macro_rules! each {
            ($t:ty, $f:expr) => {
                self.values::<$t>()?.iter().map($f).collect()
            };
        }
        Some(match self.datatype {
            DataType::Fp64 => each!(f64, |&v| float(v)),
            DataType::Fp32 => each!(f32, |&v| float(v as f64)),
            DataType::Fp16 => each!(f16, |&v| float(v.to_f64())),
            DataType::Bf16 => each!(bf16, |&v| float(v.to_f64())),
            DataType::Int8 => each!(i8, |&v| signed(v as i64)),
            DataType::Int16 => each!(i16, |&v| signed(v as i64)),
            DataType::Int32 => each!(i32, |&v| signed(v as i64)),
            DataType::Int64 => each!(i64, |&v| signed(v)),
            DataType::Uint8 => each!(u8, |&v| unsigned(v as u64)),
            DataType::Uint16 => each!(u16, |&v| unsigned(v as u64)),
            DataType::Uint32 => each!(u32, |&v| unsigned(v as u64)),
            DataType::Uint64 => each!(u64, |&v| unsigned(v)),
            DataType::Bool => self.bools()?.iter().map(|&v| unsigned((v != 0) as u64)).collect(),
            DataType::Bytes => return None,
        })
    }

    /// Puts tensors of one name and type on top of each other along the first dimension.
    ///
    /// # Errors
    /// [`Misfit`] when types or the other dimensions differ, or there are none.
    pub fn stack(parts: &[&Tensor]) -> Result<Tensor, Misfit> {
        let first = parts.first().ok_or_else(|| Misfit("nothing to stack".into()))?;
        let fits = |part: &&Tensor| {
            part.datatype == first.datatype && !part.shape.is_empty() && part.shape[1..] == first.shape[1..]
        };
        if first.shape.is_empty() || !parts.iter().all(fits) {
            return Err(Misfit(format!("tensors '{}' differ in type or row shape", first.name)));
        }
        let mut shape = first.shape.clone();
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        if first.datatype == DataType::Bytes {
            let strings = parts.iter().flat_map(|part| part.strings().into_iter().flatten());
            return Tensor::from_strings(first.name.clone(), shape, strings);
        }
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.bytes().len()).sum());
        parts.iter().for_each(|part| bytes.extend_from_slice(part.bytes()));
        Tensor::from_bytes(first.name.clone(), first.datatype, shape, Bytes::from(bytes))
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// [`Misfit`] when it has another number of elements.
    pub fn reshaped(mut self, shape: Vec<usize>) -> Result<Tensor, Misfit> {
        self.shape = shape;
        self.checked()
    }

    /// Row `index` without its first dimension.
    ///
    /// # Errors
    /// [`Misfit`] when there is no such row.
    pub fn row(&self, index: usize) -> Result<Tensor, Misfit> {
        let mut row = self.slice_rows(index, 1)?;
        row.shape.remove(0);
        Ok(row)
    }

    /// Rows `start..start + count` along the first dimension, without a copy where alignment allows. Its time does not depend
    /// on `start`; with text it grows with `count`.
    ///
    /// # Errors
    /// [`Misfit`] when there are no such rows.
    pub fn slice_rows(&self, start: usize, count: usize) -> Result<Tensor, Misfit> {
        let rows = self.shape.first().copied().unwrap_or(0);
        if start.checked_add(count).is_none_or(|end| end > rows) {
            return Err(Misfit(format!("rows {start}..{} of '{}', which has {rows}", start + count, self.name)));
        }
        let mut shape = self.shape.clone();
        shape[0] = count;
        if let Data::Text { ends, text } = &self.data {
            let per_row = row_elements(&self.shape);
            let begin = |element: usize| if element == 0 { 0 } else { ends[element - 1] };
            let (first, last) = (start * per_row, (start + count) * per_row);
            let own = ends[first..last].iter().map(|end| end - begin(first)).collect();
            return Tensor::from_text(
                self.name.clone(),
                shape,
                own,
                text.slice(begin(first) as usize..begin(last) as usize),
            );
        }
        let per_row = row_elements(&self.shape).saturating_mul(self.datatype.size());
        let bytes = self.bytes().slice(start * per_row..(start + count) * per_row);
        Tensor::from_bytes(self.name.clone(), self.datatype, shape, bytes)
    }
}

/// A copy at an address that suits every element type.
fn realigned(bytes: &[u8]) -> Bytes {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
    Bytes::from_owner(Owner(words)).slice(..bytes.len())
}

impl fmt::Debug for Tensor {
    /// Never the values: they may be anybody's data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor('{}' {} {:?})", self.name, self.datatype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_text_are_cut_out() {
        let texts = ["a", "", "bc", "d", "", "efg"];
        let tensor = Tensor::from_strings("x", vec![3, 2], texts).unwrap();
        for (start, count) in (0..=3).flat_map(|start| (0..=3 - start).map(move |count| (start, count))) {
            let rows = tensor.slice_rows(start, count).unwrap();
            assert_eq!(rows.shape(), [count, 2]);
            let wanted = &texts[2 * start..2 * (start + count)];
            assert!(rows.strings().unwrap().eq(wanted.iter().map(|text| text.as_bytes())), "{start} {count}");
            assert!((0..rows.len()).all(|index| rows.text(index) == wanted[index].as_bytes()));
        }
        assert!(tensor.slice_rows(2, 2).is_err());
        let row = tensor.slice_rows(1, 2).unwrap().row(1).unwrap();
        assert_eq!((row.shape(), row.text(1), row.text(2)), (&[2][..], &b"efg"[..], &b""[..]));
    }
}
