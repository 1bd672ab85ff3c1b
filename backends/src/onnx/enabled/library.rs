//! The library: found when the first ONNX model is loaded, then kept. A process has one environment, whose threads all
//! sessions share.

use super::native;
use crate::onnx::OnnxOptions;
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
/// No library was found, or it is none: where it was looked for, and what to do.
pub(super) fn environment(options: &OnnxOptions, threads: usize) -> Result<Environment, String> {
    let mut environment = ENVIRONMENT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(environment) = &*environment {
        return Ok(environment.clone());
    }
    let mut tried = Vec::new();
    for library in &options.libraries {
        match start(library, threads) {
            Ok(started) => return Ok(environment.insert(started).clone()),
            Err(reason) => tried.push(format!("{}: {reason}", library.display())),
        }
    }
    let tried = if tried.is_empty() { "nowhere to look for it".into() } else { tried.join("; ") };
    Err(format!("ONNX Runtime was not found ({tried}); {REMEDY}"))
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
    Ok(environment)
}

/// Where the library's own source lies in what it says.
const SOURCE: &str = "/onnxruntime_src/";

/// What ONNX Runtime says of an error, without where in its own source it noticed.
pub(super) fn words(error: &ort::Error) -> String {
    without_source(error.message())
}

fn without_source(text: &str) -> String {
    let mut left = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(SOURCE) {
        left.push_str(&rest[..at]);
        // A file with its line, and a function with what it takes.
        let place = &rest[at..];
        let end = place.find(") ").map_or_else(|| place.find(' '), |end| Some(end + 1));
        rest = end.map_or("", |end| place[end..].trim_start());
    }
    left + rest
}

#[cfg(test)]
mod tests {
    use super::without_source;

    #[test]
    fn where_in_the_library_it_was_noticed_is_nobodys_business() {
        let said = "Non-zero status. Status Message: /onnxruntime_src/core/ops.h:583 void onnxruntime::Append(ptrdiff_t, \
                    ptrdiff_t) axis == 1 was false. 32 by 33";
        assert_eq!(without_source(said), "Non-zero status. Status Message: axis == 1 was false. 32 by 33");
        assert_eq!(without_source("at /onnxruntime_src/a.cc:1 broken"), "at broken");
        assert_eq!(without_source("at /onnxruntime_src/a.cc:1"), "at ");
        assert_eq!(without_source("indices out of bounds"), "indices out of bounds");
    }
}
