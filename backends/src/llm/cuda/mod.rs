//! The executor of GPUs: weights as bf16 or as their files' codes, keys and values in blocks, kernels of ours. Nothing is computed on the host and
//! nothing is waited for but a step's tokens; the next step may be launched before they are there.
//!
//! ```text
//! plan --step.rs--> arrays --one copy--> device: forward.rs's launches, eager or as a captured graph
//! masks, parameters --sampling.rs--> records ----copy--> device: the sampler --copy--> tokens
//! ```
//! A device is a trait object: a GPU, or in tests the emulator, which runs the same kernels on the host.

mod arena;
mod forward;
mod graphs;
mod loading;
mod memory;
mod sampling;
mod short;
mod step;
mod watched;
mod weights;

use super::calibration;
use super::executor::{Executor, Failure, Masks, Ticket};
use super::flights::Flights;
use super::plan::{Chosen, Fill, Logprobs, Plan, Sampled};
use super::sampler::{History, Sampler};
use super::spec::DecoderSpec;
use super::weights::Weights;
use crate::error::LoadError;
use forward::{Forward, Rotor, Shape};
use kernels::cuda::attention;
use kernels::cuda::elementwise::HIDDEN_MAX;
use kernels::cuda::experts::{CHOICES_MAX, EXPERTS_MAX};
use kernels::cuda::sampler::VOCAB_MAX;
use kernels::cuda::setup::{UpdateTables, update_tables};
use kernels::cuda::{Device, Fault, Graph, Launch, Misuse, Pending, Slice};
pub use memory::CacheType;
use memory::{BLOCK, Buffers, Extent, Layout};
pub use short::SHORT_ROWS;
use std::collections::HashMap;
use std::sync::Arc;
use step::{Bounds, Rows};
pub use watched::Watched;
use weights::Model;

/// Most rows of a step: a grid's second side is no longer.
const ROWS_MAX: usize = 65_535;
/// What helps where there is no room for all but weights.
const LESS: &str = "; a smaller --kv-cache-bytes, --max-num-seqs or --max-num-batched-tokens takes less";
/// Buckets whose graphs are captured before a model is ready.
const EARLY_BUCKETS: usize = 4;

/// What an executor is made for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Blocks of keys and values, of [`BLOCK`](super::blocks::BLOCK) positions each.
    pub blocks: u32,
    /// How these are stored.
    pub cache: CacheType,
    /// The longest sequence that will be served.
    pub context: usize,
    /// Sequences at a time.
    pub slots: usize,
    /// Rows of a step, at most.
    pub step_rows: usize,
    /// The one compute pool: it reads weights.
    pub pool: Arc<rayon::ThreadPool>,
    /// Are steps of decoding captured as graphs?
    pub graphs: bool,
    /// Has a row to have the same bits however steps are made: whatever stands beside it, however its prompt is cut,
    /// whether it is computed again, or was found in the cache? Prompts then take longer, and so does decoding after
    /// long contexts.
    pub deterministic: bool,
    /// Most rows of a step whose launches are those of `short.rs`; 0 for none. Unless `deterministic`.
    pub short_rows: usize,
    /// Are blocks without meaning filled with what is no number? For tests.
    pub poison: bool,
}

/// What the host keeps of the sequence in a slot.
#[derive(Clone, Debug, Default)]
struct Slot {
    prompt: Arc<[u32]>,
    history: History,
    /// Has the device its row of counts?
    counted: bool,
}

/// Tokens of a step that are not told yet.
#[derive(Debug, Default)]
struct Choosing {
    /// Those on their way here.
    choices: Option<Pending>,
    /// Those that were chosen here, by their place in the plan.
    chosen: Vec<(usize, Chosen)>,
}

/// Runs plans on a GPU.
pub struct CudaExecutor {
    device: Box<dyn Device>,
    forward: Forward,
    extent: Extent,
    slots: Vec<Slot>,
    /// Blocks of each slot that the device's table has.
    known: Vec<usize>,
    sampler: Sampler,
    graphs: HashMap<usize, Graph>,
    /// By bucket, and whether rows draw or report.
    sampler_graphs: HashMap<(usize, bool), Graph>,
    captures: bool,
    /// Why they are not any more, until it was told.
    remark: Option<String>,
    poison: bool,
    flights: Flights<Choosing>,
}

