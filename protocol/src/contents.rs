//! `inference.InferTensorContents`, kept as it is on the wire. A generator's type takes up to sixteen times the bytes of its
//! message (an empty text is two bytes there, and 32 as `Bytes`) before anybody has asked of what type the elements should
//! be; and numbers of 8 bits are 32 wide in it.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{
    self, DecodeContext, WireType, decode_varint, encode_key, encode_varint, encoded_len_varint, skip_field,
};
use prost::{DecodeError, Message};

/// The elements of a tensor, row-major. The one field that holds them follows from the datatype; FP16 and BF16 have none, and
/// travel raw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InferTensorContents {
    /// Fields, one behind the other: keys, lengths and values as protobuf writes them.
    fields: Vec<u8>,
}

/// A field of the message; its number is that of the `.proto` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// BOOL.
    Bool = 1,
    /// INT8, INT16, INT32.
    Int = 2,
    /// INT64.
    Int64 = 3,
    /// UINT8, UINT16, UINT32.
    Uint = 4,
    /// UINT64.
    Uint64 = 5,
    /// FP32.
    Fp32 = 6,
    /// FP64.
    Fp64 = 7,
    /// BYTES.
    Bytes = 8,
}

/// Values of a field that are no numbers of its kind: one is cut off, or longer than ten bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub Field);

impl Field {
    const ALL: [Field; 8] =
        [Field::Bool, Field::Int, Field::Int64, Field::Uint, Field::Uint64, Field::Fp32, Field::Fp64, Field::Bytes];

    fn of(tag: u32) -> Option<Field> {
        Field::ALL.into_iter().find(|field| *field as u32 == tag)
    }

    /// Its name in the `.proto` file.
    pub fn name(self) -> &'static str {
        match self {
            Field::Bool => "bool_contents",
            Field::Int => "int_contents",
            Field::Int64 => "int64_contents",
            Field::Uint => "uint_contents",
            Field::Uint64 => "uint64_contents",
            Field::Fp32 => "fp32_contents",
            Field::Fp64 => "fp64_contents",
            Field::Bytes => "bytes_contents",
        }
    }

    /// How one value of it travels where it is not packed with others.
    fn single(self) -> WireType {
        match self {
            Field::Fp32 => WireType::ThirtyTwoBit,
            Field::Fp64 => WireType::SixtyFourBit,
            Field::Bytes => WireType::LengthDelimited,
            _ => WireType::Varint,
        }
    }
}

impl InferTensorContents {
    /// Booleans and whole numbers, as protobuf writes those of 64 bits.
    pub fn of_varints(field: Field, values: impl Iterator<Item = u64> + Clone) -> Self {
        let mut contents = InferTensorContents::default();
        contents.begin(field, values.clone().map(encoded_len_varint).sum());
        values.for_each(|value| encode_varint(value, &mut contents.fields));
        contents
    }

    /// Floating-point numbers, little-endian.
    pub fn of_fixed(field: Field, values: &[u8]) -> Self {
        let mut contents = InferTensorContents::default();
        contents.begin(field, values.len());
        contents.fields.extend_from_slice(values);
        contents
    }

