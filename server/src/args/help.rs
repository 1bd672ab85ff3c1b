//! `--help`, `--version`, and `docs/flags.md`: the flag table as text.

use super::flags::{Flag, GROUPS, Group};
use crate::config::Config;
use crate::dropin::{Becomes, Foreign, List, SECTIONS};
use std::fmt::Write;

/// The widest line of help.
const WIDTH: usize = 100;
/// Where descriptions begin.
const INDENT: usize = 33;

/// A space at which no line is broken.
const UNBROKEN: char = '\u{a0}';

const USAGE: &str = "\
tensorgate: a model server for KServe's protocols v1 and v2, over HTTP and gRPC

Usage:
  tensorgate [serve] [DIR] [FLAGS]            serve the models in DIR, or one model with --model-dir
  tensorgate run DIR [--prompt TEXT]          talk to a language model in the terminal
  tensorgate config show [--origin] [FLAGS]   print the settings that serve would run with
  tensorgate validate DIR                     look whether DIR can be served
  tensorgate manifests servingruntime         print a KServe ClusterServingRuntime
  tensorgate version | help
  tensorgate tritonserver [ITS FLAGS]         understand Triton's flags; so does a link named tritonserver
  tensorgate vllm serve MODEL [ITS FLAGS]     understand vLLM's flags; so does a link named vllm

The flags of KServe's Python servers (--model_name, --model_dir, --http_port, ...) are understood as they are.
Sizes: 64MiB, 1GB, 512k. Durations: 30s, 500ms, 2m, 1h, 100us.
Each flag is also an environment variable (--http-port: TENSORGATE_HTTP_PORT) and a key of the --config file.
A flag is heard before the environment, that before the file; of a flag given twice, the last.
";

const RUN: &str = "\
tensorgate run DIR [--prompt TEXT] [--system TEXT] [--max-tokens N] [--temperature T] [FLAGS]

Loads the language model in DIR and talks to it in the terminal, as the answer comes.

  --prompt TEXT      ask this, write the answer, and end; without it, standard input asks
  --system TEXT      what the model is told before all else
  --max-tokens N     tokens of an answer, at most
  --temperature T    how freely tokens are chosen: 0 takes the likeliest

FLAGS are those of `tensorgate serve`; of use here are those of language models and --nthread.
";

const CONFIG: &str = "\
tensorgate config show [--origin] [FLAGS]

Prints the settings that `tensorgate serve FLAGS` would run with, as a TOML file that --config can read.

  --origin    beside each setting, who said it: flag, env, file or default
";

const VALIDATE: &str = "\
tensorgate validate DIR

Looks whether DIR, a model or a repository of models, can be served, and says what is wrong if not.
";

const MANIFESTS: &str = "\
tensorgate manifests servingruntime [--format FORMAT] [--image IMAGE]

Prints a ClusterServingRuntime with which KServe deploys models on tensorgate.

  --format FORMAT    xgboost, lightgbm, onnx, triton, huggingface or vllm only; otherwise all
  --image IMAGE      the container image
";

/// What `--version` prints.
#[must_use]
pub fn version() -> String {
    format!("tensorgate {}", env!("CARGO_PKG_VERSION"))
}

/// What `--version` prints in place of another program: first who answers, and last, where those look for it who want to
/// know which flags there are, that program's release.
pub(super) fn version_of(list: List) -> Option<String> {
    let release = list.release()?;
    Some(format!("{}, which understands the flags of {} {release}\n", version(), list.program()))
}

/// What `--help` prints for a command, or for the program that a command line imitates.
#[must_use]
pub(super) fn page(topic: &str) -> String {
    match topic {
        "run" => RUN.to_owned(),
        "config" => CONFIG.to_owned(),
        "validate" => VALIDATE.to_owned(),
        "manifests" => MANIFESTS.to_owned(),
        _ => shown().fold(USAGE.to_owned(), |page, group| page + &section(group)),
    }
}

fn shown() -> impl Iterator<Item = &'static Group> {
    GROUPS.iter().filter(|group| !group.title.is_empty())
}

