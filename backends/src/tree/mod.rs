//! Tree ensembles (and the linear boosters of the same libraries): a file is read, lowered to one kind of forest, and
//! compiled for the kernels.
//!
//! | file | what |
//! |---|---|
//! | `reader` `json` `ubjson` | documents, pulled value by value |
//! | `xgboost` `legacy` `booster` `objective` | XGBoost: document and binary layouts, what they mean, links |
//! | `lightgbm/` | LightGBM: the text layout, what it means, links |
//! | `answer` | predictions as the model's settings want them |
//! | `frame` | tensors as a table: columns by name, categories by value |
//! | `scorer` | the arithmetic of each library: rows to sums to predictions |
//! | `predictor` | rows in, predictions out; batches split over the pool |

mod answer;
mod booster;
mod frame;
mod json;
mod legacy;
mod lightgbm;
mod objective;
mod predictor;
mod reader;
mod scorer;
mod ubjson;
mod xgboost;

/// The `content_type` of a frame that may lack columns of the model, which are missing values then. That of the protocol, `pd`,
/// may not lack any.
pub const FILLED_FRAME: &str = "pd; columns=model";

use crate::settings::Answer;
use crate::{Artifact, Backend, Conventions, Format, LoadError, LoadOptions, Model, Platform, Predictor};
use booster::Booster;
use predictor::{Context, TreePredictor};
use scorer::{Intake, Lightgbm, Xgboost};

/// Reads XGBoost files, in whichever of their encodings, and LightGBM text files.
#[derive(Debug)]
pub struct TreeBackend;

impl Backend for TreeBackend {
    fn name(&self) -> &'static str {
        "tree"
    }

    fn reads(&self, format: Format) -> bool {
        matches!(format, Format::XgboostDocument | Format::XgboostBinary | Format::LightgbmText)
    }

    fn load(&self, artifact: &Artifact, options: &LoadOptions) -> Result<Model, LoadError> {
        artifact.settings().check_for(false).map_err(|reason| LoadError::new(artifact.model_path(), reason))?;
        let data = artifact.read_model(&options.limits)?;
        let context = Context { options, settings: artifact.settings() };
        let predictor = match artifact.format() {
            Format::XgboostDocument => {
                xgboost::read(&data).map_err(|fault| fault.to_string()).and_then(|b| load_xgboost(b, &context))
            }
            Format::XgboostBinary => {
                legacy::read(&data).map_err(|fault| fault.to_string()).and_then(|b| load_xgboost(b, &context))
            }
            // Its files end at the best iteration already.
            Format::LightgbmText => load_lightgbm(&data, &context),
            Format::HuggingFace | Format::Gguf | Format::Onnx => Err("is no tree ensemble".into()),
        };
        predictor.map(Model::Predictor).map_err(|reason| LoadError::new(artifact.model_path(), reason))
    }
}

fn load_xgboost(mut booster: Booster, context: &Context<'_>) -> Result<Box<dyn Predictor>, String> {
    if context.settings.use_best_iteration {
        booster.cut_at_best_iteration()?;
    }
    // Its predictions are classes, but the probabilities are there, as its scikit-learn classes have them.
    if context.settings.answer == Answer::Probability && booster.objective.ends_with("multi:softmax") {
        booster.objective = "multi:softprob".into();
    }
    let columns = booster.take_columns()?;
    // `DMatrix` refuses infinities, `inplace_predict` and FIL do not.
    let finite = context.options.conventions == Conventions::Kserve;
    let intake = Intake { columns, fills_up: true, finite };
    Ok(Box::new(TreePredictor::new(Xgboost::new(booster)?, intake, Platform::Xgboost, context)?))
}

fn load_lightgbm(data: &[u8], context: &Context<'_>) -> Result<Box<dyn Predictor>, String> {
    let model = lightgbm::read(data).map_err(|fault| fault.to_string())?;
    let (scorer, intake) = Lightgbm::new(lightgbm::lower(model)?);
    Ok(Box::new(TreePredictor::new(scorer, intake, Platform::LightGbm, context)?))
}

/// Is this the beginning of an XGBoost file of the binary format?
pub(crate) fn is_legacy_binary(head: &[u8]) -> bool {
    legacy::looks_like(head)
}

/// Is this the beginning of a LightGBM text file?
pub(crate) fn is_lightgbm_text(head: &[u8]) -> bool {
    lightgbm::looks_like(head)
}
