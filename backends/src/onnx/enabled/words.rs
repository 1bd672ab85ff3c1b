//! What ONNX Runtime says, without what only its own makers need: where in its source it noticed, on which machine, and
//! where its libraries lie. No text is made up here.

/// What ONNX Runtime says of an error.
pub(super) fn words(error: &ort::Error) -> String {
    plain(error.message())
}

/// Files of source, by their extensions.
const SOURCES: [&str; 9] = ["cc", "h", "hpp", "cpp", "cxx", "cu", "cuh", "inl", "inc"];

/// What CUDA's provider adds to an error: `hostname=x ; file=/a/b.cc ; line=3 ; `.
const PLACES: [&str; 3] = ["hostname=", "file=", "line="];

/// Words without places in the library's source, and names of libraries without their directories.
pub(super) fn plain(text: &str) -> String {
    let (mut left, mut rest) = (String::new(), text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_whitespace()).map_or(rest.len(), |at| at + 1);
        let (word, more) = rest.split_at(end);
        rest = more;
        match source(word.trim_end()) {
            Some(Source::Path) => rest = after_signature(more),
            Some(Source::Name) => rest = after_name(more),
            None if PLACES.iter().any(|place| word.starts_with(place)) => {
                rest = more.strip_prefix("; ").unwrap_or(more)
            }
            None => left.push_str(&without_directories(word)),
        }
    }
    left.trim_end().to_owned()
}

/// A place in source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// `/a/b/file.cc:12`, which the whole head of a function follows, if any.
    Path,
    /// `file.cc:12`, which the name of a function follows.
    Name,
}

fn source(word: &str) -> Option<Source> {
    let (file, line) = word.trim_end_matches([':', ',', ';']).rsplit_once(':')?;
    // Nodes and tensors may have such names, too: those are quoted, or counted from 0.
    let numbered = line.starts_with(|c: char| ('1'..='9').contains(&c)) && line.bytes().all(|b| b.is_ascii_digit());
    let begins = file.starts_with(|c: char| c.is_alphanumeric() || "/._".contains(c));
    let (_, extension) = file.rsplit_once('.')?;
    if !numbered || !begins || !SOURCES.contains(&extension) {
        return None;
    }
    Some(if file.contains(['/', '\\']) { Source::Path } else { Source::Name })
}

/// What follows the head of a C++ function: `static void a::B<c>::d(int, e&) const [with f = g] `.
fn after_signature(text: &str) -> &str {
    let (mut depth, mut called) = (0usize, false);
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '<' | '{' => {
                // What is no part of a namespace and takes something is a word of the message.
                if c == '(' && depth == 0 && !text[..at].contains("::") {
                    return text;
                }
                depth += 1;
            }
            ')' | ']' | '>' | '}' => {
                depth = depth.saturating_sub(1);
                called |= c == ')' && depth == 0;
            }
            ' ' if called && depth == 0 => {
                let rest = &text[at + 1..];
                let goes_on = ["const ", "noexcept ", "[with "].iter().any(|more| rest.starts_with(more));
                if !goes_on {
                    return rest;
                }
            }
            _ => {}
        }
    }
    if called { "" } else { text }
}

/// What follows the name of a function, if it is one.
fn after_name(text: &str) -> &str {
    let Some((name, rest)) = text.split_once(' ') else { return text };
    let part = |c: char| c.is_alphanumeric() || "_~:<>()".contains(c);
    if !name.is_empty() && name.chars().all(part) { rest } else { text }
}

/// `/a/b/libc.so.1` is `libc.so.1`.
fn without_directories(word: &str) -> String {
    let (Some(first), Some(last)) = (word.find('/'), word.rfind('/')) else { return word.to_owned() };
    let begins = !word[..first].ends_with(|c: char| c.is_alphanumeric() || "._-".contains(c));
    if begins && word[last..].contains(".so") {
        format!("{}{}", &word[..first], &word[last + 1..])
    } else {
        word.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn where_in_the_library_it_was_noticed_is_nobodys_business() {
        for (said, told) in [
            (
                "Non-zero status. Status Message: /onnxruntime_src/core/ops.h:583 void onnxruntime::Append(ptrdiff_t, \
                 ptrdiff_t) axis == 1 was false. 32 by 33",
                "Non-zero status. Status Message: axis == 1 was false. 32 by 33",
            ),
            ("at /onnxruntime_src/a.cc:1 broken", "at broken"),
            ("at /onnxruntime_src/a.cc:1", "at"),
            ("at /a/b.cc:1 broken (by a::b)", "at broken (by a::b)"),
            ("indices out of bounds", "indices out of bounds"),
            ("Message: matmul_helper.h:59 Compute MatMul dimension mismatch", "Message: MatMul dimension mismatch"),
            ("a\n/b/c.cc:12 int d::e() f", "a\nf"),
            (
                "/src/string_normalizer.cc:235 onnxruntime::Locale::Locale(const std::string&)::<lambda()> Failed to",
                "Failed to",
            ),
            (
                "/src/padbase.h:122 static void onnxruntime::Pad(K&, size_t, gsl::span<const long int>) [with K = \
                 onnxruntime::OpKernelContext; P = absl::InlinedVector<long int, 10, std::allocator<long int> >] \
                 pads.size() == 2 * rank was false.\n",
                "pads.size() == 2 * rank was false.",
            ),
            (
                "/src/tree.h:256 onnxruntime::Status onnxruntime::Tree<I, O>::Init(int, const std::function<void()>&) \
                 const [with I = float] (coor.id >= 0 && coor.id < n) was false. ",
                "(coor.id >= 0 && coor.id < n) was false.",
            ),
            (
                "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=/a/b.cc ; line=3 ; expr=cudaMalloc(); ",
                "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc();",
            ),
        ] {
            assert_eq!(plain(said), told);
        }
    }

    #[test]
    fn names_that_are_the_graphs_stay() {
        for text in
            ["Name:'a.h:3' is", "tensor lstm.h:0 has", "node /layers.0/attn/MatMul of", "(a.cc:1) is", "b.cc is"]
        {
            assert_eq!(plain(text), text);
        }
    }

    #[test]
    fn libraries_are_named_without_their_directories() {
        let said = "Failed to load library /opt/a/liba_cuda.so with error: libb.so.13: cannot open '/c/libd.so.1'";
        let told = "Failed to load library liba_cuda.so with error: libb.so.13: cannot open 'libd.so.1'";
        assert_eq!(plain(said), told);
    }
}
