//! Chat templates, made fit for minijinja before it compiles them. Positions stay on their lines.
//!
//! Two things are changed. `{% generation %}` is a tag of `transformers` that marks what the model wrote, for training;
//! it becomes `{% with %}`, which like it has a scope of its own. And every value that is bound to a name (`set`, `for`,
//! arguments of macros) goes through the filter [`KEEP`], which bounds its depth and size: fuel does not, and a value nested
//! 100,000 deep overflows the stack when it is dropped, one that holds itself is printed forever.
//!
//! Not a parser: what is no template at all is refused by minijinja afterwards. But what it finds it must understand, so
//! brackets that do not match are refused here.

use std::collections::BTreeSet;

/// The filter that checks a value bound to a plain name.
pub(super) const KEEP: &str = "__keep";
/// The filter that checks a value bound to an attribute of a namespace.
pub(super) const KEEP_ATTRIBUTE: &str = "__keep_attribute";

/// Brackets, slices and filter calls in one tag that may each nest a value once more, at most.
const MAX_TAG_NESTING: usize = 64;

/// Operators in one tag, and `elif` in one template, at most: minijinja recurses over them, on whatever stack there is.
const MAX_OPERATORS: usize = 400;

/// Words after which a bracket opens a value, rather than asking the value before it.
const KEYWORDS: [&str; 16] = [
    "and",
    "call",
    "elif",
    "else",
    "filter",
    "for",
    "if",
    "in",
    "is",
    "macro",
    "not",
    "or",
    "recursive",
    "set",
    "with",
    "do",
];

/// Why a template is refused: the line, counted from one, and what is wrong there.
pub(super) type Fault = (usize, String);

/// The source as minijinja is to have it.
pub(super) fn rewrite(source: &str) -> Result<String, Fault> {
    // As Jinja does before anything else.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut scanner = Scanner { source: &source, at: 0, branches: 0 };
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    while let Some(start) = scanner.next_tag() {
        out.push_str(&source[scanner.at..start]);
        scanner.at = start;
        let tag = scanner.tag()?;
        match tag.kind {
            Kind::Statement => statement(&mut scanner, &tag, &mut out)?,
            Kind::Comment | Kind::Expression => out.push_str(tag.whole),
        }
    }
    out.push_str(&source[scanner.at..]);
    Ok(out)
}

/// The names in a template's code: variables, and what is written like them. Attributes (`a.b`) and texts are left out,
/// so that a name which is not among these is a variable that the template never looks at; one that is may be.
pub(super) fn words(source: &str) -> BTreeSet<String> {
    let (mut scanner, mut found) = (Scanner { source, at: 0, branches: 0 }, BTreeSet::new());
    while let Some(start) = scanner.next_tag() {
        scanner.at = start;
        // What comes after a fault is refused by `rewrite`.
        let Ok(tag) = scanner.tag() else { break };
        let is_raw = tag.kind == Kind::Statement && tag.inside.trim() == "raw";
        if is_raw && scanner.raw().is_err() {
            break;
        }
        if tag.kind != Kind::Comment {
            collect_words(tag.inside, &mut found);
        }
    }
    found
}

fn collect_words(code: &str, found: &mut BTreeSet<String>) {
    let (bytes, mut at, mut quote) = (code.as_bytes(), 0, None);
    while let Some(byte) = bytes.get(at) {
        if quote.is_some() {
            quote = quote.filter(|open| open != byte);
            at += if *byte == b'\\' { 2 } else { 1 };
            continue;
        }
        let length = bytes[at..].iter().take_while(|byte| word_byte(**byte)).count();
        if length > 0 && !bytes[..at].ends_with(b".") {
            found.insert(code[at..at + length].to_owned());
        }
        quote = Some(*byte).filter(|byte| matches!(byte, b'"' | b'\''));
        at += length.max(1);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Comment,
    Expression,
    Statement,
}

/// `{%- for x in y -%}`: `open` is `{%-`, `inside` is ` for x in y `, `close` is `-%}`.
struct Tag<'a> {
    kind: Kind,
    whole: &'a str,
    open: &'a str,
    inside: &'a str,
    close: &'a str,
}

struct Scanner<'a> {
    source: &'a str,
    at: usize,
    /// How often `elif` came.
    branches: usize,
}

impl<'a> Scanner<'a> {
    fn next_tag(&self) -> Option<usize> {
        let bytes = self.source.as_bytes();
        let brace = |place: &usize| bytes[*place] == b'{' && matches!(bytes.get(place + 1), Some(b'{' | b'%' | b'#'));
        (self.at..bytes.len()).find(brace)
    }

    fn fault<T>(&self, at: usize, what: impl Into<String>) -> Result<T, Fault> {
        Err((self.source[..at].matches('\n').count() + 1, what.into()))
    }

