//! Few rows: sixteen trees are walked at once, so that the processor has sixteen independent loads in flight instead
//! of waiting for one. There is no branch on data: a leaf points at itself, and a group of trees is walked as many
//! steps as the deepest of them, which costs little because trees are grouped by depth.
//!
//! Leaves are added afterwards in the order of the file.

use super::columns::Columns;
use super::model::{Forest, Real, Target, Tree};
use super::search::ROWS;

/// Trees walked at once.
const WIDTH: usize = 16;

/// A node in one word. Children lie side by side: the right one `ahead` places further on, the left one behind it, and a
/// row goes left where its code is less than `limit`. A leaf has limit 0, which no code is below, and is 0 places ahead
/// of itself. So a step is two loads, one compare, and an addition that takes the compare's carry.
trait Packed: Copy + Send + Sync {
    fn pack(column: usize, limit: u8, ahead: usize) -> Self;
    fn column(self) -> usize;
    fn limit(self) -> u8;
    fn ahead(self) -> u32;
}

/// Up to 256 columns, and 65,536 nodes in a tree: half the cache footprint of [`Wide`].
#[derive(Clone, Copy)]
struct Narrow(u32);

impl Packed for Narrow {
    fn pack(column: usize, limit: u8, ahead: usize) -> Self {
        Narrow(limit as u32 | (column as u32) << 8 | (ahead as u32) << 16)
    }
    #[inline(always)]
    fn column(self) -> usize {
        (self.0 >> 8 & 0xff) as usize
    }
    #[inline(always)]
    fn limit(self) -> u8 {
        self.0 as u8
    }
    #[inline(always)]
    fn ahead(self) -> u32 {
        self.0 >> 16
    }
}

/// Up to 2^24 columns, and 2^32 nodes in a tree.
#[derive(Clone, Copy)]
struct Wide(u64);

impl Packed for Wide {
    fn pack(column: usize, limit: u8, ahead: usize) -> Self {
        Wide(limit as u64 | (column as u64) << 8 | (ahead as u64) << 32)
    }
    #[inline(always)]
    fn column(self) -> usize {
        (self.0 >> 8 & 0xff_ffff) as usize
    }
    #[inline(always)]
    fn limit(self) -> u8 {
        self.0 as u8
    }
    #[inline(always)]
    fn ahead(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

#[derive(Clone, Debug)]
struct Walks<P> {
    nodes: Vec<P>,
    /// Trees, shallow ones first.
    order: Vec<u32>,
    /// Where each of them starts, and zeros until there are whole groups.
    starts: Vec<u32>,
    /// Steps of each group.
    steps: Vec<u32>,
    /// Tree -> where its nodes start, and its longest path.
    trees: Vec<(u32, u32)>,
    /// Codes of a row.
    columns: usize,
}

impl std::fmt::Debug for Narrow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "column {} < {}, {} ahead", self.column(), self.limit(), self.ahead())
    }
}
impl std::fmt::Debug for Wide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "column {} < {}, {} ahead", self.column(), self.limit(), self.ahead())
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

    /// Adds the leaves of one tree for a block of 64 rows to `sums`: 64 for each output.
    ///
    /// Not inlined, so that it is compiled without the vector instructions of its callers: with them the compiler packs
    /// the lanes of a step into vectors and takes them apart again, which takes twice the time.
    #[inline(never)]
    pub(super) fn add_block(&self, forest: &Forest<T>, tree: usize, codes: &[u8], sums: &mut [T]) {
        let ends = match &self.layout {
            Layout::Narrow(walks) => walks.run_block(tree, codes),
            Layout::Wide(walks) => walks.run_block(tree, codes),
        };
        match forest.trees[tree].target {
            Target::One(output) if !self.direct.is_empty() => {
                let sums = &mut sums[output as usize * ROWS..][..ROWS];
                for (sum, end) in sums.iter_mut().zip(ends) {
                    *sum = *sum + self.direct[end as usize];
                }
            }
            Target::One(output) => {
                let sums = &mut sums[output as usize * ROWS..][..ROWS];
                for (sum, end) in sums.iter_mut().zip(ends) {
                    *sum = *sum + forest.values[self.value_at[end as usize] as usize];
                }
            }
            Target::All => {
                for (row, end) in ends.into_iter().enumerate() {
                    let values = &forest.values[self.value_at[end as usize] as usize..][..forest.outputs];
                    for (output, value) in values.iter().enumerate() {
                        let sum = &mut sums[output * ROWS + row];
                        *sum = *sum + *value;
                    }
                }
            }
        }
    }

    /// Adds every tree's leaf for the row with these codes to `sums`. `ends` is scratch.
    pub fn add(&self, forest: &Forest<T>, codes: &[u8], sums: &mut [T], ends: &mut Vec<u32>) {
        self.positions(codes, ends);
        if !self.direct.is_empty() {
            if let [sum] = sums {
                // Not through memory: each addition would wait for the one before it to be stored.
                *sum = ends.iter().fold(*sum, |sum, &end| sum + self.direct[end as usize]);
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
    let total: usize = forest.trees.iter().map(|t| t.nodes + t.leaves).sum();
    let (mut nodes, mut value_at) = (Vec::with_capacity(total), Vec::with_capacity(total));
    let mut trees = Vec::with_capacity(forest.trees.len());
    for tree in &forest.trees {
        trees.push((nodes.len() as u32, forest.depth(tree) as u32));
        lay_out(forest, columns, tree, &mut nodes, &mut value_at);
    }
    let mut order: Vec<u32> = (0..trees.len() as u32).collect();
    order.sort_by_key(|&tree| trees[tree as usize].1);
    let steps = order.chunks(WIDTH).map(|group| group.iter().map(|&tree| trees[tree as usize].1).max().unwrap_or(0));
    let steps = steps.collect();
    let mut starts: Vec<u32> = order.iter().map(|&tree| trees[tree as usize].0).collect();
    starts.resize(starts.len().next_multiple_of(WIDTH), 0);
    (Walks { nodes, order, starts, steps, trees, columns: columns.count() }, value_at)
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
            out.push(P::pack(0, 0, 0));
            value_at.push((tree.first_value + !child as usize * width) as u32);
        } else {
            let node = &nodes[child as usize];
            // Right of rank `k` is a code greater than `k`; ranks are below 255.
            let (column, rank) = columns.locate(node);
            out.push(P::pack(column, rank + 1, queue.len() - next));
            value_at.push(0);
            queue.push(node.right);
            queue.push(node.left);
        }
        next += 1;
    }
}

