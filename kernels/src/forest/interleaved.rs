//! Few rows: sixteen trees are walked at once, so that the processor has sixteen independent loads in flight instead
//! of waiting for one. There is no branch on data: a leaf points at itself, and a group of trees is walked as many
//! steps as the deepest of them, which costs little because trees are grouped by depth.
//!
//! Leaves are added afterwards in the order of the file.

use super::columns::Columns;
use super::model::{Forest, Real, Target, Tree};

/// Trees walked at once.
const WIDTH: usize = 16;

/// A node in one word. Children lie side by side: the left one `ahead` places further on, the right one behind it. A
/// leaf has rank 255, which no code exceeds, and is 0 places ahead of itself.
trait Packed: Copy + Send + Sync {
    fn pack(column: usize, rank: u8, ahead: usize) -> Self;
    fn column(self) -> usize;
    fn rank(self) -> u8;
    fn ahead(self) -> usize;
}

/// Up to 256 columns, and 65,536 nodes in a tree: half the cache footprint of [`Wide`].
#[derive(Clone, Copy)]
struct Narrow(u32);

impl Packed for Narrow {
    fn pack(column: usize, rank: u8, ahead: usize) -> Self {
        Narrow(column as u32 | (rank as u32) << 8 | (ahead as u32) << 16)
    }
    #[inline(always)]
    fn column(self) -> usize {
        (self.0 & 0xff) as usize
    }
    #[inline(always)]
    fn rank(self) -> u8 {
        (self.0 >> 8) as u8
    }
    #[inline(always)]
    fn ahead(self) -> usize {
        (self.0 >> 16) as usize
    }
}

/// Up to 2^24 columns, and 2^32 nodes in a tree.
#[derive(Clone, Copy)]
struct Wide(u64);

impl Packed for Wide {
    fn pack(column: usize, rank: u8, ahead: usize) -> Self {
        Wide(column as u64 | (rank as u64) << 24 | (ahead as u64) << 32)
    }
    #[inline(always)]
    fn column(self) -> usize {
        (self.0 & 0xff_ffff) as usize
    }
    #[inline(always)]
    fn rank(self) -> u8 {
        (self.0 >> 24) as u8
    }
    #[inline(always)]
    fn ahead(self) -> usize {
        (self.0 >> 32) as usize
    }
}

#[derive(Clone, Debug)]
struct Walks<P> {
    nodes: Vec<P>,
    /// Tree -> where its nodes start.
    first: Vec<usize>,
    /// Trees, shallow ones first.
    order: Vec<u32>,
    /// Tree -> longest path.
    depths: Vec<u32>,
    /// Codes of a row.
    columns: usize,
}

impl std::fmt::Debug for Narrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "column {} > {}, {} ahead", self.column(), self.rank(), self.ahead())
    }
}
impl std::fmt::Debug for Wide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "column {} > {}, {} ahead", self.column(), self.rank(), self.ahead())
    }
}

#[derive(Clone, Debug)]
enum Layout {
    Narrow(Walks<Narrow>),
    Wide(Walks<Wide>),
}

/// A forest compiled for single rows.
#[derive(Clone, Debug)]
pub struct Interleaved<T> {
    layout: Layout,
    /// Node position -> value index: where a leaf's first value lies. Zero for internal nodes.
    value_at: Vec<u32>,
    /// Node position -> leaf value, where every leaf holds one: saves a dependent load.
    direct: Vec<T>,
}

impl<T: Real> Interleaved<T> {
    /// Compiles `forest`.
    pub fn new(forest: &Forest<T>, columns: &Columns<T>) -> Self {
        let narrow = columns.count() <= 256 && forest.trees.iter().all(|t| t.nodes + t.leaves <= 1 << 16);
        let (layout, value_at) = if narrow {
            let (walks, values) = compile(forest, columns);
            (Layout::Narrow(walks), values)
        } else {
            let (walks, values) = compile(forest, columns);
            (Layout::Wide(walks), values)
        };
        let single = forest.trees.iter().all(|t| t.target != Target::All);
        let direct = if single {
            value_at.iter().map(|&at| forest.values.get(at as usize).copied().unwrap_or(T::ZERO)).collect()
        } else {
            Vec::new()
        };
        Interleaved { layout, value_at, direct }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let nodes = match &self.layout {
            Layout::Narrow(walks) => walks.nodes.len() * 4,
            Layout::Wide(walks) => walks.nodes.len() * 8,
        };
        nodes + self.value_at.len() * 4 + self.direct.len() * size_of::<T>()
    }

    /// Where the row with these codes ends in every tree: node positions, one for each tree.
    fn positions(&self, codes: &[u8], ends: &mut Vec<u32>) {
        match &self.layout {
            Layout::Narrow(walks) => walks.run(codes, ends),
            Layout::Wide(walks) => walks.run(codes, ends),
        }
    }

