//! The fields that `docs/language.md` lists are those of the table.

use crate::ALL;
use protocol::openai::table::{Endpoint, Handling, fields};
use std::path::Path;

const DOCS: &str = "../docs/language.md";
const BEGIN: &str = "<!-- fields: written by protocol/tests/openai/docs.rs -->\n";
const END: &str = "<!-- fields: end -->\n";

fn called(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chats",
        Endpoint::Completion => "completions",
        Endpoint::Tokenize => "`/tokenize`",
        Endpoint::Detokenize => "`/detokenize`",
    }
}

/// Fields, where they are sent, and why they are handled so.
type Row = (Vec<&'static str>, Vec<&'static str>, &'static str);

/// A row for each reason and place.
fn table(reason: fn(Handling) -> Option<&'static str>) -> String {
    let mut named: Vec<(&'static str, Vec<&'static str>, &'static str)> = Vec::new();
    for endpoint in ALL {
        for (name, why) in fields(endpoint).filter_map(|(name, handling)| Some((name, reason(handling)?))) {
            match named.iter_mut().find(|(known, _, because)| *known == name && *because == why) {
                Some((_, places, _)) => places.push(called(endpoint)),
                None => named.push((name, vec![called(endpoint)], why)),
            }
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for (name, places, why) in named {
        match rows.iter_mut().find(|(_, at, because)| *at == places && *because == why) {
            Some((names, ..)) => names.push(name),
            None => rows.push((vec![name], places, why)),
        }
    }
    let line = |(names, places, why): &Row| {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        format!("| {} | {} | {} |\n", names.join(", "), places.join(", "), why.replace('|', "\\|"))
    };
    format!("| field | of | because |\n|---|---|---|\n{}", rows.iter().map(line).collect::<String>())
}

/// `UPDATE_DOCS=1 cargo test` writes them.
#[test]
fn the_documentation_lists_every_field_that_does_not_act() {
    let refused = table(|handling| match handling {
        Handling::Refused(why) => Some(why),
        _ => None,
    });
    let no_effect = table(|handling| match handling {
        Handling::NoEffect(why) => Some(why),
        _ => None,
    });
    let written = format!(
        "{BEGIN}Refused, unless they have the value that they have anyway:\n\n{refused}\n\
         Without effect:\n\n{no_effect}{END}"
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCS);
    let docs = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = docs.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let current = format!("{before}{written}{after}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, current).unwrap();
        return;
    }
    assert!(docs == current, "{} is not current: run the tests with UPDATE_DOCS=1", path.display());
}

/// What acts is named in the text.
#[test]
fn the_documentation_names_every_field_that_acts() {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCS)).unwrap();
    for endpoint in ALL {
        for (name, _) in fields(endpoint).filter(|(_, handling)| *handling == Handling::Honoured) {
            assert!(docs.contains(&format!("`{name}`")), "{name}");
        }
    }
}
