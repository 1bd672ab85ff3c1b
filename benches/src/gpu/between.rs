//! What stands between the products: norms, rotations, activations, embeddings.

use super::launches::Bench;
use crate::Failure;
use kernels::cuda::attention::PAGE;
use kernels::cuda::elementwise::{self, AddNorm, Delta, Embed, Gate, Gated, Norm, ShapeLogits};
use kernels::cuda::rotary::{self, HeadNorms, RotaryWrite, Turn};
use kernels::cuda::rounded::{CODES_OF_SCALE, Rounded, Rows};
use kernels::cuda::{Bf16, CacheNumbers, E4m3};

/// Goes through all of a power of two, since it is odd.
pub(super) const STRIDE: usize = 12_289;

/// Norms, rotation, and the activation of most models; then what norms and rotation are in other families.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let add = norms(bench)?;
    gated(bench, "silu-mul", Gate::Silu)?;
    let narrow = rotary_write(bench)?;
    let (keys, values) = (bench.room(cache_len(&narrow))?, bench.room(cache_len(&narrow))?);
    let wide = RotaryWrite { cache: CacheNumbers::Bf16 { keys, values }, ..narrow };
    for (what, write) in [("rope-write", wide), ("rope-write.fp8", narrow)] {
        bench.bandwidth(what, &[rotary::rotary_write(&write)?], rotary::rotary_write_bytes(&write))?;
    }
    families(bench, add, [wide, narrow])
}

/// Norms by one more than their weights; norms of heads before the rotation, and biases. What is read for all rows
/// alike comes out of caches, and is not counted.
fn families(bench: &mut Bench<'_>, add: AddNorm, [wide, narrow]: [RotaryWrite; 2]) -> Result<(), Failure> {
    let job = AddNorm { norm: Norm { offset: 1.0, ..add.norm }, ..add };
    bench.bandwidth("norm.offset", &[elementwise::add_norm(&job)?], elementwise::add_norm_bytes(&job))?;
    let RotaryWrite { heads, kv_heads, head_dim, .. } = wide;
    let [query, key] = [bench.random_f32(head_dim, 1.0)?, bench.random_f32(head_dim, 1.0)?];
    let norms = Some(HeadNorms { query, key, full: false, eps: 1e-6, offset: 0.0 });
    let bias = Some(bench.random_f32((heads + 2 * kv_heads) * head_dim, 1.0)?);
    for (what, write) in [
        ("rope-write.norm", RotaryWrite { norms, ..wide }),
        ("rope-write.norm.fp8", RotaryWrite { norms, ..narrow }),
        ("rope-write.bias", RotaryWrite { bias, ..wide }),
    ] {
        bench.bandwidth(what, &[rotary::rotary_write(&write)?], rotary::rotary_write_bytes(&write))?;
    }
    Ok(())
}

/// What is once in a step, and the activations of other models.
pub(super) fn others(bench: &mut Bench<'_>) -> Result<(), Failure> {
    gated(bench, "gelu-mul", Gate::Gelu)?;
    gated(bench, "gelu-tanh-mul", Gate::GeluTanh)?;
    gated(bench, "clamped-swiglu", Gate::ClampedSwiglu { limit: 7.0 })?;

    let (rows, hidden, vocab) = (bench.sizes.rows, bench.spec.hidden, bench.spec.vocab);
    let tokens: Vec<i32> = (0..rows).map(|row| (row * STRIDE % vocab) as i32).collect();
    let embed = Embed {
        table: bench.random(vocab * hidden)?,
        tokens: bench.put(&tokens)?,
        slots: bench.zeros(rows)?,
        last: bench.zeros(1)?,
        x: bench.room(rows * hidden)?,
        rows,
        hidden,
        vocab,
        scale: 1.0,
    };
    bench.bandwidth("embed", &[elementwise::embed(&embed)?], elementwise::embed_bytes(&embed))?;

    let count = bench.sizes.sequences * vocab;
    let shape = ShapeLogits { logits: bench.random_f32(count, 1.0)?, count, scale: 1.0, cap: 30.0 };
    bench.bandwidth("shape-logits", &[elementwise::shape_logits(&shape)?], elementwise::shape_logits_bytes(&shape))
}

