//! Device memory as typed slices: an address and a length that travel together. Only a device makes the first ones;
//! parts of them are checked.

use std::marker::PhantomData;
use std::ops::Range;

/// A number type that kernels read or write.
pub trait Number: Copy + Send + Sync + 'static {
    /// Bytes of one.
    const BYTES: usize;
}

/// The upper half of a 32-bit float.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// Rounds to the nearest, ties to even; what is no number stays none.
    pub fn from_f32(number: f32) -> Self {
        let bits = number.to_bits();
        if number.is_nan() {
            return Bf16((bits >> 16) as u16 | 0x40);
        }
        Bf16((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }

    /// The same number.
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// A number of eight bits: a sign, four of exponent, three of mantissa. Up to 448, and no infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct E4m3(pub u8);

impl E4m3 {
    /// Rounds to the nearest, ties to even, and what is beyond 448 to 448; what is no number stays none.
    pub fn from_f32(number: f32) -> Self {
        if number.is_nan() {
            return E4m3(0x7f);
        }
        let (size, sign) = (number.abs().min(448.0), (number.to_bits() >> 24) as u8 & 0x80);
        let bits = size.to_bits();
        // Below 2^-6 the steps are those of floats from 2^14 on.
        let rounded = match size < 2f32.powi(-6) {
            true => (size + 16384.0).to_bits() - 16384f32.to_bits(),
            false => ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3),
        };
        E4m3(sign | rounded as u8)
    }

    /// The same number.
    pub fn to_f32(self) -> f32 {
        let (sign, rest) = (u32::from(self.0 & 0x80) << 24, u32::from(self.0 & 0x7f));
        if rest == 0x7f { f32::NAN } else { f32::from_bits(sign | rest << 20) * 2f32.powi(120) }
    }
}

macro_rules! numbers {
    ($($type:ty: $bytes:literal),*) => {
        $(impl Number for $type {
            const BYTES: usize = $bytes;
        })*
    };
}

numbers!(u8: 1, E4m3: 1, Bf16: 2, u16: 2, i32: 4, u32: 4, f32: 4, u64: 8);

/// A stretch of a device's memory. It stays valid as long as the device that gave it.
#[derive(Debug)]
pub struct Slice<T> {
    address: u64,
    len: usize,
    numbers: PhantomData<fn() -> T>,
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<T> {}

/// A launch, or a part of memory, that cannot be right: a defect of the program, told before anything runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misuse(pub String);

impl std::fmt::Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

impl<T: Number> Slice<T> {
    /// `len` numbers at `address`, which must be the device's own. For devices alone.
    pub(super) fn new(address: u64, len: usize) -> Self {
        Slice { address, len, numbers: PhantomData }
    }

    /// Where it begins.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Has it none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    pub fn byte_len(&self) -> usize {
        self.len * T::BYTES
    }

    /// Some of its numbers.
    ///
    /// # Errors
    /// There are not so many.
    pub fn part(&self, range: Range<usize>) -> Result<Self, Misuse> {
        if range.start > range.end || range.end > self.len {
            return Err(Misuse(format!("numbers {range:?} of {} are not there", self.len)));
        }
        Ok(Slice::new(self.address + (range.start * T::BYTES) as u64, range.len()))
    }

    /// The first `len` numbers.
    ///
    /// # Errors
    /// There are not so many.
    pub fn first(&self, len: usize) -> Result<Self, Misuse> {
        self.part(0..len)
    }

    /// The same bytes as numbers of another type.
    ///
    /// # Errors
    /// The bytes are not a multiple of its size, or are not aligned for it.
    pub fn cast<U: Number>(&self) -> Result<Slice<U>, Misuse> {
        let bytes = self.byte_len();
        if !bytes.is_multiple_of(U::BYTES) || !self.address.is_multiple_of(U::BYTES as u64) {
            return Err(Misuse(format!("{bytes} bytes are no numbers of {} bytes each", U::BYTES)));
        }
        Ok(Slice::new(self.address, bytes / U::BYTES))
    }
}
