//! Tensors as a table. A model takes either one tensor of rows, or one tensor for each column, matched by name; columns
//! that hold categories by value are recoded to the numbers that the model knows them by.

use super::scorer::Number;
use crate::tensor::MISSING_TEXT;
use crate::{DataType, InferError, Tensor};
use std::collections::HashMap;

/// The categories of one column by value. A value's code is its place in the list that the model was trained with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Categories {
    texts: HashMap<Box<[u8]>, u32>,
    /// By the bits of the number.
    numbers: HashMap<u64, u32>,
    /// Are there numbers that cannot be told apart?
    too_wide: bool,
}

/// What becomes of a category that the model does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The request is refused (XGBoost).
    Refused,
    /// It is a missing value (LightGBM).
    Missing,
}

impl Categories {
    pub(super) fn add_text(&mut self, text: &[u8], code: usize) {
        self.texts.insert(text.into(), code as u32);
    }

    pub(super) fn add_number(&mut self, number: f64, code: usize) {
        self.numbers.insert(number_key(number), code as u32);
    }

    /// From 2^53 on the floats that columns become are not one for each whole number.
    pub(super) fn add_whole(&mut self, number: f64, code: usize) {
        self.too_wide |= number.abs() >= (1u64 << 53) as f64;
        self.add_number(number, code);
    }

    /// Are there none?
    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.numbers.is_empty()
    }
}

/// Negative zero is zero.
fn number_key(number: f64) -> u64 {
    (number + 0.0).to_bits()
}

/// The columns of a model.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) count: usize,
    /// Empty, or one for each column.
    pub(super) names: Vec<String>,
    /// Empty, or one for each column; `None` where the column is numeric, or holds codes as XGBoost's numbers do: it
    /// recodes numbers only where a column's type is a category, which that of no frame is that KServe makes of a request.
    pub(super) categories: Vec<Option<Categories>>,
    /// Categories of columns that the file does not tell: of those that a request has text in, in order.
    pub(super) unplaced: Vec<Categories>,
    pub(super) unknown: Unknown,
}

/// A table of numbers as a library takes them, row-major.
#[derive(Debug)]
pub(super) struct Table<N> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<N>,
}

/// What becomes of a column that a call lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// The call is refused.
    Refused,
    /// All of it is missing values.
    Missing,
}

impl Columns {
    /// Assembles one-column tensors into a table: ordered by name where the model has names, as given where not.
    pub(super) fn assemble<N: Number>(&self, inputs: &[Tensor], absent: Absent) -> Result<Table<N>, InferError> {
        let order = self.order(inputs, absent)?;
        let rows = inputs.first().map_or(0, Tensor::rows);
        let columns = order.len();
        let mut unplaced = self.unplaced_by_column(order.iter().flatten().map(|&input| &inputs[input]))?.iter();
        if let Some(tensor) = inputs.iter().find(|tensor| tensor.len() != rows || tensor.rows() != rows) {
            return Err(InferError::invalid(format!(
                "column '{}' has shape {:?}; expected [{rows}] like the first column",
                tensor.name(),
                tensor.shape()
            )));
        }
        let mut values = vec![N::from_f64(f64::NAN); rows * columns];
        for (column, input) in order.into_iter().enumerate() {
            let Some(tensor) = input.map(|input| &inputs[input]) else { continue };
            let placed = self.categories.get(column).and_then(Option::as_ref);
            let text = tensor.datatype() == DataType::Bytes;
            let categories = if text { placed.or_else(|| unplaced.next()) } else { placed };
            for (row, value) in self.recode(tensor, categories)?.into_iter().enumerate() {
                values[row * columns + column] = value;
            }
        }
        Ok(Table { rows, columns, values })
    }

