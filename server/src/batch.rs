//! What gathers into a batch: which requests are computed together, and until when a batch may wait for more. No clock, no
//! lock and no predictor is in here: when it is, and how long a row takes, is told by the batcher.

use crate::batcher::{Answer, Job, rows};
use crate::error::Error;
use backends::CancelFlag;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Between the end of a call and its deadline: for whoever takes the answer.
const SLACK: Duration = Duration::from_millis(20);

/// A request that waits for its answer.
pub(crate) struct Waiting {
    pub(crate) job: Job,
    pub(crate) since: Instant,
    pub(crate) reply: oneshot::Sender<Answer>,
    pub(crate) cancel: CancelFlag,
    /// Must it be a call of its own?
    pub(crate) alone: bool,
}

impl Waiting {
    fn rows(&self) -> usize {
        rows(&self.job.inputs)
    }

    /// Itself, unless its answer is of no use to anybody any more; then whoever still waits is told.
    pub(crate) fn unless_over(self, now: Instant) -> Option<Self> {
        let late = self.job.deadline.is_some_and(|deadline| deadline <= now);
        if late || self.reply.is_closed() {
            let _ = self.reply.send(Err(Error::Deadline));
            return None;
        }
        Some(self)
    }
}

/// Where a request stands in the queue: by priority, then by arrival.
pub(crate) type Place = (u64, u64);

/// What bounds a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Rows.
    pub(crate) max_rows: usize,
    /// How long a request waits for others.
    pub(crate) max_delay: Duration,
    /// With so many rows a batch waits for no more.
    pub(crate) enough: usize,
    /// How long a row takes.
    pub(crate) row: Duration,
    /// May requests be computed together at all?
    pub(crate) batchable: bool,
}

impl Bounds {
    fn time(&self, rows: usize) -> Duration {
        self.row.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX))
    }

    /// When so many rows have to begin.
    fn latest(&self, deadline: Instant, rows: usize) -> Instant {
        deadline.checked_sub(self.time(rows).saturating_add(SLACK)).unwrap_or(deadline)
    }

    /// Are so many rows computed before the deadline when they begin now?
    fn in_time(&self, deadline: Option<Instant>, rows: usize, now: Instant) -> bool {
        deadline.is_none_or(|deadline| now.checked_add(self.time(rows)).is_some_and(|end| end <= deadline))
    }
}

/// Requests that are computed together, and answered together.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) waiting: Vec<(Place, Waiting)>,
    rows: usize,
    /// The first of its deadlines.
    earliest: Option<Instant>,
    /// When the first of its requests came.
    since: Option<Instant>,
    /// Is it one that takes no other?
    alone: bool,
}

/// What becomes of a request that could join a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joining {
    /// It is computed with the batch.
    With,
    /// The batch goes without it: there is no room, or it would make the batch late.
    After,
    /// It goes first and alone: the batch would make it late, and has time to wait for it.
    Before,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn add(&mut self, place: Place, waiting: Waiting) {
        self.rows += waiting.rows();
        self.earliest = first(self.earliest, waiting.job.deadline);
        self.since = first(self.since, Some(waiting.since));
        self.alone |= waiting.alone;
        self.waiting.push((place, waiting));
    }

    /// The same without those who have left meanwhile: they hurry nobody.
    pub(crate) fn of_those_who_wait(self, now: Instant) -> Self {
        let mut batch = Batch::default();
        for (place, waiting) in self.waiting {
            if let Some(waiting) = waiting.unless_over(now) {
                batch.add(place, waiting);
            }
        }
        batch
    }

    /// All of a batch is answered at once, when all of its rows are computed.
    pub(crate) fn joining(&self, next: &Waiting, now: Instant, bounds: &Bounds) -> Joining {
        let (rows, total) = (next.rows(), self.rows + next.rows());
        let in_time = |deadline, rows| bounds.in_time(deadline, rows, now);
        let late = |deadline, rows| in_time(deadline, rows) && !in_time(deadline, total);
        let (delays_batch, delayed) = (late(self.earliest, self.rows), late(next.job.deadline, rows));
        let together = bounds.batchable && !self.alone && !next.alone;
        let fits = together && total <= bounds.max_rows && !delays_batch && !delayed;
        match () {
            () if self.is_empty() || fits => Joining::With,
            () if delayed && in_time(self.earliest, total) => Joining::Before,
            () => Joining::After,
        }
    }

    /// Until when it may wait for more; `None` when there can be none. It begins while there is time for all of its rows before
    /// the first of its deadlines.
    pub(crate) fn until(&self, bounds: &Bounds) -> Option<Instant> {
        let room = bounds.batchable && self.rows < bounds.max_rows.min(bounds.enough) && !self.alone;
        let since = self.since.filter(|_| room)?;
        let full = since + bounds.max_delay;
        Some(self.earliest.map_or(full, |deadline| full.min(bounds.latest(deadline, self.rows))))
    }

    pub(crate) fn requests(self) -> Vec<Waiting> {
        self.waiting.into_iter().map(|(_, waiting)| waiting).collect()
    }
}

