//! The house rules as tests: what may depend on what, and what each folder may name. A rule is a function from a file's
//! path and text to complaints, and is shown to complain about a bad sample before it is let loose on the tree.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

// ---------------------------------------------------------------------------------------------------- a view of Rust

/// A source file in two views of equal lines: code without comments and texts, and the texts.
struct Source<'a> {
    path: &'a str,
    raw: &'a str,
    code: String,
    /// (line, text), without quotes.
    texts: Vec<(usize, String)>,
}

impl<'a> Source<'a> {
    fn new(path: &'a str, raw: &'a str) -> Self {
        let mut source = Source { path, raw, code: String::with_capacity(raw.len()), texts: Vec::new() };
        let mut rest = raw;
        while let Some(first) = rest.chars().next() {
            let length = source.step(rest, first);
            rest = &rest[length..];
        }
        source
    }

    /// Takes one comment, text or character off `rest` and returns its length.
    fn step(&mut self, rest: &str, first: char) -> usize {
        if rest.starts_with("//") {
            return self.blank(rest, rest.find('\n').unwrap_or(rest.len()));
        }
        if rest.starts_with("/*") {
            return self.blank(rest, rest.find("*/").map_or(rest.len(), |end| end + 2));
        }
        let before = self.code.chars().next_back().unwrap_or(' ');
        let starts_word = !before.is_alphanumeric() && before != '_';
        if starts_word && let Some((open, close)) = raw_text(rest) {
            let end = rest[open..].find(&close).map_or(rest.len(), |at| open + at);
            self.texts.push((self.line(), rest[open..end].to_owned()));
            return self.blank(rest, (end + close.len()).min(rest.len()));
        }
        if first == '"' {
            let end = closing_quote(rest);
            self.texts.push((self.line(), rest[1..end].to_owned()));
            return self.blank(rest, (end + 1).min(rest.len()));
        }
        if first == '\''
            && let Some(length) = character(rest)
        {
            return self.blank(rest, length);
        }
        self.code.push(first);
        first.len_utf8()
    }

    fn line(&self) -> usize {
        self.code.matches('\n').count() + 1
    }

    /// Keeps the lines of what is left out, and marks its place.
    fn blank(&mut self, rest: &str, length: usize) -> usize {
        self.code.push(' ');
        self.code.extend(rest[..length].matches('\n').map(|_| '\n'));
        length
    }

    /// A complaint for each line of code that holds one of `words`, which begin and end as words do.
    fn naming(&self, words: &[&str], why: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (index, line) in self.code.lines().enumerate() {
            found.extend(
                words
                    .iter()
                    .filter(|word| names(line, word))
                    .map(|word| format!("{}:{}: `{word}`: {why}", self.path, index + 1)),
            );
        }
        found
    }

    fn is_in(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(folder))
    }

    fn is_product(&self) -> bool {
        ["protocol/src/", "kernels/src/", "backends/src/", "server/src/"].iter().any(|f| self.path.starts_with(f))
    }
}

/// The length of `r"`, `r#"` and so on, and what ends such a text.
fn raw_text(rest: &str) -> Option<(usize, String)> {
    let body = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = body.bytes().take_while(|b| *b == b'#').count();
    body[hashes..].starts_with('"').then(|| (rest.len() - body.len() + hashes + 1, format!("\"{}", "#".repeat(hashes))))
}

/// Where the quote is that ends the text at the beginning of `rest`.
fn closing_quote(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let body = &rest[1..];
    if body.starts_with('\\') {
        return body[2..].find('\'').map(|end| end + 4);
    }
    let first = body.chars().next()?;
    body[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

/// Does `line` hold `word`, not as a part of a longer word?
fn names(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
        let (head, tail) = (word.chars().next(), word.chars().next_back());
        !(before.is_some_and(part) && head.is_some_and(part) || after.is_some_and(part) && tail.is_some_and(part))
    })
}

