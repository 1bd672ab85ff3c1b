//! Where ONNX Runtime's library may be, and what else a process of our own is started with.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its name, as packages of systems have it, with and without the version of its interface.
const NAMES: [&str; 2] = ["libonnxruntime.so", "libonnxruntime.so.1"];

/// The file that was said, or places, nearest first: beside the binary, in `lib/` beside it, where the system's loader
/// looks.
pub fn onnxruntime(said: Option<&Path>) -> Vec<PathBuf> {
    if let Some(said) = said {
        return vec![said.to_path_buf()];
    }
    let beside = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_path_buf));
    let folders = beside.into_iter().flat_map(|folder| [folder.join("lib"), folder]).rev();
    let near = folders.map(|folder| folder.join(NAMES[0]));
    near.chain(NAMES.map(PathBuf::from)).collect()
}

/// The binary that runs, whatever lies at its path by now.
///
/// # Errors
/// The system does not tell.
fn own_program() -> std::io::Result<PathBuf> {
    let own = Path::new("/proc/self/exe");
    if own.exists() { Ok(own.to_path_buf()) } else { std::env::current_exe() }
}

/// A child of our own that does what `word` says, and is told nothing but what it finds libraries by.
///
/// # Errors
/// The system does not tell what runs.
pub fn own_child(word: &str) -> std::io::Result<Command> {
    let mut command = Command::new(own_program()?);
    command.arg0("tensorgate").arg(word).env_clear().envs(search_paths());
    Ok(command)
}

/// What a child that loads libraries finds them by, their locales, and the devices that are
/// ours; it is told nothing else.
fn search_paths() -> impl Iterator<Item = (&'static str, OsString)> {
    ["LD_LIBRARY_PATH", "LOCPATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"]
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)))
}
