//! Everything that names ONNX Runtime.
//!
//! | file | what |
//! |---|---|
//! | `library` | finding the library; the one environment and its threads |
//! | `session` | a graph on a device: options, execution providers |
//! | `signature` | names, types and shapes, of the graph and of the settings |
//! | `values` `flatten` | tensors to values and back; sequences and maps as tensors |
//! | `run` | calls into the library that the compiler cannot check: files given from memory, a run, and the texts that it gives |
//! | `native` | what is asked of the C library: memory back, quotients without a value |
//! | `words` | what ONNX Runtime says, without what only its own makers need |
//! | `watch` | ends runs that nobody waits for any more |
//! | `trial` | a first run, made up from the signature: warm-up, time of a call, whether rows are apart |
//! | `empties` | which calls may end the process |
//! | `predictor` | all of it behind the contract |

mod empties;
mod flatten;
mod library;
mod native;
mod predictor;
mod run;
mod session;
mod signature;
mod trial;
mod values;
mod watch;
mod words;

use super::{Refusal, Source};
use crate::{LoadOptions, Predictor, Settings};

/// Begins with what every graph needs, once; in a thread of its own, whose priority those of the library inherit. Where
/// it fails, [`load`] says so.
pub(super) fn prepare(options: &LoadOptions) {
    native::stand_back();
    drop(library::environment(&options.onnx, options.pool.current_num_threads()));
}

/// Opens a graph and tries it.
///
/// # Errors
/// The library is not there, refuses the graph, or the settings do not fit it.
pub(super) fn load(
    mut source: Source,
    settings: &Settings,
    options: &LoadOptions,
) -> Result<Box<dyn Predictor>, Refusal> {
    let threads = options.pool.current_num_threads();
    let environment = library::environment(&options.onnx, threads)?;
    let groups = session::open(&environment, &source, settings, threads)?;
    // Each session has its copy.
    source.files = Vec::new();
    let predictor = predictor::OnnxPredictor::new(&source, settings, groups, options)?;
    Ok(Box::new(predictor))
}
