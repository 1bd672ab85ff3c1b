//! The specification: one row through one tree, thresholds as the file has them. Every other path is tested against
//! this one.

use super::model::{Compare, Forest, Missing, Node, Real, Target, Test, Tree};

/// The leaf of `tree` that `row` ends in.
///
/// `row` has `forest.features` values.
pub fn leaf<T: Real>(forest: &Forest<T>, tree: &Tree, row: &[T]) -> usize {
    let nodes = forest.nodes_of(tree);
    if nodes.is_empty() {
        return 0;
    }
    let mut at = 0i32;
    while at >= 0 {
        let node = &nodes[at as usize];
        at = if goes_left(forest, node, row[node.feature as usize]) { node.left } else { node.right };
    }
    !at as usize
}

/// Does `value` go left at `node`?
pub fn goes_left<T: Real>(forest: &Forest<T>, node: &Node<T>, value: T) -> bool {
    let mut value = value;
    if forest.flush_zero && value.abs() <= T::TINY {
        value = T::ZERO;
    }
    let threshold = match node.test {
        Test::Category(set) => {
            if value.is_nan() {
                return node.default_left;
            }
            return forest.sets[set as usize].goes_left(forest.category_rule.category(value.to_f64()));
        }
        Test::Threshold(threshold) => threshold,
    };
    if value.is_nan() {
        if node.missing == Missing::Nan {
            return node.default_left;
        }
        value = T::ZERO;
    }
    if node.missing == Missing::Zero && value.abs() <= T::TINY {
        return node.default_left;
    }
    match forest.compare {
        Compare::Less => value < threshold,
        Compare::LessEqual => value <= threshold,
    }
}

/// Adds every tree's leaf to `sums` (`forest.outputs` of them), in order.
pub fn add<T: Real>(forest: &Forest<T>, row: &[T], sums: &mut [T]) {
    for tree in &forest.trees {
        add_leaf(forest, tree, leaf(forest, tree, row), sums);
    }
}

/// Adds one leaf of `tree` to `sums`.
#[inline]
pub fn add_leaf<T: Real>(forest: &Forest<T>, tree: &Tree, leaf: usize, sums: &mut [T]) {
    match tree.target {
        Target::One(output) => {
            let sum = &mut sums[output as usize];
            *sum = *sum + forest.values[tree.first_value + leaf];
        }
        Target::All => {
            let start = tree.first_value + leaf * forest.outputs;
            for (sum, value) in sums.iter_mut().zip(&forest.values[start..start + forest.outputs]) {
                *sum = *sum + *value;
            }
        }
    }
}
