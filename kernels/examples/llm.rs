//! Micro-benchmark of the products: shapes of Qwen3-0.6B, each format, one and two threads; the machine's read
//! bandwidth beside. Minimum of many repetitions; weights of every case together exceed the last-level cache.
//!
//! `cargo run --release --example bench [1t] [FORMAT ...]`
#![allow(clippy::unwrap_used)]

use kernels::llm::{Activations, Format, Packed, TILE};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Bytes of weights that one case walks through: several times the cache.
const FOOTPRINT: usize = 192 << 20;

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 33
}

fn weights(format: Format, rows: usize, cols: usize) -> Packed {
    let mut state = 1;
    let row = format.row_bytes(cols).unwrap();
    let mut bytes: Vec<u8> = (0..row * 32).map(|_| random(&mut state) as u8).collect();
    // Scales (and floats) of about 1/64, so that nothing is subnormal or infinite.
    let (size, fields): (usize, &[usize]) = match format {
        Format::F32 => (4, &[2]),
        Format::F16 | Format::Bf16 => (2, &[0]),
        Format::Q4K | Format::Q5K => (format.block_bytes(), &[0, 2]),
        Format::Q6K => (210, &[208]),
        _ => (format.block_bytes(), &[0]),
    };
    for block in bytes.chunks_exact_mut(size) {
        for &at in fields {
            let high = if format.is_float() && format != Format::F16 { 0x3c } else { 0x24 };
            block[at + 1] = high;
        }
    }
    let mut packed = Packed::vacant(format, rows, cols).unwrap();
    for tile in packed.tiles_mut() {
        let n = tile.rows.len();
        tile.pack(&bytes[..n * row]);
    }
    packed
}

/// Best seconds of a step that `threads` threads make together; `work(thread, i)` is the part of one in step i. Steps
/// are short (below a millisecond), and the best counts, so that other load on the machine disturbs little.
fn best(threads: usize, seconds: f64, work: impl Fn(usize, usize) + Sync) -> f64 {
    let (arrived, last) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let start = Instant::now();
    let run = |thread: usize| {
        let mut times = Vec::new();
        for i in 0.. {
            if thread == 0 && i > 8 && last.load(Ordering::SeqCst) > i && start.elapsed().as_secs_f64() > seconds {
                last.store(i, Ordering::SeqCst);
            }
            arrived.fetch_add(1, Ordering::SeqCst);
            let mut spins = 0;
            while arrived.load(Ordering::SeqCst) < threads * (i + 1) {
                spins += 1;
                if spins > 20_000 {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
            if last.load(Ordering::SeqCst) <= i {
                break;
            }
            let before = start.elapsed().as_secs_f64();
            work(thread, i);
            times.push((before, start.elapsed().as_secs_f64()));
        }
        times
    };
    let all: Vec<Vec<(f64, f64)>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|t| scope.spawn(move || run(t))).collect();
        let mut all = vec![run(0)];
        all.extend(others.into_iter().map(|t| t.join().unwrap()));
        all
    });
    let steps = all.iter().map(Vec::len).min().unwrap();
    (0..steps)
        .map(|i| {
            let first = all.iter().map(|t| t[i].0).fold(f64::INFINITY, f64::min);
            all.iter().map(|t| t[i].1).fold(0.0, f64::max) - first
        })
        .fold(f64::INFINITY, f64::min)
}

/// Best seconds of multiplying `tiles` tiles of one of `all` matrices, another at each step.
fn time(all: &[Packed], a: &Activations, tiles: usize, threads: usize) -> f64 {
    let share = tiles / threads;
    let width = share * TILE;
    let runs = all[0].tiles() / tiles;
    let outs: Vec<Mutex<Vec<f32>>> = (0..threads).map(|_| Mutex::new(vec![0.0; a.rows() * width])).collect();
    best(threads, 0.5, |thread, i| {
        let mut out = outs[thread].lock().unwrap();
        let mut rows: Vec<&mut [f32]> = out.chunks_exact_mut(width).collect();
        let first = i / all.len() % runs * tiles + thread * share;
        all[i % all.len()].multiply(first..first + share, a, &mut rows);
    })
}

