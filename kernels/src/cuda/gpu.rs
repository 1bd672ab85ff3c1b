//! A GPU behind CUDA's driver: one context, one stream, memory in few large pieces. The driver's library is looked for
//! when it is asked for; without it everything else runs.

#![allow(unsafe_code)]

use super::context::{Event, describe, fault};
use super::device::{Device, Fault, Fill, Graph, Pending, Units, parts};
use super::launch::Launch;
use super::memory::Slice;
use super::modules::{Function, Modules};
use super::pairs::PAIRS;
use super::staging::{Landing, Rounds, Staging, Waits};
use super::tiles;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// Where a process has so many CPUs, one of them is spared to look for a GPU's answer all the time: it finds it some
/// microseconds before a thread that sleeps would be woken up. Where it has fewer, it has better things to do.
const CPUS_THAT_SPARE_ONE: usize = 3;
/// The oldest driver that knows the kernels' format, as it tells its version: CUDA 13.0, release 580.
const DRIVER_VERSION: i32 = 13_000;
/// The oldest cards that run them: compute capability 8.0.
const CAPABILITY_MAJOR: i32 = 8;
/// The one compute capability whose warps multiply by fours: other cards do not run that code.
const WARPGROUPS_CAPABILITY: (u32, u32) = (9, 0);
/// Memory is aligned so.
const ALIGNMENT: usize = 256;

/// What the driver says of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Its library is not there.
    Missing,
    /// It is there, and cannot be used: why.
    Unusable(String),
    /// It has none but these, which are older than compute capability 8.0.
    TooOld(Vec<String>),
    /// The names of its GPUs, but for those that are too old for the kernels.
    Gpus(Vec<String>),
}

/// Looks for a driver and its GPUs; never fails.
pub fn driver() -> Driver {
    // SAFETY: loads a library by its well-known name; it has no other effect.
    if !unsafe { sys::is_culib_present() } {
        return Driver::Missing;
    }
    match devices() {
        Ok((devices, others)) if devices.is_empty() && !others.is_empty() => Driver::TooOld(others),
        Ok((devices, _)) => Driver::Gpus(devices.into_iter().map(|(_, name)| name).collect()),
        Err(why) => Driver::Unusable(why),
    }
}

/// GPUs and their names.
type Named = Vec<(sys::CUdevice, String)>;

/// The GPUs that run the kernels, and the names of those that are too old; why there can be none.
fn devices() -> Result<(Named, Vec<String>), String> {
    match result::init() {
        // Where CUDA_VISIBLE_DEVICES leaves none, too.
        Err(DriverError(sys::cudaError_enum::CUDA_ERROR_NO_DEVICE)) => return Ok((Vec::new(), Vec::new())),
        other => other.map_err(describe)?,
    }
    let mut version = 0;
    // SAFETY: writes one number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(describe)?;
    if version < DRIVER_VERSION {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(format!("it is of CUDA {major}.{minor}, and the kernels need CUDA 13.0, which is release 580"));
    }
    let (mut devices, mut others) = (Vec::new(), Vec::new());
    for ordinal in 0..result::device::get_count().map_err(describe)? {
        let device = result::device::get(ordinal).map_err(describe)?;
        let major = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let name = result::device::get_name(device).map_err(describe)?;
        // SAFETY: the device is one of the driver's.
        match unsafe { result::device::get_attribute(device, major) }.map_err(describe)? >= CAPABILITY_MAJOR {
            true => devices.push((device, name)),
            false => others.push(name),
        }
    }
    Ok((devices, others))
}

/// A GPU, for one model.
#[derive(Debug)]
pub struct Gpu {
    name: String,
    processors: u32,
    units: Units,
    modules: Arc<Modules>,
    stream: sys::CUstream,
    functions: HashMap<&'static str, Function>,
    memory: Vec<sys::CUdeviceptr>,
    graphs: Vec<sys::CUgraphExec>,
    staging: Staging,
    landing: Landing,
}

// SAFETY: the driver's handles may be used from any thread whose current context is theirs, which `enter` sees to; and
// `&mut self` keeps two threads from using them at once.
unsafe impl Send for Gpu {}

