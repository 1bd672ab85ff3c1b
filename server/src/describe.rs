//! Metadata, configuration, statistics and the index as plain values: REST prints them as they are, gRPC copies them
//! into its messages.

use crate::registry::{IndexEntry, Servable};
use crate::servable::Work;
use crate::stats::Durations;
use backends::settings::{
    Answer, Batching, Device, InstanceGroup, Onnx, Optimization, Provider, ProviderKind, VersionPolicy,
};
use backends::{DataType, Platform, Port, Settings};
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering::Relaxed;

/// `GET /v2/models/{model}`.
pub fn metadata(servable: &Servable, versions: &[u64]) -> Value {
    let ports = |ports: &[Port]| -> Vec<Value> {
        let port = |p: &Port| json!({"name": p.name, "datatype": p.datatype.name(), "shape": p.shape});
        ports.iter().map(port).collect()
    };
    let versions: Vec<String> = versions.iter().map(u64::to_string).collect();
    let mut told = json!({
        "name": servable.name,
        "versions": versions,
        "platform": servable.signature.platform.name(),
        "inputs": ports(&servable.signature.inputs),
        "outputs": ports(&servable.signature.outputs),
    });
    // The protocol's place for what a server adds. Over gRPC it stays empty: MLServer's clients have messages in that field.
    if is_graph(servable) || is_language(servable) {
        told["properties"] = json!({"device": servable.device()});
    }
    told
}

/// Triton's name of an element type.
pub fn config_datatype(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Bool => "TYPE_BOOL",
        DataType::Uint8 => "TYPE_UINT8",
        DataType::Uint16 => "TYPE_UINT16",
        DataType::Uint32 => "TYPE_UINT32",
        DataType::Uint64 => "TYPE_UINT64",
        DataType::Int8 => "TYPE_INT8",
        DataType::Int16 => "TYPE_INT16",
        DataType::Int32 => "TYPE_INT32",
        DataType::Int64 => "TYPE_INT64",
        DataType::Fp16 => "TYPE_FP16",
        DataType::Bf16 => "TYPE_BF16",
        DataType::Fp32 => "TYPE_FP32",
        DataType::Fp64 => "TYPE_FP64",
        DataType::Bytes => "TYPE_STRING",
    }
}

/// Rows that a request may have where the model's settings state no bound: Triton's clients read it as the batch
/// dimension's.
pub const MAX_BATCH_SIZE: u32 = 1 << 20;

/// Rows that a request may have: what is announced is what is enforced. 0 is Triton's way to say that there is no batch
/// dimension: language models answer one prompt, and of some graphs the first dimension is no batch.
pub fn max_batch_size(servable: &Servable) -> u32 {
    if is_batched(servable) { most_rows(servable) } else { 0 }
}

/// The same where the first dimension is a batch. Each request is held against it, so it asks nothing of the model.
pub fn most_rows(servable: &Servable) -> u32 {
    servable.settings.max_batch_size.unwrap_or(MAX_BATCH_SIZE)
}

/// Is the first dimension of every tensor a batch, whose rows have nothing to do with each other? Of an input that may be
/// left out it often is none; requests without it are computed together all the same.
pub fn is_batched(servable: &Servable) -> bool {
    let apart = |port: &Port| port.optional && port.shape.first() != Some(&-1);
    !servable.signature.inputs.iter().any(apart)
        && servable.batcher().is_ok_and(|batcher| batcher.predictor().profile().batchable)
}

/// Is it a language model, whose one request may have many responses?
pub fn is_language(servable: &Servable) -> bool {
    matches!(servable.work, Work::Language(_))
}

/// Is it a graph, which ONNX Runtime computes?
pub fn is_graph(servable: &Servable) -> bool {
    servable.signature.platform == Platform::Onnx
}

/// What computes the model, by Triton's name where it has one.
pub fn backend(servable: &Servable) -> &'static str {
    if is_graph(servable) { "onnxruntime" } else { "tensorgate" }
}