// --------------------------------------------------------------------------------------------------------- the rules

type Rule = fn(&Source<'_>) -> Vec<String>;

const RULES: &[Rule] = &[
    environment,
    metric_names,
    skins,
    wire_meets_tensors,
    unsafe_code,
    queues,
    threads,
    unfinished,
    opens_with_its_purpose,
    length,
];

fn environment(source: &Source<'_>) -> Vec<String> {
    if !source.is_product() || source.is_in(&["server/src/main.rs", "server/src/args", "server/src/config"]) {
        return Vec::new();
    }
    source.naming(&["std::env"], "arguments and environment are read by main.rs, args and config alone")
}

fn metric_names(source: &Source<'_>) -> Vec<String> {
    if !source.is_product() || source.path.starts_with("server/src/metrics/") {
        return Vec::new();
    }
    let small = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let metric = |text: &str| {
        small(text)
            && (text.starts_with("nv_")
                || text.starts_with("tensorgate_")
                || text.starts_with("request_") && text.ends_with("_seconds"))
    };
    let found = source.texts.iter().filter(|(_, text)| metric(text));
    found.map(|(line, text)| format!("{}:{line}: \"{text}\": metrics/ alone names metrics", source.path)).collect()
}

/// REST and gRPC are two skins over one plane: neither knows the other, nor what lies behind the plane.
fn skins(source: &Source<'_>) -> Vec<String> {
    let behind = ["crate::registry", "crate::batcher", "crate::repository"];
    let why = "rest and grpc name the data plane, codec and error, and not each other";
    let other = match () {
        () if source.is_in(&["server/src/rest/"]) => ["crate::grpc", "super::grpc"],
        () if source.is_in(&["server/src/grpc/"]) => ["crate::rest", "super::rest"],
        () => return Vec::new(),
    };
    [source.naming(&behind, why), source.naming(&other, why)].concat()
}

fn wire_meets_tensors(source: &Source<'_>) -> Vec<String> {
    let why = "only server/src/codec/ knows both the wire and tensors";
    if source.is_in(&["backends/src/", "kernels/src/"]) {
        return source.naming(&["protocol::"], why);
    }
    if source.is_in(&["protocol/src/", "kernels/src/"]) {
        return source.naming(&["backends::"], why);
    }
    if !source.is_in(&["server/src/"]) || source.is_in(&["server/src/codec/"]) {
        return Vec::new();
    }
    let tensors = source.naming(&["Tensor", "Element"], why);
    if names(&source.code, "protocol::") { tensors } else { Vec::new() }
}

/// Where `unsafe` may stand at all. The compiler asks for `allow(unsafe_code)`; the reason is asked for here.
const MAY_BE_UNSAFE: &[&str] = &[
    "kernels/src/",
    "backends/src/onnx/enabled/run.rs",
    "backends/src/onnx/enabled/native.rs",
    "backends/tests/allocator/",
];

fn unsafe_code(source: &Source<'_>) -> Vec<String> {
    let all = source.naming(&["unsafe"], "stands in kernels, and in the call of ONNX Runtime");
    if !source.is_in(MAY_BE_UNSAFE) {
        return all;
    }
    let lines: Vec<&str> = source.raw.lines().collect();
    let bare = |index: &usize| !lines[index.saturating_sub(8)..*index].iter().any(|line| line.contains("SAFETY:"));
    let blocks = source.code.lines().enumerate().filter(|(_, line)| names(line, "unsafe {")).map(|(index, _)| index);
    blocks.filter(bare).map(|i| format!("{}:{}: no `SAFETY:` says why this is sound", source.path, i + 1)).collect()
}

fn queues(source: &Source<'_>) -> Vec<String> {
    source.naming(&["unbounded_channel", "unbounded", "sync::mpsc::channel()"], "every queue is bounded")
}

fn threads(source: &Source<'_>) -> Vec<String> {
    // Of two, the server knows nothing: one ends runs of ONNX Runtime, and one starts it, whose threads inherit its priority.
    const ELSEWHERE: [&str; 3] =
        ["server/src/threads.rs", "backends/src/onnx/enabled/watch.rs", "backends/src/onnx/mod.rs"];
    if !source.is_product() || source.is_in(&ELSEWHERE) {
        return Vec::new();
    }
    source.naming(&["thread::spawn", "thread::Builder", "thread::scope"], "threads.rs alone starts threads")
}

fn unfinished(source: &Source<'_>) -> Vec<String> {
    source.naming(&["todo!", "unimplemented!", "dbg!"], "unfinished")
}

fn opens_with_its_purpose(source: &Source<'_>) -> Vec<String> {
    if source.raw.starts_with("//!") {
        return Vec::new();
    }
    vec![format!("{}:1: does not open with `//!`: what it is, and what it is not", source.path)]
}

/// Files that are tables: one row after another, and no concept at which to cut them.
const TABLES: &[&str] = &[];

fn length(source: &Source<'_>) -> Vec<String> {
    let lines = source.raw.lines().count();
    if lines <= 500 || TABLES.contains(&source.path) {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines; 500 at most: cut it where a concept ends", source.path)]
}

/// Folders that only somebody's own machine has, in any text file. Put together here, so as not to be found here.
fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let folders = ["work", "root", "home", "Users"].map(|name| format!("/{name}/"));
    // A path begins where no longer path or address goes on.
    let begins = |line: &str, at: usize| {
        !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "._-/}$)>*".contains(c))
    };
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for folder in &folders {
            if line.match_indices(folder.as_str()).any(|(at, _)| begins(line, at)) {
                found.push(format!("{path}:{}: a path of one machine: {folder}", index + 1));
            }
        }
    }
    found
}

