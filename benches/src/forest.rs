//! `forest`: the tree engine without a server around it, on one thread.
//!
//! A call is timed whole, from tensors to tensors, as `peers/inprocess.py` times the libraries: every call gets other
//! rows than the one before, and the fastest and the median call are reported. The fastest is what the code can do; the
//! median is what the machine let it do meanwhile.

use crate::Failure;
use crate::process;
use backends::llm::LanguageOptions;
use backends::onnx::OnnxOptions;
use backends::{
    Artifact, Call, CancelFlag, Conventions, DataType, InferError, Limits, LoadOptions, Model, Parameters, Predictor,
    Tensor,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments of `forest`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the model
    #[arg(long)]
    model: PathBuf,
    /// Rows of f32, row-major; x.f32.bin of the model's directory or of the one above by default
    #[arg(long)]
    rows: Option<PathBuf>,
    /// Columns of a row
    #[arg(long, default_value_t = 50)]
    columns: usize,
    /// Rows of a call; may be repeated
    #[arg(long = "batch", default_values_t = [1, 64, 10_000])]
    batches: Vec<usize>,
    /// Time spent on each batch size
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Threads for large batches
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// What peers/inprocess.py printed for the same model, to be compared with
    #[arg(long)]
    library_json: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    model: String,
    engine: &'static str,
    threads: usize,
    load_ms: f64,
    /// Are the answers those of the library that trained the model, bit for bit? None without its answers.
    exact: Option<bool>,
    /// By rows of a call.
    batches: BTreeMap<usize, Timing>,
}

#[derive(Serialize)]
struct Timing {
    min_us: f64,
    median_us: f64,
    /// Processor time of a call on average, the timing itself included: what other jobs on the machine disturb least.
    cpu_us: f64,
    calls: usize,
}

/// Times the engine and prints the report.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let began = Instant::now();
    let model = open(&args.model, args.threads)?;
    let load_ms = began.elapsed().as_secs_f64() * 1e3;
    let rows = read_rows(args)?;
    let width = args.columns * 4;
    let seconds = Duration::try_from_secs_f64(args.seconds)?;
    let mut batches = BTreeMap::new();
    let mut exact = None;
    for &batch in &args.batches {
        let inputs = rows
            .chunks_exact(width * batch)
            .map(|part| Tensor::from_bytes("x", DataType::Fp32, vec![batch, args.columns], part.to_vec().into()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?;
        if inputs.is_empty() {
            return Err(format!("fewer than {batch} rows").into());
        }
        exact = is_exact(&*model, &inputs[0], &args.model.join("expected.bin"))?.map(|now| now && exact != Some(false));
        batches.insert(batch, time(&*model, &inputs, seconds)?);
    }
    let name = args.model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let report = Report { model: name, engine: "tensorgate", threads: args.threads, load_ms, exact, batches };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    let exact = exact.map_or("unchecked", |exact| if exact { "exact" } else { "WRONG" });
    println!("{}: loaded in {:.1} ms, {} thread(s), answers {exact}", report.model, report.load_ms, report.threads);
    let peers = args.library_json.as_deref().map(|path| peers(path, &report.model)).transpose()?.unwrap_or_default();
    for (batch, timing) in &report.batches {
        println!(
            "batch {batch:>6}: {:>12.2} us (median {:.2}, {} calls)",
            timing.min_us, timing.median_us, timing.calls
        );
        for (engine, [min, median]) in peers.iter().filter_map(|(engine, times)| Some((engine, times.get(batch)?))) {
            let (faster, typically) = (min / timing.min_us, median / timing.median_us);
            println!("  {engine:<28} {min:>10.2} us (median {median:.2}): we take 1/{faster:.1} (1/{typically:.1})");
        }
    }
    Ok(())
}

fn open(directory: &Path, threads: usize) -> Result<Box<dyn Predictor>, Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let options = LoadOptions {
        pool: Arc::new(pool),
        limits: Limits::default(),
        conventions: Conventions::Kserve,
        language: LanguageOptions::default(),
        onnx: OnnxOptions::default(),
    };
    // Benchmark models lie there in several forms; a model directory has one.
    let alone = Alone::of(directory)?;
    let artifact = Artifact::open(&alone.0, &alone.0)?;
    let Model::Predictor(model) = backends::load(&artifact, &options)? else {
        return Err("a language model is no forest".into());
    };
    Ok(model)
}

