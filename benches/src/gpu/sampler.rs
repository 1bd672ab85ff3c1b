//! Choosing tokens of many sequences. Its kernels go on from what those before them left, so they are measured in the
//! orders that steps have them in.

use super::launches::Bench;
use crate::Failure;
use kernels::cuda::sampler::{
    self, CHOICE_WORDS, HistoryBegin, ROW_WORDS, Row, Sampler, draw, history_begin, history_begin_bytes, pass_bytes,
    rank, scan, weigh,
};
use kernels::cuda::{Launch, Number};

/// Deviation of logits, about as models have it.
const SIGMA: f64 = 3.0;
/// Tokens of a prompt whose penalties begin.
const PROMPT: usize = 4096;

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
    bench.bandwidth("history-begin", &[history_begin(&begin)?], history_begin_bytes(&begin))
}

/// All rows alike, but for their seeds; `passes` over the logits at least.
fn measure(
    bench: &mut Bench<'_>,
    job: &Sampler,
    (name, row): (&str, Row),
    (launches, passes): (&[Launch], usize),
) -> Result<(), Failure> {
    let rows = (0..job.row_count).map(|at| Row { slot: at as i32, seed_low: at as u32, ..row });
    let bytes: Vec<u8> = rows.flat_map(|row| row.words()).flat_map(u32::to_le_bytes).collect();
    bench.device.upload(job.rows.cast()?, &bytes)?;
    let bytes = passes * pass_bytes(job.vocab, job.row_count, 0, 0) + job.row_count * CHOICE_WORDS * u32::BYTES;
    bench.bandwidth(&format!("sampler.{name}.m{}", job.row_count), launches, bytes)
}
