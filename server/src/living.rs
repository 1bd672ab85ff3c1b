//! What computes for models, for as long as anything does. A model that was replaced or unloaded answers those who asked
//! before: what it does is looked after, told of and ended with the rest.

use crate::batcher::{self, Batcher};
use crate::llm::generator::{self, Running};
use crate::metrics::ModelMetrics;
use crate::repository::Version;
use crate::servable::{Servable, Work};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// All that was put into service and computes yet, or may.
#[derive(Debug, Default)]
pub(crate) struct Living(Mutex<Vec<Known>>);

/// What is known of one of them. It keeps nothing alive but its metrics.
#[derive(Debug)]
struct Known {
    model: (String, Version),
    metrics: ModelMetrics,
    core: Weak,
}

#[derive(Debug)]
enum Weak {
    Predictor(batcher::Weak),
    Language(generator::Weak),
}

impl Weak {
    fn is_there(&self) -> bool {
        match self {
            Weak::Predictor(batcher) => batcher.is_there(),
            Weak::Language(engine) => engine.is_there(),
        }
    }

    fn core(&self) -> Option<Core> {
        match self {
            Weak::Predictor(batcher) => batcher.upgrade().map(Core::Predictor),
            Weak::Language(engine) => engine.upgrade().map(Core::Language),
        }
    }
}

/// What computes for a model.
pub(crate) enum Core {
    /// The queue of a model of tensors.
    Predictor(Batcher),
    /// The engine of a language model.
    Language(Running),
}

impl Core {
    /// Requests that wait.
    fn queued(&self) -> usize {
        match self {
            Core::Predictor(batcher) => batcher.queued(),
            Core::Language(engine) => engine.counters().waiting as usize,
        }
    }

    /// Does something run at `now` that should long have ended?
    pub(crate) fn hangs(&self, now: Instant) -> bool {
        match self {
            Core::Predictor(batcher) => batcher.is_stuck(now),
            Core::Language(engine) => engine.hangs(now),
        }
    }
}

impl Living {
    /// A model begins to serve.
    pub(crate) fn begin(&self, servable: &Servable) {
        let core = match &servable.work {
            Work::Predictor(batcher) => Weak::Predictor(batcher.downgrade()),
            Work::Language(language) => Weak::Language(language.downgrade()),
        };
        let model = (servable.name.clone(), servable.version);
        self.with(|known| known.push(Known { model, metrics: servable.metrics.clone(), core }));
    }

    /// All that computes.
    pub(crate) fn cores(&self) -> Vec<Core> {
        self.with(|known| known.iter().filter_map(|known| known.core.core()).collect())
    }

    /// Has metrics tell how many requests wait for each version of a model, whichever of its cores they wait for.
    pub(crate) fn tell_queued(&self) {
        self.with(|known| {
            let mut queued: BTreeMap<&(String, Version), (usize, &ModelMetrics)> = BTreeMap::new();
            for Known { model, metrics, core } in known.iter() {
                queued.entry(model).or_insert((0, metrics)).0 += core.core().map_or(0, |core| core.queued());
            }
            queued.into_values().for_each(|(queued, metrics)| metrics.queued(queued));
        });
    }

    /// What is gone is forgotten before anybody looks.
    fn with<T>(&self, look: impl FnOnce(&mut Vec<Known>) -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known| known.core.is_there());
        look(&mut known)
    }
}
