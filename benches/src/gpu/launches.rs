//! Kernels by themselves, at the sizes of an 8B model: device time of many launches that were captured as one graph, as
//! the steps of a model are.

use super::shapes::{self, LLAMA};
use super::{Args, Needs, open};
use crate::Failure;
use backends::llm::spec::DecoderSpec;
use kernels::cuda::attention::{self, Cache, Chunk, Decode, Prompt, Rule};
use kernels::cuda::elementwise::{self, AddNorm, Delta, Gate, Gated, Norm};
use kernels::cuda::gemm::{self, Output, Product, Workspace};
use kernels::cuda::rotary::{self, RotaryWrite, Turn};
use kernels::cuda::setup::{self, MakeUp};
use kernels::cuda::stored::{self, Kind, Layout, Matrix};
use kernels::cuda::{Bf16, CacheNumbers, Device, Launch, Number, Slice, Units};

/// Positions of a block of keys and values.
const PAGE: usize = attention::PAGE;
/// Matrices of each kind that take turns, so that no cache holds the next one.
const LAYERS: usize = 4;
/// Runs, of which the fastest counts.
const RUNS: usize = 3;

/// Sizes that differ between a measurement and a trial.
struct Sizes {
    /// Rows of what stands between the products.
    rows: usize,
    /// Sequences that decode, and their contexts.
    sequences: usize,
    context: usize,
    /// Rows of products by the kernel for few, and by that for many.
    few: &'static [usize],
    many: &'static [usize],
}

const REAL: Sizes = Sizes { rows: 4096, sequences: 256, context: 4096, few: &[1, 16, 64], many: &[256, 1024, 4096] };
const TOY: Sizes = Sizes { rows: 64, sequences: 4, context: 64, few: &[1, 16], many: &[128] };

/// All rows that need no engine.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (spec, sizes) = (LLAMA.spec(args.small)?, if args.small { TOY } else { REAL });
    let bench = Bench { args, spec };
    if ["norm", "rope-write", "silu-mul"].iter().any(|row| args.wants(row)) {
        bench.between(open()?.as_mut(), &sizes)?;
    }
    if args.wants("attention.") {
        bench.decode(open()?.as_mut(), &sizes)?;
        bench.prompt(open()?.as_mut(), &sizes)?;
    }
    if args.wants("gemm.") {
        bench.products(open()?.as_mut(), &sizes)?;
    }
    Ok(())
}

struct Bench<'a> {
    args: &'a Args,
    spec: DecoderSpec,
}

/// Memory whose contents mean nothing.
fn room<T: Number>(device: &mut dyn Device, numbers: usize) -> Result<Slice<T>, Failure> {
    Ok(device.reserve(numbers * T::BYTES)?.cast()?)
}

/// Random numbers, for zeros take less power, and so less time.
fn random(device: &mut dyn Device, numbers: usize) -> Result<Slice<Bf16>, Failure> {
    let slice = room(device, numbers)?;
    device.launch(&setup::make_up_bf16(slice, &MakeUp { key: 1, first: 0, mean: 0.0, sigma: 1.0 })?)?;
    Ok(slice)
}

/// The same in 32 bits.
fn random_f32(device: &mut dyn Device, numbers: usize) -> Result<Slice<f32>, Failure> {
    let slice = room(device, numbers)?;
    device.launch(&setup::make_up_f32(slice, &MakeUp { key: 2, first: 0, mean: 0.0, sigma: 1.0 })?)?;
    Ok(slice)
}

/// These numbers.
fn put(device: &mut dyn Device, numbers: &[i32]) -> Result<Slice<i32>, Failure> {
    let slice = room(device, numbers.len())?;
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    device.upload(slice.cast()?, &bytes)?;
    Ok(slice)
}

/// Zeros.
fn zeros<T: Number>(device: &mut dyn Device, numbers: usize) -> Result<Slice<T>, Failure> {
    let slice = device.reserve(numbers * T::BYTES)?;
    device.upload(slice, &vec![0; numbers * T::BYTES])?;
    Ok(slice.cast()?)
}

