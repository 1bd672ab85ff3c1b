//! A GPU's context, marks in its streams, and what the driver's errors mean.

#![allow(unsafe_code)]

use super::device::Fault;
use super::staging::Waits;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// A device's context, which all of this process that use the device share: it lives as long as one of them holds it.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

impl Context {
    /// Holds the context of one of the driver's devices.
    pub(super) fn hold(device: sys::CUdevice, waits: Waits) -> Result<Self, DriverError> {
        use sys::CUctx_flags_enum as Flags;
        let flags = match waits {
            Waits::Asleep => Flags::CU_CTX_SCHED_BLOCKING_SYNC,
            Waits::Awake => Flags::CU_CTX_SCHED_SPIN,
        };
        // SAFETY: the device is one of the driver's; `drop` lets go of the context.
        unsafe {
            // Where the driver does not let itself be told how to wait, it waits all the same.
            let _ = sys::cuDevicePrimaryCtxSetFlags_v2(device, flags as u32);
            Ok(Context { device, handle: result::primary_ctx::retain(device)? })
        }
    }

    /// Makes it this thread's. Every call does so: the thread may have let go of it with another GPU since, and to make
    /// sure costs no more than to find out.
    pub(super) fn enter(&self) -> Result<(), Fault> {
        // SAFETY: the context lives until `drop`.
        unsafe { result::ctx::set_current(self.handle) }.map_err(fault)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nothing can be done about errors here.
        // SAFETY: the context was held once, and is let go once; from then on this thread has none.
        unsafe {
            let _ = result::ctx::set_current(std::ptr::null_mut());
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// An error in words, with CUDA's name for it.
pub(super) fn describe(error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{text} ({name})"),
        _ => format!("CUDA's error {}", error.0 as u32),
    }
}

/// What an error means for those who go on.
pub(super) fn fault(error: DriverError) -> Fault {
    use sys::cudaError_enum as Code;
    match error.0 {
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
        | Code::CUDA_ERROR_LAUNCH_FAILED
        | Code::CUDA_ERROR_LAUNCH_TIMEOUT
        | Code::CUDA_ERROR_ECC_UNCORRECTABLE
        | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
        | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | Code::CUDA_ERROR_MISALIGNED_ADDRESS
        | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | Code::CUDA_ERROR_INVALID_PC
        | Code::CUDA_ERROR_ASSERT
        | Code::CUDA_ERROR_CONTAINED
        | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | Code::CUDA_ERROR_TENSOR_MEMORY_LEAK
        | Code::CUDA_ERROR_EXTERNAL_DEVICE
        | Code::CUDA_ERROR_MPS_CLIENT_TERMINATED
        | Code::CUDA_ERROR_MPS_RPC_FAILURE
        | Code::CUDA_ERROR_DEVICE_UNAVAILABLE
        | Code::CUDA_ERROR_NO_DEVICE
        | Code::CUDA_ERROR_INVALID_CONTEXT
        | Code::CUDA_ERROR_NOT_INITIALIZED
        | Code::CUDA_ERROR_SYSTEM_NOT_READY
        | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | Code::CUDA_ERROR_DEINITIALIZED
        | Code::CUDA_ERROR_UNKNOWN => Fault::Lost(describe(error)),
        _ => Fault::Call(describe(error)),
    }
}

/// A mark in a stream that notes the time.
pub(super) struct Event(sys::CUevent);

impl Event {
    pub(super) fn new() -> Result<Self, Fault> {
        result::event::create(sys::CUevent_flags_enum::CU_EVENT_DEFAULT).map(Event).map_err(fault)
    }

    pub(super) fn record(&self, stream: sys::CUstream) -> Result<(), Fault> {
        // SAFETY: the event lives, and the stream as long as its device.
        unsafe { result::event::record(self.0, stream) }.map_err(fault)
    }

    /// Seconds between two marks that were recorded, once the later has passed.
    pub(super) fn seconds_until(&self, end: &Event) -> Result<f64, Fault> {
        // SAFETY: both events live.
        let milliseconds = unsafe {
            result::event::synchronize(end.0).map_err(fault)?;
            result::event::elapsed(self.0, end.0).map_err(fault)?
        };
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and dropped once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
