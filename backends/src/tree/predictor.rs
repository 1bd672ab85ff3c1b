//! Rows in, predictions out.

use super::FILLED_FRAME;
use super::answer::{Classes, Shaping};
use super::frame::{Absent, Columns};
use super::scorer::{Intake, Number, Scorer};
use crate::settings::Answer;
use crate::{
    Call, Conventions, DataType, Element, InferError, LoadOptions, Parameter, Platform, Port, Predictor, Profile,
    Settings, Signature, Tensor,
};
use kernels::forest::Real;
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rows that one task of the pool computes: whole blocks of the kernels.
const ROWS_PER_TASK: usize = 256;
/// Rows between two looks at the deadline.
const ROWS_PER_CHECK: usize = 16 * ROWS_PER_TASK;
/// A model with more columns is not timed: a row of them is larger than the file need be.
const TIMED_COLUMNS: usize = 1 << 16;

/// A model of some library, ready to answer.
#[derive(Debug)]
pub(super) struct TreePredictor<S> {
    scorer: S,
    intake: Intake,
    signature: Signature,
    shaping: Shaping,
    pool: Arc<rayon::ThreadPool>,
    single_call: Duration,
    /// What a call may take: short rows are filled up, and a row has more outputs than it may have inputs.
    most_bytes: usize,
}

/// Row-major values, borrowed from the request where they are what the library takes.
type Rows<'a, S> = Cow<'a, [<S as Scorer>::Number]>;

/// What a model is loaded with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) options: &'a LoadOptions,
    pub(super) settings: &'a Settings,
}

impl<S: Scorer> TreePredictor<S> {
    /// Errors are widths and answers that the settings state and the model does not have.
    pub(super) fn new(scorer: S, intake: Intake, platform: Platform, context: &Context<'_>) -> Result<Self, String> {
        let classes = scorer.classes();
        let own_index = matches!(classes, Ok(Classes::Index(_)));
        let shaping = Shaping::new(context.settings, scorer.columns(), classes)?;
        let outputs = shaping.columns(scorer.columns());
        let stated = [
            ("input", context.settings.input_type.columns, intake.columns.count),
            ("output", context.settings.output_type.columns, outputs.unwrap_or(1)),
        ];
        for (port, stated, actual) in stated {
            if let Some(stated) = stated.filter(|stated| *stated != actual) {
                return Err(format!("its settings say that a row of the {port} has {stated} values; it has {actual}"));
            }
        }
        let signature = signature(outputs, (platform, S::Number::DATATYPE), &intake.columns, context);
        let is_class = context.settings.answer == Answer::Class || own_index;
        // One sum tells two classes apart.
        let classes = is_class.then(|| scorer.base().len().max(2));
        check_labels(&signature.outputs[0], context.settings, outputs.or(classes).unwrap_or(1))?;
        let pool = context.options.pool.clone();
        let most_bytes = context.options.limits.tensor_bytes;
        let single_call = Duration::ZERO;
        let mut predictor = TreePredictor { scorer, intake, signature, shaping, pool, single_call, most_bytes };
        predictor.single_call = predictor.time_single_call();
        Ok(predictor)
    }

    /// The fastest of a few calls of one row.
    fn time_single_call(&self) -> Duration {
        if self.intake.columns.count > TIMED_COLUMNS {
            return Duration::ZERO;
        }
        let row = vec![S::Number::from_f64(0.5); self.intake.columns.count];
        let call = || {
            let before = Instant::now();
            std::hint::black_box(self.sums(&row, 1));
            before.elapsed()
        };
        (0..5).map(|_| call()).min().unwrap_or_default()
    }

    /// Is there room for what the rows of a call become, however short they were sent?
    fn check_size(&self, inputs: &[Tensor]) -> Result<(), InferError> {
        let rows = inputs.first().map_or(0, Tensor::rows);
        let widest = self.intake.columns.count.max(self.scorer.base().len()).max(inputs.len());
        let bytes = widest.checked_mul(size_of::<f64>()).and_then(|bytes| bytes.checked_mul(rows));
        match bytes {
            Some(bytes) if bytes <= self.most_bytes => Ok(()),
            _ => Err(InferError::invalid(format!(
                "{rows} rows of {widest} values exceed the limit of {} bytes; send fewer at a time",
                self.most_bytes
            ))),
        }
    }

