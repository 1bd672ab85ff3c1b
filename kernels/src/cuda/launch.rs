//! One run of a kernel as plain data: which, over how many blocks, with what arguments. Only the launchers of this
//! folder make launches, after they have checked that every slice is as long as the kernel will read and write; so a
//! device may run any launch. Launches can be recorded, compared and run again.

use super::memory::{Misuse, Number, Slice};

/// Most arguments of a kernel, without matrices.
const ARGUMENTS: usize = 32;
/// Most matrices of a kernel.
const MATRICES: usize = 2;

/// A matrix of which a kernel has boxes brought to it: `MATRIX` in `cuda/pairs.cuh`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matrix {
    /// Where its first row is: a multiple of 16.
    pub(super) address: u64,
    /// Its rows.
    pub(super) rows: usize,
    /// Bytes of a row: a multiple of 16.
    pub(super) line: usize,
    /// Rows of a box, which is 128 bytes wide: up to 256.
    pub(super) box_rows: usize,
}

/// One run of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    kernel: &'static str,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    matrices: [Matrix; MATRICES],
    matrix_count: usize,
    arguments: [u64; ARGUMENTS],
    count: usize,
}

impl Launch {
    /// Over `grid` blocks of `threads` threads, each block with `shared` bytes of dynamic shared memory. Arguments
    /// follow in the kernel's order.
    pub(super) fn new(kernel: &'static str, grid: [u32; 3], threads: u32, shared: u32) -> Self {
        let (matrices, arguments) = (Default::default(), [0; ARGUMENTS]);
        Launch { kernel, grid, threads, shared, matrices, matrix_count: 0, arguments, count: 0 }
    }

    /// Appends a matrix; these come before all else.
    pub(super) fn matrix(mut self, matrix: Matrix) -> Self {
        self.matrices[self.matrix_count] = matrix;
        self.matrix_count += 1;
        self
    }

    fn argument(mut self, bits: u64) -> Self {
        self.arguments[self.count] = bits;
        self.count += 1;
        self
    }

    /// Appends a pointer.
    pub(super) fn slice<T: Number>(self, slice: Slice<T>) -> Self {
        self.argument(slice.address())
    }

    /// Appends a pointer, null where there is none.
    pub(super) fn optional<T: Number>(self, slice: Option<Slice<T>>) -> Self {
        self.argument(slice.map_or(0, |slice| slice.address()))
    }

    /// Appends an `int`.
    pub(super) fn int(self, number: i32) -> Self {
        self.argument(u64::from(number as u32))
    }

    /// Appends a `float`.
    pub(super) fn float(self, number: f32) -> Self {
        self.argument(u64::from(number.to_bits()))
    }

    /// Which kernel.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Blocks in each direction.
    pub fn grid(&self) -> [u32; 3] {
        self.grid
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Bytes of dynamic shared memory of a block.
    pub fn shared(&self) -> u32 {
        self.shared
    }

    /// The matrices with which its arguments begin.
    pub fn matrices(&self) -> &[Matrix] {
        &self.matrices[..self.matrix_count]
    }

    /// Its other arguments: the lower bytes of each are the value.
    pub fn arguments(&self) -> &[u64] {
        &self.arguments[..self.count]
    }
}

/// Are `slice`'s numbers at least `len`?
pub(super) fn long_enough<T: Number>(what: &str, slice: Slice<T>, len: usize) -> Result<(), Misuse> {
    match slice.len() >= len {
        true => Ok(()),
        false => Err(Misuse(format!("{what} has {} numbers where the kernel needs {len}", slice.len()))),
    }
}

/// Is what a launch needs so? `what` says what is not.
pub(super) fn needs(holds: bool, what: impl FnOnce() -> String) -> Result<(), Misuse> {
    if holds { Ok(()) } else { Err(Misuse(what())) }
}

/// A size as the kernels count: in 32 bits.
///
/// # Errors
/// It is larger.
pub(super) fn int(what: &str, number: usize) -> Result<i32, Misuse> {
    i32::try_from(number).map_err(|_| Misuse(format!("{what} is {number}, more than 32 bits hold")))
}

/// The same for a grid's side.
pub(super) fn blocks(what: &str, number: usize) -> Result<u32, Misuse> {
    int(what, number).map(|number| number as u32)
}
