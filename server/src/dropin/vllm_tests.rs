//! Command lines with which KServe and people start vLLM and huggingfaceserver, as they are.

use super::tests::{dropped, one_model, ports};
use super::{List, vllm};
use crate::args::tests::{invoke, problems};
use crate::args::{Command, Environment, parse};
use crate::config::{Config, ControlMode, LoadFormat, LogLevel};
use backends::llm::device::CacheFormat;
use backends::llm::text::output::{Choice, ReasoningParser};
use std::path::Path;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// What `deploy/llm` and KServe's own template for one node make of an LLMInferenceService.
const LLM_SERVICE: &str = "vllm serve /mnt/models --served-model-name qwen publishers/ns/models/qwen --port 8000 \
    --disable-access-log-for-endpoints /health,/metrics,/ping --shutdown-timeout 45 --enable-ssl-refresh \
    --ssl-certfile /tls.crt --ssl-keyfile /tls.key";

fn settled(words: &str) -> Config {
    let (config, warnings) = dropped(words, &[]);
    assert_eq!(warnings, Vec::<String>::new(), "{words}");
    config
}

fn drain(config: &Config) -> [Duration; 2] {
    [config.drain_delay, config.drain_timeout]
}

#[test]
fn kserves_llm_service() {
    let config = settled(LLM_SERVICE);
    assert_eq!(config.models(), one_model("/mnt/models", "qwen"));
    assert_eq!(config.aliases(), ["publishers/ns/models/qwen"]);
    assert_eq!(ports(&config), [Some(8000), None, None]);
    assert_eq!(config.tls(), Some((Path::new("/tls.crt"), Path::new("/tls.key"))));
    assert_eq!(drain(&config), [Duration::ZERO, 45 * SECOND], "KServe's hook has waited already");
    let underscored = LLM_SERVICE.replace("-model-", "_model_").replace("ssl-", "ssl_").replace("-timeout", "_timeout");
    assert_eq!(settled(&underscored).tls(), config.tls());
    let argv: Vec<_> = format!("/usr/local/bin/{LLM_SERVICE}").split_whitespace().map(str::to_owned).collect();
    let Command::Serve(args) = parse(&argv, &Environment::default()).unwrap().command else { panic!("not serve") };
    assert_eq!(Config::resolve(&args, &crate::args::tests::MACHINE).unwrap(), config, "by the name of the program");
    let Command::ConfigShow { .. } = invoke(&format!("config show {LLM_SERVICE}"), &[]).unwrap().command else {
        panic!("not config show")
    };
}

#[test]
fn kserves_runtime_for_vllm() {
    let config = settled("vllm --port=8080 --served-model-name=qwen --model=/mnt/models");
    assert_eq!((config.models(), ports(&config)), (one_model("/mnt/models", "qwen"), [Some(8080), None, None]));
    let ours = "vllm serve /mnt/models --served-model-name=qwen --port=8080 --shutdown-timeout=20 --max-model-len=4096";
    let (config, warnings) = dropped(ours, &[("TENSORGATE_DRAIN_DELAY", "5s")]);
    assert_eq!((drain(&config), warnings.len()), ([5 * SECOND, 20 * SECOND], 0));
    assert_eq!(settled(&format!("{ours} --ssl-certfile= --ssl-keyfile=")).tls(), None, "what a template left out");
}