/// A directory with a copy of the first model file of another, removed when dropped.
struct Alone(PathBuf);

impl Alone {
    fn of(directory: &Path) -> Result<Alone, Failure> {
        const NAMES: [&str; 4] = ["model.ubj", "model.json", "model.txt", "model.bst"];
        let name = NAMES.into_iter().find(|name| directory.join(name).is_file());
        let name = name.ok_or_else(|| format!("{}: none of {NAMES:?}", directory.display()))?;
        let alone = std::env::temp_dir().join(format!("tensorgate-benches-{}", std::process::id()));
        std::fs::create_dir_all(&alone)?;
        std::fs::copy(directory.join(name), alone.join(name))?;
        Ok(Alone(alone))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read_rows(args: &Args) -> Result<Vec<u8>, Failure> {
    let beside = args.model.join("x.f32.bin");
    let above = args.model.join("../x.f32.bin");
    let path = args.rows.as_ref().unwrap_or(if beside.is_file() { &beside } else { &above });
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Compares the answers to the first rows with the training library's; none where there are none.
fn is_exact(model: &dyn Predictor, input: &Tensor, expected: &Path) -> Result<Option<bool>, Failure> {
    let Ok(expected) = std::fs::read(expected) else { return Ok(None) };
    let outputs = call(model, input)?;
    Ok(Some(expected.starts_with(outputs[0].bytes())))
}

fn call(model: &dyn Predictor, input: &Tensor) -> Result<Vec<Tensor>, InferError> {
    let (parameters, cancel) = (Parameters::new(), CancelFlag::default());
    let inputs = std::slice::from_ref(input);
    model.predict(&Call { inputs, outputs: &[], parameters: &parameters, deadline: None, cancel: &cancel })
}

/// Calls the model for some time, with each input in turn.
fn time(model: &dyn Predictor, inputs: &[Tensor], duration: Duration) -> Result<Timing, Failure> {
    let mut times = Vec::new();
    let (began, cpu_before) = (Instant::now(), process::own_cpu());
    // Three calls at least, or the median is no better than the fastest.
    for input in inputs.iter().cycle() {
        if times.len() >= 3 && began.elapsed() >= duration {
            break;
        }
        let sent = Instant::now();
        let outputs = call(model, input)?;
        let took = sent.elapsed();
        std::hint::black_box(outputs);
        times.push(took.as_nanos() as f64 / 1e3);
    }
    let cpu = process::own_cpu().saturating_sub(cpu_before);
    times.sort_by(f64::total_cmp);
    Ok(Timing {
        min_us: times[0],
        median_us: times[times.len() / 2],
        cpu_us: cpu.as_secs_f64() * 1e6 / times.len() as f64,
        calls: times.len(),
    })
}

/// Fastest and median microseconds by batch size, by engine.
type Peers = BTreeMap<String, BTreeMap<usize, [f64; 2]>>;

fn peers(path: &Path, model: &str) -> Result<Peers, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let mut peers = Peers::new();
    for result in all["results"].as_array().into_iter().flatten().filter(|result| result["model"] == model) {
        let (Some(engine), Some(batch)) = (result["engine"].as_str(), result["batch"].as_u64()) else { continue };
        if let [Some(min), Some(median)] = ["min_us", "median_us"].map(|key| result[key].as_f64()) {
            peers.entry(engine.to_owned()).or_default().insert(batch as usize, [min, median]);
        }
    }
    Ok(peers)
}
