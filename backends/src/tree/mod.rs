//! Tree ensembles (and the linear boosters of the same libraries): a file is read, lowered to one kind of forest, and
//! compiled for the kernels.
//!
//! | file | what |
//! |---|---|
//! | `reader` `json` `ubjson` | documents, pulled value by value |
//! | `xgboost` `legacy` `booster` `objective` | XGBoost: document and binary layouts, what they mean, links |
//! | `frame` | tensors as a table: columns by name, categories by value |
//! | `predictor` | rows in, predictions out; batches split over the pool |

mod booster;
mod frame;
mod json;
mod legacy;
mod objective;
mod predictor;
mod reader;
mod ubjson;
mod xgboost;

use crate::{Artifact, Backend, Format, LoadError, LoadOptions, Model};

/// Reads XGBoost files, in whichever of their encodings.
#[derive(Debug)]
pub struct TreeBackend;

impl Backend for TreeBackend {
    fn name(&self) -> &'static str {
        "tree"
    }

    fn reads(&self, format: Format) -> bool {
        matches!(format, Format::XgboostDocument | Format::XgboostBinary)
    }

    fn load(&self, artifact: &Artifact, options: &LoadOptions) -> Result<Model, LoadError> {
        let data = artifact.read_model(&options.limits)?;
        let refuse = |reason: String| LoadError::new(artifact.model_path(), reason);
        let booster = match artifact.format() {
            Format::XgboostDocument => xgboost::read(&data),
            _ => legacy::read(&data),
        };
        let mut booster = booster.map_err(|fault| refuse(fault.to_string()))?;
        drop(data);
        if artifact.settings().use_best_iteration {
            booster.cut_at_best_iteration().map_err(refuse)?;
        }
        let predictor = predictor::TreePredictor::xgboost(booster, options).map_err(refuse)?;
        Ok(Model::Predictor(Box::new(predictor)))
    }
}

/// Is this the beginning of an XGBoost file of the binary format?
pub(crate) fn is_legacy_binary(head: &[u8]) -> bool {
    legacy::looks_like(head)
}
