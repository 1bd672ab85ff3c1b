//! A graph behind the contract.

use super::empties::Empties;
use super::session::Opened;
use super::signature::{self, Given, Interface};
use super::trial::{self, Trial};
use super::words::words;
use super::{native, run, values, watch};
use crate::onnx::{Place, Source};
use crate::{Call, DataType, InferError, LoadOptions, Port, Predictor, Profile, Settings, Signature, Tensor};
use ort::error::ErrorCode;
use ort::session::{RunOptions, Session, SessionInputValue};
use ort::value::DynValue;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// A call that computes for so long is not to hold up whoever answers others meanwhile.
const LONG: Duration = Duration::from_millis(1);

/// A graph that answers.
pub(super) struct OnnxPredictor {
    groups: Vec<Group>,
    /// Calls that run, of each group.
    running: Mutex<Vec<usize>>,
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
    /// Does every row take as long as the trial's?
    steady: bool,
    /// May inputs of one request have different numbers of rows?
    spreads: bool,
    /// Which calls may end the process.
    empties: Empties,
    bytes: usize,
    notes: Vec<String>,
}

/// A session on a device.
struct Group {
    session: Arc<Session>,
    device: String,
    /// Its share of the calls: how many it is to have at a time.
    count: usize,
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
            count: group.count.unwrap_or(1),
        });
        let groups: Vec<Group> = groups.collect();
        let own = matches!(options.onnx.place, Place::Own);
        let mut notes = opened.notes;
        notes.extend(source.outline.risks().into_iter().filter(|_| !own));
        let mut predictor = OnnxPredictor {
            running: Mutex::new(vec![0; groups.len()]),
            groups,
            signature,
            inputs,
            outputs: outputs.into_iter().zip(given).collect(),
            reshapes,
            batched: settings.batched == Some(true),
            instances,
            trial: Trial { single_call: Duration::from_secs(1), ..Trial::default() },
            batchable: false,
            steady: false,
            spreads: false,
            empties: if own { Empties::default() } else { Empties::of(&source.outline, on_cpu, &symbols) },
            bytes,
            notes,
        };
        predictor.try_out(settings, &symbols, source.outline.across.as_deref())?;
        trial::state_ranks(&mut predictor.signature, &predictor.trial);
        predictor.steady = predictor.is_steady(source);
        Ok(predictor)
    }

    /// Errors are settings that want rows stacked where the graph does not allow it, and a graph for which there is not
    /// enough memory.
    fn try_out(&mut self, settings: &Settings, symbols: &[Vec<String>], across: Option<&str>) -> Result<(), String> {
        let Signature { inputs, outputs, .. } = &self.signature;
        // An output without dimensions may be one of which nothing is known: the trial tells.
        let open = outputs.iter().filter(|port| !port.shape.is_empty());
        let mut ports = inputs.iter().filter(|port| !port.optional).chain(open);
        let fixed = ports.find(|port| port.shape.first() != Some(&-1));
        if let Some(port) = fixed.filter(|_| settings.max_batch_size.is_some()) {
            return Err(no_batch(port, settings));
        }
        // What may be left out is: a request that has a value for it is a call of its own.
        let needed = || inputs.iter().zip(symbols).filter(|(port, _)| !port.optional);
        let mut stackable = fixed.is_none() && settings.batched != Some(false) && needed().next().is_some();
        let mut named = needed().filter_map(|(_, names)| names.first().filter(|name| !name.is_empty()));
        let batch = named.next();
        self.spreads = settings.batched != Some(true) && named.any(|name| Some(name) != batch);
        // No trial shows for which numbers rows meet: whoever has requests put together knows the graph.
        if let Some(node) = across.filter(|_| stackable && !settings.gathers()) {
            stackable = false;
            let remedy = if settings.from_pbtxt { "dynamic_batching" } else { "a max_batch_size" };
            self.notes.push(format!(
                "{node} computes across rows, so requests of this graph are not put together: if rows are apart all the \
                 same, state {remedy}"
            ));
        }
        if settings.onnx.warmup {
            self.trial = trial::trial(self, symbols, stackable, settings.batched == Some(true))?;
            let failed = |why| format!("its first run, on made up inputs, failed, as every request may: {why}");
            self.notes.extend(self.trial.failure.take().map(failed));
        }
        // Where nothing could be tried, whoever has requests put together knows the graph.
        self.batchable = stackable && self.trial.apart.unwrap_or(settings.gathers());
        if stackable && settings.batched == Some(true) && self.trial.apart == Some(false) {
            let note = "max_batch_size: rows that are computed together give other answers than alone, so requests of \
                        this graph are not put together";
            self.notes.push(note.into());
        }
        Ok(())
    }

    /// Operators do not depend on values, and shapes on nothing but the number of rows, which do not meet. A loop turns as
    /// often as a request says; texts are as long as they like; and a device has a queue of its own.
    fn is_steady(&self, source: &Source) -> bool {
        let closed = |port: &Port| {
            let rest = port.shape.get(1..).unwrap_or_default();
            !port.any_shape && !port.optional && port.datatype != DataType::Bytes && rest.iter().all(|size| *size >= 0)
        };
        let mut inputs = self.signature.inputs.iter();
        let open = inputs.clone().any(|port| port.shape.first() == Some(&-1));
        let on_cpu = self.groups.iter().all(|group| group.device == "cpu");
        source.outline.unsteady.is_none()
            && on_cpu
            && inputs.all(closed)
            && !self.spreads
            && (!open || self.batchable)
            && self.reshapes.is_empty()
    }

    /// Sessions of its own, each on a device.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
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

    /// The inputs of a call, as the graph takes them.
    fn lend<'a>(&'a self, call: &Call<'a>) -> Result<Vec<(&'a CStr, SessionInputValue<'a>)>, InferError> {
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
        Ok(inputs)
    }

    /// A call of this group, or of the freest one.
    ///
    /// # Errors
    /// As [`Predictor::predict`].
    pub(super) fn run(&self, call: &Call<'_>, group: Option<usize>) -> Result<Vec<Tensor>, InferError> {
        call.check()?;
        // What is made up for a trial may be empty, too: a graph may state that an input is.
        self.empties
            .check(&self.signature, call, |tensor, port| self.shape(tensor, port))
            .map_err(InferError::Invalid)?;
        let inputs = self.lend(call)?;
        let wanted = self.wanted(call);
        let names: Vec<_> = wanted.iter().map(|&place| self.outputs[place].0.as_c_str()).collect();
        let options = RunOptions::new().map_err(|e| InferError::Internal(format!("ONNX Runtime: {}", words(&e))))?;
        let options = Arc::new(options);
        let running = Running::begin(self, group);
        let group = &self.groups[running.group];
        let _alone = group.alone.as_ref().map(|alone| alone.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let guard = watch::watch(call, &options).map_err(InferError::Internal)?;
        let outcome = run::run(&group.session, &options, &inputs, &names);
        drop(guard);
        match outcome {
            Ok(given) => {
                let taken = wanted.iter().zip(given);
                taken.map(|(&place, value)| self.take(place, value, &group.session, call)).collect()
            }
            Err(error) => {
                // A run that was ended says so in its own words.
                call.check()?;
                Err(failure(&error, &group.device))
            }
        }
    }

    /// An output of a call as a tensor.
    fn take(
        &self,
        place: usize,
        value: Option<DynValue>,
        session: &Arc<Session>,
        call: &Call<'_>,
    ) -> Result<Tensor, InferError> {
        let port = &self.signature.outputs[place];
        let Some(value) = value else {
            // The graph may be right, and the request, too: whoever asked is told.
            let what = format!("output '{}' has no value for these inputs, and an answer has one for each", port.name);
            return Err(InferError::Unsupported(what));
        };
        let owner = values::Owner { session, call };
        let tensor = values::take(&port.name, &self.outputs[place].1, value, &owner)?;
        if !self.reshapes.contains_key(&port.name) {
            return Ok(tensor);
        }
        let internal = |reason| InferError::Internal(format!("output '{}': {reason}", port.name));
        let shape = signature::closed(&port.shape, tensor.len(), self.rows_of(&tensor)).map_err(internal)?;
        tensor.reshaped(shape).map_err(|misfit| internal(misfit.to_string()))
    }
}

