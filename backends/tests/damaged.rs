//! XGBoost files that lost a part are refused by its name, where the library (3.4.1) refuses them, too; and what it
//! takes, although it looks odd, is answered as it answers.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod common;

use backends::{Conventions, Predictor, Tensor};
use common::{load_from, options, predict, predict_frame};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn load_with(document: &str, settings: &str) -> Result<Box<dyn Predictor>, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.json"), document).unwrap();
    fs::write(folder.path().join("model.toml"), settings).unwrap();
    load_from(folder.path(), &options(Conventions::Kserve))
}

fn load(document: &str) -> Result<Box<dyn Predictor>, String> {
    load_with(document, "")
}

fn answers(document: &str, row: &[f32]) -> Vec<f32> {
    let input = Tensor::from_vec("x", vec![1, row.len()], row.to_vec()).unwrap();
    predict(&*load(document).unwrap(), &input).unwrap().values::<f32>().unwrap().to_vec()
}

/// A model of three classes, of three trees a round.
fn softprob() -> Value {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures");
    serde_json::from_slice(&fs::read(fixtures.join("xgboost-3.4.1/012-softprob/model.json")).unwrap()).unwrap()
}

fn part<'a>(document: &'a mut Value, path: &str) -> &'a mut Value {
    document.pointer_mut(path).unwrap_or_else(|| panic!("the fixture has no {path}"))
}

const LEARNER: &str = "/learner";
const PARAMETERS: &str = "/learner/learner_model_param";
const BOOSTER: &str = "/learner/gradient_booster";
const MODEL: &str = "/learner/gradient_booster/model";
const TREE: &str = "/learner/gradient_booster/model/trees/1";

#[test]
fn a_document_without_a_part_is_refused() {
    load(&softprob().to_string()).unwrap();
    let cases = [
        (LEARNER, "learner_model_param", "'learner' has no 'learner_model_param'"),
        (LEARNER, "objective", "'learner' has no 'objective'"),
        (LEARNER, "gradient_booster", "'learner' has no 'gradient_booster'"),
        (PARAMETERS, "base_score", "'learner_model_param' has no 'base_score'"),
        (PARAMETERS, "num_class", "'learner_model_param' has no 'num_class'"),
        (PARAMETERS, "num_feature", "'learner_model_param' has no 'num_feature'"),
        (BOOSTER, "name", "booster ''"),
        (BOOSTER, "model", "'gradient_booster' has no 'model'"),
        (MODEL, "gbtree_model_param", "num_trees is 0"),
        (MODEL, "trees", "'model' has no 'trees'"),
        (MODEL, "tree_info", "tree_info has 0 entries"),
        (TREE, "left_children", "tree 1: num_nodes is"),
        (TREE, "tree_param", "tree 1 has no size_leaf_vector"),
    ];
    for (object, key, why) in cases {
        let mut document = softprob();
        part(&mut document, object).as_object_mut().unwrap().remove(key);
        let refused = load(&document.to_string()).err().unwrap_or_else(|| panic!("it is a model without {key}"));
        assert!(refused.contains(why), "without {key}: {refused}");
    }
    // What the library does not need.
    for (object, key) in [(MODEL, "iteration_indptr"), (PARAMETERS, "boost_from_average"), (LEARNER, "feature_names")] {
        let mut document = softprob();
        part(&mut document, object).as_object_mut().unwrap().remove(key);
        assert_eq!(load(&document.to_string()).err(), None, "without {key}");
    }
}

#[test]
fn parts_that_do_not_fit_each_other_are_refused() {
    let text = |number: usize| Value::String(number.to_string());
    let trees = part(&mut softprob(), MODEL)["trees"].as_array().unwrap().len();
    let cases: [(&str, Value, &str); 9] = [
        ("/gbtree_model_param/num_trees", text(trees + 1), "num_trees is"),
        ("/gbtree_model_param/num_trees", json!("x"), "num_trees is 'x'"),
        ("/trees/1/id", json!(2), "tree 1 has the id 2"),
        ("/trees/1/id", json!(-1), "tree 1 has the id -1"),
        ("/trees/1/tree_param/num_nodes", json!("1"), "tree 1: num_nodes is 1"),
        ("/trees/1/tree_param/num_nodes", json!("100"), "tree 1: num_nodes is 100"),
        ("/iteration_indptr", json!([0, trees - 3]), "iteration_indptr ends at"),
        ("/iteration_indptr", json!([]), "iteration_indptr ends at 0"),
        ("/tree_info", json!([0]), "tree_info has 1 entries"),
    ];
    for (path, value, why) in cases {
        let mut document = softprob();
        *part(&mut document, &format!("{MODEL}{path}")) = value;
        let refused = load(&document.to_string()).err().unwrap_or_else(|| panic!("{path} has another value"));
        assert!(refused.contains(why), "{path}: {refused}");
    }
    let mut document = softprob();
    part(&mut document, MODEL)["trees"].as_array_mut().unwrap().truncate(trees - 3);
    part(&mut document, MODEL)["tree_info"].as_array_mut().unwrap().truncate(trees - 3);
    assert!(load(&document.to_string()).err().unwrap().contains("num_trees"));
    let mut document = softprob();
    part(&mut document, MODEL)["trees"].as_array_mut().unwrap().reverse();
    assert!(load(&document.to_string()).err().unwrap().contains("trees are lost or moved"));
}

