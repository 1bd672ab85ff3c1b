//! `tensorgate validate DIR`: loads every model of a directory as the server would, and says what it found.

use crate::repository::Repository;
use backends::{Artifact, Conventions, Limits, LoadOptions, Model, load};
use std::path::Path;
use std::sync::Arc;

/// One line for each model, and whether all of them can be served.
///
/// # Errors
/// The directory cannot be read.
pub fn validate(directory: &Path) -> Result<(String, bool), String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| e.to_string())?;
    let options = LoadOptions { pool: Arc::new(pool), limits: Limits::default(), conventions: Conventions::Kserve };
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let models = Repository::single_or_many(directory, name).list().map_err(|e| e.to_string())?;
    let (mut text, mut good) = (String::new(), !models.is_empty());
    if models.is_empty() {
        text += &format!("{}: no models\n", directory.display());
    }
    for (name, found) in models {
        for (version, path) in &found.versions {
            let loaded = Artifact::open(&found.root, path).and_then(|artifact| {
                let Model::Predictor(predictor) = load(&artifact, &options)?;
                let input = predictor.signature().inputs.first().map(|port| port.shape.clone()).unwrap_or_default();
                let output = predictor.signature().outputs.first().map(|port| port.shape.clone()).unwrap_or_default();
                let what = format!("{}, input {input:?}, output {output:?}", artifact.format());
                Ok((what, artifact.settings().without_effect.clone()))
            });
            match loaded {
                Ok((what, without_effect)) => {
                    text += &format!("{name} version {version}: ok: {what}\n");
                    for note in without_effect {
                        text += &format!("{name} version {version}: config.pbtxt: {note}\n");
                    }
                }
                Err(error) => {
                    good = false;
                    text += &format!("{name} version {version}: refused: {error}\n");
                }
            }
        }
    }
    Ok((text, good))
}
