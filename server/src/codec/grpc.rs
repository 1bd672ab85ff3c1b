//! The gRPC messages of inference, configuration and statistics.

use super::v2::{self, datatype, from_raw, push_raw, shape};
use crate::dataplane::{Infer, Inferred, Wanted};
use crate::describe::{self, Instances, Optimized};
use crate::error::Error;
use crate::registry::Servable;
use crate::stats::Durations;
use backends::settings::{Batching, Provider, VersionPolicy};
use backends::tensor::elements;
use backends::{DataType, Limits, Parameter, Parameters, Port, Tensor};
use bytes::Bytes;
use protocol::contents::{Field, Malformed};
use protocol::grpc::infer_parameter::ParameterChoice;
use protocol::grpc::model_config::SchedulingChoice;
use protocol::grpc::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use protocol::grpc::model_infer_response::InferOutputTensor;
use protocol::grpc::{self, InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

/// Reads a request.
///
/// # Errors
/// Names the input at fault.
pub fn decode(request: ModelInferRequest, limits: &Limits) -> Result<Infer, Error> {
    let raw = !request.raw_input_contents.is_empty();
    if request.raw_input_contents.len() > request.inputs.len() {
        return Err(Error::Invalid(format!(
            "raw_input_contents has {} entries for {} inputs",
            request.raw_input_contents.len(),
            request.inputs.len()
        )));
    }
    let mut contents = request.raw_input_contents.into_iter();
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in request.inputs {
        inputs.push(tensor(input, raw.then(|| contents.next()), limits)?);
    }
    Ok(Infer {
        id: Some(request.id).filter(|id| !id.is_empty()),
        parameters: parameters(request.parameters)?,
        inputs,
        outputs: request.outputs.into_iter().map(wanted).collect::<Result<_, _>>()?,
        deadline: None,
    })
}

fn parameters(wire: HashMap<String, InferParameter>) -> Result<Parameters, Error> {
    let mut parameters = Parameters::new();
    for (name, value) in wire {
        let value = match value.parameter_choice {
            Some(ParameterChoice::BoolParam(v)) => Parameter::Bool(v),
            Some(ParameterChoice::Int64Param(v)) => Parameter::Int(v),
            Some(ParameterChoice::StringParam(v)) => Parameter::String(v),
            Some(ParameterChoice::DoubleParam(v)) => Parameter::Double(v),
            Some(ParameterChoice::Uint64Param(v)) => match i64::try_from(v) {
                Ok(v) => Parameter::Int(v),
                Err(_) => Parameter::Uint(v),
            },
            None => return Err(Error::Invalid(format!("parameter '{name}' has no value"))),
        };
        parameters.insert(name, value);
    }
    Ok(parameters)
}

/// Outputs are always raw, whether they were wanted in binary or not.
fn wanted(output: InferRequestedOutputTensor) -> Result<Wanted, Error> {
    v2::wanted(output.name, &parameters(output.parameters)?).map(|(wanted, _)| wanted)
}

/// `raw` is `Some` when the request has raw contents, and holds this input's.
fn tensor(input: InferInputTensor, raw: Option<Option<Bytes>>, limits: &Limits) -> Result<Tensor, Error> {
    let name = input.name;
    let datatype = datatype(&name, &input.datatype)?;
    let shape = shape(&name, &input.shape)?;
    elements(&shape, datatype, limits).map_err(|e| Error::Invalid(format!("input '{name}': {e}")))?;
    // They say nothing that is followed, but what they say has a form.
    let parameters = parameters(input.parameters)?;
    if parameters.contains_key("shared_memory_region") {
        return Err(Error::Unsupported(format!(
            "input '{name}' is in shared memory, which is not served; send the data"
        )));
    }
    match (raw, input.contents) {
        (Some(_), Some(_)) => Err(Error::Invalid(format!(
            "contents field must not be specified when using raw_input_contents for '{name}'"
        ))),
        (Some(Some(bytes)), None) => from_raw(name, datatype, shape, bytes),
        (Some(None), None) => Err(Error::Invalid(format!("unable to find data for input tensor '{name}' in request"))),
        (None, contents) => typed(name, datatype, shape, &contents.unwrap_or_default()),
    }
}

/// The field that has the elements of a type; half precision has none.
fn field_of(datatype: DataType) -> Option<Field> {
    Some(match datatype {
        DataType::Bool => Field::Bool,
        DataType::Int8 | DataType::Int16 | DataType::Int32 => Field::Int,
        DataType::Int64 => Field::Int64,
        DataType::Uint8 | DataType::Uint16 | DataType::Uint32 => Field::Uint,
        DataType::Uint64 => Field::Uint64,
        DataType::Fp32 => Field::Fp32,
        DataType::Fp64 => Field::Fp64,
        DataType::Bytes => Field::Bytes,
        DataType::Fp16 | DataType::Bf16 => return None,
    })
}

/// Typed contents: one field for each family of types; all others must be empty.
fn typed(name: String, datatype: DataType, shape: Vec<usize>, contents: &InferTensorContents) -> Result<Tensor, Error> {
    let field = field_of(datatype);
    check_contents(&name, datatype, &shape, contents)?;
    let Some(field) = field else {
        return Err(Error::Invalid(format!("input '{name}': {datatype} travels in raw_input_contents only")));
    };
    let count = shape.iter().product();
    let malformed = |_| malformed(&name, field);
    // What protobuf has read of 64 bits is cut to the 32 of its type, as its own readers do.
    macro_rules! whole {
        ($wire:ty, $t:ty) => {{
            let mut values = Vec::<$t>::with_capacity(count);
            for value in contents.varints(field) {
                let value = <$t>::try_from(value.map_err(malformed)? as $wire);
                let unfit = |_| Error::Invalid(format!("input '{name}': a value does not fit {datatype}"));
                values.push(value.map_err(unfit)?);
            }
            Tensor::from_vec(name, shape, values)
        }};
    }
    let tensor = match datatype {
        DataType::Bool => {
            let values = contents.varints(field).map(|value| value.map(|value| u8::from(value != 0)));
            let values = values.collect::<Result<Vec<_>, _>>().map_err(malformed)?;
            Tensor::from_bools(name, shape, values)
        }
        DataType::Int8 => whole!(i32, i8),
        DataType::Int16 => whole!(i32, i16),
        DataType::Int32 => whole!(i32, i32),
        DataType::Int64 => whole!(i64, i64),
        DataType::Uint8 => whole!(u32, u8),
        DataType::Uint16 => whole!(u32, u16),
        DataType::Uint32 => whole!(u32, u32),
        DataType::Uint64 => whole!(u64, u64),
        DataType::Bytes => Tensor::from_strings(name, shape, contents.texts()),
        DataType::Fp32 | DataType::Fp64 | DataType::Fp16 | DataType::Bf16 => {
            let mut values = Vec::with_capacity(count * datatype.size());
            contents.fixed(field).for_each(|part| values.extend_from_slice(part));
            Tensor::from_bytes(name, datatype, shape, values.into())
        }
    };
    Ok(tensor?)
}

fn malformed(name: &str, field: Field) -> Error {
    Error::Invalid(format!("input '{name}': a value of {} is cut off, or too long", field.name()))
}

fn check_contents(
    name: &str,
    datatype: DataType,
    shape: &[usize],
    contents: &InferTensorContents,
) -> Result<(), Error> {
    let (wanted, mut got) = (field_of(datatype), 0);
    for count in contents.counts() {
        let (field, count) = count.map_err(|Malformed(field)| malformed(name, field))?;
        if Some(field) != wanted {
            let field = field.name();
            return Err(Error::Invalid(format!("input '{name}' is {datatype}, but its values are in {field}")));
        }
        got += count;
    }
    let count: usize = shape.iter().product();
    match wanted {
        Some(field) if got != count => Err(Error::Invalid(format!(
            "input '{name}': shape {shape:?} needs {count} elements in {}, got {got}",
            field.name()
        ))),
        _ => Ok(()),
    }
}

/// In which of its two forms a reply carries values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As bytes, which clients of KServe and of Triton read whatever they sent.
    Raw,
    /// As numbers, where all outputs have a type that can be written so.
    Typed,
}

