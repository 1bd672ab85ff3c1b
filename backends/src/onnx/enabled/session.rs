//! A graph on a device: one session for each group of instances, which all calls of the group share.

use super::run;
use super::words::{plain, words};
use crate::onnx::Source;
use crate::settings::{Device, Onnx, Optimization, Provider, ProviderKind, Settings};
use ort::environment::Environment;
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ExecutionProvider};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use std::collections::BTreeMap;

/// Where external data is looked for when the graph comes out of memory: what is not given from memory as well.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// Sessions of a model, and what there is to say of them.
pub(super) struct Opened {
    pub(super) groups: Vec<Group>,
    /// Providers that did not load, where others may take their place.
    pub(super) notes: Vec<String>,
}

/// A session, and how many calls it may have at a time; `None` where nothing is stated.
pub(super) struct Group {
    pub(super) session: Session,
    pub(super) device: String,
    pub(super) count: Option<usize>,
}

/// What each session of a model is made of.
struct Making<'a> {
    environment: &'a Environment,
    source: &'a Source,
    onnx: &'a Onnx,
    /// Threads that all models share.
    threads: usize,
    /// What says, in the file that the settings are of, that the next provider may serve where one does not load.
    remedy: &'static str,
}

const REMEDIES: [&str; 2] = [
    "`fallback = true` in [onnx] of model.toml",
    "parameters { key: \"fallback\" value { string_value: \"true\" } } in config.pbtxt",
];

/// Opens the sessions that the settings ask for; without groups one, on the first of the stated providers. `threads`
/// compute where the settings do not say how many.
///
/// # Errors
/// What ONNX Runtime says of the graph, or of a provider.
pub(super) fn open(
    environment: &Environment,
    source: &Source,
    settings: &Settings,
    threads: usize,
) -> Result<Opened, String> {
    let [toml, pbtxt] = REMEDIES;
    let remedy = if settings.from_pbtxt { pbtxt } else { toml };
    let making = Making { environment, source, onnx: &settings.onnx, threads, remedy };
    let mut opened = Opened { groups: Vec::new(), notes: Vec::new() };
    if settings.groups.is_empty() {
        let (session, device) = one(&making, Device::Auto, &mut opened.notes)?;
        opened.groups.push(Group { session, device, count: None });
    }
    for group in &settings.groups {
        let (session, device) = one(&making, group.device, &mut opened.notes)?;
        opened.groups.push(Group { session, device, count: Some(group.count) });
    }
    Ok(opened)
}

fn one(making: &Making<'_>, device: Device, notes: &mut Vec<String>) -> Result<(Session, String), String> {
    let Making { environment, source, onnx, threads, remedy } = *making;
    let mut builder = Session::builder(environment).map_err(|e| plain(&e.to_string()))?;
    builder = configured(builder, onnx, threads).map_err(|e| words(&e))?;
    let folder = source.directory.to_str().ok_or("its directory's name is not UTF-8")?;
    builder = builder.with_config_entry(EXTERNAL_FOLDER, folder).map_err(|e| plain(&e.to_string()))?;
    let mut used = None;
    for provider in wanted(onnx, device) {
        match register(&provider, &mut builder) {
            Ok(()) => used = used.or(Some(place(&provider))),
            Err(reason) if onnx.fallback => notes.push(reason),
            Err(reason) => return Err(format!("{reason}; {remedy} lets the next one serve")),
        }
    }
    let session = run::open(builder, &source.bytes, &source.files).map_err(|e| refusal(&e))?;
    Ok((session, used.unwrap_or_else(|| "cpu".into())))
}

fn configured(builder: SessionBuilder, onnx: &Onnx, threads: usize) -> ort::Result<SessionBuilder> {
    let level = match onnx.optimization {
        Some(Optimization::Disabled) => GraphOptimizationLevel::Disable,
        Some(Optimization::Basic) => GraphOptimizationLevel::Level1,
        Some(Optimization::Extended) => GraphOptimizationLevel::Level2,
        Some(Optimization::All) | None => GraphOptimizationLevel::All,
    };
    let mut builder = builder.with_optimization_level(level)?;
    builder = builder.with_log_level(LogLevel::Fatal)?;
    builder = builder.with_memory_pattern(onnx.memory_pattern)?;
    builder = builder.with_parallel_execution(onnx.parallel)?;
    if onnx.intra_op_threads.is_some() || onnx.inter_op_threads.is_some() {
        builder = builder.with_independent_thread_pool()?;
        // What is not stated is what it would be without: 0 is not that, but a thread for each core of the machine.
        builder = builder.with_intra_threads(onnx.intra_op_threads.unwrap_or(threads))?;
        builder = builder.with_inter_threads(onnx.inter_op_threads.unwrap_or(1))?;
    }
    ep::CPU::default().with_arena_allocator(onnx.memory_arena).register(&mut builder)?;
    for (key, value) in &onnx.session {
        builder = builder.with_config_entry(key, value)?;
    }
    Ok(builder)
}

/// The providers of a group: those for its device, on the GPU that the group names.
fn wanted(onnx: &Onnx, device: Device) -> Vec<Provider> {
    let mut found: Vec<Provider> = onnx.providers_on(device).cloned().collect();
    if let Device::Gpu(number) = device {
        for provider in found.iter_mut().filter(|provider| provider.kind.is_gpu()) {
            provider.options.insert("device_id".into(), number.to_string());
        }
    }
    found
}

/// As metrics and metadata have it.
fn place(provider: &Provider) -> String {
    let option = |key: &str, otherwise: &str| {
        provider.options.get(key).cloned().unwrap_or_else(|| otherwise.to_owned()).to_ascii_lowercase()
    };
    match provider.kind {
        ProviderKind::Cpu => "cpu".into(),
        ProviderKind::Cuda | ProviderKind::TensorRt => format!("cuda:{}", option("device_id", "0")),
        ProviderKind::OpenVino => format!("openvino:{}", option("device_type", "cpu")),
    }
}

fn register(provider: &Provider, builder: &mut SessionBuilder) -> Result<(), String> {
    let Provider { kind, options } = provider;
    let registered = match kind {
        ProviderKind::Cpu => Ok(()),
        ProviderKind::Cuda => with(ep::CUDA::default(), options).register(builder),
        ProviderKind::TensorRt => with(ep::TensorRT::default(), options).register(builder),
        ProviderKind::OpenVino => with(ep::OpenVINO::default(), options).register(builder),
    };
    registered.map_err(|e| {
        let why = words(&e);
        format!("execution provider '{}' does not load: {why}", kind.name())
    })
}

fn with<P: ArbitrarilyConfigurableExecutionProvider>(provider: P, options: &BTreeMap<String, String>) -> P {
    options.iter().fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value))
}

/// What ONNX Runtime says of a graph, and what to do where it does not say that.
fn refusal(error: &ort::Error) -> String {
    let what = words(error);
    // StringNormalizer asks for a locale by name, en_US.UTF-8 unless the node says otherwise.
    let remedy = if what.contains("locale") {
        "; the system lacks a locale that a node asks for: set the node's attribute `locale` to one that it has, such \
         as C.UTF-8, or install it (Debian: apt-get install locales-all)"
    } else {
        ""
    };
    format!("ONNX Runtime refuses it: {what}{remedy}")
}
