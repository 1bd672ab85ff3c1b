//! What becomes of requests that an engine of its own thread has.

use super::*;
use backends::llm::blocks::{BlockPool, PrefixKey};
use backends::llm::request::{Draft, Limits};
use backends::llm::scheduler::{Scheduler, Settings};
use backends::llm::scripted::Scripted;

/// One runs, two wait.
fn generator() -> Generator {
    let settings = Settings {
        token_budget: 64,
        chunk_tokens: 64,
        max_running: 1,
        max_waiting: 2,
        max_waiting_tokens: 1 << 10,
        context: 512,
        watermark: 0,
        ageing: Duration::from_secs(1),
        prefix_cache: false,
        end_tokens: Vec::new().into(),
    };
    let pool = BlockPool::new(64, 16, PrefixKey::new([7; 16]));
    let scheduler = Scheduler::new(settings, pool).unwrap();
    // Slow enough that nothing ends before it is looked at.
    let executor = Scripted::new(64, 16, 100).with_next(Box::new(|_, _| {
        std::thread::sleep(Duration::from_millis(5));
        1
    }));
    let engine = Engine::new(scheduler, Box::new(executor) as BoxedExecutor, Overlap::Ahead);
    Generator::start("together", engine, None).unwrap()
}

fn requests(count: usize) -> Vec<(Request, Matchers)> {
    let limits = Limits { prompt_tokens: 512, copies: 4, output_tokens: 512, vocabulary: 100 };
    let draft = Draft { copies: 2, ..Draft::new(vec![1, 2, 3], 100, Arc::default()) };
    (0..count).map(|_| (Request::new(draft.clone(), &limits).unwrap(), Matchers::new())).collect()
}

/// What waits and runs, once it is so much.
fn holds(generator: &Generator, wanted: u32) {
    let held = || {
        let Counters { waiting, running, .. } = generator.running().counters();
        waiting + running
    };
    let mut looks = 0..2000;
    while held() != wanted {
        assert!(looks.next().is_some(), "{} sequences, not {wanted}", held());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn requests_that_belong_together_do_not_wait_for_each_other() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let generator = generator();
    let streams = runtime.block_on(generator.admit_all(requests(5))).unwrap();
    assert_eq!(streams.iter().map(Vec::len).collect::<Vec<_>>(), [2; 5]);
    let refused = runtime.block_on(generator.admit_all(requests(2))).unwrap_err();
    assert!(matches!(refused, Error::Overloaded(_)), "{refused:?}");
    holds(&generator, 10);
    drop(streams);
    holds(&generator, 0);
}

#[test]
fn what_runs_and_what_waits_ends_when_the_server_leaves() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let generator = generator();
    let mut streams = runtime.block_on(generator.admit_all(requests(2))).unwrap();
    holds(&generator, 4);
    generator.running().end_all();
    for tokens in streams.iter_mut().flatten() {
        let last = runtime.block_on(async {
            let mut last = None;
            while let Some(event) = std::future::poll_fn(|cx| tokens.poll_next(cx)).await {
                last = Some(event);
            }
            last
        });
        assert!(matches!(last, Some(Event::Cancelled { reason: CancelReason::Draining, .. })), "{last:?}");
    }
    holds(&generator, 0);
    let refused = runtime.block_on(generator.admit_all(requests(1))).unwrap_err();
    assert!(matches!(refused, Error::Draining), "{refused:?}");
}
