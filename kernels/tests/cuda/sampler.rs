//! Choosing tokens, against the CPU's way of doing it: sort, cut, draw in the order of tokens.

use super::{device, get, put, random, run, zeros};
use kernels::cuda::sampler::{
    CHOICE_WORDS, Choice, Edit, HistoryBegin, Row, Sampler, Status, draw, history_begin, history_begin_bytes,
    pass_bytes, rank, scan, scratch_bytes, weigh,
};
use kernels::cuda::{Device, Slice};

/// One row, on the host.
#[derive(Clone, Debug, Default)]
struct Case {
    logits: Vec<f32>,
    row: Row,
    mask: Option<Vec<u32>>,
    edits: Vec<Edit>,
    /// Its counts.
    history: Option<Vec<u16>>,
}

impl Case {
    fn of(logits: &[f32], row: Row) -> Self {
        Case { logits: logits.to_vec(), row: Row { slot: 0, ..row }, ..Case::default() }
    }

    fn allowing(mut self, allowed: impl Fn(usize) -> bool) -> Self {
        let mut mask = vec![0; self.logits.len().div_ceil(32)];
        (0..self.logits.len()).filter(|token| allowed(*token)).for_each(|token| mask[token / 32] |= 1 << (token % 32));
        self.mask = Some(mask);
        self
    }

    fn edited(mut self, edits: &[(u32, f32)]) -> Self {
        self.edits = edits.iter().map(|&(token, value)| Edit { token, value }).collect();
        self
    }

    fn with_history(mut self, count: impl Fn(usize) -> u16) -> Self {
        self.history = Some((0..self.logits.len()).map(count).collect());
        self
    }
}

/// Tokens in `last` before a step.
const BEFORE: i32 = 77;

/// A step's data, on the device.
struct Step {
    device: Box<dyn Device>,
    job: Sampler,
    logits: Vec<f32>,
}

impl Step {
    /// Row `i` has slot `i` and history `i`, unless it has none.
    fn new(cases: &[Case]) -> Self {
        let mut device = device();
        let (vocab, count) = (cases[0].logits.len(), cases.len());
        // What no row refers to, so that offsets are not zero.
        let (mut masks, mut edits, mut rows) = (vec![0u32], vec![7u32, 7], Vec::new());
        let mut counts = vec![0u16; (count * vocab).next_multiple_of(2)];
        for (i, case) in (0..).zip(cases) {
            let mut row = case.row;
            row.slot = if row.slot < 0 { -1 } else { i };
            row.edits = (edits.len() / 2) as i32;
            row.edit_count = case.edits.len() as i32;
            edits.extend(case.edits.iter().flat_map(Edit::words));
            if let Some(mask) = &case.mask {
                row.mask = masks.len() as i32;
                masks.extend(mask);
            }
            if let Some(history) = &case.history {
                row.history = i;
                counts[i as usize * vocab..][..vocab].copy_from_slice(history);
            }
            rows.extend(row.words());
        }
        let logits: Vec<f32> = cases.iter().flat_map(|case| case.logits.iter().copied()).collect();
        let job = Sampler {
            logits: put(&mut *device, &logits),
            rows: put(&mut *device, &rows),
            choices: put(&mut *device, &vec![9u32; count * CHOICE_WORDS]),
            last: put(&mut *device, &vec![BEFORE; count]),
            counts: Some(put(&mut *device, &counts)),
            masks: Some(put(&mut *device, &masks)),
            edits: Some(put(&mut *device, &edits)),
            saved: Some(zeros(&mut *device, edits.len() / 2)),
            scratch: zeros(&mut *device, scratch_bytes(count, vocab)),
            row_count: count,
            vocab,
        };
        Step { device, job, logits }
    }

    fn run(&mut self) -> Vec<Choice> {
        for launch in [scan(&self.job), weigh(&self.job), draw(&self.job), rank(&self.job)] {
            run(&mut *self.device, launch);
        }
        let kept: Vec<u32> = get(&mut *self.device, self.job.logits).iter().map(|logit| logit.to_bits()).collect();
        assert_eq!(kept, self.logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>(), "logits are left alone");
        Choice::all(&get(&mut *self.device, self.job.choices.cast().unwrap()))
    }

    fn last(&mut self) -> Vec<i32> {
        get(&mut *self.device, self.job.last)
    }

    fn counts(&mut self) -> Vec<u16> {
        get(&mut *self.device, self.job.counts.unwrap())
    }
}