    /// For each of the model's columns, the input that holds it.
    fn order(&self, inputs: &[Tensor], absent: Absent) -> Result<Vec<Option<usize>>, InferError> {
        if let Some(wide) = inputs.iter().find(|input| input.shape().len() == 2 && input.shape()[1] > 1) {
            let others: Vec<&str> = inputs.iter().map(Tensor::name).filter(|name| *name != wide.name()).collect();
            let (name, shape) = (wide.name(), wide.shape());
            return Err(InferError::invalid(if others.is_empty() {
                format!(
                    "input '{name}' has shape {shape:?}; as the columns of a frame (content_type) it has to be one tensor of \
                     shape [n] or [n, 1] for each column; without content_type it may hold all columns"
                )
            } else {
                format!(
                    "unexpected input '{}' beside '{name}': the model takes one tensor of all its columns, or one for each \
                     column",
                    others.join("', '")
                )
            }));
        }
        if self.names.is_empty() {
            return Ok((0..inputs.len()).map(Some).collect());
        }
        let mut by_name: HashMap<&str, usize> = inputs.iter().enumerate().map(|(i, t)| (t.name(), i)).collect();
        let order: Vec<Option<usize>> = self.names.iter().map(|name| by_name.remove(name.as_str())).collect();
        if absent == Absent::Refused && order.contains(&None) {
            let lacking = self.names.iter().zip(&order).filter(|(_, input)| input.is_none());
            let lacking: Vec<&str> = lacking.map(|(name, _)| name.as_str()).collect();
            return Err(InferError::invalid(format!("missing columns: {}", lacking.join(", "))));
        }
        let mut unknown: Vec<&str> = by_name.into_keys().collect();
        if !unknown.is_empty() {
            unknown.sort_unstable();
            let known = self.names.join(", ");
            return Err(InferError::invalid(format!("unknown columns: {}; expected {known}", unknown.join(", "))));
        }
        Ok(order)
    }

