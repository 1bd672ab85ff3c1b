//! Copies between host and GPU by way of memory that the driver has pinned, so that neither waits for the other.

#![allow(unsafe_code)]

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// Bytes of a piece of pinned memory on the way to the GPU.
const PIECE: usize = 4 << 20;
/// Pieces: while one is copied, others are filled.
const PIECES: usize = 4;
/// Bytes of a piece on the way back, at least, and how many there are from the beginning: what is chosen in a step of many
/// sequences, of one step more than is waited for, and something besides.
const LANDING: usize = 256 << 10;
const LANDINGS: usize = 3;
/// Where copies begin.
const ALIGNMENT: usize = 64;

/// How a thread waits for the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// It sleeps until it is woken up, and leaves its CPU to others.
    Asleep,
    /// It looks all the time.
    Awake,
}

/// Pinned memory, and the event after which it may be used again.
#[derive(Debug)]
struct Pinned {
    address: *mut u8,
    bytes: usize,
    event: sys::CUevent,
}

impl Pinned {
    fn new(bytes: usize, waits: Waits) -> Result<Self, DriverError> {
        use sys::CUevent_flags_enum as Flags;
        let flags = Flags::CU_EVENT_DISABLE_TIMING as u32
            | match waits {
                // An event has to say so itself: how its context waits does not count.
                Waits::Asleep => Flags::CU_EVENT_BLOCKING_SYNC as u32,
                Waits::Awake => 0,
            };
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        unsafe { sys::cuEventCreate(&mut event, flags) }.result()?;
        // SAFETY: both are freed by `free`, or the event here where there is no memory.
        unsafe {
            match result::malloc_host(bytes, 0) {
                Ok(address) => Ok(Pinned { address: address.cast(), bytes, event }),
                Err(error) => {
                    let _ = result::event::destroy(event);
                    Err(error)
                }
            }
        }
    }

    /// # Safety
    /// Nothing copies from or to it any more.
    unsafe fn free(&self) {
        // SAFETY: made by `new`; the caller frees it once.
        unsafe {
            let _ = result::event::destroy(self.event);
            let _ = result::free_host(self.address.cast());
        }
    }
}

/// The way to the GPU: a ring of pieces.
#[derive(Debug, Default)]
pub(super) struct Staging {
    pieces: Vec<Pinned>,
    /// The piece that is being filled, and how far it is.
    at: usize,
    filled: usize,
}

impl Staging {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Copies `bytes` to `address`, in the order of the stream.
    pub(super) fn copy(&mut self, stream: sys::CUstream, address: u64, bytes: &[u8]) -> Result<(), DriverError> {
        let mut done = 0;
        while done < bytes.len() {
            if self.pieces.is_empty() || PIECE - self.filled < ALIGNMENT {
                self.next(stream)?;
            }
            let piece = &self.pieces[self.at];
            let part = (bytes.len() - done).min(PIECE - self.filled);
            // SAFETY: `part` bytes of the piece from `filled` on are nobody's: the last copy out of the piece before
            // this round was waited for. The target was checked to be long enough.
            unsafe {
                let from = piece.address.add(self.filled);
                std::ptr::copy_nonoverlapping(bytes.as_ptr().add(done), from, part);
                let from = std::slice::from_raw_parts(from, part);
                result::memcpy_htod_async(address + done as u64, from, stream)?;
            }
            done += part;
            self.filled = (self.filled + part).next_multiple_of(ALIGNMENT);
        }
        Ok(())
    }

    /// Goes on to the next piece, once nothing is copied out of it any more.
    fn next(&mut self, stream: sys::CUstream) -> Result<(), DriverError> {
        if let Some(piece) = self.pieces.get(self.at) {
            // SAFETY: event and stream live.
            unsafe { result::event::record(piece.event, stream) }?;
        }
        if self.pieces.is_empty() {
            // All at once, and so before a model is ready: a driver that pins memory may wait for the GPU.
            for _ in 0..PIECES {
                // Only who reads weights has to wait for one, and leaves the CPU to the other threads that do.
                self.pieces.push(Pinned::new(PIECE, Waits::Asleep)?);
            }
            (self.at, self.filled) = (0, 0);
            return Ok(());
        }
        (self.at, self.filled) = ((self.at + 1) % self.pieces.len(), 0);
        // SAFETY: the event was recorded when the piece was left, or never, and then it passes at once.
        unsafe { result::event::synchronize(self.pieces[self.at].event) }
    }

