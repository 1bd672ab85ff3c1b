//! The clients: who asks when, with which tokens; who leaves; who asks again when there is an answer.
//!
//! Everything about a conversation is decided by its number, so that the settings of a sweep get the same ones: only
//! whether and when it goes on depends on the answers. A token is a function of its place: equal prefixes need not be
//! kept to be equal, and the answers that the simulated device gives are those that the next prompt repeats.
//!
//! ```text
//! prompt   [ the tenant's system prompt | message | answer | message | answer | message ]
//! ```

use super::random::{Random, mix};
use super::sweep::{Case, Setup};
use super::workload::Stream;
use backends::llm::blocks::{PrefixKey, Salt};
use backends::llm::sequence::GroupId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Tokens are below.
pub(crate) const VOCABULARY: u32 = 32_000;
/// The token that ends each answer, and occurs nowhere else.
pub(crate) const END: u32 = 0;

/// What chance decides is told apart by these.
const OF_TENANTS: u64 = 1;
const OF_CONVERSATIONS: u64 = 2;
const OF_ARRIVALS: u64 = 3;

/// Some client's own tokens: any but the last.
fn word(seed: u64, position: u32) -> u32 {
    1 + (((mix(seed, position.into()) >> 32) * u64::from(VOCABULARY - 1)) >> 32) as u32
}

/// Nanoseconds.
fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// One request.
#[derive(Debug)]
pub(crate) struct Ask {
    conversation: usize,
    pub(crate) stream: usize,
    pub(crate) tenant: usize,
    /// Nanoseconds since the beginning, as all times here.
    pub(crate) arrived: u64,
    pub(crate) deadline: Option<u64>,
    /// When its client leaves.
    leaves: Option<u64>,
    /// Tokens of the prompt.
    pub(crate) prompt: u32,
    /// Tokens that the answer has, the last one included.
    pub(crate) answer: u32,
    /// Tokens that it is allowed to have.
    pub(crate) max_tokens: u32,
    pub(crate) priority: i32,
    pub(crate) salt: Salt,
}

/// What a client does.
#[derive(Debug)]
pub(crate) enum Act {
    Ask(Ask),
    Leave(GroupId),
}

/// What is to happen at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Errand {
    /// A conversation of this stream begins.
    Begin(usize),
    /// This conversation goes on.
    Continue(usize),
    Leave(GroupId),
}

#[derive(Debug)]
struct Tenant {
    salt: Salt,
    /// Of its system prompt.
    seed: u64,
    system: u32,
}

#[derive(Debug)]
struct Conversation {
    stream: usize,
    tenant: usize,
    seed: u64,
    random: Random,
    /// So far, the last answer included.
    tokens: u32,
    begun: bool,
}

/// All clients of a run.
#[derive(Debug)]
pub(crate) struct Clients {
    streams: &'static [Stream],
    /// Of each stream the first of its tenants; behind them the number of all.
    first_tenant: Vec<usize>,
    tenants: Vec<Tenant>,
    /// Of each stream: when its conversations begin.
    arrivals: Vec<Random>,
    conversations: Vec<Conversation>,
    /// By time; of equal times, what was planned first.
    agenda: BinaryHeap<Reverse<(u64, u64, Errand)>>,
    planned: u64,
    /// Requests a second.
    rate: f64,
    seed: u64,
    context: u32,
    /// Requests that are still to be made.
    left: u64,
}

impl Clients {
    pub(crate) fn new(case: &Case, setup: &Setup, seed: u64, requests: u64, key: &PrefixKey) -> Clients {
        let streams = case.streams;
        let mut first_tenant = vec![0];
        let mut tenants = Vec::new();
        for stream in streams {
            for _ in 0..stream.tenants {
                let name = tenants.len() as u64;
                let seed = mix(mix(seed, OF_TENANTS), name);
                let system = stream.system.draw(&mut Random::new(seed));
                tenants.push(Tenant { salt: key.salt(&[b"tenant", &name.to_le_bytes()]), seed, system });
            }
            first_tenant.push(tenants.len());
        }
        let arrivals = (0..streams.len() as u64).map(|stream| Random::new(mix(mix(seed, OF_ARRIVALS), stream)));
        let mut clients = Clients {
            streams,
            first_tenant,
            tenants,
            arrivals: arrivals.collect(),
            conversations: Vec::new(),
            agenda: BinaryHeap::new(),
            planned: 0,
            rate: case.rate * setup.load,
            seed,
            context: setup.context,
            left: requests,
        };
        for stream in 0..streams.len() {
            clients.plan_conversation(stream, 0);
        }
        clients
    }

