//! What is done when a model is loaded, or between its steps: made-up weights, tables of blocks.

use super::launches::Bench;
use crate::Failure;
use kernels::cuda::setup::{MakeUp, UpdateTables, make_up_bf16, make_up_bytes, make_up_f32, update_tables};
use kernels::cuda::stored::{self, Kind, Layout};
use kernels::cuda::{Bf16, Number, Slice};

/// All of it.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let (rows, width) = (bench.spec.intermediate, bench.spec.hidden);
    let job = MakeUp { key: 5, first: 0, mean: 0.0, sigma: 1.0 };
    let to: Slice<f32> = bench.room(rows * width)?;
    bench.bandwidth("make-up.f32", &[make_up_f32(to, &job)?], make_up_bytes(to))?;
    let to: Slice<Bf16> = to.cast()?;
    bench.bandwidth("make-up.bf16", &[make_up_bf16(to, &job)?], make_up_bytes(to))?;
    let layout = Layout { kind: Kind::E4m3, group: usize::MAX, inputs: width };
    let to = super::stored::matrix(bench, layout, rows)?;
    bench.bandwidth("make-up.fp8", &[stored::make_up(&to, &job)?], to.codes.byte_len())?;

    // A block for each of as many sequences as there may be.
    let (count, stride) = (bench.sizes.sequences, bench.sizes.context);
    let updates: Vec<i32> = (0..count as i32).flat_map(|slot| [slot, slot % stride as i32, slot]).collect();
    let (updates, tables) = (bench.put(&updates)?, bench.zeros(count * stride)?);
    let job = UpdateTables { updates, count, tables, table_stride: stride };
    bench.bandwidth("update-tables", &[update_tables(&job)?], 4 * count * i32::BYTES)
}
