//! Runs launches on the host, by the kernels that a C++ compiler made of the very sources of the GPU's: for tests, which
//! then need no GPU. What a GPU leaves undefined is made to show: see `cuda/emulator/emulator.hpp`.

#![allow(unsafe_code)]

use super::device::{Device, Fault, Graph, Pending, Units};
use super::launch::{Launch, Matrix};
use super::memory::Slice;
use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

unsafe extern "C" {
    /// Of `cuda/emulator/emulator.cpp`.
    fn tensorgate_emulate(
        name: *const c_char,
        grid: *const c_uint,
        threads: c_uint,
        shared: c_uint,
        arguments: *mut *mut c_void,
    ) -> c_int;
}

/// Bytes after each piece of memory that nobody may write to.
const GUARD: usize = 4096;
const GUARD_BYTE: u8 = 0xa5;
/// What fresh memory holds: no numbers, as floats.
const FRESH_BYTE: u8 = 0xff;

/// Dynamic shared memory of a block, at most, where a kernel is not for one card alone: compute capability 8.6 has 99
/// KiB, one of which is left to static arrays.
const SHARED_MAX: u32 = 98 << 10;
/// What the names of kernels for compute capability 9.0 alone have in them.
const OF_HOPPER: [&str; 4] = ["wgmma", "gemv", "pairs", "stream"];

/// A matrix as kernels get it here: as long as `TensorMap` in `cuda/pairs.cuh`, and aligned as it.
#[repr(C, align(128))]
struct TileSource([u64; 16]);

impl TileSource {
    fn of(matrix: &Matrix) -> Self {
        let mut words = [0; 16];
        let numbers = [matrix.address, matrix.rows as u64, matrix.line as u64, matrix.box_rows as u64];
        words[..4].copy_from_slice(&numbers);
        TileSource(words)
    }
}

/// Launches that somebody else may look at.
pub type Log = Arc<Mutex<Vec<Launch>>>;

/// A device that is the host.
#[derive(Debug, Default)]
pub struct Emulator {
    memory: Vec<(usize, Layout)>,
    capturing: Option<Vec<Launch>>,
    graphs: Vec<Vec<Launch>>,
    downloads: Vec<Option<Vec<u8>>>,
    /// What was launched so far, where it is asked for.
    log: Option<Log>,
    budget: Option<usize>,
    units: Units,
}

impl Emulator {
    /// A device with as much memory as the host has.
    pub fn new() -> Self {
        Self::default()
    }

    /// A device with so many bytes of memory.
    pub fn with_memory(bytes: usize) -> Self {
        let mut emulator = Self::new();
        emulator.budget = Some(bytes);
        emulator
    }

    /// A device with such matrix units.
    pub fn with_units(units: Units) -> Self {
        let mut emulator = Self::new();
        emulator.units = units;
        emulator
    }

    /// Takes down what is launched from now on, also by graphs.
    pub fn log(&mut self) -> Log {
        self.log.get_or_insert_default().clone()
    }

    fn run(&mut self, launch: &Launch) -> Result<(), Fault> {
        if let Some(log) = &self.log {
            log.lock().unwrap_or_else(PoisonError::into_inner).push(launch.clone());
        }
        if launch.shared() > SHARED_MAX && !OF_HOPPER.iter().any(|name| launch.kernel().contains(name)) {
            let (kernel, wanted) = (launch.kernel(), launch.shared());
            return Err(Fault::Call(format!("kernel '{kernel}' wants {wanted} bytes of shared memory for each block")));
        }
        let name = CString::new(launch.kernel()).map_err(|_| Fault::Call("a kernel's name has a zero".into()))?;
        let mut values = launch.arguments().to_vec();
        let mut matrices: Vec<TileSource> = launch.matrices().iter().map(TileSource::of).collect();
        let of_matrices = matrices.iter_mut().map(|matrix| std::ptr::from_mut(matrix).cast());
        let mut arguments: Vec<*mut c_void> =
            of_matrices.chain(values.iter_mut().map(|value| std::ptr::from_mut(value).cast())).collect();
        let grid = launch.grid();
        // SAFETY: the launcher has checked that the kernel stays within the slices it was given, which are memory of
        // this process that lives as long as `self`; each argument points to a matrix, or to eight bytes, the lower of which
        // it takes.
        let code = unsafe {
            tensorgate_emulate(name.as_ptr(), grid.as_ptr(), launch.threads(), launch.shared(), arguments.as_mut_ptr())
        };
        match code {
            0 => {}
            1 => return Err(Fault::Call(format!("there is no kernel '{}'", launch.kernel()))),
            _ => return Err(Fault::Lost(format!("kernel '{}' breaks a rule of the device", launch.kernel()))),
        }
        match self.memory.iter().all(|(address, layout)| guard(*address, *layout).iter().all(|b| *b == GUARD_BYTE)) {
            true => Ok(()),
            false => Err(Fault::Lost(format!("kernel '{}' wrote past its memory", launch.kernel()))),
        }
    }
}

