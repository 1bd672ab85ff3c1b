//! Attention: many sequences that decode, and one prompt; keys and values of sixteen bits, and of eight; and what some
//! families prescribe besides.

use super::Needs;
use super::between::STRIDE;
use super::launches::Bench;
use super::stored;
use crate::Failure;
use kernels::cuda::attention::{self, Cache, Chunk, Decode, PAGE, Prompt, Rule};
use kernels::cuda::stored::{Kind, Layout};
use kernels::cuda::{CacheNumbers, E4m3, Slice, Units};

/// Keys and values of sequences whose blocks lie scattered: of sixteen bits, and of eight; and what is computed.
fn caches(bench: &mut Bench<'_>, sequences: usize) -> Result<([Cache; 2], Rule), Failure> {
    let (width, head_dim) = (bench.spec.attention.kv_width(), bench.spec.attention.head_dim);
    let stride = bench.sizes.context.div_ceil(PAGE);
    let blocks = (sequences * stride).next_power_of_two();
    let table: Vec<i32> = (0..sequences * stride).map(|block| (block * STRIDE % blocks) as i32).collect();
    let (keys, values) = (bench.random(blocks * PAGE * width)?, bench.random(blocks * PAGE * width)?);
    let wide = Cache {
        numbers: CacheNumbers::Bf16 { keys, values },
        tables: bench.put(&table)?,
        table_stride: stride,
        kv_heads: width / head_dim,
        head_dim,
    };
    let [keys, values] = [narrow(bench, blocks * width)?, narrow(bench, blocks * width)?];
    let numbers = CacheNumbers::E4m3 { keys, values, key_scale: 1.0 / 64.0, value_scale: 1.0 / 64.0 };
    let heads = bench.spec.attention.query_width() / head_dim;
    let rule = Rule { heads, scale: 0.1, window: None, soft_cap: None, sinks: None };
    Ok(([wide, Cache { numbers, ..wide }], rule))
}

/// Random numbers of eight bits, around 64: so many for each position of a block.
fn narrow(bench: &mut Bench<'_>, numbers: usize) -> Result<Slice<E4m3>, Failure> {
    let layout = Layout { kind: Kind::E4m3, group: numbers, inputs: numbers };
    Ok(stored::matrix(bench, layout, PAGE)?.codes.cast()?)
}

/// Rows that are one token each; the cache of eight bits besides; and where the rows stand.
fn tokens(bench: &mut Bench<'_>) -> Result<(Decode, Cache, Vec<i32>), Failure> {
    let (rows, width) = (bench.sizes.sequences, bench.spec.attention.query_width());
    let ([wide, narrow], rule) = caches(bench, rows)?;
    let positions = vec![bench.sizes.context as i32 - 1; rows];
    let work = attention::work(&positions);
    let most = work.len() / 2;
    let job = Decode {
        out: bench.room(rows * width)?,
        queries: bench.random(rows * width)?,
        cache: wide,
        rule,
        rows,
        slots: bench.counted(rows)?,
        positions: bench.put(&positions)?,
        work: bench.put(&work)?,
        work_len: bench.put(&[most as i32])?,
        partials: bench.room(attention::partials_len(most, rule.heads, wide.head_dim))?,
        counters: bench.zeros(attention::counters_len(most, wide.kv_heads))?,
        processors: bench.device.processors(),
    };
    Ok((job, narrow, positions))
}

/// Rows that are one token each.
pub(super) fn decode(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let (job, narrow, positions) = tokens(bench)?;
    let wide = job.cache;
    // Blocks one after the other, as none are once sequences have come and gone: what it costs that they lie scattered.
    let all = job.rows * wide.table_stride;
    let ordered = Cache { tables: bench.counted(all)?, ..wide };
    let caches = [("", wide), ("fp8.", narrow), ("ordered.", ordered)];
    for (which, cache) in caches {
        let launch = attention::decode(&Decode { cache, ..job })?;
        let bytes = attention::decode_bytes(&cache, &job.rule, &positions);
        bench.bandwidth(&format!("attention.decode.{which}256x4k"), &[launch], bytes)?;
    }
    alone(bench, &job)
}

/// The same by rules of some families: a row sees a quarter of its context, scores are capped, heads have a sink.
pub(super) fn decode_by_rules(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let (job, _, positions) = tokens(bench)?;
    let window = Some(bench.sizes.context / 4);
    let sinks = Some(bench.random_f32(job.rule.heads, 1.0)?);
    for (which, rule) in [
        ("window", Rule { window, ..job.rule }),
        ("cap", Rule { soft_cap: Some(50.0), ..job.rule }),
        ("sinks", Rule { sinks, ..job.rule }),
    ] {
        let launch = attention::decode(&Decode { rule, ..job })?;
        let bytes = attention::decode_bytes(&job.cache, &rule, &positions);
        bench.bandwidth(&format!("attention.{which}.256x4k"), &[launch], bytes)?;
    }
    Ok(())
}

/// One sequence after the other, each alone, as layers of a model have it: nothing of the next is in a cache.
fn alone(bench: &mut Bench<'_>, job: &Decode) -> Result<(), Failure> {
    let positions = [bench.sizes.context as i32 / 4 - 1];
    let work = attention::work(&positions);
    let entries = work.len() / 2;
    let (position, work, work_len) = (bench.put(&positions)?, bench.put(&work)?, bench.put(&[entries as i32])?);
    let mut launches = Vec::new();
    for row in 0..job.rows {
        let slots = job.slots.part(row..row + 1)?;
        launches.push(attention::decode(&Decode { rows: 1, slots, positions: position, work, work_len, ..*job })?);
    }
    let bytes = launches.len() * attention::decode_bytes(&job.cache, &job.rule, &positions);
    bench.bandwidth("attention.decode.1x1k", &launches, bytes)
}

/// A prompt: one that fills its context, and one of a quarter of that.
pub(super) fn prompt(bench: &mut Bench<'_>) -> Result<(), Failure> {
    let (most, width) = (bench.sizes.context, bench.spec.attention.query_width());
    let ([wide, narrow], rule) = caches(bench, 1)?;
    let (out, queries) = (bench.room(most * width)?, bench.random(most * width)?);
    for (what, rows, cache) in [
        ("attention.prompt.1x4k", most, wide),
        ("attention.prompt.fp8.1x4k", most, narrow),
        ("attention.prompt.1x1k", most / 4, wide),
    ] {
        let chunk = Chunk { row: 0, tokens: rows, start: 0, slot: 0 };
        let tiles = attention::tiles(&[chunk], rule.heads / cache.kv_heads, cache.head_dim);
        let operations = attention::prompt_operations(&cache, &rule, &[chunk]);
        let needs = Needs { bytes: attention::prompt_bytes(&cache, &rule, &[chunk]), operations, alone: 0 };
        let job = Prompt { out, queries, cache, rule, rows, tiles: bench.put(&tiles)? };
        bench.rate(what, &[attention::prompt(&job)?], operations, needs)?;
        if let units @ Units::Warpgroups { .. } = bench.device.matrix_units() {
            let what = what.replace("prompt.", "prompt.wgmma.");
            bench.rate(&what, &[attention::prompt_on(&job, units)?], operations, needs)?;
        }
    }
    Ok(())
}