/// The shape as a configuration states it: where the first dimension is a batch, without it.
pub fn config_dims(servable: &Servable, port: &Port) -> Vec<i64> {
    let dims = if is_batched(servable) { port.shape.get(1..).unwrap_or_default() } else { &port.shape[..] };
    // A graph's shapes are matched exactly, so they are said as they are, though Triton itself has no tensors without
    // dimensions.
    if dims.is_empty() && !is_graph(servable) { vec![1] } else { dims.to_vec() }
}

/// Instances of a model on a device.
#[derive(Debug, PartialEq, Eq)]
pub struct Instances {
    /// Name of the group.
    pub name: String,
    /// Triton's name of the kind of device.
    pub kind: &'static str,
    /// How many there are.
    pub count: usize,
    /// The GPU, if it is one.
    pub gpu: Option<u32>,
}

/// The instances of a model, as a configuration states them.
pub fn instance_groups(servable: &Servable) -> Vec<Instances> {
    if !is_graph(servable) {
        return vec![Instances { name: servable.name.clone(), kind: "KIND_CPU", count: 1, gpu: None }];
    }
    let used = servable.device();
    let anywhere = [InstanceGroup { count: 1, device: Device::Auto }];
    let groups = Some(&servable.settings.groups[..]).filter(|groups| !groups.is_empty()).unwrap_or(&anywhere);
    let instances = |(index, group): (usize, &InstanceGroup)| {
        let gpu = gpu(group.device, &used);
        let kind = if gpu.is_some() { "KIND_GPU" } else { "KIND_CPU" };
        Instances { name: format!("{}_{index}", servable.name), kind, count: group.count, gpu }
    };
    groups.iter().enumerate().map(instances).collect()
}

/// The GPU that a group runs on, of a model that uses these devices: where its provider did not load, it is none.
fn gpu(stated: Device, used: &str) -> Option<u32> {
    let mut used = used.split(',').filter_map(|device| device.strip_prefix("cuda:")?.parse::<u32>().ok());
    used.find(|number| match stated {
        Device::Auto => true,
        Device::Cpu => false,
        Device::Gpu(stated) => stated == *number,
    })
}

/// What was stated of how a graph is computed.
#[derive(Debug, PartialEq, Eq)]
pub struct Optimized<'a> {
    /// Triton's number of how far the graph is optimised.
    pub level: i32,
    /// Execution providers of GPUs, and others, but for the one that is always there.
    pub accelerators: [Vec<&'a Provider>; 2],
}

/// The same of a model; `None` where nothing was stated.
pub fn optimization(servable: &Servable) -> Option<Optimized<'_>> {
    is_graph(servable).then(|| optimized(&servable.settings.onnx)).flatten()
}

fn optimized(onnx: &Onnx) -> Option<Optimized<'_>> {
    let level = match onnx.optimization {
        Some(Optimization::Basic) => -1,
        Some(Optimization::All) | None => 0,
        Some(Optimization::Extended) => 1,
        Some(Optimization::Disabled) => 2,
    };
    let cpu = |provider: &&Provider| !provider.kind.is_gpu() && provider.kind != ProviderKind::Cpu;
    let gpus = onnx.providers.iter().filter(|provider| provider.kind.is_gpu()).collect();
    let accelerators: [Vec<_>; 2] = [gpus, onnx.providers.iter().filter(cpu).collect()];
    let stated = onnx.optimization.is_some() || accelerators.iter().any(|list| !list.is_empty());
    stated.then_some(Optimized { level, accelerators })
}

fn optimization_value(optimized: &Optimized<'_>) -> Value {
    let accelerator = |provider: &&Provider| json!({"name": provider.kind.name(), "parameters": provider.options});
    let mut value = json!({"graph": {"level": optimized.level}});
    for (field, list) in ["gpu_execution_accelerator", "cpu_execution_accelerator"].iter().zip(&optimized.accelerators)
    {
        if !list.is_empty() {
            value["execution_accelerators"][field] = list.iter().map(accelerator).collect();
        }
    }
    value
}

