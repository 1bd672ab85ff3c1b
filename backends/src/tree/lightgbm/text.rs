//! The text format: lines of `key=value`, ended by `\n` or `\r\n`.
//!
//! ```text
//! tree                                   the first line, by which the format is told
//! version=v4 ... feature_names=a b       header
//!
//! Tree=0                                 one block for each tree by its number, up to an empty line
//! num_leaves=3 ... left_child=1 -1       arrays by space; a child below zero is leaf `!child`
//!
//! end of trees                           before 2.2 there was none
//! feature_importances: parser:           not looked at
//! parameters: ... end of parameters      where there are any; of them only which columns are categorical
//! pandas_categorical:[["red", "green"]]  by the Python package alone
//! ```
//!
//! Arrays are as long as the file makes them; what the file says of their length is compared afterwards, so that no
//! count is worth an allocation.

use super::pandas;
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// What is wrong, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    what: String,
    line: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// A whole model as written.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawModel {
    pub(crate) features: usize,
    /// Trees of an iteration, which is sums of a row.
    pub(crate) outputs: usize,
    /// Name and parameters; none where the objective was the trainer's own.
    pub(crate) objective: Option<String>,
    /// A random forest: sums are divided by the number of iterations.
    pub(crate) average: bool,
    pub(crate) feature_names: Vec<String>,
    /// What training saw in each column; empty where the file does not say.
    pub(crate) seen: Vec<Seen>,
    /// Columns that the trainer's parameters call categorical; none where they do not say.
    pub(crate) declared: Option<Vec<usize>>,
    /// How many trees the header speaks of; files before 2.2 do not say.
    pub(crate) stated_trees: Option<usize>,
    pub(crate) trees: Vec<RawTree>,
    /// Category values of the training frame's categorical columns, in order.
    pub(crate) categories: Vec<Vec<Value>>,
}

/// What training saw in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Categories; the greatest code.
    Codes(i64),
    /// Numbers from zero up to this whole one: codes as well, if the training frame had them for an ordered category.
    UpTo(i64),
    /// Numbers that are no codes.
    Numbers,
    /// Nothing to tell rows apart by.
    Nothing,
}

/// One tree as written: internal nodes and leaves are numbered apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawTree {
    pub(crate) leaves: usize,
    pub(crate) sets: usize,
    pub(crate) feature: Vec<u32>,
    pub(crate) threshold: Vec<f64>,
    pub(crate) decision: Vec<u8>,
    pub(crate) left: Vec<i32>,
    pub(crate) right: Vec<i32>,
    pub(crate) leaf_value: Vec<f64>,
    /// Set `i` is words `boundaries[i]..boundaries[i + 1]`.
    pub(crate) boundaries: Vec<u32>,
    pub(crate) words: Vec<u32>,
    pub(crate) linear: Option<Box<RawLinear>>,
}

/// Linear functions in the leaves of a tree; terms of all leaves one after another.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawLinear {
    pub(crate) is_linear: bool,
    pub(crate) constant: Vec<f64>,
    pub(crate) counts: Vec<u32>,
    pub(crate) features: Vec<u32>,
    pub(crate) coefficients: Vec<f64>,
}

/// Is this the beginning of a LightGBM text model?
pub(crate) fn looks_like(head: &[u8]) -> bool {
    head.starts_with(b"tree\n") || head.starts_with(b"tree\r\n")
}

/// The lines of a file, without their ends.
struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.iter().position(|&b| b == b'\n');
        let line = &self.rest[..end.unwrap_or(self.rest.len())];
        self.rest = end.map_or(&[], |end| &self.rest[end + 1..]);
        self.number += 1;
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn fault(&self, what: impl Into<String>) -> Fault {
        Fault { what: what.into(), line: self.number }
    }
}

/// Reads the whole file.
pub(crate) fn read(data: &[u8]) -> Result<RawModel, Fault> {
    let mut lines = Lines { rest: data, number: 0 };
    let mut model = RawModel::default();
    let mut line = read_header(&mut lines, &mut model)?;
    while let Some(b) = line {
        if let Some(stated) = b.strip_prefix(b"Tree=") {
            let index = model.trees.len();
            if number::<usize>(&lines, "Tree", stated)? != index {
                let found = excerpt(b);
                return Err(lines.fault(format!("expected 'Tree={index}', found '{found}': trees are lost or moved")));
            }
            let tree = read_tree(&mut lines, index)?;
            model.trees.push(tree);
        } else if is_behind_trees(b) {
            if let Some(stated) = model.stated_trees.filter(|stated| *stated != model.trees.len()) {
                let trees = model.trees.len();
                return Err(lines.fault(format!("tree_sizes has {stated} entries, but there are {trees} trees")));
            }
            read_rest(&mut lines, &mut model)?;
            return Ok(model);
        } else if !b.is_empty() {
            return Err(lines.fault(format!("expected a tree or 'end of trees', found '{}'", excerpt(b))));
        }
        line = lines.next();
    }
    Err(lines.fault("the file ends before 'end of trees': it was cut off"))
}

