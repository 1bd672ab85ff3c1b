//! A binary on a machine without a GPU: it serves on the CPU and says so, and does not where a GPU was asked for.

#![allow(clippy::unwrap_used)]

use backends::llm::device::{self, Choice};
use std::path::Path;
use std::process::{Command, Output};

fn serve_on(device: &str) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/iris/1");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensorgate"));
    command.arg("serve").arg("--model-dir").arg(model).args([
        "--device",
        device,
        "--http-port",
        "0",
        "--grpc-port",
        "0",
    ]);
    command.output().unwrap()
}

/// Whether the binary has kernels or not, the exit code and the message are those of a wrong command line.
#[test]
fn a_gpu_that_is_not_there_is_an_error_where_it_was_asked_for() {
    let Err(reason) = device::announce(Choice::Cuda) else { return };
    let output = serve_on("cuda");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains(&reason) && told.contains("--device cuda: "), "{told}");
}

#[test]
fn other_devices_than_those_that_there_are_are_refused() {
    let output = serve_on("tpu");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("--device") && told.contains("auto") && told.contains("cuda"), "{told}");
}
