//! A graph behind the contract.

use super::library::words;
use super::session::Opened;
use super::signature::{self, Given, Interface};
use super::trial::{Trial, trial};
use super::{native, run, values, watch};
use crate::onnx::Source;
use crate::{Call, InferError, LoadOptions, Predictor, Profile, Settings, Signature, Tensor};
use ort::error::ErrorCode;
use ort::session::{RunOptions, Session};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A graph that answers.
pub(super) struct OnnxPredictor {
    groups: Vec<Group>,
    signature: Signature,
    /// Names of inputs, as ONNX Runtime takes them.
    inputs: Vec<CString>,
    /// Names of outputs, and how each becomes a tensor.
    outputs: Vec<(CString, Given)>,
    /// Shapes of the graph's own, by the names of ports that clients have otherwise.
    reshapes: BTreeMap<String, Vec<i64>>,
    /// Is the first dimension a batch, whatever the rest is?
    batched: bool,
    instances: usize,
    trial: Trial,
    /// May requests be put together?
    batchable: bool,
    bytes: usize,
    notes: Vec<String>,
}

/// A session on a device.
struct Group {
    session: Arc<Session>,
    device: String,
    running: AtomicUsize,
    /// Held during a run where the device's provider does not take several at a time.
    alone: Option<Mutex<()>>,
}

impl std::fmt::Debug for OnnxPredictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxPredictor").field("signature", &self.signature).finish_non_exhaustive()
    }
}

impl OnnxPredictor {
    /// Reads the interface of what was opened, and tries it.
    ///
    /// # Errors
    /// A port that the protocol has no type for, or settings that contradict the graph.
    pub(super) fn new(
        source: &Source,
        settings: &Settings,
        opened: Opened,
        options: &LoadOptions,
    ) -> Result<Self, String> {
        let Some(first) = opened.groups.first() else { return Err("the settings leave it no instance".into()) };
        let Interface { signature, given, reshapes, symbols } =
            signature::interface(&first.session, &source.outline, settings)?;
        let name = |name: &str| CString::new(name).map_err(|_| format!("the name '{name}' has a zero byte"));
        let inputs = signature.inputs.iter().map(|port| name(&port.name)).collect::<Result<_, _>>()?;
        let outputs = signature.outputs.iter().map(|port| name(&port.name)).collect::<Result<Vec<_>, _>>()?;
        // Several tensors may share one stretch of a file.
        let add = |sum: usize, bytes: u64| sum.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX));
        let weights = source.outline.external.iter().map(|external| external.bytes).fold(source.bytes.len(), add);
        let bytes = weights.saturating_mul(opened.groups.len());
        let stated: Option<usize> = opened.groups.iter().map(|group| group.count).sum();
        let on_cpu = opened.groups.iter().all(|group| group.device == "cpu");
        let instances = match stated {
            Some(count) => count,
            None if on_cpu => options.pool.current_num_threads(),
            None => 1,
        };
        let groups = opened.groups.into_iter().map(|group| Group {
            alone: (group.device != "cpu").then(Mutex::default),
            session: Arc::new(group.session),
            device: group.device,
            running: AtomicUsize::new(0),
        });
        let mut predictor = OnnxPredictor {
            groups: groups.collect(),
            signature,
            inputs,
            outputs: outputs.into_iter().zip(given).collect(),
            reshapes,
            batched: settings.batched == Some(true),
            instances,
            trial: Trial { single_call: Duration::from_secs(1), apart: None },
            batchable: false,
            bytes,
            notes: opened.notes,
        };
        predictor.try_out(settings, &symbols)?;
        Ok(predictor)
    }

    /// Errors are settings that want rows stacked where the graph does not allow it, and a graph for which there is not
    /// enough memory.
    fn try_out(&mut self, settings: &Settings, symbols: &[Vec<String>]) -> Result<(), String> {
        let Signature { inputs, outputs, .. } = &self.signature;
        // An output without dimensions may be one of which nothing is known: the trial tells.
        let open = outputs.iter().filter(|port| !port.shape.is_empty());
        let mut ports = inputs.iter().filter(|port| !port.optional).chain(open);
        let fixed = ports.find(|port| port.shape.first() != Some(&-1));
        if let Some(port) = fixed.filter(|_| settings.batched == Some(true)) {
            return Err(format!(
                "the settings give it a max_batch_size, but the first dimension of '{}' is fixed: {:?}; say 0",
                port.name, port.shape
            ));
        }
        let stackable = fixed.is_none() && settings.batched != Some(false) && !inputs.iter().any(|port| port.optional);
        if settings.onnx.warmup {
            self.trial = trial(self, symbols, stackable, settings.batched == Some(true))?;
        }
        // Where nothing could be tried, whoever states a batch size knows the graph.
        let stated = settings.batched == Some(true);
        self.batchable = stackable && self.trial.apart.unwrap_or(stated);
        if stackable && stated && !self.batchable {
            let note = "max_batch_size: rows that are computed together give other answers than alone, so requests of \
                        this graph are not put together";
            self.notes.push(note.into());
        }
        Ok(())
    }

    /// The session with the least to do.
    fn group(&self) -> &Group {
        let idle = self.groups.iter().min_by_key(|group| group.running.load(Ordering::Relaxed));
        idle.unwrap_or(&self.groups[0])
    }

    /// The shape in which the graph takes a tensor.
    fn shape(&self, tensor: &Tensor, port: &str) -> Result<Vec<usize>, String> {
        match self.reshapes.get(port) {
            Some(shape) => signature::closed(shape, tensor.len(), self.rows_of(tensor)),
            None => Ok(tensor.shape().to_vec()),
        }
    }

    fn rows_of(&self, tensor: &Tensor) -> Option<usize> {
        self.batched.then(|| tensor.rows())
    }

    /// Which outputs are wanted, by their places.
    fn wanted(&self, call: &Call<'_>) -> Vec<usize> {
        let all = 0..self.outputs.len();
        if call.outputs.is_empty() {
            return all.collect();
        }
        all.filter(|&place| call.outputs.contains(&self.signature.outputs[place].name)).collect()
    }
}

