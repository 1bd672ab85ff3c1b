//! XGBoost models as JSON text or UBJSON (1.0 to 3.4): the document's layout, in terms of a [`Reader`].
//!
//! What a number means, and how a [`Booster`] becomes a forest, is `booster.rs`. The binary format before 3.1 is
//! `legacy.rs`.

use super::booster::{Booster, Learner, RawTree};
use super::frame::Categories;
use super::json::{Json, is_number};
use super::reader::{Fault, Reader};
use super::ubjson::Ubjson;
use std::collections::HashSet;

/// Reads a document of either encoding, told apart by what follows the first bracket.
pub(crate) fn read(data: &[u8]) -> Result<Booster, Fault> {
    let next = data.iter().skip(1).find(|b| !b.is_ascii_whitespace());
    match next {
        Some(b'"' | b'}') => read_with(Json::new(data)),
        _ => read_with(Ubjson::new(data)),
    }
}

/// The keys of an object, as far as it is read.
#[derive(Default)]
struct Keys(HashSet<String>);

impl Keys {
    /// The next one. That it stands twice is a fault: which of the two is meant, readers do not agree on.
    fn read<R: Reader>(&mut self, reader: &mut R) -> Result<Option<String>, Fault> {
        let Some(key) = reader.key()? else { return Ok(None) };
        if self.0.insert(key.clone()) {
            Ok(Some(key))
        } else {
            Err(reader.fault(format!("'{key}' stands twice in one object")))
        }
    }

    fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }

    /// What a file of the library always has, and an answer depends on.
    fn require<R: Reader>(&self, reader: &R, object: &str, wanted: &[&str]) -> Result<(), Fault> {
        match wanted.iter().find(|key| !self.has(key)) {
            Some(key) => Err(reader.fault(format!("'{object}' has no '{key}': a part of the file is lost"))),
            None => Ok(()),
        }
    }
}

fn read_with<R: Reader>(mut reader: R) -> Result<Booster, Fault> {
    let mut booster = Booster { estimates_base: true, ..Booster::default() };
    let mut keys = Keys::default();
    reader.object()?;
    while let Some(key) = keys.read(&mut reader)? {
        match key.as_str() {
            "version" => {
                let version = reader.narrow::<u32>()?;
                booster.version = (version.first().copied().unwrap_or(0), version.get(1).copied().unwrap_or(0));
            }
            "learner" => read_learner(&mut reader, &mut booster)?,
            _ => reader.skip()?,
        }
    }
    reader.end()?;
    if keys.has("learner") {
        Ok(booster)
    } else {
        Err(reader.fault("there is no 'learner' in this document: not an XGBoost model"))
    }
}

fn read_learner<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    let mut keys = Keys::default();
    reader.object()?;
    while let Some(key) = keys.read(reader)? {
        match key.as_str() {
            "attributes" => read_attributes(reader, booster)?,
            "feature_names" => booster.feature_names = reader.strings()?,
            "feature_types" => booster.feature_types = reader.strings()?,
            "learner_model_param" => read_parameters(reader, booster)?,
            "objective" => read_objective(reader, booster)?,
            "gradient_booster" => read_gradient_booster(reader, booster)?,
            _ => reader.skip()?,
        }
    }
    keys.require(reader, "learner", &["learner_model_param", "objective", "gradient_booster"])
}

fn read_attributes<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    reader.object()?;
    while let Some(key) = reader.key()? {
        if key == "best_iteration" {
            booster.best_iteration = Some(reader.string()?);
        } else {
            reader.skip()?;
        }
    }
    Ok(())
}

/// All values are text.
fn read_parameters<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    let mut keys = Keys::default();
    reader.object()?;
    while let Some(key) = keys.read(reader)? {
        let number = |reader: &R, text: &str| {
            text.trim().parse::<u32>().map_err(|_| reader.fault(format!("{key} is '{text}', not a whole number")))
        };
        match key.as_str() {
            "base_score" => {
                let text = reader.string()?;
                booster.base_score = parse_base_score(&text)
                    .ok_or_else(|| reader.fault(format!("base_score is '{text}', neither a number nor a list")))?;
            }
            "boost_from_average" => booster.estimates_base = reader.string()?.trim() != "0",
            "num_class" => {
                let text = reader.string()?;
                booster.classes = number(reader, &text)?;
            }
            "num_feature" => {
                let text = reader.string()?;
                booster.features = number(reader, &text)?;
            }
            "num_target" => {
                let text = reader.string()?;
                booster.targets = number(reader, &text)?;
            }
            _ => reader.skip()?,
        }
    }
    keys.require(reader, "learner_model_param", &["base_score", "num_class", "num_feature"])
}

