//! Category values of the data frame that a model was trained on. The file lists them in the order of the frame's
//! categorical columns, but does not say which columns those are.

use super::super::frame::Categories;
use super::text::{RawModel, Seen};
use serde_json::Value;

/// Reads the JSON of the file's last line.
pub(super) fn read(json: &[u8]) -> Result<Vec<Vec<Value>>, String> {
    let lists: Option<Vec<Vec<Value>>> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    Ok(lists.unwrap_or_default())
}

/// Where category values belong.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// For each column, or empty.
    pub(super) by_column: Vec<Option<Categories>>,
    /// Those that belong to no column for certain.
    pub(super) unplaced: Vec<Categories>,
}

/// Matches the lists with the columns that training took for categorical, where nothing else fits. Otherwise they may
/// belong elsewhere: a category that is ordered was taken for a number unless it was declared, a number may have been
/// declared a category, and a column of one value is not told from others.
pub(super) fn place(model: &mut RawModel) -> Placed {
    let lists = std::mem::take(&mut model.categories);
    let declared = declared(model);
    let fits = |list: usize, column: usize| {
        let categories = lists[list].len() as i64;
        match model.seen[column] {
            Seen::Codes(greatest) => greatest < categories,
            // An ordered category that the training frame had all values of.
            Seen::UpTo(greatest) => greatest + 1 == categories,
            Seen::Numbers => false,
            Seen::Nothing => true,
        }
    };
    // Lists in their order, each as far in front as it fits, and as far behind: other ways lie between the two.
    let (mut front, mut back) = (Vec::new(), Vec::new());
    for column in 0..model.seen.len() {
        if front.len() < lists.len() && fits(front.len(), column) {
            front.push(column);
        }
    }
    for column in (0..model.seen.len()).rev() {
        if back.len() < lists.len() && fits(lists.len() - 1 - back.len(), column) {
            back.push(column);
        }
    }
    back.reverse();
    if lists.is_empty() || declared.len() != lists.len() || front != declared || back != declared {
        let unplaced = lists.iter().map(|list| categories(list)).collect();
        return Placed { by_column: Vec::new(), unplaced };
    }
    let mut by_column: Vec<Option<Categories>> = (0..model.features).map(|_| None).collect();
    for (list, column) in lists.iter().zip(declared) {
        by_column[column] = Some(categories(list));
    }
    Placed { by_column, unplaced: Vec::new() }
}

/// Columns that training took for categorical, in order: those of the parameters, which know columns of one value too,
/// unless they are of another model; else those that have codes.
fn declared(model: &mut RawModel) -> Vec<usize> {
    let codes = model.seen.iter().enumerate().filter(|(_, seen)| matches!(seen, Seen::Codes(_)));
    let codes: Vec<usize> = codes.map(|(column, _)| column).collect();
    let Some(mut declared) = model.declared.take() else { return codes };
    declared.sort_unstable();
    declared.dedup();
    let known = codes.iter().all(|column| declared.binary_search(column).is_ok());
    if known && declared.iter().all(|column| *column < model.seen.len()) { declared } else { codes }
}

fn categories(list: &[Value]) -> Categories {
    let mut categories = Categories::default();
    for (code, value) in list.iter().enumerate() {
        match value {
            Value::String(text) => categories.add_text(text.as_bytes(), code),
            Value::Number(number) => {
                let value = number.as_f64().unwrap_or(f64::NAN);
                if number.is_f64() {
                    categories.add_number(value, code);
                } else {
                    categories.add_whole(value, code);
                }
            }
            // Python's True and False are the numbers 1 and 0.
            Value::Bool(value) => categories.add_number(f64::from(u8::from(*value)), code),
            _ => {}
        }
    }
    categories
}
