//! A mixture of many small experts: its router, the products with those that were chosen, and their sum; for sequences
//! that decode, and for a prompt.

use super::Needs;
use super::launches::Bench;
use super::stored::matrix;
use crate::Failure;
use kernels::cuda::Number;
use kernels::cuda::experts::{self, Choices, Choose, Combine, Product};
use kernels::cuda::gemm::{Output, SKINNY_ROWS, Workspace};
use kernels::cuda::stored::{self, Kind, Layout, OfExperts};

/// Names, codes, and inputs that share a scale.
const FORMATS: [(&str, Kind, usize); 6] = [
    ("fp8", Kind::E4m3, 128),
    ("q8_0", Kind::Int8, 32),
    ("q5_k", Kind::Uint8, 32),
    ("q4_k", Kind::Uint4, 32),
    ("gptq-int4", Kind::Int4, 128),
    ("mxfp4", Kind::E2m1, 32),
];

/// All of it, for few rows and many.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let few = SKINNY_ROWS.min(bench.sizes.rows);
    let choices = choose(bench, few)?;
    products(bench, choices)?;
    combine(bench, choices)?;
    let choices = choose(bench, bench.sizes.rows.max(2 * SKINNY_ROWS))?;
    products(bench, choices)?;
    combine(bench, choices)
}

/// What rows choose, by random numbers.
fn choose(bench: &mut Bench<'_>, rows: usize) -> Result<Choices, Failure> {
    let [_, _, experts, top_k] = bench.sizes.mixture;
    let choices = Choices {
        chosen: bench.room(rows * top_k)?,
        shares: bench.room(rows * top_k)?,
        list: bench.room(rows * top_k)?,
        offsets: bench.room(experts + 1)?,
        rows,
        top_k,
        experts,
    };
    let (logits, positions) = (bench.random_f32(rows * experts, 1.0)?, bench.counted(rows)?);
    let job = Choose { logits, positions, choices, of_chosen: true };
    let launches = experts::choose(&job)?;
    launches.iter().try_for_each(|launch| bench.device.launch(launch))?;
    // Few rows are listed by the kernel that chooses.
    bench.bandwidth(&format!("experts.choose.m{rows}"), &launches[..1], experts::choose_bytes(&job))?;
    if launches.len() > 1 {
        bench.bandwidth(&format!("experts.list.m{rows}"), &launches[1..], 2 * choices.pairs() * i32::BYTES)?;
    }
    Ok(choices)
}

/// The two matrices of every expert, for each pair of a row and a choice; in sixteen bits, and for few rows as codes.
fn products(bench: &mut Bench<'_>, choices: Choices) -> Result<(), Failure> {
    let ([hidden, inner, experts, top_k], pairs) = (bench.sizes.mixture, choices.pairs());
    let sizes = [("gate-up", 2 * inner, hidden), ("down", hidden, inner)];
    let max = |of: fn(usize, usize, usize) -> usize| sizes.map(|(_, o, i)| of(o, i, top_k)).into_iter().max();
    let (sums, counters) = (max(experts::sums_len).unwrap_or(0), max(experts::counters_len).unwrap_or(0));
    let workspace = Workspace { sums: bench.room(sums.max(4))?, counters: bench.zeros(counters.max(1))? };
    let (x, y) = (bench.random(pairs * hidden.max(inner))?, bench.room(pairs * hidden.max(2 * inner))?);
    let rows = choices.rows;
    for (name, outputs, inputs) in sizes {
        let (of_pairs, bias) = (name == "down", None);
        let y = if of_pairs { Output::F32(y) } else { Output::Bf16(y.cast()?.first(pairs * outputs)?) };
        if rows <= SKINNY_ROWS {
            for (format, kind, group) in FORMATS {
                let what = format!("experts.skinny.{format}.m{rows}.{name}");
                if bench.args.tells(&what) {
                    let matrix = matrix(bench, Layout { kind, group, inputs }, experts * outputs)?;
                    let launch = stored::of_experts(&OfExperts { x, of_pairs, matrix, bias, y, workspace, choices })?;
                    let bytes = matrix.codes.byte_len() + matrix.scales.byte_len() + pairs * (2 * inputs + 2 * outputs);
                    bench.bandwidth(&what, &[launch], bytes)?;
                }
            }
        }
        let weight = bench.random(experts * outputs * inputs)?;
        let job = Product { x, of_pairs, weight, bias, y, workspace, choices, outputs, inputs };
        let (launch, bytes, operations) =
            ([experts::product(&job)?], experts::product_bytes(&job), experts::product_flops(&job));
        if rows <= SKINNY_ROWS {
            bench.bandwidth(&format!("experts.skinny.m{rows}.{name}"), &launch, bytes)?;
        } else {
            let needs = Needs { bytes, operations, alone: 0 };
            bench.rate(&format!("experts.tiled.m{rows}.{name}"), &launch, operations, needs)?;
        }
    }
    Ok(())
}

fn combine(bench: &mut Bench<'_>, choices: Choices) -> Result<(), Failure> {
    let [hidden, ..] = bench.sizes.mixture;
    let added = bench.random_f32(choices.pairs() * hidden, 1.0)?;
    let job = Combine { added, choices, out: bench.room(choices.rows * hidden)?, hidden };
    let what = format!("experts.combine.m{}", choices.rows);
    bench.bandwidth(&what, &[experts::combine(&job)?], experts::combine_bytes(&job))
}
