//! How the next token is chosen from logits, on the CPU: the specification of what a device's sampler does.
//!
//! ```text
//! logits -> allowed, banned, grammar, end of text too early -> bias -> penalties
//!        -> temperature -> top-k -> top-p -> min-p -> typical -> one draw by (seed, copy, position)
//! ```
//! Each filter works on what the one before it left, renormalised, as in Hugging Face's and vLLM's samplers. Chance
//! depends on nothing but the request's seed, its copy and the position, so that a batch changes nothing. Reported
//! probabilities are those of the model, before anything of this.

use super::executor::Mask;
use super::plan::{Chosen, Fill, Logprobs};
use super::sampling::{NOTHING_LEFT, Sampling};
use super::sequence::Unanswered;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// What the penalties of a sequence count.
#[derive(Clone, Debug, Default)]
pub struct History {
    prompt: HashSet<u32>,
    output: HashMap<u32, u32>,
    generated: u32,
    last: Option<u32>,
}

impl History {
    /// Begins anew with all tokens that are known.
    pub fn fill(&mut self, fill: &Fill) {
        *self = History { prompt: fill.prompt.iter().copied().collect(), ..History::default() };
        fill.output.iter().for_each(|token| self.push(*token));
    }

    /// A token was generated.
    pub fn push(&mut self, token: u32) {
        *self.output.entry(token).or_default() += 1;
        self.generated += 1;
        self.last = Some(token);
    }

    /// The tokens that were generated, equal ones side by side.
    pub fn output(&self) -> Vec<u32> {
        let times = |(token, times): (&u32, &u32)| std::iter::repeat_n(*token, *times as usize);
        self.output.iter().flat_map(times).collect()
    }

    /// How many tokens were generated.
    pub fn generated(&self) -> u32 {
        self.generated
    }

    /// The last token that was generated.
    pub fn last(&self) -> Option<u32> {
        self.last
    }
}

/// What a token is chosen by, besides logits.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Parameters of the request.
    pub sampling: &'a Sampling,
    /// What the sequence has so far.
    pub history: &'a History,
    /// What a grammar allows.
    pub mask: Option<&'a Mask>,
    /// Tokens that end a text, by the model's own account.
    pub ends: &'a [u32],
    /// Which of several answers to one prompt.
    pub copy: u16,
}

/// Chooses tokens; keeps its memory between them.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
}

/// A token that may be chosen, and its weight: a probability but for a common factor.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    weight: f64,
}

