//! Command lines and environments of the servers that tensorgate stands in for.
//!
//! A list is a table of [`Foreign`] rows: what each flag of that program takes, and what it becomes here. Our own flags
//! work in every list. What has no use here is accepted and named in one warning, and so is what nobody knows: a newer
//! release of the other program may. What would be unsafe to pass over, such as TLS that is not there, is refused.

mod engine;
mod huggingface;
mod kserve;
mod mlserver;
#[cfg(test)]
mod tests;
mod triton;
mod vllm;
#[cfg(test)]
mod vllm_tests;

use crate::args::{Args, Origin, flags};
use std::collections::BTreeMap;

/// Whose command line it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum List {
    /// Ours: what it does not know is an error.
    #[default]
    Own,
    /// That of KServe's Python servers.
    Kserve,
    /// `tritonserver`'s.
    Triton,
    /// That of `vllm serve`.
    Vllm,
}

/// A flag or variable of another program.
#[derive(Debug)]
pub struct Foreign {
    /// As that program spells it, without leading dashes.
    pub name: &'static str,
    takes: Takes,
    /// What it is here.
    pub becomes: Becomes,
}

/// The value of a foreign flag.
#[derive(Clone, Copy, Debug)]
enum Takes {
    /// It is there or not.
    Nothing,
    /// It is there, or there with `no-` before its name, or not.
    Switch,
    /// Yes or no.
    Bool,
    /// A whole number.
    Integer,
    /// A whole number, where yes is 1 and no is 0.
    Level,
    /// A number.
    Number,
    /// A whole number, perhaps with a letter for thousands; or as many as there is room for.
    Human,
    /// Anything.
    Text,
    /// One word or several, of any kind.
    Words,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

/// What a foreign flag is here.
#[derive(Debug)]
pub enum Becomes {
    /// Nothing: it has no use here.
    Nothing,
    /// Nothing: what it asks for is so anyway. A no is without effect.
    Always,
    /// A flag of ours that takes the same value.
    Own(&'static str),
    /// Of several words the first is for one flag of ours, and the others are for another.
    Names(&'static str, &'static str),
    /// A flag of ours with another value.
    Rewritten(&'static str, fn(&str) -> Rewrite),
    /// No turns the listener of this port off.
    Listener(&'static str),
    /// An error, unless the value is no: passing over it would be unsafe, or change answers. The reason says what to do.
    Refused(&'static str),
    /// The same, unless this holds for the value: it asks for what is so anyway. The value is not a secret.
    RefusedUnless(fn(&str) -> bool, &'static str),
}

/// What the value of a foreign flag becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// This value of ours.
    To(String),
    /// Nothing: that is how it is anyway.
    Same,
    /// Nothing, though something else was asked for: it is named in the warning.
    Lost,
}

impl List {
    /// The list of a program with this name.
    #[must_use]
    pub fn of_program(name: &str) -> Option<Self> {
        match name {
            triton::PROGRAM => Some(List::Triton),
            vllm::PROGRAM => Some(List::Vllm),
            _ => None,
        }
    }

    /// The list that these flags, as spelled, are from: KServe's if one of them is KServe's alone, or has the
    /// underscore of its spelling.
    pub(crate) fn of_flags(mut flags: impl Iterator<Item = String>) -> Self {
        let of_kserve = |spelled: String| {
            let name = spelled.trim_start_matches("--");
            kserve::SPELLED.contains(&name)
                || huggingface::spells(name)
                || kserve::FLAGS.iter().any(|row| row.is_called(&name.replace('_', "-")))
        };
        if flags.any(of_kserve) { List::Kserve } else { List::Own }
    }

    /// The list that only another program's command line has this flag in. What vLLM's list refuses is no reason to send
    /// anybody there.
    pub(crate) fn knows(name: &str) -> Option<Self> {
        let of_vllm = || List::Vllm.row(name).filter(|row| !matches!(row.becomes, Becomes::Refused(_)));
        match List::Triton.row(name) {
            Some(_) => Some(List::Triton),
            None => of_vllm().map(|_| List::Vllm),
        }
    }

    /// The name of the program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            List::Own => "tensorgate",
            List::Kserve => kserve::PROGRAM,
            List::Triton => triton::PROGRAM,
            List::Vllm => vllm::PROGRAM,
        }
    }

    /// The release of the program whose flags these are, where who starts it asks for that.
    #[must_use]
    pub fn release(self) -> Option<&'static str> {
        (self == List::Vllm).then_some(vllm::RELEASE)
    }

    /// Flags that this list has besides ours. Of two of the same name the first counts.
    pub fn flags(self) -> impl Iterator<Item = &'static Foreign> {
        let tables: Tables = match self {
            List::Own => &[],
            List::Kserve => OF_KSERVE,
            List::Triton => OF_TRITON,
            List::Vllm => OF_VLLM,
        };
        tables.iter().copied().flatten()
    }

