//! `tensorgate validate DIR`: loads every model of a directory as the server would, and says what it found.

use crate::config::{Machine, libraries};
use crate::probe::{Probe, Tried};
use crate::repository::{Found, Repository, Survey};
use crate::telemetry;
use backends::llm::LanguageOptions;
use backends::onnx::OnnxOptions;
use backends::{Artifact, Conventions, Format, Limits, LoadError, LoadOptions, Model, load, settings};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A model that takes longer to load and to run once is refused.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Lines for each model, and whether all of them can be served; `onnxruntime` is its library, where that was said.
///
/// # Errors
/// The directory cannot be read.
pub fn validate(directory: &Path, onnxruntime: Option<&Path>) -> Result<(String, bool), String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| e.to_string())?;
    let options = LoadOptions {
        pool: Arc::new(pool),
        limits: Limits::default(),
        conventions: Conventions::Kserve,
        language: LanguageOptions::default(),
        onnx: OnnxOptions { libraries: libraries::onnxruntime(onnxruntime), ..OnnxOptions::default() },
    };
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Survey { models, notes } =
        Repository::single_or_many(directory, name).survey().map_err(|error| error.to_string())?;
    // What would end a server is not to end this.
    let probe = Probe {
        at_start: true,
        timeout: PROBE_TIMEOUT,
        memory: None,
        machine: Machine::detect().memory,
        libraries: options.onnx.libraries.clone(),
    };
    let mut report = Report { text: String::new(), good: !models.is_empty(), options, probe };
    if models.is_empty() {
        report.line(&format!("{}: no models", directory.display()));
    }
    for note in notes {
        report.line(&note);
    }
    for (name, found) in models {
        match settings::read(&found.root).ok().and_then(|settings| settings.name) {
            // One model is named on the command line, so its own word counts for the directory's.
            Some(stated) if found.root == directory && stated != name => {
                report.line(&format!("{name}: its settings call it '{stated}': serve it with --model-name {stated}"));
                report.model(&stated, &found);
            }
            _ if found.root == directory => {
                let place = directory.display();
                report.line(&format!("{name}: one model: serve it with --model-dir {place} --model-name {name}"));
                report.model(&name, &found);
            }
            _ => report.model(&name, &found),
        }
    }
    Ok((report.text, report.good))
}

struct Report {
    text: String,
    good: bool,
    options: LoadOptions,
    probe: Probe,
}

impl Report {
    /// One line, whatever a directory is called, and however long an error of a parser is.
    fn line(&mut self, line: &str) {
        self.text += &telemetry::escaped(line);
        self.text.push('\n');
    }

    fn refused(&mut self, place: &str, error: &LoadError) {
        self.good = false;
        self.line(&format!("{place}: refused: {error}"));
    }

    /// The versions that the model's settings ask for, and what becomes of the others.
    fn model(&mut self, name: &str, found: &Found) {
        for note in &found.notes {
            self.line(note);
        }
        let plan = match found.plan() {
            Ok(plan) => plan,
            Err(error) => return self.refused(name, &error),
        };
        for (version, error) in &plan.absent {
            self.refused(&format!("{name} version {version}"), error);
        }
        for (version, path) in &found.versions {
            let place = format!("{name} version {version}");
            if !plan.wanted.contains_key(version) {
                self.line(&format!("{place}: not served: its settings ask for other versions"));
                continue;
            }
            let opened = self.probe.open(found, name, path).and_then(|tried| Ok((self.load(&tried.artifact)?, tried)));
            match opened {
                Err(error) => self.refused(&place, &error),
                Ok(((what, notes), Tried { artifact, .. })) => {
                    self.line(&format!("{place}: ok: {what}"));
                    for note in notes {
                        self.line(&format!("{place}: {note}"));
                    }
                    for note in artifact.settings().notes(artifact.format() == Format::Onnx) {
                        self.line(&format!("{place}: config.pbtxt: {note}"));
                    }
                }
            }
        }
    }