/// Why settings cannot give a graph batches.
fn no_batch(port: &Port, settings: &Settings) -> String {
    let Port { name, shape, .. } = port;
    let (why, besides) = match shape.first() {
        _ if port.any_shape => (format!("the graph does not say which shape '{name}' has"), "state its dims, or "),
        None => (format!("'{name}' has no dimensions"), ""),
        Some(_) => (format!("the first dimension of '{name}' is fixed: {shape:?}"), ""),
    };
    let instead = if settings.batched.is_some() { "say 0" } else { "leave it out" };
    format!("the settings give it a max_batch_size, but {why}; {besides}{instead}")
}

/// Of groups with so many calls that run and such a count, the one for another call: where its share is then the least
/// used up, the first of equals.
fn freest(groups: impl Iterator<Item = (usize, usize)>) -> usize {
    // Quotients are compared, without a rest that is lost.
    let used = |&(_, a): &(usize, (usize, usize)), &(_, b): &(usize, (usize, usize))| {
        ((a.0 + 1) * b.1).cmp(&((b.0 + 1) * a.1))
    };
    groups.enumerate().min_by(used).map_or(0, |(group, _)| group)
}

impl Drop for OnnxPredictor {
    fn drop(&mut self) {
        self.groups.clear();
        native::give_back();
    }
}

