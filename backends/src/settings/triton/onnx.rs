//! What `config.pbtxt` says to an ONNX model: devices, execution providers, and the parameters of Triton's backend for
//! ONNX Runtime.

use super::{COMMON, Fields, Reading, accelerator, flag, group, note, parameters, port, sort};
use crate::pbtxt::Message;
use crate::settings::onnx::is_entry;
use crate::settings::{Device, InstanceGroup, Isolation, Onnx, Optimization, Settings};
use std::collections::BTreeMap;

/// Fields that mean something else to other models.
const FIELDS: Fields = Fields {
    place: "",
    acting: &["instance_group", "optimization", "model_operations"],
    without_effect: &[],
    refused: &[],
};

const OPERATIONS: Fields = Fields {
    place: "model_operations.",
    acting: &[],
    without_effect: &[],
    refused: &[(
        "op_library_filename",
        "a library of custom operators would run its code in the server; export the graph with standard operators",
    )],
};

const OPTIMIZATION: Fields = Fields {
    place: "optimization.",
    acting: &["graph", "execution_accelerators"],
    without_effect: &[
        ("priority", "requests have priorities, models have none"),
        ("cuda", "launches are not recorded"),
        ("input_pinned_memory", "ONNX Runtime decides where tensors lie"),
        ("output_pinned_memory", "ONNX Runtime decides where tensors lie"),
        ("gather_kernel_buffer_threshold", "batches are put together on the CPU"),
        ("eager_batching", "a batch gathers while another runs"),
    ],
    refused: &[],
};

const GRAPH: Fields = Fields { place: "optimization.graph.", acting: &["level"], without_effect: &[], refused: &[] };

/// Parameters without effect, and why.
const WITHOUT_EFFECT: super::Told = &[
    ("memory.enable_memory_arena_shrinkage", "memory is given back when the model is unloaded"),
    ("share_session_between_instances", "instances of a group share their session anyway"),
];

