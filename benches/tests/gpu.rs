//! What is carried to a machine with a GPU, without one: every measurement in the emulator, with toy sizes, whose
//! figures mean nothing; and the scripts around them.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

/// Runs Python among the scripts, which has to do well; what it printed.
fn python(arguments: &[&str]) -> String {
    let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("gpu");
    let mut python = Command::new("python3");
    let output = python.args(arguments).current_dir(scripts).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let (told, said) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{arguments:?}: {told}\n{said}");
    told
}

#[test]
fn the_scripts_do_what_they_say() {
    python(&["tests.py"]);
}

/// Rows of a process that are to be measured first, and what else its kernels do. Sizes are others here.
#[cfg(feature = "emulator")]
const BESIDES: [(&[&str], &[&str]); 4] = [
    (
        &["norm", "norm.index", "silu-mul", "rope-write", "rope-write.fp8"],
        &["norm.offset", "rope-write.norm", "rope-write.norm.fp8", "rope-write.bias"],
    ),
    (
        &["attention.decode.256x4k", "attention.decode.fp8.", "attention.decode.1x1k", "attention.prompt.1x4k"],
        &[
            "attention.prompt.1x1k",
            "attention.prompt.wgmma.1x1k",
            "attention.window.",
            "attention.cap.",
            "attention.sinks.",
        ],
    ),
    (
        &["sampler.greedy.", "sampler.drawn.", "sampler.told.", "history-begin"],
        &["sampler.penalised.", "sampler.biased.", "sampler.masked."],
    ),
    (&["gemm.skinny.m1"], &["head.llama-3.1-8b.m1", "head.qwen3-0.6b.m1"]),
];

/// Every row that the scripts ask for is there, and they make a table of them.
#[cfg(feature = "emulator")]
#[test]
fn all_that_is_measured_on_a_gpu_can_be_measured_here() {
    use serde_json::{Value, json};

    let mut benches = Command::new(env!("CARGO_BIN_EXE_tensorgate-benches"));
    let rates = ["--copy-rate", "1000", "--matrix-rate", "100"];
    let output = benches.args(["gpu", "--small", "--seconds", "0"]).args(rates).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let name = |row: &Value| row["what"].as_str().unwrap().to_owned();
    for row in &rows {
        let good = |number: &Value| number.as_f64().is_some_and(|number| number.is_finite() && number > 0.0);
        assert!(good(&row["value"]) && (row["limit"].is_null() || good(&row["limit"])), "{row}");
    }
    let asked = python(&[
        "-c",
        "import bench, json; print(json.dumps([row for rows, _ in bench.MODELS + bench.KERNELS for row in rows]))",
    ]);
    let missing = |begin: &String| {
        // Sizes are others here.
        let begin = begin.trim_end_matches(|c: char| c.is_ascii_digit());
        !rows.iter().any(|row| name(row).starts_with(begin))
    };
    let missing: Vec<String> =
        serde_json::from_str::<Vec<String>>(&asked).unwrap().into_iter().filter(missing).collect();
    assert!(missing.is_empty(), "no rows begin with {missing:?}: {told}");
    // What families and requests have besides comes after what goals were set for.
    let at = |begin: &str| rows.iter().position(|row| name(row).starts_with(begin)).expect(begin);
    for (goals, others) in BESIDES {
        let last = goals.iter().map(|goal| at(goal)).max().unwrap();
        assert!(others.iter().all(|other| at(other) > last), "{others:?} are not all after {goals:?}: {told}");
    }
    let results = json!({"device": "emulator", "commit": "0123456789", "date": "2000-01-01", "rows": &rows});
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("gpu-rows.json");
    std::fs::write(&file, results.to_string()).unwrap();
    let table = python(&["table.py", file.to_str().unwrap()]);
    for row in &rows {
        assert!(table.contains(&format!("| {} |", name(row))), "{row} is not in the table: {table}");
    }
}
