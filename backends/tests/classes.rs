//! Classes and probabilities of XGBoost's objectives, against the predictions and margins that the library gave.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod common;

use backends::{Conventions, Predictor, Tensor};
use common::{load_from, options, predict};
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures/xgboost-3.4.1").join(name)
}

fn floats(fixture: &Path, file: &str) -> Vec<f32> {
    let bytes = fs::read(fixture.join(file)).unwrap();
    bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

fn model(fixture: &Path, settings: &str) -> Result<Box<dyn Predictor>, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture.join("model.json"), folder.path().join("model.json")).unwrap();
    fs::write(folder.path().join("model.toml"), settings).unwrap();
    load_from(folder.path(), &options(Conventions::Triton))
}

fn answers(fixture: &Path, settings: &str) -> Vec<f32> {
    let rows = floats(fixture, "x.bin");
    let input = Tensor::from_vec("input__0", vec![rows.len() / 8, 8], rows).unwrap();
    let output = predict(&*model(fixture, settings).unwrap(), &input).unwrap();
    output.values::<f32>().unwrap().to_vec()
}

#[test]
fn softmax_answers_with_classes_and_has_probabilities() {
    let softmax = fixture("013-softmax");
    let classes = floats(&softmax, "value.bin");
    assert!(classes.contains(&2.0));
    assert_eq!(answers(&softmax, "answer = 'class'"), classes);
    let probabilities = answers(&softmax, "answer = 'probability'");
    assert_eq!(probabilities.len(), 3 * classes.len());
    for (row, class) in probabilities.chunks_exact(3).zip(classes) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{row:?}");
        assert!(row.iter().all(|other| *other <= row[class as usize]), "{row:?}: {class}");
    }
}

#[test]
fn a_raw_margin_is_of_the_second_class_above_zero() {
    let raw = fixture("004-logitraw");
    let positive: Vec<f32> = floats(&raw, "value.bin").iter().map(|margin| f32::from(*margin > 0.0)).collect();
    assert_eq!(answers(&raw, "answer = 'class'"), positive);
    let halves: Vec<f32> =
        answers(&raw, "answer = 'probability'").chunks_exact(2).map(|row| f32::from(row[1] > 0.5)).collect();
    assert_eq!(halves, positive);
}

#[test]
fn objectives_without_classes_are_named() {
    for (name, objective) in
        [("000-squarederror", "reg:squarederror"), ("010-aft", "survival:aft"), ("022-quantile", "reg:quantileerror")]
    {
        for answer in ["class", "probability"] {
            let refused = model(&fixture(name), &format!("answer = '{answer}'")).err().unwrap();
            assert!(refused.contains(objective), "{name}: {refused}");
        }
    }
    let refused = model(&fixture("005-hinge"), "answer = 'probability'").err().unwrap();
    assert!(refused.contains("objective 'binary:hinge' predicts none"), "{refused}");
    let hinge = fixture("005-hinge");
    assert_eq!(answers(&hinge, "answer = 'class'"), floats(&hinge, "value.bin"));
}

#[test]
fn there_are_as_many_labels_as_values_or_classes() {
    // Fixture, further settings, labels that a row of the answer has.
    let cases = [
        ("002-logistic", "", 1),
        ("002-logistic", "answer = 'class'", 2),
        ("002-logistic", "answer = 'probability'", 2),
        ("005-hinge", "", 2),
        ("000-squarederror", "", 1),
        ("012-softprob", "", 3),
        ("012-softprob", "answer = 'class'", 3),
        ("013-softmax", "", 3),
        ("013-softmax", "answer = 'probability'", 3),
        ("023-vector-leaf", "", 3),
    ];
    for (name, settings, wanted) in cases {
        let labelled = |count: usize| {
            let labels = (0..count).map(|label| format!("'{label}'")).collect::<Vec<_>>().join(", ");
            model(&fixture(name), &format!("{settings}\nlabels = [{labels}]")).err()
        };
        for count in 0..5 {
            match labelled(count) {
                None => assert!(count == 0 || count == wanted, "{name}, {settings}: {count} labels"),
                Some(refused) => {
                    assert_ne!(count, wanted, "{name}, {settings}: {refused}");
                    let what = format!("its settings have {count} labels for output 'output__0'; expected {wanted}");
                    assert!(refused.contains(&what), "{name}, {settings}: {refused}");
                }
            }
        }
    }
}
