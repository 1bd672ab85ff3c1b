//! The classification extension: instead of values, the best of them as `value:index:label`.

use crate::error::Error;
use backends::tensor::row_elements;
use backends::{Port, Tensor};
use std::cmp::Ordering;

/// Elements that a classified output may have.
const MAX_ELEMENTS: usize = 1_000_000;

/// The `count` greatest values of each row of `output` as text, greatest first; the first of equals first, and what is
/// no number last. `port` says what the output is by its signature. One without rows, as Triton has it, is a row itself,
/// and the answer has no dimension for rows either.
///
/// # Errors
/// The output is no number, or the result is too large.
pub fn classify(output: &Tensor, count: usize, port: Option<&Port>) -> Result<Tensor, Error> {
    let values = output.to_f64().ok_or_else(|| {
        Error::Invalid(format!("output '{}' is {}; only numbers can be classified", output.name(), output.datatype()))
    })?;
    let rows = rows(output, port);
    let width = rows.map_or(values.len(), |_| row_elements(output.shape()));
    let (count, labels) = (count.min(width), port.map_or(&[][..], |port| port.labels.as_slice()));
    let elements = rows.unwrap_or(1).saturating_mul(count);
    if elements > MAX_ELEMENTS {
        return Err(Error::Invalid(format!("a classification has at most {MAX_ELEMENTS} elements")));
    }
    let mut text = Vec::with_capacity(elements);
    // Of no rows there are no values, however many each would have.
    for row in values.chunks_exact(width.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| greatest_first(row[a], row[b]));
        for &index in order.iter().take(count) {
            let label = labels.get(index).map(|label| format!(":{label}")).unwrap_or_default();
            text.push(format!("{:.6}:{index}{label}", row[index]).replacen("NaN", "nan", 1));
        }
    }
    let shape = rows.into_iter().chain([count]).collect();
    Ok(Tensor::from_strings(output.name(), shape, text)?)
}

/// Rows of an output; `None` where it has no dimension of rows: a scalar, or a list that is always as long.
fn rows(output: &Tensor, port: Option<&Port>) -> Option<usize> {
    let whole = port.is_some_and(|port| matches!(port.shape[..], [length] if length >= 0));
    output.shape().first().copied().filter(|_| !whole)
}

/// A total order: sorting by anything less may panic.
fn greatest_first(a: f64, b: f64) -> Ordering {
    // Of two numbers neither is not-a-number, so that they compare.
    a.is_nan().cmp(&b.is_nan()).then_with(|| b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::DataType;

    fn classes(row: &[f64], count: usize) -> Vec<String> {
        let output = Tensor::from_vec("p", vec![1, row.len()], row.to_vec()).unwrap();
        let classes = classify(&output, count, None).unwrap();
        classes.strings().unwrap().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
    }

    #[test]
    fn greatest_first_then_the_first_of_equals_then_what_is_no_number() {
        const NAN: f64 = f64::NAN;
        let row = [NAN, 1.0, -NAN, f64::INFINITY, 1.0, f64::NEG_INFINITY];
        let wanted = ["inf:3", "1.000000:1", "1.000000:4", "-inf:5", "nan:0", "nan:2"];
        assert_eq!(classes(&row, 9), wanted);
        assert_eq!(classes(&[0.0, -0.0, 0.0], 2), ["0.000000:0", "-0.000000:1"]);
        // Long enough for a sort that trusts its order to find that it is none.
        let mixed: Vec<f64> = (0..1000).map(|i| if i % 3 == 0 { NAN } else { f64::from(i * 7 % 101) }).collect();
        let sorted = classes(&mixed, 1000);
        assert!(sorted[..666].iter().all(|text| !text.starts_with("nan")) && sorted[666].starts_with("nan:0"));
    }

    #[test]
    fn labels_follow_their_index() {
        let output = Tensor::from_vec("p", vec![2, 2], vec![0.25f32, 0.75, 1.0, 0.0]).unwrap();
        let classes = classify(&output, 1, Some(&port(&[-1, 2]))).unwrap();
        let wanted: [&[u8]; 2] = [b"0.750000:1:dog", b"1.000000:0:cat"];
        assert_eq!((classes.shape(), classes.strings().unwrap().collect::<Vec<_>>()), (&[2, 1][..], wanted.to_vec()));
    }

    fn port(shape: &[i64]) -> Port {
        Port {
            name: "p".into(),
            datatype: DataType::Fp32,
            also: Vec::new(),
            shape: shape.into(),
            optional: false,
            any_shape: false,
            labels: vec!["cat".into(), "dog".into()],
        }
    }

    #[test]
    fn what_has_no_rows_is_one_or_has_no_classes() {
        let classes = |stated: &[i64], shape: Vec<usize>, values: Vec<f32>| {
            let output = Tensor::from_vec("p", shape, values).unwrap();
            let classes = classify(&output, 2, Some(&port(stated))).unwrap();
            let text = classes.strings().unwrap().map(|text| String::from_utf8(text.to_vec()).unwrap());
            (classes.shape().to_vec(), text.collect::<Vec<_>>().join(" "))
        };
        assert_eq!(classes(&[], vec![], vec![3.0]), (vec![1], "3.000000:0:cat".into()));
        assert_eq!(classes(&[3], vec![3], vec![1.0, 3.0, 2.0]), (vec![2], "3.000000:1:dog 2.000000:2".into()));
        assert_eq!(classes(&[-1], vec![2], vec![1.0, 3.0]), (vec![2, 1], "1.000000:0:cat 3.000000:0:cat".into()));
        for (stated, shape, wanted) in [
            (&[-1, 3][..], vec![0, 3], vec![0, 2]),
            (&[-1, -1], vec![0, 1 << 40, 1 << 40], vec![0, 2]),
            (&[-1, -1], vec![3, 0], vec![3, 0]),
            (&[-1], vec![0], vec![0, 1]),
        ] {
            assert_eq!(classes(stated, shape, vec![]), (wanted, String::new()));
        }
    }
}