    /// Takes the tag that begins here.
    fn tag(&mut self) -> Result<Tag<'a>, Fault> {
        let (source, start) = (self.source, self.at);
        let (kind, end) = match source.as_bytes()[start + 1] {
            b'#' => match source[start + 2..].find("#}") {
                Some(length) => (Kind::Comment, start + 2 + length),
                None => return self.fault(start, "the comment is never closed"),
            },
            b'{' => (Kind::Expression, self.end_of_code(start + 2, "}}")?),
            _ => (Kind::Statement, self.end_of_code(start + 2, "%}")?),
        };
        let marked = |at: usize| usize::from(matches!(source.as_bytes().get(at), Some(b'-' | b'+')));
        let from = start + 2 + marked(start + 2);
        let to = (end - marked(end - 1)).max(from);
        self.at = end + 2;
        let (whole, open) = (&source[start..end + 2], &source[start..from]);
        Ok(Tag { kind, whole, open, inside: &source[from..to], close: &source[to..end + 2] })
    }

    /// Where the code that begins at `from` is closed.
    fn end_of_code(&self, from: usize, close: &str) -> Result<usize, Fault> {
        let bytes = self.source.as_bytes();
        let mut brackets = Brackets::default();
        let mut at = from;
        while let Some(byte) = bytes.get(at) {
            if brackets.open.is_empty() && bytes[at..].starts_with(close.as_bytes()) {
                return Ok(at);
            }
            match byte {
                b'"' | b'\'' => at = self.end_of_string(at)?,
                b'(' | b'[' | b'{' => brackets.enter(*byte),
                b')' | b']' | b'}' => match brackets.leave(*byte) {
                    true => {}
                    false => return self.fault(at, format!("'{}' closes nothing", char::from(*byte))),
                },
                b'|' | b':' => brackets.sign(*byte),
                byte if word_byte(*byte) => {
                    let length = bytes[at..].iter().take_while(|b| word_byte(**b)).count();
                    brackets.word(&self.source[at..at + length]);
                    at += length - 1;
                }
                byte if byte.is_ascii_whitespace() => {}
                _ => brackets.sign(*byte),
            }
            if matches!(byte, b'"' | b'\'') {
                brackets.operand = true;
            }
            if brackets.deepest + brackets.chained > MAX_TAG_NESTING {
                return self.fault(at, format!("more than {MAX_TAG_NESTING} values inside each other in one tag"));
            }
            if brackets.operators > MAX_OPERATORS {
                return self.fault(at, format!("more than {MAX_OPERATORS} operators in one tag"));
            }
            at += 1;
        }
        self.fault(from, "the tag is never closed")
    }

    /// The closing quote of the string whose opening quote is at `start`.
    fn end_of_string(&self, start: usize) -> Result<usize, Fault> {
        let bytes = self.source.as_bytes();
        let mut at = start + 1;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'\\' => at += 1,
                byte if *byte == bytes[start] => return Ok(at),
                _ => {}
            }
            at += 1;
        }
        self.fault(start, "the string is never closed")
    }

    /// The text up to the end of a `raw` section, which no tag counts in.
    fn raw(&mut self) -> Result<&'a str, Fault> {
        let start = self.at;
        let rest = &self.source[start..];
        for (place, _) in rest.match_indices("{%") {
            let inside = rest[place + 2..].trim_start_matches(['-', '+']).trim_start();
            let end = inside.strip_prefix("endraw").map(|after| after.trim_start().trim_start_matches(['-', '+']));
            if let Some(after) = end.and_then(|end| end.strip_prefix("%}")) {
                self.at = self.source.len() - after.len();
                return Ok(&self.source[start..self.at]);
            }
        }
        self.fault(start, "the raw section is never closed")
    }
}

fn word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// The brackets of one tag, and how deep values may nest in it.
#[derive(Default)]
struct Brackets {
    open: Vec<u8>,
    deepest: usize,
    /// Slices and filter calls follow each other without brackets in brackets.
    chained: usize,
    /// Is what came last a value?
    operand: bool,
    /// Is what came last `|`, or the name after it?
    filter: bool,
    /// In `with`, each value may hold the one before.
    sequential: bool,
    words: usize,
    operators: usize,
}

impl Brackets {
    fn enter(&mut self, byte: u8) {
        if self.sequential || (byte == b'(' && self.operand && self.filter) {
            self.chained += 1;
        }
        self.operators += usize::from(self.operand);
        self.open.push(byte);
        self.deepest = self.deepest.max(self.open.len());
        (self.operand, self.filter) = (false, false);
    }

    fn leave(&mut self, byte: u8) -> bool {
        (self.operand, self.filter) = (true, false);
        matches!((self.open.pop(), byte), (Some(b'('), b')') | (Some(b'['), b']') | (Some(b'{'), b'}'))
    }

    fn sign(&mut self, byte: u8) {
        if byte == b':' && self.open.last() == Some(&b'[') {
            self.chained += 1;
        }
        self.operators += usize::from(!matches!(byte, b':' | b','));
        (self.operand, self.filter) = (false, byte == b'|');
    }