    /// Text.
    pub fn of_texts<'a>(texts: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let lengths = texts.clone().map(|text| 1 + encoded_len_varint(text.len() as u64) + text.len());
        let mut contents = InferTensorContents { fields: Vec::with_capacity(lengths.sum()) };
        for text in texts {
            contents.put(Field::Bytes, text);
        }
        contents
    }

    /// A packed field of so many bytes; of none, nothing.
    fn begin(&mut self, field: Field, bytes: usize) {
        if bytes > 0 {
            self.fields.reserve_exact(bytes + 11);
            encode_key(field as u32, WireType::LengthDelimited, &mut self.fields);
            encode_varint(bytes as u64, &mut self.fields);
        }
    }

    fn put(&mut self, field: Field, bytes: &[u8]) {
        encode_key(field as u32, WireType::LengthDelimited, &mut self.fields);
        encode_varint(bytes.len() as u64, &mut self.fields);
        self.fields.extend_from_slice(bytes);
    }

    /// The fields that have values, with how many. A field may come in several parts.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn counts(&self) -> impl Iterator<Item = Result<(Field, usize), Malformed>> + '_ {
        self.parts().map(|(field, part)| {
            let of = |size: usize| {
                if part.len().is_multiple_of(size) { Ok(part.len() / size) } else { Err(Malformed(field)) }
            };
            let count = match field.single() {
                WireType::ThirtyTwoBit => of(4)?,
                WireType::SixtyFourBit => of(8)?,
                WireType::LengthDelimited => 1,
                _ if part.last().is_some_and(|last| is_inner(*last)) => return Err(Malformed(field)),
                _ => part.iter().filter(|byte| !is_inner(**byte)).count(),
            };
            Ok((field, count))
        })
    }

    /// The values of a field of booleans or of whole numbers, as they would be in 64 bits.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn varints(&self, field: Field) -> impl Iterator<Item = Result<u64, Malformed>> + '_ {
        self.of(field).flat_map(move |mut part| {
            std::iter::from_fn(move || {
                let value = part.has_remaining().then(|| decode_varint(&mut part).map_err(|_| Malformed(field)));
                if let Some(Err(_)) = value {
                    part = &[];
                }
                value
            })
        })
    }

    /// The bytes of the values of a field of floating-point numbers, little-endian, in their parts.
    pub fn fixed(&self, field: Field) -> impl Iterator<Item = &[u8]> {
        self.of(field)
    }

    /// Texts.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.of(Field::Bytes)
    }

    fn of(&self, field: Field) -> impl Iterator<Item = &[u8]> {
        self.parts().filter_map(move |(of, part)| (of == field).then_some(part))
    }

    /// Values as they lie there: of numbers one or more, of texts one.
    fn parts(&self) -> impl Iterator<Item = (Field, &[u8])> {
        let mut rest = self.fields.as_slice();
        std::iter::from_fn(move || {
            // Nothing is in it that was not put there by this type.
            let (tag, wire) = encoding::decode_key(&mut rest).ok()?;
            let length = match wire {
                WireType::ThirtyTwoBit => 4,
                WireType::SixtyFourBit => 8,
                WireType::LengthDelimited => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
                _ => rest.iter().position(|byte| !is_inner(*byte))? + 1,
            };
            let (part, after) = rest.split_at_checked(length)?;
            rest = after;
            Some((Field::of(tag)?, part))
        })
    }
}

/// Does a number go on after this byte?
fn is_inner(byte: u8) -> bool {
    byte & 0x80 != 0
}

impl Message for InferTensorContents {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.fields);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let Some(field) = Field::of(tag) else { return skip_field(wire_type, tag, buf, ctx) };
        // The library's readers check what is there, and name what is wrong.
        if wire_type == WireType::LengthDelimited {
            let mut bytes = Bytes::new();
            encoding::bytes::merge(wire_type, &mut bytes, buf, ctx)?;
            if field == Field::Bytes || !bytes.is_empty() {
                self.put(field, &bytes);
            }
            return Ok(());
        }
        match field.single() {
            WireType::ThirtyTwoBit => {
                let mut value = 0;
                encoding::fixed32::merge(wire_type, &mut value, buf, ctx)?;
                encode_key(tag, wire_type, &mut self.fields);
                self.fields.put_u32_le(value);
            }
            WireType::SixtyFourBit => {
                let mut value = 0;
                encoding::fixed64::merge(wire_type, &mut value, buf, ctx)?;
                encode_key(tag, wire_type, &mut self.fields);
                self.fields.put_u64_le(value);
            }
            WireType::LengthDelimited => encoding::bytes::merge(wire_type, &mut Bytes::new(), buf, ctx)?,
            _ => {
                let mut value = 0;
                encoding::uint64::merge(wire_type, &mut value, buf, ctx)?;
                encode_key(tag, wire_type, &mut self.fields);
                encode_varint(value, &mut self.fields);
            }
        }
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.fields.len()
    }

    fn clear(&mut self) {
        self.fields.clear();
    }
}
