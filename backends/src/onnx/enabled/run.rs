//! Calls into the library that the compiler cannot check: files given from memory, a run, and the texts that it gives.

use ort::AsPointer;
use ort::session::builder::SessionBuilder;
use ort::session::{NoSelectedOutputs, RunOptions, Session, SessionInputValue};
use ort::value::DynValue;
use std::ffi::{CStr, CString, c_char};
use std::ptr::{self, NonNull};

/// Makes a session of a graph whose tensors have their external data in `files`, by the paths that they name. ONNX Runtime copies
/// what it needs of them, since its tensors cannot refer to memory that is not its own: they are needed no longer than this
/// takes. `ort` would take each file as an `Arc<[u8]>`, one copy more of all weights.
///
/// # Errors
/// What ONNX Runtime says.
#[expect(unsafe_code, reason = "files from memory, which ort offers at the price of a copy")]
pub(super) fn open(mut builder: SessionBuilder, graph: &[u8], files: &[(CString, Vec<u8>)]) -> ort::Result<Session> {
    if !files.is_empty() {
        let names: Vec<*const c_char> = files.iter().map(|(name, _)| name.as_ptr()).collect();
        let bytes: Vec<*mut c_char> = files.iter().map(|(_, bytes)| bytes.as_ptr().cast_mut().cast()).collect();
        let lengths: Vec<usize> = files.iter().map(|(_, bytes)| bytes.len()).collect();
        // SAFETY: there are as many names, pointers and lengths as files, and each length is that of its bytes, which are read
        // and not written to. Names are copied; the bytes are borrowed for longer than the builder, which ends here. The
        // status is its own.
        unsafe {
            ort::Error::result_from_status((ort::api().AddExternalInitializersFromMemory)(
                builder.ptr_mut(),
                names.as_ptr(),
                bytes.as_ptr(),
                lengths.as_ptr(),
                files.len(),
            ))?;
        }
    }
    builder.commit_from_memory(graph)
}

/// Runs `session`: `inputs` by name to the outputs of these names, in this order; `None` for one that has no value, as
/// optional ones may. An output that is an input, too, is that very value: its numbers are the input's own memory, and
/// `inputs` must be there as long as they are looked at.
///
/// Several threads may be in here with one session at a time. `ort` takes `&mut Session` for a run, since it does not
/// trust every execution provider; ONNX Runtime documents `OrtApi::Run` as callable from any number of threads, and a
/// session for each thread would hold the weights of tree ensembles once for each. Of providers other than the CPU's
/// only one call at a time comes here (`predictor`).
///
/// # Errors
/// What ONNX Runtime says.
#[expect(unsafe_code, reason = "a run of a shared session, which ort offers for an exclusive one only")]
pub(super) fn run(
    session: &Session,
    options: &RunOptions<NoSelectedOutputs>,
    inputs: &[(&CStr, SessionInputValue<'_>)],
    outputs: &[&CStr],
) -> ort::Result<Vec<Option<DynValue>>> {
    let names: Vec<*const c_char> = inputs.iter().map(|(name, _)| name.as_ptr()).collect();
    let values: Vec<_> = inputs.iter().map(|(_, value)| value.ptr()).collect();
    let wanted: Vec<*const c_char> = outputs.iter().map(|name| name.as_ptr()).collect();
    let mut given = vec![ptr::null_mut(); outputs.len()];
    // SAFETY: session, options, names and values are borrowed for the call and so outlive it; the counts are those of
    // the vectors; `given` has room for one pointer of each wanted name. Run writes to nothing else that is ours, and
    // reads inputs without changing them.
    let status = unsafe {
        (ort::api().Run)(
            session.ptr().cast_mut(),
            options.ptr(),
            names.as_ptr(),
            values.as_ptr(),
            values.len(),
            wanted.as_ptr(),
            wanted.len(),
            given.as_mut_ptr(),
        )
    };
    // SAFETY: each pointer that Run gave is a value that belongs to the caller, whether all were made or not. One that
    // holds nothing has no type to be asked for, and is given back as it is.
    let given = given.into_iter().map(|pointer| {
        NonNull::new(pointer).and_then(|value| unsafe {
            let mut holds = 0;
            let asked = ort::Error::result_from_status((ort::api().HasValue)(value.as_ptr(), &mut holds));
            if asked.is_err() || holds == 0 {
                (ort::api().ReleaseValue)(value.as_ptr());
                return None;
            }
            Some(DynValue::from_ptr(value, Some(session.allocator())))
        })
    });
    let given: Vec<Option<DynValue>> = given.collect();
    // SAFETY: the status is Run's own.
    unsafe { ort::Error::result_from_status(status) }?;
    Ok(given)
}

/// Texts of a tensor of so many, one behind another, and where each ends: whatever bytes they are, while `ort` gives none of
/// them where one is not UTF-8.
///
/// # Errors
/// What ONNX Runtime says: that the value is no tensor of text, or not of so many.
#[expect(unsafe_code, reason = "bytes of texts, which ort offers as UTF-8 only")]
pub(super) fn texts(value: &DynValue, count: usize) -> ort::Result<(Vec<u8>, Vec<usize>)> {
    let mut length = 0;
    // SAFETY: the value is borrowed for the call, which writes one number; the status is its own.
    unsafe {
        ort::Error::result_from_status((ort::api().GetStringTensorDataLength)(value.ptr(), &mut length))?;
    }
    let mut text = vec![0u8; length];
    // Where each begins.
    let mut bounds = vec![0; count];
    // SAFETY: as above; it writes as many bytes and as many numbers as it is told that there is room for, or nothing.
    unsafe {
        ort::Error::result_from_status((ort::api().GetStringTensorContent)(
            value.ptr(),
            text.as_mut_ptr().cast(),
            length,
            bounds.as_mut_ptr(),
            count,
        ))?;
    }
    // Each ends where the next one begins.
    bounds.push(length);
    Ok((text, bounds.split_off(1)))
}
