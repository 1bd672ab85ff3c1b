//! Marks in text that comes in pieces. Only what may be the beginning of a mark is held back, and the whitespace before
//! it, which belongs to the mark.

/// Bytes of whitespace that are held back, at most: what is before them is told.
const WHITESPACE: usize = 64;

/// Finds one mark.
#[derive(Clone, Debug)]
pub(super) struct MarkScanner {
    mark: &'static str,
    held: String,
    /// Whitespace before the mark that was found.
    gap: String,
}

impl MarkScanner {
    pub(super) fn new(mark: &'static str) -> Self {
        MarkScanner { mark, held: String::new(), gap: String::new() }
    }

    /// Takes a piece of text. What is certainly before the mark, or of no mark, goes to `out`; gives what comes after the
    /// mark once it was found.
    pub(super) fn push(&mut self, text: &str, out: &mut String) -> Option<String> {
        self.held.push_str(text);
        if let Some(at) = self.held.find(self.mark) {
            let end = settled(&self.held[..at]);
            out.push_str(&self.held[..end]);
            self.held[end..at].clone_into(&mut self.gap);
            let rest = self.held.split_off(at + self.mark.len());
            self.held.clear();
            return Some(rest);
        }
        let before = self.held.len() - begins(&self.held, self.mark);
        let told = settled(&self.held[..before]);
        out.push_str(&self.held[..told]);
        self.held.drain(..told);
        None
    }

    /// The whitespace before the mark that was found last: it is none where the mark turns out to be text.
    pub(super) fn take_gap(&mut self) -> String {
        std::mem::take(&mut self.gap)
    }

    pub(super) fn into_held(self) -> String {
        self.held
    }
}

/// Bytes of a text that can be told: whitespace at its end, the last of it, may belong to what comes next. A longer text
/// has no fewer of them, so it does not matter in which pieces it comes.
pub(super) fn settled(text: &str) -> usize {
    text.trim_end().len().max(text.ceil_char_boundary(text.len().saturating_sub(WHITESPACE)))
}

/// Bytes at the end of a text that a mark begins with.
pub(super) fn begins(text: &str, mark: &str) -> usize {
    let most = mark.len().saturating_sub(1).min(text.len());
    (1..=most).rev().find(|length| text.as_bytes().ends_with(&mark.as_bytes()[..*length])).unwrap_or(0)
}
