//! Steps of decoding as captured graphs, and the sampler after them: for some sizes of batches, the smallest of them
//! before a model is ready, the others when there is nothing else to do.

use super::forward::Shape;
use super::memory::Layout;
use super::step::{self, Rows};
use super::{CudaExecutor, EARLY_BUCKETS};
use crate::llm::executor::Failure;
use crate::llm::plan::Plan;
use kernels::cuda::{Graph, Launch};
use std::collections::HashMap;

/// Rows of steps from which on other kernels take them, or the same with more memory: the first of each kind.
const CLASSES: [usize; 7] = [1, 9, 17, 33, 65, 129, 257];
/// Rows up to which kernels are looked for by 64; more go by the tiles of many.
const TILED_ROWS: usize = 4096;
/// Rows with logits up to which they are: as many as the largest graph.
pub(super) const SAMPLED_ROWS: usize = 512;

impl CudaExecutor {
    /// Captures what small batches need, and runs it once: what the device cannot do shows here rather than in
    /// somebody's request.
    pub(super) fn warm_up(&mut self) -> Result<(), Failure> {
        // Weights may be read before a kernel waits for others: they have to be there.
        let pending = self.device.download(self.forward.buffers.last.cast()?)?;
        self.device.wait(pending)?;
        // A row of padding: it goes through every kernel of decoding, so that none is loaded while a graph is captured,
        // and leaves nothing behind.
        let nothing = Plan { step: 0, chunks: Vec::new(), stale: Vec::new(), preempted: Vec::new() };
        // Where one row goes the short way, as many go the other, too.
        let longer = if self.forward.is_short(1) {
            (2..=self.extent.slots).find(|rows| !self.forward.is_short(*rows))
        } else {
            None
        };
        for count in [Some(1), longer].into_iter().flatten() {
            let mut rows = Rows { tiled: self.forward.deterministic, ..Rows::default() };
            rows.pad(count, self.extent.slots);
            self.eager(&nothing, &rows)?;
        }
        self.warm_up_sampler()?;
        self.load_kernels()?;
        for _ in 0..EARLY_BUCKETS {
            match self.capture_next() {
                Err(lost @ Failure::Lost(_)) => return Err(lost),
                Err(failure) => self.stop_capturing(&failure),
                Ok(_) => {}
            }
        }
        let pending = self.device.download(self.forward.buffers.last.cast()?)?;
        self.device.wait(pending)?;
        Ok(())
    }

    /// Has the driver load the kernels that requests bring with them: those of prompts, of tables, of penalties. It loads
    /// one when it is first asked for, and the device may have no room for it by then. Nothing is launched.
    fn load_kernels(&mut self) -> Result<(), Failure> {
        let mut launches: HashMap<&str, Launch> = HashMap::new();
        // Tiles suit the number of rows, and one kind may be for some hundreds of them alone; not where all rows go in
        // pieces.
        let tiled = if self.forward.deterministic { 0 } else { self.extent.rows.min(TILED_ROWS) };
        let all = CLASSES.into_iter().chain((64..=tiled).step_by(64)).chain([self.extent.rows]);
        for rows in all.filter(|rows| *rows <= self.extent.rows) {
            let sampled = rows.min(self.extent.slots).min(SAMPLED_ROWS);
            let inputs = Layout::of(rows, sampled, 0, rows).inputs(self.forward.buffers.inputs, 0)?;
            let shape = Shape { rows, decodes: 0, tiles: rows, sampled };
            self.forward.step(shape, &inputs, &mut |launch| {
                launches.insert(launch.kernel(), launch);
            })?;
        }
        let inputs = self.forward.buffers.inputs;
        for launch in [self.update(inputs.first(3)?)?, self.counting(0, 0..1, 0..0)?] {
            launches.insert(launch.kernel(), launch);
        }
        Ok(launches.values().try_for_each(|launch| self.device.prepare(launch))?)
    }

