//! Rows in, predictions out.

use super::booster::{Body, Booster, Linear, Lowered};
use super::frame::Columns;
use super::objective::Link;
use crate::{
    Call, Conventions, DataType, InferError, LoadOptions, Parameter, Port, Predictor, Profile, Signature, Tensor,
};
use kernels::forest::{Engine, Path};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows that one task of the pool computes: whole blocks of the kernels.
const ROWS_PER_TASK: usize = 256;
/// Rows between two looks at the deadline.
const ROWS_PER_CHECK: usize = 16 * ROWS_PER_TASK;

#[derive(Debug)]
enum Compiled {
    Forest(Engine<f32>),
    Linear(Linear),
}

/// An XGBoost model, ready to answer.
#[derive(Debug)]
pub(super) struct TreePredictor {
    compiled: Compiled,
    base: Vec<f32>,
    link: Link,
    columns: Columns,
    signature: Signature,
    /// Infinite inputs are refused, as the library's `DMatrix` refuses them.
    finite: bool,
    pool: Arc<rayon::ThreadPool>,
    single_call: Duration,
}

impl TreePredictor {
    pub(super) fn xgboost(booster: Booster, options: &LoadOptions) -> Result<Self, String> {
        let mut booster = booster;
        let features = booster.features as usize;
        let names = std::mem::take(&mut booster.feature_names);
        if !names.is_empty() && names.len() != features {
            return Err(format!("feature_names has {} entries for {features} features", names.len()));
        }
        let columns = Columns { count: features, names, categories: std::mem::take(&mut booster.categories) };
        let Lowered { body, base, link } = booster.lower()?;
        let compiled = match body {
            Body::Forest(forest) => Compiled::Forest(Engine::new(forest)),
            Body::Linear(linear) => Compiled::Linear(linear),
        };
        let signature = signature(&columns, link, options.conventions);
        let mut predictor = TreePredictor {
            compiled,
            base,
            link,
            columns,
            signature,
            finite: options.conventions == Conventions::Kserve,
            pool: options.pool.clone(),
            single_call: Duration::ZERO,
        };
        predictor.single_call = predictor.time_single_call();
        Ok(predictor)
    }

    /// The fastest of a few calls of one row.
    fn time_single_call(&self) -> Duration {
        let row = vec![0.5; self.columns.count];
        let call = || {
            let before = Instant::now();
            std::hint::black_box(self.margins(&row, 1));
            before.elapsed()
        };
        (0..5).map(|_| call()).min().unwrap_or_default()
    }

