//! Predictions against the real libraries, bit for bit.
//!
//! `oracle/fixtures/` holds small models of old library versions with the answers those versions gave. The full sweep
//! of the current versions is made by `oracle/sweep.py`; `make test` makes it and names it in `TENSORGATE_SWEEP`
//! (directories, separated by `:`).

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod common;

use backends::{Conventions, DataType, LoadOptions, Tensor};
use common::{differing, open, options, predict, predict_frame};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// For each of the followed servers.
struct Options {
    kserve: LoadOptions,
    triton: LoadOptions,
}

/// Everything about one case, and the differences met.
struct Case<'a> {
    folder: &'a Path,
    meta: Value,
    faults: Vec<String>,
}

fn shape(entry: &Value) -> Vec<usize> {
    entry["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect()
}

fn datatype(name: &Value) -> DataType {
    if name == "f32" { DataType::Fp32 } else { DataType::Fp64 }
}

impl Case<'_> {
    fn is_lightgbm(&self) -> bool {
        self.meta["library"] == "lightgbm"
    }

    fn read_rows(&self) -> Tensor {
        let mut bytes = fs::read(self.folder.join("x.bin")).unwrap();
        // What the caller called missing when the library was asked; a server's callers send NaN.
        if let Some(missing) = self.meta["missing"].as_f64() {
            for value in bytes.chunks_exact_mut(4) {
                if f32::from_le_bytes(value.try_into().unwrap()) == missing as f32 {
                    value.copy_from_slice(&f32::NAN.to_le_bytes());
                }
            }
        }
        let shape = ["rows", "features"].map(|key| self.meta[key].as_u64().unwrap() as usize);
        Tensor::from_bytes("x", datatype(&self.meta["x_dtype"]), shape.to_vec(), bytes.into()).unwrap()
    }

    /// Compares an answer with the one that `entry` describes; of its rows, those in `kept`.
    fn compare(&mut self, what: &str, output: Result<Tensor, String>, entry: &Value, kept: Option<&[usize]>) {
        let mut expected = fs::read(self.folder.join(entry["file"].as_str().unwrap())).unwrap();
        let mut shape = shape(entry);
        if let Some(kept) = kept {
            let row = expected.len() / shape[0];
            expected = kept.iter().flat_map(|r| expected[r * row..(r + 1) * row].to_vec()).collect();
            shape[0] = kept.len();
        }
        let fault = match output {
            Err(error) => Some(error),
            Ok(output) if output.shape() != shape => Some(format!("shape {:?}, expected {shape:?}", output.shape())),
            Ok(output) if output.datatype() != datatype(&entry["dtype"]) => {
                Some(format!("{}, expected {}", output.datatype(), entry["dtype"]))
            }
            Ok(output) => {
                let differing = differing(output.bytes(), &expected, output.datatype().size());
                (differing > 0).then(|| format!("{differing} of {} values differ", output.len()))
            }
        };
        self.faults.extend(fault.map(|fault| format!("{}/{what}: {fault}", self.folder.display())));
    }

    /// Every file, asked for the rows of the case.
    fn check_files(&mut self, options: &Options) {
        let input = self.read_rows();
        let outputs = self.meta["outputs"].as_array().unwrap().clone();
        let value = outputs.iter().find(|o| o["kind"] == "value").expect("a case has values");
        for file in self.meta["files"].as_array().unwrap().clone() {
            let file = file.as_str().unwrap();
            let model = open(&self.folder.join(file), &options.kserve);
            let output = model.and_then(|model| predict(&*model, &input));
            self.compare(file, output, value, None);
        }
    }

    /// Answers of other calls, as far as a server has such calls. Returns how many.
    fn check_extras(&mut self, options: &Options) -> usize {
        let file = self.folder.join(self.meta["files"][0].as_str().unwrap());
        let extras = self.meta["extra"].as_array().cloned().unwrap_or_default();
        let mut checked = 0;
        for extra in &extras {
            match extra["kind"].as_str().unwrap() {
                "infinite_value" => {
                    let bytes = fs::read(self.folder.join(extra["x"]["file"].as_str().unwrap())).unwrap();
                    let x = datatype(&extra["x"]["dtype"]);
                    let input = Tensor::from_bytes("x", x, shape(&extra["x"]), bytes.into()).unwrap();
                    let output = open(&file, &options.triton).and_then(|model| predict(&*model, &input));
                    self.compare("infinite", output, extra, None);
                    let refused = open(&file, &options.kserve).and_then(|model| predict(&*model, &input));
                    assert!(refused.is_err_and(|e| e.contains("is infinite")), "{}", file.display());
                }
                "frame_value" => {
                    let text = fs::read_to_string(self.folder.join(extra["frame"].as_str().unwrap())).unwrap();
                    // Rounded when it was written, beyond the greatest number: Python reads an infinity, which lies
                    // on the same side of every threshold as that number.
                    let text = text.replace("1.79769313486232e+308", "1.7976931348623157e+308");
                    let (columns, kept) = frame(&serde_json::from_str(&text).unwrap(), self.is_lightgbm());
                    let output = open(&file, &options.kserve).and_then(|model| predict_frame(&*model, &columns));
                    self.compare("frame", output, extra, Some(&kept));
                }
                _ => continue,
            }
            checked += 1;
        }
        checked
    }
}