    /// Captures what the smallest bucket lacks of its graphs: of the step, and of both samplers after it, that of greedy
    /// rows and the whole one. `false` where no bucket lacks any.
    pub(super) fn capture_next(&mut self) -> Result<bool, Failure> {
        let most = self.extent.slots;
        let next = step::BUCKETS.into_iter().find(|bucket| *bucket <= most && self.lacks_graphs(*bucket));
        let Some(bucket) = next.filter(|_| self.captures) else { return Ok(false) };
        if !self.graphs.contains_key(&bucket) {
            self.capture(bucket)?;
        }
        for whole in [false, true] {
            self.sampler_graph(bucket, whole)?;
        }
        Ok(true)
    }

    fn lacks_graphs(&self, bucket: usize) -> bool {
        let lacks_sampler = |whole: bool| !self.sampler_graphs.contains_key(&(bucket, whole));
        !self.graphs.contains_key(&bucket) || lacks_sampler(false) || lacks_sampler(true)
    }

    fn capture(&mut self, bucket: usize) -> Result<Graph, Failure> {
        // Either kernel of attention has all rows: a unit of work for each, or a tile.
        let (decodes, tiles) = if self.forward.deterministic { (0, bucket) } else { (bucket, 0) };
        let inputs = Layout::of(bucket, bucket, 0, tiles).inputs(self.forward.buffers.inputs, self.graph_units())?;
        let shape = Shape { rows: bucket, decodes, tiles, sampled: bucket };
        let mut launches: Vec<Launch> = Vec::new();
        self.forward.step(shape, &inputs, &mut |launch| launches.push(launch))?;
        let graph = self.captured(&launches)?;
        self.graphs.insert(bucket, graph);
        Ok(graph)
    }

    /// Units of decode attention that a graph has room for: their number is no part of its shape.
    fn graph_units(&self) -> usize {
        if self.forward.deterministic { 0 } else { self.extent.units() }
    }

    /// The sampler of a bucket as a graph: the whole of it, or what greedy rows need. Captured now where it never was.
    pub(super) fn sampler_graph(&mut self, bucket: usize, whole: bool) -> Result<Graph, Failure> {
        if let Some(graph) = self.sampler_graphs.get(&(bucket, whole)) {
            return Ok(*graph);
        }
        let launches = self.sampler_launches(bucket, (whole, whole))?;
        let graph = self.captured(&launches)?;
        self.sampler_graphs.insert((bucket, whole), graph);
        Ok(graph)
    }

    /// Launches as one graph.
    fn captured(&mut self, launches: &[Launch]) -> Result<Graph, Failure> {
        // What a driver loads when it is first needed, it cannot load meanwhile.
        launches.iter().try_for_each(|launch| self.device.prepare(launch))?;
        self.device.begin_capture()?;
        let launched = launches.iter().try_for_each(|launch| self.device.launch(launch));
        // A capture that failed has to end, too.
        let graph = self.device.end_capture();
        launched?;
        Ok(graph?)
    }

    /// The graph for a step, where it has one or gets one. Where the device gives none, from now on no step is captured:
    /// launched one by one they are slower, and right.
    pub(super) fn graph_for(&mut self, plan: &Plan) -> Result<Option<(usize, Graph)>, Failure> {
        let Some(bucket) = step::bucket(plan, self.extent.slots).filter(|_| self.captures) else { return Ok(None) };
        let graph = match self.graphs.get(&bucket) {
            Some(graph) => Ok(*graph),
            None => self.capture(bucket),
        };
        match graph {
            Ok(graph) => Ok(Some((bucket, graph))),
            Err(lost @ Failure::Lost(_)) => Err(lost),
            Err(failure) => {
                self.stop_capturing(&failure);
                Ok(None)
            }
        }
    }

    /// Steps are launched one by one where they cannot be captured.
    pub(super) fn stop_capturing(&mut self, failure: &Failure) {
        self.captures = false;
        self.remark = Some(format!("steps are launched kernel by kernel from now on, which is slower: {failure}"));
    }

    /// A step of decoding alone, as a graph.
    pub(super) fn replay(
        &mut self,
        plan: &Plan,
        mut rows: Rows,
        (bucket, graph): (usize, Graph),
    ) -> Result<(), Failure> {
        rows.pad(bucket, self.extent.slots);
        self.send(plan, &rows, Some(self.graph_units()))?;
        Ok(self.device.replay(graph)?)
    }
}
