//! LightGBM's objectives: how a row's sums become its prediction (`ConvertOutput`). All in 64-bit floats, with the C
//! library's `exp` and `log1p`, which is what the library itself calls: results are equal to the last bit on glibc.

use super::super::answer::{Classes, without_classes};

/// What an objective does to sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Transform {
    Identity,
    /// `1 / (1 + exp(-k x))`.
    Sigmoid(f64),
    Softmax,
    Exponential,
    /// `log(1 + exp(x))`.
    SoftPlus,
    /// The square with the sign of the sum: undoes a square root of the labels.
    SignedSquare,
}

/// Sums to predictions, for rows of a fixed number of outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Link {
    name: &'static str,
    family: Family,
    transform: Transform,
    outputs: usize,
    /// Random forests: sums are divided by this first.
    iterations: Option<f64>,
}

/// Objectives by every name that a file may have: the one of today first, then those of old files.
const NAMES: &[(&[&str], Family)] = &[
    (
        &[
            "regression",
            "regression_l2",
            "l2",
            "mean_squared_error",
            "mse",
            "l2_root",
            "root_mean_squared_error",
            "rmse",
        ],
        Family::SquareRoot,
    ),
    (&["regression_l1", "l1", "mean_absolute_error", "mae"], Family::SquareRoot),
    (&["fair"], Family::SquareRoot),
    (&["quantile"], Family::SquareRoot),
    (&["mape", "mean_absolute_percentage_error"], Family::SquareRoot),
    // It takes the parameter `sqrt`, and ignores it.
    (&["huber"], Family::Plain),
    (&["lambdarank"], Family::Plain),
    (&["rank_xendcg", "xendcg", "xe_ndcg", "xe_ndcg_mart", "xendcg_mart"], Family::Plain),
    (&["custom", "none", "null", "na"], Family::Plain),
    (&["poisson"], Family::Exponential),
    (&["gamma"], Family::Exponential),
    (&["tweedie"], Family::Exponential),
    (&["binary"], Family::Sigmoid),
    (&["multiclassova", "multiclass_ova", "ova", "ovr"], Family::Sigmoid),
    (&["cross_entropy", "xentropy"], Family::CrossEntropy),
    (&["cross_entropy_lambda", "xentlambda"], Family::SoftPlus),
    (&["multiclass", "softmax"], Family::Softmax),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Plain,
    /// Plain, or a square where the parameter `sqrt` stands.
    SquareRoot,
    Exponential,
    /// With the parameter `sigmoid`.
    Sigmoid,
    CrossEntropy,
    SoftPlus,
    Softmax,
}

impl Link {
    /// Reads the file's objective: a name, then parameters by space. `iterations` is given for random forests.
    pub(crate) fn parse(objective: Option<&str>, outputs: usize, iterations: Option<usize>) -> Result<Self, String> {
        let mut words = objective.unwrap_or("custom").split_ascii_whitespace();
        let name = words.next().unwrap_or("custom");
        let (mut sigmoid, mut classes, mut square_root) = (1.0, outputs, false);
        for word in words {
            let value = |key: &str| word.strip_prefix(key).and_then(|rest| rest.strip_prefix(':'));
            if let Some(text) = value("sigmoid") {
                sigmoid = parse_parameter(text).filter(|k| *k > 0.0).ok_or_else(|| refuse(word))?;
            } else if let Some(text) = value("num_class") {
                classes = text.parse().map_err(|_| refuse(word))?;
            }
            square_root |= word == "sqrt";
        }
        let known = NAMES.iter().find_map(|(names, family)| {
            let found = names.iter().find(|known| **known == name)?;
            Some((*found, *family))
        });
        let (name, family) = known.ok_or_else(|| unknown(name))?;
        let transform = match family {
            Family::SquareRoot if square_root => Transform::SignedSquare,
            Family::Plain | Family::SquareRoot => Transform::Identity,
            Family::Exponential => Transform::Exponential,
            Family::Sigmoid => Transform::Sigmoid(sigmoid),
            Family::CrossEntropy => Transform::Sigmoid(1.0),
            Family::SoftPlus => Transform::SoftPlus,
            Family::Softmax => Transform::Softmax,
        };
        if classes != outputs {
            return Err(format!("objective '{name}' is for {classes} classes, but num_class is {outputs}"));
        }
        Ok(Link { name, family, transform, outputs, iterations: iterations.map(|n| n as f64) })
    }