/// `5E-1` up to 3.0; `[4.5E-1]` or `[a,b,c]` from 3.1; a pair of brackets of either kind.
fn parse_base_score(text: &str) -> Option<Vec<f32>> {
    let text = text.trim();
    let within = |open: char, close: char| text.strip_prefix(open)?.strip_suffix(close);
    let inner = within('[', ']').or_else(|| within('(', ')')).unwrap_or(text);
    let number = |part: &str| if is_number(part) { part.parse::<f32>().ok() } else { None };
    inner.split(',').map(|part| number(part.trim())).collect()
}

fn read_objective<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "name" => booster.objective = reader.string()?,
            _ => reader.skip()?,
        }
    }
    Ok(())
}

/// gbtree: `{model, name}`; dart up to 3.3: `{gbtree: {model, name}, weight_drop, name}`; gblinear: `{model, name}`.
fn read_gradient_booster<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    let mut keys = Keys::default();
    let (mut name, mut model) = (String::new(), None);
    reader.object()?;
    while let Some(key) = keys.read(reader)? {
        match key.as_str() {
            "name" => name = reader.string()?,
            "model" => model = Some(read_model(reader, booster)?),
            "weight_drop" => booster.weights = reader.floats()?,
            "gbtree" => read_gradient_booster(reader, booster)?,
            _ => reader.skip()?,
        }
    }
    let wanted = match name.as_str() {
        "gbtree" | "dart" => "trees",
        "gblinear" => "weights",
        other => return Err(reader.fault(format!("booster '{other}'; gbtree, dart and gblinear are known"))),
    };
    booster.learner = if wanted == "trees" { Learner::Trees } else { Learner::Linear };
    match model {
        Some(model) => model.require(reader, "model", &[wanted]),
        None if name == "dart" && keys.has("gbtree") => Ok(()),
        None => keys.require(reader, "gradient_booster", &["model"]),
    }
}

/// Returns the keys that were there.
fn read_model<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<Keys, Fault> {
    let mut keys = Keys::default();
    let mut stated = 0;
    reader.object()?;
    while let Some(key) = keys.read(reader)? {
        match key.as_str() {
            "gbtree_model_param" => stated = read_tree_parameters(reader, booster)?,
            "trees" => booster.trees = read_trees(reader)?,
            "boosted_rounds" => booster.linear_rounds = reader.integer()?,
            "tree_info" => booster.groups = reader.narrow()?,
            "iteration_indptr" => booster.iterations = reader.narrow()?,
            "weight_drop" => booster.weights = reader.floats()?,
            "weights" => booster.linear = reader.floats()?,
            "cats" => booster.categories = read_categories(reader)?,
            _ => reader.skip()?,
        }
    }
    let trees = booster.trees.len();
    if keys.has("trees") && stated != trees {
        return Err(reader.fault(format!("num_trees is {stated}, but there are {trees} trees")));
    }
    let last = booster.iterations.last().map_or(0, |&end| end as usize);
    if keys.has("trees") && keys.has("iteration_indptr") && last != trees {
        return Err(reader.fault(format!("iteration_indptr ends at {last}, but there are {trees} trees")));
    }
    Ok(keys)
}

fn read_trees<R: Reader>(reader: &mut R) -> Result<Vec<RawTree>, Fault> {
    let mut trees = Vec::new();
    reader.array()?;
    while reader.element()? {
        let tree = read_tree(reader, trees.len())?;
        // A tree that takes next to no bytes must take no memory.
        if tree.left.is_empty() {
            return Err(reader.fault(format!("tree {} has no nodes", trees.len())));
        }
        trees.push(tree);
    }
    Ok(trees)
}

/// Returns how many trees the file says that there are.
fn read_tree_parameters<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<usize, Fault> {
    let mut stated = 0;
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "num_parallel_tree" => {
                let text = reader.string()?;
                booster.parallel_trees = text.trim().parse().unwrap_or(1).max(1);
            }
            "num_trees" => {
                let text = reader.string()?;
                stated = text.trim().parse().map_err(|_| reader.fault(format!("num_trees is '{text}'")))?;
            }
            _ => reader.skip()?,
        }
    }
    Ok(stated)
}

