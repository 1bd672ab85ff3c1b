//! The description of a forest that every kernel compiles from. It is checked once, in [`Forest::checked`]; kernels rely
//! on what is checked there (indices in range, no cycle) and use unchecked indexing.
//!
//! It is not a file format: readers lower XGBoost, LightGBM and others to it.

use std::fmt;

/// The floating-point type of inputs, thresholds, leaf values and sums: `f32` (XGBoost) or `f64` (LightGBM).
pub trait Real:
    Copy + PartialOrd + Send + Sync + fmt::Debug + std::ops::Add<Output = Self> + std::ops::Sub<Output = Self> + 'static
{
    /// Zero.
    const ZERO: Self;
    /// Positive infinity, used as padding behind the last threshold.
    const INFINITY: Self;
    /// `1e-35` as a 32-bit float: values of at most this magnitude are zero under [`Missing::Zero`] and `flush_zero`.
    const TINY: Self;
    /// Is this not a number?
    fn is_nan(self) -> bool;
    /// Magnitude.
    fn abs(self) -> Self;
    /// Widened to `f64`, exactly.
    fn to_f64(self) -> f64;
    /// Rounded from `f64`.
    fn from_f64(value: f64) -> Self;
    /// The block kernel for this type on AVX-512, where the machine has it.
    #[doc(hidden)]
    fn block_kernel() -> Option<super::bitsliced::BlockKernel<Self>>;
    /// A tree with more nodes than this for each level is walked in blocks, too: measured where both are as fast.
    #[doc(hidden)]
    fn nodes_per_level() -> usize {
        if Self::block_kernel().is_some() { 40 } else { 16 }
    }
    /// The least value that is greater.
    fn next_up(self) -> Self;
    /// The greatest value that is less.
    fn next_down(self) -> Self;
    /// The vectorised search of 64 values of one feature, where the machine has one.
    #[doc(hidden)]
    fn search_kernel() -> Option<super::search::SearchKernel<Self>>;
    /// The vectorised encoding of one row, where the machine has one.
    #[doc(hidden)]
    fn row_kernel() -> Option<super::columns::RowKernel<Self>>;
}

macro_rules! real {
    ($t:ty, $block:ident, $search:ident, $row:ident) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const INFINITY: Self = <$t>::INFINITY;
            const TINY: Self = 1e-35f32 as $t;
            #[inline(always)]
            fn is_nan(self) -> bool {
                <$t>::is_nan(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn next_up(self) -> Self {
                <$t>::next_up(self)
            }
            #[inline(always)]
            fn next_down(self) -> Self {
                <$t>::next_down(self)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            fn block_kernel() -> Option<super::bitsliced::BlockKernel<Self>> {
                #[cfg(target_arch = "x86_64")]
                if super::avx512::available() {
                    return Some(super::avx512::$block);
                }
                None
            }
            fn search_kernel() -> Option<super::search::SearchKernel<Self>> {
                #[cfg(target_arch = "x86_64")]
                if super::avx512::available() {
                    return Some(super::avx512::$search);
                }
                #[cfg(target_arch = "x86_64")]
                if super::avx2::available() {
                    return Some(super::avx2::$search);
                }
                None
            }
            fn row_kernel() -> Option<super::columns::RowKernel<Self>> {
                #[cfg(target_arch = "x86_64")]
                if super::avx512::available() {
                    return Some(super::avx512::$row);
                }
                #[cfg(target_arch = "x86_64")]
                if super::avx2::available() {
                    return Some(super::avx2::$row);
                }
                None
            }
        }
    };
}
real!(f32, block_f32, search_f32, row_f32);
real!(f64, block_f64, search_f64, row_f64);

/// When a numeric test goes left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// `x < threshold` (XGBoost).
    Less,
    /// `x <= threshold` (LightGBM, scikit-learn).
    LessEqual,
}

/// Which values a node sends to its default side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Missing {
    /// Not-a-number is missing.
    Nan,
    /// Zero (up to [`Real::TINY`]) and not-a-number are missing.
    Zero,
    /// Nothing is missing; not-a-number is read as zero.
    Never,
}

/// How a number becomes a category.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CategoryRule {
    /// XGBoost: negative numbers and those from 2^24 are no category; the rest is truncated.
    NonNegative,
    /// LightGBM: truncated towards zero first (so -0.5 is category 0); outside `0..2^31` is no category.
    Truncate,
}