/// `GET /v2/models/{model}/config`.
pub fn config(servable: &Servable) -> Value {
    let input = |p: &Port| {
        json!({"name": p.name, "data_type": config_datatype(p.datatype), "format": "FORMAT_NONE",
               "dims": config_dims(servable, p), "is_shape_tensor": false, "allow_ragged_batch": false,
               "optional": p.optional, "is_non_linear_format_io": false})
    };
    let output = |p: &Port| {
        json!({"name": p.name, "data_type": config_datatype(p.datatype), "dims": config_dims(servable, p),
               "label_filename": "", "is_shape_tensor": false, "is_non_linear_format_io": false})
    };
    let instances = |group: Instances| {
        let mut value = json!({"name": group.name, "kind": group.kind, "count": group.count});
        if let Some(gpu) = group.gpu {
            value["gpus"] = json!([gpu]);
        }
        value
    };
    let mut config = json!({
        "name": servable.name,
        "platform": servable.signature.platform.name(),
        "backend": backend(servable),
        "version_policy": version_policy(&servable.settings.versions),
        "max_batch_size": max_batch_size(servable),
        "input": servable.signature.inputs.iter().map(input).collect::<Vec<_>>(),
        "output": servable.signature.outputs.iter().map(output).collect::<Vec<_>>(),
        "instance_group": instance_groups(servable).into_iter().map(instances).collect::<Vec<_>>(),
        "default_model_filename": servable.settings.file.as_deref().unwrap_or_default(),
        "model_transaction_policy": {"decoupled": is_language(servable)},
        "dynamic_batching": dynamic_batching(&servable.settings.batching),
        "parameters": config_parameters(&servable.settings)
            .into_iter()
            .map(|(key, value)| (key, json!({"string_value": value})))
            .collect::<Map<_, _>>(),
    });
    if let Some(optimized) = optimization(servable) {
        config["optimization"] = optimization_value(&optimized);
    }
    config
}

fn version_policy(versions: &VersionPolicy) -> Value {
    match versions {
        VersionPolicy::Latest(count) => json!({"latest": {"num_versions": count}}),
        VersionPolicy::All => json!({"all": {}}),
        VersionPolicy::Specific(versions) => json!({"specific": {"versions": versions}}),
    }
}

/// Requests of every model gather; what its settings leave open is the server's to say, and stays open here.
fn dynamic_batching(batching: &Batching) -> Value {
    let mut stated = json!({"preserve_ordering": false});
    if let Some(delay) = batching.max_delay_us {
        stated["max_queue_delay_microseconds"] = delay.into();
    }
    if let Some(rows) = batching.preferred {
        stated["preferred_batch_size"] = json!([rows]);
    }
    if let Some(size) = batching.queue_size {
        stated["default_queue_policy"] = json!({"max_queue_size": size});
    }
    stated
}

/// What a model was told, by the names that Triton's backends have for it, and what only settings of this server's own
/// state.
pub fn config_parameters(settings: &Settings) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut add = |key: &str, value: String| parameters.push((key.to_owned(), value));
    if settings.answer != Answer::Value {
        add("output_class", "true".into());
        add("predict_proba", (settings.answer == Answer::Probability).to_string());
    }
    if let Some(threshold) = settings.threshold {
        add("threshold", threshold.to_string());
    }
    if settings.use_best_iteration {
        add("use_best_iteration", "true".into());
    }
    if !settings.labels.is_empty() {
        // The file that they came from, if it was one, is not the client's to read; lines are how it has them.
        add("labels", settings.labels.join("\n"));
    }
    parameters.extend(graph_parameters(&settings.onnx));
    parameters
}

/// What a graph is computed with, where it is not what goes without saying.
fn graph_parameters(onnx: &Onnx) -> Vec<(String, String)> {
    let threads = |threads: Option<usize>| threads.map(|threads| threads.to_string());
    let switch = |stated: bool, value: &str| stated.then(|| value.to_owned());
    let stated = [
        ("intra_op_thread_count", threads(onnx.intra_op_threads)),
        ("inter_op_thread_count", threads(onnx.inter_op_threads)),
        ("execution_mode", switch(onnx.parallel, "1")),
        ("enable_mem_arena", switch(!onnx.memory_arena, "0")),
        ("enable_mem_pattern", switch(!onnx.memory_pattern, "0")),
        ("fallback", switch(onnx.fallback, "true")),
        ("warmup", switch(!onnx.warmup, "false")),
    ];
    let stated = stated.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    stated.chain(onnx.session.clone()).collect()
}

