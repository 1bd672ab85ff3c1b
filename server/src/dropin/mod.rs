//! Command lines and environments of the servers that tensorgate stands in for.
//!
//! A list is a table of [`Foreign`] rows: what each flag of that program takes, and what it becomes here. Our own flags
//! work in every list. What has no use here is accepted and named in one warning, and so is what nobody knows: a newer
//! release of the other program may. What would be unsafe to pass over, such as TLS that is not there, is refused.

mod kserve;
mod mlserver;
#[cfg(test)]
mod tests;
mod triton;

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
    /// Yes or no.
    Bool,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// Anything.
    Text,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

/// What a foreign flag is here.
#[derive(Debug)]
pub enum Becomes {
    /// Nothing: it has no use here.
    Nothing,
    /// A flag of ours that takes the same value.
    Own(&'static str),
    /// A flag of ours with another value.
    Rewritten(&'static str, fn(&str) -> Rewrite),
    /// No turns the listener of this port off.
    Listener(&'static str),
    /// An error, unless the value is no: passing over it would be unsafe. The reason says what to do.
    Refused(&'static str),
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
        (name == triton::PROGRAM).then_some(List::Triton)
    }

    /// The list that these flags, as spelled, are from: KServe's if one of them is KServe's alone, or has the
    /// underscore of its spelling.
    pub(crate) fn of_flags(mut flags: impl Iterator<Item = String>) -> Self {
        let of_kserve = |spelled: String| {
            let name = spelled.trim_start_matches("--");
            kserve::SPELLED.contains(&name) || find_in(kserve::FLAGS, &name.replace('_', "-")).is_some()
        };
        if flags.any(of_kserve) { List::Kserve } else { List::Own }
    }

    /// The list that only another program's command line has this flag in.
    pub(crate) fn knows(name: &str) -> Option<Self> {
        find_in(triton::FLAGS, name).map(|_| List::Triton)
    }

    /// The name of the program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            List::Own => "tensorgate",
            List::Kserve => kserve::PROGRAM,
            List::Triton => triton::PROGRAM,
        }
    }

    /// Flags that this list has besides ours.
    #[must_use]
    pub fn flags(self) -> &'static [Foreign] {
        match self {
            List::Own => &[],
            List::Kserve => kserve::FLAGS,
            List::Triton => triton::FLAGS,
        }
    }

    /// The flag of this name, spelled with dashes.
    pub(crate) fn find(self, name: &str) -> Option<&'static Foreign> {
        find_in(self.flags(), name)
    }
}

fn find_in(rows: &'static [Foreign], name: &str) -> Option<&'static Foreign> {
    rows.iter().find(|row| row.name.replace('_', "-") == name)
}

/// The variables of MLServer, which has no command line of its own in KServe.
#[must_use]
pub fn variables() -> &'static [Foreign] {
    mlserver::VARIABLES
}

/// What another program's variable means to us. Every `MLSERVER_` variable is known, if only as one without effect.
pub(crate) fn variable(list: List, name: &str) -> Option<&'static Foreign> {
    let known = || mlserver::VARIABLES.iter().find(|row| row.name == name);
    (list != List::Triton && name.starts_with(mlserver::PREFIX)).then(|| known().unwrap_or(&mlserver::OTHER))
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

    /// Is the word after it its value?
    pub(crate) fn takes_value(&self) -> bool {
        !matches!(self.takes, Takes::Nothing)
    }

    /// Would the other program take this value? A wrong one is an error even where it would have no effect.
    pub(crate) fn check(&self, value: &str) -> Result<(), String> {
        let (right, wanted) = match self.takes {
            Takes::Nothing | Takes::Text => (true, ""),
            Takes::Bool => (truth(value).is_some(), "is not true or false"),
            Takes::Integer => (value.parse::<i64>().is_ok(), "is not a whole number"),
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
        !matches!(self.takes, Takes::Bool) || truth(value) == Some(true)
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
