//! Products with a layer's matrices as bf16: each kind by itself, and all of them in the order of a step. Of one to eight
//! rows there are two: `gemm.skinny`, and `gemv`, which also does what stands after it. And the product that ends a
//! step.

use super::Needs;
use super::launches::{Bench, LAYERS};
use super::shapes::{self, LLAMA, QWEN};
use crate::Failure;
use kernels::cuda::elementwise::Gate;
use kernels::cuda::gemm::{self, Output, Product, Workspace};
use kernels::cuda::gemv::{self, Gemv, Input, Outcome};
use kernels::cuda::{Bf16, Launch, Slice, Units};
use kernels::cuda::{pairs, stream};

/// A matrix of a layer, with what its product takes besides.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// As rows call it.
    pub(super) name: &'static str,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Of as many rows as any product has.
    pub(super) x: Slice<Bf16>,
    pub(super) y: Output,
    pub(super) workspace: Workspace,
}

/// All kinds, which share their memory.
pub(super) fn kinds(bench: &mut Bench<'_>) -> Result<Vec<Kind>, Failure> {
    let most = bench.sizes.few.iter().chain(bench.sizes.many).copied().max().unwrap_or(1);
    let matrices = shapes::matrices(&bench.spec);
    let max = |of: fn(usize, usize) -> usize| matrices.iter().map(|(_, o, i)| of(*o, *i)).max().unwrap_or(0).max(4);
    let (sums, counters) = (bench.room(max(gemm::sums_len))?, bench.zeros(max(gemm::counters_len))?);
    let workspace = Workspace { sums, counters };
    let x = bench.random(most * max(|_, inputs| inputs))?;
    let y = bench.room(most * max(|outputs, _| outputs))?;
    let mut kinds = Vec::new();
    for (name, outputs, inputs) in matrices {
        // What goes on as numbers of a product is rounded, and what is added is not.
        let y = if name == "gate-up" { Output::Bf16(y.cast()?.first(most * outputs)?) } else { Output::F32(y) };
        kinds.push(Kind { name, outputs, inputs, x, y, workspace });
    }
    Ok(kinds)
}

/// Products of few rows and of many.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let mut products = Vec::new();
    for Kind { name, outputs, inputs, x, y, workspace } in kinds(bench)? {
        let mut of_kind = Vec::new();
        for _ in 0..LAYERS {
            let weight = bench.random(outputs * inputs)?;
            let (bias, rows, deterministic) = (None, 0, false);
            of_kind.push(Product { x, weight, bias, y, workspace, rows, outputs, inputs, deterministic });
        }
        products.push((name, of_kind));
    }
    for &rows in bench.sizes.few {
        measure(bench, &products, &format!("gemm.skinny.m{rows}"), (rows, Units::Warps))?;
    }
    let sizes = |(_, of_kind): &OfKind<'_>| (of_kind[0].outputs, of_kind[0].inputs);
    for &rows in bench.sizes.few {
        let suits = products.iter().map(sizes).all(|(outputs, inputs)| stream::suits(rows, outputs, inputs));
        if let Some((_, units)) = ways(bench).into_iter().find(|(way, _)| *way == "pairs" && suits) {
            measure(bench, &products, &format!("gemm.stream.m{rows}"), (rows, units))?;
        }
    }
    for &rows in bench.sizes.vectors {
        measure_gemv(bench, &products, rows)?;
    }
    for &rows in bench.sizes.many {
        measure(bench, &products, &format!("gemm.tiled.m{rows}"), (rows, Units::Warps))?;
        for (way, units) in ways(bench) {
            // Fewer rows are no pair's.
            let suits = products.iter().map(sizes).all(|(outputs, inputs)| pairs::suits(rows, outputs, inputs));
            if way == "wgmma" || suits {
                measure(bench, &products, &format!("gemm.{way}.m{rows}"), (rows, units))?;
            }
        }
    }
    Ok(())
}

