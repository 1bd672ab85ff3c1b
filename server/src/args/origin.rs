//! Everything that was said about the settings, by whom, and who is heard.
//!
//! ```text
//! flag > TENSORGATE_* variable > another program's variable > file > default of the imitated program > default
//! ```
//!
//! Within one of these the last word counts; a flag that may be repeated keeps all words of the highest.

use super::flags::{self, Flag, PREFIX};
use crate::config::Config;
use std::fmt;

/// Where a value came from. Later ones are heard first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Origin {
    /// Nobody said anything.
    #[default]
    Default,
    /// The default of the program whose command line this is.
    Program(&'static str),
    /// A configuration file.
    File(String),
    /// An environment variable.
    Env(String),
    /// The command line, as spelled there.
    Flag(String),
}

impl Origin {
    /// Another program's variable said it, which may not have been meant for this one.
    #[must_use]
    pub fn is_of_others(&self) -> bool {
        matches!(self, Origin::Env(name) if !name.starts_with(PREFIX))
    }

    /// Higher is heard first.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self {
            Origin::Default => 0,
            Origin::Program(_) => 1,
            Origin::File(_) => 2,
            Origin::Env(_) if self.is_of_others() => 3,
            Origin::Env(_) => 4,
            Origin::Flag(_) => 5,
        }
    }

    /// How an error names the place of the setting `name`.
    #[must_use]
    pub fn place(&self, name: &str) -> String {
        match self {
            Origin::Default => format!("the default of {name}"),
            Origin::Program(program) => format!("{program}'s default of {name}"),
            Origin::File(path) => format!("{name} in {path}"),
            Origin::Env(variable) => variable.clone(),
            Origin::Flag(spelled) => spelled.clone(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Program(program) => write!(f, "default of {program}"),
            Origin::File(path) => write!(f, "file {path}"),
            Origin::Env(name) => write!(f, "env {name}"),
            Origin::Flag(spelled) => write!(f, "flag {spelled}"),
        }
    }
}

/// What the user said, before anything is made of it.
#[derive(Clone, Debug, Default)]
pub struct Args {
    said: Vec<Said>,
}

#[derive(Clone, Debug)]
struct Said {
    flag: &'static Flag,
    text: String,
    origin: Origin,
}

impl Args {
    /// Notes a value.
    ///
    /// # Errors
    /// A whole sentence: where the value was given, what it is, and what would be right. A wrong value is an error
    /// even where another one is heard before it.
    pub fn say(&mut self, flag: &'static Flag, text: &str, origin: Origin) -> Result<(), String> {
        let mut config = Config::blank();
        let mut field = flag.field(&mut config);
        if let Err(reason) = field.read(text) {
            return Err(format!("{}: `{}` {reason}", origin.place(flag.name), field.shown(text)));
        }
        self.said.push(Said { flag, text: text.to_owned(), origin });
        Ok(())
    }

    /// Whose word counts for this flag, and the words: one, or any number for a flag that may be repeated.
    #[must_use]
    pub fn heard(&self, flag: &Flag) -> (Origin, Vec<&str>) {
        let about = || self.said.iter().filter(|said| said.flag.name == flag.name);
        let Some(last) = about().max_by_key(|said| said.origin.rank()) else {
            let default = if flag.default.is_empty() { vec![] } else { vec![flag.default] };
            return (Origin::Default, default);
        };
        let words = match flag.field(&mut Config::blank()).repeats() {
            true => about().filter(|said| said.origin.rank() == last.origin.rank()).map(|said| &*said.text).collect(),
            false => vec![&*last.text],
        };
        (last.origin.clone(), words)
    }

    /// The word that counts for the flag of this name, and who said it.
    pub(crate) fn word(&self, name: &str) -> (Origin, Option<&str>) {
        flags::find(name).map_or((Origin::Default, None), |flag| {
            let (origin, words) = self.heard(flag);
            (origin, words.last().copied())
        })
    }

    /// Takes back everything that was said about the flag of this name.
    pub(crate) fn forget(&mut self, name: &str) {
        self.said.retain(|said| said.flag.name != name);
    }
}
