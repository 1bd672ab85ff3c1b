//! The command lines that KServe's operator gives to the servers tensorgate stands in for, as they are.

use super::{Becomes, Foreign, List, Takes, engine, huggingface, kserve, mlserver, triton, vllm};
use crate::args::flags;
use crate::args::tests::{MACHINE, configure, invoke, problems, serve};
use crate::args::{Command, parse};
use crate::config::{Config, ControlMode, LogLevel, Models, Profile, Startup};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The settings and the warnings of a line.
pub(super) fn dropped(words: &str, environment: &[(&str, &str)]) -> (Config, Vec<String>) {
    let (args, warnings) = serve(words, environment).unwrap_or_else(|error| panic!("{words}: {error}"));
    let config = Config::resolve(&args, &MACHINE).unwrap_or_else(|error| panic!("{words}: {error}"));
    (config, warnings)
}

pub(super) fn one_model<'a>(path: &'a str, name: &'a str) -> Option<Models<'a>> {
    Some(Models::Directory { path: Path::new(path), name })
}

pub(super) fn ports(config: &Config) -> [Option<u16>; 3] {
    [config.http_port, config.grpc_port, config.metrics_port]
}

const SKLEARN: &str = "--model_name=iris --model_dir=/mnt/models --http_port=8080";

#[test]
fn kserves_stock_runtimes() {
    let nthread = format!("{SKLEARN} --nthread=1");
    let predictive = format!("{SKLEARN} --framework=xgboost --nthread=1");
    for (words, threads, warnings) in [
        (SKLEARN, 4, vec![]),
        (&nthread, 1, vec![]),
        (&predictive, 1, vec!["accepted without effect: --framework".to_owned()]),
    ] {
        let (config, warned) = dropped(words, &[]);
        assert_eq!(config.models(), one_model("/mnt/models", "iris"), "{words}");
        assert_eq!(ports(&config), [Some(8080), Some(8081), None]);
        assert_eq!((config.nthread, config.profile, warned), (threads, None, warnings), "{words}");
    }
}

#[test]
fn what_users_append_to_a_stock_runtime_counts() {
    let (config, _) = dropped(&format!("{SKLEARN} --model_name other --http_port 9000 --queue-size=3"), &[]);
    assert_eq!(config.models(), one_model("/mnt/models", "other"));
    assert_eq!((config.http_port, config.queue_size), (Some(9000), 3));
}

#[test]
fn kserve_without_a_name_or_with_another_servers() {
    assert_eq!(dropped("--model_dir=/mnt/models", &[]).0.models(), one_model("/mnt/models", "model"));
    let (config, _) = dropped("--model_dir=/mnt/models", &[("TENSORGATE_MODEL_NAME", "mine")]);
    assert_eq!(config.models(), one_model("/mnt/models", "mine"));
    assert_eq!(dropped("--model-dir=/mnt/models", &[]).0.models(), one_model("/mnt/models", "models"), "our own list");
    let environment = [("TENSORGATE_MODEL_REPOSITORY", "/r")];
    assert_eq!(dropped("--workers=1", &environment).0.models(), Some(Models::Repository(&[PathBuf::from("/r")])));
}

/// All of KServe's python command line, with the values of its documentation.
const EVERY_KSERVE_FLAG: &str = "--http_port 8080 --grpc_port 8081 --workers 1 --max_threads 4 --max_asyncio_workers 4 \
    --enable_grpc true --enable_docs_url false --enable_latency_logging true --configure_logging true \
    --log_config_file /l.yaml --access_log_format %(h)s --event-loop auto --timeout-keep-alive 65 --model_name model \
    --predictor_host h --protocol v1 --predictor_protocol v1 --predictor_use_ssl false \
    --predictor_request_timeout_seconds 600 --predictor_request_retries 0 --enable_predictor_health_check \
    --grpc_max_send_message_length 8388608 --grpc_max_receive_message_length 8388608 --ssl_certfile /c --ssl_keyfile /k \
    --model_dir /mnt/models --nthread 1 --framework sklearn";