impl std::fmt::Debug for CudaExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaExecutor").field("device", &self.device.name()).field("extent", &self.extent).finish()
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Lost(what) => Failure::Lost(what),
            other => Failure::Device(other.to_string()),
        }
    }
}

impl From<Misuse> for Failure {
    fn from(misuse: Misuse) -> Self {
        Failure::Contract(misuse.0)
    }
}

/// Bytes of device memory that the weights of a model take.
///
/// # Errors
/// A tensor has no name, is missing or of the wrong shape.
pub fn weight_bytes(spec: &DecoderSpec, weights: &dyn Weights) -> Result<usize, LoadError> {
    Model::bytes(spec, weights)
}

/// Why a model cannot run on a GPU yet; `None` where it can.
pub fn lacks(spec: &DecoderSpec) -> Option<&'static str> {
    let head = spec.attention.head_dim;
    let mixture = spec.mixture.filter(|_| spec.layers.iter().any(|layer| layer.mixture));
    let dense = (!spec.layers.iter().all(|layer| layer.mixture)).then_some(spec.intermediate);
    let widths = [Some(spec.hidden), Some(spec.attention.query_width()), dense, mixture.map(|of| of.intermediate)];
    if spec.vocab > VOCAB_MAX || spec.hidden > HIDDEN_MAX {
        Some("its vocabulary or its rows are longer than the kernels know; --device cpu serves it")
    } else if mixture.is_some_and(|of| of.experts > EXPERTS_MAX || of.top_k > CHOICES_MAX) {
        Some("it has more experts than the kernels know; --device cpu serves it")
    } else if !head.is_multiple_of(16) || head > 256 || spec.attention.group() > 16 {
        Some("its heads are none that the kernels know; --device cpu serves it")
    } else if widths.into_iter().flatten().any(|width| width % 32 != 0) {
        Some("its widths are no multiples of 32; --device cpu serves it")
    } else {
        None
    }
}