impl CategoryRule {
    /// The category of `value`, or `None` where it is none (not-a-number included).
    #[inline]
    pub fn category(self, value: f64) -> Option<u32> {
        match self {
            CategoryRule::NonNegative => (0.0..16_777_216.0).contains(&value).then_some(value as u32),
            CategoryRule::Truncate => (value > -1.0 && value < 2_147_483_648.0).then_some(value as u32),
        }
    }
}

/// A set of categories, and the side its members go to; all others go to the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CategorySet {
    members: Members,
    members_left: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Members {
    /// Bit `c % 32` of word `c / 32` is set when category `c` is a member.
    Bits(Vec<u32>),
    /// Sorted, where that takes less room: a few members may have great numbers.
    Sorted(Vec<u32>),
}

impl CategorySet {
    /// Bits, 32 to a word; members go left (LightGBM) or right (XGBoost).
    pub fn from_words(words: Vec<u32>, members_left: bool) -> Self {
        CategorySet { members: Members::Bits(words), members_left }
    }

    /// Categories in any order; members go left (LightGBM) or right (XGBoost).
    pub fn from_members(mut members: Vec<u32>, members_left: bool) -> Self {
        members.sort_unstable();
        members.dedup();
        let words = members.last().map_or(0, |&last| last as usize / 32 + 1);
        if words > members.len() {
            return CategorySet { members: Members::Sorted(members), members_left };
        }
        let mut bits = vec![0; words];
        for member in members {
            bits[member as usize / 32] |= 1 << (member % 32);
        }
        CategorySet { members: Members::Bits(bits), members_left }
    }

    /// Does `category` go left?
    #[inline]
    pub fn goes_left(&self, category: Option<u32>) -> bool {
        let member = category.is_some_and(|c| match &self.members {
            Members::Bits(words) => words.get(c as usize / 32).is_some_and(|word| (word >> (c % 32)) & 1 == 1),
            Members::Sorted(members) => members.binary_search(&c).is_ok(),
        });
        member == self.members_left
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let (Members::Bits(numbers) | Members::Sorted(numbers)) = &self.members;
        numbers.len() * size_of::<u32>()
    }
}

/// What an internal node asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Test<T> {
    /// Compare with a threshold, as [`Compare`] says.
    Threshold(T),
    /// Look up in the category set of this index.
    Category(u32),
}

/// An internal node. A child `>= 0` is the node of that index in the same tree and greater than this one's; a child
/// `< 0` is leaf `!child` of the tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node<T> {
    /// Input column.
    pub feature: u32,
    /// What is asked of it.
    pub test: Test<T>,
    /// Child when the answer is yes.
    pub left: i32,
    /// Child when the answer is no.
    pub right: i32,
    /// Which values skip the question.
    pub missing: Missing,
    /// Where they go.
    pub default_left: bool,
}

/// What a tree's leaf adds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One output.
    One(u32),
    /// Every output: a leaf holds one value for each.
    All,
}

/// One tree: a range of nodes, and a range of leaf values (`leaves * width` of them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// First node in [`Forest::nodes`].
    pub first_node: usize,
    /// Number of internal nodes; 0 is a constant tree.
    pub nodes: usize,
    /// First value in [`Forest::values`].
    pub first_value: usize,
    /// Number of leaves, always `nodes + 1`.
    pub leaves: usize,
    /// Which outputs the leaves add to.
    pub target: Target,
}

/// A validated forest.
#[derive(Clone, Debug)]
pub struct Forest<T> {
    /// Number of input columns.
    pub features: usize,
    /// Number of sums.
    pub outputs: usize,
    /// The numeric test.
    pub compare: Compare,
    /// The categorical test.
    pub category_rule: CategoryRule,
    /// Are inputs of magnitude up to [`Real::TINY`] read as zero?
    pub flush_zero: bool,
    /// Trees in the order in which their leaves are added.
    pub trees: Vec<Tree>,
    /// Nodes of all trees, a tree's nodes together, its root first.
    pub nodes: Vec<Node<T>>,
    /// Leaf values of all trees.
    pub values: Vec<T>,
    /// Category sets, referred to by index.
    pub sets: Vec<CategorySet>,
}

/// Why a description is no forest: which tree, which node, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Invalid {}

