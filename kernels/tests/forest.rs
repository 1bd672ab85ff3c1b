//! Every path against the scalar specification, bit for bit, on random forests. What this machine has no instructions
//! for is not run, and named; what it would not choose is run all the same.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use kernels::forest::bitsliced::BlockKernel;
use kernels::forest::columns::RowKernel;
use kernels::forest::search::SearchKernel;
use kernels::forest::{
    CategoryRule, CategorySet, Compare, Engine, Forest, Missing, Node, Path, Real, Target, Test, Tree,
};
use proptest::prelude::*;
use std::io::Write;
use std::ops::{Add, Sub};

/// A number that no AVX-512 kernel is handed out for: with it, a machine that has them runs what others run, the AVX2
/// blocks and the portable search and row encoding.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Plain<T>(T);

impl<T: Real> Add for Plain<T> {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Plain(self.0 + other.0)
    }
}

impl<T: Real> Sub for Plain<T> {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Plain(self.0 - other.0)
    }
}

impl<T: Real> Real for Plain<T> {
    const ZERO: Self = Plain(T::ZERO);
    const INFINITY: Self = Plain(T::INFINITY);
    const TINY: Self = Plain(T::TINY);
    fn is_nan(self) -> bool {
        self.0.is_nan()
    }
    fn abs(self) -> Self {
        Plain(self.0.abs())
    }
    fn to_f64(self) -> f64 {
        self.0.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        Plain(T::from_f64(value))
    }
    fn next_up(self) -> Self {
        Plain(self.0.next_up())
    }
    fn next_down(self) -> Self {
        Plain(self.0.next_down())
    }
    fn block_kernel() -> Option<BlockKernel<Self>> {
        None
    }
    fn search_kernel() -> Option<SearchKernel<Self>> {
        None
    }
    fn row_kernel() -> Option<RowKernel<Self>> {
        None
    }
}

/// Numbers from a seed: splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Clone, Debug)]
struct Shape {
    features: usize,
    outputs: usize,
    trees: usize,
    leaves: usize,
    thresholds: usize,
    categories: bool,
    vector_leaves: bool,
    chain: bool,
    flush_zero: bool,
    seed: u64,
}

fn shapes() -> impl Strategy<Value = Shape> {
    (
        (1usize..20, 1usize..6, 0usize..40, 1usize..300),
        (1usize..600, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>()),
    )
        .prop_map(|((features, outputs, trees, leaves), rest)| {
            let (thresholds, categories, vector_leaves, chain, flush_zero, seed) = rest;
            Shape { features, outputs, trees, leaves, thresholds, categories, vector_leaves, chain, flush_zero, seed }
        })
}

fn special(dice: &mut Dice) -> f64 {
    let values = [0.0, -0.0, 1e-35, -1e-35, 1e-36, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30, -0.5, 1e10];
    values[dice.below(values.len())]
}

fn threshold(dice: &mut Dice, shape: &Shape) -> f64 {
    match dice.below(40) {
        0 => 0.0,
        1 => 1e-35f32 as f64,
        2 => -1e-35f32 as f64,
        _ => dice.below(shape.thresholds) as f64 / shape.thresholds as f64 - 0.5,
    }
}

/// A random forest: balanced-ish trees by splitting a random leaf, or chains.
fn forest<T: Real>(shape: &Shape, compare: Compare, rule: CategoryRule) -> Forest<T> {
    let mut dice = Dice(shape.seed);
    let sets = (0..5)
        .map(|i| {
            let left = dice.below(2) == 0;
            match dice.below(2) {
                0 => CategorySet::from_words((0..i).map(|_| dice.next() as u32).collect(), left),
                _ => CategorySet::from_members((0..i).map(|_| (dice.next() as u32) >> dice.below(31)).collect(), left),
            }
        })
        .collect();
    let mut forest = Forest {
        features: shape.features,
        outputs: shape.outputs,
        compare,
        category_rule: rule,
        flush_zero: shape.flush_zero,
        trees: vec![],
        nodes: vec![],
        values: vec![],
        sets,
    };
    for _ in 0..shape.trees {
        let nodes = dice.below(shape.leaves);
        let all = shape.vector_leaves && dice.below(2) == 0;
        let target = if all { Target::All } else { Target::One(dice.below(shape.outputs) as u32) };
        let width = if all { shape.outputs } else { 1 };
        let tree =
            Tree { first_node: forest.nodes.len(), nodes, first_value: forest.values.len(), leaves: nodes + 1, target };
        grow::<T>(&mut dice, shape, nodes, &mut forest.nodes);
        for _ in 0..(nodes + 1) * width {
            forest.values.push(T::from_f64((dice.unit() - 0.5) * 3.0));
        }
        forest.trees.push(tree);
    }
    forest.checked().unwrap()
}