/// Logits as masks, edits and penalties leave them.
fn adjusted(case: &Case) -> Vec<f32> {
    let (mut logits, row) = (case.logits.clone(), case.row);
    for (token, logit) in logits.iter_mut().enumerate() {
        if case.mask.as_ref().is_some_and(|mask| mask[token / 32] >> (token % 32) & 1 == 0) {
            *logit = f32::NEG_INFINITY;
        }
    }
    for edit in &case.edits {
        logits[edit.token as usize] += edit.value;
    }
    for (logit, &count) in logits.iter_mut().zip(case.history.iter().flatten()) {
        if count > 0 {
            *logit = if *logit > 0.0 { *logit / row.repetition } else { *logit * row.repetition };
        }
        if count & 0x7fff > 0 {
            *logit -= row.presence + row.frequency * f32::from(count & 0x7fff);
        }
    }
    logits
}

fn uniform(row: &Row) -> f64 {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let step = |state: u64, word: u64| mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(word));
    let seed = u64::from(row.seed_low) | u64::from(row.seed_high) << 32;
    let bits = step(step(step(0, seed), u64::from(row.copy)), u64::from(row.position));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The token that the CPU would choose.
fn expected(case: &Case) -> Result<i32, Status> {
    let row = case.row;
    if case.logits.iter().any(|logit| logit.is_nan()) {
        return Err(Status::NoNumber);
    }
    let logits = adjusted(case);
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if best == f32::NEG_INFINITY {
        return Err(Status::NothingAllowed);
    }
    if row.temperature == 0.0 {
        return Ok(logits.iter().position(|logit| *logit == best).unwrap() as i32);
    }
    let weight = |logit: f32| (f64::from(logit - best) / f64::from(row.temperature)).exp();
    let all = (0..).zip(&logits).map(|(token, &logit)| (token, logit, weight(logit)));
    let mut left: Vec<(i32, f32, f64)> = all.collect();
    left.retain(|(_, logit, _)| *logit > f32::NEG_INFINITY);
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if row.top_k > 0 {
        left.truncate(row.top_k as usize);
    }
    if row.top_p < 1.0 {
        let enough = f64::from(row.top_p) * left.iter().map(|(_, _, weight)| weight).sum::<f64>();
        let mut sum = 0.0;
        let below = left.iter().take_while(|(_, _, weight)| {
            sum += weight;
            sum < enough
        });
        let count = below.count() + 1;
        left.truncate(count);
    }
    left.retain(|(_, _, weight)| *weight >= f64::from(row.min_p));
    left.sort_by_key(|(token, _, _)| *token);
    let mut rest = left.iter().map(|(_, _, weight)| weight).sum::<f64>() * uniform(&row);
    let drawn = left.iter().find(|(_, _, weight)| {
        rest -= weight;
        rest < 0.0
    });
    Ok(drawn.or(left.last()).unwrap().0)
}

/// Do all rows get what the CPU would choose?
fn check(cases: &[Case]) {
    let mut step = Step::new(cases);
    let choices = step.run();
    let (last, counts, vocab) = (step.last(), step.counts(), step.job.vocab);
    for (i, (case, choice)) in cases.iter().zip(&choices).enumerate() {
        let what = format!("row {i}: {:?}", case.row);
        let want = expected(case);
        let told = want.map_or_else(|status| (-2, status), |token| (token, Status::Chosen));
        assert_eq!((choice.token, choice.status), told, "{what}");
        assert_eq!(last[i], want.unwrap_or(0), "{what}");
        let Some(mut history) = case.history.clone() else { continue };
        if let Ok(token) = want {
            history[token as usize] += 1;
        }
        assert_eq!(counts[i * vocab..][..vocab], history, "{what}");
    }
}

#[test]
fn rows_lie_in_memory_as_kernels_read_them() {
    let source = include_str!("../../cuda/sampler.cuh");
    let body = source.split("struct SamplerRow {").nth(1).unwrap().split("};").next().unwrap();
    let fields = body.lines().filter_map(|line| line.split(';').next().filter(|_| line.contains(';')));
    let names: Vec<&str> = fields.map(|field| field.split_whitespace().last().unwrap()).collect();
    macro_rules! ours {
        ($($field:ident)*) => { [$((stringify!($field), std::mem::offset_of!(Row, $field))),*] };
    }
    let ours = ours!(slot temperature top_k top_p min_p repetition presence frequency seed_low seed_high copy position
        mask edits edit_count history logprobs given);
    assert_eq!(names[..ours.len()], ours.map(|(name, _)| name));
    assert_eq!(names[ours.len()..], ["spare[2]"]);
    assert_eq!(ours.map(|(_, offset)| offset), std::array::from_fn(|i| 4 * i));
    let row = Row { slot: 1, temperature: 2.0, position: 12, logprobs: -3, given: 4, spare: [8, 9], ..Row::default() };
    let words = row.words();
    assert_eq!([0, 1, 11, 16, 17, 19].map(|at| words[at]), [1, 2f32.to_bits(), 12, -3i32 as u32, 4, 9]);
}

