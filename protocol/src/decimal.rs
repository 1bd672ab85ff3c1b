//! Decimal numbers to floats, for the numbers that tensors are full of: few digits and small exponents.
//!
//! The digits are read as one whole number `w`, and the value is `w * 10^e`. Up to 2^53 `w` is exact as a double, and so
//! is 10^|e| up to 10^22: then one multiplication or division rounds correctly (W. Clinger, "How to read floating point
//! numbers accurately", 1990). A double that is off by a few units in its last place still gives the right single,
//! unless it lies next to the middle between two of them. Whatever is neither is left to the standard library.

/// Powers of ten that are exact.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
/// Digits that always fit 64 bits.
const DIGITS: usize = 19;
/// Bits that a double has more than a single.
const MORE: u32 = f64::MANTISSA_DIGITS - f32::MANTISSA_DIGITS;

/// A number as it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decimal {
    negative: bool,
    /// Without its point.
    digits: u64,
    exponent: i32,
    /// No point, no exponent?
    plain: bool,
    /// In bytes.
    pub(crate) length: usize,
}

/// The number that `text` begins with, by JSON's grammar. `None`: there is none, or one for the standard library.
#[inline]
pub(crate) fn read(text: &[u8]) -> Option<Decimal> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let (mut digits, mut at) = scan(text, start, 0);
    let mut count = at - start;
    if count == 0 || (count > 1 && text[start] == b'0') {
        return None;
    }
    let (mut exponent, mut plain) = (0, true);
    if text.get(at) == Some(&b'.') {
        let point = at + 1;
        (digits, at) = scan(text, point, digits);
        if at == point {
            return None;
        }
        (count, exponent, plain) = (count + at - point, -((at - point).min(DIGITS + 1) as i32), false);
    }
    if count > DIGITS {
        return None;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let sign = text.get(at + 1).filter(|sign| matches!(sign, b'+' | b'-'));
        let first = at + 1 + usize::from(sign.is_some());
        let (power, end) = scan(text, first, 0);
        if end == first || end - first > 3 {
            return None;
        }
        exponent += if sign == Some(&b'-') { -(power as i32) } else { power as i32 };
        (at, plain) = (end, false);
    }
    let goes_on = match text.get(at) {
        None | Some(b',' | b']') => false,
        Some(byte) => byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'-'),
    };
    (!goes_on).then_some(Decimal { negative, digits, exponent, plain, length: at })
}

/// Appends the digits from `at` on to `number`; also where they end. What is too long for 64 bits has more than
/// [`DIGITS`] of them.
#[inline]
fn scan(text: &[u8], mut at: usize, mut number: u64) -> (u64, usize) {
    for byte in text.get(at..).unwrap_or_default() {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        number = number.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    (number, at)
}

impl Decimal {
    /// The nearest double.
    #[inline]
    pub(crate) fn double(&self) -> Option<f64> {
        if self.digits > 1 << f64::MANTISSA_DIGITS { None } else { self.nearly() }
    }

    /// The nearest single.
    #[inline]
    pub(crate) fn single(&self) -> Option<f32> {
        let nearly = self.nearly()?;
        // Off by at most two units: one of the digits' own rounding, one of the power's.
        let below = nearly.to_bits() & ((1 << MORE) - 1);
        let middle = 1u64 << (MORE - 1);
        let clear = below.abs_diff(middle) > 4 || self.digits == 0;
        // Where singles have all their bits.
        (clear && (self.digits == 0 || nearly.abs() > 1e-30)).then_some(nearly as f32)
    }

    /// The whole number, where it is written as one and fits.
    #[inline]
    pub(crate) fn whole(&self) -> Option<i64> {
        // The least of them has no counterpart that is positive.
        let whole =
            if self.negative { 0i64.checked_sub_unsigned(self.digits) } else { i64::try_from(self.digits).ok() };
        whole.filter(|_| self.plain)
    }

    /// A double, exact up to 2^53.
    #[inline]
    fn nearly(&self) -> Option<f64> {
        let power = *POWERS.get(self.exponent.unsigned_abs() as usize)?;
        let digits = self.digits as f64;
        let magnitude = if self.exponent < 0 { digits / power } else { digits * power };
        Some(if self.negative { -magnitude } else { magnitude })
    }
}

#[cfg(test)]
mod tests {
    use super::{Decimal, read};

    /// Compares with the standard library; true where there is an answer.
    fn check(text: &str) -> bool {
        let Some(decimal) = read(text.as_bytes()) else { return false };
        assert_eq!(decimal.length, text.len(), "{text}");
        if let Some(single) = decimal.single() {
            assert_eq!(single.to_bits(), text.parse::<f32>().unwrap().to_bits(), "{text} as a single");
        }
        if let Some(double) = decimal.double() {
            assert_eq!(double.to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text} as a double");
        }
        if let Some(whole) = decimal.whole() {
            assert_eq!(Ok(whole), text.parse(), "{text} as a whole number");
        }
        decimal.single().is_some()
    }

    #[test]
    fn numbers_are_those_of_the_standard_library() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d)
        };
        let mut quick = 0;
        for _ in 0..200_000 {
            let (a, b) = (next(), next());
            let single = f32::from_bits(a as u32);
            let double = f64::from_bits(b);
            let small = (a % 2_000_001) as f64 / 1e6 - 1.0;
            for text in [format!("{small}"), format!("{}", small as f32), format!("{}", a as i64 >> (b % 64))] {
                quick += u32::from(check(&text));
            }
            if single.is_finite() && double.is_finite() {
                check(&format!("{single:e}"));
                check(&format!("{double:e}"));
                // The middle between two singles, written in full, and close beside it.
                let middle = (f64::from(single) + f64::from(single.next_up())) / 2.0;
                for near in [middle, middle.next_up(), middle.next_down()] {
                    check(&format!("{near}"));
                    check(&format!("{near:.18e}"));
                }
            }
            let digits = a >> (b % 60);
            check(&format!("{}e{}", digits, (b >> 32) % 60));
            check(&format!("-{}.{}e-{}", digits % 1000, digits, (b >> 32) % 60));
        }
        assert!(quick > 500_000, "{quick} of 600,000 were quick");
    }

    #[test]
    fn what_is_no_number_is_left_to_others() {
        for text in
            ["", "-", "01", "-01", "1.", ".5", "1e", "1e+", "1x", "1.5.5", "1-", "+1", "NaN", "--1", "1e5e5", "1 "]
        {
            let length = read(text.as_bytes()).map(|decimal| decimal.length);
            assert_eq!(length, (text == "1 ").then_some(1), "{text}");
        }
        for (text, whole) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("12", Some(12)),
            ("1.0", None),
            ("1e2", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("-9223372036854775808", Some(i64::MIN)),
            ("-9223372036854775809", None),
        ] {
            assert_eq!(read(text.as_bytes()).as_ref().and_then(Decimal::whole), whole, "{text}");
        }
        assert!(read(b"12345678901234567890").is_none());
        assert!(read(b"-0").unwrap().double().unwrap().is_sign_negative());
        assert!(read(b"-0.0").unwrap().single().unwrap().is_sign_negative());
    }
}