impl<P: Packed> Walks<P> {
    /// Fills `ends` with the node position that each tree ends in.
    fn run(&self, codes: &[u8], ends: &mut Vec<u32>) {
        assert!(codes.len() >= self.columns, "a code for each column");
        ends.clear();
        ends.resize(self.trees.len(), 0);
        let (starts, _) = self.starts.as_chunks::<WIDTH>();
        for ((starts, trees), steps) in starts.iter().zip(self.order.chunks(WIDTH)).zip(&self.steps) {
            let mut at = *starts;
            // Without codes there is no node anywhere: every tree is one leaf, and takes no step.
            for _ in 0..*steps {
                for at in &mut at {
                    // SAFETY: `lay_out` made the tree that `at` is in; the columns are those whose codes were counted
                    // above.
                    #[allow(unsafe_code)]
                    unsafe {
                        self.step(at, |column| *codes.get_unchecked(column))
                    };
                }
            }
            for (tree, at) in trees.iter().zip(at) {
                ends[*tree as usize] = at;
            }
        }
    }

    /// Where 64 rows end in one tree; the codes of a column lie side by side.
    #[inline(always)]
    fn run_block(&self, tree: usize, codes: &[u8]) -> [u32; ROWS] {
        assert!(codes.len() >= self.columns * ROWS, "64 codes for each column");
        let (start, steps) = self.trees[tree];
        let mut ends = [start; ROWS];
        let (groups, _) = ends.as_chunks_mut::<WIDTH>();
        for (group, ends) in groups.iter_mut().enumerate() {
            let mut at = *ends;
            for _ in 0..steps {
                for (lane, at) in at.iter_mut().enumerate() {
                    // SAFETY: as in `run`; a column is 64 codes.
                    #[allow(unsafe_code)]
                    unsafe {
                        self.step(at, |column| *codes.get_unchecked(column * ROWS + group * WIDTH + lane))
                    };
                }
            }
            *ends = at;
        }
        ends
    }

    /// From a node to its child, or from a leaf to itself.
    ///
    /// # Safety
    /// `at` is the position of a node that [`lay_out`] made, and `code` takes the columns of its tree.
    #[allow(unsafe_code)]
    #[inline(always)]
    unsafe fn step(&self, at: &mut u32, code: impl Fn(usize) -> u8) {
        // SAFETY: by contract; a step leads from a node to one of its tree, `ahead` to the right child, behind which lies
        // the left one, and a leaf stays where it is.
        let node = unsafe { *self.nodes.get_unchecked(*at as usize) };
        *at += node.ahead() + u32::from(code(node.column()) < node.limit());
    }
}
