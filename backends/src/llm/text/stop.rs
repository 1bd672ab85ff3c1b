//! Stop strings in streamed text: an automaton (Aho-Corasick) walks the text as it comes, so a stop string is found however
//! tokens cut it, and only text that may be the beginning of one is held back. Of several, the one that ends first wins;
//! of those that end together, the longest. Stop tokens are not its business.

use crate::error::InferError;
use std::sync::Arc;

/// Stop strings of one request, at most.
pub const MAX_STOP_STRINGS: usize = 16;
/// Bytes of one stop string, at most.
pub const MAX_STOP_BYTES: usize = 256;

/// A request's stop strings, compiled; shared by its sequences.
#[derive(Clone, Debug)]
pub struct StopStrings(Arc<Vec<Node>>);

/// What has been read so far is, at its end, the first `depth` bytes of some stop string, and no longer prefix of any.
#[derive(Clone, Debug, Default)]
struct Node {
    /// Next bytes and the nodes they lead to; few, so a list.
    next: Vec<(u8, u16)>,
    /// The node of the longest proper suffix that is a prefix of some stop string.
    shorter: u16,
    depth: u16,
    /// The longest stop string that ends here: its place in the list, and its length in bytes.
    found: Option<(u16, u16)>,
}

impl StopStrings {
    /// Compiles a list of stop strings; the list may be empty.
    ///
    /// # Errors
    /// More than [`MAX_STOP_STRINGS`], an empty one, or one longer than [`MAX_STOP_BYTES`].
    pub fn new<S: AsRef<str>>(strings: &[S]) -> Result<Self, InferError> {
        if strings.len() > MAX_STOP_STRINGS {
            let count = strings.len();
            return Err(InferError::invalid(format!("stop: {count} strings; at most {MAX_STOP_STRINGS} are allowed")));
        }
        let mut nodes = vec![Node::default()];
        for (index, string) in strings.iter().enumerate() {
            let bytes = string.as_ref().as_bytes();
            if bytes.is_empty() || bytes.len() > MAX_STOP_BYTES {
                let what = format!("stop[{index}]: {} bytes; 1 to {MAX_STOP_BYTES} are allowed", bytes.len());
                return Err(InferError::invalid(what));
            }
            let end = insert(&mut nodes, bytes);
            // The first of two equal strings is the one that is reported.
            nodes[end].found.get_or_insert((index as u16, bytes.len() as u16));
        }
        link(&mut nodes);
        Ok(StopStrings(Arc::new(nodes)))
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// Bytes before node `at` with which a stop string may begin that is yet to end. One that has ended, and was passed
    /// over, is none, unless a longer one begins with it.
    fn begun(&self, mut at: u16) -> usize {
        while at != 0 && self.0[at as usize].next.is_empty() {
            at = self.0[at as usize].shorter;
        }
        self.0[at as usize].depth as usize
    }
}

fn insert(nodes: &mut Vec<Node>, bytes: &[u8]) -> usize {
    let mut at = 0;
    for (depth, byte) in bytes.iter().enumerate() {
        let known = nodes[at].next.iter().find(|(on, _)| on == byte).map(|(_, to)| *to as usize);
        at = known.unwrap_or_else(|| {
            let to = nodes.len();
            nodes.push(Node { depth: depth as u16 + 1, ..Node::default() });
            nodes[at].next.push((*byte, to as u16));
            to
        });
    }
    at
}

/// Sets [`Node::shorter`] and hands down [`Node::found`], nearest nodes first.
fn link(nodes: &mut [Node]) {
    let mut queue: std::collections::VecDeque<u16> = [0].into();
    while let Some(at) = queue.pop_front() {
        for (byte, to) in nodes[at as usize].next.clone() {
            // What is one byte deep has only the empty prefix before it.
            let shorter = if at == 0 { 0 } else { step(nodes, nodes[at as usize].shorter, byte) };
            let inherited = nodes[shorter as usize].found;
            let node = &mut nodes[to as usize];
            node.shorter = shorter;
            node.found = node.found.or(inherited);
            queue.push_back(to);
        }
    }
}

/// The node after reading `byte` at node `at`.
fn step(nodes: &[Node], mut at: u16, byte: u8) -> u16 {
    loop {
        let node = &nodes[at as usize];
        if let Some((_, to)) = node.next.iter().find(|(on, _)| *on == byte) {
            return *to;
        }
        if at == 0 {
            return 0;
        }
        at = node.shorter;
    }
}

/// What one piece of text led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan<'a> {
    /// Text that may be sent.
    pub text: &'a str,
    /// The stop string that was found, by its place in the list; nothing comes after it.
    pub stopped: Option<usize>,
}

/// The state of one sequence.
#[derive(Clone, Debug)]
pub struct StopScanner {
    strings: StopStrings,
    /// Is the stop string itself sent?
    include: bool,
    at: u16,
    /// Held back text is `buffer[sent..]`; what is before it was handed out by the last call.
    buffer: String,
    sent: usize,
    stopped: bool,
}

impl StopScanner {
    /// For a new sequence. With `include`, text ends with the stop string, otherwise before it.
    pub fn new(strings: StopStrings, include: bool) -> Self {
        StopScanner { strings, include, at: 0, buffer: String::new(), sent: 0, stopped: false }
    }

