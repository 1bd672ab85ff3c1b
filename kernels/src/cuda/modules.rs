//! The kernels as a driver has loaded them: once for a device, however many models use it.

#![allow(unsafe_code)]

use super::context::{Context, describe, fault};
use super::device::Fault;
use super::staging::Waits;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The kernels, as nvcc compiled them: one module for each source.
const MODULES: &[&[u8]] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));
/// Shared memory that a block may have without asking, static and dynamic together.
const SHARED_FREE: u32 = 48 << 10;
/// The share of a multiprocessor's first cache that is to be shared memory, in percent.
const ALL_SHARED: i32 = 100;
/// Code for cards from this on waits itself for the kernels before it.
const OVERLAPPING_CODE: i32 = 90;

/// Those of each device that somebody uses.
static LOADED: Mutex<Vec<(sys::CUdevice, Weak<Modules>)>> = Mutex::new(Vec::new());

/// A device's context and the kernels in it.
#[derive(Debug)]
pub(super) struct Modules {
    device: String,
    /// Shared memory that a block may have.
    shared: u32,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<&'static str, Function>>,
    // Let go of last.
    pub(super) context: Context,
}

// SAFETY: the driver's handles may be used from any thread whose current context is theirs, which whoever calls sees to.
unsafe impl Send for Modules {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Modules {}

/// A kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) handle: sys::CUfunction,
    /// Static shared memory that a block of it has.
    fixed: u32,
    /// Dynamic shared memory that it may have without asking further.
    pub(super) shared: u32,
    /// May it begin while the one before still ends? Its code then waits itself, which only that for sm_90 and later
    /// does, whatever the device.
    pub(super) overlaps: bool,
}

impl Modules {
    /// Those of a device, loaded where nobody uses them yet. From machine code that takes milliseconds; where the driver
    /// has to translate, half a minute the first time, and others of this process wait meanwhile.
    ///
    /// # Errors
    /// The driver cannot run them.
    pub(super) fn of(device: sys::CUdevice, name: &str, waits: Waits) -> Result<Arc<Self>, Fault> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|(_, modules)| modules.strong_count() > 0);
        if let Some(modules) = loaded.iter().find(|(other, _)| *other == device).and_then(|(_, known)| known.upgrade())
        {
            return Ok(modules);
        }
        let context = Context::hold(device, waits).map_err(fault)?;
        context.enter()?;
        let most = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device is one of the driver's.
        let shared = unsafe { result::device::get_attribute(device, most) }.map_err(fault)? as u32;
        let (modules, functions) = (Vec::new(), Mutex::default());
        let mut all = Modules { device: name.to_owned(), shared, modules, functions, context };
        for module in MODULES {
            // SAFETY: the bytes are a fat binary of nvcc's.
            let module = unsafe { result::module::load_data(module.as_ptr().cast()) };
            all.modules.push(module.map_err(|error| match fault(error) {
                Fault::Call(why) => {
                    Fault::Call(format!("{name} cannot run the kernels: {why}; they need a driver of CUDA 13"))
                }
                lost => lost,
            })?);
        }
        let all = Arc::new(all);
        loaded.push((device, Arc::downgrade(&all)));
        Ok(all)
    }

    /// A kernel that may have so much dynamic shared memory. The context must be this thread's.
    ///
    /// # Errors
    /// There is no such kernel, or a block may not have so much.
    pub(super) fn function(&self, kernel: &'static str, wanted: u32) -> Result<Function, Fault> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = functions.get(kernel).copied();
        let mut function = match known {
            Some(function) => function,
            None => self.find(kernel)?,
        };
        if wanted > function.shared {
            self.allow(kernel, &mut function, wanted)?;
        }
        functions.insert(kernel, function);
        Ok(function)
    }

    fn allow(&self, kernel: &str, function: &mut Function, wanted: u32) -> Result<(), Fault> {
        let room = self.shared.saturating_sub(function.fixed);
        if wanted > room {
            return Err(Fault::Call(format!(
                "kernel '{kernel}' was to have {wanted} bytes of shared memory for each block; {} has {room}",
                self.device
            )));
        }
        use sys::CUfunction_attribute_enum as Attribute;
        let most = (Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, wanted as i32);
        // These count on as many blocks beside each other as there is memory for. Kernels that want little say nothing of
        // it and run with what those before them have set: a multiprocessor has to be empty to change.
        let share = (Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, ALL_SHARED);
        for (attribute, value) in [most, share] {
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function.handle, attribute, value) }.map_err(fault)?;
        }
        function.shared = wanted;
        Ok(())
    }

    fn find(&self, kernel: &str) -> Result<Function, Fault> {
        let name = CString::new(kernel).map_err(|_| Fault::Call("a kernel's name has a zero".into()))?;
        for module in &self.modules {
            // SAFETY: the module is loaded.
            match unsafe { result::module::get_function(*module, name.clone()) } {
                Ok(handle) => return Self::describe(handle),
                Err(DriverError(sys::cudaError_enum::CUDA_ERROR_NOT_FOUND)) => {}
                Err(error) => {
                    return Err(match fault(error) {
                        Fault::Call(_) => Fault::Call(format!("kernel '{kernel}': {}", describe(error))),
                        lost => lost,
                    });
                }
            }
        }
        Err(Fault::Call(format!("there is no kernel '{kernel}'")))
    }

    fn describe(handle: sys::CUfunction) -> Result<Function, Fault> {
        use sys::CUfunction_attribute_enum as Attribute;
        // SAFETY: the function is of a loaded module.
        let number = |attribute| unsafe { result::function::get_function_attribute(handle, attribute) }.map_err(fault);
        let version = number(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?;
        let fixed = number(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)? as u32;
        let shared = SHARED_FREE.saturating_sub(fixed);
        Ok(Function { handle, fixed, shared, overlaps: version >= OVERLAPPING_CODE })
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        for module in self.modules.drain(..) {
            // Nothing can be done about errors here.
            // SAFETY: it was loaded once, and whoever ran its kernels has waited for their end.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}
