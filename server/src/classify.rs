//! The classification extension: instead of values, the best of them as `value:index:label`.

use crate::error::Error;
use backends::Tensor;

/// Elements that a classified output may have.
const MAX_ELEMENTS: usize = 1_000_000;

/// The `count` greatest values of each row of `output` as text, greatest first; the first of equals first.
///
/// # Errors
/// The output is no number, or the result is too large.
pub fn classify(output: &Tensor, count: usize, labels: &[String]) -> Result<Tensor, Error> {
    let values = output.to_f64().ok_or_else(|| {
        Error::Invalid(format!("output '{}' is {}; only numbers can be classified", output.name(), output.datatype()))
    })?;
    let rows = output.rows();
    let width = values.len().checked_div(rows).unwrap_or(0);
    let count = count.min(width);
    if rows.saturating_mul(count) > MAX_ELEMENTS {
        return Err(Error::Invalid(format!("a classification has at most {MAX_ELEMENTS} elements")));
    }
    let mut text = Vec::with_capacity(rows * count);
    for row in values.chunks_exact(width.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(std::cmp::Ordering::Equal));
        for &index in order.iter().take(count) {
            let label = labels.get(index).map(|label| format!(":{label}")).unwrap_or_default();
            text.push(format!("{:.6}:{index}{label}", row[index]));
        }
    }
    Ok(Tensor::from_strings(output.name(), vec![rows, count], text)?)
}
