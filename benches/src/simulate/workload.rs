//! Who asks for what: the mixes of requests, as data. Lengths are log-normal, as those of public traces are; answers
//! are shorter than there, because a hundred thousand of them are computed token by token for each setting.

use super::random::Random;

/// A log-normal distribution of tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    median: f64,
    /// Of the logarithm.
    deviation: f64,
    /// What is longer is cut.
    pub(crate) most: u32,
}

impl Lengths {
    const fn new(median: f64, deviation: f64, most: u32) -> Lengths {
        Lengths { median, deviation, most }
    }

    /// At least 1.
    pub(crate) fn draw(&self, random: &mut Random) -> u32 {
        let tokens = self.median * (self.deviation * random.normal()).exp();
        (tokens as u32).clamp(1, self.most)
    }
}

/// Clients of one kind.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) name: &'static str,
    /// Of all requests.
    pub(crate) share: f64,
    /// Standard deviation of the gaps between conversations, of their mean: 1 is Poisson's process, more are bursts.
    pub(crate) gaps: f64,
    /// Smaller goes first.
    pub(crate) priority: i32,
    /// Each shares prefixes with nobody else. The second has half as many conversations as the first, the third a
    /// third, and so on.
    pub(crate) tenants: u32,
    /// What all conversations of a tenant begin with.
    pub(crate) system: Lengths,
    /// The first message.
    pub(crate) opening: Lengths,
    /// Those after it; each comes with all that was said before.
    pub(crate) message: Lengths,
    pub(crate) answer: Lengths,
    /// Messages of a conversation on average.
    pub(crate) turns: f64,
    /// Seconds between an answer and the next message, on average.
    pub(crate) think: f64,
    /// The share of clients who leave before they have their answer, unless they have it by then.
    pub(crate) leaves: f64,
    /// Seconds until they leave, on average.
    pub(crate) patience: f64,
    /// Seconds after which an answer is of no use.
    pub(crate) deadline: Option<f64>,
}

/// Assistants: conversations under long instructions.
pub(crate) const CHAT: &[Stream] = &[Stream {
    name: "chat",
    share: 1.0,
    gaps: 1.0,
    priority: 0,
    tenants: 20,
    system: Lengths::new(400.0, 0.7, 2000),
    opening: Lengths::new(60.0, 1.0, 1000),
    message: Lengths::new(40.0, 0.9, 600),
    answer: Lengths::new(64.0, 0.8, 400),
    turns: 4.0,
    think: 15.0,
    leaves: 0.04,
    patience: 5.0,
    deadline: Some(30.0),
}];

/// Long documents that come several at a time, with a question or two on each.
pub(crate) const DOCUMENTS: &[Stream] = &[Stream {
    name: "documents",
    share: 1.0,
    gaps: 3.0,
    priority: 0,
    tenants: 10,
    system: Lengths::new(150.0, 0.5, 400),
    opening: Lengths::new(4000.0, 0.8, 14_000),
    message: Lengths::new(30.0, 0.7, 200),
    answer: Lengths::new(40.0, 0.7, 300),
    turns: 1.6,
    think: 20.0,
    leaves: 0.02,
    patience: 20.0,
    deadline: Some(120.0),
}];

/// Four kinds of clients on one device: the urgent, those who converse, those with documents, and batches of jobs that
/// can wait and come from few tenants in large bursts.
pub(crate) const MIXED: &[Stream] = &[
    Stream {
        name: "urgent",
        share: 0.15,
        gaps: 2.0,
        priority: -2,
        tenants: 3,
        system: Lengths::new(200.0, 0.3, 400),
        opening: Lengths::new(600.0, 0.7, 3000),
        message: Lengths::new(100.0, 0.7, 500),
        answer: Lengths::new(16.0, 0.8, 100),
        turns: 1.2,
        think: 5.0,
        leaves: 0.1,
        patience: 2.0,
        deadline: Some(5.0),
    },
    Stream { share: 0.5, tenants: 6, ..CHAT[0] },
    Stream { share: 0.05, tenants: 2, ..DOCUMENTS[0] },
    Stream {
        name: "batch",
        share: 0.3,
        gaps: 4.0,
        priority: 2,
        tenants: 2,
        system: Lengths::new(300.0, 0.5, 1000),
        opening: Lengths::new(1500.0, 0.7, 8000),
        message: Lengths::new(30.0, 0.7, 200),
        answer: Lengths::new(48.0, 0.8, 400),
        turns: 1.0,
        think: 1.0,
        leaves: 0.0,
        patience: 1.0,
        deadline: None,
    },
];
