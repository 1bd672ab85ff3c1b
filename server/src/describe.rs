//! Metadata, configuration, statistics and the index as plain values: REST prints them as they are, gRPC copies them
//! into its messages.

use crate::registry::{IndexEntry, Servable};
use crate::servable::Work;
use crate::stats::Durations;
use backends::settings::{Answer, Batching, VersionPolicy};
use backends::{DataType, Port, Settings};
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering::Relaxed;

/// `GET /v2/models/{model}`.
pub fn metadata(servable: &Servable, versions: &[u64]) -> Value {
    let ports = |ports: &[Port]| -> Vec<Value> {
        let port = |p: &Port| json!({"name": p.name, "datatype": p.datatype.name(), "shape": p.shape});
        ports.iter().map(port).collect()
    };
    let versions: Vec<String> = versions.iter().map(u64::to_string).collect();
    json!({
        "name": servable.name,
        "versions": versions,
        "platform": servable.signature.platform,
        "inputs": ports(&servable.signature.inputs),
        "outputs": ports(&servable.signature.outputs),
    })
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
/// dimension: language models answer one prompt.
pub fn max_batch_size(servable: &Servable) -> u32 {
    if is_language(servable) {
        return 0;
    }
    servable.settings.max_batch_size.unwrap_or(MAX_BATCH_SIZE)
}

/// Is it a language model, whose one request may have many responses?
pub fn is_language(servable: &Servable) -> bool {
    matches!(servable.work, Work::Language(_))
}

/// The shape without its first, batched dimension, as a configuration states it.
pub fn config_dims(port: &Port) -> Vec<i64> {
    let dims = port.shape.get(1..).unwrap_or_default().to_vec();
    if dims.is_empty() { vec![1] } else { dims }
}

/// `GET /v2/models/{model}/config`.
pub fn config(servable: &Servable) -> Value {
    let input = |p: &Port| {
        json!({"name": p.name, "data_type": config_datatype(p.datatype), "format": "FORMAT_NONE",
               "dims": config_dims(p), "is_shape_tensor": false, "allow_ragged_batch": false,
               "optional": p.optional, "is_non_linear_format_io": false})
    };
    let output = |p: &Port| {
        json!({"name": p.name, "data_type": config_datatype(p.datatype), "dims": config_dims(p),
               "label_filename": "", "is_shape_tensor": false, "is_non_linear_format_io": false})
    };
    json!({
        "name": servable.name,
        "platform": servable.signature.platform,
        "backend": "tensorgate",
        "version_policy": version_policy(&servable.settings.versions),
        "max_batch_size": max_batch_size(servable),
        "input": servable.signature.inputs.iter().map(input).collect::<Vec<_>>(),
        "output": servable.signature.outputs.iter().map(output).collect::<Vec<_>>(),
        "instance_group": [{"name": servable.name, "kind": "KIND_CPU", "count": 1}],
        "default_model_filename": servable.settings.file.as_deref().unwrap_or_default(),
        "model_transaction_policy": {"decoupled": is_language(servable)},
        "dynamic_batching": dynamic_batching(&servable.settings.batching),
        "parameters": config_parameters(&servable.settings)
            .into_iter()
            .map(|(key, value)| (key, json!({"string_value": value})))
            .collect::<Map<_, _>>(),
    })
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
    if let Some(size) = batching.queue_size {
        stated["default_queue_policy"] = json!({"max_queue_size": size});
    }
    stated
}

/// What a model answers, by the names that Triton's forest backend has for it, and what only settings of this server's
/// own state.
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
    parameters
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

    #[test]
    fn a_configuration_says_what_the_settings_say() {
        assert_eq!(version_policy(&VersionPolicy::Latest(2)), json!({"latest": {"num_versions": 2}}));
        assert_eq!(version_policy(&VersionPolicy::All), json!({"all": {}}));
        assert_eq!(version_policy(&VersionPolicy::Specific(vec![1, 3])), json!({"specific": {"versions": [1, 3]}}));
        let batching = Batching { max_delay_us: Some(100), queue_size: Some(7) };
        let stated = json!({"preserve_ordering": false, "max_queue_delay_microseconds": 100,
                            "default_queue_policy": {"max_queue_size": 7}});
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
}
