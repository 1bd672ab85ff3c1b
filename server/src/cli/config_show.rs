//! `tensorgate config show`: the settings that `serve` would run with, as a file that `--config` reads.

use crate::args::flags::GROUPS;
use crate::config::Config;
use std::fmt::Write;

/// The settings as TOML; with `origin`, beside each who said it.
#[must_use]
pub fn render(config: &Config, origin: bool) -> String {
    let mut config = config.clone();
    let mut text = String::new();
    for group in GROUPS {
        let mut lines = String::new();
        for flag in group.flags {
            // Where the settings were read from is not one of them: a file cannot name another.
            let mark = if flag.name == "config" { "# " } else { "" };
            let comment = if origin { format!("  # {}", config.origin(flag.name)) } else { String::new() };
            match flag.field(&mut config).toml() {
                Some(value) => drop(writeln!(lines, "{mark}{} = {value}{comment}", flag.name)),
                None if group.title.is_empty() => {}
                None => drop(writeln!(lines, "# {} is not set", flag.name)),
            }
        }
        if !lines.is_empty() {
            let title = if group.title.is_empty() { "Addresses" } else { group.title };
            let _ = write!(text, "{}# {title}\n{lines}", if text.is_empty() { "" } else { "\n" });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command, Environment, file, parse};
    use crate::config::Machine;
    use std::path::Path;

    const MACHINE: Machine = Machine { cores: 4, memory: 8 << 30 };

    fn config(words: &[&str], environment: &[(&str, &str)]) -> Config {
        let argv: Vec<_> = ["tensorgate"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let environment: Environment =
            environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let Command::Serve(args) = parse(&argv, &environment).unwrap().command else { panic!("not serve") };
        Config::resolve(&args, &MACHINE).unwrap()
    }

    #[test]
    fn each_setting_with_its_origin() {
        let words = ["/models", "--http_port=9000", "--load-model=a", "--load-model=b\"c"];
        let shown = render(&config(&words, &[("TENSORGATE_QUEUE_SIZE", "7")]), true);
        for line in [
            "model-repository = \"/models\"  # flag DIR",
            "http-port = 9000  # flag --http_port",
            "load-model = [\"a\", 'b\"c']  # flag --load-model",
            "queue-size = 7  # env TENSORGATE_QUEUE_SIZE",
            "nthread = 4  # default",
            "inflight-bytes = \"2GiB\"  # default",
            "metrics-port = \"off\"  # default",
            "request-timeout = \"1m\"  # default",
            "# tls-cert is not set",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "no line {line} in\n{shown}");
        }
        assert!(!render(&config(&["/models"], &[]), false).contains("default"));
    }

    #[test]
    fn what_is_shown_reads_back_as_the_same() {
        let lines: [&[&str]; 4] = [
            &["/models", "--max-batch-rows=64", "--idle-timeout=90s", "--host=::1", "--load-model="],
            &["--model_dir=/m", "--model_name=x", "--enable_grpc=false", "--tls-cert=c", "--tls-key=k"],
            &["tritonserver", "--model-store=/m", "--http-address=127.0.0.1", "--load-model=*", "--grpc-port=0"],
            &["/models", "--profile=kserve", "--log-level=debug", "--otlp-endpoint=http://collector:4317"],
        ];
        for words in lines {
            let mut first = config(words, &[]);
            let mut args = Args::default();
            file::add(&mut args, Path::new("shown.toml"), &render(&first, true)).unwrap();
            let mut second = Config::resolve(&args, &MACHINE).unwrap();
            first.origins.clear();
            second.origins.clear();
            assert_eq!(first, second, "{words:?}");
        }
    }
}