impl Sampler {
    /// Chooses a token; `logits` are changed on the way.
    ///
    /// # Errors
    /// A logit is no number, or no token is allowed.
    pub fn choose(&mut self, logits: &mut [f32], wish: &Wish<'_>) -> Chosen {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Unanswered::Step(NO_NUMBERS.into()));
        }
        let wanted = wish.sampling.logprobs;
        let told = wanted.map(|count| Told::of(logits, usize::from(count)));
        let Wish { sampling, history, mask, ends, .. } = wish;
        let allowed = allowed(sampling, history.generated, *mask, ends, logits.len());
        if let Some(bits) = &allowed {
            restrict(logits, bits);
        }
        penalise(logits, wish);
        let token = if sampling.temperature == 0.0 { likeliest(logits) } else { self.draw(logits, wish) };
        let token = token.ok_or_else(|| match allowed.as_deref().is_some_and(leaves_none) {
            true => nothing_left(sampling, history.generated, *mask),
            false => Unanswered::Step(NO_CHANCE.into()),
        })?;
        Ok((token, told.map(|told| told.about(token))))
    }

    /// One of those that all filters leave.
    fn draw(&mut self, logits: &[f32], wish: &Wish<'_>) -> Option<u32> {
        let sampling = wish.sampling;
        self.gather(logits, sampling.temperature);
        self.top_k(sampling.top_k as usize);
        if sampling.top_p < 1.0 {
            self.top_p(f64::from(sampling.top_p));
        }
        // The likeliest has the weight 1.
        self.candidates.retain(|candidate| candidate.weight >= f64::from(sampling.min_p));
        if sampling.typical_p < 1.0 {
            self.typical(f64::from(sampling.typical_p));
        }
        // In the order of their numbers, as devices draw: they have nothing sorted.
        self.candidates.sort_unstable_by_key(|candidate| candidate.token);
        let mut left = self.total() * uniform(sampling.seed, wish.copy, wish.history.generated);
        for candidate in &self.candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // What rounding has left goes to the last.
        self.candidates.last().map(|candidate| candidate.token)
    }

    /// Every token that is possible, with its weight at this temperature.
    fn gather(&mut self, logits: &[f32], temperature: f32) {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let possible = (0..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY);
        let weight = |logit: f32| (f64::from(logit - best) / f64::from(temperature)).exp();
        self.candidates.clear();
        self.candidates.extend(possible.map(|(token, &logit)| Candidate { token, logit, weight: weight(logit) }));
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|candidate| candidate.weight).sum()
    }

    /// The likeliest so many; 0 is all.
    fn top_k(&mut self, count: usize) {
        if count > 0 && count < self.candidates.len() {
            self.candidates.select_nth_unstable_by(count - 1, likelier);
            self.candidates.truncate(count);
        }
    }

    /// The likeliest that together have this share.
    fn top_p(&mut self, share: f64) {
        let total = self.total();
        // All tokens below this are together less than what is left out: they need no sorting. It is the mean at most,
        // which the likeliest reaches.
        let least = total * (1.0 - share) / self.candidates.len() as f64;
        self.candidates.retain(|candidate| candidate.weight >= least);
        self.candidates.sort_unstable_by(likelier);
        self.cut(share * total);
    }

    /// The first that together weigh `enough`, the one that reaches it included.
    fn cut(&mut self, enough: f64) {
        let (mut sum, mut count) = (0.0, 0);
        for candidate in &self.candidates {
            sum += candidate.weight;
            count += 1;
            if sum >= enough {
                break;
            }
        }
        self.candidates.truncate(count);
    }

    /// Those whose information is closest to what is expected of one, as many as together have `share` (Meister et al.
    /// 2022).
    fn typical(&mut self, share: f64) {
        let total = self.total();
        let information = |candidate: &Candidate| -(candidate.weight / total).ln();
        let expected: f64 = self
            .candidates
            .iter()
            .filter(|candidate| candidate.weight > 0.0)
            .map(|candidate| candidate.weight / total * information(candidate))
            .sum();
        let distance = |candidate: &Candidate| (information(candidate) - expected).abs();
        self.candidates.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        self.cut(share * total);
    }
}

fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Why a model goes no further that is broken, or whose numbers are.
pub(super) const NO_NUMBERS: &str = "the model computed logits that are no numbers";

/// Why a model whose logits rule out all that its request allows goes no further.
pub(super) const NO_CHANCE: &str = "no token is allowed here";

/// The tokens that may come after so many generated ones, bit by bit; `None` where all may. `ends` end a text.
///
/// A form whose text is complete leaves nothing but the end, and that comes whatever else the request wishes: it has all
/// that it asked for.
pub(super) fn allowed(
    sampling: &Sampling,
    generated: u32,
    mask: Option<&Mask>,
    ends: &[u32],
    vocab: usize,
) -> Option<Vec<u32>> {
    let early = generated < sampling.min_tokens;
    let too_early = if early { ends.iter().chain(&sampling.stop_tokens) } else { [].iter().chain(&[]) };
    let banned: Vec<u32> = sampling.banned.iter().chain(too_early).copied().collect();
    if mask.is_none() && sampling.allowed.is_none() && banned.is_empty() {
        return None;
    }
    let words = vocab.div_ceil(32);
    let mut bits: Vec<u32> = match mask {
        Some(Mask(grammar)) => grammar.iter().copied().chain(std::iter::repeat(0)).take(words).collect(),
        None => vec![u32::MAX; words],
    };
    if let (Some(last), used @ 1..) = (bits.last_mut(), vocab % 32) {
        *last &= (1 << used) - 1;
    }
    if mask.is_some_and(|mask| mask.allows_only(ends)) {
        return Some(bits);
    }
    if let Some(allowed) = &sampling.allowed {
        let Mask(listed) = Mask::of(allowed, vocab as u32);
        bits.iter_mut().zip(listed.iter()).for_each(|(bits, listed)| *bits &= listed);
    }
    for token in banned.iter().filter(|token| (**token as usize) < vocab) {
        bits[*token as usize / 32] &= !(1 << (token % 32));
    }
    Some(bits)
}