/// GB/s of reading memory that is in no cache.
fn read(threads: usize, data: &[u64]) -> f64 {
    let sum = |data: &[u64]| {
        let mut lanes = [0u64; 32];
        for part in data.as_chunks::<32>().0 {
            for (lane, x) in lanes.iter_mut().zip(part) {
                *lane ^= x;
            }
        }
        lanes.iter().fold(0, |a, b| a ^ b)
    };
    const STEP: usize = (4 << 20) / 8;
    let share = STEP / threads;
    let seconds = best(threads, 2.0, |thread, i| {
        let first = i % (data.len() / STEP) * STEP + thread * share;
        std::hint::black_box(sum(&data[first..first + share]));
    });
    STEP as f64 * 8.0 / seconds / 1e9
}

/// Cycles in a nanosecond: or takes one, and a multiplication three.
fn gigahertz() -> f64 {
    let seconds = best(1, 0.3, |_, _| {
        let mut x = std::hint::black_box(1u64);
        for _ in 0..100_000u64 {
            x = x.wrapping_mul(x | 1);
            x = x.wrapping_mul(x | 1);
        }
        std::hint::black_box(x);
    });
    8.0 * 1e5 / seconds / 1e9
}

fn main() {
    let mut wanted: Vec<String> = std::env::args().skip(1).map(|a| a.to_lowercase()).collect();
    // On a busy machine two threads rarely run together: `1t` leaves that out, as 0.
    let single = wanted.iter().any(|a| a == "1t");
    wanted.retain(|a| a != "1t");
    let data: Vec<u64> = (0..(256usize << 20) / 8).map(|i| i as u64).collect();
    let ghz = gigahertz();
    let (one, two) = (read(1, &data), if single { f64::NAN } else { read(2, &data) });
    drop(data);
    println!("read bandwidth {one:.1} GB/s one thread, {two:.1} GB/s two; {ghz:.2} GHz");
    println!(
        "{:6} {:>15} {:>3} {:>10} {:>10} {:>14} {:>14}",
        "", "", "M", "GB/s 1T", "GB/s 2T", "GMAC/s 1T", "GMAC/s 2T"
    );
    for format in
        [Format::Q8_0, Format::Bf16, Format::Q4K, Format::Q6K, Format::Q4_0, Format::Q5K, Format::F16, Format::F32]
    {
        if !wanted.is_empty() && !wanted.contains(&format!("{format:?}").to_lowercase()) {
            continue;
        }
        for (rows, cols) in [(3072, 1024), (1024, 3072), (151_936, 1024)] {
            let size = rows * format.row_bytes(cols).unwrap();
            let all: Vec<Packed> = (0..FOOTPRINT.div_ceil(size)).map(|_| weights(format, rows, cols)).collect();
            for m in [1, 2, 4, 16, 64, 256] {
                if rows > 100_000 && m > 1 {
                    continue;
                }
                let values: Vec<f32> = (0..m * cols).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
                let a = Activations::new(all[0].operand(), &values, cols);
                // At most 4 MB or 8 million products in a step.
                let tile = TILE * cols * m;
                let tiles = all[0].tiles().min((8_000_000 / tile).max(2)).min(4_000_000 * all[0].tiles() / size) & !1;
                let t1 = time(&all, &a, tiles, 1);
                let t2 = if single { f64::INFINITY } else { time(&all, &a, tiles, 2) };
                let bytes = (size as f64 * tiles as f64 / all[0].tiles() as f64) / 1e9;
                let macs = (tile * tiles) as f64 / 1e9;
                println!(
                    "{:6} {rows:>8} x {cols:4} {m:>3} {:>10.1} {:>10.1} {:>7.1} ({:4.1}/c) {:>7.1} ({:.0}% bw)",
                    format!("{format:?}"),
                    bytes / t1,
                    bytes / t2,
                    macs / t1,
                    macs / t1 / ghz,
                    macs / t2,
                    bytes / t2 / two * 100.0
                );
            }
        }
    }
}