#[test]
fn web_pages_may_ask_as_vllm_lets_them() {
    let origins = |value: &str| settled(&format!("vllm serve /m {value}")).allowed_origins.unwrap().join(",");
    assert_eq!(origins(""), "*");
    assert_eq!(origins(r#"--allowed-origins=["https://a","http://b:3000"]"#), "https://a,http://b:3000");
    assert_eq!(origins(r#"--allowed-origins=["*"]"#), "*");
    assert_eq!(origins("--allowed-origins=[]"), "none");
    assert_eq!(settled("vllm serve /m --allowed-origins=[]").origins(), None);
}

#[test]
fn what_vllm_does_unless_told_otherwise() {
    let config = settled("vllm serve ./models/qwen");
    assert_eq!(config.models(), one_model("./models/qwen", "./models/qwen"), "called as it was given");
    assert_eq!((config.profile, config.model_control_mode), (None, ControlMode::None));
    assert_eq!((ports(&config), drain(&config)), ([Some(8000), None, None], [5 * SECOND, 20 * SECOND]));
    assert_eq!(config.origin("http-port").to_string(), "default of vllm");
    let config = settled("vllm serve /m --grpc-port 9000 --host 127.0.0.1");
    assert_eq!(config.grpc().unwrap().to_string(), "127.0.0.1:9000");
    assert_eq!(settled("vllm serve --model-dir=/m --model-name=n").models(), one_model("/m", "n"), "our flags work");
}

#[test]
fn names_are_one_or_several_and_the_last_ones() {
    let cases: [(&str, &str, &[&str]); 5] = [
        ("--served-model-name a", "a", &[]),
        ("--served_model_name a b c --port 1", "a", &["b", "c"]),
        ("--served-model-name=a", "a", &[]),
        ("--served-model-name a b --served-model-name c", "c", &[]),
        ("--served-model-name a a b", "a", &["b"]),
    ];
    for (words, name, aliases) in cases {
        let config = settled(&format!("vllm serve /m {words}"));
        assert_eq!(config.models(), one_model("/m", name), "{words}");
        assert_eq!(config.aliases(), aliases, "{words}");
    }
    assert_eq!(problems("vllm serve /m --served-model-name", &[]), "--served-model-name: needs a value");
}

#[test]
fn numbers_as_vllm_reads_them() {
    for (text, number) in [
        ("8192", Some(8192)),
        ("8k", Some(8000)),
        ("8K", Some(8192)),
        ("25.6k", Some(25_600)),
        ("1m", Some(1_000_000)),
        ("2G", Some(2 << 30)),
        ("0", Some(0)),
        ("1.5K", None),
        ("1.5", None),
        ("k", None),
        (".5k", None),
        ("8kk", None),
        ("-1", None),
        ("+1", None),
        ("99999999T", None),
        ("", None),
    ] {
        assert_eq!(vllm::human(text), number, "{text}");
    }
    let config = settled(
        "vllm serve /m --max-model-len 8K --max-num-seqs=16 --max-num-batched-tokens 2k --kv-cache-memory-bytes 1G \
         --max-num-queued-reqs 100 --load-format safetensors --uvicorn-log-level warning",
    );
    assert_eq!((config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens), (Some(8192), 16, 2000));
    assert_eq!((config.kv_cache_bytes, config.queue_size, config.log_level), (1 << 30, 100, LogLevel::Warn));
    for auto in ["auto", "-1"] {
        assert_eq!(settled(&format!("vllm serve /m --max-model-len {auto}")).max_model_len, None);
    }
    assert_eq!(settled("vllm serve /m --load-format=dummy").load_format, LoadFormat::Dummy);
    for (word, format) in [("auto", CacheFormat::Auto), ("bfloat16", CacheFormat::Bf16), ("fp8_e4m3", CacheFormat::Fp8)]
    {
        assert_eq!(settled(&format!("vllm serve /m --kv-cache-dtype {word}")).kv_cache_dtype, format);
    }
    for (word, parser) in [("openai_gptoss", Choice::Auto), ("qwen3", Choice::This(ReasoningParser::Think))] {
        assert_eq!(settled(&format!("vllm serve /m --reasoning-parser {word}")).reasoning_parser, parser);
    }
    let problem = problems("vllm serve /m --kv-cache-dtype fp8_e5m2", &[]);
    assert!(problem.contains("is not one of auto, bfloat16, fp8, fp8_e4m3"), "{problem}");
    let endpoint = settled("vllm serve /m --otlp-traces-endpoint=grpc://collector:4317").otlp_endpoint;
    assert_eq!(endpoint.as_deref(), Some("http://collector:4317"));
}

#[test]
fn what_only_makes_vllm_faster_is_named() {
    let (_, warnings) = dropped(
        "vllm serve /m -tp 2 -dp=1 -O3 --compilation-config.mode 3 --enforce-eager --gpu-memory-utilization 0.9 \
         --no-enable-prefix-caching --enable-chunked-prefill --dtype bfloat16 --brand-new 7",
        &[],
    );
    let idle = "accepted without effect: --compilation-config.mode, --enforce-eager, \
        --gpu-memory-utilization, --no-enable-prefix-caching, -O3, -dp, -tp; unknown and ignored: --brand-new";
    assert_eq!(warnings, [idle]);
    settled(
        "vllm serve /m --enable-prefix-caching --enable-auto-tool-choice --tool-call-parser hermes \
         --disable-log-requests --no-grpc --task generate --runner auto --generation-config auto --nnodes 1 \
         --node-rank 0 --ssl-cert-reqs 0 --hf-overrides {}",
    );
}

#[test]
fn usage_of_every_stream() {
    assert!(!settled("vllm serve /m").force_include_usage);
    assert!(settled("vllm serve /m --enable-force-include-usage").force_include_usage);
    assert!(!settled("vllm serve /m --no-enable-force-include-usage").force_include_usage);
    assert!(settled("vllm serve /m --force-include-usage=true").force_include_usage, "our flags work");
    let (config, warnings) = dropped("--model_name=qwen --enable_force_include_usage", &[]);
    assert_eq!((config.force_include_usage, warnings.len()), (true, 0), "huggingfaceserver has it as well");
}

#[test]
fn what_would_change_answers_or_be_unsafe_is_refused() {
    for (words, place) in [
        ("--api-key s3cret s3cret2", "--api-key"),
        ("--api-key=s3cret", "--api-key"),
        ("--uds /run/s", "--uds"),
        ("--middleware my.Auth", "--middleware"),
        ("--ssl-cert-reqs 2", "--ssl-cert-reqs: `2`"),
        ("--headless", "--headless"),
        ("--node-rank=1", "--node-rank: `1`"),
        ("--tokenizer other", "--tokenizer"),
        ("--tokenizer-mode mistral", "--tokenizer-mode: `mistral`"),
        ("--chat-template /t.jinja", "--chat-template"),
        ("--hf-overrides {\"rope_theta\":1}", "--hf-overrides: `{\"rope_theta\":1}`"),
        ("--hf-overrides []", "--hf-overrides: `[]`"),
        ("--hf-overrides.rope_theta=1", "--hf-overrides.rope_theta: `1`"),
        ("--generation-config vllm", "--generation-config: `vllm`"),
        ("--lora-modules a=b c=d", "--lora-modules"),
        ("--runner pooling", "--runner: `pooling`"),
        ("--logprobs-mode processed_logprobs", "--logprobs-mode: `processed_logprobs`"),
    ] {
        let problem = problems(&format!("vllm serve /m {words}"), &[]);
        assert!(problem.starts_with(&format!("{place}: ")) && problem.lines().count() == 1, "{problem}");
        assert!(!problem.contains("s3cret"), "a secret is not repeated: {problem}");
    }
    for (words, problem) in [
        ("--load-format tensorizer", "--load-format: `tensorizer` is not one of auto, dummy"),
        ("--max-model-len 8x", "--max-model-len: `8x` is not a whole number, as 8192, 8k or 8K"),
        ("--max-num-seqs auto", "--max-num-seqs: `auto` is not a whole number"),
        ("--port", "--port: needs a value"),
    ] {
        assert_eq!(problems(&format!("vllm serve /m {words}"), &[]), problem);
    }
}

#[test]
fn vllms_environment() {
    let environment = [
        ("VLLM_LOGGING_LEVEL", "WARNING"),
        ("VLLM_CPU_KVCACHE_SPACE", "2"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),
        ("VLLM_SERVICE_HOST", "10.96.0.1"),
        ("HF_HUB_CACHE", "/models"),
        ("MLSERVER_HTTP_PORT", "1"),
    ];
    let (config, warnings) = dropped("vllm serve /m", &environment);
    assert_eq!((config.log_level, config.kv_cache_bytes, warnings.len()), (LogLevel::Warn, 2 << 30, 0));
    assert_eq!(dropped("/m", &environment[..2]).0.log_level, LogLevel::Info, "in vLLM's place alone");
    let problem = problems("vllm serve /m", &[("VLLM_API_KEY", "s3cret")]);
    assert!(problem.starts_with("VLLM_API_KEY: ") && problem.contains("--api-keys-file"), "{problem}");
    assert!(!problem.contains("s3cret"), "{problem}");
}

/// KServe takes the last word of the last line for the release, and chooses flags by it.
#[test]
fn the_version_is_that_of_both() {
    let printed = |words: &[&str]| {
        let argv: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        match parse(&argv, &Environment::default()).unwrap().command {
            Command::Help(text) => text,
            other => panic!("{other:?}"),
        }
    };
    let text = printed(&["/usr/bin/vllm", "--version"]);
    assert!(text.starts_with("tensorgate ") && text.ends_with(&format!(" {}\n", vllm::RELEASE)), "{text}");
    assert_eq!(printed(&["tensorgate", "vllm", "--version"]), text);
    assert_eq!(printed(&["vllm", "-v"]), text);
    assert!(matches!(invoke("tritonserver --version", &[]).unwrap().command, Command::Version));
    assert_eq!(List::Own.release(), None);
}

#[test]
fn kserves_huggingfaceserver() {
    let (config, warnings) = dropped("--model_name=qwen", &[]);
    let model = one_model("/mnt/models", "qwen");
    assert_eq!((config.models(), warnings.len()), (model, 0), "the stock runtime says no more");
    let (config, warnings) = dropped(
        "--model_name=qwen --model_id=/models/qwen --max_model_len=4096 --task=text_generation --backend=vllm \
         --dtype=float16 --trust_remote_code --return_token_type_ids --tensor_parallel_size=2 --disable_log_requests \
         --gpu-memory-utilization=0.9 --max_num_seqs=8",
        &[],
    );
    assert_eq!(config.models(), one_model("/models/qwen", "qwen"));
    assert_eq!((config.max_model_len, config.max_num_seqs), (Some(4096), 8));
    let idle = "accepted without effect: --backend, --gpu-memory-utilization, --return_token_type_ids, \
        --tensor_parallel_size, --trust_remote_code";
    assert_eq!(warnings, [idle]);
    assert_eq!(dropped("--model_name=m --max_length=512", &[]).0.max_model_len, Some(512));
    let problem = problems("--model_name=m --task=fill_mask", &[]);
    assert_eq!(problem, "--task: `fill_mask`: not built yet: this server does text generation");
}