/// Crates that a dependency tree (`cargo tree --prefix none`) must not hold.
fn forbidden(tree: &str, crates: &[&str]) -> Vec<String> {
    let mut names: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter(|name| crates.contains(name)).map(str::to_owned).collect()
}

// ---------------------------------------------------------------------------------------------------------- the tree

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files below the workspace, as (path within it, text); what is hidden, built, generated or a fixture left out.
fn files(wanted: fn(&str) -> bool) -> Vec<(String, String)> {
    let (root, mut found, mut folders) = (root(), Vec::new(), vec![String::new()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{folder}{name}");
            let kind = entry.file_type().unwrap();
            let skipped = ["target", "gen", "fixtures", "node_modules", "__pycache__", "corpus", "artifacts"];
            if kind.is_dir() && (!name.starts_with('.') || name == ".ci") && !skipped.contains(&name.as_str()) {
                folders.push(format!("{path}/"));
            } else if kind.is_file() && wanted(&name) {
                found.push((path, fs::read_to_string(entry.path()).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

fn is_text(name: &str) -> bool {
    let kinds = [".rs", ".toml", ".md", ".py", ".sh", ".yaml", ".txt", ".ini", ".proto", ".cpu"];
    let names = ["Makefile", "run"];
    kinds.iter().any(|kind| name.ends_with(kind)) || names.contains(&name)
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn sources_keep_the_rules() {
    let files = files(|name| name.ends_with(".rs"));
    let complaints: Vec<String> = files
        .iter()
        .flat_map(|(path, text)| {
            let source = Source::new(path, text);
            RULES.iter().flat_map(|rule| rule(&source)).collect::<Vec<_>>()
        })
        .collect();
    assert_none(&complaints);
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let complaints: Vec<String> = files(is_text).iter().flat_map(|(path, text)| machine_paths(path, text)).collect();
    assert_none(&complaints);
}

#[test]
fn crates_depend_in_one_direction() {
    let rules: [(&str, &[&str]); 3] = [
        ("protocol", &["tokio", "axum", "hyper", "tonic", "tower", "tensorgate-backends", "tensorgate-kernels"]),
        ("kernels", &["serde", "serde_core", "candle-core", "bytes", "tensorgate-backends", "tensorgate-protocol"]),
        ("backends", &["tokio", "axum", "hyper", "http", "tonic", "reqwest", "object_store", "tensorgate-protocol"]),
    ];
    for (name, crates) in rules {
        let package = format!("tensorgate-{name}");
        let tree = Command::new(env!("CARGO"))
            .args(["tree", "--locked", "-p", &package, "-e", "normal", "--prefix", "none"])
            .current_dir(root())
            .output()
            .unwrap();
        let text = String::from_utf8(tree.stdout).unwrap();
        assert!(tree.status.success() && text.contains(&package), "{}", String::from_utf8_lossy(&tree.stderr));
        assert_none(
            &forbidden(&text, crates).iter().map(|found| format!("{package} uses {found}")).collect::<Vec<_>>(),
        );
    }
}

/// Files of `paths` that a code map does not name: by their own name, or, in a section of the map, by their folder's.
fn unmapped<'a>(map: &str, paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let named = |path: &str| {
        let Some((folder, inner)) = path.split_once("/src/") else { return false };
        let section = map.split("\n### ").find(|section| section.starts_with(&format!("`{folder}/src/`")));
        let file = inner.rsplit('/').next().unwrap_or(inner);
        let folder = inner.strip_suffix(file).unwrap_or_default();
        let is_named = |row: &str| {
            let mut cells = row.split('|').skip(1);
            let (names, says) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
            let own = matches!(file, "mod.rs" | "tests.rs") || says.contains(&format!("`{file}`"));
            names.contains(&format!("`{inner}`")) || !folder.is_empty() && names.contains(&format!("`{folder}`")) && own
        };
        section.is_some_and(|section| section.lines().any(is_named))
    };
    paths.filter(|path| !named(path)).map(|path| format!("{path}: not in the code map of ARCHITECTURE.md")).collect()
}

#[test]
fn the_code_map_is_complete() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(map.lines().count() <= 250, "ARCHITECTURE.md has {} lines; 250 at most", map.lines().count());
    let files = files(|name| name.ends_with(".rs"));
    let product = files.iter().map(|(path, _)| path.as_str()).filter(|path| Source::new(path, "").is_product());
    assert_none(&unmapped(&map, product));
}

// -------------------------------------------------------------------------------------------------- the rules' tests

/// (rule, path, text that breaks it, text that does not)
type Sample = (Rule, &'static str, &'static str, &'static str);

const SAMPLES: &[Sample] = &[
    (environment, "backends/src/a.rs", "let a = std::env::var(\"A\");", "// std::env::var\nlet a = env!(\"A\");"),
    (environment, "server/src/registry.rs", "use std::env;", "let s = \"std::env::var\";"),
    (metric_names, "server/src/app.rs", "counter!(\"tensorgate_a_b\")", "let url = \"tensorgate_A b\";"),
    (metric_names, "server/src/stats.rs", "f(r#\"request_predict_seconds\"#)", "f(\"request_id\") // \"nv_a\""),
    (skins, "server/src/rest/v2.rs", "use crate::grpc::status;", "use crate::codec::grpc; let grpc = 1;"),
    (skins, "server/src/grpc/mod.rs", "crate::rest::refuse(e)", "let rest = 1; // crate::rest"),
    (skins, "server/src/grpc/mod.rs", "use crate::registry::Registry;", "self.plane.registry().names()"),
    (wire_meets_tensors, "server/src/a.rs", "use protocol::v2;\nuse backends::Tensor;", "use backends::Tensor;"),
    (wire_meets_tensors, "server/src/b.rs", "use backends::Tensor;\nprotocol::v1::parse(b)", "use protocol::v2;"),
    (wire_meets_tensors, "backends/src/a.rs", "use protocol::json;", "let my_protocol = 1; // protocol::json"),
    (wire_meets_tensors, "protocol/src/a.rs", "backends::Tensor", "enum Values {} // backends::Tensor"),
    (unsafe_code, "server/src/a.rs", "// SAFETY: so\nunsafe { f() }", "let unsafe_code = 1; // unsafe"),
    (unsafe_code, "kernels/src/a.rs", "unsafe { f() }", "// SAFETY: so\nunsafe { f() }\nunsafe fn g() {}"),
    (queues, "server/src/a.rs", "mpsc::unbounded_channel()", "mpsc::channel(16) // unbounded_channel"),
    (queues, "server/src/a.rs", "std::sync::mpsc::channel()", "tokio::sync::mpsc::channel(1)"),
    (threads, "server/src/batcher.rs", "std::thread::spawn(f)", "tokio::task::spawn_blocking(f)"),
    (threads, "backends/src/a.rs", "thread::Builder::new()", "'a': thread::sleep(d)"),
    (unfinished, "kernels/src/a.rs", "fn f() { todo!() }", "fn f() {} // todo!"),
    (unfinished, "server/tests/a.rs", "dbg!(x);", "let dbg = 1; \"dbg!\""),
    (opens_with_its_purpose, "server/src/a.rs", "use a;\n//! late", "//! What it is.\nuse a;"),
];

#[test]
fn each_rule_tells_bad_from_good() {
    for (index, (rule, path, bad, good)) in SAMPLES.iter().enumerate() {
        assert!(!rule(&Source::new(path, bad)).is_empty(), "sample {index} is let through: {bad}");
        assert_eq!(rule(&Source::new(path, good)), Vec::<String>::new(), "sample {index} is refused: {good}");
    }
    let known = |rule: &Rule| SAMPLES.iter().any(|(sampled, ..)| std::ptr::fn_addr_eq(*sampled, *rule));
    assert!(
        RULES.iter().all(|rule| known(rule) || std::ptr::fn_addr_eq(*rule, length as Rule)),
        "a rule has no sample"
    );
    assert!(!length(&Source::new("a.rs", &"\n".repeat(501))).is_empty());
    assert!(length(&Source::new("a.rs", &"\n".repeat(500))).is_empty());
}

#[test]
fn paths_and_trees_are_told() {
    let path = |name: &str| format!("see /{name}/someone/file");
    assert_eq!(machine_paths("a.md", &path("home")).len(), 1);
    assert_eq!(machine_paths("a.md", &path("work")).len(), 1);
    assert!(machine_paths("a.md", "https://example.org/home/page and target/work/x and /usr/local/bin").is_empty());
    let tree = "tensorgate-protocol v0.1.0 (path)\nserde v1.0.0\ntokio-util v0.7.0\ntokio v1.0.0 (*)\n";
    assert_eq!(forbidden(tree, &["tokio", "axum"]), ["tokio"]);
    assert!(forbidden(tree, &["util"]).is_empty());
    let map = "\n### `a/src/`\n| `b.rs` |\n| `c/` | `d.rs` |\n### `e/src/`\n| `f/g.rs` |\n";
    let good = ["a/src/b.rs", "a/src/c/mod.rs", "a/src/c/d.rs", "e/src/f/g.rs"];
    assert!(unmapped(map, good.into_iter()).is_empty());
    assert_eq!(unmapped(map, ["a/src/d.rs", "a/src/c/b.rs", "e/src/b.rs", "e/src/f/mod.rs"].into_iter()).len(), 4);
}

#[test]
fn code_is_told_from_comments_and_texts() {
    let source =
        Source::new("a.rs", "let a = \"x // \\\" y\"; // z\n/* todo!\n */ let c = '\"'; f::<'a>(r#\"q\"w\"#); b'\\''");
    assert_eq!(source.code, "let a =  ;  \n \n let c =  ; f::<'a>( ); b ");
    assert_eq!(source.texts, [(1, "x // \\\" y".to_owned()), (3, "q\"w".to_owned())]);
}