/// Writes a reply.
pub fn encode(inferred: Inferred, form: Form) -> ModelInferResponse {
    let mut response = ModelInferResponse {
        model_name: inferred.servable.name.clone(),
        model_version: inferred.servable.version.to_string(),
        id: inferred.id.unwrap_or_default(),
        ..ModelInferResponse::default()
    };
    let typed = form == Form::Typed && inferred.outputs.iter().all(|output| field_of(output.datatype()).is_some());
    for output in inferred.outputs {
        response.outputs.push(InferOutputTensor {
            name: output.name().to_owned(),
            datatype: output.datatype().name().to_owned(),
            shape: output.shape().iter().map(|&length| length as i64).collect(),
            contents: if typed { contents(&output) } else { None },
            ..InferOutputTensor::default()
        });
        if !typed {
            response.raw_output_contents.push(raw(&output));
        }
    }
    response
}

fn raw(output: &Tensor) -> Bytes {
    if output.datatype() != DataType::Bytes {
        return output.bytes().clone();
    }
    let mut raw = Vec::new();
    push_raw(&mut raw, output);
    raw.into()
}

/// A tensor's values in the field of their family; half precision has none.
fn contents(output: &Tensor) -> Option<InferTensorContents> {
    let field = field_of(output.datatype())?;
    macro_rules! whole {
        ($t:ty) => {
            InferTensorContents::of_varints(field, output.values::<$t>()?.iter().map(|&value| i64::from(value) as u64))
        };
    }
    Some(match output.datatype() {
        DataType::Bool => InferTensorContents::of_varints(field, output.bytes().iter().map(|&byte| (byte != 0).into())),
        DataType::Uint8 => whole!(u8),
        DataType::Uint16 => whole!(u16),
        DataType::Uint32 => whole!(u32),
        DataType::Uint64 => InferTensorContents::of_varints(field, output.values::<u64>()?.iter().copied()),
        DataType::Int8 => whole!(i8),
        DataType::Int16 => whole!(i16),
        DataType::Int32 => whole!(i32),
        DataType::Int64 => whole!(i64),
        DataType::Bytes => InferTensorContents::of_texts((0..output.len()).map(|index| output.text(index))),
        DataType::Fp32 | DataType::Fp64 | DataType::Fp16 | DataType::Bf16 => {
            InferTensorContents::of_fixed(field, output.bytes())
        }
    })
}

