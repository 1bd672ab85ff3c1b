//! What runs launches, in the order in which they come: a GPU, or the emulator of the tests.

use super::launch::Launch;
use super::memory::Slice;

/// A sequence of launches that was captured, to be run again as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Graph(pub(super) usize);

/// A copy to the host that is under way.
#[derive(Debug, PartialEq, Eq)]
pub struct Pending(pub(super) usize);

/// What multiplies matrices on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Units {
    /// Each warp by itself.
    #[default]
    Warps,
    /// Four warps together: compute capability 9.0, and only in machine code that was made for it.
    Warpgroups {
        /// Multiprocessors of the device.
        processors: u32,
        /// Do products of many rows go by pairs of blocks ([`super::pairs`])?
        pairs: bool,
    },
}

/// Why a device did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has not so much memory.
    OutOfMemory {
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that it has left.
        free: u64,
    },
    /// This call failed; others may succeed.
    Call(String),
    /// The device's context is lost: nothing succeeds any more in this process.
    Lost(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::OutOfMemory { wanted, free } => {
                write!(f, "the device has {free} bytes of memory left, and {wanted} are needed")
            }
            Fault::Call(what) => write!(f, "{what}"),
            Fault::Lost(what) => write!(f, "the device is lost: {what}"),
        }
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// Is the device lost?
    pub fn is_lost(&self) -> bool {
        matches!(self, Fault::Lost(_))
    }
}

/// Writes into memory of the host what is to be copied to the device, one after the other for the slices it returns.
pub type Fill<'a> = &'a mut dyn FnMut(&mut [u8]) -> Vec<Slice<u8>>;

/// Runs launches one after the other.
///
/// All calls come from one thread at a time. Everything given to it takes effect in order; `launch`, `upload`,
/// `download` and `replay` do not wait for it.
pub trait Device: Send {
    /// What it calls itself.
    fn name(&self) -> &str;

    /// Multiprocessors: blocks of one wave, where each fills one.
    fn processors(&self) -> u32;

    /// What multiplies matrices.
    fn matrix_units(&self) -> Units {
        Units::Warps
    }

    /// Memory for `bytes`, aligned to 256, until the device is dropped. Its contents mean nothing.
    ///
    /// # Errors
    /// There is not so much.
    fn reserve(&mut self, bytes: usize) -> Result<Slice<u8>, Fault>;

    /// Runs a kernel, or takes it down while capturing.
    ///
    /// # Errors
    /// The launch was refused. What a kernel does wrong while it runs shows at a later call.
    fn launch(&mut self, launch: &Launch) -> Result<(), Fault>;

    /// Copies to the device; `bytes` may be used again at once.
    ///
    /// # Errors
    /// The slice is shorter, or the copy was refused.
    fn upload(&mut self, to: Slice<u8>, bytes: &[u8]) -> Result<(), Fault>;

    /// Copies much to the device, round after round, until `fill` names nothing. It has `room` bytes of the host's memory
    /// for each round, which a GPU copies out of by itself: while it does so, the next round is filled.
    ///
    /// # Errors
    /// What `fill` names is longer than the room, or a copy was refused.
    fn upload_rounds(&mut self, room: usize, fill: Fill<'_>) -> Result<(), Fault> {
        let mut bytes = vec![0; room];
        loop {
            let targets = fill(&mut bytes);
            if targets.is_empty() {
                return Ok(());
            }
            for (to, part) in parts(&bytes, &targets)? {
                self.upload(to, part)?;
            }
        }
    }

    /// Begins to copy to the host.
    ///
    /// # Errors
    /// The copy was refused.
    fn download(&mut self, from: Slice<u8>) -> Result<Pending, Fault>;

    /// Waits for a copy to the host.
    ///
    /// # Errors
    /// Something since the last wait has failed.
    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, Fault>;

    /// Sees to it that a kernel can be launched while a graph is captured, where it was never launched before.
    ///
    /// # Errors
    /// There is no such kernel, or the device refuses.
    fn prepare(&mut self, _launch: &Launch) -> Result<(), Fault> {
        Ok(())
    }

    /// Takes launches down instead of running them, until [`Device::end_capture`].
    ///
    /// # Errors
    /// One is being captured already, or the device refuses.
    fn begin_capture(&mut self) -> Result<(), Fault>;

    /// Makes a graph of what was taken down.
    ///
    /// # Errors
    /// Nothing is being captured, or the device refuses.
    fn end_capture(&mut self) -> Result<Graph, Fault>;

    /// Runs a graph.
    ///
    /// # Errors
    /// There is no such graph, or the device refuses.
    fn replay(&mut self, graph: Graph) -> Result<(), Fault>;

    /// How long the device takes for what `work` has it do, without what the host does meanwhile; waits for all of it.
    /// For measurements.
    ///
    /// # Errors
    /// Those of `work`, and of what it began.
    fn seconds(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<(), Fault>) -> Result<f64, Fault>;
}

/// Where bytes go, and they.
pub(super) type Part<'a> = (Slice<u8>, &'a [u8]);

/// What belongs to each target, of bytes that stand one after the other.
pub(super) fn parts<'a>(bytes: &'a [u8], targets: &[Slice<u8>]) -> Result<Vec<Part<'a>>, Fault> {
    let (mut rest, mut found) = (bytes, Vec::with_capacity(targets.len()));
    for to in targets {
        let Some((part, others)) = rest.split_at_checked(to.len()) else {
            return Err(Fault::Call(format!("{} bytes are to be copied, and {} are there", to.len(), rest.len())));
        };
        found.push((*to, part));
        rest = others;
    }
    Ok(found)
}