/// Options of CUDA that are numbers among the parameters, and what ONNX Runtime calls these.
const CUDA: [(&str, &[&str]); 2] = [
    ("cudnn_conv_algo_search", &["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]),
    ("arena_extend_strategy", &["kNextPowerOfTwo", "kSameAsRequested"]),
];

/// Reads it; `common` is what is said to any model.
pub(super) fn read(config: &Message, common: &Settings) -> Reading<(Onnx, Vec<InstanceGroup>)> {
    let mut notes = Vec::new();
    sort(config, &[&COMMON, &FIELDS], &mut notes)?;
    port::check_for_graph(config, &mut notes)?;
    port::check_names("input", &common.inputs)?;
    port::check_names("output", &common.outputs)?;
    if let Some(operations) = config.message("model_operations")? {
        sort(operations, &[&OPERATIONS], &mut notes)?;
    }
    let groups = group::read(config, &mut notes)?;
    let mut onnx = Onnx::default();
    if let Some(optimization) = config.message("optimization")? {
        sort(optimization, &[&OPTIMIZATION], &mut notes)?;
        onnx.optimization = level(optimization, &mut notes)?;
        onnx.providers = accelerator::read(optimization, &mut notes)?;
    }
    let cuda = told(config, &mut onnx, &mut notes)?;
    onnx.add_cuda(&groups);
    add_options(&mut onnx, cuda, &mut notes);
    onnx.settle(&groups)?;
    leave_out_unused(&mut onnx, &groups, &mut notes);
    Ok(((onnx, groups), notes))
}

/// Triton counts in its own way: from none over all to a middle.
fn level(optimization: &Message, notes: &mut Vec<String>) -> Result<Option<Optimization>, String> {
    let Some(graph) = optimization.message("graph")? else { return Ok(None) };
    sort(graph, &[&GRAPH], notes)?;
    match graph.text("level")?.unwrap_or("0") {
        "-1" => Ok(Some(Optimization::Basic)),
        "0" => Ok(None),
        "1" => Ok(Some(Optimization::Extended)),
        "2" => Ok(Some(Optimization::Disabled)),
        other => {
            Err(format!("optimization.graph.level is {other}; expected -1 (basic), 0 (all), 1 (extended) or 2 (none)"))
        }
    }
}

fn isolation(key: &str, value: &str) -> Result<Isolation, String> {
    Ok(match choice(key, value, &["auto", "always", "never"])? {
        "always" => Isolation::Always,
        "never" => Isolation::Never,
        _ => Isolation::Auto,
    })
}

/// The parameters. Those that are options of CUDA are given back: whether it is used is not known yet.
fn told(config: &Message, onnx: &mut Onnx, notes: &mut Vec<String>) -> Result<BTreeMap<String, String>, String> {
    let mut cuda = BTreeMap::new();
    for (key, value) in parameters(config)? {
        match key {
            "intra_op_thread_count" => onnx.intra_op_threads = threads(key, value)?,
            "inter_op_thread_count" => onnx.inter_op_threads = threads(key, value)?,
            "execution_mode" => onnx.parallel = choice(key, value, &["sequential", "parallel"])? == "parallel",
            "enable_mem_arena" => onnx.memory_arena = flag(key, value)?,
            "enable_mem_pattern" => onnx.memory_pattern = flag(key, value)?,
            // This server's own: Triton's backend always goes on without what does not load.
            "fallback" => onnx.fallback = flag(key, value)?,
            "isolation" => onnx.isolation = Some(isolation(key, value)?),
            "gpu_mem_limit" => {
                let bytes: Result<u64, _> = value.parse();
                let bytes = bytes.map_err(|_| format!("parameter '{key}' is '{value}', no number of bytes"))?;
                cuda.insert(key.to_owned(), bytes.to_string());
            }
            "do_copy_in_default_stream" => {
                cuda.insert(key.to_owned(), u8::from(flag(key, value)?).to_string());
            }
            _ if is_entry(key) => {
                onnx.session.insert(key.to_owned(), value.to_owned());
            }
            _ => {
                if let Some((_, names)) = CUDA.iter().find(|(known, _)| *known == key) {
                    cuda.insert(key.to_owned(), choice(key, value, names)?.to_owned());
                } else if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(known, _)| *known == key) {
                    note(notes, format!("parameter '{key}' has no effect here: {why}"));
                } else {
                    return Err(format!("parameter '{key}' is not known"));
                }
            }
        }
    }
    if onnx.inter_op_threads.is_some() && !onnx.parallel {
        onnx.inter_op_threads = None;
        let why = "nodes run one after another where execution_mode is 0";
        note(notes, format!("parameter 'inter_op_thread_count' has no effect here: {why}"));
    }
    Ok(cuda)
}

/// A number of threads, where 0 is as many as there are.
fn threads(key: &str, value: &str) -> Result<Option<usize>, String> {
    let threads: usize = value.parse().map_err(|_| format!("parameter '{key}' is '{value}', no number of threads"))?;
    Ok(Some(threads).filter(|threads| *threads > 0))
}

/// What a parameter stands for that is the number of a name.
fn choice<'a>(key: &str, value: &str, names: &[&'a str]) -> Result<&'a str, String> {
    value.parse::<usize>().ok().and_then(|number| names.get(number).copied()).ok_or_else(|| {
        let known: Vec<_> = names.iter().enumerate().map(|(number, name)| format!("{number} ({name})")).collect();
        format!("parameter '{key}' is '{value}'; expected {}", known.join(" or "))
    })
}

fn add_options(onnx: &mut Onnx, options: BTreeMap<String, String>, notes: &mut Vec<String>) {
    if let Some(cuda) = onnx.cuda() {
        cuda.options.extend(options);
        return;
    }
    for key in options.keys() {
        let why = "the model does not run on CUDA; ask for it with KIND_GPU or the accelerator 'cuda'";
        note(notes, format!("parameter '{key}' has no effect here: {why}"));
    }
}

/// Accelerators of GPUs are none to a model whose instances are all on the CPU.
fn leave_out_unused(onnx: &mut Onnx, groups: &[InstanceGroup], notes: &mut Vec<String>) {
    let on_cpu = !groups.is_empty() && groups.iter().all(|group| group.device == Device::Cpu);
    if on_cpu && onnx.providers.iter().any(|provider| provider.kind.is_gpu()) {
        onnx.providers.retain(|provider| !provider.kind.is_gpu());
        let field = "optimization.execution_accelerators.gpu_execution_accelerator";
        note(notes, format!("'{field}' has no effect here: every instance_group is of KIND_CPU"));
    }
}