#[test]
fn every_kserve_flag_in_any_spelling() {
    let idle = "accepted without effect: --access_log_format, --configure_logging, --enable_docs_url, \
        --enable_latency_logging, --enable_predictor_health_check, --event-loop, --framework, \
        --grpc_max_send_message_length, --log_config_file, --max_asyncio_workers, --max_threads, --predictor_host, \
        --predictor_protocol, --predictor_request_retries, --predictor_request_timeout_seconds, --predictor_use_ssl, \
        --protocol, --workers";
    let (config, warnings) = dropped(EVERY_KSERVE_FLAG, &[]);
    assert_eq!(warnings, [idle]);
    assert_eq!(config.idle_timeout, Duration::from_secs(65));
    assert_eq!(config.max_body_size, 64 << 20, "KServe's default is no wish of the user");
    assert_eq!(config.tls(), Some((Path::new("/c"), Path::new("/k"))));
    assert_eq!(ports(&config), [Some(8443), Some(8081), None], "with a certificate KServe moves from 8080 to 8443");
    let joined = EVERY_KSERVE_FLAG.replace(" --", "\n--").replace(' ', "=").replace('\n', " ");
    assert_eq!(dropped(&joined, &[]), (config, warnings), "as one word or two");
    let (config, warnings) = dropped(&joined.replace('_', "-"), &[]);
    assert_eq!((config.http_port, warnings), (Some(8443), vec![idle.replace('_', "-")]));
}

#[test]
fn what_kserve_does_not_know_is_named_and_ignored() {
    for words in
        ["--some_flag_of_a_later_release=1", "--some_flag_of_a_later_release 1", "--some_flag_of_a_later_release"]
    {
        let (config, warnings) = dropped(&format!("{SKLEARN} {words} --workers=2 --nthread=2"), &[]);
        let warning = "accepted without effect: --workers; unknown and ignored: --some_flag_of_a_later_release";
        assert_eq!((config.nthread, warnings), (2, vec![warning.to_owned()]));
    }
}

/// KServe's parser takes dashes for underscores, and so do people.
#[test]
fn kserves_line_with_dashes() {
    let words = "--model-name=a --model-dir=/m --http-port=8080 --nthread=1 --some-new-flag=3";
    let (config, warnings) = dropped(words, &[]);
    assert_eq!((config.models(), config.nthread), (one_model("/m", "a"), 1));
    assert_eq!(warnings, ["unknown and ignored: --some-new-flag"]);
    assert_eq!(problems("/r --some-new-flag=3", &[]).lines().count(), 1, "our own line is read strictly");
}

#[test]
fn a_pod_of_kserves_can_end_in_time() {
    let (config, _) = dropped(SKLEARN, &[]);
    assert_eq!((config.drain_delay, config.drain_timeout), (Duration::from_secs(5), Duration::from_secs(20)));
    assert!(config.drain_total() + Duration::from_secs(5) <= Duration::from_secs(30));
    let (config, _) = dropped(&format!("{SKLEARN} --drain-timeout=1m"), &[("TENSORGATE_DRAIN_DELAY", "0")]);
    assert_eq!(config.drain_total(), Duration::from_secs(60));
}

#[test]
fn the_shortest_keep_alive() {
    for (value, seconds) in [("0", 1), ("-1", 1), ("65", 65)] {
        let (config, warnings) = dropped(&format!("{SKLEARN} --timeout-keep-alive={value}"), &[]);
        assert_eq!((config.idle_timeout, warnings.len()), (Duration::from_secs(seconds), 0), "{value}");
    }
}

