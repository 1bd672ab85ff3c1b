//! Category values of the data frame that a model was trained on. The file lists them in the order of the frame's
//! categorical columns, but does not say which columns those are.

use super::super::frame::Categories;
use super::text::RawModel;
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

/// Matches the lists with the columns that training took for categorical. They belong together in order, unless an
/// ordered category was taken for a number, or a number declared a category; their counts or codes tell most of those.
pub(super) fn place(model: &mut RawModel) -> Result<Placed, String> {
    let lists = std::mem::take(&mut model.categories);
    let fits = lists.len() == model.categorical.len()
        && lists.iter().zip(&model.categorical).all(|(list, (_, greatest))| *greatest < list.len() as i64);
    if lists.is_empty() || !fits {
        let unplaced = lists.iter().map(|list| categories(list)).collect();
        return Ok(Placed { by_column: Vec::new(), unplaced });
    }
    let mut by_column: Vec<Option<Categories>> = (0..model.features).map(|_| None).collect();
    for (list, (column, _)) in lists.iter().zip(&model.categorical) {
        by_column[*column] = Some(categories(list));
    }
    Ok(Placed { by_column, unplaced: Vec::new() })
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
