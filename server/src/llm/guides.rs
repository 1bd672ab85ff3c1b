//! Forms that answers keep to, compiled off the request path: a few at once, each of them first in a process that can be
//! ended (`trial.rs`), then on a thread whose stack is large enough for what passed there.

use super::trial;
use crate::error::Error;
use crate::threads;
use backends::llm::grammar::{Form, Grammars, Guide, Outline};
use backends::llm::text::Vocabulary;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// Forms that are compiled at a time.
const AT_ONCE: usize = 2;
/// How long a form waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// Forms that are known to be harmless, and need not be tried again.
const KNOWN: usize = 256;

/// A task for a child, and the number by which it is known once it ended well.
struct Trial {
    task: Vec<u8>,
    number: u64,
}

/// Compiles forms for one model.
#[derive(Clone, Debug)]
pub(super) struct Guides {
    shared: Arc<Shared>,
    /// Turns of those that are tried first, which may take seconds, and of others.
    trials: Arc<Semaphore>,
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shared {
    vocabulary: Arc<Vocabulary>,
    size: u32,
    ends: Vec<u32>,
    /// Made when the first form comes: it takes time and memory that most models never need.
    grammars: OnceLock<Result<Grammars, String>>,
    outline: OnceLock<Outline>,
    /// Tasks that ended well, as numbers that nobody can foresee.
    known: Mutex<VecDeque<u64>>,
    numbers: RandomState,
}

impl Guides {
    /// For a model whose texts end with one of `ends`.
    pub(super) fn new(vocabulary: Arc<Vocabulary>, size: u32, ends: &[u32]) -> Self {
        let shared = Shared {
            vocabulary,
            size,
            ends: ends.to_vec(),
            grammars: OnceLock::new(),
            outline: OnceLock::new(),
            known: Mutex::default(),
            numbers: RandomState::new(),
        };
        let turns = || Arc::new(Semaphore::new(AT_ONCE));
        Guides { shared: Arc::new(shared), trials: turns(), permits: turns() }
    }

    /// Compiles a form.
    ///
    /// # Errors
    /// [`Error::Invalid`] says why it cannot be followed, or what it takes too much of; [`Error::Overloaded`] where too
    /// many wait.
    pub(super) async fn compile(&self, form: Form) -> Result<Guide, Error> {
        let trial = self.shared.trial(&form)?;
        // What is known to end soon does not wait for what may not.
        let permits = if trial.is_some() { &self.trials } else { &self.permits };
        let turn = tokio::time::timeout(PATIENCE, permits.clone().acquire_owned());
        let busy = |_| Error::Overloaded("too many schemas and grammars are being compiled; try again later".into());
        let permit = turn.await.map_err(busy)?.map_err(|_| Error::Draining)?;
        let shared = self.shared.clone();
        let (tell, told) = oneshot::channel();
        let work = move || {
            // Given back when nothing runs any more, whoever still waits.
            let _permit = permit;
            threads::stand_back();
            let _ = tell.send(shared.compile(&form, trial));
        };
        threads::spawn_deep("form", trial::AMPLE, work).map_err(Error::Internal)?;
        told.await.unwrap_or_else(|_| Err(Error::Invalid("it cannot be compiled: the compiler gave up".into())))
    }
}

impl Shared {
    fn compile(&self, form: &Form, trial: Option<Trial>) -> Result<Guide, Error> {
        if let Some(Trial { task, number }) = trial {
            trial::attempt(&task)?;
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.push_back(number);
            if known.len() > KNOWN {
                known.pop_front();
            }
        }
        let grammars = self.grammars.get_or_init(|| Grammars::new(&self.vocabulary, self.size, &self.ends));
        grammars.as_ref().map_err(Clone::clone).and_then(|grammars| grammars.compile(form)).map_err(Error::Invalid)
    }

    /// What has to be tried first, if anything.
    fn trial(&self, form: &Form) -> Result<Option<Trial>, Error> {
        if form.is_harmless() {
            return Ok(None);
        }
        let outline = self.outline.get_or_init(|| Outline::new(&self.vocabulary, self.size, &self.ends));
        let task = trial::task(form, outline)?;
        let number = self.numbers.hash_one(&task);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((!known.contains(&number)).then_some(Trial { task, number }))
    }
}
