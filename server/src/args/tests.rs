//! Every flag by every way of saying it, who is heard, and what is wrong.

use super::field::Field;
use super::flags::{self, Flag};
use super::{Args, Command, Environment, Invocation, ModelFormat, UsageError, file, help, parse};
use crate::config::{Config, Machine};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(crate) const MACHINE: Machine = Machine { cores: 4, memory: 8 << 30 };

/// `tensorgate` and these words, in this environment.
pub(crate) fn invoke(words: &str, environment: &[(&str, &str)]) -> Result<Invocation, UsageError> {
    let argv: Vec<_> = std::iter::once("tensorgate").chain(words.split_whitespace()).map(str::to_owned).collect();
    let environment: Environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    parse(&argv, &environment)
}

pub(crate) fn serve(words: &str, environment: &[(&str, &str)]) -> Result<(Args, Vec<String>), UsageError> {
    invoke(words, environment).map(|invocation| match invocation.command {
        Command::Serve(args) => (args, invocation.warnings),
        other => panic!("{words}: {other:?}"),
    })
}

/// The settings that a command line and an environment end in.
pub(crate) fn configure(words: &str, environment: &[(&str, &str)]) -> Result<Config, UsageError> {
    serve(words, environment).and_then(|(args, _)| Config::resolve(&args, &MACHINE))
}

/// The problems of a command line and an environment, one line each.
pub(crate) fn problems(words: &str, environment: &[(&str, &str)]) -> String {
    configure(words, environment).expect_err(words).to_string()
}

/// A value of each flag that is not its default.
const VALUES: &[(&str, &str)] = &[
    ("model-repository", "/r"),
    ("model-dir", "/d"),
    ("model-name", "n"),
    ("model-alias", "o"),
    ("model-control-mode", "poll"),
    ("repository-poll-secs", "7"),
    ("load-model", "m"),
    ("model-init-mode", "async"),
    ("profile", "triton"),
    ("grpc-outputs", "mirror"),
    ("host", "127.0.0.1"),
    ("http-port", "1"),
    ("grpc-port", "2"),
    ("metrics-port", "3"),
    ("max-connections", "4"),
    ("handshake-timeout", "5s"),
    ("header-timeout", "6s"),
    ("body-timeout", "7s"),
    ("idle-timeout", "8s"),
    ("tls-cert", "/c"),
    ("tls-key", "/k"),
    ("api-keys-file", "/a"),
    ("allowed-origins", "https://a.example"),
    ("nthread", "9"),
    ("max-batch-rows", "10"),
    ("max-batch-delay", "11us"),
    ("max-model-len", "18"),
    ("device", "cpu"),
    ("max-num-seqs", "19"),
    ("max-num-batched-tokens", "20"),
    ("kv-cache-bytes", "21MiB"),
    ("kv-cache-dtype", "fp8"),
    ("onnxruntime-lib", "/o.so"),
    ("isolation", "always"),
    ("probe", "always"),
    ("probe-timeout", "23s"),
    ("probe-memory", "24MiB"),
    ("deterministic", "true"),
    ("dtype", "bfloat16"),
    ("load-format", "dummy"),
    ("tool-call-parser", "hermes"),
    ("reasoning-parser", "think"),
    ("force-include-usage", "true"),
    ("generation-timeout", "22s"),
    ("step-timeout", "25s"),
    ("max-body-size", "12KiB"),
    ("inflight-bytes", "13GiB"),
    ("queue-size", "14"),
    ("request-timeout", "15s"),
    ("drain-delay", "16s"),
    ("drain-timeout", "17s"),
    ("log-level", "debug"),
    ("log-format", "json"),
    ("otlp-endpoint", "http://o:1"),
    ("config", "/f.toml"),
    ("http-address", "127.0.0.2"),
    ("grpc-address", "127.0.0.3"),
    ("metrics-address", "127.0.0.4"),
];

/// What else a flag needs to be allowed.
fn company(name: &str) -> &'static str {
    match name {
        "model-name" | "model-alias" => " --model-dir=/x",
        "tls-cert" => " --tls-key=/x",
        "tls-key" => " --tls-cert=/x",
        _ => "",
    }
}