/// Norms: with a residual addition, of either kind; and of rows that an index names. The first of them.
fn norms(bench: &mut Bench<'_>) -> Result<AddNorm, Failure> {
    let (rows, hidden) = (bench.sizes.rows, bench.spec.hidden);
    let numbers = bench.random_f32(rows * hidden, 1.0)?;
    let norm =
        Norm { weight: Some(bench.random_f32(hidden, 1.0)?), bias: None, centred: false, eps: 1e-5, offset: 0.0 };
    let add = AddNorm {
        x: bench.random_f32(rows * hidden, 1.0)?,
        delta: Some(Delta { numbers, bias: None, weight: None, scale: 1.0 }),
        norm,
        out: Some(bench.room::<Bf16>(rows * hidden)?.into()),
        row_index: None,
        rows,
        hidden,
    };
    let layer = Norm { bias: Some(bench.random_f32(hidden, 1.0)?), centred: true, ..norm };
    let index: Vec<i32> = (0..rows as i32).rev().collect();
    let row_index = Some(bench.put(&index)?);
    for (what, job) in [
        ("norm", add),
        ("norm.layer", AddNorm { norm: layer, ..add }),
        ("norm.index", AddNorm { delta: None, row_index, ..add }),
    ] {
        bench.bandwidth(what, &[elementwise::add_norm(&job)?], elementwise::add_norm_bytes(&job))?;
    }
    if let Some(out) = codes(bench, rows, hidden)? {
        let job = AddNorm { out: Some(out), ..add };
        bench.bandwidth("norm.fp8", &[elementwise::add_norm(&job)?], elementwise::add_norm_bytes(&job))?;
    }
    Ok(add)
}

/// Room for rows as codes, where they are so wide that there are any.
fn codes(bench: &mut Bench<'_>, rows: usize, width: usize) -> Result<Option<Rows>, Failure> {
    if !width.is_multiple_of(CODES_OF_SCALE) {
        return Ok(None);
    }
    let (codes, scales) = (bench.room(rows * width)?, bench.room(Rounded::scales_len(rows, width))?);
    Ok(Some(Rows::Rounded(Rounded { codes, scales })))
}

fn gated(bench: &mut Bench<'_>, what: &str, gate: Gate) -> Result<(), Failure> {
    let (rows, width) = (bench.sizes.rows, bench.spec.intermediate);
    let (input, out) = (bench.random(2 * rows * width)?, bench.room::<Bf16>(rows * width)?.into());
    let job = Gated { input, bias: None, out, gate, rows, width };
    bench.bandwidth(what, &[elementwise::gated(&job)?], elementwise::gated_bytes(&job))?;
    let Some(out) = codes(bench, rows, width)? else { return Ok(()) };
    let job = Gated { out, ..job };
    bench.bandwidth(&format!("{what}.fp8"), &[elementwise::gated(&job)?], elementwise::gated_bytes(&job))
}

/// Rows that are one prompt, into a cache of eight bits.
fn rotary_write(bench: &mut Bench<'_>) -> Result<RotaryWrite, Failure> {
    let (query, kv) = (bench.spec.attention.query_width(), bench.spec.attention.kv_width());
    let (head_dim, rows) = (bench.spec.attention.head_dim, bench.sizes.rows);
    let stride = rows.div_ceil(PAGE);
    let frequencies = bench.random_f32(head_dim / 2, 1.0)?;
    let (keys, values) = (bench.room::<E4m3>(stride * PAGE * kv)?, bench.room(stride * PAGE * kv)?);
    Ok(RotaryWrite {
        qkv: bench.random_f32(rows * (query + 2 * kv), 1.0)?,
        bias: None,
        norms: None,
        turn: Some(Turn { frequencies, factor: 1.0, interleaved: false }),
        positions: bench.counted(rows)?,
        slots: bench.zeros(rows)?,
        tables: bench.counted(stride)?,
        table_stride: stride,
        queries: bench.room(rows * query)?,
        cache: CacheNumbers::E4m3 { keys, values, key_scale: 1.0, value_scale: 1.0 },
        rows,
        heads: query / head_dim,
        kv_heads: kv / head_dim,
        head_dim,
    })
}

/// Numbers of all keys.
fn cache_len(write: &RotaryWrite) -> usize {
    write.table_stride * PAGE * write.kv_heads * write.head_dim
}