/// The bytes that stand after a piece of memory.
fn guard(address: usize, layout: Layout) -> &'static [u8] {
    let bytes = layout.size() - GUARD;
    // SAFETY: `reserve` made the piece `GUARD` bytes longer than what it gave out; it lives as long as the emulator.
    unsafe { std::slice::from_raw_parts((address + bytes) as *const u8, GUARD) }
}

impl Device for Emulator {
    fn name(&self) -> &str {
        "emulator"
    }

    fn processors(&self) -> u32 {
        4
    }

    fn matrix_units(&self) -> Units {
        self.units
    }

    fn reserve(&mut self, bytes: usize) -> Result<Slice<u8>, Fault> {
        let used: usize = self.memory.iter().map(|(_, layout)| layout.size() - GUARD).sum();
        let free = self.budget.map_or(usize::MAX, |budget| budget.saturating_sub(used));
        let refuse = || Fault::OutOfMemory { wanted: bytes as u64, free: free as u64 };
        if bytes > free {
            return Err(refuse());
        }
        let layout = Layout::from_size_align(bytes + GUARD, 256).map_err(|_| refuse())?;
        // SAFETY: the layout has a size; every byte is written before it is read.
        let address = unsafe {
            let address = alloc(layout);
            if address.is_null() {
                return Err(refuse());
            }
            address.write_bytes(FRESH_BYTE, bytes);
            address.add(bytes).write_bytes(GUARD_BYTE, GUARD);
            address as usize
        };
        self.memory.push((address, layout));
        Ok(Slice::new(address as u64, bytes))
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), Fault> {
        match &mut self.capturing {
            Some(launches) => {
                launches.push(launch.clone());
                Ok(())
            }
            None => self.run(launch),
        }
    }

    fn upload(&mut self, to: Slice<u8>, bytes: &[u8]) -> Result<(), Fault> {
        if self.capturing.is_some() || bytes.len() > to.len() {
            return Err(Fault::Call("a copy to the device that cannot be".into()));
        }
        // SAFETY: `to` is memory of this emulator, and long enough.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.address() as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&mut self, from: Slice<u8>) -> Result<Pending, Fault> {
        if self.capturing.is_some() {
            return Err(Fault::Call("a copy from the device while a graph is captured".into()));
        }
        // SAFETY: `from` is memory of this emulator, which wrote every byte of it when it was reserved.
        let bytes = unsafe { std::slice::from_raw_parts(from.address() as *const u8, from.len()) }.to_vec();
        self.downloads.push(Some(bytes));
        Ok(Pending(self.downloads.len() - 1))
    }

    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, Fault> {
        let bytes = self.downloads.get_mut(pending.0).and_then(Option::take);
        bytes.ok_or_else(|| Fault::Call("a copy that was not begun".into()))
    }

    fn begin_capture(&mut self) -> Result<(), Fault> {
        match self.capturing.replace(Vec::new()) {
            None => Ok(()),
            Some(_) => Err(Fault::Call("a graph is being captured already".into())),
        }
    }

    fn end_capture(&mut self) -> Result<Graph, Fault> {
        let launches = self.capturing.take().ok_or_else(|| Fault::Call("no graph is being captured".into()))?;
        self.graphs.push(launches);
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), Fault> {
        let launches = self.graphs.get(graph.0).ok_or_else(|| Fault::Call("there is no such graph".into()))?;
        launches.clone().iter().try_for_each(|launch| self.run(launch))
    }

    fn seconds(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<(), Fault>) -> Result<f64, Fault> {
        let begun = Instant::now();
        work(self)?;
        Ok(begun.elapsed().as_secs_f64())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for (address, layout) in self.memory.drain(..) {
            // SAFETY: allocated by `reserve` with this layout, and dropped once.
            unsafe { dealloc(address as *mut u8, layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_for_all_cards_have_the_shared_memory_of_the_smallest() {
        let refused = |kernel, shared| match Emulator::new().launch(&Launch::new(kernel, [1, 1, 1], 32, shared)) {
            Err(Fault::Call(what)) => what,
            other => panic!("{other:?}"),
        };
        assert!(refused("no_such_kernel", SHARED_MAX + 1).contains("bytes of shared memory"));
        assert!(refused("no_such_kernel", SHARED_MAX).contains("there is no kernel"));
        assert!(refused("no_such_wgmma", SHARED_MAX + 1).contains("there is no kernel"));
    }
}
