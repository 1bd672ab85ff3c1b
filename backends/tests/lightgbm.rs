//! What LightGBM text models mean, on files small enough to be worked out by hand.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod common;

use backends::{Conventions, DataType, Predictor, Tensor};
use common::{load_from, options, predict, predict_frame};

/// Columns `a`, `b`; `b` categorical with codes 0 to 2.
const HEADER: &str = "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=1\n\
                      objective=regression\nfeature_names=a b\nfeature_infos=[0:1] 0:1:2\n\n";

/// A tree: 1 for `a <= 0.5`, else 2 for `b` among 1, and 3 for the rest. Missing is by `decision`.
fn tree(decision: u8) -> String {
    format!(
        "Tree=0\nnum_leaves=3\nnum_cat=1\nsplit_feature=0 1\nthreshold=0.5 0\ndecision_type={decision} 1\n\
         left_child=-1 -2\nright_child=1 -3\nleaf_value=1 2 3\ncat_boundaries=0 1\ncat_threshold=2\nshrinkage=1\n\n\n"
    )
}

const END: &str = "end of trees\n\nfeature_importances:\na=1\n\nparameters:\n[x: Tree=7]\nend of parameters\n\n";

fn model(text: &str) -> Result<Box<dyn Predictor>, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.txt"), text).unwrap();
    load_from(folder.path(), &options(Conventions::Kserve))
}

fn answers(text: &str, rows: &[[f64; 2]]) -> Vec<f64> {
    let input = Tensor::from_vec("x", vec![rows.len(), 2], rows.concat()).unwrap();
    predict(&*model(text).unwrap(), &input).unwrap().values::<f64>().unwrap().to_vec()
}

#[test]
fn missing_values_go_where_each_kind_says() {
    const NAN: f64 = f64::NAN;
    let right = 3.0;
    // decision_type: 2 is default left; above it none (0), zero (4) or not-a-number (8) are missing.
    let cases = [
        (0, [1.0, 1.0, 1.0, right]),
        (4, [right, right, 1.0, right]),
        (4 + 2, [1.0, 1.0, 1.0, right]),
        (8, [right, 1.0, 1.0, right]),
        (8 + 2, [1.0, 1.0, 1.0, right]),
    ];
    for (decision, expected) in cases {
        let text = format!("{HEADER}{}{END}", tree(decision));
        let rows = [[NAN, 0.0], [1e-36, 0.0], [0.5, 0.0], [0.5f64.next_up(), 0.0]];
        assert_eq!(answers(&text, &rows), expected, "decision_type {decision}");
    }
}

#[test]
fn categories_are_truncated_and_unknown_ones_go_right() {
    let rows = [1.0, 1.9, -0.5, -1.0, 0.0, f64::NAN, 1e300, f64::INFINITY, 33.0].map(|b| [9.0, b]);
    let text = format!("{HEADER}{}{END}", tree(0));
    assert_eq!(answers(&text, &rows), [2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]);
    // Category 0 among the members: what is truncated to it goes left.
    let text = text.replace("cat_threshold=2", "cat_threshold=1");
    assert_eq!(answers(&text, &rows), [3.0, 3.0, 2.0, 3.0, 2.0, 3.0, 3.0, 3.0, 3.0]);
}

#[test]
fn forests_average_before_the_link() {
    let two = format!("{}{}", tree(0), tree(0).replace("Tree=0", "Tree=1").replace("=1 2 3", "=3 3 3"));
    let header = HEADER.replace("objective=regression", "objective=poisson\naverage_output");
    assert_eq!(answers(&format!("{header}{two}{END}"), &[[0.0, 0.0]]), [2f64.exp()]);
    let header = HEADER.replace("objective=regression\n", "");
    assert_eq!(answers(&format!("{header}{two}{END}"), &[[0.0, 0.0]]), [4.0]);
}

#[test]
fn linear_leaves_fall_back_where_a_value_is_missing() {
    let linear =
        "is_linear=1\nleaf_const=10 20 30\nnum_features=2 0 1\nleaf_features=0 1   1 \nleaf_coeff=2 3   0.5 \n";
    let text = format!("{HEADER}{}{END}", tree(8 + 2).replace("shrinkage", &format!("{linear}shrinkage")));
    let rows = [[0.25, 4.0], [0.25, f64::NAN], [f64::NAN, 4.0], [1e-36, 0.0], [9.0, 1.0], [9.0, 4.0], [9.0, -0.0]];
    assert_eq!(answers(&text, &rows), [22.5, 1.0, 1.0, 10.0, 20.0, 32.0, 30.0]);
}