fn grow<T: Real>(dice: &mut Dice, shape: &Shape, nodes: usize, out: &mut Vec<Node<T>>) {
    let first = out.len();
    // Open ends: (node, right side?)
    let mut open: Vec<(usize, bool)> = vec![];
    for index in 0..nodes {
        if index > 0 {
            let at = if shape.chain { open.len() - 1 } else { dice.below(open.len()) };
            let (parent, right) = open.swap_remove(at);
            let node = &mut out[first + parent];
            *(if right { &mut node.right } else { &mut node.left }) = index as i32;
        }
        let category = shape.categories && dice.below(4) == 0;
        let test = if category {
            Test::Category(dice.below(5) as u32)
        } else {
            Test::Threshold(T::from_f64(threshold(dice, shape)))
        };
        let missing = [Missing::Nan, Missing::Zero, Missing::Never][dice.below(3)];
        let feature = dice.below(shape.features) as u32;
        out.push(Node { feature, test, left: i32::MIN, right: i32::MIN, missing, default_left: dice.below(2) == 0 });
        open.push((index, false));
        open.push((index, true));
    }
    for (leaf, (node, right)) in open.into_iter().enumerate() {
        let node = &mut out[first + node];
        *(if right { &mut node.right } else { &mut node.left }) = !(leaf as i32);
    }
}

fn rows<T: Real>(shape: &Shape, count: usize) -> Vec<T> {
    let mut dice = Dice(shape.seed ^ 1);
    (0..count * shape.features)
        .map(|_| match dice.below(8) {
            0 => T::from_f64(special(&mut dice)),
            1 => T::from_f64(dice.below(100) as f64),
            2 | 3 => T::from_f64(threshold(&mut dice, shape)),
            _ => T::from_f64(dice.unit() * 1.2 - 0.6),
        })
        .collect()
}

fn bits<T: Real>(values: &[T]) -> Vec<u64> {
    values.iter().map(|v| v.to_f64().to_bits()).collect()
}

/// The paths agree with each other, and those of [`Plain`] numbers with them.
fn agree<T: Real>(shape: &Shape, compare: Compare, rule: CategoryRule) -> Result<(), TestCaseError> {
    let chosen = sums_of::<T>(shape, compare, rule)?;
    let plain = sums_of::<Plain<T>>(shape, compare, rule)?;
    prop_assert_eq!(chosen, plain);
    Ok(())
}

/// The bits of all sums, after every path was found to give the same.
fn sums_of<T: Real>(shape: &Shape, compare: Compare, rule: CategoryRule) -> Result<Vec<u64>, TestCaseError> {
    let mut all = Vec::new();
    let engine = Engine::new(forest::<T>(shape, compare, rule));
    for count in [1, 2, 15, 16, 17, 63, 64, 65, 130] {
        let rows = rows::<T>(shape, count);
        let base: Vec<T> = (0..count * shape.outputs).map(|i| T::from_f64(i as f64 * 0.37 - 1.0)).collect();
        let mut expected = base.clone();
        engine.add(Path::Scalar, &rows, &mut expected);
        for path in Path::ALL {
            let mut sums = base.clone();
            engine.add(path, &rows, &mut sums);
            prop_assert_eq!(bits(&sums), bits(&expected), "{:?} over {} rows", path, count);
        }
        all.extend(bits(&expected));
        let mut leaves = vec![];
        engine.leaves(&rows[..shape.features], &mut leaves);
        let forest = engine.forest();
        for (tree, leaf) in forest.trees.iter().zip(&leaves) {
            let expected = kernels::forest::scalar::leaf(forest, tree, &rows[..shape.features]);
            prop_assert_eq!(*leaf as usize, expected);
        }
    }
    Ok(all)
}

