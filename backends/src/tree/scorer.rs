//! What each library makes of rows: sums, then predictions. Shapes, columns and threads are the predictor's.

use super::answer::Classes;
use super::booster::{self, Body, Booster, Linear};
use super::frame::Columns;
use super::lightgbm::{self, LinearLeaves};
use super::objective;
use crate::{Element, Tensor};
use kernels::forest::{Engine, Path, Real, Target};
use std::borrow::Cow;
use std::fmt;

/// The type that a library computes in.
pub(super) trait Number: Real + Element {
    /// A tensor's numbers as the library takes those of an array; `None` for text.
    fn of(tensor: &Tensor) -> Option<Cow<'_, [Self]>>;
    /// Likewise of a column of a data frame. Either way they are rounded once.
    fn of_column(tensor: &Tensor) -> Option<Cow<'_, [Self]>>;
}

impl Number for f32 {
    fn of(tensor: &Tensor) -> Option<Cow<'_, [f32]>> {
        tensor.to_f32()
    }

    fn of_column(tensor: &Tensor) -> Option<Cow<'_, [f32]>> {
        tensor.to_f32()
    }
}

impl Number for f64 {
    /// The library takes arrays of 64-bit floats, and makes 32-bit ones of everything else.
    fn of(tensor: &Tensor) -> Option<Cow<'_, [f64]>> {
        if let Some(values) = tensor.values::<f64>() {
            return Some(Cow::Borrowed(values));
        }
        Some(Cow::Owned(tensor.to_f32()?.iter().map(|&value| f64::from(value)).collect()))
    }

    fn of_column(tensor: &Tensor) -> Option<Cow<'_, [f64]>> {
        tensor.to_f64()
    }
}

/// The arithmetic of one library.
pub(super) trait Scorer: Send + Sync + fmt::Debug {
    /// Of inputs, sums and predictions.
    type Number: Number;
    /// What the sums of a row start from, one for each.
    fn base(&self) -> &[Self::Number];
    /// Adds what the model makes of `rows` to their sums; both row-major.
    fn add(&self, rows: &[Self::Number], sums: &mut [Self::Number]);
    /// Makes predictions of sums; shortens the vector where a row has fewer of them.
    fn finish(&self, sums: &mut Vec<Self::Number>);
    /// Predictions of a row; `None` where there is one, without a dimension of its own.
    fn columns(&self) -> Option<usize>;
    /// What predictions say of classes, or why they say nothing.
    fn classes(&self) -> Result<Classes, String>;
    /// Rows worth computing together.
    fn preferred_batch(&self) -> usize;
    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// What a library takes for a row.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) columns: Columns,
    /// Rows that lack their last columns are filled up with missing values.
    pub(super) fills_up: bool,
    /// Infinities are refused.
    pub(super) finite: bool,
}

/// Rows that the block kernels compute at once.
const BLOCK: usize = 64;

#[derive(Debug)]
enum Margins {
    Forest(Box<Engine<f32>>),
    Linear(Linear),
}

/// XGBoost: margins start from the base score.
#[derive(Debug)]
pub(super) struct Xgboost {
    margins: Margins,
    base: Vec<f32>,
    link: objective::Link,
}

impl Xgboost {
    pub(super) fn new(booster: Booster) -> Result<Self, String> {
        let booster::Lowered { body, base, link } = booster.lower()?;
        let margins = match body {
            Body::Forest(forest) => Margins::Forest(Box::new(Engine::new(forest))),
            Body::Linear(linear) => Margins::Linear(linear),
        };
        Ok(Xgboost { margins, base, link })
    }
}

impl Scorer for Xgboost {
    type Number = f32;

    fn base(&self) -> &[f32] {
        &self.base
    }

    fn add(&self, rows: &[f32], sums: &mut [f32]) {
        match &self.margins {
            Margins::Forest(engine) => engine.add(Path::Auto, rows, sums),
            Margins::Linear(linear) => {
                let pairs = rows.chunks_exact(linear.features).zip(sums.chunks_exact_mut(linear.outputs));
                pairs.for_each(|(row, sums)| linear.add(row, sums));
            }
        }
    }

    fn finish(&self, sums: &mut Vec<f32>) {
        self.link.apply(sums);
    }

    fn columns(&self) -> Option<usize> {
        self.link.columns()
    }

    fn classes(&self) -> Result<Classes, String> {
        self.link.classes()
    }

    fn preferred_batch(&self) -> usize {
        match self.margins {
            Margins::Forest(_) => BLOCK,
            Margins::Linear(_) => 1,
        }
    }

    fn bytes(&self) -> usize {
        match &self.margins {
            Margins::Forest(engine) => engine.bytes(),
            Margins::Linear(linear) => linear.bytes(),
        }
    }
}

/// LightGBM: sums start from zero.
#[derive(Debug)]
pub(super) struct Lightgbm {
    engine: Engine<f64>,
    /// Where leaves are functions of the row, which the kernels do not know.
    linear: Option<LinearLeaves>,
    base: Vec<f64>,
    link: lightgbm::Link,
}

impl Lightgbm {
    pub(super) fn new(model: lightgbm::Lowered) -> (Self, Intake) {
        let base = vec![0.0; model.forest.outputs];
        let (engine, linear) = (Engine::new(model.forest), model.linear);
        let intake = Intake { columns: model.columns, fills_up: false, finite: false };
        (Lightgbm { engine, linear, base, link: model.link }, intake)
    }

    /// Row by row: leaves by the kernels, their values here, in the order of the trees.
    fn add_linear(&self, linear: &LinearLeaves, rows: &[f64], sums: &mut [f64]) {
        let forest = self.engine.forest();
        let (mut leaves, mut flushed) = (Vec::new(), Vec::new());
        for (row, sums) in rows.chunks_exact(forest.features).zip(sums.chunks_exact_mut(forest.outputs)) {
            flushed.clear();
            flushed.extend(row.iter().map(|&x| if x.abs() <= f64::TINY { 0.0 } else { x }));
            self.engine.leaves(&flushed, &mut leaves);
            for (index, (tree, &leaf)) in forest.trees.iter().zip(&leaves).enumerate() {
                if let Target::One(output) = tree.target {
                    sums[output as usize] += linear.value(index, leaf as usize, &flushed);
                }
            }
        }
    }
}

impl Scorer for Lightgbm {
    type Number = f64;

    fn base(&self) -> &[f64] {
        &self.base
    }

    fn add(&self, rows: &[f64], sums: &mut [f64]) {
        match &self.linear {
            None => self.engine.add(Path::Auto, rows, sums),
            Some(linear) => self.add_linear(linear, rows, sums),
        }
    }

    fn finish(&self, sums: &mut Vec<f64>) {
        self.link.apply(sums);
    }

    fn columns(&self) -> Option<usize> {
        self.link.columns()
    }

    fn classes(&self) -> Result<Classes, String> {
        self.link.classes()
    }

    fn preferred_batch(&self) -> usize {
        if self.linear.is_some() { 1 } else { BLOCK }
    }

    fn bytes(&self) -> usize {
        self.engine.bytes() + self.linear.as_ref().map_or(0, LinearLeaves::bytes)
    }
}
