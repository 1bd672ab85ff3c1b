//! Tree-ensemble traversal.
//!
//! * [`model`]: the one description of a forest, validated when it is made.
//! * [`scalar`]: the specification: walks one row through one tree, reading thresholds as they are.
//! * [`columns`]: turns a row into small integer codes, so that every test in every tree becomes `code > rank`.
//! * [`search`]: the thresholds of each feature, and how many of them a value lies right of.
//! * [`interleaved`]: few rows: many trees at once, without branches.
//! * [`bitsliced`]: many rows: every node of a tree against 64 rows at once.
//! * [`engine`]: compiles a forest for both, and picks by batch size after measuring.
//!
//! All paths add leaf values in the order of the file, so that they agree with each other, and with the library that
//! trained the forest, to the last bit. The choice between them can therefore never change an answer.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod bitsliced;
pub mod columns;
pub mod engine;
pub mod interleaved;
pub mod model;
pub mod scalar;
pub mod search;

pub use engine::{Engine, Path};
pub use model::{CategoryRule, CategorySet, Compare, Forest, Invalid, Missing, Node, Real, Target, Test, Tree};