/// Seconds that the device takes for all of the launches, one after the other; `least` is spent on it.
fn seconds(device: &mut dyn Device, launches: &[Launch], least: f64) -> Result<f64, Failure> {
    device.begin_capture()?;
    let captured = launches.iter().try_for_each(|launch| device.launch(launch));
    // A capture that failed has to end, too.
    let graph = device.end_capture();
    captured?;
    let graph = graph?;
    let mut time = |times: usize| device.seconds(&mut |device| (0..times).try_for_each(|_| device.replay(graph)));
    time(1)?;
    let times = ((least / time(1)?.max(1e-7)) as usize).clamp(1, 100_000);
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        best = best.min(time(times)?);
    }
    Ok(best / times as f64)
}

impl Bench<'_> {
    /// A row in bytes a second.
    fn bandwidth(&self, device: &mut dyn Device, what: &str, launches: &[Launch], bytes: usize) -> Result<(), Failure> {
        let seconds = seconds(device, launches, self.args.seconds)?;
        self.args.tell(what.into(), bytes as f64 / seconds / 1e9, "GB/s", self.args.copy_rate)
    }

    /// A row in operations a second.
    fn rate(&self, device: &mut dyn Device, what: &str, launches: &[Launch], needs: Needs) -> Result<(), Failure> {
        let seconds = seconds(device, launches, self.args.seconds)?;
        let operations = needs.operations as f64 / 1e12;
        self.args.tell(
            what.into(),
            operations / seconds,
            "TFLOP/s",
            self.args.limit(needs).map(|least| operations / least),
        )
    }

    /// What stands between the products.
    fn between(&self, device: &mut dyn Device, sizes: &Sizes) -> Result<(), Failure> {
        let (spec, rows) = (&self.spec, sizes.rows);
        let hidden = spec.hidden;
        let numbers = random_f32(device, rows * hidden)?;
        let norm = AddNorm {
            x: random_f32(device, rows * hidden)?,
            delta: Some(Delta { numbers, bias: None, weight: None, scale: 1.0 }),
            norm: Norm {
                weight: Some(random_f32(device, hidden)?),
                bias: None,
                centred: false,
                eps: 1e-5,
                offset: 0.0,
            },
            out: Some(room(device, rows * hidden)?),
            row_index: None,
            rows,
            hidden,
        };
        self.bandwidth(device, "norm", &[elementwise::add_norm(&norm)?], elementwise::add_norm_bytes(&norm))?;

        let gated = Gated {
            input: random(device, 2 * rows * spec.intermediate)?,
            bias: None,
            out: room(device, rows * spec.intermediate)?,
            gate: Gate::Silu,
            rows,
            width: spec.intermediate,
        };
        self.bandwidth(device, "silu-mul", &[elementwise::gated(&gated)?], elementwise::gated_bytes(&gated))?;

        let write = self.rotary_write(device, rows)?;
        self.bandwidth(device, "rope-write", &[rotary::rotary_write(&write)?], rotary::rotary_write_bytes(&write))
    }

    /// Rows that are one prompt.
    fn rotary_write(&self, device: &mut dyn Device, rows: usize) -> Result<RotaryWrite, Failure> {
        let (query, kv) = (self.spec.attention.query_width(), self.spec.attention.kv_width());
        let head_dim = self.spec.attention.head_dim;
        let stride = rows.div_ceil(PAGE);
        let positions: Vec<i32> = (0..rows as i32).collect();
        let blocks: Vec<i32> = (0..stride as i32).collect();
        let frequencies = random_f32(device, head_dim / 2)?;
        Ok(RotaryWrite {
            qkv: random_f32(device, rows * (query + 2 * kv))?,
            bias: None,
            norms: None,
            turn: Some(Turn { frequencies, factor: 1.0, interleaved: false }),
            positions: put(device, &positions)?,
            slots: zeros(device, rows)?,
            tables: put(device, &blocks)?,
            table_stride: stride,
            queries: room(device, rows * query)?,
            cache: CacheNumbers::Bf16 {
                keys: room(device, stride * PAGE * kv)?,
                values: room(device, stride * PAGE * kv)?,
            },
            rows,
            heads: query / head_dim,
            kv_heads: kv / head_dim,
            head_dim,
        })
    }

    /// Keys and values of sequences whose blocks lie scattered.
    fn cache(&self, device: &mut dyn Device, sequences: usize, context: usize) -> Result<(Cache, Rule), Failure> {
        /// Odd, so that it leads from block to block until all were met.
        const STRIDE: usize = 12_289;
        let (attention, stride) = (&self.spec.attention, context.div_ceil(PAGE));
        let blocks = (sequences * stride).next_power_of_two();
        let table: Vec<i32> = (0..sequences * stride).map(|block| (block * STRIDE % blocks) as i32).collect();
        let cache = Cache {
            numbers: CacheNumbers::Bf16 {
                keys: random(device, blocks * PAGE * attention.kv_width())?,
                values: random(device, blocks * PAGE * attention.kv_width())?,
            },
            tables: put(device, &table)?,
            table_stride: stride,
            kv_heads: attention.kv_width() / attention.head_dim,
            head_dim: attention.head_dim,
        };
        let heads = attention.query_width() / attention.head_dim;
        Ok((cache, Rule { heads, scale: 0.1, window: None, soft_cap: None, sinks: None }))
    }

    fn decode(&self, device: &mut dyn Device, sizes: &Sizes) -> Result<(), Failure> {
        let (rows, width) = (sizes.sequences, self.spec.attention.query_width());
        let (cache, rule) = self.cache(device, rows, sizes.context)?;
        let positions = vec![sizes.context as i32 - 1; rows];
        let slots: Vec<i32> = (0..rows as i32).collect();
        let work = attention::work(&positions);
        let most = work.len() / 2;
        let job = Decode {
            out: room(device, rows * width)?,
            queries: random(device, rows * width)?,
            cache,
            rule,
            rows,
            slots: put(device, &slots)?,
            positions: put(device, &positions)?,
            work: put(device, &work)?,
            work_len: put(device, &[most as i32])?,
            partials: room(device, attention::partials_len(most, rule.heads, cache.head_dim))?,
            counters: zeros(device, attention::counters_len(most, cache.kv_heads))?,
            processors: device.processors(),
        };
        let bytes = attention::decode_bytes(&cache, &rule, &positions);
        self.bandwidth(device, "attention.decode.256x4k", &[attention::decode(&job)?], bytes)
    }

    fn prompt(&self, device: &mut dyn Device, sizes: &Sizes) -> Result<(), Failure> {
        let (rows, width) = (sizes.context, self.spec.attention.query_width());
        let (cache, rule) = self.cache(device, 1, rows)?;
        let chunk = Chunk { row: 0, tokens: rows, start: 0, slot: 0 };
        let tiles = attention::tiles(&[chunk], rule.heads / cache.kv_heads, cache.head_dim);
        let job = Prompt {
            out: room(device, rows * width)?,
            queries: random(device, rows * width)?,
            cache,
            rule,
            rows,
            tiles: put(device, &tiles)?,
        };
        let operations = attention::prompt_operations(&cache, &rule, &[chunk]);
        let needs = Needs { bytes: attention::prompt_bytes(&cache, &rule, &[chunk]), operations, alone: 0 };
        self.rate(device, "attention.prompt.1x4k", &[attention::prompt(&job)?], needs)
    }

    /// Products with a layer's matrices: each kind by itself, and all of them in the order of a step.
    fn products(&self, device: &mut dyn Device, sizes: &Sizes) -> Result<(), Failure> {
        let most = sizes.few.iter().chain(sizes.many).copied().max().unwrap_or(1);
        let matrices = shapes::matrices(&self.spec);
        let max = |of: fn(usize, usize) -> usize| matrices.iter().map(|(_, o, i)| of(*o, *i)).max().unwrap_or(0).max(4);
        let workspace =
            Workspace { sums: room(device, max(gemm::sums_len))?, counters: zeros(device, max(gemm::counters_len))? };
        let (x, y) = (random(device, most * max(|_, inputs| inputs))?, room(device, most * max(|outputs, _| outputs))?);
        let mut kinds = Vec::new();
        for (name, outputs, inputs) in matrices {
            // What goes on as numbers of a product is rounded, and what is added is not.
            let y = if name == "gate-up" { Output::Bf16(y.cast()?.first(most * outputs)?) } else { Output::F32(y) };
            let mut products = Vec::new();
            for _ in 0..LAYERS {
                let weight = random(device, outputs * inputs)?;
                let (bias, rows, deterministic) = (None, 0, false);
                products.push(Product { x, weight, bias, y, workspace, rows, outputs, inputs, deterministic });
            }
            kinds.push((name, products));
        }
        for &rows in sizes.few {
            self.product(device, &kinds, &format!("gemm.skinny.m{rows}"), (rows, Units::Warps))?;
        }
        for &rows in sizes.many {
            self.product(device, &kinds, &format!("gemm.tiled.m{rows}"), (rows, Units::Warps))?;
            if let units @ Units::Warpgroups { .. } = device.matrix_units() {
                self.product(device, &kinds, &format!("gemm.wgmma.m{rows}"), (rows, units))?;
            }
        }
        self.stored(device, &kinds, sizes)
    }

    /// The same of few rows, with weights that are stored as codes.
    fn stored(&self, device: &mut dyn Device, kinds: &[(&str, Vec<Product>)], sizes: &Sizes) -> Result<(), Failure> {
        for (name, kind, group) in [("fp8", Kind::E4m3, 128), ("q8_0", Kind::Int8, 32), ("q4_k", Kind::Uint4, 32)] {
            if !self.args.wants(&format!("gemm.skinny.{name}.")) {
                continue;
            }
            let mut products = Vec::new();
            for plain in (0..LAYERS).flat_map(|layer| kinds.iter().map(move |(_, products)| products[layer])) {
                let Product { x, y, workspace, outputs, inputs, .. } = plain;
                let layout = Layout { kind, group, inputs };
                // Bytes of random numbers are codes, scales and factors as well.
                let codes = random(device, layout.codes_len(outputs).div_ceil(2))?.cast()?;
                let scales = random(device, layout.scales_len(outputs))?.cast()?;
                let factors = random_f32(device, layout.factors_len(outputs))?;
                let matrix = Matrix { layout, outputs, codes, scales, factors };
                let (bias, wide, rows, deterministic) = (None, None, 0, false);
                products.push(stored::Product { x, matrix, bias, y, workspace, wide, rows, deterministic });
            }
            for &rows in sizes.few {
                let (mut launches, mut bytes) = (Vec::new(), 0);
                for product in products.iter().map(|product| stored::Product { rows, ..*product }) {
                    launches.extend(stored::product(&product)?);
                    bytes += stored::product_bytes(&product);
                }
                self.bandwidth(device, &format!("gemm.skinny.{name}.m{rows}"), &launches, bytes)?;
            }
        }
        Ok(())
    }

    fn product(
        &self,
        device: &mut dyn Device,
        kinds: &[(&str, Vec<Product>)],
        what: &str,
        (rows, units): (usize, Units),
    ) -> Result<(), Failure> {
        let mut measure = |what: &str, products: &[Product]| -> Result<(), Failure> {
            if !self.args.wants(what) {
                return Ok(());
            }
            let products: Vec<Product> = products.iter().map(|product| Product { rows, ..*product }).collect();
            let (mut launches, mut needs) = (Vec::new(), Needs::default());
            for product in &products {
                launches.extend(gemm::product_on(product, units)?);
                needs.bytes += gemm::product_bytes(product);
                needs.operations += gemm::product_flops(product);
            }
            match rows <= gemm::SKINNY_ROWS {
                true => self.bandwidth(device, what, &launches, needs.bytes),
                false => self.rate(device, what, &launches, needs),
            }
        };
        let layers: Vec<Product> =
            (0..LAYERS).flat_map(|layer| kinds.iter().map(move |(_, products)| products[layer])).collect();
        measure(what, &layers)?;
        kinds.iter().try_for_each(|(name, products)| measure(&format!("{what}.{name}"), products))
    }
}
