//! When a certificate expires. Not an X.509 parser: it walks to one field, and every certificate that comes here was
//! accepted by rustls before.

/// Seconds since 1970 of `notAfter`, or `None` if the certificate is not laid out as X.509 says.
pub(super) fn not_after(certificate: &[u8]) -> Option<u64> {
    // Certificate { tbs { [0] version?, serial, signature, issuer, validity { notBefore, notAfter }, ... }, ... }
    let (_, certificate, _) = element(certificate)?;
    let (_, mut tbs, _) = element(certificate)?;
    if tbs.first() == Some(&VERSION) {
        tbs = element(tbs)?.2;
    }
    for _ in ["serial", "signature", "issuer"] {
        tbs = element(tbs)?.2;
    }
    let (_, validity, _) = element(tbs)?;
    let (_, _, rest) = element(validity)?;
    let (kind, time, _) = element(rest)?;
    seconds(kind, time)
}

/// `[0]`, constructed.
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first element's tag and content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        // Certificates of 16 MiB and more there are none.
        let bytes = usize::from(first & 0x7f);
        let (digits, rest) = rest.split_at_checked(bytes).filter(|_| (1..=3).contains(&bytes))?;
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`: RFC 5280 allows no other form.
fn seconds(kind: u8, time: &[u8]) -> Option<u64> {
    let text = time.strip_suffix(b"Z").filter(|text| text.iter().all(u8::is_ascii_digit))?;
    let number = |digits: &[u8]| digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    let (year, rest) = match (kind, text.len()) {
        (UTC_TIME, 12) => {
            let year = number(&text[..2]);
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&text[..4]), &text[4..]),
        _ => return None,
    };
    let part = |index: usize| number(&rest[2 * index..2 * index + 2]);
    let (month, day) = (part(0), part(1));
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    Some(((days(year, month, day) * 24 + part(2)) * 60 + part(3)) * 60 + part(4))
}

/// Days from 1970-01-01, by Howard Hinnant's `days_from_civil`: years begin in March, so that a leap day ends one.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        // Values from `date -u +%s -d ...`.
        let cases: [(u8, &[u8], Option<u64>); 9] = [
            (UTC_TIME, b"700101000000Z", Some(0)),
            (UTC_TIME, b"000229235959Z", Some(951_868_799)),
            (UTC_TIME, b"491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, b"20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, b"99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, b"7001010000Z", None),
            (UTC_TIME, b"701301000000Z", None),
            (GENERALIZED_TIME, b"20500101000000+0100", None),
            (UTC_TIME, b"20500101000000Z", None),
        ];
        for (kind, text, expected) in cases {
            assert_eq!(seconds(kind, text), expected, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_certificate_and_every_prefix_of_it() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(not_after(certificate.der()), Some(1_927_843_200));
        for length in 0..certificate.der().len() {
            let _ = not_after(&certificate.der()[..length]);
        }
    }
}
