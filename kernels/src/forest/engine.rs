//! A forest compiled for every path, and the choice between them: by batch size, after timing both at load. All paths
//! give equal bits, so the choice is free.

use super::bitsliced::{BlockKernel, Blocks, Masks};
use super::columns::Columns;
use super::interleaved::Interleaved;
use super::model::{Forest, Real};
use super::search::ROWS;
use super::{bitsliced, scalar};
use std::cell::RefCell;
use std::time::Instant;

/// Which kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// By batch size, as calibrated.
    Auto,
    /// The specification.
    Scalar,
    /// Row by row, sixteen trees at once.
    Interleaved,
    /// Blocks of 64 rows, the best this machine has.
    Blocks,
    /// Blocks of 64 rows, compiled for the baseline of the target.
    BlocksPortable,
    /// Blocks of 64 rows, compiled for AVX2; as [`Path::BlocksPortable`] where there is none.
    BlocksAvx2,
}

impl Path {
    /// Every path, for tests and benchmarks.
    pub const ALL: [Path; 6] =
        [Path::Auto, Path::Scalar, Path::Interleaved, Path::Blocks, Path::BlocksPortable, Path::BlocksAvx2];
}

/// A forest ready to run.
#[derive(Debug)]
pub struct Engine<T: Real> {
    forest: Forest<T>,
    columns: Columns<T>,
    interleaved: Interleaved<T>,
    blocks: Blocks<T>,
    /// Rows left over from whole blocks that are worth a block of their own.
    crossover: usize,
}

/// What calibration may allocate, however small the forest.
const CALIBRATION_BYTES: usize = 512 << 10;

/// Buffers that a thread keeps between calls.
#[derive(Default)]
struct Scratch {
    codes: Vec<u8>,
    ends: Vec<u32>,
    masks: Masks,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<T: Real> Engine<T> {
    /// Compiles and calibrates. Takes milliseconds for a forest of 100,000 nodes.
    pub fn new(forest: Forest<T>) -> Self {
        let columns = Columns::new(&forest);
        let interleaved = Interleaved::new(&forest, &columns);
        let blocks = Blocks::new(&forest, &columns);
        let mut engine = Engine { forest, columns, interleaved, blocks, crossover: ROWS / 2 };
        engine.crossover = engine.calibrate();
        engine
    }

    /// The forest as it was read.
    pub fn forest(&self) -> &Forest<T> {
        &self.forest
    }

    /// Bytes held by every compiled form.
    pub fn bytes(&self) -> usize {
        self.forest.nodes.len() * size_of::<super::Node<T>>()
            + self.forest.values.len() * size_of::<T>()
            + self.columns.bytes()
            + self.interleaved.bytes()
            + self.blocks.bytes()
    }

    /// Rows from which a block is used.
    pub fn crossover(&self) -> usize {
        self.crossover
    }

    /// Adds every tree's leaf to `sums` for each row.
    ///
    /// `rows` is row-major, `n x features`; `sums` is row-major, `n x outputs`, and holds the starting margins.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn add(&self, path: Path, rows: &[T], sums: &mut [T]) {
        let (features, outputs) = (self.forest.features, self.forest.outputs);
        let count = rows.len() / features;
        assert_eq!(rows.len(), count * features, "rows are not whole");
        assert_eq!(sums.len(), count * outputs, "one sum for each row and output");
        let mut done = 0;
        while done < count {
            let left = count - done;
            let take = match path {
                Path::Auto if left < self.crossover => left,
                Path::Scalar | Path::Interleaved => left,
                _ => left.min(ROWS),
            };
            let rows = &rows[done * features..(done + take) * features];
            let sums = &mut sums[done * outputs..(done + take) * outputs];
            match path {
                Path::Scalar => {
                    for (row, sums) in rows.chunks_exact(features).zip(sums.chunks_exact_mut(outputs)) {
                        scalar::add(&self.forest, row, sums);
                    }
                }
                Path::Interleaved => self.add_rows(rows, sums),
                Path::Auto if left < self.crossover => self.add_rows(rows, sums),
                _ => self.add_block(self.kernel(path), rows, sums),
            }
            done += take;
        }
    }