#[test]
fn which_lines_are_kserves() {
    for (flags, list) in [
        ("--model_name", List::Kserve),
        ("--model_dir", List::Kserve),
        ("--http_port", List::Kserve),
        ("--workers", List::Kserve),
        ("--max-threads", List::Kserve),
        ("--event-loop", List::Kserve),
        ("--model_id", List::Kserve),
        ("--max_length", List::Kserve),
        ("--max_model_len", List::Own),
        ("--task", List::Own),
        ("--dtype", List::Own),
        ("--model-dir", List::Own),
        ("--nthread", List::Own),
        ("--queue_size", List::Own),
        ("--exit-timeout-secs", List::Own),
        ("", List::Own),
    ] {
        assert_eq!(List::of_flags(flags.split_whitespace().map(str::to_owned)), list, "{flags}");
    }
}

#[test]
fn wrong_values_are_errors_even_of_flags_without_effect() {
    const PORT: &str = "is not a port: a number from 0 to 65535 (0: any free one), or off";
    for (words, problem) in [
        ("--http_port=abc", format!("--http_port: `abc` {PORT}")),
        ("--model_dir=/m --workers=abc", "--workers: `abc` is not a whole number".to_owned()),
        ("--enable_grpc=maybe", "--enable_grpc: `maybe` is not true or false".to_owned()),
        ("--event-loop=x", "--event-loop: `x` is not one of auto, asyncio, uvloop".to_owned()),
        ("--workers", "--workers: needs a value".to_owned()),
        ("tritonserver /m --http-port=abc", format!("--http-port: `abc` {PORT}")),
        ("tritonserver /m --metrics-interval-ms=x", "--metrics-interval-ms: `x` is not a number".to_owned()),
        (
            "tritonserver /m --log-format=xml",
            "--log-format: `xml` is not one of default, ISO8601, auto, text, json".to_owned(),
        ),
    ] {
        assert_eq!(problems(words, &[]), problem, "{words}");
    }
    let problem = problems("", &[("MLSERVER_HTTP_PORT", "abc")]);
    assert_eq!(problem, "MLSERVER_HTTP_PORT: `abc` is not a whole number");
}

#[test]
fn listeners_are_switched_off_whatever_the_order() {
    for words in [
        "--model_dir=/m --enable_grpc=false",
        "--model_dir=/m --enable_grpc False --grpc_port=9000",
        "--model_dir=/m --grpc-port=9000 --enable-grpc=true --enable-grpc=0",
    ] {
        assert_eq!(ports(&dropped(words, &[]).0), [Some(8080), None, None], "{words}");
    }
    assert_eq!(dropped("--model_dir=/m --enable_grpc=false --enable_grpc=true", &[]).0.grpc_port, Some(8081));
    let (config, _) = dropped("tritonserver /m --allow-http=false --allow-metrics=off", &[]);
    assert_eq!(ports(&config), [None, Some(8001), None]);
    assert_eq!(config.origin("http-port").to_string(), "flag --allow-http");
    assert_eq!(ports(&dropped("tritonserver /m --allow-grpc=0", &[]).0), [Some(8000), None, Some(8002)]);
}

#[test]
fn kserves_certificate_from_the_environment() {
    let environment = [("KSERVE_TLS_CERT_FILE", "/c"), ("KSERVE_TLS_KEY_FILE", "/k")];
    let (config, _) = dropped(SKLEARN, &environment);
    assert_eq!((config.tls().is_some(), config.http_port), (true, Some(8443)));
    assert_eq!(dropped("--model_dir=/m", &environment).0.http_port, Some(8443));
    assert_eq!(dropped("--model_dir=/m --http_port=9443", &environment).0.http_port, Some(9443));
    assert_eq!(dropped("--model-dir=/m", &environment).0.http_port, Some(8080), "in our own list a port is that port");
    let (config, _) = dropped("--model_dir=/m --tls-cert=/c --tls-key=/k", &[]);
    assert_eq!(config.http_port, Some(8080), "and with our own flags");
}

