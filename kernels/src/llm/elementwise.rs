//! What happens between the products: norms, rotary embedding, gated activations, softmax. All in f32, on rows of
//! f32. Not here: anything with weights of two dimensions, and sampling.
//!
//! Each function is one body, compiled for the baseline and for AVX2 + FMA (`math.rs`), so that the portable version
//! is the specification and gives equal bits. Sums go through 16 lanes (value i into lane i mod 16) and a fixed tree:
//! a relative error of at most (n / 16 + 5) x 2^-24 for positive terms.

use super::blocks::f32_to_f16;
use super::math::{compiled, exp, tanh, tree};

/// Lanes of a sum.
const LANES: usize = 16;

compiled! {
    /// Root-mean-square norm of one row: `out = x / sqrt(mean(x^2) + eps) * (weight + offset)`. `offset` is 1 where a
    /// family stores weights less one (Gemma), else 0. `x`, `weight` and `out` have one length.
    pub fn rms_norm(x: &[f32], norm: Norm<'_>, out: &mut [f32]) = rms_norm_body;

    /// Layer norm of one row: `out = (x - mean) / sqrt(variance + eps) * (weight + offset) + bias`; an empty bias is
    /// none.
    pub fn layer_norm(x: &[f32], norm: Norm<'_>, bias: &[f32], out: &mut [f32]) = layer_norm_body;

    /// Rotary embedding of every head of one row: `x` is `[heads, head_dim]`, `angles` holds cos and sin for the
    /// first 2 x `angles.cos.len()` values of each head; the rest is left alone.
    pub fn rotate(x: &mut [f32], head_dim: usize, angles: Angles<'_>, pairs: Pairs) = rotate_body;

    /// `gate = silu(gate) * up`, `silu(x) = x / (1 + exp(-x))`: within 2^-21 of its size (0 below -88.7).
    pub fn silu_mul(gate: &mut [f32], up: &[f32]) = silu_mul_body;

    /// `gate = gelu(gate) * up`, the tanh form: `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, within 2^-21 |x|.
    pub fn gelu_mul(gate: &mut [f32], up: &[f32]) = gelu_mul_body;

    /// `x += y`.
    pub fn add(x: &mut [f32], y: &[f32]) = add_body;

    /// `x *= factor`.
    pub fn scale(x: &mut [f32], factor: f32) = scale_body;

    /// `x = cap * tanh(x / cap)`.
    pub fn soft_cap(x: &mut [f32], cap: f32) = soft_cap_body;

    /// The largest value; minus infinity for none. NaN is passed over.
    pub fn max(x: &[f32]) -> f32 = max_body;

    /// The half-precision numbers nearest to `x`, as bits: what a cache keeps. Both have one length.
    pub fn to_f16(x: &[f32], out: &mut [u16]) = to_f16_body;

    /// `x = exp(x - shift)`; returns the sum.
    pub fn exp_sum(x: &mut [f32], shift: f32) -> f32 = exp_sum_body;
}

/// `x = exp(x) / sum(exp(x))`. All minus infinity gives NaN, as in PyTorch.
pub fn softmax(x: &mut [f32]) {
    let shift = max(x);
    let sum = exp_sum(x, shift);
    scale(x, 1.0 / sum);
}

/// Weights of a norm.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// One for each value of a row.
    pub weight: &'a [f32],
    /// Added to every weight: 0 or 1.
    pub offset: f32,
    /// Added to the mean square or variance.
    pub eps: f32,
}

/// Cosines and sines of one position, `[pair]` each.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// i and i + n / 2, as Hugging Face stores Llama, Qwen and most others.
    Halves,
    /// 2 i and 2 i + 1, as in the original Llama and in GLM.
    Adjacent,
}

/// Fills cosines and sines for `position`: the angle of pair i is `position * frequencies[i]`, rounded to f32 as the
/// reference implementations do, both multiplied with `factor` (1 but for YaRN and LongRoPE).
pub fn angles(position: u32, frequencies: &[f32], factor: f32, cos: &mut [f32], sin: &mut [f32]) {
    for ((f, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
        let angle = f64::from(position as f32 * f);
        (*cos, *sin) = (angle.cos() as f32 * factor, angle.sin() as f32 * factor);
    }
}

/// Sum of `f` over `x` in lanes.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (parts, rest) = x.as_chunks::<LANES>();
    for part in parts {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane = f(*x, *lane);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = f(*x, *lane);
    }
    tree(std::array::from_fn(|i| lanes[i] + lanes[i + 8]))
}

#[inline(always)]
fn rms_norm_body(x: &[f32], norm: Norm<'_>, out: &mut [f32]) {
    assert!(x.len() == norm.weight.len() && x.len() == out.len(), "one length");
    let mean = sum(x, |x, sum| x.mul_add(x, sum)) / x.len() as f32;
    let inverse = 1.0 / (mean + norm.eps).sqrt();
    for ((x, weight), out) in x.iter().zip(norm.weight).zip(out) {
        *out = x * inverse * (weight + norm.offset);
    }
}

#[inline(always)]
fn layer_norm_body(x: &[f32], norm: Norm<'_>, bias: &[f32], out: &mut [f32]) {
    assert!(x.len() == norm.weight.len() && x.len() == out.len(), "one length");
    assert!(bias.is_empty() || bias.len() == x.len(), "one length");
    let mean = sum(x, |x, sum| x + sum) / x.len() as f32;
    let variance = sum(x, |x, sum| (x - mean).mul_add(x - mean, sum)) / x.len() as f32;
    let inverse = 1.0 / (variance + norm.eps).sqrt();
    for ((x, weight), out) in x.iter().zip(norm.weight).zip(out.iter_mut()) {
        *out = (x - mean) * inverse * (weight + norm.offset);
    }
    for (out, bias) in out.iter_mut().zip(bias) {
        *out += bias;
    }
}

#[inline(always)]
fn rotate_body(x: &mut [f32], head_dim: usize, angles: Angles<'_>, pairs: Pairs) {
    let half = angles.cos.len();
    assert!(half == angles.sin.len() && 2 * half <= head_dim, "angles of at most {head_dim} / 2 pairs");
    let turn = |a: f32, b: f32, cos: f32, sin: f32| (a.mul_add(cos, -(b * sin)), b.mul_add(cos, a * sin));
    for head in x.chunks_exact_mut(head_dim) {
        let turns = angles.cos.iter().zip(angles.sin);
        match pairs {
            Pairs::Halves => {
                let (low, high) = head[..2 * half].split_at_mut(half);
                for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                    (*a, *b) = turn(*a, *b, *cos, *sin);
                }
            }
            Pairs::Adjacent => {
                for ([a, b], (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    (*a, *b) = turn(*a, *b, *cos, *sin);
                }
            }
        }
    }
}

#[inline(always)]
fn silu_mul_body(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "one length");
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

#[inline(always)]
fn gelu_mul_body(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "one length");
    const FACTOR: f32 = 0.797_884_6;
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        let inner = FACTOR * (0.044_715 * x * x).mul_add(x, x);
        *gate = 0.5 * x * (1.0 + tanh(inner)) * up;
    }
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "one length");
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
fn scale_body(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

#[inline(always)]
fn soft_cap_body(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * tanh(*x / cap);
    }
}

