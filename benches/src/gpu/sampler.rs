//! Choosing tokens of many sequences. Its kernels go on from what those before them left, so they are measured in the
//! orders that steps have them in.

use super::between::STRIDE;
use super::launches::Bench;
use crate::Failure;
use kernels::cuda::sampler::{
    self, CHOICE_WORDS, Edit, HistoryBegin, ROW_WORDS, Row, Sampler, draw, history_begin, history_begin_bytes,
    pass_bytes, rank, scan, weigh,
};
use kernels::cuda::{Launch, Number};

/// Deviation of logits, about as models have it.
const SIGMA: f64 = 3.0;
/// Tokens of a prompt whose penalties begin.
const PROMPT: usize = 4096;
/// Tokens that a row has biases for.
const BIASES: usize = 64;

/// Every way to choose.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let (rows, vocab) = (bench.sizes.sequences, bench.spec.vocab);
    let greedy = Row::default();
    let drawn = Row { temperature: 0.8, ..greedy };
    let job = Sampler {
        logits: bench.random_f32(rows * vocab, SIGMA)?,
        rows: bench.room(rows * ROW_WORDS)?,
        choices: bench.zeros(rows * CHOICE_WORDS)?,
        last: bench.zeros(rows)?,
        counts: None,
        masks: None,
        edits: None,
        saved: None,
        scratch: bench.zeros(sampler::scratch_bytes(rows, vocab))?,
        row_count: rows,
        vocab,
    };
    let all = [scan(&job)?, weigh(&job)?, draw(&job)?];
    for (name, row, launches, passes) in [
        ("greedy", greedy, &all[..1], 1),
        ("drawn", drawn, &all[..], 2),
        ("top-k", Row { top_k: 40, ..drawn }, &all[..], 2),
        ("top-p", Row { top_p: 0.9, ..drawn }, &all[..], 2),
        ("told", Row { logprobs: 20, ..greedy }, &[scan(&job)?, rank(&job)?][..], 2),
    ] {
        measure(bench, &job, (name, row), (launches, passes))?;
    }
    let tokens: Vec<i32> = (0..PROMPT).map(|at| (at * 31 % vocab) as i32).collect();
    let (counts, prompt) = (bench.zeros(vocab.next_multiple_of(2))?, Some(bench.put(&tokens)?));
    let begin = HistoryBegin { counts, history: 0, vocab, prompt, output: None };
    bench.bandwidth("history-begin", &[history_begin(&begin)?], history_begin_bytes(&begin))?;
    asked(bench, &job, drawn, &begin)
}

/// What requests ask for besides: penalties, of tokens that were read and written before; biases; and masks of the
/// tokens that a form allows.
fn asked(bench: &mut Bench<'_>, job: &Sampler, drawn: Row, begin: &HistoryBegin) -> Result<(), Failure> {
    let Sampler { row_count: rows, vocab, .. } = *job;
    let counts = bench.room((rows * vocab).next_multiple_of(2))?;
    for history in 0..rows {
        let begin = HistoryBegin { counts, history, output: begin.prompt, ..*begin };
        bench.device.launch(&history_begin(&begin)?)?;
    }
    // Tokens that follow each other here are different.
    let edit = |at: usize| Edit { token: (at * STRIDE % vocab) as u32, value: 1.0 };
    let edits: Vec<i32> = (0..rows * BIASES).flat_map(|at| edit(at).words()).map(|word| word as i32).collect();
    let job = Sampler {
        counts: Some(counts),
        // About half of the bits are set.
        masks: Some(bench.codes(rows * vocab.div_ceil(32))?),
        edits: Some(bench.put(&edits)?.cast()?),
        saved: Some(bench.room(rows * BIASES)?),
        ..*job
    };
    let all = [scan(&job)?, weigh(&job)?, draw(&job)?];
    for (name, row) in [
        ("penalised", Row { history: 0, repetition: 1.1, presence: 0.5, frequency: 0.5, ..drawn }),
        ("biased", Row { edit_count: BIASES as i32, ..drawn }),
        ("masked", Row { mask: 0, ..drawn }),
    ] {
        measure(bench, &job, (name, row), (&all[..], 2))?;
    }
    Ok(())
}

/// All rows alike, but for their seeds, and each with what is its own; `passes` over the logits at least, and over what
/// there is for each of them.
fn measure(
    bench: &mut Bench<'_>,
    job: &Sampler,
    (name, row): (&str, Row),
    (launches, passes): (&[Launch], usize),
) -> Result<(), Failure> {
    let (count, words) = (job.row_count, job.vocab.div_ceil(32));
    // What rows have none of stays -1.
    let own = |first: i32, at: usize| if first < 0 { first } else { at as i32 };
    let rows = (0..count).map(|at| Row {
        slot: at as i32,
        seed_low: at as u32,
        history: own(row.history, at),
        mask: own(row.mask, at * words),
        edits: row.edit_count * at as i32,
        ..row
    });
    let bytes: Vec<u8> = rows.flat_map(|row| row.words()).flat_map(u32::to_le_bytes).collect();
    bench.device.upload(job.rows.cast()?, &bytes)?;
    // Biases are too few to count.
    let [penalised, masked] = [row.history, row.mask].map(|first| if first < 0 { 0 } else { count });
    let bytes = passes * pass_bytes(job.vocab, count, penalised, masked) + count * CHOICE_WORDS * u32::BYTES;
    bench.bandwidth(&format!("sampler.{name}.m{count}"), launches, bytes)
}