    /// The flag of this name, spelled with dashes.
    pub(crate) fn find(self, name: &str) -> Option<Found> {
        let plain = self.row(name).map(|row| Found { row, negated: false });
        let negated = || self.row(name.strip_prefix("no-")?).filter(|row| matches!(row.takes, Takes::Switch));
        plain.or_else(|| negated().map(|row| Found { row, negated: true }))
    }

    /// The long name of a flag that this list has with one dash.
    pub(crate) fn long(self, spelled: &str) -> Option<&'static str> {
        let short = vllm::SHORT.iter().find(|(short, _)| *short == spelled);
        short.filter(|_| self == List::Vllm).map(|(_, long)| *long)
    }

    fn row(self, name: &str) -> Option<&'static Foreign> {
        self.flags().find(|row| row.is_called(name))
    }
}

/// The tables of a command line.
type Tables = &'static [&'static [Foreign]];

const OF_KSERVE: Tables = &[kserve::FLAGS, huggingface::FLAGS, vllm::FRONT_END, engine::FLAGS];
const OF_TRITON: Tables = &[triton::FLAGS];
const OF_VLLM: Tables = &[vllm::SERVER, vllm::FRONT_END, engine::FLAGS];

/// A part of the page of flags: its heading, what stands before a name, and the tables.
pub type Section = (&'static str, &'static str, &'static [&'static [Foreign]]);

/// Every table once, as the page of flags has them.
pub const SECTIONS: &[Section] = &[
    (
        "KServe's servers, besides `--model_name`, `--model_dir`, `--http_port`, `--grpc_port` and `--nthread`",
        "--",
        &[kserve::FLAGS],
    ),
    ("KServe's `huggingfaceserver`, besides those and the ones of vLLM's engine", "--", &[huggingface::FLAGS]),
    ("`vllm serve`", "--", &[vllm::SERVER]),
    ("`vllm serve` and `huggingfaceserver`: vLLM's engine", "--", &[vllm::FRONT_END, engine::FLAGS]),
    ("`tritonserver`, besides the flags that have the same name here", "--", &[triton::FLAGS]),
    ("vLLM's environment", "", &[vllm::VARIABLES]),
    ("MLServer's environment", "", &[mlserver::VARIABLES]),
];

/// A flag of another program, as it was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) row: &'static Foreign,
    /// By its name with `no-` before it.
    pub(crate) negated: bool,
}

/// What another program's variable means to us. Every `MLSERVER_` variable is known, if only as one without effect.
pub(crate) fn variable(list: List, name: &str) -> Option<&'static Foreign> {
    let known = |rows: &'static [Foreign]| rows.iter().find(|row| row.name == name);
    match list {
        List::Triton => None,
        List::Vllm => known(vllm::VARIABLES),
        List::Own | List::Kserve => {
            let of_mlserver = name.starts_with(mlserver::PREFIX);
            of_mlserver.then(|| known(mlserver::VARIABLES).unwrap_or(&mlserver::OTHER))
        }
    }
}

/// Yes or no, as Python's and Triton's parsers read it.
pub(crate) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "t" | "true" | "on" | "1" => Some(true),
        "n" | "no" | "f" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

impl Foreign {
    const fn new(name: &'static str, takes: Takes, becomes: Becomes) -> Self {
        Foreign { name, takes, becomes }
    }

    /// Is this its name, spelled with dashes?
    fn is_called(&self, name: &str) -> bool {
        self.name.replace('_', "-") == name
    }

    /// Is the word after it its value?
    pub(crate) fn takes_value(&self) -> bool {
        !matches!(self.takes, Takes::Nothing | Takes::Switch)
    }

    /// Are the words after that its value as well?
    pub(crate) fn takes_several(&self) -> bool {
        matches!(self.takes, Takes::Words)
    }