impl<T: Real> Forest<T> {
    /// Checks everything that the kernels rely on.
    ///
    /// # Errors
    /// Names the first tree and node that is wrong.
    pub fn checked(self) -> Result<Self, Invalid> {
        if self.features == 0 || self.features > MAX_FEATURES {
            return Err(Invalid(format!("{} features; 1 to {MAX_FEATURES} are supported", self.features)));
        }
        if self.outputs == 0 {
            return Err(Invalid("no outputs".into()));
        }
        let columns = self.most_columns();
        if columns > MAX_COLUMNS {
            return Err(Invalid(format!("{columns} different tests; {MAX_COLUMNS} are supported")));
        }
        for (index, tree) in self.trees.iter().enumerate() {
            self.check_tree(tree).map_err(|what| Invalid(format!("tree {index}: {what}")))?;
        }
        Ok(self)
    }

    /// At least as many columns of codes as kernels make of this forest: of a feature's thresholds one for every 255, for
    /// each of six ways with what is missing; of a set of categories one. No test makes more than one.
    fn most_columns(&self) -> usize {
        if self.nodes.len() <= MAX_COLUMNS {
            return self.nodes.len();
        }
        let (mut thresholds, mut sets) = (vec![0usize; self.features], 0);
        for node in &self.nodes {
            match (node.test, thresholds.get_mut(node.feature as usize)) {
                (Test::Threshold(_), Some(count)) => *count += 1,
                _ => sets += 1,
            }
        }
        sets + thresholds.into_iter().map(|count| 6 * count.div_ceil(255)).sum::<usize>()
    }

    fn check_tree(&self, tree: &Tree) -> Result<(), String> {
        let nodes = self
            .nodes
            .get(tree.first_node..tree.first_node.saturating_add(tree.nodes))
            .ok_or("its nodes lie outside the node list")?;
        let width = self.width(tree);
        let values = tree.leaves.checked_mul(width).ok_or("too many leaf values")?;
        if tree.first_value.checked_add(values).is_none_or(|end| end > self.values.len()) {
            return Err("its leaf values lie outside the value list".into());
        }
        if tree.leaves != tree.nodes + 1 {
            return Err(format!("{} leaves for {} internal nodes", tree.leaves, tree.nodes));
        }
        if let Target::One(output) = tree.target
            && output as usize >= self.outputs
        {
            return Err(format!("adds to output {output} of {}", self.outputs));
        }
        let mut node_seen = vec![false; tree.nodes];
        let mut leaf_seen = vec![false; tree.leaves];
        for (index, node) in nodes.iter().enumerate() {
            self.check_node(node).map_err(|what| format!("node {index}: {what}"))?;
            for child in [node.left, node.right] {
                let (seen, at) = if child < 0 {
                    (&mut leaf_seen, !child as usize)
                } else if child as usize > index {
                    (&mut node_seen, child as usize)
                } else {
                    return Err(format!("node {index}: child {child} does not come after its parent"));
                };
                match seen.get_mut(at) {
                    Some(seen) if !*seen => *seen = true,
                    Some(_) => return Err(format!("node {index}: child {child} has two parents")),
                    None => return Err(format!("node {index}: child {child} does not exist")),
                }
            }
        }
        Ok(())
    }

    fn check_node(&self, node: &Node<T>) -> Result<(), String> {
        if node.feature as usize >= self.features {
            return Err(format!("tests feature {} of {}", node.feature, self.features));
        }
        match node.test {
            Test::Threshold(t) if t.is_nan() => Err("threshold is not a number".into()),
            Test::Category(set) if set as usize >= self.sets.len() => Err(format!("names category set {set}")),
            _ => Ok(()),
        }
    }

    /// Leaf values per leaf of `tree`.
    #[inline]
    pub fn width(&self, tree: &Tree) -> usize {
        match tree.target {
            Target::One(_) => 1,
            Target::All => self.outputs,
        }
    }

    /// The nodes of `tree`.
    #[inline]
    pub fn nodes_of(&self, tree: &Tree) -> &[Node<T>] {
        &self.nodes[tree.first_node..tree.first_node + tree.nodes]
    }

    /// The longest path of `tree`, in nodes; 0 for a constant tree.
    pub fn depth(&self, tree: &Tree) -> usize {
        let nodes = self.nodes_of(tree);
        let mut depths = vec![1usize; nodes.len()];
        // Children come after their parents, so one pass suffices.
        for (index, node) in nodes.iter().enumerate() {
            for child in [node.left, node.right] {
                if child >= 0 {
                    depths[child as usize] = depths[index] + 1;
                }
            }
        }
        depths.into_iter().max().unwrap_or(0)
    }
}

/// Column numbers have to fit the kernels' packed nodes.
const MAX_COLUMNS: usize = 1 << 24;
/// Wider than what is trained in practice; a row of so many is 64 MiB.
pub const MAX_FEATURES: usize = 1 << 24;
