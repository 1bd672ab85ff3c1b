//! Every field of `config.pbtxt` acts, is refused by name, or is named as one without effect.

use super::super::{Answer, Device, InstanceGroup, Optimization, PortSettings, PortType, Provider, ProviderKind};
use super::*;
use crate::tensor::DataType;

fn settings(text: &str) -> Result<Settings, String> {
    read(text, Path::new("."))
}

/// Settings of a model that is stated to be an ONNX graph.
fn graph(text: &str) -> Result<Settings, String> {
    settings(&format!("platform: \"onnxruntime_onnx\" {text}"))
}

/// A parameter as Triton has them.
fn parameter(key: &str, value: &str) -> String {
    format!("parameters {{ key: '{key}' value: {{ string_value: '{value}' }} }}")
}

/// What is without effect is what has these names, and nothing else.
fn assert_named<'a>(notes: impl Iterator<Item = &'a String>, names: &[&str]) {
    let notes: Vec<_> = notes.collect();
    assert_eq!(notes.len(), names.len(), "{notes:?}");
    for name in names {
        assert!(notes.iter().any(|note| note.contains(name)), "{name}: {notes:?}");
    }
}

#[test]
fn every_field_acts_or_is_named() {
    let settings = settings(
        r#"backend: "fil" max_batch_size: 64 default_model_filename: "model.txt"
           input [ { name: "in" data_type: TYPE_FP32 dims: [ 4 ] } ]
           output [ { name: "out" data_type: TYPE_FP64 dims: [ 3 ] } ]
           instance_group [ { kind: KIND_GPU } ]
           dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100
                              default_queue_policy { max_queue_size: 7 timeout_action: REJECT } }
           parameters { key: "layout" value: { string_value: "sparse" } }
           parameters { key: "predict_proba" value: { string_value: "true" } }
           parameters { key: "threshold" value: { string_value: "0.25" } }"#,
    )
    .unwrap();
    assert_eq!(settings.file.as_deref(), Some("model.txt"));
    assert_eq!((settings.input.as_deref(), settings.output.as_deref()), (Some("in"), Some("out")));
    assert_eq!(settings.input_type, PortType { datatype: Some(DataType::Fp32), columns: Some(4) });
    assert_eq!(settings.output_type, PortType { datatype: Some(DataType::Fp64), columns: Some(3) });
    assert_eq!(settings.batching, Batching { max_delay_us: Some(100), queue_size: Some(7), preferred: Some(8) });
    assert_eq!((settings.answer, settings.threshold), (Answer::Probability, Some(0.25)));
    assert_eq!(settings.groups, []);
    let named = ["'instance_group'", "timeout_action'", "'layout'"];
    assert_named(settings.without_effect.iter(), &named);
    assert_eq!(settings.check_for(false), Ok(()));
    let refused = settings.check_for(true).unwrap_err();
    assert_eq!(refused, "config.pbtxt states backend 'fil', and the model file is an ONNX model");
}