    /// The leaf of every tree for one row, in the order of the file.
    pub fn leaves(&self, row: &[T], leaves: &mut Vec<u32>) {
        assert_eq!(row.len(), self.forest.features, "one value for each feature");
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.codes.resize(self.columns.count(), 0);
            self.columns.encode_row(row, &mut scratch.codes);
            self.interleaved.leaves(&self.forest, &scratch.codes[..self.columns.count()], leaves);
        });
    }

    fn kernel(&self, path: Path) -> BlockKernel<T> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return match path {
                Path::BlocksPortable => bitsliced::portable,
                Path::BlocksAvx2 => bitsliced::avx2,
                _ => T::block_kernel().unwrap_or(bitsliced::avx2),
            };
        }
        let _ = path;
        bitsliced::portable
    }

    fn add_rows(&self, rows: &[T], sums: &mut [T]) {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.codes.resize(self.columns.count().max(scratch.codes.len()), 0);
            let codes = &mut scratch.codes[..self.columns.count()];
            let pairs = rows.chunks_exact(self.forest.features).zip(sums.chunks_exact_mut(self.forest.outputs));
            for (row, sums) in pairs {
                self.columns.encode_row(row, codes);
                self.interleaved.add(&self.forest, codes, sums, &mut scratch.ends);
            }
        });
    }

    /// One block of up to 64 rows.
    fn add_block(&self, kernel: BlockKernel<T>, rows: &[T], sums: &mut [T]) {
        let outputs = self.forest.outputs;
        let count = rows.len() / self.forest.features;
        let walks = bitsliced::Walks { forest: &self.forest, interleaved: &self.interleaved };
        SCRATCH.with_borrow_mut(|scratch| {
            let length = self.columns.count() * ROWS;
            scratch.codes.resize(length.max(scratch.codes.len()), 0);
            let codes = &mut scratch.codes[..length];
            self.columns.encode_block(rows, codes);
            let mut few = [T::ZERO; 4 * ROWS];
            let mut many = Vec::new();
            let block = if outputs <= 4 {
                &mut few[..outputs * ROWS]
            } else {
                many.resize(outputs * ROWS, T::ZERO);
                &mut many[..]
            };
            for row in 0..count {
                for output in 0..outputs {
                    block[output * ROWS + row] = sums[row * outputs + output];
                }
            }
            // SAFETY: `kernel` came from `Engine::kernel`, which hands out what this machine has; `codes` has a
            // whole column of 64 bytes for each column, `block` 64 sums for each output.
            #[allow(unsafe_code)]
            unsafe {
                kernel(&self.blocks, walks, codes, block, &mut scratch.masks)
            };
            for row in 0..count {
                for output in 0..outputs {
                    sums[row * outputs + output] = block[output * ROWS + row];
                }
            }
        });
    }

    /// Times one row against one block, in about a millisecond each, and returns where they cross.
    fn calibrate(&self) -> usize {
        let features = self.forest.features;
        // A forest that looks at few of many columns would need more memory for this than it holds itself.
        let needed = (features + 2 * self.forest.outputs).saturating_mul(ROWS * size_of::<T>());
        if needed > CALIBRATION_BYTES.max(self.bytes()) {
            return ROWS / 2;
        }
        let rows: Vec<T> = (0..ROWS * features).map(|i| self.sample(i)).collect();
        let mut sums = vec![T::ZERO; ROWS * self.forest.outputs];
        let single = time(|| self.add(Path::Interleaved, &rows[..4 * features], &mut sums[..4 * self.forest.outputs]));
        let block = time(|| self.add(Path::Blocks, &rows, &mut sums));
        ((block / (single / 4.0)).ceil() as usize).clamp(2, ROWS)
    }

    /// A value that spreads over the thresholds of its feature: some threshold of the forest, by a fixed stride.
    fn sample(&self, i: usize) -> T {
        if self.forest.nodes.is_empty() {
            return T::ZERO;
        }
        match self.forest.nodes[(i * 7919) % self.forest.nodes.len()].test {
            super::Test::Threshold(t) => t,
            super::Test::Category(_) => T::from_f64((i % 7) as f64),
        }
    }
}

/// Seconds of the fastest of a few calls.
fn time(mut call: impl FnMut()) -> f64 {
    call();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let before = Instant::now();
        call();
        best = best.min(before.elapsed().as_secs_f64());
        if start.elapsed().as_micros() > 1500 {
            break;
        }
    }
    best.max(1e-9)
}