/// Metadata of a model.
pub fn metadata(servable: &Servable, versions: &[u64]) -> grpc::ModelMetadataResponse {
    let ports = |ports: &[Port]| {
        let port = |p: &Port| grpc::model_metadata_response::TensorMetadata {
            name: p.name.clone(),
            datatype: p.datatype.name().to_owned(),
            shape: p.shape.clone(),
        };
        ports.iter().map(port).collect()
    };
    grpc::ModelMetadataResponse {
        name: servable.name.clone(),
        versions: versions.iter().map(u64::to_string).collect(),
        platform: servable.signature.platform.name().into(),
        inputs: ports(&servable.signature.inputs),
        outputs: ports(&servable.signature.outputs),
        properties: HashMap::new(),
    }
}

/// Configuration of a model.
pub fn config(servable: &Servable) -> grpc::ModelConfig {
    let kind = |port: &Port| {
        grpc::DataType::from_str_name(describe::config_datatype(port.datatype)).map_or(0, |kind| kind as i32)
    };
    let input = |port: &Port| grpc::ModelInput {
        name: port.name.clone(),
        data_type: kind(port),
        dims: describe::config_dims(servable, port),
        optional: port.optional,
        ..grpc::ModelInput::default()
    };
    let output = |port: &Port| grpc::ModelOutput {
        name: port.name.clone(),
        data_type: kind(port),
        dims: describe::config_dims(servable, port),
        ..grpc::ModelOutput::default()
    };
    let parameter = |(key, value)| (key, grpc::ModelParameter { string_value: value });
    grpc::ModelConfig {
        name: servable.name.clone(),
        platform: servable.signature.platform.name().into(),
        backend: describe::backend(servable).into(),
        version_policy: Some(version_policy(&servable.settings.versions)),
        max_batch_size: i32::try_from(describe::max_batch_size(servable)).unwrap_or(i32::MAX),
        input: servable.signature.inputs.iter().map(input).collect(),
        output: servable.signature.outputs.iter().map(output).collect(),
        instance_group: describe::instance_groups(servable).into_iter().map(instances).collect(),
        optimization: describe::optimization(servable).map(optimization),
        model_transaction_policy: Some(grpc::ModelTransactionPolicy { decoupled: describe::is_language(servable) }),
        default_model_filename: servable.settings.file.clone().unwrap_or_default(),
        parameters: describe::config_parameters(&servable.settings).into_iter().map(parameter).collect(),
        scheduling_choice: Some(SchedulingChoice::DynamicBatching(dynamic_batching(&servable.settings.batching))),
        ..grpc::ModelConfig::default()
    }
}

