//! A command line cut into words: flags, and everything else. What a flag means is decided elsewhere.

use std::iter::Peekable;
use std::vec::IntoIter;

/// One word of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// `--name`, `--name=value` or `-n`.
    Flag {
        /// With its dashes, as typed: errors show what the user wrote.
        spelled: String,
        /// After `=`.
        value: Option<String>,
    },
    /// A subcommand, a directory, or the value of the flag before.
    Plain(String),
}

/// Words that are still to be read.
pub(crate) type Words = Peekable<IntoIter<Word>>;

/// Cuts a command line. After `--` nothing is a flag; neither are negative numbers and a single dash.
pub(crate) fn cut(words: &[String]) -> Vec<Word> {
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let rest = words.get(end + 1..).unwrap_or_default();
    words[..end].iter().map(|word| cut_word(word)).chain(rest.iter().cloned().map(Word::Plain)).collect()
}

fn cut_word(word: &str) -> Word {
    let bare = word.trim_start_matches('-');
    if bare.len() == word.len() || bare.is_empty() || bare.starts_with(|c: char| c.is_ascii_digit()) {
        return Word::Plain(word.to_owned());
    }
    match word.split_once('=') {
        Some((spelled, value)) => Word::Flag { spelled: spelled.to_owned(), value: Some(value.to_owned()) },
        None => Word::Flag { spelled: word.to_owned(), value: None },
    }
}

/// The name that a spelled flag has in tables: no leading dashes, no underscores. Empty for what cannot be a name.
pub(crate) fn name(spelled: &str) -> String {
    spelled.strip_prefix("--").unwrap_or_default().replace('_', "-")
}

/// The word after a flag, if it can be its value.
pub(crate) fn following(words: &mut Words) -> Option<String> {
    match words.next_if(|word| matches!(word, Word::Plain(_))) {
        Some(Word::Plain(value)) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_flags_or_plain() {
        let flag = |spelled: &str, value: Option<&str>| Word::Flag {
            spelled: spelled.to_owned(),
            value: value.map(str::to_owned),
        };
        let plain = |text: &str| Word::Plain(text.to_owned());
        let words = ["serve", "--a_b=c=d", "--e", "f", "-h", "-", "-1", "--g=", "--", "--i", "--"].map(str::to_owned);
        let expected = [
            plain("serve"),
            flag("--a_b", Some("c=d")),
            flag("--e", None),
            plain("f"),
            flag("-h", None),
            plain("-"),
            plain("-1"),
            flag("--g", Some("")),
            plain("--i"),
            plain("--"),
        ];
        assert_eq!(cut(&words), expected);
        assert_eq!(name("--a_b"), "a-b");
        assert_eq!(name("-a"), "");
    }
}
