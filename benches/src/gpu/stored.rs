//! Products with a layer's matrices as codes: of few rows, by all kinds of codes; what many rows need before; and
//! products of codes with codes.

use super::Needs;
use super::launches::{Bench, LAYERS};
use super::products::{self, kinds, ways};
use crate::Failure;
use kernels::cuda::rounded::{self, Rounded};
use kernels::cuda::setup::MakeUp;
use kernels::cuda::stored::{self, Kind, Layout, Matrix, Product};
use kernels::cuda::wgmma;
use kernels::cuda::{Bf16, Launch, Number, Slice, Units};

/// Stands for all inputs.
const ALL: usize = usize::MAX;
/// Names, codes, and inputs that share a scale. What checkpoints of other kinds become is among these.
const FORMATS: [(&str, Kind, usize); 9] = [
    ("fp8", Kind::E4m3, 128),
    ("fp8-channel", Kind::E4m3, ALL),
    ("q8_0", Kind::Int8, 32),
    ("int8-channel", Kind::Int8, ALL),
    ("q5_k", Kind::Uint8, 32),
    ("q4_k", Kind::Uint4, 32),
    ("awq-int4", Kind::Uint4, 128),
    ("gptq-int4", Kind::Int4, 128),
    ("mxfp4", Kind::E2m1, 32),
];

/// A matrix of random codes, all of which are numbers.
pub(super) fn matrix(bench: &mut Bench<'_>, layout: Layout, outputs: usize) -> Result<Matrix, Failure> {
    // Bytes of random numbers are scales and factors as well.
    let (scales, factors) = (bench.codes(layout.scales_len(outputs))?, bench.codes(layout.factors_len(outputs))?);
    if layout.kind != Kind::E4m3 {
        let codes = bench.codes(layout.codes_len(outputs))?;
        return Ok(Matrix { layout, outputs, codes, scales, factors });
    }
    let codes = bench.room(layout.codes_len(outputs))?;
    let made = Matrix { layout: Layout { group: ALL, ..layout }, outputs, codes, scales, factors };
    bench.device.launch(&stored::make_up(&made, &MakeUp { key: 3, first: 0, mean: 0.0, sigma: 1.0 })?)?;
    Ok(Matrix { layout, ..made })
}

/// Every kind of codes.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let kinds = kinds(bench)?;
    let layers: Vec<products::Kind> = (0..LAYERS).flat_map(|_| kinds.clone()).collect();
    let wide = wide(bench, &layers)?;
    for (name, kind, group) in FORMATS {
        let rows = ["gemm.skinny.", "gemm.wgmma.", "gemm.pairs.", "widen."].map(|begin| format!("{begin}{name}"));
        if !rows.iter().any(|row| bench.args.wants(row)) {
            continue;
        }
        let mut products = Vec::new();
        for (plain, wide) in layers.iter().zip(&wide) {
            let products::Kind { x, y, workspace, outputs, inputs, .. } = *plain;
            let layout = Layout { kind, group, inputs };
            let matrix = matrix(bench, layout, outputs)?;
            let (bias, wide, rows, deterministic) = (None, Some(*wide), 0, false);
            let x = x.into();
            products.push(Product { x, matrix, bias, y, workspace, wide, rows, deterministic });
        }
        few(bench, name, &products)?;
        widen(bench, name, &products)?;
        if kind == Kind::E4m3 {
            many(bench, name, &products)?;
        }
    }
    rounding(bench, kinds)
}

/// Room for each matrix in sixteen bits, or for rows as codes; for all formats, one after the other.
fn wide(bench: &mut Bench<'_>, layers: &[products::Kind]) -> Result<Vec<Slice<Bf16>>, Failure> {
    let most = bench.sizes.many.iter().copied().max().unwrap_or(1);
    let len = |kind: &products::Kind| {
        let layout = Layout { kind: Kind::E4m3, group: ALL, inputs: kind.inputs };
        stored::wide_len(&layout, kind.outputs, most).max(kind.outputs * kind.inputs)
    };
    layers.iter().map(|kind| bench.room(len(kind))).collect()
}

fn few(bench: &mut Bench<'_>, name: &str, products: &[Product]) -> Result<(), Failure> {
    for &rows in bench.sizes.few {
        let (mut launches, mut bytes) = (Vec::new(), 0);
        for product in products.iter().map(|product| Product { rows, ..*product }) {
            launches.extend(stored::product(&product)?);
            bytes += stored::product_bytes(&product);
        }
        bench.bandwidth(&format!("gemm.skinny.{name}.m{rows}"), &launches, bytes)?;
    }
    Ok(())
}

/// Codes become numbers of sixteen bits, where rows are so many that this pays.
fn widen(bench: &mut Bench<'_>, name: &str, products: &[Product]) -> Result<(), Failure> {
    let (mut launches, mut bytes) = (Vec::new(), 0);
    for Product { matrix, wide, .. } in products {
        let Some(wide) = wide else { continue };
        launches.push(stored::widen(matrix, *wide)?);
        bytes += matrix_bytes(matrix) + matrix.outputs * matrix.layout.inputs * Bf16::BYTES;
    }
    bench.bandwidth(&format!("widen.{name}"), &launches, bytes)
}

fn matrix_bytes(matrix: &Matrix) -> usize {
    matrix.codes.byte_len() + matrix.scales.byte_len() + matrix.factors.byte_len()
}

/// Rows are rounded, and multiplied by units that do twice as much of eight bits.
fn many(bench: &mut Bench<'_>, name: &str, products: &[Product]) -> Result<(), Failure> {
    let (ways, many) = (ways(bench), bench.sizes.many);
    for (rows, (way, units)) in many.iter().flat_map(|rows| ways.iter().map(|way| (*rows, *way))) {
        let (mut launches, mut bytes, mut operations) = (Vec::new(), 0, 0);
        for product in products.iter().map(|product| Product { rows, ..*product }) {
            let (outputs, inputs) = (product.matrix.outputs, product.matrix.layout.inputs);
            let some = stored::product_on(&product, units)?;
            // A toy's sizes may be none for them.
            if some[0].kernel() != "round_rows" {
                continue;
            }
            launches.extend(some);
            // Rows are read, written as codes, and those read.
            bytes += matrix_bytes(&product.matrix) + rows * (4 * inputs + 2 * outputs);
            operations += 2 * rows * outputs * inputs;
        }
        if !launches.is_empty() {
            let needs = Needs { bytes, operations: operations / 2, alone: 0 };
            bench.rate(&format!("gemm.{way}.{name}.m{rows}"), &launches, operations, needs)?;
        }
    }
    Ok(())
}

/// The rounding by itself, of the widest rows.
fn rounding(bench: &mut Bench<'_>, kinds: Vec<products::Kind>) -> Result<(), Failure> {
    let rows = bench.sizes.rows;
    let widest = kinds.into_iter().filter(|kind| wgmma::suits_coded(kind.outputs, kind.inputs, ALL));
    let Some(products::Kind { inputs, .. }) = widest.max_by_key(|kind| kind.inputs) else { return Ok(()) };
    if bench.device.matrix_units() == Units::Warps || !bench.args.tells("quantise-rows") {
        return Ok(());
    }
    let x = bench.random(rows * inputs)?;
    let to = Rounded { codes: bench.room(rows * inputs)?, scales: bench.room(Rounded::scales_len(rows, inputs))? };
    let launch: Launch = rounded::round(to, x, rows, inputs)?;
    let bytes = x.byte_len() + to.codes.byte_len() + to.scales.byte_len();
    bench.bandwidth("quantise-rows", &[launch], bytes)
}
