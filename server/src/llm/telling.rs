//! What a step says to each of its sequences, handed to the runtime in one piece. Each connection woken from the engine's
//! thread would be a system call, and a worker that looks for work between two of them finds none and sleeps again; woken
//! by a task of the runtime, connections queue on its worker.

use super::generator::Shared;
use super::life::Life;
use crate::metrics::{AnswerMetrics, Ended};
use backends::llm::request::Request;
use backends::llm::sequence::{CancelReason, Event, SequenceId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Events of a sequence besides its tokens and what is told of its prompt: its start and its end.
const EVENTS: usize = 2;

/// How large a request is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) copies: u16,
    life: Life,
    /// Of each copy, at most.
    events: usize,
}

impl Size {
    /// Of a request that came at `since`.
    pub(super) fn of(request: &Request, since: Instant) -> Self {
        let prompt = request.prompt().len();
        // They come chunk by chunk, and a chunk may be a token.
        let told = if request.sampling().prompt_logprobs.is_some() { prompt } else { 0 };
        let events = request.max_tokens() as usize + told + EVENTS;
        let life = Life::new(prompt as u32, request.is_counted(), since);
        Size { copies: request.copies(), life, events }
    }
}

/// An event, and who waits for it.
type Message = (Sender<Event>, Event);

/// Who is told, and messages on their way. Neither lock is held where the other, or an inbox, is wanted, but for these:
/// of listeners, then messages; of messages, then the inbox.
#[derive(Debug)]
pub(super) struct Telling {
    metrics: AnswerMetrics,
    listeners: Mutex<Listeners>,
    /// In order, whichever worker hands them on.
    messages: Mutex<VecDeque<Message>>,
}

#[derive(Debug, Default)]
struct Listeners {
    /// That of the last request.
    runtime: Option<Handle>,
    of: HashMap<SequenceId, Listener>,
}

#[derive(Debug)]
struct Listener {
    events: Sender<Event>,
    life: Life,
}

impl Telling {
    /// Nobody listens yet; `metrics` are told of every sequence that somebody listens to.
    pub(super) fn new(metrics: AnswerMetrics) -> Self {
        Telling { metrics, listeners: Mutex::default(), messages: Mutex::default() }
    }

    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those who listen wait on `runtime` from now on.
    pub(super) fn wake_on(&self, runtime: Handle) {
        self.listeners().runtime = Some(runtime);
    }

    /// Where all of a sequence is told. There is room for all that may happen to it, in memory that is asked for as it does.
    pub(super) fn listen(&self, sequence: SequenceId, size: Size) -> Receiver<Event> {
        let (events, receiver) = mpsc::channel(size.events);
        self.listeners().of.insert(sequence, Listener { events, life: size.life });
        receiver
    }
}

/// Has what a step that `began` then says handed on, after what came before. Sequences that nobody can be told about are
/// cancelled.
pub(super) fn tell(shared: &Arc<Shared>, events: Vec<Event>, began: Instant) {
    if events.is_empty() {
        return;
    }
    let (metrics, now) = (&shared.telling.metrics, Instant::now());
    let mut listeners = shared.telling.listeners();
    let Listeners { runtime: Some(runtime), of } = &mut *listeners else { return };
    let messages = events.into_iter().filter_map(|event| {
        let sequence = event.sequence();
        let Listener { events, life } = of.get_mut(&sequence)?;
        life.follow(&event, began, now, metrics);
        let events = if event.is_last() { of.remove(&sequence)?.events } else { events.clone() };
        Some((events, event))
    });
    send(shared, runtime, messages);
}

/// Nobody is told anything any more: what they listen to ends, behind what is on its way to them.
pub(super) fn end(shared: &Shared) {
    let telling = &shared.telling;
    telling.listeners().of.drain().for_each(|(_, Listener { life, .. })| life.end(Ended::Error, &telling.metrics));
}

/// Everybody is told that their sequence was ended, behind what is on its way to them, and nothing after that. Was there
/// anybody?
pub(super) fn cancel_all(shared: &Arc<Shared>, reason: CancelReason) -> bool {
    let mut listeners = shared.telling.listeners();
    let Listeners { runtime: Some(runtime), of } = &mut *listeners else { return false };
    let any = !of.is_empty();
    let ended = of.drain().map(|(sequence, Listener { events, life })| {
        life.cancelled(reason, &shared.telling.metrics);
        (events, Event::Cancelled { sequence, reason })
    });
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
        // There is room for all; a channel that is full or closed is nobody's any more.
        if listener.try_send(event).is_err() && !last {
            shared.cancel(sequence, CancelReason::ClientGone);
        }
    }
}