/// What no model can be served with, or no tree model where one is stated.
const REFUSED: &[(&str, &str)] = &[
    ("ensemble_scheduling { }", "field 'ensemble_scheduling' is not served: a model is one file"),
    ("platform: 'tensorrt_plan'", "platform 'tensorrt_plan' is not served; known are fil, xgboost, lightgbm"),
    ("backend: 'python'", "backend 'python' is not served; known are fil, xgboost, lightgbm, onnxruntime"),
    ("backend: 'onnxruntime_onnx'", "backend 'onnxruntime_onnx' is not served"),
    ("backend: 'fil' platform: 'onnxruntime_onnx'", "backend 'fil' and platform 'onnxruntime_onnx' are of different"),
    ("model_transaction_policy { decoupled: true }", "decoupled"),
    ("dynamic_batching { max_delay: 3 }", "field 'dynamic_batching.max_delay' is not known"),
    ("parameters { key: 'nonsense' }", "parameter 'nonsense' is not known"),
    ("input { data_type: TYPE_FP32 reshape { shape: [ 2 ] } }", "field 'input.reshape' is not served"),
    ("input { data_type: TYPE_FP32 dims: [ x ] }", "'x', which is no whole number"),
    ("input: 3", "'input' is a value; expected fields in braces"),
    ("output { data_type: TYPE_INT8 }", "predictions are TYPE_FP32 or TYPE_FP64"),
    ("output { data_type: TYPE_FP32 label_filename: '../x' }", "not the plain name"),
    ("output { data_type: TYPE_FP32 label_filename: 'nothing' }", "there is no such file"),
    ("backend: 'fil' input { name: 'a' } input { name: 'b' }", "2 of 'input'; one is expected"),
    ("backend: 'fil' input { name: 'a' }", "data_type '' of 'input' is not known"),
    ("backend: 'fil' input { data_type: TYPE_FP32 optional: true }", "field 'input.optional' is not served"),
    ("backend: 'fil' parameters { key: 'execution_mode' }", "parameter 'execution_mode' is not known"),
    ("backend: 'fil' parameters { key: 'threshold' value { string_value: 'nan' } }", "'nan', no number"),
    ("model_transaction_policy { decoupled: T }", "'decoupled' is 'T', neither true nor false"),
    ("model_transaction_policy { coupled: true }", "field 'model_transaction_policy.coupled' is not known"),
    ("version_policy { latest { num_version: 2 } }", "field 'version_policy.latest.num_version' is not known"),
    ("version_policy { all { } foo: 1 }", "field 'version_policy.foo' is not known"),
    ("version_policy { all { } latest { } }", "several of latest, all, specific"),
    ("parameters { key: 'threshold' text: '1' }", "field 'parameters.text' is not known"),
    ("parameters { key: 'threshold' value { string: '1' } }", "field 'parameters.value.string' is not known"),
    ("max_batch_size: 4 max_batch_size: 8", "field 'max_batch_size' is stated twice"),
    ("max_batch_size: 2147483648", "'max_batch_size' is '2147483648', which does not fit it; expected 0 to 2147483647"),
    ("backend: 'fil' input { data_type: TYPE_FP32 foo: false }", "field 'input.foo' is not known"),
];

#[test]
fn what_is_false_may_be_written_in_any_way() {
    for no in ["false", "False", "f", "0"] {
        let text = format!(
            "model_transaction_policy {{ decoupled: {no} }} instance_group {{ passive: {no} }}
             input {{ name: 'a' data_type: TYPE_FP32 optional: {no} allow_ragged_batch: {no} }}"
        );
        let settings = settings(&text).unwrap();
        assert_eq!((settings.check_for(true), settings.check_for(false)), (Ok(()), Ok(())), "{no}");
        assert!(!settings.inputs[0].optional);
    }
    assert!(graph("input { name: 'a' optional: True }").unwrap().inputs[0].optional);
}

#[test]
fn policies_that_serve_no_version_are_refused() {
    let root = tempfile::tempdir().unwrap();
    for policy in ["latest { num_versions: 0 }", "specific { }"] {
        std::fs::write(root.path().join("config.pbtxt"), format!("version_policy {{ {policy} }}")).unwrap();
        let error = super::super::read(root.path()).unwrap_err();
        assert!(error.reason.contains("serves no version"), "{policy}: {}", error.reason);
    }
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    for (text, what) in REFUSED {
        let error = settings(text).unwrap_err();
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[test]
fn inputs_and_outputs_of_a_graph_are_read() {
    let settings = graph(
        r#"max_batch_size: 16
           input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] format: FORMAT_NCHW },
                   { name: "age" dims: [ -1, 2 ] optional: true allow_ragged_batch: false } ]
           output [ { name: "label" data_type: TYPE_INT64 dims: [ ] },
                    { name: "p" data_type: TYPE_BF16 dims: [ 3 ] } ]"#,
    )
    .unwrap();
    let port =
        |name: &str, dims: &[i64]| PortSettings { name: name.into(), dims: dims.into(), ..PortSettings::default() };
    let age = PortSettings { optional: true, ..port("age", &[-1, 2]) };
    assert_eq!(settings.inputs, [PortSettings { datatype: Some(DataType::Bytes), ..port("text", &[1]) }, age]);
    let label = PortSettings { datatype: Some(DataType::Int64), ..port("label", &[]) };
    assert_eq!(settings.outputs, [label, PortSettings { datatype: Some(DataType::Bf16), ..port("p", &[3]) }]);
    assert_eq!((settings.batched, settings.max_batch_size), (Some(true), Some(16)));
    assert_named(settings.notes(true), &["'input.format' has no effect here"]);
    assert_eq!(settings.check_for(true), Ok(()));
    let refused = settings.check_for(false).unwrap_err();
    assert_eq!(refused, "config.pbtxt states platform 'onnxruntime_onnx', and the model file is no ONNX model");
    assert_eq!(graph("max_batch_size: 0").unwrap().batched, Some(false));
    assert_eq!(graph("").unwrap().batched, None);
}

