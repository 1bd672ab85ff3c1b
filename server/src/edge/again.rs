//! Polls a connection again at once when it has woken itself meanwhile, as hyper does over the body of each request; and
//! tells whether it was woken at all, or another part of its task.
//!
//! Left to the runtime, a task that wakes itself goes behind the others, and tokio wakes another worker to share them:
//! two system calls and a core that looks for work which is not there, for each request of a connection that has the
//! worker to itself.

use std::pin::Pin;
use std::sync::atomic::{
    AtomicU8,
    Ordering::{AcqRel, Acquire},
};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// It is being polled.
const POLLING: u8 = 1;
/// It was woken since its last poll began.
const WOKEN: u8 = 2;
/// Polls in a row; after that others have their turn.
const ROW: usize = 4;

/// Polls one future, again and again.
#[derive(Debug)]
pub(super) struct Again {
    wakes: Arc<Wakes>,
    waker: Waker,
}

/// Who is to be woken, and whether that is still to be done.
#[derive(Debug)]
struct Wakes {
    state: AtomicU8,
    task: Mutex<Waker>,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Whoever polls looks again, and whoever was woken is about to.
        if self.state.fetch_or(WOKEN, AcqRel) == 0 {
            self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
        }
    }
}

impl Again {
    pub(super) fn new() -> Self {
        let wakes = Arc::new(Wakes { state: AtomicU8::new(WOKEN), task: Mutex::new(Waker::noop().clone()) });
        Again { waker: wakes.clone().into(), wakes }
    }

    /// Was the future woken since its last poll began, or never polled?
    pub(super) fn is_woken(&self) -> bool {
        self.wakes.state.load(Acquire) & WOKEN != 0
    }

    /// A poll of `future`, which is always the same one.
    pub(super) fn poll<F: Future>(&self, mut future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Wakes { state, task } = &*self.wakes;
        {
            let mut task = task.lock().unwrap_or_else(PoisonError::into_inner);
            if !task.will_wake(cx.waker()) {
                task.clone_from(cx.waker());
            }
        }
        for _ in 0..ROW {
            state.swap(POLLING, AcqRel);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&self.waker)) {
                return Poll::Ready(output);
            }
            if state.compare_exchange(POLLING, 0, AcqRel, Acquire).is_ok() {
                return Poll::Pending;
            }
        }
        state.swap(WOKEN, AcqRel);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn who_wakes_itself_is_polled_again() {
        for times in 0..3 * ROW {
            let (task, again) = (Arc::new(Task::default()), Again::new());
            let waker = task.clone().into();
            let mut cx = Context::from_waker(&waker);
            let mut polls = 0;
            let mut future = pin!(poll_fn(|cx| {
                polls += 1;
                if polls > times {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            }));
            let mut turns = 1;
            while again.poll(future.as_mut(), &mut cx).is_pending() {
                assert_eq!(task.0.load(SeqCst), turns, "the task is to be polled again");
                assert!(again.is_woken());
                turns += 1;
            }
            assert_eq!(turns, times / ROW + 1);
        }
    }

    #[test]
    fn who_is_woken_between_polls_wakes_its_task_once() {
        let (task, again) = (Arc::new(Task::default()), Again::new());
        let waker = task.clone().into();
        let mut cx = Context::from_waker(&waker);
        let kept = Mutex::new(None);
        let mut future = pin!(poll_fn(|cx| {
            *kept.lock().unwrap() = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        for round in 1..4 {
            assert!(again.is_woken());
            assert!(again.poll(future.as_mut(), &mut cx).is_pending());
            assert!(!again.is_woken());
            let waker = kept.lock().unwrap().take().unwrap();
            waker.wake_by_ref();
            waker.wake();
            assert_eq!(task.0.load(SeqCst), round);
        }
    }

    /// What another thread does before it wakes is seen by a poll after that.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<u32>(1);
        let sending = tokio::spawn(async move {
            for number in 0..100_000 {
                sender.send(number).await.unwrap();
            }
        });
        let received = tokio::spawn(async move {
            let again = Again::new();
            let mut sum = 0u64;
            let mut all = pin!(async move {
                while let Some(number) = receiver.recv().await {
                    sum += u64::from(number);
                }
                sum
            });
            poll_fn(|cx| again.poll(all.as_mut(), cx)).await
        });
        sending.await.unwrap();
        assert_eq!(received.await.unwrap(), 99_999 * 50_000);
    }
}