impl Drop for OnnxPredictor {
    fn drop(&mut self) {
        self.groups.clear();
        native::give_back();
    }
}

/// A run that is counted, as long as it lasts.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Predictor for OnnxPredictor {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn profile(&self) -> Profile {
        let mut devices: Vec<&str> = self.groups.iter().map(|group| group.device.as_str()).collect();
        devices.dedup();
        Profile {
            batchable: self.batchable,
            instances: self.instances,
            single_call: self.trial.single_call,
            // A loop turns as often as a request says.
            steady: false,
            preferred_batch: self.trial.rows_together(),
            device: devices.join(","),
            bytes: self.bytes,
            notes: self.notes.clone(),
        }
    }

    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        call.check()?;
        let mut inputs = Vec::with_capacity(call.inputs.len());
        for (port, name) in self.signature.inputs.iter().zip(&self.inputs) {
            match call.inputs.iter().find(|tensor| tensor.name() == port.name) {
                Some(tensor) => {
                    let shape = self
                        .shape(tensor, &port.name)
                        .map_err(|reason| InferError::invalid(format!("input '{}': {reason}", port.name)))?;
                    inputs.push((name.as_c_str(), values::lend(tensor, shape)?));
                }
                None if port.optional => {}
                None => return Err(InferError::invalid(format!("input '{}' is missing", port.name))),
            }
        }
        let wanted = self.wanted(call);
        let names: Vec<_> = wanted.iter().map(|&place| self.outputs[place].0.as_c_str()).collect();
        let internal = |e: ort::Error| InferError::Internal(format!("ONNX Runtime: {}", e.message()));
        let options = Arc::new(RunOptions::new().map_err(internal)?);
        let group = self.group();
        group.running.fetch_add(1, Ordering::Relaxed);
        let _running = Running(&group.running);
        let _alone = group.alone.as_ref().map(|alone| alone.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let guard = watch::watch(call, &options).map_err(InferError::Internal)?;
        let outcome = run::run(&group.session, &options, &inputs, &names);
        drop(guard);
        let given = match outcome {
            Ok(given) => given,
            Err(error) => {
                // A run that was ended says so in its own words.
                call.check()?;
                return Err(failure(&error, &group.device));
            }
        };
        let taken = wanted.iter().zip(given).map(|(&place, value)| {
            let port = &self.signature.outputs[place];
            let value = value.ok_or_else(|| InferError::Internal(format!("output '{}' has no value", port.name)))?;
            let owner = values::Owner { session: &group.session, lent: call.inputs };
            let tensor = values::take(&port.name, &self.outputs[place].1, value, &owner)?;
            if !self.reshapes.contains_key(&port.name) {
                return Ok(tensor);
            }
            let internal = |reason| InferError::Internal(format!("output '{}': {reason}", port.name));
            let shape = signature::closed(&port.shape, tensor.len(), self.rows_of(&tensor)).map_err(internal)?;
            tensor.reshaped(shape).map_err(|misfit| internal(misfit.to_string()))
        });
        taken.collect()
    }
}

/// Whose fault a run's error is: of shapes and numbers that a node does not take, the request's; nobody can tell whether
/// the graph should have taken them. Of a device, errors are its own.
fn failure(error: &ort::Error, device: &str) -> InferError {
    let what = format!("ONNX Runtime: {}", words(error));
    match error.code() {
        ErrorCode::InvalidArgument | ErrorCode::RuntimeException | ErrorCode::GenericFailure
            if device == "cpu" && !of_memory(&what) =>
        {
            InferError::Invalid(what)
        }
        _ => InferError::Internal(what),
    }
}

/// Does a run's error say that there is not enough memory?
pub(super) fn of_memory(what: &str) -> bool {
    ["bad_alloc", "bad allocation", "Failed to allocate", "out of memory"].iter().any(|words| what.contains(words))
}
