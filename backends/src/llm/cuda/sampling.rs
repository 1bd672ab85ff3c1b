//! Choosing tokens: what the sampler's kernels are told of each row, and what came of it. The order of rules is that of
//! [`crate::llm::sampler`], which does the rare rows that the kernels do not: typical sampling.

use super::graphs::SAMPLED_ROWS;
use super::{Choosing, CudaExecutor, floats, step};
use crate::llm::executor::{Failure, Mask, Masks};
use crate::llm::flights::Flight;
use crate::llm::plan::{Chosen, Chunk, Logprobs};
use crate::llm::sampler::{NO_CHANCE, NO_NUMBERS, Wish, allowed, leaves_none, nothing_left};
use crate::llm::sampling::Sampling;
use crate::llm::sequence::Unanswered;
use kernels::cuda::sampler::{self, Choice, Edit, HistoryBegin, Row, Status};
use kernels::cuda::{Launch, Misuse, Slice};
use std::ops::Range;

/// The sampler's part of the device's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) rows: Slice<u32>,
    pub(super) choices: Slice<u32>,
    pub(super) masks: Slice<u32>,
    pub(super) edits: Slice<u32>,
    pub(super) saved: Slice<f32>,
    pub(super) scratch: Slice<u8>,
    /// `[slots, vocab]`: what penalties count.
    pub(super) counts: Slice<u16>,
}

/// A row as the device is told of it, with what does not fit a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    pub(super) row: Row,
    pub(super) mask: Option<Vec<u32>>,
    pub(super) edits: Vec<Edit>,
}

/// What a row is chosen by. `generated` tokens came before; `ends` end a text.
pub(super) fn told(chunk: &Chunk, generated: u32, mask: Option<&Mask>, ends: &[u32], vocab: usize) -> Told {
    let sampling = &chunk.sampling;
    let row = Row {
        slot: chunk.slot as i32,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition: sampling.repetition_penalty,
        presence: sampling.presence_penalty,
        frequency: sampling.frequency_penalty,
        seed_low: sampling.seed as u32,
        seed_high: (sampling.seed >> 32) as u32,
        copy: chunk.sequence.copy.into(),
        position: generated,
        history: if penalises(sampling) { chunk.slot as i32 } else { -1 },
        logprobs: sampling.logprobs.map_or(-1, i32::from),
        ..Row::default()
    };
    let edits = sampling.logit_bias.iter().map(|&(token, value)| Edit { token, value }).collect();
    Told { row, mask: allowed(sampling, generated, mask, ends, vocab), edits }
}

/// Do penalties of this request need counts?
fn penalises(sampling: &Sampling) -> bool {
    sampling.repetition_penalty != 1.0 || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0
}

/// Is it for the host to choose?
fn is_typical(sampling: &Sampling) -> bool {
    sampling.temperature > 0.0 && sampling.typical_p < 1.0
}

/// The launches of a sampler for so many rows. Rows that are greedy and report nothing need but the first.
pub(super) fn launches(
    memory: &Memory,
    (logits, last): (Slice<f32>, Slice<i32>),
    (rows, vocab): (usize, usize),
    (draws, tells): (bool, bool),
) -> Result<Vec<Launch>, Misuse> {
    let job = sampler::Sampler {
        logits,
        rows: memory.rows,
        choices: memory.choices,
        last,
        counts: Some(memory.counts),
        masks: Some(memory.masks),
        edits: Some(memory.edits),
        saved: Some(memory.saved),
        scratch: memory.scratch,
        row_count: rows,
        vocab,
    };
    let mut launches = vec![sampler::scan(&job)?];
    if draws {
        launches.extend([sampler::weigh(&job)?, sampler::draw(&job)?]);
    }
    if tells {
        launches.push(sampler::rank(&job)?);
    }
    Ok(launches)
}