// -------------------------------------------------------------------------------------------- Documents made by hand

/// Of what a document is made.
struct Made<'a> {
    version: &'a str,
    objective: &'a str,
    base_score: &'a str,
    /// Further parameters of the learner.
    parameters: &'a str,
    booster: &'a str,
}

/// No trees at all.
const NO_ROUND: &str = r#"{"model":{"gbtree_model_param":{"num_trees":"0"},"iteration_indptr":[0],"trees":[],"tree_info":[]},"name":"gbtree"}"#;

const STATED: &str = r#""num_class":"0","boost_from_average":"0""#;
const ESTIMATED: &str = r#""num_class":"0","boost_from_average":"1""#;

impl Made<'_> {
    fn document(&self) -> String {
        let Made { version, objective, base_score, parameters, booster } = self;
        format!(
            r#"{{"learner":{{"attributes":{{}},"feature_names":["a","b"],"feature_types":[],"gradient_booster":{booster},"learner_model_param":{{"base_score":"{base_score}","num_feature":"2",{parameters}}},"objective":{{"name":"{objective}"}}}},"version":{version}}}"#
        )
    }
}

#[test]
fn before_the_first_round_a_base_score_that_is_to_be_estimated_is_a_margin() {
    let targets = r#""num_class":"0","num_target":"2","boost_from_average":"1""#;
    let classes = r#""num_class":"3","boost_from_average":"1""#;
    let linear = r#"{"model":{"boosted_rounds":0,"weights":[]},"name":"gblinear"}"#;
    let (new, old) = ("[3,4,1]", "[3,0,5]");
    // The answers are the library's, of each version.
    let cases: &[([&str; 5], &[f32])] = &[
        ([new, "binary:logistic", "[5E-1]", ESTIMATED, NO_ROUND], &[0.622_459_35]),
        ([new, "binary:logistic", "[5E-1]", r#""num_class":"0""#, NO_ROUND], &[0.622_459_35]),
        ([new, "binary:logistic", "[3E-1]", STATED, NO_ROUND], &[0.3]),
        ([old, "binary:logistic", "5E-1", ESTIMATED, NO_ROUND], &[0.5]),
        ([new, "count:poisson", "[5E-1]", ESTIMATED, NO_ROUND], &[1.648_721_2]),
        ([new, "count:poisson", "[2.5E0]", STATED, NO_ROUND], &[2.5]),
        ([old, "count:poisson", "5E-1", ESTIMATED, NO_ROUND], &[0.5]),
        ([new, "reg:squarederror", "[5E-1]", ESTIMATED, NO_ROUND], &[0.5]),
        ([new, "binary:logistic", "[5E-1,5E-1]", targets, NO_ROUND], &[0.622_459_35, 0.622_459_35]),
        ([new, "reg:expectileerror", "[5E-1,5E-1]", targets, NO_ROUND], &[0.5, 1.474_077_9]),
        ([new, "multi:softprob", "[5E-1,5E-1,5E-1]", classes, NO_ROUND], &[0.333_333_34; 3]),
        ([new, "binary:logistic", "[5E-1]", ESTIMATED, linear], &[0.622_459_35]),
        ([new, "binary:logistic", "[3E-1]", STATED, linear], &[0.3]),
        ([old, "binary:logistic", "5E-1", ESTIMATED, linear], &[0.5]),
        ([new, "multi:softprob", "[5E-1,5E-1,5E-1]", classes, linear], &[0.333_333_34; 3]),
    ];
    for &([version, objective, base_score, parameters, booster], wanted) in cases {
        let document = Made { version, objective, base_score, parameters, booster }.document();
        let got = answers(&document, &[1.0, -1.0]);
        let near = got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() <= 1e-7 * wanted.abs().max(1.0));
        assert!(got.len() == wanted.len() && near, "{document}: {got:?}, expected {wanted:?}");
    }
    let made = |booster| Made {
        version: new,
        objective: "binary:logistic",
        base_score: "[5E-1]",
        parameters: ESTIMATED,
        booster,
    };
    for (booster, why) in [
        (r#"{"model":{"boosted_rounds":0},"name":"gblinear"}"#, "'model' has no 'weights'"),
        (r#"{"model":{"boosted_rounds":1,"weights":[1]},"name":"gblinear"}"#, "1 weights for 2 features"),
        (r#"{"name":"gblinear"}"#, "'gradient_booster' has no 'model'"),
    ] {
        let refused = load(&made(booster).document()).err().unwrap();
        assert!(refused.contains(why), "{booster}: {refused}");
    }
}

#[test]
fn base_scores_are_numbers_or_a_list_of_them() {
    let of = |objective, base_score| {
        let made = Made { version: "[3,4,1]", objective, base_score, parameters: STATED, booster: NO_ROUND };
        load(&made.document())
    };
    for good in ["5E-1", "[5E-1]", "(5E-1)", "-2", "1e+05", "[NaN]", "Infinity"] {
        assert_eq!(of("reg:squarederror", good).err(), None, "{good}");
    }
    for bad in ["nan", "inf", "-inf", "[nan]", "[[5E-1]]", "[5E-1", "5E-1]", "[5E-1)", "[]", "", "[.1]", "0x1", "1 2"] {
        let refused = of("reg:squarederror", bad).err().unwrap_or_else(|| panic!("'{bad}' is a base score"));
        assert!(refused.contains(&format!("base_score is '{bad}'")), "{bad}: {refused}");
    }
    for bad in ["[1.5]", "-0.1", "Infinity", "NaN"] {
        let refused = of("binary:logistic", bad).err().unwrap_or_else(|| panic!("'{bad}' is a probability"));
        assert!(refused.contains("a probability is expected"), "{bad}: {refused}");
    }
}

/// One tree that tells whether column `a` is less than `bound`.
fn split(bound: &str) -> String {
    let arrays =
        r#""left_children":[1,-1,-1],"right_children":[2,-1,-1],"split_indices":[0,0,0],"default_left":[0,0,0]"#;
    let tree = format!(r#"{{{arrays},"split_conditions":[{bound},1,2],"tree_param":{{"size_leaf_vector":"1"}}}}"#);
    let parameters = r#""gbtree_model_param":{"num_trees":"1"},"iteration_indptr":[0,1]"#;
    let booster = format!(r#"{{"model":{{{parameters},"trees":[{tree}],"tree_info":[0]}},"name":"gbtree"}}"#);
    let made = Made {
        version: "[3,4,1]",
        objective: "reg:squarederror",
        base_score: "[0E0]",
        parameters: STATED,
        booster: &booster,
    };
    made.document()
}

#[test]
fn whole_numbers_are_rounded_once() {
    // Above half way between two floats; a float of 64 bits lies half way, and would be rounded to the even one below.
    let value = (1i64 << 60) + (1 << 36) + 1;
    let model = load(&split(&format!("{}", (1i64 << 60) + (1 << 37)))).unwrap();
    let column = |name: &str, value: i64| Tensor::from_vec(name, vec![1], vec![value]).unwrap();
    let by_column = predict_frame(&*model, &[column("a", value), column("b", 0)]).unwrap();
    let rows = predict(&*model, &Tensor::from_vec("x", vec![1, 2], vec![value, 0]).unwrap()).unwrap();
    assert_eq!(by_column.values::<f32>().unwrap(), [2.0]);
    assert_eq!(rows.values::<f32>().unwrap(), [2.0]);
}

#[test]
fn attributes_are_read_where_they_are_asked_for() {
    let document = |value: &str| {
        split("0.5").replace(r#""attributes":{}"#, &format!(r#""attributes":{{"best_iteration":"{value}"}}"#))
    };
    assert_eq!(load(&document("none")).err(), None);
    let refused = load_with(&document("none"), "use_best_iteration = true").err().unwrap();
    assert!(refused.contains("the attribute best_iteration is 'none'"), "{refused}");
    assert_eq!(load_with(&document("0"), "use_best_iteration = true").err(), None);
}

#[test]
fn what_is_not_read_is_well_formed_and_nothing_stands_twice() {
    let good = split("0.5");
    let with = |part: &str| good.replacen('{', &format!("{{{part},"), 1);
    assert_eq!(load(&with(r#""zz":[null,{"a":[NaN,-1E-5]},"\u00e9"]"#)).err(), None);
    for part in [r#""zz":[[}}"#, r#""zz":[}"#, r#""zz":[1 2]"#, r#""zz":abc"#, r#""zz":"\q""#] {
        assert!(load(&with(part)).is_err(), "{part}");
    }
    for (key, twice) in [
        (r#""trees":"#, r#""trees":[],"trees":"#),
        (r#""model":"#, r#""model":{},"model":"#),
        (r#""learner":"#, r#""version":[3,4,1],"learner":"#),
        (r#""base_score":"#, r#""base_score":"0","base_score":"#),
    ] {
        let refused = load(&good.replacen(key, twice, 1)).err().unwrap_or_else(|| panic!("{key} stands twice"));
        assert!(refused.contains("stands twice in one object"), "{key}: {refused}");
    }
}
