//! XGBoost's objectives: how a base score becomes a margin, and a margin a prediction. All in 32-bit floats, with the
//! C library's `expf`, `logf`, `expm1f` and `log1pf`, which is what the library itself calls: results are equal to the
//! last bit on glibc.

use super::answer::{Classes, without_classes};

/// What a file's objective name means for prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Objective {
    Identity,
    Logistic,
    /// binary:logitraw: margins as they are, of two classes.
    Logitraw,
    Exponential,
    /// survival:aft: exponential, computed in 64 bits.
    ExponentialWide,
    Hinge,
    Softmax,
    Softprob,
    Quantile,
    Expectile,
}

const NAMES: &[(&str, Objective)] = &[
    ("reg:squarederror", Objective::Identity),
    ("reg:linear", Objective::Identity),
    ("reg:squaredlogerror", Objective::Identity),
    ("reg:logistic", Objective::Logistic),
    ("reg:pseudohubererror", Objective::Identity),
    ("reg:absoluteerror", Objective::Identity),
    ("reg:quantileerror", Objective::Quantile),
    ("reg:expectileerror", Objective::Expectile),
    ("reg:gamma", Objective::Exponential),
    ("reg:tweedie", Objective::Exponential),
    ("count:poisson", Objective::Exponential),
    ("survival:cox", Objective::Exponential),
    ("survival:aft", Objective::ExponentialWide),
    ("binary:logistic", Objective::Logistic),
    ("binary:logitraw", Objective::Logitraw),
    ("binary:hinge", Objective::Hinge),
    ("multi:softmax", Objective::Softmax),
    ("multi:softprob", Objective::Softprob),
    ("rank:pairwise", Objective::Identity),
    ("rank:ndcg", Objective::Identity),
    ("rank:map", Objective::Identity),
];

/// Margins to predictions, for rows of a fixed number of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    name: &'static str,
    objective: Objective,
    outputs: usize,
}

impl Objective {
    /// The objective and its name of today.
    pub(crate) fn parse(name: &str) -> Result<(&'static str, Self), String> {
        // GPU training used to leave its own spellings in files.
        let plain = name.strip_prefix("gpu:").unwrap_or(name);
        NAMES.iter().find(|(known, _)| *known == plain).copied().ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
            format!("objective '{name}' is not known; known are {}", known.join(", "))
        })
    }

    /// Base scores to margins, in place (`ProbToMargin`).
    pub(crate) fn margins(self, base: &mut [f32]) {
        match self {
            Objective::Logistic => {
                for b in base {
                    *b = -(1.0 / b.clamp(1e-6, 1.0 - 1e-6) - 1.0).ln();
                }
            }
            Objective::Exponential | Objective::ExponentialWide => base.iter_mut().for_each(|b| *b = b.ln()),
            Objective::Expectile => {
                for j in (1..base.len()).rev() {
                    let gap = (base[j] - base[j - 1] - 1e-6).max(1e-6);
                    base[j] = gap + (-(-gap).exp_m1()).ln();
                }
            }
            _ => {}
        }
    }

    pub(crate) fn link(self, name: &'static str, outputs: usize) -> Link {
        Link { name, objective: self, outputs }
    }
}

impl Link {
    /// Predictions for each row; `None` when a row has just one, without a dimension of its own.
    pub(crate) fn columns(self) -> Option<usize> {
        match self.objective {
            Objective::Softmax => None,
            _ if self.outputs == 1 => None,
            _ => Some(self.outputs),
        }
    }

    /// What predictions say of classes; why not, where several outputs are labels each for itself as well.
    pub(crate) fn classes(self) -> Result<Classes, String> {
        match (self.objective, self.outputs) {
            (Objective::Logistic, 1) | (Objective::Softprob, 2..) => Ok(Classes::Probabilities),
            (Objective::Logitraw, 1) => Ok(Classes::Margin),
            (Objective::Hinge, 1) | (Objective::Softmax, _) => Ok(Classes::Index(self.name)),
            (_, outputs) => Err(without_classes(self.name, outputs)),
        }
    }

    /// Margins (row-major) to predictions; shortens the vector where a row has fewer of them (`PredTransform`).
    pub(crate) fn apply(self, margins: &mut Vec<f32>) {
        match self.objective {
            Objective::Identity | Objective::Logitraw => {}
            Objective::Logistic => margins.iter_mut().for_each(|m| *m = logistic(*m)),
            Objective::Exponential => margins.iter_mut().for_each(|m| *m = m.exp()),
            Objective::ExponentialWide => margins.iter_mut().for_each(|m| *m = (*m as f64).exp() as f32),
            Objective::Hinge => margins.iter_mut().for_each(|m| *m = if *m > 0.0 { 1.0 } else { 0.0 }),
            Objective::Softprob => margins.chunks_exact_mut(self.outputs).for_each(softmax),
            // Quantiles that cross are put in order, as the library does from 3.4 on.
            Objective::Quantile => margins.chunks_exact_mut(self.outputs).for_each(|row| row.sort_by(f32::total_cmp)),
            Objective::Expectile => margins.chunks_exact_mut(self.outputs).for_each(expectiles),
            Objective::Softmax => {
                let classes = margins.chunks_exact(self.outputs).map(first_maximum).collect();
                *margins = classes;
            }
        }
    }
}

fn logistic(margin: f32) -> f32 {
    // `std::min(-m, 88.7)`: a not-a-number stays one.
    let x = if 88.7 < -margin { 88.7 } else { -margin };
    1.0 / (x.exp() + 1.0 + 1e-16)
}

/// Exponentials in 32 bits, their sum in 64, in order.
fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(row[0], |a, b| if a < b { b } else { a });
    let mut sum = 0f64;
    for value in row.iter_mut() {
        *value = (*value - max).exp();
        sum += *value as f64;
    }
    row.iter_mut().for_each(|value| *value /= sum as f32);
}

fn first_maximum(row: &[f32]) -> f32 {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best as f32
}

/// Each expectile lies a soft-plus above the one before it.
fn expectiles(row: &mut [f32]) {
    for j in 1..row.len() {
        row[j] = row[j - 1] + (1e-6 + soft_plus(row[j]));
    }
}

fn soft_plus(x: f32) -> f32 {
    if x > 0.0 { x + (-x.abs()).exp().ln_1p() } else { x.min(0.0).exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(name: &str, outputs: usize) -> Result<Classes, String> {
        let (name, objective) = Objective::parse(name).unwrap();
        objective.link(name, outputs).classes()
    }

    #[test]
    fn objectives_of_classes_are_told_from_others() {
        assert_eq!(classes("gpu:binary:logistic", 1), Ok(Classes::Probabilities));
        assert_eq!(classes("multi:softprob", 3), Ok(Classes::Probabilities));
        assert_eq!(classes("binary:logitraw", 1), Ok(Classes::Margin));
        assert_eq!(classes("binary:hinge", 1), Ok(Classes::Index("binary:hinge")));
        assert_eq!(classes("multi:softmax", 3), Ok(Classes::Index("multi:softmax")));
        for name in ["reg:squarederror", "rank:ndcg", "survival:cox", "survival:aft", "count:poisson"] {
            assert!(classes(name, 1).unwrap_err().contains(&format!("'{name}' are neither")), "{name}");
        }
        for name in ["binary:logistic", "reg:quantileerror", "binary:hinge", "binary:logitraw"] {
            assert!(classes(name, 2).unwrap_err().contains(&format!("'{name}' of 2 outputs are")), "{name}");
        }
    }
}