/// Does what follows the trees begin here? Early versions do not say that they end.
fn is_behind_trees(line: &[u8]) -> bool {
    line == b"end of trees" || line.starts_with(b"feature importances") || line.starts_with(b"feature_importances")
}

/// Up to the first tree, or to what follows the trees; returns that line.
fn read_header<'a>(lines: &mut Lines<'a>, model: &mut RawModel) -> Result<Option<&'a [u8]>, Fault> {
    let (mut classes, mut outputs, mut last_feature) = (None, None, None);
    if lines.next() != Some(b"tree") {
        return Err(lines.fault("expected 'tree': not a LightGBM model"));
    }
    let end = loop {
        let Some(line) = lines.next() else { break None };
        if line.starts_with(b"Tree=") || is_behind_trees(line) {
            break Some(line);
        }
        let (key, value) = split_key(line);
        match key {
            b"version" if !matches!(value, b"v2" | b"v3" | b"v4") => {
                return Err(lines.fault(format!("version is '{}'; v2, v3 and v4 are known", excerpt(value))));
            }
            b"num_class" => classes = Some(number::<usize>(lines, "num_class", value)?),
            b"num_tree_per_iteration" => outputs = Some(number::<usize>(lines, "num_tree_per_iteration", value)?),
            b"max_feature_idx" => last_feature = Some(number::<usize>(lines, "max_feature_idx", value)?),
            b"objective" => model.objective = Some(String::from_utf8_lossy(value).into_owned()),
            b"average_output" => model.average = true,
            b"feature_names" => model.feature_names = names(value),
            b"feature_infos" => model.seen = words(value).map(seen).collect(),
            b"tree_sizes" => model.stated_trees = Some(words(value).count()),
            _ => {}
        }
    };
    let absent = |what: &str| lines.fault(format!("the header has no {what}"));
    let classes = classes.ok_or_else(|| absent("num_class"))?;
    let last_feature = last_feature.ok_or_else(|| absent("max_feature_idx"))?;
    model.outputs = outputs.unwrap_or(classes);
    if model.outputs != classes {
        return Err(lines.fault(format!("num_tree_per_iteration is {}, num_class {classes}", model.outputs)));
    }
    model.features = last_feature.saturating_add(1);
    if model.feature_names.len() != model.features {
        let (names, features) = (model.feature_names.len(), model.features);
        return Err(lines.fault(format!("feature_names has {names} entries for {features} features")));
    }
    if !model.seen.is_empty() && model.seen.len() != model.features {
        let (infos, features) = (model.seen.len(), model.features);
        return Err(lines.fault(format!("feature_infos has {infos} entries for {features} features")));
    }
    Ok(end)
}

/// One block, up to its empty line.
fn read_tree(lines: &mut Lines<'_>, index: usize) -> Result<RawTree, Fault> {
    let mut tree = RawTree::default();
    let mut linear = RawLinear::default();
    let start = lines.number;
    while let Some(line) = lines.next() {
        if line.is_empty() {
            let fault = |what| Fault { what: format!("tree {index}: {what}"), line: start };
            tree.check(&linear).map_err(fault)?;
            tree.linear = linear.is_linear.then(|| Box::new(linear));
            return Ok(tree);
        }
        let (key, value) = split_key(line);
        let name = |key: &str| format!("tree {index}: {key}");
        match key {
            b"num_leaves" => tree.leaves = number(lines, &name("num_leaves"), value)?,
            b"num_cat" => tree.sets = number(lines, &name("num_cat"), value)?,
            b"split_feature" => tree.feature = numbers(lines, &name("split_feature"), value)?,
            b"threshold" => tree.threshold = numbers(lines, &name("threshold"), value)?,
            b"decision_type" => tree.decision = numbers(lines, &name("decision_type"), value)?,
            b"left_child" => tree.left = numbers(lines, &name("left_child"), value)?,
            b"right_child" => tree.right = numbers(lines, &name("right_child"), value)?,
            b"leaf_value" => tree.leaf_value = numbers(lines, &name("leaf_value"), value)?,
            b"cat_boundaries" => tree.boundaries = numbers(lines, &name("cat_boundaries"), value)?,
            b"cat_threshold" => tree.words = numbers(lines, &name("cat_threshold"), value)?,
            b"is_linear" => linear.is_linear = number::<u8>(lines, &name("is_linear"), value)? != 0,
            b"leaf_const" => linear.constant = numbers(lines, &name("leaf_const"), value)?,
            b"num_features" => linear.counts = numbers(lines, &name("num_features"), value)?,
            b"leaf_features" => linear.features = numbers(lines, &name("leaf_features"), value)?,
            b"leaf_coeff" => linear.coefficients = numbers(lines, &name("leaf_coeff"), value)?,
            _ => {}
        }
    }
    Err(lines.fault(format!("the file ends in tree {index}: it was cut off")))
}

