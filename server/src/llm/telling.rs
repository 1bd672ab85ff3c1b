//! What a step says to each of its sequences, handed to the runtime in one piece. Each connection woken from the engine's
//! thread would be a system call, and a worker that looks for work between two of them finds none and sleeps again; woken
//! by a task of the runtime, connections queue on its worker.

use super::generator::Shared;
use backends::llm::sequence::{CancelReason, Event, SequenceId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

/// An event, and who waits for it.
type Message = (Sender<Event>, Event);

/// Who is told, and messages on their way. Neither lock is held where the other, or an inbox, is wanted, but for these:
/// of listeners, then messages; of messages, then the inbox.
#[derive(Debug, Default)]
pub(super) struct Telling {
    listeners: Mutex<Listeners>,
    /// In order, whichever worker hands them on.
    messages: Mutex<VecDeque<Message>>,
}

#[derive(Debug, Default)]
struct Listeners {
    /// That of the last request.
    runtime: Option<Handle>,
    of: HashMap<SequenceId, Sender<Event>>,
}

impl Telling {
    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who listen wait on `runtime` from now on.
    pub(super) fn wake_on(&self, runtime: Handle) {
        self.listeners().runtime = Some(runtime);
    }

    /// `listener` is told all of a sequence.
    pub(super) fn listen(&self, sequence: SequenceId, listener: Sender<Event>) {
        self.listeners().of.insert(sequence, listener);
    }
}

/// Has what a step says handed on, after what came before. Sequences that nobody can be told about are cancelled.
pub(super) fn tell(shared: &Arc<Shared>, events: Vec<Event>) {
    let mut listeners = shared.telling.listeners();
    let Listeners { runtime: Some(runtime), of } = &mut *listeners else { return };
    let messages = events.into_iter().filter_map(|event| {
        let sequence = event.sequence();
        let listener = if event.is_last() { of.remove(&sequence) } else { of.get(&sequence).cloned() };
        listener.map(|listener| (listener, event))
    });
    send(shared, runtime, messages);
}

/// Nobody is told anything any more: what they listen to ends, behind what is on its way to them.
pub(super) fn end(shared: &Shared) {
    shared.telling.listeners().of.clear();
}

/// Everybody is told that their sequence was ended, behind what is on its way to them, and nothing after that. Was there
/// anybody?
pub(super) fn cancel_all(shared: &Arc<Shared>, reason: CancelReason) -> bool {
    let mut listeners = shared.telling.listeners();
    let Listeners { runtime: Some(runtime), of } = &mut *listeners else { return false };
    let any = !of.is_empty();
    let ended = of.drain().map(|(sequence, listener)| (listener, Event::Cancelled { sequence, reason }));
    send(shared, runtime, ended);
    any
}

fn send(shared: &Arc<Shared>, runtime: &Handle, messages: impl Iterator<Item = Message>) {
    let any = {
        let mut waiting = shared.telling.messages.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(messages);
        !waiting.is_empty()
    };
    if any {
        let shared = shared.clone();
        runtime.spawn(async move { hand_on(&shared) });
    }
}

/// Gives everybody what is theirs. The lock is held to the end, since another step's messages may not overtake.
fn hand_on(shared: &Shared) {
    let mut messages = shared.telling.messages.lock().unwrap_or_else(PoisonError::into_inner);
    for (listener, event) in messages.drain(..) {
        let (sequence, last) = (event.sequence(), event.is_last());
        // There is room for every token; a channel that is full or closed is nobody's any more.
        if listener.try_send(event).is_err() && !last {
            shared.cancel(sequence, CancelReason::ClientGone);
        }
    }
}