/// One entry of `model_stats`.
pub fn stats(servable: &Servable) -> Value {
    let stats = &servable.stats;
    let duration = |d: &Durations| {
        let (count, ns) = d.read();
        json!({"count": count, "ns": ns})
    };
    let pair = |(count, ns): (u64, u64)| json!({"count": count, "ns": ns});
    let zero = json!({"count": 0, "ns": 0});
    let batches: Vec<Value> = stats
        .batches()
        .into_iter()
        .map(|(size, [input, infer, output])| {
            json!({"batch_size": size, "compute_input": pair(input), "compute_infer": pair(infer),
                   "compute_output": pair(output)})
        })
        .collect();
    json!({
        "name": servable.name,
        "version": servable.version.to_string(),
        "last_inference": stats.last_inference.load(Relaxed),
        "inference_count": stats.inferences.load(Relaxed),
        "execution_count": stats.executions.load(Relaxed),
        "inference_stats": {
            "success": duration(&stats.success),
            "fail": duration(&stats.fail),
            "queue": duration(&stats.queue),
            "compute_input": duration(&stats.input),
            "compute_infer": duration(&stats.infer),
            "compute_output": duration(&stats.output),
            "cache_hit": zero,
            "cache_miss": zero,
        },
        "response_stats": {},
        "batch_stats": batches,
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": servable.bytes}],
    })
}

