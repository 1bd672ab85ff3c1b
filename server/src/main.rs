//! `tensorgate`: reads the command line, builds the runtime, runs.

use mimalloc::MiMalloc;
use server::app::{self, Settings};
use server::batcher;
use server::dataplane::Control;
use server::edge::activity::Timeouts;
use server::profile::Profile;
use server::repository::Repository;
use server::rest::BodyLimits;
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<String> = std::env::args().collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let settings = Settings {
        repository: Repository::many(flag("--model-repository").unwrap_or_default()),
        host: std::net::Ipv4Addr::UNSPECIFIED.into(),
        http_port: Some(flag("--http-port").and_then(|p| p.parse().ok()).unwrap_or(8080)),
        grpc_port: Some(flag("--grpc-port").and_then(|p| p.parse().ok()).unwrap_or(8081)),
        profile: Profile::Merged,
        threads: 2,
        control: Control::Explicit,
        batching: batcher::Options::default(),
        body: BodyLimits { bytes: 64 << 20, idle: Duration::from_secs(30) },
        inflight_bytes: 1 << 30,
        connections: 4096,
        timeouts: Timeouts {
            header: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            stalled: Duration::from_secs(60),
        },
        request_timeout: Duration::from_secs(60),
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::from_secs(45),
        api_keys_file: None,
        wait_for_repository: false,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tensorgate: {error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(app::run(settings)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("tensorgate: {error}");
            ExitCode::from(2)
        }
    }
}
