//! `model.toml`: what its keys mean together. What each of them is, the types say that it is read into.

use super::{Answer, Fit, Onnx, Settings, port};
use crate::tensor::DataType;

/// Reads a `model.toml`.
pub(super) fn read(text: &str) -> Result<Settings, String> {
    let mut settings: Settings = toml::from_str(text).map_err(|e| e.to_string())?;
    let (of_onnx, of_trees) = (only_of_onnx(&settings), only_of_trees(&settings));
    if let (Some(onnx), Some(trees)) = (of_onnx, of_trees) {
        return Err(format!("{onnx} is of ONNX models and {trees} of tree models; a model is one of them"));
    }
    if settings.threshold.is_some_and(f32::is_nan) {
        return Err("'threshold' is nan, no number".into());
    }
    port::check("inputs", &settings.inputs)?;
    port::check("outputs", &settings.outputs)?;
    if let Some(port) = settings.inputs.iter().find(|port| !port.labels.is_empty()) {
        return Err(format!("'labels' of input '{}': outputs have labels", port.name));
    }
    if !settings.labels.is_empty() && settings.outputs.iter().any(|port| !port.labels.is_empty()) {
        return Err("'labels' are stated for the model and for one of [[outputs]]; one of them is expected".into());
    }
    for (key, stated, ports) in
        [("input", &settings.input, &settings.inputs), ("output", &settings.output, &settings.outputs)]
    {
        if stated.is_some() && !ports.is_empty() {
            return Err(format!("'{key}' and [[{key}s]] both name its {key}; one of them is expected"));
        }
    }
    settings.adopt_ports();
    let output = settings.output_type.datatype;
    if let Some(onnx) = of_onnx {
        settings.as_tree = Fit::refused(format!("{onnx} in model.toml is of ONNX models, and its file is none"));
    } else if let Some(other) = output.filter(|d| !matches!(d, DataType::Fp32 | DataType::Fp64)) {
        settings.as_tree = Fit::refused(format!("'datatype' of [[outputs]] is {other}; predictions are FP32 or FP64"));
    }
    if let Some(trees) = of_trees {
        settings.as_onnx = Fit::refused(format!("{trees} in model.toml is of tree models, and its file is none"));
    }
    settings.onnx.settle(&settings.groups)?;
    Ok(settings)
}

/// A key that is stated and that only ONNX models have.
fn only_of_onnx(settings: &Settings) -> Option<&'static str> {
    let stated = [
        ("[onnx]", settings.onnx != Onnx::default()),
        ("[[instance_group]]", !settings.groups.is_empty()),
        ("'optional' of [[inputs]]", settings.inputs.iter().any(|port| port.optional)),
        ("more than one of [[inputs]]", settings.inputs.len() > 1),
        ("more than one of [[outputs]]", settings.outputs.len() > 1),
    ];
    stated.into_iter().find(|(_, stated)| *stated).map(|(key, _)| key)
}

