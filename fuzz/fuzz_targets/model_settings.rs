//! `config.pbtxt` (where the first byte is even) or `model.toml` beside a good model: what loads answers a call. Files go
//! through a directory, as the server's do; point `TMPDIR` at memory.
#![no_main]

use backends::llm::LanguageOptions;
use backends::onnx::OnnxOptions;
use backends::{Artifact, Call, CancelFlag, Conventions, Limits, LoadOptions, Model, Parameters, Tensor, load};
use libfuzzer_sys::fuzz_target;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

const MODEL: &[u8] = include_bytes!("../../models/iris/1/model.json");
const FILES: [&str; 2] = ["config.pbtxt", "model.toml"];

static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = std::env::temp_dir().join(format!("tensorgate-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(root.join("1")).expect("a folder for the version");
    std::fs::write(root.join("1/model.json"), MODEL).expect("the model file");
    root
});

static OPTIONS: LazyLock<LoadOptions> = LazyLock::new(|| LoadOptions {
    pool: Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a compute pool")),
    limits: Limits::default(),
    conventions: Conventions::Triton,
    language: LanguageOptions::default(),
    onnx: OnnxOptions::default(),
});

fuzz_target!(|bytes: &[u8]| {
    let Some((first, text)) = bytes.split_first() else { return };
    let which = usize::from(first % 2);
    let _ = std::fs::remove_file(ROOT.join(FILES[1 - which]));
    std::fs::write(ROOT.join(FILES[which]), text).expect("the settings");
    let Ok(artifact) = Artifact::open(&ROOT.join("1"), &ROOT) else { return };
    let Ok(Model::Predictor(model)) = load(&artifact, &OPTIONS) else { return };
    let inputs: Vec<_> = model.signature().inputs.iter().map(|port| (port.name.clone(), port.shape[1])).collect();
    let tensors: Vec<_> = inputs
        .into_iter()
        .map(|(name, columns)| Tensor::from_vec(&name, vec![1, columns as usize], vec![1f32; columns as usize]).expect("a row"))
        .collect();
    let (parameters, cancel) = (Parameters::new(), CancelFlag::default());
    let call = Call { inputs: &tensors, outputs: &[], parameters: &parameters, deadline: None, cancel: &cancel };
    for output in model.predict(&call).into_iter().flatten() {
        assert_eq!(output.rows(), 1);
    }
});
