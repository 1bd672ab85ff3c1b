//! What settings must hold together, and what follows from others.

use super::{Config, ControlMode, DEFAULT_NAME, Machine};
use crate::rest::Origins;
use std::net::SocketAddr;
use std::time::Duration;

/// Of the memory, what requests and answers may take where nobody says: one part of so many. They are not all that takes
/// memory, so that a small container gets no more than this either; but for the largest body, and bytes to spare: answers that
/// have just been taken do not refuse it.
const INFLIGHT_PART: u64 = 4;
const SPARE: u64 = 1 << 20;
/// More threads than any machine has: a number meant for something else.
const MOST_THREADS: usize = 4096;
/// Tokens and sequences that 32 bits count with room to spare.
const MOST_TOKENS: usize = 1 << 28;
/// The longest name of a model, in characters.
const LONGEST_NAME: usize = 256;

impl Config {
    /// A repository or one model: who is heard first decides, and the other is as if never said.
    pub(super) fn choose_models(&mut self, problems: &mut Vec<String>) {
        self.model_repository = self.model_repository.take().filter(|repositories| !repositories.is_empty());
        let (repository, directory) = (self.rank("model-repository"), self.rank("model-dir"));
        if self.model_repository.is_some() && self.model_dir.is_some() {
            if repository == directory {
                let (one, other) = (self.place("model-repository"), self.place("model-dir"));
                problems.push(format!(
                    "{one} and {other} cannot both be given: the first is a directory of models, the second one model"
                ));
            }
            if repository > directory { self.model_dir = None } else { self.model_repository = None }
        }
        let Some(directory) = &self.model_dir else {
            self.refuse_name(problems);
            return;
        };
        let last = directory.file_name().map(|name| name.to_string_lossy().into_owned());
        self.model_name.get_or_insert(last.unwrap_or_else(|| DEFAULT_NAME.to_owned()));
    }

    /// Without a directory a name has nothing to name. A name that somebody less heard gave is left aside.
    fn refuse_name(&mut self, problems: &mut Vec<String>) {
        let aliased = self.model_alias.take().is_some_and(|names| !names.is_empty());
        for (flag, said) in [("model-name", self.model_name.take().is_some()), ("model-alias", aliased)] {
            if said && self.rank(flag) > 1 && self.rank(flag) >= self.rank("model-repository") {
                problems.push(format!(
                    "{}: only the model of --model-dir is given a name; in a repository the directories name the models",
                    self.place(flag)
                ));
            }
        }
    }

    /// Values that stand for "as much as fits".
    pub(super) fn fill_in(&mut self, machine: &Machine, problems: &mut Vec<String>) {
        if self.nthread == 0 {
            self.nthread = machine.cores.max(1);
        }
        if self.inflight_bytes == 0 {
            self.inflight_bytes = (machine.memory / INFLIGHT_PART).max(self.max_body_size + SPARE);
        } else if self.inflight_bytes < self.max_body_size {
            problems.push(format!(
                "{}: must be at least max-body-size, or a request of that size would be let in only while there is no \
                 other",
                self.place("inflight-bytes")
            ));
        }
    }