/// The paths that this machine has no instructions for.
fn lacking() -> Vec<&'static str> {
    let mut lacking = Vec::new();
    if <f32 as Real>::block_kernel().is_none() {
        lacking.push("AVX-512: blocks, the search for codes, the encoding of rows");
    }
    #[cfg(target_arch = "x86_64")]
    let avx2 = is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let avx2 = false;
    if !avx2 {
        lacking.push("AVX2: blocks");
    }
    lacking
}

/// Past the test runner's capture: who reads the log of a green run must see what it did not cover.
#[test]
fn what_this_machine_cannot_run_is_named() {
    for what in lacking() {
        let line = format!("kernels/tests/forest.rs: not run, this machine has no {what}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn paths_agree_in_32_bits(shape in shapes()) {
        agree::<f32>(&shape, Compare::Less, CategoryRule::NonNegative)?;
    }

    #[test]
    fn paths_agree_in_64_bits(shape in shapes()) {
        agree::<f64>(&shape, Compare::LessEqual, CategoryRule::Truncate)?;
    }
}

/// A table of text features, hashed: a million columns and more.
#[test]
fn as_many_features_as_models_have() {
    let last = 1_499_999;
    let node = Node {
        feature: last,
        test: Test::Threshold(0.5f32),
        left: !0,
        right: !1,
        missing: Missing::Nan,
        default_left: true,
    };
    let forest = Forest {
        features: last as usize + 1,
        outputs: 1,
        compare: Compare::Less,
        category_rule: CategoryRule::NonNegative,
        flush_zero: false,
        trees: vec![Tree { first_node: 0, nodes: 1, first_value: 0, leaves: 2, target: Target::One(0) }],
        nodes: vec![node],
        values: vec![1.0, 2.0],
        sets: vec![],
    };
    let engine = Engine::new(forest.clone().checked().unwrap());
    let mut row = vec![f32::NAN; forest.features];
    row[last as usize] = 0.75;
    for path in Path::ALL {
        let mut sum = [0.0];
        engine.add(path, &row, &mut sum);
        assert_eq!(sum, [2.0], "{path:?}");
    }
    let error = Forest { features: (1 << 24) + 1, ..forest }.checked().unwrap_err();
    assert_eq!(error.to_string(), "16777217 features; 1 to 16777216 are supported");
}

#[test]
fn what_is_no_forest_is_refused() {
    let node = Node {
        feature: 0,
        test: Test::Threshold(0.5f32),
        left: !0,
        right: !1,
        missing: Missing::Nan,
        default_left: true,
    };
    let tree = Tree { first_node: 0, nodes: 1, first_value: 0, leaves: 2, target: Target::One(0) };
    let good = Forest {
        features: 1,
        outputs: 1,
        compare: Compare::Less,
        category_rule: CategoryRule::NonNegative,
        flush_zero: false,
        trees: vec![tree],
        nodes: vec![node],
        values: vec![1.0, 2.0],
        sets: vec![],
    };
    assert!(good.clone().checked().is_ok());
    type Break = (&'static str, fn(&mut Forest<f32>));
    let breaks: [Break; 9] = [
        ("tests feature 3 of 1", |f| f.nodes[0].feature = 3),
        ("does not come after its parent", |f| f.nodes[0].left = 0),
        ("does not exist", |f| f.nodes[0].left = 1),
        ("does not exist", |f| f.nodes[0].left = !5),
        ("has two parents", |f| f.nodes[0].left = !1),
        ("not a number", |f| f.nodes[0].test = Test::Threshold(f32::NAN)),
        ("names category set 0", |f| f.nodes[0].test = Test::Category(0)),
        ("outside the value list", |f| f.values.truncate(1)),
        ("adds to output 1 of 1", |f| f.trees[0].target = Target::One(1)),
    ];
    for (message, damage) in breaks {
        let mut bad = good.clone();
        damage(&mut bad);
        let error = bad.checked().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