    /// The categories without a column, after checking that there are as many columns of text, or none.
    fn unplaced_by_column<'a>(&self, tensors: impl Iterator<Item = &'a Tensor>) -> Result<&[Categories], InferError> {
        let texts = tensors.filter(|tensor| tensor.datatype() == DataType::Bytes).count();
        // Where all categories are text, and no column has any, all that are categories are missing.
        let are_missing = texts == 0 && self.unplaced.iter().all(|categories| categories.numbers.is_empty());
        if self.unplaced.is_empty() || texts == self.unplaced.len() || are_missing {
            return Ok(&self.unplaced);
        }
        let count = self.unplaced.len();
        Err(InferError::invalid(if self.unplaced.iter().any(|categories| categories.texts.is_empty()) {
            format!(
                "the model knows categories of {count} columns by value, but not of which; send the codes of all columns \
                 in one tensor"
            )
        } else {
            format!(
                "{texts} columns hold text; the model knows categories of {count} columns, but not of which: send these \
                 as text, or all columns as one tensor of numbers"
            )
        }))
    }

    /// A column's numbers, or the codes of its categories.
    fn recode<N: Number>(&self, tensor: &Tensor, categories: Option<&Categories>) -> Result<Vec<N>, InferError> {
        let name = tensor.name();
        let code = |known: Option<&u32>, shown: &dyn Fn() -> String| match (known, self.unknown) {
            (Some(&code), _) => Ok(N::from_f64(f64::from(code))),
            (None, Unknown::Missing) => Ok(N::from_f64(f64::NAN)),
            (None, Unknown::Refused) => {
                Err(InferError::invalid(format!("column '{name}': unknown category '{}'", shown())))
            }
        };
        match (N::of_column(tensor), categories) {
            (Some(_), Some(categories)) if categories.too_wide => Err(InferError::invalid(format!(
                "column '{name}' has categories that are whole numbers beyond 2^53, which cannot be told apart by value; \
                 send the codes of all columns in one tensor"
            ))),
            // Numbers where all categories are text are codes already.
            (Some(_), Some(categories)) if !categories.numbers.is_empty() => {
                let values = tensor.to_f64().unwrap_or_default();
                let number = |value: &f64| match value.is_nan() {
                    true => Ok(N::from_f64(f64::NAN)),
                    false => code(categories.numbers.get(&number_key(*value)), &|| value.to_string()),
                };
                values.iter().map(number).collect()
            }
            (Some(values), _) => Ok(values.into_owned()),
            (None, Some(categories)) => {
                let texts = tensor.strings().into_iter().flatten();
                let number = |text: &[u8]| match text == MISSING_TEXT {
                    true => Ok(N::from_f64(f64::NAN)),
                    false => code(categories.texts.get(text), &|| String::from_utf8_lossy(text).into()),
                };
                texts.map(number).collect()
            }
            (None, None) => {
                Err(InferError::invalid(format!("column '{name}' holds text, but the model knows no categories of it")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Columns {
        Columns {
            count: 3,
            names: ["a", "b", "c"].map(str::to_owned).to_vec(),
            categories: Vec::new(),
            unplaced: Vec::new(),
            unknown: Unknown::Missing,
        }
    }

    fn column(name: &str, values: &[f64]) -> Tensor {
        Tensor::from_vec(name, vec![values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn whole_numbers_that_are_one_float_are_no_categories() {
        let mut categories = Categories::default();
        categories.add_whole(9_007_199_254_740_991.0, 0);
        categories.add_whole(-3.0, 1);
        assert!(!categories.too_wide);
        categories.add_whole((1i64 << 53) as f64, 2);
        assert!(categories.too_wide);
        let error = columns().recode::<f64>(&column("c", &[1.0]), Some(&categories)).unwrap_err();
        assert!(error.to_string().contains("column 'c'") && error.to_string().contains("2^53"), "{error}");
    }

    #[test]
    fn numbers_are_codes_where_categories_are_text() {
        let mut letters = Categories::default();
        letters.add_text(b"x", 0);
        let columns = Columns { unknown: Unknown::Refused, ..columns() };
        // Those that no category has go down the trees, as they do in an array.
        let values = columns.recode::<f32>(&column("c", &[0.0, 1.0, 20.0, -1.0, f64::NAN]), Some(&letters)).unwrap();
        assert_eq!(values[..4], [0.0, 1.0, 20.0, -1.0]);
        assert!(values[4].is_nan());
        let text = Tensor::from_strings("c", vec![1], ["10"]).unwrap();
        let error = columns.recode::<f32>(&text, Some(&letters)).unwrap_err();
        assert_eq!(error, InferError::invalid("column 'c': unknown category '10'"));
    }

    #[test]
    fn a_table_is_no_column() {
        let wide = || Tensor::from_vec("x", vec![2, 3], vec![0.0; 6]).unwrap();
        for names in [Vec::new(), columns().names] {
            let columns = Columns { names, ..columns() };
            let alone = columns.assemble::<f64>(&[wide()], Absent::Refused).unwrap_err().to_string();
            assert!(alone.contains("input 'x' has shape [2, 3]") && alone.contains("without content_type"), "{alone}");
            let error = columns.assemble::<f64>(&[wide(), column("a", &[1.0, 2.0])], Absent::Refused).unwrap_err();
            assert!(error.to_string().contains("unexpected input 'a' beside 'x'"), "{error}");
        }
    }

    #[test]
    fn a_column_that_is_absent_is_refused_or_missing() {
        let inputs = [column("c", &[3.0, 6.0]), column("a", &[1.0, 4.0])];
        let refused = columns().assemble::<f64>(&inputs, Absent::Refused).unwrap_err();
        assert_eq!(refused, InferError::invalid("missing columns: b"));
        let table = columns().assemble::<f64>(&inputs, Absent::Missing).unwrap();
        assert_eq!((table.rows, table.columns), (2, 3));
        assert_eq!([0, 2, 3, 5].map(|at| table.values[at]), [1.0, 3.0, 4.0, 6.0]);
        assert!(table.values[1].is_nan() && table.values[4].is_nan());
        let unknown = [column("d", &[1.0])];
        assert!(columns().assemble::<f64>(&unknown, Absent::Missing).is_err(), "whoever picks columns picks those");
    }

    #[test]
    fn texts_may_be_missing() {
        let mut letters = Categories::default();
        letters.add_text(b"x", 7);
        let columns = Columns {
            count: 1,
            names: vec!["a".into()],
            categories: vec![Some(letters)],
            unplaced: Vec::new(),
            unknown: Unknown::Refused,
        };
        let assembled = |texts: [&[u8]; 2]| {
            let column = Tensor::from_strings("a", vec![2], texts).unwrap();
            columns.assemble::<f64>(&[column], Absent::Refused).map(|table| table.values)
        };
        let values = assembled([b"x", MISSING_TEXT]).unwrap();
        assert!(values[0] == 7.0 && values[1].is_nan());
        assert!(assembled([b"x", b"y"]).is_err());
    }

    /// In a request whose rows all lack them.
    #[test]
    fn texts_of_a_column_that_is_not_known_may_be_missing() {
        let (mut letters, mut tens) = (Categories::default(), Categories::default());
        letters.add_text(b"x", 0);
        tens.add_number(10.0, 0);
        let inputs = [column("a", &[1.0]), column("b", &[f64::NAN]), column("c", &[f64::NAN])];
        let table = Columns { unplaced: vec![letters.clone()], ..columns() }.assemble::<f64>(&inputs, Absent::Refused);
        assert!(table.is_ok_and(|table| table.values[0] == 1.0 && table.values[1].is_nan()));
        let of_numbers = Columns { unplaced: vec![tens], ..columns() }.assemble::<f64>(&inputs, Absent::Refused);
        assert!(of_numbers.is_err_and(|error| error.to_string().contains("send the codes of all columns")));
    }
}
