//! One forward pass over a ragged batch: every row a token of some sequence, at its position. All families take this
//! way; what tells them apart is in the spec.
//!
//! ```text
//! x [rows, hidden] -> norm -> q, k, v -> norm, rotation -> cache -> attention -> output -> + x
//!                  -> norm -> gate, up -> activation -> down -> + x          (for each layer)
//! ```
//! Products, attention and long rows are divided over the current rayon pool; everything else is cheap.

use super::awake::awake;
use super::cache::Cache;
use super::deferred::Deferred;
use super::feed_forward;
use super::weights::{Linear, Model};
use crate::error::LoadError;
use crate::llm::spec::{DecoderSpec, QkNorm, Rotation};
use kernels::llm::activations::{Activations, Operand};
use kernels::llm::attention::{Rule, Scratch, Tile, attend};
use kernels::llm::elementwise::{self, Angles, Norm, Pairs};
use kernels::llm::packed::columns;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Tokens of one sequence that one task attends with: enough to read the cache seldom.
const TILE_TOKENS: usize = 16;
/// Rows of a step whose products are so short that threads stay awake between them: more take longer than a thread to wake.
const AWAKE_ROWS: usize = 64;
/// Rows from which on elementwise work is divided.
const MANY_ROWS: usize = 8;

/// Parts that each thread gets of a product of many rows: one that others keep from its core for a while leaves its last
/// ones to the rest. Few rows read weights as fast as memory gives them, each thread its part from end to end.
const SHARES: usize = 4;

/// Consecutive rows of one sequence.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Rows of the batch.
    pub(super) rows: Range<usize>,
    /// Position of the first.
    pub(super) start: u32,
    /// The sequence's blocks.
    pub(super) blocks: Arc<Vec<u32>>,
}

/// The rows of a step.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) runs: Vec<Run>,
}

/// Frequencies of a rotation, and a factor on sine and cosine.
#[derive(Debug)]
struct Turn {
    frequencies: Vec<f32>,
    factor: f32,
    pairs: Pairs,
}

/// Sines and cosines of all rows.
struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
    width: usize,
    pairs: Pairs,
}

/// A model with its cache.
#[derive(Debug)]
pub(super) struct Forward {
    spec: DecoderSpec,
    model: Model,
    pub(super) cache: Cache,
    /// Global and local.
    turns: [Option<Turn>; 2],
}

impl Forward {
    /// `context` is the longest sequence that will be served.
    pub(super) fn new(spec: DecoderSpec, model: Model, cache: Cache, context: usize) -> Self {
        let turn = |rope: &crate::llm::rope::Rope| Turn {
            frequencies: rope.frequencies(context),
            factor: rope.attention_factor(),
            pairs: if rope.interleaved { Pairs::Adjacent } else { Pairs::Halves },
        };
        let turns = [Some(turn(&spec.rope)), spec.rope_local.as_ref().map(turn)];
        Forward { spec, model, cache, turns }
    }

    /// What every row is after the last layer: `[rows, hidden]`.
    ///
    /// # Errors
    /// Weights that are not packed yet cannot be read, here and below.
    pub(super) fn run(&mut self, batch: &Batch) -> Result<Vec<f32>, LoadError> {
        let hidden = self.spec.hidden;
        let mut x = vec![0.0; batch.tokens.len() * hidden];
        for (x, token) in x.chunks_exact_mut(hidden).zip(&batch.tokens) {
            self.model.embedding.row(*token as usize, x)?;
        }
        let scale = self.spec.scales.embedding as f32;
        if scale != 1.0 {
            elementwise::scale(&mut x, scale);
        }
        let tables = self.turns.each_ref().map(|turn| turn.as_ref().map(|turn| turn.table(&batch.positions)));
        let awakes = batch.tokens.len() <= AWAKE_ROWS;
        for layer in 0..self.model.layers.len() {
            // Layer by layer: a thread that had other work goes back to it in between.
            if awakes {
                awake(|| self.layer(layer, batch, &tables, &mut x))?;
            } else {
                self.layer(layer, batch, &tables, &mut x)?;
            }
        }
        Ok(x)
    }