fn first(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

/// Requests of a batch that are no one call are computed group after group: those that would be late as the last go
/// first, by their deadlines. The others keep their order, which is that of priorities.
pub(crate) fn by_urgency(groups: &mut [Vec<Waiting>], now: Instant, bounds: &Bounds) {
    let total: usize = groups.iter().flatten().map(Waiting::rows).sum();
    let urgent = |group: &[Waiting]| {
        let deadline = group.iter().filter_map(|waiting| waiting.job.deadline).min();
        // Twice: how long a row takes is an estimate.
        deadline.filter(|deadline| bounds.latest(*deadline, 2 * total) <= now)
    };
    groups.sort_by_key(|group| {
        let urgent = urgent(group.as_slice());
        (urgent.is_none(), urgent)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::{Parameters, Tensor};

    const MS: Duration = Duration::from_millis(1);
    const BOUNDS: Bounds =
        Bounds { max_rows: 1000, max_delay: Duration::from_secs(5), enough: usize::MAX, row: MS, batchable: true };

    /// A request of so many rows with so many milliseconds left, and who waits for it.
    fn waiting(now: Instant, rows: usize, left: u32) -> (Waiting, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        let inputs = vec![Tensor::from_vec("x", vec![rows, 1], vec![0f32; rows]).unwrap()];
        let (deadline, parameters) = (Some(now + left * MS), Parameters::new());
        let job = Job { inputs, outputs: vec![], parameters, deadline, priority: 1 };
        (Waiting { job, since: now, reply, cancel: CancelFlag::default(), alone: false }, answer)
    }

    /// What becomes of the second beside the first, each with its rows and what time it has left.
    fn joining((rows, left): (usize, u32), next: (usize, u32)) -> Joining {
        let (now, mut batch) = (Instant::now(), Batch::default());
        let (first, _answer) = waiting(now, rows, left);
        assert_eq!(batch.joining(&first, now, &BOUNDS), Joining::With, "whoever is the first");
        batch.add((1, 1), first);
        let (second, _answer) = waiting(now, next.0, next.1);
        batch.joining(&second, now, &BOUNDS)
    }

    #[test]
    fn nobody_is_made_late_by_others() {
        assert_eq!(joining((100, 10_000), (10, 10_000)), Joining::With);
        assert_eq!(joining((995, 10_000), (10, 10_000)), Joining::After, "there is no room");
        assert_eq!(joining((100, 105), (10, 10_000)), Joining::After, "the first would be late");
        assert_eq!(joining((900, 10_000), (10, 500)), Joining::Before, "the second would be late");
        assert_eq!(joining((900, 905), (10, 500)), Joining::After, "the second would make the first late");
        assert_eq!(joining((100, 50), (10, 10_000)), Joining::With, "the first is late anyhow");
        assert_eq!(joining((100, 10_000), (10, 5)), Joining::With, "the second is late anyhow");
    }

    #[test]
    fn a_batch_begins_while_there_is_time_for_all_of_it() {
        let (now, mut batch) = (Instant::now(), Batch::default());
        assert_eq!(batch.until(&BOUNDS), None);
        let mut answers = Vec::new();
        for (rows, left, until) in [(500, 60_000, 5000), (10, 1500, 1500 - 510 - 20), (100, 60_000, 1500 - 610 - 20)] {
            let (next, answer) = waiting(now, rows, left);
            batch.add((1, 1), next);
            answers.push(answer);
            assert_eq!(batch.until(&BOUNDS), Some(now + until * MS));
        }
        // The one in a hurry has left.
        drop(answers.remove(1));
        let mut batch = batch.of_those_who_wait(now);
        assert_eq!((batch.rows, batch.until(&BOUNDS)), (600, Some(now + 5000 * MS)));
        assert_eq!(batch.until(&Bounds { enough: 600, ..BOUNDS }), None, "it has as many as are preferred");
        let (next, _answer) = waiting(now, 400, 60_000);
        batch.add((1, 1), next);
        assert_eq!(batch.until(&BOUNDS), None, "it is full");
    }

    #[test]
    fn who_is_alone_takes_nobody_along_and_waits_for_nobody() {
        let (now, mut batch) = (Instant::now(), Batch::default());
        let (mut alone, _answer) = waiting(now, 1, 60_000);
        alone.alone = true;
        assert_eq!(batch.joining(&alone, now, &BOUNDS), Joining::With, "whoever is the first");
        batch.add((1, 1), alone);
        assert_eq!(batch.until(&BOUNDS), None);
        let (mut other, _answer) = waiting(now, 1, 60_000);
        assert_eq!(batch.joining(&other, now, &BOUNDS), Joining::After);
        let (first, _answer) = waiting(now, 1, 60_000);
        let mut batch = Batch::default();
        batch.add((1, 1), first);
        other.alone = true;
        assert_eq!(batch.joining(&other, now, &BOUNDS), Joining::After);
    }

    #[test]
    fn the_urgent_group_is_the_first() {
        let now = Instant::now();
        let order = |lefts: [u32; 3]| {
            let (mut groups, mut answers) = (Vec::new(), Vec::new());
            for (rows, left) in lefts.into_iter().enumerate() {
                let (waiting, answer) = waiting(now, rows + 1, left);
                groups.push(vec![waiting]);
                answers.push(answer);
            }
            by_urgency(&mut groups, now, &BOUNDS);
            groups.iter().map(|group| group[0].rows()).collect::<Vec<_>>()
        };
        assert_eq!(order([10_000, 9000, 8000]), [1, 2, 3], "there is time for all");
        assert_eq!(order([10_000, 30, 25]), [3, 2, 1]);
    }
}