#[test]
fn older_spellings_are_read() {
    let expected = answers(&format!("{HEADER}{}{END}", tree(0)), &[[0.0, 0.0], [1.0, 1.0]]);
    let old = format!("{HEADER}{}feature importances:\na=1\n", tree(0));
    for text in [
        old.replace("v4", "v2"),
        old.replace("=regression", "=regression_l2"),
        old.replace("=regression", "=mean_squared_error"),
        old.replace('\n', "\r\n"),
        old.replace("num_tree_per_iteration=1\n", ""),
    ] {
        assert_eq!(answers(&text, &[[0.0, 0.0], [1.0, 1.0]]), expected, "{text}");
    }
}

#[test]
fn what_goes_in_and_comes_out() {
    let text = format!("{HEADER}{}{END}", tree(0));
    let model = model(&text).unwrap();
    let signature = model.signature();
    assert_eq!(
        (signature.platform.name(), signature.feature_names.as_slice()),
        ("lightgbm", ["a", "b"].map(String::from).as_slice())
    );
    let (input, output) = (&signature.inputs[0], &signature.outputs[0]);
    assert_eq!((input.datatype, input.shape.as_slice()), (DataType::Fp64, [-1, 2].as_slice()));
    assert_eq!((output.datatype, output.shape.as_slice()), (DataType::Fp64, [-1].as_slice()));
    // 32-bit floats are widened, not read anew: the one next to 0.5 stays right of it.
    let narrow = Tensor::from_vec("x", vec![2, 2], vec![0.5f32, 0.0, 0.5f32.next_up(), 0.0]).unwrap();
    assert_eq!(predict(&*model, &narrow).unwrap().values::<f64>().unwrap(), [1.0, 3.0]);
    let whole = Tensor::from_vec("x", vec![1, 2], vec![7i64, 1]).unwrap();
    assert_eq!(predict(&*model, &whole).unwrap().values::<f64>().unwrap(), [2.0]);
    let none = Tensor::from_vec("x", vec![0, 2], Vec::<f64>::new()).unwrap();
    assert_eq!(predict(&*model, &none).unwrap().shape(), [0]);
    for columns in [1, 3] {
        let input = Tensor::from_vec("x", vec![1, columns], vec![0.0; columns]).unwrap();
        let error = predict(&*model, &input).unwrap_err();
        assert!(error.contains(&format!("{columns} columns")) && error.contains("trained on 2"), "{error}");
    }
}

