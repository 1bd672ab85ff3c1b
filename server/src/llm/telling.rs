//! What a step says to each of its sequences, handed to the runtime in one piece. Each connection woken from the engine's
//! thread would be a system call, and a worker that looks for work between two of them finds none and sleeps again; woken
//! by a task of the runtime, connections queue on its worker.

use super::generator::Shared;
use backends::llm::sequence::{CancelReason, Event};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

/// An event, and who waits for it.
type Message = (Sender<Event>, Event);

/// Messages on their way.
pub(super) struct Telling {
    shared: Arc<Shared>,
    /// In order, whichever worker hands them on.
    messages: Arc<Mutex<VecDeque<Message>>>,
}

impl Telling {
    /// Sequences that nobody can be told about are cancelled in `shared`.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Telling { shared, messages: Arc::default() }
    }

    /// Has `messages` handed on by `runtime`, after those that came before.
    pub(super) fn tell(&self, runtime: &Handle, messages: impl Iterator<Item = Message>) {
        let any = {
            let mut waiting = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.extend(messages);
            !waiting.is_empty()
        };
        if any {
            let (shared, messages) = (self.shared.clone(), self.messages.clone());
            runtime.spawn(async move { hand_on(&shared, &messages) });
        }
    }
}

/// Gives everybody what is theirs. The lock is held to the end, since another step's messages may not overtake.
fn hand_on(shared: &Shared, messages: &Mutex<VecDeque<Message>>) {
    let mut messages = messages.lock().unwrap_or_else(PoisonError::into_inner);
    for (listener, event) in messages.drain(..) {
        let (sequence, last) = (event.sequence(), event.is_last());
        // There is room for every token; a channel that is full or closed is nobody's any more.
        if listener.try_send(event).is_err() && !last {
            shared.cancel(sequence, CancelReason::ClientGone);
        }
    }
}
