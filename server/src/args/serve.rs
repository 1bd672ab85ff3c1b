//! The command line of `serve`, and the environment: ours, or that of a server we stand in for.

use super::error::distance;
use super::flags::{self, Flag, PREFIX};
use super::line::{self, Word, Words, following};
use super::origin::{Args, Origin};
use super::{COMMANDS, Environment, UsageError, unknown_flag};
use crate::dropin::{self, Becomes, Foreign, Found, List, Rewrite, Translation};

/// Reads flags and environment into what was said, and warnings.
///
/// # Errors
/// Everything that is wrong with either.
pub(super) fn read(
    program: &str,
    mut words: Words,
    environment: &Environment,
) -> Result<(Args, Vec<String>), UsageError> {
    let list = choose_list(program, &mut words)?;
    let tolerant = list != List::Own || names_one_model(&words);
    read_as(Reader { list, tolerant, ..Reader::default() }, words, environment)
}

/// The same for a command of ours alone, where a flag that nobody knows is an error.
pub(super) fn read_strictly(words: Words, environment: &Environment) -> Result<(Args, Vec<String>), UsageError> {
    read_as(Reader::default(), words, environment)
}

fn read_as(mut reader: Reader, words: Words, environment: &Environment) -> Result<(Args, Vec<String>), UsageError> {
    reader.read_words(words);
    reader.read_environment(environment);
    reader.finish()
}

/// Takes `serve`, or the name of another server, off the front.
fn choose_list(program: &str, words: &mut Words) -> Result<List, UsageError> {
    let mut named = List::of_program(program);
    words.next_if(|word| matches!(word, Word::Plain(text) if named.is_none() && text == "serve"));
    if named.is_none() {
        named = match words.peek() {
            Some(Word::Plain(first)) => List::of_program(first),
            _ => None,
        };
        words.next_if(|_| named.is_some());
    }
    match named {
        Some(List::Vllm) => take_command_of_vllm(words).map(|()| List::Vllm),
        Some(list) => Ok(list),
        None => Ok(List::of_flags(words.clone().filter_map(|word| match word {
            Word::Flag { spelled, .. } => Some(spelled),
            Word::Plain(_) => None,
        }))),
    }
}

/// `serve`; without a command the line is that of `python -m vllm.entrypoints.openai.api_server`.
fn take_command_of_vllm(words: &mut Words) -> Result<(), UsageError> {
    match following(words).as_deref() {
        Some("serve") | None => Ok(()),
        Some(other) => Err(format!("vllm {other}: of vllm's commands `vllm serve MODEL` alone is understood").into()),
    }
}

/// The name that a flag has in the tables of a list, and its value. vLLM has short flags (`-tp 2`), one that its value
/// follows at once (`-O3`), and flags for parts of what another takes (`--compilation-config.mode=3`).
fn named(list: List, spelled: &str, value: Option<String>) -> (String, Option<String>) {
    if list != List::Vllm {
        return (line::name(spelled), value);
    }
    let whole = spelled.split('.').next().unwrap_or(spelled);
    let (whole, value) = match whole.strip_prefix("-O") {
        Some(level) if !level.is_empty() => ("-O", value.or_else(|| Some(level.to_owned()))),
        _ => (whole, value),
    };
    (list.long(whole).map_or_else(|| line::name(whole), str::to_owned), value)
}

/// A line with the flags of KServe's servers that are ours as well: it may be KServe's with dashes for underscores,
/// which its parser takes, too.
fn names_one_model(words: &Words) -> bool {
    let of_both = |word| match word {
        Word::Flag { spelled, .. } => ["model-dir", "model-name"].contains(&line::name(&spelled).as_str()),
        Word::Plain(_) => false,
    };
    words.clone().any(of_both)
}

