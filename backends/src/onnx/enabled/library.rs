//! The library: found when the first ONNX model is loaded, then kept. A process has one environment, whose threads all
//! sessions share.

use super::{native, words};
use crate::onnx::{OnnxOptions, Refusal};
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::logging::LogLevel;
use std::path::Path;
use std::sync::Mutex;

/// What there is once the library was found.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// What to do where there is no library.
const REMEDY: &str = "lay libonnxruntime.so (version 1.24 or later; the Python package onnxruntime carries it as \
                      onnxruntime/capi/libonnxruntime.so.*) beside the server's binary, or say where it is with \
                      --onnxruntime-lib FILE";

/// The environment; `threads` compute, whoever calls included.
///
/// # Errors
/// No library was found, or it is none: what to do, and as a detail where it was looked for.
pub(super) fn environment(options: &OnnxOptions, threads: usize) -> Result<Environment, Refusal> {
    let mut environment = ENVIRONMENT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(environment) = &*environment {
        return Ok(environment.clone());
    }
    let mut tried = Vec::new();
    for library in &options.libraries {
        match start(library, threads) {
            Ok(started) => return Ok(environment.insert(started).clone()),
            Err(reason) => tried.push((library.as_path(), reason)),
        }
    }
    Err(refusal(&tried))
}

/// Files and why each is no library. Where they lie is a detail.
fn refusal(tried: &[(&Path, String)]) -> Refusal {
    let named = |&(library, ref reason): &(&Path, String)| {
        let name = Path::new(library.file_name().unwrap_or_default()).display().to_string();
        let reason = words::plain(&reason.replace(&library.display().to_string(), &name));
        format!("{name}: {reason}")
    };
    let whole = |(library, reason): &(&Path, String)| format!("{}: {reason}", library.display());
    let names: Vec<String> = tried.iter().map(named).collect();
    let names = if names.is_empty() { "nowhere to look for it".into() } else { names.join("; ") };
    Refusal {
        reason: format!("ONNX Runtime was not found ({names}); {REMEDY}"),
        detail: tried.iter().map(whole).collect::<Vec<_>>().join("; "),
    }
}

fn start(library: &Path, threads: usize) -> Result<Environment, String> {
    // A plain name is the loader's to find; of a path it is known beforehand whether anything is there.
    if library.components().count() > 1 && !library.is_file() {
        return Err("there is no such file".into());
    }
    let builder = ort::init_from(library).map_err(|e| e.to_string())?;
    // Threads that spin for work take it from the models beside this one.
    let pool = GlobalThreadPoolOptions::default().with_intra_threads(threads.max(1));
    let pool = pool.and_then(|pool| pool.with_inter_threads(1)).and_then(|pool| pool.with_spin_control(false));
    let builder = builder.with_name("tensorgate").with_telemetry(false);
    let environment = builder.with_global_thread_pool(pool.map_err(|e| e.to_string())?).build();
    let environment = environment.map_err(|e| e.to_string())?;
    // Whatever goes wrong is told to whoever asked: requests do not write into the log.
    environment.set_log_level(LogLevel::Fatal);
    native::guard_division();
    native::keep_little();
    Ok(environment)
}