#[test]
fn a_wider_limit_of_kserves_is_taken_over() {
    let words = format!("{SKLEARN} --grpc_max_receive_message_length=1073741824");
    assert_eq!(dropped(&words, &[]).0.max_body_size, 1 << 30);
    for (value, named) in [("1048576", true), ("-1", true), ("8388608", false), ("67108864", false)] {
        let (config, warnings) = dropped(&format!("{SKLEARN} --grpc_max_receive_message_length={value}"), &[]);
        assert_eq!(config.max_body_size, 64 << 20, "{value}");
        let warning = "accepted without effect: --grpc_max_receive_message_length";
        assert_eq!(warnings == [warning], named, "{value}: {warnings:?}");
    }
}

const TRITON: &str = "--model-store=/mnt/models --grpc-port=9000 --http-port=8080 --allow-grpc=true --allow-http=true";

#[test]
fn tritons_stock_runtime_by_word_and_by_name() {
    let (by_word, warnings) = dropped(&format!("tritonserver {TRITON}"), &[]);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(by_word.models(), Some(Models::Repository(&[PathBuf::from("/mnt/models")])));
    assert_eq!(ports(&by_word), [Some(8080), Some(9000), Some(8002)]);
    assert_eq!(by_word.profile, Some(Profile::Triton));
    assert_eq!((by_word.model_control_mode, by_word.startup()), (ControlMode::None, Startup::All));
    assert_eq!(by_word.drain_timeout, Duration::from_secs(30));
    assert_eq!(by_word.origin("profile").to_string(), "default of tritonserver");
    let argv: Vec<_> = format!("/usr/bin/tritonserver {TRITON}").split(' ').map(str::to_owned).collect();
    let Command::Serve(args) = parse(&argv, &Default::default()).unwrap().command else { panic!("not serve") };
    assert_eq!(Config::resolve(&args, &MACHINE).unwrap(), by_word);
    assert_eq!(dropped(&format!("serve tritonserver {TRITON}"), &[]).0, by_word);
    let Command::ConfigShow { args, .. } = invoke(&format!("config show tritonserver {TRITON}"), &[]).unwrap().command
    else {
        panic!("not config show")
    };
    assert_eq!(Config::resolve(&args, &MACHINE).unwrap(), by_word);
}

#[test]
fn triton_unless_said_otherwise() {
    let (config, _) = dropped("tritonserver --model-repository=/m", &[]);
    assert_eq!(ports(&config), [Some(8000), Some(8001), Some(8002)]);
    let (config, _) = dropped("tritonserver --model-repository=/m --profile=kserve", &[("TENSORGATE_GRPC_PORT", "5")]);
    assert_eq!((config.profile, config.grpc_port), (Some(Profile::Kserve), Some(5)));
    let environment = [("MLSERVER_HTTP_PORT", "9"), ("MLSERVER_X", "y")];
    let (config, warnings) = dropped("tritonserver --model-repository=/m", &environment);
    assert_eq!((config.http_port, warnings.len()), (Some(8000), 0));
}

#[test]
fn tritons_control_modes() {
    let mode = |words: &str| {
        let (config, warnings) = dropped(&format!("tritonserver --model-repository=/m {words}"), &[]);
        (config.model_control_mode, config.load_model, warnings)
    };
    let one = Some(vec!["iris".to_owned()]);
    assert_eq!(mode("--model-control-mode=explicit"), (ControlMode::Explicit, Some(vec![]), vec![]));
    assert_eq!(mode("--model-control-mode explicit --load-model iris"), (ControlMode::Explicit, one, vec![]));
    let all = dropped("tritonserver --model-repository=/m --model-control-mode=explicit --load-model=*", &[]).0;
    assert_eq!(all.startup(), Startup::All);
    assert_eq!(mode("--model-control-mode=poll --repository-poll-secs=3"), (ControlMode::Poll, None, vec![]));
    let warning = vec!["accepted without effect: --load-model".to_owned()];
    assert_eq!(mode("--load-model=iris"), (ControlMode::None, None, warning), "Triton passes over it too");
}

