//! Compiling a form in a child process first. A schema or a grammar of a few kilobytes can make its compiler recurse until
//! the stack ends, compute for hours or take all memory, and nothing stops a thread that does so: a process can be ended.
//!
//! ```text
//! server ── spawn /proc/self/exe __form ──────> child: limits on itself, then compiles on a stack of its own
//!        ── form and outline as JSON on stdin ─>
//!        <── it ended by itself, or was ended ──
//! ```
//!
//! What the compiler says of the form, the server finds out when it compiles it for the model's vocabulary: the child
//! only shows that this ends, and fits the stack that it is done on.

use crate::child::{self, Running, Stopped, XCPU};
use crate::error::Error;
use crate::threads;
use backends::llm::grammar::{Form, Outline};
use rustix::process::{Resource, Signal};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

/// The word that makes the server's binary a child that compiles a form.
pub const COMMAND: &str = "__form";

/// The processor's time that it may take. Schemas in use take milliseconds, the largest some tenths of a second.
const SECONDS: u64 = 2;
/// How long it may take where others have the processor.
const LONGEST: Duration = Duration::from_secs(10);
/// Bytes that a child may hold.
const MEMORY: u64 = 512 << 20;
/// Bytes of stack that compiling may take: schemas that refer to each other hundreds deep.
const STACK: usize = 8 << 20;
/// The stack of the thread that compiles what passed. More than a child has: a larger vocabulary must not make it too
/// small.
pub(super) const AMPLE: usize = 8 * STACK;

/// Between two looks at the child.
const PERIOD: Duration = Duration::from_millis(1);
/// Addresses that a child has besides its memory: what allocators reserve.
const SPACE: u64 = 4 << 30;
/// What the runtime says when a stack is full, before it ends the process.
const OVERFLOW: &str = "has overflowed its stack";
/// What it says when there is no memory.
const NO_MEMORY: &str = "memory allocation of";
/// Those by which others end one: a user, the kernel for want of memory, whoever stops the server.
const OTHERS: [i32; 4] = [Signal::HUP.as_raw(), Signal::INT.as_raw(), Signal::KILL.as_raw(), Signal::TERM.as_raw()];

/// The task of a child: this form, for a model of this outline.
///
/// # Errors
/// Never, as far as is known.
pub(super) fn task(form: &Form, outline: &Outline) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(&(form, outline)).map_err(|error| Error::Internal(error.to_string()))
}

/// Compiles a form in a child; takes as long as the child lives.
///
/// # Errors
/// [`Error::Invalid`] says what it takes too much of; [`Error::Internal`] where no child can be had.
pub(super) fn attempt(task: &[u8]) -> Result<(), Error> {
    let child = Running::start(COMMAND, Stdio::piped(), Stdio::null());
    let mut child = child.map_err(|e| Error::Internal(format!("no process to compile a form in: {e}")))?;
    child.tell(task);
    let status = child.wait(MEMORY, LONGEST, PERIOD).map_err(|stopped| match stopped {
        Stopped::Memory(_) => too_large(),
        Stopped::Time => Error::Overloaded("too busy to compile schemas and grammars; try again later".into()),
        Stopped::Unknown(error) => Error::Internal(error.to_string()),
    })?;
    if status.success() { Ok(()) } else { Err(reason(status, &child.complaints.words())) }
}

fn too_long() -> Error {
    Error::Invalid(format!("it takes more than {SECONDS} s to compile"))
}

fn too_large() -> Error {
    Error::Invalid(format!("it takes more than {} MiB of memory to compile", MEMORY >> 20))
}

/// Why a child did not end as it should.
fn reason(status: ExitStatus, words: &str) -> Error {
    match status.signal() {
        Some(XCPU) => too_long(),
        Some(signal) if OTHERS.contains(&signal) => {
            Error::Overloaded(format!("the process that compiled it was ended with signal {signal}; try again later"))
        }
        Some(_) if words.contains(NO_MEMORY) => too_large(),
        Some(_) if words.contains(OVERFLOW) => Error::Invalid(format!(
            "it is nested too deeply, in itself or by what it refers to: it takes more than {} MiB of stack to compile",
            STACK >> 20
        )),
        Some(signal) => Error::Invalid(format!("it cannot be compiled: the compiler ended with signal {signal}")),
        None => Error::Internal(format!("a process that was to compile a form ended with {status}: {words}")),
    }
}

/// What the child does: nothing of this touches sockets or threads of a server.
#[must_use]
pub fn child() -> ExitCode {
    child::end_with_parent();
    child::be_expendable();
    child::limit(Resource::Cpu, SECONDS, SECONDS + 1);
    child::limit(Resource::As, MEMORY + SPACE, MEMORY + SPACE);
    let compile = |(form, outline): (Form, Outline)| {
        let work = move || drop(outline.grammars().and_then(|grammars| grammars.compile(&form)));
        threads::spawn_deep("form", STACK, work)
    };
    match child::task::<(Form, Outline)>().and_then(compile) {
        // A panic is an answer, too, which the server will hear for itself.
        Ok(thread) => {
            let _ = thread.join();
            ExitCode::SUCCESS
        }
        Err(error) => child::no_task(COMMAND, "standard input", error),
    }
}
