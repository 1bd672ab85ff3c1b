//! A client of the gRPC service, for tests; generated as the server's stubs are, over any tonic transport.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::all, clippy::pedantic)]

// `include!` and not `mod`: rustfmt follows modules, and the generator's layout is not ours.
include!("gen/inference.rs");
