//! What `config.pbtxt` says to a tree model: one input, one output, and the parameters of the forest inference library.

use super::{COMMON, Fields, Reading, flag, messages, note, parameters, sort};
use crate::pbtxt::{Message, Value, truth};
use crate::settings::{Answer, Settings};
use crate::tensor::DataType;

/// Fields that mean something else to other models.
const FIELDS: Fields = Fields {
    place: "",
    acting: &[],
    without_effect: &[
        ("instance_group", "models run on the CPU, one instance on all of --nthread threads"),
        ("optimization", "the fastest path is found by measurement when the model is loaded"),
    ],
    refused: &[("model_operations", "trees have no operators; leave it out")],
};

/// Parameters of the forest inference library without effect: the format is told by the file, layout and threads by
/// measurement.
const PARAMETERS_WITHOUT_EFFECT: [&str; 11] = [
    "model_type",
    "storage_type",
    "algo",
    "layout",
    "chunk_size",
    "transfer_threshold",
    "cpu_nthread",
    "blocks_per_sm",
    "threads_per_tree",
    "use_experimental_optimizations",
    "xgboost_allow_unknown_field",
];

/// What only tree models are told.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) answer: Answer,
    pub(super) threshold: Option<f32>,
}

/// Reads it; `common` is what is said to any model.
pub(super) fn read(config: &Message, common: &Settings) -> Reading<Tree> {
    let mut notes = Vec::new();
    sort(config, &[&COMMON, &FIELDS], &mut notes)?;
    check_port(config, "input", &["name", "data_type", "dims"])?;
    check_port(config, "output", &["name", "data_type", "dims", "label_filename"])?;
    if let Some(other) = common.output_type.datatype.filter(|d| !matches!(d, DataType::Fp32 | DataType::Fp64)) {
        return Err(format!("data_type of 'output' is {other}; predictions are TYPE_FP32 or TYPE_FP64"));
    }
    let tree = answers(config, &mut notes)?;
    Ok((tree, notes))
}

/// There is one input and one output. What would change their tensors in a way that is not served is refused.
fn check_port(config: &Message, field: &str, known: &[&str]) -> Result<(), String> {
    let ports = messages(config, field)?;
    if ports.len() > 1 {
        return Err(format!("{} of '{field}'; one is expected", ports.len()));
    }
    let Some(port) = ports.first() else { return Ok(()) };
    for (name, value) in &port.0 {
        let plain = matches!(value, Value::Scalar(text) if truth(text) == Some(false) || text == "FORMAT_NONE");
        if !plain && !known.contains(&name.as_str()) {
            return Err(format!("field '{field}.{name}' is not served"));
        }
    }
    if port.last("data_type").is_none() {
        return Err(format!("data_type '' of '{field}' is not known"));
    }
    Ok(())
}

/// The forest inference library's parameters.
fn answers(config: &Message, notes: &mut Vec<String>) -> Result<Tree, String> {
    let mut tree = Tree::default();
    let (mut classifier, mut probabilities) = (false, false);
    for (key, value) in parameters(config)? {
        match key {
            "is_classifier" | "output_class" => classifier = flag(key, value)?,
            "predict_proba" => probabilities = flag(key, value)?,
            "threshold" => {
                let number = value.parse::<f32>().ok().filter(|number| !number.is_nan());
                tree.threshold = Some(number.ok_or_else(|| format!("parameter 'threshold' is '{value}', no number"))?);
            }
            _ if PARAMETERS_WITHOUT_EFFECT.contains(&key) => {
                let why = "formats are told by their bytes, layouts are found by measurement";
                note(notes, format!("parameter '{key}' has no effect here: {why}"));
            }
            other => return Err(format!("parameter '{other}' is not known")),
        }
    }
    tree.answer = match (classifier, probabilities) {
        (true, false) => Answer::Class,
        (_, true) => Answer::Probability,
        (false, false) => Answer::Value,
    };
    Ok(tree)
}
