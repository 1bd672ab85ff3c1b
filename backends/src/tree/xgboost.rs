//! XGBoost models as JSON text or UBJSON (1.0 to 3.4): the document's layout, in terms of a [`Reader`].
//!
//! What a number means, and how a [`Booster`] becomes a forest, is `booster.rs`. The binary format before 3.1 is
//! `legacy.rs`.

use super::booster::{Booster, Learner, RawTree};
use super::frame::Categories;
use super::json::Json;
use super::reader::{Fault, Reader};
use super::ubjson::Ubjson;

/// Reads a document of either encoding, told apart by what follows the first bracket.
pub(crate) fn read(data: &[u8]) -> Result<Booster, Fault> {
    let next = data.iter().skip(1).find(|b| !b.is_ascii_whitespace());
    match next {
        Some(b'"' | b'}') => read_with(Json::new(data)),
        _ => read_with(Ubjson::new(data)),
    }
}

fn read_with<R: Reader>(mut reader: R) -> Result<Booster, Fault> {
    let mut booster = Booster::default();
    let mut learner = false;
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "version" => {
                let version = reader.narrow::<u32>()?;
                booster.version = (version.first().copied().unwrap_or(0), version.get(1).copied().unwrap_or(0));
            }
            "learner" => {
                read_learner(&mut reader, &mut booster)?;
                learner = true;
            }
            _ => reader.skip()?,
        }
    }
    reader.end()?;
    if learner {
        Ok(booster)
    } else {
        Err(reader.fault("there is no 'learner' in this document: not an XGBoost model"))
    }
}

fn read_learner<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    reader.object()?;
    while let Some(key) = reader.key()? {
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
    Ok(())
}

fn read_attributes<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    reader.object()?;
    while let Some(key) = reader.key()? {
        if key == "best_iteration" {
            let text = reader.string()?;
            booster.best_iteration =
                Some(text.trim().parse().map_err(|_| reader.fault(format!("best_iteration is '{text}'")))?);
        } else {
            reader.skip()?;
        }
    }
    Ok(())
}

/// All values are text.
fn read_parameters<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    reader.object()?;
    while let Some(key) = reader.key()? {
        let number = |reader: &R, text: &str| {
            text.trim().parse::<u32>().map_err(|_| reader.fault(format!("{key} is '{text}', not a whole number")))
        };
        match key.as_str() {
            "base_score" => {
                let text = reader.string()?;
                booster.base_score = parse_base_score(&text)
                    .ok_or_else(|| reader.fault(format!("base_score is '{text}', neither a number nor a list")))?;
            }
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
    Ok(())
}

/// `5E-1` up to 3.0; `[4.5E-1]` or `[a,b,c]` from 3.1; brackets of either kind.
fn parse_base_score(text: &str) -> Option<Vec<f32>> {
    let inner = text.trim().trim_start_matches(['[', '(']).trim_end_matches([']', ')']);
    inner.split(',').map(|part| part.trim().parse().ok()).collect()
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
    reader.object()?;
    let mut name = String::new();
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "name" => name = reader.string()?,
            "model" => read_model(reader, booster)?,
            "weight_drop" => booster.weights = reader.floats()?,
            "gbtree" => read_gradient_booster(reader, booster)?,
            _ => reader.skip()?,
        }
    }
    match name.as_str() {
        "gbtree" | "dart" => booster.learner = Learner::Trees,
        "gblinear" => booster.learner = Learner::Linear,
        other => return Err(reader.fault(format!("booster '{other}'; gbtree, dart and gblinear are known"))),
    }
    Ok(())
}

fn read_model<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "gbtree_model_param" => read_tree_parameters(reader, booster)?,
            "trees" => {
                reader.array()?;
                while reader.element()? {
                    let tree = read_tree(reader)?;
                    // A tree that takes next to no bytes must take no memory.
                    if tree.left.is_empty() {
                        return Err(reader.fault(format!("tree {} has no nodes", booster.trees.len())));
                    }
                    booster.trees.push(tree);
                }
            }
            "tree_info" => booster.groups = reader.narrow()?,
            "iteration_indptr" => booster.iterations = reader.narrow()?,
            "weight_drop" => booster.weights = reader.floats()?,
            "weights" => booster.linear = reader.floats()?,
            "cats" => booster.categories = read_categories(reader)?,
            _ => reader.skip()?,
        }
    }
    Ok(())
}

fn read_tree_parameters<R: Reader>(reader: &mut R, booster: &mut Booster) -> Result<(), Fault> {
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "num_parallel_tree" => {
                let text = reader.string()?;
                booster.parallel_trees = text.trim().parse().unwrap_or(1).max(1);
            }
            _ => reader.skip()?,
        }
    }
    Ok(())
}

fn read_tree<R: Reader>(reader: &mut R) -> Result<RawTree, Fault> {
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
            "tree_param" => tree.leaf_size = read_leaf_size(reader)?,
            _ => reader.skip()?,
        }
    }
    if let (Some(place), true) = (base_weights, tree.leaf_size > 1 && tree.leaf_weights.is_empty()) {
        let end = reader.here();
        reader.go(place);
        tree.base_weights = reader.floats()?;
        reader.go(end);
    }
    Ok(tree)
}

fn read_leaf_size<R: Reader>(reader: &mut R) -> Result<u32, Fault> {
    let mut size = 0;
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "size_leaf_vector" => {
                let text = reader.string()?;
                size = text.trim().parse().map_err(|_| reader.fault(format!("size_leaf_vector is '{text}'")))?;
            }
            _ => reader.skip()?,
        }
    }
    Ok(size)
}

/// Categories known by value: one list for each feature, empty where it is numeric.
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
    let (mut offsets, mut numbers) = (Vec::<u32>::new(), Vec::new());
    let mut kind = None;
    reader.object()?;
    while let Some(key) = reader.key()? {
        match key.as_str() {
            "offsets" => offsets = reader.narrow()?,
            "type" => kind = Some(reader.integer()?),
            // Floats cannot be told apart safely, and are not recoded.
            "values" if matches!(kind, Some(7 | 8)) => reader.skip()?,
            "values" => numbers = reader.integers()?,
            _ => reader.skip()?,
        }
    }
    let mut categories = Categories::default();
    if offsets.is_empty() {
        for (code, &number) in numbers.iter().enumerate() {
            categories.add_whole(number as f64, code);
        }
    } else {
        let bytes: Vec<u8> = numbers.iter().map(|&v| v as u8).collect();
        for (code, pair) in offsets.windows(2).enumerate() {
            let text = bytes.get(pair[0] as usize..pair[1] as usize);
            categories.add_text(text.ok_or_else(|| reader.fault("category names do not fit their offsets"))?, code);
        }
    }
    Ok((!categories.is_empty()).then_some(categories))
}
