//! Runs the text scripts of `traces/`: commands to an engine over the scripted executor, and the exact plans and
//! events that follow. `BLESS=1` writes what comes out into the files.
//!
//! A script is blocks of commands, a line `---`, and what they give, up to an empty line.
//!
//! | command | |
//! |---|---|
//! | `engine blocks= size= budget= chunk= running= waiting= overlap=ahead\|instep cache=on\|off end= ageing_ms=` | begins anew; all are optional |
//! | `admit NAME prompt= max= seed= copies= priority= deadline_ms= stop= cache=off` | equal seeds: equal prompts |
//! | `step [TIMES]` | one step, or some |
//! | `cancel NAME [COPY]` | the client left |
//! | `fail launch\|sample\|collect` | the next one fails |
//! | `sleep MS` | time passes |
//! | `state` | the counters |

use crate::common::{Setup, World, draft, limits, sampling};
use backends::llm::engine::Overlap;
use backends::llm::plan::{Chunk, Input, Plan};
use backends::llm::request::{Draft, Request};
use backends::llm::sampling::Parameters;
use backends::llm::scripted::Phase;
use backends::llm::sequence::{CancelReason, Event, GroupId, SequenceId};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// `name=value` words of a command.
struct Words<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Words<'a> {
    fn of(words: &[&'a str]) -> Self {
        Words(
            words.iter().map(|word| word.split_once('=').unwrap_or_else(|| panic!("'{word}' has no value"))).collect(),
        )
    }

    fn take<T: FromStr>(&mut self, name: &str, otherwise: T) -> T {
        self.maybe(name).unwrap_or(otherwise)
    }

    fn maybe<T: FromStr>(&mut self, name: &str) -> Option<T> {
        let text = self.0.remove(name)?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    }

    fn done(self) {
        assert!(self.0.is_empty(), "not known: {:?}", self.0);
    }
}

struct Script {
    world: World,
    names: BTreeMap<GroupId, String>,
    out: String,
}

impl Script {
    fn new() -> Self {
        Script { world: Setup::default().world(), names: BTreeMap::new(), out: String::new() }
    }

    fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["engine", ref rest @ ..] => self.engine(Words::of(rest)),
            ["admit", name, ref rest @ ..] => self.admit(name, Words::of(rest)),
            ["step"] => self.step(),
            ["step", times] => (0..times.parse().unwrap()).for_each(|_| self.step()),
            ["cancel", name] => self.cancel(name, "0"),
            ["cancel", name, copy] => self.cancel(name, copy),
            ["fail", "launch"] => self.world.recorder.fail(Phase::Launch),
            ["fail", "sample"] => self.world.recorder.fail(Phase::Sample),
            ["fail", "collect"] => self.world.recorder.fail(Phase::Collect),
            ["sleep", ms] => self.world.now += Duration::from_millis(ms.parse().unwrap()),
            ["state"] => self.state(),
            _ => panic!("not a command: {line}"),
        }
        self.world.engine.scheduler().check().unwrap();
    }

    fn engine(&mut self, mut words: Words<'_>) {
        let mut setup = Setup::default();
        setup.blocks = words.take("blocks", setup.blocks);
        setup.block_size = words.take("size", setup.block_size);
        let overlap: String = words.take("overlap", "ahead".into());
        setup.overlap = if overlap == "instep" { Overlap::InStep } else { Overlap::Ahead };
        let settings = &mut setup.settings;
        settings.token_budget = words.take("budget", settings.token_budget);
        settings.chunk_tokens = words.take("chunk", settings.token_budget);
        settings.max_running = words.take("running", settings.max_running);
        settings.max_waiting = words.take("waiting", settings.max_waiting);
        settings.watermark = words.take("watermark", settings.watermark);
        settings.prefix_cache = words.take::<String>("cache", "on".into()) == "on";
        settings.end_tokens = words.maybe::<u32>("end").into_iter().collect();
        settings.ageing = Duration::from_millis(words.take("ageing_ms", 1000));
        words.done();
        // Tokens that a script can foretell: the length of what came before.
        self.world = setup.world_with(Box::new(|_, history| history.len() as u32));
        self.names.clear();
    }

    fn admit(&mut self, name: &str, mut words: Words<'_>) {
        let seed = words.take("seed", self.names.len() as u32 + 1);
        let stop_tokens = words.maybe("stop").into_iter().collect();
        let draft = Draft {
            copies: words.take("copies", 1),
            priority: words.take("priority", 0),
            deadline: words.maybe("deadline_ms").map(|ms| self.world.now + Duration::from_millis(ms)),
            cache: words.take::<String>("cache", "on".into()) == "on",
            sampling: sampling(Parameters { stop_tokens, ..Parameters::default() }),
            ..draft(seed, words.take("prompt", 10), words.take("max", 4))
        };
        words.done();
        let admitted =
            Request::new(draft, &limits()).map_err(|error| format!("invalid: {error}")).and_then(|request| {
                self.world.engine.admit(self.world.now, request).map_err(|error| format!("rejected: {error}"))
            });
        match admitted {
            Ok(group) => drop(self.names.insert(group, name.into())),
            Err(error) => writeln!(self.out, "{name} {error}").unwrap(),
        }
    }

    fn cancel(&mut self, name: &str, copy: &str) {
        let group = *self.names.iter().find(|(_, known)| *known == name).unwrap().0;
        let cancelled = self.world.engine.cancel(group.copy(copy.parse().unwrap()), CancelReason::ClientGone);
        if !cancelled {
            writeln!(self.out, "{name} had ended").unwrap();
        }
    }

    fn state(&mut self) {
        let c = self.world.engine.counters();
        let idle = if self.world.engine.idle() { ", idle" } else { "" };
        writeln!(
            self.out,
            "waiting {} ({} tokens), running {}, blocks {}/{}, preempted {}, rows {}, tokens {}, found {}/{}, evicted \
             {}{idle}",
            c.waiting,
            c.waiting_tokens,
            c.running,
            c.blocks_used,
            c.blocks_total,
            c.preemptions,
            c.rows,
            c.tokens,
            c.prefix_hits,
            c.prefix_queries,
            c.evictions
        )
        .unwrap();
    }

    fn step(&mut self) {
        let events = self.world.step();
        match self.world.recorder.plans().pop() {
            Some(plan) => self.plan(&plan),
            None => self.out.push_str("no plan\n"),
        }
        for event in events {
            let text = self.event(&event);
            writeln!(self.out, "    {text}").unwrap();
        }
    }

    fn plan(&mut self, plan: &Plan) {
        write!(self.out, "plan {}: {} rows", plan.step, plan.rows()).unwrap();
        if !plan.stale.is_empty() {
            write!(self.out, ", stale {}", ranges(&plan.stale)).unwrap();
        }
        for &id in &plan.preempted {
            let name = self.name(id);
            write!(self.out, ", preempts {name}").unwrap();
        }
        self.out.push('\n');
        for chunk in &plan.chunks {
            let text = self.chunk(chunk);
            writeln!(self.out, "  {text}").unwrap();
        }
    }

    fn chunk(&self, chunk: &Chunk) -> String {
        let Chunk { sequence, slot, start, length, .. } = chunk;
        let input = match &chunk.input {
            Input::Known(_) => "known",
            Input::Last => "last",
        };
        let fill = match &chunk.fill {
            Some(fill) => format!(" fill {}+{}", fill.prompt.len(), fill.output.len()),
            None => String::new(),
        };
        let sample = if chunk.sample { " sample" } else { "" };
        let (name, end, blocks) = (self.name(*sequence), start + length, ranges(&chunk.blocks));
        format!("{name} slot {slot} [{start}..{end}) {input} blocks {blocks}{sample}{fill}")
    }

    fn event(&self, event: &Event) -> String {
        let name = self.name(event.sequence());
        match event {
            Event::Started { cached_tokens, .. } => format!("{name} started, {cached_tokens} cached"),
            Event::PromptLogprobs { first, logprobs, .. } => format!("{name} prompt {first}+{}", logprobs.len()),
            Event::Token { token, .. } => format!("{name} token {token}"),
            Event::Finished { reason, .. } => format!("{name} finished {reason:?}"),
            Event::Cancelled { reason, .. } => format!("{name} cancelled {reason:?}"),
            Event::Failed { reason, .. } => format!("{name} failed: {reason}"),
        }
    }

    fn name(&self, id: SequenceId) -> String {
        match (self.names.get(&id.group), id.copy) {
            (Some(name), 0) => name.clone(),
            (Some(name), copy) => format!("{name}.{copy}"),
            (None, _) => id.to_string(),
        }
    }
}

/// `0-3 7 5-6`.
fn ranges(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let texts = runs.map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    texts.collect::<Vec<_>>().join(" ")
}

/// The script with what it gives now.
fn run(text: &str) -> String {
    let mut script = Script::new();
    let mut written = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        written.push_str(line);
        written.push('\n');
        match line.trim() {
            "---" => {
                lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
                written.push_str(&std::mem::take(&mut script.out));
                written.push('\n');
            }
            command if command.is_empty() || command.starts_with('#') => {}
            command => script.command(command),
        }
    }
    assert_eq!(script.out, "", "the last block has no ---");
    written.truncate(written.trim_end().len());
    written.push('\n');
    written
}

#[test]
fn scripts_give_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm/traces");
    let mut differing = Vec::new();
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "the scripts are not there");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let now = run(&text);
        if now == text {
            continue;
        }
        if std::env::var_os("BLESS").is_some() {
            fs::write(&file, now).unwrap();
        } else {
            let first = text.lines().zip(now.lines()).find(|(old, new)| old != new);
            differing.push(format!("{}: {first:?}", file.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
