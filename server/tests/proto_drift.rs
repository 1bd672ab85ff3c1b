//! The checked-in gRPC code is what the generator makes of `protocol/proto` today.
//!
//! Builds need no protobuf compiler and run no build script; the price is this test. Where it fails after a change of
//! a `.proto` file or an upgrade of prost or tonic, run it again with `TENSORGATE_REGENERATE=1` and commit what changed.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use tonic_prost_build::FileDescriptorSet;

/// Where the messages are, as the service code names them.
const MESSAGES: &str = "::protocol::grpc";

/// What the generator is asked to make, and where it is checked in, relative to the workspace.
const OUTPUTS: [(&str, Generate); 4] = [
    ("protocol/src/gen/inference.fds", |_, compiler| compiler.encode()),
    ("protocol/src/gen/inference.rs", |scratch, compiler| messages(scratch, compiler.descriptors())),
    ("server/src/grpc/gen/inference.rs", |scratch, compiler| service(scratch, compiler.descriptors(), Side::Server)),
    ("server/tests/common/gen/inference.rs", |scratch, compiler| {
        service(scratch, compiler.descriptors(), Side::Client)
    }),
];

type Generate = fn(&Path, &Compiler) -> Vec<u8>;

enum Side {
    Server,
    Client,
}

/// The `.proto` files, compiled without `protoc`.
struct Compiler {
    directory: PathBuf,
}

impl Compiler {
    fn open(&self, comments: bool) -> protox::Compiler {
        let mut compiler = protox::Compiler::new([&self.directory]).unwrap();
        compiler.include_imports(true).include_source_info(comments).open_file("inference.proto").unwrap();
        compiler
    }

    /// With comments, which become the documentation of the Rust types.
    fn descriptors(&self) -> FileDescriptorSet {
        self.open(true).file_descriptor_set()
    }

    /// Without comments: clients of reflection do not show them, and every binary carries the bytes.
    fn encode(&self) -> Vec<u8> {
        self.open(false).encode_file_descriptor_set()
    }
}

fn messages(scratch: &Path, descriptors: FileDescriptorSet) -> Vec<u8> {
    // `Bytes` shares the request's buffer; `Vec<u8>` would copy every tensor.
    tonic_prost_build::Config::new()
        .bytes(["."])
        .extern_path(".inference.InferTensorContents", "crate::contents::InferTensorContents")
        .out_dir(scratch)
        .compile_fds(descriptors)
        .unwrap();
    fs::read(scratch.join("inference.rs")).unwrap()
}

fn service(scratch: &Path, descriptors: FileDescriptorSet, side: Side) -> Vec<u8> {
    let codec = match side {
        Side::Server => "crate::grpc::decoding::Codec",
        Side::Client => "tonic_prost::ProstCodec",
    };
    tonic_prost_build::configure()
        .codec_path(codec)
        .build_server(matches!(side, Side::Server))
        .build_client(matches!(side, Side::Client))
        // `connect` would need tonic's transport; callers bring a channel.
        .build_transport(false)
        .extern_path(".inference", MESSAGES)
        .out_dir(scratch)
        .compile_fds(descriptors)
        .unwrap();
    fs::read(scratch.join("inference.rs")).unwrap()
}

#[test]
fn checked_in_grpc_code_is_current() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let compiler = Compiler { directory: workspace.join("protocol/proto") };
    let regenerate = std::env::var_os("TENSORGATE_REGENERATE").is_some();
    let mut stale = Vec::new();
    for (path, generate) in OUTPUTS {
        let scratch = tempfile::tempdir().unwrap();
        let fresh = generate(scratch.path(), &compiler);
        let checked_in = workspace.join(path);
        if fs::read(&checked_in).is_ok_and(|old| old == fresh) {
            continue;
        }
        if regenerate {
            fs::create_dir_all(checked_in.parent().unwrap()).unwrap();
            fs::write(&checked_in, &fresh).unwrap();
        } else {
            stale.push(path);
        }
    }
    assert!(stale.is_empty(), "out of date; run again with TENSORGATE_REGENERATE=1: {stale:?}");
}