/// A key that is stated and that only tree models have.
fn only_of_trees(settings: &Settings) -> Option<&'static str> {
    let stated = [
        ("'answer'", settings.answer != Answer::Value),
        ("'threshold'", settings.threshold.is_some()),
        ("'use_best_iteration'", settings.use_best_iteration),
        ("'input'", settings.input.is_some()),
        ("'output'", settings.output.is_some()),
    ];
    stated.into_iter().find(|(_, stated)| *stated).map(|(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::super::{Device, InstanceGroup, Optimization, PortSettings, PortType, Provider, ProviderKind};
    use super::*;

    const ONNX: &str = r#"
        max_batch_size = 8
        inputs = [{ name = "text", datatype = "BYTES", dims = [-1, 1] }, { name = "age", optional = true }]
        outputs = [{ name = "label" }, { name = "probabilities", datatype = "FP32", labels = ["cat", "dog"] }]

        [onnx]
        providers = [
            "tensorrt",
            { kind = "cuda", options = { gpu_mem_limit = 1024, use_tf32 = "0" } },
            "openvino",
            "cpu",
        ]
        fallback = true
        intra_op_threads = 4
        inter_op_threads = 2
        parallel = true
        optimization = "extended"
        memory_arena = false
        memory_pattern = false
        warmup = false
        session = { "session.set_denormal_as_zero" = 1 }

        [[instance_group]]
        count = 2
        device = "gpu:1"

        [[instance_group]]
        device = "cpu"
    "#;

    #[test]
    fn every_key_of_an_onnx_model_acts() {
        let settings = read(ONNX).unwrap();
        let port = |name: &str| PortSettings { name: name.into(), ..PortSettings::default() };
        let text = PortSettings { datatype: Some(DataType::Bytes), dims: vec![-1, 1], ..port("text") };
        assert_eq!(settings.inputs, [text, PortSettings { optional: true, ..port("age") }]);
        assert_eq!(settings.labels_of(1, "probabilities"), ["cat", "dog"]);
        assert_eq!(settings.labels_of(0, "label"), [""; 0]);
        assert_eq!((settings.batched, settings.max_batch_size), (None, Some(8)));
        let onnx = &settings.onnx;
        let mut cuda = Provider::new(ProviderKind::Cuda);
        cuda.options = [("gpu_mem_limit", "1024"), ("use_tf32", "0")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let mut openvino = Provider::new(ProviderKind::OpenVino);
        openvino.options.insert("device_type".into(), "CPU".into());
        let (tensorrt, cpu) = (Provider::new(ProviderKind::TensorRt), Provider::new(ProviderKind::Cpu));
        assert_eq!(onnx.providers, [tensorrt, cuda, openvino, cpu]);
        assert_eq!((onnx.intra_op_threads, onnx.inter_op_threads), (Some(4), Some(2)));
        assert_eq!(onnx.optimization, Some(Optimization::Extended));
        assert_eq!((onnx.fallback, onnx.parallel), (true, true));
        assert_eq!((onnx.memory_arena, onnx.memory_pattern, onnx.warmup), (false, false, false));
        assert_eq!(onnx.session["session.set_denormal_as_zero"], "1");
        let groups = [(2, Device::Gpu(1)), (1, Device::Cpu)].map(|(count, device)| InstanceGroup { count, device });
        assert_eq!(settings.groups, groups);
        assert_eq!(settings.check_for(true), Ok(()));
        let refused = settings.check_for(false).unwrap_err();
        assert_eq!(refused, "[onnx] in model.toml is of ONNX models, and its file is none");
    }

    #[test]
    fn what_is_of_trees_is_refused_for_an_onnx_model() {
        for (text, key) in [
            ("answer = \"class\"", "'answer'"),
            ("threshold = 0.3", "'threshold'"),
            ("use_best_iteration = true", "'use_best_iteration'"),
            ("input = \"x\"", "'input'"),
            ("output = \"y\"", "'output'"),
        ] {
            let settings = read(text).unwrap();
            assert_eq!(settings.check_for(false), Ok(()), "{text}");
            assert!(settings.check_for(true).unwrap_err().starts_with(key), "{text}");
        }
        let settings = read("").unwrap();
        assert_eq!((settings.check_for(false), settings.check_for(true)), (Ok(()), Ok(())));
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn what_is_said_of_one_port_is_said_of_a_trees() {
        let text = "inputs = [{ name = \"x\", datatype = \"FP64\", dims = [-1, 4] }]\n\
                    outputs = [{ name = \"y\", labels = [\"a\", \"b\"] }]";
        let settings = read(text).unwrap();
        assert_eq!(settings.check_for(false), Ok(()));
        assert_eq!((settings.input.as_deref(), settings.output.as_deref()), (Some("x"), Some("y")));
        assert_eq!(settings.input_type, PortType { datatype: Some(DataType::Fp64), columns: Some(4) });
        assert_eq!(settings.labels, ["a", "b"]);
        assert_eq!(settings.labels_of(0, "y"), ["a", "b"]);
        let settings = read("labels = [\"a\"]").unwrap();
        assert_eq!((settings.labels_of(0, "y").len(), settings.labels_of(1, "z").len()), (1, 0));
        let settings = read("outputs = [{ name = \"y\", datatype = \"INT64\" }]").unwrap();
        assert!(settings.check_for(false).unwrap_err().contains("is INT64; predictions are FP32 or FP64"));
        assert_eq!(settings.check_for(true), Ok(()));
    }

    const REFUSED: &[(&str, &str)] = &[
        ("nonsense = 1", "nonsense"),
        ("onnx.nonsense = 1", "nonsense"),
        ("onnx.providers = ['metal']", "execution provider 'metal' is not known; known are cpu, cuda"),
        ("onnx.providers = [1]", "the name of an execution provider, or a table"),
        ("onnx.providers = [{ kind = 'cuda', more = 1 }]", "more"),
        ("onnx.providers = [{ kind = 'cuda', options = { use_tf32 = true } }]", "'use_tf32' is neither text nor"),
        ("onnx.providers = [{ kind = 'cuda', options = { gpu_external_free = 1 } }]", "option 'gpu_external_free'"),
        ("onnx.optimization = 'most'", "most"),
        ("onnx.session = { 'session.load_model_format' = 'ORT' }", "'session.load_model_format' is not served"),
        ("instance_group = [{ device = 'tpu' }]", "device 'tpu' is not known; expected auto, cpu or gpu:N"),
        ("instance_group = [{ count = 0 }]", "have 0 instances"),
        ("inputs = [{ name = 'x', datatype = 'FP33' }]", "datatype 'FP33' is not known; known are BOOL"),
        ("inputs = [{ datatype = 'FP32' }]", "missing field `name`"),
        ("inputs = [{ name = 'x', dims = [-2] }]", "'dims' of inputs 'x' has -2"),
        ("inputs = [{ name = 'x' }, { name = 'x' }]", "two entries of 'inputs' are named 'x'"),
        ("inputs = [{ name = 'x', labels = ['a'] }]", "'labels' of input 'x'"),
        ("labels = ['a']\noutputs = [{ name = 'x', labels = ['a'] }]", "'labels' are stated for the model and"),
        ("input = 'x'\ninputs = [{ name = 'x' }]", "'input' and [[inputs]] both name its input"),
        ("threshold = nan", "'threshold' is nan"),
        ("threshold = 0.5\ninstance_group = [{}]", "[[instance_group]] is of ONNX models and 'threshold' of tree"),
    ];

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, what) in REFUSED {
            let error = read(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
