//! Models in processes of their own. ONNX Runtime is native code, and some requests end its process: where that may be, a
//! child computes, and what ends it ends nothing else.
//!
//! ```text
//! server ── spawn /proc/self/exe __worker ──────────> child, whose standard input is the control socket
//!        ── control: "open", with a socket ─────────> connection 0: Task ->, <- Outcome
//!        ── control: "open", with a socket, each ───> connection n: call ->, <- answer, call ->, ...
//!        ── control: "cancel connection n, call m" ─> the call's flag
//!        ── control closes ─────────────────────────> the child ends itself
//! ```
//!
//! | file | what |
//! |---|---|
//! | `wire` | messages: tensors as they lie in memory behind a head of JSON |
//! | `control` | sockets passed on, calls cancelled |
//! | `supervisor` | starts the child, and starts it again when it ends |
//! | `remote` | the predictor that asks it |
//! | `child` | what the child does |

mod child;
mod control;
mod remote;
mod supervisor;
mod wire;

pub use child::child;
pub use wire::answer;

use crate::probe;
use crate::stamp::Stamps;
use backends::artifact::Origin;
use backends::onnx::Elsewhere;
use backends::settings;
use backends::{Artifact, Conventions, LoadError, Predictor};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// The word that makes the server's binary a child that computes a model.
pub const COMMAND: &str = "__worker";

/// What is noted of a model that has a process of its own.
pub(crate) const APART: &str = "it is computed in a process of its own (isolation)";

/// What children are started with.
#[derive(Clone, Debug)]
pub struct Workers {
    /// The model that they compute, as logs call it.
    pub model: String,
    /// Threads that compute, of each.
    pub threads: usize,
    /// Where ONNX Runtime is looked for.
    pub libraries: Vec<PathBuf>,
    /// Tensor names and strictness.
    pub conventions: Conventions,
}

impl Workers {
    /// The same for the model of this name.
    #[must_use]
    pub fn of(&self, model: &str) -> Self {
        Workers { model: model.into(), ..self.clone() }
    }
}

/// What a child is to load.
#[derive(Debug, Deserialize, Serialize)]
struct Task {
    origin: Origin,
    threads: usize,
    libraries: Vec<PathBuf>,
    /// Are names as Triton has them?
    triton: bool,
}

/// A model, and how to load it once more.
#[derive(Debug)]
struct Plan {
    model: String,
    file: PathBuf,
    task: Task,
    /// Its files as they were when it was first loaded.
    stamps: Stamps,
}

impl Elsewhere for Workers {
    fn start(&self, artifact: &Artifact) -> Result<Box<dyn Predictor>, LoadError> {
        let origin = artifact.origin().clone();
        let mut stamps = Stamps::default();
        settings::FILES.iter().for_each(|file| stamps.add(origin.root.join(file)));
        probe::add_graph(&mut stamps, artifact);
        let task = Task {
            origin,
            threads: self.threads,
            libraries: self.libraries.clone(),
            triton: self.conventions == Conventions::Triton,
        };
        // As polling sees them: a change that it does not see would have this refused for ever.
        let stamps = stamps.by_path();
        let plan = Plan { model: self.model.clone(), file: artifact.model_path().into(), task, stamps };
        Ok(Box::new(remote::Remote::start(Arc::new(plan))?))
    }
}
