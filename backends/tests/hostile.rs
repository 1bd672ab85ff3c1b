//! Files that are broken, or made to harm: each is a model or an error, never a panic, and never takes memory out of
//! proportion to the file.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod allocator;
mod common;

use backends::{Conventions, LoadOptions, Predictor, Tensor};
use common::{load_from, options, predict};
use proptest::prelude::*;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

static OPTIONS: LazyLock<LoadOptions> = LazyLock::new(|| options(Conventions::Kserve));

/// Small models of every encoding and kind of tree.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let files = [
        "xgboost-3.4.1/018-linear/model.json",
        "xgboost-3.4.1/018-linear/model.ubj",
        "xgboost-3.4.1/005-hinge/model.json",
        "xgboost-3.4.1/005-hinge/model.ubj",
        "xgboost-3.4.1/020-cat-onehot/model.ubj",
        "xgboost-3.4.1/023-vector-leaf/model.json",
        "xgboost-3.4.1/023-vector-leaf/model.ubj",
        "xgboost-2.1.4/019-linear-softprob/model.bst",
        "xgboost-0.90/002-logistic/model.bst",
        "lightgbm-2.3.1/019-crlf/model.crlf.txt",
        "lightgbm-4.7.0/005-multiclassova/model.txt",
        "lightgbm-4.7.0/009-rf/model.txt",
        "lightgbm-4.7.0/011-linear/model.txt",
        "lightgbm-4.7.0/018-frame-categories/model.txt",
    ];
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures");
    files.iter().map(|file| slim(fs::read(fixtures.join(file)).unwrap())).collect()
});

/// A text model without its block of parameters, which is the longest part and is not looked at.
fn slim(file: Vec<u8>) -> Vec<u8> {
    let find = |what: &[u8]| file.windows(what.len()).position(|window| window == what);
    match (find(b"parameters:"), find(b"end of parameters")) {
        (Some(start), Some(end)) => [&file[..start], &file[end..]].concat(),
        _ => file,
    }
}

thread_local! {
    static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
}

/// Loads a file of these bytes, within the bound on memory, and asks the model if it is one.
fn read(bytes: &[u8]) -> Result<Box<dyn Predictor>, String> {
    let file = FOLDER.with(|folder| folder.path().join("model.bst"));
    // Some file systems write a file to disk when it is emptied first.
    let mut open = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&file).unwrap();
    open.write_all(bytes).unwrap();
    open.set_len(bytes.len() as u64).unwrap();
    drop(open);
    let (result, peak) = allocator::peak(|| load_from(file.parent().unwrap(), &OPTIONS));
    let allowed = 64 * bytes.len() + (1 << 20);
    assert!(peak <= allowed, "{peak} bytes were held for a file of {}: {:?}", bytes.len(), result.err());
    if let Ok(model) = &result {
        let width = model.signature().inputs[0].shape[1] as usize;
        let rows = if width > 1000 { 1 } else { 70 };
        let values: Vec<f64> = (0..rows * width).map(|i| (i % 13) as f64 - 3.5).collect();
        let answer = predict(&**model, &Tensor::from_vec("x", vec![rows, width], values).unwrap()).unwrap();
        assert_eq!(answer.rows(), rows);
    }
    result
}

/// Reads a file that must be refused, with a reason that says `why`.
fn refused(bytes: &[u8], why: &str) {
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
    match read(bytes) {
        Ok(_) => panic!("'{head}' is a model, not refused for: {why}"),
        Err(reason) => assert!(reason.contains(why), "'{head}': expected '{why}', got '{reason}'"),
    }
}

