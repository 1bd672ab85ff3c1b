//! An XGBoost model as its files have it, and its lowering to a forest of the kernels.
//!
//! Semantics (32-bit floats throughout): a numeric value goes left when it is less than the condition, a missing one
//! to the default side, a category right when the node's set holds it.

use super::frame::{Categories, Columns, Unknown};
use super::objective::{Link, Objective};
use kernels::forest::model::MAX_FEATURES;
use kernels::forest::{CategoryRule, CategorySet, Compare, Forest, Missing, Node, Target, Test, Tree};

/// What learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Learner {
    /// gbtree and dart.
    #[default]
    Trees,
    /// gblinear.
    Linear,
}

/// One tree as written: arrays of one entry for each node, leaves included.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawTree {
    pub(crate) left: Vec<i32>,
    pub(crate) right: Vec<i32>,
    pub(crate) feature: Vec<u32>,
    /// Threshold of an internal node, value of a leaf.
    pub(crate) condition: Vec<f32>,
    pub(crate) default_left: Vec<u8>,
    /// 1 for a categorical split; empty where there is none.
    pub(crate) split_type: Vec<u8>,
    pub(crate) categories: Vec<i32>,
    pub(crate) category_nodes: Vec<u32>,
    pub(crate) category_starts: Vec<u64>,
    pub(crate) category_sizes: Vec<u64>,
    /// Values in a leaf, where there are several.
    pub(crate) leaf_size: u32,
    /// Vector leaves, found by the number in the leaf's right child (3.1 on).
    pub(crate) leaf_weights: Vec<f32>,
    /// Vector leaves, found by the node's own number (up to 3.0).
    pub(crate) base_weights: Vec<f32>,
}

/// The whole model as written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Booster {
    pub(crate) version: (u32, u32),
    pub(crate) features: u32,
    pub(crate) classes: u32,
    pub(crate) targets: u32,
    pub(crate) base_score: Vec<f32>,
    /// Before 1.0 the base score was stored as a margin.
    pub(crate) base_is_margin: bool,
    /// Nobody stated a base score: the first round estimates it.
    pub(crate) estimates_base: bool,
    pub(crate) objective: String,
    pub(crate) learner: Learner,
    pub(crate) trees: Vec<RawTree>,
    /// The output each tree adds to.
    pub(crate) groups: Vec<u32>,
    pub(crate) parallel_trees: u32,
    pub(crate) iterations: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) linear: Vec<f32>,
    /// Rounds of a linear booster.
    pub(crate) linear_rounds: i64,
    pub(crate) feature_names: Vec<String>,
    pub(crate) feature_types: Vec<String>,
    /// As the attribute has it, which anybody may set to anything.
    pub(crate) best_iteration: Option<String>,
    /// By value, where the training frame had them so; empty, or one for each feature.
    pub(crate) categories: Vec<Option<Categories>>,
}

/// A linear booster: weights by feature, then the bias, each for every output.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) features: usize,
    pub(crate) outputs: usize,
    /// None before the first round.
    weights: Vec<f32>,
}

impl Linear {
    /// Adds bias and weighted features to `sums`, present features in ascending order, without fused operations.
    pub(crate) fn add(&self, row: &[f32], sums: &mut [f32]) {
        if self.weights.is_empty() {
            return;
        }
        let bias = &self.weights[self.features * self.outputs..];
        for (sum, bias) in sums.iter_mut().zip(bias) {
            *sum += *bias;
        }
        for (value, weights) in row.iter().zip(self.weights.chunks_exact(self.outputs)) {
            if !value.is_nan() {
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum += value * weight;
                }
            }
        }
    }
    pub(crate) fn bytes(&self) -> usize {
        self.weights.len() * 4
    }
}

/// What computes the margins.
#[derive(Debug)]
pub(crate) enum Body {
    Forest(Forest<f32>),
    Linear(Linear),
}

