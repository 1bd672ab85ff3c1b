//! The process: everything asynchronous, from sockets to the command line. The only crate that knows tokio.
//!
//! A request's way: `edge` (connection) -> `rest` or `grpc` (route) -> `codec` (tensors) -> `dataplane` (what may be
//! asked) -> `registry` (which model) -> `batcher` (when) -> the model, and back.

pub mod app;
pub mod args;
mod batch;
pub mod batcher;
pub mod budget;
pub mod check;
mod child;
pub mod classify;
pub mod cli;
mod clock;
pub mod codec;
pub mod config;
pub mod dataplane;
pub mod describe;
pub mod dropin;
pub mod edge;
mod entry;
pub mod error;
pub mod grpc;
mod index;
mod living;
pub mod llm;
pub mod metrics;
pub mod probe;
pub mod process;
pub mod profile;
pub mod registry;
pub mod repository;
pub mod rest;
pub mod servable;
mod stamp;
pub mod stats;
pub mod summary;
pub mod telemetry;
pub mod threads;
pub mod worker;
