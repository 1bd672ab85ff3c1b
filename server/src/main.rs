//! `tensorgate`: reads the command line, and does what it says.

use mimalloc::MiMalloc;
use server::args::{self, Command, UsageError, help};
use server::cli::{config_show, manifests, validate};
use server::config::{Config, LogFormat, Machine};
use std::io::IsTerminal;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
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
            start_logging(&config);
            invocation.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            return serve(config);
        }
        Command::ConfigShow { args, origin } => {
            print!("{}", config_show::render(&Config::load(args, &Machine::detect())?, origin));
        }
        Command::Validate { directory } => {
            let (text, good) = validate::validate(&directory).map_err(problem)?;
            print!("{text}");
            return Ok(u8::from(!good));
        }
        Command::ServingRuntime { format, image } => {
            print!("{}", manifests::serving_runtime(format, image.as_deref()));
        }
        Command::Help(text) => print!("{text}"),
        Command::Version => println!("{}", help::version()),
    }
    invocation.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
    Ok(0)
}

fn problem(what: String) -> UsageError {
    UsageError { problems: vec![what] }
}

fn serve(config: Config) -> Result<u8, UsageError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| problem(e.to_string()))?;
    let code = runtime.block_on(server::app::run(config)).map_err(problem);
    // Whatever still runs has had its time.
    runtime.shutdown_background();
    code
}

/// Text on a terminal, JSON otherwise.
fn start_logging(config: &Config) {
    let terminal = std::io::stderr().is_terminal();
    let json = match config.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let filter = tracing_subscriber::EnvFilter::new(config.log_level.name());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { logs.json().init() } else { logs.with_ansi(terminal).init() }
}
