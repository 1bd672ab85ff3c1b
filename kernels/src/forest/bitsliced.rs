//! Many rows: a tree's every test is made against a block of 64 rows at once (one compare of 64 bytes), then the rows
//! are sent down the tree as masks. No address depends on data, so nothing is mispredicted and everything prefetches.
//!
//! ```text
//! tests:  g[i]     = codes[column_i] > rank_i                 64 rows a compare; nodes are independent
//! masks:  m[root]  = all rows
//!         right    = m[i] & g[i]     left = m[i] & !g[i]       node i's children have slots 2i+1 and 2i+2
//!         leaf     += delta_i where right                     delta = leaves of the left subtree
//! add:    sums[row] += values[leaf[row]]
//! ```
//!
//! The cost of a tree grows with its nodes, not with its depth; trees that have many nodes for their depth, or more
//! than 256 leaves, are walked instead, 16 rows side by side.
//!
//! The kernel in this file is written over arrays of bytes, which compilers vectorise for whatever the target has; on
//! x86-64 it is compiled for AVX2 too. The AVX-512 one is in `avx512.rs`.

use super::columns::Columns;
use super::interleaved::Interleaved;
use super::model::{Forest, Real, Target, Tree};
use super::search::ROWS;

/// Leaves that a byte can number.
const MAX_LEAVES: usize = 256;

/// Values that a kernel may read from a tree's first one on, whether or not they are the tree's.
const READ_BEHIND: usize = 64;

/// A node of the stream; byte values are repeated four times so that they broadcast as a word.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct BlockNode {
    pub(super) rank4: u32,
    pub(super) delta4: u32,
    pub(super) column: u16,
    /// Where this node's own mask is.
    pub(super) slot: u16,
}

/// How a tree is evaluated.
#[derive(Clone, Copy, Debug)]
pub(super) enum Method {
    /// Its nodes in [`Blocks::nodes`].
    Masks { first: usize, nodes: usize },
    /// This tree of the forest, by [`Walks`].
    Walk { tree: usize },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BlockTree {
    pub(super) method: Method,
    pub(super) first_value: usize,
    pub(super) leaves: usize,
    pub(super) target: Target,
}

/// A forest compiled for blocks of 64 rows. Leaves are numbered from left to right.
#[derive(Clone, Debug)]
pub struct Blocks<T> {
    pub(super) trees: Vec<BlockTree>,
    pub(super) nodes: Vec<BlockNode>,
    /// Leaf values of all trees, and [`READ_BEHIND`] more.
    pub(super) values: Vec<T>,
    pub(super) outputs: usize,
}

/// Where a kernel keeps masks between the two phases.
#[derive(Debug)]
pub struct Masks {
    pub(super) tests: Vec<u64>,
    pub(super) masks: Vec<u64>,
    bytes: Vec<[u8; ROWS]>,
}

impl Default for Masks {
    fn default() -> Self {
        Masks { tests: vec![0; MAX_LEAVES], masks: vec![0; 2 * MAX_LEAVES], bytes: vec![[0; ROWS]; 2 * MAX_LEAVES] }
    }
}

/// The trees that are walked.
#[derive(Clone, Copy, Debug)]
pub struct Walks<'a, T> {
    /// The forest.
    pub forest: &'a Forest<T>,
    /// The same, compiled.
    pub interleaved: &'a Interleaved<T>,
}

impl<T: Real> Walks<'_, T> {
    /// Adds one tree for one block.
    #[inline(always)]
    pub(super) fn add(&self, tree: usize, codes: &[u8], sums: &mut [T]) {
        self.interleaved.add_block(self.forest, tree, codes, sums);
    }
}

