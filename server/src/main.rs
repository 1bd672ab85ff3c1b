//! `tensorgate`: reads the command line, and does what it says.

use mimalloc::MiMalloc;
use server::args::{self, Command, UsageError, help};
use server::cli::{config_show, manifests, run, validate};
use server::config::{Config, LogFormat, Machine};
use server::llm::trial;
use server::probe;
use server::telemetry::{self, Format};
use server::worker;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use tracing::level_filters::LevelFilter;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(word) if word == probe::COMMAND => return probe::child(),
        Some(word) if word == trial::COMMAND => return trial::child(),
        Some(word) if word == worker::COMMAND => return worker::child(),
        _ => {}
    }
    match dispatch() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.problems.iter().for_each(|problem| eprintln!("tensorgate: {problem}"));
            ExitCode::from(UsageError::EXIT_CODE)
        }
    }
}

fn dispatch() -> Result<u8, UsageError> {
    let invocation = args::from_process()?;
    match invocation.command {
        Command::Serve(args) => {
            let config = Config::load(args, &Machine::detect())?;
            // Until the end: what waits is written when it is dropped.
            let telemetry = start_telemetry(&config)?;
            invocation.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            let code = serve(config)?;
            if code != 0 {
                // A second signal: whoever sent it does not wait for a collector.
                telemetry.abandon();
            }
            return Ok(code);
        }
        Command::Run { args, talk } => {
            let config = Config::load(args, &Machine::detect())?;
            let _telemetry = start_telemetry(&config)?;
            invocation.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            return on_runtime(run::run(&config, talk));
        }
        Command::ConfigShow { args, origin } => {
            say(&config_show::render(&Config::load(args, &Machine::detect())?, origin))?;
        }
        Command::Validate { directory, onnxruntime } => {
            let (text, good) = validate::validate(&directory, onnxruntime.as_deref()).map_err(problem)?;
            say(&text)?;
            return Ok(u8::from(!good));
        }
        Command::ServingRuntime { format, image } => {
            say(&manifests::serving_runtime(format, image.as_deref()))?;
        }
        Command::Help(text) => say(&text)?,
        Command::Version => say(&format!("{}\n", help::version()))?,
    }
    invocation.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(0)
}

/// Writes to standard output. Whoever has read enough closes it, and that is no problem; a full disk is one.
fn say(text: &str) -> Result<(), UsageError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(problem(format!("standard output: {error}"))),
        _ => Ok(()),
    }
}

fn problem(what: String) -> UsageError {
    UsageError { problems: vec![what] }
}

fn serve(config: Config) -> Result<u8, UsageError> {
    on_runtime(server::app::run(config))
}

fn on_runtime(work: impl Future<Output = Result<u8, String>>) -> Result<u8, UsageError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| problem(e.to_string()))?;
    let code = runtime.block_on(work).map_err(problem);
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    code
}

fn start_telemetry(config: &Config) -> Result<telemetry::Guard, UsageError> {
    let options = telemetry::Options {
        level: config.log_level.name().parse().unwrap_or(LevelFilter::INFO),
        format: match config.log_format {
            LogFormat::Auto => Format::Auto,
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        },
        otlp_endpoint: config.otlp_endpoint.clone(),
        endpoint_of_cluster: config.origin("otlp-endpoint").is_of_others(),
    };
    telemetry::init(&options).map_err(problem)
}
