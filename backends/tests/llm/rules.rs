//! Rules of the engine that a trace of random requests would seldom meet, or not notice.

use crate::common::{
    Setup, World, counting, draft, expected, is_planned, one_step, prompt_of, request, sampling, tokens_of,
};
use backends::llm::blocks::{BlockPool, PrefixKey};
use backends::llm::engine::{Matcher, Overlap};
use backends::llm::executor::Mask;
use backends::llm::request::Draft;
use backends::llm::sampling::Parameters;
use backends::llm::scheduler::{Counters, Rejected, Scheduler};
use backends::llm::sequence::{CancelReason, Event, FinishReason, Unanswered};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn an_engine_can_be_given_to_a_thread() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&Setup::default().world().engine);
}

#[test]
fn a_deadline_ends_what_waits_and_what_runs() {
    let mut setup = Setup::default();
    setup.settings.max_running = 1;
    let mut world = setup.world();
    let deadline = Some(world.now + Duration::from_secs(1));
    let ids = [1, 2].map(|seed| world.admit(Draft { deadline, ..draft(seed, 20, 400 / seed) }));
    (0..3).for_each(|_| drop(world.step()));
    world.now += Duration::from_secs(1);
    let events = world.drain();
    let reason = CancelReason::DeadlinePassed;
    let ended: Vec<Event> = events.into_iter().filter(Event::is_last).collect();
    assert_eq!(ended, ids.map(|sequence| Event::Cancelled { sequence, reason }));
    assert_eq!(world.engine.counters().blocks_used, 0);
}

#[test]
fn the_queue_is_bounded_by_sequences_and_by_tokens() {
    let mut setup = Setup::default();
    (setup.settings.max_waiting, setup.settings.max_waiting_tokens) = (20, 4200);
    setup.settings.max_running = 1;
    setup.blocks = 1024;
    let mut world = setup.world();
    world.admit(Draft { copies: 16, ..draft(1, 100, 1) });
    let full = |sequences, tokens| Err(Rejected::QueueFull { sequences, sequences_max: 20, tokens, tokens_max: 4200 });
    assert_eq!(world.engine.admit(world.now, request(Draft { copies: 6, ..draft(1, 10, 1) })), full(16, 115));
    world.admit(draft(2, 4000, 1));
    assert_eq!(world.engine.admit(world.now, request(draft(3, 86, 1))), full(17, 4115));
    world.admit(draft(3, 85, 1));
    world.drain();
    assert_eq!(world.engine.counters().waiting_tokens, 0);
}

#[test]
fn a_short_queue_is_as_short_as_was_said() {
    let mut setup = Setup::default();
    (setup.settings.max_waiting, setup.settings.max_running) = (2, 1);
    let mut world = setup.world();
    let refused = |world: &mut World, id| {
        matches!(world.engine.admit(world.now, request(draft(id, 10, 1))), Err(Rejected::QueueFull { .. }))
    };
    // The first of three takes the seat that is free.
    for id in 1..=3 {
        world.admit(draft(id, 10, 1));
    }
    assert!(refused(&mut world, 4));
    one_step(&mut world);
    let Counters { running, waiting, .. } = world.engine.counters();
    assert_eq!((running, waiting), (1, 2));
    assert!(refused(&mut world, 4));
    world.drain();
    // All copies enter together, where nothing else waits.
    world.admit(Draft { copies: 16, ..draft(4, 10, 1) });
    assert!(matches!(world.engine.admit(world.now, request(draft(5, 10, 1))), Err(Rejected::QueueFull { .. })));
    world.drain();
}

#[test]
fn copies_share_the_blocks_of_their_prompt() {
    for cache in [true, false] {
        let mut world = Setup { overlap: Overlap::InStep, ..Setup::default() }.world();
        let first = world.admit(Draft { copies: 3, cache, ..draft(1, 40, 4) });
        let (_, plan) = one_step(&mut world);
        assert_eq!((plan.chunks.len(), plan.rows()), (1, 40), "the first computes the prompt");
        let (events, plan) = one_step(&mut world);
        assert_eq!(plan.rows(), 1 + 8 + 8, "the others the part of it that fills no block");
        let shared: BTreeSet<&[u32]> = plan.chunks.iter().map(|chunk| &chunk.blocks[..2]).collect();
        assert_eq!(shared.len(), 1);
        let cached = |copy| Event::Started { sequence: first.group.copy(copy), cached_tokens: 32 };
        assert!(events.contains(&cached(1)) && events.contains(&cached(2)));
        let stranger = world.admit(draft(1, 40, 1));
        let cached_tokens = if cache { 32 } else { 0 };
        assert!(world.drain().contains(&Event::Started { sequence: stranger, cached_tokens }));
    }
}

