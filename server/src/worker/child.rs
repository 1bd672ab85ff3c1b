//! What a child does: loads the model that it is told to, and computes calls until the server is gone.

use super::control::{self, Told};
use super::wire::{self, Answered, Asked, Described, Failure, Outcome};
use super::{COMMAND, Task};
use crate::child::{be_expendable, no_task};
use crate::threads;
use backends::llm::LanguageOptions;
use backends::onnx::{OnnxOptions, Place};
use backends::settings::Isolation;
use backends::{
    Artifact, Call, CancelFlag, Conventions, InferError, Limits, LoadError, LoadOptions, Model, Parameters, Predictor,
    Tensor, load,
};
use rustix::process::{Signal, getpid, kill_process};
use std::collections::BTreeMap;
use std::io::{BufReader, Result};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Connections that are heard of and not served yet, at most.
const OPENED: usize = 64;

/// A connection, and its call that runs.
struct Connection {
    stream: UnixStream,
    current: Arc<Current>,
}

/// The call of a connection that runs: its number, and what is set when nobody waits for it.
type Current = Mutex<(u64, CancelFlag)>;

/// What the child does: nothing of this touches sockets or threads of a server.
#[must_use]
pub fn child() -> ExitCode {
    let control = std::io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    be_expendable();
    go_on();
    let (sender, opened) = mpsc::sync_channel(OPENED);
    let listening = control.and_then(|control| {
        threads::spawn("control", move || listen(&control, &sender)).map_err(std::io::Error::other)
    });
    match listening.and_then(|_| serve(&opened)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => no_task(COMMAND, "a socket", error),
    }
}

/// Goes on when somebody ends the server with all of its processes: it answers what it was asked, and ends this one.
fn go_on() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    let _within = runtime.enter();
    // From now on this process hears them, for good, and does nothing.
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        drop(signal(kind));
    }
}

/// Hears what the server says besides calls. When the server is gone, or has had enough, this process is: whatever native
/// code does meanwhile.
fn listen(control: &UnixStream, opened: &SyncSender<Connection>) {
    let mut connections: BTreeMap<u32, Arc<Current>> = BTreeMap::new();
    loop {
        match control::receive(control) {
            Ok(Told::Open(number, stream)) => {
                let current = Arc::<Current>::default();
                connections.insert(number, current.clone());
                let _ = opened.send(Connection { stream, current });
            }
            Ok(Told::Cancel(number, call)) => {
                let current = connections.get(&number).map(|current| lock(current));
                if let Some(current) = current.filter(|current| current.0 == call) {
                    current.1.cancel();
                }
            }
            Err(_) => {
                let _ = kill_process(getpid(), Signal::KILL);
                return;
            }
        }
    }
}

fn lock(current: &Current) -> std::sync::MutexGuard<'_, (u64, CancelFlag)> {
    current.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Loads by what the first connection says, then answers on each.
fn serve(opened: &Receiver<Connection>) -> Result<()> {
    let Ok(mut first) = opened.recv() else { return Ok(()) };
    let Some((task, _)) = wire::read::<Task>(&mut first.stream)? else { return Ok(()) };
    let loaded = std::panic::catch_unwind(AssertUnwindSafe(|| open(&task)));
    let file = &task.origin.directory;
    let predictor = match loaded.unwrap_or_else(|_| Err(LoadError::new(file, "the loader panicked"))) {
        Ok(predictor) => predictor,
        Err(LoadError { reason, detail, .. }) => {
            return wire::write(&mut first.stream, &Outcome::Refused { reason, detail }, &[]);
        }
    };
    let profile = predictor.profile();
    let computes = profile.computes;
    let described = Described::of(predictor.signature(), profile, predictor.spreads_rows());
    wire::write(&mut first.stream, &Outcome::Loaded(Box::new(described)), &[])?;
    let predictor: Arc<dyn Predictor> = predictor.into();
    let mut next = Some(first);
    while let Some(connection) = next.or_else(|| opened.recv().ok()) {
        let predictor = predictor.clone();
        let work = move || {
            if computes {
                threads::stand_back();
            }
            // Whoever closes a connection does not wait for an answer of it.
            let _ = answer(&*predictor, connection);
        };
        drop(threads::spawn("call", work).map_err(std::io::Error::other)?);
        next = None;
    }
    Ok(())
}

fn open(task: &Task) -> std::result::Result<Box<dyn Predictor>, LoadError> {
    let origin = &task.origin;
    let artifact = Artifact::open_file(&origin.root, &origin.directory, origin.file.as_deref())?;
    let refuse = |reason: String| LoadError::new(artifact.model_path(), reason);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(task.threads)
        .start_handler(|_| threads::stand_back())
        .build()
        .map_err(|error| refuse(error.to_string()))?;
    let options = LoadOptions {
        pool: Arc::new(pool),
        limits: Limits::default(),
        conventions: if task.triton { Conventions::Triton } else { Conventions::Kserve },
        language: LanguageOptions::default(),
        onnx: OnnxOptions { libraries: task.libraries.clone(), isolation: Isolation::Never, place: Place::Own },
    };
    match load(&artifact, &options)? {
        Model::Predictor(predictor) => Ok(predictor),
        Model::Language(_) => Err(refuse("a language model has no process of its own".into())),
    }
}

/// Answers the calls of a connection, one after the other.
fn answer(predictor: &dyn Predictor, connection: Connection) -> Result<()> {
    let Connection { stream, current } = connection;
    let (mut reader, mut writer) = (BufReader::new(&stream), &stream);
    while let Some((asked, bytes)) = wire::read::<Asked>(&mut reader)? {
        let cancel = CancelFlag::default();
        *lock(&current) = (asked.number, cancel.clone());
        let deadline = asked.left.and_then(|left| Instant::now().checked_add(Duration::from_micros(left)));
        let inputs = wire::tensors(asked.inputs, bytes)?;
        let parameters = Parameters::new();
        let call =
            Call { inputs: &inputs, outputs: &asked.outputs, parameters: &parameters, deadline, cancel: &cancel };
        let compute = || predictor.predict(&call);
        let panicked = |panic| Err(InferError::Panicked(threads::said(panic)));
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(compute)).unwrap_or_else(panicked);
        reply(&mut writer, outcome)?;
    }
    Ok(())
}

fn reply(writer: &mut &UnixStream, outcome: std::result::Result<Vec<Tensor>, InferError>) -> Result<()> {
    match outcome {
        Ok(outputs) => wire::write(writer, &Answered::Outputs(wire::shapes(&outputs)), &outputs),
        Err(error) => wire::write(writer, &Answered::Failed(Failure::from(error)), &[]),
    }
}