#[test]
fn frames_are_recoded_by_value() {
    let ask = |categories: &str, b: Tensor| {
        let a = Tensor::from_vec("a", vec![3], vec![9.0; 3]).unwrap();
        let text = format!("{HEADER}{}{END}pandas_categorical:{categories}\n", tree(0));
        predict_frame(&*model(&text).unwrap(), &[b, a]).map(|output| output.values::<f64>().unwrap().to_vec())
    };
    let text = || Tensor::from_strings("b", vec![3], ["red", "green", "pink"]).unwrap();
    let numbers = |values: [f64; 3]| Tensor::from_vec("b", vec![3], values.to_vec()).unwrap();
    // Members are code 1; what is unknown is missing, and goes right.
    assert_eq!(ask(r#"[["red", "green", "blue"]]"#, text()).unwrap(), [3.0, 2.0, 3.0]);
    assert_eq!(ask(r#"[["green", "red", "blue"]]"#, text()).unwrap(), [2.0, 3.0, 3.0]);
    assert_eq!(ask("[[-7, 0.5, 9]]", numbers([-7.0, 0.5, 1.0])).unwrap(), [3.0, 2.0, 3.0]);
    assert_eq!(ask("[[false, true, 2]]", numbers([0.0, 1.0, 2.0])).unwrap(), [3.0, 2.0, 3.0]);
    // Where all categories are text, numbers are codes.
    assert_eq!(ask(r#"[["red", "green", "blue"]]"#, numbers([0.0, 1.0, f64::NAN])).unwrap(), [3.0, 2.0, 3.0]);
    assert_eq!(ask("null", numbers([0.0, 1.0, 2.0])).unwrap(), [3.0, 2.0, 3.0]);
    assert!(ask("null", text()).unwrap_err().contains("the model knows no categories"));
    // Two lists for one categorical column: only text tells which is whose.
    assert!(ask(r#"[["red"], ["x"]]"#, text()).unwrap_err().contains("1 columns hold text"));
    // A code beyond its list: the list belongs to a column of text.
    assert_eq!(ask(r#"[["red", "green"]]"#, text()).unwrap(), [3.0, 2.0, 3.0]);
    let wide = ask("[[1, 9007199254740993, 3]]", numbers([1.0, 2.0, 3.0]));
    assert!(wide.unwrap_err().contains("whole numbers beyond 2^53"));
}

#[test]
fn categories_belong_to_a_column_where_no_other_fits() {
    // What training saw, columns that the parameters call categorical, lists: is it certain whose they are?
    let cases = [
        ("[0:1] 0:1:2", "1", "[[7, 8, 9]]", true),
        ("[0:1] 0:1:2", "", "[[7, 8, 9]]", true),
        ("[0:1.5] 0:1", "1", "[[7, 8]]", true),
        ("[-1:1] 0:1", "1", "[[7, 8]]", true),
        // More categories than the numeric column has numbers.
        ("[0:1] -1:1:0", "1", "[[7, 8, 9]]", true),
        ("1:0:2 0:1:2", "0,1", "[[7, 8, 9], [7, 8, 9]]", true),
        ("none 0:1:2", "0,1", "[[7, 8, 9], [7, 8, 9]]", true),
        // An ordered category beside whole numbers that were declared one.
        ("[0:2] 0:1:2", "1", "[[7, 8, 9]]", false),
        ("[0:2] 0:1:2", "", "[[7, 8, 9]]", false),
        // A column of one value, declared or not.
        ("none 0:1:2", "0,1", "[[7, 8, 9]]", false),
        ("none 0:1:2", "1", "[[7, 8, 9]]", false),
        ("none 0:1:2", "", "[[7, 8, 9]]", false),
        // Two columns for one list; a code beyond it.
        ("1:0:2 0:1:2", "0,1", "[[7, 8, 9]]", false),
        ("[0:1] 0:1:9", "1", "[[7, 8, 9]]", false),
        ("", "1", "[[7, 8, 9]]", false),
    ];
    for (infos, declared, lists, certain) in cases {
        let parameters = format!("[x: Tree=7]\n[categorical_feature: {declared}]");
        let header = match infos {
            "" => HEADER.replace("feature_infos=[0:1] 0:1:2\n", ""),
            _ => HEADER.replace("[0:1] 0:1:2", infos),
        };
        let end = END.replace("[x: Tree=7]", &parameters);
        let model = model(&format!("{header}{}{end}pandas_categorical:{lists}\n", tree(0))).unwrap();
        let column = |name: &str, value: f64| Tensor::from_vec(name, vec![1], vec![value]).unwrap();
        let answer = predict_frame(&*model, &[column("a", 7.0), column("b", 8.0)]);
        let rows = Tensor::from_vec("x", vec![1, 2], vec![9.0, 1.0]).unwrap();
        assert_eq!(predict(&*model, &rows).unwrap().values::<f64>().unwrap(), [2.0], "codes serve anyway");
        match answer {
            Ok(_) => assert!(certain, "{infos}, declared {declared}: {lists}"),
            Err(error) => assert!(!certain && error.contains("but not of which"), "{infos}, {declared}: {error}"),
        }
    }
}

#[test]
fn classes_are_those_of_objectives_that_have_them() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.toml"), "answer = \"class\"").unwrap();
    let load = |objective: &str| {
        let text = format!("{HEADER}{}{END}", tree(0)).replace("=regression", objective);
        std::fs::write(folder.path().join("model.txt"), text).unwrap();
        load_from(folder.path(), &options(Conventions::Kserve))
    };
    assert!(load("=regression").err().unwrap().contains("objective 'regression' are neither"));
    let input = Tensor::from_vec("x", vec![1, 2], vec![0.0; 2]).unwrap();
    let classes = predict(&*load("=binary sigmoid:1").unwrap(), &input).unwrap();
    assert_eq!(classes.values::<f64>().unwrap(), [1.0]);
}