impl Gpu {
    /// Opens a GPU by its number, and loads the kernels.
    ///
    /// # Errors
    /// There is no driver, no such GPU, or the driver is too old for the kernels.
    pub fn open(ordinal: usize) -> Result<Self, Fault> {
        if driver() == Driver::Missing {
            return Err(Fault::Call("CUDA's driver (libcuda.so.1) is not on this machine".into()));
        }
        let (devices, _) = devices().map_err(|why| Fault::Call(format!("CUDA's driver cannot be used: {why}")))?;
        let known = devices.len();
        let found = devices.into_iter().nth(ordinal);
        let (device, name) =
            found.ok_or_else(|| Fault::Call(format!("there is no GPU {ordinal}; {known} can run the kernels")))?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let waits = if cpus < CPUS_THAT_SPARE_ONE { Waits::Asleep } else { Waits::Awake };
        let modules = Modules::of(device, &name, waits)?;
        modules.context.enter()?;
        let number = |attribute| {
            // SAFETY: the device is one of the driver's.
            unsafe { result::device::get_attribute(device, attribute) }.map(|number| number as u32).map_err(fault)
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let processors = number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let capability = (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(fault)?;
        let mut gpu = Gpu {
            name,
            processors,
            units: Units::Warps,
            modules,
            stream,
            functions: HashMap::new(),
            memory: Vec::new(),
            graphs: Vec::new(),
            staging: Staging::new(),
            landing: Landing::new(waits),
        };
        // Four warps multiply together where the driver took the machine code that has it (which is what waits itself
        // there), rather than translate PTX, which has not.
        if capability == WARPGROUPS_CAPABILITY && gpu.modules.function("gemm_wgmma_256_f32", 0)?.overlaps {
            gpu.units = Units::Warpgroups { processors, pairs: PAIRS };
        }
        Ok(gpu)
    }

    /// Have products of many rows to go by pairs of blocks ([`super::pairs`])? Where the device can.
    pub fn multiply_by_pairs(&mut self, wanted: bool) {
        if let Units::Warpgroups { pairs, .. } = &mut self.units {
            *pairs = wanted;
        }
    }

    /// Bytes of memory that are free, and all.
    ///
    /// # Errors
    /// The driver does not say.
    pub fn memory_info(&self) -> Result<(usize, usize), Fault> {
        self.modules.context.enter()?;
        result::mem_get_info().map_err(fault)
    }

    /// The kernel of a launch, with as much shared memory as it wants.
    fn function(&mut self, launch: &Launch) -> Result<Function, Fault> {
        match self.functions.get(launch.kernel()) {
            Some(known) if known.shared >= launch.shared() => Ok(*known),
            _ => {
                let function = self.modules.function(launch.kernel(), launch.shared())?;
                self.functions.insert(launch.kernel(), function);
                Ok(function)
            }
        }
    }
}

impl Gpu {
    fn copy_rounds(&mut self, rounds: &mut Rounds, fill: Fill<'_>) -> Result<(), Fault> {
        loop {
            self.modules.context.enter()?;
            let bytes = rounds.next().map_err(fault)?;
            let targets = fill(bytes);
            if targets.is_empty() {
                return Ok(());
            }
            // Whoever has filled may have done other work meanwhile.
            self.modules.context.enter()?;
            for (to, part) in parts(bytes, &targets)? {
                // SAFETY: the piece is filled again only when the event after this copy has passed.
                unsafe { result::memcpy_htod_async(to.address(), part, self.stream) }.map_err(fault)?;
            }
            rounds.sent(self.stream).map_err(fault)?;
        }
    }
}

impl Device for Gpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn matrix_units(&self) -> Units {
        self.units
    }

    fn reserve(&mut self, bytes: usize) -> Result<Slice<u8>, Fault> {
        self.modules.context.enter()?;
        let rounded = bytes.max(1).next_multiple_of(ALIGNMENT);
        // SAFETY: freed by `drop`, and by nobody else.
        match unsafe { result::malloc_sync(rounded) } {
            Ok(address) => {
                self.memory.push(address);
                Ok(Slice::new(address, bytes))
            }
            Err(DriverError(sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let free = result::mem_get_info().map_or(0, |(free, _)| free as u64);
                Err(Fault::OutOfMemory { wanted: bytes as u64, free })
            }
            Err(error) => Err(fault(error)),
        }
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), Fault> {
        self.modules.context.enter()?;
        let function = self.function(launch)?;
        let mut values = [0u64; 32];
        let count = launch.arguments().len();
        values[..count].copy_from_slice(launch.arguments());
        let mut arguments: [*mut c_void; 34] = [std::ptr::null_mut(); 34];
        let mut matrices = [sys::CUtensorMap { opaque: [0; 16] }; 2];
        let of_matrices = launch.matrices().len();
        for ((matrix, map), argument) in launch.matrices().iter().zip(&mut matrices).zip(&mut arguments) {
            tiles::describe(matrix, map).map_err(fault)?;
            *argument = std::ptr::from_mut(map).cast();
        }
        for (argument, value) in arguments[of_matrices..].iter_mut().zip(&mut values) {
            *argument = std::ptr::from_mut(value).cast();
        }
        let [x, y, z] = launch.grid();
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads(),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared(),
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(function.overlaps),
        };
        // SAFETY: the launcher has checked that the kernel stays within the slices it was given, which live as long as
        // this device; each argument points to a matrix or to eight bytes, of which the kernel takes what its parameter is long. What
        // it must not see of earlier kernels it waits for itself (`wait_for_earlier`).
        unsafe { sys::cuLaunchKernelEx(&config, function.handle, arguments.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|error| match fault(error) {
                Fault::Call(what) => Fault::Call(format!("kernel '{}': {what}", launch.kernel())),
                other => other,
            })
    }

    fn upload(&mut self, to: Slice<u8>, bytes: &[u8]) -> Result<(), Fault> {
        self.modules.context.enter()?;
        if bytes.len() > to.len() {
            return Err(Fault::Call(format!("a copy of {} bytes to a piece of {}", bytes.len(), to.len())));
        }
        self.staging.copy(self.stream, to.address(), bytes).map_err(fault)
    }

    fn upload_rounds(&mut self, room: usize, fill: Fill<'_>) -> Result<(), Fault> {
        let mut rounds = Rounds::new(room);
        let done = self.copy_rounds(&mut rounds, fill);
        // SAFETY: the stream has done all its work, or its context is lost and does none.
        unsafe {
            let ended =
                self.modules.context.enter().and_then(|()| result::stream::synchronize(self.stream).map_err(fault));
            rounds.free();
            done.and(ended)
        }
    }

    fn download(&mut self, from: Slice<u8>) -> Result<Pending, Fault> {
        self.modules.context.enter()?;
        self.landing.begin(self.stream, from.address(), from.len()).map(Pending).map_err(fault)
    }

    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, Fault> {
        self.modules.context.enter()?;
        self.landing.take(pending.0).map_err(fault)
    }

    fn prepare(&mut self, launch: &Launch) -> Result<(), Fault> {
        self.modules.context.enter()?;
        let function = self.function(launch)?;
        // SAFETY: the function is of a loaded module.
        unsafe { sys::cuFuncLoad(function.handle) }.result().map_err(fault)
    }

    fn begin_capture(&mut self) -> Result<(), Fault> {
        self.modules.context.enter()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives until `drop`.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(fault)
    }

    fn end_capture(&mut self) -> Result<Graph, Fault> {
        self.modules.context.enter()?;
        // SAFETY: the stream lives until `drop`; the graph is destroyed here, what was made of it by `drop`.
        unsafe {
            let graph = result::stream::end_capture(self.stream).map_err(fault)?;
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let destroyed = result::graph::destroy(graph);
            let made = made.map_err(fault)?;
            self.graphs.push(made);
            destroyed.map_err(fault)?;
            result::graph::upload(made, self.stream).map_err(fault)?;
        }
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), Fault> {
        self.modules.context.enter()?;
        let graph = self.graphs.get(graph.0).ok_or_else(|| Fault::Call("there is no such graph".into()))?;
        // SAFETY: graph and stream live until `drop`; the launches in it were checked as all are.
        unsafe { result::graph::launch(*graph, self.stream) }.map_err(fault)
    }

    fn seconds(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<(), Fault>) -> Result<f64, Fault> {
        self.modules.context.enter()?;
        let (begin, end) = (Event::new()?, Event::new()?);
        begin.record(self.stream)?;
        let worked = work(self);
        self.modules.context.enter()?;
        end.record(self.stream)?;
        let seconds = begin.seconds_until(&end)?;
        worked.map(|()| seconds)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.modules.context.enter().is_err() {
            return;
        }
        // Nothing can be done about errors here: the context may be lost already.
        // SAFETY: each handle was made by this device, is destroyed once, and after all work of the stream has ended.
        unsafe {
            // A context that is lost is asked for nothing more: what it holds goes with the process.
            if result::stream::synchronize(self.stream).is_err_and(|error| fault(error).is_lost()) {
                return;
            }
            self.staging.free();
            self.landing.free();
            for graph in self.graphs.drain(..) {
                let _ = result::graph::exec_destroy(graph);
            }
            for address in self.memory.drain(..) {
                let _ = result::free_sync(address);
            }
            let _ = result::stream::destroy(self.stream);
        }
    }
}