#[test]
fn tritons_flags_that_are_ours_under_another_name() {
    let words = "tritonserver --model-repository=/m --exit-timeout-secs=7 --http-max-input-size=1048576 --log-verbose=2 \
        --http-address=127.0.0.1 --grpc-address=127.0.0.2 --metrics-address=localhost --log-format=ISO8601";
    let (config, warnings) = dropped(words, &[]);
    assert_eq!((config.drain_timeout, config.max_body_size), (Duration::from_secs(7), 1 << 20));
    assert_eq!((config.log_level, warnings.len()), (LogLevel::Debug, 0));
    let addresses = [config.http(), config.grpc(), config.metrics()].map(|each| each.unwrap().to_string());
    assert_eq!(addresses, ["127.0.0.1:8000", "127.0.0.2:8001", "127.0.0.1:8002"]);
    let level = |verbose: &str| dropped(&format!("tritonserver /m --log-verbose={verbose}"), &[]).0.log_level;
    assert_eq!(["true", "True", "1"].map(level), [LogLevel::Debug; 3]);
    assert_eq!(["FALSE", "-1"].map(level), [LogLevel::Info; 2]);
    assert_eq!(dropped("tritonserver /m --log-verbose=0 --log-info=false", &[]).0.log_level, LogLevel::Warn);
}

#[test]
fn settings_of_tritons_onnx_runtime_backend_are_taken() {
    let settings = [
        "enable-global-threadpool=1",
        "intra_op_thread_count=2",
        "inter_op_thread_count=1",
        "default-max-batch-size=8",
    ];
    let plain = dropped(&format!("tritonserver {TRITON}"), &[]).0;
    for setting in settings {
        let (config, warnings) = dropped(&format!("tritonserver {TRITON} --backend-config=onnxruntime,{setting}"), &[]);
        assert_eq!(warnings, ["accepted without effect: --backend-config"], "{setting}");
        assert_eq!(config, plain, "{setting}");
    }
}

#[test]
fn what_would_be_unsafe_to_pass_over_is_refused() {
    for words in [
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=1",
        "--http-restricted-api=health:k=v",
        "--grpc-restricted-protocol=health:k=v",
    ] {
        let problem = problems(&format!("tritonserver /m {words}"), &[]);
        assert!(problem.contains("; use --"), "{problem}");
        assert!(!problem.contains("k=v"), "a secret is not repeated: {problem}");
    }
    dropped("tritonserver /m --grpc-use-ssl=false", &[]);
}

/// A value that its program takes: of its kind, or where not just any will do, a certain one.
fn value_of(row: &Foreign) -> String {
    match (row.name, row.takes) {
        ("port", _) => "=8001".to_owned(),
        ("otlp-traces-endpoint", _) => "=grpc://o:4317".to_owned(),
        ("allowed-origins", _) => "=[\"*\"]".to_owned(),
        ("tool-call-parser" | "reasoning-parser", _) => "=auto".to_owned(),
        (_, Takes::Nothing) => String::new(),
        (_, Takes::Bool | Takes::Switch) => "=false".to_owned(),
        (_, Takes::Integer | Takes::Level) => "=67108864".to_owned(),
        (_, Takes::Human) => "=8k".to_owned(),
        (_, Takes::Number) => "=6.0".to_owned(),
        (_, Takes::Text | Takes::Words) => "=/x".to_owned(),
        (_, Takes::OneOf(words)) => format!("={}", words[0]),
    }
}

/// Each flag of a list with a value that its program takes is taken here.
#[test]
fn every_row_of_every_list() {
    let starts = [(List::Kserve, "--model_dir=/m"), (List::Triton, "tritonserver"), (List::Vllm, "vllm serve /m")];
    for (list, start) in starts {
        // A certificate needs its key, and the other way round.
        for row in list.flags().filter(|row| !row.name.starts_with("ssl") || !row.name.ends_with("file")) {
            let value = value_of(row);
            let given = value.trim_start_matches('=');
            let refused = match row.becomes {
                Becomes::Refused(_) => row.is_on(given),
                Becomes::RefusedUnless(so_anyway, _) => !so_anyway(given),
                _ => false,
            };
            let words = format!("{start} --{}{value}", row.name);
            assert_eq!(configure(&words, &[]).is_err(), refused, "{words}");
        }
    }
}

