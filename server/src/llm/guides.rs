//! Forms that answers keep to, compiled on threads that may take their time: a few at once, each for a bounded time.

use crate::error::Error;
use backends::llm::grammar::{Form, Grammars, Guide};
use backends::llm::text::Vocabulary;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Forms that are compiled at a time.
const AT_ONCE: usize = 2;
/// How long one may take, waiting included.
const LONGEST: Duration = Duration::from_secs(2);

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
}

impl Guides {
    /// For a model whose texts end with one of `ends`.
    pub(super) fn new(vocabulary: Arc<Vocabulary>, size: u32, ends: &[u32]) -> Self {
        let shared = Shared { vocabulary, size, ends: ends.to_vec(), grammars: OnceLock::new() };
        Guides { shared: Arc::new(shared), permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Compiles a form.
    ///
    /// # Errors
    /// [`Error::Invalid`] says why it cannot be followed; [`Error::Overloaded`] where too many wait.
    pub(super) async fn compile(&self, form: Form) -> Result<Guide, Error> {
        let (shared, permits) = (self.shared.clone(), self.permits.clone());
        let work = async {
            // Held by the thread: one that runs on after its time still counts.
            let permit = permits.acquire_owned().await.map_err(|_| Error::Draining)?;
            let compiled = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                shared.compile(&form)
            });
            Ok(compiled.await)
        };
        let late = |_| {
            let busy = self.permits.available_permits() == 0;
            match busy {
                true => Error::Overloaded("too many schemas and grammars are being compiled; try again later".into()),
                false => Error::Invalid(format!("it takes more than {} s to compile", LONGEST.as_secs())),
            }
        };
        let compiled: Result<_, Error> = tokio::time::timeout(LONGEST, work).await.map_err(late)?;
        match compiled? {
            Ok(guide) => guide.map_err(Error::Invalid),
            Err(_) => Err(Error::Invalid("it cannot be compiled: the compiler gave up".into())),
        }
    }
}

impl Shared {
    fn compile(&self, form: &Form) -> Result<Guide, String> {
        let grammars = self.grammars.get_or_init(|| Grammars::new(&self.vocabulary, self.size, &self.ends));
        grammars.as_ref().map_err(Clone::clone)?.compile(form)
    }
}