/// The tree at place `index`.
fn read_tree<R: Reader>(reader: &mut R, index: usize) -> Result<RawTree, Fault> {
    let (mut leaf_size, mut stated) = (None, None);
    let mut tree = RawTree::default();
    // Needed for vector leaves alone, and as long as all else together.
    let mut base_weights = None;
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "left_children" => tree.left = reader.narrow()?,
            "right_children" => tree.right = reader.narrow()?,
            "split_indices" => tree.feature = reader.narrow()?,
            "split_conditions" => tree.condition = reader.floats()?,
            "default_left" => tree.default_left = reader.narrow()?,
            "split_type" => tree.split_type = reader.narrow()?,
            "categories" => tree.categories = reader.narrow()?,
            "categories_nodes" => tree.category_nodes = reader.narrow()?,
            "categories_segments" => tree.category_starts = reader.narrow()?,
            "categories_sizes" => tree.category_sizes = reader.narrow()?,
            "leaf_weights" => tree.leaf_weights = reader.floats()?,
            "base_weights" => {
                base_weights = Some(reader.here());
                reader.skip()?;
            }
            "tree_param" => (leaf_size, stated) = read_tree_sizes(reader)?,
            "id" => {
                let id = reader.integer()?;
                if id != index as i64 {
                    return Err(reader.fault(format!("tree {index} has the id {id}: trees are lost or moved")));
                }
            }
            _ => reader.skip()?,
        }
    }
    tree.leaf_size = leaf_size.unwrap_or(0);
    if let (Some(place), true) = (base_weights, tree.leaf_size > 1 && tree.leaf_weights.is_empty()) {
        let end = reader.here();
        reader.go(place);
        tree.base_weights = reader.floats()?;
        reader.go(end);
    }
    // Without it, leaves of several values would be taken for leaves of one.
    if leaf_size.is_none() && !tree.left.is_empty() {
        return Err(reader.fault(format!("tree {index} has no size_leaf_vector: a part of the file is lost")));
    }
    if let Some(stated) = stated.filter(|stated| *stated != tree.left.len()) {
        let nodes = tree.left.len();
        return Err(reader.fault(format!("tree {index}: num_nodes is {stated}, but left_children has {nodes} entries")));
    }
    Ok(tree)
}

/// Values in a leaf, and how many nodes the file says that there are, where it does.
fn read_tree_sizes<R: Reader>(reader: &mut R) -> Result<(Option<u32>, Option<usize>), Fault> {
    let (mut size, mut nodes) = (None, None);
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "size_leaf_vector" => {
                let text = reader.string()?;
                size = Some(text.trim().parse().map_err(|_| reader.fault(format!("size_leaf_vector is '{text}'")))?);
            }
            "num_nodes" => {
                let text = reader.string()?;
                nodes = Some(text.trim().parse().map_err(|_| reader.fault(format!("num_nodes is '{text}'")))?);
            }
            _ => reader.skip()?,
        }
    }
    Ok((size, nodes))
}

/// Categories that are text: one list for each feature, none where it is numeric or its categories are numbers, which
/// are sent as codes.
fn read_categories<R: Reader>(reader: &mut R) -> Result<Vec<Option<Categories>>, Fault> {
    let mut features = Vec::new();
    reader.object()?;
    while let Some(key) = reader.key()? {
        if key != "enc" {
            reader.skip()?;
            continue;
        }
        reader.array()?;
        while reader.element()? {
            features.push(read_category_values(reader)?);
        }
    }
    Ok(features)
}

fn read_category_values<R: Reader>(reader: &mut R) -> Result<Option<Categories>, Fault> {
    let (mut offsets, mut values) = (Vec::<u32>::new(), Vec::new());
    let mut kind = None;
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "offsets" => offsets = reader.narrow()?,
            "type" => kind = Some(reader.integer()?),
            "values" if matches!(kind, Some(7 | 8)) => reader.skip()?,
            "values" => values = reader.integers()?,
            _ => reader.skip()?,
        }
    }
    let mut categories = Categories::default();
    let bytes: Vec<u8> = values.iter().map(|&value| value as u8).collect();
    for (code, pair) in offsets.windows(2).enumerate() {
        let text = bytes.get(pair[0] as usize..pair[1] as usize);
        categories.add_text(text.ok_or_else(|| reader.fault("category names do not fit their offsets"))?, code);
    }
    Ok((!categories.is_empty()).then_some(categories))
}
