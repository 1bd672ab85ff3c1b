//! The kernels for GPUs against plain scalar arithmetic: on a GPU where there is one and feature `cuda` is on, else in
//! the emulator.

#![allow(clippy::unwrap_used, unreachable_pub)]
#![cfg(any(feature = "cuda", feature = "emulator"))]

mod attention;
mod attention_wgmma;
mod elementwise;
mod experts;
mod fp8;
mod gemm;
mod gemv;
mod pairs;
mod rotary;
mod sampler;
mod setup;
mod stored;
mod stream;
mod wgmma;
mod world;

use kernels::cuda::{Bf16, Device, E4m3, Launch, Misuse, Number, Slice};

/// A number whose bytes tests move about.
pub trait Plain: Number {
    /// Its bytes, lowest first.
    fn bytes(self) -> Vec<u8>;
    /// Of so many bytes.
    fn of(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($type:ty),*) => {
        $(impl Plain for $type {
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
            fn of(bytes: &[u8]) -> Self {
                <$type>::from_le_bytes(bytes.try_into().unwrap())
            }
        })*
    };
}

plain!(u8, u16, i32, u32, f32, u64);

impl Plain for Bf16 {
    fn bytes(self) -> Vec<u8> {
        self.0.bytes()
    }
    fn of(bytes: &[u8]) -> Self {
        Bf16(u16::of(bytes))
    }
}

impl Plain for E4m3 {
    fn bytes(self) -> Vec<u8> {
        vec![self.0]
    }
    fn of(bytes: &[u8]) -> Self {
        E4m3(bytes[0])
    }
}

/// A GPU where there is one, else the emulator.
pub fn device() -> Box<dyn Device> {
    #[cfg(feature = "cuda")]
    if let kernels::cuda::Driver::Gpus(names) = kernels::cuda::driver()
        && !names.is_empty()
    {
        // One that is never let go: what the driver had to do for the first one it need not do again.
        static HELD: std::sync::OnceLock<()> = std::sync::OnceLock::new();
        HELD.get_or_init(|| std::mem::forget(kernels::cuda::Gpu::open(0).unwrap()));
        return Box::new(kernels::cuda::Gpu::open(0).unwrap());
    }
    #[cfg(feature = "emulator")]
    return Box::new(kernels::cuda::Emulator::new());
    #[cfg(not(feature = "emulator"))]
    panic!("there is no GPU, and the emulator is not built in");
}

/// Numbers on the device.
pub fn put<T: Plain>(device: &mut dyn Device, numbers: &[T]) -> Slice<T> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.bytes()).collect();
    let slice = device.reserve(bytes.len()).unwrap();
    device.upload(slice, &bytes).unwrap();
    slice.cast().unwrap()
}

/// Zeros on the device.
pub fn zeros<T: Plain>(device: &mut dyn Device, len: usize) -> Slice<T> {
    let slice = device.reserve(len * T::BYTES).unwrap();
    device.upload(slice, &vec![0; len * T::BYTES]).unwrap();
    slice.cast().unwrap()
}

/// Numbers from the device.
pub fn get<T: Plain>(device: &mut dyn Device, slice: Slice<T>) -> Vec<T> {
    let pending = device.download(slice.cast().unwrap()).unwrap();
    device.wait(pending).unwrap().chunks_exact(T::BYTES).map(T::of).collect()
}

/// Runs a launch that must be right.
pub fn run(device: &mut dyn Device, launch: Result<Launch, Misuse>) {
    device.launch(&launch.unwrap()).unwrap();
}

/// Roughly normal numbers of mean 0 and deviation 1, the same for the same seed.
pub fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    // Four uniform numbers have the variance 4 / 12.
    (0..len).map(|_| (next() + next() + next() + next() - 2.0) * 3f32.sqrt()).collect()
}

/// How far `got` is from `want`: squared differences over squares.
pub fn nmse(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut error, mut size) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        error += (f64::from(*got) - f64::from(*want)).powi(2);
        size += f64::from(*want).powi(2);
    }
    error / size.max(f64::MIN_POSITIVE)
}