/// Did Kubernetes set it? A Service named `mlserver-http` puts `MLSERVER_HTTP_PORT=tcp://10.0.0.1:80` into every pod
/// beside it, and `MLSERVER_HTTP_PORT_80_TCP` with the same value; one named `tensorgate-http` does so to ours.
fn is_of_a_service(variable: &str, value: &str) -> bool {
    let of_a_port = variable.ends_with("_PORT") || variable.contains("_PORT_");
    of_a_port && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

#[derive(Default)]
struct Reader {
    list: List,
    /// What nobody knows is named in a warning, and no error.
    tolerant: bool,
    args: Args,
    translation: Translation,
    directory: Option<String>,
    warnings: Vec<String>,
    problems: Vec<String>,
}

impl Reader {
    fn read_words(&mut self, mut words: Words) {
        while let Some(word) = words.next() {
            match word {
                Word::Plain(text) => self.read_directory(text),
                Word::Flag { spelled, value } => {
                    let (name, value) = named(self.list, &spelled, value);
                    if let Some(found) = self.list.find(&name) {
                        self.read_foreign(found, &spelled, value, &mut words);
                    } else if let Some(flag) = flags::find(&name).filter(|_| !name.is_empty()) {
                        self.read_own(flag, &spelled, value, &mut words);
                    } else {
                        // What follows is most likely its value, and surely no directory.
                        if value.is_none() {
                            following(&mut words);
                        }
                        self.read_unknown(spelled);
                    }
                }
            }
        }
    }

    fn read_directory(&mut self, text: String) {
        // What vLLM is given is one model.
        let (name, what, further) = match self.list {
            List::Vllm => ("model-dir", "MODEL", "is the model already, and there is one"),
            _ => ("model-repository", "DIR", "is the directory already; say --model-repository for further ones"),
        };
        if COMMANDS.contains(&text.as_str()) {
            self.problems.push(format!("{text}: a command comes first; a directory of that name is ./{text}"));
        } else if let Some(before) = &self.directory {
            self.problems.push(format!("{text}: {before} {further}"));
        } else {
            let flag = flags::find(name);
            flag.into_iter().for_each(|flag| self.say(flag, &text, Origin::Flag(what.to_owned())));
            self.directory = Some(text);
        }
    }

    fn read_own(&mut self, flag: &'static Flag, spelled: &str, value: Option<String>, words: &mut Words) {
        match value.or_else(|| following(words)) {
            Some(value) => self.say(flag, &value, Origin::Flag(spelled.to_owned())),
            None => self.problems.push(format!("{spelled}: needs a value, {spelled} {}", flag.value)),
        }
    }

    fn read_foreign(&mut self, found: Found, spelled: &str, value: Option<String>, words: &mut Words) {
        let (row, attached) = (found.row, value.is_some());
        let value = match row.takes_value() {
            true => value.or_else(|| following(words)),
            false => Some(row.implied(value, found.negated)),
        };
        let Some(value) = value else {
            self.problems.push(format!("{spelled}: needs a value"));
            return;
        };
        let mut others = Vec::new();
        if row.takes_several() && !attached {
            others.extend(std::iter::from_fn(|| following(words)));
        }
        let origin = Origin::Flag(spelled.to_owned());
        if let Becomes::Names(first, further) = row.becomes {
            self.read_names([first, further], &value, &others, &origin);
        } else {
            self.translate(row, &value, origin);
        }
    }

    /// Names: the first is for one flag of ours, and the others, of which only these count, are for another.
    fn read_names(&mut self, ours: [&str; 2], first: &str, others: &[String], origin: &Origin) {
        let [one, further] = ours.map(flags::find);
        let mut say = |flag: Option<&'static Flag>, text: &str| {
            flag.into_iter().for_each(|flag| self.say(flag, text, origin.clone()));
        };
        say(one, first);
        // An empty name takes back what was said before.
        say(further, "");
        others.iter().filter(|other| !other.is_empty() && *other != first).for_each(|other| say(further, other));
    }

    fn read_unknown(&mut self, spelled: String) {
        // One of vLLM's in a line that may be KServe's was meant for huggingfaceserver.
        let meant = |list: &List| self.list == List::Own && !(self.tolerant && *list == List::Vllm);
        let other = List::knows(&line::name(&spelled)).filter(meant);
        if let Some(program) = other.map(List::program) {
            self.problems
                .push(format!("{spelled}: a flag of {program}; put the word {program} first to use its flags"));
        } else if self.tolerant {
            self.translation.unknown.push(spelled);
        } else {
            let known = flags::all().map(|flag| flag.name);
            self.problems.push(unknown_flag(&spelled, known));
        }
    }

    fn read_environment(&mut self, environment: &Environment) {
        for (variable, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
            if is_of_a_service(variable, value) {
                if self.reads(variable) {
                    let why = "was set by Kubernetes for a Service of that name and is not read";
                    self.warnings.push(format!("{variable} {why}"));
                }
                continue;
            }
            if let Some(name) = variable.strip_prefix(PREFIX) {
                self.read_variable(name, variable, value);
            }
            for flag in flags::all().filter(|flag| flag.environment.contains(&variable.as_str())) {
                // Others set it, perhaps for the whole cluster: a value that means nothing to us is no reason to stay
                // away.
                if let Err(problem) = self.args.say(flag, value, Origin::Env(variable.clone())) {
                    self.warnings.push(format!("{problem}; it is not read"));
                }
            }
            if let Some(row) = dropin::variable(self.list, variable) {
                self.translate(row, value, Origin::Env(variable.clone()));
            }
        }
    }

    /// Is it one of those that have an effect, ours or another program's?
    fn reads(&self, variable: &str) -> bool {
        let ours = flags::all().any(|flag| flag.variable() == variable || flag.environment.contains(&variable));
        ours || dropin::variable(self.list, variable).is_some_and(|row| row.name == variable)
    }

    fn read_variable(&mut self, name: &str, variable: &str, value: &str) {
        let name = name.to_ascii_lowercase().replace('_', "-");
        let Some(flag) = flags::find(&name) else {
            // Scripts and others set variables of this prefix too: only a slip of the finger is worth a word.
            if let Some(flag) = flags::all().find(|flag| distance(&name, flag.name) <= 2) {
                self.warnings.push(format!("{variable} is not read; did you mean {}?", flag.variable()));
            }
            return;
        };
        let origin = Origin::Env(variable.to_owned());
        if flag.field(&mut crate::config::Config::blank()).repeats() {
            value.split(',').for_each(|part| self.say(flag, part.trim(), origin.clone()));
        } else {
            self.say(flag, value, origin);
        }
    }

    /// Says in our words what another program's flag or variable says.
    fn translate(&mut self, row: &'static Foreign, value: &str, origin: Origin) {
        let place = origin.place(row.name);
        if let Err(reason) = row.check(value) {
            self.problems.push(format!("{place}: `{value}` {reason}"));
            return;
        }
        let said = match &row.becomes {
            Becomes::Nothing => return self.translation.idle.push(place),
            Becomes::Always => {
                if !row.is_on(value) {
                    self.translation.idle.push(place);
                }
                return;
            }
            Becomes::RefusedUnless(so_anyway, reason) => {
                if !so_anyway(value) {
                    self.problems.push(format!("{place}: `{value}`: {reason}"));
                }
                return;
            }
            Becomes::Refused(reason) => {
                if row.is_on(value) {
                    self.problems.push(format!("{place}: {reason}"));
                }
                return;
            }
            Becomes::Listener(port) => {
                self.translation.listeners.insert(port, (dropin::truth(value) != Some(false), place));
                return;
            }
            Becomes::Own(name) | Becomes::Names(name, _) => Some((*name, value.to_owned())),
            Becomes::Rewritten(name, rewrite) => match rewrite(value) {
                Rewrite::To(value) => Some((*name, value)),
                Rewrite::Same => None,
                Rewrite::Lost => return self.translation.idle.push(place),
            },
        };
        if let Some((name, value)) = said
            && let Some(flag) = flags::find(name)
        {
            self.say(flag, &value, origin);
        }
    }

    fn say(&mut self, flag: &'static Flag, text: &str, origin: Origin) {
        if let Err(problem) = self.args.say(flag, text, origin) {
            self.problems.push(problem);
        }
    }

    fn finish(mut self) -> Result<(Args, Vec<String>), UsageError> {
        self.problems.extend(self.translation.finish(self.list, &mut self.args).err());
        self.warnings.extend(self.translation.warning());
        UsageError::check(self.problems).map(|()| (self.args, self.warnings))
    }
}
