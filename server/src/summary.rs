//! The startup summary: what serves, where, and commands that work when pasted.

use crate::registry::{Registry, Servable};
use crate::repository::Version;
use crate::servable::Work;
use crate::telemetry;
use backends::Platform;
use std::net::SocketAddr;
use std::time::Instant;

/// Where the server listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Of HTTP.
    pub http: Option<SocketAddr>,
    /// Of gRPC.
    pub grpc: Option<SocketAddr>,
    /// Of URLs.
    pub scheme: &'static str,
}

/// Writes the summary to the terminal, and a line to the log. `keyed`: clients have to show keys.
pub fn announce(registry: &Registry, addresses: &Addresses, keyed: bool, start: Instant) {
    let ready = registry.servables();
    let milliseconds = start.elapsed().as_millis() as u64;
    let (models, serving) = (registry.names().len(), ready.len());
    let shown = |address: Option<SocketAddr>| address.map(tracing::field::display);
    let (http, grpc) = (shown(addresses.http), shown(addresses.grpc));
    if serving > 0 {
        tracing::info!(models, ready = serving, ms = milliseconds, http, grpc, "ready");
    } else {
        let directory = registry.repository().root().display();
        tracing::warn!(models, serving, %directory, ms = milliseconds, http, grpc, "no model serves");
    }
    let (mut text, scheme) = (String::from("\n"), addresses.scheme);
    if let Some(http) = addresses.http {
        text += &format!("  REST   {scheme}://{}\n", host(http));
    }
    if let Some(grpc) = addresses.grpc {
        text += &format!("  gRPC   {}\n", host(grpc));
    }
    for servable in &ready {
        text += &model(&servable.name, servable.version, servable.signature.platform);
    }
    if let Some(http) = addresses.http {
        let curl = Curl { base: format!("{scheme}://{}", host(http)), keyed, secure: scheme == "https" };
        let commands: Vec<String> = ready_commands(&ready.iter().map(AsRef::as_ref).collect::<Vec<_>>(), &curl);
        text.extend(commands.iter().map(|command| format!("\n  {command}\n")));
    }
    telemetry::say(&(text + "\n"));
}

/// One line, whatever a directory is called.
fn model(name: &str, version: Version, platform: Platform) -> String {
    format!("  model  {} version {version} ({})\n", telemetry::escaped(name), platform.name())
}

/// What a URL calls an address: an address of all interfaces is reached as this machine.
fn host(address: SocketAddr) -> String {
    if address.ip().is_unspecified() { format!("localhost:{}", address.port()) } else { address.to_string() }
}

/// A command for a model of tensors, the narrowest, which makes the shortest one; and for a language model.
fn ready_commands(ready: &[&Servable], curl: &Curl) -> Vec<String> {
    let columns = |s: &Servable| s.signature.inputs.first().and_then(|port| port.shape.last().copied()).unwrap_or(1);
    let (predictors, languages): (Vec<&Servable>, Vec<&Servable>) =
        ready.iter().partition(|servable| matches!(servable.work, Work::Predictor(_)));
    let mut commands = Vec::new();
    if let Some(servable) = predictors.into_iter().min_by_key(|servable| columns(servable)) {
        let row = vec!["1.0"; columns(servable).max(1) as usize].join(",");
        let path = format!("/v1/models/{}:predict", encoded(&servable.name));
        commands.push(curl.command(&path, &format!("{{\"instances\":[[{row}]]}}")));
    }
    if let Some(servable) = languages.first() {
        let body = serde_json::json!({
            "model": servable.name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50,
        });
        commands.push(curl.command("/v1/chat/completions", &body.to_string()));
    }
    commands
}

/// How this server is asked.
#[derive(Debug)]
struct Curl {
    base: String,
    keyed: bool,
    secure: bool,
}

impl Curl {
    fn command(&self, path: &str, body: &str) -> String {
        let (key, trust) = match (self.keyed, self.secure) {
            (true, secure) => (" -H 'x-api-key: KEY'", if secure { " -k" } else { "" }),
            (false, secure) => ("", if secure { " -k" } else { "" }),
        };
        format!("curl{trust}{key} {} -d {}", quoted(&format!("{}{path}", self.base)), quoted(body))
    }
}

/// A name as a part of a path.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A word of a shell, in quotes where it needs them.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:%".contains(&byte);
    if text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_one_line() {
        let line = model("new\nline \u{1b}[31m\u{9b}31m \u{e9}", 1, Platform::Xgboost);
        assert_eq!(line, "  model  new\\nline \\u{1b}[31m\\u{9b}31m \u{e9} version 1 (xgboost)\n");
    }

    #[test]
    fn commands_are_ones_that_a_shell_and_a_server_read() {
        let curl = |base: &str, keyed| Curl { base: base.into(), keyed, secure: base.starts_with("https") };
        let command =
            curl("http://localhost:8080", false).command("/v1/models/iris:predict", "{\"instances\":[[1.0]]}");
        assert_eq!(command, "curl http://localhost:8080/v1/models/iris:predict -d '{\"instances\":[[1.0]]}'");
        let command = curl("https://[::1]:1", true).command("/v1/models/a%2Fb:predict", "it's");
        assert_eq!(command, "curl -k -H 'x-api-key: KEY' 'https://[::1]:1/v1/models/a%2Fb:predict' -d 'it'\\''s'");
        assert_eq!(encoded("a/b it's \u{e9}"), "a%2Fb%20it%27s%20%C3%A9");
        assert_eq!(host("[::]:8080".parse().unwrap()), "localhost:8080");
        assert_eq!(host("[::1]:8080".parse().unwrap()), "[::1]:8080");
    }
}