impl CudaExecutor {
    /// Has the tokens of a step chosen.
    pub(super) fn choose(&mut self, flight: &mut Flight<Choosing>, masks: &Masks) -> Result<(), Failure> {
        let (plan, choosing, ends) = (&flight.plan, &mut flight.own, &*masks.ends);
        let chunks: Vec<(usize, &Chunk)> = plan.chunks.iter().enumerate().filter(|(_, chunk)| chunk.sample).collect();
        if chunks.is_empty() {
            return Ok(());
        }
        let vocab = self.forward.spec.vocab;
        let mut rows = Vec::with_capacity(chunks.len());
        for (row, (place, chunk)) in chunks.iter().enumerate() {
            let (slot, mask) = (chunk.slot as usize, masks.of(*place));
            if is_typical(&chunk.sampling) {
                choosing.chosen.push((*place, self.choose_here(row, chunk, (mask, ends))?));
                rows.push(Told::default());
                continue;
            }
            if penalises(&chunk.sampling) && !self.slots[slot].counted {
                self.count(slot)?;
            }
            let generated = self.slots[slot].history.generated();
            let told = told(chunk, generated, mask, ends, vocab);
            if told.mask.as_deref().is_some_and(leaves_none) {
                // The device need not be asked.
                choosing.chosen.push((*place, Err(nothing_left(&chunk.sampling, generated, mask))));
                rows.push(Told::default());
                continue;
            }
            rows.push(told);
        }
        let bucket = step::bucket(plan, self.extent.slots).filter(|_| self.captures);
        rows.resize_with(bucket.unwrap_or(rows.len()), Told::default);
        let draws = rows.iter().any(|told| told.row.slot >= 0 && told.row.temperature > 0.0);
        let tells = rows.iter().any(|told| told.row.slot >= 0 && told.row.logprobs >= 0);
        let count = rows.len();
        self.tell(rows)?;
        match bucket {
            Some(bucket) if self.replay_sampler(bucket, draws || tells)? => {}
            _ => {
                let launches = self.sampler_launches(count, (draws, tells))?;
                self.run(launches)?;
            }
        }
        let choices = self.forward.buffers.sampler.choices.first(chunks.len() * sampler::CHOICE_WORDS)?;
        choosing.choices = Some(self.device.download(choices.cast()?)?);
        Ok(())
    }

    pub(super) fn sampler_launches(&self, rows: usize, kinds: (bool, bool)) -> Result<Vec<Launch>, Misuse> {
        let (buffers, vocab) = (&self.forward.buffers, self.forward.spec.vocab);
        launches(&buffers.sampler, (buffers.logits, buffers.last), (rows, vocab), kinds)
    }

