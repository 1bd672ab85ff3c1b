//! exp and tanh without branches, so that loops over them vectorise; and `compiled`, which compiles a loop twice:
//! for the baseline, and for AVX2 with FMA where the machine has them.
//!
//! Both compilations give equal bits: the operations are the same, in the same order, fused where written as
//! `mul_add` (which without FMA hardware is a call, and slow).
#![allow(unsafe_code)]

/// Defines a function by an `#[inline(always)]` body, compiled for the baseline and for AVX2 + FMA.
macro_rules! compiled {
    ($($(#[$attribute:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?
        = $body:ident;)*) => {$(
        $(#[$attribute])*
        $visible fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn fast($($argument: $type),*) $(-> $result)? {
                    $body($($argument),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the machine has what `fast` was compiled for.
                    #[allow(unsafe_code)]
                    return unsafe { fast($($argument),*) };
                }
            }
            $body($($argument),*)
        }
    )*};
}
pub(super) use compiled;

/// An array by its index, as `std::array::from_fn`, but without a closure: what is called inside is sure to be
/// compiled with the caller's CPU features.
#[cfg(target_arch = "x86_64")]
macro_rules! each {
    ($zero:expr, |$i:ident| $value:expr) => {{
        let mut all = [$zero; _];
        for ($i, slot) in all.iter_mut().enumerate() {
            *slot = $value;
        }
        all
    }};
}
#[cfg(target_arch = "x86_64")]
pub(super) use each;

/// Adding 1.5 x 2^23 leaves the nearest integer, ties to even, in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// e to the power of `x`, within 1.02 units in the last place of the true value (all f32 were tried), subnormal
/// results within one of their steps. Infinite above 88.72284; 0 below -103.97208; NaN for NaN.
///
/// Method: Cephes `expf` (Moshier): x = n ln 2 + r, a polynomial of degree 7 in r, with fused operations.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Clamping keeps n in range; NaN passes through both comparisons.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // 2^n in two factors: n reaches from -150 to 128.
    let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// Hyperbolic tangent, within 1.35 units in the last place (all f32 were tried).
///
/// Method: Cephes `tanhf`: an odd polynomial below 0.625, else 1 - 2 / (exp(2 x) + 1).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let magnitude = x.abs();
    let z = x * x;
    let p = -5.704_988_7e-3f32;
    let p = p.mul_add(z, 2.063_909e-2);
    let p = p.mul_add(z, -5.373_971_6e-2);
    let p = p.mul_add(z, 1.333_144_2e-1);
    let p = p.mul_add(z, -3.333_328e-1);
    let small = (p * z).mul_add(x, x);
    let large = 1.0 - 2.0 / (exp(2.0 * magnitude) + 1.0);
    (if magnitude < 0.625 { small } else { large }).copysign(x)
}

/// The sum of 8 lanes, in a fixed order: as a binary tree.
#[inline(always)]
pub(super) fn tree(lanes: [f32; 8]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error over every `step`th f32 that `keep` admits, in units in the last place of the true value.
    fn worst(step: usize, keep: impl Fn(f32) -> bool, f: impl Fn(f32) -> f32, truth: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0f64;
        for bits in (0..=u32::MAX).step_by(step) {
            let x = f32::from_bits(bits);
            if x.is_nan() || !keep(x) {
                continue;
            }
            let want = truth(f64::from(x));
            let unit = f64::from((want.abs() as f32).max(f32::MIN_POSITIVE));
            let unit = f64::from(f32::from_bits((unit as f32).to_bits() + 1)) - unit;
            let error = (f64::from(f(x)) - want).abs() / unit;
            worst = worst.max(error);
        }
        worst
    }

    /// One f32 in so many; 1 takes a minute, and was tried.
    const STEP: usize = 1009;

    #[test]
    fn exp_is_within_its_bound() {
        let error = worst(STEP, |x| x < 88.722_84, exp, f64::exp);
        assert!(error <= 1.02, "{error}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(88.8), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-103.98), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-100.0) > 0.0);
    }

    #[test]
    fn tanh_is_within_its_bound() {
        let error = worst(STEP, |_| true, tanh, f64::tanh);
        assert!(error <= 1.35, "{error}");
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
        assert!(tanh(f32::NAN).is_nan());
    }
}