    fn layer(
        &mut self,
        layer: usize,
        batch: &Batch,
        tables: &[Option<Table>; 2],
        x: &mut [f32],
    ) -> Result<(), LoadError> {
        let added = self.attention(layer, batch, tables, x)?;
        self.add(x, added, &self.model.layers[layer].attention_after);
        let weights = &self.model.layers[layer];
        let input = self.normed(x, &weights.mlp_before);
        let added = feed_forward::run(&self.spec, layer, &weights.feed_forward, &input)?;
        self.add(x, added, &weights.mlp_after);
        Ok(())
    }

    /// Logits of some rows of what [`Forward::run`] gave: `[rows.len(), vocab]`.
    pub(super) fn logits(&self, x: &[f32], rows: &[usize]) -> Result<Vec<f32>, LoadError> {
        let (hidden, vocab) = (self.spec.hidden, self.spec.vocab);
        let picked: Vec<f32> = rows.iter().flat_map(|row| &x[row * hidden..(row + 1) * hidden]).copied().collect();
        let input = self.normed(&picked, &self.model.norm);
        let mut logits = vec![0.0; rows.len() * vocab];
        let activations = Activations::new(self.model.head().operand(), &input, hidden);
        multiply(&activations, &mut [(self.model.head(), &mut logits)])?;
        let scales = self.spec.scales;
        each_row(&mut logits, vocab, |_, row| {
            if scales.logits != 1.0 {
                elementwise::scale(row, scales.logits as f32);
            }
            if let Some(cap) = scales.logit_softcap {
                elementwise::soft_cap(row, cap as f32);
            }
        });
        Ok(logits)
    }

    /// The rows after a norm; as they are where it has no weights.
    fn normed(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        if weight.is_empty() {
            return x.to_vec();
        }
        let mut out = vec![0.0; x.len()];
        let width = weight.len();
        let norm = self.norm(weight);
        each_row(&mut out, width, |row, out| elementwise::rms_norm(&x[row * width..(row + 1) * width], norm, out));
        out
    }