impl RawTree {
    /// Compares the lengths of arrays with what the block says they are, and fills in what may be left out.
    fn check(&mut self, linear: &RawLinear) -> Result<(), String> {
        let leaves = self.leaves;
        if leaves == 0 {
            return Err("num_leaves is absent or 0".into());
        }
        // A tree of one leaf has no other arrays, or empty ones.
        let nodes = leaves - 1;
        if self.decision.is_empty() {
            self.decision = vec![0; nodes.min(self.left.len())];
        }
        let sets = if self.sets == 0 { 0 } else { self.sets.saturating_add(1) };
        let words = self.boundaries.last().map_or(0, |&end| end as usize);
        let mut wanted = vec![
            ("leaf_value", self.leaf_value.len(), leaves),
            ("split_feature", self.feature.len(), nodes),
            ("threshold", self.threshold.len(), nodes),
            ("decision_type", self.decision.len(), nodes),
            ("left_child", self.left.len(), nodes),
            ("right_child", self.right.len(), nodes),
            ("cat_boundaries", self.boundaries.len(), sets),
            ("cat_threshold", self.words.len(), words),
        ];
        if linear.is_linear {
            let terms = linear.counts.iter().fold(0usize, |sum, &count| sum.saturating_add(count as usize));
            wanted.extend([
                ("leaf_const", linear.constant.len(), leaves),
                ("num_features", linear.counts.len(), leaves),
                ("leaf_features", linear.features.len(), terms),
                ("leaf_coeff", linear.coefficients.len(), terms),
            ]);
        }
        match wanted.into_iter().find(|(_, length, wanted)| length != wanted) {
            Some((name, length, wanted)) => Err(format!("{name} has {length} entries; {wanted} are expected")),
            None => Ok(()),
        }
    }
}

/// What follows the trees: only the categories matter, but parameters that do not end were cut off, and categories
/// with them.
fn read_rest(lines: &mut Lines<'_>, model: &mut RawModel) -> Result<(), Fault> {
    let mut parameters = false;
    while let Some(line) = lines.next() {
        if let Some(json) = line.strip_prefix(CATEGORIES) {
            model.categories = pandas::read(json).map_err(|what| lines.fault(format!("pandas_categorical: {what}")))?;
        } else if line == b"parameters:" {
            parameters = true;
        } else if line == b"end of parameters" {
            parameters = false;
        } else if let Some(columns) = line.strip_prefix(b"[categorical_feature: ").filter(|_| parameters) {
            model.declared = declared(columns);
        } else if !line.is_empty() && CATEGORIES.starts_with(line) {
            return Err(lines.fault("the file ends in 'pandas_categorical:': it was cut off"));
        }
    }
    if parameters {
        return Err(lines.fault("the file ends before 'end of parameters': it was cut off"));
    }
    Ok(())
}

const CATEGORIES: &[u8] = b"pandas_categorical:";

/// `6,7]`: columns by number. By name they may stand there as well, and then say nothing here.
fn declared(columns: &[u8]) -> Option<Vec<usize>> {
    let columns = std::str::from_utf8(columns).ok()?.strip_suffix(']')?;
    columns.split(',').map(|column| column.parse().ok()).collect()
}

/// `key=value`, or a key alone.
fn split_key(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|&b| b == b'=') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, b""),
    }
}

fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty())
}

fn names(value: &[u8]) -> Vec<String> {
    let mut names = Vec::with_capacity(words(value).count());
    names.extend(words(value).map(|name| String::from_utf8_lossy(name).into_owned()));
    names
}

/// `[least:greatest]` is a numeric column, `none` one of a single value, `3:1:2` lists the codes of a categorical one.
fn seen(info: &[u8]) -> Seen {
    let Ok(info) = std::str::from_utf8(info) else { return Seen::Numbers };
    let range = info.strip_prefix('[').and_then(|info| info.strip_suffix(']')).and_then(|info| info.split_once(':'));
    if let Some((least, greatest)) = range {
        let from_zero = least.parse::<f64>().is_ok_and(|least| least == 0.0);
        return greatest.parse::<i64>().ok().filter(|_| from_zero).map_or(Seen::Numbers, Seen::UpTo);
    }
    let codes: Option<Vec<i64>> = info.split(':').map(|code| code.parse().ok()).collect();
    match codes.and_then(|codes| codes.into_iter().max()) {
        Some(greatest) => Seen::Codes(greatest),
        None if info == "none" => Seen::Nothing,
        None => Seen::Numbers,
    }
}

fn number<T: FromStr>(lines: &Lines<'_>, name: &str, value: &[u8]) -> Result<T, Fault> {
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
    parsed.ok_or_else(|| lines.fault(format!("{name} is '{}', not a number of the right kind", excerpt(value))))
}

fn numbers<T: FromStr>(lines: &Lines<'_>, name: &str, value: &[u8]) -> Result<Vec<T>, Fault> {
    words(value)
        .enumerate()
        .map(|(index, word)| {
            let parsed = std::str::from_utf8(word).ok().and_then(|word| word.parse().ok());
            parsed.ok_or_else(|| {
                lines.fault(format!("{name}: entry {index} is '{}', not a number of the right kind", excerpt(word)))
            })
        })
        .collect()
}

/// The beginning of what a file holds, fit for a message.
fn excerpt(bytes: &[u8]) -> String {
    let (shown, more) = if bytes.len() > 40 { (&bytes[..40], "…") } else { (bytes, "") };
    format!("{}{more}", shown.escape_ascii())
}