    fn word(&mut self, word: &str) {
        self.sequential |= self.words == 0 && word == "with";
        self.words += 1;
        self.operand = !KEYWORDS.contains(&word);
        self.filter &= self.operand;
        self.operators += usize::from(!self.operand);
    }
}

fn statement(scanner: &mut Scanner<'_>, tag: &Tag<'_>, out: &mut String) -> Result<(), Fault> {
    let inside = tag.inside.trim_start();
    let name = &inside[..inside.bytes().take_while(|byte| word_byte(*byte)).count()];
    let rest = &inside[name.len()..];
    let whole = |inside: &str| [tag.open, inside, tag.close].concat();
    match name {
        "generation" if rest.trim().is_empty() => out.push_str(&whole(" with ")),
        "endgeneration" if rest.trim().is_empty() => out.push_str(&whole(" endwith ")),
        "raw" => {
            out.push_str(tag.whole);
            out.push_str(scanner.raw()?);
        }
        "elif" if scanner.branches >= MAX_OPERATORS => {
            return scanner.fault(scanner.at, format!("more than {MAX_OPERATORS} times elif"));
        }
        "elif" => {
            scanner.branches += 1;
            out.push_str(tag.whole);
        }
        "set" => out.push_str(&assignment(rest).map_or(tag.whole.to_owned(), |inside| whole(&inside))),
        "for" | "macro" | "call" => {
            out.push_str(tag.whole);
            for bound in bound_names(name, rest) {
                out.push_str(&format!("{{% set {bound} = {bound}|{KEEP} {}", tag.close));
            }
        }
        _ => out.push_str(tag.whole),
    }
    Ok(())
}

/// ` ns.x = y` becomes ` set ns.x = (y)|__keep_attribute`; none where nothing is assigned (`{% set x %}...{% endset %}`).
fn assignment(rest: &str) -> Option<String> {
    let target_end = rest.find(|c: char| !(c.is_alphanumeric() || c.is_whitespace() || "_.,()".contains(c)))?;
    let (target, value) = rest.split_at(target_end);
    let value = value.strip_prefix('=')?;
    if value.starts_with('=') || value.trim().is_empty() {
        return None;
    }
    let keep = if target.contains('.') { KEEP_ATTRIBUTE } else { KEEP };
    Some(format!(" set{target}= ({value})|{keep} "))
}

/// The names that a `for`, `macro` or `call` tag gives values to; `rest` is what follows that word.
fn bound_names(tag: &str, rest: &str) -> Vec<String> {
    let parameters = match tag {
        "for" => return names(&rest[..targets_end(rest)]),
        "macro" => rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_' || c.is_whitespace()),
        _ => rest.trim_start(),
    };
    let Some(parameters) = parameters.strip_prefix('(') else { return Vec::new() };
    // Names stand at the start or after a comma; defaults may hold commas in brackets or strings.
    let (mut found, mut depth, mut quote, mut current) = (Vec::new(), 0, None, String::new());
    for character in parameters.chars() {
        match (quote, character) {
            (Some(open), _) => {
                quote = Some(open).filter(|open| *open != character);
                continue;
            }
            (None, '"' | '\'') => quote = Some(character),
            (None, ')') if depth == 0 => break,
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth -= 1,
            (None, ',') if depth == 0 => found.push(std::mem::take(&mut current)),
            _ => {}
        }
        if character != ',' || depth > 0 {
            current.push(character);
        }
    }
    found.push(current);
    found.iter().flat_map(|parameter| names(parameter.split('=').next().unwrap_or_default())).collect()
}

/// Where the word `in` stands.
fn targets_end(rest: &str) -> usize {
    let alone = |at: &usize| {
        rest[..*at].ends_with(|c: char| c.is_whitespace() || c == ')')
            && !rest[at + 2..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    };
    rest.match_indices("in").map(|(at, _)| at).find(alone).unwrap_or(0)
}

fn names(targets: &str) -> Vec<String> {
    let words = targets.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn names_are_told_from_texts_and_attributes() {
        let source = "documents {# tools #}{% raw %}{{ raw_one }}{% endraw %}\
            {%- set thinks = thinks|default(true) -%}{{ message.content ~ 'it\\'s effort' ~ message['role'] }}\
            {% if xs | length > 1 and ys[\"zs\"] %}{{ f(style=tone) }}{% endif %}";
        let found = words(source);
        for name in ["thinks", "message", "xs", "ys", "style", "tone", "f"] {
            assert!(found.contains(name), "{name}: {found:?}");
        }
        for name in ["documents", "tools", "raw_one", "content", "effort", "it", "s", "role", "zs"] {
            assert!(!found.contains(name), "{name}: {found:?}");
        }
    }

    #[test]
    fn what_is_no_template_has_what_comes_before() {
        assert!(words("{{ a }}{{ b").contains("a"));
        assert!(words("{{ 'a").is_empty() && words("{% raw %}{{ a }}").is_empty());
    }
}
