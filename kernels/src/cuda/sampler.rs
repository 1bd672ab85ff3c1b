//! How the next tokens are chosen from logits, on the device: [`scan`] each step, then [`weigh`] and [`draw`] where a
//! row has a temperature, then [`rank`] where one reports probabilities. What a row needs is in the rows' own data, so
//! the four can be captured for as many rows as a bucket has. See `cuda/sampler.cuh`; nothing is sorted.
//!
//! Only typical sampling is not here. Chances are those of the CPU's sampler, whose weights have more digits: where a
//! draw falls between two tokens within a millionth, the two may differ.

use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Misuse, Number, Slice};

/// Largest vocabulary.
pub const VOCAB_MAX: usize = 1 << 19;
/// Most likeliest tokens that are reported.
pub const TOLD_MAX: usize = 20;
/// Words of a [`Row`].
pub const ROW_WORDS: usize = 20;
/// Words of a [`Choice`].
pub const CHOICE_WORDS: usize = 4 + 2 * TOLD_MAX;
/// Words of an [`Edit`].
pub const EDIT_WORDS: usize = 2;

const THREADS: u32 = 512;
/// Tokens of a block.
const PART: usize = 4096;
/// A grid's second side is at most so long.
const ROWS_MAX: usize = 65_535;

/// What a token is chosen by, besides logits: one row of a step. It lies in memory as on the device. A row that refers
/// to what is not there is treated as none.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Row {
    /// Where in `last` the token goes; -1: the row is none, and nothing of it is read or written.
    pub slot: i32,
    /// Divides the logits. 0: the likeliest token, the lowest of equals.
    pub temperature: f32,
    /// So many of the likeliest. 0: all.
    pub top_k: u32,
    /// The likeliest that together have this share. 1: all.
    pub top_p: f32,
    /// Tokens at least this times as likely as the likeliest. 0: all.
    pub min_p: f32,
    /// Divides positive logits of what occurred, multiplies negative ones. 1: off.
    pub repetition: f32,
    /// Taken from logits of what was generated.
    pub presence: f32,
    /// The same, for each time.
    pub frequency: f32,
    /// The seed's lower half.
    pub seed_low: u32,
    /// Its upper half.
    pub seed_high: u32,
    /// Which of several answers; below 65,536.
    pub copy: u32,
    /// Tokens that were generated before this.
    pub position: u32,
    /// Where in `masks` the row's begins, `vocab / 32` words rounded up. -1: all tokens are allowed.
    pub mask: i32,
    /// Where in `edits` the row's begin.
    pub edits: i32,
    /// How many it has.
    pub edit_count: i32,
    /// Which row of `counts` its penalties use, and counts the token. -1: no penalties.
    pub history: i32,
    /// Reports the token's probability and so many of the likeliest, at most [`TOLD_MAX`]. -1: nothing.
    pub logprobs: i32,
    /// A prompt's token, whose probability is reported: nothing is chosen, `last` and the counts stay. -1: none.
    pub given: i32,
    /// Nothing.
    pub spare: [u32; 2],
}

impl Default for Row {
    /// No row. With a slot, the likeliest token and nothing else.
    fn default() -> Self {
        Row {
            slot: -1,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition: 1.0,
            presence: 0.0,
            frequency: 0.0,
            seed_low: 0,
            seed_high: 0,
            copy: 0,
            position: 0,
            mask: -1,
            edits: 0,
            edit_count: 0,
            history: -1,
            logprobs: -1,
            given: -1,
            spare: [0; 2],
        }
    }
}

impl Row {
    /// As it lies in memory.
    pub fn words(&self) -> [u32; ROW_WORDS] {
        [
            self.slot as u32,
            self.temperature.to_bits(),
            self.top_k,
            self.top_p.to_bits(),
            self.min_p.to_bits(),
            self.repetition.to_bits(),
            self.presence.to_bits(),
            self.frequency.to_bits(),
            self.seed_low,
            self.seed_high,
            self.copy,
            self.position,
            self.mask as u32,
            self.edits as u32,
            self.edit_count as u32,
            self.history as u32,
            self.logprobs as u32,
            self.given as u32,
            self.spare[0],
            self.spare[1],
        ]
    }
}

