//! A device whose calls are counted, so that another thread can tell one that does not return: while a model is loaded
//! nothing else tells how far it is. What the host does between two calls, reading files above all, may take any time.

use crate::llm::progress::Calls;
use kernels::cuda::{Device, Fault, Fill, Graph, Launch, Pending, Slice, Units};

/// Does what another device does.
pub struct Watched {
    inner: Box<dyn Device>,
    calls: Calls,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("device", &self.inner.name()).field("calls", &self.calls).finish()
    }
}

impl Watched {
    /// Counts the calls of `inner`.
    pub fn new(inner: Box<dyn Device>, calls: Calls) -> Self {
        Watched { inner, calls }
    }
}

impl Device for Watched {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn processors(&self) -> u32 {
        self.inner.processors()
    }

    fn matrix_units(&self) -> Units {
        self.inner.matrix_units()
    }

    fn reserve(&mut self, bytes: usize) -> Result<Slice<u8>, Fault> {
        self.calls.during(|| self.inner.reserve(bytes))
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), Fault> {
        self.calls.during(|| self.inner.launch(launch))
    }

    fn upload(&mut self, to: Slice<u8>, bytes: &[u8]) -> Result<(), Fault> {
        self.calls.during(|| self.inner.upload(to, bytes))
    }

    fn upload_rounds(&mut self, room: usize, fill: Fill<'_>) -> Result<(), Fault> {
        let Watched { inner, calls } = self;
        // The host's part of it is no call.
        calls.during(|| inner.upload_rounds(room, &mut |bytes| calls.between(|| fill(bytes))))
    }

    fn download(&mut self, from: Slice<u8>) -> Result<Pending, Fault> {
        self.calls.during(|| self.inner.download(from))
    }

    fn wait(&mut self, pending: Pending) -> Result<Vec<u8>, Fault> {
        self.calls.during(|| self.inner.wait(pending))
    }

    fn prepare(&mut self, launch: &Launch) -> Result<(), Fault> {
        self.calls.during(|| self.inner.prepare(launch))
    }

    fn begin_capture(&mut self) -> Result<(), Fault> {
        self.calls.during(|| self.inner.begin_capture())
    }

    fn end_capture(&mut self) -> Result<Graph, Fault> {
        self.calls.during(|| self.inner.end_capture())
    }

    fn replay(&mut self, graph: Graph) -> Result<(), Fault> {
        self.calls.during(|| self.inner.replay(graph))
    }

    fn seconds(&mut self, work: &mut dyn FnMut(&mut dyn Device) -> Result<(), Fault>) -> Result<f64, Fault> {
        self.inner.seconds(work)
    }
}