#[test]
fn a_file_cut_short_is_refused() {
    for seed in SEEDS.iter() {
        read(seed).unwrap();
        // A text model is whole once its trees are.
        let whole = seed.windows(12).position(|window| window == b"end of trees").map_or(seed.len(), |at| at + 12);
        for length in (0..whole).chain((whole..seed.len()).step_by(16)) {
            let result = read(&seed[..length]);
            assert!(result.is_err() || length >= whole, "the first {length} bytes of {} are a model", seed.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_a_model_or_an_error(
        seed in 0..SEEDS.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let mut bytes = SEEDS[seed].clone();
        for (at, value, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => { bytes.remove(at); }
            }
        }
        let _ = read(&bytes);
    }

    #[test]
    fn a_file_with_parts_doubled_or_left_out_is_a_model_or_an_error(
        seed in 0..SEEDS.len(),
        places in any::<[prop::sample::Index; 3]>(),
        double in any::<bool>(),
    ) {
        let mut bytes = SEEDS[seed].clone();
        let [a, b, at] = places.map(|place| place.index(bytes.len()));
        let part = a.min(b)..a.max(b);
        if double {
            let copy = bytes[part].to_vec();
            bytes.splice(at..at, copy);
        } else {
            bytes.drain(part);
        }
        let _ = read(&bytes);
    }

    #[test]
    fn numbers_swapped_for_others_are_a_model_or_an_error(
        seed in 0..SEEDS.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..NUMBERS.len()), 1..4),
    ) {
        let mut text = SEEDS[seed].clone();
        for (at, number) in edits {
            let starts: Vec<usize> = (1..text.len()).filter(|&i| is_digit(text[i]) && !is_digit(text[i - 1])).collect();
            let start = starts[at.index(starts.len())];
            let end = (start..text.len()).find(|&i| !is_digit(text[i])).unwrap_or(text.len());
            text.splice(start..end, NUMBERS[number].bytes());
        }
        let _ = read(&text);
    }
}

/// Numbers at the ends of the types that files are read into.
const NUMBERS: &[&str] = &[
    "-1",
    "0",
    "1",
    "2",
    "255",
    "256",
    "1000",
    "65535",
    "65536",
    "1048575",
    "16777215",
    "16777216",
    "2147483647",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "18446744073709551616",
    "1e308",
    "1e999",
    "nan",
    "-inf",
];

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'-'
}

// ------------------------------------------------------------------------------------------------------------ XGBoost

/// A document of one output: `trees` and whatever else, in the place of the trees.
fn document(features: &str, trees: &str) -> String {
    let count = trees.matches("left_children").count();
    let groups = vec!["0"; count].join(",");
    format!(
        r#"{{"version":[3,0,0],"learner":{{"feature_names":[],"feature_types":[],"learner_model_param":{{"base_score":"0.5","num_class":"0","num_feature":"{features}","num_target":"1"}},"objective":{{"name":"reg:squarederror"}},"gradient_booster":{{"name":"gbtree","model":{{"gbtree_model_param":{{"num_parallel_tree":"1","num_trees":"{count}"}},"trees":[{trees}],"tree_info":[{groups}]}}}}}}}}"#
    )
}