/// A tensor for each column of a data frame, and the rows that they hold. Text has no missing values: LightGBM takes
/// an unknown one for it, with XGBoost such rows are left out. Categories that are numbers are sent to LightGBM by value,
/// and to XGBoost by code.
fn frame(frame: &Value, is_lightgbm: bool) -> (Vec<Tensor>, Vec<usize>) {
    let names = frame["columns"].as_array().unwrap();
    let rows = frame["data"].as_array().unwrap();
    let is_text = |column: usize| rows.iter().any(|row| row[column].is_string());
    let whole = |row: &Value| (0..names.len()).all(|column| !is_text(column) || row[column].is_string());
    let kept: Vec<usize> = (0..rows.len()).filter(|&r| is_lightgbm || whole(&rows[r])).collect();
    let columns = names.iter().enumerate().map(|(column, name)| {
        let name = name.as_str().unwrap();
        let cells = kept.iter().map(|&r| &rows[r][column]);
        if is_text(column) {
            return Tensor::from_strings(name, vec![kept.len()], cells.map(|c| c.as_str().unwrap_or("(none)")))
                .unwrap();
        }
        let mut values: Vec<f64> = cells.map(|cell| cell.as_f64().unwrap_or(f64::NAN)).collect();
        if name == "code" && !is_lightgbm {
            // `to_frame` in xgb_make.py: code k is the category 100 - 3k.
            values.iter_mut().for_each(|value| *value = (100.0 - *value) / 3.0);
        }
        Tensor::from_vec(name, vec![kept.len()], values).unwrap()
    });
    // A frame is matched by name, whatever its order.
    (columns.rev().collect(), kept)
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
    let options = Options { kserve: options(Conventions::Kserve), triton: options(Conventions::Triton) };
    let all: Vec<PathBuf> = directories.iter().flat_map(|d| cases(d)).collect();
    let (mut faults, mut extras) = (Vec::new(), 0);
    for folder in &all {
        let meta = serde_json::from_slice(&fs::read(folder.join("case.json")).unwrap()).unwrap();
        let mut case = Case { folder, meta, faults: Vec::new() };
        case.check_files(&options);
        extras += case.check_extras(&options);
        faults.append(&mut case.faults);
    }
    println!("{} cases, {extras} other calls, {} faults", all.len(), faults.len());
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

#[test]
fn the_example_models_answer_as_their_libraries_do() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let options = options(Conventions::Kserve);
    for name in ["iris", "breast-cancer", "diabetes", "wine"] {
        let expected: Value =
            serde_json::from_slice(&fs::read(models.join(name).join("expected.json")).unwrap()).unwrap();
        let model = open(&models.join(name).join(expected["model_file"].as_str().unwrap()), &options).unwrap();
        let output = predict(&*model, &read_tensor(&expected["request"]["inputs"][0])).unwrap();
        let wanted = read_tensor(&expected["response"]["outputs"][0]);
        assert_eq!((output.datatype(), output.shape()), (wanted.datatype(), wanted.shape()), "{name}");
        assert_eq!(output.bytes(), wanted.bytes(), "{name}");
    }
}

/// A tensor as JSON has it; `null` is not-a-number.
fn read_tensor(json: &Value) -> Tensor {
    let values = json["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap_or(f64::NAN));
    if json["datatype"] == "FP32" {
        return Tensor::from_vec("t", shape(json), values.map(|v| v as f32).collect::<Vec<f32>>()).unwrap();
    }
    Tensor::from_vec("t", shape(json), values.collect::<Vec<f64>>()).unwrap()
}