    pub(super) fn check(&self, problems: &mut Vec<String>) {
        self.check_listeners(problems);
        self.check_amounts(problems);
        self.check_startup(problems);
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => problems.push(format!("{}: needs --tls-key too", self.place("tls-cert"))),
            (None, Some(_)) => problems.push(format!("{}: needs --tls-cert too", self.place("tls-key"))),
            _ => {}
        }
        if let Some(Err(wrong)) = self.allowed_origins.as_ref().map(|texts| Origins::read(&texts.join(","))) {
            problems.push(format!("{}: {wrong}; or `*` for all, or `none`", self.place("allowed-origins")));
        }
        let names = self.model_name.iter().map(|name| ("model-name", name));
        for (flag, name) in names.chain(self.model_alias.iter().flatten().map(|name| ("model-alias", name))) {
            if name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) {
                let place = self.place(flag);
                problems.push(format!("{place}: a name has at most {LONGEST_NAME} characters, all of them visible"));
            }
        }
    }

    fn check_listeners(&self, problems: &mut Vec<String>) {
        let listeners = [("http-port", self.http()), ("grpc-port", self.grpc()), ("metrics-port", self.metrics())];
        for (index, (name, address)) in listeners.iter().enumerate() {
            for (other_name, other) in &listeners[..index] {
                if let (Some(address), Some(other)) = (address, other)
                    && collide(*address, *other)
                {
                    problems.push(format!(
                        "{other_name} and {name} are both {} (from {} and {}): each needs a port of its own, or `off`",
                        address.port(),
                        self.place(other_name),
                        self.place(name),
                    ));
                }
            }
        }
        if self.http_port.is_none() && self.grpc_port.is_none() {
            problems.push("http-port and grpc-port are both off: nobody could ask this server anything".to_owned());
        }
    }

    fn check_amounts(&self, problems: &mut Vec<String>) {
        let numbers = [
            ("max-connections", Some(self.max_connections)),
            ("queue-size", Some(self.queue_size)),
            ("max-batch-rows", self.max_batch_rows),
            ("max-body-size", usize::try_from(self.max_body_size).ok()),
            ("max-model-len", self.max_model_len),
        ];
        for (name, _) in numbers.iter().filter(|(_, number)| *number == Some(0)) {
            problems.push(format!("{}: must be at least 1", self.place(name)));
        }
        let times = [
            ("handshake-timeout", self.handshake_timeout),
            ("header-timeout", self.header_timeout),
            ("body-timeout", self.body_timeout),
            ("idle-timeout", self.idle_timeout),
            ("request-timeout", self.request_timeout),
            ("generation-timeout", self.generation_timeout),
            ("repository-poll-secs", self.repository_poll),
            ("probe-timeout", self.probe_timeout),
        ];
        for (name, _) in times.iter().filter(|(_, time)| *time == Duration::ZERO) {
            problems.push(format!("{}: must be longer than 0", self.place(name)));
        }
        let counts = [
            ("max-model-len", self.max_model_len.unwrap_or(0)),
            ("max-num-seqs", self.max_num_seqs),
            ("max-num-batched-tokens", self.max_num_batched_tokens),
        ];
        for (name, _) in counts.iter().filter(|(_, count)| *count > MOST_TOKENS) {
            problems.push(format!("{}: at most {MOST_TOKENS}", self.place(name)));
        }
        if self.nthread > MOST_THREADS {
            problems.push(format!("{}: at most {MOST_THREADS} threads", self.place("nthread")));
        }
        if self.max_batch_delay >= self.request_timeout && self.request_timeout > Duration::ZERO {
            problems.push(format!("{}: must be shorter than request-timeout", self.place("max-batch-delay")));
        }
    }

    fn check_startup(&self, problems: &mut Vec<String>) {
        let Some(names) = &self.load_model else { return };
        if names.len() > 1 && names.iter().any(|name| name == "*") {
            problems.push(format!("{}: `*` is all models and stands alone", self.place("load-model")));
        }
        if self.model_control_mode != ControlMode::Explicit {
            problems.push(format!(
                "{}: needs --model-control-mode explicit; in the others every model of the repository is loaded",
                self.place("load-model")
            ));
        }
        if self.model_dir.is_some() && self.rank("load-model") >= self.rank("model-dir") {
            problems.push(format!(
                "{}: chooses among the models of a repository; --model-dir is one model",
                self.place("load-model")
            ));
        }
    }

    fn rank(&self, name: &str) -> u8 {
        self.origin(name).rank()
    }

    fn place(&self, name: &str) -> String {
        self.origin(name).place(name)
    }
}

/// Would the second `bind` fail? Port 0 is a different one each time.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (everywhere || one.ip() == other.ip())
}
