//! What follows from settings, and what they must hold together.

use super::*;
use crate::args::tests::{configure, problems, serve};

#[test]
fn what_is_wrong_together() {
    for (words, problem) in [
        (
            "--http-port=9000 --grpc-port 9000 --grpc-address=127.0.0.1",
            "http-port and grpc-port are both 9000 (from --http-port and --grpc-port): each needs a port of its own, or `off`",
        ),
        (
            "--metrics-port=8080",
            "http-port and metrics-port are both 8080 (from the default of http-port and --metrics-port): each needs a port \
             of its own, or `off`",
        ),
        (
            "--http-port=off --grpc-port=off",
            "http-port and grpc-port are both off: nobody could ask this server anything",
        ),
        ("--tls-cert=c", "--tls-cert: needs --tls-key too"),
        ("--tls-key=k", "--tls-key: needs --tls-cert too"),
        (
            "/r --model-dir=/d",
            "DIR and --model-dir cannot both be given: the first is a directory of models, the second one model",
        ),
        (
            "/r --model-name=n",
            "--model-name: only the model of --model-dir is given a name; in a repository the directories name the models",
        ),
        (
            "--model-name=n",
            "--model-name: only the model of --model-dir is given a name; in a repository the directories name the models",
        ),
        (
            "/r --model-alias=n",
            "--model-alias: only the model of --model-dir is given a name; in a repository the directories name the models",
        ),
        ("--queue-size=0", "--queue-size: must be at least 1"),
        ("--max-connections=0", "--max-connections: must be at least 1"),
        ("--max-batch-rows=0", "--max-batch-rows: must be at least 1"),
        ("--max-body-size=0", "--max-body-size: must be at least 1"),
        ("--idle-timeout=0", "--idle-timeout: must be longer than 0"),
        ("--request-timeout=0s", "--request-timeout: must be longer than 0"),
        ("--repository-poll-secs=0", "--repository-poll-secs: must be longer than 0"),
        ("--nthread=9999", "--nthread: at most 4096 threads"),
        (
            "--inflight-bytes=1MiB",
            "--inflight-bytes: must be at least max-body-size, or a request of that size would be let in only while there \
             is no other",
        ),
        ("--max-batch-delay=1m", "--max-batch-delay: must be shorter than request-timeout"),
        (
            "--otlp-endpoint=https://me:secret@o/v1/traces",
            "--otlp-endpoint: `https://...@o/v1/traces` has a user before its host: credentials are not supported, and \
             would not be sent",
        ),
        ("--otlp-endpoint=ftp://o", "--otlp-endpoint: `ftp://o` is not a URL that begins with http:// or https://"),
        ("/r --load-model=* --load-model=a", "--load-model: `*` is all models and stands alone"),
        (
            "/r --load-model=a --model-control-mode=none",
            "--load-model: needs --model-control-mode explicit; in the others every model of the repository is loaded",
        ),
        (
            "--model-dir=/d --load-model=a",
            "--load-model: chooses among the models of a repository; --model-dir is one model",
        ),
    ] {
        assert_eq!(problems(words, &[]), problem, "{words}");
    }
    let long = format!("--model-dir=/d --model-name={}", "n".repeat(257));
    assert_eq!(problems(&long, &[]), "--model-name: a name has at most 256 characters, all of them visible");
    let long = format!("--model-dir=/d --model-alias={}", "n".repeat(257));
    assert_eq!(problems(&long, &[]), "--model-alias: a name has at most 256 characters, all of them visible");
    assert_eq!(problems("--tls-cert=c --queue-size=0", &[]).lines().count(), 2);
}

#[test]
fn further_names() {
    let aliases = |words: &str| configure(words, &[]).unwrap().aliases();
    assert_eq!(aliases("--model-dir=/d"), Vec::<String>::new());
    assert_eq!(
        aliases("--model-dir=/d --model-alias=e --model-alias=d --model-alias=f"),
        ["e", "f"],
        "and not its own"
    );
    let environment = [("TENSORGATE_MODEL_ALIAS", "a, b")];
    assert_eq!(configure("--model-dir=/d", &environment).unwrap().aliases(), ["a", "b"]);
    assert_eq!(configure("/r", &environment).unwrap().aliases(), Vec::<String>::new(), "left aside as a name is");
}

#[test]
fn the_place_of_a_problem_is_where_the_value_was_given() {
    let environment = [("TENSORGATE_QUEUE_SIZE", "0"), ("KSERVE_TLS_KEY_FILE", "/k")];
    let lines = problems("", &environment);
    assert_eq!(lines, "TENSORGATE_QUEUE_SIZE: must be at least 1\nKSERVE_TLS_KEY_FILE: needs --tls-cert too");
    let mut args = Args::default();
    file::add(&mut args, Path::new("c.yaml"), "queue-size: 0").unwrap();
    let error = Config::resolve(&args, &Machine { cores: 1, memory: 0 }).unwrap_err();
    assert_eq!(error.to_string(), "queue-size in c.yaml: must be at least 1");
}