/// The repository index.
pub fn index(entries: &[IndexEntry]) -> Value {
    let entry = |e: &IndexEntry| match e.version {
        None => json!({"name": e.name}),
        Some(version) if e.reason.is_empty() => {
            json!({"name": e.name, "version": version.to_string(), "state": e.state})
        }
        Some(version) => {
            json!({"name": e.name, "version": version.to_string(), "state": e.state, "reason": e.reason})
        }
    };
    Value::Array(entries.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher;
    use backends::{Call, InferError, Model, Predictor, Profile, Signature, Tensor};
    use std::time::Duration;

    #[test]
    fn a_configuration_says_what_the_settings_say() {
        assert_eq!(version_policy(&VersionPolicy::Latest(2)), json!({"latest": {"num_versions": 2}}));
        assert_eq!(version_policy(&VersionPolicy::All), json!({"all": {}}));
        assert_eq!(version_policy(&VersionPolicy::Specific(vec![1, 3])), json!({"specific": {"versions": [1, 3]}}));
        let batching = Batching { max_delay_us: Some(100), queue_size: Some(7), preferred: Some(4) };
        let stated = json!({"preserve_ordering": false, "max_queue_delay_microseconds": 100,
                            "preferred_batch_size": [4], "default_queue_policy": {"max_queue_size": 7}});
        assert_eq!(dynamic_batching(&batching), stated);
        assert_eq!(dynamic_batching(&Batching::default()), json!({"preserve_ordering": false}));
    }

    #[test]
    fn parameters_are_those_that_change_an_answer() {
        assert_eq!(config_parameters(&Settings::default()), []);
        let settings = Settings {
            answer: Answer::Class,
            threshold: Some(0.3),
            use_best_iteration: true,
            labels: vec!["cat".into(), "dog".into()],
            ..Settings::default()
        };
        let wanted = [
            ("output_class", "true"),
            ("predict_proba", "false"),
            ("threshold", "0.3"),
            ("use_best_iteration", "true"),
            ("labels", "cat\ndog"),
        ];
        assert_eq!(config_parameters(&settings), wanted.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    /// A graph of one input and one output, whose first dimension is a batch or not.
    #[derive(Debug)]
    struct Graph {
        signature: Signature,
        batchable: bool,
        device: &'static str,
    }

    impl Predictor for Graph {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn profile(&self) -> Profile {
            Profile {
                batchable: self.batchable,
                instances: 1,
                single_call: Duration::ZERO,
                steady: true,
                computes: false,
                preferred_batch: 1,
                device: self.device.into(),
                bytes: 0,
                notes: Vec::new(),
            }
        }

        fn predict(&self, _: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
            Ok(Vec::new())
        }
    }

    fn graph(batchable: bool, device: &'static str, settings: Settings) -> Servable {
        let port = |name: &str, datatype, shape: &[i64]| Port {
            name: name.into(),
            datatype,
            also: Vec::new(),
            shape: shape.into(),
            optional: false,
            any_shape: false,
            labels: Vec::new(),
        };
        let signature = Signature {
            inputs: vec![port("x", DataType::Fp16, &[-1, 3, 224])],
            outputs: vec![port("y", DataType::Bf16, &[-1])],
            strict: true,
            feature_names: Vec::new(),
            platform: Platform::Onnx,
        };
        let model = Model::Predictor(Box::new(Graph { signature, batchable, device }));
        Servable::new(("net", 1), model, settings, &batcher::Options::default()).unwrap()
    }

    #[test]
    fn a_graph_has_a_batch_dimension_or_none() {
        let settings = Settings { max_batch_size: Some(8), ..Settings::default() };
        let batched = config(&graph(true, "cpu", settings.clone()));
        assert_eq!((&batched["backend"], &batched["platform"]), (&json!("onnxruntime"), &json!("onnxruntime_onnx")));
        assert_eq!(batched["max_batch_size"], 8);
        assert_eq!((&batched["input"][0]["dims"], &batched["output"][0]["dims"]), (&json!([3, 224]), &json!([])));
        assert_eq!(batched["input"][0]["data_type"], "TYPE_FP16");
        assert_eq!(batched["instance_group"], json!([{"name": "net_0", "kind": "KIND_CPU", "count": 1}]));
        assert_eq!((&batched["parameters"], batched.get("optimization")), (&json!({}), None));
        let whole = config(&graph(false, "cpu", settings));
        assert_eq!(whole["max_batch_size"], 0);
        assert_eq!((&whole["input"][0]["dims"], &whole["output"][0]["dims"]), (&json!([-1, 3, 224]), &json!([-1])));
    }

    #[test]
    fn a_graph_says_where_and_how_it_is_computed() {
        let mut cuda = Provider::new(ProviderKind::Cuda);
        cuda.options.insert("use_tf32".into(), "0".into());
        let onnx = Onnx {
            providers: vec![Provider::new(ProviderKind::OpenVino), cuda, Provider::new(ProviderKind::Cpu)],
            intra_op_threads: Some(2),
            parallel: true,
            memory_arena: false,
            fallback: true,
            optimization: Some(Optimization::Disabled),
            session: [("session.set_denormal_as_zero".to_owned(), "1".to_owned())].into(),
            ..Onnx::default()
        };
        let devices = [Device::Gpu(1), Device::Gpu(2), Device::Cpu, Device::Auto];
        let groups = devices.map(|device| InstanceGroup { count: 2, device }).to_vec();
        let settings = Settings { onnx, groups, ..Settings::default() };
        let config = config(&graph(false, "cuda:1,cpu", settings));
        let accelerators = json!({
            "gpu_execution_accelerator": [{"name": "cuda", "parameters": {"use_tf32": "0"}}],
            "cpu_execution_accelerator": [{"name": "openvino", "parameters": {}}],
        });
        assert_eq!(config["optimization"], json!({"graph": {"level": 2}, "execution_accelerators": accelerators}));
        let told = [
            ("intra_op_thread_count", "2"),
            ("execution_mode", "1"),
            ("enable_mem_arena", "0"),
            ("fallback", "true"),
            ("session.set_denormal_as_zero", "1"),
        ];
        let told: Map<_, _> = told.iter().map(|(k, v)| ((*k).to_owned(), json!({"string_value": v}))).collect();
        assert_eq!(config["parameters"], Value::Object(told));
        let instances: Vec<_> = config["instance_group"].as_array().unwrap().iter().map(|g| &g["gpus"]).collect();
        // GPU 2 was asked for and did not load.
        assert_eq!(instances, [&json!([1]), &Value::Null, &Value::Null, &json!([1])]);
        assert_eq!(config["instance_group"][0]["kind"], "KIND_GPU");
        assert_eq!(config["instance_group"][1]["kind"], "KIND_CPU");
    }
}
