//! The repository index: what is loaded or lies in the repository, version by version. It is made when somebody asks.

use crate::entry::{Entry, Snapshot, State, Versions};
use crate::repository::{Found, Version};
use std::collections::BTreeMap;

/// One line of the repository index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Model.
    pub name: String,
    /// Version; absent for a model that was never loaded.
    pub version: Option<Version>,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    pub state: &'static str,
    /// Why it is not ready, or not what was last asked for: a version that could not be loaded again serves on.
    pub reason: String,
}

/// The index of `models`. `found` is what lies in the repository, where that is there: what was unloaded is told of as long as
/// it lies there.
pub(crate) fn entries(models: &Snapshot, found: Option<BTreeMap<String, Found>>) -> Vec<IndexEntry> {
    let mut entries = Vec::new();
    for (name, versions) in models {
        if is_unloaded(versions) && found.as_ref().is_some_and(|found| !found.contains_key(name)) {
            continue;
        }
        for (version, entry) in versions {
            let (state, reason) = match &entry.state {
                State::Loading => ("LOADING", String::new()),
                State::Ready(servable) => match servable.trouble() {
                    Some(reason) => ("UNAVAILABLE", reason),
                    None => ("READY", entry.trouble.clone()),
                },
                State::Unavailable(reason) => ("UNAVAILABLE", reason.clone()),
            };
            entries.push(IndexEntry { name: name.clone(), version: Some(*version), state, reason });
        }
    }
    for (name, found) in found.into_iter().flatten().filter(|(name, _)| !models.contains_key(name)) {
        let reason = found.refused.unwrap_or_default();
        entries.push(IndexEntry { name, version: None, state: "UNAVAILABLE", reason });
    }
    entries.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    entries
}

/// Forgets models that were unloaded and lie in the repository no more.
pub(crate) fn forget_gone(models: &mut Snapshot, found: &BTreeMap<String, Found>) {
    models.retain(|name, versions| found.contains_key(name) || !is_unloaded(versions));
}

/// Was the model unloaded, with all its versions?
pub(crate) fn is_unloaded(versions: &Versions) -> bool {
    versions.values().all(Entry::is_unloaded)
}
