//! A command line, environment or configuration file that cannot be followed.

use std::fmt;

/// Everything that is wrong, each a sentence that says what, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError {
    /// Never empty.
    pub problems: Vec<String>,
}

impl UsageError {
    /// What the process should exit with.
    pub const EXIT_CODE: u8 = 2;

    /// `Ok` when nothing is wrong.
    pub(crate) fn check(problems: Vec<String>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(UsageError { problems }) }
    }
}

impl From<String> for UsageError {
    fn from(problem: String) -> Self {
        UsageError { problems: vec![problem] }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for UsageError {}

/// The known name that was probably meant, if one is close.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let close = |other: &str| if other.starts_with(name) && name.len() > 2 { 0 } else { distance(name, other) };
    let best = known.map(|other| (close(other), other)).min()?;
    (best.0 <= 1 + name.len() / 4).then_some(best.1)
}

/// Edits from one name to the other: letters added, left out or changed (Levenshtein, one row at a time).
pub(crate) fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_between_names() {
        for (from, to, edits) in [("", "", 0), ("a", "", 1), ("htp-port", "http-port", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(from, to), edits, "{from} {to}");
            assert_eq!(distance(to, from), edits, "{to} {from}");
        }
    }

    #[test]
    fn the_name_that_was_meant() {
        let known = || ["http-port", "grpc-port", "host", "api-keys-file"].into_iter();
        for (name, meant) in [
            ("htp-port", Some("http-port")),
            ("gprc-port", Some("grpc-port")),
            ("hots", Some("host")),
            ("api-key", Some("api-keys-file")),
            ("colour", None),
        ] {
            assert_eq!(nearest(name, known()), meant, "{name}");
        }
    }
}
