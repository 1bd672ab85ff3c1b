//! One field of the configuration, seen as text: how it is read, and how it is shown.
//!
//! A row of the flag table says where its value lies and of which kind it is; everything else follows from the kind.

use super::units;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// A place in the configuration, by kind of value.
pub enum Field<'a> {
    /// A listener's port; `off` for no listener.
    Port(&'a mut Option<u16>),
    /// An IP address.
    Address(&'a mut IpAddr),
    /// An IP address that may be left out.
    OptionalAddress(&'a mut Option<IpAddr>),
    /// A whole number.
    Count(&'a mut usize),
    /// A whole number that may be left out.
    OptionalCount(&'a mut Option<usize>),
    /// A size.
    Bytes(&'a mut u64),
    /// A span of time.
    Duration(&'a mut Duration),
    /// A span of time in which a plain number means seconds, for flags that end in `-secs`.
    Seconds(&'a mut Duration),
    /// A file or directory.
    Path(&'a mut Option<PathBuf>),
    /// Directories, one for each time the flag is given; an empty one takes all back.
    Paths(&'a mut Option<Vec<PathBuf>>),
    /// A URL of HTTP; without a scheme it is `http`.
    Url(&'a mut Option<String>),
    /// Any text.
    Text(&'a mut Option<String>),
    /// Names, one for each time the flag is given; an empty one takes all back.
    Names(&'a mut Option<Vec<String>>),
    /// One of a few words.
    Choice(&'a mut dyn Choice),
}

impl Field<'_> {
    /// Takes a value.
    ///
    /// # Errors
    /// The rest of a sentence that begins with the value.
    pub fn read(&mut self, text: &str) -> Result<(), String> {
        match self {
            Field::Port(port) => **port = read_port(text)?,
            Field::Address(address) => **address = read_address(text)?,
            Field::OptionalAddress(address) => **address = Some(read_address(text)?),
            Field::Count(count) => **count = read_count(text)?,
            Field::OptionalCount(count) => **count = Some(read_count(text)?),
            Field::Bytes(bytes) => **bytes = units::read_bytes(text)?,
            Field::Duration(duration) => **duration = units::read_duration(text)?,
            Field::Seconds(duration) => {
                **duration = text.parse().map(Duration::from_secs).or_else(|_| units::read_duration(text))?;
            }
            Field::Path(path) => **path = Some(PathBuf::from(filled(text)?)),
            Field::Paths(paths) => read_item(paths, text),
            Field::Url(url) => **url = Some(read_url(text)?),
            Field::Text(value) => **value = Some(filled(text)?.to_owned()),
            Field::Names(names) => read_item(names, text),
            Field::Choice(choice) => {
                if !choice.choose(text) {
                    return Err(format!("is not one of {}", choice.names().join(", ")));
                }
            }
        }
        Ok(())
    }

    /// A text that was not taken, as an error repeats it: what a URL holds before `@` or behind `?` may be a secret.
    #[must_use]
    pub fn shown(&self, text: &str) -> String {
        let Field::Url(_) = self else { return text.to_owned() };
        let (text, query) = text.split_once('?').map_or((text, ""), |(before, _)| (before, "?..."));
        let Some((before, after)) = text.rsplit_once('@') else { return format!("{text}{query}") };
        let scheme = before.find("://").map_or("", |end| &before[..end + 3]);
        format!("{scheme}...@{after}{query}")
    }

    /// The value as a TOML literal that a configuration file may hold; `None` when it is not set.
    #[must_use]
    pub fn toml(&self) -> Option<String> {
        let text = match self {
            Field::Port(Some(port)) => return Some(port.to_string()),
            Field::Port(None) => "off".to_owned(),
            Field::Address(address) => address.to_string(),
            Field::OptionalAddress(address) => address.map(|address| address.to_string())?,
            Field::Count(count) => return Some(count.to_string()),
            Field::OptionalCount(count) => return count.map(|count| count.to_string()),
            Field::Bytes(bytes) => units::show_bytes(**bytes),
            Field::Duration(duration) | Field::Seconds(duration) => units::show_duration(**duration),
            Field::Path(path) => path.as_ref().map(|path| path.display().to_string())?,
            Field::Paths(paths) => match paths.as_deref()? {
                [path] => path.display().to_string(),
                paths => return Some(list(paths.iter().map(|path| path.display().to_string()))),
            },
            Field::Text(text) | Field::Url(text) => (*text).clone()?,
            Field::Names(names) => return Some(list(names.as_ref()?.iter().cloned())),
            Field::Choice(choice) => choice.chosen()?.to_owned(),
        };
        Some(quote(&text))
    }

    /// May the flag be given several times, each adding to the others?
    #[must_use]
    pub fn repeats(&self) -> bool {
        matches!(self, Field::Names(_) | Field::Paths(_))
    }
}

fn list(texts: impl Iterator<Item = String>) -> String {
    format!("[{}]", texts.map(|text| quote(&text)).collect::<Vec<_>>().join(", "))
}

fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn read_port(text: &str) -> Result<Option<u16>, String> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "is not a port: a number from 0 to 65535 (0: any free one), or off".to_owned())
}

fn read_address(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| "is not an IP address, as 0.0.0.0, 127.0.0.1 or ::".to_owned())
}

fn read_count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "is not a whole number".to_owned())
}

fn filled(text: &str) -> Result<&str, String> {
    if text.trim().is_empty() { Err("is empty".to_owned()) } else { Ok(text) }
}

/// `collector:4317` is what people write, too.
fn read_url(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let parsed = url.parse::<http::Uri>().ok();
    let authority = parsed.as_ref().and_then(http::Uri::authority).filter(|authority| !authority.host().is_empty());
    match authority {
        Some(authority) if url.starts_with("http://") || url.starts_with("https://") => {
            if authority.as_str().contains('@') {
                return Err("has a user before its host: credentials are not supported, and would not be sent".into());
            }
            Ok(url)
        }
        _ => Err("is not a URL that begins with http:// or https://".to_owned()),
    }
}

fn read_item<T: for<'a> From<&'a str>>(items: &mut Option<Vec<T>>, text: &str) {
    let items = items.get_or_insert_default();
    if text.is_empty() { items.clear() } else { items.push(text.into()) }
}

/// A value that is one of a few words, whatever its type.
pub trait Choice {
    /// The words.
    fn names(&self) -> Vec<&'static str>;
    /// Takes the value of this word; false when there is none.
    fn choose(&mut self, name: &str) -> bool;
    /// The word of the present value.
    fn chosen(&self) -> Option<&'static str>;
}

/// A type whose values have names.
pub trait Named: Copy + PartialEq + 'static {
    /// Every value with its name.
    const ALL: &'static [(&'static str, Self)];
}

impl<T: Named> Choice for T {
    fn names(&self) -> Vec<&'static str> {
        T::ALL.iter().map(|(name, _)| *name).collect()
    }

    fn choose(&mut self, name: &str) -> bool {
        let found = T::ALL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.inspect(|(_, value)| *self = *value).is_some()
    }

    fn chosen(&self) -> Option<&'static str> {
        T::ALL.iter().find(|(_, value)| value == self).map(|(name, _)| *name)
    }
}

impl<T: Named> Choice for Option<T> {
    fn names(&self) -> Vec<&'static str> {
        T::ALL.iter().map(|(name, _)| *name).collect()
    }

    fn choose(&mut self, name: &str) -> bool {
        let found = T::ALL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.inspect(|(_, value)| *self = Some(*value)).is_some()
    }

    fn chosen(&self) -> Option<&'static str> {
        self.as_ref().and_then(Choice::chosen)
    }
}
