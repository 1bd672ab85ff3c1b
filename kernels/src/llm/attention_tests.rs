//! Tests of `attention.rs`: the fast path against the specification, and every company of rows against rows alone.

use super::*;
use crate::llm::blocks::{f32_to_bf16, f32_to_f16};
use crate::llm::packed::tests::{Random, nmse};

/// A sequence in a cache whose other positions are NaN.
struct Case {
    /// `[position, head_dim]` of the one KV head that is tested.
    keys: Vec<f32>,
    values: Vec<f32>,
    dim: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F32,
    F16,
    Bf16,
}

impl Case {
    fn new(length: usize, dim: usize, random: &mut Random) -> Case {
        Case { keys: random.floats(length * dim), values: random.floats(length * dim), dim }
    }

    /// Runs `check` on a paged copy: 3 KV heads, this one the second, blocks in a mixed order; positions before
    /// `kept` are poisoned too.
    fn paged<T>(&self, kind: Kind, block_len: usize, kept: usize, check: impl FnOnce(&Cache<'_>, &[u32]) -> T) -> T {
        let length = self.keys.len() / self.dim;
        let count = length.div_ceil(block_len);
        let table: Vec<u32> = (0..count).map(|i| ((i * 7 + 3) % 59) as u32).collect();
        let total = (*table.iter().max().unwrap() as usize + 1) * 3 * block_len * self.dim;
        let page = |source: &[f32]| {
            let mut to = vec![f32::NAN; total];
            for p in kept..length {
                let at = ((table[p / block_len] as usize * 3 + 1) * block_len + p % block_len) * self.dim;
                to[at..at + self.dim].copy_from_slice(&source[p * self.dim..(p + 1) * self.dim]);
            }
            to
        };
        let (keys, values) = (page(&self.keys), page(&self.values));
        let narrow = |x: &[f32], f: fn(f32) -> u16| x.iter().map(|x| f(*x)).collect::<Vec<u16>>();
        let with = |keys, values| Cache { keys, values, kv_heads: 3, block_len, head_dim: self.dim };
        match kind {
            Kind::F32 => check(&with(Storage::F32(&keys), Storage::F32(&values)), &table),
            Kind::F16 => {
                let (k, v) = (narrow(&keys, f32_to_f16), narrow(&values, f32_to_f16));
                check(&with(Storage::F16(&k), Storage::F16(&v)), &table)
            }
            Kind::Bf16 => {
                let (k, v) = (narrow(&keys, f32_to_bf16), narrow(&values, f32_to_bf16));
                check(&with(Storage::Bf16(&k), Storage::Bf16(&v)), &table)
            }
        }
    }
}

/// What is held against the specification; where a machine lacks one of them, another runs in its place.
const FAST: [Path; 2] = [Path::Avx2, Path::Avx512];

fn rules() -> Vec<Rule> {
    let plain = Rule { scale: 0.3, window: None, soft_cap: None };
    vec![
        plain,
        Rule { window: Some(1), ..plain },
        Rule { window: Some(37), ..plain },
        Rule { window: Some(1000), soft_cap: Some(5.0), ..plain },
        Rule { scale: 40.0, ..plain },
    ]
}

fn run(path: Path, cache: &Cache<'_>, rule: &Rule, tile: &Tile<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; tile.queries.len()];
    attend_on(path, (cache, rule), tile, &mut Scratch::default(), &mut out);
    out
}

#[test]
fn paths_agree_with_the_specification() {
    let mut random = Random(21);
    for (length, dim) in [(1, 8), (31, 64), (33, 40), (60, 80), (100, 128), (517, 64)] {
        let case = Case::new(length, dim, &mut random);
        for kind in [Kind::F32, Kind::F16, Kind::Bf16] {
            for rule in rules() {
                for rows in [1, 2, 3, 4, 7, 16] {
                    // The last tokens of the sequence, two query heads each.
                    let positions: Vec<u32> =
                        (0..rows).map(|i| (length - 1).saturating_sub((rows - 1 - i) / 2) as u32).collect();
                    let queries = random.floats(rows * dim);
                    let sinks = random.floats(rows);
                    let kept = rule.first(positions[0]);
                    case.paged(kind, 32, kept, |cache, table| {
                        for sinks in [&sinks[..], &[]] {
                            let tile = Tile { queries: &queries, positions: &positions, sinks, table, head: 1 };
                            let want = run(Path::Scalar, cache, &rule, &tile);
                            for path in FAST {
                                let error = nmse(&run(path, cache, &rule, &tile), &want);
                                // Scores of several hundred are off by 2^-24 of that, hence the weights.
                                let bound = if rule.scale > 1.0 { 1e-8 } else { 1e-11 };
                                assert!(
                                    error <= bound,
                                    "{path:?} {length} x {dim} {kind:?} {rule:?} {rows}: {error:e}"
                                );
                            }
                        }
                    });
                }
            }
        }
    }
}

#[test]
fn neither_company_nor_block_length_matters() {
    let mut random = Random(22);
    let (length, dim, rows) = (150, 72, 40);
    let case = Case::new(length, dim, &mut random);
    let positions: Vec<u32> = (0..rows).map(|i| (length - rows / 2 + i / 2) as u32).collect();
    let (queries, sinks) = (random.floats(rows * dim), random.floats(rows));
    let kinds = [Kind::F32, Kind::F16, Kind::Bf16];
    for (path, kind) in FAST.into_iter().flat_map(|path| kinds.map(|kind| (path, kind))) {
        for rule in rules() {
            let results: Vec<Vec<f32>> = [4, 16, 32, 64, 20]
                .into_iter()
                .map(|block_len| {
                    case.paged(kind, block_len, rule.first(positions[0]), |cache, table| {
                        let whole = Tile { queries: &queries, positions: &positions, sinks: &sinks, table, head: 1 };
                        let together = run(path, cache, &rule, &whole);
                        for size in [1, 2, 3, 5, 11] {
                            let mut apart = Vec::new();
                            for first in (0..rows).step_by(size) {
                                let part = first..rows.min(first + size);
                                let tile = Tile {
                                    queries: &queries[part.start * dim..part.end * dim],
                                    positions: &positions[part.clone()],
                                    sinks: &sinks[part],
                                    ..whole
                                };
                                apart.extend(run(path, cache, &rule, &tile));
                            }
                            assert!(apart.iter().zip(&together).all(|(a, b)| a.to_bits() == b.to_bits()));
                        }
                        together
                    })
                })
                .collect();
            for other in &results[1..] {
                assert!(other.iter().zip(&results[0]).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }
}

#[test]
fn a_query_that_is_no_number_spoils_its_own_row() {
    let mut random = Random(24);
    let (length, dim, rows) = (70, 40, 9);
    let case = Case::new(length, dim, &mut random);
    let positions: Vec<u32> = (0..rows).map(|i| (length - rows + i) as u32).collect();
    let rule = Rule { scale: 0.3, window: None, soft_cap: None };
    for (path, bad) in FAST.into_iter().flat_map(|path| [0, 5, 8].map(|bad| (path, bad))) {
        let mut queries = random.floats(rows * dim);
        queries[bad * dim + 39] = f32::NAN;
        case.paged(Kind::F16, 32, 0, |cache, table| {
            let tile = Tile { queries: &queries, positions: &positions, sinks: &[], table, head: 1 };
            for (row, out) in run(path, cache, &rule, &tile).chunks_exact(dim).enumerate() {
                assert!(out.iter().all(|x| x.is_nan() == (row == bad)), "{path:?} {bad} {row}");
            }
        });
    }
}

#[test]
fn one_position_gives_its_value_and_a_large_sink_nothing() {
    let mut random = Random(23);
    let case = Case::new(1, 16, &mut random);
    let rule = Rule { scale: 1.0, window: None, soft_cap: None };
    let queries = random.floats(16);
    case.paged(Kind::F32, 32, 0, |cache, table| {
        for path in Path::ALL {
            let tile = Tile { queries: &queries, positions: &[0], sinks: &[], table, head: 1 };
            assert_eq!(run(path, cache, &rule, &tile), case.values);
            let drained = run(path, cache, &rule, &Tile { sinks: &[1e4], ..tile });
            assert!(drained.iter().all(|x| *x == 0.0));
            assert!(run(path, cache, &rule, &Tile { queries: &[], positions: &[], ..tile }).is_empty());
        }
    });
}

#[test]
#[should_panic(expected = "a block beyond the cache")]
fn a_table_that_leads_outside_is_refused() {
    let keys = vec![0.0; 32 * 8];
    let cache =
        Cache { keys: Storage::F32(&keys), values: Storage::F32(&keys), kv_heads: 1, block_len: 32, head_dim: 8 };
    let tile = Tile { queries: &[0.0; 8], positions: &[40], sinks: &[], table: &[0, 1], head: 0 };
    run(Path::Auto, &cache, &Rule { scale: 1.0, window: None, soft_cap: None }, &tile);
}
