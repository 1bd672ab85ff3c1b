//! `ready`: how long a server takes from exec to its first good answer.
//!
//! Asks every few hundred microseconds, as no orchestrator would, to see the server's time and not the prober's. The
//! files are in the page cache after the first run: this is the time of a warm machine.

use crate::Failure;
use crate::http1::{Head, Target, request};
use crate::process;
use serde::Serialize;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Arguments of `ready`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Answers 200 when the server is ready, such as http://127.0.0.1:8080/v2/health/ready
    #[arg(long)]
    url: String,
    /// Seconds after which a start has failed
    #[arg(long, default_value_t = 60.0)]
    timeout: f64,
    /// Starts to time
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The server and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    min_ms: f64,
    median_ms: f64,
    all_ms: Vec<f64>,
    /// Memory of the process tree when it was ready, of the last start.
    resident_bytes: u64,
}

/// Times starts and prints the report.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let target = Target::parse(&args.url)?;
    let timeout = Duration::try_from_secs_f64(args.timeout)?;
    let (_signals, interrupted) = watch_signals()?;
    let (mut times, mut resident_bytes) = (Vec::new(), 0);
    for _ in 0..args.repeat.max(1) {
        if TcpStream::connect(target.address).is_ok() {
            return Err(format!("something listens on {} already", target.address).into());
        }
        let began = Instant::now();
        let mut server = Server::start(&args.command)?;
        server.wait_until_ready(&target, began + timeout, &interrupted)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        resident_bytes = process::usage(server.0.id())?.resident_bytes;
    }
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let report = Report { min_ms: sorted[0], median_ms: sorted[sorted.len() / 2], all_ms: times, resident_bytes };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        let mib = report.resident_bytes as f64 / f64::from(1 << 20);
        println!(
            "ready after {:.1} ms (median of {}; fastest {:.1} ms), {mib:.1} MiB",
            report.median_ms, args.repeat, report.min_ms
        );
    }
    Ok(())
}

/// Between two questions.
const PAUSE: Duration = Duration::from_micros(300);

/// Longest wait for one answer, or for a server to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(5);

/// Set when somebody wants this program to end. It must not end at once: the server is in a process group of its own,
/// and would stay.
fn watch_signals() -> Result<(tokio::runtime::Runtime, Arc<AtomicBool>), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let entered = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, interrupted) = (signal(kind)?, interrupted.clone());
        runtime.spawn(async move {
            signals.recv().await;
            interrupted.store(true, Ordering::Relaxed);
        });
    }
    drop(entered);
    Ok((runtime, interrupted))
}

/// A running server with its process group, ended when dropped.
struct Server(Child);

impl Server {
    fn start(command: &[String]) -> Result<Server, Failure> {
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{}: {error}", command[0]))?;
        Ok(Server(child))
    }

    fn wait_until_ready(
        &mut self,
        target: &Target,
        deadline: Instant,
        interrupted: &AtomicBool,
    ) -> Result<(), Failure> {
        while Instant::now() < deadline {
            if interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".into());
            }
            if is_ready(target) {
                return Ok(());
            }
            if let Some(status) = self.0.try_wait()? {
                return Err(format!("the server ended before it was ready: {status}").into());
            }
            std::thread::sleep(PAUSE);
        }
        Err("not ready in time".into())
    }

    /// Signals the whole group: servers have children.
    fn signal(&self, signal: &str) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args([signal, "--", &group]).stderr(Stdio::null()).status();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("-TERM");
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(PAUSE);
        }
        self.signal("-KILL");
        let _ = self.0.wait();
    }
}

/// One question on a connection of its own. Anything but 200 is a no.
fn is_ready(target: &Target) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(target.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&request(target, &["Connection: close".to_owned()], b""))?;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            match stream.read(&mut part)? {
                0 => return Ok(false),
                length => answer.extend_from_slice(&part[..length]),
            }
            match Head::parse(&answer) {
                Ok(Some(head)) => return Ok(head.status == 200),
                Ok(None) => {}
                Err(_) => return Ok(answer.starts_with(b"HTTP/1.1 200")),
            }
        }
    };
    ask().unwrap_or(false)
}