    fn norm<'a>(&self, weight: &'a [f32]) -> Norm<'a> {
        let spec = &self.spec.norm;
        Norm { weight, offset: if spec.plus_one { 1.0 } else { 0.0 }, eps: spec.eps as f32 }
    }

    /// What a block gives joins the residual stream, by way of a norm where there is one.
    fn add(&self, x: &mut [f32], added: Vec<f32>, after: &[f32]) {
        let mut added = if after.is_empty() { added } else { self.normed(&added, after) };
        let scale = self.spec.scales.residual as f32;
        if scale != 1.0 {
            elementwise::scale(&mut added, scale);
        }
        elementwise::add(x, &added);
    }

    fn attention(
        &mut self,
        layer: usize,
        batch: &Batch,
        tables: &[Option<Table>; 2],
        x: &[f32],
    ) -> Result<Vec<f32>, LoadError> {
        let (spec, rows) = (self.spec.attention, batch.tokens.len());
        let weights = &self.model.layers[layer];
        let input = self.normed(x, &weights.attention_before);
        let mut query = vec![0.0; rows * spec.query_width()];
        let mut key = vec![0.0; rows * spec.kv_width()];
        let mut value = vec![0.0; rows * spec.kv_width()];
        project(
            &input,
            self.spec.hidden,
            &mut [(&weights.query, &mut query), (&weights.key, &mut key), (&weights.value, &mut value)],
        )?;
        let table = match self.spec.layers[layer].rotation {
            Rotation::Global => tables[0].as_ref(),
            Rotation::Local => tables[1].as_ref(),
            Rotation::None => None,
        };
        self.turn(&mut query, spec.query_width(), &weights.query_norm, table);
        self.turn(&mut key, spec.kv_width(), &weights.key_norm, table);
        let block_len = self.cache.view(layer).block_len as u32;
        for run in &batch.runs {
            for (position, row) in (run.start..).zip(run.rows.clone()) {
                let range = row * spec.kv_width()..(row + 1) * spec.kv_width();
                let at = (run.blocks[(position / block_len) as usize], position % block_len);
                self.cache.write(layer, at, &key[range.clone()], &value[range]);
            }
        }
        let mixed = self.attend(layer, batch, &query);
        let mut out = vec![0.0; rows * self.spec.hidden];
        project(&mixed, spec.query_width(), &mut [(&self.model.layers[layer].output, &mut out)])?;
        Ok(out)
    }

    /// Norms of the heads, then the rotation.
    fn turn(&self, x: &mut [f32], width: usize, weight: &[f32], table: Option<&Table>) {
        let head_dim = self.spec.attention.head_dim;
        let (norm, per_head) = (self.norm(weight), self.spec.attention.qk_norm == QkNorm::PerHead);
        each_row(x, width, |row, x| {
            if !weight.is_empty() {
                let before = x.to_vec();
                let size = if per_head { head_dim } else { width };
                for (x, before) in x.chunks_exact_mut(size).zip(before.chunks_exact(size)) {
                    elementwise::rms_norm(before, norm, x);
                }
            }
            if let Some(table) = table {
                elementwise::rotate(x, head_dim, table.row(row), table.pairs);
            }
        });
    }

    /// Attention of every row over its own sequence: `[rows, heads * head_dim]`.
    fn attend(&self, layer: usize, batch: &Batch, query: &[f32]) -> Vec<f32> {
        let spec = self.spec.attention;
        let (kv_heads, wide) = (spec.kv_heads, spec.group() * spec.head_dim);
        let view = self.cache.view(layer);
        let rule = Rule {
            scale: spec.scale as f32,
            window: self.spec.layers[layer].window.map(|window| window as u32),
            soft_cap: spec.softcap.map(|cap| cap as f32),
        };
        let sinks = &self.model.layers[layer].sinks;
        let mut out = vec![0.0; query.len()];
        let mut tasks: Vec<Task<'_>> = Vec::new();
        let mut places = out.chunks_exact_mut(wide);
        for run in &batch.runs {
            for first in run.rows.clone().step_by(TILE_TOKENS) {
                let rows = first..(first + TILE_TOKENS).min(run.rows.end);
                let at = tasks.len();
                tasks.extend((0..kv_heads).map(|head| Task { run, rows: rows.clone(), head, out: Vec::new() }));
                for task in rows.flat_map(|_| at..at + kv_heads) {
                    tasks[task].out.extend(places.next());
                }
            }
        }
        tasks.into_par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, mut task| {
            let mut queries = Vec::with_capacity(task.rows.len() * wide);
            let mut positions = Vec::with_capacity(task.rows.len() * spec.group());
            for row in task.rows.clone() {
                queries.extend_from_slice(&query[(row * kv_heads + task.head) * wide..][..wide]);
                positions.extend(std::iter::repeat_n(batch.positions[row], spec.group()));
            }
            let own = sinks.get(task.head * spec.group()..(task.head + 1) * spec.group()).unwrap_or_default();
            let sinks = own.repeat(task.rows.len());
            let tile = Tile {
                queries: &queries,
                positions: &positions,
                sinks: &sinks,
                table: &task.run.blocks,
                head: task.head,
            };
            let mut mixed = vec![0.0; queries.len()];
            attend(&view, &rule, &tile, scratch, &mut mixed);
            for (out, mixed) in task.out.iter_mut().zip(mixed.chunks_exact(wide)) {
                out.copy_from_slice(mixed);
            }
        });
        out
    }

    /// Do weights wait to be packed?
    pub(super) fn waits(&self) -> bool {
        self.model.waits()
    }

    /// As long as weights wait: are their files still what they were?
    pub(super) fn check_unchanged(&self) -> Result<(), LoadError> {
        self.model.check_unchanged()
    }

    /// Packs about so many bytes of weights that have waited for it; `false` once there are none.
    pub(super) fn pack(&mut self, most: usize) -> Result<bool, LoadError> {
        self.model.pack(most)
    }

    /// Bytes of all weights.
    pub(super) fn weight_bytes(&self) -> usize {
        self.model.bytes()
    }
}