    /// The sampler of a bucket as a graph: the whole of it, or what greedy rows need. `false` where the device gives no
    /// graph.
    fn replay_sampler(&mut self, bucket: usize, whole: bool) -> Result<bool, Failure> {
        match self.sampler_graph(bucket, whole) {
            Ok(graph) => self.device.replay(graph)?,
            Err(lost @ Failure::Lost(_)) => return Err(lost),
            Err(failure) => {
                self.stop_capturing(&failure);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Runs every kernel of the sampler once, on a row that is none.
    pub(super) fn warm_up_sampler(&mut self) -> Result<(), Failure> {
        self.tell(vec![Told::default()])?;
        let launches = self.sampler_launches(1, (true, true))?;
        self.run(launches)
    }

    /// Sends what rows are chosen by.
    fn tell(&mut self, rows: Vec<Told>) -> Result<(), Failure> {
        let (mut records, mut masks, mut edits) = (Vec::new(), Vec::new(), Vec::new());
        for Told { mut row, mask, edits: own } in rows {
            if let Some(mask) = mask {
                row.mask = masks.len() as i32;
                masks.extend(mask);
            }
            (row.edits, row.edit_count) = ((edits.len() / sampler::EDIT_WORDS) as i32, own.len() as i32);
            edits.extend(own.iter().flat_map(Edit::words));
            records.extend(row.words());
        }
        let memory = self.forward.buffers.sampler;
        for (to, words) in [(memory.rows, records), (memory.masks, masks), (memory.edits, edits)] {
            if !words.is_empty() {
                self.device.upload(to.first(words.len())?.cast()?, bytemuck::cast_slice(&words))?;
            }
        }
        Ok(())
    }

    /// Counts what a slot has, for its penalties.
    fn count(&mut self, slot: usize) -> Result<(), Failure> {
        let inputs = self.forward.buffers.inputs;
        let (prompt, output) = (self.slots[slot].prompt.clone(), self.slots[slot].history.output());
        // The step's own arrays were read by what was launched before.
        let both = prompt.len() + output.len();
        let tokens: Vec<u32> = prompt.iter().copied().chain(output.iter().copied()).collect();
        self.device.upload(inputs.first(both)?.cast()?, bytemuck::cast_slice(&tokens))?;
        let launch = self.counting(slot, 0..prompt.len(), prompt.len()..both)?;
        self.device.launch(&launch)?;
        self.slots[slot].counted = true;
        Ok(())
    }

    /// What counts tokens that stand in the inputs.
    pub(super) fn counting(&self, slot: usize, prompt: Range<usize>, output: Range<usize>) -> Result<Launch, Misuse> {
        let (inputs, counts) = (self.forward.buffers.inputs, self.forward.buffers.sampler.counts);
        let some = |range: Range<usize>| match range.is_empty() {
            true => Ok(None),
            false => inputs.part(range).map(Some),
        };
        let (vocab, prompt, output) = (self.forward.spec.vocab, some(prompt)?, some(output)?);
        sampler::history_begin(&HistoryBegin { counts, history: slot, vocab, prompt, output })
    }

    /// Waits for the logits of a row, and chooses on the host.
    fn choose_here(
        &mut self,
        row: usize,
        chunk: &Chunk,
        (mask, ends): (Option<&Mask>, &[u32]),
    ) -> Result<Chosen, Failure> {
        let vocab = self.forward.spec.vocab;
        let place = self.forward.buffers.logits.part(row * vocab..(row + 1) * vocab)?;
        let pending = self.device.download(place.cast()?)?;
        let mut logits = floats(&self.device.wait(pending)?);
        let history = &self.slots[chunk.slot as usize].history;
        let wish = Wish { sampling: &chunk.sampling, history, mask, ends, copy: chunk.sequence.copy };
        let chosen = self.sampler.choose(&mut logits, &wish);
        if let Ok((token, _)) = &chosen {
            let slot = chunk.slot as usize;
            let last = self.forward.buffers.last.part(slot..slot + 1)?;
            self.device.upload(last.cast()?, &token.to_le_bytes())?;
        }
        Ok(chosen)
    }

    /// Probabilities of the prompt tokens that follow the first rows of a chunk, where any are asked for: as many at a time
    /// as there is room for logits of, and kernels at hand for.
    pub(super) fn prompt_logprobs(&mut self, chunk: &Chunk, first: usize) -> Result<Vec<Logprobs>, Failure> {
        let (wanted, next) = (chunk.prompt_logprobs as usize, chunk.start as usize + 1);
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let prompt = self.slots[chunk.slot as usize].prompt.clone();
        let tokens = prompt.get(next..next + wanted);
        let tokens = tokens.ok_or_else(|| Failure::Contract("a prompt is shorter than it is told".into()))?;
        let (count, most) = (chunk.sampling.prompt_logprobs.unwrap_or(0), self.extent.slots.min(SAMPLED_ROWS));
        let mut told = Vec::with_capacity(wanted);
        for (begin, tokens) in (first..).step_by(most).zip(tokens.chunks(most)) {
            let rows: Vec<usize> = (begin..begin + tokens.len()).collect();
            self.logits(&rows)?;
            let row = |token: &u32| Row { slot: 0, given: *token as i32, logprobs: count.into(), ..Row::default() };
            self.tell(tokens.iter().map(|token| Told { row: row(token), ..Told::default() }).collect())?;
            let launches = self.sampler_launches(tokens.len(), (false, true))?;
            self.run(launches)?;
            let choices = self.forward.buffers.sampler.choices.first(tokens.len() * sampler::CHOICE_WORDS)?;
            let pending = self.device.download(choices.cast()?)?;
            told.extend(Choice::all(&self.device.wait(pending)?).iter().map(|choice| match choice.status {
                Status::Chosen => logprobs_of(choice, count),
                // What the model computed says nothing of any token.
                Status::NoNumber | Status::NothingAllowed => Logprobs { logprob: f32::NAN, rank: 1, top: Vec::new() },
            }));
        }
        Ok(told)
    }

    /// Waits for the tokens of a step, and takes them over.
    pub(super) fn learn(&mut self, flight: &mut Flight<Choosing>) -> Result<(), Failure> {
        let Flight { plan, sampled, own: Choosing { choices, chosen: here } } = flight;
        let Some(pending) = choices.take() else { return Ok(()) };
        let choices = Choice::all(&self.device.wait(pending)?);
        let choosing = plan.chunks.iter().enumerate().filter(|(_, chunk)| chunk.sample);
        for ((place, chunk), choice) in choosing.zip(choices) {
            let chosen = match here.iter().position(|(at, _)| *at == place) {
                Some(index) => here.swap_remove(index).1,
                None => outcome(&chunk.sampling, &choice),
            };
            if let Some(token) = sampled[place].settle(chosen) {
                self.slots[chunk.slot as usize].history.push(token);
            }
        }
        Ok(())
    }
}

/// What the device has chosen, in the words of the CPU's sampler.
fn outcome(sampling: &Sampling, choice: &Choice) -> Chosen {
    match choice.status {
        Status::NoNumber => return Err(Unanswered::Step(NO_NUMBERS.into())),
        Status::NothingAllowed => return Err(Unanswered::Step(NO_CHANCE.into())),
        Status::Chosen => {}
    }
    let token = u32::try_from(choice.token).map_err(|_| Unanswered::Step("the sampler chose no token".into()))?;
    Ok((token, sampling.logprobs.map(|count| logprobs_of(choice, count))))
}

/// The chosen token's probability, and those of so many of the likeliest.
fn logprobs_of(choice: &Choice, count: u8) -> Logprobs {
    let top = choice.ids.iter().zip(choice.logprobs).take(count.into()).filter(|(id, _)| **id >= 0);
    let top = top.map(|(id, logprob)| (*id as u32, logprob)).collect();
    Logprobs { logprob: choice.logprob, rank: choice.rank, top }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::plan::Input;
    use crate::llm::sampling::Parameters;
    use crate::llm::sequence::{GroupId, SequenceId};
    use std::sync::Arc;

    fn chunk(parameters: Parameters) -> Chunk {
        Chunk {
            sequence: SequenceId { group: GroupId(1), copy: 3 },
            slot: 2,
            fill: None,
            start: 0,
            length: 1,
            input: Input::Last,
            blocks: Arc::default(),
            sample: true,
            sampling: Arc::new(Sampling::new(parameters).unwrap()),
            prompt_logprobs: 0,
        }
    }

    fn bits(told: &Told) -> Vec<u32> {
        let words = told.mask.as_ref().unwrap();
        (0..words.len() as u32 * 32).filter(|token| words[*token as usize / 32] >> (token % 32) & 1 == 1).collect()
    }

    #[test]
    fn a_plain_row_has_no_mask_and_no_counts() {
        let told = told(&chunk(Parameters { seed: 7 << 32 | 9, ..Parameters::default() }), 4, None, &[1], 40);
        assert_eq!((told.row.slot, told.row.copy, told.row.position), (2, 3, 4));
        assert_eq!((told.row.seed_low, told.row.seed_high, told.row.history, told.row.logprobs), (9, 7, -1, -1));
        assert_eq!((told.mask, told.edits), (None, Vec::new()));
    }

    #[test]
    fn all_that_takes_tokens_out_is_one_mask() {
        let grammar = Mask::of(&[1, 2, 3, 5, 33], 40);
        let parameters = Parameters {
            allowed: Some(vec![1, 2, 3, 33, 39]),
            banned: vec![2],
            min_tokens: 5,
            stop_tokens: vec![3],
            ..Parameters::default()
        };
        let early = told(&chunk(parameters.clone()), 4, Some(&grammar), &[1], 40);
        assert_eq!(bits(&early), [33]);
        assert_eq!(bits(&told(&chunk(parameters), 5, Some(&grammar), &[1], 40)), [1, 3, 33]);
        let short = Mask(Arc::from([0b110]));
        assert_eq!(
            bits(&told(&chunk(Parameters::default()), 0, Some(&short), &[], 40)),
            [1, 2],
            "no more words, no more tokens"
        );
    }

    #[test]
    fn a_form_that_is_complete_ends() {
        let parameters = Parameters { allowed: Some(vec![7]), banned: vec![1], min_tokens: 5, ..Parameters::default() };
        let over = Mask::of(&[1, 33], 40);
        assert_eq!(bits(&told(&chunk(parameters.clone()), 4, Some(&over), &[1, 33], 40)), [1, 33]);
        let told = told(&chunk(parameters), 4, Some(&Mask::of(&[1, 2], 40)), &[1, 33], 40);
        assert!(leaves_none(told.mask.as_ref().unwrap()), "the form goes on, with tokens that are not allowed");
    }

    #[test]
    fn biases_are_edits_and_penalties_count_in_the_slot() {
        let logit_bias = vec![(3, 1.0), (4, 2.0), (3, -4.0)];
        let parameters = Parameters { logit_bias, frequency_penalty: 0.5, ..Parameters::default() };
        let told = told(&chunk(parameters), 0, None, &[], 40);
        assert_eq!(told.edits, [Edit { token: 3, value: -3.0 }, Edit { token: 4, value: 2.0 }]);
        assert_eq!(told.row.history, 2);
    }
}