#[test]
fn without_a_temperature_the_likeliest_is_chosen() {
    let none = Row::default();
    let penalties = Row { repetition: 1.5, presence: 0.3, frequency: 0.2, ..none };
    for vocab in [1, 37, 9001] {
        let logits = random(vocab as u64, vocab);
        // Many equals, of which the first is in any part; and zeros of both signs.
        let coarse: Vec<f32> = logits.iter().map(|logit| logit.clamp(-0.5, 0.5).trunc()).collect();
        let signed: Vec<f32> = (0..vocab).map(|token| if token % 3 == 0 { -0.0 } else { 0.0 }).collect();
        let late: Vec<f32> = (0..vocab).map(|token| if token > vocab / 2 { 3.0 } else { 1.0 }).collect();
        let end = vocab as u32 - 1;
        let counts = |token: usize| [0, 0x8000, 2, 0x8001][token % 4];
        // What only the prompt has was not generated.
        let prompted = |token: usize| if token + 1 == vocab { 0x8000 } else { 1 };
        check(&[
            Case::of(&logits, none),
            Case::of(&coarse, none),
            Case::of(&signed, none),
            Case::of(&late, none),
            Case::of(&logits, none).allowing(|token| token % 5 == 0),
            Case::of(&logits, none).edited(&[(end, 100.0)]),
            Case::of(&late, none).edited(&[(end, -2.5)]),
            Case::of(&late, none).allowing(|token| token + 1 == vocab).edited(&[(end, 1.0)]),
            Case::of(&logits, penalties).with_history(counts),
            Case::of(&logits, Row { repetition: 0.5, ..none }).with_history(counts).allowing(|token| token % 2 == 0),
            Case::of(&vec![1.0; vocab], Row { presence: 0.5, ..none }).with_history(prompted),
            Case::of(&coarse, Row { frequency: -1.0, ..none }).with_history(counts).edited(&[(0, 0.5)]),
        ]);
    }
}

#[test]
fn filters_leave_what_a_sort_would() {
    let mut case = 0;
    for (vocab, spread) in [(70, 1.0), (5003, 2.5)] {
        let mut cases = Vec::new();
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (0, 1.0, 0.1),
            (1, 1.0, 0.0),
            (5, 1.0, 0.0),
            (40, 0.8, 0.0),
            (0, 0.5, 0.0),
            (0, 0.99, 0.02),
            (1_000_000, 0.3, 1.0),
            (60, 0.95, 0.05),
        ] {
            case += 1;
            let temperature = [0.1, 0.7, 1.0, 5.0][case % 4];
            let position = 1000 + case as u32;
            let (seed_low, seed_high, copy) = (0x9abc_def0, 0x1234_5678, case as u32 % 3);
            let row = Row { temperature, top_k, top_p, min_p, seed_low, seed_high, copy, position, ..Row::default() };
            let logits: Vec<f32> = random(case as u64, vocab).iter().map(|logit| logit * spread).collect();
            // Equals at the thresholds.
            let coarse: Vec<f32> = logits.iter().map(|logit| (logit * 2.0).round() / 2.0).collect();
            cases.push(Case::of(&logits, row));
            cases.push(Case::of(&coarse, Row { position: 7, ..row }));
            if case % 3 == 0 {
                let row = Row { repetition: 1.2, presence: 0.5, ..row };
                let edits = [(3, 4.0), (4, f32::NEG_INFINITY), (vocab as u32 - 1, 5.0)];
                let many = Case::of(&coarse, row).allowing(|token| token % 7 > 1).edited(&edits);
                cases.push(many.with_history(|token| (token % 5) as u16));
            }
        }
        check(&cases);
    }
}

