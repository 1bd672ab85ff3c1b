//! A model file of any format: what loads answers a call. Files go through a directory, as the server's do, so that
//! telling the format is covered too; point `TMPDIR` at memory.
#![no_main]

use backends::llm::LanguageOptions;
use backends::onnx::OnnxOptions;
use backends::{
    Artifact, Call, CancelFlag, Conventions, Limits, LoadOptions, Model, Parameters, Predictor, Tensor, load,
};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("tensorgate-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the model file");
    folder
});

static OPTIONS: LazyLock<LoadOptions> = LazyLock::new(|| {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a compute pool");
    LoadOptions { pool: Arc::new(pool), limits: Limits::default(), conventions: Conventions::Kserve, language: LanguageOptions::default(), onnx: OnnxOptions::default() }
});

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(FOLDER.join("model.bin"), bytes).expect("the model file");
    let Ok(artifact) = Artifact::open(&FOLDER, &FOLDER) else { return };
    let Ok(Model::Predictor(model)) = load(&artifact, &OPTIONS) else { return };
    let columns = model.signature().inputs[0].shape[1] as usize;
    if columns <= 1 << 16 {
        answer(&*model, columns);
    }
});

fn answer(model: &dyn Predictor, columns: usize) {
    let row: Vec<f32> = (0..columns).map(|column| if column % 3 == 0 { f32::NAN } else { column as f32 }).collect();
    let inputs = [Tensor::from_vec("x", vec![1, columns], row).expect("a row")];
    let (parameters, cancel) = (Parameters::new(), CancelFlag::default());
    let call = Call { inputs: &inputs, outputs: &[], parameters: &parameters, deadline: None, cancel: &cancel };
    let outputs = model.predict(&call).expect("a model that loads answers");
    assert_eq!(outputs[0].rows(), 1);
}