    /// Adds every tree's leaf for the row with these codes to `sums`. `ends` is scratch.
    pub fn add(&self, forest: &Forest<T>, codes: &[u8], sums: &mut [T], ends: &mut Vec<u32>) {
        self.positions(codes, ends);
        if !self.direct.is_empty() {
            if let [sum] = sums {
                for &end in ends.iter() {
                    *sum = *sum + self.direct[end as usize];
                }
                return;
            }
            for (tree, &end) in forest.trees.iter().zip(ends.iter()) {
                if let Target::One(output) = tree.target {
                    let sum = &mut sums[output as usize];
                    *sum = *sum + self.direct[end as usize];
                }
            }
            return;
        }
        for (tree, &end) in forest.trees.iter().zip(ends.iter()) {
            let at = self.value_at[end as usize] as usize;
            super::scalar::add_leaf(forest, tree, (at - tree.first_value) / forest.width(tree), sums);
        }
    }

    /// The leaf of every tree for the row with these codes.
    pub fn leaves(&self, forest: &Forest<T>, codes: &[u8], leaves: &mut Vec<u32>) {
        self.positions(codes, leaves);
        for (tree, leaf) in forest.trees.iter().zip(leaves.iter_mut()) {
            let at = self.value_at[*leaf as usize] as usize;
            *leaf = ((at - tree.first_value) / forest.width(tree)) as u32;
        }
    }
}

/// Lays every tree out breadth first, children side by side.
fn compile<T: Real, P: Packed>(forest: &Forest<T>, columns: &Columns<T>) -> (Walks<P>, Vec<u32>) {
    let depths: Vec<u32> = forest.trees.iter().map(|t| forest.depth(t) as u32).collect();
    let mut order: Vec<u32> = (0..forest.trees.len() as u32).collect();
    order.sort_by_key(|&t| depths[t as usize]);
    let total: usize = forest.trees.iter().map(|t| t.nodes + t.leaves).sum();
    let mut walks =
        Walks { nodes: Vec::with_capacity(total), first: Vec::new(), order, depths, columns: columns.count() };
    let mut value_at = Vec::with_capacity(total);
    for tree in &forest.trees {
        walks.first.push(walks.nodes.len());
        lay_out(forest, columns, tree, &mut walks.nodes, &mut value_at);
    }
    (walks, value_at)
}

fn lay_out<T: Real, P: Packed>(
    forest: &Forest<T>,
    columns: &Columns<T>,
    tree: &Tree,
    out: &mut Vec<P>,
    value_at: &mut Vec<u32>,
) {
    let nodes = forest.nodes_of(tree);
    let width = forest.width(tree);
    let mut queue: Vec<i32> = vec![if nodes.is_empty() { !0 } else { 0 }];
    let mut next = 0;
    while next < queue.len() {
        let child = queue[next];
        if child < 0 {
            out.push(P::pack(0, 255, 0));
            value_at.push((tree.first_value + !child as usize * width) as u32);
        } else {
            let node = &nodes[child as usize];
            let (column, rank) = columns.locate(node);
            out.push(P::pack(column, rank, queue.len() - next));
            value_at.push(0);
            queue.push(node.left);
            queue.push(node.right);
        }
        next += 1;
    }
}

impl<P: Packed> Walks<P> {
    /// Fills `ends` with the node position that each tree ends in.
    fn run(&self, codes: &[u8], ends: &mut Vec<u32>) {
        assert!(codes.len() >= self.columns, "a code for each column");
        ends.clear();
        ends.resize(self.order.len(), 0);
        if codes.is_empty() {
            // No node anywhere: every tree is one leaf.
            for (end, first) in ends.iter_mut().zip(&self.first) {
                *end = *first as u32;
            }
            return;
        }
        let mut groups = self.order.chunks_exact(WIDTH);
        for group in &mut groups {
            self.walk::<WIDTH>(group.first_chunk().expect("an exact chunk"), codes, ends);
        }
        for tree in groups.remainder() {
            self.walk::<1>(&[*tree], codes, ends);
        }
    }

    #[inline(always)]
    fn walk<const N: usize>(&self, trees: &[u32; N], codes: &[u8], ends: &mut [u32]) {
        let mut at = trees.map(|tree| self.first[tree as usize]);
        let steps = trees.iter().map(|&tree| self.depths[tree as usize]).max().unwrap_or(0);
        for _ in 0..steps {
            for at in &mut at {
                // SAFETY: `at` is the position of a node of its tree: it starts at the root, and `ahead` leads to the
                // left child, behind which lies the right one, by `lay_out`; a leaf stays where it is. Columns were
                // counted by the `Columns` that made `codes`, whose length `run` checks.
                #[allow(unsafe_code)]
                unsafe {
                    let node = *self.nodes.get_unchecked(*at);
                    *at += node.ahead() + (*codes.get_unchecked(node.column()) > node.rank()) as usize;
                }
            }
        }
        for (tree, at) in trees.iter().zip(at) {
            ends[*tree as usize] = at as u32;
        }
    }
}