/// A booster ready to be compiled.
#[derive(Debug)]
pub(crate) struct Lowered {
    pub(crate) body: Body,
    /// The margin every row starts from, one for each output.
    pub(crate) base: Vec<f32>,
    pub(crate) link: Link,
}

impl Booster {
    /// Number of sums.
    pub(crate) fn outputs(&self) -> usize {
        self.classes.max(self.targets).max(1) as usize
    }

    /// The columns of a row, which the rest of the model can do without.
    pub(crate) fn take_columns(&mut self) -> Result<Columns, String> {
        let count = self.features as usize;
        let (names, categories) = (std::mem::take(&mut self.feature_names), std::mem::take(&mut self.categories));
        for (what, length) in [("feature_names", names.len()), ("cats", categories.len())] {
            if length != 0 && length != count {
                return Err(format!("{what} has {length} entries for {count} features"));
            }
        }
        Ok(Columns { count, names, categories, unplaced: Vec::new(), unknown: Unknown::Refused })
    }

    /// Keeps the trees up to and with the best iteration, as early stopping's users of the scikit-learn API see it.
    pub(crate) fn cut_at_best_iteration(&mut self) -> Result<(), String> {
        let Some(text) = &self.best_iteration else { return Ok(()) };
        let best: u32 = text
            .trim()
            .parse()
            .map_err(|_| format!("use_best_iteration is set, but the attribute best_iteration is '{text}'"))?;
        let kept = match self.iterations.get(best as usize + 1) {
            Some(&end) => end as usize,
            None if self.iterations.is_empty() => {
                let vector = self.trees.first().is_some_and(|t| t.leaf_size > 1);
                let per_round = self.parallel_trees.max(1) as usize * if vector { 1 } else { self.outputs() };
                (best as usize + 1).saturating_mul(per_round)
            }
            None => return Err(format!("best_iteration is {best}, but there are fewer iterations")),
        };
        self.trees.truncate(kept);
        self.groups.truncate(kept);
        self.weights.truncate(kept);
        Ok(())
    }

    /// Checks the arrays against each other and lowers them.
    pub(crate) fn lower(self) -> Result<Lowered, String> {
        if self.features == 0 {
            return Err("num_feature is 0: the model was saved before it was trained".into());
        }
        let (name, objective) = Objective::parse(&self.objective)?;
        let outputs = self.outputs();
        if outputs > MAX_OUTPUTS {
            return Err(format!("{outputs} outputs; at most {MAX_OUTPUTS} are supported"));
        }
        let mut base = match self.base_score.len() {
            0 => vec![0.5; outputs],
            1 => vec![self.base_score[0]; outputs],
            n if n == outputs => self.base_score.clone(),
            n => return Err(format!("base_score has {n} values for {outputs} outputs")),
        };
        if !self.base_is_margin && !self.awaits_base() {
            if objective == Objective::Logistic
                && let Some(score) = base.iter().find(|score| !(0.0..=1.0).contains(*score))
            {
                return Err(format!("base_score is {score}; a probability is expected for objective '{name}'"));
            }
            objective.margins(&mut base);
        }
        let link = objective.link(name, outputs);
        let body = match self.learner {
            Learner::Linear => {
                // The library's linear booster adds the first base score to every output.
                let first = base[0];
                base.fill(first);
                Body::Linear(self.lower_linear(outputs)?)
            }
            Learner::Trees => Body::Forest(self.lower_trees(outputs)?),
        };
        Ok(Lowered { body, base, link })
    }

    /// Before the first round, a base score that it was to estimate is a margin as it stands (from 3.1 on).
    fn awaits_base(&self) -> bool {
        let untrained = match self.learner {
            Learner::Trees => self.trees.is_empty() && self.iterations.len() <= 1,
            Learner::Linear => self.linear_rounds == 0,
        };
        // A file that does not say its version is read as one of today.
        untrained && self.estimates_base && (self.version >= (3, 1) || self.version == (0, 0))
    }

