//! Language models. What a model is: [`spec`], [`families`]; where its numbers lie: [`weights`], [`layout`]. How its
//! requests share a device: below.
//!
//! ```text
//! a request's tokens -> request -> scheduler: waiting -> running ----------------> sequence: events
//!                                      |  plan: chunks of positions, their blocks
//!                                      v
//!                        executor: launch, sample, collect  (engine: one step after the other)
//! ```
//!
//! On the way there: [`text`], from characters to tokens and back. What computes: [`cpu`], [`cuda`].
//!
//! The scheduler, its blocks and the engine know no device and no clock; an executor knows no request. Each step takes
//! some tokens of every sequence that runs: one where it decodes, a chunk where its prompt is not computed yet.

pub mod blocks;
pub mod calibration;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod engine;
pub mod executor;
pub mod families;
mod fields;
mod flights;
pub mod generation;
pub mod grammar;
pub mod layout;
pub mod model;
pub mod plan;
pub mod progress;
mod quantisation;
pub mod request;
mod room;
pub mod rope;
mod rope_config;
pub mod sampler;
pub mod sampling;
pub mod scheduler;
mod schema;
pub mod scripted;
pub mod sequence;
pub mod spec;
pub mod text;
pub mod weights;

pub use families::FAMILIES;
pub use model::{LanguageBackend, LanguageModel, LanguageOptions};
pub use room::{Bound, Context};
pub use spec::DecoderSpec;
pub use weights::Weights;
