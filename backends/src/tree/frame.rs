//! Tensors as a table. A model takes either one tensor of rows, or one tensor for each column, matched by name; text
//! columns are recoded to the categories that the model knows.

use super::booster::CategoryValues;
use crate::{DataType, InferError, Tensor};
use std::collections::HashMap;

/// The columns of a model.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) count: usize,
    /// Empty, or one for each column.
    pub(super) names: Vec<String>,
    /// Empty, or one for each column.
    pub(super) categories: Vec<CategoryValues>,
}

/// A table of numbers, row-major.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<f64>,
}

impl Columns {
    /// Assembles one-column tensors into a table: ordered by name where the model has names, as given where not.
    pub(super) fn assemble(&self, inputs: &[Tensor]) -> Result<Table, InferError> {
        let order = self.order(inputs)?;
        let rows = inputs.first().map_or(0, Tensor::rows);
        let columns = order.len();
        let mut values = vec![f64::NAN; rows * columns];
        for (column, &input) in order.iter().enumerate() {
            let tensor = &inputs[input];
            if tensor.len() != rows || tensor.rows() != rows {
                return Err(InferError::invalid(format!(
                    "column '{}' has shape {:?}; expected [{rows}] like the first column",
                    tensor.name(),
                    tensor.shape()
                )));
            }
            for (row, value) in self.column(column, tensor)?.into_iter().enumerate() {
                values[row * columns + column] = value;
            }
        }
        Ok(Table { rows, columns, values })
    }

    /// For each of the model's columns, the input that holds it.
    fn order(&self, inputs: &[Tensor]) -> Result<Vec<usize>, InferError> {
        if self.names.is_empty() {
            return Ok((0..inputs.len()).collect());
        }
        let mut by_name: HashMap<&str, usize> = inputs.iter().enumerate().map(|(i, t)| (t.name(), i)).collect();
        let mut order = Vec::with_capacity(self.names.len());
        let mut absent = Vec::new();
        for name in &self.names {
            match by_name.remove(name.as_str()) {
                Some(input) => order.push(input),
                None => absent.push(name.as_str()),
            }
        }
        if !absent.is_empty() {
            return Err(InferError::invalid(format!("missing columns: {}", absent.join(", "))));
        }
        let mut unknown: Vec<&str> = by_name.into_keys().collect();
        if !unknown.is_empty() {
            unknown.sort_unstable();
            let known = self.names.join(", ");
            return Err(InferError::invalid(format!("unknown columns: {}; expected {known}", unknown.join(", "))));
        }
        Ok(order)
    }

    fn column(&self, column: usize, tensor: &Tensor) -> Result<Vec<f64>, InferError> {
        if tensor.datatype() != DataType::Bytes {
            return Ok(tensor.to_f64().map(|values| values.into_owned()).unwrap_or_default());
        }
        let Some(CategoryValues::Strings(known)) = self.categories.get(column) else {
            return Err(InferError::invalid(format!(
                "column '{}' holds text, but the model knows no categories of it",
                tensor.name()
            )));
        };
        let codes: HashMap<&[u8], usize> = known.iter().enumerate().map(|(i, name)| (name.as_bytes(), i)).collect();
        let strings = tensor.strings().into_iter().flatten();
        strings
            .map(|text| {
                codes.get(text).map(|&code| code as f64).ok_or_else(|| {
                    let text = String::from_utf8_lossy(text);
                    InferError::invalid(format!("column '{}': unknown category '{text}'", tensor.name()))
                })
            })
            .collect()
    }
}
