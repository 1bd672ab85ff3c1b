//! Sizes and durations as people write them, and back.
//!
//! A size is a number of bytes: `65536`, `512k`, `1GB` (powers of 1000), `64MiB`, `64Mi` (powers of 1024). A duration
//! always says its unit: `30s`, `500ms`, `1m30s`; only `0` needs none. Nothing here knows a flag.

use std::time::Duration;

/// Powers of 1024 before powers of 1000: printing takes the first that divides a size.
const SIZES: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

const TIMES: &[(&str, u64)] = &[
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// What [`read_bytes`] and [`read_duration`] ask for when they cannot read a value.
const SIZE_EXAMPLES: &str = "is not a size: write it as 64MiB, 1GB, 512k or a number of bytes";
const TIME_EXAMPLES: &str = "is not a duration: write it with a unit, as 30s, 500ms, 2m, 1h or 100us";

/// Reads a size in bytes.
///
/// # Errors
/// The rest of a sentence that begins with the value.
pub fn read_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(number_length(text));
    // A byte has no parts.
    let fits = |factor: &u64| *factor > 1 || !number.contains('.');
    let factor = size_factor(unit.trim()).filter(fits).ok_or(SIZE_EXAMPLES)?;
    scale(number, factor).ok_or_else(|| SIZE_EXAMPLES.to_owned())
}

/// Reads a duration: numbers with their units, added up.
///
/// # Errors
/// The rest of a sentence that begins with the value.
pub fn read_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut nanoseconds) = (text, 0_u64);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(number_length(rest));
        let unit = after.find(|c: char| c.is_ascii_digit()).map_or(after, |end| &after[..end]);
        let factor = time_factor(unit.trim()).ok_or(TIME_EXAMPLES)?;
        let part = scale(number, factor).ok_or(TIME_EXAMPLES)?;
        nanoseconds = nanoseconds.checked_add(part).ok_or(TIME_EXAMPLES)?;
        rest = &after[unit.len()..];
    }
    if text.is_empty() { Err(TIME_EXAMPLES.to_owned()) } else { Ok(Duration::from_nanos(nanoseconds)) }
}

/// The shortest exact form that [`read_bytes`] reads back.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    exact(SIZES, bytes).unwrap_or_else(|| bytes.to_string())
}

/// The shortest exact form that [`read_duration`] reads back.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    exact(TIMES, nanoseconds).unwrap_or_else(|| "0s".to_owned())
}

fn exact(units: &[(&str, u64)], value: u64) -> Option<String> {
    let (name, factor) = units.iter().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))?;
    Some(format!("{}{name}", value / factor))
}

fn number_length(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len())
}

/// `k`, `KB`, `kB`, `Ki` and `KiB` are all in use; only the `i` makes a difference.
fn size_factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let letters = unit.strip_suffix('b').unwrap_or(&unit);
    if letters.is_empty() {
        return Some(1);
    }
    SIZES.iter().find(|(name, _)| name[..name.len() - 1].eq_ignore_ascii_case(letters)).map(|(_, factor)| *factor)
}

fn time_factor(unit: &str) -> Option<u64> {
    let unit = if unit == "µs" { "us" } else { unit };
    TIMES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

/// `number` times `factor`, without the rounding that floating point would bring.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut total = u128::from(whole.parse::<u64>().ok()?) * u128::from(factor);
    if !fraction.is_empty() {
        let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 9)?;
        total += u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor) / 10_u128.pow(digits);
    }
    u64::try_from(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        let cases = [
            ("0", 0),
            ("65536", 65_536),
            ("17b", 17),
            ("512k", 512_000),
            ("512K", 512_000),
            ("512Ki", 524_288),
            ("64MiB", 64 << 20),
            ("64mib", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1GB", 1_000_000_000),
            ("1G", 1_000_000_000),
            ("1Gi", 1 << 30),
            ("2TiB", 2 << 40),
            ("1.5GiB", 3 << 29),
            ("0.1kB", 100),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(read_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size() {
        for text in ["", "MiB", "-1", "1.2.3MB", "1XB", "1 2", "ten", "1MiBs", "16777216TiB", "1.0000000001GB", "1ii"] {
            assert_eq!(read_bytes(text), Err(SIZE_EXAMPLES.to_owned()), "{text}");
        }
        assert_eq!(read_bytes("1.5"), Err(SIZE_EXAMPLES.to_owned()), "a byte has no parts");
    }

    #[test]
    fn durations_as_people_write_them() {
        let cases = [
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("30s", Duration::from_secs(30)),
            ("500ms", Duration::from_millis(500)),
            ("2m", Duration::from_secs(120)),
            ("1h", Duration::from_secs(3600)),
            ("100us", Duration::from_micros(100)),
            ("100µs", Duration::from_micros(100)),
            ("250ns", Duration::from_nanos(250)),
            ("1.5s", Duration::from_millis(1500)),
            ("1m30s", Duration::from_secs(90)),
            ("1h 2m 3s", Duration::from_secs(3723)),
        ];
        for (text, duration) in cases {
            assert_eq!(read_duration(text), Ok(duration), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration() {
        for text in ["", "30", "s", "-1s", "1x", "1s5", "fast", "1.2.3s", "9999999999h"] {
            assert_eq!(read_duration(text), Err(TIME_EXAMPLES.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for (bytes, text) in [(0, "0"), (1000, "1kB"), (1024, "1KiB"), (64 << 20, "64MiB"), (1001, "1001")] {
            assert_eq!(show_bytes(bytes), text);
            assert_eq!(read_bytes(text), Ok(bytes));
        }
        for (millis, text) in [(0, "0s"), (90_000, "90s"), (60_000, "1m"), (500, "500ms"), (7_200_000, "2h")] {
            assert_eq!(show_duration(Duration::from_millis(millis)), text);
            assert_eq!(read_duration(text), Ok(Duration::from_millis(millis)));
        }
    }
}
