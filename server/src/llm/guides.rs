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

/// Compiles forms for one model.
#[derive(Clone, Debug)]
pub(super) struct Guides {
    shared: Arc<Shared>,
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
        Guides { shared: Arc::new(shared), permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Compiles a form.
    ///
    /// # Errors
    /// [`Error::Invalid`] says why it cannot be followed, or what it takes too much of; [`Error::Overloaded`] where too
    /// many wait.
    pub(super) async fn compile(&self, form: Form) -> Result<Guide, Error> {
        let turn = tokio::time::timeout(PATIENCE, self.permits.clone().acquire_owned());
        let busy = |_| Error::Overloaded("too many schemas and grammars are being compiled; try again later".into());
        let permit = turn.await.map_err(busy)?.map_err(|_| Error::Draining)?;
        let shared = self.shared.clone();
        let (tell, told) = oneshot::channel();
        let work = move || {
            // Given back when nothing runs any more, whoever still waits.
            let _permit = permit;
            threads::stand_back();
            let _ = tell.send(shared.compile(&form));
        };
        threads::spawn_deep("form", trial::AMPLE, work).map_err(Error::Internal)?;
        told.await.unwrap_or_else(|_| Err(Error::Invalid("it cannot be compiled: the compiler gave up".into())))
    }
}

impl Shared {
    fn compile(&self, form: &Form) -> Result<Guide, Error> {
        if !form.is_harmless() {
            self.try_out(form)?;
        }
        let grammars = self.grammars.get_or_init(|| Grammars::new(&self.vocabulary, self.size, &self.ends));
        grammars.as_ref().map_err(Clone::clone).and_then(|grammars| grammars.compile(form)).map_err(Error::Invalid)
    }

    /// Does compiling this end, within its bounds?
    fn try_out(&self, form: &Form) -> Result<(), Error> {
        let outline = self.outline.get_or_init(|| Outline::new(&self.vocabulary, self.size, &self.ends));
        let task = trial::task(form, outline)?;
        let number = self.numbers.hash_one(&task);
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(&number) {
            return Ok(());
        }
        trial::attempt(&task)?;
        let mut known = known();
        known.push_back(number);
        if known.len() > KNOWN {
            known.pop_front();
        }
        Ok(())
    }
}
