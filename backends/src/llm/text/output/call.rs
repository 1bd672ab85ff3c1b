//! One call, written as a JSON object, read character by character: its name as soon as it is there, its arguments as they
//! come. Not a validator of JSON: what the model wrote as arguments is what is told.

use std::sync::Arc;

/// Reads `{"name": "f", "arguments": {...}}`; `parameters` is another word for arguments.
#[derive(Clone, Debug, Default)]
pub(super) struct CallObject {
    at: At,
    /// Brackets that are open in the value.
    depth: u32,
    /// Inside a string?
    string: bool,
    /// After a backslash?
    escape: bool,
    member: Member,
    key: String,
    /// Of a member that is read as a whole.
    value: String,
    whole: bool,
    name: Option<String>,
    /// Has the name been taken?
    told: bool,
    /// What has come of the arguments, and was not taken.
    arguments: String,
    /// Were there arguments?
    argued: bool,
    /// Nothing but arguments is expected.
    bare: bool,
    /// Calls of other functions are none, nor are objects that begin with other members.
    known: Option<Arc<[String]>>,
    /// All text, until the name was taken.
    raw: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Open,
    Key,
    InKey,
    Colon,
    Value,
    Inside,
    After,
    Done,
    Broken,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    #[default]
    Other,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    More,
    Done,
    /// It is no call.
    Broken,
}

impl CallObject {
    /// `known` says what else is no call.
    pub(super) fn new(known: Option<Arc<[String]>>) -> Self {
        CallObject { known, ..CallObject::default() }
    }

    /// The arguments of a function that was named before.
    pub(super) fn arguments_of(name: String) -> Self {
        let at = At::Value;
        CallObject { at, member: Member::Arguments, name: Some(name), bare: true, ..CallObject::default() }
    }

    /// The name, once, when it is there.
    pub(super) fn take_name(&mut self) -> Option<String> {
        let name = self.name.clone().filter(|_| !self.told)?;
        (self.told, self.raw) = (true, String::new());
        Some(name)
    }

    /// What came of the arguments since it was asked last; nothing before the name.
    pub(super) fn take_arguments(&mut self) -> String {
        if self.told { std::mem::take(&mut self.arguments) } else { String::new() }
    }

    /// Was the name taken?
    pub(super) fn is_told(&self) -> bool {
        self.told
    }

    /// Did it have arguments?
    pub(super) fn argued(&self) -> bool {
        self.argued
    }

    /// Are its arguments JSON? It is asked before they are taken, and when they are complete.
    pub(super) fn is_sound(&self) -> bool {
        !self.argued || is_json(&self.arguments)
    }

    /// All text so far of what turns out to be no call.
    pub(super) fn take_raw(&mut self) -> String {
        std::mem::take(&mut self.raw)
    }

    pub(super) fn push(&mut self, c: char) -> Step {
        if !self.told {
            self.raw.push(c);
        }
        self.at = self.next(c);
        match self.at {
            At::Done if self.name.is_some() => Step::Done,
            At::Done | At::Broken => Step::Broken,
            _ => Step::More,
        }
    }

    fn next(&mut self, c: char) -> At {
        match self.at {
            At::InKey => self.key(c),
            At::Inside => self.inside(c),
            At::Done | At::Broken => self.at,
            at if c.is_ascii_whitespace() => at,
            At::Open if c == '{' => At::Key,
            At::Key if c == '"' => {
                self.key.clear();
                At::InKey
            }
            At::Key | At::After if c == '}' => At::Done,
            At::After if c == ',' => At::Key,
            At::Colon if c == ':' => At::Value,
            At::Value => self.value(c),
            At::Open | At::Key | At::Colon | At::After => At::Broken,
        }
    }

    fn key(&mut self, c: char) -> At {
        if c != '"' {
            self.key.push(c);
            return At::InKey;
        }
        self.member = match self.key.as_str() {
            "name" => Member::Name,
            "arguments" | "parameters" => Member::Arguments,
            _ => Member::Other,
        };
        let strange = self.member == Member::Other && !matches!(self.key.as_str(), "type" | "id");
        if strange && self.known.is_some() && self.name.is_none() { At::Broken } else { At::Colon }
    }

    fn value(&mut self, c: char) -> At {
        self.whole = self.member != Member::Arguments || c != '{';
        (self.depth, self.string, self.escape) = (0, false, false);
        self.value.clear();
        self.argued |= self.member == Member::Arguments;
        self.inside(c)
    }

    fn inside(&mut self, c: char) -> At {
        if self.string {
            self.keep(c);
            if self.escape {
                self.escape = false;
            } else if c == '\\' {
                self.escape = true;
            } else if c == '"' {
                self.string = false;
                return self.ended_if(self.depth == 0);
            }
            return At::Inside;
        }
        // A number or a word ends where something else begins.
        if self.depth == 0 && (matches!(c, ',' | '}' | ']') || c.is_ascii_whitespace()) {
            self.at = self.ended_if(true);
            return if self.at == At::Done || self.at == At::Broken { self.at } else { self.next(c) };
        }
        self.keep(c);
        match c {
            '"' => self.string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth -= 1;
                return self.ended_if(self.depth == 0);
            }
            _ => {}
        }
        At::Inside
    }

    fn keep(&mut self, c: char) {
        let place = match (self.member, self.whole) {
            (Member::Arguments, false) => &mut self.arguments,
            (Member::Arguments | Member::Name, true) => &mut self.value,
            _ => return,
        };
        place.push(c);
    }

    /// The value has ended, if `over`.
    fn ended_if(&mut self, over: bool) -> At {
        if !over {
            return At::Inside;
        }
        let text = serde_json::from_str::<String>(&self.value);
        match (self.member, text) {
            (Member::Name, Ok(name)) if !name.is_empty() => {
                let known = self.known.as_ref().is_none_or(|known| known.contains(&name));
                self.name = Some(name);
                if !known {
                    self.name = None;
                    return At::Broken;
                }
            }
            (Member::Name, _) => return At::Broken,
            // Some models write the JSON of arguments as a string, and no arguments as null or as an empty one.
            (Member::Arguments, Ok(json)) if self.whole && json.trim().is_empty() => self.arguments.push_str("{}"),
            (Member::Arguments, Ok(json)) if self.whole && is_json(&json) => self.arguments.push_str(&json),
            (Member::Arguments, _) if self.whole && self.value == "null" => self.arguments.push_str("{}"),
            (Member::Arguments, _) if self.whole => self.arguments.push_str(&self.value),
            _ => {}
        }
        if self.bare { At::Done } else { At::After }
    }
}

/// Is this text JSON?
pub(super) fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}