    fn lower_linear(self, outputs: usize) -> Result<Linear, String> {
        let features = self.features as usize;
        if features > MAX_FEATURES {
            return Err(format!("{features} features; 1 to {MAX_FEATURES} are supported"));
        }
        let wanted = features.checked_add(1).and_then(|n| n.checked_mul(outputs));
        if !self.linear.is_empty() && wanted != Some(self.linear.len()) {
            return Err(format!("{} weights for {features} features and {outputs} outputs", self.linear.len()));
        }
        Ok(Linear { features, outputs, weights: self.linear })
    }

    fn lower_trees(self, outputs: usize) -> Result<Forest<f32>, String> {
        if self.groups.len() != self.trees.len() {
            return Err(format!("tree_info has {} entries for {} trees", self.groups.len(), self.trees.len()));
        }
        if !self.weights.is_empty() && self.weights.len() != self.trees.len() {
            return Err(format!("weight_drop has {} entries for {} trees", self.weights.len(), self.trees.len()));
        }
        let mut forest = Forest {
            features: self.features as usize,
            outputs,
            compare: Compare::Less,
            category_rule: CategoryRule::NonNegative,
            flush_zero: false,
            trees: Vec::with_capacity(self.trees.len()),
            nodes: Vec::new(),
            values: Vec::new(),
            sets: Vec::new(),
        };
        for (index, tree) in self.trees.iter().enumerate() {
            let weight = self.weights.get(index).copied().unwrap_or(1.0);
            tree.lower(self.groups[index], weight, &mut forest).map_err(|what| format!("tree {index}: {what}"))?;
        }
        forest.checked().map_err(|invalid| invalid.to_string())
    }
}

/// More sums than this are no model.
const MAX_OUTPUTS: usize = 1 << 16;

impl RawTree {
    fn check_lengths(&self) -> Result<usize, String> {
        let nodes = self.left.len();
        let lengths = [
            ("right_children", self.right.len()),
            ("split_indices", self.feature.len()),
            ("split_conditions", self.condition.len()),
            ("default_left", self.default_left.len()),
        ];
        for (name, length) in lengths {
            if length != nodes {
                return Err(format!("{name} has {length} entries, left_children {nodes}"));
            }
        }
        if !self.split_type.is_empty() && self.split_type.len() != nodes {
            return Err(format!("split_type has {} entries, left_children {nodes}", self.split_type.len()));
        }
        if nodes == 0 {
            return Err("it has no nodes".into());
        }
        Ok(nodes)
    }

    /// The category set of every categorical node, as an index into `sets`.
    fn lower_sets(&self, sets: &mut Vec<CategorySet>) -> Result<Vec<(u32, u32)>, String> {
        let count = self.category_nodes.len();
        if self.category_starts.len() != count || self.category_sizes.len() != count {
            return Err("categories_nodes, categories_segments and categories_sizes differ in length".into());
        }
        let mut by_node = Vec::with_capacity(count);
        // Sets lie apart in a file of the library; if they shared members, a small file could make large sets.
        let mut left = self.categories.len();
        for i in 0..count {
            let (start, size) = (self.category_starts[i] as usize, self.category_sizes[i] as usize);
            let members = start.checked_add(size).and_then(|end| self.categories.get(start..end));
            let members = members.filter(|_| size <= left);
            let members = members.ok_or_else(|| format!("categories {start}+{size} do not exist, or twice"))?;
            left -= size;
            if let Some(member) = members.iter().find(|member| !(0..MAX_CATEGORY).contains(*member)) {
                return Err(format!("category {member}; 0 to {} are possible", MAX_CATEGORY - 1));
            }
            by_node.push((self.category_nodes[i], sets.len() as u32));
            sets.push(CategorySet::from_members(members.iter().map(|&member| member as u32).collect(), false));
        }
        by_node.sort_unstable();
        Ok(by_node)
    }

