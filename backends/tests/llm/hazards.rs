//! The hazards of running one step ahead, one test each, and those of steps that fail.

use crate::common::{
    Setup, answers, any_step, counting, draft, expected, is_planned, one_step, prompt_of, request, stopped,
    stopping_at, tokens_of, until_preempted,
};
use backends::llm::engine::{Engine, Overlap};
use backends::llm::executor::{Executor, Failure, Masks, Ticket};
use backends::llm::plan::{Input, Plan, Sampled};
use backends::llm::request::Draft;
use backends::llm::scheduler::Rejected;
use backends::llm::scripted::Phase;
use backends::llm::sequence::{CancelReason, Event, SequenceId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A device that is lost at its first step.
#[derive(Debug)]
struct Gone;

impl Executor for Gone {
    fn launch(&mut self, _plan: &Plan) -> Result<Ticket, Failure> {
        Err(Failure::Lost("an illegal address was read".into()))
    }
    fn sample(&mut self, _ticket: &Ticket, _masks: &Masks) -> Result<(), Failure> {
        unreachable!("nothing was launched")
    }
    fn collect(&mut self, _ticket: Ticket) -> Result<Vec<Sampled>, Failure> {
        unreachable!("nothing was launched")
    }
}

/// Whoever waits is told, and whoever drives the engine learns that it is over.
#[test]
fn a_lost_device_is_told_to_all() {
    let mut engine = Engine::new(Setup::default().scheduler(), Gone, Overlap::Ahead);
    let now = Instant::now();
    let id = engine.admit(now, request(draft(1, 5, 3))).unwrap().copy(0);
    assert_eq!(engine.lost(), None);
    let events = engine.step(now);
    let told = events.iter().any(|event| {
        matches!(event, Event::Failed { sequence, reason } if *sequence == id && reason.to_string().contains("the device is lost"))
    });
    assert!(told, "{events:?}");
    assert_eq!(engine.lost(), Some(&Failure::Lost("an illegal address was read".into())));
}

/// An executor that does not understand the scheduler, or is not understood: it fails, or answers what fits no plan.
#[derive(Debug)]
struct Defect {
    answers: bool,
}

impl Executor for Defect {
    fn launch(&mut self, plan: &Plan) -> Result<Ticket, Failure> {
        match self.answers {
            true => Ok(Ticket { step: plan.step }),
            false => Err(Failure::Contract("two steps are under way already".into())),
        }
    }
    fn sample(&mut self, _ticket: &Ticket, _masks: &Masks) -> Result<(), Failure> {
        Ok(())
    }
    fn collect(&mut self, _ticket: Ticket) -> Result<Vec<Sampled>, Failure> {
        Ok(Vec::new())
    }
}

/// One step of that kind is one request's loss. Where none goes well any more, whoever drives the engine learns of it.
#[test]
fn steps_that_break_the_contract_one_after_the_other_end_the_engine() {
    for (answers, reason) in [(false, "two steps are under way already"), (true, "does not fit its plan")] {
        let mut engine = Engine::new(Setup::default().scheduler(), Defect { answers }, Overlap::InStep);
        let now = Instant::now();
        for failed in 1..=5 {
            let id = engine.admit(now, request(draft(1, 5, 3))).unwrap().copy(0);
            assert_eq!(engine.lost(), None, "{failed}");
            let events = engine.step(now);
            let told = |event: &Event| matches!(event, Event::Failed { sequence, reason: told } if *sequence == id && told.to_string().contains(reason));
            assert!(events.iter().any(told), "{events:?}");
        }
        let lost = engine.lost().unwrap().to_string();
        assert!(lost.contains("5 steps have failed") && lost.contains(reason), "{lost}");
    }
}

/// A step that goes well between them begins the count anew.
#[test]
fn steps_that_fail_now_and_then_end_nothing() {
    let mut world = Setup::default().world();
    for _ in 0..8 {
        world.recorder.fail(Phase::Launch);
        world.admit(draft(1, 5, 3));
        world.drain();
        world.admit(draft(1, 5, 3));
        world.drain();
    }
    assert_eq!(world.engine.lost(), None);
}

#[test]
fn hazard_1_what_never_fits_is_known_at_admission() {
    let mut setup = Setup { blocks: 4, block_size: 16, ..Setup::default() };
    let mut world = setup.world();
    // 64 places, and the last token needs none.
    let never = Rejected::NeverFits { tokens: 66, tokens_max: 65 };
    assert_eq!(world.engine.admit(world.now, request(draft(1, 40, 26))), Err(never));
    let fits = world.admit(draft(1, 40, 25));
    let events = world.drain();
    assert_eq!(tokens_of(&events, fits), expected(0, &prompt_of(1, 40), 25, &[]));
    setup.settings.context = 50;
    let never = Rejected::NeverFits { tokens: 51, tokens_max: 50 };
    assert_eq!(setup.scheduler().admit(world.now, request(draft(1, 40, 11))), Err(never));
}

#[test]
fn hazard_2_the_surplus_token_after_a_stop_is_dropped() {
    let mut world = counting(&Setup::default());
    // Tokens 30 and 31; the surplus one would be 32, the first of a third block.
    let id = world.admit(stopping_at(draft(1, 30, 9), 31));
    let (_, prompt) = one_step(&mut world);
    assert_eq!(prompt.chunks[0].length, 30);
    let (_, decode) = one_step(&mut world);
    assert_eq!(decode.chunks[0].input, Input::Last);
    let (events, surplus) = one_step(&mut world);
    assert!(is_planned(&surplus, id), "it was planned before the stop was known");
    assert!(events.ends_with(&[stopped(id, 31)]));
    assert_eq!(world.engine.counters().blocks_used, 0);
    assert!(!world.engine.idle(), "the surplus step is under way");
    assert_eq!(world.drain(), [], "its token is not told");
}

#[test]
fn hazard_2_no_block_with_a_surplus_token_is_found() {
    for length in 28..=33 {
        let mut world = counting(&Setup::default());
        let first = world.admit(stopping_at(draft(1, length, 9), length + 1));
        let mut events = world.drain();
        // Goes on after the first answer, as a conversation does: what it finds has to be what it is looking for, or the
        // executor complains.
        let mut prompt = prompt_of(1, length).to_vec();
        prompt.extend(tokens_of(&events, first));
        prompt.extend([length + 2, 7, 7, 7]);
        let second = world.admit(Draft::new(prompt, 3, Arc::default()));
        events = world.drain();
        let cached_tokens = (length + 1) / 16 * 16;
        assert_eq!(events[0], Event::Started { sequence: second, cached_tokens });
        assert_eq!(tokens_of(&events, second).len(), 3);
    }
}

#[test]
fn hazard_3_a_block_is_used_again_while_a_step_still_writes_to_it() {
    // The whole pool is the first sequence's; its surplus step is under way when the second takes the blocks.
    let mut world = counting(&Setup { blocks: 2, ..Setup::default() });
    let first = world.admit(stopping_at(draft(1, 20, 12), 21));
    world.step();
    world.step();
    let second = world.admit(draft(2, 30, 2));
    let (events, surplus) = one_step(&mut world);
    assert!(is_planned(&surplus, first) && events.contains(&stopped(first, 21)));
    let (_, next) = one_step(&mut world);
    let old: BTreeSet<_> = surplus.chunks[0].blocks.iter().collect();
    assert!(is_planned(&next, second) && next.chunks[0].blocks.iter().all(|block| old.contains(block)));
    assert!(next.chunks[0].blocks.iter().all(|block| next.stale.contains(block)), "what is in it means nothing");
    assert_eq!(tokens_of(&world.drain(), second), [30, 31]);
}

#[test]
fn hazard_4_the_token_in_flight_of_a_preempted_sequence_counts() {
    let mut world = counting(&Setup { blocks: 4, ..Setup::default() });
    let old = world.admit(draft(1, 20, 20));
    let young = world.admit(draft(2, 18, 30));
    let mut events = Vec::new();
    let plan = loop {
        let (told, plan) = one_step(&mut world);
        events.extend(told);
        if !plan.preempted.is_empty() {
            break plan;
        }
    };
    assert_eq!(plan.preempted, [young]);
    // The plan before sampled a token for it, which came with this step.
    let before = tokens_of(&events, young).len() as u32;
    let fill = loop {
        let (told, plan) = any_step(&mut world);
        events.extend(told);
        if let Some(chunk) = plan.into_iter().flat_map(|plan| plan.chunks).find(|chunk| chunk.sequence == young) {
            break chunk.fill.unwrap();
        }
    };
    assert_eq!(fill.output, (18..18 + before).collect::<Vec<_>>());
    events.extend(world.drain());
    assert_eq!(tokens_of(&events, young), (18..48).collect::<Vec<_>>());
    assert_eq!(tokens_of(&events, old), (20..40).collect::<Vec<_>>());
    let starts = events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
    assert_eq!(starts, 2, "a start is told once");
}

#[test]
fn hazard_4_the_token_in_flight_of_a_preempted_sequence_may_end_it() {
    let setup = Setup { blocks: 4, ..Setup::default() };
    let preempted_at = {
        let mut world = counting(&setup);
        world.admit(draft(1, 20, 20));
        let young = world.admit(draft(2, 18, 30));
        *tokens_of(&until_preempted(&mut world), young).last().unwrap()
    };
    let mut world = counting(&setup);
    world.admit(draft(1, 20, 20));
    let young = world.admit(stopping_at(draft(2, 18, 30), preempted_at));
    until_preempted(&mut world);
    assert_eq!(world.engine.scheduler().waiting().count(), 0, "it ended in the queue");
    assert_eq!(world.engine.counters().waiting_tokens, 0);
    assert!(world.drain().iter().all(|event| event.sequence() != young));
}

#[test]
fn hazard_5_a_flood_of_urgent_requests_starves_nobody() {
    let mut setup = Setup::default();
    setup.settings.max_running = 1;
    let mut world = setup.world();
    let patient = world.admit(Draft { priority: 3, ..draft(1, 10, 2) });
    let mut flood = Vec::new();
    let mut waited = 0;
    loop {
        flood.push(world.admit(Draft { priority: 0, ..draft(2, 10, 2) }));
        let events = world.step();
        world.now += Duration::from_millis(500);
        waited += 1;
        if events.contains(&Event::Started { sequence: patient, cached_tokens: 0 }) {
            break;
        }
        assert!(waited < 50, "it never ran");
    }
    // Three steps of priority are worth three seconds; the flood of those three seconds goes first.
    assert!(waited > 6, "{waited}");
}

#[test]
fn hazard_5_the_first_is_never_preempted_however_urgent_the_others() {
    let mut world = Setup { blocks: 4, ..Setup::default() }.world();
    let old = world.admit(draft(1, 17, 40));
    world.step();
    world.now += Duration::from_secs(10);
    for seed in 2..5 {
        world.admit(Draft { priority: -5, ..draft(seed, 10, 30) });
    }
    let mut plans = Vec::new();
    while !world.engine.idle() {
        world.step();
        plans.extend(world.recorder.plans());
    }
    assert!(plans.iter().any(|plan| !plan.preempted.is_empty()));
    assert!(plans.iter().all(|plan| !plan.preempted.contains(&old)));
    let decodes: Vec<u64> = plans.iter().filter(|plan| is_planned(plan, old)).map(|plan| plan.step).collect();
    assert_eq!(decodes.len() as u64, decodes[decodes.len() - 1] - decodes[0] + 1, "it is in every step until it ends");
}

#[test]
fn hazard_6_a_slot_is_refilled_only_after_the_step_that_used_it() {
    let mut setup = Setup::default();
    setup.settings.max_running = 1;
    let mut world = counting(&setup);
    let first = world.admit(stopping_at(draft(1, 5, 9), 6));
    let second = world.admit(draft(2, 5, 1));
    world.step();
    world.step();
    let (events, surplus) = one_step(&mut world);
    assert!(events.contains(&stopped(first, 6)) && is_planned(&surplus, first));
    assert_eq!(any_step(&mut world), (vec![], None), "the only slot is the surplus step's");
    let (_, plan) = one_step(&mut world);
    assert!(is_planned(&plan, second) && plan.chunks[0].fill.is_some());
}

#[test]
fn a_failed_step_fails_its_sequences_and_no_others() {
    for phase in [Phase::Launch, Phase::Sample, Phase::Collect] {
        for overlap in [Overlap::Ahead, Overlap::InStep] {
            let mut setup = Setup { overlap, ..Setup::default() };
            setup.settings.max_running = 2;
            let mut world = setup.world();
            let running = [1, 2].map(|seed| world.admit(draft(seed, 20, 30)));
            let waiting = world.admit(draft(3, 20, 5));
            (0..4).for_each(|_| drop(world.step()));
            world.recorder.fail(phase);
            let events = world.drain();
            let failed: Vec<SequenceId> =
                events.iter().filter(|e| matches!(e, Event::Failed { .. })).map(Event::sequence).collect();
            assert_eq!(failed, running, "{phase:?} {overlap:?}");
            assert_eq!(tokens_of(&events, waiting), expected(0, &prompt_of(3, 20), 5, &[]));
            assert_eq!(world.engine.counters().blocks_used, 0);
        }
    }
}

#[test]
fn an_answer_that_does_not_fit_its_plan_fails_the_step() {
    let wrong: [fn(&mut Vec<Sampled>); 3] =
        [|answer| answer.clear(), |answer| answer[0].token = None, |answer| answer[0].sequence.copy = 9];
    for spoil in wrong {
        let mut scheduler = Setup::default().scheduler();
        let now = Instant::now();
        let id = scheduler.admit(now, request(draft(1, 20, 30))).unwrap().copy(0);
        let plan = scheduler.plan(now).unwrap();
        let mut answer = answers(&plan);
        spoil(&mut answer);
        let events = scheduler.commit(&plan, Ok(answer));
        let Some(Event::Failed { sequence, reason }) = events.last() else { panic!("{events:?}") };
        assert_eq!(
            (*sequence, reason.to_string().as_str()),
            (id, "internal error: the answer to step 1 does not fit its plan")
        );
        scheduler.check().unwrap();
        assert!(scheduler.is_empty());
    }
}

#[test]
fn a_plan_of_two_steps_under_way_is_undone_by_cancelling() {
    let mut scheduler = Setup::default().scheduler();
    let now = Instant::now();
    let id = scheduler.admit(now, request(draft(1, 20, 30))).unwrap().copy(0);
    let plans = [scheduler.plan(now).unwrap(), scheduler.plan(now).unwrap()];
    assert!(scheduler.cancel(id, CancelReason::ClientGone) && !scheduler.cancel(id, CancelReason::StopString));
    assert_eq!(scheduler.counters().blocks_used, 0);
    let gone = Event::Cancelled { sequence: id, reason: CancelReason::ClientGone };
    assert_eq!(scheduler.commit(&plans[0], Ok(answers(&plans[0])))[1..], [gone]);
    scheduler.check().unwrap();
    assert!(!scheduler.is_empty());
    assert_eq!(scheduler.commit(&plans[1], Err(Failure::Device("lost".into()))), [], "all was told");
    assert!(scheduler.is_empty());
}

#[test]
fn a_preempted_sequence_starts_again_only_after_its_last_step_is_committed() {
    // Further ahead than the engine ever plans.
    let mut scheduler = Setup { blocks: 4, ..Setup::default() }.scheduler();
    let now = Instant::now();
    let [old, young] = [(1, 31), (2, 17)]
        .map(|(seed, prompt)| scheduler.admit(now, request(draft(seed, prompt, 12))).unwrap().copy(0));
    let plans: Vec<Plan> = (0..3).map(|_| scheduler.plan(now).unwrap()).collect();
    assert_eq!(plans[2].preempted, [young]);
    scheduler.cancel(old, CancelReason::ClientGone);
    assert_eq!(scheduler.plan(now), None, "two tokens of it are not known yet");
    for plan in &plans {
        scheduler.commit(plan, Ok(answers(plan)));
        scheduler.check().unwrap();
    }
    let plan = scheduler.plan(now).unwrap();
    assert_eq!(plan.chunks[0].fill.as_ref().unwrap().output, [5, 5]);
}
