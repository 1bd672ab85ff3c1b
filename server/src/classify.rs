//! The classification extension: instead of values, the best of them as `value:index:label`.

use crate::error::Error;
use backends::tensor::row_elements;
use backends::{DataType, Port, Tensor};
use std::cmp::Ordering;

/// Elements that a classified output may have.
const MAX_ELEMENTS: usize = 1_000_000;

/// The `count` greatest values of each row of `output` as text, greatest first; the first of equals first, and what is
/// no number last. `port` says what the output is by its signature. One without rows, as Triton has it, is a row itself,
/// and the answer has no dimension for rows either. Labels are those of a row's values by their place; several labels of
/// rows of one value are those of the class that this value is.
///
/// # Errors
/// The output is no number, or the result is too large.
pub fn classify(output: &Tensor, count: usize, port: Option<&Port>) -> Result<Tensor, Error> {
    if output.datatype() == DataType::Bytes {
        let (name, datatype) = (output.name(), output.datatype());
        return Err(Error::Invalid(format!("output '{name}' is {datatype}; only numbers can be classified")));
    }
    let rows = rows(output, port);
    let width = rows.map_or(output.len(), |_| row_elements(output.shape()));
    let (count, labels) = (count.min(width), port.map_or(&[][..], |port| port.labels.as_slice()));
    let elements = rows.unwrap_or(1).saturating_mul(count);
    if elements > MAX_ELEMENTS {
        return Err(Error::Invalid(format!("a classification has at most {MAX_ELEMENTS} elements")));
    }
    let is_class = labels.len() > 1 && port.is_some_and(|port| matches!(port.shape[..], [-1]));
    let best = Best { width, count, labels, is_class };
    // As what they are: not every whole number of 64 bits is a float.
    let text = match output.datatype() {
        DataType::Int64 => best.of(output.values::<i64>().unwrap_or_default(), |a, b| b.cmp(&a), |v| v.to_string()),
        DataType::Uint64 => best.of(output.values::<u64>().unwrap_or_default(), |a, b| b.cmp(&a), |v| v.to_string()),
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => {
            let shown = |value: f64| format!("{value:.6}").replacen("NaN", "nan", 1);
            best.of(&output.to_f64().unwrap_or_default(), greatest_first, shown)
        }
        // Narrower whole numbers are.
        _ => best.of(&output.to_f64().unwrap_or_default(), greatest_first, |value| (value as i64).to_string()),
    };
    let shape = rows.into_iter().chain([count]).collect();
    Ok(Tensor::from_strings(output.name(), shape, text)?)
}

/// Rows of an output; `None` where it has no dimension of rows: a scalar, or a list that is always as long.
fn rows(output: &Tensor, port: Option<&Port>) -> Option<usize> {
    let whole = port.is_some_and(|port| matches!(port.shape[..], [length] if length >= 0));
    output.shape().first().copied().filter(|_| !whole)
}

/// What is wanted of each row.
struct Best<'a> {
    /// How many values it has.
    width: usize,
    /// How many of them are wanted.
    count: usize,
    labels: &'a [String],
    /// Is the one value of a row the number of a class?
    is_class: bool,
}

impl Best<'_> {
    /// Of values row by row: in this order, and written so.
    fn of<T: Copy>(&self, values: &[T], order: impl Fn(T, T) -> Ordering, shown: impl Fn(T) -> String) -> Vec<String> {
        let mut text = Vec::new();
        // Of no rows there are no values, however many each would have.
        for row in values.chunks_exact(self.width.max(1)) {
            let mut places: Vec<usize> = (0..row.len()).collect();
            places.sort_by(|&a, &b| order(row[a], row[b]));
            for &index in places.iter().take(self.count) {
                let value = shown(row[index]);
                let label = self.label(index, &value).map(|label| format!(":{label}")).unwrap_or_default();
                text.push(format!("{value}:{index}{label}"));
            }
        }
        text
    }

    /// The label of the value at `index` of a row, which is written so; none where there is no such class.
    fn label(&self, index: usize, value: &str) -> Option<&String> {
        if !self.is_class {
            return self.labels.get(index);
        }
        let class = value.parse::<f64>().ok().filter(|class| *class >= 0.0 && class.fract() == 0.0)?;
        self.labels.get(class as usize)
    }
}

/// A total order: sorting by anything less may panic.
fn greatest_first(a: f64, b: f64) -> Ordering {
    // Of two numbers neither is not-a-number, so that they compare.
    a.is_nan().cmp(&b.is_nan()).then_with(|| b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn whole_numbers_are_compared_and_written_as_such() {
        fn of<T: backends::Element>(row: Vec<T>) -> String {
            let classes = classify(&Tensor::from_vec("p", vec![1, row.len()], row).unwrap(), 2, None).unwrap();
            let text = classes.strings().unwrap().map(|text| String::from_utf8(text.to_vec()).unwrap());
            text.collect::<Vec<_>>().join(" ")
        }
        // No two of these floats differ.
        assert_eq!(of(vec![1u64 << 53, (1 << 53) + 1, 0]), "9007199254740993:1 9007199254740992:0");
        assert_eq!(of(vec![-(1i64 << 53) - 1, -(1 << 53), i64::MIN]), "-9007199254740992:1 -9007199254740993:0");
        assert_eq!(of(vec![u64::MAX, u64::MAX - 1]), "18446744073709551615:0 18446744073709551614:1");
        assert_eq!(of(vec![0i32, -7, 7]), "7:2 0:0");
        assert_eq!(of(vec![7u8, 255, 7]), "255:1 7:0");
        let flags = Tensor::from_bools("p", vec![1, 2], vec![0, 1]).unwrap();
        let classes = classify(&flags, 1, None).unwrap();
        assert_eq!(classes.strings().unwrap().collect::<Vec<_>>(), [b"1:1"]);
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
    fn a_value_that_is_a_class_has_the_label_of_that_class() {
        let label = |output: Tensor| {
            let classes = classify(&output, 1, Some(&port(&[-1]))).unwrap();
            let text = classes.strings().unwrap().map(|text| String::from_utf8(text.to_vec()).unwrap());
            text.collect::<Vec<_>>().join(" ")
        };
        let floats = vec![1.0, 0.0, -0.0, 2.0, 0.5, -1.0, f64::NAN, f64::INFINITY];
        let wanted = "1.000000:0:dog 0.000000:0:cat -0.000000:0:cat 2.000000:0 0.500000:0 -1.000000:0 nan:0 inf:0";
        assert_eq!(label(Tensor::from_vec("p", vec![8], floats).unwrap()), wanted);
        assert_eq!(
            label(Tensor::from_vec("p", vec![3], vec![1i64, 0, i64::MAX]).unwrap()),
            format!("1:0:dog 0:0:cat {}:0", i64::MAX)
        );
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
        assert_eq!(classes(&[-1, 1], vec![2, 1], vec![1.0, 3.0]), (vec![2, 1], "1.000000:0:cat 3.000000:0:cat".into()));
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