#[test]
fn rows_lead_to_flags_that_exist_and_hide_none() {
    let of_vllm = [vllm::SERVER, vllm::FRONT_END, vllm::VARIABLES, engine::FLAGS];
    let others = [kserve::FLAGS, huggingface::FLAGS, triton::FLAGS, mlserver::VARIABLES];
    for rows in of_vllm.into_iter().chain(others) {
        let names: BTreeSet<_> = rows.iter().map(|row| row.name.replace('_', "-")).collect();
        assert_eq!(names.len(), rows.len(), "a name is used twice");
        for row in rows {
            let ours = match row.becomes {
                Becomes::Own(name) | Becomes::Rewritten(name, _) | Becomes::Listener(name) => vec![name],
                Becomes::Names(name, further) => vec![name, further],
                _ => vec![],
            };
            assert!(ours.iter().all(|name| flags::find(name).is_some()), "{}", row.name);
            // A flag of ours may be written in another way there; it may not be another one.
            let hidden = flags::find(row.name).map(|flag| flag.name);
            assert!(hidden.is_none_or(|name| ours == [name]), "{} is a flag of ours", row.name);
        }
    }
    for (short, long) in vllm::SHORT {
        assert!(List::Vllm.find(long).is_some(), "{short}");
    }
}

#[test]
fn mlservers_environment() {
    let environment = [
        ("MLSERVER_MODEL_IMPLEMENTATION", "mlserver_xgboost.XGBoostModel"),
        ("MLSERVER_HTTP_PORT", "8080"),
        ("MLSERVER_GRPC_PORT", "9000"),
        ("MLSERVER_MODEL_NAME", "iris"),
        ("MLSERVER_MODEL_URI", "/mnt/models"),
    ];
    let (config, warnings) = dropped("", &environment);
    assert_eq!(config.models(), one_model("/mnt/models", "iris"));
    assert_eq!(ports(&config), [Some(8080), Some(9000), None]);
    assert_eq!(warnings, ["accepted without effect: MLSERVER_MODEL_IMPLEMENTATION"]);
    assert_eq!(config.origin("grpc-port").to_string(), "env MLSERVER_GRPC_PORT");
    let (config, _) = dropped("--model_name=x --model_dir=/d --http_port=1 --grpc_port=2 --nthread=1", &environment);
    assert_eq!((config.models(), ports(&config)), (one_model("/d", "x"), [Some(1), Some(2), None]));
    assert_eq!(dropped("", &[("MLSERVER_MODEL_URI", "file:///m/n")]).0.models(), one_model("/m/n", "n"));
    let own = [("TENSORGATE_HTTP_PORT", "7"), ("MLSERVER_HTTP_PORT", "8")];
    assert_eq!(dropped("", &own).0.http_port, Some(7));
}

#[test]
fn mlserver_for_several_models() {
    let environment = [("MLSERVER_LOAD_MODELS_AT_STARTUP", "false"), ("MLSERVER_HTTP_PORT", "8080")];
    let (config, _) = dropped("", &environment);
    assert_eq!(config.models(), Some(Models::Repository(&[PathBuf::from("/mnt/models")])));
    assert_eq!(config.startup(), Startup::Only(&[]));
    assert_eq!(dropped("/r", &environment).0.models(), Some(Models::Repository(&[PathBuf::from("/r")])));
    assert_eq!(dropped("", &environment[1..]).0.models(), None);
}

/// What the operator and Knative put into every pod.
#[test]
fn variables_of_the_platform_change_nothing() {
    let environment = [
        ("INFERENCE_SERVICE_NAME", "iris"),
        ("K_SERVICE", "iris"),
        ("K_REVISION", "iris-00001"),
        ("PORT", "9999"),
        ("PROTOCOL", "v1"),
        ("PREDICT_PROBA", "true"),
    ];
    assert_eq!(dropped(SKLEARN, &environment), dropped(SKLEARN, &[]));
}
