//! What a step takes on a device: a sum of what all steps cost and what each row and each position read adds to that.
//!
//! Models of devices, to compare settings with; what a real one does is measured by other benchmarks.

use backends::llm::engine::Overlap;
use backends::llm::plan::Chunk;

/// The time of steps, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) name: &'static str,
    /// When the outcome of a step is waited for.
    pub(crate) overlap: Overlap,
    /// Of each step, whatever it computes: all weights are read, all kernels started.
    step: f64,
    /// Of each position of a prompt: its products.
    prompt_row: f64,
    /// Of each sequence that decodes.
    decode_row: f64,
    /// Of each position whose keys and values a chunk reads.
    read: f64,
    /// Of each pair of a prompt's position and one that it attends to.
    pair: f64,
}

/// A data-centre GPU of 80 GB (H100) with a model of 8 billion parameters in bf16; nothing here was measured. 16 GB of
/// weights at 2.7 TB/s; 16 GFLOP a row at 500 TFLOP/s, of which decoding rows hide two thirds behind the weights; 128
/// KiB of keys and values for each position at 2.6 TB/s; half a million operations a pair at 400 TFLOP/s.
pub(crate) const GPU: Device = Device {
    name: "gpu",
    overlap: Overlap::Ahead,
    step: 6.0e6,
    prompt_row: 32.0e3,
    decode_row: 10.0e3,
    read: 50.0,
    pair: 1.3,
};

/// Two vCPU (Zen 3) with Qwen3-0.6B in Q4_K_M. Three totals are those of RESULTS.md: 25 ms for a token of one sequence,
/// 144 ms for one of each of sixteen, 2.9 s for a prompt of 512. How they divide is an estimate: 112 KiB of keys and
/// values for each position at 14 GB/s, a quarter of a million operations a pair at 76 GFLOP/s.
pub(crate) const CPU: Device = Device {
    name: "cpu",
    overlap: Overlap::InStep,
    step: 17.0e6,
    prompt_row: 4.8e6,
    decode_row: 7.0e6,
    read: 8.0e3,
    pair: 3.0e3,
};

impl Device {
    /// A step of these chunks.
    pub(crate) fn step(&self, chunks: &[Chunk]) -> u64 {
        let rows: f64 = chunks.iter().map(|chunk| self.chunk(chunk.start, chunk.length)).sum();
        (self.step + rows) as u64
    }

    /// What a request takes that has the device for itself, and nothing in the cache: what it is compared with.
    pub(crate) fn alone(&self, prompt: u32, answer: u32, chunk_tokens: u32) -> f64 {
        let starts = (0..prompt).step_by(chunk_tokens.max(1) as usize);
        let prompt_steps = starts.len() as f64;
        let reading: f64 = starts.map(|start| self.chunk(start, chunk_tokens.min(prompt - start))).sum();
        // The first token comes with the prompt's last chunk.
        let tokens = f64::from(answer) - 1.0;
        let middle = prompt + answer / 2;
        (prompt_steps + tokens) * self.step + reading + tokens * self.chunk(middle, 1)
    }

    /// Consecutive positions of a sequence; a single one is a token that decodes.
    fn chunk(&self, start: u32, length: u32) -> f64 {
        let (before, rows) = (f64::from(start), f64::from(length));
        let products = match length {
            1 => self.decode_row,
            _ => rows * (self.prompt_row + self.pair * (before + rows / 2.0)),
        };
        products + self.read * (before + rows)
    }
}

#[cfg(test)]
mod tests {
    use super::{CPU, GPU};

    #[test]
    fn the_cpu_takes_what_was_measured() {
        let ms = |nanoseconds: f64| nanoseconds / 1e6;
        let near = |value: f64, measured: f64| assert!((value / measured - 1.0).abs() < 0.1, "{value}, not {measured}");
        near(ms(CPU.step + CPU.chunk(100, 1)), 1e3 / 40.4);
        near(ms(CPU.step + 16.0 * CPU.chunk(100, 1)), 16e3 / 111.2);
        near(ms(CPU.step + CPU.chunk(0, 512)), 512e3 / 178.2);
    }

    #[test]
    fn alone_is_the_sum_of_the_steps() {
        for device in [CPU, GPU] {
            let steps = [(0, 64), (64, 36), (100, 1), (101, 1), (102, 1)];
            let sum: f64 = steps.iter().map(|&(start, length)| device.step + device.chunk(start, length)).sum();
            let alone = device.alone(100, 4, 64);
            assert!((alone / sum - 1.0).abs() < 1e-3, "{alone} {sum}");
        }
    }
}