/// A change of one logit. A row names no token twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// Which.
    pub token: u32,
    /// Added to it; minus infinity bans the token.
    pub value: f32,
}

impl Edit {
    /// As it lies in memory.
    pub fn words(&self) -> [u32; EDIT_WORDS] {
        [self.token, self.value.to_bits()]
    }
}

/// Why a row has a token, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has one.
    Chosen,
    /// A logit is no number.
    NoNumber,
    /// No token is allowed.
    NothingAllowed,
}

/// What a row got.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token; -2 where there is none.
    pub token: i32,
    /// Whether there is one.
    pub status: Status,
    /// Log of its probability by the model, before anything else; where it is reported.
    pub logprob: f32,
    /// Its rank by that: 1 is the likeliest.
    pub rank: u32,
    /// The likeliest tokens; -1 where the vocabulary has not so many. As many as the row asked for mean something.
    pub ids: [i32; TOLD_MAX],
    /// Logs of their probabilities.
    pub logprobs: [f32; TOLD_MAX],
}

impl Choice {
    /// One from its words.
    pub fn of(words: &[u32; CHOICE_WORDS]) -> Self {
        Choice {
            token: words[0] as i32,
            status: match words[1] {
                0 => Status::Chosen,
                1 => Status::NoNumber,
                _ => Status::NothingAllowed,
            },
            logprob: f32::from_bits(words[2]),
            rank: words[3],
            ids: std::array::from_fn(|i| words[4 + i] as i32),
            logprobs: std::array::from_fn(|i| f32::from_bits(words[4 + TOLD_MAX + i])),
        }
    }

    /// All that a download of `choices` has.
    pub fn all(bytes: &[u8]) -> Vec<Self> {
        let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let one = |bytes: &[u8]| Choice::of(&std::array::from_fn(|i| word(&bytes[4 * i..])));
        bytes.chunks_exact(4 * CHOICE_WORDS).map(one).collect()
    }
}

/// What the four kernels are given.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    /// `[rows, vocab]`. Left as they are: edits are undone.
    pub logits: Slice<f32>,
    /// `[rows, ROW_WORDS]`: [`Row`]s.
    pub rows: Slice<u32>,
    /// `[rows, CHOICE_WORDS]`: [`Choice`]s, written.
    pub choices: Slice<u32>,
    /// `[slots]`: chosen tokens, written; 0 where there is none.
    pub last: Slice<i32>,
    /// `[histories, vocab]`: see [`HistoryBegin`]. The chosen token is added.
    pub counts: Option<Slice<u16>>,
    /// Bits of tokens that are allowed, the lowest first.
    pub masks: Option<Slice<u32>>,
    /// `[edits, EDIT_WORDS]`: [`Edit`]s.
    pub edits: Option<Slice<u32>>,
    /// `[edits]`: where edited logits are kept meanwhile.
    pub saved: Option<Slice<f32>>,
    /// [`scratch_bytes`], zeros before the first use; every step leaves it as the next needs it.
    pub scratch: Slice<u8>,
    /// Rows.
    pub row_count: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

/// Bytes of scratch memory for so many rows.
pub fn scratch_bytes(rows: usize, vocab: usize) -> usize {
    // State; of each part, its state and its likeliest tokens; sums; the list; bins.
    rows * (48 + vocab.div_ceil(PART) * (24 + 8 * TOLD_MAX) + 8 * 2048 + 8 * 4096 + 4 * 2048)
}

/// Checks the logits, applies edits, finds the likeliest tokens; chooses for rows without a temperature.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn scan(job: &Sampler) -> Result<Launch, Misuse> {
    launch("sampler_scan", job)
}

/// Where the weight lies, of rows with a temperature: after [`scan`].
///
/// # Errors
/// As [`scan`].
pub fn weigh(job: &Sampler) -> Result<Launch, Misuse> {
    launch("sampler_weigh", job)
}

/// Chooses for rows with a temperature: after [`weigh`].
///
/// # Errors
/// As [`scan`].
pub fn draw(job: &Sampler) -> Result<Launch, Misuse> {
    launch("sampler_draw", job)
}

/// The chosen token's probability and rank, for rows that report them: last, and once.
///
/// # Errors
/// As [`scan`].
pub fn rank(job: &Sampler) -> Result<Launch, Misuse> {
    launch("sampler_rank", job)
}