    /// Appends this tree to `forest`, its nodes renumbered in the order in which a walk meets them.
    fn lower(&self, group: u32, weight: f32, forest: &mut Forest<f32>) -> Result<(), String> {
        let total = self.check_lengths()?;
        let sets = self.lower_sets(&mut forest.sets)?;
        let vector = self.leaf_size > 1;
        if vector && self.leaf_size as usize != forest.outputs {
            return Err(format!("its leaves hold {} values for {} outputs", self.leaf_size, forest.outputs));
        }
        let (first_node, first_value) = (forest.nodes.len(), forest.values.len());
        // (node as numbered in the file, parent's place in `forest.nodes`, is it the right child?)
        let mut stack: Vec<(usize, Option<(usize, bool)>)> = vec![(0, None)];
        let mut leaves = 0i32;
        let mut met = vec![false; total];
        while let Some((number, parent)) = stack.pop() {
            match met.get_mut(number) {
                Some(met) if !*met => *met = true,
                Some(_) => return Err(format!("node {number} is met twice")),
                None => return Err(format!("node {number} does not exist")),
            }
            let place = if self.left[number] == -1 {
                self.push_leaf(number, weight, vector, forest)?;
                leaves += 1;
                // Leaves that shared their values would let a small file make a large forest.
                if vector && forest.values.len() - first_value > self.leaf_weights.len().max(self.base_weights.len()) {
                    return Err(format!("leaf {number} has the values of another one"));
                }
                !(leaves - 1)
            } else {
                forest.nodes.push(self.node(number, &sets)?);
                let place = forest.nodes.len() - 1;
                for (child, right) in [(self.right[number], true), (self.left[number], false)] {
                    let child = usize::try_from(child).map_err(|_| format!("node {number} has child {child}"))?;
                    stack.push((child, Some((place, right))));
                }
                (place - first_node) as i32
            };
            if let Some((parent, right)) = parent {
                let node = &mut forest.nodes[parent];
                *(if right { &mut node.right } else { &mut node.left }) = place;
            }
        }
        forest.trees.push(Tree {
            first_node,
            nodes: forest.nodes.len() - first_node,
            first_value,
            leaves: leaves as usize,
            target: if vector { Target::All } else { Target::One(group) },
        });
        Ok(())
    }

    fn node(&self, number: usize, sets: &[(u32, u32)]) -> Result<Node<f32>, String> {
        let categorical = self.split_type.get(number).copied().unwrap_or(0) == 1;
        let test = if categorical {
            let at = sets.binary_search_by_key(&(number as u32), |(node, _)| *node);
            Test::Category(at.map(|at| sets[at].1).map_err(|_| format!("node {number} has no categories"))?)
        } else {
            Test::Threshold(self.condition[number])
        };
        Ok(Node {
            feature: self.feature[number],
            test,
            left: 0,
            right: 0,
            missing: Missing::Nan,
            default_left: self.default_left[number] != 0,
        })
    }

    /// A weight of 1 multiplies exactly, so that gbtree needs no case of its own.
    fn push_leaf(&self, number: usize, weight: f32, vector: bool, forest: &mut Forest<f32>) -> Result<(), String> {
        if !vector {
            forest.values.push(self.condition[number] * weight);
            return Ok(());
        }
        let size = self.leaf_size as usize;
        let (weights, index) = if self.leaf_weights.is_empty() {
            (&self.base_weights, number)
        } else {
            let leaf = usize::try_from(self.right[number]);
            (&self.leaf_weights, leaf.map_err(|_| format!("leaf {number} has no values"))?)
        };
        let start = index.checked_mul(size);
        let values = start.and_then(|start| weights.get(start..start + size));
        let values = values.ok_or_else(|| format!("the values of leaf {number} do not exist"))?;
        forest.values.extend(values.iter().map(|value| value * weight));
        Ok(())
    }
}

/// From here on a float cannot count categories one by one.
const MAX_CATEGORY: i32 = 1 << 24;