fn toml_of(config: &mut Config, flag: &Flag) -> Option<String> {
    flag.field(config).toml()
}

/// The value as the configuration should show it.
fn expected(flag: &Flag, value: &str) -> Option<String> {
    let mut config = Config::blank();
    flag.field(&mut config).read(value).unwrap();
    toml_of(&mut config, flag)
}

#[test]
fn the_table_of_this_test_is_complete() {
    let tested: BTreeSet<_> = VALUES.iter().map(|(name, _)| *name).collect();
    let known: BTreeSet<_> = flags::all().map(|flag| flag.name).collect();
    assert_eq!(tested, known);
    assert_eq!(flags::all().count(), known.len(), "a name is used twice");
}

#[test]
fn each_flag_each_way() {
    for (name, value) in VALUES {
        let flag = flags::find(name).unwrap();
        let underscored = name.replace('-', "_");
        let variable = format!("TENSORGATE_{}", underscored.to_uppercase());
        assert_eq!(flag.variable(), variable);
        let with = company(name);
        let mut ways: Vec<(Config, String)> = vec![
            (configure(&format!("--{name}={value}{with}"), &[]).unwrap(), format!("flag --{name}")),
            (configure(&format!("--{name} {value}{with}"), &[]).unwrap(), format!("flag --{name}")),
            (configure(&format!("serve --{underscored}={value}{with}"), &[]).unwrap(), format!("flag --{underscored}")),
            (configure(with, &[(&variable, value)]).unwrap(), format!("env {variable}")),
        ];
        for other in flag.environment {
            ways.push((configure(with, &[(other, value)]).unwrap(), format!("env {other}")));
        }
        for (config, origin) in &mut ways {
            assert_eq!(toml_of(config, flag), expected(flag, value), "{origin}");
            assert_eq!(config.origin(name).to_string(), *origin);
        }
    }
}

#[test]
fn each_key_of_a_file() {
    for (name, value) in VALUES.iter().filter(|(name, _)| *name != "config") {
        let flag = flags::find(name).unwrap();
        for key in [(*name).to_owned(), name.replace('-', "_")] {
            let quoted = format!("{key} = \"{value}\"\n");
            let bare = if value.parse::<u64>().is_ok() { format!("{key} = {value}\n") } else { quoted.clone() };
            let yaml = format!("{key}: {value}\n");
            for (path, text) in [("c.toml", &quoted), ("c.toml", &bare), ("c.yaml", &yaml), ("c.yml", &yaml)] {
                let (mut args, _) = serve(company(name), &[]).unwrap();
                file::add(&mut args, Path::new(path), text).unwrap();
                let mut config = Config::resolve(&args, &MACHINE).unwrap();
                assert_eq!(toml_of(&mut config, flag), expected(flag, value), "{path}: {text}");
                assert_eq!(config.origin(name).to_string(), format!("file {path}"));
            }
        }
    }
}

#[test]
fn defaults() {
    let mut config = configure("", &[]).unwrap();
    for flag in flags::all().filter(|flag| !matches!(flag.name, "nthread" | "inflight-bytes")) {
        let default = Some(flag.default).filter(|default| !default.is_empty()).map(|default| expected(flag, default));
        assert_eq!(toml_of(&mut config, flag), default.flatten(), "{}", flag.name);
        assert_eq!(config.origin(flag.name).to_string(), "default");
    }
    assert_eq!((config.nthread, config.inflight_bytes), (4, 2 << 30));
}