#[inline(always)]
fn max_body(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (parts, rest) = x.as_chunks::<LANES>();
    for part in parts {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane = larger(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, *x);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

#[inline(always)]
fn to_f16_body(x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len(), "one length");
    for (out, x) in out.iter_mut().zip(x) {
        *out = f32_to_f16(*x);
    }
}

#[inline(always)]
fn exp_sum_body(x: &mut [f32], shift: f32) -> f32 {
    for x in x.iter_mut() {
        *x = exp(*x - shift);
    }
    sum(x, |x, sum| x + sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::packed::tests::Random;

    /// Runs `check` on vectors of every awkward length and several sizes.
    fn each(check: impl Fn(&mut Random, Vec<f32>)) {
        let mut random = Random(11);
        for length in [1, 2, 7, 15, 16, 17, 31, 33, 128, 1000, 1024] {
            for size in [1e-20, 1e-3, 1.0, 30.0] {
                let x = random.floats(length).into_iter().map(|x| x * size).collect();
                check(&mut random, x);
            }
        }
    }

    fn close(got: &[f32], want: impl Iterator<Item = f64>, relative: f64, absolute: f64) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= relative * want.abs() + absolute, "{i}: {got} for {want}");
        }
    }

    /// The baseline body has the bits of what runs here.
    fn same(a: &[f32], b: &[f32]) {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(a), bits(b));
    }

    #[test]
    fn norms() {
        each(|random, x| {
            let (weight, bias) = (random.floats(x.len()), random.floats(x.len()));
            for offset in [0.0, 1.0] {
                let norm = Norm { weight: &weight, offset, eps: 1e-6 };
                let (mut out, mut again) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                rms_norm(&x, norm, &mut out);
                rms_norm_body(&x, norm, &mut again);
                same(&out, &again);
                let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                let w = |i: usize| f64::from(weight[i]) + f64::from(offset);
                let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
                let squares: Vec<f64> = wide.iter().map(|x| x * x).collect();
                let root = (mean(&squares) + 1e-6).sqrt();
                close(&out, wide.iter().enumerate().map(|(i, x)| x / root * w(i)), 2e-6, 0.0);

                layer_norm(&x, norm, &bias, &mut out);
                layer_norm_body(&x, norm, &bias, &mut again);
                same(&out, &again);
                let middle = mean(&wide);
                let squares: Vec<f64> = wide.iter().map(|x| (x - middle).powi(2)).collect();
                let root = (mean(&squares) + 1e-6).sqrt();
                let truth = wide.iter().enumerate().map(|(i, x)| (x - middle) / root * w(i) + f64::from(bias[i]));
                close(&out, truth, 1e-5, 1e-5);
            }
        });
    }

    #[test]
    fn rotation() {
        let mut random = Random(12);
        for (head_dim, pairs_count) in [(8, 4), (80, 16), (128, 64), (6, 1), (64, 0)] {
            let frequencies: Vec<f32> = (0..pairs_count).map(|i| 1e4f32.powf(-(i as f32) / 64.0)).collect();
            let (mut cos, mut sin) = (vec![0.0; pairs_count], vec![0.0; pairs_count]);
            angles(1234, &frequencies, 1.5, &mut cos, &mut sin);
            let table = Angles { cos: &cos, sin: &sin };
            let x = random.floats(3 * head_dim);
            for pairs in [Pairs::Halves, Pairs::Adjacent] {
                let (mut y, mut again) = (x.clone(), x.clone());
                rotate(&mut y, head_dim, table, pairs);
                rotate_body(&mut again, head_dim, table, pairs);
                same(&y, &again);
                let mut want: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                for head in want.chunks_exact_mut(head_dim) {
                    for (i, frequency) in frequencies.iter().enumerate() {
                        let (a, b) = match pairs {
                            Pairs::Halves => (i, i + pairs_count),
                            Pairs::Adjacent => (2 * i, 2 * i + 1),
                        };
                        let angle = f64::from(1234.0 * frequency);
                        let (c, s) = (1.5 * angle.cos(), 1.5 * angle.sin());
                        (head[a], head[b]) = (head[a] * c - head[b] * s, head[a] * s + head[b] * c);
                    }
                }
                close(&y, want.into_iter(), 1e-6, 1e-6);
            }
        }
    }

    #[test]
    fn gates() {
        each(|random, x| {
            let up = random.floats(x.len());
            let wide = || x.iter().zip(&up).map(|(x, up)| (f64::from(*x), f64::from(*up)));
            let (mut y, mut again) = (x.clone(), x.clone());
            silu_mul(&mut y, &up);
            silu_mul_body(&mut again, &up);
            same(&y, &again);
            close(&y, wide().map(|(x, up)| x / (1.0 + (-x).exp()) * up), 5e-7, 1e-44);
            let (mut y, mut again) = (x.clone(), x.clone());
            gelu_mul(&mut y, &up);
            gelu_mul_body(&mut again, &up);
            same(&y, &again);
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let truth = wide().map(|(x, up)| x / 2.0 * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh()) * up);
            let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
            close(&y, truth, 1e-6, 2f64.powi(-21) * f64::from(largest));
        });
        let mut far = [-1e4, -100.0, 100.0, f32::MIN_POSITIVE];
        silu_mul(&mut far, &[1.0; 4]);
        assert_eq!(far[..3], [-0.0, -0.0, 100.0]);
    }

    #[test]
    fn halves_are_the_nearest() {
        let special =
            [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65519.0, 65520.0, -0.0, 1e-40, 3e-8, 2.98e-8, 6.1e-5];
        each(|_, mut x| {
            x.extend(special);
            let mut halves = vec![0; x.len()];
            to_f16(&x, &mut halves);
            assert!(halves.iter().zip(&x).all(|(half, x)| *half == f32_to_f16(*x)));
        });
    }

    #[test]
    fn softmax_and_friends() {
        each(|random, x| {
            let mut y = x.clone();
            softmax(&mut y);
            let top = f64::from(max(&x));
            assert!(x.contains(&max(&x)));
            let total: f64 = x.iter().map(|x| (f64::from(*x) - top).exp()).sum();
            close(&y, x.iter().map(|x| (f64::from(*x) - top).exp() / total), 5e-6, 1e-44);
            let (mut y, mut again) = (x.clone(), x.clone());
            assert_eq!(exp_sum(&mut y, 0.5).to_bits(), exp_sum_body(&mut again, 0.5).to_bits());
            same(&y, &again);
            let mut y = x.clone();
            soft_cap(&mut y, 20.0);
            close(&y, x.iter().map(|x| 20.0 * (f64::from(*x) / 20.0).tanh()), 1e-6, 0.0);
            let other = random.floats(x.len());
            let mut y = x.clone();
            add(&mut y, &other);
            scale(&mut y, 3.0);
            close(&y, x.iter().zip(&other).map(|(a, b)| f64::from((a + b) * 3.0)), 0.0, 0.0);
        });
        let mut x = [f32::NEG_INFINITY, 0.0, 0.0];
        softmax(&mut x);
        assert_eq!(x, [0.0, 0.5, 0.5]);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        assert_eq!(max(&[1.0, f32::NAN, 0.5]), 1.0);
    }
}
