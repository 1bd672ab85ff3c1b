//! From a LightGBM file's arrays to a forest of the kernels.
//!
//! Semantics (64-bit floats throughout): values of at most 1e-35 are zero; a numeric value goes left when it is not
//! greater than the threshold, a missing one to the default side, a category left when the node's set holds it.

use super::super::frame::{Columns, Unknown};
use super::linear::LinearLeaves;
use super::objective::Link;
use super::pandas;
use super::text::{RawModel, RawTree};
use kernels::forest::{CategoryRule, CategorySet, Compare, Forest, Missing, Node, Target, Test, Tree};

/// A model ready to be compiled.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) forest: Forest<f64>,
    /// Where any tree has such leaves.
    pub(crate) linear: Option<LinearLeaves>,
    pub(crate) link: Link,
    pub(crate) columns: Columns,
}

/// More sums than this are no model.
const MAX_OUTPUTS: usize = 1 << 16;

/// Checks the arrays against each other and lowers them.
pub(crate) fn lower(mut model: RawModel) -> Result<Lowered, String> {
    let (features, outputs) = (model.features, model.outputs);
    if outputs == 0 || outputs > MAX_OUTPUTS {
        return Err(format!("num_class is {outputs}; 1 to {MAX_OUTPUTS} are supported"));
    }
    let trees = std::mem::take(&mut model.trees);
    if !trees.len().is_multiple_of(outputs) {
        return Err(format!("{} trees are no whole number of iterations of {outputs}", trees.len()));
    }
    let iterations = model.average.then_some(trees.len() / outputs);
    let link = Link::parse(model.objective.as_deref(), outputs, iterations)?;
    let mut linear = trees.iter().any(|tree| tree.linear.is_some()).then(LinearLeaves::default);
    let mut forest = Forest {
        features,
        outputs,
        compare: Compare::LessEqual,
        category_rule: CategoryRule::Truncate,
        flush_zero: true,
        trees: Vec::with_capacity(trees.len()),
        nodes: Vec::new(),
        values: Vec::new(),
        sets: Vec::new(),
    };
    for (index, tree) in trees.into_iter().enumerate() {
        let fault = |what: String| format!("tree {index}: {what}");
        lower_tree(&tree, (index % outputs) as u32, &mut forest).map_err(fault)?;
        if let Some(linear) = &mut linear {
            linear.push(&tree, features).map_err(fault)?;
        }
    }
    let forest = forest.checked().map_err(|invalid| invalid.to_string())?;
    let placed = pandas::place(&mut model);
    let columns = Columns {
        count: features,
        names: model.feature_names,
        categories: placed.by_column,
        unplaced: placed.unplaced,
        unknown: Unknown::Missing,
    };
    Ok(Lowered { forest, linear, link, columns })
}

/// Appends a tree; nodes and leaves keep their numbers.
fn lower_tree(tree: &RawTree, output: u32, forest: &mut Forest<f64>) -> Result<(), String> {
    let first_set = forest.sets.len();
    for (index, bounds) in tree.boundaries.windows(2).enumerate() {
        let words = tree.words.get(bounds[0] as usize..bounds[1] as usize);
        let words = words.ok_or_else(|| format!("cat_boundaries {index} and {} do not rise", index + 1))?;
        forest.sets.push(CategorySet::from_words(words.to_vec(), true));
    }
    let first_node = forest.nodes.len();
    for number in 0..tree.left.len() {
        let node = node(tree, number, first_set).map_err(|what| format!("node {number}: {what}"))?;
        forest.nodes.push(node);
    }
    forest.trees.push(Tree {
        first_node,
        nodes: tree.left.len(),
        first_value: forest.values.len(),
        leaves: tree.leaf_value.len(),
        target: Target::One(output),
    });
    forest.values.extend_from_slice(&tree.leaf_value);
    Ok(())
}

/// Bits of a node's `decision_type`; the two above them are the kind of missing values.
const CATEGORICAL: u8 = 1;
const DEFAULT_LEFT: u8 = 2;

fn node(tree: &RawTree, number: usize, first_set: usize) -> Result<Node<f64>, String> {
    let (decision, threshold) = (tree.decision[number], tree.threshold[number]);
    let categorical = decision & CATEGORICAL != 0;
    let missing = match decision >> 2 {
        0 => Missing::Never,
        1 => Missing::Zero,
        2 => Missing::Nan,
        _ => return Err(format!("decision_type is {decision}")),
    };
    let test = if categorical {
        if !(threshold > -1.0 && threshold < tree.sets as f64) {
            return Err(format!("category set {threshold} of {}", tree.sets));
        }
        Test::Category((first_set + threshold as usize) as u32)
    } else {
        Test::Threshold(threshold)
    };
    Ok(Node {
        feature: tree.feature[number],
        test,
        left: tree.left[number],
        right: tree.right[number],
        missing,
        // Whatever the file says, a category that is not a number goes right.
        default_left: !categorical && decision & DEFAULT_LEFT != 0,
    })
}
