//! Compiles the CUDA kernels: feature `cuda` by nvcc, into one file of machine code that is put into the binary;
//! feature `emulator` by a C++ compiler, for tests on the host.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Machine code for the A100 and the H100 and H200 families; all others translate the PTX when it is loaded.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_80,code=compute_80",
];

const FLAGS: [&str; 15] = [
    "-std=c++17",
    "-O3",
    "-fatbin",
    "--compress-mode=size",
    "-Icuda",
    "-Xptxas",
    "-v",
    "--threads",
    "2",
    "-Werror",
    "all-warnings",
    "-Xcompiler",
    "-Wall",
    "-Xcompiler",
    "-Werror",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=NVCC");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    #[cfg(feature = "emulator")]
    emulator();
    if cfg!(feature = "cuda") {
        device_code(&out);
    }
}

/// The sources of all kernels, sorted.
fn sources() -> Vec<PathBuf> {
    let files = fs::read_dir("cuda").expect("kernels/cuda is there").flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "cu")).collect();
    files.sort();
    files
}

#[cfg(feature = "emulator")]
fn emulator() {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .warnings(true)
        .include("cuda")
        .flag("-xc++")
        .flag("-fno-strict-aliasing")
        // How matrices are passed has changed before this project began.
        .flag_if_supported("-Wno-psabi")
        .link_lib_modifier("+whole-archive");
    build.files(sources()).file("cuda/emulator/emulator.cpp").compile("tensorgate_emulator");
}

/// One fat binary for each source, and a list of them as Rust: `modules.rs`.
fn device_code(out: &Path) {
    let mut list = String::from("&[\n");
    let mut said = String::new();
    // Profiles and sets of features have an OUT_DIR each; what is compiled for one is there for all.
    let kept = out.ancestors().nth(4).expect("OUT_DIR is in a target folder").join("device-code");
    fs::create_dir_all(&kept).expect("the target folder can be written to");
    let compiler = version();
    for source in sources() {
        let name = source.file_stem().expect("a file").to_string_lossy().into_owned();
        let (fresh, key) = (out.join(format!("{name}.fatbin")), key(&source, &compiler));
        let (binary, words) =
            (kept.join(format!("{name}-{key:016x}.fatbin")), kept.join(format!("{name}-{key:016x}.txt")));
        if words.exists() {
            fs::copy(&binary, &fresh).expect("OUT_DIR can be written to");
            said += &fs::read_to_string(&words).expect("written before");
        } else {
            let told = compile(&source, &fresh);
            // What somebody has edited meanwhile is of no use to others.
            if key == self::key(&source, &compiler) {
                keep(&kept, &fresh, &binary, &words, &told).expect("the target folder has room");
            }
            said += &told;
        }
        list += &format!("    include_bytes!({fresh:?}),\n");
    }
    fs::write(out.join("modules.rs"), list + "]\n").expect("OUT_DIR can be written to");
    // What each kernel takes of a device, for the table that a test compares.
    fs::write(out.join("ptxas.txt"), said).expect("OUT_DIR can be written to");
}

/// What the code of a source follows from.
fn key(source: &Path, compiler: &[u8]) -> u64 {
    let files = fs::read_dir("cuda").expect("kernels/cuda is there").flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "cuh")).collect();
    files.sort();
    files.push(source.to_owned());
    let mut hasher = DefaultHasher::new();
    for file in files {
        fs::read(file).expect("a source").hash(&mut hasher);
    }
    let flags = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"].map(env::var_os);
    (compiler, nvcc(), flags, FLAGS, TARGETS).hash(&mut hasher);
    hasher.finish()
}

/// What the compiler says that it is. Where there is none, compiling tells.
fn version() -> Vec<u8> {
    Command::new(nvcc()).arg("--version").output().map(|run| run.stdout).unwrap_or_default()
}

/// Puts code and what was said of it where others find it; the latter last: where it is, the code is whole.
fn keep(kept: &Path, fresh: &Path, binary: &Path, words: &Path, told: &str) -> std::io::Result<()> {
    let beside = kept.join(format!("{}", std::process::id()));
    fs::copy(fresh, &beside)?;
    fs::rename(&beside, binary)?;
    fs::write(&beside, told)?;
    fs::rename(&beside, words)
}

fn nvcc() -> OsString {
    env::var_os("NVCC").unwrap_or_else(|| "nvcc".into())
}

/// Returns what the assembler says of registers.
fn compile(source: &Path, binary: &Path) -> String {
    let nvcc = nvcc();
    let mut command = Command::new(&nvcc);
    let run = command.args(FLAGS).args(TARGETS).arg(source).arg("-o").arg(binary).output().unwrap_or_else(|error| {
        panic!("{}: {error}; feature cuda needs nvcc 13.0: `make cuda` gets it, or NVCC names it", nvcc.display())
    });
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "nvcc failed:\n{said}");
    said
}
