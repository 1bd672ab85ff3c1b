//! Arithmetic over slices.
//!
//! Nothing here knows a model, a file, a wire type or a thread pool: callers hand in slices and get slices filled.
//! Every fast path has a scalar specification beside it, and a test that compares the two bit for bit, or within the
//! bound that the kernel states.

pub mod cuda;
pub mod forest;
pub mod llm;
mod pages;
pub mod turns;