/// The last product of a step, as servers of two models have it: a row of weights for each token of the vocabulary.
pub(super) fn heads(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let (sizes, units) = (bench.sizes.heads, bench.device.matrix_units());
    let most = sizes.iter().copied().max().unwrap_or(1);
    for shape in [LLAMA, QWEN] {
        let spec = shape.spec(bench.args.small)?;
        let (outputs, inputs) = (spec.vocab, spec.hidden);
        let sums = bench.room(gemm::sums_len(outputs, inputs).max(4))?;
        let counters = bench.zeros(gemm::counters_len(outputs, inputs).max(4))?;
        // One matrix, since no cache holds it.
        let (x, weight) = (bench.random(most * inputs)?, bench.random(outputs * inputs)?);
        let y = Output::F32(bench.room(most * outputs)?);
        let (workspace, bias, deterministic) = (Workspace { sums, counters }, None, false);
        for &rows in sizes {
            let product = Product { x, weight, bias, y, workspace, rows, outputs, inputs, deterministic };
            timed(bench, &format!("head.{}.m{rows}", shape.name), &[product], (rows, units))?;
        }
    }
    Ok(())
}

/// How many rows are multiplied where four warps do it together: by single blocks, and by pairs.
pub(super) fn ways(bench: &Bench<'_>) -> Vec<(&'static str, Units)> {
    match bench.device.matrix_units() {
        Units::Warps => Vec::new(),
        Units::Warpgroups { processors, .. } => [("wgmma", false), ("pairs", true)]
            .map(|(way, pairs)| (way, Units::Warpgroups { processors, pairs }))
            .into(),
    }
}

/// A kind's products, of which as many as there are layers take turns.
type OfKind<'a> = (&'a str, Vec<Product>);

fn measure(bench: &mut Bench<'_>, kinds: &[OfKind<'_>], what: &str, way: (usize, Units)) -> Result<(), Failure> {
    each(kinds, what, |what, products| timed(bench, what, products, way))
}

/// Some products of as many rows, one after the other.
fn timed(
    bench: &mut Bench<'_>,
    what: &str,
    products: &[Product],
    (rows, units): (usize, Units),
) -> Result<(), Failure> {
    let (mut launches, mut needs) = (Vec::new(), Needs::default());
    for product in products.iter().map(|product| Product { rows, ..*product }) {
        launches.extend(gemm::product_on(&product, units)?);
        needs.bytes += gemm::product_bytes(&product);
        needs.operations += gemm::product_flops(&product);
    }
    match rows <= gemm::SKINNY_ROWS {
        true => bench.bandwidth(what, &launches, needs.bytes),
        false => bench.rate(what, &launches, needs.operations, needs),
    }
}

/// The same products by the kernel for one to eight rows, as a layer has them: with the activation, where the gate is.
fn measure_gemv(bench: &mut Bench<'_>, kinds: &[OfKind<'_>], rows: usize) -> Result<(), Failure> {
    each(kinds, &format!("gemv.m{rows}"), |what, products| {
        let vectors = products.iter().map(|product| {
            let y = match product.y {
                Output::F32(y) => Outcome::F32(y),
                Output::Bf16(y) => Outcome::Gated(y, Gate::Silu),
            };
            let Product { weight, bias, outputs, inputs, .. } = *product;
            Gemv { x: Input::Rows(product.x), weight, bias, y, rows, outputs, inputs }
        });
        let vectors: Vec<Gemv> = vectors.filter(|vector| gemv::suits(rows, vector.inputs)).collect();
        // What has no room for so many rows has no row.
        if vectors.len() < products.len() {
            return Ok(());
        }
        let launches = vectors.iter().map(gemv::gemv).collect::<Result<Vec<Launch>, _>>()?;
        bench.bandwidth(what, &launches, vectors.iter().map(gemv::gemv_bytes).sum())
    })
}

/// All kinds in the order of a step, then each by itself.
fn each(
    kinds: &[OfKind<'_>],
    what: &str,
    mut measure: impl FnMut(&str, &[Product]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let layers: Vec<Product> =
        (0..LAYERS).flat_map(|layer| kinds.iter().map(move |(_, products)| products[layer])).collect();
    measure(what, &layers)?;
    kinds.iter().try_for_each(|(name, products)| measure(&format!("{what}.{name}"), products))
}