fn launch(kernel: &'static str, job: &Sampler) -> Result<Launch, Misuse> {
    let Sampler { row_count, vocab, .. } = *job;
    needs((1..=VOCAB_MAX).contains(&vocab), || format!("a vocabulary of {vocab} tokens"))?;
    needs((1..=ROWS_MAX).contains(&row_count), || format!("{row_count} rows"))?;
    long_enough("logits", job.logits, row_count * vocab)?;
    long_enough("rows", job.rows, row_count * ROW_WORDS)?;
    long_enough("choices", job.choices, row_count * CHOICE_WORDS)?;
    long_enough("scratch", job.scratch, scratch_bytes(row_count, vocab))?;
    let edits = job.edits.map_or(0, |edits| edits.len() / EDIT_WORDS);
    needs(job.saved.map_or(0, |saved| saved.len()) >= edits, || "'saved' is shorter than the edits".into())?;
    let grid = [blocks("parts", vocab.div_ceil(PART))?, blocks("rows", row_count)?, 1];
    Ok(Launch::new(kernel, grid, THREADS, 0)
        .slice(job.logits)
        .slice(job.rows)
        .slice(job.choices)
        .slice(job.last)
        .optional(job.counts)
        .optional(job.masks)
        .optional(job.edits)
        .optional(job.saved)
        // It holds words of eight bytes.
        .slice(job.scratch.first(job.scratch.len() / 8 * 8)?.cast::<u64>()?)
        .int(int("vocab", vocab)?)
        .int(int("slots", job.last.len())?)
        .int(int("histories", job.counts.map_or(0, |counts| counts.len() / vocab))?)
        .int(int("mask words", job.masks.map_or(0, |masks| masks.len()))?)
        .int(int("edits", edits)?))
}

/// Bytes that one of the four kernels reads of `rows` that it has work in, `penalised` of which have a history and
/// `masked` a mask. [`draw`] reads one part of each row where there is neither top-k nor top-p.
pub fn pass_bytes(vocab: usize, rows: usize, penalised: usize, masked: usize) -> usize {
    rows * vocab * f32::BYTES + penalised * vocab * u16::BYTES + masked * vocab.div_ceil(32) * u32::BYTES
}

/// Begins one row of the counts that penalties use: of each token, how often it was generated (up to 32,767), and in
/// the top bit whether the prompt has it. Tokens outside the vocabulary are left out.
#[derive(Clone, Copy, Debug)]
pub struct HistoryBegin {
    /// `[histories, vocab]`, an even number of them: one row is written anew.
    pub counts: Slice<u16>,
    /// Which.
    pub history: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Tokens of the prompt.
    pub prompt: Option<Slice<i32>>,
    /// Tokens that were generated.
    pub output: Option<Slice<i32>>,
}

/// See [`HistoryBegin`].
///
/// # Errors
/// There is no such row.
pub fn history_begin(job: &HistoryBegin) -> Result<Launch, Misuse> {
    needs((1..=VOCAB_MAX).contains(&job.vocab), || format!("a vocabulary of {} tokens", job.vocab))?;
    // The kernel adds to two numbers at once.
    needs(job.counts.len().is_multiple_of(2), || format!("{} counts, an odd number", job.counts.len()))?;
    job.counts.cast::<u32>()?;
    long_enough("counts", job.counts, (job.history + 1) * job.vocab)?;
    let len = |tokens: Option<Slice<i32>>| tokens.map_or(0, |tokens| tokens.len());
    Ok(Launch::new("history_begin", [1, 1, 1], 1024, 0)
        .slice(job.counts)
        .optional(job.prompt)
        .optional(job.output)
        .int(int("history", job.history)?)
        .int(int("vocab", job.vocab)?)
        .int(int("prompt", len(job.prompt))?)
        .int(int("output", len(job.output))?))
}

/// Bytes that [`history_begin`] moves.
pub fn history_begin_bytes(job: &HistoryBegin) -> usize {
    let len = |tokens: Option<Slice<i32>>| tokens.map_or(0, |tokens| tokens.len());
    // A token is read, and its count read and written.
    job.vocab * u16::BYTES + (len(job.prompt) + len(job.output)) * (i32::BYTES + 2 * u32::BYTES)
}