#[test]
fn tenants_find_nothing_of_each_other() {
    let mut world = Setup::default().world();
    let key = PrefixKey::new([7; 16]);
    let salts = [b"a", b"b", b"a"].map(|tenant| key.salt(&[b"model", tenant]));
    let cached = salts.map(|salt| {
        let sequence = world.admit(Draft { salt, ..draft(1, 40, 1) });
        match world.drain()[0] {
            Event::Started { sequence: started, cached_tokens } if started == sequence => cached_tokens,
            ref other => panic!("{other:?}"),
        }
    });
    assert_eq!(cached, [0, 0, 32]);
}

#[test]
fn a_start_leaves_the_watermark_and_what_others_were_promised() {
    for (watermark, starts) in [(0, true), (1, true), (2, false)] {
        let mut setup = Setup { blocks: 8, overlap: Overlap::InStep, ..Setup::default() };
        setup.settings.watermark = watermark;
        setup.settings.chunk_tokens = 32;
        let mut world = setup.world();
        // Holds 2 of its 5 blocks after one step; the second needs 2.
        world.admit(draft(1, 70, 2));
        world.step();
        let second = world.admit(draft(2, 20, 2));
        let (_, plan) = one_step(&mut world);
        assert_eq!(is_planned(&plan, second), starts, "watermark {watermark}");
    }
}

#[test]
fn another_copy_takes_over_a_prompt_that_the_first_leaves() {
    let mut setup = Setup::default();
    setup.settings.chunk_tokens = 16;
    let mut world = setup.world();
    let first = world.admit(Draft { copies: 2, ..draft(1, 60, 4) });
    world.step();
    world.step();
    world.engine.cancel(first, CancelReason::ClientGone);
    let events = world.drain();
    let second = first.group.copy(1);
    // One chunk was committed when it was cancelled, and can be found.
    assert!(events.contains(&Event::Started { sequence: second, cached_tokens: 16 }));
    assert_eq!(tokens_of(&events, second), expected(1, &prompt_of(1, 60), 4, &[]));
}

#[test]
fn prompt_logprobs_are_told_once_and_in_order() {
    // With the prompt in the cache, copies, chunks, and preemptions.
    for (overlap, blocks) in [Overlap::Ahead, Overlap::InStep].into_iter().flat_map(|o| [(o, 6), (o, 40)]) {
        let mut setup = Setup { overlap, blocks, ..Setup::default() };
        setup.settings.chunk_tokens = 10;
        let mut world = setup.world();
        world.admit(draft(1, 60, 1));
        world.drain();
        let logging = sampling(Parameters { prompt_logprobs: Some(0), ..Parameters::default() });
        world.admit(Draft { priority: -1, ..draft(2, 20, 60) });
        (0..10).for_each(|_| drop(world.step()));
        // Of 6 blocks the first holds 2, and needs a third, then a fourth, while the second reads its prompt.
        let id = world.admit(Draft { copies: 2, sampling: logging, ..draft(1, 60, 20) });
        let events = world.drain();
        assert_eq!(blocks == 6, world.engine.counters().preemptions > 0);
        let mut position = 0;
        for event in &events {
            if let Event::PromptLogprobs { sequence, first, logprobs } = event {
                assert_eq!((*sequence, *first), (id, position + 1));
                for logprob in logprobs {
                    position += 1;
                    assert_eq!(logprob.rank, position);
                }
            }
        }
        assert_eq!(position, 59);
        for copy in 0..2 {
            assert_eq!(tokens_of(&events, id.group.copy(copy)), expected(copy, &prompt_of(1, 60), 20, &[]));
        }
    }
}

#[test]
fn end_tokens_end_unless_ignored_and_not_before_min_tokens() {
    let mut setup = Setup::default();
    setup.settings.end_tokens = Arc::from([12, 14]);
    let lengths = [(false, 0, 3), (false, 4, 5), (true, 0, 8)].map(|(ignore_eos, min_tokens, length)| {
        let mut world = counting(&setup);
        let parameters = Parameters { ignore_eos, min_tokens, ..Parameters::default() };
        let id = world.admit(Draft { sampling: sampling(parameters), ..draft(1, 10, 8) });
        (tokens_of(&world.drain(), id).len(), length)
    });
    assert!(lengths.iter().all(|(got, wanted)| got == wanted), "{lengths:?}");
}

