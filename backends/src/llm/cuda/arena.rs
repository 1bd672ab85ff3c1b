//! One piece of device memory, cut into what is needed: all sizes are known before any memory is asked for.

use kernels::cuda::{Device, Fault, Misuse, Number, Slice};

/// Where pieces begin.
const ALIGNMENT: usize = 256;

/// How much is needed, piece by piece.
#[derive(Clone, Debug, Default)]
pub(super) struct Sizes {
    bytes: usize,
}

impl Sizes {
    /// `len` numbers more.
    pub(super) fn add<T: Number>(&mut self, len: usize) {
        self.bytes += (len * T::BYTES).next_multiple_of(ALIGNMENT);
    }

    /// All together.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory that is handed out from its beginning.
#[derive(Debug)]
pub(super) struct Arena {
    rest: Slice<u8>,
}

impl Arena {
    pub(super) fn reserve(device: &mut dyn Device, sizes: &Sizes) -> Result<Self, Fault> {
        Ok(Arena { rest: device.reserve(sizes.bytes().max(ALIGNMENT))? })
    }

    /// The next `len` numbers.
    pub(super) fn take<T: Number>(&mut self, len: usize) -> Result<Slice<T>, Misuse> {
        let bytes = len * T::BYTES;
        let taken = self.rest.first(bytes)?;
        let end = bytes.next_multiple_of(ALIGNMENT).min(self.rest.len());
        self.rest = self.rest.part(end..self.rest.len())?;
        taken.cast()
    }
}