    /// # Safety
    /// The stream has done all its work.
    pub(super) unsafe fn free(&mut self) {
        // SAFETY: each piece is freed once; the caller answers for the rest.
        self.pieces.drain(..).for_each(|piece| unsafe { piece.free() });
    }
}

/// The way of much: two pieces, of which one is filled while the other is copied.
#[derive(Debug)]
pub(super) struct Rounds {
    room: usize,
    pieces: Vec<Pinned>,
    /// The piece that is filled.
    at: usize,
}

impl Rounds {
    /// Pieces of so many bytes.
    pub(super) fn new(room: usize) -> Self {
        Rounds { room, pieces: Vec::new(), at: 0 }
    }

    /// A piece to fill, once nothing is copied out of it any more.
    pub(super) fn next(&mut self) -> Result<&mut [u8], DriverError> {
        if self.at == self.pieces.len() {
            let piece = Pinned::new(self.room.max(1), Waits::Asleep)?;
            // SAFETY: the memory is ours alone; what is lent below has been written to.
            unsafe { piece.address.write_bytes(0, piece.bytes) };
            self.pieces.push(piece);
        }
        let piece = &self.pieces[self.at];
        // SAFETY: the copies before the event, where it was ever recorded, have passed; the memory lives until `free`.
        unsafe {
            result::event::synchronize(piece.event)?;
            Ok(std::slice::from_raw_parts_mut(piece.address, piece.bytes))
        }
    }

    /// Goes on to the other piece, now that the copies of this one are in the stream.
    pub(super) fn sent(&mut self, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: event and stream live.
        unsafe { result::event::record(self.pieces[self.at].event, stream) }?;
        self.at = 1 - self.at;
        Ok(())
    }

    /// # Safety
    /// The stream has done all its work.
    pub(super) unsafe fn free(&mut self) {
        // SAFETY: each piece is freed once; the caller answers for the rest.
        self.pieces.drain(..).for_each(|piece| unsafe { piece.free() });
    }
}

/// The way back: one piece for each copy under way, used again later.
#[derive(Debug)]
pub(super) struct Landing {
    pieces: Vec<(Pinned, Option<usize>)>,
    waits: Waits,
}

impl Landing {
    pub(super) fn new(waits: Waits) -> Self {
        Landing { pieces: Vec::new(), waits }
    }

    /// Begins a copy; its number.
    pub(super) fn begin(&mut self, stream: sys::CUstream, from: u64, bytes: usize) -> Result<usize, DriverError> {
        let fits = |(piece, used): &(Pinned, Option<usize>)| used.is_none() && piece.bytes >= bytes;
        let at = match self.pieces.iter().position(fits) {
            Some(at) => at,
            None => {
                // The first comes while a model is loaded; with it those that its steps will take.
                let wanted = if self.pieces.is_empty() { LANDINGS } else { 1 };
                let at = self.pieces.len();
                for _ in 0..wanted {
                    self.pieces.push((Pinned::new(bytes.max(LANDING).next_power_of_two(), self.waits)?, None));
                }
                at
            }
        };
        let (piece, used) = &mut self.pieces[at];
        // SAFETY: nobody reads the piece until the event was waited for; it is long enough.
        unsafe {
            result::memcpy_dtoh_async(std::slice::from_raw_parts_mut(piece.address, bytes), from, stream)?;
            result::event::record(piece.event, stream)?;
        }
        *used = Some(bytes);
        Ok(at)
    }

    /// Waits for copy `number`.
    pub(super) fn take(&mut self, number: usize) -> Result<Vec<u8>, DriverError> {
        let Some((piece, used)) = self.pieces.get_mut(number) else { return Ok(Vec::new()) };
        let Some(bytes) = used.take() else { return Ok(Vec::new()) };
        // SAFETY: the event was recorded after the copy; once it has passed, the bytes are there.
        unsafe {
            result::event::synchronize(piece.event)?;
            Ok(std::slice::from_raw_parts(piece.address, bytes).to_vec())
        }
    }

    /// # Safety
    /// The stream has done all its work.
    pub(super) unsafe fn free(&mut self) {
        // SAFETY: each piece is freed once; the caller answers for the rest.
        self.pieces.drain(..).for_each(|(piece, _)| unsafe { piece.free() });
    }
}
