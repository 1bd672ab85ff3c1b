//! The environment that KServe's controller gives to MLServer.

use super::{Becomes, Foreign, List, Rewrite, Takes, say, truth, unless_same, wider_body};
use crate::args::{Args, Origin};

/// What its variables begin with.
pub(super) const PREFIX: &str = "MLSERVER_";

/// Variables with an effect here.
pub(super) const VARIABLES: &[Foreign] = &[
    Foreign::new("MLSERVER_HOST", Takes::Text, Becomes::Own("host")),
    Foreign::new("MLSERVER_HTTP_PORT", Takes::Integer, Becomes::Own("http-port")),
    Foreign::new("MLSERVER_GRPC_PORT", Takes::Integer, Becomes::Own("grpc-port")),
    Foreign::new("MLSERVER_METRICS_PORT", Takes::Integer, Becomes::Own("metrics-port")),
    Foreign::new("MLSERVER_MODEL_NAME", Takes::Text, Becomes::Own("model-name")),
    Foreign::new("MLSERVER_MODEL_URI", Takes::Text, Becomes::Rewritten("model-dir", path)),
    Foreign::new("MLSERVER_MODEL_REPOSITORY_ROOT", Takes::Text, Becomes::Own("model-repository")),
    Foreign::new("MLSERVER_LOAD_MODELS_AT_STARTUP", Takes::Bool, Becomes::Rewritten("load-model", nothing)),
    Foreign::new("MLSERVER_GRPC_MAX_MESSAGE_LENGTH", Takes::Integer, Becomes::Rewritten("max-body-size", wider_body)),
];

/// Any other.
pub(super) static OTHER: Foreign = Foreign::new("MLSERVER_*", Takes::Text, Becomes::Nothing);

fn path(uri: &str) -> Rewrite {
    Rewrite::To(uri.strip_prefix("file://").unwrap_or(uri).to_owned())
}

fn nothing(load: &str) -> Rewrite {
    unless_same((truth(load) == Some(false)).then(String::new))
}

/// Without a model of its own, MLServer under KServe is a repository that the agent fills.
pub(super) fn finish(list: List, args: &mut Args) -> Result<(), String> {
    let (origin, said) = args.word("load-model");
    let by_mlserver = matches!(&origin, Origin::Env(name) if name.starts_with(PREFIX)) && said.is_some();
    let none = ["model-dir", "model-repository"].iter().all(|name| args.word(name).1.is_none());
    if list == List::Own && by_mlserver && none {
        say(args, "model-repository", "/mnt/models", Origin::Program("MLServer"))?;
    }
    Ok(())
}
