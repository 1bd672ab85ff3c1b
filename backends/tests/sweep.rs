//! Predictions against the real libraries, bit for bit.
//!
//! `oracle/fixtures/` holds small models of old library versions with the answers those versions gave. The full sweep
//! of the current versions is made by `oracle/sweep.py`; `make test` makes it and names it in `TENSORGATE_SWEEP`
//! (directories, separated by `:`).

use backends::{
    Artifact, Call, CancelFlag, Conventions, Limits, LoadOptions, Model, Parameters, Predictor, Tensor, load,
};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn options() -> LoadOptions {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    LoadOptions { pool: Arc::new(pool), limits: Limits::default(), conventions: Conventions::Kserve }
}

fn read_rows(case: &Path, meta: &Value) -> Tensor {
    let mut bytes = fs::read(case.join("x.bin")).unwrap();
    // What the caller called missing when the library was asked; a server's callers send NaN.
    if let Some(missing) = meta["missing"].as_f64() {
        for value in bytes.chunks_exact_mut(4) {
            if f32::from_le_bytes(value.try_into().unwrap()) == missing as f32 {
                value.copy_from_slice(&f32::NAN.to_le_bytes());
            }
        }
    }
    let shape = vec![meta["rows"].as_u64().unwrap() as usize, meta["features"].as_u64().unwrap() as usize];
    let datatype = if meta["x_dtype"] == "f32" { backends::DataType::Fp32 } else { backends::DataType::Fp64 };
    Tensor::from_bytes("x", datatype, shape, bytes.into()).unwrap()
}

/// The model of one file, alone in a directory.
fn open(case: &Path, file: &str, options: &LoadOptions) -> Result<Box<dyn Predictor>, String> {
    let alone = tempfile::tempdir().unwrap();
    fs::copy(case.join(file), alone.path().join(file)).unwrap();
    let artifact = Artifact::open(alone.path(), alone.path()).map_err(|e| e.to_string())?;
    let Model::Predictor(predictor) = load(&artifact, options).map_err(|e| e.to_string())?;
    Ok(predictor)
}

fn predict(model: &dyn Predictor, input: &Tensor) -> Result<Tensor, String> {
    let (inputs, parameters, cancel) = ([input.clone()], Parameters::new(), CancelFlag::default());
    let call = Call { inputs: &inputs, outputs: &[], parameters: &parameters, deadline: None, cancel: &cancel };
    model.predict(&call).map(|mut outputs| outputs.remove(0)).map_err(|e| e.to_string())
}

/// One message for each difference.
fn check_case(case: &Path, options: &LoadOptions) -> Vec<String> {
    let meta: Value = serde_json::from_slice(&fs::read(case.join("case.json")).unwrap()).unwrap();
    let input = read_rows(case, &meta);
    let outputs = meta["outputs"].as_array().unwrap();
    let value = outputs.iter().find(|o| o["kind"] == "value").expect("a case has values");
    let expected = fs::read(case.join(value["file"].as_str().unwrap())).unwrap();
    let shape: Vec<usize> = value["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    let mut faults = Vec::new();
    for file in meta["files"].as_array().unwrap() {
        let file = file.as_str().unwrap();
        let name = format!("{}/{file}", case.display());
        let output = open(case, file, options).and_then(|model| predict(&*model, &input));
        match output {
            Err(error) => faults.push(format!("{name}: {error}")),
            Ok(output) if output.shape() != shape => {
                faults.push(format!("{name}: shape {:?}, expected {shape:?}", output.shape()))
            }
            Ok(output) => {
                let differing = differing(output.bytes(), &expected, output.datatype().size());
                if differing > 0 {
                    faults.push(format!("{name}: {differing} of {} values differ", output.len()));
                }
            }
        }
    }
    faults
}

/// Values whose bits differ; any not-a-number equals any other.
fn differing(got: &[u8], expected: &[u8], size: usize) -> usize {
    let nan = |bytes: &[u8]| match size {
        4 => f32::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        _ => f64::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
    };
    assert_eq!(got.len(), expected.len(), "types differ");
    let pairs = got.chunks_exact(size).zip(expected.chunks_exact(size));
    pairs.filter(|(a, b)| a != b && !(nan(a) && nan(b))).count()
}

fn cases(directory: &Path) -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("case.json").is_file())
        .collect();
    cases.sort();
    cases
}

fn check_all(directories: &[PathBuf]) {
    let options = options();
    let all: Vec<PathBuf> = directories.iter().flat_map(|d| cases(d)).collect();
    let faults: Vec<String> = all.iter().flat_map(|case| check_case(case, &options)).collect();
    println!("{} cases, {} faults", all.len(), faults.len());
    assert!(!all.is_empty(), "no cases in {directories:?}");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn models_of_old_versions_predict_as_those_versions_did() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures");
    let mut directories: Vec<PathBuf> = fs::read_dir(fixtures).unwrap().map(|e| e.unwrap().path()).collect();
    directories.retain(|path| path.join("sweep.json").is_file());
    directories.sort();
    check_all(&directories);
}

#[test]
fn models_of_current_versions_predict_as_the_libraries_do() {
    let Ok(directories) = std::env::var("TENSORGATE_SWEEP") else {
        println!("skipped: TENSORGATE_SWEEP names no sweep; `make test` makes one");
        return;
    };
    check_all(&directories.split(':').map(PathBuf::from).collect::<Vec<_>>());
}
