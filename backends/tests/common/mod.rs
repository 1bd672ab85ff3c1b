//! What the test binaries share: a model out of a file, and a call of it.
#![allow(dead_code, unreachable_pub, missing_docs)]

use backends::llm::LanguageOptions;
use backends::onnx::OnnxOptions;
use backends::{
    Artifact, Call, CancelFlag, Conventions, Limits, LoadOptions, Model, Parameter, Parameters, Predictor, Tensor, load,
};
use std::fs;
use std::path::Path;
use std::sync::Arc;

pub fn options(conventions: Conventions) -> LoadOptions {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    LoadOptions {
        pool: Arc::new(pool),
        limits: Limits::default(),
        conventions,
        language: LanguageOptions::default(),
        onnx: OnnxOptions::default(),
    }
}

/// The model of one file, alone in a directory.
pub fn open(file: &Path, options: &LoadOptions) -> Result<Box<dyn Predictor>, String> {
    let alone = tempfile::tempdir().unwrap();
    fs::copy(file, alone.path().join(file.file_name().unwrap())).unwrap();
    load_from(alone.path(), options)
}

/// The model of a directory.
pub fn load_from(directory: &Path, options: &LoadOptions) -> Result<Box<dyn Predictor>, String> {
    let artifact = Artifact::open(directory, directory).map_err(|e| e.to_string())?;
    let Model::Predictor(predictor) = load(&artifact, options).map_err(|e| e.to_string())? else {
        return Err("a language model".into());
    };
    Ok(predictor)
}

/// The one output for one tensor of rows.
pub fn predict(model: &dyn Predictor, input: &Tensor) -> Result<Tensor, String> {
    call(model, std::slice::from_ref(input), &Parameters::new())
}

/// The one output for a tensor for each column.
pub fn predict_frame(model: &dyn Predictor, columns: &[Tensor]) -> Result<Tensor, String> {
    call(model, columns, &[("content_type".to_owned(), Parameter::String("pd".into()))].into())
}

fn call(model: &dyn Predictor, inputs: &[Tensor], parameters: &Parameters) -> Result<Tensor, String> {
    let cancel = CancelFlag::default();
    let call = Call { inputs, outputs: &[], parameters, deadline: None, cancel: &cancel };
    model.predict(&call).map(|mut outputs| outputs.remove(0)).map_err(|e| e.to_string())
}

/// Values whose bits differ; any not-a-number equals any other.
pub fn differing(got: &[u8], expected: &[u8], size: usize) -> usize {
    let nan = |bytes: &[u8]| match size {
        4 => f32::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        _ => f64::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
    };
    assert_eq!(got.len(), expected.len(), "types differ");
    let pairs = got.chunks_exact(size).zip(expected.chunks_exact(size));
    pairs.filter(|(a, b)| a != b && !(nan(a) && nan(b))).count()
}
