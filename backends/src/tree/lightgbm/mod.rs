//! LightGBM text models (`model.txt`, v2 to v4), told by their first line.
//!
//! `text`: the file's layout · `pandas`: the categories behind it · `lower`: from arrays to a forest ·
//! `linear`: leaves that are linear functions · `objective`: from sums to predictions.

mod linear;
mod lower;
mod objective;
mod pandas;
mod text;

pub(super) use linear::LinearLeaves;
pub(super) use lower::{Lowered, lower};
pub(super) use objective::Link;
pub(super) use text::{looks_like, read};
