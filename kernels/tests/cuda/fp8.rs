//! Numbers of eight bits: what they are, and that the cache is written with them as it should be. What attention makes of
//! them is tested where that of sixteen bits is.

use super::{device, get, put, random, run, zeros};
use kernels::cuda::rotary::{RotaryWrite, Turn, rotary_write, rotary_write_bytes};
use kernels::cuda::{Bf16, CacheNumbers, Device, E4m3};

/// Positions of a block of the cache.
const PAGE: usize = 32;
const HEADS: usize = 3;
const KV_HEADS: usize = 1;
const KEY_SCALE: f32 = 0.75;
const VALUE_SCALE: f32 = 3.0;

#[test]
fn numbers_of_eight_bits_are_what_they_say() {
    let all = [(0x00, 0.0), (0x01, 1.0 / 512.0), (0x08, 1.0 / 64.0), (0x38, 1.0), (0x3a, 1.25), (0x7e, 448.0)];
    for (bits, number) in all {
        assert_eq!((E4m3(bits).to_f32(), E4m3(bits | 0x80).to_f32()), (number, -number));
    }
    assert!(E4m3(0x7f).to_f32().is_nan() && E4m3(0xff).to_f32().is_nan());
    for bits in (0..=255).filter(|bits| bits & 0x7f != 0x7f) {
        assert_eq!(E4m3::from_f32(E4m3(bits).to_f32()), E4m3(bits));
    }
}

#[test]
fn the_nearest_is_taken_and_of_two_the_even_one() {
    for bits in 0..0x7e {
        let (low, high) = (E4m3(bits).to_f32(), E4m3(bits + 1).to_f32());
        let middle = f32::midpoint(low, high);
        assert_eq!(E4m3::from_f32(middle).0, bits + bits % 2);
        assert_eq!(E4m3::from_f32(middle.next_down()).0, bits);
        assert_eq!(E4m3::from_f32(-middle.next_up()).0, (bits + 1) | 0x80);
    }
    let edges = [449.0, 464.0, 1e9, f32::INFINITY, 1e-9, f32::NAN, -f32::NAN].map(|number| E4m3::from_f32(number).0);
    assert_eq!(edges, [0x7e, 0x7e, 0x7e, 0x7e, 0x00, 0x7f, 0x7f]);
    assert_eq!(E4m3::from_f32(f32::NEG_INFINITY), E4m3(0xfe));
}

/// Keys and values that are written of `qkv`, for rows at these positions of slot 0.
fn written(device: &mut dyn Device, qkv: &[f32], positions: &[i32], dim: usize, turns: bool) -> [Vec<E4m3>; 2] {
    let (rows, cache) = (positions.len(), 2 * KV_HEADS * PAGE * dim);
    let frequencies: Vec<f32> = (0..dim / 2).map(|pair| 0.3 / (1.0 + pair as f32)).collect();
    let (keys, values) = (zeros(device, cache), zeros(device, cache));
    let numbers = CacheNumbers::E4m3 { keys, values, key_scale: KEY_SCALE, value_scale: VALUE_SCALE };
    let frequencies = put(device, &frequencies);
    let job = RotaryWrite {
        qkv: put(device, qkv),
        bias: None,
        norms: None,
        turn: turns.then_some(Turn { frequencies, factor: 1.0, interleaved: false }),
        positions: put(device, positions),
        slots: zeros(device, rows),
        tables: put(device, &[1, 0]),
        table_stride: 2,
        queries: zeros::<Bf16>(device, rows * HEADS * dim),
        cache: numbers,
        rows,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: dim,
    };
    run(device, rotary_write(&job));
    assert_eq!(rotary_write_bytes(&job), rows * dim * ((HEADS + 2) * 4 + HEADS * 2 + 2));
    let none = CacheNumbers::E4m3 { keys, values, key_scale: f32::INFINITY, value_scale: 1.0 };
    assert!(rotary_write(&RotaryWrite { cache: none, ..job }).unwrap_err().0.contains("times inf"));
    [get(device, keys), get(device, values)]
}

/// Numbers of all sizes, with those among them that tests of rounding look at.
fn numbers(len: usize) -> Vec<f32> {
    let middles = (0..0x7eu8).map(|bits| f32::midpoint(E4m3(bits).to_f32(), E4m3(bits + 1).to_f32()) * VALUE_SCALE);
    let special = [0.0, -0.0, 1e-20, 1e9, -f32::INFINITY, f32::NAN, 448.0 * KEY_SCALE, -449.0 * KEY_SCALE];
    let sizes = random(2, len).into_iter().map(|size| (3.0 * size).exp());
    let mut all: Vec<f32> = random(1, len).into_iter().zip(sizes).map(|(number, size)| number * size).collect();
    for (at, number) in middles.chain(special).enumerate().take(len) {
        all[at * 7 % len] = number;
    }
    all
}

#[test]
fn the_cache_is_written_to_the_nearest() {
    let mut device = device();
    let positions = [40, 0, -1, 31, 32];
    for dim in [16, 32, 48, 64, 80, 128, 256] {
        let width = (HEADS + 2 * KV_HEADS) * dim;
        let qkv = numbers(positions.len() * width);
        let got = written(&mut *device, &qkv, &positions, dim, false);
        let mut want = [vec![E4m3(0); got[0].len()], vec![E4m3(0); got[1].len()]];
        for (&position, row) in positions.iter().zip(qkv.chunks_exact(width)) {
            let Ok(position) = usize::try_from(position) else { continue };
            // Slot 0 has block 1 first.
            let line = ((1 - position / PAGE) * PAGE + position % PAGE) * dim;
            for i in 0..dim {
                want[0][line + i] = E4m3::from_f32(row[HEADS * dim + i] * (1.0 / KEY_SCALE));
                want[1][line + i] = E4m3::from_f32(row[(HEADS + 1) * dim + i] * (1.0 / VALUE_SCALE));
            }
        }
        assert!(got == want, "heads of {dim}");
    }
}

#[test]
fn what_is_rotated_is_rounded_after_it() {
    let mut device = device();
    let (dim, position) = (64, 5.0f32);
    let qkv = random(9, (HEADS + 2 * KV_HEADS) * dim);
    let [keys, _] = written(&mut *device, &qkv, &[position as i32], dim, true);
    for pair in 0..dim / 2 {
        let (sine, cosine) = (position * 0.3 / (1.0 + pair as f32)).sin_cos();
        let (a, b) = (qkv[HEADS * dim + pair], qkv[HEADS * dim + pair + dim / 2]);
        for (at, want) in [(pair, a * cosine - b * sine), (pair + dim / 2, b * cosine + a * sine)] {
            let got = keys[PAGE * dim + position as usize * dim + at].to_f32() * KEY_SCALE;
            // Half of the last of four bits.
            assert!((got - want).abs() <= want.abs() / 15.9 + 1e-3, "{at}: {got} is not {want}");
        }
    }
}