#[test]
fn more_candidates_than_a_list_has_room_for() {
    let vocab = 9001;
    let row = |top_k, top_p| Row { temperature: 1.0, top_k, top_p, seed_low: 3, position: 5, ..Row::default() };
    let (flat, spread) = (vec![0.25; vocab], random(1, vocab));
    check(&[
        // All in one bin: the whole row is searched, and ties go by the token.
        Case::of(&flat, row(0, 0.5)),
        Case::of(&flat, row(6000, 1.0)),
        Case::of(&flat, row(5000, 0.1)),
        // So many in many bins.
        Case::of(&spread, row(6000, 1.0)),
        Case::of(&spread, row(6000, 0.7)),
        Case::of(&spread, row(0, 0.999)),
    ]);
}

#[test]
fn a_row_that_fails_fails_alone() {
    let vocab = 70;
    let logits = random(4, vocab);
    let warm = Row { temperature: 1.0, top_k: 3, ..Row::default() };
    let mut broken = logits.clone();
    broken[69] = f32::NAN;
    let nothing = vec![f32::NEG_INFINITY; vocab];
    check(&[
        Case::of(&broken, warm).with_history(|_| 1),
        Case::of(&logits, warm).with_history(|_| 1),
        // Also where it could not be chosen.
        Case::of(&broken, Row::default()).edited(&[(69, f32::NEG_INFINITY)]).allowing(|token| token < 9),
        Case::of(&logits, Row::default()),
        Case::of(&nothing, warm),
        Case::of(&logits, Row::default()).allowing(|_| false),
        Case::of(&logits, warm).allowing(|token| token == 8).edited(&[(8, f32::NEG_INFINITY)]),
        Case::of(&logits, warm).allowing(|token| token == 8),
    ]);
}

#[test]
fn probabilities_are_those_of_the_model() {
    for vocab in [5, 9001] {
        let logits: Vec<f32> = random(9, vocab).iter().map(|logit| (logit * 8.0).round() / 4.0).collect();
        let row = |logprobs, temperature| Row { logprobs, temperature, top_k: 9, ..Row::default() };
        let cases = [
            Case::of(&logits, row(0, 0.0)),
            Case::of(&logits, row(20, 1.0)),
            Case::of(&logits, row(5, 0.0)).allowing(|token| token % 5 == 3),
            Case::of(&logits, row(1, 1.0)).edited(&[(2, 50.0), (3, f32::NEG_INFINITY)]),
            Case::of(&logits, Row { presence: 2.0, ..row(2, 0.0) }).with_history(|token| (token % 2) as u16),
            // Tokens of prompts.
            Case::of(&logits, Row { given: 4, ..row(20, 0.0) }),
            Case::of(&logits, Row { given: 2, ..row(0, 1.0) }).allowing(|token| token == 3).with_history(|_| 1),
        ];
        let mut step = Step::new(&cases);
        let (choices, last, counts) = (step.run(), step.last(), step.counts());
        for (i, (case, choice)) in cases.iter().zip(choices).enumerate() {
            if case.row.given >= 0 {
                assert_eq!((choice.token, choice.status, last[i]), (case.row.given, Status::Chosen, BEFORE));
                assert!(counts[i * vocab..][..vocab].iter().all(|count| *count == case.history.is_some().into()));
            }
            let log_sum = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
            let log = |token: i32| (f64::from(logits[token as usize]) - log_sum) as f32;
            let near = |got: f32, want: f32| assert!((got - want).abs() < 1e-5, "{got} is not {want}");
            let mut order: Vec<i32> = (0..vocab as i32).collect();
            order.sort_by(|a, b| log(*b).total_cmp(&log(*a)).then(a.cmp(b)));
            let above = order.iter().filter(|token| log(**token) > log(choice.token)).count();
            assert_eq!(choice.rank as usize, above + 1);
            near(choice.logprob, log(choice.token));
            for place in 0..case.row.logprobs as usize {
                assert_eq!(choice.ids[place], order.get(place).copied().unwrap_or(-1));
                near(choice.logprobs[place], order.get(place).map_or(0.0, |token| log(*token)));
            }
        }
    }
}