    /// Takes the next piece of text. After a stop string was found, everything is swallowed.
    pub fn push(&mut self, text: &str) -> Scan<'_> {
        self.scan(text, true)
    }

    /// Takes text in which nothing stops, as before `min_tokens`. A stop string that begins in it is found if it ends in
    /// what is pushed later, so that what may be the beginning of one is held back here, too.
    pub fn pass(&mut self, text: &str) -> &str {
        self.scan(text, false).text
    }

    fn scan(&mut self, text: &str, stops: bool) -> Scan<'_> {
        self.buffer.drain(..self.sent);
        self.sent = 0;
        if self.stopped {
            return Scan { text: "", stopped: None };
        }
        let held = self.buffer.len();
        self.buffer.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            self.at = step(&self.strings.0, self.at, byte);
            if let Some((index, length)) = self.strings.0[self.at as usize].found.filter(|_| stops) {
                return self.stop(held + offset + 1, index, length);
            }
        }
        // A stop string begins with a whole character, so what is held back does too.
        self.sent = self.buffer.len() - self.strings.begun(self.at);
        Scan { text: &self.buffer[..self.sent], stopped: None }
    }

    fn stop(&mut self, end: usize, index: u16, length: u16) -> Scan<'_> {
        self.stopped = true;
        let end = if self.include { end } else { end - length as usize };
        self.buffer.truncate(end);
        self.sent = end;
        Scan { text: &self.buffer, stopped: Some(index as usize) }
    }

    /// The text held back, when no more will come.
    pub fn finish(&mut self) -> &str {
        self.buffer.drain(..self.sent);
        self.at = 0;
        self.sent = self.buffer.len();
        &self.buffer
    }

    /// Bytes held back.
    pub fn held(&self) -> usize {
        self.buffer.len() - self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All text that is sent of pieces of which the first `passed` are passed, and the stop string.
    fn scan(strings: &[&str], include: bool, pieces: &[&str], passed: usize) -> (String, Option<usize>) {
        let mut scanner = StopScanner::new(StopStrings::new(strings).unwrap(), include);
        let (mut sent, mut stopped) = (String::new(), None);
        for (place, piece) in pieces.iter().enumerate() {
            if place < passed {
                sent.push_str(scanner.pass(piece));
            } else {
                let scan = scanner.push(piece);
                sent.push_str(scan.text);
                stopped = stopped.or(scan.stopped);
            }
            assert!(scanner.held() < strings.iter().map(|s| s.len()).max().unwrap_or(1));
        }
        sent.push_str(scanner.finish());
        (sent, stopped)
    }

    #[test]
    fn what_begins_before_the_least_tokens_stops_after_them() {
        let letters = ["7", "C", "V", " ", "u", "n"];
        for passed in 0..=3 {
            assert_eq!(scan(&["CV "], false, &letters, passed), ("7".into(), Some(0)), "{passed}");
            assert_eq!(scan(&["CV "], true, &letters, passed), ("7CV ".into(), Some(0)), "{passed}");
        }
        for passed in 4..=6 {
            assert_eq!(scan(&["CV "], false, &letters, passed), ("7CV un".into(), None), "{passed}");
        }
        // One that overlaps with one that was passed over, and a longer one that begins with it.
        assert_eq!(scan(&["aa"], false, &["aa", "", "a", "b"], 1), ("a".into(), Some(0)));
        assert_eq!(scan(&["b", "abc"], false, &["ab", "", "c"], 1), (String::new(), Some(1)));
    }

    #[test]
    fn what_was_passed_over_is_not_held_back() {
        let mut scanner = StopScanner::new(StopStrings::new(&["</a>"]).unwrap(), false);
        assert_eq!((scanner.pass("x</").to_owned(), scanner.held()), ("x".to_owned(), 2));
        assert_eq!((scanner.pass("a>").to_owned(), scanner.held()), ("</a>".to_owned(), 0));
        assert_eq!((scanner.pass("<").to_owned(), scanner.held()), (String::new(), 1));
        assert_eq!(scanner.push("/a>z"), Scan { text: "", stopped: Some(0) });
        assert_eq!((scanner.pass("z").to_owned(), scanner.finish()), (String::new(), ""));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        /// However the text is cut: of the stop strings that end after what is passed the first, and of those the longest.
        #[test]
        fn any_cut_is_the_same(
            strings in prop::collection::vec("[abé]{1,4}", 0..5),
            before in prop::collection::vec("[abcé]{0,5}", 0..6),
            after in prop::collection::vec("[abcé]{0,5}", 0..6),
            include: bool,
        ) {
            let (start, text) = (before.concat().len(), [before.concat(), after.concat()].concat());
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            let ending = |end: usize| {
                let all = strings.iter().filter(|s| text.as_bytes()[..end].ends_with(s.as_bytes()));
                all.max_by_key(|s| s.len()).map(|found| (end, *found))
            };
            let expected = match (start + 1..=text.len()).find_map(ending) {
                None => (text.clone(), None),
                Some((end, found)) => {
                    let index = strings.iter().position(|s| *s == found);
                    (text[..if include { end } else { end - found.len() }].to_owned(), index)
                }
            };
            let pieces: Vec<&str> = before.iter().chain(&after).map(String::as_str).collect();
            prop_assert_eq!(scan(&strings, include, &pieces, before.len()), expected);
        }
    }
}