/// Attention of some rows of a sequence by the query heads of one KV head.
struct Task<'a> {
    run: &'a Run,
    rows: Range<usize>,
    head: usize,
    /// For each row `[group * head_dim]`.
    out: Vec<&'a mut [f32]>,
}

impl Turn {
    fn table(&self, positions: &[u32]) -> Table {
        let width = self.frequencies.len();
        let (mut cos, mut sin) = (vec![0.0; positions.len() * width], vec![0.0; positions.len() * width]);
        for ((position, cos), sin) in positions.iter().zip(cos.chunks_exact_mut(width)).zip(sin.chunks_exact_mut(width))
        {
            elementwise::angles(*position, &self.frequencies, self.factor, cos, sin);
        }
        Table { cos, sin, width, pairs: self.pairs }
    }
}

impl Table {
    fn row(&self, row: usize) -> Angles<'_> {
        let range = row * self.width..(row + 1) * self.width;
        Angles { cos: &self.cos[range.clone()], sin: &self.sin[range] }
    }
}

/// Does `work` to every row; on several threads where there are many.
pub(super) fn each_row(x: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if x.len() / width < MANY_ROWS {
        x.chunks_exact_mut(width).enumerate().for_each(|(row, x)| work(row, x));
    } else {
        x.par_chunks_exact_mut(width).enumerate().for_each(|(row, x)| work(row, x));
    }
}

/// `x w^T + b` of several projections of the same rows.
pub(super) fn project(x: &[f32], width: usize, into: &mut [(&Linear, &mut Vec<f32>)]) -> Result<(), LoadError> {
    // One form of the rows for each that is asked for; files mix formats.
    for operand in [Operand::Float, Operand::Int8] {
        if into.iter().all(|(linear, _)| linear.weight.operand() != operand) {
            continue;
        }
        let activations = Activations::new(operand, x, width);
        let mut products: Vec<(&Deferred, &mut [f32])> = into
            .iter_mut()
            .filter(|(linear, _)| linear.weight.operand() == operand)
            .map(|(linear, out)| (&linear.weight, &mut out[..]))
            .collect();
        multiply(&activations, &mut products)?;
    }
    for (linear, out) in into {
        if !linear.bias.is_empty() {
            each_row(out, linear.bias.len(), |_, row| elementwise::add(row, &linear.bias));
        }
    }
    Ok(())
}

/// Products of the same rows with several matrices, divided over the threads of the pool.
fn multiply(activations: &Activations, into: &mut [(&Deferred, &mut [f32])]) -> Result<(), LoadError> {
    let shares = if activations.rows() < MANY_ROWS { 1 } else { SHARES };
    let parts = rayon::current_num_threads() * shares;
    let mut tasks = Vec::with_capacity(into.len() * parts);
    for (weight, out) in into {
        let tiles = weight.tiles();
        let cuts: Vec<usize> = (1..parts).map(|part| tiles * part / parts).collect();
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain(std::iter::once(tiles));
        let parts = columns(out, weight.rows(), &cuts);
        tasks.extend(starts.zip(ends).zip(parts).map(|((start, end), part)| (*weight, start..end, part)));
    }
    tasks.into_par_iter().with_max_len(1).try_for_each(|(weight, tiles, mut out)| match tiles.is_empty() {
        true => Ok(()),
        false => weight.multiply(tiles, activations, &mut out),
    })
}