/// Is no token left?
pub(super) fn leaves_none(bits: &[u32]) -> bool {
    bits.iter().all(|word| *word == 0)
}

/// Why none is: the wishes of a request that exclude each other.
pub(super) fn nothing_left(sampling: &Sampling, generated: u32, mask: Option<&Mask>) -> Unanswered {
    let wishes = [
        ("the form of the answer", mask.is_some()),
        ("allowed_token_ids", sampling.allowed.is_some()),
        ("bad_words", !sampling.banned.is_empty()),
        ("min_tokens", generated < sampling.min_tokens),
    ];
    let wishes: Vec<&str> = wishes.into_iter().filter(|(_, wished)| *wished).map(|(wish, _)| wish).collect();
    Unanswered::Request(match &wishes[..] {
        [others @ .., last] if !others.is_empty() => {
            format!("{NOTHING_LEFT}{} and {last} exclude each other", others.join(", "))
        }
        alone => format!("{NOTHING_LEFT}{} excludes all of them", alone.concat()),
    })
}

/// Takes out what must not come next.
fn restrict(logits: &mut [f32], bits: &[u32]) {
    for (logits, word) in logits.chunks_mut(32).zip(bits) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// Bias, and what occurred.
fn penalise(logits: &mut [f32], wish: &Wish<'_>) {
    let Wish { sampling, history, .. } = wish;
    for (token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    let repetition = sampling.repetition_penalty;
    if repetition != 1.0 {
        let fresh = history.output.keys().filter(|token| !history.prompt.contains(token));
        for token in history.prompt.iter().chain(fresh) {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
        }
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        for (token, count) in &history.output {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * *count as f32;
            }
        }
    }
}

/// The lowest of the likeliest tokens.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, logit)| logit) {
            best = Some((token, logit));
        }
    }
    best.map(|(token, _)| token)
}

/// A number from 0 up to 1 that is a function of its arguments, all bits of which count (the finaliser of SplitMix64,
/// applied to each in turn).
fn uniform(seed: u64, copy: u16, position: u32) -> f64 {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let step = |state: u64, word: u64| mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(word));
    let bits = step(step(step(0, seed), u64::from(copy)), u64::from(position));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// What the model says of the next token.
struct Told {
    logits: Vec<f32>,
    log_sum: f64,
    top: Vec<(u32, f32)>,
}

impl Told {
    fn of(logits: &[f32], count: usize) -> Self {
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - best).exp()).sum();
        let log_sum = f64::from(best) + sum.ln();
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let count = count.min(order.len());
        if count > 0 && count < order.len() {
            order.select_nth_unstable_by(count - 1, by);
        }
        order.truncate(count);
        order.sort_unstable_by(by);
        let top =
            order.into_iter().map(|token| (token, (f64::from(logits[token as usize]) - log_sum) as f32)).collect();
        Told { logits: logits.to_vec(), log_sum, top }
    }

    fn about(self, token: u32) -> Logprobs {
        let logit = self.logits[token as usize];
        let rank = 1 + self.logits.iter().filter(|other| **other > logit).count() as u32;
        Logprobs { logprob: (f64::from(logit) - self.log_sum) as f32, rank, top: self.top }
    }
}

/// The probabilities of a prompt's token that follows a position with these logits.
pub fn told(logits: &[f32], token: u32, count: u32) -> Logprobs {
    Told::of(logits, count as usize).about(token)
}