    /// Predictions of a row; `None` where there is one, without a dimension of its own.
    pub(crate) fn columns(self) -> Option<usize> {
        (self.outputs > 1).then_some(self.outputs)
    }

    /// What predictions say of classes, or why they say nothing.
    pub(crate) fn classes(self) -> Result<Classes, String> {
        match (self.family, self.outputs) {
            (Family::Sigmoid, _) | (Family::CrossEntropy, 1) | (Family::Softmax, 2..) => Ok(Classes::Probabilities),
            // A loss of one's own over classes: the library knows no other use of several outputs.
            (Family::Plain, 2..) if self.name == "custom" => Ok(Classes::Scores(self.name)),
            (_, outputs) => Err(without_classes(self.name, outputs)),
        }
    }

    /// Sums, row-major, to predictions.
    pub(crate) fn apply(self, sums: &mut [f64]) {
        if let Some(iterations) = self.iterations {
            sums.iter_mut().for_each(|x| *x /= iterations);
        }
        match self.transform {
            Transform::Identity => {}
            Transform::Sigmoid(k) => sums.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-k * *x).exp())),
            Transform::Exponential => sums.iter_mut().for_each(|x| *x = x.exp()),
            Transform::SoftPlus => sums.iter_mut().for_each(|x| *x = x.exp().ln_1p()),
            Transform::SignedSquare => sums.iter_mut().for_each(|x| *x = signed_square(*x)),
            Transform::Softmax => sums.chunks_exact_mut(self.outputs).for_each(softmax),
        }
    }
}

fn refuse(word: &str) -> String {
    format!("objective parameter '{word}' has no valid value")
}

fn unknown(name: &str) -> String {
    let known: Vec<&str> = NAMES.iter().map(|(names, _)| names[0]).collect();
    format!("objective '{name}' is not known; known are {}", known.join(", "))
}

fn signed_square(x: f64) -> f64 {
    let sign = f64::from(i8::from(x > 0.0) - i8::from(x < 0.0));
    sign * x * x
}

/// The sum is made in order.
fn softmax(row: &mut [f64]) {
    let max = row.iter().copied().fold(row[0], |a, b| if b < a { a } else { b });
    let mut sum = 0.0;
    for value in row.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    row.iter_mut().for_each(|value| *value /= sum);
}

/// A parameter as the library reads it: digits before and behind the point apart, each without a rounding of its own,
/// so that the last bit may differ from the nearest number's.
fn parse_parameter(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then_some(());
    digits(whole).and(digits(fraction)).filter(|()| whole.len() + fraction.len() > 0 && fraction.len() <= 22)?;
    let read = |text: &str| text.bytes().fold(0.0, |value, digit| value * 10.0 + f64::from(digit - b'0'));
    let value = read(whole) + read(fraction) / 10f64.powi(fraction.len() as i32);
    let exponent: i32 = exponent.parse().ok().filter(|e| (-22..=22).contains(e))?;
    Some(if exponent < 0 { value / 10f64.powi(-exponent) } else { value * 10f64.powi(exponent) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_of_classes_are_told_from_others() {
        let classes = |objective, outputs| Link::parse(Some(objective), outputs, None).unwrap().classes();
        for (objective, outputs) in
            [("binary sigmoid:1", 1), ("multiclass num_class:3", 3), ("ova num_class:3", 3), ("cross_entropy", 1)]
        {
            assert_eq!(classes(objective, outputs), Ok(Classes::Probabilities), "{objective}");
        }
        for objective in ["regression", "l1", "lambdarank", "poisson", "cross_entropy_lambda", "custom"] {
            assert!(classes(objective, 1).unwrap_err().contains(&format!("'{objective}' are neither")), "{objective}");
        }
        assert_eq!(classes("custom num_class:3", 3), Ok(Classes::Scores("custom")));
    }

    #[test]
    fn parameters_are_read_as_the_library_reads_them() {
        for (text, value) in [("1", 1.0), ("2.5", 2.5), ("0.7", 0.7), ("1e-05", 1e-5), ("12.5E+1", 125.0)] {
            assert_eq!(parse_parameter(text), Some(value), "{text}");
        }
        // Six and 0.56 make another number than 6.56.
        assert_eq!(parse_parameter("6.56").map(f64::to_bits), Some(6.56f64.next_up().to_bits()));
        for text in ["", ".", "x", "-1", "1e", "1e99", "nan"] {
            assert_eq!(parse_parameter(text), None, "{text}");
        }
    }
}