#[test]
fn labels_are_those_of_their_output() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("labels.txt"), "cat\ndog\n").unwrap();
    let text = "backend: 'onnxruntime' output { name: 'label' } output { name: 'p' label_filename: 'labels.txt' }";
    let settings = read(text, root.path()).unwrap();
    assert_eq!(settings.labels_of(1, "p"), ["cat", "dog"]);
    assert_eq!(settings.labels_of(0, "label"), [""; 0]);
    assert_eq!(settings.labels, [""; 0]);
    let settings = read("output { data_type: TYPE_FP32 label_filename: 'labels.txt' }", root.path()).unwrap();
    assert_eq!(settings.labels, ["cat", "dog"]);
    assert_eq!(settings.labels_of(0, "output__0"), ["cat", "dog"]);
}

#[test]
fn parameters_and_devices_of_a_graph_act_or_are_named() {
    let settings = graph(
        r#"instance_group [ { name: "a" count: 2 kind: KIND_GPU gpus: [ 0, 3 ] }, { kind: KIND_CPU }, { } ]
           optimization { priority: PRIORITY_MAX graph { level: -1 } execution_accelerators {
               gpu_execution_accelerator [ { name: "tensorrt" parameters { key: "precision_mode" value: "FP16" }
                   parameters { key: "max_workspace_size_bytes" value: "1073741824" }
                   parameters { key: "trt_min_subgraph_size" value: "3" }
                   parameters { key: "trt_engine_cache_enable" value: "1" } } ]
               cpu_execution_accelerator [ { name: "openvino" } ] } }
           parameters [ { key: "intra_op_thread_count" value: { string_value: "4" } },
                        { key: "inter_op_thread_count" value: { string_value: "2" } },
                        { key: "execution_mode" value: { string_value: "1" } },
                        { key: "enable_mem_arena" value: { string_value: "0" } },
                        { key: "enable_mem_pattern" value: { string_value: "false" } },
                        { key: "cudnn_conv_algo_search" value: { string_value: "1" } },
                        { key: "arena_extend_strategy" value: { string_value: "1" } },
                        { key: "gpu_mem_limit" value: { string_value: "4096" } },
                        { key: "do_copy_in_default_stream" value: { string_value: "true" } },
                        { key: "session.use_device_allocator_for_initializers" value: { string_value: "1" } },
                        { key: "share_session_between_instances" value: { string_value: "true" } },
                        { key: "memory.enable_memory_arena_shrinkage" value: { string_value: "cpu:0" } } ]
           model_warmup { } model_operations { }"#,
    )
    .unwrap();
    let group = |count, device| InstanceGroup { count, device };
    let gpus = [group(2, Device::Gpu(0)), group(2, Device::Gpu(3))];
    assert_eq!(settings.groups, [gpus[0], gpus[1], group(1, Device::Cpu), group(1, Device::Auto)]);
    let provider = |kind, options: &[(&str, &str)]| Provider {
        kind,
        options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    let tensorrt = [("trt_fp16_enable", "1"), ("trt_max_workspace_size", "1073741824"), ("trt_min_subgraph_size", "3")];
    let cuda = [
        ("cudnn_conv_algo_search", "HEURISTIC"),
        ("arena_extend_strategy", "kSameAsRequested"),
        ("gpu_mem_limit", "4096"),
        ("do_copy_in_default_stream", "1"),
    ];
    let providers = [
        provider(ProviderKind::TensorRt, &tensorrt),
        provider(ProviderKind::Cuda, &cuda),
        provider(ProviderKind::OpenVino, &[("device_type", "CPU")]),
    ];
    let onnx = &settings.onnx;
    assert_eq!(onnx.providers, providers);
    assert_eq!((onnx.intra_op_threads, onnx.inter_op_threads, onnx.parallel), (Some(4), Some(2), true));
    assert_eq!((onnx.memory_arena, onnx.memory_pattern, onnx.fallback, onnx.warmup), (false, false, false, true));
    assert_eq!(onnx.optimization, Some(Optimization::Basic));
    assert_eq!(onnx.session["session.use_device_allocator_for_initializers"], "1");
    let named = [
        "'instance_group.name'",
        "'optimization.priority'",
        "'trt_engine_cache_enable'",
        "'model_warmup'",
        "'share_session_between_instances'",
        "'memory.enable_memory_arena_shrinkage'",
    ];
    assert_named(settings.notes(true), &named);
}

#[test]
fn levels_are_counted_as_triton_does() {
    let level = |level: &str| {
        let text = format!("optimization {{ graph {{ level: {level} }} }}");
        graph(&text).map(|settings| settings.onnx.optimization)
    };
    assert_eq!(level("-1"), Ok(Some(Optimization::Basic)));
    assert_eq!(level("0"), Ok(None));
    assert_eq!(level("1"), Ok(Some(Optimization::Extended)));
    assert_eq!(level("2"), Ok(Some(Optimization::Disabled)));
    assert!(level("3").unwrap_err().contains("optimization.graph.level is 3; expected -1"));
}

#[test]
fn what_does_nothing_on_the_devices_that_are_stated_is_named() {
    let accelerator = "optimization { execution_accelerators { gpu_execution_accelerator { name: \"cuda\" } } }";
    let on_cpu = graph(&format!("instance_group {{ kind: KIND_CPU }} {accelerator}")).unwrap();
    assert_eq!(on_cpu.onnx.providers, []);
    assert_named(on_cpu.notes(true), &["gpu_execution_accelerator' has no effect here: every instance_group"]);
    let anywhere = graph(&format!("{accelerator} {}", parameter("gpu_mem_limit", "1"))).unwrap();
    assert_eq!(anywhere.onnx.providers[0].options["gpu_mem_limit"], "1");
    let nowhere = graph(&parameter("gpu_mem_limit", "1")).unwrap();
    assert_named(nowhere.notes(true), &["'gpu_mem_limit' has no effect here: the model does not run on CUDA"]);
    let gpu = graph("instance_group { kind: KIND_GPU }").unwrap();
    assert_eq!(gpu.groups, [InstanceGroup { count: 1, device: Device::Gpu(0) }]);
    assert_eq!(gpu.onnx.providers, [Provider::new(ProviderKind::Cuda)]);
    assert_named(gpu.notes(true), &["is on GPU 0 alone"]);
    let threads = graph(&parameter("inter_op_thread_count", "2")).unwrap();
    assert_eq!(threads.onnx.inter_op_threads, None);
    assert_named(threads.notes(true), &["'inter_op_thread_count'"]);
    assert!(!graph("").unwrap().onnx.fallback);
    assert!(graph(&parameter("fallback", "true")).unwrap().onnx.fallback);
    let as_many_as_there_are = graph(&parameter("intra_op_thread_count", "0")).unwrap();
    assert_eq!(as_many_as_there_are, graph("").unwrap());
}

#[test]
fn a_shape_for_clients_has_as_many_values_as_the_graphs() {
    for (dims, shape) in [("2, 2", "4"), ("1", "1, 1"), ("0", "3, 0"), ("-1, 2", "-1"), ("1, -1", "-1, 1, 64")] {
        let port = format!("input {{ name: 'a' dims: [ {dims} ] reshape {{ shape: [ {shape} ] }} }}");
        let settings = graph(&port).unwrap();
        assert_eq!(settings.check_for(true), Ok(()), "{port}");
    }
    let scalar = graph("input { name: 'a' dims: [ 1 ] reshape { } }").unwrap();
    assert_eq!(scalar.check_for(true), Ok(()));
}

/// What an ONNX model cannot be served with.
const REFUSED_FOR_A_GRAPH: &[(&str, &str)] = &[
    ("sequence_batching { }", "field 'sequence_batching' is not served: no model remembers"),
    ("ensemble_scheduling { }", "field 'ensemble_scheduling' is not served: a model is one file"),
    ("batch_input { }", "field 'batch_input' is not served"),
    ("batch_output { }", "field 'batch_output' is not served"),
    ("cc_model_filenames { }", "field 'cc_model_filenames' is not served"),
    ("model_repository_agents { }", "field 'model_repository_agents' is not served"),
    ("nonsense: 1", "field 'nonsense' is not known"),
    ("model_operations { op_library_filename: 'a.so' }", "field 'model_operations.op_library_filename' is not served"),
    ("model_transaction_policy { decoupled: true }", "an ONNX model gives one answer"),
    ("input { data_type: TYPE_FP32 }", "an entry of 'input' has no 'name'"),
    ("input { name: 'a' } input { name: 'a' }", "two entries of 'input' are named 'a'"),
    ("output { name: 'a' dims: [ -2 ] }", "'dims' of output 'a' has -2"),
    ("input { name: 'a' reshape { shape: [ 1 ] } }", "input 'a' has 'reshape' without 'dims'"),
    ("input { name: 'a' dims: [ 2 ] reshape { shape: [ -1, -1 ] } }", "at most one length may be open"),
    ("input { name: 'a' dims: [ 2, 2 ] reshape { shape: [ 3 ] } }", "'reshape' of input 'a' is [3], of 3 values"),
    ("input { name: 'a' dims: [ 2, 2 ] reshape { shape: [ 3 ] } }", "'dims', [2, 2], have 4"),
    ("output { name: 'a' dims: [ 2 ] reshape { } }", "'reshape' of output 'a' is [], of 1 values"),
    ("input { name: 'a' dims: [ -1 ] reshape { shape: [ 4 ] } }", "expected is -1 in both or in neither"),
    ("input { name: 'a' dims: [ 4 ] reshape { shape: [ -1, 2 ] } }", "expected is -1 in both or in neither"),
    ("input { name: 'a' allow_ragged_batch: true }", "field 'input.allow_ragged_batch' is not served"),
    ("input { name: 'a' is_shape_tensor: true }", "field 'input.is_shape_tensor' is not served"),
    ("output { name: 'a' is_non_linear_format_io: true }", "field 'output.is_non_linear_format_io' is not served"),
    ("output { name: 'a' optional: true }", "field 'output.optional' is not known"),
    ("input { name: 'a' optional: 2 }", "'optional' is '2', neither true nor false"),
    ("input { name: 'a' dims: [ 2 ] reshape { shapes: [ 2 ] } }", "field 'reshape.shapes' is not known"),
    ("instance_group { passive: t }", "field 'instance_group.passive' is not served"),
    ("input { name: 'a' data_type: TYPE_FP33 }", "data_type 'TYPE_FP33' of 'input' is not known"),
    ("instance_group { kind: KIND_MODEL }", "kind 'KIND_MODEL' of an instance_group is not served"),
    ("instance_group { kind: KIND_TPU }", "kind 'KIND_TPU' of an instance_group is not known"),
    ("instance_group { kind: KIND_CPU gpus: [ 0 ] }", "state KIND_GPU, or leave them out"),
    ("instance_group { gpus: [ -1 ] }", "'-1', which is no GPU"),
    ("instance_group { passive: true }", "field 'instance_group.passive' is not served"),
    ("instance_group { secondary_devices { } }", "field 'instance_group.secondary_devices' is not served"),
    ("instance_group { count: 257 }", "have 257 instances"),
];

/// Parameters of the same kind: key, value, what is said of them.
const PARAMETERS_REFUSED: &[(&str, &str, &str)] = &[
    ("is_classifier", "true", "parameter 'is_classifier' is not known"),
    ("execution_mode", "2", "expected 0 (sequential) or 1 (parallel)"),
    ("arena_extend_strategy", "x", "expected 0 (kNextPowerOfTwo) or 1 (kSameAsRequested)"),
    ("enable_mem_arena", "2", "neither true nor false"),
    ("fallback", "cpu", "neither true nor false"),
    ("gpu_mem_limit", "much", "no number of bytes"),
    ("intra_op_thread_count", "-1", "no number of threads"),
    ("intra_op_thread_count", "5000", "expected 1 to 1024"),
    ("session.load_model_format", "ORT", "session entry 'session.load_model_format' is not served"),
];

/// Parameters of accelerators of the same kind.
const OPTIONS_REFUSED: &[(&str, &str, &str, &str)] = &[
    (
        "gpu",
        "auto_io",
        "",
        "accelerator 'auto_io' of 'gpu_execution_accelerator' is not served; known are tensorrt, cuda",
    ),
    ("cpu", "cuda", "", "known are openvino"),
    ("gpu", "tensorrt", "precision_mode", "expected FP32, FP16, BF16 or INT8"),
    ("gpu", "tensorrt", "int8_calibration_table_name", "is not served: quantise the graph itself"),
    ("gpu", "tensorrt", "trt_extra_plugin_lib_paths", "option 'trt_extra_plugin_lib_paths' of"),
    ("gpu", "cuda", "user_compute_stream", "option 'user_compute_stream' of"),
    ("gpu", "cuda", "device_id", "an instance group states the device"),
];

#[test]
fn what_a_graph_cannot_have_is_refused_by_name() {
    let refused = |text: &str, what: &str| {
        let error = graph(text).unwrap_err();
        assert!(error.contains(what), "{text}: {error}");
    };
    for (text, what) in REFUSED_FOR_A_GRAPH {
        refused(text, what);
    }
    for (key, value, what) in PARAMETERS_REFUSED {
        refused(&parameter(key, value), what);
    }
    for (kind, name, key, what) in OPTIONS_REFUSED {
        let accelerator = format!("{{ name: '{name}' parameters {{ key: '{key}' value: 'x' }} }}");
        refused(
            &format!("optimization {{ execution_accelerators {{ {kind}_execution_accelerator {accelerator} }} }}"),
            what,
        );
    }
}

#[test]
fn where_no_kind_is_stated_the_model_file_decides() {
    let tree = settings(&(parameter("output_class", "true") + " instance_group { }")).unwrap();
    assert_eq!(tree.check_for(false), Ok(()));
    assert_eq!((tree.answer, tree.groups.len()), (Answer::Class, 0));
    assert_eq!(tree.check_for(true).unwrap_err(), "parameter 'output_class' is not known");
    assert_named(tree.notes(false), &["'instance_group'"]);

    let ports = "input { name: 'a' } input { name: 'b' } ".to_owned();
    let onnx = settings(&(ports + &parameter("enable_mem_arena", "0"))).unwrap();
    assert_eq!(onnx.check_for(true), Ok(()));
    assert_eq!((onnx.inputs.len(), onnx.onnx.memory_arena), (2, false));
    assert_eq!(onnx.check_for(false).unwrap_err(), "2 of 'input'; one is expected");

    let text = "backend: 'tensorgate' instance_group { kind: KIND_CPU } metric_tags { } optimization { }";
    let either = settings(text).unwrap();
    assert_eq!((either.check_for(false), either.check_for(true)), (Ok(()), Ok(())));
    assert_eq!(either.groups, [InstanceGroup { count: 1, device: Device::Cpu }]);
    assert_named(either.notes(false), &["'metric_tags'", "'instance_group'", "'optimization'"]);
    assert_named(either.notes(true), &["'metric_tags'"]);

    let neither = parameter("output_class", "true") + &parameter("execution_mode", "1");
    assert_eq!(settings(&neither).unwrap_err(), "parameter 'execution_mode' is not known");
}