/// A tree of one split with two leaves, unless `left` and `right` say otherwise.
fn tree(left: &str, right: &str, feature: &str) -> String {
    let rest = r#""split_conditions":[0.5,1,2],"default_left":[0,0,0],"tree_param":{"size_leaf_vector":"1"}"#;
    format!(r#"{{"left_children":[{left}],"right_children":[{right}],"split_indices":[{feature},0,0],{rest}}}"#)
}

#[test]
fn documents_that_make_no_sense_are_refused() {
    let good = tree("1,-1,-1", "2,-1,-1", "0");
    read(document("4", &good).as_bytes()).unwrap();
    let cases = [
        (tree("0,-1,-1", "2,-1,-1", "0"), "is met twice"),
        (tree("1,0,-1", "2,0,-1", "0"), "is met twice"),
        (tree("1,-1,-1", "1,-1,-1", "0"), "node 1 is met twice"),
        (tree("7,-1,-1", "2,-1,-1", "0"), "does not exist"),
        (tree("-2,-1,-1", "2,-1,-1", "0"), "has child -2"),
        (tree("1,-1,-1", "2,-1", "0"), "right_children has 2 entries"),
        (tree("1,-1,-1", "2,-1,-1", "4"), "tests feature 4 of 4"),
        (tree("1,-1,-1", "2,-1,-1", "4294967296"), "does not fit its field"),
        (format!("{good},{{}}"), "no nodes"),
        (format!("{{}},{}", vec!["{}"; 10_000].join(",")), "no nodes"),
    ];
    for (trees, why) in cases {
        refused(document("4", &trees).as_bytes(), why);
    }
    refused(document("0", &good).as_bytes(), "before it was trained");
    refused(document("4294967295", &good).as_bytes(), "features; 1 to");
}

#[test]
fn categories_and_vectors_do_not_multiply() {
    let node = |nodes: &str, rest: &str| {
        let arrays = r#""split_conditions":[0.5,1,2],"default_left":[0,0,0],"split_indices":[0,0,0]"#;
        format!(r#"{{"left_children":[1,-1,-1],"right_children":[2,{nodes}],{arrays},{rest}}}"#)
    };
    // A few members with great numbers take no more than they must.
    let sparse = r#""tree_param":{"size_leaf_vector":"1"},"split_type":[1,0,0],"categories":[16777215],"categories_nodes":[0],"categories_segments":[0],"categories_sizes":[1]"#;
    read(document("4", &vec![node("-1,-1", sparse); 200].join(",")).as_bytes()).unwrap();
    let huge = sparse.replace("16777215", "16777216");
    refused(document("4", &node("-1,-1", &huge)).as_bytes(), "category 16777216");
    let long = sparse.replace(r#""categories_sizes":[1]"#, r#""categories_sizes":[9223372036854775807]"#);
    refused(document("4", &node("-1,-1", &long)).as_bytes(), "do not exist");
    // All sets claim the same members.
    let members = vec!["1"; 5000].join(",");
    let list = |value: &str| vec![value; 2000].join(",");
    let shared = format!(
        r#""tree_param":{{"size_leaf_vector":"1"}},"split_type":[1,0,0],"categories":[{members}],"categories_nodes":[{}],"categories_segments":[{}],"categories_sizes":[{}]"#,
        list("0"),
        list("0"),
        list("5000"),
    );
    refused(document("4", &node("-1,-1", &shared)).as_bytes(), "or twice");
    // All leaves claim the same vector.
    let weights = vec!["1"; 1000].join(",");
    let vector = format!(r#""tree_param":{{"size_leaf_vector":"1000"}},"leaf_weights":[{weights}]"#);
    let text = document("4", &node("0,0", &vector)).replace(r#""num_target":"1""#, r#""num_target":"1000""#);
    refused(text.as_bytes(), "has the values of another one");
}

#[test]
fn documents_within_documents_end() {
    for open in ["{\"a\":", "[", "{\"learner\":", "{\"learner\":{\"gradient_booster\":{\"gbtree\":", "{\"x\":["] {
        let bomb = format!("{{\"learner\":{}", open.repeat(100_000));
        assert!(read(bomb.as_bytes()).is_err());
    }
    let nested = format!("{{\"learner\":{{\"gradient_booster\":{}", "{\"gbtree\":".repeat(1000));
    refused(nested.as_bytes(), "nested deeper");
    let key = |name: &[u8]| [b"L".as_slice(), &(name.len() as i64).to_be_bytes(), name].concat();
    let mut bomb = [b"{".as_slice(), &key(b"learner"), b"{", &key(b"x")].concat();
    bomb.extend(std::iter::repeat_n(b'[', 100_000));
    refused(&bomb, "nested deeper");
    let typed = [b"{".as_slice(), &key(b"learner"), b"{", &key(b"x"), &b"[$[#i\x01".repeat(10_000)].concat();
    refused(&typed, "nested deeper");
}

#[test]
fn counts_beyond_the_file_are_refused() {
    let key = |name: &[u8]| [b"L".as_slice(), &(name.len() as i64).to_be_bytes(), name].concat();
    let learner = |value: &[u8]| [b"{".as_slice(), &key(b"learner"), b"{", &key(b"feature_names"), value].concat();
    for count in [1i64 << 20, 1 << 40, i64::MAX] {
        for kind in [b"$i".as_slice(), b"$D", b"$S", b"$[", b"$C", b""] {
            let value = [b"[".as_slice(), kind, b"#L", &count.to_be_bytes()].concat();
            refused(&learner(&value), "do not fit into what is left");
        }
        // Elements of no bytes could be counted without end.
        for kind in *b"TFZNx" {
            for name in [b"feature_names".as_slice(), b"unknown"] {
                let value = [&key(name), b"[$".as_slice(), &[kind], b"#L", &count.to_be_bytes()].concat();
                refused(&[b"{".as_slice(), &key(b"learner"), b"{", &value].concat(), "a typed array of");
            }
        }
        let text = [b"{L".as_slice(), &count.to_be_bytes(), b"learner"].concat();
        assert!(read(&text).is_err());
    }
    refused(&learner(&[b"[#L".as_slice(), &(-5i64).to_be_bytes()].concat()), "length -5");
    // The binary format: each count in turn.
    let seed = &SEEDS[8];
    for at in (0..seed.len() - 4).step_by(4) {
        for value in [u32::MAX, i32::MAX as u32, 1 << 24, 1 << 20] {
            let mut bytes = seed.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let _ = read(&bytes);
        }
    }
}

// ----------------------------------------------------------------------------------------------------------- LightGBM

const HEADER: &str = "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=1\n\
                      objective=regression\nfeature_names=a b\nfeature_infos=[0:1] 0:1\n\n";
const TREE: &str = "Tree=0\nnum_leaves=3\nnum_cat=1\nsplit_feature=0 1\nthreshold=0.5 0\ndecision_type=10 9\n\
                    left_child=1 -1\nright_child=-3 -2\nleaf_value=1 2 3\ncat_boundaries=0 1\ncat_threshold=2\n\
                    is_linear=0\nshrinkage=1\n\n\n";
const END: &str = "end of trees\n\npandas_categorical:null\n";

#[test]
fn text_that_makes_no_sense_is_refused() {
    read(format!("{HEADER}{TREE}{END}").as_bytes()).unwrap();
    let cases = [
        ("tree\n", "trie\n", "no model file"),
        ("version=v4", "version=v9", "line 2: version is 'v9'"),
        ("num_class=1\n", "", "the header has no num_class"),
        ("num_class=1", "num_class=x", "line 3: num_class is 'x'"),
        ("num_class=1", "num_class=3", "num_tree_per_iteration is 1, num_class 3"),
        ("max_feature_idx=1", "max_feature_idx=2", "feature_names has 2 entries for 3 features"),
        ("max_feature_idx=1", "max_feature_idx=18446744073709551615", "feature_names has 2 entries for"),
        ("[0:1] 0:1", "[0:1]", "feature_infos has 1 entries"),
        ("objective=regression", "objective=vibes", "objective 'vibes' is not known"),
        ("objective=regression", "objective=binary sigmoid:-1", "'sigmoid:-1' has no valid value"),
        ("objective=regression", "objective=multiclass num_class:4", "is for 4 classes, but num_class is 1"),
        ("num_leaves=3", "num_leaves=0", "tree 0: num_leaves is absent or 0"),
        ("num_leaves=3", "num_leaves=18446744073709551615", "tree 0: leaf_value has 3 entries"),
        ("num_cat=1", "num_cat=18446744073709551615", "tree 0: cat_boundaries has 2 entries"),
        ("split_feature=0 1", "split_feature=0 2", "node 1: tests feature 2 of 2"),
        ("split_feature=0 1", "split_feature=0 -1", "split_feature: entry 1 is '-1'"),
        ("threshold=0.5 0", "threshold=nan 0", "threshold is not a number"),
        ("threshold=0.5 0", "threshold=0.5 1", "node 1: category set 1 of 1"),
        ("threshold=0.5 0", "threshold=0.5 nan", "node 1: category set NaN of 1"),
        ("decision_type=10 9", "decision_type=14 9", "decision_type is 14"),
        ("left_child=1 -1", "left_child=0 -1", "child 0 does not come after its parent"),
        ("left_child=1 -1", "left_child=1 0", "child 0 does not come after its parent"),
        ("left_child=1 -1", "left_child=2 -1", "child 2 does not exist"),
        ("left_child=1 -1", "left_child=1 -2147483648", "child -2147483648 does not exist"),
        ("left_child=1 -1", "left_child=1 -2", "has two parents"),
        ("left_child=1 -1", "left_child=1", "left_child has 1 entries; 2 are expected"),
        ("leaf_value=1 2 3", "leaf_value=1 2 x", "line 19: tree 0: leaf_value: entry 2 is 'x'"),
        ("cat_boundaries=0 1", "cat_boundaries=1 0", "cat_threshold has 1 entries; 0 are expected"),
        ("cat_boundaries=0 1", "cat_boundaries=0 4294967295", "cat_threshold has 1 entries"),
        ("is_linear=0", "is_linear=1", "leaf_const has 0 entries"),
        ("end of trees", "the end", "expected a tree or 'end of trees'"),
        (END, "", "the file ends before 'end of trees'"),
        ("Tree=0", "Tree=1", "expected 'Tree=0', found 'Tree=1'"),
        ("Tree=0", "Tree=", "Tree is ''"),
        ("[0:1] 0:1\n", "[0:1] 0:1\ntree_sizes=300 300\n", "tree_sizes has 2 entries, but there are 1 trees"),
        ("pandas_categorical:null\n", "pandas_categ", "ends in 'pandas_categorical:': it was cut off"),
        ("pandas_categorical:null\n", "parameters:\n[boosting: gbdt]\n", "ends before 'end of parameters'"),
        ("null", "[[\"a\"", "pandas_categorical: "),
        ("null", "{\"a\":1}", "pandas_categorical: "),
    ];
    for (from, to, why) in cases {
        refused(format!("{HEADER}{TREE}{END}").replacen(from, to, 1).as_bytes(), why);
    }
    let linear = "is_linear=1\nleaf_const=1 2 3\nnum_features=0 1 0\nleaf_features=7\nleaf_coeff=1";
    refused(
        format!("{HEADER}{}{END}", TREE.replace("is_linear=0", linear)).as_bytes(),
        "tree 0: leaf 1 is a function of feature 7 of 2",
    );
    let two = HEADER.replace("num_class=1\nnum_tree_per_iteration=1", "num_class=2\nnum_tree_per_iteration=2");
    refused(format!("{two}{TREE}{END}").as_bytes(), "1 trees are no whole number of iterations of 2");
}

#[test]
fn text_takes_memory_in_proportion() {
    // Very many of the smallest of everything.
    let tiny: String = (0..20_000).map(|i| format!("Tree={i}\nnum_leaves=1\nnum_cat=0\nleaf_value=1\n\n")).collect();
    read(format!("{HEADER}{tiny}{END}").as_bytes()).unwrap();
    let many = 200_000;
    let wide = HEADER
        .replace("max_feature_idx=1", &format!("max_feature_idx={}", many - 1))
        .replace("feature_names=a b", &format!("feature_names={}", "a ".repeat(many)))
        .replace("[0:1] 0:1", &"1 ".repeat(many));
    read(format!("{wide}{TREE}{END}").as_bytes()).unwrap();
    let nodes = 50_000;
    let children = |from: i64, step: i64| (0..nodes).map(|i| format!("{} ", from + step * i)).collect::<String>();
    let features = (0..nodes).map(|i| format!("{i} ")).collect::<String>();
    let last =
        |text: String, leaf: i64| format!("{}{leaf}", text.trim_end().rsplit_once(' ').unwrap().0.to_owned() + " ");
    let chain = format!(
        "Tree=0\nnum_leaves={}\nnum_cat=0\nsplit_feature={features}\nthreshold={}\nleft_child={}\nright_child={}\n\
         leaf_value={}\n\n",
        nodes + 1,
        "0 ".repeat(nodes as usize),
        last(children(1, 1), -1 - nodes),
        children(-1, -1),
        "1 ".repeat(nodes as usize + 1),
    );
    read(format!("{wide}{chain}{END}").as_bytes()).unwrap();
    // Every node asks the one great set.
    let asked = chain.replace("num_cat=0", "num_cat=1").replace(
        "left_child",
        &format!(
            "decision_type={}\ncat_boundaries=0 {nodes}\ncat_threshold={}\nleft_child",
            "1 ".repeat(nodes as usize),
            "1 ".repeat(nodes as usize),
        ),
    );
    read(format!("{wide}{asked}{END}").as_bytes()).unwrap();
    let categories = format!("[[{}0]]", "[],".repeat(100_000));
    let _ = read(format!("{HEADER}{TREE}{}", END.replace("null", &categories)).as_bytes());
    let texts = format!("[[{}\"\"]]", (0..100_000).map(|i| format!("\"{i}\",")).collect::<String>());
    read(format!("{HEADER}{TREE}{}", END.replace("null", &texts)).as_bytes()).unwrap();
    let bomb = "[".repeat(100_000);
    refused(format!("{HEADER}{TREE}{}", END.replace("null", &bomb)).as_bytes(), "pandas_categorical: ");
}
