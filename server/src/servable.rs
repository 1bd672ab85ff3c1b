//! A model that serves: what it does, what it was set to, and what happened to its requests.

use crate::batcher::{self, Batcher};
use crate::entry::NO_PROCESS;
use crate::error::Error;
use crate::llm::Language;
use crate::metrics::ModelMetrics;
use crate::repository::Version;
use crate::stats::Stats;
use backends::llm::LanguageModel;
use backends::{DataType, Model, Platform, Port, Predictor, Settings, Signature};
use std::sync::Arc;
use std::time::Instant;

/// A model that answers.
#[derive(Debug)]
pub struct Servable {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// What it does.
    pub work: Work,
    /// What it takes and gives.
    pub signature: Signature,
    /// What happened to its requests.
    pub stats: Arc<Stats>,
    /// The same for Prometheus.
    pub metrics: ModelMetrics,
    /// What its files cannot tell.
    pub settings: Settings,
    /// Bytes held.
    pub bytes: usize,
}

/// What a model does.
#[derive(Debug)]
pub enum Work {
    /// Tensors in, tensors out: a predictor behind its queue.
    Predictor(Batcher),
    /// Text in, text out.
    Language(Box<Language>),
}

impl Servable {
    /// Puts a loaded model into service.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(
        (name, version): (&str, Version),
        model: Model,
        settings: Settings,
        batching: &batcher::Options,
    ) -> Result<Self, String> {
        match model {
            Model::Predictor(predictor) => Ok(Self::predictor((name, version), predictor, settings, batching)),
            Model::Language(model) => Self::language_model((name, version), *model, settings),
        }
    }

    fn predictor(
        (name, version): (&str, Version),
        predictor: Box<dyn Predictor>,
        settings: Settings,
        batching: &batcher::Options,
    ) -> Self {
        let profile = predictor.profile();
        let metrics = ModelMetrics::register(name, version, &profile.device);
        let stats = Arc::new(Stats::counting(metrics.executions()));
        let mut signature = predictor.signature().clone();
        for (index, output) in signature.outputs.iter_mut().enumerate() {
            let labels = settings.labels_of(index, &output.name);
            if !labels.is_empty() {
                output.labels = labels.to_vec();
            }
        }
        // What one request may not have, a batch of several may not have either: the bound is the model's.
        let most = settings.max_batch_size.map_or(usize::MAX, |rows| rows as usize);
        // Of trees the server's own bound is measured; what a row of a graph costs, the graph alone can tell.
        // Whoever states how many rows a batch may have wants them together.
        let measured = signature.platform == Platform::Onnx && settings.max_batch_size.is_none();
        let worth = if measured { profile.preferred_batch } else { usize::MAX };
        let batching = batcher::Options {
            max_rows: batching.max_rows.min(most).min(worth),
            max_delay: settings.batching.max_delay().unwrap_or(batching.max_delay),
            enough: settings.batching.preferred.unwrap_or(batching.enough),
            queue: settings.batching.queue_size.unwrap_or(batching.queue),
            ..*batching
        };
        let work = Work::Predictor(Batcher::new(predictor, batching, stats.clone()));
        Servable { name: name.into(), version, work, signature, stats, metrics, settings, bytes: profile.bytes }
    }

    fn language_model(
        (name, version): (&str, Version),
        model: LanguageModel,
        settings: Settings,
    ) -> Result<Self, String> {
        let port = |name: &str, datatype: DataType| Port {
            name: name.into(),
            datatype,
            also: Vec::new(),
            shape: vec![1],
            optional: !name.starts_with("text_"),
            any_shape: false,
            labels: Vec::new(),
        };
        let signature = Signature {
            // What Triton's backend for vLLM takes and gives, and the fields of completions that are asked for most: all
            // of them are taken.
            inputs: vec![
                port("text_input", DataType::Bytes),
                port("stream", DataType::Bool),
                port("sampling_parameters", DataType::Bytes),
                port("exclude_input_in_output", DataType::Bool),
                port("return_finish_reason", DataType::Bool),
                port("return_cumulative_logprob", DataType::Bool),
                port("return_num_output_tokens", DataType::Bool),
                port("return_num_input_tokens", DataType::Bool),
                port("max_tokens", DataType::Int32),
                port("min_tokens", DataType::Int32),
                port("temperature", DataType::Fp32),
                port("top_p", DataType::Fp32),
                port("top_k", DataType::Int32),
                port("min_p", DataType::Fp32),
                port("seed", DataType::Int64),
                Port { shape: vec![-1], ..port("stop", DataType::Bytes) },
                port("repetition_penalty", DataType::Fp32),
                port("presence_penalty", DataType::Fp32),
                port("frequency_penalty", DataType::Fp32),
                port("ignore_eos", DataType::Bool),
            ],
            outputs: vec![
                port("text_output", DataType::Bytes),
                port("finish_reason", DataType::Bytes),
                port("cumulative_logprob", DataType::Fp32),
                port("num_output_tokens", DataType::Uint32),
                port("num_input_tokens", DataType::Uint32),
            ],
            strict: true,
            feature_names: Vec::new(),
            platform: model.platform,
        };
        let bytes = model.bytes;
        let metrics = ModelMetrics::register(name, version, model.device);
        let stats = Arc::new(Stats::counting(metrics.executions()));
        let work = Work::Language(Box::new(Language::start(name, model)?));
        Ok(Servable { name: name.into(), version, work, signature, stats, metrics, settings, bytes })
    }

    /// The queue of a model of tensors.
    ///
    /// # Errors
    /// It is a language model.
    pub fn batcher(&self) -> Result<&Batcher, Error> {
        match &self.work {
            Work::Predictor(batcher) => Ok(batcher),
            Work::Language(_) => Err(Error::Unsupported(format!(
                "'{}' is a language model, which takes no tensors: ask /v1/chat/completions or /v1/completions",
                self.name
            ))),
        }
    }

    /// The language model.
    ///
    /// # Errors
    /// It is a model of tensors.
    pub fn language(&self) -> Result<&Language, Error> {
        match &self.work {
            Work::Language(language) => Ok(language),
            Work::Predictor(_) => Err(Error::Invalid(format!(
                "'{}' is no language model: ask /v1/models/{}:predict or /v2/models/{}/infer",
                self.name, self.name, self.name
            ))),
        }
    }

    /// Where it runs.
    pub fn device(&self) -> String {
        match &self.work {
            Work::Predictor(batcher) => batcher.predictor().profile().device,
            Work::Language(language) => language.device().into(),
        }
    }

    /// Would a request be answered now?
    pub fn is_ready(&self) -> bool {
        self.trouble().is_none()
    }

    /// Why no request would be answered now.
    pub fn trouble(&self) -> Option<String> {
        match &self.work {
            Work::Predictor(batcher) => (!batcher.predictor().is_ready()).then(|| NO_PROCESS.to_owned()),
            Work::Language(language) => language.broken().map(|reason| format!("its engine has ended: {reason}")),
        }
    }

    /// Does something run at `now` that should long have ended?
    pub fn is_stuck(&self, now: Instant) -> bool {
        match &self.work {
            Work::Predictor(batcher) => batcher.is_stuck(now),
            Work::Language(language) => language.is_stuck(now),
        }
    }
}

impl Drop for Servable {
    fn drop(&mut self) {
        self.metrics.retire();
    }
}
