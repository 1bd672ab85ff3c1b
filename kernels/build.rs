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
    let headers = headers();
    for source in sources() {
        let name = source.file_stem().expect("a file").to_string_lossy().into_owned();
        let mut hasher = DefaultHasher::new();
        (&headers, fs::read(&source).expect("a source"), nvcc(), FLAGS, TARGETS).hash(&mut hasher);
        let (binary, text) = (kept.join(format!("{name}-{:016x}.fatbin", hasher.finish())), out.join(&name));
        let words = binary.with_extension("txt");
        if !words.exists() {
            let (fresh, process) = (text.with_extension("fatbin"), std::process::id());
            let words_of = compile(&source, &fresh);
            let beside = kept.join(format!("{name}-{process}"));
            // The words last: where they are, the code is whole.
            fs::copy(&fresh, &beside).and_then(|_| fs::rename(&beside, &binary)).expect("the target folder has room");
            fs::write(&beside, words_of)
                .and_then(|()| fs::rename(&beside, &words))
                .expect("the target folder has room");
        }
        said += &fs::read_to_string(&words).expect("written before");
        list += &format!("    include_bytes!({binary:?}),\n");
    }
    fs::write(out.join("modules.rs"), list + "]\n").expect("OUT_DIR can be written to");
    // What each kernel takes of a device, for the table that a test compares.
    fs::write(out.join("ptxas.txt"), said).expect("OUT_DIR can be written to");
}

/// All headers, in the order of their names.
fn headers() -> Vec<Vec<u8>> {
    let files = fs::read_dir("cuda").expect("kernels/cuda is there").flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "cuh")).collect();
    files.sort();
    files.into_iter().map(|path| fs::read(path).expect("a header")).collect()
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