fn section(group: &Group) -> String {
    let mut text = format!("\n{}:\n", group.title);
    for flag in group.flags {
        let mut help = flag.help.to_owned();
        if !flag.default.is_empty() {
            let _ = write!(help, " [default:{UNBROKEN}{}]", flag.default);
        }
        let name = format!("  --{} {}", flag.name, flag.value);
        let mut lines = wrap(&help, WIDTH - INDENT).into_iter();
        let _ = writeln!(text, "{name:<width$}{}", lines.next().unwrap_or_default(), width = INDENT);
        lines.for_each(|line| {
            let _ = writeln!(text, "{:INDENT$}{line}", "");
        });
    }
    text.replace(UNBROKEN, " ")
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

const PREFACE: &str = "\
# Flags

Generated from the code; a test compares.

Every flag is also an environment variable and a key of the file that `--config` names (TOML or YAML; dashes or
underscores). Who is heard first: flag, `TENSORGATE_*` variable, another program's variable, file, default. Of a flag
given twice, the last counts; flags marked with * add up, and take a comma-separated list in their variable.
Sizes are written as `64MiB`, `1GB`, `512k` or bytes; durations as `30s`, `500ms`, `2m`, `1h`, `100us`.

`tensorgate config show --origin` prints what holds, and who said it.
";

/// The text of `docs/flags.md`.
#[must_use]
pub fn flags_markdown() -> String {
    let mut text = PREFACE.to_owned();
    for group in shown() {
        let _ = write!(text, "\n## {}\n\n| flag | default | environment | meaning |\n|---|---|---|---|\n", group.title);
        group.flags.iter().for_each(|flag| text.push_str(&row(flag)));
    }
    text.push_str("\n# Other servers' command lines\n\nFlags of ours work in each of them too. ");
    text.push_str("A flag that is in no list is named in a warning and ignored.\n");
    for (title, prefix, tables) in SECTIONS {
        let rows: Vec<&Foreign> = tables.iter().copied().flatten().collect();
        let _ = write!(text, "\n## {title}\n\n| there | here |\n|---|---|\n");
        rows.iter().for_each(|row| text.push_str(&foreign_row(prefix, row)));
        let lists = [
            ("Accepted without effect", listed(prefix, &rows, |becomes| matches!(becomes, Becomes::Nothing))),
            ("So in any case", listed(prefix, &rows, |becomes| matches!(becomes, Becomes::Always))),
        ];
        for (what, names) in lists.iter().filter(|(_, names)| !names.is_empty()) {
            let _ = write!(text, "\n{what}: {names}.\n");
        }
    }
    text
}

fn row(flag: &Flag) -> String {
    let mark = if flag.field(&mut Config::blank()).repeats() { " *" } else { "" };
    let default = if flag.default.is_empty() { String::new() } else { format!("`{}`", flag.default) };
    let variables = std::iter::once(flag.variable()).chain(flag.environment.iter().map(ToString::to_string));
    let variables = variables.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    format!("| `--{} {}`{mark} | {default} | {variables} | {} |\n", flag.name, flag.value, flag.help)
}

fn foreign_row(prefix: &str, row: &Foreign) -> String {
    let here = match row.becomes {
        Becomes::Nothing | Becomes::Always => return String::new(),
        Becomes::Own(name) | Becomes::Rewritten(name, _) => format!("`--{name}`"),
        Becomes::Names(name, further) => format!("`--{name}`, and `--{further}` for each further one"),
        Becomes::Listener(name) => format!("false: `--{name} off`"),
        Becomes::Refused(reason) => format!("refused: {reason}"),
        Becomes::RefusedUnless(_, reason) => format!("refused unless it is so anyway: {reason}"),
    };
    format!("| `{prefix}{}` | {here} |\n", row.name)
}

fn listed(prefix: &str, rows: &[&Foreign], wanted: fn(&Becomes) -> bool) -> String {
    let names = rows.iter().filter(|row| wanted(&row.becomes));
    names.map(|row| format!("`{prefix}{}`", row.name)).collect::<Vec<_>>().join(", ")
}