/// With each step, whether a grammar has a say in it or not.
#[test]
fn executors_are_told_which_tokens_end_a_text() {
    let mut setup = Setup::default();
    setup.settings.end_tokens = Arc::from([12, 14]);
    let mut world = setup.world();
    world.admit(draft(1, 10, 4));
    world.drain();
    let bound = world.admit(draft(2, 10, 4));
    world.engine.constrain(bound, Box::new(Upwards { next: 20, fails_at: 1000 }));
    world.drain();
    let told = world.recorder.ends();
    assert!(told.len() > 4 && told.iter().all(|ends| **ends == [12, 14]), "{told:?}");
}

/// Allows `10, 11, 12, ...`, and fails at a token.
struct Upwards {
    next: u32,
    fails_at: u32,
}

impl Matcher for Upwards {
    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert_eq!(token, self.next, "the mask was not honoured, or came a token late");
        self.next += 1;
        Ok(())
    }
    fn mask(&mut self) -> Result<Mask, String> {
        match self.next == self.fails_at {
            true => Err("no way on".into()),
            false => Ok(Mask::of(&[self.next], crate::common::VOCABULARY)),
        }
    }
}

#[test]
fn a_complete_form_ends_before_min_tokens_and_not_where_ends_are_ignored() {
    for overlap in [Overlap::Ahead, Overlap::InStep] {
        let mut setup = Setup { overlap, ..Setup::default() };
        setup.settings.end_tokens = Arc::from([12]);
        for (ignore_eos, length) in [(false, 3), (true, 8)] {
            let mut world = setup.world();
            let parameters = Parameters { ignore_eos, min_tokens: 6, ..Parameters::default() };
            let id = world.admit(Draft { sampling: sampling(parameters), ..draft(1, 10, 8) });
            world.engine.constrain(id, Box::new(ThenEnds { next: 10, end: 12 }));
            let events = world.drain();
            assert_eq!(tokens_of(&events, id).len(), length);
            let ended = Event::Finished { sequence: id, reason: FinishReason::Stop(12) };
            assert_eq!(events.contains(&ended), !ignore_eos);
        }
    }
}

/// Allows `10, 11`, then the end alone.
struct ThenEnds {
    next: u32,
    end: u32,
}

impl Matcher for ThenEnds {
    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert_eq!(token, self.next);
        self.next = self.end.min(token + 1);
        Ok(())
    }
    fn mask(&mut self) -> Result<Mask, String> {
        Ok(Mask::of(&[self.next], crate::common::VOCABULARY))
    }
}

#[test]
fn a_grammar_decides_each_token_and_its_failure_is_its_own() {
    for overlap in [Overlap::Ahead, Overlap::InStep] {
        let mut world = Setup { overlap, blocks: 6, ..Setup::default() }.world();
        let free = world.admit(draft(1, 20, 30));
        let bound = world.admit(draft(2, 20, 30));
        let broken = world.admit(draft(3, 20, 30));
        world.engine.constrain(bound, Box::new(Upwards { next: 10, fails_at: 1000 }));
        world.engine.constrain(broken, Box::new(Upwards { next: 10, fails_at: 15 }));
        let events = world.drain();
        assert!(world.engine.counters().preemptions > 0);
        assert_eq!(tokens_of(&events, bound), (10..40).collect::<Vec<_>>());
        assert_eq!(tokens_of(&events, broken), (10..15).collect::<Vec<_>>());
        assert!(events.contains(&Event::Failed { sequence: broken, reason: Unanswered::Request("no way on".into()) }));
        assert_eq!(tokens_of(&events, free), expected(0, &prompt_of(1, 20), 30, &[]));
    }
}

#[test]
fn settings_that_contradict_are_refused() {
    let mut setup = Setup::default();
    setup.settings.token_budget = 3;
    let pool = || {
        let key = PrefixKey::new([0; 16]);
        BlockPool::new(4, 16, key)
    };
    let error = Scheduler::new(setup.settings.clone(), pool()).unwrap_err();
    let text = "token_budget is 3; it has to be at least 4: each running sequence needs a row of every step";
    assert_eq!(error.to_string(), text);
    setup.settings.token_budget = 4;
    Scheduler::new(setup.settings, pool()).unwrap();
}