    /// The value of a flag that needs no word after it; some write one after `=` all the same.
    pub(crate) fn implied(&self, attached: Option<String>, negated: bool) -> String {
        match (self.takes, attached) {
            (Takes::Switch, _) if negated => "false".to_owned(),
            (Takes::Switch, attached) => attached.unwrap_or_else(|| "true".to_owned()),
            _ => String::new(),
        }
    }

    /// Would the other program take this value? A wrong one is an error even where it would have no effect.
    pub(crate) fn check(&self, value: &str) -> Result<(), String> {
        let (right, wanted) = match self.takes {
            Takes::Nothing | Takes::Text | Takes::Words => (true, ""),
            Takes::Bool | Takes::Switch => (truth(value).is_some(), "is not true or false"),
            Takes::Human => {
                (vllm::human(value).is_some() || vllm::is_auto(value), "is not a whole number, as 8192, 8k or 8K")
            }
            Takes::Integer => (value.parse::<i64>().is_ok(), "is not a whole number"),
            Takes::Level => {
                (value.parse::<i64>().is_ok() || truth(value).is_some(), "is neither a whole number nor true or false")
            }
            Takes::Number => (value.parse::<f64>().is_ok(), "is not a number"),
            Takes::OneOf(words) if !words.contains(&value) => {
                return Err(format!("is not one of {}", words.join(", ")));
            }
            Takes::OneOf(_) => (true, ""),
        };
        if right { Ok(()) } else { Err(wanted.to_owned()) }
    }

    /// Does this value ask for the thing at all?
    pub(crate) fn is_on(&self, value: &str) -> bool {
        !matches!(self.takes, Takes::Bool | Takes::Switch) || truth(value) == Some(true)
    }
}

/// What is known only when all flags and variables have been read.
#[derive(Debug, Default)]
pub(crate) struct Translation {
    /// Given, known, and of no use here.
    pub(crate) idle: Vec<String>,
    /// Given and unknown.
    pub(crate) unknown: Vec<String>,
    /// By our flag of the port: is the listener on, and who said so last?
    pub(crate) listeners: BTreeMap<&'static str, (bool, String)>,
}

impl Translation {
    /// Adds what follows from the whole of what was said: listeners that are off, and the program's own defaults.
    pub(crate) fn finish(&mut self, list: List, args: &mut Args) -> Result<(), String> {
        match list {
            List::Own => {}
            List::Kserve => kserve::finish(args)?,
            List::Triton => self.idle.extend(triton::finish(args)?),
            List::Vllm => vllm::finish(args)?,
        }
        mlserver::finish(list, args)?;
        // Last: `--enable_grpc=false --grpc_port=9000` is off in either order.
        for (port, (on, place)) in &self.listeners {
            if !on {
                say(args, port, "off", Origin::Flag(place.clone()))?;
            }
        }
        Ok(())
    }

    /// The one line about what had no effect.
    pub(crate) fn warning(&mut self) -> Option<String> {
        let mut parts = Vec::new();
        for (what, names) in [("accepted without effect", &mut self.idle), ("unknown and ignored", &mut self.unknown)] {
            names.sort();
            names.dedup();
            if !names.is_empty() {
                parts.push(format!("{what}: {}", names.join(", ")));
            }
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn say(args: &mut Args, name: &str, text: &str, origin: Origin) -> Result<(), String> {
    flags::find(name).map_or(Ok(()), |flag| args.say(flag, text, origin))
}

/// A limit on gRPC messages is taken over where it is wider than ours, which holds for HTTP as well: a narrower one would
/// refuse what the other program takes. KServe's own default is no wish of the user's.
fn wider_body(value: &str) -> Rewrite {
    const OURS: u64 = 64 << 20;
    const KSERVES: u64 = 8 << 20;
    match value.parse::<u64>() {
        Ok(bytes) if bytes > OURS => Rewrite::To(bytes.to_string()),
        Ok(OURS | KSERVES) => Rewrite::Same,
        _ => Rewrite::Lost,
    }
}

fn seconds(value: &str) -> Rewrite {
    Rewrite::To(format!("{value}s"))
}

/// This value, or what is so anyway.
fn unless_same(value: Option<String>) -> Rewrite {
    value.map_or(Rewrite::Same, Rewrite::To)
}