fn instances(group: Instances) -> grpc::ModelInstanceGroup {
    grpc::ModelInstanceGroup {
        name: group.name,
        kind: grpc::model_instance_group::Kind::from_str_name(group.kind).map_or(0, |kind| kind as i32),
        count: i32::try_from(group.count).unwrap_or(i32::MAX),
        gpus: group.gpu.and_then(|gpu| i32::try_from(gpu).ok()).into_iter().collect(),
        ..grpc::ModelInstanceGroup::default()
    }
}

fn optimization(optimized: Optimized<'_>) -> grpc::ModelOptimizationPolicy {
    use grpc::model_optimization_policy::execution_accelerators::Accelerator;
    use grpc::model_optimization_policy::{ExecutionAccelerators, Graph};
    let accelerator = |provider: &Provider| Accelerator {
        name: provider.kind.name().into(),
        parameters: provider.options.clone().into_iter().collect(),
    };
    let [gpu, cpu] = optimized.accelerators.map(|list| list.into_iter().map(accelerator).collect::<Vec<_>>());
    grpc::ModelOptimizationPolicy {
        graph: Some(Graph { level: optimized.level }),
        execution_accelerators: Some(ExecutionAccelerators {
            gpu_execution_accelerator: gpu,
            cpu_execution_accelerator: cpu,
        }),
        ..grpc::ModelOptimizationPolicy::default()
    }
}

fn version_policy(versions: &VersionPolicy) -> grpc::ModelVersionPolicy {
    use grpc::model_version_policy::{All, Latest, PolicyChoice, Specific};
    let choice = match versions {
        VersionPolicy::Latest(count) => PolicyChoice::Latest(Latest { num_versions: *count }),
        VersionPolicy::All => PolicyChoice::All(All {}),
        VersionPolicy::Specific(versions) => {
            let versions = versions.iter().map(|&version| i64::try_from(version).unwrap_or(i64::MAX)).collect();
            PolicyChoice::Specific(Specific { versions })
        }
    };
    grpc::ModelVersionPolicy { policy_choice: Some(choice) }
}

fn dynamic_batching(batching: &Batching) -> grpc::ModelDynamicBatching {
    let queue = |size: usize| grpc::ModelQueuePolicy {
        max_queue_size: u32::try_from(size).unwrap_or(u32::MAX),
        ..grpc::ModelQueuePolicy::default()
    };
    grpc::ModelDynamicBatching {
        preferred_batch_size: batching.preferred.and_then(|rows| rows.try_into().ok()).into_iter().collect(),
        max_queue_delay_microseconds: batching.max_delay_us.unwrap_or_default(),
        default_queue_policy: batching.queue_size.map(queue),
        ..grpc::ModelDynamicBatching::default()
    }
}

/// Statistics of a model.
pub fn statistics(servable: &Servable) -> grpc::ModelStatistics {
    let stats = &servable.stats;
    let pair = |(count, ns): (u64, u64)| Some(grpc::StatisticDuration { count, ns });
    let duration = |d: &Durations| pair(d.read());
    grpc::ModelStatistics {
        name: servable.name.clone(),
        version: servable.version.to_string(),
        last_inference: stats.last_inference.load(Relaxed),
        inference_count: stats.inferences.load(Relaxed),
        execution_count: stats.executions.load(Relaxed),
        inference_stats: Some(grpc::InferStatistics {
            success: duration(&stats.success),
            fail: duration(&stats.fail),
            queue: duration(&stats.queue),
            compute_input: duration(&stats.input),
            compute_infer: duration(&stats.infer),
            compute_output: duration(&stats.output),
            cache_hit: pair((0, 0)),
            cache_miss: pair((0, 0)),
        }),
        batch_stats: stats
            .batches()
            .into_iter()
            .map(|(batch_size, [input, infer, output])| grpc::InferBatchStatistics {
                batch_size,
                compute_input: pair(input),
                compute_infer: pair(infer),
                compute_output: pair(output),
            })
            .collect(),
        memory_usage: vec![grpc::MemoryUsage { r#type: "CPU".into(), id: 0, byte_size: servable.bytes as u64 }],
        response_stats: HashMap::new(),
    }
}