#[test]
fn the_source_that_is_heard_first_hides_the_other() {
    let paths = [PathBuf::from("/r")];
    let repository = Some(Models::Repository(&paths));
    let directory = Some(Models::Directory { path: Path::new("/d"), name: "d" });
    let both = [("TENSORGATE_MODEL_REPOSITORY", "/r"), ("TENSORGATE_MODEL_NAME", "n")];
    assert_eq!(configure("/r", &[("TENSORGATE_MODEL_DIR", "/d")]).unwrap().models(), repository);
    assert_eq!(configure("--model-dir=/d", &both[..1]).unwrap().models(), directory);
    assert_eq!(configure("/r", &both[1..]).unwrap().models(), repository, "a name from the environment is left aside");
    assert!(problems("", &both).starts_with("TENSORGATE_MODEL_NAME: only the model of --model-dir"));
    let named = Some(Models::Directory { path: Path::new("/d"), name: "n" });
    assert_eq!(configure("--model-dir=/d", &both).unwrap().models(), named);
    assert_eq!(configure("--model-dir=/d/ --model-name=n", &[]).unwrap().models().is_some(), named.is_some());
    let root = Some(Models::Directory { path: Path::new("/"), name: "model" });
    assert_eq!(configure("--model-dir=/", &[]).unwrap().models(), root);
}

#[test]
fn listeners() {
    let addresses = |words: &str| {
        let config = configure(words, &[]).unwrap();
        [config.http(), config.grpc(), config.metrics()]
            .map(|each| each.map_or("-".to_owned(), |each| each.to_string()))
    };
    assert_eq!(addresses(""), ["0.0.0.0:8080", "0.0.0.0:8081", "-"]);
    assert_eq!(addresses("--host=:: --grpc-port=off --metrics-port=9"), ["[::]:8080", "-", "[::]:9"]);
    assert_eq!(addresses("--host=localhost --http-port=0 --grpc-port=0"), ["127.0.0.1:0", "127.0.0.1:0", "-"]);
    let apart = "--http-address=127.0.0.1 --grpc-address=127.0.0.2 --http-port=1 --grpc-port=1";
    assert_eq!(addresses(apart), ["127.0.0.1:1", "127.0.0.2:1", "-"]);
    assert_eq!(addresses("--http-port=1 --grpc-port=1"), ["0.0.0.0:1", "-", "-"], "one port answers both");
    assert!(configure("--http-port=1 --grpc-port=1", &[]).unwrap().shares_port());
    assert!(!configure("--http-port=0 --grpc-port=0", &[]).unwrap().shares_port());
}

#[test]
fn what_fits() {
    let sized = |memory, words| {
        let (args, _) = serve(words, &[]).unwrap();
        Config::resolve(&args, &Machine { cores: 3, memory }).unwrap()
    };
    assert_eq!(sized(8 << 30, "").inflight_bytes, 2 << 30);
    assert_eq!(sized(512 << 20, "").inflight_bytes, 128 << 20, "so that a small container is not ended");
    assert_eq!(sized(128 << 20, "--inflight-bytes=0").inflight_bytes, 65 << 20, "a body, and an answer beside it");
    assert_eq!(sized(1 << 30, "--max-body-size=1GiB").inflight_bytes, 1025 << 20);
    assert_eq!(sized(8 << 30, "--inflight-bytes=100MiB").inflight_bytes, 100 << 20);
    assert_eq!((sized(0, "").nthread, sized(0, "--nthread=1").nthread), (3, 1));
}

#[test]
fn the_form_of_grpc_outputs() {
    for (words, mirrored) in [
        ("", false),
        ("--profile=triton", false),
        ("--profile=kserve", true),
        ("--profile=kserve --grpc-outputs=raw", false),
        ("--grpc-outputs=mirror", true),
    ] {
        assert_eq!(configure(words, &[]).unwrap().mirrors_grpc_outputs(), mirrored, "{words}");
    }
}

#[test]
fn startup() {
    assert_eq!(configure("/r", &[]).unwrap().startup(), Startup::All);
    assert_eq!(configure("/r --load-model=*", &[]).unwrap().startup(), Startup::All);
    assert_eq!(configure("/r --load-model=", &[]).unwrap().startup(), Startup::Only(&[]));
    assert_eq!(configure("/r --load-model=a", &[]).unwrap().startup(), Startup::Only(&["a".to_owned()]));
}

#[test]
fn tls_and_draining() {
    let config = configure("--tls-cert=c --tls-key=k --drain-delay=5s --drain-timeout=20s", &[]).unwrap();
    assert_eq!(config.tls(), Some((Path::new("c"), Path::new("k"))));
    assert_eq!(config.drain_total(), Duration::from_secs(25));
    assert_eq!(configure("", &[]).unwrap().drain_delay, Duration::from_secs(5), "long enough to be seen as unready");
    assert_eq!(config.log_level.name(), "info");
    assert_eq!(configure("", &[]).unwrap().tls(), None);
}