/// A call that is counted, as long as it lasts.
struct Running<'a> {
    predictor: &'a OnnxPredictor,
    group: usize,
}

impl<'a> Running<'a> {
    fn begin(predictor: &'a OnnxPredictor, group: Option<usize>) -> Self {
        let mut running = predictor.lock();
        let counts = predictor.groups.iter().map(|group| group.count);
        let group = group.unwrap_or_else(|| freest(running.iter().copied().zip(counts)));
        running[group] += 1;
        Running { predictor, group }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.predictor.lock()[self.group] -= 1;
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
            steady: self.steady,
            computes: self.trial.single_call >= LONG && self.groups.iter().any(|group| group.device == "cpu"),
            preferred_batch: self.trial.rows_together(),
            device: devices.join(","),
            bytes: self.bytes,
            notes: self.notes.clone(),
        }
    }

    fn spreads_rows(&self) -> bool {
        self.spreads
    }

    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        self.run(call, None)
    }
}

/// Whose fault a run's error is: of shapes and numbers that a node does not take, the request's; nobody can tell whether
/// the graph should have taken them. Of a device, errors are its own.
fn failure(error: &ort::Error, device: &str) -> InferError {
    let what = format!("ONNX Runtime: {}", words(error));
    match error.code() {
        _ if of_memory(&what) => InferError::Memory(what),
        ErrorCode::InvalidArgument | ErrorCode::RuntimeException | ErrorCode::GenericFailure if device == "cpu" => {
            InferError::Invalid(what)
        }
        _ => InferError::Internal(what),
    }
}

/// Does a run's error say that there is not enough memory?
fn of_memory(what: &str) -> bool {
    ["bad_alloc", "bad allocation", "Failed to allocate", "out of memory"].iter().any(|words| what.contains(words))
}

#[cfg(test)]
mod tests {
    use super::freest;

    #[test]
    fn groups_have_calls_in_proportion_to_their_counts() {
        let counts = [1, 3, 2];
        let mut running = [0; 3];
        let mut order = Vec::new();
        for _ in 0..12 {
            let group = freest(running.into_iter().zip(counts));
            running[group] += 1;
            order.push(group);
            // Nobody has more than its count while another has less.
            if order.len() == 6 {
                assert_eq!(running, counts);
            }
        }
        assert_eq!(running, [2, 6, 4]);
        assert_eq!(order[0], 1, "the largest is the first");
        running[0] = 0;
        assert_eq!(freest(running.into_iter().zip(counts)), 0);
    }
}
