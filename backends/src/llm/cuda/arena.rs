//! One piece of device memory, cut into what is needed: all sizes are known before any memory is asked for. So whoever
//! needs some goes through all of it twice: first to count it, then to take it.

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

/// What pieces are taken from, in their order.
pub(super) trait Pieces {
    /// The next `len` numbers.
    ///
    /// # Errors
    /// There are not so many.
    fn take<T: Number>(&mut self, len: usize) -> Result<Slice<T>, Misuse>;
}

/// Counts what is taken, and gives slices of nothing.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) sizes: Sizes,
    /// Empty, of memory that is there: there are no slices of other memory.
    nothing: Slice<u8>,
}

impl Counted {
    /// `memory` is a piece of the device's, whichever.
    pub(super) fn new(memory: Slice<u8>) -> Result<Self, Misuse> {
        Ok(Counted { sizes: Sizes::default(), nothing: memory.first(0)? })
    }
}

impl Pieces for Counted {
    fn take<T: Number>(&mut self, len: usize) -> Result<Slice<T>, Misuse> {
        self.sizes.add::<T>(len);
        self.nothing.cast()
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
}

impl Pieces for Arena {
    fn take<T: Number>(&mut self, len: usize) -> Result<Slice<T>, Misuse> {
        let bytes = len * T::BYTES;
        let taken = self.rest.first(bytes)?;
        let end = bytes.next_multiple_of(ALIGNMENT).min(self.rest.len());
        self.rest = self.rest.part(end..self.rest.len())?;
        taken.cast()
    }
}