    /// What it is, and what there is to say of it.
    fn load(&self, artifact: &Artifact) -> Result<(String, Vec<String>), LoadError> {
        let predictor = match load(artifact, &self.options)? {
            Model::Predictor(predictor) => predictor,
            Model::Language(model) => {
                return Ok((format!("{}, context {}", artifact.format(), model.context.tokens), Vec::new()));
            }
        };
        let input = predictor.signature().inputs.first().map(|port| port.shape.clone()).unwrap_or_default();
        let output = predictor.signature().outputs.first().map(|port| port.shape.clone()).unwrap_or_default();
        let what = format!("{}, input {input:?}, output {output:?}", artifact.format());
        Ok((what, predictor.profile().notes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A repository with `iris` in two versions, and these files besides.
    fn repository(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/iris/1");
        let model = fs::read_dir(model).unwrap().next().unwrap().unwrap().path();
        for version in ["1", "2"] {
            let directory = root.path().join("iris").join(version);
            fs::create_dir_all(&directory).unwrap();
            fs::copy(&model, directory.join("model.json")).unwrap();
        }
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn lines(files: &[(&str, &str)]) -> (Vec<String>, bool) {
        let (text, good) = validate(repository(files).path(), None).unwrap();
        (text.lines().map(str::to_owned).collect(), good)
    }

    #[test]
    fn versions_as_the_server_takes_them() {
        let (lines, good) = lines(&[]);
        assert_eq!(lines[0], "iris version 1: not served: its settings ask for other versions");
        assert!(lines[1].starts_with("iris version 2: ok: XGBoost"), "{lines:?}");
        assert!(good);
    }

    #[test]
    fn what_settings_ask_for_and_is_not_so() {
        let (absent, good) = lines(&[("iris/model.toml", "versions = { specific = [1, 7] }")]);
        assert!(absent[0].starts_with("iris version 7: refused: "), "{absent:?}");
        assert!(absent[0].ends_with("version 7, which its settings ask for, is not there"), "{absent:?}");
        assert!(absent[1].starts_with("iris version 1: ok"), "{absent:?}");
        assert!(!good);
        let (renamed, good) = lines(&[("iris/model.toml", "name = \"rose\"")]);
        assert!(renamed[1].ends_with("its settings call it 'rose', but it is served as 'iris'"), "{renamed:?}");
        assert!(!good);
    }

    #[test]
    fn what_the_file_system_keeps_is_no_model() {
        let (lines, good) = lines(&[("lost+found/#12", "")]);
        assert!(lines[0].ends_with("lost+found: is the file system's own, and no model"), "{lines:?}");
        assert!(good && lines.len() == 3, "{lines:?}");
    }

    #[test]
    fn one_model_may_be_named_otherwise() {
        let root = repository(&[("iris/model.toml", "name = \"rose\"")]);
        let (text, good) = validate(&root.path().join("iris"), None).unwrap();
        assert!(text.starts_with("iris: its settings call it 'rose': serve it with --model-name rose\n"), "{text}");
        assert!(text.contains("rose version 2: ok") && good, "{text}");
    }

    #[test]
    fn a_finding_is_one_line() {
        let (lines, good) = lines(&[("new\nline/model.txt", "tree"), ("rose/model.toml", "= 1")]);
        assert!(lines[2].starts_with("new\\nline version 1: refused: "), "{lines:?}");
        assert!(lines[3].starts_with("rose: refused: ") && lines[3].contains("\\n"), "{lines:?}");
        assert!(!good && lines.len() == 4, "{lines:?}");
    }

    #[test]
    fn a_number_that_is_no_version_is_named() {
        let (lines, good) = lines(&[("rose/01/model.txt", "tree"), ("iris/0/model.txt", "tree")]);
        assert!(lines[0].contains("iris: '0' is no version: versions are 1, 2, ..."), "{lines:?}");
        assert!(lines[3].starts_with("rose: refused: ") && lines[3].contains("'01' is no version: "), "{lines:?}");
        assert!(!good && lines.len() == 4, "{lines:?}");
    }

    #[test]
    fn a_configuration_without_architectures_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
        let (text, good) = validate(root.path(), None).unwrap();
        let (first, second) = text.split_once('\n').unwrap();
        assert!(
            first.ends_with(": no models") && second.contains("config.json is there, but near its beginning"),
            "{text}"
        );
        assert!(!good);
    }

    #[test]
    fn a_file_that_is_no_model_is_named() {
        let (lines, good) = lines(&[("cut/1/model.json", "{\"version\":[3,0"), ("pickled/model.pkl", "\u{80}\u{4}")]);
        assert!(lines[0].contains("model.json"), "{lines:?}");
        assert!(lines[0].contains("\"learner\""), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("model.pkl")), "{lines:?}");
        assert!(!good);
    }
}
