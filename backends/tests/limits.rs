//! Requests that would have rows filled up beyond the limit: refused before anything is allocated for them.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use backends::llm::LanguageOptions;
use backends::onnx::OnnxOptions;
use backends::{Artifact, Call, CancelFlag, Conventions, Limits, LoadOptions, Model, Parameters, Tensor, load};
use std::fs;
use std::path::Path;
use std::sync::Arc;

fn options() -> LoadOptions {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    LoadOptions {
        pool: Arc::new(pool),
        limits: Limits::default(),
        conventions: Conventions::Kserve,
        language: LanguageOptions::default(),
        onnx: OnnxOptions::default(),
    }
}

#[test]
fn short_rows_and_columns_ask_for_no_more_than_the_limit() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixtures.join("xgboost-3.4.1/000-squarederror/model.ubj"), folder.path().join("model.ubj")).unwrap();
    let limits = Limits { tensor_bytes: 1 << 20, ..Limits::default() };
    let artifact = Artifact::open(folder.path(), folder.path()).unwrap();
    let Model::Predictor(model) = load(&artifact, &LoadOptions { limits, ..options() }).unwrap() else { panic!() };
    let ask = |inputs: &[Tensor]| {
        let (parameters, cancel) = (Parameters::new(), CancelFlag::default());
        model.predict(&Call { inputs, outputs: &[], parameters: &parameters, deadline: None, cancel: &cancel })
    };
    let bytes = |name: &str, shape: Vec<usize>| {
        let count = shape.iter().product();
        Tensor::from_vec(name, shape, vec![0u8; count]).unwrap()
    };
    assert!(ask(&[bytes("x", vec![1 << 10, 1])]).is_ok());
    // One byte a row, and eight columns to fill up.
    assert!(ask(&[bytes("x", vec![1 << 18, 1])]).unwrap_err().to_string().contains("exceed the limit"));
    // One long column, and many of one row.
    let mut columns = vec![bytes("0", vec![1 << 18])];
    columns.extend((1..200).map(|i| bytes(&i.to_string(), vec![1])));
    assert!(ask(&columns).unwrap_err().to_string().contains("exceed the limit"));
    assert_eq!(ask(&[bytes("x", vec![0, 0])]).unwrap()[0].rows(), 0);
}