#[test]
fn who_is_heard() {
    let file = |args: &mut Args| file::add(args, Path::new("c.toml"), "queue-size = 1\nload-model = [\"a\", \"b\"]\n");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], usize, &'a str);
    let cases: [Case<'_>; 4] = [
        ("", &[], 1, "file c.toml"),
        ("", &[("TENSORGATE_QUEUE_SIZE", "2")], 2, "env TENSORGATE_QUEUE_SIZE"),
        ("--queue-size=3", &[("TENSORGATE_QUEUE_SIZE", "2")], 3, "flag --queue-size"),
        ("--queue-size=3 --queue_size 4", &[("TENSORGATE_QUEUE_SIZE", "2")], 4, "flag --queue_size"),
    ];
    for (words, environment, size, origin) in cases {
        let (mut args, _) = serve(words, environment).unwrap();
        file(&mut args).unwrap();
        let config = Config::resolve(&args, &MACHINE).unwrap();
        assert_eq!((config.queue_size, config.origin("queue-size").to_string().as_str()), (size, origin), "{words}");
        assert_eq!(config.load_model, Some(vec!["a".to_owned(), "b".to_owned()]));
    }
    let own_first = [("TENSORGATE_OTLP_ENDPOINT", "http://own"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general")];
    assert_eq!(configure("", &own_first).unwrap().otlp_endpoint.as_deref(), Some("http://own"));
}

#[test]
fn flags_that_add_up() {
    let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let environment = [("TENSORGATE_LOAD_MODEL", "x, y/z")];
    assert_eq!(configure("", &environment).unwrap().load_model, list(&["x", "y/z"]));
    assert_eq!(configure("--load-model a --load-model=b", &environment).unwrap().load_model, list(&["a", "b"]));
    assert_eq!(configure("--load-model=", &environment).unwrap().load_model, list(&[]));
    assert_eq!(configure("--load-model=a --load-model= --load-model=b", &[]).unwrap().load_model, list(&["b"]));
    let (mut args, _) = serve("", &[]).unwrap();
    file::add(&mut args, Path::new("c.toml"), "load-model = []").unwrap();
    assert_eq!(Config::resolve(&args, &MACHINE).unwrap().load_model, list(&[]));
}

#[test]
fn several_repositories_add_up() {
    let all = |words: &str| configure(words, &[]).unwrap().model_repository;
    let paths = |names: &[&str]| Some(names.iter().map(PathBuf::from).collect::<Vec<_>>());
    assert_eq!(all("--model-repository=/a --model-repository /b"), paths(&["/a", "/b"]));
    assert_eq!(all("/a --model-repository=/b"), paths(&["/a", "/b"]));
    assert_eq!(all("tritonserver --model-store=/a --model-repository=/b"), paths(&["/a", "/b"]));
    let environment = [("TENSORGATE_MODEL_REPOSITORY", "/c,/d")];
    assert_eq!(configure("", &environment).unwrap().model_repository, paths(&["/c", "/d"]));
    assert_eq!(configure("/a", &environment).unwrap().model_repository, paths(&["/a"]));
    assert_eq!(configure("--model-repository=", &[]).unwrap().models(), None);
}

/// What others set for a whole cluster is no reason to stay away.
#[test]
fn variables_of_others_that_mean_nothing_to_us() {
    for (variable, value) in [("OTEL_EXPORTER_OTLP_ENDPOINT", "unix:///run/otel"), ("MODEL_INIT_MODE", "eager")] {
        let (args, warnings) = serve("/m", &[(variable, value)]).unwrap();
        assert_eq!(Config::resolve(&args, &MACHINE).unwrap(), configure("/m", &[]).unwrap(), "{variable}");
        assert!(warnings[0].starts_with(&format!("{variable}: `{value}` is not ")), "{warnings:?}");
        assert!(warnings[0].ends_with("; it is not read"), "{warnings:?}");
    }
    let endpoint = |url: &str| configure("/m", &[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).unwrap().otlp_endpoint;
    assert_eq!(endpoint("collector:4317").as_deref(), Some("http://collector:4317"));
    assert_eq!(endpoint("https://collector").as_deref(), Some("https://collector"));
    let problem = problems("", &[("TENSORGATE_OTLP_ENDPOINT", "unix:///run/otel")]);
    assert!(problem.ends_with("is not a URL that begins with http:// or https://"), "what is said to us is an error");
}

#[test]
fn empty_variables_are_not_set() {
    assert_eq!(configure("", &[("TENSORGATE_QUEUE_SIZE", ""), ("MODEL_INIT_MODE", "")]), configure("", &[]));
}

#[test]
fn variables_of_kubernetes_services_are_not_ours() {
    let environment = [
        ("TENSORGATE_HTTP_PORT", "tcp://10.96.0.1:8080"),
        ("TENSORGATE_HTTP_PORT_8080_TCP", "tcp://10.96.0.1:8080"),
        ("TENSORGATE_SERVICE_HOST", "10.96.0.1"),
        ("TENSORGATE_PORT", "tcp://10.96.0.1:80"),
        ("MLSERVER_GRPC_PORT", "tcp://10.96.0.2:80"),
        ("MLSERVER_HTTP_PORT", "udp://10.96.0.2:80"),
        ("MLSERVER_METRICS_PORT", "sctp://10.96.0.2:80"),
        ("MLSERVER_HTTP_PORT_80_TCP", "tcp://10.96.0.2:80"),
    ];
    let (args, warnings) = serve("", &environment).unwrap();
    assert_eq!(Config::resolve(&args, &MACHINE).unwrap(), configure("", &[]).unwrap());
    let read = ["MLSERVER_GRPC_PORT", "MLSERVER_HTTP_PORT", "MLSERVER_METRICS_PORT", "TENSORGATE_HTTP_PORT"];
    let why = "was set by Kubernetes for a Service of that name and is not read";
    assert_eq!(warnings, read.map(|variable| format!("{variable} {why}")));
    let problem = problems("", &[("TENSORGATE_HOST", "tcp://10.96.0.1:80")]);
    assert!(problem.starts_with("TENSORGATE_HOST: `tcp://10.96.0.1:80` is not an IP address"), "no port: {problem}");
}

#[test]
fn slips_in_variables_are_told() {
    let (_, warnings) = serve("", &[("TENSORGATE_HTP_PORT", "1"), ("TENSORGATE_MODELS", "/m")]).unwrap();
    assert_eq!(warnings, ["TENSORGATE_HTP_PORT is not read; did you mean TENSORGATE_HTTP_PORT?"]);
}

#[test]
fn the_directory() {
    for words in ["/m", "serve /m", "--queue-size 3 /m", "/m --queue-size=3", "serve -- /m", "--model-repository=/m"] {
        assert_eq!(configure(words, &[]).unwrap().model_repository, Some(vec![PathBuf::from("/m")]), "{words}");
    }
    assert_eq!(configure("./serve", &[]).unwrap().model_repository, Some(vec![PathBuf::from("./serve")]));
    let nothing = configure("serve", &[]).unwrap().required_models().unwrap_err().to_string();
    assert!(nothing.starts_with("nothing to serve: give a directory"), "{nothing}");
    let nothing = configure("vllm serve --port=1", &[]).unwrap().required_models().unwrap_err().to_string();
    assert!(nothing.starts_with("vllm serve: no model is named; give its directory"), "{nothing}");
    assert!(nothing.contains("`tensorgate vllm serve ./"), "{nothing}");
}

#[test]
fn what_is_wrong_with_a_command_line() {
    for (words, problem) in [
        ("--htp-port 1", "unknown flag --htp-port; did you mean --http-port?"),
        ("/m --htp-port 1", "unknown flag --htp-port; did you mean --http-port?"),
        ("--api-key s3cret", "unknown flag --api-key; did you mean --api-keys-file?"),
        ("--api-key=s3cret", "unknown flag --api-key; did you mean --api-keys-file?"),
        ("--colour", "unknown flag --colour; `tensorgate --help` lists the flags"),
        ("-p 1", "unknown flag -p; `tensorgate --help` lists the flags"),
        ("--queue_sise=1", "unknown flag --queue_sise; did you mean --queue-size?"),
        (
            "--exit-timeout-secs=3",
            "--exit-timeout-secs: a flag of tritonserver; put the word tritonserver first to use its flags",
        ),
        ("--http-port", "--http-port: needs a value, --http-port PORT"),
        ("--http-port --nthread=1", "--http-port: needs a value, --http-port PORT"),
        ("/m /n", "/n: /m is the directory already; say --model-repository for further ones"),
        (
            "--model-dir=/m --grpc-use-ssl=1",
            "--grpc-use-ssl: a flag of tritonserver; put the word tritonserver first to use its flags",
        ),
        ("--queue-size=1 serve", "serve: a command comes first; a directory of that name is ./serve"),
        (
            "/m --gpu-memory-utilization=0.9",
            "--gpu-memory-utilization: a flag of vllm; put the word vllm first to use its flags",
        ),
        ("vllm bench", "vllm bench: of vllm's commands `vllm serve MODEL` alone is understood"),
        ("vllm serve /m /n", "/n: /m is the model already, and there is one"),
        ("config", "config: say `tensorgate config show`, and the flags of `serve`"),
        ("validate", "validate: say `tensorgate validate DIR`, one directory"),
        ("validate /a /b", "validate: say `tensorgate validate DIR`, one directory"),
        ("validate /a --x", "unknown flag --x; `tensorgate --help` lists the flags"),
        ("manifests", "manifests: say `tensorgate manifests servingruntime`; there is no other yet"),
        ("manifests servingruntime xgboost", "manifests: xgboost: say `--format xgboost`"),
        (
            "manifests servingruntime --format sklearn",
            "--format: `sklearn` is not one of xgboost, lightgbm, onnx, triton, huggingface, vllm",
        ),
        ("manifests servingruntime --image", "--image: needs a value"),
    ] {
        assert_eq!(invoke(words, &[]).expect_err(words).to_string(), problem, "{words}");
    }
}

#[test]
fn what_is_wrong_with_a_value() {
    const PORT: &str = "is not a port: a number from 0 to 65535 (0: any free one), or off";
    const TIME: &str = "is not a duration: write it with a unit, as 30s, 500ms, 2m, 1h or 100us";
    for (name, value, reason) in [
        ("http-port", "abc", PORT),
        ("grpc-port", "65536", PORT),
        ("metrics-port", "-1", PORT),
        ("host", "example.com", "is not an IP address, as 0.0.0.0, 127.0.0.1 or ::"),
        ("queue-size", "-1", "is not a whole number"),
        ("max-batch-rows", "1.5", "is not a whole number"),
        ("max-body-size", "1XB", "is not a size: write it as 64MiB, 1GB, 512k or a number of bytes"),
        ("idle-timeout", "75", TIME),
        ("repository-poll-secs", "soon", TIME),
        ("profile", "seldon", "is not one of kserve, triton"),
        ("log-format", "xml", "is not one of auto, text, json"),
        ("model-dir", "", "is empty"),
    ] {
        let problem = format!("--{name}: `{value}` {reason}");
        assert_eq!(problems(&format!("--{name}={value}"), &[]), problem);
        if !value.is_empty() {
            let variable = flags::find(name).unwrap().variable();
            assert_eq!(problems("", &[(&variable, value)]), format!("{variable}: `{value}` {reason}"));
        }
        let mut args = Args::default();
        let text = format!("{name} = \"{value}\"");
        let problem = file::add(&mut args, Path::new("c.toml"), &text).unwrap_err().to_string();
        assert_eq!(problem, format!("{name} in c.toml: `{value}` {reason}"));
    }
    assert_eq!(problems("--http-port=x --http-port=1", &[]), format!("--http-port: `x` {PORT}"));
    assert_eq!(problems("--http-port=x --hots=1", &[]).lines().count(), 2, "all problems are told at once");
}

#[test]
fn what_is_wrong_with_a_file() {
    for (path, text, problem) in [
        ("c.toml", "htp-port = 1", "c.toml: unknown key htp-port; did you mean http-port?"),
        ("c.yaml", "htp_port: 1", "c.yaml: unknown key htp_port; did you mean http-port?"),
        ("c.toml", "config = \"d.toml\"", "c.toml: a configuration file cannot name another"),
        ("c.toml", "http-port = [1]", "http-port in c.toml: takes one value, not a list"),
        ("c.toml", "http-port = 1.5", "http-port in c.toml: `1.5` is not a port"),
        ("c.json", "{}", "configuration file c.json: its name must end in .toml, .yaml or .yml"),
        ("c.toml", "http-port", "c.toml: "),
        ("c.toml", "[http]\nport = 1", "c.toml: "),
        ("c.yaml", "http: {port: 1}", "c.yaml: "),
        ("c.yaml", "- 1", "c.yaml: "),
    ] {
        let error = file::add(&mut Args::default(), Path::new(path), text).expect_err(text).to_string();
        assert!(error.starts_with(problem), "{text}: {error}");
    }
    let (args, _) = serve("--config /nowhere/c.toml", &[]).unwrap();
    let error = Config::load(args, &MACHINE).unwrap_err().to_string();
    assert!(error.starts_with("configuration file /nowhere/c.toml: "), "{error}");
}

#[test]
fn files_are_read_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.yml");
    std::fs::write(&path, "http-port: off\nmodel_dir: /m\nmodel-name:\nload-model: []\n# end\n").unwrap();
    let (args, _) = serve("", &[("TENSORGATE_CONFIG", path.to_str().unwrap())]).unwrap();
    let error = Config::load(args, &MACHINE).unwrap_err().to_string();
    assert!(error.starts_with(&format!("load-model in {}: ", path.display())), "{error}");
    std::fs::write(&path, "http-port: off\nmodel_dir: /m\nmodel-name:\n").unwrap();
    let (args, _) = serve(&format!("--config={}", path.display()), &[]).unwrap();
    let config = Config::load(args, &MACHINE).unwrap();
    assert_eq!((config.http_port, config.model_name.as_deref()), (None, Some("m")));
    std::fs::write(&path, "").unwrap();
    let (args, _) = serve(&format!("--config={}", path.display()), &[]).unwrap();
    assert_eq!(Config::load(args, &MACHINE).unwrap().http_port, Some(8080));
}

#[test]
fn commands() {
    assert!(matches!(invoke("--version", &[]).unwrap().command, Command::Version));
    assert!(matches!(invoke("serve -V", &[]).unwrap().command, Command::Version));
    let invocation = invoke("validate /m", &[("TENSORGATE_ONNXRUNTIME_LIB", "/o.so")]).unwrap();
    let Command::Validate { directory, onnxruntime } = invocation.command else { panic!("not validate") };
    assert_eq!(onnxruntime.as_deref(), Some(std::path::Path::new("/o.so")));
    assert_eq!(directory, Path::new("/m"));
    let Command::ServingRuntime { format, image } =
        invoke("manifests servingruntime --format lightgbm --image=i:1", &[]).unwrap().command
    else {
        panic!("not a serving runtime")
    };
    assert_eq!((format, image.as_deref()), (Some(ModelFormat::Lightgbm), Some("i:1")));
    for (words, with_origin) in
        [("config show /m", false), ("config show --origin /m", true), ("config show /m --origin", true)]
    {
        let Command::ConfigShow { args, origin } = invoke(words, &[]).unwrap().command else { panic!("{words}") };
        assert_eq!(origin, with_origin, "{words}");
        assert_eq!(Config::resolve(&args, &MACHINE).unwrap().model_repository, Some(vec![PathBuf::from("/m")]));
    }
}

#[test]
fn help_shows_every_flag_of_ours() {
    for words in ["--help", "serve --help", "-h", "help", "--http-port=x --help", "tritonserver --help"] {
        let Command::Help(text) = invoke(words, &[]).unwrap().command else { panic!("{words}") };
        for flag in flags::GROUPS.iter().filter(|group| !group.title.is_empty()).flat_map(|group| group.flags) {
            assert!(text.contains(&format!("\n  --{} {}", flag.name, flag.value)), "{}", flag.name);
        }
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    }
    for topic in ["config", "validate", "manifests"] {
        let Command::Help(text) = invoke(&format!("{topic} --help"), &[]).unwrap().command else { panic!("{topic}") };
        assert!(text.starts_with(&format!("tensorgate {topic}")));
    }
    assert!(help::version().starts_with("tensorgate "));
}

/// `UPDATE_DOCS=1 cargo test` writes the file.
#[test]
fn the_page_of_flags_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = root.ancestors().map(|folder| folder.join("docs")).find(|docs| docs.is_dir()).expect("a folder docs");
    let path = docs.join("flags.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, help::flags_markdown()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == help::flags_markdown(), "{} is not current: run the tests with UPDATE_DOCS=1", path.display());
}

#[test]
fn names_repeat_and_nothing_else_does() {
    let mut blank = Config::blank();
    let repeating: Vec<_> =
        flags::all().filter(|flag| flag.field(&mut blank).repeats()).map(|flag| flag.name).collect();
    assert_eq!(repeating, ["model-repository", "model-alias", "load-model", "allowed-origins"]);
    assert!(matches!(flags::find("load_model").unwrap().field(&mut blank), Field::Names(None)));
}