impl CudaExecutor {
    /// Loads the weights of `spec`.
    ///
    /// # Errors
    /// A tensor is missing, of the wrong shape, or unreadable; the model needs what the kernels lack; the device has
    /// not the memory.
    pub fn load(
        spec: DecoderSpec,
        weights: &dyn Weights,
        mut device: Box<dyn Device>,
        options: Options,
    ) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::new(weights.file(), reason);
        if let Some(reason) = lacks(&spec) {
            return Err(refuse(reason.into()));
        }
        let Options { blocks, cache, context, slots, step_rows, pool, graphs, deterministic, .. } = options;
        let (short_rows, poison) = (options.short_rows, options.poison);
        if step_rows > ROWS_MAX {
            return Err(refuse(format!("max-num-batched-tokens is {step_rows}; a GPU computes {ROWS_MAX} at a time")));
        }
        let slots = step::rounded(slots);
        if slots > ROWS_MAX {
            return Err(refuse(format!("max-num-seqs is {}; a GPU computes {ROWS_MAX} at a time", options.slots)));
        }
        let extent = Extent { blocks: blocks as usize, context, slots, rows: step_rows.max(slots), cache };
        // What has no room shows before weights are read.
        let reserve = |model: &Model, device: &mut (dyn Device + 'static)| {
            Buffers::reserve(&spec, model, &extent, device)
                .and_then(|buffers| buffers.zero(device).map(|()| buffers))
                .map_err(|error| {
                    let mut refused = error.refusal(weights.file(), "its cache and its activations: ");
                    if matches!(error, memory::Error::Fault(Fault::OutOfMemory { .. })) {
                        refused.reason.push_str(LESS);
                    }
                    refused
                })
        };
        let (model, mut buffers) = pool.install(|| Model::load(&spec, weights, device.as_mut(), reserve))?;
        if cache == CacheType::Fp8 {
            buffers.calibrate(&calibration::scales(&spec, weights)?);
        }
        let rotors =
            rotors(&spec, &buffers, context, device.as_mut()).map_err(|error| error.refusal(weights.file(), ""))?;
        let (processors, units) = (device.processors(), device.matrix_units());
        let forward = Forward { spec, model, buffers, rotors, processors, units, deterministic, short_rows };
        let mut executor = CudaExecutor {
            device,
            forward,
            extent,
            slots: vec![Slot::default(); slots],
            known: vec![0; slots],
            sampler: Sampler::default(),
            graphs: HashMap::new(),
            sampler_graphs: HashMap::new(),
            captures: graphs,
            remark: None,
            poison,
            flights: Flights::default(),
        };
        executor.warm_up().map_err(|failure| {
            let lost = matches!(failure, Failure::Lost(_));
            refuse(failure.to_string()).with_lost(lost)
        })?;
        Ok(executor)
    }

    /// Bytes of device memory: weights, cache and all else.
    pub fn bytes(&self) -> usize {
        self.forward.model.bytes + self.forward.buffers.bytes
    }

    /// Name of the device.
    pub fn device_name(&self) -> &str {
        self.device.name()
    }

    /// What a plan of so many chunks may ask for. Rows of padding take a unit each.
    fn bounds(&self, chunks: usize) -> Bounds {
        let spec = &self.forward.spec;
        let units = self.extent.units().saturating_sub(self.extent.slots.saturating_sub(chunks));
        let (group, head_dim) = (spec.attention.group(), spec.attention.head_dim);
        let (slots, tiled) = (self.extent.slots, self.forward.deterministic);
        Bounds { slots, vocab: spec.vocab, units, group, head_dim, tiled }
    }

    /// Takes over what a plan says of its slots.
    fn fill(&mut self, plan: &Plan) -> Result<(), Failure> {
        for chunk in &plan.chunks {
            let slot = self.slots.get_mut(chunk.slot as usize);
            let slot = slot.ok_or_else(|| Failure::Contract(format!("slot {} is not there", chunk.slot)))?;
            if let Some(fill) = &chunk.fill {
                slot.prompt = fill.prompt.clone();
                slot.history.fill(fill);
                slot.counted = false;
                self.fill_device(chunk.slot as usize, fill)?;
            }
        }
        Ok(())
    }

    /// The token that a sequence goes on from, where it was preempted with one.
    fn fill_device(&mut self, slot: usize, fill: &Fill) -> Result<(), Failure> {
        if let Some(last) = fill.output.last() {
            let place = self.forward.buffers.last.part(slot..slot + 1)?;
            self.device.upload(place.cast()?, &last.to_le_bytes())?;
        }
        Ok(())
    }

    /// Sends the arrays of a step; where they are.
    fn send(&mut self, plan: &Plan, rows: &Rows, room: Option<usize>) -> Result<memory::Inputs, Failure> {
        let work = attention::work(&rows.positions[..rows.decodes]);
        let units = work.len() / 2;
        let layout = Layout::of(rows.len(), rows.sampled.len(), units, rows.tiles.len() / 4);
        let mut arrays = layout.pack(rows, &work);
        let updates = step::updates(plan, &mut self.known);
        arrays.extend(&updates);
        let all = self.forward.buffers.inputs;
        self.device.upload(all.cast()?, bytemuck::cast_slice(&arrays))?;
        if !updates.is_empty() {
            self.device.launch(&self.update(all.part(layout.end..layout.end + updates.len())?)?)?;
        }
        Ok(layout.inputs(all, room.unwrap_or(units))?)
    }

    /// What takes changes of tables over.
    fn update(&self, updates: Slice<i32>) -> Result<Launch, Misuse> {
        update_tables(&UpdateTables {
            updates,
            count: updates.len() / 3,
            tables: self.forward.buffers.tables,
            table_stride: self.forward.buffers.table_stride,
        })
    }

    /// Any step, launch by launch. Returns what is to be told of prompts, chunk by chunk.
    fn eager(&mut self, plan: &Plan, rows: &Rows) -> Result<Vec<Vec<Logprobs>>, Failure> {
        let inputs = self.send(plan, rows, None)?;
        let shape =
            Shape { rows: rows.len(), decodes: rows.decodes, tiles: rows.tiles.len() / 4, sampled: rows.sampled.len() };
        let told = plan.chunks.iter().any(|chunk| chunk.prompt_logprobs > 0);
        let forward = Shape { sampled: if told { 0 } else { shape.sampled }, ..shape };
        let mut launches = Vec::new();
        self.forward.step(forward, &inputs, &mut |launch| launches.push(launch))?;
        self.run(launches)?;
        if !told {
            return Ok(vec![Vec::new(); plan.chunks.len()]);
        }
        let chunks = plan.chunks.iter().zip(&rows.starts);
        let told = chunks.map(|(chunk, start)| self.prompt_logprobs(chunk, *start)).collect::<Result<_, _>>()?;
        // The logits of prompts lay where those of the sampled rows go.
        if shape.sampled > 0 {
            let rows: Vec<usize> = rows.sampled.iter().map(|row| *row as usize).collect();
            self.logits(&rows)?;
        }
        Ok(told)
    }

    /// Fills blocks with what is no number: whoever reads them is found out.
    fn spoil(&mut self, blocks: &[u32]) -> Result<(), Failure> {
        let size = self.forward.spec.attention.kv_width() * BLOCK * self.extent.cache.bytes();
        let nothing = vec![0xff; size];
        for layer in self.forward.buffers.layers.clone() {
            for bytes in layer.bytes()? {
                for block in blocks.iter().map(|block| *block as usize) {
                    self.device.upload(bytes.part(block * size..(block + 1) * size)?, &nothing)?;
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, launches: Vec<Launch>) -> Result<(), Failure> {
        Ok(launches.iter().try_for_each(|launch| self.device.launch(launch))?)
    }

    /// Computes the logits of these rows, as many as there are slots at most.
    fn logits(&mut self, rows: &[usize]) -> Result<(), Failure> {
        let index: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let place: Slice<i32> = self.forward.buffers.inputs.first(rows.len())?;
        self.device.upload(place.cast()?, bytemuck::cast_slice(&index))?;
        let mut launches = Vec::new();
        self.forward.logits(rows.len(), place, &mut |launch| launches.push(launch))?;
        self.run(launches)
    }
}

/// Numbers as they come from the device.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Frequencies of the rotations, on the device.
fn rotors(
    spec: &DecoderSpec,
    buffers: &Buffers,
    context: usize,
    device: &mut (dyn Device + 'static),
) -> Result<[Option<Rotor>; 2], memory::Error> {
    let mut rotors = [None; 2];
    for ((rope, place), rotor) in
        [Some(&spec.rope), spec.rope_local.as_ref()].into_iter().zip(buffers.frequencies).zip(&mut rotors)
    {
        let Some(rope) = rope else { continue };
        let numbers = rope.frequencies(context);
        let frequencies = place.first(numbers.len())?;
        device.upload(frequencies.cast()?, bytemuck::cast_slice(&numbers))?;
        *rotor = Some(Rotor { frequencies, factor: rope.attention_factor(), interleaved: rope.interleaved });
    }
    Ok(rotors)
}

impl Executor for CudaExecutor {
    fn launch(&mut self, plan: &Plan) -> Result<Ticket, Failure> {
        self.flights.check_room()?;
        if plan.rows() as usize > self.extent.rows {
            return Err(Failure::Contract(format!("{} rows where {} is the most", plan.rows(), self.extent.rows)));
        }
        let rows = Rows::of(plan, &self.bounds(plan.chunks.len()))?;
        self.fill(plan)?;
        if self.poison {
            self.spoil(&plan.stale)?;
        }
        let graph = if rows.can_replay() { self.graph_for(plan)? } else { None };
        let launched = match graph {
            Some(graph) => self.replay(plan, rows, graph).map(|()| vec![Vec::new(); plan.chunks.len()]),
            None => self.eager(plan, &rows),
        };
        let told = launched.inspect_err(|_| {
            // What the device has of tables is not known any more.
            self.known.fill(0);
        })?;
        Ok(self.flights.begin(plan, told, Choosing::default()))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks) -> Result<(), Failure> {
        let mut flight = self.flights.take(ticket)?;
        self.choose(&mut flight, masks)?;
        self.flights.put_back(flight);
        Ok(())
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>, Failure> {
        let mut flight = self.flights.take(&ticket)?;
        self.learn(&mut flight)?;
        Ok(flight.sampled)
    }

    fn prepare(&mut self) -> Result<bool, Failure> {
        match self.capture_next() {
            Err(lost @ Failure::Lost(_)) => Err(lost),
            Err(failure) => {
                self.stop_capturing(&failure);
                Ok(false)
            }
            more => more,
        }
    }

    fn remark(&mut self) -> Option<String> {
        self.remark.take()
    }
}