/// Adds all trees for one block: codes by column (`column * 64 + row`), sums by output (`output * 64 + row`).
pub type BlockKernel<T> = unsafe fn(&Blocks<T>, Walks<'_, T>, &[u8], &mut [T], &mut Masks);

impl<T: Real> Blocks<T> {
    /// Compiles `forest`.
    pub fn new(forest: &Forest<T>, columns: &Columns<T>) -> Self {
        let mut blocks = Blocks {
            trees: Vec::with_capacity(forest.trees.len()),
            nodes: Vec::new(),
            values: Vec::new(),
            outputs: forest.outputs,
        };
        for (number, tree) in forest.trees.iter().enumerate() {
            let width = forest.width(tree);
            let order = left_to_right(forest, tree);
            let first_value = blocks.values.len();
            for &leaf in &order {
                let at = tree.first_value + leaf as usize * width;
                blocks.values.extend_from_slice(&forest.values[at..at + width]);
            }
            let depth = forest.depth(tree);
            let masks = tree.leaves <= MAX_LEAVES
                && columns.count() <= 1 << 16
                && tree.nodes <= (T::nodes_per_level() * depth).max(64);
            let method = if masks { blocks.add_masks(forest, columns, tree) } else { Method::Walk { tree: number } };
            blocks.trees.push(BlockTree { method, first_value, leaves: tree.leaves, target: tree.target });
        }
        blocks.values.resize(blocks.values.len() + READ_BEHIND, T::ZERO);
        blocks
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.nodes.len() * size_of::<BlockNode>() + self.values.len() * size_of::<T>()
    }

    fn add_masks(&mut self, forest: &Forest<T>, columns: &Columns<T>, tree: &Tree) -> Method {
        let nodes = forest.nodes_of(tree);
        let below = leaves_below(forest, tree);
        let first = self.nodes.len();
        // (node, slot of its mask), breadth first; node number i of this list owns slots 2i+1 and 2i+2.
        let mut queue: Vec<(usize, usize)> = if nodes.is_empty() { vec![] } else { vec![(0, 0)] };
        let mut next = 0;
        while next < queue.len() {
            let (index, slot) = queue[next];
            let node = &nodes[index];
            let (column, rank) = columns.locate(node);
            let delta = if node.left < 0 { 1 } else { below[node.left as usize] } as u8;
            self.nodes.push(BlockNode {
                rank4: u32::from_ne_bytes([rank; 4]),
                delta4: u32::from_ne_bytes([delta; 4]),
                column: column as u16,
                slot: slot as u16,
            });
            for (child, child_slot) in [(node.left, 2 * next + 1), (node.right, 2 * next + 2)] {
                if child >= 0 {
                    queue.push((child as usize, child_slot));
                }
            }
            next += 1;
        }
        Method::Masks { first, nodes: nodes.len() }
    }

    /// Adds the values of 64 leaves.
    pub(super) fn add(&self, tree: &BlockTree, leaves: &[u32; ROWS], sums: &mut [T]) {
        match tree.target {
            Target::One(output) => {
                let sums = &mut sums[output as usize * ROWS..(output as usize + 1) * ROWS];
                for (sum, leaf) in sums.iter_mut().zip(leaves) {
                    *sum = *sum + self.values[tree.first_value + *leaf as usize];
                }
            }
            Target::All => {
                for (row, leaf) in leaves.iter().enumerate() {
                    let start = tree.first_value + *leaf as usize * self.outputs;
                    for output in 0..self.outputs {
                        let sum = &mut sums[output * ROWS + row];
                        *sum = *sum + self.values[start + output];
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn run(&self, walks: Walks<'_, T>, codes: &[u8], sums: &mut [T], masks: &mut Masks) {
        for tree in &self.trees {
            match tree.method {
                Method::Walk { tree } => walks.add(tree, codes, sums),
                Method::Masks { first, nodes } => {
                    let leaves = byte_masks(&self.nodes[first..first + nodes], codes, &mut masks.bytes);
                    self.add(tree, &leaves, sums);
                }
            }
        }
    }
}

/// The two phases over byte masks (0 or 255 for each row).
#[inline(always)]
fn byte_masks(nodes: &[BlockNode], codes: &[u8], masks: &mut [[u8; ROWS]]) -> [u32; ROWS] {
    let mut index = [0u8; ROWS];
    masks[0] = [255; ROWS];
    for (number, node) in nodes.iter().enumerate() {
        let column = node.column as usize * ROWS;
        let column: &[u8; ROWS] = codes[column..].first_chunk().expect("a whole column of codes");
        let (rank, delta) = (node.rank4 as u8, node.delta4 as u8);
        let mask = masks[node.slot as usize];
        let (mut left, mut right) = ([0u8; ROWS], [0u8; ROWS]);
        for row in 0..ROWS {
            let test = if column[row] > rank { 255 } else { 0 };
            right[row] = mask[row] & test;
            left[row] = mask[row] & !test;
            index[row] = index[row].wrapping_add(right[row] & delta);
        }
        masks[2 * number + 1] = left;
        masks[2 * number + 2] = right;
    }
    index.map(u32::from)
}

/// The kernel for any machine.
pub(super) fn portable<T: Real>(
    blocks: &Blocks<T>,
    walks: Walks<'_, T>,
    codes: &[u8],
    sums: &mut [T],
    masks: &mut Masks,
) {
    blocks.run(walks, codes, sums, masks);
}

/// The same, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(super) fn avx2<T: Real>(blocks: &Blocks<T>, walks: Walks<'_, T>, codes: &[u8], sums: &mut [T], masks: &mut Masks) {
    blocks.run(walks, codes, sums, masks);
}

/// Leaves of `tree` in left-to-right order.
fn left_to_right<T: Real>(forest: &Forest<T>, tree: &Tree) -> Vec<u32> {
    let nodes = forest.nodes_of(tree);
    let mut order = Vec::with_capacity(tree.leaves);
    let mut stack = vec![if nodes.is_empty() { !0 } else { 0 }];
    while let Some(child) = stack.pop() {
        if child < 0 {
            order.push(!child as u32);
        } else {
            let node = &nodes[child as usize];
            stack.push(node.right);
            stack.push(node.left);
        }
    }
    order
}

/// Leaves below each node of `tree`.
fn leaves_below<T: Real>(forest: &Forest<T>, tree: &Tree) -> Vec<usize> {
    let nodes = forest.nodes_of(tree);
    let mut below = vec![0usize; nodes.len()];
    for (index, node) in nodes.iter().enumerate().rev() {
        below[index] = [node.left, node.right].into_iter().map(|c| if c < 0 { 1 } else { below[c as usize] }).sum();
    }
    below
}
