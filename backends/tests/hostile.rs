//! Model files that somebody damaged, or made up: they are refused or read, and a model that was read answers. Nothing
//! panics, runs away or asks for memory that the file does not pay for.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use backends::{
    Artifact, Call, CancelFlag, Conventions, Limits, LoadOptions, Model, Parameters, Predictor, Tensor, load,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn options() -> LoadOptions {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    LoadOptions { pool: Arc::new(pool), limits: Limits::default(), conventions: Conventions::Kserve }
}

/// Loads `bytes` as a model file called `name`, and calls it once if it loads.
fn load_and_call(folder: &Path, name: &str, bytes: &[u8], options: &LoadOptions) -> Result<(), String> {
    fs::write(folder.join(name), bytes).unwrap();
    let artifact = Artifact::open(folder, folder).map_err(|e| e.to_string())?;
    let Model::Predictor(model) = load(&artifact, options).map_err(|e| e.to_string())?;
    call(&*model).map(|_| ())
}

fn call(model: &dyn Predictor) -> Result<Vec<Tensor>, String> {
    let columns = model.signature().inputs[0].shape.get(1).copied().unwrap_or(1).max(1) as usize;
    let input = Tensor::from_vec("x", vec![1, columns], vec![0.5f32; columns]).map_err(|e| e.to_string())?;
    let (inputs, parameters, cancel) = ([input], Parameters::new(), CancelFlag::default());
    let call = Call { inputs: &inputs, outputs: &[], parameters: &parameters, deadline: None, cancel: &cancel };
    model.predict(&call).map_err(|e| e.to_string())
}

/// A few small models of every format, by version and file name.
fn samples() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures");
    let names = [
        "xgboost-0.90/012-softprob/model.bst",
        "xgboost-1.7.6/016-dart/model.json",
        "xgboost-1.7.6/016-dart/model.bst",
        "xgboost-3.4.1/020-cat-onehot/model.json",
        "xgboost-3.4.1/020-cat-onehot/model.ubj",
        "xgboost-3.4.1/023-vector-leaf/model.ubj",
        "xgboost-3.4.1/018-linear/model.ubj",
        "lightgbm-4.3.0/002-binary-numeric/model.txt",
        "lightgbm-4.3.0/011-linear/model.txt",
        "lightgbm-4.3.0/018-frame-categories/model.txt",
    ];
    let found: Vec<PathBuf> = names.iter().map(|name| fixtures.join(name)).filter(|path| path.is_file()).collect();
    assert!(found.len() > names.len() / 2, "fixtures are missing: {found:?}");
    found
}

/// Numbers that repeat from run to run (xorshift).
struct Numbers(u64);
impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// Does `change` to every sample, `times` over.
fn damaged(times: usize, change: impl Fn(&mut Vec<u8>, &mut Numbers)) {
    let (options, folder) = (options(), tempfile::tempdir().unwrap());
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for path in samples() {
        let whole = fs::read(&path).unwrap();
        for _ in 0..times {
            let mut bytes = whole.clone();
            change(&mut bytes, &mut numbers);
            // Whether it is refused is not the question here.
            let _ = load_and_call(folder.path(), "model.bin", &bytes, &options);
        }
    }
}

#[test]
fn files_cut_short() {
    damaged(60, |bytes, numbers| bytes.truncate(numbers.below(bytes.len())));
}

#[test]
fn files_with_changed_bytes() {
    damaged(150, |bytes, numbers| {
        for _ in 0..1 + numbers.below(4) {
            let at = numbers.below(bytes.len());
            bytes[at] = numbers.below(256) as u8;
        }
    });
}

#[test]
fn files_with_changed_numbers() {
    // Digits become other digits: the text stays well formed, and what it says becomes wrong.
    damaged(150, |bytes, numbers| {
        let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
        for _ in 0..4 {
            if let Some(&at) = digits.get(numbers.below(digits.len())) {
                bytes[at] = b'0' + numbers.below(10) as u8;
            }
        }
    });
}

#[test]
fn files_with_parts_doubled_or_left_out() {
    damaged(60, |bytes, numbers| {
        let (a, b) = (numbers.below(bytes.len()), numbers.below(bytes.len()));
        let (start, end) = (a.min(b), a.max(b));
        let part = bytes[start..end].to_vec();
        let at = numbers.below(bytes.len());
        match numbers.below(2) {
            0 => drop(bytes.splice(start..end, [])),
            _ => drop(bytes.splice(at..at, part)),
        }
    });
}

#[test]
fn short_rows_and_columns_ask_for_no_more_than_the_limit() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/fixtures");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixtures.join("xgboost-3.4.1/000-squarederror/model.ubj"), folder.path().join("model.ubj")).unwrap();
    let limits = Limits { tensor_bytes: 1 << 20, ..Limits::default() };
    let artifact = Artifact::open(folder.path(), folder.path()).unwrap();
    let Model::Predictor(model) = load(&artifact, &LoadOptions { limits, ..options() }).unwrap();
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

#[test]
fn made_up_files() {
    let (options, folder) = (options(), tempfile::tempdir().unwrap());
    let typed = |kind: u8, count: u64| {
        [b"{i\x07version[$".as_slice(), &[kind], b"#L", &count.to_be_bytes(), b"learner"].concat()
    };
    let skipped =
        |kind: u8, count: u64| [b"{i\x01x[$".as_slice(), &[kind], b"#L", &count.to_be_bytes(), b"learner"].concat();
    let mut files: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"{\"learner\"".to_vec(),
        b"{\"learner\":{}}".to_vec(),
        [b"{\"learner\":".as_slice(), &b"[".repeat(1 << 20)].concat(),
        [b"{\"x\":".as_slice(), &b"[".repeat(1 << 20), b"learner"].concat(),
        [b"{\"learner\":{\"gradient_booster\":".as_slice(), &b"{\"gbtree\":".repeat(1 << 16)].concat(),
        [b"{i\x07learner".as_slice(), &b"{i\x01a".repeat(1 << 16)].concat(),
        [b"{i\x01a".as_slice(), &b"[$[#i\x01".repeat(1 << 16), b"learner"].concat(),
        b"binf".to_vec(),
        [b"binf".as_slice(), &[0xff; 4096]].concat(),
        [b"binf".as_slice(), &[0; 4096]].concat(),
        b"tree\nversion=v4\nnum_class=99999999999\n".to_vec(),
    ];
    for kind in *b"TFZNilLIUCdDS[{" {
        for count in [1 << 20, 1 << 40, i64::MAX as u64, u64::MAX] {
            files.push(typed(kind, count));
            files.push(skipped(kind, count));
        }
    }
    for bytes in files {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        assert!(load_and_call(folder.path(), "model.bin", &bytes, &options).is_err(), "{shown}");
    }
}
