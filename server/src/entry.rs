//! A version of a model in the registry: where it is in its life, and what is said of it.

use crate::error::Error;
use crate::repository::Version;
use crate::servable::Servable;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The versions of a model.
pub(crate) type Versions = BTreeMap<Version, Entry>;
/// All models, by name.
pub(crate) type Snapshot = BTreeMap<String, Versions>;

/// Where a version is in its life.
#[derive(Clone, Debug)]
pub enum State {
    /// Being read.
    Loading,
    /// Serving.
    Ready(Arc<Servable>),
    /// Not serving: why.
    Unavailable(String),
}

/// A version, and what became of the last try to load it again where it serves on in spite of that.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) state: State,
    pub(crate) trouble: String,
}

impl From<State> for Entry {
    fn from(state: State) -> Self {
        Entry { state, trouble: String::new() }
    }
}

impl Entry {
    pub(crate) fn servable(&self) -> Option<Arc<Servable>> {
        if let State::Ready(servable) = &self.state { Some(servable.clone()) } else { None }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    pub(crate) fn is_awaited(&self) -> bool {
        matches!(&self.state, State::Unavailable(reason) if reason == AWAITED)
    }

    pub(crate) fn is_unloaded(&self) -> bool {
        matches!(&self.state, State::Unavailable(reason) if reason == UNLOADED)
    }
}

/// A model that was unloaded is gone; one that failed or is being loaded may come.
pub(crate) fn unavailable<'a>(name: &str, entries: impl IntoIterator<Item = &'a Entry>) -> Error {
    let gone = entries.into_iter().all(Entry::is_unloaded);
    if gone { Error::UnknownModel(name.into()) } else { Error::NotReady(name.into()) }
}

/// The same, unless it does not answer for a while.
pub(crate) fn ready(servable: Arc<Servable>) -> Result<Arc<Servable>, Error> {
    if servable.is_ready() { Ok(servable) } else { Err(Error::NotReady(servable.name.clone())) }
}

/// The reason of a model whose files have yet to come.
pub(crate) const AWAITED: &str = "its files are not there yet; they are waited for";

/// The reason of a model whose process has ended, and does not come back.
pub(crate) const NO_PROCESS: &str = "its process ended, and cannot be started again; the log says why";

/// The reason of a model that was taken out of service on request; it does not make the server unready.
pub(crate) const UNLOADED: &str = "unloaded";