    /// When somebody does something next.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.agenda.peek().map(|&Reverse((due, ..))| due)
    }

    /// What is due by now, one act at a time.
    pub(crate) fn act(&mut self, now: u64) -> Option<Act> {
        while self.next_due()? <= now {
            let Reverse((due, _, errand)) = self.agenda.pop()?;
            let conversation = match errand {
                Errand::Leave(group) => return Some(Act::Leave(group)),
                // Enough were asked.
                _ if self.left == 0 => continue,
                Errand::Begin(stream) => {
                    self.plan_conversation(stream, due);
                    self.begin(stream)
                }
                Errand::Continue(conversation) => conversation,
            };
            return Some(Act::Ask(self.ask(conversation, due)));
        }
        None
    }

    /// A request was taken in under this name.
    pub(crate) fn admitted(&mut self, ask: &Ask, group: GroupId) {
        if let Some(leaves) = ask.leaves {
            self.plan(leaves, Errand::Leave(group));
        }
    }

    /// A request has its whole answer.
    pub(crate) fn answered(&mut self, ask: &Ask, now: u64) {
        let stream = &self.streams[ask.stream];
        let talk = &mut self.conversations[ask.conversation];
        let goes_on = talk.random.chance(1.0 - 1.0 / stream.turns);
        let fits = talk.tokens + stream.message.most + stream.answer.most <= self.context;
        if goes_on && fits {
            let due = now + nanos(talk.random.exponential(stream.think));
            self.plan(due, Errand::Continue(ask.conversation));
        }
    }

    /// The prompt of a request.
    pub(crate) fn prompt(&self, ask: &Ask) -> Arc<[u32]> {
        let (tenant, talk) = (&self.tenants[ask.tenant], &self.conversations[ask.conversation]);
        let system = (0..tenant.system).map(|position| word(tenant.seed, position));
        system.chain((tenant.system..ask.prompt).map(|position| word(talk.seed, position))).collect()
    }

    /// What the device chooses for this position of a request.
    pub(crate) fn token(&self, ask: &Ask, position: u32) -> u32 {
        if position + 1 < ask.prompt + ask.answer {
            word(self.conversations[ask.conversation].seed, position)
        } else {
            END
        }
    }

    /// Tenants of all streams.
    pub(crate) fn tenants(&self) -> usize {
        self.tenants.len()
    }

    fn plan(&mut self, due: u64, errand: Errand) {
        self.agenda.push(Reverse((due, self.planned, errand)));
        self.planned += 1;
    }

    /// The next conversation of a stream begins some time after the last one.
    fn plan_conversation(&mut self, stream: usize, last: u64) {
        let Stream { share, gaps, turns, .. } = &self.streams[stream];
        let gap = self.arrivals[stream].gap(*gaps) * turns / (self.rate * share);
        self.plan(last + nanos(gap), Errand::Begin(stream));
    }

    fn begin(&mut self, stream: usize) -> usize {
        let number = self.conversations.len();
        let seed = mix(mix(self.seed, OF_CONVERSATIONS), number as u64);
        let mut random = Random::new(seed);
        let tenants = &self.tenants[self.first_tenant[stream]..self.first_tenant[stream + 1]];
        let tenant = self.first_tenant[stream] + popular(tenants.len(), &mut random);
        let tokens = self.tenants[tenant].system;
        self.conversations.push(Conversation { stream, tenant, seed, random, tokens, begun: false });
        number
    }

    fn ask(&mut self, conversation: usize, arrived: u64) -> Ask {
        self.left -= 1;
        let talk = &mut self.conversations[conversation];
        let stream = &self.streams[talk.stream];
        let message = if std::mem::replace(&mut talk.begun, true) { stream.message } else { stream.opening };
        let prompt = talk.tokens + message.draw(&mut talk.random);
        let answer = stream.answer.draw(&mut talk.random);
        talk.tokens = prompt + answer;
        let after = talk.random.exponential(stream.patience);
        Ask {
            conversation,
            stream: talk.stream,
            tenant: talk.tenant,
            arrived,
            deadline: stream.deadline.map(|deadline| arrived + nanos(deadline)),
            leaves: talk.random.chance(stream.leaves).then_some(arrived + nanos(after)),
            prompt,
            answer,
            max_tokens: stream.answer.most,
            priority: stream.priority,
            salt: self.tenants[talk.tenant].salt,
        }
    }
}

/// Which of so many: the second half as often as the first, the third a third as often, and so on.
fn popular(count: usize, random: &mut Random) -> usize {
    let weight = |which: usize| 1.0 / (which + 1) as f64;
    let mut left = random.uniform() * (0..count).map(weight).sum::<f64>();
    (0..count)
        .find(|&which| {
            left -= weight(which);
            left < 0.0
        })
        .unwrap_or(0)
}