#[test]
fn what_is_no_row_is_not_touched() {
    let logits = random(4, 70);
    let row = Row { temperature: 1.0, top_p: 0.5, logprobs: 3, ..Row::default() };
    let mut cases = vec![Case::of(&logits, row); 7];
    cases[0].row.slot = -1;
    // What refers to more than there is.
    cases[2].row.history = 7;
    cases[3].row.mask = 1;
    cases[6].row.given = 70;
    let mut step = Step::new(&cases);
    let mut rows: Vec<u32> = get(&mut *step.device, step.job.rows);
    rows[4 * 20] = 7; // a slot
    (rows[5 * 20 + 13], rows[5 * 20 + 14]) = (1, 1); // an edit
    step.job.rows = put(&mut *step.device, &rows);
    let choices = step.run();
    assert_eq!(choices[1].status, Status::Chosen);
    for i in [0, 2, 3, 4, 5, 6] {
        assert_eq!((choices[i].token, choices[i].rank, step.last()[i]), (9, 9, BEFORE));
    }
}

#[test]
fn draws_are_as_frequent_as_their_probabilities() {
    let (logits, count) = ([0.0f32, 1.0, -0.5, 0.3], 250);
    let row = |position| Row { temperature: 0.8, seed_low: 11, position, ..Row::default() };
    let cases: Vec<Case> = (0..count).map(|position| Case::of(&logits, row(position))).collect();
    let choices = Step::new(&cases).run();
    let weights = logits.map(|logit| (f64::from(logit) / 0.8).exp());
    let difference = |token: usize| {
        let want = f64::from(count) * weights[token] / weights.iter().sum::<f64>();
        let got = choices.iter().filter(|choice| choice.token as usize == token).count();
        (got as f64 - want).powi(2) / want
    };
    let chi_squared: f64 = (0..4).map(difference).sum();
    // Once in a thousand it would be more, with three degrees of freedom.
    assert!(chi_squared < 16.3, "{chi_squared}");
}

#[test]
fn a_row_alone_is_the_row_in_a_batch() {
    let row = Row { temperature: 0.7, top_p: 0.9, seed_low: 5, logprobs: 4, ..Row::default() };
    let cases: Vec<Case> = (0..5)
        .map(|i| {
            let logits = random(100 + i, 5003);
            let row = Row { top_k: 20 * (i as u32 % 2), position: i as u32, ..row };
            Case::of(&logits, if i == 3 { Row { temperature: 0.0, ..row } } else { row })
        })
        .collect();
    let mut step = Step::new(&cases);
    let together = step.run();
    assert_eq!(together, step.run(), "a second step finds what the first found");
    for (case, choice) in cases.iter().zip(&together) {
        assert_eq!(Step::new(std::slice::from_ref(case)).run(), std::slice::from_ref(choice));
    }
}

#[test]
fn histories_begin_with_all_that_is_known() {
    let mut device = device();
    // Rows of an odd number of counts share words of 32 bits.
    let (vocab, history) = (7, 1);
    let prompt = [3, 3, 6, -1, 7, 0];
    let mut output = vec![2; 40_000];
    output.extend([0, 5, 5, -1, 7]);
    let job = HistoryBegin {
        counts: put(&mut *device, &[9u16; 22]),
        history,
        vocab,
        prompt: Some(put(&mut *device, &prompt)),
        output: Some(put(&mut *device, &output)),
    };
    run(&mut *device, history_begin(&job));
    let counts: Vec<u16> = get(&mut *device, job.counts);
    assert_eq!(counts[7..14], [0x8001, 0, 0x7fff, 0x8000, 0, 2, 0x8000]);
    assert!(counts[..7].iter().chain(&counts[14..]).all(|count| *count == 9));
    run(&mut *device, history_begin(&HistoryBegin { prompt: None, output: None, ..job }));
    assert_eq!(get(&mut *device, job.counts)[7..14], [0; 7]);
    assert_eq!(history_begin_bytes(&HistoryBegin { prompt: None, output: None, ..job }), 14);
    assert!(history_begin(&HistoryBegin { history: 3, ..job }).is_err());
}

#[test]
fn what_is_too_short_is_refused() {
    let logits = random(4, 70);
    let job = Step::new(&[Case::of(&logits, Row::default())]).job;
    let shorter = |slice: Slice<u8>| slice.first(slice.len() - 1).unwrap();
    assert!(scan(&job).is_ok());
    assert!(scan(&Sampler { row_count: 2, ..job }).is_err());
    assert!(scan(&Sampler { vocab: 71, ..job }).is_err());
    assert!(scan(&Sampler { vocab: 0, ..job }).is_err());
    assert!(scan(&Sampler { saved: None, ..job }).is_err());
    assert!(scan(&Sampler { scratch: shorter(job.scratch), ..job }).is_err());
    assert_eq!(pass_bytes(70, 2, 1, 1), 2 * 280 + 140 + 12);
}