    /// The one input as rows of all of the model's columns.
    fn rows<'a>(&self, call: &Call<'a>) -> Result<(Cow<'a, [f32]>, usize), InferError> {
        let by_column = matches!(call.parameters.get("content_type"), Some(Parameter::String(t)) if t == "pd");
        if by_column || call.inputs.len() > 1 {
            let table = self.columns.assemble(call.inputs)?;
            let values: Vec<f32> = table.values.iter().map(|&v| v as f32).collect();
            return Ok((self.widen(Cow::Owned(values), table.rows, table.columns)?, table.rows));
        }
        let [input] = call.inputs else {
            return Err(InferError::invalid("expected 1 input but got 0 inputs"));
        };
        let [rows, columns] = *input.shape() else {
            return Err(InferError::invalid(format!(
                "input '{}' has shape {:?}; expected [rows, {}]",
                input.name(),
                input.shape(),
                self.columns.count
            )));
        };
        let values = input.to_f32().ok_or_else(|| {
            InferError::invalid(format!(
                "input '{}' is {}; expected a numeric datatype",
                input.name(),
                input.datatype()
            ))
        })?;
        Ok((self.widen(values, rows, columns)?, rows))
    }

    /// Fills up rows that lack their last columns with missing values, as the library does; refuses longer ones.
    fn widen<'a>(&self, values: Cow<'a, [f32]>, rows: usize, columns: usize) -> Result<Cow<'a, [f32]>, InferError> {
        let wanted = self.columns.count;
        if columns > wanted || (columns == 0 && rows > 0) {
            return Err(InferError::invalid(format!("rows have {columns} columns; the model was trained on {wanted}")));
        }
        if self.finite
            && let Some(at) = values.iter().position(|v| v.is_infinite())
        {
            let (row, column) = (at / columns, at % columns);
            return Err(InferError::invalid(format!(
                "row {row}, column {column} is infinite; expected finite numbers, or NaN for a missing value"
            )));
        }
        if columns == wanted {
            return Ok(values);
        }
        let mut wide = vec![f32::NAN; rows * wanted];
        for (out, row) in wide.chunks_exact_mut(wanted).zip(values.chunks_exact(columns)) {
            out[..columns].copy_from_slice(row);
        }
        Ok(Cow::Owned(wide))
    }

    /// Margins of `count` rows.
    fn margins(&self, rows: &[f32], count: usize) -> Vec<f32> {
        let mut sums = Vec::with_capacity(count * self.base.len());
        for _ in 0..count {
            sums.extend_from_slice(&self.base);
        }
        self.add(rows, &mut sums);
        sums
    }

    fn add(&self, rows: &[f32], sums: &mut [f32]) {
        let (features, outputs) = (self.columns.count, self.base.len());
        match &self.compiled {
            Compiled::Forest(engine) => {
                if rows.len() / features < 2 * ROWS_PER_TASK || self.pool.current_num_threads() == 1 {
                    engine.add(Path::Auto, rows, sums);
                    return;
                }
                self.pool.install(|| {
                    rows.par_chunks(ROWS_PER_TASK * features)
                        .zip(sums.par_chunks_mut(ROWS_PER_TASK * outputs))
                        .for_each(|(rows, sums)| engine.add(Path::Auto, rows, sums));
                });
            }
            Compiled::Linear(linear) => {
                for (row, sums) in rows.chunks_exact(features).zip(sums.chunks_exact_mut(outputs)) {
                    linear.add(row, sums);
                }
            }
        }
    }
}

impl Predictor for TreePredictor {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn profile(&self) -> Profile {
        let (preferred_batch, bytes) = match &self.compiled {
            Compiled::Forest(engine) => (64, engine.bytes()),
            Compiled::Linear(linear) => (1, linear.bytes()),
        };
        Profile {
            batchable: true,
            instances: self.pool.current_num_threads(),
            single_call: self.single_call,
            preferred_batch,
            device: "cpu",
            bytes,
        }
    }

    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        let (rows, count) = self.rows(call)?;
        let features = self.columns.count;
        let mut margins = Vec::with_capacity(count * self.base.len());
        for part in rows.chunks(ROWS_PER_CHECK * features) {
            call.check()?;
            margins.extend(self.margins(part, part.len() / features));
        }
        self.link.apply(&mut margins);
        let shape = match self.link.columns() {
            Some(columns) => vec![count, columns],
            None => vec![count],
        };
        let output = Tensor::from_vec(self.signature.outputs[0].name.clone(), shape, margins);
        Ok(vec![output.map_err(|misfit| InferError::Internal(misfit.to_string()))?])
    }
}

fn signature(columns: &Columns, link: Link, conventions: Conventions) -> Signature {
    let (input, output) = match conventions {
        Conventions::Kserve => ("input-0", "output-0"),
        Conventions::Triton => ("input__0", "output__0"),
    };
    let port = |name: &str, shape: Vec<i64>| Port {
        name: name.into(),
        datatype: DataType::Fp32,
        shape,
        optional: false,
        labels: Vec::new(),
    };
    let mut shape = vec![-1];
    shape.extend(link.columns().map(|n| n as i64));
    let kind = if link.classes() { "classes" } else { "values" };
    Signature {
        inputs: vec![port(input, vec![-1, columns.count as i64])],
        outputs: vec![port(output, shape)],
        strict: conventions == Conventions::Triton,
        feature_names: columns.names.clone(),
        platform: "xgboost".into(),
        properties: [("predicts".to_owned(), kind.to_owned())].into(),
    }
}