    /// The one input as rows of all of the model's columns.
    fn rows<'a>(&self, call: &Call<'a>) -> Result<(Rows<'a, S>, usize), InferError> {
        self.check_size(call.inputs)?;
        let (by_column, absent) = match call.parameters.get("content_type") {
            Some(Parameter::String(kind)) if kind == "pd" => (true, Absent::Refused),
            Some(Parameter::String(kind)) if kind == FILLED_FRAME => (true, Absent::Missing),
            _ => (false, Absent::Refused),
        };
        if by_column || call.inputs.len() > 1 {
            let table = self.intake.columns.assemble(call.inputs, absent)?;
            return Ok((self.fit("the columns", Cow::Owned(table.values), table.rows, table.columns)?, table.rows));
        }
        let [input] = call.inputs else {
            return Err(InferError::invalid("expected 1 input but got 0 inputs"));
        };
        let [rows, columns] = *input.shape() else {
            return Err(InferError::invalid(format!(
                "input '{}' has shape {:?}; expected [rows, {}]",
                input.name(),
                input.shape(),
                self.intake.columns.count
            )));
        };
        let values = S::Number::of(input).ok_or_else(|| {
            InferError::invalid(format!(
                "input '{}' is {}; expected a numeric datatype",
                input.name(),
                input.datatype()
            ))
        })?;
        let name = format!("input '{}'", input.name());
        Ok((self.fit(&name, values, rows, columns)?, rows))
    }

    /// Rows of as many columns as the model has, as its library makes them; those that it does not take are refused.
    fn fit<'a>(
        &self,
        name: &str,
        values: Cow<'a, [S::Number]>,
        rows: usize,
        columns: usize,
    ) -> Result<Cow<'a, [S::Number]>, InferError> {
        let wanted = self.intake.columns.count;
        let short = columns < wanted && (columns == 0 || !self.intake.fills_up);
        if columns > wanted || (short && rows > 0) {
            return Err(InferError::invalid(format!(
                "rows of {name} have {columns} columns; the model was trained on {wanted}"
            )));
        }
        if self.intake.finite
            && let Some(at) = values.iter().position(|v| v.abs() == S::Number::INFINITY)
        {
            let (row, column) = (at / columns, at % columns);
            return Err(InferError::invalid(format!(
                "row {row}, column {column} of {name} is infinite; expected finite numbers, or NaN for a missing value"
            )));
        }
        if columns == wanted || rows == 0 {
            return Ok(values);
        }
        let mut wide = vec![S::Number::from_f64(f64::NAN); rows * wanted];
        for (out, row) in wide.chunks_exact_mut(wanted).zip(values.chunks_exact(columns)) {
            out[..columns].copy_from_slice(row);
        }
        Ok(Cow::Owned(wide))
    }

    /// Sums of `count` rows; large batches are split over the pool.
    fn sums(&self, rows: &[S::Number], count: usize) -> Vec<S::Number> {
        let base = self.scorer.base();
        let mut sums = Vec::with_capacity(count * base.len());
        for _ in 0..count {
            sums.extend_from_slice(base);
        }
        if count < 2 * ROWS_PER_TASK || self.pool.current_num_threads() == 1 {
            self.scorer.add(rows, &mut sums);
            return sums;
        }
        self.pool.install(|| {
            rows.par_chunks(ROWS_PER_TASK * self.intake.columns.count)
                .zip(sums.par_chunks_mut(ROWS_PER_TASK * base.len()))
                .for_each(|(rows, sums)| self.scorer.add(rows, sums));
        });
        sums
    }
}

impl<S: Scorer> Predictor for TreePredictor<S> {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn profile(&self) -> Profile {
        Profile {
            batchable: true,
            instances: self.pool.current_num_threads(),
            single_call: self.single_call,
            steady: true,
            computes: false,
            preferred_batch: self.scorer.preferred_batch(),
            device: "cpu".into(),
            bytes: self.scorer.bytes(),
            notes: Vec::new(),
        }
    }

    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        let (rows, count) = self.rows(call)?;
        let features = self.intake.columns.count;
        let mut values = Vec::with_capacity(count * self.scorer.base().len());
        for part in rows.chunks(ROWS_PER_CHECK * features) {
            call.check()?;
            values.extend(self.sums(part, part.len() / features));
        }
        self.scorer.finish(&mut values);
        let columns = self.scorer.columns();
        let values = self.shaping.apply(values);
        let mut shape = vec![count];
        shape.extend(self.shaping.columns(columns));
        let port = &self.signature.outputs[0];
        let name = port.name.clone();
        let output = match port.datatype {
            datatype if datatype == S::Number::DATATYPE => Tensor::from_vec(name, shape, values),
            DataType::Fp32 => Tensor::from_vec(name, shape, values.iter().map(|v| v.to_f64() as f32).collect()),
            _ => Tensor::from_vec(name, shape, values.iter().map(|v| v.to_f64()).collect()),
        };
        Ok(vec![output.map_err(|misfit| InferError::Internal(misfit.to_string()))?])
    }
}

/// Labels are those of a row's values, by their place, or of classes where its one value is a class. Any other number of
/// them would label one thing as another.
fn check_labels(output: &Port, settings: &Settings, wanted: usize) -> Result<(), String> {
    let labels = settings.labels_of(0, &output.name).len();
    if labels == 0 || labels == wanted {
        return Ok(());
    }
    let hint = match wanted {
        1 => ", as a row has one value; answers of \"class\" or \"probability\" take labels of their classes",
        _ => "",
    };
    Err(format!("its settings have {labels} labels for output '{}'; expected {wanted}{hint}", output.name))
}

/// Of a platform's model, whose numbers are of this type.
fn signature(
    outputs: Option<usize>,
    (platform, datatype): (Platform, DataType),
    columns: &Columns,
    context: &Context<'_>,
) -> Signature {
    let Context { options, settings } = context;
    let triton = options.conventions == Conventions::Triton;
    let (input, output) = if triton { ("input__0", "output__0") } else { ("input-0", "output-0") };
    // Triton's forest backend takes 32 bits for every model; whoever has more may send more.
    let taken = settings.input_type.datatype.unwrap_or(if triton { DataType::Fp32 } else { datatype });
    let port = |stated: &Option<String>, name: &str, datatype: DataType, shape: Vec<i64>| Port {
        name: stated.as_deref().unwrap_or(name).into(),
        datatype,
        also: Vec::new(),
        shape,
        optional: false,
        any_shape: false,
        labels: Vec::new(),
    };
    let mut shape = vec![-1];
    shape.extend(outputs.map(|n| n as i64));
    let input = port(&settings.input, input, taken, vec![-1, columns.count as i64]);
    let wider = settings.input_type.datatype.is_none() && datatype != taken;
    Signature {
        inputs: vec![Port { also: wider.then_some(datatype).into_iter().collect(), ..input }],
        outputs: vec![port(&settings.output, output, settings.output_type.datatype.unwrap_or(datatype), shape)],
        // Whoever states the input's name means it.
        strict: triton || settings.input.is_some(),
        feature_names: columns.names.clone(),
        platform,
    }
}
